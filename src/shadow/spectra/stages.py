"""The stages of one matrix, in one pass over all of them: the inner products of the steps between.

Formed in float64, part by part. In memory are two parts of weights, and one for each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shadow.spectra.lazy import Matrix
from shadow.spectra.line import StepProducts
from shadow.spectra.spectrum import Workspace, read_block, tiles

PART = 1 << 16  # entries of a stage that are read at a time, so that all stages of them stay near


def step_products(stages: Sequence[Matrix], space: Workspace) -> StepProducts:
    """Of two stages or more of one shape, in their order."""
    steps = len(stages) - 1
    inner, sums = np.zeros((steps, steps)), np.zeros(steps)
    for index, _ in tiles(stages[0], PART):
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
