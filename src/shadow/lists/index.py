"""The index of a list: index.json, with the state of each pair.

The reports are authoritative, and lie where `shadow audit` puts them; the index lists which exist,
which failed and why, and which are pending. It is rewritten from time to time; what a killed run
did not write is read from the reports: see `refreshed`. Reading it imports nothing that computes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from shadow.checks.summary import Summary
from shadow.errors import ShadowError
from shadow.files import alone_at, read_start, report_folder, write_beside, writing
from shadow.reports.columns import HEADLINE
from shadow.reports.folders import FINISHED, finished_metadata, is_read
from shadow.reports.provenance import READ, SCHEMA, ReportMetadata
from shadow.version import __version__

if TYPE_CHECKING:
    from shadow.engines.finished import PairOutcome
    from shadow.run.settings import Settings
    from shadow.storage import Store
    from shadow.targets.lists import Selection

INDEX = "index.json"
# what index.json says that it is, so that another file of that name is never overwritten
MARK = "batch"
LOCK = "list.lock"  # in .partial while a process writes the index
MAX_INDEX = 64_000_000  # bytes; a row has less than one thousand

State = Literal["done", "failed", "kept", "pending"]
STATES = get_args(State)
Key = tuple[str, str]  # family and pair
Kind = tuple[int, Mapping[str, object]]  # the schema of the files, and settings as JSON has them
STRICT = {"strict": True, "allow_inf_nan": False}  # pydantic's settings
OF_THE_PAIR = ("position", "family", "pair", "relation", "folder", "base", "tuned")


@dataclass(frozen=True)
class ListRow:
    """The state of one pair of a list."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = STRICT

    position: int | None
    """From 1; None where it is of no list, or of several."""
    family: str
    pair: str
    relation: str
    folder: str
    """Of its report, from that of the index."""
    base: str
    """As it was named."""
    tuned: str
    base_commit: str | None = None
    tuned_commit: str | None = None
    state: State = "pending"
    """kept: a finished report differs from the request and was not replaced."""
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
    """Of all runs of the list that measured it, as bytes are."""
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

    def as_json(self) -> dict[str, Any]:
        """The row for JSON; half a surrogate pair, which no reader accepts, is
        made visible.
        """
        return {
            name: value.encode(errors="backslashreplace").decode()
            if isinstance(value, str)
            else value
            for name, value in vars(self).items()
        }

    def emptied(
        self, state: State, *, error: str | None = None, hint: str | None = None
    ) -> ListRow:
        """The pair in another state, without a report. Its cost stays."""
        same = {name: getattr(self, name) for name in (*OF_THE_PAIR, "seconds", "bytes")}
        return ListRow(**same, state=state, error=error, hint=hint)


@dataclass(frozen=True)
class Index:
    """The rows of an output folder, in the order of the list, and their shared settings."""

    version: str
    """The version of shadow that wrote it."""
    kind: Kind
    """What all reports agree in."""
    digest: str | None
    """Which list it was (Selection.digest); None: none, or several."""
    rows: tuple[ListRow, ...]

    def as_json(self) -> dict[str, Any]:
        schema, settings = self.kind
        return {
            "shadow": MARK,
            "version": self.version,
            "schema": schema,
            "settings": settings,
            "list": self.digest,
            "counts": {state: sum(row.state == state for row in self.rows) for state in STATES},
            "pairs": [row.as_json() for row in self.rows],
        }


def done_row(summary: Summary, metadata: ReportMetadata, before: ListRow | None) -> ListRow:
    """The row of a finished report. Its position and cost are those of the row before, of
    which a report knows the time alone.
    """
    figures: dict[str, Any] = {
        name: getattr(summary.figures, name) for name in (*HEADLINE, "matrices")
    }
    seconds = before.seconds if before else None
    return ListRow(
        position=before.position if before else None,
        family=summary.family,
        pair=summary.pair,
        relation=str(metadata["settings"].get("relation", "tuned")),
        folder=report_folder(summary.family, summary.pair),
        base=summary.base["repo"],
        tuned=summary.tuned["repo"],
        base_commit=summary.base["commit"],
        tuned_commit=summary.tuned["commit"],
        state="done",
        seconds=metadata.get("seconds") if seconds is None else seconds,
        bytes=before.bytes if before else None,
        version=metadata["version"],
        **figures,
    )


def refreshed(index: Index, reports: Iterable[tuple[Summary, ReportMetadata]]) -> Index:
    """The index with the rows of the reports in its folder, as after copying several
    together.

    A report of other settings is `kept`; a pair without a report is not done.
    """
    rows = {row.key: row.emptied("pending") if row.state == "done" else row for row in index.rows}
    old = {row.key: row for row in index.rows}
    for summary, metadata in reports:
        row = old.get((summary.family, summary.pair))
        if row is not None and row.state == "kept":  # until the list is run again
            continue
        if row is not None and row.state != "done":  # another run made the report
            row = replace(row, seconds=None)
        new = done_row(summary, metadata, row)
        if kind_of(metadata["schema"], metadata["settings"]) != index.kind:
            error = "the finished report there has other settings than the list's"
            new = new.emptied("kept", error=error, hint="run the list again, with --overwrite")
        rows[new.key] = new
    return replace(index, rows=tuple(rows.values()))


def kind_of(schema: int, settings: Mapping[str, object]) -> Kind:
    """The settings that reports in one table must agree on: not the version, nor the relation of a
    pair, nor the optimiser that reports of 0.2 have.
    """
    left_out = ("relation", "optimizer")
    common = {key: value for key, value in settings.items() if key not in left_out}
    # the numbers of all schemas that are read mean the same
    return SCHEMA if schema in READ else schema, common


def write_index(output: Path, index: Index) -> None:
    """Write index.json atomically."""
    text = json.dumps(index.as_json(), indent=2, allow_nan=False)
    with writing(output):
        write_beside(output / INDEX, f"{text}\n".encode())


@dataclass(frozen=True)
class _File:
    """Contents of index.json."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = STRICT

    shadow: Literal["batch"]
    version: str
    schema: int
    settings: dict[str, Any]
    list: str | None
    pairs: tuple[ListRow, ...]


def read_index(folder: Path) -> Index | None:
    """Read the index of a folder; None without one. Raises ShadowError if it is not such
    an index.
    """
    from pydantic import TypeAdapter

    path = folder / INDEX
    try:
        raw = read_start(path, MAX_INDEX)
        if raw is None:
            return None
        content = TypeAdapter(_File).validate_json(raw)
        keys = {row.key for row in content.pairs}
        has_twins = len(keys) < len(content.pairs)
        if content.schema not in READ or has_twins:
            raise ValueError
    except OSError as error:
        raise ShadowError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        hint = "if no other program wrote it, remove it, and run the list again"
        raise ShadowError(f"{path}: no index of shadow that this version can read", hint) from error
    kind = kind_of(content.schema, content.settings)
    return Index(content.version, kind, content.list, content.pairs)


SHARE = 100  # times what a write of the index takes pass before the next one: it takes 1 %


def with_index(
    selection: Selection,
    settings: Settings,
    output: Path,
    outcomes: Generator[PairOutcome, None, None],
    store: Store | None = None,
) -> Iterator[PairOutcome]:
    """Update the index of a folder while the pairs of a selection are audited; yields their
    outcomes.

    It is written at the start, from time to time, and at the end, even of a run that is stopped.
    store: where reports are uploaded, and the index at the end. Raises ShadowError.
    """
    with alone_at(output, LOCK), closing(outcomes):
        uploaded = None
        if store is not None:
            uploaded = store.files().keys()
            store.fetch(uploaded & {INDEX}, output)
        index = begun(output, selection, settings, uploaded)
        rows = {row.key: row for row in index.rows}

        def write() -> float:
            """Write the index, and return when the next write is due."""
            started = time.monotonic()
            write_index(output, replace(index, rows=tuple(rows.values())))
            return time.monotonic() + SHARE * (time.monotonic() - started)

        def end() -> None:
            write()
            if store is not None:
                store.put(output / INDEX)

        due = write()
        try:
            for outcome in outcomes:
                key = outcome.pair.family, outcome.pair.name
                rows[key] = _row_after(rows[key], outcome)
                if time.monotonic() >= due:
                    due = write()
                if outcome.state != "stopped":  # which raises at the next step
                    yield outcome
        except BaseException:
            with suppress(ShadowError):
                end()
            raise
        end()


def _row_after(before: ListRow, outcome: PairOutcome) -> ListRow:
    """The row of a pair after an attempt, adding its cost to that of earlier runs."""
    seconds = (before.seconds or 0.0) + outcome.seconds
    moved = (before.bytes or 0) + outcome.moved
    spent = replace(before, seconds=round(seconds, 3), bytes=moved)
    if outcome.result is not None:
        result = outcome.result
        return done_row(result.summary, result.provenance, spent if outcome.began else before)
    if outcome.state == "stopped":  # it stays as it was, but for what it took
        return spent
    error = outcome.error
    assert error is not None
    # nothing went into a report that is kept, and its row tells nothing of it
    row = before if outcome.state == "kept" else spent
    return row.emptied(outcome.state, error=error.message, hint=error.hint)


def begun(
    output: Path,
    selection: Selection,
    settings: Settings,
    uploaded: Collection[str] | None = None,
) -> Index:
    """The index before the first pair: what an earlier run left, and the others pending.

    uploaded: the files of a store; None: reports lie in the folder.
    """
    kind = (SCHEMA, settings.as_json())
    earlier = read_index(output)
    known: dict[Key, ListRow] = {}
    if earlier is not None and earlier.kind == kind:
        known = {row.key: row for row in earlier.rows}
    own = {(pair.family, pair.name) for pair in selection.own}
    rows = []
    for position, pair in enumerate(selection.pairs, 1):
        new = ListRow(
            position=position,
            family=pair.family,
            pair=pair.name,
            relation=pair.relation,
            folder=report_folder(pair.family, pair.name),
            base=str(pair.base),
            tuned=str(pair.tuned),
        )
        row = known.get(new.key, new)
        if row.state != "done":
            stands = new.key not in own
        elif uploaded is not None:
            stands = f"{new.folder}/{FINISHED}" in uploaded
        else:
            stands = False
            with suppress(ShadowError, OSError):  # broken: the audit of the pair will say so
                metadata = finished_metadata(output / new.folder)
                if metadata is not None and is_read(metadata):
                    stands = kind_of(metadata["schema"], metadata["settings"]) == kind
        left = row if stands else replace(new, seconds=row.seconds, bytes=row.bytes)
        rows.append(replace(left, position=position))
    return Index(__version__, kind, selection.digest, tuple(rows))
