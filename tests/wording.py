"""Refuse the words that CONTRIBUTING.md's table of texts avoids, in docstrings and names of src.

    python tests/wording.py  # each with its file and line; exit code 1 if there are any

Names of the contract are apart: what scripts and stored reports rely on.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "shadow"
AVOIDED = ("told", "tell", "tells", "afresh", "anew", "else", "goes on", "held against", "its like")
NAMES = {"told", "afresh", "anew", "lone", "lined"}
OPENERS = {"What", "Whether", "How", "Where", "Which", "Why", "When", "Who"}
CONTRACT: set[str] = set()
WORD = re.compile(r"(?<![\w`'\"])(?:" + "|".join(sorted(AVOIDED)) + r")(?![\w`])", re.IGNORECASE)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def words(name: str) -> list[str]:
    """Split a name of Python into its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each name that is given in a module, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def faults(path: Path) -> Iterator[str]:
    """Yield a line for each avoided word of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(SOURCE.parent)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            line = node.body[0].lineno
            for match in WORD.finditer(re.sub(r"`[^`]*`", "", text)):
                yield f"{where}:{line}: docstring: {match[0]}"
            if (first := text.split()[0]) in OPENERS:
                yield f"{where}:{line}: docstring opens with {first}"
    for line, name in names(tree):
        if name not in CONTRACT and (found := NAMES & set(words(name))):
            yield f"{where}:{line}: name {name}: {', '.join(sorted(found))}"


def main() -> int:
    found = [line for path in sorted(SOURCE.rglob("*.py")) for line in faults(path)]
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
