"""The lab runs from the command line, goes on where it stopped; its runs are what they claim."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from shadow.lab import training
from shadow.lab.experiment import PRESETS, REGIMES, SMALL, TINY, Base, Run, checkpoint, report
from shadow.lab.results import over_bases
from shadow.lab.training import ALPHABET, IGNORED, MIXTURES, SKILLS, Recipe, rows_of

SHADOW = Path(sys.executable).parent / "shadow"
BASE = Base(TINY, 0)


def shadow(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of its own process: the lab starts others from it."""
    return subprocess.run([SHADOW, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest preset."""
    out = tmp_path_factory.mktemp("lab") / "out"
    done = shadow("lab", "run", "--preset", "smoke", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "B - C" in done.stdout
    return out


@pytest.mark.slow
def test_everything_is_there(lab: Path) -> None:
    """Tables and page: a row a run, figures of the reports, and the verdicts of compare."""
    assert {"runs.parquet", "comparisons.parquet", "lab.md"} <= {one.name for one in lab.iterdir()}
    assert not [path for path in lab.rglob("*") if path.name.startswith(".")]
    runs = pd.read_parquet(lab / "runs.parquet")
    assert list(runs["regime"]) == ["A", "B", "C", "D"]
    for regime, row in runs.set_index("regime").iterrows():
        rows = pd.read_parquet(
            report(lab, BASE, Run(BASE, REGIMES[str(regime)]).name) / "matrices.parquet"
        )
        inside = rows[rows["subject"] == "delta"].dropna(subset=["layer"])
        assert row["layers_concentration"] == pytest.approx(np.median(inside["concentration"]))
    found = pd.read_parquet(lab / "comparisons.parquet")
    assert len(found) == 6
    one = found[(found["regime_first"] == "B") & (found["regime_second"] == "C")].iloc[0]
    folders = [report(lab, BASE, Run(BASE, REGIMES[regime]).name) for regime in "BC"]
    recorded = json.loads(shadow("compare", *folders, "--format", "json").stdout)["contrasts"][0]
    assert (one["verdict"], one["difference"]) == (
        recorded["verdict"],
        recorded["figures"][0]["difference"],
    )
    page = (lab / "lab.md").read_text()
    assert page.startswith("# shadow lab run --preset smoke\n\n**smoke: nothing was learned")


@pytest.mark.slow
def test_a_command_again_does_nothing_and_a_killed_one_goes_on(lab: Path, tmp_path: Path) -> None:
    """Weights are not written again; after SIGKILL the tables are an uninterrupted run's."""
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*.safetensors")}
    assert shadow("lab", "run", "--preset", "smoke", "-o", lab).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*.safetensors")} == before
    out = tmp_path / "out"
    command = [SHADOW, "lab", "run", "--preset", "smoke", "-o", out, "--jobs", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 600
        while len(list(out.glob("runs/*/*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
    done = shadow("lab", "run", "--preset", "smoke", "-o", out)
    assert done.returncode == 0, done.stderr
    for name in ("runs", "comparisons"):
        tables = [pd.read_parquet(folder / f"{name}.parquet") for folder in (out, lab)]
        pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """A line and a hint, exit 1, nothing written: other files, a broken lab.json, a version."""
    for name, text in (("notes.txt", "mine"), ("lab.json", "{"), ("lab.json", '{"shadow": "0"}')):
        folder = tmp_path / f"{name}{len(text)}"
        folder.mkdir()
        (folder / name).write_text(text)
        done = shadow("lab", "run", "--preset", "smoke", "-o", folder)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 2
        assert [path.name for path in folder.iterdir()] == [name]


def test_every_preset_has_every_regime_on_every_base() -> None:
    """The full one three times on ten bases, the others once."""
    for name, count in (("smoke", 4), ("quick", 8), ("full", 120)):
        runs = PRESETS[name]
        assert len({(run.base, run.name) for run in runs}) == len(runs) == count
        assert {run.regime.key for run in runs} == set(REGIMES)


def test_the_mixtures_are_as_broad_as_they_say() -> None:
    """Three cells of 80 are narrow, 69 broad, 11 held out of all training; weights add up to 1."""
    cells = {name: set(mixture.cells) for name, mixture in MIXTURES.items()}
    assert {name: len(own) for name, own in cells.items()} == {
        "narrow": 3, "held_out": 11, "broad": 69, "core": 16, "original": 69,
    }  # fmt: skip
    assert not cells["held_out"] & (cells["broad"] | cells["narrow"] | cells["core"])
    assert set(SKILLS) == {cell.skill for cell in cells["broad"]}
    for mixture in MIXTURES.values():
        assert sum(mixture.weights) == pytest.approx(1)


def test_a_stream_depends_on_base_regime_and_seed_alone() -> None:
    def first(regime: str, seed: int = 0, base: Base = BASE) -> list[str]:
        samples = REGIMES[regime].samples(base, seed, 10_000)
        return [sample.prompt for sample in islice(samples, 50)]

    assert first("B") == first("B")
    assert first("B") != first("B", seed=1)
    assert first("B") != first("B", base=Base(TINY, 1))


def test_repetition_is_as_often_as_it_says() -> None:
    """A fifth of D comes from a pool whose samples are seen ten times."""
    tokens, used, seen = 200_000, 0, list[str]()
    for sample in REGIMES["D"].samples(Base(SMALL, 0), 0, tokens):
        used += len(sample.text)
        if used > tokens:
            break
        seen.append(sample.text)
    counts = pd.Series(seen).value_counts()
    often = counts[counts >= 5]
    assert often.sum() / len(seen) == pytest.approx(0.2, abs=0.05)
    assert often.mean() == pytest.approx(10, rel=0.3)


def test_labels_are_those_of_answers_alone() -> None:
    """The tokens with a loss spell the answers, each with its end."""
    samples = list(islice(MIXTURES["broad"].samples(Random(1)), 200))
    rows = rows_of(iter(samples), 4, 128)
    text = "".join(ALPHABET[token] for token in rows.labels[rows.labels != IGNORED])
    assert text
    assert "".join(f"{sample.answer}\n" for sample in samples).startswith(text)


def test_a_wider_decoder_learns_more_slowly_in_its_matrices() -> None:
    """The first step of Adam moves an entry by its rate: a quarter of it in matrices and head."""
    model = training.new_model(TINY.size, 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    recipe = Recipe(1, 1e-3, width_factor=0.25)
    training.train(model, MIXTURES["narrow"].samples(Random(0)), 4, recipe)
    moved = {name: float((w - before[name]).abs().max()) for name, w in model.state_dict().items()}
    assert moved["lm_head.weight"] == pytest.approx(0.25e-3, rel=1e-2)
    assert moved["model.embed_tokens.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_saving_rounds_the_copy_alone(tmp_path: Path) -> None:
    """Saved as bf16, a file has bf16 weights and the model stays as it is; two files, no more."""
    model = training.new_model(TINY.size, 0)
    training.save(model, tmp_path, torch.bfloat16)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    stored = load_file(tmp_path / "model.safetensors")
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(stored[name], weight.bfloat16())


def test_the_interval_over_bases_is_that_of_t() -> None:
    """Of 1, 2, 3: 2 and 4.303 / sqrt 3 to either side; of one base there is none."""
    found = over_bases([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, rel=1e-4)
    assert over_bases([1.0]).low is None


def test_checkpoints_of_runs_have_folders_of_their_own() -> None:
    folders = {checkpoint(Path("out"), run.base, run.name) for run in PRESETS["full"]}
    assert len(folders) == len(PRESETS["full"])


@pytest.mark.parametrize(("step", "share"), [
    (0, 0.2), (3, 0.8), (4, 1.0), (5, 1.0), (24, 0.55 + 0.45 * (1 + 5**0.5) / 4),
    (62, 0.55 + 0.45 * (1 - 5**0.5) / 4), (100, 0.1),
])  # fmt: skip
def test_the_learning_rate_rises_in_a_twentieth_and_falls_as_a_cosine(step, share):
    """To its peak, and to a tenth of it; cosines of fifths are half golden ratios."""
    assert training.learning_rate_share(step, 100) == pytest.approx(share)


@pytest.mark.parametrize(("muon", "peaks"), [(False, [0.125, 0.5]), (True, [0.5, 1 / 24, 1 / 6])])
def test_each_step_has_the_rate_of_its_number(monkeypatch, muon, peaks):
    """Of each optimiser and kind of parameters: a quarter for matrices, a third beside Muon."""
    rates = []

    def noted(model, tokens, labels, optimizers):
        rates.append([group["lr"] for one in optimizers for group in one.param_groups])

    monkeypatch.setattr(training, "update", noted)
    recipe = Recipe(3, 0.5, muon=muon, width_factor=0.25)
    samples = MIXTURES["narrow"].samples(Random(0))
    training.train(training.new_model(TINY.size, 0), samples, 1, recipe)
    assert np.array(rates) == pytest.approx(np.outer([1, 1, 0.55], peaks))


def test_a_row_has_as_many_whole_samples_as_fit():
    """Or one alone."""
    samples = [training.Sample(f"{at}", "x") for at in range(5)]
    for single, rows in ((False, 2), (True, 5)):
        labels = rows_of(iter(samples), 5, 9, single=single).labels
        assert ((labels != IGNORED).sum(1) > 0).sum() == rows


class Line(torch.nn.Module):
    """A weight whose loss is 100 times it, as the models of transformers give it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))

    def forward(self, input_ids, labels):
        assert self.training
        return SimpleNamespace(loss=100 * self.weight.sum())


def test_a_step_is_one_of_training_with_a_gradient_of_at_most_1():
    """Whatever mode the model was in, and whatever gradient was left; the loss is that before."""
    model = Line().eval()
    model.weight.grad = torch.tensor([-150.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    assert training.update(model, torch.zeros(1), torch.zeros(1), [optimizer]) == 300.0
    assert model.weight.item() == pytest.approx(2.5)


@pytest.mark.parametrize(("drawn", "share", "is_repeated"), [
    (0.0, 0.0, False), (0.25, 0.25, False), (0.25, 0.26, True), (0.99, 1.0, True),
])  # fmt: skip
def test_a_share_of_samples_is_from_the_pool(drawn, share, is_repeated):
    """None where it is 0, each where it is 1."""
    samples = [training.Sample(f"{at}", "x") for at in range(6)]
    rng = SimpleNamespace(random=lambda: drawn, choice=lambda pool: (pool, "again"))
    mixture = SimpleNamespace(samples=lambda rng: iter(samples))
    found = list(islice(training.partly_repeated(mixture, 2, share, rng), 3))
    assert found == ([(samples[:2], "again")] * 3 if is_repeated else samples[2:5])
