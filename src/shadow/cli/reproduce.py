"""`shadow reproduce`: audit the pairs of a recipe and draw its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.cli import console
from shadow.cli.arguments import access_of, cache_of
from shadow.cli.audit import of_pair
from shadow.cli.interrupts import Unfinished
from shadow.cli.options import (
    CacheFolder,
    FetchName,
    FetchOption,
    Format,
    FormatOption,
    Jobs,
    Json,
    MaxDisk,
    NoCache,
    Offline,
    Overwrite,
    Pickle,
    Registry,
    on_this_machine,
)
from shadow.errors import ShadowError
from shadow.text import nearest, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shadow.audits.pair import Runtime, Settings
    from shadow.summary.by_layer import PairByLayer
    from shadow.targets.families import Pair
    from shadow.targets.recipes import Panel, Recipe


def reproduce(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: benchmark-shadows, or a YAML file of your own.", metavar="RECIPE"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for page, figures and reports; by default the recipe's name.",
            file_okay=False,
            callback=on_this_machine,
        ),
    ] = None,
    panel: Annotated[
        list[str] | None, typer.Option(help="Only this panel; repeat it for several.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what it would fetch and measure, and stop.")
    ] = False,
    jobs: Jobs = None,
    no_cache: NoCache = False,
    cache_dir: CacheFolder = None,
    overwrite: Overwrite = False,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    format: FormatOption = Format.table,
    json: Json = False,
    registry: Registry = None,
) -> None:
    """Audit the pairs of a recipe, and draw its figures beside what noise alone would give.

    Writes a page, a figure for each panel, and the reports. After an interruption, the same command
    continues.

    Exit codes: 0 done; 1 a pair could not be audited; 2 wrong usage.
    """
    from shadow.targets.recipes import read_recipe

    chosen = read_recipe(recipe, registry)
    panels = chosen.only(panel or [])
    _require_columns(chosen)
    from shadow.extras import require

    if not plan:
        require("figure")
    from shadow.audits.pair import Runtime, Settings
    from shadow.checkpoints.choosing import filter_of
    from shadow.spectra.delta import Method

    settings = Settings(Method(), filter_of(chosen.components, [], chosen.modules))
    access = access_of(allow_pickle=allow_pickle, offline=offline, fetch=fetch, max_disk=max_disk)
    cache = cache_of(no_cache=no_cache, folder=cache_dir)
    runtime = Runtime(jobs=jobs, access=access, overwrite=overwrite, cache=cache, say=console.say)
    folder = output or Path(chosen.name)
    as_json = json or format is Format.json
    if plan:
        _plan(panels, settings, folder, runtime=runtime, as_json=as_json)
        return
    measured, faults = _audit(chosen, panels, settings, folder=folder, runtime=runtime)
    _write(chosen, panels, folder=folder, measured=measured, faults=faults)
    if as_json:
        console.show_json(_told(panels, measured, faults))
    else:
        from shadow.outputs.terminal.recipe import recipe_view

        console.display(recipe_view(chosen, panels, measured))
    figures = ", ".join(f"{one.name}.svg" for one in panels)
    console.say(f"page and figures in {folder}/: {chosen.name}.md, {figures}")
    if faults:
        raise typer.Exit(1)


def _require_columns(recipe: Recipe) -> None:
    from shadow.reports.columns import delta_metrics

    for metric in recipe.metrics:
        if metric not in delta_metrics():
            hint = nearest(metric, delta_metrics()) or "`shadow schema matrices` lists the columns"
            raise ShadowError(f"{recipe.name}: no metric {short(metric)} of a delta", hint)


def _pairs(panels: Sequence[Panel]) -> list[Pair]:
    """The pairs of panels, each once."""
    return list(dict.fromkeys(pair for panel in panels for pair in panel.pairs))


def _plan(
    panels: Sequence[Panel], settings: Settings, folder: Path, runtime: Runtime, *, as_json: bool
) -> None:
    from shadow.audits.pair import plan_pair
    from shadow.outputs.terminal.plan import plan_view

    planned = []
    for pair in _pairs(panels):
        try:
            planned.append(plan_pair(pair, settings, folder / "reports", runtime=runtime))
        except ShadowError as error:
            raise of_pair(error, pair) from error
    if as_json:
        console.show_json([one.as_json() for one in planned])
        return
    for one in planned:
        console.display(plan_view(one, console.out.options.max_width))


def _audit(
    recipe: Recipe, panels: Sequence[Panel], settings: Settings, folder: Path, runtime: Runtime
) -> tuple[dict[Pair, PairByLayer], dict[Pair, str]]:
    """The figures of every pair that could be audited, and what went wrong with the others."""
    from shadow.audits.pairs import audit_pairs
    from shadow.reports.report import Report
    from shadow.summary.by_layer import by_layer

    pairs = _pairs(panels)
    measured: dict[Pair, PairByLayer] = {}
    faults: dict[Pair, str] = {}
    try:
        with console.pairs_progress(len(pairs), is_list=False) as watch:
            for outcome in audit_pairs(
                pairs, settings, folder / "reports", runtime=runtime, watch=watch
            ):
                try:
                    report = Report(outcome.finished().folder)
                    measured[outcome.pair] = by_layer(report, recipe.metrics)
                except ShadowError as error:  # one failing pair does not stop the others
                    console.complain(of_pair(error, outcome.pair))
                    faults[outcome.pair] = error.message
    except KeyboardInterrupt:
        raise Unfinished from None
    return measured, faults


def _write(
    recipe: Recipe,
    panels: Sequence[Panel],
    *,
    folder: Path,
    measured: dict[Pair, PairByLayer],
    faults: dict[Pair, str],
) -> None:
    """A figure for each panel that has a pair, then the page."""
    from shadow.files import placing
    from shadow.outputs.figures import is_our_figure
    from shadow.outputs.figures.panel import draw_panel
    from shadow.outputs.recipe_page import is_our_page, recipe_page

    folder.mkdir(parents=True, exist_ok=True)
    for panel in panels:
        there = [measured[pair] for pair in panel.pairs if pair in measured]
        if there:
            drawn = draw_panel(there, recipe.metrics)
            figure = folder / f"{panel.name}.svg"
            with placing(figure, is_our_figure, "a figure of shadow") as aside:
                aside.write_bytes(drawn)
    page = recipe_page(recipe, panels, measured, faults=faults)
    with placing(folder / f"{recipe.name}.md", is_our_page, "a page of shadow reproduce") as aside:
        aside.write_bytes(page.encode())


def _told(
    panels: Sequence[Panel], measured: dict[Pair, PairByLayer], faults: dict[Pair, str]
) -> list[dict[str, object]]:
    """What `--json` prints: for each panel its pairs, with the figures of every layer."""
    from dataclasses import asdict

    def told(pair: Pair) -> dict[str, object]:
        if pair in measured:
            return asdict(measured[pair])
        return {"family": pair.family, "pair": pair.name, "error": faults.get(pair)}

    return [
        {"panel": panel.name, "pairs": [told(pair) for pair in panel.pairs]} for panel in panels
    ]
