"""Tensor name (and config.json) -> the matrices in it and their places in the model.

What varies between model families is data (`registry/names.yaml`); this module only applies it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXPERTS = 4096  # in one tensor; DeepSeek-V3 has 256 a layer. More is a hostile shape


@dataclass(frozen=True)
class Place:
    """Where a matrix sits: what two checkpoints must agree on to be compared.

    module is from the closed list of `names.yaml`; slot tells apart what shares a module (norms, biases, other).
    """

    component: str
    layer: int | None
    module: str
    expert: int | None = None
    slot: str = ""


@dataclass(frozen=True)
class Part:
    """One matrix inside a tensor: how to see it as `(out, in)`.

    transposed: the tensor is stored `(in, out)`. rows is (start, stop) of the outputs that are this part, None for
    all. heads > 0 means that q, k and v are interleaved per head and this part is the one of index `third`.
    stacked: the tensor holds one matrix per expert along its first dimension, and this is place.expert's.
    """

    place: Place
    transposed: bool = False
    rows: tuple[int, int] | None = None
    heads: int = 0
    third: int = 0
    stacked: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, int]:
        """(rows, cols) of this matrix for a tensor of the stored shape; more dimensions fold into the columns."""
        stored = stored[1:] if self.stacked else stored
        rows, cols = (stored[0], math.prod(stored[1:])) if stored else (1, 1)
        if self.transposed:
            rows, cols = cols, rows
        if self.heads:
            rows //= 3
        elif self.rows:
            rows = self.rows[1] - self.rows[0]
        return rows, cols

    def view(self, tensor: Tensor) -> Tensor:
        """This matrix as a view of the tensor: (rows, cols), or (heads, rows / heads, cols) where it is interleaved."""
        matrix = tensor[self.place.expert] if self.stacked else tensor
        matrix = matrix.reshape(matrix.shape[0], -1) if matrix.ndim != 2 else matrix
        if self.transposed:
            matrix = matrix.T
        if self.heads:
            rows, cols = matrix.shape
            return matrix.view(self.heads, 3, rows // (3 * self.heads), cols)[:, self.third]
        return matrix[self.rows[0] : self.rows[1]] if self.rows else matrix


@dataclass(frozen=True)
class Fused:
    suffix: str
    into: tuple[str, ...]
    order: str  # consecutive | per_head


@dataclass(frozen=True)
class Layout:
    model_types: frozenset[str] = frozenset()
    witness: str = ""
    transposed: frozenset[str] = frozenset()
    fused: Fused | None = None


@dataclass(frozen=True)
class NameRules:
    """`names.yaml`, compiled."""

    modules: tuple[str, ...]
    components: tuple[str, ...]
    renames: tuple[tuple[re.Pattern[str], str], ...]
    prefixes: tuple[tuple[re.Pattern[str], str], ...]
    layer: re.Pattern[str]
    suffixes: Mapping[str, str]
    norm: re.Pattern[str]
    layouts: tuple[Layout, ...]


def registry_folder() -> Path:
    """The folder of shipped data: inside the package when installed, at the repository's top in a checkout."""
    packaged = Path(str(files("shadow"))) / "registry"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "registry"


@cache
def name_rules() -> NameRules:
    """The shipped name rules."""
    data = yaml.safe_load((registry_folder() / "names.yaml").read_text())
    return NameRules(
        modules=tuple(data["modules"]),
        components=tuple(data["components"]),
        renames=tuple((re.compile(rule["match"]), rule["to"]) for rule in data["renames"]),
        prefixes=tuple((re.compile(rule["match"]), rule["component"]) for rule in data["prefixes"]),
        layer=re.compile(data["layer"]),
        suffixes={suffix: module for module, suffixes in data["suffixes"].items() for suffix in suffixes},
        norm=re.compile(data["norm"]),
        layouts=tuple(_layout(entry) for entry in data["layouts"]),
    )


def _layout(entry: dict[str, Any]) -> Layout:
    fused = entry.get("fused")
    return Layout(
        model_types=frozenset(entry["model_types"]),
        witness=entry.get("witness", ""),
        transposed=frozenset(entry.get("transposed", ())),
        fused=Fused(fused["suffix"], tuple(fused["into"]), fused["order"]) if fused else None,
    )


def place_tensors(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, tuple[Part, ...]]:
    """The matrices in every tensor of one checkpoint, by tensor name; no tensor is without at least one part.

    Two tensors that would land on one place both fall back to their own names, so that neither is lost.
    """
    canonical = {name: _canonical(name) for name in shapes}
    layout = _find_layout(canonical, shapes, config)
    parts = {name: _parts(*canonical[name], shapes[name], layout, config) for name in shapes}
    taken = Counter(part.place for found in parts.values() for part in found)
    return {
        name: found if all(taken[part.place] == 1 for part in found) else (_unplaced(name, found[0]),)
        for name, found in parts.items()
    }


def _unplaced(name: str, part: Part) -> Part:
    # no suffix holds a NUL, so this slot meets no other
    place = Place(part.place.component, part.place.layer, "other", part.place.expert, f"\0{name}")
    return Part(place, part.transposed)


def _canonical(name: str) -> tuple[str, int | None, str]:
    """(component, layer, suffix) of a tensor name; the suffix keeps `.weight` or `.bias`."""
    rules = name_rules()
    for pattern, replacement in rules.renames:
        name = pattern.sub(replacement, name)
    component, rest = "other", name
    for pattern, found in rules.prefixes:
        if match := pattern.match(name):
            component, rest = found, name[match.end() :]
            break
    if match := rules.layer.match(rest):
        # a number of more digits than this is no layer; int() of a hostile one would be slow
        return (component, int(match[1]), rest[match.end() :]) if len(match[1]) < 7 else (component, None, rest)
    return component, None, rest


def _find_layout(
    canonical: Mapping[str, tuple[str, int | None, str]],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> Layout:
    text = config.get("text_config")
    said = [config.get("model_type"), text.get("model_type") if isinstance(text, dict) else None]
    types = {model_type for model_type in said if isinstance(model_type, str)}
    for layout in name_rules().layouts:
        if types & layout.model_types:
            return layout
        if not types and layout.witness:
            witnesses = [shapes[name] for name, place in canonical.items() if place[2] == f"{layout.witness}.weight"]
            if any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in witnesses):
                return layout
    return Layout()


def _parts(
    component: str, layer: int | None, suffix: str, shape: tuple[int, ...], layout: Layout, config: Mapping[str, Any]
) -> tuple[Part, ...]:
    rules = name_rules()
    stem = suffix.removesuffix(".weight")
    if len(shape) == 3 and "experts" in suffix.split(".") and shape[0] <= MAX_EXPERTS:
        places = [Place(component, layer, "other", expert, suffix) for expert in range(shape[0])]
        return tuple(Part(place, stacked=True) for place in places) or (
            Part(Place(component, layer, "other", slot=suffix)),
        )
    module = rules.suffixes.get(stem, "other") if suffix.endswith(".weight") and len(shape) >= 2 else "other"
    if module == "other":
        if suffix.endswith(".bias"):
            module = "bias"
        elif len(shape) < 2 and rules.norm.search(stem.lower()):
            module = "norm"
        return (Part(Place(component, layer, module, slot=suffix)),)
    whole = Part(Place(component, layer, module), transposed=stem in layout.transposed)
    if layout.fused and stem == layout.fused.suffix and len(shape) == 2:
        return _split(whole, layout.fused, whole.shape(shape)[0], config) or (whole,)
    return (whole,)


def _split(whole: Part, fused: Fused, rows: int, config: Mapping[str, Any]) -> tuple[Part, ...] | None:
    """The parts of a fused projection, or None where the config does not tell enough to split it rightly."""
    count = len(fused.into)
    places = [replace(whole.place, module=module) for module in fused.into]
    if fused.order == "consecutive":
        if rows % count:
            return None
        size = rows // count
        return tuple(replace(whole, place=p, rows=(i * size, (i + 1) * size)) for i, p in enumerate(places))
    heads = config.get("num_attention_heads")
    if type(heads) is not int or heads < 1 or rows % (count * heads):
        return None
    return tuple(replace(whole, place=p, heads=heads, third=i) for i, p in enumerate(places))
