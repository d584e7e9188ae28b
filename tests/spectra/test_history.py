"""What stored values say of how they came about, against planted casts, means and updates."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.entries import cast
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, working_dtype

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BF16: "BF16", F16: "F16", F32: "F32"}
SHAPE = (192, 320)


def drawn(seed: int, scale: float = 0.02) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(scale * rng.standard_normal(SHAPE))


def sides_of(base: torch.Tensor, tuned: torch.Tensor) -> tuple[Sides, tuple[str, str]]:
    formats = NAMES[base.dtype], NAMES[tuned.dtype]
    return Sides(base, tuned, working_dtype(*formats), Workspace()), formats


def columns(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, float | str | None]:
    """The delta's columns of matrices.parquet."""
    sides, formats = sides_of(base, tuned)
    means = Means(Method(), Workspace())
    return dict(
        measure_pair(base, tuned, formats, summed(sides, formats), means, "key").delta.values
    )


@pytest.mark.parametrize(
    ("base", "tuned", "side"),
    [(F32, BF16, "tuned"), (BF16, F32, "base"), (F32, F16, "tuned"), (F16, BF16, "tuned")],
)
def test_a_side_that_is_the_other_in_another_format_is_a_cast(
    base: torch.dtype, tuned: torch.dtype, side: str
) -> None:
    original = drawn(0)
    finer = original.to(F32)
    sides = {
        "tuned": (finer.to(base), finer.to(base).to(tuned)),
        "base": (finer.to(base), finer.to(tuned)),
    }[side]
    assert cast(*sides_of(*sides)) == side


def test_one_entry_of_its_own_makes_a_side_no_cast() -> None:
    base = drawn(0).to(F32)
    tuned = base.to(BF16)
    tuned[100, 200] *= 1.5
    assert cast(*sides_of(base, tuned)) is None
    # a file in F32 may hold the values of BF16
    assert cast(*sides_of(base, base.to(BF16).to(F32))) == "tuned"


@pytest.mark.parametrize(("size", "of_original", "of_stored"), [
    (1e-5, "rounding_unexplained", "nothing_rounded"),
    (4e-5, "rounding_unexplained", "rounding_unexplained"),
    (2e-4, "rounding_unexplained", "rounding_unexplained"),
    (2e-3, "nothing_rounded", "nothing_rounded"),
])  # fmt: skip
def test_a_tuned_side_in_more_bits_may_hold_the_rounding_of_its_base(
    size: float, of_original: str, of_stored: str
) -> None:
    """Only a change below that rounding, or far above it, tells which base it was trained from."""
    original, d = drawn(0).to(F32), drawn(1, size)
    stored = original.to(BF16)
    for start, reason in ((original, of_original), (stored, of_stored)):
        values = columns(stored, (start.double() + d).to(F32))
        assert (values["kept"], values["kept_reason"]) == (None, reason)
        assert (values["floor_ratio"] is not None) == (size == 2e-4)


def test_a_finer_tuned_side_is_held_against_its_own_rounding() -> None:
    even, d = drawn(0), drawn(1, 2e-5)
    base = (even + 2.0**-7 * even.sign()).to(BF16)  # no entry below the numbers of F16
    tuned = (base.double() + d).to(F16)
    values = columns(base, tuned)
    ulps = torch.exp2(torch.frexp(tuned.double())[1] - 1.0 - 10)
    floor = torch.linalg.norm(tuned.double() - base.double()) / torch.linalg.norm(ulps) * 12**0.5
    assert values["floor_ratio"] == pytest.approx(float(floor), rel=0.03)
    assert values["kept"] == pytest.approx(1.0, abs=0.1)


def test_two_steps_of_the_grid_are_no_rounding() -> None:
    base = drawn(0).to(BF16)
    once = (base.double() + drawn(1, 3e-5)).to(BF16).double() - base.double()
    twice = base.double() + 2 * once
    assert columns(base, twice.to(BF16))["kept_reason"] == "rounding_unexplained"


def test_few_changed_entries_have_a_reason_of_their_own() -> None:
    base = drawn(0).to(BF16)
    tuned = base.clone()
    tuned[:5, :20] *= 1.02
    assert columns(base, tuned)["kept_reason"] == "few_changed"


@pytest.mark.parametrize(("size", "refused"), [(2e-4, False), (4e-5, True), (2e-5, True)])
def test_two_stored_stages_are_refused_where_they_matter(size: float, refused: bool) -> None:
    base = drawn(0).to(BF16)
    first, second = drawn(1, size), drawn(2, size)
    middle = (base.double() + first).to(BF16)
    values = columns(base, (middle.double() + second).to(BF16))
    if refused:
        assert values["kept_reason"] == "rounding_unexplained"
    else:
        true = float(torch.linalg.norm(first + second) / torch.linalg.norm(base.double()))
        assert values["relative_norm_unrounded"] == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
def test_means_of_stored_models_are_refused(share: float) -> None:
    base = drawn(0).to(BF16)
    one, other = ((base.double() + drawn(seed, 3e-5)).to(BF16).double() for seed in (1, 2))
    mean = (share * one + (1 - share) * other).to(BF16)
    assert columns(base, mean)["kept_reason"] == "rounding_unexplained"


def test_a_tuned_side_that_moved_less_than_the_base_was_rounded_is_no_original_of_it() -> None:
    """Norms near 1 that a training moved by a tenth of half an ulp: their cast is the base."""
    base = torch.ones((1, 4096), dtype=BF16) * 1.25
    moved = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 4096)))
    trained = (base.double() + 2.0**-12 * moved).to(F32)
    assert torch.equal(trained.to(BF16), base)
    assert cast(*sides_of(base, trained)) is None
    original = (base.double() + 2.0**-8 * 0.99 * moved).to(F32)
    assert cast(*sides_of(base, original)) == "base"


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_side_that_is_decoded_part_by_part_is_no_cast(side: str) -> None:
    """A quantised matrix is not read for it."""
    matrices = {"base": drawn(0).to(F32), "tuned": drawn(0).to(BF16)}
    sides, formats = sides_of(**matrices)
    quantised = SimpleNamespace(
        cells=None, **{key: getattr(matrices[side], key) for key in ("dtype", "shape", "ndim")}
    )
    assert cast(sides, formats) == "tuned"
    decoded = Sides(**{**matrices, side: quantised}, dtype=F32, space=Workspace())
    assert cast(decoded, formats) is None
