"""How often `whole` names a damaged page of 4 KB, in three models from PyPI, and false alarms."""

from collections import Counter

import numpy as np
import torch
from claim_models import real

from shadow.dtypes import FLOATS, torch_name
from shadow.spectra.pages import PAGED
from shadow.spectra.spectrum import Workspace
from shadow.spectra.sums import looked_at

PAGE, LEAST = 4096, 1 << 16
rng = np.random.default_rng(20261203)
counts: Counter[tuple[str, ...]] = Counter()
for model in ("smollm2", "bert", "dinov2"):
    for weight in real(model).values():
        for dtype in PAGED:
            W = weight.to(getattr(torch, torch_name(dtype)))
            if W.ndim < 2 or W.numel() * W.itemsize < LEAST:
                continue
            stored = FLOATS[dtype]
            bits = range(stored.mantissa_bits, stored.bits - 1)
            for kind in ("healthy", "random", "shifted", "zeros", *(f"bit {bit}" for bit in bits)):
                damaged = W.clone().reshape(len(W), -1)
                raw = damaged.view(-1).view(torch.uint8).numpy()
                at = int(rng.integers((len(raw) - PAGE) // 8)) * 8
                page = raw[at : at + PAGE]
                if kind in ("random", "zeros"):
                    page[:] = rng.integers(0, 256 if kind == "random" else 1, PAGE, np.uint8)
                elif kind == "shifted":
                    page[1:] = page[:-1].copy()
                elif kind != "healthy":
                    page.view(f"u{W.itemsize}")[:] ^= 1 << int(kind.split()[1])
                counts[dtype, kind, "of"] += 1
                counts[dtype, kind, "named"] += bool(looked_at(damaged, Workspace(), dtype).damaged)
for dtype, kind, word in counts:
    if word == "of":
        print(f"{dtype:5} {kind:8} {counts[dtype, kind, 'named']:4} of {counts[dtype, kind, 'of']}")
