"""Reports in fsspec's memory: audits into it, writes that fail, and whether a report is whole."""

from __future__ import annotations

import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shadow.audits.pair import Runtime, Settings
from shadow.audits.remote import run_remote_pair
from shadow.checkpoints.pairing import Filter
from shadow.errors import ShadowError
from shadow.reports.report import Report
from shadow.spectra.delta import Method
from shadow.storage import work_folder
from shadow.telling.reading import read_summary

PLAIN = Settings(Method(subspaces=False), Filter())
FIRST = Settings(Method(subspaces=False), Filter(layers=(0,)))
TABLES = ["matrices", "tensors", "files", "spectra"]


def at(pair, store):
    return store.at(pair.family, pair.name)


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
