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
# Modules from which `.metadata` may name something, beside dtypes of torch; none of it is imported.
RECORDED = (f"{TORCH}.filesystem", f"{TORCH}.metadata", "torch.serialization", "pathlib")
CONTAINERS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
}
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
HOMES = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Audit events of the standard library by which a process acts on anything but itself, and those
# that reading needs.
ACTING = frozenset({"os", "subprocess", "pty", "shutil", "socket", "ctypes", "_winapi", "winreg"})
READING = frozenset({"os.listdir", "os.scandir", "ctypes.cdata"})
DTYPES = {f"torch.{torch_name(name)}": name for name in (*FLOATS, *INTEGERS)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def layout(path: Path, shard: str, scratch: Path) -> tuple[Tensors, Path]:
    """The tensors of one `.bin` file by name, and the file that their offsets refer to.

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
            tensors = {}
            for entry in answer["tensors"]:
                tensors[entry["name"]] = _checked(entry, shard, size)
            return tensors, data
        errors = child.stderr.decode(errors="replace")
        lines = errors.strip().splitlines()
        reason = f"the reader died ({child.returncode})"
        if child.returncode == -getattr(signal, "SIGXCPU", 0):
            reason = "unpickling takes far longer than that of any checkpoint of its size"
        elif child.returncode == 1 and lines:
            reason = lines[-1][:300]
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
    """The environment of the child, with its own home and temporary folder."""
    variables = {}
    for name in ENVIRONMENT:
        if name in os.environ:
            variables[name] = os.environ[name]
    # what was installed with --user lies in the home that the child does not get
    if site.ENABLE_USER_SITE:
        variables["PYTHONUSERBASE"] = site.getuserbase()
    variables |= dict.fromkeys(HOMES, folder)
    variables |= dict.fromkeys(THREADS, "1")
    variables["LOGNAME"] = "shadow"  # torch asks for the user's name, which not every user has
    return variables


def _checked(entry: dict[str, Any], shard: str, size: int) -> TensorInfo:
    """Check what the child reports, as it read the file: every range must lie within the file."""
    name = entry["name"]
    shape = tuple(entry["shape"])
    strides = tuple(entry["strides"])
    if not usable_name(name):
        raise ValueError(f"unusable tensor name {name[:80]!r}")
    start = entry["start"]
    for number in (*shape, *strides, start):
        if type(number) is not int or not 0 <= number <= MAX_OFFSET:
            raise ValueError(f"numbers of tensor {name!r}")
    reach = 0  # elements from the first to the last in the file
    if 0 not in shape:
        reach = 1
        for length, stride in zip(shape, strides, strict=True):
            reach += (length - 1) * stride
    end = start + reach * entry["itemsize"]
    if end > size:
        raise ValueError(f"tensor {name!r} reaches beyond the file")
    return TensorInfo(name, entry["dtype"], shape, shard, start, end, strides)


def confine(memory: int, written: int, seconds: int) -> None:
    """Give up what reading does not need. A system may lack any of these, so none is the only
    guard.

    memory: bytes beyond what is in use. written: the size to which an open file may grow. seconds:
    of a core, beyond what was used.
    """
    import ctypes

    with contextlib.suppress(ImportError, OSError):
        import resource

        pages, *_ = Path("/proc/self/statm").read_text().split()
        used = int(pages) * resource.getpagesize()
        _limit("RLIMIT_AS", used + memory)
    used_seconds = math.ceil(time.process_time())
    _limit("RLIMIT_CPU", used_seconds + seconds, more=1)
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
    group, _, _ = event.partition(".")
    is_acting = event not in READING and group in ACTING
    if is_acting or (event == "open" and arguments[2] & WRITING):
        raise PermissionError(f"{event} is not needed to read weights")


def _state(loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    for key in ("state_dict", "model", "module"):  # what trainers wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise TypeError("it holds no table of tensors")
    tensors = {}
    for key, value in loaded.items():
        if isinstance(value, torch.Tensor):
            if not isinstance(key, str):
                raise TypeError("a tensor's name is not text")
            tensors[key] = value.detach()
    _require_few(len(tensors))
    return tensors


def _require_few(count: int) -> None:
    if count > MAX_ENTRIES:
        raise ValueError(f"{count:,} tensors; at most {MAX_ENTRIES:,} are read")


def _loaded(file: IO[bytes]) -> Any:
    """Unpickle tensors and containers alone."""
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)


def _load_zip(file: IO[bytes]) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a compressed archive")
            is_order = member.filename.endswith("/byteorder")
            if is_order and archive.read(member) != sys.byteorder.encode():
                raise ValueError("written by a machine of the other byte order")
    file.seek(0)
    # reads the pickle alone; every storage tells its offset in the file, as the notes of torch on
    # serialization describe ("Layout Control")
    with FakeTensorMode():
        state = _state(_loaded(file))
    tensors = []
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        offset = getattr(storage, "_checkpoint_offset", None)
        tensors.append(_described(name, tensor, offset))
    return {"raw": False, "tensors": tensors}


def _load_legacy(file: IO[bytes], raw: IO[bytes]) -> dict[str, Any]:
    import ctypes

    offsets: dict[int, int] = {}
    tensors = []
    for name, tensor in _state(_loaded(file)).items():
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        size = storage.nbytes()
        if address not in offsets:  # tensors that share a storage share it here too
            offsets[address] = raw.tell()
            if size:
                content = ctypes.c_char * size
                raw.write(content.from_address(address))
        tensors.append(_described(name, tensor, offsets[address]))
    raw.flush()
    return {"raw": True, "tensors": tensors}


class _Record:
    """Stand-in for an object of a pickle."""

    def __init__(self, *parts: object) -> None:
        """Ignore what it is made of."""

    def __setstate__(self, state: Any) -> None:  # TensorProperties has a tuple
        self.__dict__.update(state if isinstance(state, dict) else {"dtype": state[0]})


class _Records(pickle.Unpickler):
    """Unpickler for records, texts, numbers and containers; names of other modules are refused."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module in RECORDED:
            return _Record
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        dtype = getattr(torch, name, None)
        if module == "torch" and isinstance(dtype, torch.dtype):
            return name
        raise ValueError(f"it names {module}.{name}, which no checkpoint does"[:200])


def _load_distributed(
    metadata: IO[bytes], files: Mapping[str, IO[bytes]], raw: IO[bytes]
) -> dict[str, Any]:
    """Write the tensors of the model one after another, and return their layout."""
    import torch

    recorded = _Records(metadata).load()
    pieces = {}
    for index, piece in recorded.storage_data.items():
        offset = getattr(index, "offset", None) or ()  # what is no tensor has none
        pieces[index.fqn, tuple(offset)] = piece
    planned = recorded.planner_data or {}
    listed = {}
    paths = {}
    numbers = set()
    for key, entry in recorded.state_dict_metadata.items():
        if hasattr(entry, "chunks"):
            listed[key] = entry
            paths[key] = planned.get(key, (key,))
            if not tuple(entry.size):
                numbers.add(key)
    names = _names_in_model(paths, numbers)
    _require_few(len(names))
    if len(set(names.values())) < len(names):
        raise ValueError("it contains two models")
    tensors = []
    for key, name in names.items():
        entry = listed[key]
        shape = tuple(entry.size)
        rows = 0
        dtype = getattr(torch, entry.properties.dtype)
        whole = torch.empty(shape, dtype=dtype, device="meta")
        tensors.append(_described(name, whole, raw.tell()))
        for chunk in sorted(entry.chunks, key=lambda chunk: tuple(chunk.offsets)):
            start = tuple(chunk.offsets)
            size = tuple(chunk.sizes)
            if 0 in size:
                continue
            next_start = (rows, *[0] * len(shape))
            if start != next_start[: len(shape)] or size[1:] != shape[1:]:
                raise ValueError(f"tensor {name[:80]!r} is not split by rows alone")
            part = _piece(pieces[key, start], files)
            if (part.shape, part.dtype) != (size, dtype):
                raise ValueError(f"a piece of tensor {name[:80]!r} is not what .metadata says")
            content = part.reshape(-1).view(torch.uint8).numpy()
            raw.write(content.data)
            rows += size[0] if size else 1
        expected = shape[0] if shape else 1
        if rows != expected and 0 not in shape:
            raise ValueError(f"a piece of tensor {name[:80]!r} is missing")
    return {"raw": True, "tensors": tensors}


def _piece(place: Any, files: Mapping[str, IO[bytes]]) -> torch.Tensor:
    import torch

    if place.relative_path not in files or getattr(place, "transform_descriptors", None):
        raise ValueError(f"it needs {str(place.relative_path)[:80]!r}, which cannot be read")
    file = files[place.relative_path]
    file.seek(place.offset)
    content = io.BytesIO(file.read(place.length))
    piece = _loaded(content)
    if not isinstance(piece, torch.Tensor):
        raise TypeError("a piece is no tensor")
    return piece.detach()


def _names_in_model(paths: Mapping[str, Sequence[object]], numbers: Set[str]) -> dict[str, str]:
    """The names of the model's tensors by key, without wrappers and tensors outside the
    model.

    Raises ValueError for a tensor outside the model; single numbers, such as the epoch, are
    allowed.
    """
    own: dict[str, list[str]] = {}
    inside: dict[str, list[str]] = {}
    for key, path in paths.items():
        parts = [*map(str, path)]
        is_wrapped = parts[0] in WRAPPERS
        if TRAINING.isdisjoint(parts[: 1 + is_wrapped]):
            own[key] = parts
            if is_wrapped and len(parts) > 1:
                inside[key] = parts
    others = sorted(own.keys() - inside.keys() - numbers)
    if inside and others:
        raise ValueError(f"tensor {others[0][:80]!r} lies outside the model")
    names = {}
    for key, parts in (inside or own).items():
        while len(parts) > 1 and parts[0] in WRAPPERS:
            parts = parts[1:]
        names[key] = ".".join(parts)
    return names


def _described(name: str, tensor: torch.Tensor, storage_start: int | None) -> dict[str, Any]:
    if storage_start is None:
        raise ValueError(f"this version of torch does not say where tensor {name[:80]!r} lies")
    dtype = str(tensor.dtype)
    itemsize = tensor.dtype.itemsize
    return {
        "name": name,
        "dtype": DTYPES.get(dtype, dtype),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "itemsize": itemsize,
        "start": storage_start + int(tensor.storage_offset()) * itemsize,
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
    pieces = []
    if path.name == DISTRIBUTED:
        parts = path.parent.glob("*.distcp")
        pieces = [part for part in parts if part.is_file()]
    size += sum(piece.stat().st_size for piece in pieces)
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
        files = {}
        for piece in pieces:
            files[piece.name] = stack.enter_context(piece.open("rb"))
        seconds = CPU + size // BYTES_A_SECOND
        confine(2 * size + HEADROOM, written, min(SECONDS, seconds))
        try:
            if path.name == DISTRIBUTED:
                answer = _load_distributed(file, files, out)
            else:
                answer = _load_zip(file) if zipped else _load_legacy(file, out)
        except Exception as error:  # whatever a hostile file does is this file's fault, in one line
            kind = type(error).__name__
            fault, _, _ = str(error).strip().partition("\n")
            if kind == "UnpicklingError":
                fault = "the pickle asks for more than tensors (weights_only), or is no pickle"
            sys.exit(f"{kind}: {fault[:200]}")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
