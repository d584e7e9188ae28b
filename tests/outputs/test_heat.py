"""The picture of a pair: modules by layers, by medians that a loop finds."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from reports import columns
from rich.console import Console

from shadow.outputs.terminal import HeatMap
from shadow.summary.making import grid
from shadow.summary.record import GridRow


def grid_row(*values):
    keys = ("component", "module", "layers", "relative_norm", "concentration")
    return GridRow(**dict(zip(keys, values, strict=True)))


def row(norms, module="mlp.up", component="language", first=0):
    norms = list(norms)
    return grid_row(
        component, module, list(range(first, first + len(norms))), norms, [None] * len(norms)
    )


def drawn(rows, width=80, **options):
    """What a terminal without colours shows, line by line."""
    file = io.StringIO()
    console = Console(file=file, width=width, **options)
    console.print(HeatMap(rows))
    return file.getvalue().splitlines()


def test_the_grid_is_medians_by_place_and_zero_where_nothing_changed():
    """Two experts of a layer are one cell."""
    deltas = pd.DataFrame(
        [
            ("language", "experts.up", 0, 0.1, 0.2), ("language", "experts.up", 0, 0.3, np.nan),
            ("language", "attn.q", 1, 0.5, 0.7), ("language", "embed", None, 0.9, 0.9),
        ],
        columns=["component", "module", "layer", "relative_norm", "concentration"],
    ).astype({"layer": "Int64"})  # fmt: skip
    tensors = pd.DataFrame(
        [
            ("language", "attn.q", 0, "tuned", "identical"),
            ("language", "attn.q", 0, "base", "identical"),
            ("language", "norm", None, "tuned", "identical"),
            ("language", "experts.up", 0, "tuned", "measured"),
        ],
        columns=["component", "module", "layer", "side", "status"],
    ).astype({"layer": "Int64"})
    assert grid(columns(deltas), columns(tensors)) == [
        grid_row("language", "attn.q", [0, 1], [0.0, 0.5], [None, 0.7]),
        grid_row("language", "experts.up", [0], [pytest.approx(0.2)], [pytest.approx(0.2)]),
    ]


def test_without_colours_cells_are_shades_and_what_did_not_move_is_a_dot():
    """Least, largest and unmoved cells."""
    lines = drawn([row([0.01, 0.02, 0.04, 0.08]), row([0.0, None, 0.08], "attn.q")])
    assert lines[0] == "mlp.up        ░░▒▒▓▓██"
    assert lines[1].rstrip() == "attn.q        ·   ██"
    assert lines[2] == "layer         0      3   relative norm 1.0 % ░▒▓█ 8.0 %  · unchanged"
    assert len(lines) == 3


def test_a_terminal_of_ascii_has_five_letters_for_five_kinds_of_cells():
    """Four shades and unmoved: none is the question mark that stands for letters it lacks."""
    file = io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace")
    Console(file=file, width=80).print(HeatMap([row([0.01, 0.02, 0.04, 0.08, 0.0])]))
    file.seek(0)
    cells = file.readline().removeprefix("mlp.up        ").rstrip()
    letters = "".join(dict.fromkeys(cells.replace(" ", "")))
    assert cells == "--++XX##."
    assert len(letters) == 5
    assert f" {letters[:4]} " in file.readline()


def test_with_colours_cells_keep_their_shades_and_the_scale_finds_room():
    """Beside the numbers of the layers, or below them."""
    both = [row([0.01, 0.02, 0.04, 0.08]), row([0.0, None, 0.08], "attn.q")]
    coloured = {"force_terminal": True, "color_system": "truecolor", "no_color": False}
    lines = drawn(both, **coloured)
    assert len(lines) == 3
    assert [line.count("48;2;") for line in lines] == [4, 1, 4]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines] == drawn(both)
    assert drawn(both, **coloured | {"no_color": True})[0] == drawn(both)[0]
    assert len(drawn([row([0.01, 0.08] * 30)], width=80)) == 3
    assert len(drawn([row([0.01, 0.08])], width=40)) == 3


def test_more_layers_than_columns_are_binned_and_every_line_fits():
    """200 layers in 80 columns: each cell the median of its layers: a step stays where it is."""
    lines = drawn([row([0.01] * 100 + [0.08] * 100)])
    assert all(len(line) <= 80 for line in lines)
    cells = lines[0].removeprefix("mlp.up        ")
    half = len(cells) // 2
    assert cells == "░" * half + "█" * (len(cells) - half)


@pytest.mark.parametrize(("norms", "cells", "below"), [
    ([1.0, 1.05], "████", "relative norm 105 % everywhere"), ([1.0], "██", "100 % everywhere"),
    ([1.0, 1.06], "░░██", "relative norm 100 % ░▒▓█ 106 %"),
    ([0.01, 0.01414, 0.01415, 0.02], "░░▒▒▓▓██", "1.0 % ░▒▓█ 2.0 %"),
])  # fmt: skip
def test_nearly_equal_cells_are_one_shade(norms, cells, below):
    """Up to a twentieth. A quarter of the logarithm is a shade."""
    first, *rest = drawn([row(norms)])
    assert (first, rest[0].endswith(below)) == (f"mlp.up        {cells}", True)


@pytest.mark.parametrize(("system", "codes"), [
    ("truecolor", ["0;34;78", "71;82;109", "254;232;56"]), ("256", ["17", "60", "227"]),
])  # fmt: skip
def test_colours_go_from_dark_to_light(system, codes):
    """By the logarithm: the second is at 0.28."""
    options = {"force_terminal": True, "color_system": system, "no_color": False}
    line = drawn([row([0.01, 0.019, 0.1])], **options)[0]
    assert re.findall(r"48;[25];([\d;]+)m", line) == codes


SCALE = "relative norm 1.0 % ░▒▓█ 8.0 %"


@pytest.mark.parametrize(("width", "layers", "below"), [
    (55, 3, [f"layer         7    9   {SCALE}"]),
    (54, 3, ["layer         7    9", 14 * " " + SCALE]),
    (45, 7, ["layer         7           13", SCALE]),
    (24, 9, ["layer         7     15", "relative norm 1.0 % ░▒▓█", "8.0 %"]),
])  # fmt: skip
def test_the_scale_stands_where_it_fits(width, layers, below):
    """Three columns behind the last layer, or below the cells, or at the left."""
    norms = [0.01, *[0.08] * (layers - 1)]
    first, *rest = drawn([row(norms, "a.module.of.many", first=7)], width=width)
    assert first.startswith("a.module.of.ma░")
    assert rest == below
