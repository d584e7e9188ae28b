"""`whole`: small files compared with each other: whatever one of them names exists in another.

Chat templates, tokenizers, tokens of images, modules of sentence-transformers, code, processors,
heads and dtypes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shadow.checks.whole.configs import (
    ADDED,
    CONFIG,
    GENERATION,
    SPECIAL,
    TOKENIZER,
    TOKENS,
    VOCAB,
    Words,
    text_of,
)
from shadow.checks.whole.names import text_config
from shadow.checks.whole.part import (
    FAULT,
    NOTE,
    FindingRule,
    Findings,
    clipped,
    json_object,
)
from shadow.dtypes import FLOATS, torch_name
from shadow.errors import ShadowError
from shadow.templates import said

if TYPE_CHECKING:
    from pathlib import Path

    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Swept
    from shadow.run.scanned import Unmatched
    from shadow.targets.references import Reference

TEMPLATE, TEMPLATE_JSON, MODULES = "chat_template.jinja", "chat_template.json", "modules.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
WITH_CODE = (CONFIG, TOKENIZER, PREPROCESSOR, PROCESSOR)  # files with an auto_map
SHARE = 0.01  # of tokens or stored numbers, up to which they may be others
MODULE_FOLDER = re.compile(r"[0-9]+_\w+")  # of sentence-transformers
MODULE_CONFIG = re.compile(rf"{MODULE_FOLDER.pattern}/config\.json")
# tokens in the source of a template; most models write roles such as <|user|> as ordinary text
WRITTEN = re.compile(r"<\|\w{1,60}\|>|<(?:start|end)_of_turn>")
MARKER = re.compile(r"(?i)<\|?(im_\w+|\w+_header_id|eo[tm]_id|\w+_of_(turn(_token)?|role))\|?>")
END = re.compile(r"(?i)<\|?(im_end|eot_id|end|end_of_turn(_token)?)\|?>")
FAST = re.compile(r".*Fast|TokenizersBackend|(Llama|CodeLlama|Qwen2|GPT2|Gemma|Cohere)Tokenizer")
SEEN_TOKEN = re.compile(
    r"(?P<word>\w*(?:image|video|audio|vision)\w*|decoder_start)_token_(?:id|index)"
)
IN_BRACKETS = re.compile(r"[<\[|].*[>\]|]")  # what no text has for an ordinary token
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
    "token_ordinary": FindingRule(
        FAULT,
        "{kind} is {token}, which is the ordinary token {text}",
        "Texts with this token are taken for images, videos or sounds.",
        "Write the number of the tokenizer's own token for it into config.",
    ),
    "module_lost": FindingRule(
        FAULT,
        "modules.json names it, and it is not there",
        "No model of sentence-transformers is loaded from this folder.",
        "Restore the folder of the module, or take it out of modules.json.",
    ),
    "module_width": FindingRule(
        FAULT,
        "it takes vectors of {own:count column|columns}, but what comes before it has {width:count}",
        "The first sentence stops the model with an error of shapes.",
        "Restore the module that was trained with this model.",
    ),
    "code_lost": FindingRule(
        FAULT,
        "its auto_map names {code}, and it is not there",
        "The classes of this checkpoint cannot be imported.",
        "Restore the file from the source.",
    ),
    "processor_lost": FindingRule(
        FAULT,
        "tokenizer_config.json names {kind}, and no file says how images or sounds are prepared",
        "The processor cannot be loaded, so the model takes text alone.",
        "Restore the file from the source, or save the processor again.",
    ),
    "processor_absent": FindingRule(
        NOTE,
        "a model of images or sounds without this file",
        "The processor has to come from elsewhere.",
        "Save the processor beside the model.",
    ),
    "heads_uneven": FindingRule(
        FAULT,
        "num_attention_heads is {heads}, no multiple of num_key_value_heads, which is {groups}",
        "Attention cannot share a key head evenly, and stops with an error of shapes.",
        "Write the numbers that the model was trained with.",
    ),
    "dtype_apart": FindingRule(
        NOTE,
        "config says {said}, but nearly all is stored as {stored}",
        "Tools that go by config convert the weights when they load them.",
        "Write the stored dtype into config, or save the model again.",
    ),
}


@dataclass(frozen=True)
class SmallFiles:
    """Small files of a checkpoint, and the tokens and dtypes that they are compared with."""

    words: Words
    names: Collection[str] | None = None
    """All files, those of modules with their folder; None where they are not known."""
    objects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by file
    modules: Sequence[Mapping[str, Any]] = ()
    templates: Mapping[str, str] = field(default_factory=dict)  # by file
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """The number of stored floats by dtype; empty of a quantised model."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the language model, with what it inherits from that of all."""
        config = self.objects.get(CONFIG, {})
        return {**config, **text_config(config)}

    def has(self, *names: str) -> bool:
        """Return whether one of these files is there, or may be."""
        return self.names is None or any(name in self.names for name in names)


def judge_small_files(findings: Findings, found: SmallFiles) -> None:
    """Find what one file names and no other has."""
    _judge_templates(findings, found)
    _judge_tokenizer(findings, found)
    _judge_seen_tokens(findings, found)
    _judge_modules(findings, found)
    for file in WITH_CODE:
        for code in _code_of(found.objects.get(file, {}).get("auto_map")):
            if not found.has(code):
                findings.add(file, "code_lost", code=clipped(code))
    config = found.config
    tokenizer = found.objects.get(TOKENIZER, {})
    sees = any(isinstance(config.get(key), dict) for key in ("vision_config", "audio_config"))
    if sees and tokenizer and not found.has(PREPROCESSOR, PROCESSOR):
        if kind := text_of(tokenizer.get("processor_class")):
            findings.add(PREPROCESSOR, "processor_lost", kind=clipped(kind))
        else:
            findings.add(PREPROCESSOR, "processor_absent")
    heads, groups = (config.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
    if type(heads) is int and type(groups) is int and groups > 0 and heads % groups:
        findings.add(CONFIG, "heads_uneven", heads=clipped(heads), groups=clipped(groups))
    total = sum(found.dtypes.values())
    dtype = text_of(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.")
    numbers = {torch_name(word): count for word, count in found.dtypes.items()}
    if total and dtype in map(torch_name, FLOATS) and numbers.get(dtype, 0) <= SHARE * total:
        stored = max(numbers, key=lambda word: numbers[word])
        findings.add(CONFIG, "dtype_apart", said=dtype, stored=stored)


def _judge_templates(findings: Findings, found: SmallFiles) -> None:
    vocabulary = found.words.vocabulary
    stops = {token for tokens in found.words.ids.get("eos", {}).values() for token in tokens}
    first = found.templates.get(TEMPLATE)
    for file, text in found.templates.items():
        if first is not None and text.strip() != first.strip():
            findings.add(file, "templates_differ", other=TEMPLATE)
        tokens = dict.fromkeys(WRITTEN.findall(text))
        lost = [token for token in tokens if token not in vocabulary and MARKER.fullmatch(token)]
        if vocabulary and lost:
            findings.add(file, "template_token", first=lost)
        ends = [token for token in tokens if token in vocabulary and END.fullmatch(token)]
        is_stopped = not stops.isdisjoint(map(vocabulary.get, tokens)) or "eos_token" in text
        if stops and ends and not is_stopped:
            findings.add(file, "template_end", token=ends[-1])


def written_tokens(found: SmallFiles) -> dict[str, int]:
    """Return the tokens that templates write and the tokenizer has, and their numbers."""
    tokens = WRITTEN.findall("\n".join(found.templates.values()))
    vocabulary = found.words.vocabulary
    return {token: vocabulary[token] for token in tokens if token in vocabulary}


def _judge_tokenizer(findings: Findings, found: SmallFiles) -> None:
    from shadow.checkpoints.listing import kind_of

    tokenizer = found.objects.get(TOKENIZER, {})
    kind = text_of(tokenizer.get("tokenizer_class"))
    if found.names is not None and FAST.fullmatch(kind) and "auto_map" not in tokenizer:
        without = {*found.names} - {TOKENIZER, SPECIAL, ADDED}
        if not any(kind_of(name) == "tokenizer" for name in without):
            findings.add(TOKENS, "tokenizer_lost", kind=clipped(kind))
    beside = found.words.beside
    apart = [
        token for token, number in beside.items() if found.words.vocabulary.get(token) != number
    ]
    if len(apart) > SHARE * len(beside):
        figures = {"tokens": len(apart), "of": len(beside)}
        findings.add(VOCAB, "vocab_differs", first=clipped(apart[0]), **figures)


def _judge_seen_tokens(findings: Findings, found: SmallFiles) -> None:
    """Judge the tokens of images, videos and sounds, and the one that a decoder starts with."""
    words = found.words
    tokenizer = found.objects.get(TOKENIZER, {})
    texts = {number: token for token, number in words.vocabulary.items()}
    for file, config in ((CONFIG, found.config), (GENERATION, found.objects.get(GENERATION, {}))):
        for match in filter(None, map(SEEN_TOKEN.fullmatch, config)):
            key, token = match[0], config[match[0]]
            is_start = match["word"] == "decoder_start"
            if type(token) is not int or (words.checks_size and not is_start):
                continue  # code of its own may have further tables
            shown = {"kind": key, "token": clipped(str(token))}
            text = text_of(tokenizer.get(f"{match['word']}_token"))
            number = words.vocabulary.get(text, token)
            if words.rows and token >= words.rows:
                is_usual = token in words.usual
                code = "token_by_default" if is_usual else "token_beyond"
                findings.add(file, code, rows=words.rows, **shown)
            elif number != token:
                findings.add(file, "token_other", text=clipped(text), number=number, **shown)
            elif not is_start and not IN_BRACKETS.fullmatch(texts.get(token, "<>")):
                findings.add(file, "token_ordinary", text=clipped(texts[token]), **shown)


def _judge_modules(findings: Findings, found: SmallFiles) -> None:
    """Follow the width of a vector through the modules of sentence-transformers."""
    width = found.config.get("hidden_size")
    for path, kind in module_folders(found.modules).items():
        own = found.objects.get(f"{path}/{CONFIG}", {})
        if found.names is not None and not any(name.startswith(f"{path}/") for name in found.names):
            findings.add(path, "module_lost")
        key = {"Pooling": "word_embedding_dimension", "Dense": "in_features"}.get(kind, "")
        wide = own.get(key, width)
        if type(wide) is int and type(width) is int and wide != width:
            findings.add(path, "module_width", own=wide, width=width)
        if kind == "Pooling":  # each mode has its own columns
            modes = [one for key, one in own.items() if key.startswith("pooling_mode")]
            width = wide * max(1, modes.count(True)) if type(wide) is int else None
        else:
            width = own.get("out_features") if kind == "Dense" else None


def module_folders(modules: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the folders of modules that need one, and the class of each."""
    folders = {}
    for module in modules:
        path = text_of(module.get("path"))
        package, _, kind = text_of(module.get("type")).rpartition(".")
        is_known = package.startswith("sentence_transformers.") and kind != "Normalize"
        if is_known and MODULE_FOLDER.fullmatch(path):
            folders[path] = kind
    return folders


def read_small_files(
    small: Mapping[str, bytes],
    names: Collection[str] | None,
    words: Words,
    stored: Iterable[TensorInfo],
) -> SmallFiles:
    """Parse the small files of a checkpoint. stored: its tensors; none if it is quantised."""
    from shadow.checkpoints.safetensors_files import strict_json

    known = (*WITH_CODE, GENERATION, TEMPLATE_JSON)
    read = [name for name in small if name in known or MODULE_CONFIG.fullmatch(name)]
    objects = {name: json_object(small[name]) for name in read}
    try:
        listed = strict_json(small.get(MODULES, b"[]"))
    except ValueError:
        listed = []
    modules = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    templates = {}
    for name in (TOKENIZER, TEMPLATE_JSON):
        text = objects.get(name, {}).get("chat_template")
        if isinstance(text, str):
            templates[name] = text
    if TEMPLATE in small:
        templates[TEMPLATE] = small[TEMPLATE].decode(errors="replace")
    dtypes = Counter[str]()
    for info in stored:
        if info.dtype in FLOATS:
            dtypes[info.dtype] += info.parameters
    return SmallFiles(words, names, objects, modules, templates, dtypes)


def sweep_modules(
    reference: Reference, found: SmallFiles, runtime: Runtime, scratch: Path
) -> tuple[list[Swept], list[Unmatched]]:
    """Return statistics of the weights of modules, which have their folder before their names."""
    from shadow.run.scan import sweep
    from shadow.run.scanned import Unmatched
    from shadow.run.sides import find_checkpoint, open_found

    every: list[Swept] = []
    unread: list[Unmatched] = []
    for path in module_folders(found.modules):
        file = f"{path}/model.safetensors"
        if file not in (found.names or ()):
            continue
        if reference.is_folder:
            inner = replace(reference, repo=f"{reference.repo}/{path}")
        else:
            inner = replace(
                reference, subfolder="/".join(filter(None, (reference.subfolder, path)))
            )
        try:
            own = open_found(find_checkpoint(inner, runtime, scratch), runtime, scratch)
            swept, undecoded = sweep(own, own.tensors.values(), runtime, scratch / path)
        except ShadowError as error:
            unread.append(Unmatched(file, "tuned", said(error.message)))
            continue
        for one in swept:
            every.append(replace(one, info=replace(one.info, name=f"{path}/{one.info.name}")))
        unread += undecoded
    return every, unread


def _code_of(mapped: object) -> dict[str, None]:
    """Return the files of code in an auto_map, without those of other repositories."""
    values = mapped.values() if isinstance(mapped, dict) else ()
    listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
    names = [one for one in listed if isinstance(one, str) and "--" not in one and "." in one]
    return dict.fromkeys(f"{name.partition('.')[0]}.py" for name in names)
