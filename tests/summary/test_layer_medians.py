"""Headline figures of real models: medians inside the layers, embeddings and head apart."""

import pandas as pd
import pytest
from reports import columns

from shadow.summary.layer_medians import BESIDE, LAYER_MEDIANS, TOPS, by_module, inside_layers
from shadow.summary.record import Coherence, OutsideLayers


def rows(*given):
    columns = dict.fromkeys(
        (*LAYER_MEDIANS, *BESIDE, "kept_reason", "kept_history", "component", "module", "layer")
    )
    columns |= dict.fromkeys(("floor_ratio", "rank_ceiling", "frobenius_norm"))
    columns |= dict.fromkeys(
        ("tensor", "rows", "cols", "dtype", "levels_base", "levels_tuned", "rank_95", "rank_99")
    )
    columns |= {f"top{k}_energy": None for k in TOPS}
    return pd.DataFrame([{**columns, "component": "language", **one} for one in given])


def test_the_range_of_kept_weighs_matrices_by_their_energy():
    """Of a quantised side: matrices with a range, one whose kept is known and one that storage did
    not round; one of unknown levels has 0 to 1. Null without quantised sides, and where nothing is
    known of most.
    """
    known = [
        {"layer": 0, "frobenius_norm": 6.0**0.5, "kept_low": 0.0, "kept_high": 0.5},
        {"layer": 1, "frobenius_norm": 1.0, "kept_low": 0.8, "kept_high": 1.0},
        {"layer": 2, "frobenius_norm": 1.0, "kept": 0.9},
        {"layer": 3, "frobenius_norm": 1.0, "kept_reason": "nothing_rounded"},
    ]
    unknown = {"layer": 4, "frobenius_norm": 1.0}
    found = inside_layers(columns(rows(*known, unknown)))
    assert found["kept_low_overall"] == pytest.approx((0.8 + 0.9 + 1.0) / 10)
    assert found["kept_high_overall"] == pytest.approx((3.0 + 1.0 + 0.9 + 1.0 + 1.0) / 10)
    for some in (known[2:], [known[0], unknown, unknown]):
        assert inside_layers(columns(rows(*some)))["kept_low_overall"] is None


def coherent(*values, **figures):
    """Matrices of 64 x 96 of attn.q, stored without rounding, of which 1 / X has these values."""
    known = {"rows": 64, "cols": 96, "kept_reason": "nothing_rounded", **figures}
    return rows(
        *(
            {
                "layer": layer, "module": "attn.q", "excess_purity": 1 / value,
                "equivalent_directions": value if value <= 64 else None, **known,
            }
            for layer, value in enumerate(values)
        )
    )  # fmt: skip


def test_matrices_above_their_short_side_are_not_left_out_of_the_median():
    """1 / X of 20, 30, 50, 100 and 300 has the median 50; of those with a value alone it is 30."""
    inside = inside_layers(columns(coherent(20.0, 100.0, 50.0, 300.0, 30.0)))
    assert (inside["equivalent_directions"], inside["coherent"]) == (50.0, 3)
    assert inside["above_short_side"] == 2


def test_a_median_above_the_short_side_is_null_and_told():
    """Of 20, 100 and 300 the middle one is above 64: the median is not 20."""
    found = coherent(20.0, 100.0, 300.0)
    assert inside_layers(columns(found))["equivalent_directions"] is None
    (module,) = by_module(Coherence, columns(found).inside)
    assert (module.equivalent_directions, module.coherent) == (None, 1)
    assert (module.above_short_side, module.short_side) == (2, 64)
    (outside,) = by_module(OutsideLayers, columns(found.assign(layer=None)).outside)
    assert (outside.equivalent_directions, outside.above_short_side) == (None, 2)
    # half and half: the upper one of the two in the middle is unknown
    assert inside_layers(columns(coherent(20.0, 100.0)))["equivalent_directions"] is None


def test_what_is_above_a_short_side_may_be_below_others():
    """1 / X of 100, 50 and 40 in wide matrices, and of 20 and 18 in narrow ones of 16 directions,
    has the median 40. Were those of narrow ones the largest of all, it would be 100.
    """
    wide, narrow = coherent(100.0, 50.0, 40.0, rows=128), coherent(20.0, 18.0, rows=16)
    wide["equivalent_directions"] = [100.0, 50.0, 40.0]
    narrow["equivalent_directions"] = [None, None]
    inside = inside_layers(columns(pd.concat([wide, narrow], ignore_index=True)))
    assert (inside["equivalent_directions"], inside["above_short_side"]) == (40.0, 2)


@pytest.mark.parametrize("why", [
    {"kept_reason": "rounding_unexplained", "floor_ratio": 3.9},
    {"kept": 0.2, "kept_reason": "rounded_away"},
    {"excess_purity": None},
    {"excess_purity": 0.1},  # below its short side, but within its noise
])  # fmt: skip
def test_directions_that_are_unknown_are_left_out_of_the_median(why):
    """Null for another reason than its value says nothing of the value."""
    known, unknown = coherent(20.0, 30.0, 40.0), coherent(300.0, 300.0, **why)
    inside = inside_layers(columns(pd.concat([known, unknown], ignore_index=True)))
    assert (inside["equivalent_directions"], inside["above_short_side"]) == (30.0, 0)


@pytest.mark.parametrize("how", [
    {"kept_reason": "rounding_unexplained", "floor_ratio": 4.0},
    {"kept": 0.5, "kept_reason": None, "excess_purity": 0.1, "excess_purity_unrounded": 0.01},
    {"excess_purity": -0.1},  # flatter than noise
])  # fmt: skip
def test_a_known_excess_purity_tells_that_directions_are_above(how):
    """As an audit decides it: of the update where that is known, else of what is stored."""
    assert inside_layers(columns(coherent(300.0, **how)))["above_short_side"] == 1


def test_what_is_unknown_is_counted():
    """Refused and rounded away matrices are told by number, and their figures are null."""
    refused = {"layer": 0, "module": "mlp.up", "kept_reason": "rounding_unexplained"}
    gone = {"layer": 0, "module": "mlp.down", "kept": 0.1, "kept_reason": "rounded_away"}
    found = inside_layers(columns(rows(refused, gone)))
    assert [found[name] for name in ("known", "unexplained", "rounded_away")] == [0, 1, 1]
    assert found["relative_norm_unrounded"] is None


@pytest.mark.parametrize(("cols", "base", "tuned", "found"), [
    (1024, 0.69, 0.14, (0, 3, 3, 3)), (1024, 0.012, 0.7, (3, 3, 0, 3)),
    (64, 0.1, 0.1, (0, 0, 0, 0)), (1024, None, None, (0, 0, 0, 0)),
])  # fmt: skip
def test_sides_that_went_through_fewer_bits_are_counted(cols, base, tuned, found):
    """Rows of 1,024: int8 leaves 0.14 of values, int4 0.012, BF16 0.69; rows of 64 say nothing."""
    one = {"layer": 0, "cols": cols, "levels_base": base, "levels_tuned": tuned}
    inside = inside_layers(columns(rows(one, one, one)))
    names = [f"levels_{side}_{of}" for side in ("base", "tuned") for of in ("few", "judged")]
    assert tuple(inside[name] for name in names) == found
