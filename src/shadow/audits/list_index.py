"""The index of a list, how each pair stands: index.json and batch.parquet, from the same rows.

The reports are the truth, and lie where `shadow audit` puts them; these two files say which there
are, which failed and why, and which are still to come. Imports nothing that computes.

Both files are written whole, which takes half a second for 10,000 pairs. While a list is audited
they are written now and then, every few seconds for hundreds of pairs; what has changed since lies
in `.partial/rows.jsonl`, a row a line. `read_index` adds it, so that nothing is lost when the run
is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import pyarrow as pa

from shadow.checks.summary import Summary
from shadow.errors import ShadowError
from shadow.files import (
    PARTIAL,
    lock,
    nearest_folder,
    read_start,
    remove_empty,
    safe_name,
    write_whole,
    writing,
)
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import BATCH, HEADLINE, READ, SCHEMA
from shadow.reports.metadata import ReportMetadata
from shadow.reports.parquet import arrow_schema, parquet_bytes
from shadow.reports.provenance import METADATA_KEY

INDEX, TABLE = "index.json", "batch.parquet"
# what index.json says that it is, so that another file of that name is never overwritten
MARK = "batch"
ROWS = "rows.jsonl"  # in .partial
LOCK = "list.lock"  # in .partial while a process writes the index
MAX_INDEX = 64_000_000  # bytes; a row has less than one thousand
EVERY = 5.0  # seconds between two writes of both files, at least
SHARE = 500  # and at least so many times what one takes: 0.2 % of the time, whatever a pair takes

State = Literal["done", "failed", "kept", "pending"]
STATES = get_args(State)
Key = tuple[str, str]  # family and pair
Content = TypeVar("Content")
ADAPTERS: dict[type, Any] = {}  # pydantic's, made where a file is read
STRICT = {"strict": True, "allow_inf_nan": False}  # its settings
OF_THE_PAIR = ("position", "family", "pair", "relation", "folder", "base", "tuned")


@dataclass(frozen=True)
class Row:
    """How one pair of a list stands; the columns of reports.columns.BATCH say what a field is."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = STRICT

    position: int | None
    family: str
    pair: str
    relation: str
    folder: str
    base: str
    tuned: str
    base_commit: str | None = None
    tuned_commit: str | None = None
    state: State = "pending"
    matrices: int | None = None
    relative_norm_overall: float | None = None
    concentration: float | None = None
    participation_ratio: float | None = None
    null_participation_ratio: float | None = None
    spikes: float | None = None
    floor_ratio: float | None = None
    effective_layers: float | None = None
    attention_to_mlp: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    error: str | None = None
    hint: str | None = None
    version: str | None = None

    @property
    def key(self) -> Key:
        return self.family, self.pair

    @property
    def name(self) -> str:
        return f"{self.family}:{self.pair}"

    @property
    def fits(self) -> bool:
        """Whether its integers are such as Parquet can hold."""
        return (
            max(abs(count or 0) for count in (self.position, self.matrices, self.bytes)) < 1 << 63
        )

    def as_json(self) -> dict[str, Any]:
        """Half a surrogate pair, which JSON may hold and Parquet not, is made visible."""
        return {
            name: value.encode(errors="backslashreplace").decode()
            if isinstance(value, str)
            else value
            for name, value in vars(self).items()
        }

    def emptied(self, state: State, *, error: str | None = None, hint: str | None = None) -> Row:
        """The same pair in another state, with nothing of a report. What it took stays."""
        same = {name: getattr(self, name) for name in (*OF_THE_PAIR, "seconds", "bytes")}
        return Row(**same, state=state, error=error, hint=hint)


@dataclass(frozen=True)
class Kind:
    """What reports must agree in to stand in one table."""

    schema: int
    """The number of the schema of their files."""
    settings: Mapping[str, object]
    """As JSON has them."""


@dataclass(frozen=True)
class Index:
    """The rows of an output folder, in the order of the list, and what they have in common."""

    version: str
    """The version of shadow that wrote it."""
    kind: Kind
    """What all reports agree in."""
    digest: str | None
    """Which list it was (Selection.digest); None: none, or several."""
    rows: tuple[Row, ...]

    def with_rows(self, rows: Mapping[Key, Row]) -> Index:
        """The same index with these rows instead of those of their pairs."""
        return replace(self, rows=tuple(rows.get(old.key, old) for old in self.rows))

    def as_json(self) -> dict[str, Any]:
        return {
            "shadow": MARK,
            "version": self.version,
            **vars(self.kind),
            "list": self.digest,
            "counts": {state: sum(row.state == state for row in self.rows) for state in STATES},
            "pairs": [row.as_json() for row in self.rows],
        }


def report_folder(family: str, pair: str) -> str:
    """Where a pair's report lies: two levels below the output folder, whatever the names."""
    return f"{safe_name(family)}/{safe_name(pair)}"


def done_row(
    summary: Summary,
    metadata: ReportMetadata,
    *,
    position: int | None,
    seconds: float | None,
    moved: int | None,
) -> Row:
    """The row of a finished report.

    Its place in the list, and what it took, are what a report does not know.
    """

    figures: dict[str, Any] = {
        name: null_if_undefined(summary.figures.get(name)) for name in HEADLINE
    }
    matrices = summary.figures.matrices
    return Row(
        position=position,
        family=summary.family,
        pair=summary.pair,
        relation=str(metadata["settings"].get("relation", "tuned")),
        folder=report_folder(summary.family, summary.pair),
        base=summary.base["repo"],
        tuned=summary.tuned["repo"],
        base_commit=summary.base.get("commit"),
        tuned_commit=summary.tuned.get("commit"),
        state="done",
        matrices=None if matrices is None else int(matrices),
        seconds=seconds,
        bytes=moved,
        version=metadata["version"],
        **figures,
    )


def refreshed(index: Index, reports: Iterable[tuple[Summary, ReportMetadata]]) -> Index:
    """Return the index with the rows of the reports that lie in its folder.

    Copying the folders of several shards together leaves the index of one of them. A report of
    other settings is `kept`; a pair without a report is not done.
    """
    old = {row.key: row for row in index.rows}
    there: dict[Key, Row] = {}
    for summary, metadata in reports:
        key = summary.family, summary.pair
        there[key] = _refreshed_row(old.get(key), index.kind, summary, metadata)
    rows = [
        there.pop(row.key, row.emptied("pending") if row.state == "done" else row)
        for row in index.rows
    ]
    return replace(index, rows=(*rows, *there.values()))


def _refreshed_row(row: Row | None, kind: Kind, summary: Summary, metadata: ReportMetadata) -> Row:
    """Make the row of a report again. row: what the index says of the pair."""
    if row is not None and row.state == "kept":  # until the list is run again
        return row
    seconds = row.seconds if row is not None and row.state == "done" else metadata.get("seconds")
    position, moved = (None, None) if row is None else (row.position, row.bytes)
    new = done_row(summary, metadata, position=position, seconds=seconds, moved=moved)
    if kind_of(metadata) == kind:
        return new
    error = "the finished report there has other settings than the list's"
    return new.emptied("kept", error=error, hint="run the list again, with --overwrite")


def kind_of(metadata: ReportMetadata) -> Kind:
    """What reports must agree in to stand in one table, from a report's metadata.

    The version that measured them is not among it: a report stays when shadow is upgraded.
    """
    return Kind(_now(metadata["schema"]), _of_kind(metadata["settings"]))


def _now(schema: int) -> int:
    """Return this version's schema for one that it reads: the numbers of both mean the same."""
    return SCHEMA if schema in READ else schema


def _of_kind(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings but for the relation of a pair, and the optimiser that reports of 0.2 name."""
    return {
        name: value for name, value in settings.items() if name not in ("relation", "optimizer")
    }


def write_index(output: Path, index: Index) -> None:
    """Write batch.parquet, then index.json, each whole or not at all.

    A killed run leaves the index of before.
    """
    _write_whole_index(output, index)
    with contextlib.suppress(OSError):
        (output / PARTIAL / ROWS).unlink(missing_ok=True)
        (output / PARTIAL).rmdir()


def _write_whole_index(output: Path, index: Index) -> bytes:
    """The content of index.json."""
    as_json = index.as_json()
    content = json.dumps(as_json, indent=2, allow_nan=False).encode() + b"\n"
    table = pa.Table.from_pylist(as_json.pop("pairs"), schema=arrow_schema(BATCH))
    about = {METADATA_KEY: json.dumps(as_json, sort_keys=True).encode()}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / TABLE, parquet_bytes(table, about))
        write_whole(output / INDEX, content)
    return content


class Standing:
    """The index of a list that is being audited, on the disk whatever happens.

    What a row costs does not depend on how many there are, but for the whole files now and then.
    """

    def __init__(self, output: Path, index: Index) -> None:
        self._output, self._index = output, index
        self._rows = {row.key: row for row in index.rows}
        self._write()

    def __getitem__(self, key: Key) -> Row:
        return self._rows[key]

    def set(self, row: Row) -> None:
        """Replace the row of a pair; on return it is on the disk."""
        self._rows[row.key] = row
        if time.monotonic() >= self._due:
            self._write()
            return
        line = json.dumps(row.as_json(), allow_nan=False)
        with writing(self._output), (self._output / PARTIAL / ROWS).open("ab") as file:
            file.write(line.encode() + b"\n")

    def finish(self) -> None:
        """Write both files; nothing else is left."""
        write_index(self._output, self._index.with_rows(self._rows))

    def _write(self) -> None:
        """Write both files, and begin a journal that belongs to them and to no others."""
        started = time.monotonic()
        content = _write_whole_index(self._output, self._index.with_rows(self._rows))
        with writing(self._output):
            (self._output / PARTIAL).mkdir(exist_ok=True)
            head = json.dumps({INDEX: hashlib.sha256(content).hexdigest()})
            (self._output / PARTIAL / ROWS).write_bytes(head.encode() + b"\n")
        now = time.monotonic()
        self._due = now + max(EVERY, SHARE * (now - started))


@dataclass(frozen=True)
class _File:
    """What index.json holds."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = STRICT

    shadow: Literal["batch"]
    version: str
    schema: int
    settings: dict[str, Any]
    list: str | None
    pairs: tuple[Row, ...]


def read_index(folder: Path) -> Index | None:
    """The index of an output folder, with what a killed run has kept beside it; None without one.

    Raises ShadowError for an index.json that is something else, or that says what no index may say.
    """
    path = folder / INDEX
    try:
        raw = read_start(path, MAX_INDEX + 1)
        if raw is None:
            return None
        if len(raw) > MAX_INDEX:
            raise ValueError
        index = _index(_valid(_File, raw))
    except OSError as error:
        raise ShadowError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        hint = "if no other program wrote it, remove it, and run the list again"
        raise ShadowError(f"{path}: no index of shadow that this version can read", hint) from error
    return index.with_rows(_kept_rows(folder / PARTIAL / ROWS, hashlib.sha256(raw).hexdigest()))


def _kept_rows(path: Path, digest: str) -> dict[Key, Row]:
    """The rows that changed since the index.json of this sha256 was written.

    None of a journal of another one.
    """
    try:
        head, *lines = (read_start(path, MAX_INDEX) or b"").splitlines(keepends=True)
    except (OSError, ValueError):
        return {}
    rows: dict[Key, Row] = {}
    with contextlib.suppress(ValueError, RecursionError):
        if json.loads(head) != {INDEX: digest}:
            return {}
        for line in lines:
            if not line.endswith(b"\n"):
                break  # cut when the run was killed
            row = _valid(Row, line)
            if row.fits:
                rows[row.key] = row
    return rows


def _valid(kind: type[Content], raw: bytes) -> Content:
    """JSON as a value of a type. Raises ValueError for anything else."""
    from pydantic import TypeAdapter

    if kind not in ADAPTERS:
        ADAPTERS[kind] = TypeAdapter(kind)
    value: Content = ADAPTERS[kind].validate_json(raw)
    return value


def _index(content: _File) -> Index:
    if content.schema not in READ or not all(row.fits for row in content.pairs):
        raise ValueError
    if len({row.key for row in content.pairs}) < len(content.pairs):
        raise ValueError
    kind = Kind(_now(content.schema), _of_kind(content.settings))
    return Index(content.version, kind, content.list, rows=content.pairs)


@contextlib.contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Only one process at a time writes the index of a folder; a second one is refused.

    The locks are on the folder itself, for this machine, and on a file in it that is removed at the
    end, for others: a network file system keeps locks on files alone. Where the system has none,
    nothing happens. A folder that was made for it and stays empty is removed.
    """
    there = nearest_folder(output)
    file = output / PARTIAL / LOCK
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as at_end:
        at_end.callback(remove_empty, output.absolute(), there)
        with contextlib.suppress(OSError):  # not every system opens a folder
            _hold(output, os.O_RDONLY, at_end)
        with writing(output):
            file.parent.mkdir(exist_ok=True)
            at_end.callback(_quietly, file.parent.rmdir)  # not empty, or gone
            _hold(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), at_end)
        at_end.callback(_quietly, file.unlink)
        yield


def _hold(path: Path, flags: int, at_end: contextlib.ExitStack) -> None:
    """Locks what is at a path until the end. Raises ShadowError where another process has it."""
    handle = os.open(path, flags, 0o666)
    at_end.callback(os.close, handle)
    is_ours = False
    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
        is_ours = lock(handle) != "another's" and os.path.samestat(path.stat(), os.fstat(handle))
    if not is_ours:
        folder = path if path.is_dir() else path.parents[1]
        hint = "wait for it; shards of one list each take a folder, which are copied together later"
        raise ShadowError(f"another list is being audited into {folder}", hint)


def _quietly(remove: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        remove()
