"""Files of a checkpoint that change while it is audited: one line, and never a mixed report."""

from __future__ import annotations

import os

import planted
import pytest
from measuring import pair_of
from safetensors.torch import load_file, save_file

from shadow.audits import pair as pair_module
from shadow.audits.list_audit import audit_list
from shadow.audits.list_index import read_index
from shadow.audits.pair import Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.errors import KeptError, ShadowError
from shadow.run import workers
from shadow.spectra.delta import Method
from shadow.targets.lists import select

SETTINGS = Settings(Method(subspaces=False), Filter())
FILE = "model.safetensors"
SIZE = 64  # of a matrix, so that a file has several pages


@pytest.fixture
def pair(tmp_path):
    """A base and a model tuned from it, and beside them another one of the same layout."""
    planted.toy(tmp_path / "other", 2, size=SIZE)
    return pair_of(
        planted.toy(tmp_path / "base", 0, size=SIZE), planted.toy(tmp_path / "one", 1, size=SIZE)
    )


def replaced(tmp_path):
    """Another file under the same name, as `mv` and most programs that save a file do it."""
    os.replace(tmp_path / "other" / FILE, tmp_path / "one" / FILE)  # noqa: PTH105


def copied_over(tmp_path):
    """`cp -p`: the same inode, size and time of the content."""
    mine = tmp_path / "one" / FILE
    times = mine.stat()
    mine.write_bytes((tmp_path / "other" / FILE).read_bytes())
    os.utime(mine, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(tmp_path):
    os.truncate(tmp_path / "one" / FILE, 4096)


def emptied(tmp_path):
    """Zeros where weights were."""
    with (tmp_path / "one" / FILE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 4)
        file.write(bytes(size - size // 4))


def removed(tmp_path):
    (tmp_path / "one" / FILE).unlink()


CHANGES = [replaced, copied_over, cut, emptied, removed]


def changing(monkeypatch, where, name, change):
    """Make a change before the function of that name is called for the second time."""
    calls, before = [], getattr(where, name)

    def changed(*arguments, **more):
        calls.append(name)
        if len(calls) == 2:
            change()
        return before(*arguments, **more)

    monkeypatch.setattr(where, name, changed)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["summed", "measure_pair"])
def test_a_file_that_changes_while_it_is_read_is_refused(pair, tmp_path, monkeypatch, change, when):
    """Between two matrices, and in the middle of one: the fault is told, and no report is left."""
    changing(monkeypatch, workers, when, lambda: change(tmp_path))
    with pytest.raises(ShadowError) as refused:
        run_pair(pair, SETTINGS, tmp_path / "out", pair_module.Runtime(jobs=1))
    assert refused.value.message.startswith(f"{tmp_path / 'one' / FILE} changed")
    assert "\n" not in refused.value.message
    assert refused.value.hint
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("change", [replaced, emptied, removed], ids=lambda change: change.__name__)
def test_a_file_that_changes_before_the_report_is_placed_is_refused(
    pair, tmp_path, monkeypatch, change
):
    """When all is measured; the next run gives the report of the files as they are then."""
    before = pair_module.write_tables

    def late(*arguments, **more):
        change(tmp_path)
        return before(*arguments, **more)

    monkeypatch.setattr(pair_module, "write_tables", late)
    with pytest.raises(ShadowError, match=FILE):
        run_pair(pair, SETTINGS, tmp_path / "out")
    monkeypatch.setattr(pair_module, "write_tables", before)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    if change is replaced:
        assert run_pair(pair, SETTINGS, tmp_path / "out").measured == 2


def test_a_file_cut_short_under_way_does_not_end_a_list(pair, tmp_path, monkeypatch):
    """The pair fails, and the one after it is audited: no SIGBUS."""
    (tmp_path / "pairs.yaml").write_text(
        "- {base: ./base, tuned: ./one}\n- {base: ./base, tuned: ./other}\n"
    )
    changing(monkeypatch, workers, "summed", lambda: cut(tmp_path))
    selection = select(listed=str(tmp_path / "pairs.yaml"))
    runtime = pair_module.Runtime(jobs=1)
    list(audit_list(selection, SETTINGS, tmp_path / "out", runtime=runtime))
    failed, done = read_index(tmp_path / "out").rows
    assert (failed.state, done.state) == ("failed", "done")
    assert FILE in failed.error
    assert len(list((tmp_path / "out").rglob("matrices.parquet"))) == 1


def test_other_weights_of_the_same_time_are_no_report_that_is_there(tmp_path, pair):
    """Names, sizes, times and headers are shared by two folders out of one archive."""
    file = tmp_path / "one" / FILE
    os.utime(file, (1e9, 1e9))
    run_pair(pair, SETTINGS, tmp_path / "out")
    tensors = load_file(file)
    tensors[planted.UP.format(1)][0] *= 2
    save_file(tensors, file)
    os.utime(file, (1e9, 1e9))
    with pytest.raises(KeptError, match="files of tuned, by their hash"):
        run_pair(pair, SETTINGS, tmp_path / "out")
