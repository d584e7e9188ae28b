"""Updates of stacked experts: the factors of all experts of a layer in two matrices."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.weight_files import Adapter, Factors
from shadow.places.architecture import Part, Place, place_tensors
from shadow.run.aligned import shapes_of
from shadow.spectra.relations.merging import Update

STACK = re.compile(r"(?P<stack>.+\bexperts)(?:\.base_layer)*")
GATE_UP = ".gate_up_proj"
DOWN = ".down_proj"
Shapes = dict[Place, tuple[int, int]]
Layer = tuple[str, int | None]  # component and number


@dataclass(frozen=True)
class Stacked:
    """The update of a matrix of one expert. Columns of B are packed rank by rank, as peft reads
    them, or expert by expert, as others write them; rows of A are always expert by expert.
    """

    a: TensorInfo  # (experts * rank, in)
    b: TensorInfo  # (out, experts * rank)
    part: Part  # of the outputs of an expert, such as the gate of gate_up_proj
    experts: int
    scale: float
    swapped: bool  # whether A is of the outputs, as in peft before 0.19

    def _factors(self, adapter: Checkpoint, *, by_rank: bool) -> tuple[Tensor, Tensor]:
        """Left (out, experts * rank) and right (experts * rank, in), expert by expert."""
        right = adapter.tensor(self.a).whole()
        left = adapter.tensor(self.b).whole()
        if by_rank:
            split = left.reshape(len(left), -1, self.experts)
            left = split.transpose(1, 2).reshape(left.shape)
        if self.swapped:
            left, right = right.T, left.T
        outputs = replace(self.part, transposed=False, experts=0)
        return outputs.view(left).reshape(-1, left.shape[1]), right

    def update(self, adapter: Checkpoint, *, by_rank: bool, expert: int | None = None) -> Update:
        """Its update, or that of another expert."""
        left, right = self._factors(adapter, by_rank=by_rank)
        rank = left.shape[1] // self.experts
        if expert is None:
            expert = self.part.place.expert
        assert expert is not None, "of a stack"
        start = expert * rank
        own = slice(start, start + rank)
        return Update(
            left=left[:, own],
            right=right[own],
            scale=self.scale,
            stored=self.b.dtype,
            is_cast=True,
        )

    def likest(self, adapter: Checkpoint, change: Tensor, *, by_rank: bool) -> int:
        """The expert whose update is most like a change of this matrix, (out, in)."""
        left, right = self._factors(adapter, by_rank=by_rank)
        images = change @ right.double().T
        products = (left.double() * images).sum(0)  # of each column with its row
        of_experts = products.reshape(self.experts, -1).sum(1)
        return int(of_experts.argmax())


def stacked_updates(
    adapter: Adapter, factors: dict[str, Factors], base: Checkpoint
) -> tuple[dict[Place, Stacked], set[str]]:
    """The updates of stacked experts of a base by place, and the modules that hold them.

    Names do not say which parameter a module updates: shapes do.
    """
    layers = _experts_by_layer(base)
    updates: dict[Place, Stacked] = {}
    modules: set[str] = set()
    for module, (b, a, transposed) in factors.items():
        match = STACK.fullmatch(module)
        if match is None or transposed:
            continue
        stack = match["stack"]
        example = stack + DOWN
        parts = place_tensors({example: (1, 2, 2)}, base.config)[example]
        place = parts[0].place
        known = layers.get((place.component, place.layer))
        if not known:
            continue
        last = max(place.expert or 0 for place in known)
        experts = last + 1
        rows, cols = a.shape
        rank, rest = divmod(rows, experts)
        if rest:
            continue
        sides = (b.shape[0], cols)
        for matrices, swapped in _readings(stack, experts, sides, known, base):
            scale = adapter.scaling(module, rank)
            for part in matrices:
                updates[part.place] = Stacked(
                    a=a, b=b, part=part, experts=experts, scale=scale, swapped=swapped
                )
            modules.add(module)
            break
    return updates, modules


def _experts_by_layer(base: Checkpoint) -> dict[Layer, Shapes]:
    """The shapes of the matrices of experts, by layer and place."""
    layers = defaultdict[Layer, Shapes](dict)
    for place, shape in shapes_of(base).items():
        if place.expert is not None:
            layer = layers[place.component, place.layer]
            layer[place] = shape
    return layers


def _readings(
    stack: str, experts: int, sides: tuple[int, int], known: Shapes, base: Checkpoint
) -> Iterator[tuple[Sequence[Part], bool]]:
    """Yield the matrices that two factors can be of, and whether the sides are swapped. A stack is
    (experts, out, in) or (experts, in, out), as the config says.
    """
    rows, cols = sides
    for swapped, outputs in ((False, rows), (True, cols)):
        for name in (stack + GATE_UP, stack + DOWN):
            for size in (sides, sides[::-1]):
                shape = (experts, *size)
                parts = place_tensors({name: shape}, base.config)[name]
                expected = {part.place: part.shape(shape) for part in parts}
                if not expected.items() <= known.items():
                    continue
                axis = 1 if parts[0].transposed else 0
                if outputs == size[axis]:
                    yield parts, swapped
