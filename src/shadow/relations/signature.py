"""Signatures of matrices, each made in one pass over its entries, and what two of them show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.spectra.lazy import Matrix
from shadow.spectra.spectrum import Index, Workspace, read_block, shape_of, tiles

SUMS = 1024  # of a sketch: the standard error of a cosine is .03 where no entry dominates
WIDTH = 64  # sums of a row
FEW = 4  # of each of very many rows
AT_ONCE = 1 << 18  # entries of rows
MOST = 1 << 41  # products of all rows with all rows: beyond, rows are not compared by likeness
EQUAL = 2.0  # stands for the cosine of matrices with equal digests
MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Block = NDArray[np.float32]


@dataclass(frozen=True)
class Signature:
    """A digest and a count sketch of a matrix, neither of which depends on how it is stored.

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

    The sum that an entry goes to, and its sign, are a hash of its place: entries of one row or
    column do not meet, so that a column of outliers is spread over all sums.
    """
    digest = 0
    sums = np.zeros(SUMS)
    many = np.uint64(SUMS)
    _, cols = shape_of(matrix)
    for index, (row, col) in tiles(matrix):
        tile = _read(matrix, index, space)
        lines, width = tile.shape
        columns = _numbers(col, width)
        step = max(1, AT_ONCE // width)  # hashes take several times the memory of entries
        for first in range(0, lines, step):
            block = tile[first : first + step]
            rows = _numbers(row + first, len(block))
            starts = rows * np.uint64(cols)
            cells = starts[:, None] + columns
            places = _mixed(cells)
            hashes = _hashed(block, places)
            digest += int(hashes.sum())
            is_negative = places & many
            signed = np.where(is_negative, -block, block)
            bins = places % many
            numbers = bins.ravel().astype(np.intp)
            sums += np.bincount(numbers, signed.ravel(), SUMS)
    (sketch,) = directions(sums[None])
    digest %= 2**64
    is_zero = not sums.any()
    return Signature(digest, sketch, is_zero)


def row_signatures_of(matrix: Matrix, space: Workspace) -> RowSignatures:
    """Make the signatures of all rows of a matrix in one pass."""
    rows, cols = shape_of(matrix)
    columns = _numbers(0, cols)
    places = _mixed(columns)
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
        hashes = _hashed(block, places)
        digests.append(hashes.sum(axis=1))
        sums.append(block @ signs)
    all_sums = np.concatenate(sums)
    return RowSignatures(np.concatenate(digests), all_sums)


def _read(matrix: Matrix, index: Index, space: Workspace) -> Block:
    entries = read_block(matrix, index, "tuned", torch.float32, space)
    return entries.numpy()


def _numbers(first: int, count: int) -> Words:
    stop = first + count
    return np.arange(first, stop, dtype=np.uint64)


def _mixed(words: Words) -> Words:
    """A hash of each number, as splitmix64 makes it; sums and products wrap around."""
    step, first, second = map(np.uint64, MIX)
    words = words * step + step
    words = _folded(words, 30) * first
    words = _folded(words, 27) * second
    return _folded(words, 31)


def _folded(words: Words, bits: int) -> Words:
    shifted = words >> np.uint64(bits)
    return words ^ shifted


def _hashed(block: Block, places: Words) -> Words:
    """A hash of each value at its place."""
    bits = block.view(np.uint32)
    return _mixed(bits ^ places)


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
