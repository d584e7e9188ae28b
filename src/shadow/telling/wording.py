"""Modules, layers and factors in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow.checks.draft import Draft
from shadow.quantities import text_of
from shadow.summary.record import PairRecord
from shadow.summary.rows import ModuleRow, ReplacedRow
from shadow.text import and_list

NAMED = 3
MATTERS = 0.9  # of a share or norm: what two roundings would leave, below which that is said


def and_others(names: list[str]) -> str:
    if len(names) > 2 * NAMED:
        names = [*names[: 2 * NAMED - 1], "other modules"]
    return and_list(names)


def place_of(component: str, module: str | None, layers: Sequence[int], several: bool) -> str:
    """`mlp.up of layers 0 to 3`, `layer 11`, `the head`."""
    if module is None:
        return layers_of(component, layers, several)
    name = {"bias": "biases", "norm": "norms"}.get(module)
    if name is None:
        name = named_in(component, module, several)
    return f"{name} of {layers_text(layers)}" if layers else name


def places_of(summary: PairRecord, rows: Sequence[ReplacedRow]) -> str:
    """`attn.q and attn.k of layers 3 and 4, and the head`: modules of the same layers together."""
    several = summary.has_components
    layers: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        name = changed_module(summary, row)
        name = of_component(name, row.component) if several else name
        layers.setdefault(tuple(row.layers), []).append(name)
    named = [
        f"{and_others(names)} of {layers_text(at)}" if at else and_others(names)
        for at, names in layers.items()
    ]
    return and_others(named)


def vectors_moved(draft: Draft) -> str:
    """`128 of 128 biases and norms changed, by 13 % of their norm in the median`."""
    vectors = draft.summary.vectors
    changed = draft.write(vectors.changed, "vectors.changed", "count")
    compared = draft.write(vectors.compared, "vectors.compared", "count")
    text = f"{changed} of {compared} biases and norms changed"
    if vectors.relative_norm is None:
        return f"{text}, which are 0 in the base"
    if vectors.furthest is not None:
        return f"{text}, {furthest_vector(draft)}"
    norm = draft.write(vectors.relative_norm, "vectors.relative_norm", "share")
    return f"{text}, by {norm} of their norm in the median"


def furthest_vector(draft: Draft) -> str:
    """`model.norm.weight by 13 % of its norm`: the vector that moved far more than all others."""
    vectors = draft.summary.vectors
    norm = draft.write(vectors.furthest_norm or 0.0, "vectors.furthest_norm", "share")
    return f"{vectors.furthest} by {norm} of its norm"


def factor(value: float) -> str:
    """A factor, with two digits of how far it is from 1: `1.010`, `0.9990`, `-1.000`."""
    digits = 3
    if distance := round(abs(value - 1.0), 7):
        digits = max(digits, 1 - math.floor(math.log10(distance)))
    return f"{value:.{digits}f}"


def module_name(module: str) -> str:
    """What a module is called in a sentence.

    Only a forged report has a name that is not of lower case.
    """
    plain = {
        "embed": "the embeddings",
        "head": "the head",
        "position": "the position embeddings",
        "patch_embed": "the patch embeddings",
        "router": "the router",
        "other": "matrices whose role is not known",
    }
    if not module.isascii() or not all(letter.isalnum() or letter in "._" for letter in module):
        return "another module"
    return plain.get(module, module)


def changed_module(summary: PairRecord, row: ModuleRow | ReplacedRow) -> str:
    """The same of a module that changed: BERT's pooler is of module head, and predicts nothing."""
    poolers = any(
        (one.component, one.module, one.poolers) == (row.component, "head", one.matrices)
        for one in summary.outside_layers
    )
    return "the pooling head" if row.module == "head" and poolers else module_name(row.module)


def component_name(name: str) -> str:
    plain = {
        "vision": "the vision tower",
        "audio": "the audio tower",
        "language": "the language model",
        "projector": "the projector",
    }
    return plain.get(name, "another part")


def capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def named_in(component: str, module: str, several: bool) -> str:
    """A module, and of which component it is where that is not clear."""
    return of_component(module_name(module), component) if several else module_name(module)


def of_component(name: str, component: str) -> str:
    if component in ("language", "projector"):
        return name
    return f"{name} of {component_name(component)}"


def spans_of(numbers: Sequence[int]) -> str:
    """`0 to 3, 5 and 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts: list[str] = []
    for span in spans:
        if len(span) > 2:
            texts.append(f"{span[0]} to {span[-1]}")
        else:
            texts += [str(number) for number in span]
    if len(texts) > 2 * NAMED:
        texts = [*texts[: 2 * NAMED], f"{len(texts) - 2 * NAMED} more"]
    return and_list(texts)


def layers_text(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0 to 3 and 5`."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {spans_of(layers)}"


def layers_of(component: str, layers: Sequence[int], several: bool) -> str:
    """Layers, and of which component they are where that is not clear."""
    return f"{layers_text(layers)}{f' of {component_name(component)}' if several else ''}"


def equally_strong(number: str) -> str:
    """`33 equally strong directions`."""
    return "1 direction" if number == "1" else f"{number} equally strong directions"


def directions_text(summary: PairRecord) -> str:
    """`33`, or `20 to 33` where two roundings may lie behind what is stored and would matter."""
    inside = summary.inside_layers
    value, least = inside.equivalent_directions or 0.0, inside.equivalent_directions_least
    text = text_of(value, "about")
    if least is None or least >= MATTERS * value:
        return text
    return f"{text_of(least, 'about')} to {text}"
