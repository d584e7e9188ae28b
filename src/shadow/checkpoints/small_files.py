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
# keys of config files that change nothing of what a model computes
NEUTRAL = (
    *("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"),
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
PIECES = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")


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
    return name in _BY_NAME or name.endswith("config.json")


def differences(path: str, base: bytes, tuned: bytes) -> list[Difference]:
    """What two versions of a file differ in; empty where they say the same.

    The chat template in a tokenizer's config is left out: see `template_of`. Raises ValueError with
    a reason where a side cannot be understood.
    """
    compare = _BY_NAME.get(PurePosixPath(path).name, _compare_configs)
    try:
        return compare(base, tuned)
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


def _compare_configs(base: bytes, tuned: bytes) -> list[Difference]:
    return _keys_apart(flat_config(read_json(base)), flat_config(read_json(tuned)))


def _compare_modules(base: bytes, tuned: bytes) -> list[Difference]:
    """Of sentence-transformers: a list of what is applied in which order."""
    return _compare_configs(*(b'{"modules": %s}' % content for content in (base, tuned)))


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that matter, by name: those of `text_config` as if at the top, those of
    other parts behind the name of the part, and the RoPE of both ways to write it.
    """
    flat: dict[str, Any] = {}
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else dict(config)
    merged.pop("text_config", None)
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
    """The keys whose values differ; what a side does not say and null are one."""
    apart = [key for key in {**base, **tuned} if not _equal(base.get(key), tuned.get(key))]
    ranks = {key: rank for rank, key in enumerate(FIRST)}
    apart.sort(key=lambda key: (ranks.get(key, len(ranks)), key))
    return [_difference(key, base.get(key), tuned.get(key)) for key in apart]


def _difference(key: str, base: object, tuned: object) -> Difference:
    word = key if WORD.fullmatch(key) else OTHER
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


def _compare_tokenizer_configs(base: bytes, tuned: bytes) -> list[Difference]:
    sides = [read_json(base), read_json(tuned)]
    plain = [
        {
            key: value
            for key, value in side.items()
            if key not in ("chat_template", "added_tokens_decoder", *NEUTRAL)
            and not SPECIAL.fullmatch(key)
        }
        for side in sides
    ]
    decoders = [side.get("added_tokens_decoder") for side in sides]
    flags = [
        _flags([{**one, "id": key} for key, one in decoder.items() if isinstance(one, dict)])
        if isinstance(decoder, dict)
        else {}
        for decoder in decoders
    ]
    special = _special_apart(*(_special(side) for side in sides)) or _special_apart(*flags)
    return [*special, *_keys_apart(*plain)]


def _compare_special(base: bytes, tuned: bytes) -> list[Difference]:
    return _special_apart(_special(read_json(base)), _special(read_json(tuned)))


def _special(side: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens of a file by role, as text where it says more of them; those that are
    added to the vocabulary by number.
    """
    roles = {key: _content(value) for key, value in side.items() if SPECIAL.fullmatch(key)}
    added = side.get("added_tokens_decoder")
    listed = added if isinstance(added, dict) else {}
    numbers = {f"token {key}": _content(value) for key, value in listed.items()}
    return {key: value for key, value in {**roles, **numbers}.items() if value not in (None, [])}


def _content(value: object) -> object:
    """The text of a special token, which may be written as an object that holds it."""
    if isinstance(value, dict):
        return value.get("content", value)
    if isinstance(value, list):
        return [_content(item) for item in value]
    return value


def _special_apart(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[Difference]:
    apart = _keys_apart(base, tuned)
    texts = [difference.text for difference in apart[:3]]
    more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
    return [Difference("special_tokens", f"special tokens: {', '.join(texts)}{more}")][: len(apart)]


def _compare_tokenizers(base: bytes, tuned: bytes) -> list[Difference]:
    """`tokenizer.json` of the tokenizers library."""
    sides = [read_json(base), read_json(tuned)]
    models = [side["model"] if isinstance(side.get("model"), dict) else {} for side in sides]
    apart = _vocabularies_apart(*(_tokens(model.get("vocab")) for model in models))
    if not apart and not _equal(*(model.get("vocab") for model in models)):
        apart.append(Difference("vocabulary", "vocabulary differs"))
    if not _equal(*(_merges(model.get("merges")) for model in models)):
        apart.append(Difference("merges", "merges differ"))
    listed = [side.get("added_tokens") for side in sides]
    added, flags = ([of(one) for one in listed] for of in (_added, _flags))
    apart += _special_apart(*added) or _special_apart(*flags)
    pieces = [piece for piece in PIECES if not _equal(*(side.get(piece) for side in sides))]
    rest = [
        {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        for model in models
    ]
    apart += [Difference(piece, f"{piece} differs") for piece in pieces]
    known = ("version", "model", "added_tokens", *PIECES)
    more = [{key: value for key, value in side.items() if key not in known} for side in sides]
    return [*apart, *_keys_apart(*rest), *_keys_apart(*more)]


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


def _added(tokens: object) -> dict[str, Any]:
    """The texts of added tokens by number."""
    found: dict[str, Any] = {}
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict):
            key = f"token {token.get('id')}"
            found[f"{key} again" if key in found else key] = token.get("content")
    return found


def _flags(tokens: object) -> dict[str, Any]:
    """By number, how added tokens are split off and kept: what is true of each, such as lstrip."""
    listed = tokens if isinstance(tokens, list) else []
    return {
        f"token {token.get('id')}": sorted(key for key, value in token.items() if value is True)
        for token in listed
        if isinstance(token, dict)
    }


def _vocabularies_apart(base: Mapping[Any, Any], tuned: Mapping[Any, Any]) -> list[Difference]:
    added = sum(token not in base for token in tuned)
    removed = sum(token not in tuned for token in base)
    moved = sum(not _equal(tuned[token], base[token]) for token in base if token in tuned)
    if not (added or removed or moved):
        return []
    counts = ((added, "added"), (removed, "removed"), (moved, "with another number"))
    said = ", ".join(f"{count:,} {what}" for count, what in counts if count)
    return [Difference("vocabulary", f"vocabulary {len(base):,} -> {len(tuned):,} tokens: {said}")]


def _compare_vocabularies(base: bytes, tuned: bytes) -> list[Difference]:
    return _vocabularies_apart(read_json(base), read_json(tuned))


def _compare_lists(base: bytes, tuned: bytes) -> list[Difference]:
    """`vocab.txt`: a token a line."""
    sides = [_lines(content) for content in (base, tuned)]
    apart = _vocabularies_apart(*({line: at for at, line in enumerate(side)} for side in sides))
    if not apart and sides[0] != sides[1]:
        apart.append(Difference("vocabulary", "vocabulary differs"))
    return apart


def _compare_merges(base: bytes, tuned: bytes) -> list[Difference]:
    """`merges.txt`: a merge a line, after a line that says so."""
    sides = [
        [line for line in _lines(content) if not line.startswith("#version")]
        for content in (base, tuned)
    ]
    if sides[0] == sides[1]:
        return []
    return [Difference("merges", f"merges differ ({len(sides[0]):,} -> {len(sides[1]):,})")]


def _lines(content: bytes) -> list[str]:
    return content.decode(errors="replace").rstrip("\n").split("\n")


_BY_NAME: Mapping[str, Callable[[bytes, bytes], list[Difference]]] = {
    "tokenizer.json": _compare_tokenizers,
    "tokenizer_config.json": _compare_tokenizer_configs,
    "special_tokens_map.json": _compare_special,
    "added_tokens.json": _compare_vocabularies,
    "vocab.json": _compare_vocabularies,
    "vocab.txt": _compare_lists,
    "merges.txt": _compare_merges,
    "params.json": _compare_configs,
    "modules.json": _compare_modules,
    "config_sentence_transformers.json": _compare_configs,
}


def words_of(apart: Iterable[Difference]) -> Sequence[str]:
    """Each word once, in order."""
    return list(dict.fromkeys(difference.word for difference in apart))
