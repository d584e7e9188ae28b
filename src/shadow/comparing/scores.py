"""Files of benchmark scores that others measured -> frozen rows. Pure: reads, prints nothing,
measures nothing.

Two formats: a CSV with a header, and the JSON that lm-evaluation-harness writes (`results_*.json`;
the keys of its result_schema.py and of its older versions). A folder stands for the files of both
kinds below it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shadow.errors import ShadowError
from shadow.files import read_given
from shadow.storage import as_given
from shadow.text import counted, nearest, several, short

COLUMNS = {  # of a CSV: what each says; the first three are needed
    "model": (
        "as the report names it: org/name, with @revision if that matters, the folder, or"
        " family:stage"
    ),
    "benchmark": "any name",
    "score": "a number, 0.45 or 45; in which of the two units is yours to keep to",
    "group": "kind of benchmark, such as narrow and held-out: their gains are averaged",
    "stderr": "standard error of the score",
    "metric": "such as acc; only scores of one metric are subtracted",
    "unit": "such as share or percent; only needed where the numbers leave it open",
    "higher_is_better": "true (also without the column) or false",
}
NEEDED = ("model", "benchmark", "score")
HARNESS = "lm-evaluation-harness"
# Of several metrics of one benchmark the first of these is taken: acc_norm before acc, because it
# does not favour short answers; exact_match where answers are generated.
PREFERRED = (
    "acc_norm", "acc", "exact_match", "pass@1", "pass_at_1", "prompt_level_strict_acc", "em", "f1",
    "mcc",
)  # fmt: skip
FILTERS = ("", "strict-match")  # of several filters of one metric the first of these, then by name
# Metrics of lm_eval/api/metrics.py of which less is better; old files do not say.
LOWER = (
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter",
    "ppl",
)  # fmt: skip
DIRECTIONS = dict.fromkeys(LOWER, False) | dict.fromkeys(PREFERRED, True)
# other keys beside a task's metrics
NO_METRICS = ("name", "alias", "sample_len", "sample_count", "samples")
# keys by task, and what they are called here
CONDITIONS = {"n-shot": "n-shot", "versions": "version"}

QUESTIONS = "questions"  # how many were asked; `10 of 100` of a part

MAX_FILE = 64_000_000  # bytes
MAX_FILES = 2_000
SUFFIXES = (".csv", ".json")  # of files that scores are read from
MAX_SCORES = 500_000
MAX_TEXT = 300  # characters of a name
LARGEST = 1e12  # of a score: beyond it is a slip, and differences would lose their digits
NO_NUMBERS = ("nan", "inf", "infinity", "n/a", "na", "none", "null", "-", "")
UNMEASURED = "leave out rows of what was not measured"
OF_NAMES = ("metric", "group", "unit")  # columns of names that may be empty
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


@dataclass(frozen=True)
class Score:
    """One score as a file states it."""

    model: str
    """The name in the file, with @revision where one is given."""
    benchmark: str
    """MAX_TEXT characters at most."""
    metric: str | None
    """None where the file names none; a filter of the harness follows after a comma."""
    score: float
    """In the unit of the file, -LARGEST to LARGEST."""
    stderr: float | None
    """In the same unit, 0 or more; None where the file has none."""
    group: str | None
    """The group of benchmarks that a CSV puts it in."""
    unit: str | None
    """What a CSV states, HARNESS for the harness, otherwise None."""
    higher_is_better: bool | None
    """None where nobody says."""
    file: str
    """The path as it was given."""
    line: int | None = None
    """Its line in a CSV, from 1; None for the harness."""
    commit: str | None = None
    """The commit that the harness noted, 40 hexadecimal digits."""
    parent: str | None = None
    """The group of the harness that has a score of its own over this one."""
    conditions: tuple[tuple[str, str], ...] = ()
    """What else decides a score, by name, such as (n-shot, 5)."""

    @property
    def where(self) -> str:
        """`scores.csv:3`, or the file alone where it has no lines."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class ScoreFile:
    """A file that scores came from."""

    name: str
    sha256: str
    """64 hexadecimal digits: of its content."""


@dataclass(frozen=True)
class ScoreFiles:
    """All that was read."""

    files: tuple[ScoreFile, ...] = ()
    rows: tuple[Score, ...] = ()
    """MAX_SCORES at most, in the order of the files."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Benchmark -> group, of files that have no scores."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    @cached_property
    def models(self) -> tuple[tuple[str, str | None], ...]:
        """(name, commit) of every model, each once."""
        return tuple(dict.fromkeys((row.model, row.commit) for row in self.rows))

    @property
    def name(self) -> str:
        """The files for a message: `scores.csv`, `a.json and 3 more`."""
        return several([file.name for file in self.files], 1) or "no file"


def read_scores(paths: Iterable[Path]) -> ScoreFiles:
    """The scores of files and folders. Raises ShadowError, naming file and line."""
    files: list[ScoreFile] = []
    rows: list[Score] = []
    groups: dict[str, str] = {}
    notes: list[str] = []
    for path, in_folder in _files(paths):
        raw = _bytes(path)
        if path.suffix.lower() == ".csv":
            scores, grouped = _read_csv(as_given(path), _text(path, raw))
            for benchmark, group in grouped.items():
                _put_in_group(groups, benchmark, group=group, where=str(path))
        else:
            data = _json(path, raw)
            if in_folder and not (isinstance(data, dict) and "results" in data):
                notes.append(f"{path} is no result of {HARNESS}: not read")
                continue
            scores, more_notes = _read_harness(as_given(path), data)
            notes += more_notes
        files.append(ScoreFile(as_given(path), hashlib.sha256(raw).hexdigest()))
        rows += scores
        _refuse_many(len(rows), path)
    if not rows:
        where = ", ".join(str(path) for path in paths)
        raise ShadowError(f"{where}: no scores in it", f"a CSV has the columns {', '.join(NEEDED)}")
    return ScoreFiles(files=tuple(files), rows=tuple(rows), groups=groups, notes=tuple(notes))


def _refuse_many(count: int, file: Path | str) -> None:
    if count > MAX_SCORES:
        hint = "leave out models that are not audited"
        raise ShadowError(f"{file}: more than {MAX_SCORES:,} scores", hint)


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file and whether it was found in a folder; without hidden files, by name."""
    for path in paths:
        try:
            is_folder = path.is_dir()
            files = sorted(file for file in path.rglob("*") if _is_scores(file, path))
        except (OSError, ValueError) as error:  # also a name that is too long, or one with a NUL
            reason = getattr(error, "strerror", None) or error
            raise ShadowError(f"{str(path)[:80]}: {reason}") from error
        if not is_folder:
            yield path, False
            continue
        if not files:
            hint = "name the files, or the folder that holds them"
            raise ShadowError(f"{path}: no *.csv and no *.json in it", hint)
        if len(files) > MAX_FILES:
            hint = "name a folder of scores alone"
            raise ShadowError(f"{path}: more than {MAX_FILES:,} files", hint)
        yield from ((file, True) for file in files)


def _is_scores(path: Path, top: Path) -> bool:
    """Whether a file may hold scores, and is neither hidden nor in a hidden folder below top."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    return not any(part.startswith(".") for part in path.relative_to(top).parts)


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        message = f"{str(path)[:80]}: scores are read from .csv and .json files"
        raise ShadowError(message, "rename it")
    hint = "name a CSV, a JSON or a folder of them"
    return read_given(path, MAX_FILE, hint, "it should hold scores, not samples")


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 text (byte {error.start})"
        raise ShadowError(message, "save it as UTF-8") from error


def _name(text: str, what: str, where: str) -> str:
    """A model's, benchmark's, group's name: some text, not too long."""
    name = text.strip()
    if not name:
        raise ShadowError(f"{where}: no {what}", "fill it in, or leave the row out")
    if len(name) > MAX_TEXT:
        raise ShadowError(f"{where}: a {what} of {len(name):,} characters", f"at most {MAX_TEXT}")
    return name


def _put_in_group(groups: dict[str, str], benchmark: str, group: str, where: str) -> None:
    """Adds a benchmark and its group. Raises ShadowError where it is in another already."""
    known = groups.setdefault(benchmark, group)
    if known != group:
        both = f"{short(known)} and {short(group)}"
        raise ShadowError(f"{where}: {short(benchmark)} is in the groups {both}", "put it in one")


# CSV


def _read_csv(file: str, text: str) -> tuple[list[Score], dict[str, str]]:
    """The scores of a CSV, or of one with the columns benchmark and group alone: the groups."""
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Score] = []
    groups: dict[str, str] = {}
    try:
        header = _header(file, next(lines, []))
        for cells in lines:
            where = f"{file}:{lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                counts = f"{counted(len(cells), 'cell', 'cells')}, the header {len(header)}"
                raise ShadowError(f"{where}: {counts}", "put text that has a comma in quotes")
            row = dict(zip(header, cells, strict=True))
            if "score" in header:
                rows.append(_csv_score(file, lines.line_num, row))
            else:
                benchmark, group = (_name(row[key], key, where) for key in ("benchmark", "group"))
                _put_in_group(groups, benchmark, group=group, where=where)
            _refuse_many(len(rows) + len(groups), file)
    except csv.Error as error:
        message = f"{file}:{lines.line_num}: not a CSV ({error})"
        raise ShadowError(message, 'quote cells with ""') from error
    return rows, groups


def _header(file: str, cells: Sequence[str]) -> list[str]:
    """The columns by name. Every fault names the nearest known column."""
    names = [cell.strip().lower() for cell in cells]
    for name in names:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS) or f"take it out; known are {', '.join(COLUMNS)}"
            raise ShadowError(f"{file}: unknown column {short(name)}", hint)
        if names.count(name) > 1:
            raise ShadowError(f"{file}: two columns {name!r}", "take one out")
    missing = [name for name in NEEDED if name not in names]
    if missing and set(names) != {"benchmark", "group"}:
        had = f"it has {', '.join(names)}" if names else "it is empty"
        hint = f"the first line names: {', '.join(NEEDED)}"
        raise ShadowError(f"{file}: no column {missing[0]!r}: {had}"[:300], hint)
    return names


def _csv_score(file: str, line: int, row: Mapping[str, str]) -> Score:
    where = f"{file}:{line}"
    given = {name: text for name, text in row.items() if text.strip()}
    names = {name: _name(given[name], name, where) for name in OF_NAMES if name in given}
    return Score(
        model=_name(row["model"], "model", where),
        benchmark=_name(row["benchmark"], "benchmark", where),
        metric=names.get("metric"),
        score=_number(row["score"], "score", where),
        stderr=_number(given["stderr"], "stderr", where) if "stderr" in given else None,
        group=names.get("group"),
        unit=names["unit"].lower() if "unit" in names else None,
        higher_is_better=_flag(row.get("higher_is_better", ""), where),
        file=file,
        line=line,
    )


def _number(text: str, what: str, where: str) -> float:
    """A finite number in ASCII digits; of a standard error, not below 0."""
    text = text.strip()
    if not text:
        raise ShadowError(f"{where}: no {what}", UNMEASURED)
    if not NUMBER.fullmatch(text):
        hint = "write a number such as 0.45"
        if text.endswith("%"):
            hint = "write 45.2 without the sign; a column `unit` may say percent"
        elif re.fullmatch(r"[+-]?\d+,\d+", text):
            hint = "write a point before the decimals"
        elif text.lower().lstrip("+-") in NO_NUMBERS:
            hint = UNMEASURED
        raise ShadowError(f"{where}: {what} {short(text)} is not a number", hint)
    value = float(text)
    if abs(value) > LARGEST:
        raise ShadowError(f"{where}: {what} {short(text)} is too large", f"at most {LARGEST:g}")
    if what == "stderr" and value < 0:
        raise ShadowError(f"{where}: a standard error below 0", "it is a distance")
    return value


def _flag(text: str, where: str) -> bool:
    word = text.strip().lower()
    if word not in ("", "true", "yes", "1", "false", "no", "0"):
        raise ShadowError(f"{where}: higher_is_better {short(word)}", "write true or false")
    return word not in ("false", "no", "0")


# lm-evaluation-harness


def _json(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(_text(path, raw))
    except (ValueError, RecursionError) as error:  # NaN is read, as the harness writes it
        message = f"{path}: not JSON ({type(error).__name__})"
        raise ShadowError(message, "check that the file is complete") from error


def _read_harness(file: str, data: Any) -> tuple[list[Score], list[str]]:
    """The scores of a result of lm-evaluation-harness by task and metric, and what was left out."""
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        message = f"{file}: no `results`, so no result of {HARNESS}"
        raise ShadowError(message, "name a results_*.json, or write a CSV")
    model, commit = _harness_model(file, data)
    scored = {
        task
        for task, result in data["results"].items()
        if any(_finite(result[key]) is not None for _, key, _ in _metrics(result))
    }
    parents = _parents(_inside(data, "group_subtasks"), scored)
    rows, notes = [], []
    for task, result in data["results"].items():
        name = _name(task, "task", file)
        directions = _inside(data, "higher_is_better", task)
        for metric, key, stderr_key in _metrics(result):
            value, stderr = _finite(result[key]), _finite(result.get(stderr_key))
            if value is None:
                notes.append(f"{file}: {key[:80]} of {name[:80]} is {short(result[key])}: left out")
                continue
            row = Score(
                model=model,
                benchmark=name,
                metric=_name(metric, "metric", file),
                score=value,
                stderr=None if stderr is None or stderr < 0 else stderr,
                group=None,
                unit=HARNESS,
                higher_is_better=_direction(metric, directions),
                file=file,
                commit=commit,
                parent=parents.get(task),
                conditions=_conditions(data, task),
            )
            rows.append(row)
    if not rows:
        notes.append(f"{file}: no metric in its results")
    return rows, notes


def _inside(value: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping that a file should have under these keys; empty where it has something else."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    """A number that is one: no text such as N/A, no NaN, no boolean, nothing beyond LARGEST."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        return None
    return float(value) if math.isfinite(value) else None


def _metrics(result: Any) -> Iterator[tuple[str, str, str]]:
    """(metric, its key, the key of its standard error): `acc,none`, in old versions `acc`."""
    result = _inside(result)
    with_filter = any("," in key for key in result)
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if metric.endswith("_stderr") or metric in NO_METRICS or not metric.strip():
            continue
        if with_filter and not comma:
            continue
        name = metric if chosen in ("", "none") else f"{metric},{chosen}"
        yield name, key, f"{metric}_stderr{comma}{chosen}"


def _direction(metric: str, said: Mapping[str, Any]) -> bool | None:
    """Whether more of a metric is better; None where nobody says. said: by metric, in a file."""
    name = metric.partition(",")[0]
    if name not in said:
        return DIRECTIONS.get(name)
    # null: the tasks of a group do not agree
    return said[name] if isinstance(said[name], bool) else None


def _parents(subtasks: Mapping[str, Any], scored: set[str]) -> dict[str, str]:
    """Task -> the group above it that has a score of its own, the topmost one."""
    above: dict[str, list[str]] = {}
    for group, children in subtasks.items():
        if not isinstance(children, list):
            continue
        for child in children:
            if isinstance(child, str) and child != group:
                above.setdefault(child, []).append(group)
    parents = {}
    for task in scored:
        seen, rest = {task}, list(above.get(task, ()))
        while rest:
            group = rest.pop(0)
            if group not in seen:
                seen.add(group)
                rest += above.get(group, ())
                if group in scored:
                    parents[task] = group
    return parents


def _conditions(data: Mapping[str, Any], task: str) -> tuple[tuple[str, str], ...]:
    """What else decides a score: two sides that differ in it are warned of."""
    conditions = []
    for key, what in CONDITIONS.items():
        value = _inside(data, key).get(task)
        if isinstance(value, int | float | str) and str(value) != "N/A":
            conditions.append((what, str(value)[:40]))
    counts = _inside(data, "n-samples", task)
    effective, original = counts.get("effective"), counts.get("original")
    if isinstance(effective, int) and isinstance(original, int):
        asked = str(effective) if effective == original else f"{effective} of {original}"
        conditions.append((QUESTIONS, asked[:40]))
    if "chat_template" in data or "chat_template_sha" in data:
        has_template = data.get("chat_template") or data.get("chat_template_sha")
        conditions.append(("chat template", "yes" if has_template else "no"))
    return tuple(conditions)


def _harness_model(file: str, data: Mapping[str, Any]) -> tuple[str, str | None]:
    """The model's name, as the harness takes it (an adapter before its base), and its commit."""
    config = _inside(data, "config")
    arguments = _arguments(config.get("model_args"))
    name, sha = data.get("model_name"), config.get("model_sha")
    for key in ("peft", "delta", "pretrained", "model", "path"):
        if arguments.get(key):
            name = arguments[key]
            sha = config.get({"peft": "peft_sha", "delta": "delta_sha"}.get(key, "model_sha"))
            break
    if not isinstance(name, str) or not name.strip():
        message = f"{file}: it names no model, neither in config.model_args nor in model_name"
        raise ShadowError(message, "write a CSV with the column model")
    name = _name(name, "model", file)
    if subfolder := arguments.get("subfolder", "").strip("/"):
        name = f"{name}/{subfolder}"
    revision = arguments.get("revision", "")
    if revision not in ("", "main", "None") and re.fullmatch(r"[\w./-]{1,200}", revision, re.ASCII):
        name = f"{name}@{revision}"
    if not isinstance(sha, str) or not re.fullmatch("[0-9a-f]{40}", sha):
        return name, None
    return name, sha


def _arguments(given: Any) -> dict[str, str]:
    """`model_args`: a mapping, or in older versions text such as `pretrained=org/name`."""
    if isinstance(given, dict):
        return {key: value for key, value in given.items() if isinstance(value, str)}
    if not isinstance(given, str):
        return {}
    named: dict[str, str] = {}
    for part in given.split(","):
        key, equals, value = part.partition("=")
        if equals:
            named.setdefault(key.strip(), value.strip())
    return named
