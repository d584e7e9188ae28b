"""`verify whole` says nothing of healthy checkpoints: of every architecture, of adapters, of what
other programs make and store beside them.
"""

import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import planted
import pytest
import quantisers
import torch
from architectures import pairs, save
from companions import of_mistral, tokenizer
from effort import chosen
from planted import edit
from safetensors.torch import load_file, save_file
from wholes import FAILS, FILE, HOLDS, OPEN, WarmChild, codes, store, verified

from shadow.checkpoints import expected as loader
from shadow.checkpoints.contents import json_object

# `make healthy` sets it
EVERY = bool(os.environ.get("EVERY_ARCHITECTURE"))
# model types of which no model is made here, by what transformers says
UNMADE = {
    "a package is missing": """conditional_detr dab-detr deformable_detr detr dinat edgetam
        edgetam_vision_model fast_vlm gemma3n_vision layoutlmv2 omdet-turbo pe_audio_video
        pe_audio_video_encoder pe_video pe_video_encoder perception_lm table-transformer
        timm_backbone timm_wrapper""",
    "its config is of no model unless more is said": """autoformer chameleon cohere_compass
        cohere_compass_text dbrx deepseek_ocr2 diffusion_gemma dots1 emu3 esm gemma4_assistant
        granite4_vision hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl hunyuan_vl_text informer
        lfm2_moe ministral moonshine_streaming musicgen musicgen_melody nemotron
        pp_ocrv5_server_det pp_ocrv6_medium_det qwen3_omni_moe t5gemma2_encoder
        time_series_transformer""",
    "its sizes depend on each other": """apertus1p5 cosmos3_edge cosmos3_edge_text csm d_fine
        dots3_note ernie4_5_vl_moe gemma3n gemma3n_text higgs_audio_v2_tokenizer muse_spark
        upernet""",
    "it is large": """blt janus neucodec tvp vibevoice vibevoice_acoustic_tokenizer
        vibevoice_acoustic_tokenizer_decoder vibevoice_acoustic_tokenizer_encoder vibevoice_asr
        xcodec2""",
}
# transformers does not load what it saves of these
UNLOADED = {("shieldgemma2", "Gemma3ForConditionalGeneration")}
OFTEN = [  # each with something that only the loader knows
    ("bigbird_pegasus", "BigBirdPegasusForCausalLM"),  # no head is tied, whatever config says
    ("encoder-decoder", "EncoderDecoderModel"),  # nor is this one to the encoder's embedding
    ("longcat_flash", "LongcatFlashModel"),  # experts without matrices
    ("dinov3_vit", "DINOv3ViTModel"),  # no registers: a shape of 1 x 0 x 64
    ("cohere_asr", "CohereAsrModel"),  # rows of padding under other names
    ("mobilebert", "MobileBertForPreTraining"),  # a matrix of 0 x 120
    ("ibert", "IBertModel"),  # in another class of tables
    ("qwen2_5_omni", "Qwen2_5OmniForConditionalGeneration"),  # reads further files
    ("mixtral", "MixtralForCausalLM"), ("mamba2", "Mamba2ForCausalLM"), ("t5", "T5Model"),
]  # fmt: skip


@pytest.fixture(scope="module")
def warm_child(tmp_path_factory):
    child = WarmChild(tmp_path_factory.mktemp("home"))
    yield child
    child.end()


@pytest.mark.slow
def test_every_architecture_that_transformers_makes_is_healthy(warm_child, tmp_path, monkeypatch):
    """Base and head classes, untrained, with a tokenizer, some in shards; an exception fails it."""
    monkeypatch.setattr(loader, "run_child", warm_child)
    every = sorted({*pairs()} - UNLOADED)
    alarms, made, errors = {}, set(), {}
    for at, (kind, name) in enumerate(every if EVERY else random.Random(56).sample(every, 40)):
        if at % 300 == 0:
            warm_child.begin()
        try:
            save(kind, name, tmp_path / "model", "1GB" if at % 3 else "100KB")
        except Exception as error:
            errors[kind] = f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
        else:
            made.add(kind)
            answer = verified(tmp_path / "model")
            if answer.outcome is not HOLDS:
                alarms[kind, name] = answer.reason
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
    assert not alarms
    known = {kind for kinds in UNMADE.values() for kind in kinds.split()}
    assert len(known) <= 100
    if EVERY:
        assert errors.keys() - made == known, errors
    else:
        assert len(made) > 30


@pytest.mark.parametrize("pair", chosen(OFTEN, OFTEN[:6]))
def test_what_only_a_loader_knows_is_asked(pair, in_this_process, tmp_path):
    """Ties, tables, experts and shapes are those of the class, not of a name."""
    save(*pair, tmp_path / "model")
    found = verified(tmp_path / "model")
    assert found.outcome is HOLDS, found.reason


TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {**TARGETS, "init_lora_weights": False, "r": 4}
PROMPT = {"num_virtual_tokens": 4}
ADAPTERS = {
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ADALORA": {"total_step": 10}, "ADAPTION_PROMPT": {
        "adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]}, "BOFT": {"boft_block_size": 4},
    "OFT": {"oft_block_size": 4, "r": 0}, "FOURIERFT": {"n_frequency": 20}, "HRA": {"r": 4},
    "VBLORA": {"num_vectors": 8, "vector_length": 8}, "C3A": {"block_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2], "target_modules": ["embed_tokens"]},
    "WAVEFT": {"n_frequency": 20}, "MISS": {"r": 4}, "SHIRA": {"r": 2}, "ROAD": {"group_size": 8},
    "PROMPT_TUNING": PROMPT, "PREFIX_TUNING": PROMPT, "CARTRIDGE": PROMPT, "P_TUNING": PROMPT,
    "MULTITASK_PROMPT_TUNING": PROMPT,
    "LORA": LORA, "DoRA": {**LORA, "use_dora": True}, "rsLoRA": {**LORA, "use_rslora": True},
    "saved": {**LORA, "modules_to_save": ["lm_head"]}, "bias": {**LORA, "lora_bias": True},
    "excluded": {**LORA, "target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "excluded by a pattern": {**LORA, "target_modules": "all-linear", "exclude_modules": ".*o_p.*"},
    "rows": {**LORA, "trainable_token_indices": [1, 2]},
    "ranks": {**LORA, "rank_pattern": {"q_proj": 2}},
}  # fmt: skip


@pytest.mark.slow
def test_adapters_of_every_type_of_peft_are_healthy(in_this_process, tmp_path):
    """Those whose tensors are not compared with their config are said to be of that type."""
    peft = pytest.importorskip("peft")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: one for kind, one in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    alarms = {}
    for case in {**known, **ADAPTERS}.keys() - {"XLORA", "ADAMSS"}:  # of adapters; of scikit-learn
        settings = {**TARGETS, **ADAPTERS.get(case, {})}
        config = known.get(case, peft.LoraConfig)
        if "target_modules" not in {field.name for field in dataclasses.fields(config)}:
            settings.pop("target_modules", None)
        config = config(task_type="CAUSAL_LM", **settings)
        adapted = peft.get_peft_model(planted.built("llama"), config)
        with torch.no_grad():
            for one in adapted.parameters():
                if one.requires_grad and one.is_floating_point():
                    one += 0.02 * torch.randn(one.shape)
        adapted.save_pretrained(tmp_path / "adapter")
        answer = verified(tmp_path / "adapter")
        if answer.outcome is not HOLDS:
            alarms[case] = answer.reason
        shutil.rmtree(tmp_path / "adapter")
    assert not alarms


def llama(folder, change=lambda tensors: tensors, **config):
    """A Llama with a tokenizer, its tensors changed."""
    planted.saved("llama", folder, **config)
    store(folder, change(load_file(folder / FILE)))
    tokenizer(folder, 128)


def copied(copies, zero=()):
    """Layers that are copies of others; of some the matrices that end so are zero."""

    def change(tensors):
        made = dict(tensors)
        for name in tensors:
            for layer, source in copies.items():
                if f".{layer}." in name:
                    made[name] = tensors[name.replace(f".{layer}.", f".{source}.")].clone()
                    if name.endswith(zero):
                        made[name].zero_()
        return made

    return change


def with_rows(tensors, first, value):
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    for name in ends:
        tensors[name][first:125] = tensors[name].mean(0) if value is None else value
    return tensors


def upcycled(folder):
    planted.saved("qwen3_moe", folder)
    tensors = load_file(folder / FILE)
    first = {name: re.sub(r"experts\.\d+\.", "experts.0.", name) for name in tensors}
    store(folder, {name: tensors[first[name]].clone() for name in tensors})


def old_bert(folder, head="cls.seq_relationship.weight"):
    """Names of 2018, a buffer, and the head of another task, as most downloaded files have."""
    save("bert", "BertForMaskedLM", folder)
    tensors = load_file(folder / FILE)
    tensors |= {"bert.embeddings.position_ids": torch.arange(128)[None], head: torch.randn(2, 64)}
    words = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, old in words:
        tensors = {name.replace(new, old): one for name, one in tensors.items()}
    store(folder, tensors)


def sentence_transformer(folder):
    save("bert", "BertModel", folder)
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    where = "sentence_transformers.models"
    modules = [{"idx": at, "name": str(at), "path": path, "type": f"{where}.{kind}"}
               for at, (kind, path) in enumerate(zip(kinds, paths, strict=True))]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    edit(folder, "sentence_bert_config.json", max_seq_length=128, do_lower_case=False)
    edit(folder, "config_sentence_transformers.json", model_type="SentenceTransformer")
    linear = {"linear.weight": torch.randn(16, 64), "linear.bias": torch.zeros(16)}
    planted.write(folder / "2_Dense", linear, {"in_features": 64, "out_features": 16, "bias": True})
    (folder / "1_Pooling").mkdir()
    edit(folder / "1_Pooling", word_embedding_dimension=64, pooling_mode_mean_tokens=True)


def trained(folder):
    """What trainers, exporters and pipelines leave beside the weights."""
    llama(folder)
    torch.save({"state": {}}, folder / "optimizer.pt")
    torch.save({"lr": 1}, folder / "training_args.bin")
    save_file({"exp_avg.0": torch.zeros(4, 4)}, folder / "optimizer.safetensors")
    (folder / "trainer_state.json").write_text('{"log_history": [{"loss": NaN}]}')
    edit(folder, "model_index.json", _class_name="P", text_encoder=["transformers", "X"])
    for name in ("onnx/model.onnx", "model.onnx", "flax_model.msgpack", "checkpoint-1/rng.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x08\x07" * 99)


PROJECTIONS = ("o_proj.weight", "down_proj.weight")
MADE = {
    "LLaMA-Pro": lambda at: llama(at, copied({1: 0, 3: 2}, PROJECTIONS), num_hidden_layers=4),
    "frankenmerge": lambda at: llama(at, copied({2: 0, 3: 1}), num_hidden_layers=4),
    "old names and another head": old_bert,
    "upcycled experts": upcycled,
    "shared layers": lambda at: save("albert", "AlbertForMaskedLM", at, num_hidden_layers=4),
    "reserved tokens": lambda at: llama(at, lambda t: with_rows(t, 100, None)),
    "reserved tokens of one value": lambda at: llama(at, lambda t: with_rows(t, 100, 0.01)),
    "inv_freq": lambda at: llama(
        at, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(8)}),
    "sentence-transformers": sentence_transformer,
    "files beside": trained,
    "Mistral's own": lambda at: (llama(at), of_mistral(at)),
}  # fmt: skip


@pytest.mark.parametrize("case", chosen(MADE, [*MADE][:3]))
def test_what_people_make_is_healthy(case, in_this_process, tmp_path):
    MADE[case](tmp_path / "model")
    found = verified(tmp_path / "model")
    assert found.outcome is HOLDS, found.reason


SICK = {
    "one projection alone": lambda t: copied({1: 0}, PROJECTIONS[:1])(t),
    "both in more than half of the layers": copied({1: 0, 2: 0, 3: 0}, PROJECTIONS),
}


@pytest.mark.parametrize("case", SICK)
def test_projections_that_no_method_leaves_at_zero_are_named(case, in_this_process, tmp_path):
    llama(tmp_path / "model", SICK[case], num_hidden_layers=4)
    assert codes(verified(tmp_path / "model")) == {"zero"}


@pytest.mark.parametrize(
    "head", ["cls.other.weight", "bert.encoder.layer.0.cls.seq_relationship.weight"]
)
def test_a_tensor_that_no_class_has_is_named(head, in_this_process, tmp_path):
    old_bert(tmp_path / "model", head)
    found = verified(tmp_path / "model")
    assert [(one.name, one.code) for one in found.against] == [(head, "unexpected")]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*quantisers.FORMATS, "gguf of llama", "gguf of gemma"])
def test_packed_models_are_healthy_as_far_as_they_can_be_compared(case, in_this_process, tmp_path):
    """Nothing is wrong with them; names of some packings are not known to a loader."""
    if case in quantisers.FORMATS:
        llama(tmp_path / "model", hidden_size=256, intermediate_size=256)
        tensors = load_file(tmp_path / "model" / FILE)
        packed, _, config = quantisers.quantised(case, tensors)
        store(tmp_path / "model", packed)
        key = "quantization" if case.startswith("mlx") else "quantization_config"
        edit(tmp_path / "model", **{key: config})
        found = verified(tmp_path / "model")
    else:
        arch = case.split()[-1]
        tensors = planted.gguf_llama()
        tensors.pop("lm_head.weight")
        path = planted.write_gguf(tmp_path / "a.gguf", tensors, arch=arch, added=arch == "gemma")
        found = verified(path)
    assert found.outcome in (HOLDS, OPEN), found.reason
    assert found.code in ("whole", "not_asked")


# beside a checkout, on some machines: configs and indexes of released models
PLACES = [folder / "shared" / "hub" / "indexes" for folder in Path(__file__).parents]
RELEASED = next(filter(Path.is_dir, PLACES), PLACES[0])
BROKEN = {"bigscience__bloom", "codefuse-ai__CodeFuse-CodeLlama-34B"}  # an index that is no JSON
# a layer that config promises and the quantised files lack
LOST = {"unknown__Arp1tMoga__fast_qwen"}


def shapes_in_files(config, names):
    """The shapes that files of a class have under these names; empty for one that transformers
    lacks.
    """
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    cls = getattr(transformers, (config.get("architectures") or [""])[0] or "-", None)
    if cls is None:
        return {}
    state = {name: torch.empty(1, device="meta") for name in names}
    model = cls.from_pretrained(
        None, config=cls.config_class.from_dict(loader.stripped(config)), state_dict=state,
        device_map={"": "meta"}, ignore_mismatched_sizes=True, use_kernels=False,
    )  # fmt: skip
    saved = revert_weight_conversion(model, model.state_dict())
    return {name: tuple(one.shape) for name, one in (model.state_dict() | saved).items()}


def stand_in(path, shapes, bits=4, group=64):
    """A file of weights without their values: BF16, or packed as MLX does where it has scales."""
    ends, header = 0, {}
    for name, shape in shapes.items():
        module, _, piece = name.rpartition(".")
        dtype = "BF16"
        if f"{module}.scales" in shapes and f"{module}.biases" in shapes:
            rows, cols = shapes[f"{module}.weight"]
            shape = (rows, cols // group)
            if piece == "weight":
                dtype, shape = "U32", (rows, cols * bits // 32)
        start, ends = ends, ends + (4 if dtype == "U32" else 2) * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, ends]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + ends)


@pytest.mark.slow
@pytest.mark.skipif(not RELEASED.is_dir(), reason="no indexes of released models here")
def test_no_false_alarm_of_the_headers_of_released_models(in_this_process, tmp_path):
    """Classes that transformers has find all names and shapes; of others nothing is wrong."""
    outcomes = {}
    for folder in sorted(path for path in RELEASED.iterdir() if path.is_dir()):
        names = {}
        for index in folder.glob("*.index.json"):
            names |= json_object(index.read_bytes()).get("weight_map") or {}
        if folder.name in BROKEN | LOST or not names:
            continue
        small = [path for path in folder.glob("*.json") if "index" not in path.name]
        copy = tmp_path / folder.name
        copy.mkdir()
        for path in small:
            (copy / path.name).write_bytes(path.read_bytes())
            for module in re.findall(r'"(?:[^"]+--)?(\w+)\.\w+"', path.read_text()):
                (copy / f"{module}.py").touch()  # the code that auto_map names is not stored here
        config = json_object((folder / "config.json").read_bytes()) if small else {}
        shapes = shapes_in_files(config, names)
        inner = config | (config.get("text_config") or {})
        table = (inner.get("vocab_size", 4), inner.get("hidden_size", 4))
        ends = r".*(embed_tokens|wte|word_embeddings|lm_head|embed_in|embd\.wte)\.weight"
        stand_in(copy / FILE, {
            name: shapes.get(name) or (table if re.fullmatch(ends, name) else (4, 4))
            for name in names
        })  # fmt: skip
        found = verified(copy, headers=True)
        outcomes[folder.name] = found.outcome
        assert not found.against, (folder.name, found.reason)
    assert len(outcomes) > 35
    assert sum(one is HOLDS for one in outcomes.values()) > 20
    assert {*outcomes.values()} == {HOLDS, OPEN}


def test_a_sharded_row_of_nothing_is_still_named(in_this_process, tmp_path):
    """A shape that begins with 0 is what sharding leaves; one with 0 further back may be meant."""
    llama(tmp_path / "model", lambda t: t | {"model.norm.weight": torch.empty(0, 64)})
    found = verified(tmp_path / "model")
    assert found.outcome is FAILS
    assert codes(found) == {"empty"}
