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
from shadow.spectra.measurement import Formats
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
        """The same for a model of that dtype, without roundings that change nothing: only 16 bits
        are rounded to.
        """
        if dtype.itemsize == 2:
            return self
        return Order(self.products, self.scaled)


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
WAYS: Sequence[Way] = [(code, is_rounded) for is_rounded in (False, True) for code in ORDERS]


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
        """The update of a merge in float32, exact, and of the same in the base's dtype, rounded,
        all (rows, cols). What stands for the factors are bounds of its rows.
        """
        change = exact.double() - base.double()
        bounds = change.abs().amax(1, keepdim=True)
        return cls(
            left=bounds,
            right=bounds.new_ones(1, change.shape[1]),
            scale=1.0,
            exact=change,
            rounded=rounded.double() - base.double(),
        )

    def delta(self, rows: slice) -> Tensor:
        """Some rows of the scaled update in float64, as a copy."""
        if self.exact is not None:
            return self.exact[rows].clone()
        product = self.left[rows].double() @ self.right.double()
        return product.mul_(self.scale)

    def as_merged(self, order: Order) -> Order:
        """The order of a program whose other modules are merged in this one."""
        if self.is_cast and order == Order():
            return ORDERS["update_rounded"]
        return order


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
        if self.update:
            return self.inner / self.update
        return None


@dataclass(frozen=True)
class UpdateScale:
    """The scale of the updates of some matrices, by what one way of merging leaves."""

    value: float
    error: float  # one standard error; infinite where no entry shows the scale

    @classmethod
    def of(cls, fits: Sequence[MergeFit], way: Way) -> UpdateScale:
        """Estimate it over all entries of matrices together, from their fits and a way of
        merging.
        """
        rests = [fit.rests[way] for fit in fits]
        slope = math.fsum(fit.slope for fit in fits)
        if slope <= 0:
            return cls(1.0, math.inf)
        along = math.fsum(rest.along for rest in rests)
        squares = math.fsum(rest.squares for rest in rests)
        value = 1 + along / slope
        error = math.sqrt(squares) / slope
        return cls(value, error)


def best_way(fits: Sequence[MergeFit]) -> tuple[Way, int]:
    """The way of merging that leaves the fewest entries in all matrices together, the first
    of several, and how many it leaves. fits: one for each matrix.
    """
    left = dict.fromkeys(WAYS, 0)
    for fit in fits:
        for way in WAYS:
            left[way] += fit.rests[way].entries
    best = min(left, key=left.__getitem__)
    return best, left[best]


def merge_fit(
    base: Matrix, merged: Matrix, update: Update, formats: Formats, *, upright: bool
) -> MergeFit:
    """Compare a matrix with base plus update.

    formats: stored dtypes of base and merged. upright: whether rows are as stored, which blocks of
    quantised copies and sums over rows follow.
    """
    base_grid = float_format(formats[0])
    grid = float_format(formats[1])
    stored = torch_dtype(grid)
    dtypes = [_model_dtype(base_grid), _model_dtype(grid)]
    beyond = {False: 0}  # by whether the base is rounded before the merge, as it may have been
    if base_grid.bits > grid.bits:
        beyond[True] = 0
    # of the update, of merged - target, <merged - base, update>, of rounding, and of the slope
    energies: list[list[float]] = [[] for _ in range(5)]
    entries = 0
    visible = 0
    moved = 0
    finite = True
    rests = {way: Rest() for way in WAYS}
    for rows, b, m in _blocks(base, merged):
        entries += m.numel()
        are_finite = b.isfinite().all() and m.isfinite().all()
        if not are_finite:
            finite = False
            continue
        delta = update.delta(rows)
        bounds = _Bounds(
            left=update.left[rows].double(),
            right=update.right.double(),
            delta=delta,
            update=update,
            grid=grid,
            half=half_ulp(m, grid),
        )
        b_stored = b.to(stored).double()
        target, growth = _target(b, delta, 1.0, update, rows)
        for is_rounded in beyond:
            near = target
            if is_rounded:
                near, growth = _target(b_stored, delta, 1.0, update, rows)
            if update.rounded is not None:  # which may be further away, computed in 16 bits
                merge = b + update.rounded[rows]
                near = torch.where(m == merge.to(stored).double(), m, near)
            away = (m - near).abs_()
            beyond[is_rounded] += bounds.beyond(b, near, away, growth)
        change = target - b
        residual = m - target
        above, _ = _target(b, delta, 1 + STEP, update, rows)
        below, _ = _target(b, delta, 1 - STEP, update, rows)
        slopes = (above - below).div_(2 * STEP)
        above = above.to(stored).double()
        stored_slopes = above.sub_(below.to(stored).double())
        products = [
            _dot(change, change),
            _dot(residual, residual),
            _dot(m - b, change),
            _dot(bounds.half, bounds.half / 3),
            _dot(stored_slopes, slopes) / (2 * STEP),
        ]
        if not all(map(math.isfinite, products)):  # NaN is beyond no bound
            finite = False
            break
        for sums, product in zip(energies, products, strict=True):
            sums.append(product)
        target_stored = target.to(stored).double()
        visible += int((target_stored != b_stored).sum())
        moved += int((m != b_stored).sum())
        replays: dict[tuple[Order, torch.dtype], Rest] = {}
        for (code, is_rounded), rest in rests.items():
            dtype = dtypes[is_rounded]
            order = update.as_merged(ORDERS[code]).of_model(dtype)
            if (order, dtype) not in replays:
                replay = replayed(b.to(dtype), update, rows, order, upright=upright)
                away = m - replay.to(stored).double()
                replays[order, dtype] = _rest(away, slopes)
            rest.add(replays[order, dtype])
    of_update, of_residual, inner, rounding, slope = map(math.fsum, energies)
    fit = MergeFit(
        entries=entries,
        beyond=min(beyond.values()),
        update=of_update,
        residual=of_residual,
        inner=inner,
        rounding=rounding,
        visible=visible,
        moved=moved,
        finite=finite,
        rests=rests,
        slope=slope,
    )
    if fit.beyond and finite and upright:
        return _with_quantised(base, merged, update, fit, grid)
    return fit


def _model_dtype(grid: FloatFormat) -> torch.dtype:
    """The dtype in which a program holds a model of a format: nothing computes in 8 bits."""
    if grid.bits > 8:
        return torch_dtype(grid)
    return torch.float32


def _dot(first: Tensor, second: Tensor) -> float:
    """The inner product of two tensors of one shape."""
    product = torch.dot(first.reshape(-1), second.reshape(-1))
    return float(product)


def _rest(away: Tensor, slopes: Tensor) -> Rest:
    """Sum over the entries that differ from a replay; NaN differs."""
    differ = int(torch.count_nonzero(away))
    if not differ:
        return Rest()
    products = away * slopes
    return Rest(
        entries=differ,
        along=float(products.sum()),
        squares=_dot(products, products),
    )


def replayed(base: Tensor, update: Update, rows: slice, order: Order, *, upright: bool) -> Tensor:
    """Some rows of a merge as a program computes it: the same operations of torch in the
    same dtypes.

    base: these rows (rows, cols), in the dtype of the model, which the result has too. update: of
    the whole matrix. order: the steps of the program. upright: as in `merge_fit`.
    """
    dtype = base.dtype
    if update.exact is not None and update.rounded is not None:
        change = update.rounded
        if order.products == torch.float64:
            change = update.exact
        total = base.double() + change[rows]
        return total.to(dtype)
    first = max(0, min(rows.start, rows.stop - PANEL))
    last = max(rows.stop, first + PANEL)
    within = slice(rows.start - first, rows.stop - first)
    left = update.left[first:last]
    right = update.right
    if order.rounds_factors:
        left = left.to(dtype)
        right = right.to(dtype)
    left = left.to(order.products)
    right = right.to(order.products)
    if order.scaled == "left":
        left = left * update.scale
        if order.rounds_product:
            left = left.to(dtype).to(order.products)
    if order.scaled == "sum" and update.is_cast:
        product = (left @ right)[within]
        wide = base.to(order.products)
        total = torch.add(wide, product, alpha=update.scale)
    elif order.scaled == "sum":
        padded = torch.zeros(len(left), base.shape[1], dtype=order.products)
        padded[within] = base.to(order.products)
        total = torch.addmm(padded, left, right, alpha=update.scale)
        total = total[within]
    else:
        delta = (left @ right)[within]
        if order.rounds_product:
            delta = delta.to(dtype)
        if order.scaled == "product":
            delta = delta * update.scale
        if order.rounds_update:
            delta = delta.to(dtype)
        total = base + delta
    if update.magnitude is not None:
        magnitude = update.magnitude[rows].to(total.dtype)
        total = _with_norms(total, magnitude, upright=upright)
    return total.to(dtype)


def _with_norms(total: Tensor, magnitude: Tensor, *, upright: bool) -> Tensor:
    """Rows of a merge (rows, cols), scaled to norms (rows,) as DoRA does."""
    in_order = total
    if not upright:  # sums follow the order of numbers in memory
        in_order = total.T.contiguous().T
    norms = torch.linalg.norm(in_order, dim=1)
    factors = magnitude / norms
    scaled: Tensor = total * factors[:, None]
    return scaled


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
        """The number of entries that are further away than a merge in 16 bits or more can be.

        b: the base. target and growth: of `_target`. away: |merged - target|. All (rows, cols),
        but growth, which may be (rows, 1) or a number.
        """
        half_of_target = half_ulp(target, self.grid)
        bound = torch.maximum(self.half, half_of_target)
        is_far = away > bound
        if not is_far.any():
            return 0
        sizes = self.left.abs() @ self.right.abs()
        sizes.mul_(abs(self.update.scale))
        # each product and each sum of float32 is right to half a unit
        rank = self.right.shape[0]
        unit = 2.0**-24
        rounded = sizes * (rank + 4)
        rounded += 4 * (b.abs() + self.delta.abs())
        bound += rounded * growth * unit
        has_norms = self.update.magnitude is not None
        if has_norms:
            units_of_norm = 2 * math.sqrt(b.shape[1]) + 8
            bound += target.abs() * (units_of_norm * unit)
        is_far = away > bound
        far = int(is_far.sum())
        if not far or self.grid.bits != 16:  # nothing computes in 8 bits
            return far
        bound += self._of_narrow(sizes) * growth
        if has_norms:
            narrow_unit = 2.0 ** -(self.grid.mantissa_bits + 1)
            bound += target.abs() * (4 * narrow_unit)
        is_far = away > bound
        return int(is_far.sum())

    def _of_narrow(self, sizes: Tensor) -> Tensor:
        """The most that rounding to a stored format moves an update: the factors if they
        have more bits, their product, and the scaled product. The following sum does not count.
        """
        scale = abs(self.update.scale)
        grid = self.grid
        reach = self.delta.abs() * (1 + 2.0**-6)  # a rounded number may lie in the binade above
        moved = half_ulp(reach, grid)
        if scale:
            moved += half_ulp(reach / scale, grid) * scale
        if float_format(self.update.stored).bits > grid.bits:
            moved += 2.0**-grid.mantissa_bits * sizes
            smallest = 2.0 ** (grid.min_exponent - grid.mantissa_bits - 1)
            sums_of_rows = self.left.abs().sum(1, keepdim=True)
            sums_of_columns = self.right.abs().sum(0)
            moved += smallest * scale * (sums_of_rows + sums_of_columns)
        return moved


def _target(
    b: Tensor, delta: Tensor, scale: float, update: Update, rows: slice
) -> tuple[Tensor, Tensor | float]:
    """Base plus that much of the update, and the factor of its entries afterwards."""
    target = torch.add(b, delta, alpha=scale)
    if update.magnitude is None:
        return target, 1.0
    norms = torch.linalg.vector_norm(target, dim=1)
    ratios = update.magnitude[rows].double() / norms
    ratios = torch.where(norms > 0, ratios, 1.0)
    growth = ratios[:, None]
    return target * growth, growth.abs()


def _blocks(base: Matrix, merged: Matrix) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of whole rows: their indices, and base and merged in float64, (rows, cols)."""
    cols = merged.shape[-1]
    for index, (start, _) in tiles(merged, ROWS, cols):
        m = _rows(merged[index])
        b = _rows(base[index])
        rows = slice(start, start + len(m))
        yield rows, b, m


def _rows(part: Tensor) -> Tensor:
    """A part of a matrix in float64, (rows, cols), contiguous."""
    wide = part.double().contiguous()
    return wide.view(-1, part.shape[-1])


def _with_quantised(
    base: Matrix, merged: Matrix, update: Update, fit: MergeFit, grid: FloatFormat
) -> MergeFit:
    """The fit with the quantised copy of the base closest to the merged matrix.

    A copy is dequantised to the stored format of the merged matrix.
    """
    energies: dict[str, list[float]] = {name: [] for name in QUANTISED}
    for rows, b, m in _blocks(base, merged):
        delta = update.delta(rows)
        for name in QUANTISED:
            copy = quantised(b, name)
            if copy is None:
                energies.pop(name, None)
            elif name in energies:
                copy = copy.to(torch_dtype(grid)).double()
                target, _ = _target(copy, delta, 1.0, update, rows)
                residual = m - target
                energy = residual.square().sum()
                energies[name].append(float(energy))
    residuals = {name: math.fsum(of_name) for name, of_name in energies.items()}
    if not residuals:
        return fit
    best = min(residuals, key=residuals.__getitem__)
    return replace(fit, quantised=(best, residuals[best]))


def quantised(matrix: Tensor, name: str) -> Tensor | None:
    """A (rows, cols) matrix after a round trip through bitsandbytes' 4-bit or 8-bit format;
    None if rows are not a whole number of blocks.

    matrix: float64, as the result. name: of QUANTISED. NF4 and FP4: 64 entries in a row share
    their largest absolute value; INT8: a row does.
    """
    if name == "INT8":
        scale = matrix.abs().amax(1, keepdim=True) / 127
        integers = torch.round(matrix / scale)
        return integers.nan_to_num_() * scale
    if matrix.shape[1] % BLOCK:
        return None
    levels = torch.tensor(LEVELS[name], dtype=torch.float64)
    neighbours = levels[1:] + levels[:-1]
    middles = neighbours / 2
    blocks = matrix.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    relative = (blocks / scale).nan_to_num_()
    codes = torch.bucketize(relative, middles)
    values = levels[codes] * scale
    return values.reshape(matrix.shape)
