"""Figures show the Parquet files' numbers, say what they show, and are always the same bytes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from effort import chosen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from reports import delta, place, write

from shadow.errors import ShadowError, UsageError
from shadow.outputs.figures import DRAWN, MARK, compose, draw, write_figure
from shadow.outputs.figures.source import Choice, read_source, shown
from shadow.outputs.figures.style import CURVES, styled
from shadow.reports.columns import SPECTRA, delta_metrics
from shadow.reports.parquet import arrow_schema

SHADOW = Path(sys.executable).parent / "shadow"
MODULES = ("attn.q", "attn.o", "mlp.gate", "mlp.up")
HOSTILE = "--><script>alert(1)</script> $\\frac{1}{$ _x\x1b[31m\u202e 中"


SUFFIXES = chosen(("svg", "pdf", "png"), ("svg",))
OF_EXPERTS = (
    *(f"experts.{name}" for name in ("up", "down", "gate")), "router",
    *(f"attn.{name}" for name in "qkvo"),
)  # fmt: skip


def toy(
    folder, layers=6, modules=MODULES, experts=0, *, spectra=True, component="language", shift=0.0,
    **told,
):  # fmt: skip
    """A report of random numbers, with spectra whose delta has six singular values above 0.3 and
    some not resolved.
    """
    random = np.random.default_rng(layers)
    rows = []
    for layer in range(layers):
        for module in modules:
            for expert in range(experts) if module.startswith("experts.") else (None,):
                where = {**place(layer, module, expert), "component": component}
                norms = {
                    "relative_norm": 0.02 + 0.02 * random.random(),
                    "frobenius_norm": 0.1 + random.random(),
                }
                shifts = {"effective_rank_shift": float(random.standard_normal()), "null_edge": 0.3}
                rows.append(delta(0.1 + shift + 0.4 * random.random(), where, **norms, **shifts))
    embed = {**place(None, "embed"), "component": component}
    rows.append(delta(0.6, embed, effective_rank_shift=1.0, null_edge=0.3))
    write(folder, rows, **told)
    if spectra:
        metadata = pq.read_schema(folder / "matrices.parquet").metadata
        kept = [column.name for column in SPECTRA if column.type != "floats"]
        found = []
        for row in pq.read_table(folder / "matrices.parquet").to_pylist():
            sigma = np.sort(random.random(40))[::-1] * (0.2 if row["subject"] == "delta" else 2)
            if row["subject"] == "delta":
                sigma[:6] += 0.4
                sigma[-5:] = 0
            found.append({name: row[name] for name in kept} | {"sigma": sigma.tolist()})
        table = pa.Table.from_pylist(found, schema=arrow_schema(SPECTRA)).replace_schema_metadata(
            metadata
        )
        pq.write_table(table, folder / "spectra.parquet")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("run") / "base..sft")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    top = tmp_path_factory.mktemp("two")
    return [toy(top / "base..dpo", shift=0.2), toy(top / "base..sft")]


source = cache(read_source)  # of reports that no test changes


@pytest.fixture(autouse=True)
def _each_report_is_read_once(monkeypatch):
    """To summarise a report takes longer than to draw it."""
    monkeypatch.setattr("shadow.outputs.figures.read_source", source)


@cache
def composed(kind, folders, choice):
    """A figure of such reports, and what it says of its choice."""
    with styled():
        return compose(kind, [source(folder, choice.component) for folder in folders], choice)


def drawn(kind, folders, **choice):
    """The figure as matplotlib's objects."""
    return composed(kind, tuple(folders), Choice(**choice))[0]


def laid_out(kind, folders, **choice):
    """The same once every text has its place, which takes longest."""
    figure = drawn(kind, folders, **choice)
    with styled():
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    return figure


def notes(kind, folders, **choice):
    """What a figure says of its choice, without drawing it."""
    return composed(kind, tuple(folders), Choice(**choice))[1]


@cache
def once(kind, folder, suffix):
    """The file of a figure of a report that no test changes."""
    return draw(kind, [folder], suffix, Choice())[0]


def rows_of(folder, subject):
    rows = pq.read_table(folder / "matrices.parquet").to_pylist()
    return [row for row in rows if row["subject"] == subject]


def deltas(folder):
    return rows_of(folder, "delta")


def by_layer(rows, name, module=None):
    """The median by layer, by plain Python."""
    found = {}
    for row in rows:
        if row["layer"] is not None and module in (None, row["module"]):
            found.setdefault(row["layer"], []).append(row[name])
    return {layer: statistics.median(values) for layer, values in found.items()}


def curves(axes):
    """The lines of axes by their label, as {x: y}."""
    return {
        line.get_label(): dict(zip(*map(np.asarray, line.get_data()), strict=True))
        for line in axes.lines
    }


# What is drawn is what the files say


def test_depth_shows_the_medians_of_the_files(run):
    """The shift by module and layer, a layer's relative norm as a vector, median concentration."""
    top, middle, bottom = drawn("depth", [run]).axes
    rows = deltas(run)
    for module in MODULES:
        assert curves(top)[module] == pytest.approx(by_layer(rows, "effective_rank_shift", module))
    base = rows_of(run, "base")
    norms = {}
    for layer in range(6):
        own, of_base = (
            sum(row["frobenius_norm"] ** 2 for row in side if row["layer"] == layer)
            for side in (rows, base)
        )
        norms[layer] = 100 * (own / of_base) ** 0.5
    assert any(curve == pytest.approx(norms) for curve in curves(middle).values())
    wanted = by_layer(rows, "concentration")
    assert any(
        len(curve) == 6 and curve == pytest.approx(wanted) for curve in curves(bottom).values()
    )


def test_the_mark_beside_depth_is_the_summary(run):
    """The median of all and its interval over layers are those that `shadow show` prints."""
    bottom = drawn("depth", [run]).axes[2]
    (row,) = source(run, None).summary.components
    (bars,) = bottom.containers
    (line,), _, (segments,) = bars.lines[0:1], bars.lines[1], bars.lines[2]
    assert line.get_ydata()[0] == row.concentration
    low, high = segments.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(row.intervals["concentration"])
    assert "with their spread over layers (95 %)" in texts(drawn("depth", [run]))


def test_all_modules_together_have_a_mark_of_their_own(run, two):
    """The curves of one report's lower panels look like none of a module above; those of several
    reports look like the report's above.
    """
    top, middle, bottom = drawn("depth", [run]).axes[:3]
    of_modules = {line.get_marker() for line in top.lines if len(line.get_xdata()) > 2}
    together = [
        line for axes in (middle, bottom) for line in axes.lines if len(line.get_xdata()) > 2
    ]
    assert len(together) == 2
    assert not of_modules & {line.get_marker() for line in together}
    assert not {style["color"] for style in CURVES} & {line.get_color() for line in together}
    assert "all modules, open" in texts(drawn("depth", [run]))
    top, middle = drawn("depth", two).axes[:2]
    assert [line.get_marker() for line in middle.lines] == ["o", "s"]


def test_depth_of_two_reports_has_a_curve_each(two):
    """The up-projections of both pairs, under their names."""
    top = drawn("depth", two).axes[0]
    for folder in two:
        assert curves(top)[folder.name] == pytest.approx(
            by_layer(deltas(folder), "effective_rank_shift", "mlp.up")
        )


def test_a_metric_and_a_module_can_be_chosen(run):
    """`--metric concentration --module attn.*`"""
    found = curves(drawn("depth", [run], metric="concentration", modules=("attn.*",)).axes[0])
    assert found["attn.o"] == pytest.approx(by_layer(deltas(run), "concentration", "attn.o"))
    assert not {"mlp.up", "mlp.gate"} & set(found)


def test_of_many_experts_the_median_is_drawn(tmp_path):
    """Up-projections of the experts, the router left out, as more curves look alike."""
    folder = toy(tmp_path / "moe", layers=2, modules=OF_EXPERTS, experts=3, spectra=False)
    found = curves(drawn("depth", [folder]).axes[0])
    assert found["experts.up"] == pytest.approx(
        by_layer(deltas(folder), "effective_rank_shift", "experts.up")
    )
    assert "router" not in found


def test_experts_above_their_short_side_are_not_left_out(tmp_path):
    """equivalent_directions of 10, 20 and one that is null because it is above m: 20, not 15; with
    two such there is no value.
    """
    known = {"kept_reason": "nothing_rounded", "excess_purity": 0.001}
    deltas = [
        delta(0.3, place(layer, "experts.up", expert), equivalent_directions=value, **known)
        for layer, values in enumerate([(10.0, 20.0, None), (10.0, None, None)])
        for expert, value in enumerate(values)
    ]
    folder = write(tmp_path / "base..tuned", deltas)
    grid = drawn("heatmap", [folder], metric="equivalent_directions").axes[0].collections[0]
    assert grid.get_array().filled(-1).ravel().tolist() == [20, -1]
    lines = drawn("depth", [folder], metric="equivalent_directions").axes[0].lines
    (curve,) = (line for line in lines if line.get_label() == "experts.up")
    np.testing.assert_array_equal(np.asarray(curve.get_ydata(), float), [20, np.nan])


def test_the_heatmap_is_the_grid_of_medians(run):
    """Rows are modules in the order of names.yaml, columns layers; negative cells have a minus."""
    figure = drawn("heatmap", [run], metric="effective_rank_shift")
    axes = figure.axes[0]
    # which gets lighter all the way, also in grey
    assert axes.collections[0].get_cmap().name == "cividis"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["attn.q", "attn.o", "mlp.gate", "mlp.up"]
    wanted = [list(by_layer(deltas(run), "effective_rank_shift", name).values()) for name in names]
    assert np.asarray(axes.collections[0].get_array()).reshape(4, 6) == pytest.approx(
        np.array(wanted)
    )
    assert len(axes.lines) == sum(value < 0 for row in wanted for value in row)
    assert "−: below 0" in texts(figure)


def test_a_layer_without_a_value_is_left_blank(tmp_path):
    """Null in the file, masked in the figure; a metric that is null everywhere is no figure."""
    rows = [delta(0.4, place(layer, module)) for layer in range(4) for module in MODULES]
    rows[0]["concentration"] = None
    folder = write(tmp_path / "a", rows)
    grid = drawn("heatmap", [folder]).axes[0].collections[0].get_array().reshape(4, 4)
    assert np.ma.getmaskarray(grid).sum() == 1
    with pytest.raises(ShadowError, match="alpha is null"):
        drawn("heatmap", [folder], metric="alpha")


def test_the_spectrum_is_that_of_the_file(run):
    """Base, tuned and delta without what is not resolved, the null's edge, and the singular values
    above it.
    """
    figure = drawn("spectrum", [run], modules=("attn.o",), layer=2)
    found = curves(figure.axes[0])
    rows = pq.read_table(run / "spectra.parquet").to_pylist()
    own = {
        row["subject"]: row["sigma"]
        for row in rows
        if (row["module"], row["layer"]) == ("attn.o", 2)
    }
    for subject, sigma in own.items():
        assert list(found[subject].values()) == [value for value in sigma if value > 0]
        assert next(iter(found[subject])) == 1
    assert list(found["6 spikes"].values()) == own["delta"][:6]
    assert set(found["null edge, 0.3"].values()) == {0.3}
    assert "5 of 40 of the delta not resolved" in texts(figure)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_an_unnamed_spectrum_is_an_up_projection_of_the_middle(run):
    """And what was taken is said."""
    (note,) = notes("spectrum", [run])
    assert note.startswith("layers.3.mlp.up: mlp.up, layer 3")


def test_modules_show_every_matrix_and_the_intervals_of_the_summary(run):
    """A tick for each matrix, the median, its interval; 0 is the null. Outside the layers there is
    no interval.
    """
    axes = drawn("modules", [run]).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["embed (1)", "attn.q (6)", "attn.o (6)", "mlp.gate (6)", "mlp.up (6)"]
    ticks = [line.get_xdata() for line in axes.lines if line.get_alpha() == 0.45]
    by_module = {row.module: row for row in source(run, None).summary.modules}
    for place_, module in enumerate(["embed", *MODULES]):
        values = [row["concentration"] for row in deltas(run) if row["module"] == module]
        assert sorted(ticks[place_]) == pytest.approx(sorted(values))
        bars = axes.containers[place_]
        assert bars.lines[0].get_xdata()[0] == pytest.approx(statistics.median(values))
        bounds = by_module[module].intervals.get("concentration")
        if bounds:
            assert tuple(bars.lines[2][0].get_segments()[0][:, 0]) == pytest.approx(bounds)
        else:
            assert bars.lines[0].get_markerfacecolor() == "white"


def test_a_layer_of_zeros_in_the_base_has_no_relative_norm(tmp_path):
    """Added layers begin as zeros: their relative norm is null, and the others' are drawn."""
    rows = [delta(0.4, place(layer, "mlp.up"), frobenius_norm=0.1) for layer in range(4)]
    folder = write(tmp_path / "a", rows)
    table = pq.read_table(folder / "matrices.parquet")
    norms = [
        0.0 if row["subject"] == "base" and row["layer"] == 2 else row["frobenius_norm"]
        for row in table.to_pylist()
    ]
    place_ = table.column_names.index("frobenius_norm")
    pq.write_table(
        table.set_column(place_, "frobenius_norm", pa.array(norms)), folder / "matrices.parquet"
    )
    middle = drawn("depth", [folder]).axes[1]
    (curve,) = curves(middle).values()
    assert [layer for layer, norm in curve.items() if not np.isfinite(norm)] == [2]


def test_what_is_left_out_of_depth_is_said(two, tmp_path):
    """Modules beyond what can be told apart, asked for or not; a report without the module; a
    metric of nulls.
    """
    folder = toy(tmp_path / "moe", layers=2, modules=OF_EXPERTS, experts=1, spectra=False)
    assert "without attn.q, attn.k, attn.v, attn.o, experts.gate" in notes("depth", [folder])[1]
    asked = notes("depth", [folder], modules=("*",))
    assert asked[1].startswith("without router")
    several = notes("depth", two, modules=("mlp.gate", "mlp.up"))
    assert several[1] == "without mlp.gate: --module chooses, of several reports one"
    gone = notes("depth", [two[0], folder], modules=("mlp.up",))
    assert gone[1] == f"no curve of {folder}: no effective_rank_shift of mlp.up"
    assert notes("depth", [two[0], folder])[0] == "effective_rank_shift of attn.q; language"
    with pytest.raises(ShadowError, match="alpha is null"):
        notes("depth", two, metric="alpha")


def test_reports_of_different_components_say_which(two, tmp_path):
    """A text model beside a vision tower: the legend has the components."""
    tower = toy(tmp_path / "tower", layers=2, component="vision", spectra=False)
    for kind in ("depth", "modules"):
        found = texts(drawn(kind, [two[0], tower]))
        assert "base..dpo, language" in found
        assert "tower, vision" in found


# How it is drawn


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def unseen(axis):
    """The labels of ticks that lie outside the axis, which matplotlib keeps and does not draw."""
    low, high = sorted(axis.get_view_interval())
    for tick in (*axis.majorTicks, *axis.minorTicks):
        if not low <= tick.get_loc() <= high or not tick.get_visible():
            yield from (tick.label1, tick.label2)
        for label in (tick.label1, tick.label2):
            if not label.get_visible():
                yield label


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Two reports of 48 layers and of long names."""
    top = tmp_path_factory.mktemp("long")
    return [
        toy(top / f"{'very-long-name-of-a-stage-' * 4}{number}", 48, family="f" * 300)
        for number in range(2)
    ]


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("which", chosen(("one", "two", "long"), ("one",)))
def test_nothing_leaves_the_page(run, two, long, kind, which):
    """Every text lies inside a figure of 3.3 inches, at 5 points or more, and no two labels of an
    axis overlap.
    """
    folders = {"one": [run], "two": two, "long": long}[which]
    figure = laid_out(kind, folders[: 1 if kind in ("spectrum", "heatmap") else None])
    width, height = figure.get_size_inches() * figure.dpi
    assert width / figure.dpi == pytest.approx(3.3)
    outside = {
        label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in unseen(axis)
    }
    shown_texts = [
        text for text in figure.findobj(Text) if text.get_text().strip() and text not in outside
    ]
    assert len(shown_texts) > 8
    for text in shown_texts:
        box = text.get_window_extent()
        assert text.get_fontsize() >= 5
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for axes in figure.axes:
        for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
            seen = [label for label in labels if label.get_text() and label not in outside]
            boxes = [label.get_window_extent() for label in seen]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), axes


def test_curves_are_told_apart_without_colour():
    """Dashes and markers are all different, so that a grey print can be read."""
    for name in ("linestyle", "marker", "color"):
        assert len({str(curve[name]) for curve in CURVES}) == len(CURVES)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", chosen(DRAWN, ("depth", "spectrum")))
def test_the_same_report_gives_the_same_bytes(run, kind, suffix):
    """No date, no random name: twice the same."""
    assert draw(kind, [run], suffix, Choice())[0] == once(kind, run, suffix)


@pytest.mark.slow
def test_another_process_and_a_users_settings_give_the_same_bytes(run, tmp_path):
    """A matplotlibrc that asks for TeX and other sizes, and another hash seed, change nothing."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 20\nsavefig.dpi: 50\n")
    env = os.environ | {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7"}
    for suffix in ("svg", "pdf"):
        command = [SHADOW, "figure", run, "--kind", "modules", "-o", tmp_path / f"x.{suffix}"]
        subprocess.run(command, check=True, capture_output=True, env=env)
        assert (tmp_path / f"x.{suffix}").read_bytes() == once("modules", run, suffix)


@pytest.mark.slow
def test_files_are_what_journals_take(run, tmp_path):
    """PNG at 300 dots an inch, 3.3 inches wide; PDF without fonts of type 3; SVG without a script
    or an outer link.
    """
    png = Image.open(BytesIO(once("depth", run, "png")))
    assert (png.width, png.info["Software"]) == (990, MARK)
    pdf = once("depth", run, "pdf")
    assert b"/Type3" not in pdf
    assert b"/CreationDate" not in pdf
    tree = ElementTree.fromstring(once("depth", run, "svg"))
    assert tree.attrib["width"] == "237.6pt"
    assert Image.open(BytesIO(draw("depth", [run], "png", Choice(width=6.6))[0])).width == 1980


# Hostile text


@pytest.mark.parametrize("kind", chosen(DRAWN, ("depth", "modules")))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_of_files_is_text(tmp_path, kind, suffix):
    """Mathematics, markup and control characters in every name are drawn as they are, and nothing
    is run.
    """
    hostile = {"family": HOSTILE, "pair": f"_{HOSTILE}"}
    folder = toy(tmp_path / "a", layers=2, modules=("mlp.up", f"m{HOSTILE}"), **hostile)
    content, said = draw(kind, [folder], suffix, Choice())
    assert said
    if suffix == "svg":
        tree = ElementTree.fromstring(content)
        tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert "script" not in tags
        found = [item for element in tree.iter() for item in element.attrib.items()]
        links = [value for key, value in found if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    if kind == "depth":
        assert "$\\frac{1}{$" in texts(drawn(kind, [folder]))


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path):
    """matplotlib leaves such labels out."""
    folders = [
        toy(tmp_path / name, layers=2, modules=["mlp.up"], spectra=False, pair=name)
        for name in ("_one", "_two")
    ]
    for kind in ("depth", "modules"):
        legend = drawn(kind, folders).axes[0].get_legend()
        assert [text.get_text().strip() for text in legend.get_texts()] == ["_one", "_two"]


@pytest.mark.slow
def test_letters_that_the_font_lacks_are_said(tmp_path, run):
    """Boxes in the figure are named on stderr; a figure without any says nothing."""
    folder = toy(tmp_path / "a", family="模型 é", pair="base..模")
    for kind in DRAWN:
        assert draw(kind, [folder], "png", Choice())[1][-1] == (
            "drawn as boxes, as DejaVu Sans has no such letters: 模型"
        )
        assert not any("boxes" in note for note in draw(kind, [run], "png", Choice())[1])
    assert not any(
        "boxes" in note for note in draw("depth", [folder], "png", Choice(title=False))[1]
    )


def test_axes_say_of_what_a_metric_is(run):
    """Ranks and norms are those of the delta, shifts are of the weights."""
    assert "stable rank\nof the delta" in texts(drawn("heatmap", [run], metric="stable_rank"))
    assert "effective-rank shift" in texts(drawn("heatmap", [run], metric="effective_rank_shift"))


@pytest.mark.parametrize(
    "metric", ["null_participation_ratio", "effective_rank_shift", "stable_rank"]
)
def test_a_heatmap_of_one_module_has_room_for_its_label(run, metric):
    """The name of the metric beside a single row of cells lies inside the figure."""
    figure = laid_out("heatmap", [run], metric=metric, modules=("mlp.up",))
    box = figure.axes[1].yaxis.label.get_window_extent()
    assert box.y0 >= -1
    assert box.y1 <= figure.bbox.height + 1


def test_labels_are_short_and_printable():
    """One line, cut in the middle."""
    assert shown("x" * 100) == "x" * 21 + "…" + "x" * 22
    assert shown("a\n\x1b[31mb") == "a\\x0a\\x1b[31mb"


# Refusals


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_foreign_is_overwritten(run, tmp_path, suffix):
    """An own figure is drawn anew; another file stays, and nothing lies beside it."""
    path = tmp_path / f"x.{suffix}"
    small = Choice(modules=("mlp.up",), title=False)
    write_figure("modules", [run], path, small)
    write_figure("heatmap", [run], path, small)
    path.write_bytes(b"mine")
    with pytest.raises(ShadowError, match="already exists"):
        write_figure("modules", [run], path, small)
    assert path.read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_drawn_is_one_line(run, two, tmp_path, shadow):
    """Each with what to do instead; nothing is written."""
    bare = toy(tmp_path / "bare", layers=1, modules=["mlp.up"], spectra=False)
    norms = tmp_path / "norms"
    shadow("audit", "demo:base..narrow", "--norms", "-o", norms).assert_done()
    norms = norms / "demo/base..narrow"
    for folders, kind, choice, words in (
        ([norms], "modules", Choice(), "concentration is null in every layer"),
        ([norms], "spectrum", Choice(), "--norms or --no-spectra"),
        ([run], "spectrum", Choice(layer=77), "layer 77"),
        ([run], "spectrum", Choice(expert=1), "no expert 1"),
        ([run], "depth", Choice(component="vision"), "no matrix of vision changed"),
        ([run], "depth", Choice(modules=("nothing",)), "no such module changed: nothing"),
        ([bare], "spectrum", Choice(), "--no-spectra"),
        (two, "heatmap", Choice(), "a heatmap shows one report, and there are 2"),
        ([*two, *two, run], "depth", Choice(), "5 reports are more"),
    ):
        with pytest.raises(ShadowError, match=words) as caught:
            write_figure(kind, folders, tmp_path / "x.svg", choice)
        if "5 reports" in words:
            assert "`shadow report` draws any number" in caught.value.hint
    for arguments, words in (
        (("--kind", "depth", "-o", "x.gif"), "cannot draw to 'x.gif'"),
        (("--kind", "depth", "-o", "x.svg", "--metric", "weight"), "no metric 'weight'"),
        (("--kind", "heatmap", "-o", "x.svg", "--layer", "1"), "--layer does not apply"),
        (("--kind", "modules", "-o", "x.svg", "--metric", "alpha"), "--metric does not apply"),
        (("--kind", "depth", "-o", "x.svg", "--component", "visoin"), "no component"),
    ):
        assert words in shadow("figure", run, *arguments).assert_refused(code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "norms"}


def test_a_report_of_nothing_is_one_line(run, tmp_path):
    """All identical, no tensor at all, or nothing inside the layers."""
    same = {**place(0, "mlp.up"), "tensor": "x", "status": "identical"}
    with pytest.raises(ShadowError, match="no matrix changed"):
        draw("depth", [write(tmp_path / "a", [], extra_tensors=(same,))], "svg", Choice())
    with pytest.raises(ShadowError, match="without a tensor"):
        draw("depth", [write(tmp_path / "none", [])], "svg", Choice())
    outside = write(tmp_path / "b", [delta(0.4, place(None, "embed"))])
    for kind in ("depth", "heatmap"):
        with pytest.raises(ShadowError, match="inside a layer"):
            notes(kind, [outside])
    for several in ([outside, run], [run, outside]):
        with pytest.raises(ShadowError, match=f"{outside}: no matrix of language inside a layer"):
            notes("depth", several)
    assert notes("modules", [outside])


@pytest.mark.parametrize("kind", ["depth", "heatmap"])
def test_a_layer_of_an_absurd_number_is_left_out(tmp_path, kind):
    """A tensor's name may claim any; axes of a thousand million layers would take all memory."""
    folder = toy(tmp_path / "base..sft", modules=["mlp.up"], spectra=False)
    for name in ("matrices", "tensors"):
        table = pq.read_table(folder / f"{name}.parquet")
        layers = [999_999_999 if layer == 5 else layer for layer in table["layer"].to_pylist()]
        layers = pa.array(layers, pa.int64())
        pq.write_table(
            table.set_column(table.column_names.index("layer"), "layer", layers),
            folder / f"{name}.parquet",
        )
    assert drawn(kind, [folder]).axes[0].get_xlim()[1] < 10
    assert f"layers of {folder} from number 1,000 on are left out" in notes(kind, [folder])


def test_every_metric_can_be_drawn(run):
    """Every column of numbers that delta rows have is a metric of `--metric`; text is none."""
    assert {"concentration", "effective_rank_shift", "spikes", "alpha"} <= set(delta_metrics())
    assert not {"tensor", "layer", "subject"} & set(delta_metrics())
    with pytest.raises(UsageError):
        draw("heatmap", [run], "svg", Choice(metric="tensor"))


def test_the_command_says_what_it_drew(shadow, run, tmp_path):
    """On stderr; stdout stays empty."""
    done = shadow("figure", run, "--kind", "depth", "-o", "new/x.svg")
    assert done.assert_done() == ""
    assert "new/x.svg: effective_rank_shift of mlp.up, attn.q" in done.err
    assert done.err.endswith("wrote new/x.svg\n")
    nowhere = shadow("figure", "nowhere", "--kind", "depth", "-o", "y.svg")
    assert "no such folder" in nowhere.assert_refused()


def test_a_figure_without_a_kind_is_of_modules_and_lies_here(shadow, run, tmp_path):
    """In modules.svg; with a kind alone, in a file of its name."""
    done = shadow("figure", run)
    assert done.assert_done() == ""
    assert done.err.endswith("wrote modules.svg\n")
    assert (tmp_path / "modules.svg").read_bytes() == once("modules", run, "svg")
    assert "wrote heatmap.svg" in shadow("figure", run, "--kind", "heatmap").err
    assert {path.name for path in tmp_path.iterdir()} == {"modules.svg", "heatmap.svg"}


def test_the_kinds_and_formats_of_the_command_are_the_modules():
    """They stand twice, because the command line imports nothing heavy."""
    from shadow.cli.exports import ExportFormat, FigureKind
    from shadow.outputs.exports import FORMATS

    assert get_args(FigureKind) == tuple(DRAWN)
    assert get_args(ExportFormat) == tuple(FORMATS)
