"""Holds still what shadow prints and writes while its code is moved about.

    python tests/still.py record FOLDER         run every command of still_runs.py; one file a
                                                run, numbers exact
    python tests/still.py diff FOLDER FOLDER    what differs, byte for byte, of two recordings on
                                                one machine
    python tests/still.py check                 run, and compare with the goldens in tests/still/,
                                                as test_still.py does
    python tests/still.py update                run, and renew the goldens

A recording has, of every command: its exit code, its stdout and stderr, and every file that it
wrote, changed or removed. Tables stand there as text, floats in hexadecimal. Dates, durations and
versions are masked.

Goldens must hold on other CPUs too, so there floats are rounded, tables are told column by column,
and pages and figures by what they consist of. Numbers that differ by less than TOLERANCE are equal;
everything else is compared letter by letter. Help and errors of the command line hold for the
versions of Typer and Rich in tests/still/VERSIONS.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import still_text
from still_text import Done, Goldens, changes, exact_text

GOLDENS = Path(__file__).with_name("still")
# Always the same folder: reports hold its name, and lines are wrapped by its length.
HERE = Path("/tmp").resolve() / "shadow-still"
SECONDS = 120  # after which a command counts as hung
# imported once, before the forks
LIBRARIES = (
    "huggingface_hub", "matplotlib.figure", "pandas", "pyarrow.feather",
    "pyarrow.pandas_compat", "pyarrow.parquet", "safetensors.torch", "scipy.sparse.linalg",
    "scipy.stats", "torch",
)  # fmt: skip
ENVIRONMENT = re.compile(  # variables that change what is printed
    r"COLUMNS|LINES|TERM|NO_COLOR|FORCE_COLOR|CLICOLOR\w*|TTY_\w+|CI|GITHUB_\w+|HF_\w+|SHADOW_\w+|TERMINAL_WIDTH"
    r"|_TYPER_\w+|PYTHONWARNINGS|MPL\w+"
)


def prepare() -> Callable[[], None]:
    """Imports the command line and the large libraries that it will need, so that forks begin warm;
    gives its entry.
    """
    for name in [one for one in os.environ if ENVIRONMENT.fullmatch(one)]:
        del os.environ[name]
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(HERE / "hub"), "TZ": "UTC", "TERM": "dumb"}
    sys.argv = ["shadow"]
    from shadow.cli import main

    for name in LIBRARIES:
        importlib.import_module(name)
    return main


def warm(entry: Callable[[], None]) -> None:
    """Runs commands here that read weights of nothing: what they import and read once need not be
    read in each fork.

    They start no threads, which a fork would lose.
    """
    before = sys.stdout, sys.stderr, Path.cwd()
    os.chdir(HERE)
    with Path(os.devnull).open("w") as sys.stdout, Path(os.devnull).open("w") as sys.stderr:
        for arguments in (
            ("--help",),
            ("explain", "rows"),
            ("families", "toy", "--registry", "registry"),
            ("audit", "--base", "./nowhere", "--tuned", "./nowhere"),
            ("gate", "nowhere", "--fail-on", "label == mixed"),
        ):
            sys.argv = ["shadow", *arguments]
            with contextlib.suppress(SystemExit):
                entry()
    sys.stdout, sys.stderr, _ = before
    os.chdir(before[2])


def in_child(work: Callable[[], None]) -> int:
    """Work in a forked process; its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(
    entry: Callable[[], None],
    arguments: tuple[str, ...],
    columns: int,
    environment: dict[str, str],
    file_size: int | None,
    talk: Path,
) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command in HERE."""
    outputs = talk / "stdout", talk / "stderr"

    def work() -> None:
        import signal

        signal.alarm(SECONDS)
        os.chdir(HERE)
        os.environ.update({"COLUMNS": str(columns), **environment})
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        for stream in sys.stdout, sys.stderr:
            stream.reconfigure(encoding="utf-8", errors="replace")
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        sys.argv = ["shadow", *arguments]
        entry()

    code = in_child(work)
    out, err = (path.read_bytes().decode() for path in outputs)
    return code, out, err


def stamps() -> dict[str, tuple[int, int, int]]:
    """What tells a file in HERE from another that was there before."""
    found = {}
    for path in sorted(HERE.rglob("*")):
        if path.is_file():
            told = path.stat()
            found[str(path.relative_to(HERE))] = (told.st_ino, told.st_mtime_ns, told.st_size)
    return found


def run_all() -> Iterator[tuple[str, bool, list[Done]]]:
    """Every run, in order: its name, if it shows measured numbers, what it did at each width."""
    entry = prepare()
    import still_runs

    with Path(f"{HERE}.lock").open("w") as lock, tempfile.TemporaryDirectory() as talk:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(HERE, ignore_errors=True)
        HERE.mkdir()
        try:
            # in a child, because torch's threads do not survive a fork
            if in_child(lambda: still_runs.make_inputs(HERE)):
                raise SystemExit("the inputs could not be made")
            warm(entry)
            _, version, _ = run_command(entry, ("--version",), 80, {}, None, Path(talk))
            still_text.VERSION = version.split()[-1]
            kinds = (still_runs.AUDITS, still_runs.REPORTS, still_runs.OUTPUTS, still_runs.LOOKUPS)
            hashes: dict[str, str] = {}
            before = stamps()
            for run in chain(*kinds):
                done, before = run_one(entry, run, Path(talk), before, hashes)
                yield run.name, run.measured, done
                if run.name == "help":
                    for name in helped(still_runs, entry, Path(talk), done[0].out):
                        line = f"{' '.join(name)} --help"
                        one = still_runs.words(f"help-{'-'.join(name)}", line)
                        done, before = run_one(entry, one, Path(talk), before, hashes)
                        yield one.name, False, done
        finally:
            shutil.rmtree(HERE, ignore_errors=True)


def helped(
    still_runs: Any, entry: Callable[[], None], talk: Path, text: str
) -> list[tuple[str, ...]]:
    """The commands that the help lists, and their own."""
    found: list[tuple[str, ...]] = []
    for name in still_runs.command_names(text):
        found.append((name,))
        _, out, _ = run_command(entry, (name, "--help"), 120, {}, None, talk)
        found += [(name, below) for below in still_runs.command_names(out)]
    return found


def run_one(
    entry: Callable[[], None], run: Any, talk: Path, before: dict[str, Any], hashes: dict[str, str]
) -> tuple[list[Done], dict[str, Any]]:
    """A run at each of its widths, and the files after it."""
    done = []
    if run.before is not None:
        # an earlier run did not leave what it should
        if code := in_child(lambda: run.before(HERE)):
            done.append(Done(("(what comes before)",), 0, code, "", "", {}))
        before = stamps()
    for columns in run.columns:
        code, out, err = run_command(
            entry, run.arguments, columns, run.environment, run.file_size, talk
        )
        after = stamps()
        files: dict[str, bytes | str | None] = {name: None for name in before if name not in after}
        for name, stamp in after.items():
            if before.get(name) != stamp:
                content = (HERE / name).read_bytes()
                # JUnit tells how long a run took
                told = still_text.masked(content.decode()).encode() if ".xml" in name else content
                digest = hashlib.sha256(told).hexdigest()
                files[name] = "" if name in before and hashes.get(name) == digest else content
                hashes[name] = digest
        done.append(Done(run.arguments, columns, code, out, err, dict(sorted(files.items()))))
        before = after
    return done, before


def read_all(folder: Path) -> dict[str, str]:
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    if not found:
        raise SystemExit(f"no recording in {folder}")
    return found


def show(differences: dict[str, list[str]], total: int) -> int:
    """Print what differs; the exit code."""
    for lines in differences.values():
        print("\n".join(line[:400] for line in lines[:60]))
        if len(lines) > 60:
            print(f"... and {len(lines) - 60} lines more")
        print()
    if differences:
        print(f"{len(differences)} of {total} runs differ: {', '.join(differences)}")
    else:
        print(f"{total} runs are equal")
    return int(bool(differences))


def compare(
    before: dict[str, str], after: dict[str, str], measured: dict[str, bool]
) -> dict[str, list[str]]:
    found = {}
    for name in sorted(before.keys() | after.keys()):
        lines = changes(
            name, before.get(name, ""), after.get(name, ""), measured=measured.get(name, False)
        )
        if lines:
            found[name] = lines
    return found


# commands


def record(of_run: Callable[[str, Sequence[Done]], str], folder: Path) -> dict[str, bool]:
    """Write one file for each run; whether each shows measured numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.txt"):
        path.unlink()
    measured = {}
    for name, is_measured_run, done in run_all():
        (folder / f"{name}.txt").write_text(of_run(name, done), encoding="utf-8")
        measured[name] = is_measured_run
    return measured


def cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def versions() -> str:
    return "".join(f"{name} {importlib.metadata.version(name)}\n" for name in ("rich", "typer"))


def check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        measured = record(Goldens().text, Path(folder))
        goldens = read_all(GOLDENS)
        code = show(compare(goldens, read_all(Path(folder)), measured), len(measured))
    if code and (made := (GOLDENS / "VERSIONS").read_text()) != versions():
        print(f"the goldens were made with {made.split()}, here are {versions().split()}")
    if code:
        print("if that is meant: python tests/still.py update")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("folder", type=Path)
    differ = commands.add_parser("diff")
    differ.add_argument("before", type=Path)
    differ.add_argument("after", type=Path)
    commands.add_parser("check")
    commands.add_parser("update")
    asked = parser.parse_args()
    if asked.command == "record":
        count = len(record(exact_text, asked.folder.absolute()))
        print(f"{count} runs in {asked.folder}, {cpu_seconds():.0f} s of CPU")
    elif asked.command == "diff":
        before, after = read_all(asked.before), read_all(asked.after)
        return show(compare(before, after, {}), len(before.keys() | after.keys()))
    elif asked.command == "update":
        record(Goldens().text, GOLDENS)
        (GOLDENS / "VERSIONS").write_text(versions())
    else:
        return check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
