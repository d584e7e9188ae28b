"""One model in two layouts: names, fused and split projections, stacks of experts.

What is equal pairs as equal, in both directions; what only looks equal is never subtracted.
"""

import re

import measuring
import planted
import pytest
import torch
from safetensors.torch import load_file

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.errors import ShadowError
from shadow.places.architecture import place_tensors

Tensors = dict[str, torch.Tensor]


def renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    """The tensors under other names; None where a name is in the way."""
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        assert name not in out
        out[name] = tensor
    return out


def fused(tensors: Tensors, into: str, *parts: str, groups: int = 1) -> Tensors:
    """Matrices and biases `.{part}.` of each block as one `.{into}.`, by groups of rows or not."""
    out = dict(tensors)
    for name in tensors:
        if f".{parts[0]}." in name:
            pieces = [out.pop(name.replace(f".{parts[0]}.", f".{part}.")) for part in parts]
            cut = [piece.reshape(groups, -1, *piece.shape[1:]) for piece in pieces]
            out[name.replace(f".{parts[0]}.", f".{into}.")] = torch.cat(cut, 1).flatten(0, 1)
    return out


def stacked(
    tensors: Tensors, into: str, *parts: str, turned: bool = False, woven: bool = False
) -> Tensors:
    """Experts `.experts.N.{part}.weight` of each block as one three-dimensional tensor."""
    out = dict(tensors)
    for name in tensors:
        if f".experts.0.{parts[0]}.weight" in name:
            head = name.removesuffix(f"0.{parts[0]}.weight")
            count = sum(
                other.startswith(head) and other.endswith(f".{parts[0]}.weight")
                for other in tensors
            )
            experts = []
            for expert in range(count):
                pieces = [out.pop(f"{head}{expert}.{part}.weight") for part in parts]
                matrix = torch.stack(pieces, 1).flatten(0, 1) if woven else torch.cat(pieces)
                experts.append(matrix.T if turned else matrix)
            out[head + into] = torch.stack(experts)
    return out


QKV = ("q_proj", "k_proj", "v_proj")
INTERNLM2 = (
    (r"self_attn\.wqkv", "attention.wqkv"), (r"self_attn\.o_proj", "attention.wo"),
    (r"embed_tokens", "tok_embeddings"), (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.up_proj", "feed_forward.w3"), (r"mlp\.down_proj", "feed_forward.w2"),
    (r"input_layernorm", "attention_norm"), (r"post_attention_layernorm", "ffn_norm"),
    (r"lm_head", "output"),
)  # fmt: skip
QWEN = (
    (r"model\.layers", "transformer.h"), (r"self_attn\.c_attn", "attn.c_attn"),
    (r"self_attn\.o_proj", "attn.c_proj"), (r"mlp\.gate_proj", "mlp.w2"),
    (r"mlp\.up_proj", "mlp.w1"), (r"mlp\.down_proj", "mlp.c_proj"),
    (r"model\.norm", "transformer.ln_f"), (r"input_layernorm", "ln_1"),
    (r"post_attention_layernorm", "ln_2"), (r"model\.embed_tokens", "transformer.wte"),
)  # fmt: skip
CHATGLM = (
    (r"model\.layers", "transformer.encoder.layers"), (r"mlp\.down_proj", "mlp.dense_4h_to_h"),
    (r"self_attn\.query_key_value", "self_attention.query_key_value"),
    (r"self_attn\.o_proj", "self_attention.dense"), (r"lm_head", "transformer.output_layer"),
    (r"model\.norm", "transformer.encoder.final_layernorm"),
    (r"model\.embed_tokens", "transformer.embedding.word_embeddings"),
)  # fmt: skip
NEOX = (
    (r"model\.layers", "gpt_neox.layers"),
    (r"self_attn\.query_key_value", "attention.query_key_value"),
    (r"self_attn\.o_proj", "attention.dense"), (r"mlp\.up_proj", "mlp.dense_h_to_4h"),
    (r"mlp\.down_proj", "mlp.dense_4h_to_h"), (r"model\.norm", "gpt_neox.final_layer_norm"),
    (r"model\.embed_tokens", "gpt_neox.embed_in"), (r"lm_head", "embed_out"),
)  # fmt: skip
MOLMO = (
    (r"model\.layers", "model.transformer.blocks"), (r"self_attn\.att_proj", "att_proj"),
    (r"self_attn\.o_proj", "attn_out"),
    (r"mlp\.ff_proj", "ff_proj"), (r"mlp\.down_proj", "ff_out"),
    (r"model\.embed_tokens\.weight", "model.transformer.wte.embedding"),
    (r"lm_head", "model.transformer.ff_out"), (r"model\.norm", "model.transformer.ln_f"),
    (r"input_layernorm", "attn_norm"), (r"post_attention_layernorm", "ff_norm"),
)  # fmt: skip
FOUR = {"num_attention_heads": 4}
GROUPED = {**FOUR, "num_key_value_heads": 2}
# model_type: (changes to a llama with 4 heads, 2 of them for keys and values; heads in its config,
# None without a config)
OF_LLAMA = {
    "phi3": (
        lambda t: fused(fused(t, "qkv_proj", *QKV), "gate_up_proj", "gate_proj", "up_proj"), GROUPED
    ),
    "baichuan": (lambda t: fused(t, "W_pack", *QKV), FOUR),
    "internlm2": (lambda t: renamed(fused(t, "wqkv", *QKV, groups=2), *INTERNLM2), GROUPED),
    "qwen": (lambda t: renamed(fused(t, "c_attn", *QKV), *QWEN), FOUR),
    "chatglm": (lambda t: renamed(
        fused(fused(t, "query_key_value", *QKV), "dense_h_to_4h", "gate_proj", "up_proj"), *CHATGLM
    ), {**FOUR, "multi_query_group_num": 2}),
    "molmo": (lambda t: renamed(
        fused(fused(t, "att_proj", *QKV), "ff_proj", "up_proj", "gate_proj"), *MOLMO
    ), GROUPED),
    "wrapped": (
        lambda t: renamed(t, (r"^model\.", "language_model.model."), (r"^lm", "language_model.lm")),
        None,
    ),
    "wrapped anew": (lambda t: renamed(t, (r"^model\.", "model.language_model.")), None),
    "of a trainer": (lambda t: renamed(t, (r"^", "_orig_mod.module.")), None),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Tensors of a llama; with as many heads for keys and values as for queries, and with fewer."""
    folder = tmp_path_factory.mktemp("llama")
    grouped = load_file(planted.saved("llama", folder) / "model.safetensors")
    plain = dict(grouped)
    for name in grouped:
        if "k_proj" in name or "v_proj" in name:
            plain[name] = torch.randn(64, 64)
    return {"grouped": grouped, "plain": plain}


def opened(folder, tensors: Tensors, config: dict):
    return open_folder(str(planted.write(folder, tensors, config)))


def pairing_of(folder, one, other):
    """What pairs of two (tensors, config), and what does not."""
    return pair_checkpoints(opened(folder / "a", *one), opened(folder / "b", *other), Filter())


def lines_up(tmp_path, one, other) -> None:
    """Two (tensors, config) of one model pair as equal, completely, in both directions."""
    sides = opened(tmp_path / "one", *one), opened(tmp_path / "other", *other)
    assert not measuring.differences(*sides)
    assert not measuring.differences(*reversed(sides))


@pytest.mark.parametrize("layout", OF_LLAMA)
def test_a_llama_in_another_layout_is_the_same_model(layout, llama, tmp_path):
    """Fused by rows or by groups of heads, renamed, or wrapped on one side: all of it pairs."""
    change, heads = OF_LLAMA[layout]
    tensors = llama["plain" if layout in ("baichuan", "qwen") else "grouped"]
    config = {} if heads is None else {"model_type": layout, **heads}
    lines_up(tmp_path, (tensors, {"model_type": "llama", **GROUPED}), (change(tensors), config))


def test_neox_projections_pair_with_separate_ones_and_their_biases_do_too(tmp_path):
    """The rows of q, k and v alternate by head in one; a fused bias is split as its matrix is."""
    t = {name: torch.randn(32, 16) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    t["model.norm.weight"] = torch.ones(16)
    for name in (*QKV, "o_proj"):
        t[f"model.layers.0.self_attn.{name}.weight"] = torch.randn(16, 16)
        t[f"model.layers.0.self_attn.{name}.bias"] = torch.randn(16)
    t["model.layers.0.mlp.up_proj.weight"] = torch.randn(24, 16)
    t["model.layers.0.mlp.down_proj.weight"] = torch.randn(16, 24)
    neox = renamed(fused(t, "query_key_value", *QKV, groups=4), *NEOX)
    lines_up(tmp_path, (t, {}), (neox, {"model_type": "gpt_neox", "num_attention_heads": 4}))


def test_without_a_head_count_a_grouped_projection_stays_whole(llama, tmp_path):
    """The fused projection is not guessed apart: it pairs with its like, and nothing else."""
    change, heads = OF_LLAMA["internlm2"]
    tensors, silent = llama["grouped"], {"model_type": "internlm2"}
    lines_up(tmp_path / "a", (change(tensors), silent), (change(tensors), silent))
    pairs, skipped = pairing_of(
        tmp_path / "b", (tensors, silent | heads), (change(tensors), silent)
    )
    modules = {pair.place.module for pair in pairs}
    assert {module for module in modules if module.startswith("attn.")} == {"attn.o"}
    assert {(s.side, s.place.module, s.reason) for s in skipped} == {
        *(("base", module, "only_in_base") for module in ("attn.q", "attn.k", "attn.v")),
        ("tuned", "attn.qkv", "only_in_tuned"),
    }


def moe(folder, kind: str) -> Tensors:
    tensors = load_file(planted.saved(kind, folder) / "model.safetensors")
    return renamed(tensors, (r"model\.language_model\.", "model."))


GATE_UP, DOWN = ("gate_up_proj", "gate_proj", "up_proj"), ("down_proj", "down_proj")
STACKS = {
    "transformers 5": (lambda t: stacked(stacked(t, *GATE_UP), *DOWN), "qwen3_moe"),
    "turned": (lambda t: turned_stacks(t), "qwen3_moe"),
    "llama 4": (lambda t: renamed(turned_stacks(t), (r"\.mlp\.", ".feed_forward.")), "llama4_text"),
    "gpt-oss": (lambda t: turned_stacks(t, woven=True), "gpt_oss"),
    "granite": (lambda t: renamed(
        stacked(stacked(t, *GATE_UP), *DOWN),
        (r"mlp\.experts\.gate_up_proj", "block_sparse_moe.input_linear.weight"),
        (r"mlp\.experts\.down_proj", "block_sparse_moe.output_linear.weight"),
        (r"mlp\.gate\.weight", "block_sparse_moe.router.layer.weight"),
    ), "granitemoe"),
    "separate stacks": (lambda t: renamed(
        stacked(stacked(stacked(t, "gate_proj", "gate_proj"), "up_proj", "up_proj"), *DOWN),
        (r"experts\.(\w+)$", r"switch_mlp.\1.weight"),
    ), "qwen3_moe"),
    "mixtral": (lambda t: renamed(
        t, (r"mlp\.(gate|experts)\.", r"block_sparse_moe.\1."),
        (r"(experts\.\d+)\.gate_proj", r"\1.w1"), (r"(experts\.\d+)\.up_proj", r"\1.w3"),
        (r"(experts\.\d+)\.down_proj", r"\1.w2"),
    ), "mixtral"),
}  # fmt: skip


def turned_stacks(tensors: Tensors, woven: bool = False) -> Tensors:
    return stacked(stacked(tensors, *GATE_UP, turned=True, woven=woven), *DOWN, turned=True)


@pytest.mark.parametrize("layout", STACKS)
def test_experts_pair_one_by_one_however_they_are_stacked(layout, tmp_path):
    """Apart or in a stack, upright or turned, gate and up alternating or not: the same."""
    tensors = moe(tmp_path / "model", "qwen3_moe")
    change, model_type = STACKS[layout]
    config = {"model_type": "qwen3_moe", "hidden_size": 32}
    lines_up(
        tmp_path,
        (tensors, config),
        (change(tensors), {"model_type": model_type, "hidden_size": 32}),
    )


def test_a_stack_whose_hidden_size_is_twice_its_width_is_told_by_its_down_projection(tmp_path):
    """gate_up of (2f, d) with d = 2f is square: the shape of down alone tells how it lies."""
    experts = {
        f"model.layers.0.mlp.experts.{e}.{part}.weight": torch.randn(shape)
        for part, shape in (("gate_proj", (8, 16)), ("up_proj", (8, 16)), ("down_proj", (16, 8)))
        for e in range(2)
    }
    for turned in (False, True):
        stack = stacked(stacked(experts, *GATE_UP, turned=turned), *DOWN, turned=turned)
        assert stack["model.layers.0.mlp.experts.gate_up_proj"].shape == (2, 16, 16)
        lines_up(tmp_path / str(turned), (experts, {}), (stack, {}))


LLAVA = (
    (r"^language_model\.model\.", "model."), (r"^language_model\.lm_head", "lm_head"),
    (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^vision_tower\.(?:vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_the_layouts_of_llava_are_one_model(kind, tmp_path):
    """As first released, converted, as transformers 5 has it; with and without the prefix."""
    file, memory = (
        load_file(side / "model.safetensors") for side in planted.saved_twice(kind, tmp_path)
    )
    config = {"model_type": kind}
    original = renamed(file, *LLAVA, (r"^image_newline", "model.image_newline"))
    towered = renamed(file, (r"^vision_tower\.", "vision_tower.vision_model."))
    for i, other in enumerate((memory, original, towered)):
        lines_up(tmp_path / str(i), (file, config), (other, config))


def test_a_vision_tower_pairs_with_the_model_it_came_from(tmp_path):
    """CLIP has its vision model under `vision_model.`, beside a text model of no component."""
    llava = load_file(planted.saved("llava", tmp_path / "llava") / "model.safetensors")
    tower = {name: tensor for name, tensor in llava.items() if name.startswith("vision_tower.")}
    clip = renamed(tower, (r"^vision_tower\.", "vision_model."))
    pairs, skipped = pairing_of(tmp_path, (clip, {}), (llava, {}))
    paired = {pair.tuned.info.name for pair in pairs if pair.base}
    assert paired == set(tower)
    assert {pair.place.component for pair in pairs if not pair.base} == {"language", "projector"}
    assert {(s.side, s.reason) for s in skipped} == {("tuned", "not_a_matrix")}  # without a base


INTERNVL = (
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"^vision_tower\.", "vision_model."), (r"attention\.qkv", "attn.qkv"),
    (r"attention\.projection_layer", "attn.proj"), (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"), (r"lambda_1", "ls1"), (r"lambda_2", "ls2"),
    (r"embeddings\.cls_token", "embeddings.class_embedding"),
    (r"patch_embeddings\.projection", "patch_embedding"),
    (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
    (r"multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"multi_modal_projector\.linear_1", "mlp1.1"), (r"multi_modal_projector\.linear_2", "mlp1.3"),
)  # fmt: skip


def test_the_layouts_of_internvl_are_one_model(tmp_path):
    """OpenGVLab's own code fuses the tower's projections and numbers the projector's modules."""
    hf = load_file(planted.saved("internvl", tmp_path / "hf") / "model.safetensors")
    own = renamed(
        fused(hf, "qkv", *QKV), (r"^(language_model.*)\.qkv\.", r"\1.qkv_proj."), *INTERNVL
    )
    config = {"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2", **GROUPED}}
    lines_up(tmp_path, (hf, {"model_type": "internvl", "text_config": GROUPED}), (own, config))


def test_a_gated_tower_that_numbers_its_layers_is_read_as_such(tmp_path):
    """AIMv2's own files call gate, down, up fc1, fc2, fc3; fc1 of a tower without fc3 is up."""
    block = "vision_tower.trunk.blocks.0"
    own = {f"{block}.mlp.{fc}.weight": torch.randn(40, 24) for fc in ("fc1", "fc3")}
    shapes = {"mlp.fc2": (24, 40), "attn.qkv": (72, 24), "attn.proj": (24, 24), "norm_1": (24,)}
    own |= {f"{block}.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    rules = (
        (r"trunk\.blocks", "encoder.layers"), (r"mlp\.fc1", "ffn.gate_proj"),
        (r"mlp\.fc3", "ffn.up_proj"), (r"mlp\.fc2", "ffn.down_proj"),
        (r"attn\.proj", "attention.out_proj"), (r"norm_1", "rms_norm1"),
    )  # fmt: skip
    q, k, v = own[f"{block}.attn.qkv.weight"].chunk(3)
    hf = {name: tensor for name, tensor in renamed(own, *rules).items() if "qkv" not in name}
    hf |= {
        f"vision_tower.encoder.layers.0.attention.{n}_proj.weight": t
        for n, t in zip("qkv", (q, k, v), strict=True)
    }
    lines_up(tmp_path, (own, {}), (hf, {}))


def test_blocks_counted_from_one_pair_with_blocks_counted_from_zero(tmp_path):
    """The first release of Phi has the embedding as layer 0 and the head as the last."""
    phi = load_file(planted.saved("phi", tmp_path / "phi") / "model.safetensors")
    own = fused(phi, "Wqkv", "q_proj", "k_proj", "v_proj")
    own = renamed(
        own, (r"^model\.layers\.1\.", "layers.2."), (r"^model\.layers\.0\.", "layers.1."),
        (r"self_attn\.", "mixer."), (r"mixer\.dense", "mixer.out_proj"), (r"input_layernorm", "ln"),
        (r"^model\.embed_tokens", "layers.0.wte"), (r"^lm_head", "layers.3.linear"),
        (r"^model\.final_layernorm", "layers.3.ln"),
    )  # fmt: skip
    config = {"model_type": "mixformer-sequential", "n_head": 4, "n_head_kv": 2}
    sides = opened(tmp_path / "one", phi, GROUPED), opened(tmp_path / "two", own, config)
    for base, tuned in (sides, sides[::-1]):
        apart = measuring.differences(base, tuned)
        assert len(apart) == 4
        # a norm of the last layer's
        assert all("layers.3.ln" in text or "final_layernorm" in text for text in apart)


def test_rotary_halves_in_another_order_are_not_subtracted(llama, tmp_path):
    """Meta's and Mistral's files have the rows of q and k in pairs: equal shapes, other rows."""
    tensors = llama["grouped"]
    own = ((r"^model\.", ""), (r"self_attn\.([qkvo])_proj", r"attention.w\1"), *INTERNLM2[2:])
    consolidated = renamed(tensors, *own)
    pairs, skipped = pairing_of(tmp_path, (tensors, {}), (consolidated, {}))
    assert {s.place.module for s in skipped} == {"attn.q", "attn.k"}
    assert {s.reason for s in skipped} == {"only_in_base", "only_in_tuned"}
    assert {p.place.module for p in pairs} >= {"attn.v", "attn.o", "mlp.gate", "embed", "head"}
    lines_up(tmp_path / "c", (consolidated, {}), (consolidated, {}))


def test_convolutions_with_channels_last_are_not_subtracted(tmp_path):
    """Folded into (out, rest) they have as many columns, in another order."""
    W = torch.randn(8, 3, 4, 4)
    tower = {
        "vision_tower.embeddings.patch_embedding.weight": W,
        "model.layers.0.mlp.up_proj.weight": torch.randn(4, 4),
    }
    # nor is what a linear layer may have in any order
    for number, other in enumerate((W.permute(0, 2, 3, 1), W.flatten(1))):
        changed = {**tower, "vision_tower.embeddings.patch_embedding.weight": other}
        _, skipped = pairing_of(tmp_path / str(number), (tower, {}), (changed, {}))
        assert {(s.side, s.reason) for s in skipped} == {
            (side, "shape_differs") for side in ("base", "tuned")
        }


@pytest.mark.parametrize("first", ["mtp.", "model.mtp."])
def test_blocks_of_a_multi_token_predictor_do_not_pair_with_the_model(first, tmp_path):
    """They are counted on from the model's own, and never compared with them."""
    block = "layers.0.self_attn.q_proj.weight"
    model = {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(4, 4) for i in range(3)}
    own = {f"{first}{block}": torch.randn(4, 4), f"{first}fc.weight": torch.randn(4, 8)}
    tuned = opened(tmp_path / "b", model | own, {})
    pairs, skipped = pair_checkpoints(opened(tmp_path / "a", model, {}), tuned, Filter())
    assert {(p.base.info.name, p.tuned.info.name) for p in pairs} == {
        (name, name) for name in model
    }
    assert {(s.info.name, s.place.layer, s.place.module, s.reason) for s in skipped} == {
        (f"{first}{block}", 3, "attn.q", "only_in_tuned"),
        (f"{first}fc.weight", None, "mtp", "only_in_tuned"),
    }
    assert not measuring.differences(tuned, tuned)


def test_heads_that_a_family_ties_are_tied_without_a_word_in_the_config(tmp_path):
    """Gemma's config does not mention it: a head that a trainer stored is the embedding."""
    model = {
        "model.embed_tokens.weight": torch.randn(16, 8),
        "model.layers.0.mlp.up_proj.weight": torch.randn(4, 8),
    }
    stored = {**model, "lm_head.weight": model["model.embed_tokens.weight"].clone()}
    for model_type, reason in (("gemma2", "tied"), ("llama", "only_in_tuned")):
        config = {"model_type": model_type}
        _, skipped = pairing_of(tmp_path / reason, (model, config), (stored, config))
        assert [(s.info.name, s.reason) for s in skipped] == [("lm_head.weight", reason)]


def test_layouts_that_share_nothing_are_not_a_pair(llama, tmp_path):
    """A vision tower is not a base of a text model, whatever the shapes."""
    text = {"model.layers.0.mlp.fc1.weight": torch.randn(8, 8)}
    tower = {"vision_tower.encoder.layers.0.mlp.fc1.weight": torch.randn(8, 8)}
    with pytest.raises(ShadowError, match="share no tensor"):
        pairing_of(tmp_path, (text, {}), (tower, {}))


def test_blocks_that_look_at_images_leave_the_text_model_its_numbers(tmp_path):
    """Of Llama 3.2 Vision the text model's own pair with the blocks that they came from."""
    text, wrapped = {}, {}
    for layer, inside in enumerate((0, 2, 3, 5)):
        for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight"):
            one = text[f"model.layers.{layer}.{name}"] = torch.randn(4, 4)
            wrapped[f"language_model.model.layers.{inside}.{name}"] = one
    for inside in (1, 4):
        for name in ("cross_attn.q_proj", "mlp.up_proj"):
            wrapped[f"language_model.model.layers.{inside}.{name}.weight"] = torch.randn(4, 4)
    base = opened(tmp_path / "a", text, {})
    tuned = opened(tmp_path / "b", wrapped, {"model_type": "mllama"})
    crossing = [name for name in wrapped if ".1." in name or ".4." in name]
    assert not measuring.differences(base, tuned, crossing)
    skipped = pair_checkpoints(base, tuned, Filter())[1]
    assert sorted((s.place.layer, s.place.module, s.reason) for s in skipped) == [
        (n, module, "only_in_tuned") for n in (4, 5) for module in ("cross_attn.q", "mlp.up")
    ]
    assert not measuring.differences(tuned, tuned)


LAYER = "model.layers.0.self_attn."
SPLITS = [
    (f"{LAYER}qkv_proj", (64, 32), {**GROUPED, "hidden_size": 32}, "qkv"),
    (f"{LAYER}qkv_proj", (64, 32), {**FOUR, "hidden_size": 32}, ""),
    (f"{LAYER}qkv_proj", (96, 32), {**FOUR, "head_dim": 8}, "qkv"),
    (f"{LAYER}qkv_proj", (48, 32), {**FOUR, "head_dim": 8}, ""),
    (f"{LAYER}query_key_value", (96, 32), {**FOUR, "hidden_size": 32}, ""),
    (f"{LAYER}W_pack", (96, 32), {}, "qkv"), (f"{LAYER}W_pack", (60, 32), {}, ""),
    ("visual.blocks.0.attn.qkv", (96, 32), {}, "qkv"),
    ("visual.blocks.0.attn.qkv", (48, 32), {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "config", "modules"), SPLITS)
def test_a_split_that_the_shapes_contradict_is_not_made(name, shape, config, modules):
    """Heads of another size than the config says, or thirds that are not square: no split."""
    parts = place_tensors({f"{name}.weight": shape}, config)[f"{name}.weight"]
    assert [part.place.module for part in parts] == (
        [f"attn.{module}" for module in modules] or ["attn.qkv"]
    )
