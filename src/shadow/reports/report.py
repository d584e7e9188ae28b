"""A finished report as one object: what it is of, and its tables as pandas has them, each file read once, when asked.

Missing is told in one way by all tables: `isna()` is true. Whole numbers are `Int64`, flags `boolean` and texts
`string`, all with `pd.NA`. Numbers are float64 with NaN and not `Float64`: NumPy, SciPy and matplotlib take such a
column as it is, where `Float64` would become an array of objects; and NaN can mean nothing else, since no audit writes
it (undefined is null in the files). Columns that an older report lacks are missing in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa

from shadow.reports.columns import TABLES
from shadow.reports.metadata import ReportMetadata
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import METADATA_KEY, Provenance, metadata_in, report_metadata
from shadow.reports.tables import of_different_audits, read_table

FRAMES = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype()}


@dataclass(frozen=True)
class Report:
    """A finished report in a folder. Nothing is read before it is asked for, and nothing twice."""

    folder: Path
    """Where its files lie."""

    @cached_property
    def provenance(self) -> Provenance:
        """What was measured, with which settings and version.

        Raises ShadowError when the folder holds no finished report, a broken one, or one of another schema.
        """
        return Provenance.of(report_metadata(self.folder))

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """A row for each matrix and subject (base, tuned, delta): `shadow schema matrices`."""
        return self.columns("matrices")

    @cached_property
    def tensors(self) -> pd.DataFrame:
        """A row for each tensor of either side, also those that were not measured: `shadow schema tensors`."""
        return self.columns("tensors")

    @cached_property
    def residual(self) -> pd.DataFrame:
        """A row for each layer and direction of the residual stream; empty in older reports."""
        return self.columns("residual")

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """The singular values of each matrix and subject; empty where the audit was asked not to write them."""
        return self.columns("spectra")

    def columns(self, table: str, names: Sequence[str] | None = None) -> pd.DataFrame:
        """A table, or some of its columns, read from its file now: for those who need no more of a large report.

        Raises ShadowError when the file is missing, broken, or of another audit than the report.
        """
        metadata = self.provenance.told  # first, as this completes a replacement that was killed half-way
        known = TABLES[table].columns
        chosen = [column for column in known if names is None or column.name in names]
        stored = read_table(self.folder, table, chosen)
        if stored is None:
            return frame_of(arrow_schema(chosen).empty_table())
        if not _says(stored, metadata):
            raise of_different_audits(self.folder)
        return frame_of(stored)


def _says(table: pa.Table, metadata: ReportMetadata) -> bool:
    """Does a table tell the same of how it was made?"""
    try:
        return bool(metadata_in((table.schema.metadata or {})[METADATA_KEY]) == metadata)
    except (KeyError, ValueError, RecursionError):
        return False


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A table as every reader of reports has it: see the types above. Lists are NumPy arrays."""
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=FRAMES.get)
    return frame
