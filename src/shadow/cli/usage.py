"""Help, usage errors, and words that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shadow.errors import UsageError
from shadow.gone import gone

KINDS = {"--to": "format", "--kind": "figure"}  # options whose words may be gone
FIRST = 5  # commands that a group's help begins with
EXAMPLES = {
    "audit": (
        "shadow audit demo",
        "shadow audit ./base ./tuned --name mine:base..tuned",
        "shadow audit qwen2.5-7b --fail-on 'concentration > 0.5'",
    ),
    "show": ("shadow show reports/demo/base..narrow --format markdown",),
    "compare": (
        "shadow compare reports/demo/base..narrow reports/demo/base..broad --joint",
        "shadow compare reports --scores scores.csv",
    ),
    "gate": (
        "shadow gate reports --policy policy.yaml --junit gate.xml",
        "shadow gate reports --against accepted",
    ),
    "report": ("shadow report reports/demo/base..narrow -o narrow.html",),
    "export": ("shadow export reports --to markdown -o cards",),
}


class Commands(TyperGroup):
    """The group of all commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Resolve a command like typer. Raises UsageError for a command that was removed."""
        if args[0] not in self.commands and (error := gone("command", args[0])):
            raise error
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print one line per command, so that all of them fit a terminal of 24 rows."""
        formatter = ctx.make_formatter()  # of the other one what is written is taken for a fault
        formatter.write_usage(ctx.command_path, "COMMAND ...")
        formatter.write_paragraph()
        formatter.write_text(self.help or "")
        longest = max(map(len, self.commands))
        rows = [
            (name.ljust(longest), one.get_short_help_str(formatter.width - longest - 4))
            for name, one in self.commands.items()
        ]
        for part in filter(None, (rows[:FIRST], rows[FIRST:])):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_dl(part)
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text(self.epilog)
        print(formatter.getvalue(), end="")


class Command(TyperCommand):
    """A command with examples in its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Format help like typer, with examples; and the claims of `verify`, imported here."""
        if self.name == "verify":
            self.epilog = _listed("Claims", claims())
        elif self.name in EXAMPLES:
            self.epilog = _listed("Examples", EXAMPLES[self.name])
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse like typer, with `--json` short for `--format json`. Raises UsageError for an
        option or word that was removed, and for `--junit --help`: what looks like an option is
        meant as one.
        """
        options: list[Any] = [one for one in self.params if one.param_type_name == "option"]
        takes_value = {
            name: not (one.is_flag or one.count)
            for one in options
            for name in (*one.opts, *one.secondary_opts)
        }
        end = args.index("--") if "--" in args else len(args)
        if "--format" in takes_value:
            args = ["--format=json" if word == "--json" else word for word in args[:end]] + args[
                end:
            ]
        for word, following in pairwise([*args[:end], ""]):
            if not word.startswith("-"):
                continue
            name, is_one_word, value = word.partition("=")
            value = value if is_one_word else following
            error = gone(KINDS.get(name, ""), value)
            if name not in takes_value:
                error = gone("option", f"{ctx.info_name}:{name}") or gone("option", name)
            elif takes_value[name] and value.startswith("--"):
                hint = f"write its value behind it, such as {name} VALUE; a file may be ./--NAME"
                error = UsageError(f"{name} has no value: {value[:80]!r} begins with --", hint)
            if error:
                raise error
        return super().parse_args(ctx, args)


def _listed(title: str, lines: Sequence[str]) -> str:
    """Return the last lines of a command's help."""
    # \b: lines stay as they are
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


def claims() -> list[str]:
    """Return a line for each claim of `shadow verify`: what to type, and what it claims."""
    from shadow.checks.registry import CHECKS

    typed = {name: f"{name} {form.names_in_usage}" for name, form in CHECKS.items()}
    width = max(map(len, typed.values()))
    return [f"{words:<{width}}  {CHECKS[name].says}" for name, words in typed.items()]


def as_usage_error(fault: typer.TyperException) -> UsageError | None:
    """Convert a usage error of typer into one of ours; None if it showed the help."""
    context = getattr(fault, "ctx", None)
    message = " ".join(str(getattr(fault, "format_message", fault.__str__)()).split()).rstrip(".")
    if not message:
        return None
    hint = f"`{context.command_path} --help` lists what there is" if context else None
    return UsageError(message[:1].lower() + message[1:], hint)
