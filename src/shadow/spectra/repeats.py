"""Whether a copy in floats repeats its values, as after a round trip through 8 bits or fewer."""

from __future__ import annotations

import torch
from torch import Tensor

from shadow.spectra.lazy import Matrix, is_stored

# Of normal values the share that repeats within 32 columns is .015 in BF16, .07 in 8 bits with a
# scale for 32 columns, more with fewer scales, .2 in 8-bit floats and .5 in 4 bits. Where columns
# of a scale do not lie together, it shows within 1,024.
BESIDE, SAMPLED, MORE, REPEATS = (32, 1024), 1 << 14, 1.05, 0.01
JITTER = 2.0**-7  # a unit of BF16: the original may be stored in fewer bits than its copy


def has_few_levels(original: Matrix, copy: Matrix) -> bool:
    """Whether values of a copy in floats that are not the original's repeat within rows as after a
    round trip through 8 bits or fewer: more than any values do in the format of the copy. Zeros are
    no levels: pruning makes them.
    """
    first, second = _sample(original), _sample(copy)
    formats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    form = next(one for one in formats if torch.equal(second.to(one).double(), second))
    jitter = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    moved = (second != first) & (second != 0)
    any_values = (first * (1 + JITTER * jitter.double())).to(form).double() * moved
    second = second * moved
    return any(
        _repeats(second, beside) > MORE * _repeats(any_values, beside) + REPEATS
        for beside in BESIDE
    )


def _sample(matrix: Matrix) -> Tensor:
    """The first rows of a matrix, in float64."""
    cols = matrix.shape[-1]
    count = max(1, SAMPLED // cols)
    if is_stored(matrix) and matrix.is_flat:  # no more of it is read
        rows = torch.empty(min(count * cols, matrix.numel()), dtype=matrix.dtype)
        matrix.fill(0, rows.view(torch.uint8).numpy().data)
    else:
        rows = matrix[(slice(0, 1),) * (matrix.ndim - 2) + (slice(0, count),)]
    return rows.reshape(-1, cols).double()


def _repeats(rows: Tensor, beside: int) -> float:
    """The share of entries that have the value of another one of so many columns."""
    beside = min(beside, rows.shape[1])
    blocks = rows[:, : rows.shape[1] // beside * beside].reshape(-1, beside).sort().values
    others = blocks != 0
    return float(((blocks.diff() == 0) & others[:, 1:]).sum()) / max(1, int(others.sum()))
