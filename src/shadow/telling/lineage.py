"""A lineage as a document: a table for each chain of stages, and what chance and rounding do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from shadow.quantities import DASH, Quantity, text_of
from shadow.reports.words import HEADS
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    Headline,
    Note,
    Paragraph,
    Section,
    Table,
    named,
    number,
    table_of,
)
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.comparing.lineage import Chain, Lineage, Step

SHORT = {"attention": "attn", "embedding": "embed"}
PLACES = ("1st", "2nd", "3rd", "4th")
CHANGED = "changed"  # the gate that a step without a changed matrix fails
NO_CHANCE = 0.005  # a mean cosine nearer to 0 is not told
LEGENDS = {  # of heads that mean something else in other tables
    "kept": "share of the stored delta's energy that comes from the update; the rest is rounding",
    "depth": "the quarter of the layers that holds most of the change, and its share",
    "coherent": "matrices inside layers for which dirs. is known",
    "dirs.": (
        "how many equally strong directions would be as coherent as the change, in the median"
        " matrix; >all: more than the matrix has"
    ),
    "cosine": "with the delta of the step before",
}


def lineage_document(known: Lineage) -> Document:
    """Every chain, then the gaps."""
    blocks: list[Block] = [Section("lineage")]
    for chain in known.chains:
        blocks += [Headline(" → ".join(chain.stages)), chain_table(chain), *_notes(chain)]
    return Document([*blocks, *map(Note, known.notes)])


def chain_table(chain: Chain) -> Table:
    """A row for each step, and below them the reports that span several."""
    return table_of(FIELDS, (*chain.steps, *chain.whole), close=True)


def _size(step: Step) -> str:
    """With a star where it is that of the rounded update."""
    if _is_still(step):
        return text_of(0.0, "share")
    size = text_of(step.size, "share")
    return f"{size}*" if step.relative_norm_unrounded is None else size


def _is_still(step: Step) -> bool:
    """Whether every matrix that was compared is the same."""
    return not step.matrices and CHANGED in step.failed_gates


def _directions(step: Step) -> Cell:
    if step.equivalent_directions is None and step.above_short_side:
        return ">all"
    return Quantity(step.equivalent_directions, "about")


def most_in(step: Step) -> str:
    """The group of modules that holds the most energy: `MLP 61 %`."""
    if not step.groups:
        return DASH
    group = step.groups[0]
    return f"{SHORT.get(group.name, group.name[:12])} {text_of(group.energy_share, 'share')}"


def deepest(step: Step) -> str:
    """The quarter of the depth that holds the most energy: `4th 41 %`."""
    if step.quarters is None:
        return DASH
    most = max(range(len(step.quarters)), key=step.quarters.__getitem__)
    return f"{PLACES[most]} {text_of(step.quarters[most], 'share')}"


def sides_text(left: float | None, right: float | None) -> str:
    """The shares of outputs and inputs: `12 / 8.0 %`."""
    if left is None and right is None:
        return DASH
    return f"{text_of(left, 'share').removesuffix(' %')} / {text_of(right, 'share')}"


def _both(step: Step) -> str | None:
    joint = step.joint
    if joint is None or joint.inside_left is None:
        return None
    return sides_text(joint.inside_left, joint.inside_right)


FIELDS = (
    named("step", lambda step: f"{step.start}..{step.end}"),
    *(
        replace(field, legend=LEGENDS.get(field.head) or HEADS[field.head].text)
        for field in (
            number("size", _size),
            number("ratio", "ratio", "ratio"),
            number("kept", "kept", "fixed"),
            number("unchanged", "zero_share", "fraction", rank=3),
            number("most in", most_in),
            number("depth", deepest, rank=1),
            number("coherent", lambda step: f"{step.coherent} of {step.inside}", rank=2),
            number("dirs.", _directions),
            number("cosine", lambda step: step.joint and step.joint.cosine, "thousandths"),
            number("inside", _both),
        )
    ),
)


def _notes(chain: Chain) -> Iterator[Paragraph]:
    """Chance levels of every step, and what is missing."""
    reasons = [(step, chance_text(before, step)) for before, step in pairwise(chain.steps)]
    for step in (*chain.steps, *chain.whole):
        if _is_still(step):
            reasons.append((step, "nothing changed"))
        if "lineage" in step.failed_gates:
            reasons.append(
                (step, "base and tuned have little in common: unrelated, or tuned for very long")
            )
        if step.no_unrounded is not None and step.matrices:
            reasons.append((step, f"size as stored: {step.no_unrounded}"))
    told: dict[str, list[str]] = {}
    for step, text in reasons:
        told.setdefault(text, []).append(f"{step.start}..{step.end}")
    told[line_text(chain)] = [f"{chain.stages[0]}..{chain.stages[-1]}"]
    told.pop("", None)
    for place, (text, steps) in enumerate(told.items()):
        yield Paragraph(f"{several(steps)}: {text}", quiet=True, close=place > 0)


def line_text(chain: Chain) -> str:
    """How well a straight line tells the path over all stages, and a walk; or why that is missing,
    where no step says the same.
    """
    line = chain.linearity
    if line is None:
        missing = {None, *(step.no_joint for step in chain.steps)}
        if len(chain.steps) < 2 or chain.no_linearity in missing:
            return ""
        return f"no R² of a line: {chain.no_linearity}"
    text = (
        f"R² of a straight line through the {line.stages} stages, at even steps, is"
        f" {text_of(line.r2, 'fixed')}; of a walk with steps of these sizes,"
        f" {text_of(line.r2_by_chance, 'fixed')}"
    )
    if line.left_out:
        text += (
            f"; without {counted(line.left_out, 'matrix', 'matrices')} that only some of them have"
        )
    return text


def chance_text(before: Step, step: Step) -> str:
    """What cosine and shares are by chance, and what rounding does to them; or what is missing."""
    from shadow.comparing.lineage import shrinking

    joint = step.joint
    if joint is None:
        return f"no cosine: {step.no_joint}" if step.no_joint else ""
    if joint.chance_cosine is None:  # a step that changed nothing, as is told
        return ""
    parts = [f"by chance the cosine is 0 ± {text_of(joint.chance_cosine, 'ratio')}"]
    master = joint.chance_cosine_master
    if master is not None and master < -NO_CHANCE:
        parts.append(
            f"down to {text_of(master, 'fixed')} if training continued from a copy of {step.start}"
            " in more bits than it is stored in, since both steps share its rounding"
        )
    factor = shrinking(step, before)
    if factor is not None and factor < 1 - NO_CHANCE:
        parts.append(f"rounding multiplied it by a factor from {text_of(factor, 'fixed')} to 1")
    if joint.chance_inside_left is not None:
        inside = sides_text(joint.chance_inside_left, joint.chance_inside_right)
        parts.append(f"by chance inside is {inside}")
    if joint.left_out:
        parts.append(
            f"without {counted(joint.left_out, 'matrix', 'matrices')} that only one of the"
            " steps has"
        )
    return "; ".join(parts)
