"""Examples of the main commands, which end their help."""

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
        "shadow export reports --to duckdb -o audits.duckdb",
        "shadow export reports --to parquet --table matrices",
    ),
}  # fmt: skip


def epilog_of(command: str) -> str | None:
    """The last lines of a command's help; None where it has no examples."""
    lines = EXAMPLES.get(command)
    if lines is None:
        return None
    # \b: lines stay as they are
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
