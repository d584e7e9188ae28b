"""Documents: a title and blocks of a few kinds, whatever the subject.

A report, a comparison, a lineage, a list, a plan and verdicts become documents once; `outputs`
draws any document on a terminal, a page, in a notebook, as Markdown or for CI, and does not know
what it says. Texts are unchanged: drawing makes hostile names harmless. A number in a block is a
quantity, which only `shadow.quantities` turns into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from shadow.quantities import Kind, Quantity
from shadow.summary.record import GridRow

When = Literal["always", "brief", "full", "page"]
Level = Literal["", "passed", "fault", "warning", "quiet"]  # how much a word is to be noticed


@dataclass(frozen=True)
class Word:
    """A word of a table that stands out more, or less, than others."""

    text: str
    level: Level = ""
    aside: str = ""
    """What follows it, less noticed."""

    def __str__(self) -> str:
        return f"{self.text} {self.aside}".strip()


Cell = str | Quantity | Word | None  # None: nothing is known, drawn as a dash


@dataclass(frozen=True)
class Block:
    """A part of a document."""

    when: When = field(default="always", kw_only=True)
    """`full`: only where everything is asked for; `brief`: only where not; `page`: on no screen."""
    close: bool = field(default=False, kw_only=True)
    """Whether it follows the block before it without a blank line."""
    about: str = field(default="", kw_only=True)
    """The subject by which a page with sections puts it into one of them, such as `gates`."""


@dataclass(frozen=True)
class Section(Block):
    """Title of the blocks up to the next section; a document begins with its own."""

    title: str
    name: str = ""
    """What of the title it is about, such as the pair of a family."""


@dataclass(frozen=True)
class Headline(Block):
    """The answer in a line."""

    text: str
    level: Level = ""


@dataclass(frozen=True)
class Paragraph(Block):
    """One sentence, or several that belong together."""

    text: str
    lead: str = ""
    """The word that the text explains, before it."""
    quiet: bool = False
    """Whether it is for those who look for it, such as a legend."""
    code: str = ""
    """Which sentence it is, for programs."""


@dataclass(frozen=True)
class FigureRow:
    """A named figure and the column that it is measured by; or a named text."""

    name: str
    value: Cell = ""
    remark: str = ""


@dataclass(frozen=True)
class Figures(Block):
    """Named figures, one below another."""

    rows: Sequence[FigureRow]
    title: str = ""


def figures_of(texts: Mapping[str, str], title: str = "") -> Figures:
    """Named texts that are not empty, one below another."""
    return Figures([FigureRow(name, text) for name, text in texts.items() if text], title)


@dataclass(frozen=True)
class Field:
    """A column of a table, and how to get its cell from a row."""

    head: str
    of: str | Callable[..., Any] = ""
    """An attribute of the row, the one that the head names if empty, or what makes the cell."""
    kind: Kind | None = None
    """Of a number; None of what is a cell already."""
    role: Literal["figure", "name", "text"] = "figure"
    """Figures are set to the right; names are not broken where there is room; texts are."""
    rank: int = 0
    """0: always shown; otherwise the higher, the earlier it is left out where room is short."""
    legend: str = ""
    """What stands below the head, said once after all tables."""

    def cell(self, row: object) -> Cell:
        of = self.of or self.head
        value: Any = getattr(row, of) if isinstance(of, str) else of(row)
        return value if self.kind is None else Quantity(value, self.kind)


number = Field
named = partial(Field, role="name")
worded = partial(Field, role="text")


@dataclass(frozen=True)
class TableBlock(Block):
    """Rows of cells under heads."""

    columns: Sequence[Field]
    rows: Sequence[Sequence[Cell]]
    title: str = ""


def table_of(
    fields: Sequence[Field], rows: Iterable[object], title: str = "", **more: Any
) -> TableBlock:
    """Make a row of cells for each of the rows."""
    cells = [[field.cell(row) for field in fields] for row in rows]
    return TableBlock(fields, cells, title, **more)


@dataclass(frozen=True)
class MapBlock(Block):
    """Relative norm of each module of one component, by layer."""

    rows: Sequence[GridRow]
    name: str = ""
    """The component, where there are several."""


@dataclass(frozen=True)
class Note(Block):
    """A note on doubtful or unmeasured figures."""

    text: str
    word: Literal["fault", "warning", "note"] = "note"


@dataclass(frozen=True)
class Origin(Block):
    """Origin, and where to find everything: (name, text)."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Document:
    """A sequence of blocks about one subject."""

    blocks: Sequence[Block]

    def shown(self, *, full: bool = False) -> Document:
        """Leave out what is not to be shown, depending on whether everything is requested."""
        shown = ("always", "full" if full else "brief")
        return Document([block for block in self.blocks if block.when in shown])
