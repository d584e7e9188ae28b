"""Units and rows that correspond, as rows of a summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

import numpy as np

from shadow.checkpoints.pairing import MatrixPair
from shadow.relations.matching import Units
from shadow.summary.record import EqualUnits, MatchedRows, UnitNumbers, UnitRun


def unit_numbers(component: str, units: Units, base: Set[int]) -> UnitNumbers:
    """Return the units of a group that are not the base's of their number. base: its numbers."""
    found = {number: one for number, one in sorted(units.items()) if one is not None}
    runs: list[UnitRun] = []
    for number, one in found.items():
        if one.unit == number:
            continue
        last = runs[-1] if runs else None
        shift = one.unit - number
        if last and last.last + 1 == number and last.base_first - last.first == shift:
            runs[-1] = last.with_values(last=number)
        else:
            runs.append(UnitRun(first=number, last=number, base_first=one.unit))
    ways = {one.by for number, one in found.items() if one.unit != number}
    alike = defaultdict[tuple[int, ...], list[int]](list)
    for number, choice in found.items():
        if len(choice.copies) > 1:
            alike[tuple(choice.copies)].append(number)
    return UnitNumbers(
        component=component,
        layers=[],
        missing=sorted(base - {one.unit for one in found.values()}),
        new=sorted(units.keys() - found.keys()),
        runs=runs,
        by=sorted(ways),
        equal=[EqualUnits(units=own, base_units=list(units)) for units, own in alike.items()],
    )


def matched_rows(pair: MatrixPair) -> MatchedRows:
    """Return how rows of a vocabulary correspond that do not have their numbers."""
    assert pair.base is not None, "it has rows of the base"
    assert pair.chosen is not None, "rows were matched"
    of_base, of_tuned = pair.chosen
    steps = [bool((np.diff(rows) == 1).all()) for rows in pair.chosen]
    is_whole = all(steps) and len(of_base) == pair.base.shape[0]
    return MatchedRows(
        component=pair.place.component,
        module=pair.place.module,
        rows=pair.rows,
        tuned_rows=pair.tuned.shape[0],
        base_rows=pair.base.shape[0],
        in_front=int(of_tuned[0]) if is_whole else None,
        by=pair.matched_by,
    )
