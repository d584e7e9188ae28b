"""Every file of a checkpoint's folder or repository: name, kind, size, checksum, and how two
versions of a small file differ, key by key. Runs none of them.

In a folder, small files are read for their sha256; on the Hub, the listing of the commit has
checksums, and a small file is fetched only when its bytes are needed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.opening import Assembled, Found, Located
from shadow.checkpoints.safetensors_files import strict_json
from shadow.checkpoints.transfers import Say, Transfer
from shadow.checkpoints.weight_files import ADAPTER_CONFIG
from shadow.errors import ShadowError
from shadow.files import read_start
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.checkpoints.hub import Snapshot

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


@dataclass(frozen=True)
class StoredFile:
    """A file of one side of a pair."""

    path: str  # in the folder or repository; what is not UTF-8 in it is escaped
    size: int | None  # bytes; None of what is no regular file
    checksum: str | None  # `sha256:...` or `git:...`, hexadecimal; None where it is not known
    problem: str = ""  # why it cannot be read; empty where it can

    @property
    def kind(self) -> FileKind:
        """The kind of the file, by its name alone."""
        return kind_of(self.path)


@dataclass(frozen=True)
class Listing:
    """The files of one side, or of one part of it."""

    files: dict[str, StoredFile]
    is_complete: bool  # whether a file that is not listed is not there
    read_from: frozenset[str] = frozenset()
    """The files that its weights are read from, as far as that is known."""
    folder: Path | None = None  # of a folder; None of a repository
    snapshot: Snapshot | None = field(default=None, repr=False)

    @property
    def is_adapter(self) -> bool:
        """Return whether it is an adapter, which leaves its base's files in use."""
        return ADAPTER_CONFIG in self.files

    @property
    def is_gguf(self) -> bool:
        """Return whether its weights are read from GGUF files, which contain config and
        tokenizer.
        """
        return any(name.endswith(GGUF) for name in self.read_from)


def kind_of(path: str) -> FileKind:
    """Return the kind of a file, by its name."""
    name = PurePosixPath(path).name.lower()
    return next((kind for pattern, kind in PATTERNS if re.fullmatch(pattern, name)), "other")


def listings_of(found: Found, skipped: Sequence[Path] = ()) -> list[tuple[str, Listing]]:
    """Return the files of each part of a side: by component for a base with one part per component,
    otherwise of the one part "". skipped: folders to pass over, such as that of the report.
    """
    parts = found.parts if isinstance(found, Assembled) else (("", found),)
    listings = []
    for name, part in parts:
        if isinstance(part, Located):
            listing, read = listing_of_snapshot(part.snapshot), [*part.weights.shards]
        else:
            root, read = Path(part.reference), [*part.sources]
            if root.is_file():
                file = _stored(root.parent, root.name, SMALL)
                listing = Listing({file.path: file}, is_complete=True, folder=root.parent)
            else:
                listing = listing_of_folder(root, skipped)
        listings.append((name, replace(listing, read_from=frozenset(read))))
    return listings


def listing_of_snapshot(snapshot: Snapshot) -> Listing:
    """List the files of a commit of the Hub; offline, those in the cache."""
    listed = sorted(snapshot.files.items())
    files = {
        _text(path): StoredFile(_text(path), file.size, file.checksum)
        for path, file in listed[:MAX_FILES]
    }
    is_complete = not snapshot.offline and len(listed) <= MAX_FILES
    return Listing(files, is_complete, snapshot=snapshot)


def listing_of_folder(root: Path, skipped: Sequence[Path] = ()) -> Listing:
    """List the files below a folder, except those of hidden folders and of skipped ones."""
    passed = {os.path.realpath(path) for path in skipped}

    def walk() -> Iterator[str]:
        """Yield the files in a fixed order, without links to folders."""
        for folder, folders, names in os.walk(root):
            here = Path(folder)
            shown = (name for name in sorted(folders) if not name.startswith("."))
            folders[:] = [name for name in shown if os.path.realpath(here / name) not in passed]
            yield from (os.path.relpath(here / name, root) for name in sorted(names))

    files, left, paths = {}, ALL_SMALL, walk()
    for path in itertools.islice(paths, MAX_FILES):
        file = _stored(root, path, min(left, SMALL))
        left -= (file.size or 0) if file.checksum else 0
        files[file.path] = file
    return Listing(dict(sorted(files.items())), next(paths, None) is None, folder=root)


def _stored(root: Path, path: str, limit: int) -> StoredFile:
    """Describe a file of a folder, with its sha256 if it has at most limit bytes."""
    try:
        state = (root / path).stat()
        if not stat.S_ISREG(state.st_mode):
            return StoredFile(_text(path), None, None, "not a regular file")
        if state.st_size > limit:
            return StoredFile(_text(path), state.st_size, None)
        content = read_start(root / path, limit + 1) or b""
    except OSError as error:
        return StoredFile(_text(path), None, None, f"cannot be read: {error.strerror or error}")
    return StoredFile(_text(path), len(content), checksum_like("", content))


def _text(path: str) -> str:
    """Return a name as UTF-8 text; other bytes are escaped."""
    return path.encode(errors="backslashreplace").decode()


def read_small(listing: Listing, file: StoredFile, say: Say) -> bytes:
    """Return the bytes of a file of at most SMALL bytes, fetched if necessary. Raises ShadowError
    if they are not available.
    """
    if file.problem or file.size is None:
        raise ShadowError(file.problem or "not a regular file")
    if file.size > SMALL:
        raise ShadowError(f"larger than {SMALL:,} bytes")
    parts = PurePosixPath(file.path).parts
    if ".." in parts or "\\" in file.path or file.path.startswith("/"):
        raise ShadowError("its name leaves the repository")
    path = (listing.folder or Path()) / file.path
    if listing.snapshot is not None:
        from shadow.checkpoints.hub import fetch_whole

        remote = listing.snapshot.files.get(file.path)
        if remote is None:
            raise ShadowError("its name is not text")
        path, _ = fetch_whole(remote, Transfer(say))
    try:
        content = read_start(path, SMALL + 1)
    except (OSError, ValueError) as error:
        raise ShadowError("cannot be read") from error
    if content is None or len(content) > SMALL:
        raise ShadowError("changed while it was read")
    return content


def checksum_like(other: str, content: bytes) -> str:
    """Return the checksum of bytes, of the kind of another: `sha256:`, or a Git blob's sha1."""
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


LONGEST = 60  # characters of a value
WORD, OTHER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,59}", re.ASCII), "other_keys"
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
SPECIAL = re.compile(r"(?!add_)\w+_token|(additional|extra)_special_tokens|added_tokens(_decoder)?")


def differences(path: str, base: bytes, tuned: bytes) -> list[tuple[str, str]]:
    """Return how two versions of a file differ: a word, such as `rope_theta` or `vocabulary`, and a
    text, such as `rope_theta 10000.0 -> 1000000.0`. Raises ValueError with a reason if a side
    cannot be understood.
    """
    try:
        first, second = contents(path, base), contents(path, tuned)
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
