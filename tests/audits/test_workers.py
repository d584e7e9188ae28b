"""What workers do between files and algebra: order, progress, outcomes and their words."""

import math
from dataclasses import replace
from types import SimpleNamespace as Stub

import pytest
import torch
from test_schedule import line_up

from shadow.checkpoints.held_files import WHOLE
from shadow.errors import ShadowError, UndecodableError
from shadow.run import workers
from shadow.run.journal import MatrixOutcome
from shadow.run.plan import Plan, schedule
from shadow.run.runtime import Progress, Runtime
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace
from shadow.spectra.sums import Extent

F32 = ("F32", "F32")
MEANS = Means(Method(), Workspace())


class Shard:
    """A shard of the Hub that comes in two pieces; it writes down what becomes of it."""

    is_local = False
    verified = True

    def __init__(self, name, events):
        self.name = name
        self.events = events

    def fetch(self, by):
        self.events.append(f"fetch {self.name}")
        by.report(4)
        by.report(6)

    def free(self):
        self.events.append(f"free {self.name}")


def failing(*_):
    raise ShadowError("x", "y")


def planned(base, tuned, events):
    """Pairs of tensors by their shards, none fetched ahead; the tuned side is a folder."""
    pairs, *sides = line_up(base, tuned, {("tuned", shard) for shard in tuned.values()})
    for shard in sides[0].sources:
        sides[0].sources[shard] = Shard(shard, events)
    work = schedule(pairs, *sides).unhurried()
    return pairs, Plan(*sides, work, 20, True, 20, 99, None)


def test_shards_come_and_go_with_their_pairs_and_progress_is_shown(monkeypatch):
    """The largest pair first; the next shard once all of a step is done; each freed after it."""
    monkeypatch.setattr(workers, "_read_ahead", lambda pair, *sides: events.append(pair.cols))
    events, shown = [], []
    pairs, plan = planned({"a": "1", "b": "1", "c": "2"}, dict.fromkeys("abc", "t"), events)
    sized = {}
    for old, cols in zip(pairs, (5, 7, 6), strict=True):
        sized[old.key] = replace(old, cols=cols)
    steps = tuple(tuple(sized[pair.key] for pair in step) for step in plan.work.steps)
    plan = replace(plan, work=replace(plan.work, steps=steps))
    results = workers.in_workers(
        plan, lambda pair: pair.cols, Runtime(show=shown.append), 1, done=[sized[pairs[0].key]] * 2,
        weigh=lambda pair: 10 * pair.cols, note=lambda source: events.append(f"note {source.name}"),
    )  # fmt: skip
    assert [*results] == [7, 5, 6]
    assert events == [
        "note 1", "fetch 1", 7, 5, "free 1", "note 2", "fetch 2", 6, "free 2",
    ]  # fmt: skip
    steps = ((2, 100, 0), (2, 100, 4), (2, 100, 10), (3, 170, 10), (4, 220, 10), (4, 220, 14),
             (4, 220, 20), (5, 280, 20))  # fmt: skip
    assert shown == [Progress(done, 5, spent, 280, moved, 20) for done, spent, moved in steps]
    assert workers.cost(sized[pairs[0].key]) == workers.COSTS["full"].operations((2, 5))


def test_an_audit_of_nothing_ends_and_one_that_is_closed_stops_its_downloads(monkeypatch):
    monkeypatch.setattr(workers, "_read_ahead", lambda *_: None)
    stops, shown = [], []
    pairs, plan = planned({"a": "1", "b": "2"}, {"a": "t", "b": "t"}, [])
    empty = replace(plan, work=replace(plan.work, steps=((),), visits=()))
    assert not [*workers.in_workers(empty, print, Runtime(show=shown.append), 1)]
    assert shown == [Progress(0, 0, 0, 1, 0, 20)]
    plan.base.sources["1"].fetch = lambda by: stops.append(by.stop)
    results = workers.in_workers(plan, lambda pair: pair.key, Runtime(), 1)
    assert next(results) == pairs[0].key
    assert not stops[0].is_set()
    results.close()
    assert stops[0].is_set()
    plan.base.sources["1"].fetch = failing
    with pytest.raises(ShadowError, match="x"):
        next(workers.in_workers(plan, print, Runtime(), 1))


@pytest.mark.parametrize(("size", "ahead"), [(WHOLE, 1), (WHOLE + 1, 0)])
def test_what_is_read_once_is_read_ahead(size, ahead):
    """A source that fails is left to the worker."""
    pairs, *sides = line_up({"a": "1"}, {"a": "2"})
    (pair,) = pairs
    object.__setattr__(pair.base.info, "end", size)
    read = []

    file = Stub(read_ahead=lambda *range: read.append(range))
    sides[0].sources["1"] = Stub(located=lambda info: (file, Stub(start=3, end=8)))
    sides[1].sources["2"] = Stub(located=failing)
    workers._read_ahead(pair, *sides)
    assert read == [(3, 8)] * ahead


@pytest.mark.parametrize("fault", [None, UndecodableError("of a new kind", "h")])
def test_an_outcome_says_what_it_is_of(monkeypatch, fault):
    """Its key, whether bytes were verified, and checksums of what was fetched."""
    looked = []

    def measured(pair, base, tuned, means):
        if fault:
            raise fault
        assert means.space is workers.own_workspace() is not MEANS.space
        return MatrixOutcome("identical")

    def source(name, verified):
        return Stub(
            verified=verified, require_unchanged=lambda: looked.append(name),
            checksum=lambda info: None if info.name == "b" else f"{name} {info.name}",
        )  # fmt: skip

    monkeypatch.setattr(workers, "_measured", measured)
    pairs, *sides = line_up({"a": "1", "b": "1"}, {"a": "2", "b": "2", "c": "2"})
    for side, name, verified in zip(sides, "12", (True, None), strict=True):
        side.sources[name] = source(name, verified)
    infos = [pair.tuned.info for pair in pairs]
    bases = [replace(info, shard="1") for info in infos]
    summed = {pairs[0].key: [("base", bases[0]), ("base", bases[1]), ("base", bases[2]),
                             ("tuned", infos[0])]}  # fmt: skip
    found = workers.outcome_of(pairs[0], *sides, MEANS, summed)
    assert (found.key, found.verified) == (pairs[0].key, (True, None))
    status = ("skipped", "quantized", "of a new kind") if fault else ("identical", None, None)
    assert (found.status, found.reason, found.detail) == status
    assert found.checksums == {"base": {"a": "1 a", "c": "1 c"}, "tuned": {"a": "2 a"}}
    assert looked == ["1", "2"]
    assert 0 < found.seconds < 10
    assert workers.outcome_of(pairs[2], *sides, MEANS, {}).verified == (None, None)


VECTORS = [  # base, tuned -> norms, zero, cast, detail
    ([3.0, 4.0], [3.0, 4.0], (0.0, 5.0), None, None, "d"),
    ([3.0, 4.0], [0.0, 0.0], (5.0, 5.0), "tuned", "neither", "d"),
    ([0.0, 0.0], [3.0, 4.0], (5.0, 0.0), None, "neither", workers._FROM_ZERO),
    ([0.0, 0.0], [0.0, 0.0], (0.0, 0.0), None, None, "d"),
    ([1.0, 2.0], [2.0, 4.0], (5**0.5, 5**0.5), None, "neither", "d"),
    ([3e30, 4e30], [3e30, 8e30], (4e30, 5e30), None, "neither", "d"),
]


@pytest.mark.parametrize(("base", "tuned", "norms", "zero", "cast", "detail"), VECTORS)
def test_vectors_have_norms(base, tuned, norms, zero, cast, detail):
    sides = Sides(torch.tensor([base]), torch.tensor([tuned]), torch.float32, Workspace())
    found = workers._of_vector(sides, F32, "d")
    assert (found.delta_norm, found.base_norm) == pytest.approx(norms)
    assert (found.status, found.reason) == ("skipped", "not_a_matrix")
    assert (found.zero, found.cast, found.detail) == (zero, cast, detail)


@pytest.mark.parametrize(("size", "reason", "detail", "nonfinite"), [
    (Extent(math.nan, 1.0, math.nan), "nonfinite", "in the base tensor", ("base",)),
    (Extent(1.0, math.inf, 1.0), "nonfinite", "in the tuned tensor", ("tuned",)),
    (Extent(math.inf, math.nan, 0.0), "nonfinite", "in the base and the tuned tensor",
     ("base", "tuned")),
    (Extent(1e200, 2e-3, 0.0), "out_of_range",
     "up to 1.0e+200 in the base, up to 2.0e-03 in the tuned model", ()),
    (Extent(0.0, 0.0, 3.0), "out_of_range", "up to 3.0e+00 in their difference", ()),
])  # fmt: skip
def test_what_cannot_be_summed_is_named(size, reason, detail, nonfinite):
    found = workers._broken(size)
    assert (found.status, found.reason, found.detail) == ("skipped", reason, detail)
    assert found.nonfinite == nonfinite
