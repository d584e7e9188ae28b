"""The columns of a matrix pair in the tier `sketch`: from block Krylov spaces, with their errors.

Base, tuned and delta share every pass over the blocks. A bounded figure whose error is above WIDEST
of it is left out. Participation ratios, what follows from them, and effective ranks always stand
with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.spectra.krylov import (
    ROUNDING,
    SIGMAS,
    Estimate,
    Krylov,
    effective_rank,
    energy_rank,
    frame,
    krylov_spaces,
    square_trace,
)
from shadow.spectra.measurement import Subject, Values
from shadow.spectra.noise import NOISE
from shadow.spectra.spectrum import Sides, Workspace, blocks

SMALLEST = 512  # short side up to which all singular values cost no more than a sketch
WIDEST = 0.1  # error of a figure, as a share of it, above which it is null
FLOOR = 1e-3  # of sigma_1, below which float32 products resolve nothing
SHIFTED = 0.01  # of an effective rank: a shift that is less than its error and this is told
# elements of a delta alone that are kept in float32 (400 MB) instead of made again every pass; of
# three matrices, reading them anew takes no longer
KEPT = 100_000_000
TOPS = (1, 4, 16, 64)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sketch:
    """One matrix of a pair, by its Krylov space."""

    space: Krylov  # of the scaled entries
    scale: float  # the power of two that entries were multiplied by
    norm: float  # Frobenius norm, in weights

    def sigma(self, place: int) -> Estimate:
        """A leading singular value by its place from 0, in weights, midway between its bounds."""
        low, high = (math.sqrt(of[place]) for of in (self.space.values, self.space.bounds))
        return Estimate((low + high) / 2.0 / self.scale, (high - low) / 2.0 / self.scale)

    @property
    def spectral_norm(self) -> Estimate:
        """The largest singular value, in weights, by its Ritz value.

        That is at most the truth, and much nearer to it than the bound from above, which fails in
        one of 1,000: of 300 planted deltas and of noise up to side 2048 the truth lay within 0 to
        0.33 of the way to the bound. The error is half of the way, and the rounding.
        """
        low, high = (math.sqrt(of[0]) / self.scale for of in (self.space.values, self.space.bounds))
        return Estimate(low, (high - low) / 2.0 + ROUNDING * low)


# Blocks of several matrices of one shape at a time, scaled, float32, in the order of `blocks`; each
# time it is called, from the first on.
Reading = Callable[[], Iterator[Sequence[Tensor]]]


def sketches(
    read: Reading, shape: tuple[int, int], sizes: Mapping[Subject, tuple[float, float]], key: str
) -> dict[Subject, Sketch]:
    """Matrices of one shape by the same passes over their blocks.

    key seeds the frame that they share, so that errors of shifts cancel. sizes: of each, the power
    of two that its blocks are multiplied by, and its Frobenius norm in weights.
    """
    wide = shape[0] <= shape[1]

    def products(few: Sequence[NDArray[np.float32]]) -> list[Array]:
        """One pass: float32 by block, float64 over blocks."""
        made = [np.zeros(columns.shape if wide else columns.T.shape) for columns in few]
        for parts in read():
            for total, part, columns in zip(made, parts, few, strict=True):
                v = torch.from_numpy(columns)
                # other ways to write these products take MKL two to four times as long
                if wide:
                    total += (part @ (v.T @ part).T.contiguous()).numpy()
                else:
                    total += ((part @ v).T @ part).numpy()
        return made if wide else [np.ascontiguousarray(total.T) for total in made]

    energies = [(norm * scale) ** 2 for scale, norm in sizes.values()]
    spaces = krylov_spaces(products, frame(key, min(shape)), energies)
    found = zip(spaces, sizes.values(), strict=True)
    made = (Sketch(space, scale, norm) for space, (scale, norm) in found)
    return dict(zip(sizes, made, strict=True))


def of_pair(sides: Sides, scales: Mapping[Subject, float]) -> Reading:
    """Those of base, tuned and tuned - base that have a scale; the last in the dtype of sides."""
    keep, kept = [*scales] == ["delta"] and kept_elements(sides.shape) > 0, list[list[Tensor]]()

    def read() -> Iterator[list[Tensor]]:
        space = sides.space
        if kept:
            yield from kept
            return
        for index, _ in blocks(sides.tuned):
            b, t = sides.read(index)
            parts = {"base": b, "tuned": t}
            number = f" {len(kept)}" if keep else ""  # of a buffer, which later pairs use again
            if "delta" in scales:
                work = f"work{number}" if sides.dtype == torch.float32 else "work"
                parts["delta"] = torch.sub(t, b, out=space.take(work, b.shape, sides.dtype))
            made = [_single(parts[name], by, name + number, space) for name, by in scales.items()]
            if keep:
                kept.append(made)
            yield made

    return read


def kept_elements(shape: tuple[int, int]) -> int:
    """Elements of a delta alone that are kept in float32: all, or none."""
    elements = math.prod(shape)
    return elements if elements <= KEPT else 0


def one_alone(blocks: Callable[[], Iterator[Tensor]], space: Workspace) -> Reading:
    """A matrix whose scaled blocks are read in any dtype."""
    return lambda: ([_single(x, 1.0, "one", space)] for x in blocks())


def _single(x: Tensor, scale: float, name: str, space: Workspace) -> Tensor:
    """scale times a block, which may be overwritten, in float32."""
    if scale != 1.0:
        x.mul_(scale)
    if x.dtype != torch.float32:
        x = space.take(f"{name} in float32", x.shape, torch.float32).copy_(x)
    return x


def _recorded(name: str, found: Estimate, widest: float = WIDEST) -> Values:
    """A column and its error; both None where the error is too large a share of it."""
    if not found.error <= widest * abs(found.value):
        return {name: None, f"{name}_error": None}
    return {name: found.value, f"{name}_error": found.error}


def _between(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2.0, (high - low) / 2.0 + ROUNDING * abs(high))


def _squares(of: Sketch) -> Estimate:
    """tr G² within what is possible: between E² / m and E²."""
    space, found = of.space, square_trace(of.space)
    low, high = space.energy**2 / space.side, space.energy**2
    return Estimate(min(high, max(low, found.value)), found.error)


def weight_values(of: Sketch) -> Values:
    """The columns that every subject has; None where a product with few vectors cannot decide."""
    space, squares = of.space, _squares(of)
    ratio, error = space.energy**2 / squares.value, squares.error / squares.value
    ranked, energies = effective_rank(space), energy_rank(space)
    leading = of.sigma(0)
    low, high = (of.norm / (leading.value + sign * leading.error) for sign in (1, -1))
    return {
        "frobenius_norm": of.norm,
        **_recorded("spectral_norm", of.spectral_norm),
        **_recorded("stable_rank", _between(low**2, high**2)),
        **_recorded("effective_rank", ranked.exp, math.inf),
        **_recorded("energy_rank", energies.exp),
        **_recorded("participation_ratio", Estimate(ratio, ratio * error), math.inf),
        **_tops(of, TOPS),
        "sigma_floor": FLOOR * (leading.value - leading.error),
    }


def _tops(of: Sketch, tops: Sequence[int]) -> Values:
    """Energies of the leading directions, between Ritz values and bounds."""
    space, found = of.space, Values()
    for k in tops:
        low, high = (float(x[:k].sum()) / space.energy for x in (space.values, space.bounds))
        found |= _recorded(f"top{k}_energy", _between(min(1.0, low), min(1.0, high)))
    return found


def sketched_delta(of: Sketch, null: float, edge: float, sharp: float) -> Values:
    """The columns of a delta that rest on its singular values.

    null, edge, sharp: its null_participation_ratio, null_edge and null_edge_sharp, in closed form.
    """
    values = weight_values(of) | _tops(of, (20,))
    ratio, error = values["participation_ratio"], values["participation_ratio_error"]
    concentration: Values = {"concentration": None, "concentration_error": None}
    if null >= 2 and ratio is not None and error is not None:
        logarithm = math.log(null)
        concentration = {
            "concentration": math.log(null / ratio) / logarithm,
            "concentration_error": error / ratio / logarithm,
        }
    spikes, energy = _above(of, edge)
    return {
        **values,
        "null_participation_ratio": null,
        "null_edge": edge,
        "null_edge_sharp": sharp,
        **concentration,
        "spikes": spikes,
        **(_recorded("spike_energy", energy) if energy else {"spike_energy": None}),
        "spikes_sharp": _above(of, sharp)[0],
    }


def _above(of: Sketch, edge: float) -> tuple[int | None, Estimate | None]:
    """Return how many singular values lie above an edge, and their share of the energy; None where
    the bounds leave it open.
    """
    space, level = of.space, (edge * of.scale) ** 2
    count = int(np.count_nonzero(space.values > level))
    if count >= len(space.bounds) or space.bounds[count] > level:
        return None, None
    low, high = (float(x[:count].sum()) / space.energy for x in (space.values, space.bounds))
    return count, _between(min(1.0, low), min(1.0, high))


def with_errors(values: Values, of_delta: Values, kept: float | None) -> Values:
    """Return what `purity_values` made of a delta, with the error of its participation ratio
    carried on; as it is where that has none.

    X is a difference that cancels near its null. purity_z is None where its distance from 0, over
    the standard deviation of both, the null's and the estimate's, does not say as it does whether X
    is more than noise. Equivalent directions are None where that distance is not more than noise;
    otherwise the error takes away less than half of X.
    """
    if (error := of_delta.get("participation_ratio_error")) is None:
        return values
    ratio = of_delta["participation_ratio"]
    names = ("excess_purity", "excess_purity_unrounded", "equivalent_directions", "purity_z")
    errors: Values = dict.fromkeys(f"{name}_error" for name in names)
    x, z = values["excess_purity"], values["purity_z"]
    if ratio is None or x is None or z is None:
        return values | errors
    of_x = error / ratio**2
    errors["excess_purity_error"] = of_x
    if values["excess_purity_unrounded"] is not None and kept is not None:
        errors["excess_purity_unrounded_error"] = of_x / kept**2
    share = of_x / abs(x) if x != 0 else math.inf
    sure = z / math.hypot(1.0, z * share / SIGMAS) if x != 0 else 0.0
    recorded: Values = {"purity_z": None}
    if (abs(z) > NOISE) == (abs(sure) > NOISE):
        recorded = {"purity_z": z, "purity_z_error": abs(z) * share if x != 0 else 0.0}
    count = values["equivalent_directions"]
    if count is not None and sure <= NOISE:
        count = None
    elif count is not None:
        errors["equivalent_directions_error"] = count * share / (1.0 - share)
    return values | errors | recorded | {"equivalent_directions": count}


def effective_rank_shift(base: Sketch, tuned: Sketch) -> Values:
    """effective_rank of tuned less that of base, whose probes are the same, so that most of their
    errors cancels; None where what is left is larger than the shift and than SHIFTED of the rank.
    """
    before, after = effective_rank(base.space), effective_rank(tuned.space)
    middle = math.exp((before.log.value + after.log.value) / 2.0)
    moved = [after.rules[i] - before.rules[i] for i in (0, 1)]
    apart = replace(after, rules=(moved[0], moved[1]), residues=after.residues - before.residues)
    found = Estimate(middle * apart.log.value, middle * apart.log.error)
    if found.error > max(abs(found.value), SHIFTED * middle):
        return {"effective_rank_shift": None, "effective_rank_shift_error": None}
    return {"effective_rank_shift": found.value, "effective_rank_shift_error": found.error}
