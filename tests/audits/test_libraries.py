"""A whole audit by either choice of libraries that follows from the CPU's vendor."""

from __future__ import annotations

import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import chosen
from measuring import pair_of

from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.spectra import spectrum
from shadow.spectra.delta import Method

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (600, 280),
    "model.layers.0.mlp.down_proj.weight": (280, 600),
    "model.layers.0.self_attn.q_proj.weight": (400, 400),
    "model.layers.0.self_attn.k_proj.weight": (60, 280),
}


def noisy(one, generator):
    return one + 0.1 * torch.randn(one.shape, generator=generator)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tuned = {
        name: one + 0.1 * torch.randn(one.shape, generator=generator) for name, one in base.items()
    }
    for name, side in (("base", base), ("tuned", tuned)):
        planted.write(
            folder / name, {key: one.bfloat16() for key, one in side.items()}, planted.LLAMA
        )
    return pair_of(folder / "base", folder / "tuned")


@pytest.mark.parametrize("precision", chosen(("default", "exact", "sketch"), ("default",)))
@pytest.mark.parametrize("largest", [300, 2048], ids=["Lanczos too", "as it is"])
def test_both_choices_agree(pair, precision, largest, tmp_path, monkeypatch):
    """Every number of the report within 1e-6, of angles between subspaces within 1e-5."""
    monkeypatch.setattr(spectrum, "OPENBLAS_SIDE", largest)
    monkeypatch.setattr(spectrum, "OPENBLAS_SIDE_AT_HOME", largest)
    rows = []
    for mkl in (True, False):
        monkeypatch.setattr(spectrum, "mkl_is_at_home", lambda mkl=mkl: mkl)
        settings = Settings(Method(precision), Filter())
        folder = run_pair(pair, settings, tmp_path / str(mkl), Runtime(jobs=1)).folder
        rows.append(pq.read_table(folder / "matrices.parquet").to_pylist())
    assert len(rows[0]) == len(rows[1]) == 3 * len(SHAPES)
    for one, other in zip(*rows, strict=True):
        for name, value in one.items():
            expected = (
                pytest.approx(value, rel=1e-6, abs=1e-5) if isinstance(value, float) else value
            )
            assert other[name] == expected, (one["tensor"], one["subject"], name)
