"""The files of a checkpoint, wherever it lies: one listing, which reads and opens each of them.

Of a folder, small files are read for their sha256; on the Hub, the listing of a commit has
checksums, and a small file is fetched only when its bytes are needed. Runs none of them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.safetensors_files import held_shard
from shadow.checkpoints.sources import LocalFile, Shard, read_shard
from shadow.checkpoints.stored_files import StoredFile
from shadow.checkpoints.transfers import Say, Transfer
from shadow.checkpoints.weight_files import ADAPTER_CONFIG
from shadow.errors import FileError
from shadow.files import read_start

MAX_FILES = 20_000  # of a side; the largest released repositories have some hundreds
SMALL = 1 << 26  # bytes of a file that is read whole; the largest tokenizer.json has 40 MB
ALL_SMALL = 1 << 28  # bytes that are read of the small files of a folder
SAMPLES = 64  # places that are read of a large file
SAMPLE = 1 << 12  # bytes at each
AGAIN = "fetch the file again"


@dataclass(frozen=True)
class Listing:
    """The files of a folder; of other origins in a subclass."""

    name: str  # of the folder or repository, for messages
    files: Mapping[str, StoredFile]  # by path
    is_complete: bool = True  # whether a file that is not listed is not there
    folder: Path | None = None  # None of a repository
    commit: str | None = None  # 40 hexadecimal digits; None of a folder
    access: str | None = None  # `open`, `gated` or `private`; None where nothing was asked
    read_from: frozenset[str] = frozenset()
    """The files that its weights are read from, as far as that is known."""
    absent: tuple[str, str] = ("folder", "check that the download is complete")
    """Where a file is looked for, and what to do if it is not there."""
    hint: str | None = None  # of a file that is not trusted, instead of its own

    def holds(self, path: str) -> bool:
        """Look for a file, also below a folder that is not listed."""
        folder = self.folder or Path()
        return (folder / path).exists()

    def read(self, path: str, say: Say) -> bytes:
        """Read a small file, fetched if necessary. Raises FileError if it cannot be read."""
        return read_small(self._local(path), path)

    def shard(self, path: str, by: Transfer, scratch: Path | None) -> Shard:
        """Read the header of a file of weights; a `.bin` file may be unpacked into scratch. Raises
        FileError if it is damaged.
        """
        file = held_shard(self._local(path), path)
        header, data = read_shard(file, path, scratch)
        return header, LocalFile(data.path, data)

    def _local(self, path: str) -> Path:
        file = self.files.get(path)
        if file is not None and file.problem:
            raise FileError(f"{path}: {file.problem}", AGAIN)
        folder = self.folder or Path()
        return folder / path

    @property
    def is_adapter(self) -> bool:
        """True of an adapter, which leaves its base's files in use."""
        return ADAPTER_CONFIG in self.files

    @property
    def is_gguf(self) -> bool:
        """True if its weights are read from GGUF files, which contain config and tokenizer."""
        return any(name.endswith(GGUF) for name in self.read_from)


def listing_of_file(path: Path) -> Listing:
    """A file as if it were alone in its folder."""
    folder = path.parent
    file = _stored(folder, path.name, SMALL)
    files = {file.path: file}
    return Listing(str(path), files, folder=folder)


def listing_of_folder(root: Path, skipped: Sequence[Path] = ()) -> Listing:
    """List the files below a folder, except those of hidden folders and of skipped ones."""
    passed = {os.path.realpath(path) for path in skipped}

    def walk() -> Iterator[str]:
        """Yield the files in a fixed order, without links to folders."""
        for folder, folders, names in os.walk(root):
            here = Path(folder)
            shown = []
            for name in sorted(folders):
                is_passed = os.path.realpath(here / name) in passed
                if not is_passed and not name.startswith("."):
                    shown.append(name)
            folders[:] = shown
            for name in sorted(names):
                yield os.path.relpath(here / name, root)

    files = {}
    left = ALL_SMALL
    paths = walk()
    for path in itertools.islice(paths, MAX_FILES):
        file = _stored(root, path, min(left, SMALL))
        if file.checksum:
            left -= file.size
        files[file.path] = file
    is_complete = next(paths, None) is None
    in_order = dict(sorted(files.items()))
    return Listing(str(root), in_order, is_complete, root)


def top_of_folder(root: Path) -> Listing:
    """List what lies in a folder itself, and in those of modules of sentence-transformers
    (`1_Pooling`), without checksums.
    """
    files = {}
    inner = itertools.islice(root.glob("[0-9]*_*/*"), MAX_FILES)
    for path in sorted([*root.iterdir(), *inner]):
        name = path.relative_to(root).as_posix()
        file = _stored(root, name, -1)
        files[file.path] = file
    return Listing(str(root), files, folder=root)


def _stored(root: Path, path: str, limit: int) -> StoredFile:
    """Describe a file of a folder, with its sha256 if it has at most limit bytes."""
    name = path.encode(errors="backslashreplace").decode()
    if name != path:
        return StoredFile(name, 0, problem="its name is not UTF-8")
    try:
        state = (root / path).stat()
        if not stat.S_ISREG(state.st_mode):
            return StoredFile(name, 0, problem="not a regular file")
        if state.st_size > limit:
            return StoredFile(name, state.st_size)
        content = read_start(root / path, limit + 1) or b""
    except OSError as error:
        return StoredFile(name, 0, problem=f"cannot be read: {error.strerror or error}")
    checksum = checksum_like("", content)
    return StoredFile(name, len(content), checksum)


def read_small(path: Path, name: str) -> bytes:
    """Read a file of at most SMALL bytes. Raises FileError."""
    try:
        content = read_start(path, SMALL + 1)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{name}: {why}", AGAIN) from error
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
        digest = hashlib.sha256(content)
        return f"sha256:{digest.hexdigest()}"
    head = b"blob %d\0" % len(content)
    digest = hashlib.sha1(head + content, usedforsecurity=False)
    return f"git:{digest.hexdigest()}"


def differ_in_sample(first: Listing, second: Listing, path: str) -> bool | None:
    """True if two files of one size differ in a few positions that are read; False if they are the
    same file, None if they agree there.
    """
    own_path = (first.folder or Path()) / path
    other_path = (second.folder or Path()) / path
    try:
        if own_path.samefile(other_path):
            return False
        end = own_path.stat().st_size - SAMPLE
        with own_path.open("rb") as own, other_path.open("rb") as other:
            for number in range(SAMPLES):
                start = end * number // (SAMPLES - 1)
                own.seek(start)
                other.seek(start)
                content = own.read(SAMPLE)
                if content != other.read(SAMPLE):
                    return True
    except OSError:  # what cannot be read is not known
        return None
    return None
