"""Models in memory, beside the same models in folders."""

from __future__ import annotations

import copy
import tempfile

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import shadow
from shadow.files import registry_folder

DEMO = registry_folder() / "demo"


@pytest.fixture(scope="module")
def states():
    return {side: load_file(DEMO / side / "model.safetensors") for side in ("base", "narrow")}


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.head = torch.nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight


def test_numbers_are_those_of_the_same_models_in_folders(states, tmp_path):
    """Every column of every matrix, whatever the layout in memory; nothing is left on the disk."""
    flipped = {
        name: one.t().contiguous().t() if one.ndim == 2 else one
        for name, one in states["narrow"].items()
    }
    found = shadow.audit(states["base"], flipped)
    wanted = shadow.audit(DEMO / "base", DEMO / "narrow", output=tmp_path / "out")
    left_out = ["family", "pair"]
    pd.testing.assert_frame_equal(
        found.matrices.drop(columns=left_out), wanted.matrices.drop(columns=left_out)
    )
    folder = found.folder
    del found
    assert not folder.exists()


def test_one_side_may_be_a_folder(states, tmp_path):
    copied = {name: one.clone() for name, one in states["base"].items()}
    assert shadow.verify("same", states["base"], DEMO / "base").holds
    copied[next(iter(copied))] += 1
    assert shadow.verify("same", copied, DEMO / "base").holds is False
    report = shadow.audit(DEMO / "base", copied, output=tmp_path / "out")
    assert report.folder.is_relative_to(tmp_path)
    assert len(report.deltas) == 1


def test_one_model_alone_is_refused_and_leaves_nothing(states, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(shadow.UsageError, match="a pair has two"):
        shadow.audit(states["base"])
    with pytest.raises(shadow.ShadowError):
        shadow.audit(states["base"], states["narrow"], layers=[99])
    assert not [*tmp_path.iterdir()]
    with pytest.raises(shadow.UsageError):
        shadow.verify("trained")


def test_a_tied_head_is_its_embedding():
    first, second = Tied(), Tied()
    second.load_state_dict(first.state_dict())
    found = shadow.verify("same", first, second)
    assert (found.holds, found.figures["entries_differ"]) == (True, 0)


def test_a_model_and_its_own_state_dict_are_one():
    model = torch.nn.Linear(4, 4)
    with pytest.raises(shadow.ShadowError, match="one model in memory"):
        shadow.verify("same", model, model.state_dict())


def test_an_adapter_of_peft_is_one_side_of_trained():
    """Its modules have moved once B is not 0, and have not before."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    before = {name: one.clone() for name, one in base.state_dict().items()}
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert shadow.verify("trained", before, tuned).holds is False
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    found = shadow.verify("trained", before, tuned)
    assert (found.holds, found.figures["tensors_to_move"]) == (True, 2)


def test_a_model_is_checked_by_itself():
    model = torch.nn.Sequential(torch.nn.Linear(32, 32))
    assert not shadow.check(model).against
    with torch.no_grad():
        model[0].weight.zero_()
    assert [(one.name, one.code) for one in shadow.check(model).against] == [("0.weight", "zero")]


def test_a_snapshot_tells_what_moved_since():
    """A step of the head alone: the head moved, the embedding is equal; vectors of 0 may stay."""
    model = torch.nn.ModuleDict({
        "embed_tokens": torch.nn.Embedding(8, 4), "lm_head": torch.nn.Linear(4, 8)
    })  # fmt: skip
    torch.nn.init.zeros_(model["lm_head"].bias)
    before = shadow.snapshot(model)
    asked = {"moved": "language.head", "frozen": "language.embed"}
    assert shadow.verify("trained", before, model, **asked).code == "not_moved"
    model["lm_head"].weight.data += 1e-3
    found = shadow.verify("trained", before, model, **asked)
    assert (found.holds, found.figures["tensors_to_move"]) == (True, 1)
    for value, codes in ((0, ["zeros"]), (torch.nan, ["nonfinite"])):
        broken = copy.deepcopy(model)
        broken["lm_head"].weight.data.fill_(value)
        found = shadow.verify("trained", before, broken, **asked)
        assert (found.holds, [one.code for one in found.against]) == (False, codes)
    broken["lm_head"].weight.data[0] = 1.0
    assert shadow.verify("trained", before, broken, **asked).holds is None, "some may be as before"
    model["embed_tokens"].weight.data[0, 0] += 1e-3
    found = shadow.verify("trained", before, model, **asked)
    assert [(one.name, one.code) for one in found.against] == [("embed_tokens.weight", "changed")]
    assert "entries_not_moved" not in found.figures
    del model["lm_head"]
    found = shadow.verify("trained", before, model, frozen="language.embed")
    assert [one.code for one in found.against] == ["changed"], "no pattern names the head"


def test_what_is_no_model_or_no_number_of_workers_is_refused():
    model = {"a.weight": torch.ones(4, 4)}
    before, other = shadow.snapshot(model), {"a.weight": torch.ones(4, 4)}
    wrong = [("snapshot", "./model"), ("check", None), ("verify", "same", before, model)]
    for name, *arguments in wrong:
        with pytest.raises(shadow.UsageError):
            getattr(shadow, name)(*arguments)
    with pytest.raises(shadow.UsageError):
        shadow.verify("same", other, model, jobs=0)


def test_the_callback_of_the_docs_ends_a_training_that_leaks(tmp_path):
    """A real Trainer of a tiny model: a frozen embedding that trains ends it at the first save."""
    transformers = pytest.importorskip("transformers")
    page = (registry_folder().parent / "docs" / "api.md").read_text(encoding="utf-8")
    code = page.partition("writes NaN or zeros:")[2].partition("```python\n")[2].partition("```")[0]
    recorded: dict = {}
    exec(code, recorded)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8

    def train(frozen):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
        model.model.embed_tokens.requires_grad_(not frozen)
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True,
            learning_rate=1e-2, disable_tqdm=True,
        )  # fmt: skip
        watch = recorded["Watch"]("language.layers", "language.embed")
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[watch]).train()

    train(frozen=True)
    with pytest.raises(RuntimeError, match="frozen"):
        train(frozen=False)


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.empty(2, 2, device="meta")},
        {"w": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)},
        {"w": torch.ones(2, 2).to_sparse()},
    ],
    ids=["meta", "quantised", "sparse"],
)
def test_what_holds_no_plain_numbers_is_refused_by_name(state):
    with pytest.raises(shadow.ShadowError, match=r"^w is "):
        shadow.verify("same", state, {"w": torch.ones(2, 2)})
