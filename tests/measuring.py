"""Measurements for tests: a matrix pair as an audit does it, the pair of two folders, and what
audits wrote.
"""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import planted
import pyarrow.parquet as pq
import torch

from shadow.checkpoints.decoders import packed_tensor
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.run.runtime import Progress
from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, working_dtype
from shadow.targets.families import Pair, given_pair
from shadow.targets.references import parse_reference

BF16 = ("BF16", "BF16")


def measure(base, tuned, dtypes=BF16, method=None, key="k", **means):
    """`measure_pair` with a workspace of its own; means: `remember` or `grams`."""
    space = Workspace()
    total = summed(Sides(base, tuned, working_dtype(*dtypes), space), dtypes)
    setting = Means(method or Method(), space, **means)
    return measure_pair(base, tuned, dtypes, total, setting, key)


class Piece:
    """A tensor in memory that is asked for as one of a file is."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.dtype = tensor.dtype
        self.shape = tensor.shape

    def whole(self):
        return self.tensor

    def seen(self, rearrange):
        return Piece(rearrange(self.tensor))

    def __getitem__(self, index):
        return self.tensor[index]


def scaled_floats(raw, scales, block):
    """8-bit floats (rows, cols) with a scale for each block, as `PackedTensor` reads them."""
    one, other = (TensorInfo(name, "F8_E4M3", tuple(raw.shape), "", 0, 0) for name in ("w", "s"))
    info = replace(one, packing=Packing("scaled", one, (other,), (8, *block, 0)))
    return packed_tensor(info, lambda info: Piece({"w": raw, "s": scales}[info.name]))


class StoppedError(Exception):
    """What stops an audit in a test."""


def stopped_after(count: int) -> Callable[[Progress], None]:
    """A `show` that stops the audit once so many matrices are measured."""

    def show(progress: Progress) -> None:
        if progress.done >= count:
            raise StoppedError

    return show


def pair_of(base: Path, tuned: Path) -> Pair:
    """The pair of two folders."""
    return given_pair(parse_reference(str(base)), parse_reference(str(tuned)))


def changed(content: Any, path: Sequence[str | int], value: object) -> Any:
    """What a JSON file holds with another value somewhere; without what is there, by `...`."""
    if not path:
        return value
    made = copy(content)
    if value is ...:
        del made[path[0]]
    else:
        made[path[0]] = value if len(path) == 1 else changed(content[path[0]], path[1:], value)
    return made


def planted_pair(
    folder: Path, base: planted.Tensors, tuned: planted.Tensors, config: dict | None = None
) -> Pair:
    """The pair of two checkpoints that are written below a folder."""
    sides = (("base", base), ("tuned", tuned))
    return pair_of(*(planted.write(folder / name, tensors, config) for name, tensors in sides))


def frame(folder: Path, name: str = "matrices", **equal: object) -> pd.DataFrame:
    """The rows of a table of a report whose columns have these values."""
    found = pq.read_table(folder / f"{name}.parquet").to_pandas()
    for column, value in equal.items():
        found = found[found[column] == value]
    return found.reset_index(drop=True)


def report_contents(folder: Path) -> dict[str, object]:
    """The data of every table of a report and the bytes of its summary."""
    return {
        path.name: pq.read_table(path).to_pylist()
        if path.suffix == ".parquet"
        else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def contents(output: Path) -> dict[str, object]:
    """Every report below an output folder, by its name."""
    return {
        str(folder.relative_to(output)): report_contents(folder)
        for folder in sorted(output.glob("*/*"))
        if folder.is_dir()
    }


def differences(base: Checkpoint, tuned: Checkpoint, apart: Collection[str] = ()) -> list[str]:
    """Tensors of two checkpoints that hold the same weights, and yet do not line up."""
    pairs, skipped = pair_checkpoints(base, tuned, Filter())
    found = [
        f"{s.side} {s.info.name} {s.reason} {s.detail}" for s in skipped if s.info.name not in apart
    ]
    for pair in pairs:
        if pair.base is None:
            found.append(f"{pair.tuned.info.name} has no base")
            continue
        sides = ((pair.base, base), (pair.tuned, tuned))
        views = [operand.part.view(side.tensor(operand.info).whole()) for operand, side in sides]
        views = [view[: pair.rows] if view.ndim == 2 and pair.is_matrix else view for view in views]
        one, other = (view.flatten() for view in views)
        if not torch.equal(one, other):
            found.append(
                f"{pair.base.info.name} differs from {pair.tuned.info.name} as {pair.place}"
            )
    return found
