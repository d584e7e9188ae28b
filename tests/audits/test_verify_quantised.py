"""`shadow verify quantised`, and what other commands say of quantised sides: GGUF files of a small
Llama whose truth is known.
"""

import json
import math
from collections import Counter

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import quantisers
import torch
from effort import every
from gguf import GGUFReader
from safetensors.torch import save_file

import shadow

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model():
    return planted.gguf_llama()


@pytest.fixture
def stored(tmp_path):
    """A function that writes tensors as safetensors, or as GGUF of a kind."""

    def write(name, tensors, kind=None, **options):
        folder = tmp_path / name
        folder.mkdir()
        if kind:
            planted.write_gguf(folder / "model.gguf", tensors, kind=kind, **options)
            return folder
        bf16 = {key: torch.from_numpy(one).bfloat16() for key, one in tensors.items()}
        save_file(bf16, folder / "model.safetensors")
        config = {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": planted.GGUF_LAYERS, "hidden_size": planted.GGUF_WIDTH,
            "intermediate_size": planted.GGUF_INNER, "num_attention_heads": planted.GGUF_HEADS,
            "num_key_value_heads": planted.GGUF_KV_HEADS,
            "head_dim": planted.GGUF_WIDTH // planted.GGUF_HEADS,
            "vocab_size": planted.GGUF_TOKENS, "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def moved(tensors, size, seed=1, only=None):
    """Matrices with a change of that standard deviation, in BF16."""
    rng = np.random.default_rng(seed)
    return {
        name: planted.bf16(one + size * rng.standard_normal(one.shape).astype(np.float32))
        if one.ndim > 1 and only in (None, name)
        else one
        for name, one in tensors.items()
    }


def verify(*question, **options):
    return shadow.verify(*question, jobs=1, **options)


@pytest.mark.parametrize(
    "kind", every(4, ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"])
)
def test_a_copy_of_the_original_holds(model, stored, kind):
    """Every matrix has the error of its format, which is named."""
    found = verify("quantised", stored("full", model), stored("copy", model, kind))
    assert found.outcome == "holds", found.reason
    assert found.figures["tensors_beyond"] == 0
    assert found.figures[f"tensors_{kind}"] == 16
    if not kind.startswith("T"):
        assert found.figures["error_ratio"] == pytest.approx(1, abs=0.002)


NOISE = 0.02 / 8 / math.sqrt(12)  # of Q4_0
MADE = {  # what is made of the model, its format -> the answer, and how many speak against it
    "one changed layer": (
        lambda one: moved(one, NOISE / 6, only=UP), {"kind": "Q4_0"}, "beyond", {"outside": 1}
    ),
    "q and k that were not permuted": (
        lambda one: one, {"kind": "Q4_0", "paired": False}, "beyond", {"far": 4}
    ),
    "another model": (
        lambda one: planted.gguf_llama(seed=4), {"kind": "Q8_0"}, "beyond",
        {"far": 16, "outside": 5},
    ),
    "floats alone": (lambda one: one, {"kind": "F16"}, "floats", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_what_is_no_copy_in_a_format_is_named(model, stored, case):
    make, options, code, against = MADE[case]
    found = verify("quantised", stored("full", model), stored("copy", make(model), **options))
    assert found.code == code, found
    assert found.outcome == ("inconclusive" if code == "floats" else "does_not_hold")
    assert Counter(one.code for one in found.against) == against
    assert found.figures["tensors_beyond"] == len(found.against)
    if case == "one changed layer":
        assert [one.name for one in found.against] == [UP]


def test_gguf_in_bf16_is_the_same_as_safetensors(model, stored):
    """Names, order of rows and files differ, and no value does."""
    assert verify("same", stored("full", model), stored("copy", model, "BF16")).holds


def test_what_a_quantised_copy_kept_of_an_update_is_its_squared_cosine(model, stored):
    """By NumPy, from the decoded file."""
    tuned = moved(model, 0.002)
    found = verify(
        "stored", stored("tuned", tuned), stored("copy", tuned, "Q4_0"), base=stored("base", model)
    )
    update, there = [], []
    for name, one in tuned.items():
        if one.ndim > 1:
            decoded = quantisers.through_ggml(one, "Q4_0")
            update.append((one - model[name]).astype(float).ravel())
            there.append((decoded - model[name]).astype(float).ravel())
    update, there = np.concatenate(update), np.concatenate(there)
    cosine = update @ there / math.sqrt((update @ update) * (there @ there))
    assert found.outcome == "does_not_hold"
    assert found.figures["update_cosine"] == pytest.approx(cosine, rel=1e-6)
    assert found.figures["update_kept"] == pytest.approx(cosine**2, rel=1e-6)


def test_a_light_tune_that_vanished_in_4_bits(model, stored, tmp_path):
    """Of an update of 0.01 steps little is left, and the two files alone do not say how much."""
    tuned = moved(model, 3e-5)
    base, quantised = stored("base", model), stored("quantised", model, "Q4_0")
    copy = stored("copy", tuned, "Q4_0")
    found = verify("stored", stored("tuned", tuned), copy, base=base)
    assert found.outcome == "does_not_hold"
    assert found.figures["update_kept"] < 0.02
    report = shadow.audit(str(quantised), str(copy), output=tmp_path / "out", jobs=1)
    rows = pq.read_table(report.folder / "matrices.parquet").to_pylist()
    deltas = {row["tensor"]: row for row in rows if row["subject"] == "delta"}
    for name in ("kept_low", "kept_high", "floor_ratio", "kept"):
        assert deltas[UP][name] is None


def test_one_coarse_module_has_its_share_of_the_energy(model, stored, tmp_path):
    """The error of 4 bits in mlp.down is most of the change; the range has the truth by NumPy."""
    tuned = moved(model, 2e-4)
    kinds = {name: "Q4_0" for name in model if "down_proj" in name}
    copy = stored("copy", tuned, "Q8_0", kinds=kinds)
    report = shadow.audit(str(stored("base", model)), str(copy), output=tmp_path / "out", jobs=1)
    update = there = 0.0
    for name, one in tuned.items():
        if one.ndim > 1 and ".layers." in name:
            decoded = quantisers.through_ggml(one, kinds.get(name, "Q8_0"))
            update += float(np.square(one.astype(float) - model[name]).sum())
            there += float(np.square(decoded.astype(float) - model[name]).sum())
    inside = report.summary.inside_layers
    assert inside.kept_low > 0.5
    assert inside.kept_low_overall <= update / there <= inside.kept_high_overall < 0.5
    (said,) = (one for one in report.summary.finding.sentences if one.code == "kept")
    assert set(said.figures) >= {
        "inside_layers.kept_low_overall", "inside_layers.kept_high_overall"
    }  # fmt: skip
    assert "as large as its rounding, most of it in mlp.down" in report.summary.finding.headline


def test_what_two_sides_of_unknown_levels_left_is_not_known(model, stored, tmp_path):
    """Nothing says what rounding to IQ leaves: the gate fails, though the fine embedding moved."""
    kinds = {"model.embed_tokens.weight": "F32", "lm_head.weight": "F32"}
    sides = [
        str(stored(name, one, "IQ4_NL", kinds=kinds))
        for name, one in (("base", model), ("copy", moved(model, 2e-4)))
    ]
    report = shadow.audit(*sides, output=tmp_path / "out", jobs=1)
    gates = {gate.name: gate for gate in report.summary.gates}
    assert (gates["rounding"].passed, gates["rounding"].figure) == (False, None)
    assert gates["rounding"].reason == "it is unknown what rounding to IQ4_NL does to a change"
    assert report.summary.figures.floor_ratio is None


def test_a_merge_onto_dequantised_weights_shows_against_the_quantised_base(model, stored, tmp_path):
    """The error is 10 to 150 times the update; beside the quantised base is the update alone."""
    rng = np.random.default_rng(2)
    merged, update = dict(model), {}
    for name, one in model.items():
        if one.ndim > 1:
            factors = rng.standard_normal((one.shape[0], 2)), rng.standard_normal((2, one.shape[1]))
            update[name] = 3e-5 * (factors[0] @ factors[1]).astype(np.float32)
            merged[name] = quantisers.through_ggml(one, "Q4_0") + update[name]
    of_merged = tmp_path / "merged"
    of_merged.mkdir()
    full = stored("full", model)
    save_file(
        {name: torch.from_numpy(one) for name, one in merged.items()},
        of_merged / "model.safetensors",
    )
    (of_merged / "config.json").write_text((full / "config.json").read_text())
    norms = {}
    for name, base in (("full", full), ("quantised", stored("quantised", model, "Q4_0"))):
        report = shadow.audit(str(base), str(of_merged), output=tmp_path / name, jobs=1)
        rows = pq.read_table(report.folder / "matrices.parquet").to_pylist()
        norms[name] = {
            row["tensor"]: row["frobenius_norm"] for row in rows if row["subject"] == "delta"
        }
    for name, one in update.items():
        true = float(np.linalg.norm(one))
        assert 10 < norms["full"][name] / true < 150
        assert norms["quantised"][name] == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_that_were_zeroed_are_beyond_the_format(model, stored, kind):
    """However coarse the steps of another block of the row are."""
    far = {**model, UP: model[UP].copy()}
    far[UP][:, 5] = 8.0
    full, copy = stored("full", far), stored("copy", far, kind)
    file = copy / "model.gguf"
    (tensor,) = [one for one in GGUFReader(file).tensors if one.name == "blk.1.ffn_up.weight"]
    blocks = tensor.data.reshape(len(far[UP]), planted.GGUF_WIDTH // 32, -1).copy()
    blocks[:, 1:, :2] = 0  # the scales
    raw = bytearray(file.read_bytes())
    raw[tensor.data_offset : tensor.data_offset + blocks.nbytes] = blocks.tobytes()
    file.write_bytes(raw)
    for claim in ("quantised", "stored"):
        found = verify(claim, full, copy)
        assert found.outcome == "does_not_hold", (claim, found)
        assert [one.name for one in found.against] == [UP]
    zeros = {**model, UP: far[UP] * (abs(far[UP]) > 1)}
    assert verify("quantised", stored("zeros", zeros), stored("same", zeros, kind)).holds is True


@pytest.mark.parametrize("kind", every(2, ["Q4_0", "Q8_0", "Q5_1"]))
def test_a_quantised_copy_did_not_move(model, stored, kind):
    """Of `trained`: rounding to a quantised format is a cast; a step of several levels is none."""
    base, copy = stored("base", model), stored("copy", model, kind)
    found = verify("trained", base, copy, moved="layers.*.mlp.*")
    assert (found.outcome, found.code) == ("does_not_hold", "not_moved"), found
    whys = [one.why for one in found.answer.against]
    assert {(one.code, one.figures["format"]) for one in whys} == {("rounded", kind)}
    others = verify("trained", base, copy, moved="layers.0.mlp.up").answer.notes[-1]
    assert (others.code, others.figures["moved"]) == ("beside", 0)
    assert verify("trained", base, copy, frozen="mlp.up").holds is False
    far = stored("far", moved(model, 0.5), kind)
    found = verify("trained", base, far, moved="layers.*.mlp.*")
    assert found.holds is True, found
    assert "typical_step" not in found.figures
    # what a quantised base rounded away may be a step, or not
    found = verify("trained", copy, base, moved="layers.*.mlp.*")
    assert (found.outcome, found.against[0].code) == ("inconclusive", "base_rounded"), found
    assert verify("trained", far, base, moved="layers.*.mlp.*").holds is True


def test_what_moved_between_two_quantised_sides_cannot_be_told(model, stored):
    """Of `trained`, also where far more moved; of `quantised`, what is no copy of a copy may be one
    of the same original.
    """
    sides = {kind: stored(kind, model, kind) for kind in ("Q8_0", "Q4_0")}
    sides |= {"far": stored("far", moved(model, 0.5), "Q4_0")}
    for base, tuned in (("Q8_0", "Q4_0"), ("Q4_0", "Q8_0"), ("Q4_0", "far")):
        found = verify("trained", sides[base], sides[tuned], moved="layers.*.mlp.*")
        assert (found.outcome, found.against[0].code) == ("inconclusive", "both_quantised"), found
    assert verify("quantised", sides["Q4_0"], sides["Q8_0"]).outcome == "inconclusive"
    assert verify("quantised", sides["Q4_0"], sides["far"]).outcome == "does_not_hold"
