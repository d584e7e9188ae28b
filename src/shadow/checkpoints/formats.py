"""Quantised formats of safetensors files, an entry each: how modules of it are recognised, and how
their tensors make a matrix. `decoders` makes its numbers.

The singular values of packed integers would be those of the packing, so their tensors are never
measured as they are. A layout is read from names, dtypes and shapes; from config.json only where
these do not tell. What does not fit is refused with a reason, and its tensors stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.dtypes import FLOATS, INTEGERS
from shadow.places.architecture import place_tensors
from shadow.places.names import Facts, name_rules

# `x.weight.absmax` and `x_blocks` belong to x as `x.scales` does
PIECE = re.compile(
    r"(?P<owner>.+)(?:\.(?P<nested>weight\.(?!weight$|bias$).+)|(?P<joined>_(?:blocks|scales)))"
)
UNKNOWN = "packed integers of an unknown format"
PACKING = ("U8", "I8", "I32", "U32")  # what packed integers come in; 64-bit ones are indices
SCALES = ("F32", "BF16", "F16")
WORDS = ("I32", "U32")
FP8 = "8-bit floats"
MAX_STATE = 1 << 16  # bytes of a quant_state; real ones have 100
# of activations, or what a library keeps and decoding does not need
NEEDLESS = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
    "weight.quant_map",
}  # fmt: skip


class _RefusedError(Exception):
    """Why a module cannot be decoded, for people."""


@dataclass(frozen=True)
class Layout:
    """How the pieces of a module make a matrix."""

    kind: str  # a key of `decoders.KINDS`
    dtype: str  # what its format is called
    shape: tuple[int, ...]  # of what is decoded
    pieces: Sequence[TensorInfo]  # the one that holds the numbers is the first
    facts: tuple[int, ...] = ()  # that the decoder needs
    turned: bool = False  # the model has the transposes of its matrices


@dataclass(frozen=True)
class Module:
    """The pieces of one module, and what config.json says of its format."""

    name: str
    pieces: Mapping[str, TensorInfo]
    settings: Mapping[str, object]
    read: Callable[[TensorInfo, TensorInfo], bytes]

    def piece(
        self, name: str, dtypes: Collection[str], *shapes: tuple[int | None, ...]
    ) -> TensorInfo:
        """A piece of one of these dtypes and shapes, where None is any size."""
        info = self.pieces.get(name)
        if info is None:
            raise _RefusedError(f"{name} is missing")
        self.require(info.dtype in dtypes, f"{name} is {info.dtype}")
        broken = info.problem or info.alias_of or info.strides or 0 in info.shape
        self.require(not broken, f"{name} cannot be read")
        fits = any(
            len(shape) == len(info.shape)
            and all(want in (None, size) for want, size in zip(shape, info.shape, strict=True))
            for shape in shapes
        )
        self.require(fits or not shapes, f"{name} has the shape {info.shape}")
        return info

    def optional(
        self, name: str, dtypes: Collection[str], shape: tuple[int | None, ...]
    ) -> tuple[TensorInfo, ...]:
        """The same, in a tuple; which is empty where there is none."""
        return (self.piece(name, dtypes, shape),) if name in self.pieces else ()

    def small(self, info: TensorInfo, of: TensorInfo) -> bytes:
        """What a small piece holds, of this module or of another layer's like it."""
        self.require(info.end - info.start <= MAX_STATE, f"{owner_of(info.name)[1]} is too large")
        return self.read(info, of)

    def said(self, key: str, *known: str) -> str:
        """What the settings say of their layout, the first where they say nothing."""
        said = str(self.settings.get(key) or known[0]).lower()
        self.require(said in known, f"its {key} is {said[:20]!a}")
        return said

    def require(self, holds: bool, what: str) -> None:
        """Refuse the module, with what is wrong, where that does not hold."""
        if not holds:
            raise _RefusedError(what)


@dataclass(frozen=True)
class Affine:
    """(level - zero) * scale + bias: levels a stream of bits along rows, all else of groups."""

    words: str
    scales: str
    dtype: str  # what the format is called, before its bits
    bits: Collection[int]
    zeros: str = ""
    biases: str = ""
    order: str = ""  # the group of each column
    stated: str = ""  # rows and columns
    turned: bool = False  # words, scales and zeros are stored as (columns, rows)
    signed: bool = False  # the middle level is 0 where there are no zeros
    interleaved: bool = False  # words hold rows, in the order of `decoders.AWQ_NIBBLES`

    def layout(
        self, kind: str, m: Module, bits: object, shape: Sequence[int], added: int = 0
    ) -> Layout:
        """shape: of what is decoded. added: to zeros. facts: bits, columns of a group, added."""
        if type(bits) is not int or bits not in self.bits:
            raise _RefusedError(f"its bits are not {', '.join(map(str, self.bits))}")
        *stack, rows, cols = shape
        scales = m.piece(self.scales, SCALES)
        groups = (scales.shape or (1,))[0 if self.turned else -1]
        shared = (groups, rows) if self.turned else (*stack, rows, groups)
        pieces = [m.piece(self.words, WORDS), m.piece(self.scales, SCALES, shared)]
        if self.biases:
            pieces.append(m.piece(self.biases, SCALES, shared))
        words = -(-rows * bits // 32)
        if self.zeros and not (self.signed and self.zeros not in m.pieces):
            zeros = (groups, words) if self.turned else (words, groups)
            pieces.append(m.piece(self.zeros, WORDS, zeros))
        order = m.optional(self.order, ("I32", "I64"), (cols,))
        group = -(-cols // groups)
        m.require(bool(order) or group * groups == cols, "its groups do not fill the rows")
        beside = [*order, *([m.pieces[self.stated]] if self.stated else [])]
        dtype = f"{self.dtype}{bits}"
        return Layout(kind, dtype, (*stack, rows, cols), pieces + beside, (bits, group, added))


AFFINE = {
    "gptq": Affine(
        "qweight", "scales", "GPTQ-", (2, 3, 4, 8), zeros="qzeros", order="g_idx", turned=True
    ),
    "awq": Affine(
        "qweight", "scales", "AWQ-", (4,), zeros="qzeros", turned=True, interleaved=True
    ),
    "pack-quantized": Affine(
        "weight_packed", "weight_scale", "INT", (2, 4, 8), zeros="weight_zero_point",
        order="weight_g_idx", stated="weight_shape", signed=True,
    ),
    "mlx": Affine("weight", "scales", "MLX-", (2, 3, 4, 5, 6, 8), biases="biases"),
}  # fmt: skip


def _gptq(m: Module) -> Layout:
    """AutoGPTQ's qlinear_cuda.py, of which version 1 stores zeros less 1."""
    m.said("quant_method", "gptq")
    version = m.said("checkpoint_format", "gptq", "gptq_v2")
    words, zeros = (m.piece(name, WORDS, (None, None)) for name in ("qweight", "qzeros"))
    rows = words.shape[1]
    bits = 32 * zeros.shape[1] // rows
    shape = rows, 32 * words.shape[0] // max(1, bits)
    return AFFINE["gptq"].layout("gptq", m, bits, shape, int(version == "gptq"))


def _awq(m: Module) -> Layout:
    """AutoAWQ's packing_utils.py."""
    m.said("quant_method", "awq")
    m.said("version", "gemm")
    cols, words = m.piece("qweight", WORDS, (None, None)).shape
    return AFFINE["awq"].layout("awq", m, 4, (8 * words, cols))


def _of_words(m: Module) -> Layout:
    """GPTQ or AWQ, whose tensors have the same names and other shapes."""
    words, scales = m.piece("qweight", WORDS, (None, None)), m.piece("scales", SCALES)
    return (_gptq if words.shape[-1:] == scales.shape[-1:] else _awq)(m)


def _mlx(m: Module) -> Layout:
    raw, bits = m.piece("weight", WORDS, (None, None), (None, None, None)), m.settings.get("bits")
    *stack, words = raw.shape
    cols = 32 * words // bits if type(bits) is int and bits > 0 else 1
    if m.said("mode", "affine", "mxfp4") == "mxfp4":
        return _mxfp4(m, raw, "scales", (*stack, 8 * words))
    return AFFINE["mlx"].layout("mlx", m, bits, (*stack, cols))


def _compressed_tensors(m: Module) -> Layout:
    if "weight_packed" not in m.pieces:
        return _scaled(m)
    packed = m.piece("weight_packed", (*WORDS, "U8"), (None, None))
    if packed.dtype == "U8":
        return _of_pairs(m, packed, "weight_scale", "weight_global_scale")
    rows, words = packed.shape
    raw = m.small(m.piece("weight_shape", ("I64", "I32"), (2,)), packed)
    size = len(raw) // 2
    stated = tuple(int.from_bytes(raw[at : at + size], "little") for at in (0, size))
    m.require(stated[0] == rows and stated[1] > 0, "weight_shape does not fit")
    bits = next((bits for bits in (2, 4, 8) if -(-stated[1] * bits // 32) == words), 0)
    return AFFINE["pack-quantized"].layout("pack-quantized", m, bits, stated)


def _scaled(m: Module) -> Layout:
    """8-bit integers or floats and a scale for all, for rows, groups of them or blocks. facts: rows
    and columns of a block.
    """
    raw = m.piece("weight", ("I8", *(name for name in FLOATS if name[:3] == "F8_")), (None, None))
    scales = m.piece("weight_scale", SCALES)
    (rows, cols), across = raw.shape, scales.shape[-1] if len(scales.shape) == 2 else 1
    block = 1, -(-cols // across)
    if scales.parameters == 1:
        block = rows, cols
    elif scales.shape not in ((rows,), (rows, 1)):
        block = _block(m.settings, block)
        m.piece("weight_scale", SCALES, (-(-rows // block[0]), -(-cols // block[1])))
    zeros = m.optional("weight_zero_point", ("I8",), scales.shape)
    dtype = "INT8" if raw.dtype == "I8" else raw.dtype
    return Layout("scaled", dtype, raw.shape, (raw, scales, *zeros), block)


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


def _bitsandbytes_8bit(m: Module) -> Layout:
    raw = m.piece("weight", ("I8",), (None, None))
    scales = m.piece("SCB", SCALES, raw.shape[:1])
    layout = m.optional("weight_format", ("U8",), ())
    return Layout("scaled", "INT8", raw.shape, (raw, scales, *layout), (1, raw.shape[1]))


def _bitsandbytes_4bit(m: Module) -> Layout:
    """facts: entries of a block."""
    name = next((name for name in m.pieces if name.startswith("weight.quant_state.")), "it")
    kind = name.rpartition("__")[2].upper()
    m.require(kind in ("NF4", "FP4"), "its numbers are neither NF4 nor FP4")
    raw, state = m.piece("weight", ("U8", *SCALES), (None, 1)), m.piece(name, ("U8",), (None,))
    said = quant_state(m.small(state, raw))
    shape, block = said.get("shape"), said.get("blocksize")
    sizes = [*shape, block] if isinstance(shape, list) else []
    if len(sizes) != 3 or not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
        raise _RefusedError("its quant_state has no shape and blocksize")
    rows, cols, block = sizes
    whole = rows * cols == 2 * (raw.end - raw.start) and cols % 2 == 0
    m.require(whole, "its quant_state has another shape")
    scales = m.piece("weight.absmax", ("U8", *SCALES), (-(-rows * cols // block),))
    pieces = [raw, scales, state]
    if scales.dtype == "U8":
        pieces.append(m.piece("weight.nested_absmax", SCALES, (None,)))
        pieces.append(m.piece("weight.nested_quant_map", SCALES, (256,)))
    return Layout("bitsandbytes-4bit", kind, (rows, cols), pieces, (block,))


def _of_pairs(m: Module, raw: TensorInfo, scale: str, of_all: str) -> Layout:
    """NVFP4 or MXFP4: two numbers of E2M1 in a byte, low half first."""
    rows, cols = raw.shape[0], 2 * raw.shape[1]
    if of_all not in m.pieces:
        return _mxfp4(m, raw, scale, (rows, cols))
    m.require(cols % 16 == 0, "its blocks do not fill the rows")
    scales = m.piece(scale, ("F8_E4M3",), (rows, cols // 16))
    outer = m.piece(of_all, SCALES, (), (1,))
    return Layout("e2m1", "NVFP4", (rows, cols), (raw, scales, outer), (16,))


def _mxfp4(m: Module, raw: TensorInfo, scale: str, shape: tuple[int, ...]) -> Layout:
    m.require(shape[-1] % 32 == 0, "its blocks do not fill the rows")
    scales = m.piece(scale, ("U8",), (*shape[:-1], shape[-1] // 32))
    return Layout("e2m1", "MXFP4", shape, (raw, scales), (32,))


def _modelopt(m: Module) -> Layout:
    raw = m.piece("weight", ("U8",), (None, None))
    return _of_pairs(m, raw, "weight_scale", "weight_scale_2")


def _gpt_oss(m: Module) -> Layout:
    """A stack of experts."""
    raw = m.piece("_blocks", ("U8",), (None, None, None, 16))
    experts, rows, blocks, _ = raw.shape
    return replace(_mxfp4(m, raw, "_scales", (experts, rows, 32 * blocks)), turned=True)


@dataclass(frozen=True)
class Format:
    """How modules of a format are recognised, and laid out."""

    name: str
    pieces: str  # pattern of names that only its modules have
    layout: Callable[[Module], Layout] | None = None  # None: its modules are refused
    integers: bool = False  # such a piece, or the module's `weight`, must be of an integer type


NOBODY = "(?!)"  # recognised by what config.json says
FORMATS = (  # the first of which a module has a piece names its format
    Format(
        "bitsandbytes 4-bit",
        r"weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)",
        _bitsandbytes_4bit,
    ),
    Format("bitsandbytes 8-bit", "SCB|weight_format", _bitsandbytes_8bit),
    Format(
        "compressed-tensors", "weight_packed|weight_shape|weight_zero_point|weight_g_idx",
        _compressed_tensors,
    ),
    Format("MXFP4", "_blocks", _gpt_oss, integers=True),
    Format("GPTQ", "g_idx", _gptq),
    Format("GPTQ or AWQ", "qweight|qzeros", _of_words),
    Format("AWQ", NOBODY, _awq),
    Format("MLX", "biases", _mlx, integers=True),
    Format("NVFP4", "weight_scale_2", _modelopt, integers=True),
    Format(FP8, NOBODY, _scaled),
    Format("quanto", r"weight\._data"),
    Format("torchao", "_weight_qdata"),
    Format("HQQ", "W_q"),
    Format("AQLM", "codes|codebooks", integers=True),
    Format("QuIP", "Qidxs"),
    Format("EXL2", "q_weight|q_invperm|q_groups"),
    Format("EXL3", "trellis"),
)  # fmt: skip


def owner_of(name: str) -> tuple[str, str]:
    """(module, piece) of a name; the module of `x.scales`, `x.weight.absmax`, `x_blocks` is x."""
    may_be_piece = "weight." in name or name.endswith(("_blocks", "_scales"))
    if may_be_piece and (match := PIECE.fullmatch(name)):
        return match["owner"], match["nested"] or match["joined"]
    owner, _, piece = name.rpartition(".")
    return owner, piece


def packed_modules(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, object]
) -> dict[str, str]:
    """The format of every module of packed integers, by its name, from tensors and config.json."""
    said = _said_format(config)
    ranks: dict[str, int] = {}
    unnamed: dict[str, str] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        rank = _rank(piece)
        if rank is not None and (
            not FORMATS[rank].integers
            or INTEGERS.keys() & {info.dtype, tensors.get(f"{owner}.weight", info).dtype}
        ):
            ranks[owner] = min(rank, ranks.get(owner, rank))
        elif info.dtype in PACKING and piece == "weight":
            unnamed[owner] = said or UNKNOWN
        elif info.dtype in PACKING and said and len(info.shape) >= 2:
            unnamed[name] = said
    formats = {owner: FORMATS[rank].name for owner, rank in ranks.items()}
    if said:  # the config knows which of two formats of the same names it is
        named_so = [owner for owner, name in formats.items() if said in name.split(" or ")]
        formats |= dict.fromkeys(named_so, said)
    return unnamed | formats


@lru_cache(4096)  # a model has few different pieces
def _rank(piece: str) -> int | None:
    return next((i for i, one in enumerate(FORMATS) if re.fullmatch(one.pieces, piece)), None)


def _said_format(config: Mapping[str, object]) -> str | None:
    """What the config calls its quantisation, in known words; MLX writes no method."""
    for said in settings_in(config):
        method = said.get("quant_method")
        if isinstance(method, str):
            methods = name_rules().quantization_methods
            return methods.get(method, "a format that config.json names")
        if method is None and type(said.get("bits")) is int:
            return "MLX"
    return None


def settings_in(config: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """What a config says of quantisation, in all places where one may."""
    for section in (config, Facts(config).section("language")):
        for key in name_rules().quantization_keys:
            said = section.get(key)
            if isinstance(said, dict):
                yield said


def _settings_of(config: Mapping[str, object], module: str) -> Mapping[str, object]:
    """What the config says of its quantisation; MLX may say other things of one module."""
    said = next(settings_in(config), {})
    of_module = said.get(module)
    return {**said, **of_module} if isinstance(of_module, dict) else said


def quant_state(raw: bytes) -> dict[str, object]:
    """What bitsandbytes says of a 4-bit matrix in a tensor of JSON; empty where it is none."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def with_matrices(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, object],
    read: Callable[[TensorInfo], bytes],
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a checkpoint with one entry for each quantised matrix in place of its pieces.

    Also why others are refused, by module. read: the bytes of a small tensor; a few of many layers
    are read.
    """
    formats = packed_modules(tensors, config)
    for name, info in tensors.items():
        if info.dtype.startswith("F8_E") and f"{name}_scale" in tensors:
            formats.setdefault(owner_of(name)[0], FP8)
    layouts = {one.name: one.layout for one in FORMATS if one.layout}
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items() if formats else ():
        owner, piece = owner_of(name)
        if formats.get(owner) in layouts and piece != "bias":
            modules.setdefault(owner, {})[piece] = info
    known: dict[tuple[object, ...], bytes] = {}

    def read_once(info: TensorInfo, of: TensorInfo) -> bytes:
        key = re.sub(r"\d+", "#", info.name), of.dtype, of.shape
        if key not in known:
            known[key] = read(info)
        return known[key]

    found: dict[str, TensorInfo] = {}  # by the name of the first of its pieces
    gone: set[str] = set()
    refused: dict[str, str] = {}
    for owner, pieces in modules.items():
        own = {info.name for info in pieces.values()}
        try:
            module = Module(owner, pieces, _settings_of(config, owner), read_once)
            entry = _entry(module, layouts[formats[owner]](module))
            if entry.name in tensors and entry.name not in own:
                raise _RefusedError("its matrix is there twice")
        except _RefusedError as why:
            refused[owner] = f"{formats[owner]} ({why})"
            continue
        found[next(iter(pieces.values())).name] = entry
        gone |= own
    made = [
        found.get(name, info) for name, info in tensors.items() if name in found or name not in gone
    ]
    return _as_the_model_has_them({info.name: info for info in made}, config), refused


def _entry(m: Module, layout: Layout) -> TensorInfo:
    """One entry for the matrix of a module, under the name that it has without quantisation."""
    used = {info.name for info in layout.pieces}
    beside = {name: info for name, info in m.pieces.items() if info.name not in used}
    unknown = next((name for name in beside if name not in NEEDLESS), "")
    m.require(not unknown, f"{unknown} is unknown")
    raw, *rest = layout.pieces
    packing = Packing(layout.kind, raw, (*rest, *beside.values()), layout.facts)
    is_joined = owner_of(raw.name)[1].startswith("_")
    entry = TensorInfo(
        m.name if is_joined else f"{m.name}.weight",
        layout.dtype, layout.shape, raw.shard, raw.start, raw.end, packing=packing,
    )  # fmt: skip
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
