"""Lists of toy pairs: their index, row by row, and the files that hold it."""

from __future__ import annotations

import pyarrow.parquet as pq

from shadow.audits.list_audit import audit_list
from shadow.audits.list_index import Index, Kind, Row, read_index, report_folder
from shadow.audits.pair import Settings
from shadow.checkpoints.pairing import Filter
from shadow.spectra.delta import Method
from shadow.targets.lists import select

EVERYTHING = Settings(Method(subspaces=False), Filter(), spectra=False)


def select_toys(toys, *targets, **options):
    return select(targets, registry=toys, **options)


def run(selection, output, settings=EVERYTHING, **options):
    return list(audit_list(selection, settings, output, **options))


def states(output):
    return {row.name: row.state for row in read_index(output).rows}


def table_rows(output):
    return pq.read_table(output / "batch.parquet").to_pylist()


def some_rows(count):
    return [row(number, f"family-{number}", "base..tuned") for number in range(1, count + 1)]


def index_of(*rows):
    return Index("0.2.0", Kind(1, {}), None, rows)


def row(position, family, pair="base..instruct", **columns):
    sides = ("org/base", "org/tuned")
    return Row(position, family, pair, "tuned", report_folder(family, pair), *sides, **columns)
