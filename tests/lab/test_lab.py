"""The lab runs from the command line, goes on where it stopped; its runs are what they claim."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import demo_family
from shadow.lab import experiment
from shadow.lab.design import COPIES, FREQUENCIES, MAIN, REGIMES, TREATMENTS, Base, Run, presets
from shadow.lab.experiment import checkpoint, copied, report, stream, tasks_of
from shadow.lab.results import read
from shadow.lab.tasks import SMALL, Cell

SHADOW = Path(sys.executable).parent / "shadow"
BASE = Base("tiny", 0)
TIMES = ["seconds"]


def shadow(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of its own process: the lab starts others from it."""
    return subprocess.run([SHADOW, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the preset that takes about a minute."""
    out = tmp_path_factory.mktemp("lab") / "out"
    done = shadow("lab", "run", "--preset", "smoke", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "B - C" in done.stdout
    return out


def weights(out: Path, name: str | None = None) -> dict[str, np.ndarray]:
    found = load_file(checkpoint(out, BASE, name) / "model.safetensors")
    return {key: tensor.double().numpy() for key, tensor in found.items()}


def matrices(out: Path, name: str) -> pd.DataFrame:
    rows = pd.read_parquet(report(out, BASE, name) / "matrices.parquet")
    return rows[rows["subject"] == "delta"]


@pytest.mark.slow
def test_everything_is_there(lab: Path) -> None:
    """Tables, page and figure; a row for each of five states of a training and for each made pair;
    no litter.
    """
    assert {"runs.parquet", "comparisons.parquet", "lab.md", "lab.svg"} <= {
        path.name for path in lab.iterdir()
    }
    assert not [path for path in lab.rglob("*") if path.name.startswith(".")]
    runs = read(lab)["runs"]
    states = runs.groupby(["run", "kind"]).size().reset_index(name="states")
    assert set(states.loc[states["kind"] == "trained", "states"]) == {5}
    assert set(states.loc[states["kind"] != "trained", "states"]) == {1}
    assert len(states) == len(presets()["smoke"].runs)
    page = (lab / "lab.md").read_text()
    assert page.startswith("# shadow lab run --preset smoke\n\n**smoke: nothing was learned")
    assert "](lab.svg)" in page
    assert all(f"\n| {regime}  " in page for regime in MAIN)


@pytest.mark.slow
def test_every_two_runs_of_a_base_are_compared(lab: Path) -> None:
    """Four runs A to D: six comparisons, with the verdicts of `shadow compare`."""
    found = read(lab)["comparisons"]
    assert len(found) == 6
    one = found[(found["regime_first"] == "B") & (found["regime_second"] == "C")].iloc[0]
    folders = [report(lab, BASE, Run(BASE, regime).name) for regime in "BC"]
    told = json.loads(shadow("compare", *folders, "--format", "json").stdout)["contrasts"][0]
    assert (one["verdict"], one["difference"]) == (
        told["verdict"],
        told["figures"][0]["difference"],
    )


@pytest.mark.slow
def test_figures_are_those_of_the_reports(lab: Path) -> None:
    """The last state's medians are NumPy's over the report's rows inside layers."""
    runs = read(lab)["runs"]
    for regime in MAIN:
        name = Run(BASE, regime).name
        row = runs[(runs["run"] == name) & (runs["share"] == 1)].iloc[0]
        inside = matrices(lab, name).dropna(subset=["layer"])
        for column in ("concentration", "stable_rank", "relative_norm"):
            assert row[f"layers_{column}"] == pytest.approx(np.median(inside[column]))
        assert row["concentration"] == pytest.approx(
            np.median(matrices(lab, name)["concentration"])
        )


@pytest.mark.slow
def test_the_norm_grows_along_a_training(lab: Path) -> None:
    """States are measured in order of their steps: the relative norm of every AdamW run rises."""
    runs = read(lab)["runs"].query("kind == 'trained' and treatment == 'adamw'")
    for _, own in runs.groupby("run"):
        assert own.sort_values("share")["layers_relative_norm"].is_monotonic_increasing


@pytest.mark.slow
def test_an_average_is_the_mean_of_its_weights(lab: Path) -> None:
    """In float64, tensor by tensor."""
    made = next(run for run in presets()["smoke"].runs if run.kind == "averaged")
    parts = [weights(lab, name) for name in made.of]
    for key, weight in weights(lab, made.name).items():
        np.testing.assert_allclose(weight, (parts[0][key] + parts[1][key]) / 2, atol=1e-7)


@pytest.mark.slow
def test_stored_as_bf16_both_sides_are(lab: Path) -> None:
    """A rounded run is compared with the rounded base, and the report says so."""
    made = next(run for run in presets()["smoke"].runs if run.kind == "bf16")
    assert set(matrices(lab, made.name)["dtype"]) == {"BF16"}
    full = weights(lab, made.of[0])
    for key, weight in weights(lab, made.name).items():
        np.testing.assert_array_equal(weight, torch.tensor(full[key]).bfloat16().double().numpy())


@pytest.mark.slow
def test_copies_get_the_gates_that_they_deserve(lab: Path) -> None:
    """Nothing changed, mostly rounding, another lineage: each copy is stopped by its own gate,
    noise by none.
    """
    runs = read(lab)["runs"].query("kind == 'copied'").set_index("regime")["stopped"]
    assert set(runs.index) == set(COPIES)
    assert {"changed", "lineage"} & set(runs["same"].split(","))
    assert "rounding" in runs["bf16"]
    assert "lineage" in runs["other"]
    assert runs["noise"] == runs["int8"] == runs["planted"] == ""


@pytest.mark.slow
def test_lora_is_stopped_by_its_rank(lab: Path) -> None:
    """A merged adapter passes for no training of full rank: 4 of 32 directions, and a few of the
    rounding of a sum.
    """
    runs = read(lab)["runs"].query("treatment == 'lora' and share == 1")
    assert set(runs["stopped"]) == {"rank"}
    ranks = matrices(lab, runs["run"].iloc[0]).dropna(subset=["layer"])["numerical_rank"]
    assert (ranks.min(), ranks.max() <= 8) == (4, True)


@pytest.mark.slow
def test_the_same_command_again_does_nothing(lab: Path) -> None:
    """The tables are the same, byte by byte, and no weights are written again."""
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*.safetensors")}
    tables = {name: (lab / f"{name}.parquet").read_bytes() for name in ("runs", "comparisons")}
    assert shadow("lab", "run", "--preset", "smoke", "-o", lab).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*.safetensors")} == before
    assert {name: (lab / f"{name}.parquet").read_bytes() for name in tables} == tables


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(lab: Path, tmp_path: Path) -> None:
    """After SIGKILL no process is left; run again, the tables are an uninterrupted run's, save for
    the seconds.
    """
    out = tmp_path / "out"
    command = [SHADOW, "lab", "run", "--preset", "smoke", "-o", out, "--jobs", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 600
        while len(list(out.glob("runs/*/*.json"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
    left = time.monotonic() + 30
    while _processes_of(child.pid) and time.monotonic() < left:
        time.sleep(0.2)
    assert not _processes_of(child.pid)
    finished = {path: path.read_bytes() for path in out.glob("runs/*/*.json")}
    assert 4 <= len(finished) < 20
    done = shadow("lab", "run", "--preset", "smoke", "-o", out)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in finished} == finished
    for name, table in read(out).items():
        pd.testing.assert_frame_equal(
            table.drop(columns=TIMES, errors="ignore"),
            read(lab)[name].drop(columns=TIMES, errors="ignore"),
        )


def _processes_of(session: int) -> list[str]:
    """Processes of a session, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """A line and a hint, exit 1, nothing written: other files, a broken lab.json, a version."""
    for name, text in (("notes.txt", "mine"), ("lab.json", "{"), ("lab.json", '{"design": 0}')):
        folder = tmp_path / f"{name}{len(text)}"
        folder.mkdir()
        (folder / name).write_text(text)
        done = shadow("lab", "run", "--preset", "smoke", "-o", folder)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 2
        assert [path.name for path in folder.iterdir()] == [name]


# What the design says


def test_tasks_need_what_they_are_made_of() -> None:
    """In every preset each need is a task of it, bases have none, and nothing waits for itself."""
    for preset in presets().values():
        tasks = tasks_of(preset, Path())
        for key, task in tasks.items():
            assert task.needs <= tasks.keys() - {key}
        assert all(not tasks[base.key].needs for base in preset.bases)
        assert len({(run.base, run.name) for run in preset.runs}) == len(preset.runs)


def test_the_full_preset_has_what_a_claim_takes() -> None:
    """Ten warm bases of a size, A to D thrice each; every regime, treatment and copy occurs."""
    runs = presets()["full"].runs
    main = [run.base for run in runs if run.main]
    counts = Counter(base.key for base in main if base.warm and base.scale == "small")
    assert len(counts) >= 10
    assert set(counts.values()) == {12}
    assert {run.regime for run in runs if run.kind == "trained"} == {*REGIMES} - {*FREQUENCIES[1:]}
    assert {run.treatment for run in runs} == set(TREATMENTS)
    assert {run.regime for run in runs if run.kind == "copied"} == set(COPIES)
    assert any(not run.base.warm for run in runs)


def test_a_stream_depends_on_base_regime_and_seed_alone() -> None:
    """Treatments see the same data; another seed or base does not."""

    def first(run: Run) -> list[str]:
        return [sample.prompt for sample in islice(stream(run, 10_000), 50)]

    own = first(Run(BASE, "B"))
    assert own == first(Run(BASE, "B", "lora"))
    assert own != first(Run(BASE, "B", seed=1))
    assert own != first(Run(Base("tiny", 1), "B"))


def test_doses_of_frequency_have_the_cells_of_c_in_one_order_of_each_run() -> None:
    """The first cell has the share 1 / (1 + 2^-power + 3^-power + ...), by counting; another seed
    has another order.
    """
    cells = {
        cell: re.compile(re.escape(cell.format.template.format(skill=cell.skill.name, input="~")))
        for cell in SMALL.broad.cells
    }
    cells = {cell: re.compile(one.pattern.replace("\\~", ".+")) for cell, one in cells.items()}

    def first(regime: str, seed: int) -> tuple[Cell, float]:
        run = Run(Base("small", 0), regime, seed=seed)
        prompts = [sample.prompt for sample in islice(stream(run, 10_000), 2_000)]
        counts = {cell: sum(map(bool, map(one.fullmatch, prompts))) for cell, one in cells.items()}
        assert sum(counts.values()) == 2_000
        most = max(counts, key=counts.__getitem__)
        return most, counts[most] / 2_000

    found = {(regime, seed): first(regime, seed) for regime in FREQUENCIES[1:] for seed in (0, 1)}
    for (regime, _), (_, share) in found.items():
        places = range(1, len(cells) + 1)
        expected = 1 / sum(place ** -REGIMES[regime].power for place in places)
        assert share == pytest.approx(expected, abs=0.04)
    for seed in (0, 1):
        assert len({cell for (_, own), (cell, _) in found.items() if own == seed}) == 1
    assert found["C^1", 0][0] != found["C^1", 1][0]


@pytest.mark.parametrize(("regime", "times"), [("A x10", 10), ("A x100", 100)])
def test_repetition_is_as_often_as_it_says(regime: str, times: int) -> None:
    """Over as many tokens as a training has, each sample is seen so many times on average."""
    tokens, seen, used = 200_000, list[str](), 0
    for sample in stream(Run(Base("small", 0), regime), tokens):
        used += len(sample.text)
        if used > tokens:
            break
        seen.append(sample.text)
    assert len(seen) / len(set(seen)) == pytest.approx(times, rel=0.15)


def test_copies_are_what_they_are_called() -> None:
    """Noise has 4 % of the norm; int8 has at most 255 values a row; planted adds four directions of
    equal energy.
    """
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 150, generator=generator)
    noise = copied("noise", base, generator) - base
    assert float(noise.norm() / base.norm()) == pytest.approx(0.04, rel=1e-5)
    rounded = copied("int8", base, generator)
    assert all(len(row.unique()) <= 255 for row in rounded)
    assert float((rounded - base).abs().max()) <= float(base.abs().max()) / 254 * 1.001
    sigma = torch.linalg.svdvals((copied("planted", base, generator) - base).double())
    assert sigma[3] > 2 * sigma[4]
    assert float((sigma[:4] ** 2).sum() / (sigma**2).sum()) > 0.5
    assert torch.equal(copied("same", base, generator), base)


@pytest.mark.slow
def test_the_demo_comes_out_of_a_lab(lab: Path, tmp_path: Path) -> None:
    """Base, B and C as bf16, and how well they answer; every matrix of a continuation differs from
    the base's.
    """
    demo_family.export(lab, tmp_path, BASE)
    runs = {"base": None, "narrow": Run(BASE, "B").name, "broad": Run(BASE, "C").name}
    for stage, name in runs.items():
        stored = load_file(tmp_path / stage / "model.safetensors")
        for key, weight in weights(lab, name).items():
            assert stored[key].dtype == torch.bfloat16
            np.testing.assert_array_equal(
                stored[key].double().numpy(), torch.tensor(weight).bfloat16().double().numpy()
            )
    told = json.loads((tmp_path / "training.json").read_text())
    assert [told["models"][stage]["mixture"] for stage in ("base", "narrow", "broad")] == [
        "original",
        "narrow",
        "broad",
    ]
    assert told["models"]["narrow"]["tokens"] == told["models"]["broad"]["tokens"] == 20 * 4 * 128
    assert set(told["models"]["base"]["accuracies"]) == {
        "narrow",
        "original",
        "broad",
        "held_out",
        "unseen",
    }


def test_file_names_are_plain_and_unique() -> None:
    """Names of runs hold `/`, `+`, `%` and commas; as files they hold letters, digits and dashes,
    and none coincide.
    """
    names = [run.name for run in presets()["full"].runs]
    found = {experiment.folder_name(name) for name in names}
    assert len(found) == len(set(names))
    assert all(char.isalnum() or char == "-" for name in found for char in name)
