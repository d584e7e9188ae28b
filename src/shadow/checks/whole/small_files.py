"""`whole`: small files compared with each other: whatever one of them names exists in another.

Chat templates, tokenizers, tokens of images, modules of sentence-transformers, code, processors,
heads and dtypes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
)
from shadow.checks.whole.configs import CONFIG, GENERATION, SPECIAL, Words, judge_token
from shadow.checks.whole.names import number_of, text_config
from shadow.checks.whole.part import FAULT, NOTE, FindingRule, Findings, clipped
from shadow.dtypes import FLOATS, torch_name

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import TensorInfo

TEMPLATE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
MODULES = "modules.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
WITH_TEMPLATE = (TOKENIZER, TEMPLATE_JSON)
WITH_CODE = (CONFIG, TOKENIZER, PREPROCESSOR, PROCESSOR)  # files with an auto_map
SHARE = 0.01  # of tokens in vocab.json, up to which they may be others
FOLDER = re.compile(r"[0-9]+_\w+")  # of a module of sentence-transformers
# tokens in the source of a template; most models write roles such as <|user|> as ordinary text
WRITTEN = re.compile(r"<\|\w{1,60}\|>|<(?:start|end)_of_turn>")
MARKER = re.compile(r"(?i)<\|?(im_\w+|\w+_header_id|eot_id|\w+_of_(turn(_token)?|role))\|?>")
END = re.compile(r"(?i)<\|?(im_end|eot_id|end|end_of_turn(_token)?)\|?>")
FAST = re.compile(r".*Fast|TokenizersBackend|(Llama|CodeLlama|Qwen2|GPT2|Gemma|Cohere)Tokenizer")
CLASS = re.compile(r"(\w+)\.\w+")  # and its file, in an auto_map
SEEN_TOKEN = re.compile(
    r"(?P<word>\w*(?:image|video|audio|vision)\w*|decoder_start)_token_(?:id|index)"
)
RULES: Mapping[str, FindingRule] = {
    "template_token": FindingRule(
        FAULT,
        "it writes {first}, which the tokenizer has no token for",
        "The tokenizer splits the mark into ordinary tokens, which the model has not learned.",
        "Restore the tokenizer that was trained with this template, or the template.",
    ),
    "template_end": FindingRule(
        NOTE,
        "it ends a turn with {token}, which is no eos in config, generation config or tokenizer",
        "A model that was trained with this template generates beyond the end of its turn.",
        "Add the token to `eos_token_id`, unless this is a base model.",
    ),
    "templates_differ": FindingRule(
        FAULT,
        "its chat template is not that of {other}",
        "Tools write different prompts, depending on which of the files they read.",
        "Keep the template of the training, in one of these files.",
    ),
    "tokenizer_lost": FindingRule(
        FAULT,
        "tokenizer_config.json names {kind}, and there is no vocabulary in any file",
        "No tokenizer is loaded from this folder.",
        "Restore the file from the source, or save the tokenizer again.",
    ),
    "vocab_differs": FindingRule(
        FAULT,
        "{tokens:count token|tokens} of {of:count} {tokens|has|have} another number or none in"
        " tokenizer.json, such as {first}",
        "Slow and fast tokenizers give the model different tokens for the same text.",
        "Restore both files from the source.",
    ),
    "token_other": FindingRule(
        FAULT,
        "{kind} is {token}, but in the tokenizer {text} is {number}",
        "The model puts images, videos or sounds at other tokens than the processor writes.",
        "Write the number that the tokenizer has into config.",
    ),
    "module_lost": FindingRule(
        FAULT,
        "modules.json names it, and it is not there",
        "No model of sentence-transformers is loaded from this folder.",
        "Restore the folder of the module, or take it out of modules.json.",
    ),
    "module_width": FindingRule(
        FAULT,
        "it takes vectors of {own} columns, and what comes before it has {width}",
        "The first sentence stops the model with an error of shapes.",
        "Restore the module that was trained with this model.",
    ),
    "code_lost": FindingRule(
        FAULT,
        "its auto_map names {file}, and it is not there",
        "The classes of this checkpoint cannot be imported.",
        "Restore the file from the source.",
    ),
    "code_spare": FindingRule(
        NOTE,
        "its auto_map names {file}, and it is not there",
        "Loaders that run the code of a checkpoint stop; others may have the class themselves.",
        "Restore the file from the source, or take it out of `auto_map`.",
    ),
    "processor_lost": FindingRule(
        FAULT,
        "tokenizer_config.json names {kind}, and no file says how images or sounds are prepared",
        "The processor cannot be loaded, so the model takes text alone.",
        "Restore the file from the source, or save the processor again.",
    ),
    "heads_uneven": FindingRule(
        FAULT,
        "num_attention_heads is {heads}, no multiple of num_key_value_heads, which is {groups}",
        "Attention cannot share a key head evenly, and stops with an error of shapes.",
        "Write the numbers that the model was trained with.",
    ),
    "dtype_apart": FindingRule(
        NOTE,
        "config says {said}, but all matrices are stored as {stored}",
        "Tools that go by config convert the weights when they load them.",
        "Write the stored dtype into config, or save the model again.",
    ),
}


@dataclass(frozen=True)
class SmallFiles:
    """Small files of a checkpoint, and the tokens and dtypes that they are compared with."""

    contents: Mapping[str, bytes]
    names: Collection[str] | None  # of all files; None where some may not be listed
    words: Words
    stored: Collection[TensorInfo] = ()  # none of a quantised model
    needs_code: bool = False  # whether transformers has no class of this name

    def lack(self, *names: str) -> bool:
        """True if none of these files is there."""
        return self.names is not None and not any(name in self.names for name in names)

    def keys(self, file: str) -> Mapping[str, Any]:
        """The keys of a file of JSON; of a config those of its language model as well."""
        content = json_object(self.contents.get(file))
        return {**content, **text_config(content)}

    @property
    def templates(self) -> dict[str, str]:
        """The text of each chat template, by file."""
        texts = {file: text_of(self.keys(file).get("chat_template")) for file in WITH_TEMPLATE}
        texts[TEMPLATE] = self.contents.get(TEMPLATE, b"").decode(errors="replace")
        return {file: text for file, text in texts.items() if text}

    @property
    def written(self) -> dict[str, int]:
        """The tokens that templates write and the tokenizer has, and their numbers."""
        tokens = WRITTEN.findall("".join(self.templates.values()))
        vocabulary = self.words.vocabulary
        return {token: vocabulary[token] for token in tokens if token in vocabulary}


def judge_small_files(findings: Findings, facts: SmallFiles) -> None:
    """Find what one file names and no other has."""
    config = facts.keys(CONFIG)
    tokenizer = facts.keys(TOKENIZER)
    _judge_templates(findings, facts)
    _judge_tokenizer(findings, facts, tokenizer)
    for file in (CONFIG, GENERATION):
        _judge_seen_tokens(findings, facts, file, tokenizer)
    _judge_modules(findings, facts, config.get("hidden_size"))
    for file in WITH_CODE:
        for name in _code_of(facts.keys(file).get("auto_map")):
            if facts.lack(name):
                code = "code_lost" if facts.needs_code else "code_spare"
                findings.add(file, code, file=clipped(name))
    kind = text_of(tokenizer.get("processor_class"))
    sees = config.get("vision_config") or config.get("audio_config")
    if kind and sees and facts.lack(PREPROCESSOR, PROCESSOR):
        findings.add(PREPROCESSOR, "processor_lost", kind=clipped(kind))
    heads = number_of(config, ["num_attention_heads"])
    groups = number_of(config, ["num_key_value_heads"])
    if groups and heads % groups:
        findings.add(CONFIG, "heads_uneven", heads=clipped(heads), groups=clipped(groups))
    named = text_of(config.get("dtype", config.get("torch_dtype")))
    matrices = {info.dtype for info in facts.stored if len(info.shape) > 1} & FLOATS.keys()
    stored = sorted(map(torch_name, matrices))
    if stored and named in map(torch_name, FLOATS) and named not in stored:
        findings.add(CONFIG, "dtype_apart", said=named, stored=stored)


def _judge_templates(findings: Findings, facts: SmallFiles) -> None:
    vocabulary = facts.words.vocabulary
    templates = facts.templates
    stops = {token for tokens in facts.words.ids.get("eos", {}).values() for token in tokens}
    for file, text in templates.items():
        if text.strip() != templates.get(TEMPLATE, text).strip():
            findings.add(file, "templates_differ", other=TEMPLATE)
        tokens = dict.fromkeys(WRITTEN.findall(text))
        lost = [token for token in tokens if token not in vocabulary and MARKER.fullmatch(token)]
        if vocabulary and lost:
            findings.add(file, "template_token", first=lost)
        ends = [token for token in tokens if token in vocabulary and END.fullmatch(token)]
        is_stopped = "eos_token" in text or not stops.isdisjoint(map(vocabulary.get, tokens))
        if stops and ends and not is_stopped:
            findings.add(file, "template_end", token=ends[-1])


def _judge_tokenizer(findings: Findings, facts: SmallFiles, tokenizer: Mapping[str, Any]) -> None:
    from shadow.checkpoints.stored_files import kind_of

    kind = text_of(tokenizer.get("tokenizer_class"))
    names = [TOKENS] if facts.names is None else facts.names
    others = {*names} - {TOKENIZER, SPECIAL, ADDED}
    has_vocabulary = any(kind_of(name) == "tokenizer" for name in others)
    if FAST.fullmatch(kind) and not has_vocabulary and "auto_map" not in tokenizer:
        findings.add(TOKENS, "tokenizer_lost", kind=clipped(kind))
    slow = facts.words.slow
    vocabulary = facts.words.vocabulary
    apart = [token for token, number in slow.items() if vocabulary.get(token) != number]
    if len(apart) > SHARE * len(slow):
        figures = {"tokens": len(apart), "of": len(slow)}
        findings.add(VOCAB, "vocab_differs", first=clipped(apart[0]), **figures)


def _judge_seen_tokens(
    findings: Findings, facts: SmallFiles, file: str, tokenizer: Mapping[str, Any]
) -> None:
    """Judge the tokens of images, videos and sounds, and the one that a decoder starts with."""
    words = facts.words
    for key, token in facts.keys(file).items():
        match = SEEN_TOKEN.fullmatch(key)
        is_asked = match and (match["word"] == "decoder_start" or not words.checks_size)
        if match is None or not is_asked or type(token) is not int:
            continue  # code of its own may have further tables
        text = text_of(tokenizer.get(f"{match['word']}_token"))
        number = words.vocabulary.get(text, token)
        is_beyond = judge_token(findings, words, file, key, token)
        if number != token and not is_beyond:
            figures = {"kind": key, "token": clipped(str(token)), "number": clipped(str(number))}
            findings.add(file, "token_other", text=clipped(text), **figures)


def _judge_modules(findings: Findings, facts: SmallFiles, width: object) -> None:
    """Follow the width of a vector through the modules of sentence-transformers."""
    content = facts.contents.get(MODULES, b"")
    for module in listed(json_object(b'{"modules": %b}' % content).get("modules")):
        entry = as_object(module)
        path = text_of(entry.get("path"))
        kind = text_of(entry.get("type"))
        is_known = kind.startswith("sentence_transformers.") and not kind.endswith(".Normalize")
        if not is_known or not FOLDER.fullmatch(path):
            continue
        if not any(name.startswith(f"{path}/") for name in facts.names or [f"{path}/"]):
            findings.add(path, "module_lost")
        own = facts.keys(f"{path}/{CONFIG}")
        wide = own.get("word_embedding_dimension", own.get("in_features"))
        if type(wide) is int and type(width) is int and wide != width:
            findings.add(path, "module_width", own=clipped(wide), width=clipped(width))
        width = own.get("out_features")
        if type(wide) is int and kind.endswith(".Pooling"):  # each mode has its own columns
            modes = [key for key in own if key.startswith("pooling_mode") and own[key] is True]
            width = wide * max(1, len(modes))


def _code_of(mapped: object) -> dict[str, None]:
    """The files of code in an auto_map, without those of other repositories."""
    values = as_object(mapped).values()
    names = [name for value in values for name in listed(value) if isinstance(name, str)]
    return dict.fromkeys(f"{match[1]}.py" for match in map(CLASS.fullmatch, names) if match)
