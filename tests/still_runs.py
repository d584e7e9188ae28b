"""The fixed set of runs whose outputs `still.py` records: tiny inputs, and commands over them.

Inputs come from a generator whose numbers NumPy froze, and all files get one time, so that names,
fingerprints and numbers are the same in every recording. Nothing here knows the code of shadow but
its command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

ROOT = Path(__file__).parents[1]
TIME = 1_600_000_000  # of every input file, in seconds: fingerprints hold it
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


@dataclass(frozen=True)
class Run:
    """A command in the folder of inputs. before changes the folder first; file_size limits the
    files it may write.

    measured: what it shows comes from floating-point arithmetic, whose last digits differ between
    CPUs.
    """

    name: str
    arguments: tuple[str, ...]
    columns: tuple[int, ...]
    environment: dict[str, str] = field(default_factory=dict)
    before: Callable[[Path], None] | None = None
    file_size: int | None = None
    measured: bool = True


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
toy:
  base: ../base
  one: ../one
  two: ../two
  tags: [toy, small]
  note: made for tests
toy-chain:
  base: ../base
  one: ../one
  three: ../three
  pairs: [base..one, one..three, {from: one, to: two, relation: sibling}]
  two: ../two
toy-broken: {base: ../base, gone: ../gone, one: ../one, tags: [toy]}
toy-seeing:
  base: {language: ../text, vision: ../clip}
  instruct: ../llava
taught: {base: ../demo/base, narrow: ../demo/narrow, broad: ../demo/broad, tags: [taught]}
"""
SCORES = """\
model,benchmark,score,group
taught:base,sums,0.31,narrow
taught:narrow,sums,0.64,narrow
taught:broad,sums,0.48,narrow
taught:base,facts,0.42,held-out
taught:narrow,facts,0.40,held-out
taught:broad,facts,0.45,held-out
nobody:base,facts,0.45,held-out
"""
POLICY = """\
wide:
  fail_on: language.concentration > 0.01
  message: the update is narrow
quiet:
  fail_on: language.attn.q.relative_norm > 99
  severity: warning
still:
  moved: language.relative_norm
"""


def make_inputs(here: Path) -> None:
    """Every input file, in an empty folder."""
    for one in (write_decoders, write_adapter, write_quantised, write_fused, write_experts):
        one(here)
    write_odd(here)
    write_vision(here)
    shutil.copytree(
        ROOT / "registry" / "demo", here / "demo", ignore=shutil.ignore_patterns("*.md")
    )
    texts = {
        "registry/toys.yaml": FAMILIES,
        "bad-registry/toys.yaml": "toy: {base: ./base, onee: 3, pairz: [base..one]}\n",
        "list.yaml": "- toy\n- toy-broken\n- {base: ./base, tuned: ./three}\n",
        "list.txt": "toy:base..two\ntoy-b*\n",
        "policy.yaml": POLICY,
        "plain-policy.yaml": POLICY.partition("still:")[0],
        "bad-policy.yaml": "wide:\n  fail_onn: concentration > 1\n",
        "scores.csv": SCORES,
    }
    for name, text in texts.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    for path in here.rglob("*"):
        os.utime(path, (TIME, TIME))


# changes between runs


NEWEST = (
    "rank_ceiling", "overlap_left", "overlap_right", "alignment_left", "alignment_right",
    "intruders", "subspace_gap_base", "subspace_gap_tuned", "row_participation_ratio",
    "col_participation_ratio", "rows_changed",
)  # fmt: skip


def retold(target: Path, **more: object) -> None:
    """Other metadata in every table of a report; those of None go."""
    for path in target.glob("*.parquet"):
        table = pq.read_table(path)
        told = json.loads(table.schema.metadata[b"shadow"]) | more
        told = {key: one for key, one in told.items() if key not in more or one is not None}
        pq.write_table(table.replace_schema_metadata({b"shadow": json.dumps(told).encode()}), path)


def make_older(here: Path) -> None:
    """A report of a version that had neither the newest columns nor the tables of residuals and
    files, nor a seal of these.
    """
    target = here / "older" / "toy" / "base..one"
    shutil.copytree(here / "out" / "toy" / "base..one", target)
    (target / "residual.parquet").unlink()
    (target / "files.parquet").unlink()
    path = target / "matrices.parquet"
    pq.write_table(pq.read_table(path).drop_columns(list(NEWEST)), path)
    retold(target, seal=None)


def make_older_again(here: Path) -> None:
    """The older report once more: the audit before has renewed the first."""
    shutil.rmtree(here / "older")
    make_older(here)
    (here / "older").rename(here / "older-again")


def make_other_schema(here: Path) -> None:
    """A report of a schema that is newer than this version's."""
    target = here / "newer" / "toy" / "base..one"
    shutil.copytree(here / "out" / "toy" / "base..one", target)
    retold(target, schema=99, version="9.9.9")


def make_broken(here: Path) -> None:
    target = here / "broken" / "toy" / "base..one"
    shutil.copytree(here / "out" / "toy" / "base..one", target)
    (target / "matrices.parquet").write_bytes(b"PAR1 and no more")


def make_journal_older(here: Path) -> None:
    """The journal of an unfinished audit, as another version began it."""
    shutil.copytree(here / "stopped", here / "stopped-older")
    (journal,) = (here / "stopped-older").rglob("journal.jsonl")
    first, _, rest = journal.read_text().partition("\n")
    journal.write_text(json.dumps(json.loads(first) | {"version": "0.0.1"}) + "\n" + rest)


def keep_stopped(here: Path) -> None:
    """Two more copies of an unfinished audit, one to be told of and one to be removed."""
    shutil.copytree(here / "stopped", here / "stopped-removed")


def make_hostile(here: Path) -> None:
    """A report whose names try to be commands, markup and formulas."""
    target = here / "hostile" / "toy" / "x"
    shutil.copytree(here / "out" / "toy" / "base..one", target)
    name = '::error::</script><b>=1+1 "\x1b[31m'
    for path in target.glob("*.parquet"):
        table = pq.read_table(path)
        if "pair" in table.column_names:
            names = pa.array([name] * len(table), pa.string())
            pq.write_table(table.set_column(table.column_names.index("pair"), "pair", names), path)
    retold(target, pair=name)
    summary = json.loads((target / "summary.json").read_text()) | {"pair": name}
    (target / "summary.json").write_text(json.dumps(summary))


def make_same(here: Path) -> None:
    """A baseline that is the very report."""
    shutil.copytree(
        here / "taught" / "taught" / "base..narrow", here / "same" / "taught" / "base..narrow"
    )


# commands

ONE, TWO = "out/toy/base..one", "out/toy/base..two"
NARROW, BROAD = "taught/taught/base..narrow", "taught/taught/base..broad"
RELATIVE = "'language.relative_norm > 0.001'"
NEVER = "'language.relative_norm > 1000'"


def command(name: str, line: str, *columns: int, **more) -> Run:
    """A run of a command as it is typed, at some widths of the terminal."""
    return Run(name, tuple(shlex.split(line)), columns or (120, 80), **more)


def audit(name: str, line: str, *columns: int, **more) -> Run:
    return command(f"audit-{name}", f"audit --jobs 1 {line}", *columns, **more)


def given(name: str, base: str, tuned: str, line: str = "", *columns: int, **more) -> Run:
    line = f"--base ./{base} --tuned ./{tuned} -o given {line}"
    return audit(name, line, *columns, **more)


def words(name: str, line: str, *columns: int, **more) -> Run:
    """A command whose output holds no measured number."""
    return command(name, line, *columns, measured=False, **more)


AUDITS = (
    audit("family", "toy --registry registry -o out"),
    audit("chain", "toy-chain --registry registry -o chain --nulls 3 --seed 7"),
    audit("components", "toy-seeing --registry registry -o seeing"),
    audit("taught", "taught --registry registry -o taught --scores scores.csv --optimizer adamw"),
    audit("json", "toy:base..one --registry registry -o json --format json"),
    audit("workers", "toy:base..two --registry registry -o workers --jobs 3"),
    given("adapter", "base", "adapter"),
    given("fp8", "wide", "fp8"),
    given("gptq", "wide", "gptq", "--strict"),
    given("fused", "apart", "fused"),
    given("neox", "neox", "neox-tuned"),
    given("conv1d", "gpt2", "gpt2-tuned"),
    given("experts", "experts", "stacked"),
    given("shards", "base", "halves"),
    given("odd", "odd", "odd-tuned", "--strict"),
    given("odd-name", "odd", "odd-name"),
    given("identical", "base", "base", "--strict"),
    given("exact", "base", "two", "--precision exact --no-spectra -o exact"),
    given("fast", "base", "two", "--precision fast --no-subspaces -o fast"),
    given("filtered", "base", "one", "--layer 1 --module 'mlp.*' -o filtered"),
    given("other-filter", "base", "one", "--layer 0 --component language -o filtered"),
    given("other-pair", "base", "one", "-o there"),
    given("pickle-refused", "pickled", "unpickled"),
    given("pickle", "pickled", "unpickled", "--allow-pickle", 120),
    given("gone", "base", "gone"),
    given("cut", "base", "cut"),
    given("other-adapter", "base", "other-adapter"),
    given("adapter-as-base", "adapter", "base"),
    given("no-layer", "base", "one", "--layer 9"),
    given("no-module", "base", "one", "--module mlp.upp"),
    given("no-component", "base", "one", "--component visoin"),
    given("bad-layer", "base", "one", "--layer 4-2"),
    given("bad-size", "base", "one", "--max-disk much"),
    audit("one-side", "--base ./base"),
    audit("nothing", ""),
    audit("not-folder", "--base base --tuned ./one --offline"),
    audit("no-family", "toyy --registry registry"),
    audit("no-pair", "toy:base..onee --registry registry"),
    audit("bad-registry", "toy --registry bad-registry"),
    audit("no-option", "--presicion exact"),
    audit(
        "gate-met",
        f"toy:base..one --registry registry -o out --fail-on {RELATIVE} --junit audit.xml",
    ),
    audit(
        "gate-fault",
        "toy:base..one --registry registry -o out --fail-on 'vision.relative_norm > 1'",
    ),
    audit("list", "--list list.yaml --registry registry -o listed"),
    audit("list-json", "--list list.txt --registry registry -o listed-json --format json", 120),
    audit(
        "list-gate",
        f"'toy-b*' --registry registry -o listed --fail-on {RELATIVE} --junit list.xml",
        80,
    ),
    audit("shard-1", "--list list.txt --registry registry -o shard-1 --shard 1/2", 120),
    audit("shard-2", "--list list.txt --registry registry -o shard-2 --shard 2/2", 120),
    audit("tag", "--tag toy --registry registry -o listed", 80),
    audit("list-gone", "--list none.yaml --registry registry"),
    # A limit on the size of files stops it amid a line of its journal, as a full disk would.
    given("stopped", "base", "two", "-o stopped", 120, file_size=60_000),
    command("show-unfinished", "show stopped", before=keep_stopped),
    given("stopped-older", "base", "two", "-o stopped-older", 120, before=make_journal_older),
    given("resumed", "base", "two", "-o stopped"),
    command("clean", "clean -o stopped-removed"),
    command("clean-gone", "clean -o nowhere"),
)
REPORTS = (
    command("show", f"show {ONE}"),
    command("show-several", "show chain", 120),
    command("show-list", "show listed-json", 80),
    command("show-json", "show out --format json", 120),
    command("show-scores", "show taught --scores scores.csv"),
    command("show-older", "show older", before=make_older),
    command("show-newer", "show newer", before=make_other_schema),
    command("show-broken", "show broken", before=make_broken),
    command("show-hostile", "show hostile", before=make_hostile),
    command("show-gone", "show nowhere"),
    audit("older", "toy:base..one --registry registry -o older", 120),
    command("older-again", "show older-again", before=make_older_again),
    command("compare", f"compare {ONE} {TWO} -o rows.parquet"),
    command("compare-json", f"compare {ONE} {TWO} --format json", 120),
    command("compare-three", f"compare {ONE} {TWO} workers --margin 0.2"),
    command("compare-older", f"compare older-again {TWO}"),
    command("compare-bases", f"compare given/fp8 {ONE}"),
    command(
        "compare-other-bases", f"compare chain/toy-chain/one..three {ONE} --allow-different-base"
    ),
    command("compare-scores", "compare taught --scores scores.csv"),
    command("compare-one", f"compare {ONE}"),
    command("compare-margin", f"compare {ONE} {TWO} --margin 7"),
    audit("chained", "--base ./one --tuned ./two -o chained", 120),
    command("lineage", "lineage chain chained"),
    command(
        "lineage-family",
        "lineage toy-chain --registry registry -o chain --no-joint --format json",
        120,
    ),
    command("lineage-none", "lineage toy-broken --registry registry -o chain"),
    command("gate-met", f"gate {ONE} --fail-on {RELATIVE} --junit gate.xml"),
    command("gate-not-met", f"gate out --fail-on {NEVER}"),
    command("gate-json", f"gate {ONE} --fail-on {RELATIVE} --format json", 120),
    command("gate-policy", f"gate {ONE} --policy plain-policy.yaml"),
    command("gate-baseline", f"gate {NARROW} --against {BROAD} --junit moved.xml"),
    command("gate-same", f"gate {NARROW} --against same", before=make_same),
    command("gate-no-interval", f"gate {ONE} --against json"),
    command("gate-policy-baseline", f"gate {NARROW} --against {BROAD} --policy policy.yaml"),
    command("gate-needs-baseline", f"gate {ONE} --policy policy.yaml"),
    command("gate-own-baseline", f"gate {ONE} --against {ONE}"),
    command(
        "gate-github", f"gate {ONE} --fail-on {RELATIVE}", environment={"GITHUB_ACTIONS": "true"}
    ),
    command(
        "gate-hostile", f"gate hostile --fail-on {RELATIVE}", environment={"GITHUB_ACTIONS": "true"}
    ),
    command(
        "gate-step",
        f"gate listed-json --fail-on {RELATIVE} --junit listed.xml",
        80,
        environment={"GITHUB_STEP_SUMMARY": "step.md"},
    ),
    command("gate-older", f"gate older-again --fail-on {RELATIVE}"),
    command("gate-label", "gate taught --fail-on 'label == narrow'"),
    command("gate-bad-policy", f"gate {ONE} --policy bad-policy.yaml"),
    command("gate-bad-rule", f"gate {ONE} --fail-on 'language.relativ_norm > 1'"),
    command("gate-no-rule", f"gate {ONE}"),
    command("merge", "merge merged shard-1 shard-2"),
    command("merge-settings", "merge mixed exact fast"),
)
EXPORTS = ("csv", "json", "arrow", "parquet", "duckdb", "sqlite", "hf-dataset-folder")
OUTPUTS = (
    *(command(f"export-{form}", f"export {ONE} --to {form}", 120) for form in EXPORTS),
    command("export-several", "export taught --to csv -o several --table matrices"),
    command("export-hostile", "export hostile --to csv -o hostile-csv --table matrices", 120),
    command("export-older", "export older-again --to json -o older-json", 120),
    command("export-no-table", f"export {ONE} --to csv --table matrix"),
    command("export-over", f"export {ONE} --to csv -o registry"),
    command("report", "report out -o page.html", 120),
    command("report-several", "report chain -o chain.html", 120),
    command("report-hostile", "report hostile -o hostile.html", 120),
    command("report-older", "report older-again -o older.html", 120),
    command("report-none", "report registry -o none.html", 120),
    *(
        command(f"figure-{kind}", f"figure {ONE} --kind {kind} -o {kind}.svg", 120)
        for kind in ("depth", "spectrum", "heatmap", "modules")
    ),
    command("figure-lineage", "figure chain --kind lineage -o lineage.svg", 120),
    command("figure-several", "figure out --kind depth -o several.svg --width 6", 120),
    command("figure-metric", f"figure {ONE} --kind heatmap -o m.svg --metric stable_rank", 120),
    command(
        "figure-expert", "figure given/stacked --kind spectrum -o e.svg --expert 1 --layer 0", 120
    ),
    command("figure-png", f"figure {ONE} --kind modules -o modules.png --no-title", 120),
    command("figure-pdf", f"figure {ONE} --kind modules -o modules.pdf", 120),
    command("figure-no-metric", f"figure {ONE} --kind heatmap -o m.svg --metric stable_rang", 120),
    command("figure-wrong-option", f"figure {ONE} --kind heatmap -o m.svg --expert 1", 120),
    command("figure-no-suffix", f"figure {ONE} --kind heatmap -o m.gif", 120),
)
LOOKUPS = (
    # each plan measures for a second how fast this machine is
    words("plan", "plan toy-broken --jobs 2 --registry registry"),
    words("plan-json", "plan toy-seeing --jobs 2 --registry registry --format json", 120),
    words("plan-list", "plan --list list.txt --jobs 2 --registry registry --shard 2/2", 120),
    words("plan-pickle", "plan --base ./pickled --tuned ./unpickled --jobs 2"),
    words("plan-layer", "plan --base ./odd --tuned ./odd-tuned --jobs 2 --layer 0", 120),
    words("families", "families"),
    words("families-one", "families toy-chain --registry registry"),
    words("families-components", "families toy-seeing --registry registry"),
    words("families-word", "families olmo"),
    words("families-tag", "families --tag taught --registry registry"),
    words("families-component", "families --component audio"),
    words("families-json", "families toy-seeing --registry registry --format json", 120),
    words("families-environment", "families toy", environment={"SHADOW_REGISTRY": "registry"}),
    words("families-schema", "families --schema", 120),
    words("families-none", "families qwenn"),
    words("explain", "explain"),
    words("explain-column", "explain effective_rank"),
    words("explain-figure", "explain spiked"),
    words("explain-label", "explain label"),
    words("explain-published", "explain published"),
    words("explain-none", "explain effective_rang"),
    words("schema", "schema"),
    words("schema-table", "schema matrices"),
    words("schema-json", "schema --format json", 120),
    words("schema-none", "schema matrix"),
    words("version", "--version"),
    words("bare", ""),
    words("no-command", "adit"),
    words("help", "--help"),
)


def command_names(help_text: str) -> list[str]:
    """The commands that a help text lists, in the boxes of its groups: those that hold no options
    or arguments.
    """
    boxes = re.findall(r"(?ms)^╭─ ([A-Z][\w ]*?) ─.*?╮\n(.*?)^╰", help_text)
    return [
        name
        for title, box in boxes
        if title not in ("Options", "Arguments") and not re.search(r"(?m)^│ *-{1,2}\w", box)
        for name in re.findall(r"(?m)^│ ([a-z-]+) ", box)
    ]
