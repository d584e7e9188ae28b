"""Known updates, planted ones and really trained ones, and the ways in which they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shadow.dtypes import FLOATS

SHAPE = (512, 768)
Array = NDArray[np.float64]


# -------------------------------------------------------------------------------- truth


def purity(D: Array) -> float:
    """X = 1 / participation_ratio - 1 / null_participation_ratio, by NumPy from the definition."""
    r, c = (D**2).sum(1), (D**2).sum(0)
    G = D @ D.T if D.shape[0] <= D.shape[1] else D.T @ D
    return float(((G**2).sum() - (r**2).sum() - (c**2).sum() + (D**4).sum()) / r.sum() ** 2)


def share(energies: Array) -> float:
    return float(energies.sum() ** 2 / (energies**2).sum() / len(energies))


# -------------------------------------------------------------------------------- updates


def coherent(
    rng: np.random.Generator,
    rank: int,
    part: float,
    power: float = 0.0,
    shape: tuple[int, int] = SHAPE,
) -> Array:
    """An update of norm 1: sigma_i ~ i^-power up to a rank with a part of the energy, and noise."""
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    S = (left * np.arange(1, rank + 1) ** -float(power)) @ right.T
    N = rng.standard_normal(shape)
    return math.sqrt(part) * S / np.linalg.norm(S) + math.sqrt(1 - part) * N / np.linalg.norm(N)


def uneven(rng: np.random.Generator, participation: float, size: int) -> Array:
    """Log-normal scales of lines whose energies have that participation share."""
    return np.exp(math.sqrt(-math.log(participation)) / 2 * rng.standard_normal(size))


def planted(name: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Weights and an update of a kind, the update of any norm."""
    W, D = 0.02 * rng.standard_normal(SHAPE), coherent(rng, 4, 0.3)
    if name.startswith("uneven rows"):
        of = float(name.rsplit(" ", 1)[1])
        D *= uneven(rng, of, SHAPE[0])[:, None] * uneven(rng, of, SHAPE[1])
    elif name.startswith("uneven weights"):
        scales = uneven(rng, 0.6, SHAPE[0])[:, None] * uneven(rng, 0.6, SHAPE[1])
        W *= scales
        D *= scales if name.endswith("both") else 1.0
    elif name == "embeddings":
        D *= (
            np.where(rng.random(SHAPE[0]) < 0.1, 1.0, 0.05)[:, None]
            * uneven(rng, 0.7, SHAPE[0])[:, None]
        )
    elif name == "rank 1":
        D = coherent(rng, 1, 1.0)
    elif name == "rank 4":
        D = coherent(rng, 4, 1.0)
    elif name == "1/i":
        D = coherent(rng, 256, 1.0, 1.0)
    elif name == "1/i, half noise":
        D = coherent(rng, 256, 0.5, 1.0)
    elif name == "heavy tails, t3":
        tails = rng.standard_t(3, SHAPE)
        D = math.sqrt(0.7) * tails / np.linalg.norm(tails) + math.sqrt(0.3) * coherent(rng, 4, 1.0)
    return W, D


PLANTS = (
    "even rows", "uneven rows 0.9", "uneven rows 0.7", "uneven rows 0.5", "uneven rows 0.3",
    "uneven weights", "uneven weights, both", "embeddings", "rank 1", "rank 4", "1/i",
    "1/i, half noise", "heavy tails, t3",
)  # fmt: skip


# -------------------------------------------------------------------------------- trained


class Block(nn.Module):
    """A decoder's block: causal attention and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        h = self.n1(x)
        q, k, v = (
            one(h).view(count, length, self.heads, -1).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(count, length, width))
        return x + self.down(functional.gelu(self.up(self.n2(x))))


class Decoder(nn.Module):
    """Two blocks of width 192 over 512 tokens."""

    def __init__(self, vocabulary: int = 512, width: int = 192) -> None:
        super().__init__()
        self.e = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.n, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.e.weight, std=0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.e(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.n(h))


def mlp() -> nn.Module:
    sides = (128, 384, 512, 256)
    layers = [
        part
        for i in range(3)
        for part in (nn.Linear(sides[i], sides[i + 1], bias=False), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(256, 10, bias=False))


Loss = Callable[[nn.Module, torch.Generator], torch.Tensor]


def classes(seed: int) -> Loss:
    """A task for the MLP: classes that depend on 24 directions of the input."""
    g = torch.Generator().manual_seed(seed)
    inner, outer = torch.randn(128, 24, generator=g) / 11, torch.randn(24, 10, generator=g)
    mean = torch.randn(128, generator=g)

    def loss(model: nn.Module, drawn: torch.Generator) -> torch.Tensor:
        x = torch.randn(64, 128, generator=drawn) + 0.5 * mean
        return functional.cross_entropy(model(x), (torch.tanh(2 * x @ inner) @ outer).argmax(1))

    return loss


def chain(seed: int) -> Loss:
    """A task for the decoder: a Markov chain over its tokens."""
    steps = torch.softmax(
        3 * torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)), 1
    )

    def loss(model: nn.Module, drawn: torch.Generator) -> torch.Tensor:
        x = torch.randint(0, 200, (16, 1), generator=drawn)
        for _ in range(48):
            x = torch.cat([x, torch.multinomial(steps[x[:, -1]], 1, generator=drawn)], 1)
        return functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return loss


def train(
    model: nn.Module, loss: Loss, optimiser: torch.optim.Optimizer, steps: int, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(model, drawn).backward()
        optimiser.step()


RATES = {"adam": (1e-5, 3e-6, 1e-6, 3e-7), "sgd": (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)}
MATRICES = {  # of the models, those with sides of 128 and more
    "mlp": ("0.weight", "2.weight", "4.weight"),
    "decoder": (
        "e.weight",
        "blocks.0.q.weight",
        "blocks.0.o.weight",
        "blocks.0.up.weight",
        "blocks.0.down.weight",
    ),
}


def trained(folder: Path) -> Iterator[tuple[str, str, Array, Array]]:
    """Optimiser, name, base weights and update, all of float32 training; from the folder where it
    is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plans = {"mlp": (mlp, classes, 1500, 300), "decoder": (Decoder, chain, 500, 100)}
    for kind, (make, task, first, second) in plans.items():
        torch.manual_seed(0)
        model = make()

        def based(
            model: nn.Module = model, task: Callable[[int], Loss] = task, steps: int = first
        ) -> None:
            train(model, task(0), torch.optim.AdamW(model.parameters(), 1e-3), steps, 1)

        base = _kept(folder / f"{kind}-base.pt", model, based)
        for optimiser, rates in RATES.items():
            for rate in rates:
                model.load_state_dict(base)

                def tuned(
                    model: nn.Module = model,
                    task: Callable[[int], Loss] = task,
                    steps: int = second,
                    optimiser: str = optimiser,
                    rate: float = rate,
                ) -> None:
                    known = model.parameters()
                    by = (
                        torch.optim.AdamW(known, rate, weight_decay=0.01)
                        if optimiser == "adam"
                        else torch.optim.SGD(known, rate, momentum=0.9)
                    )
                    train(model, task(1), by, steps, 2)

                after = _kept(folder / f"{kind}-{optimiser}-{rate:g}.pt", model, tuned)
                for name in MATRICES[kind]:
                    W = base[name].double().numpy()
                    yield optimiser, f"{kind} {name} {rate:g}", W, after[name].double().numpy() - W


def _kept(path: Path, model: nn.Module, make: Callable[[], None]) -> dict[str, torch.Tensor]:
    """The state of a model, from a file or trained and written to it."""
    if not path.exists():
        make()
        aside = path.with_suffix(".part")
        torch.save(model.state_dict(), aside)
        aside.rename(path)
    state: dict[str, torch.Tensor] = torch.load(path)
    return {name: one.clone() for name, one in state.items()}


# -------------------------------------------------------------------------------- storage

HISTORIES = (
    "stored base", "master copy", "masked", "frozen rows", "as weights", "decay",
)  # fmt: skip


def stored(
    history: str, W: Array, D: Array, dtype: str, norm: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, Array]:
    """Base and tuned side as stored, and the update before it was, of that relative norm."""

    def narrow(x: Array) -> torch.Tensor:
        return torch.from_numpy(x).to(getattr(torch, FLOATS[dtype].torch_name))

    if history == "masked":
        D = D * (rng.random(D.shape) < 0.2)
    elif history == "frozen rows":
        D = D * (rng.random(len(D)) < 0.5)[:, None]
    elif history == "as weights":
        D = D * np.abs(W)
    elif history == "decay":  # a fifth of the energy
        D = math.sqrt(0.8) * D / np.linalg.norm(D) - math.sqrt(0.2) * W / np.linalg.norm(W)
    D = D * (norm * np.linalg.norm(W) / np.linalg.norm(D))
    rounded = narrow(W).double().numpy()
    if history == "master copy":
        return narrow(W), narrow(W + D), D
    return narrow(W), narrow(rounded + D), D
