"""Recipes: files that say which pairs to audit, what of them, and which figures to draw, to check a
claim.

A recipe is YAML in `registry/recipes/` or anywhere: title, source, components, modules, metrics,
and panels, each with a text, what it bears on, pairs as in a list of `--list` or the stages of one
run, and what was published of these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadow.errors import ShadowError, UsageError
from shadow.files import registry_folder
from shadow.targets.families import Pair
from shadow.targets.lists import entries_of, select
from shadow.targets.plain_yaml import KeyPath
from shadow.text import nearest, short

if TYPE_CHECKING:
    from shadow.targets.forms import PanelForm
    from shadow.targets.references import Reference

DESCRIBED = "docs/reproduce.md describes recipes"
MOST_PAIRS = 12  # of a panel
LINEARITY = "linearity"  # the figure of a run


# a column, and the one of what storage or chance alone gives
ALONE = {
    "zero_share": "zero_share_expected",
    "participation_ratio": "null_participation_ratio",
    "alignment_left": "alignment_left_null",
    "alignment_right": "alignment_right_null",
}


@dataclass(frozen=True)
class Metric:
    """A figure of a recipe."""

    column: str
    """A column of matrices.parquet that deltas have."""
    alone: str | None = None
    """The column of what storage or chance alone gives; None: what is known without one."""
    module: str | None = None
    """None: all modules together."""
    over: str | None = None
    """The module that the figure of `module` is divided by."""
    mean: str | None = None
    """How one figure is made of all matrices in layers: the mean over `matrices`, or over their
    `entries`; None: the median over layers.
    """

    @property
    def name(self) -> str:
        """`zero_share`, or `relative_norm attn.o/attn.q`: unique in a recipe."""
        return f"{self.column} {self.module}/{self.over}" if self.over else self.column


@dataclass(frozen=True)
class Panel:
    """One figure of a recipe."""

    name: str
    """Letters, digits and `._-`: also the name of its file."""
    text: str
    """What it shows."""
    bears_on: str
    """Which claim it bears on."""
    pairs: tuple[Pair, ...]
    """What is audited: 1 to 12, or the steps of a run in order."""
    published: Mapping[str, Mapping[str, float]]
    """What the source says, by the full name of a pair and the name of a metric."""
    run: Pair | None = None
    """The first and the last stage of a run, which is drawn in place of its steps; None where pairs
    have nothing to do with one another.
    """

    @property
    def drawn(self) -> tuple[Pair, ...]:
        """What its figure is of."""
        return self.pairs if self.run is None else (self.run,)

    def names(self, metrics: Sequence[Metric]) -> list[str]:
        """The figures that are drawn."""
        return [metric.name for metric in metrics] if self.run is None else [LINEARITY]

    def figures(self, metrics: Sequence[Metric]) -> list[tuple[Pair, str]]:
        """Every pair with each figure that is told of it, in order."""
        drawn = [(pair, name) for pair in self.drawn for name in self.names(metrics)]
        steps = self.pairs if self.run else ()
        return [*drawn, *((pair, metric.name) for pair in steps for metric in metrics)]


@dataclass(frozen=True)
class Recipe:
    """What to audit and to draw."""

    name: str
    """That of its file."""
    title: str
    source: str
    """Where the claim was made."""
    components: tuple[str, ...]
    """Only these components are audited; empty: all."""
    modules: tuple[str, ...]
    """Only these modules, or globs over them; empty: all."""
    metrics: tuple[Metric, ...]
    """What is drawn by layer, 1 or more."""
    panels: tuple[Panel, ...]
    """The figures, 1 to 20."""
    subjects: Literal["all", "delta", "none"] = "all"
    """Whose spectra are measured: of base, tuned and delta; of the delta; or of none."""

    def only(self, names: Collection[str]) -> tuple[Panel, ...]:
        """The panels of these names; all without any. Raises UsageError for a name that is none."""
        known = [panel.name for panel in self.panels]
        for name in names:
            if name not in known:
                hint = nearest(name, known) or f"it has {', '.join(known)}"
                raise UsageError(f"the recipe {self.name} has no panel {short(name)}", hint)
        return tuple(panel for panel in self.panels if not names or panel.name in names)


def recipe_files() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {file.stem: file for file in sorted((registry_folder() / "recipes").glob("*.yaml"))}


def read_recipe(name: str, registry: Path | None = None) -> Recipe:
    """A shipped recipe by its name, or the one in a file.

    registry: a folder with more families, that targets may name. Raises UsageError where there is
    none of that name, ShadowError, which names the line, for whatever is no recipe.
    """
    shipped = recipe_files()
    file = shipped.get(name, Path(name))
    if file.suffix.lower() not in (".yaml", ".yml"):
        there = f"there is {', '.join(shipped)}; or name a file that ends in .yaml"
        raise UsageError(f"no recipe {short(name)}", nearest(name, shipped) or there)
    from shadow.targets.checked import read_form
    from shadow.targets.forms import RecipeForm

    form, lines = read_form(RecipeForm, file, hint=DESCRIBED)
    panels = tuple(
        _panel(name, panel, lines, file=file, registry=registry)
        for name, panel in form.panels.items()
    )
    metrics = tuple(
        Metric(**{**one.model_dump(), "alone": one.alone or ALONE.get(one.column)})
        for one in form.metrics
    )
    _require_known(panels, metrics, lines, file)
    named: dict[str, Pair] = {}
    for panel in panels:
        for pair in (*panel.pairs, *panel.drawn):
            if named.setdefault(pair.full_name, pair) != pair:
                line = lines["panels", panel.name]
                message = f"{file}:{line}: two different pairs are called {pair.full_name}"
                raise ShadowError(message, DESCRIBED)
    return Recipe(
        name=file.stem,
        title=form.title,
        source=form.source,
        components=tuple(form.components),
        modules=tuple(form.modules),
        metrics=metrics,
        panels=panels,
        subjects=form.subjects,
    )


def _require_known(
    panels: Sequence[Panel], metrics: Sequence[Metric], lines: Mapping[KeyPath, int], file: Path
) -> None:
    """Raises ShadowError for a figure listed twice, or published of no such pair or metric."""
    names = [metric.name for metric in metrics]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        message = f"{file}:{lines['metrics',]}: the metric {twice} is listed twice"
        raise ShadowError(message, DESCRIBED)
    for panel in panels:
        told: dict[str, list[str]] = {}
        for pair, name in panel.figures(metrics):
            told.setdefault(pair.full_name, []).append(name)
        for of, figures in panel.published.items():
            where: KeyPath = ("panels", panel.name, "published", of)
            unknown = (("pair", of, [*told]), *(("metric", n, told.get(of, [])) for n in figures))
            for what, name, known in unknown:
                if name not in known:
                    message = f"{file}:{lines[where]}: a published figure of no {what}"
                    hint = nearest(name, known) or f"it has {', '.join(known)}"
                    raise ShadowError(f"{message}: {short(name)}", hint)


def _panel(
    name: str,
    form: PanelForm,
    lines: Mapping[KeyPath, int],
    *,
    file: Path,
    registry: Path | None,
) -> Panel:
    run = None
    if form.stages is None:
        pairs = _pairs(form, ("panels", name, "pairs"), lines, file=file, registry=registry)
    else:
        stages = [(stage, one.reference) for stage, one in form.stages.items()]
        pairs = tuple(_between(name, *ends) for ends in pairwise(stages))
        run = _between(name, stages[0], stages[-1])
    return Panel(name, form.text, form.bears_on, pairs, form.published, run)


def _between(run: str, start: tuple[str, Reference], end: tuple[str, Reference]) -> Pair:
    """Two stages of a run, which is called like its panel."""
    return Pair(run, f"{start[0]}..{end[0]}", start[1], end[1])


def _pairs(
    panel: PanelForm, at: KeyPath, lines: Mapping[KeyPath, int], file: Path, registry: Path | None
) -> tuple[Pair, ...]:
    pairs: dict[Pair, None] = {}
    for entry in entries_of(panel.pairs or [], lines, str(file), at):
        if isinstance(entry.names, Pair):
            pairs[entry.names] = None
            continue
        try:
            pairs |= dict.fromkeys(select([entry.names], registry=registry).pairs)
        except ShadowError as error:
            message = f"{entry.where}: {error.message}"
            raise ShadowError(message, error.hint or DESCRIBED) from error
    if len(pairs) > MOST_PAIRS:
        raise ShadowError(f"{file}:{lines[at]}: more than {MOST_PAIRS} pairs", DESCRIBED)
    return tuple(pairs)
