"""Summaries of equal tables are made once for all tests of audits: they take longer than toys."""

from __future__ import annotations

import hashlib
import json

import planted
import pyarrow as pa
import pytest
import torch
from planted import UP, matrices

from shadow.audits import pair
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
    for module in (reading, pair):
        monkeypatch.setattr(module, "summarise", _summarise_once)


@pytest.fixture
def toys(tmp_path):
    """A registry of four families over toy checkpoints: `bad` has a pair without a tuned side."""
    for seed, name in enumerate(("base", "one", "two")):
        planted.toy(tmp_path / name, seed)
    odd = {**matrices(1), UP.format(0): torch.full((8, 8), float("nan"))}
    planted.write(tmp_path / "odd", odd, planted.LLAMA)
    (tmp_path / "toys.yaml").write_text(
        "toy-a: {base: ./base, one: ./one, two: ./two, tags: [toy]}\n"
        "toy-bad: {base: ./base, gone: ./gone, one: ./one, tags: [toy]}\n"
        "toy-c: {base: ./one, two: ./two}\n"
        "toy-odd: {base: ./base, odd: ./odd}\n"
    )
    return tmp_path
