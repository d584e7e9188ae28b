"""Lists audited into one folder: the index at every moment, going on, a process pool."""

import io
import json
import re
import shutil
import signal
from dataclasses import asdict
from itertools import product

import planted
import pytest
import torch
from command import Started, run_shadow
from effort import every
from hub_pairs import found_below, until
from measuring import changed, contents
from rich.console import Console
from view import drawn

from shadow.checkpoints.pairing import Filter
from shadow.cli import console
from shadow.cli.commands import app
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError
from shadow.lists.document import list_document
from shadow.lists.index import (
    Index,
    ListRow,
    begun,
    read_index,
    report_folder,
    with_index,
    write_index,
)
from shadow.lists.perform import audit_pairs
from shadow.reports.columns import HEADLINE
from shadow.run import sides
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.lists import select
from shadow.text import inert

pytest_plugins = "hub_pairs"
EVERYTHING = Settings(Method(), Filter(), spectra=False)


def select_toys(toys, *targets, **options):
    return select(targets, registry=toys, **options)


def auditing(selection, output, settings=EVERYTHING, **options):
    outcomes = audit_pairs(selection.own, settings, output, numbered=True, **options)
    return with_index(selection, settings, output, outcomes)


def audited(*words, **options):
    return list(auditing(*words, **options))


def states(output):
    return {row.name: row.state for row in read_index(output).rows}


def some_rows(count):
    return [row(number, f"family-{number}", "base..tuned") for number in range(1, count + 1)]


def index_of(*rows):
    return Index("0.2.0", (1, {}), None, rows)


def row(position, family, pair="base..instruct", **columns):
    sides = ("org/base", "org/tuned")
    return ListRow(position, family, pair, "tuned", report_folder(family, pair), *sides, **columns)


def test_both_files_say_the_same_of_every_pair(toys):
    """A done pair has the figures of its summary, a failed one its error; nothing else is left."""
    audited(select_toys(toys, "toy-a", "toy-bad*"), toys / "out")
    text = (toys / "out" / "index.json").read_text()
    recorded = json.loads(text)
    assert text == f"{json.dumps(recorded, indent=2)}\n"
    assert recorded["counts"] == {"done": 3, "failed": 1, "kept": 0, "pending": 0}
    keys = ("position", "family", "pair", "state")
    assert [tuple(row[key] for key in keys) for row in recorded["pairs"]] == [
        (1, "toy-a", "base..one", "done"), (2, "toy-a", "base..two", "done"),
        (3, "toy-bad", "base..gone", "failed"), (4, "toy-bad", "base..one", "done"),
    ]  # fmt: skip
    for row in recorded["pairs"]:
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
    names = {path.name for path in (toys / "out").iterdir()}
    assert names == {"index.json", "toy-a", "toy-bad"}


def test_the_index_is_there_before_the_first_pair(toys):
    """What is measured or not reached is pending; the file follows when it is due."""
    seen = []

    def watched(pair, *rest, **options):
        seen.append(tuple(states(toys / "out").values()))
        return run_pair(pair, *rest, **options)

    audited(select_toys(toys, "toy-a", "toy-bad", "toy-c*"), toys / "out", audit=watched)
    end = ("done", "done", "failed", "done", "done")
    assert seen[0] == ("pending",) * 5
    assert all(one in (now, "pending") for rows in seen for one, now in zip(rows, end, strict=True))


def test_a_rerun_reads_what_is_done_and_tries_the_rest_again(toys):
    """No report is written again; what failed is tried, and what it took adds up."""
    selection = select_toys(toys, "toy-a:*", "toy-bad")
    audited(selection, toys / "out")
    before = {path: path.stat().st_mtime_ns for path in (toys / "out").rglob("*/*/*")}
    first = {row.name: row for row in read_index(toys / "out").rows}
    planted.toy(toys / "gone", 5)
    tried = audited(selection, toys / "out")
    assert [one.result.measured for one in tried] == [0, 0, 2, 0]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for row in read_index(toys / "out").rows:
        assert row.state == "done"
        assert (row.seconds > first[row.name].seconds) == (row.pair == "base..gone")
        assert row.seconds == first[row.name].seconds or row.pair == "base..gone"


@pytest.mark.parametrize("change", ["settings", "report gone", "report broken", "list"])
def test_what_no_longer_holds_is_pending_again(toys, change):
    """Pending until it is reached; pairs that left the list leave it."""
    settings, selection = EVERYTHING, select_toys(toys, "toy-a*")
    audited(selection, toys / "out")
    report = toys / "out" / "toy-a" / "base..one" / "matrices.parquet"
    expected = {"toy-a:base..one": "pending", "toy-a:base..two": "done"}
    if change == "settings":
        settings = Settings(Method("exact"), Filter(), spectra=False)
        expected["toy-a:base..two"] = "pending"
    elif change == "list":
        selection = select_toys(toys, "toy-a:base..two", "toy-c*")
        expected = {"toy-a:base..two": "done", "toy-c:base..two": "pending"}
    else:
        report.write_bytes(b"PAR1")
        if change == "report gone":
            report.unlink()
    index = begun(toys / "out", selection, settings)
    assert {row.name: row.state for row in index.rows} == expected
    audited(selection, toys / "out", settings, runtime=Runtime(overwrite=True))
    assert set(states(toys / "out").values()) == {"done"}


SHARED = ("toy-a", "toy-c", "toy-odd")


def test_shards_make_the_index_of_one_list(toys, shadow):
    """In one folder or copied together: rows in the list's order, with the figures of one job."""
    names = ("toy-a:base..one", "toy-a:base..two", "toy-c:base..two", "toy-odd:base..odd")
    for number in (2, 1):
        selection = select_toys(toys, *SHARED, shard=f"{number}/2")
        audited(selection, toys / "shared")
        assert tuple(states(toys / "shared")) == names
        pending = sum(state == "pending" for state in states(toys / "shared").values())
        assert pending == (4 - len(selection.own) if number == 2 else 0)
        audited(selection, toys / f"{number}")
        shutil.copytree(toys / f"{number}", toys / "all", dirs_exist_ok=True)
    assert "pending" in states(toys / "all").values()
    shadow("show", "all").assert_done()
    audited(select_toys(toys, *SHARED), toys / "one")
    took = {"seconds": None, "bytes": None}
    made = [[asdict(row) | took for row in read_index(toys / name).rows]
            for name in ("all", "shared", "one")]  # fmt: skip
    assert made[0] == made[1] == made[2]
    before = (toys / "all" / "index.json").read_bytes()
    shadow("show", "all").assert_done()
    assert (toys / "all" / "index.json").read_bytes() == before
    shutil.rmtree(toys / "all" / "toy-c")
    shadow("show", "all").assert_done()
    assert states(toys / "all")["toy-c:base..two"] == "pending"


def test_a_copied_report_of_other_settings_is_not_done(toys, shadow):
    """It is `kept`, with what differs; a report that no list names has a row at the end."""
    audited(select_toys(toys, "toy-a"), toys / "out")
    other = Settings(Method("exact"), Filter(), spectra=False)
    audited(select_toys(toys, "toy-c*"), toys / "other", other)
    shutil.copytree(toys / "other" / "toy-c", toys / "out" / "toy-c")
    shadow("show", "out").assert_done()
    *_, last = read_index(toys / "out").rows
    assert (last.name, last.state, last.position) == ("toy-c:base..two", "kept", None)
    assert "other settings" in last.error


def test_two_lists_at_once_into_one_folder_are_refused(toys, shadow):
    """The first goes on, and the folder is free afterwards; `show` writes nothing meanwhile."""
    first = auditing(select_toys(toys, "toy-a*"), toys / "out")
    next(first)
    with pytest.raises(ShadowError):
        audited(select_toys(toys, "toy-c*"), toys / "out")
    before = (toys / "out" / "index.json").read_bytes()
    shadow("show", "out").assert_done()
    assert (toys / "out" / "index.json").read_bytes() == before
    assert len(list(first)) == 1
    assert list(states(toys / "out")) == ["toy-a:base..one", "toy-a:base..two"]
    audited(select_toys(toys, "toy-c*"), toys / "out")


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


def test_bytes_are_those_that_came_over_the_network(toys, hub, run):
    """On a Hub a pair's bytes are the sizes of its shards; the next finds the base in the cache."""
    for name in ("base", "one", "two"):
        hub.add(f"org/{name}", toys / name)
    lines = (f"- {{base: org/base, tuned: org/{one}}}\n" for one in ("one", "two"))
    (toys / "l.yaml").write_text("".join(lines))
    size = (toys / "one" / "model.safetensors").stat().st_size
    for _ in range(2):
        run("audit", "--list", "l.yaml", "-o", "out").assert_done(3)
        rows = read_index(toys / "out").rows
        assert [(row.bytes, len(row.base_commit)) for row in rows] == [(2 * size, 40), (size, 40)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_list_leaves_a_right_index_and_goes_on(tmp_path, how):
    """Done, pending, pending; the rerun's numbers are those of a run that was not stopped."""
    planted.toy(tmp_path / "base", 0, 2)
    planted.toy(tmp_path / "x1", 1, 2)
    planted.toy(tmp_path / "large", 0, 40, 300)
    planted.toy(tmp_path / "x2", 2, 40, 300)
    text = (
        "- {base: ./base, tuned: ./x1}\n- {base: ./large, tuned: ./x2}\n"
        "- {base: ./x1, tuned: ./base}\n"
    )
    (tmp_path / "l.yaml").write_text(text)
    command = ("audit", "--list", "l.yaml", "--jobs", "1", "-o")
    child = Started(*command, "out", cwd=tmp_path)

    def measured():
        journals = found_below(tmp_path / "out/x2", "journal.jsonl")
        return [path for path in journals if path.read_bytes().count(b"\n") > 3]

    until(measured, 120)
    stopped = child.kill(how)
    assert how == signal.SIGKILL or (stopped.code, stopped.out) == (130, "")
    if how == signal.SIGKILL:  # else the files are of a moment before
        run_shadow("show", "out", cwd=tmp_path).assert_done()
    rows = read_index(tmp_path / "out").rows
    assert [row.state for row in rows] == ["done", "pending", "pending"]
    assert (rows[1].seconds is not None) == (how == signal.SIGINT), (
        "what it took is known where there was time to say"
    )
    again = run_shadow(*command, "out", cwd=tmp_path)
    again.assert_done(3)
    assert "resuming: " in again.err.splitlines()[1]
    assert [row.state for row in read_index(tmp_path / "out").rows] == ["done"] * 3
    run_shadow(*command, "whole", cwd=tmp_path).assert_done(3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# the command line


def test_a_list_on_the_command_line(toys, shadow):
    """Every pair is tried, the fault told, exit code 1; JSON of the run is that of `show`."""
    (toys / "l.txt").write_text("toy-bad\n# a comment\ntoy-c\n")
    words = ("audit", "--list", "l.txt", "--registry", ".", "-o", "out")
    done = shadow(*words)
    out = done.assert_done(1)
    assert [line.split()[1:4] for line in out.splitlines() if line[1:2].isdecimal()] == [
        ["toy-bad", "base..gone", "failed"],
        ["toy-bad", "base..one", "broken"],
        ["toy-c", "base..two", "broken"],
    ]
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "toy-bad:base..gone" in error
    shown = json.loads(shadow("show", "out", "--format", "json").assert_done())
    assert shown["counts"] == {"done": 2, "failed": 1, "kept": 0, "pending": 0}
    assert [report["family"] for report in shown["reports"]] == ["toy-bad", "toy-c"]
    again = json.loads(shadow(*words, "--format", "json").assert_done(1))
    for one in (shown, again):
        one["pairs"] = [row | {"seconds": 0} for row in one["pairs"]]
    for key in ("pairs", "reports", "counts", "settings", "list"):
        assert again[key] == shown[key]


@pytest.mark.parametrize(
    ("targets", "code"), [(("toy-a", "toy-odd"), 3), (("toy-odd", "toy-bad", "toy-a"), 1)]
)
@pytest.mark.parametrize("glob", every(2, ["*", ""]))
def test_the_exit_code_is_the_first_of_1_4_3_0(toys, shadow, targets, code, glob):
    """In a list and without one: a fault before what --strict objects to, whichever came first."""
    targets = [*targets[:-1], targets[-1] + glob]
    shadow("audit", *targets, "--registry", ".", "-o", "out", "--strict").assert_done(code)


def test_a_gate_that_an_adapter_never_passes_does_not_apply_anywhere(tmp_path, shadow):
    """The log of a list, `show` and `gate` name its rank alike, and none says that it failed."""
    planted.toy(tmp_path / "base", 0, size=16)
    torch.manual_seed(0)
    factors = {planted.UP.format(layer): torch.randn(2, 16, 4) for layer in (0, 1)}
    pairs = {name: (b / 50, a.T) for name, (b, a) in factors.items()}
    planted.adapter(tmp_path / "adapter", pairs)
    (tmp_path / "l.yaml").write_text("- {base: ./base, tuned: ./adapter, name: m:a..b}\n")
    audited = shadow("audit", "--list", "l.yaml", "-o", "out")
    assert audited.code == 0, audited.err
    shown = shadow("show", "out/m/a..b", "--full").out
    gated = shadow("gate", "out", "--fail-on", "spikes > 99").out
    for text in (audited.err, shown, gated):
        lines = [line for line in text.splitlines() if re.search(r"\brank\b", line)]
        (own,) = [line for line in lines if "does not apply" in line]
        assert "rank does not apply" in " ".join(own.split())
        assert "failed" not in own


def test_a_pair_whose_rule_failed_has_one_state_in_its_list(toys, shadow):
    """Table and totals count a pair once, by the rules; index.json has how its audit ended."""
    words = ("audit", "toy-a:*", "--registry", ".", "-o", "out")
    for command, state in (
        ((*words, "--fail-on", "matrices > 0"), "rule FAILED"),
        ((*words, "--fail-on", "matrices > 99"), "broken"),
        (words, "broken"),
        (("show", "out"), "broken"),
    ):
        out = shadow(*command).out
        table = out.partition("Rules")[0]
        assert table.count(f" {state} ") == 2
        assert f"pairs  2: 2 {state};" in table
        assert "done" not in table
    assert set(states(toys / "out").values()) == {"done"}


def test_no_path_to_nothing_follows_a_failure(tmp_path, shadow):
    """Of two pairs that failed nothing is left to show; of one of two there is."""
    planted.toy(tmp_path / "base", 0)
    planted.toy(tmp_path / "tuned", 1)
    (tmp_path / "one.yaml").write_text("one: {base: ./base, tuned: ./none}\n")
    (tmp_path / "two.yaml").write_text("two: {base: ./base, tuned: ./gone, more: ./tuned}\n")
    words = ("audit", "one", "two:base..tuned", "--registry", ".", "-o")
    out = shadow(*words, "none").assert_done(1)
    assert "2 failed" in out
    assert "none" not in out
    assert not (tmp_path / "none").exists()
    out = shadow("audit", "two", "--registry", ".", "-o", "some").assert_done(1)
    assert "shadow show some" in out


def test_an_empty_shard_is_no_fault(toys, shadow):
    """More jobs than families: all pairs are pending there, and the code is 0."""
    runs = {
        output: shadow("audit", "toy-c", "--shard", f"{output}/2", "--registry", ".", "-o", output)
        for output in "12"
    }
    (empty,) = (one for one in runs if states(toys / one) == {"toy-c:base..two": "pending"})
    runs[empty].assert_done()
    shadow("show", empty).assert_done()


WRONG = [
    ("--list", "none.yaml"),
    ("--list", "toys.yaml"),  # a fault in the list
    ("--list", "wrong.txt"),  # a name in the list
    ("toy-a", "--shard", "3/2"),
    ("x*",),
]


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_wrong_list_is_wrong_usage(toys, shadow, command):
    """Exit 2, one line and a hint, and no byte is written, also when the last name is wrong."""
    (toys / "wrong.txt").write_text("toy-a\ntoy-c\ntoy-d\n")
    for words in WRONG:
        shadow(command, *words, "--registry", ".", "-o", "out").assert_refused(2)
        assert not (toys / "out").exists()


def spoiled(where, value):
    """An index of one pair with another value somewhere."""
    return json.dumps(changed(index_of(*some_rows(1)).as_json(), where, value))


NO_INDEX = {
    "a page's": '{"pages": []}', "no object": "[1]", "no JSON": "<html>", "empty": "",
    "deep": "[" * 100_000, "a later schema": spoiled(("schema",), 9),
    "no key": spoiled(("settings",), ...),
    "text for a number": spoiled(("pairs", 0, "seconds"), "fast"),
    "a truth value": spoiled(("pairs", 0, "position"), True),
    "endless": spoiled(("pairs", 0, "seconds"), float("inf")),
    "another state": spoiled(("pairs", 0, "state"), "running"),
    "no name": spoiled(("pairs", 0, "family"), None),
    "a pair twice": spoiled(("pairs",), 2 * index_of(*some_rows(1)).as_json()["pairs"]),
    "a number for text": spoiled(("pairs", 0, "error"), 7),
    "rows that are none": spoiled(("pairs",), [1]),
    "settings that are none": spoiled(("settings",), 3),
}  # fmt: skip


@pytest.mark.parametrize("content", NO_INDEX.values(), ids=NO_INDEX)
def test_what_is_no_index_is_one_fault(tmp_path, content):
    """Whatever stands in an index.json, it is read whole or refused."""
    (tmp_path / "index.json").write_text(spoiled(("version",), "0"))
    assert read_index(tmp_path).rows
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ShadowError):
        read_index(tmp_path)


def test_where_no_index_can_be_written_nothing_is_measured(toys, shadow):
    """Beside an index.json that is not ours, which stays, or a folder in its place."""
    (toys / "theirs").mkdir()
    (toys / "theirs" / "index.json").write_text(NO_INDEX["a page's"])
    (toys / "out" / "index.json").mkdir(parents=True)
    for output in ("theirs", "out"):
        shadow("audit", "toy-a*", "--registry", ".", "-o", output).assert_refused()
    assert [path.name for path in (toys / "theirs").iterdir()] == ["index.json"]
    assert (toys / "theirs" / "index.json").read_text() == NO_INDEX["a page's"]
    shadow("show", "theirs").assert_refused()
    assert not list(toys.rglob("journal.jsonl"))


HOSTILE = "::error file=x::y ##[error]z \x1b[31m [red]<b>|`=1+1 \ud800"


def test_hostile_names_and_errors_are_text(tmp_path):
    """Neither a terminal nor a CI service is driven, wherever a line breaks; files hold text."""
    rows = (
        row(1, HOSTILE, HOSTILE, state="failed", error=HOSTILE * 3, hint=HOSTILE),
        row(None, "=cmd|'/c'!A0"),
    )
    write_index(tmp_path, index_of(*rows))
    index = read_index(tmp_path)
    for width, found in product((40, 80, 120), (index_of(*rows), index)):
        # as console prints where no person watches
        lines = inert(drawn(list_document(found, "reports", {}), width)).splitlines()
        assert all(line.isprintable() for line in lines)
        assert not [line for line in lines if line.strip().startswith("::") or "##[" in line]
    assert "[red]" in drawn(list_document(index, "reports", {}), 200).replace("\n", "")
    assert index.rows[0].family == HOSTILE.replace("\ud800", "\\ud800")
    assert index.rows[0].folder.count("/") == 1
