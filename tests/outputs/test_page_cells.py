"""Cells, curves and sections of a page, of planted rows: what loops find, and edges."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from reports import columns

from shadow.outputs.page import pair
from shadow.telling.document import Figures, Note, Paragraph, TableBlock

UP, DOWN, NEW = ("language", 0, "mlp.up"), ("language", 1, "mlp.up"), ("vision", None, "projector")
ROWS = [  # place, subject, tensor, shape, concentration, effective rank, equivalent directions
    (DOWN, "delta", "d", (8, 4), 0.25, None, 3.0), (DOWN, "base", "d", (8, 4), None, 5.0, None),
    (DOWN, "tuned", "d", (8, 4), None, 4.0, None), (NEW, "tuned", "n", (2, 2), None, 1.5, None),
    (UP, "delta", "u", (4, 6), 0.123456, None, 3.0), (UP, "delta", "v", (5, 7), None, None, None),
    (UP, "delta", "w", (4, 6), 0.6, None, 4.0), (UP, "base", "u", (4, 6), None, 2.0, None),
    (UP, "base", "v", (4, 6), None, 3.0, None), (UP, "tuned", "u", (4, 6), None, 1.0, None),
]  # fmt: skip
NAMES = ("subject", "tensor", "shape", "concentration", "effective_rank", "equivalent_directions")


def matrices():
    frame = pd.DataFrame([row[1:] for row in ROWS], columns=NAMES)
    frame["rows"], frame["cols"] = zip(*frame.pop("shape"), strict=True)
    frame["component"], frame["layer"], frame["module"] = zip(
        *[row[0] for row in ROWS], strict=True
    )
    # the row without equivalent_directions is as flat as noise: they exceed its short side
    frame = frame.assign(excess_purity=0.1, floor_ratio=100.0).astype({"layer": "Int64"})
    return columns(frame.replace({np.nan: None}).astype({"layer": "Int64"}))


def tensors(*rows):
    keys = ("component", "layer", "module", "side", "status", "reason")
    frame = pd.DataFrame([(*place, *more) for place, *more in rows], columns=keys)
    return columns(frame.astype({"layer": "Int64"}))


def test_cells_are_matrices_and_what_was_not_measured():
    """In the order of reports; of the tuned side, without vectors; a measured place stays."""
    at = {name: ("language", 2, name) for name in ("attn.q", "attn.k", "attn.v", "attn.o")}
    found = pair.cells_of(matrices(), tensors(
        (at["attn.q"], "tuned", "identical", None), (at["attn.k"], "base", "identical", None),
        (at["attn.v"], "tuned", "skipped", "filtered"), (at["attn.o"], "tuned", "measured", None),
        (("language", 2, "norm"), "tuned", "identical", None),
        (("language", 2, "bias"), "tuned", "skipped", "filtered"),
        (("language", 2, "mlp.gate"), "tuned", "skipped", "not_a_matrix"),
        (("language", 2, "mlp.down"), "tuned", "skipped", "not_float"),
        (UP, "tuned", "skipped", "shape"), (NEW, "tuned", "identical", None),
    ))  # fmt: skip
    assert found == {
        at["attn.q"]: ("identical", None), at["attn.v"]: ("skipped", "filtered"),
        UP: ("measured", None), DOWN: ("measured", None), NEW: ("alone", None),
    }  # fmt: skip
    assert [*found][2:] == [UP, DOWN, NEW]


def test_figures_of_a_cell_are_medians_of_its_rows():
    """What has no delta has no figures of one; a value that is null because it is too large counts
    as such; what is not drawn is in none.
    """
    cells = {UP: ("measured", None), ("x", 3, "y\x1b"): ("skipped", "z\x1b"), NEW: ("alone", None)}
    drawn = pair.drawn_cells(matrices(), cells)
    assert drawn["layer"] == [0, 3, None]
    assert drawn["tensor"] == ["u", None, "n"]
    assert (drawn["rows"], drawn["cols"]) == ([4, None, 2], [6, None, 2])
    assert drawn["matrices"] == [3, 0, 1]
    assert drawn["state"] == ["measured", "skipped", "alone"]
    assert "\x1b" not in str(drawn["module"] + drawn["reason"])
    values = drawn["values"]
    assert values["delta"]["concentration"] == [0.3617, None, None]  # of .123456 and .6
    assert values["delta"]["equivalent_directions"] == [4, None, None]  # of 3, 4 and beyond
    assert values["base"]["effective_rank"] == [2.5, None, None]
    assert values["tuned"]["effective_rank"] == [1, None, 1.5]
    assert drawn["shift"]["effective_rank"] == [-1.5, None, None]
    assert pair.metrics_of("delta")[: len(pair.FIRST)] == pair.FIRST


@pytest.mark.parametrize(("value", "short"), [
    (0.123456, 0.1235), (1234567, 1235000), (2.0, 2), (math.nan, None), (-math.inf, None),
    (9.9994e14, 999900000000000), (1e15, 1e15), (1.7976931348623157e308, 1.7976931348623157e308),
])  # fmt: skip
def test_numbers_have_four_digits(value, short):
    """Whole ones are written as such, as long as they are exact."""
    (found,) = pair.shortened([value])
    assert (found, type(found)) == (short, type(short))


def curves(*spectra, cells=None, count=1):
    """What is drawn of (place, subject, singular values)."""
    places, subjects, sigmas = zip(*spectra, strict=True)
    keys = [pa.array(part) for part in zip(*places, strict=True)]
    sigma = pa.array(sigmas, pa.list_(pa.float32()))
    names = ["component", "layer", "module", "subject", "sigma"]
    batch = pa.record_batch([*keys, pa.array(subjects), sigma], names=names)
    report = SimpleNamespace(spectrum_batches=lambda wanted: [batch.select(wanted)])
    return pair.thinned_spectra(report, cells or {UP: 0, NEW: 7}, count)


def test_curves_are_medians_at_each_rank():
    """By the number of the cell, without other places and sizes; 0 has no logarithm."""
    found = curves(
        (UP, "delta", [3.0, 1.0, 0.0]), (UP, "delta", [5.0, 2.0, 0.0]), (UP, "base", [9.0, 8.0, 7]),
        (UP, "delta", [1.0, 1.0]), (DOWN, "delta", [4.0]), (NEW, "tuned", [4.0]), (NEW, "base", []),
    )  # fmt: skip
    assert found["ranks"] == {"1": [1], "3": [1, 2, 3]}
    assert found["curves"] == {
        "0": {"size": 3, "matrices": 2, "delta": [4, 1.5, None], "base": [9, 8, 7]},
        "7": {"size": 1, "matrices": 1, "tuned": [4]},
    }


@pytest.mark.parametrize(("count", "most"), [(0, 112), (3000, 112), (8000, 50), (10**6, 32)])
def test_a_page_of_many_curves_has_fewer_points_of_each(count, most):
    """400,000 in all, 32 to 112 a curve; nearly all of them are used."""
    found = curves((UP, "delta", [*range(3584, 0, -1)]), count=count)
    assert most * 0.9 <= len(found["ranks"]["3584"]) <= most


FULL, SOME = (Figures([], when=when) for when in ("full", "always"))
TEXT, WARNING = Paragraph("x"), Note("y")
GATES = TableBlock([], [], "Gates of the pair")


def sections(blocks, failed=()):
    summary = SimpleNamespace(gates=[1, 2], failed_gates=failed, gates_that=lambda _: failed)
    return {one.name: one for one in pair._sections(summary, {"gates": [GATES]} | blocks)}


def test_sections_are_those_with_something_to_say():
    """Figures after sentences and notes last; an empty section says so, or is left out."""
    module = TableBlock([], [], "By module, medians")
    other = TableBlock([], [], "Layers")
    found = sections({"finding": [WARNING, FULL, SOME, TEXT], "modules": [module, other, TEXT]})
    assert list(found["finding"].blocks) == [TEXT, WARNING, SOME]
    assert list(found["finding"].folded) == [FULL]
    assert [getattr(block, "title", None) for block in found["modules"].blocks] == [
        "", "Layers", None,
    ]  # fmt: skip
    assert found.keys() == {"finding", "claims", "gates", "modules", "skipped"}
    assert found["claims"].blocks[0].text == "No other explanation applies."
    assert sections({"depth": []}).keys() >= {"depth"}


@pytest.mark.parametrize(("failed", "fold"), [((), "All 2 gates passed"), ((1,), GATES.title)])
def test_gates_are_folded_unless_one_failed(failed, fold):
    gates = sections({}, failed)["gates"]
    assert (gates.fold, gates.is_open, gates.is_half) == (fold, bool(failed), not failed)
    assert [block.title for block in gates.folded] == [""]
