"""Packed integers are refused by the name of their format, with all that belongs to them."""

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.checkpoints.formats import owner_of, packed_modules
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.errors import ShadowError

X = "model.layers.0.self_attn.q_proj"
PLAIN = {
    "model.embed_tokens.weight": ("BF16", (32, 8)),
    "model.layers.0.input_layernorm.weight": ("BF16", (8,)),
    "model.layers.0.self_attn.k_proj.weight": ("BF16", (8, 8)),
    f"{X}.bias": ("BF16", (8,)),
    "lm_head.weight": ("BF16", (32, 8)),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,)),
}
# format: (tensors of a packed q_proj as "piece dtype shape", quantization_config or None,
# what the reason names)
FORMATS = {
    "gptq": ("qweight I32 1x8, qzeros I32 1x1, scales F16 1x8, g_idx I32 8",
        {"quant_method": "gptq"}, "GPTQ"),
    "gptq without config": ("qweight I32 1x8, scales F16 1x8, g_idx I32 8", None, "GPTQ"),
    "awq": ("qweight I32 8x1, qzeros I32 1x1, scales F16 1x8", {"quant_method": "awq", "bits": 4},
        "AWQ"),
    "awq without config": ("qweight I32 8x1, qzeros I32 1x1, scales F16 1x8", None, "GPTQ or AWQ"),
    "bitsandbytes 4 bit": (
        "weight U8 32x1, weight.absmax U8 1, weight.quant_map F32 16, weight.nested_absmax F32 1,"
        " weight.nested_quant_map F32 256, weight.quant_state.bitsandbytes__nf4 U8 90",
        {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
    "bitsandbytes stored as bfloat16": (
        "weight BF16 16x1, weight.absmax U8 1, weight.quant_map F32 16", None,
        "bitsandbytes 4-bit"),
    "bitsandbytes 8 bit": ("weight I8 8x8, SCB F32 8, weight_format U8 1",
        {"quant_method": "bitsandbytes"}, "bitsandbytes 8-bit"),
    "compressed-tensors": (
        "weight_packed I32 8x1, weight_scale BF16 8x1, weight_shape I64 2,"
        " weight_zero_point I32 1x1",
        {"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    "compressed-tensors int8": ("weight I8 8x8, weight_scale BF16 8x1",
        {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "int8 of nobody": ("weight I8 8x8, weight_scale BF16 8x1", None, "unknown format"),
    "nvfp4": ("weight U8 8x4, weight_scale F8_E4M3 8x1, weight_scale_2 F32 1, input_scale F32 1",
        {"quant_method": "modelopt"}, "NVFP4"),
    "mlx": ("weight U32 8x1, scales BF16 8x1, biases BF16 8x1", {"bits": 4, "group_size": 64},
        "MLX"),
    "quanto": ("weight._data I8 8x8, weight._scale F32 8x1, input_scale F32 1",
        {"quant_method": "quanto"}, "quanto"),
    "hqq": ("W_q U8 4x8, scale F16 8x1, zero F16 8x1", {"quant_method": "hqq"}, "HQQ"),
    "aqlm": ("codes I16 2x2x2, codebooks F16 2x256x1x8, scales F16 8x1x1x1",
        {"quant_method": "aqlm"}, "AQLM"),
    "exl2": ("q_weight I32 1x8, q_scale I32 1x1, q_groups I16 2, q_invperm I16 8", None, "EXL2"),
}  # fmt: skip


def read(pieces: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    words = (piece.split() for piece in pieces.split(", "))
    return {name: (dtype, tuple(map(int, shape.split("x")))) for name, dtype, shape in words}


def sides(tensors, config):
    infos = {
        name: TensorInfo(name, dtype, shape, "s", 0, 0) for name, (dtype, shape) in tensors.items()
    }
    refused = packed_modules(infos, config)
    packed = Checkpoint("x", None, "f", config, infos, {}, refused=refused)
    full = {**PLAIN, f"{X}.weight": ("BF16", (8, 8))}
    plain = {
        name: TensorInfo(name, dtype, shape, "s", 0, 0) for name, (dtype, shape) in full.items()
    }
    return Checkpoint("y", None, "g", {}, plain, {}), packed


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("where", ["quantization_config", "quantization", "text_config"])
def test_a_packed_module_is_refused_by_the_name_of_its_format(name, where):
    """Weights, scales, zero points and so on; its bias and all other modules pair as ever."""
    pieces, said, expected = read(FORMATS[name][0]), *FORMATS[name][1:]
    config = (
        {}
        if said is None
        else {where: said if where != "text_config" else {"quantization_config": said}}
    )
    base, tuned = sides(PLAIN | {f"{X}.{piece}": value for piece, value in pieces.items()}, config)
    pairs, skipped = pair_checkpoints(base, tuned, Filter())
    assert {pair.tuned.info.name for pair in pairs} == set(PLAIN)
    refused = {skip.info.name: skip for skip in skipped if skip.side == "tuned"}
    assert set(refused) == {f"{X}.{piece}" for piece in pieces}
    assert {skip.reason for skip in refused.values()} == {"quantized"}
    assert all(expected in skip.detail for skip in refused.values()), {
        skip.detail for skip in refused.values()
    }
    assert [(skip.info.name, skip.reason) for skip in skipped if skip.side == "base"] == [
        (f"{X}.weight", "only_in_base")
    ]
    assert {(skip.place.component, skip.place.layer) for skip in refused.values()} == {
        ("language", 0)
    }


def test_the_packed_experts_of_gpt_oss_are_refused_and_their_biases_pair():
    """MXFP4 stores blocks and scales beside plain biases."""
    experts = "model.layers.0.mlp.experts"
    packed = {
        f"{experts}.{p}_{end}": ("U8", (2, 8, 4, 16))
        for p in ("gate_up_proj", "down_proj")
        for end in ("blocks", "scales")
    }
    biases = {f"{experts}.{p}_bias": ("BF16", (2, 8)) for p in ("gate_up_proj", "down_proj")}
    _, tuned = sides(
        {**PLAIN, **packed, **biases},
        {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
    )
    pairs, skipped = pair_checkpoints(tuned, tuned, Filter())
    assert {pair.tuned.info.name for pair in pairs} == {*PLAIN, *biases}
    assert {(skip.info.name, skip.reason, skip.detail) for skip in skipped} == {
        (name, "quantized", "MXFP4") for name in packed
    }
    assert not any(pair.is_matrix for pair in pairs if "bias" in pair.tuned.info.name), (
        "not the spectrum of biases"
    )


def test_integers_that_are_no_weights_are_not_float():
    """Position indices and token maps are buffers, in a quantised checkpoint too."""
    buffers = {
        "model.layers.0.mlp.gate.tid2eid": ("I64", (32, 6)),
        "model.position_ids": ("I64", (1, 8)),
        "steps": ("I32", ()),
    }
    _, tuned = sides({**PLAIN, **buffers}, {"quantization_config": {"quant_method": "fp8"}})
    skipped = pair_checkpoints(tuned, tuned, Filter())[1]
    assert {(skip.info.name, skip.reason) for skip in skipped} == {
        (name, "not_float") for name in buffers
    }


def test_a_float_tensor_that_is_called_scales_is_a_tensor():
    """Names alone are no packing: an integer must be there, or a name that nothing else has."""
    own = {
        f"{X}.weight": ("BF16", (8, 8)), f"{X}.scales": ("BF16", (8, 2)),
        f"{X}.biases": ("BF16", (8, 2)), "a.b_blocks": ("F32", (4, 4)),
    }  # fmt: skip
    _, tuned = sides({**PLAIN, **own}, {})
    assert pair_checkpoints(tuned, tuned, Filter())[1] == []


@pytest.mark.parametrize(("name", "owner"), [
    ("a.q.weight", ("a.q", "weight")),
    ("a.q.weight.absmax", ("a.q", "weight.absmax")),
    (
        "a.q.weight.quant_state.bitsandbytes__nf4",
        ("a.q", "weight.quant_state.bitsandbytes__nf4"),
    ),
    ("a.experts.gate_up_proj_blocks", ("a.experts.gate_up_proj", "_blocks")),
    ("weight", ("", "weight")),
    ("a.weight.weight", ("a.weight", "weight")),
])  # fmt: skip
def test_the_owner_of_a_tensor(name, owner):
    """The module that a tensor belongs to, whatever its spelling."""
    assert owner_of(name) == owner


KEYS = ("quantization_config", "quantization", "quant_method", "bits", "text_config")
CONFIGS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["gptq", "awq"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)


PACKED_NAMES = st.sampled_from(
    [f"{X}.{piece}" for piece in ("weight", "scales", "qweight", "weight.absmax")]
)
ANY_NAMES = st.text(st.sampled_from("ab._w"), max_size=8) | PACKED_NAMES


@settings(max_examples=examples(200))
@given(
    st.dictionaries(
        ANY_NAMES, st.sampled_from(["U8", "I32", "U32", "BF16", "F8_E4M3", "X1"]), max_size=5
    ),
    CONFIGS,
)
def test_no_config_is_an_exception(dtypes, config):
    """What a hostile config says of its quantisation is at most not understood."""
    infos = {name: TensorInfo(name, dtype, (4, 4), "s", 0, 0) for name, dtype in dtypes.items()}
    found = packed_modules(
        infos, config if isinstance(config, dict) else {"quantization_config": config}
    )
    assert all(isinstance(name, str) and name.isprintable() for name in found.values())


def test_a_side_of_integers_alone_is_not_called_another_model():
    """All names and shapes are those of the base; what is wrong is the format of the numbers."""
    names = {"model.layers.0.self_attn.q_proj.weight": (8, 8), "model.norm.weight": (8,)}
    full = {name: TensorInfo(name, "F32", shape, "s", 0, 0) for name, shape in names.items()}
    packed = {name: TensorInfo(name, "I8", shape, "s", 0, 0) for name, shape in names.items()}
    base = Checkpoint("./base", None, "f", {}, full, {})
    refused = packed_modules(packed, {})
    tuned = Checkpoint("tuned", None, "g", {}, packed, {}, refused=refused)
    for one, other in ((base, tuned), (tuned, base)):
        with pytest.raises(ShadowError, match="every tensor of tuned is stored as I8") as error:
            pair_checkpoints(one, other, Filter())
        assert "back to floats" in str(error.value.hint)
