"""Kinds of adapters: trained on matrices of a base, and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from histories import Made
from kind_edits import few_bits
from kind_models import Base, State, adamw, matrices, train
from kind_trainings import PROSE, TRAININGS, Kind, made, sized, some

Params = State
Init = Callable[[torch.Generator, torch.Tensor], Params]
Apply = Callable[[torch.Tensor, Params], torch.Tensor]


def low(rank: int) -> Init:
    return lambda g, w: {
        "A": torch.randn(rank, w.shape[1], generator=g) / math.sqrt(w.shape[1]),
        "B": torch.zeros(w.shape[0], rank),
    }


def added(w: torch.Tensor, p: Params) -> torch.Tensor:
    return w + 2 * p["B"] @ p["A"]


def dora(w: torch.Tensor, p: Params) -> torch.Tensor:
    turned = added(w, p)
    return (w.norm(dim=1, keepdim=True) + p["m"]) * turned / turned.norm(dim=1, keepdim=True)


def vera(w: torch.Tensor, p: Params) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    A, B = torch.randn(8, w.shape[1], generator=g), torch.randn(w.shape[0], 8, generator=g)
    return w + p["b"][:, None] * B @ (p["d"][:, None] * A) / math.sqrt(w.shape[1])


def pissa(g: torch.Generator, w: torch.Tensor) -> Params:
    U, S, V = torch.linalg.svd(w, full_matrices=False)
    B, A = U[:, :8] * S[:8].sqrt(), S[:8].sqrt()[:, None] * V[:8]
    return {"A": A, "B": B}


def loha(w: torch.Tensor, p: Params) -> torch.Tensor:
    return w + (p["B"] @ p["A"]) * (p["D"] @ p["C"])


def lokr(w: torch.Tensor, p: Params) -> torch.Tensor:
    return w + torch.kron(p["C"], p["B"] @ p["A"])


def boft(w: torch.Tensor, p: Params) -> torch.Tensor:
    S = p["S"] - p["S"].transpose(1, 2)
    eye = torch.eye(S.shape[1])
    R = torch.linalg.solve(eye + S, eye - S)
    return (R @ w.view(len(S), -1, w.shape[1])).reshape(w.shape)


def fourier(w: torch.Tensor, p: Params) -> torch.Tensor:
    at = torch.randperm(w.numel(), generator=torch.Generator().manual_seed(6))[: len(p["c"])]
    spectrum = torch.zeros(w.numel()).index_put((at,), p["c"]).view(w.shape)
    return w + torch.fft.ifft2(spectrum).real * 10


def adapted(
    base: Base, seed: int, init: Init, apply: Apply, names: list[str] | None = None,
    start: State | None = None, rate: float = 2e-3, steps: int = 15,
) -> State:  # fmt: skip
    """Weights with adapters trained on some matrices, merged in float32; start: other weights under
    them.
    """
    start = start or base.start
    names = names or matrices(start)
    g = torch.Generator().manual_seed(seed)
    first = {f"{n}/{k}": v for n in names for k, v in init(g, start[n]).items()}

    def of(p: State) -> State:
        own: dict[str, Params] = {name: {} for name in names}
        for key, one in p.items():
            name, _, part = key.rpartition("/")
            own[name][part] = one
        return {**start, **{name: apply(start[name], own[name]) for name in names}}

    end = train(first, lambda p, g: PROSE(of(p), g), adamw(rate), steps, seed)
    return {name: one.detach() for name, one in of(end).items()}


def adapter(
    init: Init, apply: Apply, low_rank: bool | None = True, names: str = "", turned: bool = False,
    rate: float = 2e-3,
) -> Kind:  # fmt: skip
    def kind(base: Base, seed: int, name: str = "") -> Made:
        chosen = [one for one in matrices(base.start) if names in one or not names]
        if "|" in names:
            chosen = [one for one in matrices(base.start) if some(names)(one, 0)]

        def make() -> State:
            return adapted(base, seed, init, apply, chosen, rate=rate)

        after = base.kept(f"{name}-{seed}", make) if name else make()
        told = ("low_rank",) if low_rank else ()
        return made(base, after, ways={"merged_adapter": low_rank}, told=told, rotated=turned)

    return kind


def pissa_merged(base: Base, seed: int) -> Made:
    """Trained from the leading part of each matrix, which is taken off the rest."""
    off = {
        name: base.start[name] - (p := pissa(torch.Generator(), base.start[name]))["B"] @ p["A"]
        for name in matrices(base.start)
    }
    start = {**base.start, **off}
    after = adapted(base, seed, pissa, lambda w, p: w + p["B"] @ p["A"], start=start, rate=5e-4)
    return made(base, after, ways={"merged_adapter": True})


def on_few_bits(how: str, base: Base, seed: int) -> Made:
    """LoftQ and QLoRA: adapters on NF4, merged there, or onto the 16 bits that it was made of."""
    inside = matrices(base.start)
    low_bits = {**base.start, **{name: few_bits("NF4", base.start[name]) for name in inside}}

    def nearest(g: torch.Generator, w: torch.Tensor) -> Params:
        name = next(name for name in inside if low_bits[name] is w)
        U, S, V = torch.linalg.svd(base.start[name] - w, full_matrices=False)
        return {"A": S[:8].sqrt()[:, None] * V[:8], "B": U[:, :8] * S[:8].sqrt()}

    if how == "LoftQ":
        after = adapted(
            base, seed, nearest, lambda w, p: w + p["B"] @ p["A"], start=low_bits, rate=5e-4
        )
        return made(base, after, ways={"merged_adapter": None, "quantised_copy": None})
    trained = adapted(base, seed, low(8), added, start=low_bits)
    after = {n: base.start[n] + trained[n] - low_bits[n] for n in base.start}
    return made(base, after, ways={"merged_adapter": True}, told=("low_rank",))


def relora(base: Base, seed: int) -> Made:
    W = base.start
    for at in range(3):
        W = adapted(base, seed + 100 * at, low(4), added, start=W, steps=8)
    return made(base, W, ways={"merged_adapter": None})


def then_all(base: Base, seed: int) -> Made:
    after = train(adapted(base, seed, low(8), added), PROSE, adamw(1e-4), 10, seed)
    return made(base, after, ways={"merged_adapter": None})


def boft_blocks(g: torch.Generator, w: torch.Tensor) -> Params:
    return {"S": torch.zeros(len(w) // 16, 16, 16)}


ADAPTERS: Mapping[str, Kind] = {
    "LoRA, rank 1": adapter(low(1), added),
    "LoRA, rank 8": adapter(low(8), added),
    "LoRA on q and v": adapter(low(8), added, names="q_proj|v_proj", rate=5e-3),
    "DoRA": adapter(lambda g, w: {**low(8)(g, w), "m": torch.zeros(len(w), 1)}, dora, None),
    "VeRA": adapter(
        lambda g, w: {"b": torch.zeros(len(w)), "d": torch.full((8,), 0.1)}, vera, rate=5e-2
    ),
    "PiSSA": pissa_merged,
    "LoftQ": partial(on_few_bits, "LoftQ"),
    "QLoRA onto 16 bits": partial(on_few_bits, "QLoRA"),
    "ReLoRA": relora,
    "LoHa": adapter(
        lambda g, w: {**low(4)(g, w), **{
            key: torch.randn(shape, generator=g) / 2
            for key, shape in (("C", (4, w.shape[1])), ("D", (len(w), 4)))
        }}, loha, None,
    ),
    "LoKr": adapter(
        lambda g, w: {
            "C": torch.randn(8, 8, generator=g), "A": torch.randn(4, w.shape[1] // 8, generator=g),
            "B": torch.zeros(len(w) // 8, 4),
        }, lokr, None, rate=2e-4,
    ),
    "BOFT": adapter(boft_blocks, boft, False, turned=True),
    "FourierFT": adapter(
        lambda g, w: {"c": torch.zeros(1000)}, fourier, False, turned=True, rate=1.0
    ),
    "LoRA, then all entries": then_all,
}  # fmt: skip


def resized(name: str, size: float, base: Base, seed: int) -> Made:
    """A kind of training or adapter, as a shorter one would leave it."""
    kind = {**TRAININGS, **ADAPTERS}[name]
    pair = kind(base, seed, name)
    after = {n: base.start[n] + torch.from_numpy(D).float() for n, D in (pair.update or {}).items()}
    return made(base, sized(base, {**base.start, **after}, size), ways=pair.ways)


RESIZED = {
    f"{name} to {size:g}": partial(resized, name, size)
    for name in ("AdamW", "AdamW, decay .1", "Muon", "SGD", "Lion", "GaLore", "LoRA, rank 8")
    for size in (3e-4, 8e-4, 2e-3, 6e-3)
}
