"""Copies in few bits of which nothing was trained: no claim says that they are anything else.

Planted with error-compensated rounding (GPTQ), column factors (AWQ), 8-bit floats in blocks and
plain rounding; packed as files hold them, and dequantised.
"""

import planted
import pytest
import quantisers
import torch
from effort import every
from quantisers import compensated

import shadow

ROWS = 128


def based(cols, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{layer}.mlp.{part}.weight"
             for layer in (0, 1) for part in ("up_proj", "gate_proj")]  # fmt: skip
    state = {key: (0.02 * torch.randn(ROWS, cols, generator=generator)).to(dtype) for key in names}
    return {**state, "model.norm.weight": torch.ones(cols, dtype=dtype)}


def gptq(weight, bits, group, by_size=False, seed=0):
    """Pieces of a module, and what they decode to."""
    q, scales, zeros, g_idx = compensated(weight, bits, group, seed, by_size)
    truth = (q - zeros[:, g_idx]) * scales[:, g_idx]
    pieces = {
        "qweight": quantisers.stream(q.long(), bits).T, "scales": scales.T.half(),
        "qzeros": quantisers.stream((zeros - 1).T.long(), bits), "g_idx": g_idx.int(),
    }  # fmt: skip
    return pieces, truth


def awq(weight, group):
    """Columns are scaled first: the inverse factors lie in the norm before, or another matrix."""
    factors = torch.exp(
        0.3 * torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1))
    )
    return quantisers.awq(weight.float() * factors, group)


def fp8_blocks(weight, block=128):
    """A scale for each block of rows and columns."""
    rows, cols = weight.shape
    high = min(rows, block)
    parts = weight.float().view(rows // high, high, cols // block, block)
    scale = parts.abs().amax((1, 3)) / 448
    raw = (parts / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    truth = (raw.float() * scale[:, None, :, None]).view(rows, cols)
    return {"weight": raw.view(rows, cols), "weight_scale_inv": scale}, truth


def int8_blocks(weight, group):
    """Symmetric, a scale for each group of columns."""
    parts = weight.float().view(len(weight), -1, group)
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return {}, (torch.round(parts / scale) * scale).view(weight.shape)


GPTQ = {"quant_method": "gptq", "checkpoint_format": "gptq"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
KINDS = {
    **{
        f"GPTQ-{bits}, {group}{', desc_act' if by_size else ''}": (
            lambda w, b=bits, g=group, s=by_size: gptq(w, b, g, s),
            GPTQ | {"bits": bits, "group_size": group, "desc_act": by_size},
        )
        for bits in (4, 8) for group in (32, 128) for by_size in (False, True)
    },
    "AWQ": (lambda w: awq(w, 32), {"quant_method": "awq", "bits": 4, "group_size": 32}),
    "FP8 blocks": (fp8_blocks, FP8),
    "INT8 groups": (lambda w: int8_blocks(w, 32), None),
    "INT8 rows": (lambda w: int8_blocks(w, w.shape[1]), None),
    "NF4": (quantisers.nf4, None),
}  # fmt: skip


def put(folder, state, kind, dequantised):
    """A copy of a model: dequantised to a dtype, or packed where it is None."""
    make, said = KINDS[kind]
    copy = {}
    for name, one in state.items():
        if one.ndim < 2:
            copy[name] = one
            continue
        pieces, truth = make(one)
        if dequantised is None:
            stem = name.removesuffix("weight")
            copy |= {f"{stem}{piece}": part.contiguous() for piece, part in pieces.items()}
        else:
            copy[name] = truth.to(dequantised)
    config = {"quantization_config": said} if dequantised is None else {}
    return planted.write(folder, copy, planted.LLAMA | config)


PACKED = [kind for kind, (_, said) in KINDS.items() if said]
CASES = [(kind, None) for kind in PACKED] + [
    (kind, dtype)
    for kind in KINDS
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    if kind != "AWQ"  # whose factors are folded into other tensors
]


@pytest.mark.parametrize("cols", every(2, [128, 640]))
@pytest.mark.parametrize("case", every(6, CASES), ids=str)
def test_a_copy_that_nothing_trained_did_not_move_and_is_not_excluded(tmp_path, case, cols):
    """`trained` never holds of it, and `quantised` never says that it does not."""
    kind, dequantised = case
    base = based(cols)
    original = planted.write(tmp_path / "base", base, planted.LLAMA)
    copy = put(tmp_path / "copy", base, kind, dequantised)
    found = shadow.verify("trained", original, copy, moved="mlp.*")
    assert found.holds is not True, found
    found = shadow.verify("quantised", original, copy)
    assert found.holds is not False, found
    if dequantised is None and kind.startswith("GPTQ"):
        assert found.code == "not_excluded"


@pytest.mark.parametrize("cols", [256])
@pytest.mark.parametrize("case", every(7, CASES), ids=str)
def test_another_model_in_such_a_format_is_excluded(tmp_path, case, cols):
    """Of another seed: `trained` holds of packed numbers alone, whose steps lie in blocks."""
    kind, dequantised = case
    original = planted.write(tmp_path / "base", based(cols), planted.LLAMA)
    copy = put(tmp_path / "copy", based(cols, seed=5), kind, dequantised)
    found = shadow.verify("quantised", original, copy)
    assert found.holds is False, found
    found = shadow.verify("trained", original, copy, moved="mlp.*")
    assert found.holds is (None if dequantised or "desc_act" in kind else True), found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cols", every(2, [128, 640]))
@pytest.mark.parametrize("size", [1e-2, 1e-3])
def test_a_training_is_no_copy(tmp_path, dtype, cols, size):
    """Its values repeat no more than the base's, also where the base is stored in fewer bits."""
    base = based(cols)
    rng = torch.Generator().manual_seed(3)
    tuned = {
        name: (one.float() + size * torch.randn(one.shape, generator=rng)).to(dtype)
        for name, one in base.items()
    }
    original = planted.write(tmp_path / "base", base, planted.LLAMA)
    copy = planted.write(tmp_path / "tuned", tuned, planted.LLAMA)
    assert shadow.verify("trained", original, copy, moved="mlp.*").holds is True
    assert shadow.verify("quantised", original, copy).holds is False


def test_zeros_are_no_levels(tmp_path):
    """A tune that is pruned afterwards moved, and is no copy in few bits."""
    base = based(640)
    rng = torch.Generator().manual_seed(3)
    tuned = {name: one + 1e-3 * torch.randn(one.shape, generator=rng) for name, one in base.items()}
    pruned = {
        name: torch.where(one.abs() > one.abs().median(), one, 0).bfloat16()
        for name, one in tuned.items()
    }
    original = planted.write(tmp_path / "base", base, planted.LLAMA)
    copy = planted.write(tmp_path / "pruned", pruned, planted.LLAMA)
    assert shadow.verify("trained", original, copy, moved="mlp.*").holds is True
    assert shadow.verify("quantised", original, copy).holds is False
