"""Ten docstrings and ten messages of each package, drawn with a seed, for a fresh reader.

    python benchmarks/draws.py SEED     # prints them as YAML: the place, the text, and `ok`
    python benchmarks/draws.py          # counts the rewordings in docs/lab/draws.yaml

A reader writes what they would say in place of `ok`. Messages are all texts of four words or more
that are no docstrings: templates of answers, errors and hints, help, words of YAML files.
"""

from __future__ import annotations

import ast
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "shadow"
RECORD = ROOT / "docs" / "lab" / "draws.yaml"
EACH = 10  # of a kind, from every package
WORD = re.compile(r"(?<![\w.{`'])[A-Za-z]{2,}(?![\w.(}`'])")
FEWEST = 4  # words of a message
Text = tuple[str, str]  # the place, and what stands there


def texts(path: Path) -> Iterator[tuple[bool, Text]]:
    """Yield the texts of a module, and whether each is a docstring."""
    where = str(path.relative_to(SOURCE))
    inside: set[int] = set()  # docstrings, and what belongs to a longer text
    names: dict[int, str] = {}  # of the methods of a class, with its own
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = names.get(id(node), getattr(node, "name", "the module"))
            if isinstance(node, ast.ClassDef):
                names |= {id(one): f"{name}.{getattr(one, 'name', '')}" for one in node.body}
            if text := ast.get_docstring(node):
                yield True, (f"{where} {name}", text)
        elif isinstance(node, ast.Expr):  # a docstring, also of a field
            inside.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inside |= {id(one) for one in ast.walk(node)}
            yield False, (where, ast.unparse(node)[2:-1])
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield False, (where, node.value if isinstance(node.value, str) else "")


def values(found: object) -> Iterator[str]:
    """Yield every text of a parsed YAML file."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, list | dict):
        for one in found.values() if isinstance(found, dict) else found:
            yield from values(one)


def drawn(seed: int) -> dict[str, list[list[str]]]:
    """Draw from every package: the place, the text on one line, and `ok`."""
    pool: dict[tuple[str, bool], set[Text]] = defaultdict(set)
    for path in sorted(SOURCE.rglob("*.py")):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        package = package if (SOURCE / package).is_dir() else "modules"
        for is_docstring, (where, text) in texts(path):
            if is_docstring or len(WORD.findall(text)) >= FEWEST:
                pool[package, is_docstring].add((where, " ".join(text.split())))
    for path in sorted(SOURCE.rglob("*.yaml")):
        package, where = path.relative_to(SOURCE).parts[0], str(path.relative_to(SOURCE))
        package = package if (SOURCE / package).is_dir() else "modules"
        for text in values(yaml.safe_load(path.read_text(encoding="utf-8"))):
            if len(WORD.findall(text)) >= FEWEST:
                pool[package, False].add((where, " ".join(text.split())))
    lots: dict[str, list[list[str]]] = {}
    for (package, is_docstring), found in sorted(pool.items()):
        name = f"{package}, {'docstrings' if is_docstring else 'messages'}"
        chosen = random.Random(f"{seed} {name}").sample(sorted(found), min(EACH, len(found)))
        lots[name] = [[*one, "ok"] for one in chosen]
    return lots


def main() -> None:
    if len(sys.argv) == 2:
        lots = drawn(int(sys.argv[1]))
        print(yaml.safe_dump(lots, width=1000, allow_unicode=True, default_flow_style=None))
        return
    for name, lots in yaml.safe_load(RECORD.read_text(encoding="utf-8")).items():
        read = [said for lot in lots.values() for _, _, said in lot]
        print(f"{name}: {sum(said != 'ok' for said in read)} of {len(read)} reworded")


if __name__ == "__main__":
    main()
