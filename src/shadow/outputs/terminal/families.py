"""The families of the registry, and one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shadow.text import counted, visible

if TYPE_CHECKING:
    from shadow.targets.families import Family, Pair


def families_view(families: Sequence[Family], options: ConsoleOptions) -> RenderableType:
    """Many families, one a row: what may stand after the name and a colon, and the tags; their
    number last.
    """
    pairs_width, tags_width = 28, 17  # of `instruct..thinking (sibling)` and `dense, reasoning,`
    names_width = max((len(family.name) for family in families), default=0)
    room = (
        options.max_width - names_width - pairs_width - tags_width - 11
    )  # 11 between and beside four columns
    wide = room >= 24
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family", style="cyan", no_wrap=True)
    table.add_column("pairs", max_width=pairs_width)
    if wide:
        table.add_column("last stage", max_width=room, no_wrap=True, overflow="ellipsis")
    table.add_column("tags", style="dim", max_width=tags_width)
    for family in families:
        pairs = (
            Text(", ").join(_pair_name(pair) for pair in family.pairs)
            if family.pairs
            else Text("none", "yellow")
        )
        *_, (_, _, last) = family.references()
        where = visible(f".../{last.last_name}" if last.is_folder else str(last))
        table.add_row(family.name, pairs, *([Text(where)] if wide else []), ", ".join(family.tags))
    count = sum(len(family.pairs) for family in families)
    return Group(
        table,
        Text(f"{counted(len(families), 'family', 'families')}, {counted(count, 'pair', 'pairs')}"),
    )


def _pair_name(pair: Pair) -> Text:
    return (
        Text(pair.name)
        if pair.relation == "tuned"
        else Text.assemble(pair.name, (f" ({pair.relation})", "yellow"))
    )


def family_view(family: Family) -> RenderableType:
    """One family: every stage and where it is, every pair and its relation, what else its file
    says.
    """
    stages = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    stages.add_column("stage", style="cyan", no_wrap=True)
    references = family.references()
    by_component = any(component for _, component, _ in references)
    if by_component:
        stages.add_column("component", no_wrap=True)
    stages.add_column("checkpoint", overflow="fold", ratio=1)
    before = None
    for stage, component, reference in references:
        place = [component or "all"] if by_component else []
        stages.add_row("" if stage == before else stage, *place, Text(visible(str(reference))))
        before = stage
    facts = Table.grid(padding=(0, 2))
    for index, pair in enumerate(family.pairs):
        target = Text(f"{family.name}:{pair.name}")
        if pair.relation != "tuned":
            target.append(f" ({pair.relation})", "yellow")
        facts.add_row(Text("" if index else "pairs", "dim"), target)
    rows = {
        "pairs": "" if family.pairs else "none",
        "components": ", ".join(family.components),
        "tags": ", ".join(family.tags),
        "note": family.note,
        "source": family.source,
        "file": f"{family.file}:{family.line}",
    }
    for title, text in rows.items():
        if text:
            facts.add_row(Text(title, "dim"), Text(visible(text), overflow="fold"))
    return Group(Text(family.name, "bold"), stages, facts)
