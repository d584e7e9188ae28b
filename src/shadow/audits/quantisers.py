"""Whether a quantised copy is what its format's own quantiser makes of an original."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from shadow.extras import is_installed
from shadow.spectra.format_noise import Agree, Floats
from shadow.spectra.merging import BLOCK
from shadow.spectra.merging import quantised as quantised_by

# types of which the `gguf` package has a quantiser; ggml's makes the same bits
GGML = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
NESTED = 0.02  # the relative error of scales that bitsandbytes quantises as well


def agreement(stored: str) -> Agree | None:
    """What counts the entries that the own quantiser of a format makes; None where it has none."""
    if stored in GGML and is_installed("gguf"):
        return partial(_as_ggml, stored)
    if stored in ("NF4", "FP4"):
        return partial(_as_bitsandbytes, stored)
    return None


def _as_ggml(stored: str, x: Floats, q: Floats) -> int | None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[stored]
    if x.shape[1] % GGML_QUANT_SIZES[kind][0]:
        return None
    with np.errstate(all="ignore"):
        # as one row, since the package takes 16 at a time
        again = dequantize(quantize(x.astype(np.float32).reshape(1, -1), kind), kind)
    return int(np.count_nonzero(again.reshape(x.shape) == q))


def _as_bitsandbytes(stored: str, x: Floats, q: Floats) -> int | None:
    """Entries of the same level, in blocks whose scale is that of the original: it may have been
    quantised itself.
    """
    again = quantised_by(torch.from_numpy(x), stored)
    if again is None:
        return None
    mine, theirs = (part.reshape(-1, BLOCK) for part in (again.numpy(), q))
    scales = [np.abs(part).max(axis=1, keepdims=True) for part in (mine, theirs)]
    near = np.abs(scales[1] - scales[0]) <= NESTED * scales[0]
    levels = [
        part / np.where(scale > 0, scale, 1)
        for part, scale in zip((mine, theirs), scales, strict=True)
    ]
    return int(np.count_nonzero(near & (np.abs(levels[0] - levels[1]) < 1e-3)))
