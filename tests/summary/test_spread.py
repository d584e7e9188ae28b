"""Where the update went: entropy and ratios over layers against the definitions, and for what
they are for.
"""

import numpy as np
import pandas as pd
import pytest
from finding_cases import MUST, model, report
from reports import columns, write

from shadow.summary.bootstrap import draws
from shadow.summary.gate_figures import gate_figures
from shadow.summary.making import Sum, depth_entropy, effective_layers, ratio, record_of
from shadow.summary.tables import SUMMARISED, compared_layers, read_rows
from shadow.telling.reading import AuditReport

RNG = np.random.default_rng(0)


def one(statistic, energies):
    return statistic(np.array(energies, dtype=float))


@pytest.mark.parametrize("energies", [[], [0.0], [0.0, 0.0], [1.0]])
def test_what_has_no_depth_has_no_figures(energies):
    """Without energy nothing is defined; a single layer has no entropy."""
    assert np.isnan(one(depth_entropy, energies))
    if not any(energies):
        assert np.isnan(one(effective_layers, energies))


def test_ratios_of_draws_are_as_if_their_layers_were_written_out():
    """Every draw, layer by layer."""
    energies, others = RNG.lognormal(size=9), RNG.lognormal(size=9)
    counts = draws((9,))[:100]
    quotients = ratio(Sum(energies, 1.0), Sum(others, 2.0), counts)
    for quotient, count in zip(quotients, counts, strict=True):
        part, whole = (np.repeat(some, count).sum() for some in (energies, others))
        assert quotient == pytest.approx((part + 1) / (whole + 2))


def test_entropy_is_that_of_the_shares():
    """Against the definition."""
    energies = RNG.lognormal(size=9)
    p = energies / energies.sum()
    entropy = -(p * np.log(p)).sum()
    found = [one(depth_entropy, energies), one(effective_layers, energies)]
    assert found == pytest.approx([entropy / np.log(9), np.exp(entropy)])


def test_frozen_layers_are_layers_and_norms_do_not_make_one():
    """Identical matrices make their layer count, with no energy."""
    tensors = pd.DataFrame(
        [
            ("language", 1, "mlp.up", "measured", None),
            ("language", 0, "mlp.up", "identical", None),
            ("language", 2, "norm", "identical", None),
            ("language", 3, "mlp.up", "skipped", "shape_differs"),
            ("projector", 0, "projector.0", "measured", "only_in_tuned"),
            ("language", None, "embed", "measured", None),
        ],
        columns=["component", "layer", "module", "status", "reason"],
    ).assign(compared=pd.NA)
    layers = compared_layers(columns(tensors))
    assert layers == [("language", 0), ("language", 1)]


NO_COHERENCE = {"kept_reason": "nothing_rounded", "kept": None, "equivalent_directions": None}
EDGES = {
    "kept whole": report(model(kept=1.0, rest_rank=3, rest_over_rounding=1.0)),
    "no coherence": report(model(**NO_COHERENCE, excess_purity=0.0)),
    "no energy": report(model(frobenius_norm=0.0)), "one layer": report(model(layers=1)),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", [*EDGES, *MUST])
def test_no_figure_is_made_by_an_invalid_division(tmp_path, case):
    """A figure without a value is null because it is not defined; NumPy has nothing to warn of."""
    deltas, more = EDGES.get(case) or MUST[case]
    found = AuditReport(write(tmp_path / "base..tuned", deltas, **more))
    rows = read_rows({name: found.table(name) for name in SUMMARISED})
    made = record_of(rows, found.provenance.recorded, gate_figures(rows).cosine)
    assert made.figures.matrices == len(deltas) - made.figures.matrices_rounded
