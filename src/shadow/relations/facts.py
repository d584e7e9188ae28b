"""Units and rows that correspond, as rows of a summary."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from shadow.checkpoints.pairing import MatrixPair
from shadow.relations.matching import Units
from shadow.summary.record import MatchedRows, UnitNumbers, UnitRun


def unit_numbers(component: str, units: Units, base: Set[int]) -> UnitNumbers:
    """The units of a group that are not the base's of their number. base: its numbers."""
    missing = set(base)
    new: list[int] = []
    ways: set[str] = set()
    runs: list[UnitRun] = []
    others: list[UnitRun] = []
    for number, choice in sorted(units.items()):
        if choice is None:
            new.append(number)
            continue
        missing.discard(choice.unit)
        if choice.unit == number:
            continue
        ways.add(choice.by)
        for unit in choice.copies:
            if unit != choice.unit:
                others.append(UnitRun(first=number, last=number, base_first=unit))
        last = runs[-1] if runs else None
        if last and number == last.last + 1 and last.base_number(number) == choice.unit:
            runs[-1] = last.with_values(last=number)
        else:
            runs.append(UnitRun(first=number, last=number, base_first=choice.unit))
    return UnitNumbers(
        component=component,
        layers=[],
        missing=sorted(missing),
        new=new,
        runs=runs + others,
        by=sorted(ways),
    )


def matched_rows(pair: MatrixPair) -> MatchedRows:
    """The rows of a vocabulary that correspond, but not by number."""
    assert pair.base is not None, "it has rows of the base"
    assert pair.chosen is not None, "rows were matched"
    of_base, of_tuned = pair.chosen
    base_rows, _ = pair.base.shape
    tuned_rows, _ = pair.tuned.shape
    is_whole = len(of_base) == base_rows
    for rows in pair.chosen:
        is_whole = is_whole and bool((np.diff(rows) == 1).all())
    return MatchedRows(
        component=pair.place.component,
        module=pair.place.module,
        rows=pair.rows,
        tuned_rows=tuned_rows,
        base_rows=base_rows,
        in_front=int(of_tuned[0]) if is_whole else None,
        by=pair.matched_by,
    )
