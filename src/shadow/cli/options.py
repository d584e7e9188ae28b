"""What may be typed: options that commands share, what the shell offers, what words stand for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

import typer

from shadow.errors import ShadowError, UsageError
from shadow.options import option, options_of
from shadow.run.runtime import Files
from shadow.storage import Store, located, url_of
from shadow.text import counted, redacted_url

if TYPE_CHECKING:
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


def on_this_machine(given: Any) -> Any:
    """A callback of options that name a place: a URL would be taken for a folder called `s3:`."""
    for path in given if isinstance(given, list) else [given]:
        if path is not None and (url := url_of(path)) is not None:
            hint = "name a place on this machine, and copy from or to the URL"
            if url.startswith("file:"):
                hint = "leave file:// out"
            raise UsageError(f"{redacted_url(url)[:80]}: URLs are not supported here", hint)
    return given


def anywhere(given: Any) -> Any:
    """A callback of options that also take URLs: refuses at once those that are not supported."""
    if isinstance(given, list):
        return [anywhere(one) for one in given]
    place = None if given is None else located(given)
    return place if isinstance(place, Path) else given


# What the shell offers when a word is begun. A person waits for it: neither torch nor pandas.


def offered_targets(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Families; after a colon the pairs of the family.

    bash breaks words at colons, so that `family:ba` comes as `family`, `:` and `ba`, and wants the
    last part alone.
    """
    from shadow.targets.families import load_families

    *_, family, colon = ["", "", *map(str, ctx.params.get("targets") or ())]
    start = ""
    if colon != ":":
        family, colon, _ = incomplete.partition(":")
        start = f"{family}:"
    if colon != ":":
        return offered_families(ctx)
    try:
        known = load_families(_registry(ctx)).get(family)
    except (ShadowError, OSError):
        return []
    return [f"{start}{pair.name}" for pair in known.pairs] if known else []


def offered_families(ctx: typer.Context) -> Iterable[str]:
    from shadow.targets.families import family_names

    try:
        return family_names(_registry(ctx))
    except (ShadowError, OSError):
        return []


def _registry(ctx: typer.Context) -> Path | None:
    """The folder that was typed before this word, or the variable's."""
    typed: Any = ctx.params.get("registry") or os.environ.get("SHADOW_REGISTRY")
    return Path(typed) if typed else None


def offered_modules() -> Iterable[str]:
    from shadow.places.names import name_rules

    return name_rules().modules


def offered_components() -> Iterable[str]:
    from shadow.places.names import name_rules

    return name_rules().components


TOPICS = ("finding", "gates")  # what `shadow explain` knows besides columns and heads


def offered_words() -> Iterable[str]:
    """Columns and heads of tables."""
    from shadow.reports.columns import TABLES
    from shadow.reports.words import HEADS

    columns = [column.name for table in TABLES.values() for column in table.columns]
    return [word for word in dict.fromkeys((*columns, *HEADS, *TOPICS)) if " " not in word]


def offered_checks() -> Iterable[str]:
    from shadow.checks.registry import CHECKS

    return CHECKS


OFFERED = {"modules": offered_modules, "components": offered_components}  # by `complete`


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
                lists = {key: tuple(one) for key, one in own.items() if isinstance(one, list)}
                given[name] = record(**{**own, **lists})
            return command(**given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return of_records


def _parameters(record: type) -> list[inspect.Parameter]:
    """Make a parameter of a command for each option of a record."""
    hints, parameters = get_type_hints(record), []
    for one in options_of(record):
        names, more = one.metadata["option"]
        more = {"rich_help_panel": PANELS[record.__name__], **more}
        if what := more.pop("complete", None):
            more["autocompletion"] = OFFERED[what]
        kind: Any = more.pop("type", hints[one.name])
        default = one.default
        if get_origin(kind) is Sequence:
            kind, default = list[str], []
        annotation = Annotated[kind, typer.Option(*names, **more)]
        parameters.append(
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    return parameters


PANELS = {  # groups of options in the help, by their records
    "Pairs": "What is audited",
    "Measuring": "How it is measured",
    "Files": "Where checkpoints come from",
    "Rules": "Rules",
}


# of options that some commands have without the other options of their record
ON_THIS_MACHINE: Any = {"metavar": "FILE", "callback": on_this_machine}
LIST = "File of targets: YAML, or one per line; - reads standard input."
REGISTRY: Any = {
    "help": "Folder of your own family files.", "envvar": "SHADOW_REGISTRY", "file_okay": False,
}  # fmt: skip
JUNIT: Any = {
    "help": "Write results as JUnit XML; a suite for each pair, a case for each rule.",
    "dir_okay": False,
    **ON_THIS_MACHINE,
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
    listed: str | None = option(LIST, None, "--list", **ON_THIS_MACHINE)
    shard: str | None = option(
        "Part of the list for this job: 2/4 is the second of four.", metavar="I/N"
    )
    registry: Path | None = option(**REGISTRY)


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
        callback=anywhere,
    )
    allow_missing: bool = option(
        "Do not fail if a figure of --fail-on or a report of --against is missing.",
        False,
        "--allow-missing",
    )
    junit: Path | None = option(**JUNIT)


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
        autocompletion=offered_targets,
    ),
]
ListFile = Annotated[str | None, typer.Option("--list", help=LIST, **ON_THIS_MACHINE)]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="Folder for reports; may be a URL.",
        metavar="DIR",
        file_okay=False,
        callback=anywhere,
    ),
]
RunFolders = Annotated[
    Path,
    typer.Argument(
        help="Folder of a report, or a folder above it; may be a URL.",
        metavar="RUN",
        callback=anywhere,
    ),
]
Registry = Annotated[Path | None, typer.Option(**REGISTRY)]
Format = Annotated[
    Literal["table", "json"],
    typer.Option(help="Print a table or json (short: --json).", metavar="FORMAT"),
]
PairsFormat = Annotated[
    Literal["table", "json", "jsonl"],
    typer.Option(
        help="Print a table, json (short: --json), or jsonl: JSON, one pair a line.",
        metavar="FORMAT",
    ),
]
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
Junit = Annotated[Path | None, typer.Option(**JUNIT)]
Scores = Annotated[
    list[Path] | None,
    typer.Option(
        help=(
            "Benchmark scores that others measured: a CSV, or results of lm-eval (JSON); may be"
            " repeated."
        ),
        metavar="FILE",
        callback=on_this_machine,
    ),
]


def selected(targets: Sequence[str] | None, pairs: Pairs) -> Selection:
    """The pairs that are named. Raises UsageError where there is none."""
    from shadow.targets.families import TWO, given_pair, pairs_of_references
    from shadow.targets.lists import select
    from shadow.targets.references import is_reference, typed_reference

    base, tuned = pairs.base, pairs.tuned
    if (base is None) != (tuned is None):
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    names, given = targets or [], list[Pair]()
    if base is not None and tuned is not None:
        given = [given_pair(typed_reference(base), typed_reference(tuned))]
    if pairs.name is not None:
        if not given and len(names) == 2 and any(map(is_reference, names)):
            names, given = [], list(pairs_of_references(names, {}))
        if not given or names or pairs.listed:
            raise UsageError("--name is for one pair that is given by its checkpoints", TWO)
        given = [given_pair(given[0].base, given[0].tuned, pairs.name)]
    selection = select(names, given, pairs.registry, pairs.listed, pairs.shard)
    if not selection.pairs:
        hint = "name a family (try: shadow audit demo), or two checkpoints: shadow audit BASE TUNED"
        raise UsageError("nothing to audit", hint)
    return selection


def say_left_out(selection: Selection, say: Callable[[str], None]) -> None:
    """Say where a shard has nothing to audit."""
    if not selection.own:
        pairs = counted(len(selection.pairs), "pair", "pairs")
        say(f"nothing to audit in shard {selection.shard}: the list has {pairs}")


def of_pair(error: ShadowError, pair: Pair) -> ShadowError:
    """The fault of one pair among several."""
    return ShadowError(f"{pair.full_name}: {error.message}", error.hint)


def reports_here(run: Path, *, spectra: bool = False) -> Path:
    """The folder of reports; those at a URL are fetched.

    spectra: with their singular values. Raises ShadowError where there is none at a URL.
    """
    place = located(run)
    if isinstance(place, Store):
        from shadow.reports.remote import fetched

        return fetched(place, spectra=spectra)
    return place


def prepare(files: Files) -> None:
    """Before the Hub's client is imported, which reads it then, say whether to work offline."""
    if files.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
