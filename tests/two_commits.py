"""Compare what two commits measure on one machine, to the bit.

    python tests/two_commits.py BEFORE AFTER [--audit NAME]... [--keep FOLDER]

BEFORE and AFTER are commits, or folders of checkouts ("." is the working tree). Both audit the
same pairs: the demo, decoders with an adapter, shards, fused, transposed and stacked matrices,
quantised sides, a model with a vision tower, and what is skipped. Exit codes and every column of
the Parquet files that both sides have must be equal in every bit; columns that only one side has
are listed. The exit code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

ROOT = Path(__file__).parents[1]
TIME = 1_600_000_000  # of every input file, in seconds: fingerprints hold it
TABLES = ("matrices", "tensors", "spectra")
KEYS = ("side", "subject", "tensor", "component", "layer", "module", "expert")
LLAMA = {
    "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64,
}  # fmt: skip
LAYER = "model.layers.{}.{}.weight"
HIDDEN, INNER, WORDS = 64, 96, 80
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


# inputs


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers of a stream that NumPy promises to keep."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def write(
    folder: Path, tensors: Tensors, config: dict | None = None, name: str = "model.safetensors"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    (folder / "config.json").write_text(json.dumps(LLAMA | (config or {})))


def decoder(layers: int = 2) -> Tensors:
    """A decoder with grouped queries, norms, an embedding and a head, in bfloat16."""
    found = {"model.embed_tokens.weight": normal(1, WORDS, HIDDEN) * 0.05}
    for layer in range(layers):
        for place, (name, shape) in enumerate(SHAPES.items()):
            found[LAYER.format(layer, name)] = (
                normal(10 * layer + place + 2, *shape) / shape[1] ** 0.5
            )
        found[LAYER.format(layer, "input_layernorm")] = 1 + 0.1 * normal(layer + 70, HIDDEN)
        found[LAYER.format(layer, "post_attention_layernorm")] = torch.ones(HIDDEN)
    found["model.norm.weight"] = torch.ones(HIDDEN)
    found["lm_head.weight"] = normal(99, WORDS, HIDDEN) * 0.05
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def tuned(tensors: Tensors, seed: int, *, rank: int, size: float, noise: float) -> Tensors:
    """The tensors after an update of low rank and noise, of sizes relative to each matrix."""
    found = {}
    for place, (name, tensor) in enumerate(tensors.items()):
        change = torch.zeros(tensor.shape)
        if tensor.ndim == 2:
            rows, cols = tensor.shape
            first = 1000 * seed + 3 * place
            low = normal(first, rows, rank) @ normal(first + 1, rank, cols) / rank**0.5
            change = (size * low + noise * normal(first + 2, rows, cols)) * tensor.float().std()
        found[name] = (tensor.float() + change).to(tensor.dtype)
    return found


def with_biases(tensors: Tensors, seed: int, names: tuple[str, ...]) -> Tensors:
    found = dict(tensors)
    for place, (name, tensor) in enumerate(tensors.items()):
        if name.endswith(tuple(f"{one}.weight" for one in names)):
            found[name.replace(".weight", ".bias")] = normal(seed + place, len(tensor)).bfloat16()
    return found


def fused(tensors: Tensors, into: str, parts: tuple[str, ...]) -> Tensors:
    """Projections put below each other under one name, weights and biases."""
    found = {
        name: one for name, one in tensors.items() if not any(f"{part}." in name for part in parts)
    }
    for name in tensors:
        if parts[0] in name:
            whole = [tensors[name.replace(parts[0], part)] for part in parts]
            found[name.replace(parts[0], into)] = torch.cat(whole)
    return found


def write_decoders(here: Path) -> None:
    base = decoder()
    write(here / "base", base)
    one = tuned(base, 1, rank=4, size=0.1, noise=0.01)
    one[LAYER.format(0, "self_attn.o_proj")] = base[LAYER.format(0, "self_attn.o_proj")]
    one["model.embed_tokens.weight"] = torch.cat(
        [one["model.embed_tokens.weight"], normal(5, 3, HIDDEN).bfloat16()]
    )
    one["lm_head.weight"] = torch.cat([one["lm_head.weight"], normal(6, 3, HIDDEN).bfloat16()])
    one["model.norm.weight"] = one["model.norm.weight"] * 1.5
    write(here / "one", one)
    write(here / "two", tuned(base, 2, rank=32, size=0.05, noise=0.03))
    write(here / "three", tuned(one, 3, rank=2, size=0.1, noise=0.0))
    same = write_halves(here / "halves", tuned(base, 2, rank=32, size=0.05, noise=0.03))
    assert set(same) == set(base)


def write_halves(folder: Path, tensors: Tensors) -> dict[str, str]:
    """The tensors in two shards with an index; returns where each lies."""
    weights = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        write(folder, {name: tensors[name] for name in names}, name=shard)
        weights |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def write_adapter(here: Path) -> None:
    factors: Tensors = {}
    for layer in range(2):
        for place, name in enumerate(("self_attn.q_proj", "mlp.up_proj")):
            rows, cols = SHAPES[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{prefix}.lora_A.weight"] = normal(200 + 10 * layer + place, 4, cols) * 0.05
            factors[f"{prefix}.lora_B.weight"] = normal(300 + 10 * layer + place, rows, 4) * 0.05
    factors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = normal(1, 2, 6)
    (here / "adapter").mkdir()
    save_file(factors, here / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"up_proj": 4}}
    config |= {"use_rslora": True}
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (here / "other-adapter").mkdir()
    save_file(factors, here / "other-adapter" / "adapter_model.safetensors")
    (here / "other-adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def write_quantised(here: Path) -> None:
    base = {
        LAYER.format(layer, "mlp.up_proj"): normal(400 + layer, 200, 160).bfloat16()
        for layer in range(2)
    }
    base["model.norm.weight"] = torch.ones(160)
    write(here / "wide", base)
    found: Tensors = {}
    names = [name for name in base if "up_proj" in name]
    for place, name in enumerate(names):
        found[name] = (base[name].float() * 100 + normal(410 + place, 200, 160)).to(
            torch.float8_e4m3fn
        )
        found[f"{name}_scale_inv"] = 0.01 + 0.001 * normal(420 + place, 2, 2).abs()
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    write(here / "fp8", found, {"quantization_config": blocks})
    packed: Tensors = {"model.norm.weight": torch.ones(160)}
    for name in names:
        owner = name.removesuffix(".weight")
        packed[f"{owner}.qweight"] = torch.arange(200 * 20, dtype=torch.int32).reshape(20, 200)
        packed[f"{owner}.qzeros"] = torch.ones(2, 25, dtype=torch.int32)
        packed[f"{owner}.scales"] = torch.ones(2, 200, dtype=torch.float16)
    write(here / "gptq", packed, {"quantization_config": {"quant_method": "gptq", "bits": 4}})


def write_fused(here: Path) -> None:
    names = tuple(f"{one}_proj" for one in ("q", "k", "v", "gate", "up"))
    base = with_biases(decoder(1), 500, names)
    write(here / "apart", base, {"model_type": "qwen2"})
    changed = with_biases(tuned(decoder(1), 4, rank=8, size=0.1, noise=0.02), 520, names)
    changed = fused(changed, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
    changed = fused(changed, "gate_up_proj", ("gate_proj", "up_proj"))
    write(here / "fused", changed, {"model_type": "phi3"})
    neox = {
        "gpt_neox.embed_in.weight": normal(540, WORDS, HIDDEN),
        "gpt_neox.layers.0.attention.query_key_value.weight": normal(541, 3 * HIDDEN, HIDDEN) / 8,
        "gpt_neox.layers.0.attention.query_key_value.bias": normal(542, 3 * HIDDEN),
        "gpt_neox.layers.0.attention.dense.weight": normal(543, HIDDEN, HIDDEN) / 8,
        "embed_out.weight": normal(544, WORDS, HIDDEN),
    }
    config = {"model_type": "gpt_neox"}
    write(here / "neox", neox, config)
    write(here / "neox-tuned", tuned(neox, 5, rank=3, size=0.2, noise=0.02), config)
    gpt2 = {
        "wte.weight": normal(560, WORDS, HIDDEN),
        "h.0.attn.c_attn.weight": normal(561, HIDDEN, 3 * HIDDEN) / 8,
        "h.0.attn.c_attn.bias": normal(562, 3 * HIDDEN),
        "h.0.mlp.c_fc.weight": normal(563, HIDDEN, 2 * HIDDEN) / 8,
    }
    config = {"model_type": "gpt2", "n_head": 4, "n_embd": HIDDEN}
    write(here / "gpt2", gpt2, config)
    write(here / "gpt2-tuned", tuned(gpt2, 6, rank=3, size=0.2, noise=0.02), config)


def write_experts(here: Path) -> None:
    apart: Tensors = {"model.layers.0.mlp.gate.weight": normal(600, 3, 32)}
    for expert in range(3):
        for place, name in enumerate(("gate_proj", "up_proj", "down_proj")):
            shape = (32, 24) if name == "down_proj" else (24, 32)
            apart[f"model.layers.0.mlp.experts.{expert}.{name}.weight"] = (
                normal(610 + 3 * expert + place, *shape) / 6
            )
    config = {
        "model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 32, "moe_intermediate_size": 24,
    }  # fmt: skip
    write(here / "experts", apart, config)
    changed = tuned(apart, 7, rank=2, size=0.2, noise=0.02)

    def each(name: str) -> list[torch.Tensor]:
        return [
            changed[f"model.layers.0.mlp.experts.{expert}.{name}.weight"] for expert in range(3)
        ]

    both = [torch.cat(pair) for pair in zip(each("gate_proj"), each("up_proj"), strict=True)]
    stacked = {
        "model.layers.0.mlp.gate.weight": changed["model.layers.0.mlp.gate.weight"],
        "model.layers.0.mlp.experts.gate_up_proj": torch.stack(both),
        "model.layers.0.mlp.experts.down_proj": torch.stack(each("down_proj")),
    }
    write(here / "stacked", stacked, config)


def write_odd(here: Path) -> None:
    """What is skipped, each for a reason of its own; and weights in a pickle."""
    base = {
        LAYER.format(0, "mlp.up_proj"): normal(700, 48, 32),
        LAYER.format(0, "mlp.down_proj"): normal(701, 32, 48),
        LAYER.format(0, "mlp.gate_proj"): normal(702, 48, 32),
        LAYER.format(0, "self_attn.q_proj"): normal(703, 32, 32),
        LAYER.format(1, "self_attn.q_proj"): normal(704, 32, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": normal(705, 16),
        "model.layers.0.self_attn.mask": torch.ones(8, 8, dtype=torch.bool),
        "model.strange.thing.weight": normal(706, 16, 16),
    }
    write(here / "odd", base)
    changed = tuned(
        base | {"model.layers.0.self_attn.mask": torch.ones(8, 8)}, 8, rank=2, size=0.1, noise=0.01
    )
    changed["model.layers.0.self_attn.mask"] = base["model.layers.0.self_attn.mask"]
    changed[LAYER.format(0, "mlp.up_proj")][3, 4] = float("nan")
    changed[LAYER.format(0, "mlp.down_proj")] = normal(707, 40, 48)
    del changed[LAYER.format(1, "self_attn.q_proj")]
    write(here / "odd-tuned", changed)
    write(
        here / "odd-name", base | {"model.layers.0.self_attn.\x1b[31mred.weight": normal(708, 8, 8)}
    )
    (here / "pickled").mkdir()
    torch.save(dict(decoder(1)), here / "pickled" / "pytorch_model.bin")
    (here / "pickled" / "config.json").write_text(json.dumps(LLAMA))
    write(here / "unpickled", tuned(decoder(1), 9, rank=2, size=0.1, noise=0.02))
    (here / "cut").mkdir()
    (here / "cut" / "model.safetensors").write_bytes(
        (here / "base" / "model.safetensors").read_bytes()[:-100]
    )
    (here / "cut" / "config.json").write_text(json.dumps(LLAMA))


def write_vision(here: Path) -> None:
    """A model with a vision tower and a projector, whose components have bases of their own."""
    vision = {
        "vision_model.embeddings.patch_embedding.weight": normal(800, 32, 3, 4, 4),
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": normal(801, 32, 32) / 6,
        "vision_model.encoder.layers.0.mlp.fc1.weight": normal(802, 64, 32) / 6,
    }
    write(here / "clip", vision, {"model_type": "clip_vision_model"})
    language = tuned(decoder(1), 10, rank=3, size=0.1, noise=0.01)
    both = {
        f"vision_tower.{name}": one
        for name, one in tuned(vision, 11, rank=2, size=0.1, noise=0.01).items()
    }
    both |= {f"language_model.{name}": one for name, one in language.items()}
    both["multi_modal_projector.linear_1.weight"] = normal(810, HIDDEN, 32)
    config = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"model_type": "clip"}}
    write(here / "llava", both, config)
    write(here / "text", decoder(1))


FAMILIES = """\
toy-seeing:
  base: {language: ../text, vision: ../clip}
  instruct: ../llava
"""
AUDITS = {
    "demo": "demo --nulls 2",
    "decoder": "./base ./one",
    "workers": "./base ./two --jobs 3",
    "shards": "./base ./halves",
    "same": "./base ./base",
    "adapter": "./base ./adapter",
    "fp8": "./wide ./fp8",
    "gptq": "./wide ./gptq",
    "fused": "./apart ./fused",
    "interleaved": "./neox ./neox-tuned",
    "transposed": "./gpt2 ./gpt2-tuned",
    "experts": "./experts ./stacked",
    "vision": "toy-seeing --registry registry",
    "skipped": "./odd ./odd-tuned --strict",
    "filtered": "./base ./one --layer 1 --module 'mlp.*'",
    "pickle": "./pickled ./unpickled --allow-pickle",
    "pickle-refused": "./pickled ./unpickled",
    "cut": "./base ./cut",
    "no-layer": "./base ./one --layer 9",
}


def make_inputs(here: Path) -> None:
    """Write every input file into an empty folder."""
    for one in (write_decoders, write_adapter, write_quantised, write_fused, write_experts):
        one(here)
    write_odd(here)
    write_vision(here)
    (here / "registry").mkdir()
    (here / "registry" / "toys.yaml").write_text(FAMILIES)
    for path in here.rglob("*"):
        os.utime(path, (TIME, TIME))


# running and comparing


def checked_out(revision: str, below: Path) -> Path:
    """Return the folder of a checkout: one that is there, or a commit unpacked below."""
    if Path(revision).is_dir():
        return Path(revision).absolute()
    archive = subprocess.run(
        ["git", "archive", revision, "src", "registry"], check=True, capture_output=True, cwd=ROOT
    )
    folder = below / "checkout"
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
    return folder


def run_audits(checkout: Path, inputs: Path, into: Path, names: list[str]) -> dict[str, int]:
    """Run the audits with the code of a checkout; return their exit codes."""
    environment = {name: one for name, one in os.environ.items() if not name.startswith("SHADOW_")}
    environment |= {
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": "1",
        "SHADOW_NO_CACHE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    codes = {}
    for name in names:
        words = ["audit", "--jobs", "1", *shlex.split(AUDITS[name]), "-o", str(into / name)]
        command = [sys.executable, "-m", "shadow", *words]
        codes[name] = subprocess.run(
            command, cwd=inputs, env=environment, capture_output=True
        ).returncode
    return codes


def tables_of(folder: Path) -> dict[str, pa.Table]:
    """Return every table below a folder by pair and name, its rows in one order."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.stem in TABLES:
            table = pq.read_table(path)
            keys = [(key, "ascending") for key in KEYS if key in table.column_names]
            order = pc.sort_indices(table, sort_keys=keys)
            found[f"{path.parent.name}/{path.stem}"] = table.take(order)
    return found


def alike(one: object, other: object, within: float) -> bool:
    """Return whether two cells are equal in every bit, or floats differ by a relative `within`."""
    if within and isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(alike(x, y, within) for x, y in zip(one, other, strict=True))
    if within and isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= within * max(abs(one), abs(other))
    return repr(one) == repr(other)  # repr tells any two floats apart, and -0.0 from 0.0


def differences(
    before: Mapping[str, pa.Table],
    after: Mapping[str, pa.Table],
    seen: dict[str, set[str]],
    within: float,
) -> Iterator[str]:
    """Yield a line for each table and column that differs; gather columns of one side alone."""
    for name in sorted(before.keys() ^ after.keys()):
        yield f"{name}: on one side alone"
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        kind = name.rpartition("/")[2]
        seen["gone"] |= {f"{kind}.{key}" for key in set(one.column_names) - set(other.column_names)}
        seen["new"] |= {f"{kind}.{key}" for key in set(other.column_names) - set(one.column_names)}
        if len(one) != len(other):
            yield f"{name}: {len(one)} rows, then {len(other)}"
            continue
        for key in one.column_names:
            if key not in other.column_names:
                continue
            pairs = zip(one[key].to_pylist(), other[key].to_pylist(), strict=True)
            unlike = [(x, y) for x, y in pairs if not alike(x, y, within)]
            if unlike:
                first = f"{unlike[0][0]!r:.60} then {unlike[0][1]!r:.60}"
                yield f"{name}.{key}: {len(unlike)} of {len(one)} rows, such as {first}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--audit", action="append", choices=AUDITS, help="only this audit")
    parser.add_argument("--within", type=float, default=0.0, help="relative tolerance of floats")
    parser.add_argument("--keep", type=Path, help="keep inputs and reports in this folder")
    asked = parser.parse_args()
    names = asked.audit or list(AUDITS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or Path(temporary)).absolute()
        inputs = folder / "inputs"
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        make_inputs(inputs)
        codes, tables = {}, {}
        for side in ("before", "after"):
            checkout = checked_out(getattr(asked, side), Path(temporary) / "checkouts" / side)
            shutil.rmtree(folder / side, ignore_errors=True)
            codes[side] = run_audits(checkout, inputs, folder / side, names)
            tables[side] = {one: tables_of(folder / side / one) for one in names}
        seen: dict[str, set[str]] = {"gone": set(), "new": set()}
        lines, count = [], 0
        for name in names:
            if codes["before"][name] != codes["after"][name]:
                lines.append(f"{name}: exit {codes['before'][name]}, then {codes['after'][name]}")
            before, after = tables["before"][name], tables["after"][name]
            count += len(before)
            lines += [f"{name}: {line}" for line in differences(before, after, seen, asked.within)]
    for which, columns in seen.items():
        print(f"{which}: {', '.join(sorted(columns)) or 'none'}")
    print("\n".join(lines) or f"{len(names)} audits, {count} tables: equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
