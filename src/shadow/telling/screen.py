"""Contents of a pair's screen beside headline and picture: figures, and the answers that matter.
Pure.

`--full` and the page have every figure with its interval. An answer matters where a gate failed,
where something was found that no training leaves, or where not all was compared. A pair of which
all is as expected has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow.checks.explanations import RECOGNISED, is_copied, is_copy, is_rearranged
from shadow.checks.pair_gates import Gate
from shadow.checks.summary import Summary
from shadow.quantities import Kind, Quantity, portion_of, text_of
from shadow.reasons import STRICT, meaning
from shadow.telling.document import FigureRow, Word
from shadow.telling.limits import DAMAGE
from shadow.telling.size import is_outside, of_what, unchanged_parts, without_base
from shadow.telling.wording import Recorded
from shadow.text import and_list, counted

CONCENTRATION = "0 is noise, 1 is a single direction"
NO_CONCENTRATION = "unknown: random signs, too, would leave fewer than 2 directions"
ENTRIES = "of the entries of the median matrix"
MOST_OUTSIDE = 3  # modules outside the layers whose norms are named
FAILED, FOUND, NOTED = Word("failed", "warning"), Word("found"), Word("note", "quiet")
# how the sentences are noticed that a reader has to know before any figure, by their code
NOTICED: Mapping[str, Word] = {
    **dict.fromkeys(DAMAGE, FAILED),
    **dict.fromkeys(("only_vectors", *RECOGNISED, "low_rank", "few_values"), FOUND),
    **dict.fromkeys(("part_asked_for", "left_out", "vectors", "files", "level"), NOTED),
}
# gates that are no fault of a pair of which a sentence says what it is
EXPLAINED_BY: Mapping[str, Sequence[str]] = {
    "changed": ("identical", "only_vectors"),
    "rank": ("low_rank",),
    "paired": ("part_asked_for",),
}


def figure_rows(summary: Summary, *, full: bool = False) -> list[FigureRow]:
    """Return how far the weights moved, how concentrated the change is, what storage left
    unchanged.

    full: with intervals, where a table has the norms outside the layers.
    """
    figures = summary.figures
    if not figures.matrices:
        return []
    norm = quantity(summary, "relative_norm_overall", "share", full=full)
    concentration = quantity(summary, "concentration", "fixed", full=full)
    scale = CONCENTRATION
    if figures.concentration is None:
        scale = NO_CONCENTRATION if summary.has_spectra else "not measured"
    rows = [
        FigureRow("relative norm", norm, of_what(summary) + ("" if full else _outside(summary))),
        FigureRow("concentration", concentration, scale),
    ]
    if figures.rank_ceiling is None:  # an adapter stores no entries of the matrix
        rows.append(FigureRow("unchanged", Quantity(figures.zero_share, "fraction"), ENTRIES))
    return rows


def quantity(summary: Summary, name: str, kind: Kind, *, full: bool = True) -> Quantity:
    """A figure, with its interval where it is shown in full."""
    low, high = (full and summary.intervals.get(name)) or (None, None)
    return Quantity(summary.figures[name], kind, low, high)


def _outside(summary: Summary) -> str:
    """` (embed 3.4 %, head 18 %)`: what the picture of the layers does not show."""
    recorded = [
        f"{row.module} {text_of(row.relative_norm, 'share')}"
        for row in summary.modules
        if row.relative_norm is not None
        and row.component in (summary.main_component, "projector")
        and is_outside(row.module)
    ]
    return f" ({', '.join(recorded[:MOST_OUTSIDE])})" if recorded else ""


def answer_rows(summary: Summary) -> list[FigureRow]:
    """A row for each gate that failed, each thing that was found, each limit: its name, which of
    the three it is, and what was found.
    """
    failed = [FigureRow(gate.name, FAILED, gate.reason) for gate in faults(summary)]
    rows = [*failed, *_of_sentences(summary)]
    frozen = unchanged_parts(Recorded(summary))
    if frozen and summary.figures.matrices:
        rows.append(FigureRow("frozen", FOUND, and_list(frozen)))
    rows += [FigureRow("no base", NOTED, text) for text in without_base(summary)]
    for row in summary.skipped:
        if row.reason in STRICT and not _is_recorded(summary, row.reason):
            tensors = counted(row.tensors, "tensor", "tensors")
            example = f", such as {row.examples[0]}" if row.examples else ""
            text = f"{tensors}: {meaning(row.reason)}{example}"
            rows.append(FigureRow(row.reason, Word("skipped", "warning"), text))
    return rows


def faults(summary: Summary) -> list[Gate]:
    """The gates that failed, but for those that a copy or an adapter fails by being one."""
    codes = {sentence.code for sentence in summary.finding.sentences}
    explained = {name for name, why in EXPLAINED_BY.items() if codes.intersection(why)}
    if is_copied(summary) or not summary.has_spectra:
        explained.add("rounding")
    if summary.estimated or not summary.has_spectra:
        explained.add("rank")
    if "identical" in codes:  # nothing of which more could be said
        explained |= {"lineage", "rounding", "rank"}
    if is_rearranged(summary):
        explained.add("lineage")
    return [gate for gate in summary.failed_gates if gate.name not in explained]


def _of_sentences(summary: Summary) -> Iterator[FigureRow]:
    codes = {sentence.code for sentence in summary.finding.sentences}
    for sentence in summary.finding.sentences:
        code, text = sentence.code, sentence.text
        if code == "rounding" and is_copy(summary):
            code = "copy"
        elif code == "identical" and "only_vectors" not in codes:  # the headline has half of it
            yield FigureRow(code, FOUND, text.partition(": ")[2] or text)
        if code in NOTICED:
            known = RECOGNISED.get(code)
            yield FigureRow(known.title if known else code.replace("_", " "), NOTICED[code], text)


def _is_recorded(summary: Summary, reason: str) -> bool:
    """Return whether a sentence says of tensors that were skipped for this reason all that there
    is.
    """
    codes = {sentence.code for sentence in summary.finding.sentences}
    if reason == "nonfinite":
        return "nonfinite" in codes
    return "left_out" in codes and any(row.reason == reason for row in summary.uncompared)


def standing(summary: Summary) -> str | None:
    """Return what there is to say of a pair in a table of pairs: gates that failed, what was found;
    None where nothing is.
    """
    rows = answer_rows(summary)
    if failed := [row.name for row in rows if row.value == FAILED]:
        return f"failed: {', '.join(dict.fromkeys(failed))}"
    if found := [row.name for row in rows if row.value == FOUND]:
        files = ["files"] if any(one.code == "files" for one in summary.finding.sentences) else []
        return ", ".join(dict.fromkeys([*found, *files]))
    return None


def all_figures(summary: Summary) -> list[FigureRow]:
    """Return what changed, how much and how concentrated, each with its interval."""
    figures, count = summary.figures, len(summary.gates)
    of = f"{portion_of(figures.parameters_measured, figures.parameters)} of the parameters"
    if summary.counts["identical"]:
        of += f"; {portion_of(figures.parameters_identical, figures.parameters)} are identical"
    rows = [FigureRow("changed", counted(int(figures.matrices or 0), "matrix", "matrices"), of)]
    if figures.matrices:
        norm, *others = figure_rows(summary, full=True)
        rows.append(norm)
        if (ratio := figures.floor_ratio) is not None:
            of = "times the rounding of its storage"
            rows.append(FigureRow("x rounding", Quantity(ratio, "ratio"), of))
        rows += others
        if figures.concentration is not None:
            of = f"of {text_of(figures.short_side, 'count')} directions"
            null = f"{of}; {text_of(figures.null_participation_ratio, 'ratio')} with random signs"
            rows.append(FigureRow("PR", quantity(summary, "participation_ratio", "ratio"), null))
            stand = f"{of} {'stands' if figures.spikes == 1 else 'stand'} out of noise"
            rows.append(FigureRow("spikes", Quantity(figures.spikes, "number"), stand))
        rows.append(FigureRow("spread", "", _spread(summary)))
    passed = [] if summary.failed_gates else [FigureRow("gates", f"all {count} passed")]
    return [*rows, *passed]


def _spread(summary: Summary) -> str:
    """Return what the bounds in brackets are."""
    if summary.no_interval:
        return f"none over layers: {summary.no_interval}"
    level = 100 * (summary.interval_level or 0)
    over = f"over {summary.layers} layers ({level:.2g} %), in brackets"
    return f"{over}; it says nothing of other runs or seeds"
