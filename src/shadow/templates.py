"""Sentences as codes and figures, and the only module that turns them into words.

A template is text with slots for figures:

    {name}                       a text as it is; of several the first NAMED and how many more
    {name:kind}                  a number in digits that suit its kind, such as `share`
    {name:count one|many}        and the word that follows it: `3 tensors`
    {name:all one|many}          `the only tensor`, `both tensors`, `all 3 tensors`
    {name/whole:all one|many}    the same where it is the whole, otherwise `2 of 3 tensors`
    {name:and}                   texts as a list: `a, b and c`
    {name:each}                  all statements, one after the other: `a; b; c`
    {name|one|many}              the word alone, such as `is` or `are`
    [text with slots]            left out where any of its figures is None or not given
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from shadow.quantities import FORMS
from shadow.text import and_list, several

NAMED = 3  # of several texts, those that a sentence spells out
SLOT = re.compile(
    r"\{([\w.]+)(?:/([\w.]+))?(?::(\w+)(?: ([^|{}]*)\|([^{}]*))?|\|([^|{}]*)\|([^{}]*))?\}"
)
OPTIONAL = re.compile(r"\[([^][]*)\]")


@dataclass(frozen=True, init=False)
class Reason:
    """The code of a template, and the figures that fill it."""

    code: str
    figures: Mapping[str, Value]

    def __init__(
        self, code: str, figures: Mapping[str, Value] | None = None, /, **more: Value
    ) -> None:
        object.__setattr__(self, "code", code)
        object.__setattr__(self, "figures", {**(figures or {}), **more})

    def __hash__(self) -> int:
        return hash((self.code, *self.figures))


Value = float | int | str | Reason | Sequence[str | Reason] | None


def said(text: str) -> Reason:
    """Wrap a text that is already worded, such as the message of an error."""
    return Reason("said", {"text": text})


def fill(
    template: str, figures: Mapping[str, Value], note: Callable[[str], object] = lambda name: None
) -> str:
    """Fill a template. note: called with the name of each number that is used.

    Raises KeyError if a slot that is not optional has no figure.
    """

    def optional(match: re.Match[str]) -> str:
        known = all(figures.get(name) is not None for name in names_in(match[1]))
        return match[1] if known else ""

    def slot(match: re.Match[str]) -> str:
        name, whole, kind, singular, plural, alone, alone_many = match.groups()
        value = figures[name]
        if alone is not None:
            return alone if value == 1 else alone_many
        if kind is None:
            return value if isinstance(value, str) else several([*_texts(value)], NAMED)
        if kind == "and":
            return and_list(_texts(value))
        if kind == "each":
            return "; ".join(_texts(value))
        assert isinstance(value, float | int), f"{name} is a number"
        note(name)
        if kind == "all":
            total = value
            if whole is not None:
                note(whole)
                total = cast(float, figures[whole])
            return _all(int(value), int(total), singular, plural)
        text = FORMS[kind](value or 0)  # type: ignore[index]  # zero has no sign
        return text if singular is None else f"{text} {singular if text == '1' else plural}"

    return SLOT.sub(slot, OPTIONAL.sub(optional, template))


def in_words(value: Value, templates: Mapping[str, str]) -> Value:
    """A value with words in place of the reasons in it. templates: by code."""
    if isinstance(value, Reason):
        figures = {name: in_words(figure, templates) for name, figure in value.figures.items()}
        return fill(templates[value.code], figures)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(in_words(part, templates)) for part in value]
    return value


def names_in(template: str) -> list[str]:
    """The figures for which a template has slots."""
    return [name for slot in SLOT.finditer(template) for name in slot.groups()[:2] if name]


def outline(template: str) -> str:
    """A template with names for its figures: `N tensors of NAMES differ`. What may be left out
    is.
    """

    def slot(match: re.Match[str]) -> str:
        name, _, kind, _, many, _, alone_many = match.groups()
        if alone_many is not None:
            return alone_many
        if many is not None:
            return f"N {many}"
        return "N" if kind in FORMS else name.rpartition(".")[2].upper()

    return SLOT.sub(slot, OPTIONAL.sub("", template))


def _texts(value: Value) -> Sequence[str]:
    assert isinstance(value, Sequence), "a text, or several"
    return [str(part) for part in value]


def _all(count: int, total: int, singular: str, plural: str) -> str:
    if count != total:
        return f"{count:,} of {total:,} {plural}"
    return {1: f"the only {singular}", 2: f"both {plural}"}.get(count, f"all {count:,} {plural}")
