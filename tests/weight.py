"""Hold the weight of the project against the limits in pyproject.toml ([tool.shadow.weight]).

    python tests/weight.py

Tokens of src, lines of its other texts, lines of all tests, recorded ones too, and of benchmarks,
words of pages (but that of codes): counted over every tracked text file. Tokens are Python's,
without comments, docstrings and line ends. A limit goes down with the weight. One that is higher
than in the commit before needs its reason beside it, as a comment on its line.

Density is held too, in the rooms of DENSE: tokens a line of code, after `ruff format` with lines of
100 and without magic commas, so that no narrow line and no `# fmt: skip` meets the limit; parallel
assignments `a, b = x, y`; loops over `xs if c else ()`; unpacked generators `[*(x for ...)]`.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BINARY = (
    *(".parquet", ".svg", ".png", ".safetensors", ".woff2", ".npz", ".gz", ".bin", ".xz", ".zst"),
    *(".ico", ".pdf"),
)
CODES = "docs/rules.md"  # generated: a line for each code
UNCOUNTED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
TOP = "top"  # the modules directly in src/shadow
SRC = "src"  # every room
DENSE = (
    "checkpoints",
    "checks",
    "cli",
    "comparing",
    "engines",
    "gates",
    "lab",
    "lists",
    "outputs",
    "places",
    "relations",
    "reports",
    "summary",
    "targets",
    "telling",
    TOP,
    SRC,
)  # rooms of src that are held to the limits of density
MOST_TOKENS = 8.5  # a line of code
MOST_PARALLEL = 8  # assignments in 1,000 lines of code
FORMAT = ("format", "--line-length", "100", "--config", "format.skip-magic-trailing-comma=true")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def counted(text: str) -> list[tokenize.TokenInfo]:
    """The tokens of a module without comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED):
            for one in node.body:
                if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                    docstrings |= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    tokens = []
    depth = 0  # of f-strings: one token, as before Python 3.12
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        kind = tokenize.tok_name[token.type]
        depth -= kind == "FSTRING_END"
        if not depth and kind != "FSTRING_END" and token.type not in UNCOUNTED and not is_docstring:
            tokens.append(token)
        depth += kind == "FSTRING_START"
    return tokens


@dataclass(frozen=True)
class Density:
    """Counts of one or more modules as `ruff format` writes them."""

    tokens: int = 0
    lines: int = 0  # that hold a token
    parallel: int = 0
    conditional_loops: int = 0
    unpacked_generators: int = 0


def density(text: str) -> Density:
    """Count in a module that `ruff format` has written."""
    tokens = counted(text)
    nodes = list(ast.walk(ast.parse(text)))
    loops = [node for node in nodes if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension)]
    assignments = [node for node in nodes if isinstance(node, ast.Assign)]
    unpacked = [node.value for node in nodes if isinstance(node, ast.Starred)]
    return Density(
        tokens=len(tokens),
        lines=len({line for each in tokens for line in range(each.start[0], each.end[0] + 1)}),
        parallel=sum(
            isinstance(node.value, ast.Tuple)
            and any(isinstance(target, ast.Tuple) for target in node.targets)
            for node in assignments
        ),
        conditional_loops=sum(isinstance(node.iter, ast.IfExp) for node in loops),
        unpacked_generators=sum(isinstance(value, ast.GeneratorExp) for value in unpacked),
    )


def formatted(text: str) -> str:
    """A module as `ruff format` writes it without comments (as `# fmt: skip`) and magic commas."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    bare = "\n".join(lines)
    ruff = Path(sys.executable).with_name("ruff")
    return subprocess.run(
        [ruff, *FORMAT, "-"], input=bare, check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout


def density_of_room(room: str) -> Density:
    """Count in the modules of a room of src."""
    total: Counter[str] = Counter()
    package = ROOT / "src" / "shadow"
    files = (package if room == SRC else package / room).rglob("*.py")
    if room == TOP:
        files = package.glob("*.py")
    for file in sorted(files):
        total.update(vars(density(formatted(file.read_text(encoding="utf-8")))))
    return Density(**total)


def density_faults(room: str, now: Density) -> list[str]:
    """Say which limits of density a room exceeds."""
    dense = now.tokens / now.lines
    parallel = 1000 * now.parallel / now.lines
    found = []
    if dense > MOST_TOKENS:
        found.append(f"{room}: {dense:.2f} tokens a line of code, more than {MOST_TOKENS}")
    if parallel > MOST_PARALLEL:
        found.append(
            f"{room}: {parallel:.1f} parallel assignments in 1,000 lines, more than {MOST_PARALLEL}"
        )
    if now.conditional_loops:
        found.append(f"{room}: {now.conditional_loops} loops over `xs if c else ()`")
    if now.unpacked_generators:
        found.append(f"{room}: {now.unpacked_generators} unpacked generators")
    return found


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
            total["src-tokens"] += len(counted(text))
        elif top == "src":
            total["src-other-lines"] += lines
        elif top in ("tests", "benchmarks"):
            total[f"{top}-lines"] += lines
        elif name.endswith(".md") and (top == "docs" or name == "README.md") and name != CODES:
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
    for room in DENSE:
        dense = density_of_room(room)
        print(f"{room:16} {dense.tokens / dense.lines:>9.2f} of {MOST_TOKENS:>9} tokens a line")
        found += density_faults(room, dense)
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
