"""Reports compared: closed forms, NumPy's own answer, symmetry, what is refused and warned of."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from reports import MODULES, NULL, delta, identity, place, places, uniform, write

from shadow.comparing.comparison import MARGIN, Comparison, compare, report_label
from shadow.comparing.differences import FIGURES
from shadow.errors import ShadowError


def one(comparison: Comparison):
    """The only contrast."""
    (contrast,) = comparison.contrasts
    return contrast


def figures(contrast):
    return {figure.figure: figure for figure in contrast.figures}


def interval(figure):
    return figure.difference, figure.low, figure.high


def test_a_constant_difference_is_found_as_it_is(tmp_path):
    """0.40 against 0.30 in every matrix of 6 layers: 0.1 with an interval of no width."""
    found = one(compare([uniform(tmp_path / "a", 0.40), uniform(tmp_path / "b", 0.30)]))
    own = figures(found)
    for name in ("concentration", "top4_energy", "spike_energy"):
        assert interval(own[name]) == pytest.approx((0.1,) * 3)
        assert (own[name].level, own[name].margin) == (0.95, MARGIN)
    # 64^0.6 against 64^0.7 directions
    for name in ("stable_rank", "participation_ratio_over_null"):
        expected = -0.1 * math.log(NULL)
        assert interval(own[name]) == pytest.approx((expected,) * 3)
        assert own[name].margin == pytest.approx(MARGIN * math.log(NULL))
    assert own["relative_norm"].difference == 0
    assert own["relative_norm"].verdict is None
    assert {one.verdict for one in found.figures} == {"more concentrated", None}
    assert found.verdict == "more concentrated"
    assert (own["concentration"].first, own["concentration"].second) == (0.40, 0.30)
    assert found.matched.matrices == found.matched.in_layers == 18
    assert (found.relation, found.verified) == ("one base", "content")


@pytest.mark.parametrize(("more", "layers", "code"), [
    (2.3e-5, 6, "same_update"), (2.5e-5, 6, "not_distinguished"), (0.0, 5, "not_distinguished"),
])  # fmt: skip
def test_an_update_and_its_copy_are_called_the_same(tmp_path, more, layers, code):
    """Where all figures of all matrices agree to 1e-4 in their scale: 2.4e-5 times ln 64."""
    values = np.full((6, len(MODULES)), 0.4)
    other = values[:layers].copy()
    other[2, 1] += more
    found = one(compare([uniform(tmp_path / "a", values), uniform(tmp_path / "b", other, layers)]))
    assert (found.verdict, found.headline.code) == ("not distinguished", code)


def noisy(folder, mean, seed, layers=8, **options):
    """A report around a concentration: a part of the layer and noise, for intervals."""
    rng = np.random.default_rng(seed)  # as it is where it is one
    values = mean + 0.02 * (rng.normal(size=(layers, 1)) + rng.normal(size=(layers, len(MODULES))))
    return uniform(folder, values, layers, **options)


def test_figures_are_numpys(tmp_path):
    """Medians of paired differences, of both sides, from the Parquet rows by NumPy alone."""
    folders = [noisy(tmp_path / "a", 0.4, 1), noisy(tmp_path / "b", 0.3, 2)]
    found = one(compare(folders))
    first, second = (
        pq.read_table(folder / "matrices.parquet")
        .to_pandas()
        .query("subject == 'delta'")
        .set_index("tensor")
        for folder in folders
    )
    second = second.loc[first.index]
    for figure in FIGURES:
        sides = [frame[list(figure.columns)].to_numpy() for frame in (first, second)]
        values = [side[:, 0] / side[:, 1] if side.shape[1] == 2 else side[:, 0] for side in sides]
        apart = (
            np.log(values[0] / values[1]) if figure.scale == "log ratio" else values[0] - values[1]
        )
        own = figures(found)[figure.name]
        assert (own.first, own.second) == (np.median(values[0]), np.median(values[1]))
        assert own.difference == pytest.approx(np.median(apart), rel=1e-12)


def test_what_is_missing_is_left_out_and_named(tmp_path):
    """Matrices that one report lacks: identical, filtered, of another shape, or not there."""
    everything = places(6)
    grown = {"rows": 80}
    same = {**place(0, "attn.q"), "tensor": "layers.0.attn.q", "status": "identical"}
    left = {**place(1, "attn.q"), "tensor": "layers.1.attn.q"}
    left |= {"status": "skipped", "reason": "filtered"}
    first = write(tmp_path / "a", [delta(0.4, where) for where in everything])
    kept = [where for where in everything if where["module"] != "attn.q" or where["layer"] > 2]
    rows = [
        delta(0.3, where, **(grown if (where["layer"], where["module"]) == (5, "mlp.up") else {}))
        for where in kept
    ]
    second = write(tmp_path / "b", rows, extra_tensors=(same, left))
    found = one(compare([first, second]))
    assert found.matched.matrices == 14
    assert (found.matched.alone_in_first, found.matched.alone_in_second) == (4, 1)
    assert found.verdict == "more concentrated"


def test_embeddings_and_heads_have_no_vote(tmp_path):
    """A head that says the opposite changes no figure; a warning has it."""
    plain = [uniform(tmp_path / name, c) for name, c in (("a", 0.4), ("b", 0.3))]
    with_head = []
    for name, c, head, norm in (("a", 0.4, 0.2, 3.0), ("b", 0.3, 0.9, 1.0)):
        rows = [delta(c, where, frobenius_norm=1.0) for where in places(6)]
        rows.append(delta(head, place(None, "head"), frobenius_norm=norm))
        with_head.append(write(tmp_path / f"{name}2", rows))
    without, found = one(compare(plain)), one(compare(with_head))
    assert found.figures == without.figures
    assert found.verdict == "more concentrated"
    assert found.matched.matrices == found.matched.in_layers + 1


def test_the_experts_of_a_layer_have_one_vote_together(tmp_path):
    """64 experts of a module count as one attention matrix: 2 of 3 modules decide the median."""
    folders = []
    for name, attention, expert in (("a", 0.4, 0.3), ("b", 0.3, 0.4)):
        rows = []
        for layer in range(6):
            rows += [delta(attention, place(layer, module)) for module in ("attn.q", "attn.o")]
            rows += [delta(expert, place(layer, "experts.up", number)) for number in range(64)]
        folders.append(write(tmp_path / name, rows))
    found = one(compare(folders))
    assert found.matched.matrices == 6 * 66
    assert found.matched.cells == 6 * 3
    assert figures(found)["concentration"].difference == pytest.approx(0.1)


def test_figures_without_a_value_are_left_out(tmp_path):
    """Concentration null in every matrix: nothing is distinguished, nothing is NaN."""
    rows = [delta(0.3, where, concentration=None) for where in places(6)]
    found = compare([write(tmp_path / "a", rows), uniform(tmp_path / "b", 0.3)])
    own = figures(one(found))["concentration"]
    assert (own.cells, own.layers, own.difference) == (0, 0, None)
    assert one(found).verdict == "not distinguished"
    json.dumps(found.as_json(), allow_nan=False)


def test_reports_have_letters():
    labels = [report_label(number) for number in (0, 25, 26, 77)]
    assert labels == ["A", "Z", "A1", "Z2"]


# Relations


def test_bases_are_told_apart_and_refused(tmp_path):
    """Other fingerprints: refused with the reason, with the flag said everywhere."""
    folders = [
        uniform(tmp_path / "a", 0.4),
        uniform(tmp_path / "b", 0.3, base=identity(9), weights=2.0),
    ]
    with pytest.raises(ShadowError) as refused:
        compare(folders)
    assert "--allow-different-base" in refused.value.hint
    found = one(compare(folders, allow_different_base=True))
    assert (found.relation, found.verified) == ("different bases", None)
    assert found.verdict == "more concentrated"


# What is said aloud


def test_what_voids_a_verdict_leaves_the_figures(tmp_path):
    other = uniform(tmp_path / "other", 0.3)
    folder = write(tmp_path / "a", [delta(0.5, at, floor_ratio=1.1) for at in places(6)])
    found = one(compare([folder, other]))
    assert found.not_comparable
    assert {one.verdict for one in found.figures} == {"not comparable", None}
    assert figures(found)["concentration"].difference == pytest.approx(0.2)


def test_norms_beyond_any_ratio_are_no_fault(tmp_path):
    """1e300 over 1e-20 is more than a float holds the exponential of."""
    folders = [
        write(tmp_path / name, [delta(0.4, where, relative_norm=norm) for where in places(6)])
        for name, norm in (("large", 1e300), ("small", 1e-20))
    ]
    found = one(compare(folders))
    assert "norms_far_apart" in [reason.code for reason in found.doubts]
    assert math.isfinite(found.doubts[0].figures["times"])
