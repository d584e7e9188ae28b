"""Files at URLs: object stores, by way of fsspec, whose drivers come with extras.

The only module that knows fsspec.

A URL never holds a credential: one with a password or a query is refused, and what a driver says is
repeated only after the values of the options and of the environment's secrets were taken out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit
from urllib.request import getproxies

from shadow.errors import ShadowError, UsageError
from shadow.extras import require
from shadow.files import safe_name
from shadow.text import PORT, holds_account, redacted, redacted_url

# Paths match too: pathlib makes `s3:/x` of `s3://x`.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=/|$)")


@dataclass(frozen=True)
class Scheme:
    """What URLs begin with."""

    protocol: str  # in fsspec
    extra: str | None  # brings the driver; None where it is always there
    atomic: bool  # whether the store creates a file only if it is not there, in one step
    credentials: str = ""  # where the driver finds them, for hints


SCHEMES = {
    "s3": Scheme("s3", "s3", atomic=True, credentials="AWS_ACCESS_KEY_ID, AWS_PROFILE"),
    "gs": Scheme("gs", "gs", atomic=True, credentials="GOOGLE_APPLICATION_CREDENTIALS"),
    "az": Scheme("abfs", "az", atomic=True, credentials="AZURE_STORAGE_ACCOUNT_NAME"),
    "hf": Scheme("hf", None, atomic=False, credentials="HF_TOKEN"),
    "memory": Scheme("memory", None, atomic=True),
}
OTHER_NAMES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
WRITABLE_HF = "buckets/"  # the rest of the Hub are git repositories

OPTIONS = "SHADOW_STORAGE_OPTIONS"
WORK = "SHADOW_WORK_DIR"
MAX_OPTIONS = 1_000_000  # bytes of a file of options
MOMENT = 2.0  # seconds in which a file that is being created appears
AT_ONCE = 8  # files that are fetched at a time
# Seconds for the first answer of a store. Drivers try for minutes, some also for credentials.
FIRST_ANSWER = 30.0
CONNECTED = 5.0  # seconds in which its server takes a connection: drivers try far longer
# Drivers retry 5xx and broken connections themselves. Those of S3 would wait a minute to connect,
# many times over.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}},
}
# Words in the names of variables that hold secrets.
SECRETS = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CONNECTION_STRING|SAS", re.IGNORECASE)
LEAST_SECRET = 6  # characters; shorter values, such as `true`, are no secrets


def url_of(place: str | os.PathLike[str]) -> str | None:
    """The URL of a place, also where pathlib made one slash of two; None for a path here."""
    text = os.fspath(place)
    match = URL.match(text)
    if match is None:
        return None
    scheme, rest = match[1].lower(), text[match.end() :]
    path = rest.lstrip("/")
    if scheme != "file":
        return f"{scheme}://{path}"
    if not rest.startswith("///"):
        path = re.sub(r"^localhost(/|$)", "", path, flags=re.IGNORECASE)
    return f"{scheme}:///{path}"


def located(
    place: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> Path | Store:
    """What a place stands for: a path, also of a `file://` URL, or a store.

    Raises UsageError for a URL that is not supported or that holds a credential. Reaches for
    nothing.
    """
    url = url_of(place)
    if url is None:
        return Path(place)
    shown = redacted_url(url)[:200]
    scheme = OTHER_NAMES.get(url.partition(":")[0], url.partition(":")[0])
    if scheme == "file":
        if re.search(r"[?#]", url):
            hint = "leave file:// out, or write %3F for ? and %23 for #"
            raise UsageError(f"{shown}: a URL may have no query", hint)
        return Path(unquote(url.removeprefix("file://")))
    if scheme in ("http", "https"):
        raise UsageError(
            f"{shown}: web addresses are not supported",
            "fetch it, as with curl; a list may be `--list -`",
        )
    if scheme not in SCHEMES:
        raise unsupported(shown, scheme)
    rest = url.partition("://")[2]
    if holds_account(rest):
        raise UsageError(
            f"{shown}: a URL may hold no account and no password",
            f"use --storage-options or {OPTIONS}",
        )
    if PORT.match(rest.partition("/")[0]):
        hint = "name the server as endpoint_url in --storage-options"
        raise UsageError(f"{shown}: a URL may name no server and no port", hint)
    if re.search(r"[?#]", url):
        raise UsageError(f"{shown}: a URL may have no query", f"use --storage-options or {OPTIONS}")
    path = rest.strip("/")
    if not path or any(part in (".", "..") for part in path.split("/")) or not path.isprintable():
        raise UsageError(f"{shown}: no bucket or folder in it", f"write {scheme}://BUCKET/FOLDER")
    return Store(f"{scheme}://{path}", dict(options or {}))


def unsupported(shown: str, scheme: str) -> UsageError:
    """The refusal of a kind of URL that is not supported. shown: the URL."""
    known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "file"))
    return UsageError(
        f"{shown}: URLs of {scheme}:// are not supported", f"one of {known}, or a folder"
    )


def parsed_options(text: str | None) -> dict[str, Any]:
    """Options of a driver, JSON or a file of it, never repeated. Raises UsageError."""
    if not text:
        return {}
    raw, such = text, """such as '{"anon": true}'"""
    if not text.lstrip().startswith("{"):
        try:
            with Path(text).open("rb") as file:
                raw = file.read(MAX_OPTIONS).decode()
        except (OSError, ValueError):
            raise UsageError(
                "--storage-options: neither JSON nor a file that can be read",
                f"write JSON, {such}, or the name of a file with JSON",
            ) from None
    try:
        options = json.loads(raw)
    except (ValueError, RecursionError):
        raise UsageError("--storage-options: not valid JSON", such) from None
    if not isinstance(options, dict):
        raise UsageError("--storage-options: no JSON object", such)
    return options


@dataclass(frozen=True)
class Entry:
    """A file of a store."""

    size: int  # bytes
    # all that the store says of it: differs once the file was written again
    mark: str = field(repr=False)


@dataclass(frozen=True)
class Store:
    """A folder at a URL. It can be pickled; its repr has no options."""

    url: str  # `scheme://bucket/folder`, without a slash at the end, without credentials
    # of the driver; may hold credentials
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __str__(self) -> str:
        return self.url

    def at(self, *names: str) -> Store:
        """A folder or a file below."""
        return replace(self, url="/".join((self.url, *names)))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Store:
        """The folder that it is in."""
        return replace(self, url=self.url.rpartition("/")[0])

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.url.partition(":")[0]]

    def require_writable(self) -> None:
        """Raises UsageError where reports cannot be kept."""
        path = self.url.partition("://")[2]
        if self.scheme.protocol != "hf":
            return
        if not path.startswith(WRITABLE_HF):
            message = f"{self}: every file written to a repository of the Hub is a commit"
            raise UsageError(message, "use a bucket: hf://buckets/NAME/BUCKET/FOLDER")
        if len(path.split("/")) < 3:
            raise UsageError(f"{self}: no bucket in it", "write hf://buckets/NAME/BUCKET/FOLDER")

    def require_access(self) -> None:
        """Write a small file and remove it: refusals come before anything is measured."""
        self.require_writable()
        with self._reaching() as (system, top):  # a refusal names the store, not the small file
            path = f"{top}/.shadow-{secrets.token_hex(8)}.tmp"
            system.pipe_file(path, b"shadow")
            system.rm_file(path)

    def files(self) -> dict[str, Entry]:
        """Every file at or below, by its path from here; empty where there is none."""
        with self._reaching() as (system, top):
            system.invalidate_cache()
            try:
                found: Mapping[str, Mapping[str, Any]] = system.find(top, detail=True)
            except FileNotFoundError:
                return {}
            return {
                path.removeprefix(top).strip("/"): _entry(info)
                for path, info in found.items()
                if info.get("type") == "file"
                and path.startswith(f"{top}/")
                and _is_plain(path.removeprefix(f"{top}/"))
            }

    def entry(self, name: str) -> Entry | None:
        """What the store says of a file; None where there is none."""
        with self._reaching(name) as (system, path):
            system.invalidate_cache()
            try:
                return _entry(system.info(path))
            except FileNotFoundError:
                return None

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the store's clock; None where that is not known."""
        with self._reaching(name) as (system, path):
            system.invalidate_cache()
            try:
                moment = system.modified(path)
            except (FileNotFoundError, IsADirectoryError, NotImplementedError, KeyError):
                return None
            return moment if isinstance(moment, datetime) else None

    def read(self, name: str, most: int) -> bytes | None:
        """A small file; None where there is none. Raises ShadowError above most bytes."""
        with self._reaching(name) as (system, path):
            system.invalidate_cache()
            try:
                self._require_size(name, _entry(system.info(path)).size, most)
                content: bytes = system.cat_file(path)
            except (FileNotFoundError, IsADirectoryError):
                return None
            return content

    def read_end(self, name: str, size: int, count: int) -> bytes:
        """The last bytes, count of them at most, of a file that has size bytes."""
        with self._reaching(name) as (system, path):
            content: bytes = system.cat_file(path, start=max(0, size - count), end=size)
            return content

    def fetch(self, sizes: Mapping[str, int], folder: Path) -> None:
        """Files, by name and size, into a folder. Raises ShadowError for one of another size."""

        def fetch_one(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._reaching(name) as (system, path):
                system.get_file(path, str(target))
            if target.stat().st_size != sizes[name]:
                raise ShadowError(
                    f"{self.at(name)}: only a part of it arrived", "run the same command again"
                )

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(fetch_one, sizes))

    def put_file(self, path: Path, name: str) -> None:
        """Write a file from this machine; it appears whole or not at all."""
        with self._reaching(name) as (system, there):
            system.put_file(str(path), there)

    def copy(self, name: str, target: Store) -> bool:
        """Copy a file within the store to the same name in a folder; False where it cannot."""
        if self.scheme != target.scheme or self.options != target.options:
            return False
        if self.scheme.protocol == "hf":  # whose driver copies within a repository, not a bucket
            return False
        with target._reaching(name) as (system, path):
            system.cp_file(self._path(name), path)
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._reaching(name) as (system, path):
            system.pipe_file(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file that is not there yet; False where one of other content is.

        One step of the store where `Scheme.atomic`. Elsewhere what is there after a moment decides:
        two who create it at once see the same.
        """
        with self._reaching(name) as (system, path):
            try:
                system.pipe_file(path, content, mode="create")
            except Exception as error:
                # gcsfs has no FileExistsError for 412: the condition does not hold
                if not isinstance(error, FileExistsError) and _status(error) != 412:
                    raise
        if not self.scheme.atomic:
            time.sleep(MOMENT)
        return self.read(name, max(len(content), 10_000)) == content

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, in their order; one that is not there is no fault."""
        for name in names:
            with (
                self._reaching(name) as (system, path),
                contextlib.suppress(FileNotFoundError),
            ):
                system.rm_file(path)

    def _require_size(self, name: str, size: int, most: int) -> None:
        if size > most:
            raise ShadowError(f"{self.at(name)}: larger than {most:,} bytes")

    def _system(self) -> Any:
        try:
            return driver(
                self.scheme.protocol, json.dumps(self.options, sort_keys=True), os.getpid()
            )
        except (TypeError, ValueError) as error:
            # of the driver: an option that it lacks, or does not know
            raise _wrong_options(self, error) from None

    def _require_answer(self) -> None:
        """Raises ShadowError where the store does not answer, and whatever the driver raises."""
        asked = os.getpid(), json.dumps(self.options, sort_keys=True), self.url.split("/")[2]
        if self.scheme.protocol == "gs" and asked not in _answered and "token" not in self.options:
            self._require_connection()  # before its driver looks for a token, for long
        system, bucket = self._system(), self._path().partition("/")[0]
        if not system.async_impl or asked in _answered:
            return
        from fsspec.asyn import sync

        try:
            try:
                sync(system.loop, system._info, bucket, timeout=CONNECTED / 5)
            except TimeoutError:
                self._require_connection()
                sync(system.loop, system._info, bucket, timeout=FIRST_ANSWER)
        except TimeoutError:
            of_driver = f" (or {self.scheme.credentials})" if self.scheme.credentials else ""
            raise ShadowError(
                f"{self}: no usable answer within {FIRST_ANSWER:.0f} s",
                f"check the network, the endpoint and --storage-options{of_driver}",
            ) from None
        except Exception as error:
            if isinstance(error, ShadowError) or _is_unreached(error):
                raise
        _answered.add(asked)

    def _require_connection(self) -> None:
        """Raises ShadowError where the store's server takes no connection; not behind a proxy."""
        parts = urlsplit(self._endpoint() or "")
        if not parts.hostname or getproxies() or "prox" in json.dumps(self.options).lower():
            return
        port = parts.port or (80 if parts.scheme == "http" else 443)
        if (fault := _unconnected(parts.hostname, port)) is not None:
            raise ShadowError(
                f"{self}: {parts.hostname} cannot be reached ({fault})",
                "check the network and the endpoint, and run the same command again",
            )

    def _endpoint(self) -> str | None:
        """The server's address as the driver has it; None where an option is wrong."""
        with contextlib.suppress(Exception):
            if self.scheme.protocol == "gs" and not os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN"):
                given = self.options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
                if given and given != "default":
                    return given if "://" in given else f"http://{given}"
                return "https://storage.googleapis.com"
            system = self._system()
            if self.scheme.protocol == "abfs":
                return str(system.service_client.url)
            if self.scheme.protocol == "s3":
                from fsspec.asyn import sync

                client = sync(system.loop, system.set_session, timeout=FIRST_ANSWER)
                return str(client.meta.endpoint_url)
        return None

    def _path(self, name: str = "") -> str:
        path: str = self._system()._strip_protocol(
            f"{self.scheme.protocol}://{self.url.partition('://')[2]}"
        )
        return f"{path}/{name}" if name else path

    @contextlib.contextmanager
    def _reaching(self, name: str = "") -> Iterator[tuple[Any, str]]:
        """The driver and its path; faults become one line each, without a credential."""
        if self.scheme.extra is not None:
            try:
                require(self.scheme.extra)
            except ShadowError as error:
                raise UsageError(f"{self}: {error.message}", error.hint) from None
        try:
            self._require_answer()
            yield self._system(), self._path(name)
        except ShadowError:
            raise
        except Exception as error:
            fault = _fault(self.at(name) if name else self, error)
            if fault is None:
                raise
            raise fault from None  # the driver's own may hold a signed URL


def _unconnected(host: str, port: int) -> str | None:
    """Why a server takes no connection within CONNECTED seconds; None where it takes one."""
    until = time.monotonic() + CONNECTED
    faults, ended = ["no answer"], threading.Event()

    def connect() -> None:
        while time.monotonic() < until:
            try:
                socket.create_connection((host, port), timeout=CONNECTED).close()
                faults.clear()
                break
            except (OSError, ValueError, OverflowError) as error:
                faults[:] = [getattr(error, "strerror", None) or str(error)]
            time.sleep(CONNECTED / 10)
        ended.set()

    # in a thread, as nothing else ends a name server's silence
    threading.Thread(target=connect, daemon=True).start()
    ended.wait(CONNECTED + 1.0)
    return faults[0] if faults else None


def _entry(info: Mapping[str, Any]) -> Entry:
    return Entry(int(info["size"] or 0), repr(sorted(info.items(), key=str)))


def _is_plain(path: str) -> bool:
    """Whether a file of this machine may have that path below a folder."""
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))


@cache
def driver(protocol: str, options: str, _: int) -> Any:
    """The driver, one a process: a fork has no part in the threads of the process it comes from."""
    import fsspec

    # otherwise Python prints what they log: tracebacks with URLs, for every retry
    for name in DRIVERS:
        logging.getLogger(name).addHandler(logging.NullHandler())
    if protocol == "hf":  # whose client draws a bar for every file that goes there
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    given = json.loads(options)
    defaults = DEFAULTS.get(protocol, {})
    merged = {key: {**value, **given.get(key, {})} for key, value in defaults.items()}
    system = fsspec.filesystem(protocol, **{**given, **merged}, use_listings_cache=False)
    # asyncio prints what befell a connection that nobody waits for
    if system.async_impl:
        with contextlib.suppress(AttributeError):  # of an option `loop` that is none
            system.loop.set_exception_handler(lambda loop, context: None)
    return system


# packages that take part in the work of a driver
DRIVERS = (
    "adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx",
    "httpx2", "huggingface_hub", "requests", "s3fs",
)  # fmt: skip
# Processes, options and buckets of which there was an answer.
_answered: set[tuple[int, str, str]] = set()

# What drivers raise for an endpoint or a key that is none.
WRONG = {"AzureSigningError", "InvalidURL", "UnsupportedProtocol"}


def _fault(store: Store, error: Exception) -> ShadowError | None:
    """What went wrong, in words; None for what is no fault of a store, but one of shadow."""
    name, root = type(error).__name__, type(error).__module__.partition(".")[0]
    unknown = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
    if name in WRONG or (unknown and store.options):
        return _wrong_options(store, error)
    if not isinstance(error, OSError | TimeoutError) and root not in DRIVERS:
        if not is_of_driver(error) or (isinstance(error, KeyError) and not store.options):
            return None
        if isinstance(error, json.JSONDecodeError | UnicodeError):
            hint = "check the endpoint"
            return ShadowError(f"{store}: the store's answer cannot be read ({name})", hint)
        return _wrong_options(store, error)
    status = _status(error)
    denied = isinstance(error, PermissionError) or status in (401, 403)
    if denied or "Credential" in name or "Auth" in name:
        return ShadowError(f"{store}: access denied{_said(store, error)}", _check(store))
    if isinstance(error, FileNotFoundError) or status == 404 or "NotFound" in name:
        return ShadowError(f"{store}: no such bucket or file", "check the URL")
    if _is_unreached(error):
        hint = "check the network and the endpoint, and run the same command again"
        return ShadowError(f"{store}: cannot be reached ({name})", hint)
    failed = "the store failed" if _is_theirs(error, status) else name
    return ShadowError(f"{store}: {failed}{_said(store, error)}", "run the same command again")


def _is_unreached(error: Exception) -> bool:
    """Whether there was no connection, or no answer in time."""
    name = type(error).__name__
    return isinstance(error, TimeoutError | ConnectionError) or any(
        word in name for word in ("Timeout", "Connect", "ServiceRequest")
    )


def is_of_driver(error: Exception) -> bool:
    """Whether a driver stumbled over what it was given.

    No driver checks its options: one of another type than it takes, or an endpoint that is no URL,
    it meets somewhere in its code.
    """
    expected = TypeError | ValueError | AttributeError | RuntimeError | KeyError
    if not isinstance(error, expected) or isinstance(error, NotImplementedError):
        return False
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = (str(frame.f_globals.get("__name__", "")) for frame in frames)
    return any(name.partition(".")[0] in DRIVERS for name in names)


def _wrong_options(store: Store, error: Exception) -> UsageError:
    hint = _check(store)
    if "endpoint" in str(error).lower() or type(error).__name__ == "UnsupportedProtocol":
        hint = f"an endpoint begins with https:// or http://; {hint}"
    return UsageError(f"{store}: wrong options{_said(store, error)}", hint)


def _check(store: Store) -> str:
    if not store.scheme.credentials:
        return "check --storage-options"
    return f"check --storage-options, or {store.scheme.credentials}"


def _is_theirs(error: Exception, status: int | None) -> bool:
    """Whether it is an answer of 500 or more, which S3's driver makes an error of the system."""
    number = error.errno if isinstance(error, OSError) else None
    return (status or 0) >= 500 or number in (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer, where the driver's fault has one."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    found = [metadata.get("HTTPStatusCode"), getattr(response, "status_code", None)]
    found += [getattr(error, name, None) for name in ("status_code", "status", "code")]
    return next((status for status in found if isinstance(status, int)), None)


def _said(store: Store, error: Exception) -> str:
    """The driver's first words, without URLs' queries and any value that may be a credential."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", next(iter(str(error).splitlines()), "").strip())
    for secret in sorted(set(_secrets(store.options)), key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    text = re.sub(r"\S+", _without_account, redacted(text))
    text = re.sub(r"\?[^\s'\")]*", "", text)
    return f" ({text[:160]})" if text else ""


def _without_account(word: re.Match[str]) -> str:
    """A word of a driver's without what may be an account and its password, whatever is in it."""
    before, _, after = word[0].rpartition("@")
    if ":" not in before:
        return word[0]
    scheme, slashes, _ = before.partition("://") if "://" in before else ("", "", "")
    return f"{scheme}{slashes}***@{after}"


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """Values of the options and of variables named like secrets, in every form they may take."""
    values: list[str] = [value for name, value in os.environ.items() if SECRETS.search(name)]
    rest: list[object] = [options]
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping):
            rest += value.values()
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            values.append(str(value))
    for value in values:
        for text in (value, *value.splitlines()):
            forms = {text, text.strip(), repr(text)[1:-1], json.dumps(text)[1:-1]}
            plain = text.encode(errors="surrogatepass")
            forms |= {quote(plain), quote(plain, safe=""), quote_plus(plain)}
            yield from (form for form in forms if len(form) >= LEAST_SECRET)


# Copies on this machine


@cache
def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Where copies lie until the process ends."""
    return tempfile.TemporaryDirectory(prefix="shadow-")


_copies: dict[str, str] = {}  # URLs, by the paths of their copies


def place_for(store: Store) -> Path:
    """A path for the copy of a file or folder, under its own name, until the process ends."""
    parent = Path(tempfile.mkdtemp(dir=scratch_folder().name))
    path = parent / (re.sub(r"[^A-Za-z0-9._-]", "-", store.name).lstrip(".")[:100] or "copy")
    _copies[str(path)] = store.url
    return path


def fetched_file(store: Store, most: int) -> Path:
    """A copy of a list, a policy or another file of most bytes at most. Raises ShadowError."""
    in_bucket = "/" in store.url.partition("://")[2]
    content = store.parent.read(store.name, most) if in_bucket else None
    if content is None:
        raise ShadowError(f"{store}: no such file", "check the URL")
    path = place_for(store)
    path.write_bytes(content)
    return path


def is_copy(path: str | os.PathLike[str]) -> bool:
    """Whether it is the copy of a file at a URL, so that what lies beside it means nothing."""
    return os.fspath(path) in _copies


def as_given(text: object) -> str:
    """A path, or a text with paths, for people and files: copies under their URLs."""
    words = str(text)
    for path, url in list(_copies.items()):
        if path in words:
            words = words.replace(path, url)
    return words


def work_folder(store: Store) -> Path:
    """Where audits into a store work on this machine: the same folder for the same URL.

    Below `$SHADOW_WORK_DIR`, else `$XDG_CACHE_HOME/shadow/work`, else `~/.cache/shadow/work`.
    """
    name = f"{safe_name(store.name)}-{hashlib.sha256(store.url.encode()).hexdigest()[:12]}"
    top = os.environ.get(WORK)
    if top:
        return Path(top).expanduser().absolute() / name
    cached = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cached) if cached else Path.home() / ".cache") / "shadow" / "work" / name
    except RuntimeError:
        raise ShadowError(
            "there is no home folder to work in", f"name a folder in {WORK}"
        ) from None
