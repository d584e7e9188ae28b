"""Recipes: files that say which pairs to audit, what of them, and which figures to draw, to check a
claim.

A recipe is YAML in `registry/recipes/` or anywhere: title, source, components, modules, metrics,
and panels, each with a text, what it bears on, and pairs as in a list of `--list`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shadow.errors import ShadowError, UsageError
from shadow.files import registry_folder
from shadow.targets.families import NAME, Pair, short
from shadow.targets.lists import entries_of, select
from shadow.targets.plain_yaml import KeyPath, Tree, read_plain_file
from shadow.text import nearest

DESCRIBED = "docs/reproduce.md describes recipes"
KEYS = ("title", "source", "components", "modules", "metrics", "panels")
PANEL_KEYS = ("text", "bears_on", "pairs")
MOST_PANELS, MOST_PAIRS = 20, 12
MOST_TEXT = 2_000  # characters


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
    """What is drawn, 1 to 12."""


@dataclass(frozen=True)
class Recipe:
    """What to audit and to draw."""

    name: str
    """That of its file."""

    title: str
    """What it reproduces."""

    source: str
    """Where the claim was made."""

    components: tuple[str, ...]
    """Only these components are audited; empty: all."""

    modules: tuple[str, ...]
    """Only these modules, or globs over them; empty: all."""

    metrics: tuple[str, ...]
    """The columns of matrices.parquet that are drawn by layer, 1 or more."""

    panels: tuple[Panel, ...]
    """The figures, 1 to 20."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of all panels, each once."""
        return tuple(dict.fromkeys(pair for panel in self.panels for pair in panel.pairs))

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
    if name in shipped:
        return _Reader(shipped[name], registry).recipe()
    file = Path(name)
    if file.suffix.lower() not in (".yaml", ".yml"):
        hint = (
            nearest(name, shipped)
            or f"there is {', '.join(shipped)}; or name a file that ends in .yaml"
        )
        raise UsageError(f"no recipe {short(name)}", hint)
    return _Reader(file, registry).recipe()


class _Reader:
    """One file, with the lines of its entries."""

    def __init__(self, file: Path, registry: Path | None) -> None:
        self._file = file
        self._registry = registry
        tree, self._lines = read_plain_file(file, DESCRIBED)
        self._tree = self._mapping(tree, (), KEYS)

    def recipe(self) -> Recipe:
        """The recipe, checked. Raises ShadowError, which names the line."""
        panels = self._tree["panels"]
        if not isinstance(panels, dict) or not 1 <= len(panels) <= MOST_PANELS:
            raise self._fault(("panels",), f"panels are 1 to {MOST_PANELS}, each under its name")
        metrics = self._words("metrics")
        if not metrics:
            raise self._fault(("metrics",), "metrics name at least one column")
        return Recipe(
            name=self._file.stem,
            title=self._text(self._tree, ("title",)),
            source=self._text(self._tree, ("source",)),
            components=self._words("components"),
            modules=self._words("modules"),
            metrics=metrics,
            panels=tuple(self._panels(panels)),
        )

    def _panels(self, panels: Mapping[str, Tree]) -> Iterator[Panel]:
        named: dict[tuple[str, str], Pair] = {}
        for name, entry in panels.items():
            at: KeyPath = ("panels", name)
            if not NAME.fullmatch(name):
                raise self._fault(at, "the name may hold letters, digits and `._-` only")
            panel = self._mapping(entry, at, PANEL_KEYS)
            pairs = self._pairs(panel["pairs"], (*at, "pairs"))
            for pair in pairs:
                if named.setdefault((pair.family, pair.name), pair) != pair:
                    raise self._fault(at, f"two different pairs are called {pair.full_name}")
            yield Panel(
                name=name,
                text=self._text(panel, (*at, "text")),
                bears_on=self._text(panel, (*at, "bears_on")),
                pairs=pairs,
            )

    def _pairs(self, value: Tree, at: KeyPath) -> tuple[Pair, ...]:
        if not isinstance(value, list) or not value:
            raise self._fault(at, "pairs are a list, as --list takes it")
        pairs: dict[Pair, None] = {}
        try:
            entries = list(
                entries_of(
                    str(self._file),
                    value,
                    lines=self._lines,
                    folder=self._file.absolute().parent,
                    at=at,
                )
            )
        except UsageError as error:  # of a file, not of what was typed
            raise ShadowError(error.message, error.hint or DESCRIBED) from error
        for entry in entries:
            if isinstance(entry.names, Pair):
                pairs[entry.names] = None
                continue
            try:
                pairs |= dict.fromkeys(select([entry.names], registry=self._registry).pairs)
            except ShadowError as error:
                raise ShadowError(
                    f"{entry.where}: {error.message}", error.hint or DESCRIBED
                ) from error
        if len(pairs) > MOST_PAIRS:
            raise self._fault(at, f"more than {MOST_PAIRS} pairs")
        return tuple(pairs)

    def _mapping(self, value: Tree, at: KeyPath, keys: Collection[str]) -> dict[str, Tree]:
        if not isinstance(value, dict):
            raise self._fault(at, f"not a mapping of {', '.join(keys)}")
        for key in value:
            if key not in keys:
                raise self._fault((*at, key), f"unknown key {short(key)}", nearest(key, keys))
        missing = [key for key in keys if key not in value]
        if missing:
            raise self._fault(at, f"{missing[0]!r} is missing")
        return value

    def _text(self, mapping: Mapping[str, Tree], at: KeyPath) -> str:
        value = mapping[str(at[-1])]
        if not isinstance(value, str) or not value.strip() or len(value) > MOST_TEXT:
            raise self._fault(at, f"{at[-1]!r} is not text of at most {MOST_TEXT:,} characters")
        return " ".join(value.split())

    def _words(self, key: str) -> tuple[str, ...]:
        value = self._tree[key]
        if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
            raise self._fault((key,), f"{key!r} is not a list of words")
        return tuple(str(word) for word in value)

    def _fault(self, at: KeyPath, message: str, hint: str | None = None) -> ShadowError:
        while at and at not in self._lines:
            at = at[:-1]
        where = f":{self._lines[at]}" if at else ""
        return ShadowError(f"{self._file}{where}: {message}", hint or DESCRIBED)
