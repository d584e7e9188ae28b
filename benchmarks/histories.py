"""Pairs of made-up weights and of a history that is known: what was done, both sides as they are
stored, and what is true of the change before anything was rounded.
"""

from __future__ import annotations

import os
import zlib

# threads of matrices this small only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for each key, whatever was drawn before."""
    return np.random.default_rng(zlib.crc32("\t".join(map(str, key)).encode()))


def decoder(
    layers: int, width: int, mlp: int, tokens: int, kv: int = 0, prefix: str = "",
    gated: bool = True, norms: bool = True, biases: bool = False,
) -> Shapes:  # fmt: skip
    """Names and shapes of a decoder; kv: rows of k and v, where they are fewer."""
    found: Shapes = {f"{prefix}model.embed_tokens.weight": (tokens, width)}
    for number in range(layers):
        layer = f"{prefix}model.layers.{number}"
        rows = {"q": width, "k": kv or width, "v": kv or width, "o": width}
        found |= {f"{layer}.self_attn.{one}_proj.weight": (rows[one], width) for one in "qkvo"}
        if biases:
            found |= {f"{layer}.self_attn.{one}_proj.bias": (rows[one],) for one in "qkv"}
        if mlp:
            up = ("gate", "up") if gated else ("up",)
            found |= {f"{layer}.mlp.{one}_proj.weight": (mlp, width) for one in up}
            found[f"{layer}.mlp.down_proj.weight"] = (width, mlp)
        if norms:
            found[f"{layer}.input_layernorm.weight"] = (width,)
            found[f"{layer}.post_attention_layernorm.weight"] = (width,)
    if norms:
        found[f"{prefix}model.norm.weight"] = (width,)
    return found | {f"{prefix}lm_head.weight": (tokens, width)}


def vision_language() -> Shapes:
    """A decoder with a vision tower and a projector before it, as LLaVA has them."""
    shapes: Shapes = {}
    for number in range(2):
        layer = f"vision_tower.vision_model.encoder.layers.{number}"
        for one in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{one}_proj.weight"] = (128, 128)
        shapes |= {f"{layer}.mlp.fc1.weight": (256, 128), f"{layer}.mlp.fc2.weight": (128, 256)}
    shapes["multi_modal_projector.linear_1.weight"] = (256, 128)
    shapes["multi_modal_projector.linear_2.weight"] = (256, 256)
    return shapes | decoder(4, 256, 512, 512, prefix="language_model.", norms=False)


@cache
def made_up(name: str, rows: int, cols: int, seed: int) -> Array:
    """A matrix of entries of about 0.02 and a spectrum that decays."""
    rng = generator("weights", seed, name)
    scale = np.arange(1, cols + 1) ** -0.3
    W = 0.02 * rng.standard_normal((rows, cols)) * scale / np.sqrt((scale**2).mean())
    return np.asarray(W @ np.linalg.qr(rng.standard_normal((cols, cols)))[0])


def learned(name: str, W: Array, size: float, seed: int = 0) -> Array:
    """An update of a relative norm: half of its energy in 64 directions of energies 1, 1/2, 1/3,
    ..., the rest noise.

    Half of the inputs of these directions are the base's leading ones.
    """
    return size * float(np.linalg.norm(W)) * direction(name, W.shape, seed)


@cache
def direction(name: str, shape: tuple[int, int], seed: int) -> Array:
    """The update of norm 1 of a matrix of the base; random by its name and the seed."""
    rng = generator("update", seed, name)
    rank = min(64, *shape)
    left = np.linalg.qr(rng.standard_normal((shape[0], rank)))[0]
    leading = np.linalg.svd(made_up(name, *shape, 0), full_matrices=False)[2][:rank].T
    right = np.linalg.qr(leading + rng.standard_normal((shape[1], rank)) / np.sqrt(shape[1]))[0]
    S = (left * np.arange(1, rank + 1) ** -0.5) @ right.T
    N = rng.standard_normal(shape)
    return np.asarray(S / np.linalg.norm(S) + N / np.linalg.norm(N)) / np.sqrt(2)


def purity(D: Array) -> float:
    """X = 1 / participation_ratio - 1 / null_participation_ratio, by NumPy from the definition."""
    r, c = (D**2).sum(1), (D**2).sum(0)
    G = D @ D.T if D.shape[0] <= D.shape[1] else D.T @ D
    return float(((G**2).sum() - (r**2).sum() - (c**2).sum() + (D**4).sum()) / r.sum() ** 2)


# -------------------------------------------------------------------------------- pairs

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
Stored = dict[str, torch.Tensor]
SIZES = (3e-4, 8e-4, 2e-3, 6e-3, 2e-2)  # relative norms
# what is done to weights: True, False, or None where the history does not decide it
Ways = Mapping[str, bool | None]
WAYS: Ways = {
    "merged_adapter": False,
    "orthogonalised_optimiser": False,
    "quantised_copy": False,
    "weight_decay": False,
}


@dataclass(frozen=True)
class Made:
    """Both sides of a pair as stored, and what is true of them."""

    base: Stored
    tuned: Stored
    update: Weights | None
    """What was added, before any storage, by name; what has none is absent. None: no update."""
    ways: Ways = field(default_factory=dict)
    """What differs from WAYS."""
    recorded: tuple[str, ...] = ()
    """What a finding should say: names of MEANINGS in sentences.py."""
    few_bits: tuple[str, ...] = ()
    """The sides that went through 8 or 4 bits."""
    rounded: str = "once"
    """`once`, `master` (a copy in more bits was kept), `every step`, `mean`, `no`."""
    apart: bool = False
    """Two unrelated models."""
    scaled: bool = False
    """By rows or columns: (IA)3, folded gains."""
    also: Weights | None = None
    """Another update that figures may be of: what is stored, where steps were rounded."""
    uneven: bool = False
    """By sizes that differ widely between entries."""
    rotated: bool = False
    """By an adapter that is not of low rank."""
    facts: tuple[str, ...] = ()
    """What is true besides `recorded`, and need not be said."""
    configs: tuple[Mapping[str, object], Mapping[str, object]] = ({}, {})
    """What the config of each side has besides its model_type."""


@dataclass(frozen=True)
class Pair:
    """A pair: its name, the kind that it is counted with, and how to make it."""

    name: str
    kind: str
    make: Callable[[], Made]
    config: str = "llama"
    label: str | None = None
    """The name that is given to the pair."""


# -------------------------------------------------------------------------------- weights


def shapes(layers: int = 4, width: int = 256, mlp: int = 384, tokens: int = 384) -> Shapes:
    """A decoder with two matrices in its MLP, and norms."""
    return decoder(layers, width, mlp, tokens, gated=False)


SMALL = shapes(width=128, mlp=256, tokens=256)
DEEP = shapes(layers=6, width=128, mlp=256, tokens=256)
MANY = shapes(layers=23, width=64, mlp=96, tokens=128)
WIDE: Shapes = {f"model.layers.{at}.self_attn.q_proj.weight": (768, 768) for at in range(3)}
SEVEN: Shapes = {
    name: one for name, one in decoder(2, 256, 512, 512, norms=False).items() if ".layers." in name
}
VISION: Shapes = vision_language()


def weights(of: Shapes, seed: int = 0) -> Weights:
    return {
        name: made_up(name, *shape, seed)
        if len(shape) == 2
        else 1 + 0.1 * generator("vector", seed, name).standard_normal(shape)
        for name, shape in of.items()
    }


def narrow(values: Mapping[str, Array], dtype: torch.dtype) -> Stored:
    return {name: torch.from_numpy(np.array(W)).to(dtype) for name, W in values.items()}


def wide(stored: Stored) -> Weights:
    return {name: W.double().numpy() for name, W in stored.items()}


def as_stored(values: Mapping[str, Array], dtype: torch.dtype = BF16) -> Weights:
    return wide(narrow(values, dtype))


def base_of(of: Shapes | None = None, dtype: torch.dtype = BF16) -> Weights:
    return as_stored(weights(of or shapes()), dtype)


def matrices(base: Weights) -> list[str]:
    return [name for name, W in base.items() if W.ndim == 2]


def inside(base: Weights) -> list[str]:
    return [name for name in matrices(base) if ".layers." in name]


def plus(base: Weights, update: Weights) -> Weights:
    return {name: W + update[name] if name in update else W for name, W in base.items()}


def stored_pair(
    base: Weights, update: Weights, dtypes: tuple[torch.dtype, torch.dtype] = (BF16, BF16), **rest
) -> Made:
    """A base as stored, and the same with an update."""
    return Made(narrow(base, dtypes[0]), narrow(plus(base, update), dtypes[1]), update, **rest)


# -------------------------------------------------------------------------------- updates


def tune(base: Weights, size: float, names: Iterable[str] | None = None, seed: int = 0) -> Weights:
    """The update of made_up.py: half of its energy in 64 directions, half noise."""
    return {
        name: learned(name, base[name], size, seed)
        for name in (matrices(base) if names is None else names)
    }


@cache
def factors(name: str, shape: tuple[int, int], rank: int, seed: int = 0) -> tuple[Array, Array]:
    rng = generator("factors", seed, name, rank)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    return left, right


def scaled_to(D: Array, W: Array, size: float) -> Array:
    return D * (size * float(np.linalg.norm(W)) / float(np.linalg.norm(D)))


def adapter(base: Weights, rank: int, size: float) -> Weights:
    """B A of that rank on every matrix of the layers."""
    found = {}
    for name in inside(base):
        rng = generator("adapter", name, rank)
        rows, cols = base[name].shape
        D = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))
        found[name] = scaled_to(D, base[name], size)
    return found


def fast(base: Weights, size: float) -> Weights:
    """Full rank with a fast spectrum: 99 % of the energy in about 31 to 55 directions of 128."""
    found = {}
    for at, name in enumerate(matrices(base)):
        most = 31 + (at * 7) % 25
        rank = min(base[name].shape)
        left, right = factors(name, base[name].shape, rank)
        sigma = np.exp(-np.arange(rank) * math.log(100) / 2 / most)
        found[name] = scaled_to((left * sigma) @ right.T, base[name], size)
    return found


def with_dense_rest(base: Weights, size: float) -> Weights:
    """95 % of the energy in 16 directions, the rest in all."""
    found = {}
    for name in matrices(base):
        left, right = factors(name, base[name].shape, 16)
        N = generator("rest", name).standard_normal(base[name].shape)
        D = math.sqrt(0.95 / 16) * left @ right.T + math.sqrt(0.05) * N / np.linalg.norm(N)
        found[name] = scaled_to(D, base[name], size)
    return found


def few_strong(base: Weights, size: float) -> Weights:
    """Half of the energy in four directions, half noise."""
    found = {}
    for name in matrices(base):
        left, right = factors(name, base[name].shape, 4)
        N = generator("noise", name).standard_normal(base[name].shape)
        found[name] = scaled_to(left @ right.T / 2 + N / np.linalg.norm(N), base[name], size)
    return found


def decayed(base: Weights, size: float, cosine: float) -> Weights:
    """An update that points against the weights by that cosine."""
    found = {}
    for name in matrices(base):
        W = base[name]
        D = learned(name, W, 1.0) / np.linalg.norm(W)
        unit = W / np.linalg.norm(W)
        D = D - (D * unit).sum() * unit
        across = math.sqrt(1 - cosine**2) * D / np.linalg.norm(D)
        found[name] = scaled_to(across + cosine * unit, W, size)
    return found


# -------------------------------------------------------------------------------- few bits

NF4 = np.array(
    [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ]
)  # fmt: skip
BITS = ("Q8_0", "Q4_0", "NF4", "int8 by row", "int8 by column", "FP8")


def quantised(W: Array, how: str) -> Array:
    """A matrix through few bits, as float values again."""
    if how == "FP8":
        scale = np.abs(W).max() / 448
        return torch.from_numpy(W / scale).to(torch.float8_e4m3fn).double().numpy() * scale
    if how.startswith("int8"):
        scale = np.abs(W).max(1 if how.endswith("row") else 0, keepdims=True) / 127
        return np.rint(W / scale) * scale
    blocks = W.reshape(-1, 64 if how == "NF4" else 32)
    most = np.abs(blocks).max(1, keepdims=True)
    if how == "NF4":
        nearest = np.abs(blocks[:, :, None] / most[:, :, None] - NF4).argmin(2)
        return (NF4[nearest] * most).reshape(W.shape)
    if how == "Q8_0":
        scale = (most / 127).astype(np.float16).astype(np.float64)
        return (np.rint(blocks / scale) * scale).reshape(W.shape)
    signed = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = (signed / -8).astype(np.float16).astype(np.float64)
    return (np.clip(np.rint(blocks / scale), -8, 7) * scale).reshape(W.shape)


def through(base: Weights, how: str) -> Weights:
    """Every matrix through few bits; vectors as they are."""
    return {name: quantised(W, how) if W.ndim == 2 else W for name, W in base.items()}


# -------------------------------------------------------------------------------- casts

CASTS = {
    "F32 to BF16": (F32, F32, BF16),  # the base's values are of the first
    "F16 to BF16": (F16, F16, BF16),
    "BF16 to F16": (BF16, BF16, F16),
    "BF16 to F32": (BF16, BF16, F32),
}
BESIDE = (
    "head trained by 10 %",
    "one matrix trained by 10 %",
    "one matrix replaced by noise",
    "all norms moved by 30 %",
    "five embedding rows times 1.5",
)
ONE = "model.layers.1.mlp.up_proj.weight"


def changed(base: Weights, what: str) -> Weights:
    if what.startswith("head"):
        return tune(base, 0.1, ["lm_head.weight"])
    if what.startswith("one matrix trained"):
        return tune(base, 0.1, [ONE])
    if what.startswith("one matrix replaced"):
        return {ONE: made_up(ONE, *base[ONE].shape, 9) - base[ONE]}
    if what.startswith("all norms"):
        return {
            name: scaled_to(generator("moved", name).standard_normal(W.shape), W, 0.3)
            for name, W in base.items()
            if W.ndim == 1
        }
    if what.startswith("five"):
        D = np.zeros_like(base["model.embed_tokens.weight"])
        D[10:15] = 0.5 * base["model.embed_tokens.weight"][10:15]
        return {"model.embed_tokens.weight": D}
    return tune(base, 0.2, inside(base)[5::35][:4])  # four of many


def cast(which: str, what: str | None = None, of: Shapes | None = None) -> Made:
    """A copy in another format, and what was changed beside it."""
    grid, one, other = CASTS[which]
    base = base_of(of, grid)
    update = changed(base, what) if what else {}
    same = which == "BF16 to F32"
    recorded: tuple[str, ...] = ("same",) if same else ("copy",)
    if what:
        recorded = ("beside",)
    ways = {"quantised_copy": not (what or same)}
    return stored_pair(base, update, (one, other), recorded=recorded, ways=ways)


# -------------------------------------------------------------------------------- histories


def dequantised(how: str, what: str, size: float) -> Made:
    """A base that went through few bits, and what was made of it."""
    base = through(base_of(), how)
    few = ("base", "tuned") if what == "copy" else ("base",)
    if what == "copy":
        copied = as_stored(base, F32)
        return stored_pair(
            copied, {}, (F32, BF16), few_bits=few, recorded=("copy", "dequantised"),
            ways={"quantised_copy": True},
        )  # fmt: skip
    base = as_stored(base)
    if what == "adapter":
        return stored_pair(
            base, adapter(base, 16, size), few_bits=few, recorded=("dequantised", "low_rank"),
            ways={"merged_adapter": True},
        )  # fmt: skip
    return stored_pair(base, tune(base, size), few_bits=few, recorded=("dequantised",))


def few_bit_copy(how: str) -> Made:
    base = base_of()
    tuned = through(base, how)
    return Made(
        narrow(base, BF16), narrow(tuned, BF16), {}, ways={"quantised_copy": True},
        few_bits=("tuned",), recorded=("few bits",),
    )  # fmt: skip


def lora(rank: int, size: float, into: str | None = None) -> Made:
    base = base_of()
    update = adapter(base, rank, size)
    if into is None:
        return stored_pair(base, update, ways={"merged_adapter": True}, recorded=("low_rank",))
    tuned = plus(through(base, into), update)
    whole = {name: tuned[name] - base[name] for name in matrices(base)}
    return Made(
        narrow(base, BF16), narrow(tuned, BF16), whole, few_bits=("tuned",),
        ways={"merged_adapter": True, "quantised_copy": True},
    )  # fmt: skip


def few_known(count: int, size: float, rank: int = 0) -> Made:
    """Of 14 matrices all but `count` differ by a master copy that was kept."""
    full = weights(SEVEN)
    base = as_stored(full)
    names = list(base)
    known = [names[at] for at in np.linspace(1, len(names) - 2, count).astype(int)]
    update = adapter(base, rank, size) if rank else few_strong(base, size)
    ways: Ways = {"merged_adapter": True} if rank else {}
    tuned = {n: (base[n] if n in known else full[n]) + update[n] for n in names}
    recorded = ("norm before storage",) if 2 * count > len(names) else ()
    return Made(
        narrow(base, BF16), narrow(tuned, BF16), update, ways, rounded="master", recorded=recorded
    )


def every_scaled(by: float) -> Made:
    base = base_of()
    update = {n: (by - 1) * base[n] for n in base}
    return stored_pair(base, update, recorded=("scaled",), ways={"weight_decay": None})


def pruned() -> Made:
    base = base_of()
    update = {n: np.where(np.abs(base[n]) < 0.006, -base[n], 0.0) for n in inside(base)}
    return stored_pair(base, update, recorded=("zeroed",))


MASKS = {"a fifth": 0.2, "a half": 0.5}  # of the entries, in random places


def in_part(what: str, size: float) -> Made:
    """Some entries were trained: random ones, half of the columns; or all, by sizes that differ:
    heavy tails, in proportion to the weights, rows by factors.
    """
    base = base_of()
    update = tune(base, size, inside(base))
    for name, D in update.items():
        rng, W = generator("in part", name, what), base[name]
        if what in MASKS:
            D = D * (rng.random(D.shape) < MASKS[what])
        elif what == "half of the columns":
            D = D * (rng.random(D.shape[1]) < 0.5)
        elif what == "heavy tails":
            D = rng.standard_t(2.5, D.shape)
        elif what == "in proportion":
            D = W * rng.standard_normal(D.shape)
        else:
            D = D * np.exp(rng.standard_normal((len(D), 1)))
        update[name] = scaled_to(D, W, size)
    uneven = what in ("heavy tails", "in proportion")
    return stored_pair(base, update, recorded=("masked",) if what in MASKS else (), uneven=uneven)


def renumbered(base: Weights, order: list[int], fill: Weights | None = None) -> Weights:
    """Layers in another order; -1 takes that of `fill`."""
    found = {n: W for n, W in base.items() if ".layers." not in n}
    for at, source in enumerate(order):
        for name, W in (fill if source < 0 and fill else base).items():
            if f".layers.{max(source, 0)}." in name:
                found[name.replace(f".layers.{max(source, 0)}.", f".layers.{at}.")] = W
    return found


def other(what: str) -> Made:
    """No training of the base: layers at other numbers, or another model."""
    base = base_of(DEEP)
    tuned = base
    if what == "layer dropped":
        tuned = renumbered(base, [0, 1, 3, 4, 5])
    elif what == "layer inserted":
        tuned = renumbered(base, [0, 1, -1, 2, 3, 4, 5], as_stored(weights(DEEP, 5)))
    elif what == "unrelated":
        tuned = weights(DEEP, 1)
    return Made(
        narrow(base, BF16), narrow(tuned, BF16), None, recorded=(what,), apart=what == "unrelated",
    )  # fmt: skip


def part(what: str) -> Made:
    """Only a part of the model changed."""
    vlm = what.startswith("vision")
    base = base_of(VISION if vlm else SMALL)
    if what == "nothing":
        return stored_pair(base, {}, recorded=("same",))
    if what == "vectors alone":
        return stored_pair(base, changed(base, "all norms"), recorded=("only vectors",))
    if what == "two modules":
        update = {}
        for share, module in ((0.508, ".up_proj"), (0.492, ".down_proj")):
            for name in [n for n in base if module in n]:
                size = math.sqrt(share) / np.linalg.norm(base[name])
                update[name] = learned(name, base[name], size)
        return stored_pair(base, update)
    if what == "vision, frozen tower":
        return stored_pair(base, tune(base, 1e-2, [n for n in base if "vision_tower" not in n]))
    names = [n for n in base if "lm_head" in n]
    if what == "vision, one of two layers":
        names = [n for n in base if ".layers.2." in n and "language" in n]
    return stored_pair(base, tune(base, 5e-2, names))


def decay(cosine: float, size: float) -> Made:
    base = base_of()
    return stored_pair(base, decayed(base, size, cosine), ways={"weight_decay": True})
