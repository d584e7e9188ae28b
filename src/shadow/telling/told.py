"""Sentences of templates whose slots are places in summary.json, such as `inside_layers.kept`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from shadow.checks.answer import Figure
from shadow.checks.explanations import has_sizes
from shadow.checks.summary import Sentence
from shadow.summary.record import PairRecord
from shadow.templates import Value, fill, names_in


@dataclass
class Told:
    """A sentence in the making; the figures that it writes are noted by their place."""

    summary: PairRecord
    figures: dict[str, Figure] = field(default_factory=dict)

    def fill(self, template: str, row: object = None, at: str = "", **words: Value) -> str:
        """The words of a template. A slot with a dot is a place in summary.json, any other is one
        of words, or a column of the row, whose place is `at`.
        """

        def figure(name: str) -> Any:
            if name in words:
                return words[name]
            return self.at(name) if "." in name else getattr(row, name, None)

        def note(name: str) -> None:
            if name not in words:
                self.figures[name if "." in name else f"{at}.{name}"] = figures[name]

        figures = {name: figure(name) for name in names_in(template)}
        return fill(template, figures, note)

    def inside(self, template: str, **words: Value) -> str:
        """The same, where a slot without a dot is a figure of the matrices inside layers."""
        return self.fill(template, self.summary.inside_layers, "inside_layers", **words)

    def at(self, place: str) -> Any:
        """What stands at a place such as `figures.short_side`."""
        return reduce(getattr, place.split("."), self.summary)

    def note(self, *places: str) -> None:
        """Note what a sentence rests on and does not write; nothing that is null."""
        values = {place: self.at(place) for place in places}
        self.figures |= {place: value for place, value in values.items() if value is not None}

    def directions(self) -> str:
        """How many directions a matrix inside layers has: `64`, or `32 to 64` where they differ, as
        their median need not be the size of any; empty where it is unknown.
        """
        if has_sizes(self.summary):
            return self.inside("{short_side_least:count} to {short_side_most:count}")
        return self.fill("[{figures.short_side:count}]")

    def sentence(self, code: str, *texts: str) -> Sentence:
        """The sentence, of the texts that are not empty."""
        return Sentence(code, " ".join(text for text in texts if text), self.figures)


def tell(
    summary: PairRecord, code: str, template: str, row: object = None, at: str = "", **words: Value
) -> Sentence:
    """A sentence of one template, whose row is that of the matrices inside layers where none is."""
    told = Told(summary)
    text = told.fill(template, row, at, **words) if at else told.inside(template, **words)
    return told.sentence(code, text)
