"""A matrix pair measured as an audit does it."""

from __future__ import annotations

from dataclasses import replace

from shadow.checkpoints.decoders import packed_tensor
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.spectra.delta import Means, Method, measure_pair, summed, working_dtype
from shadow.spectra.spectrum import Sides, Workspace

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
    info = replace(one, packing=Packing("scaled", one, (other,), block))
    return packed_tensor(info, lambda info: Piece({"w": raw, "s": scales}[info.name]))
