"""The loop behind every audit: one outcome for each pair, whatever becomes of it."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import pytest

from shadow.audits.pair import Progress, Runtime, Settings, run_pair
from shadow.audits.pairs import audit_pairs
from shadow.checkpoints.pairing import Filter
from shadow.errors import KeptError, ShadowError
from shadow.spectra.delta import Method
from shadow.targets.families import Pair
from shadow.targets.references import Reference

SETTINGS = Settings(Method(), Filter())


def named(name: str) -> Pair:
    return Pair("toy", name, Reference("/base", True), Reference("/tuned", True))


def failing_with(faults):
    """An audit that raises what stands under the pair's name."""

    def audit(pair, settings, output, runtime):
        runtime.show(Progress(done=1, total=2, cost_done=1, cost_total=2, moved=5, to_move=9))
        runtime.say("at work")
        raise faults[pair.name]

    return audit


def test_whatever_goes_wrong_with_one_pair_the_next_is_tried():
    """Of each pair the state and the very fault; a bug tells its kind to people, and `finished`
    raises it.
    """
    faults = {
        "kept": KeptError("another report", "--overwrite"),
        "failed": ShadowError("no such folder"),
        "bug": KeyError("what no one expected"),
    }
    outcomes = list(
        audit_pairs(
            [named(name) for name in faults], SETTINGS, Path("out"), audit=failing_with(faults)
        )
    )
    assert [outcome.state for outcome in outcomes] == ["kept", "failed", "failed"]
    assert [outcome.fault for outcome in outcomes] == list(faults.values())
    assert [outcome.error.message for outcome in outcomes] == [
        "another report",
        "no such folder",
        "KeyError: 'what no one expected'",
    ]
    assert [(outcome.began, outcome.moved) for outcome in outcomes] == [(True, 5)] * 3
    with pytest.raises(KeyError):
        outcomes[2].finished()


def test_a_pair_that_is_stopped_is_told_before_the_loop_ends():
    """Ctrl-C in the second of three: its outcome comes, with what it took; then it is raised, the
    third not begun.
    """
    faults = {"one": ShadowError("no"), "two": KeyboardInterrupt(), "three": ShadowError("no")}
    outcomes = []
    tried = audit_pairs(
        [named(name) for name in faults], SETTINGS, Path("out"), audit=failing_with(faults)
    )
    with pytest.raises(KeyboardInterrupt):
        outcomes.extend(tried)
    assert [(outcome.pair.name, outcome.state, outcome.moved) for outcome in outcomes] == [
        ("one", "failed", 5),
        ("two", "stopped", 5),
    ]


@pytest.mark.parametrize("numbered", [False, True])
def test_who_is_told_of_a_pair_hears_nothing_of_another(numbered):
    """What is watched is entered and left with each pair, and gets its progress; a number and a
    name come if asked.
    """
    pairs = [named("one"), named("two")]
    faults = dict.fromkeys(("one", "two"), ShadowError("no"))
    heard, said = [], []

    @contextlib.contextmanager
    def watch(name):
        heard.append(f"begin {name}")
        yield lambda state: heard.append(state.done)
        heard.append("end")

    runtime = Runtime(say=said.append, show=lambda state: heard.append("not here"))
    for _ in audit_pairs(
        pairs,
        SETTINGS,
        Path("out"),
        runtime,
        watch=watch,
        numbered=numbered,
        audit=failing_with(faults),
    ):
        pass
    assert heard == ["begin toy:one", 1, "end", "begin toy:two", 1, "end"]
    assert said == (
        ["[1/2] toy:one: at work", "[2/2] toy:two: at work"] if numbered else ["at work"] * 2
    )


def test_what_run_pair_is_called_with_can_be_pickled():
    """As an engine needs that maps it over pairs in other processes; the default callbacks too."""
    call = (run_pair, named("one"), SETTINGS, Path("out"), Runtime(jobs=2, overwrite=True))
    assert pickle.loads(pickle.dumps(call)) == call
