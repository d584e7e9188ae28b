"""The files of a checkpoint, wherever it lies: name, kind, size, checksum, and how each is read.

Of a folder, small files are read for their sha256; on the Hub, the listing of a commit has
checksums, and a small file is fetched only when its bytes are needed. Runs none of them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.safetensors_files import held_shard
from shadow.checkpoints.sources import LocalFile, Shard, read_header
from shadow.checkpoints.transfers import Say, Transfer
from shadow.checkpoints.weight_files import ADAPTER_CONFIG
from shadow.errors import FileError
from shadow.files import read_start

FileKind = Literal[
    "weights", "index", "pickle", "config", "generation", "chat_template", "tokenizer", "code",
    "document", "other",
]  # fmt: skip
MAX_FILES = 20_000  # of a side; the largest released repositories have some hundreds
SMALL = 1 << 26  # bytes of a file that is read whole; the largest tokenizer.json has 40 MB
ALL_SMALL = 1 << 28  # bytes that are read of the small files of a folder
SAMPLES, SAMPLE = 64, 1 << 12  # places that are read of a large file, and bytes at each
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


AGAIN = "fetch the file again"


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint."""

    path: str  # in the folder or repository; what is not UTF-8 in it is escaped
    size: int | None  # bytes; None of what is no regular file
    checksum: str | None = None  # `sha256:...` or `git:...`, hexadecimal; None if not known
    problem: str = ""  # why it cannot be read; empty where it can

    @property
    def kind(self) -> FileKind:
        """The kind of the file, by its name alone."""
        return kind_of(self.path)


@dataclass(frozen=True)
class Listing:
    """The files of a folder; of other origins in a subclass."""

    name: str  # of the folder or repository, for messages
    files: Mapping[str, StoredFile]  # by path
    is_complete: bool = True  # whether a file that is not listed is not there
    folder: Path | None = None  # None of a repository
    read_from: frozenset[str] = field(default=frozenset(), kw_only=True)
    """The files that its weights are read from, as far as that is known."""

    def read(self, path: str, say: Say) -> bytes:
        """Read a small file, fetched if necessary. Raises FileError if it cannot be read."""
        return read_small(self._local(path), path)

    def shard(self, path: str, by: Transfer) -> Shard:
        """Read the header of a safetensors or GGUF file. Raises FileError if it is damaged."""
        held = held_shard(self._local(path), path)
        return read_header(held, path), LocalFile(held.path, held)

    def _local(self, path: str) -> Path:
        if problem := self.files[path].problem:
            raise FileError(f"{path}: {problem}", AGAIN)
        return (self.folder or Path()) / path

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which leaves its base's files in use."""
        return ADAPTER_CONFIG in self.files

    @property
    def is_gguf(self) -> bool:
        """Whether its weights are read from GGUF files, which contain config and tokenizer."""
        return any(name.endswith(GGUF) for name in self.read_from)


def kind_of(path: str) -> FileKind:
    """The kind of a file, by its name."""
    name = PurePosixPath(path).name.lower()
    return next((kind for pattern, kind in PATTERNS if re.fullmatch(pattern, name)), "other")


def listing_of_file(path: Path) -> Listing:
    """A file as if it were alone in its folder."""
    file = _stored(path.parent, path.name, SMALL)
    return Listing(str(path), {file.path: file}, folder=path.parent)


def listing_of_folder(root: Path, skipped: Sequence[Path] = ()) -> Listing:
    """List the files below a folder, except those of hidden folders and of skipped ones."""
    passed = {os.path.realpath(path) for path in skipped}

    def walk() -> Iterator[str]:
        """Yield the files in a fixed order, without links to folders."""
        for folder, folders, names in os.walk(root):
            here = Path(folder)
            shown = (name for name in sorted(folders) if not name.startswith("."))
            folders[:] = [name for name in shown if os.path.realpath(here / name) not in passed]
            for name in sorted(names):
                yield os.path.relpath(here / name, root)

    files = {}
    left = ALL_SMALL
    paths = walk()
    for path in itertools.islice(paths, MAX_FILES):
        file = _stored(root, path, min(left, SMALL))
        if file.checksum and file.size:
            left -= file.size
        files[file.path] = file
    is_complete = next(paths, None) is None
    return Listing(str(root), dict(sorted(files.items())), is_complete, root)


def top_of_folder(root: Path) -> Listing:
    """List the files of a folder without those of its folders and without checksums."""
    paths = sorted(path for path in root.iterdir() if not path.is_dir())
    files = [_stored(root, path.name, -1) for path in paths]
    return Listing(str(root), {file.path: file for file in files}, folder=root)


def _stored(root: Path, path: str, limit: int) -> StoredFile:
    """Describe a file of a folder, with its sha256 if it has at most limit bytes."""
    name = as_text(path)
    if name != path:
        return StoredFile(name, None, problem="its name is not UTF-8")
    try:
        state = (root / path).stat()
        if not stat.S_ISREG(state.st_mode):
            return StoredFile(name, None, problem="not a regular file")
        if state.st_size > limit:
            return StoredFile(name, state.st_size)
        content = read_start(root / path, limit + 1) or b""
    except OSError as error:
        return StoredFile(name, None, problem=f"cannot be read: {error.strerror or error}")
    return StoredFile(name, len(content), checksum_like("", content))


def as_text(path: str) -> str:
    """A name as UTF-8 text; other bytes are escaped."""
    return path.encode(errors="backslashreplace").decode()


def read_small(path: Path, name: str) -> bytes:
    """Read a file of at most SMALL bytes. Raises FileError."""
    try:
        content = read_start(path, SMALL + 1)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise FileError(f"{name}: {getattr(error, 'strerror', None) or error}", AGAIN) from error
    if content is None:
        raise FileError(f"{name}: not a regular file", AGAIN)
    require_small(name, len(content))
    return content


def require_small(name: str, size: int) -> None:
    """Raise FileError for a file that is too large to be read whole."""
    if size > SMALL:
        raise FileError(f"{name}: larger than that of any released model", AGAIN)


def checksum_like(other: str, content: bytes) -> str:
    """The checksum of bytes, of the kind of another: `sha256:`, or a Git blob's sha1."""
    if not other.startswith("git:"):
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    head = b"blob %d\0" % len(content)
    return f"git:{hashlib.sha1(head + content, usedforsecurity=False).hexdigest()}"


def differ_in_sample(first: Listing, second: Listing, path: str) -> bool | None:
    """Return whether two files of one size differ in a few positions that are read; False if they
    are the same file, None if they agree there.
    """
    here, there = ((side.folder or Path()) / path for side in (first, second))
    try:
        if here.samefile(there):
            return False
        size = here.stat().st_size
        places = [(size - SAMPLE) * place // (SAMPLES - 1) for place in range(SAMPLES)]
        with here.open("rb") as one, there.open("rb") as other:
            for place in places:
                one.seek(place)
                other.seek(place)
                if one.read(SAMPLE) != other.read(SAMPLE):
                    return True
    except OSError:  # what cannot be read is not known
        return None
    return None
