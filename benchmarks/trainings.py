"""Small trainings of known kinds: a decoder of bytes in float32, and what optimisers make of it.

The base learns one chain of bytes. Its values are rounded to BF16 and every training starts there:
AdamW with and without decay, SGD with momentum, Muon, DPO and a policy gradient as in GRPO, and
AdamW in BF16 alone, rounded at every step. Learning rates grow by 3 % a step, and a training stops
at each relative norm of SIZES for a moment to be kept: one run gives them all. Kept are float32
values in files of a folder, so that a run that was cut off goes on from there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices only wait for each other

import numpy as np
import torch
from histories import SIZES
from rounding_updates import Block, Decoder
from torch import nn
from torch.nn import functional

WIDTH, LAYERS, BYTES, LENGTH = 128, 4, 256, 48
GROWTH, MOST_STEPS, BASE_STEPS = 1.03, 420, 500
ROLES = {
    "n1": "input_layernorm",
    "n2": "post_attention_layernorm",
    **{one: f"self_attn.{one}_proj" for one in "qkvo"},
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
State = dict[str, torch.Tensor]
Loss = Callable[[nn.Module, torch.Generator], torch.Tensor]


class ByteDecoder(Decoder):
    """Four blocks of width 128 over 256 bytes."""

    def __init__(self) -> None:
        super().__init__(BYTES, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, 4) for _ in range(LAYERS))


def llama_name(name: str) -> str:
    """The name that a tensor of the decoder has in a checkpoint."""
    head, _, rest = name.partition(".")
    if head == "blocks":
        layer, role, kind = rest.split(".")
        return f"model.layers.{layer}.{ROLES[role]}.{kind}"
    return {"e": "model.embed_tokens", "n": "model.norm", "head": "lm_head"}[head] + f".{rest}"


# -------------------------------------------------------------------------------- tasks


def chain(seed: int, states: int = BYTES, count: int = 2048) -> torch.Tensor:
    """Sequences of a Markov chain over the first bytes, (count, LENGTH + 1)."""
    rng = np.random.default_rng([29, seed])
    logits = 2.5 * rng.standard_normal((states, states))
    steps = np.exp(logits - logits.max(1, keepdims=True))
    cumulative = np.cumsum(steps / steps.sum(1, keepdims=True), 1)
    found = [rng.integers(0, states, count)]
    for _ in range(LENGTH):
        drawn = rng.random((count, 1))
        found.append(np.minimum((cumulative[found[-1]] < drawn).sum(1), states - 1))
    return torch.from_numpy(np.stack(found, 1))


def drawn_from(data: torch.Tensor, count: int, g: torch.Generator) -> torch.Tensor:
    return data[torch.randint(0, len(data), (count,), generator=g)]


def next_byte(data: torch.Tensor, count: int = 16) -> Loss:
    def loss(model: nn.Module, g: torch.Generator) -> torch.Tensor:
        x = drawn_from(data, count, g)
        return functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return loss


def log_probabilities(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of each byte after the first, (count, length - 1)."""
    logits = torch.log_softmax(model(x[:, :-1]), 2)
    return logits.gather(2, x[:, 1:, None])[..., 0]


def preferences(start: nn.Module, wanted: torch.Tensor, unwanted: torch.Tensor) -> Loss:
    """DPO with beta .1 against the start."""
    reference = copy.deepcopy(start)

    def loss(model: nn.Module, g: torch.Generator) -> torch.Tensor:
        x = torch.cat([drawn_from(wanted, 8, g), drawn_from(unwanted, 8, g)])
        with torch.no_grad():
            before = log_probabilities(reference, x).sum(1)
        gain = log_probabilities(model, x).sum(1) - before
        return -functional.logsigmoid(0.1 * (gain[:8] - gain[8:])).mean()

    return loss


def rewards(data: torch.Tensor) -> Loss:
    """A policy gradient with advantages within groups of eight, as GRPO has it; bytes below 64 are
    rewarded.
    """

    def loss(model: nn.Module, g: torch.Generator) -> torch.Tensor:
        x = drawn_from(data, 4, g)[:, :8].repeat_interleave(8, 0)
        with torch.no_grad():
            for _ in range(12):
                now = torch.softmax(model(x)[:, -1], 1)
                x = torch.cat([x, torch.multinomial(now, 1, generator=g)], 1)
        reward = (x[:, 8:] < 64).float().mean(1).view(4, 8)
        gain = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        return -(gain.view(-1, 1) * log_probabilities(model, x)[:, 7:]).mean()

    return loss


# -------------------------------------------------------------------------------- optimisers


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by five Newton-Schulz steps; for matrices."""

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                momentum = self.state[one].setdefault("momentum", torch.zeros_like(one))
                momentum.mul_(0.95).add_(one.grad)
                one.sub_(group["lr"] * orthogonal(one.grad + 0.95 * momentum))


def orthogonal(G: torch.Tensor) -> torch.Tensor:
    X = G / (G.norm() + 1e-7)
    X = X.T if len(G) > len(G.T) else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if len(G) > len(G.T) else X


def optimisers(kind: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    every = list(model.parameters())
    if kind == "sgd":
        return [torch.optim.SGD(every, 1e-4, momentum=0.9)]
    if kind == "muon":
        inside = [
            one for name, one in model.named_parameters() if "blocks" in name and one.ndim == 2
        ]
        rest = [one for one in every if not any(one is other for other in inside)]
        return [Muon(inside, 3e-6), torch.optim.AdamW(rest, 1e-6, weight_decay=0.0)]
    rate = 5e-6 if kind.startswith("bf16") else 1e-6
    return [torch.optim.AdamW(every, rate, weight_decay=4.0 if kind == "decay" else 0.0)]


# -------------------------------------------------------------------------------- runs

RUNS = ("adamw", "dpo", "grpo", "decay", "sgd", "muon", "bf16-nearest", "bf16-stochastic")
SEEDS = ("adamw-2", "adamw-3", "adamw-4")  # for means


def base_state(folder: Path) -> State:
    """The float32 base, trained where the folder lacks it."""
    path = folder / "base.npz"
    if not path.exists():
        torch.manual_seed(0)
        model = ByteDecoder()
        by = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
        loss, g = next_byte(chain(0)), torch.Generator().manual_seed(1)
        for step in range(BASE_STEPS):
            by.param_groups[0]["lr"] = 2e-3 * (1 - step / BASE_STEPS)
            by.zero_grad()
            loss(model, g).backward()
            by.step()
        write(path, model.state_dict())
    return read(path)


def trained(folder: Path, kind: str, size: float) -> tuple[State, State]:
    """What a training left at a relative norm, in float32, and the sum of its steps, which is
    another where each was rounded. Starts from the base in BF16.
    """
    path = folder / f"{kind}-{size:g}.npz"
    if not path.exists():
        run(folder, kind)
    found = read(path)
    steps = {name[6:]: one for name, one in found.items() if name.startswith("steps.")}
    return {name: one for name, one in found.items() if not name.startswith("steps.")}, steps


def run(folder: Path, kind: str) -> None:
    """Train through all sizes, and keep each."""
    torch.manual_seed(2)
    start = {name: one.bfloat16().float() for name, one in base_state(folder).items()}
    model = ByteDecoder()
    model.load_state_dict(start)
    seed = int(kind.partition("-")[2]) if kind in SEEDS else 1
    loss = next_byte(chain(seed, 200 if kind in SEEDS else 64))
    if kind == "dpo":
        loss = preferences(model, chain(5), chain(6))
    elif kind == "grpo":
        loss = rewards(chain(0))
    by, g = optimisers(kind, model), torch.Generator().manual_seed(10 + seed)
    sizes = [size for size in SIZES if kind not in SEEDS or size <= 6e-3]
    total = {name: torch.zeros_like(one) for name, one in start.items()}
    for _ in range(MOST_STEPS):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        for one in by:
            one.zero_grad()
        loss(model, g).backward()
        for one in by:
            one.step()
            for group in one.param_groups:
                group["lr"] *= GROWTH
        if kind.startswith("bf16"):
            round_step(model, before, total, kind, g)
        while sizes and relative(model.state_dict(), start) >= sizes[0]:
            kept = model.state_dict() | {f"steps.{name}": one for name, one in total.items()}
            write(
                folder / f"{kind}-{sizes.pop(0):g}.npz",
                kept if kind.startswith("bf16") else model.state_dict(),
            )
        if not sizes:
            return
    raise RuntimeError(f"{kind} did not reach {sizes} in {MOST_STEPS} steps")


@torch.no_grad()
def round_step(
    model: nn.Module,
    before: Mapping[str, torch.Tensor],
    total: State,
    kind: str,
    g: torch.Generator,
) -> None:
    """Round every weight to BF16, to the nearest or at random by its distance."""
    for name, one in model.named_parameters():
        total[name] += one - before[name]
        if kind.endswith("nearest"):
            one.copy_(one.bfloat16().float())
        else:  # noise in the 16 bits that are cut off
            bits = one.view(torch.int32) + torch.randint(0, 1 << 16, one.shape, generator=g).int()
            one.copy_((bits & -65536).view(torch.float32))


def relative(state: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """Norm of the change of all matrices over theirs."""
    names = [name for name, one in start.items() if one.ndim == 2]
    change = sum(float((state[name] - start[name]).double().square().sum()) for name in names)
    return float(
        np.sqrt(change / sum(float(start[name].double().square().sum()) for name in names))
    )


def write(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part.npz")
    np.savez(aside, **{name: one.detach().numpy() for name, one in state.items()})
    aside.rename(path)


def read(path: Path) -> State:
    with np.load(path) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}
