"""Tensors that transformers expects of a checkpoint: a child process loads shapes on the meta
device.

The child gets names, dtypes and shapes from the headers and a config that names nothing to fetch or
run. It has no token, no standard input and no network, and limits on memory and time. Classes are
those of transformers' own tables.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from shadow.checkpoints.pickles import confine, run_child
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS, INTEGERS, torch_name
from shadow.version import __version__

SECONDS = 180  # the largest released models take a minute
MEMORY = 8 << 30  # bytes beyond what the imports take
ASKED = ("transformers", "torch", "accelerate")  # whose versions an answer depends on
LASTING = ("", "unknown_class")  # problems that a second child would find again
UNREADABLE = (ValueError, IndexError, RecursionError)  # of what is no answer
RAISED = 1  # exit code of a child with an exception that is not of transformers
LONGEST = 300  # characters of what the child says of a fault
# keys of a config, at any depth, that name code, files or repositories, or how weights are packed
STRIPPED = re.compile(
    r"auto_map|.*_implementation(_internal|_autoset)?|quantization_config|compression_config"
    r"|.*backbone(_kwargs)?|.*name_or_path|_commit_hash|.*_pretrained.*|custom_pipelines"
    r"|transformers_weights|trust_remote_code|token|use_auth_token"
)
INFINITE = ("Infinity", "-Infinity", "NaN")  # as transformers writes them: {"__float__": "NaN"}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Expected:
    """Answer of transformers about the names and shapes of a checkpoint."""

    missing: Sequence[str] = ()
    """Tensors of the model that the files lack: they would start at random."""
    unexpected: Sequence[str] = ()
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = ()
    """(name, shape in the files, shape of the model)."""
    problem: str = ""  # why it could not be asked, as a code; empty where it was
    detail: str = ""
    tied: bool | None = None  # whether the class ties its head by this config; None where not asked
    usual: Sequence[int] = ()  # tokens that a config of this class names unless it is told others
    inputs: Sequence[str] = ()
    """The files' tensors that are the embedding of the text's tokens, as the model has it."""
    outputs: Sequence[str] = ()  # those that are the head over these tokens
    tables: Sequence[str] = ()
    """Those that rows are looked up in, of which some may never have been used."""
    spare: str = ""  # a class of the same config that has the unexpected tensors, as other heads
    vocabulary: int | None = None
    """Rows of that embedding in the model; 0 of a model without one. None where not asked."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Layers, and other members of a list, that the files lack as a whole; how many tensors each
    has.
    """
    in_f32: Sequence[str] = ()
    """The files' tensors that this class keeps in F32 in models of 16 bits."""


def stripped(config: Any) -> Any:
    """Remove from a config, at every depth, keys that name code, files or repositories, and texts
    that look like a path.
    """
    if isinstance(config, dict):
        if config.keys() == {"__float__"} and config["__float__"] in INFINITE:
            return float(config["__float__"])
        plain = {}
        for key, value in config.items():
            is_path = isinstance(value, str) and ("/" in value or "\\" in value)
            if not is_path and not STRIPPED.fullmatch(key):
                plain[key] = stripped(value)
        return plain
    if isinstance(config, list):
        return [stripped(value) for value in config]
    # as a reader of JSON passes on what JSON has no number for
    return float(config) if isinstance(config, str) and config in INFINITE else config


class Cache(Protocol):
    """Bytes that were stored under a key, 64 hexadecimal digits."""

    def load(self, key: str) -> bytes | None:
        """Read them; None if there are none."""

    def store(self, key: str, content: bytes) -> None:
        """Write them. Raises OSError."""


def expected(
    config: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    scratch: Path,
    cache: Cache | None = None,
    begins: Callable[[], None] = lambda: None,
) -> Expected:
    """Ask transformers, unless the cache has its answer. scratch: a folder for the question;
    begins: called when a child starts.
    """
    listed = {}
    for name, info in tensors.items():
        if not info.problem:
            dtype = "BF16" if info.packing else info.dtype
            listed[name] = (dtype, info.shape)
    try:
        plain = stripped(config)
        question = json.dumps({"config": plain, "tensors": listed})
    except RecursionError:
        return Expected(problem="config_deep")
    key = key_of(question)
    if cache is None or key is None:
        return _ask(question, scratch, begins)
    known = cache.load(key)
    if known is not None:
        with contextlib.suppress(*UNREADABLE):
            answer = read_answer(known)
            if answer.problem in LASTING:
                return answer
    answer = _ask(question, scratch, begins)
    if answer.problem in LASTING:
        content = json.dumps(asdict(answer))
        with contextlib.suppress(OSError):  # a full disk, a folder that may not be written
            cache.store(key, content.encode())
    return answer


def key_of(question: str) -> str | None:
    """The name of an answer: a sha256 of all that it depends on. None where no loader is
    installed.
    """
    try:
        versions = [version(package) for package in ASKED]
    except PackageNotFoundError:
        return None
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{versions} {__version__}\n{question}".encode())
    return digest.hexdigest()


def _ask(question: str, scratch: Path, begins: Callable[[], None]) -> Expected:
    """Ask transformers in a child."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "expected.json"
    path.write_text(question)
    # -P and not -I, as of the child that reads pickles
    command = [sys.executable, "-P", "-m", "shadow.checkpoints.expected", str(path)]
    try:
        child = run_child(command, scratch, SECONDS, OFFLINE, begins=begins)
    except subprocess.TimeoutExpired:
        return Expected(problem="loader_slow", detail=f"{SECONDS}")
    finally:
        path.unlink(missing_ok=True)
    try:
        return read_answer(child.stdout.splitlines()[-1])
    except UNREADABLE:
        if child.returncode == RAISED:
            errors = child.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"asking transformers failed: {errors[-10 * LONGEST :]}") from None
        return Expected(problem="loader_died", detail=f"exit code {child.returncode}")


def read_answer(content: bytes) -> Expected:
    """Read an answer as JSON has it. Raises one of UNREADABLE unless every field is there."""
    from pydantic import TypeAdapter

    recorded = json.loads(content)
    names = {field.name for field in fields(Expected)}
    if not isinstance(recorded, dict) or recorded.keys() != names:
        raise ValueError("fields")
    return TypeAdapter(Expected).validate_python(recorded)


def main() -> None:
    """Run the child: argv has the file with the question, or stdin has one a line; the last line of
    stdout is the answer.
    """
    questions: Iterable[str] = sys.stdin
    if sys.argv[1:]:
        questions = [Path(sys.argv[1]).read_text()]
    guard = functools.cache(lambda: confine(MEMORY, 0, SECONDS))
    for question in questions:
        recorded = json.loads(question)
        answer = asked(recorded["config"], recorded["tensors"], guard)
        content = json.dumps(asdict(answer))
        print(f"\n{content}", flush=True)


def asked(
    config: dict[str, Any],
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    guard: Callable[[], None],
) -> Expected:
    """Load shapes into the class that a config names. guard: called when everything is imported.

    What transformers raises is a problem of the answer; any other exception is raised.
    """
    try:
        return _asked(config, tensors, guard)
    except LoaderError as fault:
        return Expected(problem=fault.problem, detail=fault.detail[:LONGEST])
    except MemoryError:
        return Expected(problem="loader_large")


class LoaderError(Exception):
    """An exception of transformers, as a code of `whole`."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail


@contextlib.contextmanager
def of_transformers() -> Iterator[None]:
    """Raise LoaderError for whatever a config makes transformers do."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if getattr(error, "name", None) in ("transformers", "accelerate"):
            raise LoaderError("no_transformers", str(error)) from error
        detail = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        raise LoaderError("loader_failed", detail) from error


def _asked(
    config: dict[str, Any],
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    guard: Callable[[], None],
) -> Expected:
    with of_transformers():
        import accelerate  # type: ignore[import-untyped]  # noqa: F401 - transformers needs it for shapes alone
        import torch
        import transformers
        from transformers.models.auto import configuration_auto, modeling_auto

    kind = config.get("model_type")
    name = config["architectures"][0]
    classes: set[str] = set()
    others: set[str] = set()  # of the same kind
    for table, models in vars(modeling_auto).items():
        if table.endswith("_MAPPING_NAMES"):
            for key, value in models.items():
                names = [value] if isinstance(value, str) else value
                classes.update(names)
                if key == kind:
                    others.update(names)
    kinds = configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in kinds or name not in classes:
        return Expected(problem="unknown_class", detail=name[:LONGEST])
    with of_transformers():
        settings = kinds[kind]
        cls = getattr(transformers, name)
        guard()
        model_config = settings.from_dict(config)
        plain = settings()
        inner = model_config.get_text_config()
        plain_inner = plain.get_text_config()
    state = {}
    for tensor, (dtype, shape) in tensors.items():
        is_known = dtype in FLOATS or dtype in INTEGERS
        numbers = getattr(torch, torch_name(dtype)) if is_known else torch.uint8
        empty = torch.empty(shape, dtype=numbers, device="meta")
        state[tensor] = empty
    with contextlib.redirect_stdout(sys.stderr), of_transformers():
        # not the class's own, which may read other files
        load = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
        model, loading = load(
            cls,
            None,
            config=model_config,
            state_dict=state,
            device_map={"": "meta"},
            use_kernels=False,  # which exist for no device of shapes
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    usual = []
    for part in (plain, plain_inner):
        for key, value in part.to_dict().items():
            if key.endswith(("_token_id", "_token_index")):
                tokens = value if isinstance(value, list | tuple) else [value]
                usual += [token for token in tokens if type(token) is int]
    mismatched = []
    for tensor, of_files, of_model in sorted(loading["mismatched_keys"]):
        mismatched.append((tensor, tuple(of_files), tuple(of_model)))
    messages = map(str, loading.get("error_msgs") or ())
    faults = " ".join(messages)
    missing = {*loading["missing_keys"]}
    unexpected = sorted(loading["unexpected_keys"])
    embedding, head = vocabulary_of(model)
    rows = getattr(inner, "vocab_size", None)
    if embedding is None or not isinstance(rows, int) or len(embedding) < rows:  # of sounds
        embedding = None
        head = None
    inputs = files_names(model, [embedding], tensors)
    outputs = files_names(model, [head], tensors)
    looked_up = []
    for module in model.modules():
        if hasattr(module, "padding_idx"):
            looked_up.append(getattr(module, "weight", None))
    return Expected(
        sorted(missing),
        unexpected,
        mismatched,
        "loader_failed" if faults else "",
        faults[:LONGEST],
        _are_tied(model, embedding, head),
        usual,
        inputs=inputs,
        outputs=[name for name in outputs if name not in inputs],
        tables=files_names(model, looked_up, tensors),
        spare="" if missing else class_with(unexpected, model_config, others),
        vocabulary=0 if embedding is None else len(embedding),
        lost=lost_members(model.state_dict().keys(), missing),
        in_f32=_in_f32(model, tensors),
    )


def vocabulary_of(model: Any) -> tuple[Any, Any]:
    """The weights of the input and output embeddings of a model of transformers; None for
    one that it does not have as a matrix.
    """
    weights = []
    for ask in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            with of_transformers():
                weight = getattr(ask(), "weight", None)
        except LoaderError:  # a model of images or sounds
            weight = None
        is_matrix = getattr(weight, "ndim", 0) == 2
        weights.append(weight if is_matrix else None)
    return weights[0], weights[1]


def files_names(model: Any, matrices: Iterable[Any], stored: Collection[str]) -> list[str]:
    """The names in the files of matrices of the model, which it may have under others."""
    from transformers.core_model_loading import revert_weight_conversion

    wanted = {id(matrix) for matrix in matrices}
    parameters = model.named_parameters(remove_duplicate=False)
    own = {}
    for name, parameter in parameters:
        if id(parameter) in wanted:
            own[name] = parameter
    with of_transformers():
        saved = revert_weight_conversion(model, own)
    return [name for name in own | saved if name in stored]


def _are_tied(model: Any, embedding: Any, head: Any) -> bool:
    """True if a class ties both, also where the files have one of its own for each."""
    sources = model.all_tied_weights_keys
    of_embedding = set()
    of_head = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = sources.get(name, name)
        if parameter is embedding:
            of_embedding.add(source)
        if parameter is head:
            of_head.add(source)
    return not of_embedding.isdisjoint(of_head)


def class_with(names: Collection[str], config: Any, classes: Collection[str]) -> str:
    """One of the classes that has these tensors outside its layers: heads of a task that
    the files were trained on and the class of their config does without. Empty if none has.
    """
    import torch
    import transformers

    if names and not any(map(owners_of, names)):
        for name in sorted(classes):
            with contextlib.suppress(LoaderError), of_transformers(), torch.device("meta"):
                model = getattr(transformers, name)(config)
                if model.state_dict().keys() >= {*names}:
                    return name
    return ""


def lost_members(names: Iterable[str], missing: Collection[str]) -> dict[str, int]:
    """The members of numbered lists, such as layers, of which every tensor is missing, and
    how many each has; of nested ones the outermost.
    """
    totals = Counter(owner for name in names for owner in owners_of(name))
    absent = Counter(owner for name in missing for owner in owners_of(name))
    lost = {}
    for owner, count in absent.items():
        if count == totals[owner]:
            lost[owner] = count
    outermost = {}
    for owner, count in lost.items():
        if lost.keys().isdisjoint(owners_of(owner)):
            outermost[owner] = count
    return outermost


def owners_of(name: str) -> list[str]:
    """The numbered modules that a name is inside of: `model.layers.3`, the outermost
    first.
    """
    owners = []
    parts = name.split(".")
    for length, part in enumerate(parts[:-1], start=1):
        if part.isdecimal():
            owners.append(".".join(parts[:length]))
    return owners


def _in_f32(model: Any, tensors: Iterable[str]) -> list[str]:
    """The tensors that match what a model keeps in F32, as transformers matches them."""
    patterns = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    texts = [pattern.replace("*", ".*") for pattern in sorted(patterns)]
    return sorted(name for name in tensors if any(re.search(text, name) for text in texts))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # to take apart what was imported would take half a second
