"""`shadow reproduce`: noise alone and ranks, recipes as files, the shipped one on tiny models."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from command import run_shadow
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from shadow.errors import ShadowError, UsageError
from shadow.outputs.figures.panel import draw_panel
from shadow.reports.report import Report
from shadow.spectra.noise import noise_effective_rank, shift_by_noise
from shadow.summary.by_layer import by_layer
from shadow.targets.recipes import read_recipe, recipe_files


def effective_rank(sigma: np.ndarray) -> float:
    p = sigma[sigma > 0] / sigma.sum()
    return math.exp(-(p * np.log(p)).sum())


# ----------------------------------------------------------------------- what noise alone does


@pytest.mark.parametrize("shape", [(256, 1024), (200, 200), (300, 40), (64, 64)])
def test_the_rank_of_noise_is_that_of_drawn_matrices(shape):
    """Marchenko and Pastur against NumPy's SVD of Gaussian matrices, to a hundredth."""
    rng = np.random.default_rng(0)
    drawn = [
        effective_rank(np.linalg.svd(rng.standard_normal(shape), compute_uv=False))
        for _ in range(4)
    ]
    assert noise_effective_rank(*shape) == pytest.approx(np.mean(drawn), rel=1e-2)
    assert noise_effective_rank(*shape) == noise_effective_rank(*shape[::-1])


def spectra(m: int) -> dict[str, np.ndarray]:
    bulk = np.linalg.svd(
        np.random.default_rng(1).standard_normal((m, 2 * m)) / 40, compute_uv=False
    )
    spiked = bulk.copy()
    spiked[: m // 20] *= np.linspace(8, 1.2, m // 20)
    return {
        "decaying": np.exp(-np.linspace(0, 4, m)),
        "spiked": np.sort(spiked)[::-1],
        "power": np.arange(1, m + 1) ** -0.6,
    }


@pytest.mark.parametrize("kind", ["decaying", "spiked", "power"])
@pytest.mark.parametrize("norm", [0.05, 0.3])
def test_the_shift_by_noise_is_that_of_a_whole_matrix(kind, norm):
    """A matrix of 500 singular values, noise added to all of it: the smaller one that stands for it
    says the same.
    """
    sigma = spectra(500)[kind]
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(rng.standard_normal((500, 500)))  # the basis does not matter
    noise = rng.standard_normal((500, 1000))
    noise *= norm * np.linalg.norm(sigma) / np.linalg.norm(noise)
    noise[:, :500] += left * sigma
    whole = effective_rank(np.linalg.svd(noise, compute_uv=False)) - effective_rank(sigma)
    assert shift_by_noise(sigma, 500, 1000, norm * np.linalg.norm(sigma)) == pytest.approx(
        whole, rel=0.05, abs=0.15
    )


def test_no_noise_shifts_nothing():
    assert shift_by_noise(spectra(40)["power"], 40, 80, 0.0) == 0
    assert shift_by_noise(np.zeros(40), 40, 80, 1.0) == 0


@pytest.mark.slow
def test_figures_by_layer_are_numpys(tmp_path):
    """Measured: the effective rank of each delta by NumPy. Noise: of the delta's shape, whatever
    its norm.
    """
    base = models.saved("llama", tmp_path / "base")
    tuned = models.perturbed(base, tmp_path / "tuned")
    run_shadow(
        "audit", "./base", "./tuned", "--module", "mlp.up", "-o", "out", cwd=tmp_path
    ).assert_done()
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("matrices.parquet")}
    found = by_layer(Report(folder), ["effective_rank", "effective_rank_shift", "concentration"])
    before, after = (load_file(path / "model.safetensors") for path in (base, tuned))
    for layer in found.figures["effective_rank"]:
        name = f"model.layers.{layer.layer}.mlp.up_proj.weight"
        one, two = before[name].double().numpy(), after[name].double().numpy()
        sigmas = [np.linalg.svd(matrix, compute_uv=False) for matrix in (two - one, two, one)]
        ranks = [effective_rank(sigma) for sigma in sigmas]
        assert layer.measured == pytest.approx(ranks[0], rel=1e-4)
        assert layer.noise == noise_effective_rank(*one.shape)
        shift = found.figures["effective_rank_shift"][layer.layer]
        assert shift.measured == pytest.approx(ranks[1] - ranks[2], abs=1e-3)
        expected = shift_by_noise(sigmas[2], *one.shape, norm=float(np.linalg.norm(two - one)))
        assert shift.noise == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert found.figures["concentration"][layer.layer].noise is None
    assert len(found.figures["effective_rank"]) == 2
    assert draw_panel([found], ["effective_rank"]) == draw_panel([found], ["effective_rank"])


# ----------------------------------------------------------------------------------- recipes

GOOD = """title: T
source: S
components: [language]
modules: [mlp.up]
metrics: [effective_rank]
panels:
  one:
    text: What.
    bears_on: Which.
    pairs: [demo]
"""


def recipe(tmp_path: Path, text: str) -> str:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    return str(file)


def test_a_recipe_names_pairs_as_a_list_does(tmp_path):
    """Targets, globs, and pairs of checkpoints under a name; folders are relative to the file."""
    text = GOOD.replace("[demo]", "['demo:*', {name: 'my:base..tuned', base: ./b, tuned: org/t}]")
    found = read_recipe(recipe(tmp_path, text))
    (panel,) = found.panels
    assert [pair.full_name for pair in panel.pairs] == [
        "demo:base..narrow",
        "demo:base..broad",
        "my:base..tuned",
    ]
    assert panel.pairs[2].base.repo == str(tmp_path / "b")
    assert (found.name, found.modules, found.metrics) == ("own", ("mlp.up",), ("effective_rank",))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("title: T", "titel: T", r"own\.yaml:1: unknown key 'titel'"),
        ("source: S\n", "", r"own\.yaml: a recipe has no `source`"),
        ("    text: What.\n", "", r"own\.yaml:7: a panel has no `text`"),
        ("[demo]", "[no-such]", r"own\.yaml:10: .*no-such"),
        ("[demo]", "demo", r"own\.yaml:10: `pairs` is not a list"),
        ("[demo]", "[{base: ./b}]", r"own\.yaml:10: .*entry has no `tuned`"),
        ("[effective_rank]", "[]", r"own\.yaml:5: `metrics` is empty"),
        ("  one:", "  ../one:", r"own\.yaml:7: .*cannot be a name"),
        ("panels:", "panels: []\nrest:", r"unknown key 'rest'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(tmp_path, before, after, told):
    with pytest.raises(ShadowError, match=told):
        read_recipe(recipe(tmp_path, GOOD.replace(before, after)))


def test_an_unknown_recipe_panel_or_metric_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_recipe("benchmark-shadow")
    assert "benchmark-shadows" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no panel 'tow'"):
        read_recipe(recipe(tmp_path, GOOD)).only(["tow"])
    told = run_shadow(
        "reproduce", recipe(tmp_path, GOOD.replace("effective_rank", "effective_rnk")), cwd=tmp_path
    )
    assert told.code == 1
    assert "no metric 'effective_rnk'" in told.err


@given(st.text(max_size=300))
def test_any_text_is_a_recipe_or_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ShadowError):
            read_recipe(str(file))


def test_every_shipped_recipe_reads():
    assert list(recipe_files()) == ["benchmark-shadows", "unchanged"]
    found = read_recipe("benchmark-shadows")
    assert [panel.name for panel in found.panels] == ["reasoning", "stages", "from-language-model"]
    found = read_recipe("unchanged")
    assert [panel.name for panel in found.panels] == ["supervised", "rewarded"]


# --------------------------------------------------------- the shipped recipe, on tiny models


def layouts(tmp_path: Path) -> dict[str, Path]:
    """Tiny checkpoints under the names that the recipe has, in the released layouts."""
    qwen = models.saved("qwen3_vl", tmp_path / "qwen")
    weights = load_file(qwen / "model.safetensors")
    config = json.loads((qwen / "config.json").read_text())
    text = {name: one for name, one in weights.items() if ".language_model." in name}
    plain = {name.replace(".language_model.", "."): one for name, one in text.items()}
    intern = {f"language_model.{name}": one for name, one in plain.items()}
    tower = {"vision_model.encoder.layers.0.mlp.fc1.weight": torch.randn(32, 16)}
    kinds = {
        "Qwen/Qwen3-VL": (weights, config),
        "Qwen/Qwen3-4B": (plain, {**config["text_config"], "model_type": "qwen3"}),
        "OpenGVLab/": (
            intern | tower,
            {"model_type": "internvl_chat", "llm_config": {"model_type": "qwen3"}},
        ),
        "OPPOer/": (
            intern | tower,
            {"model_type": "andesvl", "text_config": {"model_type": "qwen3"}},
        ),
    }
    repos = dict.fromkeys(
        side.repo
        for panel in read_recipe("benchmark-shadows").panels
        for pair in panel.pairs
        for side in (pair.base, pair.tuned)
    )
    found = {}
    for number, repo in enumerate(repos):
        tensors, told = next(value for start, value in kinds.items() if repo.startswith(start))
        generator = torch.Generator().manual_seed(number)
        moved = {
            n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator)
            for n, t in tensors.items()
        }
        found[repo] = models.write(
            tmp_path / "repos" / repo, {n: t.bfloat16() for n, t in moved.items()}, told
        )
    return found


@pytest.mark.slow
def test_the_shipped_recipe_runs_on_checkpoints_of_these_layouts(tmp_path, monkeypatch):
    """Every panel has its figure and pairs; the same command again measures nothing; a missing pair
    is told.
    """
    repos = layouts(tmp_path)
    with Hub() as hub:
        for repo, folder in repos.items():
            hub.add(repo, folder)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        done = run_shadow("reproduce", "benchmark-shadows", "--json", cwd=tmp_path)
        done.assert_done()
        panels = {panel["panel"]: panel["pairs"] for panel in json.loads(done.out)}
        assert {name: len(pairs) for name, pairs in panels.items()} == {
            "reasoning": 2, "stages": 3, "from-language-model": 4,
        }  # fmt: skip
        for pairs in panels.values():
            for pair in pairs:
                for layers in pair["figures"].values():
                    assert [one["layer"] for one in layers] == [0, 1]
                    assert all(one["noise"] is not None for one in layers)
        out = tmp_path / "benchmark-shadows"
        page = (out / "benchmark-shadows.md").read_text()
        for name in panels:
            assert f"]({name}.svg)" in page
            assert (out / f"{name}.svg").read_bytes().startswith(b"<?xml")
        again = run_shadow("reproduce", "benchmark-shadows", "--json", cwd=tmp_path)
        assert again.out == done.out
        assert "nothing to measure" in again.err
    with Hub() as hub:
        for repo, folder in repos.items():
            if repo != "OPPOer/AndesVL-4B-Thinking":
                hub.add(repo, folder)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "other-home"))
        gone = run_shadow(
            "reproduce", "benchmark-shadows", "-o", "new", "--panel", "reasoning", cwd=tmp_path
        )
        assert gone.code == 1
        assert "andesvl-4b:instruct..thinking" in gone.err
        page = (tmp_path / "new" / "benchmark-shadows.md").read_text()
        assert re.search(r"^\*\*Fault\.\*\* missing: andesvl", page, re.MULTILINE)
        assert "](reasoning.svg)" in page


@pytest.mark.slow
def test_the_recipe_of_unchanged_weights_tells_a_mask_from_storage(tmp_path, monkeypatch):
    """Small updates of all entries follow the line of noise; one of a fifth has an excess."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.{module}.weight": 0.02 * torch.randn(128, 192, generator=generator)
        for layer in range(2)
        for module in ("mlp.up_proj", "self_attn.q_proj")
    }
    panels = read_recipe("unchanged").panels
    repos = dict.fromkeys(
        side.repo for panel in panels for pair in panel.pairs for side in (pair.base, pair.tuned)
    )
    masked = "POLARIS-Project/Polaris-4B-Preview"
    found = {}
    for repo in repos:
        found[repo] = {name: one.bfloat16() for name, one in weights.items()}
        for name, one in found[repo].items():
            if not repo.startswith("Qwen/") and one.ndim == 2:
                update = 2e-3 * one.float().std() * torch.randn(one.shape, generator=generator)
                if repo == masked:
                    update *= 2 * (torch.rand(one.shape, generator=generator) < 0.2)
                found[repo][name] = (one.float() + update).bfloat16()
    with Hub() as hub:
        for repo, tensors in found.items():
            hub.add(repo, models.write(tmp_path / "repos" / repo, tensors, {"model_type": "qwen3"}))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        done = run_shadow("reproduce", "unchanged", "--json", cwd=tmp_path)
        done.assert_done()
    seen = {
        (pair["family"], pair["pair"]): pair["figures"]
        for panel in json.loads(done.out)
        for pair in panel["pairs"]
    }
    assert len(seen) == 5
    for name, figures in seen.items():
        for zeros, excess in zip(figures["zero_share"], figures["zero_share_excess"], strict=True):
            if name[0] == "polaris-4b":
                assert excess["measured"] > 0.5
            else:
                assert abs(excess["measured"]) < 0.05
                assert zeros["noise"] == pytest.approx(zeros["measured"], abs=0.03)


@pytest.mark.slow
def test_nothing_foreign_is_overwritten(tmp_path):
    """A page or figure of somebody else stays, with one line; its own are replaced."""
    words = ("reproduce", recipe(tmp_path, GOOD), "-o", "out")
    run_shadow(*words, cwd=tmp_path).assert_done()
    run_shadow(*words, cwd=tmp_path).assert_done()
    for name in ("own.md", "one.svg"):
        file = tmp_path / "out" / name
        ours = file.read_bytes()
        file.write_text("somebody else's")
        refused = run_shadow(*words, cwd=tmp_path)
        assert refused.code == 1
        assert "Traceback" not in refused.err
        assert file.read_text() == "somebody else's"
        file.write_bytes(ours)
