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
    """Return how two versions of a file differ: a word, such as `rope_theta` or `vocabulary`, and a
    text, such as `rope_theta 10000.0 -> 1000000.0`. Raises ValueError with a reason if a side
    cannot be understood.
    """
    try:
        first = contents(path, base)
        second = contents(path, tuned)
        keys = [key for key in {**first, **second} if not _equal(first.get(key), second.get(key))]
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not (first.get("dtype") and second.get("dtype")):  # which a config need not say
        keys = [key for key in keys if key != "dtype"]
    found = []
    for key in sorted(keys):
        word = key if WORD.fullmatch(key) else OTHER
        said = f"{_said(first.get(key))} -> {_said(second.get(key))}"
        text = f"{visible(key)[:LONGEST]} {said}"
        found.append(("special_tokens" if SPECIAL.fullmatch(key) else word, text))
    return found


def contents(path: str, content: bytes) -> dict[str, Any]:
    """Return the content of a file, by key. Raises ValueError with a reason."""
    name = PurePosixPath(path).name
    whole = WHOLE.get(name)
    if name.endswith((".txt", ".jinja")) and (whole or name.endswith(".jinja")):
        text = content.decode(errors="replace").removeprefix("#version: 0.2\n").rstrip("\n")
        return {whole or TEMPLATE: text.split("\n") if whole else text}
    if not name.endswith(".json"):
        raise ValueError("it has no keys")
    found = strict_json(content)
    if not whole and not isinstance(found, dict):
        raise ValueError("no JSON object")
    return {whole: found} if whole else _flat(found)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that matter: those of MERGED as if at the top level, those of other parts
    behind the name of the part. A value that is given twice, in two ways, occurs twice.
    """
    found: dict[str, Any] = {}

    def put(key: str, value: object, other: str) -> None:
        found[key if key not in found or _equal(found[key], value) else other] = value

    parts = {key: value for key, value in config.items() if isinstance(value, dict)}
    for part in filter(parts.__contains__, MERGED):
        for key, value in _flat(parts[part]).items():
            is_scaling = part == "rope_parameters" and key != "rope_theta"
            put(f"rope_scaling.{key}" if is_scaling else key, value, f"{part}.{key}")
    for key, value in config.items():
        if key in NEUTRAL or (key in MERGED and key in parts) or value in (None, [], {}):
            continue
        if key in parts and (key.endswith("_config") or key == "rope_scaling"):
            for inner, inside in _flat(parts[key]).items():
                put(f"{key}.{inner}", inside, f"top.{key}.{inner}")
        elif (key, value) != ("rope_type", "default"):
            put(RENAMED.get(key, key), _plain(key, value), f"top.{key}")
    return found


def _plain(key: str, value: Any) -> Any:
    """Normalise a value that different programs write differently."""
    if key.endswith("dtype"):
        return str(value).removeprefix("torch.")
    if key == "merges" and isinstance(value, list):  # newer files write each as a list of two
        return [one.split(" ") if isinstance(one, str) else one for one in value]
    if SPECIAL.fullmatch(key) and isinstance(value, dict):
        return value.get("content", value)
    if SPECIAL.fullmatch(key) and isinstance(value, list) and not key.startswith("added"):
        return [_plain(key, one) for one in value]
    return value


def _equal(base: object, tuned: object) -> bool:
    """Return whether two values are equal: 1 equals 1.0, but not true."""
    return base == tuned and isinstance(base, bool) == isinstance(tuned, bool)


def _said(value: object) -> str:
    text = visible(json.dumps(value, ensure_ascii=False, sort_keys=True))
    if len(text) > LONGEST and isinstance(value, dict | list):
        return f"{len(value):,} entries"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


# ------------------------------------------------------------------------------------------ tokens


def token_numbers(objects: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The number of each token in tokenizer.json or vocab.json; empty without these.

    objects: the files of a tokenizer, by name.
    """
    whole = objects.get(TOKENS, {})
    own = as_object(whole.get("model")).get("vocab")
    if isinstance(own, list):  # a token and its score each
        scored = [entry if isinstance(entry, list) else [] for entry in own]
        own = {text_of(entry[0]): at for at, entry in enumerate(scored) if entry}
    if not isinstance(own, dict):
        own = objects.get(VOCAB, {})
    pairs = [*own.items()]
    if own:
        pairs += objects.get(ADDED, {}).items()
    for token in listed(whole.get("added_tokens")):
        pairs.append((text_of(token), as_object(token).get("id")))
    if own:
        decoder = as_object(objects.get(TOKENIZER, {}).get("added_tokens_decoder"))
        for number, token in decoder.items():
            if number.isascii() and number.isdecimal() and len(number) < 12:
                pairs.append((text_of(token), int(number)))
    return {token: number for token, number in pairs if token and type(number) is int}


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
