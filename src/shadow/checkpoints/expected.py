"""Tensors that transformers expects of a checkpoint: a child process loads shapes on the meta
device.

The child gets names, dtypes and shapes from the headers and a config that names nothing to fetch or
run. It has no token, no standard input and no network, and limits on memory and time. Classes are
those of transformers' own tables.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shadow.checkpoints.pickles import confine, run_child
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS, INTEGERS, torch_name

SECONDS = 180  # the largest released models take a minute
MEMORY = 8 << 30  # bytes beyond what the imports take
RAISED = 1  # exit code of a child with an exception that is not of transformers
LONGEST = 300  # characters of what the child says of a fault
# keys of a config, at any depth, that name code, files or repositories, or how weights are packed
STRIPPED = re.compile(
    r"auto_map|.*_implementation(_internal|_autoset)?|quantization_config|compression_config"
    r"|.*backbone(_kwargs)?|.*name_or_path|_commit_hash|.*_pretrained.*|custom_pipelines"
    r"|transformers_weights|trust_remote_code|token|use_auth_token"
)
INFINITE = ("Infinity", "-Infinity", "NaN")  # as transformers writes them: {"__float__": "NaN"}
HUB = ("HUB_OFFLINE", "HUB_DISABLE_IMPLICIT_TOKEN", "DEACTIVATE_ASYNC_LOAD")
OFFLINE = {f"HF_{word}": "1" for word in HUB} | {"PYTHONDONTWRITEBYTECODE": "1"}


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
    tied: bool = False  # whether the head is the embedding, by the config of this class
    usual: Sequence[int] = ()  # tokens that a config of this class names unless it is told others
    inputs: Sequence[str] = ()
    """The files' tensors that are the embedding of the text's tokens, as the model has it."""
    outputs: Sequence[str] = ()  # those that are the head over these tokens
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
        return {
            key: stripped(value)
            for key, value in config.items()
            if not STRIPPED.fullmatch(key)
            and not (isinstance(value, str) and ("/" in value or "\\" in value))
        }
    if isinstance(config, list):
        return [stripped(one) for one in config]
    # as a reader of JSON passes on what JSON has no number for
    return float(config) if isinstance(config, str) and config in INFINITE else config


def expected(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], scratch: Path
) -> Expected:
    """Ask transformers. scratch: a folder for the child's input."""
    scratch.mkdir(parents=True, exist_ok=True)
    question = scratch / "expected.json"
    listed = {
        name: ("BF16" if info.packing else info.dtype, info.shape)
        for name, info in tensors.items()
        if not info.problem
    }
    try:
        question.write_text(json.dumps({"config": stripped(config), "tensors": listed}))
    except RecursionError:
        return Expected(problem="config_deep")
    # -P and not -I, as of the child that reads pickles
    command = [sys.executable, "-P", "-m", "shadow.checkpoints.expected", str(question)]
    try:
        child = run_child(command, scratch, SECONDS, OFFLINE)
    except subprocess.TimeoutExpired:
        return Expected(problem="loader_slow", detail=f"{SECONDS}")
    finally:
        question.unlink(missing_ok=True)
    try:
        recorded = json.loads(child.stdout.decode(errors="replace").splitlines()[-1])
        mismatched = [
            (name, tuple(own), tuple(other)) for name, own, other in recorded["mismatched"]
        ]
        return Expected(**{**recorded, "mismatched": mismatched})
    except (ValueError, KeyError, TypeError, IndexError):
        if child.returncode == RAISED:
            said = child.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"asking transformers failed: {said[-10 * LONGEST :]}") from None
        return Expected(problem="loader_died", detail=f"exit code {child.returncode}")


def main() -> None:
    """Run the child: argv has the file with the question; the last line of stdout is the answer."""
    recorded = json.loads(Path(sys.argv[1]).read_text())
    answer = asked(
        recorded["config"], recorded["tensors"], guard=lambda: confine(MEMORY, 0, SECONDS)
    )
    sys.stdout.write("\n" + json.dumps(asdict(answer)) + "\n")


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
        self.problem, self.detail = problem, detail


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

    kind, name = config.get("model_type"), config["architectures"][0]
    known = {
        one
        for table, models in vars(modeling_auto).items()
        if table.endswith("_MAPPING_NAMES")
        for value in models.values()
        for one in ([value] if isinstance(value, str) else value)
    }
    kinds = configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in kinds or name not in known:
        return Expected(problem="unknown_class", detail=name[:LONGEST])
    with of_transformers():
        settings, cls = kinds[kind], getattr(transformers, name)
        guard()
        made, plain = settings.from_dict(config), settings()
        inner, plain_inner = made.get_text_config(), plain.get_text_config()
    state = {}
    for tensor, (dtype, shape) in tensors.items():
        is_known = dtype in FLOATS or dtype in INTEGERS
        numbers = getattr(torch, torch_name(dtype)) if is_known else torch.uint8
        state[tensor] = torch.empty(shape, dtype=numbers, device="meta")
    with contextlib.redirect_stdout(sys.stderr), of_transformers():
        model, found = cls.from_pretrained(
            None, config=made, state_dict=state, device_map={"": "meta"},
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    usual = [getattr(part, f"{word}_token_id", None) for word in ("eos", "bos", "pad")
             for part in (plain, plain_inner)]  # fmt: skip
    mismatched = sorted(found["mismatched_keys"])
    faults = " ".join(map(str, found.get("error_msgs") or ()))[:LONGEST]
    missing = {*found["missing_keys"]}
    embedding, head = vocabulary_of(model)
    rows = getattr(inner, "vocab_size", None)
    if embedding is None or not isinstance(rows, int) or len(embedding) < rows:  # of sounds
        embedding, head = None, None
    inputs, outputs = (files_names(model, matrix, missing, tensors) for matrix in (embedding, head))
    return Expected(
        sorted(missing),
        sorted(found["unexpected_keys"]),
        [(tensor, tuple(one), tuple(other)) for tensor, one, other in mismatched],
        "loader_failed" if faults else "",
        faults,
        bool(getattr(inner, "tie_word_embeddings", False)),
        [one for said in usual for one in (said if isinstance(said, list | tuple) else [said])
         if type(one) is int],
        inputs=inputs,
        outputs=[name for name in outputs if name not in inputs],
        vocabulary=0 if embedding is None else len(embedding),
        lost=lost_members(model.state_dict().keys(), missing),
        in_f32=_in_f32(model, tensors),
    )  # fmt: skip


def vocabulary_of(model: Any) -> tuple[Any, Any]:
    """Return the weights of the input and output embeddings of a model of transformers; None for
    one that it does not have as a matrix.
    """
    weights = []
    for ask in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            with of_transformers():
                weight = getattr(ask(), "weight", None)
        except LoaderError:  # a model of images or sounds
            weight = None
        weights.append(weight if getattr(weight, "ndim", 0) == 2 else None)
    return weights[0], weights[1]


def files_names(
    model: Any, matrix: Any, missing: Collection[str], stored: Collection[str]
) -> list[str]:
    """Return the names in the files of a matrix of the model. Files may have an older name, which
    ends like that of the model.
    """
    names = [name for name, one in model.named_parameters(remove_duplicate=False) if one is matrix]
    if exact := [name for name in names if name in stored]:
        return exact
    parts = [name.split(".") for name in names if name not in missing]
    lengths = {
        name: max((_common_end(name.split("."), own) for own in parts), default=0)
        for name in stored
    }
    longest = max(lengths.values(), default=0)
    nearest = [name for name, length in lengths.items() if length == longest]
    return nearest if longest > 1 and len(nearest) == 1 else []


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def lost_members(names: Iterable[str], missing: Collection[str]) -> dict[str, int]:
    """Return the members of numbered lists, such as layers, of which every tensor is missing, and
    how many each has; of nested ones the outermost.
    """
    totals = Counter(owner for name in names for owner in owners_of(name))
    absent = Counter(owner for name in missing for owner in owners_of(name))
    lost = {owner: count for owner, count in absent.items() if count == totals[owner]}
    return {
        owner: count
        for owner, count in lost.items()
        if not any(outer in lost for outer in owners_of(owner))
    }


def owners_of(name: str) -> list[str]:
    """Return the numbered modules that a name is inside of: `model.layers.3`, the outermost
    first.
    """
    parts = name.split(".")
    return [".".join(parts[: at + 1]) for at, part in enumerate(parts[:-1]) if part.isdecimal()]


def _in_f32(model: Any, tensors: Iterable[str]) -> list[str]:
    """Return the tensors that match what a model keeps in F32, as transformers matches them."""
    patterns = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    kept = [re.compile(pattern.replace("*", ".*")) for pattern in sorted(patterns)]
    return sorted(name for name in tensors if any(one.search(name) for one in kept))


if __name__ == "__main__":
    main()
