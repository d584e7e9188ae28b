"""The place of a change among released families that others measured, by its norm."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from reports import columns

from shadow.comparing.published import published_place
from shadow.telling.reading import read_summary

NORMS = {"q": 0.02, "o": 0.03, "up": 0.04, "norm": 0.5}  # of the tensors of each of two layers


def tensors(*, norms: dict[str, float] = NORMS) -> pd.DataFrame:
    """tensors.parquet of two layers, with a tensor that is too small for the table."""
    rows = [
        (f"{layer}.{name}", [1024] if name == "norm" else [1024, 1024], norm)
        for layer in (0, 1)
        for name, norm in norms.items()
    ]
    recorded = [
        {
            "tensor": name, "side": side, "shape": shape, "relative_norm": norm,
            "compared": math.prod(shape), "status": "measured", "reason": None,
        }
        for side in ("base", "tuned")
        for name, shape, norm in [*rows, ("0.bias", [999], 7.0)]
    ]  # fmt: skip
    return pd.DataFrame(recorded)


def metadata(base: str = "Org/Base", tuned: str = "Org/Chat", **settings: object) -> dict:
    return {"base": {"repo": base}, "tuned": {"repo": tuned}, "settings": settings}


def place(rows: pd.DataFrame, recorded: dict):
    return published_place(columns(rows), recorded)


def test_a_place_is_a_rank_among_the_other_families():
    """By the mean over tensors of 1,000 entries or more; the pair's own family is left out."""
    found = place(tensors(), metadata())
    assert found.value == pytest.approx((0.02 + 0.03 + 0.04 + 0.5) / 4)
    assert (found.below, found.families, found.least, found.most) == (15, 19, 0.00083, 0.215325)
    for base in ("qwen/qwen2.5-7b", "Qwen/Qwen2-7B"):
        own = place(tensors(), metadata(base))
        assert (own.below, own.families) == (14, 18)


def test_a_part_and_a_copy_have_no_place():
    """A filter, tensors that could not be read, nothing that changed."""
    unread = tensors()
    unread.loc[0, ["status", "reason"]] = "skipped", "quantized"
    assert place(unread, metadata()) is None
    assert place(tensors(), metadata(chosen={"layers": [0]})) is None
    assert place(tensors(), metadata(chosen={"layers": 3})) is not None, "no audit writes that"
    assert place(tensors(norms=dict.fromkeys(NORMS, 0.0)), metadata()) is None
    assert place(tensors(norms={}), metadata()) is None


def test_an_audit_has_the_place_of_the_demo(demo_reports):
    """summary.json has the mean over tensors of 1,000 entries that NumPy finds."""
    folder = demo_reports / "base..narrow"
    summary, _ = read_summary(folder)
    rows = pd.read_parquet(folder / "tensors.parquet")
    rows = rows[(rows["side"] == "base") & (rows["shape"].map(np.prod) >= 1000)]
    assert summary.published.value == pytest.approx(statistics.fmean(rows["relative_norm"]))
    assert summary.published.families == 19
