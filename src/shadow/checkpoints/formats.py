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
BLOCK = (128, 128)  # rows and columns of blocks of 8-bit numbers where the config names none


Sizes = dict[str, Any]
"""Of the pieces of a module, by the words of its layout; contents of small pieces by role."""
Made = tuple[Shape, Shape]
"""The shape of what is decoded, and facts that the decoder needs."""
Read = Callable[[TensorInfo, TensorInfo], bytes]
"""The bytes of a small piece, or of another layer's beside a tensor like the second."""


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
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
    return data


@cache
def _formats() -> Sequence[Format]:
    return [
        Format(**one | {"layouts": [Layout(**layout) for layout in one.get("layouts", ())]})
        for one in _data()["formats"]
    ]


def _fit(pieces: Tensors, layout: Layout) -> tuple[bool, bool]:
    """Return whether a module has a layout's first piece, and whether it has all it needs."""
    (first, words), *_ = layout.pieces.items()
    has_first = first in pieces and pieces[first].dtype in _data()["types"][words.split()[1]]
    needed = {name for name, words in layout.pieces.items() if not words.startswith(OPTIONAL)}
    return has_first, needed <= pieces.keys()


def _matrix(
    owner: str, layout: Layout, pieces: Tensors, settings: Config, read: Read
) -> TensorInfo:
    """Make one entry for the matrix of a module, under its name without quantisation.

    settings: what config.json says about its format.
    """
    for key, known in layout.settings.items():
        said = str(settings.get(key) or known[0]).lower()
        _require(said in known, f"its {key} is {said[:20]!a}")
    sizes: Sizes = {}
    used: Tensors = {}
    others = dict(pieces)
    for name, words in layout.pieces.items():
        role, kind, *dimensions = words.removeprefix(OPTIONAL).split()
        _require(name in pieces or words.startswith(OPTIONAL), f"{name} is missing")
        if name in pieces:
            used[role] = piece = others.pop(name)
            _require(piece.dtype in _data()["types"][kind], f"{name} is {piece.dtype}")
            _measure(name, piece, dimensions, sizes)
            if role in READ:
                _require(piece.end - piece.start <= MAX_READ, f"{name} is too large")
                sizes[role] = read(piece, used["words"])
    unknown = next((name for name in others if name not in _data()["needless"]), "")
    _require(not unknown, f"{unknown} is unknown")
    shape, facts = MADE.get(layout.kind, _grouped)(layout, pieces, settings, sizes)
    raw, *rest = used.values()
    packing = Packing(layout.kind, raw, (*rest, *others.values()), facts, tuple(used))
    dtype = raw.dtype if raw.dtype.startswith("F8_") else layout.dtype.format(facts[0])
    name, strides = owner if "_blocks" in pieces else f"{owner}.weight", None
    if layout.is_turned:
        *stack, rows, cols = shape
        shape, strides = (*stack, cols, rows), (*(rows * cols for _ in stack), 1, cols)
    return TensorInfo(name, dtype, shape, raw.shard, raw.start, raw.end, strides, packing=packing)


def _measure(name: str, info: TensorInfo, words: Sequence[str], sizes: Sizes) -> None:
    """Add the sizes of a piece to those that are known, which it must match."""
    broken = info.problem or info.alias_of or info.strides or 0 in info.shape
    _require(not broken, f"{name} cannot be read")
    shape: list[object] = list(info.shape)
    if words and words[0].startswith("*"):
        count = max(0, len(shape) - len(words) + 1)
        shape[:count] = [tuple(shape[:count])]
    fits = len(words) == len(shape)
    for word, size in zip(words, shape, strict=False):
        fits = fits and size == (int(word) if word.isdecimal() else sizes.setdefault(word, size))
    _require(fits, f"{name} has the shape {info.shape}")


def _grouped(layout: Layout, pieces: Tensors, settings: Config, n: Sizes) -> Made:
    """Recognise a stream of bits along rows, with scales of groups of columns. facts: bits, 1,
    columns of a group, and what is added to zeros.
    """
    rows, groups, known = n["rows"], n["groups"], n.get("cols") or layout.group * n["groups"]
    if raw := n.get("stated"):
        half = len(raw) // 2
        stated = [int.from_bytes(one, "little") for one in (raw[:half], raw[half:])]
        _require(stated == [rows, known or stated[1]], "weight_shape does not fit")
        known = stated[1]
    found = []
    for bits in layout.bits:
        cols = known or 32 * n["words"] // bits
        along, down = (-(-size * bits // 32) for size in (cols, rows))
        fits = n.get("words", along) == along and n.get("zeros", down) == down
        fits = fits and n.get("bytes", cols * bits // 8) == cols * bits // 8
        fits = fits and math.prod(n.get("*one", ())) == 1
        if fits and (layout.kind != "mlx" or bits == settings.get("bits")):
            found.append((bits, cols))
    _require(len(found) == 1, f"its bits are unclear: none or several of {layout.bits} fit")
    ((bits, cols),) = found
    group = -(-cols // groups)
    has_order = {"g_idx", "weight_g_idx"} & pieces.keys()
    _require(has_order or group * groups == cols, "its groups do not fill the rows")
    # version 1 of GPTQ stores zeros less 1 (AutoGPTQ's qlinear_cuda.py)
    added = layout.kind == "gptq" and str(settings.get("checkpoint_format")).lower() != "gptq_v2"
    return (*n.get("*stack", ()), rows, cols), (bits, 1, group, int(added))


def _scaled(layout: Layout, pieces: Tensors, settings: Config, n: Sizes) -> Made:
    """Recognise 8-bit integers or floats with a scale for the matrix, each row, group or block.
    facts: 8, rows and columns of a block, 0.
    """
    rows, cols, stack = n["rows"], n["cols"], n.get("*stack", ())
    shape = n.get("*grid", (rows,))
    grid = shape if len(shape) > 1 else (*(shape or (1,)), 1)
    named, has_others = _named_blocks(settings)
    blocks = list(named)
    if "weight_scale_inv" in pieces:  # of blocks, unless the config says that there are none
        is_whole = settings.get("weight_block_size", BLOCK) is None
        blocks = blocks or [(rows, cols) if is_whole else BLOCK]
    elif has_others or not named:
        blocks = [(1, cols), (rows, cols), *named]
        if len(shape) > 1:
            blocks += [BLOCK, (1, max(1, cols // grid[-1]))]
    for high, wide in blocks:
        if grid == (*stack, -(-rows // high), -(-cols // wide)):
            return (*stack, rows, cols), (8, min(high, rows), min(wide, cols), 0)
    sizes = " or ".join(f"{high} x {wide}" for high, wide in named)
    beside = f", which blocks of {sizes} do not have" if named else ""
    raise _RefusedError(f"its scales have the shape {shape}{beside}")


def _named_blocks(settings: Config) -> tuple[list[tuple[int, int]], bool]:
    """Return the sizes of blocks that a config names, and whether it also names modules that have
    none.
    """
    said: list[Any] = [settings.get("weight_block_size")]
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            said.append(weights.get("block_structure"))
    sizes = []
    for size in said:
        if isinstance(size, str):  # as older files write it: 128x128
            size = [int(word) for word in re.findall(r"\d{1,18}", size)]
        if size is not None:
            is_pair = isinstance(size, list) and len(size) == 2
            fits = is_pair and all(type(side) is int and side > 0 for side in size)
            _require(fits, f"its blocks are {str(size)[:20]!a}")
            sizes.append((size[0], size[1]))
    return sizes, None in said[1:]


def _bitsandbytes_4bit(layout: Layout, pieces: Tensors, settings: Config, n: Sizes) -> Made:
    """Recognise NF4 and FP4. facts: entries of a block."""
    said = quant_state(n["state"])
    _require(said, "its quant_state has no shape or blocksize")
    (rows, cols, block, *_), raw, nested = said, pieces["weight"], pieces["weight.absmax"]
    fits = rows * cols == 2 * (raw.end - raw.start) and n["blocks"] == -(-rows * cols // block)
    _require(fits and cols % 2 == 0, "its quant_state has another shape")
    found = {"weight.nested_absmax", "weight.nested_quant_map"} & pieces.keys()
    _require(len(found) == 2 * (nested.dtype == "U8"), "its scales are not of one kind")
    return (rows, cols), (block,)


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
    """Return the format of every module of packed integers, by name, from tensors and config."""
    formats, said = _formats(), _said_format(config)
    ranks: dict[str, int] = {}
    unnamed: dict[str, str] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        rank = _rank(piece)
        if rank is not None and (
            not formats[rank].integers
            or INTEGERS.keys() & {info.dtype, tensors.get(f"{owner}.weight", info).dtype}
        ):
            ranks[owner] = min(rank, ranks.get(owner, rank))
        elif info.dtype in PACKING and piece == "weight":
            unnamed[owner] = said or "packed integers of an unknown format"
        elif info.dtype in PACKING and said and len(info.shape) >= 2:
            unnamed[name] = said
        elif info.dtype.startswith("F8_E"):
            scales = f"{name}_scale", f"{name}_scale_inv", f"{owner}.scale", f"{owner}.scale_weight"
            if not tensors.keys().isdisjoint(scales):
                unnamed[owner] = FP8
    named = {owner: formats[rank].name for owner, rank in ranks.items()}
    if said:  # the config knows which of two formats of the same names it is
        named |= {owner: said for owner, name in named.items() if said in name.split(" or ")}
    return unnamed | named


@lru_cache(4096)  # a model has few different pieces
def _rank(piece: str) -> int | None:
    return next((i for i, one in enumerate(_formats()) if re.fullmatch(one.marks, piece)), None)


def _said_format(config: Config) -> str | None:
    """Return what the config calls its quantisation, in known words; MLX names no method."""
    for said in settings_in(config):
        method = said.get("quant_method")
        if isinstance(method, str):
            return name_rules().quantization_methods.get(method, "a format that config.json names")
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


def quant_state(raw: bytes) -> tuple[Any, ...]:
    """Read the JSON of a 4-bit matrix of bitsandbytes: rows, columns and block, and block and
    offset (a float) of its scales if these are quantised. () if something is missing.
    """
    try:
        said = json.loads(raw)
        sizes = [*said["shape"], said["blocksize"], said.get("nested_blocksize", 1)]
        offset = said["nested_offset"] if "nested_blocksize" in said else 0.0
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return ()
    known = all(type(size) is int and 0 < size < 1 << 31 for size in sizes)
    return (*sizes, offset) if known and len(sizes) == 4 and type(offset) is float else ()


def with_matrices(
    tensors: Tensors, config: Config, read: Callable[[TensorInfo], bytes]
) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of a checkpoint with one entry for each quantised matrix in place of its
    pieces, and by module the formats of others, and why they are not decoded.

    read: reads the bytes of a small tensor; a few tensors of many layers are read.
    """
    formats = packed_modules(tensors, config)
    refused = {**formats}
    layouts = {one.name: one.layouts for one in _formats() if one.layouts}
    modules: dict[str, Tensors] = {}
    for name, info in tensors.items() if formats else ():
        owner, piece = owner_of(name)
        if formats.get(owner) in layouts and piece != "bias":
            modules.setdefault(owner, {})[piece] = info
    known: dict[tuple[object, ...], bytes] = {}

    def read_once(info: TensorInfo, of: TensorInfo) -> bytes:
        key = re.sub(r"\b\d+\b", "#", info.name), of.dtype, of.shape
        if key not in known:
            known[key] = read(info)
        return known[key]

    entries: dict[str, TensorInfo | None] = {}  # by the name of the first piece; None for others
    said = next(settings_in(config), {})
    for owner, pieces in modules.items():
        first, *others = (info.name for info in pieces.values())
        own = said.get(owner)  # MLX may say other things of one module
        settings = said | own if isinstance(own, dict) else said
        layout = max(layouts[formats[owner]], key=partial(_fit, pieces))
        try:
            entry = _matrix(owner, layout, pieces, settings, read_once)
            is_new = entry.name not in tensors or entry.name in (first, *others)
            _require(is_new, "its matrix occurs twice")
        except _RefusedError as why:
            refused[owner] = f"{formats[owner]} ({why})"
        else:
            for name in (owner, first, *others):
                refused.pop(name, None)
            entries |= {**dict.fromkeys(others), first: entry}
    made = (entries.get(name, info) for name, info in tensors.items())
    return {one.name: one for one in made if one}, refused
