"""The audit of a list: pair after pair into one folder, with an index that is right whenever the run is killed.

`run_pair` is a function of pair, settings and folder, so any engine may map it over `Selection.own` instead; then
`shadow.audits.merging.merge(output, [])` makes the index from the reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from shadow import __version__
from shadow.audits.index import (
    Index,
    Row,
    Standing,
    alone_in,
    done_row,
    in_order,
    kind_of,
    read_index,
    report_folder,
    without_optimizer,
)
from shadow.audits.pair import AuditResult, Progress, Settings, run_pair
from shadow.audits.plan import Access
from shadow.errors import KeptError, ShadowError
from shadow.findings.scores import ScoreFiles
from shadow.reports.columns import SCHEMA
from shadow.reports.provenance import finished_metadata
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import ComponentBase, Reference
from shadow.text import byte_size, took

BUG = "a fault of shadow itself; its traceback follows at the end"


@dataclass(frozen=True)
class PairResult:
    """What became of one pair of a list: its row, and its report or what went wrong."""

    row: Row
    result: AuditResult | None
    fault: Exception | None


def audit_list(
    selection: Selection,
    settings: Settings,
    output: Path,
    *,
    jobs: int | None = None,
    access: Access = Access(),  # noqa: B008 - frozen
    scores: Mapping[Pair, ScoreFiles] = MappingProxyType({}),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    watch: Callable[[str], Callable[[Progress], None]] = lambda name: lambda progress: None,
    audit: Callable[..., AuditResult] = run_pair,
) -> Iterator[PairResult]:
    """Audit the pairs of a selection in turn into one folder; yields what became of each.

    Whatever goes wrong with one pair, the others are tried. What is done, failed, kept and pending is on the disk
    before the first pair and after each (see `Standing`). scores are those of the pairs that have any, overwrite is as
    run_pair takes it. say gets a line now and then, watch the name of each pair when it begins, and gives who is told
    its progress. audit is called as run_pair is.
    Raises ShadowError when the index cannot be read or written.
    """
    with alone_in(output):
        standing = Standing(output, begun(output, selection, settings))
        count = len(selection.own)
        try:
            for number, pair in enumerate(selection.own, 1):
                before = standing[pair.family, pair.name]
                attempt = _Attempt(f"[{number}/{count}] {before.name}: ", say, watch(before.name))
                told = {"say": attempt.say, "show": attempt.show, "scores": scores.get(pair), "overwrite": overwrite}
                try:
                    tried = attempt.of(before, partial(audit, pair, settings, output, jobs=jobs, access=access, **told))
                except BaseException:  # interrupted: it stays as it was, but for what it took
                    standing.set(attempt.spent(before))
                    raise
                standing.set(tried.row)
                yield tried
        finally:
            standing.finish()


def begun(output: Path, selection: Selection, settings: Settings) -> Index:
    """The index before the first pair: what an earlier run of the list left here, all else of this shard pending.

    Of pairs that other shards audit there are rows where they were audited into this folder.
    """
    told = json.loads(json.dumps(asdict(settings)))
    index = Index(__version__, SCHEMA, told, selection.digest, (str(selection.shard),), ())
    earlier = read_index(output)
    if earlier is None or earlier.numbers != index.numbers:
        earlier = index
    known = {row.key: row for row in earlier.rows}
    own = {(pair.family, pair.name) for pair in selection.own}
    rows = []
    for position, pair in enumerate(selection.pairs, 1):
        new = pending_row(pair, position)
        row = known.get(new.key)
        if row is not None:
            row = replace(row, position=position)
            stands = _is_there(output, row, index) if row.state == "done" else new.key not in own
            rows.append(row if stands else new.emptied("pending", seconds=row.seconds, bytes=row.bytes))
        elif new.key in own:
            rows.append(new)
    shards = {*index.shards, *(earlier.shards if earlier.digest == index.digest else ())}
    return replace(index, rows=in_order(rows), shards=tuple(sorted(shards)))


def pending_row(pair: Pair, position: int | None) -> Row:
    folder = report_folder(pair.family, pair.name)
    return Row(position, pair.family, pair.name, pair.relation, folder, _said(pair.base), _said(pair.tuned))


def _said(reference: Reference | ComponentBase) -> str:
    if isinstance(reference, ComponentBase):
        return " ".join(f"{component}={part}" for component, part in reference.parts)
    return str(reference)


def _is_there(output: Path, row: Row, index: Index) -> bool:
    """Is there still the report that a row tells of?"""
    try:
        metadata = finished_metadata(output / report_folder(row.family, row.pair))
    except (ShadowError, OSError):  # broken: the audit of the pair will say so
        return False
    if metadata is None or metadata["schema"] != SCHEMA:
        return False
    return without_optimizer(kind_of(metadata)) == index.numbers


class _Attempt:
    """One pair being audited: who hears of it, and what it takes."""

    def __init__(self, prefix: str, say: Callable[[str], None], show: Callable[[Progress], None]) -> None:
        self._prefix, self._say, self._show = prefix, say, show
        self._started, self._moved, self._begun = time.monotonic(), 0, False

    def say(self, text: str) -> None:
        self._say(self._prefix + text)

    def show(self, state: Progress) -> None:
        self._moved, self._begun = state.moved, True
        self._show(state)

    def spent(self, before: Row) -> Row:
        """The row with what this attempt took on top of what earlier ones took."""
        seconds = (before.seconds or 0.0) + time.monotonic() - self._started
        return replace(before, seconds=round(seconds, 3), bytes=(before.bytes or 0) + self._moved)

    def of(self, before: Row, audit: Callable[[], AuditResult]) -> PairResult:
        try:
            result = audit()
        except KeptError as error:  # nothing went into it, and its row tells nothing of the report that is there
            return PairResult(before.emptied("kept", error=error.message, hint=error.hint), None, error)
        except ShadowError as error:
            return PairResult(self.spent(before).emptied("failed", error=error.message, hint=error.hint), None, error)
        except Exception as error:  # a bug: the others are tried nevertheless, and it keeps its traceback
            told = f"{type(error).__name__}: {error}"
            return PairResult(self.spent(before).emptied("failed", error=told, hint=BUG), None, error)
        taken = self.spent(before) if self._begun else before  # of a report that was there no progress is told
        if taken.seconds is None:  # the report was there, and no list knows what it took
            taken = replace(taken, seconds=result.provenance.get("seconds"))
        told_of = {"position": before.position, "seconds": taken.seconds, "bytes": taken.bytes}
        row = done_row(result.summary, result.provenance, **told_of)
        if self._begun:
            moved = f", {byte_size(self._moved)} fetched" if self._moved else ""
            self.say(f"{row.label} in {took(time.monotonic() - self._started)}{moved}")
        return PairResult(row, result, None)
