"""Lists on the command line: exit codes, an index that is none, what is shown, progress."""

from __future__ import annotations

import contextlib
import json

import pytest
from effort import every
from lists import index_of, row, run, select_toys, some_rows, table_rows
from view import drawn

from shadow.audits.document import list_document
from shadow.audits.list_index import read_index, write_index
from shadow.cli.pace import Pace
from shadow.errors import ShadowError
from shadow.text import inert

# the command line


def test_a_list_on_the_command_line(toys, shadow):
    """`--list` with `-o`: every pair is tried, the table is printed, the fault told, and the exit
    code is 1.
    """
    (toys / "l.txt").write_text("toy-bad\n# a comment\ntoy-c\n")
    done = shadow("audit", "--list", "l.txt", "--registry", ".", "-o", "out")
    out = done.assert_done(1)
    assert [line.split()[1:4] for line in out.splitlines() if line[1:2].isdecimal()] == [
        ["toy-bad", "base..gone", "failed"],
        ["toy-bad", "base..one", "done"],
        ["toy-c", "base..two", "done"],
    ]
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: toy-bad:base..gone: no such folder: {toys / 'gone'}"]
    told = json.loads(shadow("show", "out", "--format", "json").assert_done())
    assert told["counts"] == {"done": 2, "failed": 1, "kept": 0, "pending": 0}
    assert [report["family"] for report in told["reports"]] == ["toy-bad", "toy-c"]
    words = ("audit", "--list", "l.txt", "--registry", ".", "-o", "out", "--format", "json")
    again = shadow(*words).assert_done(1)
    same = ("pairs", "reports", "counts", "settings", "list")
    stable = {"seconds": 0}
    for told_by in (told, found := json.loads(again)):
        told_by["pairs"] = [row | stable for row in told_by["pairs"]]
    assert {key: found[key] for key in same} == {key: told[key] for key in same}


@pytest.mark.parametrize(
    ("targets", "code"),
    [(("toy-a", "toy-odd"), 3), (("toy-odd", "toy-bad", "toy-a"), 1)],
)
@pytest.mark.parametrize("glob", every(2, ["*", ""]))
def test_the_exit_code_is_the_first_of_1_4_3_0(toys, shadow, targets, code, glob):
    """In a list and without one: a fault before what --strict objects to, whichever came first."""
    targets = [*targets[:-1], targets[-1] + glob]
    shadow("audit", *targets, "--registry", ".", "-o", "out", "--strict").assert_done(code)


def test_an_empty_shard_is_no_fault(toys, shadow):
    """More jobs than families: the job says so, all pairs are pending there, and the code is 0."""
    done = shadow("audit", "toy-c", "--shard", "1/2", "--registry", ".", "-o", "out")
    other = shadow("audit", "toy-c", "--shard", "2/2", "--registry", ".", "-o", "other")
    is_empty = read_index(toys / "out").rows[0].state == "pending"
    empty, output = (done, "out") if is_empty else (other, "other")
    shard = 1 if empty is done else 2
    assert empty.err == f"nothing to audit in shard {shard}/2: the list has 1 pair\n"
    assert "1 pending" in empty.assert_done()
    assert [row["state"] for row in table_rows(toys / output)] == ["pending"]
    shadow("show", output).assert_done()


WRONG = {
    "no list": ("--list", "none.yaml"),
    "a fault in the list": ("--list", "toys.yaml"),
    "a name in the list": ("--list", "wrong.txt"),
    "no shard": ("toy-a", "--shard", "3/2"),
    "no glob": ("x*",),
    "no tag": ("--tag", "tyo"),
    "a tag of none": ("toy-c", "--tag", "toy"),
}


@pytest.mark.parametrize("command", ["audit", "plan"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_list_is_wrong_usage(toys, shadow, wrong, command):
    """Exit 2, one line and a hint, and no byte is written, also when the last name is wrong."""
    (toys / "wrong.txt").write_text("toy-a\ntoy-c\ntoy-d\n")
    shadow(command, *WRONG[wrong], "--registry", ".", "-o", "out").assert_refused(2)
    assert not (toys / "out").exists()


FOREIGN = {
    "a page's": '{"pages": []}',
    "no object": "[1]",
    "no JSON": "<html>",
    "empty": "",
    "deep": "[" * 100_000,
    "a later schema": '{"shadow": "batch", "version": "9", "schema": 9, "settings": {},'
    ' "list": null, "shards": [], "pairs": []}',
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_no_index_is_refused(tmp_path, foreign):
    """Whatever else an index.json may be."""
    (tmp_path / "index.json").write_text(FOREIGN[foreign])
    with pytest.raises(ShadowError, match="no index of shadow"):
        read_index(tmp_path)


def test_an_index_that_is_not_ours_is_never_overwritten(toys, shadow):
    """Some other index.json in the output folder: one line, exit 1, nothing measured; `show` says
    the same.
    """
    (toys / "out").mkdir()
    (toys / "out" / "index.json").write_text(FOREIGN["a page's"])
    refused = shadow("audit", "toy-a*", "--registry", ".", "-o", "out").assert_refused()
    assert "no index of shadow" in refused
    assert [path.name for path in (toys / "out").iterdir()] == ["index.json"]
    assert (toys / "out" / "index.json").read_text() == FOREIGN["a page's"]
    shadow("show", "out").assert_refused()


SPOILED = {
    "no key": lambda told: told.pop("settings"),
    "text for a number": lambda told: told["pairs"][0].update(seconds="fast"),
    "a truth value": lambda told: told["pairs"][0].update(position=True),
    "endless": lambda told: told["pairs"][0].update(seconds=float("inf")),
    "huge": lambda told: told["pairs"][0].update(bytes=1 << 70),
    "another state": lambda told: told["pairs"][0].update(state="running"),
    "no name": lambda told: told["pairs"][0].update(family=None),
    "a pair twice": lambda told: told["pairs"].append(told["pairs"][0]),
    "a number for text": lambda told: told["pairs"][0].update(error=7),
    "rows that are none": lambda told: told.update(pairs=[1]),
    "settings that are none": lambda told: told.update(settings=3),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_index_is_one_fault(tmp_path, spoil):
    """Whatever stands in an index, it is read whole or refused with one line."""
    write_index(tmp_path, index_of(*some_rows(1)))
    path = tmp_path / "index.json"
    told = json.loads(path.read_text())
    assert read_index(tmp_path).rows
    SPOILED[spoil](told)
    path.write_text(json.dumps(told))
    with pytest.raises(ShadowError, match="no index of shadow"):
        read_index(tmp_path)


def test_an_index_that_cannot_be_written_is_one_fault(toys, shadow):
    """A folder where batch.parquet should be: exit 1, nothing measured."""
    (toys / "out" / "batch.parquet").mkdir(parents=True)
    done = shadow("audit", "toy-a*", "--registry", ".", "-o", "out")
    assert "cannot write to out" in done.assert_refused()
    assert not list(toys.rglob("journal.jsonl"))


# what people see


def shown(index, width):
    """The lines of the table on a terminal of so many columns, without colour."""
    return drawn(list_document(index), width).splitlines()


HOSTILE = "::error file=x::y ##[error]z \x1b[31m [red]<b>|`=1+1 \ud800"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_hostile_names_and_errors_are_text(tmp_path, width):
    """Names and errors from files drive neither a terminal nor a CI service, wherever a line
    breaks; both files and the table hold them as text.
    """
    rows = (
        row(1, HOSTILE, HOSTILE, state="failed", error=HOSTILE * 3, hint=HOSTILE),
        row(None, "=cmd|'/c'!A0"),
    )
    write_index(tmp_path, index_of(*rows))
    index = read_index(tmp_path)
    for found in (index_of(*rows), index):
        # as console prints where no person watches
        lines = inert("\n".join(shown(found, width))).splitlines()
        assert all(line.isprintable() for line in lines)
        assert not [line for line in lines if line.strip().startswith("::") or "##[" in line]
    assert "[red]" in "".join(shown(index, 200))
    assert index.rows[0].family == HOSTILE.replace("\ud800", "\\ud800")
    families = [found["family"] for found in table_rows(tmp_path)]
    assert families == [found.family for found in index.rows]
    assert index.rows[0].folder.count("/") == 1


def test_show_tells_the_list_first_and_then_its_reports(toys, shadow):
    """The table alone, and with --full the reports below it; of a list without a report the table
    alone; piped at 80 columns.
    """
    shadow("audit", "toy-a", "toy-bad*", "--registry", ".", "-o", "out").assert_done(1)
    short = shadow("show", "out", env={"COLUMNS": None}).assert_done()
    plain = shadow("show", "out", "--full", env={"COLUMNS": None}).assert_done()
    assert plain.startswith(short)
    assert "base  " not in short
    table, first, *rest = plain.split("──\n")[0:1] + plain.split("\ntoy-a  base..")
    assert table.startswith("list ─")
    assert len([first, *rest]) == 3
    assert max(map(len, plain.splitlines())) <= 80
    assert "list" not in shadow("show", "out/toy-a").assert_done().splitlines()[0]
    shadow("audit", "toy-bad:base..g*", "--registry", ".", "-o", "none").assert_done(1)
    failed = shadow("show", "none").assert_done()
    assert "1 failed" in failed
    assert "shadow show" not in failed  # there is no report
    assert json.loads(shadow("show", "none", "--format", "json").assert_done())["reports"] == []


def test_exact_targets_print_what_they_always_did(toys, shadow):
    """Without a list there is no index, and JSON is the list of summaries."""
    words = ("audit", "toy-a", "toy-c", "--registry", ".", "-o", "out", "--format", "json")
    found = json.loads(shadow(*words).assert_done(3))
    assert [one["family"] for one in found] == ["toy-a", "toy-a", "toy-c"]
    assert sorted(path.name for path in (toys / "out").iterdir()) == ["toy-a", "toy-c"]
    assert isinstance(json.loads(shadow("show", "out", "--format", "json").assert_done()), list)


# progress


def test_time_left_counts_only_what_was_measured():
    """Ten pairs, of which three reports were read: the time is that of a measured pair times what
    is left.
    """
    from shadow.audits.runtime import Progress

    now = 0.0
    pace = Pace(10, lambda: now)
    pace.begin("first")
    assert pace.left() == "", "nothing can be said yet"
    pace.end("first")
    for name in "bc":  # read at once, no progress told
        now += 10
        pace.begin(name)
        pace.end(name)
    pace.begin("measured")
    for done, left in ((50, "2:10"), (100, "2:00")):
        now += 10
        pace.update("measured", Progress(1, 2, done, 100))
        assert pace.left() == f"{left} left"
    pace.end("measured")
    pace.begin("next")
    now += 10
    pace.update("next", Progress(1, 2, 50, 100))
    assert pace.left() == "1:50 left"


def test_an_audit_of_a_list_tells_its_bars(toys):
    """audit_list names each pair when it begins, and the matrices of each that is measured."""
    told = {}

    @contextlib.contextmanager
    def watch(name):
        told[name] = []
        yield lambda state: told[name].append(state.done)

    run(select_toys(toys, "toy-a*"), toys / "out", watch=watch)
    assert told == {"toy-a:base..one": [0, 1, 2], "toy-a:base..two": [0, 1, 2]}
    run(select_toys(toys, "toy-a*"), toys / "out", watch=watch)
    assert told == {"toy-a:base..one": [], "toy-a:base..two": []}
