"""What became of one matrix pair: a frozen outcome."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from shadow.reasons import REASONS, Status
from shadow.reports.columns import MATRICES, Type
from shadow.reports.metadata import SIDES, Side
from shadow.spectra.measurement import Cast, Measurement, Precision

SUBJECTS: dict[Status, tuple[tuple[str, ...], ...]] = {  # of the measurements of an outcome
    "measured": (("base", "tuned", "delta"), ("tuned",)),
    "identical": ((),),
    "skipped": ((),),
}
CELLS: dict[str, Type] = {column.name: column.type for column in MATRICES}
NEEDED = "frobenius_norm", "participation_ratio"  # of each measurement, which a report weighs with


@dataclass(frozen=True)
class Outcome:
    """What became of one pair of matrices or vectors."""

    key: str
    status: Status
    reason: str | None = None
    """A word of `shadow.reasons`: why it was skipped, or measured alone."""
    detail: str | None = None
    delta_norm: float | None = None
    """Frobenius norm; None where there is no base or nothing finite."""
    base_norm: float | None = None
    """Frobenius norm; None likewise."""
    measurements: tuple[Measurement, ...] = ()
    """Three of a measured matrix pair (base, tuned, delta), one of a matrix without a base, none
    otherwise.
    """
    cast: Cast | Literal["neither"] | None = None
    """Which side is the other cast to its format, in every entry; None where they are equal, or
    were not compared.
    """
    verified: tuple[bool | None, bool | None] = (None, None)
    """Whether the bytes of base and tuned side agree with a checksum of the Hub; None: a folder."""
    zero: Side | None = None
    """The side whose every entry is 0 where the other's are not."""
    seconds: float = field(default=0.0, compare=False)
    """Of one worker."""
    checksums: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By side and name: of tensors that were summed up with it (see `shadow.run.contents`)."""

    @property
    def deltas(self) -> tuple[Measurement, ...]:
        """The measurement of the delta, if there is one."""
        return tuple(
            measurement for measurement in self.measurements if measurement.subject == "delta"
        )


def is_sound(outcome: Outcome) -> bool:
    """Whether each part of an outcome has the type that rows are made of; of one that was read from
    a file, which may come from anywhere.
    """
    reason = outcome.reason
    return (
        outcome.status in get_args(Status)
        and tuple(part.subject for part in outcome.measurements) in SUBJECTS[outcome.status]
        and (reason is None or (isinstance(reason, str) and reason in REASONS))
        and isinstance(outcome.key, str)
        and _fit("string", outcome.key, outcome.detail)
        and outcome.seconds is not None
        and _fit("float", outcome.delta_norm, outcome.base_norm, outcome.seconds)
        and _fit("bool", *outcome.verified)
        and outcome.cast in (None, *get_args(Cast), "neither")
        and outcome.zero in (None, *SIDES)
        and _are_checksums(outcome.checksums)
        and all(map(_is_sound, outcome.measurements))
    )


def _are_checksums(by_side: object) -> bool:
    return (
        isinstance(by_side, Mapping)
        and by_side.keys() <= set(SIDES)
        and all(isinstance(by_name, Mapping) for by_name in by_side.values())
        and all(
            isinstance(checksum, str) and re.fullmatch("[0-9a-f]{16}", checksum)
            for by_name in by_side.values()
            for checksum in by_name.values()
        )
    )


def _is_sound(measurement: Measurement) -> bool:
    values = measurement.values
    return (
        measurement.precision in (None, *get_args(Precision))
        and isinstance(values, Mapping)
        and all(name in values for name in NEEDED)
        and values.keys() <= CELLS.keys()
        and all(_fit(CELLS[name], value) for name, value in values.items())
    )


def _fit(kind: Type, *values: object) -> bool:
    """Whether a column of a type can hold each of the values; null is held by all."""
    return all(value is None or _fits(kind, value) for value in values)


def _fits(kind: Type, value: object) -> bool:
    if isinstance(value, str):
        return kind == "string" and _is_unicode(value)
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int):
        return kind in ("int", "float") and abs(value) < 1 << 63
    return kind == "float" and isinstance(value, float) and math.isfinite(value)


def _is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair, which no table can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
