"""Facts other than the comparison of matrices: what is identical, vectors that moved, a vocabulary
of another size, files, what could not be compared; and how far the two sides are one model, and
what is stored is the change, which the gates judge.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadow.dtypes import FLOATS
from shadow.reasons import UNNAMED
from shadow.summary.layer_medians import held_rank
from shadow.summary.record import (
    BrokenRow,
    FileCounts,
    FileRow,
    FilesRow,
    SkippedRow,
    Unchanged,
    UncomparedRow,
    VectorsRow,
    VocabularyRow,
)
from shadow.summary.tables import Columns, Rows, are, median
from shadow.text import short_name

ONE_SIDED = ("only_in_base", "only_in_tuned")
UNCOMPARED = (*ONE_SIDED, "shape_differs", "nonfinite")  # reasons that a finding names
UNREAD = ("unknown_dtype", "quantized")  # reasons of what is there, and is told as unread
GROWING = ("embed", "head")  # modules whose rows are a vocabulary
EXAMPLES = 3  # tensors of a reason or a kind of damage that a summary names
STATES = ("changed", "added", "removed", "unknown", "same")  # of files
LISTED = 40  # files that are named, those first in which something differs
FAR = 10.0  # times as far as the next one, a vector is named
BROKEN = re.compile(r"in the (base and the tuned|base|tuned) tensor")  # of nonfinite
# With norms that are equal, a cosine below 0.5 is a delta longer than the base itself: it tells of
# the base's spectrum, not of a change. Fine-tunes have 0.9 and more, unrelated models of one shape
# 0 within 1 / sqrt(rows cols).
LINEAGE = 0.5
ROUNDING = 2.0  # floor_ratio: a copy rounded once has 1
FULL_RANK = 0.5  # of the directions of a matrix; an adapter of rank 16 in 896 has 0.02
OUTSIDE = ("embed", "head", "position")  # modules that unrelated models may share


def vectors(tensors: Columns) -> VectorsRow:
    """Return how many vectors were compared, and how far those that moved did.

    A vector that is 0 in the base has no relative norm; where it moved, it is no copy of that.
    """
    rows = tensors.where(tensors["compared"] > 0).having(side="tuned", reason="not_a_matrix")
    norms = rows["relative_norm"]
    from_zero = np.isnan(norms) & (rows["cast"] != None)  # noqa: E711
    changed = (norms > 0) | from_zero
    moved = {
        component: [int(layer) for layer in dict.fromkeys(group.inside["layer"])]
        for (component,), group in rows.where(changed).groups("component")
    }
    furthest, sizes = None, np.nan_to_num(norms)
    for chosen in (sizes >= 0, are(rows["module"], "norm")):  # biases may be small, and move far
        among = np.flatnonzero(chosen)
        order = among[np.argsort(-sizes[among], kind="stable")]
        if furthest is None and len(order) > 1 and sizes[order[0]] > FAR * sizes[order[1]]:
            furthest = order[0]
    return VectorsRow(
        compared=len(rows),
        changed=int(changed.sum()),
        relative_norm=median(norms[norms > 0]),
        relative_norm_of_all=median(np.where(np.isnan(norms), 0.0, norms)),
        furthest=None if furthest is None else str(rows["tensor"][furthest]),
        furthest_norm=None if furthest is None else float(sizes[furthest]),
        moved=moved,
    )


def idle_updates(tensors: Columns) -> int:
    """Return modules of an adapter that equal the base's, as the product of its factors is 0."""
    return _updates(tensors.having(side="tuned", status="identical"))


def unnamed_updates(tensors: Columns) -> int:
    """Return modules of an adapter of whose name the base has none."""
    return _updates(tensors.where(are(tensors["detail"], UNNAMED)).having(side="tuned"))


def _updates(tensors: Columns) -> int:
    """Count the modules of an adapter's factors."""
    factors = (".lora_B", ".lora_embedding_B")  # one of the two of a module
    return sum(any(factor in str(name) for factor in factors) for name in tensors["tensor"])


def vocabulary(tensors: Columns) -> list[VocabularyRow]:
    """Return embeddings and heads with more rows on one side, whose common rows were compared."""
    tensors = tensors.having(module=GROWING, status=("measured", "identical"))
    rows = []
    for (component, module), group in tensors.groups("component", "module"):
        of = Counter[str]()
        is_partial = False
        for side, shape, compared in group.each("side", "shape", "compared"):
            if len(shape) == 2 and compared > 0:  # not where it is unknown either
                of[side] = max(int(shape[0]), of[side])
                is_partial |= compared < math.prod(shape)
        base, tuned = of["base"], of["tuned"]
        if is_partial and base and tuned and base != tuned:
            grown = VocabularyRow(
                component=component,
                module=module,
                base_rows=base,
                tuned_rows=tuned,
                added=tuned - base,
            )
            rows.append(grown)
    return rows


def broken(tensors: Columns) -> list[BrokenRow]:
    """Return the tensors that no training leaves so, a row for each side and kind of damage."""
    rows = []
    damage = {
        "nonfinite": are(tensors["reason"], "nonfinite"),
        "all_zero": tensors["all_zero"] > 0,
        "empty": np.array([0 in shape for shape in tensors["shape"]], dtype=np.bool_),
    }
    for code, chosen in damage.items():
        of_code = tensors.where(chosen)
        for side in ("base", "tuned"):
            names = [
                short_name(name)
                for name, of, detail in of_code.each("tensor", "side", "detail")
                if of == side and _side(code, detail or "") in (side, "both")
            ]
            if names:
                row = BrokenRow(code=code, side=side, count=len(names), tensors=names[:EXAMPLES])
                rows.append(row)
    return rows


def uncompared(tensors: Columns) -> list[UncomparedRow]:
    """Return what has no partner, another shape or no finite numbers: whole layers, whole experts,
    otherwise modules. A tensor whose partner cannot be read has a partner.
    """
    # a layer of -1 is outside the layers
    tensors = tensors.added(number=np.nan_to_num(tensors["layer"], nan=-1.0))
    rows = tensors.having(status="skipped", reason=UNCOMPARED)
    # tensors of both sides have the same reason and detail; one side tells of both
    rows = rows.where(are(rows["side"], "tuned") | are(rows["reason"], "only_in_base"))
    if not len(rows):
        return []
    place = ("side", "component", "module", "number")
    unread = set(tensors.having(reason=UNREAD).each(*place))
    layers, experts = (
        {reason: _absent(tensors, reason, *names) for reason in ONE_SIDED}
        for names in (("layer",), ("layer", "expert"))
    )
    groups: dict[tuple[Any, ...], list[int]] = {}
    for side, component, module, number, expert, reason, detail in rows.each(
        *place, "expert", "reason", "detail"
    ):
        other = "base" if side == "tuned" else "tuned"
        if reason in ONE_SIDED and (other, component, module, number) in unread:
            continue
        named = None if (component, number) in layers.get(reason, ()) else str(module)
        if named and (component, number, expert) in experts.get(reason, ()):
            named = f"expert {expert:.0f}"
        key = (reason, _side(reason, detail or ""), component, named, number < 0)
        groups.setdefault(key, []).append(int(number))
    return [
        UncomparedRow(
            reason=str(reason),
            side=side,
            component=str(component),
            module=named,
            layers=[] if is_outside else sorted({*numbers}),
            tensors=len(numbers),
        )
        for (reason, side, component, named, is_outside), numbers in groups.items()
    ]


def _absent(tensors: Columns, reason: str, *place: str) -> set[tuple[object, ...]]:
    """Return the layers, or experts of layers, that one side has completely, and the
    other lacks.
    """
    side = reason.removeprefix("only_in_")
    inside = tensors.having(side=side).inside
    shared = inside.where(~(are(inside["reason"], reason) & are(inside["status"], "skipped")))
    every, present = ({*rows.each("component", *place)} for rows in (inside, shared))
    return every - present


def _side(reason: str, detail: str) -> str:
    """Return the side that has a tensor, or whose tensor is broken: base, tuned, or both."""
    if reason in ONE_SIDED:
        return reason.removeprefix("only_in_")
    if reason == "nonfinite" and (match := BROKEN.search(detail)):
        return "both" if " and " in match[1] else match[1]
    return "both"


def skipped(tensors: Columns) -> list[SkippedRow]:
    """Return counts by reason, with a few names and the first detail."""
    rows = []
    chosen = tensors.having(status="skipped").groups("reason")
    for (reason,), group in sorted(chosen, key=lambda one: one[0]):
        sides = Counter(group["side"])
        row = SkippedRow(
            reason=reason,
            tensors=len(group),
            base=sides["base"],
            tuned=sides["tuned"],
            examples=list(dict.fromkeys(group["tensor"]))[:EXAMPLES],
            detail=next((one for one in group["detail"] if one is not None), None),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: -row.tensors)


def unchanged(tensors: Columns) -> list[Unchanged]:
    """Return the modules of the tuned side all of whose compared matrices are identical."""
    matrices = tensors.where(tensors.are_matrices).having(side="tuned")
    return [
        Unchanged(component=component, module=module, tensors=len(rows))
        for (component, module), rows in matrices.groups("component", "module")
        if are(rows["status"], "identical").all()
    ]


def files(rows: Iterable[Mapping[str, Any]]) -> FilesRow | None:
    """Return the files that differ, and the number of files in each state; None for a report
    without files. A file that both sides have counts once.
    """
    once = {one["path"]: one for one in sorted(rows, key=lambda one: str(one["side"]))}.values()
    if not once:
        return None
    apart = [one for one in once if one["state"] != "same"]
    apart.sort(key=lambda one: (not one["differs"], one["state"] == "unknown", str(one["path"])))
    counts = Counter(one["state"] for one in once)
    listed = [
        FileRow.from_parts(one, differs=(one["differs"] or "").split()) for one in apart[:LISTED]
    ]
    return FilesRow(
        counts=FileCounts.from_parts({state: counts[state] for state in STATES}), rows=listed
    )


@dataclass(frozen=True)
class Standing:
    """Figures of a pair that are not about its change."""

    identical: int  # matrices of the larger side that are the same on both
    cosine: float | None  # of base and tuned: median over matrices outside embeddings and heads
    compared: float  # the share of the larger side's parameters that was compared
    compared_percent: float  # with one decimal, rounded down: 100.0 is all of them
    is_part: bool  # a filter left something out
    rank: float | None  # that the median delta outside embeddings and heads has at most
    rank_share: float | None  # of its directions: the median over matrices
    rank_ceiling: float | None  # the largest of an adapter outside embeddings and heads
    unread: float  # the share of the parameters whose format cannot be read as numbers
    formats: list[str]  # that the two sides of a matrix have where they differ, as `BF16/F32`
    unjudged: list[str]  # as `unjudged_formats`


def standing_of(rows: Rows) -> Standing:
    """Return the standing of a pair."""
    deltas = rows.deltas
    weights = _weights(rows.tensors)
    total, compared = sum(weights["size"]), int(sum(weights["compared"]))
    unread = weights["size"][are(weights["reason"], "unknown_dtype", "quantized")]
    inside, rounded = (
        some.where(~are(some["module"], *OUTSIDE)) for some in (deltas, rows.rounded)
    )
    rank = held_rank(inside.__getitem__)
    share = rank / np.fmin(inside["rows"], inside["cols"])
    if 2 * int(np.isnan(share).sum()) > len(share):
        rank = share = np.full(len(share), np.nan)  # the few that are known do not say it of most
    ceilings = inside["rank_ceiling"]
    same = np.ones(_identical(weights, OUTSIDE))
    return Standing(
        identical=_identical(weights),
        cosine=median(np.concatenate([inside["cosine"], rounded["cosine"], same])),
        compared=compared / total if total else 0.0,
        compared_percent=1000 * compared // total / 10 if total else 0.0,
        is_part=bool(are(weights["reason"], "filtered").any()),
        rank=median(rank),
        rank_share=median(share),
        rank_ceiling=None if np.isnan(ceilings).all() else float(np.nanmax(ceilings)),
        unread=float(sum(unread)) / max(1, total),
        formats=sorted(
            {
                dtype
                for some in (deltas, rows.rounded)
                for dtype in some["dtype"]
                if dtype and "/" in dtype
            }
        ),
        unjudged=unjudged_formats(deltas),
    )


def unjudged_formats(deltas: Columns) -> list[str]:
    """Return the formats whose rounding is unknown, quantised ones and those of a side in more bits
    than the other, if more than half of the changed matrices have one; the floors of the others do
    not apply to these.
    """
    unknown = np.isnan(deltas["floor_ratio"]) & np.isnan(deltas["rank_ceiling"])
    unknown &= ~are(deltas["kept_reason"], "nothing_rounded")
    mixed = unknown & are(deltas["kept_reason"], "rounding_unexplained")
    formats = [
        {one for one in (dtype or "").split("/") if one and (is_mixed or one not in FLOATS)}
        for dtype, is_mixed in zip(deltas["dtype"][unknown], mixed[unknown], strict=True)
    ]
    unjudged = [of_matrix for of_matrix in formats if of_matrix]
    return sorted(set().union(*unjudged)) if 2 * len(unjudged) > len(deltas) else []


def _weights(tensors: Columns) -> Columns:
    """Return the tensors of the larger side that count as its weights, with their size and compared
    parameters.

    Left out are a tied head, which is its embedding, integers, components without a base, and what
    a checkpoint holds beside the component that it is the base of.
    """
    # a filter of the user's has no detail
    has_detail = np.array([detail is not None for detail in tensors["detail"]], dtype=np.bool_)
    elsewhere = are(tensors["reason"], "filtered") & has_detail
    # a projector, for example
    without_base = are(tensors["reason"], "only_in_tuned") & are(tensors["status"], "measured")
    weights = tensors.added(size=tensors.sizes).where(
        ~(are(tensors["reason"], "tied", "not_float") | elsewhere | without_base)
    )
    sides = (weights.having(side=side) for side in ("tuned", "base"))
    rows = max(sides, key=lambda of_side: sum(of_side["size"]))
    return rows.added(compared=np.nan_to_num(rows["compared"]))  # null where it is forged


def _identical(weights: Columns, apart: Sequence[str] = ()) -> int:
    """Return how many matrices are identical on both sides, without modules that are left out."""
    same = weights.where(
        are(weights["status"], "identical") & ~are(weights["module"], *apart, "norm", "bias")
    )
    stacks = [shape[0] if len(shape) == 3 else 1 for shape in same["shape"] if len(shape) > 1]
    return sum(stacks)
