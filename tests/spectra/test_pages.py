"""Pages of other bytes in matrices whose rows and columns have scales of their own."""

import numpy as np
import pytest
import torch

import shadow
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checks.whole import RULES, values
from shadow.checks.whole.part import Findings
from shadow.run.scan import Swept
from shadow.spectra.pages import PageSample
from shadow.spectra.spectrum import Workspace
from shadow.spectra.sums import Extremes, looked_at

PAGE = 4096
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W = 0.02 * normal(512, 1024) * torch.exp(0.3 * normal(512, 1, seed=1))
W[:, 7] *= 50
W[100:110] *= 1e-3  # tokens that were never trained


def damaged(dtype: str, kind: str, at: int) -> torch.Tensor:
    """W with another page of 4 KB."""
    weight = W.to(DTYPES[dtype]).clone()
    page = weight.view(-1).view(torch.uint8)[at : at + PAGE]
    if kind == "random":
        page[:] = torch.from_numpy(np.random.default_rng(at).integers(0, 256, PAGE, np.uint8))
    elif kind == "shifted":
        page[1:] = page[:-1].clone()
    elif kind == "F32":
        page[:] = (0.02 * normal(PAGE // 4)).view(torch.uint8)
    else:
        halves = page.view(torch.int16)
        halves[1::2] ^= 1 << 14
        if dtype != "F32":
            halves[::2] ^= 1 << 14
    return weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "shifted", "F32", "top bit"])
def test_a_page_of_other_bytes_is_found_where_it_is(dtype, kind):
    """A window of 2 KB of the page is named, and none outside; F32 in F32 is no damage."""
    for at in (0, 304 * 1024 * 2 + 8, 300_008, 512 * 1024 * 2 - PAGE):
        found = looked_at(damaged(dtype, kind, at), Workspace(), dtype).damaged
        assert bool(found) == (dtype != kind), at
        assert all(at - PAGE // 2 < start < at + PAGE for start in found), at


TABLE = torch.arange(2048.0)[:, None] / 10_000 ** (torch.arange(128) / 128)
BLOCKS = (normal(8, 16) > 0).repeat_interleave(64, 0).repeat_interleave(64, 1)
HEALTHY = {
    "weights": W, "sines": torch.cat([TABLE.sin(), TABLE.cos()], 1), "pruned blocks": W * BLOCKS,
    "a mask": torch.full((1024, 1024), -torch.inf).triu(1), "pruned": W * (normal(512, 1024) > 1),
    "padding": torch.cat([W, W[:1].expand(50, -1), torch.zeros(20, 1024)]),
    "rows of all sizes": normal(2048, 512) * torch.exp(3 * normal(2048, 1, seed=1)),
    "a huge row": torch.cat([W, 50 * normal(1, 1024)]), "whole": (4 * normal(512, 1024)).round(),
    "second moments": normal(4096, 256) ** 2 * torch.exp(4 * normal(4096, 1)) * 1e-9,
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", HEALTHY)
def test_what_models_have_by_design_is_no_damage(case, dtype):
    assert looked_at(HEALTHY[case].to(DTYPES[dtype]), Workspace(), dtype).damaged == ()


@pytest.mark.parametrize(
    ("windows", "other", "levels", "found"),
    [(32, 4, 20, 4), (31, 3, 20, 0), (32, 5, 20, 0), (32, 4, 19, 0)],
)
def test_few_windows_of_many_exponents_are_damage(windows, other, levels, found):
    """Of at least 32 windows at most an eighth, with at least 20 exponents each."""
    sample = np.where(np.arange(64 * windows) % 2, 0.5, 0.25).astype(np.float32)
    sample[: 64 * other] = np.resize(4.0 ** -np.arange(20, 20 + levels), 64 * other)
    pages = PageSample("F32")
    for part in np.split(np.repeat(sample, 8), [1001, 5003]):
        pages.add(part)
    assert len(pages.damaged()) == found


def test_whole_names_the_tensor_and_the_place():
    """Rows 50 and 51, of 2 KB each, have random bytes."""
    found = shadow.verify("whole", {"h.0.up.weight": damaged("BF16", "random", 50 * 2048)})
    (row,) = (one for one in found.against if one.code == "damaged_pages")
    assert row.name == "h.0.up.weight"
    assert row.what.startswith("about 4 KB")
    assert row.what.endswith("near byte 102,400 of the tensor")


@pytest.mark.parametrize("name", ["a.weight", "a.weight_scale", "a.scales", "a.qzeros"])
def test_of_quantised_models_only_plain_tensors_are_judged(name):
    info = TensorInfo(name, "F16", (512, 64), "model.safetensors", 0, 1 << 16)
    swept = [Swept(info, Extremes(1 << 15, 0, 0, 1.0, False, 1.0, damaged=(4096,)))]
    findings = Findings(RULES)
    values.judge_values(findings, values.Values({name: info}, swept, is_quantised=True))
    assert bool(findings.rows) == (name == "a.weight")
