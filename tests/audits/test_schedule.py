"""The order of work: what is fetched when, the most it takes, nothing freed too early; the disk
that it needs, and what is summed up.
"""

import random
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace as Stub

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.checkpoints import hub
from shadow.checkpoints.hub_client import cache_folder
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Operand, Skipped
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import (
    NEIGHBOUR,
    ByteRanges,
    LocalFile,
    Transfer,
    WholeFile,
    coalesced,
)
from shadow.errors import ShadowError
from shadow.places.architecture import Part, Place
from shadow.run import plan
from shadow.run.plan import Schedule, _with_sources, natural, schedule, shards_of
from shadow.run.runtime import Access, AlignedPair
from shadow.run.workers import threads
from shadow.spectra.measurement import Method

SIDES = ("base", "tuned")


def test_work_that_waits_ends_with_its_pool():
    """What has begun is waited for, and nothing begins afterwards."""
    begun, go_on, ran = Event(), Event(), []

    def first():
        begun.set()
        go_on.wait(10)
        ran.append(1)

    with threads(1) as pool:
        pool.submit(first)
        waiting = pool.submit(ran.append, 2)
        begun.wait(10)
        Timer(0.05, go_on.set).start()
    assert (ran, waiting.cancelled()) == ([1], True)


class Remote:
    """A shard that must be fetched."""

    is_local = False


def operand(name, shard):
    return Operand(
        TensorInfo(name, "BF16", (2, 2), shard, 0, 8), Part(Place("language", 0, "mlp.up"))
    )


def line_up(base, tuned, local=frozenset()):
    """Pairs of two weight maps (tensor -> shard), and checkpoints; local are shards of folders."""
    pairs = []
    for name, shard in tuned.items():
        ours = operand(name, base[name]) if name in base else None
        place = Place("language", 0, "mlp.up", slot=name)
        pairs.append(MatrixPair(place, ours, operand(name, shard), 2, 2, True))
    checkpoints = []
    for side, weight_map in zip(SIDES, (base, tuned), strict=True):
        sources = {
            shard: LocalFile(Path(shard)) if (side, shard) in local else Remote()
            for shard in weight_map.values()
        }
        checkpoints.append(Checkpoint("x", None, "f", {}, {}, sources))
    return pairs, *checkpoints


@st.composite
def cases(draw, some_local=True):
    """(pairs, base, tuned, sizes) with tensors in random shards of both; some have no base."""
    names = [
        f"model.layers.{number}.mlp.up_proj.weight" for number in range(draw(st.integers(1, 24)))
    ]
    shards = [
        [f"model-{number}.safetensors" for number in range(draw(st.integers(1, 12)))] for _ in SIDES
    ]
    tuned = {name: draw(st.sampled_from(shards[1])) for name in names}
    base = {name: draw(st.sampled_from(shards[0])) for name in names if draw(st.integers(0, 5))}
    known = [(side, shard) for side, found in zip(SIDES, shards, strict=True) for shard in found]
    local = draw(st.sets(st.sampled_from(known), max_size=3)) if some_local else set()
    sizes = {shard: draw(st.integers(1, 100)) for shard in known}
    return *line_up(base, tuned, local), sizes


def played(work, sizes, choose):
    """Plays fetching and freeing by the rules and yields the bytes on the disk at every moment.

    choose picks from the moves that are possible: "begin" or "end" a download, or the step of which
    a pair finishes.
    """
    unfinished = [len(step) for step in work.steps]
    coming, here, loading = list(work.visits), [], None
    while True:
        reached = next((step for step, left in enumerate(unfinished) if left), len(unfinished))
        here = [visit for visit in here if visit.last >= reached]
        yield sum(sizes[visit.shard] for visit in [*here, *([loading] if loading else [])])
        moves = [
            step
            for step, left in enumerate(unfinished)
            if left
            and not any(visit.first <= step for visit in [*coming, *([loading] if loading else [])])
        ]
        if loading:
            moves.append("end")
        elif coming and coming[0].after <= reached:
            moves.append("begin")
        if not moves:
            assert not any(unfinished), "the work has come to a standstill"
            assert not coming
            return
        match choose(moves):
            case "begin":
                loading = coming.pop(0)
            case "end":
                here, loading = [*here, loading], None
            case step:
                for pair in work.steps[step]:
                    wanted = {shard for shard in shards_of(pair) if shard in sizes}
                    downloaded = {visit.shard for visit in work.visits}
                    assert wanted & downloaded <= {visit.shard for visit in here}
                unfinished[step] -= 1


def downloads_first(moves):
    """Downloads take no time: the work is as late as it can be."""
    return next((move for move in ("end", "begin") if move in moves), moves[0])


@given(cases())
def test_every_pair_is_in_one_step_and_every_shard_in_one_visit(case):
    """Nothing is lost or fetched twice, folders not at all; a visit spans the uses of its shard."""
    pairs, base, tuned, _ = case
    work = schedule(pairs, base, tuned)
    measured = Counter(pair.key for step in work.steps for pair in step)
    assert measured == Counter(pair.key for pair in pairs)
    sources = {"base": base.sources, "tuned": tuned.sources}
    used = {shard for pair in pairs for shard in shards_of(pair)}
    remote = {(side, shard) for side, shard in used if not sources[side][shard].is_local}
    assert Counter(visit.shard for visit in work.visits) == Counter(remote)
    for visit in work.visits:
        steps = [
            at for at, step in enumerate(work.steps)
            if any(visit.shard in shards_of(pair) for pair in step)
        ]  # fmt: skip
        assert (visit.first, visit.last) == (min(steps), max(steps))
        assert visit.after <= visit.first


@given(cases())
def test_the_peak_is_that_of_the_rules_played_out(case):
    """With downloads in no time the most bytes on the disk are exactly the peak, ahead or not."""
    pairs, base, tuned, sizes = case
    work = schedule(pairs, base, tuned)
    for one in (work, work.unhurried()):
        assert max(played(one, sizes, downloads_first)) == one.peak(sizes)
    assert work.unhurried().peak(sizes) <= work.peak(sizes)


@given(cases(), st.randoms(use_true_random=False))
def test_no_order_of_events_takes_more_than_the_peak_or_stands_still(case, random):
    """Pairs that end in any order, downloads of any speed; no pair lacks its shards."""
    pairs, base, tuned, sizes = case
    work = schedule(pairs, base, tuned)
    for one in (work, work.unhurried()):
        assert max(played(one, sizes, random.choice)) <= one.peak(sizes)


@given(cases(some_local=False))
def test_a_base_shard_is_needed_during_one_stretch(case):
    """The pairs of a base shard follow each other, and shards come as people count."""
    pairs, base, tuned, _ = case
    work = schedule(pairs, base, tuned)
    bases = [pair.base.info for step in work.steps for pair in step if pair.base]
    order = [info.shard for info in bases]
    stretches = [shard for shard, last in zip(order, [None, *order], strict=False) if shard != last]
    assert stretches == sorted(set(order), key=natural)
    by_shard = [(natural(info.shard), natural(info.name)) for info in bases]
    assert by_shard == sorted(by_shard)


@given(cases())
def test_the_schedule_does_not_depend_on_the_order_of_the_pairs(case):
    """Two runs of one audit take the same way."""
    pairs, base, tuned, _ = case
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert schedule(shuffled, base, tuned) == schedule(pairs, base, tuned)


@given(cases())
def test_folders_are_one_step(case):
    """Where nothing is fetched, or all is journalled, there is nothing to wait for."""
    pairs, base, tuned, sizes = case
    for checkpoint in (base, tuned):
        checkpoint.sources.update({shard: LocalFile(Path(shard)) for shard in checkpoint.sources})
    work = schedule(pairs, base, tuned)
    assert (len(work.steps), work.visits, work.peak(sizes)) == (1, (), 0)
    assert schedule([], base, tuned) == Schedule(((),), ())


@given(st.lists(st.text(st.sampled_from("0019.-ab٣²~"), max_size=6), max_size=6))
def test_names_sort_as_lists_of_words_and_numbers(names):
    """The order is that of each name cut into words and numbers, one compared after another."""

    def words_and_numbers(name: str) -> list[tuple[str, int]]:
        pieces = re.split(r"(\d{1,18})", name)
        words, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
        return list(zip(words, [*numbers, -1], strict=True))

    assert sorted(names, key=natural) == sorted(names, key=words_and_numbers)


@pytest.mark.parametrize("per_shard", [(4, 4), (4, 7)])
def test_of_many_shards_two_are_there_at_once_or_four_ahead(per_shard):
    """Of 40 layers in ten shards a side, or in ten and six."""
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(40)]
    maps = [{name: f"s-{at // size}" for at, name in enumerate(names)} for size in per_shard]
    pairs, *checkpoints = line_up(*maps)
    work = schedule(pairs, *checkpoints)
    sizes = Counter({visit.shard: 1 for visit in work.visits})
    assert (work.unhurried().peak(sizes), work.peak(sizes)) == (2, 4)


# Byte ranges


@given(
    st.lists(st.tuples(st.integers(0, 8 * NEIGHBOUR), st.integers(0, 2 * NEIGHBOUR)), max_size=20)
)
def test_coalesced_ranges_hold_every_tensor_and_little_else(spans):
    """Ascending, apart by more than a gap; every wanted byte, at both ends too."""
    wanted = [
        TensorInfo(str(n), "U8", (size,), "s", start, start + size)
        for n, (start, size) in enumerate(spans)
    ]
    ranges = coalesced(wanted)  # of tensors that overlap too, which no checked header has
    assert ranges == coalesced(wanted[::-1])
    assert all(before[1] + NEIGHBOUR < after[0] for before, after in pairwise(ranges))
    assert all(start < stop for start, stop in ranges)
    filled = [info for info in wanted if info.end > info.start]
    assert all(
        sum(start <= info.start and info.end <= stop for start, stop in ranges) == 1
        for info in filled
    )
    assert {start for start, _ in ranges} <= {info.start for info in filled}
    assert {stop for _, stop in ranges} <= {info.end for info in filled}
    assert bool(ranges) == bool(filled)


def test_each_range_shifts_its_own_tensors(tmp_path, monkeypatch):
    """Tensors far apart come in ranges of their own; each lies in the part of its range."""
    gap = 1 << 19
    wanted = [
        TensorInfo(f"t{n}", "U8", (n + 1,), "s", n * gap + 13, n * gap + 13 + n + 1)
        for n in (3, 0, 2, 1)
    ]
    wanted.append(TensorInfo("empty", "U8", (0,), "s", 13, 13))

    def copied(file, start, stop, write, by):
        write(b"x" * (stop - start))

    monkeypatch.setattr(hub, "copy_range", copied)
    source = ByteRanges(None, tuple(wanted), tmp_path / "part")
    source.fetch(Transfer(print))
    content = (tmp_path / "part").read_bytes()
    for info in wanted[:4]:
        start = info.start + source.shifts[info.start]
        assert content[start : start + info.parameters] == b"x" * info.parameters


@pytest.mark.parametrize(("size", "filtered", "fetch", "is_here", "ranges"), [
    (51, True, "auto", False, True), (50, True, "auto", False, False),
    (51, False, "auto", False, False), (50, False, "ranges", False, True),
    (900, True, "shards", False, False), (900, True, "ranges", True, False),
])  # fmt: skip
def test_ranges_come_where_they_save_a_tenth(
    monkeypatch, tmp_path, size, filtered, fetch, is_here, ranges
):
    """Of 45 bytes that are wanted; a filter must be given, or ranges asked for."""
    monkeypatch.setattr(hub, "in_cache", lambda file: is_here)
    pairs, _, tuned = line_up({}, dict.fromkeys("abc", "1"))
    for number, pair in enumerate(pairs):
        info = replace(pair.tuned.info, start=15 * number + 7, end=15 * number + 22)
        pairs[number] = replace(pair, tuned=replace(pair.tuned, info=info))
    file = hub.RemoteFile("1", size, None, repo="o/m", commit="0" * 40, offline=False)
    tuned.sources["1"] = whole = WholeFile(file=file)
    options = {"access": Access(fetch=fetch), "filtered": filtered, "scratch": tmp_path}
    found = _with_sources(tuned, "tuned", pairs=pairs, **options).sources["1"]
    wanted = tuple(pair.tuned.info for pair in pairs)
    assert found == (ByteRanges(file, wanted, tmp_path / "tuned-0.part") if ranges else whole)


# The disk

FULL = "{}.0 kB of disk are needed at {{}}, {}.0 kB are free"


@pytest.fixture
def aligned(monkeypatch):
    """Two shards of a base and one of the other side, none of them here."""
    pairs, *sides = line_up({"a": "1", "b": "2", "c": "2"}, dict.fromkeys("abc", "1"))
    for side, shard, size in (("base", "1", 1000), ("base", "2", 2000), ("tuned", "1", 4000)):
        file = hub.RemoteFile(shard, size, None, repo=side, commit="0", offline=False)
        sides[side == "tuned"].sources[shard] = WholeFile(file)
    monkeypatch.setattr(hub, "in_cache", lambda file: False)
    return AlignedPair(*sides, pairs, [])


def planned(monkeypatch, aligned, free, ours=(), **access):
    spaces = free if isinstance(free, dict) else {cache_folder(): free, Path(): free}
    monkeypatch.setattr(plan, "_free", spaces.__getitem__)
    options = {"folder": Path(), "scratch": Path(), "ours": ours, "filtered": False}
    return plan.make_plan(aligned, Access(**access), **options)


@pytest.mark.parametrize(("access", "free", "frees", "peak", "problem", "hint"), [
    ({}, 7000, False, 7000, None, None),
    ({}, 6999, True, 6000, None, None),
    ({}, 6000, True, 6000, None, None),
    ({}, 5999, True, 6000, FULL.format(6, 6), plan.DISK_HINT),
    ({"owns_cache": False}, 7000, False, 7000, None, None),
    ({"owns_cache": False}, 6999, False, 7000, FULL.format(7, 7), plan.SHARED_HINT),
    ({"max_disk": 6000}, 9000, True, 6000, None, None),
    ({"max_disk": 5999}, 9000, True, 6000,
     "fetched shards need 6.0 kB of disk at once, --max-disk allows 6.0 kB",
     "give --max-disk 6KB or more, or audit less (--layer, --module)"),
    ({"max_disk": 6000}, 1000, True, 6000, FULL.format(6, 1), plan.DISK_HINT),
])  # fmt: skip
def test_shards_are_removed_where_the_disk_is_too_small_for_all(
    monkeypatch, aligned, access, free, frees, peak, problem, hint
):
    """Then a base shard comes once the one before it has gone."""
    made = planned(monkeypatch, aligned, free, **access)
    assert (made.frees, made.peak, made.to_move, made.free) == (frees, peak, 7000, free)
    assert [visit.after for visit in made.work.visits] == [0, 0, int(frees)]
    sources = [*made.base.sources.values(), *made.tuned.sources.values()]
    assert [source.keep for source in sources] == [not frees] * 3
    words = made.fault and (made.fault.message, made.fault.hint)
    assert words == (problem and (problem.format(cache_folder()), hint))


def test_what_an_earlier_run_fetched_counts_and_goes(monkeypatch, aligned):
    """What was there before this audit stays; neither needs more room."""
    sources = aligned.base.sources
    sources["1"] = replace(sources["1"], path=Path("1"))
    ours = [sources["1"].identity]
    for fetched, peak, keeps in (((), 6000, [True, False]), (ours, 7000, [False, False])):
        made = planned(monkeypatch, aligned, 6000, fetched)
        assert (made.peak, made.to_move, made.frees, made.fault) == (peak, 6000, False, None)
        made = planned(monkeypatch, aligned, 9000, fetched, max_disk=6500)
        assert [source.keep for source in made.base.sources.values()] == keeps
        assert planned(monkeypatch, aligned, 5999, fetched, owns_cache=False).fault


@pytest.mark.parametrize(("disks", "cache", "report", "full"), [
    (1, 1008, 1008, None), (1, 1007, 1007, 0), (2, 1000, 8, None), (2, 999, 8, 0), (2, 1000, 7, 1),
])  # fmt: skip
def test_each_disk_holds_its_part_of_shards_and_ranges(
    monkeypatch, aligned, disks, cache, report, full
):
    """Shards lie in the cache, ranges on the disk of the report."""
    aligned = replace(aligned, pairs=aligned.pairs[:1])
    file = aligned.tuned.sources["1"].file
    aligned.tuned.sources["1"] = ByteRanges(file, (aligned.pairs[0].tuned.info,), Path())
    free = {cache_folder(): cache, Path(): report}
    monkeypatch.setattr(plan, "nearest_folder", lambda folder: Stub(
        stat=lambda: Stub(st_dev=disks > 1 and folder)))  # fmt: skip
    fault = planned(monkeypatch, aligned, free, owns_cache=False).fault
    assert fault is None if full is None else f" at {list(free)[full]}, " in fault.message


@pytest.mark.parametrize(("free", "limit", "room", "hint"), [
    (3000, None, None, None), (9000, 3000, None, None),
    (2999, None, "3.0 kB", "free some space, or move HF_HUB_CACHE"),
    (9000, 2999, "3.0 kB", "give --max-disk 3KB or more"),
    (2000, 2000, "2.0 kB", "free some space, or move HF_HUB_CACHE"),
])  # fmt: skip
def test_what_is_read_whole_must_fit_at_once(monkeypatch, aligned, free, limit, room, hint):
    monkeypatch.setattr(plan, "_free", lambda folder: free)
    sources = aligned.base.sources.values()
    with pytest.raises(ShadowError) if hint else nullcontext() as raised:
        assert plan.require_disk_at_once("they", sources, Access(max_disk=limit)) == 3000
    need = f"they need 3.0 kB of disk all at once, {room} may be used"
    assert raised is None or (raised.value.message, raised.value.hint) == (need, hint)
    assert plan.require_disk_at_once("they", [LocalFile(Path("3"))], Access(max_disk=0)) == 0


def test_tensors_are_summed_up_with_the_first_pair_that_reads_them(aligned):
    """Those that are not measured with a pair of their shard, or of a folder with the first."""
    pairs = aligned.pairs
    aligned.base.sources["3"] = LocalFile(Path("3"))
    aligned.tuned.sources["9"] = aligned.tuned.sources["1"]
    shards = {"near": ("base", "2"), "here": ("base", "3"), "far": ("tuned", "9"),
              "n": ("tuned", "1"), "same": ("base", "2")}  # fmt: skip
    skipped = [
        Skipped(side, replace(pairs[0].tuned.info, name=name, shard=shard), pairs[0].place, "", "")
        for name, (side, shard) in shards.items()
    ]
    skipped[-1] = replace(skipped[-1], status="identical")
    aligned = replace(aligned, pairs=[*pairs, pairs[0]], skipped=[*skipped, skipped[0]])

    def summed(aligned, level="full", chosen=Filter()):  # noqa: B008 - frozen
        sums = plan.summed_with(aligned, Stub(method=Method(level), chosen=chosen))
        return [
            " ".join(f"{side} {info.name}{info.shard}" for side, info in sums[pair.key])
            for pair in pairs if sums
        ]  # fmt: skip

    own = ["base a1 base here3 tuned a1 tuned n1", "base b2 base near2 tuned b1"]
    assert summed(aligned) == [*own, "base c2 tuned c1"]
    few = ["base a1 tuned a1", "base b2 tuned b1", "base c2 tuned c1"]
    assert summed(aligned, chosen=Filter(layers=(0,))) == few
    assert summed(aligned, "norms") == summed(replace(aligned, pairs=[])) == []
