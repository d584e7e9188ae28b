"""Finished reports of hostile names and of numbers that are hard to write down."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from reports import delta, places, put, put_spectra, write

from shadow.reports.columns import FILES

# (family, pair): formulas, SQL, paths, partitions, YAML, Markdown, HTML, control characters
HOSTILE = (
    ("=HYPERLINK(\"http://x\",'a')", "+1..-1"),
    ('\'); DROP TABLE "matrices"; --', 'base"..x'),
    ("../../evil/pair=%2e%41 é\t", "a=b/..c\\d"),
    ("- &a [b]: {c}\n---\n::error::", "`code` | <b>$x^2$</b> @user #1 http://x"),
    ("\x1b[31m\u202e\u2028", "@SUM(1)\r\n..'"),
    ("demo", "base..narrow"),
)


def toy(folder: Path, family: str, pair: str, seed: int, *, spectra: bool = True) -> Path:
    """A finished report of hostile names and of numbers that are hard to write down."""
    random = np.random.default_rng(seed)
    rows = []
    for index, where in enumerate(places(3)):
        name = ("=1+1", "'quoted", "-x", 'a,"b"\r\nc', "\ttab", "{plain}")[index % 6]
        hard = float(random.standard_normal() * 10.0 ** int(random.integers(-300, 300)))
        numbers = {"spikes": index, "sigma_scale": hard, "cosine": 1 / 3}
        rows.append(delta(0.1 + 0.05 * index, where, tensor=f"{name}{index}", **numbers))
    rows[0] |= {"null_edge": math.nan, "alpha": math.inf, "verified": True}
    rows[1] |= {"verified": False, "sigma_scale": -0.0, "nuclear_norm": 5e-324}
    gates = [{"name": "x", "figure": None}]
    write(folder, rows, family=family, pair=pair, gates=gates)
    if spectra:
        odd = iter([[1.0, None, 0.0]])
        put_spectra(folder, lambda _: next(odd, None) or random.random(5).tolist())
    listed = {"side": "tuned", "state": "changed", "kind": "config", "bytes": 2**62}
    named = [
        {"path": name, **listed, "detail": f"=1 {family}"}
        for name in pq.read_table(folder / "matrices.parquet")["tensor"].to_pylist()[:3]
    ]
    put(folder / "files.parquet", named, FILES)
    return folder
