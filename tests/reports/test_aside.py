"""Work beside a result that a kill cuts off, and places that are no folders."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shadow.files import FORMER, aside_in, placing, write_beside

KILLED = """
import os, signal, sys
from pathlib import Path
from shadow.files import placing
output, when = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def killed(self, target):
    found = rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
if when == "moved away":
    Path.rename = killed
with placing(output, lambda path: True, "ours") as aside:
    aside.mkdir()
    (aside / "new").write_text("half")
    if when == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(output, when):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, output, when], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [path for path in output.parent.iterdir() if path.name.startswith(".shadow-")]


@pytest.mark.parametrize("when", ["writing", "moved away"])
def test_what_a_killed_export_left_goes_with_the_next_result(tmp_path, when):
    """Whatever its name and format; a former result that stepped aside is there again."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("whole")
    assert len(killed(tmp_path / "out", when)) == 1
    assert (tmp_path / "out").exists() == (when == "writing")
    write_beside(tmp_path / "another.xml", b"<?xml")
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


def test_a_former_result_that_cannot_go_back_is_not_removed(tmp_path, monkeypatch):
    """The disk refuses its name to the new one and to the former: both are kept aside."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("whole")
    rename, refused = Path.rename, []

    def once(self, target):
        if refused or (self.name == "out" and self.parent != tmp_path):
            refused.append(self)
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", once)
        with (
            pytest.raises(Exception, match="Input/output"),
            placing(tmp_path / "out", lambda path: True, "x") as aside,
        ):
            aside.mkdir()
    (left,) = tmp_path.iterdir()
    assert (left / FORMER / "out" / "old").read_text() == "whole"
    with aside_in(tmp_path):
        pass
    assert (tmp_path / "out" / "old").read_text() == "whole"


def test_a_name_with_a_colon_is_a_folder(shadow, tmp_path):
    """`a:b` is no URL."""
    shadow("audit", "demo:base..narrow", "-o", "runs/a:b").assert_done()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a:b"]


NO_FOLDERS = [  # a command up to a place on this machine, and a URL of each kind
    (["lab", "run", "-o"], "s3://bucket/run"),
    (["export", "run", "--to", "csv", "-o"], "gs://bucket"),
    (["report", "run", "-o"], "az://container/run"),
    (["figure", "run", "--kind", "depth", "-o"], "hf://datasets/org/name"),
    (["compare", "run", "run", "-o"], "file:///tmp/run"),
    (["audit", "demo", "--junit"], "S3://b/r"),
    (["audit", "demo", "--cache-dir"], "s3://bucket/run"),
    (["audit", "--list"], "s3://bucket/run"),
]
WITH_ACCOUNTS = [  # commands that take URLs of stores
    ["audit", "demo", "-o"], ["audit", "demo", "--allow-missing", "--against"],
    ["plan", "demo", "-o"], ["clean", "-o"], ["show"], ["compare", "run"], ["lineage"],
]  # fmt: skip
SECRET = "s3://key:secret@bucket/run"


@pytest.mark.parametrize(
    ("words", "url"), [*NO_FOLDERS, *((words, SECRET) for words in WITH_ACCOUNTS)]
)
def test_a_url_is_no_folder(shadow, tmp_path, words, url):
    """Exit 2 before anything is done, and no folder called `s3:`; an account is not told."""
    refused = shadow(*words, url)
    refused.assert_refused(2)
    assert "secret" not in refused.err
    assert not list(tmp_path.iterdir())
