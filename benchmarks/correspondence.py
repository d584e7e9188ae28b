"""Layers, experts and rows at other numbers than in the base: what is said of them, and found.

    python benchmarks/correspondence.py            # the final seed; writes docs/evidence.md
    python benchmarks/correspondence.py --seed 1   # another seed, printed: to develop with
    python benchmarks/correspondence.py --seed 1 --only SOLAR  # kinds with this in their name

Which part of a trained decoder (kind_models.py) is which of the base is known, since it was put
there. Every statement about it is judged, and the partner of every matrix whose cosine with its own
is still .5.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import pandas as pd
import torch
import typer
from evidence.evidence_parts import FOLDER, interval, put, table
from histories import BF16, F32
from judging import save
from kind_later import TIED, padded_with_zeros, rope_order, rows_of, without_head
from kind_models import EMBED, EXPERTS, LM, State, adamw, base, forward, layers_of, train, windows
from partners import NEAR
from sentences import CACHE
from torch.nn import functional

import shadow
from shadow.relations.matching import RowPairs, match_rows
from shadow.run import correspondence
from shadow.summary.record import Correspondence

FINAL = 20261220  # asked once, after all was developed with others
ROWS = 256
DTYPES = {"F32": F32, "BF16": BF16}
SEEN = ("rows", "rows told", "wrong rows")
UNLIKE = ("unrelated", "not_comparable")
# by a kind of parts: the part of the base that each is, -1 for a new one
Orders = Mapping[str, list[int]]
Fact = tuple[object, ...]
# the base, and its config
MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "Qwen2": ("narrow", {"model_type": "qwen2"}),
    "Phi-3": ("deep", {"model_type": "phi3"}),
    "Qwen2-MoE": ("moe", {"model_type": "qwen2_moe"}),
    "tied Llama": ("deep", {"model_type": "llama", **TIED}),
}
CHANGES = {"rope": partial(rope_order, _=None), "padded": padded_with_zeros}


def some(count: int, of: int, g: torch.Generator) -> list[int]:
    return sorted(torch.randperm(of, generator=g)[:count].tolist())


KINDS: Mapping[str, Callable[[int, torch.Generator], Orders]] = {  # of the number of layers
    "nothing moved": lambda n, g: {},
    "a layer dropped": lambda n, g: {"layers": [0, *range(2, n)]},
    "the first layer dropped": lambda n, g: {"layers": [*range(1, n)]},
    "layers exchanged": lambda n, g: {"layers": [0, 2, 1, *range(3, n)]},
    "SOLAR": lambda n, g: {"layers": [*range(n - 1), *range(1, n)]},
    "a new layer": lambda n, g: {"layers": [0, -1, *range(1, n)]},
    "attention of another layer": lambda n, g: {"attention": [0, 0, *range(2, n)]},
    "vocabulary trimmed": lambda n, g: {"rows": some(200, ROWS, g)},
    "vocabulary reordered": lambda n, g: {"rows": torch.randperm(ROWS, generator=g).tolist()},
    "tokens put in front": lambda n, g: {"rows": [-1] * 8 + [*range(ROWS)]},
    "a layer and rows dropped": lambda n, g: {"layers": [*range(1, n)], "rows": some(200, ROWS, g)},
    "RoPE's other order": lambda n, g: {"rope": []},
    "zeros padded": lambda n, g: {"padded": []},
    "experts pruned": lambda n, g: {"experts": some(3, EXPERTS, g)},
    "experts permuted": lambda n, g: {"experts": [2, 0, 3, 1]},
    "experts twice": lambda n, g: {"experts": [*range(EXPERTS), *range(EXPERTS)]},
    "a layer and experts dropped": lambda n, g: {"layers": [*range(1, n)], "experts": [1, 2, 3]},
}


def start(model: str) -> State:
    """The base's weights, without biases and a head where such a model has none."""
    name, config = MODELS[model]
    W = base(name, CACHE).full
    if name == "deep":
        W = {name: one for name, one in W.items() if "bias" not in name}
    return without_head(W) if "tie_word_embeddings" in config else W


def fused(name: str) -> str:
    return re.sub(r"\.[qkv]_proj", ".qkv_proj", re.sub(r"\.(gate|up)_proj", ".gate_up_proj", name))


def stored(W: State, model: str, dtype: torch.dtype) -> State:
    """The tensors of a checkpoint."""
    parts: dict[str, list[torch.Tensor]] = {}
    for name, one in W.items():  # which has q, k and v, gate and up in this order
        parts.setdefault(fused(name) if model == "Phi-3" else name, []).append(one)
    return {name: torch.cat(each).to(dtype) for name, each in parts.items()}


def moved(W: State, order: Orders, g: torch.Generator) -> tuple[State, dict[str, str]]:
    """The weights with parts at other numbers, and which of the base each matrix of layers is."""
    layers = order.get("layers", [*range(layers_of(W))])
    attention, experts = order.get("attention", layers), order.get("experts", [*range(EXPERTS)])
    found = {name: one for name, one in W.items() if ".layers." not in name}
    origin: dict[str, str] = {}
    firsts = [name for name in W if ".layers.0." in name and not re.search(r"experts\.[1-9]", name)]
    for at, first in product(range(len(layers)), firsts):
        source = (attention if ".self_attn." in first else layers)[at]
        here, there = (first.replace(".0.", f".{max(0, one)}.", 1) for one in (at, source))
        for new, old in enumerate(experts if ".experts." in first else [0]):
            name = here.replace("experts.0", f"experts.{new}")
            own = there.replace("experts.0", f"experts.{old}")
            one = W[own][experts] if first.endswith("mlp.gate.weight") else W[own]
            found[name] = one if source >= 0 else one.std() * torch.randn(one.shape, generator=g)
            if one.ndim == 2 and source >= 0 and not first.endswith("mlp.gate.weight"):
                origin[name] = own
    if "rows" in order:
        found = rows_of(lambda _: torch.tensor(order["rows"]), found, g)
    for key in CHANGES.keys() & order.keys():
        found = CHANGES[key](found)
    return found, origin


def trained(rate: float, steps: int, W: State, g: torch.Generator) -> State:
    """AdamW on other text than the base's; bytes beyond a vocabulary stand for others."""

    def loss(W: State, g: torch.Generator) -> torch.Tensor:
        x = windows("prose", 8, g) % len(W[EMBED])
        return functional.cross_entropy(forward(W, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return train(W, loss, adamw(rate), steps, g.initial_seed() % 1000)


def noised(W: State, g: torch.Generator) -> State:
    return {n: one + 0.01 * one.std() * torch.randn(one.shape, generator=g) for n, one in W.items()}


AFTER: Mapping[str, Callable[[State, torch.Generator], State]] = {
    "as made": lambda W, g: W,
    "1 % of noise": noised,
    "trained": partial(trained, 2e-4, 15),
    "trained far": partial(trained, 1e-2, 30),
    "trained farther": partial(trained, 1.7e-2, 40),
}


def truth(order: Orders, layers: int, experts: int) -> tuple[set[Fact], set[Fact]]:
    """What has to be said, and what may be. layers and experts: of the base."""
    own = order.get("layers", [*range(layers)])
    facts = units("layer", None, own, layers)
    facts |= units("attn", None, order.get("attention", []), 0)
    optional: set[Fact] = set()
    for at, layer in enumerate(own):
        if layer >= 0:
            facts |= units("expert", at, order.get("experts", [*range(experts)]), experts)
        optional |= {("expert", at, expert, None) for expert in range(experts) if layer < 0}
    if rows := order.get("rows"):
        count = len(rows) - rows.count(-1)
        facts.add(("rows", ROWS, count, rows.count(-1)))
        optional |= {("rows", ROWS, "at least", least) for least in range(count)}
    return facts, facts | optional


def units(kind: str, layer: int | None, order: list[int], of: int) -> set[Fact]:
    own = {(kind, layer, at, None if one < 0 else one) for at, one in enumerate(order) if at != one}
    return own | {(kind, layer, None, lost) for lost in {*range(of)} - {*order}}


def statements(found: Correspondence) -> Iterator[set[Fact]]:
    """The facts of each clause of what is said: sentences are its runs and rows in words."""
    for row in (*found.layers, *found.experts):
        for layer in row.layers or [None]:
            kind = "expert" if row.layers else "layer"
            yield from ({(kind, layer, None, lost)} for lost in row.missing)
            yield from ({(kind, layer, new, None)} for new in row.new)
            for run in row.runs:
                own = range(run.first, run.last + 1)
                yield {(kind, layer, at, at + run.base_first - run.first) for at in own}
    for matrix in found.matrices:
        parts = {module.partition(".")[0] for module in matrix.modules}
        yield {(part, None, matrix.layer, matrix.base_layer) for part in parts}
    for row in found.rows:
        counted = [row.rows, row.in_front or 0]
        if row.rows not in (row.base_rows, row.tuned_rows):
            counted = ["at least", row.rows]
        yield {("rows", row.base_rows, *counted)}


def judged(model: str, kind: str, after: str, seed: int) -> Iterator[dict[str, object]]:
    """What came of a case, for each format that both sides are stored in."""
    key = sha256(f"{seed} {model} {kind}".encode()).digest()
    g = torch.Generator().manual_seed(int.from_bytes(key[:6], "little"))
    W = start(model)
    order = KINDS[kind](layers_of(W), g)
    changed, origin = moved(W, order, g)
    changed = AFTER[after](changed, g)
    if model == "Phi-3":
        origin = {fused(name): fused(there) for name, there in origin.items()}
    must, may = truth(order, layers_of(W), EXPERTS * (model == "Qwen2-MoE"))
    for dtype, width in DTYPES.items():
        sides = {"base": stored(W, model, width), "tuned": stored(changed, model, width)}
        with tempfile.TemporaryDirectory() as folder:
            both = [str(save(Path(folder) / one, sides[one], MODELS[model][1])) for one in sides]
            with patch.object(correspondence, "match_rows", partial(remembered, pairs := [])):
                report = shadow.audit(*both, output=f"{folder}/report", level="norms", jobs=1)
            tensors, deltas, finding = report.tensors, report.deltas, report.summary.finding
            related = shadow.verify("related", *both[::-1], jobs=1).outcome
        same = tensors["tensor"][(tensors["side"] == "tuned") & (tensors["status"] == "identical")]
        partners = {name: {*own} for name, own in deltas.groupby("tensor")["base_tensor"]}
        partners |= {name: {origin.get(name)} for name in same}
        near = [n for n in origin if like(sides["base"][origin[n]], sides["tuned"][n]) >= NEAR]
        recorded = report.summary.correspondence
        partner = pairs[-1] if recorded and recorded.rows else {}
        rows = order.get("rows", [])
        near_rows = [
            (new, old) for name in {EMBED, LM} & W.keys() for new, old in enumerate(rows)
            if old >= 0 and like(sides["base"][name][old], sides["tuned"][name][new]) >= NEAR
        ]  # fmt: skip
        said = [*statements(recorded)] if recorded else []
        said += [{(one.code,)} for one in finding.sentences if one.code in UNLIKE]
        false = [facts for facts in said if not facts <= may]
        absent = must.difference(*said)
        lost = [(name, partners.get(name)) for name in near if partners.get(name) != {origin[name]}]
        if false or absent or lost or related != "holds":
            print(model, kind, after, dtype, false, absent, lost, related, file=sys.stderr)
        yield {
            "kind": kind, "model": model, "stored": dtype, "after": after, "statements": len(said),
            "false": len(false), "absent": len(absent), "matrices": len(near),
            "found": len(near) - len(lost), "related": str(related),
            "rows": len(near_rows), "rows told": sum(pair in partner.items() for pair in near_rows),
            "wrong rows": sum(rows[new] != old for new, old in partner.items()),
            "said": " ".join(sorted(str(fact) for facts in said for fact in facts)),
        }  # fmt: skip


def remembered(pairs: list[dict[int, int]], *sides: object) -> RowPairs | None:
    """Match rows as an audit does; pairs gets the rows of the base by those of the tuned side."""
    found = match_rows(*sides)
    if found is not None:
        pairs.append(dict(zip(found.rows[1].tolist(), found.rows[0].tolist(), strict=True)))
    return found


def like(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine; 0 for matrices of different shapes, which nothing compares."""
    if one.shape != other.shape:
        return 0.0
    return float(functional.cosine_similarity(one.double().flatten(), other.double().flatten(), 0))


def section(rows: pd.DataFrame) -> str:
    """The generated part of the page."""
    heads = [
        "statements",
        "false",
        "absent",
        "matrices",
        "found",
        "rows",
        "rows told",
        "wrong rows",
    ]
    lines = [
        [name, str(len(own)), *map(str, own[heads].sum())]
        for by in ("model", "stored", "after")
        for name, own in rows.groupby(by, sort=False)
    ]
    by_pair = rows.set_index(["kind", "model", "stored"])
    made, noise = (by_pair[by_pair["after"] == name]["said"] for name in [*AFTER][:2])
    total, holds = rows[heads].sum(), int((rows["related"] == "holds").sum())
    false, found = (f"{total[one]} of {total[of]}: {interval(total[one], total[of])}"
                    for one, of in (("false", "statements"), ("found", "matrices")))  # fmt: skip
    return "\n".join([
        "`python benchmarks/correspondence.py` puts parts of four trained decoders at other numbers"
        f" ({', '.join(rows['kind'].unique())}), with a seed that nothing was developed with"
        f" ({FINAL}), on 3 December 2026.",
        "",
        f"- False statements: {false}. Not said: {total['absent']}.",
        f"- Compared with their own matrix, where that has a cosine of .5 or more: {found}.",
        f"- Rows of vocabularies that are told to correspond, of those with such a cosine: "
        f"{total['rows told']} of {total['rows']}; to another row: {total['wrong rows']}."
        " No pair has a tokenizer.",
        f"- The same after 1 % of noise: what is said of {(made == noise).sum()} of {len(made)}.",
        f"- Called related: {holds} of {len(rows)} pairs.",
        "",
        table(["", "pairs", *heads], lines),
    ])  # fmt: skip


def main(
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = FINAL,
    only: Annotated[str, typer.Option(help="Kinds with this in their name.")] = "",
) -> None:
    """Plant the pairs, judge what is said of them, and write the table."""
    torch.set_num_threads(1)
    cases = [
        (model, kind, after)
        for model, kind, after in product(MODELS, KINDS, AFTER)
        if only in kind and ("experts" not in kind or model == "Qwen2-MoE")
    ]
    rows = pd.DataFrame(row for case in cases for row in judged(*case, seed))
    if seed != FINAL or only:
        print(section(rows))
        return
    put("evidence.md", "correspondence", section(rows))
    rows.to_parquet(FOLDER / "correspondence.parquet")


if __name__ == "__main__":
    typer.run(main)
