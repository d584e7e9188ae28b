"""`shadow reproduce`: noise alone and ranks, recipes as files, the shipped one on tiny models."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import models
import numpy as np
import pytest
import torch
from chains import explained
from command import run_shadow
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from shadow.cli.reproduce import reproduce
from shadow.errors import ShadowError, UsageError
from shadow.outputs.figures.panel import draw_panel
from shadow.reports.columns import delta_metrics
from shadow.reports.report import Report
from shadow.spectra.noise import noise_effective_rank, shift_by_noise
from shadow.summary.by_layer import by_layer
from shadow.targets.families import Pair
from shadow.targets.recipes import Metric, read_recipe, recipe_files


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
    names = ("effective_rank", "effective_rank_shift", "concentration")
    found = by_layer(Report(folder), [Metric(name) for name in names])
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

TOLD = "    published: "
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
    assert (found.name, found.modules) == ("own", ("mlp.up",))
    assert found.metrics == (Metric("effective_rank"),)


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
        ("[effective_rank]", "[{column: x, over: y}]", r"own\.yaml:5: `module` and `over` go toge"),
        ("[effective_rank]", "[{column: x, mean: z}]", r"own\.yaml:5: `mean` is 'z'"),
        ("[effective_rank]", "[x, {column: x}]", r"own\.yaml:5: the metric x is listed twice"),
        (": [demo]", f": [demo]\n{TOLD}{{'demo:base..narow': {{}}}}", r"11: .*no pair: 'demo:ba"),
        (": [demo]", f": [demo]\n{TOLD}{{'demo:base..broad': {{x: 1}}}}", r"11: .*no metric: 'x'"),
        (": [demo]", f": [demo]\n{TOLD}{{'demo:base..broad': {{x: nan}}}}", r"11: 'nan' is not a"),
        ("pairs: [demo]", "of: [demo]", r"own\.yaml:10: unknown key 'of'"),
        ("    pairs: [demo]\n", "", r"own\.yaml:7: it has neither `pairs` nor `stages`"),
        ("[demo]", "[demo]\n    stages: {a: ./a, b: ./b, c: ./c}", r"7: it has both `pairs` and"),
        ("pairs: [demo]", "stages: [./a, ./b, ./c]", r"own\.yaml:10: `stages` is not a mapping"),
        ("pairs: [demo]", "stages: {a: ./a, b: ./b}", r"own\.yaml:10: a run of fewer than three"),
        ("pairs: [demo]", "stages: {a: ./a, b: ./b, c..d: ./c}", r"10: 'c\.\.d' cannot name"),
        ("pairs: [demo]", "stages: {a: ./a, b: {subfolder: s}, c: ./c}", r"10: .*has no `repo`"),
        (
            "pairs: [demo]",
            f"stages: {{a: ./a, b: ./b, c: ./c}}\n{TOLD}{{'one:a..c': {{effective_rank: 1}}}}",
            r"11: .*no metric: 'effective_rank'",
        ),
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


def test_a_run_is_its_steps_and_its_ends(tmp_path):
    """Stages in order are pairs of neighbours, called like the panel; folders are relative to the
    file, and a stage may lie in a folder of a repository.
    """
    stages = "{base: ./b, s1: {repo: org/run, subfolder: global_step_1/hf_model}, '2': org/run@two}"
    text = GOOD.replace(
        "pairs: [demo]", f"stages: {stages}\n{TOLD}{{'one:base..2': {{linearity: .9}}}}"
    )
    (panel,) = read_recipe(recipe(tmp_path, text)).panels
    assert [pair.full_name for pair in panel.pairs] == ["one:base..s1", "one:s1..2"]
    assert panel.run is not None
    assert (panel.run.full_name, panel.run.base) == ("one:base..2", panel.pairs[0].base)
    assert panel.pairs[0].base.repo == str(tmp_path / "b")
    assert panel.pairs[0].tuned == panel.pairs[1].base
    assert panel.pairs[0].tuned.subfolder == "global_step_1/hf_model"
    assert panel.pairs[1].tuned.revision == "two"
    assert panel.figures([Metric("zero_share")]) == [
        (panel.run, "linearity"),
        *((pair, "zero_share") for pair in panel.pairs),
    ]


@given(st.text(max_size=300))
def test_any_text_is_a_recipe_or_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ShadowError):
            read_recipe(str(file))


def test_published_figures_and_nulls_are_read(tmp_path):
    """What stands in a column alone is known of four columns, and a recipe may name another."""
    metrics = "[zero_share, {column: spikes, alone: rank_90, mean: entries}]"
    text = GOOD.replace("[effective_rank]", metrics)
    text = text.replace(": [demo]", f": [demo]\n{TOLD}{{'demo:base..broad': {{spikes: 1.5}}}}")
    found = read_recipe(recipe(tmp_path, text))
    assert found.metrics == (
        Metric("zero_share", alone="zero_share_expected"),
        Metric("spikes", alone="rank_90", mean="entries"),
    )
    assert found.panels[0].published == {"demo:base..broad": {"spikes": 1.5}}


PANELS = {
    "benchmark-shadows": ["reasoning", "stages", "from-language-model"],
    "intruders": ["code", "math"],
    "linearity": ["grpo-1.5b"],
    "off-principal": ["rewarded", "supervised"],
    "output-over-query": ["distilled", "others"],
    "subnetworks": ["rewarded", "supervised"],
    "unchanged": ["supervised", "rewarded"],
}


def test_every_shipped_recipe_reads():
    """And names columns that deltas have; the help names it."""
    found = {name: read_recipe(name) for name in recipe_files()}
    assert {name: [panel.name for panel in one.panels] for name, one in found.items()} == PANELS
    (_, told) = get_args(get_type_hints(reproduce, include_extras=True)["recipe"])
    for name, one in found.items():
        assert re.search(rf"\b{name}\b", told.help)
        for metric in one.metrics:
            assert {metric.column, metric.alone or metric.column} <= {*delta_metrics()}


# --------------------------------------------------------- the shipped recipe, on tiny models


def reading_from(hub: Hub, home: Path, monkeypatch) -> None:
    """Commands read this Hub, with a cache of their own."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(home))


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
        reading_from(hub, tmp_path / "home", monkeypatch)
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
        reading_from(hub, tmp_path / "other-home", monkeypatch)
        gone = run_shadow(
            "reproduce", "benchmark-shadows", "-o", "new", "--panel", "reasoning", cwd=tmp_path
        )
        assert gone.code == 1
        assert "andesvl-4b:instruct..thinking" in gone.err
        page = (tmp_path / "new" / "benchmark-shadows.md").read_text()
        assert re.search(r"^\*\*Fault\.\*\* missing: andesvl", page, re.MULTILINE)
        assert "](reasoning.svg)" in page


Tensors = dict[str, torch.Tensor]


def reproduced(
    tmp_path: Path, monkeypatch, name: str, tune: Callable[[str, Tensors, torch.Generator], object]
) -> tuple[dict[str, Tensors], dict[str, dict]]:
    """A recipe on checkpoints of two layers, of which those that tune changes are tuned: their
    tensors, and what the command says of each pair.

    tune: gets a repository and the weights of all bases, which it may change in place; a folder
    that it returns is the repository.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.{module}_proj.weight": size
        * torch.randn(128, 192, generator=generator)
        for layer in range(2)
        for module, size in {"mlp.up": 0.02, "self_attn.q": 0.03, "self_attn.o": 0.01}.items()
    }
    pairs = pairs_of(name)
    found = {}
    with Hub() as hub:
        for repo in dict.fromkeys(
            s.repo for pair in pairs.values() for s in (pair.base, pair.tuned)
        ):
            own = {key: weight.bfloat16().float() for key, weight in weights.items()}
            folder = tune(repo, own, generator)
            found[repo] = {key: weight.bfloat16() for key, weight in own.items()}
            if not isinstance(folder, Path):
                config = {"model_type": "qwen3"}
                folder = models.write(tmp_path / "repos" / repo, found[repo], config)
            hub.add(repo, folder)
        reading_from(hub, tmp_path / "home", monkeypatch)
        done = run_shadow("reproduce", name, "--json", cwd=tmp_path)
        done.assert_done()
    panels = json.loads(done.out)
    told = {f"{one['family']}:{one['pair']}": one for panel in panels for one in panel["pairs"]}
    assert told.keys() == pairs.keys()
    page = (tmp_path / name / f"{name}.md").read_text()
    published = [
        (panel, pair, figures)
        for panel in read_recipe(name).panels
        for pair, figures in panel.published.items()
    ]
    for panel, pair, figures in published:
        assert told[pair]["published"] == figures
        assert "| published |" in page.partition(f"]({panel.name}.svg)")[2].partition("#")[0]
    return found, told


def small(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An update of every entry, most of which BF16 does not hold."""
    return 2e-3 * weight.std() * torch.randn(weight.shape, generator=generator)


def deltas(found: dict[str, Tensors], pair: Pair) -> dict[str, np.ndarray]:
    base, tuned = (found[side.repo] for side in (pair.base, pair.tuned))
    return {key: (tuned[key].double() - base[key].double()).numpy() for key in base}


def pairs_of(name: str) -> dict[str, Pair]:
    return {pair.full_name: pair for panel in read_recipe(name).panels for pair in panel.pairs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("unchanged", "POLARIS-Project/Polaris-4B-Preview"),
        ("subnetworks", "kaist-ai/mistral-orpo-beta"),
    ],
)
def test_the_recipes_of_unchanged_weights_tell_a_mask_from_storage(
    name, masked, tmp_path, monkeypatch
):
    """Small updates of all entries follow the line of noise; one of a fifth has an excess. Shares
    of all entries are those that a count of equal ones has.
    """

    def tune(repo: str, weights: Tensors, generator: torch.Generator) -> None:
        if repo.startswith(("Qwen/", "meta-llama/", "mistralai/")):
            return
        for weight in weights.values():
            update = small(weight, generator)
            if repo == masked:
                update *= 2 * (torch.rand(weight.shape, generator=generator) < 0.2)
            weight += update

    found, told = reproduced(tmp_path, monkeypatch, name, tune)
    for pair_name, pair in pairs_of(name).items():
        figures, whole = told[pair_name]["figures"], told[pair_name]["whole"]
        for zeros, excess in zip(figures["zero_share"], figures["zero_share_excess"], strict=True):
            if pair.tuned.repo == masked:
                assert excess["measured"] > 0.3
            else:
                assert abs(excess["measured"]) < 0.05
                assert zeros["noise"] == pytest.approx(zeros["measured"], abs=0.03)
        if name == "subnetworks":
            changes = [*deltas(found, pair).values()]
            shares = np.mean([(change == 0).mean() for change in changes])
            assert whole["zero_share"]["measured"] == pytest.approx(shares, abs=1e-6)
            ranks = np.mean([np.linalg.matrix_rank(change) for change in changes])
            assert whole["numerical_rank"] == {
                "measured": pytest.approx(ranks, abs=1), "noise": 128, "rounding": 128,
            }  # fmt: skip


@pytest.mark.slow
def test_the_recipe_off_principal_tells_updates_that_avoid_leading_directions(
    tmp_path, monkeypatch
):
    """Those of rewarded tunes are made without the sixteen first left directions, those of
    supervised ones lie in them.
    """
    pairs = pairs_of("off-principal")
    supervised = {pair.tuned.repo for name, pair in pairs.items() if name.endswith("..sft")}
    bases = {pair.base.repo for pair in pairs.values()} - supervised

    def tune(repo: str, weights: Tensors, generator: torch.Generator) -> None:
        if repo in bases:
            return
        for weight in weights.values():
            first = torch.linalg.svd(weight, full_matrices=False).U[:, :16]
            update = 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
            inside = first @ (first.T @ update)
            weight += inside if repo in supervised else update - inside

    _, told = reproduced(tmp_path, monkeypatch, "off-principal", tune)
    for name, pair in pairs.items():
        whole = told[name]["whole"]
        left = whole["alignment_left"]
        if pair.tuned.repo in supervised:
            assert left["measured"] > 2 * left["noise"]
        elif pair.base.repo in bases:
            assert left["measured"] < 0.5 * left["noise"]
        assert left["noise"] == pytest.approx(1, abs=0.2)
        assert whole["overlap_left"]["noise"] is None


@pytest.mark.slow
def test_the_recipe_of_intruders_tells_a_strong_adapter(tmp_path, monkeypatch):
    """Adapters whose one direction is orthogonal to the leading 64 of the base leave an intruder in
    each matrix, training of all entries none.
    """

    def tune(repo: str, weights: Tensors, generator: torch.Generator) -> Path | None:
        if "lora-rank" not in repo:
            if "full-finetuning" in repo:
                for weight in weights.values():
                    weight += small(weight, generator)
            return None
        rank, tensors = 16, {}
        for name, weight in weights.items():
            left, sigma, right = torch.linalg.svd(weight, full_matrices=False)
            key = f"base_model.model.{name.removesuffix('.weight')}.lora"
            down, up = torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank)
            down[0], up[:, 0] = right[-1], 2 * sigma[0] * left[:, -1]
            tensors |= {f"{key}_A.weight": down, f"{key}_B.weight": up}
        folder = models.write(tmp_path / "repos" / repo, tensors)
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA", "r": rank, "lora_alpha": rank,
            "target_modules": ["up_proj", "q_proj", "o_proj"],
            "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    _, told = reproduced(tmp_path, monkeypatch, "intruders", tune)
    assert len(told) == 8
    for name, one in told.items():
        assert one["whole"]["intruders"]["measured"] == (0 if name.endswith("..full") else 1)


@pytest.mark.slow
def test_the_recipe_of_output_over_query_divides_means_and_knows_an_even_change(
    tmp_path, monkeypatch
):
    """Measured: means of relative norms by NumPy. Noise: what entries of one size in both modules
    have, by the norms of the base. Distilled tunes move o twice as far as q.
    """
    pairs = pairs_of("output-over-query")
    distilled = {pair.tuned.repo for name, pair in pairs.items() if name.endswith("..distill")}
    bases = {pair.base.repo for pair in pairs.values()}

    def tune(repo: str, weights: Tensors, generator: torch.Generator) -> None:
        if repo in bases:
            return
        for name, weight in weights.items():
            size = 1e-3 * (2 if "o_proj" in name and repo in distilled else 1)
            weight += size * torch.randn(weight.shape, generator=generator)

    found, told = reproduced(tmp_path, monkeypatch, "output-over-query", tune)
    for name, pair in pairs.items():
        changes, base = deltas(found, pair), found[pair.base.repo]
        norms: dict[str, list[float]] = {"o_proj": [], "q_proj": []}
        even: dict[str, list[float]] = {"o_proj": [], "q_proj": []}
        for key, change in changes.items():
            module = key.split(".")[-2]
            if module in norms:
                whole = float(base[key].double().norm())
                norms[module].append(float(np.linalg.norm(change)) / whole)
                even[module].append(math.sqrt(change.size) / whole)
        ratio, null = (np.mean(one["o_proj"]) / np.mean(one["q_proj"]) for one in (norms, even))
        (figure,) = told[name]["whole"].values()
        assert figure["measured"] == pytest.approx(ratio, rel=1e-3)
        assert figure["noise"] == pytest.approx(null, rel=1e-3)
        assert figure["rounding"] is None
        assert ratio / null == pytest.approx(2 if pair.tuned.repo in distilled else 1, rel=0.05)


def run_of(tmp_path: Path, hub: Hub, straight: bool) -> list[Tensors]:
    """The stages that the recipe `linearity` names, on the Hub: weights of a master copy that
    walks, or moves in a line, stored in BF16. Returned as they are stored.
    """
    generator = torch.Generator().manual_seed(0)
    master = {
        f"model.layers.{layer}.mlp.up_proj.weight": 0.02
        * torch.randn(64, 96, generator=generator, dtype=torch.float64)
        for layer in range(2)
    }
    (panel,) = read_recipe("linearity").panels
    references = [panel.pairs[0].base, *(pair.tuned for pair in panel.pairs)]
    steps = {name: torch.randn(64, 96, generator=generator) for name in master}
    top, found = tmp_path / "repos", []
    for number, reference in enumerate(references):
        if number:
            for name, weight in master.items():
                if not straight:
                    steps[name] = torch.randn(64, 96, generator=generator)
                weight += 2e-4 * steps[name]
        found.append({name: weight.bfloat16() for name, weight in master.items()})
        folder = top / reference.repo / (reference.subfolder or "")
        models.write(folder, found[-1], {"model_type": "qwen2"})
    for repo in dict.fromkeys(reference.repo for reference in references):
        hub.add(repo, top / repo)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("straight", [True, False])
def test_the_recipe_of_linearity_tells_a_line_from_a_walk(straight, tmp_path, monkeypatch):
    """R² of each layer and of both, of the stages as BF16 holds them, by NumPy; beside the walk,
    .61 of fourteen stages, and what was published. A line has nearly 1, a walk what walks have.
    """
    with Hub() as hub:
        stages = run_of(tmp_path, hub, straight)
        reading_from(hub, tmp_path / "home", monkeypatch)
        plan = json.loads(
            run_shadow("reproduce", "linearity", "--plan", "--json", cwd=tmp_path).assert_done()
        )
        assert len(plan) == 13
        done = run_shadow("reproduce", "linearity", "--json", cwd=tmp_path)
    (panel,) = json.loads(done.assert_done())
    run = panel["run"]
    layers = [
        np.array([stage[name].double().numpy().ravel() for stage in stages]) for name in stages[0]
    ]
    for path, told in zip(layers, run["figures"]["linearity"], strict=True):
        assert told["measured"] == pytest.approx(explained(path), rel=1e-9)
        assert told["noise"] == pytest.approx(0.6 * 197 / 195, abs=0.02)
    whole = run["whole"]["linearity"]
    assert whole["measured"] == pytest.approx(explained(np.concatenate(layers, axis=1)), rel=1e-9)
    assert whole["noise"] == pytest.approx(0.6 * 197 / 195, abs=0.01)
    assert whole["rounding"] is None
    assert run["published"] == {"linearity": 0.9}
    if straight:
        assert whole["measured"] > 0.98
    else:
        assert whole["measured"] == pytest.approx(whole["noise"], abs=0.02)
    assert len(panel["pairs"]) == 13
    assert set(panel["pairs"][0]["whole"]) == {"zero_share"}
    page = (tmp_path / "linearity" / "linearity.md").read_text()
    (row,) = [line for line in page.splitlines() if "<code>linearity</code>" in line]
    assert f"{whole['measured']:.3f}" in row
    assert "0.900" in row.replace(f"{whole['measured']:.3f}", "")
    assert "](grpo-1.5b.svg)" in page
    drawn = (tmp_path / "linearity" / "grpo-1.5b.svg").read_text()
    assert "rounding alone" not in drawn


@pytest.mark.slow
def test_a_run_without_one_of_its_stages_is_told(tmp_path, monkeypatch):
    """A folder that the repository lacks: the pairs that meet it and the run are missing, the
    others are there.
    """
    with Hub() as hub:
        run_of(tmp_path, hub, straight=True)
        repo = "Miaow-Lab/RLVR-Linearity-Checkpoints"
        shutil.rmtree(tmp_path / "repos" / repo / "global_step_300")
        hub.add(repo, tmp_path / "repos" / repo)
        reading_from(hub, tmp_path / "home", monkeypatch)
        done = run_shadow("reproduce", "linearity", "--json", cwd=tmp_path)
    assert done.code == 1
    (panel,) = json.loads(done.out)
    lacking = ["step-200..step-300", "step-300..step-400"]
    assert [one["pair"] for one in panel["pairs"] if one.get("error")] == lacking
    assert "global_step_300/hf_model" in done.err
    assert panel["run"]["error"] == "the run lacks step-200..step-300, step-300..step-400"
    page = (tmp_path / "linearity" / "linearity.md").read_text()
    assert "missing: grpo-1.5b:base..step-1300: the run lacks" in page
    assert "](grpo-1.5b.svg)" not in page
    assert done.err.endswith("page and figures in linearity/: linearity.md\n")


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
