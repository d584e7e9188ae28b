"""Models in memory, beside the same models in folders."""

from __future__ import annotations

import copy
import tempfile
import types

import pandas as pd
import planted
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
    base = planted.built("llama")
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
    assert not shadow.check(model).lines[0].against
    with torch.no_grad():
        model[0].weight.zero_()
    assert [(one.name, one.code) for one in shadow.check(model).lines[0].against] == [
        ("0.weight", "zero")
    ]


def test_a_snapshot_tells_what_moved_since():
    """A step of the head alone: the head moved, the embedding is equal; vectors of 0 or of 1 may
    stay as they began.
    """
    model = torch.nn.ModuleDict({
        "embed_tokens": torch.nn.Embedding(8, 4), "lm_head": torch.nn.Linear(4, 8)
    })  # fmt: skip
    for values, count in (([2.0], None), ([0.0, 1.0], None), ([1.0], 1), ([0.0], 1)):
        model["lm_head"].bias.data[:] = torch.tensor(values).repeat(8 // len(values))
        before = shadow.snapshot(model)
        model["lm_head"].weight.data += 1e-3
        model["embed_tokens"].weight.data += 1e-3
        found = shadow.verify("trained", before, model, moved="*")
        assert found.figures.get("tensors_initial") == count
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
    for option in ({"headers": True}, {"accept": {"zero": "known"}}, {"base": "./model"}):
        with pytest.raises(shadow.UsageError):
            shadow.verify("trained", before, model, frozen="a", **option)


def test_the_callback_of_the_docs_ends_a_training_that_leaks(tmp_path):
    """A real Trainer of a tiny model: a frozen embedding that trains ends it at the first save."""
    transformers = pytest.importorskip("transformers")
    page = (registry_folder().parent / "docs" / "api.md").read_text(encoding="utf-8")
    code = page.partition("writes NaN or zeros:")[2].partition("```python\n")[2].partition("```")[0]
    recorded: dict = {}
    exec(code, recorded)
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8

    def train(frozen):
        model = planted.built("llama", num_hidden_layers=1)
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


VERBS = {
    "snapshot": shadow.snapshot,
    "check": shadow.check,
    "verify": lambda model: shadow.verify("same", {"w": torch.ones(2, 2)}, model),
    "audit": lambda model: shadow.audit({"w": torch.ones(2, 2)}, model),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("state", "fault"), [
    ({"w": torch.empty(2, 2, device="meta")}, "w is on the device meta"),
    ({"w": torch.ones(2, 2).to_sparse()}, "w is a sparse_coo tensor"),
    ({1: torch.ones(2, 2)}, "unusable name 1"),
    ({("a", 1): torch.ones(2, 2)}, "unusable name ('a', 1)"),
    ({b"w": torch.ones(2, 2)}, "unusable name b'w'"),
    ({"\ud800": torch.ones(2, 2)}, "unusable name '\\ud800'"),
    ({"\x1b[2J": torch.ones(2, 2)}, "unusable name '\\x1b[2J'"),
    ({"w": 1, "notes": "text"}, "has no tensor"),
], ids=["meta", "sparse", "int", "tuple", "bytes", "surrogate", "escape", "no tensor"])  # fmt: skip
def test_what_holds_no_plain_numbers_or_has_no_name_is_refused_in_a_line(state, fault, verb):
    with pytest.raises(shadow.ShadowError) as caught:
        VERBS[verb](state)
    assert fault in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_nested_tensors_are_refused_by_name():
    tensors = {
        "qint8": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    for kind, tensor in tensors.items():
        with pytest.raises(shadow.ShadowError, match=f"^w is a {kind} tensor"):
            shadow.snapshot({"w": tensor})


class WithConfig(torch.nn.Module):
    """A module whose config is what `written` is."""

    def __init__(self, written: object) -> None:
        super().__init__()
        self.mlp = torch.nn.Linear(8, 8)
        self.config = types.SimpleNamespace(to_dict=lambda: written)

    def get_extra_state(self) -> object:
        return {"no": "tensor"}

    def set_extra_state(self, state: object) -> None:
        """Nothing is stored."""


@pytest.mark.parametrize("verb", ["snapshot", "check"])
@pytest.mark.parametrize("written", [
    {"dtype": torch.bfloat16, "values": {1, 2}, "number": float("nan"), "object": object()},
    {(1, 2): "no key of JSON", 3: "a number", "name": "\ud800"}, None,
], ids=["values", "keys", "nothing"])  # fmt: skip
def test_a_config_and_a_state_that_json_lacks_do_not_stop_a_check(written, verb):
    """Extra state of a module is no tensor and is left out; its config is read as it would be
    saved.
    """
    found = VERBS[verb](WithConfig(written))
    if verb == "check":
        assert found.holds
    else:
        assert [*found.tensors] == ["mlp.weight", "mlp.bias"]


def test_a_config_that_holds_itself_is_refused_in_a_line():
    config: dict = {}
    config["self"] = config
    with pytest.raises(shadow.ShadowError, match="config cannot be written as JSON"):
        shadow.check(WithConfig(config))


@pytest.mark.parametrize("level", ["norms", "full"])
def test_negative_and_conjugate_views_are_read_as_their_numbers(level):
    """A negative view is the tensor times -1, so that the delta is -2 of the base; the imaginary
    part of a conjugate is minus that of the number.
    """
    base = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    views = {
        "negative": torch._neg_view(base.clone()),
        "imaginary": torch.complex(torch.zeros_like(base), base).conj().imag,
    }
    for view in views.values():
        assert view.is_neg()
        report = shadow.audit({"mlp.weight": base}, {"mlp.weight": view}, level=level)
        assert report.deltas["relative_norm"].tolist() == pytest.approx([2.0])


def test_a_view_of_the_same_memory_with_other_numbers_is_no_alias():
    """A conjugate has the memory of its tensor and other numbers."""
    number = torch.complex(torch.ones(4, 4), torch.ones(4, 4))
    before = shadow.snapshot({"a": number, "b": number.conj(), "c": number})
    aliases = {name: info.alias_of for name, info in before.tensors.items()}
    assert aliases == {"a": None, "b": None, "c": "a"}
    assert before.checksums["a"] != before.checksums["b"]
