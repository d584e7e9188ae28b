"""`shadow audit`: measure pairs, one by one or as a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadow.cli import console
from shadow.cli.arguments import access_of, selected
from shadow.cli.gate import at_fault, baselines_of, finish, judged_of, rules_of
from shadow.cli.options import (
    DEFAULT_OUTPUT,
    Against,
    AllowMissing,
    BaseReference,
    Component,
    FailOn,
    FetchName,
    FetchOption,
    Format,
    FormatOption,
    Jobs,
    Junit,
    Layer,
    ListFile,
    MaxDisk,
    Module,
    Offline,
    OptimizerOption,
    Output,
    Overwrite,
    Pickle,
    PolicyFile,
    Precision,
    PrecisionName,
    Registry,
    Scores,
    ShardOption,
    Tag,
    Targets,
    TunedReference,
)
from shadow.cli.scores import scores_of_pairs
from shadow.errors import ShadowError, UsageError

if TYPE_CHECKING:
    from shadow.audits.pair import AuditResult, Settings
    from shadow.audits.plan import Access
    from shadow.findings.scores import ScoreFiles
    from shadow.gates.verdicts import Judgement
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


def audit(
    targets: Targets = None,
    base: BaseReference = None,
    tuned: TunedReference = None,
    listed: ListFile = None,
    tag: Tag = None,
    shard: ShardOption = None,
    output: Output = DEFAULT_OUTPUT,
    component: Component = None,
    layer: Layer = None,
    module: Module = None,
    precision: Precision = PrecisionName.default,
    nulls: Annotated[int, typer.Option(help="Also sample the null with this many sign flips.", min=0, max=1000)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sign flips.", min=0)] = 0,
    subspaces: Annotated[
        bool, typer.Option("--subspaces/--no-subspaces", help="Compare the leading singular subspaces.")
    ] = True,
    jobs: Jobs = None,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Write spectra.parquet.")] = True,
    overwrite: Overwrite = False,
    optimizer: OptimizerOption = None,
    scores: Scores = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a tensor was skipped that should have been measured.")
    ] = False,
    fail_on: FailOn = None,
    policy: PolicyFile = None,
    against: Against = None,
    allow_missing: AllowMissing = False,
    junit: Junit = None,
    format: FormatOption = Format.table,
    registry: Registry = None,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob, --tag or --shard, index.json and batch.parquet say how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite replaces it.

    Exit codes: 0 done; 1 could not; 2 wrong usage; 3 done, but --strict objects; 4 done, but a rule was met.
    """
    rules = rules_of(fail_on, policy, against, allow_missing, junit)
    selection = selected(targets, base, tuned, registry, listed, tag, shard)
    pairs = selection.own
    from shadow.checkpoints.choosing import filter_of

    chosen = filter_of(component or [], layer or [], module or [])
    from shadow.audits.pair import Settings
    from shadow.outputs.terminal.rules import rules_view
    from shadow.spectra.delta import Method

    method = Method(precision.value, nulls, seed, subspaces)
    settings = Settings(method, chosen, spectra, None if optimizer is None else optimizer.value)
    access = access_of(allow_pickle, offline, fetch, max_disk)
    given = scores_of_pairs(scores or [], pairs)
    baselines = baselines_of(against, [(pair.family, pair.name) for pair in pairs], allow_missing)

    def judge(result: AuditResult) -> Judgement:
        return judged_of(result, rules, baselines.get((result.summary.family, result.summary.pair)), strict)

    if selection.is_list:
        judged, wrong = _audit_list(selection, settings, output, jobs, access, given, overwrite, judge, format)
        finish(judged, junit, wrong_usage=wrong)
        return
    judged, faults = [], 0
    for pair in pairs:
        try:
            show = format is Format.table
            result = _audit_one(pair, settings, output, jobs, access, overwrite, show=show, scores=given.get(pair))
            judged.append(judged_of(result, rules, baselines.get((pair.family, pair.name)), strict))
        except KeyboardInterrupt:
            console.say("stopped; run the same command again to continue")
            raise typer.Exit(130) from None
        except ShadowError as error:  # one failing pair does not stop the others
            if isinstance(error, UsageError) and len(pairs) == 1:
                raise
            faults += isinstance(error, UsageError)
            judged.append(at_fault(pair.family, pair.name, of_pair(error, pair, pairs)))
            continue
        if rules and format is Format.table:
            console.display(rules_view(judged[-1]))
    if format is Format.json:
        console.show_json(_told(judged))
    finish(judged, junit, wrong_usage=faults == len(pairs))


def _audit_list(
    selection: Selection,
    settings: Settings,
    output: Path,
    jobs: int | None,
    access: Access,
    scores: Mapping[Pair, ScoreFiles],
    overwrite: bool,
    judge: Callable[[AuditResult], Judgement],
    form: Format,
) -> tuple[list[Judgement], bool]:
    """Audit the pairs of a list, every one, and show how they stand; what came of each, and has none what was asked?"""
    from shadow.audits.index import read_index
    from shadow.audits.listing import audit_list
    from shadow.gates.verdicts import Judgement
    from shadow.outputs.terminal.batch import batch_view
    from shadow.outputs.terminal.rules import rules_view

    tell_left_out(selection)
    judged: list[Judgement] = []
    bugs: list[Exception] = []
    wrong = 0
    with console.list_progress(len(selection.own)) as watch:
        try:
            for tried in audit_list(
                selection, settings, output, jobs=jobs, access=access, scores=scores, overwrite=overwrite,
                say=console.say, watch=watch,
            ):  # fmt: skip
                wrong += isinstance(tried.fault, UsageError)
                if tried.result is not None:
                    try:
                        judged.append(judge(tried.result))
                    except ShadowError as fault:  # does not stop the others
                        judged.append(at_fault(tried.row.family, tried.row.pair, fault))
                elif isinstance(tried.fault, ShadowError):
                    error = ShadowError(f"{tried.row.name}: {tried.fault.message}", tried.fault.hint)
                    judged.append(at_fault(tried.row.family, tried.row.pair, error))
                elif tried.fault is not None:
                    bugs.append(tried.fault)
                    judged.append(Judgement(tried.row.family, tried.row.pair, fault=str(tried.row.error)))
        except KeyboardInterrupt:
            console.say("stopped; run the same command again to continue")
            raise typer.Exit(130) from None
    index = read_index(output)
    assert index is not None
    if form is Format.json:
        console.show_json({**index.as_json(), "reports": _told(judged)})
    else:
        console.display(batch_view(index, console.out.options))
        for one in judged:
            if one.verdicts:
                console.display(rules_view(one, titled=True))
    if bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", bugs)
    return judged, 0 < wrong == len(selection.own)


def _audit_one(
    pair: Pair,
    settings: Settings,
    output: Path,
    jobs: int | None,
    access: Access,
    overwrite: bool,
    *,
    show: bool,
    scores: ScoreFiles | None,
) -> AuditResult:
    from shadow.audits.pair import run_pair
    from shadow.outputs.terminal.summary import summary_view

    with console.progress(f"{pair.family}:{pair.name}") as update:
        result = run_pair(
            pair, settings, output, jobs=jobs, access=access, say=console.say, show=update, scores=scores,
            overwrite=overwrite,
        )  # fmt: skip
    if show:
        console.display(summary_view(result.summary, result.provenance, result.folder, console.out.options))
    return result


def _told(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The summaries of what was audited, with what came of the rules where there are any."""
    return [
        one.summary.as_json() | ({"judged": one.as_json()} if one.verdicts else {}) for one in judged if one.summary
    ]


def tell_left_out(selection: Selection) -> None:
    """What a list, a glob or a tag left out."""
    for name in selection.passed_over:
        console.say(f"{name} has no pair to compare: `shadow families {name}` says why")
    if not selection.own:
        count = len(selection.pairs)
        console.say(f"nothing to audit in shard {selection.shard}: the list has {count} pair{'s' * (count > 1)}")


def of_pair(error: ShadowError, pair: Pair, pairs: tuple[Pair, ...]) -> ShadowError:
    """The fault of one pair among several."""
    return error if len(pairs) == 1 else ShadowError(f"{pair.family}:{pair.name}: {error.message}", error.hint)
