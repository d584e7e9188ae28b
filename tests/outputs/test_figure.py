"""Figures show the Parquet files' numbers, are always the same bytes, and refuse in one line."""

import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from effort import every
from PIL import Image
from reports import delta, place, put_spectra, write

from shadow.errors import ShadowError
from shadow.outputs import figures
from shadow.outputs.figures import DRAWN, FORMATS, Choice, compose, draw, read_source, styled

SHADOW = Path(sys.executable).parent / "shadow"
MODULES = ("attn.q", "attn.o", "mlp.gate", "mlp.up")
HOSTILE = "--><script>alert(1)</script> $\\frac{1}{$ _x\x1b[31m\u202e 中"


def toy(
    folder, layers=6, modules=MODULES, experts=0, *, spectra=True, component="language", shift=0.0,
    **recorded,
):  # fmt: skip
    """A report of random numbers; its delta has six singular values above 0.3, some unresolved."""
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
    write(folder, rows, **recorded)

    def sigma(row):
        values = np.sort(random.random(40))[::-1] * (0.2 if row["subject"] == "delta" else 2)
        if row["subject"] == "delta":
            values[:6] += 0.4
            values[-5:] = 0
        return values.tolist()

    if spectra:
        put_spectra(folder, sigma)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("run") / "base..sft")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    top = tmp_path_factory.mktemp("two")
    return [toy(top / "base..dpo", shift=0.2), toy(top / "base..sft")]


def drawn(kind, folders, **choice):
    """The figure as matplotlib's objects, and what was chosen."""
    chosen = Choice(**choice)
    with styled():
        return compose(kind, [read_source(one, chosen.component) for one in folders], chosen)


def deltas(folder):
    rows = pq.read_table(folder / "matrices.parquet").to_pylist()
    return [row for row in rows if row["subject"] == "delta"]


def by_layer(rows, name, module):
    """The median by layer, by plain Python."""
    found = {}
    for row in rows:
        if row["layer"] is not None and module == row["module"]:
            found.setdefault(row["layer"], []).append(row[name])
    return {layer: statistics.median(values) for layer, values in found.items()}


def curves(figure):
    """The lines of the axes by their label, as {x: y}."""
    return {
        line.get_label(): dict(zip(*map(np.asarray, line.get_data()), strict=True))
        for line in figure.axes[0].lines
    }


def test_depth_shows_the_medians_of_the_files(run, two):
    """Of one report a curve a module, of several a curve each, of the up-projections."""
    found = curves(drawn("depth", [run])[0])
    for module in MODULES:
        wanted = by_layer(deltas(run), "effective_rank_shift", module)
        assert found[module] == pytest.approx(wanted)
    found = curves(drawn("depth", two)[0])
    for folder in two:
        wanted = by_layer(deltas(folder), "effective_rank_shift", "mlp.up")
        assert found[folder.name] == pytest.approx(wanted)


def test_a_metric_and_modules_can_be_chosen(run):
    figure, (note,) = drawn("depth", [run], metric="concentration", modules=("attn.*",))
    found = curves(figure)
    assert found["attn.o"] == pytest.approx(by_layer(deltas(run), "concentration", "attn.o"))
    assert not {"mlp.up", "mlp.gate"} & set(found)
    assert note == "concentration of attn.q, attn.o; language"


def test_of_many_experts_the_median_is_drawn(tmp_path):
    modules = ("experts.up", "experts.down", "router", "attn.q", "attn.k", "attn.v", "attn.o")
    folder = toy(tmp_path / "moe", layers=2, modules=modules, experts=3, spectra=False)
    found = curves(drawn("depth", [folder])[0])
    wanted = by_layer(deltas(folder), "effective_rank_shift", "experts.up")
    assert found["experts.up"] == pytest.approx(wanted)
    assert {*modules} <= {*found}


def test_the_heatmap_is_the_grid_of_medians(run):
    """Rows are modules in the order of names.yaml, columns layers; a null cell is masked."""
    axes = drawn("heatmap", [run], metric="effective_rank_shift")[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(MODULES)
    assert axes.get_ylim() == (3.5, -0.5)
    assert axes.figure.get_size_inches()[1] == pytest.approx(0.75 + 4 * 0.17)
    assert {axes.xaxis.get_tick_params()[key] for key in ("length", "pad")} == {2}
    wanted = [list(by_layer(deltas(run), "effective_rank_shift", name).values()) for name in names]
    found = np.asarray(axes.collections[0].get_array()).reshape(4, 6)
    assert found == pytest.approx(np.array(wanted))


def test_curves_cells_and_edges_are_drawn_as_people_see_them(tmp_path):
    """A marker in a dozen of 30 layers, a look of its own for each of nine modules and more; cells
    around whole numbers, with lines between up to 32 layers.
    """
    modules = tuple(f"m{number}" for number in range(10))
    folder = toy(tmp_path / "x", layers=30, modules=modules, spectra=False)
    figure, _ = drawn("depth", [folder], width=5)
    (axes,) = figure.axes
    zero, *lines = axes.lines
    assert (zero.get_color(), zero.get_linewidth(), [*zero.get_ydata()]) == ("#777777", 0.5, [0, 0])
    assert [(one.get_color(), one.get_marker()) for one in lines] == [
        (figures.COLOURS[at % 7], "os^Dv<>pX"[at % 9]) for at in range(10)
    ]
    assert {one.get_markevery() for one in lines} == {2}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "effective-rank shift")
    assert [*figure.get_size_inches()] == pytest.approx([5, 3.9])
    assert figure.get_layout_engine().get().items() >= {"h_pad": 0.02, "w_pad": 0.02}.items()
    assert drawn("depth", [folder], modules=("m1",))[0].axes[0].get_ylabel().endswith("shift\nm1")
    for layers, width in ((32, 0.3), (33, 0)):
        rows = [delta(0.4, place(layer, "m1")) for layer in range(layers)]
        axes, bar = drawn("heatmap", [write(tmp_path / f"{layers}", rows)])[0].axes
        cells = axes.collections[0]
        assert (cells.get_linewidth(), axes.get_ylim()) == ([width], (0.5, -0.5))
        corners = cells.get_coordinates()
        assert [*corners[0, 0], *corners[-1, -1]] == [-0.5, -0.5, layers - 0.5, 0.5]
        assert axes.figure.get_size_inches()[1] == 1.4
        assert (bar.get_box_aspect(), bar.yaxis.label.get_fontsize()) == (8, 6)
        assert not axes.spines["left"].get_visible()
        assert [text.get_text() for text in axes.get_yticklabels()] == ["m1"]


@pytest.mark.parametrize(("text", "letters", "label"), [
    ("_x", 9, " _x"), ("a" * 9, 9, "a" * 9), ("abcdefghij", 9, "abc…ghij"),
])  # fmt: skip
def test_a_long_label_is_cut_in_the_middle(text, letters, label):
    assert figures.shown(text, letters) == label
    assert figures.shown("b" * 44) == "b" * 44 != figures.shown("b" * 45)


def test_a_matrix_of_the_middle_is_chosen(tmp_path):
    """Of the first expert; an up-projection where there is one, else the first module."""
    rows = [delta(0.1, place(layer, "m1", expert)) for layer in (1, 4, 6) for expert in (2, 3)]
    source = read_source(write(tmp_path / "x", [*rows, delta(0.1, place(4, "z"))]), None)
    chosen = figures._matrix(source, Choice())
    assert (chosen["module"], chosen["layer"], chosen["expert"]) == ("m1", 4, 2)
    with pytest.raises(ShadowError, match="x: no m1 changed in layer 5"):
        figures._matrix(source, Choice(layer=5))
    folders = [source.report.folder] * 5
    for kind, fault in (
        ("depth", "4 at most, and there are 5"),
        ("heatmap", "1 at most, and .* 5"),
    ):
        with pytest.raises(ShadowError, match=f"--kind {kind} draws {fault} reports"):
            draw(kind, folders, "svg", Choice())
    assert draw("depth", folders[1:], "svg", Choice(metric="concentration"))


def test_a_metric_that_is_null_everywhere_is_no_figure(tmp_path):
    rows = [delta(0.4, place(layer, module)) for layer in range(4) for module in MODULES]
    rows[0]["concentration"] = None
    folder = write(tmp_path / "a", rows)
    grid = drawn("heatmap", [folder])[0].axes[0].collections[0].get_array()
    assert np.ma.getmaskarray(grid).sum() == 1
    with pytest.raises(ShadowError, match="alpha is null"):
        drawn("heatmap", [folder], metric="alpha")


def test_the_spectrum_is_that_of_the_file(run):
    """Base, tuned and delta without what is not resolved, and the null's edge."""
    figure, (note,) = drawn("spectrum", [run], layer=2, modules=("attn.o",))
    (row,) = [one for one in deltas(run) if (one["layer"], one["module"]) == (2, "attn.o")]
    rows = pq.read_table(run / "spectra.parquet").to_pylist()
    found = curves(figure)
    for one in rows:
        if one["tensor"] == row["tensor"]:
            sigma = [value for value in one["sigma"] if value > 0]
            assert list(found[one["subject"]].values()) == pytest.approx(sigma)
    assert "null edge, 0.3; 6 above" in found
    assert note == f"{row['tensor']}: attn.o, layer 2; language"
    (axes,) = figure.axes
    assert axes.get_xlabel() == f"index of the singular value\n{row['tensor']}"
    scales = axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()
    assert scales == ("log", "log", "singular value")
    assert "mlp.up, layer 3" in drawn("spectrum", [run])[1][0]


@pytest.mark.parametrize("suffix", every(2, FORMATS))
@pytest.mark.parametrize("kind", DRAWN)
def test_files_are_what_journals_take_and_always_the_same(run, kind, suffix):
    """No date, no random name; PNG at 300 dots an inch, 3.3 inches wide; no script in SVG."""
    content, _ = draw(kind, [run], suffix, Choice())
    assert content == draw(kind, [run], suffix, Choice())[0]
    if suffix == "png":
        assert Image.open(BytesIO(content)).size[0] == 990
    if suffix == "svg":
        ElementTree.fromstring(content)
        assert b"<script" not in content
    if suffix == "pdf":
        assert b"/Type3" not in content


def test_another_process_and_a_users_settings_give_the_same_bytes(run, tmp_path):
    """A matplotlibrc that asks for TeX and other sizes, and another hash seed, change nothing."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 20\n")
    command = [SHADOW, "figure", run, "-o", tmp_path / "x.svg"]
    env = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(command, check=True, capture_output=True, env=env)
    assert (tmp_path / "x.svg").read_bytes() == draw("depth", [run], "svg", Choice())[0]


@pytest.mark.parametrize("kind", DRAWN)
def test_text_of_files_is_text(tmp_path, kind):
    """Mathematics, markup and control characters in every name run nothing."""
    folder = toy(tmp_path / "x", layers=2, modules=("mlp.up", HOSTILE), family=HOSTILE)
    content, _ = draw(kind, [folder], "svg", Choice())
    root = ElementTree.fromstring(content)
    assert not [node for node in root.iter() if node.tag.endswith("}script")]


def test_nothing_foreign_is_overwritten(inside, run, tmp_path):
    """An own figure is drawn anew; another file stays. Notes are printed."""
    for _ in range(2):
        note, done = inside("figure", run, "--kind", "spectrum", "-o", "x.svg").err.splitlines()
        assert (note.startswith("x.svg: "), done) == (True, "wrote x.svg")
        assert note.endswith(": mlp.up, layer 3; language")
    (tmp_path / "x.svg").write_text("mine")
    assert "x.svg" in inside("figure", run, "-o", "x.svg").assert_refused()
    assert (tmp_path / "x.svg").read_text() == "mine"


@pytest.mark.parametrize(("words", "code", "named"), [
    (("-o", "x.gif"), 2, "x.gif"), (("--metric", "weight"), 2, "weight"),
    (("--kind", "heatmap", "--layer", "1"), 2, "--layer"),
    (("--component", "visoin"), 2, "visoin"), (("--component", "vision"), 1, "vision"),
    (("--module", "attn.z"), 1, "module"), (("--kind", "spectrum", "--layer", "9"), 1, "9"),
    (("--kind", "modules"), 2, "modules"), (("--kind", "lineage"), 2, "lineage"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(inside, run, tmp_path, words, code, named):
    assert named in inside("figure", run, *words).assert_refused(code)
    assert not list(tmp_path.iterdir())


def test_a_report_of_nothing_is_one_line(inside, two, tmp_path):
    """Nothing inside layers; several reports in one picture; no spectra."""
    folder = write(tmp_path / "a" / "b", [delta(0.1, place(None, "embed"))])
    inside("figure", folder).assert_refused()
    inside("figure", write(tmp_path / "c", [])).assert_refused()
    assert "2" in inside("figure", two[0].parent, "--kind", "heatmap").assert_refused()
    modules = ("--module", "attn.q", "--module", "mlp.up")
    assert "several" in inside("figure", two[0].parent, *modules).assert_refused(2)
    inside("figure", two[0], *modules).assert_done()
    assert "spectra" in inside("figure", folder, "--kind", "spectrum").assert_refused()


def test_the_extra_of_figures_is_asked_for_by_its_name(monkeypatch):
    """Before matplotlib is imported, so that a hint says how to install it."""
    asked = []
    monkeypatch.setattr(figures, "require", asked.append)
    with styled():
        assert asked == ["figure"]
