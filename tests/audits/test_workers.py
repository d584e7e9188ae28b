"""What workers do between files and algebra: the order of shards and pairs, and progress."""

from dataclasses import replace

import pytest
from test_schedule import line_up

from shadow.run import workers
from shadow.run.plan import Plan, schedule
from shadow.run.runtime import Progress, Runtime


class Shard:
    """A shard of the Hub that comes in two pieces; it writes down what becomes of it."""

    is_local = False

    def __init__(self, name, events):
        self.name = name
        self.events = events

    def fetch(self, by):
        self.events.append(f"fetch {self.name}")
        by.report(4)
        by.report(6)

    def free(self):
        self.events.append(f"free {self.name}")


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
    plan.base.sources["1"].fetch = [].index  # which raises
    with pytest.raises(ValueError, match="list"):
        next(workers.in_workers(plan, print, Runtime(), 1))
