"""Train and audit the runs of a preset, into a folder, in processes of one thread; go on where it
stopped.

Every pair is audited as `shadow audit` does. A run is finished when its JSON lies in
`runs/`, which is written last, whole; what was not finished is trained anew. The numbers depend on
the seeds and on the versions of torch and transformers, not on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import torch
import transformers
from safetensors.torch import load_file, save_file

from shadow import __version__
from shadow.audits.perform import perform as audit
from shadow.audits.request import AuditRequest, Files
from shadow.comparing.comparison import compare
from shadow.errors import ShadowError
from shadow.lab.design import (
    MAIN,
    REGIMES,
    SCALES,
    SHARES,
    TREATMENTS,
    Base,
    Preset,
    Run,
    other_seed,
)
from shadow.lab.tasks import Mixture, Sample, partly_repeated
from shadow.lab.training import accuracy, load, new_model, save, train
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import DELTA, SPECTRAL
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import Reference

# of what is trained and how; raised when a change makes finished runs mean something else
DESIGN = 1
WEIGHTS = "model.safetensors"

Row = dict[str, Any]


@dataclass(frozen=True)
class TaskResult:
    """Told after every finished base or run."""

    what: str
    """The base or the run, in words."""

    finished: int
    """Tasks that are done, this one included."""

    total: int
    """Tasks of the preset."""

    seconds: float
    """What its process took for it, 0 where it was there already."""


def perform(
    preset: Preset, out: Path, *, jobs: int, show: Callable[[TaskResult], None] = lambda done: None
) -> None:
    """Train and audit whatever of the preset is not in out yet.

    Raises ShadowError when out holds the runs of another design or other versions, and when a
    process dies.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ShadowError(
            f"torch {torch.__version__} has no Muon, which the lab trains with",
            "install torch 2.9 or newer",
        )
    _claim(out)
    with processes(jobs) as pool:
        _perform_all(preset, out, pool=pool, show=show)


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of one thread each, which end with this one.

    Raises ShadowError when one of them dies.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_alone) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            hint = "out of memory? run the same command again to continue"
            raise ShadowError("a process of the lab was ended from outside", hint) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


@dataclass(frozen=True)
class Task:
    """Something that a process of the lab does in one go: function(subject, out) returns the
    seconds that it took.
    """

    function: Callable[[Any, Path], float]
    """Does it; returns the seconds that it took."""

    subject: Any
    """What it is done to, such as a Base or a Run."""

    needs: frozenset[str]
    """The keys of the tasks that come before it."""


def tasks_of(preset: Preset) -> dict[str, Task]:
    """All tasks of a preset by their key, bases first."""
    tasks = {base.key: Task(train_base, base, frozenset()) for base in preset.bases}
    for run in preset.runs:
        needs = {run.base.key, *(_key(run.base, name) for name in run.of)}
        if run.regime == "other":
            needs.add(Base(run.base.scale, other_seed(run.base)).key)
        tasks[_key(run.base, run.name)] = Task(perform_run, run, frozenset(needs))
    for base in preset.bases:
        runs = [run for run in preset.runs if run.base == base and compared(run)]
        if len(runs) > 1:
            needs = {_key(base, run.name) for run in runs}
            tasks[_key(base, "comparisons")] = Task(compare_runs, tuple(runs), frozenset(needs))
    return tasks


def compared(run: Run) -> bool:
    """Is a run held against the others of its base by `shadow compare`?"""
    return run.kind == "trained" and run.treatment == "adamw" and run.regime in MAIN


def _perform_all(
    preset: Preset, out: Path, pool: ProcessPoolExecutor, show: Callable[[TaskResult], None]
) -> None:
    """Start whatever has all that it needs, in order, until nothing is left."""
    waiting = tasks_of(preset)
    total, ready = len(waiting), set[str]()
    running: dict[Future[float], str] = {}
    show(TaskResult(what="", finished=0, total=total, seconds=0.0))
    while waiting or running:
        for key in [key for key, task in waiting.items() if task.needs <= ready]:
            task = waiting.pop(key)
            running[pool.submit(task.function, task.subject, out)] = key
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            key = running.pop(future)
            seconds = future.result()
            ready.add(key)
            show(TaskResult(what=key, finished=len(ready), total=total, seconds=seconds))


def _key(base: Base, name: str) -> str:
    return f"{base.key}: {name}"


def _alone() -> None:
    """In a process of the pool: one thread, repeatable sums, and an end with the parent."""
    # Ctrl-C reaches all of the terminal's processes: no traceback here
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _claim(out: Path) -> None:
    """Say in out what its runs depend on, or check that they depend on the same."""
    versions = {
        "design": DESIGN,
        "shadow": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    file = out / "lab.json"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if out.is_dir() and any(out.iterdir()):
            raise ShadowError(f"{out} holds something else", "name a new folder with -o") from None
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, versions)
        return
    except (ValueError, OSError) as error:
        raise ShadowError(f"{file} cannot be read: {error}", "name a new folder with -o") from error
    if there != versions:
        raise ShadowError(
            f"{out} holds runs of other versions", f"made with {there}; name a new folder with -o"
        )


def write_json(file: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(file)


def folder_name(name: str) -> str:
    """A run's name as that of a file, unique: names hold `/`, `+` and `%`."""
    plain = "".join(char if char.isalnum() else "-" for char in name)
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def checkpoint(out: Path, base: Base, name: str | None = None) -> Path:
    """Where the weights of a base, or of a run of it, lie."""
    return out / "checkpoints" / base.key / _base_or_run(name)


def _base_or_run(name: str | None) -> str:
    """The name of a file of a run, or of its base where no run is named."""
    return "base" if name is None else folder_name(name)


def report(out: Path, base: Base, name: str) -> Path:
    """Where the report of a run lies."""
    return out / "reports" / base.key / folder_name(name)


def record(out: Path, base: Base, name: str | None = None) -> Path:
    """The JSON file about a finished base, or a finished run of it."""
    return out / "runs" / base.key / f"{_base_or_run(name)}.json"


def train_base(base: Base, out: Path) -> float:
    """Train a base, unless it is there; seconds that it took."""
    if record(out, base).exists():
        return 0.0
    started = time.monotonic()
    scale = SCALES[base.scale]
    model = new_model(scale.size, base.seed)
    samples = base.original.samples(Random(f"base {base.key}"))  # noqa: S311
    losses = list(train(model, samples, rows=scale.size.rows, recipe=scale.base))
    with whole_folder(checkpoint(out, base)) as folder:
        save(model, folder)
    row = {
        "base": base.key,
        "loss": _last(losses),
        "accuracies": accuracies(base, checkpoint(out, base)),
    }
    record(out, base).parent.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started
    write_json(record(out, base), row | {"seconds": round(seconds, 1)})
    return seconds


def perform_run(run: Run, out: Path) -> float:
    """Train or make, audit and probe one run, unless it is there; seconds that it took."""
    file = record(out, run.base, run.name)
    if file.exists():
        return 0.0
    started = time.monotonic()
    make = {"trained": _train, "averaged": _average, "bf16": _round, "copied": _copy}[run.kind]
    rows = make(run, out)
    file.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started
    identity = {**asdict(run), "base": run.base.key, "name": run.name, "of": list(run.of)}
    write_json(file, {"run": identity, "seconds": round(seconds, 1), "rows": rows})
    return seconds


def compare_runs(runs: Sequence[Run], out: Path) -> float:
    """Hold the runs of one base against each other, unless that is done; seconds that it took."""
    base = runs[0].base
    file = out / "comparisons" / f"{base.key}.json"
    names = [run.name for run in runs]
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["runs"] == names:
        return 0.0
    started = time.monotonic()
    rows = [
        {
            "base": base.key,
            "regime_first": runs[first].regime,
            "seed_first": runs[first].seed,
            "regime_second": runs[second].regime,
            "seed_second": runs[second].seed,
            **verdict,
        }
        for first, second, verdict in verdicts([report(out, base, name) for name in names])
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started
    write_json(file, {"runs": names, "seconds": round(seconds, 1), "rows": rows})
    return seconds


def verdicts(reports: Sequence[Path]) -> Iterator[tuple[int, int, Row]]:
    """What `shadow compare` says of every two reports, with their places in reports: the verdict,
    and the difference in concentration with its interval and p.
    """
    comparison = compare(reports)
    places = {compared.label: place for place, compared in enumerate(comparison.reports)}
    for contrast in comparison.contrasts:
        figure = contrast.figures[0]
        numbers = ("difference", "low", "high", "p_within_pair")
        yield (
            places[contrast.first],
            places[contrast.second],
            {"verdict": contrast.verdict, **{name: getattr(figure, name) for name in numbers}},
        )


def _train(run: Run, out: Path) -> list[Row]:
    """Train, and measure after each of SHARES of the steps; keep the last state and its report."""
    scale = SCALES[run.base.scale]
    recipe = TREATMENTS[run.treatment].recipe(scale.tune)
    torch.manual_seed(run.seed)  # of LoRA's factors
    model = load(checkpoint(out, run.base))
    losses: list[float] = []
    rows: list[Row] = []
    marks = {max(1, round(share * recipe.steps)): share for share in SHARES}
    for loss in train(
        model, stream(run, recipe.steps * scale.size.tokens), rows=scale.size.rows, recipe=recipe
    ):
        losses.append(loss)
        # the loss is told before the update that it leads to has been made: a mark is seen one step
        # late
        if (share := marks.get(len(losses) - 1)) is not None and share < 1:
            rows.append(
                {"share": share, "loss": _last(losses), **_passing_figures(model, run, out)}
            )
    with whole_folder(checkpoint(out, run.base, run.name)) as folder:
        save(model, folder)
    return [*rows, {"share": 1.0, "loss": _last(losses), **_finished(run, out)}]


def stream(run: Run, tokens: int) -> Iterator[Sample]:
    """The samples of a continuation; a pool of repeats is as large as so many tokens need."""
    regime = REGIMES[run.regime]
    world = SCALES[run.base.scale].world
    mixture: Mixture = regime.mixture(world, run.base.original)
    # the same numbers whatever the treatment
    rng = Random(f"run {run.base.key} {run.regime} {run.seed}")  # noqa: S311
    if not regime.repeated:
        return mixture.samples(rng)
    drawn = list(islice(mixture.samples(Random(0)), 500))  # noqa: S311
    length = sum(len(sample.prompt) + len(sample.answer) + 1 for sample in drawn) / len(drawn)
    pool = max(1, round(regime.repeated * tokens / length / regime.times))
    return partly_repeated(mixture, pool, share=regime.repeated, rng=rng)


def _passing_figures(model: transformers.LlamaForCausalLM, run: Run, out: Path) -> Row:
    """The figures of a state that is not kept."""
    with tempfile.TemporaryDirectory() as scratch:
        save(model, Path(scratch) / "tuned")
        return figures_of(
            checkpoint(out, run.base),
            Path(scratch) / "tuned",
            reports=Path(scratch),
            family="family",
            name="pair",
        )


def _finished(run: Run, out: Path) -> Row:
    """The figures and accuracies of the kept state of a run, whose report is kept too."""
    base, tuned = checkpoint(out, run.base), checkpoint(out, run.base, run.name)
    if (rounded := tuned / "rounded base").is_dir():
        base = rounded
    figures = figures_of(
        base, tuned, reports=out / "reports", family=run.base.key, name=folder_name(run.name)
    )
    return {**figures, "accuracies": accuracies(run.base, tuned)}


def figures_of(base: Path, tuned: Path, reports: Path, family: str, name: str) -> Row:
    """Audit two checkpoints into reports: the figures of the summary, medians of columns, and
    shares of modules.
    """
    pair = Pair(
        family=family, name=name, base=Reference(str(base), True), tuned=Reference(str(tuned), True)
    )
    request = AuditRequest(
        Selection((pair,), (pair,)), reports, files=Files(cache=False), overwrite=True, jobs=1
    )
    (outcome,) = audit(request)
    done = outcome.finished()
    overall = done.summary.figures.relative_norm_overall
    allocation = {row.module: _over(row.relative_norm, overall) for row in done.summary.modules}
    return {
        "figures": dict(done.summary.figures),
        "columns": _medians(done.folder),
        "allocation": allocation,
    }


def _over(value: float | None, whole: float | None) -> float | None:
    if value is None or not whole:
        return None
    return value / whole


def _medians(folder: Path) -> dict[str, float | None]:
    """Of every column of the deltas inside the layers, with which `shadow compare` votes."""
    rows = pd.read_parquet(folder / "matrices.parquet")
    inside = rows[(rows["subject"] == "delta") & rows["layer"].notna()]
    names = [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]
    medians = {name: float(inside[name].astype(float).median()) for name in names}
    return {name: null_if_undefined(value) for name, value in medians.items()}


def accuracies(base: Base, folder: Path) -> dict[str, float]:
    """The share of each probe of the base's world that a saved model gets right."""
    world, model = SCALES[base.scale].world, load(folder)
    probes = (world.narrow, base.original, world.broad, world.held_out, world.unseen)
    names = ("narrow", "original", "broad", "held_out", "unseen")
    return {
        name: round(accuracy(model, probe, base.seed), 4)
        for name, probe in zip(names, probes, strict=True)
    }


def _last(losses: list[float]) -> float:
    """The mean over the last twentieth of the steps so far."""
    last = losses[-max(1, len(losses) // 20) :]
    return round(sum(last) / len(last), 5)


def _average(run: Run, out: Path) -> list[Row]:
    """The mean of the weights of the runs that it is made of."""
    weights = [load_file(checkpoint(out, run.base, name) / WEIGHTS) for name in run.of]
    mean = {key: torch.stack([of_run[key] for of_run in weights]).mean(dim=0) for key in weights[0]}
    return _kept(run, out, mean)


def _round(run: Run, out: Path) -> list[Row]:
    """Both sides stored as bf16."""
    (name,) = run.of
    base, tuned = (
        load_file(checkpoint(out, run.base, of_run) / WEIGHTS) for of_run in (None, name)
    )
    return _kept(
        run,
        out,
        tuned={name: weight.bfloat16() for name, weight in tuned.items()},
        base={name: weight.bfloat16() for name, weight in base.items()},
    )


def _copy(run: Run, out: Path) -> list[Row]:
    source = run.base
    if run.regime == "other":
        source = Base(run.base.scale, other_seed(run.base))
    weights = load_file(checkpoint(out, source) / WEIGHTS)
    generator = torch.Generator().manual_seed(run.base.seed)
    return _kept(
        run, out, {name: copied(run.regime, weight, generator) for name, weight in weights.items()}
    )


def copied(how: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor of a base as a copy of this kind has it; vectors are left alone, save by bf16."""
    if how in ("same", "other"):
        return weight
    if how == "bf16":
        return weight.bfloat16()
    if weight.ndim < 2:
        return weight
    if how == "int8":
        step = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        rounded: torch.Tensor = torch.round(weight / step) * step
        return rounded
    noise = torch.randn(weight.shape, generator=generator)
    noise *= 0.04 * weight.norm() / noise.norm()
    if how == "noise":
        return weight + noise
    left, right = (
        torch.linalg.qr(torch.randn(size, 4, generator=generator))[0] for size in weight.shape
    )
    strong = left @ right.T
    planted: torch.Tensor = weight + noise + strong * noise.norm() / strong.norm()
    return planted


def _kept(
    run: Run,
    out: Path,
    tuned: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor] | None = None,
) -> list[Row]:
    """Write the weights that a run is, audit and probe them."""
    with whole_folder(checkpoint(out, run.base, run.name)) as folder:
        for weights, place in ((tuned, folder), (base, folder / "rounded base")):
            if weights is not None:
                place.mkdir(exist_ok=True)
                save_file(
                    {name: weight.contiguous() for name, weight in weights.items()}, place / WEIGHTS
                )
                shutil.copy(checkpoint(out, run.base) / "config.json", place)
    return [{"share": 1.0, "loss": None, **_finished(run, out)}]


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears when all of it is written, over one that an interrupted run left."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
