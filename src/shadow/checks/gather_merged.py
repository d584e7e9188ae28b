"""What the claim `merged` needs measured: every matrix beside base plus update."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from shadow.checkpoints.adapters import PREFIX
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Operand, Skipped, pair_checkpoints
from shadow.checks.answer import Answer
from shadow.checks.merged import Merge, Module, merged
from shadow.checks.old import combined
from shadow.errors import ShadowError, UsageError
from shadow.places.architecture import Place
from shadow.run.aligned import line_up_all, plain, row_of
from shadow.run.runtime import Runtime
from shadow.run.scan import fetch_all, in_words, require_unchanged, scan
from shadow.run.scanned import Apart, Scanned
from shadow.run.sides import found_all, open_found, opened_models
from shadow.run.workers import views
from shadow.spectra.lazy import is_quantised
from shadow.spectra.merging import MergeFit, Update, merge_fit
from shadow.targets.references import AnyReference
from shadow.templates import said
from shadow.text import counted, with_article

MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.\w+)*")
NO_NORMS = "the DoRA adapter has no norms (lora_magnitude_vector) for it"
NOT_JUDGED = ": a merge that is quantised is not judged; give the merge before it was quantised"
NAMES = ("the base", "the merged model")
EMBED = Place("language", None, "embed")
HEAD = Place("language", None, "head")


@dataclass(frozen=True)
class _Adapter:
    """An open adapter: what it does at each place of its base."""

    checkpoint: Checkpoint
    base: Checkpoint
    updates: Mapping[Place, MatrixPair]
    whole: Mapping[Place, MatrixPair]
    magnitudes: Mapping[str, Tensor]
    """By the name of the base's tensor without `.weight`: DoRA's norms of rows."""
    unread: Sequence[Apart]

    def magnitude(self, place: Place) -> Tensor | None:
        """DoRA's norms of the rows at a place of an update; None where it has none."""
        mine = self.updates[place].base
        assert mine is not None, "lined up"
        name = mine.info.name.removesuffix(".weight")
        return next((rows for key, rows in self.magnitudes.items() if _is_module(key, name)), None)

    def lacks_norms(self, place: Place) -> bool:
        """Whether it is a DoRA adapter with an update at a place, and no norms for it."""
        return bool(self.magnitudes) and place in self.updates and self.magnitude(place) is None

    def update(self, pair: MatrixPair) -> Update:
        """The update of a pair of the merged model, in its rows."""
        mine = self.updates[pair.place]
        factor = mine.tuned.factor
        assert factor is not None, "an update"
        left = self.checkpoint.tensor(mine.tuned.info).whole()
        right = self.checkpoint.tensor(factor.info).whole()
        if factor.transposed:
            left, right = left.T, right.T
        left = mine.tuned.part.view(left).reshape(-1, factor.rank)
        magnitude = self.magnitude(pair.place)
        if magnitude is not None:
            magnitude = mine.tuned.part.view(magnitude.reshape(-1, 1)).reshape(-1)
        return Update(left[: pair.rows], right, factor.scaling, magnitude, mine.tuned.info.dtype)


@dataclass(frozen=True)
class _Whole:
    """A tensor that the adapter holds whole, which stands in the base's place."""

    row: Scanned
    moved: bool
    """Whether the merged model's differs from the base's."""


def _is_module(key: str, name: str) -> bool:
    """Whether a module of the adapter is the base's of that name, which may have a prefix more."""
    return key == name or key.endswith(f".{name}") or name.endswith(f".{key}")


def verify_merged(
    of: Mapping[str, str],
    references: Sequence[AnyReference],
    runtime: Runtime,
    scratch: Path,
) -> Answer:
    """Whether a model is a base with an adapter merged into it."""
    names = ("BASE", "ADAPTER", "MERGED")
    runtime = replace(runtime, access=replace(runtime.access, dora=True))
    found = found_all(dict(zip(names, references, strict=True)), runtime, scratch)
    found_adapter = found.pop("ADAPTER")
    base, tuned = opened_models(found, runtime, scratch)
    opened = open_found(found_adapter, runtime, scratch / "ADAPTER")
    if opened.adapter is None:
        hint = f"name a folder with adapter_config.json; in order: {' '.join(names)}"
        raise UsageError(f"ADAPTER: {opened.reference} is a model, not an adapter", hint)
    runtime = fetch_all([opened], runtime)
    lined = line_up_all(base, tuned, NAMES)
    adapter = _adapter(opened, lined.pair.base)
    places = {pair.place for pair in lined.pair.pairs}
    rows = list(
        scan(
            lined.pair,
            lambda pair, a, b: _measured(pair, a, b, adapter),
            runtime,
            scratch / "scan",
            lined.unread,
        )
    )
    require_unchanged([opened])
    modules = sorted(
        (row for row in rows if isinstance(row, Module)), key=lambda row: (row.tensor, row.place)
    )
    whole = [row for row in rows if isinstance(row, _Whole)]
    others = sorted(
        [*(row for row in rows if isinstance(row, Scanned)), *(one.row for one in whole)],
        key=lambda row: (row.tuned, row.place),
    )
    absent = [
        pair.tuned.info.name
        for place, pair in (*adapter.updates.items(), *adapter.whole.items())
        if place not in places
    ]
    scales = {pair.tuned.factor.scaling for pair in adapter.updates.values() if pair.tuned.factor}
    lone = [one for one in lined.lone if not _holds_rows(one, lined.pair.pairs, adapter)]
    answer, against, notes = merged(
        Merge(
            modules,
            others,
            [*lone, *_lost_rows(lined.pair.pairs, adapter)],
            [*lined.unread, *adapter.unread],
            sorted(set(absent)),
            scales.pop() if len(scales) == 1 else None,
            [one.moved for one in whole],
        )
    )
    return combined(answer, against, (*lined.notes, *notes))


def _adapter(opened: Checkpoint, base: Checkpoint) -> _Adapter:
    """What an adapter does at each place. Raises ShadowError where it fits nothing of the base."""
    assert opened.adapter is not None, "checked"
    magnitudes: dict[str, Tensor] = {}
    tensors = dict(opened.tensors)
    if opened.adapter.dora:
        for name in list(tensors):
            if match := MAGNITUDE.fullmatch(name):
                module = match["module"].removeprefix(PREFIX)
                magnitudes[module] = opened.tensor(tensors.pop(name)).whole().double()
        if not magnitudes:
            raise ShadowError(
                f"{opened.reference}: a DoRA adapter without its norms (lora_magnitude_vector)",
                "save it again",
            )
    alone = replace(opened, tensors=tensors)
    pairs, skipped = pair_checkpoints(base, alone, Filter(), may_differ=True)
    unread = [
        Apart(one.info.name, "adapter", said(_why(one))) for one in skipped if one.side == "tuned"
    ]
    with_base = [pair for pair in pairs if pair.base is not None]
    return _Adapter(
        opened,
        base,
        {pair.place: pair for pair in with_base if pair.tuned.factor is not None},
        {pair.place: pair for pair in with_base if pair.tuned.factor is None},
        magnitudes,
        unread,
    )


def _why(one: Skipped) -> str:
    """Why a tensor of the adapter is of no update."""
    if one.reason == "only_in_tuned":
        return "the base has no such module"
    return one.detail or str(one.reason)


def _holds_rows(one: Apart, pairs: Sequence[MatrixPair], adapter: _Adapter) -> bool:
    """Whether rows that the base lacks are of a tensor that the adapter holds whole."""
    return one.side == "tuned" and any(
        pair.tuned.info.name == one.tensor
        and pair.place in adapter.whole
        and adapter.whole[pair.place].tuned.shape == pair.tuned.shape
        for pair in pairs
    )


def _lost_rows(pairs: Sequence[MatrixPair], adapter: _Adapter) -> list[Apart]:
    """The rows of the adapter, such as those of new tokens, that the merged model lacks."""
    lost = []
    for pair in pairs:
        mine = adapter.whole.get(pair.place) or adapter.updates.get(pair.place)
        if mine is not None and (rows := mine.tuned.shape[0] - pair.tuned.shape[0]) > 0:
            what = f"{counted(rows, 'row', 'rows')} only in the adapter"
            lost.append(Apart(pair.tuned.info.name, "adapter", said(what), is_shared=True))
    return lost


def _measured(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, adapter: _Adapter
) -> Module | Scanned | _Whole | Apart:
    if pair.place in adapter.updates and _is_quantised(pair, tuned):
        return Apart(pair.tuned.info.name, "tuned", said(f"{pair.tuned.info.dtype}{NOT_JUDGED}"))
    if adapter.lacks_norms(pair.place):
        return Apart(pair.tuned.info.name, "tuned", said(NO_NORMS))
    if pair.place in adapter.updates:
        if not pair.is_matrix:  # with a side of 1
            rows, cols = shape = adapter.updates[pair.place].tuned.shape
            if pair.base is None or not pair.base.shape == pair.tuned.shape == shape:
                return Apart(pair.tuned.info.name, "tuned", said("not of the shape of its update"))
            pair = replace(pair, rows=rows, cols=cols, is_matrix=True)
        return _module(pair, base, tuned, adapter.update(pair))
    if (whole := adapter.whole.get(pair.place)) is not None:
        return _of_whole(pair, whole.tuned, base, tuned, adapter)
    row = row_of(pair, base, tuned)
    if row.changed and _is_quantised(pair, tuned):
        return Apart(row.tuned, "tuned", said(f"{pair.tuned.info.dtype}{NOT_JUDGED}"))
    if row.changed and pair.place == HEAD and EMBED in adapter.updates and pair.base is not None:
        embed = adapter.updates[EMBED]
        if embed.base is not None and embed.base.info.name == pair.base.info.name:
            moved = replace(pair, place=EMBED)  # a tied head goes with its embedding
            module = _module(pair, base, tuned, adapter.update(moved))
            if module.fits:
                return module
    return row if not row.changed else _with_copy(row, pair, base, tuned)


def _is_quantised(pair: MatrixPair, tuned: Checkpoint) -> bool:
    return is_quantised(tuned.tensor(pair.tuned.info))


def _module(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, update: Update) -> Module:
    fit = _fit(pair, base, tuned, update)
    assert pair.base is not None, "lined up"
    return Module(
        place=in_words(pair.place),
        tensor=pair.tuned.info.name,
        formats=(pair.base.info.dtype, pair.tuned.info.dtype),
        entries=fit.entries,
        wide=fit.wide,
        narrow=fit.narrow,
        update=fit.update,
        residual=fit.residual,
        inner=fit.inner,
        rounding=fit.rounding,
        visible=fit.visible,
        finite=fit.finite,
        onto_rounded=fit.onto_rounded,
        quantised=fit.quantised,
    )


def _fit(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, update: Update) -> MergeFit:
    assert pair.base is not None, "lined up"
    first, second = views(pair, pair.base, base, tuned)
    formats = pair.base.info.dtype, pair.tuned.info.dtype
    return merge_fit(first, second, update, formats, upright=not pair.base.part.transposed)


def _of_whole(
    pair: MatrixPair, mine: Operand, base: Checkpoint, tuned: Checkpoint, adapter: _Adapter
) -> _Whole:
    """A tensor that the adapter holds whole, beside the merged model's."""
    rows, cols = (pair.rows, pair.cols)
    if mine.shape == pair.tuned.shape and pair.is_matrix:
        rows, cols = mine.shape
    beside = replace(pair, base=mine, rows=rows, cols=cols)
    assert pair.base is not None, "lined up"
    moved = pair.base.shape != pair.tuned.shape or row_of(pair, base, tuned).changed > 0
    return _Whole(row_of(beside, plain(adapter.checkpoint), tuned), moved)


def _with_copy(row: Scanned, pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Scanned:
    """A tensor beside the adapter that is not the base's, with what it is where that shows."""
    if not pair.is_matrix or row.rounded == ("tuned", row.formats[1]):
        return row
    nothing = Update(torch.zeros(pair.rows, 1), torch.zeros(1, pair.cols), 0.0)
    fit = _fit(pair, base, tuned, nothing)
    if fit.quantised and fit.quantised[1] < fit.residual / 16:
        return replace(
            row, remark=f"it is {with_article(f'{fit.quantised[0]} copy')} of the base's"
        )
    return row
