"""Tensors that transformers expects of a checkpoint: a child process loads shapes on the meta
device.

The child gets names, dtypes and shapes from the headers and a config that names nothing to fetch or
run. It has no token, no standard input and no network, and limits on memory and time. Classes are
those of transformers' own tables.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadow.checkpoints.pickles import confine, run_child
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS, INTEGERS, torch_name

SECONDS = 180  # the largest released models take a minute
MEMORY = 8 << 30  # bytes beyond what the imports take
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
    return [stripped(one) for one in config] if isinstance(config, list) else config


def expected(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], scratch: Path
) -> Expected:
    """Ask transformers. scratch: a folder for the child's input."""
    scratch.mkdir(parents=True, exist_ok=True)
    question = scratch / "expected.json"
    listed = {name: (info.dtype, info.shape) for name, info in tensors.items() if not info.problem}
    question.write_text(json.dumps({"config": stripped(config), "tensors": listed}))
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
        return Expected(problem="loader_died", detail=f"exit code {child.returncode}")


def main() -> None:
    """Run the child: argv has the file with the question; the last line of stdout is the answer."""
    recorded = json.loads(Path(sys.argv[1]).read_text())
    try:
        answer = asked(
            recorded["config"], recorded["tensors"], guard=lambda: confine(MEMORY, 0, SECONDS)
        )
    except MemoryError:
        answer = Expected(problem="loader_large")
    except Exception as error:  # whatever a config makes transformers do
        lacks = getattr(error, "name", None) in ("transformers", "accelerate")
        detail = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        problem = "no_transformers" if lacks else "loader_failed"
        answer = Expected(
            problem=problem, detail=str(error)[:LONGEST] if lacks else detail[:LONGEST]
        )
    sys.stdout.write("\n" + json.dumps(asdict(answer)) + "\n")


def asked(
    config: dict[str, Any],
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    guard: Callable[[], None],
) -> Expected:
    """Load shapes into the class that a config names. guard: called when everything is imported."""
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
    settings, cls = kinds[kind], getattr(transformers, name)
    guard()
    made, plain = settings.from_dict(config), settings()
    state = {}
    for tensor, (dtype, shape) in tensors.items():
        is_known = dtype in FLOATS or dtype in INTEGERS
        numbers = getattr(torch, torch_name(dtype)) if is_known else torch.uint8
        state[tensor] = torch.empty(shape, dtype=numbers, device="meta")
    with contextlib.redirect_stdout(sys.stderr):
        _, found = cls.from_pretrained(
            None, config=made, state_dict=state, device_map={"": "meta"},
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    usual = [getattr(part, f"{word}_token_id", None) for word in ("eos", "bos", "pad")
             for part in (plain, plain.get_text_config())]  # fmt: skip
    mismatched = sorted(found["mismatched_keys"])
    faults = " ".join(map(str, found.get("error_msgs") or ()))[:LONGEST]
    return Expected(
        sorted(found["missing_keys"]),
        sorted(found["unexpected_keys"]),
        [(tensor, tuple(one), tuple(other)) for tensor, one, other in mismatched],
        "loader_failed" if faults else "",
        faults,
        bool(getattr(made.get_text_config(), "tie_word_embeddings", False)),
        [one for said in usual for one in (said if isinstance(said, list | tuple) else [said])
         if type(one) is int],
    )  # fmt: skip


if __name__ == "__main__":
    main()
