"""Recordings as text: what a command did, exactly or as it is on every CPU; and what is alike."""

from __future__ import annotations

import csv
import difflib
import hashlib
import html.parser
import io
import json
import math
import re
import sqlite3
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # relative; CPUs and versions of BLAS differ by 1e-6 in what is compared
NOTHING = 1e-9  # smaller numbers are zero but for rounding
LARGE = 4_000  # bytes of text; longer ones are told by their hash in goldens
MASKED = re.compile(  # keys of JSON, and columns; files count as keys where their sizes are told
    r"seconds|started|libraries|version|disk_free|memory_free|seal|.+\.(parquet|arrow|csv|jsonl)"
)
# Columns that hang on single bits: where a power law begins, and what is cut off as noise.
LOOSE = re.compile(r"alpha(_\w+)?|condition_number|sigma_floor|null_\w+_stderr")
# a number that is no part of a hash
DECIMAL = re.compile(r"(?<![\w#.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?!\w|\.\d)")


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
