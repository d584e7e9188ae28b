"""What the claim `trained` needs measured: which tensors moved, and what the grid let them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.audits.runtime import Runtime
from shadow.audits.scan import scan
from shadow.audits.verify_lined import found_all, is_raw, line_up_all, opened_models, row_of
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.claims.verify.patterns import Pattern, parse_pattern
from shadow.claims.verify.scanned import Apart
from shadow.claims.verify.trained import Cell, Moved, Training, trained
from shadow.claims.verify.verification import Verification
from shadow.dtypes import float_format
from shadow.errors import UsageError
from shadow.places.architecture import Place
from shadow.places.names import name_rules
from shadow.spectra.entries import Binades
from shadow.targets.references import AnyReference


def verify_trained(
    of: Mapping[str, str],
    references: Sequence[AnyReference],
    moved: Sequence[str],
    frozen: Sequence[str],
    runtime: Runtime,
    scratch: Path,
) -> Verification:
    """Whether what should have moved did, and what should be frozen is equal.

    What both name should be frozen.
    """
    patterns = [
        *(("stay", parse_pattern(text)) for text in frozen),
        *(("move", parse_pattern(text)) for text in moved),
    ]
    found = found_all(dict(zip(("BASE", "TUNED"), references, strict=True)), runtime, scratch)
    base, tuned = opened_models(found, runtime, scratch)
    lined = line_up_all(base, tuned, ("the base", "the tuned model"))
    pair = lined.pair
    places = lined.places
    for _, pattern in patterns:
        every = {place for of_name in places.values() for place in of_name}
        if not any(pattern.may_cover(place) for place in every):
            raise UsageError(f"no tensor lies at {pattern.text}", f"there are {_there(every)}")

    def measured(one: MatrixPair, a: Checkpoint, b: Checkpoint) -> tuple[MatrixPair, Moved]:
        may = {_should(one.place, patterns, may_be=may_be) for may_be in (False, True)}
        binades = _binades(one) if "move" in may else None
        row = row_of(one, a, b, binades)
        if one.tuned.part.experts:
            row = replace(row, tuned=f"{row.tuned}[{one.place.expert}]")
        should = _should(one.place, patterns, may_be=not row.changed)
        cells = binades.cells() if binades and row.finite and should == "move" else ()
        return one, Moved(row, _module(one.place), should, tuple(Cell(*cell) for cell in cells))

    scanned = sorted(
        scan(pair, measured, runtime, scratch / "scan", lined.unread), key=lambda item: item[0].key
    )
    rows = [row for _, row in scanned]
    stacks = [
        Apart(row.row.tuned, "tuned", "its experts are not told apart")
        for one, row in scanned
        if not row.should and _should(one.place, patterns, may_be=True)
    ]
    judged = [row for row in rows if row.should]
    beside = [row for row in rows if not row.should]

    def named(apart: Sequence[Apart]) -> list[Apart]:
        return [
            one
            for one in apart
            if any(_should(place, patterns, may_be=True) for place in places.get(one.tensor, ()))
        ]

    answer, against, notes = trained(
        Training(
            judged,
            named(lined.lone),
            [*named(lined.unread), *stacks],
            len(beside),
            sum(row.has_moved for row in beside),
        )
    )
    return Verification("trained", of, answer, against, (*lined.notes, *notes))


def _should(place: Place, patterns: Sequence[tuple[str, Pattern]], *, may_be: bool) -> str:
    """`move`, `stay`, or empty where no pattern names the place. may_be: or an expert of a stack
    that is compared as a whole: one that is equal is so for each.
    """
    for should, pattern in patterns:
        if pattern.covers(place) or (may_be and pattern.may_cover(place)):
            return should
    return ""


def _there(places: set[Place]) -> str:
    """The components, layers and modules that a model has, in words."""
    rules = name_rules()
    modules = {place.module for place in places}
    components = {place.component for place in places}
    layers = {place.layer for place in places if place.layer is not None}
    text = ", ".join(name for name in rules.components if name in components)
    if layers:
        text += f"; layers.{min(layers)}-{max(layers)}"
    return f"{text}; {', '.join(name for name in rules.modules if name in modules)}"


def _module(place: Place) -> str:
    return f"{place.component}.{place.module}"


def _binades(pair: MatrixPair) -> Binades | None:
    """What counts the entries of a tensor that should have moved, by the size of the base's."""
    if is_raw(pair) or pair.base is None:
        return None
    first, second = (float_format(one.info.dtype) for one in (pair.base, pair.tuned))
    # what the cast to fewer bits moved is no step
    return None if first.bits > second.bits else Binades(second)
