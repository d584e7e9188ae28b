"""The Python API: the functions behind `shadow.audit`, `shadow.read` and so on.

Nothing here prints. Expected errors are a `ShadowError`, with a message and a hint. `say` is called
with lines of text, `progress` with the state of the work. No number depends on `jobs`, the number
of matrices at work at a time (None: as many as cores, or as fit in memory).
"""

from __future__ import annotations

import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from shadow.checks.trained import SnapshotTensors, taken, verified_since
from shadow.engines.engine import Ray
from shadow.errors import ShadowError, UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.outputs import ExportFormat
from shadow.reports.folders import here, one_report, reports_at, reports_below
from shadow.reports.report import Report
from shadow.run.runtime import Files, Place, Progress, Runtime, access_of, cache_of, ignore
from shadow.storage import located
from shadow.targets.families import Pair, given_pair
from shadow.targets.lists import Selection, select
from shadow.targets.references import Reference, parse_checkpoint, parse_reference
from shadow.telling.reading import AuditReport, AuditReports

if TYPE_CHECKING:
    import torch

    from shadow.checkpoints.opening import Checkpoint
    from shadow.checks.answer import Verification
    from shadow.checks.checklist import Checklist
    from shadow.comparing.comparison import Comparison
    from shadow.gates.verdicts import Judgement
    from shadow.run.pair_plan import PairPlan

    Model = torch.nn.Module | Mapping[str, torch.Tensor]  # in memory
    Held = Mapping[str, tuple[Reference, Checkpoint]]

Several = list[str] | list[Pair] | list[str | Pair] | tuple[str | Pair, ...]
Say = Callable[[str], None]


@overload
def audit(base: Pair, **options: Any) -> AuditReport: ...
@overload
def audit(base: Place | Model, tuned: Place | Model, **options: Any) -> AuditReport: ...
@overload
def audit(base: str | Several, **options: Any) -> AuditReport | AuditReports: ...


def audit(
    base: Place | Pair | Several | Model,
    tuned: Place | Model | None = None,
    *,
    output: Place | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    files: Files = Files(),  # noqa: B008 - frozen
    engine: str | Ray = "local",
    say: Say = ignore,
    progress: Callable[[Progress], None] = ignore,
    **measuring: Any,
) -> AuditReport | AuditReports:
    """Measure pairs of checkpoints, write their reports, and return them.

    For one pair it returns its report, otherwise reports in the order of the pairs. Existing
    reports are not made again. If a pair cannot be audited, all others are audited before the error
    is raised. Meanwhile, linear algebra uses one thread per worker.

    Args:
        base: A folder or a file, `org/name[@revision]` on the Hub, or a model in memory: a
            `torch.nn.Module` or a state dict. Without tuned what names pairs: a family,
            `family:base..tuned`, a glob over these, a pair of `shadow.pairs`, or a list of such.
        tuned: The model tuned from it, named in the same way; in memory also a PEFT model.
        output: The folder or the URL of reports; None: `reports`, and of models in memory none.
        overwrite: Replace a finished report of other settings or files.
        files: Where checkpoints come from, such as `shadow.Files(offline=True, max_disk="40GB")`.
        engine: local; ray (extra `ray`), a Ray of this machine, or the one that this process has
            initialised; or a `shadow.Ray`, such as that of a cluster, as text or as an object.
        measuring: Fields of `shadow.Measuring`, such as `layers=[0, 5]` or `level="norms"`.
    """
    from shadow.lists.perform import perform
    from shadow.run.workers import single_threads

    held = _held({"base": base, "tuned": tuned})
    with ExitStack() as until_done:
        if held and output is None:
            output = until_done.enter_context(tempfile.TemporaryDirectory(prefix="shadow-"))
        ray = engine if isinstance(engine, Ray) else Ray.of(engine)
        own = {"overwrite": overwrite, "jobs": jobs, "files": files, "ray": ray}
        request = _request(base, tuned, held, output, measuring, **own)
        reports: dict[Pair, AuditReport] = {}
        faults: dict[Pair, ShadowError] = {}
        with single_threads(), closing(perform(request, say=say, show=progress)) as outcomes:
            for outcome in outcomes:
                try:
                    reports[outcome.pair] = AuditReport(_here(outcome.finished().place))
                except ShadowError as error:
                    if request.is_alone:
                        raise
                    faults[outcome.pair] = error
        if faults:
            first, fault = next(iter(faults.items()))
            count = f"{len(faults)} of {len(faults) + len(reports)} pairs could not be audited"
            text = f"{count}, such as {first.full_name}: {fault.message}"
            raise ShadowError(text, fault.hint) from fault
        in_order = AuditReports(map(reports.__getitem__, request.selection.pairs))
        if held:  # the folder goes with its report
            weakref.finalize(in_order[0], until_done.pop_all().close)
    is_one = request.is_alone and not isinstance(base, list | tuple)
    return in_order[0] if is_one else in_order


def read(folder: Place) -> AuditReport:
    """The finished report in a folder or at a URL, or the only one below it."""
    hint = "name one of them, or read all with shadow.read_all"
    report = AuditReport(one_report(_here(folder), hint))
    assert report.provenance  # read now, so that a folder without a report is refused here
    return report


def read_all(folder: Place) -> AuditReports:
    """The finished reports in a folder or at a URL, or up to two levels below it, by path.
    Their tables are read on demand.
    """
    return AuditReports(map(read, reports_below(_here(folder))))


def pairs(*targets: str, registry: Place | None = None) -> tuple[Pair, ...]:
    """The pairs that targets name, such as `qwen2.5-7b`, `demo:base..narrow`, `qwen2.5-*`.

    Without a target, all pairs. registry: a folder with more families.
    """
    return select(targets or ["*"], registry=None if registry is None else Path(registry)).pairs


def plan(
    base: Place | Pair | Several, tuned: Place | None = None, *, say: Say = ignore, **options: Any
) -> tuple[PairPlan, ...]:
    """Plan what `audit` would measure and take, a plan a pair. No weight is fetched.

    The options are those of `audit`; `as_json()` gives what `shadow plan --json` prints.
    """
    from shadow.lists.planning import planner

    own = {name: options.pop(name) for name in ("jobs", "files") if name in options}
    request = _request(base, tuned, {}, options.pop("output", None), options, **own)
    plan_of = planner(request, say)
    return tuple(map(plan_of, request.selection.pairs))


def compare(
    *reports: Report | Place,
    margin: float = 0.05,
    allow_different_base: bool = False,
    scores: Place | Sequence[Place] = (),
) -> Comparison:
    """Say whose delta is more concentrated, over the same matrices, for every two of the reports.

    Args:
        reports: At least two, or a folder above several.
        margin: The least difference of concentration that counts, 0 to 1.
        allow_different_base: Also compare deltas from different bases.
        scores: CSVs, or results of lm-eval (JSON): correlate gains and concentrations of up to 200
            reports of any bases.
    """
    from shadow.comparing import comparison
    from shadow.comparing.scores import read_scores

    if not 0 <= margin <= 1:
        raise UsageError(f"a margin of {margin:g} is out of range", "give 0 to 1, such as 0.05")
    given = [score for file in _listed(scores) for score in read_scores(Path(file))]
    folders = {folder: None for report in reports for folder in reports_at(_here(report))}
    comparison.check_count(len(folders), scored=bool(given))
    return comparison.compare(
        list(folders), margin=margin, allow_different_base=allow_different_base, scores=given
    )


def judge(
    report: Report | Place,
    rules: str | Sequence[str] | PathLike[str] = (),
    /,
    *,
    against: Report | Place | None = None,
    allow_missing: bool = False,
) -> Judgement:
    """Judge a report; return the verdicts and the exit code of `shadow gate`.

    Args:
        rules: One, several, or the Path of a policy file. For claims such as `verify.trained
            --frozen embed` both checkpoints are read, if they are on this machine.
        against: The report of an earlier audit, which figures must not have moved from.
        allow_missing: A rule that finds nothing to judge does not fail.
    """
    from shadow.gates.measured import read_measured
    from shadow.gates.rules import gather
    from shadow.gates.verdicts import judge_report

    listed, policy = ([], Path(rules)) if isinstance(rules, PathLike) else (_listed(rules), None)
    gathered = gather(listed, policy, against=against is not None, allow_missing=allow_missing)
    if not gathered:
        raise UsageError("nothing to check the report against", "name a rule, policy or baseline")
    folder = one_report(_here(report))
    first = None if against is None else one_report(_here(against))
    if first is not None and first.resolve() == folder.resolve():
        raise ShadowError(f"{folder} is its own baseline", "name an earlier report")
    baseline = None if first is None else read_measured(first, "the baseline")
    return judge_report(gathered, read_measured(folder), baseline)


def verify(
    claim: str,
    /,
    *checkpoints: Place | Model | SnapshotTensors,
    moved: str | Sequence[str] = (),
    frozen: str | Sequence[str] = (),
    base: Place | Model | None = None,
    headers: bool = False,
    accept: Mapping[str, str] | None = None,
    files: Files = Files(),  # noqa: B008 - frozen
    jobs: int | None = None,
    say: Say = ignore,
    progress: Callable[[Progress], None] = ignore,
) -> Verification:
    """Check a claim about checkpoints, entry by entry: it holds, does not hold, or is inconclusive.

    `shadow.verify("same", "./a", "./b").holds` is True, False, or None.

    Args:
        claim: Such as `same`; `shadow verify --help` lists them.
        checkpoints: As the command takes them, or models in memory. The base of `trained` may be a
            `shadow.snapshot`.
        moved: Of `trained`: what should have changed, such as `language.layers.0-7`; what is
            `frozen` should be equal.
        base: Of `stored`: the model that the full one was trained from.
        headers: Of `whole`: leave out values.
        accept: Of `whole`: faults that do not fail, by code, each with a reason.
    """
    from shadow.checks import registry
    from shadow.run.workers import single_threads

    patterns: dict[str, Any] = {"moved": _listed(moved), "frozen": _listed(frozen)}
    options: dict[str, Any] = {"base": base, "headers": headers, "accept": accept}
    if claim == "trained" and checkpoints and isinstance(checkpoints[0], SnapshotTensors):
        from shadow.checkpoints.in_memory import in_memory

        registry.require_form(claim, len(checkpoints), **patterns, **options)
        return verified_since(checkpoints[0], in_memory(checkpoints[1], "memory"), **patterns)
    sides: dict[str, Any] = {str(number): place for number, place in enumerate(checkpoints, 1)}
    sides |= {} if base is None else {"base": base}
    held = _held(sides)
    named = {name: _named(name, place, held, parse_checkpoint) for name, place in sides.items()}
    of_base = named.pop("base", None)
    options["base"] = of_base
    question = registry.question(claim, [*named.values()], **patterns, **options)
    runtime = Runtime(
        jobs=jobs,
        access=access_of(files),
        checkpoints=dict(held.values()),
        cache=cache_of(files),
        say=say,
        show=progress,
    )
    with single_threads():
        return registry.verify(question, runtime)


def check(
    model: Place | Model,
    *,
    base: Place | Model | None = None,
    adapter: Place | None = None,
    full: Place | Model | None = None,
    headers: bool = False,
    drop_in: bool = False,
    accept: Mapping[str, str] | None = None,
    files: Files = Files(),  # noqa: B008 - frozen
    jobs: int | None = None,
    say: Say = ignore,
    progress: Callable[[Progress], None] = ignore,
) -> Checklist:
    """Check a model before its release, with the words of `shadow check`.

    The first of `lines` is the answer of `verify("whole", model)`; the others are claims that base,
    adapter and full allow. `holds` is True, False, or None.

    Args:
        base: What it was trained from.
        adapter: What was merged into it.
        full: What it is a copy of, in fewer bits.
        headers: Leave out values.
        drop_in: A difference from the base in headers or small files is a fault.
        accept: Faults of `whole` that do not fail, by code, each with a reason.
    """
    from shadow.checks import checklist
    from shadow.run.workers import single_threads

    given = {"base": base, "adapter": adapter, "full": full}
    sides = {"model": model} | {name: side for name, side in given.items() if side is not None}
    held = _held(sides)
    named: dict[str, Any] = {
        name: _named(name, side, held, parse_checkpoint) for name, side in sides.items()
    }
    words = checklist.CheckRequest(**named, headers=headers, drop_in=drop_in, accept=accept or {})
    runtime = Runtime(
        jobs=jobs,
        access=access_of(files),
        checkpoints=dict(held.values()),
        cache=cache_of(files),
        say=say,
        show=progress,
    )
    with single_threads():
        return checklist.check(words, runtime)


def snapshot(model: Model) -> SnapshotTensors:
    """Note what a model in memory holds, in a few MB of checksums: a base of `trained`."""
    from shadow.checkpoints.in_memory import in_memory

    return taken(in_memory(model, "memory"))


def export(
    reports: Report | Place | Sequence[Report | Place], to: ExportFormat, path: Place, /
) -> Path:
    """Write reports, or those in folders or at URLs, to a new folder: one set of tables for all."""
    from shadow.outputs import exports

    folders = [folder for report in _listed(reports) for folder in reports_below(_here(report))]
    return exports.export(folders, to, Path(path))


def _request(
    base: Any, tuned: Any, held: Held, output: Place | None, measuring: Any, **own: Any
) -> AuditRequest:
    """Make the request for a pair of two checkpoints, or for the pairs that base names."""
    if tuned is None and (held or isinstance(base, PathLike)):
        raise UsageError("a pair has two checkpoints", "name tuned too, or call shadow.check")
    listed = _listed(base)
    if tuned is not None:
        listed = [given_pair(_named("base", base, held), _named("tuned", tuned, held))]
    targets = [target for target in listed if isinstance(target, str)]
    chosen = select(targets, [target for target in listed if isinstance(target, Pair)]).pairs
    if not chosen:
        raise UsageError("nothing to audit", "name a family, such as 'demo', or base and tuned")
    own |= {"measuring": Measuring(**measuring), "checkpoints": dict(held.values())}
    return AuditRequest(Selection(chosen, chosen), located(output or "reports"), **own)


def _held(sides: Mapping[str, object]) -> Held:
    """The models in memory among sides, by name; none without torch."""
    if "torch" not in sys.modules:
        return {}
    from shadow.checkpoints.in_memory import models_among

    return models_among(sides)


def _named(name: str, place: Any, held: Held, parse: Callable[[str], Any] = parse_reference) -> Any:
    """Make the reference to a side: a Path is a folder, text is what the command takes."""
    if name in held:
        return held[name][0]
    if not isinstance(place, str | PathLike):
        hint = "give a path, org/name, a module or a state dict; `trained` takes a snapshot as base"
        raise UsageError(f"{name}: {type(place).__name__} is no checkpoint", hint)
    return parse(place if isinstance(place, str) else str(Path(place).expanduser().absolute()))


def _here(report: Report | Place) -> Path:
    """The folder of a report, or of reports; a URL's is fetched until the process ends."""
    return report.folder if isinstance(report, Report) else here(report, spectra=True)


def _listed(given: Any) -> list[Any]:
    """A list, also for a single word, path, pair or report."""
    is_one = isinstance(given, str | PathLike | Pair | Report) or not isinstance(given, Iterable)
    return [given] if is_one else list(given)
