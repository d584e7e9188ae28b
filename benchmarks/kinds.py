"""Pairs of every kind of change, made of small decoders of bytes whose training is known.

kind_models.py has the decoders, kind_trainings.py and kind_edits.py the kinds. sentences.py judges
what is said of them. A kind is a function of a base and a seed; a kind without training is made of
fine-tunes of the base as well, where the seed is above 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import kind_adapters
import kind_edits
import kind_trainings
from histories import Made, Pair
from kind_edits import Kind
from kind_models import SIZES, Base, base

NORMS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TRAINED, PLANTED, ONCE = (2, 1), (2, 2), (1, 1)  # seeds of each base
GROUPS: tuple[tuple[str, Mapping[str, Kind], tuple[int, int]], ...] = (
    ("training", kind_trainings.TRAININGS, TRAINED),
    ("training", kind_adapters.RESIZED, ONCE),
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
    ("adapters merged", kind_adapters.ADAPTERS, TRAINED),
    ("edits", kind_edits.EDITS, PLANTED),
    ("same function", kind_edits.SAME, PLANTED),
    ("copies in few bits", kind_edits.COPIES, PLANTED),
    ("copies in few bits", kind_trainings.BOTH["copies in few bits"], TRAINED),
    ("pruned", {**kind_edits.PRUNED, **kind_trainings.BOTH["pruned"]}, PLANTED),
    ("shape", {**kind_edits.SHAPE, **kind_trainings.BOTH["shape"]}, PLANTED),
    ("merges", kind_edits.MERGED, PLANTED),
)


def kind_pairs(folder: Path) -> Iterator[Pair]:
    """Every kind of both bases, by seeds; what was trained lies in the folder."""
    for seed, (at, which) in product(range(2), enumerate(SIZES)):
        for group, kinds, seeds in GROUPS:
            for name, kind in kinds.items() if seed < seeds[at] else ():
                yield Pair(
                    f"{name}: {which} {seed}", f"kinds: {group}", name,
                    partial(_made, kind, name, which, seed, folder), config="qwen2",
                )  # fmt: skip


def _made(kind: Kind, name: str, which: str, seed: int, folder: Path) -> Made:
    of: Base = base(which, folder)
    named = "name" in inspect.signature(kind).parameters
    call: Callable[..., Made] = kind
    return call(of, seed, name) if named else call(of, seed)
