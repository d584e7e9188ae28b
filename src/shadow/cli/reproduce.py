"""`shadow reproduce`: audit the pairs of a recipe and draw its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.audits.request import AuditRequest, Measuring
from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import files_of, of_pair
from shadow.errors import ShadowError
from shadow.files import placing, read_start
from shadow.text import nearest, several, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shadow.reports.report import Report
    from shadow.summary.by_layer import PairByLayer
    from shadow.targets.families import Pair
    from shadow.targets.recipes import Panel, Recipe
    from shadow.telling.document import Document

MARK = "<!-- shadow-audit recipe -->"  # the last line of a page, by which an own one is known again
LARGEST = 10_000_000  # bytes of a file that may be such a page


def reproduce(
    recipe: Annotated[
        str,
        typer.Argument(
            help=(
                "A recipe: benchmark-shadows, intruders, linearity, off-principal,"
                " output-over-query, subnetworks, unchanged; or a YAML file of your own."
            ),
            metavar="RECIPE",
        ),
    ],
    output: Annotated[
        Path | None,
        option.written(
            help="Folder for page, figures and reports; by default the recipe's name.",
            file_okay=False,
        ),
    ] = None,
    panel: Annotated[
        list[str] | None, typer.Option(help="Only this panel; repeat it for several.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what it would fetch and measure, and stop.")
    ] = False,
    jobs: option.Jobs = None,
    no_cache: option.NoCache = False,
    cache_dir: option.CacheFolder = None,
    overwrite: option.Overwrite = False,
    allow_pickle: option.Pickle = False,
    fetch: option.Fetch = "auto",
    max_disk: option.MaxDisk = None,
    offline: option.Offline = False,
    format: option.Format = "table",
    json: option.Json = False,
    registry: option.Registry = None,
    help_all: option.HelpAll = False,
) -> None:
    """Audit the pairs of a recipe, and draw its figures beside what noise alone would give.

    Writes a page, a figure for each panel, and the reports. After an interruption, the same command
    continues.

    Exit codes: 0 done; 1 a pair could not be audited; 2 wrong usage.
    """
    from shadow.targets.lists import Selection
    from shadow.targets.recipes import read_recipe

    chosen = read_recipe(recipe, registry)
    panels = chosen.only(panel or [])
    _require_columns(chosen)
    from shadow.extras import require

    if not plan:
        require("figure")
    pairs = tuple(dict.fromkeys(pair for one in panels for pair in one.pairs))
    folder = output or Path(chosen.name)
    request = AuditRequest(
        Selection(pairs, pairs),
        folder / "reports",
        Measuring(chosen.components, modules=chosen.modules, subjects=chosen.subjects),
        files_of(
            allow_pickle=allow_pickle,
            offline=offline,
            fetch=fetch,
            max_disk=max_disk,
            no_cache=no_cache,
            cache_dir=cache_dir,
        ),
        overwrite=overwrite,
        jobs=jobs,
    )
    as_json = json or format == "json"
    if plan:
        _plan(request, as_json=as_json)
        return
    from shadow.telling.recipe import recipe_document

    measured, faults = _audit(request, chosen, panels)
    document = recipe_document(chosen, panels, measured, faults)
    written = _write(chosen, panels, document, folder=folder, measured=measured)
    if as_json:
        console.show_json(_as_json(panels, measured, faults))
    else:
        console.show(document)
    console.say(f"page and figures in {folder}/: {', '.join(written)}")
    if faults:
        raise typer.Exit(1)


def _require_columns(recipe: Recipe) -> None:
    from shadow.reports.columns import delta_metrics

    known = delta_metrics()
    for column in [name for one in recipe.metrics for name in (one.column, one.alone) if name]:
        if column not in known:
            hint = nearest(column, known) or "`shadow schema matrices` lists the columns"
            raise ShadowError(f"{recipe.name}: no metric {short(column)} of a delta", hint)


def _plan(request: AuditRequest, *, as_json: bool) -> None:
    from shadow.audits.document import plan_document
    from shadow.audits.perform import planner

    plan_of = planner(request, console.say)
    planned = []
    for pair in request.selection.own:
        try:
            planned.append(plan_of(pair))
        except ShadowError as error:
            raise of_pair(error, pair) from error
    if as_json:
        console.show_json([one.as_json() for one in planned])
        return
    for one in planned:
        console.show(plan_document(one))


def _audit(
    request: AuditRequest, recipe: Recipe, panels: Sequence[Panel]
) -> tuple[dict[Pair, PairByLayer], dict[Pair, str]]:
    """The figures of every pair that could be audited and of every run, and what went wrong with
    the others.
    """
    from shadow.audits.perform import perform
    from shadow.reports.report import Report
    from shadow.summary.by_layer import by_layer

    reports: dict[Pair, Report] = {}
    measured: dict[Pair, PairByLayer] = {}
    faults: dict[Pair, str] = {}

    def failed(pair: Pair, error: ShadowError) -> None:  # one does not stop the others
        console.complain(of_pair(error, pair))
        faults[pair] = error.message

    bars = console.pairs_progress(len(request.selection.own), is_list=False)
    with console.continuable(request.folders()), bars as watch:
        for outcome in perform(request, say=console.say, watch=watch):
            try:
                reports[outcome.pair] = Report(outcome.finished().folder)
                measured[outcome.pair] = by_layer(reports[outcome.pair], recipe.metrics)
            except ShadowError as error:
                failed(outcome.pair, error)
    for panel in panels:
        if panel.run is not None:
            try:
                measured[panel.run] = _run(panel, panel.run, reports, request)
            except ShadowError as error:
                failed(panel.run, error)
    return measured, faults


def _run(
    panel: Panel, run: Pair, reports: Mapping[Pair, Report], request: AuditRequest
) -> PairByLayer:
    """How linear a run is, from the checkpoints of its reports. Raises ShadowError for one without
    all of them.
    """
    from shadow.audits.joint import steps_of_run
    from shadow.checkpoints.pairing import Filter
    from shadow.summary.by_layer import run_by_layer
    from shadow.summary.rows import checkpoint_side

    if missing := [pair.name for pair in panel.pairs if pair not in reports]:
        raise ShadowError(f"the run lacks {several(missing)}")
    told = [reports[pair].provenance for pair in panel.pairs]
    sides = [told[0].told["base"], *(one.told["tuned"] for one in told)]
    with console.steps("stages") as update:
        products, _ = steps_of_run(
            [checkpoint_side(side) for side in sides],
            jobs=request.jobs,
            allow_pickle=request.files.allow_pickle,
            chosen=Filter(told[0].components, told[0].layers, told[0].modules),
            say=console.say,
            show=lambda done, total: update(done, total, run.full_name),
        )
    return run_by_layer(run, [(place.layer, value) for place, value in products])


def _write(
    recipe: Recipe,
    panels: Sequence[Panel],
    document: Document,
    *,
    folder: Path,
    measured: dict[Pair, PairByLayer],
) -> list[str]:
    """A figure for each panel that has something to draw, and the page: their names, it first."""
    from shadow.outputs.figures import is_our_figure
    from shadow.outputs.figures.panel import draw_panel
    from shadow.outputs.markdown import markdown

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{recipe.name}.md"
    written = [page.name]
    for panel in panels:
        there = [measured[pair] for pair in panel.drawn if pair in measured]
        if there:
            drawn = draw_panel(there, panel.names(recipe.metrics))
            figure = folder / f"{panel.name}.svg"
            with placing(figure, is_our_figure, "a figure of shadow") as aside:
                aside.write_bytes(drawn)
            written.append(figure.name)
    with placing(page, _is_our_page, "a page of shadow reproduce") as aside:
        aside.write_bytes(f"{markdown(document, level=1)}\n{MARK}\n".encode())
    return written


def _is_our_page(path: Path) -> bool:
    """Whether `shadow reproduce` wrote the file."""
    content = read_start(path, LARGEST) or b""
    return content.rstrip().endswith(MARK.encode())


def _as_json(
    panels: Sequence[Panel], measured: dict[Pair, PairByLayer], faults: dict[Pair, str]
) -> list[dict[str, object]]:
    """What `--json` prints: for each panel its pairs and its run, with figures by layer."""
    from dataclasses import asdict

    def of_pair(panel: Panel, pair: Pair) -> dict[str, object]:
        published = panel.published.get(pair.full_name, {})
        if pair in measured:
            return {**asdict(measured[pair]), "published": published}
        error = faults.get(pair)
        return {"family": pair.family, "pair": pair.name, "error": error, "published": published}

    return [
        {
            "panel": panel.name,
            "pairs": [of_pair(panel, pair) for pair in panel.pairs],
            "run": panel.run and of_pair(panel, panel.run),
        }
        for panel in panels
    ]
