"""What may be typed: the arguments and options that commands share, and the words they take."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shadow.cli import completion
from shadow.cli.usage import show_all
from shadow.errors import UsageError
from shadow.run import access
from shadow.spectra import method
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


# Groups of options in the help
CHOICE = "What is audited"
MEASURING = "How it is measured"
FILES = "Where checkpoints and spectra come from"
RULES = "Rules"
ENGINE = "Where it runs"


def _in(panel: str) -> Any:
    return partial(typer.Option, rich_help_panel=panel)


_choice, _measuring, _files = _in(CHOICE), _in(MEASURING), _in(FILES)
_rules, _engine = _in(RULES), _in(ENGINE)

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
BaseReference = Annotated[
    str | None,
    _choice(help="Base checkpoint: ./DIR, /DIR, org/name, or org/name@revision.", metavar="REF"),
]
TunedReference = Annotated[
    str | None, _choice(help="Checkpoint that was tuned from it, in the same form.", metavar="REF")
]
OwnName = Annotated[
    str | None,
    _choice(
        help=("Name of two checkpoints: family:base..tuned. Their report has this folder."),
        metavar="NAME",
    ),
]
ListFile = Annotated[
    str | None,
    _choice(
        "--list",
        help="File of targets: YAML, or one per line; - reads standard input.",
        metavar="FILE",
        callback=a_name,
    ),
]
Tag = Annotated[
    list[str] | None,
    _choice(help="Only families with this tag; repeat it for families with all of several tags."),
]
Shard = Annotated[
    str | None,
    _choice(help="Part of the list for this job: 2/4 is the second of four.", metavar="I/N"),
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
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help=(
            "Replace finished reports that differ. Otherwise those of other settings, files or"
            " commits are kept, with exit code 1, and those of another version with 0."
        ),
    ),
]
Registry = Annotated[
    Path | None,
    typer.Option(
        help="Folder of your own family files.", envvar="SHADOW_REGISTRY", file_okay=False
    ),
]
HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        help="Show every option, by what it is for.",
        callback=show_all,
        is_eager=True,
        expose_value=False,
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
Verbose = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help=(
            "Print more on stderr. It has the source of each side, each matrix as it is measured,"
            " and where the time went."
        ),
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Show every number and table of a pair.")]
Component = Annotated[
    list[str] | None,
    _choice(help="Only this component; may be repeated.", autocompletion=completion.components),
]
Layer = Annotated[
    list[str] | None,
    _choice(help="Only these layers: 0, or 4-7; may be repeated.", metavar="LAYERS"),
]
Module = Annotated[
    list[str] | None,
    _choice(
        help="Only these modules: mlp.up, or attn.*; may be repeated.",
        metavar="MODULE",
        autocompletion=completion.modules,
    ),
]
Level = Annotated[
    method.Level,
    _measuring(
        help=(
            "How much to measure: norms alone; a sketch of spectra in a few passes"
            " over the weights, each figure with its error; all of them; or exact, in float64."
        )
    ),
]
Subjects = Annotated[
    method.Subjects,
    _measuring(help="Measure the spectra of base, tuned and delta (all), or of the delta alone."),
]
Device = Annotated[
    str,
    _measuring(
        help=(
            "Device for products, experimental: cpu, cuda, a card such as cuda:1, mps, or auto"
            " (a card if there is one)."
        ),
        metavar="DEVICE",
        autocompletion=completion.devices,
    ),
]
Jobs = Annotated[
    int | None,
    _measuring(help="Number of worker threads; results do not depend on it.", min=1, max=1024),
]
NoCache = Annotated[
    bool,
    _files(
        "--no-cache",
        help="Compute every spectrum again, and keep none for later.",
        envvar="SHADOW_NO_CACHE",
    ),
]
CacheFolder = Annotated[
    Path | None,
    _files(
        help="Folder for cached spectra of checkpoints, 10 GB at most.",
        show_default="~/.cache/shadow/spectra",
        envvar="SHADOW_CACHE_DIR",
        metavar="DIR",
        file_okay=False,
        callback=on_this_machine,
    ),
]
Pickle = Annotated[
    bool, _files("--allow-pickle", help="Read torch .bin files, in a child process.")
]
Fetch = Annotated[
    access.Fetch, _files(help="Download whole shards, or byte ranges, which cannot be verified.")
]
FilePattern = Annotated[
    str | None,
    _files(
        "--file",
        metavar="PATTERN",
        help="Which GGUF file of a side that has several, such as '*Q8_0*'.",
    ),
]
MaxDisk = Annotated[
    str | None,
    _files(help="Disk limit for downloads, such as 40GB; each shard is removed after use."),
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
Offline = Annotated[bool, _files("--offline", help="Use the Hub's cache only, without a network.")]
Engine = Annotated[
    Literal["local", "ray"],
    _engine(
        help="Run pairs one after another in this process, or as tasks of Ray, several at a time."
    ),
]
Address = Annotated[
    str | None,
    _engine(
        help="Ray cluster: auto, or HOST:PORT.",
        show_default="RAY_ADDRESS, or a Ray of this machine",
        metavar="ADDRESS",
    ),
]
CoresPerTask = Annotated[
    int | None,
    _engine(
        help="Cores of each task of Ray.",
        min=1,
        max=1024,
        show_default="4, or all of the largest machine",
    ),
]
MemoryPerTask = Annotated[
    str,
    _engine(
        help="Memory of each task of Ray, such as 16GB; auto: the same share as of the cores.",
        metavar="SIZE",
    ),
]
Parts = Annotated[
    int | None,
    _engine(
        help="Measure each pair in this many parts; each part is then a task.",
        min=1,
        max=10_000,
        show_default="1, or for a single pair on Ray as many as run at a time",
    ),
]
FailOn = Annotated[
    list[str] | None,
    _rules(
        help=("Exit with 4 if true, as 'concentration > 0.5'; may be repeated."), metavar="RULE"
    ),
]
PolicyFile = Annotated[
    Path | None,
    _rules(
        help="YAML file of named rules.",
        metavar="FILE",
        dir_okay=False,
        callback=on_this_machine,
    ),
]
Against = Annotated[
    Path | None,
    _rules(
        help=(
            "Exit with 4 if a figure moved from these accepted reports. It moved if it lies outside"
            " the spread over layers that it has there. May be a URL."
        ),
        metavar="RUN",
        file_okay=False,
        callback=a_place,
    ),
]
AllowMissing = Annotated[
    bool,
    _rules(
        "--allow-missing",
        help="Do not fail if a figure of --fail-on or a report of --against is missing.",
    ),
]
Junit = Annotated[
    Path | None,
    _rules(
        help="Write results as JUnit XML; a suite for each pair, a case for each rule.",
        metavar="FILE",
        dir_okay=False,
        callback=on_this_machine,
    ),
]
