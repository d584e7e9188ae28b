"""What the help of the main commands begins with and ends with: everyday options, and examples."""

from __future__ import annotations

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

EVERYDAY = {
    "audit": (
        "targets", "output", "name", "listed", "layer", "module", "overwrite", "fail_on", "against",
        "junit", "format", "json", "full", "quiet", "verbose",
    ),
    "plan": ("targets", "listed", "layer", "module", "fetch", "max_disk", "format", "json"),
    "compare": ("runs", "margin", "scores", "joint", "output", "format", "json"),
    "gate": (
        "runs", "fail_on", "policy", "against", "allow_missing", "junit", "format", "json", "quiet",
    ),
    "verify": (
        "claim", "checkpoints", "moved", "frozen", "base", "headers", "listed", "junit", "format",
        "json", "quiet",
    ),
    "lineage": ("targets", "output", "format", "json"),
}  # fmt: skip
"""Parameters that `--help` shows, by command; `--help-all` shows the others too. The help of other
commands shows all that they have.
"""


def epilog_of(command: str) -> str | None:
    """The last lines of a command's help; None where it has no examples."""
    title, lines = "Examples", list(EXAMPLES.get(command, ()))
    if command == "verify":
        title, lines = "Claims", claims()
    # \b: lines stay as they are
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)]) if lines else None


def claims() -> list[str]:
    """A line for each claim of `shadow verify`: what is typed, and what it says."""
    from shadow.checks.table import CHECKS

    typed = {name: f"{name} {form.names_in_usage}" for name, form in CHECKS.items()}
    width = max(map(len, typed.values()))
    return [f"{words:<{width}}  {CHECKS[name].says}" for name, words in typed.items()]
