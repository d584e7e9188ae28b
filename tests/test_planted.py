"""A small version of docs/planted.md: known changes are found, and intervals hold what they should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import planted


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_planted_deltas_are_recovered_above_the_floor(dtype):
    """At 6 times the rounding of BF16 (F32: far above), spikes are exact and concentrations within the margin."""
    for rank, share in planted.PLANTS:
        one = planted.plant(dtype, 1e-2, rank, share)
        assert one.recovered, one
        assert one.found["floor_ratio"] > 5
        assert one.found["participation_ratio"] == pytest.approx(one.true["participation_ratio"], rel=0.07)


def test_below_the_gate_concentration_is_too_low_and_never_too_high():
    """Rounding hides a concentrated change, it does not make one: noise stays at 0, a planted rank reads low."""
    for rank, share in planted.PLANTS[:3]:
        one = planted.plant("BF16", 1e-3, rank, share)
        assert one.found["floor_ratio"] < planted.ROUNDING
        assert one.off < (0.01 if rank == 0 else -0.1)


@pytest.mark.parametrize("profile", planted.PROFILES)
def test_planted_depth_is_recovered(profile):
    """Energies by layer, attention and MLP, tokens and shared directions of an audited pair are those planted."""
    true, found = planted.depth(planted.PROFILES[profile], "F32", 1e-2)
    assert found == pytest.approx(true, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("number", [1, 3])
def test_intervals_hold_a_known_figure(number):
    """Of 200 samples of 8 layers: the expanded interval of a median or ratio holds the truth, plain ones less often."""
    held = planted.coverage(planted.worlds()[number], 8, 200)
    assert held["expanded"] > 0.90
    assert held["percentile"] <= held["expanded"]


def test_the_page_is_the_scripts():
    """docs/planted.md holds what the script makes: the row of one format and norm, and the depth of one profile."""
    page = planted.DOCUMENT.read_text(encoding="utf-8")
    assert planted.COMMAND in page
    rows = planted.matrices_part(planted.planted((1e-2,), ("F16",))).splitlines()
    assert all(row in page for row in rows)
    assert planted.depth_part([("halving with depth", "F32", 1e-2)]).splitlines()[-1] in page
