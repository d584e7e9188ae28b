"""The parts of a model in words: those that changed, with their shares, what is unchanged, and what
has no base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shadow.summary.record import ComponentRow, PairRecord, Unchanged, main_of
from shadow.telling.wording import (
    NAMED,
    PLURAL,
    Recorded,
    capital,
    component_name,
    layers_of,
    module_name,
    of_component,
)

MOST = 0.5  # of the energy: modules are named until they hold so much, but no more than NAMED
ALIKE = 0.9  # of the last that was named, from which the next is named too
# modules, or how their names begin
OUTSIDE = ("embed", "head", "position", "patch_embed", "projector")
MORE = 1.25  # times its share of the parameters, from which a part outside layers is named
WORTH_NAMING = 0.05  # of the energy
# energy over its share of the parameters, or the reverse, up to which a part has its share
IN_PROPORTION = 1.1
FROZEN = (
    0.01  # of the parameters: if more did not move, the norm of what changed is not the model's
)
MORE_THAN_ROUNDING = " by more than rounding"  # what the figures are of where others are copies
TENSORS = "{identical:count weight tensor|weight tensors}[ of {component}]"
APART = "{names:and} {count|shares|share} nothing with the base's"
SAME = "{names:and} {count|is|are} the same"
MOVED = "{name} changed by {relative_norm:share}"
VECTORS_ALIKE = "{vectors.compared:count bias or norm|biases and norms}"


def is_outside(module: str) -> bool:
    """True if a module lies outside the layers."""
    return module.partition(".")[0] in OUTSIDE


# ---------------------------------------------------------------------------------- what changed


@dataclass(frozen=True)
class ChangedPart:
    """A module of the main component, or another component as a whole, that changed."""

    name: str
    place: str
    """The place of its row in summary.json."""
    energy_share: float
    parameter_share: float | None
    is_outside: bool
    """True if it is outside the layers, and named where it holds more than its share."""
    is_plural: bool = False

    @property
    def holds_more(self) -> bool:
        """True if it is outside the layers, with clearly more than its share."""
        if not self.is_outside or self.parameter_share is None:
            return False
        return self.energy_share >= max(MORE * self.parameter_share, WORTH_NAMING)

    @property
    def in_proportion(self) -> bool:
        """True if it has about its share of the energy, or little of energy and parameters."""
        if self.parameter_share is None:
            return False
        few, many = sorted((self.energy_share, self.parameter_share))
        return many < WORTH_NAMING or many <= IN_PROPORTION * few


def parts_by_energy(summary: PairRecord) -> list[ChangedPart]:
    """The parts of the model, that with the most energy first."""
    main = main_component(summary)
    parts = []
    for row in summary.modules:
        if row.component == main and row.energy_share is not None:
            part = ChangedPart(
                module_name(row.module),
                f"modules.{row.component}.{row.module}",
                row.energy_share,
                row.parameter_share,
                is_outside(row.module),
                row.module in PLURAL,
            )
            parts.append(part)
    for component in summary.components:
        share = component.energy_share
        if component.component != main and component.matrices and share is not None:
            part = ChangedPart(
                component_name(component.component),
                f"components.{component.component}",
                share,
                component.parameter_share,
                is_outside=True,
            )
            parts.append(part)
    return sorted(parts, key=lambda part: -part.energy_share)


def are_in_proportion(summary: PairRecord, parts: Sequence[ChangedPart]) -> bool:
    """True if every part has its share; False if little changed, as there is no proportion."""
    return not is_mostly_frozen(summary) and all(part.in_proportion for part in parts)


def leading(parts: Sequence[ChangedPart]) -> list[ChangedPart]:
    """The parts that hold MOST of it, and those as large as the last; at most NAMED."""
    leaders: list[ChangedPart] = []
    for part in parts[:NAMED]:
        held = sum(leader.energy_share for leader in leaders)
        if held < MOST or part.energy_share > ALIKE * leaders[-1].energy_share:
            leaders.append(part)
    return leaders


def main_component(summary: PairRecord) -> str | None:
    """The component whose modules are named: language, or the one that changed most."""
    return main_of({row.component: row.matrices for row in summary.components if row.matrices})


# -------------------------------------------------------------------------------- what did not


def has_frozen(summary: PairRecord) -> bool:
    """True if so much is unchanged that the norm of what changed is not the model's."""
    return _unmoved(summary) > FROZEN * summary.figures.parameters


def is_mostly_frozen(summary: PairRecord) -> bool:
    """True if half of the parameters or more are the same on both sides, or only rounded."""
    return 2 * _unmoved(summary) >= summary.figures.parameters


def _unmoved(summary: PairRecord) -> int:
    """Count the parameters that are the same on both sides, or only rounded."""
    return summary.figures.parameters_identical + summary.figures.parameters_rounded


def of_what(summary: PairRecord) -> str:
    """Say what the overall relative norm is relative to."""
    if summary.figures.matrices_rounded:
        return f"of the norm of the matrices that changed{MORE_THAN_ROUNDING}"
    if has_frozen(summary):
        return "of the norm of the weights that changed"
    return "of the base matrices' norm"


def without_base(summary: PairRecord) -> list[str]:
    """Say of each component what has no base."""
    names = [capital(component_name(row.component)) for row in summary.without_base]
    return [f"{name} has no base, so its change is unknown" for name in names]


def identical_text(recorded: Recorded) -> str:
    """`30 weight tensors and 9 biases and norms are identical`, counting one side, as the other has
    the same; by component if there are several. Empty if nothing is.
    """
    vectors = recorded.summary.vectors
    rows = [row for row in recorded.summary.components if row.identical]
    count = sum(row.identical for row in rows)
    names = []
    for row in rows:
        component = component_name(row.component) if len(rows) > 1 else None
        place = f"components.{row.component}"
        names.append(recorded.fill(TENSORS, row, place, component=component))
    if vectors.compared and not vectors.changed:
        names.append(recorded.fill(VECTORS_ALIKE))
        count += vectors.compared
    return recorded.fill("[{names:and} {count|is|are} identical]", names=names or None, count=count)


def components_text(recorded: Recorded, apart: Sequence[ComponentRow]) -> str:
    """`the vision tower shares nothing with the base's; the language model changed by 3.0 %`; what
    is the same, if no component changed by so little.
    """
    summary = recorded.summary
    names = [component_name(row.component) for row in apart]
    clauses = [recorded.fill(APART, names=names, count=len(names))]
    for row in summary.components:
        if row.matrices and row not in apart and row.relative_norm is not None:
            name = component_name(row.component)
            clauses.append(recorded.fill(MOVED, row, f"components.{row.component}", name=name))
    same = [component_name(name) for name in _unchanged_components(summary)]
    if same and len(clauses) == 1:
        clauses.append(recorded.fill(SAME, names=same, count=len(same)))
    return "; ".join(clauses)


def unchanged_parts(summary: PairRecord) -> list[str]:
    """Name what is frozen: whole components, then modules, then layers."""
    has_components = summary.has_components
    components = _unchanged_components(summary)
    layers = _unchanged_layers(summary, components)
    compared = Counter(row.component for row in summary.depth)
    # where all layers are frozen, their modules are not named once more
    whole = {name for name, numbers in layers.items() if len(numbers) == compared[name]}
    grown = {(row.component, row.module) for row in summary.vocabulary}

    def is_named(row: Unchanged) -> bool:
        if row.component in components or (row.component, row.module) in grown:
            return False
        return is_outside(row.module) or row.component not in whole

    # what lies outside the layers is never one of the modules that are only counted
    modules = sorted(
        filter(is_named, summary.unchanged), key=lambda row: not is_outside(row.module)
    )
    parts = [component_name(name) for name in components]
    for row in modules:
        parts.append(of_component(module_name(row.module), row.component, has_components))
    if len(parts) > 2 * NAMED + 1:  # one more takes no more room by its name
        parts = [*parts[: 2 * NAMED], f"{len(parts) - 2 * NAMED} more modules"]
    return [*parts, *[layers_of(name, numbers, has_components) for name, numbers in layers.items()]]


def _unchanged_components(summary: PairRecord) -> list[str]:
    """Components of which no tensor moved. A tied head is no tensor of its own."""
    moved = summary.vectors.moved
    return [
        row.component
        for row in summary.components
        if row.tensors and row.identical == row.tensors
        if not row.matrices and row.component not in moved
    ]


def _unchanged_layers(summary: PairRecord, components: Sequence[str]) -> dict[str, list[int]]:
    """The layers without a change of each component that is not unchanged as a whole."""
    layers: dict[str, list[int]] = {}
    for row in summary.depth:
        vectors = summary.vectors.moved.get(row.component, ())
        has_moved = row.matrices or row.matrices_rounded or row.layer in vectors
        if not has_moved and row.component not in components:
            layers.setdefault(row.component, []).append(row.layer)
    return layers
