"""Each gate on real tiny models."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import chosen
from safetensors.torch import load_file

from shadow.audits.pair import Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.spectra.delta import Method
from shadow.targets.families import find_pairs, given_pair, load_families
from shadow.targets.references import parse_reference
from shadow.telling.reading import read_summary

GATES = ["changed", "lineage", "paired", "rounding", "rank", "formats"]


def stored(folder, source, change):
    """A one-file checkpoint whose matrices are those of another, changed."""
    tensors = {
        name: change(name, W) if W.ndim == 2 else W
        for name, W in load_file(source / "model.safetensors").items()
    }
    (folder).mkdir(parents=True)
    return planted.write(folder, tensors, {"model_type": "llama"})


def int8(name, W):
    """Rounded to 8-bit integers with one scale a row, and stored as float32 again."""
    scale = W.float().abs().amax(1, keepdim=True) / 127
    return (W.float() / scale).round() * scale


def llama(folder, layers, seed, width=64):
    """A decoder as it is before any training, under the names that transformers gives."""
    generator = torch.Generator().manual_seed(seed)
    wide = 3 * width // 2
    shapes = {"model.embed_tokens": (128, width), "lm_head": (128, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj": (width, width) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": (wide, width) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj"] = (width, wide)
    tensors = {
        f"{name}.weight": 0.02 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return planted.write(folder, tensors, {"model_type": "llama"})


def adapter(folder):
    """Factors of rank 4 for two modules, under the names that peft gives."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(2):
        for name, rows, cols in (("self_attn.q_proj", 64, 64), ("mlp.down_proj", 64, 96)):
            at = f"base_model.model.model.layers.{layer}.{name}"
            for factor, shape in (("A", (4, cols)), ("B", (rows, 4))):
                drawn = 0.05 * torch.randn(shape, generator=generator)
                tensors[f"{at}.lora_{factor}.weight"] = drawn
    return planted.adapter(folder, {}, tensors, target_modules=["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Base and tuned side of every case, by its name."""
    there = tmp_path_factory.mktemp("models")
    (demo,) = find_pairs("demo:base..narrow", load_families(None))
    trained = [Path(side.repo) for side in (demo.base, demo.tuned)]
    # float32 that is not bf16's
    wide = stored(there / "wide", trained[0], lambda name, W: W.float() * 1.01)
    wider = llama(there / "wider", 2, 0, 128)
    two, four = llama(there / "two", 2, 0), llama(there / "four", 4, 1)
    shared = ("model.embed_tokens.weight", "lm_head.weight")
    own = load_file(four / "model.safetensors")
    deeper = planted.write(
        there / "deeper",
        own | {name: load_file(two / "model.safetensors")[name] for name in shared},
        {"model_type": "llama"},
    )
    return {
        "fine-tune": trained,
        "unrelated": (llama(there / "one", 4, 2), four),
        "another depth": (two, deeper),
        "frozen": (trained[0], trained[0]),
        "int8": (wide, stored(there / "int8", wide, int8)),
        "bf16": (wide, stored(there / "bf16", wide, lambda name, W: W.bfloat16())),
        "adapter": (two, adapter(there / "adapter")),
        "merged": (two, stored(there / "merged", two, low_rank)),
        "another size": (wider, stored(there / "tilted", wider, tilted)),
    }


def low_rank(name, W):
    generator = torch.Generator().manual_seed(len(name))
    return W + 1e-3 * torch.randn(len(W), 2, generator=generator) @ torch.randn(
        2, W.shape[1], generator=generator
    )


def tilted(name, W):
    """A change of full rank with one strong direction."""
    generator = torch.Generator().manual_seed(len(name))
    noise = 1e-3 * torch.randn(W.shape, generator=generator)
    return (
        W + noise + 0.05 * torch.outer(noise[:, 0] / noise[:, 0].norm(), noise[0] / noise[0].norm())
    )


def audit(sides, folder, part=Filter()):  # noqa: B008
    pair = given_pair(*(parse_reference(str(side)) for side in sides))
    return run_pair(pair, Settings(Method(), part), folder)


@pytest.fixture(scope="module")
def audited(places, tmp_path_factory):
    """The audit of a case, made once."""
    there = tmp_path_factory.mktemp("reports")
    return functools.cache(lambda case: audit(places[case], there / case))


def gates_of(done):
    return {gate.name: gate for gate in done.summary.gates}


CASES = {  # the gates that fail, and a part of the reason of the last
    "fine-tune": [],
    "another size": [],
    "unrelated": [("lineage", "base and tuned weights have little in common")],
    "another depth": [
        ("lineage", "base and tuned weights have little in common"),
        ("paired", "these are not two states of one model"),
    ],
    "frozen": [("changed", "nothing changed")],
    "int8": [],
    "bf16": [("rounding", "times as large as rounding alone would make it")],
    "adapter": [("rank", "Its concentration therefore says little about the training;")],
    "merged": [("rank", "at most, like a merged adapter. Its concentration therefore says")],
}


@pytest.mark.parametrize(
    "case", chosen(CASES, [case for case in CASES if case not in ("another size", "merged")])
)
def test_each_gate_stops_what_it_is_for(case, audited):
    """Only the gates that should fail do, each with its reason, in summary.json, read from the
    files, and in their metadata.
    """
    done = audited(case)
    found = gates_of(done)
    assert list(found) == GATES
    failing = [name for name, _ in CASES[case]]
    assert [name for name, gate in found.items() if not gate.passed] == failing, found
    assert all(gate.reason for gate in found.values())
    assert all(reason in found[name].reason for name, reason in CASES[case])
    written = json.loads((done.folder / "summary.json").read_text())
    again, _ = read_summary(done.folder)
    assert again.as_json() == done.summary.as_json()
    assert written == json.loads(json.dumps(done.summary.as_json()))
    files = {path.stem: path for path in done.folder.glob("*.parquet")}
    assert files.keys() == {"files", "matrices", "spectra", "tensors"}
    for path in files.values():
        metadata = json.loads(pq.read_schema(path).metadata[b"shadow"])
        assert metadata["gates"] == written["gates"]


def test_an_audit_of_a_part_is_not_one_of_the_model(places, tmp_path):
    """A filter leaves parameters out, and the gate says that this was asked for."""
    gate = gates_of(audit(places["fine-tune"], tmp_path, Filter(layers=(0,))))["paired"]
    assert not gate.passed
    assert gate.figure < 0.5
    assert "a filter left out the rest" in gate.reason
