"""What the lab says of its tables: means, intervals, separation, bounds and error rates, each got
another way.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

import calibration
import contrasts
import lab_page
import margins
from shadow.claims.reference import AXES, Bound, points
from shadow.lab import estimates
from shadow.lab.design import PROBES
from shadow.lab.estimates import OUTCOME, Estimate, final, over_bases
from shadow.lab.figure import figure
from shadow.lab.results import read, write
from shadow.lab.tasks import SMALL
from shadow.lab.view import lab_document, sections, warning_of
from shadow.outputs.markdown import markdown
from shadow.telling.document import FigureRow, Headline, Image, Section

SHARES = (0.1, 0.3, 1.0)


FIGURES = {
    "stable_rank": -1, "top4_energy": 1, "participation_share": -1, "spike_energy": 1,
    "embedding_row_participation_ratio": -1, "attention_to_mlp": 1,
}  # fmt: skip


def made(bases: int = 3, seeds: int = 2, gap: float = 0.1, slope: float = -0.05) -> pd.DataFrame:
    """Runs whose concentration is known: base + gap for B + slope ln(norm), the norm 0.01 share
    (twice that for B).
    """
    rows = []
    for base, regime, seed, share in itertools.product(range(bases), "ABCD", range(seeds), SHARES):
        norm = 0.01 * share * (2 if regime == "B" else 1) * (1 + 0.1 * seed)
        level = 0.2 + 0.01 * base + gap * (regime == "B") + slope * math.log(norm)
        rows.append(
            {
                "base": f"small-warm-{base}", "scale": "small", "width": 64, "warm": True,
                "regime": regime, "treatment": "adamw", "method": "adamw", "seed": seed,
                "kind": "trained", "share": share, "run": f"{regime}, adamw, {seed}",
                "seconds": 1.0, "stopped": "", "loss": 0.1, "relative_norm": norm, OUTCOME: level,
                "layers_relative_norm": norm, "concentration": level,
                **{f"right_{probe}": 0.5 + 0.1 * (regime == "B") for probe in PROBES},
                **{f"base_{probe}": 0.5 for probe in PROBES},
                **{name: way * level for name, way in FIGURES.items()},
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=12).filter(
        lambda values: np.std(values) > 1e-6
    )
)
def test_an_interval_over_bases_is_students(values: list[float]) -> None:
    """As SciPy's one-sample t test has it."""
    found, interval = over_bases(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx(
        (np.mean(values), interval.low, interval.high)
    )


def test_one_base_has_no_interval() -> None:
    """And none has no mean; what is not finite does not count."""
    assert over_bases([0.3, float("nan")]) == Estimate(0.3, None, None, 1)
    assert over_bases([]) == Estimate(None, None, None, 0)


def test_a_contrast_is_the_mean_over_bases() -> None:
    """B - C at the end: the planted gap and what twice the norm takes off, -0.05 ln 2; alike on
    every base.
    """
    found = estimates.contrast(made(), "B", "C")
    assert found.value == pytest.approx(0.1 - 0.05 * math.log(2))
    assert (found.low, found.high) == pytest.approx((found.value, found.value))
    assert estimates.contrast(made(), "A", "D").value == pytest.approx(0)
    assert estimates.contrast(made(), "B", "Z") == Estimate(None, None, None, 0)


def test_at_equal_norm_the_gap_is_the_planted_one() -> None:
    """Concentration is linear in the logarithm of the norm, so interpolation is exact and the norm
    drops out.
    """
    found = contrasts.separation(made(), OUTCOME)
    assert found.at_norm.value == pytest.approx(0.1)
    assert found.auc == found.auc_at_norm == 1.0
    reverse = contrasts.separation(made(gap=-0.1), OUTCOME)
    assert reverse.auc_at_norm == 0.0
    assert contrasts.separation(made(gap=0.0), OUTCOME).at_norm.value == pytest.approx(0.0)


def test_runs_without_a_common_norm_are_left_out() -> None:
    """Where one regime starts above what another reaches, nothing is matched."""
    runs = made()
    runs.loc[runs["regime"] == "B", "layers_relative_norm"] *= 1000
    assert contrasts.matched(runs, OUTCOME).empty


def test_the_auc_is_the_share_of_pairs() -> None:
    """By counting, ties half, within bases, then the mean over bases."""
    rng = np.random.default_rng(0)
    runs = made(bases=4, seeds=5)
    last = runs[runs["share"] == 1.0].copy()
    last["figure"] = rng.integers(0, 4, len(last)).astype(float)
    by_base = []
    for _, own in last.groupby("base"):
        first, second = (own.loc[own["regime"] == regime, "figure"] for regime in "BC")
        wins = [
            1.0 if b > c else 0.5 if b == c else 0.0 for b, c in itertools.product(first, second)
        ]
        by_base.append(np.mean(wins))
    full = runs.merge(last[["base", "regime", "seed", "figure"]], on=["base", "regime", "seed"])
    assert contrasts.separation(full, "figure").auc == pytest.approx(np.mean(by_base))


def test_gains_are_against_the_base() -> None:
    """B has a tenth more right than its base, the others nothing."""
    found = estimates.gains(made())["narrow"]
    assert found["B"].value == pytest.approx(0.1)
    assert found["A"].value == pytest.approx(0.0)


def test_a_control_is_held_against_the_same_bases() -> None:
    """A treatment on base 0 alone is compared with AdamW on base 0, though others are higher."""
    runs = made()
    extra = runs[(runs["base"] == "small-warm-0") & (runs["regime"] == "C")].copy()
    extra = extra.assign(treatment="muon", method="muon", **{OUTCOME: extra[OUTCOME] - 0.3})
    rows = {
        (one.treatment, one.regime): one
        for one in contrasts.treatments(pd.concat([runs, extra]), "small")
    }
    assert rows["muon", "C"].change.value == pytest.approx(-0.3)
    assert rows["muon", "C"].change.bases == 1
    assert rows["adamw", "C"].change.value == pytest.approx(0.0)


# The reference


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=20),
    st.sampled_from([1, -1]),
)
def test_no_training_of_the_reference_is_called_the_opposite(
    narrow: list[float], broad: list[float], way: int
) -> None:
    """Beyond `concentrated` lies no broad training that bounds were fitted to, beyond `distributed`
    no narrow one.
    """
    name = next(name for name, its in AXES.items() if its == way)
    bound = calibration.bound(pd.Series(narrow), pd.Series(broad), way)
    assert all(points(name, value, bound) <= 0 for value in broad)
    assert all(points(name, value, bound) >= 0 for value in narrow)
    if max(way * np.array(broad)) >= min(way * np.array(narrow)):
        assert bound == Bound(way * max(way * np.array(broad)), way * min(way * np.array(narrow)))
    else:
        assert bound.concentrated == bound.distributed
        assert max(way * np.array(broad)) <= way * bound.concentrated <= min(way * np.array(narrow))


def test_bounds_are_fitted_to_full_rank_from_warm_bases() -> None:
    """Cold bases, adapters, copies and earlier states do not enter; any optimiser has a bound where
    all are there.
    """
    runs = made(bases=5)
    others = [
        runs.assign(warm=False, concentration=9.0),
        runs.assign(method="lora", treatment="lora", concentration=9.0),
        runs.assign(kind="copied", concentration=9.0),
    ]
    table = calibration.reference(pd.concat([runs, *others]))
    assert len(table) == 5 * 2 * 4
    (found,) = calibration.fit(table)
    assert (found.optimizer, found.short_side, found.narrow, found.broad) == ("adamw", 64, 10, 30)
    every = pd.concat(
        [runs, *(runs.assign(method=name, treatment=name) for name in ("sgd", "muon"))]
    )
    assert {one.optimizer for one in calibration.fit(calibration.reference(every))} == {
        None,
        "adamw",
        "sgd",
        "muon",
    }
    few = every[(every["method"] != "sgd") | (every["base"] == "small-warm-0")]
    assert {one.optimizer for one in calibration.fit(calibration.reference(few))} == {
        None,
        "adamw",
        "muon",
    }
    assert not calibration.fit(calibration.reference(made(bases=2, seeds=5)))


def test_a_rate_without_errors_has_the_interval_of_the_rule_of_three() -> None:
    """No base of n with an error: the upper bound is 1 - 0.025^(1/n), by the binomial."""
    found = calibration.rate(
        "x", pd.Series([False] * 30), pd.Series([str(i % 10) for i in range(30)])
    )
    assert (found.errors, found.cases, found.affected, found.bases) == (0, 30, 0, 10)
    assert (found.low, found.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)), abs=1e-4)


def test_a_base_counts_once() -> None:
    """Errors of one base are not independent: 5 errors in 2 of 10 bases are 2 of 10."""
    bases = pd.Series([str(i % 10) for i in range(50)])
    found = calibration.rate(
        "x", bases.isin(["3"]) | (bases.isin(["4"]) & (pd.Series(range(50)) < 5)), bases
    )
    assert (found.errors, found.affected, found.bases) == (6, 2, 10)


def test_a_left_out_base_is_judged_by_the_others() -> None:
    """A base whose broad runs lie beyond all those of the others on every axis is called
    concentrated when left out; on concentration alone, the other axes object.
    """
    runs = made(bases=6)
    odd = runs["base"] == "small-warm-3"
    runs.loc[odd, "concentration"] += 1.0

    def words_of(shifted: pd.DataFrame) -> set[str]:
        table = calibration.reference(shifted)
        words = calibration.left_out_words(table, known=True)
        assert len(words) == len(table)
        return set(
            words.loc[(words["base"] == "small-warm-3") & (words["data"] == "broad"), "word"]
        )

    assert words_of(runs) == {"mixed"}
    runs.loc[odd, "attention_to_mlp"] += 1.0
    runs.loc[odd, "embedding_row_participation_ratio"] -= 1.0
    assert words_of(runs) == {"concentrated"}
    rates = {one.what: one for one in calibration.label_rates(calibration.reference(runs))}
    assert rates["label: broad data called concentrated, its optimiser given"].affected == 1


def test_verdicts_are_counted_by_what_they_were_of() -> None:
    """Two seeds, a control and a true difference, each with one error among them."""
    rows = [
        ("A", "A", "more concentrated"), ("A", "A", "not distinguished"),
        ("A", "D", "less concentrated"), ("A", "D", "different, below the margin"),
        ("B", "C", "more concentrated"), ("B", "C", "mixed evidence"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["regime_first", "regime_second", "verdict"]).assign(
        base="small-warm-0", seed_first=0, seed_second=range(1, 1 + len(rows))
    )
    errors = [(one.errors, one.cases) for one in calibration.verdict_rates(table)]
    assert errors == [(1, 2), (1, 2), (1, 2), (0, 2)]


def compared_pairs() -> pd.DataFrame:
    """Two pairs of seeds, of which the spread of one excludes 0; three of B and C, of which one is
    below the margin and one is not backed by other figures; one of a cold base.
    """
    rows = [
        ("small-warm-0", "A", "A", 0.018, 0.01, "different, below the margin"),
        ("small-warm-0", "B", "B", -0.002, -0.01, "not distinguished"),
        ("small-warm-0", "B", "C", 0.042, 0.03, "different, below the margin"),
        ("small-warm-0", "B", "C", 0.058, 0.05, "mixed evidence"),
        ("small-warm-0", "B", "C", 0.097, 0.08, "more concentrated"),
        ("small-cold-0", "B", "C", 0.03, -0.01, "not distinguished"),
    ]
    names = ["base", "regime_first", "regime_second", "difference", "low", "verdict"]
    return pd.DataFrame(rows, columns=names).assign(
        high=lambda table: table["difference"] + 0.01,
        seed_first=0,
        seed_second=range(1, 1 + len(rows)),
        stored="F32",
    )


def test_what_the_margin_rests_on_is_counted_from_the_comparisons() -> None:
    """Sizes, spreads and verdicts by hand; the misses are split into small ones and others."""
    found = margins.margin_table(compared_pairs(), compared_pairs().iloc[:0])
    assert "| two seeds of the same data | 2 | 0.002 to 0.018 | 1 | 0 |" in found
    assert "| B and C: narrow and broad data | 3 | 0.042 to 0.097 | 3 | 1 |" in found
    assert "on bases that have not met them | 1 | 0.030 to 0.030 | 0 | 0 |" in found
    words = margins.margin_words(compared_pairs())
    assert "at most 0.018" in words
    assert "by 0.042 to 0.097 on warm bases" in words
    assert "above all differences of seeds and inside the range of B and C" in words
    assert "misses 2 of 3 pairs of B and C: 1 differ by less" in words
    assert "it misses 1 of 1" in words
    assert margins.margin_words(compared_pairs().iloc[:2]) == ""
    assert "for 1 of 2 pairs" in margins.seed_words(compared_pairs())


def test_what_compare_missed_is_told_with_the_treatments_below_its_margin() -> None:
    """B - C is 0.1 - 0.05 ln 2 with AdamW; 0.05 off B is below the margin."""
    adamw = made()
    lora = adamw.assign(treatment="lora", method="lora")
    lora.loc[lora["regime"] == "B", OUTCOME] -= 0.05
    runs = pd.concat([adamw, lora], ignore_index=True)
    told = margins.reliance_words({"runs": runs, "comparisons": compared_pairs()})
    assert "called 0 of 2 pairs" in told
    assert "missed 2 of 3 pairs of narrow and broad data, and 1 of 1 on bases" in told
    assert "With LoRA of rank 4, narrow" in told
    words = margins.treatment_words(runs)
    assert "AdamW +0.065; LoRA of rank 4, rate 2e-3 +0.015" in words
    assert "adds -0.050 (B) and 0.000 (C)" in words


# The page


def with_controls(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with a cold base and two copies, which the published page has tables of."""
    own = runs[runs["base"] == "small-warm-0"]
    cold = own.assign(base="small-cold-0", warm=False)
    copies = final(own).head(2).assign(kind="copied", regime=["same", "planted"], stopped="changed")
    return pd.concat([runs, cold, copies], ignore_index=True)


def test_labels_are_told_with_those_that_no_norm_allows() -> None:
    """A narrow training whose norm no other base has is in the table and in its column, and the
    page says which data are narrow.
    """
    runs = made(bases=6)
    odd = (runs["base"] == "small-warm-3") & (runs["regime"] == "B") & (runs["seed"] == 0)
    runs.loc[odd, "relative_norm"] *= 100
    found = lab_page.page({"runs": with_controls(runs), "comparisons": pd.DataFrame()})
    assert "narrow data are B, Bk and Bn (12)" in found
    head = "|  | concentrated | mixed | distributed | not assessable |"
    rows = found.partition(head)[2].splitlines()
    (row,) = [line for line in rows if line.startswith("| B, AdamW |")]
    assert row.endswith("| 1 |")
    assert sum(int(cell) for cell in row.split("|")[2:-1]) == 12


def test_doses_of_frequency_are_told_with_the_spread_of_their_seeds() -> None:
    """Two bases, two seeds: concentrations .2 and .24, .3 and .3 at C^1 and .1 at C."""
    runs = made(bases=2)
    runs = runs[runs["regime"].isin(["A", "C"])].replace({"regime": {"A": "C^1"}})
    levels = {("C^1", 0, 0): 0.2, ("C^1", 0, 1): 0.24, ("C^1", 1, 0): 0.3, ("C^1", 1, 1): 0.3}
    keys = zip(runs["regime"], runs["base"].str[-1].astype(int), runs["seed"], strict=True)
    runs[OUTCOME] = [levels.get(key, 0.1) for key in keys]
    runs["layers_excess_purity"] = 0.02
    tables = {"runs": with_controls(made()), "comparisons": pd.DataFrame(), "frequency": runs}
    text = lab_page.page(tables)
    (row,) = [line for line in text.splitlines() if line.startswith("| C^1: ")]
    count, norm, *others = [cell.strip() for cell in row.split("|")[3:-1]]
    half = 12.706 * 0.04 / math.sqrt(2) * math.sqrt(2)  # t of 1; bases .22 and .30
    assert (count, norm) == ("4", "0.011")
    assert others[0] == f"0.260 ({0.26 - half:.3f} to {0.26 + half:.3f})"
    assert others[1].startswith("+0.160 (")
    assert others[2] == "undecided"
    assert others[3] == "0.040"
    assert others[4].startswith("0.0200")
    assert row.split("|")[2].strip() == f"{cells_alike(1):.1f}"
    section = text.partition("## Doses of frequency")[2].partition("##")[0]
    (narrow,) = [line for line in section.splitlines() if line.startswith("| B: ")]
    assert [cell.strip() for cell in narrow.split("|")[2:4]] == ["3.0", "4"]


def cells_alike(power: float) -> float:
    """1 over the chance that two samples are of one cell, of the cells of small broad data."""
    weights = np.arange(1.0, len(SMALL.broad.cells) + 1) ** -power
    return weights.sum() ** 2 / (weights**2).sum()


def test_a_lab_that_learned_nothing_says_so_first() -> None:
    """On the page and on the terminal, which says it in the colour of a warning."""
    runs = made(bases=1)
    answers = [name for name in runs if name.startswith(("right_", "base_"))]
    warning = warning_of(runs.assign(**dict.fromkeys(answers, 0.0)))
    assert warning == "nothing was learned; the figures mean nothing"
    assert warning_of(runs) == ""
    found = lab_document("smoke", "lab.svg", list(shown_of(runs)), warning)
    assert [type(block) for block in found.blocks[:3]] == [Section, Headline, Image]
    assert f"**smoke: {warning}**" in markdown(found)


def test_norm_concentration_and_gains_are_shown_and_then_the_differences() -> None:
    """Of A to D, each a mean over bases; with one base there is no interval to announce."""
    section, table, figures = shown_of(made())
    assert section.title == "small decoders, 3 bases: concentration, and answers gained"
    assert [column.head for column in table.columns[1:]] == [
        "rel. norm", "conc.", "narrow", "broad", "held out",
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == [
        "A  original", "B  benchmark-aligned", "C  coverage-expanding", "D  repetition",
    ]  # fmt: skip
    assert table.rows[1][1:] == ["0.021", "0.503", "+0.100", "+0.100", "+0.100"]
    assert figures.title == "concentration, mean over bases and 95 % interval"
    assert figures.rows[0] == FigureRow("B - C", "+0.065 (+0.065 to +0.065)")
    *_, alone = shown_of(made(bases=1))
    assert alone.title == "concentration, one base, so no interval"


def shown_of(runs: pd.DataFrame) -> Iterator[Any]:
    return sections(runs, "answers gained", ("narrow", "broad", "held_out"))


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Through Parquet."""
    tables = {"runs": made(), "comparisons": pd.DataFrame({"verdict": ["not distinguished"]})}
    write(tables, tmp_path)
    for name, table in read(tmp_path).items():
        pd.testing.assert_frame_equal(table, tables[name])


def test_the_page_says_what_the_tables_say(tmp_path: Path) -> None:
    """B wins and loses as planted; broad data are said to be less concentrated only if they are."""
    comparisons = pd.DataFrame(columns=["base", "regime_first", "regime_second", "verdict"])
    runs = with_controls(made())
    text = lab_page.page({"runs": runs, "comparisons": comparisons})
    assert "B wins on its benchmark" in text
    assert "does not clearly lose breadth" in text
    assert "are **not** seen to be less concentrated" in text
    lower = runs.copy()
    lower.loc[lower["regime"] == "C", OUTCOME] -= 0.1 + 0.001 * lower["seed"]
    lower[OUTCOME] += 0.001 * lower["base"].str[-1].astype(int) * (lower["regime"] == "C")
    assert "are **not** seen" not in lab_page.page({"runs": lower, "comparisons": comparisons})
    for draw in (figure, lab_page.figure):
        draw(runs, tmp_path / "lab.svg")
        assert "</svg>" in (tmp_path / "lab.svg").read_text()
        (tmp_path / "lab.svg").unlink()
