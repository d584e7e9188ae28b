"""A request -> the plans of its pairs, and the settings and runtime of their audits.

Only this module derives settings and runtime from a request. It imports neither torch nor SciPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, get_args

from shadow.checkpoints.pairing import Filter, filter_of
from shadow.errors import UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.run.pair_plan import PairPlan, plan_pair
from shadow.run.runtime import Runtime, access_of, cache_of, require_known
from shadow.run.settings import Settings, choose
from shadow.spectra.measurement import Level, Method, Subjects
from shadow.storage import Store, work_folder
from shadow.targets.families import Pair
from shadow.text import counted


def planner(request: AuditRequest, say: Callable[[str], None]) -> Callable[[Pair], PairPlan]:
    """A function that plans a pair of a request, from headers alone."""
    settings = settings_of(request.measuring)
    runtime = runtime_of(request, say)
    output = request.output
    if isinstance(output, Store):
        output = work_folder(output)
    return partial(plan_pair, settings=settings, output=output, runtime=runtime)


def settings_of(measuring: Measuring) -> Settings:
    """The settings of an audit. Raises UsageError for an invalid word or number."""
    require_known("level", measuring.level, get_args(Level))
    require_known("subjects", measuring.subjects, get_args(Subjects))
    method = Method(**_shared(Method, measuring))
    if method.subjects == "delta" and not method.has_spectra:
        hint = "leave out --subjects"
        raise UsageError(f"--subjects chooses spectra, which level {method.level} lacks", hint)
    return Settings(
        method,
        filter_of(**_shared(Filter, measuring)),
        spectra=measuring.spectra and method.has_spectra,
        by_number=measuring.by_number,
        device=choose(measuring.device),
    )


def _shared(record: type, measuring: Measuring) -> dict[str, Any]:
    """The fields of a record as the options of the same names have them."""
    return {field.name: getattr(measuring, field.name) for field in fields(record)}


def runtime_of(request: AuditRequest, say: Callable[[str], None]) -> Runtime:
    """Make the runtime of a request, and report a shard that has no pairs."""
    selection = request.selection
    if not selection.own:
        pairs = counted(len(selection.pairs), "pair", "pairs")
        say(f"nothing to audit in shard {selection.shard}: the list has {pairs}")
    return Runtime(
        jobs=request.jobs,
        access=access_of(request.files),
        checkpoints=request.checkpoints,
        overwrite=request.overwrite,
        cache=cache_of(request.files),
        say=say,
    )
