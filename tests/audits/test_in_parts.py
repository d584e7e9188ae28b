"""A pair in parts: where it is cut, its report as by one process, what each part fetches."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import planted
import pyarrow.parquet as pq
import pytest
import torch
from measuring import pair_of
from measuring import report_contents as written

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.engines import engine as engine_module
from shadow.engines.engine import Ended, InProcess
from shadow.engines.pair import Parts, cut, run_pair
from shadow.errors import BusyError, ShadowError
from shadow.run import rows
from shadow.run.journal import remove_unfinished
from shadow.run.plan import shards_of
from shadow.run.runtime import Progress, Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.telling.reading import read_summary

SETTINGS = Settings(Method(), Filter())
SIDES = ("base", "tuned")
NAMES = [
    f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(12) for part in ("up", "down")
]


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up": (48, 32), "down": (32, 48)}
    return {
        name: torch.randn(*shapes[name.split(".")[4][:-5]], generator=generator) for name in NAMES
    } | {"model.norm.weight": torch.randn(32, generator=generator)}


def pair_in(folder: Path, more=()):
    sides = [(folder / side, {**dict(more), **weights(seed)}) for seed, side in enumerate(SIDES)]
    return pair_of(*(planted.sharded(*side, 6) for side in sides))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_in(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """The report of one process."""
    return run_pair(pair, SETTINGS, tmp_path_factory.mktemp("whole"))


def lined_up(tmp_path: Path, base_shards: int, tuned_shards: int):
    base = open_folder(str(planted.sharded(tmp_path / "b", weights(0), base_shards)))
    tuned = open_folder(str(planted.sharded(tmp_path / "t", weights(1), tuned_shards)))
    pairs, _ = pair_checkpoints(base, tuned, Filter())
    return pairs


@pytest.mark.parametrize("count", [1, 2, 3, 6, 20])
def test_parts_are_whole_base_shards(tmp_path, count):
    """As many parts as asked for, six at most, none sharing a shard."""
    pairs = lined_up(tmp_path, 6, 6)
    parts = cut(pairs, count, is_fetched=True)
    assert len(parts) == min(count, 6)
    assert sorted(pair.key for part in parts for pair in part) == sorted(pair.key for pair in pairs)
    assert cut([], count, is_fetched=True) == []
    in_parts = [{shard for pair in part for shard in shards_of(pair)} for part in parts]
    assert [len(shards) for shards in in_parts] == [12 / len(parts)] * len(parts)


def test_a_cut_goes_where_the_least_lies_on_both_sides(tmp_path):
    """Six and four shards: at most one tuned shard lies on both sides of a cut."""
    whole = lined_up(tmp_path / "whole", 1, 1)
    assert len(cut(whole, 4, is_fetched=True)) == 1, "one file is one part"
    assert [len(part) for part in cut(whole, 4, is_fetched=False)] == [6, 6, 6, 7]
    pairs = lined_up(tmp_path, 6, 4)
    for count, shared in ((2, 0), (3, 2)):
        parts = cut(pairs, count, is_fetched=True)
        shards = [{shard for pair in part for shard in shards_of(pair)} for part in parts]
        assert len(parts) == count
        assert sum(map(len, shards)) - len(set.union(*shards)) <= shared
        assert sum(side == "base" for part in shards for side, _ in part) == 6


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_report_is_that_of_one_process(tmp_path, pair, whole, count):
    """Every table and the summary, byte for byte of their data; nothing is left of the parts."""
    states: list[Progress] = []
    runtime = Runtime(elsewhere=Parts(InProcess(), count).measure, show=states.append)
    parted = run_pair(pair, SETTINGS, tmp_path / "parted", runtime)
    assert written(parted.folder) == written(whole.folder)
    assert parted.measured == whole.measured == 24
    assert not list(parted.folder.rglob(".partial"))
    assert (states[-1].done, states[-1].cost_done) == (states[-1].total, states[-1].cost_total)
    assert [state.done for state in states] == sorted(state.done for state in states)


@pytest.mark.parametrize("limit", ["GROUP", "GROUP_BYTES"])
def test_a_large_report_is_written_in_row_groups(tmp_path, pair, whole, monkeypatch, limit):
    """Every matrix is whole in one group; all else is as in a report in one piece."""
    monkeypatch.setattr(rows, "CHUNK", 5)
    monkeypatch.setattr(rows, limit, 10)
    cut = run_pair(pair, SETTINGS, tmp_path / "cut")
    for name in ("matrices", "spectra", "tensors"):
        file = pq.ParquetFile(cut.folder / f"{name}.parquet")
        assert file.num_row_groups >= 4
        assert file.read().equals(pq.read_table(whole.folder / f"{name}.parquet"))
    file = pq.ParquetFile(cut.folder / "matrices.parquet")
    for number in range(file.num_row_groups):
        subjects = Counter(file.read_row_group(number)["subject"].to_pylist())
        assert len(set(subjects.values())) == 1
    assert cut.summary == whole.summary
    assert read_summary(cut.folder)[0] == whole.summary


class Dying(InProcess):
    """Its second task ends after three matrices, as if its machine were lost."""

    def as_completed(self, watch=None):
        first, second, *_ = self._waiting
        yield Ended(first, first.work(first.runtime()), None)
        recorded = []

        def show(state: Progress) -> None:
            recorded.append(state)
            if state.done == 3:
                raise KeyboardInterrupt

        runtime = second.runtime()
        try:
            second.work(type(runtime)(**{**vars(runtime), "jobs": 1, "show": show}))
        except KeyboardInterrupt as stop:
            yield Ended(second, None, stop)


@pytest.mark.parametrize("count", [None, 2, 3])
def test_what_parts_had_measured_is_not_measured_again(tmp_path, pair, whole, count):
    """Stopped in the second of three: the next run takes over what both had."""
    with pytest.raises(KeyboardInterrupt):
        run_pair(pair, SETTINGS, tmp_path / "out", Runtime(elsewhere=Parts(Dying(), 3).measure))
    elsewhere = None if count is None else Parts(InProcess(), count).measure
    again = run_pair(pair, SETTINGS, tmp_path / "out", Runtime(elsewhere=elsewhere))
    assert again.measured == 24 - 11
    assert written(again.folder) == written(whole.folder)


def test_clean_removes_parts(tmp_path, pair):
    """`shadow clean` leaves nothing of an audit that was stopped in its second part."""
    with pytest.raises(KeyboardInterrupt):
        run_pair(pair, SETTINGS, tmp_path / "out", Runtime(elsewhere=Parts(Dying(), 3).measure))
    assert len(list(remove_unfinished(tmp_path / "out"))) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


class Unmatched(InProcess):
    """Parts of an audit below a folder, measured where this process does not see it."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self.top = top

    def as_completed(self, watch=None):
        while self._waiting:
            task = self._waiting.popleft()
            yield Ended(task, task.work.args[-1], None)


class OfItsOwn(Unmatched):
    """Another machine's folder of that name, where it would measure for hours."""

    as_completed = InProcess.as_completed

    def submit(self, task):
        *rest, folder = task.work.args
        there = self.top / "elsewhere" / folder.relative_to(self.top)
        super().submit(replace(task, work=partial(task.work.func, *rest, there)))


class Changing(Unmatched):
    """The tuned side becomes another one between the driver and the part."""

    def as_completed(self, watch=None):
        for path in planted.sharded(self.top / "other", weights(2), 6).iterdir():
            path.replace(self.top / "tuned" / path.name)
        yield from InProcess.as_completed(self, watch)


@pytest.mark.parametrize(
    ("engine", "named"),
    [(Unmatched, "network file"), (OfItsOwn, "SHADOW_WORK_DIR"), (Changing, "")],
)
def test_a_part_that_measures_elsewhere_is_one_fault(tmp_path, monkeypatch, engine, named):
    """No report, and a hint at the folder."""
    monkeypatch.setattr(engine_module, "VISIBLE", 1)
    runtime = Runtime(elsewhere=Parts(engine(tmp_path), 3).measure)
    pair = pair_in(tmp_path)
    with pytest.raises(ShadowError) as caught:
        run_pair(pair, SETTINGS, tmp_path / "out", runtime)
    assert named in caught.value.hint
    assert not list(tmp_path.rglob("matrices.parquet"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_part_that_a_lost_machine_holds_is_tried_again(tmp_path, pair, whole):
    """NFS keeps the locks of a machine that is lost for longer than one task waits."""

    class Locked(InProcess):
        elsewhere = True

        def as_completed(self, watch=None):
            for _ in range(2):
                task = self._waiting.popleft()
                yield Ended(task, None, BusyError("another audit is writing", "wait"))
            yield from super().as_completed(watch)

    elsewhere = Parts(Locked(), 3).measure
    result = run_pair(pair, SETTINGS, tmp_path / "out", Runtime(elsewhere=elsewhere))
    assert written(result.folder) == written(whole.folder)


def test_a_filter_is_measured_in_one_part(tmp_path, pair):
    """What comes in byte ranges is decided over the whole pair."""
    chosen = Settings(Method(), Filter(layers=(0, 5)))
    one, parted = (
        run_pair(pair, chosen, tmp_path / name, Runtime(elsewhere=elsewhere)).folder
        for name, elsewhere in (("one", None), ("parted", Parts(InProcess(), 3).measure))
    )
    assert written(parted) == written(one)
