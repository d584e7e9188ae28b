"""How large the change is, and where it lies: modules, layers, what is unchanged."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from shadow.checks.draft import Draft, Sentence
from shadow.checks.inside import CLEAR, few_bits, has_other_norm_unrounded, is_lost
from shadow.places.groups import ATTENTION, MLP
from shadow.summary.record import PairRecord
from shadow.summary.rows import LayerRow, QuarterRow
from shadow.telling.wording import (
    MATTERS,
    NAMED,
    capital,
    changed_module,
    component_name,
    layers_of,
    layers_text,
    module_name,
    named_in,
    of_component,
)
from shadow.text import and_list

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


def size_and_place(
    summary: PairRecord, apart: bool, alike: bool = True, filtered: bool = False
) -> Sentence:
    """apart: the two are no base and tuned; alike: where the difference lies says something."""
    draft = Draft(summary)
    norm = _norm(draft, apart)
    if not alike:
        return draft.sentence("size", f"{norm}.")
    place, more = _modules(draft, filtered)
    first = f"{norm}, {place}." if place else f"{norm}."
    return draft.sentence("size", first, more, _depth(draft), *_unchanged(draft))


def _norm(draft: Draft, apart: bool) -> str:
    what = "difference" if apart else "change"
    stored = draft.summary.figures.relative_norm_overall
    if stored is None:
        return f"The size of the {what} is unknown, because the base's matrices are 0"
    of = of_what(draft.summary)
    text = draft.write(stored, "figures.relative_norm_overall", "share")
    unrounded = draft.summary.figures.relative_norm_overall_unrounded
    if unrounded is None or not has_other_norm_unrounded(draft.summary) or apart:
        if is_as_stored(draft.summary):
            return f"As stored, the {what} is {text} {of}"
        return f"The {what} is {text} {of}"
    before = unrounded_norm(draft)
    share = draft.summary.figures.unrounded_share
    where = ""
    if share is not None and share < NEARLY_KNOWN:
        part = draft.write(share, "figures.unrounded_share", "share")
        where = f"; known for {part} of it"
    return f"Before storage, the change was {before} {of} ({text} as stored{where})"


def is_as_stored(summary: PairRecord) -> bool:
    """Whether what rounding took, or added, is unknown and may matter."""
    figures = summary.figures
    near = figures.floor_ratio is not None and figures.floor_ratio < CLEAR
    if (kept := summary.inside_layers.kept) is not None:
        near = near or kept < MOSTLY_KEPT
    # of a copy in few bits, floor_ratio may be of the file's format
    near = near or few_bits(Draft(summary)) is not None
    return figures.relative_norm_overall_unrounded is None and (near or is_lost(summary))


def unrounded_norm(draft: Draft) -> str:
    """`0.075 %`, or `0.052 to 0.075 %` where two roundings may lie behind it and would matter."""
    place, figures = "figures.relative_norm_overall_unrounded", draft.summary.figures
    norm, least = figures[place.partition(".")[2]], figures.relative_norm_overall_unrounded_least
    text = draft.write(norm or 0.0, place, "share")
    if norm is None or least is None or least >= MATTERS * norm:
        return text
    low = draft.write(least, f"{place}_least", "share")
    return f"{low.removesuffix(' %')} to {text}"


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
    """A module of the main component, or another component as a whole, whose share is told."""

    name: str
    place: str
    """The place of its row in summary.json."""
    energy: float
    """Its share of the energy, 0 to 1."""
    size: float | None
    """Its share of the parameters, 0 to 1; None where it is not known."""
    outside: bool
    """Outside the layers: named where it holds more than its share."""

    @property
    def holds_more(self) -> bool:
        """Whether it is outside the layers, with clearly more than its share."""
        if not self.outside or self.size is None:
            return False
        return self.energy >= max(MORE * self.size, WORTH_NAMING)

    @property
    def in_proportion(self) -> bool:
        """Whether it has about its share of the energy, or little of energy and parameters."""
        if self.size is None:
            return False
        few, many = sorted((self.energy, self.size))
        return many < WORTH_NAMING or many <= IN_PROPORTION * few

    def told(self, draft: Draft, sized: bool = False) -> str:
        """`46 %`; with its share of the parameters where asked for, or where it holds more."""
        text = draft.write(self.energy, f"{self.place}.energy_share", "share")
        if self.size is None or not (sized or self.holds_more):
            return text
        size = draft.write(self.size, f"{self.place}.parameter_share", "share")
        return f"{text}, with {size} of the parameters"


def parts_by_energy(summary: PairRecord) -> list[Part]:
    """The parts of the model, that of most energy first."""
    main = main_component(summary)
    modules = [
        Part(
            name=changed_module(summary, row),
            place=f"modules.{row.component}.{row.module}",
            energy=row.energy_share,
            size=row.parameter_share,
            outside=is_outside(row.module),
        )
        for row in summary.modules
        if row.component == main and row.energy_share is not None
    ]
    components = [
        Part(
            name=component_name(row.component),
            place=f"components.{row.component}",
            energy=row.energy_share,
            size=row.parameter_share,
            outside=True,
        )
        for row in summary.components
        if row.component != main and row.matrices and row.energy_share is not None
    ]
    return sorted([*modules, *components], key=lambda part: -part.energy)


def main_component(summary: PairRecord) -> str | None:
    """The component whose modules are named: language, or the one with most changed matrices."""
    changed = [row for row in summary.components if row.matrices]
    if not changed:
        return None
    if any(row.component == "language" for row in changed):
        return "language"
    return max(changed, key=lambda row: row.matrices).component


def is_outside(module: str) -> bool:
    """Whether a module lies outside the layers."""
    return module.partition(".")[0] in OUTSIDE


def is_all_asked_for(summary: PairRecord, filtered: bool) -> bool:
    """Whether a filter chose modules that all changed: where all of it lies is then no finding."""
    return filtered and not has_frozen(summary)


def _modules(draft: Draft, filtered: bool) -> tuple[str, str]:
    """The parts of most energy, until they hold MOST of it, as the end of a sentence; and a
    sentence of those outside layers of more than their share.
    """
    parts = parts_by_energy(draft.summary)
    if not parts:
        return "", ""
    if len(parts) == 1 and is_all_asked_for(draft.summary, filtered):
        return "", ""
    if len(parts) == 1:
        return f"all of it in {only_matrix(draft.summary) or parts[0].name}", ""
    named: list[Part] = []
    for part in parts[:NAMED]:
        if sum(share.energy for share in named) < MOST or part.energy > ALIKE * named[-1].energy:
            named.append(part)
    most = sum(part.energy for part in named) >= MOST
    if is_mostly_frozen(draft.summary):  # the rest has no proportion of the model to be told by
        if len(named) == len(parts):
            names = and_list([f"{part.name} ({part.told(draft)})" for part in named])
            return f"all of it in {names}", ""
    elif all(part.in_proportion for part in parts):
        return _in_proportion(draft, parts[0]), ""
    names = and_list(
        [f"{part.name} ({part.told(draft, sized=part is named[0])})" for part in named]
    )
    first = f"most of it in {names}" if most else f"with the largest shares in {names}"
    rest = [
        f"{part.name} {_verb(part.name)} {part.told(draft)}"
        for part in parts
        if part.holds_more and part not in named
    ]
    return first, f"{capital(and_list(rest))}." if rest else ""


def only_matrix(summary: PairRecord) -> str | None:
    """`one matrix, mlp.down of layer 5`, if a single matrix changed and lies in a layer."""
    changed = [row for row in summary.depth if row.matrices]
    if summary.figures.matrices != 1 or len(changed) != 1:
        return None
    (module,) = (module_name(row.module) for row in summary.modules)
    return f"one matrix, {module} of layer {changed[0].layer}"


def is_mostly_frozen(summary: PairRecord) -> bool:
    """Whether half of the parameters or more are the same on both sides."""
    figures = summary.figures
    return 2 * figures.parameters_identical >= (figures.parameters or 1)


def _in_proportion(draft: Draft, largest: Part) -> str:
    """Every part has its share, so that none is to be named but as an example."""
    size = draft.write(largest.size or 0.0, f"{largest.place}.parameter_share", "share")
    energy = draft.write(largest.energy, f"{largest.place}.energy_share", "share")
    changed = " that changed" if has_frozen(draft.summary) else ""
    return (
        f"spread over the modules{changed} in proportion to their size ({largest.name}: {size} of"
        f" the parameters, {energy} of the change)"
    )


def _verb(name: str) -> str:
    return "hold" if name.endswith("embeddings") else "holds"


def _depth(draft: Draft) -> str:
    """The few layers that hold nearly all, else the quarter that holds most, or that none does."""
    main = main_component(draft.summary)
    if main != "other" and (few := _few_layers(draft, main)) is not None:
        return few
    rows = [row for row in draft.summary.quarters if row.component == main]
    # numbers in names that nothing is known of need not be those of blocks in order
    if not rows or main == "other":
        return ""
    where = _inside(main)
    most = max(rows, key=lambda row: row.energy_share)
    if most.energy_share < EVEN:
        for row in rows:
            draft.write(row.energy_share, _place_of_quarter(row), "share")
        layers = draft.write(draft.summary.figures.depth_layers, "figures.depth_layers", "count")
        return f"{where}, it is spread evenly over all {layers}."
    text = draft.write(most.energy_share, _place_of_quarter(most), "share")
    first, last = most.first_layer, most.last_layer
    span = f"layer {first} holds" if first == last else f"layers {first} to {last} hold"
    if first < last and len({row.last_layer - row.first_layer for row in rows}) == 1:
        which = ("first", "second", "third", "last")[most.quarter - 1]
        span = f"the {which} quarter (layers {first} to {last}) holds"
    much = "most of it, " if most.energy_share > CLEARLY_MOST else ""
    holds = f"{where}, {span} {much}{text}{'' if much else ' of it'}"
    if most.parameter_share is None:
        return f"{holds}."
    share = draft.write(most.parameter_share, _place_of_quarter(most, "parameter_share"), "share")
    return f"{holds}, with {share} of the parameters."


def _inside(main: str | None) -> str:
    return "Inside the layers" if main == "language" else f"Inside {component_name(str(main))}"


def _few_layers(draft: Draft, main: str | None) -> str | None:
    """`Only matrices of layer 5 changed.`, or the layers that hold NEARLY_ALL; None where these are
    more than NAMED, or more than a quarter of the layers though others changed as well.
    """
    summary = draft.summary
    rows = [row for row in summary.depth if row.component == main]
    changed = sorted(
        (row for row in rows if row.matrices and row.energy_share is not None),
        key=lambda row: -(row.energy_share or 0.0),
    )
    if not changed:
        return None
    where = _inside(main)
    if len(changed) <= NAMED and len(changed) < len(rows):
        if summary.figures.matrices == 1:
            return ""  # said with its module
        only = f"only matrices of {layers_text([row.layer for row in changed])} changed."
        elsewhere = sum(row.matrices for row in summary.depth) != summary.figures.matrices
        return f"{where}, {only}" if elsewhere or summary.has_components else capital(only)
    named: list[LayerRow] = []
    while math.fsum(row.energy_share or 0.0 for row in named) < NEARLY_ALL:
        named.append(changed[len(named)])
        if len(named) > NAMED or 4 * len(named) > len(rows) or len(named) == len(changed):
            return None
    names = and_list(
        [
            f"layer {row.layer} ("
            + draft.write(
                row.energy_share or 0.0, f"depth.{row.component}.{row.layer}.energy_share", "share"
            )
            + ")"
            for row in sorted(named, key=lambda row: row.layer)
        ]
    )
    return f"{where}, nearly all of it is in {names}."


def _place_of_quarter(row: QuarterRow, figure: str = "energy_share") -> str:
    return f"quarters.{row.component}.{row.quarter}.{figure}"


def _unchanged(draft: Draft) -> list[str]:
    parts = unchanged_parts(draft)
    frozen = [f"Unchanged: {and_list(parts)}."] if parts else []
    return [*frozen, *(f"{text}." for text in without_base(draft.summary))]


def without_base(summary: PairRecord) -> list[str]:
    """What has no base, a text for each component."""
    return [
        f"{capital(component_name(row.component))} has no base, so its change is unknown"
        for row in summary.without_base
    ]


def unchanged_parts(draft: Draft) -> list[str]:
    """What is frozen, by name: whole components, then modules, then layers."""
    summary = draft.summary
    moved = summary.vectors.moved
    whole_ones = [
        row.component
        for row in summary.components
        if row.tensors and row.identical == row.tensors and row.component not in moved
    ]
    several = summary.has_components
    parts = [component_name(name) for name in whole_ones]
    layers: dict[str, list[int]] = {}
    for row in summary.depth:
        has_moved = row.layer in moved.get(row.component, ())
        if row.matrices == 0 and not has_moved and row.component not in whole_ones:
            layers.setdefault(row.component, []).append(row.layer)
    compared = Counter(row.component for row in summary.depth)
    # where all layers are frozen, their modules are not named once more
    told = {name for name, numbers in layers.items() if len(numbers) == compared[name]}
    modules = [
        row
        for row in summary.unchanged
        if row.component not in whole_ones and (is_outside(row.module) or row.component not in told)
    ]
    # what lies outside the layers is never one of the modules that are only counted
    modules.sort(key=lambda module: not is_outside(module.module))
    grown = {(row.component, row.module) for row in summary.vocabulary}
    for module in modules:
        common = "the common rows of " if (module.component, module.module) in grown else ""
        parts.append(f"{common}{named_in(module.component, module.module, several)}")
    if len(parts) > 2 * NAMED + 1:  # one more takes no more room by its name
        parts = [*parts[: 2 * NAMED], f"{len(parts) - 2 * NAMED} more modules"]
    for some in summary.unchanged_experts:
        count = draft.write(some.tensors, f"unchanged_experts.{some.component}.tensors", "count")
        of = draft.write(some.of, f"unchanged_experts.{some.component}.of", "count")
        experts = of_component("the experts", some.component) if several else "the experts"
        parts.append(f"{count} of {of} tensors of {experts}")
    for component, numbers in layers.items():
        parts.append(layers_of(component, numbers, several))
    return parts
