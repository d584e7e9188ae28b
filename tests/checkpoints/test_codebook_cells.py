"""What codebooks round to a level: copies by the quantisers of the formats' own libraries lie in
their cells, and what was changed before does not.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from measuring import Piece

from shadow.checkpoints.decoders import packed_tensor
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.dtypes import E2M1, NF4
from shadow.spectra.relations.format_noise import format_noise

ROWS = 24


def made_up(seed, cols, dtype):
    """Normal or heavy-tailed weights whose columns differ in size, in the dtype of an original."""
    rng = np.random.default_rng(seed)
    draw = rng.standard_t(4, (ROWS, cols)) if seed % 2 else rng.standard_normal((ROWS, cols))
    return torch.from_numpy(draw * 0.02 * np.exp(0.3 * rng.standard_normal(cols))).to(dtype)


def packed(kind, pieces, shape, facts=(), dtype="F32"):
    infos = [TensorInfo(f"m.{name}", "F32", tuple(t.shape), "", 0, 0) for name, t in pieces.items()]
    packing = Packing(kind, infos[0], tuple(infos[1:]), facts, tuple(pieces))
    info = TensorInfo("m.weight", dtype, shape, "", 0, 0, packing=packing)
    return packed_tensor(info, lambda one: Piece(pieces[one.name.removeprefix("m.")]))


def bitsandbytes(weight, kind, block=64, nested=False):
    """By the kernel of bitsandbytes for blocks, which run on from row to row."""
    functional = pytest.importorskip("bitsandbytes.functional")
    raw, state = functional.quantize_4bit(
        weight, blocksize=block, compress_statistics=nested, quant_type=kind
    )
    said = state.as_dict(packed=True)
    roles = {"absmax": "scales", "nested_absmax": "outer", "nested_quant_map": "codes"}
    roles[f"quant_state.bitsandbytes__{kind}"] = "state"
    pieces = {"words": raw} | {role: said[name] for name, role in roles.items() if name in said}
    return packed("bitsandbytes-4bit", pieces, tuple(weight.shape), (block,), kind.upper())


def compressed_tensors():
    """The names of that library, which takes a second to import."""
    from compressed_tensors import quantization
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import helpers

    return SimpleNamespace(**vars(helpers) | vars(quantization) | {"quantize": quantize})


def nvfp4(weight, _=None):
    """As llm-compressor computes it, in the dtype of the weights."""
    library = compressed_tensors()
    args = library.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    outer = library.generate_gparam(weight.min(), weight.max())
    groups = weight.view(ROWS, -1, 16)
    inner, zeros = library.calculate_qparams(
        groups.amin(-1), groups.amax(-1), args, global_scale=outer
    )
    levels = library.quantize(weight, inner, zeros, args, global_scale=outer)
    codes = _codes(levels)
    pieces = {
        "words": codes[:, ::2] + 16 * codes[:, 1::2],
        "scales": inner.to(torch.float8_e4m3fn),
        "divisor": outer,
    }
    return packed("e2m1", pieces, tuple(weight.shape), (4, 1, 16, 0))


def _codes(levels):
    return (levels.float()[..., None] - torch.tensor(E2M1)).abs().argmin(-1).byte()


def mxfp4(weight, _=None):
    """Scales are powers of two; numbers beyond 6 of them are clipped."""
    groups = weight.float().view(ROWS, -1, 32)
    powers = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    codes = _codes((groups / torch.exp2(powers)[..., None]).view(weight.shape))
    pieces = {"words": codes[:, ::2] + 16 * codes[:, 1::2], "scales": (powers + 127).byte()}
    return packed("e2m1", pieces, tuple(weight.shape), (4, 1, 32, 0))


def fp8(weight, strategy):
    """As llm-compressor computes it for tensors and rows, and DeepSeek for blocks."""
    cols = weight.shape[1]
    shape = {"tensor": (ROWS, cols), "channel": (1, cols), "block": (16, 32)}[strategy]
    if strategy == "block":
        padded = torch.nn.functional.pad(weight.float(), (0, -cols % 32, 0, -ROWS % 16))
        most = padded.abs().view(2, 16, -1, 32).amax((1, 3))
        scales = most / 448
        each = scales.repeat_interleave(16, 0).repeat_interleave(32, 1)[:ROWS, :cols]
        raw = (weight.float() / each).to(torch.float8_e4m3fn)
    else:
        library = compressed_tensors()
        args = library.QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True)
        along = {"tensor": (0, 1), "channel": 1}[strategy]
        ends = [getattr(weight, end)(along, keepdim=True) for end in ("amin", "amax")]
        scales, zeros = library.calculate_qparams(*ends, args)
        raw = library.quantize(weight, scales, zeros, args, dtype=torch.float8_e4m3fn)
    facts = (8, *shape, 0)
    return packed("scaled", {"words": raw, "scales": scales}, (ROWS, cols), facts, "F8_E4M3")


def nf4(weight, block):
    return bitsandbytes(weight, "nf4", block)


def fp4(weight, block):
    return bitsandbytes(weight, "fp4", block)


def nested(weight, block):
    return bitsandbytes(weight, "nf4", block, nested=True)


MAKE = {
    "NF4": (nf4, 64, 256), "NF4, blocks of 128": (nf4, 128, 256), "NF4 across rows": (nf4, 64, 96),
    "NF4, nested": (nested, 64, 256), "NF4, nested, across rows": (nested, 64, 96),
    "FP4": (fp4, 64, 256), "FP4 across rows": (fp4, 64, 96),
    "NVFP4": (nvfp4, None, 256), "MXFP4": (mxfp4, None, 256),
    "FP8, tensor": (fp8, "tensor", 256), "FP8, rows": (fp8, "channel", 250),
    "FP8, blocks": (fp8, "block", 250),
}  # fmt: skip
"""By name: what makes a copy, how, and of how many columns."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKE)
def test_copies_lie_in_the_cells_of_their_format(name, dtype):
    """No entry of an original is outside; the error beside that of the cells is about 1."""
    make, how, cols = MAKE[name]
    for seed in range(4):
        weight = made_up(seed, cols, dtype)
        found = format_noise(weight, make(weight, how))
        assert found.outside == 0
        assert found.error == pytest.approx(found.made)
        assert 0.6 < found.error / found.even < 1.2


@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", MAKE)
def test_changes_before_rounding_lie_outside(name, size):
    """A change of half the noise of the format, or more."""
    make, how, cols = MAKE[name]
    weight = made_up(5, cols, torch.bfloat16)
    copy = make(weight, how)
    noise = (copy.whole() - weight.float()).square().mean().sqrt()
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    found = format_noise(weight, make((weight.float() + size * noise * change).bfloat16(), how))
    assert found.outside > 0.04 * found.entries
    assert found.error > found.made * 1.02


def test_cells_are_wider_by_what_a_rounded_scale_may_move():
    """Scales of 8 bits lie up to half the widest step of their codebook from those that were
    rounded: the cell of 0 reaches half way to the next levels at most, of the largest such scale.
    """
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = made_up(0, 256, torch.float32)
    _, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    codes, outer = state.state2.code, state.state2.absmax
    scales = codes[state.absmax.int()] * outer + state.offset
    assert len(outer) == 1
    loose = outer * codes.sort().values.diff().max() / 2
    copy = nested(weight, 64)
    low, high = copy.cells((slice(None),))
    largest = (scales + loose).repeat_interleave(64).view(weight.shape)
    zeros = copy.whole() == 0
    assert zeros.sum() > 300
    assert torch.allclose(low[zeros], largest[zeros] * NF4[6] / 2)
    assert torch.allclose(high[zeros], largest[zeros] * NF4[8] / 2)


def test_scales_that_are_off_lie_outside():
    """Blocks of NF4 whose scales are 1.5 % too large."""
    weight = made_up(0, 256, torch.bfloat16)
    copy = nf4(weight, 64)
    scale = copy._decoder.scale
    copy._decoder = replace(copy._decoder, scale=lambda *at: scale(*at) * 1.015)
    assert format_noise(weight, copy).outside > 0.005 * weight.numel()


@pytest.mark.parametrize("name", ["NF4", "NVFP4", "MXFP4"])
def test_what_lies_far_beyond_the_last_level_is_outside(name):
    """An original of ten times the size is clipped everywhere, and no copy."""
    make, how, cols = MAKE[name]
    weight = made_up(0, cols, torch.float32)
    found = format_noise(10 * weight, make(weight, how))
    assert found.is_copy(name) is False
    assert found.outside > 0.5 * found.entries


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_a_cell_has_the_numbers_that_are_nearest_to_its_level(scale):
    """Of every finite number of E4M3, whichever sign its scale has; the ends are open."""
    raw = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    raw = raw[raw.float().isfinite()][None]
    copy = packed("scaled", {"words": raw, "scales": torch.tensor([[scale]])},
                  tuple(raw.shape), (8, *raw.shape, 0), "F8_E4M3")  # fmt: skip
    low, high = (end[0].double() for end in copy.cells((slice(None),)))
    levels = copy.whole()[0].double()
    assert torch.equal(levels, raw[0].double() * scale)
    numbers = np.random.default_rng(0).uniform(-300, 300, 2000)
    numbers = torch.from_numpy(np.concatenate([numbers, numbers / 1000]))
    away = (levels - numbers[:, None]).abs()
    nearest = away == away.amin(1, keepdim=True)
    assert torch.equal((low < numbers[:, None]) & (numbers[:, None] < high), nearest)
    assert (levels[low == -np.inf].tolist(), levels[high == np.inf].tolist()) == ([-224], [224])


@pytest.mark.parametrize(("name", "beyond", "clipped", "outside"), [
    ("NF4", 0.004, 0, 0),  # its scale is the largest number, which is rounded itself
    ("NF4", 0.02, 0, 1),
    ("MXFP4", 2.9, 1, 0),  # 1.5 times the cell from 5 to 7
    ("MXFP4", 3.2, 0, 1),
])  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_how_far_beyond_its_last_level_a_format_clips(name, beyond, clipped, outside, sign):
    """In levels: NF4 hardly at all, and E2M1 beyond 6."""
    make, how, cols = MAKE[name]
    weight = torch.full((ROWS, cols), 0.5)
    last = 1.0 if name == "NF4" else 6.0
    weight[:, ::32] = sign * last
    copy = make(weight, how)
    weight[3, 64] = sign * (last + beyond)
    found = format_noise(weight, copy)
    assert abs(copy.whole()[3, 64]) == last
    assert (found.clipped, found.outside) == (clipped, outside)


@pytest.mark.parametrize(("size", "outside"), [(0.4, 0), (0.6, 16)])
def test_a_block_whose_scale_is_0_has_a_256th_of_the_largest_cell_of_its_rows(size, outside):
    """That of 4 in E2M1, from 3.5 to 5; its numbers are all 0."""
    codes = torch.full((ROWS, 32), 0x66, dtype=torch.uint8)  # twice 4
    codes[:, :8] = 0
    scales = torch.ones(ROWS, 4)
    scales[:, 0] = 0
    pieces = {"words": codes, "scales": scales, "factor": torch.ones(1)}
    copy = packed("e2m1", pieces, (ROWS, 64), (4, 1, 16, 0))
    weight = copy.whole().clone()
    weight[5, :16] = size * 1.5 / 256
    found = format_noise(weight, copy)
    assert found.outside == outside
    assert found.even == pytest.approx(
        ROWS * (48 * (0.5**3 + 1) / 4.5 + 16 * (1.5 / 256) ** 2 / 12)
    )
