"""Along how many directions: structure beyond noise, alignment, and bounds of the rank."""

import math

import numpy as np
import pytest
from finding_cases import RANK_8, answers, codes, model, row, summary_of

from shadow.summary.layer_medians import TOPS

# structure


# bounds of the rank


def figures_of(S, N, noise):
    """By NumPy, of an update in noise of a share of the energy."""
    D = math.sqrt(1 - noise) * S / np.linalg.norm(S) + math.sqrt(noise) * N / np.linalg.norm(N)
    sigma = np.linalg.svd(D, compute_uv=False)
    q = np.cumsum(sigma**2) / (sigma**2).sum()
    figures = {f"rank_{t}": int(np.searchsorted(q, t / 100) + 1) for t in (90, 95, 99)}
    figures |= {f"top{k}_energy": float(q[k - 1]) for k in TOPS}
    return figures | {
        "numerical_rank": int((sigma > 3e-4 * sigma[0]).sum()), "rows": len(D), "cols": len(D.T),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "noise"), [(8, 0.0), (8, 0.05), (8, 0.4), (16, 0.3), (64, 0.05), (128, 0.02)]
)
def test_the_rank_of_a_planted_update_is_not_below_its_bound(tmp_path, rank, noise):
    """NumPy's own spectra of an update of known rank in noise of a known share of the energy."""
    rng = np.random.default_rng([rank, int(1000 * noise)])
    S = rng.standard_normal((256, rank)) @ rng.standard_normal((rank, 320))
    figures = figures_of(S, rng.standard_normal((256, 320)), noise)
    inside = summary_of(tmp_path, model(1, kept=1 - noise, **figures)).inside_layers
    assert rank <= inside["rank_most"]


@pytest.mark.parametrize(("over", "kept", "known"), [
    (1.0, 0.98, 4), (1.005, 0.98, 4), (1.04, 0.98, 0), (1.0, 0.6, 0), (0.95, 0.8, 4),
    (0.0, None, 0),
])  # fmt: skip
def test_a_rank_is_known_where_little_of_the_update_can_hide(tmp_path, over, kept, known):
    """Beyond 8 directions there is what rounding leaves, times over: more may be the update's."""
    few = {"kept_reason": None if kept else "few_changed"}  # whose rank is that of a few entries
    figures = {**RANK_8, "rest_over_rounding": over, "kept": kept, **few}
    deltas = [row(layer, "mlp.up", **figures) for layer in range(4)]
    inside = summary_of(tmp_path, deltas).inside_layers
    assert inside["rank_known"] == known
    assert inside["rank_most"] == (8 if known else 64 if kept else None)


def test_full_rank_is_not_taken_for_an_adapter_where_little_was_kept(tmp_path):
    """64 directions of half an update, a third of it kept: no bound below the short side."""
    rng = np.random.default_rng(3)
    S = rng.standard_normal((256, 64)) * np.arange(1, 65) ** -0.5 @ rng.standard_normal((64, 256))
    figures = figures_of(S, rng.standard_normal((256, 256)), 0.84)
    inside = summary_of(tmp_path, model(1, kept=0.32, **figures)).inside_layers
    assert inside["rank_most"] == 256


def test_the_gate_and_the_finding_tell_one_rank(tmp_path):
    """An exact product of rank 8 that was added in F32: 40 of its 64 directions are above the floor
    of the singular values, all but 8 of them rounding.
    """
    exact = {"kept": None, "kept_reason": "nothing_rounded", "numerical_rank": 40}
    found = summary_of(tmp_path, model(**{**RANK_8, **exact, "rank_90": 7}))
    (gate,) = [gate for gate in found.gates if gate.name == "rank"]
    assert (gate.figure, gate.passed) == (8 / 64, False)
    assert "low_rank" in codes(found.finding)
    assert answers(found.finding)["merged_adapter"].answer == "fits"
    assert found.inside_layers["rank_most"] == 8


def test_a_spectrum_that_falls_fast_is_no_limit_of_the_rank(tmp_path):
    """20 of 64 directions hold all but a thousandth of it, and the rest is not like noise."""
    exact = {"kept": None, "kept_reason": "nothing_rounded", "numerical_rank": 64}
    energies = {f"top{k}_energy": min(0.999, k / 18) for k in TOPS}
    found = summary_of(tmp_path, model(**exact, **energies))
    assert found.inside_layers["rank_most"] == 64
    assert next(gate for gate in found.gates if gate.name == "rank").figure == 1.0
