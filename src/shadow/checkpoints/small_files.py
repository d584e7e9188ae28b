"""What two versions of a small file differ in: config, generation config, chat template, tokenizer.

Bytes in, words out. Files are hostile input: what cannot be understood is a ValueError with a
reason. Nothing of a file is run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

from shadow.checkpoints.safetensors_files import has_too_many_values
from shadow.reasons import BEYOND_VOCABULARY
from shadow.text import several, visible

LONGEST = 60  # characters of a value
MOST_DIGITS = 18  # of a token's number
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,59}", re.ASCII)
OTHER = "other_keys"  # the word of keys whose names are no words
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
WITH_NUMBERS = (  # files that say which numbers tokens have, and how many rows there are
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "added_tokens.json", "vocab.json",
)  # fmt: skip
DTYPES = ("dtype", "torch_dtype")  # of newer and of older configs, which need not say it
# keys of config files that change nothing of what a model computes
NEUTRAL = (
    *("_name_or_path", "name_or_path", "transformers_version", "use_cache"),
    *("_attn_implementation", "_attn_implementation_autoset", "_from_model_config", "_commit_hash"),
    *("special_tokens_map_file", "tokenizer_file", "output_attentions", "output_hidden_states"),
    "return_dict",
    "__version__",
)
FIRST = (  # keys that are named before others
    "architectures", "model_type", "auto_map", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "rope_theta",
    "rope_scaling", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps",
    "tie_word_embeddings", "sliding_window", "max_position_embeddings", "hidden_act",
    "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
SPECIAL = re.compile(r"((?!add_)\w+_token|additional_special_tokens|extra_special_tokens)")
NUMBERED = "token "  # before the number of an added one
LARGE = ("vocabulary", "merges")  # what a difference does not quote


@dataclass(frozen=True)
class Difference:
    """What differs inside a file."""

    word: str
    """`rope_theta`, `vocabulary`: a key or what a part of a tokenizer is called."""
    text: str
    """`rope_theta 10000.0 -> 1000000.0`."""


def can_look_into(path: str) -> bool:
    """Whether `differences` knows what is in a file, by its name."""
    name = PurePosixPath(path).name
    return name in KINDS or name.endswith("config.json")


def differences(path: str, base: bytes, tuned: bytes) -> list[Difference]:
    """What two versions of a file differ in; empty where they say the same.

    The chat template in a tokenizer's config is left out: see `template_of`. Raises ValueError with
    a reason where a side cannot be understood.
    """
    parse = KINDS.get(PurePosixPath(path).name, _config)
    try:
        return _keys_apart(parse(base), parse(tuned))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def template_of(read: Callable[[str], bytes | None]) -> str | None:
    """The chat template of a side, wherever it lies, or all where these differ; None where it has
    none.

    read: the bytes of a file at the top of the side, None where it has none. Raises ValueError as
    `differences` does.
    """
    texts: dict[str, None] = {}
    for name in TEMPLATES:
        content = read(name)
        if content is None:
            continue
        found: object = content.decode(errors="replace")
        if not name.endswith(".jinja"):
            found = read_json(content).get("chat_template")
        if found is not None:  # several, by name
            texts[found if isinstance(found, str) else json.dumps(found, sort_keys=True)] = None
    return "\0".join(texts) if texts else None


def tokens_beyond(read: Callable[[str], bytes | None]) -> str:
    """The tokens of a side for which its config's `vocab_size` leaves no row, in words; empty where
    there are none, or the files do not say. More rows than tokens are usual: they are padding.

    read: as of `template_of`. What a file holds that cannot be understood hides nothing of others.
    """
    sides: dict[str, dict[str, Any]] = {}
    for name in WITH_NUMBERS:
        with contextlib.suppress(ValueError):
            if content := read(name):
                sides[name] = read_json(content)
    rows = flat_config(sides.get("config.json", {})).get("vocab_size")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        return ""
    whole, added = sides.get("tokenizer.json", {}), sides.get("added_tokens.json", {})
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of tokens with their scores
        vocabulary = [one[0] if isinstance(one, list) and one else one for one in vocabulary]
    tokens = dict(_tokens(vocabulary))
    if not tokens:
        tokens = sides.get("vocab.json") or _tokens(_lines(read("vocab.txt") or b""))
    listed = whole.get("added_tokens")
    listed = listed if isinstance(listed, list) else []
    decoder = sides.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    named = [(one.get("id"), one.get("content")) for one in listed if isinstance(one, dict)]
    named += [(number, token) for token, number in (tokens | added).items()]
    if isinstance(decoder, dict):
        named += [
            (int(key), one.get("content") if isinstance(one, dict) else one)
            for key, one in decoder.items()
            if key.isdecimal() and len(key) <= MOST_DIGITS
        ]
    for config in ("config.json", "generation_config.json"):
        for key, numbers in flat_config(sides.get(config, {})).items():
            if re.fullmatch(r"\w+_token_id", key):
                every = numbers if isinstance(numbers, list) else [numbers]
                named += [(number, key) for number in every]
    beyond = {
        number: visible(name if isinstance(name, str) else str(number))[:LONGEST]
        for number, name in reversed(named)
        if isinstance(number, int) and not isinstance(number, bool) and number >= rows
    }
    if not beyond:
        return ""
    names = several([name for _, name in sorted(beyond.items())], 3)
    are = "1 token is" if len(beyond) == 1 else f"{len(beyond):,} tokens are"
    return f"{are} {BEYOND_VOCABULARY} of {rows:,} rows: {names}"


def read_json(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError with a reason in words."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise _OddError("a key is there twice")
        return keys

    def refused(word: str) -> NoReturn:
        raise _OddError(f"{word} is no JSON")

    if has_too_many_values(content):
        raise ValueError("it has more values than any released model's")
    try:
        found = json.loads(content, object_pairs_hook=unique, parse_constant=refused)
    except _OddError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


class _OddError(ValueError):
    """JSON that reads, but that no program should trust."""


def _config(content: bytes) -> dict[str, Any]:
    return flat_config(read_json(content))


def _modules(content: bytes) -> dict[str, Any]:
    """Of sentence-transformers: a list of what is applied in which order."""
    return _config(b'{"modules": %s}' % content)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that matter, by name: those of `text_config` as if at the top, those of
    other parts behind the name of the part, and the RoPE of both ways to write it.
    """
    flat: dict[str, Any] = {}
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else dict(config)
    merged.pop("text_config", None)
    said = [str(merged.pop(key)) for key in DTYPES if merged.get(key)]
    if said:
        merged[DTYPES[0]] = said[0].removeprefix("torch.")
    if isinstance(text, dict):  # what both say, each another thing
        merged |= {
            f"top.{key}": value
            for key, value in config.items()
            if key in text and key not in NEUTRAL and not _equal(value, text[key])
        }
    rope = merged.pop("rope_parameters", None)
    if isinstance(rope, dict):
        theta = rope.get("rope_theta")
        rest = {key: value for key, value in rope.items() if key != "rope_theta"}
        if rest.get("rope_type") == "default":
            del rest["rope_type"]
        for key, value in (("rope_theta", theta), ("rope_scaling", rest or None)):
            if merged.get(key) is None:
                merged[key] = value
            elif value is not None and not _equal(value, merged[key]):
                merged[f"rope_parameters.{key}"] = value
    for key, value in merged.items():
        is_part = key.endswith("_config") or key == "rope_scaling"
        if isinstance(value, dict) and is_part and len(value) <= 1_000:
            flat |= {
                f"{key}.{inner}": what for inner, what in value.items() if inner not in NEUTRAL
            }
        elif key not in NEUTRAL:
            flat[key] = value
    return {key: value for key, value in flat.items() if value is not None}


def _keys_apart(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[Difference]:
    """The keys whose values differ; what a side does not say and null are one, and a dtype that one
    side alone says is no difference.
    """
    apart = [key for key in {**base, **tuned} if not _equal(base.get(key), tuned.get(key))]
    if not (base.get(DTYPES[0]) and tuned.get(DTYPES[0])):
        apart = [key for key in apart if key != DTYPES[0]]
    ranks = {key: rank for rank, key in enumerate(FIRST)}
    apart.sort(key=lambda key: (ranks.get(key, len(ranks)), key))
    return [_difference(key, base.get(key), tuned.get(key)) for key in apart]


def _difference(key: str, base: object, tuned: object) -> Difference:
    if key in LARGE:
        first, second = (len(one) if isinstance(one, dict | list) else 0 for one in (base, tuned))
        sizes = f"{key} {first:,} -> {second:,} entries"
        return Difference(key, f"{key} differs" if first == second else sizes)
    word = key if WORD.fullmatch(key) else OTHER
    if SPECIAL.fullmatch(key) or key.startswith(NUMBERED):
        word = "special_tokens"
    return Difference(word, f"{visible(key)[:LONGEST]} {_said(base)} -> {_said(tuned)}")


def _equal(base: object, tuned: object) -> bool:
    """Whether two values of JSON are equal; 1 and 1.0 are, 1 and true are not."""
    if isinstance(base, bool) or isinstance(tuned, bool):
        return base is tuned
    if isinstance(base, dict | list) and isinstance(tuned, dict | list):
        return json.dumps(base, sort_keys=True) == json.dumps(tuned, sort_keys=True)
    return base == tuned


def _said(value: object) -> str:
    if value is None:
        return "(none)"
    text = visible(json.dumps(value, ensure_ascii=False, sort_keys=True))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _tokenizer_config(content: bytes) -> dict[str, Any]:
    """Its keys but the chat template; special tokens by their roles, and added ones by number."""
    side = {
        key: value
        for key, value in read_json(content).items()
        if key not in ("chat_template", *NEUTRAL)
    }
    added = side.pop("added_tokens_decoder", None)
    listed = added.items() if isinstance(added, dict) else ()
    numbers = {f"{NUMBERED}{key}": _flagged(value) for key, value in listed}
    return {**_contents(side), **numbers}


def _contents(side: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a file, with special tokens as text where it says more of them."""
    found = {
        key: _content(value) if SPECIAL.fullmatch(key) else value for key, value in side.items()
    }
    return {key: value for key, value in found.items() if value != []}


def _content(value: object) -> object:
    """The text of a special token, which may be written as an object that holds it."""
    if isinstance(value, dict):
        return value.get("content", value)
    return [_content(item) for item in value] if isinstance(value, list) else value


def _flagged(token: object) -> object:
    """The text of an added token, and how it is split off: what is true of it, such as lstrip."""
    if not isinstance(token, dict):
        return token
    return [token.get("content"), *sorted(key for key, value in token.items() if value is True)]


def _tokenizer(content: bytes) -> dict[str, Any]:
    """`tokenizer.json` of the tokenizers library."""
    side = read_json(content)
    model = side.pop("model", None)
    model = dict(model) if isinstance(model, dict) else {}
    side.pop("version", None)
    found: dict[str, Any] = {}
    listed = side.pop("added_tokens", None)
    for token in listed if isinstance(listed, list) else ():
        number = token.get("id") if isinstance(token, dict) else None
        found.setdefault(f"{NUMBERED}{number}", []).append(_flagged(token))
    found |= {"vocabulary": model.pop("vocab", None), "merges": _merges(model.pop("merges", None))}
    return {**side, **model, **found}


def _tokens(vocabulary: object) -> dict[Any, Any]:
    """Token -> number, of a mapping or of a list of tokens with scores."""
    if isinstance(vocabulary, dict):
        return vocabulary
    if isinstance(vocabulary, list):
        return {str(token): number for number, token in enumerate(vocabulary)}
    return {}


def _merges(merges: object) -> object:
    """Merges as texts: newer files write each as a list of two."""
    if isinstance(merges, list):
        return [
            " ".join(map(str, one))
            if isinstance(one, list) and not any(" " in str(part) for part in one)
            else one
            for one in merges
        ]
    return merges


def _lines(content: bytes) -> list[str]:
    return content.decode(errors="replace").rstrip("\n").split("\n")


KINDS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "tokenizer.json": _tokenizer,
    "tokenizer_config.json": _tokenizer_config,
    "special_tokens_map.json": lambda content: _contents(read_json(content)),
    "added_tokens.json": lambda content: {"vocabulary": read_json(content)},
    "vocab.json": lambda content: {"vocabulary": read_json(content)},
    "vocab.txt": lambda content: {"vocabulary": _lines(content)},
    "merges.txt": lambda content: {
        "merges": [line for line in _lines(content) if not line.startswith("#version")]
    },
    "params.json": _config,
    "modules.json": _modules,
    "config_sentence_transformers.json": _config,
}
"""What each kind of file says, by keys; of any other `config.json` as of a config."""


def words_of(apart: Iterable[Difference]) -> Sequence[str]:
    """Each word once, in order."""
    return list(dict.fromkeys(difference.word for difference in apart))
