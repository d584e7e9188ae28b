"""A memory that is empty for each test, and finished reports of a pair to publish in it."""

from __future__ import annotations

import models
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from runs import pair_of
from stores import FIRST, PLAIN, at

from shadow.audits.pair import run_pair
from shadow.reports import remote
from shadow.reports.remote import publish
from shadow.storage import located


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """An empty memory, and a folder of this test to work in."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    monkeypatch.setattr(remote, "POLL", 0.01)
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two toy checkpoints of two layers."""
    folder = tmp_path_factory.mktemp("pair")
    return pair_of(*(models.toy(folder / name, n) for n, name in enumerate(("base", "tuned"))))


@pytest.fixture(scope="session")
def finished(pair, tmp_path_factory):
    """Two finished reports of the pair that differ."""
    folder = tmp_path_factory.mktemp("finished")
    asked = {"first": PLAIN, "second": FIRST}
    return {
        name: run_pair(pair, settings, folder / name).folder for name, settings in asked.items()
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


@pytest.fixture
def target(pair, store):
    """Where the report of the pair is published."""
    return at(pair, store)
