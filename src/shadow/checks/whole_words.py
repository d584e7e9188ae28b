"""`whole`: tokens of config, generation config and tokenizer, against each other and the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shadow.checks.whole_names import number_of, text_config
from shadow.checks.whole_part import Part, json_object
from shadow.templates import Reason, Value

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
KINDS = ("eos", "bos", "pad")
# tokens that end a turn in templates of chats
ENDS = re.compile(r"<\|(?:im_end|eot_id|end|eot|return|end_of_turn)\|>|<end_of_turn>|<turn\|>")
SEEN = re.compile(r"(?i)image|audio|video|vision|pixel|img|speech")  # of other components
WORDS = {
    "token_beyond": "{kind} is token {token}, and the embedding has {rows:count row|rows}",
    "eos_apart": "eos is {one} here and {other} in {against}: generation does not stop where the"
    " other says",
    "token_unknown": "{kind} is {token}, which is not in the vocabulary",
    "vocab_size": "vocab_size is {said:count}, and the embedding has {rows:count row|rows}",
    "tokenizer_beyond": "{tokens:count token has|tokens have} no row in the embedding of"
    " {rows:count row|rows}, such as {token} ({number})",
    "other_components": "{token} ({number}) stands for what is no text, and has no row",
    "tokens_apart": "{kind} is {one} here and {other} in {against}",
    "turn_end": "turns of the chat template end with {token} ({number}), where generation does not"
    " stop",
    "spare_rows": "{rows:count row is|rows are} beyond the tokenizer",
}


@dataclass(frozen=True)
class Words:
    """What files say of tokens, and how many rows there are for them."""

    ids: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """By kind (eos, bos, pad), by file that names some: its tokens."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """By kind, the tokenizer's token of it that its vocabulary lacks."""
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    """The tokenizer's, as far as files of JSON have it."""
    vocab_size: int = 0
    """The config's; 0 where it says none."""
    rows: int = 0
    """Of the embedding of the language model; 0 where there is none."""
    ends: Sequence[str] = ()
    """What ends a turn in the chat template."""
    sees: bool = False
    """Whether the model has other components than language."""
    checks_size: bool = True
    """Whether no loader was asked, which compares vocab_size and rows by itself."""
    usual: Sequence[int] = ()
    """Tokens that a config of the class names unless it is told others."""


def judge_words(found: Words) -> Part:
    """Tokens without a row, and files that do not agree where generation stops."""
    part = Part()
    rows, size = found.rows or found.vocab_size, found.vocab_size
    for kind, files in found.ids.items():
        for file, tokens in files.items():
            for token in (one for one in tokens if rows and one >= rows):
                say = part.note if token in found.usual else part.fault
                say(file, "token_beyond", kind=kind, token=str(token), rows=rows)
        # generation stops where its own config says, or the model's
        stops = [file for file in (GENERATION, CONFIG) if file in files]
        for file in files if stops else ():
            if set(files[file]).isdisjoint(files[stops[0]]):
                one, other = (", ".join(map(str, files[at])) for at in (file, stops[0]))
                say = part.fault if kind == "eos" else part.note
                code = "eos_apart" if kind == "eos" else "tokens_apart"
                say(file, code, kind=kind, one=one, other=other, against=stops[0])
        for text in found.ends if stops and kind == "eos" else ():
            number = found.vocabulary.get(text, files[stops[0]][0])
            if number not in files[stops[0]]:
                part.note(stops[0], "turn_end", token=text, number=str(number))
    for kind, text in found.unknown.items():
        part.fault(TOKENIZER, "token_unknown", kind=kind, token=text)
    if found.checks_size and found.rows and size and size != found.rows:
        part.fault(CONFIG, "vocab_size", said=size, rows=found.rows)
    if found.vocabulary and rows:
        _judge_rows(part, found, rows)
    return part


def _judge_rows(part: Part, found: Words, rows: int) -> None:
    beyond = sorted((number, token) for token, number in found.vocabulary.items() if number >= rows)
    words = [one for one in beyond if found.sees or not SEEN.search(one[1])]
    if words:
        number, token = words[0]
        figures: dict[str, Value] = {"token": token, "number": str(number), "rows": rows}
        part.fault("tokenizer", "tokenizer_beyond", tokens=len(words), **figures)
    for number, token in beyond:
        if (number, token) not in words:
            part.note("tokenizer", "other_components", token=token, number=str(number))
    if (spare := rows - max(found.vocabulary.values()) - 1) > 0:
        part.notes.append(Reason("spare_rows", {"rows": spare}))


def read_words(small: Mapping[str, bytes], **facts: Any) -> Words:
    """What the small files of a checkpoint say of tokens. facts: the other fields."""
    config, generation, tokenizer = (
        json_object(small.get(name)) for name in (CONFIG, GENERATION, TOKENIZER)
    )
    special = json_object(small.get("special_tokens_map.json"))
    vocabulary = _vocabulary(small, tokenizer)
    ids: dict[str, dict[str, list[int]]] = {}
    unknown = {}
    for kind in KINDS:
        key, word = f"{kind}_token_id", f"{kind}_token"
        text = _text(tokenizer.get(word, special.get(word)))
        own = {
            CONFIG: config.get(key, text_config(config).get(key)),
            GENERATION: generation.get(key),
            TOKENIZER: vocabulary.get(text),
        }
        numbers = {
            file: [one for one in (said if isinstance(said, list) else [said]) if type(one) is int]
            for file, said in own.items()
        }
        ids[kind] = {file: some for file, some in numbers.items() if min(some, default=-1) >= 0}
        if text and vocabulary and text not in vocabulary:
            unknown[kind] = text
    template = str(tokenizer.get("chat_template") or "")
    template += small.get("chat_template.jinja", b"").decode(errors="replace")
    ends = [*dict.fromkeys(ENDS.findall(template))]
    size = number_of(config, ("vocab_size",))
    return Words(ids, unknown, vocabulary, size, ends=ends, **facts)


def _text(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _vocabulary(small: Mapping[str, bytes], tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> number, of files that have the vocabulary of a tokenizer; empty where none has."""
    whole = json_object(small.get("tokenizer.json"))
    model = whole.get("model")
    own = model.get("vocab") if isinstance(model, dict) else None
    listed = whole.get("added_tokens")
    if isinstance(own, list):  # a token and its score each
        own = {_text(one[0]): at for at, one in enumerate(own) if isinstance(one, list) and one}
    if not isinstance(own, dict):
        own = json_object(small.get("vocab.json"))
    pairs = [*own.items(), *(json_object(small.get("added_tokens.json")).items() if own else ())]
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict):
            pairs.append((_text(one.get("content")), one.get("id")))
    decoder = tokenizer.get("added_tokens_decoder")
    for number, one in decoder.items() if own and isinstance(decoder, dict) else ():
        if number.isascii() and number.isdecimal() and len(number) < 12:
            pairs.append((_text(one), int(number)))
    return {token: number for token, number in pairs if token and type(number) is int}
