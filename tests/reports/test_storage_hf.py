"""Reports in a bucket of the Hub, by way of the real client: `hf://buckets/ORG/BUCKET/FOLDER`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from buckets import BUCKET, Buckets, bucket_server

import shadow
from shadow.errors import ShadowError
from shadow.storage import Store, located


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    with bucket_server(monkeypatch) as held:
        yield held


@pytest.fixture
def store(held: Buckets) -> Store:
    return located(f"hf://buckets/{BUCKET}/reports", held.options())


def test_small_files_are_written_read_and_removed(held, store):
    """What is there is read; what is not is None; a name that another one begins with is not it."""
    store.put("a/one.json", b"{}")
    store.put("a/one.json.new", b"more")
    assert store.read("a/one.json", 10) == b"{}"
    assert store.read("a/one", 10) is None
    assert store.read("b/one.json", 10) is None
    assert store.read_end("a/one.json.new", 4, 3) == b"ore"
    entry = store.entry("a/one.json")
    assert entry is not None
    assert entry.size == 2
    store.remove(["a/one.json", "a/nothing"])
    assert store.read("a/one.json", 10) is None
    assert list(held.files) == ["reports/a/one.json.new"]


def test_files_are_listed_over_several_pages(held, store):
    """Eight files, three an answer, and none of a folder whose name begins alike."""
    for number in range(8):
        store.put(f"{number % 2}/{number}.json", bytes(number))
    located(f"hf://buckets/{BUCKET}/reports-of-others", held.options()).put("x", b"x")
    assert {name: len(bytes(int(name[2]))) for name in store.files()} == {
        f"{number % 2}/{number}.json": number for number in range(8)
    }


def test_files_come_whole_and_go_whole(held, store, tmp_path):
    """A file from the disk into the bucket and back; one that came short is refused."""
    (tmp_path / "table").write_bytes(b"t" * 1000)
    store.put_file(tmp_path / "table", "r/table.parquet")
    store.fetch({"r/table.parquet": 1000}, tmp_path / "back")
    assert (tmp_path / "back" / "r" / "table.parquet").read_bytes() == b"t" * 1000
    with pytest.raises(ShadowError, match="only a part of it arrived"):
        store.fetch({"r/table.parquet": 1001}, tmp_path / "again")


def test_the_second_of_two_writers_does_not_create(store):
    """What another one created stays."""
    assert store.create("claim", b"one")
    assert not store.create("claim", b"two")
    assert store.read("claim", 10) == b"one"
    assert store.modified("claim") is not None  # by which a claim without a time grows old
    assert store.modified("nothing") is None


@pytest.mark.parametrize(
    ("url", "options"),
    [("hf://buckets/org/other/reports", {}), (f"hf://buckets/{BUCKET}/r", {"token": "hf_wrong"})],
)
def test_a_bucket_that_is_not_there_or_not_open_is_one_line(held, url, options):
    """No traceback, no token, and a hint."""
    with pytest.raises(ShadowError) as caught:
        located(url, {**held.options(), **options}).put("a", b"a")
    assert "\n" not in caught.value.message
    assert "hf_" not in caught.value.message
    assert caught.value.hint


@pytest.mark.slow
def test_reports_are_those_of_a_folder_and_are_made_once(held, store, tmp_path, capfd):
    """An audit into a bucket: the bytes of a folder's report, the file that makes it complete last,
    no claim left; the same audit again measures nothing, and a damaged upload is made again.
    """
    quick: dict[str, Any] = {"layers": [0], "modules": ["mlp.up"], "subspaces": False}
    options = held.options()
    said: list[str] = []

    def audit() -> shadow.AuditReport:
        return shadow.audit(
            "demo:base..narrow", output=store.url, storage_options=options, say=said.append, **quick
        )

    there = audit()
    assert not capfd.readouterr().err  # the client would draw bars
    here = shadow.audit("demo:base..narrow", output=tmp_path, **quick)
    assert there.summary.figures == here.summary.figures
    names = {path.split("/")[-1] for path in held.files}
    assert names == {path.name for path in here.folder.iterdir() if path.is_file()}
    matrices = next(path for path in held.files if path.endswith("matrices.parquet"))
    assert held.written[-1] == matrices
    before = dict(held.files)
    assert audit().summary.figures == here.summary.figures
    assert held.files == before
    assert any("nothing to measure" in line for line in said)
    del held.files[matrices]
    audit()
    assert matrices in held.files
