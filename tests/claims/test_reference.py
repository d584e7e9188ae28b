"""What is shipped of the lab says one thing in all its files, and labels follow from it."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from calibration import DATA, all_rates, fit, pretrained_rates, pretrained_verdicts, reference_csv
from calibration import reference as reference_table
from lab_page import page, published
from shadow.claims import reference
from shadow.claims.gates import Gate
from shadow.claims.label import footprint, label
from shadow.claims.reference import (
    AXES,
    OPTIMIZERS,
    Bound,
    Trainings,
    calibration,
    choose,
    points,
    position,
    word,
)
from shadow.lab.estimates import final
from shadow.summary.figures import PairFigures

ROOT = Path(__file__).parents[2]
BOUNDS = {name: Bound(0.6, 0.4) if way > 0 else Bound(4.0, 6.0) for name, way in AXES.items()}
TRAININGS = Trainings(64, "adamw", 3, 5, (0.02, 0.2), BOUNDS)
NORM = {"relative_norm": 0.1}
HIGH = NORM | {name: 0.9 if way > 0 else 2.0 for name, way in AXES.items()}
LOW = NORM | {name: 0.1 if way > 0 else 9.0 for name, way in AXES.items()}
MIDDLE = NORM | {name: 0.5 if way > 0 else 5.0 for name, way in AXES.items()}
TOKENS, ALLOCATION = "embedding_row_participation_ratio", "attention_to_mlp"


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return published()


@pytest.mark.generated
def test_the_page_is_that_of_the_tables(tables: dict[str, pd.DataFrame]) -> None:
    """docs/lab.md is made from docs/lab/*.parquet and holds no other number."""
    assert (ROOT / "docs" / "lab.md").read_text(encoding="utf-8") == page(tables)


def test_the_reference_is_that_of_the_tables(tables: dict[str, pd.DataFrame]) -> None:
    """runs.csv has the trainings of the tables; calibration.json the bounds fitted to it, and the
    tables' rates.
    """
    trainings = reference_table(tables["runs"])
    assert (ROOT / "registry" / "reference" / "runs.csv").read_text(
        encoding="utf-8"
    ) == reference_csv(trainings)
    shipped = calibration()
    again = pd.DataFrame(reference.runs())
    assert shipped.trainings == fit(again) == fit(trainings)
    compared = pd.read_parquet(ROOT / "docs" / "lab" / "pretrained-comparisons.parquet")
    assert shipped.rates == all_rates(tables, compared)


def test_the_rates_of_the_pretrained_decoder_do_not_depend_on_which_run_comes_first() -> None:
    """B against C of another order is the same verdict turned round; what errs is counted, and a
    pair in two formats is one case, which errs if it does in either.
    """
    rows = [
        ("B-adamw-0", "C-adamw-0", "F32", "more concentrated"),
        ("C-adamw-0", "B-adamw-1", "F32", "less concentrated"),
        ("C-adamw-0", "B-adamw-1", "BF16", "more concentrated"),
        ("B-adamw-0", "C-adamw-1", "F32", "not distinguished"),
        ("D-adamw-0", "A-adamw-1", "F32", "less concentrated"),
        ("A-adamw-0", "A-adamw-1", "F32", "not distinguished"),
        ("B-adamw-0", "B-adamw-1", "F32", "different, below the margin"),
    ]
    compared = pd.DataFrame(rows, columns=["first", "second", "stored", "verdict"]).assign(
        difference=0.01, low=0.005, high=0.02
    )
    counted = {
        one.what.split(",")[0]: (one.errors, one.cases) for one in pretrained_rates(compared)
    }
    called = "called more or less concentrated"
    assert counted == {
        f"compare (AdamW): two seeds of one regime {called}": (0, 2),
        f"compare (AdamW): repetition (D) and its control (A) {called}": (1, 1),
        "compare (AdamW): narrow (B) not called more concentrated than broad (C)": (2, 3),
        "compare (AdamW): narrow (B) called less concentrated than broad (C)": (1, 3),
    }
    turned = pretrained_verdicts(compared).iloc[1]
    assert (turned["regime_first"], turned["difference"], turned["low"]) == ("B", -0.01, -0.02)


def test_the_reference_has_what_a_label_takes() -> None:
    """Ten bases of one size at least, and bounds for every optimiser and for none told."""
    runs = pd.DataFrame(reference.runs())
    assert runs.groupby("short_side")["base"].nunique().max() >= 10
    assert (
        {None, "adamw"} <= {one.optimizer for one in calibration().trainings} <= {None, *OPTIMIZERS}
    )
    assert all(set(one.bounds) == set(AXES) for one in calibration().trainings)


def test_the_axes_are_as_independent_as_the_evidence_says(tables: dict[str, pd.DataFrame]) -> None:
    """Rank correlations with concentration and AUCs of the stacking of layers, from the tables: the
    numbers that docs/evidence.md has.
    """
    last = final(tables["runs"])
    runs = last[
        (last["kind"] == "trained")
        & last["warm"].astype(bool)
        & last["method"].isin(OPTIMIZERS)
        & (last["width"] == 64)
    ]

    def with_concentration(name: str) -> float:
        pair = runs[["concentration", name]].astype(float)
        return abs(float(pair.corr("spearman").iloc[0, 1]))

    same = ("stable_rank", "top4_energy", "participation_share", "spike_energy")
    correlations = [with_concentration(name) for name in same]
    told = [f"{min(correlations):.2f} to {max(correlations):.2f}"]
    told.append(" and ".join(f"{with_concentration(name):.2f}" for name in (TOKENS, ALLOCATION)))
    aucs = []
    for way in ("reading", "writing"):
        stacked = f"{way}_participation_ratio_stacked"
        told.append(f"{with_concentration(stacked):.2f} for what")
        ratio = runs[stacked].astype(float) / runs[f"{way}_participation_ratio"].astype(float)
        data = runs["regime"].map(DATA).where(runs["method"] == "adamw")
        narrow, broad = (ratio[data == kind].dropna() for kind in ("narrow", "broad"))
        wins = mannwhitneyu(narrow, broad).statistic / len(narrow) / len(broad)
        aucs.append(f"{wins:.2f}")
    told.append(f"AUC {' and '.join(aucs)}")
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert [part for part in told if part not in evidence] == []


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (HIGH, "concentrated"),
        (LOW, "distributed"),
        (MIDDLE, "mixed"),
        ({**MIDDLE, "concentration": 0.9}, "concentrated"),
        ({**LOW, "concentration": 0.9}, "mixed"),
        ({**HIGH, TOKENS: 9.0}, "mixed"),
        ({**HIGH, ALLOCATION: 0.1}, "mixed"),
        ({**HIGH, TOKENS: 6.0, ALLOCATION: 0.4}, "concentrated"),
        ({**HIGH, TOKENS: None, ALLOCATION: None}, "concentrated"),
        ({**HIGH, "concentration": 0.6}, "mixed"),
        ({**LOW, TOKENS: 2.0}, "mixed"),
        ({**MIDDLE, TOKENS: 2.0, ALLOCATION: 0.9}, "mixed"),
        ({**HIGH, "relative_norm": 0.201}, "not assessable"),
        ({**HIGH, "relative_norm": 0.019}, "not assessable"),
        ({**HIGH, "relative_norm": None}, "not assessable"),
        ({**HIGH, "relative_norm": 0.02}, "concentrated"),
    ],
)
def test_concentration_decides_and_the_other_axes_may_object(
    figures: dict[str, float | None], expected: str
) -> None:
    """A bound itself is not beyond; an axis without a figure does not object; and nothing is said
    of a norm that no training has.
    """
    assert word(figures, TRAININGS)[0] == expected


@given(st.fixed_dictionaries({name: st.floats(0, 10) for name in AXES}))
def test_words_are_opposite_for_nobody(figures: dict[str, float]) -> None:
    """A word never goes against any axis, and the reason has concentration and what objects."""
    found, reason = word({**NORM, **figures}, TRAININGS)
    sides = {name: points(name, value, BOUNDS[name]) for name, value in figures.items()}
    own = sides["concentration"]
    expected = "mixed"
    if own and -own not in sides.values():
        expected = "concentrated" if own > 0 else "distributed"
    assert found == expected
    assert f"{figures['concentration']:.2f}" in reason
    objecting = bool(own) and sides[TOKENS] == -own
    assert (f"token coverage of {figures[TOKENS]:.2g}" in reason) == objecting
    assert ("outside the range of the" in reason) == (bool(own) and -own in sides.values())


def test_a_pair_is_held_against_its_size_or_none() -> None:
    """Within half an octave, the nearer of two; beyond, nothing; where its optimiser has no bounds,
    those of any.
    """
    shipped = (
        TRAININGS,
        Trainings(128, "adamw", 1, 1, (0, 1), BOUNDS),
        Trainings(64, None, 1, 1, (0, 1), BOUNDS),
    )
    side = {
        width: found.short_side if (found := choose(shipped, width, "adamw")) else None
        for width in (40, 50, 85, 100, 180, 896)
    }
    assert side == {40: None, 50: 64, 85: 64, 100: 128, 180: 128, 896: None}
    assert choose(shipped, 64, "muon") is choose(shipped, 64, None) is shipped[2]
    assert choose(shipped, 128, None) is None
    assert choose(shipped, None, "adamw") is None


def test_a_position_is_counted() -> None:
    """Shares of the narrow and the broad trainings below, by hand, and the nearest three of the
    size and optimiser.
    """
    rows = [
        ("narrow", 0.5),
        ("narrow", 0.7),
        ("broad", 0.2),
        ("broad", 0.3),
        ("broad", 0.6),
        ("other", 0.55),
    ]
    first = replace(reference.runs()[0], short_side=64, optimizer="adamw")
    table = [replace(first, data=data, concentration=value) for data, value in rows]
    table.append(replace(table[0], short_side=128, concentration=0.561))
    found = position(0.56, Trainings(64, "adamw", 2, 3, (0, 1), BOUNDS), table)
    assert (found.narrow_below, found.broad_below) == (0.5, pytest.approx(2 / 3, abs=1e-4))
    assert [one.concentration for one in found.nearest] == [0.6, 0.5, 0.7]


def test_the_label_goes_gates_noise_reference() -> None:
    """In this order: a failed gate, no null, like noise, no reference, the reference's word."""
    noise = {**HIGH, "concentration": 0.01, "spiked": 0.0}
    assert label(["why"], noise, TRAININGS, "") == ("not assessable", "why")
    assert (
        label([], {**HIGH, "concentration": None, "spiked": None}, TRAININGS, "")[0]
        == "not assessable"
    )
    assert label([], noise, TRAININGS, "")[0] == "indeterminate"
    assert label([], {**noise, "spiked": 0.5}, TRAININGS, "")[0] != "indeterminate"
    assert label([], {**HIGH, "spiked": 1.0}, None, "no reference")[0] == "not assessable"
    assert label([], {**HIGH, "spiked": 1.0}, TRAININGS, "")[0] == "concentrated"


@pytest.mark.parametrize(
    ("components", "part"),
    [
        ({"language"}, "higher than in all"),
        ({"language", "vision"}, "only has trainings of text decoders"),
        ({"vision"}, "only has trainings of text decoders"),
    ],
)
def test_only_text_decoders_have_a_word(components: set[str], part: str) -> None:
    """The figures of a pair are those of all its matrices, and the lab has no vision tower."""
    given = {"spiked": 1.0, "short_side": 64, "matrices": 4, "effective_layers": 2}
    names = dict.fromkeys(column.name for column in fields(PairFigures))
    figures = PairFigures(**{**names, **HIGH, **given})
    changed = Gate(name="changed", figure=4, threshold=1, passed=True, reason="4 matrices changed")
    record = SimpleNamespace(
        figures=figures,
        tier="full",
        estimated=False,
        intervals={},
        modules=[SimpleNamespace(component=component) for component in components],
    )
    assert part in footprint(record, [changed]).label_reason


def test_the_demo_is_of_the_reference() -> None:
    """registry/demo/training.json names its runs of the lab, which are trainings of runs.csv."""
    told = json.loads((ROOT / "registry" / "demo" / "training.json").read_text(encoding="utf-8"))[
        "lab"
    ]
    rows = {(run.base, f"{run.regime}, {run.treatment}, {run.seed}") for run in reference.runs()}
    assert {(told["base"], told["narrow"]), (told["base"], told["broad"])} <= rows
