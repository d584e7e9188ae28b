"""Whole audits of small checkpoints: numbers, resuming, determinism, memory."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import reference
import torch
from command import Started
from effort import chosen
from measuring import StoppedError, pair_of, stopped_after
from safetensors.torch import load_file

from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.errors import ShadowError
from shadow.reports.columns import IDENTITY, MATRICES, SPECTRA, SPECTRAL, TENSORS
from shadow.run import journal
from shadow.run import workers as audit_module
from shadow.spectra.delta import Method

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


def undone(kind, name, W, module):
    """The (out, in) matrix of a module inside a stored tensor, by NumPy."""
    W = W.double().numpy()
    third = {"attn.q": 0, "attn.k": 1, "attn.v": 2}.get(module)
    if kind == "gpt2" and ".h." in name:
        W = W.T
        return W if third is None or "c_attn" not in name else np.split(W, 3)[third]
    if kind == "gpt_neox" and "query_key_value" in name:
        return W.reshape(4, 3, 16, 64)[:, third].reshape(64, 64)
    return W


@pytest.mark.parametrize("kind", chosen(planted.KINDS, ("gpt2",)))
def test_every_delta_of_a_family_is_numpys(kind, tmp_path):
    """transformers saves, noise is added, the audit's figures are NumPy's after undoing the layout;
    every tensor is measured but the vectors, whose relative norm is there.
    """
    base = planted.saved(kind, tmp_path / "base")
    tuned = planted.perturbed(base, tmp_path / "tuned")
    result = run(base, tuned, tmp_path / "out")
    frames = {name: table.to_pandas() for name, table in tables(result.folder).items()}
    Wb, Wt = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    deltas = frames["matrices"].query("subject == 'delta'")
    assert result.measured == len(deltas) >= 13
    for row in deltas.to_dict("records"):
        b, t = (undone(kind, row["tensor"], W[row["tensor"]], row["module"]) for W in (Wb, Wt))
        assert (row["rows"], row["cols"]) == t.shape
        expected = reference.delta(b, t, ("F32", "F32"))
        norms = ("frobenius_norm", "relative_norm", "null_edge", "floor_ratio")
        for column in ("effective_rank", "concentration", *norms):
            assert row[column] == pytest.approx(expected[column], rel=1e-6), column
    for row in frames["tensors"].query("side == 'tuned'").to_dict("records"):
        b, t = Wb[row["tensor"]].double(), Wt[row["tensor"]].double()
        assert (row["status"] == "measured") == (t.ndim == 2)
        if b.norm() == 0:
            assert math.isnan(row["relative_norm"]), "null, which pandas shows as NaN"
        else:
            assert row["relative_norm"] == pytest.approx(float((t - b).norm() / b.norm()), rel=1e-6)


def test_files_are_what_the_schema_says(llama, whole):
    """Columns, order, provenance, one row per tensor and side, spectra that give the norms back."""
    found = tables(whole.folder)
    for name, columns in (("matrices", MATRICES), ("tensors", TENSORS), ("spectra", SPECTRA)):
        assert found[name].column_names == [column.name for column in columns]
        metadata = json.loads(found[name].schema.metadata[b"shadow"])
        assert {
            "version", "schema", "family", "pair", "base", "tuned", "settings", "seed",
            "compute_dtype", "device", "libraries", "started", "seconds",
        } <= metadata.keys()  # fmt: skip
        assert metadata["base"].keys() == {"repo", "commit", "fingerprint", "content"}
    never = [column.name for column in (*IDENTITY, *SPECTRAL) if not column.null]
    assert not found["matrices"].select(never).to_pandas().isna().any().any()
    tensors = found["tensors"].to_pandas()
    names = set(load_file(llama[0] / "model.safetensors"))
    assert sorted(zip(tensors["side"], tensors["tensor"], strict=True)) == sorted(
        (side, name) for side in ("base", "tuned") for name in names
    )
    spectra = found["spectra"].to_pandas()
    norms = found["matrices"].to_pandas()["frobenius_norm"]
    np.testing.assert_allclose(
        [np.linalg.norm(sigma) for sigma in spectra["sigma"]], norms, rtol=1e-6
    )
    summary = json.loads((whole.folder / "summary.json").read_text())
    keys = "schema family pair base tuned counts figures modules gates finding"
    assert {*keys.split()} <= summary.keys()
    assert sum(summary["counts"].values()) == len(tensors)
    assert not (whole.folder / ".partial").exists()


def test_parquet_holds_null_and_never_nan(whole):
    """A number that is not defined is null: of many columns of floats none holds a NaN."""
    floats = [
        column
        for table in tables(whole.folder).values()
        for column in table.columns
        if str(column.type) == "double"
    ]
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


def test_shares_of_energy_add_up_to_one(whole):
    """Over all deltas of a pair: norm(D)² over their sum."""
    deltas = tables(whole.folder)["matrices"].to_pandas().query("subject == 'delta'")
    squares = deltas["frobenius_norm"] ** 2
    assert deltas["energy_share"].tolist() == pytest.approx(
        (squares / squares.sum()).tolist(), rel=1e-12
    )


def test_an_interrupted_audit_goes_on_without_measuring_anything_twice(
    llama, whole, tmp_path, monkeypatch
):
    """What the journal holds is not measured again, and the result is that of one run."""
    with pytest.raises(StoppedError):
        run(*llama, tmp_path / "out", runtime=Runtime(show=stopped_after(9), jobs=1))
    folder = next((tmp_path / "out").glob("*/*"))
    assert list(folder.glob("*.parquet")) == list(folder.glob("**/*.parquet")) == []
    measured, said = [], []
    original = audit_module.outcome_of
    monkeypatch.setattr(
        audit_module,
        "outcome_of",
        lambda pair, **rest: measured.append(pair.key) or original(pair, **rest),
    )
    result = run(*llama, tmp_path / "out", runtime=Runtime(say=said.append))
    journalled = [line for line in said if line.startswith("resuming: ")]
    assert len(journalled) == 1
    assert len(measured) == 21 - 9, "21 tensors, 9 of them done"
    for name in ("matrices", "spectra"):
        assert tables(result.folder)[name].equals(tables(whole.folder)[name])
    assert not (result.folder / ".partial").exists()


def test_a_journal_whose_tail_is_cut_anywhere_gives_the_same_report(llama, whole, tmp_path):
    """Lines that are whole count; one that lost a byte or more is measured again, once."""
    with pytest.raises(StoppedError):
        run(*llama, tmp_path / "out", runtime=Runtime(show=stopped_after(9), jobs=1))
    (journal,) = (tmp_path / "out").glob("*/*/.partial/journal.jsonl")
    content = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 10, "the audit's own line and nine outcomes"
    for cut in (ends[-1] - 1, ends[-1] - 50, ends[-2] + 1, ends[-2], ends[4] + 3, ends[0], 5, 0):
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "out", folder)
        (there,) = folder.glob("*/*/.partial/journal.jsonl")
        there.write_bytes(content[:cut])
        states = []
        result = run(*llama, folder, runtime=Runtime(show=states.append))
        assert states[0].done == max(0, sum(end <= cut for end in ends) - 1)
        for name in ("matrices", "spectra"):
            assert tables(result.folder)[name].equals(tables(whole.folder)[name])


@pytest.mark.parametrize("change", ["tuned", "settings", "garbage"])
def test_a_changed_input_starts_afresh(change, llama, tmp_path):
    """Outcomes of other files or settings are never mixed in."""
    tuned = planted.write(tmp_path / "tuned", load_file(llama[1] / "model.safetensors"))
    with pytest.raises(StoppedError):
        run(llama[0], tuned, tmp_path / "out", runtime=Runtime(show=stopped_after(9)))
    settings = EVERYTHING
    if change == "tuned":
        planted.write(
            tuned, {name: 2 * t for name, t in load_file(tuned / "model.safetensors").items()}
        )
    elif change == "settings":
        settings = Settings(Method("exact"), Filter())
    else:
        next(tmp_path.glob("out/*/*/.partial/journal.jsonl")).write_bytes(b"\x00garbage\n" * 5)
    states, said = [], []
    runtime = Runtime(show=states.append, say=said.append)
    run(llama[0], tuned, tmp_path / "out", settings, runtime)
    assert states[0].done == 0
    assert not any("resuming" in line for line in said)


def test_two_audits_into_one_folder_are_refused(llama, tmp_path):
    """The second one is told; the first one's journal is not touched."""
    refused = []

    def again(progress):
        if not refused:
            with pytest.raises(ShadowError, match="another audit") as caught:
                run(*llama, tmp_path)
            refused.append(caught)

    run(*llama, tmp_path, runtime=Runtime(show=again))
    assert refused


def test_a_stopped_audit_says_how_to_go_on(tmp_path):
    """Ctrl-C: one line on stderr, exit code 130, no report, the journal kept."""
    big = {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(600, 600) for i in range(200)}
    base = planted.write(tmp_path / "base", big)
    tuned = planted.write(tmp_path / "tuned", {name: 1.01 * W for name, W in big.items()})
    child = Started(
        "audit", "--base", base, "--tuned", tuned, "-o", "out", "--jobs", "1", cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
        path.read_bytes().count(b"\n") > 1
        for path in tmp_path.glob("out/*/*/.partial/journal.jsonl")
    ):
        time.sleep(0.01)
    done = child.kill(signal.SIGINT)
    told = "stopped; run the same command again to continue\n"
    assert (done.code, done.out, done.err) == (130, "", told)
    assert len(list(tmp_path.glob("out/*/*/.partial/journal.jsonl"))) == 1
    assert not list(tmp_path.glob("out/**/*.parquet"))


def test_an_interrupt_loses_no_outcome_that_is_in_the_journal(tmp_path):
    """It may fall between a line of the journal and the note that the line is there.

    The interrupt comes at each of the last steps that the journal takes for its first outcome.
    """
    up = {"model.layers.0.mlp.up_proj.weight": torch.randn(8, 6)}
    base = planted.write(tmp_path / "base", up)
    tuned = planted.write(tmp_path / "tuned", {name: 2 * W for name, W in up.items()})

    def outcomes_in(out):
        journals = out.glob("*/*/.partial/journal.jsonl")
        return sum(file.read_bytes().count(b"\n") - 1 for file in journals)

    def audit(out, stop):
        """The lines of the journal's code that ran up to the first outcome, or up to stop."""
        count = 0

        def step(frame, event, argument):
            nonlocal count
            count += event == "line"
            if count == stop:
                sys.settrace(None)
                there.append(outcomes_in(out))
                raise KeyboardInterrupt
            return step

        def show(progress):
            if progress.done:
                sys.settrace(None)
            elif sys.gettrace() is None:
                code = str(Path(journal.__file__))
                sys.settrace(lambda f, *_: step if f.f_code.co_filename == code else None)

        try:
            run(base, tuned, out, runtime=Runtime(show=show, jobs=1))
        finally:
            sys.settrace(None)
        return count

    there, left = [], []
    last = audit(tmp_path / "whole", None)
    for stop in range(last - 8, last - 4):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            audit(out, stop)
        left.append(outcomes_in(out))
        said = []
        assert run(base, tuned, out, runtime=Runtime(say=said.append)).measured == 1 - left[-1]
        assert bool(said) == bool(left[-1])
    assert left == there
    assert set(left) == {0, 1}


def test_identical_nonfinite_and_grown_tensors_are_told(tmp_path):
    """Each kind has its status and reason on both sides; no row pretends to be measured."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    base = {
        "model.embed_tokens.weight": torch.randn(100, 16, generator=rng),
        q: torch.randn(16, 16, generator=rng),
        k: torch.randn(16, 16, generator=rng),
        v: torch.randn(16, 16, generator=rng),
        "model.norm.weight": torch.ones(16),
        "model.layers.0.rotary.inv_freq": torch.arange(4),
    }
    tuned = {name: t.clone() for name, t in base.items()}
    tuned["model.embed_tokens.weight"] = torch.cat(
        [base["model.embed_tokens.weight"] + 0.1, torch.ones(5, 16)]
    )
    tuned[k] = base[k] + 0.01
    tuned[v][3, 4] = math.nan
    tuned["model.norm.weight"] = 1.1 * torch.ones(16)
    result = run(
        planted.write(tmp_path / "b", base), planted.write(tmp_path / "t", tuned), tmp_path / "out"
    )
    rows = tables(result.folder)["tensors"].to_pandas().set_index(["tensor", "side"])
    for side in ("base", "tuned"):
        assert tuple(rows.loc[(q, side), ["status", "relative_norm"]]) == ("identical", 0.0)
        broken = rows.loc[(v, side), ["status", "reason", "detail"]]
        assert tuple(broken) == ("skipped", "nonfinite", "in the tuned tensor")
        grown = rows.loc[("model.embed_tokens.weight", side), "detail"]
        assert grown.startswith("5 rows only in tuned")
        norm = rows.loc[("model.norm.weight", side)]
        assert (norm["reason"], norm["relative_norm"]) == ("not_a_matrix", pytest.approx(0.1))
        assert rows.loc[("model.layers.0.rotary.inv_freq", side), "reason"] == "not_float"
    measured = tables(result.folder)["matrices"].to_pandas()
    assert set(measured["tensor"]) == {k, "model.embed_tokens.weight"}
    assert set(measured.query("module == 'embed'")["rows"]) == {100}
    assert result.should_not_have_skipped == ["nonfinite"]


def test_a_fused_tensor_with_one_changed_part_is_one_row(tmp_path):
    """Only q of a fused projection changed: a tensor row, its norm over all, two parts equal."""
    config = {"model_type": "gpt2"}
    name = "h.0.attn.c_attn.weight"
    base = {name: torch.randn(64, 192, generator=torch.Generator().manual_seed(0))}
    tuned = {name: base[name].clone()}
    tuned[name][:, :64] += 0.1
    result = run(
        planted.write(tmp_path / "b", base, config),
        planted.write(tmp_path / "t", tuned, config),
        tmp_path / "o",
    )
    found = {key: table.to_pandas() for key, table in tables(result.folder).items()}
    assert list(found["matrices"]["module"]) == ["attn.q"] * 3
    (row,) = found["tensors"].query("side == 'tuned'").to_dict("records")
    assert (row["status"], row["module"]) == ("measured", "attn.qkv")
    assert row["detail"] == "attn.k identical; attn.v identical"
    expected = float((tuned[name] - base[name]).double().norm() / base[name].double().norm())
    assert row["relative_norm"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("embed_tokens", (800_000, 64), torch.float32),
        ("norm", (60_000_000,), torch.bfloat16),
        ("layers.0.mlp.up_proj", (16, 400_000), torch.bfloat16),
        ("layers.0.mlp.down_proj", (400_000, 16), torch.bfloat16),
    ],
)
def test_memory_is_what_the_plan_says_whatever_the_shape(tmp_path, name, shape, dtype):
    """Tensors of 13 to 200 MB: a few blocks of anonymous memory."""
    for side in ("base", "tuned"):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(side))).to(dtype)
        planted.write(tmp_path / side, {f"model.{name}.weight": tensor})
        del tensor
    code = (
        "import sys, threading, time, shadow.audits.pair as r\n"
        "from shadow.spectra.delta import Method; from shadow.checkpoints.pairing import Filter\n"
        "from shadow.targets.families import given_pair\n"
        "from shadow.targets.references import parse_reference as p\n"
        "from shadow.run.pair_plan import plan_pair; from pathlib import Path\n"
        "def anon(): return next(int(l.split()[1]) for l in open('/proc/self/status')"
        " if l.startswith('RssAnon'))\n"
        "b, t, o = sys.argv[1:]\n"
        "asked = given_pair(p(b), p(t)), r.Settings(Method(), Filter()), Path(o)\n"
        "runtime = r.Runtime(jobs=1); print(plan_pair(*asked, runtime).memory)\n"
        "peak = [0]\n"
        "def watch():\n"
        "    while True: peak[0] = max(peak[0], anon()); time.sleep(0.002)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "r.run_pair(*asked, runtime)\n"
        "print(1024 * peak[0])\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory is read from /proc")
    folders = [str(tmp_path / folder) for folder in ("base", "tuned", "out")]
    command = [sys.executable, "-c", code, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    planned, peak = map(int, done.stdout.split())
    kept = 2 * min(math.prod(shape) * dtype.itemsize, 1 << 27)  # what is read of both sides
    assert peak < planned < 650_000_000 + kept


def test_progress_starts_at_what_is_done_and_ends_at_the_total(llama, tmp_path):
    """Every pair is told once; costs add up."""
    states = []
    run(*llama, tmp_path, runtime=Runtime(show=states.append))
    assert [state.done for state in states] == list(range(22))
    assert states[-1].cost_done == states[-1].cost_total > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("audit")], (
        "no worker is left"
    )


def test_workers_are_as_many_as_cores_or_as_fit_the_memory():
    """A worker holds a Gram and what the solver copies of it: huge matrices on little memory get
    fewer workers.
    """
    from shadow.checkpoints.pairing import MatrixPair, Operand
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.places.architecture import Part, Place
    from shadow.run.machine_limits import MachineLimits
    from shadow.run.memory import default_jobs, lacking, matrix_memory, worker_memory
    from shadow.spectra.delta import Method

    place = Place("language", 0, "mlp.up")
    tuned = Operand(TensorInfo("w", "BF16", (8192, 28672), "s", 0, 0), Part(place))
    pair = MatrixPair(place, None, tuned, 8192, 28672, True)
    for memory, jobs in ((64 << 30, 16), (4 << 30, 2), (1 << 20, 1)):
        machine = MachineLimits(16, "", memory, "the machine")
        assert default_jobs([pair], machine) == jobs
        fault = lacking([pair], machine)
        assert (fault is None) == (memory > 1 << 30)
    assert fault is not None
    assert fault.message == "w: 8,192 x 28,672 needs 1.8 GB of memory, 1.0 MB are free"
    square = MatrixPair(place, None, tuned, 3584, 3584, True)
    deltas = Method("sketch", subspaces=False, subjects="delta")
    alone = matrix_memory(pair, deltas)  # too large to be kept, as that of the other is
    assert matrix_memory(square, deltas) > 4 * 3584**2
    assert worker_memory([square, pair], deltas) == alone + 4 * 3584**2
    assert worker_memory([pair], deltas) == alone


def test_norms_take_more_than_one_worker_only_where_something_is_decoded():
    """A quantised side, whichever it is and among however many others, or an adapter's factors; no
    worker holds a Gram.
    """
    from dataclasses import replace

    from shadow.checkpoints.pairing import Factor, MatrixPair, Operand
    from shadow.checkpoints.safetensors_files import Packing, TensorInfo
    from shadow.places.architecture import Part, Place
    from shadow.run.machine_limits import MachineLimits
    from shadow.run.memory import default_jobs, kinds
    from shadow.spectra.delta import NORMS

    place, machine = Place("language", 0, "mlp.up"), MachineLimits(4, "", 64 << 30, "the machine")
    info = TensorInfo("w", "BF16", (640, 512), "s", 0, 0)
    floats = Operand(info, Part(place))
    packed = Operand(replace(info, dtype="INT8", packing=Packing("rows", info)), Part(place))
    factored = Operand(info, Part(place), Factor(info, 1.0, transposed=False))
    for base, tuned, jobs in (
        (floats, floats, 1), (None, floats, 1), (packed, floats, 4), (floats, packed, 4),
        (floats, factored, 4),
    ):  # fmt: skip
        pairs = [MatrixPair(place, side, tuned, 640, 512, True) for side in (floats, base)]
        assert default_jobs(kinds(pairs), machine, NORMS) == jobs
        assert default_jobs(kinds(pairs), machine) == 4
    low = replace(machine, memory=32 << 20)
    assert default_jobs(pairs, low, NORMS) > default_jobs(pairs, low)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exponent", [-300, -170, 155, 300])
def test_weights_whose_squares_leave_float64_are_audited(tmp_path, exponent):
    """F64 checkpoints of any scale: what depends on no unit is that of weights near 1; a change
    whose energy is no float64 number is not said to be rounded.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for scale in (0, exponent):
        generator.manual_seed(0)
        sides = [
            planted.write(
                tmp_path / str(scale) / side,
                {
                    f"model.layers.{layer}.mlp.up_proj.weight": 10.0**scale
                    * torch.randn(60, 70, generator=generator, dtype=torch.float64)
                    for layer in range(3)
                },
                planted.LLAMA,
            )
            for side in ("base", "tuned")
        ]
        result = run(*sides, tmp_path / f"out{scale}")
        rows = pq.read_table(result.folder / "matrices.parquet").to_pandas()
        found.append(rows[rows["subject"] == "delta"])
    near, far = found
    assert len(near) == 3
    for name in ("energy_share", "relative_norm", "concentration", "effective_rank", "alpha"):
        np.testing.assert_allclose(far[name], near[name], rtol=1e-9)
    assert set(far["kept_reason"]) == {"rounding_unexplained"}
    assert near["kept_reason"].isna().all()


def test_a_matrix_that_does_not_fit_the_memory_is_refused_before_it_is_measured(tmp_path, llama):
    """One line with its name and both sizes; nothing is left behind, and the plan says it too."""
    from shadow.run import pair_plan
    from shadow.run.machine_limits import MachineLimits

    machine = MachineLimits(2, "the machine", 300_000, "the control group /small")
    told = (
        "lm_head.weight: 128 x 64 needs 705.0 kB of memory, 300.0 kB are free (the"
        " control group /small)"
    )
    with pytest.raises(ShadowError) as caught:
        run(*llama, tmp_path / "out", runtime=Runtime(limits=machine))
    assert caught.value.message == told
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*.*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_plan, "machine_limits", lambda: machine)
        planned = pair_plan.plan_pair(pair_of(*llama), EVERYTHING, tmp_path / "out")
    assert (planned.problem, planned.hint) == (told, caught.value.hint)
    assert (planned.jobs, planned.as_json()["problem"]) == (1, told)
