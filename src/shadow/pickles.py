"""torch `.bin` files, read without ever unpickling in the process that audits.

`layout` starts a child process that unpickles with `weights_only=True` under a memory limit and answers with
JSON: for every tensor its dtype, shape, strides and where its bytes lie. Files written since torch 1.6 are zip
archives of plain bytes, so the parent maps the file itself; the older format has no such order, and the child
writes the storages once, as raw bytes, to a scratch file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.errors import ShadowError
from shadow.shards import FLOATS, MAX_OFFSET, TensorInfo, usable_name

if TYPE_CHECKING:
    import torch

HEADROOM = 1 << 30  # bytes the child may use beyond twice the file: the unpickler's own objects
SECONDS = 1800  # a child that takes longer has not just read a file


def layout(path: Path, shard: str, scratch: Path) -> tuple[dict[str, TensorInfo], Path]:
    """Tensors of one `.bin` file by name, and the file their offsets refer to (path itself, or one in scratch)."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShadowError(f"cannot write to {scratch}: {error.strerror}", "choose another folder with -o") from error
    raw = scratch / f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}.raw"
    # -P: nothing of the working folder, which may be the checkpoint's, is imported. Not -I: it would hide a shadow that
    # was installed with --user or is found by PYTHONPATH.
    command = [sys.executable, "-P", "-m", "shadow.pickles", str(path), str(raw)]
    hint = "use the safetensors files of this checkpoint, if it has them"
    try:
        child = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ShadowError(f"{shard}: unpickling did not end within {SECONDS} seconds", hint) from error
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines and child.returncode == 1 else f"the reader died ({child.returncode})"
        raise ShadowError(f"{shard}: refused: {reason}", hint)
    try:
        answer = json.loads(child.stdout)
        data = raw if answer["raw"] else path
        size = data.stat().st_size
        tensors = {e["name"]: _checked(e, shard, size) for e in answer["tensors"]}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ShadowError(f"{shard}: its layout makes no sense ({error})", hint) from error
    return tensors, data


def _checked(entry: dict[str, Any], shard: str, size: int) -> TensorInfo:
    """The child's word is no better than the file it read: every range must lie within the file."""
    name, shape, strides = entry["name"], tuple(entry["shape"]), tuple(entry["strides"])
    if not usable_name(name):
        raise ValueError(f"unusable tensor name {name[:80]!r}")
    if not all(type(number) is int and 0 <= number <= MAX_OFFSET for number in (*shape, *strides, entry["start"])):
        raise ValueError(f"numbers of tensor {name!r}")
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    end = entry["start"] + reach * entry["itemsize"]
    if end > size:
        raise ValueError(f"tensor {name!r} reaches beyond the file")
    return TensorInfo(name, entry["dtype"], shape, shard, entry["start"], end, strides)


def _dtype_names() -> dict[str, str]:
    names = {f"torch.{fmt.torch_name}": name for name, fmt in FLOATS.items()}
    integers = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
    return names | {f"torch.{torch_name}": name for torch_name, name in integers.items()}


def _limit_memory(extra: int) -> None:
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
    except (ImportError, OSError, ValueError):
        pass  # no such limit on this system: weights_only is the guard, the limit a second one


def _state(loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise TypeError("it holds no table of tensors")
    tensors = {key: value.detach() for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not all(isinstance(key, str) for key in tensors):
        raise TypeError("a tensor's name is not text")
    return tensors


def _load_zip(path: Path) -> dict[str, Any]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a compressed archive")
        for member in members:
            if member.filename.endswith("/byteorder") and archive.read(member) != sys.byteorder.encode():
                raise ValueError("written by a machine of the other byte order")
    with FakeTensorMode():  # reads the pickle alone; every storage tells its offset in the file
        state = _state(torch.load(path, map_location="cpu", weights_only=True))
    offsets = {name: getattr(tensor.untyped_storage(), "_checkpoint_offset", None) for name, tensor in state.items()}
    return {"raw": False, "tensors": [_described(name, state[name], offsets[name]) for name in state]}


def _load_legacy(path: Path, raw: Path) -> dict[str, Any]:
    import ctypes

    import torch

    state = _state(torch.load(path, map_location="cpu", weights_only=True))
    offsets: dict[int, int] = {}
    with raw.open("wb") as file:
        for tensor in state.values():
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in offsets:  # tensors that share a storage share it here too
                file.seek(-(-file.tell() // 64) * 64)
                offsets[storage.data_ptr()] = file.tell()
                file.write(
                    (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()) if storage.nbytes() else b""
                )
    starts = {name: offsets[tensor.untyped_storage().data_ptr()] for name, tensor in state.items()}
    return {"raw": True, "tensors": [_described(name, state[name], starts[name]) for name in state]}


def _described(name: str, tensor: torch.Tensor, storage_start: int | None) -> dict[str, Any]:
    if storage_start is None:
        raise ValueError(f"this torch does not tell where tensor {name[:80]!r} lies")
    return {
        "name": name,
        "dtype": _dtype_names().get(str(tensor.dtype), str(tensor.dtype)),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "itemsize": tensor.dtype.itemsize,
        "start": storage_start + tensor.storage_offset() * tensor.dtype.itemsize,
    }


def main() -> None:
    """Child process: argv is the `.bin` file and the path for raw storages, the answer JSON on stdout."""
    path, raw = Path(sys.argv[1]), Path(sys.argv[2])
    import torch
    import torch._subclasses.fake_tensor  # so that imports do not count against the limit

    if path.stat().st_size == 0:
        sys.exit("it is empty")
    _limit_memory(2 * path.stat().st_size + HEADROOM)
    try:
        answer = _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path, raw)
    except Exception as error:  # whatever a hostile file does is this file's fault, in one line
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        if type(error).__name__ == "UnpicklingError":
            text = "the pickle asks for more than tensors (weights_only), or is no pickle"
        sys.exit(f"{type(error).__name__}: {text}")
    del torch
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
