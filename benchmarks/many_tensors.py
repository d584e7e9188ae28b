"""What does it take before the first matrix? CPU seconds of `plan` and of the start of `audit`,
from headers alone.

Writes pairs whose files are sparse, headers with nothing behind them: no weight is on the disk.
`qwen3-30b-a3b` has the names and shapes of Qwen3-30B-A3B (18,867 tensors); `experts` is made up, in
the same names: 61 layers of 1,200 experts, 220,000 tensors, an index of 20 MB. --halves adds the
same with half as many layers: what is linear takes half as long.
"""

from __future__ import annotations

import contextlib
import cProfile
import json
import pstats
import resource
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated

import typer
from processes import clean_environment
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

PER_FILE = 4_000_000_000  # bytes, as the Hub's own tools cut files


@dataclass(frozen=True)
class Shape:
    """A mixture of experts in the names of Qwen3-MoE."""

    layers: int
    experts: int
    hidden: int
    width: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        for layer in range(self.layers):
            stem = f"model.layers.{layer}"
            own = {
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
                "self_attn.q_norm": (self.head,),
                "self_attn.k_norm": (self.head,),
                "self_attn.q_proj": (self.heads * self.head, self.hidden),
                "self_attn.k_proj": (self.key_heads * self.head, self.hidden),
                "self_attn.v_proj": (self.key_heads * self.head, self.hidden),
                "self_attn.o_proj": (self.hidden, self.heads * self.head),
                "mlp.gate": (self.experts, self.hidden),
            }
            for expert in range(self.experts):
                own[f"mlp.experts.{expert}.gate_proj"] = (self.width, self.hidden)
                own[f"mlp.experts.{expert}.up_proj"] = (self.width, self.hidden)
                own[f"mlp.experts.{expert}.down_proj"] = (self.hidden, self.width)
            found |= {f"{stem}.{name}.weight": shape for name, shape in own.items()}
        return found | {
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }


MODELS = {
    "qwen3-30b-a3b": Shape(48, 128, 2048, 768, 32, 4, 128, 151_936),
    "experts": Shape(61, 1200, 2048, 256, 32, 4, 128, 151_936),
}


def write(folder: Path, shape: Shape) -> None:
    """One side: an index, a config and files of a header and a hole."""
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dimensions in shape.tensors().items():
        if size > PER_FILE:
            shards.append({})
            size = 0
        shards[-1][name] = dimensions
        size += 2 * prod(dimensions)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(tensors, file)
        write_shard(folder / file, tensors)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}, indent=2)
    )
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
    }
    config |= {
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head,
    }
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": shape.experts}))


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, dimensions in tensors.items():
        end = position + 2 * prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)


class _BegunError(Exception):
    """The first matrix would be measured now."""


def step(what: str, base: Path, tuned: Path, profile: bool) -> None:
    """Print the CPU seconds, and memory in bytes, of a step in this process, imports left out."""
    from shadow.audits.pair import Runtime, Settings, run_pair
    from shadow.audits.pair_plan import plan_pair
    from shadow.checkpoints.pairing import Filter
    from shadow.spectra.delta import Method
    from shadow.targets.families import Pair
    from shadow.targets.references import Reference

    pair = Pair("many", "base..tuned", Reference(str(base), True), Reference(str(tuned), True))
    settings = Settings(Method(), Filter())

    def stop(progress: object) -> None:
        raise _BegunError

    def work() -> None:
        with tempfile.TemporaryDirectory() as out:
            if what == "plan":
                plan_pair(pair, settings, Path(out), Runtime(jobs=1))
                return
            with contextlib.suppress(_BegunError):
                run_pair(pair, settings, Path(out), Runtime(jobs=1, show=stop))

    profiler = cProfile.Profile()
    before = resource.getrusage(resource.RUSAGE_SELF)
    profiler.runcall(work) if profile else work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    sys.stdout.write(json.dumps([seconds, after.ru_maxrss * 1024]))


def main(
    halves: Annotated[bool, typer.Option("--halves", help="Also half as many layers.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Folder for the files.")] = None,
) -> None:
    """Time what comes before the first matrix."""
    table = Table(title="before the first matrix")
    for column in ("", "tensors", "index", "plan, CPU s", "start of audit, CPU s", "resident"):
        table.add_column(column, justify="left" if not column else "right")
    models = dict(MODELS)
    if halves:
        models |= {
            f"{name}, half": replace(one, layers=one.layers // 2) for name, one in MODELS.items()
        }
    with tempfile.TemporaryDirectory() as made:
        for name, shape in sorted(models.items()):
            folder = (keep or Path(made)) / name.replace(", ", "-")
            for side in ("base", "tuned"):
                if not (folder / side).is_dir():
                    write(folder / side, shape)
            index = (folder / "base" / "model.safetensors.index.json").stat().st_size
            used = []
            for what in ("plan", "audit"):
                command = [
                    sys.executable,
                    __file__,
                    "step",
                    what,
                    str(folder / "base"),
                    str(folder / "tuned"),
                ]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, check=True, env=clean_environment()
                )
                used.append(json.loads(done.stdout))
            seconds = [f"{one[0]:.1f}" for one in used]
            memory = decimal(max(one[1] for one in used))
            table.add_row(name, f"{len(shape.tensors()):,}", decimal(index), *seconds, memory)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), "profile" in sys.argv)
    else:
        typer.run(main)
