"""Size and place of the change: how large it is, in which modules and layers, what is unchanged."""

from __future__ import annotations

from shadow.checks.explanations import has_other_norm_unrounded
from shadow.telling.context import Context
from shadow.telling.parts import (
    MORE_THAN_ROUNDING,
    MOST,
    are_in_proportion,
    is_mostly_frozen,
    leading,
    main_component,
    of_what,
    unchanged_parts,
    without_base,
)
from shadow.telling.wording import NAMED, Recorded, capital, component_name, layers_text

NEARLY_KNOWN = 0.99  # share of the energy from which the norm before storage is that of all
EVEN = 0.28  # of the energy in a quarter of the depth, below which none is named
UNROUNDED = "figures.relative_norm_overall_unrounded"
SIZED = "{energy_share:share}[, with {parameter_share:share} of the parameters]"
WORDS = {
    "unknown": "The size of the {what} is unknown, because the base's matrices are 0",
    "size": "The {what} is {figures.relative_norm_overall:share} {of}",
    "as_stored": "As stored, the {what} is {figures.relative_norm_overall:share} {of}",
    "before": f"Before storage, the change was {{{UNROUNDED}:share}} {{of}}"
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
    "unchanged": "[Unchanged: {parts:and}.]",
    "rounded": "{figures.matrices_rounded:count more matrix is|more matrices are} only rounded.",
}


def size(context: Context, recorded: Recorded) -> str:
    """Write size and place; of sides that differ in every entry, the size alone."""
    summary = context.summary
    norm = _norm(context, recorded)
    if context.lacks_entries:
        same = recorded.fill(WORDS["unchanged"], parts=unchanged_parts(summary) or None)
        return f"{norm}. {same}".rstrip()
    place = _most(context, recorded)
    texts = [f"{norm}, {place}." if place else f"{norm}.", _rest(context, recorded)]
    if summary.figures.matrices_rounded and "mostly_copy" not in context.recognised:
        texts.append(recorded.fill(WORDS["rounded"]))
    texts += [
        _depth(context, recorded),
        recorded.fill(WORDS["unchanged"], parts=unchanged_parts(summary) or None),
    ]
    texts += [f"{text}." for text in without_base(summary)]
    return " ".join(filter(None, texts))


def _norm(context: Context, recorded: Recorded) -> str:
    summary = context.summary
    are_apart = context.are_siblings or context.lacks_entries
    code = "as_stored" if context.is_as_stored else "size"
    known = ""
    if summary.figures.relative_norm_overall is None:
        code = "unknown"
    elif has_other_norm_unrounded(summary) and not are_apart:
        code = "before"
        if (summary.figures.unrounded_share or 1.0) < NEARLY_KNOWN:
            known = recorded.fill(WORDS["known"])
    what = "difference" if are_apart else "change"
    return recorded.fill(WORDS[code], what=what, of=of_what(summary), known=known)


def _most(context: Context, recorded: Recorded) -> str:
    """Name the parts with the most energy, as the end of a sentence."""
    parts = context.parts
    if not parts or (len(parts) == 1 and context.is_all_asked_for):
        return ""
    first = parts[0]
    if len(parts) == 1:
        return f"all of it in {first.name}"
    if are_in_proportion(context.summary, parts):
        which = " that changed" if context.has_frozen else ""
        words = {"name": first.name, "which": which}
        return recorded.fill(WORDS["proportion"], first, first.place, **words)
    leaders = leading(parts)
    is_all = is_mostly_frozen(context.summary) and len(leaders) == len(parts)
    much = "all of it" if is_all else "with the largest shares"
    if not is_all and sum(part.energy_share for part in leaders) >= MOST:
        much = "most of it"
    names = []
    for part in leaders:
        is_sized = part.holds_more or (part is first and not is_all)
        code = "part_sized" if is_sized else "part"
        names.append(recorded.fill(WORDS[code], part, part.place, name=part.name))
    return recorded.fill("{much} in {names:and}", much=much, names=names)


def _rest(context: Context, recorded: Recorded) -> str:
    """Describe further parts outside the layers that hold more than their share."""
    parts = context.parts
    if len(parts) < 2 or are_in_proportion(context.summary, parts):
        return ""
    leaders = leading(parts)
    texts = []
    for part in parts:
        if part.holds_more and part not in leaders:
            holds = "hold" if part.is_plural else "holds"
            words = {"name": part.name, "holds": holds}
            texts.append(recorded.fill(WORDS["holds"], part, part.place, **words))
    return capital(recorded.fill("[{texts:and}.]", texts=texts or None))


def _depth(context: Context, recorded: Recorded) -> str:
    """Name the only layers that changed, or the quarter that holds most, if it holds more."""
    summary = context.summary
    main = main_component(summary)
    if main is None or main == "other":  # numbers in unknown names need not be those of blocks
        return ""
    where = "the layers" if main == "language" else component_name(main)
    layers = [row for row in summary.depth if row.component == main]
    changed = [row.layer for row in layers if row.matrices and row.energy_share is not None]
    if 0 < len(changed) <= NAMED and len(changed) < len(layers):
        more = MORE_THAN_ROUNDING if summary.figures.matrices_rounded else ""
        named = layers_text(changed)
        return recorded.fill(WORDS["few_layers"], where=where, layers=named, more=more)
    quarters = [row for row in summary.quarters if row.component == main]
    most = max(quarters, key=lambda row: row.energy_share, default=None)
    if most is None or most.energy_share < EVEN:
        return ""
    span = range(most.first_layer, most.last_layer + 1)
    return recorded.fill(
        WORDS["quarter"],
        most,
        f"quarters.{main}.{most.quarter}",
        where=where,
        layers=layers_text(span),
        count=len(span),
    )
