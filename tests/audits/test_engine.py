"""Engines without Ray: order of tasks, what travels, waiting, refusals of the command."""

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from hub import Hub

from shadow.checkpoints.pairing import Filter
from shadow.engines.engine import ROUNDS, Ended, InProcess, Queue, Task
from shadow.engines.finished import PairOutcome
from shadow.engines.pair import run_pair
from shadow.engines.ray_engine import too_large
from shadow.errors import BusyError, KeptError, ShadowError, UsageError
from shadow.files import alone_at
from shadow.lists.perform import Pins, audit_pairs, near_of
from shadow.run import plan
from shadow.run.journal import JOURNAL
from shadow.run.runtime import Access, Progress, Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import Pair, given_pair
from shadow.targets.references import Reference, parse_reference

SETTINGS = Settings(Method(), Filter(), spectra=False)


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


@pytest.mark.parametrize(("lengths", "machines", "order"), [
    # two machines, two bases: each reads one, though their turns alternate
    ({"a": 3, "b": 2}, "12121", "a0 b0 a1 b1 a2"),
    # the longest is begun first; who has no base helps where most is left, and stays there
    ({"a": 2, "b": 5}, "1233322", "b0 a0 b1 b2 b3 a1 b4"),
    ({}, "1", "None"),
])  # fmt: skip
def test_a_machine_goes_on_with_the_base_that_it_has_read(lengths, machines, order):
    queue = filled(**lengths)
    assert [str(taken(queue, machine)) for machine in machines] == order.split()
    assert not queue


def test_a_task_that_failed_is_the_next_of_its_base():
    """What is put back in front comes before what waits, on any machine."""
    queue = filled(a=2)
    queue.put(queue.take("one"), first=True)
    assert [taken(queue, "two") for _ in range(2)] == ["a0", "a1"]


def test_pairs_of_one_base_are_near_whatever_revision_they_name():
    """The shards of two revisions may be the same; those of another repository are not."""
    tuned = Reference("org/tuned", False)
    near = [near_of(Pair("f", "p", Reference(repo, False, revision), tuned)) for repo, revision in
            (("org/base", None), ("org/base", "v2"), ("org/other", None))]  # fmt: skip
    assert near[0] == near[1] != near[2]


class Elsewhere:
    """Tasks and results pickled, as another process has them; the last first."""

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


def local(name: str) -> Pair:
    return Pair("toy", name, Reference("/base", True), Reference("/tuned", True))


FAULTS = {
    "kept": KeptError("another report", "--overwrite"), "failed": UsageError("no layer 9", "0-3"),
    "bug": KeyError("what no one expected"), "stop": KeyboardInterrupt(),
    "after": ShadowError("no"),
}  # fmt: skip


def failing(pair, settings, output, runtime):
    """An audit that raises what stands under the pair's name."""
    runtime.show(Progress(done=1, total=2, cost_done=1, cost_total=2, moved=5, to_move=9))
    runtime.say("at work")
    raise FAULTS[pair.name]


def audits(*names, **options):
    return audit_pairs([*map(local, names)], SETTINGS, Path("out"), audit=failing, **options)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_whatever_goes_wrong_with_one_pair_the_next_is_tried(where):
    """State and fault travel whole; a bug brings its traceback, and `finished` raises it."""
    engine = {"engine": Elsewhere()} if where == "elsewhere" else {}
    found = {one.pair.name: one for one in audits("kept", "failed", "bug", **engine)}
    for name, state in (("kept", "kept"), ("failed", "failed"), ("bug", "failed")):
        one, fault = found[name], FAULTS[name]
        assert (one.state, type(one.fault), one.fault.args) == (state, type(fault), fault.args)
        assert (one.began, one.moved) == (True, 5)
        if name != "bug":
            assert (one.error.message, one.error.hint) == (fault.message, fault.hint)
    assert "KeyError" in found["bug"].error.message
    assert where == "here" or "in failing" in found["bug"].fault.__notes__[0]
    with pytest.raises(KeyError):
        found["bug"].finished()


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
    """It is tried ROUNDS times more, each time after the others; then it has failed."""
    engine = Elsewhere()
    (outcome,) = audit_pairs([local("one")], SETTINGS, Path("out"), audit=busy, engine=engine)
    assert (outcome.state, type(outcome.fault)) == ("failed", BusyError)
    assert len(engine.begun) == ROUNDS + 1
    (at_once,) = audit_pairs([local("one")], SETTINGS, Path("out"), audit=busy)
    assert type(at_once.fault) is BusyError, "in this process there is nothing to wait for"


def test_an_interrupt_comes_after_the_outcome_of_the_pair_that_was_running():
    """With what it took; the third is not begun. An engine elsewhere takes the last first."""
    for engine, ended in (({}, ["failed", "stop"]), ({"engine": Elsewhere(1)}, ["after", "stop"])):
        tried, outcomes = audits("failed", "stop", "after", **engine), []
        with pytest.raises(KeyboardInterrupt):
            outcomes.extend(tried)
        assert [(one.pair.name, one.state) for one in outcomes] == list(
            zip(ended, ("failed", "stopped"), strict=True)
        )
        assert engine or [one.moved for one in outcomes] == [5, 5]


@pytest.fixture
def pair(tmp_path):
    for seed, name in enumerate(("base", "tuned")):
        generator = torch.Generator().manual_seed(seed)
        weights = {"model.layers.0.mlp.up_proj.weight": torch.randn(8, 8, generator=generator)}
        planted.write(tmp_path / name, weights, planted.LLAMA)
    return given_pair(*(parse_reference(f"{tmp_path}/{side}") for side in ("base", "tuned")))


@pytest.mark.parametrize("patience", [0.0, 0.1])
def test_waiting_is_said_once_and_ends(tmp_path, pair, patience):
    """After its patience the audit is refused as one without."""
    lines = []
    folder = tmp_path / "out" / pair.family / pair.name
    folder.mkdir(parents=True)
    with alone_at(folder, JOURNAL), pytest.raises(BusyError) as refused:
        run_pair(pair, SETTINGS, tmp_path / "out", Runtime(patience=patience, say=lines.append))
    assert lines == [f"waiting: {refused.value.message}"] * bool(patience)


# on a Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process speaks to, with a cache of its own."""
    from huggingface_hub import constants

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")
def test_a_revision_is_looked_up_once_and_read_at_that_commit(tmp_path, pair, hub):
    """The branch moves between two pairs of one run: both read the commit found first."""
    base, tuned = tmp_path / "base", tmp_path / "tuned"
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


@pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")
def test_tasks_that_share_a_machine_free_no_shards_unasked(tmp_path, pair, hub, monkeypatch):
    """Alone it frees the first shard of two; beside others it is refused, or frees if asked."""
    for side in ("base", "tuned"):
        weights = planted.matrices(len(side), 2, 256)  # two files of 262 kB
        hub.add(f"org/{side}", planted.sharded(tmp_path / f"{side}s", weights, 2))
    one = replace(pair, base=Reference("org/base", False), tuned=Reference("org/tuned", False))
    monkeypatch.setattr(plan, "_free", lambda path: 1_000_000)
    shared = Access(owns_cache=False)
    with pytest.raises(ShadowError) as caught:
        run_pair(one, SETTINGS, tmp_path / "shared", Runtime(access=shared))
    assert "--max-disk" in caught.value.hint
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    for access in (Access(), replace(shared, max_disk=800_000)):
        run_pair(one, SETTINGS, tmp_path / f"alone-{access.owns_cache}", Runtime(access=access))
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(("options", "named"), [
    (["--address", "auto"], "--address"),
    (["--engine", "ray:cpus=many"], "ray:cpus=many"),
    (["--engine", "ray:memory=much"], "'much'"),
    *(
        (["--engine", f"ray:address={address}"], address)
        for address in ("somewhere", "a..b:1", f"{'a' * 64}:1", "http://127.0.0.1:8265")
    ),
    (["--engine", "ray:address=ray://host:10001"], "client"),
])  # fmt: skip
def test_what_makes_no_sense_is_wrong_usage(shadow, options, named):
    """Exit code 2, before Ray is started."""
    assert named in shadow("audit", "demo", "-o", "out", *options).assert_refused(2)


@pytest.mark.parametrize(
    ("cores", "memory", "largest", "figures"),
    [(16, None, 8, ["16 cores", "8"]), (4, 50 * 10**9, 8, ["4 cores", "50.0 GB"])],
)
def test_a_task_that_is_too_large_is_refused(cores, memory, largest, figures):
    fault = too_large(cores, memory, largest)
    assert all(figure in fault.message for figure in figures)


def test_an_engine_is_told_of_a_fault_that_is_no_ones():
    """A pair that the engine lost has failed, with what the engine says."""

    class Losing(Elsewhere):
        def as_completed(self, watch=None):
            yield Ended(self.tasks.pop(), None, ShadowError("its process was lost", "more memory"))

    (outcome,) = audit_pairs([local("one")], SETTINGS, Path("out"), engine=Losing())
    assert (outcome.state, outcome.error.message, outcome.error.hint) == (
        "failed", "its process was lost", "more memory",
    )  # fmt: skip


def test_a_task_of_this_process_ends_with_its_fault_or_its_result():
    """In the order in which they came: a fault does not stop the next."""
    engine, fault = InProcess(), KeyError("what no one expected")

    def fails(runtime):
        raise fault

    tasks = [Task(name, work, Runtime) for name, work in (("a", fails), ("b", lambda runtime: 7))]
    for task in tasks:
        engine.submit(task)
    assert [*engine.as_completed()] == [Ended(tasks[0], None, fault), Ended(tasks[1], 7, None)]
