"""Lists and merges at URLs: an index that is whole, tables that are not fetched."""

from __future__ import annotations

import io
from collections import Counter
from functools import partial

import models
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stores import PLAIN, at, audited, whole

from shadow.audits.list_audit import audit_list
from shadow.audits.list_index import read_index
from shadow.audits.merging import merge
from shadow.audits.pair import Runtime
from shadow.audits.remote import merge_remote, run_remote_pair
from shadow.errors import ShadowError
from shadow.reports import remote
from shadow.reports.remote import CLAIM, PublishedIndex, fetched, fetched_if_any
from shadow.storage import Store, work_folder
from shadow.targets.lists import select

pytestmark = pytest.mark.usefixtures("memory")

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
