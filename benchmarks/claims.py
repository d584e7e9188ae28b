"""Claims of known truth, planted on six models, and how often `shadow verify` is right about them.

    python benchmarks/claims.py                    # the final seed; writes docs/verify.md and rates
    python benchmarks/claims.py --seed 1           # another seed, printed: to develop with
    python benchmarks/claims.py --seed 1 --only merged        # plants with this in their name

claim_models.py has the models, claim_faults.py what is done to them, claim_plants.py the claims. A
run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices only wait for each other

import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from claim_models import CACHE
from claim_plants import OPEN, Plant, plants, work
from evidence.evidence_parts import FOLDER, interval, put

import shadow
from shadow.errors import ShadowError

FINAL = 20261210  # asked once, after all was developed with others
RATES = Path(shadow.__file__).parent / "checks" / "verify_error_rates.json"
WHERE = "docs/verify.md"
DATA_COLUMNS = ("name", "claim", "kind", "truth", "outcome", "is_named", "reason")


@dataclass(frozen=True)
class Judged:
    """What came of a plant."""

    name: str
    claim: str
    kind: str
    truth: str
    outcome: str
    """A word of an answer, or `fault`."""
    is_named: bool
    """Whether the answer names the fault that was planted, or why it cannot be told."""
    reason: str
    seconds: float

    @property
    def is_right(self) -> bool:
        return self.outcome == self.truth


def judged(plant: Plant, seed: int, folder: Path) -> Judged:
    """Make the checkpoints, and ask."""
    started = time.process_time()
    try:
        asked = plant.make(work(plant, folder, seed))
        found = shadow.verify(
            plant.claim,
            *asked.checkpoints,
            **{name: value for name, value in asked.options.items() if value},
            jobs=1,
        )
        outcome, against = found.outcome, found.against
        reason = found.reason
        recorded = "\n".join(
            [reason, *(f"{one.name}: {one.what}" for one in against), *found.notes]
        )
    except ShadowError as error:
        outcome, reason, recorded = "fault", error.message, error.message
    return Judged(
        plant.name, plant.claim, plant.kind, plant.truth, outcome,
        re.search(plant.names, recorded) is not None, reason, time.process_time() - started,
    )  # fmt: skip


def all_judged(chosen: Sequence[Plant], seed: int, cache: Path) -> Iterator[Judged]:
    """Of every plant; those that this version of everything has judged are read from a file."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"judged-{seed}-{method()}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    there = {one["name"]: Judged(**one) for one in map(json.loads, lines)}
    for plant in chosen:
        if plant.name not in there:
            folder = Path(tempfile.mkdtemp(dir=cache))
            try:
                found = judged(plant, seed, folder)
            finally:
                shutil.rmtree(folder)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            there[plant.name] = found
            if not found.is_right or not found.is_named:
                print(wrong(found), file=sys.stderr, flush=True)
        yield there[plant.name]


def method() -> str:
    """A digest of the package and of these scripts: what an answer rests on."""
    files = sorted(Path(shadow.__file__).parent.rglob("*.py"))
    files += sorted(Path(__file__).parent.glob("claim*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


# ------------------------------------------------------------------------------------- page


def row(claim: str, own: Sequence[Judged]) -> str:
    """The line of a claim in the table: what was asked, what was right, and what else was said."""
    otherwise = Counter(
        "refused"
        if one.outcome in (OPEN, "fault")
        else f"falsely *{one.outcome.replace('_', ' ')}*"
        for one in own
        if not one.is_right
    )
    otherwise["cause not named"] = sum(one.is_right and not one.is_named for one in own)
    said = ", ".join(f"{what} {count}" for what, count in otherwise.items() if count)
    kinds, right = {one.kind for one in own}, sum(one.is_right for one in own)
    return f"| `{claim}` | {len(kinds)} | {len(own)} | {right} | {said} |"


def recorded(found: Sequence[Judged]) -> str:
    """The generated section of the page."""
    decidable = [one for one in found if one.truth != OPEN]
    undecidable = [one for one in found if one.truth == OPEN]
    could_hold = [one for one in found if one.truth != "holds"]
    false = sum(one.outcome == "holds" for one in could_hold)
    right = sum(one.is_right for one in decidable)
    refused = sum(one.outcome in (OPEN, "fault") for one in decidable)
    noticed = sum(one.is_right for one in undecidable)
    lines = [
        f"`python benchmarks/claims.py` plants {len(found)} claims on six models, three of them"
        " real and cut to a few layers, and asks each once, with a seed that nothing was developed"
        " with.",
        "",
        f"- Falsely *holds*: {false} of {len(could_hold)} that do not hold or are inconclusive"
        f" ({interval(false, len(could_hold))}).",
        f"- Right: {right} of {len(decidable)} that can be decided"
        f" ({interval(right, len(decidable))}).",
        f"- Refused, though it can be decided: {refused} of {len(decidable)}"
        f" ({interval(refused, len(decidable))}).",
        f"- Refused, as it should be: {noticed} of {len(undecidable)} that cannot be decided"
        f" ({interval(noticed, len(undecidable))}).",
        "",
        "Intervals are exact binomial ones of 95 % (Clopper and Pearson), one-sided where a count"
        " is none or all. Every answer is in `docs/lab/claims.parquet`.",
        "",
        "| claim | kinds | claims | right | otherwise |",
        "|---|---:|---:|---:|---|",
    ]
    for claim in dict.fromkeys(one.claim for one in found):
        lines.append(row(claim, [one for one in found if one.claim == claim]))
    return "\n".join(lines)


def rates(found: Sequence[Judged]) -> dict[str, object]:
    """What `shadow explain` quotes: by claim, how many answers were wrong, of how many."""
    # of `quantised` are those of quantised_copies.py
    answers = json.loads(RATES.read_text(encoding="utf-8"))["answers"]
    for claim in dict.fromkeys(one.claim for one in found):
        decided = [
            one for one in found if one.claim == claim and one.outcome in ("holds", "does_not_hold")
        ]
        answers[claim] = [sum(not one.is_right for one in decided), len(decided)]
    return {"where": WHERE, "answers": answers}


def wrong(one: Judged) -> str:
    """A line about an answer that is wrong or names nothing."""
    word = "unnamed" if one.is_right else one.outcome
    return f"{one.name}: true: {one.truth}, answered: {word}: {one.reason[:200]}"


def main(
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = FINAL,
    only: Annotated[str | None, typer.Option(help="Plants with this in their name.")] = None,
) -> None:
    """Plant the claims, ask them, and write the table."""
    torch.set_num_threads(1)
    chosen = [one for one in plants() if only is None or only in one.name]
    found = list(all_judged(chosen, seed, CACHE))
    section = recorded(found)
    if seed != FINAL or only is not None:
        print(section)
        return
    put("verify.md", "error-rates", section)
    columns = {name: [getattr(one, name) for one in found] for name in DATA_COLUMNS}
    pq.write_table(pa.table(columns), FOLDER / "claims.parquet")
    RATES.write_text(json.dumps(rates(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
