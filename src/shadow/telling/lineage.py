"""A lineage as a document: a table for each chain of stages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shadow.quantities import DASH, text_of
from shadow.reports.words import HEADS
from shadow.telling.document import (
    Block,
    Document,
    Headline,
    Note,
    Section,
    named,
    number,
    table_of,
)

if TYPE_CHECKING:
    from shadow.comparing.lineage import Lineage, Step

SHORT = {"attention": "attn", "embedding": "embed"}
LEGENDS = {  # of heads that mean something else in other tables
    "kept": "share of the stored delta's energy that comes from the update; the rest is rounding",
    "dirs.": "as coherent as so many equally strong directions, in the median matrix",
}


def lineage_document(known: Lineage) -> Document:
    """Every chain, then the notes."""
    blocks: list[Block] = [Section("lineage")]
    for chain in known.chains:
        steps = (*chain.steps, *chain.whole)
        blocks += [Headline(" → ".join(chain.stages)), table_of(FIELDS, steps, close=True)]
        blocks += [
            Note(f"{step.start}..{step.end}: base and tuned have little in common")
            for step in steps
            if "lineage" in step.failed_gates and step.matrices
        ]
    return Document([*blocks, *map(Note, known.notes)])


def _size(step: Step) -> str:
    """With a star where it is that of the rounded update."""
    if not step.matrices and "changed" in step.failed_gates:
        return text_of(0.0, "share")
    size = text_of(step.size, "share")
    return f"{size}*" if step.relative_norm_unrounded is None else size


def _most_in(step: Step) -> str:
    """The group of modules that holds the most energy: `MLP 61 %`."""
    if not step.groups:
        return DASH
    group = step.groups[0]
    return f"{SHORT.get(group.name, group.name[:12])} {text_of(group.energy_share, 'share')}"


FIELDS = (
    named("step", lambda step: f"{step.start}..{step.end}"),
    *(
        replace(field, legend=LEGENDS.get(field.head) or HEADS[field.head].text)
        for field in (
            number("size", _size),
            number("ratio", "ratio", "ratio"),
            number("kept", "kept", "fixed"),
            number("most in", _most_in),
            number("dirs.", "equivalent_directions", "about"),
        )
    ),
)
