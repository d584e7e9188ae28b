"""`shadow merge`: shards join to what one run gives, nothing is overwritten, what does not fit is
refused whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reports
from effort import chosen, every
from typer.testing import CliRunner

from shadow import files as shadow_files
from shadow.audits import merging
from shadow.audits.list_index import (
    INDEX,
    TABLE,
    Index,
    Kind,
    Row,
    kind_of,
    read_index,
    report_folder,
    write_index,
)
from shadow.audits.merging import merge
from shadow.cli.commands import app
from shadow.errors import ShadowError
from shadow.reports.columns import RESIDUAL
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import finished_metadata

PAIRS = [
    ("toy-1b", "base..sft"),
    ("toy-1b", "base..dpo"),
    ("toy-7b", "base..sft"),
    ("other", "base..x"),
]
DIGEST = "d" * 64


def written(output, family, pair, concentration=0.3, seed=1, **metadata):
    """A finished report, as `shadow audit -o output` leaves it."""
    folder = reports.uniform(
        output / report_folder(family, pair), concentration, layers=2, family=family, pair=pair,
        base=reports.identity(0), tuned=reports.identity(seed, f"./{pair}"), **metadata,
    )  # fmt: skip
    told = json.dumps(json.loads(pq.read_schema(folder / "matrices.parquet").metadata[b"shadow"]))
    empty = pa.Table.from_pylist([], schema=arrow_schema(RESIDUAL))
    for name in ("tensors", "matrices"):  # the family of each row too
        table = pq.read_table(folder / f"{name}.parquet").replace_schema_metadata(
            {b"shadow": told.encode()}
        )
        pq.write_table(table, folder / f"{name}.parquet")
    pq.write_table(
        empty.replace_schema_metadata({b"shadow": told.encode()}), folder / "residual.parquet"
    )
    return folder


def indexed(output, rows, shards=("1/1",), digest=DIGEST):
    """The index of a folder, of the kind of its first report."""
    found = sorted(output.glob("*/*/matrices.parquet"))
    kind = kind_of(finished_metadata(found[0].parent)) if found else KIND
    write_index(output, Index("0.1.0", kind, digest=digest, shards=shards, rows=tuple(rows)))
    return output


KIND = Kind(1, {"method": {"precision": "default", "nulls": 0, "seed": 0}, "chosen": {}})


def row(number, state="done", **columns):
    family, pair = PAIRS[number - 1]
    return Row(
        number,
        family,
        pair,
        "tuned",
        report_folder(family, pair),
        "./base",
        f"./{pair}",
        state=state,
        **columns,
    )


@pytest.fixture
def shards(tmp_path):
    """Two shards of a list of four: two done in the first, one done and one failed in the other."""
    for number in (1, 2):
        written(tmp_path / "s1", *PAIRS[number - 1])
    written(tmp_path / "s2", *PAIRS[2])
    indexed(
        tmp_path / "s1",
        [row(1, seconds=10.0, bytes=100), row(2, seconds=20.0, bytes=200)],
        ("1/2",),
    )
    failed = row(4, "failed", seconds=1.0, bytes=0, error="no such folder: x", hint="h")
    indexed(tmp_path / "s2", [row(3, seconds=30.0, bytes=300), failed], ("2/2",))
    return tmp_path / "s1", tmp_path / "s2"


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_shards_join_in_the_order_of_the_list(shards, tmp_path):
    """Every report byte for byte, every row with its place and what it took; nothing else is left
    in the folder.
    """
    found = merge(tmp_path / "out", shards)
    assert (found.copied, found.there) == (3, 0)
    index = read_index(tmp_path / "out")
    assert index == found.index
    assert [
        (one.position, one.family, one.pair, one.state, one.seconds, one.bytes)
        for one in index.rows
    ] == [
        (1, *PAIRS[0], "done", 10.0, 100),
        (2, *PAIRS[1], "done", 20.0, 200),
        (3, *PAIRS[2], "done", 30.0, 300),
        (4, *PAIRS[3], "failed", 1.0, 0),
    ]
    assert (index.rows[3].error, index.rows[3].hint) == ("no such folder: x", "h")
    assert (index.shards, index.missing_shards, index.digest) == (("1/2", "2/2"), [], DIGEST)
    copied = {
        name: data for name, data in files(tmp_path / "out").items() if name not in (INDEX, TABLE)
    }
    assert copied == {
        name: data
        for shard in shards
        for name, data in files(shard).items()
        if name not in (INDEX, TABLE)
    }
    assert not list((tmp_path / "out").rglob(".partial"))


def test_the_order_of_folders_and_merging_again_change_nothing(shards, tmp_path):
    """Merging is the same in any order, step by step, and once more; then nothing is copied."""
    merge(tmp_path / "a", shards)
    merge(tmp_path / "b", shards[::-1])
    merge(tmp_path / "c", shards[1:])
    merge(tmp_path / "c", shards[:1])
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*/*/*")}
    again = merge(tmp_path / "a", [*shards, tmp_path / "b"])
    assert (again.copied, again.there) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_scores_of_an_equal_report_are_kept_or_told(shards, tmp_path):
    """Taken with the report that has them, whichever comes first; left out and told where a report
    without them, or with others, is there already.
    """
    pair = report_folder(*PAIRS[0])
    scored, other = (shutil.copytree(shards[0], tmp_path / name) for name in ("sc", "other"))
    (scored / pair / "scores.json").write_text('{"scores": 1}')
    (other / pair / "scores.json").write_text('{"scores": 2}')
    for out, order in (("a", (shards[0], scored)), ("b", (scored, shards[0]))):
        found = merge(tmp_path / out, order)
        assert (tmp_path / out / pair / "scores.json").read_text() == '{"scores": 1}'
        assert found.unscored == ()
    assert merge(tmp_path / "a", [other]).unscored == (PAIRS[0],)
    merge(tmp_path / "c", [shards[0]])
    assert merge(tmp_path / "c", [scored]).unscored == (PAIRS[0],)
    assert not (tmp_path / "c" / pair / "scores.json").exists()
    told = CliRunner().invoke(app, ["merge", str(tmp_path / "a"), str(other)])
    assert "scores of toy-1b:base..sft are left out: the report that is kept" in " ".join(
        told.stderr.split()
    )


def test_a_missing_shard_is_told(shards, tmp_path):
    """The index says which shares of the list it has; `merge` and `show` name the others."""
    index = merge(tmp_path / "out", shards[:1]).index
    assert index.missing_shards == ["2/2"]
    assert [one.position for one in index.rows] == [1, 2]


def test_without_folders_the_index_is_made_anew(shards, tmp_path):
    """From the reports alone: what they say, no places, seconds of the report; then also if an old
    index is there.
    """
    (shards[0] / INDEX).unlink()
    index = merge(shards[0], []).index
    assert [(one.position, one.name, one.state) for one in index.rows] == [
        (None, "toy-1b:base..dpo", "done"),
        (None, "toy-1b:base..sft", "done"),
    ]
    assert [one.concentration for one in index.rows] == [pytest.approx(0.3)] * 2
    assert (index.digest, index.shards) == (None, ())
    shutil.rmtree(shards[1] / report_folder(*PAIRS[2]))
    index = merge(shards[1], []).index
    assert [(one.state, one.concentration) for one in index.rows] == [
        ("pending", None),
        ("failed", None),
    ]


def test_rows_without_a_report(shards, tmp_path):
    """What failed in one folder and is done in another is done; failed counts more than pending;
    lost is pending.
    """
    _, second = shards
    indexed(second, [row(3), row(4, "pending")], ("2/2",))
    third = indexed(tmp_path / "s3", [row(1, "failed", error="e"), row(4, "failed", error="e4")])
    index = merge(tmp_path / "out", [*shards, third]).index
    assert [(one.state, one.error) for one in index.rows] == [("done", None)] * 3 + [
        ("failed", "e4")
    ]


def test_lists_of_different_pairs_join_without_places(shards, tmp_path):
    """Places of two lists would say nothing: the rows are sorted by name."""
    other = written(tmp_path / "x", "new", "base..x").parent.parent
    indexed(
        other,
        [Row(1, "new", "base..x", "tuned", "new/base..x", "b", "t", state="done")],
        digest="e" * 64,
    )
    index = merge(tmp_path / "out", [shards[0], other]).index
    assert [(one.position, one.family) for one in index.rows] == [
        (None, "new"),
        (None, "toy-1b"),
        (None, "toy-1b"),
    ]
    assert (index.digest, index.missing_shards) == (None, [])


def test_equal_reports_of_one_pair_join(shards, tmp_path):
    """Two jobs measured the same pair: one is kept, whenever each was made."""
    written(tmp_path / "twin", *PAIRS[0], seconds=99.0, started="2001-01-01")
    found = merge(tmp_path / "out", [*shards, tmp_path / "twin"])
    assert found.copied == 3


CONFLICTS = {
    "numbers": ({"concentration": 0.30001}, "the numbers in matrices.parquet"),
    "tuned": ({"seed": 7}, "fingerprint"),
}


@pytest.mark.parametrize("conflict", CONFLICTS)
@pytest.mark.parametrize("there", [False, True])
def test_different_reports_of_one_pair_are_refused(shards, tmp_path, conflict, there):
    """Other numbers or other checkpoints under one name: nothing is copied, and what is there
    stays, also in OUT.
    """
    options, told = CONFLICTS[conflict]
    other = written(tmp_path / "other", *PAIRS[2], **options).parent.parent
    if there:
        shutil.copytree(other, tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(ShadowError, match=r"different reports of toy-7b:base\.\.sft") as caught:
        merge(tmp_path / "out", [*shards, *([] if there else [other])])
    assert told in caught.value.message
    assert files(tmp_path) == before
    assert (tmp_path / "out").exists() == there


def changed(report, column, change, file="matrices"):
    """A column of a report's table, changed, everything else as it was."""
    path = report / f"{file}.parquet"
    table = pq.read_table(path)
    index = table.column_names.index(column)
    values = pa.array(
        [change(value) for value in table[column].to_pylist()], table.schema.field(index).type
    )
    pq.write_table(table.set_column(index, table.schema.field(index), values), path)


def times(factor):
    return lambda value: None if value is None else value * factor


ROUNDED = {
    "sizes and ratios": {"spectral_norm": times(1 + 5e-8), "participation_ratio": times(1 - 3e-7)},
    "the smallest singular values": {
        "condition_number": lambda value: 3018.0,
        "numerical_rank": lambda value: 63,
    },
}
NOT_ROUNDED = {
    "another number": {"participation_ratio": times(1 + 1e-5)},
    "another size": {"frobenius_norm": times(1 - 2e-6)},
    "a null": {"null_participation_ratio": lambda value: None},
    "not finite": {"spectral_norm": lambda value: None if value is None else float("inf")},
    "another name": {"tensor": lambda value: value + "x"},
    "another precision": {"precision": lambda value: "default"},
}


@pytest.mark.parametrize("rounded", every(2, ROUNDED))
def test_last_digits_of_another_cpu_are_the_same_report(shards, tmp_path, rounded):
    """The report of the folder named first is kept, and which pairs that concerns is told."""
    other = written(tmp_path / "other", *PAIRS[2])
    for column, change in ROUNDED[rounded].items():
        changed(other, column, change)
    for name, order in (("one", ["s1", "s2", "other"]), ("two", ["other", "s1", "s2"])):
        folders = [str(tmp_path / folder) for folder in (name, *order)]
        done = CliRunner().invoke(app, ["merge", *folders])
        assert done.exit_code == 0
        told = (
            "the last digits of toy-7b:base..sft differ, because CPUs round differently: the first"
            " report of each is"
        )
        assert f"{told} kept" in " ".join(done.stderr.split())
        kept = (tmp_path / name / report_folder(*PAIRS[2]) / "matrices.parquet").read_bytes()
        first = other if name == "two" else shards[1] / report_folder(*PAIRS[2])
        assert kept == (first / "matrices.parquet").read_bytes()
    assert merge(tmp_path / "two", shards).rounded == (PAIRS[2],)


@pytest.mark.parametrize("apart", NOT_ROUNDED)
def test_more_than_last_digits_is_another_report(shards, tmp_path, apart):
    """Other rows, null elsewhere, or a figure that no rounding explains."""
    other = written(tmp_path / "other", *PAIRS[2])
    for column, change in NOT_ROUNDED[apart].items():
        changed(other, column, change)
    with pytest.raises(ShadowError, match=r"the numbers in matrices\.parquet"):
        merge(tmp_path / "out", [*shards, other.parent.parent])
    assert not (tmp_path / "out").exists()


METHOD = {"precision": "exact", "nulls": 0, "seed": 0}
UNLIKE = {
    "settings": (
        {"settings": {"method": METHOD, "chosen": {}, "relation": "tuned"}},
        'method.precision: "default" and "exact"',
    ),
    "schema": ({"schema": 2}, "a report of schema 2"),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_reports_of_different_making_are_refused(shards, tmp_path, unlike):
    """Settings and schemas must agree; the message names what differs, and nothing is copied."""
    metadata, told = UNLIKE[unlike]
    written(tmp_path / "other", "new", "base..x", **metadata)
    with pytest.raises(ShadowError) as caught:
        merge(tmp_path / "out", [*shards, tmp_path / "other"])
    assert told in caught.value.message
    assert not (tmp_path / "out").exists()


def test_reports_of_two_versions_join(shards, tmp_path):
    """A report outlives the version that measured it: each row says which that was."""
    written(tmp_path / "other", "new", "base..x", version="0.2.0")
    index = merge(tmp_path / "out", [*shards, tmp_path / "other"]).index
    versions = {one.family: one.version for one in index.rows if one.state == "done"}
    assert versions == {"toy-1b": "0.1.0", "toy-7b": "0.1.0", "new": "0.2.0"}


def test_an_index_of_other_settings_is_refused_too(shards, tmp_path):
    """A shard of which every pair failed still says how it was audited."""
    index = replace(
        read_index(shards[1]), kind=Kind(1, {"method": METHOD}), rows=(row(4, "failed"),)
    )
    write_index(tmp_path / "failed", index)
    with pytest.raises(ShadowError, match=r"differ in settings\.method\.precision"):
        merge(tmp_path / "out", [*shards, tmp_path / "failed"])


def test_siblings_and_tuned_pairs_join(shards, tmp_path):
    """How a pair is related is its own, not a setting of the audit."""
    settings = {**KIND.settings, "relation": "sibling"}
    written(tmp_path / "s", "new", "a..b", settings=settings)
    index = merge(tmp_path / "out", [*shards, tmp_path / "s"]).index
    assert {one.relation for one in index.rows} == {"tuned", "sibling"}


BROKEN = {
    "no folder": lambda folder: shutil.rmtree(folder),
    "nothing in it": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a cut table": lambda folder: cut(folder / report_folder(*PAIRS[2]) / "tensors.parquet"),
    "a cut main table": lambda folder: cut(folder / report_folder(*PAIRS[2]) / "matrices.parquet"),
    "a lost main table": lambda folder: (
        folder / report_folder(*PAIRS[2]) / "matrices.parquet"
    ).unlink(),
    "files of different audits": lambda folder: shutil.copy(
        written(folder.parent / "y", *PAIRS[2], seed=5) / "tensors.parquet",
        folder / report_folder(*PAIRS[2]),
    ),
    "a foreign index": lambda folder: (folder / INDEX).write_text("{}"),
    "a linked file": lambda folder: link(folder / report_folder(*PAIRS[2]) / "summary.json"),
    "a linked report": lambda folder: link(folder / report_folder(*PAIRS[2])),
    "a linked family": lambda folder: link(folder / PAIRS[2][0]),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def link(path):
    """The same content, reached through a link that leaves the folder."""
    away = path.parents[2] / "away" if path.is_file() else path.parents[1] / "away"
    shutil.move(path, away)
    path.symlink_to(away)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_folder_is_refused_before_anything_is_copied(shards, tmp_path, broken):
    """The last folder is not as it should be: one line, and no file of the others is written."""
    BROKEN[broken](shards[1])
    with pytest.raises(ShadowError) as caught:
        merge(tmp_path / "out", shards)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_unfinished_reports_are_left_out(shards, tmp_path):
    """A folder where an audit was at work holds no report; its pair is pending."""
    report = shards[1] / report_folder(*PAIRS[2])
    (report / "matrices.parquet").unlink()
    (report / ".partial").mkdir()
    index = merge(tmp_path / "out", shards).index
    assert [one.state for one in index.rows] == ["done", "done", "pending", "failed"]
    assert not (tmp_path / "out" / report_folder(*PAIRS[2])).exists()


IN_THE_WAY = ("another pair", "an unfinished audit", "something else", "a file", "a file above")


@pytest.mark.parametrize("what", every(2, IN_THE_WAY))
def test_what_is_where_a_report_goes_is_never_overwritten(shards, tmp_path, what):
    """Another pair's report, a journal, foreign files: refused before the first copy, and they stay
    as they are.
    """
    target = tmp_path / "out" / report_folder(*PAIRS[2])
    if what == "another pair":
        shutil.copytree(written(tmp_path / "z", "else", "base..y"), target)
    elif what == "an unfinished audit":
        (target / ".partial").mkdir(parents=True)
        (target / ".partial" / "journal.jsonl").write_text("{}")
    elif what == "something else":
        target.mkdir(parents=True)
        (target / "notes.txt").write_text("mine")
    elif what == "a file":
        target.parent.mkdir(parents=True)
        target.write_text("mine")
    else:
        target.parent.parent.mkdir(parents=True)
        target.parent.write_text("mine")
    before = files(tmp_path / "out")
    with pytest.raises(ShadowError):
        merge(tmp_path / "out", shards)
    after = files(tmp_path / "out")
    assert after == before


@pytest.mark.parametrize("copies", chosen(range(17), (5, 15)))
def test_a_merge_that_is_killed_leaves_no_half_report_and_goes_on(
    shards, tmp_path, monkeypatch, copies
):
    """Stopped before any of the writes: what is there is whole; the same command then gives the
    whole result.
    """
    merge(tmp_path / "whole", shards)
    left, write = copies, merging.write_whole

    def stopping(path, content):
        nonlocal left
        if left == 0:
            (path.parent / ".partial").mkdir(exist_ok=True)
            (path.parent / ".partial" / f"{path.stem}.tmp").write_bytes(content[:9])
            raise KeyboardInterrupt
        left -= 1
        write(path, content)

    monkeypatch.setattr(merging, "write_whole", stopping)
    if copies < 15:
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path / "out", shards)
    else:
        merge(tmp_path / "out", shards)
    whole = files(tmp_path / "whole")
    for path in (tmp_path / "out").glob("*/*/matrices.parquet"):
        for own in path.parent.iterdir():
            assert (
                own.name == ".partial"
                or own.read_bytes() == whole[str(own.relative_to(tmp_path / "out"))]
            )
    monkeypatch.setattr(merging, "write_whole", write)
    merge(tmp_path / "out", shards)
    assert files(tmp_path / "out") == whole
    assert not list((tmp_path / "out").rglob(".partial"))


@pytest.mark.parametrize("there", [0, 1, 4, 13])
def test_a_merge_on_a_full_disk_leaves_whole_reports_and_nothing_else(
    shards, tmp_path, monkeypatch, there
):
    """The disk is full after so many files; what was written of the next one stayed, and `clean`
    passed over it.
    """
    merge(tmp_path / "whole", shards)
    whole, left = files(tmp_path / "whole"), there

    def full(path, content):
        nonlocal left
        path.write_bytes(content if left else content[:9])
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1

    write = shadow_files.write_through
    monkeypatch.setattr(shadow_files, "write_through", full)
    with pytest.raises(ShadowError, match="No space left"):
        merge(tmp_path / "out", shards)
    monkeypatch.setattr(shadow_files, "write_through", write)
    found = files(tmp_path / "out") if (tmp_path / "out").exists() else {}
    assert found.items() <= whole.items()
    of_reports = {name.rpartition("/")[0] for name in found if name.count("/") == 2}
    assert len(of_reports) == min(there // 5, 3)
    assert all(f"{folder}/matrices.parquet" in found for folder in of_reports)
    assert not list(tmp_path.glob("out/**/.partial"))
    merge(tmp_path / "out", shards)
    assert files(tmp_path / "out") == whole


def test_hostile_names_stay_in_the_folder(tmp_path):
    """Whatever a report calls itself, its copy lies two folders below OUT."""
    source = written(tmp_path / "s", "x", "y")
    for family, pair in (("../../up", "../x"), ("", ".."), ("/etc", "a\0b\x1b[31m")):
        for name in ("matrices", "tensors", "residual", "files"):
            table = pq.read_table(source / f"{name}.parquet")
            told = json.loads(table.schema.metadata[b"shadow"]) | {"family": family, "pair": pair}
            pq.write_table(
                table.replace_schema_metadata({b"shadow": json.dumps(told).encode()}),
                source / f"{name}.parquet",
            )
        merge(tmp_path / "out", [tmp_path / "s"])
    assert len([path for path in tmp_path.rglob("matrices.parquet") if "out" in path.parts]) == 3
    assert len(list((tmp_path / "out").glob("*/*/matrices.parquet"))) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]


def test_merge_on_the_command_line(shards, tmp_path, shadow):
    """What was copied and what is missing goes to stderr, the table or the index as JSON to stdout;
    faults exit 1.
    """
    done = shadow("merge", "out", "s1")
    assert done.err.splitlines() == [
        "2 reports copied to out, 0 were already there",
        "error: out lacks shard 2/2 of its list",
        "hint:  merge all shards",
    ]
    assert "pairs   2: 2 done" in done.assert_done(1), (
        "as `gate` has it; what is there is joined nevertheless"
    )
    told = json.loads(shadow("merge", "out", "s1", "s2", "--format", "json").assert_done())
    assert told == json.loads((tmp_path / "out" / INDEX).read_text())
    assert told["counts"] == {"done": 3, "failed": 1, "kept": 0, "pending": 0}
    shadow("merge", "out", "gone").assert_refused()
    shadow("merge", "nothing").assert_refused()
    assert not (tmp_path / "nothing").exists()
    assert shadow("merge").code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_one_fault(shards, tmp_path):
    """No traceback for what the system refuses."""
    (shards[1] / INDEX).chmod(0)
    with pytest.raises(ShadowError):
        merge(tmp_path / "out", shards)
