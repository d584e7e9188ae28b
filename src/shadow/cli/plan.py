"""`shadow plan`: what an audit would take."""

from __future__ import annotations

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import of_pair, prepare, say_left_out, selected
from shadow.errors import ShadowError, UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.run.runtime import Files
from shadow.storage import located


@option.typed(pairs=option.Pairs, measuring=Measuring, files=Files)
def plan(
    pairs: option.Pairs,
    measuring: Measuring,
    files: Files,
    targets: option.Targets = None,
    output: option.Output = option.DEFAULT_OUTPUT,
    jobs: option.Jobs = None,
    format: option.PairsFormat = "table",
) -> None:
    """Show what an audit would measure, download and need. Only headers are read.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    selection = selected(targets, pairs)
    prepare(files)
    request = AuditRequest(selection, located(output), measuring, files, jobs=jobs)
    from shadow.lists.document import plan_document, plans_document
    from shadow.lists.perform import planner

    plan_of = planner(request, console.say)
    say_left_out(selection, console.say)
    is_alone = len(selection.own) == 1
    plans = []
    faults: list[ShadowError] = []
    for pair in selection.own:
        fault = None
        try:
            planned = plan_of(pair)
        except ShadowError as error:
            if isinstance(error, UsageError) and is_alone:
                raise
            fault = error
        else:
            plans.append(planned)
            if format == "table":
                console.show(plan_document(planned))
            if planned.problem:
                fault = ShadowError(planned.problem, planned.hint)
        if fault is not None:
            faults.append(fault)
            console.complain(fault if is_alone else of_pair(fault, pair))
    if format == "table" and len(selection.own) > 1 and plans:
        console.show(plans_document(plans, len(selection.own)))
    if format != "table":
        console.show_json_pairs([planned.as_json() for planned in plans], format)
    if faults:
        wrong = sum(isinstance(fault, UsageError) for fault in faults)
        raise typer.Exit(2 if wrong == len(selection.own) else 1)
