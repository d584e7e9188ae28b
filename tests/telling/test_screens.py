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
    ("show", NARROW, "--full"), ("show", "reports"), ("lineage", "reports"),
    ("compare", NARROW, BROAD, "--format", "markdown"), ("explain", "PR"),
    ("gate", "reports", "--fail-on", "concentration > 0.3", "--fail-on", "vision.spikes > 1",
     "--fail-on", "not gate.rank"),
    ("gate", BROAD, "--against", NARROW, "--fail-on", "language.embed changed"),
    ("families", "demo"), ("families", "stages"),
    ("check", f"{DEMO}/narrow", "--base", f"{DEMO}/base"),
    ("verify", "trained", f"{DEMO}/base", f"{DEMO}/broad", "--frozen", "norm"),
]  # fmt: skip
VARYING = [  # what is not the same on every machine
    (r"\d+(\.\d+)? (s|ms|minutes?|seconds)\b", "TIME"), (r"\d\.\d\.\d\S*", "VERSION"),
    (r"\d{4}-\d\d-\d\d\S*( \d\d:\d\d\S*)?", "DATE"), (r"(?m)[ ─]+$", ""),
]  # fmt: skip


@pytest.fixture
def screens(inside, demo_reports, tmp_path):
    """What each command prints in a wide terminal, without empty lines, by the command."""
    (tmp_path / "reports").symlink_to(demo_reports)
    (tmp_path / "registry").symlink_to(ROOT / "registry")
    made = {}
    for words in COMMANDS:
        text = (
            inside(*words, width=250).out.replace(str(tmp_path), "HERE").replace(str(ROOT), "ROOT")
        )
        for pattern, word in VARYING:
            text = re.sub(pattern, word, text)
        made[" ".join(words)] = re.sub(r"\n\n+", "\n", text.strip("\n"))
    return made


def test_screens_are_those_that_were_read(screens):
    text = "\n".join(f"$ shadow {words}\n{screen}" for words, screen in screens.items()) + "\n"
    if not SCREENS.exists():
        SCREENS.write_text(text)
    assert SCREENS.read_text() == text
