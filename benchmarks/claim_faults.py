"""What is done to the weights of a checkpoint, on purpose or by mistake: casts, updates, adapters,
quantised copies, names, packing, merges of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from claim_models import Model, State, planted
from histories import quantised

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# matrices that adapters change
ROLE = re.compile(r"layers?\.\d+\..*(?:_proj|query|key|value|dense|fc1|fc2)\.weight$")


def cast(state: Mapping[str, torch.Tensor], stored: str) -> State:
    """The same in a format."""
    return {name: values.to(DTYPES[stored]) for name, values in state.items()}


def layer_of(name: str) -> int | None:
    found = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
    return int(found[1]) if found else None


def adapted(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The matrices that an adapter changes; of a model of several components the language's."""
    names = [name for name in state if ROLE.search(name) and state[name].ndim == 2]
    language = [name for name in names if name.startswith("language_model.")]
    return language or names


def named(state: Mapping[str, torch.Tensor], which: str, layer: int = 1) -> str:
    """q, k or a norm of a layer; the last of several components' is not the language's."""
    endings = {
        "q": r"(?:q_proj|query)\.weight$", "k": r"(?:k_proj|key)\.weight$",
        "norm": r"(?:norm\w*|LayerNorm)\.weight$", "v": r"(?:v_proj|value)\.weight$",
    }  # fmt: skip
    return next(
        name for name in state if layer_of(name) == layer and re.search(endings[which], name)
    )


def scale_of(values: torch.Tensor) -> float:
    """The root mean square, or 1e-3 where all are 0."""
    return float(values.float().square().mean().sqrt()) or 1e-3


def updated(
    state: Mapping[str, torch.Tensor],
    size: float,
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
) -> State:
    """A training's update of a relative size, in float32: half of the energy in few directions."""
    found = {name: values.float().clone() for name, values in state.items()}
    for name in names if names is not None else state:
        values = found[name]
        step = rng.standard_normal(tuple(values.shape))
        if values.ndim == 2 and min(values.shape) > 8:
            rows, cols = values.shape
            left, right = rng.standard_normal((rows, 6)), rng.standard_normal((6, cols))
            step = (step + left @ right / math.sqrt(6)) / math.sqrt(2)
        found[name] = values + torch.from_numpy(step).float() * (size * scale_of(values))
    return found


def one_entry(state: State, name: str, rng: np.random.Generator, units: int = 40) -> State:
    """One entry of a tensor changed, by so many units in the last place of its format."""
    found = dict(state)
    values = found[name].clone()
    flat = values.view(-1)
    large = torch.topk(flat.float().abs(), max(1, len(flat) // 4)).indices
    at = int(large[int(rng.integers(len(large)))])
    flat[at] = flat[at].float() * (1 + units * torch.finfo(values.dtype).eps)
    found[name] = values
    return found


def rounding_noise(state: State, rng: np.random.Generator, names: Sequence[str]) -> State:
    """A third of the entries one unit in the last place further off."""
    found = dict(state)
    for name in names:
        values = found[name].float()
        away = torch.from_numpy(rng.integers(-1, 2, tuple(values.shape))).float()
        found[name] = (values * (1 + away * torch.finfo(state[name].dtype).eps)).to(
            state[name].dtype
        )
    return found


def swapped(state: State, layer: int = 1) -> State:
    """q and k of a layer exchanged; where their shapes differ, the rows that both have."""
    q, k = named(state, "q", layer), named(state, "k", layer)
    rows = min(len(state[q]), len(state[k]))
    first, second = state[q].clone(), state[k].clone()
    first[:rows], second[:rows] = state[k][:rows], state[q][:rows]
    return {**state, q: first, k: second}


def reordered_heads(model: Model, state: State, layer: int = 1) -> State:
    """q and k of a layer in the order of rotary halves that another library has."""
    config = model.config.get("text_config", model.config)
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads", heads)
    q, k = named(state, "q", layer), named(state, "k", layer)
    found = {q: planted.permuted(state[q], heads), k: planted.permuted(state[k], kv)}
    return {**state, **{name: values.contiguous() for name, values in found.items()}}


def packed_experts(state: State) -> State:
    """The experts of a layer in one tensor each, as newer libraries write them."""
    found = {name: values for name, values in state.items() if ".experts." not in name}
    layers = sorted({layer_of(name) for name in state if ".experts." in name}, key=str)
    for layer in layers:
        mlp = f"model.layers.{layer}.mlp.experts"
        count = sum(name.startswith(mlp) and "down_proj" in name for name in state)
        each = {
            one: [state[f"{mlp}.{expert}.{one}_proj.weight"] for expert in range(count)]
            for one in ("gate", "up", "down")
        }
        both = [torch.cat(pair) for pair in zip(each["gate"], each["up"], strict=True)]
        found[f"{mlp}.gate_up_proj"] = torch.stack(both)
        found[f"{mlp}.down_proj"] = torch.stack(each["down"])
    return found


def fused(state: State) -> State:
    """q, k and v in one tensor, and gate and up, as Phi-3 has them."""
    joined = planted.fused(state, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
    return planted.fused(joined, "gate_up_proj", ("gate_proj", "up_proj"))


# -------------------------------------------------------------------------------- adapters

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
RANK, ALPHA = 4, 8


def factors(
    state: Mapping[str, torch.Tensor], size: float, rng: np.random.Generator, scale: float
) -> Factors:
    """(B, A) of every adapted matrix, float32; scale B A has this size relative to the matrix."""
    found = {}
    for name in adapted(state):
        rows, cols = state[name].shape
        b = torch.from_numpy(rng.standard_normal((rows, RANK))).float()
        a = torch.from_numpy(rng.standard_normal((RANK, cols))).float() / math.sqrt(RANK)
        found[name] = (b * (size * scale_of(state[name]) / scale), a)
    return found


def merge(
    state: State,
    of: Factors,
    scale: float,
    stored: str,
    how: Callable[[str], float] = lambda name: 1.0,
    narrow: bool = False,
) -> State:
    """The adapter merged, times `how` of each matrix. narrow: computed in the stored format."""
    found = dict(state)
    for name, (b, a) in of.items():
        if narrow:
            kind = DTYPES[stored]
            update = (b.to(kind) @ a.to(kind)) * scale
            found[name] = state[name].to(kind) + update * how(name)
        else:
            found[name] = state[name].float() + how(name) * scale * (b @ a)
    return cast(found, stored)


def replayed(state: State, of: Factors, scale: float, stored: str, order: str) -> State:
    """The adapter merged by plain torch, as four programs compute it."""
    kind = DTYPES[stored]
    found = dict(state)
    for name, (b, a) in of.items():
        base = state[name].to(kind)
        if order == "in_one_sum":
            found[name] = torch.addmm(base.float(), b, a, alpha=scale)
        elif order == "left_scaled":
            found[name] = base.float() + (b * scale) @ a
        elif order == "update_rounded":
            found[name] = base + ((b @ a) * scale).to(kind)
        else:
            found[name] = base + ((b.to(kind) * scale) @ a.to(kind))
    return cast(found, stored)


def adapter_files(of: Factors, rank_stabilised: bool) -> tuple[State, dict[str, object]]:
    """Tensors and config of the adapter."""
    tensors = {}
    for name, (b, a) in of.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": rank_stabilised,
        "target_modules": sorted({name.split(".")[-2] for name in of}),
    }  # fmt: skip
    return tensors, config


def through(state: State, names: Sequence[str], bits: str) -> State:
    """Matrices quantised and dequantised: NF4 in blocks of 64, or int8 by row."""
    how = "int8 by row" if bits == "int8" else bits
    found = {name: quantised(state[name].double().numpy(), how) for name in names}
    return state | {name: torch.from_numpy(W).to(state[name].dtype) for name, W in found.items()}


TYPES: dict[str, dict[str, object]] = {  # that peft merges, with what they need of a config
    "BOFT": {"boft_block_size": 4}, "C3A": {"block_size": 8}, "DEFT": {}, "DELORA": {},
    "FOURIERFT": {"n_frequency": 20}, "GLORA": {}, "GRALORA": {}, "HIRA": {}, "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []}, "LOHA": {}, "LOKR": {}, "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0}, "PEANUT": {}, "PVERA": {}, "RANDLORA": {},
    "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "SUPERTUNING": {}, "VERA": {},
    "WAVEFT": {"n_frequency": 20},
}  # fmt: skip


def by_peft(kind: str, state: State) -> tuple[State, dict[str, object], State]:
    """Tensors and config of an adapter of another type than LoRA, and what peft merges of it."""
    import peft

    root = torch.nn.Module()
    weights = [name for name in state if name.endswith(".weight")]
    for name in weights:
        values, bias = state[name], state.get(name.removesuffix("weight") + "bias")
        owner, (*parents, last, _) = root, name.split(".")
        for one in parents:
            if not hasattr(owner, one):
                owner.add_module(one, torch.nn.Module())
            owner = getattr(owner, one)
        layer = torch.nn.Linear(*reversed(values.shape), bias=bias is not None, dtype=values.dtype)
        layer.weight.data = values.clone()
        if bias is not None:
            layer.bias.data = bias.clone()
        owner.add_module(last, layer)
    targets = [name.removesuffix(".weight") for name in weights]
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](target_modules=targets, **TYPES[kind])
    tuned = peft.get_peft_model(root, config)
    for one in tuned.parameters():
        if one.requires_grad:
            one.data += 0.05 * torch.randn(one.shape, generator=torch.manual_seed(1))
    tensors = peft.get_peft_model_state_dict(tuned)
    written = {key: sorted(one) if isinstance(one, set) else one
               for key, one in config.to_dict().items()}  # fmt: skip
    merged = tuned.merge_and_unload().state_dict()
    return {name: one.clone() for name, one in tensors.items()}, written, merged
