"""What is shown: a document is a title and blocks of few kinds, whatever it is about.

A report, a comparison, a lineage, a list, a plan and verdicts become documents in this room;
`outputs` draws any document on a terminal, a page, in a notebook, as Markdown, for CI or as JSON,
and knows nothing of what it says. A number in a block is a quantity, whose kind says how it reads:
`text_of` is the one place that turns it into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shadow.claims.answer import Answer
from shadow.summary.rows import GridRow

Kind = Literal[
    "count",  # a whole number of things: 1,234
    "share",  # 1 is all: 8.0 %
    "number",  # three significant digits
    "about",  # two significant digits: a number of directions
    "fixed",  # two decimals: concentration, cosine
    "ratio",  # two significant digits: 0.52
    "difference",  # with its sign: +0.092
    "log_ratio",  # the logarithm of a ratio: x 0.67
    "seconds",
    "bytes",
]
Level = Literal["fault", "warning", "note"]


@dataclass(frozen=True)
class Quantity:
    """A number and how it reads."""

    value: float | int | None
    kind: Kind
    low: float | None = None
    """The lower end of its interval; None where it has none."""

    high: float | None = None


Cell = str | Quantity | None  # None: nothing is known, drawn as a dash


@dataclass(frozen=True)
class Block:
    """A part of a document."""

    full: bool = field(default=False, kw_only=True)
    """Whether it is shown only where everything is asked for."""


@dataclass(frozen=True)
class Headline(Block):
    """The answer in a line."""

    text: str


@dataclass(frozen=True)
class Paragraph(Block):
    """A sentence or several that belong together."""

    text: str
    code: str = ""
    """Which sentence it is, for programs."""

    figures: Mapping[str, float | int] = field(default_factory=dict)
    """The numbers in it, unrounded, by their place in the JSON of what the document is of."""


@dataclass(frozen=True)
class FigureRow:
    """A named figure and what it is measured by."""

    name: str
    value: Cell
    remark: str = ""


@dataclass(frozen=True)
class Figures(Block):
    """Named figures below each other."""

    rows: Sequence[FigureRow]
    title: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column of a table."""

    head: str
    is_name: bool = False
    """Whether its cells are words, set to the left; numbers are set to the right."""

    rank: int = 0
    """0: always shown; otherwise the higher, the earlier it is left out where room is short."""


@dataclass(frozen=True)
class Table(Block):
    """Rows of cells under heads."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Picture(Block):
    """How far each module moved, by layer, of one component."""

    title: str
    rows: Sequence[GridRow]


@dataclass(frozen=True)
class Answers(Block):
    """Claims and what came of them: (title of the claim, answer)."""

    rows: Sequence[tuple[str, Answer]]
    title: str = ""


@dataclass(frozen=True)
class Note(Block):
    """What makes figures doubtful, or was not measured."""

    text: str
    level: Level = "note"


@dataclass(frozen=True)
class Provenance(Block):
    """Where it comes from and where the rest is: (name, text)."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Document:
    """What is shown of one thing."""

    title: str
    """What it is about, such as `demo  base..narrow`; hostile text like any name."""

    blocks: Sequence[Block]

    def brief(self) -> Document:
        """The same document without what is shown only where everything is asked for."""
        return Document(self.title, tuple(block for block in self.blocks if not block.full))
