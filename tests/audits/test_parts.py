"""Tensors of several matrices or vectors: each part has its outcome, the row tells of all."""

import math

import planted
import pyarrow.parquet as pq
import pytest
import torch
from any_tensors import CONFIGS, COUNTS, PIECES, SHAPES, TYPES
from effort import every, examples
from hypothesis import given, settings
from measuring import frame, pair_of, planted_pair, report_contents

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError
from shadow.places.names import name_rules
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
# a fused projection with a bias: its name, its rows, and how many groups of them each part has
FUSED = {
    "gpt2": ("transformer.h.0.attn.c_attn", {"attn.q": 32, "attn.k": 32, "attn.v": 32}, 1),
    "gpt_neox": (
        "gpt_neox.layers.0.attention.query_key_value", {"attn.q": 8, "attn.k": 8, "attn.v": 8}, 4,
    ),
    "qwen2_vl": ("visual.blocks.0.attn.qkv", {"attn.q": 32, "attn.k": 32, "attn.v": 32}, 1),
    "internlm2": ("model.layers.0.attention.wqkv", {"attn.q": 16, "attn.k": 8, "attn.v": 8}, 2),
    "phi3": ("model.layers.0.self_attn.qkv_proj", {"attn.q": 32, "attn.k": 16, "attn.v": 16}, 1),
}  # fmt: skip


def slices(kind: str) -> dict[str, list[int]]:
    """The rows of each part of a fused tensor, counted out."""
    _, sizes, groups = FUSED[kind]
    step = sum(sizes.values())
    found, start = {}, 0
    for module, size in sizes.items():
        found[module] = [group * step + start + i for group in range(groups) for i in range(size)]
        start += size
    return found


def fused(kind: str) -> dict[str, torch.Tensor]:
    name, sizes, groups = FUSED[kind]
    rows = groups * sum(sizes.values())
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, 32, generator=generator)
    return {
        f"{name}.weight": weight.T if kind == "gpt2" else weight,
        f"{name}.bias": torch.randn(rows, generator=generator),
    }


def outputs_first(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the outputs along the first dimension: GPT-2 stores (in, out)."""
    return tensor.T if tensor.ndim == 2 and tensor.shape[0] < tensor.shape[1] else tensor


def audited(tmp_path, base, tuned, config, jobs=None, chosen=Filter()):  # noqa: B008 - frozen
    """The result of an audit, and the rows of tensors.parquet by name and side."""
    if not (tmp_path / "base").exists():
        planted_pair(tmp_path, base, tuned, config)
    pair = pair_of(tmp_path / "base", tmp_path / "tuned")
    settings, output = Settings(Method(), chosen), tmp_path / f"out-{jobs}"
    result = run_pair(pair, settings, output, Runtime(jobs=jobs))
    rows = pq.read_table(result.folder / "tensors.parquet").to_pylist()
    return result, {(row["tensor"], row["side"]): row for row in rows}


def gate(result, name):
    return next(gate for gate in result.summary.gates if gate.name == name)


def paired_with_itself(shapes, config):
    infos = {name: TensorInfo(name, "BF16", shape, "s", 0, 0) for name, shape in shapes.items()}
    side = Checkpoint("x", None, "f", config, infos, {})
    try:
        return pair_checkpoints(side, side, Filter())[0]
    except ShadowError:  # nothing that pairs
        return []


@pytest.mark.parametrize("kind", every(6, TYPES))
def test_no_two_pairs_of_any_layout_share_a_key(kind):
    """In every order of rows, in a text model and a tower, or outcomes would be lost."""
    config = {
        "model_type": kind, **dict.fromkeys(COUNTS, 2), "num_attention_heads": 4, "hidden_size": 32,
    }  # fmt: skip
    split = 0
    for rows in (64, 96):
        shapes = {}
        for wrapper in ("model", "visual.blocks", "audio_tower.layers", "mtp.layers"):
            for rest in PIECES["rest"]:
                name = f"{wrapper}{'.layers' if wrapper == 'model' else ''}.0.{rest}"
                shapes |= {f"{name}.weight": (rows, 32), f"{name}.bias": (rows,)}
        pairs = paired_with_itself(shapes, config)
        assert len({pair.key for pair in pairs}) == len(pairs) >= len(shapes)
        split += len(pairs) - len(shapes)
    assert split >= 10, "fused biases and matrices were among them"


@settings(max_examples=examples(100), deadline=None)
@given(SHAPES, CONFIGS)
def test_no_two_pairs_of_a_hostile_checkpoint_share_a_key(shapes, config):
    """Whatever the names, the shapes and the config."""
    pairs = paired_with_itself(shapes, config)
    assert len({pair.key for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("kind", every(3, FUSED))
def test_a_fused_bias_has_the_norm_of_its_parts_with_any_number_of_workers(kind, tmp_path):
    """Of parts that change by different amounts; 1, 2 and 5 workers give the same bytes."""
    base = fused(kind)
    bias = f"{FUSED[kind][0]}.bias"
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for factor, (module, rows) in enumerate(slices(kind).items()):
        assert module in name_rules().modules
        tuned[bias][rows] *= 1 + 0.5 * factor
        outputs_first(tuned[f"{FUSED[kind][0]}.weight"])[rows] *= 1.01 + 0.01 * factor
    config = {"model_type": kind, **HEADS}
    found = []
    for jobs in (1, 2, 5):
        result, rows = audited(tmp_path, base, tuned, config, jobs)
        expected = (tuned[bias] - base[bias]).double().norm() / base[bias].double().norm()
        assert rows[bias, "tuned"]["relative_norm"] == pytest.approx(float(expected), rel=1e-12)
        found.append(report_contents(result.folder))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", every(2, FUSED))
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_part_that_is_not_finite_is_told_and_the_others_are_measured(kind, what, tmp_path):
    """NaN in k alone: q and v have rows, the share of compared parameters is without k."""
    base = fused(kind)
    name = f"{FUSED[kind][0]}.{what}"
    tuned = {key: tensor * 1.01 for key, tensor in base.items()}
    outputs_first(tuned[name])[slices(kind)["attn.k"][3]] = math.nan
    result, rows = audited(tmp_path, base, tuned, {"model_type": kind, **HEADS})
    for side in ("base", "tuned"):
        row = rows[name, side]
        assert (row["status"], row["reason"]) == ("skipped", "nonfinite")
        assert ("attn.k" in row["detail"], row["relative_norm"]) == (True, None)
    lost = base[name].numel() * len(slices(kind)["attn.k"]) // len(base[f"{FUSED[kind][0]}.bias"])
    assert rows[name, "tuned"]["compared"] == base[name].numel() - lost
    total = sum(tensor.numel() for tensor in base.values())
    assert gate(result, "paired").figure == pytest.approx(1 - lost / total)
    (recorded,) = (row for row in result.summary.skipped if row.reason == "nonfinite")
    assert recorded.examples == [name]
    assert result.should_not_have_skipped == ["nonfinite"]
    measured = ["attn.q", "attn.v"] if what == "weight" else ["attn.q", "attn.k", "attn.v"]
    assert list(frame(result.folder, subject="delta")["module"]) == measured


def test_an_expert_that_is_not_finite_is_told(tmp_path, shadow):
    """Two of 16: all others have a row, and --strict ends with 3."""
    name = "model.layers.0.mlp.experts.down_proj"
    base = {name: torch.randn(16, 8, 4, generator=torch.Generator().manual_seed(0))}
    tuned = {name: base[name] * 1.5}
    tuned[name][3, 0, 0] = math.inf
    base[name][11, 0, 0] = math.nan
    result, rows = audited(tmp_path, base, tuned, {"model_type": "qwen3_moe", "hidden_size": 8})
    row = rows[name, "tuned"]
    assert row["status"] == "skipped"
    assert "experts.down 3" in row["detail"]
    assert "experts.down 11" in row["detail"]
    assert row["compared"] == 14 * 8 * 4
    experts = frame(result.folder, subject="delta")["expert"]
    assert list(experts) == [one for one in range(16) if one not in (3, 11)]
    assert result.summary.figures["depth_layers"] == 1
    assert result.summary.figures["parameters_measured"] == 14 * 8 * 4
    assert gate(result, "paired").figure == pytest.approx(14 / 16)
    done = shadow("audit", "./base", "./tuned", "-o", "again", "--strict")
    assert "nonfinite" in done.assert_done(3)


def test_what_a_filter_leaves_out_of_a_fused_tensor_is_no_fault(tmp_path):
    """--module attn.q measures q of a fused projection: the tensor is measured."""
    base = fused("phi3")
    tuned = {name: tensor * 1.01 for name, tensor in base.items()}
    chosen = Filter(modules=("attn.q",))
    result, rows = audited(tmp_path, base, tuned, {"model_type": "phi3", **HEADS}, chosen=chosen)
    row = rows["model.layers.0.self_attn.qkv_proj.weight", "tuned"]
    assert (row["status"], row["reason"]) == ("measured", None)
    assert row["detail"] == "attn.k filtered; attn.v filtered"
    assert row["compared"] == 32 * 32
    assert result.should_not_have_skipped == []


def test_a_grown_vocabulary_counts_with_its_common_rows(tmp_path):
    """100 of 125 rows are common, changed or not: 80 % of the parameters were compared."""
    name, rows = "model.embed_tokens.weight", torch.randn(100, 8)
    for change in (0.0, 0.1):
        tuned = {name: torch.cat([rows + change, torch.randn(25, 8)])}
        result, _ = audited(tmp_path / str(change), {name: rows}, tuned, planted.LLAMA)
        assert gate(result, "paired").figure == pytest.approx(0.8)
