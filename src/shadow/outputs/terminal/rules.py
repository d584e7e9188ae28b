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
    from shadow.claims.rules import Rule as GateRule
    from shadow.claims.verdicts import Judgement, Verdict


LONGEST_WORD = 32  # columns of a name that is not broken; 80 leave as many for what was found
OUTCOMES = {"met": "FAILED", "missing": "not judged", "passed": "passed", "skipped": "skipped"}


def _words(rule: GateRule) -> list[str]:
    return [*visible(rule.name).split(), *visible(rule.condition).split()]


def rules_view(judged: Judgement, *, titled: bool = False) -> RenderableType:
    """What came of the rules of one pair. titled: with its name above, if nothing else has it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title="Rules")
    table.add_column("outcome", no_wrap=True)
    widest = max(
        (len(word) for verdict in judged.verdicts for word in _words(verdict.rule)), default=0
    )
    table.add_column(
        "rule: fails if",
        style="cyan",
        overflow="fold",
        min_width=min(widest, LONGEST_WORD),
        ratio=2,
    )
    table.add_column("what was found", overflow="fold", ratio=3)
    for verdict in judged.verdicts:
        rule = verdict.rule
        name = Text(visible(rule.name))
        if rule.condition != rule.name:
            name.append(f"\n{visible(rule.condition)}", "dim")
        detail = Text(visible(verdict.detail))
        if rule.message and verdict.outcome == "met":
            detail.append(f"\n{visible(rule.message)}", "bold")
        table.add_row(_outcome(verdict), name, detail)
    notes = [Text(visible(f"note: {note}"), "yellow") for note in judged.notes]
    head: RenderableType = ""
    if titled:
        pair = (visible(judged.pair), "bold cyan")
        title = Text.assemble((visible(judged.family), "bold"), "  ", pair)
        head = Rule(title, align="left", style="dim")
    return Group(head, table, *notes, "")


def _outcome(verdict: Verdict) -> Text:
    """In a word; a warning is told from an error where the rule is violated or not judged."""
    word = OUTCOMES[verdict.outcome]
    if verdict.outcome == "passed":
        return Text(word, "green")
    if verdict.outcome == "skipped":
        return Text(word, "dim")
    if verdict.rule.severity == "error":
        return Text(word, "bold red")
    return Text(f"{word} (warning)", "yellow")
