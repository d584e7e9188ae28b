"""A small benchmarks/rounding.py: known updates come back, or are refused for good reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rounding as benchmark


def entry(kind, history, dtype="BF16", norm=2e-3):
    W, D = benchmark.planted(kind, np.random.default_rng([7, *kind.encode()]))
    return benchmark.judged(kind, history, dtype, norm, W, D)


@pytest.mark.parametrize(
    "kind", ["uneven rows 0.5", "uneven weights, both", "embeddings", "rank 1", "1/i"]
)
def test_planted_updates_come_back(kind):
    """Of a relative norm of .002 in BF16, norm and 1/X to 12 %, or 1/X is null."""
    one = entry(kind, "stored base")
    assert one.verdict in ("right", "norm right")
    assert abs(one.stored_error) > 0.12
    assert abs(one.norm_error) < 0.03


def test_what_cannot_be_undone_is_refused():
    """With t3 entries X / kept² would be off by a half; of one direction in noise 1/X a sixth."""
    assert entry("heavy tails, t3", "stored base").verdict == "refused"
    assert entry("heavy tails, t3", "stored base", norm=1e-2).verdict == "right"
    one = entry("1/i, half noise", "stored base")
    assert (one.verdict, one.purity) == ("norm right", False)


@pytest.mark.parametrize("history", ["master copy", "as weights", "decay"])
def test_histories_that_the_model_does_not_have_are_refused(history):
    """In BF16 at .001, and in F16 at .00012."""
    for dtype, norm in (("BF16", 1e-3), ("F16", 1.2e-4)):
        assert entry("even rows", history, dtype, norm).verdict == "refused"
