"""Train and audit the runs of a preset, into a folder, in processes of one thread; continue where
it stopped.

Every pair is audited as `shadow audit` does. A run is finished when its JSON lies in
`runs/`, which is written last, whole; what was not finished is trained again. The numbers depend on
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
from functools import partial
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
from shadow.lab.design import PROBES, REGIMES, SCALES, SHARES, TREATMENTS, Base, Preset, Run, other
from shadow.lab.tasks import Sample, falling, partly_repeated
from shadow.lab.training import accuracy, load, new_model, save, train
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import delta_metrics
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import Reference

# of what is trained and how; raised when a change makes finished runs mean something else
DESIGN = 1
WEIGHTS = "model.safetensors"

Row = dict[str, Any]
Weights = dict[str, torch.Tensor]
# called after every finished task with how many are finished, how many there are, and the last
Show = Callable[[int, int, str], None]


def unseen(finished: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Task:
    """Something that a process of the lab does in one go, after the tasks whose keys it needs."""

    work: Callable[[], None]
    needs: frozenset[str] = frozenset()


def perform(preset: Preset, out: Path, *, jobs: int, show: Show = unseen) -> None:
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
    carry_out(tasks_of(preset, out), jobs=jobs, show=show)


def tasks_of(preset: Preset, out: Path) -> dict[str, Task]:
    """All tasks of a preset by their key, bases first."""
    tasks = {base.key: Task(partial(train_base, base, out)) for base in preset.bases}
    for run in preset.runs:
        needs = {run.base.key, *(_key(run.base, name) for name in run.of)}
        if run.regime == "other":
            needs.add(other(run.base).key)
        tasks[_key(run.base, run.name)] = Task(partial(perform_run, run, out), frozenset(needs))
    for base in preset.bases:
        runs = [run for run in preset.runs if run.base == base and run.main]
        if len(runs) > 1:
            needs = {_key(base, run.name) for run in runs}
            work = partial(compare_runs, tuple(runs), out)
            tasks[_key(base, "comparisons")] = Task(work, frozenset(needs))
    return tasks


def _key(base: Base, name: str) -> str:
    return f"{base.key}: {name}"


def carry_out(tasks: Mapping[str, Task], *, jobs: int, show: Show) -> None:
    """Start whatever has all that it needs, in order, until nothing is left.

    Raises ShadowError when a process dies.
    """
    waiting, total, ready = dict(tasks), len(tasks), set[str]()
    running: dict[Future[None], str] = {}
    show(0, total, "")
    with _processes(jobs) as pool:
        while waiting or running:
            for key in [key for key, task in waiting.items() if task.needs <= ready]:
                running[pool.submit(waiting.pop(key).work)] = key
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                key = running.pop(future)
                ready.add(key)
                show(len(ready), total, key)


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of one thread each, which end with this one."""
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


def _alone() -> None:
    """Prepare a process of the pool: one thread, repeatable sums, and an end with the parent."""
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
    """Write into out what its runs depend on, or check that they depend on the same."""
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
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(file)


def folder_name(name: str | None) -> str:
    """The name of a run as that of a file, unique; that of its base where no run is named."""
    if name is None:
        return "base"
    plain = "".join(char if char.isalnum() else "-" for char in name)
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def checkpoint(out: Path, base: Base, name: str | None = None) -> Path:
    """Where the weights of a base, or of a run of it, lie."""
    return out / "checkpoints" / base.key / folder_name(name)


def report(out: Path, base: Base, name: str) -> Path:
    return out / "reports" / base.key / folder_name(name)


def record(out: Path, base: Base, name: str | None = None) -> Path:
    """The JSON file about a finished base, or a finished run of it."""
    return out / "runs" / base.key / f"{folder_name(name)}.json"


def train_base(base: Base, out: Path) -> None:
    """Train a base, unless it is there."""
    file = record(out, base)
    if file.exists():
        return
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
    write_json(file, row | {"seconds": round(time.monotonic() - started, 1)})


def perform_run(run: Run, out: Path) -> None:
    """Train or make, audit and probe one run, unless it is there."""
    file = record(out, run.base, run.name)
    if file.exists():
        return
    started = time.monotonic()
    if run.kind == "trained":
        rows = _train(run, out)
    else:
        tuned, base = _weights(run, out)
        rows = [_made(run, out, tuned, base)]
    seconds = round(time.monotonic() - started, 1)
    identity = {**asdict(run), "base": run.base.key, "name": run.name, "of": list(run.of)}
    write_json(file, {"run": identity, "seconds": seconds, "rows": rows})


def compare_runs(runs: Sequence[Run], out: Path) -> None:
    """Hold the runs of one base against each other, unless that is done."""
    base = runs[0].base
    file = out / "comparisons" / f"{base.key}.json"
    names = [run.name for run in runs]
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["runs"] == names:
        return
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
    seconds = round(time.monotonic() - started, 1)
    write_json(file, {"runs": names, "seconds": seconds, "rows": rows})


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
    samples = stream(run, recipe.steps * scale.size.tokens)
    marks = {max(1, round(share * recipe.steps)): share for share in SHARES}
    losses: list[float] = []
    rows: list[Row] = []
    for loss in train(model, samples, rows=scale.size.rows, recipe=recipe):
        losses.append(loss)
        # a state is measured one step after its mark
        if (share := marks.get(len(losses) - 1)) is not None and share < 1:
            rows.append(
                {"share": share, "loss": _last(losses), **_passing_figures(model, run, out)}
            )
    with whole_folder(checkpoint(out, run.base, run.name)) as folder:
        save(model, folder)
    return [*rows, _last_row(run, out, _last(losses), checkpoint(out, run.base))]


def stream(run: Run, tokens: int) -> Iterator[Sample]:
    """The samples of a continuation; a pool of repeats is as large as so many tokens need."""
    regime = REGIMES[run.regime]
    mixture = regime.mixture(SCALES[run.base.scale].world, run.base.original)
    if regime.power:
        order = Random(f"cells {run.base.key} {run.seed}")  # noqa: S311 - the same at every power
        mixture = falling(mixture, regime.power, order)
    # the same numbers whatever the treatment
    rng = Random(f"run {run.base.key} {run.regime} {run.seed}")  # noqa: S311
    if not regime.repeated:
        return mixture.samples(rng)
    drawn = list(islice(mixture.samples(Random(0)), 500))  # noqa: S311
    length = sum(len(sample.text) for sample in drawn) / len(drawn)
    pool = max(1, round(regime.repeated * tokens / length / regime.times))
    return partly_repeated(mixture, pool, share=regime.repeated, rng=rng)


def _passing_figures(model: transformers.LlamaForCausalLM, run: Run, out: Path) -> Row:
    """The figures of a state of which no weights stay."""
    with tempfile.TemporaryDirectory() as scratch:
        tuned = Path(scratch) / "tuned"
        save(model, tuned)
        return figures_of(checkpoint(out, run.base), tuned, Path(scratch), "family", "pair")


def _last_row(run: Run, out: Path, loss: float | None, base: Path) -> Row:
    """The figures and accuracies of the last state of a run, whose weights and report stay."""
    tuned = checkpoint(out, run.base, run.name)
    figures = figures_of(base, tuned, out / "reports", run.base.key, folder_name(run.name))
    return {"share": 1.0, "loss": loss, **figures, "accuracies": accuracies(run.base, tuned)}


def figures_of(base: Path, tuned: Path, reports: Path, family: str, name: str) -> Row:
    """Audit two checkpoints: figures of the summary, medians of columns, shares of modules."""
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


def flat(row: Row) -> Row:
    """What `figures_of` returns as columns of a table of runs."""
    return {
        **row["figures"],
        **{f"layers_{name}": value for name, value in row["columns"].items()},
        **{f"allocation_{module}": value for module, value in row["allocation"].items()},
    }


def _over(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _medians(folder: Path) -> dict[str, float | None]:
    """The median of every column of the deltas inside the layers."""
    rows = pd.read_parquet(folder / "matrices.parquet")
    inside = rows[(rows["subject"] == "delta") & rows["layer"].notna()]
    medians = {name: float(inside[name].astype(float).median()) for name in delta_metrics()}
    return {name: null_if_undefined(value) for name, value in medians.items()}


def accuracies(base: Base, folder: Path) -> dict[str, float]:
    """The share of each probe of the base's world that a saved model gets right."""
    world, model = SCALES[base.scale].world, load(folder)
    probes = {name: getattr(world, name) for name in PROBES} | {"original": base.original}
    return {name: round(accuracy(model, probe, base.seed), 4) for name, probe in probes.items()}


def _last(losses: list[float]) -> float:
    """The mean over the last twentieth of the steps so far."""
    last = losses[-max(1, len(losses) // 20) :]
    return round(sum(last) / len(last), 5)


def _weights(run: Run, out: Path) -> tuple[Weights, Weights | None]:
    """The weights that a run is without any training, and those of its base where they are other
    than in the base's checkpoint: the mean of runs, both sides stored as bf16, or a copy of a base.
    """

    def read(base: Base, name: str | None = None) -> Weights:
        found: Weights = load_file(checkpoint(out, base, name) / WEIGHTS)
        return found

    if run.kind == "averaged":
        parts = [read(run.base, name) for name in run.of]
        return {
            key: torch.stack([part[key] for part in parts]).mean(dim=0) for key in parts[0]
        }, None
    if run.kind == "bf16":
        tuned, base = (
            {key: weight.bfloat16() for key, weight in read(run.base, name).items()}
            for name in (*run.of, None)
        )
        return tuned, base
    source = other(run.base) if run.regime == "other" else run.base
    generator = torch.Generator().manual_seed(run.base.seed)
    return {
        key: copied(run.regime, weight, generator) for key, weight in read(source).items()
    }, None


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


def _made(run: Run, out: Path, tuned: Weights, base: Weights | None) -> Row:
    """Write the weights that a run is, audit and probe them."""
    before = checkpoint(out, run.base)
    folder = checkpoint(out, run.base, run.name)
    with whole_folder(folder) as aside:
        for weights, target in ((tuned, aside), (base, aside / "rounded base")):
            if weights is not None:
                target.mkdir(exist_ok=True)
                whole = {name: weight.contiguous() for name, weight in weights.items()}
                save_file(whole, target / WEIGHTS)
                shutil.copy(before / "config.json", target)
    return _last_row(run, out, None, before if base is None else folder / "rounded base")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears when all of it is written, over one that an interrupted run left."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
