"""Estimates of singular values from a few products with a matrix, each with its error.

G = W Wᵀ or Wᵀ W on the short side m is never formed. A block Krylov space K of PASSES blocks of
WIDTH vectors, begun at a random frame (orthonormal columns, uniformly distributed), takes one pass
over the matrix a block, and gives

- Ritz values, which are at most the eigenvalues (Golub & Van Loan, section 10.3), and for each
  eigenvalue a bound from above that fails with a probability of about 0.001 (`Krylov.bounds`);
- tr G²: each column of the frame in turn is a probe of what the space of the others leaves, so
  that the estimate is unbiased and the columns' scatter is its error (XTrace: Epperly, Tropp &
  Webber 2024), with tr G, which is known from the entries, as control variate;
- traces of other functions by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017): the Gauss
  rule and the Gauss-Radau rule with a node at 0 lie on either side of the trace of a root.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from shadow.spectra.measurement import SIGMAS, Estimate

WIDTH = 24  # vectors of a block
FOLD = 3  # columns of the frame that are left out at a time
PASSES = 4  # blocks, each a pass over the matrix
SHARED = 2.0  # probes that share a space scatter less than their mean, by 0.7 to 1.5; with room
CONVERGED = 1e-3  # residual of a Ritz vector over its value, up to which it is an eigenvector
FLOOR = 1e-6  # of the largest eigenvalue: what float32 products leave of smaller ones is rounding
HIDDEN = 1e-5  # of the largest eigenvalue: no effective rank is known with half of the rest below
NOTHING = 1e-5  # of the largest eigenvalue: a part of a vector that float32 products may have left
ROUNDING = 1e-6  # relative, of sums of float32 products
RARE = 3.1  # standard deviations of an event of probability 0.001
UNEVEN = 1.5  # how far one random vector may lie above the mean of all in a sum over the rest
# relative distances above a Ritz value at which a bound is tried, and the polynomials there
EXCESS = np.geomspace(1e-9, 1e3, 400)
TRIED = chebvander(2.0 * (1.0 + EXCESS) - 1.0, PASSES - 1).T
BOUNDED = 64  # eigenvalues that are bounded from above

Array = NDArray[np.float64]
# G_i V_i of several matrices at once, float64 (m, WIDTH), from float32 (m, WIDTH)
Products = Callable[[Sequence[NDArray[np.float32]]], Sequence[Array]]


def frame(key: str, side: int) -> Array:
    """Orthonormal columns (side, WIDTH), uniformly distributed, the same for an equal key."""
    digest = hashlib.sha256(key.encode()).digest()
    seed = int.from_bytes(digest[:16], "little")
    bits = np.random.Philox(key=seed)
    generator = np.random.Generator(bits)
    columns = generator.standard_normal((side, WIDTH))
    return _orthonormal(columns)


def _orthonormal(columns: Array) -> Array:
    """Q of the QR decomposition of columns (m, n) whose R has a diagonal of numbers >= 0."""
    q, r = np.linalg.qr(columns)
    diagonal = np.diagonal(r)
    signs = np.where(diagonal < 0, -1.0, 1.0)
    return np.asarray(q * signs)


def _next(known: Array, image: Array) -> Array:
    """Orthonormal columns that, with the known ones, also span the image."""
    q = image
    for _ in range(2):  # by Cholesky, twice, as good as by Householder
        q = q - known @ (known.T @ q)
        try:
            root = np.linalg.cholesky(q.T @ q)
        except np.linalg.LinAlgError:
            break
        q = q @ np.linalg.inv(root).T
    else:
        return q
    # again, as of a matrix of low rank the rest is rounding
    q = image
    for _ in range(3):
        q = _orthonormal(q - known @ (known.T @ q))
    return q


@dataclass(frozen=True)
class Quadrature:
    """A rule for traces of functions of G."""

    nodes: Array  # (n,), >= 0, descending
    weights: Array  # (n, WIDTH), by column of the frame

    def after(self, known: int) -> Quadrature:
        """The rule without its leading nodes, those of eigenvalues that are known."""
        return Quadrature(self.nodes[known:], self.weights[known:])


@dataclass(frozen=True)
class Krylov:
    """A block Krylov space of G, (m, m), by the action of G on it: G K = [K, next] step."""

    side: int  # m
    energy: float  # tr G, known from the entries
    step: Array  # (k + WIDTH, k)
    values: Array  # (k,), Ritz values, descending and >= 0: each at most the eigenvalue of its rank
    vectors: Array  # (k, k), theirs as columns in coordinates of K

    @cached_property
    def known(self) -> int:
        """Say how many of the leading Ritz vectors v are eigenvectors: ||G v - value v|| is at
        most CONVERGED of the value.
        """
        values = self.values
        last = self.step[len(values) :]
        off = last @ self.vectors
        residuals = np.linalg.norm(off, axis=0)
        missed = residuals > CONVERGED * values
        missed |= values < FLOOR * float(values[0])
        missed[-1] = True  # a rule needs a node
        return int(np.argmax(missed))

    @cached_property
    def rules(self) -> tuple[Quadrature, Quadrature]:
        """The rules of Gauss and of Gauss-Radau, which has WIDTH nodes at 0."""
        outer, k = self.step.shape
        values = self.values
        floor = FLOOR * values[0]
        gauss = Quadrature(
            nodes=np.where(values < floor, 0.0, values),
            weights=self.vectors[:WIDTH].T ** 2,
        )
        last = self.step[k:]
        image = last @ self.vectors
        positive = np.maximum(values, floor)
        scaled = image / positive
        extended = np.zeros((outer, outer))
        extended[:, :k] = self.step
        extended[:k, k:] = last.T
        extended[k:, k:] = scaled @ image.T
        nodes, vectors = np.linalg.eigh(extended)
        nodes = np.where(nodes < FLOOR * nodes[-1], 0.0, nodes)
        gauss_radau = Quadrature(
            nodes=nodes[::-1],
            weights=vectors[:WIDTH, ::-1].T ** 2,
        )
        return gauss, gauss_radau

    @property
    def left(self) -> float:
        """tr G without the known eigenvalues."""
        known = self.values[: self.known]
        return self.energy - float(known.sum())

    @cached_property
    def bounds(self) -> Array:
        """Upper bounds of the leading eigenvalues, each exceeded with a probability of about 0.001.

        If an eigenvalue were x > t, the j-th Ritz value, then among the polynomials p(G) of the
        frame one would have shown it: a combination of the frame's columns has a part of squared
        length c or more along its eigenvector, and a random rest, so that t could only be so low if
        c (x - t) p(x)² <= the sum over the rest of (t - y) p(y)² for each p of degree < PASSES. The
        sum is known by quadrature, and the best p gives 1 over the Christoffel function. c is
        sqrt(WIDTH) - sqrt(i) - 3.1 squared, i the eigenvalues up to the j-th that are not known
        already.
        """
        values = self.values
        largest = float(values[0])
        shares = self.vectors[:WIDTH] ** 2
        weights = shares.mean(axis=0) * self.side
        limit = self.energy
        bounds = np.empty(min(BOUNDED, len(values)))
        for j in range(len(bounds)):
            top = float(values[j])
            if top <= FLOOR * largest:
                bounds[j:] = limit
                break
            unknown = j - min(j, self.known)
            length = math.sqrt(WIDTH) - RARE - math.sqrt(unknown)
            limit = min(limit, self.energy)
            if length > 0:
                beyond = _beyond(values, weights, top, length**2)
                limit = min(limit, beyond)
            limit = max(limit, top + ROUNDING * largest)
            bounds[j] = limit
        return bounds


def _beyond(values: Array, weights: Array, top: float, along: float) -> float:
    """The least eigenvalue above top, a Ritz value, that polynomials would have shown.

    values and weights: (k,), the Gauss rule of tr G. along: c of `Krylov.bounds`.
    """
    below = values < top
    rest = values[below]
    mass = UNEVEN * weights[below]
    mass = mass * (1.0 - rest / top)
    polynomials = chebvander(2.0 * rest / top - 1.0, PASSES - 1)
    roots = np.sqrt(mass)
    weighted = roots[:, None] * polynomials
    _, root = np.linalg.qr(weighted)
    with np.errstate(all="ignore"):
        try:
            solved = np.linalg.solve(root.T, TRIED)
        except np.linalg.LinAlgError:
            return top
        inverse_christoffel = (solved**2).sum(axis=0)
        ratios = along * EXCESS * inverse_christoffel
    passed = ~(ratios <= 1.0)
    if not passed.any():
        return math.inf
    excess = float(EXCESS[np.argmax(passed)])
    return top * (1.0 + excess)


def krylov_spaces(products: Products, start: Array, energies: Sequence[float]) -> list[Krylov]:
    """The spaces of several matrices of one shape, whose products share each pass.

    products: multiplies all of them in one pass. start: (m, WIDTH), from `frame`. energies: their
    tr G.
    """
    bases = [[start] for _ in energies]
    images: list[list[Array]] = [[] for _ in energies]
    for _ in range(PASSES):
        blocks = [basis[-1].astype(np.float32) for basis in bases]
        products_of_pass = products(blocks)
        for basis, images_of_space, image in zip(bases, images, products_of_pass, strict=True):
            images_of_space.append(image)
            known = np.hstack(basis)
            basis.append(_next(known, image))
    return list(map(_space, energies, bases, images))


def _space(energy: float, basis: Sequence[Array], images: Sequence[Array]) -> Krylov:
    """The space of a basis with the images of all its blocks but the last."""
    known = np.hstack(basis[:-1])
    all_images = np.hstack(images)
    inner = known.T @ all_images
    last = basis[-1].T @ images[-1]
    outer = np.zeros((WIDTH, inner.shape[1]))
    outer[:, -WIDTH:] = last
    inner = (inner + inner.T) / 2.0
    values, vectors = np.linalg.eigh(inner)
    descending = values[::-1]
    return Krylov(
        side=len(known),
        energy=energy,
        step=np.vstack([inner, outer]),
        values=np.maximum(descending, 0.0),
        vectors=vectors[:, ::-1],
    )


def square_trace(space: Krylov) -> Estimate:
    """tr G² of the G of a space, by the columns of the frame in turn, FOLD at a time, against the
    space of the others.

    With Q the space of the others and P what it leaves, tr G² = 2 ||G Q||² - ||Qᵀ G Q||² + tr (P G
    P)², and the last term is estimated by a column: (m - dim Q) ||P G z||² / ||z||², z the rest of
    the column. tr P G P, known exactly, is the control variate.
    """
    outer, k = space.step.shape
    columns = np.arange(WIDTH)
    turns = columns.reshape(-1, FOLD)
    span = _spans(space, turns)
    images = space.step @ span[:, :k]
    inside = span.transpose(0, 2, 1) @ images
    deflated = 2.0 * _energies(images)
    deflated -= _energies(inside)
    probes = np.eye(outer)[turns]
    probes = probes.transpose(0, 2, 1)
    rest = _outside(span, probes)
    image = space.step @ rest[:, :k]
    left = _outside(span, image)
    directions = _energies(span)  # of the space of the others: it is orthonormal
    unknown = space.side - directions
    lengths = (rest**2).sum(axis=1)
    weights = unknown[:, None] / lengths
    energies = (left**2).sum(axis=1)
    samples = deflated[:, None] + weights * energies
    samples = samples.ravel()
    traces = (rest * image).sum(axis=1)
    known_traces = space.energy - np.trace(inside, axis1=1, axis2=2)
    control = weights * traces - known_traces[:, None]
    control = control.ravel()
    slope = _slope(samples, control)
    # x² grows with x by up to twice the largest value; what is steeper is rounding against rounding
    slope = min(slope, 2.0 * float(space.values[0]))
    controlled = samples - slope * control
    mean, scatter = _mean(controlled, WIDTH - 2)
    error = SHARED * SIGMAS * scatter + ROUNDING * mean
    return Estimate(mean, error)


def _slope(samples: Array, control: Array) -> float:
    """The slope of samples by a control variate, both (n,), by least squares; at least 0."""
    spread = control - control.mean()
    squares = float(spread @ spread)
    if squares > 0:
        return max(0.0, float(spread @ samples) / squares)
    return 0.0


def _spans(space: Krylov, turns: NDArray[np.intp]) -> Array:
    """For each turn a basis (turns, k + WIDTH, directions) of the space of the other columns."""
    outer, k = space.step.shape
    every = np.eye(outer)
    frame_columns = every[:, :WIDTH]
    others = []
    for turn in turns:
        others.append(np.delete(frame_columns, turn, axis=1))
    span = np.stack(others)
    newest = span
    for _ in range(PASSES - 1):
        image = space.step @ newest[:, :k]
        q, r = np.linalg.qr(_outside(span, image))
        # what is rounding is no direction: it may be that of the probe
        diagonals = np.diagonal(r, axis1=1, axis2=2)
        sizes = np.abs(diagonals)
        is_new = sizes > NOTHING * space.values[0]
        directions, _ = np.linalg.qr(_outside(span, q))
        newest = directions * is_new[:, None]
        span = np.concatenate([span, newest], axis=2)
    return span


def _outside(basis: Array, columns: Array) -> Array:
    """The part of columns (turns, m, n) outside an orthonormal basis (turns, m, directions)."""
    coordinates = basis.transpose(0, 2, 1) @ columns
    return columns - basis @ coordinates


def _energies(stack: Array) -> Array:
    """The squared Frobenius norms of the matrices of a stack (turns, m, n)."""
    return np.asarray((stack**2).sum(axis=(1, 2)))


def _mean(samples: Array, freedom: int) -> tuple[float, float]:
    """The mean, and its standard error with that many degrees of freedom."""
    mean = float(samples.mean())
    squares = (samples - mean) ** 2
    variance = float(squares.sum()) / freedom
    error = math.sqrt(variance / len(samples))
    return mean, error


def _trace(space: Krylov, rule: Quadrature, f: Callable[[Array], Array]) -> tuple[float, Array]:
    """tr f(G) by a rule, and what each column of the frame adds to its error, (WIDTH,)."""
    known = space.known
    leading = float(f(space.values[:known]).sum())
    unknown = space.side - known
    rest = rule.after(known)
    nodes = rest.nodes
    weights = rest.weights
    mass = weights.mean(axis=1)
    total = float(mass.sum())
    lengths = weights.sum(axis=0)
    values = f(nodes)
    mean = float(mass @ values) / total
    first = float(mass @ nodes) / total
    distances = nodes - first
    spread = float(mass @ distances**2)
    slope = 0.0
    if spread > 0:
        products = distances * (values - mean)
        slope = float(mass @ products) / spread
    of_unknown = mean - slope * (first - space.left / unknown)
    trace = leading + unknown * of_unknown
    control = nodes @ weights - first * lengths
    residues = values @ weights - mean * lengths
    residues = residues - slope * control
    return trace, unknown / total * residues


@dataclass(frozen=True)
class Entropy:
    """An entropy by two rules, with its scatter, so that two can be compared."""

    rules: Array  # by Gauss and by Gauss-Radau, (2,)
    residues: Array  # by column of the frame, (WIDTH,)

    @property
    def log(self) -> Estimate:
        """The entropy, midway between the rules; its error is their distance and the scatter."""
        low, high = sorted(self.rules.tolist())
        middle = (low + high) / 2.0
        freedom = len(self.residues) - 1
        _, scatter = _mean(self.residues, freedom)
        error = (high - low) / 2.0 + SIGMAS * scatter
        return Estimate(middle, error)

    @property
    def exp(self) -> Estimate:
        """exp of the entropy, with the larger of both distances."""
        log = self.log
        value = math.exp(log.value)
        error = value * math.expm1(log.error)
        return Estimate(value, error)


def effective_rank(space: Krylov) -> Entropy | None:
    """H of p = sigma / sum sigma of the matrix of a space, whose exp is the effective rank, by
    quadrature of tr G^½ and tr G^½ ln G^½.

    None where it cannot be known: where more than half of the eigenvalues that are not known are
    below HIDDEN, where float32 products leave only rounding; where an eigenvalue is found
    WIDTH times, as a block finds no more copies; or where it is above that of any matrix of the
    shape. By the first rule alone, 4 of 727 planted spectra lay further off than their error.
    """
    rest = space.rules[0].after(space.known)
    mass = rest.weights.mean(axis=1)
    hidden = mass[rest.nodes < HIDDEN * space.values[0]]
    if hidden.sum() > mass.sum() / 2.0:
        return None
    known = space.values[: space.known]
    later = known[WIDTH - 1 :]
    earlier = known[: len(later)]
    is_copy = later > (1.0 - CONVERGED) * earlier
    if is_copy.any():
        return None
    unit = space.energy / space.side

    def root(values: Array) -> Array:
        return np.sqrt(values / unit)

    def root_times_log(values: Array) -> Array:
        ratios = values / unit
        logs = np.log(np.where(values > 0, ratios, 1.0))
        return 0.5 * np.sqrt(ratios) * logs

    rules = []
    residues = []
    for rule in space.rules:
        total, first = _trace(space, rule, root)
        weighted, second = _trace(space, rule, root_times_log)
        mean = weighted / total
        rules.append(math.log(total) - mean)
        of_columns = first * (1.0 + mean) - second
        residues.append(of_columns / total)
    if max(rules) > math.log(space.side) + CONVERGED:
        return None
    return Entropy(np.array(rules), residues[0])
