"""What owners of checkpoints report, planted: the first command that they would type names it."""

import json
from pathlib import Path

import planted
import pytest
import torch
from effort import chosen
from safetensors.torch import load_file, save_file

import shadow

WIDTH, LAYERS = 32, 4
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH,
    "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "vocab_size": 64,
}  # fmt: skip
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.{}.input_layernorm.weight"
MODULES = ("q_proj", "v_proj")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> planted.Tensors:
    """A decoder with norms of 1."""
    tensors = {name: 0.02 * one for name, one in planted.gaussian(0, LAYERS, WIDTH).items()}
    norms = {NORM.format(layer): torch.ones(WIDTH) for layer in range(LAYERS)}
    return tensors | norms | {"model.norm.weight": torch.ones(WIDTH), HEAD: normal(1, 64, WIDTH)}


def factors(layers_of_nothing: int = 0) -> planted.Tensors:
    """Those of an adapter of rank 4, whose B is zero in so many layers."""
    made = {}
    for number in range(LAYERS):
        for place, module in enumerate(MODULES):
            name = f"base_model.model.model.layers.{number}.self_attn.{module}"
            size = 0.0 if number < layers_of_nothing else 1.0
            made[f"{name}.lora_A.weight"] = normal(10 + 2 * number + place, 4, WIDTH)
            made[f"{name}.lora_B.weight"] = size * normal(30 + 2 * number + place, WIDTH, 4)
    return made


def merged(tensors: planted.Tensors, adapter: planted.Tensors) -> planted.Tensors:
    made = dict(tensors)
    for name, left in adapter.items():
        if name.endswith("lora_B.weight"):
            update = 2 * left @ adapter[name.replace("lora_B", "lora_A")]
            own = name.removeprefix("base_model.model.").replace("lora_B.", "")
            made[own] = made[own] + update
    return made


def put(here: Path, name: str, tensors: planted.Tensors, **config: object) -> None:
    planted.write(here / name, tensors, CONFIG | config)


def put_adapter(here: Path, name: str, tensors: planted.Tensors) -> None:
    (here / name).mkdir()
    save_file(tensors, here / name / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(MODULES)}
    (here / name / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("symptoms")
    base, adapter = model(), factors()
    more = {
        "base_model.model.model.embed_tokens.weight": torch.cat([base[EMBED], normal(2, 8, 32)])
    }
    put(here, "base", base)
    put(here, "copy", base)
    matrices = {name: one for name, one in base.items() if one.ndim == 2}
    put(here, "tuned", base | {name: one + normal(9, *one.shape) for name, one in matrices.items()})
    upper = base | {name: one + 0.1 * normal(9, *one.shape) for name, one in matrices.items()
                    if name.startswith("model.layers.3.")}  # fmt: skip
    put(here, "norm-moved", upper | {NORM.format(1): torch.full((WIDTH,), 2.0)})
    put(here, "no-head", {name: one for name, one in base.items() if name != HEAD})
    put(here, "no-layer", {name: one for name, one in base.items() if ".layers.3." not in name})
    bias = {f"model.layers.{at}.self_attn.q_proj.bias": normal(at, WIDTH) for at in range(LAYERS)}
    put(here, "biases", base | bias)
    moved = {key: 1.5 * one for key, one in bias.items()} | {NORM.format(1): 2 * torch.ones(WIDTH)}
    put(here, "norm-and-biases", base | moved)
    put(here, "head-embed", base | {HEAD: base[EMBED].clone()})
    planted.write_experts(here)
    experts = load_file(here / "experts" / "model.safetensors")
    left = {name: 1.5 * one for name, one in experts.items() if ".experts.1." not in name}
    put(here, "no-expert", left, **json.loads((here / "experts" / "config.json").read_text()))
    put(here, "norms-alone", base | {NORM.format(1): torch.full((WIDTH,), 2.0)})
    put_adapter(here, "more-rows", adapter | more)
    put_adapter(here, "adapter", adapter)
    put_adapter(here, "idle", factors(LAYERS))
    put_adapter(here, "half-idle", factors(2))
    put(here, "rows-lost", merged(base, adapter))
    put(here, "rows-there", merged(base, adapter) | {EMBED: more.popitem()[1]}, vocab_size=72)
    return here


# command, exit code, what its output names
SYMPTOMS = {
    "rows of the adapter are gone": (
        "verify merged ./base ./more-rows ./rows-lost", 4, [EMBED, "8 rows only in the adapter"]),
    "they are there": ("verify merged ./base ./more-rows ./rows-there", 0, []),
    **{
        f"one checkpoint, {claim}": (
            f"verify {claim} ./base ./copy/../base {more}", 5, ["one checkpoint"])
        for claim, more in (("same", ""), ("trained", "--frozen embed"), ("stored", ""))
    },
    "one folder that is missing": ("verify same ./nope ./nope", 1, ["no such folder"]),
    "layers that the model does not have": (
        "verify trained ./base ./tuned --frozen layers.0-99", 2, ["-99"]),
    "two equal ones": ("verify same ./base ./copy", 0, []),
    "one folder": ("audit ./base", 2, ["one checkpoint"]),
    "an adapter moves its modules": ("verify trained ./base ./adapter", 0, ["all 8 tensors"]),
    "and no others": ("verify trained ./base ./adapter --moved attn.k", 4, ["0.self_attn.k_proj"]),
    "nothing that is frozen": ("verify trained ./base ./adapter --frozen mlp", 0, []),
    "its B is zero": ("verify trained ./base ./idle", 4, ["nothing in 8 of 8 modules"]),
    "a model needs patterns": ("verify trained ./base ./copy", 2, ["--moved PATTERN"]),
    "norms of 1 that no step moves": (
        "verify trained ./base ./tuned --moved language", 0, [NORM.format(0), "5 vectors"]),
    "matrices that did not move": ("verify trained ./base ./norms-alone --moved layers.1", 4, []),
    "norms of 1 say nothing": ("verify trained ./base ./tuned --moved norm", 5, ["5 vectors"]),
    "one norm moved": ("audit ./base ./norm-moved", 0, [f"{NORM.format(1)} by 100 % of its norm"]),
    "biases did too": (
        "audit ./biases ./norm-and-biases", 0, [f"{NORM.format(1)} by 100 % of its norm"]),
    "nothing else did": ("audit ./base ./norms-alone", 0, [f"{NORM.format(1)} by 100 %"]),
    "none moved": ("audit ./base ./tuned", 0, []),
    "the head is lost": ("audit ./base ./no-head", 0, ["Missing: the head."]),
    "a layer is lost": ("audit ./base ./no-layer", 3, ["Missing: layer 3."]),
    "an expert is lost": ("audit ./experts ./no-expert", 3, ["Missing: expert 1 of layer 0."]),
    "the head is the embedding": (
        "verify same ./base ./head-embed", 4, [f"A has these values in {EMBED}"]),
    "an adapter does nothing": ("audit ./base ./idle", 0, ["adapter does nothing in 8 modules"]),
    "in two layers": ("audit ./base ./half-idle", 0, ["adapter does nothing in 4 modules"]),
    "an adapter lacks nothing": ("audit ./base ./adapter", 0, ["/adapter A part changed"]),
    "a relative": ("verify related ./rows-lost ./base", 0, ["nearest relative"]),
    "another name": ("verify relatd ./rows-lost ./base", 2, ["related"]),
}  # fmt: skip


# variants of what others show
LIKE = "they are there", "and no others", "nothing that is frozen", "nothing else did", "none moved"


@pytest.mark.parametrize("symptom", chosen(SYMPTOMS, [one for one in SYMPTOMS if one not in LIKE]))
def test_a_symptom_is_named(shadow, tmp_path, planted_folder, symptom):
    command, code, names = SYMPTOMS[symptom]
    words = command.replace(" ./", f" {planted_folder}/").split()
    done = shadow(*words, *(["-o", tmp_path / "out"] if words[0] == "audit" else []))
    assert done.code == code, done.err
    text = " ".join((done.out + done.err).split())
    assert [name for name in names if name not in text] == []


def test_a_layer_whose_norm_moved_is_not_frozen(shadow, tmp_path, planted_folder):
    text = shadow("audit", planted_folder / "base", planted_folder / "norm-moved", "-o", tmp_path)
    (line,) = (line for line in text.out.splitlines() if line.startswith("frozen"))
    assert "layers 0 and 2" in line


def test_a_stored_head_counts_where_it_differs_from_the_embedding_that_config_ties(tmp_path):
    """As loaders take it; one that is equal is the embedding, which is measured once."""
    tensors = {EMBED: torch.randn(32, 16), HEAD: torch.randn(32, 16)}
    tied = {**planted.LLAMA, "tie_word_embeddings": True}
    moved = {name: one + 0.01 for name, one in tensors.items()}
    planted.write(tmp_path / "a", tensors, config=tied)
    planted.write(tmp_path / "b", moved, config=tied)
    found = shadow.audit(tmp_path / "a", tmp_path / "b", output=tmp_path / "out")
    assert {*found.deltas["module"]} == {"embed", "head"}
    for side in (tensors, moved):
        side[HEAD] = side[EMBED].clone()
    planted.write(tmp_path / "c", tensors, config=tied)
    planted.write(tmp_path / "d", moved, config=tied)
    found = shadow.audit(tmp_path / "c", tmp_path / "d", output=tmp_path / "out")
    assert [*found.deltas["module"]] == ["embed"]
