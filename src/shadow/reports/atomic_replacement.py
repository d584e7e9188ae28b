"""Several files of a report replace earlier ones atomically: all of them together or none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shadow.errors import ShadowError
from shadow.files import PARTIAL, write_through, writing

# in PARTIAL: files of a report that are all written, and only have to be moved to their places
READY = "ready"
# behind the name of a file that is not at its place yet: nothing in PARTIAL is to look finished
WAITING = ".new"

FINISHED = "matrices.parquet"  # a report is there if this file is
TABLES_OF_A_PAIR = ("spectra", "tensors", "files", "matrices")
GONE = ("residual.parquet", "scores.json")  # of reports of 0.2, which a new one does not have
FILES_OF_A_PAIR = ("summary.json", *(f"{name}.parquet" for name in TABLES_OF_A_PAIR))


@dataclass(frozen=True)
class Staged:
    """Where the new files of a report lie until all of them are written."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where the block itself writes the file of that name, which it must finish."""
        return self.folder / f"{name}{WAITING}"

    def put(self, name: str, content: bytes) -> None:
        """Write a file; empty content removes the one of that name from the report."""
        write_through(self.path(name), content)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Staged]:
    """Write some files of a report that take their places together when the block ends, and not at
    all if it fails.

    Killed between the first and the last move, the rest is moved by the next command that reads the
    report.
    """
    staged = folder / PARTIAL / f"{READY}.tmp"

    with writing(folder):
        put_in_place(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            yield Staged(staged)
            staged.rename(folder / PARTIAL / READY)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        put_in_place(folder)


def put_in_place(folder: Path) -> None:
    """Move the files that are ready; matrices.parquet, by which a report is found, comes last."""
    ready = folder / PARTIAL / READY
    if not ready.is_dir() or any(path.is_symlink() for path in (ready, ready.parent)):
        return
    try:
        for name in FILES_OF_A_PAIR:
            waiting = ready / f"{name}{WAITING}"
            # not one of them, or another process was faster
            with contextlib.suppress(FileNotFoundError):
                if waiting.stat().st_size:
                    waiting.replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
                    waiting.unlink()
    except OSError as error:
        message = f"{folder}: its new report is written, but cannot take the old one's place"
        raise ShadowError(
            f"{message}: {error.strerror or error}", "check the permissions of the folder"
        ) from error
    with contextlib.suppress(OSError):
        for name in GONE:
            (folder / name).unlink(missing_ok=True)
        ready.rmdir()
        ready.parent.rmdir()
