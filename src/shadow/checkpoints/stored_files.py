"""A file of a checkpoint, and its kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

FileKind = Literal[
    "weights", "index", "pickle", "config", "generation", "chat_template", "tokenizer", "code",
    "document", "other",
]  # fmt: skip
PATTERNS: Sequence[tuple[str, FileKind]] = (  # the first that fits the name in small letters
    (r".*\.index\.json", "index"),
    (r"generation_config\.json", "generation"),
    (r"chat_template\.json|.*\.jinja2?", "chat_template"),
    (r"(tokenizer(_config)?|special_tokens_map|added_tokens)\.json|merges\.txt", "tokenizer"),
    (r".*config\.json|(params|modules|config_sentence_transformers)\.json", "config"),
    (
        r".*\.(model|tiktoken|spm|bpe)|(tekken|encoder|.*vocab.*)\.json|(dict|vocab)\.txt",
        "tokenizer",
    ),
    (r".*\.(safetensors|gguf|onnx|onnx_data|h5|msgpack|tflite|ot)", "weights"),
    (r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|dill|mar)", "pickle"),
    (r".*\.(py|pyc|pyd|so|dll|dylib|sh|bat|exe|ipynb|whl|c|cc|cpp|cu|h|js)", "code"),
    (r".*\.(md|rst|pdf|png|jpe?g|gif|svg|webp)|(licen[cs]e|notice|use_policy).*", "document"),
)


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint."""

    path: str  # in the folder or repository; what is not UTF-8 in it is escaped
    size: int  # bytes; 0 of what cannot be read
    checksum: str | None = None  # `sha256:...` or `git:...`, hexadecimal; None if not known
    problem: str = ""  # why it cannot be read; empty where it can

    @property
    def kind(self) -> FileKind:
        """The kind of the file, by its name alone."""
        return kind_of(self.path)


def kind_of(path: str) -> FileKind:
    """The kind of a file, by its name."""
    name = PurePosixPath(path).name.lower()
    for pattern, kind in PATTERNS:
        if re.fullmatch(pattern, name):
            return kind
    return "other"
