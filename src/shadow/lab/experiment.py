"""Trainings of the lab: bases, and continuations that differ only in their data. They are trained
and audited into a folder, in processes of one thread, continuing where an earlier run stopped.

Every pair is audited as `shadow audit` does. A run is finished when its JSON is in `runs/`, which
is written last and atomically; unfinished runs are trained again. The numbers depend on the seeds
and on the versions of torch and transformers, not on the number of processes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice, product, starmap
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from shadow.comparing.comparison import compare
from shadow.errors import ShadowError
from shadow.files import write_beside
from shadow.lab.training import (
    MIXTURES,
    Recipe,
    Sample,
    Size,
    accuracy,
    load,
    new_model,
    partly_repeated,
    save,
    train,
)
from shadow.lists.perform import perform as audit
from shadow.lists.request import AuditRequest
from shadow.reports.columns import delta_metrics
from shadow.reports.report import Report
from shadow.run.runtime import Files
from shadow.summary.tables import columns_of, median
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import Reference
from shadow.version import __version__

# mixtures of which the share of right answers is measured
PROBES = ("narrow", "original", "broad", "held_out")


@dataclass(frozen=True)
class Scale:
    """A size of decoder, and the training of its bases and their continuations."""

    name: str
    size: Size
    base: Recipe
    tune: Recipe


# Trained with AdamW, a base of this size got 0.38 of its own mixture right after 2,000 steps; with
# Muon 0.94 after 1,200.
SMALL = Scale(
    name="small",
    size=Size(width=64, hidden=168, rows=12),
    base=Recipe(1_200, 2e-2, weight_decay=0.1, muon=True),
    tune=Recipe(200, 1e-3),
)
TINY = Scale(  # learns nothing
    name="tiny",
    size=Size(width=32, hidden=64, rows=4),
    base=Recipe(20, 2e-2, weight_decay=0.1, muon=True),
    tune=Recipe(20, 1e-3),
)


@dataclass(frozen=True)
class Base:
    """A decoder trained on the original mixture: it has met every skill and form, some rarely."""

    scale: Scale
    seed: int

    @property
    def key(self) -> str:
        """`small-warm-0`: unique among bases, and the name of its folder."""
        return f"{self.scale.name}-warm-{self.seed}"


@dataclass(frozen=True)
class Regime:
    """The data of a continuation: a mixture, part of which may come from a pool that repeats."""

    key: str
    name: str
    data: str
    """A mixture by its name."""
    repeated: float = 0.0
    """The share of the samples that comes from the pool, 0 to 1."""
    times: int = 1
    """How often each sample of the pool is seen on average, 1 or more."""

    def samples(self, base: Base, seed: int, tokens: int) -> Iterator[Sample]:
        """Yield samples endlessly; a pool of repeats is as large as that many tokens need."""
        mixture = MIXTURES[self.data]
        rng = Random(f"run {base.key} {self.key} {seed}")  # noqa: S311
        if not self.repeated:
            return mixture.samples(rng)
        endless = mixture.samples(Random(0))  # noqa: S311
        lengths = [len(sample.text) for sample in islice(endless, 500)]
        length = sum(lengths) / len(lengths)
        repeats = self.repeated * tokens / length
        pool = max(1, round(repeats / self.times))
        return partly_repeated(mixture, pool, share=self.repeated, rng=rng)


REGIMES: Mapping[str, Regime] = {
    regime.key: regime
    for regime in (
        Regime("A", "original", "original"),
        Regime("B", "benchmark-aligned", "narrow"),  # three skills in one format
        Regime("C", "coverage-expanding", "broad"),  # every skill in every format, alike
        Regime("D", "repetition", "original", repeated=0.2, times=10),
    )
}


@dataclass(frozen=True)
class Run:
    """A continuation of a base."""

    base: Base
    regime: Regime
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique among the runs of its base."""
        return f"{self.regime.key}-{self.seed}"


def every_regime(bases: list[Base], seeds: int) -> tuple[Run, ...]:
    """A to D on every base, with this many seeds."""
    chosen = product(bases, REGIMES.values(), range(seeds))
    return tuple(starmap(Run, chosen))


PRESETS: Mapping[str, tuple[Run, ...]] = {
    "smoke": every_regime([Base(TINY, 0)], 1),
    "quick": every_regime([Base(SMALL, 0), Base(SMALL, 1)], 1),
    "full": every_regime([Base(SMALL, seed) for seed in range(10)], 3),
}

Row = dict[str, Any]
Work = Callable[[], None]
# called after every finished task with how many are finished, how many there are, and the last
Show = Callable[[int, int, str], None]


def perform(runs: Sequence[Run], out: Path, *, jobs: int, show: Show = lambda *_: None) -> None:
    """Train and audit the runs that out lacks.

    Raises ShadowError if out holds runs of another design or other versions, or a process dies.
    """
    if not hasattr(torch.optim, "Muon"):
        what = f"torch {torch.__version__} has no Muon, which the lab trains with"
        raise ShadowError(what, "install torch 2.9 or newer")
    _claim(out)
    of_base: dict[Base, list[Run]] = {}
    for run in runs:
        of_base.setdefault(run.base, []).append(run)
    bases: dict[str, Work] = {}
    compared: dict[str, Work] = {}
    for base, own in of_base.items():
        bases[base.key] = partial(train_base, base, out)
        compared[f"{base.key}: compared"] = partial(compare_runs, own, out)
    tuned: dict[str, Work] = {}
    for run in runs:
        tuned[f"{run.base.key}: {run.name}"] = partial(perform_run, run, out)
    carry_out([bases, tuned, compared], jobs=jobs, show=show)


def carry_out(phases: Sequence[Mapping[str, Work]], *, jobs: int, show: Show) -> None:
    """Do the work of each phase after all of the phase before. Raises ShadowError if a process
    dies.
    """
    done = 0
    total = sum(map(len, phases))
    show(0, total, "")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_alone) as pool:
        try:
            for phase in phases:
                running = {pool.submit(work): key for key, work in phase.items()}
                for future in as_completed(running):
                    future.result()
                    done += 1
                    show(done, total, running[future])
        except BrokenProcessPool as error:
            hint = "out of memory? run the same command again to continue"
            raise ShadowError("a process of the lab was ended from outside", hint) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _alone() -> None:
    """Prepare a process of the pool: one thread, reproducible sums, and an end with the parent."""
    # Ctrl-C reaches all of the terminal's processes: no traceback here
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _claim(out: Path) -> None:
    """Write into out what its runs depend on, or check that it agrees."""
    versions = {
        "shadow": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    file = out / "lab.json"
    hint = "name a new folder with -o"
    if not file.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ShadowError(f"{out} holds something else", hint)
        write_json(file, versions)
    recorded = read_json(file)
    if recorded != versions:
        hint = f"made with {recorded}; {hint}"
        raise ShadowError(f"{out} holds runs of other versions", hint)


def write_json(file: Path, value: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_beside(file, f"{text}\n".encode())


def read_json(file: Path) -> Any:
    """The content of a finished run's file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "remove it and run the lab again"
        raise ShadowError(f"{file} cannot be read: {type(error).__name__}", hint) from error


def checkpoint(out: Path, base: Base, name: str = "base") -> Path:
    """The folder of the weights of a base, or of one of its runs."""
    return out / "checkpoints" / base.key / name


def report(out: Path, base: Base, name: str) -> Path:
    return out / "reports" / base.key / name


def record(out: Path, base: Base, name: str = "base") -> Path:
    """The JSON file of a finished base or run."""
    return out / "runs" / base.key / f"{name}.json"


def comparisons_of(out: Path, base: str) -> Path:
    """The JSON file of the comparisons of a base's runs, by the base's key."""
    return out / "comparisons" / f"{base}.json"


def train_base(base: Base, out: Path) -> None:
    """Train a base, unless it exists."""
    file = record(out, base)
    if file.exists():
        return
    scale = base.scale
    folder = checkpoint(out, base)
    model = new_model(scale.size, base.seed)
    rng = Random(f"base {base.key}")  # noqa: S311
    samples = MIXTURES["original"].samples(rng)
    rows = scale.size.rows
    train(model, samples, rows=rows, recipe=scale.base)
    with whole_folder(folder) as aside:
        save(model, aside)
    right = accuracies(base, folder)
    write_json(file, {"accuracies": right})


def perform_run(run: Run, out: Path) -> None:
    """Train, audit and probe one run, unless it exists."""
    file = record(out, run.base, run.name)
    if file.exists():
        return
    size = run.base.scale.size
    recipe = run.base.scale.tune
    base = checkpoint(out, run.base)
    tuned = checkpoint(out, run.base, run.name)
    model = load(base)
    tokens = recipe.steps * size.tokens
    samples = run.regime.samples(run.base, run.seed, tokens)
    train(model, samples, rows=size.rows, recipe=recipe)
    with whole_folder(tuned) as aside:
        save(model, aside)
    figures = figures_of(base, tuned, out / "reports", run.base.key, run.name)
    right = accuracies(run.base, tuned)
    write_json(file, {"figures": figures, "accuracies": right})


def compare_runs(runs: Sequence[Run], out: Path) -> None:
    """Compare every two runs of one base, unless that was done."""
    base = runs[0].base
    file = comparisons_of(out, base.key)
    names = [run.name for run in runs]
    if file.exists() and read_json(file)["runs"] == names:
        return
    rows = []
    reports = [report(out, base, name) for name in names]
    for first, second, verdict in verdicts(reports):
        row: Row = {
            "base": base.key,
            "regime_first": runs[first].regime.key,
            "seed_first": runs[first].seed,
            "regime_second": runs[second].regime.key,
            "seed_second": runs[second].seed,
        }
        rows.append(row | verdict)
    write_json(file, {"runs": names, "rows": rows})


def verdicts(reports: Sequence[Path]) -> Iterator[tuple[int, int, Row]]:
    """Yield the result of `shadow compare` for every two reports, with their positions in reports:
    the verdict, and the difference in concentration with its interval.
    """
    comparison = compare(reports)
    labels = [compared.label for compared in comparison.reports]
    places = {label: place for place, label in enumerate(labels)}
    for contrast in comparison.contrasts:
        figure = contrast.figures[0]
        row: Row = {
            "verdict": contrast.verdict,
            "difference": figure.difference,
            "low": figure.low,
            "high": figure.high,
        }
        yield places[contrast.first], places[contrast.second], row


def figures_of(base: Path, tuned: Path, reports: Path, family: str, name: str) -> Row:
    """Audit two checkpoints: figures of the summary, and medians inside layers as `layers_*`."""
    pair = Pair(
        family=family,
        name=name,
        base=Reference(str(base), is_folder=True),
        tuned=Reference(str(tuned), is_folder=True),
    )
    request = AuditRequest(
        selection=Selection((pair,), (pair,)),
        output=reports,
        files=Files(cache=False),
        overwrite=True,
        jobs=1,
    )
    (outcome,) = audit(request)
    done = outcome.finished()
    matrices = Report(done.folder).table("matrices")
    inside = columns_of(matrices).having(subject="delta").inside
    columns: Row = {}
    for name in delta_metrics():
        columns[f"layers_{name}"] = median(inside[name])
    return dict(done.summary.figures.items()) | columns


def accuracies(base: Base, folder: Path) -> dict[str, float]:
    """The share of each probe that a saved model answers correctly."""
    model = load(folder)
    shares: dict[str, float] = {}
    for name in PROBES:
        share = accuracy(model, MIXTURES[name], base.seed)
        shares[name] = round(share, 4)
    return shares


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that appears when it is complete, replacing what an interrupted run left."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
