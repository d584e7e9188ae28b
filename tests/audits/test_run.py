"""Whole audits of small checkpoints: numbers, resuming, determinism, memory."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from measuring import StoppedError, frame, pair_of, planted_pair, report_contents, stopped_after
from safetensors.torch import load_file

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError
from shadow.run import journal, pair_plan
from shadow.run.machine import (
    MachineLimits,
)
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

EVERYTHING = Settings(Method(), Filter())


def run(base, tuned, output, settings=EVERYTHING, runtime=Runtime()):  # noqa: B008 - frozen
    return run_pair(pair_of(base, tuned), settings, output, runtime)


def tables(folder):
    return {
        name: pq.read_table(folder / f"{name}.parquet")
        for name in ("matrices", "tensors", "spectra")
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    base = planted.saved("llama", folder / "base")
    return base, planted.perturbed(base, folder / "tuned")


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """The report of all of it."""
    return run(*llama, tmp_path_factory.mktemp("whole"))


def test_files_are_what_the_schema_says(llama, whole):
    """A row per tensor and side, norms by spectra, shares that add up to one."""
    found = tables(whole.folder)
    for name in found:
        metadata = json.loads(found[name].schema.metadata[b"shadow"])
        assert metadata["base"].keys() == {"repo", "commit", "fingerprint", "content"}
    matrices, tensors, spectra = (found[name].to_pandas() for name in found)
    names = set(load_file(llama[0] / "model.safetensors"))
    assert sorted(zip(tensors["side"], tensors["tensor"], strict=True)) == sorted(
        (side, name) for side in ("base", "tuned") for name in names
    )
    norms = [np.linalg.norm(sigma) for sigma in spectra["sigma"]]
    np.testing.assert_allclose(norms, matrices["frobenius_norm"], rtol=1e-6)
    deltas = matrices.query("subject == 'delta'")
    squares = deltas["frobenius_norm"] ** 2
    np.testing.assert_allclose(deltas["energy_share"], squares / squares.sum(), rtol=1e-12)
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert sum(summary["counts"].values()) == len(tensors)
    assert not (whole.folder / ".partial").exists()


def test_parquet_holds_null_and_never_nan(whole):
    """A number that is not defined is null: of many columns of floats none holds a NaN."""
    columns = [column for table in tables(whole.folder).values() for column in table.columns]
    floats = [column for column in columns if str(column.type) == "double"]
    assert sum(len(column) - column.null_count for column in floats) > 1000
    assert sum(column.null_count for column in floats) > 100
    assert not [column for column in floats if pc.any(pc.is_nan(column)).as_py()]


def test_numbers_do_not_depend_on_jobs_or_shards(llama, tmp_path):
    """One worker or four, one file or three: the same bytes of data."""
    one = tables(run(*llama, tmp_path / "1", runtime=Runtime(jobs=1)).folder)
    four = tables(run(*llama, tmp_path / "4", runtime=Runtime(jobs=4)).folder)
    config = json.loads((llama[1] / "config.json").read_text())
    split = planted.sharded(
        tmp_path / "split", load_file(llama[1] / "model.safetensors"), 3, config
    )
    sharded = tables(run(llama[0], split, tmp_path / "s").folder)
    for name in ("matrices", "spectra"):
        assert one[name].equals(four[name])
        drop = [column for column in ("family", "pair") if column in one[name].column_names]
        assert one[name].drop_columns(drop).equals(sharded[name].drop_columns(drop))


def test_a_filter_gives_the_same_rows_as_the_full_run(llama, whole, tmp_path):
    """--layer 0 measures less, not otherwise; the rest is in tensors.parquet as filtered."""
    part = run(*llama, tmp_path, Settings(Method(), Filter(layers=(0,))))
    rows = tables(whole.folder)["matrices"].to_pandas().query("layer == 0").reset_index(drop=True)
    found = tables(part.folder)["matrices"].to_pandas()
    assert found.pop("energy_share").isna().all()  # of a whole that was not measured
    assert rows.pop("energy_share").sum() < 1
    pd.testing.assert_frame_equal(rows, found, check_dtype=False)
    assert "filtered" in tables(part.folder)["tensors"]["reason"].to_pylist()
    assert len(tables(part.folder)["tensors"]) == len(tables(whole.folder)["tensors"])


def test_a_journal_whose_tail_is_cut_anywhere_gives_the_same_report(llama, whole, tmp_path):
    """Lines that are whole are not measured again; one that lost a byte or more is, once."""
    with pytest.raises(StoppedError):
        run(*llama, tmp_path / "out", runtime=Runtime(show=stopped_after(9), jobs=1))
    assert not list(tmp_path.rglob("*.parquet"))
    (journal,) = (tmp_path / "out").glob("*/*/.partial/journal.jsonl")
    content = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 10, "the audit's own line and nine outcomes"
    for cut in (len(content), ends[-1] - 1, ends[-2] + 1, ends[4] + 3, ends[0], 5):
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "out", folder)
        (there,) = folder.glob("*/*/.partial/journal.jsonl")
        there.write_bytes(content[:cut])
        states = []
        result = run(*llama, folder, runtime=Runtime(show=states.append))
        assert states[0].done == max(0, sum(end <= cut for end in ends) - 1)
        assert [state.done for state in states] == list(range(states[0].done, 22))
        assert states[-1].cost_done == states[-1].cost_total > 0
        assert not [one for one in threading.enumerate() if one.name.startswith("audit")]
        assert report_contents(result.folder) == report_contents(whole.folder)


@pytest.mark.parametrize("change", ["tuned", "settings", "garbage"])
def test_a_changed_input_starts_afresh(change, llama, tmp_path):
    """Outcomes of other files or settings are never mixed in."""
    tensors, settings = load_file(llama[1] / "model.safetensors"), EVERYTHING
    tuned = planted.write(tmp_path / "tuned", tensors)
    with pytest.raises(StoppedError):
        run(llama[0], tuned, tmp_path / "out", runtime=Runtime(show=stopped_after(9)))
    if change == "tuned":
        planted.write(tuned, {name: 2 * one for name, one in tensors.items()})
    elif change == "settings":
        settings = Settings(Method("exact"), Filter())
    else:
        next(tmp_path.glob("out/*/*/.partial/journal.jsonl")).write_bytes(b"\x00garbage\n" * 5)
    states = []
    run(llama[0], tuned, tmp_path / "out", settings, Runtime(show=states.append))
    assert states[0].done == 0


@pytest.mark.parametrize(("owner", "method", "held"), [("Journal", "add", 0), ("_Lines", "put", 1)])
def test_an_interrupt_loses_no_outcome_of_the_journal(tmp_path, monkeypatch, owner, method, held):
    """It may fall between a line of the journal and the note that the line is there."""
    pair = planted_pair(tmp_path, {planted.UP.format(0): torch.randn(8, 6)},
                        {planted.UP.format(0): torch.randn(8, 6)})  # fmt: skip

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(getattr(journal, owner), method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_pair(pair, EVERYTHING, tmp_path / "out", Runtime(jobs=1))
    lines = [path.read_bytes().count(b"\n") for path in tmp_path.rglob("journal.jsonl")]
    assert lines == [2] * held
    assert run_pair(pair, EVERYTHING, tmp_path / "out").measured == 1 - held


def test_identical_nonfinite_and_grown_tensors_are_told(tmp_path):
    """Each kind has its status and reason on both sides; no row pretends to be measured."""
    embed, norm = "model.embed_tokens.weight", "model.norm.weight"
    rotary = "model.layers.0.rotary.inv_freq"
    q, k, v = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    base = {name: torch.randn(16, 16) for name in (q, k, v)} | {
        embed: torch.randn(100, 16), norm: torch.ones(16), rotary: torch.arange(4),
    }  # fmt: skip
    tuned = {name: one.clone() for name, one in base.items()}
    tuned[embed] = torch.cat([base[embed] + 0.1, torch.ones(5, 16)])
    tuned[k] += 0.01
    tuned[v][3, 4] = math.nan
    tuned[norm] *= 1.1
    result = run_pair(planted_pair(tmp_path, base, tuned), EVERYTHING, tmp_path / "out")
    rows = frame(result.folder, "tensors").set_index(["tensor", "side"])
    for side in ("base", "tuned"):
        assert tuple(rows.loc[(q, side), ["status", "relative_norm"]]) == ("identical", 0.0)
        assert tuple(rows.loc[(v, side), ["status", "reason"]]) == ("skipped", "nonfinite")
        assert rows.loc[(embed, side), "detail"].startswith("5 rows")
        vector = rows.loc[(norm, side)]
        assert (vector["reason"], vector["relative_norm"]) == ("not_a_matrix", pytest.approx(0.1))
        assert rows.loc[(rotary, side), "reason"] == "not_float"
    measured = frame(result.folder)
    assert set(zip(measured["tensor"], measured["rows"], strict=True)) == {(k, 16), (embed, 100)}
    assert result.should_not_have_skipped == ["nonfinite"]


def test_a_fused_tensor_with_one_changed_part_is_one_row(tmp_path):
    """Only q of a fused projection changed: a tensor row, its norm over all, two parts equal."""
    name = "h.0.attn.c_attn.weight"
    base = {name: torch.randn(64, 192, generator=torch.Generator().manual_seed(0))}
    tuned = {name: base[name].clone()}
    tuned[name][:, :64] += 0.1
    pair = planted_pair(tmp_path, base, tuned, {"model_type": "gpt2"})
    folder = run_pair(pair, EVERYTHING, tmp_path / "o").folder
    assert list(frame(folder)["module"]) == ["attn.q"] * 3
    (row,) = frame(folder, "tensors", side="tuned").to_dict("records")
    assert (row["status"], row["module"]) == ("measured", "attn.qkv")
    expected = float((tuned[name] - base[name]).double().norm() / base[name].double().norm())
    assert row["relative_norm"] == pytest.approx(expected, rel=1e-6)


MEASURING = """
import re, sys, threading, time
from pathlib import Path
from measuring import pair_of
from shadow.engines.pair import run_pair
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.checkpoints.pairing import Filter
from shadow.run.pair_plan import plan_pair
from shadow.spectra.measurement import Method

def watch():
    while True:
        held = re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())
        peak.append(1024 * int(held[1]))
        time.sleep(0.002)

peak, folder = [], Path(sys.argv[1])
asked = pair_of(folder / "base", folder / "tuned"), Settings(Method(), Filter()), folder / "out"
runtime = Runtime(jobs=1)
planned = plan_pair(*asked, runtime).memory
threading.Thread(target=watch, daemon=True).start()
run_pair(*asked, runtime)
print(planned, max(peak))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("name", "shape", "dtype"), [
    ("embed_tokens", (800_000, 64), torch.float32),
    ("norm", (60_000_000,), torch.bfloat16),
    ("layers.0.mlp.up_proj", (16, 400_000), torch.bfloat16),
    ("layers.0.mlp.down_proj", (400_000, 16), torch.bfloat16),
])  # fmt: skip
def test_memory_is_what_the_plan_says_whatever_the_shape(tmp_path, name, shape, dtype):
    """Tensors of 13 to 200 MB: a few blocks of anonymous memory."""
    for side in ("base", "tuned"):
        planted.write(tmp_path / side, {f"model.{name}.weight": torch.randn(shape).to(dtype)})
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURING, tmp_path], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    planned, peak = map(int, done.stdout.split())
    kept = 2 * min(math.prod(shape) * dtype.itemsize, 1 << 27)  # what is read of both sides
    assert peak < planned < 650_000_000 + kept


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("exponent", [-300, -170, 155, 300])
def test_weights_whose_squares_leave_float64_are_audited(tmp_path, exponent):
    """What depends on no unit is that near 1; energy beyond float64 is not called rounded."""
    found = []
    for scale in (0, exponent):
        generator = torch.Generator().manual_seed(0)
        base, tuned = {}, {}
        for side in (base, tuned):
            for layer in range(3):
                numbers = torch.randn(60, 70, generator=generator, dtype=torch.float64)
                side[planted.UP.format(layer)] = 10.0**scale * numbers
        pair = planted_pair(tmp_path / str(scale), base, tuned, planted.LLAMA)
        folder = run_pair(pair, EVERYTHING, tmp_path / f"out{scale}").folder
        found.append(frame(folder, subject="delta"))
    near, far = found
    assert len(near) == 3
    for name in ("energy_share", "relative_norm", "concentration", "effective_rank", "alpha"):
        np.testing.assert_allclose(far[name], near[name], rtol=1e-9)
    assert set(far["kept_reason"]) == {"rounding_unexplained"}
    assert near["kept_reason"].isna().all()


def test_a_matrix_beyond_the_memory_is_refused_before_it_is_measured(tmp_path, llama, monkeypatch):
    """With its name and both sizes; nothing is left behind, and the plan says the same."""
    machine = MachineLimits(2, "the machine", 300_000, "the control group /small")
    with pytest.raises(ShadowError) as caught:
        run(*llama, tmp_path / "out", runtime=Runtime(limits=machine))
    for part in ("lm_head.weight: 128 x 64", "705.0 kB", "300.0 kB", machine.memory_by):
        assert part in caught.value.message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(pair_plan, "machine_limits", lambda: machine)
    monkeypatch.setattr(pair_plan, "pace", lambda *_: 1e9)
    planned = pair_plan.plan_pair(pair_of(*llama), EVERYTHING, tmp_path / "out", Runtime())
    assert (planned.problem, planned.hint) == (caught.value.message, caught.value.hint)
    assert (planned.jobs, planned.as_json()["problem"]) == (1, planned.problem)
