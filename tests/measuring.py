"""A matrix pair measured as an audit does it."""

from __future__ import annotations

import torch

from shadow.checkpoints.packed_tensors import BlockScaled, PackedTensor
from shadow.spectra.delta import Means, Method, measure_pair, working_dtype
from shadow.spectra.spectrum import Sides, Workspace
from shadow.spectra.sums import extent

BF16 = ("BF16", "BF16")


def measure(*pair, **how):
    """The measurements of base, tuned and delta: `measure_all` without the sketch."""
    return measure_all(*pair, **how)[:3]


def measure_all(base, tuned, dtypes=BF16, method=None, key="k", direction=None, **means):
    """`measure_pair` with a workspace of its own; means: `remember` or `grams`."""
    space = Workspace()
    size = extent(Sides(base, tuned, working_dtype(*dtypes), space))
    setting = Means(method or Method(), space, **means)
    return measure_pair(base, tuned, dtypes, size, setting, key, direction)


def scaled_floats(raw, scales, block):
    """8-bit floats (rows, cols) with a scale for each block, as `PackedTensor` reads them."""
    decoder = BlockScaled(raw, scales, block, len(raw))
    view = torch.empty(raw.shape, device="meta")
    return PackedTensor("F8_E4M3", decoder, view, raw.shape[1], raw.numel())
