"""Opening, locking and finding what lies on the disk: never waits, never takes what another has."""

import errno
import fcntl
import os
from functools import partial
from pathlib import Path

import pytest

from shadow.errors import BusyError, ShadowError
from shadow.files import alone_at, lock, nearest_folder, open_regular, placing, read_start


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


@pytest.mark.timeout(20)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    """Even if it comes between the look and the opening."""
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert open_regular(tmp_path / "fifo") is None


def test_a_file_takes_the_place_of_an_empty_folder(tmp_path):
    """Where that may be replaced; a folder that is not empty is named, and stays."""
    (tmp_path / "out").mkdir()
    with placing(tmp_path / "out", lambda path: True, "a page") as aside:
        aside.write_text("page")
    assert (tmp_path / "out").read_text() == "page"
    (tmp_path / "full" / "mine").mkdir(parents=True)
    with (
        pytest.raises(ShadowError, match="full"),
        placing(tmp_path / "full", lambda path: True, "a page") as aside,
    ):
        aside.write_text("page")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "full"}
