"""`verify whole`: what is planted in one checkpoint -> its outcome, codes and the tensors named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import planted
import pytest
import torch
from companions import of_mistral, tokenizer
from planted import edit
from safetensors.torch import load_file
from wholes import FAILS, FILE, HOLDS, OPEN, codes, store, verified

import shadow
from shadow.checkpoints import expected as loader
from shadow.checkpoints.contents import json_object
from shadow.checkpoints.expected import Expected, stripped
from shadow.checks.answer import Outcome
from shadow.checks.registry import CHECKS
from shadow.checks.whole import (
    RULES,
    WORDS,
    Whole,
    configs,
    copies,
    gguf_metadata,
    judge,
    peers,
    quantised_modules,
    shards,
    small_files,
    values,
)
from shadow.checks.whole import names as names_part
from shadow.checks.whole.configs import Words
from shadow.checks.whole.names import Names
from shadow.checks.whole.part import MOST_ROWS
from shadow.checks.whole.shards import FileFacts
from shadow.checks.whole.values import Values
from shadow.errors import ShadowError, UsageError

pytestmark = pytest.mark.usefixtures("in_this_process")
INDEX = "model.safetensors.index.json"
EMBED = "model.embed_tokens.weight"
FIRST, SECOND = (f"model-{number:05d}-of-00002.safetensors" for number in (1, 2))
THIRD = "model-part.safetensors"
UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
LOST = "model.layers.1."


def cut(folder: Path) -> None:
    """Store the same tensors in two shards with an index."""
    tensors = load_file(folder / FILE)
    half = len(tensors) // 2
    shards = dict(zip((FIRST, SECOND), ([*tensors][:half], [*tensors][half:]), strict=True))
    for name, mine in shards.items():
        store(folder, {key: tensors[key] for key in mine}, name)
    weight_map = {key: name for name, mine in shards.items() for key in mine}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / FILE).unlink()


def renamed(rename):
    return lambda tensors: {rename(name): one for name, one in tensors.items()}


def without(part: str):
    return lambda tensors: {name: one for name, one in tensors.items() if part not in name}


def changed(name: str, change):
    """A copy of one tensor after a change in place."""

    def plant(tensors):
        one = tensors[name].clone()
        change(one)
        return tensors | {name: one}

    return plant


def at(value: float):
    def change(one):
        one[3, 4] = value

    return change


def in_fp8(*, without: str = "", zero: str = ""):
    def plant(tensors):
        found = {}
        for name, one in tensors.items():
            if not name.endswith("_proj.weight"):
                found[name] = one
                continue
            scale = one.abs().max() / 448
            found[name] = (one / scale).to(torch.float8_e4m3fn)
            if name != without:
                found[f"{name}_scale_inv"] = scale.reshape(1, 1) * (name != zero)
        return found

    return plant


FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
EMPTY = renamed(str), lambda t: {n: torch.empty(0) if LOST in n else one for n, one in t.items()}
HEAD, FUSED = "lm_head.weight", "transformer.h.0.attn.c_attn.bias"
GATE = "model.layers.1.mlp.experts.1.gate_proj.weight"
# kind, what is done to the tensors, what is written to the config, outcome, code, name against it
TENSORS = {
    "head lost": ("llama", without(HEAD), {}, "missing", HEAD),
    "other head than tied": (
        "qwen2", lambda t: t | {HEAD: t[EMBED] * 1.1}, {}, "head_differs", HEAD),
    "layer lost": ("llama", without(LOST), {}, "layer_lost", "model.layers.1"),
    "layer promised": (
        "llama", None, {"num_hidden_layers": 3}, "layer_lost", "model.layers.2"),
    "expert lost": ("mixtral", without(".1.block_sparse_moe.experts.2."), {}, "expert_missing",
                    "model.layers.1.block_sparse_moe.experts.2"),
    "one matrix of an expert lost": (
        "qwen3_moe", without(".1.mlp.experts.2.up_proj"), {}, "expert_missing",
        "model.layers.1.mlp.experts.2.up_proj.weight"),
    "one expert of another shape": (
        "qwen3_moe", lambda t: t | {GATE: t[GATE][:-1]}, {}, "expert_shape", GATE),
    "nan in a bias": ("gpt_bigcode", changed(FUSED, lambda one: one[3:4].fill_(float("nan"))), {},
                      "not_finite", FUSED),
    "mtp lost": ("deepseek_v3", None, {"num_nextn_predict_layers": 1}, "mtp_missing",
                 "num_nextn_predict_layers"),
    "not gathered": ("llama", EMPTY[1], {}, "empty", UP),
    "flat": ("llama", lambda t: t | {"_flat_param": torch.ones(9)}, {}, "flat", "_flat_param"),
    "compiled": ("llama", renamed("_orig_mod.{}".format), {}, "prefix", "_orig_mod."),
    "compiled inside": ("llama", renamed(lambda n: n.replace("layers.0.", "layers.0._orig_mod.")),
                        {}, "prefix", "_orig_mod."),
    "parallel": ("llama", renamed("module.{}".format), {}, "prefix", "module."),
    "another prefix": ("llama", renamed("policy.{}".format), {}, "unexpected", f"policy.{UP}"),
    "another name": ("llama", renamed(lambda n: n.replace("gate_proj", "w1")), {}, "missing",
                     "model.layers.0.mlp.gate_proj.weight"),
    "heads": ("llama", None, {"num_key_value_heads": 4}, "mismatched",
              "model.layers.0.self_attn.k_proj.weight"),
    "rows": ("llama", None, {"vocab_size": 136}, "mismatched", EMBED),
    "rows of an unknown class": (
        "llama", None, {"vocab_size": 136, "architectures": ["XForCausalLM"]}, "vocab_size",
        "config.json"),
    "layers of an unknown class": (
        "llama", without(LOST), {"architectures": ["XForCausalLM"]}, "layer_missing", "layers.1"),
    "nan": ("llama", changed(UP, at(float("nan"))), {}, "not_finite", UP),
    "infinity": ("llama", changed(UP, at(float("-inf"))), {}, "not_finite", UP),
    "zero": ("llama", changed(UP, torch.Tensor.zero_), {}, "zero", UP),
    "zero norm": ("llama", changed(f"{LOST}input_layernorm.weight", torch.Tensor.zero_), {}, "zero",
                  f"{LOST}input_layernorm.weight"),
    "constant": ("llama", changed(UP, lambda one: one.fill_(0.5)), {}, "constant", UP),
    "zero rows": ("llama", changed(UP, lambda one: one[5:9].zero_()), {}, "zero_rows", UP),
    "constant rows": ("llama", changed(UP, lambda one: one[5].fill_(2)), {}, "constant_rows", UP),
    "half of an embedding": (
        "llama", changed(EMBED, lambda one: one[:64].zero_()), {}, "zero_rows", EMBED),
    "zero expert": ("gpt_oss",
                    changed("model.layers.0.mlp.experts.down_proj", lambda one: one[1].zero_()),
                    {}, "zero_experts", "model.layers.0.mlp.experts.down_proj"),
    "scale lost": ("llama", in_fp8(without=UP), FP8, "scale_missing", UP),
    "scale zero": ("llama", in_fp8(zero=UP), FP8, "scale_zero", f"{UP}_scale_inv"),
    "eos beyond": ("llama", None, {"eos_token_id": 500}, "token_beyond", "config.json"),
    "pad beyond": ("llama", None, {"pad_token_id": 128}, "token_beyond", "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_what_is_planted_in_tensors_and_config_is_named(case, healthy, tmp_path):
    kind, plant, config, code, name = TENSORS[case]
    folder = Path(shutil.copytree(healthy(kind), tmp_path / "sick"))
    if plant:
        store(folder, plant(load_file(folder / FILE)))
    edit(folder, **config)
    found = verified(folder)
    assert found.outcome is Outcome.DOES_NOT_HOLD
    assert code in codes(found), found.reason
    assert name in {one.name for one in found.against if one.code == code}, found.reason
    assert found.figures["faults"] == len(found.against)


def lose(folder, name):
    (folder / name).unlink()


def pointer(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


def twice(folder, change=0.0):
    first, second = load_file(folder / FIRST), load_file(folder / SECOND)
    name = next(iter(first))
    store(folder, second | {name: first[name] + change}, SECOND)


def thrice(folder):
    """Other values in a second shard, and the same ones in a third."""
    twice(folder, 1.0)
    name = next(iter(load_file(folder / FIRST)))
    store(folder, {name: load_file(folder / SECOND)[name], "x": torch.ones(1)}, THIRD)
    indexed(folder, x=THIRD)


def indexed(folder, **more):
    edit(folder, INDEX, weight_map=json.loads((folder / INDEX).read_text())["weight_map"] | more)


def beside(folder, name, change=1.0, *, newer=False):
    """The same weights once more, under another name."""
    tensors = {key: one * change for key, one in load_file(folder / FILE).items()}
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        store(folder, tensors, name)
    if newer:
        os.utime(folder / FILE, (1.6e9, 1.6e9))


def other_shards(folder):
    """Mistral's file, the same weights in one file, and other weights by an index."""
    of_mistral(folder)
    tensors = load_file(folder / FILE)
    store(
        folder, {name: one * 2 for name, one in tensors.items()}, "model-00001-of-00001.safetensors"
    )
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def below(folder):
    """The shards in a folder, where the index has them."""
    (folder / "parts").mkdir()
    for shard in (FIRST, SECOND):
        (folder / shard).rename(folder / "parts" / shard)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    indexed(folder, **{name: f"parts/{shard}" for name, shard in weight_map.items()})


def adapter_beside(folder):
    pairs = {UP: (torch.ones(96, 4), torch.ones(4, 64))}
    planted.adapter(folder, pairs, target_modules=["up_proj"])


def short(folder):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-100])


def unknown_dtype(folder):
    whole = (folder / FILE).read_bytes()
    assert b'"F32"' in whole
    (folder / FILE).write_bytes(whole.replace(b'"F32"', b'"F99"', 1))


def nothing_in_it(folder):
    (folder / FILE).write_bytes(b"\2" + bytes(7) + b"{}")


def damaged_pickle(folder, byte, place=6):
    """A pickle whose list of files has another byte: its version of zip, or a name."""
    beside(folder, "pytorch_model.bin")
    content = bytearray((folder / "pytorch_model.bin").read_bytes())
    content[content.index(b"PK\x01\x02") + place] = byte
    (folder / "pytorch_model.bin").write_bytes(content)
    os.utime(folder / FILE)  # the newest


def config_text(text, name="config.json"):
    return lambda folder: (folder / name).write_text(text)


def deep(folder):
    config = (folder / "config.json").read_text().rstrip().removesuffix("}")
    levels = '{"a":' * 600 + "1" + "}" * 600
    (folder / "config.json").write_text(f'{config}, "x": {levels}}}')


def layer_absent(folder):
    """A layer that the index still has."""
    for shard in (FIRST, SECOND):
        store(folder, without(LOST)(load_file(folder / shard)), shard)


# in shards?, what is done to the folder, outcome, code, name
FILES = {
    "as it is": (True, lambda f: None, HOLDS, "whole", None),
    "cut": (False, short, FAILS, "unreadable", FILE),
    "a pointer": (False, lambda f: pointer(f, FILE), FAILS, "pointer", FILE),
    "a pointer for a tokenizer": (
        False, lambda f: pointer(f, "tokenizer.json"), FAILS, "pointer", "tokenizer.json"),
    "no JSON": (False, lambda f: (f / "config.json").write_text("{"), FAILS, "unreadable",
                "config.json"),
    "a config that is a list": (
        False, lambda f: (f / "config.json").write_text("[]"), FAILS, "unreadable", "config.json"),
    "an index of nothing, alone": (
        False, lambda f: ((f / INDEX).write_text("{}"), lose(f, FILE)), FAILS, "unreadable", INDEX),
    "no tensors": (False, nothing_in_it, FAILS, "no_tensors", FILE),
    "a pickle of another zip": (False, lambda f: damaged_pickle(f, 255), HOLDS, "whole", None),
    "a pickle without text for a name": (
        False, lambda f: damaged_pickle(f, 255, 46), HOLDS, "whole", None),
    "a text for a config": (False, config_text('"abc"'), FAILS, "unreadable", "config.json"),
    "a key twice": (False, config_text('{"a": 1, "a": 2}'), FAILS, "unreadable", "config.json"),
    "numbers that JSON lacks": (
        False, config_text('{"eos_token_id": NaN, "vocab_size": -Infinity}'), OPEN, "not_asked",
        None),
    "a vocabulary of 400 digits": (
        False, lambda f: edit(f, vocab_size=10**400, architectures=["X"]), FAILS, "vocab_size",
        "config.json"),
    "a token of 400 digits": (
        False, lambda f: edit(f, "generation_config.json", eos_token_id=10**400), FAILS,
        "token_beyond", "generation_config.json"),
    "a config of 600 levels": (False, deep, OPEN, "not_asked", None),
    "half a surrogate for a token": (
        False, lambda f: edit(f, "tokenizer_config.json", eos_token="\ud800"), FAILS,
        "token_unknown", "tokenizer_config.json"),
    "half a tokenizer": (
        False, config_text('{"model": {', "tokenizer.json"), FAILS, "not_json", "tokenizer.json"),
    "a tokenizer that is a list": (
        False, config_text("[]", "tokenizer.json"), FAILS, "not_json", "tokenizer.json"),
    "a token twice": (
        False, config_text('{"model": {"vocab": {"a": 1, "a": 2}}}', "tokenizer.json"), OPEN,
        "json_unread", None),
    "a layer that the index has": (
        True, layer_absent, FAILS, "layer_absent", "model.layers.1"),
    "a dtype of tomorrow": (False, unknown_dtype, OPEN, "unknown_dtype", None),
    "an index of shards that are gone": (
        False, lambda f: edit(f, INDEX, weight_map={HEAD: FIRST}), FAILS, "unreadable", INDEX),
    "an index that is none": (
        False, lambda f: (f / INDEX).write_text("{"), FAILS, "unreadable", INDEX),
    "an index of the file itself": (
        False, lambda f: edit(f, INDEX, weight_map=dict.fromkeys(load_file(f / FILE), FILE)), HOLDS,
        "whole", None),
    "a shard lost": (True, lambda f: lose(f, SECOND), FAILS, "shard_missing", SECOND),
    "no index": (True, lambda f: lose(f, INDEX), FAILS, "no_index", FIRST),
    "no index, a shard lost": (
        True, lambda f: (lose(f, INDEX), lose(f, SECOND)), FAILS, "no_index", FIRST),
    "shards below the folder": (True, below, HOLDS, "whole", None),
    "named and absent": (True, lambda f: indexed(f, gone=FIRST), FAILS, "absent", "gone"),
    "in another shard": (
        True, lambda f: indexed(f, **{HEAD: SECOND}), FAILS, "elsewhere", HEAD),
    "a shard outside": (
        True, lambda f: store(f, {"x": torch.ones(3)}, "model-3.safetensors"), FAILS,
        "shard_outside", "model-3.safetensors"),
    "twice, equal": (True, twice, HOLDS, "whole", None),
    "twice": (True, lambda f: twice(f, 1.0), FAILS, "twice_differs", HEAD),
    "thrice": (True, thrice, FAILS, "twice_differs", HEAD),
    "an equal set": (False, lambda f: beside(f, FIRST), HOLDS, "whole", None),
    "another set": (False, lambda f: beside(f, FIRST, 2), FAILS, "set_differs", FIRST),
    "an equal pickle": (False, lambda f: beside(f, "pytorch_model.bin"), HOLDS, "whole", None),
    "another pickle": (False, lambda f: beside(f, "pytorch_model.bin", 2), FAILS, "set_differs",
                       "pytorch_model.bin"),
    "a newer pickle of nothing known": (
        False,
        lambda f: (beside(f, "a.bin", newer=True), (f / "pytorch_model.bin").write_bytes(b"x")),
        OPEN, "set_newer", None),
    "Mistral's": (
        False, lambda f: (of_mistral(f), os.utime(f / FILE)), HOLDS, "whole", None),
    "another of Mistral's": (
        False, lambda f: of_mistral(f, 1.5), FAILS, "set_differs", "consolidated.safetensors"),
    "Mistral's beside shards of others": (
        False, other_shards, FAILS, "set_differs", "model-00001-of-00001.safetensors"),
    "an adapter beside": (
        False, adapter_beside, FAILS, "adapter_beside", "adapter_model.safetensors"),
    "no config": (False, lambda f: lose(f, "config.json"), OPEN, "not_asked", None),
    "eos apart": (
        False, lambda f: edit(f, "generation_config.json", eos_token_id=3), FAILS, "eos_apart",
        "config.json"),
    "eos of the tokenizer": (
        False, lambda f: edit(f, "tokenizer_config.json", eos_token="t9"), FAILS, "eos_apart",
        "tokenizer_config.json"),
    "eos unknown": (
        False, lambda f: edit(f, "tokenizer_config.json", eos_token="<no>"), FAILS, "token_unknown",
        "tokenizer_config.json"),
    "tokens without rows": (
        False, lambda f: tokenizer(f, 128, ("<a>", "<b>")), FAILS, "tokenizer_beyond", "tokenizer"),
    "a token for images": (
        False, lambda f: tokenizer(f, 128, ("<image_soft_token>",)), HOLDS, "whole", None),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_what_is_planted_in_files_is_named(case, healthy, tmp_path):
    is_cut, plant, outcome, code, name = FILES[case]
    folder = Path(shutil.copytree(healthy("mistral"), tmp_path / "sick"))
    if is_cut:
        cut(folder)
    plant(folder)
    found = verified(folder)
    assert found.outcome is outcome, found.reason
    assert code in (codes(found) if name else {found.code}), found.reason
    assert name is None or name in {one.name for one in found.against if one.code == code}


def test_numbers_that_transformers_writes_outside_of_json_are_numbers(tmp_path):
    """An older transformers wrote the limits of Mamba 2 as [0.0, Infinity]."""
    folder = planted.saved("mamba2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["time_step_limit"] = [0.0, float("inf")]
    (folder / "config.json").write_text(json.dumps(config))
    assert "Infinity" in (folder / "config.json").read_text()
    assert verified(folder).outcome is HOLDS
    assert stripped(json_object(b'{"limits": [0.0, Infinity, -Infinity]}')) == {
        "limits": [0.0, float("inf"), float("-inf")]
    }


def test_a_lost_layer_is_one_row(healthy, tmp_path):
    """With the names of the first tensors, and the count of all."""
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "sick"))
    tensors = load_file(folder / FILE)
    own = sorted(name for name in tensors if name.startswith(LOST))
    store(folder, without(LOST)(tensors) | {EMBED: tensors[EMBED]})
    found = verified(folder)
    assert [(one.name, one.code) for one in found.against] == [("model.layers.1", "layer_lost")]
    assert f"all {len(own)} tensors" in found.reason
    assert ", ".join(own[:3]) in found.reason
    assert f"{len(own) - 3} more" in found.reason
    store(folder, without(f"{LOST}mlp")(tensors))
    assert codes(verified(folder)) == {"missing"}


def headers_of(folder: Path, names: list[str], file: str = FILE) -> None:
    """A file of tensors of one number."""
    ends = [
        {"dtype": "BF16", "shape": [1], "data_offsets": [2 * at, 2 * at + 2]}
        for at in range(len(names))
    ]
    header = json.dumps(dict(zip(names, ends, strict=True))).encode()
    content = len(header).to_bytes(8, "little") + header + bytes([1]) * 2 * len(names)
    (folder / file).write_bytes(content)


def seconds_of(folder: Path):
    """The answer from headers, and the seconds of processor time that it takes."""
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], "model_type": "x"}))
    begun = time.process_time()
    found = verified(folder, headers=True)
    return found, time.process_time() - begun


def test_an_index_of_missing_shards_takes_time_in_proportion(tmp_path):
    """20,000 shards would take several seconds if each were looked for among all others."""
    shards = {f"x.{at}.weight": f"model-{at:05d}-of-20000.safetensors" for at in range(20_000)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    found, seconds = seconds_of(tmp_path)
    assert seconds < 2
    assert found.figures["faults"] == 20_000
    assert len(found.against) == MOST_ROWS + 1
    assert (found.against[-1].code, found.against[-1].what.split("; ")[-1]) == (
        "more",
        f"the same of {20_000 - MOST_ROWS - 1:,} others",
    )
    assert "19,997 more" in found.reason


def test_lost_experts_take_rows_in_proportion(tmp_path):
    """Of 1,500 layers each with an expert of its own, 1,499 are lost in each."""
    names = [f"model.layers.{at}.mlp.experts.{at}.up_proj.weight" for at in range(1500)]
    headers_of(tmp_path, names)
    found, seconds = seconds_of(tmp_path)
    assert seconds < 10
    assert found.figures["faults"] == 1500
    assert codes(found) == {"experts_missing", "more"}
    assert found.against[0].what == (
        "1,499 of 1,500 experts are missing: 1, 2, 3, 4, 5, 6, 7, 8 and 1,491 others"
    )


def test_an_exception_of_the_code_is_no_answer(healthy, monkeypatch):
    """In the judgement, while asking transformers, and in the child that asks."""

    def fail(*_):
        raise ZeroDivisionError("planted")

    for module, name in ((loader, "torch_name"), (names_part, "wrapped")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(ZeroDivisionError):
                verified(healthy("llama"))


@pytest.mark.parametrize(("code", "stderr"), [(1, b"ZeroDivisionError: planted"), (-9, b"")])
def test_a_child_that_raised_is_not_one_that_was_killed(code, stderr, monkeypatch, tmp_path):
    monkeypatch.undo()
    ended = subprocess.CompletedProcess([], code, b"", stderr)
    monkeypatch.setattr(loader, "run_child", lambda *_, **__: ended)
    if code == 1:
        with pytest.raises(RuntimeError, match="planted"):
            loader.expected({}, {}, tmp_path)
    else:
        assert loader.expected({}, {}, tmp_path).problem == "loader_died"


def test_what_transformers_raises_is_its_problem(healthy, tmp_path):
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "sick"))
    edit(folder, hidden_size="wide")
    found = verified(folder)
    assert (found.outcome, found.code) == (OPEN, "not_asked")
    assert found.answer.reasons[0].figures["why"].code == "loader_failed"


def test_sets_are_compared_with_the_one_that_is_read(healthy, tmp_path):
    """The shards of the index, which transformers does not read beside one file, and Mistral's."""
    folder = Path(shutil.copytree(healthy("mistral"), tmp_path / "sick"))
    other_shards(folder)
    of_mistral(folder, 2)
    os.utime(folder / FILE)  # the newest
    found = verified(folder)
    others = {"model-00001-of-00001.safetensors", "consolidated.safetensors"}
    assert {one.name for one in found.against} == others
    assert shadow.verify("same", healthy("mistral"), folder).holds is True


def test_headers_alone_leave_values_open_where_they_decide(healthy, tmp_path):
    folder = Path(shutil.copytree(healthy("qwen2"), tmp_path / "model"))
    tensors = load_file(folder / FILE)
    store(folder, changed(UP, at(float("nan")))(tensors))
    found = verified(folder, headers=True)
    assert (found.outcome, found.code) == (Outcome.HOLDS, "whole_headers")
    assert found.figures == {"tensors": len(tensors), "tensors_read": 0, "faults": 0}
    store(folder, tensors | {HEAD: tensors[EMBED] * 2})
    assert verified(folder, headers=True).code == "head_unknown"
    with pytest.raises(UsageError):
        shadow.verify("same", folder, folder, headers=True)


def test_a_file_and_a_model_in_memory_are_checkpoints_too(healthy):
    assert verified(healthy("llama") / FILE).outcome is HOLDS
    model = planted.built("llama")
    assert verified(model).outcome is HOLDS
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    assert [(one.name, one.code) for one in verified(model).against] == [(UP, "not_finite")]


def test_an_audit_of_one_folder_names_this_check(tmp_path):
    with pytest.raises(UsageError) as caught:
        shadow.audit(str(planted.toy(tmp_path / "one", 1)))
    assert "verify whole" in caught.value.hint


@pytest.mark.slow
def test_a_pickle_is_swept_only_where_it_may_be(tmp_path):
    folder = planted.saved("llama", tmp_path / "pickled")
    torch.save(load_file(folder / FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()
    with pytest.raises(ShadowError):
        verified(folder)
    assert verified(folder, files=shadow.Files(allow_pickle=True)).outcome is HOLDS


def judged(**parts):
    return judge(Whole(FileFacts([FILE], names={FILE}), Values({}), **parts))


def test_what_a_loader_cannot_say_leaves_names_open_and_the_rest_is_judged():
    config = {"num_hidden_layers": 3}
    tensors = dict.fromkeys([f"model.layers.{layer}.x" for layer in (0, 2)])
    found = judged(names=Names(tensors, config, Expected(problem="quantised")))
    assert [one.name for one in found.against] == ["layers.1"]
    whole = dict.fromkeys([f"model.layers.{layer}.x" for layer in range(3)])
    for problem in ("quantised", "unknown_class", "no_transformers", "loader_slow", "gguf"):
        found = judged(names=Names(whole, config, Expected(problem=problem)))
        assert found.outcome is Outcome.INCONCLUSIVE
        assert found.reasons[0].figures["why"].code == problem
        assert CHECKS["whole"].say_all(found.reasons)


def test_layers_of_further_tokens_are_counted_from_config():
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    said = Expected(unexpected=names[2:])
    values = dict.fromkeys(names)
    found = judged(names=Names(values, config, said))
    assert not found.against
    assert "mtp" in {one.code for one in found.notes}
    found = judged(names=Names(values, config | {"num_nextn_predict_layers": 2}, said))
    assert [one.why.code for one in found.against] == ["mtp_missing"]


@pytest.mark.parametrize(
    ("is_tied", "equal", "outcome"),
    [(True, True, HOLDS), (True, False, FAILS), (True, None, OPEN), (False, None, HOLDS)],
)
def test_a_head_that_is_stored_beside_a_tie(is_tied, equal, outcome):
    names = Names({}, {}, Expected(), (HEAD, EMBED, equal) if is_tied else None)
    assert judged(names=names).outcome is outcome


@pytest.mark.parametrize(("eos", "outcome"), [
    ({"config.json": [2], "generation_config.json": [2, 7], "tokenizer_config.json": [7]}, HOLDS),
    ({"config.json": [2], "generation_config.json": [7], "tokenizer_config.json": [7]}, FAILS),
    ({"config.json": [2], "tokenizer_config.json": [7]}, FAILS),
    ({"generation_config.json": [9]}, HOLDS), ({"generation_config.json": [10]}, FAILS),
])  # fmt: skip
def test_where_generation_stops(eos, outcome):
    words = Words({"eos": eos}, rows=10)
    assert judged(words=words).outcome is outcome


def test_a_number_that_the_class_names_by_itself_is_no_fault():
    words = Words({"eos": {"config.json": [50256]}}, rows=10, usual=[50256])
    assert judged(words=words).outcome is HOLDS


HOSTILE = {
    "model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}, "quantization_config": {},
    "attn_implementation": "org/repo", "_name_or_path": "/etc", "backbone": "timm",
    "use_pretrained_backbone": True, "rope_type": "a\\b",
}  # fmt: skip


def test_a_config_is_stripped_at_every_depth():
    deep = {"text_config": HOSTILE, "parts": [HOSTILE, {"vision": HOSTILE}], "size": 3}
    plain = {"model_type": "llama"}
    wanted = {"text_config": plain, "parts": [plain, {"vision": plain}], "size": 3}
    assert stripped(deep) == wanted
    assert stripped({"limit": [0.0, {"__float__": "Infinity"}]})["limit"][1] == float("inf")
    assert stripped({"limit": {"__float__": "evil"}}) == {"limit": {"__float__": "evil"}}


@pytest.mark.slow
def test_the_child_says_the_same_and_has_no_token(healthy, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "secret")
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "sick"))
    store(folder, without(HEAD)(load_file(folder / FILE)))
    edit(folder, **{key: one for key, one in HOSTILE.items() if key != "quantization_config"})
    found = verified(folder)
    assert [(one.name, one.code) for one in found.against] == [(HEAD, "missing")]
    edit(folder, hidden_size="wide")
    assert verified(folder).figures["faults"] == 0
    monkeypatch.setattr(loader, "SECONDS", 0.01)
    assert verified(folder).code == "not_asked"


def test_every_finding_is_an_entry_of_one_table():
    """Each with a sentence on why it matters and one on what to do; no code is in two topics, and
    each is one that a judge or the loader has.
    """
    rooms = (shards, configs, values, names_part, small_files, copies, peers, quantised_modules)
    topics = [room.RULES for room in rooms] + [configs.OF_ADAPTERS, gguf_metadata.RULES]
    assert sum(map(len, topics)) == len(RULES)
    for code, rule in RULES.items():
        for text in (rule.why, rule.do):
            assert re.fullmatch(r"(?:[A-Z]|peft |transformers )[^?!]+[a-z0-9`]\.", text), code
        assert not rule.text.endswith(".")
        assert "{names}" in WORDS[code]
    folders = (Path(shards.__file__).parent, Path(loader.__file__).parent)
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    for code in RULES:
        assert sum(source.count(f'"{code}"') for source in sources) > 1, code


@pytest.mark.parametrize(("rows", "outcome"), [(10, HOLDS), (12, OPEN), (8, FAILS)])
def test_rows_beyond_vocab_size_are_open_without_a_loader(rows, outcome):
    """Mllama has eight more by design; fewer are a fault in any model."""
    assert judged(words=Words(vocab_size=10, rows=rows)).outcome is outcome
