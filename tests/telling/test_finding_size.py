"""How far and where: the size of the change, the parts that hold it, and what is frozen."""

import math
from pathlib import Path

import numpy as np
import pytest
from finding_cases import model, summary_of
from safetensors.torch import load_file

# size and place


def test_shares_of_parameters_and_the_furthest_module_are_those_of_the_weights(demo):
    """By NumPy from the demo's files: sizes and relative norms of quarters and of the head."""
    recorded = demo["base..narrow"].as_json()
    folder = Path(__file__).parents[2] / "registry" / "demo"
    base, tuned = (load_file(folder / side / "model.safetensors") for side in ("base", "narrow"))
    matrices = {name: one.double().numpy() for name, one in base.items() if one.ndim == 2}
    layer = {name: int(name.split(".")[2]) for name in matrices if ".layers." in name}
    total = sum(matrices[name].size for name in layer)
    assert len(recorded["quarters"]) == 4
    for quarter in recorded["quarters"]:
        own = [
            name
            for name, at in layer.items()
            if quarter["first_layer"] <= at <= quarter["last_layer"]
        ]
        assert quarter["parameter_share"] == pytest.approx(
            sum(matrices[name].size for name in own) / total
        )
    norms = {}
    for name, one in matrices.items():
        far = np.linalg.norm(tuned[name].double().numpy() - one) / np.linalg.norm(one)
        norms.setdefault(name.removesuffix(".weight").split(".")[-1], []).append(far)
    medians = {name: np.median(values) for name, values in norms.items()}
    assert max(medians, key=medians.get) == "lm_head"
    size = next(one for one in recorded["finding"]["sentences"] if one["code"] == "size")
    (head,) = (one for one in recorded["modules"] if one["module"] == "head")
    assert head["relative_norm"] == pytest.approx(medians["lm_head"], rel=1e-6)
    share = matrices["lm_head.weight"].size / sum(one.size for one in matrices.values())
    assert size["figures"]["modules.language.head.parameter_share"] == pytest.approx(share)


def test_the_norm_before_storage_is_that_of_all_matrices_as_one_vector(tmp_path):
    """sqrt(sum (r W)²) / sqrt(sum W²) by plain Python."""
    deltas = [
        {**one, "relative_norm_unrounded": 0.01 * (at + 1)} for at, one in enumerate(model(1))
    ]
    sizes = [1 + (at % 17) / 7 for at in range(len(deltas))]
    expected = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes))) / math.hypot(
        *sizes
    )
    figures = summary_of(tmp_path / "a", deltas).figures
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(expected)
    assert figures["unrounded_share"] == 1.0
    deltas[0] |= {"relative_norm_unrounded": None, "frobenius_norm": 0.01}
    figures = summary_of(tmp_path / "b", deltas).figures
    stored = [one["frobenius_norm"] for one in deltas]
    of_known = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes) if at))
    known = of_known / math.hypot(*stored[1:]) * math.hypot(*stored) / math.hypot(*sizes)
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(known)
    share = math.hypot(*stored[1:]) ** 2 / math.hypot(*stored) ** 2
    assert figures["unrounded_share"] == pytest.approx(share)
    most = [{**one, "relative_norm_unrounded": None} for one in deltas[:2]]
    unknown = summary_of(tmp_path / "d", [*most, *deltas[2:]]).figures
    assert unknown["relative_norm_overall_unrounded"] is None
    deltas[0]["kept_reason"] = "nothing_rounded"
    deltas[0]["relative_norm"] = 0.01
    assert summary_of(tmp_path / "c", deltas).figures[
        "relative_norm_overall_unrounded"
    ] == pytest.approx(expected)
