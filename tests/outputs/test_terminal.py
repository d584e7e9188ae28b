"""Tables in a terminal: a column as wide as what it has, two spaces between, texts left."""

import io
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace as Row

import pytest
from rich.console import Console
from view import drawn

from shadow.cli import console
from shadow.outputs.terminal import View
from shadow.quantities import Quantity
from shadow.telling.document import (
    Document,
    FigureRow,
    Figures,
    Headline,
    Note,
    Origin,
    Paragraph,
    Section,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.reading import AuditReport
from shadow.telling.report import report_document

ROWS = (Row(family="toy", n=1234, state="done", time=2.0),
        Row(family="longer-name", n=7, state="failed", time=3.25))  # fmt: skip
TABLE = table_of(
    (named("family"), number("n", kind="count"), worded("state"),
     number("time", kind="seconds", rank=1)), ROWS, "pairs",
)  # fmt: skip
WHOLE = [
    "family           n  state    time", "─────────────────────────────────",
    "toy          1,234  done    2.0 s", "longer-name      7  failed  3.2 s",
]  # fmt: skip


@pytest.mark.parametrize(("width", "cut"), [(80, 33), (35, 33), (34, 26), (28, 26)])
def test_a_column_of_a_lower_rank_is_shown_where_all_of_it_fits(width, cut):
    """Eleven letters of a name, five, six and five, with a space before and behind each."""
    _, title, *lines = drawn(TABLE, width).splitlines()
    assert title == "pairs"
    rows = [f" {line[:cut].rstrip()}" for line in WHOLE]
    assert [line.rstrip() for line in lines] == ["", *rows, ""]


@pytest.mark.parametrize(("width", "is_whole"), [(28, True), (27, False)])
def test_a_name_is_broken_where_it_does_not_fit(width, is_whole):
    """Figures are not."""
    text = drawn(TABLE, width)
    assert ("longer-name" in text) is is_whole
    assert "1,234" in text


@pytest.mark.parametrize(("width", "letters"), [(64, 26), (62, 25), (42, 15), (30, 9)])
def test_names_share_what_figures_leave_evenly(width, letters):
    """Though one of them is short: a number of 5 letters has two spaces before each column."""
    name = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    fields = (named("a"), named("b"), number("n", kind="count"))
    lines = drawn(table_of(fields, (Row(a="abcde", b=name, n=1234),)), width).splitlines()
    row = next(line for line in lines if "1,234" in line)
    assert row.split() == ["abcde", name[:letters], "1,234"]


BLOCKS = [  # of a document, and its lines with {bold} and other styles; a line apart but notes
    (Section("Title", "name"), "{1}Title  {0}{1;36}name{0} {2}" + 108 * "─" + "{0}"),
    (Headline("a → b", "fault"), "\n{1;31}a → b{0}"), (Headline("c"), "\n{1}c{0}"),
    (Paragraph("text", quiet=True), "\n{2}text{0}"),
    (Paragraph("text", "Lead"), "\n{1;36}Lead{0}  text"),
    (Note("careful", "warning"), "\n{33}warning: careful{0}"), (Note("also"), "note: also"),
    (Figures([FigureRow("n", Quantity(1234, "count"), "rem"), FigureRow("k", Word("v"), "r"),
              FigureRow("m", Word("w", "quiet", "as"))], "Fig"),
     "\n{3}Fig{0}\n{2}n{0}  {1}1,234{0}  rem\n{2}k{0}  {1}v{0}      r  \n"
     "{2}m{0}  {2}w{0}{2} as{0}{2} {0}     "),
    (Figures([FigureRow("i", Word("u")), FigureRow("j", None)], close=True),
     "{2}i{0}  u\n{2}j{0}  -"),
    (Origin([("where", "here")]), "\n{2}where{0}  {2}here{0}"),
]  # fmt: skip


def test_every_block_has_its_style_and_its_distance():
    """In numbers of ANSI: bold 1, dim 2, italic 3, red 31, yellow 33, cyan 36."""
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "standard", "no_color": False}
    blocks, texts = zip(*BLOCKS, strict=True)
    Console(file=file, width=140, highlight=False, **options).print(View(Document(blocks)))
    lines = re.sub(r"\x1b\[([\d;]+)m", r"{\1}", file.getvalue()).strip("\n")
    assert lines.splitlines() == "\n".join(texts).splitlines()


def test_a_plan_names_what_it_costs(inside):
    lines = inside("plan", "demo:base..narrow", "--jobs", "1").assert_done().splitlines()
    heads = [line.partition("  ")[0] for line in lines if line and line[0].isalpha()]
    assert heads == ["demo", "base", "tuned", "work", "memory", "cores", "time"]


@pytest.mark.parametrize(("close", "between"), [(False, "\n\n"), (True, "\n")])
def test_documents_stand_a_line_apart_unless_they_are_close(monkeypatch, close, between):
    """No line stands before the first."""
    text = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=text, width=80))
    monkeypatch.setattr(console, "_views", 0)
    for word in ("one", "two"):
        console.show(Document([Paragraph(word, close=close)]))
    assert text.getvalue() == f"one{between}two\n"


def test_narrow_tables_of_modules_lack_the_last_figures(demo_reports):
    """Each with those of the wider ones but the last, down to a name and four figures."""
    report = AuditReport(demo_reports / "base..narrow")
    document = report_document(report.summary, report.provenance.recorded, "here")
    block = next(one for one in document.blocks if getattr(one, "about", "") == "modules")
    heads = []
    for width in range(40, 130):
        line = next(line for line in drawn(block, width).splitlines() if " n " in line)
        heads.append(re.split(r"\s{2,}", line.strip()))
    order = ["null PR", "spikes", "spread", "energy", "spread over", "shift", "stable rank"]
    assert heads[0][-3:] == ["rel. norm", "conc.", "PR"]
    seen = [*dict.fromkeys(map(frozenset, heads))]
    assert [{*second - first} for first, second in pairwise(seen)] == [{name} for name in order]


def test_a_check_says_what_was_looked_at(shadow):
    demo = Path(__file__).parents[2] / "registry" / "demo"
    one = shadow("check", demo / "narrow").assert_done()
    several = shadow("check", demo / "narrow", "--base", demo / "base").assert_done()
    assert ("note: looked at" in one, "note: looked at" in several) == (True, True)
