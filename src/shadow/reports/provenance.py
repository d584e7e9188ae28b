"""The `shadow` key of a report's files: what was measured, with which settings and version."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from shadow import __version__
from shadow.errors import ShadowError
from shadow.files import PARTIAL, require_utf8
from shadow.reports.columns import READ, SCHEMA, TABLES
from shadow.reports.folders import (
    FINISHED,
    NAME_ONE,
    TABLES_OF_A_PAIR,
    has_remains,
    put_in_place,
)
from shadow.reports.metadata import (
    METADATA_KEY,
    CheckpointMetadata,
    ReportMetadata,
    SettingsMetadata,
    metadata_in,
)

AGAIN = "run the audit again"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Identity:
    """Identity of the numbers of a report: equal identities give equal data."""

    version: str
    schema: int
    family: str
    pair: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    settings: SettingsMetadata
    """All settings of the audit, and how the two are related."""

    def as_json(self) -> ReportMetadata:
        """Return what the files say of it: every value as JSON has it."""
        content: ReportMetadata = json.loads(json.dumps(asdict(self)))
        return content

    def is_that_of(self, header: Any) -> bool:
        """Return whether the numbers of a journal with this first line are ours."""
        return bool(header == self.as_json())


@dataclass(frozen=True)
class CheckpointIdentity:
    """Identity of the checkpoint on one side of a pair."""

    repo: str
    """A repository of the Hub, or a folder as it was given; of a base per component all of them."""
    commit: str | None
    """The 40 hexadecimal digits of the commit; None for a folder."""
    fingerprint: str | None
    """A sha256 of the files' names, sizes, times and headers and of a sample of every tensor; None
    where it is not told.
    """
    content: str | None = None
    """A sha256 of the names, formats, shapes and checksums of all tensors, equal for equal weights
    in any files; None where one was not read, and in reports made before 0.2.0.
    """

    @classmethod
    def of(cls, side: CheckpointMetadata) -> CheckpointIdentity:
        return cls(side["repo"], side["commit"], side["fingerprint"], side.get("content"))


@dataclass(frozen=True)
class Provenance:
    """Subject of a finished report, and the selection from it."""

    version: str
    schema: int
    family: str
    pair: str
    base: CheckpointIdentity
    tuned: CheckpointIdentity
    relation: str | None
    """`tuned` where the second was trained from the first, `sibling` where neither was."""
    level: str
    """How much was measured: norms, sketch (estimates), full or exact."""
    components: tuple[str, ...]
    layers: tuple[int, ...]
    """The layers that were chosen, from 0; empty for all."""
    modules: tuple[str, ...]
    recorded: ReportMetadata = field(hash=False, repr=False)
    """The `shadow` key of the report's files as it stands there, with all settings, seconds and
    libraries: what `as_json` returns.
    """

    def as_json(self) -> ReportMetadata:
        """All that the files say of how the report was made; None for what is not finite."""
        stored: ReportMetadata = json.loads(
            json.dumps(self.recorded), parse_constant=lambda _: None
        )
        return stored

    @classmethod
    def of(cls, metadata: ReportMetadata) -> Provenance:
        """The provenance in the metadata of a report, which `report_metadata` has checked."""
        settings = metadata["settings"]
        chosen = settings.get("chosen") or {}
        return cls(
            version=metadata["version"],
            schema=metadata["schema"],
            family=metadata["family"],
            pair=metadata["pair"],
            base=CheckpointIdentity.of(metadata["base"]),
            tuned=CheckpointIdentity.of(metadata["tuned"]),
            relation=relation if isinstance(relation := settings.get("relation"), str) else None,
            level=settings["method"]["level"],
            components=all_that_are(str, chosen.get("components")),
            layers=all_that_are(int, chosen.get("layers")),
            modules=all_that_are(str, chosen.get("modules")),
            recorded=metadata,
        )


def all_that_are(kind: type[Value], values: object) -> tuple[Value, ...]:
    """The values of exactly this type in a list: True is not a number here."""
    there = values if isinstance(values, list) else []
    return tuple(value for value in there if type(value) is kind)


def finished_metadata(folder: Path) -> ReportMetadata | None:
    """The provenance of the finished report in a folder; None when there is none.

    Of a report of another schema only the schema is checked. Raises ShadowError for a report that
    cannot be read. Whoever reads a report asks this first: a replacement that was killed half-way
    is completed here.
    """
    put_in_place(folder)
    path = folder / FINISHED
    if not path.is_file():
        return None
    require_utf8(folder)
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    try:
        metadata: ReportMetadata = metadata_in((schema.metadata or {})[METADATA_KEY])
        if type(metadata["schema"]) is int and not is_read(metadata):
            return metadata  # another version's; check_schema says so
        _check_metadata(metadata)
        if missing := TABLES["matrices"].first - set(schema.names):
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShadowError(f"{path}: not a report of shadow", NAME_ONE) from error
    return metadata


def missing(folder: Path, name: str) -> ShadowError:
    """Return the error for a report that lacks one of its files."""
    return ShadowError(
        f"{folder}: {name} is missing from this report (it may not have been copied completely)",
        AGAIN,
    )


def unreadable(path: Path, error: Exception) -> ShadowError:
    """Return the error for a file of a report that cannot be read, with the system's reason."""
    reason = error.strerror if isinstance(error, OSError) else None
    return ShadowError(
        f"{path.parent}: {path.name} cannot be read" + (f": {reason}" if reason else ""), AGAIN
    )


def require_tables(folder: Path, metadata: ReportMetadata, *, spectra: bool) -> None:
    """Refuse a finished report that lacks a table. Raises ShadowError.

    spectra: must singular values be there too, if the audit wrote them? A copy for a reader of
    other tables leaves them out.
    """
    is_due = spectra and metadata["settings"].get("spectra") is True
    for name in TABLES_OF_A_PAIR:
        if (is_due or name != "spectra") and not (folder / f"{name}.parquet").is_file():
            raise missing(folder, f"{name}.parquet")


def _check_metadata(metadata: Any) -> None:
    """Raise TypeError or KeyError where metadata are not of the types that readers rely on."""
    settings, sides = metadata["settings"], (metadata["base"], metadata["tuned"])
    texts = [metadata[key] for key in ("version", "family", "pair")]
    texts += [settings["method"]["level"], *(side["repo"] for side in sides)]
    for side in sides:
        maybe = side["commit"], side["fingerprint"], side.get("content")
        texts += [text for text in maybe if text is not None]
    mappings = settings["method"], settings.get("chosen") or {}, metadata.get("libraries") or {}
    seconds = metadata.get("seconds") or 0.0
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(mapping, dict) for mapping in mappings)
        and type(metadata["schema"]) is int
        and isinstance(seconds, int | float)
        and 0 <= seconds < 1e12
    ):
        raise TypeError


def report_metadata(folder: Path) -> ReportMetadata:
    """The provenance of the finished report in a folder.

    Raises ShadowError when the folder holds no finished report, a broken one, one that lacks a
    table, or one of another schema. Whether singular values are there is not asked.
    """
    metadata = finished_metadata(folder) if folder.is_dir() else None
    if metadata is None:
        refuse_remains(folder)
        raise ShadowError(f"{folder}: no finished report in it", _instead_of_a_report(folder))
    check_schema(folder, metadata)
    require_tables(folder, metadata, spectra=False)
    return metadata


def refuse_remains(folder: Path) -> None:
    """Raise ShadowError for a report without matrices.parquet, unless it is being audited."""
    if not (folder / PARTIAL).is_dir() and has_remains(folder):
        raise missing(folder, FINISHED)


def _instead_of_a_report(folder: Path) -> str:
    """Return what to do about a folder that holds no finished report."""
    if any(
        path.is_dir() for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}{PARTIAL}")
    ):
        again = "its audit is not finished: run the same command again"
        return f"{again}, or remove what is left with `shadow clean -o DIR`"
    if any(folder.glob("*.safetensors")):
        return "it is a checkpoint; `shadow audit BASE TUNED` measures two and writes their report"
    return NAME_ONE


def is_read(metadata: ReportMetadata) -> bool:
    """Return whether this version reads a report: those of 0.1 have schema 1 too, and are not."""
    return metadata["schema"] in READ and not str(metadata.get("version")).startswith("0.1.")


def check_schema(folder: Path, metadata: ReportMetadata) -> None:
    """Refuse a report whose columns mean another thing than this version's."""
    if is_read(metadata):
        return
    if metadata["schema"] in READ:
        raise ShadowError(f"{folder}: measured by 0.1: audit again")
    made = str(metadata.get("version"))
    made = made if re.fullmatch(r"[\w.+-]{1,40}", made) else "unknown"
    is_newer = metadata["schema"] > SCHEMA
    raise ShadowError(
        f"{folder}: a report of schema {str(metadata['schema'])[:12]}, made by shadow {made};"
        f" this is shadow {__version__}, which reads schema {' and '.join(map(str, READ))}",
        "update shadow" if is_newer else "audit the pair again, or read it with that version",
    )
