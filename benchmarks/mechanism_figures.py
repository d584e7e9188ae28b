"""The figures of the states that benchmarks/mechanisms.py keeps, of every matrix, each with what
chance gives beside it.

    python benchmarks/mechanism_figures.py OUT

A state has its figures in OUT/figures, and its weights are not read again. They go to the tables in
docs/lab, which keep the runs that OUT lacks.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mechanisms import KEPT_EVERY, WARM_UP
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import shadow
from shadow.lab.results import write
from shadow.spectra import rounding
from shadow.spectra.spectrum import Sides, Workspace

Tensor = torch.Tensor
PUBLISHED = Path(__file__).parents[1] / "docs" / "lab"
LOW = 0.3  # share of the entries in either mask: as in arXiv 2511.08567
PRINCIPAL = 0.1  # of the directions, whose sum the principal mask is made of
FINEST = 0.05  # share of the entries, at least, on the finest grid
SPECTRA = 5  # every so many layers, effective ranks and intruders are measured
INTRUDERS, SIMILAR = 10, 0.6  # leading vectors; the cosine below which one has none like it
SAMPLED = 16  # every so many rows, changes over steps are followed
AUDITED = [0, 7, 14, 21, 29]  # layers
MASKED = 0.3  # the excess from which the finding speaks of a mask
LINEAR = 0.7  # R² from which an entry moves in a line
MEDIANS = ("decay_cosine",)
NOISY = 40_000  # entries that AdamW moves by noise
Row = dict[str, Any]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    base = {
        name: weight.bfloat16().float()
        for name, weight in load_file(out / "base" / "model.safetensors").items()
        if ".layers." in name and weight.ndim == 2
    }
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for run in sorted((out / "runs").iterdir()):
        steps = sorted(run.glob("step-*.safetensors"), key=_step)
        last = steps[-1:] if (run / "done.json").exists() else []
        for state in (*sorted(run.glob("norm-*.safetensors")), *last):
            file = folder / f"{run.name}-{state.stem}.parquet"
            if file.exists():
                continue
            rows = []
            with safe_open(state, "pt") as stored:
                for name, before in base.items():
                    of = {"run": run.name, "state": state.stem, "matrix": name}
                    rows += [of | row for row in matrix_rows(name, before, stored.get_tensor(name))]
            pd.DataFrame(rows).to_parquet(file)
            print(file.name, flush=True)
        file = folder / f"{run.name}.lines.parquet"
        if last and not file.exists():
            rows = []
            with_steps = [safe_open(one, "pt") for one in steps]
            for name, before in base.items():
                taken = [one.get_tensor(name)[::SAMPLED] for one in with_steps]
                rows += [
                    {"run": run.name, "matrix": name, **row}
                    for row in line_rows(before[::SAMPLED], taken)
                ]
            pd.DataFrame(rows).to_parquet(file)
    audits(out)
    publish(out, PUBLISHED)


def audits(out: Path) -> None:
    """What `shadow audit` says of the BF16 copy of each state, of layers in AUDITED: of masks, and
    medians of MEDIANS.
    """
    file = out / "figures" / "audited.json"
    told: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        base = _copy(out / "base" / "model.safetensors", top / "base", out)
        for state in sorted((out / "runs").glob("*/*.safetensors")):
            if state.stem.startswith("step-") and state != max(
                state.parent.glob("step-*"), key=_step
            ):
                continue
            title = f"{state.parent.name}, {state.stem}"
            if title in told:
                continue
            report = shadow.audit(
                str(base),
                str(_copy(state, top / "tuned", out)),
                output=top / "reports",
                layers=AUDITED,
                subjects="delta",
                subspaces=False,
                precision="sketch",
                overwrite=True,
            )
            found = report.deltas["zero_share_excess"].dropna()
            told[title] = {
                "matrices": len(found),
                "above": int((found >= MASKED).sum()),
                "most": round(float(found.max()), 4),
                "masked": "masked" in {one.code for one in report.summary.finding.sentences},
                "history": sorted(report.deltas["kept_history"].dropna().unique()),
                **{
                    name: float(f"{value:.3g}")
                    for name, value in report.deltas[list(MEDIANS)].median().dropna().items()
                },
            }
            file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _copy(state: Path, folder: Path, out: Path) -> Path:
    """A state as it would be released: in BF16, beside the config of the base."""
    folder.mkdir(exist_ok=True)
    weights = load_file(state)
    weights.pop("lm_head.weight", None)  # tied
    stored = {name: weight.bfloat16().contiguous() for name, weight in weights.items()}
    save_file(stored, folder / "model.safetensors")
    shutil.copy(out / "base" / "config.json", folder)
    return folder


def _step(state: Path) -> int:
    return int(state.stem.split("-")[1])


def publish(out: Path, published: Path) -> None:
    """Write the figures of out into the published tables, which keep those of other runs; and what
    the finished runs are.
    """
    folder = out / "figures"
    files = sorted(folder.glob("*.parquet"))
    found = {
        "mechanisms": [one for one in files if ".lines" not in one.name],
        "mechanisms-lines": [one for one in files if ".lines" in one.name],
    }
    tables = {name: added(published / f"{name}.parquet", own) for name, own in found.items() if own}
    write(tables, published)
    file = published / "mechanisms.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    runs = dict(before.get("runs", {}))
    for run in sorted((out / "runs").iterdir()):
        if (run / "done.json").exists():
            log = json.loads((run / "done.json").read_text())["log"]
            told = [one["told"] for one in log]
            few = max(1, len(told) // 6)
            steps = list(pairwise([{"norm": 0.0}, *log]))
            runs[run.name] = {
                "steps": len(log),
                "moved": sum(a["norm"] != b["norm"] for a, b in steps),
                "norm": float(f"{log[-1]['norm']:.3g}"),
                "told_first": round(float(np.mean(told[:few])), 3),
                "told_last": round(float(np.mean(told[-few:])), 3),
                "r2_noise": noise_r2([a["norm"] != b["norm"] for a, b in steps]),
            }  # fmt: skip
    for run in runs.values():
        if run["moved"] == run["steps"]:
            run.setdefault("r2_noise", noise_r2([True] * run["steps"]))
    about = {
        "base": json.loads((out / "base.json").read_text()),
        "form": json.loads((out / "form.json").read_text()),
        "runs": {name: runs[name] for name in sorted(runs)},
        "audited": {
            **before.get("audited", {}), **json.loads((folder / "audited.json").read_text())
        },
    }  # fmt: skip
    del about["form"]["examples"]
    about["audited"] = {name: about["audited"][name] for name in sorted(about["audited"])}
    text = json.dumps(about, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def added(published: Path, files: list[Path]) -> pd.DataFrame:
    """A published table with the runs of files of figures in place of its own of those names."""
    table = pd.concat([pd.read_parquet(one) for one in files])
    floats = table.select_dtypes("float").columns
    table[floats] = table[floats].map(lambda value: float(f"{value:.4g}")).astype("float32")
    if published.exists():
        before = pd.read_parquet(published)
        table = pd.concat([before[~before["run"].isin(table["run"])], table])
    order = ["run", "state"] if "state" in table else ["run"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)


# ------------------------------------------------------------------------------- a matrix


def matrix_rows(name: str, before: Tensor, after: Tensor) -> Iterator[Row]:
    """The figures of one matrix in float32, and as stored in BF16. before: on the grid of BF16."""
    update = after - before
    order = permutation(update.numel())
    shuffled = update.view(-1)[order].view_as(update)
    for stored in ("F32", "BF16"):
        change, by_chance = update, shuffled
        if stored == "BF16":
            change, by_chance = (_stored(before, one) for one in (update, shuffled))
        row: Row = {
            "stored": stored,
            "relative_norm": _norm(change) / _norm(before),
            "unchanged": _zeros(change),
            **_overlaps(name, before, change, by_chance),
            **spectral(change),
        }
        if stored == "BF16":
            row["shuffled"] = _zeros(by_chance)
            row |= predicted(before, change, update)
        if int(name.split(".layers.")[1].split(".")[0]) % SPECTRA == 0:
            row |= vectors(name, before, before + change, change)
        yield row


def _stored(before: Tensor, update: Tensor) -> Tensor:
    """What storage in BF16 leaves of an update."""
    return (before + update).bfloat16().float() - before


def _norm(values: Tensor) -> float:
    return math.sqrt(float(values.double().square().sum()))


def _zeros(change: Tensor) -> float:
    return 1 - int(torch.count_nonzero(change)) / change.numel()


@cache
def permutation(size: int) -> Tensor:
    """One order of so many entries, always the same."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))


def predicted(before: Tensor, change: Tensor, update: Tensor) -> Row:
    """The share of unchanged entries by what is known of an update: `normal` knows its size alone;
    `drawn` the stored change on the finest grid, which says nearly what the update was there; and
    `told` is the tool's, from the stored change. finest: the share on the finest grid, and
    finest_normal that of a normal change of the size that it has there.
    """
    generator = torch.Generator().manual_seed(1)
    size = _norm(update) / math.sqrt(update.numel())
    drawn = torch.randn(update.shape, generator=generator) * size
    exponents = torch.frexp(before).exponent
    counts = torch.bincount((exponents - exponents.min()).view(-1)).cumsum(0)
    limit = int((counts < FINEST * update.numel()).sum()) + int(exponents.min())
    finest = exponents <= limit
    there = change[finest]
    places = torch.randint(len(there), update.shape, generator=generator)
    half_ulp = torch.ldexp(torch.ones(len(there)), exponents[finest] - 9)
    scale = _norm(there) / math.sqrt(len(there))
    within = torch.erf(half_ulp / (scale * math.sqrt(2))) if scale else torch.ones(1)
    squares = change.double().square()
    lines = squares.sum(1).numpy(), squares.sum(0).numpy()
    sides = Sides(before.bfloat16(), (before + change).bfloat16(), torch.float32, Workspace())
    found = rounding.undo(sides, ("BF16", "BF16"), lines, float(before.abs().max()))
    return {
        "normal": _zeros(_stored(before, drawn)),
        "drawn": _zeros(_stored(before, there[places])),
        "told": found.zeros if found.kept is not None else None,
        "kept": found.kept,
        "finest": _zeros(there),
        "finest_normal": float(within.mean()),
    }


_masks: dict[str, tuple[Tensor, Tensor]] = {}


def _overlaps(name: str, before: Tensor, change: Tensor, by_chance: Tensor) -> Row:
    """Of the entries that changed: the share among the smallest of the base, and among the largest
    of its leading directions; and the same of the shuffled update.
    """
    if name not in _masks:
        u, s, vt = torch.linalg.svd(before, full_matrices=False)
        count = max(1, round(PRINCIPAL * len(s)))
        leading = ((u[:, :count] * s[:count]) @ vt[:count]).abs()
        _masks[name] = _largest(-before.abs()), _largest(leading)
    found = {}
    for title, of in (("", change), ("_shuffled", by_chance)):
        changed = of != 0
        count = max(1, int(changed.sum()))
        for which, mask in zip(("low", "principal"), _masks[name], strict=True):
            found[f"{which}{title}"] = int((changed & mask).sum()) / count
    return found


def _largest(values: Tensor) -> Tensor:
    return values >= values.view(-1).kthvalue(round((1 - LOW) * values.numel())).values


def spectral(change: Tensor) -> Row:
    """participation_ratio, and concentration over random signs, as the tool has them."""
    d = change.double()
    gram = d @ d.T if d.shape[0] <= d.shape[1] else d.T @ d
    energy = float(gram.trace())
    if not energy:
        return {"participation_ratio": None, "concentration": None}
    squares = d.square()
    by_chance = float(
        squares.sum(1).square().sum() + squares.sum(0).square().sum() - squares.square().sum()
    )
    real, null = energy**2 / float(gram.square().sum()), energy**2 / by_chance
    return {"participation_ratio": real, "concentration": math.log(null / real) / math.log(null)}


_left: dict[str, Tensor] = {}


def vectors(name: str, before: Tensor, after: Tensor, change: Tensor) -> Row:
    """effective_rank and full_rank, of the directions of the change; intruders, of the leading
    vectors of the tuned side, those that have no vector of the base at a cosine above SIMILAR.
    """
    if name not in _left:
        _left[name] = torch.linalg.eigh(_gram(before)).eigenvectors
    values = torch.linalg.eigvalsh(_gram(change)).flip(0).clamp(min=0).sqrt()
    shares = values / values.sum()
    shares = shares[shares > 0]
    leading = torch.linalg.eigh(_gram(after)).eigenvectors[:, -INTRUDERS:]
    nearest = (_left[name].T @ leading).abs().amax(0)
    return {
        "effective_rank": float(torch.exp(-(shares * shares.log()).sum())) / len(values),
        "full_rank": float((values > 1e-4 * values[0]).double().mean()),
        "intruders": int((nearest < SIMILAR).sum()),
    }


def _gram(matrix: Tensor) -> Tensor:
    m = matrix.double()
    return m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m


# ---------------------------------------------------------------------------- over steps


def line_rows(before: Tensor, states: list[Tensor]) -> Iterator[Row]:
    """How far a matrix moves in a line over states at even steps, and the same of a walk whose
    steps are these in random places. r2: of all entries together; linear: the share of the entries
    that changed whose own R² is LINEAR or more; cosine: of neighbouring steps, their mean.
    """
    generator = torch.Generator().manual_seed(2)
    moves = [after - early for early, after in zip([before, *states[:-1]], states, strict=True)]
    walk, at = [], before
    for move in moves:
        order = torch.randperm(move.numel(), generator=generator)
        at = at + move.view(-1)[order].view_as(move)
        walk.append(at)
    for stored in ("F32", "BF16"):
        row: Row = {"stored": stored}
        for title, path in (("", states), ("_walk", walk)):
            seen = [one.bfloat16().float() if stored == "BF16" else one for one in path]
            row |= {f"{key}{title}": value for key, value in straight(before, seen).items()}
        yield row


def noise_r2(moved: list[bool]) -> float:
    """R² of entries whose gradients are nothing but noise, by the optimiser of the runs: over
    states every KEPT_EVERY steps of a run of which these steps moved weights.
    """
    generator = torch.Generator().manual_seed(3)
    entries = torch.zeros(1, NOISY, requires_grad=True)
    optimizer = torch.optim.AdamW([entries], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    states = []
    for step, moves in enumerate(moved):
        if moves:
            optimizer.param_groups[0]["lr"] = min(1.0, (step + 1) / WARM_UP)
            entries.grad = torch.randn(entries.shape, generator=generator)
            optimizer.step()
        if (step + 1) % KEPT_EVERY == 0:
            states.append(entries.detach().clone())
    found: float = straight(torch.zeros_like(entries), states)["r2"]
    return round(found, 3)


def straight(before: Tensor, states: list[Tensor]) -> Row:
    """r2, linear and cosine of states at even steps from before."""
    path = torch.stack([torch.zeros_like(before), *(one - before for one in states)]).double()
    times = torch.arange(len(path)).double()
    times -= times.mean()
    centred = path - path.mean(0)
    total = centred.square().sum(0)
    explained = (times[:, None, None] * centred).sum(0).square() / times.square().sum()
    moved = total > 0
    steps = path.diff(dim=0).flatten(1)
    norms = steps.norm(dim=1)
    cosines = (steps[1:] * steps[:-1]).sum(1) / (norms[1:] * norms[:-1])
    return {
        "r2": float(explained.sum() / total.sum()),
        "linear": float((explained[moved] >= LINEAR * total[moved]).double().mean()),
        "cosine": float(cosines.mean()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
