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
# nodes >= 0, descending, and by column of the frame their weights (nodes, WIDTH)
Rule = tuple[Array, Array]
# G_i V_i of several matrices at once, float64 (m, WIDTH), from float32 (m, WIDTH)
Products = Callable[[Sequence[NDArray[np.float32]]], Sequence[Array]]


def frame(key: str, side: int) -> Array:
    """Orthonormal columns (side, WIDTH), uniformly distributed, the same for equal keys."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    gaussian = np.random.Generator(np.random.Philox(key=seed)).standard_normal((side, WIDTH))
    return _orthonormal(gaussian)


def _orthonormal(columns: Array) -> Array:
    q, r = np.linalg.qr(columns)
    return np.asarray(q * np.where(np.diagonal(r) < 0, -1.0, 1.0))


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
    q = image
    for _ in range(3):  # again, as of a matrix of low rank the rest is rounding
        q = _orthonormal(q - known @ (known.T @ q))
    return q


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
        residuals = np.linalg.norm(self.step[len(self.values) :] @ self.vectors, axis=0)
        floor = FLOOR * float(self.values[0])
        missed = (residuals > CONVERGED * self.values) | (self.values < floor)
        missed[-1] = True  # a rule needs a node
        return int(np.argmax(missed))

    @cached_property
    def rules(self) -> tuple[Rule, Rule]:
        """The rules of Gauss and of Gauss-Radau, which has WIDTH nodes at 0."""
        outer, k = self.step.shape
        values = self.values
        vectors = self.vectors
        last = self.step[k:]
        image = last @ vectors
        extended = np.zeros((outer, outer))
        extended[:, :k], extended[:k, k:] = self.step, last.T
        extended[k:, k:] = (image / np.maximum(values, FLOOR * values[0])) @ image.T
        nodes, sides = np.linalg.eigh(extended)
        nodes = np.where(nodes < FLOOR * nodes[-1], 0.0, nodes)[::-1]
        gauss = np.where(values < FLOOR * values[0], 0.0, values), vectors[: outer - k].T ** 2
        return gauss, (nodes, sides[: outer - k, ::-1].T ** 2)

    @property
    def left(self) -> float:
        """tr G without the known eigenvalues."""
        return self.energy - float(self.values[: self.known].sum())

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
        width = len(self.step) - len(self.values)
        weights = (self.vectors[:width] ** 2).mean(axis=0) * self.side
        count = min(BOUNDED, len(values))
        limit = self.energy
        bounds = np.empty(count)
        for j in range(count):
            top = float(values[j])
            if top <= FLOOR * float(values[0]):
                bounds[j:] = limit
                break
            length = math.sqrt(width) - RARE - math.sqrt(j - min(j, self.known))
            beyond = _beyond(values, weights, top, length**2) if length > 0 else math.inf
            limit = min(limit, beyond, self.energy)
            limit = max(limit, top + ROUNDING * float(values[0]))
            bounds[j] = limit
        return bounds


def _beyond(values: Array, weights: Array, top: float, along: float) -> float:
    """The least eigenvalue above top, a Ritz value, that polynomials would have shown."""
    below = values < top
    mass = UNEVEN * weights[below] * (1.0 - values[below] / top)
    nodes = chebvander(2.0 * values[below] / top - 1.0, PASSES - 1)
    root = np.linalg.qr(np.sqrt(mass)[:, None] * nodes)[1]
    with np.errstate(all="ignore"):
        try:
            solved = np.linalg.solve(root.T, TRIED)
        except np.linalg.LinAlgError:
            return top
        seen = along * EXCESS * (solved**2).sum(axis=0)
    passed = ~(seen <= 1.0)
    if passed.any():
        return top * (1.0 + float(EXCESS[np.argmax(passed)]))
    return math.inf


def krylov_spaces(products: Products, start: Array, energies: Sequence[float]) -> list[Krylov]:
    """The spaces of several matrices of one shape, whose products share each pass.

    start: (m, WIDTH), from `frame`; energies: their tr G.
    """
    bases = [[start] for _ in energies]
    images: list[list[Array]] = [[] for _ in energies]
    for _ in range(PASSES):
        products_of_pass = products([basis[-1].astype(np.float32) for basis in bases])
        for basis, images_of_space, image in zip(bases, images, products_of_pass, strict=True):
            images_of_space.append(image)
            basis.append(_next(np.hstack(basis), image))
    spaces = []
    for energy, basis, images_of_space in zip(energies, bases, images, strict=True):
        known = np.hstack(basis[:-1])
        inner = known.T @ np.hstack(images_of_space)
        last = basis[-1].T @ images_of_space[-1]
        outer = np.zeros((len(last), inner.shape[1]))
        outer[:, -len(last) :] = last
        inner = (inner + inner.T) / 2.0
        values, vectors = np.linalg.eigh(inner)
        values = np.maximum(values[::-1], 0.0)
        vectors = vectors[:, ::-1]
        spaces.append(Krylov(len(known), energy, np.vstack([inner, outer]), values, vectors))
    return spaces


def square_trace(space: Krylov) -> Estimate:
    """tr G², by the columns of the frame in turn, FOLD at a time, against the space of the
    others.

    With Q the space of the others and P what it leaves, tr G² = 2 ||G Q||² - ||Qᵀ G Q||² + tr (P G
    P)², and the last term is estimated by a column: (m - dim Q) ||P G z||² / ||z||², z the rest of
    the column. tr P G P, known exactly, is the control variate.
    """
    outer, k = space.step.shape
    width = outer - k
    eye = np.eye(outer)
    turns = np.arange(width).reshape(-1, FOLD)
    spans = [np.stack([np.delete(eye[:, :width], turn, axis=1) for turn in turns])]
    for _ in range(k // width - 1):
        before = np.concatenate(spans, axis=2)
        q, r = _beside(before, space.step @ spans[-1][:, :k])
        # what is rounding is no direction: it may be that of the probe
        new = np.abs(np.diagonal(r, axis1=1, axis2=2)) > NOTHING * space.values[0]
        spans.append(_beside(before, q)[0] * new[:, None])
    span = np.concatenate(spans, axis=2)
    across = span.transpose(0, 2, 1)
    images = space.step @ span[:, :k]
    inside = across @ images
    deflated = 2.0 * (images**2).sum(axis=(1, 2)) - (inside**2).sum(axis=(1, 2))
    probes = eye[turns].transpose(0, 2, 1)
    rest = probes - span @ (across @ probes)
    image = space.step @ rest[:, :k]
    left = image - span @ (across @ image)
    directions = (span**2).sum(axis=(1, 2))  # how many directions the space of the others has
    many = (space.side - directions)[:, None] / (rest**2).sum(axis=1)
    samples = (deflated[:, None] + many * (left**2).sum(axis=1)).ravel()
    known = space.energy - np.trace(inside, axis1=1, axis2=2)
    control = (many * (rest * image).sum(axis=1) - known[:, None]).ravel()
    # x² grows with x by up to twice the largest value; what is steeper is rounding against rounding
    spread = control - control.mean()
    squares = float(spread @ spread)
    slope = float(spread @ samples) / squares if squares > 0 else 0.0
    slope = min(max(0.0, slope), 2.0 * float(space.values[0]))
    mean, scatter = _mean(samples - slope * control, width - 2)
    return Estimate(mean, SHARED * SIGMAS * scatter + ROUNDING * mean)


def _beside(basis: Array, columns: Array) -> tuple[Array, Array]:
    """The QR of the part of columns outside an orthonormal basis; both are stacks."""
    q, r = np.linalg.qr(columns - basis @ (basis.transpose(0, 2, 1) @ columns))
    return q, r


def _mean(samples: Array, freedom: int) -> tuple[float, float]:
    """The mean, and its standard error with that many degrees of freedom."""
    mean = float(samples.mean())
    return mean, math.sqrt(float(((samples - mean) ** 2).sum()) / freedom / len(samples))


def _trace(space: Krylov, which: int, f: Callable[[Array], Array]) -> tuple[float, Array]:
    """tr f(G) by a rule, 0 or 1, and what each column of the frame adds to its error,
    (WIDTH,).
    """
    known = space.known
    leading = float(f(space.values[:known]).sum())
    nodes, weights = (of[known:] for of in space.rules[which])
    many = space.side - known
    mass = weights.mean(axis=1)
    total = float(mass.sum())
    lengths = weights.sum(axis=0)
    at = f(nodes)
    sums = at @ weights
    firsts = nodes @ weights
    mean = float(mass @ at) / total
    first = float(mass @ nodes) / total
    spread = float(mass @ (nodes - first) ** 2)
    slope = float(mass @ ((nodes - first) * (at - mean))) / spread if spread > 0 else 0.0
    value = leading + many * (mean - slope * (first - space.left / many))
    residues = many / total * (sums - mean * lengths - slope * (firsts - first * lengths))
    return value, residues


@dataclass(frozen=True)
class Entropy:
    """An entropy by two rules, with its scatter, so that two can be compared."""

    rules: Array  # by Gauss and by Gauss-Radau, (2,)
    residues: Array  # by column of the frame, (WIDTH,)

    @property
    def log(self) -> Estimate:
        """The entropy, midway between the rules; its error is their distance and the scatter."""
        low, high = sorted(self.rules.tolist())
        _, scatter = _mean(self.residues, len(self.residues) - 1)
        return Estimate((low + high) / 2.0, (high - low) / 2.0 + SIGMAS * scatter)

    @property
    def exp(self) -> Estimate:
        """exp of the entropy, with the larger of both distances."""
        value = math.exp(self.log.value)
        return Estimate(value, value * math.expm1(self.log.error))


def effective_rank(space: Krylov) -> Entropy | None:
    """H of p = sigma / sum sigma, whose exp is the effective rank, by quadrature of tr G^½
    and tr G^½ ln G^½.

    None where it cannot be known: where more than half of the eigenvalues that are not known are
    below HIDDEN, where float32 products leave only rounding; where an eigenvalue is found
    WIDTH times, as a block finds no more copies; or where it is above that of any matrix of the
    shape. By the first rule alone, 4 of 727 planted spectra lay further off than their error.
    """
    nodes, weights = (of[space.known :] for of in space.rules[0])
    mass = weights.mean(axis=1)
    if mass[nodes < HIDDEN * space.values[0]].sum() > mass.sum() / 2.0:
        return None
    known = space.values[: space.known]
    more = WIDTH - 1
    if (known[more:] > (1.0 - CONVERGED) * known[: max(0, len(known) - more)]).any():
        return None
    unit = space.energy / space.side
    rules = []
    residues = []
    for which in (0, 1):
        total, first = _trace(space, which, lambda x: np.sqrt(x / unit))
        weighted, second = _trace(
            space, which, lambda x: 0.5 * np.sqrt(x / unit) * np.log(np.where(x > 0, x / unit, 1.0))
        )
        rules.append(math.log(total) - weighted / total)
        residues.append((first * (1.0 + weighted / total) - second) / total)
    if max(rules) > math.log(space.side) + CONVERGED:
        return None
    return Entropy(np.array(rules), residues[0])
