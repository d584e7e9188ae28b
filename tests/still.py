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
import csv
import difflib
import fcntl
import hashlib
import html.parser
import importlib
import importlib.metadata
import io
import json
import math
import os
import re
import resource
import shutil
import sqlite3
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).with_name("still")
# Always the same folder: reports hold its name, and lines are wrapped by its length.
HERE = Path("/tmp").resolve() / "shadow-still"
SECONDS = 120  # after which a command counts as hung
TOLERANCE = 1e-4  # relative; CPUs and versions of BLAS differ by 1e-6 in what is compared
NOTHING = 1e-9  # smaller numbers are zero but for rounding
LARGE = 4_000  # bytes of text; longer ones are told by their hash in goldens
MASKED = re.compile(  # keys of JSON, and columns; files count as keys where their sizes are told
    r"seconds|started|libraries|version|disk_free|memory_free|seal|.+\.(parquet|arrow|csv|jsonl)"
)
# imported once, before the forks
LIBRARIES = (
    "huggingface_hub", "matplotlib.figure", "pandas", "pyarrow.feather",
    "pyarrow.pandas_compat", "pyarrow.parquet", "safetensors.torch", "scipy.sparse.linalg",
    "scipy.stats", "torch",
)  # fmt: skip
# Columns that hang on single bits: where a power law begins, and what is cut off as noise.
LOOSE = re.compile(r"alpha(_\w+)?|condition_number|sigma_floor|null_\w+_stderr")
# a number that is no part of a hash
DECIMAL = re.compile(r"(?<![\w#.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?!\w|\.\d)")
ENVIRONMENT = re.compile(  # variables that change what is printed
    r"COLUMNS|LINES|TERM|NO_COLOR|FORCE_COLOR|CLICOLOR\w*|TTY_\w+|CI|GITHUB_\w+|HF_\w+|SHADOW_\w+|TERMINAL_WIDTH"
    r"|_TYPER_\w+|PYTHONWARNINGS|MPL\w+"
)


# running


@dataclass(frozen=True)
class Done:
    """What a command did. files holds what it wrote (bytes), rewrote with the same content (""), or
    removed (None).
    """

    arguments: tuple[str, ...]
    columns: int
    code: int
    out: str
    err: str
    files: dict[str, bytes | str | None]


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
            global VERSION
            VERSION = run_command(entry, ("--version",), 80, {}, None, Path(talk))[1].split()[-1]
            runs = [
                *still_runs.AUDITS,
                *still_runs.REPORTS,
                *still_runs.OUTPUTS,
                *still_runs.LOOKUPS,
            ]
            hashes: dict[str, str] = {}
            before = stamps()
            for run in runs:
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
                digest = hashlib.sha256(content).hexdigest()
                files[name] = "" if name in before and hashes.get(name) == digest else content
                hashes[name] = digest
        done.append(Done(run.arguments, columns, code, out, err, dict(sorted(files.items()))))
        before = after
    return done, before


# masks


def masked(text: str) -> str:
    """Text without what differs from run to run: times, durations, versions."""
    today = {
        datetime.fromtimestamp(moment, UTC).date().isoformat() for moment in (time.time(), BEGAN)
    }
    text = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z)?", "<time>", text)
    text = re.sub("|".join(sorted(today)), "<date>", text)
    text = re.sub(r"\b\d\d?\.\d s\b", "#.# s", text)
    text = re.sub(r'("(?:seconds|taken)": ?)[\d.e-]+', r"\1<seconds>", text)
    text = re.sub(
        r'((?:&#34;|&quot;|")(?:python|torch|numpy)(?:&#34;|&quot;|"): ?"?)[\d.]+[\w.+]*',
        r"\1<version>",
        text,
    )
    text = re.sub(
        r"time    .* of computing on this machine *", "time    <pace of this machine>", text
    )
    text = re.sub(r" about .*, ([\d.]+ .B of memory)|under a second, ", r" <pace>, \1", text)
    text = re.sub(r'(\btime=)"[\d.e-]+"', r'\1"<seconds>"', text)
    text = re.sub(r"sha256 [0-9a-f]{64}", "sha256 <hash>", text)  # of files that hold times
    text = re.sub(r'"seal": ?\{(?:[^{}]|\{[^{}]*\})*\}', '"seal": "<of this code>"', text)
    text = re.sub(r"[\d.]+ [kMGT]B available", "<memory> available", text)
    text = re.sub(r'("(?:disk|memory)_free": )\d+', r"\1<bytes>", text)
    text = re.sub(r'("[^"\n]+\.(?:parquet|arrow|csv|jsonl)": )\d+', r"\1<bytes>", text)
    return text.replace(VERSION, "<shadow>") if VERSION else text


BEGAN = time.time()
VERSION = ""


# tables


@dataclass(frozen=True)
class Table:
    """The content of a tabular file, whatever its format."""

    types: dict[str, str]
    columns: dict[str, list[Any]]
    metadata: str = ""

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), []))


def tables_of(name: str, content: bytes) -> dict[str, Table] | None:
    """The tables in a file, by name; None where it holds none."""
    readers = {
        ".parquet": parquet_table,
        ".arrow": arrow_table,
        ".feather": arrow_table,
        ".csv": csv_table,
        ".jsonl": lines_table,
        ".ndjson": lines_table,
        ".sqlite": sqlite_tables,
        ".db": sqlite_tables,
        ".duckdb": duckdb_tables,
    }
    reader = readers.get(Path(name).suffix)
    if reader is None or Path(name).name == "journal.jsonl":
        return None
    try:
        found = reader(content)
    except Exception as error:  # a file that is broken on purpose
        return {"": Table({}, {}, f"unreadable: {type(error).__name__}")}
    return found if isinstance(found, dict) else {"": found}


def parquet_table(content: bytes) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
        groups = [
            file.metadata.row_group(number).num_rows
            for number in range(file.metadata.num_row_groups)
        ]
    return of_arrow(table, {"row groups": groups})


def arrow_table(content: bytes) -> Table:
    import pyarrow as pa
    import pyarrow.feather

    return of_arrow(pyarrow.feather.read_table(pa.BufferReader(content)), {})


def of_arrow(table: Any, more: dict[str, Any]) -> Table:
    metadata = {
        key.decode(): parsed(value.decode()) for key, value in (table.schema.metadata or {}).items()
    }
    types = {
        field.name: str(field.type) + ("" if field.nullable else " not null")
        for field in table.schema
    }
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return Table(
        types, columns, json.dumps(without_masked(more | metadata), indent=1, sort_keys=True)
    )


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def without_masked(value: Any) -> Any:
    """JSON whose volatile keys say only that they are there."""
    if isinstance(value, dict):
        return {
            key: "<masked>" if is_masked(key) else without_masked(one) for key, one in value.items()
        }
    return [without_masked(one) for one in value] if isinstance(value, list) else value


def is_masked(name: str) -> bool:
    return MASKED.fullmatch(name) is not None


def csv_table(content: bytes) -> Table:
    text = content.decode("utf-8-sig")
    names, *rows = csv.reader(io.StringIO(text))
    columns = {name: [number_of(row[place]) for row in rows] for place, name in enumerate(names)}
    return Table(dict.fromkeys(names, "text"), columns, json.dumps({"begins": content[:4].hex()}))


def number_of(text: str) -> Any:
    """A float where text is written as one; other text, and whole numbers, stay as they are."""
    if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?|-?\d+e[+-]?\d+", text):
        return float(text)
    if text.startswith("[") and "." in text:
        return parsed(text)
    return text


def lines_table(content: bytes) -> Table:
    rows = [json.loads(line) for line in content.decode().splitlines()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(
        dict.fromkeys(names, "json"), {name: [row.get(name) for row in rows] for name in names}
    )


def sqlite_tables(content: bytes) -> dict[str, Table]:
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
        file.write(content)
        file.flush()
        connection = sqlite3.connect(file.name)
        found = {}
        for name, statement in connection.execute(
            "select name, sql from sqlite_master order by name"
        ).fetchall():
            if statement is not None and re.match(r"create table", statement, re.IGNORECASE):
                quoted = '"' + name.replace('"', '""') + '"'
                cursor = connection.execute(f"select * from {quoted}")
                found[name] = of_cursor(cursor, statement)
            else:
                found[name] = Table({}, {}, str(statement))
        connection.close()
    return found


def duckdb_tables(content: bytes) -> dict[str, Table]:
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.duckdb"
        path.write_bytes(content)
        with duckdb.connect(str(path), read_only=True) as connection:
            listed = connection.execute(
                "select table_name, sql from duckdb_tables() order by 1"
            ).fetchall()
            listed += connection.execute(
                "select view_name, sql from duckdb_views() where not internal order by 1"
            ).fetchall()
            found = {}
            for name, statement in listed:
                quoted = '"' + name.replace('"', '""') + '"'
                cursor = connection.execute(f"select * from {quoted}")
                found[name] = of_cursor(cursor, statement)
    return found


def of_cursor(cursor: Any, statement: str) -> Table:
    names = [str(one[0]) for one in cursor.description]
    types = {str(one[0]): str(one[1]) for one in cursor.description}
    rows = cursor.fetchall()
    return Table(
        types, {name: [row[place] for row in rows] for place, name in enumerate(names)}, statement
    )


# exactly


def exact_text(name: str, done: Sequence[Done]) -> str:
    """A run, with every bit that should not change."""
    return "".join(told(one, exact_file, masked) for one in done)


def exact_file(name: str, content: bytes) -> str:
    if tables := tables_of(name, content):
        return "\n".join(exact_table(title, table) for title, table in tables.items())
    if b"\0" in content[:4096] or Path(name).suffix in (".png", ".pdf"):
        return f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    return masked(content.decode())


def exact_table(title: str, table: Table) -> str:
    lines = [f"table {title}: {table.rows} rows", masked(table.metadata)]
    lines += [f"  {name}: {kind}" for name, kind in table.types.items()]
    for row in range(table.rows):
        lines.append(f"row {row}")
        lines += [
            f"  {name} = {'<masked>' if is_masked(name) else exact_value(values[row])}"
            for name, values in table.columns.items()
        ]
    return "\n".join(lines)


def exact_value(value: Any) -> str:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list | tuple):
        return f"[{', '.join(exact_value(one) for one in value)}]"
    return masked(repr(value))


def told(done: Done, of_file: Callable[[str, bytes], str], of_text: Callable[[str], str]) -> str:
    """One command: what was typed, what it printed, what became of files."""
    parts = [
        f"$ shadow {' '.join(done.arguments)}    ({done.columns} columns)",
        f"exit {done.code}",
    ]
    parts += ["--- stdout", of_text(done.out)] if done.out else []
    parts += ["--- stderr", of_text(done.err)] if done.err else []
    for name, content in done.files.items():
        name = re.sub(r"scratch-[0-9a-f]{8}", "scratch-<hex>", name)
        if isinstance(content, bytes):
            parts += [f"--- wrote {name}", of_file(name, content)]
        else:
            parts.append(f"--- {'removed' if content is None else 'rewrote as it was'} {name}")
    return "\n".join(part.rstrip("\n") for part in parts) + "\n\n"


# roughly


class Goldens:
    """Renders runs as they are on every CPU but for last digits, and each thing once."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def text(self, run: str, done: Sequence[Done]) -> str:
        """A run. Of what it prints at a second width only the layout is told."""
        first, *others = done
        parts = [told(first, self.file(run), golden_print)]
        for one in others:
            shape = (
                f"{len(one.out.splitlines())} lines {short_hash(layout(one.out))}"
                if one.out
                else ""
            )
            talk = "(as before)" if one.err and one.err == first.err else one.err
            parts.append(told(replace(one, out=shape, err=talk), self.file(run), golden_print))
        return "".join(parts)

    def file(self, run: str) -> Callable[[str, bytes], str]:
        def render(name: str, content: bytes) -> str:
            text = golden_file(name, content)
            digest = short_hash(text)
            if len(text) > 200 and digest in self.seen:
                return f"as {self.seen[digest]}"
            self.seen.setdefault(digest, f"{name} of {run}")
            return text

        return render


def layout(text: str) -> list[str]:
    """Where the words of printed text stand, whatever their decimals are."""
    return [re.sub(r"[ \d.-]+", " ", line) for line in masked(text).splitlines()]


def golden_print(text: str) -> str:
    """Printed text without what only fills lines; JSON with its floats rounded."""
    if text.startswith(("{", "[")):
        return golden_json(text)
    lines = (
        re.sub(r"─{4,}", lambda run: f"─…{len(run[0])}", line.rstrip())
        for line in masked(text).splitlines()
    )
    return "\n".join(lines)


def golden_json(text: str) -> str:
    """JSON with floats rounded, one line each key; of a long one its shape and a hash."""
    try:
        value = json.loads(text)
    except ValueError:
        return masked(text)
    shape = short_hash(re.sub(r"-?\d[\d.e+-]*", "0", masked(text)))
    lines = list(json_lines(without_masked(value)))
    shown = masked("\n".join(lines))
    if len(shown) > LARGE:
        shown = part_digests(value)
    return f"JSON, text without numbers {shape}\n{shown}"


def json_lines(value: Any, path: str = "") -> Iterator[str]:
    """`path: leaf` of every leaf, floats rounded."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from json_lines(one, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and any(isinstance(one, dict | list) for one in value):
        for number, one in enumerate(value):
            yield from json_lines(one, f"{path}[{number}]")
    elif isinstance(value, list) and value:
        yield f"{path}: [{', '.join(rounded(one, path) for one in value)}]"
    else:
        yield f"{path}: {rounded(value, path)}"


def rounded(value: Any, name: str = "") -> str:
    """A leaf of JSON or a cell; floats with six digits, and as ~ where their column is loose."""
    if isinstance(value, float):
        return "~" if LOOSE.fullmatch(re.split(r"[.\[]", name)[-1]) else six_digits(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def six_digits(value: float) -> str:
    """Always all six, so that how much its last digit is worth can be seen."""
    text = f"{0.0 if abs(value) < NOTHING else value:#.6g}"
    return f"{text}0" if text.endswith(".") else text


def part_digests(value: Any) -> str:
    """The parts of a large JSON value, a line each: how many leaves, a hash of all but floats, and
    those weighed.
    """
    lines = []
    for key, one in (value if isinstance(value, dict) else {"all": value}).items():
        leaves = list(json_leaves(without_masked(one)))
        lines.append(
            f"  {key}: {len(leaves)} leaves"
            f" {digest_of([leaf for _, leaf in leaves], [at for at, _ in leaves])}"
        )
    return "\n".join(lines)


def json_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf; loose ones only as what they are."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from json_leaves(one, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for number, one in enumerate(value):
            yield from json_leaves(one, f"{path}[{number}]")
    else:
        name = re.split(r"[.\[]", path.removesuffix("]"))
        loose = isinstance(value, float | int) and any(LOOSE.fullmatch(part) for part in name)
        yield path, "~" if loose else value


WIDEST, MOST_TOLD = 40, 3  # letters of a value that is told, and values


def digest_of(values: Sequence[Any], more: Any = None) -> str:
    """What the values are: of floats how many and their sum, weighted by where they stand; of
    others each and how often, or how many there are. A hash of the order, where that is not told.

    So a change of a name, a whole number, a null, the number of rows or their order changes it.
    """
    floats = [one for one in values if isinstance(one, float) and math.isfinite(one)]
    kinds = [
        "float" if isinstance(one, float) and math.isfinite(one) else masked(repr(one))
        for one in values
    ]
    others = Counter(kind for kind in kinds if kind != "float")
    told = [f"{count} {kind if len(kind) <= WIDEST else 'long'}" for kind, count in others.items()]
    if len(others) > MOST_TOLD:
        told = [f"{others.total()}, {len(others)} different"]
    if floats:
        places = enumerate(floats)
        weighted = sum(abs(one) * (1 + place / len(floats)) for place, one in places) / len(floats)
        told.append(f"{len(floats)} floats {six_digits(weighted)}")
    if len(set(kinds)) > 1 or any(len(kind) > WIDEST for kind in kinds) or more:
        told.append(f"#{short_hash([kinds, more])}")
    return ", ".join(told)


def golden_file(name: str, content: bytes) -> str:
    if Path(name).name == "journal.jsonl":
        return golden_journal(content)
    if tables := tables_of(name, content):
        return "\n".join(golden_table(title, table) for title, table in tables.items())
    suffix = Path(name).suffix
    if suffix == ".png":
        return "PNG, {} x {} pixels".format(*struct.unpack(">II", content[16:24]))
    if b"\0" in content[:4096] or suffix == ".pdf":
        return f"begins with {content[:5]!r}"
    text = content.decode()
    if suffix == ".json":
        return golden_json(text)
    if suffix in (".html", ".svg"):
        return golden_markup(text)
    return masked(text)


def golden_journal(content: bytes) -> str:
    """The lines of a journal: what it belongs to, and of what was measured the names."""
    first, *rest = content.decode(errors="replace").splitlines()
    lines = list(json_lines(without_masked(json.loads(first))))
    lines += [f"{', '.join(one)}" for line in rest if isinstance(one := parsed(line), dict)]
    return masked("\n".join(lines))


def golden_table(title: str, table: Table) -> str:
    """A table, a line for each column: see digest_of."""
    lines = [f"table {title}: {table.rows} rows, types #{short_hash(table.types)}"]
    value = parsed(table.metadata)
    lines.append(part_digests(value) if isinstance(value, dict) else masked(table.metadata))
    lines += [f"  {name} {golden_column(name, values)}" for name, values in table.columns.items()]
    return "\n".join(line.rstrip() for line in lines if line)


def golden_column(name: str, values: list[Any]) -> str:
    if is_masked(name):
        return "<masked>"
    leaves = [
        one for value in values for one in (value if isinstance(value, list | tuple) else [value])
    ]
    lengths = [len(value) for value in values if isinstance(value, list | tuple)]
    if LOOSE.fullmatch(name):
        leaves = [None if one is None else "~" for one in leaves]
    return digest_of(leaves, lengths)


def short_hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


class Markup(html.parser.HTMLParser):
    """Elements of a page or a figure, their classes, and the text of each script and the rest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.scripts: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.inside = tag
        self.attributes.update(
            f"{key}={value}" for key, value in attrs if key in ("class", "id", "href", "title")
        )
        if tag in ("script", "style"):
            self.scripts.append((dict(attrs).get("id") or tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            name, before = self.scripts[-1]
            self.scripts[-1] = name, before + data
        elif data.strip():
            self.words.append(" ".join(data.split()))


def golden_markup(text: str) -> str:
    """What a page or a figure consists of."""
    found = Markup(masked(text))
    lines = [
        "elements:"
        f" {', '.join(f'{name} {count}' for name, count in sorted(found.elements.items()))}"
    ]
    attributes = sorted(
        re.sub(r"\d+\.\d+", "#", name) + f" {count}" for name, count in found.attributes.items()
    )
    lines.append(f"classes, ids and titles: {len(attributes)}  {short_hash(attributes)}")
    for name, script in found.scripts:
        value = parsed(script)
        if isinstance(value, dict):
            lines += [f"data {name}", part_digests(value)]
        elif len(script) < 500_000:  # longer is a library, of whichever version is installed
            lines.append(f"{name}: {len(script)} letters  {short_hash(script)}")
        else:
            lines.append(f"{name}: a library")
    words = [re.sub(r"\d+\.\d+|\d[\d,]* ?[kMG]?B\b", "#", one) for one in found.words]
    lines.append(f"text: {len(words)} pieces  {short_hash(words)}")
    return "\n".join(lines)


# comparing


def alike(one: str, other: str, *, measured: bool) -> bool:
    """Is a line the same but for the last digits of measured numbers?"""
    if one == other:
        return True
    texts = [DECIMAL.split(line) for line in (one, other)]
    numbers = [DECIMAL.findall(line) for line in (one, other)]
    lengths = [[len(number) for number in line] for line in numbers]
    if lengths[0] != lengths[1]:  # 10.00 takes a space that 9.99 leaves
        texts = [[" ".join(part.split()) for part in parts] for parts in texts]
    if not measured or texts[0] != texts[1]:
        return False
    return all(close(a, b) for a, b in zip(*numbers, strict=True))


def close(one: str, other: str) -> bool:
    """Equal within TOLERANCE, or by one in the last digit that is shown."""
    a, b = float(one), float(other)
    step = max(last_digit(one), last_digit(other))
    return abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), 1.01 * step)


def last_digit(text: str) -> float:
    """What one in the last digit of a number is worth."""
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - digits)


def changes(name: str, before: str, after: str, *, measured: bool = False) -> list[str]:
    """Where two recordings of a run differ; lines that are alike but for last digits do not."""
    old, new = before.splitlines(), after.splitlines()
    if len(old) == len(new):
        new = [a if alike(a, b, measured=measured) else b for a, b in zip(old, new, strict=True)]
    return list(
        difflib.unified_diff(old, new, f"{name} (before)", f"{name} (after)", lineterm="", n=1)
    )


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
