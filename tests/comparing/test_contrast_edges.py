"""Comparisons just inside and just outside of what decides, of planted figures and rows."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shadow.comparing import contrast, differences, lineage, matching, scores, updates
from shadow.comparing.codes import ComparisonVerdict, ReportRelation
from shadow.comparing.contrast import MatchedCounts
from shadow.comparing.differences import Difference
from shadow.comparing.matching import relate
from shadow.errors import ShadowError
from shadow.reports.provenance import CheckpointIdentity
from shadow.summary.record import Correspondence, OtherLayer, UnitNumbers, UnitRun
from shadow.summary.tables import Columns, columns_of

MORE, LESS, BELOW, SAME, MIXED, NONE = ComparisonVerdict
WORDS = {"+": MORE, "-": LESS, "b": BELOW, ".": SAME}


def figure(verdict=SAME, size=0.0, direction=1, **more):
    """A difference with an interval of no width around its size."""
    names = ("first", "second", "no_interval")
    usual = {"layers": 6, "cells": 18, "level": 0.95, "margin": 0.05, **dict.fromkeys(names)}
    usual |= {"low": size, "high": size, "difference": size, **more}
    return Difference("x", "difference", direction=direction, verdict=verdict, **usual)


@pytest.mark.parametrize(("signs", "verdict"), [  # concentration; the four others
    ("+++..", MORE), ("++...", MIXED), ("++++-", MORE), ("+++--", MIXED), ("--- .", LESS),
    ("---+.", LESS), ("-++..", MIXED), ("-....", MIXED), ("..+..", SAME), ("..+-.", MIXED),
    (".....", SAME), ("b....", BELOW), ("b+-..", MIXED), ("b+...", BELOW),
])  # fmt: skip
def test_two_other_figures_and_most_of_them_decide(signs, verdict):
    """One that does not vote counts for nothing, whatever it says."""
    sizes = {"+": 0.1, "-": -0.1}
    figures = [figure(WORDS[one], sizes.get(one, 0.0)) for one in signs.replace(" ", "-")]
    silent = [figure(MORE, 0.1, direction=0) for _ in range(5)]
    assert contrast._verdict([*figures, *silent]) is verdict


@pytest.mark.parametrize(("size", "low", "high", "direction", "verdict", "points"), [
    (0.05, 0.01, 0.09, 1, MORE, 1), (0.049, 0.01, 0.09, 1, BELOW, 1), (0.05, 0.0, 0.09, 1, SAME, 0),
    (-0.05, -0.09, -0.01, 1, LESS, -1), (-0.05, -0.09, 0.0, 1, SAME, 0),
    (0.3, 0.01, 0.9, -1, LESS, -1), (-0.3, -0.9, -0.01, -1, MORE, 1), (0.3, None, None, 1, SAME, 0),
    (None, None, None, 1, SAME, 0),
    (1.01e-4, 1e-5, 0.09, 1, BELOW, 1), (0.99e-4, 1e-5, 0.09, 1, SAME, 1),
])  # fmt: skip
def test_an_interval_and_a_margin_decide_a_figure(size, low, high, direction, verdict, points):
    """Without a margin that is known nothing is beyond it."""
    found = figure(None, 0.0, direction, difference=size, low=low, high=high)
    assert (differences._verdict(found), found.points) == (verdict, points)
    unknown = figure(None, 0.0, direction, difference=size, low=low, high=high, margin=None)
    assert differences._verdict(unknown) is (SAME if verdict is SAME else BELOW)


# ------------------------------------------------------------------------------------- reports


def report(name="A", level="full", relation="tuned", version="1", **settings):
    method = settings.pop("method", {})
    recorded = {"settings": {"method": method, "chosen": {}, **settings}}
    provenance = SimpleNamespace(level=level, relation=relation, version=version, recorded=recorded)
    return SimpleNamespace(name=name, label=name, provenance=provenance)


GONE = math.nan
PINNED, CONTENT = {"commit": "c" * 40}, {"content": "x"}


@pytest.mark.parametrize(("left", "right", "how"), [
    (PINNED, PINNED, "commit"), (PINNED | {"repo": "o/x"}, PINNED, None),
    ({"commit": "c" * 39}, {"commit": "c" * 39}, None), (PINNED, {"commit": "d" * 40}, None),
    (CONTENT, CONTENT, "content"), (PINNED | CONTENT, {"commit": "d" * 40} | CONTENT, "content"),
    (CONTENT | {"fingerprint": "f" * 64}, {"content": "y", "fingerprint": "f" * 64}, None),
    (CONTENT | {"fingerprint": "f" * 64}, {"fingerprint": "f" * 64}, "content"),
    ({"fingerprint": "f" * 64}, {"fingerprint": "e" * 64}, None), ({}, {}, None),
    ({"fingerprint": "f" * 63}, {"fingerprint": "f" * 63}, None),
])  # fmt: skip
def test_checkpoints_are_one_by_commit_or_content(left, right, how):
    """Content, where both have it, decides; a short commit or digest is none."""
    keys = dict.fromkeys(("commit", "content", "fingerprint"), None)
    left, right, far = (
        CheckpointIdentity(**{"repo": "o/n", **keys, **own})
        for own in (left, right, {"content": "z"})
    )

    def pair(base, tuned):
        return SimpleNamespace(provenance=SimpleNamespace(base=base, tuned=tuned))

    other = CheckpointIdentity(**{"repo": "o/n", **keys, "content": "w"})
    bases = relate(pair(left, far), pair(right, other))
    assert bases == (
        (ReportRelation.ONE_BASE, how) if how else (ReportRelation.DIFFERENT_BASES, None)
    )
    if how:
        assert relate(pair(left, far), pair(right, far))[0] is ReportRelation.SAME_PAIR
        for steps in ((pair(far, left), pair(right, other)), (pair(right, other), pair(far, left))):
            assert relate(*steps) == (ReportRelation.CONSECUTIVE_STAGES, how)


# ---------------------------------------------------------------------------- doubts and voids


def matched(**columns):
    """Five matrices in layers and one outside."""
    usual = {
        "component": "language", "layer": [0, 0, 1, 1, 2, None], "module": [*"qoqoq", "head"],
        "rows": 4, "cols": 5, "dtype_first": "BF16", "dtype_second": "BF16",
        "concentration_difference": 0.1, "cosine_first": 0.99, "cosine_second": 0.99,
        "floor_ratio_first": 9.0, "floor_ratio_second": 9.0,
    }  # fmt: skip
    return columns_of(pa.Table.from_pandas(pd.DataFrame(usual | columns, index=range(6))))


def test_matched_matrices_are_counted():
    """A share is at most 1, also of a forged report with fewer parameters than matrices have."""
    rows = matched()
    reports = [Columns({"parameters": np.full(count, size)}) for size, count in ((60, 8), (10, 6))]
    found = contrast._counts(*reports, rows, rows.inside)
    assert found == MatchedCounts(6, 5, 5, 3, 120, 0.25, 1.0, 2, 0)
    empty = contrast._counts(reports[0].where([]), reports[1], rows, rows)
    assert empty.share_of_first == 1.0


ONE_BASE = ReportRelation.ONE_BASE
CASES = [  # what is otherwise -> codes
    ({}, ""), ({"relation": ReportRelation.DIFFERENT_BASES}, "different_bases"),
    ({"shares": (0.9, 0.9)}, ""), ({"shares": (0.89, 0.9)}, "partly_compared:A"),
    ({"shares": (0.9, 0.89)}, "partly_compared:B"), ({"level": 0.94}, "few_layers"),
    ({"level": None}, ""), ({"norm": math.log(3.0)}, ""), ({"norm": -math.log(2.99)}, ""),
    ({"norm": math.log(3.01)}, "norms_far_apart:A"), ({"norm": -1.2}, "norms_far_apart:B"),
    ({"norm": 1.2, "is_void": True}, ""), ({"norm": None}, ""),
    ({"dtype_first": ["F32", None, *["BF16"] * 4]}, "dtypes_differ"),
    ({"outside": -0.05}, "opposed_outside_layers"), ({"outside": -0.049}, ""),
    ({"outside": 0.2}, ""), ({"outside": -0.001, "margin": 0.0}, "opposed_outside_layers"),
    ({"outside": -0.9, "verdict": SAME}, ""),
    ({"outside": 0.05, "verdict": LESS, "size": -0.1}, "opposed_outside_layers"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "expected"), CASES)
def test_doubts(other, expected):
    shares = other.get("shares", (1.0, 1.0))
    counts = MatchedCounts(6, 5, 5, 3, 120, *shares, 0, 0)
    keys = {key: other[key] for key in ("level", "margin") if key in other}
    concentration = figure(other.get("verdict", MORE), other.get("size", 0.1), **keys)
    norm = figure(None, other.get("norm", 0.0), direction=0)
    differences = [0.1] * 5 + [other.get("outside", 0.1)]
    dtypes = other.get("dtype_first", "BF16")
    rows = matched(dtype_first=dtypes, concentration_difference=differences)
    relation, is_void = other.get("relation", ONE_BASE), other.get("is_void", False)
    sides = report(), report("B")
    found = [
        *contrast._doubts(*sides, relation, rows, counts, [concentration, norm], is_void=is_void)
    ]
    names = [reason.figures.get("name") or reason.figures.get("larger") for reason in found]
    said = [
        f"{one.code}:{name}" if name else one.code for one, name in zip(found, names, strict=True)
    ]
    assert " ".join(said) == expected
    if expected.startswith("norms_far_apart"):
        (reason,) = found
        assert reason.figures["times"] == pytest.approx(math.exp(abs(other["norm"])))
        assert {reason.figures["larger"], reason.figures["smaller"]} == {"A", "B"}
    if expected == "dtypes_differ":
        assert found[0].figures == {"matrices": 2}


SPECTRA = (
    "kept_reason", "kept", "kept_history", "numerical_rank", "rest_rank", "rest_over_rounding",
    "rank_ceiling", *(f"rank_{percent}" for percent in (90, 95, 99)),
    *(f"top{count}_energy" for count in (1, 4, 16, 20, 64)),
)  # fmt: skip
RANKS = "ranks_differ:5"


@pytest.mark.parametrize(("columns", "level", "expected"), [
    ({}, "full", ""), ({}, "norms", "spectra_left_out:B"),
    ({"cosine_first": 0.5, "cosine_second": 0.5}, "full", ""),
    ({"cosine_first": 0.49, "floor_ratio_first": 1.9}, "full", "sides_unrelated:A"),
    ({"cosine_second": 0.49}, "full", "sides_unrelated:B"), ({"cosine_first": GONE}, "full", ""),
    ({"floor_ratio_first": 2.0, "floor_ratio_second": GONE}, "full", ""),
    ({"floor_ratio_second": 1.99}, "norms", "spectra_left_out:B mostly_rounding:B"),
    ({"rank_ceiling_first": 1}, "full", RANKS), ({"rank_ceiling_second": 1}, "full", RANKS),
    ({"rank_ceiling_first": 1, "rank_ceiling_second": 1}, "full", ""),
    ({"rank_ceiling_first": 1, "rank_ceiling_second": 2}, "full", RANKS),
    ({"rank_ceiling_first": 1, "numerical_rank_second": 1}, "full", ""),
    ({"rank_ceiling_first": 1, "numerical_rank_second": 2}, "full", RANKS),
    ({"numerical_rank_second": 1}, "full", ""),
])  # fmt: skip
def test_what_voids_a_verdict(columns, level, expected):
    """A quarter of the directions of these matrices is one: a second is no low rank."""
    unknown = {f"{name}_{side}": GONE for name in SPECTRA for side in differences.SIDES}
    voting = matched(**unknown | columns).inside
    sides = report(), report("B", level=level)
    for side in sides:
        side.deltas = voting.where([])
    found = [*contrast._voids(*sides, voting)]
    words = [f"{one.code}:{one.figures.get('name', one.figures.get('matrices'))}" for one in found]
    assert " ".join(words) == expected


@pytest.mark.parametrize(("casts", "kept", "purity", "code"), [
    (["tuned", "base"], [0.9] * 4, 9.0, "copy_in_another_format"), ([], [0.9] * 4, 9.0, None),
    (["tuned", "neither"], [0.9] * 4, 9.0, None), ([], [0.24, 0.24, 0.25, 0.9], 9.0, None),
    ([], [0.24] * 3 + [0.9], 9.0, "copy_in_few_bits"), ([], [0.9] * 4, [5.0, -5.0, 9, 9], None),
    ([], [0.9] * 4, [5.0, -5.0, 5.0, 9], "like_noise"), ([], [0.9] * 4, -5.1, None),
])  # fmt: skip
def test_a_delta_that_is_the_rounding_of_a_copy(casts, kept, purity, code):
    """Of all tensors that moved, or of more than half of the matrices."""
    rows = {
        "layer": range(4), "component": "language", "module": "attn.q", "dtype": "BF16",
        "kept_high": kept, "purity_z": purity, "format_copy": 0.0, "cols": 1024,
        "levels_base": 0.7, "levels_tuned": 0.7,
    }  # fmt: skip
    every = {"cast": ["neither", *casts], "relative_norm": [0.0, *[0.1] * len(casts)]}
    frames = pd.DataFrame(rows), pd.DataFrame(every | {"side": "tuned"})
    deltas, tensors = (columns_of(pa.Table.from_pandas(frame)) for frame in frames)
    side = SimpleNamespace(deltas=deltas, rows=SimpleNamespace(tensors=tensors))
    reason = updates.copy_reason(side)
    assert (reason and reason.code) == code


def units(component, layers, *runs):
    """Layers, or experts of layers, in runs of first and last number and first of the base's."""
    keys = ("first", "last", "base_first")
    made = [UnitRun(**dict(zip(keys, run, strict=True))) for run in runs]
    return UnitNumbers(
        component=component, layers=layers, missing=[], new=[], runs=made, by=["content"]
    )  # fmt: skip


MOVED = Correspondence(
    layers=[units("language", [], (3, 5, 2), (6, 6, 9)), units("vision", [], (0, 9, 1))],
    experts=[units("language", [4], (0, 1, 2))],
    rows=[],
    matrices=[
        OtherLayer(component="language", modules=["mlp.up"], layer=5, base_layer=7, by="content")
    ],
)


@pytest.mark.parametrize(("component", "layer", "module", "expert", "of_base"), [
    ("language", 2, "attn.q", GONE, (2, GONE)), ("language", 3, "attn.q", GONE, (2, GONE)),
    ("language", 5, "attn.q", GONE, (4, GONE)), ("language", 6, "attn.q", GONE, (9, GONE)),
    ("language", 7, "attn.q", GONE, (7, GONE)), ("language", 5, "mlp.up", GONE, (7, GONE)),
    ("vision", 5, "mlp.up", GONE, (6, GONE)), ("audio", 5, "mlp.up", GONE, (5, GONE)),
    ("language", 4, "experts.up", 1, (3, 3)), ("language", 4, "experts.up", 2, (3, 2)),
    ("language", 3, "experts.up", 1, (2, 1)), ("vision", 4, "experts.up", 1, (5, 1)),
    ("language", GONE, "embed", GONE, (GONE, GONE)),
])  # fmt: skip
def test_the_units_of_the_base_that_places_correspond_to(component, layer, module, expert, of_base):
    """Runs by their first and last numbers, experts of the layers named, matrices by themselves."""
    units = matching._base_units(MOVED, [(component, layer, module, expert)])
    assert [units["layer"][0], units["expert"][0]] == pytest.approx(of_base, nan_ok=True)


METADATA = {
    "pair": "base..sft", "family": "fam", "base": {"repo": "org/m", "commit": None},
    "tuned": {"repo": "org/t", "commit": "0123456789" * 4},
}  # fmt: skip


@pytest.mark.parametrize(("model", "side"), [
    ("org/m", "base"), ("m", "base"), ("fam:base", "base"), ("org/t", "tuned"), ("t", None),
    ("fam:sft", "tuned"), ("org/t@0123456", "tuned"), ("org/t@012345", None),
    ("org/t@1234567", None), ("org/x@0123456", None), ("org/m@0123456", None), ("sft", None),
])  # fmt: skip
def test_a_name_of_scores_is_that_of_a_side(model, side):
    """By repository, stage, last name of a folder, or seven letters of a commit."""
    sides = [one for one in ("base", "tuned") if scores._fits(model, one, METADATA)]
    assert sides == ([] if side is None else [side])


@pytest.mark.parametrize(("base", "tuned", "gain"), [(0.1, 0.3, 0.2), (0.3, 0.1, -0.2)])
def test_equal_decimals_are_equal_gains(base, tuned, gain):
    """As 0.3 - 0.1 is not; of benchmarks that both sides have, each metric for itself."""
    given = [
        scores.Score("org/m", "a", "acc", base, "x"),
        scores.Score("org/t", "a", "acc", tuned, "x"),
        scores.Score("org/t", "a", "f1", 9.0, "x"),
        scores.Score("org/m", "b", "acc", 1.0, "x"),
    ]
    assert scores.gains_of(given, METADATA) == [scores.Gain("a", "acc", base, tuned, gain)]
    with pytest.raises(ShadowError, match="another score"):
        scores.gains_of([*given, scores.Score("org/m", "a", "acc", base + 1, "y")], METADATA)


@pytest.mark.parametrize(("more", "expected"), [
    ({}, []), ({"version": "2"}, [("versions_differ", {"before": "1", "now": "2"})]),
    ({"method": {"level": None, "subjects": "delta"}}, [
        ("settings_differ", {"before": "all", "now": "delta", "option": "--subjects"})]),
    ({"device": "cuda"}, [
        ("settings_differ", {"before": "cpu", "now": "cuda", "option": "--device"})]),
    ({"device": None}, []), ({"chosen": {"layers": [1]}}, [("filters_differ", {})]),
])  # fmt: skip
def test_settings_that_differ_are_said_with_both_values(more, expected):
    """What is not recorded has its default."""
    found = [*matching.settings_apart(report(), report("B", **more))]
    labels = {"first": "A", "second": "B"}
    expected = [(code, labels | said if said else {}) for code, said in expected]
    assert [(one.code, one.figures) for one in found] == expected


def test_groups_of_modules_have_their_shares_of_energy():
    """Of the main component by kind of module; another one is a group, largest first."""
    rows = [
        ("language", "attn.q", 1.0), ("text", "attn.o", 0.5), ("language", "mlp.up", 4.0),
        ("vision", "mlp.up", 2.0), ("language", "embed", 1.5), ("language", "head", None),
    ]  # fmt: skip
    names = "component", "module", "energy"
    modules = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in rows]
    groups = lineage._groups(SimpleNamespace(modules=modules, main_component="text"), 10.0)
    assert [(group.name, group.energy_share) for group in groups] == [
        ("MLP", 0.4), ("vision", 0.2), ("attention", 0.15), ("embedding", 0.15), ("head", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "figure", "code"), [
    ("lineage", 0.5, "step_rearranged"), ("lineage", 0.49, "step_unrelated"),
    ("lineage", None, None), ("rounding", 0.9, None),
])  # fmt: skip
def test_a_step_that_fails_its_gate_is_close_from_the_threshold_on(name, figure, code):
    gate = SimpleNamespace(name=name, figure=figure, threshold=0.5)
    doubt = lineage._doubt([SimpleNamespace(name="x", figure=1.0), gate])
    assert (doubt and doubt.code) == code


@pytest.mark.parametrize(("copy", "kept", "dtype", "base", "tuned", "cols", "is_few"), [
    (0.0, 0.9, "BF16/BF16", 0.7, 0.7, 1024, False), (1.0, 0.9, "BF16/BF16", 0.7, 0.7, 1024, True),
    (0.0, 0.0, "BF16/BF16", 0.7, 0.7, 1024, True), (GONE, GONE, None, GONE, GONE, 1024, False),
    (0.0, 0.9, "BF16/I8", 0.7, 0.7, 1024, True), (0.0, 0.9, "I8/I8", 0.7, 0.7, 1024, False),
    (0.0, 0.9, "I8/BF16", 0.7, 0.7, 1024, False), (0.0, 0.9, "BF16", 0.7, 0.1, 1024, True),
    (0.0, 0.9, "BF16", 0.1, 0.1, 1024, False), (0.0, 0.9, "BF16", 0.7, 0.1, 200, False),
])  # fmt: skip
def test_a_tuned_side_in_few_bits(copy, kept, dtype, base, tuned, cols, is_few):
    """By its format's levels, by its dtype, or by few distinct values, where the base has many."""
    figures = {"format_copy": copy, "kept_high": kept, "dtype": dtype, "cols": cols}
    figures |= {"levels_base": base, "levels_tuned": tuned}
    arrays = {name: pa.array([value]) for name, value in figures.items()}
    deltas = columns_of(pa.table(arrays | {"dtype": pa.array([dtype], pa.string())}))
    assert updates._of_few_bits(deltas).tolist() == [is_few]
