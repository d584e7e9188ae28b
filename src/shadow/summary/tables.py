"""The tables of a report as the figures of its summary need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shadow.summary.bootstrap import Blocks, blocks_of
from shadow.summary.columns import Columns, columns_of
from shadow.summary.depth import compared_layers, has_compared, layer_of
from shadow.summary.record import main_of

# columns of tensors on which no figure rests
UNREAD = ("dtype", "shard", "expert")
KEY = ("component", "tensor", "module", "layer", "expert")  # of a matrix, whatever its subject
PIECE = 2_000  # rows


@dataclass(frozen=True)
class Rows:
    """The tables of a report as the figures need them."""

    deltas: Columns
    """The delta rows, with base_norm, energy, base_energy, participation_share, and at, the place
    of their layer in layers (-1 outside).
    """
    alone: Columns
    """The rows of tuned matrices that have no base."""
    tensors: Columns
    """All rows of tensors.parquet, with was_compared."""
    files: list[dict[str, Any]]
    """All rows of files.parquet; none where it is not given."""
    layers: Sequence[tuple[str, int]]
    """Component and number of every layer that was compared."""

    @cached_property
    def blocks(self) -> Blocks:
        return blocks_of(*zip(*self.layers, strict=True)) if self.layers else blocks_of([], [])

    @cached_property
    def compared(self) -> Columns:
        """The tensors that were compared with a partner."""
        return self.tensors.where(self.tensors["was_compared"])

    @property
    def main(self) -> str | None:
        """The component whose depth counts: language, or the one of most layers."""
        return main_of([component for component, _ in self.layers])


def needed(name: str, table: pa.Table) -> pa.Table:
    """What a summary needs of the table of this name, or of some of its rows.

    Of matrices: the deltas with the norm of their base in base_norm, and what has no base; all
    subjects of a matrix must be among the rows.
    """
    if name != "matrices":
        return table.drop_columns([name for name in UNREAD if name in table.column_names])
    if "base_norm" in table.column_names:
        return table
    norms = pa.array(_base_norms(table), type=pa.float64(), from_pandas=True)
    subject, base = table["subject"], table["base_tensor"]
    alone = pc.and_(pc.equal(subject, "tuned"), pc.is_null(base))
    read = [column for column in table.column_names if not column.endswith("_error")]
    chosen = table.select(read).append_column("base_norm", norms)
    return chosen.filter(pc.or_(pc.equal(subject, "delta"), alone))


def _base_norms(matrices: pa.Table) -> list[float | None]:
    """By row: the norm of the base of the matrix, None where it has none."""
    bases = {
        tuple(key): norm
        for *key, subject, norm in _each(matrices, (*KEY, "subject", "frobenius_norm"))
        if subject == "base"
    }
    return [bases.get(key) for key in _each(matrices, KEY)]


def _each(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row; few rows at a time are values of Python."""
    for batch in table.select(names).to_batches(max_chunksize=PIECE):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def read_rows(tables: Mapping[str, pa.Table]) -> Rows:
    matrices = needed("matrices", tables["matrices"])
    of_delta = pc.equal(matrices["subject"], "delta")
    # a filter copies, and in most reports there is nothing else
    only_deltas = pc.all(of_delta, skip_nulls=False).as_py()
    deltas = columns_of(matrices if only_deltas else matrices.filter(of_delta))
    tensors = columns_of(needed("tensors", tables["tensors"]))
    tensors = tensors.added(was_compared=has_compared(tensors))
    layers = compared_layers(tensors)
    with np.errstate(all="ignore"):  # a forged report may hold infinities
        made = {
            "energy": deltas["frobenius_norm"] ** 2,
            "base_energy": deltas["base_norm"] ** 2,
            "participation_share": (
                deltas["participation_ratio"] / deltas["null_participation_ratio"]
            ),
            "at": layer_of(layers, deltas["component"], deltas["layer"]),
        }
    return Rows(
        deltas=deltas.added(**made),
        alone=columns_of(matrices.filter(pc.invert(of_delta))),
        tensors=tensors,
        files=tables["files"].to_pylist() if "files" in tables else [],
        layers=layers,
    )
