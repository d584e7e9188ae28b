"""Tensor names (and config.json) -> the matrices in each tensor and their places in the model.

Differences between model families are data (`registry/names.yaml`, read by `shadow.places.names`),
applied here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shadow.places.names import (
    Config,
    Facts,
    Fused,
    Reading,
    Shape,
    name_rules,
    numbered,
    read,
    weight_stem,
)

if TYPE_CHECKING:
    from torch import Tensor


Block = tuple[str, str, int | None]  # component, stack and number of a block
Upright = dict[tuple[str, str], bool]  # by component and stack: experts are (experts, out, in)
# modules whose tensors are not read as matrices of a known kind
VECTORS = ("norm", "bias", "other")
MAX_EXPERTS = 4096  # in one tensor; DeepSeek-V3 has 256 a layer. More is a hostile shape


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a matrix in a model, which must agree for two checkpoints to be compared."""

    component: str  # from the closed list of `names.yaml`
    layer: int | None  # number of the block, from 0; None outside the layers
    module: str  # from the closed list of `names.yaml`
    expert: int | None = None  # from 0
    # distinguishes what shares a module (norms, biases, other) and what must not be compared
    # although it does: the blocks of a second stack, rows in another order
    slot: str = ""

    @property
    def is_unplaced(self) -> bool:
        """True if it stands for one tensor alone because others have the same place."""
        return self.slot.startswith("\0")


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix inside a tensor, and how to view it as `(out, in)`."""

    place: Place
    transposed: bool = False  # stored `(in, out)`
    # (start, stop) of this part's outputs in each group; None for all
    rows: tuple[int, int] | None = None
    groups: int = 1  # of equal size, into which the outputs are divided
    # matrices that the tensor holds along its first dimension, of which this is place.expert's; 0
    # where it holds one
    experts: int = 0

    def shape(self, stored: Shape) -> tuple[int, int]:
        """(rows, cols) of this matrix in a tensor of that shape; other dimensions are
        columns.
        """
        rows, cols = self._whole(stored)
        if self.transposed:
            rows, cols = cols, rows
        if self.rows is None:
            return rows, cols
        start, stop = self.rows
        return self.groups * (stop - start), cols

    def _whole(self, stored: Shape) -> tuple[int, int]:
        """(rows, cols) as stored, of one expert of a stack."""
        rows, *cols = stored[1:] if self.experts else stored or (1,)
        return rows, math.prod(cols)

    def view(self, tensor: Tensor) -> Tensor:
        """This matrix as a view, (rows, cols), or (groups, rows / groups, cols) if split."""
        rows, cols = self._whole(tuple(tensor.shape))
        if self.experts:
            tensor = tensor[self.place.expert]
        matrix = tensor.reshape(rows, cols)
        if self.transposed:
            matrix = matrix.T
        if self.rows is None:
            return matrix
        start, stop = self.rows
        if self.groups == 1:
            return matrix[start:stop]
        grouped = matrix.view(self.groups, matrix.shape[0] // self.groups, matrix.shape[1])
        if stop - start == 1:
            return grouped[:, start]
        return grouped[:, start:stop]


def place_tensors(shapes: Mapping[str, Shape], config: Config) -> dict[str, tuple[Part, ...]]:
    """The matrices in every tensor of a checkpoint, at least one each, by tensor name.

    If two tensors would have the same place, both fall back to their own names, so that neither is
    lost.
    """
    rules = name_rules()
    named = {name: numbered(name, rules) for name in shapes}
    facts = Facts(config, {text for text, _, _ in named.values()})
    readings = {text: read(text, facts) for text in {text for text, _, _ in named.values()}}
    for name, (text, _, _) in named.items():  # without a config, GPT-2 has (n, 3n) projections
        shape = shapes[name]
        fits = len(shape) == 2 and shape[1] == 3 * shape[0]
        if fits and rules.conv1d.fullmatch(readings[text].rest):
            facts.found_type = rules.conv1d_type
    layers = _layer_numbers((readings[text], block) for text, block, _ in named.values())
    upright = _upright_stacks(
        facts, ((readings[text], block, shapes[name]) for name, (text, block, _) in named.items())
    )
    known: dict[tuple[object, ...], tuple[Part, ...]] = {}
    parts: dict[str, tuple[Part, ...]] = {}
    for name, (text, block, expert) in named.items():
        reading = readings[text]
        key = text, shapes[name], expert is None
        if key not in known:
            splitter = _Splitter(facts, reading, upright)
            known[key] = tuple(splitter.parts(shapes[name], alone=expert is None))
        at = reading.component, reading.stack, block if reading.in_block else None
        layer, stack = layers.get(at, (None, ""))
        if reading.stack:
            stack += f"{reading.stack}:"
        parts[name] = tuple(
            replace(
                part,
                place=Place(
                    reading.component,
                    layer,
                    part.place.module,
                    expert if part.place.expert is None else part.place.expert,
                    stack + part.place.slot,
                ),
            )
            for part in known[key]
        )
    taken = Counter(part.place for of_tensor in parts.values() for part in of_tensor)
    if len(taken) < taken.total():
        for name, of_tensor in parts.items():
            if any(taken[part.place] > 1 for part in of_tensor):
                # the whole of the tensor, under its own name: no name holds a NUL, so that this
                # slot meets no other
                part = of_tensor[0]
                place = replace(part.place, module="other", slot=f"\0{name}")
                parts[name] = (Part(place, transposed=part.transposed and not part.experts),)
    return parts


def _layer_numbers(
    readings: Iterable[tuple[Reading, int | None]],
) -> dict[Block, tuple[int | None, str]]:
    """Number the blocks of each component, so that no two share a number. Returns, by component,
    stack and block, the layer and a prefix for slots.

    A second stack (a multi-token predictor, a tower's global blocks) continues after the first. So
    do blocks that only look at another component (Llama 3.2 Vision puts them between those of the
    text model, which keep their numbers). Files in which the embedding is block 0 of the model
    count their blocks from 1.
    """
    kinds: dict[tuple[str, str], dict[int, set[str]]] = {}
    for reading, block in readings:
        if block is not None and reading.in_block:
            of_stack = kinds.setdefault((reading.component, reading.stack), {})
            of_stack.setdefault(block, set()).add(reading.module.partition(".")[0])
    numbers: dict[Block, tuple[int | None, str]] = {}
    following: dict[str, int] = {}
    for key in sorted(kinds):  # the main stack's name is empty, so it is first
        component = key[0]
        blocks = kinds[key]
        looking = {block for block, of in blocks.items() if "cross_attn" in of and "attn" not in of}
        crossing = sorted(looking) if any("attn" in of for of in blocks.values()) else []
        is_from_1 = key == ("language", "") and "embed" in blocks.get(0, ())
        start = following.get(component, 0) - is_from_1
        plain = blocks.keys() - set(crossing)
        for block in plain:
            layer = start + block - bisect_left(crossing, block)
            numbers[*key, block] = layer if layer >= 0 else None, ""
        last = max(plain, default=-1)
        following[component] = start + last - bisect_left(crossing, last) + 1
        for index, block in enumerate(crossing):
            numbers[*key, block] = following[component] + index, "cross:"
        following[component] += len(crossing)
    return numbers


def _upright_stacks(facts: Facts, readings: Iterable[tuple[Reading, int | None, Shape]]) -> Upright:
    """By stack of blocks, True if its stacked experts are (experts, out, in), if shapes
    show it.

    A gate_up of (2f, d) beside a down of (d, f) is upright, (d, 2f) beside (f, d) is not, and no
    shapes are both.
    """
    seen: dict[Block, dict[str, Shape]] = {}
    for reading, block, shape in readings:
        if len(shape) == 3 and reading.module.startswith("experts."):
            key = reading.component, reading.stack, block
            seen.setdefault(key, {})[reading.module] = shape[1:]
    upright: Upright = {}
    for (component, stack, _), shapes in seen.items():
        hidden = facts.count("hidden", component)
        down = shapes.get("experts.down")
        answers = [
            (first == hidden) == (module == "experts.down")
            for module, (first, second) in shapes.items()
            if hidden is not None and (first == hidden) != (second == hidden)
        ]
        if down:
            gate_up = shapes.get("experts.gate_up")
            if gate_up == (2 * down[1], down[0]):
                answers = [True]
            elif gate_up == (down[1], 2 * down[0]):
                answers = [False]
        if answers:
            upright.setdefault((component, stack), answers[0])
    return upright


class _Splitter:
    """Splits tensors of one name into parts, whatever their block.

    upright: whether the stacks of experts are (experts, out, in).
    """

    def __init__(self, facts: Facts, reading: Reading, upright: Upright) -> None:
        self._facts = facts
        self._reading = reading
        self._component = reading.component
        self._upright = upright

    def parts(self, shape: Shape, *, alone: bool) -> Iterator[Part]:
        """Split a tensor into parts, without a layer. alone: its name has no expert number."""
        reading = self._reading
        rest = reading.rest
        rules = self._facts.rules
        of_experts = reading.module.startswith(("experts.", "shared."))
        is_stack = of_experts or "experts" in rest.split(".")
        experts = shape[0] if alone and len(shape) == 3 and is_stack else 0
        if reading.module in VECTORS:
            yield self._part(reading.module, reading.slot)
        elif reading.module and len(shape) >= 2:
            yield from self._matrices(shape, experts)
        elif not reading.module and rest.endswith((".bias", "_bias")):
            yield from self._biases(shape)
        elif 0 < experts <= MAX_EXPERTS:
            whole = self._part("other", rest, experts=experts)
            yield from (_of_expert(whole, expert) for expert in range(experts))
        elif len(shape) < 2 and rules.norm.search(weight_stem(rest).lower()):
            yield self._part("norm", rest)
        else:
            yield self._part("other", rest)

    def _part(self, module: str, slot: str, **how: Any) -> Part:
        return Part(Place(self._component, None, module, slot=slot), **how)

    def _biases(self, shape: Shape) -> Iterator[Part]:
        """Biases: the bias of a matrix has its module as slot, and is split like it."""
        owner = self._reading.rest[: -len(".bias")]
        owners = self._facts.rules.suffixes[self._component].match(owner)
        if owners is None:
            yield self._part("bias", self._reading.rest)
            return
        whole = self._part(*owners)
        parts = self._split(whole, owner, (shape[0], None)) if len(shape) == 1 else None
        for part in parts or (whole,):
            slot = _full_name(part.place)
            yield replace(part, place=replace(part.place, module="bias", slot=slot))

    def _matrices(self, shape: Shape, experts: int) -> Iterator[Part]:
        facts = self._facts
        component = self._component
        rest = self._reading.rest
        transposed = any(rule.hold(facts, component, rest) for rule in facts.rules.transposed)
        if experts:
            transposed = not self._upright.get((component, self._reading.stack), not transposed)
        if experts > MAX_EXPERTS:
            experts = 0
        whole = self._part(
            self._reading.module, self._reading.slot, transposed=transposed, experts=experts
        )
        # plain weights, not integers that pack several
        is_plain = rest.endswith(".weight") or weight_stem(rest) == rest
        parts: tuple[Part, ...] = (whole,)
        if is_plain:
            parts = self._split(whole, rest, whole.shape(shape)) or parts
        if not experts:
            yield from parts
        for expert in range(experts):
            yield from (_of_expert(part, expert) for part in parts)

    def _split(
        self, whole: Part, rest: str, size: tuple[int, int | None]
    ) -> tuple[Part, ...] | None:
        """Split a fused module of (rows, cols); None if too little is known."""
        name = _full_name(whole.place)
        rows, cols = size
        rules = self._facts.rules
        component = self._component
        for order in rules.rows:
            if order.module == name and order.conditions.hold(self._facts, component, rest):
                break
        else:
            return None
        fused = rules.fused.get(name, Fused((), ()))
        into = order.into or fused.into
        sizes = order.sizes or fused.sizes
        if not into:
            return None
        shares = [self._number(share) for share in sizes]
        groups = rows // len(into) if order.groups == "each" else self._number(order.groups)
        if 0 in shares or groups < 1 or rows < 1 or rows % groups:
            return None
        each = rows // groups
        total = sum(shares)
        if any(each * share % total or each * share < total for share in shares):
            return None
        if order.square and cols is not None and rows != len(into) * cols:
            return None
        if "heads" in sizes and rows // total != self._head_size(rows // total):
            return None
        ends = [each * sum(shares[:at]) // total for at in range(len(shares) + 1)]
        return tuple(
            replace(
                whole,
                place=replace(whole.place, module=module, slot=slot),
                rows=(start, stop),
                groups=groups,
            )
            for (module, slot), start, stop in zip(into, ends[:-1], ends[1:], strict=True)
        )

    def _number(self, number: int | str) -> int:
        """A number, or the count of this name; 0 if the config lacks it."""
        if isinstance(number, int):
            return number
        return self._facts.count(number, self._component) or 0

    def _head_size(self, rows: int) -> int:
        """The rows of a head by the config, to check its head counts; rows without them."""
        if size := self._number("head_size"):
            return size
        hidden = self._number("hidden")
        heads = self._number("heads")
        if hidden and heads:
            return hidden // heads
        return rows


def _of_expert(part: Part, expert: int) -> Part:
    return replace(part, place=replace(part.place, expert=expert))


def _full_name(place: Place) -> str:
    """The module and the slot as `names.yaml` writes them."""
    if place.slot:
        return f"{place.module}/{place.slot}"
    return place.module
