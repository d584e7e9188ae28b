"""Reword messages and rename modules in a copy, and count the cases of tests that break.

    python tests/rewording.py [--seed N] [--messages N] [--modules N] [--package NAME]

A message is a text of at least four words that a person may read: of an error, of a sentence, of a
table of words. Other words may break MOST cases of the tests of its package. A module that is
renamed with all its imports may break none of the tests that name it. Exit code 1 if more break.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC, WORDS = Path("src/shadow"), Path("src/shadow/reports/words.yaml")
MOST = 3  # cases that a reworded message may break
SECONDS = 1200  # after which tests count as hung
NAMING, BESIDE = 6, 2  # files of tests that import a renamed module, and others of its package
WORD = re.compile(r"(?<![\w`'/.-])[A-Za-z]{3,}(?![\w`'/-])")
CODE = re.compile(r"(\{[^{}]*\}|`[^`]*`)")  # what is filled in, and what people type
IMPORT = re.compile(r"(?m)^[ \t]*(?:from [\w.]+ import (?:\([^)]*\)|[^\n(]+)|import [^\n]+)")
TEXT = re.compile(r"(?m)^    text: ['\"]?(.{20,})$")
BROKEN = re.compile(r"(?m)^(?:FAILED|ERROR) (.+?)(?: - .*)?$")


def in_code(path: Path) -> Iterator[str]:
    """Yield the texts of a module as they are written, without docstrings."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            text = ast.get_source_segment(source, node) or ""
            if "\n" not in text and "\\" not in text:
                yield text


def messages(root: Path, package: str) -> list[tuple[Path, str]]:
    """Return the texts of a package, or of all, that people read, each with its file, in order."""
    found = [(WORDS, text) for text in TEXT.findall((root / WORDS).read_text(encoding="utf-8"))]
    for path in sorted((root / SRC / package).rglob("*.py")):
        found += [(path.relative_to(root), text) for text in in_code(path)]
    return [
        (file, text)
        for file, text in dict.fromkeys(found)
        if file.is_relative_to(SRC / package)
        and sum(len(WORD.findall(part)) for part in CODE.split(text)[::2]) >= 4
        and (root / file).read_text(encoding="utf-8").count(text) == 1
    ]


def reworded(text: str) -> str:
    """Write every word backwards, but for what is filled in and what people type."""
    parts = CODE.split(text)
    parts[::2] = [WORD.sub(lambda match: match[0][::-1], part) for part in parts[::2]]
    return "".join(parts)


def renamed(text: str, package: str, old: str, new: str, *, strings: bool) -> str:
    """Give a module of a package another name wherever a text imports it; in strings as well."""
    dotted = re.compile(rf"\b{re.escape(f'{package}.{old}')}\b")
    if strings:
        text = dotted.sub(f"{package}.{new}", text)

    def statement(match: re.Match[str]) -> str:
        found = dotted.sub(f"{package}.{new}", match[0])
        head, names, rest = found.partition(" import ")
        if head.split()[-1:] == [package]:
            rest = re.sub(rf"\b{old}\b as ", f"{new} as ", rest)
            rest = re.sub(rf"(?<!as )\b{old}\b", f"{new} as {old}", rest)
        return head + names + rest

    return IMPORT.sub(statement, text)


class Checkout:
    """A copy of what git has of the checkout, and its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for command in (["init", "-q"], ["add", "-A"]):  # some tests ask what is tracked
            subprocess.run(["git", *command], cwd=folder, check=True)

    def texts(self, *folders: str) -> dict[Path, str]:
        """Return the modules below folders."""
        paths = [path for one in folders for path in sorted((self.folder / one).rglob("*.py"))]
        return {path: path.read_text(encoding="utf-8") for path in paths}

    def broken(self, tests: Sequence[str]) -> set[str]:
        """Run tests and return the cases that fail."""
        if not tests:
            return set()
        options = ("-q", "--tb=no", "-rfE", "-p", "no:cacheprovider")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": str(self.folder / "src"), "COLUMNS": "1000"},
        )  # fmt: skip
        if done.returncode not in (0, 1, 2, 5):
            raise SystemExit(
                f"pytest {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return set(BROKEN.findall(done.stdout))

    def reword(self, file: Path, text: str) -> set[str]:
        """Reword a message while the tests of its package run; return what breaks."""
        path = self.folder / file
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(text, reworded(text)), encoding="utf-8")
        package = file.relative_to(SRC).parts[0].removesuffix(".py")
        of_package = [f"tests/{package}", *(f"tests/test_{end}.py" for end in (package, "api"))]
        tests = [name for name in of_package if (self.folder / name).exists()][:1]
        try:
            found = self.broken(tests)
        finally:
            path.write_text(whole, encoding="utf-8")
        return found - self.broken(sorted({case.partition("[")[0] for case in found}))

    def rename(self, path: Path, chance: random.Random) -> set[str]:
        """Rename a module while tests that import it run; return what breaks."""
        package = ".".join(path.relative_to(self.folder / "src").parent.parts)
        old, new = path.stem, f"{path.stem}_by_another_name"
        before = self.texts("src", "tests")
        tests = [one for one in before if one.name.startswith("test_")]
        dotted = re.compile(rf"\b{re.escape(package)}(?: import [\w\s,(]*?|\.){old}\b")
        naming = [one for one in tests if dotted.search(before[one])]
        room = package.split(".")[1]
        beside = [one for one in tests if one.parent.name == room and one not in naming]
        ran = [
            one
            for some, most in ((naming, NAMING), (beside, BESIDE))
            for one in chance.sample(some, min(most, len(some)))
        ]
        names = [str(one.relative_to(self.folder)) for one in sorted(ran)]
        try:
            for one, text in before.items():
                is_source = one.is_relative_to(self.folder / "src")
                one.write_text(
                    renamed(text, package, old, new, strings=is_source), encoding="utf-8"
                )
            path.rename(path.with_name(f"{new}.py"))
            found = self.broken(names)
        finally:
            path.with_name(f"{new}.py").unlink()
            for one, text in before.items():
                one.write_text(text, encoding="utf-8")
        return found - self.broken(sorted({case.partition("[")[0] for case in found}))


def modules(root: Path, package: str, count: int, chance: random.Random) -> list[Path]:
    """Choose modules, of different packages as long as there are some."""
    of: dict[str, list[Path]] = {}
    for path in sorted((root / SRC / package).rglob("*.py")):
        inside = path.relative_to(root / SRC).parts
        if len(inside) > 1 and not path.stem.startswith("__"):
            of.setdefault(inside[0], []).append(path)
    packages = chance.sample(sorted(of), len(of))
    return [chance.choice(of[packages[number % len(of)]]) for number in range(count)]


def said(count: int, most: int, seconds: float, what: str, cases: set[str]) -> int:
    """Print a row of the table, and the cases where they are too many; return whether they are."""
    print(f"{count:3} broken {seconds:6.0f} s  {what}", flush=True)
    if count > most:
        print("".join(f"      {case}\n" for case in sorted(cases)), end="")
    return int(count > most)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--messages", type=int, default=12, metavar="N")
    asked.add_argument("--modules", type=int, default=6, metavar="N")
    asked.add_argument("--package", default="", metavar="NAME", help="of this package alone")
    options = asked.parse_args()
    chance, faults = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Checkout(Path(folder).resolve())
        every = messages(copy.folder, options.package)
        for file, text in chance.sample(every, min(options.messages, len(every))):
            start = time.monotonic()
            cases = copy.reword(file, text)
            what = f"{file.relative_to(SRC)}: {text[:90]}"
            faults += said(len(cases), MOST, time.monotonic() - start, what, cases)
        for path in modules(copy.folder, options.package, options.modules, chance):
            start = time.monotonic()
            cases = copy.rename(path, chance)
            what = f"{path.relative_to(copy.folder / SRC)} under another name"
            faults += said(len(cases), 0, time.monotonic() - start, what, cases)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
