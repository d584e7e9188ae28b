"""Updates of stacked experts: the factors of all experts of a layer in two matrices."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.weight_files import Adapter, Factors
from shadow.places.architecture import Part, Place, place_tensors
from shadow.run.aligned import parts_of
from shadow.spectra.relations.merging import Update

STACK = re.compile(r"(?P<stack>.+\bexperts)(?:\.base_layer)*")
PARAMETERS = ("gate_up_proj", "down_proj")
Shapes = dict[Place, tuple[int, int]]


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
        """Return left (out, experts * rank) and right (experts * rank, in), expert by expert."""
        a, b = (adapter.tensor(info).whole() for info in (self.a, self.b))
        if by_rank:
            b = b.reshape(len(b), -1, self.experts).transpose(1, 2).reshape(b.shape)
        left, right = (a.T, b.T) if self.swapped else (b, a)
        outputs = replace(self.part, transposed=False, experts=0)
        return outputs.view(left).reshape(-1, left.shape[1]), right

    def update(self, adapter: Checkpoint, *, by_rank: bool, expert: int | None = None) -> Update:
        """Return its update, or that of another expert."""
        left, right = self._factors(adapter, by_rank=by_rank)
        rank = left.shape[1] // self.experts
        number = self.part.place.expert if expert is None else expert
        assert number is not None, "of a stack"
        own = slice(number * rank, (number + 1) * rank)
        return Update(left[:, own], right[own], self.scale, None, self.b.dtype, is_cast=True)

    def likest(self, adapter: Checkpoint, change: Tensor, *, by_rank: bool) -> int:
        """Return the expert whose update is most like a change of this matrix, (out, in)."""
        left, right = self._factors(adapter, by_rank=by_rank)
        inner = (left.double() * (change @ right.double().T)).sum(0)
        return int(inner.reshape(self.experts, -1).sum(1).argmax())


def stacked_updates(
    adapter: Adapter, factors: dict[str, Factors], base: Checkpoint
) -> tuple[dict[Place, Stacked], set[str]]:
    """Return the updates of stacked experts of a base by place, and the modules that hold them.

    Names do not say which parameter a module updates: shapes do.
    """
    shapes: dict[tuple[str, int | None], Shapes] = defaultdict(dict)
    for name, parts in parts_of(base).items():
        for part in parts:
            if part.place.expert is not None:
                size = part.shape(base.tensors[name].shape)
                shapes[part.place.component, part.place.layer][part.place] = size
    updates: dict[Place, Stacked] = {}
    modules: set[str] = set()
    for module, (b, a, transposed) in factors.items():
        stack = STACK.fullmatch(module)
        if stack is None or transposed:
            continue
        for own, experts, swapped in _readings(stack["stack"], a, b, shapes, base):
            scale = adapter.scaling(module, a.shape[0] // experts)
            for part in own:
                updates[part.place] = Stacked(a, b, part, experts, scale, swapped)
            modules.add(module)
            break
    return updates, modules


def _readings(
    stack: str,
    a: TensorInfo,
    b: TensorInfo,
    shapes: dict[tuple[str, int | None], Shapes],
    base: Checkpoint,
) -> Iterator[tuple[tuple[Part, ...], int, bool]]:
    """Yield the matrices that two factors can be of, how many experts there are, and whether the
    sides are swapped. A stack is (experts, out, in) or (experts, in, out), as the config says.
    """
    place = place_tensors({f"{stack}.down_proj": (1, 2, 2)}, base.config)[f"{stack}.down_proj"][0]
    known = shapes.get((place.place.component, place.place.layer), {})
    experts = 1 + max((one.expert or 0 for one in known), default=-1)
    if not experts or a.shape[0] % experts:
        return
    sides = (b.shape[0], a.shape[1])
    for swapped in (False, True):
        for parameter in PARAMETERS:
            for size in (sides, sides[::-1]):
                name = f"{stack}.{parameter}"
                shape = experts, *size
                parts = place_tensors({name: shape}, base.config)[name]
                if all(known.get(part.place) == part.shape(shape) for part in parts):
                    outputs = a.shape[1] if swapped else b.shape[0]
                    if outputs == (size[1] if parts[0].transposed else size[0]):
                        yield parts, experts, swapped
