"""The finding on a terminal: headline, sentences, what else it may be; and `explain finding`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shadow.claims.explanations import ANSWERS, EXPLANATIONS
from shadow.telling.finding import CODES, NOT_SHOWN
from shadow.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shadow.claims.explanations import Explanation
    from shadow.telling.finding import Finding

ABOUT = (
    "What a report says of its pair, in words, made of measured figures alone. summary.json has it"
    " as `finding`: a headline, and each sentence with a code and the figures that it rests on,"
    " unrounded, by their place in that file."
)
ANSWERED = (
    "Another explanation is answered by `no`, with the figure that excludes it; `fits`, which is no"
    " proof; or `cannot be excluded`."
)


def told(finding: Finding) -> RenderableType:
    """The headline, and each sentence on a line of its own."""
    headline = Text(visible(finding.headline), "bold")
    return Group(headline, "", *(Text(visible(one.text)) for one in finding.sentences))


def explanations_table(explanations: Sequence[Explanation]) -> RenderableType:
    """What else may have left these figures, and why it did not, or may."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="Other explanations", title_justify="left"
    )
    table.add_column("what", style="cyan", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    table.add_column("because", ratio=1)
    for explanation in explanations:
        answer = Text(
            ANSWERS[explanation.answer],
            "" if explanation.answer == "cannot_be_excluded" else "bold",
        )
        table.add_row(Text(visible(explanation.name)), answer, Text(visible(explanation.reason)))
    return table


def finding_view() -> RenderableType:
    """`explain finding`: all sentences, by their codes, and the other explanations."""
    codes, others = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
    for grid, texts in ((codes, CODES), (others, EXPLANATIONS)):
        for code, text in texts.items():
            grid.add_row(Text(code, "bold"), Text(text))
    return Group(
        Text.assemble(("finding", "bold cyan"), "  the answer of a report, in words"),
        Padding(Text(ABOUT), (1, 0, 1, 2)),
        Text("Sentences, in their order", "italic"),
        Padding(codes, (0, 0, 1, 2)),
        Text("Other explanations", "italic"),
        Padding(others, (0, 0, 1, 2)),
        Text(ANSWERED, "dim"),
        Padding(Text(" ".join(NOT_SHOWN), "dim"), (1, 0, 0, 0)),
    )
