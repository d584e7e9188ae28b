"""Files that appear atomically, safe names, and the location of the shipped data."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import IO, Literal

from shadow.errors import BusyError, ShadowError, UsageError

NAME = re.compile(r"\.shadow-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def aside_in(parent: Path, *, is_folder: bool) -> Iterator[Path]:
    """Make a new file or folder in parent, after removing what killed processes left there. It is
    removed at the end unless it was renamed.
    """
    _remove_leftovers(parent)
    aside = parent / f".shadow-{secrets.token_hex(8)}.tmp"
    if is_folder:
        aside.mkdir()
    else:
        aside.touch()
    lock = _locked(aside)
    try:
        yield aside
    finally:
        _remove(aside)
        if lock is not None:
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_leftovers(parent: Path) -> None:
    # a folder that may not be listed may be written to nevertheless
    with contextlib.suppress(OSError):
        with os.scandir(parent) as entries:
            leftovers = [
                Path(entry.path)
                for entry in entries
                if NAME.fullmatch(entry.name)
                and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False))
            ]
        for aside in leftovers:
            if (held := _locked(aside)) is not None:
                _remove(aside)
                os.close(held)


def _locked(aside: Path) -> int | None:
    """A handle that holds it until it is closed; None if it cannot be locked."""
    try:
        handle = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW)
    except (AttributeError, OSError):  # Windows has no handles of folders
        return None
    # also where there are no locks: there nothing is ever taken for left over
    if lock(handle) != "ours":
        os.close(handle)
        return None
    return handle


Locked = Literal["ours", "another's", "no locks"]


def lock(handle: int) -> Locked:
    """Lock an open file or folder for this process, at once or not at all.

    The lock ends when the handle is closed or the process is killed, and leaves no file. `no
    locks`: the system or the file system does not support them.
    """
    try:
        import fcntl
    except ImportError:
        return "no locks"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "another's"
    except OSError:
        return "no locks"
    return "ours"


def open_alone(path: Path) -> IO[bytes]:
    """Open a file in `.partial` for reading and writing, creating it if necessary, and lock it
    until it is closed.

    Raises BusyError if another process has it; without locks, users must avoid running two at a
    time. Raises OSError if it, or its folder, is a symbolic link: an audit writes only inside its
    folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    flags = getattr(os, "O_NOFOLLOW", 0)
    file = open(path, "a+b", opener=lambda name, mode: os.open(name, mode | flags, 0o666))  # noqa: SIM115 - returned
    is_ours = False
    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
        is_ours = lock(file.fileno()) != "another's" and os.path.samestat(
            path.stat(), os.fstat(file.fileno())
        )
    if not is_ours:
        file.close()
        raise BusyError(
            f"another audit is writing to {path.parents[1]}",
            "wait for it, or choose another folder with -o",
        )
    return file


@contextlib.contextmanager
def alone_at(folder: Path, name: str) -> Iterator[None]:
    """Refuse a second process in a folder, by a lock on a file in its `.partial`.

    A file or folder that was made only for the lock is removed.
    """
    existing = nearest_folder(folder)
    path = folder / PARTIAL / name
    with writing(folder):
        file = open_alone(path)
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
            remove_empty(path.parent.absolute(), existing)


Recognise = Callable[[Path], bool]


def marked(mark: str, size: int) -> Recognise:
    """Make a function that recognises files with a mark within their first bytes."""
    return lambda path: mark.encode() in (read_start(path, size) or b"")


@contextlib.contextmanager
def _instead_of(path: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield an empty file or folder that replaces path if the block succeeds. Folders above it are
    made if necessary, and a failure leaves nothing in them.

    It is itself renamed, so that a process that is killed right afterwards leaves nothing either.
    """
    parent = path.absolute().parent
    existing = nearest_folder(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with aside_in(parent, is_folder=is_folder) as aside:
            yield aside
            for written in (aside, *aside.rglob("*")):  # a file has none below
                if written.is_file():
                    with written.open("rb") as file:
                        os.fsync(file.fileno())  # before it gets its name
            aside.replace(path)
    finally:
        remove_empty(parent, existing)


@contextlib.contextmanager
def placing(
    output: Path, is_ours: Recognise, what: str, *, is_folder: bool = False
) -> Iterator[Path]:
    """Yield an empty file or folder that becomes output if the block succeeds.

    is_ours: returns whether what lies at output may be replaced: a file from the same command, or
    an empty folder. Raises ShadowError for anything different there, which is left alone, and if
    the disk cannot be written.
    """
    _require_free(output, is_ours, what)
    try:
        with _instead_of(output, is_folder=is_folder) as aside:
            yield aside
            _require_free(output, is_ours, what)
            if output.is_dir():  # an empty one
                output.rmdir()
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another place with -o"
        raise ShadowError(f"cannot write {output}: {error.strerror or error}", hint) from error


def _require_free(output: Path, is_ours: Recognise, what: str) -> None:
    try:
        free = not os.path.lexists(output) or (not output.is_symlink() and is_ours(output))
    except OSError:  # what cannot be read may be anybody's
        free = False
    if not free:
        raise ShadowError(
            f"{output} already exists and holds something other than {what}",
            "move it away, or choose another place with -o",
        )


def registry_folder() -> Path:
    """The folder of shipped data, in the package or at the top of a checkout."""
    packaged = Path(str(files("shadow"))) / "registry"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "registry"


PARTIAL = ".partial"
OTHER_FOLDER = "choose another folder with -o"


def safe_name(name: str) -> str:
    """Make a distinct file name from any text: letters, digits and `._-`, no leading dot."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:80]
    if plain == name and plain:
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{plain or 'x'}-{digest[:8]}"


def report_folder(family: str, pair: str) -> str:
    """The folder of a pair's report, two levels below the output folder."""
    return f"{safe_name(family)}/{safe_name(pair)}"


@contextlib.contextmanager
def writing(folder: Path, hint: str | None = None) -> Iterator[None]:
    """Turn disk errors into one line. hint: from the caller, instead of that of the error."""
    try:
        yield
    except OSError as error:
        if hint is None and error.errno == errno.ENOSPC:
            hint = "free some space and run the same command again"
        raise ShadowError(
            f"cannot write to {folder}: {error.strerror or error}", hint or OTHER_FOLDER
        ) from error


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and its parents below top, as far as they are empty."""
    with contextlib.suppress(OSError):  # not empty: something is worth keeping there
        while folder != top and top in folder.parents:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            folder = folder.parent


def require_utf8(folder: Path) -> None:
    """Raise UsageError if the name is not UTF-8: no table can be written or read there."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        hint = "rename it, or choose another folder"
        raise UsageError(f"the name of the folder is not UTF-8: {folder}", hint) from None


def nearest_folder(path: Path) -> Path:
    """The absolute path if it is a folder, otherwise the nearest folder above it."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def open_regular(path: Path) -> int | None:
    """Open a file for reading and return its handle; None if it is not regular.

    All files that others write are opened here: a pipe would wait, and a device may never end.
    Raises OSError.
    """
    if not path.is_file():  # opening a device may change it
        return None
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    return None


def read_start(path: Path, size: int = -1) -> bytes | None:
    """The first bytes of a file, or all; None if it is not regular."""
    handle = open_regular(path)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read(size)


def read_given(path: Path, most: int, hint: str, smaller: str) -> bytes:
    """Read a file that a person named.

    Raises ShadowError if there is none (hint: what to name), or it has more bytes than most
    (smaller: what to do about it).
    """
    name = str(path)[:200]
    try:
        raw = read_start(path, most + 1)
        if raw is None:
            fault = f"{name}: not a regular file" if path.exists() else f"no such file: {name}"
            raise ShadowError(fault, hint)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise ShadowError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > most:
        raise ShadowError(f"{path}: larger than {most:,} bytes", smaller)
    return raw


def write_beside(path: Path, content: bytes) -> None:
    """Write a file atomically, in a folder that is made if necessary."""
    with _instead_of(path) as aside:
        aside.write_bytes(content)


def write_through(path: Path, content: bytes) -> None:
    """Write a file to the disk before it gets its name."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
