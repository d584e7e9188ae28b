"""Draw mistakes by a seed, plant one at a time in a copy of the package, and name those that no
test notices.

    python tests/mutants.py --map                     # once, an hour: which test executes a line
    python tests/mutants.py [--seed 0] [--count 200]  # about ten seconds a mistake

A mistake changes one number, comparison, sign, index or word (`and`, `not`, True), swaps two
arguments, or drops a statement, on a line that some test executes, also by a command that it
starts; not the `strict` of zip, which only guards. The tests that execute the line, slow ones too,
run in forks of this process until one fails: those of its room first, the quickest before others.
Those that are gone since the map was made are left out; it is "unknown" what comes of a mistake
that no other executes.
What survives is printed with its change; tests/equivalent.yaml lists changes that no test can
notice, each with its reason. Exit code 1: a mistake survived that is not listed there.
"""

import argparse
import ast
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in conftest.py, before NumPy is imported
sys.dont_write_bytecode = True

import yaml  # noqa: E402

ROOT = Path(__file__).parents[1]
MAP = ROOT / "build" / "executed.json"
COVERED = MAP.with_suffix(".coverage")
QUICK, ALL = 40.0, 240.0  # seconds of tests that run first, and at most, by the map
PATIENCE = 4.0  # times as long, and a minute, counts as hung
PASSED = 0  # how pytest ends
ALL_TESTS = ("-m", "not real and not ray")  # fast and slow
FEW = 12  # characters that say little without their line
SYMMETRICAL = ("max", "min", "maximum", "minimum", "fmax", "fmin", "isclose", "equal", "not_equal")
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
REPLACED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.FloorDiv: ast.Mult,
}  # fmt: skip
# folders of tests of rooms that have none of their name
TESTED_IN = {"run": "audits", "engines": "audits", "lists": "audits", "gates": "checks"}
DEFINED = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mistake:
    """A change of one place in a file of src/shadow."""

    file: str
    line: int
    """Of the statement that holds it, counted from 1."""
    start: int
    end: int
    """The bytes that it replaces."""
    kind: str
    before: str
    after: str
    text: str
    """Of the line where it begins."""

    @property
    def name(self) -> str:
        """`spectra/noise.py: null >= 2 -> null > 2`, if short with its line (`0 -> 1 in x = 0`). It
        does not change with lines above it.
        """
        name = f"{self.file}: {' '.join(self.before.split())} -> {' '.join(self.after.split())}"
        return name if len(self.before) > FEW else f"{name} in {self.text}"


# -------------------------------------------------------------------------------- what may be drawn


def mistakes(file: str, text: str, executed: Mapping[int, object]) -> Iterator[Mistake]:
    """Yield each mistake that can be planted on the executed lines of a module."""
    content = text.encode()
    starts, lines = [0], content.splitlines(keepends=True)
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(node: ast.AST) -> tuple[int, int]:
        first = starts[node.lineno - 1] + node.col_offset
        return first, starts[node.end_lineno - 1] + node.end_col_offset

    def mistake(kind: str, statement: ast.stmt, node: ast.AST, after: str) -> Mistake:
        start, end = place(node)
        before = content[start:end].decode()
        text = lines[node.lineno - 1].decode().strip()
        return Mistake(file, statement.lineno, start, end, kind, before, after, text)

    for statement in _statements(ast.parse(text)):
        if statement.lineno not in executed:
            continue
        if _may_be_dropped(statement):
            yield mistake("dropped statement", statement, statement, "pass")
        for node in _own_expressions(statement):
            for kind, changed in _changes(node):
                yield mistake(kind, statement, node, f"({ast.unparse(changed)})")


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements inside functions; those of a module define names and constants."""
    for node in ast.walk(tree):
        if isinstance(node, DEFINED):
            for inner in ast.walk(node):
                if isinstance(inner, ast.stmt) and not isinstance(inner, DEFINED | ast.ClassDef):
                    yield inner
        elif isinstance(node, ast.Module):
            yield from (one for one in node.body if isinstance(one, ast.Assign | ast.AnnAssign))


def _may_be_dropped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.Await)
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Break | ast.Raise)


def _own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield the expressions of a statement, without those of statements in it, of annotations and
    of texts that are formatted.
    """
    waiting: list[ast.AST] = []
    for name, value in ast.iter_fields(statement):
        if name not in ("body", "orelse", "finalbody", "handlers", "annotation", "targets"):
            waiting += value if isinstance(value, list) else [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or not isinstance(node, ast.AST):
            continue
        if isinstance(node, ast.expr):
            yield node
        waiting += (
            one for one in ast.iter_child_nodes(node) if getattr(one, "arg", "") != "strict"
        )


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield the kinds of change of an expression, and what it becomes."""
    match node:
        case ast.Constant(value=bool(value)):
            yield "word", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "number", ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "number", ast.Constant(1.5 * value if value else 1.0)
        case ast.Compare(left=left, ops=[operation], comparators=right):
            yield "comparison", ast.Compare(left, [COMPARED[type(operation)]()], right)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in REPLACED:
            if not any(
                isinstance(side, ast.Constant | ast.JoinedStr) and _is_text(side)
                for side in (left, right)
            ):
                yield "sign", ast.BinOp(left, REPLACED[type(operation)](), right)
        case ast.BoolOp(op=operation, values=values):
            yield "word", ast.BoolOp(REPLACED[type(operation)](), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "sign", operand
        case ast.Subscript(value=value, slice=ast.Constant(value=int(index)), ctx=ast.Load()):
            yield "index", ast.Subscript(value, ast.Constant(0 if index else 1), ast.Load())
        case ast.Call(func=called, args=[first, second, *rest], keywords=keywords):
            is_alike = ast.unparse(called).rpartition(".")[2] in SYMMETRICAL
            if not is_alike and not any(isinstance(one, ast.Starred) for one in (first, second)):
                yield "swapped arguments", ast.Call(called, [second, first, *rest], keywords)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def drawn(executed: Mapping[str, Mapping[str, object]], seed: int, count: int) -> list[Mistake]:
    """Draw so many mistakes: a package as often as it has places to choose from, at least twice; a
    kind as often as another.
    """
    generator = random.Random(seed)
    rooms: dict[str, dict[str, list[Mistake]]] = defaultdict(lambda: defaultdict(list))
    for file, lines in sorted(executed.items()):
        path = ROOT / "src" / "shadow" / file
        if path.is_file():
            numbers = {int(line): tests for line, tests in lines.items()}
            for one in mistakes(file, path.read_text(encoding="utf-8"), numbers):
                rooms[file.rpartition("/")[0].partition("/")[0]][one.kind].append(one)
    places = {room: sum(map(len, kinds.values())) for room, kinds in rooms.items()}
    rooms_drawn = [room for room in rooms for _ in range(2)]
    rooms_drawn += generator.choices(
        [*places], [*places.values()], k=max(0, count - len(rooms_drawn))
    )
    chosen: dict[Mistake, None] = {}
    for room in rooms_drawn[:count]:
        kind = generator.choice(sorted(rooms[room]))
        chosen[generator.choice(rooms[room][kind])] = None
    return [*chosen]


# ------------------------------------------------------------------------- which test executes what


class Recorder:
    """A plugin of pytest that notes which test runs, and how long each function of tests takes."""

    def __init__(self, coverage: Any) -> None:
        from command import Started

        self.coverage = coverage
        self.commands = Started
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_setup(self, item: Any) -> None:
        # what a fixture executes counts for the whole file: other tests use the same fixture
        self._record(item.nodeid.partition("::")[0])

    def pytest_runtest_call(self, item: Any) -> None:
        for name, module in [*sys.modules.items()]:
            for value in [*vars(module).values()] if name.startswith("shadow.") else []:
                # each test executes what it needs, not the first of those that need it
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()
        self._record(item.nodeid.partition("[")[0])

    def _record(self, test: str) -> None:
        self.coverage.switch_context(test)
        self.commands.recorded = str(COVERED), test

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid.partition("[")[0]] += report.duration


def write_map() -> None:
    """Run the fast and slow tests once, and note which of them executes which line."""
    import coverage
    import pytest

    MAP.parent.mkdir(exist_ok=True)
    measured = coverage.Coverage(str(COVERED), source=["shadow"])
    measured.erase()
    recorder = Recorder(measured)
    measured.start()
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", *ALL_TESTS)
    pytest.main([*options], plugins=[recorder])
    measured.stop()
    measured.save()
    measured.combine(keep=False)
    executed: dict[str, dict[str, list[str]]] = {}
    recorded = measured.get_data()
    for path in filter(re.compile(r"\.py$").search, recorded.measured_files()):  # no templates
        lines = recorded.contexts_by_lineno(path).items()
        content = Path(path).read_text(encoding="utf-8")
        users = users_of({line: {*filter(None, tests)} for line, tests in lines}, content)
        executed[path.rpartition("/shadow/")[2]] = {
            str(line): sorted(tests) for line, tests in users.items() if tests
        }
    seconds = dict(recorder.seconds)
    for test, duration in recorder.seconds.items():
        file = test.partition("::")[0]
        seconds[file] = seconds.get(file, 0.0) + duration
    MAP.write_text(json.dumps({"executed": executed, "seconds": seconds}))


def users_of(executed: Mapping[int, set[str]], content: str) -> dict[int, set[str]]:
    """The tests that execute each line of a module, and for a constant those that execute a line
    that names it; it is made by the first test that imports the module.
    """
    users = dict(executed)
    lines = content.splitlines()
    for one in ast.parse(content).body:
        if isinstance(one, ast.Assign | ast.AnnAssign) and executed.get(one.lineno):
            name = re.findall(r"\w+", lines[one.lineno - 1])[0]
            named = (at for at, text in enumerate(lines, 1) if re.search(rf"\b{name}\b", text))
            users[one.lineno] = set[str]().union(*(executed.get(at, ()) for at in named))
    return users


# ---------------------------------------------------------------------------------------- planting


class Copy:
    """A copy of the package, and the tests of the checkout run on it."""

    def __init__(self, folder: Path) -> None:
        self.src = folder / "src"
        shutil.copytree(ROOT / "src", self.src)
        (folder / "registry").symlink_to(ROOT / "registry")
        paths = [str(self.src), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        sys.path.insert(0, str(self.src))

    @contextmanager
    def planted(self, mistake: Mistake) -> Iterator[None]:
        """Plant a mistake while it lasts."""
        path = self.src / "shadow" / mistake.file
        content = path.read_bytes()
        after = content[: mistake.start] + mistake.after.encode() + content[mistake.end :]
        path.write_bytes(after)
        try:
            yield
        finally:
            path.write_bytes(content)

    def end_of(self, tests: Sequence[str], limit: float) -> int:
        """Run tests in a fork until one fails, and return how pytest ends."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.alarm(int(limit))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            import pytest

            options = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")
            os._exit(int(pytest.main([*options, *ALL_TESTS, *tests])))
        finally:
            os._exit(3)


@functools.cache
def is_there(test: str) -> bool:
    """False for a test that is gone or renamed since the map was made."""
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.is_file() and f"def {name}" in path.read_text(encoding="utf-8")


def outcome_of(
    copy: Copy, mistake: Mistake, tests: Sequence[str], seconds: Mapping[str, float]
) -> str:
    """Plant a mistake and return what came of it: killed, survived, or unknown."""
    room = mistake.file.partition("/")[0]
    folder = f"tests/{TESTED_IN.get(room, room)}/"

    def rank(test: str) -> tuple[bool, float]:
        return not test.startswith(folder), seconds.get(test, 1.0)

    in_order = sorted(filter(is_there, tests), key=rank)
    with copy.planted(mistake):
        for most in (QUICK, ALL):
            spent = [*itertools.accumulate(seconds.get(test, 1.0) for test in in_order)]
            count = max(1, sum(one <= most for one in spent))
            if not in_order:
                return "unknown"
            if copy.end_of(in_order[:count], PATIENCE * spent[count - 1] + 60) != PASSED:
                return "killed"
            if count == len(in_order):
                break
    return "survived"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--map", action="store_true", help="run the tests and note their lines")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--count", type=int, default=200)
    asked.add_argument(
        "--part", default="1/1", metavar="I/N", help="every Nth, for several processes"
    )
    asked.add_argument("--list", action="store_true", help="name the mistakes, and plant none")
    options = asked.parse_args()
    os.chdir(ROOT)
    if options.map:
        write_map()
        return 0
    known = json.loads(MAP.read_text())
    chosen = drawn(known["executed"], options.seed, options.count)
    number, of = map(int, options.part.split("/"))
    chosen = chosen[number - 1 :: of]
    if options.list:
        print("\n".join(mistake.name for mistake in chosen))
        return 0
    listed = yaml.safe_load((ROOT / "tests" / "equivalent.yaml").read_text()) or {}
    import hypothesis

    first = hypothesis.Phase.explicit, hypothesis.Phase.generate  # the first failure is enough
    hypothesis.settings.register_profile("first", phases=first, database=None)
    hypothesis.settings.load_profile("first")  # from which tests/effort.py goes on
    alive = equivalent = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for name in ("pandas", "pyarrow.parquet", "pydantic", "pytest", "scipy.special", "torch"):
            __import__(name)  # once, for all forks
        for mistake in chosen:
            start = time.monotonic()
            tests = known["executed"][mistake.file][str(mistake.line)]
            outcome = outcome_of(copy, mistake, tests, known["seconds"])
            if outcome == "survived" and mistake.name in listed:
                outcome = "equivalent"
            alive += outcome not in ("killed", "equivalent")
            equivalent += outcome == "equivalent"
            took = time.monotonic() - start
            print(f"{took:5.1f} s  {outcome:10}  {mistake.line:4} {mistake.name}", flush=True)
    print(f"{len(chosen)} mistakes, {equivalent} equivalent, {alive} of the others survived")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
