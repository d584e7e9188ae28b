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
        rows = self.groups * (stop - start)
        return rows, cols

    def _whole(self, stored: Shape) -> tuple[int, int]:
        """(rows, cols) as stored, of one expert of a stack."""
        if self.experts:
            stored = stored[1:]
        rows, *cols = stored or (1,)
        return rows, math.prod(cols)

    def view(self, tensor: Tensor) -> Tensor:
        """This matrix as a view, (rows, cols), or (groups, rows / groups, cols) if split."""
        stored = tuple(tensor.shape)
        rows, cols = self._whole(stored)
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
        outputs, inputs = matrix.shape
        each = outputs // self.groups
        grouped = matrix.view(self.groups, each, inputs)
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
    texts = {text for text, _, _ in named.values()}
    facts = Facts(config, texts)
    readings = {text: read(text, facts) for text in texts}
    shaped: list[tuple[Reading, int | None, Shape]] = []
    for name, (text, block, _) in named.items():
        shape = shapes[name]
        reading = readings[text]
        shaped.append((reading, block, shape))
        # without a config, GPT-2 has (n, 3n) projections
        inputs, *outputs = shape or (0,)
        is_fused = outputs == [3 * inputs]
        if is_fused and rules.conv1d.fullmatch(reading.rest):
            facts.found_type = rules.conv1d_type
    layers = _layer_numbers(shaped)
    upright = _upright_stacks(facts, shaped)
    known: dict[tuple[object, ...], tuple[Part, ...]] = {}
    parts: dict[str, tuple[Part, ...]] = {}
    for name, (text, block, expert) in named.items():
        reading = readings[text]
        shape = shapes[name]
        is_numbered = expert is not None
        key = (text, shape, is_numbered)
        if key not in known:
            splitter = _Splitter(facts, reading, upright)
            parts_of_name = splitter.parts(shape, is_numbered=is_numbered)
            known[key] = tuple(parts_of_name)
        number = block if reading.in_block else None
        position = (reading.component, reading.stack, number)
        layer, prefix = layers.get(position, (None, ""))
        if reading.stack:
            prefix += f"{reading.stack}:"
        of_tensor = []
        for part in known[key]:
            inner = part.place
            own_expert = inner.expert
            if own_expert is None:
                own_expert = expert
            slot = prefix + inner.slot
            place = Place(inner.component, layer, inner.module, own_expert, slot)
            own_part = replace(part, place=place)
            of_tensor.append(own_part)
        parts[name] = tuple(of_tensor)
    taken = Counter[Place]()
    for own in parts.values():
        taken.update(part.place for part in own)
    for name, own in parts.items():
        if any(taken[part.place] > 1 for part in own):
            # the whole of the tensor, under its own name: no name holds a NUL, so that this
            # slot meets no other
            first = own[0]
            place = replace(first.place, module="other", slot=f"\0{name}")
            is_turned = first.transposed and not first.experts
            whole = Part(place, transposed=is_turned)
            parts[name] = (whole,)
    return parts


def _layer_numbers(
    readings: Iterable[tuple[Reading, int | None, Shape]],
) -> dict[Block, tuple[int | None, str]]:
    """Number the blocks of each component, so that no two share a number. Returns, by component,
    stack and block, the layer and a prefix for slots.

    A second stack (a multi-token predictor, a tower's global blocks) continues after the first. So
    do blocks that only look at another component (Llama 3.2 Vision puts them between those of the
    text model, which keep their numbers). Files in which the embedding is block 0 of the model
    count their blocks from 1.
    """
    kinds: dict[tuple[str, str], dict[int, set[str]]] = {}
    for reading, block, _ in readings:
        if block is not None and reading.in_block:
            stack = (reading.component, reading.stack)
            kind, _, _ = reading.module.partition(".")
            of_stack = kinds.setdefault(stack, {})
            of_block = of_stack.setdefault(block, set())
            of_block.add(kind)
    numbers: dict[Block, tuple[int | None, str]] = {}
    following: dict[str, int] = {}
    for key in sorted(kinds):  # the main stack's name is empty, so it is first
        component = key[0]
        blocks = kinds[key]
        attending = set()
        looking = set()
        for block, kinds_of_block in blocks.items():
            if "attn" in kinds_of_block:
                attending.add(block)
            elif "cross_attn" in kinds_of_block:
                looking.add(block)
        crossing = sorted(looking) if attending else []
        is_main = key == ("language", "")
        start = following.get(component, 0)
        if is_main and "embed" in blocks.get(0, ()):
            start -= 1
        plain = blocks.keys() - set(crossing)
        for block in plain:
            layer = start + block - bisect_left(crossing, block)
            numbers[*key, block] = (layer if layer >= 0 else None, "")
        last = max(plain, default=-1)
        layer = start + last - bisect_left(crossing, last)
        for block in crossing:
            layer += 1
            numbers[*key, block] = (layer, "cross:")
        following[component] = layer + 1
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
            key = (reading.component, reading.stack, block)
            of_block = seen.setdefault(key, {})
            of_block[reading.module] = shape[1:]
    upright: Upright = {}
    for (component, stack, _), shapes in seen.items():
        hidden = facts.count("hidden", component)
        down = shapes.get("experts.down")
        gate_up = shapes.get("experts.gate_up")
        answers = []
        for module, (first, second) in shapes.items():
            is_first = first == hidden
            is_second = second == hidden
            if hidden is not None and is_first != is_second:
                is_down = module == "experts.down"
                answers.append(is_first == is_down)
        if down and gate_up:
            outputs, inputs = down
            if gate_up == (2 * inputs, outputs):
                answers = [True]
            elif gate_up == (inputs, 2 * outputs):
                answers = [False]
        if answers:
            own = (component, stack)
            upright.setdefault(own, answers[0])
    return upright


@dataclass(frozen=True)
class _Splitter:
    """Splits tensors of one name into parts, whatever their block.

    upright: whether the stacks of experts are (experts, out, in).
    """

    facts: Facts
    reading: Reading
    upright: Upright

    def parts(self, shape: Shape, *, is_numbered: bool) -> Iterator[Part]:
        """Split a tensor into parts, without a layer. is_numbered: its name has an expert."""
        reading = self.reading
        rest = reading.rest
        norm = self.facts.rules.norm
        is_stack = reading.module.startswith(("experts.", "shared."))
        if "experts" in rest.split("."):
            is_stack = True
        experts = 0
        if is_stack and not is_numbered and len(shape) == 3:
            experts = shape[0]
        if reading.module in VECTORS:
            yield self._part(reading.module, reading.slot)
        elif reading.module and len(shape) >= 2:
            yield from self._matrices(shape, experts)
        elif not reading.module and rest.endswith((".bias", "_bias")):
            yield from self._biases(shape)
        elif 0 < experts <= MAX_EXPERTS:
            whole = self._part("other", rest, experts=experts)
            for expert in range(experts):
                yield _of_expert(whole, expert)
        else:
            stem = weight_stem(rest).lower()
            is_norm = len(shape) < 2 and norm.search(stem)
            yield self._part("norm" if is_norm else "other", rest)

    def _part(self, module: str, slot: str, **how: Any) -> Part:
        place = Place(self.reading.component, None, module, slot=slot)
        return Part(place, **how)

    def _biases(self, shape: Shape) -> Iterator[Part]:
        """Biases: the bias of a matrix has its module as slot, and is split like it."""
        rest = self.reading.rest
        owner = rest[: -len(".bias")]
        suffixes = self.facts.rules.suffixes
        owners = suffixes[self.reading.component].match(owner)
        if owners is None:
            yield self._part("bias", rest)
            return
        whole = self._part(*owners)
        parts = None
        if len(shape) == 1:
            parts = self._split(whole, owner, (shape[0], None))
        for part in parts or (whole,):
            slot = _full_name(part.place)
            place = replace(part.place, module="bias", slot=slot)
            yield replace(part, place=place)

    def _matrices(self, shape: Shape, experts: int) -> Iterator[Part]:
        facts = self.facts
        component = self.reading.component
        reading = self.reading
        rest = reading.rest
        rules = facts.rules.transposed
        transposed = any(rule.hold(facts, component, rest) for rule in rules)
        if experts:
            stack = (component, reading.stack)
            is_upright = self.upright.get(stack, not transposed)
            transposed = not is_upright
        if experts > MAX_EXPERTS:
            experts = 0
        whole = self._part(
            reading.module,
            reading.slot,
            transposed=transposed,
            experts=experts,
        )
        # plain weights, not integers that pack several
        is_plain = rest.endswith(".weight") or weight_stem(rest) == rest
        parts: tuple[Part, ...] = (whole,)
        if is_plain:
            size = whole.shape(shape)
            parts = self._split(whole, rest, size) or parts
        if not experts:
            yield from parts
        for expert in range(experts):
            for part in parts:
                yield _of_expert(part, expert)

    def _split(
        self, whole: Part, rest: str, size: tuple[int, int | None]
    ) -> tuple[Part, ...] | None:
        """Split a fused module of (rows, cols); None if too little is known."""
        name = _full_name(whole.place)
        rows, cols = size
        rules = self.facts.rules
        component = self.reading.component
        for order in rules.rows:
            if order.module != name:
                continue
            if order.conditions.hold(self.facts, component, rest):
                break
        else:
            return None
        into = order.into
        sizes = order.sizes
        fused = rules.fused.get(name)
        if fused is not None:
            into = into or fused.into
            sizes = sizes or fused.sizes
        if not into or not sizes:
            return None
        shares = [self._number(share) for share in sizes]
        groups = rows // len(into)
        if order.groups != "each":
            groups = self._number(order.groups)
        if 0 in shares or groups < 1 or rows < 1:
            return None
        each, more = divmod(rows, groups)
        if more:
            return None
        total = sum(shares)
        if order.square and cols is not None and rows != len(into) * cols:
            return None
        of_head = rows // total
        if "heads" in sizes and of_head != self._head_size(of_head):
            return None
        parts = []
        start = 0
        for (module, slot), share in zip(into, shares, strict=True):
            outputs, more = divmod(each * share, total)
            if more or not outputs:
                return None
            stop = start + outputs
            place = replace(whole.place, module=module, slot=slot)
            span = (start, stop)
            part = replace(whole, place=place, rows=span, groups=groups)
            parts.append(part)
            start = stop
        return tuple(parts)

    def _number(self, number: int | str) -> int:
        """A number, or the count of this name; 0 if the config lacks it."""
        if isinstance(number, int):
            return number
        count = self.facts.count(number, self.reading.component)
        return count or 0

    def _head_size(self, rows: int) -> int:
        """The rows of a head by the config, to check its head counts; rows without them."""
        size = self._number("head_size")
        if size:
            return size
        hidden = self._number("hidden")
        heads = self._number("heads")
        if hidden and heads:
            return hidden // heads
        return rows


def _of_expert(part: Part, expert: int) -> Part:
    place = replace(part.place, expert=expert)
    return replace(part, place=place)


def _full_name(place: Place) -> str:
    """The module and the slot as `names.yaml` writes them."""
    if place.slot:
        return f"{place.module}/{place.slot}"
    return place.module
