"""Parquet files of reports: rows as they were written, and one footer."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadow.reports.parquet import TableFile, finite

SCHEMA = pa.schema({"layer": pa.int64(), "name": pa.string()})


@pytest.mark.parametrize("groups", [[], [1], [3, 0, 2]])
def test_metadata_take_the_place_of_a_footer_without(tmp_path, groups):
    """Pages and row groups stay as they were written; only the new footer stands behind them."""
    tables = [
        pa.table({"layer": list(range(rows)), "name": ["x"] * rows}, SCHEMA) for rows in groups
    ]
    path = tmp_path / "t.parquet"
    file = TableFile(path, SCHEMA)
    for table in tables:
        file.write(table)
    file.close()
    before = path.read_bytes()
    pages = len(before) - 8 - int.from_bytes(before[-8:-4], "little")
    file.finish({"family": "a" * 9000})
    after = path.read_bytes()
    assert len(after) - 8 - int.from_bytes(after[-8:-4], "little") == pages
    assert after[:pages] == before[:pages]
    found = pq.read_table(path)
    assert found.to_pylist() == pa.concat_tables([SCHEMA.empty_table(), *tables]).to_pylist()
    assert json.loads(found.schema.metadata[b"shadow"]) == {"family": "a" * 9000}
    assert pq.read_metadata(path).num_row_groups == max(1, len(groups))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_null_and_refused_in_a_list(value):
    assert finite(pa.chunked_array([[1.0, value]])).to_pylist() == [1.0, None]
    lists = pa.chunked_array([[[1.0, None], None]], pa.list_(pa.float32()))
    assert finite(lists).equals(lists)
    with pytest.raises(ValueError, match="not finite"):
        finite(pa.chunked_array([[[1.0, value]]], pa.list_(pa.float32())))
