"""What the screen of a pair has beside headline and picture: figures, and the answers that matter.
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
from shadow.telling.document import Cell, FigureRow, Word
from shadow.telling.limits import DAMAGE
from shadow.telling.size import is_outside, of_what, unchanged_parts, without_base
from shadow.telling.wording import Told
from shadow.text import and_list, counted

CONCENTRATION = "0 is noise, 1 is a single direction"
NO_CONCENTRATION = "unknown: random signs, too, would leave fewer than 2 directions"
ENTRIES = "of the entries of the median matrix"
FAR = 100  # times the rounding of storage above which the exact factor tells nothing more
MOST_OUTSIDE = 3  # modules outside the layers whose norms are named
FAILED, FOUND, NOTED = Word("failed", "warning"), Word("found"), Word("note", "quiet")
# what is found, by the sentence that says it: its name on the screen
FOUND_BY: Mapping[str, str] = {
    "only_vectors": "only vectors",
    **{code: claim.title for code, claim in RECOGNISED.items() if code != "copy"},
    "low_rank": "low rank",
    "few_values": "few bits",
}
# what else a reader has to know before any figure, by the sentence that says it
NOTED_BY: Mapping[str, str] = {
    "part_asked_for": "a part",
    "left_out": "left out",
    "vectors": "vectors",
    "files": "files",
    "level": "level",
}
# gates that are no fault of a pair of which a sentence says what it is
EXPLAINED_BY: Mapping[str, Sequence[str]] = {
    "changed": ("identical", "only_vectors"),
    "rank": ("low_rank",),
    "paired": ("part_asked_for",),
}


def figure_rows(summary: Summary, *, full: bool = False) -> list[FigureRow]:
    """How far the weights moved, how concentrated the change is, what storage left unchanged.

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
    told = [
        f"{row.module} {text_of(row.relative_norm, 'share')}"
        for row in summary.modules
        if row.relative_norm is not None
        and row.component in (summary.main_component, "projector")
        and is_outside(row.module)
    ]
    return f" ({', '.join(told[:MOST_OUTSIDE])})" if told else ""


def answer_rows(summary: Summary) -> list[FigureRow]:
    """A row for each gate that failed, each thing that was found, each limit: its name, which of
    the three it is, and what was found.
    """
    failed = [FigureRow(gate.name, FAILED, gate.reason) for gate in faults(summary)]
    rows = [*failed, *_of_sentences(summary)]
    frozen = unchanged_parts(Told(summary))
    if frozen and summary.figures.matrices:
        rows.append(FigureRow("frozen", FOUND, and_list(frozen)))
    rows += [FigureRow("no base", NOTED, text) for text in without_base(summary)]
    for row in summary.skipped:
        if row.reason in STRICT and not _is_told(summary, row.reason):
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
        code = sentence.code
        if code in DAMAGE:
            yield FigureRow(code, FAILED, sentence.text)
        elif code == "rounding" and is_copy(summary):
            yield FigureRow(RECOGNISED["copy"].title, FOUND, sentence.text)
        elif code == "identical":  # the headline says the first half
            if "only_vectors" not in codes:
                yield FigureRow(code, FOUND, sentence.text.partition(": ")[2] or sentence.text)
        elif code in FOUND_BY:
            yield FigureRow(FOUND_BY[code], FOUND, sentence.text)
        elif code in NOTED_BY:
            yield FigureRow(NOTED_BY[code], NOTED, sentence.text)


def _is_told(summary: Summary, reason: str) -> bool:
    """Whether a sentence says of tensors that were skipped for this reason all that there is."""
    codes = {sentence.code for sentence in summary.finding.sentences}
    if reason == "nonfinite":
        return "nonfinite" in codes
    return "left_out" in codes and any(row.reason == reason for row in summary.uncompared)


def standing(summary: Summary) -> str | None:
    """What there is to say of a pair in a table of pairs: gates that failed, what was found; None
    where nothing is.
    """
    rows = answer_rows(summary)
    if failed := [row.name for row in rows if row.value == FAILED]:
        return f"failed: {', '.join(dict.fromkeys(failed))}"
    if found := [row.name for row in rows if row.value == FOUND]:
        files = ["files"] if any(one.code == "files" for one in summary.finding.sentences) else []
        return ", ".join(dict.fromkeys([*found, *files]))
    return None


# --------------------------------------------------------------------------- every figure


def all_figures(summary: Summary) -> list[FigureRow]:
    """What changed, how much, how concentrated, where."""
    if not summary.figures.matrices:
        return [_changed(summary)]
    norm, concentration, *unchanged = figure_rows(summary, full=True)
    return [
        _changed(summary),
        norm,
        *_size(summary),
        *unchanged,
        concentration,
        *_directions(summary),
        *_where(summary),
    ]


def standing_rows(summary: Summary) -> list[FigureRow]:
    """What the bounds in brackets are, and the gates."""
    rows = []
    if summary.figures.matrices:
        rows.append(FigureRow("spread", _spread(summary)))
        # medians of the finding are over those inside layers
        if summary.figures.matrices != summary.inside_layers.matrices:
            count = text_of(summary.figures.matrices, "count")
            rows.append(FigureRow("medians", f"over all {count} matrices, if not said otherwise"))
    rows.append(FigureRow("gates", _gates(summary)))
    return rows


def _changed(summary: Summary) -> FigureRow:
    """`30 matrices`, `99.7 % of the parameters; 0.3 % are identical`."""
    f = summary.figures
    of = f"{portion_of(f.parameters_measured, f.parameters)} of the parameters"
    if summary.counts["identical"]:
        of += f"; {portion_of(f.parameters_identical, f.parameters)} are identical"
    return FigureRow("changed", counted(int(f.matrices or 0), "matrix", "matrices"), of)


def _size(summary: Summary) -> Iterator[FigureRow]:
    f, inside = summary.figures, summary.inside_layers
    if f.floor_ratio is not None:
        ratio: Cell = Quantity(f.floor_ratio, "ratio")
        if f.floor_ratio >= FAR:
            ratio = f"above {FAR}"
        yield FigureRow("x rounding", ratio, "times the rounding of its storage")
    if inside.relative_norm_unrounded is not None:
        norm = Quantity(inside.relative_norm_unrounded, "share")
        yield FigureRow("inside layers", norm, "before storage, in the median matrix")
    if inside.kept is not None:
        of = "of the energy of the stored change, in layers"
        yield FigureRow("update", Quantity(inside.kept, "share"), of)


def _directions(summary: Summary) -> Iterator[FigureRow]:
    f = summary.figures
    if f.concentration is None:
        return
    of = f"of {text_of(f.short_side, 'count')} directions"
    null = f"{of}; {text_of(f.null_participation_ratio, 'ratio')} with random signs"
    yield FigureRow("PR", quantity(summary, "participation_ratio", "ratio"), null)
    stand = f"{of} {'stands' if f.spikes == 1 else 'stand'} out of noise"
    if f.spikes:
        stand += f", with {text_of(f.spike_energy, 'share')} of the energy"
    yield FigureRow("spikes", Quantity(f.spikes, "number"), stand)


def _where(summary: Summary) -> Iterator[FigureRow]:
    """How evenly the change lies over layers and tokens."""
    f = summary.figures
    if f.effective_layers is not None and f.depth_entropy is not None:
        of = f"of {text_of(f.depth_layers, 'count')}, effective number"
        yield FigureRow("layers", quantity(summary, "effective_layers", "ratio"), of)
    if f.embedding_rows_changed is not None:
        changed = text_of(f.embedding_rows_changed, "share")
        tokens = Quantity(f.embedding_row_participation_ratio, "ratio")
        yield FigureRow("tokens", tokens, f"effective number; {changed} of the rows changed")


def _spread(summary: Summary) -> str:
    """What the bounds in brackets are."""
    if summary.no_interval:
        return f"none over layers: {summary.no_interval}"
    level = 100 * (summary.interval_level or 0)
    over = f"over {summary.layers} layers ({level:.2g} %), in brackets"
    return f"{over}; it says nothing of other runs or seeds"


def _gates(summary: Summary) -> Cell:
    if stopped := [gate.name for gate in faults(summary)]:
        return Word(f"{', '.join(stopped)} failed, see below", "warning")
    if not summary.failed_gates:
        return f"all {len(summary.gates)} passed"
    unknown = [gate.name for gate in summary.unknown_gates]
    others = [gate.name for gate in summary.failed_gates if gate.name not in unknown]
    texts = []
    if passed := len(summary.gates) - len(summary.failed_gates):
        texts.append(f"{passed} passed")
    if others:
        texts.append(f"{and_list(others)} {'does' if len(others) == 1 else 'do'} not apply")
    if unknown:
        texts.append(f"{and_list(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown")
    return "; ".join(texts)
