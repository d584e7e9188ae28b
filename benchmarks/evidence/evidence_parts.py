"""The tables of docs/evidence.md that are made from docs/lab; `make docs` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import beta

from shadow.lab.results import OUTCOME, by_base, contrast

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "lab"
PAIRS = {
    "B - C": "narrow against broad data",
    "D - A": "repetition against the control",
    "C - A": "broad data against the original mixture",
    "N - A": "new text against the original mixture",
}
TREATMENTS = {
    "adamw": "AdamW",
    "adamw/3": "AdamW, a third of the rate",
    "adamw x3": "AdamW, three times the rate",
    "sgd": "SGD, momentum 0.9",
    "muon": "Muon",
    "lora": "LoRA of rank 4",
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: a column of text, the others numbers."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def put(page: str, name: str, text: str) -> None:
    """Write a generated part of a page between its two marks."""
    path = DOCS / page
    before, rest = path.read_text(encoding="utf-8").split(f"<!-- {name} -->")
    after = rest.split(f"<!-- /{name} -->")[1]
    whole = f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}"
    path.write_text(whole, encoding="utf-8")


def bounds(wrong: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934); one-sided of none or all."""
    tail = (1 - level) / 2 if 0 < wrong < of else 1 - level
    low = 0.0 if wrong == 0 else float(beta.ppf(tail, wrong, of - wrong + 1))
    high = 1.0 if wrong == of else float(beta.ppf(1 - tail, wrong + 1, of - wrong))
    return low, high


def interval(count: int, of: int) -> str:
    """`0 to 1.2 %`."""
    if not of:
        return "none were asked"
    ends = [f"{100 * end:.{2 + (end >= 0.995) + (end >= 0.9995)}g}" for end in bounds(count, of)]
    return f"{ends[0]} to {ends[1]} %"


def published(name: str) -> pd.DataFrame:
    """A recorded table."""
    return pd.read_parquet(FOLDER / f"{name}.parquet")


def trained(runs: pd.DataFrame, treatment: str = "adamw") -> pd.DataFrame:
    """The last states of A to D from warm bases."""
    chosen = runs["kind"].eq("trained") & runs["treatment"].eq(treatment) & runs["share"].eq(1.0)
    return runs[chosen & runs["warm"].astype(bool) & runs["regime"].isin(list("ABCD"))]


def _concentrations(runs: pd.DataFrame, label: str) -> list[str]:
    """The mean concentration of A to D, and what narrow data add to that of broad data."""
    means = by_base(runs, OUTCOME).mean()
    levels = [f"{means[regime]:.3f}" for regime in "ABCD"]
    return [label, *levels, str(contrast(runs, "B", "C"))]


def lab() -> str:
    """Concentration by regime: the lab's decoders by width, and the pretrained one."""
    heads = ["decoder", "A", "B", "C", "D", "B - C"]
    widths = published("widths")
    rows = []
    for width, runs in widths.groupby("width"):
        bases = runs["base"].nunique()
        label = f"width {width}, {bases} bases" if bases > 1 else f"width {width}, 1 base"
        rows.append(_concentrations(trained(runs), label))
    return table(heads, rows)


def treatments() -> str:
    """Concentration of narrow and broad data by how they are trained."""
    runs = published("runs")
    small = runs[runs["scale"] == "small"]
    rows = []
    for name, text in TREATMENTS.items():
        own = trained(small, name)
        means = by_base(own, OUTCOME).mean()
        cells = [f"{means[regime]:.3f}" for regime in "BC"]
        rows.append([text, *cells, str(contrast(own, "B", "C"))])
    return table(["", "B", "C", "B - C"], rows)


def pretrained() -> str:
    """Differences of the continuations of the pretrained decoder, in both storages."""
    states = published("pretrained")
    states = states[(states["share"] == 1.0) & (states["treatment"] == "adamw")]
    rows = []
    for name, what in PAIRS.items():
        cells = [f"{name}: {what}"]
        for stored in ("F32", "BF16"):
            means = states[states["stored"] == stored].groupby("data")[OUTCOME].mean()
            cells.append(f"{means[name[0]] - means[name[-1]]:+.3f}")
        rows.append(cells)
    cells = ["two seeds of one mixture, at most"]
    for stored in ("F32", "BF16"):
        seeds = states[states["stored"] == stored].groupby("data")[OUTCOME]
        cells.append(f"{(seeds.max() - seeds.min()).max():.4f}")
    return table(["", "F32", "BF16"], [*rows, cells])


def margin() -> str:
    """How far two runs are apart where their data are the same, and where they are not."""
    lab_pairs, real = published("comparisons"), published("pretrained-comparisons")
    real = real[real["stored"] == "F32"]
    real = real.assign(
        base="pretrained", **{f"regime_{end}": real[end].str[0] for end in ("first", "second")}
    )
    rows = []
    for where, pairs in (("lab", lab_pairs), ("pretrained", real)):
        both = pairs["regime_first"] + pairs["regime_second"]
        kinds = both.map(lambda two: "".join(sorted(two)))
        cold = pairs["base"].str.contains("-cold-")
        same = kinds.str[0] == kinds.str[1]
        chosen = {
            "two seeds of one mixture": same,
            "A and D: without repetition and with it": kinds == "AD",
            "B and C: narrow and broad data": (kinds == "BC") & ~cold,
            "B and C, new to the base": (kinds == "BC") & cold,
        }
        for what, mask in chosen.items():
            if mask.any():
                rows.append([f"{where}: {what}", *_apart(pairs[mask])])
    return table(["", "pairs", "difference", "more or less concentrated"], rows)


def _apart(pairs: pd.DataFrame) -> list[str]:
    sizes = pairs["difference"].abs()
    called = pairs["verdict"].isin(["more concentrated", "less concentrated"]).sum()
    return [str(len(pairs)), f"{sizes.min():.3f} to {sizes.max():.3f}", str(called)]


PARTS: Mapping[str, Callable[[], str]] = {
    each.__name__: each for each in (lab, treatments, pretrained, margin)
}
