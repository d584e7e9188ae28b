"""Small decoders of bytes as plain tensors by the names of a checkpoint, and how they are trained.

Two bases learn Python's own library as text. A training is a loss, a rule that makes a weight of a
gradient, and a number of steps; what was trained is kept in a folder, so that a run that was cut
off goes on from there.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from histories import decoder
from torch.nn import functional

State = dict[str, torch.Tensor]
Loss = Callable[[State, torch.Generator], torch.Tensor]
# (name, weight, gradient, memory, step from 1) -> the weight after it
Rule = Callable[[str, torch.Tensor, torch.Tensor, State, int], torch.Tensor]
BYTES, LENGTH, HEAD, UNSEEN = 256, 64, 32, 240  # UNSEEN: bytes from here on are in no text
READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # of the residual stream
WRITES = ("o_proj", "down_proj")
EMBED, NORM, LM = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def fresh(width: int, layers: int, mlp: int, seed: int) -> State:
    """Weights before any training, with gated MLPs and biases on q, k and v."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in decoder(layers, width, mlp, BYTES, biases=True).items():
        if len(shape) == 2:
            found[name] = torch.randn(shape, generator=g) * 0.8 / math.sqrt(shape[1])
        else:
            found[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    found[EMBED] *= 0.5
    return found


EXPERTS = 4


def with_experts(W: State, seed: int) -> State:
    """EXPERTS instead of each MLP, drawn anew, and a router that chooses two."""
    g = torch.Generator().manual_seed(seed)
    found = {name: one for name, one in W.items() if ".mlp." not in name}
    for name, one in W.items():
        layer, _, part = name.partition(".mlp.")
        for at in range(EXPERTS if part else 0):
            new = torch.randn(one.shape, generator=g) * one.std()
            found[f"{layer}.mlp.experts.{at}.{part}"] = new
        if part.startswith("gate"):
            found[f"{layer}.mlp.gate.weight"] = 0.1 * torch.randn(
                EXPERTS, one.shape[1], generator=g
            )
    return found


def layers_of(W: Mapping[str, torch.Tensor]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in W if ".layers." in name)


def matrices(W: Mapping[str, torch.Tensor]) -> list[str]:
    """The matrices of layers."""
    return [name for name, one in W.items() if ".layers." in name and one.ndim == 2]


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain


@cache
def turns(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(length)[:, None] * 100.0 ** -(torch.arange(HEAD // 2) / (HEAD // 2))
    return angles.cos(), angles.sin()


def rope(x: torch.Tensor) -> torch.Tensor:
    cos, sin = turns(x.shape[2])
    one, two = x.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


def forward(W: State, x: torch.Tensor, taps: State | None = None) -> torch.Tensor:
    """Logits; taps gets the inputs of every matrix of layers and of the head, (tokens, columns)."""

    def linear(name: str, h: torch.Tensor) -> torch.Tensor:
        if taps is not None:
            taps[f"{name}.weight"] = h.detach().flatten(0, 1)
        return functional.linear(h, W[f"{name}.weight"], W.get(f"{name}.bias"))

    def mlp(name: str, n: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(linear(f"{name}.gate_proj", n))
        return linear(f"{name}.down_proj", gate * linear(f"{name}.up_proj", n))

    def routed(name: str, n: torch.Tensor) -> torch.Tensor:
        shares = linear(f"{name}.gate", n).softmax(-1)
        top = shares.topk(2, -1)
        chosen = torch.zeros_like(shares).scatter(-1, top.indices, top.values)
        parts = (
            chosen[..., at, None] * mlp(f"{name}.experts.{at}", n) for at in range(shares.shape[-1])
        )
        return sum(parts, torch.zeros_like(n))

    h = W[EMBED][x]
    count, length = x.shape
    for at in range(layers_of(W)):
        layer = f"model.layers.{at}"
        n = rms(h, W[f"{layer}.input_layernorm.weight"])
        q, k, v = (
            linear(f"{layer}.self_attn.{one}_proj", n).view(count, length, -1, HEAD).transpose(1, 2)
            for one in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
        h = h + linear(f"{layer}.self_attn.o_proj", mixed.transpose(1, 2).flatten(2))
        n = rms(h, W[f"{layer}.post_attention_layernorm.weight"])
        has_experts = f"{layer}.mlp.gate.weight" in W
        h = h + (routed if has_experts else mlp)(f"{layer}.mlp", n)
    head = LM if LM in W else EMBED
    return functional.linear(rms(h, W[NORM]), W[head])


# -------------------------------------------------------------------------------- data


@cache
def text(kind: str) -> torch.Tensor:
    """Bytes: `code` and `more code` of the library, `prose` and `tables` from elsewhere in it."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py"))
    chosen = {
        "code": files[::2],
        "more code": files[1::2],
        "prose": [library / "pydoc_data" / "topics.py"],
        "tables": sorted((library / "encodings").glob("cp*.py")),
    }[kind]
    raw = b"".join(path.read_bytes() for path in chosen)[:2_000_000]
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    return values[values < UNSEEN]


def windows(kind: str, count: int, g: torch.Generator) -> torch.Tensor:
    values = text(kind)
    starts = torch.randint(0, len(values) - LENGTH - 1, (count, 1), generator=g)
    return values[starts + torch.arange(LENGTH + 1)]


def next_byte(kind: str, count: int = 8) -> Loss:
    def loss(W: State, g: torch.Generator) -> torch.Tensor:
        x = windows(kind, count, g)
        return functional.cross_entropy(forward(W, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return loss


# -------------------------------------------------------------------------------- training


def train(
    W: State,
    loss: Loss,
    rule: Rule,
    steps: int,
    seed: int = 0,
    only: Callable[[str, int], bool] = lambda name, step: True,
    after: Callable[[State, State, int], None] = lambda before, W, step: None,
) -> State:
    """The weights after so many steps; only: which are trained in a step; after: may change the
    weights of the step before in place.
    """
    g = torch.Generator().manual_seed(1000 + seed)
    W = {name: one.clone() for name, one in W.items()}
    memory: dict[str, State] = {name: {} for name in W}
    for step in range(1, steps + 1):
        names = [name for name in W if only(name, step)]
        live = {name: W[name].detach().requires_grad_() for name in names}
        value = loss({**W, **live}, g)
        gradients = torch.autograd.grad(value, list(live.values()), allow_unused=True)
        before = dict(W)
        for name, one in zip(names, gradients, strict=True):
            if one is not None:
                W[name] = rule(name, before[name], one, memory[name], step).detach()
        after(before, W, step)
    return W


def rule(step: Callable[..., torch.Tensor]) -> Callable[..., Rule]:
    """A rule of training from a step whose last arguments are its settings."""
    return lambda *settings, **more: (
        lambda name, w, g, m, number: step(name, w, g, m, number, *settings, **more)
    )


@rule
def adamw(name, w, g, m, step, rate, decay=0.0, betas=(0.9, 0.98)):
    m["first"] = betas[0] * m.get("first", torch.zeros_like(w)) + (1 - betas[0]) * g
    m["second"] = betas[1] * m.get("second", torch.zeros_like(w)) + (1 - betas[1]) * g * g
    first, second = m["first"] / (1 - betas[0] ** step), m["second"] / (1 - betas[1] ** step)
    return w * (1 - rate * decay) - rate * first / (second.sqrt() + 1e-8)


@dataclass(frozen=True)
class Base:
    """A base: its weights in float32, and the same as they are stored in BF16."""

    name: str
    full: State
    folder: Path
    start: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = {name: one.bfloat16().float() for name, one in self.full.items()}
        object.__setattr__(self, "start", stored)

    def kept(self, name: str, make: Callable[[], State]) -> State:
        """What was trained from this base, from the folder where it is there."""
        return kept(self.folder / f"{self.name}-{name}.pt", make)

    def task(self, number: int) -> State:
        """A fine-tune in float32, each of other texts and batches."""
        kind = ("prose", "tables", "more code")[number % 3]
        return self.kept(
            f"task-{number}",
            lambda: train(self.start, next_byte(kind), adamw(2e-4), 30, 50 + number),
        )

    def at(self, seed: int) -> Base:
        """This base, or for another seed one of its fine-tunes in its stead."""
        return self if not seed else Base(f"{self.name}.{seed}", self.task(seed), self.folder)

    def inputs(self) -> State:
        """What every matrix reads of 32 windows of text."""
        taps: State = {}
        with torch.no_grad():
            forward(self.start, windows("code", 32, torch.Generator().manual_seed(7))[:, :-1], taps)
        return taps


def kept(path: Path, make: Callable[[], State]) -> State:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        torch.save(make(), aside)
        aside.rename(path)
    found: State = torch.load(path)
    return found


SIZES = {"narrow": (128, 4, 384, 700), "wide": (192, 3, 512, 500)}  # width, layers, MLP, steps
# of some kinds alone: EXPERTS in each layer, and rows that are all shorter than 256
SPECIAL = {"moe": (128, 3, 160, 300), "short": (128, 3, 192, 300), "deep": (96, 6, 256, 300)}


def base(name: str, folder: Path) -> Base:
    width, layers, mlp, steps = {**SIZES, **SPECIAL}[name]

    def falling(n: str, w: torch.Tensor, g: torch.Tensor, m: State, step: int) -> torch.Tensor:
        rate = 3e-3 * min(1.0, step / 30) * (1.05 - step / steps)
        return adamw(rate, 0.05)(n, w, g, m, step)

    def make() -> State:
        start = fresh(width, layers, mlp, len(name))
        if name == "moe":
            start = with_experts(start, 3)
        return train(start, next_byte("code", 24), falling, steps, len(name))

    return Base(name, kept(folder / f"{name}.pt", make), folder)


def difference(after: State, before: State, names: Iterable[str] | None = None) -> State:
    return {
        name: after[name] - before[name]
        for name in (after if names is None else names)
        if name in before and before[name].shape == after[name].shape
    }
