"""`whole`: which files of a checkpoint are read, and whether index, shards and headers agree."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shadow.checks.whole_adapters import CONFIG
from shadow.checks.whole_part import Part

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import TensorInfo

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
OWN = re.compile(
    r"(?!consolidated|adapter_|optimizer|training|scheduler|random|rng).*\.safetensors"
)
TRAINING: Sequence[tuple[str, str]] = (  # files of a trainer, and what they are
    (r"optimizer.*\.(pt|bin|safetensors)|.*optim_states\.pt", "the state of an optimiser"),
    (r"(lr_)?scheduler.*\.(pt|bin)", "a schedule of learning rates"),
    (r"rng_state.*\.pth|random_states.*\.pkl|scaler\.pt|trainer_state\.json", "where training was"),
    (r"training_args\.bin", "the settings of a training"),
    (r".*\.distcp|\.metadata|model_world_size_.*\.pt", "shards of FSDP"),
    (r"(mp_rank|zero_pp_rank)_.*\.pt|zero_to_fp32\.py|latest", "DeepSpeed's"),
)
WORDS = {
    "pointer": "a Git-LFS pointer, not the file itself",
    "shard_missing": "the others name it, and it is not there"
    "[, with {tensors:count tensor|tensors}]",
    "unreadable": "{why}",
    "absent": "the index puts it in {shard}, which has no such tensor",
    "twice_differs": "in {shard} and in {other}, with other values; transformers takes that of"
    " {other}",
    "twice_unknown": "in {shard} and in {other}; values are not compared",
    "twice_equal": "in {shard} and in {other}, with equal values",
    "elsewhere": "the index puts it in {shard}, and it is in {other}",
    "unindexed": "in {shard}, but not in the index",
    "shard_outside": "the index does not name it, so that no loader reads it; it has"
    " {tensors:count tensor|tensors}",
    "no_index": "shards without an index, which loaders look for",
    "set_differs": "a second set of weights, with other values in {tensors:count tensor|tensors},"
    " such as {first}; transformers reads {read}",
    "set_unknown": "a second set of weights, which is not compared; transformers reads {read}",
    "set_newer": "newer than {read}, which transformers reads, and not compared",
    "set_equal": "a second set of weights, with equal values; transformers reads {read}",
    "adapter_beside": "an adapter beside a whole model: transformers adds it to the model",
    "trainer": "{what}, not the model's",
}


@dataclass(frozen=True)
class OtherSet:
    """Weights beside those that are read."""

    file: str
    """The first of its files."""
    differing: Sequence[str] | None = None
    """Tensors whose values differ; None where they are not compared."""
    newer: bool = False


@dataclass(frozen=True)
class Files:
    """What index, files and headers of a checkpoint say, each by itself."""

    read: Sequence[str]
    """The files of weights that transformers reads."""
    headers: Mapping[str, Mapping[str, TensorInfo]] = field(default_factory=dict)
    """Of every file of weights that can be read."""
    weight_map: Mapping[str, str] = field(default_factory=dict)
    """Of the index; empty where it is not what names the files that are read."""
    names: Collection[str] = ()
    """All files."""
    pointers: Sequence[str] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    equal: Mapping[str, bool] = field(default_factory=dict)
    """By a tensor that two files hold, whether its values are equal; without those not compared."""
    others: Sequence[OtherSet] = ()

    @property
    def missing(self) -> dict[str, int | None]:
        """Shards that are not there, and how many tensors the index puts in them."""
        shards = [*self.weight_map.values()]
        found: dict[str, int | None] = {
            name: shards.count(name) or None for name in self.read if name not in self.names
        }
        for match in filter(None, map(NUMBERED.fullmatch, () if shards else self.read)):
            every = range(1, min(int(match[3]), 10_000) + 1)
            numbered = (f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in every)
            found |= dict.fromkeys(name for name in numbered if name not in self.names)
        return found

    @property
    def are_cut(self) -> bool:
        """Whether tensors may be missing because a file is."""
        return bool(self.pointers or self.unreadable or self.missing)


def judge_files(found: Files) -> Part:
    """What contradicts itself, a row a file or tensor; what is only odd is a note."""
    part = Part()
    for name in found.pointers:
        part.fault(name, "pointer")
    for name, count in found.missing.items():
        part.fault(name, "shard_missing", tensors=count)
    for name, why in found.unreadable.items():
        part.fault(name, "unreadable", why=why)
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for shard in found.read:
        for name in found.headers.get(shard, ()):
            holders[name].append(shard)
    for name, shards in holders.items():
        if len(shards) > 1:
            ends = {"shard": shards[0], "other": shards[-1]}
            equal = found.equal.get(name)
            if equal is None:
                part.doubt(name, "twice_unknown", **ends)
            else:
                say = part.note if equal else part.fault
                say(name, "twice_equal" if equal else "twice_differs", **ends)
    if found.weight_map:
        _judge_index(part, found, holders)
    elif len(found.read) > 1 and any(map(NUMBERED.fullmatch, found.read)):
        part.fault(found.read[0], "no_index")
    for other in found.others:
        _judge_set(part, other, found.read[0])
    if {CONFIG, ADAPTER} <= {*found.names} and ADAPTER not in found.read:
        part.fault(ADAPTER, "adapter_beside")
    for name in sorted(found.names):
        for what in (what for pattern, what in TRAINING if re.fullmatch(pattern, name)):
            part.note(name, "trainer", what=what)
    return part


def _judge_index(part: Part, found: Files, holders: Mapping[str, Sequence[str]]) -> None:
    for name, shard in found.weight_map.items():
        if shard in found.headers and name not in holders:
            part.fault(name, "absent", shard=shard)
        elif shard in found.headers and shard not in holders[name]:
            part.fault(name, "elsewhere", shard=shard, other=holders[name][-1])
    for name in holders.keys() - found.weight_map.keys():
        part.fault(name, "unindexed", shard=holders[name][-1])
    for name, header in found.headers.items():
        if OWN.fullmatch(name) and name not in found.read and not header.keys() & holders.keys():
            part.fault(name, "shard_outside", tensors=len(header))


def _judge_set(part: Part, other: OtherSet, read: str) -> None:
    if other.differing:
        first, count = other.differing[0], len(other.differing)
        part.fault(other.file, "set_differs", read=read, first=first, tensors=count)
    elif other.differing is None and other.newer:
        part.doubt(other.file, "set_newer", read=read)
    else:
        code = "set_unknown" if other.differing is None else "set_equal"
        part.note(other.file, code, read=read)
