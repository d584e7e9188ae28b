"""What is true of a pair whose history is known: by NumPy, from the update before any storage and
from what is stored. Nothing of it comes from an audit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import median

import numpy as np
import torch
from histories import Array, Made, Weights, purity

DIGITS = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CLASSES = 16  # of rows by their energy, in which kept is taken as the tool takes it


class Truth:
    """The figures of a pair, each computed when it is asked for."""

    def __init__(self, made: Made, apart_from_rounded: bool = False) -> None:
        """apart_from_rounded: figures are of the matrices that are not `only_rounded`."""
        self.made, self.apart_from_rounded = made, apart_from_rounded
        self.base = {name: one.double().numpy() for name, one in made.base.items()}
        self.tuned = {name: one.double().numpy() for name, one in made.tuned.items()}
        for side, config in zip((self.base, self.tuned), made.configs, strict=True):
            if config.get("tie_word_embeddings"):
                side.setdefault(HEAD, side[EMBED])  # the head is the embedding
        self.other_rows: dict[str, tuple[int, int]] = {}
        for name, W in self.base.items():
            T = self.tuned.get(name)
            if T is not None and place_of(name)[1] in ("embed", "head") and len(W) != len(T):
                self.other_rows[name] = (len(W), len(T))  # common rows are compared
                self.base[name], self.tuned[name] = W[: len(T)], T[: len(W)]
        self.shared = [
            name
            for name, W in self.base.items()
            if name in self.tuned and W.shape == self.tuned[name].shape
        ]

    @cached_property
    def difference(self) -> Weights:
        """Tuned less base as stored, of every tensor that differs."""
        found = {}
        for name in self.shared:
            D = self.tuned[name] - self.base[name]
            if D.any():
                found[name] = D
        return found

    @cached_property
    def only_rounded(self) -> list[str]:
        """The matrices that are the other side's in another format, or through one."""
        found = []
        for name in (name for name, D in self.difference.items() if D.ndim == 2):
            base, tuned = self.made.base.get(name), self.made.tuned.get(name)
            if base is not None and tuned is not None and base.shape == tuned.shape:
                sides = (base.double(), tuned.double()), (tuned.double(), base.double())
                if any(
                    torch.equal(one.to(dtype).double(), other)
                    for one, other in sides
                    for dtype in (base.dtype, tuned.dtype, *DIGITS)
                ):
                    found.append(name)
        return found

    @cached_property
    def changed(self) -> list[str]:
        """The matrices that differ; apart from rounded ones, where figures are."""
        names = [name for name, D in self.difference.items() if D.ndim == 2]
        if self.apart_from_rounded:
            rounded = {*self.only_rounded}
            names = [name for name in names if name not in rounded] or names
        return names

    @cached_property
    def inside(self) -> list[str]:
        """Those of them that lie in layers."""
        return [name for name in self.changed if ".layers." in name]

    def update_of(self, name: str) -> Array | None:
        update = self.made.update
        return None if update is None or name not in update else update[name]

    def moved_layers(self) -> tuple[int, int]:
        """Layers whose tensors are all those of another layer of the base, and not their own; and
        those of which most matrices are.
        """
        base, tuned = (_by_layer(one) for one in (self.base, self.tuned))
        whole = in_part = 0
        for at, own in tuned.items():
            matrices = {name: W for name, W in own.items() if name.endswith("proj.weight")}
            shared = {
                layer: sum(one.get(name) == W for name, W in matrices.items())
                for layer, one in base.items()
            }
            here = shared.get(at, 0)
            if own in [one for layer, one in base.items() if layer != at] and own != base.get(at):
                whole += 1
            elif 2 * max(shared.values()) > len(matrices) and here < max(shared.values()):
                in_part += 1
        return whole, in_part

    def zeroed(self) -> bool:
        """Whether every matrix that differs does so where it is 0 now, and not where it was."""
        return all(not self.tuned[name][self.difference[name] != 0].any() for name in self.changed)

    def entries_changed(self) -> int:
        return sum(int(np.count_nonzero(self.difference[name])) for name in self.changed)

    def part_shared(self) -> float:
        """Share of the larger side's parameters that stand in matrices of both."""
        sides = (self.made.base, self.made.tuned)
        most = max(sum(one.numel() for one in side.values() if one.ndim == 2) for side in sides)
        return sum(self.base[name].size for name in self.shared if self.base[name].ndim == 2) / most

    # ------------------------------------------------------------------ norms

    def stored_norm(self, names: Iterable[str] | None = None) -> float:
        names = list(self.changed if names is None else names)
        return _over(self.difference, self.base, names)

    def norm(self, names: Iterable[str] | None = None) -> list[float]:
        """Of the update before storage over the base; of both readings where there are two."""
        names = list(self.changed if names is None else names)
        readings = [one for one in (self.made.update, self.made.also) if one is not None]
        return [_over(one, self.base, names) for one in readings]

    def energy_share(self, names: Iterable[str]) -> float:
        whole = sum(float((self.difference[name] ** 2).sum()) for name in self.changed)
        own = sum(
            float((self.difference[name] ** 2).sum()) for name in self.changed if name in set(names)
        )
        return own / whole if whole else 0.0

    # ------------------------------------------------------------------ structure

    @cached_property
    def purities(self) -> dict[str, tuple[float, float]]:
        """X of each update inside layers, and over its standard deviation under a separable null;
        of the other reading after them.
        """
        found = {}
        for name in self.inside:
            D = self.update_of(name)
            if D is not None and D.any():
                found[name] = (purity(D), _z(D))
        return found

    def directions(self, names: Iterable[str]) -> list[float]:
        """Median of 1/X over matrices; of both readings where there are two."""
        names = [name for name in names if name in self.purities]
        if not names:
            return []
        found = [median(_inverse(self.purities[name][0]) for name in names)]
        if self.made.also is not None:
            found.append(median(_inverse(purity(self.made.also[name])) for name in names))
        return found

    def rank(self, names: Iterable[str], share: float = 0.999) -> float | None:
        """Median over matrices: directions that hold so much of the update's energy."""
        known = [_rank(D, share) for name in names if (D := self.update_of(name)) is not None]
        return median(known) if known else None

    def beyond_noise(self, least: float = 5.0) -> tuple[int, int]:
        """Matrices whose structure stands after storage, by the update's own purity; and those
        flatter than noise. Of all inside layers.
        """
        beyond = flatter = 0
        for name, (_, z) in self.purities.items():
            beyond += z * self.kepts[name][0] ** 2 > least
            flatter += z < -least
        return beyond, flatter

    def hardly_moved(self) -> float:
        """Median over the updates inside layers: entries below a tenth of their root mean square.

        8 % of a normal update.
        """
        known = [
            float((np.abs(D) < 0.1 * np.sqrt((D**2).mean())).mean())
            for name in self.inside
            if (D := self.update_of(name)) is not None
        ]
        return median(known) if known else 0.0

    # ------------------------------------------------------------------ storage

    @cached_property
    def kepts(self) -> dict[str, tuple[float, float]]:
        """Of each matrix inside layers: the share of the stored energy that is the update's, as
        squared correlation, and the same in classes of rows.
        """
        found = {}
        for name in self.inside:
            D, S = self.update_of(name), self.difference[name]
            if D is None or not D.any():
                found[name] = (0.0, 0.0)
                continue
            whole = float((D * S).sum()) ** 2 / float((D**2).sum() * (S**2).sum())
            parts = np.array_split(np.argsort((S**2).sum(1)), CLASSES)
            cells = [
                float((D[rows] * S[rows]).sum()) ** 2 / energy
                for rows in parts
                if (energy := float((D[rows] ** 2).sum()))
            ]
            found[name] = (whole, sum(cells) / float((S**2).sum()))
        return found

    def kept(self, names: Iterable[str] | None = None) -> tuple[float, float]:
        known = [self.kepts[name] for name in (self.inside if names is None else names)]
        if not known:
            return 1.0, 1.0
        return median(one for one, _ in known), median(one for _, one in known)

    def decay_cosine(self) -> float | None:
        """Of the update and the base's weights, median inside layers."""
        known = []
        for name in self.inside:
            D, W = self.update_of(name), self.base[name]
            if D is not None and D.any():
                known.append(float((D * W).sum() / np.linalg.norm(D) / np.linalg.norm(W)))
        return median(known) if known else None

    def kept_of_rounded(self) -> float | None:
        """The same share of the tuned side less the base rounded to its format, where the base is
        in another: what `kept` is of where training began there.
        """
        known = []
        for name in self.inside:
            D, dtype = self.update_of(name), self.made.tuned[name].dtype
            if D is None or self.made.base[name].dtype == dtype:
                return None
            S = self.tuned[name] - self.made.base[name].to(dtype).double().numpy()
            both = float((D**2).sum() * (S**2).sum())
            known.append(float((D * S).sum()) ** 2 / both if both else 0.0)
        return median(known) if known else None

    def floor_ratio(self) -> float | None:
        """The stored change over one rounding, median inside layers: to the coarsest grid on which
        the tuned side lies, or the base where that was rounded for storage. None where nothing was.
        """
        if self.made.rounded == "no":
            return None
        known = []
        for name in self.inside:
            digits, least = _grid(self.tuned[name])
            if self.made.rounded == "master":
                digits, least = min((digits, least), _grid(self.base[name]))
            exponent = np.maximum(np.frexp(np.abs(self.base[name]))[1] - 1, least)
            floor = math.sqrt(float((4.0 ** (exponent - digits + 1)).sum()) / 12)
            known.append(float(np.linalg.norm(self.difference[name])) / floor)
        return median(known) if known else None


def _by_layer(W: Weights) -> dict[int, dict[str, bytes]]:
    found: dict[int, dict[str, bytes]] = {}
    for name, one in W.items():
        if (at := place_of(name)[2]) is not None:
            found.setdefault(at, {})[name.replace(f".{at}.", ".#.", 1)] = one.tobytes()
    return found


def _grid(W: Array) -> tuple[int, int]:
    """Digits and least exponent of the coarsest format that holds all values."""
    values = torch.from_numpy(W)
    for dtype, grid in DIGITS.items():
        if torch.equal(values.to(dtype).double(), values):
            return grid
    return 53, -1022


def _over(update: Mapping[str, Array], base: Weights, names: list[str]) -> float:
    above = sum(float((update[name] ** 2).sum()) for name in names if name in update)
    below = sum(float((base[name] ** 2).sum()) for name in names)
    return math.sqrt(above / below) if below else 0.0


def _inverse(X: float) -> float:
    return 1 / X if X > 0 else math.inf


def _z(D: Array) -> float:
    r, c = (D**2).sum(1), (D**2).sum(0)
    rows, cols = (float(one.sum() ** 2 / (one**2).sum()) for one in (r, c))
    return purity(D) * rows * cols / 2


def _rank(D: Array, share: float) -> int:
    sigma = np.linalg.svd(D, compute_uv=False) ** 2
    held = np.cumsum(sigma) / sigma.sum()
    return int(np.searchsorted(held, share) + 1)


COMPONENTS = {"vision_tower": "vision", "multi_modal_projector": "projector"}
MODULES = {
    "embed_tokens": "embed", "lm_head": "head", "norm": "norm", "linear_1": "projector.0",
    "linear_2": "projector.1", "fc1": "mlp.up", "fc2": "mlp.down", "out_proj": "attn.o",
    **{f"{one}_proj": f"attn.{one}" for one in "qkvo"},
    **{f"{one}_proj": f"mlp.{one}" for one in ("gate", "up", "down")},
}  # fmt: skip


def place_of(name: str) -> tuple[str, str, int | None]:
    """Component, module and layer of a tensor of these pairs, as reports call them."""
    parts = name.split(".")
    layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else None
    module = MODULES.get(parts[-2], "norm" if "norm" in name else "other")
    if ".experts." in name:
        module = module.replace("mlp", "experts")
    elif name.endswith("mlp.gate.weight"):
        module = "router"
    return COMPONENTS.get(parts[0], "language"), module, layer
