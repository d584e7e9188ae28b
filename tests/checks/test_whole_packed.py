"""`verify whole` of quantised models and GGUF files: healthy ones hold, sick ones are named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import planted
import pytest
import quantisers
import torch
from effort import every
from safetensors.torch import load_file
from wholes import FAILS, FILE, HOLDS, OPEN, codes, store, verified

import shadow
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.checks.whole import RULES
from shadow.checks.whole.part import Findings
from shadow.checks.whole.quantised_modules import DecodedRows, Modules, judge_modules

pytestmark = pytest.mark.usefixtures("in_this_process")
LLAMA, MOE = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.experts.2.up_proj"
W1, FC = "model.layers.1.block_sparse_moe.experts.2.w1", "transformer.h.1.mlp.c_fc"
RENAMED = {"weight_packed": "weight", "weight_global_scale": "weight_scale_2"}
SMALL = {  # forms for matrices of any width
    "gptq of 8": (partial(quantisers.gptq, group=8), "", {"quant_method": "gptq"}),
    "awq of 8": (partial(quantisers.awq, group=8), "", {"quant_method": "awq"}),
    "modelopt": (
        lambda w: (
            {RENAMED.get(piece, piece): 1 / one if "global" in piece else one
             for piece, one in quantisers.nvfp4(w)[0].items()}, None),
        "", {"quant_method": "modelopt"},
    ),
    "fp8-blocks": (
        lambda w: ({"weight": (w * 1000).to(torch.float8_e4m3fn),
                    "weight_scale_inv": torch.full((1, 1), 0.001)}, None),
        "", {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
}  # fmt: skip


def is_packed(name):
    ends = "_proj", "c_attn", "c_fc", "w1", "w2", "w3"
    return name.removesuffix(".weight").endswith(ends) and name.endswith(".weight")


@pytest.fixture
def packed(healthy, tmp_path, monkeypatch):
    """A checkpoint of a kind in a format, after a change of its tensors and its config."""
    monkeypatch.setattr(quantisers, "FORMATS", {**quantisers.FORMATS, **SMALL})

    def make(kind, form, change=dict, folder="packed", said=None):
        path = Path(shutil.copytree(healthy(kind), tmp_path / folder))
        tensors, _, usual = quantisers.quantised(form, load_file(path / FILE), is_packed)
        key = "quantization" if form.startswith("mlx") else "quantization_config"
        planted.edit(path, **{key: usual | (said or {})})
        store(path, (change or dict)(tensors))
        return path

    return make


HEALTHY = [*(("llama", form) for form in quantisers.FORMATS), ("qwen3_moe", "gptq of 8"),
           ("qwen3_moe", "awq of 8"), ("qwen3_moe", "fp8-blocks"), ("llama", "modelopt"),
           ("mixtral", "nf4"), ("mixtral", "fp8-blocks"), ("gpt2", "nf4"), ("gpt2", "int8"),
           ("gemma2", "mlx"), ("gemma2", "w8a8"), ("llava", "int8")]  # fmt: skip


@pytest.mark.parametrize("case", every(3, HEALTHY))
def test_a_healthy_quantised_model_gets_a_full_answer(case, packed):
    kind, form = case
    found = verified(packed(kind, form))
    assert found.outcome is HOLDS, found.reason
    notes = {one.code for one in found.answer.notes} - {"looked"}
    assert notes == ({"global_scales"} if form in ("nvfp4", "modelopt") else set())


def gone(*parts):
    return lambda t: {name: one for name, one in t.items() if not any(p in name for p in parts)}


def at(name, change):
    return lambda t: t | {name: change(t[name])}


def zeroed(rows):
    def change(one):
        one = one.clone()
        one[rows] = 0
        return one

    return change


def plain(module, rows=96):
    """The module stored as floats."""

    def change(t):
        weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3)) / 30
        return gone(f"{module}.")(t) | {f"{module}.weight": weight}

    return change


V2, CT = {"checkpoint_format": "gptq_v2"}, "compressed-tensors"
GROUPS = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"group_size": 16}}}}
LINEAR = {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}
# kind, format, change of tensors, quantization_config, code, what is named
SICK = {
    "module lost": ("llama", "gptq", gone(LLAMA), {}, "missing", f"{LLAMA}.weight"),
    "expert lost": ("qwen3_moe", "awq of 8", gone("1.mlp.experts.2."), {}, "expert_missing",
        MOE[:-8]),
    "another name": ("llama", "fp8", lambda t: t | {"x.weight": t["lm_head.weight"] + 1}, {},
        "unexpected", "x.weight"),
    "inverted": ("llama", "fp8", at(f"{LLAMA}.weight_scale", lambda s: 1 / s), {},
        "scale_inverted", LLAMA),
    "inverted of an expert": ("qwen3_moe", "fp8-blocks", at(f"{MOE}.weight_scale_inv",
        lambda s: 1 / s), {}, "scale_inverted", MOE),
    "all inverted": ("llama", "fp8-rows", lambda t: {n: 1 / s if "weight_scale" in n else s for n,
        s in t.items()}, {}, "scale_inverted", LLAMA),
    "a group's scale 0": ("llama", "awq", at(f"{LLAMA}.scales", zeroed(1)), {}, "scales_lost",
        LLAMA),
    "a block's scale 0": ("llama", "modelopt", at(f"{LLAMA}.weight_scale",
        lambda s: s.float().index_fill(1, torch.tensor([1]), 0).to(s.dtype)), {}, "scales_lost",
        LLAMA),
    "scale nan": ("qwen3_moe", "gptq of 8", at(f"{MOE}.scales", lambda s: s * float("nan")), {},
        "not_finite",
        f"{MOE}.scales"),
    "scale lost": ("qwen3_moe", "awq of 8", gone(f"{MOE}.scales"), {}, "module_broken", MOE),
    "scale of fp8 lost": ("qwen3_moe", "fp8-blocks", gone(f"{MOE}.weight_scale"), {},
        "scale_missing", f"{MOE}.weight"),
    "quant_state gone": ("llama", "nf4", gone(f"{LLAMA}.weight.quant_state"), {}, "module_broken",
        LLAMA),
    "quant_state of an expert gone": ("mixtral", "nf4", gone(f"{W1}.weight.quant_state"), {},
        "module_broken", W1),
    "blocks": ("llama", "nf4", at(f"{LLAMA}.weight.absmax", lambda s: s[:-1]), {},
        "module_broken", LLAMA),
    "blocks of int4": ("llama", "int4", at(f"{LLAMA}.weight_scale", lambda s: s[:, :-1]), {},
        "module_broken", LLAMA),
    "group size": ("llama", "gptq", None, {"group_size": 16}, "group_size", LLAMA),
    "group size of int4": ("llama", "int4", None, GROUPS, "group_size", LLAMA),
    "group size of mlx": ("llama", "mlx", None, {"group_size": 16}, "group_size", LLAMA),
    "g_idx zero": ("llama", "gptq-order", at(f"{LLAMA}.g_idx", torch.zeros_like), {},
        "groups_lost", LLAMA),
    "g_idx zero of an expert": ("qwen3_moe", "gptq of 8", at(f"{MOE}.g_idx", torch.zeros_like),
        {}, "groups_lost", MOE),
    "zeros less 1": ("llama", "gptq", None, V2, "zeros_off", "config.json"),
    "zeros more 1": ("llama", "gptq-v2", None, {"checkpoint_format": "gptq"}, "zeros_off",
        "config.json"),
    "input_scale": ("qwen3_moe", "fp8", gone(f"{MOE}.input_scale"), {}, "piece_missing", MOE),
    "input_scale of w1": ("mixtral", "fp8", gone(f"{W1}.input_scale"), {}, "piece_missing", W1),
    "listed": ("llama", "w8a8", None, {"ignore": ["lm_head", LLAMA]}, "packed_listed", LLAMA),
    "listed of bitsandbytes": ("gpt2", "nf4", None, {"llm_int8_skip_modules": [FC]},
        "packed_listed", FC),
    "plain": ("llama", "w8a8", plain(LLAMA), {"ignore": ["lm_head", "re:.*layers.0.mlp.*"]},
        "plain_unlisted", LLAMA),
    "plain of a class": ("llama", "w8a8", plain(LLAMA), LINEAR, "plain_unlisted", LLAMA),
    "no scales": ("llama", "fp8-rows", gone("_scale"), {}, "nothing_packed", "config.json"),
    "plain of gptq": ("llama", "gptq", plain(LLAMA), {}, "plain_unlisted", LLAMA),
}  # fmt: skip


@pytest.mark.parametrize("case", every(2, SICK))
def test_what_is_planted_in_a_quantised_model_is_named(case, packed):
    kind, form, change, said, code, name = SICK[case]
    found = verified(packed(kind, form, change, said=said))
    assert found.outcome is FAILS
    named = {one.name for one in found.against if one.code == code}
    assert name in named, [(one.name, one.what) for one in found.against]


ATTN = "model.layers.0.self_attn"
TWINS = {  # what looks odd and is healthy
    "listed and plain": ("llama", "w8a8", plain(LLAMA), {"ignore": ["lm_head", LLAMA]}),
    "listed by a pattern": ("llama", "w8a8", plain(LLAMA), {"ignore": ["re:.*1.mlp.up_proj$"]}),
    "listed with all around": ("llama", "nf4", plain(LLAMA),
        {"llm_int8_skip_modules": ["model.layers.1.mlp"]}),
    "another pattern": ("llama", "w8a8", plain(LLAMA), {"ignore": ["re:.*(up|down)_proj"]}),
    "named by its targets": ("llama", "w8a8", plain(LLAMA),
        {"config_groups": {"a": {"targets": ["re:.*q_proj"]}}}),
    "named by another": ("llama", "gptq", plain(LLAMA), {"extra_config": {LLAMA: {"bits": 16}}}),
    "another mode": ("llama", "mlx", at(f"{LLAMA}.biases", lambda b: b.int()), {LLAMA: {}}),
    "mixed by name": ("llama", "gptq", plain(LLAMA), {"dynamic": {f"-:{LLAMA}": {}}}),
    "one group a row": ("llama", "gptq", None, {"group_size": -1}),
    "biases that GPTQ adds": ("llama", "gptq", lambda t: t | {f"{LLAMA}.bias": torch.zeros(96)},
        {}),
    "scales of a cache": ("llama", "fp8",
        lambda t: t | {f"{ATTN}.{one}": torch.ones(1) for one in ("k_scale", "v_proj.v_scale")},
        {}),
    "scales twice as large": ("llama", "fp8", at(f"{LLAMA}.weight_scale", lambda s: s * 500), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", every(2, TWINS))
def test_what_looks_odd_and_is_healthy_holds(case, packed):
    kind, form, change, said = TWINS[case]
    found = verified(packed(kind, form, change, said=said))
    assert found.outcome is (OPEN if "another mode" in case else HOLDS), found.reason


def test_a_config_without_packed_tensors_and_the_reverse(packed, healthy, tmp_path):
    """A file beside it may describe the quantisation; activations alone may be quantised."""
    for form in ("gptq", "fp8-blocks"):
        folder = packed("llama", form, folder=form)
        config = json.loads((folder / "config.json").read_text())
        said = config.pop("quantization_config")
        (folder / "config.json").write_text(json.dumps(config))
        assert "method_unsaid" in codes(verified(folder))
        (folder / "quantize_config.json").write_text("{}")
        assert verified(folder).outcome is HOLDS
        left = Path(shutil.copytree(healthy("qwen2"), tmp_path / f"left-{form}"))
        planted.edit(left, quantization_config=said)
        assert codes(verified(left)) == {"nothing_packed"}
    for method, key, value in (
        (CT, "config_groups", {}), (CT, "format", "dense"), ("mxfp4", "dequantize", True),
        ("torchao", "", ""),
    ):  # fmt: skip
        planted.edit(left, quantization_config={"quant_method": method, key: value})
        assert verified(left).outcome is HOLDS


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", f"{LLAMA}.weight"), ("gpt2", "transformer.h.0.mlp.c_fc.weight")]
)
def test_8_bit_floats_without_their_scale_in_a_float_model(kind, name, healthy, tmp_path):
    """As numbers of another size they are healthy, and so are large ones with more bits."""
    folder = Path(shutil.copytree(healthy(kind), tmp_path / "raw"))
    tensors = load_file(folder / FILE)
    raw = (tensors[name] / tensors[name].abs().max() * 448).to(torch.float8_e4m3fn).float()
    for change, sick in ((1.0, True), (1 / 512, False), (1.001, False)):
        store(folder, tensors | {name: raw * change})
        found = verified(folder)
        assert ("raw_numbers" in codes(found)) is sick
        assert sick or found.outcome is HOLDS


def of_gpt_oss(folder, change):
    """gpt-oss in MXFP4, as it is released."""
    planted.saved("gpt_oss", folder, hidden_size=64, intermediate_size=64)
    tensors, stacks = load_file(folder / FILE), {}
    for name in [one for one in tensors if one.endswith("_proj") and "experts" in one]:
        pieces, _ = quantisers.mxfp4(tensors.pop(name))
        stacks |= {name + piece: value for piece, value in pieces.items()}
    name = "model.layers.1.mlp.experts.down_proj_scales"
    store(folder, tensors | stacks | {name: change(stacks[name])})
    planted.edit(folder, quantization_config={"quant_method": "mxfp4"})
    return folder


def test_scales_of_an_expert_of_a_stack(tmp_path):
    """Twice as large is healthy; the inverted scale has the negative exponent."""

    def one(change):
        def of(scales):
            scales = scales.clone()
            scales[1] = change(scales[1])
            return scales

        return of

    named = "model.layers.1.mlp.experts.down_proj[1]"
    for number, (change, code) in enumerate([
        (lambda s: s, ""), (lambda s: s + 1, ""), (lambda s: s * 0 + 255, "scales_lost"),
        (lambda s: s * 0, "scale_inverted"), (lambda s: 254 - s, "scale_inverted"),
    ]):  # fmt: skip
        found = verified(of_gpt_oss(tmp_path / f"{number}", one(change)))
        rows = [(row.name, row.code) for row in found.against]
        assert rows == ([(named, code)] if code else []), found.reason
        assert found.outcome is (FAILS if code else HOLDS)


def longer(tensors):
    """Padding rows."""
    ends = "model.embed_tokens.weight", "lm_head.weight"
    return tensors | {name: np.pad(tensors[name], ((0, 32), (0, 0))) for name in ends}


GGUF_SICK = {  # metadata, what is done to the tensors, the code, what is named
    "": ({}, None, "", ""),
    "eos beyond": ({"tokenizer.ggml.eos_token_id": 320}, None, "token_beyond",
        "tokenizer.ggml.eos_token_id"),
    "eos is the last": ({"tokenizer.ggml.eos_token_id": 319}, None, "", ""),
    "no pad": ({"tokenizer.ggml.padding_token_id": 2**32 - 1}, None, "", ""),
    "heads": ({".attention.head_count_kv": 4}, None, "metadata_shape", "blk.1.attn_k.weight"),
    "heads of q": ({".attention.head_count": 8, ".attention.key_length": 64}, None,
        "metadata_shape", "blk.0.attn_q.weight"),
    "larger heads": ({".attention.key_length": 128}, None, "metadata_shape",
        "blk.0.attn_k.weight"),
    "heads of two kinds": ({".attention.head_count_kv": 4, ".attention.key_length_swa": 64}, None,
        "", ""),
    "width": ({".embedding_length": 512, ".attention.key_length": 64}, None, "metadata_shape",
        "token_embd.weight"),
    "blocks": ({".block_count": 1}, None, "block_beyond", "blk.1"),
    "a block promised": ({".block_count": 3}, None, "layer_missing", "layers.2"),
    "no down": ({}, gone("layers.1.mlp.down"), "block_part", "blk.1.ffn_down.weight"),
    "no o": ({}, gone("layers.0.self_attn.o"), "block_part", "blk.0.attn_output.weight"),
    "no keys of its own": ({}, gone("layers.1.self_attn.k", "layers.1.self_attn.v"), "", ""),
    "a block of another kind": ({}, gone("layers.1.mlp", "1.post_attention"), "", ""),
    "tied": ({}, gone("lm_head"), "", ""),
    "more rows than tokens": ({}, longer, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("case", every(2, GGUF_SICK))
def test_metadata_of_a_gguf_file_beside_its_tensors(case, arch, tmp_path):
    metadata, change, code, name = GGUF_SICK[case]
    tensors = planted.gguf_llama(len(case))
    metadata = {key if key[0] != "." else arch + key: value for key, value in metadata.items()}
    path = planted.write_gguf(
        tmp_path / "a.gguf",
        change(tensors) if change else tensors,
        arch=arch,
        paired=arch == "llama",
        metadata=metadata,
    )
    found = verified(path)
    assert {one.code for one in found.against} == ({code} if code else set()), found.reason
    assert found.outcome is (FAILS if code else OPEN)
    assert not code or name in {one.name for one in found.against}


def test_gguf_files_are_swept(tmp_path):
    tensors, name = planted.gguf_llama(), f"{LLAMA}.weight"
    found = verified(planted.write_gguf(tmp_path / "a.gguf", tensors))
    assert (found.outcome, found.code, codes(found)) == (OPEN, "not_asked", set())
    tensors[name][:] = 0
    found = verified(planted.write_gguf(tmp_path / "b.gguf", tensors))
    assert [(one.name, one.code) for one in found.against] == [(name, "zero")]


def test_a_head_that_llama_cpp_does_not_tie(tmp_path):
    tensors = planted.gguf_llama()
    for arch, change, sick in (
        ("stablelm", gone("lm_head"), True),
        ("stablelm", dict, False),
        ("olmo", gone("lm_head"), False),
    ):
        found = verified(
            planted.write_gguf(
                tmp_path / f"{arch}{sick}.gguf",
                change(tensors),
                "F32",
                arch=arch,
                paired=arch == "olmo",
            )
        )
        assert [(one.name, one.code) for one in found.against] == [
            ("output.weight", "output_absent")
        ] * sick, found.reason


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}


def test_rotary_embeddings_of_a_gguf_file_beside_its_source(tmp_path):
    """The base, and the factors of Llama 3, wherever a config has them."""
    tensors = planted.gguf_llama()
    state = {name: torch.from_numpy(one) for name, one in tensors.items()}
    factors = {"rope_freqs.weight": np.ones(32, np.float32)}
    for number, (config, base, more, named) in enumerate([
        ({"rope_theta": 1e4}, 1e4, {}, []), ({"rope_theta": 5e5}, 1e4, {}, ["rope.freq_base"]),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, {}, ["rope_freqs.weight"]),
        ({"rope_parameters": LLAMA3}, 5e5, factors, []), ({"rope_parameters": LLAMA3}, 1e4,
        factors, ["rope.freq_base"]),
        ({"text_config": {"rope_theta": 1e6}}, 1e6, {}, []), ({}, 5e5, {}, []),
        ({"rope_theta": "x", "rope_scaling": [1]}, 5e5, {}, []),
    ]):  # fmt: skip
        source = planted.write(tmp_path / f"{number}", state, {**planted.LLAMA, **config})
        path = planted.write_gguf(
            tmp_path / f"{number}.gguf",
            tensors | more,
            "F32",
            metadata={"llama.rope.freq_base": base},
        )
        for of in ((source, path), (path, source)):
            found = shadow.verify("same", *of, jobs=1)
            assert [one.name for one in found.against] == named, found.reason
            assert found.outcome is (FAILS if named else HOLDS)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_norms_without_the_1_that_llama_cpp_adds(arch, tmp_path):
    tensors = {name: one for name, one in planted.gguf_llama().items() if "lm_head" not in name}
    source = planted.write(
        tmp_path / "source",
        {name: torch.from_numpy(one) for name, one in tensors.items()},
        {"model_type": arch},
    )
    for added, remark in ((1.0, False), (0.0, True)):
        path = planted.write_gguf(
            tmp_path / f"{added}.gguf", tensors, "F32", arch=arch, paired=False, added=added
        )
        found = shadow.verify("same", source, path, jobs=1)
        norms = {
            one.name for one in found.against if one.what == "B is A with -1 added to every entry"
        }
        assert norms == {name for name in tensors if "norm" in name and remark}, found.reason
        assert found.outcome is (FAILS if remark else HOLDS)


def judged(samples=(), seen=0, **more):
    """Codes of modules of four layers; samples: by layer, (mean, size, lost)."""
    raw = TensorInfo("w", "I32", (64, 64), "s", 0, 8)
    packing = Packing("gptq", raw, (), (4, 1, 32, 1))
    tensors = {f"layers.{at}.q.weight": replace(raw, packing=packing) for at in range(4)}
    rows = [
        DecodedRows(f"layers.{at}.q", *one[:3], True, *one[3:]) for at, one in enumerate(samples)
    ]
    findings = Findings(RULES)
    judge_modules(
        findings,
        Modules(tensors | more.pop("plain", {}), **{"settings": {}, "samples": rows} | more),
    )
    return {
        (row.name, code.code)
        for rows in findings.rows.values()
        for row in rows
        for code in [row.why]
    }


FAIR = (0.0, 0.02, 0.0)
BOUNDS = {  # of the last layer: what is healthy, what is not, and what is said
    "times larger": ((0.0, 19.9, 0.0), (0.0, 20.0, 0.0), "scale_inverted"),
    "times smaller": ((0.0, 0.0000201, 0.0), (0.0, 0.0000199, 0.0), "scale_inverted"),
    "groups lost": ((0.0, 0.02, 0.1), (0.0, 0.02, 0.101), "scales_lost"),
    # a whole matrix of zeros has its scales judged, an expert of a stack has not
    "all lost": ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0, True), "scales_lost"),
    "nearly all": (FAIR, (0.0, 0.02, 0.999), "scales_lost"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_constants_that_decide_about_a_module(case):
    inside, outside, code = BOUNDS[case]
    assert judged([FAIR, FAIR, FAIR, inside]) == set()
    assert judged([FAIR, FAIR, FAIR, outside]) == {("layers.3.q", code)}


def test_constants_that_decide_about_a_model():
    """The size of all, their mean, and names of lists, of which the first thousand are compared."""
    assert judged([(0.0, 30.0, 0.0)] * 4) == set()
    assert judged([(0.0, 30.1, 0.0)] * 4) == {
        (f"layers.{at}.q", "scale_inverted") for at in range(4)
    }
    assert judged([(0.15, 1.0, 0.0)] * 3 + [FAIR]) == set()
    assert judged([(-0.151, 1.0, 0.0)] * 3 + [FAIR]) == {("config.json", "zeros_off")}
    plain = {"layers.4.q.weight": TensorInfo("x", "BF16", (64, 64), "s", 0, 8192)}
    for names, sick in ((1000, True), (1001, False)):
        said = {"quant_method": "gptq", "ignore": [f"m{at}" for at in range(names)]}
        assert bool(judged(settings=said, plain=plain)) is sick


def test_a_piece_whose_name_is_a_modules(packed):
    """A hostile name makes a module of a piece: it is refused, and its owner is as it was."""
    name = f"{LLAMA}.g_idx"
    folder = packed("llama", "gptq", lambda t: t | {f"{LLAMA}.qweight.g_idx": t[name] + 0})
    found = verified(folder)
    assert (found.outcome, codes(found)) == (OPEN, set())
