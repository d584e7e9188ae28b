"""`shadow audit --quiet`: stderr has errors and the count of rules, and nothing else."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import pytest
import readme
from rich.console import Console

from shadow.cli import console
from shadow.run.runtime import Progress

PAIR = ("audit", "demo:base..narrow", "-o", "out")
AGAINST = ("--against", "none", "--allow-missing")


def test_quiet_leaves_notes_out_and_keeps_errors(shadow, demo_reports, tmp_path):
    """A second run has a note, a missing baseline another."""
    shutil.copytree(demo_reports.parent, tmp_path / "out")
    recorded = json.loads((tmp_path / "out/demo/base..narrow/summary.json").read_text())
    loud, quiet = shadow(*PAIR, *AGAINST), shadow(*PAIR, *AGAINST, "-q")
    assert (loud.code, quiet.code) == (0, 0)
    assert quiet.out == f"demo:base..narrow: {recorded['finding']['headline']}\n"
    assert loud.err.endswith(quiet.err)
    assert [line.split()[0] for line in quiet.err.splitlines()] == ["0", "WARNING:"]
    assert len(loud.err.splitlines()) == 4
    assert shadow(*PAIR, "--quiet").err == ""
    rule = shadow(*PAIR, "-q", "--fail-on", "concentration > 2")
    assert [line.split()[0] for line in rule.err.splitlines()] == ["1"]
    both = shadow("audit", "demo", "-o", "out", "-q").assert_done().splitlines()
    assert [line.partition(": ")[0] for line in both] == ["demo:base..narrow", "demo:base..broad"]
    json_of = [shadow(*PAIR, "--format", "json", *more).assert_done() for more in ((), ("-q",))]
    assert json_of[0] == json_of[1]
    shadow(*PAIR, "-q", "--level", "exact").assert_refused()


def test_gate_has_quiet_too(inside, demo_reports):
    """As `audit` so: no notes on stderr but failed rules; on stdout a headline a pair."""
    rules = ("gate", demo_reports / "base..narrow", *AGAINST, "--fail-on", "spikes > 1")
    loud, quiet = inside(*rules), inside(*rules, "-q")
    assert loud.code == quiet.code == 4
    assert loud.err.endswith(quiet.err)
    assert len(loud.err.splitlines()) == 4
    lines = quiet.err.splitlines()
    assert [line.split()[0] for line in lines] == ["demo:base..narrow:", "0", "WARNING:"]
    recorded = json.loads((demo_reports / "base..narrow" / "summary.json").read_text())
    assert quiet.out == f"demo:base..narrow: {recorded['finding']['headline']}\n"
    assert "Rules" in loud.out
    assert inside(*rules, "--json", "-q").out == inside(*rules, "--json").out


@pytest.mark.parametrize("hidden", [False, True])
def test_quiet_has_no_progress_in_a_terminal(monkeypatch, hidden):
    """The bars of two pairs at a time: they are there until both are done."""
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=True, width=80))
    monkeypatch.setattr(console, "is_watched", lambda which: True)
    watch = console.pairs_progress(2, hidden=hidden)
    with watch("demo:base..narrow") as update:
        with watch("demo:base..broad"):
            update(Progress(done=1, total=2, cost_done=1, cost_total=2))
        written.seek(written.truncate(0))
    assert bool(written.getvalue()) != hidden


@pytest.mark.parametrize("hidden", [False, True])
def test_without_a_terminal_progress_is_lines(monkeypatch, capsys, hidden):
    """What is read, how much of it and how long yet since it began; every ten seconds one of all
    pairs; nothing is written for a quiet command.
    """
    clock, waits, threads = SimpleNamespace(now=100.0), [], []
    wait = lambda seconds: waits.append(seconds) or len(waits) % 2 == 0  # noqa: E731
    event = SimpleNamespace(wait=wait, set=lambda: waits.append("end"))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(console, "threading", SimpleNamespace(
        Event=lambda: event,
        Thread=lambda target, daemon: SimpleNamespace(start=lambda: threads.append(target)),
    ))  # fmt: skip

    def line(seconds):
        clock.now += seconds
        for say in threads[:1]:
            say()
        return capsys.readouterr().err.strip()

    watch = console.pairs_progress(2, hidden=hidden)
    with watch("it") as update:
        lines = [line(7)]
        update(Progress(3, 12, 1, 4, stage="moved"))
        lines.append(line(10))
        update(Progress(4, 12, 0, 4, stage="moved"))
        lines.append(line(10))
        update(Progress(5, 12, 2, 4, 10**6, 2 * 10**6, "moved"))
        with watch("other"):
            lines.append(line(10))
    counts = [f"{done} of 12 matrices and vectors" for done in (3, 4, 5)]
    assert lines == ([""] * 4 if hidden else [
        "it: 7.0 s so far", f"it: 25 % done, moved, {counts[0]}, about 51 seconds left",
        f"it: moved, {counts[1]}",
        f"it: 50 % done, moved, {counts[2]}, 1.0 MB of 2.0 MB fetched, about 20 seconds left",
    ])  # fmt: skip
    assert waits == [10.0] * 6 * (not hidden) + [20.0] * 2 * (not hidden) + ["end"] * 2


@pytest.mark.parametrize("words", ["check ./b --base ./a", "verify moved ./a ./b"])
def test_checks_show_progress(inside, in_this_process, monkeypatch, tmp_path, words):
    """Under what was typed alone, as claims read together; to the last matrix or vector."""
    for name, side in (("a", "base"), ("b", "broad")):
        shutil.copytree(readme.ROOT / "registry" / "demo" / side, tmp_path / name)
    states = []

    @contextlib.contextmanager
    def watch(shown):
        assert words.startswith(shown)
        yield states.append

    monkeypatch.setattr(console, "pairs_progress", lambda *_, **__: watch)
    inside(*words.split()).assert_done()
    assert max((state.done, state.total) for state in states) == (39, 39)
    assert {state.stage for state in states} == {""}


@pytest.mark.parametrize(
    "words", [("show",), ("report", "-o", "page.html"), ("export", "--to", "csv"), ("lineage",)]
)
def test_commands_about_many_reports_show_progress(inside, monkeypatch, demo_reports, words):
    """Each report that is read is a step; the limit from which on is two here."""
    states = []
    monkeypatch.setattr(
        console, "pairs_progress", lambda: lambda title: contextlib.nullcontext(states.append)
    )
    command, *options = words
    monkeypatch.setattr(console, "FEW", 1)
    inside(command, demo_reports, *options).assert_done()
    assert [(state.cost_done, state.cost_total) for state in states] == [(0, 2), (1, 2)]
    monkeypatch.setattr(console, "FEW", 2)
    assert (list(console.each(command, [demo_reports] * 2)), len(states)) == ([demo_reports] * 2, 2)
