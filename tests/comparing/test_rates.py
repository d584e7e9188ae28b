"""Error rates stand beside pairs like those that they were measured on, and beside no other."""

import shutil

import pandas as pd
import pytest
import torch
from effort import every
from readme import DOCS, ROOT
from safetensors.torch import load_file, save_file

import shadow
from shadow.comparing.codes import Rate
from shadow.outputs.markdown import markdown
from shadow.telling.comparisons import comparison_document

DEMO = ROOT / "registry" / "demo"
READERS = {  # the matrices that read what a norm gives
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def tensors(stage):
    return load_file(DEMO / stage / "model.safetensors")


def matrices_changed(weights, change, part="layers"):
    return {
        name: change(matrix.float()).to(matrix.dtype)
        if matrix.ndim == 2 and part in name
        else matrix
        for name, matrix in weights.items()
    }


def folded(weights):
    """The same model, each norm's gains multiplied into the matrices that read them."""
    merged = dict(weights)
    for name, gains in weights.items():
        for norm, modules in READERS.items():
            if norm in name:
                merged[name] = torch.ones_like(gains)
                for module in modules:
                    reader = name.replace(f"{norm}.weight", f"{module}.weight")
                    product = weights[reader].float() * gains.float()
                    merged[reader] = product.to(gains.dtype)
    return merged


def near_one(weights):
    """Gains of 1 within a tenth, as norms of (1 + w) have them."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: (1 + 0.1 * torch.randn(gains.shape, generator=rng)).to(gains.dtype)
        if "layernorm" in name
        else gains
        for name, gains in weights.items()
    }


def pruned(matrix):
    least = matrix.abs().flatten().kthvalue(int(0.3 * matrix.numel())).values
    return torch.where(matrix.abs() <= least, 0, matrix)


def rotated(matrix):
    rng = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(len(matrix), len(matrix), generator=rng))
    return rotation @ matrix


KINDS = {
    "folded": lambda: folded(tensors("base")),
    "tuned and folded": lambda: folded(tensors("narrow")),
    "scaled": lambda: matrices_changed(tensors("base"), lambda matrix: 1.05 * matrix),
    "pruned": lambda: matrices_changed(tensors("base"), pruned),
    "rotated": lambda: matrices_changed(tensors("base"), rotated),
    "tuned, one module rotated": lambda: matrices_changed(tensors("narrow"), rotated, "down_proj"),
    "tuned, one module frozen": lambda: (
        tensors("narrow") | {k: v for k, v in tensors("base").items() if "down_proj" in k}
    ),
    "copy in FP8": lambda: matrices_changed(
        tensors("base"), lambda matrix: matrix.to(torch.float8_e4m3fn).float()
    ),
}


def audited(folder, weights, base=DEMO / "base", **options):
    """The report of a model beside the demo's base."""
    shutil.copytree(DEMO / "base", folder / "model")
    save_file(weights, folder / "model" / "model.safetensors")
    return shadow.audit(base, folder / "model", output=folder / "reports", **options).folder


def compared(*folders, **options):
    comparison = shadow.compare(*folders, **options)
    (contrast,) = comparison.contrasts
    return contrast, markdown(comparison_document(comparison))


def test_two_trainings_have_the_rate_of_two_seeds(demo_reports):
    """Beside the margin that it was measured at alone, whichever report is first."""
    folders = [demo_reports / "base..narrow", demo_reports / "base..broad"]
    for order in (folders, folders[::-1]):
        contrast, text = compared(*order)
        assert contrast.rate is Rate.SEEDS_CALLED
        assert "0 of 140 pairs of two seeds" in text
    assert compared(*folders, margin=0.04)[0].rate is None
    assert compared(*folders, margin=0.2)[0].rate is None


@pytest.mark.parametrize("kind", every(3, KINDS))
def test_what_no_training_leaves_has_no_rate(demo_reports, tmp_path, kind):
    """Neither rate is said of a folded, pruned, rotated, scaled or copied model."""
    report = audited(tmp_path, KINDS[kind]())
    for other in ("base..narrow", "base..broad"):
        contrast, text = compared(report, demo_reports / other)
        assert contrast.rate is None
        assert "in the lab" not in text


def test_small_gains_that_were_folded_have_no_rate(tmp_path):
    """Such a fold does not go along the base: the norms show it, and nothing else does."""
    base, narrow, broad = (near_one(tensors(stage)) for stage in ("base", "narrow", "broad"))
    before = tmp_path / "base"
    shutil.copytree(DEMO / "base", before)
    save_file(base, before / "model.safetensors")
    models = {"narrow": narrow, "broad": broad, "folded": folded(narrow)}
    reports = {name: audited(tmp_path / name, one, before) for name, one in models.items()}
    assert compared(reports["narrow"], reports["broad"])[0].rate is Rate.SEEDS_CALLED
    contrast, text = compared(reports["folded"], reports["broad"])
    assert not contrast.voids
    assert contrast.rate is None
    assert "in the lab" not in text


@pytest.mark.parametrize("options", [{"layers": "0-2"}, {"level": "sketch"}, {"level": "norms"}])
def test_a_part_and_estimates_have_no_rate(demo_reports, tmp_path, options):
    report = audited(tmp_path, tensors("narrow"), **options)
    again = audited(tmp_path / "again", tensors("broad"), **options)
    for first in (again, demo_reports / "base..broad"):
        contrast, text = compared(report, first)
        assert contrast.rate is None
        assert "in the lab" not in text


def test_an_adapter_has_no_rate(demo_reports, tmp_path):
    """The lab's rates are of updates of full rank: two of one rank have a verdict, and no rate."""
    base = tensors("base")
    rng = torch.Generator().manual_seed(3)
    reports = []
    for name, decay in (("one", 1.0), ("two", 0.1)):
        scale = torch.tensor([decay**power for power in range(4)])

        def added(matrix, scale=scale):
            left = torch.randn(len(matrix), 4, generator=rng) * scale
            return matrix + 0.05 * left @ torch.randn(4, matrix.shape[1], generator=rng)

        weights = matrices_changed(base, added)
        reports.append(audited(tmp_path / name, weights))
    contrast, text = compared(*reports)
    assert contrast.rate is None
    assert "in the lab" not in text


def test_rates_are_those_of_the_table():
    """Counted in the recorded comparisons: bases that met the data, AdamW at one rate."""
    pairs = pd.read_parquet(DOCS / "lab" / "comparisons.parquet")
    kinds = (pairs["regime_first"] + pairs["regime_second"]).map(lambda both: "".join(sorted(both)))
    met = ~pairs["base"].str.contains("-cold-")
    called = pairs["verdict"].isin(["more concentrated", "less concentrated"])
    seeds = kinds.str[0] == kinds.str[1]
    data = (kinds == "BC") & met
    assert f"{(seeds & called).sum()} of {seeds.sum()} pairs of two seeds" in Rate.SEEDS_CALLED.text
    assert f"{(data & ~called).sum()} of {data.sum()} pairs of narrow" in Rate.DATA_MISSED.text
