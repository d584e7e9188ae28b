"""Gram matrices by torch or by a device that is wrong: products in float32, and the self-test."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from devices import WRONG, FakeDevice, in_a_child
from measuring import measure

from shadow.spectra import device as product_module
from shadow.spectra import self_test, spectrum
from shadow.spectra.delta import Method
from shadow.spectra.device import (
    DEPTH,
    SAME_GRAM,
    Offload,
    Offloaded,
    TorchDevice,
    device_memory,
    full_products,
)
from shadow.spectra.spectrum import BLOCK, UNIT, Workspace, scaled_blocks

SET = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "of products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "of everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "both": lambda: (SET["high"](), setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")),
}


def precisions():
    """Every setting of float32 that can be read, or that it cannot."""
    matmul = torch.backends.cuda.matmul
    found = {}
    for name, read in {
        "older": torch.get_float32_matmul_precision,
        "allow_tf32": lambda: matmul.allow_tf32,
        "products": lambda: matmul.fp32_precision,
        "products of the CPU": lambda: torch.backends.mkldnn.matmul.fp32_precision,
        "everything": lambda: torch.backends.fp32_precision,
    }.items():
        try:
            found[name] = read()
        except (RuntimeError, AttributeError) as error:
            found[name] = type(error).__name__
    return found


@pytest.mark.parametrize("setting", SET)
@pytest.mark.filterwarnings("ignore")
def test_products_are_in_float32_whatever_the_process_had_set_and_as_before_afterwards(setting):
    """Also nested, after a fault, and where torch's older and newer settings disagree."""
    if "of" in setting.split() and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the older setting only")

    def check():
        SET[setting]()
        before = precisions()
        with contextlib.suppress(KeyError), full_products():
            with full_products():
                pass  # the inner one does not end the outer one
            assert precisions()["older"] == "highest"
            assert precisions()["allow_tf32"] is False
            assert precisions()["products"] in ("ieee", "AttributeError")
            raise KeyError
        assert precisions() == before

    in_a_child(check)


# Products


def summed_one_by_one(depth):
    """A device that adds products of `depth` lines one after another: the worst order."""

    class OneByOne(FakeDevice):
        def gram(self, matrix_blocks, side, wide):
            total = np.zeros((side, side), np.float32)
            for block in matrix_blocks:
                x = block.numpy() if wide else block.numpy().T
                for start in range(0, x.shape[1], depth):
                    part = np.zeros_like(total)
                    for line in x[:, start : start + depth].T:
                        part += np.multiply.outer(line, line)
                    total += part
            return torch.from_numpy(total)

    return OneByOne()


class WithTF32(FakeDevice):
    """Operands are rounded to 11 bits, as tensor cores do."""

    def gram(self, matrix_blocks, side, wide):
        def rounded(block):
            bits = (block.numpy().view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
            return torch.from_numpy(bits.view(np.float32))

        return super().gram((rounded(block) for block in matrix_blocks), side, wide)


@pytest.mark.slow
def test_the_self_test_passes_what_is_right_and_names_what_is_not():
    """The CPU, torch and sums of DEPTH lines pass in any order; TF32 and longer sums do not."""
    assert self_test.fault_of(FakeDevice()) is None
    assert self_test.fault_of(TorchDevice("cpu")) is None
    assert self_test.fault_of(WithTF32()).startswith(
        "noise, 320 x 1100: its Gram matrix is off by 9e-06"
    )
    for fault in WRONG:
        assert "its Gram matrix is off by" in self_test.fault_of(FakeDevice(fault)), fault


@pytest.mark.slow
def test_sums_of_depth_lines_in_any_order_keep_the_accuracy_and_longer_ones_do_not():
    """One by one, 256 lines are as good as the CPU's library; those of a whole block are not."""
    assert self_test.fault_of(summed_one_by_one(DEPTH)) is None
    assert "times the rounding of float32" in self_test.fault_of(summed_one_by_one(BLOCK))


@pytest.mark.parametrize("kind", self_test.SPECTRA)
@pytest.mark.parametrize("shape", [(300, 1200), (1200, 300)])
def test_the_check_believes_what_is_right_with_a_margin_and_refuses_tf32(kind, shape):
    """A right Gram is within a third of the bound, TF32 four times above it."""
    matrix = self_test.matrix_of(kind, *shape)
    wide = shape[0] < shape[1]
    energy = float(matrix.double().square().sum())
    for device, bounds in (
        (TorchDevice("cpu"), (0, SAME_GRAM / 3)),
        (WithTF32(), (4 * SAME_GRAM, 1)),
    ):
        probe = product_module.Probe(300, wide)
        found = device.gram(
            probe.seen(scaled_blocks(matrix, 1.0, torch.float32, Workspace())), 300, wide
        )
        assert bounds[0] <= probe.residual(found) / energy < bounds[1]


@pytest.mark.parametrize(
    "shape", [(300, 700), (700, 300), (300, 300), (1, 9), (9, 1), (4, 100, 90), (5, 8, 300)]
)
@pytest.mark.parametrize("block", [64, 5_000, BLOCK])
def test_torch_multiplies_any_shape_in_parts_that_fit_its_buffers(shape, block, monkeypatch):
    """Blocks of any size, also of a grouped view, pass in parts of at most a block."""
    monkeypatch.setattr(spectrum, "BLOCK", block)
    monkeypatch.setattr(product_module, "BLOCK", block)
    sizes = []
    copied = product_module.Way.copied
    monkeypatch.setattr(
        product_module.Way,
        "copied",
        lambda way, part: (sizes.append(part.numel()), copied(way, part))[1],
    )
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    flat = matrix.reshape(-1, shape[-1]).double()
    side, wide = min(flat.shape), flat.shape[0] <= flat.shape[1]
    found = TorchDevice("cpu").gram(
        scaled_blocks(matrix, 0.5, torch.float32, Workspace()), side, wide
    )
    expected = (flat @ flat.T if wide else flat.T @ flat) / 4
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=float(SAME_GRAM * expected.trace())
    )
    assert max(sizes) <= max(block, side)


@pytest.mark.slow
def test_a_pair_by_torch_is_that_of_the_cpu_to_the_rounding_of_a_gram(tmp_path):
    """Columns within 1e-5, subspaces and nulls too; sigma² within four roundings of the Gram."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(400, 500, generator=generator).bfloat16()
    tuned = (base.float() + 0.1 * torch.randn(400, 500, generator=generator)).bfloat16()
    said = []
    offloaded = Offloaded(Offload(TorchDevice("cpu"), said.append), "one")
    by_device = measure(base, tuned, method=Method(nulls=1), grams=offloaded)
    by_cpu = measure(base, tuned, method=Method(nulls=1))
    assert (offloaded.made, said) == ({"cpu": 4}, []), (
        "torch calls the device cpu: three sides and a draw"
    )
    for one, other in zip(by_device, by_cpu, strict=True):
        assert one.precision == other.precision == "default"
        energy = float((other.sigma**2).sum())
        np.testing.assert_allclose(
            one.sigma**2, other.sigma**2, rtol=0, atol=4 * UNIT["default"] * energy / np.sqrt(400)
        )
        for name, value in other.values.items():
            if isinstance(value, float) and name not in (
                "condition_number",
                "effective_rank_shift",
            ):
                assert one.values[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def test_workers_share_a_device(monkeypatch):
    """Gram matrices that four threads make at a time are those of one, to the last bit."""
    device = TorchDevice("cpu")
    matrices = [
        torch.randn(300, 900, generator=torch.Generator().manual_seed(seed)) for seed in range(8)
    ]

    def made(matrix):
        return device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), 300, True)

    alone = [made(matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, alone, pool.map(made, matrices)))


def test_what_reading_raises_is_not_the_devices_fault():
    """The CPU raises a fault of the blocks too; what is no RuntimeError is not tried again."""
    offloaded = Offloaded(Offload(FakeDevice(), lambda line: None), "one")

    def read(error, dtype):
        raise error
        yield

    for error in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(5, "Input/output error"),
    ):
        with pytest.raises(type(error), match=r"allocate|output"):
            offloaded.solved(
                partial(read, error), (300, 400), 1.0, torch.float32, lambda lower: None
            )


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_matrix_of_zeros_and_a_wrong_norm(norm):
    """Zeros have a Gram matrix of zeros; a trace that is not the entries' energy is a mismatch."""
    said = []
    offloaded = Offloaded(Offload(FakeDevice(), said.append), "one")
    read = partial(scaled_blocks, torch.zeros(300, 400), 1.0, space=Workspace())
    (values, _), moved = offloaded.solved(
        lambda dtype: read(dtype=dtype),
        (300, 400),
        norm,
        torch.float32,
        lambda lower: (spectrum.eigenvalues(lower.double()), None),
    )
    assert not values.any()
    assert moved == (norm > 0)
    assert offloaded.made == ({"cpu: mismatch": 1} if norm else {"fake": 1})


# The child process of the self-test


@pytest.mark.slow
def test_the_self_test_runs_in_a_child_and_finds_the_cpu_right():
    """The whole way: a fresh interpreter, every spectrum of both sides, and no answer is good."""
    assert TorchDevice("cpu").self_test() is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.abort()", "it died (-6)"),
        (
            "raise RuntimeError('no kernel image is available')",
            "RuntimeError: no kernel image is available",
        ),
        ("print('noise: wrong')", "noise: wrong"),
        ("import sys; sys.exit(3)", "it died (3)"),
        ("import time; time.sleep(60)", "it did not end within 1 seconds"),
    ],
)
def test_a_child_that_crashes_hangs_or_raises_is_a_fault(code, told, monkeypatch):
    """Whatever a driver does to the child, the audit goes on on the CPU."""
    monkeypatch.setattr(product_module, "SECONDS", 1 if "sleep" in code else 60)
    assert product_module.tested_in_child([sys.executable, "-c", code]) == told


def test_a_child_that_cannot_be_started_is_a_fault():
    assert (
        product_module.tested_in_child(["/nonexistent/python"])
        == "it could not be started: No such file or directory"
    )


# With a card: `pytest -m cuda`


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
class TestCard:
    def test_it_passes_the_self_test_in_a_child(self):
        """Noise, rank 8, clustered and decaying spectra, two sides."""
        assert TorchDevice("cuda:0").self_test() is None

    @pytest.mark.parametrize("shape", [(300, 700), (5000, 896), (896, 4864), (8, 600, 900)])
    @pytest.mark.parametrize("setting", ["highest", "high"])
    def test_its_gram_matrices_are_those_of_float64_to_the_rounding_of_float32(
        self, shape, setting
    ):
        """Whatever the process has set, within `full_products`; twice the same to the last bit."""
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        flat = matrix.reshape(-1, shape[-1]).double()
        side, wide = min(flat.shape), flat.shape[0] <= flat.shape[1]
        expected = flat @ flat.T if wide else flat.T @ flat
        device = TorchDevice("cuda:0")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            with full_products():
                found = [
                    device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), side, wide)
                    for _ in range(2)
                ]
        finally:
            torch.set_float32_matmul_precision(before)
        assert torch.equal(*found)
        assert torch.linalg.norm(found[0].double() - expected) <= SAME_GRAM * expected.trace()

    def test_tf32_is_refused(self):
        """With TF32 on, what it makes of noise in float32 is not believed."""
        matrix = torch.randn(896, 4864, generator=torch.Generator().manual_seed(5))
        said = []
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            offloaded = Offloaded(Offload(TorchDevice("cuda:0"), said.append), "noise")
            read = partial(scaled_blocks, matrix, 1.0, space=Workspace())
            norm = float(torch.linalg.norm(matrix.double()))
            offloaded.solved(
                lambda dtype: read(dtype=dtype), (896, 4864), norm, torch.float32,
                lambda lower: (spectrum.eigenvalues(lower.double()), None),
            )  # fmt: skip
        finally:
            torch.set_float32_matmul_precision(before)
        assert offloaded.made == {"cpu: mismatch": 1}, said

    def test_its_memory_is_what_the_plan_says(self):
        """The most that torch took for a Gram of one worker is below what is planned for it."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        device = TorchDevice("cuda:0")
        matrix = torch.randn(2048, 8192, generator=torch.Generator().manual_seed(5))
        with full_products():
            device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), 2048, True)
        assert torch.cuda.max_memory_allocated() <= device_memory(2048, 1)
