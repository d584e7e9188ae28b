"""Facts that a comparison of matrices leaves out: what is identical, vectors that moved, a
vocabulary of another size, files, and what could not be compared at all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shadow.reasons import FROM_ZERO
from shadow.summary.record import Row, row
from shadow.summary.tables import are, median
from shadow.text import short_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadow.summary.tables import Columns

ONE_SIDED = ("only_in_base", "only_in_tuned")
UNCOMPARED = (*ONE_SIDED, "shape_differs", "nonfinite")  # reasons that a finding names
UNREAD = ("unknown_dtype", "quantized")  # reasons of what is there, and is told as unread
GROWING = ("embed", "head")  # modules whose rows are a vocabulary
EXAMPLES = 3  # tensors of a reason or a kind of damage that a summary names
STATES = ("changed", "added", "removed", "unknown", "same")  # of files
LISTED = 40  # files that are named, those first in which something differs
FAR = 10.0  # times as far as the next one, a vector is named
BROKEN = re.compile(r"in the (base and the tuned|base|tuned) tensor")  # of nonfinite


def vectors(tensors: Columns) -> Row:
    """Return how many vectors were compared, and how far those moved that did.

    One that is 0 in the base has no relative norm, and its detail says where it moved.
    """
    rows = tensors.where(
        are(tensors["side"], "tuned")
        & are(tensors["reason"], "not_a_matrix")
        & (tensors["compared"] > 0)
    )
    norms = rows["relative_norm"]
    changed = (norms > 0) | are(rows["detail"], FROM_ZERO)
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
    return row(
        "vectors",
        compared=len(rows),
        changed=int(changed.sum()),
        relative_norm=median(norms[norms > 0]),
        relative_norm_of_all=median(np.where(np.isnan(norms), 0.0, norms)),
        furthest=None if furthest is None else str(rows["tensor"][furthest]),
        furthest_norm=None if furthest is None else float(sizes[furthest]),
        moved=moved,
    )


def idle_updates(tensors: Columns) -> int:
    """Modules of an adapter that are identical to the base's: the product of its factors is 0."""
    rows = tensors.where(are(tensors["side"], "tuned") & are(tensors["status"], "identical"))
    factors = (".lora_B", ".lora_embedding_B")  # one of the two of a module
    return sum(any(factor in str(name) for factor in factors) for name in rows["tensor"])


def vocabulary(tensors: Columns) -> list[Row]:
    """Embeddings and heads with more rows on one side, of which the common ones were compared."""
    tensors = tensors.where(
        are(tensors["module"], *GROWING) & are(tensors["status"], "measured", "identical")
    )
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
            sizes = {"base_rows": base, "tuned_rows": tuned, "added": tuned - base}
            rows.append(row("vocabulary", sizes, component=component, module=module))
    return rows


def broken(tensors: Columns) -> list[Row]:
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
                found = {"count": len(names), "tensors": names[:EXAMPLES]}
                rows.append(row("broken", found, code=code, side=side))
    return rows


def uncompared(tensors: Columns) -> list[Row]:
    """Return what has no partner, another shape or no finite numbers: whole layers, whole experts,
    otherwise modules. A tensor whose partner cannot be read has one.
    """
    rows = tensors.where(are(tensors["status"], "skipped") & are(tensors["reason"], *UNCOMPARED))
    # tensors of both sides have the same reason and detail; one side tells of both
    rows = rows.where(are(rows["side"], "tuned") | are(rows["reason"], "only_in_base"))
    if not len(rows):
        return []
    unread = set(_placed(tensors.where(are(tensors["reason"], *UNREAD))))
    layers, experts = (
        {reason: _absent(tensors, reason, *place) for reason in ONE_SIDED}
        for place in (("layer",), ("layer", "expert"))
    )
    groups: dict[tuple[Any, ...], list[int | None]] = {}
    columns = ("expert", "reason", "detail")
    for (side, component, module, number), (expert, reason, detail) in zip(
        _placed(rows), rows.each(*columns), strict=True
    ):
        other = "base" if side == "tuned" else "tuned"
        if reason in ONE_SIDED and (other, component, module, number) in unread:
            continue
        named = None if (component, number) in layers.get(reason, ()) else str(module)
        if named and (component, number, expert) in experts.get(reason, ()):
            named = f"expert {expert:.0f}"
        key = (reason, _side(reason, detail or ""), component, named, number is None)
        groups.setdefault(key, []).append(number)
    return [
        row(
            "uncompared",
            reason=str(reason),
            side=side,
            component=str(component),
            module=named,
            layers=sorted({number for number in numbers if number is not None}),
            tensors=len(numbers),
        )
        for (reason, side, component, named, _), numbers in groups.items()
    ]


def _placed(rows: Columns) -> Iterator[tuple[str, str, str, int | None]]:
    """Side, component, module and layer of each tensor."""
    for side, component, module, layer in rows.each("side", "component", "module", "layer"):
        yield side, component, module, None if math.isnan(layer) else int(layer)


def _absent(tensors: Columns, reason: str, *place: str) -> set[tuple[object, ...]]:
    """The layers, or experts of layers, of which a side has every tensor, and the other none."""
    side = reason.removeprefix("only_in_")
    inside = tensors.where(are(tensors["side"], side)).inside
    shared = inside.where(~(are(inside["reason"], reason) & are(inside["status"], "skipped")))
    every, present = ({*rows.each("component", *place)} for rows in (inside, shared))
    return every - present


def _side(reason: str, detail: str) -> str:
    """The side that has it, or that is broken: base, tuned, or both."""
    if reason in ONE_SIDED:
        return reason.removeprefix("only_in_")
    if reason == "nonfinite" and (match := BROKEN.search(detail)):
        return "both" if " and " in match[1] else match[1]
    return "both"


def skipped(tensors: Columns) -> list[Row]:
    """Counts by reason, with a few names and the first detail."""
    rows = []
    chosen = tensors.where(are(tensors["status"], "skipped"))
    for (reason,), group in sorted(chosen.groups("reason"), key=lambda one: one[0]):
        sides = Counter(group["side"])
        one = row(
            "skipped",
            reason=reason,
            tensors=len(group),
            base=sides["base"],
            tuned=sides["tuned"],
            examples=list(dict.fromkeys(group["tensor"]))[:EXAMPLES],
            detail=next((one for one in group["detail"] if one is not None), None),
        )
        rows.append(one)
    return sorted(rows, key=lambda one: -one.tensors)


def unchanged(tensors: Columns) -> list[Row]:
    """The modules of the tuned side of which every matrix that was compared is identical."""
    matrices = tensors.where(are(tensors["side"], "tuned") & tensors.are_matrices)
    return [
        row("unchanged", component=component, module=module, tensors=len(rows))
        for (component, module), rows in matrices.groups("component", "module")
        if are(rows["status"], "identical").all()
    ]


def files(rows: Iterable[Mapping[str, Any]]) -> Row | None:
    """The files that are not the same on both sides, and how many there are of each state; None of
    a report without files. A file that both sides have counts once.
    """
    once = {one["path"]: one for one in sorted(rows, key=lambda one: str(one["side"]))}.values()
    if not once:
        return None
    apart = [one for one in once if one["state"] != "same"]
    apart.sort(key=lambda one: (not one["differs"], one["state"] == "unknown", str(one["path"])))
    counts = Counter(one["state"] for one in once)
    listed = [
        row("file_rows", one, differs=(one["differs"] or "").split()) for one in apart[:LISTED]
    ]
    return Row(counts=row("file_counts", {state: counts[state] for state in STATES}), rows=listed)
