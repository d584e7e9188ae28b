"""`shadow audit --quiet`: stderr has errors and the count of rules, and nothing else."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

from shadow.audits.pair import Progress
from shadow.cli import console

HEADLINE = "Changed by 8.0 %, spread over 14 directions of 64."
PAIR = ("audit", "demo:base..narrow", "-o", "out")


def test_quiet_leaves_notes_out_and_keeps_errors(shadow, demo_reports, tmp_path):
    """A second run has a note, a missing baseline another; rules have a count, a fault its line;
    stdout has the headline of the pair alone.
    """
    shutil.copytree(demo_reports.parent, tmp_path / "out")
    loud = shadow(*PAIR, "--against", "none", "--allow-missing")
    assert "already there" in loud.err
    assert "no baseline" in loud.err
    quiet = shadow(*PAIR, "--against", "none", "--allow-missing", "-q")
    assert (quiet.code, quiet.err, quiet.out) == (
        0,
        "0 rules passed, 1 skipped\nWARNING: no baseline: nothing was compared with none\n",
        f"demo:base..narrow: {HEADLINE}\n",
    )
    assert HEADLINE in loud.out
    assert loud.err.endswith(quiet.err)
    assert shadow(*PAIR, "--quiet").err == ""
    assert shadow(*PAIR, "-q", "--fail-on", "concentration > 2").err == "1 rule passed\n"
    both = shadow("audit", "demo", "-o", "out", "-q").assert_done().splitlines()
    assert [line.partition(": ")[0] for line in both] == ["demo:base..narrow", "demo:base..broad"]
    json_of = [shadow(*PAIR, "--json", *more).assert_done() for more in ((), ("-q",))]
    assert json_of[0] == json_of[1]
    failed = shadow(*PAIR, "-q", "--precision", "exact")
    assert failed.code == 1
    assert failed.out == ""
    assert failed.err.startswith("error: ")


def test_gate_has_quiet_too(shadow, demo_reports, tmp_path):
    """As `audit` with that option: no notes on stderr, but failed rules, their count, warning."""
    shutil.copytree(demo_reports.parent, tmp_path / "out")
    rules = (
        "gate", "out/demo/base..narrow", "--against", "none", "--allow-missing", "--fail-on",
        "spikes > 1",
    )  # fmt: skip
    loud, quiet = shadow(*rules), shadow(*rules, "-q")
    assert loud.code == quiet.code == 4
    assert loud.err == f"no baseline: there is no folder none\n{quiet.err}"
    assert [line.partition(" is ")[0] for line in quiet.err.splitlines()] == [
        "demo:base..narrow: spikes > 1: spikes",
        "0 rules passed, 1 FAILED, 1 skipped",
        "WARNING: no baseline: nothing was compared with none",
    ]
    assert quiet.out == loud.out


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_quiet_has_no_progress_in_a_terminal(monkeypatch, is_list, hidden):
    """The bars of a pair and of a list."""
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=True, width=80))
    monkeypatch.setattr(console, "is_watched", lambda which: True)
    with (
        console.pairs_progress(2, is_list=is_list, hidden=hidden) as watch,
        watch("demo:base..narrow") as update,
    ):
        update(Progress(done=1, total=2, cost_done=1, cost_total=2))
    assert bool(written.getvalue()) != hidden
