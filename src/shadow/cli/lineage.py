"""`shadow lineage`: the stages of one base in order, from finished reports."""

from __future__ import annotations

import os
from dataclasses import asdict
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

    from shadow.targets.families import Family


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
    format: option.Format = "table",
    json: option.Json = False,
    registry: option.Registry = None,
) -> None:
    """Show the stages of one base in order, and what each step changed.

    The order comes from the checkpoints that finished reports name: the tuned side of one is the
    base of the next.

    Exit codes: 0 done; 1 failed; 2 wrong usage.
    """
    from shadow.comparing.lineage import MOST_REPORTS, unaudited
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
    in_order = ordered(steps)
    in_order.notes.extend(note for family in named for note in unaudited(family, steps))
    if json or format == "json":
        console.show_json(asdict(in_order))
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
