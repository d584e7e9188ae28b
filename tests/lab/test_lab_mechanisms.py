"""The study of mechanisms: trainings of a tiny random decoder, and its page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mechanisms

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
