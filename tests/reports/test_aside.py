"""Work beside a result that a kill cuts off, and places that are no folders."""

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
is_folder = sys.argv[2] == "folder"
with placing(Path(sys.argv[1]), lambda path: True, "ours", is_folder=is_folder) as aside:
    (aside / "new" if is_folder else aside).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
# an export of a report, killed by the end of the call that gives it its name
RENAMED = """
import os, signal, sys
from pathlib import Path
from shadow.outputs.exports import export
rename = Path.replace
def last(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = last
export([Path(sys.argv[1])], sys.argv[2], Path(sys.argv[3]))
"""


def killed(output, *words, code=KILLED):
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [path for path in output.parent.iterdir() if path.name.startswith(".shadow-")]


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_an_export_that_is_killed_after_its_rename_leaves_only_itself(demo_reports, tmp_path, to):
    """No run would remove what it left: the next one is refused, as the export is there."""
    output = tmp_path / "out"
    assert killed(output, demo_reports / "base..narrow", to, output, code=RENAMED) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert any(output.iterdir())


def test_what_a_killed_export_left_goes_with_the_next_result(tmp_path):
    """Whatever its name and format; what is there stays, and a folder that is not empty too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("whole")
    for kind in ("folder", "file"):
        assert len(killed(tmp_path / "out", tmp_path / "out", kind)) == 1  # the last one's is gone
    write_beside(tmp_path / "another.xml", b"<?xml")
    place = placing(tmp_path / "out", lambda _: True, "ours", is_folder=True)
    with pytest.raises(ShadowError), place:
        pass
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
