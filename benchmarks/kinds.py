"""Pairs of known histories by which sentences are judged: of made-up weights, and of every kind of
change of small decoders of bytes whose training is known.

kind_models.py has the decoders, kind_trainings.py and kind_edits.py the kinds. sentences.py judges
what is said of them. A kind is a function of a base and a seed; a kind without training is made of
fine-tunes of the base as well, where the seed is above 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import histories as h
import kind_edits
import kind_later
import kind_trainings
import torch
from histories import Made, Pair
from kind_edits import few_bits
from kind_models import SIZES as BASES
from kind_models import Base, State, adamw, base, matrices, train
from kind_trainings import PROSE, TRAININGS, Kind, made, sized, some

# -------------------------------------------------------------------------------- adapters

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
    start: State | None = None, rate: float = 2e-3, steps: int = 15, factor: float = 1.0,
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

    def step(name: str, *rest: Any) -> torch.Tensor:
        return adamw(rate * (factor if name.endswith("/B") else 1.0))(name, *rest)

    end = train(first, lambda p, g: PROSE(of(p), g), step, steps, seed)
    return {name: one.detach() for name, one in of(end).items()}


def adapter(
    init: Init, apply: Apply, low_rank: bool | None = True, names: str = "", turned: bool = False,
    rate: float = 2e-3, factor: float = 1.0,
) -> Kind:  # fmt: skip
    """factor: how much faster B learns than the rest (LoRA+)."""

    def kind(base: Base, seed: int, name: str = "") -> Made:
        chosen = [one for one in matrices(base.start) if names in one or not names]
        if "|" in names:
            chosen = [one for one in matrices(base.start) if some(names)(one, 0)]

        def make() -> State:
            return adapted(base, seed, init, apply, chosen, rate=rate, factor=factor)

        after = base.kept(f"{name}-{seed}", make) if name else make()
        recorded = ("low_rank",) if low_rank else ()
        return made(
            base, after, ways={"merged_adapter": low_rank}, recorded=recorded, rotated=turned
        )

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
    return made(base, after, ways={"merged_adapter": True}, recorded=("low_rank",))


def relora(base: Base, seed: int) -> Made:
    W = base.start
    for at in range(3):
        W = adapted(base, seed + 100 * at, low(4), added, start=W, steps=8)
    return made(base, W, ways={"merged_adapter": None})


def then_all(base: Base, seed: int) -> Made:
    after = train(adapted(base, seed, low(8), added), PROSE, adamw(1e-4), 10, seed)
    return made(base, after, ways={"merged_adapter": None})


def core(g: torch.Generator, w: torch.Tensor) -> Params:
    return {"R": torch.zeros(8, 8)}


def between(w: torch.Tensor, p: Params) -> torch.Tensor:
    """LoRA-XS: a small matrix between the leading directions of the base."""
    U, S, V = torch.linalg.svd(w.detach(), full_matrices=False)
    return w + U[:, :8] * S[:8] @ p["R"] @ V[:8]


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

# -------------------------------------------------------------------------------- all kinds

OTHER_NUMBERS = "other numbers"  # parts at other numbers, which are compared by number today
NORMS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TRAINED, PLANTED, ONCE = (2, 1), (2, 2), (1, 1)  # seeds of each base
GROUPS: tuple[tuple[str, Mapping[str, Kind], tuple[int, int]], ...] = (
    ("training", kind_trainings.TRAININGS, TRAINED),
    ("training", RESIZED, ONCE),
    (
        "storage",
        {
            f"{how}, {size:g}": partial(kind_trainings.storage, how, size)
            for how in kind_trainings.STORAGES
            for size in NORMS
        },
        ONCE,
    ),
    (
        "casts",
        {
            one: partial(kind_trainings.there_and_back, by)
            for one, by in kind_trainings.CASTS.items()
        },
        ONCE,
    ),
    ("adapters merged", ADAPTERS, TRAINED),
    ("edits", kind_edits.EDITS, PLANTED),
    ("same function", kind_edits.SAME, PLANTED),
    ("copies in few bits", kind_edits.COPIES, PLANTED),
    ("copies in few bits", kind_trainings.BOTH["copies in few bits"], TRAINED),
    ("pruned", {**kind_edits.PRUNED, **kind_trainings.BOTH["pruned"]}, PLANTED),
    ("shape", {**kind_edits.SHAPE, **kind_trainings.BOTH["shape"]}, PLANTED),
    ("merges", kind_edits.MERGED, PLANTED),
)


# the second list: more adapters, and each group with the bases that it is made of
MORE_ADAPTERS: Mapping[str, Kind] = {
    "LoRA+": adapter(low(8), added, rate=2e-4, factor=16.0),
    "LoRA-XS": adapter(core, between),
    "rsLoRA, rank 64": adapter(low(64), lambda w, p: w + 2 * p["B"] @ p["A"], None),
}
BOTH_BASES = tuple(BASES)
LATER: tuple[tuple[str, Mapping[str, Kind], tuple[str, ...]], ...] = (
    (OTHER_NUMBERS, kind_later.NUMBERS, BOTH_BASES),
    (OTHER_NUMBERS, kind_later.EXPERT_NUMBERS, ("moe",)),
    ("few bits and more", kind_later.FEW_BITS, BOTH_BASES),
    ("few bits and more", kind_later.SHORT_ROWS, ("short",)),
    ("more edits", kind_later.EDITED, BOTH_BASES),
    ("merged into another format", kind_later.MERGED_INTO, BOTH_BASES),
    ("more training", {**kind_later.LEARNT, **MORE_ADAPTERS}, BOTH_BASES),
    ("more training", kind_later.EXPERTS_LEARNT, ("moe",)),
    ("more merges", kind_later.MIXED, BOTH_BASES),
)
CONFIGS = {"moe": "qwen2_moe"}  # of a base, where it is not qwen2


def kind_pairs(folder: Path) -> Iterator[Pair]:
    """Every kind of both bases, by seeds; what was trained lies in the folder."""
    for seed, (at, which) in product(range(2), enumerate(BASES)):
        for group, kinds, seeds in GROUPS:
            for name, kind in kinds.items() if seed < seeds[at] else ():
                make = partial(_made, kind, name, which, seed, folder)
                yield Pair(f"{name}: {which} {seed}", f"kinds: {group}", make, config="qwen2")
    for group, kinds, bases in LATER:
        for which, (name, kind) in product(bases, kinds.items()):
            make = partial(_made, kind, name, which, 0, folder)
            config = CONFIGS.get(which, "qwen2")
            yield Pair(f"{name}: {which} 0", f"kinds: {group}", make, config=config)


def _made(kind: Kind, name: str, which: str, seed: int, folder: Path) -> Made:
    of: Base = base(which, folder)
    named = "name" in inspect.signature(kind).parameters
    call: Callable[..., Made] = kind
    return call(of, seed, name) if named else call(of, seed)


# -------------------------------------------------------------------------------- made-up weights


def planted() -> list[Pair]:
    """All pairs of made-up weights."""
    return [Pair(*one) if isinstance(one, tuple) else one for one in _planted()]


def _planted() -> Iterator[Pair | tuple[str, str, Callable[[], Made]]]:
    for which in h.CASTS:
        yield which, "copies", partial(h.cast, which)
    beside = "copies with a change beside"
    for which in h.CASTS:
        few = which in ("F16 to BF16", "BF16 to F32")
        for what in h.BESIDE[: 3 if few else None]:
            yield f"{which}, {what}", beside, partial(h.cast, which, what)
        if not few:  # four of 140 matrices trained by 20 %
            yield f"{which}, four matrices", beside, partial(h.cast, which, "four", h.MANY)
    for how in h.BITS:
        if how != "int8 by column":
            kind = "bases dequantised"
            for what, sizes in (("tune", (2e-3, 2e-2)), ("adapter", (2e-3, 2e-2)), ("copy", (0,))):
                for size in sizes:
                    name = f"base of {how}, {what}" + (f" {size:g}" if size else "")
                    yield name, kind, partial(h.dequantised, how, what, size)
        yield f"copy through {how}", "copies in few bits", partial(h.few_bit_copy, how)
    for rank in (8, 16, 64):
        for size in (8e-4, 2e-3, 2e-2):
            yield f"LoRA {rank}, {size:g}", "LoRA merged", partial(h.lora, rank, size)
        yield f"LoRA {rank} in NF4", "LoRA merged", partial(h.lora, rank, 2e-2, "NF4")
    full = {
        "half noise": (h.shapes(), h.tune), "fast spectrum": (h.SMALL, h.fast),
        "dense rest": (h.WIDE, h.with_dense_rest),
    }  # fmt: skip
    for size in h.SIZES:
        for name, (of, update) in full.items():
            if name != "dense rest" or size >= 2e-3:
                yield f"{name}, {size:g}", "full updates, planted", partial(_full, of, update, size)
    for cosine in (-0.2, -0.45):
        for size in (4.5e-3, 2e-3, 1.2e-3):
            yield f"decay {cosine:g}, {size:g}", "decay", partial(h.decay, cosine, size)
    yield "times .99", "decay", partial(h.every_scaled, 0.99)
    for what in (*h.MASKS, "half of the columns", "heavy tails", "in proportion", "uneven rows"):
        for size in h.SIZES[1:]:
            yield f"{what}, {size:g}", "masked and uneven updates", partial(h.in_part, what, size)
    yield "pruned", "other changes", h.pruned
    for count, size, rank in ((2, 1.8e-3, 0), (2, 1.8e-3, 4), (13, 7.5e-4, 0), (13, 7.5e-4, 4)):
        name = f"{count} of 14 known" + (f", rank {rank}" if rank else "")
        yield name, "other changes", partial(h.few_known, count, size, rank)
    for what in ("layer dropped", "layer inserted", "unrelated"):
        yield what, "layers", partial(h.other, what)
    for what in ("nothing", "vectors alone", "head alone", "two modules"):
        yield what, "parts", partial(h.part, what)
    for what in ("vision, frozen tower", "vision, head alone", "vision, one of two layers"):
        yield Pair(what, "parts", partial(h.part, what), config="llava")
    more = "kinds: few bits and more"
    for size in (4e-3, 2e-2):
        yield f"LoRA 320 of 1,024, {size:g}", more, partial(kind_later.rank_320, size)
    for part in ("vision_tower", "language_model"):
        name = f"LoRA of the {part.replace('_', ' ')} alone"
        make = partial(kind_later.tower, part)
        yield Pair(name, "kinds: more edits", make, config="llava")
    yield Pair("named dpo", "parts", partial(_full, h.SMALL, h.fast, 6e-3), label="x:base..dpo")


def _full(of: h.Shapes, update: Callable[..., h.Weights], size: float) -> Made:
    base = h.base_of(of)
    return h.stored_pair(base, update(base, size))
