"""Whether a quantised copy is what its format's own quantiser makes of an original."""

from __future__ import annotations

from functools import partial

import numpy as np

from shadow.extras import is_installed
from shadow.spectra.format_noise import Agree, Floats

# types of which the `gguf` package has a quantiser; ggml's makes the same bits
GGML = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")


def agreement(stored: str) -> Agree | None:
    """What counts the entries that the own quantiser of a format makes; None where it has none."""
    if stored in GGML and is_installed("gguf"):
        return partial(_as_ggml, stored)
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
