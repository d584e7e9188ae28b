"""Quantised formats of safetensors files: which format a module has, and how its tensors make a
matrix, by the entries of formats.yaml. `decoders` makes the numbers.

The singular values of packed integers would be those of the packing, so their tensors are never
measured as they are. A layout is read from names, dtypes and shapes; from config.json only where
these do not say. What does not fit is refused with a reason, and its tensors are left unchanged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from shadow.checkpoints.safetensors_files import Packing, TensorInfo, Tensors
from shadow.dtypes import INTEGERS
from shadow.places.names import Config, Facts, Shape, name_rules

PACKING = ("U8", "I8", "I32", "U32")  # what packed integers come in; 64-bit ones are indices
FP8 = "8-bit floats"
READ = ("stated", "state")  # roles of small pieces that say what others do not
MAX_READ = 1 << 16  # bytes of one; real ones have 100
OPTIONAL = "optional "
ORDERS = ("g_idx", "weight_g_idx")  # pieces that say the group of each column
BLOCK = (128, 128)  # rows and columns of blocks of 8-bit numbers where the config names none


Sizes = dict[str, Any]
"""Of the pieces of a module, by the words of its layout; contents of small pieces by role."""
Made = tuple[Shape, Shape]
"""The shape of what is decoded, and facts that the decoder needs."""
Read = Callable[[TensorInfo, TensorInfo], bytes]
"""The bytes of a small piece, or of another layer's beside a tensor like the second."""


Filled = tuple[int, int, int]
"""Bytes of a block, start and stop, and what is put into each."""


class _RefusedError(Exception):
    """Reason why a module cannot be decoded."""


def _require(holds: object, what: str) -> None:
    if not holds:
        raise _RefusedError(what)


@dataclass(frozen=True)
class Layout:
    """The tensors that make up the matrix of a module, as formats.yaml describes them."""

    kind: str
    dtype: str
    pieces: Mapping[str, str]
    bits: Sequence[int] = (4,)
    group: int = 0
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_turned: bool = False


@dataclass(frozen=True)
class Format:
    """A format, as formats.yaml describes it."""

    name: str
    marks: str = "(?!)"
    layouts: Sequence[Layout] = ()
    integers: bool = False


@cache
def _data() -> dict[str, Any]:
    path = Path(__file__).with_suffix(".yaml")
    data: dict[str, Any] = yaml.safe_load(path.read_bytes())
    return data


def even_grids() -> Mapping[str, Sequence[Filled]]:
    """By type of GGUF with an even grid, the bytes of a block that hold the quants: start and stop,
    and what they are where every quant is 1.
    """
    grids: Mapping[str, Sequence[Filled]] = _data()["even_grids"]
    return grids


@cache
def _formats() -> Sequence[Format]:
    formats = []
    for entry in _data()["formats"]:
        listed = entry.get("layouts", ())
        layouts = [Layout(**layout) for layout in listed]
        formats.append(Format(**entry | {"layouts": layouts}))
    return formats


def _fit(pieces: Tensors, layout: Layout) -> tuple[bool, bool]:
    """Two flags: a module has a layout's first piece, and all that the layout needs."""
    first, *_ = layout.pieces
    _, kind, *_ = layout.pieces[first].split()
    piece = pieces.get(first)
    has_first = piece is not None and piece.dtype in _types(kind)
    needed = [name for name, words in layout.pieces.items() if not words.startswith(OPTIONAL)]
    return has_first, pieces.keys() >= {*needed}


def _types(kind: str) -> Sequence[str]:
    """The dtypes of pieces of a kind."""
    types: Sequence[str] = _data()["types"][kind]
    return types


def _matrix(
    owner: str, layout: Layout, pieces: Tensors, settings: Config, read: Read
) -> TensorInfo:
    """Make one entry for the matrix of a module, under its name without quantisation.

    settings: what config.json says about its format.
    """
    for key, known in layout.settings.items():
        value = settings.get(key) or known[0]
        setting = str(value).lower()
        _require(setting in known, f"its {key} is {setting[:20]!a}")
    sizes: Sizes = {}
    used: Tensors = {}
    others = dict(pieces)
    for name, words in layout.pieces.items():
        role, kind, *dimensions = words.removeprefix(OPTIONAL).split()
        piece = others.pop(name, None)
        if piece is None:
            _require(words.startswith(OPTIONAL), f"{name} is missing")
            continue
        used[role] = piece
        _require(piece.dtype in _types(kind), f"{name} is {piece.dtype}")
        _measure(name, piece, dimensions, sizes)
        if role in READ:
            size = piece.end - piece.start
            _require(size <= MAX_READ, f"{name} is too large")
            sizes[role] = read(piece, used["words"])
    needless = _data()["needless"]
    for name in others:
        _require(name in needless, f"{name} is unknown")
    recognise = MADE.get(layout.kind, _grouped)
    shape, facts = recognise(layout, pieces, settings, sizes)
    raw, *rest = used.values()
    beside = (*rest, *others.values())
    packing = Packing(layout.kind, raw, beside, facts, tuple(used))
    dtype = raw.dtype
    if not dtype.startswith("F8_"):
        dtype = layout.dtype.format(facts[0])
    name = owner if "_blocks" in pieces else f"{owner}.weight"
    strides = None
    if layout.is_turned:
        *stack, rows, cols = shape
        shape = (*stack, cols, rows)
        matrices = [rows * cols] * len(stack)
        strides = (*matrices, 1, cols)
    return TensorInfo(name, dtype, shape, raw.shard, raw.start, raw.end, strides, packing=packing)


def _measure(name: str, info: TensorInfo, words: Sequence[str], sizes: Sizes) -> None:
    """Add the sizes of a piece to those that are known, which it must match."""
    is_broken = info.problem or info.alias_of or info.strides or 0 in info.shape
    _require(not is_broken, f"{name} cannot be read")
    shape: list[object] = list(info.shape)
    if words and words[0].startswith("*"):
        count = max(0, len(shape) - len(words) + 1)
        leading = tuple(shape[:count])
        shape[:count] = [leading]
    fault = f"{name} has the shape {info.shape}"
    _require(len(words) == len(shape), fault)
    for word, size in zip(words, shape, strict=True):
        if word.isdecimal():
            _require(size == int(word), fault)
        else:
            _require(size == sizes.setdefault(word, size), fault)


def _grouped(layout: Layout, pieces: Tensors, settings: Config, sizes: Sizes) -> Made:
    """Recognise a stream of bits along rows, with scales of groups of columns. facts: bits, 1,
    columns of a group, and what is added to zeros.
    """
    rows = sizes["rows"]
    groups = sizes["groups"]
    known = sizes.get("cols") or layout.group * groups
    raw = sizes.get("stated")
    if raw:
        half = len(raw) // 2
        stated_rows = int.from_bytes(raw[:half], "little")
        stated_cols = int.from_bytes(raw[half:], "little")
        fits = stated_rows == rows and known in (0, stated_cols)
        _require(fits, "weight_shape does not fit")
        known = stated_cols
    fitting = []
    for bits in layout.bits:
        cols = known or 32 * sizes["words"] // bits
        expected = {
            "words": -(-cols * bits // 32),
            "zeros": -(-rows * bits // 32),
            "bytes": cols * bits // 8,
        }
        fits = math.prod(sizes.get("*one", ())) == 1
        for word, size in expected.items():
            stored = sizes.get(word, size)
            fits = fits and stored == size
        if layout.kind == "mlx":
            fits = fits and bits == settings.get("bits")
        if fits:
            fitting.append((bits, cols))
    _require(len(fitting) == 1, f"its bits are unclear: none or several of {layout.bits} fit")
    ((bits, cols),) = fitting
    group = -(-cols // groups)
    has_order = not pieces.keys().isdisjoint(ORDERS)
    _require(has_order or group * groups == cols, "its groups do not fill the rows")
    added = 0
    if layout.kind == "gptq":
        # version 1 stores zeros less 1 (AutoGPTQ's qlinear_cuda.py)
        version = str(settings.get("checkpoint_format")).lower()
        added = int(version != "gptq_v2")
    stack = sizes.get("*stack", ())
    return (*stack, rows, cols), (bits, 1, group, added)


def _scaled(layout: Layout, pieces: Tensors, settings: Config, sizes: Sizes) -> Made:
    """Recognise 8-bit integers or floats with a scale for the matrix, each row, group or block.
    facts: 8, rows and columns of a block, 0.
    """
    rows = sizes["rows"]
    cols = sizes["cols"]
    stack = sizes.get("*stack", ())
    shape = sizes.get("*grid", (rows,))
    grid = shape
    if len(shape) < 2:
        grid = (*(shape or (1,)), 1)
    named, has_others = _named_blocks(settings)
    blocks = list(named)
    if "weight_scale_inv" in pieces:  # of blocks, unless the config says that there are none
        is_whole = settings.get("weight_block_size", BLOCK) is None
        usual = (rows, cols) if is_whole else BLOCK
        blocks = blocks or [usual]
    elif has_others or not named:
        blocks = [(1, cols), (rows, cols), *named]
        if len(shape) > 1:
            wide = max(1, cols // grid[-1])
            blocks += [BLOCK, (1, wide)]
    for high, wide in blocks:
        down = -(-rows // high)
        along = -(-cols // wide)
        if grid == (*stack, down, along):
            facts = (8, min(high, rows), min(wide, cols), 0)
            return (*stack, rows, cols), facts
    fault = f"its scales have the shape {shape}"
    if named:
        listed = " or ".join(f"{high} x {wide}" for high, wide in named)
        fault += f", which blocks of {listed} do not have"
    raise _RefusedError(fault)


def _named_blocks(settings: Config) -> tuple[list[tuple[int, int]], bool]:
    """The sizes of blocks that a config names, and whether it also names modules that have
    none.
    """
    stated: list[Any] = [settings.get("weight_block_size")]
    groups = settings.get("config_groups")
    if not isinstance(groups, dict):
        groups = {}
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            stated.append(weights.get("block_structure"))
    sizes = []
    for size in stated:
        if isinstance(size, str):  # as older files write it: 128x128
            words = re.findall(r"\d{1,18}", size)
            size = [int(word) for word in words]
        if size is not None:
            is_pair = isinstance(size, list) and len(size) == 2
            fits = is_pair and all(type(side) is int and side > 0 for side in size)
            _require(fits, f"its blocks are {str(size)[:20]!a}")
            sizes.append(tuple(size))
    return sizes, None in stated[1:]


def _bitsandbytes_4bit(layout: Layout, pieces: Tensors, settings: Config, sizes: Sizes) -> Made:
    """Recognise NF4 and FP4. facts: entries of a block."""
    state = quant_state(sizes["state"])
    _require(state, "its quant_state has no shape or blocksize")
    rows, cols, block, *_ = state
    raw = pieces["weight"]
    entries = rows * cols
    stored = 2 * (raw.end - raw.start)
    fits = cols % 2 == 0 and entries == stored
    fits = fits and sizes["blocks"] == -(-entries // block)
    _require(fits, "its quant_state has another shape")
    nested = NESTED & pieces.keys()
    scales = pieces["weight.absmax"]
    count = len(NESTED) if scales.dtype == "U8" else 0
    _require(len(nested) == count, "its scales are not of one kind")
    return (rows, cols), (block,)


NESTED = {"weight.nested_absmax", "weight.nested_quant_map"}  # of scales that are quantised too
MADE = {"bitsandbytes-4bit": _bitsandbytes_4bit, "scaled": _scaled, "llm.int8": _scaled}


def owner_of(name: str) -> tuple[str, str]:
    """(module, piece) of a name; the module of `x.scales`, `x.weight.absmax`, `x_blocks` is x."""
    if name.endswith(("_blocks", "_scales")):
        return name[:-7], name[-7:]
    owner, _, nested = name.rpartition(".weight.")
    if owner and nested not in ("weight", "bias"):
        return owner, f"weight.{nested}"
    owner, _, piece = name.rpartition(".")
    return owner, piece


def packed_modules(tensors: Tensors, config: Config) -> dict[str, str]:
    """The format of every module of packed integers, by name, from tensors and config."""
    formats = _formats()
    stated = _stated_format(config)
    ranks: dict[str, int] = {}
    unnamed: dict[str, str] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        rank = _rank(piece)
        if rank is not None and formats[rank].integers:
            weight = tensors.get(f"{owner}.weight", info)
            dtypes = {info.dtype, weight.dtype}
            if INTEGERS.keys().isdisjoint(dtypes):
                rank = None
        if rank is not None:
            ranks[owner] = min(rank, ranks.get(owner, rank))
        elif info.dtype in PACKING and piece == "weight":
            unnamed[owner] = stated or "packed integers of an unknown format"
        elif info.dtype in PACKING and stated and len(info.shape) >= 2:
            unnamed[name] = stated
        elif info.dtype.startswith("F8_E"):
            scales = [f"{name}_scale", f"{name}_scale_inv"]
            scales += [f"{owner}.scale", f"{owner}.scale_weight"]
            if not tensors.keys().isdisjoint(scales):
                unnamed[owner] = FP8
    named: dict[str, str] = {}
    for owner, rank in ranks.items():
        format_name = formats[rank].name
        # the config knows which of two formats of the same names it is
        if stated and stated in format_name.split(" or "):
            format_name = stated
        named[owner] = format_name
    return unnamed | named


@lru_cache(4096)  # a model has few different pieces
def _rank(piece: str) -> int | None:
    for rank, known in enumerate(_formats()):
        if re.fullmatch(known.marks, piece):
            return rank
    return None


def _stated_format(config: Config) -> str | None:
    """Name the quantisation of a config in known words; MLX names no method."""
    methods = name_rules().quantization_methods
    for settings in settings_in(config):
        method = settings.get("quant_method")
        if isinstance(method, str):
            return methods.get(method, "a format that config.json names")
        if method is None and type(settings.get("bits")) is int:
            return "MLX"
    return None


def settings_in(config: Config) -> Iterator[dict[str, object]]:
    """Yield what a config says about quantisation, wherever it may say so."""
    inner = Facts(config).section("language")
    for section in (config, inner):
        for key in name_rules().quantization_keys:
            settings = section.get(key)
            if isinstance(settings, dict):
                yield settings


def quant_state(raw: bytes) -> tuple[Any, ...]:
    """Read the JSON of a 4-bit matrix of bitsandbytes: rows, columns and block, and block and
    offset (a float) of its scales if these are quantised. () if something is missing.
    """
    try:
        state = json.loads(raw)
        nested = state.get("nested_blocksize", 1)
        sizes = [*state["shape"], state["blocksize"], nested]
        offset = state["nested_offset"] if "nested_blocksize" in state else 0.0
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return ()
    for size in sizes:
        is_number = type(size) is int
        if not is_number or not 0 < size < 1 << 31:
            return ()
    if len(sizes) != 4 or type(offset) is not float:
        return ()
    return (*sizes, offset)


def with_matrices(
    tensors: Tensors, config: Config, read: Callable[[TensorInfo], bytes]
) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a checkpoint with one entry for each quantised matrix in place of its
    pieces, and by module the formats of others, and why they are not decoded.

    read: reads the bytes of a small tensor; a few tensors of many layers are read.
    """
    formats = packed_modules(tensors, config)
    if not formats:
        return dict(tensors), {}
    refused = {**formats}
    layouts = {known.name: known.layouts for known in _formats() if known.layouts}
    modules: dict[str, Tensors] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        if formats.get(owner) in layouts and piece != "bias":
            of_module = modules.setdefault(owner, {})
            of_module[piece] = info
    contents: dict[tuple[object, ...], bytes] = {}

    def read_once(info: TensorInfo, beside: TensorInfo) -> bytes:
        pattern = re.sub(r"\b\d+\b", "#", info.name)
        key = (pattern, beside.dtype, beside.shape)
        if key not in contents:
            contents[key] = read(info)
        return contents[key]

    entries: dict[str, TensorInfo | None] = {}  # by the name of the first piece; None for others
    stated = next(settings_in(config), {})
    for owner, pieces in modules.items():
        names = [info.name for info in pieces.values()]
        own = stated.get(owner)  # MLX may say other things of one module
        settings = stated | own if isinstance(own, dict) else stated
        fit = partial(_fit, pieces)
        layout = max(layouts[formats[owner]], key=fit)
        try:
            entry = _matrix(owner, layout, pieces, settings, read_once)
            is_new = entry.name not in tensors or entry.name in names
            _require(is_new, "its matrix occurs twice")
        except _RefusedError as why:
            refused[owner] = f"{formats[owner]} ({why})"
            continue
        for name in (owner, *names):
            refused.pop(name, None)
        entries |= dict.fromkeys(names)
        entries[names[0]] = entry
    matrices: Tensors = {}
    for name, info in tensors.items():
        matrix = entries.get(name, info)
        if matrix is not None:
            matrices[matrix.name] = matrix
    return matrices, refused
