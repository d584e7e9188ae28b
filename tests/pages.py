"""The generated parts of docs/cli.md, from the command objects, and of docs/rules.md."""

from collections.abc import Iterator
from typing import Any

import typer.main

from shadow.checks.answer import Severity
from shadow.checks.whole import RULES
from shadow.cli.commands import EXAMPLES, app
from shadow.cli.commands import claims as verify_claims
from shadow.templates import outline


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "&#124;")


def commands(command: Any = None, path: str = "shadow") -> Iterator[tuple[str, Any]]:
    """Every command by what is typed, groups before what they hold."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def command_line() -> str:
    """Every command with usage, help and options, as Markdown; a repeated option is named alone."""
    out = []
    first: dict[str, str] = {}  # row of an option, and the command that has it
    for path, command in commands():
        context = command.make_context(path, [], resilient_parsing=True)
        out += [
            f"## {path}",
            "",
            f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```",
            "",
        ]
        out += [(command.help or "").strip(), ""]
        records = [one.get_help_record(context) for one in command.params]
        rows = {_row(*record): record[0] for record in records if record}
        if own := [row for row in rows if row not in first]:
            out += ["| argument or option | what | without it |", "|---|---|---|", *own, ""]
        for other in dict.fromkeys(first[row] for row in rows if row in first):
            shared = [f"`{typed}`" for row, typed in rows.items() if first.get(row) == other]
            out += [f"As in [`{other}`](#{other.replace(' ', '-')}): {', '.join(shared)}.", ""]
        first = dict.fromkeys(rows, path) | first
        if examples := EXAMPLES.get(path.removeprefix("shadow ")):
            out += ["```sh", *examples, "```", ""]
        if path == "shadow verify":
            out += ["```text", *verify_claims(), "```", ""]
        inner = getattr(command, "commands", {})
        out += [f"- `{path} {name}`: {one.get_short_help_str(200)}" for name, one in inner.items()]
        out += [""] if inner else []
    return "\n".join(out).strip()


def rules() -> str:
    """Every code of `verify whole` in tables, one for each severity."""
    out = []
    for severity in Severity:
        out += [f"## {severity.capitalize()}s", "", "| code | a row says | why | what to do |"]
        out.append("|---|---|---|---|")
        for code, rule in RULES.items():
            if rule.severity is severity:
                cells = map(cell, (outline(rule.text), rule.why, rule.do))
                out.append(f"| `{code}` | {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out).strip()


def _row(typed: str, text: str) -> str:
    """A row of the table of a command: what is typed, what it is, its default."""
    text, _, extra = text.partition("  [")
    recorded = dict(
        part.partition(": ")[::2] for part in extra.removesuffix("]").split("; ") if part
    )
    default = recorded.pop("default", "")
    text += "".join(
        f" Variable: `{value}`." if name == "env var" else f" {name}."
        for name, value in recorded.items()
    )
    if default and not default.startswith("("):  # in brackets it is in words
        default = f"`{default}`"
    return f"| `{cell(typed)}` | {cell(text)} | {default.strip('()')} |"
