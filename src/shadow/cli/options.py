"""Options that commands share, and what typed words refer to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from shadow.errors import UsageError
from shadow.options import ARGUMENT, option, options_of
from shadow.storage import url_of
from shadow.text import redacted_url

if TYPE_CHECKING:
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


def on_this_machine(given: Any) -> Any:
    """Refuse a URL for an option that takes a path: it would become a folder called `s3:`."""
    paths = given if isinstance(given, list) else [given]
    for path in paths:
        if path is not None and (url := url_of(path)) is not None:
            hint = "name a place on this machine, and copy from or to the URL"
            raise UsageError(f"{redacted_url(url)[:80]}: URLs are not supported here", hint)
    return given


def offered_families(ctx: typer.Context) -> Iterable[str]:
    """Complete families of the registry, and of the folder in an earlier option or the variable. A
    person waits for it, so it imports neither torch nor pandas.
    """
    from shadow.targets.families import family_names

    try:
        return family_names(ctx.params.get("registry"))
    except OSError:
        return []


def typed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command of a function whose options are declared: its own and those of records."""
    parameters: list[Parameter] = []
    records: dict[str, type] = {}
    for parameter in signature(command, eval_str=True).parameters.values():
        if isinstance(parameter.default, Field):
            parameters.append(_parameter(parameter.name, parameter.annotation, parameter.default))
        else:
            record = records[parameter.name] = parameter.annotation
            hints, panel = get_type_hints(record), record.__name__
            parameters += [
                _parameter(each.name, hints[each.name], each, rich_help_panel=panel)
                for each in options_of(record)
            ]

    def run(**given: Any) -> Any:
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        for name, record in records.items():
            given[name] = record(
                **{field.name: given.pop(field.name) for field in options_of(record)}
            )
        return command(**given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, kind: Any, declared: Field[Any], **panel: str) -> Parameter:
    """Make a parameter of a command in typer's form. In the help a record is a panel."""
    names, more = declared.metadata["option"]
    more = {**panel, **more}
    kind, default = more.pop("type", kind), declared.default
    if get_origin(kind) is Sequence:
        kind = list[Path] if get_args(kind) == (Path,) else list[str]
    if kind is bool and not names:  # else typer would add its opposite
        names = (f"--{name.replace('_', '-')}",)
    info = typer.Argument(**more) if names == (ARGUMENT,) else typer.Option(*names, **more)
    kind = Annotated[kind, info]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


FILE: Any = {"metavar": "FILE", "dir_okay": False, "callback": on_this_machine}
FOLDER: Any = {"metavar": "DIR", "file_okay": False}
RUN: Any = {"metavar": "RUN"}
LISTED = option(
    "File of targets: YAML, or one per line; - reads standard input.", None, "--list", **FILE
)
REGISTRY = option("Folder of your own family files.", envvar="SHADOW_REGISTRY", **FOLDER)
JUNIT = option("Write results as JUnit XML; a suite for each pair, a case for each rule.", **FILE)


@dataclass(frozen=True)
class Pairs:
    """The requested pairs, in addition to the targets."""

    base: str | None = option(
        "Base checkpoint: ./DIR, /DIR, org/name, or org/name@revision.", metavar="REF"
    )
    tuned: str | None = option("Checkpoint tuned from it, in the same form.", metavar="REF")
    name: str | None = option(
        "Name of the pair, family:base..tuned, whose report has this folder.", metavar="NAME"
    )
    listed: str | None = LISTED
    shard: str | None = option("Part of the list: 2/4 is the second of four.", metavar="I/N")
    registry: Path | None = REGISTRY


@dataclass(frozen=True)
class Rules:
    """Rules and baselines for reports."""

    fail_on: Sequence[str] = option(
        "Exit with 4 if true, as 'concentration > 0.5'; may be repeated.", (), metavar="RULE"
    )
    policy: Path | None = option("YAML file of named rules.", **FILE)
    against: Path | None = option(
        "Exit with 4 if a figure moved from these accepted reports. It moved if it lies outside the"
        " spread over layers that it has there. May be a URL.",
        metavar="RUN",
        file_okay=False,
    )
    allow_missing: bool = option(
        "Do not fail if a figure of --fail-on or a report of --against is missing.", False
    )
    junit: Path | None = JUNIT


def written(help: str, default: Path | None = None, **more: Any) -> Any:
    """Declare an option for what a command writes on this machine."""
    return option(help, default, "-o", "--output", callback=on_this_machine, **more)


Format = Literal["table", "json"]
MarkdownFormat = Literal["table", "json", "markdown"]

TARGETS = option(
    "Two checkpoints, BASE TUNED: each ./DIR, or org/name on the Hub. Or names of the registry: a"
    " family, one pair of it as family:from..to, a glob such as 'qwen2.5-*' in quotes, or one"
    " org/name.",
    (),
    ARGUMENT,
    metavar="TARGET",
    autocompletion=offered_families,
)
OUTPUT = option("Folder for reports; may be a URL.", Path("reports"), "-o", "--output", **FOLDER)
REPORTS = option(
    "Folder of a report, or a folder above it; may be a URL.", Path("reports"), ARGUMENT, **RUN
)
SEVERAL = option(
    "Finished reports: their folders, or folders above them; may be URLs.", ..., ARGUMENT, **RUN
)
FORMAT = option("Print a table or json (short: --json).", "table", metavar="FORMAT")
MARKDOWN = option(
    "Print a table, json (short: --json), or markdown, for a model card or a pull request.",
    "table",
    metavar="FORMAT",
)
QUIET = option(
    "Print headlines; on stderr only errors, failed rules and their count.", False, "-q", "--quiet"
)
JOBS = option("Number of worker threads; no result depends on it.", metavar="N", min=1, max=1024)


def selected(targets: Sequence[str], pairs: Pairs) -> Selection:
    """The pairs that are named. Raises UsageError if there are none."""
    from shadow.targets.families import TWO, given_pair, pairs_of_references
    from shadow.targets.lists import select
    from shadow.targets.references import is_reference, typed_reference

    given: Sequence[Pair] = ()
    if pairs.base is not None and pairs.tuned is not None:
        given = [given_pair(typed_reference(pairs.base), typed_reference(pairs.tuned))]
    elif pairs.base is not None or pairs.tuned is not None:
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    elif pairs.name is not None and len(targets) == 2 and any(map(is_reference, targets)):
        given, targets = pairs_of_references(targets, {}), ()
    if pairs.name is not None:
        if not given or targets or pairs.listed:
            raise UsageError("--name is for one pair that is given by its checkpoints", TWO)
        given = [given_pair(given[0].base, given[0].tuned, pairs.name)]
    selection = select(targets, given, pairs.registry, pairs.listed, pairs.shard)
    if not selection.pairs:
        hint = "name a family (try: shadow audit demo), or two checkpoints: shadow audit BASE TUNED"
        raise UsageError("nothing to audit", hint)
    return selection


def prepare(offline: bool) -> None:
    """Set whether to work offline, before the Hub's client is imported and reads it."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
