"""The tables of a report as arrays, for the figures of its summary: data frames took six times as
long for a small report. A figure is None if it is missing or not finite.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shadow.summary.bootstrap import Blocks, Floats, Mask, Places, blocks_of

MOST = 2**63 - 1  # entries of a tensor
COPIED = ("tuned", "base")  # in `cast`: which side is the other in another format
OF_CASTS = ("tensor", "side", "cast")  # columns of tensors that say it
OF_SIDES = ("tensor", "base_tensor", "module")  # columns of a delta that say of which tensors
VECTORS = ("norm", "bias")  # modules that have no matrices
KEY = ("component", "tensor", "module", "layer", "expert")  # of a matrix, whatever its subject
PIECE = 2_000  # rows
SUMMARISED = ("matrices", "tensors", "files")  # the tables that a summary is made from


def finite(value: float) -> float | None:
    """The value; None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def over(part: float, whole: float) -> float | None:
    """The quotient; None if the whole is 0."""
    return finite(part / whole) if whole else None


def mask_of(flags: Sequence[bool]) -> Mask:
    """A mask of rows, of their flags."""
    return np.array(flags, dtype=np.bool_)


def are(texts: NDArray[Any], *wanted: str) -> Mask:
    """A mask of the texts that are one of these, whatever stands for a missing one."""
    return mask_of([isinstance(text, str) and text in wanted for text in texts])


def is_known(values: Floats) -> Mask:
    """A mask of the numbers that are not null."""
    return ~np.isnan(values)


def largest(values: Floats) -> float | None:
    """The largest of numbers that are not NaN; None without any."""
    known = values[is_known(values)]
    return float(known.max()) if len(known) else None


def count(mask: Mask) -> int:
    """The number of rows that a mask chooses."""
    return int(mask.sum())


def total_of(values: Floats) -> float:
    """The sum, correctly rounded; infinite if too large for a float."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def median(values: Floats) -> float | None:
    """The median of numbers that are not NaN; None without any, or if not finite."""
    known = np.sort(values[is_known(values)])  # np.median takes twice as long for a few
    middle = known[(len(known) - 1) // 2 : len(known) // 2 + 1]
    return finite(middle.mean()) if len(known) else None


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
        if self.rows is not None:
            return len(self.rows)
        first = next(iter(self.arrays.values()))
        return len(first)

    def where(self, chosen: Mask | Places | Sequence[int]) -> Columns:
        """Some of these rows, chosen by a mask or by numbers."""
        numbers = np.arange(len(self)) if self.rows is None else self.rows
        return Columns(self.arrays, numbers[chosen])

    def added(self, **columns: NDArray[Any]) -> Columns:
        """These rows with more columns, or other values of a column."""
        own = {name: self[name] for name in self.arrays}
        return Columns(own | columns)

    def each(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yield the values of some columns, row by row."""
        columns = [self[name].tolist() for name in names]
        return zip(*columns, strict=True)

    def of(self, component: str | None) -> Columns:
        return self.where(self["component"] == component)

    def having(self, **texts: str | Sequence[str]) -> Columns:
        """The rows with these texts, or one of several, in each of these columns."""
        rows = self
        for name, wanted in texts.items():
            words = [wanted] if isinstance(wanted, str) else wanted
            rows = rows.where(are(rows[name], *words))
        return rows

    def without(self, name: str, *words: str) -> Columns:
        """The rows without any of these texts in a column."""
        return self.where(~are(self[name], *words))

    def medians(self, *names: str) -> dict[str, float | None]:
        return {name: median(self[name]) for name in names}

    def groups(self, *names: str) -> Iterator[tuple[tuple[str, ...], Columns]]:
        """Yield groups of rows with the same texts in these columns, and the texts, in order of
        appearance; without rows that lack one.
        """
        groups = defaultdict[tuple[str, ...], list[int]](list)
        for number, key in enumerate(self.each(*names)):
            if None not in key:
                groups[key].append(number)
        for key, numbers in groups.items():
            yield key, self.where(numbers)

    @property
    def sizes(self) -> NDArray[np.object_]:
        """The number of entries of each tensor, as ints; at most MOST for a forged shape."""
        sizes = [min(math.prod(shape), MOST) for shape in self["shape"]]
        return np.array(sizes, dtype=object)

    @property
    def are_matrices(self) -> Mask:
        """A mask of the tensors that have more than one dimension."""
        return mask_of([len(shape) > 1 for shape in self["shape"]])

    @property
    def inside(self) -> Columns:
        """The rows inside layers."""
        return self.where(is_known(self["layer"]))

    @property
    def outside(self) -> Columns:
        """The rows outside layers."""
        return self.where(np.isnan(self["layer"]))


def columns_of(table: pa.Table) -> Columns:
    """A table as figures need it; equal texts and equal shapes are one object, which saves ten
    times their memory for 60,000 matrices.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name == "shape":
            arrays[name] = _shapes(values)
        elif values.type in (pa.string(), pa.large_string()):
            arrays[name] = _texts(values)
        else:
            arrays[name] = values.cast(pa.float64(), safe=False).to_numpy()
    return Columns(arrays)


def _shapes(values: pa.ChunkedArray) -> NDArray[np.object_]:
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    shapes = np.empty(len(values), dtype=object)
    for number, sizes in enumerate(values):
        shape = tuple(sizes.as_py())
        shapes[number] = known.setdefault(shape, shape)
    return shapes


def _texts(values: pa.ChunkedArray) -> NDArray[np.object_]:
    coded = values.combine_chunks().dictionary_encode()
    words = map(sys.intern, coded.dictionary.to_pylist())
    known = np.array([*words, None], dtype=object)
    numbers = coded.indices.fill_null(len(known) - 1)
    texts: NDArray[np.object_] = known[numbers.to_numpy()]
    return texts


def has_compared(tensors: Columns) -> Mask:
    """A mask of the tensors of which a matrix was compared with a partner; some parts are
    enough.
    """
    is_whole = are(tensors["status"], "measured", "identical")
    has_base = ~are(tensors["reason"], "only_in_tuned")
    return (is_whole & has_base) | is_partial(tensors)


def is_partial(tensors: Columns) -> Mask:
    """A mask of the tensors that count as skipped, although some of their matrices were
    compared.
    """
    is_matrix = ~are(tensors["reason"], "not_a_matrix")
    is_skipped = are(tensors["status"], "skipped") & is_matrix
    return np.asarray(is_skipped & (tensors["compared"] > 0))


def compared_layers(tensors: Columns) -> list[tuple[str, int]]:
    """Component and number of every layer of which a matrix was compared; where layers moved, those
    of the tuned side.
    """
    matrices = tensors.where(has_compared(tensors)).without("module", *VECTORS)
    is_elsewhere = are(matrices["matched_by"], "content", "likeness")
    is_elsewhere &= are(matrices["side"], "base")
    layers = matrices.where(~is_elsewhere).inside.each("component", "layer")
    return sorted({(component, int(layer)) for component, layer in layers})


def only_rounded(
    deltas: Iterable[tuple[str, str | None, str]], tensors: Iterable[tuple[str, str, str | None]]
) -> Mask:
    """A mask of the matrices that changed and are the other side's in another format in every
    entry, where others changed by more than that; of none where all or none are, or where it is
    unknown of one. deltas: OF_SIDES of each; tensors: OF_CASTS of each.
    """
    casts = {(side, name): cast for name, side, cast in tensors}
    of_deltas = []
    for name, base_name, module in deltas:
        cast = casts.get(("tuned", name))
        base_cast = casts.get(("base", base_name or ""))
        # a tied head is no tensor of the tuned side, whose row is of the embedding
        if module == "head" and base_cast == "neither":
            cast = base_cast
        of_deltas.append(cast)
    is_copy = mask_of([cast in COPIED for cast in of_deltas])
    is_unclear = None in of_deltas or is_copy.all()
    return np.zeros_like(is_copy) if is_unclear else is_copy


@dataclass(frozen=True)
class Rows:
    """The tables of a report as the figures need them."""

    measured: Columns
    """The delta rows, with base_norm, energy, base_energy, participation_share, and at, the place
    of their layer in layers (-1 outside).
    """
    deltas: Columns  # those of them on which figures rest: all that are not `only_rounded`
    rounded: Columns  # the others
    without_base: Columns  # the rows of tuned matrices that have no base
    tensors: Columns  # all rows, with was_compared
    files: list[dict[str, Any]]  # all rows
    layers: Sequence[tuple[str, int]]  # component and number of every layer that was compared

    @cached_property
    def blocks(self) -> Blocks:
        """The layers of the pair, each one once."""
        components = [component for component, _ in self.layers]
        return blocks_of(components, [layer for _, layer in self.layers])

    @cached_property
    def compared(self) -> Columns:
        """The tensors that were compared with a partner."""
        return self.tensors.where(self.tensors["was_compared"])


def needed(name: str, table: pa.Table) -> pa.Table:
    """The part that a summary needs of the table of this name, or of some of its rows.

    For matrices: the deltas with the norm of their base in base_norm, and those without a base; all
    subjects of a matrix must be among the rows.
    """
    if name != "matrices" or "base_norm" in table.column_names:
        return table
    bases = {}
    for *key, subject, norm in _python_rows(table, *KEY, "subject", "frobenius_norm"):
        if subject == "base":
            bases[tuple(key)] = norm
    norms = [bases.get(key) for key in _python_rows(table, *KEY)]
    is_delta = pc.equal(table["subject"], "delta")
    is_tuned = pc.equal(table["subject"], "tuned")
    has_no_base = pc.is_null(table["base_tensor"])
    is_needed = pc.or_(is_delta, pc.and_(is_tuned, has_no_base))
    base_norms = pa.array(norms, pa.float64(), from_pandas=True)
    return table.append_column("base_norm", base_norms).filter(is_needed)


def _python_rows(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row, of which few are Python objects at a time."""
    for batch in table.select(names).to_batches(max_chunksize=PIECE):
        columns = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)


def read_rows(tables: Mapping[str, pa.Table]) -> Rows:
    """The rows on which figures rest. tables: matrices, tensors and files, or what is `needed`."""
    matrices = needed("matrices", tables["matrices"])
    is_delta = pc.equal(matrices["subject"], "delta")
    deltas = columns_of(matrices.filter(is_delta))
    tensors = columns_of(tables["tensors"])
    tensors = tensors.added(was_compared=has_compared(tensors))
    layers = compared_layers(tensors)
    numbers = {layer: number for number, layer in enumerate(layers)}
    at = [numbers.get(layer, -1) for layer in deltas.each("component", "layer")]
    measured = deltas.added(
        energy=deltas["frobenius_norm"] ** 2,
        base_energy=deltas["base_norm"] ** 2,
        participation_share=deltas["participation_ratio"] / deltas["null_participation_ratio"],
        at=np.array(at, dtype=np.intp),
    )
    is_rounded = only_rounded(measured.each(*OF_SIDES), tensors.each(*OF_CASTS))
    others = matrices.filter(pc.invert(is_delta))
    return Rows(
        measured=measured,
        deltas=measured.where(~is_rounded),
        rounded=measured.where(is_rounded),
        without_base=columns_of(others),
        tensors=tensors,
        files=tables["files"].to_pylist(),
        layers=layers,
    )
