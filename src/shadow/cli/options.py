"""What may be typed: the arguments and options that commands share, and the words they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer

from shadow.cli import completion
from shadow.errors import UsageError
from shadow.options import option, options_of
from shadow.storage import located, url_of
from shadow.text import redacted_url


def on_this_machine(path: Path | None) -> Path | None:
    """A callback of options that name a place: a URL would be taken for a folder called `s3:`."""
    if path is None:
        return None
    url = url_of(path)
    if url is not None:
        hint = "name a place on this machine, and copy from or to the URL"
        if url.startswith("file:"):
            hint = "leave file:// out"
        raise UsageError(f"{redacted_url(url)[:80]}: URLs are not supported here", hint)
    return path


def a_place(path: Path | None) -> Path | None:
    """A callback of options that also take URLs: refuses at once those that are not supported."""
    if path is None:
        return None
    place = located(path)
    return place if isinstance(place, Path) else path


def places(paths: list[Path] | None) -> list[Path] | None:
    """The same for arguments that may be repeated."""
    return None if paths is None else [a_place(path) or path for path in paths]


def files(paths: list[Path] | None) -> list[Path] | None:
    """A callback of options for files, which may be repeated."""
    for path in paths or ():
        on_this_machine(path)
    return paths


def a_name(text: str | None) -> str | None:
    """The same for a list, which may be standard input."""
    if text is not None:
        on_this_machine(Path(text))
    return text


def typed(**groups: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command whose parameters of these names are records, typed option by option.

    The panel of the help is the name that a record has in PANELS.
    """

    def of_records(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters: list[inspect.Parameter] = []
        for one in inspect.signature(command, eval_str=True).parameters.values():
            record = groups.get(one.name)
            own = [one.replace(kind=one.KEYWORD_ONLY)] if record is None else _parameters(record)
            parameters += own

        def run(**given: Any) -> Any:
            for name, record in groups.items():
                own = {one.name: given.pop(one.name) for one in options_of(record)}
                given[name] = record(**{key: _whole(value) for key, value in own.items()})
            return command(**given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return of_records


def _whole(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parameters(record: type) -> list[inspect.Parameter]:
    """Make a parameter of a command for each option of a record."""
    hints, parameters = get_type_hints(record), []
    for one in options_of(record):
        names, more = one.metadata["option"]
        more = {"rich_help_panel": PANELS[record.__name__], **more}
        if complete := more.pop("complete", None):
            more["autocompletion"] = getattr(completion, complete)
        kind: Any = more.pop("type", hints[one.name])
        default = one.default
        if get_origin(kind) is Sequence:
            kind, default = list[str], []
        parameters.append(
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, typer.Option(*names, **more)],
            )
        )
    return parameters


PANELS = {  # groups of options in the help, by their records
    "Pairs": "What is audited",
    "Measuring": "How it is measured",
    "Files": "Where checkpoints come from",
    "Rules": "Rules",
}


@dataclass(frozen=True)
class Pairs:
    """The pairs that are asked for beside the targets."""

    base: str | None = option(
        "Base checkpoint: ./DIR, /DIR, org/name, or org/name@revision.", metavar="REF"
    )
    tuned: str | None = option(
        "Checkpoint that was tuned from it, in the same form.", metavar="REF"
    )
    name: str | None = option(
        "Name of two checkpoints: family:base..tuned. Their report has this folder.",
        metavar="NAME",
    )
    listed: str | None = option(
        "File of targets: YAML, or one per line; - reads standard input.",
        None,
        "--list",
        metavar="FILE",
        callback=a_name,
    )
    shard: str | None = option(
        "Part of the list for this job: 2/4 is the second of four.", metavar="I/N"
    )
    registry: Path | None = option(
        "Folder of your own family files.", envvar="SHADOW_REGISTRY", file_okay=False
    )


@dataclass(frozen=True)
class Rules:
    """What reports are judged by."""

    fail_on: Sequence[str] = option(
        "Exit with 4 if true, as 'concentration > 0.5'; may be repeated.", (), metavar="RULE"
    )
    policy: Path | None = option(
        "YAML file of named rules.", metavar="FILE", dir_okay=False, callback=on_this_machine
    )
    against: Path | None = option(
        "Exit with 4 if a figure moved from these accepted reports. It moved if it lies outside the"
        " spread over layers that it has there. May be a URL.",
        metavar="RUN",
        file_okay=False,
        callback=a_place,
    )
    allow_missing: bool = option(
        "Do not fail if a figure of --fail-on or a report of --against is missing.",
        False,
        "--allow-missing",
    )
    junit: Path | None = option(
        "Write results as JUnit XML; a suite for each pair, a case for each rule.",
        metavar="FILE",
        dir_okay=False,
        callback=on_this_machine,
    )


written: Any = partial(typer.Option, "-o", "--output", callback=on_this_machine)
"""An option for what a command writes on this machine."""

DEFAULT_OUTPUT = Path("reports")
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help=(
            "Two checkpoints, BASE TUNED: each ./DIR, or org/name on the Hub. Or names of the"
            " registry: a family, one pair of it as family:from..to, a glob such as 'qwen2.5-*' in"
            " quotes, or one org/name."
        ),
        metavar="TARGET",
        autocompletion=completion.targets,
    ),
]
ListFile = Annotated[
    str | None,
    typer.Option(
        "--list",
        help="File of targets: YAML, or one per line; - reads standard input.",
        metavar="FILE",
        callback=a_name,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="Folder for reports; may be a URL.",
        metavar="DIR",
        file_okay=False,
        callback=a_place,
    ),
]
RunFolders = Annotated[
    Path,
    typer.Argument(
        help="Folder of a report, or a folder above it; may be a URL.",
        metavar="RUN",
        callback=a_place,
    ),
]
Registry = Annotated[
    Path | None,
    typer.Option(
        help="Folder of your own family files.", envvar="SHADOW_REGISTRY", file_okay=False
    ),
]
Format = Annotated[
    Literal["table", "json"], typer.Option(help="Print a table or json.", metavar="FORMAT")
]
PairsFormat = Annotated[
    Literal["table", "json", "jsonl"],
    typer.Option(
        help="Print a table, json or jsonl. jsonl is JSON, one pair a line.", metavar="FORMAT"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        help=(
            "Print less: one headline per audited pair, and only errors, failed rules and their"
            " count on stderr."
        ),
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(help="Number of worker threads; results do not depend on it.", min=1, max=1024),
]
Junit = Annotated[
    Path | None,
    typer.Option(
        help="Write results as JUnit XML; a suite for each pair, a case for each rule.",
        metavar="FILE",
        dir_okay=False,
        callback=on_this_machine,
    ),
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(
        help=(
            "Benchmark scores that others measured: a CSV, or results of lm-eval (JSON); may be"
            " repeated."
        ),
        metavar="FILE",
        callback=files,
    ),
]
