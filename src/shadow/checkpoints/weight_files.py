"""Which files of a folder or a repository hold its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from shadow.checkpoints.adapters import CONFIG as ADAPTER_CONFIG
from shadow.checkpoints.adapters import Adapter, read_adapter
from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import chosen_files
from shadow.checkpoints.safetensors_files import usable_name
from shadow.errors import FileError, ShadowError
from shadow.text import several

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PICKLES = "only torch .bin files, which are pickles"
PICKLED = (".bin", ".pt", ".pth")  # files of torch
# what trainings write for themselves, and what makes a model of it
OF_TRAINING = (
    (
        r".*\.distcp|\.metadata",
        "torch's distributed checkpoint",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    ),
    (
        r"model_world_size_\d+_rank_\d+\.pt",
        "parts of FSDP as verl writes them",
        "python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT",
    ),
    (
        r"(zero_pp_rank_|bf16_zero_pp_rank_|mp_rank_).*\.pt|zero_to_fp32\.py|global_step\d+",
        "parts of DeepSpeed ZeRO",
        "python zero_to_fp32.py FOLDER OUT --safe_serialization",
    ),
)
PICKLES_HINT = "--allow-pickle reads them in a child process that loads tensors only"

Config = Mapping[str, object]  # a JSON object as it was read: any value may be anything


@dataclass(frozen=True)
class Weights:
    """Which files hold the weights."""

    shards: tuple[str, ...]  # names of files, in reading order
    # what an index says: tensor -> shard. A hint; empty without an index
    weight_map: Mapping[str, str]
    pickled: bool  # `.bin` files of torch
    adapter: Adapter | None = None  # scales the tensors of a LoRA adapter

    @property
    def are_gguf(self) -> bool:
        return self.shards[0].endswith(GGUF)


def choose_weights(
    where: str,
    names: set[str],
    read: Callable[[str], Config],
    *,
    allow_pickle: bool,
    dora: bool,
    file: str | None,
) -> Weights:
    """The weight files: an index's, `model.safetensors`, an adapter's, safetensors, GGUF or `.bin`.

    file: GGUF files that match it come before all others.
    """
    packed = {name for name in names if name.endswith(GGUF)}
    if file is not None and packed:
        return Weights(chosen_files(where, packed, file), {}, pickled=False)

    def indexed(index: str, suffix: str) -> Weights:
        weight_map = checked_weight_map(read(index), index, suffix)
        return Weights(tuple(sorted(set(weight_map.values()))), weight_map, suffix == ".bin")

    if INDEXES[0] in names:
        return indexed(INDEXES[0], ".safetensors")
    if "model.safetensors" in names:
        return Weights(("model.safetensors",), {}, pickled=False)
    adapter = None
    if ADAPTER_CONFIG in names:
        adapter = read_adapter(where, read(ADAPTER_CONFIG), dora=dora)
        safetensors = sorted(names & {"adapter_model.safetensors"})
        bins = sorted(names & {"adapter_model.bin"})
        if not safetensors and not bins:
            raise FileError(
                f"an {ADAPTER_CONFIG} without adapter_model.safetensors",
                "check that the download is complete",
            )
    else:
        safetensors = sorted(name for name in names if name.endswith(".safetensors"))
        bins = sorted(name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name))
    if safetensors:
        return Weights(tuple(safetensors), {}, pickled=False, adapter=adapter)
    if packed and not bins:
        return Weights(chosen_files(where, packed, None), {}, pickled=False)
    if not bins and INDEXES[1] not in names:
        raise ShadowError(f"{where}: no safetensors files in it", _instead_of_weights(names))
    if not allow_pickle:
        raise ShadowError(f"{where}: {PICKLES}", PICKLES_HINT)
    if INDEXES[1] in names and adapter is None:
        return indexed(INDEXES[1], ".bin")
    return Weights(tuple(bins), {}, pickled=True, adapter=adapter)


def one_file(
    where: str,
    name: str,
    names: set[str],
    read: Callable[[str], Config],
    *,
    allow_pickle: bool,
    dora: bool,
) -> Weights:
    """A file of weights that is named itself, whatever lies beside it. names: those beside it."""
    suffix = PurePosixPath(name).suffix
    if suffix not in (".safetensors", *PICKLED):
        raise ShadowError(
            f"{where} is no file of weights",
            f"name a folder, or a file: .safetensors, {GGUF}, {', '.join(PICKLED)}",
        )
    if suffix in PICKLED and not allow_pickle:
        raise ShadowError(f"{where}: a file of torch, which is a pickle", PICKLES_HINT)
    adapter = None
    if name.startswith("adapter_model.") and ADAPTER_CONFIG in names:
        adapter = read_adapter(where, read(ADAPTER_CONFIG), dora=dora)
    return Weights((name,), {}, pickled=suffix in PICKLED, adapter=adapter)


def _instead_of_weights(names: set[str]) -> str:
    """What to do about a folder of these files, none of which holds weights."""
    for pattern, what, how in OF_TRAINING:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"it holds {what}: {how}"
    if "matrices.parquet" in names:
        return (
            "it is a report of shadow, which `shadow show` shows; name the folders of two"
            " checkpoints"
        )
    if names:
        return f"it has: {several(sorted(names), 6)}"
    return "it is empty; name the folder that holds the .safetensors files"


def checked_weight_map(content: Config, index: str, suffix: str) -> dict[str, str]:
    """weight_map of an index file. It is a hint: the shards' own headers say what they hold."""
    again = "fetch the index again"
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError(
            f"{index}: no weight_map in it", "delete the index to read the shards as they are"
        )
    seen: set[str] = set()
    for name, shard in weight_map.items():
        if not usable_name(name):
            raise FileError(f"{index}: tensor {name[:80]!r} has an unusable name", again)
        if not isinstance(shard, str) or not usable_name(shard):
            raise FileError(f"{index}: tensor {name[:80]!r} has no file name", again)
        if shard in seen:
            continue
        seen.add(shard)
        path, what = PurePosixPath(shard), f"{index}: shard"
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            raise FileError(
                f"{what} name {shard[:80]!r} leaves the folder", "do not trust this checkpoint"
            )
        if path.suffix != suffix:
            raise FileError(f"{what} {shard[:80]!r} is not a {suffix} file", again)
    return weight_map
