"""Scores that others measured, joined to reports by model, and correlations over reports."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shadow.comparing.codes import LeftOut, say
from shadow.errors import ShadowError
from shadow.files import read_given
from shadow.reports.provenance import SIDES, ReportMetadata, Side
from shadow.summary.tables import finite, median
from shadow.templates import Reason
from shadow.text import short

if TYPE_CHECKING:
    from shadow.comparing.matching import ComparedReport

NEEDED = ("model", "benchmark", "score")  # columns of a CSV; metric may follow
PREFERRED = ("acc_norm", "acc", "exact_match", "pass@1", "f1")  # of several metrics of a task
MAX_FILE = 64_000_000  # bytes
FEWEST = 4  # reports below which there is no correlation
NOT_SHOWN = (
    "whether the scores hold: others measured them, and they are repeated here as they were given",
    "whether a score characterises a model: the rank correlation describes these reports alone, of"
    " which those that share a base are not independent",
)


@dataclass(frozen=True)
class Score:
    """A score as a file states it."""

    model: str
    benchmark: str
    metric: str | None
    score: float
    where: str


@dataclass(frozen=True)
class Gain:
    """Gain of a pair in a benchmark, in the unit of the file."""

    benchmark: str
    metric: str | None
    base: float
    tuned: float
    gain: float  # tuned - base


@dataclass(frozen=True)
class ScoredReport:
    """A report and the gains of its pair."""

    label: str
    pair: str
    concentration: float | None
    gains: list[Gain]
    exclusion: Reason | None  # why it has no part in the correlations

    @property
    def left_out(self) -> str | None:
        """The reason for leaving it out of the correlations, in words."""
        return None if self.exclusion is None else say(self.exclusion)

    def as_json(self) -> dict[str, Any]:
        """For machines: the reason by code and figures, and in words."""
        return {**asdict(self), "left_out": self.left_out}


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of gain and median concentration over n reports; None below
    FEWEST, and if all gains or concentrations are equal.
    """

    benchmark: str
    metric: str | None
    n: int
    rho: float | None


@dataclass(frozen=True)
class ScoredSet:
    """All reports of a comparison with their gains, and the correlations over them."""

    reports: list[ScoredReport]
    correlations: list[Correlation]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "reports": [report.as_json() for report in self.reports]}


def read_scores(file: Path) -> list[Score]:
    """Read a CSV, or a results file of lm-evaluation-harness."""
    hint = f"name a CSV with the columns {', '.join(NEEDED)}, or a results file of lm-eval"
    content = read_given(file, MAX_FILE, hint, hint)
    parse = _harness if file.suffix.lower() == ".json" else _csv
    try:
        scores = list(parse(str(file), content.decode("utf-8-sig")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ShadowError(f"{file}: no scores ({short(str(error))})", hint) from error
    if not scores:
        raise ShadowError(f"{file}: no scores in it", hint)
    return scores


def _csv(file: str, text: str) -> Iterator[Score]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in NEEDED if name not in (rows.fieldnames or ())]:
        raise ValueError(f"no column {missing[0]}")
    for row in rows:
        where = f"{file}:{rows.line_num}"
        number = _number(row["score"])
        if number is None:
            fault = f"{where}: {short(str(row['score']))} is not a number"
            raise ShadowError(fault, "leave out what was not measured")
        yield Score(
            model=row["model"].strip(),
            benchmark=row["benchmark"].strip(),
            metric=row.get("metric") or None,
            score=number,
            where=where,
        )


def _harness(file: str, text: str) -> Iterator[Score]:
    """Yield the score of each task in one metric."""
    recorded = json.loads(text)
    arguments = recorded["config"].get("model_args") or {}
    if isinstance(arguments, str):
        parts = arguments.split(",")
        arguments = dict(part.partition("=")[::2] for part in parts)
    model = arguments.get("peft") or arguments.get("pretrained") or recorded["model_name"]
    for task, result in recorded["results"].items():
        values: dict[str, float] = {}
        for key, value in result.items():
            name = key.removesuffix(",none")
            number = _number(value)
            if number is not None and "_stderr" not in name and name != "sample_len":
                values[name] = number
        preferred = [name for name in PREFERRED if name in values]
        metrics = [*preferred, *values]
        if metrics:
            yield Score(model, task, metrics[0], values[metrics[0]], file)


def _number(value: object) -> float | None:
    try:
        return finite(float(str(value)))
    except ValueError:
        return None


def _fits(model: str, side: Side, metadata: ReportMetadata) -> bool:
    """Check that a model's name is a side's repository, folder, or family:stage."""
    recorded = metadata[side]
    start, _, end = metadata["pair"].partition("..")
    stage = f"{metadata['family']}:{start if side == 'base' else end}"
    repo = recorded["repo"]
    commit = recorded["commit"] or ""
    if model in (repo, stage) or (not commit and model == Path(repo).name):
        return True
    name, _, revision = model.partition("@")
    return name == repo and len(revision) >= 7 and commit.startswith(revision)


def gains_of(scores: Sequence[Score], metadata: ReportMetadata) -> list[Gain]:
    """Join scores to a pair. Raises ShadowError if several scores fit."""
    by_side: dict[Side, dict[tuple[str, str | None], Score]] = {side: {} for side in SIDES}
    for score in scores:
        fitting = [side for side in SIDES if _fits(score.model, side, metadata)]
        if len(fitting) == 2:
            fault = f"{score.where}: {short(score.model)} may be either side of {metadata['pair']}"
            raise ShadowError(fault, "write family:stage, or name@commit")
        for side in fitting:
            first = by_side[side].setdefault((score.benchmark, score.metric), score)
            if first.score != score.score:
                fault = f"{score.where}: another score of {short(score.model)} is at {first.where}"
                raise ShadowError(fault, "leave one of them")
    gains = []
    for (benchmark, metric), base in by_side["base"].items():
        tuned = by_side["tuned"].get((benchmark, metric))
        if tuned is not None:
            gain = float(f"{tuned.score - base.score:.12g}")  # equal decimals are equal gains
            gains.append(Gain(benchmark, metric, base.score, tuned.score, gain))
    return gains


def score_reports(reports: Sequence[ComparedReport], scores: Sequence[Score]) -> ScoredSet:
    """Correlate gains and concentrations. Raises ShadowError if no pair has a gain."""
    entries = [_scored(report, scores) for report in reports]
    if not any(entry.gains for entry in entries):
        models = list(dict.fromkeys(score.model for score in scores))
        repos = [reports[0].metadata[side]["repo"] for side in SIDES]
        raise ShadowError(
            f"{scores[0].where}: no benchmark has scores of both sides of a pair; models:"
            f" {', '.join(models[:3])[:200]}",
            f"the column `model` may contain {' and '.join(repos)[:400]}",
        )
    return ScoredSet(entries, correlations(entries))


def _scored(report: ComparedReport, scores: Sequence[Score]) -> ScoredReport:
    exclusion: Reason | None = None
    if gates := report.failed_gates:
        exclusion = Reason(LeftOut.GATES_FAILED, gates=", ".join(gates)[:80])
    elif report.provenance.relation == "sibling":
        exclusion = Reason(LeftOut.OF_SIBLINGS)
    return ScoredReport(
        label=report.label,
        pair=f"{report.provenance.family}:{report.provenance.pair}",
        concentration=median(report.deltas["concentration"]),
        gains=gains_of(scores, report.metadata),
        exclusion=exclusion,
    )


def correlations(entries: Sequence[ScoredReport]) -> list[Correlation]:
    """Correlate the gain in each benchmark with concentration, by Spearman's ranks."""
    points: dict[tuple[str, str | None], list[tuple[float, float]]] = {}
    for entry in entries:
        for gain in entry.gains:
            values = points.setdefault((gain.benchmark, gain.metric), [])
            if entry.exclusion is None and entry.concentration is not None:
                values.append((gain.gain, entry.concentration))
    return [
        Correlation(benchmark, metric, len(values), _rank_correlation(values))
        for (benchmark, metric), values in points.items()
    ]


def _rank_correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's; None of few points, or if all gains or concentrations are equal."""
    if len(points) < FEWEST:
        return None
    gains, concentrations = (_ranks(values) for values in zip(*points, strict=True))
    squares = int(gains @ gains) * int(concentrations @ concentrations)
    return int(gains @ concentrations) / math.sqrt(squares) if squares else None


def _ranks(values: Sequence[float]) -> NDArray[np.int64]:
    """Twice the rank of each value, less that of the middle; equal values share their mean."""
    ordered = np.sort(values)
    lower, upper = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return lower + upper - len(values)
