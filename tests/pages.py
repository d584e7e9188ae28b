"""Generated parts of the pages in docs/, from the command objects, the tables of columns and the
modules themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from shadow.claims.explanations import EXPLANATIONS
from shadow.claims.gates import GATES
from shadow.claims.recognised import RECOGNISED
from shadow.claims.verify.table import VERIFY
from shadow.cli.commands import app
from shadow.cli.examples import EXAMPLES
from shadow.cli.examples import claims as verify_claims
from shadow.reports.columns import DELTA, FIGURES, RESIDUAL, SCORES, SPECTRAL

ROOT = Path(__file__).parents[1]
CLAIMS = {
    "Gates": GATES,
    "What is recognised": RECOGNISED,
    "Other explanations": EXPLANATIONS,
    "What `shadow verify` checks": VERIFY,
}
CLAIM_HEADS = ("code", "claim", "holds if", "judged by", "null", "wrong")
DIAGNOSTICS = (*SPECTRAL, *DELTA, *RESIDUAL, *FIGURES, *SCORES)


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
    """Every command with its usage, its help and its options, as Markdown."""
    out = []
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
        if shown := [record for record in records if record]:
            out += ["| argument or option | what | without it |", "|---|---|---|"]
            out += [_row(*record) for record in shown] + [""]
        if examples := EXAMPLES.get(path.removeprefix("shadow ")):
            out += ["```sh", *examples, "```", ""]
        if path == "shadow verify":
            out += ["```text", *verify_claims(), "```", ""]
        inner = getattr(command, "commands", {})
        out += [f"- `{path} {name}`: {one.get_short_help_str(200)}" for name, one in inner.items()]
        out += [""] if inner else []
    return "\n".join(out).strip()


def _row(typed: str, text: str) -> str:
    """A row of the table of a command: what is typed, what it is, its default."""
    text, _, extra = text.partition("  [")
    told = dict(part.partition(": ")[::2] for part in extra.removesuffix("]").split("; ") if part)
    default = told.pop("default", "")
    text += "".join(
        f" Variable: `{value}`." if name == "env var" else f" {name}."
        for name, value in told.items()
    )
    if default and not default.startswith("("):  # in brackets it is in words
        default = f"`{default}`"
    return f"| `{cell(typed)}` | {cell(text)} | {default.strip('()')} |"


def claims() -> str:
    """Every claim of the tables, one table each, as Markdown."""
    out = []
    for title, entries in CLAIMS.items():
        out += [f"## {title}", "", f"| {' | '.join(CLAIM_HEADS)} |", "|---|---|---|---|---|---|"]
        for claim in entries.values():
            needs = ", ".join(f"`{name}`" for name in claim.needs)
            rate = claim.error_rate
            wrong = "" if rate is None else f"{rate.wrong} of {rate.of}"
            cells = (f"`{claim.code}`", claim.title, claim.meaning, needs, claim.null, wrong)
            out.append(f"| {' | '.join(map(cell, cells))} |")
        out.append("")
    return "\n".join(out).strip()


def pitfalls() -> str:
    """What each column can be mistaken for, as a list."""
    return "\n".join(
        f"- `{column.name}`: {column.pitfalls}" for column in DIAGNOSTICS if column.pitfalls
    )


def modules() -> str:
    """Every room with its charter, and its modules with the first sentence of their docstrings."""
    root = ROOT / "src" / "shadow"
    out = []
    for room in (
        root,
        *sorted(file.parent for file in root.rglob("__init__.py") if file.parent != root),
    ):
        name = "shadow" if room == root else f"{room.relative_to(root)}/"
        out += [f"## {name}", "", _docstring(room / "__init__.py"), ""]
        files = [file for file in sorted(room.glob("*.py")) if file.name != "__init__.py"]
        if files:
            out += ["| module | what |", "|---|---|", *(_module_row(file) for file in files), ""]
    return "\n".join(out).strip()


def _module_row(file: Path) -> str:
    first = re.split(r"(?<=[.:]) (?=[A-Z])", _docstring(file).split("\n\n")[0].replace("\n", " "))[
        0
    ]
    return f"| `{file.name}` | {cell(first)} |"


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def cost() -> str:
    """The table of benchmarks/README.md against WeightWatcher, without its frame."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = {
        line.split("│")[1].strip(): [part.strip() for part in line.split("│")[2:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    }
    out = ["| | WeightWatcher 0.7.7 | `default` | `fast` | `exact` |", "|---|---|---|---|---|"]
    names = {"wall, s": "seconds", "CPU, s": "CPU seconds", "resident, GiB": "resident memory, GiB"}
    names |= {"anonymous, GiB": "of it not file cache, GiB"}
    return "\n".join(
        [*out, *(f"| {what} | {' | '.join(rows[name])} |" for name, what in names.items())]
    )
