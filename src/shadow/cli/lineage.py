"""`shadow lineage`: the stages of one base in order, from finished reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import reports_here
from shadow.errors import ShadowError
from shadow.files import safe_name
from shadow.reports.folders import found_below, reports_at
from shadow.storage import url_of
from shadow.text import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shadow.checkpoints.pairing import Filter
    from shadow.comparing.lineage import Chain, Joint, Lineage, Linearity, Step
    from shadow.targets.families import Family

LEFT_OUT = "left out by --no-joint"


def lineage(
    targets: Annotated[
        list[str],
        typer.Argument(
            help=(
                "A family, which has its reports in the folder of -o; or a report's folder, or a"
                " folder above it."
            ),
            metavar="FAMILY|RUN",
        ),
    ],
    output: option.Output = option.DEFAULT_OUTPUT,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint/--no-joint",
            help="Compare deltas that follow one another; reads the checkpoints.",
        ),
    ] = True,
    jobs: option.Jobs = None,
    allow_pickle: option.Pickle = False,
    format: option.Format = "table",
    json: option.Json = False,
    registry: option.Registry = None,
    help_all: option.HelpAll = False,
) -> None:
    """Show the stages of one base in order, and what each step changed.

    The order comes from the checkpoints that finished reports name: the tuned side of one is the
    base of the next.

    If the checkpoints are in folders or in the Hub's cache, the deltas of consecutive steps are
    compared as well.

    Exit codes: 0 done, also if the order has gaps, which are listed; 1 failed; 2 wrong usage.
    """
    as_json = json or format == "json"
    from shadow.comparing.lineage import (
        MOST_REPORTS,
        stage_names,
        successions,
        unaudited,
        with_joint,
        with_linearity,
    )
    from shadow.comparing.lineage import lineage as ordered
    from shadow.targets.families import load_families
    from shadow.telling.lineage import lineage_document
    from shadow.telling.reading import SummarisedReport, read_step

    families = load_families(registry)
    named = [families[target] for target in targets if target in families]
    every = [folder for target in targets for folder in _folders(target, families, output=output)]
    folders = list(dict.fromkeys(every))
    if len(folders) > MOST_REPORTS:
        raise ShadowError(f"{len(folders)} reports, more than {MOST_REPORTS}", "name fewer")
    steps = [
        step for folder in folders if (step := read_step(SummarisedReport(folder))) is not None
    ]
    if not steps:
        raise ShadowError(
            "all of these reports are of siblings, of which neither was tuned from the other"
        )
    in_order = ordered(steps, stage_names(named))
    in_order = in_order.noting([note for family in named for note in unaudited(family, steps)])
    after = successions(in_order)
    if joint and after:
        in_order = with_joint(in_order, _held(in_order, jobs, allow_pickle=allow_pickle))
    elif after:
        keys = [(step.folder, later.folder) for step, later in after]
        in_order = with_joint(in_order, dict.fromkeys(keys, LEFT_OUT))
    line = partial(_line, jobs=jobs, allow_pickle=allow_pickle) if joint else _no_line
    in_order = with_linearity(in_order, line)
    if as_json:
        console.show_json(in_order.as_json())
    else:
        console.show(lineage_document(in_order))


def _folders(target: str, families: Mapping[str, Family], *, output: Path) -> list[Path]:
    """The finished reports that an argument stands for."""
    if target not in families:
        path = reports_here(Path(target))
        if os.path.lexists(path):
            return reports_at(path)
    if "/" not in target:  # a family, which no registry need have: one of a list, or of `--name`
        folder = reports_here(output / safe_name(target))
        if folder.is_dir() and (reports := found_below(folder)):
            return reports
    if target in families:
        raise ShadowError(
            f"no finished report of {target} below {url_of(output) or output}",
            f"shadow audit {target}, or name -o",
        )
    hint = nearest(target, families) or "name a folder that `shadow audit` made"
    name, _, pair = target.partition(":")
    if pair and name in families:
        hint = f"name the family {name}"
    raise ShadowError(f"no family and no folder {target[:80]!r}", hint)


def _held(
    of_steps: Lineage, jobs: int | None, *, allow_pickle: bool
) -> dict[tuple[str, str], Joint | str]:
    """What the joint pass finds for every two successive steps; or why it cannot be made."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    from shadow.audits.joint import hold_against
    from shadow.comparing.lineage import successions

    held: dict[tuple[str, str], Joint | str] = {}
    for before, step in successions(of_steps):
        title = f"{before.start}..{before.end} and {step.start}..{step.end}"
        try:
            chosen = _chosen((before, step))
            with console.steps("lineage") as update:
                held[before.folder, step.folder] = hold_against(
                    (before.base, before.tuned, step.tuned),
                    jobs=jobs,
                    allow_pickle=allow_pickle,
                    chosen=chosen,
                    say=console.say,
                    show=_titled(update, title),
                )
        except ShadowError as error:
            held[before.folder, step.folder] = error.message
    return held


def _line(chain: Chain, jobs: int | None, *, allow_pickle: bool) -> Linearity | str:
    """What a straight line through its stages tells of a chain; or why nothing."""
    from shadow.audits.joint import linearity, steps_of_run

    try:
        with console.steps("lineage") as update:
            products, left_out = steps_of_run(
                [chain.steps[0].base, *(step.tuned for step in chain.steps)],
                jobs=jobs,
                allow_pickle=allow_pickle,
                chosen=_chosen(chain.steps),
                say=console.say,
                show=_titled(update, f"all stages to {chain.stages[-1]}"),
            )
    except ShadowError as error:
        return error.message
    return linearity([value for _, value in products], len(chain.stages), left_out)


def _no_line(chain: Chain) -> str:
    return LEFT_OUT


def _chosen(steps: Sequence[Step]) -> Filter:
    """What these audits were all restricted to. Raises ShadowError where they differ."""
    from shadow.checkpoints.pairing import Filter

    chosen = steps[0].chosen
    if any(step.chosen != chosen for step in steps):
        which = "two audits" if len(steps) == 2 else "audits"
        raise ShadowError(f"the {which} were restricted in different ways")
    return Filter(
        components=tuple(chosen.get("components", ())),
        layers=tuple(chosen.get("layers", ())),
        modules=tuple(chosen.get("modules", ())),
    )


def _titled(update: Callable[[int, int, str], None], title: str) -> Callable[[int, int], None]:
    return lambda done, total: update(done, total, title)
