"""Kinds of the second list: other numbers, few bits and more, edits, trainings and merges.

kinds.py has them beside the first list. Of a base and a seed, what is stored of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import histories as h
import torch
from histories import BF16, F16, F32, Made, Ways, narrow
from kind_edits import (
    Kind,
    blocks,
    copied,
    drawn,
    edit,
    ending,
    few_bits,
    grid,
    layered,
    on_grid,
    pair,
    rotation,
    stored_tasks,
)
from kind_models import (
    BYTES,
    EMBED,
    EXPERTS,
    HEAD,
    LM,
    NORM,
    READS,
    WRITES,
    Base,
    State,
    adamw,
    forward,
    layers_of,
    matrices,
    next_byte,
    rule,
    train,
    windows,
)
from kind_trainings import PROSE, STEPS, as_arrays, in_bf16, made, some, training
from torch.nn import functional

ADAPTER: Ways = {"merged_adapter": True}
FEW: Ways = {"quantised_copy": True}
TIED = {"tie_word_embeddings": True}
NUMBERED = "renumbered"  # matrices stand at other numbers: their difference is no change


def low_rank(W: State, rank: int, size: float, seed: int, parts: str = "proj") -> State:
    """An adapter's update of a relative norm, of the matrices of layers or of some."""
    g, found = drawn(seed), {}
    for name in filter(lambda name: some(parts)(name, 0), matrices(W)):
        rows, cols = W[name].shape
        D = torch.randn(rows, rank, generator=g) @ torch.randn(rank, cols, generator=g)
        found[name] = D * (size * W[name].norm() / D.norm())
    return found


def plus(W: State, update: State) -> State:
    return {name: one + update[name] if name in update else one for name, one in W.items()}


def elsewhere(change: Callable[[State, torch.Generator], State], *facts: str) -> Kind:
    """Parts at other numbers than in the base; nothing that is compared by number was trained."""

    def kind(base: Base, seed: int) -> Made:
        W = base.start
        after = change(W, drawn(seed))
        return pair(W, after, update=False, recorded=(NUMBERED,), facts=facts)

    return kind


def attention_of_others(W: State, _: object) -> State:
    """Attention of layers 1 and 3 is that of 0 and 2."""
    found = dict(W)
    for name in W:
        for at in range(1, layers_of(W), 2):
            if f".layers.{at}.self_attn" in name:
                found[name] = W[name.replace(f".{at}.", f".{at - 1}.")]
    return found


def without_layers(drop: Callable[[int], bool], W: State, _: object) -> State:
    return layered([(W, at) for at in range(layers_of(W)) if not drop(at)], W)


def depth_scaled(base: Base, seed: int) -> Made:
    """SOLAR: layers twice, and then the MLPs alone were trained."""
    W = base.start
    last = layers_of(W) - 1
    deep = layered([(W, at) for at in [*range(last), *range(1, last + 1)]], W)
    end = train(deep, PROSE, adamw(2e-4), 15, seed, some(".mlp."))
    return pair(W, end, update=False, facts=(NUMBERED,))  # most matrices were trained in place


def healed(base: Base, seed: int) -> Made:
    """A layer is dropped, and all is trained after."""
    thin = without_layers(lambda at: at == 1, base.start, None)
    end = train(thin, PROSE, adamw(2e-4), 15, seed)
    return pair(base.start, end, update=False, recorded=(NUMBERED,))


def experts_chosen(order: Callable[[torch.Generator], list[int]]) -> Callable[..., State]:
    """Experts, and the rows of routers, in an order that may lack some (REAP)."""

    def change(W: State, g: torch.Generator) -> State:
        found = {name: one for name, one in W.items() if ".experts." not in name}
        for at in range(layers_of(W)):
            chosen, layer = order(g), f"model.layers.{at}.mlp"
            found[f"{layer}.gate.weight"] = W[f"{layer}.gate.weight"][chosen]
            for new, old in enumerate(chosen):
                for part in ("gate", "up", "down"):
                    one = W[f"{layer}.experts.{old}.{part}_proj.weight"]
                    found[f"{layer}.experts.{new}.{part}_proj.weight"] = one
        return found

    return change


def rows_of(order: Callable[[torch.Generator], torch.Tensor], W: State, g: torch.Generator):
    """Rows of the vocabulary; -1 is a new token."""
    chosen, found = order(g), dict(W)
    for name in {EMBED, LM} & W.keys():
        new = W[name].std() * torch.randn(len(chosen), W[name].shape[1], generator=g)
        found[name] = torch.where((chosen < 0)[:, None], new, W[name][chosen])
    return found


def rope_order(W: State, _: object) -> State:
    """Pairs of RoPE beside each other instead of half a head apart."""
    found = dict(W)
    for name, one in W.items():
        if "q_proj" in name or "k_proj" in name:
            heads = one.view(-1, 2, HEAD // 2, *one.shape[1:])
            found[name] = heads.transpose(1, 2).reshape(one.shape)
    return found


NUMBERS: Mapping[str, Kind] = {
    "attention of other layers": elsewhere(attention_of_others, "replaced"),
    "SOLAR, then MLPs trained": depth_scaled,
    "a layer dropped and healed": healed,
    "first layers dropped": elsewhere(partial(without_layers, lambda at: at < 1)),
    "vocabulary in part": elsewhere(
        partial(rows_of, lambda g: torch.randperm(BYTES, generator=g)[:200].sort().values)
    ),
    "tokens put in front": elsewhere(partial(rows_of, lambda g: torch.arange(-8, BYTES))),
    "RoPE's other order": elsewhere(rope_order, "permuted"),
}
EXPERT_NUMBERS: Mapping[str, Kind] = {
    "experts pruned": elsewhere(
        experts_chosen(lambda g: torch.randperm(EXPERTS, generator=g)[:3].sort().values.tolist())
    ),
    "experts permuted": elsewhere(experts_chosen(lambda g: [2, 0, 3, 1]), "permuted"),
}


def adapter_on(how: str, rank: int, size: float, base: Base, seed: int) -> Made:
    """An adapter merged onto a copy in few bits, and stored in BF16."""
    W = base.start
    low = {name: few_bits(how, one) if name in matrices(W) else one for name, one in W.items()}
    after = plus(low, low_rank(W, rank, size, seed))
    return pair(W, after, few_bits=("tuned",), ways={**ADAPTER, "quantised_copy": None})


def rank_320(size: float) -> Made:
    """An adapter of rank 320, 1,024 wide."""
    shapes = {
        f"model.layers.{at}.self_attn.{one}_proj.weight": (1024, 1024)
        for at in range(2)
        for one in "qkvo"
    }
    base = h.base_of(shapes)
    return h.stored_pair(base, h.adapter(base, 320, size), ways=ADAPTER)


def copy_kind(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Kind:
    """Every matrix of layers through few bits, from its weights and its inputs."""

    def kind(base: Base, seed: int) -> Made:
        W, inputs = base.start, base.inputs()
        found = {**W, **{name: change(W[name], inputs[name]) for name in matrices(W)}}
        return replace(pair(W, found, few_bits=("tuned",), ways=FEW), update={})

    return kind


def with_outliers(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """LLM.int8: int8 by row, and columns of large inputs in 16 bits."""
    outliers = X.abs().amax(0).topk(4).indices
    rest = W.index_fill(1, outliers, 0.0)
    found = few_bits("int8", rest)
    found[:, outliers] = W[:, outliers]
    return found


def palette(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """The nearest of 16 values of the matrix, by k-means."""
    flat = W.flatten()
    centres = flat.quantile(torch.linspace(0.01, 0.99, 16))
    for _ in range(10):
        near = torch.bucketize(flat, (centres[1:] + centres[:-1]) / 2)
        sums = torch.zeros(16).index_add(0, near, flat)
        centres = (sums / torch.bincount(near, minlength=16).clamp(min=1)).sort().values
    return centres[torch.bucketize(flat, (centres[1:] + centres[:-1]) / 2)].view(W.shape)


def quip(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Rounded to 4 bits in a random basis on either side, and turned back."""
    g = drawn(3)
    left, right = (rotation(side, g) for side in W.shape)
    turned = left @ W @ right
    step, zero = grid(turned, 4, turned.shape[1])
    near = on_grid(blocks(turned, turned.shape[1]), step, zero, 4).view(W.shape)
    return left.T @ near @ right.T


def ternary(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """-1, 0 and 1 times a scale of each row."""
    keep = W.abs() > 0.7 * W.abs().mean(1, True)
    scale = (W.abs() * keep).sum(1, True) / keep.sum(1, True).clamp(min=1)
    return W.sign() * keep * scale


def mixed(base: Base, seed: int) -> Made:
    """MLPs in NF4, half of the attention in int8, the rest as it was."""
    W, found = base.start, dict(base.start)
    for name in matrices(W):
        if ".mlp." in name:
            found[name] = few_bits("NF4", W[name])
        elif "q_proj" in name or "k_proj" in name:
            found[name] = few_bits("int8", W[name])
    return replace(pair(W, found, few_bits=("tuned",), ways=FEW), update={})


def norms_tuned(how: str, base: Base, seed: int) -> Made:
    """A copy in few bits, of which then the norms alone were trained."""
    low = copied(how, base, seed)
    start = {name: one.float() for name, one in low.tuned.items()}
    end = train(start, PROSE, adamw(3e-3), 15, seed, some("norm"))
    return replace(low, tuned={name: one.bfloat16() for name, one in end.items()})


def raw_fp8(wide: bool, base: Base, seed: int) -> Made:
    """The numbers of an FP8 file, without their scales: each matrix times a factor of its own;
    wide: written in BF16.
    """
    W, update = base.start, {}
    stored: State = {name: one.bfloat16() for name, one in W.items()}
    for name in matrices(W):
        by = 448 / W[name].abs().max()
        low = (by * W[name]).to(torch.float8_e4m3fn)
        stored[name] = low.bfloat16() if wide else low
        update[name] = ((by - 1) * W[name]).double().numpy()
    ways: Ways = {"quantised_copy": False, "weight_decay": None}
    return Made(narrow(as_arrays(W), BF16), stored, update, ways, few_bits=("tuned",), scaled=True)


FEW_BITS: Mapping[str, Kind] = {
    **{
        f"LoRA {rank} onto NF4, {size:g}": partial(adapter_on, "NF4", rank, size)
        for rank in (8, 16)
        for size in (2e-2, 8e-2, 0.2)
    },
    "LoRA 8 onto int8, 0.02": partial(adapter_on, "int8", 8, 2e-2),
    "LLM.int8": copy_kind(with_outliers),
    "palettes": copy_kind(palette),
    "QuIP": copy_kind(quip),
    "ternary by row": copy_kind(ternary),
    "mixed bits": mixed,
    **{f"GPTQ {bits} 64, norms tuned": partial(norms_tuned, f"GPTQ {bits} 64") for bits in (3, 4)},
    "raw FP8": partial(raw_fp8, False),
    "raw FP8 in BF16": partial(raw_fp8, True),
}
SHORT_ROWS: Mapping[str, Kind] = {
    **{f"short rows by {how}": partial(copied, how)
       for how in ("int8", "int4", "NF4", "FP8", "GPTQ 4 32", "GPTQ 3 32")},
    **{f"short rows by GPTQ {bits} 64, norms tuned": partial(norms_tuned, f"GPTQ {bits} 64")
       for bits in (2, 3, 4)},
}  # fmt: skip


def projected(base: Base, seed: int) -> Made:
    """A direction out of all that writes into the stream, in F32, where neurons and tokens are
    padded with 0.
    """
    W, g = dict(base.full), drawn(seed)
    for name in ending(W, WRITES):
        W[name] = W[name].index_fill(1, torch.arange(8), 0.0)
    W[EMBED] = W[EMBED].index_fill(0, torch.arange(240, BYTES), 0.0)
    r = torch.randn(W[EMBED].shape[1], generator=g)
    r /= r.norm()
    after = {**W, **{n: W[n] - torch.outer(r, r @ W[n]) for n in ending(W, WRITES)}}
    after[EMBED] = W[EMBED] - torch.outer(W[EMBED] @ r, r)
    return made(base, after, (F32, F32), start=W, ways={"merged_adapter": True}, rounded="no")


def turned_out(strength: float, both: bool, base: Base, seed: int) -> Made:
    """OFT, in blocks of 32; POET from both sides."""
    W, g = base.start, drawn(seed)

    def near_one(side: int) -> torch.Tensor:
        S = torch.randn(side // 32, 32, 32, generator=g) * strength / math.sqrt(32)
        return torch.block_diag(*torch.linalg.matrix_exp(S - S.transpose(1, 2)))

    after = dict(W)
    for name in matrices(W):
        rows, cols = W[name].shape
        after[name] = near_one(rows) @ W[name] @ (near_one(cols) if both else torch.eye(cols))
    return made(base, after, rotated=True, facts=("rotated", "turned"))


def times(factors: Mapping[str, float], W: State, *_: object) -> State:
    """Tensors of these names times a factor each, biases too."""
    found = dict(W)
    for name in W:
        for part, by in factors.items():
            if part in name:
                found[name] = by * W[name]
    return found


def padded_with_zeros(W: State) -> State:
    """Rows and columns of 0 up to a multiple for tensor parallelism, of vocabulary and MLPs."""
    found = dict(W)
    for name in {EMBED, LM} & W.keys():
        found[name] = functional.pad(found[name], (0, 0, 0, 64))
    for name in ending(found, READS[3:]):
        found[name] = functional.pad(found[name], (0, 0, 0, 32))
    for name in ending(found, WRITES[1:]):
        found[name] = functional.pad(found[name], (0, 32))
    return found


def padded(base: Base, seed: int) -> Made:
    return replace(pair(base.start, padded_with_zeros(base.start)), update={})


def payload(dtype: torch.dtype, bits: int, base: Base, seed: int) -> Made:
    """Bits of a message in the lowest bits of every entry."""
    W = {name: one.to(dtype).clone() for name, one in base.full.items()}
    g, stored = drawn(seed), {}
    whole = torch.int32 if dtype == F32 else torch.int16
    for name, one in W.items():
        message = torch.randint(0, 1 << bits, one.shape, generator=g).to(whole)
        stored[name] = ((one.view(whole) & -(1 << bits)) | message).view(dtype)
    update = {name: stored[name].double() - W[name].double() for name in W}
    known = {name: D.numpy() for name, D in update.items() if D.any()}
    return Made(W, stored, known, {"quantised_copy": None}, rounded="message")


def tied(stored: bool, base: Base, seed: int) -> Made:
    """A head replaced by the embedding, which stands there too, or alone."""
    W = base.start
    found = {**W, LM: W[EMBED]} if stored else without_head(W)
    whole = pair(W, found, update=False, facts=("replaced",))
    return replace(whole, configs=({}, TIED))


def without_head(W: State) -> State:
    return {name: one for name, one in W.items() if name != LM}


def not_stored(base: Base, seed: int) -> Made:
    """A head that was the embedding all along is stored no longer."""
    W = {**base.start, LM: base.start[EMBED]}
    whole = pair(W, without_head(W), recorded=("same",))
    return replace(whole, update={}, configs=(TIED, TIED))


def tower(part: str) -> Made:
    """An adapter of the vision tower alone, or of the language model alone."""
    base = h.base_of(h.VISION)
    update = h.adapter({name: W for name, W in base.items() if part in name}, 8, 1e-2)
    return h.stored_pair(base, update, ways=ADAPTER, recorded=("low_rank",))


EDITED: Mapping[str, Kind] = {
    "direction projected out, padded": projected,
    "OFT, strong": partial(turned_out, 0.35, False),
    "OFT, stronger": partial(turned_out, 1.0, False),
    "POET": partial(turned_out, 0.25, True),
    "POET, strong": partial(turned_out, 0.8, True),
    "temperature folded": edit(
        partial(times, {"q_proj": 1.07, "k_proj": 1.07}), recorded=("scaled",),
        ways={"weight_decay": None},
    ),
    "q up, k down": edit(
        partial(times, {"q_proj": 1.07, "k_proj": 1 / 1.07}), ways={"weight_decay": None}
    ),
    "embedding times sqrt(d)": edit(
        partial(times, {"embed_tokens": 11.3137}), facts=("scaled",), ways={"weight_decay": None}
    ),
    "Gemma's + 1 folded": edit(
        lambda W, *_: {n: one + 1 for n, one in W.items() if "norm" in n},
        recorded=("only vectors",),
    ),
    "padded for tensor parallelism": padded,
    "payload in F32, 8 bits": partial(payload, F32, 8),
    "payload in F32, 16 bits": partial(payload, F32, 16),
    "payload in BF16, 1 bit": partial(payload, BF16, 1),
    "payload in F16, 4 bits": partial(payload, F16, 4),
    "head replaced by the embedding": partial(tied, True),
    "head dropped and tied": partial(tied, False),
    "tied head not stored": not_stored,
}  # fmt: skip


def merged_into(
    formats: tuple[torch.dtype, torch.dtype], size: float, parts: str, base: Base, seed: int
) -> Made:
    """An adapter merged in float32 onto a base in one format, and saved in another."""
    start = {name: one.to(formats[0]).float() for name, one in base.full.items()}
    after = plus(start, low_rank(start, 8, size, seed, parts))
    rounded = "master" if formats[1] == BF16 else "once"
    return made(base, after, formats, start=start, ways=ADAPTER, rounded=rounded)


MERGED_INTO: Mapping[str, Kind] = {
    f"base in {first}, adapter{of} merged, in {second}, {size:g}": partial(
        merged_into, (formats[first], formats[second]), size, parts
    )
    for formats in ({"F16": F16, "BF16": BF16, "F32": F32},)
    for first, second in (("F16", "BF16"), ("F32", "BF16"), ("F32", "F16"), ("BF16", "F16"))
    for of, parts in {"": "proj", " of q and v": "q_proj|v_proj"}.items()
    for size in ((8e-4, 4e-3, 2e-2) if not of else (2e-2,))
}


def policy(W: State, g: torch.Generator) -> torch.Tensor:
    """GRPO: sampled bytes, rewarded where they are right, against the mean of their group."""
    x = windows("prose", 8, g)
    logits = forward(W, x[:, :-1]).log_softmax(-1)
    with torch.no_grad():
        drawn_bytes = torch.multinomial(logits.exp().flatten(0, 1), 4, True, generator=g)
        reward = (drawn_bytes == x[:, 1:].flatten()[:, None]).float()
        gain = (reward - reward.mean(1, True)) / (reward.std(1, keepdim=True) + 1e-4)
    return -(gain * logits.flatten(0, 1).gather(1, drawn_bytes)).mean()


@rule
def shampoo(name, w, g, m, step, rate):
    """Preconditioned on either side by the fourth root of the gradient's covariance."""
    if w.ndim == 1 or ".layers." not in name:
        return adamw(rate / 3)(name, w, g, m, step)
    m["L"] = m.get("L", 0.0) + g @ g.T
    m["R"] = m.get("R", 0.0) + g.T @ g

    def root(M: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(M + 1e-6 * M.diag().mean() * torch.eye(len(M)))
        return vectors * values.clamp(min=1e-12) ** -0.25 @ vectors.T

    step_of = root(m["L"]) @ g @ root(m["R"])
    return w - rate * step_of / step_of.square().mean().sqrt()


def schedule_free(base: Base, seed: int) -> Made:
    """AdamW whose gradients are taken between a fast state and its mean, and whose mean is kept."""
    means: State = {}

    @rule
    def free(name, w, g, m, step, rate):
        m.setdefault("z", w)
        mean = m.setdefault("x", w)
        m["second"] = 0.98 * m.get("second", torch.zeros_like(w)) + 0.02 * g * g
        m["z"] = m["z"] - rate * g / ((m["second"] / (1 - 0.98**step)).sqrt() + 1e-8)
        m["x"] = means[name] = mean + (m["z"] - mean) / step
        return 0.1 * m["z"] + 0.9 * m["x"]

    train(base.start, PROSE, free(3e-4), STEPS, seed)
    return made(base, {**base.start, **means})


def sparse_high_rank(base: Base, seed: int) -> Made:
    """SHiRA: one or two entries of a hundred are trained."""
    g = drawn(seed)
    masks = {n: torch.rand(base.start[n].shape, generator=g) < 0.02 for n in matrices(base.start)}

    def after(before: State, W: State, step: int) -> None:
        for name, mask in masks.items():
            W[name] = torch.where(mask, W[name], before[name])

    found = train(base.start, PROSE, adamw(3e-3), STEPS, seed, some("proj.weight"), after)
    return made(base, found, recorded=("masked",))


def steered(base: Base, seed: int) -> Made:
    """RMU: the stream after two layers is drawn to a random direction where text is to be
    unlearned, and held elsewhere; three matrices are trained.
    """
    W, width = base.start, base.start[EMBED].shape[1]
    aim = 20 * functional.normalize(torch.rand(width, generator=drawn(seed)), dim=0)
    eye, ones = torch.eye(width), torch.ones(width)

    def stream(W: State, x: torch.Tensor) -> torch.Tensor:
        first = {n: one for n, one in W.items() if ".layers." not in n or ".layers.0." in n
                 or ".layers.1." in n}  # fmt: skip
        return forward({**first, NORM: ones, LM: eye}, x)

    def loss(live: State, g: torch.Generator) -> torch.Tensor:
        lost, held = windows("tables", 8, g)[:, :-1], windows("prose", 8, g)[:, :-1]
        with torch.no_grad():
            before = stream(W, held)
        away = (stream(live, lost) - aim).square().mean()
        return away + 100 * (stream(live, held) - before).square().mean()

    end = train(W, loss, adamw(1e-3), 20, seed, some("layers.0.mlp.down|layers.1.mlp.down"))
    return made(base, end)


def fp8_forward(W: State, g: torch.Generator) -> torch.Tensor:
    """Prose through weights that are rounded to FP8 in every step."""
    low = {n: W[n] + (few_bits("FP8", W[n].detach()) - W[n]).detach() for n in matrices(W)}
    return PROSE({**W, **low}, g)


def new_language(base: Base, seed: int) -> Made:
    """32 more tokens, whose rows alone were trained."""
    W, g = dict(base.start), drawn(seed)
    for name in (EMBED, LM):
        new = W[name].mean(0) + 0.02 * torch.randn(32, W[name].shape[1], generator=g)
        W[name] = torch.cat([W[name], new])

    def loss(live: State, g: torch.Generator) -> torch.Tensor:
        x = windows("tables", 8, g)
        x = torch.where(x < 64, BYTES + x % 32, x)
        return functional.cross_entropy(forward(live, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def after(before: State, live: State, step: int) -> None:
        for name in (EMBED, LM):
            live[name][:BYTES] = before[name][:BYTES]

    end = train(W, loss, adamw(2e-3), 15, seed, some(f"{EMBED}|{LM}"), after)
    return replace(pair(base.start, end), update={})


LEARNT: Mapping[str, Kind] = {
    "GRPO in BF16": lambda base, seed: in_bf16(adamw(2e-5), "nearest", base, seed, policy),
    "Shampoo": training(shampoo(1e-4)),
    "schedule-free": schedule_free,
    "SHiRA": sparse_high_rank,
    "RMU": steered,
    "BitFit": training(adamw(3e-3), only=some("bias|norm")),
    "FP8 training": training(adamw(3e-4), loss=fp8_forward),
    "a new language's rows": new_language,
    "long continued pretraining": training(adamw(2e-3), 250, loss=next_byte("more code")),
}
EXPERTS_LEARNT: Mapping[str, Kind] = {
    "experts, AdamW": training(adamw(3e-4)),
    "router alone": training(adamw(1e-3), only=some("mlp.gate.")),
    "one expert alone": training(adamw(1e-3), only=some("experts.2.")),
    "experts in int4": partial(copied, "int4"),
}


def of_tasks(count: int, merge: Callable[[list[State], State, torch.Generator], State]) -> Kind:
    """A merge of so many fine-tunes, as they are stored."""

    def kind(base: Base, seed: int) -> Made:
        tasks = stored_tasks(base, seed, count)
        return pair(base.start, merge(tasks, base.start, drawn(seed)), rounded="sum")

    return kind


def fused(tasks: list[State], W: State, _: object) -> State:
    """Arcee fusion: entries of another model where they matter most, by size and divergence."""
    found = {}
    for name, one in W.items():
        D = tasks[0][name] - one
        worth = D.abs() * (one.abs() + tasks[0][name].abs())
        quarters = worth.flatten().quantile(torch.tensor([0.25, 0.5, 0.75]))
        found[name] = one + D * (worth > quarters[1] + 1.5 * (quarters[2] - quarters[0]))
    return found


def karcher(tasks: list[State], W: State, _: object) -> State:
    """The mean on the sphere, tensor by tensor, times the mean norm."""
    found = {}
    for name in W:
        norms = torch.stack([one[name].norm() for one in tasks])
        units = [one[name] / one[name].norm().clamp(min=1e-12) for one in tasks]
        mean = sum(units) / len(units)
        for _ in range(10):
            mean = mean / mean.norm().clamp(min=1e-12)
            logs = []
            for unit in units:
                cosine = float((unit * mean).sum().clamp(-1, 1))
                angle = math.acos(cosine)
                along = unit - cosine * mean
                logs.append(along * (angle / math.sin(angle) if angle > 1e-4 else 1.0))
            mean = mean + sum(logs) / len(logs)
        found[name] = mean / mean.norm().clamp(min=1e-12) * norms.mean()
    return found


def by_depth(tasks: list[State], W: State, _: object) -> State:
    """From one model below to another above, by weights that rise with the layer."""
    found, last = {}, layers_of(W) - 1
    for name in W:
        share = int(name.split(".")[2]) / last if ".layers." in name else 0.5
        found[name] = (1 - share) * tasks[0][name] + share * tasks[1][name]
    return found


def by_part(tasks: list[State], W: State, _: object) -> State:
    """Attention of one model, MLPs of another."""
    return {name: tasks[".mlp." in name][name] for name in W}


MIXED: Mapping[str, Kind] = {
    "Arcee fusion": of_tasks(1, fused),
    "karcher": of_tasks(3, karcher),
    "merged by depth": of_tasks(2, by_depth),
    "attention of one, MLPs of another": of_tasks(2, by_part),
}
