"""Estimates of `--level sketch` against all singular values in float64.

    python benchmarks/sketch.py            # writes its table into docs/methods.md, minutes
    python benchmarks/sketch.py --quick    # prints it with one key instead of six

Planted deltas of known kinds, and those of an MLP that is trained here, stored in BF16 and F32.
Each is sketched under many keys, as matrices of different names are, and compared with its exact
figures.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from evidence.evidence_parts import put
from threadpoolctl import threadpool_limits
from torch import nn

from shadow.spectra.delta import Measured, measure_pair, summed
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace
from shadow.spectra.sums import Sums

SHAPES = ((640, 640), (640, 2048), (1536, 768))
KINDS = ("noise", "uneven noise", "i^-0.3", "1/i", "8 directions and noise", "trained")
KEYS = 6  # of each matrix: 36 of each kind, over shapes and formats
FIRST = 100  # their number; the errors were set by looking at smaller ones
FIGURES = (
    "participation_ratio", "concentration", "excess_purity", "effective_rank",
    "spectral_norm", "top1_energy", "top16_energy",
)  # fmt: skip
OFTEN = 93  # of 100 in which the truth has to be within the error
Case = tuple[str, str, torch.Tensor, torch.Tensor]


def planted(kind: str, shape: tuple[int, int], draw: torch.Generator) -> torch.Tensor:
    """A delta of a kind, its Frobenius norm 1."""

    def normal(*sides: int) -> torch.Tensor:
        return torch.randn(*sides, generator=draw)

    rows, cols = shape
    found = normal(rows, cols)
    if kind == "uneven noise":
        found *= torch.exp(0.7 * normal(rows, 1)) * torch.exp(0.7 * normal(cols))
    elif kind in ("i^-0.3", "1/i"):
        sigma = torch.arange(1.0, 513.0) ** (-0.3 if kind == "i^-0.3" else -1.0)
        left, right = (torch.linalg.qr(normal(side, 512))[0] for side in shape)
        found = (left * sigma) @ right.T
    elif kind == "8 directions and noise":
        found = found / found.norm() + normal(rows, 8) @ normal(8, cols) / (8 * rows * cols) ** 0.5
    return found / found.norm()


def trained() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Float32 weights of an MLP, 640 to 1,536 wide, before and after training on a second task."""
    torch.manual_seed(0)
    sides = (640, 640, 1536, 768)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sides)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    for task in (0, 1):
        teacher = torch.randn(640, 768, generator=torch.Generator().manual_seed(task)) / 25
        optimiser = torch.optim.AdamW(model.parameters(), (1e-3, 1e-4)[task])
        before = [layer.weight.detach().clone() for layer in layers]
        for _ in range(60):
            x = torch.randn(64, 640)
            optimiser.zero_grad()
            nn.functional.mse_loss(model(x), torch.tanh(x @ teacher)).backward()
            optimiser.step()
    yield from zip(before, (layer.weight.detach() for layer in layers), strict=True)


def cases() -> Iterator[Case]:
    """Kind, format, base and tuned side."""
    draw = torch.Generator().manual_seed(0)
    for kind in KINDS[:-1]:
        for shape in SHAPES:
            base = 0.02 * torch.randn(*shape, generator=draw)
            delta = 0.05 * base.norm() * planted(kind, shape, draw)
            yield kind, "F32", base, base + delta
            yield kind, "BF16", base.bfloat16(), (base.bfloat16().float() + delta).bfloat16()
    for base, tuned in trained():
        yield "trained", "F32", base, tuned
        yield "trained", "BF16", base.bfloat16(), tuned.bfloat16()


def measured(case: Case, precision: str, key: str) -> Measured:
    """The figures of a case in a precision."""
    _, stored, base, tuned = case
    space = Workspace()
    wide = torch.float64 if stored == "F32" else torch.float32
    total = summed(Sides(base, tuned, wide, space), (stored, stored))
    assert isinstance(total, Sums), "both sides are finite and differ"
    method = Method("sketch" if precision == "sketch" else "exact")
    return measure_pair(base, tuned, (stored, stored), total, Means(method, space), key)


class Tally:
    """What came of a figure over all keys of a kind."""

    def __init__(self) -> None:
        self.asked = self.within = 0
        self.off: list[float] = []  # estimate over truth less 1; of differences, their difference
        self.error: list[float] = []

    def add(self, value: object, error: object, truth: object, unit: float) -> None:
        """One estimate; unit: what it is relative to."""
        self.asked += 1
        if isinstance(value, float) and isinstance(error, float) and isinstance(truth, float):
            self.within += abs(value - truth) <= error + 1e-6 * unit
            self.off.append((value - truth) / unit)
            self.error.append(error / unit)

    def row(self, kind: str, name: str) -> str:
        """A line of the table."""
        known = f"{len(self.off)} of {self.asked}"
        if not self.off:
            return f"| {kind} | `{name}` | {known} | | | |"
        made = f"{np.mean(self.off):+.1e} ± {np.std(self.off):.0e}"
        share = f"{self.within} of {len(self.off)}"
        return f"| {kind} | `{name}` | {known} | {made} | {np.mean(self.error):.0e} | {share} |"


def wrong(found: Measured, truth: Measured) -> list[str]:
    """What a report would say of a delta that is not so: spikes, and structure beyond noise."""
    ours, exact = found.delta.values, truth.delta.values
    said = []
    for name in ("spikes", "spikes_sharp"):
        if ours[name] is not None and ours[name] != exact[name]:
            said.append(name)
    for sign in (1.0, -1.0):
        z, true_z = ours["purity_z"], exact["purity_z"]
        if z is not None and true_z is not None and sign * float(z) > 5 >= sign * float(true_z):
            said.append("purity_z")
    count, right = ours["equivalent_directions"], exact["equivalent_directions"]
    if count is not None and (right is None or abs(float(count) / float(right) - 1.0) > 0.5):
        said.append("equivalent_directions")
    return said


def table(keys: int) -> tuple[list[str], int]:
    """The lines of the table, and how many coverages are too small."""
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    false, sketched = defaultdict[str, int](int), 0
    for case in cases():
        truth = measured(case, "exact", "")
        for key in range(FIRST, FIRST + keys):
            found = measured(case, "sketch", f"{case[2].shape} {key}")
            sketched += 1
            for what in wrong(found, truth):
                false[what] += 1
            for ours, exact in zip(found[:3], truth[:3], strict=True):
                kind = "deltas" if ours.subject == "delta" else "weights"
                if ours.subject == "base":
                    continue
                for name in FIGURES if kind != "weights" else FIGURES[3:]:
                    right = exact.values.get(name)
                    differs = name in ("concentration", "excess_purity")
                    unit = 1.0 if differs else abs(float(right or 1.0))
                    value, error = ours.values[name], ours.values.get(f"{name}_error")
                    tallies[kind, name].add(value, error, right, unit)
    lines = [
        "| of | figure | known | error made | error stated | within it |",
        "|---|---|---|---|---|---|",
        *(tally.row(*place) for place, tally in tallies.items()),
    ]
    said = ", ".join(f"{name} {count}" for name, count in false.items()) or "none"
    lines += [
        "",
        f"{sketched:,} sketches of {sketched // keys} deltas. Counts of spikes, of structure beyond"
        f" noise or of equivalent directions that are wrong: {said}. Errors are relative, those of"
        " `concentration` and `excess_purity` absolute.",
    ]
    few = [
        place
        for place, one in tallies.items()
        if one.off and 100 * one.within < OFTEN * len(one.off)
    ]
    return lines, len(few)


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    with threadpool_limits(limits=1):
        made, too_few = table(1 if quick else KEYS)
    if quick:
        print("\n".join(made))
    else:
        put("methods.md", "sketch", "\n".join(made))
    sys.exit(f"{too_few} errors are stated too small" if too_few else 0)
