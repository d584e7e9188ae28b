"""`verify whole` of what transformers and peft make: their classes, heads and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import planted
import pytest
import torch
from companions import tokenizer
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
T5_SIZES = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
SPEECH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
          "vocab_size": 64, "max_source_positions": 20, "max_target_positions": 20,
          "num_mel_bins": 8, "pad_token_id": 63, "begin_suppress_tokens": None,
          "decoder_start_token_id": 1}  # fmt: skip
SEEN = SMALL | {"image_size": 16, "patch_size": 8}
LLAMA = {"model_type": "llama", **TEXT}
# models with other embeddings and heads than those of tokens: class, its config
OTHER_HEADS = {
    "BertForSequenceClassification": ("BertConfig", {**TEXT, "num_labels": 3}),
    "BertForMaskedLM": ("BertConfig", TEXT),
    "BertForPreTraining": ("BertConfig", TEXT),
    "RobertaModel": ("RobertaConfig", {**TEXT, "type_vocab_size": 1}),
    "RobertaForMaskedLM": ("RobertaConfig", {**TEXT, "type_vocab_size": 1}),
    "CLIPModel": ("CLIPConfig", {"text_config": {**TEXT, "eos_token_id": 62},
                                 "vision_config": SEEN, "projection_dim": 16}),
    "LlamaForSequenceClassification": ("LlamaConfig", {**TEXT, "num_labels": 1}),
    "LlamaForTokenClassification": ("LlamaConfig", {**TEXT, "num_labels": 5}),
    "GPT2ForSequenceClassification": (
        "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "num_labels": 1}),
    "T5ForConditionalGeneration": ("T5Config", T5_SIZES),
    "T5EncoderModel": ("T5Config", T5_SIZES),
    "WhisperForConditionalGeneration": ("WhisperConfig", SPEECH),
    "LlavaForConditionalGeneration": (
        "LlavaConfig", {"text_config": LLAMA, "image_token_index": 3,
                        "vision_config": {"model_type": "clip_vision_model", **SEEN}}),
}  # fmt: skip
OFTEN = ("BertForSequenceClassification", "RobertaModel", "CLIPModel",
         "LlamaForSequenceClassification", "LlavaForConditionalGeneration")  # fmt: skip


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize(
    "name",
    [one if one in OFTEN else pytest.param(one, marks=pytest.mark.slow) for one in OTHER_HEADS],
)
def test_types_of_tokens_poolers_and_scores_are_no_vocabulary(name, loaded, tmp_path, monkeypatch):
    """A tokenizer has a row a token in the embedding of tokens alone, with and without a loader."""
    import transformers

    kind, sizes = OTHER_HEADS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes)
    getattr(transformers, name)(config).save_pretrained(tmp_path / "model")
    tokenizer(tmp_path / "model", 64)
    if not loaded:
        monkeypatch.setattr(loader, "expected", lambda *_: Expected(problem="no_transformers"))
    found = verified(tmp_path / "model")
    assert found.outcome is (HOLDS if loaded else OPEN), found.reason


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "LlamaForSequenceClassification"]
)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_token_without_a_row_is_named_in_classifiers_too(name, loaded, tmp_path, monkeypatch):
    import transformers

    kind, sizes = OTHER_HEADS[name]
    getattr(transformers, name)(getattr(transformers, kind)(**sizes)).save_pretrained(
        tmp_path / "a"
    )
    tokenizer(tmp_path / "a", 64, ("<more>",))
    if not loaded:
        monkeypatch.setattr(loader, "expected", lambda *_: Expected(problem="unknown_class"))
    found = verified(tmp_path / "a")
    assert {one.code for one in found.against} == {"tokenizer_beyond"}
    assert "64 rows" in found.reason


FACTORS = {
    "healthy": ((), {}, None),
    "zero": ((0, 1), {}, "does_nothing"),
    "half zero": ((1,), {}, "zero_factor"),
    "rank": ((), {"r": 8}, "rank"),
    "rank of a module": ((), {"r": 8, "rank_pattern": {"up_proj": 4}}, None),
    "alpha": ((), {"lora_alpha": 0}, "alpha"),
    "target": ((), {"target_modules": ["up_proj", "q_proj"]}, "target_absent"),
    "no target": ((), {"target_modules": ["down_proj"]}, "not_targeted"),
    "saved": ((), {"modules_to_save": ["lm_head"]}, "saved_absent"),
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


def saved_by_peft(folder: Path, task: str, config: str, name: str, **sizes: object) -> None:
    """An adapter of a tiny model, as peft saves it for a task."""
    import peft
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    lora = peft.LoraConfig(task_type=task, r=4, init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(folder)


@pytest.mark.parametrize(
    ("task", "config", "name"),
    [
        ("SEQ_CLS", "BertConfig", "BertForSequenceClassification"),
        ("SEQ_CLS", "LlamaConfig", "LlamaForSequenceClassification"),
        ("TOKEN_CLS", "LlamaConfig", "LlamaForTokenClassification"),
        ("QUESTION_ANS", "BertConfig", "BertForQuestionAnswering"),
    ],
)
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


FEW = ("llama", "gemma2", "gpt2", "mixtral", "llava", "t5", "mamba2", "qwen3_next")
KINDS = [
    kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow)
    for kind in dict.fromkeys([*planted.KINDS, *planted.FAMILIES])
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm_of_what_transformers_makes_and_saves(kind, tmp_path):
    """Of untrained models too, whose gates and biases are zero."""
    folder = planted.saved(kind, tmp_path / "model")
    if kind == "deepseek_v3":  # transformers has no such layers, and config promises one
        edit(folder, num_nextn_predict_layers=0)
    found = verified(folder)
    assert found.outcome is Outcome.HOLDS, found.reason


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
