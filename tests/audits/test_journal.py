"""What an unfinished audit left: a line of the journal counts if rows can be made of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from effort import chosen
from measuring import StoppedError, planted_pair, stopped_after

from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.reports.provenance import Identity
from shadow.run.journal import Journal
from shadow.run.outcome import Outcome
from shadow.spectra.delta import Method

SETTINGS = Settings(Method(), Filter())
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
GONE = object()

FAULTS = [
    ((), None),
    (("key",), [1]),
    (("status",), "else"),
    (("status",), ["measured"]),
    (("reason",), ["tied"]),
    (("reason",), "no word of ours"),
    (("detail",), True),
    (("detail",), "\ud800"),
    (("delta_norm",), "x"),
    (("base_norm",), 10**400),
    (("base_norm",), float("inf")),
    (("seconds",), None),
    (("cached",), 1.5),
    (("verified", 0), 7),
    (("measurements",), []),
    (("measurements", 0, "subject"), ["base"]),
    (("measurements", 1, "subject"), "delta"),
    (("measurements", 0, "precision"), True),
    (("measurements", 0, "values"), None),
    (("measurements", 0, "values", "frobenius_norm"), GONE),
    (("measurements", 0, "values", "frobenius_norm"), "x"),
    (("measurements", 2, "values", "kept_history"), 1),
    (("measurements", 2, "values", "numerical_rank"), 1.5),
    (("measurements", 2, "values", "numerical_rank"), 10**400),
    (("measurements", 2, "values", "of another version"), 1.0),
    (("checksums",), []),
    (("checksums", "base"), "x"),
    (("checksums", "base", UP), 7),
]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A pair of a matrix and a vector, and a folder with all of its outcomes in a journal."""
    folder = tmp_path_factory.mktemp("unfinished")
    base = {UP: torch.eye(8, 6), NORM: torch.ones(6)}
    tuned = {name: W + torch.arange(W.numel()).view(W.shape) for name, W in base.items()}
    pair = planted_pair(folder, base, tuned)
    stopping = Runtime(show=stopped_after(2), jobs=1)
    with pytest.raises(StoppedError):
        run_pair(pair, SETTINGS, folder / "out", stopping)
    return pair, folder / "out"


def changed(entry, path, value):
    """An entry with another value somewhere, or without what is there."""
    if not path:
        return value
    inner = entry
    for step in path[:-1]:
        inner = inner[step]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return entry


@pytest.mark.parametrize("fault", chosen(FAULTS, (FAULTS[5], FAULTS[6], FAULTS[17], FAULTS[22])))
def test_a_line_of_wrong_types_is_measured_again(unfinished, tmp_path, fault):
    """It ended in a traceback, when all else was measured; the line of the vector stands first."""
    pair, there = unfinished
    shutil.copytree(there, tmp_path / "out")
    journal = next(tmp_path.glob("out/*/*/.partial/journal.jsonl"))
    first, *lines = journal.read_text(encoding="utf-8").splitlines()
    matrix, vector = sorted(map(json.loads, lines), key=lambda entry: entry["status"])
    assert (matrix["status"], vector["status"]) == ("measured", "skipped")
    lines = first, json.dumps(vector), json.dumps(changed(matrix, *fault)), ""
    journal.write_text("\n".join(lines), encoding="utf-8")
    states = []
    result = run_pair(pair, SETTINGS, tmp_path / "out", Runtime(show=states.append, jobs=1))
    assert states[0].done == 1
    assert result.measured == 1
    names = pq.read_table(result.folder / "matrices.parquet")["subject"].to_pylist()
    assert names == ["base", "tuned", "delta"]


SIDE = {"repo": "./x", "commit": None, "fingerprint": "0"}
IDENTITY = Identity("1", 1, "f", "a..b", SIDE, SIDE, {"chosen": {}})
OUTCOMES = [Outcome(f"key {number}", "identical") for number in range(3)]


def of_journal(folder, identity=IDENTITY, add=()):
    """The keys that a journal holds when it is opened, and then some outcomes are added."""
    journal = Journal(folder, identity)
    try:
        keys = list(journal.outcomes)
        for outcome in add:
            journal.add(outcome)
    finally:
        journal.close()
    return keys


@pytest.mark.parametrize("lost", [1, 2, 30])
def test_behind_a_tail_that_was_cut_the_journal_goes_on(tmp_path, lost):
    """The line that is not whole is gone from the file, and what is added then is read back."""
    assert of_journal(tmp_path, add=OUTCOMES) == []
    file = tmp_path / ".partial/journal.jsonl"
    file.write_bytes(file.read_bytes()[:-lost])
    keys = [outcome.key for outcome in OUTCOMES]
    assert of_journal(tmp_path, add=OUTCOMES[2:]) == keys[:2]
    assert of_journal(tmp_path) == keys


def test_outcomes_of_another_audit_are_dropped(tmp_path):
    """Of another identity, or behind a first line that is none."""
    of_journal(tmp_path, add=OUTCOMES)
    other = replace(IDENTITY, settings={"chosen": {"layers": [1]}})
    assert of_journal(tmp_path, other, OUTCOMES[:1]) == []
    assert of_journal(tmp_path, other) == [OUTCOMES[0].key]
    file = tmp_path / ".partial/journal.jsonl"
    file.write_bytes(b"{}\n" + file.read_bytes())
    assert of_journal(tmp_path, other) == []
