"""Hold the weight of the project against the limits in pyproject.toml ([tool.shadow.weight]).

    python tests/weight.py

Lines of Python and tokens of src, lines of its other texts, lines of all tests, recorded ones too,
and of benchmarks, words of pages: counted over every tracked text file. Tokens are Python's,
without comments, docstrings and line ends. A limit goes down with the weight. One that is higher
than in the commit before needs its reason beside it, as a comment on its line.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
BINARY = (
    *(".parquet", ".svg", ".png", ".safetensors", ".woff2", ".npz", ".gz", ".bin", ".xz", ".zst"),
    *(".ico", ".pdf"),
)
UNCOUNTED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def tokens(text: str) -> int:
    """Count the tokens of a module without comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED):
            for one in node.body:
                if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                    docstrings |= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    return sum(
        token.type not in UNCOUNTED
        and not (token.type == tokenize.STRING and token.start[0] in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], check=True, capture_output=True, cwd=ROOT
    ).stdout.decode()


def weight() -> Counter[str]:
    """Weigh the working tree."""
    total: Counter[str] = Counter()
    for name in filter(None, git("ls-files", "-z").split("\0")):
        path = ROOT / name
        if name.endswith(BINARY) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        top, lines = name.split("/")[0], text.count("\n")
        if top == "src" and name.endswith(".py"):
            total += {"src-lines": lines, "src-tokens": tokens(text)}
        elif top == "src":
            total["src-other-lines"] += lines
        elif top in ("tests", "benchmarks"):
            total[f"{top}-lines"] += lines
        elif name.endswith(".md") and (top == "docs" or name == "README.md"):
            total["docs-words"] += len(text.split())
    return total


def limits(text: str) -> dict[str, int]:
    """Return the limits of a pyproject.toml; none of one that has no such table."""
    found: dict[str, int] = tomllib.loads(text).get("tool", {}).get("shadow", {}).get("weight", {})
    return found


def faults(now: Mapping[str, int], text: str, before: str) -> list[str]:
    """Say what is too heavy, and which limits were raised without a reason.

    text and before: pyproject.toml of the working tree and of the commit before.
    """
    said = []
    known, earlier = limits(text), limits(before)
    for name, limit in known.items():
        if now[name] > limit:
            said.append(f"{name}: {now[name]:,}, more than its limit of {limit:,}")
        raised = limit > earlier.get(name, limit)
        if raised and not re.search(rf"(?m)^{name} *= *[\d_]+ *#", text):
            said.append(f"{name}: raised from {earlier[name]:,} to {limit:,} without a reason")
    if missing := now.keys() - known.keys():
        said.append(f"without a limit: {', '.join(sorted(missing))}")
    return said


def main() -> int:
    now = weight()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    try:
        before = git("show", "HEAD^:pyproject.toml")
    except subprocess.CalledProcessError:  # a shallow clone
        before = text
    for name, limit in limits(text).items():
        print(f"{name:16} {now[name]:>9,} of {limit:>9,}")
    found = faults(now, text, before)
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
