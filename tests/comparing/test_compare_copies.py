"""A report of a mere copy gets no verdict beside one of a training: it is called a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import shadow

WIDTH, HIDDEN, LAYERS = 256, 320, 4
SHAPES = {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(LAYERS)
    for name, shape in {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
    }.items()
}
BASE = {
    name: (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16()
    for seed, (name, shape) in enumerate(SHAPES.items())
}


def trained(seed: int, rank: int, size: float = 0.01) -> dict[str, torch.Tensor]:
    """The base and an update, half of whose energy lies in a few directions."""
    rng = torch.Generator().manual_seed(100 + seed)
    tuned = {}
    for name, weight in BASE.items():
        noise = torch.randn(weight.shape, generator=rng)
        left, right = (torch.randn(side, rank, generator=rng) for side in weight.shape)
        strong = left @ right.T
        update = noise / noise.norm() + strong / strong.norm()
        tuned[name] = (weight.float() + size * weight.float().norm() * update).bfloat16()
    return tuned


def rounded(weight: torch.Tensor, how: str) -> torch.Tensor:
    """A matrix through few bits and back."""
    W = weight.float()
    if how == "FP8 by tensor":
        scale = W.abs().max() / 448
        return ((W / scale).to(torch.float8_e4m3fn).float() * scale).bfloat16()
    if how == "int8 by row":
        scale = W.abs().amax(1, keepdim=True) / 127
        return (torch.round(W / scale) * scale).bfloat16()
    if how == "int4 in groups":
        groups = W.reshape(-1, 64)
        scale = groups.abs().amax(1, keepdim=True) / 7
        return (torch.round(groups / scale) * scale).reshape(W.shape).bfloat16()
    assert how == "GPTQ"
    return _gptq(W.double().numpy())


def _gptq(W: np.ndarray) -> torch.Tensor:
    """4 bits a row, each column's error made up for by those after it (Frantar et al. 2022)."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((512, 24)) @ rng.standard_normal((24, W.shape[1]))
    inputs += 0.3 * rng.standard_normal(inputs.shape)
    H = inputs.T @ inputs + 1e-2 * np.trace(inputs.T @ inputs) / W.shape[1] * np.eye(W.shape[1])
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    W, out = W.copy(), np.zeros_like(W)
    scale = np.abs(W).max(1) / 7
    for column in range(W.shape[1]):
        out[:, column] = np.clip(np.round(W[:, column] / scale), -7, 7) * scale
        error = (W[:, column] - out[:, column]) / U[column, column]
        W[:, column:] -= np.outer(error, U[column, column:])
    return torch.from_numpy(out).bfloat16()


def report(folder: Path, name: str, tuned: dict[str, torch.Tensor]) -> Path:
    for side, weights in (("base", BASE), (name, tuned)):
        (folder / side).mkdir(exist_ok=True)
        save_file(
            {key: one.contiguous() for key, one in weights.items()},
            folder / side / "model.safetensors",
        )
        (folder / side / "config.json").write_text('{"model_type": "llama"}')
    done = shadow.audit(
        base=str(folder / "base"), tuned=str(folder / name), output=folder / f"of-{name}"
    )
    return done.folder


@pytest.mark.parametrize("how", ["FP8 by tensor", "int8 by row", "int4 in groups", "GPTQ"])
def test_a_copy_in_few_bits_gets_no_verdict(tmp_path: Path, how: str) -> None:
    """Nothing is consistent with narrower data where the other model is the base in few bits."""
    one = report(tmp_path, "one", trained(1, 4))
    copy = report(tmp_path, "copy", {name: rounded(one, how) for name, one in BASE.items()})
    (found,) = shadow.compare(one, copy).contrasts
    assert found.verdict == "not comparable"
    assert "copy" in found.sentence
    assert "B (" in found.not_comparable[0]


def test_a_stored_fp8_copy_and_a_cast_get_no_verdict(tmp_path: Path) -> None:
    """FP8 in the file; and an F16 file of weights that lose bits there."""
    one = report(tmp_path, "one", trained(1, 4))
    for name, tuned in (
        ("fp8", {key: weight.to(torch.float8_e4m3fn) for key, weight in BASE.items()}),
        ("f16", {key: (weight.float() * 2**-9).half() * 2**9 for key, weight in BASE.items()}),
    ):
        (found,) = shadow.compare(one, report(tmp_path, name, tuned)).contrasts
        assert found.verdict == "not comparable"
        assert "copy" in found.sentence
