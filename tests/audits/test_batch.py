"""Lists audited into one folder: the index at every moment, going on, a process pool."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import json
import multiprocessing
import shutil
import signal
import time
from dataclasses import asdict, replace

import planted
import pyarrow.parquet as pq
import pytest
from command import Started, run_shadow
from effort import every
from hub import Hub
from lists import EVERYTHING, index_of, run, select_toys, some_rows, states, table_rows
from measuring import contents
from rich.console import Console

from shadow.audits import list_audit, list_index, sides
from shadow.audits.list_audit import audit_list
from shadow.audits.list_index import Standing, read_index, write_index
from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.cli import console
from shadow.cli.commands import app
from shadow.errors import ShadowError
from shadow.reports.columns import BATCH, HEADLINE
from shadow.spectra.delta import Method

# the index


def test_both_files_say_the_same_of_every_pair(toys):
    """A done pair has the figures of its summary.json, a failed one its error, both what they took;
    nothing is left.
    """
    run(select_toys(toys, "toy-a", "toy-bad*"), toys / "out")
    told = json.loads((toys / "out" / "index.json").read_text())
    assert told["counts"] == {"done": 3, "failed": 1, "kept": 0, "pending": 0}
    keys = ("position", "family", "pair", "state")
    assert [tuple(row[key] for key in keys) for row in told["pairs"]] == [
        (1, "toy-a", "base..one", "done"), (2, "toy-a", "base..two", "done"),
        (3, "toy-bad", "base..gone", "failed"), (4, "toy-bad", "base..one", "done"),
    ]  # fmt: skip
    for row in told["pairs"]:
        assert (row["bytes"], row["relation"]) == (0, "tuned")
        # a failure takes less than the last digit
        assert row["seconds"] > 0 or row["state"] == "failed"
        if row["state"] == "failed":
            assert row["error"] == f"no such folder: {toys / 'gone'}"
            assert ".safetensors" in row["hint"]
            assert {row[name] for name in (*HEADLINE, "matrices")} == {None}
            continue
        summary = json.loads((toys / "out" / row["folder"] / "summary.json").read_text())
        assert all(row[name] == summary["figures"][name] for name in HEADLINE)
        assert row["matrices"] == summary["figures"]["matrices"]
        assert (row["base"], row["tuned"]) == (summary["base"]["repo"], summary["tuned"]["repo"])
        assert (row["error"], row["hint"]) == (None, None)
    assert table_rows(toys / "out") == told["pairs"]
    assert pq.read_schema(toys / "out" / "batch.parquet").names == [column.name for column in BATCH]
    metadata = json.loads(pq.read_schema(toys / "out" / "batch.parquet").metadata[b"shadow"])
    assert metadata == {key: value for key, value in told.items() if key != "pairs"}
    names = {path.name for path in (toys / "out").iterdir()}
    assert names == {"batch.parquet", "index.json", "toy-a", "toy-bad"}


def test_the_index_is_right_before_each_pair(toys):
    """What is done is done, what is being measured or not reached is pending; both files say so
    when they are due.
    """
    seen, table = [], []

    def watched(pair, *rest, **options):
        seen.append(states(toys / "out"))
        table.append(tuple(row["state"] for row in table_rows(toys / "out")))
        return run_pair(pair, *rest, **options)

    run(select_toys(toys, "toy-a", "toy-bad", "toy-c*"), toys / "out", audit=watched)
    d, f, p = "done", "failed", "pending"
    rows = [(p, p, p, p, p), (d, p, p, p, p), (d, d, p, p, p), (d, d, f, p, p), (d, d, f, d, p)]
    assert [tuple(one.values()) for one in seen] == rows
    assert table == [rows[0]] * 5, "less than five seconds have passed"
    assert [row["state"] for row in table_rows(toys / "out")] == [d, d, f, d, d]


def failed(one, error="no such folder"):
    return replace(one, state="failed", error=error, hint="look again", seconds=0.5)


def test_rows_outlive_a_run_that_was_killed(tmp_path):
    """A row is on the disk before the next pair begins, though index.json is of before: failed ones
    too, which no report could tell of. A last line that was cut, and whatever stands below a broken
    line, is passed over.
    """
    rows = some_rows(4)
    standing = Standing(tmp_path, index_of(*rows))
    standing.set(failed(rows[0]))
    standing.set(failed(rows[1], "first"))
    standing.set(failed(rows[1], "second"))
    index = json.loads((tmp_path / "index.json").read_text())
    assert {one["state"] for one in index["pairs"]} == {"pending"}
    expected = (failed(rows[0]), failed(rows[1], "second"), *rows[2:])
    assert read_index(tmp_path).rows == expected
    journal = tmp_path / ".partial" / "rows.jsonl"
    whole = journal.read_bytes()
    broken = b"[]\n" + whole.splitlines()[1] + b"\n"
    for torn in (b'{"family": "family-3", "st', b"\xff\n", broken, b"7\n"):
        journal.write_bytes(whole + torn)
        assert read_index(tmp_path).rows == expected
    again = Standing(tmp_path, read_index(tmp_path))  # the next run
    assert len(journal.read_bytes().splitlines()) == 1
    assert read_index(tmp_path).rows == expected
    again.finish()
    assert read_index(tmp_path).rows == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.parquet", "index.json"]
    assert table_rows(tmp_path) == [asdict(one) for one in expected]


def test_a_journal_belongs_to_one_index(tmp_path):
    """Rows kept beside an index.json that was written again since are not laid over it."""
    rows = some_rows(2)
    Standing(tmp_path, index_of(*rows)).set(failed(rows[0]))
    kept = (tmp_path / ".partial" / "rows.jsonl").read_bytes()
    write_index(tmp_path, index_of(*rows))
    assert not (tmp_path / ".partial").exists()
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "rows.jsonl").write_bytes(kept)
    assert read_index(tmp_path).rows[0].state == "failed", "the same bytes: the same index"
    write_index(tmp_path, index_of(rows[0], failed(rows[1])))
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "rows.jsonl").write_bytes(kept)
    assert [one.state for one in read_index(tmp_path).rows] == ["pending", "failed"]


def test_a_rerun_reads_what_is_done_and_tries_the_rest_again(toys):
    """No report is written again, its seconds and bytes stay; what failed is tried, and what it
    took adds up.
    """
    selection = select_toys(toys, "toy-a:*", "toy-bad")
    run(selection, toys / "out")
    before = {path: path.stat().st_mtime_ns for path in (toys / "out").rglob("*/*/*")}
    first = {row.name: row for row in read_index(toys / "out").rows}
    planted.toy(toys / "gone", 5)
    said = []
    tried = run(selection, toys / "out", runtime=Runtime(say=said.append))
    assert [one.result.measured for one in tried] == [0, 0, 2, 0]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for row in read_index(toys / "out").rows:
        assert row.state == "done"
        assert (row.seconds > first[row.name].seconds) == (row.pair == "base..gone")
        assert row.seconds == first[row.name].seconds or row.pair == "base..gone"
    assert said[0] == "[1/4] toy-a:base..one: nothing to measure: the report is already there"
    assert said[2].startswith("[3/4] toy-bad:base..gone: done in ")
    assert said[2].endswith(" s, 138 % of the base matrices' norm, gate failed: lineage")


@pytest.mark.parametrize("change", every(2, ["settings", "report gone", "report broken", "list"]))
def test_what_no_longer_holds_is_pending_again(toys, change):
    """Other settings, a lost or broken report: pending until it is reached; pairs that left the
    list leave it.
    """
    run(select_toys(toys, "toy-a*"), toys / "out")
    settings, selection = EVERYTHING, select_toys(toys, "toy-a*")
    report = toys / "out" / "toy-a" / "base..one" / "matrices.parquet"
    if change == "settings":
        settings = Settings(Method("exact", subspaces=False), Filter(), spectra=False)
    elif change == "report gone":
        report.unlink()
    elif change == "report broken":
        report.write_bytes(b"PAR1")
    else:
        selection = select_toys(toys, "toy-a:base..two", "toy-c*")
    index = list_audit.begun(toys / "out", selection, settings)
    expected = {
        "settings": {"toy-a:base..one": "pending", "toy-a:base..two": "pending"},
        "list": {"toy-a:base..two": "done", "toy-c:base..two": "pending"},
    }
    assert {row.name: row.state for row in index.rows} == expected.get(
        change, {"toy-a:base..one": "pending", "toy-a:base..two": "done"}
    )
    run(selection, toys / "out", settings, runtime=Runtime(overwrite=True))
    assert set(states(toys / "out").values()) == {"done"}


SHARED = ("toy-a", "toy-c", "toy-odd")


def test_shards_into_one_folder_one_after_the_other(toys):
    """Each has a row for every pair of the list, and keeps those of the others."""
    names = ("toy-a:base..one", "toy-a:base..two", "toy-c:base..two", "toy-odd:base..odd")
    for number in (2, 1):
        selection = select_toys(toys, *SHARED, shard=f"{number}/2")
        run(selection, toys / "out")
        assert tuple(states(toys / "out")) == names
        pending = sum(state == "pending" for state in states(toys / "out").values())
        assert pending == (4 - len(selection.own) if number == 2 else 0)
    assert list(states(toys / "out").items()) == [(name, "done") for name in names]


def test_show_makes_the_index_of_shards_that_were_copied_together(toys, shadow):
    """The index of one list: rows in its order, with figures; the same as of one job but for what
    each pair took. What is lost meanwhile is no longer done.
    """
    for number in (1, 2):
        run(select_toys(toys, *SHARED, shard=f"{number}/2"), toys / f"{number}")
        shutil.copytree(toys / f"{number}", toys / "all", dirs_exist_ok=True)
    assert "pending" in states(toys / "all").values()
    shadow("show", "all").assert_done()
    run(select_toys(toys, *SHARED), toys / "one")
    took = {"seconds": None, "bytes": None}
    made, expected = (
        [asdict(row) | took for row in read_index(toys / name).rows] for name in ("all", "one")
    )
    assert made == expected
    assert [row["state"] for row in table_rows(toys / "all")] == ["done"] * 4
    before = (toys / "all" / "index.json").read_bytes()
    shadow("show", "all").assert_done()
    assert (toys / "all" / "index.json").read_bytes() == before
    shutil.rmtree(toys / "all" / "toy-c")
    shadow("show", "all").assert_done()
    assert states(toys / "all")["toy-c:base..two"] == "pending"


def test_a_copied_report_of_other_settings_is_not_done(toys, shadow):
    """It is `kept`, and its row says what differs; a report that no list names has a row at the
    end.
    """
    run(select_toys(toys, "toy-a"), toys / "out")
    other = Settings(Method("exact", subspaces=False), Filter(), spectra=False)
    run(select_toys(toys, "toy-c*"), toys / "other", other)
    shutil.copytree(toys / "other" / "toy-c", toys / "out" / "toy-c")
    shadow("show", "out").assert_done()
    *_, last = read_index(toys / "out").rows
    assert (last.name, last.state, last.position) == ("toy-c:base..two", "kept", None)
    assert "other settings" in last.error


def test_an_index_that_cannot_be_written_is_shown(toys, shadow):
    """While its list is audited, `show` says what is there and writes nothing."""
    run(select_toys(toys, "toy-a"), toys / "out")
    shutil.rmtree(toys / "out" / "toy-a" / "base..two")
    before = (toys / "out" / "index.json").read_bytes()
    with list_index.alone_in(toys / "out"):
        assert "1 pending" in shadow("show", "out").assert_done()
    assert (toys / "out" / "index.json").read_bytes() == before


def test_two_lists_at_once_into_one_folder_are_refused(toys):
    """The second is told what to do; the first goes on, and the folder is free afterwards."""
    first = audit_list(select_toys(toys, "toy-a*"), EVERYTHING, toys / "out")
    next(first)
    with pytest.raises(ShadowError, match="another list") as caught:
        run(select_toys(toys, "toy-c*"), toys / "out")
    assert "copied together" in caught.value.hint
    assert len(list(first)) == 1
    assert list(states(toys / "out")) == ["toy-a:base..one", "toy-a:base..two"]
    run(select_toys(toys, "toy-c*"), toys / "out")


def test_a_bug_in_one_pair_does_not_stop_the_others(toys, monkeypatch):
    """It stands in the index as failed, the rest is done, and at the end it keeps its traceback."""

    find = sides.find_checkpoint

    def buggy(reference, *rest):
        if reference.last_name == "one":
            raise KeyError("what no one expected")
        return find(reference, *rest)

    monkeypatch.setattr(sides, "find_checkpoint", buggy)
    monkeypatch.setattr(console, "out", Console(file=io.StringIO()))
    words = ["audit", "toy-a:*", "-o", str(toys / "out"), "--registry", str(toys)]
    with pytest.raises(ExceptionGroup) as caught:
        app(words, standalone_mode=False)
    assert caught.group_contains(KeyError, match="what no one expected")
    one, two = read_index(toys / "out").rows
    assert (one.state, two.state) == ("failed", "done")
    assert one.error == "KeyError: 'what no one expected'"


def test_bytes_are_those_that_came_over_the_network(toys, monkeypatch):
    """On a Hub a pair's bytes are the sizes of its shards; the next finds the base in the cache."""
    with Hub() as hub:
        for name in ("base", "one", "two"):
            hub.add(f"org/{name}", toys / name)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(toys / "home"))
        lines = (f"- {{base: org/base, tuned: org/{one}}}\n" for one in ("one", "two"))
        (toys / "l.yaml").write_text("".join(lines))
        run_shadow("audit", "--list", "l.yaml", "-o", "out", cwd=toys).assert_done(3)
        size = (toys / "one" / "model.safetensors").stat().st_size
        first = read_index(toys / "out").rows
        assert [row.bytes for row in first] == [2 * size, size]
        assert [len(row.base_commit) for row in first] == [40, 40]
        run_shadow("audit", "--list", "l.yaml", "-o", "out", cwd=toys).assert_done(3)
        assert read_index(toys / "out").rows == first


# killed and stopped


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_stopped_list_leaves_a_right_index_and_goes_on(tmp_path, how):
    """Stopped in the second of three pairs: done, pending, pending. The rerun reads, resumes,
    measures; its numbers are those of a run that was not stopped.
    """
    planted.toy(tmp_path / "base", 0, 2)
    planted.toy(tmp_path / "x1", 1, 2)
    planted.toy(tmp_path / "large", 0, 40, 300)
    planted.toy(tmp_path / "x2", 2, 40, 300)
    text = (
        "- {base: ./base, tuned: ./x1}\n- {base: ./large, tuned: ./x2}\n"
        "- {base: ./x1, tuned: ./base}\n"
    )
    (tmp_path / "l.yaml").write_text(text)
    command = ("audit", "--list", "l.yaml", "--jobs", "1", "--no-subspaces", "-o")
    child = Started(*command, "out", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        path.read_bytes().count(b"\n") > 3
        for path in tmp_path.glob("out/x2/*/.partial/journal.jsonl")
    ):
        time.sleep(0.01)
    stopped = child.kill(how)
    if how == signal.SIGINT:
        assert (stopped.code, stopped.out) == (130, "")
        assert stopped.err.splitlines()[-1] == "stopped; run the same command again to continue"
    rows = read_index(tmp_path / "out").rows
    assert [row.state for row in rows] == ["done", "pending", "pending"]
    if how == signal.SIGINT:  # else batch.parquet is of a few seconds before
        assert [row["state"] for row in table_rows(tmp_path / "out")] == [row.state for row in rows]
    assert (rows[1].seconds is not None) == (how == signal.SIGINT), (
        "what it took is known where there was time to say"
    )
    again = run_shadow(*command, "out", cwd=tmp_path)
    again.assert_done(3)
    told = [line.partition(": ")[2] for line in again.err.splitlines()]
    assert told[0] == "nothing to measure: the report is already there"
    assert told[1].startswith("resuming: ")
    assert [row.state for row in read_index(tmp_path / "out").rows] == ["done"] * 3
    run_shadow(*command, "whole", cwd=tmp_path).assert_done(3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# one pair is a function


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_files_of_the_command(toys, shadow):
    """run_pair mapped over the list by concurrent.futures, in processes that share nothing: the
    same reports, and the same fault with its hint.
    """
    selection = select_toys(toys, "toy-a", "toy-bad", "toy-c*")
    settings = Settings(Method(), Filter())
    audit = functools.partial(
        run_pair, settings=settings, output=toys / "pool", runtime=Runtime(jobs=1)
    )
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        futures = [pool.submit(audit, pair) for pair in selection.pairs]
        faults = [future.exception() for future in futures]
    assert [number for number, fault in enumerate(faults) if fault is not None] == [2]
    assert isinstance(faults[2], ShadowError)
    assert faults[2].message == f"no such folder: {toys / 'gone'}"
    assert ".safetensors" in faults[2].hint
    shadow("audit", "toy-a", "toy-bad", "toy-c*", "--registry", ".", "-o", "command").assert_done(1)
    assert contents(toys / "pool") == contents(toys / "command") != {}
    measured = [
        future.result() for future, fault in zip(futures, faults, strict=True) if fault is None
    ]
    found = {path.parent for path in toys.glob("command/*/*/matrices.parquet")}
    assert {result.folder.relative_to(toys / "pool") for result in measured} == {
        folder.relative_to(toys / "command") for folder in found
    }
