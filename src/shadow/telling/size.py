"""How large the change is, and where it lies: modules, layers, what is unchanged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shadow.checks.inside import CLEAR, few_bits, has_other_norm_unrounded, is_lost
from shadow.checks.summary import Sentence
from shadow.places.groups import ATTENTION, MLP
from shadow.summary.record import PairRecord
from shadow.summary.rows import LayerRow
from shadow.telling.told import Told
from shadow.telling.wording import (
    NAMED,
    capital,
    changed_module,
    component_name,
    layers_of,
    layers_text,
    module_name,
    of_component,
)

NEARLY_KNOWN = 0.99  # share of the energy from which the norm before storage is that of all
CLEARLY_MOST = 0.55  # of the energy in one quarter of the depth
MOST = 0.5  # of the energy: modules are named until they hold so much, but no more than NAMED
NEARLY_ALL = 0.9  # of the energy inside layers
ALIKE = 0.9  # of the last that was named, from which the next is named too
MOSTLY_KEPT = 0.8  # share of the stored energy below which its norm is not the update's
# modules, or how their names begin
OUTSIDE = ("embed", "head", "position", "patch_embed", "projector")
MORE = 1.25  # times its share of the parameters, from which a part outside layers is named
WORTH_NAMING = 0.05  # of the energy
EVEN = 0.28  # of the energy in a quarter of the depth, below which none is named
# energy over its share of the parameters, or the reverse, up to which a part has its share
IN_PROPORTION = 1.1
UNROUNDED = "figures.relative_norm_overall_unrounded"
WORDS = {
    "unknown": "The size of the {what} is unknown, because the base's matrices are 0",
    "size": "The {what} is {figures.relative_norm_overall:share} {of}",
    "as_stored": "As stored, the {what} is {figures.relative_norm_overall:share} {of}",
    "before": "Before storage, the change was {before} {of}"
    " ({figures.relative_norm_overall:share} as stored)",
    "before_of_known": "Before storage, the change was {before} {of}"
    " ({figures.relative_norm_overall:share} as stored; known for {figures.unrounded_share:share}"
    " of it)",
    "proportion": "spread over the modules{which} in proportion to their size ({name}:"
    " {parameter_share:share} of the parameters, {energy_share:share} of the change)",
    "share": "{energy_share:share}",
    "sized": "{energy_share:share}[, with {parameter_share:share} of the parameters]",
    "holds": "{name} {holds} {energy_share:share}[, with {parameter_share:share} of the"
    " parameters]",
    "layer": "layer {layer} ({energy_share:share})",
    "layers": "Inside {where}, nearly all of it is in {layers:and}.",
    "even": "Inside {where}, it is spread evenly over all {figures.depth_layers:count}.",
    "quarter": "Inside {where}, {which} {holds} {energy_share:share} of it"
    "[, with {parameter_share:share} of the parameters].",
    "most": "Inside {where}, {which} {holds} most of it, {energy_share:share}"
    "[, with {parameter_share:share} of the parameters].",
    "only": "Inside {where}, only matrices of {layers} changed.",
    "unchanged": "Unchanged: {parts:and}.",
    "experts": "{tensors:count} of {of:count} tensors of {experts}",
}


def size_and_place(
    summary: PairRecord, apart: bool, alike: bool = True, filtered: bool = False
) -> Sentence:
    """apart: the two are no base and tuned; alike: where the difference lies says something."""
    told = Told(summary)
    norm = _norm(told, apart)
    if not alike:
        return told.sentence("size", f"{norm}.")
    place, more = _modules(told, filtered)
    parts = unchanged_parts(told)
    return told.sentence(
        "size",
        f"{norm}, {place}." if place else f"{norm}.",
        more,
        _depth(told),
        told.fill(WORDS["unchanged"], parts=parts) if parts else "",
        *(f"{text}." for text in without_base(summary)),
    )


def _norm(told: Told, apart: bool) -> str:
    summary, figures = told.summary, told.summary.figures
    known = figures.unrounded_share
    code = "as_stored" if is_as_stored(summary) else "size"
    before = ""
    if figures.relative_norm_overall is None:
        code = "unknown"
    elif has_other_norm_unrounded(summary) and not apart:
        code = "before" if known is None or known >= NEARLY_KNOWN else "before_of_known"
        before = told.reaching(UNROUNDED, "share")
    what = "difference" if apart else "change"
    return told.fill(WORDS[code], what=what, of=of_what(summary), before=before)


def is_as_stored(summary: PairRecord) -> bool:
    """Whether what rounding took, or added, is unknown and may matter."""
    figures = summary.figures
    near = figures.floor_ratio is not None and figures.floor_ratio < CLEAR
    if (kept := summary.inside_layers.kept) is not None:
        near = near or kept < MOSTLY_KEPT
    # of a copy in few bits, floor_ratio may be of the file's format
    near = near or few_bits(summary) is not None
    return figures.relative_norm_overall_unrounded is None and (near or is_lost(summary))


def of_what(summary: PairRecord) -> str:
    """What the overall relative norm is relative to, in words."""
    if has_frozen(summary):
        return "of the norm of the weights that changed"
    return "of the base matrices' norm"


def parameter_ratio(summary: PairRecord, figure: str) -> float | None:
    """What a ratio of energies would be if every parameter that changed had moved alike: that of
    the parameters.

    figure is attention_to_mlp, vision_to_language or projector_to_language; None where there is
    nothing below.
    """
    if figure == "attention_to_mlp":
        main = summary.main_component
        rows = [row for row in summary.modules if row.component == main]
        above = sum(row.parameters for row in rows if row.module.startswith(ATTENTION))
        below = sum(row.parameters for row in rows if row.module.startswith(MLP))
    else:
        component = figure.removesuffix("_to_language")
        above = sum(row.parameters for row in summary.modules if row.component == component)
        below = sum(row.parameters for row in summary.modules if row.component == "language")
    return above / below if below else None


def has_frozen(summary: PairRecord) -> bool:
    """Whether so much is unchanged that a norm of what changed is not one of the model."""
    figures = summary.figures
    return figures.parameters_identical > 0.01 * (figures.parameters or 1)


@dataclass(frozen=True)
class Part:
    """A module of the main component, or another component as a whole, that changed."""

    name: str
    place: str
    """The place of its row in summary.json."""
    energy_share: float
    parameter_share: float | None
    outside: bool
    """Outside the layers: named where it holds more than its share."""

    @property
    def holds_more(self) -> bool:
        """Whether it is outside the layers, with clearly more than its share."""
        if not self.outside or self.parameter_share is None:
            return False
        return self.energy_share >= max(MORE * self.parameter_share, WORTH_NAMING)

    @property
    def in_proportion(self) -> bool:
        """Whether it has about its share of the energy, or little of energy and parameters."""
        if self.parameter_share is None:
            return False
        few, many = sorted((self.energy_share, self.parameter_share))
        return many < WORTH_NAMING or many <= IN_PROPORTION * few


def parts_by_energy(summary: PairRecord) -> list[Part]:
    """The parts of the model, that of most energy first."""
    main = main_component(summary)
    modules = [
        Part(
            changed_module(summary, row),
            f"modules.{row.component}.{row.module}",
            row.energy_share,
            row.parameter_share,
            is_outside(row.module),
        )
        for row in summary.modules
        if row.component == main and row.energy_share is not None
    ]
    components = [
        Part(
            component_name(row.component),
            f"components.{row.component}",
            row.energy_share,
            row.parameter_share,
            outside=True,
        )
        for row in summary.components
        if row.component != main and row.matrices and row.energy_share is not None
    ]
    return sorted([*modules, *components], key=lambda part: -part.energy_share)


def are_in_proportion(summary: PairRecord, parts: Sequence[Part]) -> bool:
    """Whether every part has its share; no, where little changed, as that has no proportion."""
    return not is_mostly_frozen(summary) and all(part.in_proportion for part in parts)


def leading(parts: Sequence[Part]) -> list[Part]:
    """The parts that hold MOST of it, and those as large as the last of them; at most NAMED."""
    named: list[Part] = []
    for part in parts[:NAMED]:
        held = sum(one.energy_share for one in named)
        if held < MOST or part.energy_share > ALIKE * named[-1].energy_share:
            named.append(part)
    return named


def is_mostly_frozen(summary: PairRecord) -> bool:
    """Whether half of the parameters or more are the same on both sides."""
    figures = summary.figures
    return 2 * figures.parameters_identical >= (figures.parameters or 1)


def main_component(summary: PairRecord) -> str | None:
    """The component whose modules are named: language, or the one with most changed matrices."""
    changed = {row.component: row.matrices for row in summary.components if row.matrices}
    return (
        "language" if "language" in changed else max(changed, key=changed.__getitem__, default=None)
    )


def is_outside(module: str) -> bool:
    """Whether a module lies outside the layers."""
    return module.partition(".")[0] in OUTSIDE


def is_all_asked_for(summary: PairRecord, filtered: bool) -> bool:
    """Whether a filter chose modules that all changed: where all of it lies is then no finding."""
    return filtered and not has_frozen(summary)


def _modules(told: Told, filtered: bool) -> tuple[str, str]:
    """The parts of most energy as the end of a sentence; and a sentence of those outside layers of
    more than their share.
    """
    summary = told.summary
    parts = parts_by_energy(summary)
    if not parts or (len(parts) == 1 and is_all_asked_for(summary, filtered)):
        return "", ""
    if len(parts) == 1:
        return f"all of it in {only_matrix(summary) or parts[0].name}", ""
    named = leading(parts)
    if are_in_proportion(summary, parts):
        which = " that changed" if has_frozen(summary) else ""
        return told.fill(WORDS["proportion"], parts[0], parts[0].place, which=which), ""
    much = "most of it"
    if is_mostly_frozen(summary) and len(named) == len(parts):
        much = "all of it"
    elif sum(part.energy_share for part in named) < MOST:
        much = "with the largest shares"
    names = []
    for part in named:
        is_sized = part.holds_more or (part is named[0] and much != "all of it")
        share = told.fill(WORDS["sized" if is_sized else "share"], part, part.place)
        names.append(f"{part.name} ({share})")
    first = told.fill("{much} in {names:and}", much=much, names=names)
    rest = [
        told.fill(WORDS["holds"], part, part.place, holds=_holds(part.name))
        for part in parts
        if part.holds_more and part not in named
    ]
    return first, capital(told.fill("{rest:and}.", rest=rest)) if rest else ""


def _holds(name: str) -> str:
    return "hold" if name.endswith("embeddings") else "holds"


def only_matrix(summary: PairRecord) -> str | None:
    """`one matrix, mlp.down of layer 5`, if a single matrix changed and lies in a layer."""
    changed = [row for row in summary.depth if row.matrices]
    if summary.figures.matrices != 1 or len(changed) != 1:
        return None
    (module,) = (module_name(row.module) for row in summary.modules)
    return f"one matrix, {module} of layer {changed[0].layer}"


def _depth(told: Told) -> str:
    """The few layers that hold nearly all, else the quarter that holds most, or that none does."""
    main = main_component(told.summary)
    if main is None or main == "other":  # numbers in unknown names need not be those of blocks
        return ""
    where = "the layers" if main == "language" else component_name(main)
    if (few := _few_layers(told, main, where)) is not None:
        return few
    rows = [row for row in told.summary.quarters if row.component == main]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row.energy_share)
    if most.energy_share < EVEN:
        for row in rows:
            told.fill(WORDS["share"], row, f"quarters.{main}.{row.quarter}")
        return told.fill(WORDS["even"], where=where)
    first, last = most.first_layer, most.last_layer
    which = layers_text(range(first, last + 1))
    holds = "holds" if first == last else "hold"
    if first < last and len({row.last_layer - row.first_layer for row in rows}) == 1:
        quarter = ("first", "second", "third", "last")[most.quarter - 1]
        which, holds = f"the {quarter} quarter ({which})", "holds"
    code = "most" if most.energy_share > CLEARLY_MOST else "quarter"
    at = f"quarters.{main}.{most.quarter}"
    return told.fill(WORDS[code], most, at, where=where, which=which, holds=holds)


def _few_layers(told: Told, main: str, where: str) -> str | None:
    """That only matrices of few layers changed, or the layers that hold NEARLY_ALL; None where
    these are more than NAMED, or more than a quarter of the layers though others changed as well.
    """
    summary = told.summary
    rows = [row for row in summary.depth if row.component == main]
    changed = [row for row in rows if row.matrices and row.energy_share is not None]
    changed.sort(key=_energy, reverse=True)
    if not changed:
        return None
    if len(changed) <= NAMED and len(changed) < len(rows):
        if summary.figures.matrices == 1:
            return ""  # said with its module
        layers = layers_text([row.layer for row in changed])
        return told.fill(WORDS["only"], where=where, layers=layers)
    named: list[LayerRow] = []
    while math.fsum(map(_energy, named)) < NEARLY_ALL:
        named.append(changed[len(named)])
        if len(named) > NAMED or 4 * len(named) > len(rows) or len(named) == len(changed):
            return None
    texts = [
        told.fill(WORDS["layer"], row, f"depth.{main}.{row.layer}", layer=str(row.layer))
        for row in sorted(named, key=lambda row: row.layer)
    ]
    return told.fill(WORDS["layers"], where=where, layers=texts)


def _energy(row: LayerRow) -> float:
    return row.energy_share or 0.0


def without_base(summary: PairRecord) -> list[str]:
    """What has no base, a text for each component."""
    return [
        f"{capital(component_name(row.component))} has no base, so its change is unknown"
        for row in summary.without_base
    ]


def unchanged_parts(told: Told) -> list[str]:
    """What is frozen, by name: whole components, then modules, then layers."""
    summary, several = told.summary, told.summary.has_components
    moved = summary.vectors.moved
    whole = [
        row.component
        for row in summary.components
        if row.tensors and row.identical == row.tensors and row.component not in moved
    ]
    layers: dict[str, list[int]] = {}
    for row in summary.depth:
        has_moved = row.matrices or row.layer in moved.get(row.component, ())
        if not has_moved and row.component not in whole:
            layers.setdefault(row.component, []).append(row.layer)
    compared = Counter(row.component for row in summary.depth)
    # where all layers are frozen, their modules are not named once more
    named = {name for name, numbers in layers.items() if len(numbers) == compared[name]}
    modules = [
        one
        for one in summary.unchanged
        if one.component not in whole and (is_outside(one.module) or one.component not in named)
    ]
    # what lies outside the layers is never one of the modules that are only counted
    modules.sort(key=lambda one: not is_outside(one.module))
    grown = {(one.component, one.module) for one in summary.vocabulary}
    parts = [component_name(name) for name in whole]
    for one in modules:
        name = of_component(module_name(one.module), one.component, several)
        is_grown = (one.component, one.module) in grown
        parts.append(f"the common rows of {name}" if is_grown else name)
    if len(parts) > 2 * NAMED + 1:  # one more takes no more room by its name
        parts = [*parts[: 2 * NAMED], f"{len(parts) - 2 * NAMED} more modules"]
    for some in summary.unchanged_experts:
        experts = of_component("the experts", some.component, several)
        at = f"unchanged_experts.{some.component}"
        parts.append(told.fill(WORDS["experts"], some, at, experts=experts))
    return [*parts, *(layers_of(name, numbers, several) for name, numbers in layers.items())]
