"""Modules and state dicts as checkpoints: read in place, one tensor at a time.

A tensor that is on a card, or not contiguous, is copied while it is read; the copy is not kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from shadow.checkpoints.formats import packed_modules
from shadow.checkpoints.held_files import HeldBytes, HeldFile
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo, Tensors, usable_name
from shadow.checkpoints.sources import Source
from shadow.checkpoints.weight_files import Adapter, read_adapter
from shadow.dtypes import FLOATS, INTEGERS, torch_name
from shadow.errors import ShadowError, UsageError
from shadow.places.names import Config
from shadow.targets.references import Reference
from shadow.text import short

SHARD = "memory"
PIECE = 1 << 10  # bytes of each end of a tensor that its fingerprint looks at
PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
WORDS = {getattr(torch, torch_name(word)): word for word in (*FLOATS, *INTEGERS)}


@dataclass(frozen=True, eq=False)
class MemorySource(Source):
    """The tensors of a module or a state dict, by name."""

    tensors: Mapping[str, Tensor]

    def located(self, info: TensorInfo) -> tuple[HeldFile, TensorInfo]:
        tensor = self.tensors[info.name].detach()
        plain = tensor.resolve_conj().resolve_neg()
        flat = plain.cpu().contiguous().reshape(-1)
        numbers = flat.view(torch.uint8).numpy()
        content = HeldBytes(memoryview(numbers.data).cast("B"))
        whole = replace(info, start=0, end=content.size)
        return cast(HeldFile, content), whole


def in_memory(model: object, name: str) -> Checkpoint:
    """Make a checkpoint of a `torch.nn.Module`, a PEFT model (its adapter) or a state dict.

    Raises ShadowError for parameters that do not hold plain numbers: sharded, quantised or on
    `meta`; and for names that no file may have.
    """
    config, adapter, state = _taken_apart(model, name)
    tensors: Tensors = {}
    start = 0
    names: dict[tuple[object, ...], str] = {}  # by storage, the first of it
    digest = hashlib.sha256()
    for key, tensor in state.items():
        _require_plain(key, tensor)
        size = tensor.numel() * tensor.element_size()
        word = WORDS.get(tensor.dtype)
        if word is None:
            word = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        info = TensorInfo(key, word, shape, SHARD, start, start + size)
        storage = (
            tensor.device,
            tensor.data_ptr(),
            shape,
            tensor.stride(),
            tensor.dtype,
            tensor.is_conj(),
            tensor.is_neg(),
        )
        first = names.setdefault(storage, key) if size else key
        if first != key:
            info = replace(info, alias_of=first)
        tensors[key] = info
        start += size
        facts = repr((key, word, shape))
        digest.update(facts.encode())
        digest.update(_ends(tensor))
    return Checkpoint(
        name,
        None,
        digest.hexdigest(),
        config,
        tensors,
        {SHARD: MemorySource(state)},
        adapter,
        refused=packed_modules(tensors, config),
    )


def _ends(tensor: Tensor) -> bytes:
    """The first and last bytes of a tensor."""
    flat = tensor.detach().flatten()
    count = math.ceil(PIECE / tensor.element_size())
    ends = torch.cat([flat[:count], flat[-count:]]).cpu()
    return bytes(ends.view(torch.uint8).numpy())


def _taken_apart(
    model: object, name: str
) -> tuple[dict[str, Any], Adapter | None, dict[str, Tensor]]:
    """The config, adapter and tensors of a model."""
    if not isinstance(model, torch.nn.Module):
        return {}, None, _tensors_of(model, name)
    for wrapped in ("_orig_mod", "module"):  # torch.compile, and training on several cards
        inner = getattr(model, wrapped, None)
        if isinstance(inner, torch.nn.Module):
            model = inner
    for key, parameter in model.named_parameters():
        _require_plain(key, parameter)
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        named: Any = model
        chosen = named.peft_config[named.active_adapter].to_dict()
        # not "auto", which asks the Hub for the base's config; factors of embeddings come anyway
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {}, read_adapter(name, chosen), _tensors_of(state, name)
    config: Any = getattr(model, "config", None)
    settings = {}
    if hasattr(config, "to_dict"):
        settings = _as_json(config.to_dict(), name)
    return settings, None, _tensors_of(model.state_dict(), name)


def _tensors_of(state: object, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, without what modules hold besides (extra state)."""
    if not isinstance(state, Mapping):
        hint = "give a module, or a state dict of torch's tensors"
        raise UsageError(f"{name} is a {type(state).__name__}", hint)
    tensors = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value
    if not tensors:
        hint = "values are torch's; a base by component is text: language=./lm,vision=./tower"
        raise ShadowError(f"{name} has no tensor", hint)
    for key in tensors:
        if not isinstance(key, str) or not usable_name(key):
            hint = "rename it in a copy: names are printable text, such as model.norm.weight"
            raise ShadowError(f"{name}: a tensor has the unusable name {short(key)}", hint)
    return tensors


def _as_json(config: object, name: str) -> dict[str, Any]:
    """A config as its config.json would have it; values that JSON lacks become text."""
    try:
        text = json.dumps(config, default=str, skipkeys=True)
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "give its state dict in place of the model"
        raise ShadowError(f"{name}: its config cannot be written as JSON", hint) from error
    return content if isinstance(content, dict) else {}


def _require_plain(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ShadowError(f"{name} is on the device meta, and has no numbers", "load it first")
    kind = type(tensor).__name__
    if tensor.layout != torch.strided:
        kind = f"{tensor.layout} tensor".removeprefix("torch.")
    elif tensor.is_quantized:
        kind = f"{tensor.dtype} tensor".removeprefix("torch.")
    elif tensor.is_nested:
        kind = "nested tensor"
    elif type(tensor) in PLAIN:
        return
    hint = "gather or dequantise the model first, or name the folder where it is saved"
    raise ShadowError(f"{name} is a {kind}, not a plain tensor", hint)


def models_among(sides: Config) -> dict[str, tuple[Reference, Checkpoint]]:
    """The checkpoints of the sides that are modules or state dicts, and their names.

    Raises ShadowError if two share memory, such as a model and its own state dict.
    """
    seen: dict[frozenset[object], str] = {}
    models: dict[str, tuple[Reference, Checkpoint]] = {}
    for name, model in sides.items():
        state: object = model
        if hasattr(model, "state_dict"):
            state = model.state_dict()
        if not isinstance(state, Mapping):
            continue
        reference = Reference(f"memory/{name}", is_folder=True)
        models[name] = (reference, in_memory(model, reference.repo))
        storages = set()
        for tensor in state.values():
            if isinstance(tensor, Tensor) and tensor.numel():
                storages.add((tensor.device, tensor.data_ptr()))
        other = name
        if storages:
            other = seen.setdefault(frozenset(storages), name)
        if other != name:
            hint = "a state dict is an alias of its model: copy it, or name a saved checkpoint"
            raise ShadowError(f"{other} and {name} are one model in memory", hint)
    return models
