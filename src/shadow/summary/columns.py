"""Rows of a table as figures are made from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MOST = 2**63 - 1  # entries of a tensor


@dataclass(frozen=True)
class Columns:
    """Columns of a table as arrays, of all its rows or of some: numbers and flags as floats, NaN
    where they are null, texts as objects, None where they are.

    Data frames took six times as long for the summary of a small report.
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
    def sizes(self) -> NDArray[np.object_]:
        """How many entries each tensor has, as ints; of a forged shape no more than MOST."""
        return np.array([min(math.prod(shape), MOST) for shape in self["shape"]], dtype=object)

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
            arrays[name] = values.cast(pa.float64(), safe=False).to_numpy()
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
