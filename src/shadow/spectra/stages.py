"""The stages of one matrix, in one pass over all of them: the inner products of the steps between.

Formed block by block in float64. In memory are two blocks of weights, and one for each step; blocks
are the smaller, the more steps there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shadow.spectra.lazy import Matrix
from shadow.spectra.line import StepProducts
from shadow.spectra.spectrum import BLOCK, Workspace, blocks, read_block


def step_products(stages: Sequence[Matrix], space: Workspace) -> StepProducts:
    """Of two stages or more of one shape, in their order."""
    steps = len(stages) - 1
    inner, sums = np.zeros((steps, steps)), np.zeros(steps)
    for index, _ in blocks(stages[0], BLOCK // steps):
        before = read_block(stages[0], index, "base", torch.float64, space)
        moves = space.take("steps", (steps, before.numel()), torch.float64)
        for number, stage in enumerate(stages[1:]):
            name = "base" if number % 2 else "tuned"
            after = read_block(stage, index, name, torch.float64, space)
            torch.sub(after.view(-1), before.view(-1), out=moves[number])
            before = after
        inner += (moves @ moves.T).numpy()
        sums += moves.sum(1).numpy()
    by_chance = np.outer(sums, sums) / max(1, stages[0].numel())
    np.fill_diagonal(by_chance, np.diag(inner))
    return StepProducts(inner, by_chance)
