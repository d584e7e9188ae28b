"""Small facts about one pair, each just inside and just outside: stacks, plans, notes, reads."""

import json
import os
from datetime import UTC, datetime
from types import SimpleNamespace

import planted
import pytest
import torch
from measuring import StoppedError, planted_pair

from shadow.checkpoints.held_files import hold
from shadow.checkpoints.hub import RemoteFile
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, Skipped
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import WholeFile
from shadow.engines import pair as pair_module
from shadow.engines.engine import VISIBLE, InProcess, Ray, require_sight
from shadow.engines.pair import Parts, run_pair
from shadow.errors import ShadowError, UsageError
from shadow.lists.index import ListRow, _row_after
from shadow.places.architecture import Place
from shadow.relations.matching import UnitChoice
from shadow.run import pair_plan, stacked
from shadow.run.correspondence import Matching
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

SETTINGS = Settings(Method(level="norms"), Filter())
STACK = "model.layers.0.mlp.experts"


def tensor(*shape, name="x"):
    return TensorInfo(name, "F32", shape, "x", 0, 0)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize(("experts", "swapped"), [(3, False), (3, True), (1, False)])
def test_shapes_say_which_stack_two_factors_are_of(tmp_path, kind, experts, swapped):
    """Experts, stored (out, in) or (in, out): of each pair of shapes one reading."""
    sizes = {"gate_up_proj": (12, 10), "down_proj": (10, 6)}
    turn = -1 if kind == "gpt_oss" else 1
    stacks = {
        f"{STACK}.{name}": torch.zeros(experts, *size[::turn]) for name, size in sizes.items()
    }
    config = {"model_type": kind, "num_hidden_layers": 1}
    base = open_folder(str(planted.write(tmp_path, stacks, config)))
    adapter = SimpleNamespace(scaling=lambda module, rank: rank)
    for name, (outputs, inputs) in sizes.items():
        left, right = (inputs, outputs) if swapped else (outputs, inputs)
        factors = {STACK: (tensor(left, 2 * experts), tensor(2 * experts, right), False)}
        updates, modules = stacked.stacked_updates(adapter, factors, base)
        kinds = {(place.module, update.swapped, update.scale) for place, update in updates.items()}
        words = ("experts.gate", "experts.up") if "up" in name else ("experts.down",)
        assert kinds == {(word, swapped, 2) for word in words}
        assert (len(updates), modules) == (experts * len(words), {STACK})
    for a, b in (((7, 10), (12, 6)), ((6, 10), (10, 6)), ((6, 12), (12, 6)))[experts == 1 :]:
        factors = {STACK: (tensor(*b), tensor(*a), False)}
        assert stacked.stacked_updates(adapter, factors, base) == ({}, set())


def test_a_plan_counts_what_is_skipped_by_reason():
    """The most tensors first, with each name once, three at most, and the first detail."""
    place = Place("language", 0, "mlp.up")

    def row(side, reason, name, detail="", status="skipped"):
        return Skipped(side, tensor(2, name=name), place, reason, detail, status)

    rows = [row("base", "shape", "a"), row("tuned", None, "b", status="identical")]
    rows += [row("tuned", "shape", "a", "first"), row("tuned", "shape", "c", "second")]
    found = pair_plan._reasons([rows[1], rows[0], *rows[2:]])
    texts = [(one.reason, one.tensors, one.base, one.tuned, one.examples) for one in found]
    assert texts == [("shape", 3, 1, 2, ["a", "c"]), ("identical", 1, 0, 1, ["b"])]
    assert [one.detail for one in found] == ["first", None]
    many = [row("base", "shape", str(number)) for number in range(4)]
    assert pair_plan._reasons(many)[0].examples == ["0", "1", "2"]


def test_a_system_may_give_less_than_it_is_asked_for(tmp_path, monkeypatch):
    """Reads go on behind what they have, run by run."""
    (tmp_path / "x").write_bytes(bytes(range(50)))
    file = hold(tmp_path / "x")
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda of, into, at: read(of, [into[0][:3]], at))
    assert file.bytes_of(7, 20) == bytes(range(7, 27))
    buffer = bytearray(8)
    file.read_runs([30, 2], memoryview(buffer))
    assert [*buffer] == [30, 31, 32, 33, 2, 3, 4, 5]


@pytest.fixture
def pair(tmp_path):
    """Two matrices, a vector, and numbers that are no floats."""
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    more = {"model.norm.weight": torch.ones(8), "model.ids": torch.arange(2)}
    sides = ({name: torch.randn(8, 8) for name in names} | more for _ in range(2))
    return planted_pair(tmp_path / "pair", *sides)


def test_a_shard_is_noted_if_it_is_fetched_or_given_up(tmp_path, monkeypatch, pair):
    """Not one that was there and stays, and no file of a folder."""
    here = tmp_path / "here"

    def workers(plan, measure, runtime, jobs, *, done, note):
        for name, path, keep in (("a", None, True), ("b", here, True), ("c", here, False)):
            file = RemoteFile(name, 9, None, repo="o/m", commit="0" * 40, offline=True)
            note(WholeFile(file=file, keep=keep, path=path))
        note(*plan.base.sources.values())
        raise StoppedError
        yield

    monkeypatch.setattr(pair_module, "in_workers", workers)
    monkeypatch.setattr("shadow.checkpoints.hub.in_cache", lambda file: None)
    with pytest.raises(StoppedError):
        run_pair(pair, SETTINGS, tmp_path / "out")
    (journal,) = (tmp_path / "out").rglob("journal.jsonl")
    lines = map(json.loads, journal.read_text().splitlines()[1:])
    assert [(line["fetched"]["path"], line["fetched"]["keep"]) for line in lines] == [
        ("a", True), ("c", False),
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "prefix"), [(1, ""), (2, "part 1 of 2: ")])
def test_lines_of_a_part_are_named_if_there_are_several(tmp_path, monkeypatch, pair, count, prefix):
    lines = []
    part = pair_module.measure_part

    def saying(*arguments, **more):
        *_, runtime = arguments
        runtime.say("x")
        return part(*arguments, **more)

    monkeypatch.setattr(pair_module, "measure_part", saying)
    runtime = Runtime(say=lines.append, elsewhere=Parts(InProcess(), count).measure)
    run_pair(pair, SETTINGS, tmp_path / "out", runtime)
    assert next(line for line in lines if line.endswith("x")) == f"{prefix}x"
    assert ("measuring in 2 parts" in lines, "measuring in 1 parts" in lines) == (count > 1, False)


@pytest.mark.parametrize(("base", "tuned", "rows"), [
    ((3, 8), (3, 8), None), ((8, 9), (3, 8), [0, 1, 2]), ((4, 3), (3, 9), [0, 1, 2]),
])  # fmt: skip
def test_rows_of_a_router_are_looked_for_if_it_lost_some(base, tuned, rows):
    """Its first dimension counts its experts; of the same number nothing is to be said."""
    place = Place("language", 0, "router")
    matching = Matching(Runtime(), None)
    matching.base = {place: SimpleNamespace(shape=base)}
    matching._tuned = {place: SimpleNamespace(shape=tuned)}
    matching.units = {("language", 0): {at: UnitChoice(at, "number") for at in range(3)}}
    matching._pair_units()
    assert [*matching.partners] == ([] if rows is None else [place])
    for partner in matching.partners.values():
        assert [one.tolist() for one in partner.rows] == [rows, rows]


@pytest.mark.parametrize(("engine", "made"), [
    ("local", None), ("ray", Ray()), ("ray:", Ray()), ("ray:cpus=2", Ray(None, 2)),
    ("ray:cpus=2,memory=16GB,address=auto", Ray("auto", 2, "16GB")),
    ("ray:cpus=2,", Ray(None, 2)), ("ray:cpus=x", ...), ("ray:cpus=-1", ...), ("ray:gpus=1", ...),
    ("ray:cpus=2,x", ...), ("rays", ...), ("local:cpus=2", ...), ("", ...),
])  # fmt: skip
def test_an_engine_is_read(engine, made):
    if made is not ...:
        assert Ray.of(engine) == made
        return
    with pytest.raises(UsageError, match="no engine") as caught:
        Ray.of(engine)
    assert caught.value.hint.startswith("local, ray, or")


def test_memory_of_a_task_is_a_size_or_bytes():
    sizes = (None, 5, "16GB", "1.5 KiB")
    assert [Ray(memory_per_task=size).memory for size in sizes] == [None, 5, 16 * 10**9, 1536]


def test_a_file_of_another_machine_is_waited_for(monkeypatch):
    """So many times a second."""
    naps = []
    monkeypatch.setattr("shadow.engines.engine.time.sleep", naps.append)
    require_sight(lambda: len(naps) == VISIBLE - 1, "x")
    assert naps == [1] * (VISIBLE - 1)
    with pytest.raises(ShadowError, match="it is gone"):
        require_sight(lambda: len(naps) > 2 * VISIBLE, "it is gone")


def test_a_plan_counts_matrices_vectors_and_the_memory_of_its_workers(tmp_path, pair):
    """Parameters are those of floats, and of what is packed."""
    one, two = (
        pair_plan.plan_pair(pair, SETTINGS, tmp_path / "out", Runtime(jobs=jobs)) for jobs in (1, 2)
    )
    assert (two.matrices, two.vectors, two.shards_in_ranges, two.jobs) == (2, 1, 0, 2)
    assert (two.base.parameters, two.base.bytes, two.base.dtypes) == (136, 560, ["F32", "I64"])
    assert two.memory - one.memory == one.memory - pair_plan.PROCESS > 0


@pytest.mark.parametrize(("state", "before", "after"), [
    ("stopped", (None, None), (2.5, 7)), ("stopped", (1.5, 10), (4.0, 17)),
    ("failed", (1.5, 10), (4.0, 17)), ("kept", (1.5, 10), (1.5, 10)),
])  # fmt: skip
def test_the_row_of_a_pair_adds_what_an_attempt_took(state, before, after):
    """Nothing of it went into a report that is kept; a failed pair has no figures."""
    spent = dict(zip(("seconds", "bytes"), before, strict=True))
    row = ListRow(1, "f", "p", "tuned", "f/p", "a", "b", state="pending", spikes=3.0, **spent)
    fault = SimpleNamespace(message="m", hint="h")
    outcome = SimpleNamespace(seconds=2.5, moved=7, result=None, state=state, error=fault)
    found = _row_after(row, outcome)
    assert (found.seconds, found.bytes) == after
    if state == "stopped":
        assert (found.state, found.error, found.spikes) == ("pending", None, 3.0)
    else:
        assert (found.state, found.error, found.hint) == (state, "m", "h")
        assert found.spikes is None


def test_the_time_of_an_audit_is_recorded_to_a_millisecond():
    began = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
    recorded = pair_module._run_metadata(SETTINGS, began, 1.23456)
    assert (recorded["seconds"], recorded["started"]) == (1.235, "2026-01-02T03:04:05.678+00:00")
