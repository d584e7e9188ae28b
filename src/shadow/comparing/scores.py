"""Scores that others measured, joined to reports by model, and correlations over reports."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from shadow.errors import ShadowError
from shadow.files import read_given
from shadow.reports.provenance import SIDES, ReportMetadata, Side
from shadow.summary.tables import finite
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
    left_out: str | None  # why it has no part in the correlations


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


def read_scores(file: Path) -> list[Score]:
    """Read a CSV, or a results file of lm-evaluation-harness."""
    hint = f"name a CSV with the columns {', '.join(NEEDED)}, or a results file of lm-eval"
    raw = read_given(file, MAX_FILE, hint, hint)
    try:
        read = _harness if file.suffix.lower() == ".json" else _csv
        scores = list(read(str(file), raw.decode("utf-8-sig")))
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
        if (score := _number(row["score"])) is None:
            fault = f"{where}: {short(str(row['score']))} is not a number"
            raise ShadowError(fault, "leave out what was not measured")
        model, benchmark = row["model"].strip(), row["benchmark"].strip()
        yield Score(model, benchmark, row.get("metric") or None, score, where)


def _harness(file: str, text: str) -> Iterator[Score]:
    """Yield the score of each task in one metric."""
    recorded = json.loads(text)
    given = recorded["config"].get("model_args") or {}
    if isinstance(given, str):
        given = dict(part.partition("=")[::2] for part in given.split(","))
    model = given.get("peft") or given.get("pretrained") or recorded["model_name"]
    for task, result in recorded["results"].items():
        values = {key.removesuffix(",none"): _number(value) for key, value in result.items()}
        metrics = [key for key, value in values.items() if value is not None]
        metrics = [key for key in metrics if "_stderr" not in key and key != "sample_len"]
        for metric in [*(key for key in PREFERRED if key in metrics), *metrics][:1]:
            yield Score(model, task, metric, values[metric] or 0.0, file)


def _number(value: object) -> float | None:
    try:
        return finite(float(str(value)))
    except ValueError:
        return None


def _fits(model: str, side: Side, metadata: ReportMetadata) -> bool:
    """Return whether a model's name is a side's repository, folder, or family:stage."""
    recorded = metadata[side]
    start, _, end = metadata["pair"].partition("..")
    stage = f"{metadata['family']}:{start if side == 'base' else end}"
    repo, commit = recorded["repo"], recorded["commit"] or ""
    if model in (repo, stage) or (not commit and model == Path(repo).name):
        return True
    name, _, revision = model.partition("@")
    return name == repo and len(revision) >= 7 and commit.startswith(revision)


def gains_of(scores: Sequence[Score], metadata: ReportMetadata) -> list[Gain]:
    """Join scores to a pair. Raises ShadowError if several scores fit."""
    found: dict[Side, dict[tuple[str, str | None], Score]] = {side: {} for side in SIDES}
    for row in scores:
        fitting = [side for side in SIDES if _fits(row.model, side, metadata)]
        if len(fitting) == 2:
            fault = f"{row.where}: {short(row.model)} may be either side of {metadata['pair']}"
            raise ShadowError(fault, "write family:stage, or name@commit")
        for side in fitting:
            first = found[side].setdefault((row.benchmark, row.metric), row)
            if first.score != row.score:
                fault = f"{row.where}: another score of {short(row.model)} is at {first.where}"
                raise ShadowError(fault, "leave one of them")
    gains = []
    for key, base in found["base"].items():
        if tuned := found["tuned"].get(key):
            gain = float(f"{tuned.score - base.score:.12g}")  # equal decimals are equal gains
            gains.append(Gain(*key, base.score, tuned.score, gain))
    return gains


def score_reports(reports: Sequence[ComparedReport], scores: Sequence[Score]) -> ScoredSet:
    """Correlate gains and concentrations. Raises ShadowError if no pair has a gain."""
    entries = [
        ScoredReport(
            report.label,
            f"{report.metadata['family']}:{report.metadata['pair']}",
            finite(report.deltas["concentration"].median()),
            gains_of(scores, report.metadata),
            _left_out(report.metadata),
        )
        for report in reports
    ]
    if not any(entry.gains for entry in entries):
        models = ", ".join(list(dict.fromkeys(row.model for row in scores))[:3])
        sides = " and ".join(reports[0].metadata[side]["repo"] for side in SIDES)
        fault = f"{scores[0].where}: no benchmark has scores of both sides of a pair"
        fault += f"; models: {models[:200]}"
        raise ShadowError(fault, f"the column `model` may contain {sides[:400]}")
    return ScoredSet(entries, correlations(entries))


def _left_out(metadata: ReportMetadata) -> str | None:
    gates = metadata.get("gates")
    recorded = (
        [gate for gate in gates if isinstance(gate, Mapping)] if isinstance(gates, list) else []
    )
    if failed := [str(gate.get("name")) for gate in recorded if gate.get("passed") is False]:
        return f"gate {', '.join(failed)[:80]} failed"
    return "a pair of siblings" if metadata["settings"].get("relation") == "sibling" else None


def correlations(entries: Sequence[ScoredReport]) -> list[Correlation]:
    """Correlate the gain in each benchmark with concentration, by Spearman's ranks."""
    points: dict[tuple[str, str | None], list[tuple[float, float]]] = {}
    for entry in entries:
        for gain in entry.gains:
            values = points.setdefault((gain.benchmark, gain.metric), [])
            if entry.left_out is None and entry.concentration is not None:
                values.append((gain.gain, entry.concentration))
    found = []
    for key, some in points.items():
        ranks = pd.DataFrame(some, columns=["gain", "concentration"]).rank()
        known = len(some) >= FEWEST and bool((ranks.nunique() > 1).all())
        rho = float(ranks["gain"].corr(ranks["concentration"])) if known else None
        found.append(Correlation(*key, len(some), rho))
    return found
