"""A matrix pair measured as an audit does it."""

from __future__ import annotations

from shadow.spectra.delta import Means, Method, extent, measure_pair, working_dtype
from shadow.spectra.spectrum import Sides, Workspace

BF16 = ("BF16", "BF16")


def measure(*pair, **how):
    """The measurements of base, tuned and delta: `measure_all` without the sketch."""
    return measure_all(*pair, **how)[:3]


def measure_all(base, tuned, dtypes=BF16, method=None, key="k", direction=None, **means):
    """`measure_pair` with a workspace of its own; means: `remember` or `grams`."""
    space = Workspace()
    size = extent(Sides(base, tuned, working_dtype(*dtypes), space))
    setting = Means(method or Method(), space, **means)
    return measure_pair(base, tuned, dtypes, size, setting, key, direction)
