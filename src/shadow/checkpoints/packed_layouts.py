"""Tensors of quantised modules -> one entry for each matrix, which says how it is decoded.

A layout is read from names, dtypes and shapes; from config.json only where these do not tell. What
does not fit is refused with a reason, and its tensors stay as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from shadow.checkpoints.quantized import owner_of, packed_modules, quant_state, said_settings
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.dtypes import FLOATS
from shadow.places.architecture import place_tensors

Read = Callable[[TensorInfo], bytes]
SCALES = ("F32", "BF16", "F16")
FP8 = "8-bit floats"
BLOCKS_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes has
MAX_STATE = 1 << 16  # bytes of a quant_state; real ones have 100
# of activations, or what a library keeps and decoding does not need
NEEDLESS = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
    "weight.quant_map",
}  # fmt: skip


class _RefusedError(Exception):
    """Why a module cannot be decoded, for people."""


@dataclass(frozen=True)
class _Layout:
    """How the pieces of a module make a matrix."""

    kind: str  # a key of `decoders.KINDS`
    dtype: str  # what its format is called
    shape: tuple[int, ...]  # of what is decoded
    pieces: Sequence[TensorInfo]  # the one that holds the numbers is the first
    facts: tuple[int, ...] = ()
    turned: bool = False  # the model has the transposes of its matrices


class _Module:
    """The pieces of one module, and what config.json says of its format."""

    def __init__(
        self,
        name: str,
        pieces: Mapping[str, TensorInfo],
        settings: Mapping[str, object],
        state_of: Callable[[TensorInfo, TensorInfo], bytes],
    ) -> None:
        self.name = name
        self.pieces = pieces
        self.settings = settings
        self._state_of = state_of

    def piece(
        self, name: str, dtypes: Collection[str], shape: tuple[int | None, ...] | None = None
    ) -> TensorInfo:
        """A piece of one of these dtypes and of this shape, where None is any size."""
        info = self.pieces.get(name)
        if info is None:
            raise _RefusedError(f"{name} is missing")
        if info.dtype not in dtypes:
            raise _RefusedError(f"{name} is {info.dtype}")
        if info.problem or info.alias_of or info.strides or 0 in info.shape:
            raise _RefusedError(f"{name} cannot be read")
        fits = shape is None or (
            len(shape) == len(info.shape)
            and all(want in (None, size) for want, size in zip(shape, info.shape, strict=True))
        )
        if not fits:
            raise _RefusedError(f"{name} has the shape {info.shape}")
        return info

    def optional(
        self, name: str, dtypes: Collection[str], shape: tuple[int | None, ...]
    ) -> tuple[TensorInfo, ...]:
        """The same, in a tuple; which is empty where there is none."""
        return (self.piece(name, dtypes, shape),) if name in self.pieces else ()

    def small(self, info: TensorInfo, of: TensorInfo) -> bytes:
        """What a small piece holds, of this module or of another layer's like it."""
        if info.end - info.start > MAX_STATE:
            raise _RefusedError(f"{owner_of(info.name)[1]} is too large")
        return self._state_of(info, of)

    def require(self, holds: bool, what: str) -> None:
        """Refuses the module, with what is wrong, where that does not hold."""
        if not holds:
            raise _RefusedError(what)


def with_matrices(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, object], read: Read
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a checkpoint with one entry for each quantised matrix in place of its pieces.

    Also why others are refused, by module. read: the bytes of a small tensor; a few of many layers
    are read.
    """
    formats = packed_modules(tensors, config)
    for name, info in tensors.items():
        if info.dtype.startswith("F8_E") and f"{name}_scale" in tensors:
            formats.setdefault(owner_of(name)[0], FP8)
    if not formats:
        return dict(tensors), {}
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        if owner in formats and piece != "bias":
            modules.setdefault(owner, {})[piece] = info
    known: dict[tuple[object, ...], bytes] = {}

    def state_of(info: TensorInfo, of: TensorInfo) -> bytes:
        key = re.sub(r"\d+", "#", info.name), of.dtype, of.shape
        if key not in known:
            known[key] = read(info)
        return known[key]

    found: dict[str, TensorInfo] = {}  # by the name of the first of its pieces
    gone: set[str] = set()
    refused: dict[str, str] = {}
    for owner, pieces in modules.items():
        make = LAYOUTS.get(formats[owner])
        if make is None:
            continue
        own = {info.name for info in pieces.values()}
        try:
            module = _Module(owner, pieces, said_settings(config, owner), state_of)
            entry = _entry(module, make(module))
            module.require(
                entry.name in own or entry.name not in tensors, "its matrix is there twice"
            )
        except _RefusedError as why:
            refused[owner] = f"{formats[owner]} ({why})"
            continue
        found[next(iter(pieces.values())).name] = entry
        gone |= own
    made = [
        found.get(name, info) for name, info in tensors.items() if name in found or name not in gone
    ]
    return _as_the_model_has_them({info.name: info for info in made}, config), refused


def _entry(module: _Module, layout: _Layout) -> TensorInfo:
    """One entry for the matrix of a module, under the name that it has without quantisation."""
    used = {info.name for info in layout.pieces}
    beside = [info for info in module.pieces.values() if info.name not in used]
    for info in beside:
        piece = owner_of(info.name)[1]
        module.require(piece in NEEDLESS, f"{piece} is unknown")
    raw, *rest = layout.pieces
    packing = Packing(layout.kind, raw=raw, beside=(*rest, *beside), facts=layout.facts)
    joined = owner_of(raw.name)[1].startswith("_")
    name = module.name if joined else f"{module.name}.weight"
    entry = TensorInfo(
        name, layout.dtype, layout.shape, raw.shard, raw.start, raw.end, packing=packing
    )
    return _turned(entry) if layout.turned else entry


def _turned(info: TensorInfo) -> TensorInfo:
    """The same numbers as the transposes of what is decoded."""
    *stack, rows, cols = info.shape
    strides = (1, cols) if not stack else (rows * cols, 1, cols)
    return replace(info, shape=(*stack, cols, rows), strides=strides)


def _as_the_model_has_them(
    tensors: dict[str, TensorInfo], config: Mapping[str, object]
) -> dict[str, TensorInfo]:
    """Decoded are rows of outputs; a model of Conv1D has rows of inputs."""
    matrices = {
        name: info.shape
        for name, info in tensors.items()
        if info.packing and len(info.shape) == 2 and not info.strides
    }
    for name, parts in place_tensors(matrices, config).items():
        if parts[0].transposed:
            tensors[name] = _turned(tensors[name])
    return tensors


def _of_words(module: _Module) -> _Layout:
    """GPTQ or AWQ, whose tensors have the same names and other shapes."""
    words, scales = module.piece("qweight", ["I32"], (None, None)), module.piece("scales", SCALES)
    return (_gptq if words.shape[-1:] == scales.shape[-1:] else _awq)(module)


def _gptq(module: _Module) -> _Layout:
    method = module.settings.get("quant_method", "gptq")
    module.require(method == "gptq", f"written by {str(method)[:20]}")
    version = module.settings.get("checkpoint_format", "gptq")
    module.require(version in ("gptq", "gptq_v2"), f"its layout is {str(version)[:20]}")
    words = module.piece("qweight", ["I32"], (None, None))
    scales = module.piece("scales", SCALES, (None, words.shape[1]))
    zeros = module.piece("qzeros", ["I32"], (scales.shape[0], None))
    (groups, rows), bits = scales.shape, 32 * zeros.shape[1] // words.shape[1]
    fits = 32 * zeros.shape[1] == bits * rows and bits in (2, 3, 4, 8)
    module.require(fits, "its bits are not 2, 3, 4 or 8")
    cols = 32 * words.shape[0] // bits
    module.require(32 * words.shape[0] == bits * cols, f"qweight has the shape {words.shape}")
    order = module.optional("g_idx", ["I32"], (cols,))
    group = -(-cols // groups)
    module.require(bool(order) or -(-cols // group) == groups, "its groups are of several sizes")
    facts = bits, int(version == "gptq"), group
    return _Layout("gptq", f"GPTQ-{bits}", (rows, cols), (words, zeros, scales, *order), facts)


def _awq(module: _Module) -> _Layout:
    method = module.settings.get("quant_method", "awq")
    module.require(method == "awq", f"written by {str(method)[:20]}")
    version = str(module.settings.get("version") or "gemm").lower()
    module.require(version == "gemm", f"its layout is {version[:20]}")
    words = module.piece("qweight", ["I32"], (None, None))
    cols, rows = words.shape[0], 8 * words.shape[1]
    scales = module.piece("scales", SCALES, (None, rows))
    zeros = module.piece("qzeros", ["I32"], (scales.shape[0], words.shape[1]))
    group = cols // scales.shape[0]
    module.require(group * scales.shape[0] == cols, "its groups do not fill the rows")
    return _Layout("awq", "AWQ-4", (rows, cols), (words, zeros, scales), (group,))


def _bitsandbytes_4bit(module: _Module) -> _Layout:
    states = [name for name in module.pieces if name.startswith("weight.quant_state.")]
    module.require(len(states) == 1, "it has no quant_state")
    kind = states[0].rpartition("__")[2].upper()
    module.require(kind in ("NF4", "FP4"), "its numbers are neither NF4 nor FP4")
    raw = module.piece("weight", ["U8", *SCALES], (None, 1))
    state = module.piece(states[0], ["U8"], (None,))
    said = quant_state(module.small(state, raw))
    shape, block = said.get("shape"), said.get("blocksize")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise _RefusedError("its quant_state has no shape")
    if type(block) is not int or block not in BLOCKS_4BIT:
        raise _RefusedError("its quant_state has no blocksize")
    whole = len(shape) == 2 and math.prod(shape) == 2 * (raw.end - raw.start)
    module.require(whole and shape[1] % 2 == 0, "its quant_state has another shape")
    blocks = -(-math.prod(shape) // block)
    scales = module.piece("weight.absmax", ["U8", *SCALES], (blocks,))
    nested = [
        module.piece(f"weight.nested_{name}", SCALES, size)
        for name, size in (("absmax", (None,)), ("quant_map", (256,)))
        if scales.dtype == "U8"
    ]
    return _Layout(
        "bitsandbytes-4bit", kind, (shape[0], shape[1]), (raw, scales, state, *nested), (block,)
    )


def _bitsandbytes_8bit(module: _Module) -> _Layout:
    raw = module.piece("weight", ["I8"], (None, None))
    scales = module.piece("SCB", SCALES, raw.shape[:1])
    layout = module.optional("weight_format", ["U8"], ())
    return _Layout("bitsandbytes-8bit", "INT8", raw.shape, (raw, scales, *layout))


def _compressed_tensors(module: _Module) -> _Layout:
    if "weight_packed" not in module.pieces:
        return _scaled(module)
    packed = module.piece("weight_packed", ["I32", "U8"], (None, None))
    if packed.dtype == "U8":
        return _of_pairs(module, packed, "weight_scale", "weight_global_scale")
    (rows, words) = packed.shape
    held = module.piece("weight_shape", ["I64", "I32"], (2,))
    raw = module.small(held, packed)
    size = len(raw) // 2
    shape = tuple(int.from_bytes(raw[at : at + size], "little") for at in (0, size))
    bits = next((bits for bits in (2, 4, 8) if -(-shape[1] * bits // 32) == words), 0)
    module.require(shape[0] == rows and shape[1] > 0, "weight_shape does not fit")
    module.require(bits > 0, "its bits are not 2, 4 or 8")
    scales = module.piece("weight_scale", SCALES, (rows, None))
    group = shape[1] // scales.shape[1]
    module.require(group * scales.shape[1] == shape[1], "its groups do not fill the rows")
    zeros = module.optional("weight_zero_point", ["I32"], (-(-rows * bits // 32), scales.shape[1]))
    order = module.optional("weight_g_idx", ["I32", "I64"], (shape[1],))
    pieces = packed, scales, held, *zeros, *order
    return _Layout("pack-quantized", f"INT{bits}", (rows, shape[1]), pieces, (bits, group))


def _of_pairs(module: _Module, raw: TensorInfo, scale: str, of_all: str) -> _Layout:
    """NVFP4 or MXFP4: two numbers of E2M1 in a byte, low half first."""
    rows, cols = raw.shape[0], 2 * raw.shape[1]
    if of_all not in module.pieces:
        scales = module.piece(scale, ["U8"], (rows, cols // 32))
        module.require(cols % 32 == 0, "its blocks do not fill the rows")
        return _Layout("mxfp4", "MXFP4", (rows, cols), (raw, scales))
    scales = module.piece(scale, ["F8_E4M3"], (rows, cols // 16))
    outer = module.piece(of_all, SCALES)
    module.require(cols % 16 == 0, "its blocks do not fill the rows")
    module.require(outer.parameters == 1, f"{of_all} has the shape {outer.shape}")
    return _Layout("nvfp4", "NVFP4", (rows, cols), (raw, scales, outer))


def _modelopt(module: _Module) -> _Layout:
    raw = module.piece("weight", ["U8"], (None, None))
    return _of_pairs(module, raw, "weight_scale", "weight_scale_2")


def _mxfp4(module: _Module) -> _Layout:
    """A stack of experts of gpt-oss."""
    raw = module.piece("_blocks", ["U8"], (None, None, None, 16))
    scales = module.piece("_scales", ["U8"], raw.shape[:3])
    experts, rows, blocks, _ = raw.shape
    return _Layout("mxfp4", "MXFP4", (experts, rows, 32 * blocks), (raw, scales), turned=True)


def _mlx(module: _Module) -> _Layout:
    raw = module.piece("weight", ["U32"])
    bits, group = module.settings.get("bits"), module.settings.get("group_size")
    mode = module.settings.get("mode", "affine")
    module.require(len(raw.shape) in (2, 3), f"weight has the shape {raw.shape}")
    if type(bits) is not int or bits not in (2, 3, 4, 5, 6, 8):
        raise _RefusedError("config.json does not say its bits")
    if type(group) is not int or group < 1:
        raise _RefusedError("config.json does not say its group_size")
    *stack, words = raw.shape
    shape = (*stack, 32 * words // bits)
    fits = 32 * words == bits * shape[-1] and shape[-1] % group == 0
    module.require(fits, "its groups do not fill the rows")
    shared = (*stack, shape[-1] // group)
    if mode == "mxfp4" and (bits, group) == (4, 32):
        scales = module.piece("scales", ["U8"], shared)
        return _Layout("mxfp4", "MXFP4", shape, (raw, scales))
    module.require(mode == "affine", f"its mode is {str(mode)[:20]}")
    pieces = [module.piece(name, SCALES, shared) for name in ("scales", "biases")]
    return _Layout("mlx", f"MLX-{bits}", shape, (raw, *pieces), (bits, group))


def _scaled(module: _Module) -> _Layout:
    """8-bit integers or floats and a scale for all, for rows, groups of them or blocks."""
    raw = module.piece("weight", ["I8", *(name for name in FLOATS if name.startswith("F8_"))])
    module.require(len(raw.shape) == 2, f"weight has the shape {raw.shape}")
    scales = module.piece("weight_scale", SCALES)
    (rows, cols), across = raw.shape, scales.shape[-1] if len(scales.shape) == 2 else 1
    block = 1, -(-cols // across)
    if scales.parameters == 1:
        block = rows, cols
    elif scales.shape not in ((rows,), (rows, 1)):
        block = _block(module.settings, block)
        grid = -(-rows // block[0]), -(-cols // block[1])
        module.require(scales.shape == grid, f"weight_scale has the shape {scales.shape}")
    zeros = module.optional("weight_zero_point", ["I8"], scales.shape)
    dtype = "INT8" if raw.dtype == "I8" else raw.dtype
    return _Layout("scaled", dtype, raw.shape, (raw, scales, *zeros), block)


def _block(settings: Mapping[str, object], group: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that share a scale, where config.json says it; else a group of a row."""
    said = [settings.get("weight_block_size")]
    groups = settings.get("config_groups")
    for one in groups.values() if isinstance(groups, dict) else ():
        weights = one.get("weights") if isinstance(one, dict) else None
        said.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    for block in said:
        if not isinstance(block, list) or len(block) != 2:
            continue
        if all(type(size) is int and 0 < size < 1 << 31 for size in block):
            return block[0], block[1]
    return group


LAYOUTS: Mapping[str, Callable[[_Module], _Layout]] = {
    "GPTQ": _gptq,
    "AWQ": _awq,
    "GPTQ or AWQ": _of_words,
    "bitsandbytes 4-bit": _bitsandbytes_4bit,
    "bitsandbytes 8-bit": _bitsandbytes_8bit,
    "compressed-tensors": _compressed_tensors,
    "MXFP4": _mxfp4,
    "NVFP4": _modelopt,
    "MLX": _mlx,
    FP8: _scaled,
}
"""By the formats of `packed` in `registry/names.yaml`, and of 8-bit floats."""
