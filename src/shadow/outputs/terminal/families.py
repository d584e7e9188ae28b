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
    """Many families, one a row: the pairs, which may stand after a colon, and the tags."""
    pairs_width, tags_width = 28, 17  # of `instruct..thinking (sibling)` and `dense, reasoning,`
    names_width = max((len(family.name) for family in families), default=0)
    between = 11  # and beside four columns
    room = options.max_width - names_width - pairs_width - tags_width - between
    wide = room >= 24
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family", style="cyan", no_wrap=True)
    table.add_column("pairs", max_width=pairs_width)
    if wide:
        table.add_column("last stage", max_width=room, no_wrap=True, overflow="ellipsis")
    table.add_column("tags", style="dim", max_width=tags_width)
    for family in families:
        cells = [Text(family.name), _pair_names(family.pairs)]
        if wide:
            cells.append(Text(_last_stage(family)))
        table.add_row(*cells, ", ".join(family.tags))
    count = sum(len(family.pairs) for family in families)
    return Group(
        table,
        Text(f"{counted(len(families), 'family', 'families')}, {counted(count, 'pair', 'pairs')}"),
    )


def _pair_names(pairs: Sequence[Pair]) -> Text:
    if not pairs:
        return Text("none", "yellow")
    return Text(", ").join(_pair_name(pair.name, pair) for pair in pairs)


def _pair_name(name: str, pair: Pair) -> Text:
    """A name of a pair, with its relation where it is not the usual one."""
    text = Text(name)
    if pair.relation != "tuned":
        text.append(f" ({pair.relation})", "yellow")
    return text


def _last_stage(family: Family) -> str:
    """Where the last stage is; of a folder its name."""
    *_, (_, _, last) = family.references()
    if last.is_folder:
        return visible(f".../{last.last_name}")
    return visible(str(last))


def family_view(family: Family) -> RenderableType:
    """One family: where its stages are, its pairs with their relations, what else its file says."""
    stages = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    stages.add_column("stage", style="cyan", no_wrap=True)
    references = family.references()
    by_component = any(component for _, component, _ in references)
    if by_component:
        stages.add_column("component", no_wrap=True)
    stages.add_column("checkpoint", overflow="fold", ratio=1)
    before = None
    for stage, component, reference in references:
        cells = ["" if stage == before else stage]
        if by_component:
            cells.append(component or "all")
        stages.add_row(*cells, Text(visible(str(reference))))
        before = stage
    facts = Table.grid(padding=(0, 2))
    title = "pairs"
    for pair in family.pairs:
        facts.add_row(Text(title, "dim"), _pair_name(f"{family.name}:{pair.name}", pair))
        title = ""
    if not family.pairs:
        facts.add_row(Text(title, "dim"), Text("none"))
    rows = {
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
