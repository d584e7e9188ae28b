"""The audit of one pair into one folder: a function of the pair, the settings and the folder."""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy
import torch

from shadow import __version__
from shadow.audits import details
from shadow.audits.cache_folder import size_of
from shadow.audits.devices import CPU, DeviceChoice, in_words, open_device, told
from shadow.audits.finished import differences, named
from shadow.audits.journal import Fetched, Journal, alone_at, remove_journal_of
from shadow.audits.machine_limits import MachineLimits, machine_limits
from shadow.audits.outcome import Outcome
from shadow.audits.plan import (
    Access,
    Needs,
    PairPlan,
    Plan,
    describe,
    make_plan,
    require_disk_for_pickles,
    uncollected,
)
from shadow.audits.rows import write_tables
from shadow.audits.spectrum_cache import SpectrumCache
from shadow.audits.workers import (
    cost,
    default_jobs,
    largest_side,
    measure_pairs,
    pace,
    worker_memory,
)
from shadow.checkpoints.opening import (
    Assembled,
    Checkpoint,
    Found,
    Located,
    combine,
    locate,
    open_folder,
    open_located,
    sharing,
)
from shadow.checkpoints.pairing import Filter, MatrixPair, Side, Skipped, pair_checkpoints
from shadow.checkpoints.sources import Fetching, Source, WholeFile
from shadow.comparing.gains import NO_SCORES, Scored, join
from shadow.comparing.kept_scores import kept_bytes, read_kept
from shadow.comparing.scored_sides import neither, sides_of
from shadow.comparing.scores import ScoreFiles
from shadow.errors import BusyError, KeptError, ShadowError
from shadow.files import PARTIAL, nearest_folder, remove_empty, safe_name
from shadow.reasons import STRICT
from shadow.reports.atomic_replacement import KEPT, TABLES_OF_A_PAIR, Staged, replacing
from shadow.reports.columns import SCHEMA
from shadow.reports.metadata import (
    CheckpointMetadata,
    JudgedMetadata,
    ReportMetadata,
    RunMetadata,
    SettingsMetadata,
)
from shadow.reports.parquet import TableFile, rewritten
from shadow.reports.provenance import (
    Identity,
    finished_metadata,
    refuse_remains,
    require_tables,
)
from shadow.reports.report import Report
from shadow.reports.tables import absent_note
from shadow.spectra.delta import Method
from shadow.spectra.device import Offload, device_memory
from shadow.spectra.spectrum import solve_anew
from shadow.summary.summary import Summary, read_summary, summarise, with_scores
from shadow.summary.summary_file import FILE as SUMMARY
from shadow.summary.summary_file import SUMMARISED, seal, summary_bytes
from shadow.targets.families import Pair
from shadow.targets.references import ComponentBase, Reference, as_folder
from shadow.text import byte_size, took

Made = TypeVar("Made")
# byte ranges and raw copies of old `.bin` files, inside .partial while an audit runs
SCRATCH = "scratch-"
POLL = 1.0  # seconds between two looks at whether another audit of the pair has ended
PROCESS = 400_000_000  # bytes of memory of Python, torch and pandas before any matrix, measured


@dataclass(frozen=True)
class Settings:
    """Everything about an audit that its numbers or files depend on, except the two checkpoints."""

    method: Method
    """How spectra are computed."""

    chosen: Filter
    """Which matrices are measured."""

    spectra: bool = True
    """Are singular values written?"""

    optimizer: str | None = None
    """What the tuned side was trained with, as the user says: adamw, sgd, muon or None. The label
    alone depends on it.
    """

    device: DeviceChoice = CPU
    """Where Gram matrices are made. Of it the kind alone is a setting of the report."""

    def as_json(self) -> SettingsMetadata:
        """What a report says of them.

        Of the device nothing where it is the CPU, as in reports before this setting.
        """
        as_in_files: SettingsMetadata = json.loads(
            json.dumps({**asdict(self), "device": self.device.kind})
        )
        if self.device.kind == CPU.kind:
            del as_in_files["device"]
        return as_in_files


# what a report was made with that does not say so, being older than the setting
DEFAULTS: SettingsMetadata = {
    **Settings(Method(), Filter()).as_json(),
    "relation": "tuned",
    "device": "cpu",
}


@dataclass(frozen=True)
class Progress:
    """Told before the first and after every matrix, and as bytes come."""

    done: int
    """Tensors that are measured, 0 to total."""

    total: int
    """Tensors to measure; 0 while `.bin` files are fetched, of which nothing is known before."""

    cost_done: int
    """What the measured ones cost, in the units of `shadow.audits.workers.cost`, 0 to cost_total.
    """

    cost_total: int
    """What all of them cost, in the same units."""

    moved: int = 0
    """Bytes of weights that came over the network, 0 to to_move."""

    to_move: int = 0
    """Bytes of weights that have to come over the network; 0 where all are on this machine."""


def tell_nobody(_: object) -> None:
    """Who is told where nobody wants to be.

    A function with a name, so that a Runtime can be pickled.
    """


class Measuring(Protocol):
    """Measures a pair elsewhere."""

    def measure(self, asked: Asked, lined: AlignedPair, journal: Journal) -> None:
        """Measure what the journal does not hold yet, into the journal.

        Raises what went wrong there.
        """


@dataclass(frozen=True)
class Runtime:
    """How an audit runs, and who is told of it. No number and no file depends on it.

    It can be pickled where say, detail and show can: as they stand here, or functions of a module.
    """

    jobs: int | None = None
    """Workers, 1 or more; None: as many as there are cores, or as fit the memory."""

    access: Access = field(default_factory=Access)
    """How checkpoints may be read."""

    overwrite: bool = False
    """Is a finished report of other settings, files or another version replaced, when the new one
    is complete?
    """

    limits: MachineLimits | None = None
    """The cores and the memory that it may use; None: what this process may."""

    commits: Mapping[Reference, str] = field(default_factory=dict, hash=False)
    """Of references to the Hub: the commits to read, where those were looked up before."""

    patience: float = 0.0
    """Seconds to wait for another audit of the same pair, 0 or more; after that it is refused."""

    elsewhere: Measuring | None = None
    """Measures a pair instead of this process (see `shadow.audits.parts`); None: this process does.
    """

    cache: Path | None = None
    """The folder of spectra that were solved before (see shadow.audits.spectrum_cache); None: none
    are remembered.
    """

    say: Callable[[str], None] = tell_nobody
    """Gets one line for people now and then."""

    detail: Callable[[str], None] = tell_nobody
    """Gets a line for whatever happens: each side, each matrix, where the time went."""

    show: Callable[[Progress], None] = tell_nobody
    """Gets the progress."""


@dataclass(frozen=True)
class AuditResult:
    """A finished report."""

    folder: Path
    """Where it lies."""

    summary: Summary
    """What its summary.json says."""

    measured: int
    """Matrices that this run measured itself; 0 when the report was there."""

    provenance: ReportMetadata
    """The `shadow` key of its files."""

    url: str | None = None
    """Where it was published; then folder need not be there any more. None: it is in folder alone.
    """

    @property
    def place(self) -> str:
        """Where it is read from: its URL, else its folder."""
        return self.url or str(self.folder)

    @property
    def should_not_have_skipped(self) -> list[str]:
        """Reasons that `--strict` objects to."""
        return [row.reason for row in self.summary.skipped if row.reason in STRICT]


@dataclass(frozen=True)
class AlignedPair:
    """A pair whose checkpoints are open and lined up. No weight has been read."""

    base: Checkpoint
    """The base, its headers read."""

    tuned: Checkpoint
    """The tuned side, likewise."""

    pairs: list[MatrixPair]
    """Matrices and vectors that are measured."""

    skipped: list[Skipped]
    """A tensor of either side for each that is not."""


def run_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),
    *,
    scores: ScoreFiles | None = None,
) -> AuditResult:
    """Audit one pair into `output/<family>/<pair>/` and return its report.

    A function of pair, settings and output, and of the files that they name: it prints nothing and
    keeps nothing for the next call. Its arguments, its result and its faults can be pickled, so
    that any engine may map it over pairs, in processes or on machines that share the folder.

    Goes on where an interrupted run of the same pair, settings and version stopped; measures
    nothing when the report is already there, also if another version made it. scores and the
    optimiser of settings join the report beside its numbers, which do not depend on them. Raises
    KeptError where a report of other settings or files is there and stays, UsageError where the
    model has nothing of what was chosen, and else ShadowError; whatever happens, no half-written
    report is left.
    """
    folder = output / safe_name(pair.family) / safe_name(pair.name)
    there = nearest_folder(output)
    scratch = folder / PARTIAL / _scratch_name()
    audit = Asked(pair, settings, runtime, scores=scores, folder=folder, scratch=scratch)
    try:
        with _client_for(pair):
            # what another audit of the pair has measured by then is not measured again
            return when_free(partial(_run, audit), runtime)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        remove_empty(folder.absolute() / PARTIAL, there)


@dataclass(frozen=True)
class Asked:
    """What `run_pair` was asked for, and where it works."""

    pair: Pair
    """The pair."""

    settings: Settings
    """What the numbers depend on."""

    runtime: Runtime
    """How the audit runs."""

    scores: ScoreFiles | None
    """Scores of the pair, if there are any."""

    folder: Path
    """That of the report."""

    scratch: Path
    """For byte ranges and raw copies, removed at the end."""


def measure_part(
    pair: Pair,
    settings: Settings,
    identity: Identity,
    keys: Collection[str],
    folder: Path,
    runtime: Runtime,
) -> Path:
    """Measure the matrix pairs with these keys into a journal of their own, in folder, and return
    the folder.

    Goes on where it was stopped. Raises ShadowError as run_pair does, and where the checkpoints are
    not those of the identity, as on a machine that has other files.
    """
    asked = Asked(
        pair,
        settings,
        runtime,
        scores=None,
        folder=folder,
        scratch=folder / PARTIAL / _scratch_name(),
    )
    try:
        with _client_for(pair):
            base = find_checkpoint(pair.base, runtime, asked.scratch / "base")
            tuned = find_checkpoint(pair.tuned, runtime, asked.scratch / "tuned")
            for found, wanted in ((base, identity.base), (tuned, identity.tuned)):
                if _side(found) != wanted:
                    hint = "every machine must see the same files under the same name"
                    raise ShadowError(
                        f"{found.reference}: it is not the same on another machine", hint
                    )
            lined = line_up(base, tuned, settings.chosen, runtime, scratch=asked.scratch)
            journal = when_free(partial(Journal, folder, identity), runtime)
            of_part = frozenset(keys)
            try:
                _measure(
                    asked,
                    replace(lined, pairs=[one for one in lined.pairs if one.key in of_part]),
                    journal,
                )
            finally:
                journal.close()
            return folder
    finally:
        shutil.rmtree(asked.scratch, ignore_errors=True)


def _scratch_name() -> str:
    """Of one run alone: a second, which the journal refuses, must not take what the first reads."""
    return f"{SCRATCH}{secrets.token_hex(4)}"


def plan_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),
) -> PairPlan:
    """What `run_pair` would do and take, from headers alone.

    Writes nothing but small files into the Hub's cache. Raises ShadowError where run_pair would
    before it measures.
    """
    folder = output / safe_name(pair.family) / safe_name(pair.name)
    with tempfile.TemporaryDirectory() as unpacked, _client_for(pair):
        sides: dict[Side, Found] = {
            "base": find_checkpoint(pair.base, runtime, Path(unpacked) / "base"),
            "tuned": find_checkpoint(pair.tuned, runtime, Path(unpacked) / "tuned"),
        }
        for side in sides.values():
            for part in dict(side.parts).values() if isinstance(side, Assembled) else [side]:
                _refuse_pickles(part)
        lined = line_up(
            sides["base"], sides["tuned"], settings.chosen, runtime, scratch=Path(unpacked)
        )
        plan = make_plan(
            lined.base,
            lined.tuned,
            lined.pairs,
            runtime.access,
            skipped=len(lined.skipped),
            filtered=settings.chosen != Filter(),
            folder=folder,
            scratch=folder,
        )
        machine = machine_limits()
        workers = runtime.jobs or default_jobs(lined.pairs, machine)
        device = open_device(settings.device)
        offload = None if device is None else Offload(device, runtime.say)
        work = sum(cost(matrix) for matrix in lined.pairs if matrix.is_matrix)
        seconds = work / pace(settings.method, workers, offload)
        needs = Needs(
            jobs=workers,
            cores=machine.cores,
            cores_by=machine.cores_by,
            memory_free=machine.memory,
            memory_by=machine.memory_by,
            memory=PROCESS + workers * worker_memory(lined.pairs),
            seconds=round(seconds, 1),
            device=settings.device.kind,
            device_name=settings.device.name,
            device_memory=(
                None if device is None else device_memory(largest_side(lined.pairs), workers)
            ),
            device_memory_free=None if device is None else device.free_memory(),
        )
        return describe(pair, sides, plan, pairs=lined.pairs, skipped=lined.skipped, needs=needs)


def _client_for(pair: Pair) -> contextlib.AbstractContextManager[None]:
    """The Hub's client, held for both sides of a pair.

    It is not even imported where all is in folders.
    """
    sides = (pair.base, pair.tuned)
    parts = [
        dict(side.parts).values() if isinstance(side, ComponentBase) else [side] for side in sides
    ]
    return client_for([reference for group in parts for reference in group])


def client_for(references: Sequence[Reference]) -> contextlib.AbstractContextManager[None]:
    """The Hub's client, held while these are read; where all are folders it is not imported."""
    if all(reference.is_folder for reference in references):
        return contextlib.nullcontext()
    try:
        from shadow.checkpoints.hub_client import own_client
    except ValueError as error:  # of the client, which reads them when it is imported
        hint = "check HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        raise ShadowError(f"the Hub's client cannot use a setting: {error}", hint) from error
    return own_client()


def _refuse_pickles(found: Checkpoint | Located) -> None:
    if isinstance(found, Located) and found.weights.pickled:
        need = sum(found.snapshot.files[shard].size for shard in found.weights.shards)
        raise ShadowError(
            f"{found.reference}: listing its .bin files needs a download of {byte_size(need)}",
            "`shadow audit --allow-pickle` downloads and reads them",
        )


def when_free(work: Callable[[], Made], runtime: Runtime) -> Made:
    """What work returns, when nobody else is at work on the same; it is done again until then.

    Raises BusyError when somebody has been for as long as the runtime is patient.
    """
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


def identity_of(pair: Pair, settings: Settings, runtime: Runtime = Runtime()) -> Identity:
    """What a report of the pair would be of: commits and files as they are now.

    No weight is fetched.
    """
    with tempfile.TemporaryDirectory() as unpacked, _client_for(pair):
        base = find_checkpoint(pair.base, runtime, Path(unpacked) / "base")
        tuned = find_checkpoint(pair.tuned, runtime, Path(unpacked) / "tuned")
        return _identity(pair, settings, base, tuned)


def _identity(pair: Pair, settings: Settings, base: Found, tuned: Found) -> Identity:
    return Identity(
        version=__version__,
        schema=SCHEMA,
        family=pair.family,
        pair=pair.name,
        base=_side(base),
        tuned=_side(tuned),
        settings={**settings.as_json(), "relation": pair.relation},
    )


def _run(audit: Asked) -> AuditResult:
    pair, settings, runtime = audit.pair, audit.settings, audit.runtime
    opening = _Clock()
    base = find_checkpoint(pair.base, runtime, audit.scratch / "base")
    tuned = find_checkpoint(pair.tuned, runtime, audit.scratch / "tuned")
    runtime.detail(details.of_found("base", base))
    runtime.detail(details.of_found("tuned", tuned))
    told = details.of_settings(
        settings.method, settings.chosen, spectra=settings.spectra, optimizer=settings.optimizer
    )
    runtime.detail(told)
    identity = _identity(pair, settings, base, tuned)
    scored = None if audit.scores is None else _scored(audit.scores, identity, pair)
    there, broken = _finished(audit.folder)
    other = [] if there is None else differences(there, identity, DEFAULTS)
    if there is not None and not other:
        done, broken = _already_done(audit.folder, there, identity, runtime)
        if done is not None:
            return _renewed(done, identity, scored, runtime.say)
    # a filter that the model has nothing of is told before a report that is in the way, where that
    # fetches no weights
    lined = None
    tells_of_filter = (
        settings.chosen != Filter() and not _is_pickled(base) and not _is_pickled(tuned)
    )
    if not other or runtime.overwrite or tells_of_filter:
        lined = line_up(base, tuned, settings.chosen, runtime, scratch=audit.scratch)
    del base, tuned  # their headers are in lined, where equal ones are one
    if lined is None or (other and not runtime.overwrite):
        message = f"{audit.folder}: the finished report there differs: {named(other)}"
        raise KeptError(message, "replace it with --overwrite, or choose another folder with -o")
    if other or broken:
        reason = named(other) or broken
        runtime.say(f"measuring again; the old report stays until that is done: {reason}")
    opened = opening.seconds()
    clock = _Clock()
    journal = Journal(audit.folder, identity)
    try:
        if _finished(audit.folder)[0] != there:
            raise BusyError(
                f"{audit.folder}: another audit has just ended there", "run the same command again"
            )
        _tell_afresh(journal, identity, runtime.say)
        journal.take_over_parts()
        measured = _measure(audit, lined, journal)
        if scored is None:
            scored = _kept(audit.folder, identity, runtime.say)
        writing = _Clock()
        run = _run_metadata(settings, clock, journal.outcomes.values())
        with replacing(audit.folder) as staged:
            files, tables = write_tables(
                staged.folder,
                audit.scratch,
                identity,
                lined.pairs,
                lined.skipped,
                journal.outcomes,
                spectra=settings.spectra,
            )
            del lined  # the headers: the summary takes as much again
            plain = summarise(tables, identity.as_json())
            summary, metadata = _finish(staged, files, plain, identity, run=run, scored=scored)
        runtime.detail(
            f"time: {took(opened)} to read headers, {took(writing.seconds())} to write the report"
        )
    except BaseException:
        if journal.is_empty:
            journal.remove()
        else:
            journal.close()
        raise
    journal.remove()
    return AuditResult(audit.folder, summary, measured=measured, provenance=metadata)


class _Clock:
    """When a run began, and how long it has taken."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC)
        self._began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began


def _finish(
    staged: Staged,
    files: Mapping[str, TableFile],
    plain: Summary,
    identity: Identity,
    *,
    run: RunMetadata,
    scored: Scored,
) -> tuple[Summary, ReportMetadata]:
    """Give the closed tables of a report their metadata, and write its other files.

    plain: the summary without scores.
    """
    summary = with_scores(plain, scored)
    paths = {name: file.path for name, file in files.items()}
    metadata: ReportMetadata = {
        **identity.as_json(),
        **run,
        **_judged(plain),
        "seal": seal(plain.as_json(), paths, identity.as_json()),
    }
    for name in TABLES_OF_A_PAIR:
        if name in files:
            files[name].finish(metadata)
        else:
            staged.put(f"{name}.parquet", b"")
    staged.put(SUMMARY, summary_bytes(summary.as_json()))
    staged.put(KEPT, kept_bytes(scored, identity.as_json()) if scored.gains else b"")
    return summary, metadata


def _scored(scores: ScoreFiles, identity: Identity, pair: Pair) -> Scored:
    """The scores of this pair.

    Raises ShadowError, before anything is measured, where they name neither side.
    """
    sides = sides_of(identity.as_json(), pair)
    scored = join(scores, sides)
    if scored is None:
        raise neither(scores, [sides])
    return scored


def _judged(summary: Summary) -> JudgedMetadata:
    """What the metadata of every table tell of a summary.

    Scores, which no table knows of, change nothing in it.
    """
    stated = summary.as_json()
    return {
        "label": stated["label"],
        "label_reason": stated["label_reason"],
        "gates": stated["gates"],
        "claims": stated["claims"],
    }


def _renewed(
    done: AuditResult, identity: Identity, scored: Scored | None, say: Callable[[str], None]
) -> AuditResult:
    """A finished report with the label and the scores that are asked for.

    None of its numbers is measured anew.
    """
    had = done.provenance["settings"].get("optimizer")
    now = identity.settings.get("optimizer")
    if had == now and scored is None:
        return done
    folder = done.folder
    metadata = done.provenance
    if had != now:
        say(
            f"the label is made again: --optimizer was {had or 'not given'}, is now"
            f" {now or 'not given'}"
        )
        metadata = {**metadata, "settings": {**metadata["settings"], "optimizer": now}}
    # the keys of both sides are in the order of a new report
    as_new: ReportMetadata = {**metadata, "base": identity.base, "tuned": identity.tuned}
    report = Report(folder)
    plain = summarise({name: report.table(name) for name in SUMMARISED}, as_new)
    if report.absent:
        plain = plain.with_warning("older_report", absent_note(report.absent))
    metadata = {**metadata, **_judged(plain)}
    given = _kept(folder, identity, say) if scored is None else scored
    summary = with_scores(plain, given)
    with alone_at(folder), replacing(folder) as staged:
        if had != now:
            files = {
                name: rewritten(folder / f"{name}.parquet", staged.folder / f"{name}.parquet")
                for name in TABLES_OF_A_PAIR
                if (folder / f"{name}.parquet").is_file()
            }
            if files.keys() >= set(SUMMARISED):
                paths = {name: file.path for name, file in files.items()}
                metadata = {**metadata, "seal": seal(plain.as_json(), paths, metadata)}
            for file in files.values():
                file.finish(metadata)
        staged.put(SUMMARY, summary_bytes(summary.as_json()))
        as_new = {**metadata, "base": identity.base, "tuned": identity.tuned}
        staged.put(KEPT, kept_bytes(given, as_new) if given.gains else b"")
    return replace(done, summary=summary, provenance=metadata)


def _kept(folder: Path, identity: Identity, say: Callable[[str], None]) -> Scored:
    """The scores that an earlier report of the same checkpoints has; others are not taken over."""
    try:
        return read_kept(folder, identity.as_json())
    except ShadowError as error:
        say(f"{error.message}: removed")
        return NO_SCORES


def _planned(audit: Asked, lined: AlignedPair, journal: Journal) -> Plan:
    """The plan of what is left, after tidying up what an earlier run left on the disk and in the
    Hub's cache.
    """
    for left in audit.scratch.parent.glob(f"{SCRATCH}*"):
        if left != audit.scratch:
            shutil.rmtree(left, ignore_errors=True)
    _remove_leftovers(journal.fetched)
    plan = make_plan(
        lined.base,
        lined.tuned,
        [pair for pair in lined.pairs if pair.key not in journal.outcomes],
        audit.runtime.access,
        skipped=len(lined.skipped),
        filtered=audit.settings.chosen != Filter(),
        folder=journal.folder,
        scratch=audit.scratch,
        ours={
            (shard.repo, shard.commit, shard.path) for shard in journal.fetched if not shard.keep
        },
    )
    plan.require_disk()
    if plan.to_move:
        freed = (
            f", freed after use: at most {byte_size(plan.peak)} on the disk at a time"
            if plan.frees
            else ""
        )
        unasked = plan.frees and audit.runtime.access.max_disk is None
        why = f" ({byte_size(plan.free)} are free)" if unasked else ""
        audit.runtime.say(f"fetching {byte_size(plan.to_move)}{freed}{why}")
    needed = {visit.shard for visit in plan.work.visits}
    for side, checkpoint in (("base", plan.base), ("tuned", plan.tuned)):
        for shard, source in checkpoint.sources.items():
            if isinstance(source, WholeFile) and not source.keep and (side, shard) not in needed:
                source.discard()
    return plan


def _remove_leftovers(fetched: Sequence[Fetched]) -> None:
    if fetched:
        from shadow.checkpoints.hub import remove_leftovers

        for shard in fetched:
            remove_leftovers(shard.repo, shard.checksum)


def _measure(audit: Asked, lined: AlignedPair, journal: Journal) -> int:
    """Measure what the journal does not hold yet, into the journal; returns how many matrices."""
    runtime = audit.runtime
    plan = _planned(audit, lined, journal) if runtime.elsewhere is None else None
    matrices = sum(pair.is_matrix for pair in lined.pairs)
    resumed = sum(pair.is_matrix and pair.key in journal.outcomes for pair in lined.pairs)
    if resumed:
        runtime.say(f"resuming: {resumed} of {matrices} matrices already measured")
    if plan is None:
        assert runtime.elsewhere is not None
        runtime.elsewhere.measure(audit, lined, journal)
        return matrices - resumed
    by_key = {pair.key: pair for pair in lined.pairs}
    total = sum(map(cost, lined.pairs))
    moved = 0
    spent = sum(cost(pair) for pair in lined.pairs if pair.key in journal.outcomes)

    def tell() -> None:
        runtime.show(
            Progress(
                done=len(journal.outcomes),
                total=len(by_key),
                cost_done=spent,
                cost_total=total,
                moved=moved,
                to_move=plan.to_move,
            )
        )

    def report(count: int) -> None:
        nonlocal moved
        moved += count
        tell()

    def note(source: Source) -> None:
        runtime.detail(details.of_source(source))
        if isinstance(source, WholeFile) and (source.bytes_to_move() or not source.keep):
            journal.note_fetched(Fetched(*source.identity, source.file.checksum, source.keep))

    tell()
    fetching = Fetching(runtime.say, report, note)
    kept = None if runtime.cache is None else SpectrumCache(runtime.cache)
    remember = solve_anew if kept is None else kept.remember
    jobs = runtime.jobs or default_jobs(lined.pairs, runtime.limits or machine_limits())
    for line in details.of_plan(plan, lined.skipped, jobs=jobs, cache=runtime.cache):
        runtime.detail(line)
    clock, busy = _Clock(), 0.0
    device = open_device(audit.settings.device)
    outcomes = measure_pairs(
        plan.base,
        plan.tuned,
        plan.work,
        method=audit.settings.method,
        jobs=jobs,
        fetching=fetching,
        remember=remember,
        offload=None if device is None else Offload(device, runtime.say),
    )
    # What has not begun is given up as soon as anything goes wrong.
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            journal.add(outcome)
            spent += cost(by_key[outcome.key])
            busy += outcome.seconds
            runtime.detail(
                f"[{len(journal.outcomes)}/{len(by_key)}]"
                f" {details.of_outcome(by_key[outcome.key], outcome)}"
            )
            tell()
    runtime.detail(details.of_time(clock.seconds(), busy, jobs))
    if kept is not None and kept.tally.there:
        size = byte_size(size_of(kept.folder))
        runtime.say(
            f"{kept.tally.there} of {kept.tally.asked} spectra came from the cache ({kept.folder},"
            f" {size})"
        )
    if device is not None:
        runtime.say(in_words(told(audit.settings.device, journal.outcomes.values())))
    return matrices - resumed


@uncollected()
def find_checkpoint(reference: Reference | ComponentBase, runtime: Runtime, scratch: Path) -> Found:
    """The checkpoint in a folder, or the commit and the files of one on the Hub, or those of each
    component.
    """
    if isinstance(reference, ComponentBase):
        return Assembled(
            tuple(
                (component, _find(part, runtime, scratch / component))
                for component, part in reference.parts
            )
        )
    return _find(reference, runtime, scratch)


def _find(reference: Reference, runtime: Runtime, scratch: Path) -> Checkpoint | Located:
    access, say = runtime.access, runtime.say
    if reference.is_folder:
        return open_folder(reference.repo, allow_pickle=access.allow_pickle, scratch=scratch)
    from shadow.checkpoints.hub import pin

    if (how := as_folder(reference.repo)) and not access.offline:
        say(f"{reference.repo} is taken for a model on the Hub; {how}")
    revision = runtime.commits.get(reference, reference.revision)
    snapshot = pin(reference.repo, revision, reference.subfolder, offline=access.offline, say=say)
    return locate(snapshot, allow_pickle=access.allow_pickle, say=say)


@uncollected()
def line_up(
    base: Found, tuned: Found, chosen: Filter, runtime: Runtime, *, scratch: Path
) -> AlignedPair:
    """Read the headers and pair the tensors."""
    first = _open(base, runtime, scratch / "base")
    second = sharing(_open(tuned, runtime, scratch / "tuned"), first)
    if first.adapter:
        raise ShadowError(
            f"{first.reference}: the base is an adapter",
            "name the model that the adapter was trained from",
        )
    return AlignedPair(first, second, *pair_checkpoints(first, second, chosen))


def _open(found: Found, runtime: Runtime, scratch: Path) -> Checkpoint:
    if isinstance(found, Assembled):
        parts = [
            (component, _open(part, runtime, scratch / component))
            for component, part in found.parts
        ]
        return combine(found, parts)
    if isinstance(found, Checkpoint):
        return found
    to_move = require_disk_for_pickles(found, runtime.access) if found.weights.pickled else 0
    if to_move:
        runtime.say(f"fetching {byte_size(to_move)} of .bin files")
    moved = 0

    def report(count: int) -> None:
        nonlocal moved
        moved += count
        runtime.show(
            Progress(done=0, total=0, cost_done=0, cost_total=1, moved=moved, to_move=to_move)
        )

    return open_located(found, scratch, runtime.say, report)


def _side(checkpoint: Found) -> CheckpointMetadata:
    return {
        "repo": checkpoint.reference,
        "commit": checkpoint.commit,
        "fingerprint": checkpoint.fingerprint,
    }


def _is_pickled(found: Found) -> bool:
    """Must weights be fetched before anything is known of them?"""
    parts = [part for _, part in found.parts] if isinstance(found, Assembled) else [found]
    return any(isinstance(part, Located) and part.weights.pickled for part in parts)


def _finished(folder: Path) -> tuple[ReportMetadata | None, str]:
    """The metadata of the report in a folder, if there is one, or what is wrong with it.

    A broken one is no report, and one without matrices.parquet neither.

    Raises ShadowError where the system does not let it be read: it may be whole.
    """
    try:
        metadata = finished_metadata(folder)
        if metadata is None:
            refuse_remains(folder)
        return metadata, ""
    except ShadowError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
            raise
        return None, error.message


def _already_done(
    folder: Path, metadata: ReportMetadata, identity: Identity, runtime: Runtime
) -> tuple[AuditResult | None, str]:
    """The report that is there; or why it is measured again: its tables are broken, or it is older
    and may go.
    """
    older = metadata["version"] != __version__
    try:
        lacking = Report(folder).absent
        notes = [f"measured by shadow {metadata['version']}"] if older else []
        notes += [absent_note(lacking)] if lacking else []
        if notes and runtime.overwrite:
            return None, "; ".join(notes)
        require_tables(folder, metadata, spectra=True)
        summary, _ = read_summary(folder)
    except ShadowError as error:
        return None, error.message
    remove_journal_of(folder, identity)
    if not (folder / SUMMARY).is_file():
        # the keys of both sides are in the order of a new report
        again = replace(summary, base=identity.base, tuned=identity.tuned)
        with alone_at(folder), replacing(folder) as staged:
            staged.put(SUMMARY, summary_bytes(again.as_json()))
        runtime.say(f"{folder}: {SUMMARY} was missing, and is made again from the tables")
    runtime.say("; ".join(["nothing to measure: the report is already there", *notes]))
    return AuditResult(folder, summary, measured=0, provenance=metadata), ""


def _tell_afresh(journal: Journal, identity: Identity, say: Callable[[str], None]) -> None:
    """What is not gone on with, and why."""
    if journal.other is None:
        return
    try:
        other = differences(journal.other, identity, DEFAULTS)
        if journal.other["version"] != __version__:
            other.append(f"version {journal.other['version']}, now {__version__}")
    except (KeyError, TypeError, AttributeError):  # its first line is broken
        other = []
    say(
        "starting afresh: the unfinished audit there differs:"
        f" {named(other) or 'in its first line'}"
    )


COMPUTE_DTYPES = {  # by precision
    "default": "float32 Gram, float64 eigenvalues",
    "exact": "float64 Gram, float64 eigenvalues",
    "fast": "float32 Gram, float32 eigenvalues",
}


def _run_metadata(settings: Settings, clock: _Clock, outcomes: Iterable[Outcome]) -> RunMetadata:
    vectors = ", float64 vectors" if settings.method.subspaces else ""
    run: RunMetadata = {
        "seed": settings.method.seed,
        "compute_dtype": COMPUTE_DTYPES[settings.method.precision] + vectors,
        "device": "cpu",
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "started": clock.began.isoformat(timespec="seconds"),
        "seconds": round(clock.seconds(), 3),
    }
    if settings.device != CPU:
        use = told(settings.device, outcomes)
        run["device"] = settings.device.kind if use.get("on_device") else "cpu"
        run["device_use"] = use
    return run
