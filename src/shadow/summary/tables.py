"""The tables of a report as arrays, for the figures of its summary: data frames took six times as
long for a small report. A figure is None if it is missing or not finite.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shadow.summary.bootstrap import Blocks, Floats, Mask, Places, blocks_of

if TYPE_CHECKING:
    import pandas as pd

MOST = 2**63 - 1  # entries of a tensor
# columns of tensors on which no figure rests
UNREAD = ("dtype", "shard")
COPIED = ("tuned", "base")  # in `cast`: which side is the other in another format
OF_CASTS = ("tensor", "side", "cast")  # columns of tensors that say it
OF_SIDES = ("tensor", "base_tensor", "module")  # columns of a delta that say of which tensors
KEY = ("component", "tensor", "module", "layer", "expert")  # of a matrix, whatever its subject
PIECE = 2_000  # rows


def finite(value: Any) -> float | None:
    """Return the value as a float; None if it is missing, like `pandas.NA`, or not finite."""
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return None
    return float(value)


def over(part: float, whole: float) -> float | None:
    """Return part / whole; None if whole is 0."""
    return finite(part / whole) if whole else None


def floats(values: pd.Series | NDArray[Any]) -> Floats:
    """Return a column as floats, NaN for null."""
    if isinstance(values, np.ndarray):
        return np.asarray(values, dtype=np.float64)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def are(texts: pd.Series | NDArray[Any], *wanted: str) -> Mask:
    """Return which texts are one of these, whatever stands for a missing one."""
    return np.array([isinstance(text, str) and text in wanted for text in texts], dtype=np.bool_)


def total_of(values: Floats) -> float:
    """Return the sum, correctly rounded; infinite if too large for a float."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def median(values: Floats) -> float | None:
    """Return the median of numbers that are not NaN; None without any, or if not finite."""
    known = values[~np.isnan(values)]
    return finite(np.median(known)) if len(known) else None


@dataclass(frozen=True)
class Columns:
    """Columns of a table as arrays, for all its rows or some: numbers and flags as floats with NaN
    for null, texts as objects with None.
    """

    arrays: Mapping[str, NDArray[Any]]  # by name, of all rows of the table
    rows: Places | None = None  # the numbers of the rows; None for all

    def __getitem__(self, name: str) -> NDArray[Any]:
        whole = self.arrays[name]
        return whole if self.rows is None else whole[self.rows]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())) if self.rows is None else self.rows)

    def where(self, chosen: Mask | Places | Sequence[int]) -> Columns:
        """Return some of these rows, chosen by a mask or by numbers."""
        numbers = np.arange(len(self)) if self.rows is None else self.rows
        return Columns(self.arrays, numbers[chosen])

    def added(self, **made: NDArray[Any]) -> Columns:
        """Return these rows with more columns, or other values of a column."""
        return Columns({**{name: self[name] for name in self.arrays}, **made})

    def each(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yield the values of some columns, row by row."""
        return zip(*(self[name].tolist() for name in names), strict=True)

    def of(self, component: str | None) -> Columns:
        return self.where(self["component"] == component)

    def having(self, **texts: str | Sequence[str]) -> Columns:
        """Return the rows with these texts, or one of several, in each of these columns."""
        chosen = np.ones(len(self), dtype=np.bool_)
        for name, wanted in texts.items():
            chosen &= are(self[name], *([wanted] if isinstance(wanted, str) else wanted))
        return self.where(chosen)

    def medians(self, *names: str) -> dict[str, float | None]:
        return {name: median(self[name]) for name in names}

    def groups(self, *names: str) -> Iterator[tuple[tuple[str, ...], Columns]]:
        """Yield groups of rows with the same texts in these columns, and the texts, in order of
        appearance; without rows that lack one.
        """
        places: dict[tuple[str, ...], list[int]] = {}
        for number, key in enumerate(self.each(*names)):
            if None not in key:
                places.setdefault(key, []).append(number)
        for key, numbers in places.items():
            yield key, self.where(numbers)

    @property
    def sizes(self) -> NDArray[np.object_]:
        """Return the number of entries of each tensor, as ints; at most MOST for a forged shape."""
        return np.array([min(math.prod(shape), MOST) for shape in self["shape"]], dtype=object)

    @property
    def are_matrices(self) -> Mask:
        """Return which tensors have more than one dimension."""
        return np.array([len(shape) > 1 for shape in self["shape"]], dtype=np.bool_)

    @property
    def inside(self) -> Columns:
        """The rows inside layers."""
        return self.where(~np.isnan(self["layer"]))

    @property
    def outside(self) -> Columns:
        """The rows outside layers."""
        return self.where(np.isnan(self["layer"]))


def columns_of(table: pa.Table) -> Columns:
    """Return a table as figures need it; equal texts and equal shapes are one object, which saves
    ten times their memory for 60,000 matrices.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name == "shape":
            known: dict[tuple[int, ...], tuple[int, ...]] = {}
            shapes = (tuple(shape.as_py()) for chunk in values.chunks for shape in chunk)
            arrays[name] = np.empty(len(values), dtype=object)
            arrays[name][:] = [known.setdefault(shape, shape) for shape in shapes]
        elif pa.types.is_string(values.type):
            coded = values.combine_chunks().dictionary_encode()
            texts = np.array([*map(sys.intern, coded.dictionary.to_pylist()), None], dtype=object)
            arrays[name] = texts[coded.indices.fill_null(len(texts) - 1).to_numpy()]
        else:
            arrays[name] = values.cast(pa.float64(), safe=False).to_numpy()
    return Columns(arrays)


def has_compared(tensors: Columns) -> Mask:
    """Return the tensors of which a matrix was compared with a partner; some parts are enough."""
    whole = are(tensors["status"], "measured", "identical")
    return (whole & ~are(tensors["reason"], "only_in_tuned")) | is_partial(tensors)


def is_partial(tensors: Columns) -> Mask:
    """Return the tensors that count as skipped, although some of their matrices were compared."""
    are_skipped = are(tensors["status"], "skipped") & ~are(tensors["reason"], "not_a_matrix")
    return np.asarray(are_skipped & (tensors["compared"] > 0))


def compared_layers(tensors: Columns) -> list[tuple[str, int]]:
    """Return component and number of every layer of which a matrix was compared."""
    matrices = tensors.where(has_compared(tensors) & ~are(tensors["module"], "norm", "bias"))
    layers = matrices.inside.each("component", "layer")
    return sorted({(component, int(layer)) for component, layer in layers})


def only_rounded(
    deltas: Iterable[tuple[str, str | None, str]], tensors: Iterable[tuple[str, str, str | None]]
) -> Mask:
    """Return which matrices that changed are the other side's in another format in every entry,
    where others changed by more than that; none where all or none are, or where it is unknown of
    one. deltas: OF_SIDES of each; tensors: OF_CASTS of each.
    """
    casts = {(side, name): how for name, side, how in tensors}
    of_deltas = []
    for name, base_name, module in deltas:
        how = casts.get(("tuned", name))
        # a tied head is no tensor of the tuned side, whose row is of the embedding
        is_tied = module == "head" and casts.get(("base", base_name or "")) == "neither"
        of_deltas.append("neither" if is_tied else how)
    copies = np.array([how in COPIED for how in of_deltas], dtype=np.bool_)
    if None in of_deltas or copies.all():
        return np.zeros(len(of_deltas), dtype=np.bool_)
    return copies


@dataclass(frozen=True)
class Rows:
    """The tables of a report as the figures need them."""

    measured: Columns
    """The delta rows, with base_norm, energy, base_energy, participation_share, and at, the place
    of their layer in layers (-1 outside).
    """
    deltas: Columns  # those of them on which figures rest: all that are not `only_rounded`
    rounded: Columns  # the others
    alone: Columns  # the rows of tuned matrices that have no base
    tensors: Columns  # all rows, with was_compared
    files: list[dict[str, Any]]  # all rows
    layers: Sequence[tuple[str, int]]  # component and number of every layer that was compared

    @cached_property
    def blocks(self) -> Blocks:
        return blocks_of(*zip(*self.layers, strict=True)) if self.layers else blocks_of([], [])

    @cached_property
    def compared(self) -> Columns:
        """The tensors that were compared with a partner."""
        return self.tensors.where(self.tensors["was_compared"])


def needed(name: str, table: pa.Table) -> pa.Table:
    """Return what a summary needs of the table of this name, or of some of its rows.

    For matrices: the deltas with the norm of their base in base_norm, and those without a base; all
    subjects of a matrix must be among the rows.
    """
    if name != "matrices":
        return table.drop_columns([one for one in UNREAD if one in table.column_names])
    if "base_norm" in table.column_names:
        return table

    def each(*names: str) -> Iterator[tuple[Any, ...]]:  # few rows at a time as Python has them
        for batch in table.select(names).to_batches(max_chunksize=PIECE):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    bases = {
        tuple(key): norm
        for *key, subject, norm in each(*KEY, "subject", "frobenius_norm")
        if subject == "base"
    }
    norms = pa.array([bases.get(key) for key in each(*KEY)], pa.float64(), from_pandas=True)
    subject, base = table["subject"], table["base_tensor"]
    alone = pc.and_(pc.equal(subject, "tuned"), pc.is_null(base))
    read = [column for column in table.column_names if not column.endswith("_error")]
    chosen = table.select(read).append_column("base_norm", norms)
    return chosen.filter(pc.or_(pc.equal(subject, "delta"), alone))


def read_rows(tables: Mapping[str, pa.Table]) -> Rows:
    matrices = needed("matrices", tables["matrices"])
    of_delta = pc.equal(matrices["subject"], "delta")
    # a filter copies, and in most reports there is nothing else
    only_deltas = pc.all(of_delta, skip_nulls=False).as_py()
    deltas = columns_of(matrices if only_deltas else matrices.filter(of_delta))
    tensors = columns_of(needed("tensors", tables["tensors"]))
    tensors = tensors.added(was_compared=has_compared(tensors))
    layers = compared_layers(tensors)
    places: dict[tuple[str, float], int] = {place: at for at, place in enumerate(layers)}
    made = {
        "energy": deltas["frobenius_norm"] ** 2,
        "base_energy": deltas["base_norm"] ** 2,
        "participation_share": (deltas["participation_ratio"] / deltas["null_participation_ratio"]),
        "at": np.array(
            [places.get(place, -1) for place in deltas.each("component", "layer")],
            dtype=np.intp,
        ),
    }
    measured = deltas.added(**made)
    is_rounded = only_rounded(measured.each(*OF_SIDES), tensors.each(*OF_CASTS))
    return Rows(
        measured=measured,
        deltas=measured.where(~is_rounded),
        rounded=measured.where(is_rounded),
        alone=columns_of(matrices.filter(pc.invert(of_delta))),
        tensors=tensors,
        files=tables["files"].to_pylist(),
        layers=layers,
    )
