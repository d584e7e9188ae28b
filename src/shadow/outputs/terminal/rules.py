"""What came of the rules of a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.text import visible

if TYPE_CHECKING:
    from shadow.gates.rules import Rule as GateRule
    from shadow.gates.verdicts import Judgement


LONGEST_WORD = (
    32  # columns of a figure's name that is not broken; 80 leave as many for what was found
)
OUTCOMES = {"met": "FAILED", "missing": "not judged", "passed": "passed", "skipped": "skipped"}


def _words(rule: GateRule) -> list[str]:
    return [*visible(rule.name).split(), *visible(rule.condition).split()]


def rules_view(judged: Judgement, *, titled: bool = False) -> RenderableType:
    """What came of the rules of one pair; titled: with the name of the pair above it, where nothing
    else has it.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title="Rules")
    table.add_column("outcome", no_wrap=True)
    widest = max(
        (len(word) for verdict in judged.verdicts for word in _words(verdict.rule)), default=0
    )
    table.add_column(
        "rule", style="cyan", overflow="fold", min_width=min(widest, LONGEST_WORD), ratio=2
    )
    table.add_column("what was found", overflow="fold", ratio=3)
    for verdict in judged.verdicts:
        rule, grave = verdict.rule, verdict.rule.severity == "error"
        style = {"passed": "green", "skipped": "dim"}.get(
            verdict.outcome, "bold red" if grave else "yellow"
        )
        word = OUTCOMES[verdict.outcome]
        outcome = word if grave or style in ("green", "dim") else f"{word} (warning)"
        name = Text(visible(rule.name))
        if rule.condition != rule.name:
            name.append(f"\n{visible(rule.condition)}", "dim")
        detail = Text(visible(verdict.detail))
        if rule.message and verdict.outcome == "met":
            detail.append(f"\n{visible(rule.message)}", "bold")
        table.add_row(Text(outcome, style), name, detail)
    title = Rule(Text.assemble((visible(judged.family), "bold"), "  ",
    (visible(judged.pair), "bold cyan")),
                 align="left", style="dim")  # fmt: skip
    notes = [Text(visible(f"note: {note}"), "yellow") for note in judged.notes]
    return Group(title if titled else "", table, *notes, "")
