"""The law of width: recovered from planted values, and refused where it does not hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import laws
import width_page
from laws import WidthFigure, counted, dropped, law

VALUE = WidthFigure("planted", "planted", lambda runs: runs["value"])


def planted(
    value: dict[int, tuple[float, float]], bases: int = 4, noise: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Last states of A to D, two seeds each; value: (broad, narrow) by width."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "base": f"w{width}-{base}", "scale": f"w{width}", "width": width, "regime": regime,
            "seed": run, "share": 1.0, "kind": "trained", "treatment": "adamw", "warm": True,
            "base_original": 0.95, "base_broad": 0.9,
            "value": (narrow if regime == "B" else broad) + noise * rng.standard_normal(),
        }
        for width, (broad, narrow) in value.items()
        for base in range(bases)
        for regime in "ABCD"
        for run in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def line(slope: float) -> dict[int, tuple[float, float]]:
    """Means at three widths on a line over the doublings of the width; narrow data add 0.1."""
    rises = {width: slope * np.log2(width / 64) for width in (64, 128, 256)}
    return {width: (0.2 + rise, 0.3 + rise) for width, rise in rises.items()}


def test_a_planted_law_is_recovered() -> None:
    """broad + slope log2(width/64) + difference, exactly; every left-out width is predicted without
    an error.
    """
    found = law(VALUE, planted(line(0.08)))
    assert (found.broad, found.slope, found.difference) == pytest.approx((0.2, 0.08, 0.1))
    assert found.slope / found.difference == pytest.approx(0.8)
    assert [one.wrong for one in found.left_out] == [0, 0, 0]
    assert [one.in_differences for one in found.left_out] == pytest.approx([0, 0, 0], abs=1e-9)
    assert found.auc_law == 1
    assert found.carries


def test_a_bound_without_a_width_misleads_where_the_width_moves_more_than_the_data() -> None:
    """Broad at 128 has more than narrow at 64: 6 of the 9 pairs of widths are in order, and all are
    after the law.
    """
    found = law(VALUE, planted(line(0.12)))
    assert found.auc_pooled == pytest.approx(6 / 9)
    assert found.auc_law == 1


def test_a_bend_shows_as_an_error_on_the_widest() -> None:
    """Flat to 256, then a jump of .3 at 512: a line through the rest says .2 there and takes broad
    runs for narrow.
    """
    found = law(VALUE, planted({64: (0.2, 0.3), 128: (0.2, 0.3), 256: (0.2, 0.3), 512: (0.5, 0.6)}))
    last = found.left_out[-1]
    assert (last.broad_error, last.narrow_error) == pytest.approx((-0.3, -0.3))
    assert last.in_differences == pytest.approx(3)
    assert (last.wrong, last.runs) == (24, 32)
    assert not found.carries


def test_the_direction_may_be_the_other_way() -> None:
    """Narrow data that lower a figure are told as well."""
    found = law(VALUE, planted({64: (3.4, 2.9), 128: (3.3, 2.8), 256: (3.2, 2.7)}))
    assert found.difference == pytest.approx(-0.5)
    assert [one.wrong for one in found.left_out] == [0, 0, 0]
    assert found.auc_law == 0


def test_differences_are_in_standard_deviations_of_seeds() -> None:
    """Noise of .01 and B - C of .1: ten standard deviations, from 160 runs of one width."""
    found = law(VALUE, planted({64: (0.2, 0.3), 128: (0.2, 0.3)}, bases=40, noise=0.01))
    assert found.widths[0].in_spreads == pytest.approx(10, rel=0.15)
    assert found.left_out == []
    assert not found.carries


def test_a_base_that_has_not_learned_is_dropped_and_told() -> None:
    """It counts in no figure, and is named with the answers that it got right."""
    runs = planted({64: (0.2, 0.3), 128: (0.2, 0.3)})
    cold = runs["base"] == "w128-2"
    runs.loc[cold, "base_broad"] = 0.6
    runs.loc[cold, "value"] = 100.0
    (found,) = dropped(runs).to_dict("records")
    assert (found["base"], found["base_original"], found["base_broad"]) == ("w128-2", 0.95, 0.6)
    assert law(VALUE, counted(runs)).broad == pytest.approx(0.2)


def test_the_figures_are_read_from_the_columns_of_a_lab() -> None:
    """Logarithms, ratios and signs by hand; a figure below zero has no logarithm."""
    row = {
        "layers_concentration": 0.3, "layers_excess_purity": 0.05, "participation_share": 0.5,
        "layers_top4_energy": 0.4, "layers_top20_energy": 0.8, "layers_spikes_sharp": 3.0,
        "layers_alignment_left": 1.5, "layers_alignment_left_null": 1.2, "attention_to_mlp": 0.7,
        "allocation_attn.o": 1.2, "allocation_attn.q": 0.8,
        "embedding_row_participation_ratio": 40.0, "layers_relative_norm": 0.06,
    }  # fmt: skip
    runs = pd.DataFrame([row, {**row, "layers_excess_purity": -0.01}])
    told = {figure.name: figure.value(runs) for figure in laws.FIGURES}
    assert {name: value.iloc[0] for name, value in told.items()} == pytest.approx(
        {
            "concentration": 0.3, "ln equivalent directions": np.log(20),
            "ln PR over null": np.log(0.5), "top-4 energy": 0.4, "top-20 energy": 0.8,
            "spikes": 3.0, "ln alignment over null": np.log(1.25),
            "ln attention to MLP": np.log(0.7), "ln output over query": np.log(1.5),
            "ln token coverage": np.log(40), "relative norm": 0.06,
        }
    )  # fmt: skip
    assert np.isnan(told["ln equivalent directions"].iloc[1])


def test_a_column_that_older_runs_lack_is_missing():
    """Runs made before a column was added have no value of it, and no law."""
    runs = planted({64: (0.2, 0.3), 128: (0.2, 0.3)})
    told = {figure.name: figure.value(runs) for figure in laws.FIGURES}
    assert told["spikes"].isna().all()
    assert told["ln output over query"].isna().all()


def test_a_width_that_a_figure_lacks_is_a_dash_in_its_column():
    """Runs of 64 made before a column was added: the other widths stay under their heads."""
    every = planted(dict.fromkeys((64, 128, 256, 512), (0.2, 0.3)))
    whole, lacking = law(VALUE, every), law(VALUE, every[every["width"] > 64])
    told = width_page.left_out_section([whole, lacking])
    assert "| figure | 64 | 128 | 256 | 512 |" in told
    assert "| planted | 0 of 32 | 0 of 32 | 0 of 32 | 0 of 32 |" in told
    assert "| planted | - | 0 of 32 | 0 of 32 | 0 of 32 |" in told


@pytest.mark.generated
def test_the_published_page_is_made_from_the_published_table():
    """docs/width.md holds no other number."""
    docs = Path(__file__).parents[2] / "docs"
    runs = pd.read_parquet(docs / "lab" / "widths.parquet")
    assert width_page.page(runs) == (docs / "width.md").read_text(encoding="utf-8")
