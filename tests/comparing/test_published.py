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
    for sides in ({"base": "qwen/qwen2.5-7b"}, {"tuned": "Qwen/Qwen2-7B"}):
        own = place(tensors(), metadata(**sides))
        assert (own.below, own.families) == (14, 18)


@pytest.mark.parametrize(("change", "share"), [
    ({}, 1.18 / 8), ({"status": "identical", "relative_norm": math.nan}, 1.16 / 8),
    ({"status": "skipped", "reason": "not_a_matrix"}, 1.18 / 8),
    ({"reason": "only_in_tuned", "relative_norm": math.nan}, 1.16 / 7),
    ({"compared": 1024 * 1024 - 1}, 1.16 / 7),
    ({"shape": [1000], "compared": 1000}, 1.18 / 8), ({"shape": [999], "compared": 999}, 1.16 / 7),
])  # fmt: skip
def test_which_tensors_a_place_is_of(change, share):
    """Those of the base that are whole, have 1,000 entries and a norm; an identical one has 0."""
    rows = tensors()
    for column, value in change.items():
        rows.at[0, column] = value
    assert place(rows, metadata()).value == pytest.approx(share)


def test_a_part_and_a_copy_have_no_place():
    """A filter, tensors that could not be read, nothing that changed."""
    unread = tensors()
    unread.loc[0, ["status", "reason"]] = "skipped", "quantized"
    assert place(unread, metadata()) is None
    assert place(tensors(), metadata(chosen={"layers": [0]})) is None
    assert place(tensors(), metadata(chosen={"layers": 3})) is not None, "no audit writes that"
    assert place(tensors(norms=dict.fromkeys(NORMS, 0.0)), metadata()) is None
    assert place(tensors(norms={}), metadata()) is None
    assert place(tensors(), metadata() | {"correspondence": {"layers": []}}) is None


def test_an_audit_has_the_place_of_the_demo(demo_reports):
    """summary.json has the mean over tensors of 1,000 entries that NumPy finds."""
    folder = demo_reports / "base..narrow"
    summary, _ = read_summary(folder)
    rows = pd.read_parquet(folder / "tensors.parquet")
    rows = rows[(rows["side"] == "base") & (rows["shape"].map(np.prod) >= 1000)]
    assert summary.published.value == pytest.approx(statistics.fmean(rows["relative_norm"]))
    assert summary.published.families == 19
