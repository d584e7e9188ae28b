"""What the help of the main commands ends with: examples, or claims."""

from __future__ import annotations

from collections.abc import Sequence

EXAMPLES = {
    "audit": (
        "shadow audit demo",
        "shadow audit ./base ./tuned --name mine:base..tuned",
        "shadow audit qwen2.5-7b --fail-on 'concentration > 0.5'",
    ),
    "show": (
        "shadow show reports/demo/base..narrow --full",
        "shadow show reports --json",
        "shadow show reports/demo/base..narrow --format markdown",
    ),
    "compare": (
        "shadow compare reports/demo/base..narrow reports/demo/base..broad",
        "shadow compare reports/demo/base..narrow reports/demo/base..broad --joint",
        "shadow compare reports --scores scores.csv",
    ),
    "gate": (
        "shadow gate reports --fail-on 'concentration > 0.5'",
        "shadow gate reports --policy policy.yaml --junit gate.xml",
        "shadow gate reports --against accepted",
    ),
    "report": (
        "shadow report reports",
        "shadow report reports/demo/base..narrow -o narrow.html",
    ),
    "export": (
        "shadow export reports --to csv",
        "shadow export reports --to markdown -o cards",
        "shadow export reports --to parquet",
    ),
}  # fmt: skip


def listed(title: str, lines: Sequence[str]) -> str:
    """The last lines of a command's help."""
    # \b: lines stay as they are
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


def claims() -> list[str]:
    """A line for each claim of `shadow verify`: what is typed, and what it says."""
    from shadow.checks.registry import CHECKS

    typed = {name: f"{name} {form.names_in_usage}" for name, form in CHECKS.items()}
    width = max(map(len, typed.values()))
    return [f"{words:<{width}}  {CHECKS[name].says}" for name, words in typed.items()]
