"""Sentences being written, and modules, components and layers in words.

Slots of templates are keys of summary.json, such as `inside_layers.kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from shadow.checks.answer import Figure
from shadow.checks.explanations import has_sizes
from shadow.summary.record import PairRecord, PlacesRow
from shadow.templates import Value, fill, names_in
from shadow.text import and_list, runs_of

NAMED = 3
INSIDE = "inside_layers"
MODULES = {
    "embed": "the embeddings",
    "head": "the head",
    "position": "the position embeddings",
    "patch_embed": "the patch embeddings",
    "router": "the router",
    "other": "matrices of unknown role",
}
PLURAL = ("embed", "position", "patch_embed")  # modules whose names are plural
COMPONENTS = {
    "vision": "the vision tower",
    "audio": "the audio tower",
    "language": "the language model",
    "projector": "the projector",
}
VECTORS = {"bias": "biases", "norm": "norms"}


@dataclass
class Recorded:
    """A sentence being written, which notes the keys of the figures that it uses."""

    summary: PairRecord
    row: object = None
    """What it is about; None: the matrices inside layers."""
    place: str = INSIDE
    """The key of the row in summary.json."""
    figures: dict[str, Figure] = field(default_factory=dict)

    def fill(self, template: str, row: object = None, place: str = "", **words: Value) -> str:
        """Fill a template. A slot with a dot is a key of summary.json, any other a word or a column
        of the row, by default of that of the sentence.
        """
        if row is None:
            row = self.summary.inside_layers if self.row is None else self.row
            place = self.place

        def figure(name: str) -> Any:
            if name in words:
                return words[name]
            return self.figure_at(name) if "." in name else getattr(row, name, None)

        def note(name: str) -> None:
            if name not in words:
                self.figures[name if "." in name else f"{place}.{name}"] = figures[name]

        figures = {name: figure(name) for name in names_in(template)}
        return fill(template, figures, note)

    def figure_at(self, key: str) -> Any:
        """The figure at a key such as `figures.short_side`."""
        return reduce(getattr, key.split("."), self.summary)

    def note(self, *keys: str) -> None:
        """Note figures behind a sentence that does not print them, unless they are null."""
        for key in keys:
            value = self.figure_at(key)
            if value is not None:
                self.figures[key] = value

    def directions(self) -> str:
        """Say how many directions a matrix inside layers has: `64`, or `32 to 64` if they differ,
        as their median may be the size of none; empty if unknown.
        """
        if has_sizes(self.summary):
            return self.fill(
                f"{{{INSIDE}.short_side_least:count}} to {{{INSIDE}.short_side_most:count}}"
            )
        return self.fill("[{figures.short_side:count}]")


def module_name(module: str) -> str:
    """Name a module in a sentence. Only a forged report has a name that is not of lower case."""
    if not module.isascii() or not all(letter.isalnum() or letter in "._ " for letter in module):
        return "another module"
    return MODULES.get(module, module)


def component_name(name: str) -> str:
    return COMPONENTS.get(name, "another part")


def of_component(name: str, component: str, has_components: bool = True) -> str:
    """Name a module, and its component if that is not clear."""
    if not has_components or component in ("language", "projector"):
        return name
    return f"{name} of {component_name(component)}"


def place_of(
    component: str, module: str | None, layers: Sequence[int], has_components: bool
) -> str:
    """`mlp.up of layers 0 to 3`, `layer 11`, `the head`."""
    if module is None:
        return layers_of(component, layers, has_components)
    name = VECTORS.get(module) or of_component(module_name(module), component, has_components)
    return f"{name} of {layers_text(layers)}" if layers else name


def places_of(summary: PairRecord, rows: Sequence[PlacesRow]) -> str:
    """`attn.q and attn.k of layers 3 and 4, and the head`, with modules of the same layers in one
    group.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        name = of_component(module_name(row.module), row.component, summary.has_components)
        groups.setdefault(tuple(row.layers), []).append(name)
    places = []
    for layers, names in groups.items():
        modules = and_others(names)
        places.append(f"{modules} of {layers_text(layers)}" if layers else modules)
    return and_others(places)


def layers_of(component: str, layers: Sequence[int], has_components: bool) -> str:
    """Name layers, and their component if that is not clear."""
    text = layers_text(layers)
    return f"{text} of {component_name(component)}" if has_components else text


def layers_text(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0 to 3, 5 and 7`."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {numbers_text(layers)}"


def numbers_text(layers: Sequence[int]) -> str:
    """`3`, `0 to 3, 5 and 7`."""
    texts: list[str] = []
    # a hostile number makes a range billions long
    runs = [[layers[0], layers[-1]]] if isinstance(layers, range) else runs_of(layers)
    for first, last in runs:
        if last > first + 1:
            texts.append(f"{first} to {last}")
        else:
            texts += map(str, range(first, last + 1))
    if len(texts) > 2 * NAMED:
        texts = [*texts[: 2 * NAMED], f"{len(texts) - 2 * NAMED} more"]
    return and_list(texts)


def and_others(names: list[str]) -> str:
    """List the first names, and say that there are others."""
    if len(names) > 2 * NAMED:
        names = [*names[: 2 * NAMED - 1], "other modules"]
    return and_list(names)


def capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
