"""The charts of a page hold the numbers of the report."""

import json
from functools import cache
from pathlib import Path

import families
import numpy as np
import pyarrow.parquet as pq
import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st

from shadow.outputs.page.pair import FEWEST, LEADING, MOST, kept_ranks, metrics_of, read_pair
from shadow.telling.reading import AuditReport


def measured(folder: Path) -> dict:
    """The data of the charts of one report."""
    return json.loads(read_pair(AuditReport(folder), "here", 0, 1).data)


drawn = cache(measured)  # of reports that no test changes


def rows(folder: Path, name: str = "matrices") -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def cells_of(data: dict) -> dict[tuple, int]:
    return {
        place: index
        for index, place in enumerate(
            zip(data["component"], data["module"], data["layer"], strict=True)
        )
    }


# ---- the numbers


@pytest.mark.parametrize("subject", ["delta", "base", "tuned"])
def test_every_value_of_the_heat_map_is_the_rows(small, subject):
    """A cell of a dense model is a row of matrices.parquet, every column to four digits."""
    data = drawn(small)
    cells = cells_of(data)
    of_subject = [row for row in rows(small) if row["subject"] == subject]
    assert len(of_subject) == len(cells) == 25
    named = metrics_of(subject)
    assert set(data["values"][subject]) == {
        name for name in named if any(row[name] is not None for row in of_subject)
    }
    for row in of_subject:
        cell = cells[row["component"], row["module"], row["layer"]]
        for name, values in data["values"][subject].items():
            assert values[cell] == (
                None if row[name] is None else pytest.approx(row[name], rel=1e-3, abs=1e-12)
            ), name
        for name in ("rows", "cols", "tensor"):
            assert data[name][cell] == row[name]


def test_the_shift_is_tuned_minus_base_before_rounding(small):
    """The shift of the effective rank is the delta's column: four digits of both lack it."""
    data = drawn(small)
    shifts = [row for row in rows(small) if row["subject"] == "delta"]
    for row in shifts:
        cell = cells_of(data)[row["component"], row["module"], row["layer"]]
        shift = data["shift"]["effective_rank"][cell]
        assert shift == pytest.approx(row["effective_rank_shift"], rel=1e-3)


# ---- spectra


@given(st.integers(1, 20_000), st.integers(FEWEST, MOST))
def test_thinned_ranks_keep_the_ends(count, points):
    """Ascending without repeats, at most points of them, all of the first, and the last."""
    ranks = kept_ranks(count, points)
    assert (np.diff(ranks) > 0).all()
    assert len(ranks) <= min(count, points)
    assert list(ranks[: min(LEADING, count)]) == list(range(min(LEADING, count)))
    assert ranks[-1] == count - 1


def test_thinned_curves_stay_close_to_the_whole_ones():
    """Lines between the kept points, on log axes, are within 2 % of spiked bulks and power laws."""
    ranks = np.arange(1, 3585)
    bulk = families.spectrum(np.random.default_rng(0), 3584, 3584, 1.0, spikes=5)
    for sigma in (bulk, ranks**-0.7):
        kept = kept_ranks(3584, MOST)
        line = np.exp(np.interp(np.log(ranks), np.log(ranks[kept]), np.log(sigma[kept])))
        assert np.abs(line / sigma - 1)[:-3].max() < 0.02
        assert len(kept) <= MOST


def test_curves_are_the_singular_values_at_their_ranks(small):
    """Every curve against spectra.parquet."""
    data = drawn(small)
    cells = cells_of(data)
    whole = {
        (*(row[key] for key in ("component", "module", "layer")), row["subject"]): row["sigma"]
        for row in rows(small, "spectra")
    }
    for (*place, subject), sigma in whole.items():
        curve = data["spectra"]["curves"][str(cells[tuple(place)])]
        ranks = np.array(data["spectra"]["ranks"][str(len(sigma))])
        assert curve[subject] == pytest.approx([sigma[rank - 1] for rank in ranks], rel=1e-3)


def test_layers_beyond_the_last_that_is_drawn_are_counted(tmp_path):
    """A number of a layer may be any; a thousand are drawn."""
    rows = [reports.delta(0.4, reports.place(layer, "mlp.up")) for layer in (0, 999, 1000)]
    folder = reports.write(tmp_path / "a", rows)
    section = read_pair(AuditReport(folder), "here", 0, 1)
    assert json.loads(section.data)["layer"] == [0, 999]
    assert "1 cells of layers from 1,000 on" in str(section)


def test_a_report_without_spectra_has_a_page(tmp_path):
    """--no-spectra: no curves, everything else."""
    folder = families.small(tmp_path / "base..tuned", layers=1, spectra=False)
    data = drawn(folder)
    assert data["spectra"] == {"ranks": {}, "curves": {}}
    assert data["values"]["delta"]["concentration"]
