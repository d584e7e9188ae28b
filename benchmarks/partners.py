"""Tensors and rows that correspond in a pair of known history, by the cosine of all their entries:
what an audit compares where numbers say something else. Nothing of it comes from an audit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from histories import Array, Made

NEAR = 0.5
LAYER = re.compile(r"(?<=layers\.)\d+")
OF_ROWS = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")


def cosine(one: Array, other: Array) -> float:
    if one.shape != other.shape:
        return 0.0
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float((one * other).sum() / norms) if norms else 0.0


def _of_layer(number: str, names: set[str]) -> bool:
    return any(f"layers.{number}." in name for name in names)


def partners(base: Mapping[str, Array], tuned: Mapping[str, Array]) -> dict[str, str]:
    """The tensor of the base that each tensor is: a matrix the one that it is most like, everything
    else that of the layer that most matrices of its layer are of.
    """
    found: dict[str, str] = {}
    votes: dict[str, Counter[str]] = {}
    for name, T in tuned.items():
        if T.ndim != 2 or name.endswith(OF_ROWS):
            continue
        role = re.sub(r"\.\d+\.", ".#.", name)
        likes = {name: cosine(base[name], T)} if name in base else {}
        if likes.get(name, 0.0) < NEAR:
            others = [one for one in base if re.sub(r"\.\d+\.", ".#.", one) == role]
            likes = {one: cosine(base[one], T) for one in others}
        best = max(likes, key=likes.__getitem__, default="")
        if best and likes[best] >= NEAR:
            found[name] = best
            layer, there = LAYER.search(name), LAYER.search(best)
            if layer and there:
                votes.setdefault(layer[0], Counter())[there[0]] += T.size
    taken = {*found.values()}
    for name in tuned.keys() - found.keys():
        layer = LAYER.search(name)
        if layer and layer[0] in votes:
            there = votes[layer[0]].most_common(1)[0][0]
            found[name] = LAYER.sub(there, name)
        elif name not in taken and not (layer and _of_layer(layer[0], taken)):
            found[name] = name
    return {name: one for name, one in found.items() if one in base}


def rows_of(base: Array, tuned: Array) -> tuple[list[int], list[int]]:
    """Rows of the base and of the tuned side that are each other's nearest."""
    units = [W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-30) for W in (base, tuned)]
    likes = units[1] @ units[0].T
    best = [at if at < len(base) and row[at] == row.max() else int(row.argmax())
            for at, row in enumerate(likes)]  # fmt: skip
    nearest = {at: int(likes[:, at].argmax()) for at in {*best}}  # which rows that are new lack
    chosen = [at for at, row in enumerate(likes)
              if row[best[at]] >= max(NEAR, likes[nearest[best[at]], best[at]])]  # fmt: skip
    return [best[at] for at in chosen], chosen


def renumbered(made: Made) -> tuple[dict[str, str], Made]:
    """The partners, and the pair with everything of the base under the name of what it became; what
    became nothing has a name that the other side lacks.
    """
    sides = [{name: one.double().numpy() for name, one in side.items()}
             for side in (made.base, made.tuned)]  # fmt: skip
    found = partners(*sides)
    base: dict[str, torch.Tensor] = {}
    tuned = dict(made.tuned)
    for name, there in found.items():
        base[name] = made.base[there]
        first, second = sides[0][there], sides[1][name]
        if name.endswith(OF_ROWS) and cosine(first, second) < NEAR:
            of_base, of_tuned = rows_of(first, second)
            if of_base != of_tuned and 2 * len(of_base) >= min(len(first), len(second)):
                base[name], tuned[name] = base[name][of_base], tuned[name][of_tuned]
    for name in made.base.keys() - {*found.values()}:
        base[name if name not in tuned else f"gone.{name}"] = made.base[name]
    return found, replace(made, base=base, tuned=tuned)
