"""Opening, locking and finding what lies on the disk: never waits, never takes what another has."""

import errno
import fcntl
import os
from functools import partial
from pathlib import Path

import pytest

from shadow.errors import BusyError
from shadow.files import alone_at, lock, nearest_folder, read_start


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    """The first bytes of a file, or all; a FIFO, a folder and nothing give None at once."""
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    assert read_start(tmp_path / "file", 3) == b"123"
    assert read_start(tmp_path / "file", 9) == b"12345"
    assert [read_start(tmp_path / name, 3) for name in ("fifo", "nothing", ".")] == [None] * 3


def test_the_nearest_folder_is_the_first_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also above a file and from a relative path; a name that no file system takes is an error."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for path in (".", "one/two", "file/one"):
        assert nearest_folder(Path(path)) == tmp_path
    with pytest.raises(OSError, match="too long"):
        nearest_folder(Path("x" * 1000))


def test_a_lock_is_one_handles_until_it_is_closed(tmp_path: Path) -> None:
    """A second handle of the same folder is refused, and gets the lock when the first is closed."""
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert lock(first) == "ours"
    assert lock(second) == "another's"
    os.close(first)
    assert lock(second) == "ours"
    os.close(second)
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch) -> None:
    """ENOLCK of a network file system says nothing of another audit."""
    alone = partial(alone_at, tmp_path, "list.lock")
    with alone(), pytest.raises(BusyError), alone():
        pass
    assert not list(tmp_path.iterdir())

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(), alone():
        pass
