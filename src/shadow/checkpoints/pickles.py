"""torch `.bin` files, read without ever unpickling in the process that audits.

`layout` starts a child process that unpickles with `weights_only=True` and answers with JSON: for
every tensor its dtype, shape, strides (in elements) and where its bytes lie. Files written since
torch 1.6 are zip archives of plain bytes, so the parent maps the file itself; the older format has
no such order, and the child writes the storages once, as raw bytes, to a scratch file.

`weights_only` is the guard. Should a file get past it, the child has little to give: no token in
its environment, a home and a temporary folder that are removed, limits on time, memory, depth,
files and processes, and no root. On Linux it ends with its parent.

torch's distributed checkpoints (`.distcp`) have a plain pickle, `.metadata`, that says in which
file the pieces of each tensor lie. It is read without the classes that it names: records stand for
these, and any name that no checkpoint has is refused. The pieces are read with `weights_only`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import signal
import site
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shadow.checkpoints.safetensors_files import (
    MAX_ENTRIES,
    MAX_OFFSET,
    TensorInfo,
    Tensors,
    usable_name,
)
from shadow.dtypes import FLOATS, INTEGERS, torch_name
from shadow.errors import FileError
from shadow.files import OTHER_FOLDER, writing

if TYPE_CHECKING:
    import torch


DISTRIBUTED = ".metadata"  # of torch's distributed checkpoint, beside its `.distcp` files
CONVERTER = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
TORCH = "torch.distributed.checkpoint"
# What `.metadata` may name, beside dtypes of torch; none of it is imported.
RECORDS = {(f"{TORCH}.filesystem", "_StorageInfo")} | {
    (f"{TORCH}.metadata", name)
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "MetadataIndex", "StorageMeta",
    )
}  # fmt: skip
TEXTS = {
    ("torch.serialization", "_get_layout"), (f"{TORCH}.metadata", "_MEM_FORMAT_ENCODING"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath")),
}  # fmt: skip
CONTAINERS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): tuple, ("collections", "OrderedDict"): dict,
}  # fmt: skip
TRAINING = frozenset(  # what trainers save beside a model
    {"optim", "optimizer", "optimizers", "optimizer_state_dict", "scheduler", "lr_scheduler"}
    | {"dataloader", "train_state", "rng", "rng_state"}
)
WRAPPERS = ("app", "model", "state_dict", "module")  # what trainers wrap a model in
HEADROOM = 1 << 30  # bytes the child may use beyond twice the file: the unpickler's own objects
SECONDS = 1800  # a child that takes longer has not just read a file
# seconds of a core that any file may take, and bytes for each further one; real ones take a tenth
CPU = 20
BYTES_A_SECOND = 1 << 20
STACK = 1 << 23  # bytes: what is nested deeper is no checkpoint
ENDS_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
NOBODY = 65534  # the user and group of this number own nothing, by custom
# Where Python finds itself, its packages and the libraries below them. All else stays here, tokens
# among it.
ENVIRONMENT = (
    "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX", "NIX_PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "LANG",
    "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH", "__PYVENV_LAUNCHER__", "KMP_DUPLICATE_LIB_OK", "SYSTEMROOT",
    "SYSTEMDRIVE", "WINDIR",
)  # fmt: skip
# Audit events of the standard library by which a process acts on anything but itself, and those
# that reading needs.
ACTING = frozenset({"os", "subprocess", "pty", "shutil", "socket", "ctypes", "_winapi", "winreg"})
READING = frozenset({"os.listdir", "os.scandir", "ctypes.cdata"})
DTYPES = {f"torch.{torch_name(name)}": name for name in (*FLOATS, *INTEGERS)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def layout(path: Path, shard: str, scratch: Path) -> tuple[Tensors, Path]:
    """Return the tensors of one `.bin` file by name, and the file that their offsets refer to.

    That is path itself, or a file in the folder scratch, which is created. shard: the file's name
    in its checkpoint. Raises FileError for a file that is refused or cannot be trusted, ShadowError
    if scratch cannot be written to.
    """
    with writing(scratch, OTHER_FOLDER):
        scratch.mkdir(parents=True, exist_ok=True)
    raw = scratch / f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}.raw"
    # -P: nothing of the working folder, which may be the checkpoint's, is imported. Not -I: it
    # would hide a shadow that was installed with --user or is found by PYTHONPATH.
    command = [sys.executable, "-P", "-m", "shadow.checkpoints.pickles", str(path), str(raw)]
    hint = "use the safetensors files of this checkpoint, if it has them"
    if shard == DISTRIBUTED:
        hint = f"make a model of it: {CONVERTER}"
    fault: Exception | None = None
    try:
        child = run_child(command, scratch, SECONDS, {})
        if not child.returncode:
            answer = json.loads(child.stdout)
            data = raw if answer["raw"] else path
            size = data.stat().st_size
            return {one["name"]: _checked(one, shard, size) for one in answer["tensors"]}, data
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        died = f"the reader died ({child.returncode})"
        if child.returncode == -getattr(signal, "SIGXCPU", 0):
            died = "unpickling takes far longer than that of any checkpoint of its size"
        reason = lines[-1][:300] if lines and child.returncode == 1 else died
        reason = f"refused: {reason}"
    except subprocess.TimeoutExpired as error:
        reason = f"unpickling did not end within {SECONDS} seconds"
        fault = error
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"its layout is invalid ({error})"
        fault = error
    raw.unlink(missing_ok=True)
    raise FileError(f"{shard}: {reason}", hint) from fault


def run_child(
    command: Sequence[str],
    scratch: Path,
    seconds: int,
    more: dict[str, str],
    begins: Callable[[], None] = lambda: None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a reader with a home folder of its own in scratch. begins: called when it has started.
    Raises TimeoutExpired.
    """
    with (
        tempfile.TemporaryDirectory(prefix="child-", dir=scratch) as home,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(home) | more,
        ) as child,
    ):
        try:
            begins()
            answer, errors = child.communicate(timeout=seconds)
        except BaseException:
            child.kill()
            raise
        return subprocess.CompletedProcess(command, child.returncode, answer, errors)


def environment(folder: str) -> dict[str, str]:
    """Return the environment of the child, with its own home and temporary folder."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    # what was installed with --user lies in the home that the child does not get
    if site.ENABLE_USER_SITE:
        kept["PYTHONUSERBASE"] = site.getuserbase()
    homes = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), folder)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    user = {"LOGNAME": "shadow"}  # torch asks for the user's name, which not every user has
    return kept | homes | threads | user


def _checked(entry: dict[str, Any], shard: str, size: int) -> TensorInfo:
    """Check what the child reports, as it read the file: every range must lie within the file."""
    name = entry["name"]
    shape = tuple(entry["shape"])
    strides = tuple(entry["strides"])
    if not usable_name(name):
        raise ValueError(f"unusable tensor name {name[:80]!r}")
    numbers = (*shape, *strides, entry["start"])
    if not all(type(number) is int and 0 <= number <= MAX_OFFSET for number in numbers):
        raise ValueError(f"numbers of tensor {name!r}")
    reach = 0  # elements from the first to the last in the file
    if 0 not in shape:
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    end = entry["start"] + reach * entry["itemsize"]
    if end > size:
        raise ValueError(f"tensor {name!r} reaches beyond the file")
    return TensorInfo(name, entry["dtype"], shape, shard, entry["start"], end, strides)


def confine(memory: int, written: int, seconds: int) -> None:
    """Give up what reading does not need. A system may lack any of these, so none is the only
    guard.

    memory: bytes beyond what is in use. written: the size to which an open file may grow. seconds:
    of a core, beyond what was used.
    """
    import ctypes

    with contextlib.suppress(ImportError, OSError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit("RLIMIT_AS", used + memory)
    _limit("RLIMIT_CPU", math.ceil(time.process_time()) + seconds, more=1)
    _limit("RLIMIT_STACK", STACK)
    _limit("RLIMIT_FSIZE", written)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_NPROC", 0)
    with contextlib.suppress(AttributeError, OSError):
        if os.geteuid() == 0:  # whom no limit on processes holds
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    if sys.platform == "linux":  # after the user, whose change would undo it
        ctypes.CDLL(None).prctl(ENDS_WITH_PARENT, signal.SIGKILL)
    sys.addaudithook(_refuse_acting)


def _limit(name: str, most: int, more: int = 0) -> None:
    """Set a limit. more: up to the hard one, at which a process is killed without a word."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(which, (max(0, most - more), most))


def _refuse_acting(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that refuses to start processes, open connections or open files for writing."""
    acts = event not in READING and event.partition(".")[0] in ACTING
    if acts or (event == "open" and arguments[2] & WRITING):
        raise PermissionError(f"{event} is not needed to read weights")


def _state(loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    for key in ("state_dict", "model", "module"):  # what trainers wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise TypeError("it holds no table of tensors")
    tensors = {
        key: value.detach() for key, value in loaded.items() if isinstance(value, torch.Tensor)
    }
    if not all(isinstance(key, str) for key in tensors):
        raise TypeError("a tensor's name is not text")
    if len(tensors) > MAX_ENTRIES:
        raise ValueError(f"{len(tensors):,} tensors; at most {MAX_ENTRIES:,} are read")
    return tensors


def _load_zip(file: IO[bytes]) -> dict[str, Any]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a compressed archive")
        orders = [member for member in members if member.filename.endswith("/byteorder")]
        if any(archive.read(member) != sys.byteorder.encode() for member in orders):
            raise ValueError("written by a machine of the other byte order")
    file.seek(0)
    # reads the pickle alone; every storage tells its offset in the file, as the notes of torch on
    # serialization describe ("Layout Control")
    with FakeTensorMode():
        state = _state(torch.load(file, map_location="cpu", weights_only=True))
    tensors = [
        _described(name, tensor, getattr(tensor.untyped_storage(), "_checkpoint_offset", None))
        for name, tensor in state.items()
    ]
    return {"raw": False, "tensors": tensors}


def _load_legacy(file: IO[bytes], raw: IO[bytes]) -> dict[str, Any]:
    import ctypes

    import torch

    state = _state(torch.load(file, map_location="cpu", weights_only=True))
    offsets: dict[int, int] = {}
    for tensor in state.values():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in offsets:  # tensors that share a storage share it here too
            offsets[storage.data_ptr()] = raw.tell()
            if size := storage.nbytes():
                raw.write((ctypes.c_char * size).from_address(storage.data_ptr()))
    raw.flush()
    tensors = [
        _described(name, tensor, offsets[tensor.untyped_storage().data_ptr()])
        for name, tensor in state.items()
    ]
    return {"raw": True, "tensors": tensors}


class _Record:
    """Stand-in for an object of a pickle."""

    def __setstate__(self, state: Any) -> None:  # TensorProperties has a tuple
        self.__dict__.update(state if isinstance(state, dict) else {"dtype": state[0]})


class _Records(pickle.Unpickler):
    """Unpickler for records, texts, numbers and containers; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in RECORDS:
            return _Record
        if (module, name) in TEXTS:
            return lambda *parts: "/".join(map(str, parts))
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise ValueError(f"it names {module}.{name}, which no checkpoint does"[:200])


def _load_distributed(
    metadata: IO[bytes], files: Mapping[str, IO[bytes]], raw: IO[bytes]
) -> dict[str, Any]:
    """Write the tensors of the model one after another, and return their layout."""
    import torch

    said = _Records(metadata).load()
    pieces = {
        (at.fqn, tuple(getattr(at, "offset", None) or ())): one  # what is no tensor has none
        for at, one in said.storage_data.items()
    }
    listed = {key: one for key, one in said.state_dict_metadata.items() if hasattr(one, "chunks")}
    paths = {key: (said.planner_data or {}).get(key, (key,)) for key in listed}
    names = _names_in_model(paths, {key for key, one in listed.items() if not tuple(one.size)})
    if len(names) > MAX_ENTRIES:
        raise ValueError(f"{len(names):,} tensors; at most {MAX_ENTRIES:,} are read")
    if len(set(names.values())) < len(names):
        raise ValueError("it contains two models")
    tensors = []
    for key, name in names.items():
        shape = tuple(listed[key].size)
        rows = 0
        dtype = getattr(torch, listed[key].properties.dtype)
        whole = torch.empty(shape, dtype=dtype, device="meta")
        tensors.append(_described(name, whole, raw.tell()))
        for chunk in sorted(listed[key].chunks, key=lambda one: tuple(one.offsets)):
            start = tuple(chunk.offsets)
            size = tuple(chunk.sizes)
            if 0 in size:
                continue
            next_start = (rows, *[0] * len(shape))
            if start != next_start[: len(shape)] or size[1:] != shape[1:]:
                raise ValueError(f"tensor {name[:80]!r} is not split by rows alone")
            piece = _piece(pieces[key, start], files)
            if (piece.shape, piece.dtype) != (size, dtype):
                raise ValueError(f"a piece of tensor {name[:80]!r} is not what .metadata says")
            raw.write(piece.reshape(-1).view(torch.uint8).numpy().data)
            rows += size[0] if size else 1
        if rows != (shape[0] if shape else 1) and 0 not in shape:
            raise ValueError(f"a piece of tensor {name[:80]!r} is missing")
    return {"raw": True, "tensors": tensors}


def _piece(at: Any, files: Mapping[str, IO[bytes]]) -> torch.Tensor:
    import torch

    if at.relative_path not in files or getattr(at, "transform_descriptors", None):
        raise ValueError(f"it needs {str(at.relative_path)[:80]!r}, which cannot be read")
    file = files[at.relative_path]
    file.seek(at.offset)
    piece = torch.load(io.BytesIO(file.read(at.length)), map_location="cpu", weights_only=True)
    if not isinstance(piece, torch.Tensor):
        raise TypeError("a piece is no tensor")
    return piece.detach()


def _names_in_model(paths: Mapping[str, Sequence[object]], numbers: Set[str]) -> dict[str, str]:
    """Return the names of the model's tensors by key, without wrappers and tensors outside the
    model.

    Raises ValueError for a tensor outside the model; single numbers, such as the epoch, are
    allowed.
    """
    parts = {key: [*map(str, path)] for key, path in paths.items()}
    heads = {key: path[: 1 + (path[0] in WRAPPERS)] for key, path in parts.items()}
    own = {key: path for key, path in parts.items() if TRAINING.isdisjoint(heads[key])}
    inside = {key: path for key, path in own.items() if path[0] in WRAPPERS and len(path) > 1}
    if inside and (others := sorted(own.keys() - inside.keys() - numbers)):
        raise ValueError(f"tensor {others[0][:80]!r} lies outside the model")
    found = {}
    for key, path in (inside or own).items():
        while len(path) > 1 and path[0] in WRAPPERS:
            path = path[1:]
        found[key] = ".".join(path)
    return found


def _described(name: str, tensor: torch.Tensor, storage_start: int | None) -> dict[str, Any]:
    if storage_start is None:
        raise ValueError(f"this version of torch does not say where tensor {name[:80]!r} lies")
    return {
        "name": name,
        "dtype": DTYPES.get(str(tensor.dtype), str(tensor.dtype)),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "itemsize": tensor.dtype.itemsize,
        "start": storage_start + int(tensor.storage_offset()) * tensor.dtype.itemsize,
    }


def main() -> None:
    """Run the child: argv has the `.bin` file and a path for raw storages, stdout gets JSON."""
    import codecs

    import torch

    path = Path(sys.argv[1])
    raw = Path(sys.argv[2])
    size = path.stat().st_size
    if size == 0:
        sys.exit("it is empty")
    zipped = zipfile.is_zipfile(path)
    parts = path.parent.glob("*.distcp")
    pieces = [one for one in parts if one.is_file()] if path.name == DISTRIBUTED else []
    size += sum(one.stat().st_size for one in pieces)
    # something small first: no import then counts against a limit, or needs a file of root's
    codecs.lookup("cp437")  # of names in a zip archive
    small = io.BytesIO()
    is_new = zipped or bool(pieces)
    torch.save({"a": torch.zeros(1)}, small, _use_new_zipfile_serialization=is_new)
    small.seek(0)
    _load_zip(small) if zipped else _load_legacy(small, io.BytesIO())
    # every storage lies whole in a file of the old format, and every piece in one of a rank
    written = 0 if zipped else 2 * size + (1 << 20)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        out = stack.enter_context(open(os.devnull if zipped else raw, "wb"))  # noqa: PTH123
        files = {one.name: stack.enter_context(one.open("rb")) for one in pieces}
        confine(2 * size + HEADROOM, written, min(SECONDS, CPU + size // BYTES_A_SECOND))
        try:
            if path.name == DISTRIBUTED:
                answer = _load_distributed(file, files, out)
            else:
                answer = _load_zip(file) if zipped else _load_legacy(file, out)
        except Exception as error:  # whatever a hostile file does is this file's fault, in one line
            said = str(error).strip().partition("\n")[0][:200]
            if type(error).__name__ == "UnpicklingError":
                said = "the pickle asks for more than tensors (weights_only), or is no pickle"
            sys.exit(f"{type(error).__name__}: {said}")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
