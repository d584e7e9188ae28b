"""Quantised matrices are decoded to the numbers that the library of their format makes of them."""

import json

import numpy as np
import pytest
import torch
from compressed_tensors import compressors
from compressed_tensors import quantization as schemes
from measuring import Piece
from quantisers import awq_words, gptq, stream
from transformers.integrations import mxfp4

from shadow.checkpoints.decoders import code_table, numbers_of, packed_tensor
from shadow.checkpoints.formats import with_matrices
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS, INTEGERS, torch_name
from shadow.errors import UndecodableError

NAME = "model.layers.0.mlp.up_proj"
GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def _seeded():
    GENERATOR.manual_seed(0)


DTYPES = {getattr(torch, torch_name(name)): name for name in (*FLOATS, *INTEGERS)}


def packed(pieces, said=None, key="quantization_config", stated=None):
    """The matrix that a checkpoint of these pieces has; stated: small pieces of another layer."""
    pieces = {NAME + "." * (piece[0] != "_") + piece: tensor for piece, tensor in pieces.items()}
    infos = {
        name: TensorInfo(name, DTYPES[t.dtype], tuple(t.shape), "s", 0, t.numel() * t.itemsize)
        for name, t in pieces.items()
    }

    def small(info):
        held = pieces[info.name] if stated is None else stated
        return bytes(held.view(torch.uint8).tolist())

    found, refused = with_matrices(infos, {key: said} if said else {}, small)
    assert not refused, refused
    (info,) = found.values()
    return packed_tensor(info, lambda one: Piece(pieces[one.name]))


def weights(rows, cols):
    return torch.randn(rows, cols, generator=GENERATOR) * 0.02


def same(matrix, truth):
    """All of it, and any part of it, has the same bits."""
    assert torch.equal(matrix.whole(), truth)
    rows, cols = truth.shape
    for part in (
        (slice(0, rows), slice(None)),
        (slice(1, rows - 1), slice(cols // 3, cols)),
        (slice(rows // 2, rows // 2 + 1), slice(0, cols // 2 + 1)),
    ):
        assert torch.equal(matrix[part], truth[part])
    every_second = matrix.seen(lambda tensor: tensor.view(rows // 2, 2, cols)[:, 1])
    assert torch.equal(every_second.whole(), truth[1::2])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("count", [105, 41])
def test_a_stream_of_bits(bits, count):
    """Number i has the bits from i times bits of a stream, of which a byte has the lowest first."""
    raw = torch.randint(0, 256, (3, -(-count * bits // 8)), generator=GENERATOR, dtype=torch.uint8)
    found = numbers_of(raw, bits, range(1 << bits), count)
    for row, line in zip(raw.tolist(), found.tolist(), strict=True):
        stream = int.from_bytes(bytes(row), "little")
        assert line == [(stream >> (i * bits)) % (1 << bits) for i in range(count)]


def test_one_word_a_row_is_bytes_whatever_its_stride():
    """A column of words, cut out of rows, counts as contiguous with the stride of the rows."""
    pieces, truth = gptq(weights(32, 8), group=8)
    assert torch.equal(packed(pieces, {"quant_method": "gptq"}).whole(), truth)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((64, 256), 64), ((10, 96), 64), ((6, 34), 128)])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_bitsandbytes_in_4_bits(kind, nested, shape, block, storage):
    """Blocks run on from row to row; scales may be quantised too; bytes may be kept as floats."""
    functional = pytest.importorskip("bitsandbytes.functional")
    quantised, state = functional.quantize_4bit(
        weights(*shape),
        blocksize=block,
        compress_statistics=nested,
        quant_type=kind,
        quant_storage=storage,
    )
    if shape[1] % block:  # the kernel for AVX-512 of bitsandbytes 0.50 takes wrong scales here
        scales = state.absmax
        if nested:
            scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
        raw = quantised.view(torch.uint8).flatten()
        levels = state.code[torch.stack([raw >> 4, raw & 15], dim=1).flatten().int()]
        truth = (levels * scales.repeat_interleave(block)[: levels.numel()]).view(shape)
    else:
        truth = functional.dequantize_4bit(quantised, state)
    pieces = {"weight": quantised}
    pieces |= {f"weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    matrix = packed(pieces)
    same(matrix, truth)
    assert len(matrix.cells((slice(None),))) == 2


def test_bitsandbytes_in_8_bits():
    """Each row has a scale."""
    functional = pytest.importorskip("bitsandbytes.functional")
    quantised, scales, _ = functional.int8_vectorwise_quant(weights(12, 40).half())
    truth = torch.ops.bitsandbytes.int8_vectorwise_dequant(quantised, scales)
    layout = torch.tensor(0, dtype=torch.uint8)
    pieces = {"weight": quantised, "SCB": scales, "weight_format": layout}
    matrix = packed(pieces)
    same(matrix, truth)
    (steps,) = matrix.cells((slice(None),))
    assert torch.allclose(truth / steps, quantised.float())
    pieces["weight_format"] += 1
    with pytest.raises(UndecodableError, match="weight_format"):
        packed(pieces)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("added", [0, 1])
def test_gptq(bits, ordered, added):
    """s[g] (q - z[g] - 1), or without the 1 in version 2, with the group g of each column: AutoGPTQ
    (qlinear_cuda.py), entry by entry."""
    rows, cols, group = 32, 96, 32
    number = np.random.default_rng(0)
    q = number.integers(0, 1 << bits, (cols, rows))
    z = number.integers(0, 1 << bits, (cols // group, rows))
    scales = torch.rand(cols // group, rows, generator=GENERATOR).half()
    g_idx = np.arange(cols) // group if ordered else number.integers(0, cols // group, cols)
    truth = torch.empty(rows, cols)
    for row in range(rows):
        for col in range(cols):
            g = g_idx[col]
            truth[row, col] = scales[g, row].float() * float(q[col, row] - (z[g, row] + added))
    pieces = {
        "qweight": stream(torch.from_numpy(q.T), bits).T.contiguous(),
        "qzeros": stream(torch.from_numpy(z), bits),
        "scales": scales,
        "g_idx": torch.from_numpy(g_idx).int(),
    }
    said = {"quant_method": "gptq", "checkpoint_format": "gptq" if added else "gptq_v2"}
    matrix = packed(pieces, said)
    same(matrix, truth)
    assert torch.equal(matrix.cells((slice(None),))[0], scales.float()[g_idx].T)
    if ordered:
        del pieces["g_idx"]
        same(packed(pieces, said), truth)
    pieces["g_idx"] = torch.full((cols,), cols // group, dtype=torch.int32)
    with pytest.raises(UndecodableError, match="groups that do not exist"):
        packed(pieces, said)


def test_awq():
    """s (q - z), eight outputs interleaved in a word: AutoAWQ, entry by entry."""
    rows, cols, group = 24, 64, 32
    number = np.random.default_rng(0)
    q, z = number.integers(0, 16, (cols, rows)), number.integers(0, 16, (cols // group, rows))
    scales = torch.rand(cols // group, rows, generator=GENERATOR).half()
    truth = torch.empty(rows, cols)
    for row in range(rows):
        for col in range(cols):
            g = col // group
            truth[row, col] = float(q[col, row] - z[g, row]) * scales[g, row].float()
    words = (awq_words(torch.from_numpy(numbers)) for numbers in (q, z))
    pieces = dict(zip(("qweight", "qzeros"), words, strict=True)) | {"scales": scales}
    matrix = packed(pieces, {"quant_method": "awq"})
    same(matrix, truth)
    (steps,) = matrix.cells((slice(None),))
    assert torch.equal(steps, scales.float().T.repeat_interleave(group, 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "cols"), [(32, 96), (None, 96), (None, 40)])
def test_compressed_tensors_packed(bits, symmetric, group, cols):
    """Whole numbers in words, with a scale for each group of a row, or for a row."""
    args = schemes.QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="group" if group else "channel",
        group_size=group,
    )
    scheme = schemes.QuantizationScheme(targets=["Linear"], weights=args)
    matrix, groups, rows = weights(24, cols), cols // group if group else 1, 24
    scales = (0.001 + 0.01 * torch.rand(rows, groups, generator=GENERATOR)).bfloat16()
    zeros = torch.zeros(rows, groups, dtype=torch.int8)
    if not symmetric:
        zeros = torch.randint(-(1 << bits - 1), 1 << bits - 1, (rows, groups)).to(torch.int8)
    state = {"weight": matrix, "weight_scale": scales.float(), "weight_zero_point": zeros}
    made = compressors.PackedQuantizationCompressor.compress(state, scheme)
    truth = compressors.PackedQuantizationCompressor.decompress(made, scheme)["weight"]
    pieces = {"weight_packed": made.pop("weight_packed"), **made}
    found = packed(pieces)
    same(found, truth)
    (steps,) = found.cells((slice(None),))
    assert torch.equal(steps, scales.float().repeat_interleave(cols // groups, 1))


def test_compressed_tensors_with_an_order_of_groups():
    """weight_g_idx has the group of each column, and none that is not there."""
    q = torch.randint(0, 256, (4, 16), dtype=torch.uint8, generator=GENERATOR)
    scales = torch.rand(4, 2, generator=GENERATOR)
    groups = torch.randint(0, 2, (16,), generator=GENERATOR)
    pieces = {
        "weight_packed": q.view(torch.int32), "weight_scale": scales,
        "weight_shape": torch.tensor([4, 16]), "weight_g_idx": groups,
    }  # fmt: skip
    same(packed(pieces), (q - 128.0) * scales[:, groups])
    with pytest.raises(UndecodableError, match="groups that do not exist"):
        packed({**pieces, "weight_g_idx": groups - 1})
    with pytest.raises(UndecodableError, match="weight_shape"):
        packed({**pieces, "weight_shape": q[0, :2].long()}, stated=pieces["weight_shape"])


@pytest.mark.parametrize(("kind", "symmetric"), [("int", True), ("int", False), ("float", True)])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_compressed_tensors_in_8_bits(kind, strategy, symmetric):
    """8-bit integers or floats, with one scale for all, or for rows, groups of them or blocks."""
    size = (256, 384) if strategy == "block" else (24, 64)
    shapes = {"tensor": (1,), "channel": (24, 1), "group": (24, 4), "block": (2, 3)}
    shape = shapes[strategy]
    blocks = {
        "group_size": 16 if strategy == "group" else None,
        "block_structure": [128, 128] if strategy == "block" else None,
    }
    more = {"num_bits": 8, "type": kind, "symmetric": symmetric, "strategy": strategy}
    args = schemes.QuantizationArgs(**more, **blocks)
    scheme = schemes.QuantizationScheme(targets=["Linear"], weights=args)
    scales = 0.001 + 0.01 * torch.rand(shape, generator=GENERATOR)
    state = {"weight": weights(*size), "weight_scale": scales}
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-9, 9, shape).to(torch.int8)
    made = compressors.NaiveQuantizationCompressor.compress(state, scheme)
    made = {"weight": made["weight"], **made}
    truth = compressors.NaiveQuantizationCompressor.decompress(dict(made), scheme)["weight"]
    matrix = packed(made, {"quant_method": "compressed-tensors"})
    same(matrix, truth)
    ends = matrix.cells((slice(None),))
    assert len(ends) == (2 if kind == "float" else 1)
    if kind == "int" and symmetric:
        assert torch.allclose(truth / ends[0], made["weight"].float())


def test_blocks_may_be_cut():
    """W = raw * scale of its block; scales of blocks of another size are refused."""
    raw = torch.randn(300, 200, generator=GENERATOR).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=GENERATOR)
    truth = torch.empty(300, 200)
    for row in range(300):
        for col in range(200):
            truth[row, col] = raw[row, col].float() * scales[row // 128, col // 128]
    with pytest.raises(AssertionError, match=r"scales have the shape \(3,\)"):
        packed({"weight": raw[:, :100].contiguous(), "weight_scale": scales[:, 0].contiguous()})
    for name in ("weight_scale", "weight_scale_inv"):
        pieces = {"weight": raw, name: scales}
        for said in ({}, {"weight_block_size": [128, 128]}):
            same(packed(pieces, {"quant_method": "fp8", **said}), truth)
        with pytest.raises(AssertionError, match="64"):
            packed(pieces, {"quant_method": "fp8", "weight_block_size": [64, 64]})


def test_the_table_of_an_8_bit_float_is_made_once():
    """Its NaN is another object each time, which a cache would not find again."""
    raw = torch.zeros(2, 2, dtype=torch.uint8).view(torch.float8_e5m2)
    sizes = set()
    for _ in range(3):
        packed({"weight": raw, "weight_scale": torch.ones(1)}, {"quant_method": "fp8"}).whole()
        sizes.add(code_table.cache_info().currsize)
    assert len(sizes) == 1


def test_mxfp4():
    """level 2^(scale - 127), 32 columns a scale, as transformers makes them, which transposes."""
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=GENERATOR)
    scales = torch.randint(60, 190, (3, 10, 2), dtype=torch.uint8, generator=GENERATOR)
    truth = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    matrix = packed({"_blocks": blocks, "_scales": scales})
    assert matrix.shape == (3, 64, 10)
    for expert in range(3):
        one = matrix.seen(lambda t, e=expert: t[e].T)
        same(one, truth[expert].T)
    assert len(matrix.cells((slice(None),))) == 2


def test_nvfp4():
    """level * scale / global scale, 16 columns a scale; a library stores the quotient's inverse."""
    args = schemes.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True
    )
    scheme = schemes.QuantizationScheme(targets=["Linear"], weights=args)
    made = {
        "weight_packed": torch.randint(0, 256, (12, 32), dtype=torch.uint8, generator=GENERATOR),
        "weight_scale": (100 * torch.rand(12, 4, generator=GENERATOR)).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.tensor([5000.0]),
    }
    truth = compressors.NVFP4PackedCompressor.decompress(dict(made), scheme)["weight"]
    matrix = packed(made)
    assert torch.equal(matrix.whole().bfloat16(), truth)
    other = dict(zip(("weight", "weight_scale", "weight_scale_2"), made.values(), strict=True))
    other["weight_scale_2"] = torch.tensor(1 / 4096)
    by_hand = packed(other).whole()
    made["weight_global_scale"] = torch.tensor([4096.0])
    same(packed(made), by_hand)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_mlx(bits, group):
    """q s + b, of a matrix and of a stack."""
    mx = pytest.importorskip("mlx.core")
    matrix = weights(3 * 8, 256).view(3, 8, 256)
    q, scales, biases = mx.quantize(mx.array(matrix.numpy()), group_size=group, bits=bits)
    truth = torch.tensor(np.array(mx.dequantize(q, scales, biases, group_size=group, bits=bits)))
    pieces = {"weight": q, "scales": scales, "biases": biases}
    pieces = {name: torch.from_numpy(np.array(piece)) for name, piece in pieces.items()}
    stack = packed(pieces, {"bits": bits, "group_size": group}, "quantization")
    assert torch.equal(stack.whole(), truth)
    same(stack.seen(lambda t: t[1]), truth[1])
    (steps,) = stack.seen(lambda t: t[1]).cells((slice(None),))
    assert torch.equal(steps, pieces["scales"][1].abs().repeat_interleave(group, 1))


def test_a_quant_state_that_is_none_is_refused():
    """What a hostile file says of its blocks is checked."""
    pieces = {
        "weight": torch.zeros(8, 1, dtype=torch.uint8),
        "weight.absmax": torch.zeros(1, dtype=torch.uint8),
        "weight.nested_absmax": torch.zeros(1),
        "weight.nested_quant_map": torch.zeros(256),
    }
    good = {"blocksize": 64, "shape": [2, 8], "nested_blocksize": 256, "nested_offset": 0.5}
    stated = torch.tensor(list(json.dumps(good).encode()), dtype=torch.uint8)
    for said in (
        b" ", b"[" * 9000, b"\xff", b"3", b"{}",
        {**good, "blocksize": 32}, {**good, "shape": [8, 2]},
        {**good, "nested_offset": "x"}, {**good, "nested_blocksize": 0},
        {**good, "nested_blocksize": True},
    ):  # fmt: skip
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        state = torch.tensor(list(raw), dtype=torch.uint8)
        state = {"weight.quant_state.bitsandbytes__nf4": state}
        with pytest.raises(UndecodableError, match=r"up_proj\.weight \(NF4\): "):
            packed({**pieces, **state}, stated=stated)
