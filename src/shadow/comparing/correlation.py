"""Gains and concentrations of a set of reports -> their rank correlation. Arrays and frozen rows
in, numbers out.

It needs no matrix in common: every report gives one concentration and one gain, whatever its base.
What the ranks of a few families can say is little, so each correlation has n, an interval and an
exact p, or the reason why it has none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shadow.comparing.gains import Gain, Scored, group_gain, join
from shadow.comparing.kept_scores import read_kept
from shadow.comparing.one_checkpoint import numbered
from shadow.comparing.scored_sides import neither, sides_of
from shadow.comparing.scores import ScoreFiles
from shadow.errors import ShadowError
from shadow.reports.column_types import null_if_undefined
from shadow.reports.metadata import SIDES, CheckpointMetadata, ReportMetadata
from shadow.summary.bootstrap import LEVEL
from shadow.summary.numbers import Floats
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.comparing.matching import ComparedReport

Integers = NDArray[np.int64]

# reports below which there is no correlation: of three, one order in three agrees or disagrees
# wholly
FEWEST = 4
EXACT = 8  # reports up to which p is of every order, 8! = 40,320
ORDERS = 9_999  # random orders above, of a fixed seed
SEED = 0
METHOD = {
    "coefficient": (
        "Spearman's rank correlation of gain and median concentration over reports, ties by mean"
        " ranks"
    ),
    "interval": (
        "Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett & Wright 2000 and the"
        f" normal quantile of {100 * LEVEL:g} %"
    ),
    "p": (
        f"two-sided, of every order of the gains up to n = {EXACT}, else of {ORDERS:,} random ones"
        f" of seed {SEED}"
    ),
}
NOT_SHOWN = (
    (
        "whether a score characterises a model: the rank correlation describes these reports alone;"
        " those that share a base or a lineage are not independent, and over models of other shapes"
        " concentration differs by shape as well"
    ),
    "which of several correlations is one by chance: of twenty, one has p below 0.05",
)


@dataclass(frozen=True)
class Correlation:
    """The rank correlation of what was gained and of concentration, over reports."""

    group: str | None
    less: str | None
    """The group whose gain was subtracted; None where none was."""
    benchmark: str | None
    """The benchmark; None for the mean over those of a group."""
    metric: str | None
    """Its metric; None for a mean, or where the file names none."""
    benchmarks: int
    n: int
    """Reports that have both numbers, 0 or more."""
    bases: int
    rho: float | None = None
    """Spearman's rank correlation, -1 to 1; None where `reason` says why."""
    low: float | None = None
    high: float | None = None
    level: float | None = None
    p: float | None = None
    """Two-sided, over orders of the gains, 0 to 1."""
    reason: str | None = None


@dataclass(frozen=True)
class ScoredReport:
    """One report of a set, and what others measured of its models."""

    label: str
    pair: str
    base: str
    """What its base is known by: content, commit, fingerprint or name. Equal for equal bases."""
    concentration: float | None
    """The median over its deltas; None where there is none."""
    scored: Scored
    left_out: str | None
    """Why it has no part in the correlations; None where it has."""

    def as_json(self) -> dict[str, Any]:
        """For machines: the report, and its scores as a summary has them."""
        report = {
            "label": self.label,
            "pair": self.pair,
            "concentration": self.concentration,
            "left_out": self.left_out,
        }
        return report | self.scored.as_json()


@dataclass(frozen=True)
class ScoredSet:
    """All reports of a comparison with their scores, and correlations over those not left out."""

    entries: list[ScoredReport]
    correlations: list[Correlation]
    """Of groups, of the difference of two groups, and of benchmarks."""

    @property
    def not_shown(self) -> list[str]:
        """What the correlations do not show; nothing where there are none."""
        if all(correlation.rho is None for correlation in self.correlations):
            return []
        return list(NOT_SHOWN)

    def as_json(self) -> dict[str, Any]:
        """For machines: reports, correlations, and how these were made."""
        return {
            "reports": [entry.as_json() for entry in self.entries],
            "correlations": [asdict(correlation) for correlation in self.correlations],
            "method": METHOD,
        }


def score_reports(reports: Sequence[ComparedReport], given: ScoreFiles | None) -> ScoredSet | None:
    """The scores of a set of reports, those that are given before those that are kept beside them;
    None without any.

    Left out of the correlations are a pair that failed a gate, whose concentration is not that of a
    training, siblings, of which neither gained over the other, and a pair that is there already.
    Raises ShadowError where no report is named by the files given.
    """
    named: list[Scored | None] = [None] * len(reports)
    if given is not None:
        named = [join(given, sides_of(report.metadata)) for report in reports]
        if not any(named):
            raise neither(given, [sides_of(report.metadata) for report in reports])
    sides = numbered([report.metadata[side] for report in reports for side in SIDES])
    names: dict[int, str] = {}  # of bases
    first_with: dict[tuple[int, int], str] = {}
    entries = []
    pairs = zip(sides[::2], sides[1::2], strict=True)
    for report, scored, pair in zip(reports, named, pairs, strict=True):
        deltas = report.subject("delta")
        middle = float(deltas["concentration"].median()) if len(deltas) else math.nan
        earlier = first_with.get(pair)
        first_with.setdefault(pair, report.label)
        entries.append(
            ScoredReport(
                label=report.label,
                pair=f"{report.metadata['family']}:{report.metadata['pair']}",
                base=names.setdefault(pair[0], _identity(report.metadata["base"])),
                concentration=null_if_undefined(middle),
                scored=scored or _kept(report),
                left_out=_left_out(report.metadata, middle, earlier),
            )
        )
    if not any(entry.scored.gains for entry in entries):
        return None
    return scored_set(entries)


def _kept(report: ComparedReport) -> Scored:
    try:
        return read_kept(report.folder, report.metadata)
    except ShadowError as error:
        return Scored((), (), (error.message,))


def _identity(side: CheckpointMetadata) -> str:
    return side.get("content") or side["commit"] or side["fingerprint"] or side["repo"]


def _left_out(metadata: ReportMetadata, concentration: float, before: str | None) -> str | None:
    gates = metadata.get("gates")
    if not isinstance(gates, list):  # a report of an earlier version has none
        gates = []
    known = [gate for gate in gates if isinstance(gate, Mapping)]
    if failed := [str(gate.get("name")) for gate in known if gate.get("passed") is False]:
        return f"gate {', '.join(failed)[:80]} failed"
    if metadata["settings"].get("relation") == "sibling":
        return "a pair of siblings"
    if before is not None:
        return f"the same pair as {before}"
    if not math.isfinite(concentration):
        return "no concentration"
    return None


def scored_set(entries: Sequence[ScoredReport]) -> ScoredSet:
    """Correlations of every group, of the difference of two, and of every benchmark."""
    taking = [entry for entry in entries if entry.left_out is None]
    groups = (gain.group for entry in taking for gain in entry.scored.gains)
    names = list(dict.fromkeys(group for group in groups if group is not None))
    correlations = [_of_groups([name], taking) for name in names]
    if len(names) == 2:
        correlations.append(_of_groups(names, taking))
    keys = dict.fromkeys(
        (gain.benchmark, gain.metric) for entry in taking for gain in entry.scored.gains
    )
    return ScoredSet(list(entries), correlations + [_of_benchmark(*key, taking) for key in keys])


# What is ranked: a gain for each report that has one


Gains = Mapping[str, Sequence[Gain]]  # label -> the gains of one report


def _of_benchmark(
    benchmark: str, metric: str | None, entries: Sequence[ScoredReport]
) -> Correlation:
    key = (benchmark, metric)
    gains = [
        (entry.label, gain)
        for entry in entries
        for gain in entry.scored.gains
        if (gain.benchmark, gain.metric) == key
    ]
    known = {label: [gain] for label, gain in gains if gain.gain is not None}
    values = {label: gain.gain for label, gain in gains if gain.gain is not None}
    group = gains[0][1].group
    return _correlation(
        values,
        entries,
        reason=_units(known),
        group=group,
        benchmark=benchmark,
        metric=metric,
        benchmarks=1,
    )


def _of_groups(names: Sequence[str], entries: Sequence[ScoredReport]) -> Correlation:
    """The gain of one group, or of the first of two less that of the second: their ratio would have
    no meaning where the second is about 0.

    Over the benchmarks of a group that every report with any of them has: means over others do not
    compare.
    """
    common = [_common(name, entries) for name in names]
    labels = [label for label in common[0] if label in common[-1]]
    known = [{label: gains[label] for label in labels} for gains in common]
    means = [_means(name, gains) for name, gains in zip(names, known, strict=True)]
    reasons = [reason for _, _, reason in means]
    reasons.append(_units({label: [*known[0][label], *known[-1][label]] for label in labels}))
    values = means[0][0]
    if len(names) > 1:
        values = {label: value - means[1][0][label] for label, value in values.items()}
    return _correlation(
        values,
        entries,
        reason=next(filter(None, reasons), None),
        group=names[0],
        less=names[1] if len(names) > 1 else None,
        benchmarks=sum(count for _, count, _ in means),
    )


def _common(name: str, entries: Sequence[ScoredReport]) -> dict[str, list[Gain]]:
    """Each report's gains in the benchmarks of a group that all reports with scores have."""
    by_label = {
        entry.label: [
            gain for gain in entry.scored.gains if gain.group == name and gain.gain is not None
        ]
        for entry in entries
    }
    by_label = {label: gains for label, gains in by_label.items() if gains}
    if not by_label:
        return {}
    sets = [{(gain.benchmark, gain.metric) for gain in gains} for gains in by_label.values()]
    shared = set.intersection(*sets)
    return {
        label: [gain for gain in gains if (gain.benchmark, gain.metric) in shared]
        for label, gains in by_label.items()
    }


def _means(name: str, known: Gains) -> tuple[dict[str, float], int, str | None]:
    """(mean gain by label, benchmarks averaged, why there are none)."""
    means = {label: group_gain(name, gains) for label, gains in known.items()}
    count = max((mean.benchmarks for mean in means.values()), default=0)
    if means and not count:
        return dict.fromkeys(means, 0.0), 0, "no benchmark that all of them have"
    reason = next((mean.reason for mean in means.values() if mean.reason), None) or _units(known)
    return {label: mean.gain or 0.0 for label, mean in means.items()}, count, reason


def _units(known: Gains) -> str | None:
    """Why scores cannot be averaged, if they have several units."""
    units = sorted({gain.unit for gains in known.values() for gain in gains})
    if len(units) < 2:
        return None
    return f"scores in different units ({', '.join(units)[:100]})"


def _correlation(
    values: Mapping[str, float], entries: Sequence[ScoredReport], reason: str | None, **key: Any
) -> Correlation:
    taking = [
        entry for entry in entries if entry.label in values and entry.concentration is not None
    ]
    # means that are equal but for their last bits are equal
    rounded = {label: float(f"{value:.12g}") for label, value in values.items()}
    gains = np.array([rounded[entry.label] for entry in taking], np.float64)
    concentrations = np.array([entry.concentration for entry in taking], np.float64)
    identity = {"less": None, "benchmark": None, "metric": None} | key
    bases = len({entry.base for entry in taking})
    if reason is None and len(taking) < FEWEST:
        reports = counted(len(taking), "report", "reports")
        reason = f"{reports} with both, at least {FEWEST} are needed"
    if reason is None and (len(set(gains)) < 2 or len(set(concentrations)) < 2):
        reason = "all are equal"
    if reason is not None:
        return Correlation(**identity, n=len(taking), bases=bases, reason=reason)
    rho = spearman(gains, concentrations)
    low, high = interval(rho, len(taking))
    level: float | None = LEVEL
    if low is None:
        level = None
        reason = "the ranks agree completely, so that the interval has no width: see p"
    return Correlation(
        **identity,
        n=len(taking),
        bases=bases,
        rho=rho,
        low=low,
        high=high,
        level=level,
        p=permutation_p(gains, concentrations),
        reason=reason,
    )


# The numbers


def spearman(values: Floats, other: Floats) -> float:
    """Pearson's correlation of the ranks (n,), ties by mean ranks; neither may be constant."""
    first, second = _ranks(values), _ranks(other)
    return float(first @ second) / math.sqrt(float(first @ first) * float(second @ second))


def _ranks(values: Floats) -> Integers:
    """Twice the mean ranks, less their mean: whole numbers, so that sums of products are exact."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(counts) - counts + 1)[inverse]
    return np.asarray(doubled - len(values) - 1, np.int64)


def interval(rho: float, n: int) -> tuple[float | None, float | None]:
    """Bounds of a rank correlation of n pairs, at LEVEL; none where it is 1 or -1.

    tanh(atanh(rho) -+ z sqrt((1 + rho^2 / 2) / (n - 3))), Bonett & Wright 2000, Sample size
    requirements for estimating Pearson, Kendall and Spearman correlations, Psychometrika 65, 23.
    """
    if n < FEWEST or abs(rho) >= 1:
        return None, None
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)


def permutation_p(values: Floats, other: Floats) -> float:
    """Two-sided: the share of orders of `one` whose |rank correlation| with `other` is as large.

    Every order for n <= EXACT, so that p is at least 2 / n! without ties; else ORDERS random ones
    of a fixed seed beside the observed one.
    """
    first, second = _ranks(values), _ranks(other)
    observed = abs(int(first @ second))
    if len(first) <= EXACT:
        orders = np.array(list(itertools.permutations(range(len(first)))))
        return float(np.mean(np.abs(first[orders] @ second) >= observed))
    drawn = np.random.Generator(np.random.PCG64(SEED)).permuted(np.tile(first, (ORDERS, 1)), axis=1)
    return float((1 + np.sum(np.abs(drawn @ second) >= observed)) / (1 + ORDERS))
