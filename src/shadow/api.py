"""What a program or a notebook calls: the functions behind `shadow.audit`, `shadow.read` and so on.

Nothing here prints. What is expected to go wrong is a `ShadowError`, with a message and a hint.
What needs torch is imported by the function that needs it.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload

from shadow.checks.patterns import NEEDS_PATTERN
from shadow.checks.trained import Snapshot
from shadow.engines.engine import Ray
from shadow.errors import ShadowError, UsageError
from shadow.gone import gone
from shadow.lists.request import (
    AuditRequest,
    Measuring,
    Place,
)
from shadow.outputs.notebook import AuditReport, AuditReports
from shadow.places.names import check_component
from shadow.reports.folders import one_report, reports_below, reports_of
from shadow.reports.remote import fetched
from shadow.reports.report import Report
from shadow.run.runtime import Files
from shadow.spectra.measurement import Level, Subjects
from shadow.storage import Store, located
from shadow.targets.families import Pair, filter_families, given_pair, load_families
from shadow.targets.lists import Selection, select
from shadow.targets.references import (
    AnyReference,
    ComponentBase,
    Reference,
    is_reference,
    parse_reference,
)
from shadow.text import several

if TYPE_CHECKING:
    import torch

    from shadow.checkpoints.opening import Checkpoint
    from shadow.checks.answer import Verification
    from shadow.comparing.comparison import Comparison
    from shadow.gates.measured import Measured
    from shadow.gates.verdicts import Judgement
    from shadow.run.pair_plan import PairPlan
    from shadow.run.runtime import Progress

    Model = torch.nn.Module | Mapping[str, torch.Tensor]  # in memory

Several = list[str] | list[Pair] | list[str | Pair] | tuple[str | Pair, ...]
EngineName = Literal["local", "ray"]
Format = Literal["csv", "parquet", "markdown"]

OUTPUT = "reports"


class MeasuringOptions(TypedDict, total=False):
    """The fields of `Measuring`, for those who check types."""

    components: Sequence[str]
    layers: Sequence[int | str]
    modules: Sequence[str]
    level: Level
    subjects: Subjects
    spectra: bool
    device: str


class AuditOptions(MeasuringOptions, total=False):
    """The keywords of `audit`, as its docstring explains them."""

    output: Place
    overwrite: bool
    jobs: int | None
    files: Files
    engine: EngineName | Ray
    parts: int | None
    say: Callable[[str], None] | None
    progress: Callable[[Progress], None] | None


@overload
def audit(target: Pair, /, **options: Unpack[AuditOptions]) -> AuditReport: ...


@overload
def audit(
    *, base: Place | Model, tuned: Place | Model, **options: Unpack[AuditOptions]
) -> AuditReport: ...


@overload
def audit(
    base: Place | Model, tuned: Place | Model, /, **options: Unpack[AuditOptions]
) -> AuditReport: ...


@overload
def audit(target: str, /, **options: Unpack[AuditOptions]) -> AuditReport | AuditReports: ...


@overload
def audit(target: Several, /, **options: Unpack[AuditOptions]) -> AuditReports: ...


def audit(
    target: Place | Pair | Several | Model | None = None,
    second: Place | Model | None = None,
    /,
    *,
    base: Place | Model | None = None,
    tuned: Place | Model | None = None,
    output: Place | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    files: Files = Files(),  # noqa: B008 - frozen
    engine: EngineName | Ray = "local",
    parts: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **measuring: Unpack[MeasuringOptions],
) -> AuditReport | AuditReports:
    """Measure pairs of checkpoints, write their reports, and return them.

    A report that is there is not made again.

    The algebra has one thread for each worker while this runs, and as many as before when it
    returns.

    Args:
        target: A family, `family:base..tuned`, a glob over these, a pair of `shadow.pairs`, or a
            list of such. Where `second` is given: the base.
        second: The model tuned from it: `audit(a, b)` is `audit(base=a, tuned=b)`.
        base: Instead of a target: a folder or a file, `org/name[@revision]` on the Hub, or a model
            in memory: a `torch.nn.Module` or a state dict.
        tuned: The model tuned from it, named in the same way; in memory also a PEFT model.
        output: The folder that reports are written below, or the URL of one, such as
            `s3://bucket/reports`; None: `reports`, and of models in memory none that stays.
        overwrite: Replace a finished report of other settings or files.
        jobs: How many matrices are measured at a time; None: as many as there are cores, or as fit
            the memory; one where norms of stored floats are all that is measured.
        files: Where checkpoints and solved spectra come from, such as
            `shadow.Files(offline=True, max_disk="40GB")`.
        engine: What carries out the audits: local (this process, one pair after another) or ray
            (extra `ray`), as tasks on the cores of this machine; `shadow.Ray(address="auto")` is
            that of a cluster. A Ray that this process has initialised is used and stays.
        parts: Measure each pair in this many parts, 1 or more; None: whole, or a single pair on ray
            in as many as run at a time.
        say: Gets a line of text now and then.
        progress: Gets how far the audit of a pair is, after every matrix; with ray twice a second,
            from each pair that runs.
        measuring: What is measured, and how: fields of `shadow.Measuring`, such as `layers=[0, 5]`
            or `level="norms"`.

    Returns:
        The report, where one pair was named; otherwise a sequence of reports in the order of the
        pairs.

    Raises:
        ShadowError: Where a pair could not be audited. Of several pairs, all others are audited
            first.
    """
    ray = engine if isinstance(engine, Ray) else Ray()
    if engine not in ("local", "ray") and not isinstance(engine, Ray):
        raise UsageError(f"engine={engine!r}", "one of 'local', 'ray'")

    from shadow.lists.perform import perform
    from shadow.run.workers import single_threads

    say, progress = say or _ignore, progress or _ignore
    sides: dict[str, Any] = {"base": base, "tuned": tuned}
    if target is not None and base is tuned is None:
        sides = {"base": target, "tuned": second}
    models = {name: one for name, one in sides.items() if _is_model(one)}
    if models and None in sides.values():
        raise UsageError("base and tuned go together", "name both checkpoints")
    if models and output is None:
        with ExitStack() as until_done:
            output = until_done.enter_context(tempfile.TemporaryDirectory(prefix="shadow-"))
            given: dict[str, Any] = {**sides, **measuring, "output": output, "files": files}
            given |= {"jobs": jobs, "engine": engine, "parts": parts}
            report: AuditReport = audit(**given, say=say, progress=progress)
            weakref.finalize(report, until_done.pop_all().close)
            return report
    held = _held(models)
    if held:
        pair = [held[name][0] if name in held else _reference(one) for name, one in sides.items()]
        chosen: tuple[Pair, ...] = (given_pair(pair[0], pair[1]),)
    else:
        named: dict[str, Any] = {"base": base, "tuned": tuned}
        chosen = _chosen(cast(Any, target), cast(Any, second), **named)
    request = AuditRequest(
        Selection(chosen, chosen),
        located(OUTPUT if output is None else output),
        _measuring(measuring),
        files,
        overwrite=overwrite,
        jobs=jobs,
        ray=None if engine == "local" else ray,
        parts=parts,
        found=dict(held.values()),
    )
    reports: dict[Pair, AuditReport] = {}
    faults: dict[Pair, ShadowError] = {}
    with single_threads(), closing(perform(request, say=say, show=progress)) as outcomes:
        for outcome in outcomes:
            try:
                result = outcome.finished()
                reports[outcome.pair] = AuditReport(_here(result.place))
            except ShadowError as error:
                if request.is_alone:
                    raise
                faults[outcome.pair] = error
    if faults:
        named = {pair.full_name: faults[pair] for pair in chosen if pair in faults}
        raise _failed(named, len(chosen))
    if request.is_alone and not isinstance(target, list | tuple):
        return reports[chosen[0]]
    return AuditReports(reports[pair] for pair in chosen)


def read(folder: Place) -> AuditReport:
    """The finished report in a folder, or the only one below it.

    Args:
        folder: A folder, or a URL, whose reports are fetched.

    Raises:
        ShadowError: Where there is none, or more than one; a broken one; or one of another schema.
    """
    here = _here(folder)
    report = AuditReport(one_report(here, "name one of them, or read all with shadow.read_all"))
    assert report.provenance  # read now, so that a folder without a report is refused here
    return report


def read_all(folder: Place) -> AuditReports:
    """The finished reports in a folder or up to two levels below it, sorted by their paths.

    Of each only what it is of is read now: its tables are read when you first ask for them.

    Args:
        folder: A folder or a URL.

    Raises:
        ShadowError: Where there is none; where one is broken, or of another schema.
    """
    reports = AuditReports(AuditReport(path) for path in reports_below(_here(folder)))
    for report in reports:
        assert report.provenance  # read now, as `read` does
    return reports


def pairs(
    *targets: str, tags: Sequence[str] = (), registry: Place | None = None
) -> tuple[Pair, ...]:
    """The pairs that targets name: families, `family:base..tuned`, or globs over these.

    Without targets, all of them.

    Args:
        targets: Such as `qwen2.5-7b`, `demo:base..narrow`, `qwen2.5-*`.
        tags: Only of families that have all of these tags.
        registry: A folder with more families.

    Raises:
        ShadowError: Where one names nothing.
    """
    tagged = filter_families(load_families(_path(registry)), tags=tags)
    names = {family.name for family in tagged}
    if targets:
        chosen = select(targets, registry=_path(registry)).pairs
        return tuple(pair for pair in chosen if pair.family in names)
    return tuple(pair for family in tagged for pair in family.pairs)


def plan(
    target: Place | Pair | Several | None = None,
    second: Place | None = None,
    /,
    *,
    base: Place | None = None,
    tuned: Place | None = None,
    output: Place = OUTPUT,
    jobs: int | None = None,
    files: Files = Files(),  # noqa: B008 - frozen
    say: Callable[[str], None] | None = None,
    **measuring: Unpack[MeasuringOptions],
) -> tuple[PairPlan, ...]:
    """What `audit` would measure and take, a plan a pair, from headers alone: no weight is fetched.

    The arguments are those of `audit`. The attributes of a plan are what `shadow plan` shows;
    `as_json()` gives what `shadow plan --format json` prints.

    Raises:
        ShadowError: Where an audit would fail before it measures.
    """
    from shadow.lists.perform import planner
    from shadow.run.workers import single_threads

    chosen = _chosen(target, second, base=base, tuned=tuned)
    request = AuditRequest(
        Selection(chosen, chosen), located(output), _measuring(measuring), files, jobs=jobs
    )
    plan_of = planner(request, say or _ignore)
    with single_threads():
        return tuple(map(plan_of, chosen))


def compare(
    first: Report | Place,
    /,
    *others: Report | Place,
    margin: float = 0.05,
    allow_different_base: bool = False,
    scores: Place | Sequence[Place] = (),
    joint: bool = False,
    jobs: int | None = None,
    allow_pickle: bool = False,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Whose delta is more concentrated, over the same matrices, for every two of the reports.

    With scores, gains and concentrations of up to 200 reports are correlated, whatever their bases.

    Args:
        first: A report, its folder or URL, or one above several.
        others: Others, at least one but for a folder above several.
        margin: The least difference of concentration that counts, 0 to 1.
        allow_different_base: Also compare deltas from different bases.
        scores: Benchmark scores that others measured: a CSV, results of lm-eval (JSON), or a list
            of such.
        joint: Also compare where two deltas of one base point, which reads the checkpoints: they
            must be in folders or in the Hub's cache.
        jobs: Of joint: how many matrices are measured at a time; None: as many as fit.
        allow_pickle: Of joint: also read pickled checkpoints, in a process of their own.
        say: Gets a line of text on what joint leaves out.

    Raises:
        ShadowError: Where a report cannot be read, two have nothing in common, or scores name none
            of the models.
    """
    from shadow.comparing import comparison
    from shadow.comparing.scores import read_scores

    if not 0 <= margin <= 1:
        raise UsageError(
            f"a margin of {margin:g} is out of range", "give a number from 0 to 1, such as 0.05"
        )
    given = _paths(scores)
    runs = [_at(report) for report in (first, *others)]
    folders = reports_of(runs, once=bool(given))
    comparison.check_count(len(folders), scored=bool(given))
    compared = comparison.compare(
        folders,
        margin=margin,
        allow_different_base=allow_different_base,
        scores=[score for file in given for score in read_scores(file)],
    )
    if not joint:
        return compared
    from shadow.lists.joint import with_directions

    return with_directions(compared, jobs=jobs, allow_pickle=allow_pickle, say=say or _ignore)


def judge(
    report: Report | Place,
    rules: str | Sequence[str] | PathLike[str] = (),
    /,
    *,
    against: Report | Place | None = None,
    allow_missing: bool = False,
) -> Judgement:
    """Hold a report against rules and a baseline: what came of each rule, and the exit code of
    `shadow gate`.

    Args:
        report: A report, or its folder or URL.
        rules: What must not hold, such as `language.mlp.up.concentration > 0.5`: one, several, or
            the Path of a policy file. For `verify.trained --frozen embed` and other claims that a
            report does not answer, both checkpoints are read, if they are on this machine.
        against: The report of an earlier audit, which figures must not have moved from.
        allow_missing: A rule that finds nothing to judge is no fault.

    Raises:
        UsageError: Where a rule makes no sense.
        ShadowError: Where a report cannot be read.
    """
    from shadow.gates.measured import Reading, read_measured
    from shadow.gates.rules import gather
    from shadow.gates.verdicts import judge_report

    policy = Path(rules) if isinstance(rules, PathLike) else None
    listed = () if isinstance(rules, PathLike) else _words(rules)
    gathered = gather(listed, policy, against=against is not None, allow_missing=allow_missing)
    if not gathered:
        raise UsageError(
            "nothing to check the report against", "name a rule, a policy file or a baseline"
        )
    baseline: Measured | None = None
    if against is not None:
        baseline = read_measured(one_report(_at(against)), "the baseline")
    now = read_measured(one_report(_at(report)), reading=Reading())
    return judge_report(gathered, now, baseline)


def verify(
    claim: str,
    /,
    *checkpoints: Place | Mapping[str, Place] | Model | Snapshot,
    moved: str | Sequence[str] = (),
    frozen: str | Sequence[str] = (),
    base: Place | Mapping[str, Place] | Model | None = None,
    headers: bool = False,
    files: Files = Files(),  # noqa: B008 - frozen
    jobs: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Check a claim about checkpoints, entry by entry: it holds, does not hold, or is inconclusive.

    `shadow.verify("same", "./a", "./b").holds` is True, False, or None.

    Args:
        claim: Such as `same`; `shadow verify --help` lists them.
        checkpoints: What it is asked of, in the order of the command: folders or files, or
            `org/name[@revision]` on the Hub; for a base also a mapping of components to such. Also
            models in memory: a `torch.nn.Module`, a PEFT model (its adapter) or a state dict; the
            base of `trained` may be a `shadow.snapshot`.
        moved: Of `trained`: what should have changed, such as `language.layers.0-7`.
        frozen: Of `trained`: what should be equal.
        base: Of `stored` and `mixture`: the model that the others were trained from.
        headers: Of `whole`: leave out values.
        files: Where checkpoints come from, such as `shadow.Files(offline=True)`.
        jobs: How many tensors are compared at a time; None: one, or of quantised models and
            adapters as many as there are cores, or as fit the memory.
        say: Gets a line of text now and then.
        progress: Gets how far it is, after every tensor.

    Raises:
        UsageError: Where a claim is not known, or is not asked of these.
        ShadowError: Where a checkpoint cannot be read.
    """
    from shadow.checks.registry import question
    from shadow.checks.registry import verify as check
    from shadow.run.runtime import Runtime, access_of
    from shadow.run.workers import single_threads

    if claim == "trained" and checkpoints and isinstance(checkpoints[0], Snapshot):
        return _trained_since(*checkpoints, moved=_words(moved), frozen=_words(frozen))
    sides: dict[str, Any] = {str(number): one for number, one in enumerate(checkpoints, 1)}
    sides |= {} if base is None else {"base": base}
    held = _held({name: one for name, one in sides.items() if _is_model(one)})
    named = {name: held[name][0] if name in held else _side(one) for name, one in sides.items()}
    asked = question(
        claim,
        [named[str(number)] for number in range(1, len(checkpoints) + 1)],
        moved=_words(moved),
        frozen=_words(frozen),
        base=named.get("base"),
        headers=headers,
    )
    runtime = Runtime(
        jobs=jobs,
        access=access_of(files),
        found=dict(held.values()),
        say=say or _ignore,
        show=progress or _ignore,
    )
    with single_threads():
        return check(asked, runtime)


def check(model: Place | Model, *, headers: bool = False) -> Verification:
    """Check one checkpoint, or a model in memory, by itself: `verify("whole", model)`.

    Args:
        model: A folder or a file, `org/name[@revision]`, a `torch.nn.Module` or a state dict.
        headers: Leave out values.
    """
    return verify("whole", model, headers=headers)


def snapshot(model: Model) -> Snapshot:
    """Note what a model in memory holds, as checksums: a few MB, whatever its size.

    Args:
        model: A `torch.nn.Module` or a state dict. Every entry is read once.

    Returns:
        What `shadow.verify("trained", snapshot, model, moved=..., frozen=...)` takes for a base.

    Raises:
        ShadowError: Where a parameter holds no plain numbers, as of a sharded model.
    """
    from shadow.checkpoints.in_memory import in_memory
    from shadow.checks.trained import taken

    return taken(in_memory(model, "memory"))


def _trained_since(*sides: Any, moved: Sequence[str], frozen: Sequence[str]) -> Verification:
    """Whether what should have moved since a snapshot did, and what should be frozen is equal."""
    from shadow.checkpoints.in_memory import in_memory
    from shadow.checks.answer import Verification
    from shadow.checks.registry import CHECKS, require_form
    from shadow.checks.trained import training_since

    require_form("trained", len(sides), moved=moved, frozen=frozen)
    if not (moved or frozen):
        raise UsageError(f"trained {NEEDS_PATTERN}", "such as moved='language.layers'")
    evidence = training_since(sides[0], in_memory(sides[1], "memory"), moved, frozen)
    of = {"BASE": "a snapshot", "TUNED": "memory"}
    return Verification(CHECKS["trained"], of, CHECKS["trained"].judge(evidence))


def export(
    reports: Report | Place | Sequence[Report | Place],
    to: Format,
    path: Place,
    /,
) -> Path:
    """Write reports as CSV, Parquet or Markdown: one set of tables, however many reports.

    Args:
        reports: A report, a folder or a URL with reports, or a list of such.
        to: csv, parquet or markdown.
        path: The folder to write, which must not exist, or be empty.

    Raises:
        ShadowError: Where a report cannot be read, or something is at path.
    """
    from shadow.outputs import exports

    listed = [reports] if isinstance(reports, Report | str | PathLike) else reports
    folders = [folder for report in listed for folder in reports_below(_at(report))]
    return exports.export(folders, to, Path(path))


def _ignore(_: object) -> None:
    """The listener where nobody listens."""


def _measuring(given: MeasuringOptions) -> Measuring:
    """Raises UsageError for a keyword that is gone, and TypeError for one that never was."""
    for word in given:
        if error := gone("keyword", word):
            raise error
    return Measuring(**given)


def _chosen(
    target: Place | Pair | Several | None,
    second: Place | None,
    *,
    base: Place | None,
    tuned: Place | None,
) -> tuple[Pair, ...]:
    """The pairs that are asked for, each once."""
    if (base is None) != (tuned is None):
        raise UsageError("base and tuned go together", "name both checkpoints, or a family")
    if base is not None and (target is not None or second is not None):
        raise UsageError("a target, and base and tuned too", "name one or the other")
    if second is not None:
        base, tuned = _two_checkpoints(target, second)
        target = None
    if isinstance(target, PathLike):
        hint = 'name base and tuned; shadow.verify("whole", PATH) checks one by itself'
        raise UsageError(f"{target} is one checkpoint, and a pair has two", hint)
    listed = [target] if isinstance(target, str | Pair) else list(target or ())
    given = [name for name in listed if isinstance(name, Pair)]
    if base is not None and tuned is not None:
        given = [given_pair(_reference(base), _reference(tuned))]
    pairs = select([name for name in listed if isinstance(name, str)], given).pairs
    if not pairs:
        raise UsageError("nothing to audit", "name a family, such as 'demo', or base and tuned")
    return pairs


def _two_checkpoints(
    target: Place | Pair | Several | None, second: Place | Pair | Several
) -> tuple[Place, Place]:
    """Base and tuned, given by position. Several families are a list, here as elsewhere."""
    if not isinstance(target, str | PathLike) or not isinstance(second, str | PathLike):
        raise UsageError(
            "two arguments by position are two checkpoints", "give several targets as a list"
        )
    for name in (target, second):
        if isinstance(name, str) and not is_reference(name):
            raise UsageError(
                f"{name[:80]!r} is not a checkpoint, and two arguments by position are two",
                "a folder is './NAME', a model of the Hub 'org/name'; give several families as a"
                " list",
            )
    return target, second


def _is_model(given: object) -> bool:
    """Whether this is a module or a state dict, and no name of a checkpoint."""
    if isinstance(given, Mapping):
        return any(hasattr(value, "data_ptr") for value in given.values())
    return hasattr(given, "state_dict")


def _held(models: Mapping[str, object]) -> dict[str, tuple[Reference, Checkpoint]]:
    """The checkpoints that are modules or state dicts, by what they are called.

    Raises ShadowError where two of them are one in memory, and where one holds no plain numbers.
    """
    if not models:
        return {}
    from shadow.checkpoints.in_memory import in_memory, is_same_memory

    found = {}
    for name, model in models.items():
        reference = Reference(f"memory/{name}", is_folder=True)
        found[name] = reference, in_memory(model, reference.repo)
    for (one, first), (other, second) in combinations(models.items(), 2):
        if is_same_memory(first, second):
            hint = "a state dict is an alias of its model: copy it, or name a saved checkpoint"
            raise ShadowError(f"{one} and {other} are one model in memory", hint)
    return found


def _reference(place: Place) -> Reference:
    """A checkpoint: a Path is a folder, text is what `--base` takes."""
    if isinstance(place, str):
        return parse_reference(place)
    return parse_reference(str(Path(place).expanduser().absolute()))


def _side(place: Place | Mapping[str, Place]) -> AnyReference:
    """A checkpoint, or one for each component."""
    if not isinstance(place, Mapping):
        return _reference(place)
    for component in place:
        check_component(component)
    return ComponentBase(tuple((component, _reference(one)) for component, one in place.items()))


def _path(place: Place | None) -> Path | None:
    if place is None:
        return None
    return Path(place)


def _paths(places: Place | Sequence[Place]) -> list[Path]:
    """Files of scores; one place may stand for a list of one."""
    listed = [places] if isinstance(places, str | PathLike) else places
    return [Path(place) for place in listed]


def _here(place: Place) -> Path:
    """A folder of reports; one at a URL is fetched, until the process ends."""
    there = located(place)
    if isinstance(there, Store):
        return fetched(there)
    return there


def _at(report: Report | Place) -> Path:
    """The folder of a report, or the one that a place stands for."""
    if isinstance(report, Report):
        return report.folder
    return _here(report)


def _words(words: Sequence[str]) -> list[str]:
    """One word may stand for a list of one."""
    if isinstance(words, str):
        return [words]
    return list(words)


def _failed(faults: Mapping[str, ShadowError], asked: int) -> ShadowError:
    """What is raised where some of several pairs could not be audited."""
    what = several([f"{name}: {error.message}" for name, error in faults.items()], shown=5)
    hint = next((error.hint for error in faults.values() if error.hint), None)
    error = ShadowError(f"{len(faults)} of {asked} pairs could not be audited: {what}", hint)
    error.__cause__ = next(iter(faults.values()))
    return error
