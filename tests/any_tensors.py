"""Names and shapes of tensors, and configs, as no model has them: for properties of names."""

from hypothesis import strategies as st

from shadow.places.names import name_rules

PIECES = {
    "wrapper": [
        "", "model.", "language_model.model.", "model.language_model.", "transformer.",
        "vision_tower.", "visual.", "model.vision_tower.vision_model.", "audio_tower.",
        "multi_modal_projector.", "mtp.", "odd.", "decoder.",
    ],
    "block": [
        "", "layers.0.", "layers.1.", "h.0.", "blocks.7.", "encoder.layers.0.",
        "global_transformer.layers.0.", "layers.999999.", "layers.12345678.",
        "deepstack_merger_list.0.",
    ],
    "rest": [
        "self_attn.q_proj", "self_attn.qkv_proj", "attention.query_key_value",
        "self_attention.query_key_value", "attention.wqkv", "attn.qkv", "attn.in_proj_weight",
        "attn.c_attn", "attn.Wqkv", "mlp.gate_up_proj", "mlp.up_proj", "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj", "mlp.experts.3.up_proj", "experts.w13_weight",
        "block_sparse_moe.input_linear", "ffn.experts.mlp.w1", "ffn.experts.mlp.w2",
        "mlp.shared_experts.gate_up_proj", "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba",
        "linear_attn.in_proj_qkv", "linear_attn.conv1d", "embed_tokens", "lm_head",
        "input_layernorm", "norm1", "linear_1", "patch_embed.proj", "wte",
        "self_attn.experts.input_linear", "mm_input_projection_weight", "mlp.experts.odd",
        "cls_token", "#", "layers.#.x", "experts.@.w1",
    ],
    "end": [".weight", ".bias", "", "_bias", ".qweight", ".scales", ".weight.absmax"],
}  # fmt: skip
NAMES_OF_ALL_KINDS = st.one_of(
    st.tuples(*(st.sampled_from(pieces) for pieces in PIECES.values())).map("".join),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=30),
)
TYPES = sorted(
    {kind for rule in name_rules().rows for kind in rule.conditions.model_types}
    | {"gpt2", "llama4", "dbrx"}
)
COUNTS = sorted({key for each in name_rules().counts.values() for keys in each for key in keys})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.integers(), max_size=2), st.sampled_from(TYPES), st.just({}),
)  # fmt: skip
KEYS = [
    "model_type", "multi_query", "new_decoder_architecture", "tie_word_embeddings",
    "quantization_config", *COUNTS,
]  # fmt: skip
FLAT = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6)
SENSIBLE = st.fixed_dictionaries(
    {"model_type": st.sampled_from(TYPES), **dict.fromkeys(COUNTS, st.integers(1, 4))}
)
CONFIGS = st.builds(
    lambda flat, text, vision: {**flat, "text_config": text, "vision_config": vision},
    st.one_of(FLAT, SENSIBLE),
    st.one_of(FLAT, ODD),
    st.one_of(FLAT, ODD),
)  # fmt: skip
SHAPES = st.dictionaries(
    NAMES_OF_ALL_KINDS, st.lists(st.integers(0, 12), max_size=4).map(tuple), max_size=8
)
