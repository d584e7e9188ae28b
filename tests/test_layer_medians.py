"""Headline figures of real models: medians inside the layers, embeddings and head apart."""

from __future__ import annotations

import pandas as pd
import pytest

from shadow.findings.layer_medians import (
    BESIDE,
    INSIDE,
    TOPS,
    few_values,
    inside_layers,
    outside_layers,
)


def rows(*given):
    columns = dict.fromkeys(
        (*INSIDE, *BESIDE, "kept_reason", "kept_history", "component", "module", "layer", "rows")
    )
    columns |= dict.fromkeys(
        ("tensor", "cols", "dtype", "levels_base", "levels_tuned", "rank_95", "rank_99")
    )
    columns |= {f"top{k}_energy": None for k in TOPS}
    columns |= {f"alignment_{side}": None for side in ("left", "right", "left_null", "right_null")}
    return pd.DataFrame([{**columns, "component": "language", **one} for one in given])


def test_an_embedding_moves_no_median():
    """Two matrices of layers and an embedding: the embedding is a row of its own."""
    found = rows(
        {
            "layer": 0,
            "module": "attn.q",
            "kept": 0.5,
            "alignment_left": 1.5,
            "alignment_left_null": 1.25,
            "spikes": 3,
        },
        {"layer": 1, "module": "attn.q", "kept": 0.7, "equivalent_directions": 9.0, "spikes": 5},
        {
            "module": "embed",
            "spikes": 90,
            "kept": 0.01,
            "kept_reason": "rounded_away",
            "energy_share": 0.9,
        },
    )
    inside = inside_layers(found)
    assert inside["kept"] == pytest.approx(0.6)
    assert (inside["spikes"], inside["spike_energy"]) == (4.0, None)
    assert [inside[name] for name in ("matrices", "known", "rounded_away", "coherent")] == [
        2,
        2,
        0,
        1,
    ]
    assert (inside["alignment_left_excess"], inside["alignment_right_excess"]) == (0.25, None)
    (outside,) = outside_layers(found)
    assert (outside.module, outside.kept, outside.energy_share) == ("embed", 0.01, 0.9)
    assert (outside.matrices, outside.poolers) == (1, 0)


def test_what_is_unknown_is_counted():
    """Refused and rounded away matrices are told by number, and their figures are null."""
    found = inside_layers(
        rows(
            {"layer": 0, "module": "mlp.up", "kept_reason": "rounding_unexplained"},
            {"layer": 0, "module": "mlp.down", "kept": 0.1, "kept_reason": "rounded_away"},
        )
    )
    assert [found[name] for name in ("known", "unexplained", "rounded_away")] == [0, 1, 1]
    assert found["relative_norm_unrounded"] is None


def test_a_side_that_went_through_fewer_bits_is_named():
    """Rows of 1,024: int8 leaves 0.14 of values, int4 0.012, BF16 0.69; rows of 64 say nothing."""
    shares = {"base": 0.69, "tuned": 0.14}
    found = few_values(
        rows(*({"cols": 1024, **{f"levels_{s}": v for s, v in shares.items()}} for _ in range(3)))
    )
    assert [text.split(", and")[0] for text in found] == [
        "3 of 3 matrices of tuned have as few distinct values in a row as a copy that went through"
        " 8 bits or was pruned"
    ]
    assert (
        "4 bits" in few_values(rows({"cols": 1024, "levels_base": 0.012, "levels_tuned": 0.7}))[0]
    )
    assert few_values(rows({"cols": 64, "levels_base": 0.1, "levels_tuned": 0.1})) == []
    assert few_values(rows({"cols": 1024, "levels_base": None, "levels_tuned": None})) == []
