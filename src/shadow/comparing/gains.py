"""Scores -> what each pair gained: differences by benchmark, means by group. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from shadow.comparing.scored_sides import (
    BY_NAME,
    NAMED,
    NOT,
    UNCHECKED,
    ScoredSide,
    Sides,
    by_commit,
    fit,
)
from shadow.comparing.scores import (
    FILTERS,
    HARNESS,
    PREFERRED,
    QUESTIONS,
    Score,
    ScoreFile,
    ScoreFiles,
)
from shadow.errors import ShadowError
from shadow.text import VERY_LIKE, closest, counted, several

MEASURED_BY_OTHERS = (
    "whether the scores hold: others measured them, and they are repeated here as they were given"
)
# units that a file does not state: a share, or a percentage perhaps
UP_TO_ONE, ABOVE_ONE = "at most 1", "above 1"


@dataclass(frozen=True)
class Gain:
    """One benchmark of a pair. Scores are in the unit of the file; None where a side has none."""

    benchmark: str
    group: str | None
    metric: str | None
    unit: str
    """What the file states, else whether the scores exceed 1, else (less is better) the metric."""
    higher_is_better: bool | None
    """Which way is better; None where nobody says it."""
    base: float | None
    tuned: float | None
    gain: float | None
    """tuned - base, with the sign turned where less is better, so that more is a better model.

    None where a side has no score, or where nobody says which way is better.
    """
    base_stderr: float | None
    tuned_stderr: float | None
    gain_stderr: float | None
    """sqrt(base_stderr^2 + tuned_stderr^2); None without both."""
    base_model: str | None
    tuned_model: str | None
    base_file: str | None
    tuned_file: str | None
    others: list[str] = field(default_factory=list)
    """Metrics of the benchmark that were not taken."""


@dataclass(frozen=True)
class GroupGain:
    """The mean of the gains of a group's benchmarks."""

    group: str | None
    """Its name; None for the benchmarks of no group."""
    benchmarks: int
    """Benchmarks of both sides, over which the mean is, 0 or more."""
    gain: float | None
    """The mean, in `unit`; None where `reason` says why."""
    gain_stderr: float | None
    unit: str | None
    """That of its benchmarks; None where they have different ones or there are none."""
    reason: str | None
    """Why they cannot be averaged; None where they can."""


@dataclass(frozen=True)
class Scored:
    """What the scores say of a pair."""

    files: tuple[ScoreFile, ...]
    gains: tuple[Gain, ...]
    notes: tuple[str, ...]
    """What was left out, or makes them doubtful."""

    @property
    def groups(self) -> list[GroupGain]:
        """In the order of the file; the benchmarks of no group together, last."""
        names = dict.fromkeys(gain.group for gain in self.gains)
        ordered = sorted(names, key=lambda name: name is None)  # False comes first
        return [
            group_gain(name, [gain for gain in self.gains if gain.group == name])
            for name in ordered
        ]

    def as_json(self) -> dict[str, Any]:
        """The keys that summary.json has of scores."""
        return {
            "scores": [asdict(gain) for gain in self.gains],
            "score_groups": [asdict(group) for group in self.groups],
            "score_files": [asdict(file) for file in self.files],
            "score_notes": list(self.notes),
        }


NO_SCORES = Scored((), (), ())


def group_gain(name: str | None, gains: Sequence[Gain]) -> GroupGain:
    """The unweighted mean, of one unit; its standard error as if benchmarks were independent."""
    known = [gain for gain in gains if gain.gain is not None]
    units = sorted({gain.unit for gain in known})
    if len(units) != 1:
        reason = "no benchmark of both sides"
        if units:
            reason = f"scores in different units ({', '.join(units)[:100]})"
        return GroupGain(name, len(known), gain=None, gain_stderr=None, unit=None, reason=reason)
    values = [gain.gain for gain in known if gain.gain is not None]
    errors = [gain.gain_stderr for gain in known if gain.gain_stderr is not None]
    return GroupGain(
        name,
        len(known),
        gain=math.fsum(values) / len(values),
        gain_stderr=math.hypot(*errors) / len(errors) if len(errors) == len(known) else None,
        unit=units[0],
        reason=None,
    )


def join(given: ScoreFiles, sides: Sides) -> Scored | None:
    """The gains of a pair; None where the files name neither side.

    Raises ShadowError where it is not clear which score is meant, and where two sides are in
    different units.
    """
    rows, notes = _by_side(given, sides)
    if not any(rows.values()):
        return None
    base, tuned = (_by_benchmark(rows[side.role], side, given.groups) for side in sides)
    above_one = _models_above_one([*rows["base"], *rows["tuned"]])
    gains = []
    for name in dict.fromkeys(row.benchmark for row in given.rows):
        if name in base or name in tuned:
            gains.append(
                _gain(
                    name,
                    base.get(name, {}),
                    tuned=tuned.get(name, {}),
                    group=given.groups.get(name),
                    above_one=above_one,
                )
            )
    notes += [
        *_missing_side(given, rows, sides),
        *_left_out(rows, given),
        *_doubts(gains, base, tuned),
    ]
    return Scored(given.files, tuple(gains), tuple(notes))


def _by_side(given: ScoreFiles, sides: Sides) -> tuple[dict[str, list[Score]], list[str]]:
    """The rows of each side: of the models that fit it best, and fit the other less."""
    fits: dict[str, dict[tuple[str, str | None], int]] = {side.role: {} for side in sides}
    either: dict[str, int] = {}
    for model, commit in given.models:
        levels = [fit(model, commit, side) for side in sides]
        if levels[0] and levels[0] == levels[1]:
            either[model] = levels[0]
        elif any(levels):
            fits[sides[levels.index(max(levels))].role][model, commit] = max(levels)
    rows: dict[str, list[Score]] = {}
    notes = []
    for side in sides:
        best = max(fits[side.role].values(), default=NOT)
        if unclear := [model for model, level in either.items() if level >= best]:
            names = " or ".join(by_commit(side) for side in sides)
            raise ShadowError(
                f"{given.name}: {unclear[0][:80]!r} may be either side of the pair",
                f"write {names}",
            )
        taken = {model for model, level in fits[side.role].items() if level == best}
        rows[side.role] = [row for row in given.rows if (row.model, row.commit) in taken]
        notes += _on_names(side, fits[side.role], best)
    return rows, notes


def _on_names(side: ScoredSide, fits: Mapping[tuple[str, str | None], int], best: int) -> list[str]:
    notes = []
    for (model, commit), level in fits.items():
        if level < best:
            notes.append(
                f"scores of {model} are not taken: another name in the file fits the {side.role}"
                " side better"
            )
        elif level == UNCHECKED:
            notes.append(
                f"whether {model} is the commit {(side.commit or '')[:12]} of the report cannot be"
                " checked"
            )
        elif level == BY_NAME and commit and side.commit and commit != side.commit:
            notes.append(
                f"scores of {model} are of commit {commit[:12]}, the report is of"
                f" {side.commit[:12]}"
            )
    return notes


ByMetric = dict[str | None, Score]


def _by_benchmark(
    rows: Sequence[Score], side: ScoredSide, groups: Mapping[str, str]
) -> dict[str, ByMetric]:
    """Benchmark -> metric -> score. A row that says the same again counts once."""
    by_benchmark: dict[str, ByMetric] = {}
    for row in rows:
        if row.parent is not None and row.benchmark not in groups:
            continue
        by_metric = by_benchmark.setdefault(row.benchmark, {})
        before = by_metric.setdefault(row.metric, row)
        if (before.score, before.stderr) != (row.score, row.stderr):
            what = repr(row.benchmark[:80])
            if row.metric:
                what += f" ({row.metric[:40]})"
            two = f"{before.score:g} ({before.where}) and {row.score:g} ({row.where})"
            raise ShadowError(
                f"{what} of the {side.role} side has two scores: {two}", "leave one of them"
            )
        for key in ("group", "unit", "higher_is_better"):
            _agree(before, row, key)
    return by_benchmark


def _agree(score: Score, other: Score, key: str) -> Any:
    """What two rows of one benchmark say of it; where only one says anything, that."""
    first, second = getattr(score, key), getattr(other, key)
    if second is None or first == second:
        return first
    if first is None:
        return second
    # the harness gives shares as well as percentages
    if key == "unit" and first == HARNESS:
        return second
    if key == "unit" and second == HARNESS:
        return first
    said = {
        "group": "in the groups",
        "unit": "in the units",
        "higher_is_better": "with higher_is_better",
    }[key]
    raise ShadowError(
        f"{score.benchmark[:80]!r} is {said} {first} ({score.where}) and {second} ({other.where})",
        "make them agree",
    )


def _preference(metric: str | None) -> tuple[int, int, str]:
    """Sorts metrics by which is taken first; what is not known comes last."""
    name, _, chosen = (metric or "").partition(",")
    return [*PREFERRED, name].index(name), [*FILTERS, chosen].index(chosen), metric or ""


def _models_above_one(rows: Sequence[Score]) -> set[tuple[str, str]]:
    """(file, model) with a score above 1 among rows that state no unit: no shares, then."""
    return {
        (row.file, row.model)
        for row in rows
        if row.unit is None and row.higher_is_better and row.score > 1
    }


def _gain(
    benchmark: str,
    base: ByMetric,
    tuned: ByMetric,
    group: str | None,
    above_one: set[tuple[str, str]],
) -> Gain:
    common = base.keys() & tuned.keys()
    chosen = min(common or base.keys() | tuned.keys(), key=_preference)
    before, other = base.get(chosen), tuned.get(chosen)
    rows = [row for row in (before, other) if row is not None]
    groups, unit, higher = (
        _agree(rows[0], rows[-1], key) for key in ("group", "unit", "higher_is_better")
    )
    if before and other:
        _refuse_units(before, other, higher=higher, above_one=above_one)
    if group and groups and group != groups:
        raise ShadowError(
            f"{benchmark[:80]!r} is in the groups {group} and {groups} ({rows[-1].where})",
            "make them agree",
        )
    gain = error = None
    if before and other and higher is not None:
        better, worse = (other, before) if higher else (before, other)
        gain = _apart(better.score, worse.score)
        if before.stderr is not None and other.stderr is not None:
            error = math.hypot(before.stderr, other.stderr)
    base_score, base_stderr, base_model, base_file = _said_by(before)
    tuned_score, tuned_stderr, tuned_model, tuned_file = _said_by(other)
    return Gain(
        benchmark=benchmark,
        group=group or groups,
        metric=chosen,
        unit=_unit(rows, unit, higher=higher, above_one=above_one),
        higher_is_better=higher,
        base=base_score,
        tuned=tuned_score,
        gain=gain,
        base_stderr=base_stderr,
        tuned_stderr=tuned_stderr,
        gain_stderr=error,
        base_model=base_model,
        tuned_model=tuned_model,
        base_file=base_file,
        tuned_file=tuned_file,
        others=sorted(name for name in common if name is not None and name != chosen),
    )


def _said_by(row: Score | None) -> tuple[float | None, float | None, str | None, str | None]:
    """(score, standard error, model, where it stands); all None where a side has no score."""
    if row is None:
        return None, None, None, None
    return row.score, row.stderr, row.model, row.where


def _apart(first: float, other: float) -> float:
    """first - other as the decimals that they were written as: equal gains are then equal."""
    return float(Decimal(repr(first)) - Decimal(repr(other)))


def _refuse_units(
    base: Score, tuned: Score, higher: bool | None, above_one: set[tuple[str, str]]
) -> None:
    """Refuse a share beside a percentage: one above 1, the other not, and nothing that explains it.

    What explains it: a unit that both state, the harness on both sides, a metric of which less is
    better, or other scores above 1 of the model whose own is not.
    """
    low, high = sorted((base, tuned), key=lambda row: row.score)
    if not higher or not low.score <= 1 < high.score:
        return
    if base.unit is not None and base.unit == tuned.unit:
        return
    if (low.file, low.model) in above_one:
        return
    sides = (
        f"{base.score:g} for the base ({base.where}) and {tuned.score:g} for the tuned side"
        f" ({tuned.where})"
    )
    raise ShadowError(
        f"{base.benchmark[:80]!r} is {sides}: a share beside a percentage?",
        "write both in one unit; if they are, say which in a column `unit`",
    )


def _unit(
    rows: Sequence[Score], stated: str | None, higher: bool | None, above_one: set[tuple[str, str]]
) -> str:
    """What a gain is in. Only gains of one unit are averaged or ranked together."""
    if stated not in (None, HARNESS):
        return stated or ""
    if higher is False:
        return rows[0].metric or "less is better"
    if any(row.score > 1 or (row.file, row.model) in above_one for row in rows):
        return ABOVE_ONE
    return UP_TO_ONE


# What to say beside the numbers


def _missing_side(
    given: ScoreFiles, rows: Mapping[str, Sequence[Score]], sides: Sides
) -> list[str]:
    taken = {row.model for of_side in rows.values() for row in of_side}
    for side in sides:
        if not rows[side.role]:
            rest = [model for model, _ in given.models if model not in taken]
            names = [name for name in side.names if name]
            note = f"no score of the {side.role} side ({' or '.join(names)}), so no gain"
            close = next(filter(None, (closest(name, rest, VERY_LIKE) for name in names)), None)
            if close is not None:
                note += f"; the nearest name is {close!r}"
            return [note]
    return []


def _left_out(rows: Mapping[str, Sequence[Score]], given: ScoreFiles) -> list[str]:
    hidden = [
        row
        for side in rows.values()
        for row in side
        if row.parent and row.benchmark not in given.groups
    ]
    if not hidden:
        return []
    parents = list(dict.fromkeys(row.parent for row in hidden if row.parent))
    subtasks = counted(len({row.benchmark for row in hidden}), "subtask", "subtasks")
    return [f"{subtasks} left out, of groups that have a score of their own: {_few(parents)}"]


def _doubts(
    gains: Sequence[Gain], base: Mapping[str, ByMetric], tuned: Mapping[str, ByMetric]
) -> list[str]:
    notes = []
    both = [gain for gain in gains if gain.base is not None and gain.tuned is not None]
    two_metrics = (base.keys() & tuned.keys()) - {gain.benchmark for gain in both}
    if no_metric := [gain.benchmark for gain in gains if gain.benchmark in two_metrics]:
        notes.append(f"no metric of both sides, so no gain: {_few(no_metric)}")
    if unclear := [gain.benchmark for gain in both if gain.higher_is_better is None]:
        notes.append(f"higher_is_better is not known, so no gain: {_few(unclear)}")
    if chosen := [f"{gain.benchmark}: {gain.metric}" for gain in both if gain.others]:
        notes.append(
            f"of several metrics one was taken ({_few(chosen)}); acc_norm comes before acc, acc"
            " before others"
        )
    differing: dict[str, list[str]] = {}
    for gain in both:
        before, two = (dict(side[gain.benchmark][gain.metric].conditions) for side in (base, tuned))
        for what in before.keys() & two.keys():
            if before[what] != two[what]:
                differing.setdefault(what, []).append(
                    f"{gain.benchmark} {before[what]} and {two[what]}"
                )
    notes += [
        f"{what} of base and tuned differ: {_few(names)}"
        for what, names in sorted(differing.items())
    ]
    asked = {
        gain.benchmark: dict(tuned[gain.benchmark][gain.metric].conditions).get(QUESTIONS, "")
        for gain in both
    }
    if parts := [f"{name} {count}" for name, count in asked.items() if " of " in count]:
        notes.append(f"measured on a part of the questions: {_few(parts)}")
    return notes


def _few(names: Sequence[str]) -> str:
    return several(names, NAMED)
