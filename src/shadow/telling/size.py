"""Size and place of the change: modules, layers, what is unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shadow.checks.explanations import (
    CLEAR,
    few_bits,
    has_other_norm_unrounded,
    is_lost,
    recognised,
)
from shadow.checks.summary import Sentence
from shadow.summary.record import PairRecord
from shadow.telling.wording import (
    NAMED,
    Recorded,
    capital,
    component_name,
    layers_of,
    layers_text,
    module_name,
    of_component,
)

NEARLY_KNOWN = 0.99  # share of the energy from which the norm before storage is that of all
MOST = 0.5  # of the energy: modules are named until they hold so much, but no more than NAMED
ALIKE = 0.9  # of the last that was named, from which the next is named too
MOSTLY_KEPT = 0.8  # share of the stored energy below which its norm is not the update's
# modules, or how their names begin
OUTSIDE = ("embed", "head", "position", "patch_embed", "projector")
MORE_THAN_ROUNDING = " by more than rounding"  # what the figures are of where others are copies
MORE = 1.25  # times its share of the parameters, from which a part outside layers is named
WORTH_NAMING = 0.05  # of the energy
EVEN = 0.28  # of the energy in a quarter of the depth, below which none is named
# energy over its share of the parameters, or the reverse, up to which a part has its share
IN_PROPORTION = 1.1
UNROUNDED = "figures.relative_norm_overall_unrounded"
SIZED = "{energy_share:share}[, with {parameter_share:share} of the parameters]"
WORDS = {
    "unknown": "The size of the {what} is unknown, because the base's matrices are 0",
    "size": "The {what} is {figures.relative_norm_overall:share} {of}",
    "as_stored": "As stored, the {what} is {figures.relative_norm_overall:share} {of}",
    "before": "Before storage, the change was {before} {of}"
    " ({figures.relative_norm_overall:share} as stored{known})",
    "known": "; known for {figures.unrounded_share:share} of it",
    "proportion": "spread over the modules{which} in proportion to their size ({name}:"
    " {parameter_share:share} of the parameters, {energy_share:share} of the change)",
    "part": "{name} ({energy_share:share})",
    "part_sized": f"{{name}} ({SIZED})",
    "holds": f"{{name}} {{holds}} {SIZED}",
    "few_layers": "Inside {where}, only matrices of {layers} changed{more}.",
    "quarter": "Inside {where}, {layers} {count|holds|hold} {energy_share:share} of it"
    "[, with {parameter_share:share} of the parameters].",
    "unchanged": "Unchanged: {parts:and}.",
    "rounded": "{figures.matrices_rounded:count more matrix is|more matrices are} only rounded.",
    "rounded_short": "{figures.matrices_rounded:count matrix|matrices} only rounded",
}


def size_and_place(
    summary: PairRecord, apart: bool, alike: bool = True, filtered: bool = False
) -> list[Sentence]:
    """apart: the two are not base and tuned; alike: where the difference lies says something."""
    recorded = Recorded(summary)
    norm = _norm(recorded, apart)
    if not alike:
        return [recorded.sentence("size", f"{norm}.")]
    place, more = _modules(recorded, filtered)
    parts = unchanged_parts(recorded)
    texts = [
        f"{norm}, {place}." if place else f"{norm}.",
        more,
        "" if "mostly_copy" in recognised(summary) else rounded_text(recorded, "rounded"),
        _depth(recorded),
        recorded.fill(WORDS["unchanged"], parts=parts) if parts else "",
        *(f"{text}." for text in without_base(summary)),
    ]
    return [recorded.sentence("size", *texts)]


def _norm(recorded: Recorded, apart: bool) -> str:
    summary, figures = recorded.summary, recorded.summary.figures
    code = "as_stored" if is_as_stored(summary) else "size"
    before = known = ""
    if figures.relative_norm_overall is None:
        code = "unknown"
    elif has_other_norm_unrounded(summary) and not apart:
        code, before = "before", recorded.fill(f"{{{UNROUNDED}:share}}")
        if (figures.unrounded_share or 1.0) < NEARLY_KNOWN:
            known = recorded.fill(WORDS["known"])
    what = "difference" if apart else "change"
    return recorded.fill(WORDS[code], what=what, of=of_what(summary), before=before, known=known)


def is_as_stored(summary: PairRecord) -> bool:
    """Return whether it is unknown, and may matter, what rounding removed or added."""
    figures, kept = summary.figures, summary.inside_layers.kept
    near = figures.floor_ratio is not None and figures.floor_ratio < CLEAR
    near = near or (kept is not None and kept < MOSTLY_KEPT)
    # of a copy in few bits, floor_ratio may be of the file's format
    near = near or few_bits(summary) is not None or is_lost(summary)
    return figures.relative_norm_overall_unrounded is None and near


def rounded_text(recorded: Recorded, words: str) -> str:
    """Return how many matrices are only rounded, where the figures are those of others."""
    return recorded.fill(WORDS[words]) if recorded.summary.figures.matrices_rounded else ""


def of_what(summary: PairRecord) -> str:
    """Return what the overall relative norm is relative to, in words."""
    if summary.figures.matrices_rounded:
        return f"of the norm of the matrices that changed{MORE_THAN_ROUNDING}"
    if has_frozen(summary):
        return "of the norm of the weights that changed"
    return "of the base matrices' norm"


def has_frozen(summary: PairRecord) -> bool:
    """Return whether so much is unchanged that the norm of what changed is not the model's."""
    return _unmoved(summary) > 0.01 * (summary.figures.parameters or 1)


def is_mostly_frozen(summary: PairRecord) -> bool:
    """Return whether half of the parameters or more are the same on both sides, or only rounded."""
    return 2 * _unmoved(summary) >= (summary.figures.parameters or 1)


def _unmoved(summary: PairRecord) -> int:
    """Return how many parameters are the same on both sides, or only rounded."""
    return int(summary.figures.parameters_identical + summary.figures.parameters_rounded)


@dataclass(frozen=True)
class ChangedPart:
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
        """Return whether it is outside the layers, with clearly more than its share."""
        if not self.outside or self.parameter_share is None:
            return False
        return self.energy_share >= max(MORE * self.parameter_share, WORTH_NAMING)

    @property
    def in_proportion(self) -> bool:
        """Return whether it has about its share of the energy, or little of energy and
        parameters.
        """
        if self.parameter_share is None:
            return False
        few, many = sorted((self.energy_share, self.parameter_share))
        return many < WORTH_NAMING or many <= IN_PROPORTION * few


def parts_by_energy(summary: PairRecord) -> list[ChangedPart]:
    """Return the parts of the model, that with the most energy first."""
    main = main_component(summary)
    parts = [
        ChangedPart(
            module_name(row.module),
            f"modules.{row.component}.{row.module}",
            row.energy_share,
            row.parameter_share,
            is_outside(row.module),
        )
        for row in summary.modules
        if row.component == main and row.energy_share is not None
    ]
    parts += [
        ChangedPart(
            component_name(row.component),
            f"components.{row.component}",
            row.energy_share,
            row.parameter_share,
            outside=True,
        )
        for row in summary.components
        if row.component != main and row.matrices and row.energy_share is not None
    ]
    return sorted(parts, key=lambda part: -part.energy_share)


def are_in_proportion(summary: PairRecord, parts: Sequence[ChangedPart]) -> bool:
    """Return whether every part has its share; False if little changed, as there is no
    proportion.
    """
    return not is_mostly_frozen(summary) and all(part.in_proportion for part in parts)


def leading(parts: Sequence[ChangedPart]) -> list[ChangedPart]:
    """Return the parts that hold MOST of it, and those as large as the last; at most NAMED."""
    named: list[ChangedPart] = []
    for part in parts[:NAMED]:
        held = sum(one.energy_share for one in named)
        if held < MOST or part.energy_share > ALIKE * named[-1].energy_share:
            named.append(part)
    return named


def main_component(summary: PairRecord) -> str | None:
    """Return the component whose modules are named: language, or the one that changed most."""
    changed = {row.component: row.matrices for row in summary.components if row.matrices}
    if "language" in changed:
        return "language"
    return max(changed, key=changed.__getitem__, default=None)


def is_outside(module: str) -> bool:
    """Return whether a module lies outside the layers."""
    return module.partition(".")[0] in OUTSIDE


def is_all_asked_for(summary: PairRecord, filtered: bool) -> bool:
    """Return whether a filter chose modules that all changed, so that their place is no finding."""
    return filtered and not has_frozen(summary)


def _modules(recorded: Recorded, filtered: bool) -> tuple[str, str]:
    """Return the parts with the most energy as the end of a sentence, and a sentence on those
    outside layers with more than their share.
    """
    summary = recorded.summary
    parts = parts_by_energy(summary)
    if not parts or (len(parts) == 1 and is_all_asked_for(summary, filtered)):
        return "", ""
    if len(parts) == 1:
        return f"all of it in {parts[0].name}", ""
    if are_in_proportion(summary, parts):
        which = " that changed" if has_frozen(summary) else ""
        return recorded.fill(WORDS["proportion"], parts[0], parts[0].place, which=which), ""
    named = leading(parts)
    is_all = is_mostly_frozen(summary) and len(named) == len(parts)
    is_most = sum(part.energy_share for part in named) >= MOST
    much = "all of it" if is_all else "most of it" if is_most else "with the largest shares"
    names = []
    for part in named:
        is_sized = part.holds_more or (part is named[0] and not is_all)
        code = "part_sized" if is_sized else "part"
        names.append(recorded.fill(WORDS[code], part, part.place, name=part.name))
    rest = []
    for part in parts:
        if part.holds_more and part not in named:
            holds = "hold" if part.name.endswith("embeddings") else "holds"
            rest.append(
                recorded.fill(WORDS["holds"], part, part.place, name=part.name, holds=holds)
            )
    first = recorded.fill("{much} in {names:and}", much=much, names=names)
    return first, capital(recorded.fill("{rest:and}.", rest=rest)) if rest else ""


def _depth(recorded: Recorded) -> str:
    """Return the only layers that changed, or the quarter that holds most, if it holds more."""
    summary, main = recorded.summary, main_component(recorded.summary)
    if main is None or main == "other":  # numbers in unknown names need not be those of blocks
        return ""
    where = "the layers" if main == "language" else component_name(main)
    layers = [row for row in summary.depth if row.component == main]
    changed = [row.layer for row in layers if row.matrices and row.energy_share is not None]
    if 0 < len(changed) <= NAMED and len(changed) < len(layers):
        more = MORE_THAN_ROUNDING if summary.figures.matrices_rounded else ""
        named = layers_text(changed)
        return recorded.fill(WORDS["few_layers"], where=where, layers=named, more=more)
    rows = [row for row in summary.quarters if row.component == main]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row.energy_share)
    if most.energy_share < EVEN:
        return ""
    span = range(most.first_layer, most.last_layer + 1)
    at, named = f"quarters.{main}.{most.quarter}", layers_text(span)
    return recorded.fill(WORDS["quarter"], most, at, where=where, layers=named, count=len(span))


def without_base(summary: PairRecord) -> list[str]:
    """Return what has no base, with a text for each component."""
    names = [capital(component_name(row.component)) for row in summary.without_base]
    return [f"{name} has no base, so its change is unknown" for name in names]


def unchanged_parts(recorded: Recorded) -> list[str]:
    """Return what is frozen, by name: whole components, then modules, then layers."""
    summary, several = recorded.summary, recorded.summary.has_components
    moved = summary.vectors.moved
    whole = [
        row.component
        for row in summary.components
        if row.tensors and row.identical == row.tensors
        # a tied head is no tensor of its own
        if not row.matrices and row.component not in moved
    ]
    layers: dict[str, list[int]] = {}
    for row in summary.depth:
        has_moved = (
            row.matrices or row.matrices_rounded or row.layer in moved.get(row.component, ())
        )
        if not has_moved and row.component not in whole:
            layers.setdefault(row.component, []).append(row.layer)
    compared = Counter(row.component for row in summary.depth)
    # where all layers are frozen, their modules are not named once more
    named = {name for name, numbers in layers.items() if len(numbers) == compared[name]}
    grown = {(one.component, one.module) for one in summary.vocabulary}
    parts = [component_name(name) for name in whole]
    # what lies outside the layers is never one of the modules that are only counted
    for one in sorted(summary.unchanged, key=lambda one: not is_outside(one.module)):
        is_named = one.component in named and not is_outside(one.module)
        if not (one.component in whole or is_named or (one.component, one.module) in grown):
            parts.append(of_component(module_name(one.module), one.component, several))
    if len(parts) > 2 * NAMED + 1:  # one more takes no more room by its name
        parts = [*parts[: 2 * NAMED], f"{len(parts) - 2 * NAMED} more modules"]
    return [*parts, *(layers_of(name, numbers, several) for name, numbers in layers.items())]
