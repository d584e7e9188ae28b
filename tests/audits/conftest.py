"""Summaries of equal tables are made once for all tests of audits: they take longer than toys."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pytest

from shadow.audits import finished, pair
from shadow.telling import reading

MADE = {}


def _summarise_once(tables, metadata, summarise=reading.summarise):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, table in sorted(tables.items()):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata().combine_chunks())
        digest.update(name.encode() + memoryview(sink.getvalue()))
    if digest.digest() not in MADE:
        MADE[digest.digest()] = summarise(tables, metadata)
    return MADE[digest.digest()]


@pytest.fixture(autouse=True)
def _each_summary_once(monkeypatch, request):
    if request.node.get_closest_marker("slow"):  # one of them counts what is in memory
        return
    for module in (reading, pair, finished):
        monkeypatch.setattr(module, "summarise", _summarise_once)
