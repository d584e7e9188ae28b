"""The figures of released pairs that others published, for `explain`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shadow.comparing.published import DEFINITIONS, SOURCE, TOLERANCE, WITHIN, Released, family_of
from shadow.outputs.terminal.typeset import number, span

COLUMNS = ("mean_relative_norm", "mean_top20_energy", "oq_ratio")
RULE = (
    f"One of these pairs: each figure is compared with yours and agrees within {100 * TOLERANCE:g}"
    f" % (a cosine within {TOLERANCE:g}). A figure of other tensors is not compared. Which commits"
    " were read is not published. Any other pair gets its rank among the families, without its"
    " own: by mean_relative_norm among all, by mean_top20_energy among those with pairs within a"
    f" factor of {WITHIN:g} of its size, since this energy falls with the size. A family is every"
    " model that comes from one base; its value is the median of its pairs. A rank is no verdict."
)


def published_view(table: Sequence[Released]) -> RenderableType:
    """`explain published`: definitions, what is compared, the families, the source."""
    definitions = Table.grid(padding=(0, 2))
    for name, text in DEFINITIONS.items():
        definitions.add_row(Text(name, "cyan"), Text(text))
    families: dict[str, list[Released]] = {}
    for pair in table:
        families.setdefault(family_of(pair.base, table), []).append(pair)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, head in enumerate(
        ("family of", "pairs", "relative norm", "top-20 energy", "o/q ratio")
    ):
        shown.add_column(head, justify="right" if place else "left", overflow="fold")
    for family, pairs in sorted(families.items()):
        ranges = [_range(getattr(pair, name) for pair in pairs) for name in COLUMNS]
        shown.add_row(family.partition("/")[2], str(len(pairs)), *ranges)
    return Group(
        Text.assemble(
            ("published", "bold cyan"),
            f"  figures of {len(table)} released pairs, measured by others",
        ),
        Padding(definitions, (1, 0, 1, 2)),
        Text(RULE, "dim"),
        Padding(shown, (1, 0)),
        Text(
            f"Source: {SOURCE}; MIT, (c) 2026 Nikolay Yudin. In registry/reference/published.csv.",
            "dim",
        ),
    )


def _range(values: Iterable[float | None]) -> str:
    """From the least to the largest that is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return span(number(min(known), 2), number(max(known), 2))
