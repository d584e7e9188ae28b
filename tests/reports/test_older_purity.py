"""Reports made before the columns of purity: they are made from the columns that are there."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadow.reports import tables
from shadow.reports.columns import TABLES
from shadow.reports.parquet import arrow_schema
from shadow.spectra import purity

FIRST = TABLES["matrices"].first | {
    "row_participation_ratio",
    "col_participation_ratio",
    "rank_ceiling",
}
COMMON = {"rows": 64, "cols": 80, "participation_ratio": 20.0, "null_participation_ratio": 30.0}


def read(folder, rows, names=FIRST):
    schema = pa.schema(
        [field for field in arrow_schema(TABLES["matrices"].columns) if field.name in names]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, folder / "matrices.parquet")
    with pq.ParquetFile(folder / "matrices.parquet") as file:
        return tables.read_columns(file, "matrices", TABLES["matrices"].columns).to_pylist()


def test_an_older_report_has_its_purity(tmp_path):
    """As an audit has it where kept is unknown; no directions near the rounding, nor of base and
    tuned rows.
    """
    ratios = {**COMMON, "row_participation_ratio": 50.0, "col_participation_ratio": 60.0}
    cases = [(5.0, None), (3.9, None), (None, 8), (None, None)]
    rows = [
        {**ratios, "subject": "delta", "floor_ratio": floor, "rank_ceiling": rank}
        for floor, rank in cases
    ]
    rows.append({"rows": 64, "cols": 80, "participation_ratio": 20.0, "subject": "base"})
    found = read(tmp_path, rows)
    for (floor, rank), row in zip(cases, found, strict=False):
        of_delta = {**ratios, "top1_energy": None, "floor_ratio": floor}
        reason = "rounding_unexplained" if rank is None else "nothing_rounded"
        expected = purity.purity_values(of_delta, (64, 80), None, reason)
        for name in tables.PURITY:
            assert row[name] == (
                None if expected[name] is None else pytest.approx(expected[name], rel=1e-12)
            )
    assert [row["equivalent_directions"] is None for row in found] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert {found[-1][name] for name in tables.PURITY} == {None}
    assert (tables.UNTOUCHED, tables.NOISE) == (purity.UNTOUCHED, purity.NOISE)


def test_the_first_reports_have_no_noise_to_hold_it_against(tmp_path):
    """Without participation ratios of rows and columns: excess_purity alone."""
    row = {**COMMON, "subject": "delta", "floor_ratio": 9.0}
    found = read(tmp_path, [row], TABLES["matrices"].first)[0]
    assert found["excess_purity"] == pytest.approx(1 / 20 - 1 / 30)
    assert found["purity_z"] is found["equivalent_directions"] is None
