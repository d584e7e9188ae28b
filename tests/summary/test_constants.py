"""The constants that decide what a record says, just inside and just outside."""

import numpy as np
import pandas as pd
import pytest
from finding_cases import model, row, summary_of, vectors
from reports import columns, delta, place

from shadow.summary.changes import CHANGES, recognised
from shadow.summary.files import files
from shadow.summary.gate_figures import _identical, unjudged_formats
from shadow.summary.layer_medians import held_rank, inside_layers
from shadow.summary.tensors import skipped as skipped_rows
from shadow.summary.tensors import vectors as vectors_row
from shadow.summary.tensors import vocabulary

ABOVE = 1 + 1e-9
BELOW = 1 - 1e-9
TURNED = {"cosine": 0.0, "sigma_scale": 1.0, "sigma_scale_iqr": 0.0}
SCALED = {"decay_cosine": 1.0, "relative_norm": 0.1}
ZEROED = {"zero_share": 0.5, "zeroed": 1}
LARGE = {"rows": 1000, "cols": 1000}


def deltas(*figures, **common):
    """A delta row in each layer, 64 x 96 unless figures say otherwise."""
    usual = {"rows": 64, "cols": 96, "parameters": 64 * 96, **common}
    places = [place(layer, "mlp.up") for layer in range(len(figures))]
    rows = [delta(0.3, at, **usual | one) for at, one in zip(places, figures, strict=True)]
    return columns(pd.DataFrame(rows))


def tensors(*rows):
    usual = {"component": "language", "module": "mlp.up", "shape": [64, 96], "status": "measured"}
    given = [{**usual, "tensor": str(number), **one} for number, one in enumerate(rows)]
    frame = columns(pd.DataFrame(given).drop(columns="shape"))
    shapes = np.empty(len(given), dtype=object)
    shapes[:] = [tuple(one["shape"]) for one in given]
    return frame.added(shape=shapes)


NONE = tensors({"side": "tuned", "status": "identical"})


EXCESS = {"zero_share_excess": 0.4}
AT_A_CONSTANT = [  # a change, and figures with which it just holds, and just does not
    ("replaced", {"cosine": 0.5 * BELOW}, {"cosine": 0.5}),
    ("replaced", {"cosine": -0.5 * BELOW}, {"cosine": -0.5}),
    ("not_comparable", {"cosine": 0.5 * BELOW}, {"cosine": 0.5}),
    ("not_comparable", {"sigma_scale": 1 + 0.01 * BELOW}, {"sigma_scale": 1 + 0.01 * ABOVE}),
    ("not_comparable", {"sigma_scale_iqr": 0.01}, {"sigma_scale_iqr": 0.01 * ABOVE}),
    # 2 / sqrt(rows cols)
    ("not_comparable", LARGE | {"sigma_scale_iqr": 0.002}, {"sigma_scale_iqr": 0.002 * ABOVE}),
    ("scaled", SCALED | {"decay_cosine": 1 - 0.9e-6}, {"decay_cosine": 1 - 1.1e-6}),
    ("scaled", SCALED | {"decay_cosine": -1.0}, {"decay_cosine": None}),
    ("zeroed", ZEROED | {"zero_share": 0.01}, {"zero_share": 0.01 * BELOW}),
    ("zeroed", ZEROED, {"zeroed": 0}),
    # of 64 x 96 entries, 63 or 64
    ("few_entries", {"zero_share": 1 - 63 / 6144}, {"zero_share": 1 - 64 / 6144}),
    ("masked", {"zero_share_excess": 0.3}, {"zero_share_excess": 0.3 * BELOW}),
    ("masked", EXCESS | {"decay_cosine": -0.5 * BELOW}, {"decay_cosine": -0.5}),
    ("masked", EXCESS | {"decay_cosine": 0.5 * BELOW}, {"decay_cosine": 0.5}),
    ("masked", EXCESS | {"kept_misfit": 0.5 * BELOW}, {"kept_misfit": 0.5}),
]


@pytest.mark.parametrize(("change", "inside", "outside"), AT_A_CONSTANT)
def test_a_change_is_recognised_up_to_its_constants(change, inside, outside):
    (known,) = (one for one in CHANGES if one.code == change)
    usual = TURNED if change == "not_comparable" else {}
    for figures, is_recognised in ((inside, True), (inside | outside, False)):
        found = recognised(deltas(figures, figures, **usual), NONE, 0.99)
        assert (known.figures(found) is not None) is is_recognised


@pytest.mark.parametrize(("lineage", "is_one_model"), [(0.9, True), (0.9 * BELOW, False)])
def test_matrices_are_replaced_in_a_model_that_is_close_to_its_base(lineage, is_one_model):
    found = recognised(deltas({"cosine": 0.1}, {}), NONE, lineage)
    assert (found.replaced is not None) is is_one_model


@pytest.mark.parametrize(("norm", "is_scaled"), [(0.10099, True), (0.10101, False)])
def test_factors_of_a_scaled_base_differ_by_at_most_a_hundredth(norm, is_scaled):
    """Of how far they are from 1, in the median: 0.1."""
    rows = deltas({}, {}, {"relative_norm": norm}, **SCALED)
    assert (recognised(rows, NONE, 0.99).scaled is not None) is is_scaled
    assert recognised(deltas(SCALED), NONE, 0.99).scaled is None  # one matrix
    assert recognised(deltas(ZEROED), NONE, 0.99).zeroed is None


@pytest.mark.parametrize(("masked", "others", "is_recognised"), [(3, 2, True), (2, 2, False)])
def test_more_than_half_of_the_matrices_are_masked(masked, others, is_recognised):
    rows = [*[{"zero_share_excess": 0.4}] * masked, *[{}] * others]
    assert (recognised(deltas(*rows), NONE, 0.99).masked is not None) is is_recognised


@pytest.mark.parametrize(
    ("copies", "others", "code"), [(2, 0, "copy"), (2, 2, "mostly_copy"), (2, 3, None)]
)
def test_a_copy_has_at_least_as_many_casts_as_other_changes(copies, others, code):
    casts = [*["tuned"] * copies, *["neither"] * others]
    rows = [
        {"side": side, "tensor": str(at), "cast": cast, "relative_norm": 0.1}
        for at, cast in enumerate(casts)
        for side in ("base", "tuned")
    ]
    head = {"module": "head", "status": "identical", "side": "tuned"}
    found = recognised(deltas({}), tensors(*rows, head), 0.99)
    assert found.casts.beside == others
    codes = [one.code for one in CHANGES if one.figures(found) is not None]
    assert codes == ([code] if code else [])


@pytest.mark.parametrize(("norms", "modules", "furthest"), [
    ([0.1 * ABOVE, 0.01], ["bias", "bias"], 0.1 * ABOVE),
    ([0.1, 0.01], ["bias", "bias"], None),  # not more than ten times as far
    ([0.5, 0.4, 0.1 * ABOVE, 0.01], ["bias", "bias", "norm", "norm"], 0.1 * ABOVE),
    ([0.5, 0.4, 0.1], ["bias", "bias", "norm"], None),  # the only norm
])  # fmt: skip
def test_a_vector_is_named_if_it_moved_ten_times_as_far(norms, modules, furthest):
    usual = {"side": "tuned", "reason": "not_a_matrix", "compared": 64}
    rows = [
        {**usual, "relative_norm": norm, "module": module}
        for norm, module in zip(norms, modules, strict=True)
    ]
    found = vectors_row(tensors(*rows))
    assert (found.furthest_norm, found.furthest is None) == (furthest, furthest is None)


def test_a_vector_that_was_0_moved_if_it_is_no_copy(tmp_path):
    """Without a norm, one that is equal has no cast either."""
    moved = [{**one, "relative_norm": None, "cast": "neither"} for one in vectors([0.0], 1)]
    equal = [{**one, "relative_norm": None, "cast": None} for one in vectors([0.0], 3)]
    found = summary_of(tmp_path, model(), extra_tensors=(*moved, *equal)).vectors
    assert (found.compared, found.changed, found.relative_norm) == (4, 1, None)


@pytest.mark.parametrize(("base", "tuned", "added"), [
    ((10, 80), (12, 80), [2]), ((12, 80), (10, 80), [-2]), ((10, 80), (12, 96), []),
    ((10, 80), (10, 79), []), ((10, 0), (12, 80), []), ((10, 80), (12, None), []),
])  # fmt: skip
def test_a_vocabulary_grew_if_a_part_of_its_rows_was_compared(base, tuned, added):
    """Rows and compared entries of both sides; a side that was not compared says nothing."""
    sides = ("base", *base), ("tuned", *tuned)
    rows = [{"module": "head", "side": side, "shape": (size, 8), "compared": compared}
            for side, size, compared in sides]  # fmt: skip
    assert [grown.added for grown in vocabulary(tensors(*rows))] == added


@pytest.mark.parametrize("count", [3, 4])
def test_three_tensors_of_a_reason_are_named(count):
    rows = [{"side": "tuned", "status": "skipped", "reason": "tied"} for _ in range(count)]
    (found,) = skipped_rows(tensors(*rows))
    assert (found.tensors, found.examples) == (count, ["0", "1", "2"])


@pytest.mark.parametrize("count", [40, 41])
def test_forty_files_are_listed(count):
    """All are counted; those in which something differs come first, unknown ones last."""
    usual = {"kind": "other", "side": "tuned", "state": "changed", "differs": None, "detail": None}
    rows = [{"path": f"{at:02}", **usual} for at in range(count)]
    rows[0]["state"] = "unknown"
    rows[-1]["differs"] = "vocabulary merges"
    found = files(rows)
    assert (found.counts.changed, found.counts.unknown) == (count - 1, 1)
    assert len(found.rows) == 40
    assert found.rows[0].differs == ["vocabulary", "merges"]
    assert (found.rows[-1].state == "unknown") is (count == 40)


@pytest.mark.parametrize(
    ("known", "unknown", "formats"), [(1, 2, ["BF16", "F32"]), (2, 2, []), (0, 1, ["BF16", "F32"])]
)
def test_rounding_is_not_judged_if_it_is_unknown_of_most(known, unknown, formats):
    mixed = {"dtype": "BF16/F32", "floor_ratio": None, "kept_reason": "rounding_unexplained"}
    assert unjudged_formats(deltas(*[{}] * known, *[mixed] * unknown)) == formats


def test_the_formats_of_a_matrix_are_named_where_its_sides_differ(tmp_path):
    formats = ("F32/BF16", "BF16", "BF16/F16", "F32/BF16", None)
    rows = [row(at, "mlp.up", dtype=dtype) for at, dtype in enumerate(formats)]
    (gate,) = (gate for gate in summary_of(tmp_path, rows).gates if gate.name == "formats")
    assert gate.reason.endswith(" in different formats (BF16/F16, F32/BF16), which rounds")


@pytest.mark.parametrize(("known", "unknown"), [(2, 2), (1, 2)])
def test_a_rank_is_that_of_the_model_if_it_is_known_of_half(tmp_path, known, unknown):
    ranks = [*[4] * known, *[None] * unknown]
    rows = [row(at, "mlp.up", numerical_rank=rank, kept=None) for at, rank in enumerate(ranks)]
    gates = {gate.name: gate.figure for gate in summary_of(tmp_path, rows).gates}
    assert gates["rank"] == (4 / 64 if known == unknown else None)


@pytest.mark.parametrize(("share", "is_known"), [(0.9 * ABOVE, True), (0.9 * BELOW, False)])
def test_updates_have_a_norm_if_it_is_known_of_nine_tenths_of_the_energy(tmp_path, share, is_known):
    rows = [
        row(0, "mlp.up", frobenius_norm=share**0.5),
        row(1, "mlp.up", frobenius_norm=(1 - share) ** 0.5, relative_norm_unrounded=None),
    ]
    figures = summary_of(tmp_path, rows).figures
    assert figures.unrounded_share == pytest.approx(share)
    assert (figures.relative_norm_overall_unrounded is not None) is is_known


@pytest.mark.parametrize(("layers", "quarters"), [(4, 4), (3, 0)])
def test_four_layers_have_quarters(tmp_path, layers, quarters):
    assert len(summary_of(tmp_path, model(layers)).quarters) == quarters


NOISY = {"rest_rank": 0, "rest_energy": 1.0}
RANKED = {"kept": 0.9, "rest_rank": 3, "rest_over_rounding": 1.0}
# what one direction holds, but for the slack of both
HALF = {"kept": 0.5, "top1_energy": 0.5 + 0.5 / 64 - 0.002 - 0.1 * 0.25 + 1e-12}
WHOLE = {"kept_reason": "nothing_rounded", "top1_energy": 0.998}
WHOLE |= {"rank_90": 1, "rank_95": 1, "rank_99": 1}


OF_LAYERS = [  # a figure, what just gives its first value, and just its second
    ("levels_tuned_judged", {"levels_tuned": 0.5, "cols": 256}, {"cols": 255}, (1, 0)),
    ("noisy_rest", NOISY | {"relative_norm": 0.002}, {"relative_norm": 0.002 * BELOW}, (1, 0)),
    ("noisy_rest", NOISY | {"relative_norm": 1.0}, {"relative_norm": ABOVE}, (1, 0)),
    ("rank_known", RANKED, {"rest_over_rounding": 1.01 * ABOVE}, (1, 0)),
    ("rank_known", RANKED | {"rest_over_rounding": 1.01 * BELOW}, {}, (1, 1)),
    # 0.03 kept / (1 - kept) is 0.05 of what is left
    ("rank_known", RANKED | {"kept": 0.625 * ABOVE}, {"kept": 0.625 * BELOW}, (1, 0)),
    ("rank_least", HALF, {"top1_energy": HALF["top1_energy"] * BELOW}, (1.0, 2.0)),
    ("rank_least", WHOLE, {"top1_energy": 0.998 * BELOW}, (1.0, 2.0)),
    ("beyond_noise", {"purity_z": 5.01}, {"purity_z": 4.99}, (1, 0)),
]


@pytest.mark.parametrize(("key", "inside", "outside", "values"), OF_LAYERS)
def test_figures_of_layers_change_at_their_constants(key, inside, outside, values):
    usual = {"rest_energy": None, "rest_rank": None, "top4_energy": None}
    for figures, value in zip((inside, inside | outside), values, strict=True):
        assert inside_layers(deltas(usual | figures))[key] == value


@pytest.mark.parametrize(("rank", "held"), [(16, 16.0), (17, 64.0)])
def test_a_rank_is_low_up_to_a_quarter_of_the_short_side(rank, held):
    """Above, what rounding leaves is no limit, and numerical_rank counts."""
    found = held_rank(deltas(RANKED | {"rest_rank": rank, "numerical_rank": 64}))
    assert found.tolist() == [held]


def test_experts_of_an_identical_stack_are_matrices_each():
    """No vector and nothing that differs is one."""
    rows = [{"status": "identical", "shape": shape} for shape in ([64, 96], [3, 4, 5], [7])]
    rows += [{"status": "identical", "module": "norm"}, {"status": "measured"}]
    assert _identical(tensors(*({"side": "tuned", **one} for one in rows))) == 4
