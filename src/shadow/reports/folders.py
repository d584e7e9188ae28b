"""Folders of reports, also at URLs: the finished reports that a path names, whether a report is
complete, and files of a report that replace earlier ones together.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.errors import ShadowError
from shadow.files import PARTIAL, read_start, require_utf8, safe_name, write_through, writing
from shadow.reports.provenance import METADATA_KEY, READ, SCHEMA, ReportMetadata, metadata_in
from shadow.storage import Store, located, place_for
from shadow.text import closest, several
from shadow.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

# in PARTIAL: files of a report that are all written, and only have to be moved to their places
READY = "ready"
# behind the name of a file that is not at its place yet: nothing in PARTIAL is to look finished
WAITING = ".new"

FINISHED = "matrices.parquet"  # a report is there if this file is
GONE = ("residual.parquet", "scores.json")  # of reports of 0.2, which a new one does not have
SPECTRA_FILE = "spectra.parquet"
TABLES_OF_A_PAIR = ("spectra", "tensors", "files", "matrices")
TABLE_FILES = tuple(f"{name}.parquet" for name in TABLES_OF_A_PAIR)
FILES_OF_A_PAIR = ("summary.json", *TABLE_FILES)
NAME_ONE = "name a folder that `shadow audit` made"
AGAIN = "run the audit again"
MAX_SUMMARY = 64_000_000  # bytes of a summary.json; a thousandth of it is usual


@dataclass(frozen=True)
class Staged:
    """The folder of a report's new files until all of them are written."""

    folder: Path

    def path(self, name: str) -> Path:
        """The path to which the block itself writes a file, which it must finish."""
        return self.folder / f"{name}{WAITING}"

    def put(self, name: str, content: bytes) -> None:
        """Write a file; empty content removes the one of that name from the report."""
        write_through(self.path(name), content)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Staged]:
    """Write some files of a report that take their places together when the block ends, and not at
    all if it fails.

    Killed between the first and the last move, the rest is moved by the next command that reads the
    report.
    """
    staged = folder / PARTIAL / f"{READY}.tmp"

    with writing(folder):
        put_in_place(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            yield Staged(staged)
            staged.rename(folder / PARTIAL / READY)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        put_in_place(folder)


def put_in_place(folder: Path) -> None:
    """Move the files that are ready; matrices.parquet, which identifies a report, comes last."""
    ready = folder / PARTIAL / READY
    if not ready.is_dir() or any(path.is_symlink() for path in (ready, ready.parent)):
        return
    try:
        for name in FILES_OF_A_PAIR:
            waiting = ready / f"{name}{WAITING}"
            # not one of them, or another process was faster
            with contextlib.suppress(FileNotFoundError):
                if waiting.stat().st_size:
                    waiting.replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
                    waiting.unlink()
    except OSError as error:
        why = error.strerror or error
        message = f"{folder}: its new report cannot take the old one's place: {why}"
        raise ShadowError(message, "check the permissions of the folder") from error
    with contextlib.suppress(OSError):
        for name in GONE:
            (folder / name).unlink(missing_ok=True)
        ready.rmdir()
        ready.parent.rmdir()


def reports_below(run: Path) -> list[Path]:
    """The pair folders at or up to two levels below a path, sorted; without any, the path
    itself.

    Damaged reports are included: see `found_below`. Raises ShadowError if it is not a folder.
    """
    return found_below(run) or [run]


def found_below(run: Path) -> list[Path]:
    """The same, or no folder if there is no report.

    A folder with files of a report counts even if it lacks matrices.parquet: reading it raises, so
    that no report is lost silently. A folder with only an unfinished audit does not count.
    """
    with _readable(run):
        if run.is_file():
            raise ShadowError(f"{run} is a file, not a folder", meant(run))
        if not run.is_dir():
            raise ShadowError(f"no such folder: {run}", meant(run) or NAME_ONE)
        names = defaultdict[Path, set[str]](set)
        for depth in ("", "*/", "*/*/"):
            for path in sorted(run.glob(f"{depth}*")):
                is_inside = PARTIAL in path.parent.relative_to(run).parts  # no report yet
                if not is_inside and path.name in (*FILES_OF_A_PAIR, PARTIAL):
                    names[path.parent].add(path.name)
        # where all of it is written, who reads it moves the files to their places
        return [
            folder
            for folder, own in names.items()
            if FINISHED in own
            or (folder / PARTIAL / READY).is_dir()
            or (own != {PARTIAL} and has_remains(folder))
        ]


@contextlib.contextmanager
def _readable(run: Path) -> Iterator[None]:
    """Turn a name that is too long, or a folder that may not be read, into a ShadowError."""
    try:
        yield
    except OSError as error:
        raise ShadowError(f"{str(run)[:80]}: {error.strerror}", NAME_ONE) from error


def has_remains(folder: Path) -> bool:
    """True if a folder has files of a report, but not the one by which it is found.

    Other programs call files so too: a table counts if its metadata are those of a report or it
    cannot be read, and summary.json if it names its pair.
    """
    if (folder / FINISHED).is_file():
        return False
    for name in TABLE_FILES:
        path = folder / name
        try:
            if path.is_file() and "pair" in stored_metadata(schema_of(path)):
                return True
        except ShadowError:
            return True
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    try:
        summary = json.loads(read_start(folder / "summary.json", MAX_SUMMARY) or b"")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(summary, dict) and summary.keys() >= {"schema", "family", "pair", "figures"}


def schema_of(path: Path) -> pa.Schema:
    """The schema of a Parquet file of a report. Raises ShadowError."""
    import pyarrow as pa  # takes a twentieth of a second
    import pyarrow.parquet as pq

    if not path.is_file():
        raise missing(path.parent, path.name)
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def stored_metadata(schema: pa.Schema) -> Any:
    return metadata_in((schema.metadata or {})[METADATA_KEY])


def meant(run: Path) -> str | None:
    """The folder that was meant: above a file, below `reports`, or with a similar name."""
    if run.is_file():
        return f"did you mean {str(run.parent)!r}?"
    target = Path("reports", *str(run).split(":"))
    if not run.is_absolute() and target.is_dir():
        return f"did you mean {str(target)!r}?"
    beside = run.parent.iterdir() if run.parent.is_dir() else ()
    close = closest(run.name, [path.name for path in beside if path.is_dir()])
    return None if close is None else f"did you mean {str(run.parent / close)!r}?"


def reports_at(run: Path) -> list[Path]:
    """The report in a folder, or all reports below it. Raises like `reports_below`."""
    with _readable(run):
        return [run] if (run / FINISHED).is_file() else reports_below(run)


def one_report(run: Path, hint: str = "name one of them") -> Path:
    """The only report at or below a path. hint: what to do if there are several."""
    folders = reports_at(run)
    if len(folders) > 1:
        names = several([str(folder) for folder in folders], 5)
        raise ShadowError(f"{run} holds {len(folders)} reports: {names}", hint)
    return folders[0]


def here(run: str | PathLike[str], *, spectra: bool = False) -> Path:
    """A folder of reports; those at a URL are fetched. spectra: with their singular values.

    Raises ShadowError if there is none at a URL.
    """
    place = located(run)
    if not isinstance(place, Store):
        return place
    if (folder := fetched_if_any(place, spectra=spectra)) is None:
        raise ShadowError(f"{place}: no report there", "name a URL that `shadow audit -o` wrote to")
    return folder


def fetched_if_any(store: Store, *, spectra: bool = True) -> Path | None:
    """Download the reports at or below a URL and the index of a list, with or without their
    singular values; None if there is neither a report nor an index.
    """
    chosen = _chosen(store, spectra=spectra)
    if not chosen:
        return None
    folder = place_for(store)
    with writing(folder.parent, "free some space, or set TMPDIR to another disk"):
        folder.mkdir()
        store.fetch(chosen, folder)
    if _chosen(store, spectra=spectra) != chosen:
        raise ShadowError(f"{store}: reports there changed while they were read", "try again later")
    return folder


def _chosen(store: Store, *, spectra: bool) -> dict[str, Mapping[str, Any]]:
    """The files of finished reports at most two folders below, and those of an index."""
    files, chosen = store.files(), {}
    for path in files:
        *folders, name = path.split("/")
        if len(folders) > 2 or any(safe_name(folder) != folder for folder in folders):
            continue
        is_due = name in FILES_OF_A_PAIR and (spectra or name != SPECTRA_FILE)
        if (is_due and "/".join([*folders, FINISHED]) in files) or path == "index.json":
            chosen[path] = files[path]
    return chosen


def publish(folder: Path, store: Store) -> None:
    """Upload the finished report of a folder; when it returns, it is the report at the URL."""
    store.remove(FINISHED)
    for name in FILES_OF_A_PAIR:  # of which it is the last
        if (folder / name).is_file():
            store.put(folder / name)
        else:
            store.remove(name)


def finished_metadata(folder: Path) -> ReportMetadata | None:
    """The provenance of the finished report in a folder; None if there is none.

    For another schema, only the schema is checked. Raises ShadowError for a report that cannot be
    read. Readers call this first: it completes a replacement that was killed half-way.
    """
    put_in_place(folder)
    path = folder / FINISHED
    if not path.is_file():
        return None
    from shadow.reports.columns import TABLES  # a twentieth of a second

    require_utf8(folder)
    schema = schema_of(path)
    try:
        metadata: ReportMetadata = stored_metadata(schema)
        if type(metadata["schema"]) is int and not is_read(metadata):
            return metadata  # another version's
        _check_metadata(metadata)
        if missing := TABLES["matrices"].first - set(schema.names):
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShadowError(f"{path}: not a report of shadow", NAME_ONE) from error
    return metadata


def missing(folder: Path, name: str) -> ShadowError:
    """The error for a report that lacks one of its files."""
    why = "is missing from this report (it may not have been copied completely)"
    return ShadowError(f"{folder}: {name} {why}", AGAIN)


def unreadable(path: Path, error: Exception) -> ShadowError:
    """The error for a file of a report that cannot be read, with the system's reason."""
    why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return ShadowError(f"{path.parent}: {path.name} cannot be read{why}", AGAIN)


def require_tables(folder: Path, metadata: ReportMetadata, *, spectra: bool) -> None:
    """Refuse a finished report that lacks a table. Raises ShadowError.

    spectra: also require singular values if the audit wrote them, which copies may leave out.
    """
    is_due = spectra and metadata["settings"].get("spectra") is True
    for name in TABLE_FILES:
        if (is_due or name != SPECTRA_FILE) and not (folder / name).is_file():
            raise missing(folder, name)
    if is_due:
        schema_of(folder / SPECTRA_FILE)


def _check_metadata(metadata: Any) -> None:
    """Raise TypeError or KeyError if metadata do not have the types that readers rely on."""
    settings = metadata["settings"]
    seconds = metadata.get("seconds")
    typed: list[tuple[object, Any]] = [
        (seconds, int | float | None),
        (settings["method"]["level"], str),
        (settings.get("chosen") or {}, dict),
        (metadata.get("libraries") or {}, dict),
    ]
    typed += [(metadata[key], str) for key in ("version", "family", "pair")]
    for side in (metadata["base"], metadata["tuned"]):
        typed.append((side["repo"], str))
        maybe = (side["commit"], side["fingerprint"], side.get("content"))
        typed += [(text, str | None) for text in maybe]
    is_typed = type(metadata["schema"]) is int and all(isinstance(*expected) for expected in typed)
    if not is_typed or not 0 <= (seconds or 0.0) < 1e12:
        raise TypeError


def report_metadata(folder: Path) -> ReportMetadata:
    """The provenance of the finished report in a folder.

    Raises ShadowError if the folder has no finished report, or one that is broken, lacks a table,
    or has another schema. Singular values are not required.
    """
    metadata = finished_metadata(folder) if folder.is_dir() else None
    if metadata is None:
        refuse_remains(folder)
        hint = NAME_ONE
        if any(path.is_dir() for at in ("", "*/", "*/*/") for path in folder.glob(at + PARTIAL)):
            again = "its audit is not finished: run the same command again"
            hint = f"{again}, or remove what is left with `shadow clean -o DIR`"
        elif any(folder.glob("*.safetensors")):
            hint = (
                "it is a checkpoint; `shadow audit BASE TUNED` measures two and writes their report"
            )
        raise ShadowError(f"{folder}: no finished report in it", hint)
    if not is_read(metadata):
        if metadata["schema"] in READ:
            raise ShadowError(f"{folder}: measured by 0.1: audit again")
        version = re.fullmatch(r"[\w.+-]{1,40}", str(metadata.get("version")))
        maker = version[0] if version else "?"
        schema = str(metadata["schema"])[:12]
        ours = " and ".join(map(str, READ))
        raise ShadowError(
            f"{folder}: a report of schema {schema}, made by shadow {maker};"
            f" this is shadow {__version__}, which reads schema {ours}",
            "update shadow" if metadata["schema"] > SCHEMA else "audit the pair again",
        )
    require_tables(folder, metadata, spectra=False)
    return metadata


def refuse_remains(folder: Path) -> None:
    """Raise ShadowError for a report without matrices.parquet, unless it is being audited."""
    if not (folder / PARTIAL).is_dir() and has_remains(folder):
        raise missing(folder, FINISHED)


def is_read(metadata: ReportMetadata) -> bool:
    """True if this version reads a report: those of 0.1 have schema 1 too, and are not."""
    return metadata["schema"] in READ and not str(metadata.get("version")).startswith("0.1.")
