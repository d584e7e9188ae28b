"""Reports at URLs, on fsspec's memory: whole or not at all, and no credential told."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import threading
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import models
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from runs import pair_of

import shadow as package
from shadow import storage
from shadow.audits.list_audit import audit_list
from shadow.audits.list_index import read_index
from shadow.audits.merging import merge
from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.audits.remote import merge_remote, run_remote_pair
from shadow.checkpoints.pairing import Filter
from shadow.cli import commands
from shadow.comparing.scores import read_scores
from shadow.errors import BusyError, KeptError, ShadowError, UsageError
from shadow.files import lock
from shadow.reports import remote
from shadow.reports.provenance import finished_metadata
from shadow.reports.remote import (
    CLAIM,
    PublishedIndex,
    fetched,
    fetched_if_any,
    publish,
    published_metadata,
)
from shadow.reports.report import Report
from shadow.spectra.delta import Method
from shadow.storage import Store, located, parsed_options, url_of, work_folder
from shadow.targets.lists import select
from shadow.telling.reading import read_summary

PLAIN = Settings(Method(subspaces=False), Filter())
FIRST = Settings(Method(subspaces=False), Filter(layers=(0,)))
SECRET = "hunter2hunter2"
TABLES = ["matrices", "tensors", "residual", "files", "spectra"]


@pytest.fixture(autouse=True)
def _empty(monkeypatch, tmp_path):
    """An empty memory, and a folder of this test to work in."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    monkeypatch.setattr(remote, "POLL", 0.01)
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two toy checkpoints of two layers."""
    folder = tmp_path_factory.mktemp("pair")
    return pair_of(*(models.toy(folder / name, n) for n, name in enumerate(("base", "tuned"))))


@pytest.fixture(scope="module")
def scores(pair, tmp_path_factory):
    """What others measured of the pair."""
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text(f"model,benchmark,score\n{pair.base},mmlu,0.5\n{pair.tuned},mmlu,0.6\n")
    return read_scores([path])


@pytest.fixture(scope="module")
def finished(pair, scores, tmp_path_factory):
    """Finished reports of the pair: two that differ, and the first with scores."""
    folder = tmp_path_factory.mktemp("finished")
    asked = {"first": (PLAIN, None), "second": (FIRST, None), "scored": (PLAIN, scores)}
    return {
        name: run_pair(pair, settings, folder / name, scores=joined).folder
        for name, (settings, joined) in asked.items()
    }


@pytest.fixture
def there(pair, store, finished):
    """Publishes one of them as an audit would, which takes half a second more."""

    def publish_there(which="first", place=store):
        publish(finished[which], at(pair, place), token="earlier", replaces=None)

    return publish_there


@pytest.fixture
def store():
    return located("memory://bucket/reports")


def at(pair, store):
    return store.at(pair.family, pair.name)


@pytest.fixture
def target(pair, store):
    """Where the report of the pair is published."""
    return at(pair, store)


def audited(pair, store, settings=PLAIN, **options):
    said: list[str] = []
    runtime = Runtime(say=said.append, **options)
    return run_remote_pair(pair, settings, work_folder(store), runtime, store=store), said


def whole(folder):
    """The settings of a report all of whose files are of one audit; fails for half a one."""
    summary, metadata = read_summary(folder)
    report = Report(folder)
    for name in TABLES:
        assert report.table(name) is not None  # whole, and of the audit that the report is of
        assert json.loads(report.parquet(name).schema_arrow.metadata[b"shadow"]) == metadata
    assert not summary.warnings or all(
        warning.code != "older_report" for warning in summary.warnings
    )
    return metadata["settings"]["chosen"]["layers"]


class Fault:
    """Every write to the memory is counted; the one of that number fails; a look follows each."""

    def __init__(self, monkeypatch, number=0, look=lambda: None):
        self.number, self.count, self.look = number, 0, look
        for name in ("pipe_file", "put_file", "rm_file"):
            monkeypatch.setattr(
                MemoryFileSystem, name, self._wrapped(getattr(MemoryFileSystem, name))
            )

    def _wrapped(self, write):
        def wrapped(system, *arguments, **more):
            self.count += 1
            if self.count == self.number:
                raise ConnectionResetError("cut")
            answer = write(system, *arguments, **more)
            self.look()
            return answer

        return wrapped


def fails_to_upload(monkeypatch, number, audit, *arguments, **options):
    """An audit whose write of that number fails."""
    with monkeypatch.context() as patched:
        Fault(patched, number)
        with pytest.raises(ShadowError, match="not uploaded"):
            audit(*arguments, **options)


# Publishing


def test_a_report_at_a_url_is_the_one_of_a_folder(pair, store, target, tmp_path):
    """The same files with the same data; nothing of the pair is left on this machine."""
    result, _ = audited(pair, store)
    here = run_pair(pair, PLAIN, tmp_path / "out").folder
    there = fetched(target)
    assert result.url == "memory://bucket/reports/" + f"{pair.family}/{pair.name}" == str(target)
    assert sorted(path.name for path in there.iterdir()) == sorted(
        path.name for path in here.iterdir()
    )
    for name in TABLES:
        assert pq.read_table(there / f"{name}.parquet").equals(
            pq.read_table(here / f"{name}.parquet")
        )
    assert sorted(target.files()) == sorted(path.name for path in here.iterdir())
    assert not work_folder(store).exists()


def test_the_same_audit_again_reads_no_table(pair, store, monkeypatch, there):
    """Nothing is measured and nothing fetched: of tables only the footers are read."""
    there()
    monkeypatch.setattr(Store, "fetch", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr("shadow.audits.remote.run_pair", lambda *_, **__: pytest.fail("measured"))
    ends = []
    read_end = Store.read_end
    monkeypatch.setattr(Store, "read_end", lambda *told: ends.append(told[3]) or read_end(*told))
    result, said = audited(pair, store)
    assert result.measured == 0
    assert result.summary.figures["matrices"] == 2
    assert said == ["nothing to measure: the report is already there"]
    assert max(ends) <= remote.USUAL_FOOTER


def test_a_footer_that_is_longer_than_usual_is_read_whole(target, monkeypatch, there):
    """The provenance is that of the whole file."""
    there()
    usual = published_metadata(target)
    monkeypatch.setattr(remote, "USUAL_FOOTER", 100)
    assert published_metadata(target) == usual == finished_metadata(fetched(target))


def test_another_report_at_the_url_stays_without_overwrite(pair, store, target, there):
    there()
    with pytest.raises(
        KeptError,
        match=r"memory://bucket/reports/\S+: the finished report there differs: --layer all",
    ):
        audited(pair, store, FIRST)
    assert whole(fetched(target)) == []
    result, said = audited(pair, store, FIRST, overwrite=True)
    assert result.measured == 1
    assert "measuring again" in said[0]
    assert whole(fetched(target)) == [0]


def test_an_optimizer_renews_the_label_without_measuring(pair, store, target, there):
    there()
    result, _ = audited(pair, store, replace(PLAIN, optimizer="adamw"))
    assert result.measured == 0
    assert published_metadata(target)["settings"]["optimizer"] == "adamw"
    assert not work_folder(store).exists()


def test_a_table_that_the_new_report_lacks_is_removed(pair, store, target, there):
    there()
    audited(pair, store, replace(PLAIN, spectra=False), overwrite=True)
    assert "spectra.parquet" not in target.files()


def test_no_reader_ever_sees_half_a_report(pair, store, target, monkeypatch):
    """After every write of a new report, and of one that replaces it: all or none."""
    seen = []

    def look():
        found = fetched_if_any(target)
        seen.append(None if found is None else whole(found))

    Fault(monkeypatch, look=look)
    audited(pair, store)
    assert len(seen) == 9  # the claim, seven files, the claim's end
    assert seen[-2:] == [[], []]  # the last file and the claim's end
    assert all(one is None for one in seen[:-2])
    seen.clear()
    audited(pair, store, FIRST, overwrite=True)
    assert seen[0] == []  # the claim
    assert seen[-2:] == [[0], [0]]
    assert len(seen) == 10  # also matrices.parquet of before, which goes first
    assert all(one is None for one in seen[1:-2])


EVERY_WRITE = range(1, 13)  # more than there are


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [pytest.param((2, 7), id="some"), pytest.param(EVERY_WRITE, id="all", marks=pytest.mark.slow)],
)
def test_an_upload_that_fails_anywhere_loses_nothing(
    pair, store, target, monkeypatch, replacing, numbers, there
):
    """Whichever write fails, the report is here, and the same call publishes it unmeasured."""
    folder = work_folder(store) / pair.family / pair.name
    failed = 0
    for number in numbers:
        MemoryFileSystem.store.clear()
        if replacing:
            there("second")
        caught = None
        with monkeypatch.context() as patched:
            Fault(patched, number)
            try:
                audited(pair, store, overwrite=replacing)
            except ShadowError as error:
                caught = error
        if caught is not None:
            failed += 1
            assert whole(folder) == []
            assert f"the report is finished, but not uploaded: it is in {folder}" in caught.message
            assert "measures nothing again" in caught.hint
        found = fetched_if_any(target)
        assert found is None or whole(found) in ([], [0])
        result, _ = audited(pair, store, overwrite=replacing)
        assert result.measured == 0
        assert whole(fetched(target)) == []
        assert not folder.exists()
    # the claim's end alone is no fault
    assert failed == (len(numbers) if len(numbers) == 2 else 8 + replacing)


def test_scores_whose_upload_failed_are_uploaded_by_the_same_command(
    pair, store, target, there, scores, monkeypatch
):
    """The report at the URL has the same tables, and no table tells of scores. A command without
    scores leaves them here and says so.
    """
    there()
    with_scores = partial(
        run_remote_pair, pair, PLAIN, work_folder(store), store=store, scores=scores
    )
    fails_to_upload(monkeypatch, 1, with_scores)
    folder = work_folder(store) / pair.family / pair.name
    _, said = audited(pair, store)
    assert f"a report with other scores, which was not uploaded, stays in {folder}" in said
    result = with_scores()
    assert [gain.benchmark for gain in result.summary.scores] == ["mmlu"]
    for name in ("summary.json", "scores.json"):
        assert b"mmlu" in target.read(name, 10**7)
    assert not folder.exists()


@pytest.mark.parametrize("content", ["", "0123"])
def test_a_name_of_a_writer_that_was_written_in_part_is_made_anew(
    pair, store, target, monkeypatch, content
):
    """An empty one would be that of a claim which says nothing."""
    fails_to_upload(monkeypatch, 2, audited, pair, store)
    kept = work_folder(store) / pair.family / pair.name / "uploading"
    kept.write_text(content)
    target.put(CLAIM, b"{}")
    with pytest.raises(ShadowError, match="another audit is writing there"):
        audited(pair, store)
    assert len(kept.read_text()) == 32
    assert sorted(path.name for path in kept.parent.iterdir() if path.name[0] == ".") == []
    target.remove([CLAIM])
    audited(pair, store)
    assert whole(fetched(target)) == []


def test_a_file_that_arrived_in_part_does_not_complete_a_report(pair, store, target, monkeypatch):
    """A store that says yes to half a file: no report is there, and the fault names the file."""
    put = MemoryFileSystem.put_file

    def cut(system, path, target, **more):
        put(system, path, target, **more)
        if target.endswith("tensors.parquet"):
            system.store[target].truncate(50)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", cut)
        with pytest.raises(ShadowError, match=r"tensors.parquet: only a part of it arrived"):
            audited(pair, store)
    assert fetched_if_any(target) is None
    audited(pair, store)
    assert whole(fetched(target)) == []


# Two writers


def test_a_second_writer_waits_or_gives_way(target, monkeypatch, finished):
    """Between any two writes of the first it may begin: the report is the first's alone."""
    first, second = finished["first"], finished["second"]
    refused = []
    inside = threading.Event()

    def intrude():
        if inside.is_set():
            return
        inside.set()
        try:
            with pytest.raises(ShadowError, match="another audit is writing there") as raised:
                publish(second, target, token="second", replaces=None)
            refused.append(raised.value)
        finally:
            inside.clear()

    with monkeypatch.context() as patched:
        fault = Fault(patched)
        looks = iter(range(100))
        fault.look = lambda: next(looks) < 6 and intrude()
        publish(first, target, token="first", replaces=None)
    assert len(refused) >= 5
    assert whole(fetched(target)) == []


def test_of_many_writers_at_once_one_publishes(target, finished):
    """Eight threads with two different reports: one wins, the others are told, none is mixed."""
    folders = [finished["first"], finished["second"]] * 4
    barrier = threading.Barrier(len(folders))
    outcomes = []

    def write(number):
        barrier.wait()
        try:
            publish(folders[number], target, token=str(number), replaces=None)
            outcomes.append(number)
        except ShadowError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in outcomes if isinstance(one, int)]
    assert len(outcomes) == len(folders)
    assert whole(fetched(target)) == [[], [0]][winner % 2]
    assert CLAIM not in target.files()


def test_who_was_slower_with_the_same_report_takes_that_of_the_faster(
    pair, store, target, monkeypatch, finished
):
    """While this one measures, another publishes: its report stays, and is the result."""
    faster = finished["first"]

    def slow(*arguments, **more):
        result = run_pair(*arguments, **more)
        publish(faster, target, token="faster", replaces=None)
        return result

    monkeypatch.setattr("shadow.audits.remote.run_pair", slow)
    result, said = audited(pair, store)
    assert "another audit of the pair was faster: its report stays" in said
    assert result.provenance == finished_metadata(faster) == published_metadata(target)
    assert not (work_folder(store) / pair.family).exists()


def claim(store, token, age):
    then = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    store.put(CLAIM, json.dumps({"shadow": "uploading", "token": token, "at": then}).encode())


@pytest.mark.parametrize(
    ("token", "age", "goes_on"), [("me", 10, True), ("you", 10, False), ("you", 4000, True)]
)
def test_a_claim_is_taken_over_by_its_owner_or_when_nobody_lives(
    target, token, age, goes_on, finished
):
    """Our own after a kill, and anybody's after an hour without a sign of life."""
    folder = finished["first"]
    claim(target, token, age)
    if goes_on:
        publish(folder, target, token="me", replaces=None)
        assert whole(fetched(target)) == []
        assert CLAIM not in target.files()
    else:
        with pytest.raises(ShadowError, match="another audit is writing there"):
            publish(folder, target, token="me", replaces=None)
        assert list(target.files()) == [CLAIM]


def test_a_task_outlasts_a_writer_that_was_lost(pair, store, target):
    """Ray begins the pair of a lost machine again; it waits until the claim is an hour old."""
    claim(target, "you", 10)
    said = []

    def say(text):
        said.append(text)
        if text.startswith("waiting: "):
            claim(target, "you", 4000)

    result = run_remote_pair(
        pair, PLAIN, work_folder(store), Runtime(patience=30.0, say=say), store=store
    )
    assert said.count(f"waiting: another audit is writing to {target}") == 1
    assert result.provenance == published_metadata(target)
    assert CLAIM not in target.files()


@pytest.mark.parametrize(
    "claimed",
    [
        b"not json",
        b"[]",
        b'{"token": "you"}',
        b'{"token": "you", "at": "2026"}',
        b'{"token": "you", "at": "2999-01-01T00:00:00+00:00"}',
    ],
)
def test_a_claim_that_tells_no_time_is_as_old_as_its_file(
    store, target, monkeypatch, claimed, finished
):
    """It holds for an hour by the store's clock; without one the hint says how to remove it."""
    folder = finished["first"]
    target.put(CLAIM, claimed)
    with pytest.raises(ShadowError, match="another audit is writing there") as raised:
        publish(folder, target, token="me", replaces=None)
    assert "taken over after an hour" in raised.value.hint
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "modified", lambda *_: None)
        with pytest.raises(ShadowError, match="another audit is writing there") as raised:
            publish(folder, target, token="me", replaces=None)
    assert raised.value.hint == (
        f"wait for it; if no audit writes there any more, remove {target}/{CLAIM}"
    )
    long_ago = datetime.now(UTC) - timedelta(seconds=4000)
    MemoryFileSystem.store[f"/{target.url.partition('://')[2]}/{CLAIM}"].modified = long_ago
    publish(folder, target, token="me", replaces=None)
    assert whole(fetched(target)) == []


def test_a_writer_whose_claim_was_taken_over_does_not_finish(target, monkeypatch, finished):
    """Before the file that completes a report it looks whether it still may."""
    folder = finished["first"]
    put = Store.put_file

    def put_and_lose(self, path, name):
        put(self, path, name)
        claim(target, "you", 0)

    monkeypatch.setattr(Store, "put_file", put_and_lose)
    with pytest.raises(ShadowError, match="another audit is writing there"):
        publish(folder, target, token="me", replaces=None)
    assert "matrices.parquet" not in target.files()
    assert json.loads(target.read(CLAIM, 1000))["token"] == "you"


# Reading


def test_a_report_that_is_replaced_while_it_is_read_is_read_again(target, monkeypatch, finished):
    """The copy holds the files of one moment."""
    first, second = finished["first"], finished["second"]
    publish(first, target, token="1", replaces=None)
    fetch = Store.fetch
    calls = []

    def fetch_and_replace(self, sizes, folder):
        if not calls:
            half = dict(list(sizes.items())[:3])
            fetch(self, half, folder)
            publish(second, target, token="2", replaces=finished_metadata(first))
            sizes = {
                name: entry.size
                for name, entry in target.files().items()
                if name in sizes and name not in half
            }
        calls.append(len(sizes))
        fetch(self, sizes, folder)

    monkeypatch.setattr(Store, "fetch", fetch_and_replace)
    assert whole(fetched(target)) == [0]
    assert len(calls) == 2


def test_a_file_that_comes_in_part_is_told(target, monkeypatch, there):
    there()
    get = MemoryFileSystem.get_file

    def cut(system, path, target, **more):
        get(system, path, target, **more)
        with Path(target).open("r+b") as file:
            file.truncate(10)

    monkeypatch.setattr(MemoryFileSystem, "get_file", cut)
    with pytest.raises(ShadowError, match="only a part of it arrived"):
        fetched(target)


def test_only_files_of_reports_with_safe_names_are_fetched(pair, store, target, there):
    """What else lies at the URL stays there, whatever it is called."""
    there()
    content = {name: target.read(name, 10**9) for name in target.files()}
    for name, bytes_of in content.items():
        for folder in (
            "/bucket/reports/..",
            "/bucket/reports/a/../../b",
            "/bucket/reports/a\\b",
            "/bucket/reports/.x/y",
        ):
            MemoryFileSystem().pipe_file(f"{folder}/{name}", bytes_of)
        MemoryFileSystem().pipe_file(f"/bucket/reports/a/b/c/{name}", bytes_of)
    MemoryFileSystem().pipe_file("/bucket/reports/a/b/notes.txt", b"x")
    MemoryFileSystem().pipe_file("/bucket/reports2/a/b/matrices.parquet", b"x")
    folder = fetched(store)
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert found == sorted(f"{pair.family}/{pair.name}/{name}" for name in content)


def test_a_file_larger_than_any_of_its_kind_is_refused(target, monkeypatch, there):
    there()
    monkeypatch.setattr(remote, "MAX_JSON", 1000)
    with pytest.raises(ShadowError, match="larger than any file of a report"):
        fetched(target)


def test_reports_that_do_not_fit_the_disk_are_refused_with_numbers(target, monkeypatch, there):
    there()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ShadowError, match="to fetch, and 10 bytes are free"):
        fetched(target)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100, b"PAR1" + b"\xff" * 20 + b"PAR1"])
def test_a_broken_report_at_a_url_is_measured_again(pair, store, target, content, there):
    there()
    target.put("matrices.parquet", content)
    with pytest.raises(ShadowError, match=r"matrices.parquet cannot be read"):
        published_metadata(target)
    result, said = audited(pair, store)
    assert result.measured == 2
    assert said[0].startswith("measuring again: memory://bucket/reports/")
    assert whole(fetched(target)) == []


@pytest.mark.parametrize("name", ["spectra.parquet", "tensors.parquet", "matrices.parquet"])
def test_a_report_at_a_url_that_lacks_a_table_is_measured_again(pair, store, target, name, there):
    """The command says which one; nothing is asked of the tables that are there."""
    there()
    target.remove([name])
    result, said = audited(pair, store)
    assert result.measured == 2
    assert name == "matrices.parquet" or f"{name} is missing from this report" in said[0]
    assert whole(fetched(target)) == []
    assert name in target.files()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("table", ["tensors", "matrices"])
def test_a_broken_table_at_a_url_is_measured_again(pair, store, target, table, overwrite, there):
    """As in a folder; the scores stay."""
    there("scored")
    target.put(f"{table}.parquet", b"")
    result, said = audited(pair, store, overwrite=overwrite)
    assert result.measured == 2
    assert said[0].startswith(f"measuring again: {target}")
    assert whole(fetched(target)) == []
    assert b"mmlu" in target.read("summary.json", 10**7)
    assert not work_folder(store).exists()


def test_a_report_that_waits_here_replaces_a_broken_one_unmeasured(
    pair, store, target, monkeypatch, there
):
    there("second")
    fails_to_upload(monkeypatch, 1, audited, pair, store, overwrite=True)
    target.put("matrices.parquet", b"")
    result, said = audited(pair, store)
    assert result.measured == 0
    assert said == ["nothing to measure: the report is already there"]
    assert whole(fetched(target)) == []


def test_a_store_that_fails_while_a_report_is_read_does_not_replace_it(
    pair, store, target, monkeypatch, there
):
    """What cannot be read now may be whole."""
    there()
    there = target.files()
    reads = []
    read_end = Store.read_end

    def failing(self, name, size, count):
        reads.append(name)
        if len(reads) > 1:
            raise ShadowError("the store failed")
        return read_end(self, name, size, count)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "read_end", failing)
        with pytest.raises(ShadowError, match="the store failed"):
            audited(pair, store, overwrite=True)
    assert target.files() == there


# Lists


@pytest.fixture
def toys(tmp_path):
    """A registry of a family with two pairs, one of which has no tuned side."""
    for seed, name in enumerate(("base", "one")):
        models.toy(tmp_path / name, seed, layers=1)
    (tmp_path / "toys.yaml").write_text(
        f"toy:\n  base: {tmp_path}/base\n  one: {tmp_path}/one\n  gone: {tmp_path}/gone\n"
    )
    return tmp_path


def listed(toys, store, **more):
    selection = select(["toy:*"], registry=toys)
    work = work_folder(store)
    audit = partial(run_remote_pair, store=store)
    return list(audit_list(selection, PLAIN, work, Runtime(**more), audit=audit, store=store))


def test_the_index_of_a_list_is_published(toys, store):
    """It says of each pair how it stands, as that of a folder does."""
    assert [one.state for one in listed(toys, store)] == ["done", "failed"]
    index = read_index(fetched(store))
    assert [(row.pair, row.state, row.folder) for row in index.rows] == [
        ("base..one", "done", "toy/base..one"),
        ("base..gone", "failed", "toy/base..gone"),
    ]
    assert {"index.json", "batch.parquet"} < set(store.files())


def test_a_list_goes_on_on_another_machine(toys, store, monkeypatch, tmp_path):
    """What is done is known from the index at the URL: nothing is measured, what it took stays."""
    before = listed(toys, store)[0]
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "elsewhere"))
    again = listed(toys, store)[0]
    assert not again.began
    row = read_index(fetched(store)).rows[0]
    assert row.state == "done"
    assert row.seconds == pytest.approx(before.seconds, abs=1e-3)


def test_two_lists_into_one_url_are_refused(toys, store, monkeypatch):
    """The second's index is not overwritten by the first's."""

    def with_intruder(*arguments, **more):
        store.put("index.json", b"{}")
        return run_remote_pair(*arguments, **more)

    selection = select(["toy:*"], registry=toys)
    audit = partial(with_intruder, store=store)
    with pytest.raises(ShadowError, match="another list is being audited there"):
        list(audit_list(selection, PLAIN, work_folder(store), audit=audit, store=store))
    assert store.read("index.json", 100) == b"{}"


def test_an_index_that_cannot_be_written_meanwhile_does_not_end_the_list(toys, store, monkeypatch):
    """It is told, and written at the end."""
    put = Store.put_file
    failed = []

    def put_file(self, path, name):
        if name == "index.json" and not failed:
            failed.append(name)
            raise ShadowError("no")
        put(self, path, name)

    monkeypatch.setattr(Store, "put_file", put_file)
    said = []
    assert [one.state for one in listed(toys, store, say=said.append)] == ["done", "failed"]
    assert "the index is not up to date: no" in said
    assert len(read_index(fetched(store)).rows) == 2


def test_merging_from_and_into_urls(toys, pair, store, tmp_path, there):
    """As merging folders: the reports of both, and the index of both."""
    there(place=store.at("one"))
    listed(toys, store.at("two"))
    merged = merge_remote(store.at("all"), [fetched(store.at("one")), fetched(store.at("two"))])
    assert merged.copied == 2
    local = merge(tmp_path / "all", [fetched(store.at("one")), fetched(store.at("two"))])
    assert read_index(fetched(store.at("all"))) == local.index == merged.index
    assert whole(fetched(at(pair, store.at("all")))) == []
    again = merge_remote(store.at("all"), [])
    assert (again.copied, again.there) == (0, 2)


def test_a_report_of_another_schema_is_not_merged(pair, store, there):
    """Nothing but its schema is known of it."""
    there(place=store.at("one"))
    one = at(pair, store.at("one"))
    table = pq.read_table(io.BytesIO(one.read("matrices.parquet", 10**7)))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"shadow": '{"schema": 999}'}), sink)
    one.put("matrices.parquet", sink.getvalue())
    with pytest.raises(ShadowError, match="a report of schema 999"):
        merge_remote(store.at("all"), [store.at("one")])


class Traffic:
    """What comes from the memory to this machine, in bytes by file, and what the store copies."""

    def __init__(self, monkeypatch):
        self.came: Counter[str] = Counter()
        self.copied: list[str] = []
        cat, get, copy = (
            getattr(MemoryFileSystem, name) for name in ("cat_file", "get_file", "cp_file")
        )

        def cat_file(system, path, *arguments, **more):
            content = cat(system, path, *arguments, **more)
            self.came[path] += len(content)
            return content

        def get_file(system, path, *arguments, **more):
            self.came[path] += system.size(path)
            return get(system, path, *arguments, **more)

        def cp_file(system, path, *arguments, **more):
            self.copied.append(path)
            return copy(system, path, *arguments, **more)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
        monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
        monkeypatch.setattr(MemoryFileSystem, "cp_file", cp_file)

    def of(self, *suffixes):
        return {path for path in self.came if path.endswith(suffixes)}


def test_a_merge_within_a_store_fetches_no_table(toys, pair, store, tmp_path, monkeypatch, there):
    """Of each table only its end comes here, the store copies the rest, and what it copied are the
    very files; a merge into a folder has the same index.
    """
    monkeypatch.setattr(remote, "USUAL_FOOTER", 100)  # so that a footer is less than a small table
    there(place=store.at("one"))
    listed(toys, store.at("two"))
    local = merge(tmp_path / "all", [fetched(store.at("one")), fetched(store.at("two"))])
    traffic = Traffic(monkeypatch)
    merged = merge_remote(store.at("all"), [store.at("one"), store.at("two")])
    assert merged.index == local.index == read_index(fetched(store.at("all")))
    system = MemoryFileSystem()
    copied = [path for path in traffic.copied if path.endswith(".parquet")]
    assert len(copied) == 10
    for path in copied:
        target = path.replace("/one/", "/all/").replace("/two/", "/all/")
        assert system.cat_file(target) == system.cat_file(path)
    assert not [path for path in system.store if path.endswith((CLAIM, ".index-writer"))]
    assert whole(fetched(at(pair, store.at("all")))) == []


def test_a_merge_reads_only_ends_of_tables(store, monkeypatch, there):
    """Fewer bytes of each table than it has."""
    monkeypatch.setattr(remote, "USUAL_FOOTER", 100)
    there(place=store.at("one"))
    traffic = Traffic(monkeypatch)
    merge_remote(store.at("all"), [store.at("one")])
    sizes = {
        f"/bucket/reports/one/{name}": entry.size for name, entry in store.at("one").files().items()
    }
    tables = traffic.of(".parquet")
    assert len({path for path in tables if "/one/" in path}) == 5
    spectra = next(path for path in tables if path.endswith("spectra.parquet") and "/one/" in path)
    assert traffic.came[spectra] < sizes[spectra]
    assert all(
        entry.size == sizes[f"/bucket/reports/one/{name}"]
        for name, entry in store.at("all").files().items()
        if name in sizes
    )


def test_two_reports_of_a_pair_are_compared_whole(pair, store, tmp_path, monkeypatch, there):
    """Equal ones are one report; two that differ are refused and nothing is copied."""
    there(place=store.at("one"))
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "elsewhere"))
    audited(pair, store.at("two"))
    merged = merge_remote(store.at("all"), [store.at("one"), store.at("two")])
    assert (merged.copied, merged.there) == (1, 0)
    table = at(pair, store.at("two")).at("matrices.parquet")
    content = pq.read_table(io.BytesIO(table.parent.read(table.name, 10**7)))
    place = content.schema.get_field_index("frobenius_norm")
    other = content.set_column(place, content.schema.field(place), pc.multiply(content[place], 2.0))
    sink = io.BytesIO()
    pq.write_table(other, sink)
    table.parent.put(table.name, sink.getvalue())
    with pytest.raises(ShadowError, match="different reports of"):
        merge_remote(store.at("more"), [store.at("one"), store.at("two")])
    assert not store.at("more").files()


def test_reports_are_copied_by_way_of_this_machine_where_the_store_cannot(
    pair, store, monkeypatch, there
):
    """As from one store to another: the same files."""
    there(place=store.at("one"))
    monkeypatch.setattr(Store, "copy", lambda *_: False)
    merge_remote(store.at("all"), [store.at("one")])
    there, here = (
        {name: place.read(name, 10**7) for name in place.files()}
        for place in (at(pair, store.at(name)) for name in ("one", "all"))
    )
    assert there == here != {}


def test_a_report_that_changes_while_it_is_copied_is_not_merged(store, monkeypatch, there):
    """No half report: the one by which it is found is not there."""
    there(place=store.at("one"))
    copy = Store.copy

    def replaced(self, name, target):
        copy(self, name, target)
        self.put("summary.json", b"{}")
        return True

    monkeypatch.setattr(Store, "copy", replaced)
    with pytest.raises(ShadowError, match="changed while it was copied"):
        merge_remote(store.at("all"), [store.at("one")])
    assert fetched_if_any(store.at("all")) is None


def test_two_lists_that_write_an_index_at_once_do_not_mix(toys, store, monkeypatch, tmp_path):
    """One that begins between the other's look and write is refused; all files are the first's."""
    folders = []
    for name in ("first", "second"):
        monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / name))
        listed(toys, store.at(name))
        folders.append(work_folder(store.at(name)))
    target = store.at("target")
    first, second = PublishedIndex(target), PublishedIndex(target)
    put, refused = Store.put_file, []

    def put_file(self, path, name):
        if name == "batch.parquet" and not refused:
            refused.append(None)
            with pytest.raises(ShadowError, match="another audit is writing there") as fault:
                second.publish(folders[1])
            refused.append(fault.value)
        put(self, path, name)

    monkeypatch.setattr(Store, "put_file", put_file)
    first.publish(folders[0])
    assert len(refused) == 2
    for name in ("batch.parquet", "index.json"):
        assert target.read(name, 10**7) == (folders[0] / name).read_bytes()
    with pytest.raises(ShadowError, match="another list is being audited there"):
        second.publish(folders[1])
    assert CLAIM not in target.files()


def test_a_run_that_was_killed_while_it_wrote_an_index_goes_on(toys, store, monkeypatch):
    """The claim that it left is its own: it waits for nobody."""
    listed(toys, store)
    folder, published = work_folder(store), PublishedIndex(store)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_file", killed)
        patched.setattr(Store, "remove", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            published.publish(folder)
    assert CLAIM in store.files()
    published.publish(folder)
    assert CLAIM not in store.files()


# Commands


def command(*words):
    """A command in this process, which holds the memory: code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["shadow", *map(str, words)])
        # elsewhere it is refused, as it ends with the command
        patched.setattr("shadow.cli.options.require_lasting", lambda store: None)
        code = commands.run()
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = command("audit", "demo", "-o", "memory://bucket/demo", "--no-subspaces")
    assert code == 0, err
    return out


DEMO = "memory://bucket/demo"
NARROW = f"{DEMO}/demo/base..narrow"
RULE = ("--fail-on", "language.mlp.up.alpha > 100")
COMMANDS = [
    ("show", DEMO),
    ("gate", DEMO, *RULE, "--against", DEMO),
    ("lineage", "demo", "-o", DEMO, "--json"),
    ("export", DEMO, "--to", "csv", "-o", "tables"),
]
MORE_COMMANDS = [
    ("show", NARROW, "--json"),
    ("compare", NARROW, f"{DEMO}/demo/base..broad"),
    ("compare", NARROW, f"{DEMO}/demo/base..broad", "--json"),
    ("lineage", DEMO),
    ("report", DEMO, "-o", "page.html"),
    ("figure", NARROW, "--kind", "depth", "-o", "depth.svg"),
    ("plan", "demo", "-o", DEMO),
    ("merge", DEMO),
    ("clean", "-o", DEMO),
    ("audit", "demo", "-o", DEMO, "--no-subspaces", *RULE),
]


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(COMMANDS, id="some"),
        pytest.param(MORE_COMMANDS, id="more", marks=pytest.mark.slow),
    ],
)
def test_every_command_takes_urls_and_names_no_copy(demo, tmp_path, commands):
    """What is told and written names URLs, never the copies on this machine."""
    scratch = storage.scratch_folder().name
    for words in commands:
        code, out, err = command(*words)
        assert code == 0, (words, err)
        assert "Traceback" not in err
        assert scratch not in out + err, words
    written = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix in (".html", ".csv", ".svg")
    ]
    assert len(written) >= 2
    assert not [path for path in written if scratch.encode() in path.read_bytes()]
    one = "memory://bucket/demo/demo/base..narrow"
    assert f"show {one} --full" in command("show", one)[1]


def scores_at(path, pair, benchmark):
    """A file of scores in the memory."""
    rows = f"{pair.tuned},{benchmark},0.5\n{pair.base},{benchmark},0.4\n"
    MemoryFileSystem().pipe_file(path, f"model,benchmark,score\n{rows}".encode())


def test_lists_policies_and_scores_may_be_urls(pair):
    """A report says which scores joined it by their URL."""
    system = MemoryFileSystem()
    entry = f"- {{base: {pair.base}, tuned: {pair.tuned}, name: toy:base..tuned}}\n"
    system.pipe_file("/bucket/in/list.yaml", entry.encode())
    system.pipe_file("/bucket/in/policy.yaml", b"far:\n  fail_on: relative_norm > 0.01\n")
    scores_at("/bucket/in/scores.csv", pair, "mmlu")
    code, out, err = command(
        "audit", "--list", "memory://bucket/in/list.yaml", "-o", "memory://bucket/listed",
        "--no-subspaces", "--policy", "memory://bucket/in/policy.yaml", "--scores",
        "memory://bucket/in/scores.csv",
    )  # fmt: skip
    assert code == 4, err
    assert "base..tuned" in out
    kept = located("memory://bucket/listed/toy/base..tuned").read("scores.json", 10**6).decode()
    assert "memory://bucket/in/scores.csv" in kept
    assert storage.scratch_folder().name not in kept


def test_scores_may_be_a_folder_at_a_url(pair, tmp_path, monkeypatch):
    """All of its CSV and JSON files and no others, in the command and in Python; too many or too
    large ones are refused before they are fetched.
    """
    for name, benchmark in (("a.csv", "mmlu"), ("more/b.csv", "arc"), (".hidden/c.csv", "gsm8k")):
        scores_at(f"/bucket/in/{name}", pair, benchmark)
    MemoryFileSystem().pipe_file("/bucket/in/readme.txt", b"no scores")
    place = located("memory://bucket/scored")
    words = (pair.base, pair.tuned, "-o", place, "--no-subspaces")
    code, _, err = command("audit", *words, "--scores", "memory://bucket/in")
    assert code == 0, err
    kept = at(pair, place).read("scores.json", 10**6).decode()
    assert "memory://bucket/in/more/b.csv" in kept
    assert ("mmlu" in kept, "arc" in kept, "gsm8k" in kept) == (True, True, False)
    report = package.audit(pair, output=tmp_path / "py", scores="memory://bucket/in")
    assert {gain.benchmark for gain in report.summary.scores} == {"mmlu", "arc"}
    monkeypatch.setattr("shadow.comparing.score_files.MAX_FILES", 1)
    with pytest.raises(ShadowError, match="more than 1 files"):
        package.audit(pair, output=tmp_path / "x", scores="memory://bucket/in")
    monkeypatch.setattr("shadow.comparing.score_files.MAX_FILE", 10)
    with pytest.raises(ShadowError, match="larger than 10 bytes"):
        package.audit(pair, output=tmp_path / "x", scores="memory://bucket/in/a.csv")


def test_a_fault_in_a_list_at_a_url_names_the_url_and_the_line(tmp_path, monkeypatch):
    MemoryFileSystem().pipe_file("/bucket/in/list.txt", b"demo\nnothing-like-it\n")
    code, _, err = command("audit", "--list", "memory://bucket/in/list.txt", "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: memory://bucket/in/list.txt:2: ")
    code, _, err = command("audit", "--list", "memory://bucket", "-o", tmp_path / "out")
    assert (code, err.splitlines()[0]) == (1, "error: memory://bucket: no such file")
    code, _, err = command("audit", "--list", "memory://bucket/in/gone.txt", "-o", tmp_path / "out")
    assert code == 1
    assert err.startswith("error: memory://bucket/in/gone.txt: no such file")


def test_a_missing_baseline_at_a_url(there, store):
    there()
    words = ("gate", store, "--against", "memory://bucket/gone")
    code, _, err = command(*words)
    assert code == 1
    assert "no such folder: memory://bucket/gone" in err
    code, _, err = command(*words, "--allow-missing")
    assert code == 0
    assert "there is no folder memory://bucket/gone" in err


def test_the_python_api_takes_urls(pair, tmp_path, monkeypatch):
    """A report at a URL has the tables of one in a folder."""
    # which a plan measures for a second
    monkeypatch.setattr("shadow.audits.pair_plan.pace", lambda method, jobs, offload: 1e10)
    there, here = (
        package.audit(pair, output=output, subspaces=False)
        for output in ("memory://bucket/api", tmp_path / "here")
    )
    assert there.matrices.equals(here.matrices)
    assert f"memory://bucket/api/{pair.family}/{pair.name}" in repr(there)
    read = package.read("memory://bucket/api")
    assert read.provenance.as_json() == there.provenance.as_json()
    assert read.spectrum(read.deltas["tensor"][0]).size
    assert package.judge("memory://bucket/api", "concentration > 0.9").code == 0
    package.export("memory://bucket/api", "csv", tmp_path / "tables")
    assert package.plan(pair, output="memory://bucket/api")


# URLs and options


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://b/x/y", "s3://b/x/y"),
        (Path("s3://b/x/y"), "s3://b/x/y"),
        ("S3://b/x", "s3://b/x"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        (Path("hf://buckets/a/b/c"), "hf://buckets/a/b/c"),
        ("reports", None),
        ("./s3:/x", None),
        ("C:/x", None),
        ("demo:base..narrow", None),
    ],
)
def test_a_url_is_one_also_after_pathlib(place, url):
    assert url_of(place) == url


def test_a_file_url_is_a_folder_of_this_machine(tmp_path):
    assert located(f"file://localhost{tmp_path}/a%20b") == tmp_path / "a b"
    assert located(f"file://{tmp_path}/a%23b%3F") == tmp_path / "a#b?"
    assert located("file:///localhost/x") == Path("/localhost/x")
    assert located(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert located("reports") == Path("reports")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2hunter2@bucket/x", "may hold no account and no password"),
        ("abfs://container@account.dfs.core.windows.net/x", "may hold no account"),
        ("s3://AKIAIOSFODNN7EXAMPLE:hunter2/hunter2hunter2/x@bucket/x", "may hold no account"),
        ("s3://user:hunter2@hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://user:?/hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://?hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://user:hunter2hunter2/x", "may hold no account"),
        ("s3://user:hunter2hunter2:9000/x", "may hold no account"),
        ("s3://minio.example.org:9000/bucket/x", "may name no server and no port"),
        ("ftp://user:hunter2/hunter2hunter2@host/x", "ftp:// are not supported"),
        ("file:///tmp/a?hunter2hunter2", "may have no query"),
        ("file:///tmp/a#hunter2hunter2", "may have no query"),
        ("s3://bucket/x?X-Amz-Signature=hunter2hunter2", "may have no query"),
        ("s3://bucket/x#hunter2hunter2", "may have no query"),
        (
            "https://user:hunter2hunter2@host/list?sig=hunter2hunter2",
            "web addresses are not supported",
        ),
        ("ftp://user:hunter2hunter2@host/x", "ftp:// are not supported"),
        ("s3://", "no bucket or folder"),
        ("s3://bucket/../x", "no bucket or folder"),
    ],
)
def test_urls_that_are_refused_before_anything_is_reached(url, message):
    """With exit code 2, and nothing told that may be a credential."""
    with pytest.raises(UsageError, match=message) as raised:
        located(url)
    assert SECRET not in f"{raised.value.message} {raised.value.hint}"
    code, out, err = command("show", url)
    assert code == 2
    assert SECRET not in out + err


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/10:30/x@y",
        "s3://bucket/a@b:c",
        "hf://datasets/a/b@main/x",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/x",
    ],
)
def test_a_key_may_have_a_colon_and_an_at_sign(url):
    """Only before the first slash are they those of an account."""
    assert located(url) == Store(url)


@pytest.mark.parametrize(
    "url", ["hf://datasets/a/b/x", "hf://spaces/a/b", "hf://a/b", "hf://buckets/a"]
)
def test_repositories_of_the_hub_are_refused_as_output(url):
    code, _, err = command("audit", "demo", "-o", url)
    assert code == 2
    assert "hf://buckets/NAME/BUCKET/FOLDER" in err


@pytest.mark.parametrize(
    "text",
    ['{"key": "hunter2hunter2"', '["hunter2hunter2"]', "/no/such/hunter2", '{"a": hunter2hunter2}'],
)
def test_options_that_cannot_be_read_are_not_told(text, tmp_path):
    with pytest.raises(UsageError) as raised:
        parsed_options(text)
    assert "hunter2" not in f"{raised.value.message} {raised.value.hint}"
    code, out, err = command("show", "memory://bucket/x", "--storage-options", text)
    assert code == 2
    assert "hunter2" not in out + err


def test_options_come_from_json_a_file_or_the_environment(tmp_path, monkeypatch):
    told = {"key": SECRET, "client_kwargs": {"region_name": "x"}}
    (tmp_path / "options.json").write_text(json.dumps(told))
    assert (
        parsed_options(json.dumps(told)) == parsed_options(str(tmp_path / "options.json")) == told
    )
    assert parsed_options(None) == {}
    given = []
    monkeypatch.setattr(
        storage, "driver", lambda _, options, __: given.append(options) or MemoryFileSystem()
    )
    monkeypatch.setenv("SHADOW_STORAGE_OPTIONS", json.dumps(told))
    command("show", "memory://bucket/x")
    assert json.loads(given[0]) == told


def test_a_store_tells_no_option():
    store = located("s3://bucket/x", {"key": "id", "secret": SECRET})
    assert SECRET not in f"{store} {store!r} {store.at('a')!r}"
    assert pickle.loads(pickle.dumps(store)) == store


class AnswerError(OSError):
    """What a driver raises; it tells what it was given."""


@pytest.mark.parametrize(
    "kind", [OSError, PermissionError, TimeoutError, ConnectionError, AnswerError]
)
def test_no_credential_of_a_drivers_fault_is_told(kind, monkeypatch, store):
    """No option's value, no secret of the environment, no signed query, also not in a traceback."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret-1")
    text = f"GET http://u:p4ssw0rd@h/x?X-Amz-Signature=abcdef with {SECRET} and env-secret-1"
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *_, **__: (_ for _ in ()).throw(kind(text))
    )
    secret = replace(store, options={"client_kwargs": {"token": SECRET}})
    with pytest.raises(ShadowError) as raised:
        secret.files()
    told = "".join(traceback.format_exception(raised.value)) + str(raised.value.hint)
    for word in (SECRET, "env-secret-1", "abcdef", "p4ssw0rd"):
        assert word not in told.replace(text, "")
    assert raised.value.message.startswith("memory://bucket/reports: ")


@pytest.mark.parametrize(
    "text",
    [
        "key hunter2hunter2 pin 12345678",
        "http://user:p4/ss@hunter2hunter2@host/x refused",
        "Invalid endpoint: user:p4/ss@hunter2hunter2@host",
        "lower-secret-1",
        "Sig=a%2Fb%2Bhunter2hunter2%3D",
        "Sig=a%2fb%2bhunter2hunter2%3d",
        "-----BEGIN KEY-----\\nMIIhunter2hunter2\\n",
    ],
)
def test_no_form_of_a_secret_is_told(text, monkeypatch, store):
    """Also a number, a line of a key, what a URL makes of it, and a variable in lower case."""
    monkeypatch.setenv("azure_storage_key", "lower-secret-1")
    options = {
        "token": {"private_key": f"-----BEGIN KEY-----\nMII{SECRET}\n-----END KEY-----\n"},
        "pin": 12345678,
        "secret": f"a/b+{SECRET}=",
        "more": [SECRET] if text.startswith("key") else [],
    }
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *_, **__: (_ for _ in ()).throw(OSError(text))
    )
    with pytest.raises(ShadowError) as raised:
        replace(store, options=options).files()
    for word in (SECRET, "12345678", "lower-secret-1", "p4"):
        assert word not in raised.value.message


def test_a_fault_of_shadow_keeps_its_traceback(monkeypatch, store):
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.files()


def test_work_goes_on_in_one_folder_for_one_url(monkeypatch, tmp_path):
    """Two URLs never share one; its name shows which it is."""
    one, two = located("s3://a/reports"), located("s3://b/reports")
    assert work_folder(one) == work_folder(replace(one, options={"anon": True})) != work_folder(two)
    assert work_folder(one).name.startswith("reports-")
    monkeypatch.delenv("SHADOW_WORK_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert work_folder(one).parent == tmp_path / "shadow" / "work"


def test_a_pair_that_another_process_works_on_is_refused(pair, store, target, monkeypatch):
    """On one machine: while one audits into a URL, a second one of the same pair ends at once."""
    refused = []

    def slow(*arguments, **more):
        with pytest.raises(BusyError, match="another audit is writing to"):
            audited(pair, store)
        refused.append(1)
        return run_pair(*arguments, **more)

    monkeypatch.setattr("shadow.audits.remote.run_pair", slow)
    audited(pair, store)
    assert refused == [1]
    assert whole(fetched(target)) == []


def test_a_pair_waits_for_another_process_as_long_as_it_may(pair, store, target, monkeypatch):
    """An engine's task has patience: it says once that it waits, and goes on when it can."""
    folder = work_folder(store) / pair.family / pair.name
    folder.mkdir(parents=True)
    held = [os.open(folder, os.O_RDONLY)]
    assert lock(held[0]) == "ours"
    monkeypatch.setattr("time.sleep", lambda _: os.close(held.pop()) if held else None)
    _, said = audited(pair, store, patience=60.0)
    assert said[0] == f"waiting: another audit is writing to {folder}"
    assert not held
    assert whole(fetched(target)) == []


def test_a_folder_that_another_process_removes_at_its_end_is_taken(pair, store, monkeypatch):
    folder = work_folder(store) / pair.family / pair.name

    def removed_meanwhile(handle):
        folder.rmdir()
        return lock(handle)

    monkeypatch.setattr("shadow.audits.list_index.lock", removed_meanwhile)
    with pytest.raises(BusyError, match="another audit is writing to"):
        audited(pair, store)


def test_a_report_of_other_settings_that_waits_here_is_not_removed(
    pair, store, target, monkeypatch, there
):
    """After a failed upload the same report is asked for again: the one that waits stays."""
    there()
    fails_to_upload(monkeypatch, 1, audited, pair, store, FIRST, overwrite=True)
    folder = work_folder(store) / pair.family / pair.name
    result, said = audited(pair, store)
    assert result.measured == 0
    assert f"a report of other settings or files, which was not uploaded, stays in {folder}" in said
    assert whole(folder) == [0]
    audited(pair, store, FIRST, overwrite=True)
    assert whole(fetched(target)) == [0]


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gs"), ("az://b/x", "az")]
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch, url, extra):
    """Wrong usage, exit code 2, with the command that installs it."""
    monkeypatch.setattr("shadow.extras.is_installed", lambda _: False)
    code, _, err = command("show", url)
    assert code == 2
    error, hint = err.splitlines()
    assert error.startswith(f"error: {url}: ")
    assert error.endswith("is not installed")
    assert hint == f"hint:  in a clone of shadow, type: pip install '.[{extra}]'"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://bucket/x", {"token": {"a": SECRET}}),
        ("az://bucket/x", {"account_name": "a", "account_key": SECRET[:9]}),
        ("hf://buckets/name/bucket/x", {"endpoint": "hub.example.org"}),
    ],
)
def test_options_of_other_drivers_that_are_wrong(url, options):
    """As those of S3; a driver that is not installed is left out."""
    scheme = storage.SCHEMES[url.partition(":")[0]]
    if scheme.extra is not None:
        pytest.importorskip({"gs": "gcsfs", "az": "adlfs"}[scheme.extra])
    with pytest.raises(UsageError, match=f"^{url}: wrong options") as raised:
        located(url, options).files()
    assert SECRET[:9] not in raised.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"config_kwargs": SECRET},
        {"client_kwargs": SECRET},
        {"endpoint_url": "minio.example.org"},
        {"endpoint_url": f"alice:{SECRET}@minio.example.org"},
        {"endpoint_url": 5},
        {"session": SECRET},
        {"loop": 3},
        {"asynchronous": True},
        {"config_kwargs": {"s3": 3}},
        {"client_kwargs": {"region_name": 5}},
    ],
)
def test_options_that_a_driver_does_not_know_are_wrong_usage(store, options):
    """Told before anything is reached, with no value."""
    wrong = replace(store, url="s3://bucket/x", options=options)
    with pytest.raises(UsageError, match=r"^s3://bucket/x: wrong options \(") as raised:
        wrong.files()
    assert SECRET not in raised.value.message


@pytest.mark.parametrize(
    ("url", "driver", "options"),
    [
        ("s3://bucket/x", "s3fs", {"endpoint_url": "http://{}", "key": "a", "secret": SECRET}),
        ("gs://bucket/x", "gcsfs", {"endpoint_url": "http://{}", "token": "anon"}),
        ("az://bucket/x", "adlfs", {"account_name": 5, "account_host": "{}", "anon": True}),
    ],
)
def test_a_store_that_never_answers_is_given_up(url, driver, options, monkeypatch):
    """Drivers themselves try for minutes. Once it has answered, they may."""
    pytest.importorskip(driver)
    monkeypatch.setattr(storage, "FIRST_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        given = json.loads(json.dumps(options).replace("{}", address))
        with pytest.raises(ShadowError, match=f"^{url}: no usable answer within 1 s") as raised:
            located(url, given).files()
    assert raised.value.hint.startswith("check the network, the endpoint and --storage-options (or")


@pytest.mark.parametrize(
    ("url", "driver", "options"),
    [
        ("s3://bucket/x", "s3fs", {"endpoint_url": "http://{}", "key": "a", "secret": SECRET}),
        ("gs://bucket/x", "gcsfs", {"endpoint_url": "http://{}"}),
        ("az://bucket/x", "adlfs", {"account_name": "a", "account_host": "{}", "anon": True}),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nobody.invalid"])
def test_a_server_that_takes_no_connection_is_reported_in_seconds(
    url, driver, options, address, monkeypatch
):
    """Drivers try for half a minute, and Google's also asks for credentials elsewhere."""
    pytest.importorskip(driver)
    monkeypatch.setattr(storage, "CONNECTED", 0.5)
    given = json.loads(json.dumps(options).replace("{}", address))
    began = time.monotonic()
    host = address.partition(":")[0]
    with pytest.raises(ShadowError, match=f"^{url}: {host} cannot be reached") as raised:
        located(url, given).files()
    assert time.monotonic() - began < 4
    assert raised.value.hint.startswith("check the network and the endpoint")


def test_a_server_that_begins_to_listen_meanwhile_is_reached(monkeypatch):
    """One refused connection is no reason to give up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listening = []

    def listen():
        time.sleep(0.6)
        listening.append(socket.create_server(("127.0.0.1", port)))

    starting = threading.Thread(target=listen)
    starting.start()
    assert storage._unconnected("127.0.0.1", port) is None
    starting.join()
    listening[0].close()


def test_an_endpoint_without_a_scheme_is_wrong_usage(monkeypatch):
    """One line that says what is missing, and no password."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"alice:{SECRET}@minio.example.org")
    code, _, err = command("show", "s3://bucket/x")
    assert code == 2
    error, hint = err.splitlines()
    assert error == "error: s3://bucket/x: wrong options (Invalid endpoint: ***@minio.example.org)"
    assert hint.startswith("hint:  an endpoint begins with https:// or http://; check ")


def test_an_answer_that_no_driver_can_read_is_a_fault_of_the_store(store, monkeypatch):
    """As of a web page at the endpoint: exit code 1."""
    monkeypatch.setattr(storage, "is_of_driver", lambda _: True)
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: json.loads("<html>"))
    with pytest.raises(ShadowError, match="the store's answer cannot be read") as raised:
        store.files()
    assert not isinstance(raised.value, UsageError)


def test_a_condition_that_does_not_hold_is_no_fault(store, monkeypatch):
    """The driver of Google's store answers 412 where others say that the file exists."""

    class HttpError(Exception):
        code = 412

    assert store.create("claim", b"first")
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(HttpError())
    )
    assert not store.create("claim", b"second")
    assert store.create("claim", b"first")


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "{}", "demo"),
        ("plan", "{}", "{}"),
        *((command, "{}") for command in ("families", "explain", "schema", "reproduce", "show")),
    ],
)
@pytest.mark.parametrize("secret", ["hushhush", "hush/hush", "hu@sh"])
def test_a_password_in_a_word_that_is_no_place_is_not_told(shadow, words, secret):
    """Any command may say what it does not know."""
    done = shadow(*(word.format(f"s3://KEY:{secret}@bucket/x") for word in words))
    assert done.code in (1, 2)
    assert "KEY" not in done.out + done.err
    assert "hu" not in done.out + done.err.replace("hub", "").replace("Hub", "")
