"""What comes before the first matrix grows with the number of tensors and no faster: steps are
counted, not time.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from math import prod

import pytest
from reports import uniform

from shadow.audits import pair_plan
from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.audits.pair_plan import plan_pair
from shadow.audits.schedule import Schedule, Visit
from shadow.checkpoints.opening import checked_weight_map
from shadow.checkpoints.pairing import Filter
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import ByteRanges
from shadow.outputs.page.cells import cells_of, drawn_cells
from shadow.places.architecture import place_tensors
from shadow.places.names import name_rules
from shadow.reports.report import Report
from shadow.spectra.delta import Method
from shadow.summary.columns import columns_of
from shadow.targets.families import Pair
from shadow.targets.references import Reference


def write(folder, experts, shards=4):
    """A mixture of experts of one layer: headers, an index, and holes where weights would be."""
    folder.mkdir(parents=True)
    tensors = {"model.embed_tokens.weight": (64, 8), "model.layers.0.mlp.gate.weight": (experts, 8)}
    for expert in range(experts):
        for part, shape in (("gate", (4, 8)), ("up", (4, 8)), ("down", (8, 4))):
            tensors[f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"] = shape
    weight_map = {}
    for number in range(shards):
        file, header, position = f"model-{number}.safetensors", {}, 0
        for name in list(tensors)[number::shards]:
            end = position + 2 * prod(tensors[name])
            header[name] = {
                "dtype": "BF16",
                "shape": tensors[name],
                "data_offsets": [position, end],
            }
            position, weight_map[name] = end, file
        raw = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(raw)) + raw)
            out.truncate(8 + len(raw) + position)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen3_moe", "num_experts": experts})
    )
    return folder


def steps(work):
    """How many instructions of Python a call takes: loops inside a comprehension count, as no count
    of calls would.
    """
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class BegunError(Exception):
    """The first matrix would be measured now."""


@pytest.mark.parametrize("what", ["plan", "audit"])
def test_twice_as_many_experts_take_twice_as_many_steps(tmp_path, monkeypatch, what):
    """`plan` and the start of `audit`, on headers alone: what is added by as many experts again is
    what they took.

    And no more than 2,100 instructions a tensor: it was 2,300 where the order of local files was
    made.
    """
    monkeypatch.setattr(pair_plan, "pace", lambda method, jobs, offload: 1e9)
    name_rules()
    settings = Settings(Method(), Filter())

    def begin(progress):
        raise BegunError

    def work(folder):
        pair = Pair("f", "p", *(Reference(str(folder / side), True) for side in ("base", "tuned")))
        if what == "plan":
            plan_pair(pair, settings, tmp_path / "out", Runtime(jobs=1))
            return
        with pytest.raises(BegunError):
            run_pair(pair, settings, tmp_path / folder.name / "out", Runtime(jobs=1, show=begin))

    counts = []
    for experts in (5, 20, 40, 80):  # the first compiles the rules of names
        for side in ("base", "tuned"):
            write(tmp_path / f"{experts}" / side, experts)
        counts.append(steps(lambda folder=tmp_path / f"{experts}": work(folder)))
    _, few, some, many = counts
    assert many - some < 2.2 * (some - few)
    assert many - some < 2_150 * 40 * 3 * 2 or what == "audit"


def test_the_peak_takes_steps_in_proportion_to_the_shards():
    """Ten times as many visits of a schedule: ten times as many steps, or a little more."""

    def peak(count):
        visits = tuple(
            Visit(("base", f"{number}"), number, number + 2, max(0, number - 1))
            for number in range(count)
        )
        sizes = {visit.shard: 1 + visit.first % 7 for visit in visits}
        return steps(lambda: Schedule((), visits).peak(sizes, {visits[0].shard}))

    assert peak(1000) < 11 * peak(100)


def test_the_peak_is_the_most_that_is_held_at_any_time():
    """Against the definition, shard by shard: held are those that came and are still needed, and
    those still to come that were there from the start.
    """
    visits = tuple(
        Visit(("base", f"{n}"), n, n + (n * 5) % 4, max(0, n - (n * 3) % 3)) for n in range(40)
    )
    sizes = {visit.shard: 1 + (visit.first * 37) % 11 for visit in visits}
    for there in (set(), {visits[3].shard, visits[20].shard}, set(sizes)):
        held, reached = [], 0
        for number, visit in enumerate(visits):
            reached = max(reached, visit.after)
            here = [one for one in visits[: number + 1] if one.last >= reached]
            here += [one for one in visits[number + 1 :] if one.shard in there]
            held.append(sum(sizes[one.shard] for one in here))
        assert Schedule((), visits).peak(sizes, there) == max(held)


def test_each_range_shifts_its_own_tensors(tmp_path, monkeypatch):
    """Tensors far apart come in ranges of their own; each lies in the part of its range."""
    from shadow.checkpoints import hub

    gap = 1 << 19
    wanted = [
        TensorInfo(f"t{n}", "U8", (n + 1,), "s", n * gap + 13, n * gap + 13 + n + 1)
        for n in (3, 0, 2, 1)
    ]
    wanted.append(TensorInfo("empty", "U8", (0,), "s", 13, 13))
    monkeypatch.setattr(
        hub,
        "copy_range",
        lambda snap, file, start, *, stop, write, **rest: write(b"x" * (stop - start)),
    )
    source = ByteRanges(None, None, tuple(wanted), tmp_path / "part")
    source.fetch(say=print, report=print, stop=None)
    content = (tmp_path / "part").read_bytes()
    for info in wanted[:4]:
        start = info.start + source.shifts[info.start]
        assert content[start : start + info.parameters] == b"x" * info.parameters
        assert start % 64 == info.start % 64


def test_shard_names_of_an_index_are_looked_at_once_each():
    """Names of tensors one by one, of files once: 200,000 tensors are in a hundred of them."""
    few = steps(
        lambda: checked_weight_map(
            {"weight_map": dict.fromkeys(map(str, range(100)), "a.safetensors")},
            "i",
            ".safetensors",
        )
    )
    many = {"weight_map": {str(n): f"a{n}.safetensors" for n in range(100)}}
    assert few < 0.5 * steps(lambda: checked_weight_map(many, "i", ".safetensors"))


def test_a_small_report_takes_few_steps_on_a_page(tmp_path):
    """12 matrices in 4 layers: 50,000 instructions where data frames and bootstraps took 1,500,000.

    And reading their table takes no look through all columns for each of them.
    """
    folder = uniform(tmp_path / "x", 0.3, layers=4)
    report = Report(folder)
    rows, tensors = (columns_of(report.table(name)) for name in ("matrices", "tensors"))

    def draw():
        return drawn_cells(rows, cells_of(rows, tensors), pairs=300)

    assert draw()["modules"]["delta"]["concentration"][0] == [0.3, [0.3, 0.3], 4, 0.875]
    assert steps(draw) < 100_000
    fresh = Report(folder)
    assert fresh.provenance
    assert steps(lambda: fresh.table("matrices")) < 25_600  # of 132 columns


def test_names_are_compiled_for_the_components_that_occur():
    """A text model needs the patterns of one component of five; those of every one compile."""
    name_rules.cache_clear()
    rules = name_rules()
    place_tensors({"model.layers.0.mlp.up_proj.weight": (4, 4)}, {"model_type": "llama"})
    assert [
        component for component, matcher in rules.suffixes.items() if "pattern" in vars(matcher)
    ] == ["language"]
    assert all(matcher.pattern.groups for matcher in rules.suffixes.values())


def test_a_command_seldom_looks_for_cycles_and_not_at_its_end():
    """What the imports made stays: it is not gone through again and again. Importing the command
    changes nothing.
    """
    code = """
import gc, sys
before = gc.get_threshold()
from shadow.cli import main
assert gc.get_threshold() == before
sys.argv = ["shadow", "--version"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert gc.get_threshold()[0] == 20_000 and gc.get_threshold()[1:] == before[1:]
assert gc.get_freeze_count() > 1_000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shadow ")
