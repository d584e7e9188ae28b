"""`shadow audit`: measure pairs, one by one or as a list."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import of_pair, prepare, say_left_out, selected
from shadow.cli.gate import at_fault, baselines_of, begin, claims_of, finish, judged_of, rules_of
from shadow.cli.screens import SIDE_BY_SIDE, show_headlines, show_pair, show_pairs
from shadow.engines.engine import Ray
from shadow.errors import ShadowError, UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.run.runtime import Files
from shadow.storage import Store, located, work_folder

if TYPE_CHECKING:
    from shadow.gates.measured import Measured
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement
    from shadow.lists.pairs import PairOutcome
    from shadow.targets.families import Pair


@option.typed(pairs=option.Pairs, measuring=Measuring, files=Files, rules=option.Rules)
def audit(
    pairs: option.Pairs,
    measuring: Measuring,
    files: Files,
    rules: option.Rules,
    targets: option.Targets = None,
    output: option.Output = option.DEFAULT_OUTPUT,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help=(
                "Replace finished reports that differ. Otherwise those of other settings, files or"
                " commits are kept, with exit code 1, and those of another version with 0."
            ),
        ),
    ] = False,
    jobs: option.Jobs = None,
    engine: Annotated[
        str,
        typer.Option(
            help=(
                "Run pairs one after another in this process (local), or as tasks of ray, several"
                " at a time. ray:cpus=2,memory=16GB,address=auto says what each task gets, and"
                " names a cluster."
            ),
            metavar="ENGINE",
        ),
    ] = "local",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 if a tensor was skipped that should have been measured.",
            rich_help_panel=option.PANELS["Rules"],
        ),
    ] = False,
    format: option.PairsFormat = "table",
    quiet: option.Quiet = False,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob or --shard, index.json and batch.parquet say how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite
    replaces it.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but a side is broken, the two are not
    states of one model, or --strict found a skipped tensor; 4 done, but a rule was violated; 5
    done, but a check is inconclusive.
    """
    begin(rules.junit, "audit")
    judging = rules_of(rules)
    ray = Ray.of(engine)
    say = console.say_nothing if quiet else console.say
    selection = selected(targets, pairs)
    claims = claims_of(selection)
    from shadow.process_settings import uncollected

    with uncollected():
        from shadow.lists.perform import perform

        gc.freeze()  # all of torch and pandas stays: to look for cycles there took 0.1 s

    prepare(files)
    request = AuditRequest(
        selection, located(output), measuring, files, overwrite=overwrite, jobs=jobs, ray=ray
    )
    own = [(pair.family, pair.name) for pair in selection.own]
    baselines = baselines_of(rules.against, own, say, allow_missing=rules.allow_missing)
    shown = _Shown(request, judging, claims, baselines, strict, format, quiet, say)
    bars = console.pairs_progress(
        len(selection.own),
        is_list=selection.is_list,
        hidden=quiet,
        several=ray is not None and not request.is_cut,
    )
    with console.continuable(request.folders()), bars as watch:
        outcomes = perform(request, say=say, watch=watch)
        if selection.is_list:
            say_left_out(selection, say)
        with closing(outcomes):
            judged, wrong_usage = _judged(shown, outcomes)
    _show(shown, judged)
    if shown.bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", shown.bugs)
    finish(judged, rules.junit, against=rules.against, wrong_usage=wrong_usage)


@dataclass(frozen=True)
class _Shown:
    """A request, what its reports are held against, and what is printed of them."""

    request: AuditRequest
    rules: Sequence[Rule]
    claims: Mapping[Pair, Sequence[Rule]]
    """Further rules of pairs: what a list says of them."""
    baselines: Mapping[tuple[str, str], Measured]
    """By family and pair: the earlier reports that figures must not have moved from."""
    strict: bool
    format: Literal["table", "json", "jsonl"]
    quiet: bool
    say: Callable[[str], None]
    bugs: list[Exception] = field(default_factory=list)
    """Faults of shadow itself, which do not stop a list."""

    @property
    def as_json(self) -> bool:
        """Whether JSON is printed, of all pairs at the end."""
        return self.format != "table"

    @property
    def shows_each(self) -> bool:
        """Whether a report is shown when it is finished."""
        return not (self.as_json or self.quiet or self.request.selection.is_list)


def _judged(shown: _Shown, outcomes: Iterable[PairOutcome]) -> tuple[list[Judgement], bool]:
    """The judgements in the order of the pairs, and whether no pair has what was asked for."""
    from shadow.gates.verdicts import Judgement

    request = shown.request
    judged: dict[Pair, Judgement] = {}
    wrong = 0
    for outcome in outcomes:
        family, name = outcome.pair.family, outcome.pair.name
        try:
            judged[outcome.pair] = _judgement(shown, outcome)
        except ShadowError as error:  # one failing pair does not stop the others
            if isinstance(error, UsageError) and request.is_alone:
                raise
            wrong += isinstance(error, UsageError)
            fault = error if request.is_alone else of_pair(error, outcome.pair)
            judged[outcome.pair] = at_fault(
                family, name, fault, seconds=outcome.seconds, kept=outcome.state == "kept"
            )
        except Exception as bug:
            if not request.selection.is_list or outcome.error is None:
                raise
            shown.bugs.append(bug)
            judged[outcome.pair] = Judgement(
                family, name, seconds=outcome.seconds, fault=outcome.error.message
            )
    pairs = request.selection.own
    return [judged[pair] for pair in pairs if pair in judged], 0 < wrong == len(pairs)


def _judgement(shown: _Shown, outcome: PairOutcome) -> Judgement:
    """What came of one report; outside of a list both are shown at once."""
    from shadow.gates.document import rules_document
    from shadow.gates.measured import Reading

    result = outcome.finished()
    summary, pairs = result.summary, len(shown.request.selection.own)
    if shown.shows_each:
        show_pair(summary, result.provenance, result.place, of=pairs)
    baseline = shown.baselines.get((summary.family, summary.pair))
    claims = {rule.name: rule for rule in shown.claims.get(outcome.pair, ())}
    judgement = judged_of(
        result,
        [*(rule for rule in shown.rules if rule.name not in claims), *claims.values()],
        baseline,
        Reading(shown.request.files, shown.request.jobs, shown.say),
        seconds=outcome.seconds,
        strict=shown.strict,
    )
    if shown.shows_each:
        titled = pairs > SIDE_BY_SIDE
        console.show(rules_document(judgement, titled=titled))
    return judgement


def _show(shown: _Shown, judged: Sequence[Judgement]) -> None:
    """At the end: of several pairs how they stand, and all that is given as JSON."""
    request = shown.request
    if shown.quiet and not shown.as_json:
        show_headlines(one.summary for one in judged if one.summary is not None)
        return
    if not request.selection.is_list:
        if shown.as_json:
            console.show_json_pairs(_summaries(judged), shown.format)
        elif not request.is_alone:
            show_pairs(judged, str(request.output))
        return
    from shadow.gates.document import rules_document
    from shadow.lists.document import list_document
    from shadow.lists.index import read_index

    output = request.output
    index = read_index(work_folder(output) if isinstance(output, Store) else output)
    assert index is not None
    if shown.as_json:
        console.show_json_pairs(_summaries(judged), shown.format, index.as_json())
        return
    console.show(list_document(index))
    for judgement in judged:
        console.show(rules_document(judgement, titled=True))


def _summaries(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The summaries of what was audited, with what came of the rules where there are any."""
    summaries = []
    for judgement in judged:
        if judgement.summary is not None:
            summary = judgement.summary.as_json()
            if judgement.verdicts:
                summary["judged"] = judgement.as_json()
            summaries.append(summary)
    return summaries
