"""Quantised copies of known truth, and how often what is said of them is right.

    python benchmarks/quantised_copies.py           # the final seed; writes docs/verify.md, rates
    python benchmarks/quantised_copies.py --seed 1  # another seed, printed: to develop with

Copies are made by ggml's own library, which quantises all types, also with an importance matrix; it
is fetched once from PyPI, as the models of claim_models.py are. GPTQ and AWQ are those of
tests/quantisers.py. Each matrix is judged alone.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from claim_models import CACHE, fetched, real
from claims import RATES
from evidence.evidence_parts import interval, put
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from histories import generator

from shadow.checkpoints.decoders import GgmlBlocks
from shadow.checks.quantised import Copied
from shadow.spectra.relations.format_noise import block_length, format_noise

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import quantisers

FINAL = 20261131  # asked once, after all was developed with others
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
TYPES = (*LEGACY, "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
MATRICES = 42  # of each type
ROWS, COLS = 128, 1024  # that are kept of a matrix, at most
OPEN = "not excluded"
CHANGES = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the noise of the format
CHANGED = f"changed by {CHANGES[0]:g} to {CHANGES[-1]:g} times the noise"


class Ggml:
    """ggml's quantisers."""

    def __init__(self, folder: Path) -> None:
        ctypes.CDLL(str(fetched("gomp", folder)), mode=ctypes.RTLD_GLOBAL)
        self._quantise = ctypes.CDLL(str(fetched("ggml", folder))).ggml_quantize_chunk
        self._quantise.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._quantise.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def copy(self, matrix: np.ndarray, kind: str, importance: np.ndarray | None = None) -> Any:
        """A copy with its steps; importance: of columns."""
        type_ = GGMLQuantizationType[kind]
        rows, cols = matrix.shape
        matrix = np.ascontiguousarray(matrix, np.float32)
        entries, size = GGML_QUANT_SIZES[type_]
        raw = np.zeros((rows, cols // entries * size), np.uint8)
        weights = None if importance is None else importance.astype(np.float32)
        self._quantise(
            int(type_), matrix.ctypes.data, raw.ctypes.data, 0, rows, cols,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        blocks = GgmlBlocks(torch.from_numpy(raw), kind, lambda numbers: numbers)
        (steps,) = blocks.cells(np.arange(rows), (0, cols))
        return quantisers.Copy(torch.from_numpy(dequantize(raw, type_)), steps, kind)


@dataclass(frozen=True)
class Judged:
    """A copy, what is true of it, and what was said."""

    kind: str
    truth: str
    said: str


def originals(seed: int, folder: Path) -> list[np.ndarray]:
    """Matrices of two real models and made ones, with rows of whole blocks of 256. Not of SmolLM2,
    whose file was quantised before: a small change moves none of its entries to another level.
    """
    rng = generator("quantised", seed)
    found = []
    for name in ("bert", "dinov2"):
        for weight in real(name, folder).values():
            large = weight.ndim == 2 and weight.shape[0] >= ROWS and weight.shape[1] >= 256
            if large and weight.any():
                first = int(rng.integers(weight.shape[0] - ROWS + 1))
                cols = min(COLS, weight.shape[1] // 256 * 256)
                found.append(weight[first : first + ROWS, :cols].numpy())
    order = rng.permutation(len(found))[: MATRICES - 6]
    found = [found[place] for place in order]
    while len(found) < MATRICES:
        scales = np.exp(0.5 * rng.standard_normal(512))
        if len(found) % 2:  # blocks beside which others have no scale
            scales = np.exp(rng.uniform(-7, 0, 32)).repeat(16)
        found.append((0.02 * scales * rng.standard_t(4, (ROWS, 512))).astype(np.float32))
    return found


def said_of(original: np.ndarray, copy: Any) -> str:
    """What the claim says of one matrix."""
    noise = format_noise(torch.from_numpy(original), copy)
    if noise.is_far:
        return "nothing like it"
    said = {"holds": "a copy", "inconclusive": OPEN}
    return said.get(Copied("", copy.format, noise).outcome, "beyond the format")


def judged(seed: int, folder: Path) -> Iterator[Judged]:
    """Every copy of every original."""
    ggml, matrices = Ggml(folder), originals(seed, folder)
    for kind in TYPES:
        for number, original in enumerate(matrices):
            rng = generator("quantised", seed, kind, number)
            plain = ggml.copy(original, kind)
            yield Judged(kind, "a copy", said_of(original, plain))
            if kind != "Q8_0":
                importance = np.exp(rng.standard_normal(original.shape[1]))
                weighed = ggml.copy(original, kind, importance)
                yield Judged(kind, "importance matrix", said_of(original, weighed))
            noise = float(np.sqrt(np.mean((plain.numbers.numpy() - original) ** 2)))
            for size in CHANGES:
                change = size * noise * rng.standard_normal(original.shape)
                copy = ggml.copy(original + change.astype(np.float32), kind)
                yield Judged(kind, CHANGED, said_of(original, copy))
            order = rng.permutation(len(original))
            yield Judged(kind, "rows permuted", said_of(original, ggml.copy(original[order], kind)))
            yield Judged(kind, "a block at one level", said_of(original, stuck(plain, rng)))
            yield Judged(kind, "a block set to 0", said_of(original, zeroed(plain, rng)))
            same = [one for one in matrices if one.shape == original.shape and one is not original]
            if same:
                other = same[int(rng.integers(len(same)))]
                yield Judged(kind, "another tensor", said_of(original, ggml.copy(other, kind)))
        print(kind, file=sys.stderr, flush=True)
    for number, original in enumerate(matrices):
        cut = torch.from_numpy(original[:, :512])
        yield Judged("GPTQ", "GPTQ", said_of(cut.numpy(), quantisers.gptq_copy(cut, seed=number)))
        factors = torch.from_numpy(
            np.exp(0.3 * generator("awq", seed, number).standard_normal(cut.shape[1]))
        )
        yield Judged("AWQ", "AWQ", said_of(cut.numpy(), quantisers.awq_copy(cut, factors)))


def stuck(copy: Any, rng: np.random.Generator) -> Any:
    """The copy with all entries of a block at its largest: those of the original are clipped."""
    numbers, block = copy.numbers.clone(), drawn(copy, rng)
    numbers[block] = numbers[block].max()
    return quantisers.Copy(numbers, copy.each, copy.format)


def zeroed(copy: Any, rng: np.random.Generator) -> Any:
    """The copy with a block that lost its scale and its offset."""
    numbers, steps, block = copy.numbers.clone(), copy.each.clone(), drawn(copy, rng)
    numbers[block] = steps[block] = 0
    return quantisers.Copy(numbers, steps, copy.format)


def drawn(copy: Any, rng: np.random.Generator) -> tuple[int, slice]:
    """A block that has a scale."""
    steps = copy.each.numpy()
    length = block_length(steps)
    row, start = rng.choice(np.argwhere(steps[:, ::length] > 0))
    return int(row), slice(int(start) * length, (int(start) + 1) * length)


HOLDS = ("a copy", "importance matrix")
# what is right to say of each truth; all that begins with one of these
OFF = ("beyond the format", "nothing like it")
RIGHT = {
    "a block": OFF[:1], "a copy": HOLDS[:1], "importance matrix": HOLDS[:1], "changed": OFF,
    "rows permuted": OFF, "another tensor": OFF, "GPTQ": (OPEN,), "AWQ": (OPEN,),
}  # fmt: skip


def right(truth: str) -> tuple[str, ...]:
    return next(said for name, said in RIGHT.items() if truth.startswith(name))


def recorded(found: Sequence[Judged]) -> str:
    """The generated section of the page."""
    plain = [one for one in found if one.truth == "a copy"]
    alarms = sum(one.said not in (*HOLDS, OPEN) for one in plain)
    lines = [
        f"`python benchmarks/quantised_copies.py` makes {len(found):,} copies of matrices of two"
        " real models and of made ones with ggml's own quantisers, with a seed that was asked once."
        f" False alarms: {alarms} of {len(plain)} plain copies ({interval(alarms, len(plain))}).",
        "",
        "| made | copies of each | said rightly | otherwise |",
        "|---|---:|---:|---|",
    ]
    of_row: dict[str, list[str]] = {}  # what came of a kind, and the kinds of which this came
    for truth in dict.fromkeys(one.truth for one in found):
        of_row.setdefault(row([one for one in found if one.truth == truth]), []).append(truth)
    lines += [f"| {'; '.join(kinds)} | {cells} |" for cells, kinds in of_row.items()]
    return "\n".join(lines)


def row(some: Sequence[Judged]) -> str:
    """Return the cells of a kind: how many, how many said rightly, what else was said."""
    count = sum(one.said in right(one.truth) for one in some)
    others = Counter(one.said for one in some if one.said not in right(one.truth))
    otherwise = ", ".join(f"{said} {number}" for said, number in sorted(others.items()))
    return f"{len(some)} | {count} ({interval(count, len(some))}) | {otherwise}"


def main(
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = FINAL,
) -> None:
    """Make the copies, judge them, and write the table."""
    torch.set_num_threads(1)
    found = list(judged(seed, CACHE))
    section = recorded(found)
    if seed != FINAL:
        print(section)
        return
    put("verify.md", "quantised-rates", section)
    rates = json.loads(RATES.read_text(encoding="utf-8"))
    decided = [one for one in found if one.truth not in ("GPTQ", "AWQ") and one.said != OPEN]
    wrong = sum((one.said == "a copy") != (one.truth in HOLDS) for one in decided)
    rates["answers"]["quantised"] = [wrong, len(decided)]
    RATES.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
