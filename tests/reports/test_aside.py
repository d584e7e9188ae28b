"""Work beside a result that a kill cuts off, and places that are no folders."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from shadow.errors import ShadowError
from shadow.files import placing, write_beside

KILLED = """
import os, signal, sys
from pathlib import Path
from shadow.files import placing
with placing(Path(sys.argv[1]), lambda path: True, "ours") as aside:
    aside.mkdir()
    (aside / "new").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(output):
    done = subprocess.run([sys.executable, "-c", KILLED, output], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [path for path in output.parent.iterdir() if path.name.startswith(".shadow-")]


def test_what_a_killed_export_left_goes_with_the_next_result(tmp_path):
    """Whatever its name and format; what is there stays, and a folder that is not empty too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("whole")
    assert len(killed(tmp_path / "out")) == 1
    write_beside(tmp_path / "another.xml", b"<?xml")
    with pytest.raises(ShadowError), placing(tmp_path / "out", lambda _: True, "ours") as aside:
        aside.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.xml", "out"]
    assert (tmp_path / "out" / "old").read_text() == "whole"


def test_what_another_process_works_in_stays(tmp_path):
    """Two results at once in one folder: neither takes the other's work away."""
    with placing(tmp_path / "one", lambda path: True, "ours") as first:
        first.write_text("1")
        with placing(tmp_path / "two", lambda path: True, "ours") as second:
            second.write_text("2")
            assert first.read_text() == "1"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "1", "two": "2"}


def test_a_name_with_a_colon_is_a_folder(shadow, tmp_path):
    """`a:b` is no URL."""
    shadow("audit", "demo:base..narrow", "-o", "runs/a:b").assert_done()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a:b"]


NO_FOLDERS = [  # a command up to a place on this machine, and a URL of each kind
    (["lab", "run", "-o"], "s3://bucket/run"),
    (["export", "run", "--to", "csv", "-o"], "gs://bucket"),
    (["report", "run", "-o"], "az://container/run"),
    (["figure", "run", "--kind", "depth", "-o"], "hf://datasets/org/name"),
    (["audit", "demo", "--junit"], "S3://b/r"),
    (["audit", "--list"], "s3://bucket/run"),
]
SECRET = "s3://key:secret@bucket/run"
WITH_ACCOUNTS = [  # commands that take URLs of stores
    ["audit", "demo", "-o"], ["audit", "demo", "--allow-missing", "--against"],
    ["plan", "demo", "-o"], ["clean", "-o"], ["show"], ["compare", SECRET], ["lineage"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "url"), [*NO_FOLDERS, *((words, SECRET) for words in WITH_ACCOUNTS)]
)
def test_a_url_is_no_folder(shadow, tmp_path, words, url):
    """Exit 2 before anything is done, and no folder called `s3:`; an account is not told."""
    refused = shadow(*words, url)
    refused.assert_refused(2)
    assert "secret" not in refused.err
    assert not list(tmp_path.iterdir())
