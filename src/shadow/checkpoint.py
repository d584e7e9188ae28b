"""A reference -> Checkpoint: which tensors there are and where each lies. Reads headers, never weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shadow.errors import ShadowError
from shadow.shards import TensorInfo, map_tensor, read_header, usable_name

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON = 64_000_000  # bytes; the largest real index (Kimi-K2, 1,160,000 tensors) has under half of that
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """One side of a pair.

    reference is what was asked for, commit the resolved 40-hex commit (None for a folder), fingerprint a sha256
    that changes when any file does. files maps a shard's name to the file that holds its bytes.
    """

    reference: str
    commit: str | None
    fingerprint: str
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]

    def tensor(self, info: TensorInfo) -> Tensor:
        """The tensor as a view of the mapped shard: (shape as stored), nothing read yet."""
        return map_tensor(self.files[info.shard], info)


def open_folder(reference: str, *, allow_pickle: bool = False, scratch: Path | None = None) -> Checkpoint:
    """The checkpoint in a local folder: safetensors first, torch `.bin` only with allow_pickle.

    scratch is a folder for raw copies of `.bin` files of the old format. Raises ShadowError with one line and a
    hint for every way in which a folder is not a trustworthy checkpoint.
    """
    try:
        return _open_folder(reference, Path(reference), allow_pickle, scratch)
    except OSError as error:
        raise ShadowError(f"{reference}: {error.strerror or error}", "is it a readable folder?") from error


def _open_folder(reference: str, root: Path, allow_pickle: bool, scratch: Path | None) -> Checkpoint:
    if not root.is_dir():
        raise ShadowError(f"no such folder: {reference}", "a folder must hold safetensors files and config.json")
    shards, weight_map = _shards(root, allow_pickle)
    config = _read_json(root / "config.json", "config.json") if (root / "config.json").exists() else {}
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    digest = hashlib.sha256()
    for shard in shards:
        if not usable_name(shard):
            raise ShadowError(f"{reference}: a file name that is no text: {shard!r}", "rename the file")
        path = root / shard
        if not path.is_file():
            raise ShadowError(f"{reference}: shard {shard} is missing", "is the download complete?")
        found, files[shard], header = _read_shard(path, shard, scratch)
        for name, info in found.items():
            if name in tensors:
                raise ShadowError(
                    f"{reference}: tensor {name!r} is in {tensors[name].shard} and in {shard}",
                    "keep one set of weight files in the folder",
                )
            tensors[name] = info
        status = path.stat()
        digest.update(json.dumps([shard, status.st_size, status.st_mtime_ns, header]).encode())
    digest.update(json.dumps(config, sort_keys=True).encode())
    tensors |= {name: _lost(name, shard) for name, shard in weight_map.items() if name not in tensors}
    if not tensors:
        raise ShadowError(f"{reference}: its weight files hold no tensors", "is this the right folder?")
    return Checkpoint(reference, None, digest.hexdigest(), config, tensors, files)


def _lost(name: str, shard: str) -> TensorInfo:
    return TensorInfo(
        name, "unknown", (), shard, 0, 0, problem=f"the index puts it in {shard}, which has no such tensor"
    )


def _read_shard(path: Path, shard: str, scratch: Path | None) -> tuple[dict[str, TensorInfo], Path, str]:
    if path.suffix == ".safetensors":
        tensors, header = read_header(path, shard)
        return tensors, path, header
    from shadow.pickles import layout

    if scratch is None:
        raise ShadowError(f"{shard}: no place to unpack it", "give an output folder")
    tensors, data = layout(path, shard, scratch)
    canonical: dict[tuple[object, ...], str] = {}  # a tied head is the same bytes under a second name
    for name, info in tensors.items():
        first = canonical.setdefault((info.dtype, info.start, info.end, info.shape, info.strides), name)
        if first != name and info.end > info.start:
            tensors[name] = replace(info, alias_of=first)
    return tensors, data, json.dumps([[i.name, i.dtype, i.shape, i.start] for i in tensors.values()])


def _shards(root: Path, allow_pickle: bool) -> tuple[list[str], dict[str, str]]:
    """Names of the weight files in reading order, and the index's tensor -> shard map (empty without one)."""
    index = root / INDEXES[0]
    if index.exists():
        weight_map = _weight_map(index, ".safetensors")
        return sorted(set(weight_map.values())), weight_map
    if (root / "model.safetensors").exists():
        return ["model.safetensors"], {}
    if shards := sorted(path.name for path in root.glob("*.safetensors")):
        if "adapter_model.safetensors" in shards:
            raise ShadowError(f"{root}: a LoRA adapter, not a whole model", "merge it into its base first")
        return shards, {}
    return _pickle_shards(root, allow_pickle)


def _pickle_shards(root: Path, allow_pickle: bool) -> tuple[list[str], dict[str, str]]:
    index = root / INDEXES[1]
    bins = sorted(path.name for path in root.glob("pytorch_model*.bin"))
    if not bins and not index.exists():
        there = ", ".join(sorted(path.name for path in root.iterdir())[:6]) or "nothing"
        raise ShadowError(f"{root}: no safetensors files in it", f"there is: {there}")
    if not allow_pickle:
        raise ShadowError(
            f"{root}: only torch .bin files, which are pickles",
            "--allow-pickle reads them in a child process that loads tensors only",
        )
    if index.exists():
        weight_map = _weight_map(index, ".bin")
        return sorted(set(weight_map.values())), weight_map
    return bins, {}


def _weight_map(index: Path, suffix: str) -> dict[str, str]:
    """weight_map of an index file. It is a hint: the shards' own headers say what they hold."""
    content = _read_json(index, index.name)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShadowError(f"{index.name}: no weight_map in it", "delete the index to read the shards as they are")
    for name, shard in weight_map.items():
        if not usable_name(name):
            raise ShadowError(f"{index.name}: tensor {name[:80]!r} has an unusable name", "fetch the index again")
        if not isinstance(shard, str) or not usable_name(shard):
            raise ShadowError(f"{index.name}: tensor {name[:80]!r} has no file name", "fetch the index again")
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            raise ShadowError(
                f"{index.name}: shard name {shard[:80]!r} leaves the folder", "do not trust this checkpoint"
            )
        if path.suffix != suffix:
            raise ShadowError(f"{index.name}: shard {shard[:80]!r} is not a {suffix} file", "fetch the index again")
    return weight_map


def _read_json(path: Path, name: str) -> dict[str, Any]:
    hint = "fetch the file again"
    try:
        if not path.is_file():  # opening a FIFO would wait for ever
            raise ShadowError(f"{name}: not a regular file", hint)
        with path.open("rb") as file:
            raw = file.read(MAX_JSON + 1)
        if len(raw) > MAX_JSON:
            raise ShadowError(f"{name}: larger than {MAX_JSON:,} bytes", hint)
        if raw.startswith(b"version https://git-lfs"):
            raise ShadowError(f"{name}: a Git-LFS pointer, not the file itself", "run `git lfs pull` in the folder")
        content = json.loads(raw)
    except OSError as error:
        raise ShadowError(f"{name}: {error.strerror or error}", hint) from error
    except (ValueError, RecursionError) as error:
        raise ShadowError(f"{name}: not JSON ({type(error).__name__})", hint) from error
    if not isinstance(content, dict):
        raise ShadowError(f"{name}: not a JSON object", hint)
    return content
