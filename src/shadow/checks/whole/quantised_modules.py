"""`whole`: modules of a quantised model, compared with its config and with each other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

from shadow.checks.whole.part import FAULT, NOTE, FindingRule, Findings
from shadow.checks.whole.values import role
from shadow.dtypes import FLOATS
from shadow.errors import UndecodableError

if TYPE_CHECKING:
    from shadow.checkpoints.expected import Expected
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor
    from shadow.checkpoints.transfers import Transfer
    from shadow.run.scan import Swept
    from shadow.spectra.sums import Extremes

# methods that pack some modules of every model
METHODS = ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "mxfp4")
# files beside config.json in which some libraries describe the quantisation
DESCRIBED = {"hf_quant_config.json", "quant_config.json", "quantize_config.json"}
# keys of a config with modules that are left as they are
LISTS = ("ignore", "modules_to_not_convert", "llm_int8_skip_modules", "ignored_layers")
SPECIAL = re.compile(r"[\\()|+?{\[]")  # what patterns have beyond parts of names
OF_FORMAT = re.compile(r".*(scale|zero_point|scaling_factor)\w*")  # of activations and caches
TARGETS = re.compile(r"re:|layers\.")  # that are names, and not classes
GROUP_SIZE = re.compile(r"'group_size': ([1-9]\d{,8})\b")
MOST_NAMES = 1000  # of a list that are read
MOST_SIZES = 100  # of groups
ROWS = 32  # of a matrix, or of each expert, that are decoded
GROUP = 16  # columns of the smallest group of any format
LOST = 0.1  # share of groups of zeros; 2 bits leave 0.034 in a matrix of a released model
FURTHEST = 1000  # times that a module may be larger or smaller than its peers
LARGEST = 30.0  # size of weights; those of released models stay below 2
OFF = 0.15  # mean of weights over their size; the median of released ones is below 0.004
RAW = 8.0  # size from which floats may be 8-bit ones without their scale

RULES: Mapping[str, FindingRule] = {
    "module_broken": FindingRule(
        FAULT,
        "its pieces are not those of a quantised module: {why}",
        "Engines refuse the module, or decode other weights.",
        "Quantise the module again, or restore its pieces from a whole copy.",
    ),
    "nothing_packed": FindingRule(
        FAULT,
        "it says that the model is quantised ({method}), but no tensor is packed",
        "Loaders make quantised modules, which plain weights do not fill.",
        "Remove quantization_config, or store the quantised weights.",
    ),
    "method_unsaid": FindingRule(
        FAULT,
        "{modules:count module is|modules are} packed, but it does not say that the model is"
        " quantised",
        "Loaders make plain modules, and take packed numbers for weights or refuse them.",
        "Restore quantization_config from the quantised original.",
    ),
    "packed_listed": FindingRule(
        FAULT,
        "packed, but config leaves it as it is",
        "Loaders make a plain module there, which has no place for packed pieces.",
        "Correct the list of modules that are not quantised, or store the module as floats.",
    ),
    "plain_unlisted": FindingRule(
        FAULT,
        "stored as floats, but others like it are packed and config does not leave it out",
        "Loaders make a quantised module there, and find no scales for it.",
        "Add the module to the list of modules that are not quantised, or quantise it.",
    ),
    "group_size": FindingRule(
        FAULT,
        "a scale is for {own:count column|columns}, but config says {said}",
        "Engines read scales of other columns, or refuse the module.",
        "Set the group size of config.json to that of the weights.",
    ),
    "piece_missing": FindingRule(
        FAULT,
        "it has no {piece}, which others like it have",
        "Engines fill the gap with whatever memory holds, or refuse the model.",
        "Calibrate again with data that reaches the module, or copy the piece of a peer.",
    ),
    "scales_lost": FindingRule(
        FAULT,
        "{lost:share} of its groups decode to 0 or to NaN",
        "A scale that is 0 or NaN takes all weights of its group with it.",
        "Quantise the module again with scales that its format can hold.",
    ),
    "scale_inverted": FindingRule(
        FAULT,
        "its weights have a size of {size:number}, those of others like it {usual:number}",
        "A scale is inverted, or another module's: outputs are wrong by the square of the scale.",
        "Store the scale as its format has it: some divide by it, others multiply.",
    ),
    "groups_lost": FindingRule(
        FAULT,
        "every column is in group 0 of several: g_idx was never filled",
        "All columns are decoded with the scales of the first group.",
        "Store the group of each column, or leave g_idx out where columns are in order.",
    ),
    "zeros_off": FindingRule(
        FAULT,
        "the mean of its weights is {off:share} of their size in the median of"
        " {modules:count module|modules}: zero points are off",
        "Each weight is shifted by a step: version 1 of GPTQ stores zero points less 1.",
        "Name the right checkpoint_format in quantization_config.",
    ),
    "raw_numbers": FindingRule(
        FAULT,
        "8-bit floats stored as {dtype}, without their scale",
        "The matrix is hundreds of times too large.",
        "Multiply the matrix by its scale before it is stored as floats.",
    ),
    "global_scales": FindingRule(
        NOTE,
        "its global scale is not that of up_proj",
        "Engines that join the two take one scale for both, which costs accuracy.",
        "Quantise both with one global scale.",
    ),
}


@dataclass(frozen=True)
class DecodedRows:
    """Statistics of some decoded rows of a matrix, or of one expert."""

    name: str  # the module, with the number of the expert in a stack
    mean: float
    size: float  # root of the mean square
    lost: float = 0.0  # share of the groups without a number other than 0
    has_zeros: bool = False  # whether zero points are stored
    is_expert: bool = False  # of a stack


@dataclass(frozen=True)
class Modules:
    """A model that may be quantised."""

    tensors: Mapping[str, TensorInfo]
    """Packed ones have a packing, with the name and shape of their module's weight."""
    settings: Mapping[str, Any]
    """What config says about quantisation."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Modules that are not decoded, and why."""
    files: Collection[str] = ()  # none where some are missing
    seen: Mapping[str, Extremes] = field(default_factory=dict)
    """Of the tensors of files, by name."""
    samples: Sequence[DecodedRows] = ()
    raw: Sequence[str] = ()
    """Floats that are 8-bit ones without their scale."""


def judge_modules(findings: Findings, facts: Modules) -> None:
    """Compare modules with what config says of them, and with those of other layers."""
    counts = Counter(role(name) for name, info in facts.tensors.items() if info.packing)
    refused = Counter(map(role, facts.refused))
    for module, why in facts.refused.items():
        peers = counts[role(module)] + counts[role(f"{module}.weight")]
        # MLX may say of one module how it is packed
        is_odd = peers >= refused[role(module)] and module not in facts.settings
        findings.add(module, "module_broken" if is_odd else "undecoded", why=why)
    for name in facts.raw:
        findings.add(name, "raw_numbers", dtype=facts.tensors[name].dtype)
    if facts.files:
        _judge_method(findings, facts, counts.total())
    _judge_lists(findings, facts, counts)
    _judge_pieces(findings, facts, counts)
    _judge_samples(findings, facts.samples)


def _judge_method(findings: Findings, facts: Modules, packed: int) -> None:
    """Compare whether config says that a model is quantised with whether it is."""
    settings = facts.settings
    method = settings.get("quant_method")
    # a config may quantise activations or caches alone, or be that of a training
    packs = settings.get("config_groups", True) and settings.get("format") != "dense"
    is_plain = not (packed or facts.refused or settings.get("dequantize"))
    if method in METHODS and packs and is_plain:
        findings.add("config.json", "nothing_packed", method=method)
    if packed and not settings and DESCRIBED.isdisjoint(facts.files):
        findings.add("config.json", "method_unsaid", modules=packed)


def _judge_lists(findings: Findings, facts: Modules, counts: Mapping[str, int]) -> None:
    """Compare packed and plain modules with the lists of those that are left as they are."""
    settings = facts.settings
    lists = [settings.get(key) for key in LISTS]
    names = {str(name) for listed in lists if isinstance(listed, list) for name in listed}
    words = [re.findall(r"\w+", name.removeprefix("re:").split("layers.")[-1]) for name in names]
    # MLX quantises what has scales, and others may name what they quantise
    others = [settings.get(key) for key in ("dynamic", "extra_config")]
    is_clear = settings.get("quant_method") in METHODS and not any(others)
    is_clear &= not TARGETS.search(str(settings.get("config_groups")))
    is_clear &= len(names) <= MOST_NAMES and not any(map(SPECIAL.search, names))
    plain = Counter(role(name) for name, info in facts.tensors.items() if not info.packing)
    for name, info in facts.tensors.items():
        module = name.removesuffix(".weight")
        if info.packing:
            if module in names:
                findings.add(module, "packed_listed")
        elif info.dtype[:2] == "F8" and counts[role(name)] and module not in facts.refused:
            findings.add(name, "scale_missing", piece="scale")
        elif is_clear and plain[role(name)] <= counts[role(name)] and info.dtype in FLOATS:
            is_listed = any(all(word in module for word in own) for own in words)
            if not is_listed:
                findings.add(module, "plain_unlisted")


def _judge_pieces(findings: Findings, facts: Modules, counts: Mapping[str, int]) -> None:
    """Judge the pieces of modules: their size, their order, and those that peers have."""
    from shadow.checkpoints.formats import owner_of

    usual: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, info in facts.tensors.items():
        if info.packing:
            usual[role(name)].update(owner_of(beside.name)[1] for beside in info.packing.beside)
    sizes = GROUP_SIZE.findall(str(facts.settings))[:MOST_SIZES]
    for name, info in facts.tensors.items():
        if info.packing is None:
            continue
        module = name.removesuffix(".weight")
        pieces = {owner_of(beside.name)[1] for beside in info.packing.beside}
        for piece, count in usual[role(name)].items():
            if 2 * count > counts[role(name)] and piece not in pieces:
                findings.add(module, "piece_missing", piece=piece)
        cols = info.shape[-1]
        # one of those that config names, as MLX may say other things of one module
        fitting = {-(-cols // -(-cols // int(size))) for size in sizes}
        if sizes and info.packing.kind in ("gptq", "awq", "mlx", "pack-quantized"):
            group = info.packing.facts[2]
            if group not in {*fitting, cols}:
                findings.add(
                    module, "group_size", own=group, said=" or ".join(dict.fromkeys(sizes))
                )
        order = facts.seen.get(f"{module}.g_idx")
        if order and order.is_constant and info.packing.facts[2] < cols:
            findings.add(module, "groups_lost")
        for piece in ("weight_global_scale", "weight_scale_2"):
            gate = facts.seen.get(f"{module}.{piece}")
            up = facts.seen.get(f"{module.replace('gate_proj', 'up_proj')}.{piece}")
            if gate and up and gate.first != up.first:
                findings.add(module, "global_scales")


def _judge_samples(findings: Findings, samples: Sequence[DecodedRows]) -> None:
    """Judge weights as they decode, among those of other layers and experts."""
    peers: defaultdict[str, list[DecodedRows]] = defaultdict(list)
    for sample in samples:
        peers[role(sample.name)].append(sample)
    for own in peers.values():
        usual = median([sample.size for sample in own if sample.size < LARGEST] or [0])
        is_sparse = median_low(sample.lost for sample in own) > LOST
        for sample in own:
            times = sample.size / usual if usual and sample.size else 1
            # a whole matrix of zeros is judged by its scales, which may be right
            if (sample.lost < 1 or sample.is_expert) and sample.lost > LOST and not is_sparse:
                findings.add(sample.name, "scales_lost", lost=sample.lost)
            elif sample.size > LARGEST or not 1 / FURTHEST < times < FURTHEST:
                findings.add(sample.name, "scale_inverted", size=sample.size, usual=usual)
    ratios = [sample.mean / sample.size for sample in samples if sample.has_zeros and sample.size]
    off = abs(median(ratios or [0]))
    if off > OFF:
        findings.add("config.json", "zeros_off", off=off, modules=len(ratios))


def gather_modules(
    checkpoint: Checkpoint, swept: Sequence[Swept], files: Collection[str], by: Transfer
) -> Modules:
    """Decode some rows of each packed matrix, and of floats that are far too large. swept: empty if
    values are not read. by: fetches what is no longer there.
    """
    from shadow.checkpoints.formats import settings_in

    samples: list[DecodedRows] = []
    raw = []
    refused = {**checkpoint.refused}
    seen = {tensor.info.name: tensor.extremes for tensor in swept}
    for name, info in checkpoint.tensors.items():
        extremes = seen.get(info.packing.raw.name if info.packing else name)
        if extremes is None or len(info.shape) < 2:
            continue
        is_large = info.dtype[:2] != "F8" and extremes.energy > RAW**2 * extremes.entries
        if not info.packing and not is_large:
            continue
        pieces = [info.packing.raw, *info.packing.beside] if info.packing else [info]
        for shard in {piece.shard for piece in pieces}:
            checkpoint.sources[shard].fetch(by)
        if info.packing:
            try:
                samples += _samples(checkpoint.tensor(info), info)
            except UndecodableError as fault:
                refused[name] = fault.message
        else:
            import torch

            rows = checkpoint.tensor(info)[slice(ROWS),].float()
            if torch.equal(rows, rows.to(torch.float8_e4m3fn).float()):
                raw.append(name)
    settings = next(settings_in(checkpoint.config), {})
    return Modules(checkpoint.tensors, settings, refused, files, seen, samples, raw)


def _samples(tensor: StoredTensor | DecodedTensor, info: TensorInfo) -> Iterator[DecodedRows]:
    """Decode some rows of a matrix, or of each expert of a stack."""
    assert info.packing is not None
    is_stack = len(info.shape) > 2
    module = info.name.removesuffix(".weight")
    for expert in range(info.shape[0] if is_stack else 1):
        index = [slice(expert, expert + 1)] * is_stack
        rows = tensor[(*index, slice(ROWS))].double().nan_to_num(0, 0, 0)
        if info.strides:  # groups of a transpose run along its columns
            rows = rows.mT
        groups = rows[..., : rows.shape[-1] // GROUP * GROUP].reshape(-1, GROUP)
        yield DecodedRows(
            f"{module}[{expert}]" if is_stack else module,
            float(rows.mean()),
            float(rows.square().mean().sqrt()),
            float((groups == 0).all(-1).double().mean()),
            "zeros" in info.packing.roles,
            is_stack,
        )


def without_format(checkpoint: Checkpoint, expected: Expected) -> Expected:
    """Leave out of an answer what is the format's: scales of activations, biases of zeros that GPTQ
    adds, transposes. Names that only quantised classes have leave it open.
    """
    stored = checkpoint.tensors
    packed = {name for name, info in stored.items() if info.packing}
    if not packed:
        return expected
    unexpected = [
        name
        for name in expected.unexpected
        if not OF_FORMAT.fullmatch(name) and f"{name.removesuffix('bias')}weight" not in packed
    ]
    mismatched = [row for row in expected.mismatched if sorted(row[1]) != sorted(row[2])]
    tails = Counter(role(name.rpartition("layers.")[2]) for name in packed)
    lost = Counter(role(name.rpartition("layers.")[2]) for name in unexpected)
    are_others = any(count >= tails[tail] > 0 for tail, count in lost.items())
    absent = {*map(role, expected.missing)} - {*map(role, stored)}
    # MLX has classes of its own, and leaves out what they do not use
    if are_others or (absent and "quantization" in checkpoint.config):
        return replace(expected, problem="quantised")
    return replace(expected, unexpected=unexpected, mismatched=mismatched)
