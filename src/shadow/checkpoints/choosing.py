"""Names of components, layers and modules as people write them -> the filter that they mean."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from shadow.checkpoints.pairing import Filter
from shadow.errors import UsageError
from shadow.places.names import check_component, is_of_layers, name_rules, nearest_modules


def filter_of(components: Iterable[str], layers: Iterable[str], modules: Iterable[str]) -> Filter:
    """The filter of components, layers (`0`, `4-7`, `0,3,5`), modules (`mlp.up`, `attn.*`)."""
    rules = name_rules()
    chosen = set(components)
    for component in chosen:
        check_component(component)
    matching: set[str] = set()
    for pattern in modules:
        named = [module for module in rules.modules if fnmatchcase(module, pattern)]
        if not named:
            raise UsageError(f"no module {pattern!r}", _instead_of_module(pattern))
        matching.update(named)
    return Filter(
        components=tuple(sorted(chosen)),
        layers=tuple(sorted(set(_layers(list(layers))))),
        modules=tuple(sorted(matching)),
    )


def _instead_of_module(pattern: str) -> str:
    """What to type instead of a pattern that names no module."""
    if is_of_layers(pattern):
        return "--layer chooses layers: 0, or 4-7"
    if close := nearest_modules(pattern):
        return f"did you mean {close!r}?"
    return "such as mlp.up or attn.*"


def _layers(texts: list[str]) -> list[int]:
    layers: list[int] = []
    if not texts:
        return layers
    for text in ",".join(texts).split(","):
        first, dash, last = text.partition("-")
        numbers = first.isdecimal() and (last.isdecimal() or not dash) and len(text) <= 12
        if not numbers or (dash and int(last) < int(first)):
            raise UsageError(f"{text!r} is not a layer", "write 0, or 4-7, or 0,3,5")
        layers += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    return layers
