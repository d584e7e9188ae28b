"""The audit of a list: pair after pair into one folder, with an index that survives a kill.

An engine may carry out the pairs elsewhere; this process alone writes the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from shadow import __version__
from shadow.audits.engine import Engine, Watch
from shadow.audits.list_index import (
    INDEX,
    LOCK,
    TABLE,
    Index,
    Key,
    Kind,
    Row,
    done_row,
    kind_of,
    read_index,
    report_folder,
    write_index,
)
from shadow.audits.pair import run_pair
from shadow.audits.pairs import PairOutcome, audit_pairs
from shadow.audits.result import AuditResult
from shadow.errors import ShadowError
from shadow.files import alone_at
from shadow.reports.atomic_replacement import FINISHED
from shadow.reports.columns import SCHEMA
from shadow.reports.provenance import finished_metadata, is_read
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.storage import Store
from shadow.targets.lists import Selection

SHARE = 100  # times what a write of the index takes pass before the next one: it takes 1 %


def audit_list(
    selection: Selection,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    watch: Watch | None = None,
    audit: Callable[..., AuditResult] = run_pair,
    store: Store | None = None,
    engine: Engine | None = None,
) -> Iterator[PairOutcome]:
    """Audit the pairs of a selection as `audit_pairs` does, and keep the index of the folder.

    It is on the disk before the first pair and at the end, also of a run that is stopped, and now
    and then in between; of one that is killed the reports tell the rest. store: where audit uploads
    the reports of output; the index goes there at the end. Raises ShadowError when the index cannot
    be read or written.
    """
    with alone_at(output, LOCK):
        is_there = None
        if store is not None:
            files = store.files()
            store.fetch(files.keys() & {TABLE, INDEX}, output)

            def is_there(row: Row, _: Kind) -> bool:
                return f"{report_folder(*row.key)}/{FINISHED}" in files

        index = begun(output, selection, settings, is_there)
        rows = {row.key: row for row in index.rows}
        due = _write(output, index, rows)
        try:
            for outcome in audit_pairs(
                selection.own,
                settings,
                output,
                runtime,
                watch=watch,
                numbered=True,
                audit=audit,
                engine=engine,
            ):
                key = outcome.pair.family, outcome.pair.name
                rows[key] = _row_after(rows[key], outcome)
                if time.monotonic() >= due:
                    due = _write(output, index, rows)
                if outcome.state != "stopped":  # which raises at the next step
                    yield outcome
        except BaseException:
            with suppress(ShadowError):
                _write(output, index, rows, store)
            raise
        _write(output, index, rows, store)


def _write(
    output: Path, index: Index, rows: Mapping[Key, Row], store: Store | None = None
) -> float:
    """Write the index with these rows, and upload it if there is a store; return when the next
    write is due.
    """
    started = time.monotonic()
    write_index(output, index.with_rows(rows))
    if store is not None:
        store.put(output / TABLE)
        store.put(output / INDEX)
    now = time.monotonic()
    return now + SHARE * (now - started)


def _row_after(before: Row, outcome: PairOutcome) -> Row:
    """The row of a pair after it was tried; what it took is added to what earlier runs took."""
    seconds = round((before.seconds or 0.0) + outcome.seconds, 3)
    spent = replace(before, seconds=seconds, bytes=(before.bytes or 0) + outcome.moved)
    if outcome.result is not None:
        taken, result = spent if outcome.began else before, outcome.result
        # of a report that no list has made, the time that the report tells
        told = result.provenance.get("seconds")
        return done_row(
            result.summary,
            result.provenance,
            position=taken.position,
            seconds=told if taken.seconds is None else taken.seconds,
            moved=taken.bytes,
        )
    if outcome.state == "stopped":  # it stays as it was, but for what it took
        return spent
    error = outcome.error
    assert error is not None
    # Nothing went into it, and its row tells nothing of the report that is there.
    if outcome.state == "kept":
        return before.emptied("kept", error=error.message, hint=error.hint)
    return spent.emptied("failed", error=error.message, hint=error.hint)


def begun(
    output: Path,
    selection: Selection,
    settings: Settings,
    is_there: Callable[[Row, Kind], bool] | None = None,
) -> Index:
    """The index before the first pair: what an earlier run of the list left here, all else pending.

    Every shard has a row for each pair of the whole list. is_there: whether the report of a row is
    still there; None: look into the folder.
    """
    is_there = is_there or partial(_is_there, output)
    kind, earlier = Kind(SCHEMA, settings.as_json()), read_index(output)
    known = {row.key: row for row in earlier.rows} if earlier and earlier.kind == kind else {}
    own = {(pair.family, pair.name) for pair in selection.own}
    rows = []
    for position, pair in enumerate(selection.pairs, 1):
        new = Row(
            position=position,
            family=pair.family,
            pair=pair.name,
            relation=pair.relation,
            folder=report_folder(pair.family, pair.name),
            base=str(pair.base),
            tuned=str(pair.tuned),
        )
        row = known.get(new.key, new)
        stands = is_there(row, kind) if row.state == "done" else new.key not in own
        if stands:
            rows.append(replace(row, position=position))
        else:
            rows.append(replace(new, seconds=row.seconds, bytes=row.bytes))
    return Index(__version__, kind, selection.digest, tuple(rows))


def _is_there(output: Path, row: Row, kind: Kind) -> bool:
    """Whether the report of a row is still there."""
    try:
        metadata = finished_metadata(output / report_folder(row.family, row.pair))
    except (ShadowError, OSError):  # broken: the audit of the pair will say so
        return False
    if metadata is None or not is_read(metadata):
        return False
    return kind_of(metadata) == kind
