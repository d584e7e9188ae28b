"""Modules and state dicts as checkpoints: read in place, one tensor at a time.

A tensor that is on a card, or not contiguous, is copied while it is read; the copy is not kept.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shadow.checkpoints.formats import packed_modules
from shadow.checkpoints.held_files import HeldFile
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo, Tensors
from shadow.checkpoints.sources import Source
from shadow.checkpoints.weight_files import Adapter, read_adapter
from shadow.dtypes import FLOATS, INTEGERS, torch_name
from shadow.errors import ShadowError, UsageError
from shadow.places.names import Config
from shadow.targets.references import Reference

SHARD = "memory"
PIECE = 1 << 10  # bytes of each end of a tensor that its fingerprint looks at
PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
WORDS = {getattr(torch, torch_name(word)): word for word in (*FLOATS, *INTEGERS)}


@dataclass(frozen=True)
class _Bytes:
    """The bytes of a tensor, read like those of a file."""

    content: memoryview

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, into: memoryview) -> None:
        into[:] = self.content[start : start + len(into)]

    def read_runs(self, starts: Sequence[int], into: memoryview) -> None:
        width = len(into) // max(1, len(starts))
        for number, start in enumerate(starts):
            self.read(start, into[number * width : (number + 1) * width])

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing: the bytes are in memory."""

    def checksum(self, start: int, stop: int) -> str:
        part = self.content[start:stop]
        return f"{zlib.crc32(part):08x}{zlib.adler32(part):08x}"


@dataclass(frozen=True, eq=False)
class _Memory(Source):
    """The tensors of a module or a state dict, by name."""

    tensors: Mapping[str, Tensor]
    path: Path | None = None

    def located(self, info: TensorInfo) -> tuple[HeldFile, TensorInfo]:
        flat = self.tensors[info.name].detach().cpu().contiguous().reshape(-1)
        content = _Bytes(memoryview(flat.view(torch.uint8).numpy().data).cast("B"))
        return cast(HeldFile, content), replace(info, start=0, end=content.size)


def in_memory(model: object, name: str) -> Checkpoint:
    """Make a checkpoint of a `torch.nn.Module`, a PEFT model (its adapter) or a state dict.

    Raises ShadowError for parameters that do not hold plain numbers: sharded, quantised or on
    `meta`.
    """
    config, adapter, state = _taken_apart(model, name)
    tensors: Tensors = {}
    at, first, digest = 0, dict[tuple[object, ...], str](), hashlib.sha256()
    for key, tensor in state.items():
        _require_plain(key, tensor)
        size = tensor.numel() * tensor.element_size()
        word = WORDS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        info = TensorInfo(key, word, tuple(tensor.shape), SHARD, at, at + size)
        lies = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if size and (other := first.setdefault(lies, key)) != key:
            info = replace(info, alias_of=other)
        tensors[key], at = info, at + size
        flat = tensor.detach().flatten()
        count = math.ceil(PIECE / max(1, tensor.element_size()))
        ends = torch.cat([flat[:count], flat[-count:]]).cpu().view(torch.uint8).numpy()
        digest.update(repr((key, word, info.shape)).encode() + bytes(ends))
    sources = {SHARD: _Memory(state)}
    facts = name, None, digest.hexdigest(), config, tensors, sources, adapter
    return Checkpoint(*facts, refused=packed_modules(tensors, config))


def _taken_apart(
    model: object, name: str
) -> tuple[dict[str, Any], Adapter | None, dict[str, Tensor]]:
    """Return config, adapter and tensors of a model."""
    if not isinstance(model, torch.nn.Module):
        if not isinstance(model, Mapping):
            hint = "give a module, or a state dict of torch's tensors"
            raise UsageError(f"{name} is a {type(model).__name__}", hint)
        tensors = {key: one for key, one in model.items() if isinstance(one, Tensor)}
        if not tensors:
            hint = "values are torch's; a base by component is text: language=./lm,vision=./tower"
            raise ShadowError(f"{name} has no tensor", hint)
        return {}, None, tensors
    for wrapped in ("_orig_mod", "module"):  # torch.compile, and training on several cards
        if isinstance(inner := getattr(model, wrapped, None), torch.nn.Module):
            model = inner
    for key, parameter in model.named_parameters():
        _require_plain(key, parameter)
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        named: Any = model
        chosen = named.peft_config[named.active_adapter].to_dict()
        # not "auto", which asks the Hub for the base's config; factors of embeddings come anyway
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {}, read_adapter(name, chosen), dict(state)
    config: Any = getattr(model, "config", None)
    read = config.to_dict() if hasattr(config, "to_dict") else {}
    return read, None, dict(model.state_dict())


def _require_plain(name: str, tensor: Tensor) -> None:
    kind = type(tensor).__name__
    if tensor.is_meta:
        raise ShadowError(f"{name} is on the device meta, and has no numbers", "load it first")
    if type(tensor) not in PLAIN or tensor.is_quantized or tensor.layout != torch.strided:
        hint = "gather or dequantise the model first, or name the folder where it is saved"
        raise ShadowError(f"{name} is a {kind}, not a plain tensor", hint)


def models_among(sides: Config) -> dict[str, tuple[Reference, Checkpoint]]:
    """Return the checkpoints of the sides that are modules or state dicts, and their names.

    Raises ShadowError if two share memory, such as a model and its own state dict.
    """
    seen: dict[frozenset[object], str] = {}
    found = dict[str, tuple[Reference, Checkpoint]]()
    for name, model in sides.items():
        state = model.state_dict() if hasattr(model, "state_dict") else model
        if not isinstance(state, Mapping):
            continue
        reference = Reference(f"memory/{name}", is_folder=True)
        found[name] = reference, in_memory(model, reference.repo)
        tensors = [one for one in state.values() if isinstance(one, Tensor) and one.numel()]
        at = frozenset((one.device, one.data_ptr()) for one in tensors)
        if at and (other := seen.setdefault(at, name)) != name:
            hint = "a state dict is an alias of its model: copy it, or name a saved checkpoint"
            raise ShadowError(f"{other} and {name} are one model in memory", hint)
    return found
