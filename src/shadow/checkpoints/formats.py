"""Quantised formats of safetensors files, an entry each: how its modules are recognised, and how
their tensors make a matrix. `decoders` makes its numbers.

The singular values of packed integers would be those of the packing, so their tensors are never
measured as they are. A layout is read from names, dtypes and shapes; from config.json only where
these do not say. What does not fit is refused with a reason, and its tensors are left unchanged.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.dtypes import INTEGERS
from shadow.places.architecture import place_tensors
from shadow.places.names import Facts, name_rules

# `x.weight.absmax` and `x_blocks` belong to x as `x.scales` does
PIECE = re.compile(
    r"(?P<owner>.+)(?:\.(?P<nested>weight\.(?!weight$|bias$).+)|(?P<joined>_(?:blocks|scales)))"
)
UNKNOWN = "packed integers of an unknown format"
PACKING = ("U8", "I8", "I32", "U32")  # what packed integers come in; 64-bit ones are indices
SCALES = ("F32", "BF16", "F16")
DTYPES: Mapping[str, Collection[str]] = {  # by the letters of `Layout.pieces`
    "W": ("I32", "U32"), "I": ("I32", "I64"), "B": ("U8",), "C": ("I8",), "S": SCALES,
    "Q": ("U8", *SCALES), "E": ("F8_E4M3",), "8": ("I8", "F8_E4M3", "F8_E5M2"),
}  # fmt: skip
FP8 = "8-bit floats"
MAX_STATE = 1 << 16  # bytes of a quant_state; real ones have 100
# of activations, or what a library keeps and decoding does not need
NEEDLESS = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
    "weight.quant_map",
}  # fmt: skip


class _RefusedError(Exception):
    """Reason why a module cannot be decoded."""


def _require(holds: object, what: str) -> None:
    if not holds:
        raise _RefusedError(what)


@dataclass(frozen=True)
class PackedModule:
    """The tensors of one module, and what config.json says about its format."""

    name: str
    pieces: Mapping[str, TensorInfo]
    settings: Mapping[str, object]
    read: Callable[[TensorInfo, TensorInfo], bytes]
    """The bytes of a small piece, or of another layer's beside a tensor like the second."""

    def small(self, name: str, of: str) -> bytes:
        info = self.pieces[name]
        _require(info.end - info.start <= MAX_STATE, f"{name} is too large")
        return self.read(info, self.pieces[of])


Sizes = dict[str, Any]
"""Of the pieces of a module, by the words of `Layout.pieces`."""
Made = tuple[str, tuple[int, ...], tuple[int, ...]]
"""What a format is called, the shape of what is decoded, and facts that the decoder needs."""


@dataclass(frozen=True)
class Layout:
    """The tensors that make up the matrix of a module."""

    kind: str  # a key of `decoders.KINDS`
    made: Callable[[PackedModule, Sizes], Made]
    pieces: str
    """Of each its name, `?` behind what may be missing; its role, its type (`DTYPES`) and its
    dimensions. Equal words are equal sizes; `*` are any number of them. The first has the numbers.
    """
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What config.json may say, the first where it says nothing."""
    is_turned: bool = False  # the model has the transposes of its matrices

    def fits(self, m: PackedModule) -> int:
        """Return 2 for a module with all the format needs, 1 with its first tensor, otherwise 0."""
        (name, _, kind, *_), *_ = every = _words(self.pieces)
        if name not in m.pieces or m.pieces[name].dtype not in DTYPES[kind]:
            return 0
        return 2 if all(one[0][-1] == "?" or one[0] in m.pieces for one in every) else 1

    def matrix(self, m: PackedModule) -> TensorInfo:
        """Make one entry for a matrix, under its name without quantisation."""
        sizes: Sizes = {}
        used: dict[str, TensorInfo] = {}
        beside = dict(m.pieces)
        for key, known in self.settings.items():
            said = str(m.settings.get(key) or known[0]).lower()
            _require(said in known, f"its {key} is {said[:20]!a}")
        for key, role, kind, *words in _words(self.pieces):
            name = key.rstrip("?")
            if name in m.pieces:
                used[role] = beside.pop(name)
                _fit(name, used[role], DTYPES[kind], words, sizes)
            _require(name in m.pieces or key != name, f"{name} is missing")
        unknown = next((name for name in beside if name not in NEEDLESS), "")
        _require(not unknown, f"{unknown} is unknown")
        dtype, shape, facts = self.made(m, sizes)
        raw, *rest = used.values()
        packing = Packing(self.kind, raw, (*rest, *beside.values()), facts, tuple(used))
        name = m.name if "_blocks" in m.pieces else f"{m.name}.weight"
        made = TensorInfo(name, dtype, shape, raw.shard, raw.start, raw.end, packing=packing)
        return _turned(made) if self.is_turned else made


@cache
def _words(pieces: str) -> list[list[str]]:
    return [one.split() for one in pieces.split(",")]


def _fit(
    name: str, info: TensorInfo, dtypes: Collection[str], words: Sequence[str], sizes: Sizes
) -> None:
    """Refuse a piece that does not match a layout. sizes: of the words that are known."""
    _require(info.dtype in dtypes, f"{name} is {info.dtype}")
    broken = info.problem or info.alias_of or info.strides or 0 in info.shape
    _require(not broken, f"{name} cannot be read")
    shape: list[object] = list(info.shape)
    if words and words[0].startswith("*"):
        count = max(0, len(shape) - len(words) + 1)
        shape[:count] = [tuple(shape[:count])]
    known = [int(word) if word.isdecimal() else sizes.get(word) for word in words]
    fits = len(known) == len(shape) and all(
        want in (None, size) for want, size in zip(known, shape, strict=True)
    )
    _require(fits, f"{name} has the shape {info.shape}")
    sizes.update(zip(words, shape, strict=True))


def _affine(
    m: PackedModule,
    n: Sizes,
    name: str,
    known: Sequence[int],
    bits: Callable[[PackedModule, Sizes], object] = lambda m, n: 4,
) -> Made:
    """Recognise (level - zero) * scale + bias: levels are a stream of bits along rows, all the rest
    belong to groups.

    facts: bits, columns of a group, and what is added to zeros.
    """
    if "weight_shape" in m.pieces:
        raw = m.small("weight_shape", "weight_packed")
        half = len(raw) // 2
        rows, cols = (int.from_bytes(one, "little") for one in (raw[:half], raw[half:]))
        _require(rows == n["rows"] and n.get("cols", cols) == cols > 0, "weight_shape does not fit")
        n = n | {"cols": cols}
    count = bits(m, n)
    if type(count) is not int or count not in known:
        raise _RefusedError(f"its bits are not {', '.join(map(str, known))}")
    rows, groups = n["rows"], n["groups"]
    cols = n.get("cols") or 32 * n["words"] // count
    along, down = (-(-size * count // 32) for size in (cols, rows))
    fits = n.get("words", along) == along and n.get("zeros", down) == down
    _require(fits, f"its tensors are not of {count} bits")
    group = -(-cols // groups)
    has_order = not m.pieces.keys().isdisjoint(("g_idx", "weight_g_idx"))
    _require(has_order or group * groups == cols, "its groups do not fill the rows")
    # version 1 of GPTQ stores zeros less 1 (AutoGPTQ's qlinear_cuda.py)
    version = str(m.settings.get("checkpoint_format")).lower()
    added = name == "GPTQ-" and version != "gptq_v2"
    return f"{name}{count}", (*n.get("*stack", ()), rows, cols), (count, group, int(added))


def _scaled(m: PackedModule, n: Sizes) -> Made:
    """Recognise 8-bit integers or floats with a scale for the matrix, each row, group or block.
    facts: rows and columns of a block.
    """
    dtype, rows, cols, grid = m.pieces["weight"].dtype, n["rows"], n["cols"], n.get("*grid", ())
    across = grid[-1] if len(grid) == 2 else 1
    block = 1, -(-cols // across)
    if "SCB" not in m.pieces and math.prod(grid) == 1:
        block = rows, cols
    elif grid not in ((), (rows,), (rows, 1)):
        block = block_of(m.settings, block)
        fits = grid == (-(-rows // block[0]), -(-cols // block[1]))
        _require(fits, f"weight_scale has the shape {grid}")
    return "INT8" if dtype == "I8" else dtype, (rows, cols), block


def _blocks(m: PackedModule, n: Sizes) -> Made:
    """Recognise 8-bit floats with a scale a block, as of DeepSeek-V3. facts: as in `_scaled`."""
    high, wide = block_of(m.settings, (128, 128))
    fits = (n["down"], n["across"]) == (-(-n["rows"] // high), -(-n["cols"] // wide))
    _require(fits, f"weight_scale_inv has not the blocks of {high} x {wide}")
    return m.pieces["weight"].dtype, (*n["*stack"], n["rows"], n["cols"]), (high, wide)


def block_of(settings: object, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns that share a scale, if config.json gives them."""

    def at(said: object, key: str) -> object:
        return said.get(key) if isinstance(said, dict) else None

    groups = at(settings, "config_groups")
    every = groups.values() if isinstance(groups, dict) else ()
    said = [at(at(one, "weights"), "block_structure") for one in every]
    for block in (at(settings, "weight_block_size"), *said):
        sizes = block if isinstance(block, list) else []
        if len(sizes) == 2 and all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
            return sizes[0], sizes[1]
    return otherwise


def _bitsandbytes_4bit(m: PackedModule, n: Sizes, kind: str) -> Made:
    """Recognise NF4 and FP4. facts: entries of a block."""
    said = quant_state(m.small(f"{STATE}{kind.lower()}", "weight"))
    if said is None:
        raise _RefusedError("its quant_state has no shape or blocksize")
    (rows, cols, block, *_), raw, nested = said, m.pieces["weight"], m.pieces["weight.absmax"]
    fits = rows * cols == 2 * (raw.end - raw.start) and cols % 2 == 0
    fits = fits and n["blocks"] == -(-rows * cols // block)
    _require(fits, "its quant_state has another shape")
    found = {"weight.nested_absmax", "weight.nested_quant_map"} & m.pieces.keys()
    _require(len(found) == 2 * (nested.dtype == "U8"), "its scales are not of one kind")
    return kind, (rows, cols), (block,)


def _e2m1(_: PackedModule, n: Sizes, name: str, group: int, of_raw: int = 2) -> Made:
    """Recognise two numbers in a byte, low half first. facts: columns of a group."""
    cols, one = group * n["groups"], n.get("*one", ())
    fits = cols == of_raw * n.get("raw", cols // of_raw)
    _require(fits and math.prod(one) == 1, "its blocks do not fill the rows")
    return name, (*n.get("*stack", ()), n["rows"], cols), (group,)


@dataclass(frozen=True)
class Format:
    """Rules for recognising and reading the modules of a format."""

    name: str
    marks: str  # pattern of pieces that only its modules have
    layouts: Sequence[Layout] = ()  # without one its modules are refused
    integers: bool = False  # such a piece, or the module's `weight`, must be of an integer type

    def matrix(self, m: PackedModule) -> TensorInfo:
        most = max(one.fits(m) for one in self.layouts)
        *others, last = (one for one in self.layouts if one.fits(m) == most)
        for one in others:
            with contextlib.suppress(_RefusedError):
                return one.matrix(m)
        return last.matrix(m)


NOBODY = "(?!)"  # recognised by what config.json says
STATE = "weight.quant_state.bitsandbytes__"
GPTQ = Layout(
    "gptq",
    partial(
        _affine, name="GPTQ-", known=(2, 3, 4, 8), bits=lambda _, n: 32 * n["zeros"] // n["rows"]
    ),
    "qweight words W words rows, qzeros zeros W groups zeros, scales scales S groups rows,"
    "g_idx? order I cols",
    {"quant_method": ["gptq"], "checkpoint_format": ["gptq", "gptq_v2"]},
)
AWQ = Layout(  # AutoAWQ's packing_utils.py
    "awq", partial(_affine, name="AWQ-", known=(4,)),
    "qweight words W cols zeros, qzeros zeros W groups zeros, scales scales S groups rows",
    {"quant_method": ["awq"], "version": ["gemm"]},
)  # fmt: skip
PACKED = Layout(
    "pack-quantized", partial(_affine, name="INT", known=(2, 4, 8), bits=lambda _, n: next(
        (bits for bits in (2, 4, 8) if -(-n["cols"] * bits // 32) == n["words"]), 0)),
    "weight_packed words W rows words, weight_scale scales S rows groups, weight_shape stated I 2,"
    "weight_zero_point? zeros W zeros groups, weight_g_idx? order I cols",
)  # fmt: skip
MLX = Layout(
    "mlx",
    partial(
        _affine, name="MLX-", known=(2, 3, 4, 5, 6, 8), bits=lambda m, _: m.settings.get("bits")
    ),
    "weight words W *stack rows words, scales scales S *stack rows groups,"
    "biases biases S *stack rows groups",
    {"mode": ["affine"]},
)
SCALED = Layout(
    "scaled", _scaled,
    "weight words 8 rows cols, weight_scale scales S *grid, weight_zero_point? zeros C *grid",
)  # fmt: skip
BLOCKS = Layout(
    "scaled", _blocks,
    "weight words 8 *stack rows cols, weight_scale_inv scales S *stack down across",
)  # fmt: skip
INT8 = Layout(
    "llm.int8", _scaled, "weight words C rows cols, SCB scales S rows, weight_format? layout B"
)
NF4, FP4 = (
    Layout(
        "bitsandbytes-4bit", partial(_bitsandbytes_4bit, kind=kind),
        "weight words Q bytes 1, weight.absmax scales Q blocks,"
        f"{STATE}{kind.lower()} state B some,"
        "weight.nested_absmax? outer S outer, weight.nested_quant_map? codes S 256",
    )
    for kind in ("NF4", "FP4")
)  # fmt: skip
_mxfp4 = partial(_e2m1, name="MXFP4", group=32)
_nvfp4 = partial(_e2m1, name="NVFP4", group=16)
PACKED_MXFP4 = Layout(
    "e2m1", _mxfp4, "weight_packed words B rows raw, weight_scale scales B rows groups"
)
PACKED_NVFP4 = Layout(
    "e2m1", _nvfp4,
    "weight_packed words B rows raw, weight_scale scales E rows groups,"
    "weight_global_scale divisor S *one",
)  # fmt: skip
NVFP4 = Layout(
    "e2m1", _nvfp4,
    "weight words B rows raw, weight_scale scales E rows groups, weight_scale_2 factor S *one",
)  # fmt: skip
GPT_OSS = Layout(
    "e2m1", _mxfp4, "_blocks words B *stack rows groups 16, _scales scales B *stack rows groups",
    is_turned=True,
)  # fmt: skip
MLX_MXFP4 = Layout(
    "e2m1", partial(_mxfp4, of_raw=8),
    "weight words W *stack rows raw, scales scales B *stack rows groups",
)  # fmt: skip
FORMATS = (  # the first of which a module has a piece names its format
    Format(
        "bitsandbytes 4-bit",
        r"weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)", [FP4, NF4],
    ),
    Format("bitsandbytes 8-bit", "SCB|weight_format", [INT8]),
    Format(
        "compressed-tensors", "weight_packed|weight_shape|weight_zero_point|weight_g_idx",
        [PACKED, PACKED_MXFP4, PACKED_NVFP4, SCALED],
    ),
    Format("MXFP4", "_blocks", [GPT_OSS], integers=True),
    Format("GPTQ", "g_idx", [GPTQ]),
    Format("GPTQ or AWQ", "qweight|qzeros", [GPTQ, AWQ]),
    Format("AWQ", NOBODY, [AWQ]),
    Format("MLX", "biases", [MLX_MXFP4, MLX], integers=True),
    Format("NVFP4", "weight_scale_2", [NVFP4], integers=True),
    Format(FP8, NOBODY, [SCALED, BLOCKS]),
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
    """Return the format of every module of packed integers, by name, from tensors and config."""
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
    return next((i for i, one in enumerate(FORMATS) if re.fullmatch(one.marks, piece)), None)


def _said_format(config: Mapping[str, object]) -> str | None:
    """Return what the config calls its quantisation, in known words; MLX names no method."""
    methods = name_rules().quantization_methods
    for said in settings_in(config):
        method = said.get("quant_method")
        if isinstance(method, str):
            return methods.get(method, "a format that config.json names")
        if method is None and type(said.get("bits")) is int:
            return "MLX"
    return None


def settings_in(config: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Yield what a config says about quantisation, wherever it may say so."""
    for section in (config, Facts(config).section("language")):
        for key in name_rules().quantization_keys:
            said = section.get(key)
            if isinstance(said, dict):
                yield said


def quant_state(raw: bytes) -> tuple[int, int, int, int, float] | None:
    """Read the JSON of a 4-bit matrix of bitsandbytes: rows, columns and block, and block and
    offset of its scales if these are quantised. None if something is missing.
    """
    try:
        said = json.loads(raw)
        sizes = [*said["shape"], said["blocksize"], said.get("nested_blocksize", 1)]
        offset = said["nested_offset"] if "nested_blocksize" in said else 0.0
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    known = all(type(size) is int and 0 < size < 1 << 31 for size in sizes)
    return (*sizes, offset) if known and len(sizes) == 4 and type(offset) is float else None


def with_matrices(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, object],
    read: Callable[[TensorInfo], bytes],
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors of a checkpoint with one entry for each quantised matrix in place of its
    pieces, and why others are refused, by module.

    read: reads the bytes of a small tensor; a few tensors of many layers are read.
    """
    formats = packed_modules(tensors, config)
    for name, info in tensors.items():
        scales = f"{name}_scale", f"{name}_scale_inv"
        if info.dtype.startswith("F8_E") and any(one in tensors for one in scales):
            formats.setdefault(owner_of(name)[0], FP8)
    known_formats = {one.name: one for one in FORMATS if one.layouts}
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items() if formats else ():
        owner, piece = owner_of(name)
        if formats.get(owner) in known_formats and piece != "bias":
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
    said = next(settings_in(config), {})
    for owner, pieces in modules.items():
        own = {info.name for info in pieces.values()}
        try:
            own_said = said.get(owner)  # MLX may say other things of one module
            settings = {**said, **own_said} if isinstance(own_said, dict) else said
            module = PackedModule(owner, pieces, settings, read_once)
            entry = known_formats[formats[owner]].matrix(module)
            if entry.name in tensors and entry.name not in own:
                raise _RefusedError("its matrix is there twice")
        except _RefusedError as why:
            refused[owner] = f"{formats[owner]} ({why})"
            continue
        found[next(iter(pieces.values())).name] = entry
        gone |= own
    left = (name for name in tensors if name in found or name not in gone)
    made = {one.name: one for one in (found.get(name, tensors[name]) for name in left)}
    matrices = {
        name: info.shape
        for name, info in made.items()
        if info.packing and len(info.shape) == 2 and not info.strides
    }
    # decoded are rows of outputs, and a model of Conv1D has rows of inputs
    for name, parts in place_tensors(matrices, config).items():
        if parts[0].transposed:
            made[name] = _turned(made[name])
    return made, refused


def _turned(info: TensorInfo) -> TensorInfo:
    """Return the decoded numbers transposed."""
    *stack, rows, cols = info.shape
    strides = (1, cols) if not stack else (rows * cols, 1, cols)
    return replace(info, shape=(*stack, cols, rows), strides=strides)
