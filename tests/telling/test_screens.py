"""Screens of the demo, as they were read by a person when they last changed: in screens.txt, which
`rm tests/telling/screens.txt; pytest tests/telling/test_screens.py` writes again.
"""

import re
from pathlib import Path

import pytest

SCREENS = Path(__file__).with_name("screens.txt")
NARROW, BROAD, DEMO = "reports/base..narrow", "reports/base..broad", "./registry/demo"
ROOT = Path(__file__).parents[2]
COMMANDS = [
    ("show", NARROW, "--full"), ("show", BROAD), ("show", "reports"),
    ("show", NARROW, "--format", "markdown"), ("compare", NARROW, BROAD), ("lineage", "reports"),
    ("compare", NARROW, BROAD, "--format", "markdown"),
    ("gate", "reports", "--fail-on", "concentration > 0.3", "--fail-on", "spikes > 99",
     "--fail-on", "vision.spikes > 1", "--fail-on", "not gate.rank"),
    ("gate", BROAD, "--against", NARROW, "--fail-on", "language.embed changed"),
    ("families", "demo"), ("families", "stages"), 
    *(("explain", word) for word in ("concentration", "low_rank", "gates", "PR", "rank", "same")),
    ("check", f"{DEMO}/narrow", "--base", f"{DEMO}/base"),
    ("verify", "same", f"{DEMO}/base", f"{DEMO}/narrow"),
    ("verify", "trained", f"{DEMO}/base", f"{DEMO}/broad", "--frozen", "norm"),
    ("verify", "files", f"{DEMO}/base", f"{DEMO}/narrow"),
]  # fmt: skip
VARYING = [  # what is not the same on every machine
    (r"\d+(\.\d+)? (s|ms|minutes?|seconds)\b", "TIME"), (r"\d\.\d\.\d\S*", "VERSION"),
    (r"\d{4}-\d\d-\d\d\S*( \d\d:\d\d\S*)?", "DATE"), (r"(?m)[ ─]+$", ""),
]  # fmt: skip


@pytest.fixture
def screens(inside, demo_reports, tmp_path):
    """What each command prints in a wide terminal, by the command."""
    (tmp_path / "reports").symlink_to(demo_reports)
    (tmp_path / "registry").symlink_to(ROOT / "registry")
    made = {}
    for words in COMMANDS:
        text = (
            inside(*words, width=110).out.replace(str(tmp_path), "HERE").replace(str(ROOT), "ROOT")
        )
        for pattern, word in VARYING:
            text = re.sub(pattern, word, text)
        made[" ".join(words)] = text.strip("\n")
    return made


def test_screens_are_those_that_were_read(screens):
    text = "\n\n".join(f"$ shadow {words}\n{screen}" for words, screen in screens.items()) + "\n"
    if not SCREENS.exists():
        SCREENS.write_text(text)
    assert SCREENS.read_text() == text
