"""What may be typed: the arguments and options that commands share, and the words they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from shadow.audits import request
from shadow.cli import completion
from shadow.errors import UsageError
from shadow.storage import OPTIONS, Store, located, unsupported, url_of
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
    if path is not None:
        place = located(path)
        if isinstance(place, Path):
            return place
        _require_lasting(place)
    return path


def _require_lasting(store: Store) -> None:
    """Refuse what would be gone with the process of the command; Python may use it."""
    if store.scheme.protocol == "memory":
        raise unsupported(store.url, "memory")


def places(paths: list[Path] | None) -> list[Path] | None:
    """The same for options and arguments that may be repeated."""
    if paths is None:
        return None
    return [path for path in map(a_place, paths) if path is not None]


def a_name(text: str | None) -> str | None:
    """The same for a list, which may be standard input."""
    if text is None or url_of(text) is None:
        return text
    place = located(text)
    if isinstance(place, Path):
        return str(place)
    _require_lasting(place)
    return text


# Groups of options in the help
CHOICE = "What is audited"
MEASURING = "How it is measured"
FILES = "Where checkpoints and spectra come from"
RULES = "Rules"
STORAGE = "Storage at URLs"
ENGINE = "Where it runs"

DEFAULT_OUTPUT = Path("reports")
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help=(
            "Families of the registry, `family` or `family:from..to`, or a glob such as 'qwen2.5-*'"
            " in quotes. Or two checkpoints, BASE TUNED: folders as ./DIR, org/name on the Hub. Or"
            " one org/name of the registry."
        ),
        metavar="TARGET",
        autocompletion=completion.targets,
    ),
]
BaseReference = Annotated[
    str | None,
    typer.Option(
        help="Base checkpoint: ./DIR, /DIR, org/name, or org/name@revision.",
        metavar="REF",
        rich_help_panel=CHOICE,
    ),
]
TunedReference = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint that was tuned from it, in the same form.",
        metavar="REF",
        rich_help_panel=CHOICE,
    ),
]
OwnName = Annotated[
    str | None,
    typer.Option(
        "--name",
        help=(
            "Name for a pair of two checkpoints, as family:base..tuned. Its folder has this name."
        ),
        metavar="NAME",
        rich_help_panel=CHOICE,
    ),
]
ListFile = Annotated[
    str | None,
    typer.Option(
        "--list",
        help="File of targets: YAML, or one per line; - reads standard input. May be a URL.",
        metavar="FILE",
        callback=a_name,
        rich_help_panel=CHOICE,
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        help="Only families with this tag; repeat it for families with all of several tags.",
        rich_help_panel=CHOICE,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Part of the list for this job: 2/4 is the second of four.",
        metavar="I/N",
        rich_help_panel=CHOICE,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="Folder for reports; may be a URL.",
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
StorageOptions = Annotated[
    str | None,
    typer.Option(
        "--storage-options",
        help="Options for the driver of a URL: JSON, or a file with JSON.",
        envvar=OPTIONS,
        metavar="JSON|FILE",
        rich_help_panel=STORAGE,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace finished reports whose settings, files, commits or version differ.",
    ),
]
Registry = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        help="Folder of your own family files.",
        envvar="SHADOW_REGISTRY",
        file_okay=False,
    ),
]


Format = Annotated[Literal["table", "json"], typer.Option("--format", help="What to print.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", help="On stderr, print only errors, failed rules and their count."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help=(
            "Also tell on stderr where each side comes from, each matrix as it is measured, and"
            " where the time went."
        ),
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Show every number and table of a pair.")]


Component = Annotated[
    list[str] | None,
    typer.Option(
        help="Only this component; may be repeated.",
        autocompletion=completion.components,
        rich_help_panel=CHOICE,
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(help="Only these layers: 0, or 4-7; may be repeated.", rich_help_panel=CHOICE),
]
Module = Annotated[
    list[str] | None,
    typer.Option(
        help="Only these modules: mlp.up, or attn.*; may be repeated.",
        autocompletion=completion.modules,
        rich_help_panel=CHOICE,
    ),
]
Precision = Annotated[
    request.Precision,
    typer.Option(help="How precisely to compute spectra.", rich_help_panel=MEASURING),
]
Optimizer = Annotated[
    request.Optimizer | None,
    typer.Option(
        "--optimizer",
        help=(
            "Optimiser of the tuned model, if you know it: the label uses trainings with that one."
        ),
        rich_help_panel=MEASURING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help=(
            "Device for Gram matrices: cpu, cuda, a card such as cuda:1, or auto (a card if there"
            " is one)."
        ),
        metavar="DEVICE",
        autocompletion=completion.devices,
        rich_help_panel=MEASURING,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Number of worker threads; results do not depend on it.",
        min=1,
        max=1024,
        rich_help_panel=MEASURING,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Compute every spectrum again, and keep none for later.",
        envvar="SHADOW_NO_CACHE",
        rich_help_panel=FILES,
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        help="Folder for cached spectra of checkpoints, 10 GB at most.",
        show_default="~/.cache/shadow/spectra",
        envvar="SHADOW_CACHE_DIR",
        metavar="DIR",
        file_okay=False,
        callback=on_this_machine,
        rich_help_panel=FILES,
    ),
]
Pickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read torch .bin files, in a child process.", rich_help_panel=FILES
    ),
]
Fetch = Annotated[
    request.Fetch,
    typer.Option(
        "--fetch",
        help="Download whole shards, or byte ranges, which cannot be verified.",
        rich_help_panel=FILES,
    ),
]
MaxDisk = Annotated[
    str | None,
    typer.Option(
        "--max-disk",
        help="Disk limit for downloads, such as 40GB; each shard is removed after use.",
        rich_help_panel=FILES,
    ),
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(
        "--scores",
        help=(
            "Benchmark scores that others measured: a CSV, results of lm-eval (JSON), or a folder"
            " of them; may be repeated. A file may be at a URL."
        ),
        metavar="FILE",
        callback=places,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Use the Hub's cache only, without a network.", rich_help_panel=FILES
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        help="Run pairs one after another in this process, or as tasks of Ray, several at a time.",
        rich_help_panel=ENGINE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: auto, or HOST:PORT.",
        show_default="RAY_ADDRESS, or a Ray of this machine",
        metavar="ADDRESS",
        rich_help_panel=ENGINE,
    ),
]
CoresPerTask = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-task",
        help="Cores of each task of Ray.",
        min=1,
        max=1024,
        show_default="4, or all of the largest machine",
        rich_help_panel=ENGINE,
    ),
]
MemoryPerTask = Annotated[
    str,
    typer.Option(
        "--memory-per-task",
        help="Memory of each task of Ray, such as 16GB; auto: the same share as of the cores.",
        metavar="SIZE",
        rich_help_panel=ENGINE,
    ),
]
Parts = Annotated[
    int | None,
    typer.Option(
        "--parts",
        help="Measure each pair in this many parts; each part is then a task.",
        min=1,
        max=10_000,
        show_default="1; for a single pair on Ray, as many as run at a time",
        rich_help_panel=ENGINE,
    ),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        help=(
            "Exit with 4 if this is true of a figure, such as 'concentration > 0.5'; may be"
            " repeated."
        ),
        metavar="RULE",
        rich_help_panel=RULES,
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="YAML file of named rules; may be a URL.",
        metavar="FILE",
        dir_okay=False,
        callback=a_place,
        rich_help_panel=RULES,
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        help=(
            "Accepted reports: exit with 4 if a figure lies outside its spread over layers there."
            " May be a URL."
        ),
        metavar="RUN",
        file_okay=False,
        callback=a_place,
        rich_help_panel=RULES,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Do not fail if a figure of --fail-on or a report of --against is missing.",
        rich_help_panel=RULES,
    ),
]
Junit = Annotated[
    Path | None,
    typer.Option(
        "--junit",
        help="Write the result for each pair and rule as JUnit XML.",
        metavar="FILE",
        dir_okay=False,
        callback=on_this_machine,
        rich_help_panel=RULES,
    ),
]
