"""Decoders of the quantised formats of safetensors files: the bytes of a matrix -> its numbers.

Each is (level - zero) * scale + bias in float32, with the arithmetic of the library that writes the
format. Levels are whole numbers, or of a codebook; whatever else is shared by a group of columns.
"""

from __future__ import annotations

import math
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
    run_of,
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
# numbers of so many bits that are looked up together: codes have 8, 10 or 12 bits
TOGETHER = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2}

Of = Callable[[Rows, Cols], Tensor]
"""What holds for each entry of a part, float32: see `_each`."""
Levels = Callable[[Rows, Cols, Tensor], object]
"""Puts the level of each entry of a part into a tensor, float32 (rows, cols) without gaps."""
Pieces = Mapping[str, StoredTensor]


class Grid:
    """Numbers on a grid: (level - zero) * scale + bias."""

    costly = False

    def __init__(
        self,
        unit: int,
        levels: Levels,
        scales: Of,
        *,
        zeros: Of | None = None,
        biases: Of | None = None,
        factor: float | None = None,
        codebook: Codebook | None = None,
        loose: Of | None = None,
    ) -> None:
        """unit: columns that are decoded together. factor: of all numbers, after all else.
        codebook: None where levels are whole numbers. loose: how far the scales by which a
        codebook's levels were chosen lie from those that are stored.
        """
        self.unit = unit
        self._levels, self._scales, self._zeros, self._biases = levels, scales, zeros, biases
        self._factor = factor
        self._codebook, self._loose = codebook, loose

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        self._levels(rows, cols, into)
        self._of_levels(into, rows, cols)

    def _of_levels(self, into: Tensor, rows: Rows, cols: Cols) -> None:
        """Make levels into numbers, in place."""
        if self._zeros is not None:
            _each(into, self._zeros(rows, cols), torch.Tensor.sub_)
        _each(into, self._scales(rows, cols), torch.Tensor.mul_)
        if self._biases is not None:
            _each(into, self._biases(rows, cols), torch.Tensor.add_)
        if self._factor is not None:
            into.mul_(self._factor)

    def steps(self, rows: Rows, cols: Cols) -> Tensor | None:
        if self._codebook is not None:
            return None
        steps = torch.ones(len(rows), cols[1] - cols[0])
        _each(steps, self._scales(rows, cols).abs(), torch.Tensor.mul_)
        return steps if self._factor is None else steps.mul_(self._factor)

    def cells(self, rows: Rows, cols: Cols) -> Cells | None:
        if self._codebook is None:
            return None
        levels = torch.empty(len(rows), cols[1] - cols[0])
        self._levels(rows, cols, levels)
        ends = self._codebook.cells(levels)
        wider = [torch.zeros(()), torch.zeros(())]
        if self._loose is not None:
            wider = [end.abs() for end in ends]
            for more in wider:
                _each(more, self._loose(rows, cols), torch.Tensor.mul_)
        for end in ends:
            self._of_levels(end, rows, cols)
        # a scale may be below 0
        return torch.minimum(*ends) - wider[0], torch.maximum(*ends) + wider[1]


def _each(made: Tensor, shared: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change every entry by what it shares with others: shared is (rows, columns), or (rows,
    groups, 1) where equal groups fill the rows.
    """
    change(made if shared.ndim == 2 else made.view(*shared.shape[:2], -1), shared)


def _as_bytes(words: Tensor) -> Tensor:
    """The bytes of words along the last dimension."""
    # one word a row may pass for contiguous with any stride, and is then no bytes
    whole = (
        _compact(words)
        if words.shape[-1] > 1
        else words.clone(memory_format=torch.contiguous_format)
    )
    return whole.view(torch.uint8)


def _compact(words: Tensor) -> Tensor:
    """Words without gaps. Of a transposed matrix the rows are first cut out: torch transposes what
    has no gaps two to four times as fast.
    """
    is_turned = words.ndim == 2 and words.stride(1) != 1
    return words.T.contiguous().T.contiguous() if is_turned else words.contiguous()


def bits_of(words: Tensor, bits: int) -> Tensor:
    """The numbers of a stream of bits along the last dimension, lowest bits first: uint8."""
    raw = _as_bytes(words)
    if bits == 8:
        return raw
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
    """The levels of the numbers in a code, for every code: float32 (codes, numbers)."""
    count = TOGETHER[bits]
    shifts = torch.arange(0, count * bits, bits)
    codes = torch.arange(1 << (count * bits))[:, None]
    codes = codes >> (shifts.flip(0) if high_first else shifts)
    return torch.tensor(levels, dtype=torch.float32)[codes & ((1 << bits) - 1)]


def _codes(raw: Tensor, bits: int) -> Tensor:
    """The codes of so many bits in bytes (rows, some), each of one byte or across two."""
    if bits == 8:
        return raw
    size = math.lcm(8, bits) // 8
    parts = raw.view(len(raw), -1, size).int()
    codes = torch.empty(*parts.shape[:2], 8 * size // bits, dtype=torch.int32)
    for number in range(codes.shape[-1]):
        at, shift = divmod(number * bits, 8)
        code = (parts[..., at + 1] << 8).bitwise_or_(parts[..., at])
        codes[..., number] = code.bitwise_right_shift_(shift).bitwise_and_((1 << bits) - 1)
    return codes


def _look_up(codes: Tensor, table: Tensor, into: Tensor) -> None:
    """Put rows of a table of float32 one after another: each is looked up as one number."""
    wide = {1: torch.float32, 2: torch.int64, 4: torch.complex128}[table.shape[1]]
    numbers, found = table.view(wide).view(-1), into.view(wide).view(-1)
    torch.index_select(numbers, 0, codes.reshape(-1).int(), out=found)


def _nibbles(
    raw: StoredTensor | Tensor, codebook: tuple[float, ...], *, high_first: bool = False
) -> Levels:
    """Levels of a codebook; raw: uint8 (rows, cols / 2)."""
    table = _table(codebook, 4, high_first)

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        _look_up(take(raw, rows, (cols[0] // 2, cols[1] // 2)), table, into)

    return levels


def _streamed(raw: StoredTensor | Tensor, bits: int, first: int = 0) -> Levels:
    """Levels of numbers of so many bits, less `first`; raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize
    table = _table(tuple(range(-first, (1 << bits) - first)), bits) if bits in TOGETHER else None

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        words = take(raw, rows, (cols[0] * bits // of_word, -(-cols[1] * bits // of_word)))
        width = cols[1] - cols[0]
        if table is None or width % 32:
            into.copy_(bits_of(words, bits)[:, :width])
            if first:
                into.sub_(first)
        else:
            _look_up(_codes(_as_bytes(words), bits * TOGETHER[bits]), table, into)

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """What so many columns of a row share, or those of each group do; values: (rows, groups)."""

    values = values.contiguous()

    def of(rows: Rows, cols: Cols) -> Tensor:
        run = run_of(rows)
        mine = values[torch.from_numpy(rows) if run is None else run]
        start, stop = cols
        if isinstance(group, Tensor):
            return mine.index_select(1, group[start:stop])
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
    shifts = 4 * torch.tensor(AWQ_NIBBLES, dtype=torch.int32)

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        of_word, which = np.unique(rows // 8, return_inverse=True)
        mine = _compact(take(words, of_word, cols))
        if run_of(rows) is not None and len(rows) == 8 * len(of_word):
            mine = mine[:, None] >> shifts[:, None]
        else:
            mine = mine.index_select(0, torch.from_numpy(which)) >> shifts[rows % 8, None]
        into.view(mine.shape).copy_(mine.bitwise_and_(15))

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


def _floats(raw: StoredTensor | Tensor) -> Levels:
    if not raw.dtype.is_floating_point:
        return lambda rows, cols, into: into.copy_(take(raw, rows, cols))
    # torch takes four times as long for a cast of 8-bit floats; two are looked up together
    one, two = (
        torch.arange(1 << (8 * count)).to(whole).view(raw.dtype).float().view(-1, count)
        for count, whole in ((1, torch.uint8), (2, torch.uint16))
    )

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        part = take(raw, rows, cols)
        even = part.shape[1] % 2 == part.storage_offset() % 2 == part.stride(0) % 2 == 0
        _look_up(part.view(torch.uint16 if even else torch.uint8), two if even else one, into)

    return levels


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
    stored = packing.raw.end - packing.raw.start
    return PackedTensor(info.dtype, KINDS[packing.kind](info, pieces), view, width, stored)
