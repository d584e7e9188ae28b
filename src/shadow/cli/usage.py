"""Faults of the command line that typer cannot know of, and its own in the form of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shadow.cli.examples import claims, listed
from shadow.errors import UsageError
from shadow.gone import gone

KINDS = {"--to": "format", "--kind": "figure"}  # options whose words may be gone


class Commands(TyperGroup):
    """Commands by name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it. Raises UsageError for a command that is gone."""
        if args[0] not in self.commands and (error := gone("command", args[0])):
            raise error
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer does it, with the claims of `verify`, which are imported for it alone."""
        if self.name == "verify":
            self.epilog = listed("Claims", claims())
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does it.

        Raises UsageError for an option or a word that is gone, and for `--junit --help`: what looks
        like an option is meant as one.
        """
        options: list[Any] = [one for one in self.params if one.param_type_name == "option"]
        known = {name for one in options for name in (*one.opts, *one.secondary_opts)}
        flags = {
            name
            for one in options
            if one.is_flag or one.count
            for name in (*one.opts, *one.secondary_opts)
        }
        for name, value in _typed(args):
            error = gone(KINDS.get(name, ""), value)
            if name not in known:
                error = gone("option", name)
            elif name not in flags and value.startswith("--"):
                hint = f"write its value behind it, such as {name} VALUE; a file may be ./--NAME"
                error = UsageError(f"{name} has no value: {value[:80]!r} begins with --", hint)
            if error:
                raise error
        return super().parse_args(ctx, args)


def _typed(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every option that was typed, with the word behind it, which may be its value."""
    typed = args[: args.index("--")] if "--" in args else args
    for word, following in pairwise([*typed, ""]):
        if word.startswith("-"):
            name, is_one_word, value = word.partition("=")
            yield name, value if is_one_word else following


def as_usage_error(fault: typer.TyperException) -> UsageError | None:
    """What typer found wrong, as an error of ours; None where it showed the help."""
    context = getattr(fault, "ctx", None)
    message = " ".join(str(getattr(fault, "format_message", fault.__str__)()).split()).rstrip(".")
    if not message:
        return None
    hint = f"`{context.command_path} --help` lists what there is" if context else None
    return UsageError(message[:1].lower() + message[1:], hint)
