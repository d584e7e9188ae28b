"""Each gate on real tiny models."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace as Record

import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import chosen
from safetensors.torch import load_file

from shadow.checkpoints.pairing import Filter
from shadow.checks import pair_gates
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
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
    return planted.write(folder, tensors, planted.LLAMA)


def int8(name, W):
    """Rounded to 8-bit integers with one scale a row, and stored as float32 again."""
    scale = W.float().abs().amax(1, keepdim=True) / 127
    return (W.float() / scale).round() * scale


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
    shallow, deep = planted.gaussian(0, 2, 64), planted.gaussian(1, 4, 64)
    two = planted.write(there / "two", shallow, planted.LLAMA)
    shared = {name: shallow[name] for name in shallow if "embed" in name}
    deeper = planted.write(there / "deeper", deep | shared, planted.LLAMA)
    return {
        "fine-tune": trained,
        "another depth": (two, deeper),
        "frozen": (trained[0], trained[0]),
        "int8": (wide, stored(there / "int8", wide, int8)),
        "bf16": (wide, stored(there / "bf16", wide, lambda name, W: W.bfloat16())),
        "adapter": (two, adapter(there / "adapter")),
        "merged": (two, stored(there / "merged", two, low_rank)),
    }


def low_rank(name, W):
    generator = torch.Generator().manual_seed(len(name))
    return W + 1e-3 * torch.randn(len(W), 2, generator=generator) @ torch.randn(
        2, W.shape[1], generator=generator
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


CASES = {  # the gates that fail
    "fine-tune": [],
    "another depth": ["lineage", "paired"],
    "frozen": ["changed"],
    "int8": [],
    "bf16": ["rounding"],
    "adapter": ["rank"],
    "merged": ["rank"],
}


@pytest.mark.parametrize("case", chosen(CASES, [case for case in CASES if case != "merged"]))
def test_each_gate_stops_what_it_is_for(case, audited):
    """Only the gates that should fail do, in summary.json, read from the files, and in their
    metadata.
    """
    done = audited(case)
    found = gates_of(done)
    assert list(found) == GATES
    assert [name for name, gate in found.items() if not gate.passed] == CASES[case], found
    assert all(gate.reason for gate in found.values())
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
    """A filter leaves parameters out."""
    gate = gates_of(audit(places["fine-tune"], tmp_path, Filter(layers=(0,))))["paired"]
    assert not gate.passed
    assert gate.figure < 0.5


def record(**figures):
    """A record of which gates see these figures, and nothing that was recognised."""
    vectors = Record(changed=figures.pop("moved", 0), compared=figures.pop("vectors", 0))
    has_spectra = figures.pop("tier", "full") != "norms"
    more = {"has_spectra": has_spectra, "estimated": figures.pop("estimated", False)}
    recognised = Record(rearranged=figures.pop("rearranged", None))
    known = {
        "matrices": 0,
        "floor_ratio": None,
        "rank_ceiling": None,
        "matrices_rounded": 0,
    } | figures
    return Record(figures=Record(**known), vectors=vectors, recognised=recognised, **more)


TURNED = Record(matrices=1, changed=4)  # of those that changed
JUDGED = [  # a gate, figures of a record and those that gates judge -> outcome, code, figure
    ("changed", {"matrices": 3}, {}, "holds", "changed", 3),
    ("changed", {}, {"identical": 0}, "inconclusive", "nothing", None),
    ("changed", {"vectors": 2}, {"identical": 3}, "does_not_hold", "identical", 0),
    ("changed", {"vectors": 2, "moved": 1}, {"identical": 3}, "does_not_hold", "vectors", 0),
    ("changed", {"matrices": 1, "vectors": 1}, {"identical": 3}, "holds", "changed", 1),
    ("changed", {"vectors": 1, "moved": 1}, {"identical": 3}, "does_not_hold", "only_vector", 0),
    ("lineage", {}, {"cosine": None}, "inconclusive", "nothing_inside", None),
    ("lineage", {}, {"cosine": 0.9}, "holds", "similar", 0.9),
    ("lineage", {}, {"cosine": 0.1}, "does_not_hold", "unrelated", 0.1),
    ("lineage", {}, {"cosine": 0.5}, "holds", "similar", 0.5),
    ("lineage", {}, {"cosine": 0.4999}, "does_not_hold", "unrelated", 0.4999),
    ("lineage", {"rearranged": TURNED}, {"cosine": 0.9}, "does_not_hold", "moved", 0.9),
    ("lineage", {"rank_ceiling": 4}, {"cosine": 0.9}, "holds", "any_base", 0.9),
    ("paired", {}, {"compared": 0.95}, "holds", "compared", 0.95),
    ("paired", {}, {"compared": 0.9}, "holds", "compared", 0.9),
    ("paired", {}, {"compared": 0.8999}, "does_not_hold", "two_models", 0.8999),
    ("paired", {}, {"compared": 0.5, "is_part": True}, "does_not_hold", "part", 0.5),
    ("paired", {}, {"compared": 0.5}, "does_not_hold", "two_models", 0.5),
    ("rounding", {"floor_ratio": 2.5}, {}, "holds", "more", 2.5),
    ("rounding", {"floor_ratio": 2.0}, {}, "holds", "more", 2.0),
    ("rounding", {"floor_ratio": 1.999}, {}, "does_not_hold", "rounded", 1.999),
    ("rounding", {"tier": "norms", "rank_ceiling": 4}, {}, "holds", "not_rounded", None),
    ("rounding", {"floor_ratio": 1.0}, {}, "does_not_hold", "rounded", 1.0),
    ("rounding", {}, {}, "holds", "not_rounded", None),
    ("rounding", {"tier": "norms"}, {}, "inconclusive", "no_floor", None),
    ("rounding", {"floor_ratio": 9.0}, {"unjudged": ["IQ2_S"]}, "inconclusive", "unjudged", None),
    ("rank", {}, {"rank_share": 0.9}, "holds", "full", 0.9),
    ("rank", {}, {"rank_share": 0.5}, "holds", "full", 0.5),
    ("rank", {}, {"rank_share": 0.4999, "rank": 4}, "does_not_hold", "low", 0.4999),
    ("rank", {}, {"rank_share": 0.1, "rank": 4}, "does_not_hold", "low", 0.1),
    ("rank", {}, {"rank_share": 0.1, "rank_ceiling": 4}, "does_not_hold", "adapter", 0.1),
    ("rank", {}, {}, "holds", "unknown", None),
    ("rank", {"tier": "norms"}, {}, "inconclusive", "no_rank", None),
    ("rank", {"estimated": True}, {}, "inconclusive", "estimated", None),
    ("formats", {}, {"unread": 0.25}, "does_not_hold", "unread", 0.25),
    ("formats", {}, {"formats": ["BF16/F32"]}, "holds", "other_formats", 0.0),
    ("formats", {}, {}, "holds", "same_formats", 0.0),
]


@pytest.mark.parametrize(
    ("gate", "figures", "judged", "outcome", "code", "figure"),
    [pytest.param(*case, id=f"{case[0]}: {case[4]}") for case in JUDGED],
)
def test_a_gate_judges_figures(gate, figures, judged, outcome, code, figure):
    """Without its figure a gate is open, or passed where nothing can be wrong; each has words."""
    known = {"unjudged": [], "rank_share": None, "rank_ceiling": None, "is_part": False}
    known |= {"unread": 0.0, "formats": [], "compared_percent": 50.0} | judged
    found = pair_gates.GATES[gate].judge(record(**figures), Record(**known))
    assert (found.outcome, found.reasons[0].code) == (outcome, code)
    assert found.figures.get("figure") == figure
    assert pair_gates.GATES[gate].say_all(found.reasons)
