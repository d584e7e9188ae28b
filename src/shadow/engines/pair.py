"""The audit of one pair into one folder: a function of the pair, the settings and the folder.

A pair may be several tasks: split at base shards, measured anywhere, written by one process. Each
part has its own journal in `.partial/parts/` of the report's folder, so that it can continue after
being killed. The process that asked for the parts collects their outcomes when they end, and writes
the same report as if it had worked alone.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

import numpy
import torch

from shadow.checkpoints.opening import Checkpoint, listings_of
from shadow.checkpoints.pairing import Filter, MatrixPair, Partners
from shadow.checkpoints.sources import Source, WholeFile
from shadow.engines.engine import NOT_SHARED, Engine, Task, completed, require_sight
from shadow.engines.finished import AuditResult, finished, say_again, standing
from shadow.errors import BusyError, KeptError, ShadowError
from shadow.files import PARTIAL, nearest_folder, remove_empty, report_folder
from shadow.relations.matching import ReadTokens
from shadow.reports.folders import replacing
from shadow.reports.provenance import ReportMetadata, RunMetadata
from shadow.run.correspondence import Matching, facts
from shadow.run.file_rows import file_rows, tokens_of
from shadow.run.journal import JOURNAL, PARTS, Fetched, Journal, MatrixOutcome
from shadow.run.machine import kinds, lacking, machine_limits
from shadow.run.plan import Plan, Summed, in_order, make_plan, shards_of, summed_with
from shadow.run.rows import with_contents, write_tables
from shadow.run.runtime import AlignedPair, PairRequest, Progress, Runtime, size_of
from shadow.run.settings import CPU, Settings
from shadow.run.sides import (
    align,
    client_for,
    find_sides,
    identity,
    line_up,
    pickled_part,
    references_of,
    side_of,
)
from shadow.run.spectrum_cache import SpectrumCache
from shadow.run.workers import cost, in_workers, jobs_of, outcome_of
from shadow.spectra.costs import cost_of
from shadow.spectra.device import OnDevice
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import ON_CPU, Workspace
from shadow.targets.families import Pair
from shadow.targets.references import Reference
from shadow.telling.reading import finish
from shadow.text import byte_size

Made = TypeVar("Made")
# byte ranges and raw copies of old `.bin` files, inside .partial while an audit runs
SCRATCH = "scratch-"
NOT_SEEN = f"{NOT_SHARED}; if -o is a URL, SHADOW_WORK_DIR must be such a folder"
POLL = 1.0  # seconds between two looks at whether another audit of the pair has ended


def run_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
) -> AuditResult:
    """Audit one pair into `output/<family>/<pair>/` and return its report.

    The result depends only on pair, settings and output, and the files that they name: it prints
    nothing and keeps no state. Its arguments, result and errors can be pickled, so any engine may
    map it over pairs, in processes or on machines that share the folder.

    Continues where an interrupted run of the same pair, settings and version stopped; measures
    nothing if the report already exists, even from another version. Raises KeptError if a report of
    other settings or files exists and stays, UsageError if the model has nothing of what was
    chosen, and otherwise ShadowError; no half-written report is ever left.
    """
    folder = output / report_folder(pair.family, pair.name)
    existing = nearest_folder(output)
    try:
        with _asked(pair, settings, folder, runtime) as request:
            # what another audit of the pair has measured by then is not measured again
            return when_free(partial(_audit, request), runtime)
    finally:
        remove_empty(folder.absolute() / PARTIAL, existing)


def measure_part(
    pair: Pair,
    settings: Settings,
    identity: ReportMetadata,
    keys: Collection[str],
    partners: Partners,
    folder: Path,
    runtime: Runtime,
) -> Path:
    """Measure the pairs with these keys into a journal in folder, which is returned.

    Continues where it was stopped. Raises ShadowError like run_pair, and if this machine does not
    see the journal of the pair, or has other files than the identity.
    """
    fault = f"{folder.parents[2]}: another machine does not see this folder"
    require_sight((folder.parents[1] / JOURNAL).is_file, fault, NOT_SEEN)
    with _asked(pair, settings, folder, runtime) as request:
        base, tuned = find_sides(pair, runtime, request.scratch)
        for side, wanted in ((base, identity["base"]), (tuned, identity["tuned"])):
            if side_of(side) != wanted:
                fault = f"{side.reference}: another machine has other files under this name"
                hint = "every machine must see the same files under the same name"
                raise ShadowError(fault, hint)
        aligned = line_up(
            base, tuned, settings.chosen, runtime, scratch=request.scratch, partners=partners
        )
        summed = summed_with(aligned, settings)
        of_part = frozenset(keys)
        part = replace(aligned, pairs=[pair for pair in aligned.pairs if pair.key in of_part])
        with closing(when_free(partial(Journal, folder, identity), runtime)) as journal:
            _measure(request, part, journal, summed)
        return folder


@contextmanager
def _asked(pair: Pair, settings: Settings, folder: Path, runtime: Runtime) -> Iterator[PairRequest]:
    """Make a request with a scratch folder of its own, which a second run must not touch."""
    scratch = folder / PARTIAL / f"{SCRATCH}{secrets.token_hex(4)}"
    try:
        with client_for(references_of(pair)):
            yield PairRequest(pair, settings, runtime, folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def when_free(work: Callable[[], Made], runtime: Runtime) -> Made:
    """Call work when no other process is doing it. Raises BusyError when patience ends."""
    given_up: float | None = None
    while True:
        try:
            return work()
        except BusyError as error:
            now = time.monotonic()
            if given_up is None:
                given_up = now + runtime.patience
                if runtime.patience:
                    runtime.say(f"waiting: {error.message}")
            if now >= given_up:
                raise
            time.sleep(min(POLL, runtime.patience))


def _audit(request: PairRequest) -> AuditResult:
    pair = request.pair
    settings = request.settings
    runtime = request.runtime
    folder = request.folder
    base, tuned = find_sides(pair, runtime, request.scratch)
    wanted = identity(pair, settings, base, tuned)
    report = standing(folder, wanted, runtime)
    if report.result is not None:
        return report.result
    # where that fetches no weights, a filter that the model has nothing of is refused before a
    # report that is in the way
    is_cheap = not pickled_part(base) and not pickled_part(tuned)
    aligned = None
    if not report.other or runtime.overwrite or (settings.chosen != Filter() and is_cheap):
        aligned = line_up(base, tuned, settings.chosen, runtime, scratch=request.scratch)
    if aligned is None or (report.other and not runtime.overwrite):
        message = f"{folder}: the finished report there differs: {report.other}"
        raise KeptError(message, "replace it with --overwrite, or choose another folder with -o")
    if reason := report.other or report.broken:
        runtime.say(f"measuring again; the old report stays until that is done: {reason}")
    ours = folder, folder.parent, folder.parent.parent
    listings = listings_of(base, ours), listings_of(tuned, ours)
    repository = file_rows(*listings, runtime.say)
    del base, tuned  # their headers are in lined, where equal ones are one
    began = datetime.now(UTC)
    started = time.monotonic()
    journal = Journal(folder, wanted)
    try:
        if finished(folder).metadata != report.metadata:
            raise BusyError(
                f"{folder}: another audit has just ended there", "run the same command again"
            )
        say_again(journal.other, wanted, runtime.say)
        journal.take_over_parts()
        aligned, matching, measured = _measured(
            request, aligned, journal, lambda: [tokens_of(side, runtime.say) for side in listings]
        )
        if matching.partners:
            wanted = {**wanted, "correspondence": facts(matching, aligned)}
        sources = [*aligned.base.sources.values(), *aligned.tuned.sources.values()]
        run = _run_metadata(settings, began, time.monotonic() - started)
        with replacing(folder) as staged:
            files, contents = write_tables(
                staged.path,
                request.scratch,
                wanted,
                aligned.pairs,
                aligned.skipped,
                journal.outcomes,
                spectra=settings.spectra,
                repository=repository,
            )
            del aligned  # the headers: the summary takes as much again
            summary, metadata = finish(staged, files, with_contents(wanted, contents), run)
            for source in sources:
                source.require_unchanged()
    except BaseException:
        if journal.is_empty:
            journal.remove()
        else:
            journal.close()
        raise
    journal.remove()
    return AuditResult(folder, summary, measured=measured, provenance=metadata)


def _measured(
    request: PairRequest, aligned: AlignedPair, journal: Journal, tokens: ReadTokens
) -> tuple[AlignedPair, Matching, int]:
    """Measure a pair by number; where numbers fail, what corresponds instead. Returns it as it is
    aligned at last, what corresponds, and the number of matrices that were measured.

    tokens: reads those of both sides.
    """
    matching = Matching(request.runtime, request.scratch / "signatures", tokens)
    settings = request.settings
    outcomes: Mapping[str, MatrixOutcome] | None = None
    measured = 0
    sources = [*aligned.base.sources.values(), *aligned.tuned.sources.values()]
    may_seek = not settings.by_number and aligned.tuned.adapter is None
    # first, if nothing has to be fetched twice
    is_sought = may_seek and not any(source.bytes_to_move() for source in sources)
    while True:
        if is_sought and matching.extend(aligned, outcomes):
            aligned = align(aligned.base, aligned.tuned, settings.chosen, matching.partners)
            count = sum(pair.matched_by != "number" for pair in aligned.pairs)
            if count:
                what = f"{count} matrices and vectors are compared with what they correspond to"
                request.runtime.say(f"parts have other numbers: {what}")
        elif outcomes is not None:
            return aligned, matching, measured
        is_first = outcomes is None
        measured += _measure(request, aligned, journal, is_first=is_first)
        outcomes = journal.outcomes
        is_sought = may_seek


def _measure(
    request: PairRequest,
    aligned: AlignedPair,
    journal: Journal,
    summed: Summed | None = None,
    *,
    is_first: bool = True,
) -> int:
    """Measure what the journal lacks; return the number of matrices. summed: see `summed_with`.
    is_first: what is there already is of an earlier run.
    """
    if summed is None:
        summed = summed_with(aligned, request.settings)
    runtime = request.runtime
    method = request.settings.method
    done = [pair for pair in aligned.pairs if pair.key in journal.outcomes]
    matrices, resumed = (sum(pair.is_matrix for pair in pairs) for pairs in (aligned.pairs, done))
    if resumed and is_first:
        runtime.say(f"resuming: {resumed} of {matrices} matrices already measured")
    if runtime.elsewhere is not None:
        runtime.elsewhere(request, aligned, journal)
        return matrices - resumed
    plan = _planned(request, aligned, journal)

    def note(source: Source) -> None:
        if isinstance(source, WholeFile) and (source.bytes_to_move() or not source.keep):
            journal.note_fetched(Fetched(*source.identity, source.file.checksum, source.keep))

    cache = None if runtime.cache is None else SpectrumCache(runtime.cache)
    remember = None if cache is None else cache.remember
    of_memory = kinds(aligned.pairs)
    if fault := lacking(of_memory, runtime.limits or machine_limits(), method):
        raise fault
    jobs = jobs_of(runtime, of_memory, method)
    device = request.settings.device
    grams = ON_CPU if device == CPU else OnDevice(device.place, device.name)
    means = Means(method, Workspace(), remember, grams)
    measure = partial(outcome_of, base=plan.base, tuned=plan.tuned, means=means, summed=summed)
    # What has not begun is given up as soon as anything goes wrong.
    with closing(in_workers(plan, measure, runtime, jobs, done=done, note=note)) as outcomes:
        for outcome in outcomes:
            journal.add(outcome)
    if cache is not None and cache.hits:
        size = byte_size(size_of(cache.folder))
        runtime.say(
            f"{cache.hits} of {cache.lookups} spectra came from the cache ({cache.folder}, {size})"
        )
    return matrices - resumed


def _planned(request: PairRequest, aligned: AlignedPair, journal: Journal) -> Plan:
    """Plan what is left, after removing what an earlier run left on the disk and in the cache."""
    for left in request.scratch.parent.glob(f"{SCRATCH}*"):
        if left != request.scratch:
            shutil.rmtree(left, ignore_errors=True)
    if journal.fetched:
        from shadow.checkpoints.hub import remove_leftovers

        for fetched in journal.fetched:
            remove_leftovers(fetched.repo, fetched.checksum)
    plan = make_plan(
        aligned,
        request.runtime.access,
        folder=journal.folder,
        scratch=request.scratch,
        filtered=request.settings.chosen != Filter(),
        done=journal.outcomes,
        ours={
            (shard.repo, shard.commit, shard.path) for shard in journal.fetched if not shard.keep
        },
    )
    plan.require_disk()
    if plan.to_move:
        freed = why = ""
        if plan.frees:
            freed = f", freed after use: at most {byte_size(plan.peak)} on the disk at a time"
            if request.runtime.access.max_disk is None:
                why = f" ({byte_size(plan.free)} are free)"
        request.runtime.say(f"fetching {byte_size(plan.to_move)}{freed}{why}")
    needed = {visit.shard for visit in plan.work.visits}
    for side, checkpoint in (("base", plan.base), ("tuned", plan.tuned)):
        for shard, source in checkpoint.sources.items():
            if isinstance(source, WholeFile) and not source.keep and (side, shard) not in needed:
                source.discard()
    return plan


def _run_metadata(settings: Settings, began: datetime, seconds: float) -> RunMetadata:
    method = settings.method
    cost = cost_of(method)
    vectors = method.has_spectra and method.subjects == "all"
    run: RunMetadata = {
        "compute_dtype": f"{cost.computed}, float64 vectors" if vectors else cost.computed,
        "device": settings.device.kind,
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "started": began.isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
    }
    if settings.device != CPU:
        run["device_use"] = {"name": settings.device.name}
    return run


@dataclass(frozen=True)
class Parts:
    """Division of a pair into parts."""

    engine: Engine
    count: int | None = None
    """None: as many as the engine carries out at a time. There may be fewer (see `cut`)."""

    def measure(self, request: PairRequest, aligned: AlignedPair, journal: Journal) -> None:
        """Measure what the journal lacks, and add it. Raises the errors of parts."""
        left = [pair for pair in aligned.pairs if pair.key not in journal.outcomes]
        measured = [pair for pair in aligned.pairs if pair.key in journal.outcomes]
        is_filtered = request.settings.chosen != Filter()
        # what comes in byte ranges is decided over a whole pair
        count = 1 if is_filtered else self.count or self.engine.lanes()
        sources = (*aligned.base.sources.values(), *aligned.tuned.sources.values())
        parts = cut(left, count, is_fetched=not all(source.is_local for source in sources))
        if len(parts) > 1:
            request.runtime.say(f"measuring in {len(parts)} parts")
        runtime = request.runtime
        before = Progress(
            len(measured),
            len(aligned.pairs),
            sum(map(cost, measured)),
            sum(map(cost, aligned.pairs)),
        )
        recorded: dict[str, Progress] = {}

        def show(name: str, state: Progress) -> None:
            """Show the progress of all parts as that of their pair."""
            recorded[name] = state
            every = [before, *recorded.values()]
            together = replace(
                before,
                done=min(before.total, sum(progress.done for progress in every)),
                cost_done=min(before.cost_total, sum(progress.cost_done for progress in every)),
                moved=sum(progress.moved for progress in every),
                to_move=sum(progress.to_move for progress in every),
            )
            runtime.show(together)

        runtime.show(before)
        commits = {**runtime.commits, **_commits(request.pair, aligned)}
        sizes = {}  # matrices of each part; their keys are long
        for number, part in enumerate(parts, 1):
            name = f"part {number} of {len(parts)}"
            keys = tuple(pair.key for pair in part)
            sizes[name] = len(part)
            digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
            folder = journal.folder / PARTS / digest
            work = partial(
                measure_part,
                request.pair,
                request.settings,
                journal.identity,
                keys,
                aligned.partners,
                folder,
            )
            own = runtime.prefixed(f"{name}: ") if len(parts) > 1 else runtime
            own = replace(own, commits=commits, elsewhere=None, show=partial(show, name))
            self.engine.submit(Task(name, work, partial(replace, own), name))
        # Another machine may hold its journal, such as one that was lost with the part: a network
        # file system lets go of its locks after a minute or two.
        with closing(
            completed(self.engine, lambda ended: isinstance(ended.fault, BusyError))
        ) as ended_tasks:
            for ended in ended_tasks:
                if ended.fault is not None:
                    raise ended.fault
                name = ended.task.name
                _take_over(ended.result, sizes[name], journal)
                if last := recorded.get(name):  # its last words may have been lost
                    show(name, replace(last, done=last.total, cost_done=last.cost_total))


def _take_over(folder: Path, count: int, journal: Journal) -> None:
    """Copy `count` outcomes of a part, perhaps written elsewhere. Raises ShadowError."""
    wanted = len(journal.outcomes) + count

    def is_taken_over() -> bool:
        if (folder / PARTIAL).is_dir():
            journal.take_over(folder)
        return len(journal.outcomes) >= wanted

    fault = f"{folder}: the part was measured on another machine, and is not here"
    require_sight(is_taken_over, fault, NOT_SEEN)


def cut(pairs: Sequence[MatrixPair], count: int, *, is_fetched: bool) -> list[list[MatrixPair]]:
    """Split the ordered work into at most `count` runs of about equal cost.

    is_fetched: split only where the shard of the base changes, so that it is fetched once.
    """
    ordered = in_order(pairs)
    spent = [0, *accumulate(map(cost, ordered))]
    shards = [shards_of(pair)[0] for pair in ordered]
    places = [at for at in range(1, len(ordered)) if not is_fetched or shards[at] != shards[at - 1]]
    borders = {0, len(ordered)}
    for number in range(1, count if places else 1):
        middle = spent[-1] * number / count
        borders.add(min(places, key=lambda place: abs(spent[place] - middle)))
    return [ordered[start:stop] for start, stop in pairwise(sorted(borders))]


def _commits(pair: Pair, aligned: AlignedPair) -> dict[Reference, str]:
    """The commits of the sides on the Hub, as opened here."""
    commits: dict[Reference, str | None] = {}
    for reference, checkpoint in ((pair.base, aligned.base), (pair.tuned, aligned.tuned)):
        opened: dict[str | None, Checkpoint] = {**dict(checkpoint.parts)}
        for component, part in reference.parts:
            commits[part] = opened.get(component, checkpoint).commit
    return {reference: commit for reference, commit in commits.items() if commit is not None}
