"""Known changes are found, and intervals hold what they should."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from effort import every

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import known_changes

from shadow.summary.gate_figures import ROUNDING


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_planted_deltas_are_recovered_above_the_floor(dtype):
    """At 6 times BF16's rounding spikes are exact and concentrations within the margin."""
    for rank, share in known_changes.PLANTS:
        one = known_changes.plant(dtype, 1e-2, rank, share)
        assert one.recovered, one
        assert one.found["floor_ratio"] > 5
        assert one.found["participation_ratio"] == pytest.approx(
            one.true["participation_ratio"], rel=0.07
        )


def test_below_the_gate_concentration_is_too_low_and_never_too_high():
    """Rounding hides a concentrated change and makes none: noise stays at 0, a rank reads low."""
    for rank, share in known_changes.PLANTS[:3]:
        one = known_changes.plant("BF16", 1e-3, rank, share)
        assert one.found["floor_ratio"] < ROUNDING
        assert one.off < (0.01 if rank == 0 else -0.1)


@pytest.mark.parametrize("norm", every(3, [0.25, 0.75, 0.1]))
@pytest.mark.parametrize("plant", every(4, known_changes.SUBSPACES))
def test_what_is_planted_in_subspaces_is_what_two_svds_find(plant, norm):
    """The closed forms are the columns by NumPy's SVDs in float64; the norm is as asked for."""
    W, D, angle, true = known_changes.subspaces_before(plant, norm)
    assert true == pytest.approx(
        {name: reference.subspaces(W, W + D)[name] for name in true}, abs=1e-6
    )
    assert list(true) == [name for name in true if name in known_changes.COLUMNS]
    assert len(true) == len(known_changes.COLUMNS)
    assert np.linalg.norm(D) == pytest.approx(norm * np.linalg.norm(W))
    assert np.cos(np.radians(angle)) ** 2 == pytest.approx(
        true["overlap_left"] if plant == "turned" else 1
    )


@pytest.mark.parametrize(
    ("dtype", "norm"),
    [("F32", 0.75), ("F32", 1e-6), ("BF16", 0.75), ("BF16", 0.25), ("BF16", 1e-2)],
)
@pytest.mark.parametrize(
    "plant", every(2, [name for name in known_changes.SUBSPACES if "no gap" not in name])
)
def test_planted_subspaces_are_recovered_above_the_floor(plant, dtype, norm):
    """Down to 6 times the rounding all columns and the angle are planted; alignments to 5 %."""
    one = known_changes.plant_subspaces(plant, dtype, norm)
    assert one.found["floor_ratio"] > 5
    assert all(map(one.holds, known_changes.COLUMNS)), one
    assert one.angle_holds
    for name in ("alignment_left", "alignment_right"):
        assert one.found[name] == pytest.approx(one.true[name], rel=0.05, abs=0.05)


@pytest.mark.parametrize("number", every(2, [3, 1]))
def test_intervals_hold_a_known_figure(number):
    """Of 200 samples of 8 layers the expanded interval holds the truth, plain ones less often."""
    held = known_changes.coverage(known_changes.worlds()[number], 8, 200)
    assert held["expanded"] > 0.90
    assert held["percentile"] <= held["expanded"]
