"""Quantised formats of safetensors files, an entry each: how its modules are recognised, and how
their tensors make a matrix. `decoders` makes its numbers.

The singular values of packed integers would be those of the packing, so their tensors are never
measured as they are. A layout is read from names, dtypes and shapes; from config.json only where
these do not say. What does not fit is refused with a reason, and its tensors are left unchanged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from shadow.checkpoints.safetensors_files import Packing, TensorInfo, Tensors
from shadow.dtypes import INTEGERS
from shadow.places.names import Config, Facts, Shape, name_rules

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
READ = ("stated", "state")  # roles of small pieces that say what others do not
MAX_READ = 1 << 16  # bytes of one; real ones have 100
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
    pieces: Tensors
    settings: Config
    read: Callable[[TensorInfo, TensorInfo], bytes]
    """The bytes of a small piece, or of another layer's beside a tensor like the second."""


Sizes = dict[str, Any]
"""Of the pieces of a module, by the words of `Layout.pieces`; contents of small pieces by role."""


@dataclass(frozen=True)
class Layout:
    """The tensors that make up the matrix of a module."""

    kind: str  # which decoder of `decoders` makes its numbers
    dtype: str  # what its matrices are called; `{}` stands for their bits
    pieces: str
    """Of each its name, `?` behind what may be missing; its role, its type (`DTYPES`) and its
    dimensions. Equal words are equal sizes; `*` are any number of them. The first has the numbers.
    """
    made: Callable[[Layout, PackedModule, Sizes], tuple[Shape, Shape]]
    """The shape of what is decoded, and facts that the decoder needs."""
    bits: Sequence[int] = (4,)  # that it may have
    bits_of: Callable[[PackedModule, Sizes], object] = lambda m, n: 4
    group: int = 0  # columns that share a scale, where the format says it
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What config.json may say, the first where it says nothing."""
    is_turned: bool = False  # the model has the transposes of its matrices

    def fits(self, m: PackedModule) -> int:
        """Return 2 for a module with all the format needs, 1 with its first piece, otherwise 0."""
        (name, _, kind, *_), *_ = every = _words(self.pieces)
        if name not in m.pieces or m.pieces[name].dtype not in DTYPES[kind]:
            return 0
        return 1 + all(one in m.pieces for one, *_ in every if one[-1] != "?")

    def matrix(self, m: PackedModule) -> TensorInfo:
        """Make one entry for a matrix, under its name without quantisation."""
        for key, known in self.settings.items():
            said = str(m.settings.get(key) or known[0]).lower()
            _require(said in known, f"its {key} is {said[:20]!a}")
        sizes: Sizes = {}
        used: Tensors = {}
        beside = dict(m.pieces)
        for key, role, kind, *words in _words(self.pieces):
            name = key.rstrip("?")
            _require(name in m.pieces or key != name, f"{name} is missing")
            if name in m.pieces:
                used[role] = piece = beside.pop(name)
                _fit(name, piece, DTYPES[kind], words, sizes)
                if role in READ:
                    _require(piece.end - piece.start <= MAX_READ, f"{name} is too large")
                    sizes[role] = m.read(piece, used["words"])
        unknown = next((name for name in beside if name not in NEEDLESS), "")
        _require(not unknown, f"{unknown} is unknown")
        shape, facts = self.made(self, m, sizes)
        raw, *rest = used.values()
        packing = Packing(self.kind, raw, (*rest, *beside.values()), facts, tuple(used))
        dtype = raw.dtype if raw.dtype.startswith("F8_") else self.dtype.format(facts[0])
        name, strides = m.name if "_blocks" in m.pieces else f"{m.name}.weight", None
        if self.is_turned:
            *stack, rows, cols = shape
            shape, strides = (*stack, cols, rows), (*(rows * cols for _ in stack), 1, cols)
        return TensorInfo(
            name, dtype, shape, raw.shard, raw.start, raw.end, strides, packing=packing
        )


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


def _grouped(layout: Layout, m: PackedModule, n: Sizes) -> tuple[Shape, Shape]:
    """Recognise a stream of bits along rows, with scales of groups of columns. facts: bits, 1,
    columns of a group, and what is added to zeros.
    """
    if raw := n.get("stated"):
        half = len(raw) // 2
        rows, cols = (int.from_bytes(one, "little") for one in (raw[:half], raw[half:]))
        _require(rows == n["rows"] and n.get("cols", cols) == cols > 0, "weight_shape does not fit")
        n = n | {"cols": cols}
    bits = layout.bits_of(m, n)
    if type(bits) is not int or bits not in layout.bits:
        raise _RefusedError(f"its bits are not {', '.join(map(str, layout.bits))}")
    rows, groups = n["rows"], n["groups"]
    cols = n.get("cols") or layout.group * groups or 32 * n["words"] // bits
    along, down = (-(-size * bits // 32) for size in (cols, rows))
    fits = n.get("words", along) == along and n.get("zeros", down) == down
    fits = fits and n.get("bytes", cols * bits // 8) == cols * bits // 8
    _require(fits and math.prod(n.get("*one", ())) == 1, f"its tensors are not of {bits} bits")
    group = -(-cols // groups)
    has_order = not m.pieces.keys().isdisjoint(("g_idx", "weight_g_idx"))
    _require(has_order or group * groups == cols, "its groups do not fill the rows")
    # version 1 of GPTQ stores zeros less 1 (AutoGPTQ's qlinear_cuda.py)
    version = str(m.settings.get("checkpoint_format")).lower()
    added = layout.kind == "gptq" and version != "gptq_v2"
    return (*n.get("*stack", ()), rows, cols), (bits, 1, group, int(added))


def _scaled(layout: Layout, m: PackedModule, n: Sizes) -> tuple[Shape, Shape]:
    """Recognise 8-bit integers or floats with a scale for the matrix, each row, group or block.
    facts: 8, rows and columns of a block, 0.
    """
    rows, cols, stack, grid = n["rows"], n["cols"], n.get("*stack", ()), n.get("*grid", ())
    is_inverse = "weight_scale_inv" in m.pieces  # DeepSeek-V3's, always of blocks
    high, wide = 1, -(-cols // (grid[-1] if len(grid) == 2 else 1))
    if not is_inverse and "SCB" not in m.pieces and math.prod(grid) == 1:
        high, wide = rows, cols
    elif is_inverse or grid not in ((), (rows,), (rows, 1)):
        high, wide = _block_of(m.settings, (128, 128) if is_inverse else (high, wide))
        fits = grid == (*stack, -(-rows // high), -(-cols // wide))
        _require(fits, f"weight_scale{'_inv' * is_inverse} has the shape {grid}")
    return (*stack, rows, cols), (8, high, wide, 0)


def _block_of(settings: Config, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns that share a scale, if config.json gives them."""
    groups = settings.get("config_groups")
    said = [settings.get("weight_block_size")]
    for one in groups.values() if isinstance(groups, dict) else ():
        weights = one.get("weights") if isinstance(one, dict) else None
        said.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    for block in said:
        sizes = block if isinstance(block, list) else []
        if len(sizes) == 2 and all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
            return sizes[0], sizes[1]
    return otherwise


def _bitsandbytes_4bit(layout: Layout, m: PackedModule, n: Sizes) -> tuple[Shape, Shape]:
    """Recognise NF4 and FP4. facts: entries of a block."""
    said = quant_state(n["state"])
    if said is None:
        raise _RefusedError("its quant_state has no shape or blocksize")
    (rows, cols, block, *_), raw, nested = said, m.pieces["weight"], m.pieces["weight.absmax"]
    fits = rows * cols == 2 * (raw.end - raw.start) and cols % 2 == 0
    fits = fits and n["blocks"] == -(-rows * cols // block)
    _require(fits, "its quant_state has another shape")
    found = {"weight.nested_absmax", "weight.nested_quant_map"} & m.pieces.keys()
    _require(len(found) == 2 * (nested.dtype == "U8"), "its scales are not of one kind")
    return (rows, cols), (block,)


@dataclass(frozen=True)
class Format:
    """Rules for recognising and reading the modules of a format."""

    name: str
    marks: str  # pattern of pieces that only its modules have
    layouts: Sequence[Layout] = ()  # without one its modules are refused
    integers: bool = False  # such a piece, or the module's `weight`, must be of an integer type


NOBODY = "(?!)"  # recognised by what config.json says
SCALED = Layout(
    "scaled", "INT8",
    "weight words 8 rows cols, weight_scale scales S *grid, weight_zero_point? zeros C *grid",
    _scaled,
)  # fmt: skip
FORMATS = (  # the first of which a module has a piece names its format
    Format(
        "bitsandbytes 4-bit",
        r"weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)",
        [
            Layout(
                "bitsandbytes-4bit", kind,
                "weight words Q bytes 1, weight.absmax scales Q blocks,"
                f"weight.quant_state.bitsandbytes__{kind.lower()} state B some,"
                "weight.nested_absmax? outer S outer, weight.nested_quant_map? codes S 256",
                _bitsandbytes_4bit,
            ) for kind in ("NF4", "FP4")
        ],
    ),
    Format("bitsandbytes 8-bit", "SCB|weight_format", [
        Layout("llm.int8", "INT8",
               "weight words C rows cols, SCB scales S rows, weight_format? layout B", _scaled),
    ]),
    Format(
        "compressed-tensors", "weight_packed|weight_shape|weight_zero_point|weight_g_idx",
        [
            Layout(
                "pack-quantized", "INT{}", "weight_packed words W rows words,"
                "weight_scale scales S rows groups, weight_shape stated I 2,"
                "weight_zero_point? zeros W zeros groups, weight_g_idx? order I cols",
                _grouped, (2, 4, 8), lambda _, n: next(
                    (bits for bits in (2, 4, 8) if -(-n["cols"] * bits // 32) == n["words"]), 0
                ),
            ),
            Layout("e2m1", "NVFP4", "weight_packed words B rows bytes,"
                   "weight_scale scales E rows groups, weight_global_scale divisor S *one",
                   _grouped, group=16),
            Layout("e2m1", "MXFP4", "weight_packed words B rows bytes,"
                   "weight_scale scales B rows groups", _grouped, group=32),
            SCALED,
        ],
    ),
    Format("MXFP4", "_blocks", [  # of GPT-OSS
        Layout("e2m1", "MXFP4", "_blocks words B *stack rows groups 16,"
               "_scales scales B *stack rows groups", _grouped, group=32, is_turned=True),
    ], integers=True),
    Format("GPTQ", "g_idx", [
        Layout(
            "gptq", "GPTQ-{}", "qweight words W words rows, qzeros zeros W groups zeros,"
            "scales scales S groups rows, g_idx? order I cols",
            _grouped, (2, 3, 4, 8), lambda _, n: 32 * n["zeros"] // n["rows"],
            settings={"quant_method": ["gptq"], "checkpoint_format": ["gptq", "gptq_v2"]},
        ),
    ]),
    Format("GPTQ or AWQ", "qweight|qzeros"),  # as config.json says
    Format("AWQ", NOBODY, [  # AutoAWQ's packing_utils.py
        Layout("awq", "AWQ-{}", "qweight words W cols zeros, qzeros zeros W groups zeros,"
               "scales scales S groups rows", _grouped,
               settings={"quant_method": ["awq"], "version": ["gemm"]}),
    ]),
    Format("MLX", "biases", [
        Layout("mlx", "MLX-{}", "weight words W *stack rows words,"
               "scales scales S *stack rows groups, biases biases S *stack rows groups",
               _grouped, (2, 3, 4, 5, 6, 8), lambda m, _: m.settings.get("bits"),
               settings={"mode": ["affine"]}),
        Layout("e2m1", "MXFP4", "weight words W *stack rows words,"
               "scales scales B *stack rows groups", _grouped, group=32),
    ], integers=True),
    Format("NVFP4", "weight_scale_2", [  # of ModelOpt
        Layout("e2m1", "NVFP4", "weight words B rows bytes, weight_scale scales E rows groups,"
               "weight_scale_2 factor S *one", _grouped, group=16),
    ], integers=True),
    Format(FP8, NOBODY, [
        SCALED,
        Layout("scaled", "INT8", "weight words 8 *stack rows cols,"
               "weight_scale_inv scales S *grid", _scaled),
    ]),
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


def packed_modules(tensors: Tensors, config: Config) -> dict[str, str]:
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
        elif info.dtype.startswith("F8_E") and any(
            one in tensors
            for one in (
                *(f"{name}_scale", f"{name}_scale_inv"),
                *(f"{owner}.scale", f"{owner}.scale_weight"),
            )
        ):
            unnamed[owner] = FP8
    formats = {owner: FORMATS[rank].name for owner, rank in ranks.items()}
    if said:  # the config knows which of two formats of the same names it is
        named_so = [owner for owner, name in formats.items() if said in name.split(" or ")]
        formats |= dict.fromkeys(named_so, said)
    return unnamed | formats


@lru_cache(4096)  # a model has few different pieces
def _rank(piece: str) -> int | None:
    return next((i for i, one in enumerate(FORMATS) if re.fullmatch(one.marks, piece)), None)


def _said_format(config: Config) -> str | None:
    """Return what the config calls its quantisation, in known words; MLX names no method."""
    methods = name_rules().quantization_methods
    for said in settings_in(config):
        method = said.get("quant_method")
        if isinstance(method, str):
            return methods.get(method, "a format that config.json names")
        if method is None and type(said.get("bits")) is int:
            return "MLX"
    return None


def settings_in(config: Config) -> Iterator[dict[str, object]]:
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
    tensors: Tensors,
    config: Config,
    read: Callable[[TensorInfo], bytes],
) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of a checkpoint with one entry for each quantised matrix in place of its
    pieces, and by module the formats of others, and why they are not decoded.

    read: reads the bytes of a small tensor; a few tensors of many layers are read.
    """
    refused = packed_modules(tensors, config)
    layouts = {one.name: one.layouts for one in FORMATS if one.layouts}
    modules: dict[str, Tensors] = {}
    for name, info in tensors.items() if refused else ():
        owner, piece = owner_of(name)
        if refused.get(owner) in layouts and piece != "bias":
            modules.setdefault(owner, {})[piece] = info
    known: dict[tuple[object, ...], bytes] = {}

    def read_once(info: TensorInfo, of: TensorInfo) -> bytes:
        key = re.sub(r"\d+", "#", info.name), of.dtype, of.shape
        if key not in known:
            known[key] = read(info)
        return known[key]

    entries: dict[str, TensorInfo | None] = {}  # by the name of the first piece; None for others
    said = next(settings_in(config), {})
    for owner, pieces in modules.items():
        first, *others = (info.name for info in pieces.values())
        own_said = said.get(owner)  # MLX may say other things of one module
        settings = {**said, **own_said} if isinstance(own_said, dict) else said
        module = PackedModule(owner, pieces, settings, read_once)
        try:
            best = max(layouts[refused[owner]], key=lambda one: one.fits(module))
            entry = best.matrix(module)
            if entry.name in tensors and entry.name not in (first, *others):
                raise _RefusedError("its matrix occurs twice")
        except _RefusedError as why:
            refused[owner] += f" ({why})"
        else:
            for name in (owner, first, *others):
                refused.pop(name, None)
            entries |= {**dict.fromkeys(others), first: entry}
    made = (entries.get(name, info) for name, info in tensors.items())
    return {one.name: one for one in made if one}, refused
