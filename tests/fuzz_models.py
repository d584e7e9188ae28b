"""Models in memory for fuzz.py: state dicts and modules as JSON, and what is asked of them."""

import json
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st

import shadow

LAYER = "model.layers.0."
NAMES = (
    f"{LAYER}mlp.up_proj.weight", f"{LAYER}self_attn.qkv_proj.weight", "model.norm.weight",
    "model.embed_tokens.weight", "lm_head.weight", "vision.patch_embed.proj.weight",
    f"{LAYER}mlp.experts.gate_up_proj", f"{LAYER}mlp.experts.0.down_proj.weight",
    f"{LAYER}mlp.up_proj.weight_scale_inv", f"{LAYER}mlp.up_proj.qweight", "x", "",
    f"base_model.model.{LAYER}mlp.up_proj.lora_A.weight",
    f"base_model.model.{LAYER}mlp.up_proj.lora_B.weight",
    "\ud800", "a\x1b[2J", "n" * 2000, 1, None, [1, 2],
)  # fmt: skip
DTYPES = (
    "float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2", "int64", "uint8",
    "bool", "complex64", "int32", "float8_e8m0fnu",
)  # fmt: skip
FILLS = (
    "random", "random", "random", "zero", "one", "nan", "inf", "-inf", "1e-45", "1e-40", "1e-30",
    "1e30", "1e38", "1e-300", "1e300", "1.7e308", "5e-324", "one-nan", "wild",
)  # fmt: skip
VIEWS = (
    "plain", "plain", "plain", "turned", "negative", "conjugate", "expanded", "stepped", "sparse",
    "meta", "parameter",
)  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 9, 16])
SHAPES = st.lists(SIZES, max_size=4)
VALUES = st.sampled_from(
    [
        None, 0, -1, 2, 4, 0.5, float("nan"), "", "llama", "x", "\ud800", [], [1], {}, {"a": []},
        True, 10**30, "bfloat16", {"quant_method": "fp8", "weight_block_size": [2, 2]},
    ]
)  # fmt: skip
KEYS = (
    "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "architectures",
    "num_hidden_layers", "num_experts", "vocab_size", "tie_word_embeddings", "torch_dtype",
    "quantization_config", "text_config", "intermediate_size", "head_dim",
)  # fmt: skip
PATTERNS = ("*", "language", "language.layers.0", "language.mlp.up", "vision", "language.head")
VERBS: Mapping[str, Callable[..., Any]] = {
    "norms": lambda models: shadow.audit(*models[:2], level="norms", jobs=1),
    "sketch": lambda models: shadow.audit(*models[:2], level="sketch", jobs=1),
    "full": lambda models: shadow.audit(*models[:2], level="full", jobs=1),
    "delta": lambda models: shadow.audit(*models[:2], subjects="delta", jobs=1),
    "same": lambda models: shadow.verify("same", *models[:2], jobs=1),
    "related": lambda models: shadow.verify("related", *models[:2], jobs=1),
    "quantised": lambda models: shadow.verify("quantised", *models[:2], jobs=1),
    "stored": lambda models: shadow.verify("stored", *models[:2], base=models[2], jobs=1),
    "merged": lambda models: shadow.verify("merged", *models, jobs=1),
    "check": lambda models: shadow.check(models[0]),
    "snapshot": lambda models: shadow.snapshot(models[0]),
}


@st.composite
def described(draw: st.DrawFn) -> bytes:
    """Three models as JSON: one, and two that differ from it in a few tensors; and a verb."""
    tensor = st.tuples(
        st.sampled_from(DTYPES), SHAPES, st.sampled_from(FILLS), st.sampled_from(VIEWS)
    )
    usual = st.tuples(st.just("float32"), st.just([6, 8]), st.just("random"), st.just("plain"))
    names = draw(st.lists(st.sampled_from(NAMES[:9]), min_size=1, max_size=4))
    first = [[name, list(draw(usual))] for name in names]
    models = [first]
    for _ in range(2):
        other = [[name, list(draw(usual))] for name in names]
        models.append(other)
    for _ in range(draw(st.integers(0, 4))):
        model = draw(st.sampled_from(models))
        entry = [draw(st.sampled_from(NAMES)), list(draw(tensor))]
        where = draw(st.integers(0, len(model)))
        model[where : where + draw(st.integers(0, 1))] = [entry]
    config = draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
    asked = {"verb": draw(st.sampled_from([*VERBS, "trained", "since"])), "models": models}
    asked["moved"] = draw(st.sampled_from(PATTERNS))
    return json.dumps(asked | {"config": config, "module": draw(st.booleans())}).encode()


class Module(torch.nn.Module):
    """A module with any state and config."""

    def __init__(self, state: Mapping[Any, torch.Tensor], config: object) -> None:
        super().__init__()
        self.state = dict(state)
        self.config = types.SimpleNamespace(to_dict=lambda: config)

    def state_dict(self, *arguments: Any, **more: Any) -> Any:
        return self.state | {"_extra_state": object()}


def tensor_of(dtype: str, shape: list[int], fill: str, view: str, seed: int) -> torch.Tensor:
    """Make a tensor of numbers of a kind, in a layout of a kind."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    match fill:
        case "random":
            pass
        case "zero" | "one":
            numbers = torch.full(shape, float(fill == "one"), dtype=torch.float64)
        case "one-nan" | "wild":
            if numbers.numel():
                numbers.view(-1)[0] = float("nan") if fill == "one-nan" else 1e300
                numbers.view(-1)[-1] *= 1e-300
        case _:
            numbers = numbers.sign() * float(fill)
    made = numbers.to(getattr(torch, dtype))
    match view:
        case "turned" if made.ndim > 1:
            return made.mT.contiguous().mT
        case "negative" if made.is_floating_point() and made.itemsize > 1:
            return torch._neg_view(made)
        case "conjugate" if made.is_floating_point() and made.itemsize > 2:
            return torch.complex(made, made).conj().imag
        case "conjugate" if made.is_complex():
            return made.conj()
        case "expanded" if made.ndim:
            return made[:1].expand(made.shape) if made.shape[0] else made
        case "stepped" if made.ndim:
            return made[::2]
        case "sparse" if made.ndim and made.itemsize > 1:
            return made.to_sparse()
        case "meta":
            return made.to("meta")
        case "parameter" if made.is_floating_point():
            return torch.nn.Parameter(made)
    return made


def ask(content: bytes) -> None:
    """Make the models, and ask what is asked."""
    asked = json.loads(content)
    models: list[Any] = []
    for number, listed in enumerate(asked["models"]):
        state = {
            tuple(name) if isinstance(name, list) else name: tensor_of(*what, 10 * number + place)
            for place, (name, what) in enumerate(listed)
        }
        models.append(Module(state, asked["config"]) if asked["module"] else state)
    match asked["verb"]:
        case "trained":
            shadow.verify("trained", *models[:2], moved=asked["moved"], jobs=1)
        case "since":
            before = shadow.snapshot(models[0])
            shadow.verify("trained", before, models[1], moved=asked["moved"], jobs=1)
        case verb:
            VERBS[verb](models)
