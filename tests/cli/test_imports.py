"""What a command imports is what it needs: a command that is typed many times a day waits for it.

The child of `whole`, which imports transformers, starts before torch is imported beside it.
"""

import subprocess
import sys

import pytest
import readme
from effort import chosen

HEAVY = [
    "accelerate", "huggingface_hub", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "ray",
    "scipy", "sklearn", "torch", "transformers",
]  # fmt: skip
SCRIPT = f"""
import subprocess, sys
from shadow.cli import main

def loaded(event, arguments=()):
    if event == "subprocess.Popen":
        print("child:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)

sys.addaudithook(loaded)
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
TABLES = "numpy pyarrow"
NUMBERS = "numpy pyarrow scipy torch"
NEEDS = {  # of SIDE, a checkpoint, and PAIR and OTHER, reports
    "--help": "", "families qwen": "", "audit --help": "",
    "explain concentration": TABLES, "show PAIR": TABLES, "lineage PAIR": TABLES,
    "gate PAIR --fail-on concentration>0.9": TABLES, "report PAIR -o page.html": TABLES,
    "export PAIR --to parquet": TABLES, "compare PAIR OTHER": TABLES,
    "verify whole SIDE --headers": TABLES, "check SIDE --headers": TABLES,
    "plan demo": "numpy", "verify whole SIDE": NUMBERS,
    "audit demo:base..narrow --level norms": NUMBERS,
}  # fmt: skip
REPORTS = {"PAIR": "base..narrow", "OTHER": "base..broad"}
QUICK = [words for words, needs in NEEDS.items() if needs != NUMBERS and "--headers" not in words]


@pytest.mark.parametrize("words", chosen(NEEDS, QUICK))
def test_a_command_imports_what_it_needs(words, demo_reports, tmp_path):
    names = {"SIDE": str(readme.ROOT / "registry" / "demo" / "base")}
    names |= {word: str(demo_reports / pair) for word, pair in REPORTS.items()}
    arguments = [names.get(word, word) for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.split() == NEEDS[words].split()
    children = [line for line in before if line.startswith("child:")]
    assert children == (["child: numpy pyarrow"] if "whole" in words or "check" in words else [])
