"""The audit of a list: pair after pair into one folder, with an index that survives a kill.

An engine may carry out the pairs elsewhere; this process alone writes the index.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from shadow import __version__
from shadow.audits.engine import Engine, Watch
from shadow.audits.list_index import (
    INDEX,
    ROWS,
    TABLE,
    Index,
    Kind,
    Row,
    Standing,
    alone_in,
    done_row,
    kind_of,
    read_index,
    report_folder,
)
from shadow.audits.pair import run_pair
from shadow.audits.pairs import PairOutcome, audit_pairs
from shadow.audits.result import AuditResult
from shadow.errors import ShadowError
from shadow.files import PARTIAL
from shadow.reports.atomic_replacement import FINISHED
from shadow.reports.columns import SCHEMA
from shadow.reports.provenance import finished_metadata, is_read
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.storage import Store
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import ComponentBase, Reference


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

    What is done, failed, kept and pending is on the disk before the first pair and after each (see
    `Standing`). store: where audit uploads the reports of output; the index goes there at the end.
    Raises ShadowError when the index cannot be read or written.
    """
    with alone_in(output):
        is_there = None
        if store is not None:
            is_there = partial(_is_at, store.files())
            # else a run that was killed here knows more
            if not (output / PARTIAL / ROWS).is_file():
                store.fetch(store.files().keys() & {TABLE, INDEX}, output)
        standing = Standing(output, begun(output, selection, settings, is_there))
        outcomes = audit_pairs(
            selection.own,
            settings,
            output,
            runtime,
            watch=watch,
            numbered=True,
            audit=audit,
            engine=engine,
        )
        try:
            for outcome in outcomes:
                before = standing[outcome.pair.family, outcome.pair.name]
                standing.set(_row_after(before, outcome))
                if outcome.state != "stopped":  # which raises at the next step
                    yield outcome
        except BaseException:
            standing.finish()
            if store is not None:
                with suppress(ShadowError):
                    _upload_index(output, store)
            raise
        standing.finish()
        if store is not None:
            _upload_index(output, store)


def _upload_index(output: Path, store: Store) -> None:
    for name in (TABLE, INDEX):
        store.put(output / name)


def _is_at(there: Container[str], row: Row, _: Kind) -> bool:
    """Whether the report of a row is among the files of a store."""
    return f"{report_folder(row.family, row.pair)}/{FINISHED}" in there


def _row_after(before: Row, outcome: PairOutcome) -> Row:
    """The row of a pair after it was tried; what it took is added to what earlier runs took."""
    seconds = round((before.seconds or 0.0) + outcome.seconds, 3)
    spent = replace(before, seconds=seconds, bytes=(before.bytes or 0) + outcome.moved)
    if outcome.result is not None:
        return _done_row_after(spent if outcome.began else before, outcome.result)
    if outcome.state == "stopped":  # it stays as it was, but for what it took
        return spent
    error = outcome.error
    assert error is not None
    # Nothing went into it, and its row tells nothing of the report that is there.
    if outcome.state == "kept":
        return before.emptied("kept", error=error.message, hint=error.hint)
    return spent.emptied("failed", error=error.message, hint=error.hint)


def _done_row_after(taken: Row, result: AuditResult) -> Row:
    """The row of a pair that is done.

    Of a report that no list has made, with the time that the report tells.
    """
    seconds = result.provenance.get("seconds") if taken.seconds is None else taken.seconds
    return done_row(
        result.summary,
        result.provenance,
        position=taken.position,
        seconds=seconds,
        moved=taken.bytes,
    )


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
    index = Index(
        version=__version__,
        kind=Kind(SCHEMA, settings.as_json()),
        digest=selection.digest,
        rows=(),
    )
    earlier = read_index(output)
    if earlier is None or earlier.kind != index.kind:
        earlier = index
    known = {row.key: row for row in earlier.rows}
    own = {(pair.family, pair.name) for pair in selection.own}
    rows = []
    for position, pair in enumerate(selection.pairs, 1):
        new = _pending_row(pair, position)
        row = known.get(new.key, new)
        stands = is_there(row, index.kind) if row.state == "done" else new.key not in own
        if stands:
            rows.append(replace(row, position=position))
        else:
            rows.append(replace(new, seconds=row.seconds, bytes=row.bytes))
    return replace(index, rows=tuple(rows))


def _pending_row(pair: Pair, position: int) -> Row:
    return Row(
        position=position,
        family=pair.family,
        pair=pair.name,
        relation=pair.relation,
        folder=report_folder(pair.family, pair.name),
        base=_said(pair.base),
        tuned=_said(pair.tuned),
    )


def _said(reference: Reference | ComponentBase) -> str:
    if isinstance(reference, ComponentBase):
        return " ".join(f"{component}={part}" for component, part in reference.parts)
    return str(reference)


def _is_there(output: Path, row: Row, kind: Kind) -> bool:
    """Whether the report of a row is still there."""
    try:
        metadata = finished_metadata(output / report_folder(row.family, row.pair))
    except (ShadowError, OSError):  # broken: the audit of the pair will say so
        return False
    if metadata is None or not is_read(metadata):
        return False
    return kind_of(metadata) == kind
