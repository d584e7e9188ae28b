"""The tables of a report as the figures of its summary need them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shadow.summary.bootstrap import Blocks, blocks_of
from shadow.summary.depth import compared_layers, has_compared, layer_of
from shadow.summary.record import main_of

# columns of tensors on which no figure rests
UNREAD = ("dtype", "shard", "expert")
# columns of matrices on which figures rest, of deltas and of matrices without a base
READ = (
    *("component", "layer", "module", "tensor", "base_tensor", "subject", "rows", "cols"),
    *("dtype", "parameters", "rank_ceiling", "verified", "frobenius_norm", "stable_rank"),
    *("effective_rank", "participation_ratio", "numerical_rank", "rank_90", "rank_95", "rank_99"),
    *("top1_energy", "top4_energy", "top16_energy", "top64_energy", "top20_energy"),
    *("relative_norm", "cosine", "effective_rank_shift", "zero_share", "floor_ratio"),
    *("null_participation_ratio", "concentration", "spikes", "spike_energy", "spikes_sharp"),
    *("alignment_left", "alignment_right", "alignment_left_null", "alignment_right_null"),
    *("row_participation_ratio", "rows_changed", "kept", "kept_reason", "kept_history"),
    *("relative_norm_unrounded", "excess_purity", "purity_z", "excess_purity_unrounded"),
    *("equivalent_directions", "decay_cosine", "levels_base", "levels_tuned", "energy_share"),
)
KEY = ("component", "tensor", "module", "layer", "expert")  # of a matrix, whatever its subject
PIECE = 2_000  # rows


@dataclass(frozen=True)
class Columns:
    """Columns of a table as arrays, of all its rows or of some: numbers and flags as floats, NaN
    where they are null, texts as objects, None where they are.

    Medians of a hundred groups of a few rows take a third of the time that they take pandas.
    """

    arrays: Mapping[str, NDArray[Any]]
    """By name, of all rows of the table."""
    rows: NDArray[np.intp] | None = None
    """The numbers of the rows; None for all."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        whole = self.arrays[name]
        return whole if self.rows is None else whole[self.rows]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())) if self.rows is None else self.rows)

    def where(self, chosen: NDArray[np.bool_ | np.intp] | Sequence[int]) -> Columns:
        """The same of some of these rows, which a mask or their numbers choose."""
        numbers = np.arange(len(self)) if self.rows is None else self.rows
        return Columns(self.arrays, numbers[chosen])

    def added(self, **made: NDArray[Any]) -> Columns:
        """These rows with more columns, or other values of a column."""
        return Columns({**{name: self[name] for name in self.arrays}, **made})

    def each(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """The values of some columns, row by row."""
        return zip(*(self[name].tolist() for name in names), strict=True)

    def of(self, component: str | None) -> Columns:
        """The rows of a component."""
        return self.where(self["component"] == component)

    def groups(self, *names: str) -> Iterator[tuple[tuple[str, ...], Columns]]:
        """The rows that have the same texts in these columns, with the texts, in the order in which
        they come first; without those that lack one.
        """
        places: dict[tuple[str, ...], list[int]] = {}
        for number, key in enumerate(self.each(*names)):
            if None not in key:
                places.setdefault(key, []).append(number)
        for key, numbers in places.items():
            yield key, self.where(numbers)

    @property
    def are_matrices(self) -> NDArray[np.bool_]:
        """Which tensors have more than one dimension."""
        return np.array([len(shape) > 1 for shape in self["shape"]], dtype=np.bool_)

    @property
    def inside(self) -> Columns:
        """The rows that lie in a layer."""
        return self.where(~np.isnan(self["layer"]))

    @property
    def outside(self) -> Columns:
        """The rows that lie in no layer."""
        return self.where(np.isnan(self["layer"]))


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
    residual: Columns
    """All rows of residual.parquet."""
    layers: Sequence[tuple[str, int]]
    """Component and number of every layer that was compared."""

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of layers."""
        return blocks_of(*zip(*self.layers, strict=True)) if self.layers else blocks_of([], [])

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
    chosen = table.select(READ).append_column("base_norm", norms)
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


def columns_of(table: pa.Table) -> Columns:
    """A table as figures need it; equal texts and equal shapes are one object: of 60,000 matrices
    they take ten times as much otherwise.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name == "shape":
            arrays[name] = np.empty(len(values), dtype=object)
            arrays[name][:] = list(_shared(values))
        elif pa.types.is_string(values.type):
            arrays[name] = _texts(values)
        else:
            arrays[name] = values.cast(pa.float64()).to_numpy()
    return Columns(arrays)


def _texts(values: pa.ChunkedArray) -> NDArray[np.object_]:
    """The texts of a column, None where it has none; equal ones are one object."""
    coded = values.combine_chunks().dictionary_encode()
    texts = np.array([*map(sys.intern, coded.dictionary.to_pylist()), None], dtype=object)
    return np.asarray(texts[coded.indices.fill_null(len(texts) - 1).to_numpy()])


def _shared(shapes: pa.ChunkedArray) -> Iterator[tuple[int, ...]]:
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for chunk in shapes.chunks:
        for shape in chunk:
            sizes = tuple(shape.as_py())
            yield known.setdefault(sizes, sizes)


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
        residual=columns_of(tables["residual"]),
        layers=layers,
    )
