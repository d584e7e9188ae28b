"""Options are declared once, as fields of frozen records or as defaults of a command.

The command line and its help are made from them (`shadow.cli.options`); requests, settings and
reports contain the records themselves.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any, TypeVar

Record = TypeVar("Record", bound=type)
ARGUMENT = ""


def option(help: str, default: Any = None, *names: str, **more: Any) -> Any:
    """Declare a field that is an option, with its help and typer's parameters.

    names: as typed, unless `--` and the name of the field; `ARGUMENT` for a positional one. more:
    limits, `metavar` and the like. `...` as default makes it required.
    """
    return field(default=default, metadata={"option": (names, {"help": help, **more})})


def explained(record: Record) -> Record:
    """Add the help of its options to the docstring of a record: what `help(record)` shows."""
    rows = [
        f"    {field.name}: {field.metadata['option'][1]['help']}" for field in options_of(record)
    ]
    record.__doc__ = "\n".join([record.__doc__ or "", "", "Args:", *rows])
    return record


def options_of(record: type) -> list[Any]:
    """List the fields of a record that are options."""
    return [field for field in fields(record) if "option" in field.metadata]
