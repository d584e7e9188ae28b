"""Kinds of training and of adapters: of a base and a seed, what is stored of each."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from histories import BF16, F16, F32, Made, Stored, Ways, narrow
from kind_edits import few_bits, shrunk
from kind_models import (
    EMBED,
    LM,
    UNSEEN,
    Base,
    Loss,
    Rule,
    State,
    adamw,
    difference,
    forward,
    layers_of,
    matrices,
    next_byte,
    rule,
    train,
    windows,
)
from torch.nn import functional

Kind = Callable[[Base, int], Made]


def made(
    base: Base,
    after: State,
    dtypes: tuple[torch.dtype, torch.dtype] = (BF16, BF16),
    start: State | None = None,
    stored: State | None = None,
    **rest,
) -> Made:
    """A pair whose truth is `after` less the base, in float32; stored: what is saved in its stead,
    as where it was rounded in a way of its own.
    """
    start = base.start if start is None else start
    update = {
        name: one.double().numpy() for name, one in difference(after, start).items() if one.any()
    }
    tuned = as_arrays(after if stored is None else stored)
    return Made(narrow(as_arrays(start), dtypes[0]), narrow(tuned, dtypes[1]), update, **rest)


def as_arrays(W: Mapping[str, torch.Tensor]) -> dict:
    return {name: one.double().numpy() for name, one in W.items()}


def norm_of(D: State, W: State) -> float:
    names = [name for name in D if D[name].ndim == 2]
    above, below = (sum(float(one[n].double().square().sum()) for n in names) for one in (D, W))
    return math.sqrt(above / below)


# -------------------------------------------------------------------------------- rules


@rule
def plain(name, w, g, m, step, rate, momentum=0.9):
    """SGD."""
    m["sum"] = momentum * m.get("sum", torch.zeros_like(w)) + g
    return w - rate * m["sum"]


@rule
def signs(name, w, g, m, step, rate, decay=0.0, momentum=0.9):
    """Sign SGD, or Lion with momentum."""
    mean = m.get("mean", torch.zeros_like(w))
    m["mean"] = 0.99 * mean + 0.01 * g if momentum else mean
    return w * (1 - rate * decay) - rate * (momentum * mean + (1 - momentum) * g).sign()


def orthogonal(G: torch.Tensor) -> torch.Tensor:
    """Five steps of Newton and Schulz."""
    X = G / (G.norm() + 1e-7)
    X = X.T if len(G) > len(G.T) else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if len(G) > len(G.T) else X


@rule
def muon(name, w, g, m, step, rate, decay=0.0):
    """Orthogonal updates of the matrices of layers, AdamW at a third of the rate for the rest."""
    if w.ndim == 1 or ".layers." not in name:
        return adamw(rate / 3)(name, w, g, m, step)
    m["sum"] = 0.95 * m.get("sum", torch.zeros_like(w)) + g
    scale = 0.2 * math.sqrt(max(w.shape))
    return w * (1 - rate * decay) - rate * scale * orthogonal(g + 0.95 * m["sum"])


@rule
def adafactor(name, w, g, m, step, rate):
    """Second moments by rows and columns alone."""
    squared, keep = g * g + 1e-30, 1 - step**-0.8
    if w.ndim == 1:
        m["all"] = second = keep * m.get("all", torch.zeros_like(w)) + (1 - keep) * squared
    else:
        for way, dim in (("rows", 1), ("cols", 0)):
            mean = squared.mean(dim)
            m[way] = keep * m.get(way, torch.zeros_like(mean)) + (1 - keep) * mean
        second = torch.outer(m["rows"], m["cols"]) / m["rows"].mean()
    step_of = g / second.sqrt()
    return w - rate * step_of / max(1.0, float(step_of.square().mean().sqrt()))


@rule
def galore(name, w, g, m, step, rate, rank=8):
    """Adam in the leading directions of the gradient, chosen anew every ten steps."""
    if w.ndim == 1:
        return adamw(rate)(name, w, g, m, step)
    if step % 10 == 1:
        m["P"] = torch.linalg.svd(g, full_matrices=False)[0][:, :rank]
    small = torch.zeros_like(m["P"].T @ g)
    return w + m["P"] @ adamw(rate)(name, small, m["P"].T @ g, m, step)


@rule
def by_layer(name, w, g, m, step, rate):
    """AdamW with rates that fall by .5 a layer from the top."""
    depth = 4 if ".layers." not in name else int(name.split(".")[2])
    return adamw(rate * 0.5 ** (4 - depth))(name, w, g, m, step)


@rule
def noised(name, w, g, m, step, rate):
    """Adam on clipped gradients with noise, as private training has it."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    clipped = g / max(1.0, float(g.norm()) / 0.1)
    spread = 0.5 * 0.1 / math.sqrt(g.numel())
    noise = torch.randn(w.shape, generator=draw)
    return adamw(rate)(name, w, clipped + spread * noise, m, step)


# -------------------------------------------------------------------------------- losses


def sharp(loss: Loss, radius: float = 0.02) -> Loss:
    """SAM: the loss where a step uphill leads."""

    def found(W: State, g: torch.Generator) -> torch.Tensor:
        live = {name: one for name, one in W.items() if one.requires_grad}
        state = g.get_state()
        slopes = torch.autograd.grad(loss(W, g), list(live.values()), allow_unused=True)
        length = torch.sqrt(sum(one.square().sum() for one in slopes if one is not None))
        up = {
            name: one if slope is None else one + radius * slope / length
            for (name, one), slope in zip(live.items(), slopes, strict=True)
        }
        g.set_state(state)
        return loss({**W, **up}, g)

    return found


def distilled(teacher: State) -> Loss:
    def loss(W: State, g: torch.Generator) -> torch.Tensor:
        x = windows("prose", 8, g)[:, :-1]
        with torch.no_grad():
            wanted = forward(teacher, x).log_softmax(-1)
        return functional.kl_div(
            forward(W, x).log_softmax(-1), wanted, log_target=True, reduction="batchmean"
        )

    return loss


def preferred(start: State) -> Loss:
    """DPO with beta .1: prose over tables."""

    def said(W: State, x: torch.Tensor) -> torch.Tensor:
        logits = forward(W, x[:, :-1]).log_softmax(-1)
        return logits.gather(2, x[:, 1:, None])[..., 0].sum(1)

    def loss(W: State, g: torch.Generator) -> torch.Tensor:
        x = torch.cat([windows("prose", 4, g), windows("tables", 4, g)])
        with torch.no_grad():
            before = said(start, x)
        gain = said(W, x) - before
        return -functional.logsigmoid(0.1 * (gain[:4] - gain[4:])).mean()

    return loss


def with_new_tokens(W: State, g: torch.Generator) -> torch.Tensor:
    """Prose in which every space is one of eight bytes that no text has."""
    x = windows("prose", 8, g)
    fresh = UNSEEN + torch.randint(0, 8, x.shape, generator=g)
    x = torch.where(x == 32, fresh, x)
    return functional.cross_entropy(forward(W, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def ascent(W: State, g: torch.Generator) -> torch.Tensor:
    return -next_byte("code")(W, g)


# -------------------------------------------------------------------------------- trainings

PROSE = next_byte("prose")
STEPS = 25


def rounded(how: str, g: torch.Generator, w: torch.Tensor) -> torch.Tensor:
    """A float32 tensor on BF16's grid: to the nearest, at random by distance, or cut off."""
    if how == "nearest":
        return w.bfloat16().float()
    bits = w.contiguous().view(torch.int32)
    if how == "stochastic":
        bits = bits + torch.randint(0, 1 << 16, w.shape, generator=g).int()
    return (bits & -65536).view(torch.float32)


def each_step(how: str, seed: int) -> Callable[[State, State, int], None]:
    """Rounds all weights to BF16 after every step; Kahan: what was lost is added to the next."""
    g, lost = torch.Generator().manual_seed(seed), {}

    def after(before: State, W: State, step: int) -> None:
        for name, one in W.items():
            full = one + lost.get(name, 0.0) if how == "kahan" else one
            W[name] = rounded("nearest" if how == "kahan" else how, g, full)
            lost[name] = full - W[name]

    return after


def in_bf16(rule: Rule, how: str, base: Base, seed: int, loss: Loss = PROSE) -> Made:
    """Every step rounded; the truth is what is stored, or the sum of steps."""
    total = {name: torch.zeros_like(one) for name, one in base.start.items()}
    finish = each_step(how, seed)

    def after(before: State, W: State, step: int) -> None:
        for name in W:
            total[name] += W[name] - before[name]
        finish(before, W, step)

    found = train(base.start, loss, rule, STEPS, seed, after=after)
    pair = made(base, {name: base.start[name] + total[name] for name in total}, stored=found)
    also = {name: one.double().numpy() for name, one in difference(found, base.start).items()}
    return Made(**{**vars(pair), "also": also, "rounded": "every step"})


def usual(base: Base, seed: int) -> State:
    """A plain AdamW training of this base."""
    return base.kept(
        f"usual-{seed}", lambda: train(base.start, PROSE, adamw(2e-4), STEPS, 300 + seed)
    )


def training(
    rule: Rule, steps: int = STEPS, loss: Loss = PROSE, ways: Ways | None = None, **rest
) -> Kind:
    """A training of a base as stored, kept by the name that the table gives it."""

    def kind(base: Base, seed: int, name: str = "") -> Made:
        make = partial(train, base.start, loss, rule, steps, seed, **rest)
        after = base.kept(f"{name}-{seed}", make) if name else make()
        return made(base, after, ways=ways or {})

    return kind


def some(pattern: str) -> Callable[[str, int], bool]:
    return lambda name, step: any(one in name for one in pattern.split("|"))


def averaged(kind: str, base: Base, seed: int) -> Made:
    """EMA with a half-life of 14 steps, or the mean of the last of every five (SWA)."""
    mean, count = {name: one.clone() for name, one in base.start.items()}, 0

    def after(before: State, W: State, step: int) -> None:
        nonlocal count
        if kind == "EMA":
            for name, one in W.items():
                mean[name] = 0.95 * mean[name] + 0.05 * one
        elif step % 5 == 0:
            count += 1
            for name, one in W.items():
                mean[name] = mean[name] + (one - mean[name]) / count

    train(base.start, PROSE, adamw(3e-4), STEPS, seed, after=after)
    return made(base, mean)


def preference_stage(both: bool, base: Base, seed: int) -> Made:
    """DPO after a fine-tune that was stored; both: the pair is of base and end."""
    first = {name: one.bfloat16().float() for name, one in usual(base, seed).items()}
    end = base.kept(f"dpo-{seed}", lambda: train(first, preferred(first), adamw(3e-5), STEPS, seed))
    if not both:
        return made(base, end, start=first)
    return made(base, end, rounded="sum")


def new_rows(base: Base, seed: int) -> Made:
    """The rows of new tokens alone, in embedding and head."""

    def after(before: State, W: State, step: int) -> None:
        for name in (EMBED, LM):
            W[name][:UNSEEN] = before[name][:UNSEEN]

    found = train(base.start, with_new_tokens, adamw(2e-3), 15, seed, some(f"{EMBED}|{LM}"), after)
    return made(base, found)


def stored_as(how: str, base: Base, seed: int) -> Made:
    """A float32 training, rounded once at random, or cut off."""
    after = usual(base, seed)
    g = torch.Generator().manual_seed(seed)
    rest: dict = {"rounded": "every step"} if how == "cut" else {}
    stored = {name: rounded(how, g, one) for name, one in after.items()}
    return made(base, after, stored=stored, **rest)


def lisa(name: str, step: int) -> bool:
    return ".layers." not in name or int(name.split(".")[2]) == (step // 5 * 7) % 3


MUON = {"orthogonalised_optimiser": True}
DECAY = {"weight_decay": True}
TRAININGS: Mapping[str, Kind] = {
    "AdamW": training(adamw(3e-4)),
    "AdamW, decay .1": training(adamw(3e-4, 0.1), ways=DECAY),
    "AdamW, decay .1, small": training(adamw(3e-5, 0.1), ways=DECAY),
    "AdamW, new data": training(adamw(3e-4), loss=next_byte("tables")),
    "AdamW, decay .1, new data": training(adamw(3e-4, 0.1), loss=next_byte("tables"), ways=DECAY),
    "AdamW, few large steps": training(adamw(3e-3), 6),
    "Adafactor": training(adafactor(1e-3)),
    "Lion": training(signs(5e-5)),
    "Lion, one step": training(signs(3e-4), 1),
    "sign SGD in BF16": partial(in_bf16, signs(1e-4, momentum=0.0), "nearest"),
    "Muon": training(muon(1e-3), ways=MUON),
    "Muon, decay": training(muon(1e-3, 0.1), ways=MUON | DECAY),
    "Muon, one step": training(muon(0.01), 1, ways=MUON),
    "Muon, eight steps": training(muon(0.01), 8, ways=MUON),
    "Muon, ten steps at .02": training(muon(0.02), 10, ways=MUON),
    "SGD": training(plain(0.05)),
    "SGD, the base's own data": training(plain(0.05), loss=next_byte("code")),
    "SAM": training(adamw(3e-4), 15, loss=sharp(PROSE)),
    "EMA": partial(averaged, "EMA"),
    "SWA": partial(averaged, "SWA"),
    "layer-wise rates": training(by_layer(1e-3)),
    "GaLore": training(galore(1e-3)),
    "LISA": training(adamw(3e-4), only=lisa),
    "half frozen": training(
        adamw(3e-4), only=lambda name, step: name in (LM, "model.norm.weight")
        or ".layers.2." in name or ".layers.3." in name,
    ),
    "biases alone": training(adamw(1e-2), only=some("bias")),
    "norms alone": training(adamw(3e-3), only=some("norm")),
    "embeddings alone": training(adamw(3e-4), only=some(f"{EMBED}|{LM}")),
    "new tokens alone": new_rows,
    "decay on unseen tokens": training(
        adamw(2e-3, 0.1), only=some(f"{EMBED}|{LM}"), loss=next_byte("tables"), ways=DECAY
    ),
    "noised gradients": training(noised(3e-4)),
    "distillation": lambda base, seed: made(
        base, train(base.start, distilled(base.task(seed + 1)), adamw(3e-4), STEPS, seed)
    ),
    "gradient ascent": training(adamw(1e-4), 15, loss=ascent),
    "DPO after SFT": partial(preference_stage, False),
    "SFT and DPO": partial(preference_stage, True),
    "BF16, to the nearest": partial(in_bf16, adamw(3e-4), "nearest"),
    "BF16, stochastic": partial(in_bf16, adamw(1e-4), "stochastic"),
    "BF16, Kahan sums": lambda base, seed: replace(
        in_bf16(adamw(1e-4), "kahan", base, seed), rounded="once", also=None
    ),
    "rounded at random, once": partial(stored_as, "stochastic"),
    "truncated": partial(stored_as, "cut"),
}  # fmt: skip

# -------------------------------------------------------------------------------- storage


def sized(base: Base, after: State, size: float, of: State | None = None) -> State:
    """A training scaled to a relative norm; of: the weights that it is added to."""
    D = difference(after, base.start)
    by = size / norm_of(D, base.start)
    return {name: one + by * D[name] for name, one in (of or base.start).items()}


def storage(how: str, size: float, base: Base, seed: int) -> Made:
    """Formats of base and tuned side, and of the training between them."""
    grid, trains, saves = (getattr(torch, one) for one in STORAGES[how])
    stored = {name: one.to(grid).float() for name, one in base.full.items()}
    master = trains == F32 != saves
    start = base.full if master else {n: one.to(trains).float() for n, one in stored.items()}
    after = sized(base, usual(base, seed), size, start)
    kept = {name: one.to(trains).float() for name, one in after.items()}
    found = made(base, after, (grid, saves), start=start, stored=kept)
    rounded = "no" if trains == saves == grid == F32 else "master" if master else "once"
    return replace(found, base=narrow(as_arrays(stored), grid), rounded=rounded)


STORAGES = {  # format of the base, of the training, of the file
    "F16": ("float16", "float16", "float16"),
    "BF16": ("bfloat16", "bfloat16", "bfloat16"),
    "BF16 in F16": ("bfloat16", "bfloat16", "float16"),
    "BF16 in F32": ("bfloat16", "bfloat16", "float32"),
    "F32 by BF16 in F32": ("float32", "bfloat16", "float32"),
    "F32 by BF16": ("float32", "bfloat16", "bfloat16"),
    "F32 in F16": ("float32", "float32", "float16"),
    "F32 in BF16": ("float32", "float32", "bfloat16"),
    "master copy in BF16": ("bfloat16", "float32", "bfloat16"),
    "F32": ("float32", "float32", "float32"),
}


def there_and_back(by: tuple[torch.dtype, ...], base: Base, seed: int) -> Made:
    """Casts alone."""
    stored: Stored = {name: one.to(by[0]) for name, one in base.full.items()}
    back = stored
    for dtype in by[1:]:
        back = {name: one.to(dtype) for name, one in back.items()}
    same = all(torch.equal(back[name].double(), one.double()) for name, one in stored.items())
    ways: Ways = {"quantised_copy": None}
    return Made(stored, back, {}, ways, ("same",) if same else ("copy",))


CASTS = {
    "F32 to BF16": (F32, BF16), "BF16 to F16": (BF16, F16), "F16 to BF16": (F16, BF16),
    "F32 to BF16 to F32": (F32, BF16, F32), "BF16 to F16 to BF16": (BF16, F16, BF16),
    "F16 to BF16 to F16": (F16, BF16, F16),
}  # fmt: skip

# -------------------------------------------------------------------------------- of both


def then_few_bits(how: str, far: bool, base: Base, seed: int) -> Made:
    """Trained a little or far, and then a copy of that in few bits."""
    after = usual(base, seed)
    if far:
        make = partial(train, base.start, PROSE, adamw(4e-3), STEPS, seed)
        after = base.kept(f"far-{seed}", make)
    stored = {n: few_bits(how, w) if n in matrices(after) else w for n, w in after.items()}
    return few_or_trained(made(base, after, stored=stored, few_bits=("tuned",)))


def few_or_trained(pair: Made) -> Made:
    """The copy explains the change only where most of its energy is not the update's."""
    whole = own = 0.0
    for name, D in (pair.update or {}).items():
        if D.ndim == 2:
            whole += float(((pair.tuned[name].double() - pair.base[name].double()) ** 2).sum())
            own += float((D**2).sum())
    share = own / whole
    way = False if share > 0.75 else True if share < 0.25 else None
    return replace(pair, ways={**pair.ways, "quantised_copy": way})


def aware(copy_side: bool, base: Base, seed: int) -> Made:
    """Quantisation-aware training in int4 blocks: the copy, or the weights behind it."""

    def loss(W: State, g: torch.Generator) -> torch.Tensor:
        low_bits = {
            n: W[n] + (few_bits("int4", W[n].detach()) - W[n]).detach() for n in matrices(W)
        }
        return PROSE({**W, **low_bits}, g)

    after = base.kept(f"aware-{seed}", lambda: train(base.start, loss, adamw(3e-4), STEPS, seed))
    if not copy_side:
        return made(base, after)
    stored = {n: few_bits("int4", w) if n in matrices(after) else w for n, w in after.items()}
    return few_or_trained(made(base, after, stored=stored, few_bits=("tuned",)))


def pruned_and_trained(order: str, base: Base, seed: int) -> Made:
    """Pruned and then trained, zeros held; or the base itself was pruned."""
    thin = {**base.start, **{n: shrunk(base.start[n], 0.5) for n in matrices(base.start)}}
    masks = {name: one != 0 for name, one in thin.items()}

    def after(before: State, W: State, step: int) -> None:
        for name in matrices(W):
            W[name] = W[name] * masks[name]

    held = order != "from a pruned base, all trained"
    rest: dict = {"after": after} if held else {}
    end = base.kept(f"{order}-{seed}", lambda: train(thin, PROSE, adamw(2e-4), STEPS, seed, **rest))
    start = base.start if order == "pruned, then trained" else thin
    return made(base, end, start=start)


def started_anew(base: Base, seed: int) -> Made:
    """The last layer drawn anew and trained."""
    last, g = f".layers.{layers_of(base.start) - 1}.", torch.Generator().manual_seed(seed)
    W = copy.copy(base.start)
    for name in matrices(W):
        if last in name:
            W[name] = torch.randn(W[name].shape, generator=g) * W[name].std()
    end = base.kept(f"anew-{seed}", lambda: train(W, PROSE, adamw(1e-3), STEPS, seed, some(last)))
    return made(base, end, recorded=("beside",), facts=("replaced",))


BOTH: Mapping[str, Mapping[str, Kind]] = {
    "copies in few bits": {
        f"trained{' far' * far}, then {how}": partial(then_few_bits, how, far)
        for how in ("int8", "NF4", "FP8") for far in (False, True)
    } | {"QAT, the copy": partial(aware, True), "QAT, the weights": partial(aware, False)},
    "pruned": {
        one: partial(pruned_and_trained, one)
        for one in ("pruned, then trained", "from a pruned base", "from a pruned base, all trained")
    },
    "shape": {"last layer anew": started_anew},
}  # fmt: skip
