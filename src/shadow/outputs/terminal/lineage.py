"""What `lineage` prints: a table for each chain of stages, and what chance and rounding do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import ConsoleOptions, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.typeset import WIDE, fixed, number, share, text_table
from shadow.text import counted, visible

if TYPE_CHECKING:
    from shadow.comparing.lineage import Chain, Lineage, Step

LETTERS, LETTERS_WIDE = 16, 44  # of a step's name, in a narrow terminal and in a wide one
SHORT = {"attention": "attn", "embedding": "embed"}
PLACES = ("1st", "2nd", "3rd", "4th")
NO_CHANCE = 0.005  # a mean cosine nearer to 0 is not told
LEGEND = {  # by head, what stands below it; a step needs no words
    "size": "relative norm of the update before it was rounded for storage; * as stored",
    "ratio": "norm of the delta divided by that of the step before",
    "kept": "share of the stored delta's energy that is the update's; the rest is rounding",
    "unchanged": "share of the entries that are the same in both",
    "most in": "the group of modules that holds most of the energy, and its share",
    "depth": "the quarter of the layers that holds most, and its share",
    "coherent": "matrices inside layers for which dirs. is known",
    "dirs.": "as coherent as so many equally strong directions, in the median matrix; >all:"
    " less coherent than all its directions alike would be",
    "cosine": "with the delta of the step before",
    "inside": "share of the energy in the leading directions of the step before, outputs / inputs",
}


def lineage_view(known: Lineage, options: ConsoleOptions) -> RenderableType:
    """Every chain, then the gaps."""
    width, arrow = options.max_width, "->" if options.ascii_only else "→"
    parts: list[RenderableType] = [Rule(Text("lineage", "bold"), align="left", style="dim")]
    tables = [chain_view(chain, width) for chain in known.chains]
    for chain, table in zip(known.chains, tables, strict=True):
        stages = f" {arrow} ".join(visible(name) for name in chain.stages)
        parts += [
            Text(stages, "bold cyan", overflow="fold"),
            table,
            *_notes(chain),
            "",
        ]
    parts += [Text(visible(f"note: {note}"), "yellow") for note in known.notes]
    if known.notes:
        parts.append("")
    return Group(*parts, Text(_legend(tables), "dim"))


def _legend(tables: Sequence[Table]) -> str:
    """What stands below the heads of these tables, which have fewer in a narrow terminal."""
    shown = {str(column.header) for table in tables for column in table.columns}
    return " ".join(f"{head}: {text}." for head, text in LEGEND.items() if head in shown)


def chain_view(chain: Chain, width: int) -> Table:
    """A row for each step, and below them the reports that span several."""
    rows = [*chain.steps, *chain.whole]
    letters = LETTERS_WIDE if width >= WIDE else LETTERS
    columns = [
        ("step", [_name(step, letters) for step in rows]),
        ("size", [_size(step) for step in rows]),
        ("ratio", [number(step.ratio, 2) for step in rows]),
        ("kept", [fixed(step.kept) for step in rows]),
        ("most in", [most_in(step) for step in rows]),
        ("dirs.", [_directions(step) for step in rows]),
        ("cosine", [_cosine(step) for step in rows]),
        ("inside", [_both(step) for step in rows]),
    ]
    wider = [
        (5, "depth", [deepest(step) for step in rows]),
        (6, "coherent", [f"{step.coherent} of {step.inside}" for step in rows]),
        (4, "unchanged", [share(step.zero_share) for step in rows]),
    ]
    return text_table("", columns, wider=wider, width=width, gap=2)


def _directions(step: Step) -> str:
    """`>all` where the median matrix is less coherent than all its directions alike would be."""
    if step.equivalent_directions is None and step.above_short_side:
        return ">all"
    return number(step.equivalent_directions)


def _name(step: Step, letters: int) -> str:
    """`sft..dpo`; where that is too long `..dpo`, as the stages stand above the table."""
    start, end = visible(step.start), visible(step.end)
    text = f"{start}..{end}"
    if len(text) > letters:
        text = f"..{end}"
    if len(text) > letters:
        text = f"{text[: letters // 2 - 1]}…{text[-(letters // 2) :]}"
    return text


def _size(step: Step) -> str:
    """With a star where it is that of the rounded update."""
    size = share(step.size)
    if step.relative_norm_unrounded is None:
        size += "*"
    return size


def _cosine(step: Step) -> str:
    if step.joint is None:
        return "-"
    return fixed(step.joint.cosine, 3)


def most_in(step: Step) -> str:
    """The group of modules that holds the most energy: `MLP 61 %`."""
    if not step.groups:
        return "-"
    group = step.groups[0]
    return f"{SHORT.get(group.name, visible(group.name)[:12])} {share(group.energy_share)}"


def deepest(step: Step) -> str:
    """The quarter of the depth that holds the most energy: `4th 41 %`."""
    if step.quarters is None:
        return "-"
    most = max(range(len(step.quarters)), key=step.quarters.__getitem__)
    return f"{PLACES[most]} {share(step.quarters[most])}"


def _both(step: Step) -> str:
    joint = step.joint
    if joint is None or joint.inside_left is None:
        return "-"
    return _inside(joint.inside_left, joint.inside_right)


def _inside(left: float | None, right: float | None) -> str:
    """The shares of outputs and inputs: `12 / 8.0 %`."""
    return f"{share(left).removesuffix(' %')} / {share(right)}"


def _notes(chain: Chain) -> list[RenderableType]:
    """Chance levels of every step, and what is missing."""
    reasons: list[tuple[Step, str]] = []
    for before, step in pairwise(chain.steps):
        reasons.append((step, chance_text(before, step)))
    for step in (*chain.steps, *chain.whole):
        if "lineage" in step.failed_gates:
            reasons.append(
                (step, "base and tuned have little in common: a long training, or unrelated models")
            )
        if step.no_unrounded is not None and step.matrices:
            reasons.append((step, f"size as stored: {step.no_unrounded}"))
    return [
        Text(visible(f"{step.start}..{step.end}: {text}"), "dim") for step, text in reasons if text
    ]


def chance_text(before: Step, step: Step) -> str:
    """What cosine and shares are by chance, and what rounding does to them; or what is missing."""
    from shadow.comparing.lineage import shrinking

    joint = step.joint
    if joint is None and not step.no_joint:
        return ""
    if joint is None:
        return f"no cosine: {step.no_joint}"
    parts = [f"by chance the cosine is 0 ± {number(joint.chance_cosine, 2)}"]
    master = joint.chance_cosine_master
    if master is not None and master < -NO_CHANCE:
        parts.append(
            f"down to {fixed(master)} if training continued from a copy in more bits than"
            f" {step.start} is stored in, as both steps share its rounding"
        )
    factor = shrinking(step, before)
    if factor is not None and factor < 1 - NO_CHANCE:
        parts.append(f"rounding has multiplied it by {fixed(factor)} to 1")
    if joint.chance_inside_left is not None:
        inside = _inside(joint.chance_inside_left, joint.chance_inside_right)
        parts.append(f"inside by chance {inside}")
    if joint.left_out:
        parts.append(
            f"without {counted(joint.left_out, 'matrix', 'matrices')} that only one of the"
            " steps has"
        )
    return "; ".join(parts)
