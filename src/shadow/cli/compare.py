"""Commands about several finished reports: compare, lineage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.options import FILE
from shadow.errors import ShadowError
from shadow.files import safe_name
from shadow.options import ARGUMENT, option
from shadow.process_settings import keep_pandas_out
from shadow.reports.folders import found_below, here, reports_at
from shadow.storage import url_of


def compare(
    runs: Sequence[Path] = shared.SEVERAL,
    margin: float = option(
        "Smallest difference of concentration that counts. The margins of the other figures follow"
        " from it.",
        0.05,
        metavar="NUMBER",
        min=0,
        max=1,
    ),
    allow_different_base: bool = option("Also compare deltas from different bases.", False),
    scores: Sequence[Path] = option(
        "Benchmark scores that others measured: a CSV, or results of lm-eval (JSON); may be"
        " repeated.",
        (),
        **FILE,
    ),
    format: shared.MarkdownFormat = shared.MARKDOWN,
) -> None:
    """Compare two models of one base, or two stages of one lineage. Says whose delta is more
    concentrated.

    Differences are paired over the same matrices, with their spread over layers and a margin.

    With --scores, also correlate gains with concentrations, over up to 200 reports of any bases.

    Exit codes: 0 done, whatever the verdict; 1 failed; 2 wrong usage.
    """
    keep_pandas_out()
    from shadow import api
    from shadow.telling.comparisons import comparison_document

    comparison = api.compare(
        *runs,
        margin=margin,
        allow_different_base=allow_different_base,
        scores=scores,
    )
    if format == "json":
        console.show_json(comparison.as_json())
    elif format == "markdown":
        from shadow.outputs.markdown import markdown

        console.show_text(markdown(comparison_document(comparison)))
    else:
        console.show(comparison_document(comparison))


def lineage(
    targets: Sequence[str] = option(
        "A family, which has its reports in the folder of -o; or a report's folder, or a folder"
        " above it.",
        ...,
        ARGUMENT,
        metavar="FAMILY|RUN",
    ),
    output: Path = shared.OUTPUT,
    format: shared.Format = shared.FORMAT,
    registry: Path | None = shared.REGISTRY,
) -> None:
    """Show the stages of one base in order, and what each changed.

    The order comes from the checkpoints that finished reports name: the tuned side of one is the
    base of the next.

    Exit codes: 0 done; 1 failed; 2 wrong usage.
    """
    keep_pandas_out()
    from shadow.comparing.lineage import MOST_REPORTS
    from shadow.comparing.lineage import lineage as ordered
    from shadow.targets.families import load_families
    from shadow.telling.comparisons import lineage_document
    from shadow.telling.reading import AuditReport, read_step

    families = load_families(registry)
    every = [
        folder
        for target in targets
        for folder in _reports_of(target, output, is_family=target in families)
    ]
    folders = list(dict.fromkeys(every))
    if len(folders) > MOST_REPORTS:
        raise ShadowError(f"{len(folders)} reports, more than {MOST_REPORTS}", "name fewer")
    read = (read_step(AuditReport(folder)) for folder in console.each("lineage", folders))
    steps = list(filter(None, read))
    if not steps:
        raise ShadowError(
            "all of these reports are of siblings, of which neither was tuned from the other"
        )
    in_order = ordered(steps)
    if format == "json":
        console.show_json(in_order.as_json())
    else:
        console.show(lineage_document(in_order))


def _reports_of(target: str, output: Path, *, is_family: bool) -> list[Path]:
    """The finished reports that an argument names."""
    if not is_family:
        path = here(Path(target))
        if os.path.lexists(path):
            return reports_at(path)
    if "/" not in target:  # a family, which no registry need have: one of a list, or of `--name`
        folder = here(output / safe_name(target))
        if folder.is_dir() and (reports := found_below(folder)):
            return reports
    where = f"no finished report of {target[:80]} below {url_of(output) or output}"
    name = target.partition(":")[0]
    hint = f"shadow audit {name}, or name -o" if is_family else "name a family, or a folder"
    raise ShadowError(where, hint)
