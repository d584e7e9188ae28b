"""Text models inside models of images and sound, under the names of released checkpoints."""

import pytest

from shadow.places.architecture import Place, place_tensors

# tensors of released models of remote code or of other libraries, `.weight` at their ends but where
# a / is, with the component and the module of each
RELEASED = """
xgen-mm:
  vlm.lang_model.model.layers.0.self_attn.q_proj language attn.q
  vlm.lang_model.model.embed_tokens language embed
  vlm.lang_model.lm_head language head
  vlm.vision_encoder.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
  vlm.vision_tokenizer.latents/ projector embed
  vlm.vision_tokenizer.layers.0.0.to_q projector attn.q
  vlm.vision_tokenizer.layers.0.1.3 projector mlp.down
Flamingo:
  lang_encoder.model.layers.0.self_attn.q_proj language attn.q
  lang_encoder.lm_head language head
  perceiver.layers.0.0.to_q projector attn.q
MiniCPM-o:
  llm.model.layers.0.self_attn.q_proj language attn.q
  vpm.encoder.layers.0.self_attn.q_proj vision attn.q
  resampler.kv_proj projector projector.0
  apm.layers.0.self_attn.q_proj audio attn.q
  audio_projection_layer.linear1 projector projector.0
  tts.model.layers.0.self_attn.q_proj audio attn.q
Ovis:
  llm.model.layers.0.self_attn.q_proj language attn.q
  visual_tokenizer.backbone.trunk.blocks.0.attn.q vision attn.q
  visual_tokenizer.backbone.preprocessor.patchifier.proj vision patch_embed
  vte vision embed
DeepSeek-VL2:
  language.model.layers.0.self_attn.q_proj language attn.q
  language.model.embed_tokens language embed
  language.lm_head language head
  vision.blocks.0.attn.q vision attn.q
  vision.patch_embed.proj vision patch_embed
  projector.layers.0 projector projector.0
DeepSeek-VL:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  vision_model.vision_tower_high.vision_tower.blocks.0.attn.q vision attn.q
  vision_model.vision_tower_low.vision_tower.blocks.0.attn.q vision attn.q
  aligner.high_up_proj projector projector.0
  aligner.low_up_proj projector projector.0
DeepSeek-VL of 7B in transformers:
  model.language_model.layers.0.self_attn.q_proj language attn.q
  model.aligner.proj projector projector.0
  model.aligner.vision_proj projector other
Phi-3-V:
  model.layers.0.self_attn.q_proj language attn.q
  model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1 vision mlp.up
  model.vision_embed_tokens.img_projection.0 projector projector.0
  model.vision_embed_tokens.img_projection.2 projector projector.1
Phi-4-multimodal:
  model.layers.0.self_attn.q_proj language attn.q
  model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.self_attn.q_proj vision attn.q
  model.embed_tokens_extend.image_embed.img_projection.0 projector projector.0
  model.embed_tokens_extend.audio_embed.encoder.encoders.0.self_attn.linear_q audio attn.q
  model.embed_tokens_extend.audio_embed.audio_projection.speech.0 projector projector.0
  model.embed_tokens_extend.audio_embed.audio_projection.vision.0 projector projector.0
Cambrian:
  model.layers.0.self_attn.q_proj language attn.q
  model.vision_tower_aux_list.0.vision_tower.vision_model.encoder.layers.0.mlp.fc1 vision mlp.up
  model.vision_tower_aux_list.1.vision_tower.blocks.0.attn.q vision attn.q
  model.mm_projector_aux_0.0 projector projector.0
  model.mm_projector_aux_1.0 projector projector.0
  model.vision_sampler_0.layers.0.cross_attn.q_proj projector cross_attn.q
Mini-Gemini:
  model.layers.0.self_attn.q_proj language attn.q
  model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
  model.vision_tower_aux.vision_stages.0.blocks.0.mlp.fc1 vision mlp.up
  model.vlm_uni_query_projector.1 projector projector.0
  model.vlm_uni_val_projector.1 projector projector.0
BLIP-2 of LAVIS:
  visual_encoder.blocks.0.attn.q vision attn.q
  Qformer.bert.encoder.layer.0.attention.self.query projector attn.q
  llm_model.model.layers.0.self_attn.q_proj language attn.q
  llm_proj projector projector.0
MiniGPT-4:
  llama_model.model.layers.0.self_attn.q_proj language attn.q
  llama_model.lm_head language head
  llama_proj projector projector.0
mPLUG-Owl:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
  abstractor.encoder.layers.0.crossattention.attention.query projector cross_attn.q
Qwen-Audio:
  transformer.h.0.attn.c_proj language attn.o
  transformer.audio.blocks.0.attn.query audio attn.q
SALMONN:
  llama_model.model.layers.0.self_attn.q_proj language attn.q
  speech_encoder.layers.0.self_attn.q_proj audio attn.q
  beats.encoder.layers.0.self_attn.q_proj audio attn.q
  speech_Qformer.bert.encoder.layer.0.attention.self.query projector attn.q
  speech_llama_proj projector projector.0
GLM-4V:
  transformer.encoder.layers.0.self_attention.dense language attn.o
  transformer.vision.transformer.layers.0.attention.dense vision attn.o
  transformer.vision.patch_embedding.proj vision patch_embed
  transformer.vision.linear_proj.linear_proj projector projector.0
  transformer.vision.linear_proj.dense_4h_to_h projector mlp.down
CogVLM:
  model.layers.0.self_attn.language_expert_dense language attn.o
  model.layers.0.self_attn.vision_expert_dense language attn.o
  model.layers.0.mlp.language_mlp.gate_proj language mlp.gate
  model.layers.0.mlp.vision_mlp.gate_proj language mlp.gate
  model.vision.transformer.layers.0.attention.dense vision attn.o
  model.vision.linear_proj.gate_proj projector mlp.gate
moondream:
  text_model.transformer.h.0.mixer.Wqkv language attn.qkv
  text_model.transformer.h.0.mixer.out_proj language attn.o
  text_model.lm_head.linear language head
  vision_encoder.encoder.model.visual.blocks.0.attn.q vision attn.q
  vision_encoder.projection.mlp.fc1 projector projector.0
moondream of 2025:
  model.text.blocks.0.attn.proj language attn.o
  model.text.wte/ language embed
  model.text.lm_head language head
  model.vision.blocks.0.attn.proj vision attn.o
  model.vision.proj_mlp.fc1 projector projector.0
InternLM-XComposer:
  model.layers.0.attention.wo language attn.o
  vit.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
  vision_proj.2 projector projector.1
TinyLLaVA:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  vision_tower._vision_tower.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
  connector._connector.2 projector projector.1
OpenVLA:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  vision_backbone.featurizer.blocks.0.attn.q vision attn.q
  vision_backbone.fused_featurizer.blocks.0.attn.q vision attn.q
  projector.fc3 projector projector.2
BAGEL:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  language_model.model.layers.0.self_attn.q_proj_moe_gen language attn.q
  language_model.model.layers.0.mlp_moe_gen.up_proj language mlp.up
  vit_model.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
Baichuan-Omni:
  model.layers.0.self_attn.o_proj language attn.o
  visual_model.blocks.0.attn.proj vision attn.o
  visual_bridge_model.proj projector projector.0
  audio_model.layers.0.self_attn.q_proj audio attn.q
  audio_bridge_model.proj projector projector.0
Janus:
  language_model.model.layers.0.self_attn.q_proj language attn.q
  vision_model.vision_tower.blocks.0.attn.q vision attn.q
  gen_vision_model.encoder.conv_in vision conv
Emu2:
  model.decoder.lm.model.layers.0.self_attn.q_proj language attn.q
  model.visual.blocks.0.attn.q vision attn.q
  project_up projector projector.0
  project_down projector projector.0
GR00T:
  backbone.eagle_model.language_model.model.layers.0.self_attn.q_proj language attn.q
  backbone.eagle_model.vision_model.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
pi0:
  paligemma_with_expert.paligemma.model.language_model.layers.0.self_attn.q_proj language attn.q
  paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj vision attn.q
"""  # noqa: E501 (one name)
MODELS: dict[str, dict[str, str]] = {}
for line in RELEASED.strip().splitlines():
    if line.startswith(" "):
        name, _, place = line.strip().partition(" ")
        name = name.removesuffix("/") if name.endswith("/") else f"{name}.weight"
        MODELS[[*MODELS][-1]][name] = place
    else:
        MODELS[line.removesuffix(":")] = {}


@pytest.mark.parametrize("model", MODELS)
def test_every_part_of_a_wrapped_model_is_of_its_component(model):
    """The text model, the towers and what joins them are told apart."""
    wanted = MODELS[model]
    found = place_tensors(dict.fromkeys(wanted, (64, 32)), {})
    assert {
        name: f"{p[0].place.component} {p[0].place.module}" for name, p in found.items()
    } == wanted
    places = [part.place for parts in found.values() for part in parts]
    assert len(set(places)) == len(places)
    language = {place.layer for place in places if place.component == "language"}
    assert language <= {0, None}


@pytest.mark.parametrize(
    "wrapper", ["vlm.lang_model.model", "language.model", "lang_encoder.model", "llama_model.model"]
)
def test_a_wrapped_text_model_has_the_places_that_it_has_alone(wrapper):
    """The text model inside a model of images pairs with the one that it was built from."""
    names = [
        "layers.0.self_attn.q_proj.weight", "embed_tokens.weight", "norm.weight",
        "layers.1.mlp.up_proj.weight",
    ]  # fmt: skip
    alone = place_tensors({f"model.{name}": (64, 32) for name in names}, {})
    wrapped = place_tensors({f"{wrapper}.{name}": (64, 32) for name in names}, {})
    assert [alone[f"model.{name}"] for name in names] == [
        wrapped[f"{wrapper}.{name}"] for name in names
    ]


def test_the_fused_projections_of_xgen_mm_are_split():
    """Phi-3 inside: q, k and v by the head counts of the text model's part of the config."""
    config = {
        "model_type": "xgenmm",
        "text_config": {
            "model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2,
            "hidden_size": 32,
        },
    }  # fmt: skip
    name = "vlm.lang_model.model.layers.3.self_attn.qkv_proj.weight"
    parts = place_tensors({name: (64, 32)}, config)[name]
    assert [part.place for part in parts] == [Place("language", 3, f"attn.{x}") for x in "qkv"]
    assert [part.rows for part in parts] == [(0, 32), (32, 48), (48, 64)]


def test_the_text_experts_of_cogvlm_are_the_text_models_own():
    """What sees text pairs with the base's projections; what sees images is apart, and split."""
    config = {"num_attention_heads": 4, "hidden_size": 32}
    head = "model.layers.0.self_attn"
    names = {
        f"{head}.{kind}_expert_query_key_value.weight": (96, 32) for kind in ("language", "vision")
    }
    found = place_tensors(names, config)
    text, image = (found[name] for name in names)
    assert [part.place for part in text] == [Place("language", 0, f"attn.{x}") for x in "qkv"]
    assert [part.place.module for part in image] == ["attn.q", "attn.k", "attn.v"]
    assert not {part.place for part in text} & {part.place for part in image}
