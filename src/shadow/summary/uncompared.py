"""Tensors that could not be compared, by reason: layers, experts and modules."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from shadow.reasons import ONE_SIDED
from shadow.summary.gate_figures import UNREAD
from shadow.summary.record import UncomparedRow
from shadow.summary.tables import Columns, are

PLACE = ("component", "module", "number")  # of a tensor
REASONS = (*ONE_SIDED, "shape_differs", "nonfinite")  # that a finding names


def uncompared(tensors: Columns) -> list[UncomparedRow]:
    """The tensors without a partner, of another shape or without finite numbers: whole layers,
    whole experts, otherwise modules. A tensor whose partner cannot be read has a partner.
    """
    # a layer of -1 is outside the layers
    numbers = np.nan_to_num(tensors["layer"], nan=-1.0)
    tensors = tensors.added(number=numbers)
    unread = set(tensors.having(reason=UNREAD).each("side", *PLACE))
    absent = _absent(tensors)
    groups = defaultdict[tuple[Any, ...], list[int]](list)
    rows = tensors.having(status="skipped", reason=REASONS)
    for row_side, component, module, number, expert, reason, nonfinite in rows.each(
        "side", *PLACE, "expert", "reason", "nonfinite"
    ):
        side = _side_of(reason, row_side, nonfinite)
        other = "base" if row_side == "tuned" else "tuned"
        is_unread = (other, component, module, number) in unread
        if side is None or (is_unread and reason in ONE_SIDED):
            continue
        name: str | None = str(module)
        if (reason, component, number) in absent:
            name = None
        elif (reason, component, number, expert) in absent:
            name = f"expert {expert:.0f}"
        groups[reason, side, component, name, number < 0].append(int(number))
    modules = []
    for (reason, side, component, name, is_outside), layers in groups.items():
        row = UncomparedRow(
            reason=str(reason),
            side=side,
            component=str(component),
            module=name,
            layers=[] if is_outside else sorted({*layers}),
            tensors=len(layers),
        )
        modules.append(row)
    return modules


def _side_of(reason: str, row_side: str, nonfinite: float) -> str | None:
    """The side that has a tensor, or on which it is broken; None where a row of the other side
    says it. nonfinite: NaN where an older report does not have it.
    """
    if reason in ONE_SIDED:
        return ONE_SIDED[reason]
    if reason == "nonfinite" and nonfinite >= 0:
        return row_side if nonfinite else None
    if row_side == "base":
        return None
    return "either" if reason == "nonfinite" else "both"


def _absent(tensors: Columns) -> set[tuple[object, ...]]:
    """The layers, and the experts of layers, that one side has completely, and the other lacks:
    (reason, component, layer) and (reason, component, layer, expert).
    """
    absent: set[tuple[object, ...]] = set()
    for reason, side in ONE_SIDED.items():
        inside = tensors.having(side=side).inside
        is_absent = are(inside["reason"], reason) & are(inside["status"], "skipped")
        others = inside.where(~is_absent)
        for names in (("component", "layer"), ("component", "layer", "expert")):
            places = {*inside.each(*names)} - {*others.each(*names)}
            absent |= {(reason, *place) for place in places}
    return absent
