"""`shadow plan`: what an audit would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from shadow.cli import console
from shadow.cli.arguments import NamedTargets, access_of, list_here, selected
from shadow.cli.audit import of_pair, tell_left_out
from shadow.cli.options import (
    DEFAULT_OUTPUT,
    BaseReference,
    Component,
    Device,
    FetchName,
    FetchOption,
    Format,
    FormatOption,
    Jobs,
    Json,
    Layer,
    ListFile,
    MaxDisk,
    Module,
    Offline,
    Output,
    OwnName,
    Pickle,
    Precision,
    PrecisionName,
    Registry,
    ShardOption,
    StorageOptions,
    Tag,
    Targets,
    TunedReference,
)
from shadow.errors import ShadowError, UsageError
from shadow.storage import Store, located, parsed_options, work_folder

if TYPE_CHECKING:
    from shadow.audits.plan import PairPlan
    from shadow.targets.families import Pair


def plan(
    targets: Targets = None,
    base: BaseReference = None,
    tuned: TunedReference = None,
    name: OwnName = None,
    listed: ListFile = None,
    tag: Tag = None,
    shard: ShardOption = None,
    output: Output = DEFAULT_OUTPUT,
    storage_options: StorageOptions = None,
    component: Component = None,
    layer: Layer = None,
    module: Module = None,
    precision: Precision = PrecisionName.default,
    device: Device = "cpu",
    jobs: Jobs = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    format: FormatOption = Format.table,
    json: Json = False,
    registry: Registry = None,
) -> None:
    """Show what an audit would measure, download and need. Only headers are read.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    if json:
        format = Format.json
    options = parsed_options(storage_options)
    place = located(output, options)
    if isinstance(place, Store):
        place.require_writable()
        place = work_folder(place)
    selection = selected(
        NamedTargets(
            targets=targets or [],
            base=base,
            tuned=tuned,
            registry=registry,
            listed=list_here(listed, options),
            tags=tag or [],
            shard=shard,
            name=name,
        )
    )
    pairs = selection.own
    from shadow.checkpoints.choosing import filter_of

    chosen = filter_of(component or [], layer or [], module or [])
    access = access_of(allow_pickle=allow_pickle, offline=offline, fetch=fetch, max_disk=max_disk)
    from shadow.audits.devices import choose
    from shadow.audits.document import plan_document
    from shadow.audits.pair import Runtime, Settings, plan_pair
    from shadow.audits.plan import disk_hint
    from shadow.spectra.delta import Method

    tell_left_out(selection, console.say)
    settings = Settings(Method(precision.value), chosen, device=choose(device))
    runtime = Runtime(jobs=jobs, access=access, say=console.say)
    plans: list[PairPlan] = []
    faults = 0
    wrong = 0

    def complain(error: ShadowError, pair: Pair) -> None:
        nonlocal faults
        faults += 1
        console.complain(error if len(pairs) == 1 else of_pair(error, pair))

    for pair in pairs:
        try:
            planned = plan_pair(pair, settings, place, runtime=runtime)
        except ShadowError as error:
            if isinstance(error, UsageError) and len(pairs) == 1:
                raise
            if isinstance(error, UsageError):
                wrong += 1
            complain(error, pair)
            continue
        plans.append(planned)
        if format is Format.table:
            console.show(plan_document(planned))
        if planned.problem:
            hint = disk_hint(planned.disk_peak, access)
            complain(ShadowError(planned.problem, hint), pair)
    if format is Format.json:
        console.show_json([planned.as_json() for planned in plans])
    if faults:
        raise typer.Exit(2 if wrong == len(pairs) else 1)
