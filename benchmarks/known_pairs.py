"""The pairs by which sentences are judged: planted histories, and trainings in every way of
storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from findings import Weights
from histories import (
    BESIDE,
    BF16,
    BITS,
    CASTS,
    F16,
    F32,
    MANY,
    MASKS,
    MERGES,
    SIZES,
    SMALL,
    WIDE,
    Made,
    Pair,
    Ways,
    as_stored,
    base_of,
    cast,
    decay,
    dequantised,
    every_scaled,
    fast,
    few_bit_copy,
    few_known,
    in_part,
    lora,
    merge_of,
    merged,
    narrow,
    other,
    part,
    plus,
    pruned,
    rotated,
    scaled_lines,
    stored_pair,
    tune,
    with_dense_rest,
)
from trainings import RUNS, SEEDS, State, base_state, llama_name, trained

# -------------------------------------------------------------------------------- planted


def planted() -> list[Pair]:
    """All pairs of made-up weights."""
    return [Pair(*one) if isinstance(one, tuple) else one for one in _planted()]


def _planted() -> Iterator[Pair | tuple[str, str, str, Callable[[], Made]]]:
    for which in CASTS:
        yield f"{which}", "copies", f"{which}, nothing else", partial(cast, which)
    for which in CASTS:
        few = which in ("F16 to BF16", "BF16 to F32")
        for what in BESIDE[: 3 if few else None]:
            yield (
                f"{which}, {what}", "copies with a change beside", f"{which}; {what}",
                partial(cast, which, what),
            )  # fmt: skip
        if not few:
            yield (
                f"{which}, four matrices", "copies with a change beside",
                f"{which}; 4 of 140 matrices trained by 20 %",
                partial(cast, which, "four", MANY),
            )  # fmt: skip
    for how in BITS:
        if how != "int8 by column":
            kind = "bases dequantised"
            for what, sizes in (("tune", (2e-3, 2e-2)), ("adapter", (2e-3, 2e-2)), ("copy", (0,))):
                for size in sizes:
                    at = f" {size:g}" if size else ""
                    yield (
                        f"base of {how}, {what}{at}", kind,
                        f"the base was dequantised from {how}; then {what}{at}",
                        partial(dequantised, how, what, size),
                    )  # fmt: skip
        yield (
            f"copy through {how}", "copies in few bits",
            f"a BF16 base through {how}, in BF16 again", partial(few_bit_copy, how),
        )  # fmt: skip
    for rank in (8, 16, 64):
        for size in (8e-4, 2e-3, 2e-2):
            yield (
                f"LoRA {rank}, {size:g}", "LoRA merged", f"rank {rank}, merged in BF16",
                partial(lora, rank, size),
            )  # fmt: skip
        yield (
            f"LoRA {rank} in NF4", "LoRA merged",
            f"rank {rank}, 2 % of the norm, merged into the base dequantised from NF4",
            partial(lora, rank, 2e-2, "NF4"),
        )  # fmt: skip
    for size in SIZES:
        full = "full updates, planted"
        yield (
            f"half noise, {size:g}", full, "half of the energy in 64 directions, half noise",
            lambda size=size: stored_pair(b := base_of(), tune(b, size)),
        )  # fmt: skip
        yield (
            f"fast spectrum, {size:g}", full, "99 % of the energy in 31 to 55 of 128 directions",
            lambda size=size: stored_pair(b := base_of(SMALL), fast(b, size)),
        )  # fmt: skip
        if size >= 2e-3:
            yield (
                f"dense rest, {size:g}", full, "95 % of the energy in 16 of 768 directions",
                lambda size=size: stored_pair(b := base_of(WIDE), with_dense_rest(b, size)),
            )  # fmt: skip
    for size in (6e-3, 2e-2):
        turned = "rotations and scales"
        yield f"OFT, {size:g}", turned, "blocks of 32 rows rotated", partial(rotated, size)
    for size in (1e-2, 5e-2):
        yield (
            f"(IA)3, {size:g}", turned, "rows of k and v, inputs of down times factors",
            partial(scaled_lines, size, "ia3"),
        )  # fmt: skip
    yield (
        "folded gains", turned, "gains of norms folded into the next matrices",
        partial(scaled_lines, 0.0, "folded"),
    )  # fmt: skip
    for what in MERGES:
        for size in (8e-4, 2e-3, 6e-3, 2e-2):
            yield (
                f"{what}, {size:g}", "merges and stages, planted",
                f"{what}, of stored tunes of relative norm {size:g}", partial(merged, what, size),
            )  # fmt: skip
    for cosine in (-0.2, -0.45):
        for size in (4.5e-3, 2e-3, 1.2e-3):
            yield (
                f"decay {cosine:g}, {size:g}", "decay",
                f"an update with a decay cosine of {cosine:g}",
                partial(decay, cosine, size),
            )  # fmt: skip
    yield "times .99", "decay", "all weights times .99", partial(every_scaled, 0.99)
    for what, done in (
        *((what, f"{what} of the entries trained, in random places") for what in MASKS),
        ("half of the columns", "half of the columns trained"),
        ("heavy tails", "an update of heavy tails"),
        ("in proportion", "an update in proportion to the weights"),
        ("uneven rows", "rows trained by factors that differ by e, one to another"),
    ):
        for size in SIZES[1:]:
            yield (
                f"{what}, {size:g}", "masked and uneven updates", done,
                partial(in_part, what, size),
            )  # fmt: skip
    yield "pruned", "other changes", "the entries below .006 set to 0", pruned
    for count, size, rank in ((2, 1.8e-3, 0), (2, 1.8e-3, 4), (13, 7.5e-4, 0), (13, 7.5e-4, 4)):
        of_rank = f", rank {rank}" if rank else ""
        yield (
            f"{count} of 14 known{of_rank}", "other changes",
            f"{14 - count} of 14 matrices from a master copy{of_rank}",
            partial(few_known, count, size, rank),
        )  # fmt: skip
    for what in (
        "layer dropped", "layer inserted", "three layers negated", "neurons permuted",
        "columns permuted", "unrelated",
    ):  # fmt: skip
        yield what, "layers, signs and orders", what, partial(other, what)
    for what in ("nothing", "vectors alone", "head alone", "two modules"):
        yield what, "parts", f"changed: {what}", partial(part, what)
    for what in ("vision, frozen tower", "vision, head alone", "vision, one of two layers"):
        yield Pair(what, "parts", f"changed: {what}", partial(part, what), config="llava")
    yield Pair(
        "named dpo", "parts", "a tune that is given the name x:base..dpo",
        lambda: stored_pair(b := base_of(SMALL), fast(b, 6e-3)), label="x:base..dpo",
    )  # fmt: skip


# -------------------------------------------------------------------------------- trained

STORAGES = (
    "stored base", "master copy", "F32 base loaded", "F32 base kept", "F32 tuned",
    "F32 tuned, base rounded", "saved as F16", "saved as F32",
)  # fmt: skip
ELSEWHERE = {"adamw": (8e-4, 2e-3, 6e-3)}  # sizes that are stored in other ways; of others, one
USUAL = (2e-3,)


def trained_pairs(folder: Path) -> Iterator[Pair]:
    """Every training in every way of storage; trained when its pair is made."""
    for kind in RUNS:
        if kind.startswith("bf16"):
            for size in SIZES:
                yield Pair(
                    f"{kind}, {size:g}", "BF16 alone, trained",
                    f"AdamW, every step rounded to BF16 ({kind[5:]})",
                    partial(rounded_training, folder, kind, size),
                )  # fmt: skip
            continue
        for storage in STORAGES:
            for size in SIZES if storage == "stored base" else ELSEWHERE.get(kind, USUAL):
                yield Pair(
                    f"{kind}, {storage}, {size:g}",
                    f"trained, {storage}",
                    f"trained by {kind} to a relative norm of {size:g}; storage: {storage}",
                    partial(stored_training, folder, kind, storage, size),
                )
    for what in MERGES:
        for size in (2e-3, 6e-3):
            yield Pair(
                f"trained, {what}, {size:g}", "merges and stages, trained",
                f"{what}, of trained tunes of relative norm {size:g}",
                partial(trained_merge, folder, what, size),
            )  # fmt: skip


def sides(folder: Path, kind: str, size: float) -> tuple[Weights, Weights, Weights]:
    """The base in float32, the same in BF16, and the update, by the names of a checkpoint."""
    found, _ = trained(folder, kind, size)
    full = in_float64(base_state(folder))
    start, after = as_stored(full), in_float64(found)
    return full, start, {name: after[name] - start[name] for name in start}


def in_float64(state: State) -> Weights:
    return {llama_name(name): one.double().numpy() for name, one in state.items()}


def ways_of(kind: str) -> Ways:
    return {
        "short_run": True,
        "orthogonalised_optimiser": kind == "muon",
        "weight_decay": kind == "decay",
    }


def stored_training(folder: Path, kind: str, storage: str, size: float) -> Made:
    full, start, update = sides(folder, kind, size)
    base, tuned, rounded = narrow(start, BF16), plus(start, update), "once"
    after = narrow(tuned, BF16)
    if storage in ("master copy", "F32 base kept", "F32 tuned, base rounded"):
        tuned, rounded = plus(full, update), "master"
        after = narrow(tuned, BF16)
    if storage.startswith("F32 base"):
        base = narrow(full, F32)
    elif storage.startswith("F32 tuned"):
        after = narrow(tuned, F32)
    elif storage == "saved as F16":
        after = {name: one.to(F16) for name, one in after.items()}
    elif storage == "saved as F32":
        after = {name: one.to(F32) for name, one in after.items()}
    if storage == "F32 tuned":
        rounded = "no"
    return Made(base, after, update, ways=ways_of(kind), rounded=rounded)


def rounded_training(folder: Path, kind: str, size: float) -> Made:
    after, steps = trained(folder, kind, size)
    start, after64 = as_stored(in_float64(base_state(folder))), in_float64(after)
    update = {llama_name(name): one.double().numpy() for name, one in steps.items()}
    return Made(
        narrow(start, BF16), narrow(after64, BF16), update, ways=ways_of("adamw"),
        rounded="every step", also={name: after64[name] - start[name] for name in start},
    )  # fmt: skip


def trained_merge(folder: Path, what: str, size: float) -> Made:
    D = [sides(folder, kind, size)[2] for kind in ("adamw", *SEEDS)]
    start = as_stored(in_float64(base_state(folder)))
    return merge_of(what, start, D)
