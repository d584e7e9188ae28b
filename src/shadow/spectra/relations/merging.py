"""Replay a merge: base plus a scaled low-rank update, in the orders in which programs compute it.

Where no order gives the stored numbers, every entry must still be within what rounding may do, and
the scale of the update is estimated. Bases that were quantised and dequantised are tried as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from shadow.dtypes import FP4, NF4, FloatFormat, float_format
from shadow.spectra.lazy import Matrix, half_ulp, torch_dtype
from shadow.spectra.spectrum import tiles

ROWS = 1 << 15  # entries of a block, about: a dozen copies of it in float64 stay in the caches
QUANTISED = ("NF4", "FP4", "INT8")
BLOCK = 64  # entries that share one scale in bitsandbytes' 4-bit formats
LEVELS = {"NF4": NF4, "FP4": sorted(set(FP4))}  # ascending
STEP = 2.0**-5  # of the scale, over which the effect of another scale is measured
PANEL = 8  # rows of a product that are computed at least: of one row, BLAS sums in another order


@dataclass(frozen=True)
class Order:
    """The steps of a merge in a program: dtypes, roundings, and where the scale is applied."""

    products: torch.dtype = torch.float32
    scaled: Literal["product", "left", "sum"] = "product"
    rounds_factors: bool = False  # to the dtype of the model, before they are multiplied
    rounds_product: bool = False
    rounds_update: bool = False  # the scaled product, before it is added

    def of_model(self, dtype: torch.dtype) -> Order:
        """The same without roundings that change nothing: only 16 bits are rounded to."""
        return self if dtype.itemsize == 2 else Order(self.products, self.scaled)


NARROW = Order(rounds_factors=True, rounds_product=True, rounds_update=True)
ORDERS: Mapping[str, Order] = {
    # peft, which raises adapters to float32, and so mergekit; llama.cpp
    "in_float32": Order(),
    "in_one_sum": Order(scaled="sum"),  # Unsloth: addmm in float32
    "left_scaled": Order(scaled="left"),  # torchtune
    "update_rounded": Order(rounds_update=True),  # peft with safe_merge
    # peft on a CPU where adapters stay in 16 bits, and on a GPU
    "factors_rounded": Order(rounds_factors=True, rounds_update=True),
    "in_16_bits": NARROW,
    "left_scaled_in_16_bits": replace(NARROW, scaled="left"),  # mlx
    "in_float64": Order(torch.float64),
}
"""The orders that are replayed, the most frequent first."""
Way = tuple[str, bool]
"""An order, and whether the base is first rounded to the format of the merged model."""


@dataclass(frozen=True)
class Update:
    """scale * left @ right, and for DoRA the norms of the rows of base plus update."""

    left: Tensor  # (rows, r)
    right: Tensor  # (r, cols)
    scale: float
    magnitude: Tensor | None = None  # (rows,)
    stored: str = "F32"  # the dtype of the factors
    is_cast: bool = False  # of an expert in a stack, or an embedding: peft rounds it before the sum
    exact: Tensor | None = None  # (rows, cols), float64: the update itself, if it is no product
    rounded: Tensor | None = None  # and what a merge in the base's dtype leaves of it

    @classmethod
    def of_merge(cls, base: Tensor, exact: Tensor, rounded: Tensor) -> Update:
        """The update of a merge in float32, and of the same in the base's dtype. What stands
        for the factors are bounds of its rows.
        """
        change = exact.double() - base.double()
        bounds = change.abs().amax(1, keepdim=True)
        ones = bounds.new_ones(1, change.shape[1])
        return cls(bounds, ones, 1.0, exact=change, rounded=rounded.double() - base.double())

    def delta(self, rows: slice) -> Tensor:
        """Some rows of the scaled update in float64."""
        if self.exact is not None:
            return self.exact[rows].clone()
        return (self.left[rows].double() @ self.right.double()).mul_(self.scale)

    def as_merged(self, order: Order) -> Order:
        """The order of a program whose other modules are merged in this one."""
        return ORDERS["update_rounded"] if self.is_cast and order == Order() else order


@dataclass
class Rest:
    """Entries that differ from a replay. Sums over them, of the difference times the slope of the
    entry over the scale, and of its squares, give the scale and its error.
    """

    entries: int = 0
    along: float = 0.0
    squares: float = 0.0

    def add(self, other: Rest) -> None:
        """Add the sums over other entries."""
        self.entries += other.entries
        self.along += other.along
        self.squares += other.squares


@dataclass(frozen=True)
class MergeFit:
    """The comparison of a matrix with base plus update."""

    entries: int
    beyond: int  # entries further away than rounding may move them
    update: float  # sums of squares: of the update
    residual: float  # and of merged - (base + update)
    inner: float  # <merged - base, update>
    rounding: float  # what storage leaves on average, ulp² / 12 an entry
    visible: int  # entries that the update changes when base plus update is stored
    moved: int  # entries that differ from the base's as stored
    finite: bool
    rests: Mapping[Way, Rest] = field(default_factory=dict)
    slope: float = 0.0  # by which `along` grows with the scale, as the format stores it
    quantised: tuple[str, float] | None = None  # the copy of the base that fits best, and residual²

    @property
    def fits(self) -> bool:
        """True if every entry is base plus update within what rounding may do."""
        return self.finite and not self.beyond

    @property
    def scale(self) -> float | None:
        """The share of the update that it holds, by least squares; None without an update."""
        return self.inner / self.update if self.update else None


@dataclass(frozen=True)
class UpdateScale:
    """The scale of the updates of some matrices, by what one way of merging leaves."""

    value: float
    error: float  # one standard error; infinite where no entry shows the scale

    @classmethod
    def of(cls, fits: Sequence[MergeFit], way: Way) -> UpdateScale:
        """Estimate it over all entries of these matrices together."""
        rests = [fit.rests[way] for fit in fits]
        slope = math.fsum(fit.slope for fit in fits)
        if slope <= 0:
            return cls(1.0, math.inf)
        along = math.fsum(rest.along for rest in rests)
        error = math.sqrt(math.fsum(rest.squares for rest in rests))
        return cls(1 + along / slope, error / slope)


def best_way(fits: Sequence[MergeFit]) -> tuple[Way, int]:
    """The way of merging that leaves the fewest entries in all matrices together, the first
    of several, and how many it leaves.
    """
    left = {
        (code, rounded): sum(fit.rests[code, rounded].entries for fit in fits)
        for rounded in (False, True)
        for code in ORDERS
    }
    way = min(left, key=left.__getitem__)
    return way, left[way]


def merge_fit(
    base: Matrix, merged: Matrix, update: Update, formats: tuple[str, str], *, upright: bool
) -> MergeFit:
    """Compare a matrix with base plus update.

    formats: stored dtypes of base and merged. upright: whether rows are as stored, which blocks of
    quantised copies and sums over rows follow.
    """
    fit = _fit(base, merged, update, formats, upright=upright)
    if fit.beyond and fit.finite and upright:
        return _with_quantised(base, merged, update, fit, float_format(formats[1]))
    return fit


def _fit(
    base: Matrix, merged: Matrix, update: Update, formats: tuple[str, str], *, upright: bool
) -> MergeFit:
    grids = [float_format(one) for one in formats]
    grid = grids[1]
    stored = torch_dtype(grid)
    is_cut = grids[0].bits > grid.bits  # the base may have been rounded before the merge
    dtypes = [torch_dtype(one) if one.bits > 8 else torch.float32 for one in grids]
    energies: list[list[float]] = [[] for _ in range(5)]
    entries, visible, moved, finite = 0, 0, 0, True
    beyond = dict.fromkeys((False, True) if is_cut else (False,), 0)
    rests = {(code, rounded): Rest() for rounded in (False, True) for code in ORDERS}
    for rows, (b, m) in _both(base, merged):
        entries += m.numel()
        if not (bool(b.isfinite().all()) and bool(m.isfinite().all())):
            finite = False
            continue
        left, right = update.left[rows].double(), update.right.double()
        delta = update.delta(rows)
        bounds = _Bounds(left, right, delta, update, grid, half_ulp(m, grid))
        target, growth = _target(b, delta, 1.0, update, rows)
        for rounded in beyond:
            near = target
            if rounded:
                near, growth = _target(b.to(stored).double(), delta, 1.0, update, rows)
            if update.rounded is not None:  # which may be further away, computed in 16 bits
                near = torch.where(m == (b + update.rounded[rows]).to(stored).double(), m, near)
            beyond[rounded] += bounds.beyond(b, near, (m - near).abs_(), growth)
        change, away = target - b, m - target
        steps = [_target(b, delta, 1 + step, update, rows)[0] for step in (STEP, -STEP)]
        slopes = (steps[0] - steps[1]).div_(2 * STEP)
        above, below, here = (one.to(stored).double() for one in (*steps, target))
        half = bounds.half
        products = (change, change), (away, away), (m - b, change), (half, half / 3)
        found = [_dot(one, other) for one, other in products]
        found.append(_dot(above.sub_(below), slopes) / (2 * STEP))
        if not all(map(math.isfinite, found)):  # NaN is beyond no bound
            finite = False
            break
        for each, value in zip(energies, found, strict=True):
            each.append(value)
        origin = b.to(stored).double()
        visible += int((here != origin).sum())
        moved += int((m != origin).sum())
        replays: dict[tuple[Order, torch.dtype], Rest] = {}
        for way, rest in rests.items():
            code, rounded = way
            dtype = dtypes[rounded]
            order = update.as_merged(ORDERS[code]).of_model(dtype)
            if (order, dtype) not in replays:
                merge = replayed(b.to(dtype), update, rows, order, upright=upright)
                replays[order, dtype] = _rest(m - merge.to(stored).double(), slopes)
            rest.add(replays[order, dtype])
    of_update, residual, inner, rounding, slope = map(math.fsum, energies)
    return MergeFit(
        entries, min(beyond.values()), of_update, residual, inner, rounding, visible, moved, finite,
        rests, slope,
    )  # fmt: skip


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.reshape(-1), second.reshape(-1)))


def _rest(away: Tensor, slopes: Tensor) -> Rest:
    """Sum over the entries that differ from a replay; NaN differs."""
    differ = int(torch.count_nonzero(away))
    if not differ:
        return Rest()
    products = away * slopes
    return Rest(differ, float(products.sum()), _dot(products, products))


def replayed(base: Tensor, update: Update, rows: slice, order: Order, *, upright: bool) -> Tensor:
    """Some rows of a merge as a program computes it: the same operations of torch in the
    same dtypes. base: these rows, in the dtype of the model.
    """
    dtype = base.dtype
    if update.exact is not None and update.rounded is not None:
        change = update.exact if order.products == torch.float64 else update.rounded
        return (base.double() + change[rows]).to(dtype)
    first = max(0, min(rows.start, rows.stop - PANEL))
    within = slice(rows.start - first, rows.stop - first)
    left, right = update.left[first : max(rows.stop, first + PANEL)], update.right
    if order.rounds_factors:
        left, right = left.to(dtype), right.to(dtype)
    left, right = left.to(order.products), right.to(order.products)
    if order.scaled == "left":
        left = left * update.scale
        if order.rounds_product:
            left = left.to(dtype).to(order.products)
    if order.scaled == "sum" and update.is_cast:
        total = torch.add(base.to(order.products), (left @ right)[within], alpha=update.scale)
    elif order.scaled == "sum":
        padded = torch.zeros(len(left), base.shape[1], dtype=order.products)
        padded[within] = base.to(order.products)
        total = torch.addmm(padded, left, right, alpha=update.scale)[within]
    else:
        delta = (left @ right)[within]
        if order.rounds_product:
            delta = delta.to(dtype)
        if order.scaled == "product":
            delta = delta * update.scale
        total = base + (delta.to(dtype) if order.rounds_update else delta)
    if update.magnitude is not None:
        wide = total if upright else total.T.contiguous().T  # sums go as numbers lie in memory
        norms = torch.linalg.norm(wide, dim=1)
        total = total * (update.magnitude[rows].to(total.dtype) / norms)[:, None]
    return total.to(dtype)


@dataclass
class _Bounds:
    """Tolerances of a merge around base plus update in a block. Expensive ones are made only if an
    entry is further away than the cheap ones.
    """

    left: Tensor
    right: Tensor
    delta: Tensor
    update: Update
    grid: FloatFormat
    half: Tensor  # a unit in the last place at the merged entries

    def beyond(self, b: Tensor, target: Tensor, away: Tensor, growth: Tensor | float) -> int:
        """The number of entries that are further away than a merge in 16 bits or more can be."""
        bound = torch.maximum(self.half, half_ulp(target, self.grid))
        if not bool((away > bound).any()):
            return 0
        sizes = (self.left.abs() @ self.right.abs()).mul_(abs(self.update.scale))
        # each product and each sum of float32 is right to half a unit
        rank, unit = self.right.shape[0], 2.0**-24
        bound += (sizes * (rank + 4) + 4 * (b.abs() + self.delta.abs())) * growth * unit
        has_norms = self.update.magnitude is not None
        if has_norms:
            bound += target.abs() * ((2 * math.sqrt(b.shape[1]) + 8) * unit)
        far = int((away > bound).sum())
        if not far or self.grid.bits != 16:  # nothing computes in 8 bits
            return far
        bound += self._of_narrow(sizes) * growth
        if has_norms:
            bound += target.abs() * (4 * 2.0 ** -(self.grid.mantissa_bits + 1))
        return int((away > bound).sum())

    def _of_narrow(self, sizes: Tensor) -> Tensor:
        """The most that rounding to a stored format moves an update: the factors if they
        have more bits, their product, and the scaled product. The following sum does not count.
        """
        scale, grid = abs(self.update.scale), self.grid
        reach = self.delta.abs() * (1 + 2.0**-6)  # a rounded number may lie in the binade above
        found = half_ulp(reach, grid)
        if scale:
            found += half_ulp(reach / scale, grid) * scale
        if float_format(self.update.stored).bits > grid.bits:
            found += 2.0**-grid.mantissa_bits * sizes
            least = 2.0 ** (grid.min_exponent - grid.mantissa_bits - 1) * scale
            found += least * (self.left.abs().sum(1, keepdim=True) + self.right.abs().sum(0))
        return found


def _target(
    b: Tensor, delta: Tensor, scale: float, update: Update, rows: slice
) -> tuple[Tensor, Tensor | float]:
    """Base plus that much of the update, and the factor of its entries afterwards."""
    target = torch.add(b, delta, alpha=scale)
    if update.magnitude is None or scale == 0.0:
        return target, 1.0
    norms = torch.linalg.vector_norm(target, dim=1)
    growth = torch.where(norms > 0, update.magnitude[rows].double() / norms, 1.0)[:, None]
    return target * growth, growth.abs()


def _both(base: Matrix, merged: Matrix) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Yield whole rows of both in float64, as (rows, cols), and their indices."""
    cols = merged.shape[-1]
    for index, (start, _) in tiles(merged, ROWS, cols):
        m, b = (one[index].double().contiguous().view(-1, cols) for one in (merged, base))
        yield slice(start, start + len(m)), (b, m)


def _with_quantised(
    base: Matrix, merged: Matrix, update: Update, fit: MergeFit, grid: FloatFormat
) -> MergeFit:
    """The fit with the quantised copy of the base closest to the merged matrix.

    A copy is dequantised to the stored format of the merged matrix.
    """
    energies: dict[str, list[float]] = {name: [] for name in QUANTISED}
    for rows, (b, m) in _both(base, merged):
        delta = update.delta(rows)
        for name in QUANTISED:
            copy = quantised(b, name)
            if copy is None:
                energies.pop(name, None)
            elif name in energies:
                copy = copy.to(torch_dtype(grid)).double()
                target, _ = _target(copy, delta, 1.0, update, rows)
                energies[name].append(float((m - target).square().sum()))
    found = {name: math.fsum(each) for name, each in energies.items()}
    if not found:
        return fit
    best = min(found, key=lambda name: found[name])
    return replace(fit, quantised=(best, found[best]))


def quantised(matrix: Tensor, name: str) -> Tensor | None:
    """A (rows, cols) matrix after a round trip through bitsandbytes' 4-bit or 8-bit format;
    None if rows are not a whole number of blocks.

    NF4 and FP4: 64 entries in a row share their largest absolute value; INT8: a row does.
    """
    if name == "INT8":
        scale = matrix.abs().amax(1, keepdim=True) / 127
        return torch.round(matrix / scale).nan_to_num_() * scale
    if matrix.shape[1] % BLOCK:
        return None
    levels = torch.tensor(LEVELS[name], dtype=torch.float64)
    blocks = matrix.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize((blocks / scale).nan_to_num_(), middles)
    return (levels[codes] * scale).reshape(matrix.shape)
