"""A finished report: how it differs from the requested audit, and the result of an audit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shadow.checks.summary import Summary
from shadow.engines.engine import portable
from shadow.errors import ShadowError
from shadow.files import alone_at, read_start
from shadow.reasons import STRICT
from shadow.reports.folders import (
    finished_metadata,
    is_read,
    refuse_remains,
    replacing,
    require_tables,
)
from shadow.reports.parquet import absent_note
from shadow.reports.provenance import SCHEMA, SIDES, ReportMetadata
from shadow.reports.report import Report
from shadow.run.journal import JOURNAL, remove_journal_of
from shadow.run.runtime import Runtime
from shadow.run.settings import DEFAULTS
from shadow.targets.families import Pair
from shadow.telling.reading import FILE as SUMMARY
from shadow.telling.reading import read_summary, summary_bytes
from shadow.text import and_more, in_ranges
from shadow.version import __version__

SHOWN = 12  # characters of a commit or of a fingerprint
LONGEST = 200  # characters of a value
MANY = 5  # differences that are named
OF_A_SIDE = {"repo": "", "commit": "commit of ", "fingerprint": "files of "}
NOT_AS_TYPED = {  # settings that are no option, or one of another name
    "settings.method.seed": "seed",
    "settings.chosen.components": "--component",
    "settings.chosen.layers": "--layer",
    "settings.chosen.modules": "--module",
    "settings.relation": "relation",
}
# by a place: what says nothing more where it differs too
FOLLOWS = {
    "settings.method.level": ["settings.spectra"],
    **{f"{side}.repo": [f"{side}.commit", f"{side}.fingerprint"] for side in SIDES},
    **{f"{side}.commit": [f"{side}.fingerprint"] for side in SIDES},
}


@dataclass(frozen=True)
class FolderState:
    """State of the folder of a requested report."""

    metadata: ReportMetadata | None
    """Of the finished report there; None where there is none, or a broken one."""
    broken: str = ""
    """What is wrong with it, or why it is old and may go."""
    other: str = ""
    """What makes it another one than is asked for."""
    result: AuditResult | None = None
    """The report, where it is what is asked for."""


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by their path: `method.seed`."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


NAMES = {  # what makes a report another one, by its place in the metadata; of settings the option
    "family": "family",
    "pair": "pair",
    **{f"{side}.{key}": f"{text}{side}" for side in SIDES for key, text in OF_A_SIDE.items()},
    **{
        place: NOT_AS_TYPED.get(place, f"--{place.rpartition('.')[2].replace('_', '-')}")
        for place in _flat({"settings": DEFAULTS})
    },
}


def finished(folder: Path) -> FolderState:
    """Inspect a folder. Raises ShadowError if it cannot be read, as it may hold a whole report."""
    try:
        metadata = finished_metadata(folder)
        if metadata is None:
            refuse_remains(folder)
        return FolderState(metadata)
    except ShadowError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
            raise
        return FolderState(None, error.message)


def standing(
    folder: Path, wanted: ReportMetadata, runtime: Runtime, *, spectra: bool = True
) -> FolderState:
    """Look for the requested report; if it is there, tidy up and say so.

    spectra: also require singular values, which a copy may leave out.
    """
    state = finished(folder)
    metadata = state.metadata
    if metadata is None:
        return state
    if differing := differences(metadata, wanted):
        return replace(state, other=named(differing))
    notes = []
    try:
        if metadata["version"] != __version__:
            notes.append(f"measured by shadow {metadata['version']}")
        if absent := Report(folder).absent:
            notes.append(absent_note(absent))
        if notes and runtime.overwrite:
            return replace(state, broken="; ".join(notes))
        require_tables(folder, metadata, spectra=spectra)
        summary, _ = read_summary(folder)
    except ShadowError as error:
        return replace(state, broken=error.message)
    remove_journal_of(folder, wanted)
    try:
        json.loads(read_start(folder / SUMMARY) or b"")
    except (OSError, ValueError, RecursionError):
        with alone_at(folder, JOURNAL), replacing(folder) as staged:
            staged.put(SUMMARY, summary_bytes(summary.as_json()))
        runtime.say(f"{folder}: {SUMMARY} was missing or damaged, and is made again")
    runtime.say("; ".join(["nothing to measure: the report is already there", *notes]))
    result = AuditResult(folder, summary, measured=0, provenance=metadata)
    return replace(state, result=result)


def differences(metadata: ReportMetadata, wanted: ReportMetadata) -> list[str]:
    """Settings, sides and names that differ, with both values; the version does not count.

    A setting that the metadata lacks did not exist yet, and has its value in DEFAULTS.
    """
    if not is_read(metadata):
        schema = f"{metadata['schema']} of {str(metadata.get('version'))[:40]}"
        return [f"schema and version {schema}, now {SCHEMA} of {__version__}"]
    defaults = _flat({"settings": DEFAULTS})
    had = defaults | _flat(metadata)
    now = defaults | _flat(wanted)
    differing = {key: name for key, name in NAMES.items() if had.get(key) != now.get(key)}
    for key in FOLLOWS.keys() & differing.keys():
        for other in FOLLOWS[key]:
            differing.pop(other, None)
    return [
        f"{name} {_said(had.get(key))}, now {_said(now.get(key))}"
        for key, name in differing.items()
    ]


def named(differing: list[str]) -> str:
    """Differences as one phrase, naming the first few."""
    return "; ".join(filter(None, [*differing[:MANY], and_more(len(differing) - MANY)]))


def say_again(
    other: ReportMetadata | None, wanted: ReportMetadata, say: Callable[[str], None]
) -> None:
    """Say that an unfinished audit there is not continued, and why. other: how it differs."""
    if other is None:
        return
    try:
        differing = differences(other, wanted)
        if other["version"] != __version__:
            differing.append(f"version {other['version']}, now {__version__}")
    except (KeyError, TypeError, AttributeError):  # its first line is broken
        differing = []
    say(
        "starting again: the unfinished audit there differs:"
        f" {named(differing) or 'in its first line'}"
    )


def _said(value: object) -> str:
    """Shorten a value for people: a digest to its start, a long text to its end."""
    if isinstance(value, bool):
        if value:
            return "yes"
        return "no"
    if isinstance(value, list):
        are_numbers = all(type(item) is int for item in value)
        value = (in_ranges(value) if are_numbers else ", ".join(map(str, value))) or "all"
    text = "none" if value is None else str(value)
    if re.fullmatch(r"[0-9a-f]{40,64}", text):
        return text[:SHOWN]
    if len(text) <= LONGEST:
        return text
    return f"...{text[3 - LONGEST :]}"


@dataclass(frozen=True)
class AuditResult:
    """A finished report."""

    folder: Path
    summary: Summary
    measured: int
    """Matrices that this run measured itself; 0 when the report was there."""
    provenance: ReportMetadata
    """The `shadow` key of its files."""
    url: str | None = None
    """Where it was published; then folder need not be there any more. None: it is in folder alone.
    """

    @property
    def place(self) -> str:
        """Its URL or its folder."""
        return self.url or str(self.folder)

    @property
    def should_not_have_skipped(self) -> list[str]:
        """The reasons to which `--strict` objects."""
        return [row.reason for row in self.summary.skipped if row.reason in STRICT]


State = Literal["done", "kept", "failed", "stopped"]
BUG = "an error in shadow itself; its traceback follows at the end"


@dataclass(frozen=True)
class PairOutcome:
    """Result of one pair."""

    pair: Pair
    state: State
    """kept: a finished report that differs from what was asked for is there, and stays. stopped: by
    the user.
    """
    result: AuditResult | None = None
    fault: BaseException | None = None
    """A ShadowError, or a fault of shadow itself; None where it is done."""
    began: bool = False
    """Whether anything was measured or fetched, rather than only read."""
    seconds: float = 0.0
    moved: int = 0
    """Bytes of weights that came over the network for it."""

    @property
    def error(self) -> ShadowError | None:
        """The error, for people; None if the pair is done."""
        if self.fault is None or isinstance(self.fault, ShadowError):
            return self.fault
        return ShadowError(f"{type(self.fault).__name__}: {self.fault}", BUG)

    def finished(self) -> AuditResult:
        """The report of the pair. Raises the error if there is none."""
        if self.result is None:
            assert self.fault is not None
            raise self.fault
        return self.result

    def __getstate__(self) -> dict[str, Any]:
        """Prepare for pickling, with a picklable error."""
        state = dict(vars(self))
        if self.fault is not None:
            state["fault"] = portable(self.fault)
        return state
