"""Reports at a URL: fetched to this machine to be read, and published so that nobody ever reads
half of one.

A report is there if its matrices.parquet is, as in a folder. It is written last; where an earlier
report is replaced, it is removed first, so that no table stands beside those of another audit. Who
publishes holds a claim, a small file that is created only if there is none. Who reads lists the
files before and after, and reads again if they differ.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from shadow.errors import ShadowError
from shadow.files import safe_name, write_beside, writing
from shadow.reports.atomic_replacement import FILES_OF_A_PAIR, FINISHED, TABLES_OF_A_PAIR
from shadow.reports.metadata import ReportMetadata
from shadow.reports.parquet import MAGIC, TAIL
from shadow.reports.provenance import finished_metadata
from shadow.storage import AT_ONCE, Entry, Store, place_for
from shadow.text import byte_size

SPECTRA = "spectra.parquet"
SUMMARY = "summary.json"
INDEX = "index.json"
INDEX_FILES = ("batch.parquet", INDEX)  # of a list, in the order in which they are written
CLAIM = ".uploading.json"
# in the folder of a list: who this run is while it uploads an index
INDEX_WRITER = ".index-writer"
TOKEN = re.compile(r"[0-9a-f]{32}")  # the name of a writer
STALE = 3600.0  # seconds without a sign of life before a claim is taken over; a file takes minutes
PATIENCE = 60.0  # seconds that somebody else's upload is waited for
POLL = 1.0  # seconds between two looks
SIGN = 60.0  # seconds between two signs of life, at least
MOST_READS = 3  # of a report that is replaced meanwhile
MAX_JSON = 64_000_000  # bytes
MAX_TABLE = 64_000_000_000  # bytes; spectra of the largest released model have 1 GB
MAX_FOOTER = 64_000_000  # bytes
USUAL_FOOTER = 65_536  # bytes; most are smaller

Say = Callable[[str], None]


# Reading


def fetched(store: Store, *, spectra: bool = True) -> Path:
    """The reports at or below a URL and the index of a list, as a folder of this machine.

    Only files that a report may have are fetched. spectra: are singular values among them? Raises
    ShadowError, also where there is no report.
    """
    folder = fetched_if_any(store, spectra=spectra)
    if folder is None:
        raise ShadowError(f"{store}: no report there", "name a URL that `shadow audit -o` wrote to")
    return folder


def fetched_if_any(store: Store, *, spectra: bool = True) -> Path | None:
    """The same; None where there is neither a report nor an index."""
    chosen = _chosen(store, store.files(), spectra=spectra)
    if not chosen:
        return None
    folder = place_for(store)
    folder.mkdir()
    _fetch(store, chosen, folder, spectra=spectra)
    return folder


def _chosen(store: Store, there: Mapping[str, Entry], *, spectra: bool) -> dict[str, Entry]:
    """The files of finished reports at most two folders below, and those of an index.

    Raises ShadowError for a file that is larger than any of its kind.
    """
    chosen = {}
    for path, entry in there.items():
        *folders, name = path.split("/")
        is_ours = name in FILES_OF_A_PAIR and f"{'/'.join(folders)}/{FINISHED}".lstrip("/") in there
        is_index = not folders and name in INDEX_FILES
        named = len(folders) <= 2 and all(safe_name(folder) == folder for folder in folders)
        if not named or not (is_ours or is_index) or (name == SPECTRA and not spectra):
            continue
        largest = MAX_JSON if name.endswith(".json") else MAX_TABLE
        if entry.size > largest:
            raise ShadowError(
                f"{store.at(path)}: {byte_size(entry.size)}, larger than any file of a report"
            )
        chosen[path] = entry
    return chosen


def _fetch(store: Store, chosen: Mapping[str, Entry], folder: Path, *, spectra: bool) -> None:
    """Files of reports as they stood together at one moment."""
    for _ in range(MOST_READS):
        size = sum(entry.size for entry in chosen.values())
        free = shutil.disk_usage(folder).free
        if size > free:
            message = (
                f"{store}: {byte_size(size)} to fetch, and {byte_size(free)} are free in"
                f" {folder.parent.parent}"
            )
            raise ShadowError(message, "free some space, or set TMPDIR to another disk")
        with writing(folder):
            store.fetch({path: entry.size for path, entry in chosen.items()}, folder)
        after = _chosen(store, store.files(), spectra=spectra)
        if after == chosen:
            return
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        chosen = after
    raise ShadowError(
        f"{store}: reports there changed while they were read", "wait until they are finished"
    )


def outlined_below(store: Store) -> Path | None:
    """What is small of the reports at or below a URL (see `outlined`), and the index of a list, as
    a folder of this machine; None where there is neither.
    """
    chosen = _chosen(store, store.files(), spectra=True)
    if not chosen:
        return None
    folder = place_for(store)
    folder.mkdir()
    whole = {
        path: entry.size
        for path, entry in chosen.items()
        if path.endswith(".json") or path in INDEX_FILES
    }

    def fetch_footer(path: str) -> None:
        content = _footer(store, path, chosen[path].size)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    with writing(folder):
        store.fetch(whole, folder)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(fetch_footer, chosen.keys() - whole.keys()))
    return folder


def completed(store: Store, folder: Path, *, spectra: bool) -> None:
    """Make the outline of a report in a folder the whole report at a URL."""
    _fetch(store, _chosen(store, store.files(), spectra=spectra), folder, spectra=spectra)


def published_metadata(store: Store) -> ReportMetadata | None:
    """The provenance of the report at the URL of a pair, from the end of one file; None if none is.

    Raises ShadowError for a report that cannot be read.
    """
    with outlined(store, (FINISHED,), ()) as folder:
        return None if folder is None else finished_metadata(folder)


def standing(store: Store) -> tuple[ReportMetadata | None, str]:
    """The provenance of the report at a URL, if there is one; or what is wrong with it: a broken
    one is no report.

    Raises ShadowError where the store does not let it be read: it may be whole.
    """
    try:
        return published_metadata(store), ""
    except ShadowError as error:
        if error.__cause__ is None:  # of the store, which never tells its own
            raise
        return None, error.message


@contextlib.contextmanager
def outlined(
    store: Store,
    tables: Collection[str] = tuple(f"{name}.parquet" for name in TABLES_OF_A_PAIR),
    texts: Collection[str] = (SUMMARY,),
) -> Iterator[Path | None]:
    """A folder with what is small of the report at a URL; None where there is no report.

    Its JSON files are whole. Of its tables there are the footers alone, which tell provenance and
    columns; no row can be read.
    """
    there = _chosen(store, store.files(), spectra=True)
    if not {FINISHED, SUMMARY} <= there.keys():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="shadow-") as scratch:
        folder = Path(scratch)
        with told_as(folder, store):
            (folder / SUMMARY).touch()
            for name in texts:
                if name in there:
                    (folder / name).write_bytes(store.read(name, MAX_JSON) or b"")
            for name in tables:
                if name in there:
                    (folder / name).write_bytes(_footer(store, name, there[name].size))
            yield folder


@contextlib.contextmanager
def told_as(folder: Path, store: Store) -> Iterator[None]:
    """Faults name the URL instead of the folder that stands for it."""
    try:
        yield
    except ShadowError as error:
        message = error.message.replace(str(folder), store.url)
        raise type(error)(message, error.hint) from error.__cause__


def _footer(store: Store, name: str, size: int) -> bytes:
    """A file that has the footer of a Parquet file and nothing else; empty where it has none."""
    end = store.read_end(name, size, USUAL_FOOTER)
    if len(end) < TAIL or end[-4:] != MAGIC:
        return b""
    length = int.from_bytes(end[-TAIL:-4], "little") + TAIL
    if length > MAX_FOOTER:
        return b""
    if length > len(end):
        end = store.read_end(name, size, length)
    return MAGIC + end[-length:]


# Publishing


class OvertakenError(ShadowError):
    """Another process has published a report of the pair since the audit began."""


class _Claim:
    """The right to write the report of a pair, as a file beside it."""

    def __init__(self, store: Store, token: str) -> None:
        assert token  # which no claim of anybody else has
        self.store, self.token = store, token
        self._told = time.monotonic()

    def content(self) -> bytes:
        told = {
            "shadow": "uploading",
            "token": self.token,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return json.dumps(told).encode() + b"\n"

    def check(self) -> None:
        """Give a sign of life. Raises ShadowError where another process has taken it over."""
        token, age = _claimed(self.store)
        if token != self.token:
            raise _in_the_way(self.store, age)
        self.store.put(CLAIM, self.content())
        self._told = time.monotonic()

    def is_old(self) -> bool:
        """Whether it is time for a sign of life."""
        return time.monotonic() - self._told > SIGN


def publish(
    folder: Path,
    store: Store,
    *,
    token: str,
    replaces: ReportMetadata | None,
    say: Say = lambda _: None,
    outlasts: bool = False,
) -> None:
    """Upload the finished report of a folder; on return it is the report at the URL.

    replaces: the report that was there when the audit began. token: a name of this writer, so that
    it goes on where it was killed. outlasts: does it wait for another writer until that has ended,
    or may be taken for killed, rather than for a minute? Raises ShadowError where another writer is
    at it or has been, and when the store fails; the folder stays as it is.
    """
    there = [name for name in FILES_OF_A_PAIR if (folder / name).is_file()]
    sizes = {name: (folder / name).stat().st_size for name in there}
    if FINISHED not in sizes:
        raise ShadowError(f"{folder}: no finished report in it")

    def put(name: str) -> None:
        store.put_file(folder / name, name)

    _publish(sizes, put, store, token=token, replaces=replaces, say=say, outlasts=outlasts)


def publish_copy(source: Store, store: Store, *, token: str) -> None:
    """Make the finished report at one URL also the report at another, where there is none.

    Within one store nothing of it comes to this machine. Raises ShadowError as `publish` does, and
    where the report changes meanwhile.
    """
    there = _chosen(source, source.files(), spectra=True)
    sizes = {name: there[name].size for name in FILES_OF_A_PAIR if name in there}
    if FINISHED not in sizes:
        raise ShadowError(f"{source}: no report there", "run the same command again")

    def put(name: str) -> None:
        if name == FINISHED and _chosen(source, source.files(), spectra=True) != there:
            hint = "wait until it is finished"
            raise ShadowError(f"{source}: the report there changed while it was copied", hint)
        if source.copy(name, store):
            return
        with tempfile.TemporaryDirectory(prefix="shadow-") as scratch, writing(Path(scratch)):
            source.fetch({name: sizes[name]}, Path(scratch))
            store.put_file(Path(scratch) / name, name)

    _publish(sizes, put, store, token=token, replaces=None, say=lambda _: None)


def _publish(
    files: Mapping[str, int],
    put: Callable[[str], None],
    store: Store,
    *,
    token: str,
    replaces: ReportMetadata | None,
    say: Say,
    outlasts: bool = False,
) -> None:
    """Put files, by name and size and the one that makes a report last, where a report is to be."""
    with _claiming(store, token, say, outlasts=outlasts) as claim:
        if standing(store)[0] != replaces:
            raise OvertakenError(
                f"{store}: another audit has just ended there", "run the same command again"
            )
        earlier = [FINISHED, *(name for name in FILES_OF_A_PAIR if name not in files)]
        there = store.files()
        store.remove([name for name in earlier if name in there])
        for name in files:
            if name == FINISHED:
                _require_whole(store, files)
            if name == FINISHED or claim.is_old():
                claim.check()
            put(name)


def _require_whole(store: Store, files: Mapping[str, int]) -> None:
    there = store.files()
    for name, size in files.items():
        if name != FINISHED and (name not in there or there[name].size != size):
            raise ShadowError(
                f"{store.at(name)}: only a part of it arrived", "run the same command again"
            )


@contextlib.contextmanager
def _claiming(store: Store, token: str, say: Say, *, outlasts: bool = False) -> Iterator[_Claim]:
    claim = _Claim(store, token)
    until = time.monotonic() + (STALE + PATIENCE if outlasts else PATIENCE)
    told = not outlasts  # a minute is not worth a line
    while not (store.create(CLAIM, claim.content()) or _took_over(claim, say)):
        if not told:
            say(f"waiting: another audit is writing to {store}")
            told = True
        if time.monotonic() > until:
            raise _in_the_way(store, _claimed(store)[1])
        time.sleep(POLL)
    try:
        yield claim
    finally:
        try:
            if _claimed(store)[0] == token:
                store.remove([CLAIM])
        except ShadowError as error:  # what was to be told first
            say(f"{error.message}: the claim {CLAIM} stays for an hour")


def _took_over(claim: _Claim, say: Say) -> bool:
    """Is the claim our own of before, or one without a sign of life? The latter is ours now."""
    token, age = _claimed(claim.store)
    if token == claim.token:
        return True
    if age is None or age < STALE:
        return False
    say(
        f"{claim.store}: continuing where another audit stopped writing {int(age // 60)} minutes"
        " ago"
    )
    claim.store.put(CLAIM, claim.content())
    claim.check()
    return True


def _claimed(store: Store) -> tuple[str | None, float | None]:
    """Whose the claim is (None: nobody's, or somebody else's file), and the seconds since its last
    sign of life, 0 or more; None where nothing tells.
    """
    content = store.read(CLAIM, 10_000)
    if content is None:
        return None, 0.0
    token, at = _told_in(content)
    age = _since(at)
    if age is None or age < 0:  # no claim, or one from a clock that is ahead of ours
        age = _since(store.modified(CLAIM))
    return token, None if age is None else max(age, 0.0)


def _told_in(claim: bytes) -> tuple[str | None, datetime | None]:
    """Whose a claim is and when it was written, as it says itself; None for what it does not."""
    try:
        told = json.loads(claim)
        token = told.get("token") or None
    except (ValueError, AttributeError, RecursionError):  # somebody else's file
        return None, None
    try:
        return token, datetime.fromisoformat(told.get("at"))
    except (ValueError, TypeError):
        return token, None


def _since(moment: datetime | None) -> float | None:
    """The seconds since a moment, below 0 where it is to come; None for one without a time zone."""
    if moment is None or moment.tzinfo is None:
        return None
    return (datetime.now(UTC) - moment).total_seconds()


def _in_the_way(store: Store, age: float | None) -> ShadowError:
    hint = (
        "wait for it; a claim that is left over is taken over after an hour, or remove"
        f" {store.at(CLAIM)}"
    )
    if age is None:
        hint = f"wait for it; if no audit writes there any more, remove {store.at(CLAIM)}"
    return ShadowError(f"{store}: another audit is writing there", hint)


def new_token() -> str:
    """A name of a writer that no other has."""
    return secrets.token_hex(16)


def kept_token(path: Path) -> str:
    """The name of a writer in a file of this machine, so that it goes on where it was killed; a new
    one where there is none, or a part of one.
    """
    with writing(path.parent):
        token = path.read_text(errors="replace") if path.is_file() else ""
        if not TOKEN.fullmatch(token):
            token = new_token()
            write_beside(path, token.encode())
    return token


# An index


class PublishedIndex:
    """batch.parquet and index.json of a list at a URL, which one process at a time may write."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._there = store.entry(INDEX)
        self._sent = b""  # what was written last, or was to be: an answer may be lost

    def fetch(self, folder: Path) -> None:
        """Take over an index into a folder."""
        for name in reversed(INDEX_FILES):
            content = self.store.read(name, MAX_JSON)
            if content is not None:
                with writing(folder):
                    (folder / name).write_bytes(content)

    def finished(self) -> Collection[str]:
        """The folders below that hold a finished report, as `family/pair`."""
        there = self.store.files()
        return {
            path.removesuffix(f"/{FINISHED}") for path in there if path.endswith(f"/{FINISHED}")
        }

    def publish(self, folder: Path) -> None:
        """Upload the index of a folder.

        Each of its files is replaced in one step of the store, index.json last. Raises ShadowError
        where somebody else has written one meanwhile, or is about to.
        """
        kept = folder / INDEX_WRITER
        token = kept_token(kept)
        with _claiming(self.store, token, lambda _: None) as claim:
            if (
                self.store.entry(INDEX) != self._there
                and self.store.read(INDEX, MAX_JSON) != self._sent
            ):
                hint = "shards of one list each take a URL of their own"
                raise ShadowError(f"{self.store}: another list is being audited there", hint)
            for name in INDEX_FILES:
                if name == INDEX:
                    claim.check()
                    self._sent = (folder / name).read_bytes()
                self.store.put_file(folder / name, name)
            self._there = self.store.entry(INDEX)
        kept.unlink(missing_ok=True)
