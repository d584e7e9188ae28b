"""An open adapter next to its base: what it adds at each place, or replaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shadow.checkpoints.adapter_names import BaseNames, Targets
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
from shadow.run.aligned import Alignment, parts_of, plain, role_of, row_of
from shadow.run.merged_by_peft import Merges, applied
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scanned import Scanned, Unmatched
from shadow.run.stacked import STACK, Stacked, stacked_updates
from shadow.run.workers import views
from shadow.spectra.relations.merging import MergeFit, Update, merge_fit
from shadow.templates import Reason, Value, said
from shadow.text import short

# tensors of an adapter beside its factors, by what is done with them
PIECES = {
    "norms": re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.\w+)*"),
    "biases": re.compile(r"(?P<module>.+)\.lora_B(?:\.\w+)?\.bias"),
    "tokens": re.compile(r"(?P<module>.+)\.token_adapter(?:\.base_layer)?\.trainable_tokens_delta"),
    "copies": re.compile(r"(?P<module>.+)\.base_layer\.weight"),
}
EMBED = Place("language", None, "embed")
HEAD = Place("language", None, "head")


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
    tokens: Mapping[Place, tuple[list[int], Tensor]]
    """Rows of a vocabulary that it holds: their numbers, and what stands there."""
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
        """Return the factor of its updates; None if they do not share one."""
        scales = {pair.tuned.factor.scaling for pair in self.updates.values() if pair.tuned.factor}
        scales |= {stacked.scale for stacked in self.stacks.values()}
        return scales.pop() if len(scales) == 1 else None

    def outside(self, places: set[Place]) -> list[str]:
        """Return its tensors at other places, by name."""
        pairs = [*self.updates.values(), *self.whole.values()]
        names = {pair.tuned.info.name for pair in pairs if pair.place not in places}
        names |= {one.b.name for place, one in self.stacks.items() if place not in places}
        names |= {one.info.name for place, one in self.biases.items() if place not in places}
        return sorted(names)

    def is_tied(self, pair: MatrixPair) -> bool:
        """Return whether a pair is a head whose base is the embedding that an update is of."""
        names = [one and one.base and one.base.info.name for one in (self.updates.get(EMBED), pair)]
        return pair.place == HEAD and names[0] is not None and names[0] == names[1]

    def fit(
        self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, place: Place
    ) -> MergeFit | None:
        """Compare a merged tensor with base plus update at a place; None if shapes differ."""
        mine, operand = pair.base, self.updates[place].tuned
        factor = operand.factor
        assert mine is not None, "lined up"
        assert factor is not None, "an update"
        if not pair.is_matrix:  # with a side of 1
            rows, cols = shape = operand.shape
            if not mine.shape == pair.tuned.shape == shape:
                return None
            pair = replace(pair, rows=rows, cols=cols, is_matrix=True)
        left, right = (self.checkpoint.tensor(one.info).whole() for one in (operand, factor))
        if factor.transposed:
            left, right = left.T, right.T
        source = base
        if (copy := self.copies.get(place)) and mine.part.shape(copy.shape) == pair.tuned.shape:
            source = self.checkpoint
            pair = replace(pair, base=replace(mine, info=copy), rows=pair.tuned.shape[0])
        left = operand.part.view(left).reshape(-1, factor.rank)[: pair.rows]
        norms = self.norms.get(place)
        if norms is not None:
            norms = operand.part.view(norms.reshape(-1, 1)).reshape(-1)
        is_cast = factor.transposed  # of an embedding
        update = Update(left, right, factor.scaling, norms, operand.info.dtype, is_cast)
        return _fit(pair, source, tuned, update)

    def fit_merge(self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> MergeFit:
        """Compare a merged tensor with what peft makes of the base's."""
        assert pair.base is not None, "aligned"
        assert self.merges is not None, "of another type than LoRA"
        info, part = pair.base.info, pair.base.part
        stored = base.tensor(info).whole()
        dtype = stored.dtype if stored.dtype.itemsize > 1 else torch.float32
        whole = stored, self.merges[info.name], self.merges.merged(info.name, dtype)
        if not pair.is_matrix:
            pair = replace(pair, rows=info.parameters, cols=1)
        views = [part.view(tensor).reshape(-1, pair.cols)[: pair.rows] for tensor in whole]
        return _fit(pair, base, tuned, Update.of_merge(*views))

    def fit_bias(self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> MergeFit:
        """Compare a merged bias with the base's plus the scaled bias of B."""
        operand = self.biases[pair.place]
        bias = operand.part.view(self.checkpoint.tensor(operand.info).whole()).reshape(-1, 1)
        owner = operand.info.name.removeprefix(PREFIX).partition(".lora_B")[0]
        scale = self.scales[owner]
        column = replace(pair, rows=len(bias), cols=1, is_matrix=False)
        update = Update(bias, bias.new_ones(1, 1), scale, None, operand.info.dtype)
        return _fit(column, base, tuned, update)

    def row_of_tokens(
        self, pair: MatrixPair, row: Scanned, base: Checkpoint, tuned: Checkpoint
    ) -> tuple[Scanned, bool]:
        """Compare a vocabulary with the base's but for the rows that the adapter holds. row: the
        comparison with the base's. Return also whether these rows differ from the base's.
        """
        assert pair.base is not None, "aligned"
        numbers, rows = self.tokens[pair.place]
        first, second = views(pair, pair.base, base, tuned)
        differ = moved = 0
        for number, expected in zip(numbers, rows, strict=True):
            at = (slice(number, number + 1), slice(None))
            merged = second[at].reshape(-1).clone()
            differ += int((expected.to(merged.dtype) != merged).sum())
            moved += int((first[at].reshape(-1).to(merged.dtype) != merged).sum())
        return replace(row, changed=row.changed - moved + differ, rounded=None), moved > 0

    def head_pairs(self, tuned: Checkpoint) -> list[MatrixPair]:
        """Return the tensors of a merged model that are of the adapter alone."""
        pairs = []
        for name, info in self.heads.items():
            merged = tuned.tensors.get(name)
            if merged is not None and merged.shape == info.shape:
                part = Part(Place("other", None, "other", slot=name))
                operand = Operand(merged, part)
                size = merged.parameters
                pairs.append(MatrixPair(part.place, None, operand, 1, size, is_matrix=False))
        return pairs

    def row_of_head(self, pair: MatrixPair, tuned: Checkpoint) -> Scanned:
        """Compare a tensor that the base lacks."""
        return row_of(
            replace(pair, base=Operand(self.heads[pair.tuned.info.name], pair.tuned.part)),
            self.checkpoint,
            tuned,
        )

    def fit_expert(
        self, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint
    ) -> tuple[MergeFit, MergeFit, int | None]:
        """Compare a merged matrix of a stack with base plus update, of factors that are packed rank
        by rank and expert by expert; return also which expert's update it holds instead.
        """
        stacked = self.stacks[pair.place]
        fits = []
        owner = None
        for by_rank in (True, False):
            update = stacked.update(self.checkpoint, by_rank=by_rank)
            fits.append(_fit(pair, base, tuned, update))
        by_expert = fits[1]
        if by_expert.moved and by_expert.finite and not any(fit.fits for fit in fits):
            assert pair.base is not None, "aligned"
            first, second = views(pair, pair.base, base, tuned)
            rows = tuple(slice(None) for _ in first.shape)
            change = second[rows].double() - first[rows].double()
            change = change.reshape(-1, change.shape[-1])
            for by_rank in (True, False):
                expert = stacked.likest(self.checkpoint, change, by_rank=by_rank)
                update = stacked.update(self.checkpoint, by_rank=by_rank, expert=expert)
                if _fit(pair, base, tuned, update).fits:
                    owner = expert
        return fits[0], fits[1], owner

    def row_of_whole(self, pair: MatrixPair, tuned: Checkpoint) -> Scanned:
        """Compare a tensor that it holds whole with the merged model's."""
        mine, (rows, cols) = self.whole[pair.place].tuned, (pair.rows, pair.cols)
        if pair.is_matrix and mine.shape == pair.tuned.shape:
            rows, cols = mine.shape
        return row_of(replace(pair, base=mine, rows=rows, cols=cols), self.checkpoint, tuned)


def _fit(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, update: Update) -> MergeFit:
    assert pair.base is not None, "aligned"
    formats = pair.base.info.dtype, pair.tuned.info.dtype
    upright = not pair.base.part.transposed
    return merge_fit(*views(pair, pair.base, base, tuned), update, formats, upright=upright)


def open_adapter(opened: Checkpoint, base: Checkpoint) -> OpenAdapter:
    """Align an adapter with its base. Raises ShadowError if nothing fits."""
    assert opened.adapter is not None, "an adapter"
    tensors = dict(opened.tensors)
    pieces: dict[str, dict[str, TensorInfo]] = {kind: {} for kind in PIECES}
    modules = adapter_factors(tensors)[0]
    for name in opened.tensors:
        for kind, pattern in PIECES.items():
            match = pattern.fullmatch(name)
            of_factors = kind in ("biases", "copies")
            if match and (not of_factors or match["module"].removeprefix(PREFIX) in modules):
                module = match["module"].removeprefix(PREFIX)
                pieces[kind][module] = tensors.pop(name)
    magnitudes = {
        module: opened.tensor(info).whole().double() for module, info in pieces["norms"].items()
    }
    if opened.adapter.dora and not magnitudes:
        raise ShadowError(
            f"{opened.reference}: a DoRA adapter without its norms (lora_magnitude_vector)",
            "save it again",
        )
    stacks, stacked = stacked_updates(opened.adapter, modules, base)
    for module in stacked:
        for info in modules[module][:2]:
            del tensors[info.name]
    without_norms = replace(opened, tensors=tensors, adapter=replace(opened.adapter, dora=False))
    # what was merged may have come under other names
    pairs, skipped = pair_checkpoints(base, without_norms, Filter(), may_differ=True, by_place=True)
    updates = {pair.place: pair for pair in pairs if pair.base and pair.tuned.factor}
    whole = {pair.place: pair for pair in pairs if pair.base and not pair.tuned.factor}
    norms = {
        place: rows
        for place, pair in updates.items()
        for module, rows in reversed(magnitudes.items())  # the first that fits
        if pair.base and _is_module(module, pair.base.info.name.removesuffix(".weight"))
    }
    known = {pair.tuned.info.name for pair in whole.values()}
    heads = {
        name: info
        for name, info in adapter_factors(tensors)[1].items()
        if info.name not in known and name not in base.tensors
    }
    names = {info.name for info in heads.values()}
    unpaired = [apart for _, apart in _unpaired(skipped) if apart.tensor not in names]
    unread = [apart for apart in unpaired if not _is_certain(apart)]
    lost = [apart for apart in unpaired if _is_certain(apart)]
    scales = {
        module: opened.adapter.scaling(module, a.shape[0]) for module, (_, a, _) in modules.items()
    }
    biases = _placed(pieces["biases"], base, "bias")
    copies = {place: one.info for place, one in _placed(pieces["copies"], base, "weight").items()}
    tokens, unknown = _tokens(opened, pieces["tokens"], base)
    return OpenAdapter(
        plain(opened), updates, whole, opened.adapter.dora, norms, stacks, biases, scales, tokens,
        copies, heads, lost, [*unread, *unknown],
    )  # fmt: skip


def open_merges(base: Checkpoint, opened: Checkpoint, runtime: Runtime) -> OpenAdapter:
    """Open an adapter of another type than LoRA, which peft merges."""
    checkpoint, merges = applied(base, opened, runtime)
    parts = parts_of(base)
    whole = {}
    for name in merges.whole:
        for part in parts[name]:
            operand = Operand(checkpoint.tensors[name], part)
            whole[part.place] = MatrixPair(part.place, None, operand, 1, 1, is_matrix=False)
    return OpenAdapter(checkpoint, {}, whole, False, {}, {}, {}, {}, {}, {}, {}, [], [], merges)


def _placed(pieces: Mapping[str, TensorInfo], base: Checkpoint, piece: str) -> dict[Place, Operand]:
    """Return what is of a module's weight or bias by its places in the base."""
    names = {module: f"{module}.{piece}" for module in pieces}
    shapes = {names[module]: info.shape for module, info in pieces.items()}
    parts = place_tensors(shapes, base.config)
    return {
        part.place: Operand(info, part)
        for module, info in pieces.items()
        for part in parts[names[module]]
    }


def _tokens(
    opened: Checkpoint, pieces: Mapping[str, TensorInfo], base: Checkpoint
) -> tuple[dict[Place, tuple[list[int], Tensor]], list[Unmatched]]:
    """Return the rows of vocabularies that the adapter holds, by place, and those whose numbers its
    config does not say, or the base lacks.
    """
    assert opened.adapter is not None, "an adapter"
    numbers = opened.adapter.config.get("trainable_token_indices")
    sizes = {
        part.place: part.shape(base.tensors[name].shape)
        for name, parts in parts_of(base).items()
        for part in parts
    }
    tokens: dict[Place, tuple[list[int], Tensor]] = {}
    unknown = []
    for module, info in pieces.items():
        own: object = numbers
        if isinstance(numbers, dict):
            own = next((one for end, one in numbers.items() if _is_module(module, end)), None)
        (place,) = _placed({module: info}, base, "weight")
        rows, cols = sizes.get(place, (0, 0))
        listed = own if isinstance(own, list) else []
        is_known = all(type(one) is int and 0 <= one < rows for one in listed)
        is_known &= len({*map(str, listed)}) == len(listed) > 0
        if is_known and info.shape == (len(listed), cols):
            tokens[place] = listed, opened.tensor(info).whole()
        else:
            unknown.append(Unmatched(info.name, "adapter", Reason("not_read")))
    return tokens, unknown


def _unpaired(skipped: Sequence[Skipped]) -> Iterator[tuple[Place, Unmatched]]:
    """Yield the tensors of an adapter that change nothing of its base, and their places."""
    closed = {role_of(one.place) for one in skipped if one.side == "base" and one.reason}
    for one in skipped:
        if one.side == "tuned":
            is_hidden = one.reason not in OUT_OF_REACH and role_of(one.place) in closed
            why = Reason("not_read" if is_hidden else "no_module")
            if one.reason == "untargeted":
                why = Reason("no_target")
            elif one.reason not in ONE_SIDED:
                why = said(one.detail or str(one.reason))
            is_of_both = one.reason == "shape_differs"
            if is_of_both:
                why = Reason("other_width", text=one.detail)
            yield one.place, Unmatched(one.info.name, "adapter", why, is_shared=is_of_both)


def _is_certain(tensor: Unmatched) -> bool:
    """Return whether a tensor of an adapter is known to change nothing of its base."""
    return tensor.is_shared or tensor.why.code in ("no_module", "no_target")


def line_up_adapter(base: Checkpoint, adapter: Checkpoint) -> Alignment:
    """Pair the modules that an adapter moves with those of its base; others only have places."""
    found, skipped = pair_checkpoints(base, adapter, Filter(), may_differ=True)
    pairs = [pair for pair in found if pair.base is not None]
    places = {name: {part.place for part in parts} for name, parts in parts_of(base).items()}
    for pair in pairs:
        places.setdefault(pair.tuned.info.name, set()).add(pair.place)
    unmatched, unread = list[Unmatched](), list[Unmatched]()
    for place, one in _unpaired(skipped):
        places.setdefault(one.tensor, set()).add(place)
        (unmatched if _is_certain(one) else unread).append(one)
    return Alignment(AlignedPair(base, adapter, pairs, []), unmatched, unread, (), places)


@dataclass(frozen=True)
class Reach:
    """The modules of an adapter that peft leaves out."""

    modules: int  # of the adapter
    unnamed: Sequence[str] = ()  # those without a name of the base
    untargeted: Sequence[str] = ()  # those that the config does not name
    prefix: tuple[str, str] | None = None
    """The first words of those without a name, and those with which they would have one."""

    @property
    def reasons(self) -> list[Reason]:
        """Say how many there are, and which; empty if peft applies all of them."""
        of: dict[str, Value] = {"modules": self.modules}
        reasons = []
        if self.unnamed:
            code = "unnamed" if len(self.unnamed) == self.modules else "some_unnamed"
            figures: dict[str, Value] = {"unnamed": len(self.unnamed), "names": self.unnamed}
            if self.prefix is not None:
                first, other = (short(words) if words else "no prefix" for words in self.prefix)
                figures |= {"prefix": first, "instead": other}
            reasons.append(Reason(code, of | figures))
        if self.untargeted:
            figures = {"untargeted": len(self.untargeted), "names": self.untargeted}
            reasons.append(Reason("untargeted", of | figures))
        return reasons


def reach_of(adapter: Checkpoint, base: Checkpoint) -> Reach:
    """Find the modules of an adapter that have no name of its base, or are not targeted."""
    assert adapter.adapter is not None, "an adapter"
    targets = Targets(adapter.adapter.config)
    factors = adapter_factors(adapter.tensors)[0]
    modules = [module for module in factors if not STACK.fullmatch(module)]
    parts = place_tensors({f"{module}.weight": (2, 2) for module in modules}, base.config)
    components = {part.place.component for own in parts_of(base).values() for part in own}
    names = BaseNames(base.tensors, components)
    unnamed = [one for one in modules if not names.has(one, parts[f"{one}.weight"][0].place)]
    untargeted = [one for one in modules if one not in unnamed and not targets.has(one)]
    return Reach(len(modules), unnamed, untargeted, names.prefix(unnamed))


def _is_module(key: str, name: str) -> bool:
    """Return whether a module of the adapter is the base's of that name, which may have a prefix
    more.
    """
    return key == name or key.endswith(f".{name}") or name.endswith(f".{key}")
