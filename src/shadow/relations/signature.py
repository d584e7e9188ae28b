"""Signatures of matrices, each made of their entries or of a sample of them, and what two show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.checkpoints.stored_tensors import StoredTensor
from shadow.spectra.lazy import Matrix
from shadow.spectra.spectrum import Index, Workspace, read_block, shape_of, tiles
from shadow.spectra.sums import largest_entry

SUMS = 1024  # of a sketch: the standard error of a cosine is .03 where no entry dominates
WIDTH = 64  # sums of a row
FEW = 4  # of each of very many rows
AT_ONCE = 1 << 18  # entries of rows
MOST = 1 << 41  # products of all rows with all rows: beyond, rows are not compared by likeness
EQUAL = 2.0  # stands for the cosine of matrices with equal digests
MIX = 0x9E3779B97F4A7C15  # by which the digest of the tiles before is multiplied
TILE = 1 << 14  # entries that are read together
WHOLE = 1 << 18  # entries of a matrix of which all are read
STEP = 17  # of larger ones a tile in so many: prime, so that all columns get their turn

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Block = NDArray[np.float32]


@dataclass(frozen=True)
class Signature:
    """A digest and a count sketch of a matrix, neither of which depends on how it is stored. Both
    are of a sample of a large one.

    The digest is of values as F32, so that a cast that loses nothing leaves it unchanged. Equal
    digests propose that matrices are equal; measuring them decides.
    """

    digest: int
    sketch: Block
    """(SUMS,): signed sums of entries, of length 1; 0 of a matrix of zeros, or not finite."""
    is_zero: bool = False


@dataclass(frozen=True)
class RowSignatures:
    """A digest and some sums of every row of a vocabulary."""

    digests: Words
    sums: Block
    """(rows, WIDTH at most): products with random signs; the rows where they are that short. FEW of
    more rows than are compared by likeness.
    """


def signature_of(matrix: Matrix, space: Workspace) -> Signature:
    """Make the signature of a matrix.

    The sum that an entry goes to, and its sign, are random, and the sums move on by one with every
    tile: entries of one column do not meet, so that a column of outliers is spread over all sums.
    """
    digest = 0
    sums = np.zeros(SUMS)
    places = space.once("places", _places)
    step = 1
    if matrix.numel() > WHOLE:
        step = STEP
        if isinstance(matrix, StoredTensor) and matrix.is_flat:
            matrix = matrix.in_parts()
    sampled = islice(tiles(matrix, TILE), 0, None, step)
    for index, _ in sampled:
        entries = _read(matrix, index, space).ravel()
        count = len(entries)
        product = np.vecdot(_words(entries), places.factors[:count])
        digest *= MIX
        digest += int(product)
        digest %= 2**64
        signed = entries * places.signs[:count]
        sums = np.roll(sums, 1)
        sums += np.bincount(places.sums[:count], signed, SUMS)
    (sketch,) = directions(sums[None])
    is_zero = not sums.any() and not largest_entry(matrix, torch.float32, space)
    return Signature(digest, sketch, is_zero)


def row_signatures_of(matrix: Matrix, space: Workspace) -> RowSignatures:
    """Make the signatures of all rows of a matrix in one pass."""
    rows, cols = shape_of(matrix)
    factors = _factors(cols)
    signs = np.eye(cols, dtype=np.float32)
    if cols > WIDTH:
        random = np.random.default_rng(0)
        shape = cols, WIDTH
        drawn = random.choice((-1, 1), shape)
        signs = drawn.astype(np.float32)
    _, width = signs.shape
    products = rows**2 * width
    if products > MOST:
        signs = signs[:, :FEW]
    digests = []
    sums = []
    step = max(1, AT_ONCE // cols)
    for row in range(0, rows, step):
        lines = slice(row, row + step)
        block = _read(matrix, (lines,), space)
        digests.append(np.vecdot(_words(block), factors))
        sums.append(block @ signs)
    all_sums = np.concatenate(sums)
    return RowSignatures(np.concatenate(digests), all_sums)


@dataclass(frozen=True)
class _Places:
    """Random numbers for each place of a tile."""

    factors: Words
    sums: NDArray[np.intp]
    signs: Block


def _places() -> _Places:
    random = np.random.default_rng(0)
    sums = random.integers(SUMS, size=TILE)
    signs = random.choice((-1, 1), TILE)
    return _Places(_factors(TILE), sums, signs.astype(np.float32))


def _factors(count: int) -> Words:
    """Random odd numbers of 64 bits, by which digests multiply values."""
    random = np.random.default_rng(1)
    factors = random.integers(2**64, size=count, dtype=np.uint64)
    return factors | np.uint64(1)


def _words(block: Block) -> Words:
    """The bits of values as whole numbers whose lower bits differ too, as they do not in BF16."""
    bits = block.view(np.uint32)
    mixed = bits ^ (bits >> np.uint32(16))
    return mixed.astype(np.uint64)


def _read(matrix: Matrix, index: Index, space: Workspace) -> Block:
    entries = read_block(matrix, index, "tuned", torch.float32, space)
    return entries.numpy()


def directions(rows: Floats | Block) -> Block:
    """Scale rows to length 1; those that are 0 or not finite become 0."""
    sizes = np.abs(rows)
    largest = sizes.max(axis=1, keepdims=True)
    is_sound = np.isfinite(largest)
    is_sound &= largest > 0
    sound = np.where(is_sound, rows, 0.0)
    scale = np.where(is_sound, largest, 1.0)
    scaled = sound / scale
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    lengths = np.maximum(lengths, 1.0)
    scaled = scaled / lengths
    units: Block = scaled.astype(np.float32)
    return units


def cosines(first: Sequence[Signature], second: Sequence[Signature]) -> Floats:
    """The cosine of each matrix of one side (rows) with each of the other (columns); EQUAL where
    digests are equal.
    """
    sketches = _sketches(first)
    others = _sketches(second)
    products = sketches @ others.T
    found: Floats = products.astype(np.float64)
    is_equal = np.equal.outer(_digests(first), _digests(second))
    is_equal &= found > 0
    found[is_equal] = EQUAL
    return found


def _sketches(signatures: Sequence[Signature]) -> Block:
    sketches = [signature.sketch for signature in signatures]
    return np.array(sketches)


def _digests(signatures: Sequence[Signature]) -> Words:
    digests = [signature.digest for signature in signatures]
    return np.array(digests, np.uint64)
