"""Planted histories by which sentences are judged; kinds.py has those of trained models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from histories import (
    BESIDE,
    BITS,
    CASTS,
    MANY,
    MASKS,
    SIZES,
    SMALL,
    WIDE,
    Made,
    Pair,
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
    other,
    part,
    pruned,
    stored_pair,
    tune,
    with_dense_rest,
)


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
    for what in ("layer dropped", "layer inserted", "unrelated"):
        yield what, "layers", what, partial(other, what)
    for what in ("nothing", "vectors alone", "head alone", "two modules"):
        yield what, "parts", f"changed: {what}", partial(part, what)
    for what in ("vision, frozen tower", "vision, head alone", "vision, one of two layers"):
        yield Pair(what, "parts", f"changed: {what}", partial(part, what), config="llava")
    yield Pair(
        "named dpo", "parts", "a tune that is given the name x:base..dpo",
        lambda: stored_pair(b := base_of(SMALL), fast(b, 6e-3)), label="x:base..dpo",
    )  # fmt: skip
