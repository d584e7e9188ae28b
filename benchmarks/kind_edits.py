"""Kinds of change that need no training: edits, other weights of the same function, copies in few
bits, pruning, other shapes and merges. Of a base and a seed, what is stored of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from histories import BF16, NF4, Made, Ways, narrow
from kind_models import (
    BYTES,
    EMBED,
    HEAD,
    LM,
    NORM,
    READS,
    WRITES,
    Base,
    State,
    difference,
    layers_of,
    matrices,
)

Kind = Callable[[Base, int], Made]
Change = Callable[[State, torch.Generator, Base], State]
LEVELS = torch.from_numpy(NF4).float()


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(7000 + seed)


def pair(base: State, tuned: State, update: bool = True, **rest) -> Made:
    """Both sides in BF16; update: the change in float32 is the truth, else nothing was trained and
    no difference is known.
    """
    sides = [
        narrow({name: one.double().numpy() for name, one in W.items()}, BF16) for W in (base, tuned)
    ]
    known = {n: D.double().numpy() for n, D in difference(tuned, base).items() if D.any()}
    return Made(*sides, known if update else None, **rest)


def edit(change: Change, **rest) -> Kind:
    def kind(base: Base, seed: int) -> Made:
        base = base.at(seed)
        return pair(base.start, {**base.start, **change(base.start, drawn(seed), base)}, **rest)

    return kind


def rotation(size: int, g: torch.Generator) -> torch.Tensor:
    Q: torch.Tensor = torch.linalg.qr(torch.randn(size, size, generator=g))[0]
    return Q


def ending(W: State, parts: tuple[str, ...], layers: range | None = None) -> list[str]:
    """The matrices of these modules, of all layers or of some."""
    return [
        name
        for name in matrices(W)
        if any(f"{one}.weight" in name for one in parts)
        and (layers is None or int(name.split(".")[2]) in layers)
    ]


# -------------------------------------------------------------------------------- edits


def located(rank: int, W: State, g: torch.Generator, base: Base) -> State:
    """ROME and MEMIT: down of a middle layer, or of several, writes other values for given keys."""
    inputs, found = base.inputs(), {}
    for name in ending(W, ("down_proj",), range(1, 2 if rank == 1 else layers_of(W))):
        X = inputs[name]
        C = X.T @ X / len(X) + 1e-3 * torch.eye(X.shape[1])
        K = X[torch.randperm(len(X), generator=g)[:rank]]
        keys = torch.linalg.solve(C, K.T).T
        wanted = torch.randn(rank, len(W[name]), generator=g) * (K @ W[name].T).norm() / rank
        gram = keys @ K.T + 1e-4 * torch.eye(rank)
        found[name] = W[name] + 0.2 * wanted.T @ torch.linalg.solve(gram, keys)
    return found


def ablated(strength: float, layers: range | None, W: State, g: torch.Generator, _: Base) -> State:
    """A direction taken out of all that writes into the stream."""
    r = torch.randn(W[EMBED].shape[1], generator=g)
    r /= r.norm()
    found = {n: W[n] - strength * torch.outer(r, r @ W[n]) for n in ending(W, WRITES, layers)}
    if layers is None:
        found[EMBED] = W[EMBED] - strength * torch.outer(W[EMBED] @ r, r)
    return found


def truncated(share: float, names: Callable[[State], list[str]], W: State, *_: object) -> State:
    """The leading part of the singular values alone (LASER: of few matrices)."""
    found = {}
    for name in names(W):
        U, S, V = torch.linalg.svd(W[name], full_matrices=False)
        rank = max(1, int(share * len(S)))
        found[name] = U[:, :rank] * S[:rank] @ V[:rank]
    return found


def scaled(by: float, names: Callable[[State], list[str]], W: State, *_: object) -> State:
    return {name: by * W[name] for name in names(W)}


def silenced(W: State, g: torch.Generator, _: Base) -> State:
    """Two heads of every layer write nothing."""
    found = {}
    for name in ending(W, ("o_proj",)):
        found[name] = W[name].clone()
        for head in torch.randperm(len(W[name]) // HEAD, generator=g)[:2].tolist():
            found[name][:, head * HEAD : (head + 1) * HEAD] = 0
    return found


def untied(base: Base, seed: int) -> Made:
    """A tied embedding gets a head of its own, which was trained."""
    tied = {n: w for n, w in base.start.items() if n != LM}
    own = base.task(1 + seed)
    update = (own[LM] - base.start[LM]) + base.start[EMBED]
    return pair(tied, {**tied, LM: update}, update=False)


LOW: Ways = {"merged_adapter": False}
EDITS: Mapping[str, Kind] = {
    "ROME": edit(partial(located, 1), ways=LOW),
    "MEMIT": edit(partial(located, 8), ways=LOW),
    "a direction ablated": edit(partial(ablated, 1.0, None), ways=LOW),
    "a direction ablated, some layers": edit(partial(ablated, 1.0, range(1, 3)), ways=LOW),
    "a direction ablated, twice": edit(partial(ablated, 2.0, None), ways=LOW),
    "LASER": edit(partial(truncated, 0.1, lambda W: ending(W, ("down_proj",), range(2, 4)))),
    "truncated SVD": edit(partial(truncated, 0.5, matrices)),
    "logits scaled": edit(partial(scaled, 1.1, lambda W: [LM]), recorded=("scaled",)),
    "residual writes scaled": edit(
        partial(scaled, 0.97, lambda W: ending(W, WRITES)), recorded=("scaled",),
        ways={"weight_decay": None},
    ),
    "heads silenced": edit(silenced, recorded=("zeroed",)),
    "an embedding untied": untied,
}  # fmt: skip

# -------------------------------------------------------------------------------- same function


def gains_folded(W: State) -> State:
    """Gains of norms multiplied into what reads them; 1 in their place."""
    found = dict(W)
    for at in range(layers_of(W)):
        for norm, parts in (("input", READS[:3]), ("post_attention", READS[3:])):
            gain = W[name := f"model.layers.{at}.{norm}_layernorm.weight"]
            found[name] = torch.ones_like(gain)
            for one in ending(W, parts, range(at, at + 1)):
                found[one] = W[one] * gain
    found[LM], found[NORM] = W[LM] * W[NORM], torch.ones_like(W[NORM])
    return found


def stream_turned(W: State, R: torch.Tensor, gains: torch.Tensor | None = None) -> State:
    """The stream in another basis; gains: their order, where norms keep theirs."""
    found = dict(W)
    for name, one in W.items():
        if name in (EMBED, LM) or any(f"{part}.weight" in name for part in READS):
            found[name] = one @ R
        elif any(f"{part}.weight" in name for part in WRITES):
            found[name] = R.T @ one
        elif "norm" in name and gains is not None:
            found[name] = one[gains]
    return found


def quarot(W: State, g: torch.Generator, _: Base) -> State:
    return stream_turned(gains_folded(W), rotation(W[EMBED].shape[1], g))


def permuted(W: State, g: torch.Generator, _: Base) -> State:
    order = torch.randperm(W[EMBED].shape[1], generator=g)
    return stream_turned(W, torch.eye(len(order))[:, order], order)


def flipped(W: State, g: torch.Generator, _: Base) -> State:
    signs = torch.randint(0, 2, (W[EMBED].shape[1],), generator=g) * 2.0 - 1
    return stream_turned(W, torch.diag(signs))


def values_turned(W: State, g: torch.Generator, _: Base) -> State:
    """v and o, by one rotation a head."""
    found = {}
    for v, o in zip(ending(W, ("v_proj",)), ending(W, ("o_proj",)), strict=True):
        heads = [rotation(HEAD, g) for _ in range(len(W[o]) // HEAD)]
        R, bias = torch.block_diag(*heads), v.replace("weight", "bias")
        found |= {v: R @ W[v], bias: R @ W[bias], o: W[o] @ R.T}
    return found


def heads_permuted(W: State, g: torch.Generator, _: Base) -> State:
    found = {}
    for at in range(layers_of(W)):
        layer = f"model.layers.{at}.self_attn"
        order = torch.randperm(len(W[f"{layer}.o_proj.weight"]) // HEAD, generator=g)
        rows = (order[:, None] * HEAD + torch.arange(HEAD)).flatten()
        for one in "qkv":
            for part in ("weight", "bias"):
                found[name] = W[name := f"{layer}.{one}_proj.{part}"][rows]
        found[name] = W[name := f"{layer}.o_proj.weight"][:, rows]
    return found


def smoothed(power: float, W: State, g: torch.Generator, base: Base) -> State:
    """SmoothQuant, and AWQ's scales folded: factors of columns move into the norm before them."""
    inputs, found = base.inputs(), dict(W)
    for at in range(layers_of(W)):
        for norm, parts in (("input", READS[:3]), ("post_attention", READS[3:])):
            names = ending(W, parts, range(at, at + 1))
            seen = inputs[names[0]].abs().amax(0).clamp(min=1e-4) ** power
            read = torch.stack([W[one].abs().amax(0) for one in names]).amax(0) ** (1 - power)
            s = seen / read if power == 0.5 else seen / seen.mean()
            gain = f"model.layers.{at}.{norm}_layernorm.weight"
            found[gain] = W[gain] / s
            found |= {one: W[one] * s for one in names}
    return found


SAME: Mapping[str, Kind] = {
    "QuaRot": edit(quarot, update=False, recorded=("rotated",)),
    "v and o rotated": edit(values_turned, update=False, recorded=("rotated",)),
    "stream permuted": edit(permuted, update=False, recorded=("rotated",), facts=("permuted",)),
    "stream signs flipped": edit(flipped, update=False, recorded=("rotated",)),
    "heads permuted": edit(
        heads_permuted, update=False, recorded=("rotated",), facts=("permuted",)
    ),
    "SmoothQuant": edit(partial(smoothed, 0.5), scaled=True),
    "AWQ folded": edit(partial(smoothed, 0.25), scaled=True),
    "norms folded": edit(lambda W, g, base: gains_folded(W), scaled=True),
}

# -------------------------------------------------------------------------------- few bits


def blocks(W: torch.Tensor, size: int) -> torch.Tensor:
    return W.reshape(len(W), -1, min(size, W.shape[1]))


def grid(W: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and zero points of the blocks of rows, from their least and largest entries."""
    parts = blocks(W, size)
    low, high = parts.amin(2, True).clamp(max=0), parts.amax(2, True).clamp(min=0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    return step, torch.round(-low / step)


def on_grid(parts: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return ((torch.round(parts / step) + zero).clamp(0, 2**bits - 1) - zero) * step


def few_bits(how: str, W: torch.Tensor) -> torch.Tensor:
    """A matrix rounded to the nearest value of a format, as float values again."""
    if how.startswith("int"):  # symmetric int8 by row, or intN in blocks of 32
        if how == "int8":
            step = W.abs().amax(1, True) / 127
            return torch.round(W / step) * step
        bits = int(how[3])
        return on_grid(blocks(W, 32), *grid(W, bits, 32), bits).view(W.shape)
    if how == "NF4":
        parts = blocks(W, 64)
        most = parts.abs().amax(2, True)
        near = (parts[..., None] / most[..., None] - LEVELS).abs().argmin(-1)
        return (LEVELS[near] * most).view(W.shape)
    if how == "FP8":
        return _fp8(W, W.abs().max() / 448)
    if how == "FP8, e5m2":
        return _fp8(W, W.abs().max() / 57344, torch.float8_e5m2)
    if how == "FP8 blocks":
        parts = blocks(W, 64)
        return _fp8(parts, parts.abs().amax(2, True) / 448).view(W.shape)
    if how == "MXFP8":
        parts = blocks(W, 32)
        scale = torch.exp2(torch.floor(torch.log2(parts.abs().amax(2, True))) - 8)
        return _fp8(parts, scale).view(W.shape)
    if how == "ternary":
        mean = W.abs().mean()
        return torch.round(W / mean).clamp(-1, 1) * mean
    if how == "clipped int3":
        step = blocks(W, 64).abs().amax(2, True) * 0.8 / 3
        return (torch.round(blocks(W, 64) / step).clamp(-4, 3) * step).view(W.shape)
    return _hqq(W)


def _fp8(
    W: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> torch.Tensor:
    most = torch.finfo(dtype).max
    return (W / scale).clamp(-most, most).to(dtype).float() * scale


def _hqq(W: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Zero points by half-quadratic splitting, for a loss of power .7."""
    parts = blocks(W, 64)
    step, zero = grid(W, bits, 64)
    beta = 10.0
    for _ in range(20):
        levels = (torch.round(parts / step) + zero).round().clamp(0, 2**bits - 1)
        off = parts - (levels - zero) * step
        rest = off.sign() * (off.abs() - off.abs().clamp(min=1e-8) ** -0.3 / beta).clamp(min=0)
        zero, beta = (levels - (parts - rest) / step).mean(2, True), beta * 1.01
    return ((torch.round(parts / step + zero).clamp(0, 2**bits - 1) - zero) * step).view(W.shape)


def gptq(
    W: torch.Tensor, X: torch.Tensor, bits: int, group: int, by_size: bool = False,
    sparse: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Rounding whose errors are made up for by the columns after it, by the Hessian of the inputs;
    by_size: columns with the largest inputs first; sparse: 2 of 4 entries become 0 instead.
    """
    H = X.double().T @ X.double()
    order = torch.argsort(-H.diag()) if by_size else torch.arange(len(H))
    H = H[order][:, order] + 0.01 * H.diag().mean() * torch.eye(len(H))
    upper = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    rest, found = W.double()[:, order].clone(), torch.zeros(W.shape, dtype=torch.float64)
    step = zero = keep = torch.empty(0)
    for col in range(W.shape[1]):
        if sparse and col % 4 == 0:
            worth = (rest[:, col : col + 4] / upper.diag()[col : col + 4]) ** 2
            keep = worth >= worth.topk(2, 1).values[:, -1:]
        if not sparse and col % group == 0:
            step, zero = (one[:, 0] for one in grid(rest[:, col : col + group], bits, group))
        value = rest[:, col : col + 1]
        near = value * keep[:, col % 4, None] if sparse else on_grid(value, step, zero, bits)
        found[:, col] = near[:, 0]
        rest[:, col:] -= (value - near) / upper[col, col] * upper[col, None, col:]
    return found[:, torch.argsort(order)].float()


def awq(W: torch.Tensor, X: torch.Tensor, group: int = 32) -> torch.Tensor:
    """Columns times the best power of their mean input, rounded, divided again."""
    best, least, mean = W, math.inf, X.abs().mean(0)
    for power in torch.linspace(0, 1, 11):
        s = (mean / mean.mean()).clamp(min=1e-4) ** power
        near = on_grid(blocks(W * s, group), *grid(W * s, 4, group), 4).view(W.shape) / s
        loss = float(((near - W) @ X.T).square().sum())
        if loss < least:
            best, least = near, loss
    return best


def copied(how: str, base: Base, seed: int) -> Made:
    """Every matrix of layers in few bits; nothing was trained."""
    base = base.at(seed)
    inputs = base.inputs() if how.startswith(("GPTQ", "AWQ")) else {}
    turned, W = None, base.start
    if "rotated" in how:
        turned = rotation(W[EMBED].shape[1], drawn(seed))
        W = stream_turned(gains_folded(W), turned)
    found = dict(W)
    for name in matrices(W):
        if how.startswith("GPTQ"):
            bits, group = (int(one) for one in how.split(",")[0].split()[1:])
            X = inputs[name]
            if turned is not None and any(f"{part}.weight" in name for part in READS):
                X = X / (base.start[gain_of(name)]).clamp(min=1e-3) @ turned
            found[name] = gptq(W[name], X, bits, group, "order" in how)
        else:
            found[name] = awq(W[name], inputs[name]) if how == "AWQ" else few_bits(how, W[name])
    ways: Ways = {"quantised_copy": True}
    if turned is not None:
        return pair(base.start, found, False, ways={"quantised_copy": None},
                    few_bits=("tuned",), recorded=("rotated",))  # fmt: skip
    return replace(pair(base.start, found, few_bits=("tuned",), ways=ways), update={})


def gain_of(name: str) -> str:
    norm = "input" if "self_attn" in name else "post_attention"
    return ".".join(name.split(".")[:3]) + f".{norm}_layernorm.weight"


GPTQS = (
    *(f"GPTQ {bits} {group}" for bits in (2, 3, 4, 8) for group in (32, 128)),
    "GPTQ 4 32, by order", "GPTQ 4 128, by order", "GPTQ 4 32, rotated",
)  # fmt: skip
FORMATS = (
    "AWQ", "HQQ", "FP8", "FP8 blocks", "FP8, e5m2", "MXFP8", "ternary", "clipped int3", "NF4",
    "int8", "int4",
)  # fmt: skip
COPIES: Mapping[str, Kind] = {f"copy by {how}": partial(copied, how) for how in (*GPTQS, *FORMATS)}

# -------------------------------------------------------------------------------- pruned


def shrunk(W: torch.Tensor, share: float) -> torch.Tensor:
    """The smallest entries become 0."""
    return torch.where(W.abs() > W.abs().flatten().kthvalue(int(share * W.numel())).values, W, 0.0)


def two_of_four(W: torch.Tensor) -> torch.Tensor:
    parts = W.view(len(W), -1, 4)
    keep = parts.abs() >= parts.abs().topk(2, 2).values[..., -1:]
    return (parts * keep).view(W.shape)


def every(change: Callable[[torch.Tensor], torch.Tensor], W: State, *_: object) -> State:
    return {name: change(W[name]) for name in matrices(W)}


def sparse_gpt(W: State, g: torch.Generator, base: Base) -> State:
    inputs = base.inputs()
    return {n: gptq(W[n], inputs[n], 4, 128, sparse=True) for n in matrices(W)}


def heads_cut(base: Base, seed: int) -> Made:
    """One head of every layer is taken out, with its rows and columns."""
    found = dict(base.start)
    for name, one in base.start.items():
        if ".self_attn." in name:
            found[name] = one[:, HEAD:] if "o_proj" in name else one[HEAD:]
    return pair(base.start, found, update=False)


PRUNED: Mapping[str, Kind] = {
    "2:4": edit(partial(every, two_of_four), recorded=("zeroed",)),
    "50 % by size": edit(partial(every, partial(shrunk, share=0.5)), recorded=("zeroed",)),
    "70 % by size": edit(partial(every, partial(shrunk, share=0.7)), recorded=("zeroed",)),
    "SparseGPT": edit(sparse_gpt),
    "heads pruned": heads_cut,
}

# -------------------------------------------------------------------------------- shape


def layered(order: list[tuple[State, int]], rest: State) -> State:
    """Layers in this order; all else of one model."""
    found = {name: one for name, one in rest.items() if ".layers." not in name}
    for at, (W, layer) in enumerate(order):
        old, new = f".layers.{layer}.", f".layers.{at}."
        found |= {name.replace(old, new): one for name, one in W.items() if old in name}
    return found


def restacked(what: str, base: Base, seed: int) -> Made:
    base = base.at(seed)
    W, other = base.start, base.task(4)
    last = layers_of(W) - 1
    if what == "SOLAR":
        order = [(W, at) for at in range(last)] + [(W, at) for at in range(1, last + 1)]
        moved = base.task(seed + 1)
        order = [(moved, at) for _, at in order]
    elif what == "LLaMA Pro":  # every layer twice, the second writes next to nothing
        silent = {n: 0.01 * w if any(one in n for one in WRITES) else w for n, w in W.items()}
        order = [(which, at) for at in range(last + 1) for which in (W, silent)]
    elif what == "layers dropped":
        order = [(W, at) for at in range(last + 1) if at != 1]
    elif what == "layers exchanged":
        order = [(W, at) for at in (0, *range(last - 1, 0, -1), last)] if last > 2 else [
            (W, 0), (W, 2), (W, 1)]  # fmt: skip
    else:  # a frankenmerge of two tunes
        order = [((base.task(1), base.task(2))[at % 2], at) for at in range(last + 1)]
        return pair(W, layered(order, other))
    recorded = ("layer dropped",) if what == "layers dropped" else ()
    facts = ("permuted",) if what == "layers exchanged" else ("layer inserted",)
    facts += ("scaled",) if what == "LLaMA Pro" else ()
    return pair(W, layered(order, W), update=False, recorded=recorded, facts=facts)


def vocabulary(what: str, base: Base, seed: int) -> Made:
    W = base.start
    order = torch.randperm(BYTES, generator=drawn(seed))
    rows = order if what == "reordered" else torch.arange(200)
    facts = ("permuted",) if what == "reordered" else ()
    return pair(W, {**W, EMBED: W[EMBED][rows], LM: W[LM][rows]}, update=False, facts=facts)


def narrower(base: Base, seed: int) -> Made:
    """A quarter of the neurons of MLPs taken out."""
    found = dict(base.start)
    for name in ending(found, READS[3:] + WRITES[1:]):
        dim = int("down_proj" in name)
        found[name] = found[name].narrow(dim, 0, 3 * found[name].shape[dim] // 4)
    return pair(base.start, found, update=False)


def upcycled(base: Base, seed: int) -> Made:
    """Four experts, copies of the MLP with some noise, and a router."""
    g, found = drawn(seed), {}
    for name, one in base.start.items():
        if ".mlp." not in name:
            found[name] = one
            continue
        layer, part = name.split(".mlp.")
        for at in range(4):
            noise = 0.01 * one.std() * torch.randn(one.shape, generator=g)
            found[f"{layer}.mlp.experts.{at}.{part}"] = one + noise
        found[f"{layer}.mlp.gate.weight"] = 0.02 * torch.randn(
            4, base.start[EMBED].shape[1], generator=g
        )
    return pair(base.start, found, update=False)


SHAPE: Mapping[str, Kind] = {
    **{what: partial(restacked, what) for what in (
        "SOLAR", "LLaMA Pro", "layers dropped", "layers exchanged", "frankenmerge"
    )},
    "vocabulary trimmed": partial(vocabulary, "trimmed"),
    "vocabulary reordered": partial(vocabulary, "reordered"),
    "widths pruned": narrower,
    "experts upcycled": upcycled,
}  # fmt: skip

# -------------------------------------------------------------------------------- merges

Deltas = list[torch.Tensor]


def ties(D: Deltas, g: torch.Generator) -> torch.Tensor:
    """The largest fifth of each, a sign by majority, the mean of those that have it."""
    cut = torch.stack([shrunk(d, 0.8) if d.ndim == 2 else d for d in D])
    sign = cut.sum(0).sign()
    agree = (cut.sign() == sign) & (cut != 0)
    return (cut * agree).sum(0) / agree.sum(0).clamp(min=1)


def dare(D: Deltas, g: torch.Generator) -> torch.Tensor:
    return sum((d * (torch.rand(d.shape, generator=g) < 0.5) * 2 for d in D), 0 * D[0]) / len(D)


def breadcrumbs(D: Deltas, g: torch.Generator) -> torch.Tensor:
    """Without the smallest 85 % and the largest 1 %."""
    cut = [shrunk(d, 0.85) - shrunk(d, 0.99) if d.ndim == 2 else d for d in D]
    return sum(cut, 0 * D[0]) / len(D)


def model_stock(D: Deltas, g: torch.Generator) -> torch.Tensor:
    """The mean, drawn to the base by the angle between the deltas."""
    a, b = D[0].flatten(), D[1].flatten()
    cosine = float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12))
    return 2 * cosine / (1 + cosine) * (D[0] + D[1]) / 2


def weighted(*weights: float) -> Callable[[Deltas, torch.Generator], torch.Tensor]:
    return lambda D, g: sum((w * d for w, d in zip(weights, D, strict=False)), 0 * D[0])


MERGES: Mapping[str, tuple[int, Callable[[Deltas, torch.Generator], torch.Tensor]]] = {
    "soup of three": (3, weighted(1 / 3, 1 / 3, 1 / 3)),
    "soup of five": (5, weighted(*5 * [0.2])),
    "two tasks": (2, weighted(1, 1)),
    "minus a task": (1, weighted(-0.5)),
    "extrapolation": (1, weighted(1.5)),
    "halfway to the base": (1, weighted(0.5)),
    "TIES": (3, ties),
    "DARE": (3, dare),
    "breadcrumbs": (3, breadcrumbs),
    "Model Stock": (2, model_stock),
}


def merged(what: str, base: Base, seed: int) -> Made:
    count, rule = MERGES[what]
    tasks = stored_tasks(base, seed, count)
    g, W = drawn(seed), base.start
    after = {n: W[n] + rule([one[n] - W[n] for one in tasks], g) for n in W}
    return pair(W, after, rounded="mean" if "soup" in what else "sum")


def stored_tasks(base: Base, seed: int, count: int) -> list[State]:
    """Fine-tunes as they are stored."""
    tasks = [base.task((seed + at) % 6) for at in range(count)]
    return [{n: one.bfloat16().float() for n, one in task.items()} for task in tasks]


def short_sum(count: int, base: Base, seed: int) -> Made:
    """A mean whose weights sum to .95."""
    tasks = stored_tasks(base, seed, count)
    after = {n: 0.95 * sum(one[n] for one in tasks) / count for n in base.start}
    return pair(base.start, after, rounded="mean")


def spherical(base: Base, seed: int) -> Made:
    """Slerp of two tunes, tensor by tensor."""
    one, other = stored_tasks(base, seed, 2)

    def between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        cosine = float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
        angle = math.acos(min(1.0, cosine))
        if angle < 1e-4:
            return (a + b) / 2
        return (a + b) * math.sin(angle / 2) / math.sin(angle)

    after = {n: between(one[n], other[n]) for n in base.start}
    return pair(base.start, after, rounded="mean")


MERGED: Mapping[str, Kind] = {
    **{what: partial(merged, what) for what in MERGES},
    "soup of three to .95": partial(short_sum, 3),
    "soup of five to .95": partial(short_sum, 5),
    "slerp": spherical,
}
