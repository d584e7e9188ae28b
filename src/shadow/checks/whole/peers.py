"""`whole`: tensors beside their peers, which have the same role in other layers and experts, and
layers or experts that are copies.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from shadow.checks.whole.copies import LAYER, Copy
from shadow.checks.whole.names import are_equal, fetch
from shadow.checks.whole.part import FAULT, NOTE, FindingRule, Findings
from shadow.checks.whole.values import BUFFER, FACTOR, role
from shadow.dtypes import FLOATS

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Swept

UNIT = re.compile(r"(?P<unit>.+\.[0-9]+)\.(?P<rest>.+)")  # the innermost layer, expert or block
FEWEST = 4  # tensors of one role and shape: of fewer, none is unusual
FAR = 1e4  # how many times as large as those of peers the entries of no model are
RARE = 0.25  # at most this share of peers is unusual
BESIDE = "number {} of its layer"  # the same text in every layer, so that one note has them all
CLIPPED = 8  # entries at the largest number of F16 that come about by chance
RULES: Mapping[str, FindingRule] = {
    "far_from_peers": FindingRule(
        FAULT,
        "its entries have a size of {size:number}, those of {peers:count} others like it"
        " {usual:number}",
        "No training leaves one matrix so far from those of the same role in other layers.",
        "Check the scale that it was cast or merged with, and restore it.",
    ),
    "clipped": FindingRule(
        FAULT,
        "{entries:count} entries have the largest value of F16, 65504",
        "They were cut off when the tensor went through F16, and their true values are lost.",
        "Cast again from a checkpoint that never was F16.",
    ),
    "constant_beside_peers": FindingRule(
        NOTE,
        "every entry is {value:number}, where those of {peers:count} others like it vary",
        "A norm or bias that was never loaded has the value that it is made with.",
        "Compare it with the checkpoint before.",
    ),
    "other_dtype": FindingRule(
        NOTE,
        "stored in {dtype}, most of {peers:count} others like it in {usual}",
        "Some loaders take the dtype of the first tensor for all, and cast the others.",
        "Store all of one role in one dtype, unless the model asks for this.",
    ),
    "piece_lacking": FindingRule(
        NOTE,
        "no file has it, and {layers:count} other layers have one",
        "Where no loader was asked, a tensor that was lost in saving stays unseen otherwise.",
        "Restore it from the source, unless the layer was made without it.",
    ),
    "unit_copied": FindingRule(
        NOTE,
        "its weights are equal to those of {other}",
        "Merged stacks of layers and experts made from one MLP begin so. Otherwise a layer was"
        " written twice.",
        "Check the code that wrote it, unless it was meant.",
    ),
}


def judge_peers(findings: Findings, swept: Sequence[Swept]) -> None:
    """Report what is unlike its peers."""
    by_role: defaultdict[tuple[str, tuple[int, ...]], list[Swept]] = defaultdict(list)
    for tensor in swept:
        name = tensor.info.name
        if tensor.info.dtype not in FLOATS or BUFFER.fullmatch(name) or FACTOR.fullmatch(name):
            continue
        if tensor.extremes.clipped > CLIPPED:
            findings.add(name, "clipped", entries=tensor.extremes.clipped)
        by_role[role(name), tensor.info.shape].append(tensor)
    for (_, shape), peers in by_role.items():
        if len(peers) < FEWEST:
            continue
        if sum(size > 1 for size in shape) > 1:
            _judge_sizes(findings, peers)
        else:
            _judge_constants(findings, peers)
        _judge_dtypes(findings, peers)


def judge_pieces(findings: Findings, names: Iterable[str]) -> None:
    """Report tensors that one layer lacks and all others of its stack have, but for the first and
    the last layer, and those with a tensor that no other has instead; and lost biases.
    """
    stacks = defaultdict[str, defaultdict[int, set[str]]](lambda: defaultdict(set))
    for match in filter(None, map(LAYER.fullmatch, names)):
        stack, _, number = match["owner"].rpartition(".")
        stacks[stack][int(number)].add(role(match["rest"]))
    for stack, layers in stacks.items():
        lacking = _lost_biases(layers)
        counts = Counter[str]()
        for pieces in layers.values():
            counts.update(pieces)
        others = len(layers) - 1
        for number in sorted(layers)[1:-1]:
            own = layers[number]
            if others < FEWEST or any(counts[piece] == 1 for piece in own):
                continue
            for piece in counts.keys() - own:
                if counts[piece] == others:
                    lacking[number, piece] = others
        for (number, piece), having in sorted(lacking.items()):
            findings.add(f"{stack}.{number}.{piece}", "piece_lacking", layers=having)


def _lost_biases(layers: Mapping[int, set[str]]) -> dict[tuple[int, str], int]:
    """Find biases that some of equal layers have and others lack, as no architecture has it: of
    each, by layer and name, how many have one.
    """
    kinds: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for number, pieces in layers.items():
        kind = frozenset(piece for piece in pieces if not piece.endswith("bias"))
        kinds[kind].append(number)
    lacking: dict[tuple[int, str], int] = {}
    for kind, numbers in kinds.items():
        if len(numbers) <= FEWEST or len(kind) < FEWEST:
            continue
        counts = Counter[str]()
        for number in numbers:
            counts.update(layers[number] - kind)
        for bias, having in counts.items():
            weight = bias.removesuffix("bias") + "weight"
            if weight in kind and having > RARE * len(numbers):
                for number in numbers:
                    if bias not in layers[number]:
                        lacking[number, bias] = having
    return lacking


def _judge_sizes(findings: Findings, peers: Sequence[Swept]) -> None:
    """Report matrices that are far larger or smaller than their peers, but for zeros."""
    sizes = {
        tensor.info.name: math.sqrt(tensor.extremes.energy / tensor.extremes.entries)
        for tensor in peers
        if tensor.extremes.energy
    }
    if len(sizes) < FEWEST:
        return
    usual = median(sizes.values())
    for name, size in sizes.items():
        if not 1 / FAR < size / usual < FAR:
            findings.add(name, "far_from_peers", size=size, usual=usual, peers=len(sizes) - 1)


def _judge_constants(findings: Findings, peers: Sequence[Swept]) -> None:
    """Report vectors of one value, where most peers vary."""
    constant = [tensor for tensor in peers if tensor.extremes.is_constant]
    if len(constant) > RARE * len(peers):
        return
    for tensor in constant:
        value = tensor.extremes.first
        is_zero_weight = not value and not tensor.info.name.endswith("bias")  # a fault of values
        if tensor.extremes.entries > 1 and not is_zero_weight:
            findings.add(
                tensor.info.name, "constant_beside_peers", value=value, peers=len(peers) - 1
            )


def _judge_dtypes(findings: Findings, peers: Sequence[Swept]) -> None:
    """Report stored dtypes that few of a role have."""
    counts = Counter(tensor.info.dtype for tensor in peers)
    ((usual, _),) = counts.most_common(1)
    for tensor in peers:
        dtype = tensor.info.dtype
        if dtype != usual and counts[dtype] <= RARE * len(peers):
            findings.add(
                tensor.info.name, "other_dtype", dtype=dtype, usual=usual, peers=len(peers) - 1
            )


def find_copies(checkpoint: Checkpoint, swept: Sequence[Swept], runtime: Runtime) -> list[Copy]:
    """Find units whose matrices are equal, and equal matrices of stacks. Equal statistics of all
    propose it, and reading the largest decides.
    """
    if not swept:
        return []
    from shadow.run.scan import same_slices  # which imports torch

    units: defaultdict[str, dict[str, Swept]] = defaultdict(dict)
    stacks = Counter[tuple[str, int]]()  # by module and number of experts
    equal: defaultdict[tuple[str, int, int, int], list[str]] = defaultdict(list)
    for tensor in swept:
        info = tensor.info
        match = UNIT.fullmatch(info.name)
        is_matrix = sum(size > 1 for size in info.shape) > 1
        if match and is_matrix and info.dtype in FLOATS and not tensor.extremes.is_constant:
            units[match["unit"]][match["rest"]] = tensor
        slices = tensor.extremes.slices
        module, _, _ = info.name.rpartition(".")
        stacks[module, len(slices)] += 1
        numbers: dict[int, int] = {}
        for number, checksum in enumerate(slices):
            first = numbers.setdefault(checksum, number)
            if checksum and first != number:
                fetch(checkpoint, [info], runtime)
                if same_slices(checkpoint.tensor(info), (first, number), info.dtype):
                    equal[module, len(slices), number, first].append(info.name)
    copies: list[Copy] = []
    for (module, experts, number, first), names in equal.items():
        if 1 < len(names) == stacks[module, experts]:
            names = [module]
        other = BESIDE.format(first)
        for name in names:
            copies.append(("unit_copied", f"{name}[{number}]", other))
    first_of: dict[object, str] = {}
    for unit, tensors in sorted(units.items()):
        statistics = []
        for rest, tensor in tensors.items():
            statistics.append((rest, tensor.info.shape, tensor.extremes))
        other = first_of.setdefault(tuple(statistics), unit)
        rest = max(tensors, key=lambda rest: tensors[rest].extremes.entries)
        pair = f"{other}.{rest}", f"{unit}.{rest}"
        if other != unit and are_equal(checkpoint, pair, runtime):
            stack, _, place = other.rpartition(".")
            if LAYER.fullmatch(unit) and unit.startswith(f"{stack}."):
                other = BESIDE.format(place)
            copies.append(("unit_copied", unit, other))
    return copies
