"""Small files: differences between two versions, key by key; and the tokens of a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from shadow.checkpoints.safetensors_files import strict_json
from shadow.text import visible

LONGEST = 60  # characters of a value
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,59}", re.ASCII)
OTHER = "other_keys"
TEMPLATE = "chat_template"
WHOLE = {"modules.json": "modules", "merges.txt": "merges"} | dict.fromkeys(
    ("vocab.json", "vocab.txt", "added_tokens.json"), "vocabulary"
)  # files that hold one value, and what it is called
MERGED = ("text_config", "rope_parameters", "model")  # parts whose keys count as those of the top
RENAMED = {"torch_dtype": "dtype", "vocab": "vocabulary"}
NEUTRAL = (  # keys that change nothing of what a model computes
    *("_name_or_path", "name_or_path", "transformers_version", "use_cache", "return_dict"),
    *("_attn_implementation", "_attn_implementation_autoset", "_from_model_config", "_commit_hash"),
    *("special_tokens_map_file", "tokenizer_file", "output_attentions", "output_hidden_states"),
    *("__version__", "version"),
)
TOKENIZER = "tokenizer_config.json"
ADDED = "added_tokens.json"
TOKENS = "tokenizer.json"
VOCAB = "vocab.json"
OF_TOKENIZER = (TOKENS, VOCAB, ADDED, TOKENIZER)  # files that say which tokens there are
SPECIAL = re.compile(r"(?!add_)\w+_token|(additional|extra)_special_tokens|added_tokens(_decoder)?")


def differences(path: str, base: bytes, tuned: bytes) -> list[tuple[str, str]]:
    """The differences of two versions of a file: of each a word, such as `rope_theta` or
    `vocabulary`, and a text, such as `rope_theta 10000.0 -> 1000000.0`. Raises ValueError with a
    reason if a side cannot be understood.
    """
    try:
        first = contents(path, base)
        second = contents(path, tuned)
        keys = []
        for key in {**first, **second}:
            before = first.get(key)
            after = second.get(key)
            if not _equal(before, after):
                keys.append(key)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    have_dtypes = first.get("dtype") and second.get("dtype")  # which a config need not say
    changes = []
    for key in sorted(keys):
        if key == "dtype" and not have_dtypes:
            continue
        word = key if WORD.fullmatch(key) else OTHER
        if SPECIAL.fullmatch(key):
            word = "special_tokens"
        change = f"{_short(first.get(key))} -> {_short(second.get(key))}"
        name = visible(key)[:LONGEST]
        changes.append((word, f"{name} {change}"))
    return changes


def contents(path: str, content: bytes) -> dict[str, Any]:
    """The content of a file, by key. Raises ValueError with a reason."""
    name = PurePosixPath(path).name
    whole = WHOLE.get(name)
    is_template = name.endswith(".jinja")
    if is_template or (whole and name.endswith(".txt")):
        text = content.decode(errors="replace")
        text = text.removeprefix("#version: 0.2\n").rstrip("\n")
        if whole:
            return {whole: text.split("\n")}
        return {TEMPLATE: text}
    if not name.endswith(".json"):
        raise ValueError("it has no keys")
    parsed = strict_json(content)
    if whole:
        return {whole: parsed}
    if not isinstance(parsed, dict):
        raise ValueError("no JSON object")
    return _flat(parsed)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that matter: those of MERGED as if at the top level, those of other parts
    behind the name of the part. A value that is given twice, in two ways, occurs twice.
    """
    flat: dict[str, Any] = {}

    def put(key: str, value: object, other: str) -> None:
        if key in flat and not _equal(flat[key], value):
            key = other
        flat[key] = value

    parts = {key: value for key, value in config.items() if isinstance(value, dict)}
    for part in MERGED:
        if part not in parts:
            continue
        merged = _flat(parts[part])
        for key, value in merged.items():
            other = f"{part}.{key}"
            if part == "rope_parameters" and key != "rope_theta":
                key = f"rope_scaling.{key}"
            put(key, value, other)
    for key, value in config.items():
        is_merged = key in MERGED and key in parts
        if is_merged or key in NEUTRAL or value in (None, [], {}):
            continue
        is_inner = key.endswith("_config") or key == "rope_scaling"
        if is_inner and key in parts:
            of_part = _flat(parts[key])
            for name, inner in of_part.items():
                put(f"{key}.{name}", inner, f"top.{key}.{name}")
        elif (key, value) != ("rope_type", "default"):
            plain = _plain(key, value)
            put(RENAMED.get(key, key), plain, f"top.{key}")
    return flat


def _plain(key: str, value: Any) -> Any:
    """Normalise a value that different programs write differently."""
    if key.endswith("dtype"):
        return str(value).removeprefix("torch.")
    if key == "merges" and isinstance(value, list):  # newer files write each as a list of two
        return [pair.split(" ") if isinstance(pair, str) else pair for pair in value]
    is_special = SPECIAL.fullmatch(key)
    if not is_special:
        return value
    if isinstance(value, dict):
        return value.get("content", value)
    if isinstance(value, list) and not key.startswith("added"):
        return [_plain(key, token) for token in value]
    return value


def _equal(base: object, tuned: object) -> bool:
    """True if two values are equal: 1 equals 1.0, but not true."""
    are_of_one_kind = isinstance(base, bool) == isinstance(tuned, bool)
    return are_of_one_kind and base == tuned


def _short(value: object) -> str:
    content = json.dumps(value, ensure_ascii=False, sort_keys=True)
    text = visible(content)
    if len(text) <= LONGEST:
        return text
    if isinstance(value, dict | list):
        return f"{len(value):,} entries"
    return f"{text[: LONGEST - 3]}..."


# ------------------------------------------------------------------------------------------ tokens


def token_numbers(objects: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The number of each token in tokenizer.json or vocab.json; empty without these.

    objects: the files of a tokenizer, by name.
    """
    whole = objects.get(TOKENS, {})
    model = as_object(whole.get("model"))
    own = model.get("vocab")
    if isinstance(own, list):
        own = _numbered(own)
    if not isinstance(own, dict):
        own = objects.get(VOCAB, {})
    pairs = [*own.items()]
    if own:
        pairs += objects.get(ADDED, {}).items()
    for token in listed(whole.get("added_tokens")):
        number = as_object(token).get("id")
        pairs.append((text_of(token), number))
    if own:
        tokenizer = objects.get(TOKENIZER, {})
        decoder = as_object(tokenizer.get("added_tokens_decoder"))
        for number, token in decoder.items():
            is_number = number.isascii() and number.isdecimal()
            if is_number and len(number) < 12:
                pairs.append((text_of(token), int(number)))
    numbers = {}
    for token, number in pairs:
        if token and type(number) is int:
            numbers[token] = number
    return numbers


def _numbered(scored: list[Any]) -> dict[str, int]:
    """The place of each token in a list of tokens with their scores."""
    numbers = {}
    for number, entry in enumerate(scored):
        if isinstance(entry, list) and entry:
            token = text_of(entry[0])
            numbers[token] = number
    return numbers


def json_object(content: bytes | None) -> Mapping[str, Any]:
    """Parse a JSON file with an object; empty if it has none."""
    with suppress(ValueError):
        return as_object(strict_json(content or b"{}"))
    return {}


def as_object(value: object) -> Mapping[str, Any]:
    """An object of JSON; an empty one if it is none."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """A list as it is, and other values as a list of one."""
    return value if isinstance(value, list) else [value]


def text_of(value: object) -> str:
    """A text, or the content of a token; empty if it is neither."""
    content = as_object(value).get("content", value)
    return content if isinstance(content, str) else ""
