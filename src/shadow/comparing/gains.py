"""Scores -> what each pair gained: models matched to the sides of a pair, differences, means by
group. Prints nothing.

Kept scores lie in `scores.json` beside a report, bound to its two checkpoints; summary.json shows
them, and no other file of the report knows of them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shadow.comparing.scores import (
    FILTERS,
    HARNESS,
    LARGEST,
    MAX_FILE,
    PREFERRED,
    QUESTIONS,
    Score,
    ScoreFiles,
)
from shadow.errors import ShadowError
from shadow.files import read_start
from shadow.reports.atomic_replacement import KEPT
from shadow.reports.metadata import SIDES, CheckpointMetadata, ReportMetadata
from shadow.text import VERY_LIKE, closest, counted, nearest, several

if TYPE_CHECKING:
    from shadow.targets.families import Pair
    from shadow.targets.references import ComponentBase, Reference


KEPT_SCHEMA = 1  # of that file
NAMED = 5  # models or benchmarks named in a message
Role = Literal["base", "tuned"]
PLAIN_REVISIONS = ("", "main")  # those that a name without a revision means
MEASURED_BY_OTHERS = (
    "whether the scores hold: others measured them, and they are repeated here as they were given"
)
# units that a file does not state: a share, or a percentage perhaps
UP_TO_ONE, ABOVE_ONE = "at most 1", "above 1"


@dataclass(frozen=True)
class ScoredSide:
    """One side of a pair, as a file of scores may name it."""

    role: Role
    """Which side it is."""

    repo: str
    """`org/name` (with a subfolder behind it), or an absolute folder."""

    is_folder: bool
    """Is it a folder?"""

    commit: str | None
    """The commit that was read; None for a folder, or where it is not known."""

    revision: str | None
    """What was asked for, where that is known."""

    stage: str
    """`family:stage`."""

    @property
    def names(self) -> tuple[str, str]:
        """What to call it in a file of scores."""
        if not self.is_folder:
            return self.repo, self.stage
        return Path(self.repo).name or self.repo, self.stage


Sides = tuple[ScoredSide, ScoredSide]


def sides_of(metadata: ReportMetadata, pair: Pair | None = None) -> Sides:
    """The sides of a report by its metadata; pair tells the revisions that were asked for."""
    start, end = _stages(metadata["family"], metadata["pair"])
    base = _reported("base", metadata["base"], stage=start)
    tuned = _reported("tuned", metadata["tuned"], stage=end)
    if pair is None:
        return base, tuned
    return (
        replace(base, revision=getattr(pair.base, "revision", None)),
        replace(tuned, revision=getattr(pair.tuned, "revision", None)),
    )


def _reported(role: Role, metadata: CheckpointMetadata, stage: str) -> ScoredSide:
    commit = metadata.get("commit")
    if not isinstance(commit, str):
        commit = None
    is_folder = commit is None and Path(metadata["repo"]).is_absolute()
    return ScoredSide(
        role=role,
        repo=metadata["repo"],
        is_folder=is_folder,
        commit=commit,
        revision=None,
        stage=stage,
    )


def sides_of_pair(pair: Pair) -> Sides:
    """The sides of a pair before anything of it was looked up: no commit is known."""
    start, end = _stages(pair.family, pair.name)
    return _asked("base", pair.base, start), _asked("tuned", pair.tuned, end)


def _asked(role: Role, reference: Reference | ComponentBase, stage: str) -> ScoredSide:
    from shadow.targets.references import ComponentBase

    if isinstance(reference, ComponentBase):  # it has no name but its stage
        return ScoredSide(
            role=role, repo="", is_folder=False, commit=None, revision=None, stage=stage
        )
    repo = reference.repo
    if reference.subfolder:
        repo = f"{repo}/{reference.subfolder}"
    return ScoredSide(
        role=role,
        repo=repo,
        is_folder=reference.is_folder,
        commit=None,
        revision=reference.revision,
        stage=stage,
    )


def _stages(family: str, pair: str) -> tuple[str, str]:
    start, _, end = pair.partition("..")
    return f"{family}:{start}", f"{family}:{end}"


# Which side a model of a file is

NOT, UNCHECKED, BY_NAME, EXACT = range(4)  # how well a model's name fits a side


def fit(model: str, commit: str | None, side: ScoredSide) -> int:
    """How well a model of a file fits a side; commit is what the file noted beside the name.

    EXACT: the stage, the folder, or the repository at this commit or revision. BY_NAME: the
    repository without a revision, the last name of the folder. UNCHECKED: the repository at a
    branch or tag that may or may not be the commit. Another commit does not fit.
    """
    if model == side.stage:
        return EXACT
    if side.is_folder:
        if model == side.repo or _as_folder(model) == side.repo:
            return EXACT
        if model == _last_name(side.repo):
            return BY_NAME
        return NOT
    repo, _, revision = model.partition("@")
    if not side.repo or repo != side.repo:
        return NOT
    if revision not in PLAIN_REVISIONS:
        if revision == side.revision:
            return EXACT
        if side.commit and re.fullmatch("[0-9a-f]{7,40}", revision):
            if side.commit.startswith(revision):
                return EXACT
            return NOT
    if side.commit and commit == side.commit:
        return EXACT
    if revision in PLAIN_REVISIONS:
        return BY_NAME
    return UNCHECKED


def _as_folder(model: str) -> str:
    """An absolute folder; a relative one is taken from here."""
    # a Path costs ten times as much, and there are 100,000 of them
    return _resolved(model, os.getcwd())  # noqa: PTH109


@lru_cache(maxsize=4096)
def _last_name(folder: str) -> str:
    return Path(folder).name


@lru_cache(maxsize=4096)  # every model of a file is held against every side of every report
def _resolved(model: str, here: str) -> str:
    try:
        return str(Path(here, Path(model).expanduser()).resolve())
    except (OSError, ValueError, RuntimeError):  # no name of a file: too long, a NUL, no such user
        return ""


def unmatched(given: ScoreFiles, known: Sequence[Sides]) -> str | None:
    """One line on the models of the files that are no side of any pair, with the nearest side that
    has no scores.
    """
    sides = [side for pair in known for side in pair]
    alone = [
        name for name, commit in given.models if not any(fit(name, commit, side) for side in sides)
    ]
    names = list(dict.fromkeys(alone))
    if not names:
        return None
    without = [
        side for side in sides if not any(fit(name, commit, side) for name, commit in given.models)
    ]
    return f"scores of models that are not audited here: {_several_models(names, without)}"


def _several_models(models: Sequence[str], sides: Iterable[ScoredSide]) -> str:
    """The first of many models, each with `(did you mean 'x'?)` where a side's name is close."""
    known = [name for side in sides for name in side.names if name]
    names = list(models)
    for place, model in enumerate(models[:NAMED]):
        if question := nearest(model[:200], known, VERY_LIKE):
            names[place] = f"{model} ({question})"
    return several(names, NAMED)


def is_named(given: ScoreFiles, sides: Sides) -> bool:
    """Do the files name either side at all?"""
    return any(fit(model, commit, side) for model, commit in given.models for side in sides)


# Gains


@dataclass(frozen=True)
class Gain:
    """One benchmark of a pair. Scores are in the unit of the file; None where a side has none."""

    benchmark: str
    """Its name in the file."""

    group: str | None
    """The group that the file puts it in; None for none."""

    metric: str | None
    """The metric that was taken; None where the file names none."""

    unit: str
    """What the file states, else whether the scores exceed 1, else (less is better) the metric."""

    higher_is_better: bool | None
    """Which way is better; None where nobody says it."""

    base: float | None
    """The score of the base."""

    tuned: float | None
    """The score of the tuned model."""

    gain: float | None
    """tuned - base, with the sign turned where less is better, so that more is a better model.

    None where a side has no score, or where nobody says which way is better.
    """

    base_stderr: float | None
    """The standard error of the base's score, 0 or more."""

    tuned_stderr: float | None
    """That of the tuned model's."""

    gain_stderr: float | None
    """sqrt(base_stderr^2 + tuned_stderr^2); None without both."""

    base_model: str | None
    """The name of the base in the file."""

    tuned_model: str | None
    """The name of the tuned model."""

    base_file: str | None
    """Where the score of the base stands."""

    tuned_file: str | None
    """Where that of the tuned model stands."""

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
    """Its standard error, 0 or more, as of independent benchmarks; None unless each has one."""

    unit: str | None
    """That of its benchmarks; None where they have different ones or there are none."""

    reason: str | None
    """Why they cannot be averaged; None where they can."""


@dataclass(frozen=True)
class ScoreFile:
    """A file that scores came from."""

    name: str
    """Its name, without its folder."""

    sha256: str
    """64 hexadecimal digits: of its content."""


@dataclass(frozen=True)
class Scored:
    """What the scores say of a pair."""

    files: tuple[tuple[str, str], ...]
    """(name, sha256) of the files that they came from."""

    gains: tuple[Gain, ...]
    """A gain for each benchmark."""

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

    @property
    def named_files(self) -> list[ScoreFile]:
        """The files, as a summary has them."""
        return [ScoreFile(name, digest) for name, digest in self.files]

    def as_json(self) -> dict[str, Any]:
        """The keys that summary.json has of scores."""
        return {
            "scores": [asdict(gain) for gain in self.gains],
            "score_groups": [asdict(group) for group in self.groups],
            "score_files": [asdict(file) for file in self.named_files],
            "score_notes": list(self.notes),
        }


NO_SCORES = Scored((), (), ())


def group_gain(name: str | None, gains: Sequence[Gain]) -> GroupGain:
    """The unweighted mean, of one unit; its standard error as if benchmarks were independent."""
    known = [gain for gain in gains if gain.gain is not None]
    values = [gain.gain for gain in known if gain.gain is not None]
    units = sorted({gain.unit for gain in known})
    if not known:
        return GroupGain(
            group=name,
            benchmarks=0,
            gain=None,
            gain_stderr=None,
            unit=None,
            reason="no benchmark of both sides",
        )
    if len(units) > 1:
        return GroupGain(
            group=name,
            benchmarks=len(known),
            gain=None,
            gain_stderr=None,
            unit=None,
            reason=f"scores in different units ({', '.join(units)[:100]})",
        )
    errors = [gain.gain_stderr for gain in known if gain.gain_stderr is not None]
    error = None
    if len(errors) == len(known):
        error = math.hypot(*errors) / len(errors)
    return GroupGain(
        group=name,
        benchmarks=len(known),
        gain=math.fsum(values) / len(values),
        gain_stderr=error,
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


def neither(given: ScoreFiles, known: Sequence[Sides]) -> ShadowError:
    """What to say when no side of any pair is named."""
    models = list(dict.fromkeys(model for model, _ in given.models))
    sides = [side for pair in known for side in pair]
    expected = list(dict.fromkeys(name for side in sides[:2] for name in side.names if name))
    which = "neither side" if len(known) == 1 else "no side of any pair"
    message = f"{given.name}: {which} is among its models: {_several_models(models, sides)}"
    return ShadowError(message, f"the column `model` may say {', '.join(expected)}")


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
            names = " or ".join(_by_commit(side) for side in sides)
            raise ShadowError(
                f"{given.name}: {unclear[0][:80]!r} may be either side of the pair",
                f"write {names}",
            )
        taken = {model for model, level in fits[side.role].items() if level == best}
        rows[side.role] = [row for row in given.rows if (row.model, row.commit) in taken]
        notes += _on_names(side, fits[side.role], best)
    return rows, notes


def _by_commit(side: ScoredSide) -> str:
    """A name that fits this side alone."""
    if side.commit and not side.is_folder:
        return f"{side.repo}@{side.commit[:12]}"
    return side.repo or side.stage


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
    """Sorts metrics by which is taken first."""
    name, _, chosen = (metric or "").partition(",")
    return _rank(name, PREFERRED), _rank(chosen, FILTERS), metric or ""


def _rank(name: str, known: Sequence[str]) -> int:
    """The place of a name among those known; what is not known comes last."""
    if name not in known:
        return len(known)
    return known.index(name)


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
    either = rows[-1]
    if before and other:
        groups, unit, higher = (
            _agree(before, other, key) for key in ("group", "unit", "higher_is_better")
        )
        _refuse_units(before, other, higher=higher, above_one=above_one)
    else:
        groups, unit, higher = either.group, either.unit, either.higher_is_better
    if group and groups and group != groups:
        raise ShadowError(
            f"{benchmark[:80]!r} is in the groups {group} and {groups} ({either.where})",
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
        notes.append(f"nobody says whether more is better, so no gain: {_few(unclear)}")
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


# Kept beside a report


def kept_bytes(scored: Scored, metadata: ReportMetadata) -> bytes:
    """`scores.json` of a report whose metadata these are."""
    kept = {
        "schema": KEPT_SCHEMA,
        "family": metadata["family"],
        "pair": metadata["pair"],
        "base": metadata["base"],
        "tuned": metadata["tuned"],
        **scored.as_json(),
    }
    return json.dumps(kept, indent=2, allow_nan=False).encode() + b"\n"


def read_kept(folder: Path, metadata: ReportMetadata) -> Scored:
    """The scores that are kept beside a report; none where there is no such file.

    Raises ShadowError when the file is broken, or is of other checkpoints than the report.
    """
    path = folder / KEPT
    hint = "audit again with --scores, or remove it"
    try:
        raw = read_start(path, MAX_FILE + 1)
        if raw is None:
            return NO_SCORES
        stored = json.loads(raw)
        if stored["schema"] != KEPT_SCHEMA:
            schema = str(stored["schema"])[:20]
            raise ShadowError(
                f"{path}: scores of schema {schema!r}, this version reads {KEPT_SCHEMA}", hint
            )
        gains = tuple(_kept_gain(row) for row in stored["scores"])
        files = tuple(
            (_kept_text(file["name"]), _kept_text(file["sha256"])) for file in stored["score_files"]
        )
        notes = tuple(_kept_text(text) for text in stored["score_notes"])
        same = all(stored[side] == metadata[side] for side in SIDES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShadowError(
            f"{path}: not scores kept by shadow ({type(error).__name__})", hint
        ) from error
    if not same:
        raise ShadowError(f"{path}: scores of other checkpoints than the report's", hint)
    return Scored(files, gains, notes)


# fields of Gain
_TEXTS = (
    "benchmark",
    "group",
    "metric",
    "unit",
    "base_model",
    "tuned_model",
    "base_file",
    "tuned_file",
)
_NEVER_NULL = ("benchmark", "unit")


def _kept_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _kept_gain(row: Mapping[str, Any]) -> Gain:
    """A gain from JSON, every value of its type. Raises TypeError, KeyError or ValueError."""
    values: dict[str, Any] = {}
    for name in (column.name for column in fields(Gain)):
        value = row[name]
        if name == "others":
            value = [_kept_text(text) for text in value]
        elif value is None and name not in _NEVER_NULL:
            pass
        elif name in _TEXTS:
            value = _kept_text(value)
        elif name == "higher_is_better":
            if not isinstance(value, bool):
                raise TypeError
        elif (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= 2 * LARGEST
        ):
            raise ValueError
        else:
            value = float(value)
        values[name] = value
    return Gain(**values)
