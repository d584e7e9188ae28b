"""Quantised checkpoints of Hugging Face's formats are sides like any other: their matrices are
those that the formats say, and what cannot be decoded is refused by name.
"""

import json

import numpy as np
import pandas as pd
import planted
import pytest
import quantisers
import torch
from effort import chosen, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import shadow
from shadow.checkpoints import decoders
from shadow.checkpoints.formats import with_matrices
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import given_pair
from shadow.targets.references import parse_reference

Q = "model.layers.0.self_attn.q_proj"


def run(base, tuned, output):
    pair = given_pair(parse_reference(str(base)), parse_reference(str(tuned)))
    result = run_pair(pair, Settings(Method("exact"), Filter()), output)
    return [pd.read_parquet(result.folder / f"{name}.parquet") for name in ("matrices", "tensors")]


def paired(base, tuned):
    return pair_checkpoints(open_folder(str(base)), open_folder(str(tuned)), Filter())


def saved(folder, name, kind="llama", seed=0, source=None):
    """(original, in a format, the same as numbers) of a tiny model, and what config.json says."""
    original = source or planted.saved(kind, folder / "original", seed)
    tensors = load_file(original / "model.safetensors")
    config = json.loads((original / "config.json").read_text())
    packed, dense, said = quantisers.quantised(name, tensors)
    key = "quantization" if name.startswith("mlx") else "quantization_config"
    packed = planted.write(folder / name, packed, {**config, key: said})
    dense = planted.write(folder / f"{name}-dense", dense, config)
    return original, packed, dense


@pytest.mark.parametrize("name", chosen(quantisers.FORMATS, ("gptq-order", "awq", "nf4", "fp8")))
def test_a_quantised_model_is_what_its_format_says(name, tmp_path):
    """Every entry is that of a naive decoder."""
    original, packed, dense = saved(tmp_path, name)
    matrices, tensors = run(dense, packed, tmp_path / "same")
    assert not len(matrices)
    assert not tensors["relative_norm"].any()
    assert set(tensors["status"][tensors["tensor"].str.contains("proj")]) == {"identical"}
    matrices, tensors = run(original, packed, tmp_path / "out")
    before, after = (load_file(one / "model.safetensors") for one in (original, dense))
    mine = tensors[tensors["side"] == "tuned"].set_index("tensor")
    scales = {one for one in mine.index if one.endswith("_scale")}
    assert set(mine.index) - scales == set(before)
    assert bool(scales) == name.startswith("fp8")
    delta = matrices[matrices["subject"] == "delta"].set_index("tensor")
    for tensor, base in before.items():
        if "proj" not in tensor:
            assert mine.loc[tensor, "relative_norm"] == 0
            continue
        assert mine.loc[tensor, "dtype"] == quantisers.FORMATS[name][1]
        moved = float((after[tensor].double() - base.double()).norm() / base.double().norm())
        assert delta.loc[tensor, "relative_norm"] == pytest.approx(moved, rel=1e-5)
        assert 0 < moved < 0.5


@pytest.mark.parametrize("name", ["nf4", "gptq", "int8"])
def test_fused_projections(name, tmp_path):
    """What is fused is divided as ever."""
    original = planted.saved("gpt_neox", tmp_path / "original")
    tensors = load_file(original / "model.safetensors")
    config = json.loads((original / "config.json").read_text())

    def is_weight(key):
        named = any(part in key for part in ("query_key_value", "dense"))
        return named and key.endswith(".weight")

    packed, dense, said = quantisers.quantised(name, tensors, is_weight)
    planted.write(tmp_path / "packed", packed, {**config, "quantization_config": said})
    planted.write(tmp_path / "dense", dense, config)
    matrices, found = run(tmp_path / "dense", tmp_path / "packed", tmp_path / "same")
    assert set(found["status"]) <= {"identical", "skipped"}
    assert not len(matrices)
    matrices, _ = run(original, tmp_path / "packed", tmp_path / "out")
    modules = set(matrices["module"])
    assert {"attn.q", "attn.k", "attn.v"} <= modules


def test_a_quantised_model_of_rows_of_inputs_is_refused(tmp_path):
    """What is decoded has rows of outputs: a square matrix would be compared with its transpose."""
    original = planted.saved("gpt2", tmp_path / "original")
    tensors = load_file(original / "model.safetensors")
    config = json.loads((original / "config.json").read_text())
    chosen = [name for name in tensors if name.endswith("c_proj.weight")]
    packed, _, said = quantisers.quantised("nf4", tensors, chosen.__contains__)
    planted.write(tmp_path / "packed", packed, {**config, "quantization_config": said})
    pairs, skipped = paired(original, tmp_path / "packed")
    assert {pair.tuned.info.name for pair in pairs} == tensors.keys() - set(chosen)
    mine = [skip for skip in skipped if skip.side == "tuned"]
    assert {(skip.info.name, skip.reason) for skip in mine} == {
        (name, "quantized") for name in chosen
    }


def test_experts_of_gpt_oss(tmp_path):
    """A stack of experts in MXFP4 is (experts, in, out), gate and up interleaved."""
    generator = torch.Generator().manual_seed(0)
    experts = "model.layers.0.mlp.experts"
    config = {"model_type": "gpt_oss", "num_local_experts": 2, "hidden_size": 64}
    plain = {
        f"{experts}.gate_up_proj": torch.randn(2, 64, 96 * 2, generator=generator),
        f"{experts}.down_proj": torch.randn(2, 96, 64, generator=generator),
    }
    packed, dense = {}, {}
    for name, stack in plain.items():
        pieces, dense[name] = quantisers.mxfp4(stack)
        packed |= {name + piece: value for piece, value in pieces.items()}
    said = {"quantization_config": {"quant_method": "mxfp4"}}
    planted.write(tmp_path / "original", plain, config)
    planted.write(tmp_path / "packed", packed, config | said)
    planted.write(tmp_path / "dense", dense, config)
    matrices, tensors = run(tmp_path / "dense", tmp_path / "packed", tmp_path / "same")
    assert set(tensors["status"]) == {"identical"}
    matrices, tensors = run(tmp_path / "original", tmp_path / "packed", tmp_path / "out")
    delta = matrices[matrices["subject"] == "delta"]
    assert sorted(set(delta["module"])) == ["experts.down", "experts.gate", "experts.up"]
    assert len(delta) == 6
    assert (delta["relative_norm"] < 0.15).all()
    assert set(tensors[tensors["side"] == "tuned"]["dtype"]) == {"MXFP4"}


def test_a_stack_of_experts_of_mlx(tmp_path):
    """MLX keeps the experts of a layer in one tensor, and may say other bits of one module."""
    stack = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    pieces, dense = quantisers.mlx(stack, 3, 64)
    said = {"bits": 4, "group_size": 32, name: {"bits": 3, "group_size": 64}}
    config = {"model_type": "qwen3_moe", "num_experts": 3}
    packed = {f"{name}.{piece}": value for piece, value in pieces.items()}
    planted.write(tmp_path / "packed", packed, {**config, "quantization": said})
    planted.write(tmp_path / "dense", {f"{name}.weight": dense}, config)
    pairs, skipped = paired(tmp_path / "dense", tmp_path / "packed")
    assert len(pairs) == 3
    assert not skipped
    _, tensors = run(tmp_path / "dense", tmp_path / "packed", tmp_path / "same")
    assert list(tensors["status"]) == ["identical"] * 2
    assert set(tensors["dtype"]) == {"F32", "MLX-3"}


def test_two_quantised_models_and_one_tuned_in_16_bits(tmp_path):
    """Either side may be quantised: the delta is that of the numbers on both sides."""
    original, awq, _ = saved(tmp_path, "awq")
    _, nf4, _ = saved(tmp_path, "nf4", source=original)
    tuned = planted.perturbed(original, tmp_path / "tuned", 0.02)
    numbers = {name: load_file(tmp_path / name / "model.safetensors") for name in (
        "awq-dense", "nf4-dense", "tuned"
    )}  # fmt: skip
    names = ("awq-dense", "nf4-dense"), ("nf4-dense", "tuned")
    for base, other, (one, two) in zip((awq, nf4), (nf4, tuned), names, strict=True):
        matrices, _ = run(base, other, tmp_path / f"{one}-{two}")
        delta = matrices[matrices["subject"] == "delta"].set_index("tensor")
        for name in (f"{Q}.weight", "model.layers.1.mlp.down_proj.weight"):
            base_numbers, tuned_numbers = (numbers[side][name].double() for side in (one, two))
            moved = (tuned_numbers - base_numbers).norm() / base_numbers.norm()
            assert delta.loc[name, "relative_norm"] == pytest.approx(float(moved), rel=1e-5)


def test_a_quantised_model_of_another_original(tmp_path):
    """Its layers are not looked for among the base's: first bytes are not first rows there."""
    other = planted.saved("llama", tmp_path / "other", 1)
    _, packed, _ = saved(tmp_path, "gptq")
    matrices, _ = run(other, packed, tmp_path / "out")
    assert (matrices["cosine"].dropna().abs() < 0.2).any()


def test_an_adapter_on_a_quantised_base(tmp_path):
    """QLoRA: the delta is the update, whatever the base is stored as."""
    _, packed, dense = saved(tmp_path, "nf4")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) for size in ((64, 4), (4, 64)))
    pair = {f"{Q}.weight": (left, right)}
    folder = planted.adapter(tmp_path / "adapter", pair)
    found = []
    for base in (packed, dense):
        matrices, tensors = run(base, folder, tmp_path / f"out-{base.name}")
        delta = matrices[matrices["subject"] == "delta"].iloc[0]
        assert delta["rank_90"] <= 4
        found.append(float(delta["relative_norm"]))
        assert set(tensors["status"]) == {"measured", "identical"}
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    weight = load_file(dense / "model.safetensors")[f"{Q}.weight"].double()
    moved = 2 * (left.double() @ right.double()).norm() / weight.norm()
    assert found[0] == pytest.approx(float(moved), rel=1e-5)


# what is wrong, in words of the reason; what changes in a good module: piece -> tensor, None: gone
WRONG = {
    "gptq": {
        "qzeros is missing": {"qzeros": None},
        "scales is missing": {"scales": None},
        "scales is I32": {"scales": torch.zeros(2, 64, dtype=torch.int32)},
        "scales has the shape": {"scales": torch.zeros(2, 63).half()},
        "none or several of [2, 3, 4, 8] fit": {"qzeros": torch.zeros(2, 10, dtype=torch.int32)},
        "several of [2, 3, 4, 8]": {"g_idx": torch.zeros(5, dtype=torch.int32)},
        "perm is unknown": {"perm": torch.zeros(64, dtype=torch.int32)},
        "marlin": {"": {"checkpoint_format": "marlin"}},
    },
    "awq": {
        "gemv": {"": {"version": "gemv"}},
        "its groups do not fill": {"scales": torch.zeros(3, 64).half(),
                                   "qzeros": torch.zeros(3, 8, dtype=torch.int32)},
        "qzeros has the shape": {"qzeros": torch.zeros(2, 7, dtype=torch.int32)},
    },
    "mlx": {
        "5, 6, 8] fit": {"": {"bits": 7}},
        "mxfp8": {"": {"mode": "mxfp8"}},
        "biases is I32": {"biases": torch.zeros(64, 2, dtype=torch.int32)},
    },
    "nf4": {
        "quant_state has no shape": {"weight.quant_state.bitsandbytes__nf4": torch.ones(3).byte()},
        "bitsandbytes__nf4 is missing": {"weight.quant_state.bitsandbytes__nf4": None},
        "another shape": {"weight.absmax": torch.ones(5)},
    },
    "int4": {
        "weight_shape does not fit": {"weight_shape": torch.tensor([1 << 62, 64])},
        "or several of [2, 4, 8] fit": {"weight_shape": torch.tensor([64, 1 << 40])},
        "weight_scale has the shape": {"weight_scale": torch.ones(64)},
        "its bits are unclear": {"weight_zero_point": torch.zeros(64, 2, dtype=torch.int32)},
    },
    "w8a8": {
        "its scales have the shape": {"weight_scale": torch.ones(3, 3)},
        "which blocks of 32 x 32 do not have": {"": {"weight_block_size": [32, 32]}},
        "its blocks are '[0, 32]'": {"": {"weight_block_size": [0, 32]}},
        "its blocks are '[1, 64, 1]'": {"": {
            "config_groups": {"a": {"weights": {"block_structure": [1, 64, 1]}}}}},
    },
    "fp8": {"weight_scale is I32": {"weight_scale": torch.ones(1, dtype=torch.int32)}},
    "nvfp4": {"weight_scale is BF16": {"weight_scale": torch.ones(64, 4).bfloat16()}},
}  # fmt: skip
CASES = [(name, words) for name, cases in WRONG.items() for words in cases]


@pytest.mark.parametrize(("name", "words"), CASES)
def test_what_cannot_be_decoded_is_refused_by_name(name, words, tmp_path):
    """The tensors of a module that does not fit stay as they are, in one line; others are read."""
    changes = dict(WRONG[name][words])
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    make, _, said = quantisers.FORMATS[name]
    said = {**said, **changes.pop("", {})}
    pieces = {**make(weight)[0], **changes}
    tensors = {f"{Q}.{piece}": one for piece, one in pieces.items() if one is not None}
    norm = {"model.norm.weight": torch.ones(8), "model.layers.0.mlp.up_proj.weight": weight + 1}
    key = "quantization" if name == "mlx" else "quantization_config"
    planted.write(tmp_path / "packed", {**tensors, **norm}, {**planted.LLAMA, key: said})
    planted.write(tmp_path / "base", {f"{Q}.weight": weight, **norm}, planted.LLAMA)
    pairs, skipped = paired(tmp_path / "base", tmp_path / "packed")
    assert {pair.tuned.info.name for pair in pairs} == set(norm)
    mine = {skip.info.name: skip for skip in skipped if skip.side == "tuned"}
    assert mine.keys() == tensors.keys()
    details = {skip.detail for skip in mine.values() if skip.reason == "quantized"}
    assert any(words in detail for detail in details), details
    assert not any("\n" in detail for detail in details)


def test_groups_that_are_not_there_leave_one_matrix_unread(tmp_path):
    """What only the numbers of a piece say is seen when it is read: that matrix has a reason."""
    original, packed, _ = saved(tmp_path, "gptq")
    tensors = load_file(packed / "model.safetensors")
    tensors[f"{Q}.g_idx"][3] = -1
    planted.write(packed, tensors)
    matrices, found = run(original, packed, tmp_path / "out")
    mine = found[(found["tensor"] == f"{Q}.weight") & (found["side"] == "tuned")].iloc[0]
    assert (mine["status"], mine["reason"]) == ("skipped", "quantized")
    assert "g_idx names groups that do not exist" in mine["detail"]
    assert f"{Q}.weight" not in set(matrices["tensor"])
    assert len(matrices) > 3
    for claim in ("quantised", "stored"):
        recorded = shadow.verify(claim, original, packed, jobs=1)
        assert recorded.outcome == "inconclusive"
        assert [(one.name, one.what) for one in recorded.against] == [
            (f"{Q}.weight", "g_idx names groups that do not exist")
        ]


def in_blocks(raw, scales, high, wide):
    """Every entry times the scale of its block, in float64."""
    rows, cols = raw.shape
    spread = scales.repeat(high, axis=0)[:rows].repeat(wide, axis=1)[:, :cols]
    return raw.astype(np.float64) * spread.astype(np.float64)


SIZES = [(64, 64), (128, 128), (32, 48), (1, 128), (96, 1), (7, 33), (1 << 30, 64), (200, 1 << 30)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["fp8", "int8", "compressed-tensors", "older compressed-tensors"])
def test_blocks_of_any_size_that_the_config_names(size, kind, tmp_path):
    """The last are cut off; numbers are float64's, rounded once; an entry that differs is found."""
    generator = np.random.default_rng(0)
    rows, cols = 200, 160
    high, wide = size
    grid = -(-rows // high), -(-cols // wide)
    raw = torch.from_numpy(generator.integers(-100, 100, (rows, cols)).astype(np.int8))
    if kind != "int8":
        raw = raw.float().to(torch.float8_e4m3fn)
    scales = generator.uniform(0.5, 2, grid).astype(np.float32)
    truth = in_blocks(raw.float().numpy(), scales, min(high, rows), min(wide, cols))
    said = {"quant_method": "fp8", "weight_block_size": [high, wide]}
    if kind == "int8":
        said["quant_method"] = "blockwise_int8"
    if "compressed" in kind:
        structure = f"{high}x{wide}" if "older" in kind else [high, wide]
        groups = {"group_0": {"weights": {"strategy": "block", "block_structure": structure}}}
        said = {"quant_method": "compressed-tensors", "config_groups": groups}
    piece = "weight_scale" if "compressed" in kind else "weight_scale_inv"
    packed = {f"{Q}.weight": raw, f"{Q}.{piece}": torch.from_numpy(scales)}
    config = {**planted.LLAMA, "quantization_config": said}
    planted.write(tmp_path / "packed", packed, config)
    dense = {f"{Q}.weight": torch.from_numpy(truth.astype(np.float32))}
    planted.write(tmp_path / "dense", dense, planted.LLAMA)
    opened = open_folder(str(tmp_path / "packed"))
    (info,) = opened.tensors.values()
    assert info.dtype == ("INT8" if kind == "int8" else "F8_E4M3")
    assert np.array_equal(opened.tensor(info).whole().numpy(), truth.astype(np.float32))
    found = shadow.verify("same", tmp_path / "packed", tmp_path / "dense", jobs=1)
    assert found.outcome == "holds", found
    dense[f"{Q}.weight"][-1, -1] += 1
    planted.write(tmp_path / "dense", dense, planted.LLAMA)
    found = shadow.verify("same", tmp_path / "packed", tmp_path / "dense", jobs=1)
    assert (found.outcome, found.figures["entries_differ"]) == ("does_not_hold", 1)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_scales_of_other_blocks_than_the_config_names_are_refused(kind, tmp_path):
    """In one line, with both; the other side is not read then, and nothing is said of it."""
    raw = torch.ones(200, 160).to(torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    packed = {f"{Q}.weight": raw, f"{Q}.weight_scale_inv": torch.ones(2, 2)}
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    planted.write(tmp_path / "packed", packed, planted.LLAMA | said)
    planted.write(tmp_path / "dense", {f"{Q}.weight": torch.ones(200, 160)}, planted.LLAMA)
    found = shadow.verify("same", tmp_path / "dense", tmp_path / "packed", jobs=1)
    assert found.outcome == "inconclusive"
    why = "its scales have the shape (2, 2), which blocks of 64 x 64 do not have"
    assert any(why in one.what for one in found.against), found


@pytest.mark.parametrize(("said", "is_read"), [({"weight_block_size": None}, True), ({}, False)])
def test_one_scale_of_the_matrix_where_the_config_denies_blocks(said, is_read, tmp_path):
    """As transformers writes FP8 with `weight_block_size: null`; without that key it is refused."""
    raw = torch.randn(160, 32).to(torch.float8_e4m3fn)
    scales = {"weight_scale_inv": torch.tensor(0.5), "activation_scale": torch.tensor(2.0)}
    packed = {f"{Q}.weight": raw, **{f"{Q}.{piece}": one for piece, one in scales.items()}}
    config = {"quantization_config": {"quant_method": "fp8", **said}}
    planted.write(tmp_path / "packed", packed, planted.LLAMA | config)
    opened = open_folder(str(tmp_path / "packed"))
    assert bool(opened.refused) is not is_read
    if is_read:
        (info,) = opened.tensors.values()
        assert torch.equal(opened.tensor(info).whole(), raw.float() / 2)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 8, 16, 64, 1 << 30]), max_size=4).map(tuple)
PIECES = sorted(
    {piece for make, _, _ in quantisers.FORMATS.values() for piece in make(torch.ones(8, 64))[0]}
    | {"_blocks", "_scales", "weight.nested_absmax", "weight.nested_quant_map", "weight_scale_2"}
)
SAID = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in {
    "quant_method": [
        "gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "modelopt", 3, None
    ],
    "bits": [0, -1, 3, 4, 8, 1 << 70, "4", None, 2.5],
    "group_size": [0, -1, 32, 64, 1 << 70, "32", None],
    "checkpoint_format": ["gptq", "gptq_v2", [], {}, 3], "version": ["gemm", [], 3],
    "mode": ["affine", "mxfp4", [], 3],
    "weight_block_size": [[2, 2], [0, 1], [1 << 40, 1], 3, ["a", "b"]],
    "config_groups": [[], {"a": 3}, {"a": {"weights": {"block_structure": 1}}}],
    "a": [{"bits": 4, "group_size": 64}, False, 3],
}.items()})  # fmt: skip
DTYPES = st.sampled_from(["U8", "I8", "I32", "U32", "I64", "F32", "F16", "BF16", "F8_E4M3", "X9"])


@settings(max_examples=examples(300))
@given(
    st.dictionaries(st.sampled_from(PIECES), st.tuples(DTYPES, SHAPES), max_size=6),
    SAID,
    st.binary(max_size=40) | st.just(b'{"shape": [8, 64], "blocksize": 64}'),
)
def test_no_module_is_an_exception(pieces, said, small):
    """Every tensor is still there or a part of a matrix, whatever a hostile checkpoint says."""
    tensors = {}
    for piece, (dtype, shape) in pieces.items():
        name = "a" + piece if piece.startswith("_") else f"a.{piece}"
        tensors[name] = TensorInfo(name, dtype, shape, "s", 0, 256)
    found, refused = with_matrices(tensors, {"quantization_config": said}, lambda info: small)
    held = set()
    for name, info in found.items():
        packing = info.packing
        held |= {one.name for one in (packing.raw, *packing.beside)} if packing else {name}
    assert held == set(tensors)
    assert all(why.isprintable() and len(why) < 200 for why in refused.values())


@pytest.mark.parametrize("known", [True, False])
def test_a_copy_is_called_one_where_its_cells_are_known(tmp_path, monkeypatch, known):
    """Of NF4, also where blocks go across rows."""
    if not known:
        monkeypatch.setattr(decoders.Grid, "cells", lambda *_: ())
    original, packed, _ = saved(tmp_path, "nf4")
    _, tensors = run(original, packed, tmp_path / "out")
    tensors = tensors.query("side == 'tuned'")
    changed = tensors[tensors["relative_norm"] > 0]
    assert changed["tensor"].str.contains("down_proj").any()
    recorded = json.loads(next((tmp_path / "out").rglob("summary.json")).read_text())["finding"]
    if known:
        assert set(changed["cast"]) == {"tuned"}
        assert "rounding" in {sentence["code"] for sentence in recorded["sentences"]}
    else:
        assert changed["cast"].isna().all()
        said = ("copy of the base", "more than rounding")
        assert not any(word in json.dumps(recorded) for word in said)
