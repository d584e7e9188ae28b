"""What an audit of the Hub plans: sources, what frees, the most disk, and its words."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Stub

import pytest
from test_schedule import line_up

from shadow.checkpoints.hub import RemoteFile
from shadow.checkpoints.pairing import Filter, Skipped
from shadow.checkpoints.sources import ByteRanges, LocalFile, WholeFile
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.run import plan
from shadow.run.runtime import Access, AlignedPair
from shadow.spectra.measurement import Method

COMMIT = "0" * 40
MAPS = {"a": "1", "b": "2", "c": "2"}, {"a": "1", "b": "1", "c": "1"}
SIZES = {("base", "1"): 1000, ("base", "2"): 2000, ("tuned", "1"): 4000}  # bytes
KEY = ("o/base", COMMIT, "1")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Two shards of a base and one of the other side, none of them here; where they would be."""
    pairs, *sides = line_up(*MAPS)
    for side, checkpoint in zip(("base", "tuned"), sides, strict=True):
        for shard in checkpoint.sources:
            file = RemoteFile(
                shard, SIZES[side, shard], None, repo=f"o/{side}", commit=COMMIT, offline=False
            )
            checkpoint.sources[shard] = WholeFile(file=file)
    state = Stub(aligned=AlignedPair(*sides, pairs, []), here=set(), free={}, path=tmp_path)
    monkeypatch.setattr("shadow.checkpoints.hub.in_cache", lambda file: (
        file.repo[2:], file.path) in state.here)  # fmt: skip
    monkeypatch.setattr("shadow.checkpoints.hub_client.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Stub(free=state.free.get(path, 10**9)))
    return state


def made(hub, ours=(), done=(), filtered=False, **access):
    folder = hub.path / "report"
    options = {"folder": folder, "scratch": folder / "x", "ours": ours, "done": done}
    return plan.make_plan(hub.aligned, Access(**access), filtered=filtered, **options)


@pytest.mark.parametrize(("free", "frees", "peak", "after", "problem"), [
    (7000, False, 7000, [0, 0, 0], None),
    (6999, True, 6000, [0, 0, 1], None),
    (6000, True, 6000, [0, 0, 1], None),
    (5999, True, 6000, [0, 0, 1], "6.0 kB of disk are needed at {cache}, 6.0 kB are free"),
])  # fmt: skip
def test_shards_are_freed_where_the_disk_is_too_small_for_all(
    hub, free, frees, peak, after, problem
):
    """Then a base shard comes once the one before it has gone."""
    hub.free[hub.path] = free
    found = made(hub)
    assert (found.frees, found.peak, found.to_move, found.free) == (frees, peak, 7000, free)
    assert [visit.after for visit in found.work.visits] == after
    assert found.problem == (problem and problem.format(cache=hub.path / "cache"))
    assert found.hint == plan.DISK_HINT
    keeps = [source.keep for side in (found.base, found.tuned) for source in side.sources.values()]
    assert keeps == [not frees] * 3
    shared = made(hub, owns_cache=False)
    assert (shared.frees, shared.peak, shared.hint) == (False, 7000, plan.SHARED_HINT)
    assert (shared.problem is None) is not frees
    with pytest.raises(ShadowError) if problem else contextlib.nullcontext() as fault:
        found.require_disk()
    assert fault is None or fault.value.args[0] == found.problem


@pytest.mark.parametrize(("limit", "problem", "hint"), [
    (6000, None, plan.DISK_HINT),
    (5999, "fetched shards need 6.0 kB of disk at once, --max-disk allows 6.0 kB",
     "give --max-disk 6KB or more, or audit less (--layer, --module)"),
])  # fmt: skip
def test_a_limit_frees_shards_and_says_how_much_would_do(hub, limit, problem, hint):
    found = made(hub, max_disk=limit)
    assert (found.frees, found.peak, found.problem, found.hint) == (True, 6000, problem, hint)
    hub.aligned = replace(hub.aligned, pairs=[])
    assert (made(hub, max_disk=1).frees, made(hub).problem) == (False, None)


def test_what_an_earlier_run_fetched_counts_and_goes(hub):
    """What was there before this audit stays, and takes none of its disk."""
    hub.here = {("base", "1"), ("tuned", "1")}
    found = made(hub, max_disk=5000)
    assert (found.peak, found.to_move, found.frees) == (2000, 2000, True)
    assert [source.keep for source in found.base.sources.values()] == [True, False]
    assert found.tuned.sources["1"].keep
    found = made(hub, ours={KEY})
    assert (found.peak, found.to_move) == (3000, 2000)
    found = made(hub, ours={KEY}, max_disk=5000)
    assert [source.keep for source in found.base.sources.values()] == [False, False]
    hub.free[hub.path] = 2000  # what is there already needs no room
    assert (made(hub, ours={KEY}).problem, made(hub, ours={KEY}).frees) == (None, False)
    hub.free[hub.path] = 1999
    assert made(hub, ours={KEY}, owns_cache=False).problem
    fetched = replace(hub.aligned.tuned.sources["1"], fetched=True)
    hub.aligned.tuned.sources["1"] = fetched
    hub.free[hub.path] = 10**6
    assert made(hub).peak == 6000
    found = made(hub, done={pair.key for pair in hub.aligned.pairs[1:]})
    assert [visit.shard for visit in found.work.visits] == [("base", "1"), ("tuned", "1")]


@pytest.mark.parametrize(("size", "filtered", "fetch", "ranges"), [
    (51, True, "auto", True), (50, True, "auto", False), (51, False, "auto", False),
    (50, False, "ranges", True), (900, True, "shards", False), (0, False, "ranges", True),
])  # fmt: skip
def test_ranges_come_where_they_save_a_tenth(hub, size, filtered, fetch, ranges):
    """Of 45 bytes of tensors that are wanted; a filter must be given, or ranges asked for."""
    source = hub.aligned.tuned.sources["1"]
    file = replace(source.file, size=size or 1000)
    hub.aligned.tuned.sources["1"] = replace(source, file=file)
    for number, pair in enumerate(hub.aligned.pairs):
        place = {"start": 15 * number + 7, "end": 15 * number + 22}
        hub.aligned.pairs[number] = replace(
            pair, tuned=replace(pair.tuned, info=replace(pair.tuned.info, **place))
        )
    found = made(hub, filtered=filtered, fetch=fetch)
    chosen = found.tuned.sources["1"]
    assert isinstance(chosen, ByteRanges) is ranges
    if ranges:
        assert chosen.path == hub.path / "report" / "x" / "tuned-0.part"
        assert (chosen.file, [info.name for info in chosen.wanted]) == (file, ["a", "b", "c"])
        assert chosen.bytes_to_move() == 45
    if fetch == "ranges":
        assert found.base.sources["2"].path.name == "base-1.part"
        hub.here = {("tuned", "1")}
        assert made(hub, fetch=fetch).tuned.sources["1"] == hub.aligned.tuned.sources["1"]


def test_ranges_lie_on_the_disk_of_the_report(hub, monkeypatch):
    """Each disk must hold its own part; one that holds both must hold their sum."""
    only = replace(hub.aligned, pairs=hub.aligned.pairs[:1])
    only.tuned.sources["1"] = ByteRanges(
        only.tuned.sources["1"].file, [only.pairs[0].tuned.info], hub.path / "x"
    )
    hub.aligned = only
    assert made(hub).peak == 1008
    for free, problem in ((1008, False), (1007, True)):
        hub.free[hub.path] = free
        assert bool(made(hub, owns_cache=False).problem) is problem
    disks = {"cache": 1, "report": 2}
    monkeypatch.setattr(plan, "nearest_folder", lambda path: Stub(
        stat=lambda: Stub(st_dev=disks[path.name]), name=path.name))  # fmt: skip
    for cache, report, named in ((1000, 8, None), (999, 8, "cache"), (1000, 7, "report")):
        free = {"cache": cache, "report": report}
        monkeypatch.setattr(plan, "_free", lambda path, free=free: free[path.name])
        problem = made(hub, owns_cache=False).problem
        assert (problem and named in problem, bool(problem)) == (named and True, named is not None)


@pytest.mark.parametrize(("free", "limit", "fault"), [
    (3000, None, None), (2999, None, "free some space, or move HF_HUB_CACHE"), (9000, 3000, None),
    (9000, 2999, "give --max-disk 3KB or more"), (2000, 9000, "free some space, or move"),
])  # fmt: skip
def test_what_is_read_whole_must_fit_at_once(hub, free, limit, fault):
    hub.free[hub.path] = free
    sources = [*hub.aligned.base.sources.values(), LocalFile(Path("x"))]
    access = Access(max_disk=limit)
    assert plan.require_disk_at_once("x", sources[2:], Access(max_disk=0)) == 0
    if fault is None:
        assert plan.require_disk_at_once("they", sources, access) == 3000
        return
    with pytest.raises(ShadowError, match=r"they need 3\.0 kB of disk all at once, ") as found:
        plan.require_disk_at_once("they", sources, access)
    assert found.value.hint.startswith(fault)


def test_tensors_are_summed_up_with_the_first_pair_that_reads_them():
    """Those that are not measured with a pair of their shard, or of a folder with the first."""
    pairs, *sides = line_up(*MAPS, {("base", "3"), ("base", "2")})
    place = Place("language", 0, "norm")
    names = {
        ("base", "2"): "near",
        ("base", "3"): "here",
        ("tuned", "9"): "far",
        ("tuned", "1"): "n",
    }
    sides[0].sources["3"] = LocalFile(Path("3"))
    sides[1].sources["9"] = sides[1].sources["1"]
    info = pairs[0].tuned.info
    skipped = [
        Skipped(side, replace(info, name=name, shard=shard), place, "x")
        for (side, shard), name in names.items()
    ]
    skipped.append(replace(skipped[0], status="identical", info=replace(info, name="same")))
    skipped.append(skipped[0])
    aligned = AlignedPair(*sides, [*pairs, pairs[0]], skipped)
    a, b, c = (pair.key for pair in pairs)
    own = {a: ["base a1", "base here3", "tuned a1", "tuned n1"], c: ["base c2", "tuned c1"],
           b: ["base b2", "base near2", "tuned b1"]}  # fmt: skip

    def summed(level="full", chosen=Filter()):  # noqa: B008 - frozen
        settings = Stub(method=Method(level), chosen=chosen)
        return {
            key: [f"{side} {info.name}{info.shard}" for side, info in of]
            for key, of in plan.summed_with(aligned, settings).items()
        }

    assert summed() == own
    assert summed("norms") == {}
    few = summed(chosen=Filter(layers=(0,)))
    assert few == {key: [text for text in of if text[-2] in "abc"] for key, of in own.items()}
    aligned = replace(aligned, pairs=[])
    assert summed() == {}
