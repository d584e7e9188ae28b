"""The table of columns: name, type, formula, range, when null, source and pitfalls.

The Parquet schemas, `shadow explain` and the tables in docs/ are made from it. It imports nothing
heavy, so that `explain` answers at once. The formulas themselves are in rank, tail, delta, null,
subspace, residual, spread and summary.
"""

from __future__ import annotations

from dataclasses import dataclass

from shadow.reports.columns.column import NOTATION, Column, Type, notation_of
from shadow.reports.columns.deltas import DELTA
from shadow.reports.columns.matrices import IDENTITY, MATRICES, SPECTRAL
from shadow.reports.columns.pairs import BATCH, COMPARISON, HEADLINE, REPORTS
from shadow.reports.columns.summary import COUNTS, FIGURES, SCORES
from shadow.reports.columns.tensors import RESIDUAL, SPECTRA, TENSORS

__all__ = [
    "BATCH",
    "COMPARISON",
    "COUNTS",
    "DELTA",
    "FIGURES",
    "HEADLINE",
    "IDENTITY",
    "MATRICES",
    "NOTATION",
    "REPORTS",
    "RESIDUAL",
    "SCHEMA",
    "SCORES",
    "SPECTRA",
    "SPECTRAL",
    "TABLES",
    "TENSORS",
    "Column",
    "Table",
    "Type",
    "delta_metrics",
    "notation_of",
]

SCHEMA = 1  # of the report files; raised when a column changes its meaning, not when one is added


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """What `shadow schema` and exports call it."""

    file: str
    """Where it lies."""

    row: str
    """What one row of it is."""

    columns: tuple[Column, ...]
    """Its columns, in the order of the file."""

    first: frozenset[str] = frozenset()
    """The columns that every report of this schema has; the others were added later.

    Frozen: a column that is added to the tables is one of those others by itself.
    """

    start_here: frozenset[str] = frozenset()
    """The columns that a reader needs first."""

    @property
    def exported(self) -> tuple[Column, ...]:
        """The columns as `shadow export` writes them: family and pair, then the others."""
        names = ("family", "pair")
        return (*REPORTS[:2], *(column for column in self.columns if column.name not in names))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FIRST_OF_MATRICES = """
    family pair component layer module expert tensor base_tensor subject rows cols dtype
    parameters precision verified
    frobenius_norm spectral_norm nuclear_norm stable_rank effective_rank energy_rank
    spectral_entropy participation_ratio sigma_floor numerical_rank rank_90 rank_95 rank_99
    top1_energy top4_energy top16_energy top64_energy condition_number
    alpha alpha_xmin alpha_ks alpha_tail alpha_stderr alpha_hill mp_edge mp_outliers
    relative_norm relative_spectral cosine effective_rank_shift stable_rank_shift zero_share
    floor_ratio null_participation_ratio concentration null_edge spikes spike_energy
    null_edge_sampled spikes_sampled null_participation_ratio_sampled
    sigma_scale sigma_scale_iqr
"""

# which row it is; how much changed, how coherently beside noise, and how much is the update
_START_OF_MATRICES = """
    tensor component layer module subject
    relative_norm floor_ratio
    concentration participation_ratio null_participation_ratio equivalent_directions spikes
    kept
"""

_FIRST_OF_TENSORS = """
    tensor side shape dtype shard component layer module expert status reason detail relative_norm
"""

_TABLES = (
    Table(
        name="matrices",
        file="matrices.parquet",
        row="a matrix and subject: base, tuned, delta",
        columns=MATRICES,
        first=_names(_FIRST_OF_MATRICES),
        start_here=_names(_START_OF_MATRICES),
    ),
    Table(
        name="tensors",
        file="tensors.parquet",
        row="a tensor of either side",
        columns=TENSORS,
        first=_names(_FIRST_OF_TENSORS),
    ),
    Table(
        name="residual",
        file="residual.parquet",
        row="the stacked deltas of a layer, or of all, in a direction",
        columns=RESIDUAL,
        first=_names("component direction layer width matrices energy participation_ratio"),
    ),
    Table(
        name="spectra",
        file="spectra.parquet",
        row="the singular values of a matrix and subject",
        columns=SPECTRA,
        first=_names("tensor component layer module expert subject sigma"),
    ),
    Table(
        name="batch",
        file="batch.parquet, beside the reports of a list",
        row="a pair of the list",
        columns=BATCH,
    ),
    Table(
        name="reports",
        file="exports only",
        row="a report",
        columns=REPORTS,
    ),
    Table(
        name="comparison",
        file="compare -o",
        row="a matrix of each two reports",
        columns=COMPARISON,
    ),
    Table(
        name="summary",
        file="summary.json, in figures",
        row="a figure beside the medians of columns",
        columns=(*COUNTS, *FIGURES),
    ),
    Table(
        name="scores",
        file="summary.json, in scores, and compare",
        row="a benchmark, or a correlation over reports",
        columns=SCORES,
    ),
)

TABLES = {table.name: table for table in _TABLES}


def delta_metrics() -> list[str]:
    """The columns of delta rows that are numbers."""
    return [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]
