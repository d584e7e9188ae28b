"""`shadow verify stored`: what a copy in fewer bits kept of a model and of its update."""

import json

import numpy as np
import planted
import pytest
import torch
from command import run_shadow
from safetensors.torch import load_file

import shadow
from shadow.spectra.relations.merging import quantised

NARROW = {"F16": torch.float16, "BF16": torch.bfloat16}


def full_and_base(step, dtype=torch.bfloat16, size=64):
    """A full model in F32 that moved by a step from a base."""
    generator = torch.Generator().manual_seed(0)
    names = [planted.UP.format(layer) for layer in range(2)] + ["model.embed_tokens.weight"]
    base = {name: 0.02 * torch.randn(size, size, generator=generator) for name in names}
    base = {name: one.to(dtype) for name, one in base.items()}
    full = {
        name: one.float() + step * torch.randn(one.shape, generator=generator)
        for name, one in base.items()
    }
    return full, base


def recorded(tmp_path, full, copy, base=None):
    number = len(list(tmp_path.iterdir()))
    sides = {"full": full, "copy": copy, **({"base": base} if base else {})}
    where = {
        name: planted.write(tmp_path / f"{number}{name}", tensors, planted.LLAMA)
        for name, tensors in sides.items()
    }
    return shadow.verify("stored", where["full"], where["copy"], base=where.get("base"))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("back", [False, True], ids=["as it is", "in F32"])
def test_a_rounded_copy_holds_and_its_error_is_that_of_numpy(tmp_path, name, back):
    """Also where the rounded values are stored in F32; one entry off does not hold."""
    full, _ = full_and_base(1e-3)
    copy = {key: one.to(NARROW[name]) for key, one in full.items()}
    if back:
        copy = {key: one.float() for key, one in copy.items()}
    found = recorded(tmp_path, full, copy)
    assert (found.outcome, found.code) == ("holds", "rounded")
    assert found.answer.reasons[0].figures["formats"] == [name]
    pairs = [(full[key].double().numpy(), copy[key].double().numpy()) for key in full]
    error = sum(np.linalg.norm(c - f) ** 2 for f, c in pairs)
    norm = sum(np.linalg.norm(f) ** 2 for f, _ in pairs)
    assert found.figures["relative_error"] == pytest.approx((error / norm) ** 0.5, rel=1e-9)
    key = planted.UP.format(1)
    copy[key][3, 3] *= 1.02
    found = recorded(tmp_path, full, copy)
    assert (found.outcome, found.code) == ("does_not_hold", "off")
    assert [(one.name, one.code) for one in found.against] == [(key, "entries")]
    assert found.figures["entries_off"] == 1


@pytest.mark.parametrize(("step", "holds"), [(1e-3, True), (1e-6, False), (3e-5, False)])
def test_the_kept_share_of_an_update_is_the_squared_cosine(tmp_path, step, holds):
    """A large step survives BF16, a small one does not; all figures are NumPy's."""
    full, base = full_and_base(step)
    copy = {key: one.bfloat16() for key, one in full.items()}
    found = recorded(tmp_path, full, copy, base)
    assert (found.holds, found.code) == (holds, "rounded" if holds else "kept"), found
    whole = [
        np.concatenate([one[key].double().numpy().ravel() for key in full])
        for one in (full, copy, base)
    ]
    u, v = whole[0] - whole[2], whole[1] - whole[2]
    figures = found.figures
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert figures["update_kept"] == pytest.approx(cosine**2, rel=1e-9)
    error = np.linalg.norm(whole[1] - whole[0]) / np.linalg.norm(u)
    assert figures["error_over_update"] == pytest.approx(error, rel=1e-9)


def test_a_copy_through_int8_is_no_rounded_copy(tmp_path):
    """What went through fewer bits than its dtype has does not hold."""
    full, base = full_and_base(1e-4)
    copy = {key: quantised(one.double(), "INT8").bfloat16() for key, one in full.items()}
    found = recorded(tmp_path, full, copy, base)
    assert [one.code for one in found.answer.reasons] == ["off", "kept"]
    assert found.answer.reasons[0].figures["formats"] == ["BF16"]


def test_without_an_update_nothing_can_be_kept(tmp_path):
    """A full model that is its base: cannot be told. A base of other tensors too."""
    full, _ = full_and_base(1e-3)
    copy = {key: one.bfloat16() for key, one in full.items()}
    found = recorded(tmp_path, full, copy, full)
    assert (found.outcome, found.code) == ("inconclusive", "no_update")
    less = {key: one for key, one in full.items() if "embed" not in key}
    found = recorded(tmp_path, full, copy, {key: 0.99 * one for key, one in less.items()})
    assert (found.outcome, found.code) == ("inconclusive", "not_compared")
    assert [one.code for one in found.against] == ["no_base"]


def test_the_command_takes_a_base(tmp_path):
    """`--base` is for stored alone."""
    full, base = full_and_base(1e-6)
    for name, one in (("full", full), ("base", base)):
        planted.write(tmp_path / name, one, planted.LLAMA)
    planted.write(
        tmp_path / "copy", {key: one.bfloat16() for key, one in full.items()}, planted.LLAMA
    )
    ask = ["verify", "stored", "./full", "./copy"]
    run_shadow(*ask, cwd=tmp_path).assert_done()
    found = run_shadow(*ask, "--base", "./base", "--json", cwd=tmp_path)
    recorded = json.loads(found.assert_done(4))
    assert recorded["of"]["--base"].endswith("/base")
    (tmp_path / "claims.yaml").write_text("- {claim: stored, of: [./full, ./copy], base: ./base}\n")
    run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path).assert_done(4)


def test_equal_values_that_are_not_finite_are_noted(tmp_path):
    """A copy has them as the full model has; where it has others, it does not hold."""
    full, _ = full_and_base(1e-3)
    key = planted.UP.format(0)
    full[key][0, 0] = torch.nan
    copy = {name: one.bfloat16() for name, one in full.items()}
    found = recorded(tmp_path, full, copy)
    assert found.holds is True, found
    assert [(one.code, one.figures["tensors"]) for one in found.answer.notes] == [
        ("without_norm", 1)
    ]
    copy[key][0, 0] = 1.0
    found = recorded(tmp_path, full, copy)
    assert (found.holds, found.figures["entries_off"]) == (False, 1)
    assert [(one.name, one.code) for one in found.against] == [(key, "some_not_finite")]


def test_block_scaled_floats_are_judged_by_their_cells(tmp_path):
    """On the grid that scales make of 8-bit floats; one entry of another level is found."""
    full, _ = full_and_base(1e-3, size=128)
    key = planted.UP.format(0)
    scale = full[key].abs().max() / 448
    copy = dict(full)
    copy[key] = (full[key] / scale).to(torch.float8_e4m3fn)
    copy[key.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
    found = recorded(tmp_path, full, copy)
    assert found.holds is True, found
    assert "F8_E4M3 with scales" in found.answer.reasons[0].figures["formats"]
    assert recorded(tmp_path, copy, copy).holds is True
    row = copy[key][3].float()
    row[5] = row[5] / 2
    copy[key][3] = row.to(torch.float8_e4m3fn)
    found = recorded(tmp_path, full, copy)
    assert (found.outcome, found.code) == ("does_not_hold", "off")
    assert [one.name for one in found.against] == [key]
    assert found.figures["entries_off"] == 1


def router_bias(entries):
    """Values near 5, as routers of DeepSeek-V3 have, of which BF16 tells a few apart."""
    return 5 + torch.arange(entries) / 256


def test_values_of_a_vector_that_merge_are_said_and_are_no_fault(tmp_path):
    """How many norms a cast to BF16 leaves is NumPy's; without a known class no more is known."""
    full, _ = full_and_base(1e-3)
    generator = torch.Generator().manual_seed(0)
    bias, norm = "model.layers.0.mlp.gate.e_score_correction_bias", "model.norm.weight"
    full |= {bias: router_bias(64), norm: 1 + 0.1 * torch.rand(4096, generator=generator)}
    found = recorded(tmp_path, full, {name: one.bfloat16() for name, one in full.items()})
    assert (found.outcome, found.code) == ("holds", "rounded")
    (note,) = found.notes
    for name in (bias, norm):
        before, after = (len(np.unique(one.float())) for one in (full[name], full[name].bfloat16()))
        assert f"{before:,} values become {after} in {name}" in note
    assert found.figures["vectors_merged"] == 2
    kept = {name: one if name == bias else one.bfloat16() for name, one in full.items()}
    found = recorded(tmp_path, full, kept)
    assert (found.outcome, found.figures["vectors_merged"]) == ("holds", 1)


def test_a_bias_that_its_class_keeps_in_f32_is_crushed_in_bf16(tmp_path, in_this_process):
    """As transformers says of DeepSeek-V3; a copy that keeps it holds."""
    folder = planted.saved("deepseek_v3", tmp_path / "full", n_routed_experts=64)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    tensors |= {name: router_bias(64) for name in biases}
    planted.write(folder, tensors, config)
    copy = {name: one.bfloat16() for name, one in tensors.items()}
    rounded = planted.write(tmp_path / "copy", copy, config)
    found = shadow.verify("stored", folder, rounded)
    assert (found.outcome, found.code) == ("does_not_hold", "crushed")
    assert {(one.name, one.code) for one in found.against} == {(one, "values") for one in biases}
    left = len(router_bias(64).bfloat16().unique())
    assert f"64 values become {left}" in found.against[0].what
    planted.write(rounded, copy | {name: tensors[name] for name in biases}, config)
    assert shadow.verify("stored", folder, rounded).holds
