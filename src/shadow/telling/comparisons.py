"""Several reports as documents: a comparison, scores, a lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shadow.quantities import DASH, Kind, Quantity, bounds_text, share, text_of
from shadow.reports.columns import HEADS
from shadow.telling.document import (
    Block,
    Document,
    Field,
    FigureRow,
    Figures,
    Headline,
    Note,
    Origin,
    Section,
    TableBlock,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.wording import capital
from shadow.templates import Reason, fill

if TYPE_CHECKING:
    from shadow.comparing.comparison import Comparison
    from shadow.comparing.contrast import Contrast
    from shadow.comparing.differences import Difference
    from shadow.comparing.lineage import Lineage, Step
    from shadow.comparing.scores import Correlation, Gain, ScoredSet

OVER = (
    "{matrices:count matrix|matrices} of {relation}[, known by its {verified}]; the"
    " {in_layers:count} in {layers:count layer|layers} decide[; left out are {alone_in_first:count}"
    " of {first} and {alone_in_second:count} of {second}]"
)
KINDS: Mapping[str, Kind] = {"difference": "difference", "log ratio": "log_ratio"}
MEDIANS = "the median of differences matrix by matrix, which is not that of the medians beside it"
MOST_SCORES = 20  # rows of a table of scores; JSON has all
GROUPS = {"attention": "attn", "embedding": "embed"}
LEGENDS = {  # of heads that mean something else in other tables
    "kept": "share of the stored delta's energy that comes from the update; the rest is rounding",
    "dirs.": "as coherent as so many equally strong directions, in the median matrix",
}


def comparison_document(comparison: Comparison) -> Document:
    """Compare every report with the first."""
    return Document(list(_comparison(comparison)))


def _comparison(comparison: Comparison) -> Iterator[Block]:
    first = comparison.reports[0].label
    contrasts = [contrast for contrast in comparison.contrasts if contrast.first == first]
    yield Section("compare")
    rows = [
        FigureRow(report.label, report.pair, f"of {report.family}  {report.folder}/")
        for report in comparison.reports
    ]
    yield Figures(rows, close=True)
    if comparison.not_contrasted:
        yield Headline(f"{capital(comparison.not_contrasted)}.", "warning")
    if comparison.scores is not None:
        yield from _scores(comparison.scores)
    for contrast in contrasts:
        if len(contrasts) > 1:
            yield Section(f"{first} against {contrast.second}")
        yield from _contrast(contrast)
    yield Origin([("not shown", "; ".join(comparison.claims["not_shown"]))], close=True)


def contrast_document(comparison: Comparison) -> Document:
    """Say how the first two reports differ, in a sentence that names them by their pairs."""
    from shadow.comparing.codes import say

    contrast = comparison.contrasts[0]
    first, second, *_ = comparison.reports
    names = {"first": first.pair, "second": second.pair}
    text = say(Reason(contrast.headline.code, {**contrast.headline.figures, **names}))
    return Document([Headline(f"{text}.", close=True)] if not contrast.voids else [])


def _contrast(contrast: Contrast) -> Iterator[Block]:
    """The verdict and how sure it is, the figures behind it, and doubts."""
    from shadow.comparing.codes import LIMITS, UNSURE, say

    headline = capital(contrast.sentence)
    if contrast.rate is not None:
        headline += f"; {contrast.rate.text}"
    yield Headline(f"{headline}.", "warning" if contrast.verdict in UNSURE else "")
    yield _figure_table(contrast)
    matched = contrast.matched
    has_alone = matched.alone_in_first or matched.alone_in_second
    figures = {
        **vars(matched),
        "relation": contrast.relation,
        "verified": contrast.verified,
        "first": contrast.first if has_alone else None,
        "second": contrast.second,
    }
    yield Origin([("over", fill(OVER, figures))])
    for doubt in contrast.doubts:
        yield Note(say(doubt), "note" if doubt.code in LIMITS else "warning", close=True)


def _figure_table(contrast: Contrast) -> TableBlock:
    """A row for each figure: both medians, the difference of matrices, and its meaning."""
    from shadow.comparing.differences import FIGURES

    heads = {figure.name: figure.head for figure in FIGURES}
    levels = [figure.level for figure in contrast.figures if figure.level is not None]
    spread = f"; in brackets {share(min(levels))} over layers" if levels else ""

    def median(value: float | None, figure: Difference) -> Quantity:
        return Quantity(value, "share" if figure.figure == "relative_norm" else "number")

    def spread_of(figure: Difference) -> str:
        kind = KINDS[figure.scale]
        size = text_of(figure.difference, kind)
        if figure.low is None or figure.high is None:
            return size
        return f"{size} ({bounds_text((figure.low, figure.high), kind)})"

    legend = f"{MEDIANS}{spread}"
    fields = [
        named("figure", lambda figure: heads[figure.figure]),
        number(contrast.first, lambda figure: median(figure.first, figure)),
        number(contrast.second, lambda figure: median(figure.second, figure)),
        number("paired difference", spread_of, legend=legend),
        worded("verdict", lambda figure: figure.verdict or "not in the verdict"),
    ]
    return table_of(fields, contrast.figures, close=True)


# ------------------------------------------------------------------------------------------ scores


def _scores(scored: ScoredSet) -> Iterator[Block]:
    """A row for each report and benchmark, then one for each correlation."""
    from shadow.comparing.codes import LeftOut

    gains = [(report, gain) for report in scored.reports for gain in report.gains]
    fields = [
        named("report", lambda row: f"{row[0].label} {row[0].pair}"),
        named("benchmark", lambda row: _benchmark(row[1])),
        number("conc.", lambda row: row[0].concentration, "fixed"),
        number("base", lambda row: row[1].base, "score"),
        number("tuned", lambda row: row[1].tuned, "score"),
        number("gain", lambda row: row[1].gain, "gain"),
    ]
    yield table_of(fields, gains[:MOST_SCORES], "Scores, measured by others")
    for report in scored.reports:
        why = report.left_out
        if why is None and not report.gains:
            why = LeftOut.NO_GAIN.text
        if why is not None:
            yield Note(f"{report.label} is left out of the correlations: {why}")
    correlations = [
        named("gain in", _benchmark),
        number("n", "n", "count"),
        number("rho", "rho", "correlation"),
    ]
    title = "Rank correlation of gain and concentration over these reports"
    yield table_of(correlations, scored.correlations[:MOST_SCORES], title)


def _benchmark(row: Gain | Correlation) -> str:
    return f"{row.benchmark} ({row.metric})" if row.metric else row.benchmark


# ----------------------------------------------------------------------------------------- lineage


def lineage_document(lineage: Lineage) -> Document:
    """A table for each chain of stages, then the notes."""
    blocks: list[Block] = [Section("lineage")]
    for chain in lineage.chains:
        steps = [*chain.steps, *chain.whole]
        blocks.append(Headline(" → ".join(chain.stages)))
        blocks.append(table_of(STEPS, steps, close=True))
        blocks += [Note(fill(step.doubt.text, vars(step))) for step in steps if step.doubt]
    blocks += map(Note, lineage.notes)
    return Document(blocks)


def _size(step: Step) -> str:
    """Format the size of a step, with a star if it is that of the rounded update."""
    if not step.matrices and "changed" in step.failed_gates:
        return text_of(0.0, "share")
    size = text_of(step.size, "share")
    return f"{size}*" if step.relative_norm_unrounded is None else size


def _most_in(step: Step) -> str:
    """Name the group of modules with the most energy: `MLP 61 %`."""
    if not step.groups:
        return DASH
    group = step.groups[0]
    return f"{GROUPS.get(group.name, group.name[:12])} {text_of(group.energy_share, 'share')}"


def _directions(step: Step) -> str | None:
    """Format the number of directions: `24 of 64`."""
    if step.equivalent_directions is None or step.short_side is None:
        return None
    return f"{text_of(step.equivalent_directions, 'about')} of {text_of(step.short_side, 'count')}"


def _with_legend(field: Field) -> Field:
    return replace(field, legend=LEGENDS.get(field.head) or HEADS[field.head].text)


STEPS = (
    named("step", lambda step: f"{step.start}..{step.end}"),
    _with_legend(number("size", _size)),
    _with_legend(number("ratio", "ratio", "ratio")),
    _with_legend(number("kept", "kept", "fixed")),
    _with_legend(number("most in", _most_in)),
    _with_legend(number("dirs.", _directions)),
)
