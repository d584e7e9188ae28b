"""Modules, components and layers in words."""

from __future__ import annotations

from collections.abc import Sequence

from shadow.summary.record import PairRecord
from shadow.summary.rows import ReplacedRow, Row
from shadow.text import and_list

NAMED = 3
MODULES = {
    "embed": "the embeddings",
    "head": "the head",
    "position": "the position embeddings",
    "patch_embed": "the patch embeddings",
    "router": "the router",
    "other": "matrices whose role is not known",
}
COMPONENTS = {
    "vision": "the vision tower",
    "audio": "the audio tower",
    "language": "the language model",
    "projector": "the projector",
}


def module_name(module: str) -> str:
    """What a module is called in a sentence.

    Only a forged report has a name that is not of lower case.
    """
    if not module.isascii() or not all(letter.isalnum() or letter in "._" for letter in module):
        return "another module"
    return MODULES.get(module, module)


def changed_module(summary: PairRecord, row: Row | ReplacedRow) -> str:
    """The same of a module that changed: BERT's pooler is of module head, and predicts nothing."""
    poolers = any(
        (one.component, one.module, one.poolers) == (row.component, "head", one.matrices)
        for one in summary.outside_layers
    )
    return "the pooling head" if row.module == "head" and poolers else module_name(row.module)


def component_name(name: str) -> str:
    """What a component is called in a sentence."""
    return COMPONENTS.get(name, "another part")


def of_component(name: str, component: str, several: bool = True) -> str:
    """A module by its name, and of which component it is where that is not clear."""
    if not several or component in ("language", "projector"):
        return name
    return f"{name} of {component_name(component)}"


def place_of(component: str, module: str | None, layers: Sequence[int], several: bool) -> str:
    """`mlp.up of layers 0 to 3`, `layer 11`, `the head`."""
    if module is None:
        return layers_of(component, layers, several)
    name = {"bias": "biases", "norm": "norms"}.get(module)
    name = name or of_component(module_name(module), component, several)
    return f"{name} of {layers_text(layers)}" if layers else name


def places_of(summary: PairRecord, rows: Sequence[ReplacedRow]) -> str:
    """`attn.q and attn.k of layers 3 and 4, and the head`: modules of the same layers together."""
    layers: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        name = of_component(changed_module(summary, row), row.component, summary.has_components)
        layers.setdefault(tuple(row.layers), []).append(name)
    return and_others(
        [
            f"{and_others(names)} of {layers_text(at)}" if at else and_others(names)
            for at, names in layers.items()
        ]
    )


def layers_text(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0 to 3 and 5`."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {spans_of(layers)}"


def layers_of(component: str, layers: Sequence[int], several: bool) -> str:
    """Layers, and of which component they are where that is not clear."""
    return f"{layers_text(layers)}{f' of {component_name(component)}' if several else ''}"


def spans_of(numbers: Sequence[int]) -> str:
    """`0 to 3, 5 and 7`."""
    spans: list[list[int]] = []
    for number in () if isinstance(numbers, range) else sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts: list[str] = []
    # a range, which a hostile number makes billions long, is one span as it is
    for span in [numbers] if isinstance(numbers, range) else spans:
        texts += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else map(str, span)
    if len(texts) > 2 * NAMED:
        texts = [*texts[: 2 * NAMED], f"{len(texts) - 2 * NAMED} more"]
    return and_list(texts)


def and_others(names: list[str]) -> str:
    """The first names as a list, and that there are others."""
    if len(names) > 2 * NAMED:
        names = [*names[: 2 * NAMED - 1], "other modules"]
    return and_list(names)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return f"{text[:1].upper()}{text[1:]}"
