"""`shadow plan`: what an audit would take."""

from __future__ import annotations

import typer

from shadow.cli import console
from shadow.cli.arguments import access_of, selected
from shadow.cli.audit import of_pair, tell_left_out
from shadow.cli.options import (
    DEFAULT_OUTPUT,
    BaseReference,
    Component,
    FetchName,
    FetchOption,
    Format,
    FormatOption,
    Jobs,
    Layer,
    ListFile,
    MaxDisk,
    Module,
    Offline,
    Output,
    Pickle,
    Precision,
    PrecisionName,
    Registry,
    ShardOption,
    Tag,
    Targets,
    TunedReference,
)
from shadow.errors import ShadowError, UsageError


def plan(
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
    jobs: Jobs = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    format: FormatOption = Format.table,
    registry: Registry = None,
) -> None:
    """Show what an audit would measure, download and need. Only headers are read.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    selection = selected(targets, base, tuned, registry, listed, tag, shard)
    pairs = selection.own
    from shadow.checkpoints.choosing import filter_of

    chosen = filter_of(component or [], layer or [], module or [])
    access = access_of(allow_pickle, offline, fetch, max_disk)
    from shadow.audits.pair import Settings, plan_pair
    from shadow.audits.plan import DISK_HINT
    from shadow.outputs.terminal.plan import plan_view
    from shadow.spectra.delta import Method

    tell_left_out(selection)
    settings = Settings(Method(precision.value), chosen)
    plans, faults, wrong = [], [], 0
    for pair in pairs:
        try:
            found = plan_pair(pair, settings, output, jobs=jobs, access=access, say=console.say)
        except ShadowError as error:
            if isinstance(error, UsageError) and len(pairs) == 1:
                raise
            wrong += isinstance(error, UsageError)
            faults.append(of_pair(error, pair, pairs))
            console.complain(faults[-1])
            continue
        plans.append(found)
        if format is Format.table:
            console.display(plan_view(found, console.out.options.max_width))
        if found.problem:
            faults.append(of_pair(ShadowError(found.problem, DISK_HINT), pair, pairs))
            console.complain(faults[-1])
    if format is Format.json:
        console.show_json([found.as_json() for found in plans])
    if faults:
        raise typer.Exit(2 if wrong == len(pairs) else 1)
