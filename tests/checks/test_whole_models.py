"""`verify whole` of what transformers and peft make: their classes, heads and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import planted
import pytest
import torch
from architectures import save
from companions import tokenizer
from effort import chosen
from planted import edit
from safetensors.torch import load_file, save_file
from wholes import FAILS, FILE, HOLDS, OPEN, codes, verified

from shadow.checkpoints import expected as loader
from shadow.checkpoints.expected import Expected
from shadow.checks.answer import Outcome

pytestmark = pytest.mark.usefixtures("in_this_process")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
TEXT = SMALL | {"vocab_size": 64, "max_position_embeddings": 80}
LLAMA = {"model_type": "llama", **TEXT}
# models with other embeddings and heads than those of tokens
OTHER_HEADS = [
    ("bert", "BertForSequenceClassification"), ("roberta", "RobertaModel"), ("clip", "CLIPModel"),
    ("llama", "LlamaForSequenceClassification"), ("llava", "LlavaForConditionalGeneration"),
    ("bert", "BertForPreTraining"), ("roberta", "RobertaForMaskedLM"), ("t5", "T5EncoderModel"),
    ("gpt2", "GPT2ForSequenceClassification"), ("t5", "T5ForConditionalGeneration"),
    ("llama", "LlamaForTokenClassification"), ("whisper", "WhisperForConditionalGeneration"),
]  # fmt: skip


@pytest.mark.parametrize("pair", chosen(OTHER_HEADS, OTHER_HEADS[:5]))
def test_types_of_tokens_poolers_and_scores_are_no_vocabulary(pair, tmp_path, monkeypatch):
    """A tokenizer has a row a token in the embedding of tokens alone, without a loader too."""
    save(*pair, tmp_path / "model")
    monkeypatch.setattr(loader, "expected", lambda *_: Expected(problem="no_transformers"))
    found = verified(tmp_path / "model")
    assert found.outcome is OPEN, found.reason


@pytest.mark.parametrize(("kind", "name"), [OTHER_HEADS[0], OTHER_HEADS[3]])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_token_without_a_row_is_named_in_classifiers_too(
    kind, name, loaded, tmp_path, monkeypatch
):
    save(kind, name, tmp_path / "a")
    tokenizer(tmp_path / "a", 120, ("<more>",))
    if not loaded:
        monkeypatch.setattr(loader, "expected", lambda *_: Expected(problem="unknown_class"))
    found = verified(tmp_path / "a")
    assert {one.code for one in found.against} == {"tokenizer_beyond"}
    assert "120 rows" in found.reason


FACTORS = {
    "healthy": ((), {}, None),
    "zero": ((0, 1), {}, "does_nothing"),
    "half zero": ((1,), {}, "zero_factor"),
    "rank": ((), {"r": 8}, "rank"),
    "rank of a module": ((), {"r": 8, "rank_pattern": {"up_proj": 4}}, None),
    "alpha": ((), {"lora_alpha": 0}, "alpha"),
    "target": ((), {"target_modules": ["up_proj", "q_proj"]}, "target_absent"),
    "excluded": ((), {"target_modules": ["q_proj", "up_proj"], "exclude_modules": "q"}, None),
    "another excluded": (
        (),
        {"target_modules": ["gate", "up_proj"], "exclude_modules": ["o"]},
        "target_absent",
    ),
    "no target": ((), {"target_modules": ["down_proj"]}, "not_targeted"),
    "saved": ((), {"modules_to_save": ["lm_head"]}, "saved_absent"),
    "no target of a pattern": ((), {"target_modules": r".*\.down_proj"}, "not_targeted"),
    "no target in a layer": ((), {"layers_to_transform": [0]}, "not_targeted"),
    "a layer without factors": ((), {"layers_to_transform": [0, 1, 5]}, "factors_lost"),
    "rank of no module": (
        (),
        {"rank_pattern": {r"layers\.[0-1]\.mlp.down_proj": 4}},
        "pattern_unmatched",
    ),
    "rank of a pattern": ((), {"r": 8, "rank_pattern": {r"^model\.layers\.\d+\..*": 4}}, None),
    "dora": ((), {"use_dora": True}, "dora_absent"),
}


@pytest.mark.parametrize("case", FACTORS)
def test_an_adapter_is_held_against_its_config(case, tmp_path):
    zero, config, code = FACTORS[case]
    pairs = {
        planted.UP.format(layer): (torch.ones(96, 4) * (layer not in zero), torch.ones(4, 64))
        for layer in range(2)
    }
    planted.adapter(tmp_path / "adapter", pairs, **{"target_modules": ["up_proj"]} | config)
    found = verified(tmp_path / "adapter")
    assert found.outcome is (Outcome.DOES_NOT_HOLD if code else Outcome.HOLDS), found.reason
    assert code is None or code in codes(found)
    assert found.figures["modules_zero"] == len(zero)
    ranks = [row.why.figures for row in found.answer.against if row.why.code == "rank"]
    assert all(figures["rank"] == 4 != int(figures["said"]) for figures in ranks)


def saved_by_peft(folder: Path, task: str, config: str, name: str, **sizes: object) -> None:
    """An adapter of a tiny model, as peft saves it for a task."""
    import peft
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    lora = peft.LoraConfig(task_type=task, r=4, init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(folder)


@pytest.mark.parametrize(("task", "config", "name"), [
    ("SEQ_CLS", "BertConfig", "BertForSequenceClassification"),
    ("SEQ_CLS", "LlamaConfig", "LlamaForSequenceClassification"),
    ("TOKEN_CLS", "LlamaConfig", "LlamaForTokenClassification"),
    ("QUESTION_ANS", "BertConfig", "BertForQuestionAnswering"),
])  # fmt: skip
def test_heads_that_peft_lists_by_itself_are_no_fault(task, config, name, tmp_path):
    """peft lists classifier and score of every classifier, whose head has one of these names."""
    pytest.importorskip("peft")
    saved_by_peft(tmp_path / "a", task, config, name, **TEXT)
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    found = verified(tmp_path / "a")
    assert said["modules_to_save"]
    assert found.outcome is HOLDS, found.reason
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    heads = ("score", "classifier", "qa_outputs")
    factors = {key: one for key, one in tensors.items() if not any(h in key for h in heads)}
    assert len(factors) < len(tensors)
    save_file(factors, file)
    assert (verified(tmp_path / "a").outcome, verified(tmp_path / "a").code) == (
        OPEN,
        "head_unsaved",
    )
    edit(tmp_path / "a", "adapter_config.json", task_type="CAUSAL_LM")
    assert codes(verified(tmp_path / "a")) == {"saved_absent"}


@pytest.mark.parametrize(
    "name", ["a\ud800.weight", "model.layers.\u0661.mlp.experts.\u0662.weight"]
)
def test_names_that_are_odd_end_in_a_fault(name, tmp_path):
    """Half a surrogate, and digits of another script, which a pattern may take for numbers."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header = json.dumps({name: entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(range(16))
    (tmp_path / FILE).write_bytes(content)
    (tmp_path / "config.json").write_text(
        json.dumps({**LLAMA, "architectures": ["LlamaForCausalLM"]})
    )
    found = verified(tmp_path)
    assert found.outcome is FAILS
    assert json.dumps(found.as_json()).isascii()


def test_no_other_class_is_sought_for_no_tensors_or_those_of_layers():
    """A class that has the tensors is named for those outside layers alone."""
    import transformers

    config = transformers.LlamaConfig(**TEXT)
    head, layer = "score.weight", "model.layers.0.mlp.up_proj.weight"
    found = [
        loader.class_with(names, config, ["LlamaForSequenceClassification"])
        for names in ([], [layer], [head, layer], [head], ["other.weight"])
    ]
    assert found == ["", "", "", "LlamaForSequenceClassification", ""]


def test_a_lost_layer_is_one_of_which_every_tensor_is_missing():
    """With how many it has; of an expert inside a lost layer the layer is named."""
    names = ["a.0.x", "a.0.y", "a.1.x", "a.1.b.0.z", "a.1.b.1.z", "a.2.x", "a.2.b.0.z", "c.3"]
    missing = {"a.0.x", "a.1.x", "a.1.b.0.z", "a.1.b.1.z", "a.2.b.0.z", "c.3"}
    assert loader.lost_members(names, missing) == {"a.1": 3, "a.2.b.0": 1}
