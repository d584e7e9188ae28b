"""`whole`: tokens in config, generation config and tokenizer, compared with each other and the
rows; an adapter's config, compared with its factors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shadow.checkpoints.contents import (
    ADDED,
    TOKENIZER,
    TOKENS,
    VOCAB,
    as_object,
    json_object,
    listed,
    text_of,
    token_numbers,
)
from shadow.checks.whole.names import number_of, text_config
from shadow.checks.whole.part import (
    DOUBT,
    FAULT,
    NOTE,
    FindingRule,
    Findings,
    clipped,
    is_broken,
)
from shadow.places.names import name_rules
from shadow.templates import Value
from shadow.text import shape_text

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.run.scan import Swept

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
SPECIAL = "special_tokens_map.json"
KINDS = ("eos", "bos", "pad")
SEEN = re.compile(r"(?i)image|audio|video|vision|pixel|img|speech")  # of other components
PREFIX = "base_model.model."  # of every name that peft reads
IN_LAYER = re.compile(
    r"(?P<stack>.+?)\.(?P<layer>[0-9]{1,9})\.(?P<parent>(?:.+\.)?)(?P<module>[^.]+)"
)
# heads that peft adds to modules_to_save by itself, of which a model has one or none
LISTED_BY_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
BEYOND = "{kind} is token {token}, but the embedding has {rows:count row|rows}"
VOCAB_SIZE = "vocab_size is {said}, but the embedding has {rows:count row|rows}"
RULES: Mapping[str, FindingRule] = {
    "not_json": FindingRule(
        FAULT,
        "there is no JSON object in it",
        "A tokenizer is not loaded from it, or is another one.",
        "Restore the file from the source, or save the tokenizer again.",
    ),
    "json_unread": FindingRule(
        DOUBT,
        "not looked at: it is larger than that of any released model, or a name occurs twice",
        "Its tokens are not compared with config and embedding.",
        "Restore the file from the source, or save the tokenizer again.",
    ),
    "token_beyond": FindingRule(
        FAULT,
        BEYOND,
        "A model that is given this token stops with an index error.",
        "Correct the number, or add rows to the embedding.",
    ),
    "token_by_default": FindingRule(
        NOTE,
        f"{BEYOND}; the class names it by default",
        "Models of this class have it in their config and do not use it.",
        "Set it to null if the model has no such token.",
    ),
    "eos_apart": FindingRule(
        FAULT,
        "eos is {one} here and {other} in {against}: generation does not stop where the other says",
        "A tool that goes by the other file generates up to its limit.",
        "Write the same eos into all these files.",
    ),
    "token_unknown": FindingRule(
        FAULT,
        "{kind} is {token}, which is not in the vocabulary",
        "The tokenizer splits it into other tokens or takes the unknown one, so it has no effect.",
        "Add the token to the vocabulary, or name one that is in it.",
    ),
    "vocab_size": FindingRule(
        FAULT,
        VOCAB_SIZE,
        "A model of this config has rows that no file fills.",
        "Set `vocab_size` to the number of rows.",
    ),
    "rows_spare": FindingRule(
        DOUBT,
        VOCAB_SIZE,
        "A few models have more rows by design; others lose the rows at the end.",
        "Set `vocab_size` to the number of rows, unless the class adds rows of its own.",
    ),
    "tokenizer_beyond": FindingRule(
        FAULT,
        "{tokens:count token has|tokens have} no row in the embedding of {rows:count row|rows},"
        " such as {token} ({number})",
        "A text with one of these tokens stops the model with an index error.",
        "Add rows to the embedding, or take the tokens out of the tokenizer.",
    ),
}
OF_ADAPTERS: Mapping[str, FindingRule] = {
    "does_nothing": FindingRule(
        FAULT,
        "the adapter does nothing: a factor is zero in {modules:all module|modules}",
        "The base with this adapter is the base.",
        "Check that the training updated the adapter and saved it after its last step.",
    ),
    "zero_factor": FindingRule(
        FAULT,
        "one of its factors is all zero, so the adapter does nothing here",
        "The update of this module is zero, unlike those of others.",
        "Check that the training reached this module, and that a merge did not lose it.",
    ),
    "alpha": FindingRule(
        FAULT,
        "lora_alpha is {alpha}, so the adapter does nothing",
        "peft multiplies the update with lora_alpha / r.",
        "Write the `lora_alpha` of the training into adapter_config.json.",
    ),
    "rank": FindingRule(
        FAULT,
        "its factors have rank {rank:count}, but config says {said}",
        "peft refuses the shapes, and other tools scale the update by another rank.",
        "Write the rank of the factors into `r` or `rank_pattern`.",
    ),
    "pattern_unmatched": FindingRule(
        FAULT,
        "config gives modules of this name a rank or an alpha, but none has factors",
        "What was trained in these modules is lost, or the name is misspelt.",
        "Restore their factors, or correct `rank_pattern` and `alpha_pattern`.",
    ),
    "half": FindingRule(
        FAULT,
        "only one factor of its update is there",
        "Without both factors the module has no update.",
        "Restore the other factor from a checkpoint of the training.",
    ),
    "factors_apart": FindingRule(
        FAULT,
        "factors of {left} and {right} do not multiply",
        "peft refuses the adapter.",
        "Restore both factors from one checkpoint of the training.",
    ),
    "target_absent": FindingRule(
        FAULT,
        "config names it in target_modules, but it has no factors",
        "peft gives these modules an update of zero, so what was trained is lost.",
        "Restore the factors, or take the name out of `target_modules`.",
    ),
    "not_targeted": FindingRule(
        FAULT,
        "config does not name it in target_modules, so peft leaves it out",
        "What was trained in this module does nothing.",
        "Add its name to `target_modules`.",
    ),
    "saved_absent": FindingRule(
        FAULT,
        "config names it in modules_to_save, but it has no tensor",
        "peft takes the module of the base, so what was trained is lost.",
        "Restore its tensors, or take the name out of `modules_to_save`.",
    ),
    "head_unsaved": FindingRule(
        DOUBT,
        "peft adds {heads:and} to modules_to_save, and no tensor has such a name: the head has"
        " another name or is lost",
        "A classifier without its trained head answers at random.",
        "Look for the trained head, and add its name to `modules_to_save`.",
    ),
    "dora_absent": FindingRule(
        FAULT,
        "config says DoRA, but it has no magnitudes",
        "peft takes the magnitudes of the base, which is another update than was trained.",
        "Restore the magnitudes, or set `use_dora` to false if none were trained.",
    ),
    "adapter_other": FindingRule(
        NOTE,
        "an adapter of type {kind}, whose tensors are not compared with its config",
        "A tensor that it lacks is not named.",
        "Load it on its base with peft.",
    ),
    "key_unread": FindingRule(
        FAULT,
        "peft reads no tensor of this name",
        "peft drops it without a word, so the module stays that of the base, or is random.",
        "Rename it to `base_model.model.` and the name of the tensor in the base.",
    ),
    "factors_lost": FindingRule(
        FAULT,
        "it has no factors, although config or most layers name it",
        "peft gives it an update of zero, so what was trained is lost.",
        "Restore the factors from a checkpoint of the training.",
    ),
    "adapter_kind": FindingRule(
        DOUBT,
        "an adapter of the unknown type {kind}",
        "Its tensors are not compared with its config.",
        "Load it on its base with peft.",
    ),
}


@dataclass(frozen=True)
class Words:
    """Tokens as files name them, and the number of rows for them."""

    ids: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """By kind (eos, bos, pad), by file that names some: its tokens."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """By kind, the tokenizer's token of it that its vocabulary lacks."""
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    """The tokenizer's, as far as files of JSON have it."""
    added: Mapping[str, int] = field(default_factory=dict)
    """Those of tokenizer.json that were added to it."""
    unread: Mapping[str, bool] = field(default_factory=dict)
    """Files of the tokenizer that are not read as a JSON object, and whether they are broken."""
    slow: Mapping[str, object] = field(default_factory=dict)  # of vocab.json
    vocab_size: int = 0  # the config's; 0 where it says none
    rows: int = 0  # of the embedding of these tokens; 0 where it is not known
    sees: bool = False  # whether the model has other components than language
    checks_size: bool = True
    """Whether no loader was asked, which compares vocab_size and rows by itself."""
    usual: Sequence[int] = ()  # tokens that a config of the class names unless it is told others

    @property
    def are_named(self) -> bool:
        """Say whether any file names a token."""
        return any(self.ids.values()) or bool(self.vocabulary)


def judge_words(findings: Findings, facts: Words) -> None:
    """Find tokens without a row, and files that disagree on where generation stops."""
    rows = facts.rows
    size = facts.vocab_size
    for kind, files in facts.ids.items():
        for file, tokens in files.items():
            for token in tokens:
                judge_token(findings, facts, file, kind, token)
    ends = facts.ids.get("eos", {})
    # generation stops where its own config says, or the model's
    against = GENERATION if GENERATION in ends else CONFIG
    for file, tokens in ends.items():
        others = ends.get(against, tokens)
        if set(tokens).isdisjoint(others):
            own = clipped(", ".join(map(str, tokens)))
            other = clipped(", ".join(map(str, others)))
            findings.add(file, "eos_apart", one=own, other=other, against=against)
    for file, broken in facts.unread.items():
        findings.add(file, "not_json" if broken else "json_unread")
    for kind, text in facts.unknown.items():
        findings.add(TOKENIZER, "token_unknown", kind=kind, token=clipped(text))
    if facts.checks_size and facts.rows and size and size != facts.rows:
        # some models have a few rows more by design
        code = "vocab_size" if size > facts.rows else "rows_spare"
        findings.add(CONFIG, code, said=clipped(size), rows=facts.rows)
    beyond = sorted((at, token) for token, at in facts.vocabulary.items() if rows and at >= rows)
    # what stands for images has no row in a model of language alone
    words = [token for token in beyond if facts.sees or not SEEN.search(token[1])]
    if words:
        number, text = words[0]
        of: dict[str, Value] = {"tokens": len(words), "token": clipped(text), "rows": rows}
        findings.add("tokenizer", "tokenizer_beyond", **of, number=clipped(str(number)))


def judge_token(findings: Findings, words: Words, file: str, kind: str, token: int) -> bool:
    """Report a token of a file that has no row; return whether it has none."""
    is_beyond = 0 < words.rows <= token
    if is_beyond:
        code = "token_by_default" if token in words.usual else "token_beyond"
        findings.add(file, code, kind=kind, token=clipped(str(token)), rows=words.rows)
    return is_beyond


def read_words(small: Mapping[str, bytes], **facts: Any) -> Words:
    """Read what the small files of a checkpoint say about tokens. facts: the other fields."""
    config, generation, tokenizer = (
        json_object(small.get(name)) for name in (CONFIG, GENERATION, TOKENIZER)
    )
    texts = {name: small[name] for name in (SPECIAL, ADDED, TOKENS, VOCAB) if name in small}
    objects = {name: json_object(content) for name, content in texts.items()}
    unread = {
        name: is_broken(texts[name])
        for name, content in objects.items()
        if not content and texts[name].strip() != b"{}"
    }
    special = objects.get(SPECIAL, {})
    vocabulary = token_numbers(objects | {TOKENIZER: tokenizer})
    ids: dict[str, dict[str, list[int]]] = {}
    unknown = {}
    for kind in KINDS:
        key = f"{kind}_token_id"
        word = f"{kind}_token"
        text = text_of(tokenizer.get(word, special.get(word)))
        own = {
            CONFIG: config.get(key, text_config(config).get(key)),
            GENERATION: generation.get(key),
            TOKENIZER: vocabulary.get(text),
        }
        ids[kind] = {}
        for file, value in own.items():
            tokens = [token for token in listed(value) if type(token) is int]
            if min(tokens, default=-1) >= 0:
                ids[kind][file] = tokens
        if text and vocabulary and text not in vocabulary:
            unknown[kind] = text
    added = token_numbers({TOKENS: {**objects.get(TOKENS, {}), "model": None}})
    slow = objects.get(VOCAB, {})
    size = number_of(config, ("vocab_size",))
    return Words(ids, unknown, vocabulary, added, unread, slow, size, **facts)


@dataclass(frozen=True)
class Factors:
    """The config of an adapter, and the factors of its modules."""

    config: Mapping[str, Any]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]  # by module, of A and B
    others: Sequence[str] = ()  # its other tensors
    zero: Sequence[str] = ()  # modules of which a factor is all zero

    @property
    def is_compared(self) -> bool:
        """Say whether it is of the type whose factors are compared."""
        return self.config.get("peft_type") == "LORA"


def judge_adapter(findings: Findings, facts: Factors) -> None:
    """Compare the config with the factors, module by module."""
    findings.figures |= {"modules": len(facts.shapes), "modules_zero": len(facts.zero)}
    from shadow.checkpoints.adapter_names import Targets

    config = facts.config
    alpha = facts.config.get("lora_alpha")
    if not facts.is_compared:
        kind = str(config.get("peft_type"))
        code = "adapter_other" if kind in name_rules().adapters else "adapter_kind"
        findings.add(ADAPTER_CONFIG, code, kind=kind[:40])
        return
    if not isinstance(alpha, int | float) or not alpha > 0:
        findings.add(ADAPTER_CONFIG, "alpha", alpha=str(alpha)[:40])
    if facts.zero and len(facts.zero) == len(facts.shapes):
        findings.add("lora_B", "does_nothing", modules=len(facts.zero))
    else:
        for module in facts.zero:
            findings.add(module, "zero_factor")
    for module, shapes in facts.shapes.items():
        _judge_module(findings, module, shapes, config)
    _judge_patterns(findings, facts)
    targets = config.get("target_modules")  # a list, or a pattern, or all-linear
    named = (
        [target for target in targets if isinstance(target, str)]
        if isinstance(targets, list)
        else []
    )
    ends = {module: _ends(module) for module in facts.shapes}
    excluded = config.get("exclude_modules")  # in the same forms
    for target in sorted({*named}.difference(*ends.values())):
        is_listed = isinstance(excluded, list) and not _ends(target).isdisjoint(map(str, excluded))
        if not is_listed and not isinstance(excluded, str):
            findings.add(clipped(target), "target_absent")
    if targets is not None:
        reach = Targets(config)
        for module in ends:
            if not reach.has(module):
                findings.add(module, "not_targeted")
    _judge_saved(findings, facts)
    _judge_layers(findings, facts)
    parts = [name.partition(".lora_magnitude_vector") for name in facts.others]
    owners = {module.removeprefix(PREFIX) for module, magnitude, _ in parts if magnitude}
    if config.get("use_dora"):
        for module in sorted(facts.shapes.keys() - owners):
            findings.add(module, "dora_absent")
    for name in facts.others:
        # the others are names that modules have in memory
        if not name.startswith(PREFIX) or re.search(r"\.(modules_to_save|original_module)\.", name):
            findings.add(name, "key_unread")


def _judge_patterns(findings: Findings, facts: Factors) -> None:
    """Find keys of patterns that are of no module with factors."""
    from shadow.checkpoints.adapter_names import is_of_pattern

    patterns = (facts.config.get(name) for name in ("rank_pattern", "alpha_pattern"))
    keys = {key for pattern in patterns for key in as_object(pattern)}
    for key in sorted(keys):
        if not any(is_of_pattern(key, module) for module in facts.shapes):
            findings.add(clipped(key), "pattern_unmatched")


def _judge_layers(findings: Findings, facts: Factors) -> None:
    """Find layers that lack factors which config, or most layers, say they have."""
    layers = defaultdict[tuple[str, str, str], set[int]](set)  # by stack, parent and module
    every = defaultdict[tuple[str, str], set[int]](set)  # of any module of a parent
    for match in filter(None, map(IN_LAYER.fullmatch, facts.shapes)):
        stack, parent, module = match.group("stack", "parent", "module")
        layers[stack, parent, module].add(int(match["layer"]))
        every[stack, parent].add(int(match["layer"]))
    config = facts.config
    targets = config.get("target_modules")
    used = set[int]().union(*every.values())
    chosen = {layer for layer in listed(config.get("layers_to_transform")) if type(layer) is int}
    for layer in sorted(chosen - used):
        findings.add(f"layers.{layer}", "factors_lost")
    is_of_all_layers = isinstance(targets, list) and not re.search("[0-9]", f"{targets}")
    if chosen or not used or not is_of_all_layers or config.get("exclude_modules"):
        return
    for layer in _lacking(used, range(min(used), min(used) + 2 * len(used))):
        findings.add(f"layers.{layer}", "factors_lost")
    for (stack, parent, module), own in layers.items():
        for layer in _lacking(own, every[stack, parent]):
            findings.add(f"{stack}.{layer}.{parent}{module}", "factors_lost")


def _lacking(own: Collection[int], every: Iterable[int]) -> list[int]:
    """The layers that are not among own, if these are many: some models have a module in a
    part of their layers, or take keys and values of earlier layers in the last ones.
    """
    lacking = sorted(layer for layer in every if layer < max(own) and layer not in own)
    return lacking if 2 * len(lacking) <= len(own) else []


def _judge_saved(findings: Findings, facts: Factors) -> None:
    """Compare modules_to_save with the tensors: peft takes what ends with one of its names."""
    saved = facts.config.get("modules_to_save")
    names = dict.fromkeys(str(name) for name in saved) if isinstance(saved, list) else {}
    absent = [name for name in names if not any(f"{name}." in other for other in facts.others)]
    task = facts.config.get("task_type")
    heads = LISTED_BY_PEFT.get(task, ()) if isinstance(task, str) else ()
    for name in absent:
        if name not in heads:
            findings.add(name[:200], "saved_absent")
    if heads and absent and all(head in absent for head in heads):
        findings.add(ADAPTER_CONFIG, "head_unsaved", heads=heads)


def _judge_module(
    findings: Findings,
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> None:
    from shadow.checkpoints.adapter_names import is_of_pattern

    a = shapes.get("A")
    b = shapes.get("B")
    if a is None or b is None:
        findings.add(module, "half")
        return
    if len(a) < 2 or len(b) < 2 or a[0] != b[1]:
        findings.add(module, "factors_apart", left=shape_text(b), right=shape_text(a))
        return
    rank = config.get("r")
    patterns = as_object(config.get("rank_pattern"))
    rank = next((patterns[key] for key in patterns if is_of_pattern(key, module)), rank)
    if type(rank) is int and rank != a[0] and not config.get("target_parameters"):
        findings.add(module, "rank", rank=a[0], said=clipped(rank))


def _ends(module: str) -> set[str]:
    """The names by which a config may name a module."""
    parts = module.split(".")
    return {".".join(parts[at:]) for at in range(len(parts))}


def read_factors(
    config: bytes | None, stored: Mapping[str, TensorInfo], swept: Sequence[Swept]
) -> Factors:
    """The factors of an opened adapter, and which of those that were read are zero."""
    from shadow.checkpoints.weight_files import FACTOR, PREFIX

    shapes: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    owners = {}
    for name, info in stored.items():
        if match := FACTOR.fullmatch(name):
            owners[name] = match["module"].removeprefix(PREFIX)
            shapes[owners[name]][match["which"]] = info.shape
    zero = [tensor.info.name for tensor in swept if tensor.extremes.is_zero]
    return Factors(
        json_object(config),
        shapes,
        [name for name in stored if name not in owners],
        [*dict.fromkeys(owners[name] for name in zero if name in owners)],
    )
