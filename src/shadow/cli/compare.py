"""Commands about several finished reports: compare, lineage."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.options import reports_here
from shadow.errors import ShadowError
from shadow.files import safe_name
from shadow.reports.folders import found_below, reports_at
from shadow.storage import url_of


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more reports: their folders, or folders above them; may be URLs.",
            metavar="RUN",
            callback=option.anywhere,
        ),
    ],
    margin: Annotated[
        float,
        typer.Option(
            help=(
                "Smallest difference of concentration that counts. The margins of the other figures"
                " follow from it."
            ),
            min=0,
            max=1,
        ),
    ] = 0.05,
    allow_different_base: Annotated[
        bool,
        typer.Option("--allow-different-base", help="Also compare deltas from different bases."),
    ] = False,
    scores: option.Scores = None,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="Also compare where the deltas point; reads the checkpoints."),
    ] = False,
    output: Annotated[
        Path | None,
        option.written(
            help="Parquet file for the compared rows, one for each matrix.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    jobs: option.Jobs = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read torch .bin files, in a child process."),
    ] = False,
    format: Annotated[
        Literal["table", "json", "markdown"],
        typer.Option(
            help="Print a table, json (short: --json), or markdown, for a pull request.",
            metavar="FORMAT",
        ),
    ] = "table",
) -> None:
    """Compare two models of one base, or two stages of one lineage. Says whose delta is more
    concentrated.

    Differences are paired over the same matrices, with their spread over layers and a margin.

    With --joint, also say how far two changes of one base point the same way. The checkpoints must
    be in folders or in the Hub's cache.

    With --scores, also correlate gains with concentrations, over up to 200 reports of any bases.

    Exit codes: 0 done, whatever the verdict; 1 failed; 2 wrong usage.
    """
    if joint:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    from shadow import api
    from shadow.reports.columns import COMPARISON
    from shadow.reports.parquet import write_rows
    from shadow.telling.comparisons import comparison_document

    with console.steps("compare") as update:
        comparison = api.compare(
            *runs,
            margin=margin,
            allow_different_base=allow_different_base,
            scores=scores or (),
            joint=joint,
            jobs=jobs,
            allow_pickle=allow_pickle,
            say=console.say,
            progress=update,
        )
    if output is not None:
        if comparison.not_contrasted:
            raise ShadowError(f"no rows for {output}: {comparison.not_contrasted}", "leave -o out")
        write_rows(output, COMPARISON, comparison.rows, provenance=comparison.provenance)
        console.say(f"{len(comparison.rows)} rows in {output}")
    if format == "json":
        console.show_json(comparison.as_json())
    elif format == "markdown":
        from shadow.outputs.markdown import markdown

        console.show_text(markdown(comparison_document(comparison)))
    else:
        console.show(comparison_document(comparison))


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
    from shadow.telling.comparisons import lineage_document
    from shadow.telling.reading import AuditReport, read_step

    families = load_families(registry)
    every = [
        folder for one in targets for folder in _reports_of(one, output, is_family=one in families)
    ]
    folders = list(dict.fromkeys(every))
    if len(folders) > MOST_REPORTS:
        raise ShadowError(f"{len(folders)} reports, more than {MOST_REPORTS}", "name fewer")
    steps = list(filter(None, (read_step(AuditReport(folder)) for folder in folders)))
    if not steps:
        raise ShadowError(
            "all of these reports are of siblings, of which neither was tuned from the other"
        )
    in_order = ordered(steps)
    for family in (families[one] for one in targets if one in families):
        in_order.notes.extend(unaudited(family, steps))
    if format == "json":
        console.show_json(asdict(in_order))
    else:
        console.show(lineage_document(in_order))


def _reports_of(target: str, output: Path, *, is_family: bool) -> list[Path]:
    """The finished reports that an argument stands for."""
    if not is_family:
        path = reports_here(Path(target))
        if os.path.lexists(path):
            return reports_at(path)
    if "/" not in target:  # a family, which no registry need have: one of a list, or of `--name`
        folder = reports_here(output / safe_name(target))
        if folder.is_dir() and (reports := found_below(folder)):
            return reports
    where = f"no finished report of {target[:80]} below {url_of(output) or output}"
    name = target.partition(":")[0]
    hint = f"shadow audit {name}, or name -o" if is_family else "name a family, or a folder"
    raise ShadowError(where, hint)
