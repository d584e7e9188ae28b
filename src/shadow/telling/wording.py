"""Sentences being written, and modules, components and layers in words.

Slots of templates are keys of summary.json, such as `inside_layers.kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

from shadow.checks.answer import Figure
from shadow.checks.explanations import has_sizes
from shadow.checks.summary import Sentence
from shadow.summary.record import PairRecord, PlacesRow
from shadow.templates import Value, fill, names_in
from shadow.text import and_list

NAMED = 3
MODULES = {
    "embed": "the embeddings",
    "head": "the head",
    "position": "the position embeddings",
    "patch_embed": "the patch embeddings",
    "router": "the router",
    "other": "matrices of unknown role",
}
COMPONENTS = {
    "vision": "the vision tower",
    "audio": "the audio tower",
    "language": "the language model",
    "projector": "the projector",
}


@dataclass
class Recorded:
    """A sentence being written, which notes the keys of the figures that it uses."""

    summary: PairRecord
    figures: dict[str, Figure] = field(default_factory=dict)

    def fill(self, template: str, row: object = None, at: str = "", **words: Value) -> str:
        """Fill a template. A slot with a dot is a key of summary.json, any other a word or a column
        of the row, whose key is `at`; without a row, of inside_layers.
        """
        if row is None:
            row, at = self.summary.inside_layers, "inside_layers"

        def figure(name: str) -> Any:
            if name in words:
                return words[name]
            return self.at(name) if "." in name else getattr(row, name, None)

        def note(name: str) -> None:
            if name not in words:
                self.figures[name if "." in name else f"{at}.{name}"] = figures[name]

        figures = {name: figure(name) for name in names_in(template)}
        return fill(template, figures, note)

    def at(self, place: str) -> Any:
        """Return the figure at a key such as `figures.short_side`."""
        return reduce(getattr, place.split("."), self.summary)

    def note(self, *places: str) -> None:
        """Note a figure behind a sentence that does not print it, unless it is null."""
        values = {place: self.at(place) for place in places}
        self.figures |= {place: value for place, value in values.items() if value is not None}

    def directions(self) -> str:
        """Return how many directions a matrix inside layers has: `64`, or `32 to 64` if they
        differ, as their median may be the size of none; empty if unknown.
        """
        if has_sizes(self.summary):
            return self.fill("{short_side_least:count} to {short_side_most:count}")
        return self.fill("[{figures.short_side:count}]")

    def sentence(self, code: str, *texts: str) -> Sentence:
        """Make the sentence from the texts that are not empty."""
        text = " ".join(text for text in texts if text)
        return Sentence(code=code, text=text, figures=self.figures)


def tell(
    summary: PairRecord,
    code: str,
    *templates: str,
    row: object = None,
    at: str = "",
    **words: Value,
) -> Sentence:
    """Make a sentence from templates."""
    recorded = Recorded(summary)
    return recorded.sentence(code, *(recorded.fill(one, row, at, **words) for one in templates))


def module_name(module: str) -> str:
    """Return what a module is called in a sentence.

    Only a forged report has a name that is not of lower case.
    """
    if not module.isascii() or not all(letter.isalnum() or letter in "._ " for letter in module):
        return "another module"
    return MODULES.get(module, module)


def component_name(name: str) -> str:
    return COMPONENTS.get(name, "another part")


def of_component(name: str, component: str, several: bool = True) -> str:
    """Name a module, and its component if that is not clear."""
    if not several or component in ("language", "projector"):
        return name
    return f"{name} of {component_name(component)}"


def place_of(component: str, module: str | None, layers: Sequence[int], several: bool) -> str:
    """Return `mlp.up of layers 0 to 3`, `layer 11`, `the head`."""
    if module is None:
        return layers_of(component, layers, several)
    name = {"bias": "biases", "norm": "norms"}.get(module)
    name = name or of_component(module_name(module), component, several)
    return f"{name} of {layers_text(layers)}" if layers else name


def places_of(summary: PairRecord, rows: Sequence[PlacesRow]) -> str:
    """Return `attn.q and attn.k of layers 3 and 4, and the head`, grouping modules of the same
    layers.
    """
    layers: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        name = of_component(module_name(row.module), row.component, summary.has_components)
        layers.setdefault(tuple(row.layers), []).append(name)
    return and_others(
        [
            f"{and_others(names)} of {layers_text(at)}" if at else and_others(names)
            for at, names in layers.items()
        ]
    )


def layers_of(component: str, layers: Sequence[int], several: bool) -> str:
    """Name layers, and their component if that is not clear."""
    return f"{layers_text(layers)}{f' of {component_name(component)}' if several else ''}"


def layers_text(layers: Sequence[int]) -> str:
    """Return `layer 3`, `layers 0 to 3, 5 and 7`."""
    spans: list[Sequence[int]] = [layers]
    if not isinstance(layers, range):  # which a hostile number makes billions long
        numbers = sorted(layers)
        starts = [at for at, one in enumerate(numbers) if not at or one > numbers[at - 1] + 1]
        spans = [numbers[slice(*ends)] for ends in pairwise([*starts, len(numbers)])]
    texts: list[str] = []
    for span in spans:
        texts += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else map(str, span)
    if len(texts) > 2 * NAMED:
        texts = [*texts[: 2 * NAMED], f"{len(texts) - 2 * NAMED} more"]
    return f"{'layer' if len(layers) == 1 else 'layers'} {and_list(texts)}"


def and_others(names: list[str]) -> str:
    """List the first names, and say that there are others."""
    if len(names) > 2 * NAMED:
        names = [*names[: 2 * NAMED - 1], "other modules"]
    return and_list(names)


def capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
