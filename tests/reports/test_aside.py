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


def test_folders_of_others_stay(tmp_path):
    """Only our own names are looked at, and no link is followed."""
    kept = [tmp_path / name for name in (".shadow-x.tmp", ".shadow-0123456789abcdef", "a.tmp")]
    for path in kept:
        path.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".shadow-0123456789abcdef.tmp").symlink_to(tmp_path / "elsewhere")
    before = {path.name for path in tmp_path.iterdir()}
    with aside_in(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == before


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


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_a_killed_export_of_each_format_is_cleaned_by_the_next(shadow, tmp_path, to):
    """Killed where a file grows too large, it leaves nothing that a second does not remove."""
    from reports import uniform

    uniform(tmp_path / "run", 0.3)
    left = tmp_path / ".shadow-0123456789abcdef.tmp"
    (left / "new").mkdir(parents=True)
    (left / "new" / "part").write_text("half")
    shadow("export", "run", "--to", to, "-o", "out").assert_done()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


URLS = [
    "s3://bucket/run",
    "gs://bucket",
    "az://container/run",
    "hf://datasets/org/name",
    "file:///tmp/run",
    "S3://b/r",
]
COMMANDS = {
    "lab": ["lab", "run", "-o"],
    "export": ["export", "run", "--to", "csv", "-o"],
    "report": ["report", "run", "-o"],
    "figure": ["figure", "run", "--kind", "depth", "-o"],
    "compare": ["compare", "run", "run", "-o"],
    "junit": ["audit", "demo", "--junit"],
    "cache": ["audit", "demo", "--cache-dir"],
}


def refused_as_url(shadow, tmp_path, command, url):
    refused = shadow(*COMMANDS[command], url)
    error = refused.assert_refused(2)
    assert "URLs are not supported here" in error
    assert ("leave file:// out" if url.startswith("file") else "on this machine") in refused.err
    assert not list(tmp_path.iterdir())


# Every command is a fast test, and every URL; all of them with each other are slow ones.
TYPED = [(command, URLS[number % len(URLS)]) for number, command in enumerate(COMMANDS)]


@pytest.mark.parametrize(("command", "url"), TYPED)
def test_a_url_is_no_folder(shadow, tmp_path, command, url):
    """Exit 2 with a hint, before anything is done; no folder called `s3:` appears."""
    refused_as_url(shadow, tmp_path, command, url)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("url", URLS)
def test_a_url_of_any_kind_is_no_folder(shadow, tmp_path, command, url):
    """The same of every command with every URL."""
    refused_as_url(shadow, tmp_path, command, url)


PLACES = {
    "audit": ["audit", "demo", "-o"],
    "list": ["audit", "--list"],
    "policy": ["audit", "demo", "--policy"],
    "against": ["audit", "demo", "--allow-missing", "--against"],
    "plan": ["plan", "demo", "-o"],
    "clean": ["clean", "-o"],
    "merge": ["merge"],
    "merged": ["merge", "out"],
    "show": ["show"],
    "compare": ["compare", "run"],
    "gate": ["gate"],
    "lineage": ["lineage"],
}


@pytest.mark.parametrize("command", PLACES)
@pytest.mark.parametrize(
    "url", ["ftp://host/run", "https://host/run", "s3://key:secret@bucket/run"]
)
def test_a_url_of_no_store_is_refused(shadow, tmp_path, command, url):
    """Exit 2 with a hint, before anything is done; no folder called `ftp:` appears."""
    refused = shadow(*PLACES[command], url)
    error = refused.assert_refused(2)
    assert "not supported" in error or "may hold no account" in error
    assert "secret" not in refused.err
    assert not list(tmp_path.iterdir())


def test_a_name_with_a_colon_is_a_folder(shadow, tmp_path):
    """`a:b` is no URL."""
    shadow("audit", "demo:base..narrow", "-o", "runs/a:b", "--no-subspaces").assert_done()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a:b"]
