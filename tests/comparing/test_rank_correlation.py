"""Rank correlations of gains and concentrations: against SciPy, by hand, and over reports."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import uniform
from scipy import stats
from scores import gain, scored_reports, write

from shadow.comparing.comparison import report_label
from shadow.comparing.correlation import (
    EXACT,
    FEWEST,
    ScoredReport,
    interval,
    permutation_p,
    score_reports,
    scored_set,
    spearman,
)
from shadow.comparing.gains import Scored, join
from shadow.comparing.kept_scores import kept_bytes
from shadow.comparing.matching import compared
from shadow.comparing.scored_sides import sides_of
from shadow.comparing.scores import read_scores
from shadow.reports.report import Report

FEW_VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=7)


@settings(deadline=None)
@given(pairs=FEW_VALUES)
def test_the_coefficient_is_scipys(pairs):
    """With ties and without."""
    one, other = (np.array(side, float) for side in zip(*pairs, strict=True))
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert spearman(one, other) == pytest.approx(
            stats.spearmanr(one, other).statistic, abs=1e-12
        )


def test_the_interval_is_that_of_a_published_example():
    """The example of ci.spear of the R package statpsych, which cites Bonett & Wright 2000."""
    y = np.array([21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19], float)
    x = np.array([67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51], float)
    rho = spearman(y, x)
    assert rho == pytest.approx(0.8699639, abs=1e-7)
    assert interval(rho, len(x)) == pytest.approx((0.5840951, 0.9638297), abs=1e-7)


def test_there_is_no_interval_where_it_would_have_no_width():
    """Of ranks that agree completely, or of too few."""
    assert interval(1.0, 20) == interval(-1.0, 20) == interval(0.5, FEWEST - 1) == (None, None)
    low, high = interval(0.0, 4)
    assert -low == high == pytest.approx(math.tanh(1.959963985))


def test_the_interval_holds_as_often_as_the_readme_says():
    """Bivariate normal pairs, known rank correlation, 6 asin(r / 2) / pi: at least 94 of 100."""
    rng = np.random.default_rng(0)
    for n, r in itertools.product((6, 12), (0.0, 0.6)):
        held, known = 0, 0
        for draws in rng.normal(size=(1500, 2, n)):
            rho = spearman(draws[0], r * draws[0] + math.sqrt(1 - r**2) * draws[1])
            low, high = interval(rho, n)
            if low is not None:
                known += 1
                held += low <= 6 * math.asin(r / 2) / math.pi <= high
        assert held / known > 0.94


def test_p_of_few_reports_is_exact():
    """Four in one order: 2 of 24 orders are as extreme; and SciPy's permutation test, with ties."""
    one = np.array([0.1, 0.2, 0.3, 0.4])
    assert permutation_p(one, one**2) == permutation_p(one, -one) == 2 / 24
    rng = np.random.default_rng(1)
    for n in (4, 5, 6):
        first, second = rng.integers(0, 4, n).astype(float), rng.normal(size=n)
        if len(set(first)) == 1:
            continue
        theirs = stats.permutation_test(
            (first,),
            lambda x, y=second: stats.spearmanr(x, y).statistic,
            permutation_type="pairings",
        )
        assert permutation_p(first, second) == pytest.approx(theirs.pvalue)


def test_p_of_many_reports_is_near_that_of_students_t():
    """Above EXACT from random orders of a fixed seed: the same each time."""
    rng = np.random.default_rng(2)
    one = rng.normal(size=30)
    other = 0.3 * one + rng.normal(size=30)
    assert len(one) > EXACT
    found = permutation_p(one, other)
    assert found == permutation_p(one, other)
    assert found == pytest.approx(stats.spearmanr(one, other).pvalue, abs=0.01)


# Sets of reports


def entry(letter, concentration, *gains, base=None, left_out=None):
    return ScoredReport(
        letter,
        f"{letter}:base..sft",
        base or letter,
        concentration,
        Scored((), gains, ()),
        left_out,
    )


def by_what(found):
    return {(one.group, one.less, one.benchmark): one for one in found.correlations}


def test_groups_benchmarks_and_the_difference_of_two_groups_are_ranked():
    """Six reports by hand: narrow gains rise with concentration, held-out fall, but for two."""
    held = [0.05, 0.04, 0.03, 0.02, 0.00, 0.01]
    entries = [
        entry(letter, 0.1 * i, gain(0.1 * i), gain(held[i], "b", "held-out"), base="ab"[i % 2])
        for i, letter in enumerate("ABCDEF")
    ]
    found = by_what(scored_set(entries))
    assert list(found) == [
        ("narrow", None, None), ("held-out", None, None), ("narrow", "held-out", None),
        ("narrow", None, "a"), ("held-out", None, "b"),
    ]  # fmt: skip
    narrow, held_out = found["narrow", None, None], found["held-out", None, "b"]
    assert (narrow.rho, narrow.n, narrow.bases, narrow.low, narrow.p) == (
        1.0,
        6,
        2,
        None,
        2 / math.factorial(6),
    )
    assert "agree completely" in narrow.reason
    # ranks 6 5 4 3 1 2 against 1 to 6: sum d^2 = 25 + 9 + 1 + 1 + 16 + 16 = 68, rho = 1 - 6 * 68 /
    # (6 * 35)
    assert held_out.rho == pytest.approx(1 - 6 * 68 / 210)
    assert (held_out.reason, held_out.level) == (None, 0.95)
    assert held_out.low < held_out.rho < held_out.high < 1
    assert found["narrow", "held-out", None].rho == 1.0


def test_what_cannot_be_ranked_has_a_reason():
    """Too few, all equal, other units, nothing that all have: no number is made up."""
    few = [entry(letter, 0.1 * i, gain(0.1 * i)) for i, letter in enumerate("ABC")]
    assert "3 reports with both, at least 4" in scored_set(few).correlations[0].reason
    equal = [entry(letter, 0.1 * i, gain(0.5)) for i, letter in enumerate("ABCD")]
    assert scored_set(equal).correlations[0].reason == "all are equal"
    units = [
        entry(x, 0.1 * i, gain(0.1 * i, unit="above 1" if i else "at most 1"))
        for i, x in enumerate("ABCD")
    ]
    assert {one.reason for one in scored_set(units).correlations} == {
        "scores in different units (above 1, at most 1)"
    }
    apart = [
        entry(x, 0.1 * i, gain(0.1 * i, benchmark="ab"[i % 2])) for i, x in enumerate("ABCDEFGH")
    ]
    found = by_what(scored_set(apart))
    assert found["narrow", None, None].reason == "no benchmark that all of them have"
    assert (found["narrow", None, "a"].n, found["narrow", None, "a"].rho) == (4, 1.0)
    none = [
        entry(letter, None if letter == "A" else 0.1 * i, gain(0.1 * i))
        for i, letter in enumerate("ABCD")
    ]
    assert scored_set(none).correlations[0].n == 3
    assert scored_set([]).correlations == []


def test_a_group_is_averaged_over_what_all_have():
    """A report with another, easy benchmark must not rank higher for it."""
    entries = [entry(x, 0.1 * i, gain(0.1 * i)) for i, x in enumerate("ABCD")]
    entries[0] = entry("A", 0.0, gain(0.0), gain(9.0, "easy"))
    found = by_what(scored_set(entries))["narrow", None, None]
    assert (found.rho, found.benchmarks) == (1.0, 1)


def test_metrics_are_ranked_apart():
    """acc of some reports and f1 of others are two correlations."""
    entries = [
        entry(x, 0.1 * i, gain(0.1 * i, metric=("acc", "f1")[i % 2]))
        for i, x in enumerate("ABCDEFGH")
    ]
    assert [(one.metric, one.n) for one in scored_set(entries).correlations if one.benchmark] == [
        ("acc", 4),
        ("f1", 4),
    ]


def test_equal_gains_share_a_rank_whatever_their_last_bit():
    """A mean that is 0.3 and one that is 0.30000000000000004 are one gain."""
    values = dict(zip("ABCD", (0.3, 0.1 + 0.2, 0.5, 0.6), strict=True))
    entries = [entry(x, 0.1 * i, gain(value)) for i, (x, value) in enumerate(values.items())]
    one = np.array([0, 0, 1, 2.0])
    assert scored_set(entries).correlations[0].rho == pytest.approx(spearman(one, np.arange(4.0)))


def test_reports_are_ranked_by_their_median_concentration(tmp_path):
    """Every report by its own figure; failed gates, siblings and a pair that is there already have
    no part.
    """
    folders, scores = scored_reports(tmp_path, [0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.2, 0.4])
    gates = [{"name": "rank", "passed": False}, {"name": "changed", "passed": True}]
    failed = uniform(tmp_path / "x", 0.9, gates=gates)
    sibling = uniform(
        tmp_path / "y", 0.9, settings={"method": {"precision": "default"}, "relation": "sibling"}
    )
    reports = [
        compared(Report(folder), report_label(i))
        for i, folder in enumerate([*folders, failed, sibling, folders[0]])
    ]
    found = score_reports(reports, read_scores([scores]))
    assert [one.concentration for one in found.entries] == [0.2, 0.3, 0.4, 0.5, 0.9, 0.9, 0.2]
    assert [one.left_out for one in found.entries] == [
        None, None, None, None, "gate rank failed", "a pair of siblings", "the same pair as A",
    ]  # fmt: skip
    group, benchmark = found.correlations
    # ranks 1 3 2 4 against 1 2 3 4: sum d^2 = 2, rho = 1 - 6 * 2 / (4 * 15)
    # |rho| is as large in 8 of 24 orders
    assert (group.n, group.bases, group.rho) == (4, 4, pytest.approx(0.8))
    assert benchmark.rho == group.rho
    assert group.p == pytest.approx(8 / 24)
    json.dumps(found.as_json(), allow_nan=False)


def test_kept_scores_are_taken_and_given_ones_go_first(tmp_path):
    """Beside every report lie its scores; without any there is nothing to show."""
    folders, scores = scored_reports(tmp_path, [0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4])
    reports = [compared(Report(folder), report_label(i)) for i, folder in enumerate(folders)]
    assert score_reports(reports, None) is None
    for report in reports:
        kept = join(read_scores([scores]), sides_of(report.metadata))
        (report.folder / "scores.json").write_bytes(kept_bytes(kept, report.metadata))
    assert score_reports(reports, None).correlations[0].rho == 1.0
    rows = ["model,benchmark,score,group", "org/base-3,mmlu,0.5,narrow", "f3:sft,mmlu,0.51,narrow"]
    other = write(tmp_path / "other.csv", "\n".join(rows))
    found = score_reports(reports, read_scores([other]))
    assert [one.scored.gains[0].gain for one in found.entries] == [0.1, 0.2, 0.3, 0.01]
    (folders[0] / "scores.json").write_text("{")
    broken = score_reports(reports, None)
    assert "not scores kept by shadow" in broken.entries[0].scored.notes[0]
    assert broken.correlations[0].n == 3


def test_letters_go_on_after_z():
    """200 reports have 200 labels."""
    labels = [report_label(i) for i in range(1000)]
    assert [labels[i] for i in (0, 25, 26, 51, 52, 702)] == ["A", "Z", "AA", "AZ", "BA", "AAA"]
    assert len(set(labels)) == 1000
