"""Faults of the command line, found before a command runs: one line and a hint, as other errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shadow.cli.examples import EVERYDAY, epilog_of
from shadow.errors import UsageError
from shadow.gone import gone
from shadow.text import nearest

# The class of every such fault. Newer versions of typer bring it themselves, older ones click's.
WrongUsage: type[Exception] = typer.BadParameter.__mro__[2]
NOT_A_CHOICE = re.compile(
    r"(?:Value error, )?(?P<word>'.*') is not one of (?P<choices>'.*')\.?", re.DOTALL
)
BOUND = re.compile(r"should be (?P<side>greater|less) than or equal to (?P<number>[\d.]+)")
EVERY = "shadow.every-option"  # of a context: whether help shows all options
KINDS = {
    "--to": "format",
    "--kind": "figure",
}  # options whose words may be gone
OF_ONE_RUN = ("show", "report", "export", "figure")  # commands that take one report or folder


class Commands(TyperGroup):
    """Commands by name; an unknown one is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it. Raises UsageError for an unknown command, with the nearest one."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            raise gone("command", name) or UsageError(
                f"no command {name[:80]!r}", nearest(name, self.commands) or _help_of(ctx)
            )
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose help fits a screen: the options of every day, and with `--help-all` all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does it. Raises UsageError for a value of an option that begins with `--`."""
        _require_values(self.params, args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer does it, of the parameters that are asked for, and without a type of flags."""
        everyday = () if ctx.meta.get(EVERY) else EVERYDAY.get(self.name or "", ())
        shown = copy.copy(self)
        shown.epilog = epilog_of(self.name or "")
        shown.params = [copy.copy(one) for one in self.params]
        for one in shown.params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        if everyday:
            shown.params = _everyday(shown.params, everyday)
            first, *others = (self.help or "").split("\n\n")
            needed = [text for text in others if text.startswith("Exit codes: ")]
            shown.help = "\n\n".join([first, *needed])
        super(Command, shown).format_help(ctx, formatter)

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, a flag as the others."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


def _require_values(parameters: Iterable[Any], args: Sequence[str]) -> None:
    """Refuse `--junit --help`: what looks like an option is meant as one, and is no file's name."""
    with_value = {
        name
        for one in parameters
        if one.param_type_name == "option" and not one.is_flag and not one.count
        for name in one.opts
    }
    typed = args[: args.index("--")] if "--" in args else args
    for word, following in pairwise([*typed, ""]):
        name, is_one_word, value = word.partition("=")
        value = value if is_one_word else following
        if name in with_value and value.startswith("--"):
            raise UsageError(
                f"{name} has no value: {value[:80]!r} begins with --", _with_value(name)
            )


def _with_value(name: str) -> str:
    return f"write its value behind it, such as {name} VALUE; a file may be ./--NAME"


def _everyday(parameters: Iterable[Any], names: Sequence[str]) -> list[Any]:
    """Those of these names, in their order, in one panel, and each option in a line or two."""
    found = {one.name: one for one in parameters}
    chosen = [found[name] for name in (*names, "help_all")]
    for one in chosen:
        one.rich_help_panel = None
        if one.param_type_name == "option":
            one.help = _first_clause(one.help)
    return chosen


def _first_clause(text: str) -> str:
    """The text of an option up to its first semicolon or full stop, for a line of its own."""
    return f"{re.split(r'; |[.] |[.]$', text)[0]}."


def show_all(context: typer.Context, wanted: bool) -> None:
    """The callback of `--help-all`."""
    if wanted:
        context.meta[EVERY] = True
        print(context.get_help())
        raise typer.Exit


def as_usage_error(fault: Any) -> UsageError | None:
    """What typer found wrong, a WrongUsage, as an error of ours; None where it showed the help."""
    context = fault.ctx
    unknown = getattr(fault, "option_name", None)
    if unknown and hasattr(fault, "possibilities"):
        options = [
            name
            for parameter in context.command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        ]
        if error := gone("option", unknown):
            return error
        known = [name for name in options if name.startswith("-")]
        hint = nearest(unknown, known) or _help_of(context)
        return UsageError(f"unknown option {unknown[:80]}", hint)
    choice = NOT_A_CHOICE.fullmatch(fault.message or "")
    if choice is not None:
        word = choice["word"].strip("'")
        choices = re.findall("'([^']*)'", choice["choices"])
        name = max(fault.param.opts, key=len)
        if error := gone(KINDS.get(name, ""), word):
            return error
        hint = nearest(word, choices) or f"such as {name} {choices[0]}"
        return UsageError(f"{name}: {word[:80]!r} is not one of {', '.join(choices)}", hint)
    bound = BOUND.search(fault.message or "")
    if bound is not None:
        name = max(fault.param.opts, key=len)
        end = f"{bound['number']} {'or more' if bound['side'] == 'greater' else 'at most'}"
        return UsageError(f"{name}: the number is out of range", f"give {end}")
    message = " ".join(str(fault.format_message()).split()).rstrip(".")
    if not message:
        return None
    return UsageError(message[:1].lower() + message[1:], _hint(message, context))


def _hint(message: str, context: Any) -> str | None:
    """What to do about a fault that typer put into words, where that can be said."""
    if message.endswith(" is a file"):
        return "choose another folder"
    if message.endswith(" is a directory"):
        return "name a file in it"
    is_extra = "unexpected extra argument" in message
    if is_extra and context is not None and context.command.name in OF_ONE_RUN:
        return "name the folder above them, or use `shadow compare A B`"
    return _help_of(context)


def _help_of(context: Any) -> str | None:
    """The hint that leads to the help of a command."""
    if context is None:
        return None
    return f"`{context.command_path} --help` lists what there is"
