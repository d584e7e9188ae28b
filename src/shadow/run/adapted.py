"""An open adapter next to its base: what it adds at each place, or replaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Skipped, pair_checkpoints
from shadow.checkpoints.weight_files import PREFIX, adapter_factors
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.reasons import ONE_SIDED
from shadow.run.aligned import Alignment, parts_of, plain, role_of, row_of
from shadow.run.runtime import AlignedPair
from shadow.run.scanned import Scanned, Unmatched
from shadow.run.stacked import Stacked, stacked_updates
from shadow.run.workers import views
from shadow.spectra.relations.merging import MergeFit, Update, merge_fit
from shadow.templates import Reason, said

MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.\w+)*")
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
    unread: Sequence[Unmatched]

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
        left = operand.part.view(left).reshape(-1, factor.rank)[: pair.rows]
        norms = self.norms.get(place)
        if norms is not None:
            norms = operand.part.view(norms.reshape(-1, 1)).reshape(-1)
        update = Update(left, right, factor.scaling, norms, operand.info.dtype)
        return _fit(pair, base, tuned, update)

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
    magnitudes: dict[str, Tensor] = {}
    tensors = dict(opened.tensors)
    for name in list(tensors) if opened.adapter.dora else ():
        if match := MAGNITUDE.fullmatch(name):
            module = match["module"].removeprefix(PREFIX)
            magnitudes[module] = opened.tensor(tensors.pop(name)).whole().double()
    if opened.adapter.dora and not magnitudes:
        raise ShadowError(
            f"{opened.reference}: a DoRA adapter without its norms (lora_magnitude_vector)",
            "save it again",
        )
    factors = adapter_factors(tensors)[0]
    stacks, modules = stacked_updates(opened.adapter, factors, base)
    for module in modules:
        for info in factors[module][:2]:
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
    unread = [apart for _, apart in _unpaired(skipped)]
    return OpenAdapter(plain(opened), updates, whole, opened.adapter.dora, norms, stacks, unread)


def _unpaired(skipped: Sequence[Skipped]) -> Iterator[tuple[Place, Unmatched]]:
    """Yield the tensors of an adapter that change nothing of its base, and their places."""
    closed = {role_of(one.place) for one in skipped if one.side == "base" and one.reason}
    for one in skipped:
        if one.side == "tuned":
            is_hidden = one.reason != "unnamed" and role_of(one.place) in closed
            why = Reason("not_read" if is_hidden else "no_module")
            if one.reason not in ONE_SIDED:
                why = said(one.detail or str(one.reason))
            yield one.place, Unmatched(one.info.name, "adapter", why)


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
        (unmatched if one.why.code == "no_module" else unread).append(one)
    return Alignment(AlignedPair(base, adapter, pairs, []), unmatched, unread, (), places)


def _is_module(key: str, name: str) -> bool:
    """Return whether a module of the adapter is the base's of that name, which may have a prefix
    more.
    """
    return key == name or key.endswith(f".{name}") or name.endswith(f".{key}")
