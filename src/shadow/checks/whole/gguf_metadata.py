"""`whole`: the metadata of a GGUF file, compared with its tensors; rotary embeddings, compared with
a source.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from math import isclose
from typing import TYPE_CHECKING, Any

from shadow.checks.answer import Against
from shadow.checks.whole.names import text_config
from shadow.checks.whole.part import FAULT, FindingRule, Findings
from shadow.places.names import name_rules
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import Header

BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")
# that no block goes without where it has others of its kind; layers may share keys and values
NEEDED = re.compile(r"(ffn_|attn)(?!_k|_v|.*norm).*\.weight")
TOKEN = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")
SPECIAL = re.compile(r"key_length_|lora_rank|features_length")
NO_TOKEN = 1 << 31  # from which a number of 32 bits stands for none
FREQUENCIES = "rope_freqs.weight"
BASE = "rope.freq_base"
MOST_BASE = 1e30
USUAL_BASE = 10_000.0  # that llama.cpp takes where the file names none
RULES: Mapping[str, FindingRule] = {
    "metadata_shape": FindingRule(
        FAULT,
        "it is {own:count} wide, but {key} of the metadata makes {said:count}",
        "Loading the file in llama.cpp fails, or takes other heads.",
        "Convert the model again, from a config that fits its weights.",
    ),
    "block_part": FindingRule(
        FAULT,
        "its block lacks it, which others have",
        "Loading the file in llama.cpp fails.",
        "Convert the model again, and check that all shards of the source are there.",
    ),
    "block_beyond": FindingRule(
        FAULT,
        "block_count of the metadata is {of:count}, so nothing reads this block",
        "Loading the file in llama.cpp fails, or leaves the block out.",
        "Convert the model again, from a config that fits its weights.",
    ),
    "output_absent": FindingRule(
        FAULT,
        "no such tensor, and llama.cpp does not tie the head of {architecture}",
        "Loading the file in llama.cpp fails.",
        "Convert the model again, from a source that has its head.",
    ),
}
WORDS = {
    "rope_freqs": "the source scales its rotary embedding as Llama 3 does, and the file has no"
    " factors for it",
    "rope_base": "the base of its rotary embedding is {own:number}, that of the source"
    " {other:number}",
}


def judge_metadata(findings: Findings, header: Header) -> None:
    """Compare what the metadata promise with the tensors, by the names of GGUF."""
    metadata = header.metadata
    architecture = str(metadata.get("general.architecture"))
    rules = name_rules().gguf

    def number(key: str, otherwise: int = 0) -> int:
        """A number of the metadata; 0 where it is a list, which layers share."""
        value = metadata.get(f"{architecture}.{key}", otherwise)
        return value if type(value) is int else 0

    width = number("embedding_length")
    heads = number("attention.head_count")
    size = number("attention.key_length", width // max(1, heads))
    # not of several kinds of heads, compressed ones, or gated ones
    if architecture in rules["rearranged"] or any(map(SPECIAL.search, metadata)):
        size = 0
    wanted = {
        "token_embd.weight": ("embedding_length", width),
        "attn_q.weight": ("attention.head_count", heads * size),
        "attn_k.weight": (
            "attention.head_count_kv",
            number("attention.head_count_kv", heads) * size,
        ),
    }
    blocks: defaultdict[int, set[str]] = defaultdict(set)
    for name, info in header.tensors.items():
        match = BLOCK.fullmatch(name)
        if match:
            blocks[int(match[1])].add(match[2])
        key, expected = wanted.get(match[2] if match else name, ("", 0))
        own = info.shape[0 if match else -1] if len(info.shape) == 2 else 0
        if own and expected and own != expected:
            findings.add(name, "metadata_shape", own=own, said=expected, key=key)
    embedding = header.tensors.get("token_embd.weight")
    if embedding and architecture in rules["untied"] and "output.weight" not in header.tensors:
        findings.add("output.weight", "output_absent", architecture=architecture)
    for key, value in metadata.items():
        match = TOKEN.fullmatch(key)
        if match and embedding and type(value) is int and embedding.shape[0] <= value < NO_TOKEN:
            rows = embedding.shape[0]
            findings.add(key, "token_beyond", kind=match[1], token=str(value), rows=rows)
    _judge_blocks(findings, blocks, number("block_count"))


def _judge_blocks(findings: Findings, blocks: Mapping[int, set[str]], count: int) -> None:
    """Report blocks that the metadata do not count, and parts that a block lacks."""
    kinds = Counter(map(frozenset, blocks.values()))
    usual = max(kinds, key=lambda kind: (kinds[kind], len(kind)), default=frozenset())
    for block, parts in sorted(blocks.items()):
        if 0 < count <= block:
            findings.add(f"blk.{block}", "block_beyond", of=count)
        for part in sorted(usual - parts if parts < usual else []):
            has_others = any(own.startswith(part[:4]) for own in parts)
            if NEEDED.fullmatch(part) and has_others:
                findings.add(f"blk.{block}.{part}", "block_part")


def rotary_faults(header: Header, config: Mapping[str, Any]) -> list[Against]:
    """Compare the rotary embedding of a GGUF file with the config of its source."""
    inner = text_config(config) or config
    settings = [inner.get("rope_parameters"), inner.get("rope_scaling")]
    scaling = next((setting for setting in settings if isinstance(setting, dict)), {})
    faults = []
    is_scaled = "llama3" in (scaling.get("rope_type"), scaling.get("type"))
    if is_scaled and FREQUENCIES not in header.tensors:
        faults.append(Against(FREQUENCIES, Reason("rope_freqs")))
    base = inner.get("rope_theta", scaling.get("rope_theta"))
    own = header.metadata.get(f"{header.metadata['general.architecture']}.{BASE}", USUAL_BASE)
    bases = [
        value for value in (own, base) if isinstance(value, int | float) and 0 < value < MOST_BASE
    ]
    if len(bases) == 2 and not isclose(*bases, rel_tol=1e-5):
        faults.append(Against(BASE, Reason("rope_base", {"own": bases[0], "other": bases[1]})))
    return faults
