"""Output folders of several jobs -> one: reports are checked, then copied, then indexed anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shadow import __version__
from shadow.audits.journal import JOURNAL
from shadow.audits.list_index import (
    Index,
    Key,
    Kind,
    Row,
    alone_in,
    different,
    done_row,
    in_order,
    kind_of,
    read_index,
    report_folder,
    write_index,
)
from shadow.claims.summary import Summary
from shadow.comparing.matching import SPECTRA
from shadow.errors import ShadowError
from shadow.files import PARTIAL, nearest_folder, remove_empty, write_whole, writing
from shadow.reports.atomic_replacement import FINISHED, KEPT
from shadow.reports.columns import IDENTITY
from shadow.reports.metadata import ReportMetadata
from shadow.reports.provenance import AGAIN, check_schema, finished_metadata, refuse_remains
from shadow.reports.tables import STORED
from shadow.telling.reading import read_summary

# Two kinds of CPU round differently. Reports of one pair are the same if these columns agree within
# a relative tolerance; made with SSE, AVX2 and AVX-512 they did within 3e-7. What rests on the
# smallest singular values differs far more (`condition_number` by 20 %) and decides nothing.
CLOSE = {**SPECTRA, "null_participation_ratio": 5e-6, "relative_norm": 1e-6}


# The listing of the Hub may be known to one machine and not to another; no number rests on it.
LISTED = "files.parquet"


@dataclass(frozen=True)
class Merged:
    """What became of a merge."""

    index: Index
    copied: int
    there: int
    rounded: tuple[Key, ...] = ()
    """Pairs of which two reports differ as two kinds of CPU do: the first was taken."""
    unscored: tuple[Key, ...] = ()
    """Pairs of which a report that was not taken has scores that the other one lacks."""


@dataclass(frozen=True)
class _Finished:
    """A finished report in a source."""

    folder: Path
    metadata: ReportMetadata


@dataclass(frozen=True)
class _Source:
    """One output folder: its index, if it has one, and its finished reports."""

    folder: Path
    index: Index | None
    reports: Mapping[Key, _Finished]

    @property
    def rows(self) -> Sequence[Row]:
        return () if self.index is None else self.index.rows


def summary_of(folder: Path) -> Summary:
    """The summary of a report, made again from its tables where it may not be believed."""
    return read_summary(folder)[0]


def copied(report: Path, target: Path) -> None:
    """Copy a report's files, each whole or not at all; with the last one the report is there. A
    copy that fails leaves none of them.
    """
    names, there = _files(report), nearest_folder(target)
    try:
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                write_whole(target / name, (report / name).read_bytes())
    except BaseException:
        with contextlib.suppress(OSError):
            for name in () if (target / FINISHED).exists() else names:
                (target / name).unlink(missing_ok=True)
        raise
    finally:
        remove_empty((target / PARTIAL).absolute(), there)


def merge(
    output: Path,
    folders: Sequence[Path],
    *,
    summary_of: Callable[[Path], Summary] = summary_of,
    copy: Callable[[Path, Path], None] = copied,
) -> Merged:
    """Copy the reports of output folders into one and make its index; without folders only that.

    Nothing is written before all is checked: every report must be whole, of one schema and of one
    settings, and two reports of one pair must hold the same numbers, but for the rounding of
    another CPU. Of two equal reports the first is taken, or the first with scores. Each report
    appears in output whole or not at all, and none is ever overwritten.
    summary_of gives the summary of a report's folder; copy is given the folder of a report and that
    of the report to be. Raises ShadowError.
    """
    with alone_in(output):
        sources = [
            _read(output),
            *(_read(folder, links=False) for folder in dict.fromkeys(folders)),
        ]
        for source in sources[1:]:
            if source.index is None and not source.reports:
                hint = "name the folder given to `shadow audit -o`"
                raise ShadowError(f"{source.folder}: neither a report nor an index in it", hint)
        kind = _common_kind(sources)
        chosen, rounded, unscored = _chosen(sources)
        rows = {key: _row(key, report, sources, summary_of) for key, report in chosen.items()}
        rows |= {row.key: row for row in _unfinished(sources, rows)}
        here = sources[0].reports
        copies = {
            output / report_folder(*key): report.folder
            for key, report in chosen.items()
            if key not in here
        }
        for target, path in copies.items():
            _require_room(target, path)
        for target, path in copies.items():
            copy(path, target)
        index = _index(kind, sources, rows)
        write_index(output, index)
    return Merged(index, copied=len(copies), there=len(here), rounded=rounded, unscored=unscored)


def _read(folder: Path, *, links: bool = True) -> _Source:
    """What is in an output folder. links: whether it may hold links.

    What a link points to is not to be copied.
    """
    if not folder.is_dir():
        raise ShadowError(f"no such folder: {folder}", "name the folder given to `shadow audit -o`")
    reports: dict[Key, _Finished] = {}
    for path in sorted(folder.glob("*/*/matrices.parquet")):
        report = path.parent
        try:
            linked = [
                entry for entry in (report.parent, report, *report.iterdir()) if entry.is_symlink()
            ]
        except OSError as error:
            raise ShadowError(
                f"{report}: {error.strerror or error}", "check its permissions"
            ) from error
        if linked and not links:
            raise ShadowError(
                f"{linked[0]} is a link",
                "a merge copies only what lies in the folders that it is given",
            )
        metadata = finished_metadata(report)
        if metadata is None:
            continue
        check_schema(report, metadata)
        key = metadata["family"], metadata["pair"]
        if key in reports:
            other = reports[key].folder
            raise ShadowError(
                f"{report} and {other} are both reports of {key[0]}:{key[1]}", "keep one of them"
            )
        reports[key] = _Finished(report, metadata)
    if not links:  # in the output it may be a copy that was killed, which is made again
        for report in sorted(folder.glob("*/*")):
            if not report.is_symlink() and report.is_dir():
                refuse_remains(report)
    return _Source(folder, read_index(folder), reports)


def _common_kind(sources: Sequence[_Source]) -> Kind:
    """Schema and settings, which all reports and indexes must agree in."""
    kinds: list[tuple[Path, Kind]] = []
    for source in sources:
        kinds += [(report.folder, kind_of(report.metadata)) for report in source.reports.values()]
        if source.index:
            kinds.append((source.folder, source.index.kind))
    if not kinds:
        raise ShadowError(
            f"{sources[0].folder}: no report in it", "name the folder given to `shadow audit -o`"
        )
    first, kind = kinds[0]
    for where, other in kinds[1:]:
        difference = different(vars(kind), vars(other))
        if difference:
            hint = "audit all shards with the same options"
            raise ShadowError(f"{first} and {where} differ in {difference}", hint)
    return kind


def _chosen(
    sources: Sequence[_Source],
) -> tuple[dict[Key, _Finished], tuple[Key, ...], tuple[Key, ...]]:
    """One report for each pair, the pairs of which another report has other last digits, and those
    of which another report has scores that this one lacks.

    The report is the first. An equal one with scores is taken instead of one without, unless that
    is in the merged folder already.
    """
    chosen: dict[Key, _Finished] = {}
    rounded: dict[Key, None] = {}
    unscored: dict[Key, None] = {}
    for source in sources:
        for key, report in source.reports.items():
            if key not in chosen:
                chosen[key] = report
                continue
            first = chosen[key]
            if report.folder == first.folder:
                continue
            difference, apart = _difference(first, report)
            if difference:
                message = (
                    f"{first.folder} and {report.folder} are different reports of"
                    f" {key[0]}:{key[1]}: {difference}"
                )
                raise ShadowError(message, "keep one of them")
            if apart:
                rounded[key] = None
            kept, others = _scores(first), _scores(report)
            if others in (None, kept):
                continue
            if kept is None and not apart and key not in sources[0].reports:
                chosen[key] = report
            else:
                unscored[key] = None
    return chosen, tuple(rounded), tuple(unscored)


def _scores(report: _Finished) -> bytes | None:
    """The scores beside a report; None where it has none."""
    path = report.folder / KEPT
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShadowError(f"{path}: {error.strerror or error}", "check its permissions") from error


def _difference(first: _Finished, other: _Finished) -> tuple[str | None, bool]:
    """In what two reports of one pair differ, None when they say the same; and whether they were
    rounded differently.

    When each was made does not matter.
    """
    difference = different(_written(first.metadata), _written(other.metadata))
    if difference:
        return difference, False
    rounded = False
    names = {*_files(first.folder), *_files(other.folder)} - {LISTED}
    for name in sorted(name for name in names if name.endswith(".parquet")):
        files = [report.folder / name for report in (first, other)]
        if not all(file.is_file() for file in files):
            return f"only one has {name}", False
        try:
            tables = [pq.read_table(file) for file in files]
        except (OSError, pa.ArrowException) as error:
            raise ShadowError(f"{files[0]} or {files[1]} cannot be read", AGAIN) from error
        if tables[0].equals(tables[1]):
            continue
        if not _is_close(name, tables[0], tables[1]):
            return f"the numbers in {name}", False
        rounded = True
    return None, rounded


def _written(metadata: ReportMetadata) -> dict[str, object]:
    """What equal reports share of their metadata."""
    shared = "schema", "family", "pair", "base", "tuned", "settings"
    return {name: metadata.get(name) for name in shared}


def _is_close(name: str, first: pa.Table, second: pa.Table) -> bool:
    """Whether two tables of a report can be those of two machines.

    They have the same rows, and the columns of CLOSE within tolerance.
    """
    names = set(first.column_names)
    if name.removesuffix(".parquet") not in STORED or not first.schema.equals(second.schema):
        return False
    if len(names) < first.num_columns:
        return False  # no table of an audit
    # Its other whole numbers are counts of singular values, which a rounding can move.
    if name == FINISHED:
        exact = [column.name for column in IDENTITY if column.name in names]
    else:
        exact = [field.name for field in first.schema if not _holds_floats(field.type)]
    close = [
        field.name
        for field in first.schema
        if field.name in CLOSE and pa.types.is_floating(field.type)
    ]
    if not first.select(exact).equals(second.select(exact)):
        return False
    return all(_agree(first[column], second[column], CLOSE[column]) for column in close)


def _holds_floats(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind)
        or (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))
    )


def _agree(first: pa.ChunkedArray, second: pa.ChunkedArray, tolerance: float) -> bool:
    """Whether two columns are null in the same rows, and elsewhere equal within a tolerance."""
    if not first.is_null().equals(second.is_null()):
        return False
    numbers, others = (column.drop_null().to_numpy() for column in (first, second))
    # of the larger of the two, so that their order is nothing: np.allclose takes it of the second
    larger = np.maximum(np.abs(numbers), np.abs(others))
    with np.errstate(invalid="ignore"):  # a forged report may hold infinities
        apart = np.abs(numbers - others)
    return bool(((apart <= tolerance * larger) & np.isfinite(apart)).all())


def _files(report: Path) -> list[str]:
    """The files of a report, the one that finishes it last.

    Its folders and hidden files do not belong to it.
    """
    names = [
        path.name for path in report.iterdir() if path.is_file() and not path.name.startswith(".")
    ]
    return sorted(names, key=lambda name: (name == FINISHED, name))


def _rows_of(key: Key, sources: Sequence[_Source]) -> list[tuple[_Source, Row]]:
    return [(source, row) for source in sources for row in source.rows if row.key == key]


def _row(
    key: Key, report: _Finished, sources: Sequence[_Source], summary_of: Callable[[Path], Summary]
) -> Row:
    """The row of a report, with what it took as an index beside it, or an equal one, says.

    A report that was kept though another one was asked for stays that until the list is run again.
    """
    summary = summary_of(report.folder)
    rows = _rows_of(key, sources)
    beside = [row for source, row in rows if key in source.reports]
    for row in beside:
        if row.state == "kept":
            return row
    position = next((row.position for _, row in rows if row.position is not None), None)
    seconds = beside[0].seconds if beside else report.metadata.get("seconds")
    moved = beside[0].bytes if beside else None
    return done_row(summary, report.metadata, position=position, seconds=seconds, moved=moved)


def _unfinished(sources: Sequence[_Source], done: Mapping[Key, Row]) -> list[Row]:
    """The rows of pairs that no folder has a report of.

    What failed comes before what was never reached.
    """
    unfinished: dict[Key, Row] = {}
    for source in sources:
        for row in source.rows:
            if row.key in done:
                continue
            if row.state == "done":  # its report was lost on the way
                row = row.emptied("pending")
            if row.key not in unfinished or (unfinished[row.key].state, row.state) == (
                "pending",
                "failed",
            ):
                unfinished[row.key] = row
    return list(unfinished.values())


def _require_room(target: Path, report: Path) -> None:
    """Nothing may be where a report goes: not another pair's, nor the work of an unfinished audit.

    What a merge that was killed left there is no report, and is written again.
    """
    with writing(target):
        for folder in (target.parent, target):
            if os.path.lexists(folder) and not folder.is_dir():
                raise ShadowError(f"{folder} is not a folder", "merge into another folder")
        if (target / PARTIAL / JOURNAL).exists():
            hint = "finish it, or `shadow clean -o` its folder"
            raise ShadowError(f"{target}: an audit into it is not finished", hint)
        there = [path.name for path in target.iterdir()] if target.is_dir() else []
        if FINISHED in there or not {PARTIAL, *_files(report)}.issuperset(there):
            raise ShadowError(f"{target} holds something else already", "merge into another folder")


def _index(kind: Kind, sources: Sequence[_Source], rows: Mapping[Key, Row]) -> Index:
    """Places in the list, and which shares of it are here, are kept where all is of one list."""
    indexes = [source.index for source in sources if source.index]
    digests = {index.digest for index in indexes}
    if len(digests) == 1 and None not in digests:
        shards = sorted({shard for index in indexes for shard in index.shards})
        ordered = in_order(list(rows.values()))
        return Index(__version__, kind, digest=digests.pop(), shards=tuple(shards), rows=ordered)
    unplaced = [replace(row, position=None) for row in rows.values()]
    return Index(__version__, kind, digest=None, shards=(), rows=in_order(unplaced))
