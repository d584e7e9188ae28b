"""Refuse the words that CONTRIBUTING.md's table of texts avoids, in docstrings and names of src,
and a class name that occurs twice.

    python tests/wording.py  # each with its file and line; exit code 1 if there are any
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "shadow"
AVOIDED = ("told", "tell", "tells", "afresh", "anew", "else", "goes on", "held against", "its like")
NAMES = {"told", "afresh", "anew", "lone", "lined"}
OPENERS = {"What", "Whether", "How", "Where", "Which", "Why", "When", "Who"}
WORD = re.compile(r"(?<![\w`'\"])(?:" + "|".join(AVOIDED) + r")(?![\w`])", re.IGNORECASE)
DEFINED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def names(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node gives, if it gives one."""
    if isinstance(node, DEFINED):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def faults() -> Iterator[str]:
    """Yield a line for each avoided word, opening or name."""
    classes: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(SOURCE.parent)}:{getattr(node, 'lineno', 1)}"
            text = ast.get_docstring(node) if isinstance(node, ast.Module | DEFINED) else None
            if text:
                for match in WORD.finditer(re.sub(r"`[^`]*`", "", text)):
                    yield f"{where}: docstring: {match[0]}"
                if text.split()[0] in OPENERS:
                    yield f"{where}: docstring opens with {text.split()[0]}"
            for name in names(node):
                words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
                if found := NAMES & set(words):
                    yield f"{where}: name {name}: {', '.join(sorted(found))}"
            if isinstance(node, ast.ClassDef):
                if node.name in classes:
                    yield f"{where}: class {node.name} is in {classes[node.name]} too"
                classes[node.name] = where


if __name__ == "__main__":
    print("\n".join(found := [*faults()]))
    sys.exit(bool(found))
