"""What figures that others published say of a report: agreement where it is of their pair, a rank
where it is not.
"""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import run_shadow
from reports import columns
from scipy.stats import spearmanr

from shadow.comparing.published import (
    NARROWEST,
    SOURCE,
    Released,
    context_sentence,
    family_of,
    find,
    place,
    published_figures,
    released,
)
from shadow.telling.reading import read_summary

SIDE = 1024
BASE, TUNED = "Org/Base", "Org/Chat"
# relative norms of the tensors of each of two layers
NORMS = {"q": 0.02, "o": 0.03, "up": 0.04, "norm": 0.5}
TOP20 = {"q": 0.1, "o": 0.2, "up": 0.3}
COSINES = {"q": 0.999, "o": 0.998, "up": 0.997}


def tensors(*, norms: dict[str, float] = NORMS, small: bool = True) -> pd.DataFrame:
    """tensors.parquet of a model of two layers; with a tensor that is too small for the table."""
    rows = []
    for layer in (0, 1):
        for name, norm in norms.items():
            module = {"up": "mlp.up", "norm": "norm"}.get(name, f"attn.{name}")
            shape = [SIDE] if name == "norm" else [SIDE, SIDE]
            rows.append(("language", layer, module, f"{layer}.{name}", shape, norm))
        if small:
            rows.append(("language", layer, "bias", f"{layer}.bias", [999], 7.0))
    told = [
        {
            "component": component, "layer": layer, "module": module, "tensor": name, "side": side,
            "shape": shape, "relative_norm": norm, "compared": math.prod(shape),
            "status": "measured", "reason": None,
        }
        for side in ("base", "tuned")
        for component, layer, module, name, shape, norm in rows
    ]  # fmt: skip
    return pd.DataFrame(told)


def deltas(**changed: object) -> pd.DataFrame:
    rows = [
        {
            "layer": layer, "base_tensor": f"{layer}.{name}", "rows": SIDE, "cols": SIDE,
            "top20_energy": TOP20[name], "cosine": COSINES[name], **changed,
        }
        for layer in (0, 1)
        for name in TOP20
    ]  # fmt: skip
    return pd.DataFrame(rows)


def metadata(base: str = BASE, tuned: str = TUNED, **settings: object) -> dict[str, object]:
    return {"base": {"repo": base}, "tuned": {"repo": tuned}, "settings": settings}


MEANS = {  # by hand, over the eight tensors of 1,000 entries or more; six of them are matrices
    "mean_relative_norm": (0.02 + 0.03 + 0.04 + 0.5) / 4,
    "mean_top20_energy": 0.2,
    "oq_ratio": 1.5,
}
# a vector's cosine is at least sqrt(1 - r^2)
LEAST = (0.999 + 0.998 + 0.997 + math.sqrt(1 - 0.25)) / 4


def found_in(tensors, deltas, metadata, unrelated=False):
    return published_figures(columns(tensors), columns(deltas), metadata, unrelated)


def row(**changed: object) -> Released:
    told = {
        "base": BASE, "tuned": TUNED, **MEANS, "mean_cosine": 0.9985, "modules": 8,
        "modules_with_spectrum": 6, **changed,
    }  # fmt: skip
    return Released(**told)


@pytest.fixture
def table(monkeypatch):
    """Put pairs in the place of the shipped ones."""

    def put(*rows: Released) -> None:
        monkeypatch.setattr("shadow.comparing.published.released", lambda: rows)

    return put


def checks(found):
    return {check.figure: check for check in found.pair.checks}


def test_the_shipped_table_is_that_of_the_paper():
    """52 pairs, 45 with spectra, whose top-20 energy falls with the norm: Spearman -.76; no model
    has two bases.
    """
    rows = released()
    spectra = [one for one in rows if one.mean_top20_energy is not None]
    assert (len(rows), len(spectra)) == (52, 45)
    rho = spearmanr(
        [one.mean_relative_norm for one in spectra], [one.mean_top20_energy for one in spectra]
    ).statistic
    assert rho == pytest.approx(-0.76, abs=0.005)
    assert len({one.tuned.lower() for one in rows}) == 52
    assert find(rows, "qwen/qwen2.5-7b", "QWEN/Qwen2.5-7B-Instruct").mean_relative_norm == 0.011958
    assert find(rows, "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B") is None


def test_families_are_told_by_the_base_that_all_stages_come_from():
    """25 families, 19 with norms: fewer than a percentile would need. A model that nobody knows is
    its own family.
    """
    rows = released()
    assert family_of("allenai/OLMo-2-1124-7B-Instruct", rows) == "allenai/olmo-2-1124-7b"
    assert family_of("allenai/Llama-3.1-Tulu-3-8B-DPO", rows) == "meta-llama/llama-3.1-8b"
    assert family_of("Qwen/Qwen2.5-Coder-7B-Instruct", rows) == "qwen/qwen2-7b"
    assert family_of("./base", rows) == "./base"
    assert len({family_of(one.base, rows) for one in rows}) == 25
    assert (
        len({family_of(one.base, rows) for one in rows if one.mean_relative_norm is not None}) == 19
    )
    circle = [row(), row(base=TUNED, tuned=BASE)]
    assert family_of(BASE, circle) in (BASE.lower(), TUNED.lower())


def test_a_published_pair_agrees_figure_by_figure(table):
    """The four means over the same tensors, by hand; names of any case; the tensor of 999 entries
    is not in them.
    """
    table(row())
    found = found_in(
        tensors(),
        deltas(),
        metadata(BASE.upper(), TUNED.lower()),
        unrelated=False,
    )
    assert found.pair.agrees
    for figure, value in MEANS.items():
        assert checks(found)[figure].ours == pytest.approx(value)
        assert checks(found)[figure].agrees
    # a report has no cosine of vectors, and half the norm leaves it open beyond the tolerance
    assert checks(found)["mean_cosine"].agrees is None
    assert "vectors" in checks(found)["mean_cosine"].reason
    text, figures = context_sentence(found)
    assert "they agree" in text
    assert "mean relative norm 0.1475 here, 0.1475 there" in text
    assert figures["published.pair.checks.mean_relative_norm.ours"] == pytest.approx(0.1475)


def test_cosines_are_compared_where_vectors_hardly_moved(table):
    """A vector whose relative norm is .01 has a cosine of at least sqrt(1 - .0001): the mean is
    known to 1e-5.
    """
    norms = {**NORMS, "norm": 0.01}
    mean = (0.999 + 0.998 + 0.997 + 1) / 4
    wrong = mean - 0.0012
    for published, agrees in ((mean, True), (wrong, False)):
        table(row(mean_relative_norm=0.025, mean_cosine=published))
        found = found_in(
            tensors(norms=norms),
            deltas(),
            metadata(),
        )
        assert checks(found)["mean_cosine"].agrees is agrees
        assert found.pair.agrees is agrees
        assert checks(found)["mean_cosine"].ours == pytest.approx(mean, abs=1.3e-5)


@pytest.mark.parametrize(("figure", "value"), MEANS.items())
def test_a_figure_that_differs_by_more_than_a_thousandth_does_not_agree(table, figure, value):
    """1.0009 times a figure agrees, 1.0012 times does not, and the sentence says which differs."""
    for factor, agrees in ((1.0009, True), (1.0012, False)):
        table(row(**{figure: value * factor}))
        found = found_in(
            tensors(),
            deltas(),
            metadata(),
        )
        assert (checks(found)[figure].agrees, found.pair.agrees) == (agrees, agrees)
    assert "they differ in" in context_sentence(found)[0]


def test_small_figures_agree_up_to_the_last_digit_that_is_published(table):
    """.000420 may stand for .0004204."""
    norms = dict.fromkeys(NORMS, 0.0004204)
    table(row(mean_relative_norm=0.00042, oq_ratio=1.0))
    found = found_in(
        tensors(norms=norms),
        deltas(),
        metadata(),
    )
    assert checks(found)["mean_relative_norm"].agrees


def test_means_over_other_tensors_are_not_compared(table):
    """Another number of tensors, a filter, a tensor not read: no agreement, and the reason."""
    table(row(modules=9))
    found = found_in(tensors(), deltas(), metadata())
    assert (
        checks(found)["mean_relative_norm"].reason
        == "9 tensors of one name and shape there, 8 here"
    )
    assert checks(found)["oq_ratio"].agrees  # of weights of the layers alone
    table(row(modules_with_spectrum=7))
    found = found_in(tensors(), deltas(), metadata())
    assert checks(found)["mean_relative_norm"].agrees
    assert checks(found)["mean_top20_energy"].agrees is None
    filtered = metadata(chosen={"components": [], "layers": [0], "modules": []})
    found = found_in(tensors(), deltas(), filtered)
    assert found.pair.agrees is None
    assert {check.agrees for check in found.pair.checks} == {None}
    assert found.size is None
    assert found.no_size == found.no_top20 == "only a part of the pair was audited"
    assert context_sentence(found) is None
    unread = tensors()
    unread.loc[0, ["status", "reason"]] = ["skipped", "nonfinite"]
    found = found_in(unread, deltas(), metadata())
    assert found.no_size == "1 tensors could not be measured"


def test_fused_projections_have_an_o_over_qkv_and_no_top_20(table):
    """Where q, k, v are one tensor, the ratio is over it, as in the paper; our spectra differ."""
    fused = tensors().replace({"module": {"attn.q": "attn.qkv"}})
    parts = deltas()
    parts["base_tensor"] = parts["base_tensor"].str.replace("up", "q")
    table(row())
    found = found_in(fused, parts, metadata())
    assert checks(found)["oq_ratio"].ours == pytest.approx(1.5)
    assert "measured here apart" in checks(found)["mean_top20_energy"].reason
    assert checks(found)["mean_relative_norm"].agrees
    table(row(base="Other/Base", tuned="Other/Chat"))
    found = found_in(fused, parts, metadata())
    assert found.size is not None
    assert found.top20 is None
    assert "measured apart" in found.no_top20


def test_a_place_is_a_rank_among_families_without_its_own(table):
    """Three families of medians .01, .2 and .5; the pair's own, a chain of stages, is left out."""
    table(
        row(base="a/a", tuned="a/b", mean_relative_norm=0.01),
        row(base="b/b", tuned="b/c", mean_relative_norm=0.001),
        row(base="b/b", tuned="b/d", mean_relative_norm=0.2, mean_top20_energy=0.19),
        row(base="b/b", tuned="b/e", mean_relative_norm=0.3, mean_top20_energy=0.15),
        row(base="c/c", tuned="c/d", mean_relative_norm=0.5),
        row(base=BASE, tuned="Org/Middle", mean_relative_norm=0.1),
        row(base="Org/Middle", tuned="Org/End", mean_relative_norm=0.1),
    )
    found = found_in(
        tensors(),
        deltas(),
        metadata("org/middle", "x/y"),
    )
    assert found.pair is None
    size, top20 = found.size, found.top20
    assert (size.value, size.below, size.families, size.pairs) == (pytest.approx(0.1475), 1, 3, 5)
    assert (size.least, size.most) == (0.01, 0.5)
    # within a factor of 3 are .2 and .3 alone: one family, whose median is .17
    assert (top20.value, top20.below, top20.families, top20.pairs) == (pytest.approx(0.2), 1, 1, 2)
    assert top20.most == pytest.approx(0.17)
    text, figures = context_sentence(found)
    assert (
        text == "The mean relative norm of a tensor is 15 %, more than in 1 of 3 published families"
        " (1.0 % to 50 %). The first 20 directions hold 20 % of a matrix's change, more than in the"
        " 1 published family with changes of similar relative norm (17 %)."
    )
    for value, below, words in (
        (0.005, 0, "0.50 %, less than in any of 3 published families"),
        (0.01, 0, "1.0 %, no more than in any of 3 published families"),
        (0.6, 3, "60 %, more than in any of 3 published families"),
    ):
        told, _ = context_sentence(replace(found, size=replace(size, value=value, below=below)))
        assert words in told
    assert (figures["published.size.families"], figures["published.top20.below"]) == (3, 1)


def test_an_adapter_and_the_same_adapter_merged_have_one_mean():
    """What the adapter leaves alone is identical, without a relative norm: it counts as 0."""
    merged = tensors(norms={**NORMS, "up": 0.0, "norm": 0.0})
    still = merged["relative_norm"] == 0
    merged.loc[still, "status"] = "identical"
    adapter = merged.assign(relative_norm=merged["relative_norm"].mask(still))
    places = [
        found_in(
            rows,
            deltas(),
            metadata("a", "b"),
        ).size
        for rows in (merged, adapter)
    ]
    assert places[0] == places[1]
    assert places[0].value == pytest.approx((0.02 + 0.03) / 4)


def test_ties_are_not_below():
    """A value that equals a family's median is above none of them."""
    rows = [
        row(base="a/a", tuned="a/b", mean_relative_norm=0.5),
        row(base="b/a", tuned="b/b", mean_relative_norm=0.25),
    ]
    assert place("mean_relative_norm", 0.5, rows).below == 1
    assert place("mean_relative_norm", 0.25, rows).below == 0
    assert place("mean_relative_norm", 0.25, []) is None


@pytest.mark.parametrize(
    ("rows", "settings", "unrelated", "reason"),
    [
        (tensors(), {"relation": "sibling"}, False, "neither side was trained from the other"),
        (tensors(), {}, True, "not of one lineage"),
        (tensors(norms={}), {}, False, "no tensor of 1,000 entries"),
        (tensors(norms=dict.fromkeys(NORMS, 0.0)), {}, False, "nothing changed"),
    ],
)
def test_no_place_where_there_is_no_training_between_the_sides(rows, settings, unrelated, reason):
    """Siblings, unrelated models, models without a tensor in common and copies have no rank."""
    if rows["relative_norm"].eq(7.0).all():
        rows = rows.assign(compared=1)
    found = found_in(rows, deltas(), metadata(**settings), unrelated)
    assert found.size is None
    assert found.top20 is None
    assert reason in found.no_size
    assert reason in found.no_top20
    assert context_sentence(found) is None


def test_narrow_matrices_have_a_size_and_no_top_20():
    """20 directions are a third of a matrix of 64: no released model is that narrow."""
    found = found_in(
        tensors(),
        deltas(rows=64),
        metadata(),
    )
    assert found.size is not None
    assert str(NARROWEST) in found.no_top20
    text, _ = context_sentence(found)
    assert "20 directions" not in text


def test_an_audit_tells_the_place_of_the_demo(demo_reports):
    """summary.json has the mean over tensors of 1,000 entries that NumPy finds, and is read back as
    it was written.
    """
    folder = demo_reports / "base..narrow"
    summary, _ = read_summary(folder)
    rows = pd.read_parquet(folder / "tensors.parquet")
    rows = rows[(rows["side"] == "base") & (rows["shape"].map(np.prod) >= 1000)]
    assert summary.published.size.value == pytest.approx(statistics.fmean(rows["relative_norm"]))
    assert summary.published.source == SOURCE
    assert summary.published.size.families == 19
    assert summary.as_json()["published"]["pair"] is None


def test_explain_tells_the_source_and_the_families():
    """The definitions, the licence and every family, in 80 columns."""
    done = run_shadow("explain", "published", cwd=Path.cwd(), env={**os.environ, "COLUMNS": "80"})
    assert done.code == 0
    assert "github.com/nick-yudin/modeldelta" in done.out
    assert "MIT" in done.out
    assert "qwen2-7b" in done.out
    assert "1,000 entries or more" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
