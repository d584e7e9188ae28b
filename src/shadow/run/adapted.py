"""An open adapter next to its base: what it adds at each place, or replaces."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import filterfalse
from typing import Any

import torch
from torch import Tensor

from shadow.checkpoints.adapter_names import Targets
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import (
    Filter,
    MatrixPair,
    Operand,
    Skipped,
    pair_checkpoints,
)
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.weight_files import PREFIX, adapter_factors
from shadow.errors import ShadowError
from shadow.places.architecture import Part, Place, place_tensors
from shadow.reasons import ONE_SIDED, OUT_OF_REACH
from shadow.run.aligned import Alignment, parts_of, plain, role_of, row_of, shapes_of
from shadow.run.merged_by_peft import Merges, applied, base_names
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scanned import Scanned, Unmatched
from shadow.run.stacked import STACK, Stacked, stacked_updates
from shadow.run.workers import base_of, formats_of, views
from shadow.spectra.relations.merging import MergeFit, Update, merge_fit
from shadow.templates import Reason, Value, said

# tensors of an adapter beside its factors, by what is done with them
PIECES = {
    "norms": re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.\w+)*"),
    "biases": re.compile(r"(?P<module>.+)\.lora_B(?:\.\w+)?\.bias"),
    "tokens": re.compile(r"(?P<module>.+)\.token_adapter(?:\.base_layer)?\.trainable_tokens_delta"),
    "copies": re.compile(r"(?P<module>.+)\.base_layer\.weight"),
}
OF_FACTORS = ("biases", "copies")  # pieces that only modules with factors have
EMBED = Place("language", None, "embed")
HEAD = Place("language", None, "head")


TokenRows = tuple[Sequence[int], Tensor]
"""The numbers of rows of a vocabulary that an adapter holds, and what stands there."""


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter whose tensors are aligned with those of its base."""

    checkpoint: Checkpoint
    updates: Mapping[Place, MatrixPair]
    whole: Mapping[Place, MatrixPair]
    """Tensors that stand in the place of the base's."""
    is_dora: bool
    norms: Mapping[Place, Tensor]
    """Those that DoRA gives the rows of base plus update."""
    stacks: Mapping[Place, Stacked]
    """Updates of stacked experts."""
    biases: Mapping[Place, Operand]
    """Updates of biases, before they are scaled."""
    scales: Mapping[str, float]
    """By which the updates of modules are multiplied, by module."""
    tokens: Mapping[Place, TokenRows]
    copies: Mapping[Place, TensorInfo]
    """Whole layers of the base that were saved too: peft loads them over the base's."""
    heads: Mapping[str, TensorInfo]
    """Tensors that it holds whole and the base lacks, by their names in a model."""
    lost: Sequence[Unmatched]
    """Tensors that change nothing of the base, which has no such module or one of another shape."""
    unread: Sequence[Unmatched]
    merges: Merges | None = None
    """What peft makes of the base, for types other than LoRA."""

    @property
    def scale(self) -> float | None:
        """The factor of its updates; None if they do not share one."""
        scales = {stacked.scale for stacked in self.stacks.values()}
        for pair in self.updates.values():
            factor = pair.tuned.factor
            if factor is not None:
                scales.add(factor.scaling)
        if len(scales) != 1:
            return None
        return scales.pop()

    def outside(self, places: set[Place]) -> list[str]:
        """Its tensors at other places, by name."""
        names = set()
        for place, info in self._placed_tensors():
            if place not in places:
                names.add(info.name)
        return sorted(names)

    def _placed_tensors(self) -> Iterator[tuple[Place, TensorInfo]]:
        """Yield tensors that change the base, with their places in it."""
        for pair in (*self.updates.values(), *self.whole.values()):
            yield pair.place, pair.tuned.info
        for place, stacked in self.stacks.items():
            yield place, stacked.b
        for place, operand in self.biases.items():
            yield place, operand.info

    def is_tied(self, pair: MatrixPair) -> bool:
        """True if a pair is a head whose base is the embedding that an update is of."""
        if pair.place != HEAD or pair.base is None:
            return False
        of_embedding = self.updates.get(EMBED)
        if of_embedding is None or of_embedding.base is None:
            return False
        return of_embedding.base.info.name == pair.base.info.name

    def fit(
        self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, place: Place
    ) -> MergeFit | None:
        """Compare a merged tensor with base plus update at a place; None if shapes differ."""
        base_operand = base_of(pair)
        if not pair.is_matrix:  # with a side of 1
            shape = self.updates[place].tuned.shape
            if not base_operand.shape == pair.tuned.shape == shape:
                return None
            rows, cols = shape
            pair = replace(pair, rows=rows, cols=cols, is_matrix=True)
        source = base
        copy = self.copies.get(place)
        if copy is not None and base_operand.part.shape(copy.shape) == pair.tuned.shape:
            source = self.checkpoint
            saved = replace(base_operand, info=copy)
            pair = replace(pair, base=saved, rows=pair.tuned.shape[0])
        return _fit(pair, source, tuned, self._update(place, pair.rows))

    def _update(self, place: Place, rows: int) -> Update:
        """Read the first rows of the update at a place."""
        operand = self.updates[place].tuned
        factor = operand.factor
        assert factor is not None, "an update"
        left = self._whole(operand.info)
        right = self._whole(factor.info)
        if factor.transposed:
            left = left.T
            right = right.T
        every_row = operand.part.view(left).reshape(-1, factor.rank)
        norms = self.norms.get(place)
        if norms is not None:
            column = norms.reshape(-1, 1)
            norms = operand.part.view(column).reshape(-1)
        return Update(
            left=every_row[:rows],
            right=right,
            scale=factor.scaling,
            magnitude=norms,
            stored=operand.info.dtype,
            is_cast=factor.transposed,  # of an embedding
        )

    def _whole(self, info: TensorInfo) -> Tensor:
        """Read a tensor of the adapter."""
        return self.checkpoint.tensor(info).whole()

    def fit_merge(self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> MergeFit:
        """Compare a merged tensor with what peft makes of the base's."""
        assert self.merges is not None, "of another type than LoRA"
        operand = base_of(pair)
        info = operand.info
        stored = base.tensor(info).whole()
        dtype = stored.dtype if stored.dtype.itemsize > 1 else torch.float32
        exact = self.merges[info.name]
        rounded = self.merges.merged(info.name, dtype)
        if not pair.is_matrix:
            pair = replace(pair, rows=info.parameters, cols=1)
        matrices = []
        for tensor in (stored, exact, rounded):
            every_row = operand.part.view(tensor).reshape(-1, pair.cols)
            matrices.append(every_row[: pair.rows])
        return _fit(pair, base, tuned, Update.of_merge(*matrices))

    def fit_bias(self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> MergeFit:
        """Compare a merged bias with the base's plus the scaled bias of B."""
        operand = self.biases[pair.place]
        info = operand.info
        bias = operand.part.view(self._whole(info)).reshape(-1, 1)
        module, _, _ = info.name.removeprefix(PREFIX).partition(".lora_B")
        scale = self.scales[module]
        update = Update(bias, bias.new_ones(1, 1), scale, stored=info.dtype)
        column = replace(pair, rows=len(bias), cols=1, is_matrix=False)
        return _fit(column, base, tuned, update)

    def row_of_tokens(
        self, pair: MatrixPair, row: Scanned, base: Checkpoint, tuned: Checkpoint
    ) -> tuple[Scanned, bool]:
        """Compare a vocabulary with the base's but for the rows that the adapter holds. row: the
        comparison with the base's. Return also whether these rows differ from the base's.
        """
        numbers, rows = self.tokens[pair.place]
        base_rows, merged_rows = views(pair, base, tuned)
        moved = 0  # entries of these rows that are not the base's
        differing = 0  # and those that are not the adapter's
        for number, expected in zip(numbers, rows, strict=True):
            index = (slice(number, number + 1), slice(None))
            merged = merged_rows[index].reshape(-1).clone()
            moved += _count_differing(base_rows[index].reshape(-1), merged)
            differing += _count_differing(expected, merged)
        changed = row.changed - moved + differing
        return replace(row, changed=changed, rounded=None), moved > 0

    def head_pairs(self, tuned: Checkpoint) -> list[MatrixPair]:
        """The tensors of a merged model that are of the adapter alone."""
        pairs = []
        for name, info in self.heads.items():
            merged = tuned.tensors.get(name)
            if merged is None or merged.shape != info.shape:
                continue
            place = Place("other", None, "other", slot=name)
            operand = Operand(merged, Part(place))
            pair = MatrixPair(place, None, operand, 1, merged.parameters, is_matrix=False)
            pairs.append(pair)
        return pairs

    def row_of_head(self, pair: MatrixPair, tuned: Checkpoint) -> Scanned:
        """Compare a tensor that the base lacks."""
        info = self.heads[pair.tuned.info.name]
        own = Operand(info, pair.tuned.part)
        return row_of(replace(pair, base=own), self.checkpoint, tuned)

    def fit_expert(
        self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint
    ) -> tuple[MergeFit, MergeFit, int | None]:
        """Compare a merged matrix of a stack with base plus update, of factors that are packed rank
        by rank and expert by expert; return also which expert's update it holds instead.
        """
        stacked = self.stacks[pair.place]
        packed_by_rank = stacked.update(self.checkpoint, by_rank=True)
        packed_by_expert = stacked.update(self.checkpoint, by_rank=False)
        by_rank = _fit(pair, base, tuned, packed_by_rank)
        by_expert = _fit(pair, base, tuned, packed_by_expert)
        owner = None
        has_moved = by_expert.finite and by_expert.moved > 0
        if has_moved and not by_rank.fits and not by_expert.fits:
            owner = self._owner(pair, base, tuned)
        return by_rank, by_expert, owner

    def _owner(self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> int | None:
        """Find another expert of the stack whose update a merged matrix holds."""
        stacked = self.stacks[pair.place]
        first, second = views(pair, base, tuned)
        change = second[()].double() - first[()].double()
        matrix = change.reshape(-1, change.shape[-1])
        owner = None
        for by_rank in (True, False):
            expert = stacked.likest(self.checkpoint, matrix, by_rank=by_rank)
            update = stacked.update(self.checkpoint, by_rank=by_rank, expert=expert)
            if _fit(pair, base, tuned, update).fits:
                owner = expert
        return owner

    def row_of_whole(self, pair: MatrixPair, tuned: Checkpoint) -> Scanned:
        """Compare a tensor that it holds whole with the merged model's."""
        operand = self.whole[pair.place].tuned
        own = replace(pair, base=operand)
        if pair.is_matrix and operand.shape == pair.tuned.shape:
            rows, cols = operand.shape
            own = replace(own, rows=rows, cols=cols)
        return row_of(own, self.checkpoint, tuned)


def _count_differing(row: Tensor, merged: Tensor) -> int:
    """Count the entries of a row that a merged one, in its own dtype, does not have."""
    is_other = row.to(merged.dtype) != merged
    return int(is_other.sum())


def _fit(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, update: Update) -> MergeFit:
    base_matrix, merged = views(pair, base, tuned)
    is_upright = not base_of(pair).part.transposed
    return merge_fit(base_matrix, merged, update, formats_of(pair), upright=is_upright)


def open_adapter(opened: Checkpoint, base: Checkpoint) -> OpenAdapter:
    """Align an adapter with its base. Raises ShadowError if nothing fits."""
    adapter = opened.adapter
    assert adapter is not None, "an adapter"
    tensors = dict(opened.tensors)
    factors, _, _ = adapter_factors(tensors)
    pieces = _taken_out(tensors, factors)
    magnitudes = {}
    for module, info in pieces["norms"].items():
        magnitudes[module] = opened.tensor(info).whole().double()
    if adapter.dora and not magnitudes:
        fault = f"{opened.reference}: a DoRA adapter without its norms (lora_magnitude_vector)"
        raise ShadowError(fault, "save it again")
    stacks, stacked_modules = stacked_updates(adapter, factors, base)
    for module in stacked_modules:
        b, a, _ = factors[module]
        del tensors[b.name]
        del tensors[a.name]
    without_norms = replace(opened, tensors=tensors, adapter=replace(adapter, dora=False))
    # what was merged may have come under other names
    pairs, skipped = pair_checkpoints(base, without_norms, Filter(), may_differ=True, by_place=True)
    aligned = [pair for pair in pairs if pair.base is not None]
    updates = {pair.place: pair for pair in aligned if pair.tuned.factor is not None}
    whole = {pair.place: pair for pair in aligned if pair.tuned.factor is None}
    heads = _heads(tensors, whole.values(), base)
    names_of_heads = {info.name for info in heads.values()}
    scales = {}
    for module, (_, a, _) in factors.items():
        rank, _ = a.shape
        scales[module] = adapter.scaling(module, rank)
    biases = _placed(pieces["biases"], base, "bias")
    copies = _placed(pieces["copies"], base, "weight")
    tokens, unknown = _tokens(opened, pieces["tokens"], base)
    unpaired = [tensor for _, tensor in _unpaired(skipped) if tensor.tensor not in names_of_heads]
    return OpenAdapter(
        checkpoint=plain(opened),
        updates=updates,
        whole=whole,
        is_dora=adapter.dora,
        norms=_norms(updates, magnitudes),
        stacks=stacks,
        biases=biases,
        scales=scales,
        tokens=tokens,
        copies={place: operand.info for place, operand in copies.items()},
        heads=heads,
        lost=[*filter(_is_certain, unpaired)],
        unread=[*filterfalse(_is_certain, unpaired), *unknown],
    )


def _taken_out(
    tensors: dict[str, TensorInfo], modules: Collection[str]
) -> dict[str, dict[str, TensorInfo]]:
    """Remove the tensors beside the factors; return them by kind and by module."""
    pieces: dict[str, dict[str, TensorInfo]] = {kind: {} for kind in PIECES}
    for name in list(tensors):
        for kind, pattern in PIECES.items():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            module = match["module"].removeprefix(PREFIX)
            if kind in OF_FACTORS and module not in modules:
                continue
            pieces[kind][module] = tensors.pop(name)
            break
    return pieces


def _norms(
    updates: Mapping[Place, MatrixPair], magnitudes: Mapping[str, Tensor]
) -> dict[Place, Tensor]:
    """The norms that DoRA gives each update: of the first module that fits."""
    norms = {}
    for place, pair in updates.items():
        name = base_of(pair).info.name.removesuffix(".weight")
        for module, rows in magnitudes.items():
            if _is_module(module, name):
                norms[place] = rows
                break
    return norms


def _heads(
    tensors: dict[str, TensorInfo], whole: Collection[MatrixPair], base: Checkpoint
) -> dict[str, TensorInfo]:
    """The tensors without factors that the base lacks, by their names in a model."""
    known = {pair.tuned.info.name for pair in whole}
    heads = {}
    _, without_factors, _ = adapter_factors(tensors)
    for name, info in without_factors.items():
        if info.name not in known and name not in base.tensors:
            heads[name] = info
    return heads


def open_merges(base: Checkpoint, opened: Checkpoint, runtime: Runtime) -> OpenAdapter:
    """Open an adapter of another type than LoRA, which peft merges."""
    checkpoint, merges = applied(base, opened, runtime)
    parts = parts_of(base)
    whole = {}
    for name in merges.whole:
        for part in parts[name]:
            operand = Operand(checkpoint.tensors[name], part)
            whole[part.place] = MatrixPair(part.place, None, operand, 1, 1, is_matrix=False)
    return OpenAdapter(
        checkpoint=checkpoint,
        updates={},
        whole=whole,
        is_dora=False,
        norms={},
        stacks={},
        biases={},
        scales={},
        tokens={},
        copies={},
        heads={},
        lost=[],
        unread=[],
        merges=merges,
    )


def _placed(pieces: Mapping[str, TensorInfo], base: Checkpoint, piece: str) -> dict[Place, Operand]:
    """The tensors of a module's weight or bias by its places in the base."""
    infos = {f"{module}.{piece}": info for module, info in pieces.items()}
    shapes = {name: info.shape for name, info in infos.items()}
    placed = {}
    for name, parts in place_tensors(shapes, base.config).items():
        for part in parts:
            placed[part.place] = Operand(infos[name], part)
    return placed


def _tokens(
    opened: Checkpoint, pieces: Mapping[str, TensorInfo], base: Checkpoint
) -> tuple[dict[Place, TokenRows], list[Unmatched]]:
    """The rows of vocabularies that the adapter holds, by place, and those whose numbers its
    config does not say, or the base lacks.
    """
    assert opened.adapter is not None, "an adapter"
    indices = opened.adapter.config.get("trainable_token_indices")
    sizes = shapes_of(base)
    tokens: dict[Place, TokenRows] = {}
    unknown = []
    for module, info in pieces.items():
        numbers = _numbers_of(module, indices)
        (place,) = _placed({module: info}, base, "weight")
        rows, cols = sizes.get(place, (0, 0))
        if _are_rows(numbers, rows) and info.shape == (len(numbers), cols):
            tokens[place] = numbers, opened.tensor(info).whole()
        else:
            unknown.append(Unmatched(info.name, "adapter", Reason("not_read")))
    return tokens, unknown


def _numbers_of(module: str, indices: object) -> list[Any]:
    """The numbers that a config lists for a module, or for all of them; they may be
    anything.
    """
    if isinstance(indices, dict):
        own = [listed for name, listed in indices.items() if _is_module(module, name)]
        indices = next(iter(own), None)
    if not isinstance(indices, list):
        return []
    return indices


def _are_rows(numbers: Sequence[int], rows: int) -> bool:
    """True if numbers are those of different rows, one at least."""
    for number in numbers:
        if type(number) is not int or not 0 <= number < rows:
            return False
    return 0 < len(numbers) == len(set(numbers))


def _unpaired(skipped: Sequence[Skipped]) -> Iterator[tuple[Place, Unmatched]]:
    """Yield the tensors of an adapter that change nothing of its base, and their places."""
    closed = set()  # what the base has without a partner
    for tensor in skipped:
        if tensor.side == "base" and tensor.reason:
            closed.add(role_of(tensor.place))
    for tensor in skipped:
        if tensor.side != "tuned":
            continue
        why = _why_unpaired(tensor, is_closed=role_of(tensor.place) in closed)
        is_shared = tensor.reason == "shape_differs"
        unmatched = Unmatched(tensor.info.name, "adapter", why, is_shared=is_shared)
        yield tensor.place, unmatched


def _why_unpaired(tensor: Skipped, *, is_closed: bool) -> Reason:
    """Say why a tensor of an adapter has no partner. is_closed: whether the base has a tensor of
    its role that has none either.
    """
    if tensor.reason == "shape_differs":
        return Reason("other_width", text=tensor.detail)
    if tensor.reason == "untargeted":
        return Reason("no_target")
    if tensor.reason not in ONE_SIDED:
        return said(tensor.detail or str(tensor.reason))
    if is_closed and tensor.reason not in OUT_OF_REACH:
        return Reason("not_read")
    return Reason("no_module")


def _is_certain(tensor: Unmatched) -> bool:
    """True if a tensor of an adapter is known to change nothing of its base."""
    return tensor.is_shared or tensor.why.code in ("no_module", "no_target")


def line_up_adapter(base: Checkpoint, adapter: Checkpoint) -> Alignment:
    """Pair the modules that an adapter moves with those of its base; others only have places."""
    every, skipped = pair_checkpoints(base, adapter, Filter(), may_differ=True)
    pairs = [pair for pair in every if pair.base is not None]
    places = {}
    for name, parts in parts_of(base).items():
        places[name] = {part.place for part in parts}
    for pair in pairs:
        places.setdefault(pair.tuned.info.name, set()).add(pair.place)
    unpaired = []
    for place, tensor in _unpaired(skipped):
        places.setdefault(tensor.tensor, set()).add(place)
        unpaired.append(tensor)
    return Alignment(
        pair=AlignedPair(base, adapter, pairs, []),
        unmatched=[*filter(_is_certain, unpaired)],
        unread=[*filterfalse(_is_certain, unpaired)],
        notes=(),
        places=places,
    )


@dataclass(frozen=True)
class Reach:
    """The modules of an adapter that peft leaves out."""

    modules: int  # of the adapter
    unnamed: Sequence[str]  # those without a name of the base
    untargeted: Sequence[str]  # those that the config does not name
    prefix: tuple[str, str] | None
    """The first words of those without a name, and those with which they would have one."""

    @property
    def reasons(self) -> list[Reason]:
        """Say how many there are, and which; empty if peft applies all of them."""
        reasons = []
        if self.unnamed:
            code = "some_unnamed"
            if len(self.unnamed) == self.modules:
                code = "unnamed"
            figures: dict[str, Value] = {
                "modules": self.modules,
                "unnamed": len(self.unnamed),
                "names": self.unnamed,
            }
            if self.prefix is not None:
                own, instead = self.prefix
                figures["prefix"] = own
                figures["instead"] = instead
            reasons.append(Reason(code, figures))
        if self.untargeted:
            figures = {
                "modules": self.modules,
                "untargeted": len(self.untargeted),
                "names": self.untargeted,
            }
            reasons.append(Reason("untargeted", figures))
        return reasons


def reach_of(adapter: Checkpoint, base: Checkpoint) -> Reach:
    """Find the modules of an adapter that have no name of its base, or are not targeted."""
    assert adapter.adapter is not None, "an adapter"
    targets = Targets(adapter.adapter.config)
    factors, _, _ = adapter_factors(adapter.tensors)
    modules = [module for module in factors if not STACK.fullmatch(module)]
    shapes = {f"{module}.weight": (2, 2) for module in modules}
    parts = place_tensors(shapes, base.config)
    names = base_names(base, parts_of(base))
    unnamed = []
    untargeted = []
    for module in modules:
        place = parts[f"{module}.weight"][0].place
        if not names.has(module, place):
            unnamed.append(module)
        elif not targets.has(module):
            untargeted.append(module)
    return Reach(len(modules), unnamed, untargeted, names.prefix(unnamed))


def _is_module(key: str, name: str) -> bool:
    """True if a module of the adapter is the base's of that name, which may have a prefix
    more.
    """
    return key == name or key.endswith(f".{name}") or name.endswith(f".{key}")
