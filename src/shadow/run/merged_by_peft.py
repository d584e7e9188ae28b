"""Adapters of types other than LoRA: peft's own layers merge them, one module at a time."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shadow.checkpoints.adapter_names import BaseNames
from shadow.checkpoints.in_memory import MemorySource
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.weight_files import MERGE, PREFIX
from shadow.errors import ShadowError
from shadow.extras import require
from shadow.places.architecture import Part
from shadow.run.aligned import parts_of
from shadow.run.runtime import Runtime
from shadow.run.scan import fetch_all
from shadow.text import short

SHARD = "merged by peft"
MOST = 1 << 16  # of a number in a config, by which peft makes arrays; seeds may be larger
SEEDS = ("seed", "key")
OF_MODULE = ("weight", "bias")


@dataclass(frozen=True, eq=False)
class Merges(Mapping[str, Tensor]):
    """Tensors of a base as peft merges an adapter into them, made when they are read."""

    base: Checkpoint
    adapter: Checkpoint
    modules: Mapping[str, str]  # of the adapter: their names in the base
    whole: Mapping[str, TensorInfo]  # tensors that the adapter holds whole, by the base's names
    model: Any  # of peft: the modules with the adapter, and weights that take no memory
    lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def updated(self) -> list[str]:
        """The tensors that peft changes."""
        names = []
        for module in self.modules.values():
            names += self._names(module)
        return names

    def __iter__(self) -> Iterator[str]:
        return iter([*self.updated, *self.whole])

    def __len__(self) -> int:
        return len(self.updated) + len(self.whole)

    def _names(self, module: str) -> list[str]:
        names = [f"{module}.{piece}" for piece in OF_MODULE]
        return [name for name in names if name in self.base.tensors and name not in self.whole]

    def __getitem__(self, name: str) -> Tensor:
        info = self.whole.get(name)
        if info is not None:
            return self.adapter.tensor(info).whole()
        return self.merged(name, torch.float32)

    def merged(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor as peft merges it into a base of this dtype."""
        owner, _, piece = name.rpartition(".")
        module = next(own for own, base_name in self.modules.items() if base_name == owner)
        with self.lock:
            layer = self.model.get_submodule(PREFIX + module)
            core = layer.get_base_layer()
            empty = dict(core.named_parameters())
            for base_name in self._names(owner):
                info = self.base.tensors[base_name]
                tensor = self.base.tensor(info).whole().to(dtype)
                _, _, word = base_name.rpartition(".")
                setattr(core, word, _frozen(tensor.clone()))
            try:
                layer.merge()
                merged: Tensor = getattr(core, piece).data
            finally:
                layer.merged_adapters.clear()
                for word, parameter in empty.items():
                    setattr(core, word, parameter)
        return merged


def applied(base: Checkpoint, adapter: Checkpoint, runtime: Runtime) -> tuple[Checkpoint, Merges]:
    """A base with an adapter merged into it in float32. Raises ShadowError if peft does not
    know its type, or a part of it is of nothing in the base.
    """
    require("adapters")
    fetch_all([base, adapter], runtime)
    parts = parts_of(base)
    names = base_names(base, parts)
    modules: dict[str, str] = {}
    whole: dict[str, TensorInfo] = {}
    state: dict[str, Tensor] = {}
    lost = []
    for name, info in adapter.tensors.items():
        own_name = name.removeprefix(PREFIX).replace(".modules_to_save.", ".")
        owner = names.owner(own_name)
        if owner is not None:
            module, base_module = owner
            piece = own_name.removeprefix(f"{module}.")
            base_name = f"{base_module}.{piece}"
            if piece in OF_MODULE:
                if base_name in base.tensors:
                    whole[base_name] = info
                else:
                    lost.append(name)
                continue
            modules[module] = base_module
        elif name.startswith(PREFIX):
            lost.append(name)
        state[name] = adapter.tensor(info).whole()
    if lost:
        fault = f"{len(lost)} of {len(adapter.tensors)} tensors of {adapter.reference}"
        why = "are of nothing in the base, so peft leaves them out"
        raise ShadowError(f"{fault} {why}, such as {short(lost[0])}", "check names and base")
    layers = {module: _layer(base, parts, name) for module, name in modules.items()}
    try:
        model = _model(layers, adapter, state)
    except Exception as error:
        first_line, _, _ = str(error).partition("\n")
        fault = f"{adapter.reference}: peft refuses it: {first_line[:200]}"
        raise ShadowError(fault, MERGE) from error
    merges = Merges(base, adapter, modules, whole, model)
    tensors = dict(base.tensors)
    for name in merges:
        if name in whole:
            info = whole[name]
        else:
            info = replace(base.tensors[name], dtype="F32", packing=None)
        tensors[name] = replace(info, name=name, shard=SHARD, alias_of=None)
    checkpoint = replace(
        base,
        reference=adapter.reference,
        commit=adapter.commit,
        fingerprint=adapter.fingerprint,
        tensors=tensors,
        sources={**base.sources, SHARD: MemorySource(merges)},
    )
    return checkpoint, merges


def base_names(base: Checkpoint, parts: Mapping[str, tuple[Part, ...]]) -> BaseNames:
    """The names that a base's modules may have in an adapter. parts: by tensor."""
    components: set[str] = set()
    for of_tensor in parts.values():
        components.update(part.place.component for part in of_tensor)
    return BaseNames(base.tensors, components)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _layer(base: Checkpoint, parts: Mapping[str, tuple[Part, ...]], module: str) -> nn.Module:
    """A module of the shape of the base's, whose weights take no memory."""
    from transformers.pytorch_utils import Conv1D

    name = f"{module}.weight"
    if name not in base.tensors or len(base.tensors[name].shape) != 2:
        raise ShadowError(f"{base.reference}: {module[:200]} is no matrix to merge into", MERGE)
    rows, cols = base.tensors[name].shape
    part = parts[name][0]
    with torch.device("meta"):
        if part.transposed:
            untyped: Any = Conv1D
            layer: nn.Module = untyped(cols, rows)
        elif part.place.module == "embed":
            layer = nn.Embedding(rows, cols)
        else:
            layer = nn.Linear(cols, rows, bias=f"{module}.bias" in base.tensors)
    for word, parameter in layer.named_parameters():
        zeros = torch.zeros(1).expand(parameter.shape)
        setattr(layer, word, _frozen(zeros))
    return layer


def _model(layers: Mapping[str, nn.Module], adapter: Checkpoint, state: dict[str, Tensor]) -> Any:
    """Peft's model of the modules that an adapter is of, with its tensors."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

    assert adapter.adapter is not None, "an adapter"
    config = dict(adapter.adapter.config)
    kind = peft.PeftType(config["peft_type"])
    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = config.keys() - known
    if unknown:
        raise ValueError(f"its config has {short(min(unknown))}, which this version does not know")
    for key, number in config.items():
        if isinstance(number, int) and number > MOST and not key.endswith(SEEDS):
            raise ValueError(f"{key} is {number}")
    config |= {"task_type": None, "modules_to_save": None, "inference_mode": True}
    root = nn.Module()
    for module, layer in layers.items():
        *parents, last = module.split(".")
        owner = root
        for name in parents:
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(root, config_class(**config))
        loaded: Any = peft.set_peft_model_state_dict(model, state)
    prefix = f".{PEFT_TYPE_TO_PREFIX_MAPPING[kind]}"
    faulty = [name for name in loaded.missing_keys if prefix in name]
    faulty += loaded.unexpected_keys
    if faulty:
        raise ValueError(f"{short(faulty[0])} is not in its file, or of no module of its config")
    return model.eval()
