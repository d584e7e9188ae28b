"""Models that transformers made: every tensor has its place, every delta is NumPy's."""

import json
import re
from collections.abc import Callable, Iterator

import measuring
import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
from effort import chosen
from safetensors.torch import load_file

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.places.architecture import place_tensors
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import given_pair
from shadow.targets.references import parse_reference

Matrix = np.ndarray
Undo = Callable[[Matrix], Iterator[tuple[str, int | None, Matrix]]]

# ----------------------------------- the layouts once more, written for a person to check them


def rows(**sizes: int) -> Undo:
    """Parts one after another: rows(q=32, k=16) are rows 0-31 and 32-47."""

    def undo(W: Matrix) -> Iterator[tuple[str, int | None, Matrix]]:
        assert len(W) == sum(sizes.values())
        start = 0
        for module, size in sizes.items():
            yield module, None, W[start : start + size]
            start += size

    return undo


def groups(count: int, **sizes: int) -> Undo:
    """So many groups, each with so many rows of every part, in this order."""

    def undo(W: Matrix) -> Iterator[tuple[str, int | None, Matrix]]:
        step = sum(sizes.values())
        assert len(W) == count * step
        start = 0
        for module, size in sizes.items():
            cut = [W[g * step + start : g * step + start + size] for g in range(count)]
            yield module, None, np.concatenate(cut)
            start += size

    return undo


def turned(undo: Undo) -> Undo:
    return lambda W: undo(W.T)


def whole(module: str) -> Undo:
    return lambda W: iter([(module, None, W)])


def each(undo: Undo) -> Undo:
    """One matrix per expert along the first dimension."""
    return lambda W: (
        (module, expert, part) for expert in range(len(W)) for module, _, part in undo(W[expert])
    )


QKV = {"attn.q": 32, "attn.k": 16, "attn.v": 16}  # 4 heads of 8, 2 of them for keys and values
HEAD = {"attn.q": 8, "attn.k": 8, "attn.v": 8}
HEADS = {r"query_key_value\.weight": groups(4, **HEAD)}
MULTI_QUERY = {"attn.q": 32, "attn.k": 8, "attn.v": 8}
GATE_UP = {"mlp.gate": 48, "mlp.up": 48}
EXPERTS, DOWN = rows(**{"experts.gate": 48, "experts.up": 48}), whole("experts.down")
VISION = {"attn.q": 24, "attn.k": 24, "attn.v": 24}
CONV = {"linear_attn.conv_q": 12, "linear_attn.conv_k": 12, "linear_attn.conv_v": 20}
LINEAR = {"linear_attn.q": 12, "linear_attn.k": 12, "linear_attn.v": 20}
VIT = {r"visual.*attn\.qkv\.weight": rows(**VISION)}
POOL = {r"head\.attention\.in_proj_weight": rows(**VISION)}
UNDO: dict[str, dict[str, Undo]] = {
    "phi3": {r"qkv_proj\.weight": rows(**QKV), r"gate_up_proj\.weight": rows(**GATE_UP)},
    "glm4": {r"gate_up_proj\.weight": rows(**GATE_UP)},
    "falcon_grouped": {
        r"query_key_value\.weight": groups(2, **{"attn.q": 16, "attn.k": 8, "attn.v": 8})
    },
    "falcon_multi_query": {r"query_key_value\.weight": rows(**MULTI_QUERY)},
    "falcon_per_head": HEADS, "bloom": HEADS, "persimmon": HEADS,
    "gpt_bigcode": {r"c_attn\.weight": rows(**MULTI_QUERY)},
    "gpt_bigcode_per_head": {r"c_attn\.weight": groups(4, **HEAD)},
    "mpt": {r"Wqkv\.weight": rows(**{"attn.q": 32, "attn.k": 32, "attn.v": 32})},
    "codegen": {r"qkv_proj\.weight": groups(4, **{"attn.q": 8, "attn.v": 8, "attn.k": 8})},
    "modernbert_decoder": {r"mlp\.Wi\.weight": rows(**GATE_UP)},
    "dbrx": {
        r"Wqkv\.weight": rows(**QKV), r"mlp\.w1": whole("experts.gate"),
        r"mlp\.v1": whole("experts.up"), r"mlp\.w2": turned(DOWN),
    },
    "granitemoe": {
        r"input_linear\.weight": each(EXPERTS), r"output_linear\.weight": each(DOWN),
    },
    "granitemoehybrid": {
        r"moe\.input_linear\.weight": each(EXPERTS), r"moe\.output_linear\.weight": each(DOWN),
        r"shared_mlp\.input_linear\.weight": rows(**{"shared.gate": 24, "shared.up": 24}),
        r"shared_mlp\.output_linear\.weight": whole("shared.down"),
    },
    "jetmoe": {
        r"mlp\.input_linear\.weight": each(EXPERTS), r"mlp\.output_linear\.weight": each(DOWN),
        r"attention\.experts\.input_linear\.weight": each(whole("attn.q")),
        r"attention\.experts\.output_linear\.weight": each(whole("attn.o")),
        r"kv_proj\.weight": rows(**{"attn.k": 16, "attn.v": 16}),
    },
    "gpt_oss": {
        r"experts\.gate_up_proj$": each(turned(groups(48, **{"experts.gate": 1, "experts.up": 1}))),
        r"experts\.down_proj$": each(turned(DOWN)),
    },
    "llama4_text": {
        r"experts\.gate_up_proj$": each(turned(EXPERTS)),
        r"experts\.down_proj$": each(turned(DOWN)),
    },
    "minimax": {r"self_attn\.qkv_proj\.weight": groups(4, **HEAD)},
    "qwen3_next": {
        r"in_proj_qkvz\.weight": groups(
            2, **{"linear_attn.q": 6, "linear_attn.k": 6, "linear_attn.v": 10, "linear_attn.z": 10}
        ),
        r"in_proj_ba\.weight": groups(2, **{"linear_attn.b": 2, "linear_attn.a": 2}),
        r"conv1d\.weight": rows(**CONV),
    },
    "qwen3_5_text": {r"in_proj_qkv\.weight": rows(**LINEAR), r"conv1d\.weight": rows(**CONV)},
    "llava_onevision": POOL,
    "gemma3": {**POOL, "mm_input_projection_weight": turned(whole("projector.0"))},
    "paligemma": POOL, "qwen2_vl": VIT, "qwen2_5_vl": VIT, "qwen3_vl": VIT,
    "qwen3_vl_moe": {
        r"experts\.gate_up_proj$": each(rows(**{"experts.gate": 24, "experts.up": 24})),
        r"experts\.down_proj$": each(DOWN), **VIT,
    },
    "molmo2": {
        r"att_proj\.weight": rows(**QKV),
        r"ff_proj\.weight": rows(**{"mlp.up": 48, "mlp.gate": 48}),
        r"image_vit.*feed_forward\.w1\.weight": whole("mlp.up"),
    },
}  # fmt: skip
UNDO["llama4"] = UNDO["llama4_text"]
UNDO["qwen3_5"] = {**VIT, **UNDO["qwen3_5_text"]}
# Families of one tensor a matrix are alike but for names, which places/test_coverage.py looks at.
KINDS = chosen(planted.FAMILIES, UNDO)
# Rows one after another, in groups, by heads; stacks of experts, turned or not; convolutions.
LAYOUTS = (
    "phi3", "falcon_grouped", "codegen", "dbrx", "granitemoe", "gpt_oss", "qwen3_next", "molmo2",
)  # fmt: skip

# What the last words of a name mean in any family.
WORDS = {
    "q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.o",
    "query": "attn.q", "key": "attn.k", "value": "attn.v", "gate_proj": "mlp.gate",
    "up_proj": "mlp.up", "down_proj": "mlp.down", "fc1": "mlp.up", "fc2": "mlp.down",
    "dense_h_to_4h": "mlp.up", "dense_4h_to_h": "mlp.down", "c_fc": "mlp.up",
    "embed_tokens": "embed", "lm_head": "head", "q_a_proj": "mla.q_a", "q_b_proj": "mla.q_b",
    "kv_a_proj_with_mqa": "mla.kv_a", "kv_b_proj": "mla.kv_b", "dt_proj": "linear_attn.dt",
    "x_proj": "linear_attn.x", "patch_embedding": "patch_embed", "linear_1": "projector.0",
    "linear_2": "projector.1", "linear_fc1": "mlp.up", "linear_fc2": "mlp.down",
    "patch_conv": "patch_embed", "wte": "embed", "in_proj_z": "linear_attn.z",
    "in_proj": "linear_attn.in", "w1": "mlp.gate", "w2": "mlp.down", "w3": "mlp.up", "dense": None,
    "per_layer_input_gate": "per_layer.gate", "router": "router",
}  # fmt: skip
# What is of no known module, and why that is right.
OTHER = {
    r"_decay$": "buffers of MiniMax's linear attention, computed from the number of heads",
    r"rg_lru\.\w+_gate_weight$": "block-diagonal gates, one square block per head",
}
REASONS = {"gemma4": {"nonfinite"}}  # the bounds of its clipped layers are infinite
# Stacks whose blocks are counted on from those of the component's main stack.
LATER = {"mllama": (r"global_transformer", 2), "t5": (r"^decoder\.", 2), "bart": (r"decoder\.", 2)}


PROJECTOR = "projector|connector|merger|aligner|embed_vision|embed_audio|image_pooling|adapter"


def expected_component(name: str) -> str:
    if re.search(PROJECTOR, name):
        return "projector"
    if re.search(r"vision|visual|image_vit", name):
        return "vision"
    return "audio" if "audio" in name else "language"


def expected_module(name: str, component: str) -> str | None:
    words = name.removesuffix(".weight").split(".")
    module = WORDS.get(words[-1])
    if module is None or (component == "projector" and not module.startswith("projector")):
        return None
    if "cross_attn" in name or "encoder_attn" in name:
        return module.replace("attn", "cross_attn")
    if "linear_attn" in name:
        return module.replace("attn", "linear_attn") if "linear" not in module else module
    for word, group in (("experts", "experts"), ("shared", "shared")):
        if any(part.startswith(word) for part in words) and module.startswith("mlp"):
            module = module.replace("mlp", group)
    return module


def expected_matrices(
    kind: str, name: str, W: Matrix
) -> list[tuple[str | None, int | None, Matrix]]:
    """(module, expert, matrix) of everything in a tensor that has a spectrum."""
    for pattern, undo in UNDO.get(kind, {}).items():
        if re.search(pattern, name):
            folded = W.reshape(len(W), -1) if W.ndim > 3 or "conv1d" in name else W
            return [(module, expert, part) for module, expert, part in undo(folded)]
    expert = re.search(r"experts\.(\d+)\.", name)
    folded = W.reshape(len(W), -1) if W.ndim >= 2 else W.reshape(1, -1)
    module = expected_module(name, expected_component(name))
    return [(module, int(expert[1]) if expert else None, folded)]


def is_vector(name: str, W: Matrix) -> bool:
    is_bias = name.endswith(("bias", "bias_u", "bias_v")) and "attention_bias.weight" not in name
    return is_bias or min(W.shape) <= 1


@pytest.mark.parametrize("kind", chosen(planted.FAMILIES, LAYOUTS))
def test_every_matrix_of_a_family_is_placed_and_its_delta_is_numpys(kind, tmp_path):
    """One row for every tensor of both sides."""
    base = planted.saved(kind, tmp_path / "base")
    tuned = planted.perturbed(base, tmp_path / "tuned")
    pair = given_pair(parse_reference(str(base)), parse_reference(str(tuned)))
    result = run_pair(pair, Settings(Method(), Filter(), spectra=False), tmp_path / "out")
    tables = (result.folder / f"{name}.parquet" for name in ("matrices", "tensors"))
    matrices, tensors = (pq.read_table(path).to_pandas() for path in tables)
    deltas = matrices.query("subject == 'delta'")
    Wb, Wt = (
        {n: t.double().numpy() for n, t in load_file(f / "model.safetensors").items()}
        for f in (base, tuned)
    )
    assert sorted(zip(tensors["side"], tensors["tensor"], strict=True)) == sorted(
        (side, name) for side in ("base", "tuned") for name in Wb
    )
    skipped = set(tensors.query("status == 'skipped'")["reason"])
    assert skipped <= {"not_a_matrix", *REASONS.get(kind, ())}
    rows_of = dict(list(deltas.groupby("tensor")))
    for name, W in Wt.items():
        expected = [
            found for found in expected_matrices(kind, name, W) if not is_vector(name, found[2])
        ]
        found = rows_of.get(name)
        assert len(expected) == (0 if found is None else len(found)), name
        partners = [part for _, _, part in expected_matrices(kind, name, Wb[name])]
        for (module, expert, part), partner in zip(expected, partners, strict=False):
            where = found["expert"].isna() if expert is None else found["expert"] == expert
            if module:
                where &= found["module"] == module
            D = part - partner
            norm = np.linalg.norm(D)
            row = found[where & (abs(found["frobenius_norm"] / norm - 1) < 1e-6)]
            assert len(row) == 1, f"{name}: no row of {module} {expert} with the norm of its delta"
            sigma = np.linalg.svd(D, compute_uv=False)
            p = sigma / sigma.sum()
            rank = np.exp(-(p * np.log(p)).sum())
            assert row["effective_rank"].item() == pytest.approx(rank, rel=1e-5), name
            if size := np.linalg.norm(partner):
                assert row["relative_norm"].item() == pytest.approx(norm / size, rel=1e-6), name
            assert (row["rows"].item(), row["cols"].item()) == part.shape
        if found is not None:
            check_place(kind, name, found)


def check_place(kind: str, name: str, found) -> None:
    other = any(re.search(pattern, name) for pattern in OTHER)
    assert other == ("other" in set(found["module"])), f"{name} is {set(found['module'])}"
    assert set(found["component"]) == {expected_component(name)}, name
    number = re.search(
        r"\b(?:layers?|h|blocks?|resblocks|deepstack_merger_list|encoder\.layer)\.(\d+)\.", name
    )
    pattern, offset = LATER.get(kind, ("(?!)", 0))
    expected = None if number is None else int(number[1]) + offset * bool(re.search(pattern, name))
    layers = set(found["layer"].astype(object).where(found["layer"].notna(), None))
    assert layers == {expected}, name


# Where the two layouts that transformers saves are not one row order, or not one set of tensors:
# one table in memory, two in the file.
NOT_ONE = {"molmo2": {"model.transformer.wte.new_embedding"}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_pairs_with_itself_in_the_layout_that_transformers_has_in_memory(kind, tmp_path):
    """transformers 5 renames, splits, fuses, stacks and turns tensors when it loads a file."""
    file, memory = (open_folder(str(side)) for side in planted.saved_twice(kind, tmp_path))
    for base, tuned in ((file, memory), (memory, file)):
        assert not measuring.differences(base, tuned, NOT_ONE.get(kind, set()))


def test_every_view_is_a_view(tmp_path):
    """No part of any tensor of any family is a copy: it lies inside the tensor's own memory."""
    for kind in ("gpt_oss", "qwen3_next", "dbrx", "falcon_grouped", "internvl"):
        folder = planted.saved(kind, tmp_path / kind)
        tensors = load_file(folder / "model.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = json.loads((folder / "config.json").read_text())
        for name, parts in place_tensors(shapes, config).items():
            storage = tensors[name].untyped_storage()
            for part in parts:
                view = part.view(tensors[name])
                assert view.untyped_storage().data_ptr() == storage.data_ptr(), name
                assert view.shape[:-1].numel() == part.shape(shapes[name])[0]
                assert view.shape[-1] == part.shape(shapes[name])[1]
                assert view.ndim <= 3
            entries = sum(part.view(tensors[name]).numel() for part in parts)
            assert entries == tensors[name].numel(), name
