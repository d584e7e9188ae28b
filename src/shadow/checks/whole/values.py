"""`whole`: tensors that are empty, flat, not finite, zero or all equal; scales that are missing."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shadow.checks.whole.part import DOUBT, FAULT, NOTE, FindingRule, Findings
from shadow.dtypes import FLOATS, INTEGERS
from shadow.text import in_ranges, several

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.run.scan import Swept
    from shadow.run.scanned import Unmatched

FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?|.*_fsdp_wrapped_module\..*")
# what a model computes when it is made, so that values that are stored do not count
BUFFER = re.compile(
    r"(.*\.)?(inv_freq|rotary_emb\.\w+|stft\w*\.\w+|position_ids|masked_bias|attention\.bias|attn\.bias|attn_mask"
    r"|relative_position_index|num_batches_tracked|token_type_ids|causal_mask|mask)"
)
# packed numbers, and what scales them
PIECE = re.compile(
    r"(?P<owner>.+?)(?P<joint>[._])(?P<piece>(?P<numbers>qweight|weight_packed|weight|blocks)"
    r"|(weight_)?scales?|weight_scale_(inv|2)|weight_global_scale|SCB|(weight\.)?absmax|qzeros)"
)
FACTOR = re.compile(r".*\.lora_(embedding_)?[AB].*|.*lora_magnitude_vector.*")
# what a layer adds to its input, in this number of matrices
OUTPUT = re.compile(r"(?P<layer>.+\.layers\.[0-9]+)\.(self_attn\.o_proj|mlp\.down_proj)\.weight")
OUTPUTS = 2
RUNS = 8  # of numbers of experts that a sentence spells out
NARROW = 16  # columns below which rows of one value come about by chance
FEW = 0.01  # share of the rows of a vocabulary that may be zero: tokens without a meaning
RULES: Mapping[str, FindingRule] = {
    "empty": FindingRule(
        FAULT,
        "its shape is {shape}: saved without gathering its parts",
        "Each process of the training had a part of the tensor, and none of them is in the file.",
        "Gather the whole state dict before saving; of DeepSpeed, run its zero_to_fp32.py.",
    ),
    "flat": FindingRule(
        FAULT,
        "a flat parameter of FSDP, saved without gathering its parts",
        "No loader finds the weights of the modules that it joins.",
        "Save again with FSDP's full state dict.",
    ),
    "not_finite": FindingRule(
        FAULT,
        "{entries:count entry|entries} of {of:count} {entries|is|are} NaN or infinite",
        "One such entry makes every output NaN that it contributes to.",
        "Go back to a checkpoint from before, or cast again from a wider format.",
    ),
    "damaged_pages": FindingRule(
        FAULT,
        "about {kilobytes:count} KB have exponents that the rest hardly has, the first of them near"
        " byte {offset:count} of the tensor",
        "A disk, a copy or a download has changed these bytes.",
        "Copy or download the file again, and compare its SHA-256 with the original's.",
    ),
    "scale_missing": FindingRule(
        FAULT,
        "its module has no {piece}, which others like it have",
        "Packed numbers without their scale decode to other weights, or to none.",
        "Restore it from a whole copy, or quantise the model again.",
    ),
    "scale_zero": FindingRule(
        FAULT,
        "a scale that is 0",
        "Every weight that it scales is 0.",
        "Quantise the module again, from weights that are not all zero.",
    ),
    "zero": FindingRule(
        FAULT,
        "all zero",
        "Nothing passes through a matrix or a norm of zeros: it was allocated and never filled.",
        "Restore the tensor from a checkpoint before, and check the code that saved it.",
    ),
    "idle_layer": FindingRule(
        NOTE,
        "all zero, as is every matrix whose product this layer adds: it returns its input",
        "LLaMA-Pro and similar methods put such layers between trained ones and train them next.",
        "Check that these layers were to be trained later.",
    ),
    "constant": FindingRule(
        FAULT,
        "every entry is {value:number}",
        "Training leaves no matrix of one value: it was filled and never loaded.",
        "Restore the tensor from a checkpoint before, and check the code that saved it.",
    ),
    "zero_experts": FindingRule(
        FAULT,
        "all zero in {experts:count expert|experts}: {which}",
        "The router still sends tokens to experts that add nothing.",
        "Restore the experts from a checkpoint before, and check the code that stacked them.",
    ),
    "constant_experts": FindingRule(
        FAULT,
        "every row has entries that are all equal in {experts:count expert|experts}: {which}",
        "Training leaves no such expert: it was filled and never loaded.",
        "Restore the experts from a checkpoint before, and check the code that stacked them.",
    ),
    "zero_rows": FindingRule(
        FAULT,
        "{rows:count row|rows} of {of:count} {rows|is|are} all zero",
        "Outputs of these rows are always 0; tokens of these rows look the same to the model.",
        "Restore the tensor, and check the code that resized, sliced or merged it.",
    ),
    "constant_rows": FindingRule(
        FAULT,
        "{rows:count row has|rows have} entries that are all equal",
        "Training leaves no such rows: they were filled and never loaded.",
        "Restore the tensor, and check the code that resized, sliced or merged it.",
    ),
    "undecoded": FindingRule(
        DOUBT,
        "not looked at: {why}",
        "Faults of these values stay unseen.",
        "Check the model before it was packed, or a copy in another format.",
    ),
    "unknown_dtype": FindingRule(
        DOUBT,
        "not looked at: {dtype} is a dtype that shadow does not know",
        "Faults of these values stay unseen.",
        "Update `shadow`, or store the tensor in another dtype.",
    ),
}


@dataclass(frozen=True)
class Values:
    """Tensors, and statistics of their values."""

    stored: Mapping[str, TensorInfo]
    swept: Sequence[Swept] = ()
    unread: Sequence[Unmatched] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    """Embeddings and heads, and how many tokens the tokenizer has; 0 where that is not known."""
    is_quantised: bool = False
    fitting: Collection[str] = ()
    """Tensors whose shapes a loader expects, if one was asked."""


def judge_values(findings: Findings, facts: Values) -> None:
    """Report faults; zeros that models have by design are none."""
    findings.figures |= {"tensors": len(facts.stored), "tensors_read": len(facts.swept)}
    for name, info in facts.stored.items():
        if FLAT.fullmatch(name):
            findings.add(name, "flat")
        elif info.shape[:1] == (0,) and info.dtype in FLOATS and name not in facts.fitting:
            findings.add(name, "empty", shape=f"[{', '.join(map(str, info.shape))}]")
        elif not (info.packing or facts.is_quantised or info.dtype in {**FLOATS, **INTEGERS}):
            findings.add(name, "unknown_dtype", dtype=info.dtype)
    peers: defaultdict[str, list[bool]] = defaultdict(list)  # by role, which are all zero
    for tensor in facts.swept:
        peers[role(tensor.info.name)].append(tensor.extremes.is_zero)
    idle = _idle_outputs(facts.swept)
    for tensor in facts.swept:
        if tensor.info.name in idle:
            findings.add(tensor.info.name, "idle_layer")
            continue
        is_vector = len(tensor.info.shape) < 2 and tensor.info.name.endswith(".bias")
        if is_vector or not BUFFER.fullmatch(tensor.info.name):
            _judge_tensor(findings, tensor, facts, peers[role(tensor.info.name)])
    for unmatched in facts.unread:
        findings.add(unmatched.tensor, "undecoded", why=unmatched.why)


def _idle_outputs(swept: Sequence[Swept]) -> set[str]:
    """The outputs of layers that return their input, since both are zero; of at most half of
    the layers, as where new ones are put between trained ones.
    """
    outputs = {
        match: tensor.extremes for tensor in swept if (match := OUTPUT.fullmatch(tensor.info.name))
    }
    zero = [match for match, extremes in outputs.items() if extremes.is_zero]
    layers = Counter(match["layer"] for match in zero)
    idle = {match[0] for match in zero if layers[match["layer"]] == OUTPUTS}
    return idle if 2 * len(idle) <= len(outputs) else set()


def role(name: str) -> str:
    """A name without its numbers, which other layers share."""
    return re.sub(r"\b[0-9]+\b", "#", name)  # the number of w1 is no layer's


def _judge_tensor(findings: Findings, tensor: Swept, facts: Values, peers: Sequence[bool]) -> None:
    """Judge the values of a tensor."""
    name = tensor.info.name
    info = tensor.info
    seen = tensor.extremes
    match = PIECE.fullmatch(name)
    is_float = info.dtype in FLOATS or info.packing is not None
    is_matrix = sum(size > 1 for size in info.shape) > 1 and seen.entries >= NARROW
    if not is_float and not (is_matrix and match and match["numbers"]):
        return
    is_piece = facts.is_quantised and match and not match["numbers"]
    if seen.damaged and not is_piece:
        findings.add(name, "damaged_pages", kilobytes=2 * len(seen.damaged), offset=seen.damaged[0])
    if bad := seen.nan + seen.infinite:
        if seen.entries > 1 or seen.nan or facts.is_quantised:  # a bound may be infinite
            findings.add(name, "not_finite", entries=bad, of=seen.entries)
    elif is_piece:
        if seen.is_zero:
            findings.add(name, "scale_zero")
    elif FACTOR.fullmatch(name):  # an adapter's are judged together
        return
    elif seen.is_zero:
        # a gate that begins at zero is zero in each layer; where others have learned, it is lost
        is_lost = 2 * sum(peers) <= len(peers) and not name.endswith("bias")
        if is_lost or (is_matrix and name.endswith(".weight")) or not is_float:
            findings.add(name, "zero")
    elif seen.is_constant:
        if is_matrix and name.endswith(".weight"):
            findings.add(name, "constant", value=seen.first)
    elif name in facts.vocabulary:
        _judge_vocabulary(findings, tensor, facts.vocabulary[name])
    elif is_matrix and is_float and info.shape[-1] >= NARROW:
        _judge_rows(findings, tensor)


def _judge_rows(findings: Findings, tensor: Swept) -> None:
    """Report rows of a matrix, or of a stack of experts, that are zero or constant."""
    name = tensor.info.name
    shape = tensor.info.shape
    seen = tensor.extremes
    rows = math.prod(shape[:-1])
    each = rows // shape[0]  # of an expert
    for flat, of_experts, of_rows in (
        (seen.zero_rows, "zero_experts", "zero_rows"),
        (seen.constant_rows, "constant_experts", "constant_rows"),
    ):
        per = Counter(row // each for row in flat if each > 1)
        experts = [at for at, count in per.items() if count == each]
        if experts:
            findings.add(name, of_experts, experts=len(experts), which=_in_few_ranges(experts))
        elif flat:
            findings.add(name, of_rows, rows=len(flat), of=rows)


def _in_few_ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7 and 26 more`."""
    return several(in_ranges(numbers).split(", "), RUNS)


def _judge_vocabulary(findings: Findings, tensor: Swept, tokens: int) -> None:
    """Judge zero rows: those at the end are padding, and a few others unused tokens."""
    name = tensor.info.name
    rows = tensor.info.shape[0]
    zero = {*tensor.extremes.zero_rows}
    end = rows
    while end - 1 in zero:
        end -= 1
    end = min(end, tokens) if tokens and end < rows else end
    inside = sum(row < end for row in zero)
    if inside > max(FEW * rows, 1):  # padding has one
        findings.add(name, "zero_rows", rows=inside, of=rows)
