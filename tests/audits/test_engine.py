"""Engines without any of Ray: the order of tasks, what travels, waiting for another audit, refusals
of the command.
"""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from hub import Hub

from shadow.audits.engine import ROUNDS, Ended, Queue, Task
from shadow.audits.pair import Progress, Runtime, Settings, run_pair
from shadow.audits.pairs import PairOutcome, Pins, audit_pairs, near_of
from shadow.audits.ray_engine import too_large
from shadow.checkpoints.pairing import Filter
from shadow.errors import BusyError, KeptError, ShadowError, UsageError
from shadow.run.journal import alone_at
from shadow.run.plan import Access
from shadow.spectra.delta import Method
from shadow.targets.families import Pair, given_pair
from shadow.targets.references import Reference, parse_reference

SETTINGS = Settings(Method(subspaces=False), Filter(), spectra=False)


def task(name: str, near: str = "") -> Task:
    return Task(name, lambda runtime: None, Runtime, near)


def taken(queue: Queue, machine: str) -> str | None:
    one = queue.take(machine)
    return None if one is None else one.name


def filled(**lengths: int) -> Queue:
    queue = Queue()
    for near, length in lengths.items():
        for number in range(length):
            queue.put(task(f"{near}{number}", near))
    return queue


# the order


def test_a_machine_goes_on_with_the_base_that_it_has_read():
    """Two machines, two bases: each reads one, though their turns alternate."""
    queue = filled(a=3, b=2)
    order = [(machine, taken(queue, machine)) for machine in ("one", "two", "one", "two", "one")]
    assert order == [("one", "a0"), ("two", "b0"), ("one", "a1"), ("two", "b1"), ("one", "a2")]
    assert not queue
    assert taken(queue, "one") is None


def test_who_has_nothing_left_helps_where_most_is_left():
    """The third machine has no base of its own: it reads the one with the longest queue, and stays
    with it.
    """
    queue = filled(a=2, b=5)
    assert [taken(queue, machine) for machine in ("one", "two")] == ["b0", "a0"], (
        "the longest is begun first"
    )
    assert [taken(queue, "three") for _ in range(3)] == ["b1", "b2", "b3"]
    assert [taken(queue, "two") for _ in range(2)] == ["a1", "b4"]


def test_a_task_that_failed_is_the_next_of_its_base():
    """What is put back in front comes before what waits, on any machine."""
    queue = filled(a=2)
    first = queue.take("one")
    queue.put(first, first=True)
    assert [taken(queue, "two") for _ in range(2)] == ["a0", "a1"]


def test_pairs_of_one_base_are_near_whatever_revision_they_name():
    """The shards of two revisions may be the same; those of another repository are not."""
    tuned = Reference("org/tuned", False)
    near = [near_of(Pair("f", "p", Reference(repo, False, revision), tuned)) for repo, revision in
            (("org/base", None), ("org/base", "v2"), ("org/other", None))]  # fmt: skip
    assert near[0] == near[1] != near[2]


# an engine elsewhere


class Elsewhere:
    """Tasks pickled, carried out here, and their results pickled, as another process has them; the
    last first.
    """

    elsewhere = True

    def __init__(self, stop_before: int = 1000) -> None:
        self.tasks: list[Task] = []
        self.begun: list[str] = []
        self.stop_before = stop_before

    def lanes(self) -> int:
        return 2

    def submit(self, one: Task) -> None:
        self.tasks.append(one)

    def as_completed(self, watch=None):
        while self.tasks:
            one = self.tasks.pop()
            if len(self.begun) == self.stop_before:
                yield Ended(one, None, KeyboardInterrupt())
                raise KeyboardInterrupt
            self.begun.append(one.name)
            work, runtime = pickle.loads(pickle.dumps((one.work, one.runtime())))
            yield Ended(one, pickle.loads(pickle.dumps(work(runtime))), None)


def failing(pair, settings, output, runtime):
    faults = {
        "bug": KeyError("x"),
        "kept": KeptError("other", "--overwrite"),
        "wrong": UsageError("no layer 9", "0-3"),
    }
    raise faults[pair.name]


def local(name: str) -> Pair:
    return Pair("toy", name, Reference("/base", True), Reference("/tuned", True))


def test_faults_travel_whole():
    """Kind, message and hint are those that were raised there; a bug brings its traceback."""
    pairs = [local(name) for name in ("bug", "kept", "wrong")]
    outcomes = {
        o.pair.name: o
        for o in audit_pairs(pairs, SETTINGS, Path("out"), audit=failing, engine=Elsewhere())
    }
    kept, wrong, bug = (outcomes[name] for name in ("kept", "wrong", "bug"))
    assert (kept.state, type(kept.fault), kept.fault.hint) == ("kept", KeptError, "--overwrite")
    assert (wrong.state, type(wrong.fault), wrong.fault.message, wrong.fault.hint) == (
        "failed", UsageError, "no layer 9", "0-3",
    )  # fmt: skip
    assert (bug.state, type(bug.fault), bug.error.message) == ("failed", KeyError, "KeyError: 'x'")
    assert "in failing" in bug.fault.__notes__[0]


def test_a_fault_that_cannot_be_pickled_travels_as_text():
    """An exception that holds a lock: its kind and words arrive."""
    fault = ValueError("odd")
    fault.lock = threading.Lock()
    outcome = PairOutcome(local("x"), "failed", fault=fault)
    arrived = pickle.loads(pickle.dumps(outcome))
    assert (type(arrived.fault), str(arrived.fault)) == (RuntimeError, "ValueError: odd")


def busy(pair, settings, output, runtime):
    raise BusyError("another audit is writing", "wait")


def test_a_pair_that_another_audits_gives_way_and_fails_in_the_end():
    """It is tried ROUNDS times more, each time after the others; then its fault is told."""
    engine = Elsewhere()
    (outcome,) = audit_pairs([local("one")], SETTINGS, Path("out"), audit=busy, engine=engine)
    assert (outcome.state, type(outcome.fault)) == ("failed", BusyError)
    assert len(engine.begun) == ROUNDS + 1
    (at_once,) = audit_pairs([local("one")], SETTINGS, Path("out"), audit=busy)
    assert type(at_once.fault) is BusyError, "in this process there is nothing to wait for"


def test_an_interrupt_is_told_of_the_pair_that_was_running_and_then_raised():
    """The pairs that had ended come first; the one that runs is stopped; then KeyboardInterrupt."""
    pairs = [local("bug"), local("kept")]
    audits = audit_pairs(pairs, SETTINGS, Path("out"), audit=failing, engine=Elsewhere(1))
    outcomes = [next(audits), next(audits)]
    with pytest.raises(KeyboardInterrupt):
        next(audits)
    assert [(outcome.pair.name, outcome.state) for outcome in outcomes] == [
        ("kept", "kept"),
        ("bug", "stopped"),
    ]


# waiting


@pytest.fixture
def pair(tmp_path):
    for seed, name in enumerate(("base", "tuned")):
        generator = torch.Generator().manual_seed(seed)
        weights = {"model.layers.0.mlp.up_proj.weight": torch.randn(8, 8, generator=generator)}
        planted.write(tmp_path / name, weights, planted.LLAMA)
    return given_pair(
        parse_reference(str(tmp_path / "base")), parse_reference(str(tmp_path / "tuned"))
    )


def test_waiting_ends(tmp_path, pair):
    """After its patience the audit is refused as one without."""
    folder = tmp_path / "out" / pair.family / pair.name
    folder.mkdir(parents=True)
    with alone_at(folder), pytest.raises(BusyError):
        run_pair(pair, SETTINGS, tmp_path / "out", Runtime(patience=0.1))


# commits


@pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")
def test_a_revision_is_looked_up_once_and_read_at_that_commit(tmp_path, pair, monkeypatch):
    """The branch moves between two pairs of one run: both read the commit found first."""
    from huggingface_hub import constants

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        commit = hub.add("org/base", base)
        hub.add("org/tuned", tuned)
        one = replace(
            pair, base=Reference("org/base", False, "main"), tuned=Reference("org/tuned", False)
        )
        pins = Pins(Runtime())
        found = pins.of(one)
        assert found[one.base] == commit
        assert hub.add("org/base", tuned) != commit
        asked = len(hub.requests)
        assert pins.of(one) == found
        assert len(hub.requests) == asked
        result = run_pair(one, SETTINGS, tmp_path / "out", Runtime(commits=found))
        assert result.provenance["base"]["commit"] == commit
        gone = replace(one, base=Reference("org/gone", False))
        assert list(Pins(Runtime()).of(gone)) == [one.tuned], "its audit will say what is wrong"
        offline = Runtime(access=replace(Runtime().access, offline=True))
        assert Pins(offline).of(one) == {}


# disk


@pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")
def test_tasks_that_share_a_machine_free_no_shards_unasked(tmp_path, pair, monkeypatch):
    """Room for one shard of two: an audit alone removes the first after use. One that shares the
    machine's cache is refused with the option that makes it alone, and frees where that is given.
    """
    from huggingface_hub import constants

    from shadow.run import plan

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for side in ("base", "tuned"):
            weights = planted.matrices(len(side), 2, 256)  # two files of 262 kB
            hub.add(f"org/{side}", planted.sharded(tmp_path / f"{side}s", weights, 2))
        one = replace(pair, base=Reference("org/base", False), tuned=Reference("org/tuned", False))
        monkeypatch.setattr(plan, "_free", lambda path: 1_000_000)
        said: list[str] = []
        shared = Access(alone=False)
        with pytest.raises(ShadowError, match="of disk are needed") as caught:
            run_pair(one, SETTINGS, tmp_path / "shared", Runtime(access=shared))
        assert caught.value.hint.startswith("give --max-disk, so that a machine has one task")
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        for access in (Access(), replace(shared, max_disk=800_000)):
            out = tmp_path / f"alone-{access.alone}"
            run_pair(one, SETTINGS, out, Runtime(access=access, say=said.append))
            assert "freed after use" in said.pop()


# the command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--address", "auto"), "--address without --engine ray"),
        (("--cpus-per-task", "2"), "--cpus-per-task without --engine ray"),
        (("--memory-per-task", "2GB"), "--memory-per-task without --engine ray"),
        (
            ("--engine", "ray", "--address", "ray://host:10001"),
            "a run over a Ray client would end with its connection",
        ),
        (("--engine", "ray", "--memory-per-task", "much"), "'much'"),
        (
            ("--engine", "ray", "--address", "somewhere"),
            "'somewhere' is no address of a Ray cluster",
        ),
        (("--engine", "ray", "--address", "a..b:1"), "'a..b:1' is no address of a Ray cluster"),
        (("--engine", "ray", "--address", f"{'a' * 64}:1"), "is no address of a Ray cluster"),
        (  # that of `ray job submit`
            ("--engine", "ray", "--address", "http://127.0.0.1:8265"),
            "'http://127.0.0.1:8265' is no address of a Ray cluster",
        ),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(shadow, options, told):
    """Exit code 2, before Ray is started."""
    assert told in shadow("audit", "demo", "-o", "out", *options).assert_refused(2)


def test_a_task_that_is_too_large_is_told_with_what_there_is():
    """Too many cores, too much memory, or both on no machine at once."""
    small, wide, deep = (8, 20 * 10**9), (64, 10**9), (2, 100 * 10**9)
    told = {
        (1, None): "a task wants 1 cores, the largest machine has 0",
        (16, None, small): "a task wants 16 cores, the largest machine has 8",
        (4, 50, small): "no machine with 4 cores has 50.0 GB of memory",
        (8, 50, wide, deep): "no machine with 8 cores has 50.0 GB of memory",
    }
    for (cores, memory, *machines), message in told.items():
        wanted = memory and memory * 10**9
        assert too_large(cores, wanted, dict(zip("ab", machines, strict=False)))[0] == message


def test_an_engine_is_told_of_a_fault_that_is_no_ones():
    """A pair that the engine lost has failed, with what the engine says."""

    class Losing(Elsewhere):
        def as_completed(self, watch=None):
            yield Ended(self.tasks.pop(), None, ShadowError("its process was lost", "more memory"))

    (outcome,) = audit_pairs([local("one")], SETTINGS, Path("out"), engine=Losing())
    assert (outcome.state, outcome.error.message, outcome.error.hint) == (
        "failed", "its process was lost", "more memory",
    )  # fmt: skip


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
            [local(name) for name in faults], SETTINGS, Path("out"), audit=failing_with(faults)
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
        [local(name) for name in faults], SETTINGS, Path("out"), audit=failing_with(faults)
    )
    with pytest.raises(KeyboardInterrupt):
        outcomes.extend(tried)
    assert [(outcome.pair.name, outcome.state, outcome.moved) for outcome in outcomes] == [
        ("one", "failed", 5),
        ("two", "stopped", 5),
    ]
