"""The study of mechanisms: trainings of a tiny random decoder, and its page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mechanism_figures
import mechanisms

import mechanisms_page
from shadow.lab.training import save

LETTERS = "\n" + "".join(chr(number) for number in range(32, 127))


class Letters:
    """A tokenizer with a token a character."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(one) for one in text]}

    def decode(self, tokens: Any, skip_special_tokens: bool = False) -> str:
        return "".join(LETTERS[int(one)] for one in tokens)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A folder with a tiny base, and questions of one length to train it on."""
    monkeypatch.setattr(mechanisms, "MOST_ASKED", 60)
    monkeypatch.setattr(mechanisms, "PROMPTS", 2)
    monkeypatch.setattr(mechanisms, "KEPT_EVERY", 1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    save(transformers.LlamaForCausalLM(config), tmp_path / "base")
    text = "".join(f"Question: What is meant by a{n}?\nAnswer: b{n}\n\n" for n in range(10, 99)) * 9
    tokens = np.array(Letters()(text)["input_ids"])
    material = mechanisms.material_of(Letters(), tokens, len(LETTERS))
    return tmp_path, replace(material, form="a letter of the first half")


@pytest.mark.parametrize("kind", ["sft", "masked", "lora", "dpo", "grpo"])
def test_two_steps(kind: str, study: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out, material = study
    monkeypatch.setitem(mechanisms.FORMS, material.form, lambda line: line[:1] < "O")
    run = mechanisms.Run(
        kind if kind in ("dpo", "grpo") else "sft", 0, 1e-3, 2,
        rank=2 if kind == "lora" else 0, share=0.2 if kind == "masked" else 1.0,
    )  # fmt: skip
    mechanisms.perform(out, kind, run, material)
    folder = out / "runs" / kind
    log = json.loads((folder / "done.json").read_text())["log"]
    assert [one["step"] for one in log] == [0, 1]
    base = load_file(out / "base" / "model.safetensors")
    state = load_file(folder / "step-2.safetensors")
    assert len(state) == 7
    moved = total = 0.0
    for name, values in state.items():
        before = base[name].bfloat16().float()
        change = values - before
        assert change.any()
        if kind == "masked":
            assert (change != 0).double().mean() < 0.35
        if kind == "lora":
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= 2
        moved += float(change.square().sum())
        total += float(before.square().sum())
    assert log[1]["norm"] == pytest.approx((moved / total) ** 0.5, rel=1e-5)


def test_goes_on_as_if_it_had_not_been_cut_off(
    study: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, material = study
    run = mechanisms.Run("sft", 0, 1e-3, 3)
    mechanisms.perform(out, "whole", run, material)
    with monkeypatch.context() as patched:
        norms = iter([1e-5, 2e-5])
        patched.setattr(mechanisms, "_relative_norm", lambda *_: next(norms))
        with pytest.raises(StopIteration):
            mechanisms.perform(out, "cut", run, material)
    mechanisms.perform(out, "cut", run, material)
    log = json.loads((out / "runs" / "cut" / "done.json").read_text())["log"]
    assert [one["norm"] for one in log[:2]] == [1e-5, 2e-5]  # not done again
    whole = load_file(out / "runs" / "whole" / "step-3.safetensors")
    for name, values in load_file(out / "runs" / "cut" / "step-3.safetensors").items():
        assert torch.equal(values, whole[name])


def planted(norm: float, share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A base on the grid of BF16, and an update of that relative norm in a share of the entries."""
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.normal(0, 0.07, (96, 128))).bfloat16().float()
    update = rng.normal(size=(96, 128)) * (rng.random((96, 128)) < share)
    update *= norm * float(base.norm()) / np.linalg.norm(update)
    return base, torch.from_numpy(update).float()


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_figures_of_a_matrix_are_those_of_numpy(share: float) -> None:
    base, update = planted(2e-3, share)
    exact, stored = mechanism_figures.matrix_rows("m.layers.5.q", base, base + update)
    W, D = base.double().numpy(), (base + update).double().numpy() - base.double().numpy()
    S = (base + update).bfloat16().double().numpy() - W
    for row, d in ((exact, D), (stored, S)):
        assert row["unchanged"] == pytest.approx((d == 0).mean())
        assert row["relative_norm"] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(W), 1e-5)
        sigma = np.linalg.svd(d, compute_uv=False)
        assert row["participation_ratio"] == pytest.approx(
            (sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-4
        )
        assert abs(row["concentration"]) < 0.01
        shares = sigma / sigma.sum()
        rank = np.exp(-(shares * np.log(shares)).sum()) / 96
        assert row["effective_rank"] == pytest.approx(rank, rel=1e-3)
        assert row["intruders"] == 0
        low = np.abs(W) <= np.quantile(np.abs(W), 0.3)
        assert row["low"] == pytest.approx(low[d != 0].mean(), abs=0.01)
        assert row["low_shuffled"] == pytest.approx(row["low"], abs=0.03)
    assert stored["shuffled"] == pytest.approx(stored["unchanged"], abs=0.02)
    assert stored["drawn"] == pytest.approx(stored["unchanged"], abs=0.05)
    if share == 1.0:
        for name in ("normal", "told", "finest_normal"):
            of = "finest" if name == "finest_normal" else "unchanged"
            assert stored[name] == pytest.approx(stored[of], abs=0.03), name
    else:
        assert stored["finest"] - stored["finest_normal"] > 0.6


def test_a_line_is_straight_and_a_walk_is_not() -> None:
    """R² of four even steps: 1 along a line; for a walk 0.65 in expectation of sums."""
    base, update = planted(1e-2)
    exact, stored = mechanism_figures.line_rows(base, [base + k * update for k in (1, 2, 3, 4)])
    assert exact["r2"] == pytest.approx(1.0, abs=1e-6)
    assert exact["linear"] == 1.0
    assert exact["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert exact["cosine_walk"] == pytest.approx(0.0, abs=0.03)
    assert exact["r2_walk"] == pytest.approx(walk_r2(), abs=0.03)
    assert 0.5 < stored["r2"] < 1.0


def walk_r2() -> float:
    """Explained over total expected squares of a walk of four steps: from its covariance."""
    covariance = np.minimum.outer(np.arange(5.0), np.arange(5.0))
    centre = np.eye(5) - 0.2
    t = np.arange(5.0) - 2
    return float(t @ covariance @ t / (t @ t) / np.trace(centre @ covariance @ centre))


def of_seeds(*unchanged: float) -> mechanisms_page.Study:
    """A study in which storage predicts .9, and RL of each seed left that share as stored."""
    rows = [
        {
            "run": f"{kind}-{seed}", "kind": kind, "seed": seed, "mark": 3e-4, "stored": stored,
            "unchanged": (share if kind == "grpo" else 0.9) if stored == "BF16" else 0.0,
            "shuffled": 0.9 if stored == "BF16" else None,
        }
        for seed, share in enumerate(unchanged)
        for kind in ("grpo", "sft-slow")
        for stored in ("F32", "BF16")
    ]  # fmt: skip
    return mechanisms_page.Study(pd.DataFrame(rows), pd.DataFrame(), {})


@pytest.mark.parametrize(
    ("unchanged", "verdict"),
    [
        ((0.9, 0.91), "is storage"),
        ((0.9,), "is storage (one seed)"),
        ((0.9, 0.99), "open: seeds disagree"),
        ((0.99, 0.99), "open"),
        ((), "open"),
    ],
)
def test_a_verdict_follows_from_the_figures_of_all_seeds(
    unchanged: tuple[float, ...], verdict: str
) -> None:
    study = of_seeds(*unchanged) if unchanged else of_seeds(0.9)
    if not unchanged:
        study.states["kind"] = "dpo"
    assert mechanisms_page.judged(mechanisms_page.CLAIMS[0], study)[1] == verdict


def test_the_page_is_what_the_command_makes_of_the_tables() -> None:
    """docs/mechanisms.md holds no other number."""
    docs = Path(__file__).parents[2] / "docs"
    made = mechanisms_page.page(mechanisms_page.read(docs / "lab"))
    assert made == (docs / "mechanisms.md").read_text(encoding="utf-8")


def test_a_grade_is_the_f1_of_words(study: tuple[Path, Any]) -> None:
    """Of words that the question has not: one of two said, of two of the gloss, is a half."""
    _, material = study
    question = Letters()("Question: What is meant by a10?\nAnswer:")["input_ids"]
    glosses = {tuple(question): frozenset({"red", "stone"})}
    graded = replace(material, glosses=glosses)
    assert graded.overlap(question, " A red, meant RED thing") == pytest.approx(2 * 1 / (2 + 2))
    assert graded.overlap(question, "stone red") == 1.0
    assert graded.overlap(question, "") == 0.0
    assert material.glosses[tuple(question)] == {"b"}


def test_graded_answers_keep_a_gradient_where_all_are_of_the_form(
    study: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, material = study
    monkeypatch.setitem(mechanisms.FORMS, material.form, lambda line: True)
    letters = dict.fromkeys(material.glosses, frozenset("cdfgjklopuvxz"))
    material = replace(material, glosses=letters)
    for graded in (False, True):
        run = mechanisms.Run("grpo", 0, 1e-3, 2, graded=graded)
        mechanisms.perform(out, f"graded-{graded}", run, material)
        log = json.loads((out / "runs" / f"graded-{graded}" / "done.json").read_text())["log"]
        assert (log[-1]["norm"] > 0) == graded
        assert all(0 < one["told"] < 1 for one in log) == graded


def test_noise_moves_entries_in_a_line_by_momentum_alone() -> None:
    """Without momentum a walk; with that of the runs the share that its covariance gives."""
    assert mechanism_figures.noise_r2([True] * 40) == pytest.approx(momentum_r2(), abs=0.01)
    assert mechanism_figures.noise_r2([True] * 10 + [False] * 30) < 0.7


def momentum_r2() -> float:
    """Of 40 steps with means of past gradients by betas .9 and .95 of AdamW, warmed up over five:
    from the covariance of the steps, as if the second moment were its mean.
    """
    rates = np.minimum(1, np.arange(1, 41) / 5)
    t, s = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    moves = np.where(s <= t, 0.1 * 0.9 ** np.maximum(t - s, 0), 0) / (1 - 0.9 ** (t + 1))
    path = np.cumsum(rates[:, None] * moves, 0)[9::10]
    path = np.vstack([np.zeros(40), path])
    covariance = path @ path.T
    centre = np.eye(5) - 0.2
    times = np.arange(5.0) - 2
    explained = times @ covariance @ times / (times @ times)
    return float(explained / np.trace(centre @ covariance @ centre))


def test_a_run_is_added_to_tables_that_keep_the_others(tmp_path: Path) -> None:
    before = pd.DataFrame(
        {"run": ["a-0", "a-0", "b-0"], "state": ["norm-1", "step-2", "step-2"], "x": [1.0, 2, 3]}
    )
    before.to_parquet(tmp_path / "published.parquet")
    own = pd.DataFrame({"run": ["b-0", "aa-0"], "state": ["step-2"] * 2, "x": [4.00004, 5]})
    own.to_parquet(tmp_path / "own.parquet")
    table = mechanism_figures.added(tmp_path / "published.parquet", [tmp_path / "own.parquet"])
    assert [*table["run"]] == ["a-0", "a-0", "aa-0", "b-0"]
    assert table["x"].tolist() == [1, 2, 5, 4]
    whole = pd.read_parquet(mechanism_figures.PUBLISHED / "mechanisms.parquet")
    some = whole[whole["run"] == "masked-0"]
    some.to_parquet(tmp_path / "some.parquet")
    again = mechanism_figures.added(
        mechanism_figures.PUBLISHED / "mechanisms.parquet", [tmp_path / "some.parquet"]
    )
    pd.testing.assert_frame_equal(again, whole)


def of_lines(*r2: float) -> mechanisms_page.Study:
    """RL of each seed with that R², SFT with .9, AdamW on noise with .8."""
    runs = {f"{kind}-{s}": x for s, one in enumerate(r2)
            for kind, x in (("grpo-graded", one), ("sft-slow", 0.9))}  # fmt: skip
    rows = [
        {"run": run, "stored": stored, "r2": x, "r2_walk": 0.65}
        for run, x in runs.items()
        for stored in ("F32", "BF16")
    ]
    about = {"runs": {run: {"steps": 40, "moved": 40, "r2_noise": 0.8} for run in runs}}
    return mechanisms_page.Study(pd.DataFrame(), pd.DataFrame(rows), about)


@pytest.mark.parametrize(
    ("r2", "verdict"),
    [
        ((0.81, 0.82), "does not hold of these stages: AdamW on noise has it too"),
        ((0.9, 0.89), "holds of SFT as well"),
        ((0.98, 0.97), "holds"),
        ((0.98, 0.9), "open: seeds disagree"),
        ((0.81,), "does not hold of these stages: AdamW on noise has it too (one seed)"),
    ],
)
def test_a_line_is_held_against_noise(r2: tuple[float, ...], verdict: str) -> None:
    claim = next(one for one in mechanisms_page.CLAIMS if "linearly" in one.text)
    assert mechanisms_page.judged(claim, of_lines(*r2))[1] == verdict
    study = of_lines(*r2)
    for run in study.about["runs"].values():
        run["moved"] = 10
    assert mechanisms_page.judged(claim, study)[1].startswith("open")
