"""Two deltas of one base beside chance: NumPy's own answer, planted overlaps, what is missing."""

import json
import shutil

import numpy as np
import planted
import pytest
import torch
from command import run_shadow as shadow
from safetensors.torch import save_file

import shadow as api
from shadow.comparing.differences import DeltaDirections
from shadow.lists.joint import directions
from shadow.spectra import subspace
from shadow.spectra.spectrum import Workspace
from shadow.spectra.subspace import JointValues, sibling_values


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def overlaps(first: np.ndarray, second: np.ndarray) -> list[tuple[float, float]]:
    """(mean squared cosine, the same by chance) of outputs and of inputs, from NumPy's SVD."""
    k, found = min(16, *first.shape), []
    for one, other in ((first, second), (first.T, second.T)):
        u, v = (np.linalg.svd(side)[0][:, :k] for side in (one, other))
        chance = ((u**2).sum(1) * (v**2).sum(1)).sum() / k
        found.append((((u.T @ v) ** 2).sum() / k, chance))
    return found


def three(shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16):
    """A base and two models tuned from it whose updates share a direction."""
    rng = torch.Generator().manual_seed(3)
    base, one, two = (torch.randn(shape, generator=rng) for _ in range(3))
    shared = 3 * torch.outer(
        torch.randn(shape[0], generator=rng), torch.randn(shape[1], generator=rng)
    )
    base = (0.02 * base).to(dtype)
    return base, *((base.float() + 1e-3 * (step + shared)).to(dtype) for step in (one, two))


@pytest.mark.parametrize("shape", [(64, 96), (300, 40), (9, 12)])
@pytest.mark.parametrize("block", [1 << 19, 130])
def test_two_deltas_of_one_base_are_compared_as_numpy_does_it(monkeypatch, shape, block):
    """Inner product, and the overlap of the leading 16 directions with its value by chance."""
    monkeypatch.setattr(subspace, "SMALL_BLOCK", block)
    base, one, two = three(shape)
    found = sibling_values(((base, one), (base, two)), ("BF16",) * 3, Workspace())
    b, o, t = (side.double().numpy() for side in (base, one, two))
    assert found.inner == pytest.approx(((o - b) * (t - b)).sum())
    assert found.spread == pytest.approx((((o - b) * (t - b)) ** 2).sum())
    (left, chance_left), (right, chance_right) = overlaps(o - b, t - b)
    assert found.directions == min(16, *shape)
    assert found.overlap == pytest.approx((left + right) / 2, rel=1e-5)
    assert found.chance_overlap == pytest.approx((chance_left + chance_right) / 2, rel=1e-5)


def test_the_same_change_twice_overlaps_wholly_and_none_not_at_all():
    base, one, _ = three((48, 64))
    same = sibling_values(((base, one), (base, one)), ("BF16",) * 3, Workspace())
    assert same.inner == pytest.approx(same.first) == pytest.approx(same.second)
    assert same.overlap == pytest.approx(1)
    none = sibling_values(((base, base), (base, one)), ("BF16",) * 3, Workspace())
    assert (none.inner, none.directions) == (0.0, 0)


@pytest.mark.parametrize("master", [True, False])
def test_rounding_of_the_base_is_shared_where_both_started_from_more_bits(master):
    """Unrelated updates of 0.2 % of the weights in BF16: a cosine if both trainings started from
    the float64 base, none if they started from the stored one; neither is beyond chance.
    """
    rng = np.random.default_rng(1)
    exact = 0.02 * rng.normal(size=(400, 600))
    base = torch.from_numpy(exact).bfloat16()
    start = exact if master else base.double().numpy()
    one, two = (
        torch.from_numpy(start + 0.002 * 0.02 * rng.normal(size=exact.shape)).bfloat16()
        for _ in range(2)
    )
    found = sibling_values(((base, one), (base, two)), ("BF16",) * 3, Workspace())
    recorded = directions([found], 0)
    assert recorded.chance_cosine_master == pytest.approx(0.293)
    assert recorded.beyond_chance == 0
    assert (recorded.cosine > 5 * recorded.chance_cosine) == master


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Reports of two models tuned from one base, whose updates have half their energy in common in
    the attention and nothing elsewhere; of a stage after the first; and of an adapter.
    """
    top = tmp_path_factory.mktemp("siblings")
    base = planted.stored({k: 0.02 * v for k, v in planted.drawn(0).items()}, torch.bfloat16)
    common, alone = planted.of_rank(4, 1), (planted.drawn(2), planted.drawn(3))
    sides = {"base": base}
    for name, own in zip(("one", "two"), alone, strict=True):
        update = {
            key: own[key] / own[key].norm()
            + ("self_attn" in key) * common[key] / common[key].norm()
            for key in base
        }
        sides[name] = planted.stored(planted.added(base, update, 0.02), torch.bfloat16)
    sides["after"] = planted.stored(planted.added(sides["one"], alone[1], 0.01), torch.bfloat16)
    for name, weights in sides.items():
        planted.save(top / name, weights, torch.bfloat16)
    adapter, rng = top / "adapter", torch.Generator().manual_seed(5)
    adapter.mkdir()
    factors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{which}.weight": torch.randn(
            (2, planted.CHAIN_WIDTH)[:: 1 if which == "A" else -1], generator=rng
        )
        for layer in range(planted.CHAIN_LAYERS)
        for which in "AB"
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for start, end in (("base", "one"), ("base", "two"), ("one", "after"), ("base", "adapter")):
        name = ("--name", f"toy:{start}..{end}")
        shadow("audit", top / start, top / end, *name, "-o", "reports", cwd=top).assert_done()
    return top, sides, factors


def compared(top, first, second, *options):
    reports = (f"reports/toy/{name}" for name in (first, second))
    done = shadow("compare", *reports, *options, "--json", cwd=top)
    (contrast,) = json.loads(done.assert_done())["contrasts"]
    return contrast


def test_planted_deltas_are_compared(audited):
    """Cosine over all entries, and mean overlap of the matrices, as NumPy has them."""
    top, sides, _ = audited
    found = compared(top, "base..one", "base..two", "--joint")["joint"]
    deltas = [
        {key: (sides[name][key] - sides["base"][key]).numpy() for key in sides["base"]}
        for name in ("one", "two")
    ]
    whole = [np.concatenate([delta[key].ravel() for key in delta]) for delta in deltas]
    assert found["cosine"] == pytest.approx(cosine(*whole), abs=1e-9)
    assert (found["matrices"], found["left_out"], found["directions"]) == (17, 0, 16)
    pairs = [(deltas[0][key], deltas[1][key]) for key in deltas[0]]
    both = [overlaps(*pair) for pair in pairs]
    means = [np.mean([[side[which] for side in sides] for sides in both]) for which in (0, 1)]
    assert found["overlap"] == pytest.approx(means[0], rel=1e-4)
    assert found["chance_overlap"] == pytest.approx(means[1], rel=1e-4)
    assert found["cosine"] > 5 * found["chance_cosine"]
    reports = (top / "reports/toy/base..one", top / "reports/toy/base..two")
    (contrast,) = api.compare(*reports, joint=True).as_json()["contrasts"]
    assert contrast["joint"] == found


def test_an_adapter_points_somewhere_too(audited):
    """The cosine with a full-rank update of the query projections, from the product of factors."""
    top, sides, factors = audited
    found = compared(top, "base..adapter", "base..one", "--joint")["joint"]
    products, others = [], []
    for layer in range(planted.CHAIN_LAYERS):
        name = f"model.layers.{layer}.self_attn.q_proj"
        a, b = (factors[f"base_model.model.{name}.lora_{which}.weight"].double() for which in "AB")
        products.append(2 * (b @ a).numpy())
        others.append((sides["one"][f"{name}.weight"] - sides["base"][f"{name}.weight"]).numpy())
    expected = cosine(np.stack(products), np.stack(others))
    assert found["cosine"] == pytest.approx(expected, abs=1e-6)
    assert (found["matrices"], found["left_out"]) == (4, 13)
    assert found["directions"] == 2


def test_what_is_missing_has_its_line(audited, tmp_path):
    """Not asked, another kind of pair, or checkpoints that are gone: no figure, and why not."""
    top, *_ = audited
    plain = compared(top, "base..one", "base..two")
    assert (plain["joint"], plain["no_joint"]) == (None, None)
    after = compared(top, "base..one", "one..after", "--joint")
    assert (after["joint"], bool(after["no_joint"])) == (None, True)
    shutil.copytree(top / "reports", tmp_path / "reports")
    aside = top.parent / "aside"
    (top / "two").rename(aside)
    try:
        gone = compared(tmp_path, "base..one", "base..two", "--joint")
    finally:
        aside.rename(top / "two")
    assert gone["joint"] is None
    assert "two" in gone["no_joint"]
    shown = [
        shadow("compare", *(f"reports/toy/base..{end}" for end in ("one", "two")), *more, cwd=top)
        for more in ((), ("--joint",))
    ]
    assert len({done.assert_done() for done in shown}) == 2


def test_unrelated_deltas_are_not_called_related(tmp_path):
    """Of twenty pairs of updates of 10,000 entries (sd of cosines 0.01) none is beyond chance."""
    rng, cosines = np.random.default_rng(8), []
    for _ in range(20):
        base = torch.zeros(100, 100, dtype=torch.float64)
        one, two = (torch.from_numpy(rng.normal(size=(100, 100))) for _ in range(2))
        values = sibling_values(((base, one), (base, two)), ("F64",) * 3, Workspace())
        found = directions([values], 0)
        assert found.beyond_chance == 0
        assert found.chance_cosine == pytest.approx(0.01, rel=0.05)
        cosines.append(found.cosine)
    assert np.std(cosines) == pytest.approx(0.01, rel=0.5)


def test_a_cosine_is_beyond_chance_from_four_deviations_on():
    """On top of what a shared rounding may add, if that is known; either way round."""
    for cosine, master, beyond in (
        (0.0401, None, 1), (0.04, None, 0), (0.0401, 0.2, 0), (0.2401, 0.2, 1), (0.2399, 0.2, 0),
        (-0.0401, 0.2, -1), (-0.04, None, 0), (None, None, 0),
    ):  # fmt: skip
        known = DeltaDirections(1, 0, cosine, 0.01, master, 0, None, None)
        assert known.beyond_chance == beyond, (cosine, master)


def test_a_matrix_that_either_model_left_alone_is_left_out():
    """So is one without figures; sums are those of the others."""
    still = JointValues(0.0, 0.0, 4.0, 0.0, 0.0), JointValues(0.0, 9.0, 0.0, 0.0, 0.0)
    found = directions([None, *still, JointValues(3.0, 4.0, 9.0, 0.36, 0.0)], 2)
    assert (found.matrices, found.left_out) == (1, 5)
    assert (found.cosine, found.chance_cosine) == (pytest.approx(0.5), pytest.approx(0.1))
