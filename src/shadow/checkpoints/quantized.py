"""Modules whose weights are packed integers: found by names beside them, dtype and config.json.

The singular values of packed integers would be those of the packing, so their tensors are never
measured as they are. `packed_layouts` makes matrices of those that can be decoded. The formats are
data (`packed` in `registry/names.yaml`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import INTEGERS
from shadow.places.names import Facts, name_rules

# `x.weight.absmax` and `x_blocks` belong to x as `x.scales` does
PIECE = re.compile(
    r"(?P<owner>.+)(?:\.(?P<nested>weight\.(?!weight$|bias$).+)|(?P<joined>_(?:blocks|scales)))"
)
UNKNOWN = "packed integers of an unknown format"
PACKING = ("U8", "I8", "I32", "U32")  # what packed integers come in; 64-bit ones are indices


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
    rules = name_rules()
    said = _said_format(config)
    ranks: dict[str, int] = {}
    unnamed: dict[str, str] = {}
    known: dict[str, int | None] = {}
    for name, info in tensors.items():
        owner, piece = owner_of(name)
        if piece not in known:
            known[piece] = next(
                (i for i, sign in enumerate(rules.packed) if sign.names.fullmatch(piece)), None
            )
        rank = known[piece]
        if rank is not None and (
            not rules.packed[rank].integers
            or INTEGERS.keys() & {info.dtype, tensors.get(f"{owner}.weight", info).dtype}
        ):
            ranks[owner] = min(rank, ranks.get(owner, rank))
        elif info.dtype in PACKING and piece == "weight":
            unnamed[owner] = said or UNKNOWN
        elif info.dtype in PACKING and said and len(info.shape) >= 2:
            unnamed[name] = said
    formats = {owner: rules.packed[rank].format for owner, rank in ranks.items()}
    if said:  # the config knows which of two formats of the same names it is
        named_so = [owner for owner, name in formats.items() if said in name.split(" or ")]
        formats |= dict.fromkeys(named_so, said)
    return unnamed | formats


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


def said_settings(config: Mapping[str, object], module: str) -> Mapping[str, object]:
    """What the config says of its quantisation; MLX may say other things of one module."""
    for said in settings_in(config):
        of_module = said.get(module)
        return {**said, **of_module} if isinstance(of_module, dict) else said
    return {}


def settings_in(config: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """What a config says of quantisation, in all places where one may."""
    for section in (config, Facts(config).section("language")):
        for key in name_rules().quantization_keys:
            said = section.get(key)
            if isinstance(said, dict):
                yield said


def quant_state(raw: bytes) -> dict[str, object]:
    """What bitsandbytes says of a 4-bit matrix in a tensor of JSON; empty where it is none."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
