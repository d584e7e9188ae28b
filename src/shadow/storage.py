"""Files at URLs, read and written with fsspec. The only module that uses fsspec.

Drivers find options and credentials in its configuration and in the environment. A URL that may
contain a credential is refused, and a driver's words, which may contain one, are not repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shadow.errors import ShadowError, UsageError
from shadow.extras import EXTRAS, installing
from shadow.files import safe_name
from shadow.text import holds_account, redacted_url

# Paths match too: pathlib makes `s3:/x` of `s3://x`.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=/|$)")
# Python prints what loggers without a handler say: of drivers, URLs of every retry.
LOGGERS = "adlfs", "aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "gcsfs", "s3fs"
SILENT = logging.NullHandler()


def url_of(place: str | os.PathLike[str]) -> str | None:
    """The URL of a place, even if pathlib made one slash of two; None for a local path."""
    text = os.fspath(place)
    match = URL.match(text)
    if match is None:
        return None
    scheme, rest = match[1].lower(), text[match.end() :].lstrip("/")
    return f"file:///{rest}" if scheme == "file" else f"{scheme}://{rest}"


def located(place: str | os.PathLike[str]) -> Path | Store:
    """A path, also for a `file://` URL, or a store, without accessing it.

    Raises UsageError for a URL that may contain a credential, or that has no driver.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    shown = redacted_url(url)[:200]
    scheme, _, rest = url.partition("://")
    if re.search(r"[?#]", url) or (scheme != "file" and holds_account(rest)):
        hint = "use the environment, or the configuration of fsspec"
        raise UsageError(f"{shown}: a URL must not contain an account, password or query", hint)
    if scheme == "file":
        return Path(unquote(rest))
    import fsspec

    if scheme not in fsspec.available_protocols() or not rest.strip("/"):
        hint = "such as s3://BUCKET/FOLDER, gs://, az://, hf:// or a folder"
        raise UsageError(f"{shown}: not a URL that fsspec reads", hint)
    return Store(f"{scheme}://{rest.strip('/')}")


@dataclass(frozen=True)
class Store:
    """A folder or a file at a URL."""

    url: str  # `scheme://bucket/folder`, without a slash at the end, without credentials

    def __str__(self) -> str:
        return self.url

    def at(self, *names: str) -> Store:
        """A folder or a file below."""
        return Store("/".join((self.url, *names)))

    def require_access(self) -> None:
        """Write a small file and remove it, so that refusals come before anything is measured."""
        with self.at(f".shadow-{os.getpid()}.tmp").reached() as (system, path):
            system.pipe_file(path, b"shadow")
            system.rm_file(path)

    def files(self) -> dict[str, Mapping[str, Any]]:
        """The metadata of each file below, by relative path."""
        with self.reached() as (system, top):
            system.invalidate_cache()
            try:
                files = system.find(top, detail=True)
            except FileNotFoundError:
                return {}
            top += "/"
            return {path[len(top) :]: files[path] for path in files if path.startswith(top)}

    def fetch(self, names: Collection[str], folder: Path) -> None:
        """Copy files into a folder."""
        with self.reached() as (system, top):
            here = [str(folder / name) for name in names]
            system.get([f"{top}/{name}" for name in names], here)

    def put(self, file: Path) -> None:
        """Upload a file under its name; it appears atomically."""
        with self.at(file.name).reached() as (system, path):
            system.put_file(str(file), path)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with self.at(name).reached() as (system, path), contextlib.suppress(FileNotFoundError):
            system.rm_file(path)

    @contextlib.contextmanager
    def reached(self) -> Iterator[tuple[Any, str]]:
        """Yield the driver and its path; an error becomes one line, without the driver's words."""
        from fsspec.core import url_to_fs

        for name in LOGGERS:
            logging.getLogger(name).addHandler(SILENT)
        try:
            yield url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:  # whose words may hold a signed URL
            hint = "check URL, credentials and endpoint (docs/lists.md), and run it again"
            if isinstance(error, ImportError):  # whose words are fsspec's
                scheme = self.url.partition(":")[0]
                hint = installing(scheme) if scheme in EXTRAS else str(error)
            fault = f"{self}: the store failed ({type(error).__name__})"
            raise ShadowError(fault, hint) from None


# Copies on this machine, which lie there until the process ends: their URLs by their paths
_copies: dict[str, str] = {}
scratch_folder = cache(partial(tempfile.TemporaryDirectory, prefix="shadow-"))


def place_for(store: Store) -> Path:
    """A path for the copy of a folder, under its own name."""
    name = safe_name(store.url.rpartition("/")[2])
    path = Path(tempfile.mkdtemp(dir=scratch_folder().name)) / name
    _copies[str(path)] = store.url
    return path


def as_given(text: object) -> str:
    """A path, or a text with paths, for people and files, with URLs instead of copies."""
    words = str(text)
    for path, url in list(_copies.items()):
        words = words.replace(path, url)
    return words


def work_folder(store: Store) -> Path:
    """The local folder for audits into a store: always the same for the same URL."""
    name = safe_name(store.url.rpartition("/")[2])
    digest = hashlib.sha256(store.url.encode()).hexdigest()[:12]
    cached = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    top = Path(os.environ.get("SHADOW_WORK_DIR") or f"{cached}/shadow/work")
    return top.expanduser().absolute() / f"{name}-{digest}"
