"""Reports that several modules draw."""

import families
import pytest
from exports import HOSTILE, toy


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return families.small(tmp_path_factory.mktemp("small") / "toy" / "base..tuned", family="toy")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A vision-language pair: frozen tower, projector without a base, a tensor not measured."""
    odd = {"tensor": "model.odd.weight", "reason": "nonfinite", "detail": "3 NaN"}
    packed = {"tensor": "model.packed", "reason": "quantized", "detail": "gptq"}
    skipped = (
        odd | {"layer": 2, "module": "attn.q"},
        packed | {"component": "vision", "layer": 30, "module": "mlp.up"},
    )
    parts = (
        families.Part(families.SMALL, 4, outside=(("embed", (96, 64)),)),
        families.Part(families.SMALL, 3, "vision", identical=True),
        families.Part({}, 0, "projector", (("projector.0", (64, 64)),), base=False),
    )
    folder = tmp_path_factory.mktemp("vision") / "vlm" / "base..tuned"
    return families.write_family(folder, parts, family="vlm", skipped=skipped)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six reports, two folders deep, of hostile families and pairs; one without spectra."""
    top = tmp_path_factory.mktemp("runs")
    for seed, (family, pair) in enumerate(HOSTILE):
        folder = top / f"f{seed // 2}" / f"p{seed}"
        toy(folder, family, pair, seed, spectra=seed != 3)
    return top


@pytest.fixture(scope="module")
def folders(runs):
    return sorted(path.parent for path in runs.rglob("matrices.parquet"))
