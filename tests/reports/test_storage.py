"""Reports at URLs, on fsspec's memory: whole or not at all, whatever fails meanwhile."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stores import FIRST, PLAIN, TABLES, Fault, audited, fails_to_upload, whole

from shadow.audits.pair import Runtime, run_pair
from shadow.audits.remote import run_remote_pair
from shadow.errors import BusyError, KeptError, ShadowError
from shadow.files import lock
from shadow.reports import remote
from shadow.reports.provenance import finished_metadata
from shadow.reports.remote import CLAIM, fetched, fetched_if_any, publish, published_metadata
from shadow.storage import Store, located, work_folder

pytestmark = pytest.mark.usefixtures("memory")

# Publishing


def test_a_report_at_a_url_is_the_one_of_a_folder(pair, store, target, tmp_path):
    """The same files with the same data; nothing of the pair is left on this machine."""
    result, _ = audited(pair, store)
    here = run_pair(pair, PLAIN, tmp_path / "out").folder
    there = fetched(target)
    assert result.url == "memory://bucket/reports/" + f"{pair.family}/{pair.name}" == str(target)
    tables = [f"{name}.parquet" for name in TABLES]
    assert all(pq.read_table(there / one).equals(pq.read_table(here / one)) for one in tables)
    names = sorted(path.name for path in here.iterdir())
    assert sorted(path.name for path in there.iterdir()) == sorted(target.files()) == names
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
    differs = r"memory://bucket/reports/\S+: the finished report there differs: --layer all"
    with pytest.raises(KeptError, match=differs):
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


TIMELESS = [
    b"not json", b"[]", b'{"token": "you"}', b'{"token": "you", "at": "2026"}',
    b'{"token": "you", "at": "2999-01-01T00:00:00+00:00"}',
]  # fmt: skip


@pytest.mark.parametrize("claimed", TIMELESS)
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
    how = f"wait for it; if no audit writes there any more, remove {target}/{CLAIM}"
    assert raised.value.hint == how
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
            rest = sizes.keys() - half.keys()
            sizes = {name: one.size for name, one in target.files().items() if name in rest}
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
        for folder in ("..", "a/../../b", "a\\b", ".x/y", "a/b/c"):
            MemoryFileSystem().pipe_file(f"/bucket/reports/{folder}/{name}", bytes_of)
    MemoryFileSystem().pipe_file("/bucket/reports/a/b/notes.txt", b"x")
    MemoryFileSystem().pipe_file("/bucket/reports2/a/b/matrices.parquet", b"x")
    folder = fetched(store)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {f"{pair.family}/{pair.name}/{name}" for name in content}


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


TORN = (b"", b"PAR1", b"x" * 100, b"PAR1" + b"\xff" * 20 + b"PAR1")


@pytest.mark.parametrize(
    ("table", "content", "overwrite"),
    [
        *(("matrices", content, False) for content in (*TORN, None)),
        *((table, b"", True) for table in ("matrices", "tensors")),
        *(("tensors", content, False) for content in (b"", None)),
        ("spectra", None, False),
    ],
)
def test_a_report_at_a_url_with_a_broken_or_missing_table_is_measured_again(
    pair, store, target, table, content, overwrite, there
):
    """As in a folder; it is said which table is missing."""
    there()
    target.remove([f"{table}.parquet"])
    if content is not None:
        target.put(f"{table}.parquet", content)
    if content is not None and table == "matrices":
        with pytest.raises(ShadowError, match=r"matrices.parquet cannot be read"):
            published_metadata(target)
    result, said = audited(pair, store, overwrite=overwrite)
    assert result.measured == 2
    if content is not None:
        assert said[0].startswith(f"measuring again: {target}")
    elif table != "matrices":
        assert f"{table}.parquet is missing from this report" in said[0]
    assert whole(fetched(target)) == []
    assert f"{table}.parquet" in target.files()
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
