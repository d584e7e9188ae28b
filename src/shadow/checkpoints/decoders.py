"""Decoders of the quantised formats of safetensors files: the bytes of a matrix -> its numbers.

Each is (level - zero) * scale + bias in float32, with the arithmetic of the library that writes the
format. Levels are whole numbers, or of a codebook; whatever else is shared by a group of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from shadow.checkpoints.packed_tensors import (
    Cells,
    Codebook,
    Cols,
    Decoder,
    PackedTensor,
    Read,
    Rows,
    take,
)
from shadow.checkpoints.quantized import owner_of, quant_state
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import StoredTensor
from shadow.dtypes import E2M1, FP4, NF4
from shadow.errors import UndecodableError

# where AWQ keeps the eight outputs of a word, in nibbles (awq/utils/packing_utils.py)
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
OF_INT8 = 7.874015718698502e-3  # 1 / 127, as bitsandbytes multiplies

Of = Callable[[Rows, Cols], Tensor]
"""What holds for each entry of a part, float32: see `_each`."""
Pieces = Mapping[str, StoredTensor]


class Grid:
    """Numbers on a grid: (level - zero) * scale + bias."""

    def __init__(
        self,
        unit: int,
        levels: Of,
        scales: Of,
        *,
        zeros: Of | None = None,
        biases: Of | None = None,
        factor: float | None = None,
        codebook: Codebook | None = None,
        loose: Of | None = None,
    ) -> None:
        """unit: columns that are decoded together. levels: float32 that may be overwritten. factor:
        of all numbers, after all else. codebook: None where levels are whole numbers. loose: how
        far the scales by which a codebook's levels were chosen lie from those that are stored.
        """
        self.unit = unit
        self._levels, self._scales, self._zeros, self._biases = levels, scales, zeros, biases
        self._factor = factor
        self._codebook, self._loose = codebook, loose

    def values(self, rows: Rows, cols: Cols) -> Tensor:
        return self._of_levels(self._levels(rows, cols), rows, cols)

    def _of_levels(self, made: Tensor, rows: Rows, cols: Cols) -> Tensor:
        if self._zeros is not None:
            _each(made, self._zeros(rows, cols), torch.Tensor.sub_)
        _each(made, self._scales(rows, cols), torch.Tensor.mul_)
        if self._biases is not None:
            _each(made, self._biases(rows, cols), torch.Tensor.add_)
        return made if self._factor is None else made.mul_(self._factor)

    def steps(self, rows: Rows, cols: Cols) -> Tensor | None:
        if self._codebook is not None:
            return None
        steps = torch.ones(len(rows), cols[1] - cols[0])
        _each(steps, self._scales(rows, cols).abs(), torch.Tensor.mul_)
        return steps if self._factor is None else steps.mul_(self._factor)

    def cells(self, rows: Rows, cols: Cols) -> Cells | None:
        if self._codebook is None:
            return None
        ends = self._codebook.cells(self._levels(rows, cols))
        wider = [torch.zeros(()), torch.zeros(())]
        if self._loose is not None:
            wider = [end.abs() for end in ends]
            for more in wider:
                _each(more, self._loose(rows, cols), torch.Tensor.mul_)
        one, other = (self._of_levels(end, rows, cols) for end in ends)  # a scale may be below 0
        return torch.minimum(one, other) - wider[0], torch.maximum(one, other) + wider[1]


def _each(made: Tensor, shared: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change every entry by what it shares with others: shared is (rows, columns), or (rows,
    groups, 1) where equal groups fill the rows.
    """
    change(made if shared.ndim == 2 else made.view(*shared.shape[:2], -1), shared)


def bits_of(words: Tensor, bits: int) -> Tensor:
    """The numbers of a stream of bits along the last dimension, lowest bits first: uint8."""
    raw = words.contiguous().view(torch.uint8)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return ((raw[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)
    # eight numbers in as many bytes as a number has bits
    raw = torch.nn.functional.pad(raw, (0, -raw.shape[-1] % bits)).long()
    eights = raw.view(*raw.shape[:-1], -1, bits)
    whole = (eights << torch.arange(0, 8 * bits, 8)).sum(-1, keepdim=True)
    return ((whole >> torch.arange(0, 8 * bits, bits)) & ((1 << bits) - 1)).byte().flatten(-2)


@cache
def _table(levels: tuple[float, ...], bits: int, high_first: bool = False) -> Tensor:
    """The levels of all numbers in a byte, for every byte: float32 (256, 8 / bits)."""
    shifts = torch.arange(0, 8, bits)
    codes = torch.arange(256)[:, None] >> (shifts.flip(0) if high_first else shifts)
    return torch.tensor(levels, dtype=torch.float32)[codes & ((1 << bits) - 1)]


def _looked_up(raw: Tensor, table: Tensor) -> Tensor:
    """The levels of bytes (rows, some): a table's row is looked up as one number of its length."""
    wide = {1: torch.float32, 2: torch.int64, 4: torch.complex128}[table.shape[1]]
    found = table.view(wide).view(-1).index_select(0, raw.reshape(-1).int())
    return found.view(torch.float32).view(len(raw), -1)


def _nibbles(
    raw: StoredTensor | Tensor, codebook: tuple[float, ...], *, high_first: bool = False
) -> Of:
    """Levels of a codebook; raw: uint8 (rows, cols / 2)."""
    table = _table(codebook, 4, high_first)
    return lambda rows, cols: _looked_up(take(raw, rows, (cols[0] // 2, cols[1] // 2)), table)


def _streamed(raw: StoredTensor | Tensor, bits: int, first: int = 0) -> Of:
    """Levels of numbers of so many bits, less `first`; raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize
    table = _table(tuple(range(-first, (1 << bits) - first)), bits) if bits in (2, 4, 8) else None

    def levels(rows: Rows, cols: Cols) -> Tensor:
        words = take(raw, rows, (cols[0] * bits // of_word, -(-cols[1] * bits // of_word)))
        if table is None:
            return bits_of(words, bits)[:, : cols[1] - cols[0]].float().sub_(first)
        made = _looked_up(words.contiguous().view(torch.uint8), table)
        width = cols[1] - cols[0]
        return made if made.shape[1] == width else made[:, :width].contiguous()

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """What so many columns of a row share, or those of each group do; values: (rows, groups)."""

    def of(rows: Rows, cols: Cols) -> Tensor:
        mine = values[torch.from_numpy(rows)]
        start, stop = cols
        if isinstance(group, Tensor):
            return mine[:, group[start:stop]]
        if mine.shape[1] == 1:
            return mine
        first = start // group
        mine = mine[:, first : -(-stop // group), None]
        if start % group == 0 and stop % group == 0:
            return mine
        wide = mine.expand(-1, -1, group).reshape(len(rows), -1)
        return wide[:, start - first * group : stop - first * group]

    return of


def _bytes(stored: StoredTensor, width: int = 0) -> StoredTensor | Tensor:
    """What is stored as bytes, (rows, width), or as wide as its last dimension."""
    width = width or stored.shape[-1] * stored.dtype.itemsize
    return stored.seen(lambda words: words.view(torch.uint8).reshape(-1, width))


def _unit(width: int) -> int:
    return 32 if width % 32 == 0 else width


def _gptq(info: TensorInfo, pieces: Pieces) -> Decoder:
    """(q - z) * s: AutoGPTQ's qlinear_cuda.py. q and z lie in streams of bits, q along the columns;
    version 1 stores z - 1. g_idx has the group of each column.

    facts: bits, what is added to z, columns of a group.
    """
    bits, added, group = _facts(info)
    rows, cols = _upright(info)
    scales = pieces["scales"].whole().float()
    zeros = bits_of(pieces["qzeros"].whole(), bits)[:, :rows].float() + added
    groups: int | Tensor = group
    if "g_idx" in pieces:
        groups = pieces["g_idx"].whole().long()
        if not bool(((groups >= 0) & (groups < len(scales))).all()):
            raise _broken(info, "g_idx names groups that are not there")
        if torch.equal(groups, torch.arange(cols) // group):
            groups = group  # in order, which is faster
    return Grid(
        _unit(cols),
        _streamed(pieces["qweight"].seen(lambda words: words.T), bits),
        _shared(scales.T, groups),
        zeros=_shared(zeros.T, groups),
    )


def _awq(info: TensorInfo, pieces: Pieces) -> Decoder:
    """(q - z) * s in 4 bits, eight rows in a word: AutoAWQ's packing_utils.py.

    facts: columns of a group.
    """
    (group,) = _facts(info)
    words = pieces["qweight"].seen(lambda words: words.T)
    shifts = 4 * np.array(AWQ_NIBBLES, np.int32)

    def levels(rows: Rows, cols: Cols) -> Tensor:
        of_word, which = np.unique(rows // 8, return_inverse=True)
        mine = take(words, of_word, cols)[torch.from_numpy(which)]
        return ((mine >> torch.from_numpy(shifts[rows % 8])[:, None]) & 15).float()

    scales = pieces["scales"].whole().float()
    zeros = bits_of(pieces["qzeros"].whole(), 4).view(len(scales), -1, 8)
    zeros = zeros[..., list(AWQ_NIBBLES)].flatten(-2).float()
    return Grid(1, levels, _shared(scales.T, group), zeros=_shared(zeros.T, group))


def _pack_quantized(info: TensorInfo, pieces: Pieces) -> Decoder:
    """(q - z) * s of compressed-tensors' `pack-quantized`; q in a stream of bits along the columns,
    z along the rows.

    facts: bits, columns of a group.
    """
    bits, group = _facts(info)
    rows, cols = _upright(info)
    if pieces["weight_shape"].whole().tolist() != [rows, cols]:
        raise _broken(info, "weight_shape is not that of the other layers")
    groups: int | Tensor = group
    scales = pieces["weight_scale"].whole().float()
    if "weight_g_idx" in pieces:
        groups = pieces["weight_g_idx"].whole().long()
        if not bool(((groups >= 0) & (groups < scales.shape[1])).all()):
            raise _broken(info, "weight_g_idx names groups that are not there")
    zeros = None
    if "weight_zero_point" in pieces:
        unpacked = bits_of(pieces["weight_zero_point"].whole().T, bits)[:, :rows].T.float()
        zeros = _shared(unpacked, groups)
    levels = _streamed(_bytes(pieces["weight_packed"]), bits, first=0 if zeros else 1 << (bits - 1))
    return Grid(_unit(cols), levels, _shared(scales, groups), zeros=zeros)


def _mlx(info: TensorInfo, pieces: Pieces) -> Decoder:
    """q * s + b: MLX's affine mode. facts: bits, columns of a group."""
    bits, group = _facts(info)
    scales, biases = (pieces[name].whole().float().flatten(0, -2) for name in ("scales", "biases"))
    return Grid(
        _unit(_upright(info)[1]),
        _streamed(_bytes(pieces["weight"]), bits),
        _shared(scales, group),
        biases=_shared(biases, group),
    )


def _bitsandbytes_4bit(info: TensorInfo, pieces: Pieces) -> Decoder:
    """level * absmax: bitsandbytes' NF4 and FP4, whose blocks run through all entries, and whose
    scales may be quantised themselves, to 8 bits of a codebook in blocks.

    facts: entries of a block.
    """
    (block,) = _facts(info)
    rows, cols = _upright(info)
    said = next(piece for name, piece in pieces.items() if "quant_state." in name)
    state = quant_state(bytes(said.whole().tolist()))
    if state.get("blocksize") != block or state.get("shape") != [rows, cols]:
        raise _broken(info, "its quant_state is not that of the other layers")
    scales, loose = pieces["weight.absmax"].whole().flatten(), None
    if "weight.nested_absmax" in pieces:
        outer = pieces["weight.nested_absmax"].whole().float().flatten()
        step, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if type(step) is not int or not isinstance(offset, float) or step < 1:
            raise _broken(info, "its quant_state has no nested_blocksize or nested_offset")
        if -(-len(scales) // step) != len(outer):
            raise _broken(info, "nested_absmax has another number of blocks")
        codes = pieces["weight.nested_quant_map"].whole().float()
        wide = outer.repeat_interleave(step)[: len(scales)]
        scales = codes[scales.int()] * wide + offset
        # levels are chosen before scales are rounded, to the nearest code
        loose = wide.abs() * codes.sort().values.diff().max() / 2
    scales = scales.float()

    def by_block(values: Tensor) -> Of:
        if cols % block == 0:
            return _shared(values.view(rows, -1), block)
        return lambda rows, columns: values[
            torch.from_numpy(np.add.outer(rows * cols, np.arange(*columns)) // block)
        ]

    known = NF4 if info.dtype == "NF4" else FP4
    return Grid(
        2,
        _nibbles(_bytes(pieces["weight"], cols // 2), known, high_first=True),
        by_block(scales),
        codebook=Codebook(known, max(known)),  # the scale of a block is its largest number
        loose=None if loose is None else by_block(loose),
    )


def _bitsandbytes_8bit(info: TensorInfo, pieces: Pieces) -> Decoder:
    """q * SCB / 127, a scale for each row: bitsandbytes' LLM.int8()."""
    if "weight_format" in pieces and int(pieces["weight_format"].whole()) != 0:
        raise _broken(info, "its weight_format is not the one of rows")
    raw, scales = pieces["weight"], pieces["SCB"].whole().float()[:, None]
    return Grid(1, _floats(raw), _shared(scales, raw.shape[-1]), factor=OF_INT8)


def _scaled(info: TensorInfo, pieces: Pieces) -> Decoder:
    """raw * scale, or (raw - zero point) * scale, of 8-bit floats or integers. A scale is that of a
    block, a row, a group of a row, or of all. The last blocks of a matrix may be cut, and a stack
    of matrices has a stack of scales.

    facts: rows and columns of a block.
    """
    high, wide = _facts(info)
    rows, cols = _upright(info)
    raw, *beside = pieces.values()
    zeros = [piece for name, piece in pieces.items() if name == "weight_zero_point"]
    shared = [piece.whole().float().reshape(-1, -(-cols // wide)) for piece in (beside[0], *zeros)]
    # blocks do not go on from a matrix of a stack to the next
    down = -(-rows // high)

    def of(values: Tensor) -> Of:
        by_col = _shared(values, wide)
        return lambda which, columns: by_col(which // rows * down + which % rows // high, columns)

    return Grid(
        1,
        _floats(raw.seen(lambda stored: stored.reshape(-1, cols))),
        of(shared[0]),
        zeros=of(shared[1]) if zeros else None,
        codebook=_of_floats(raw.dtype) if raw.dtype.is_floating_point else None,
    )


def _mxfp4(info: TensorInfo, pieces: Pieces) -> Decoder:
    """level * 2^(scale - 127) in blocks of 32 columns: gpt-oss, compressed-tensors and MLX."""
    raw, scales, *_ = pieces.values()
    powers = torch.ldexp(torch.ones(256), torch.arange(256) - 127)
    return Grid(
        32,
        _nibbles(_bytes(raw, 16 * scales.shape[-1]), E2M1),
        _shared(powers[scales.whole().int()].flatten(0, -2), 32),
        codebook=Codebook(E2M1),
    )


def _nvfp4(info: TensorInfo, pieces: Pieces) -> Decoder:
    """level * scale, in blocks of 16 columns that share an 8-bit float, which itself is divided by
    one number of the matrix (compressed-tensors), or multiplied with one (ModelOpt).
    """
    raw, scales, of_all, *_ = pieces.values()
    inner, outer = scales.whole().float(), of_all.whole().float().flatten()
    inner = inner / outer if "weight_global_scale" in pieces else inner * outer
    return Grid(16, _nibbles(_bytes(raw), E2M1), _shared(inner, 16), codebook=Codebook(E2M1))


@cache
def _of_floats(dtype: torch.dtype) -> Codebook:
    """The finite numbers of an 8-bit format."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return Codebook(every[every.isfinite()].tolist())


def _floats(raw: StoredTensor | Tensor) -> Of:
    if not raw.dtype.is_floating_point:
        return lambda rows, cols: take(raw, rows, cols).float()
    # torch takes twice as long for a cast of 8-bit floats
    table = torch.arange(256, dtype=torch.uint8).view(raw.dtype).float()[:, None]
    return lambda rows, cols: _looked_up(take(raw, rows, cols).view(torch.uint8), table)


def _upright(info: TensorInfo) -> tuple[int, int]:
    """Rows and columns of the matrix that is decoded."""
    *_, rows, cols = info.shape
    return (rows, cols) if info.strides is None else (cols, rows)


def _facts(info: TensorInfo) -> tuple[int, ...]:
    assert info.packing is not None
    return info.packing.facts


def _broken(info: TensorInfo, what: str) -> UndecodableError:
    return UndecodableError(f"{info.name} ({info.dtype}): {what}", "quantise the model again")


KINDS: Mapping[str, Callable[[TensorInfo, Pieces], Decoder]] = {
    "scaled": _scaled,
    "bitsandbytes-4bit": _bitsandbytes_4bit,
    "bitsandbytes-8bit": _bitsandbytes_8bit,
    "gptq": _gptq,
    "awq": _awq,
    "pack-quantized": _pack_quantized,
    "mlx": _mlx,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
}


def packed_tensor(info: TensorInfo, read: Read) -> PackedTensor:
    """The quantised tensor of an entry with a packing; read opens what lies in files."""
    packing = info.packing
    assert packing is not None
    pieces = {owner_of(one.name)[1]: read(one) for one in (packing.raw, *packing.beside)}
    view = torch.empty(info.parameters, device="meta")
    if info.strides is None:
        width, view = info.shape[-1], view.view(info.shape)
    else:  # decoded are the transposes of its matrices
        width, view = info.shape[-2], view.as_strided(info.shape, info.strides)
    return PackedTensor(info.dtype, KINDS[packing.kind](info, pieces), view, width)
