"""The files beside the weights: what differs in them, as a sentence and as a table. Pure.

Words are keys of configs that are letters, digits and `_.-` alone, or those of WORDS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shadow.claims.draft import Sentence
from shadow.summary.rows import FileRow
from shadow.telling.document import Block, named, table_of, worded
from shadow.text import and_list

if TYPE_CHECKING:
    from shadow.claims.summary import Summary

NAMED = 4  # differences that a sentence names
WORDS = {  # what differs, in words of a sentence, and whether they are a plural
    "chat_template": ("the chat template", False),
    "vocabulary": ("the tokenizer's vocabulary", False),
    "merges": ("the tokenizer's merges", True),
    "special_tokens": ("special tokens", True),
    "tokenizer": ("the tokenizer", False),
    "config": ("a config", False),
    "generation": ("the generation config", False),
    "code": ("code", False),
    "pickle": ("a pickle", False),
    "other_keys": ("other keys", True),
}
VERBS = {  # by the state of files, of one thing and of several
    "changed": ("differs", "differ"),
    "added": ("was added", "were added"),
    "removed": ("is missing in the tuned model", "are missing in the tuned model"),
}
WEIGHTS = ("weights", "index")  # kinds that the table leaves out: their tensors are compared
# words that are named before others: what changes what a model is given, or runs code
FIRST = ("code", "pickle", "auto_map", "chat_template", "vocabulary", "merges", "special_tokens")
TITLE = "Files beside the weights"
TOKENS_BEYOND = "tokens_beyond"  # of tokens, beyond the rows of the vocabulary
OF_ADAPTERS = "adapter_config.json"  # that an adapter has one is no news


def files_sentences(summary: Summary) -> list[Sentence]:
    """One sentence on what differs beside the weights; none where nothing does or is known."""
    files = summary.files
    if files is None:
        return []
    by_state = {state: _words(files.rows, state) for state in ("changed", "added", "removed")}
    if not any(by_state.values()):
        return []
    text = and_list([_clause(state, words) for state, words in by_state.items() if words])
    if any(TOKENS_BEYOND in row.differs for row in files.rows):
        text += ". Some token numbers have no row in the model"
    return [Sentence("files", f"Beside the weights, {text}.", {})]


def _words(rows: list[FileRow], state: str) -> list[str]:
    """What differs in the files of a state, each word once, those of FIRST first."""
    told = [row for row in rows if row.state == state and not row.path.endswith(OF_ADAPTERS)]
    words = dict.fromkeys(word for row in told for word in row.differs if word != TOKENS_BEYOND)
    return sorted(words, key=lambda word: FIRST.index(word) if word in FIRST else len(FIRST))


def _clause(state: str, words: list[str]) -> str:
    """`rope_theta and the chat template differ`."""
    named = [WORDS.get(word, (word, False)) for word in words[:NAMED]]
    texts = [text for text, _ in named]
    is_plural = len(texts) > 1 or any(plural for _, plural in named)
    if len(words) > NAMED:
        texts.append("others")
    return f"{and_list(texts)} {VERBS[state][is_plural]}"


FIELDS = (named("file", "path"), worded("state"), worded("what", lambda row: row.detail or ""))


def files_blocks(summary: Summary) -> Iterator[Block]:
    """The table of files that are not the same; nothing where there is none."""
    listed = [] if summary.files is None else summary.files.rows
    rows = [row for row in listed if row.kind not in WEIGHTS]
    if rows:
        yield table_of(FIELDS, rows, TITLE, when="full", about="files")
