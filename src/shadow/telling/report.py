"""A report as a document: finding, figures, picture, modules, and with `--full` everything.

`--full` and the page have every figure with its interval, the short screen the answers that matter:
if a gate failed, if something was found that no training leaves, or if not everything was compared.
An ordinary pair has none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from shadow.checks.explanations import RECOGNISED, is_copy
from shadow.checks.summary import Summary
from shadow.quantities import DASH, Kind, Quantity, bounds_text, portion_of, text_of
from shadow.reasons import STRICT, meaning
from shadow.reports.provenance import ReportMetadata, chosen_in
from shadow.summary.components import by_component
from shadow.summary.record import (
    TIERS,
    Coherence,
    ComponentRow,
    Gate,
    ModuleRow,
    OutsideLayers,
)
from shadow.telling.correspondence import partners_table
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Headline,
    Level,
    MapBlock,
    Note,
    Origin,
    Paragraph,
    Section,
    TableBlock,
    When,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.parts import (
    identical_text,
    is_outside,
    of_what,
    unchanged_parts,
    without_base,
)
from shadow.telling.sentences import DAMAGE
from shadow.telling.skipped import skipped_table
from shadow.telling.wording import Recorded
from shadow.text import and_list, counted, several

FOLDER_OF_A_PART = re.compile(r"(?<==)/.*?(?= [a-z]+=|$)")  # `language=org/name vision=/a/tower`
WEIGHTS = ("weights", "index")  # kinds of files whose tensors are compared
FILES = (named("file", "path"), worded("state"), worded("what", lambda row: row.detail or ""))
EXPLANATIONS = (
    named("what", "name"),
    worded("answer", lambda row: row.answer.replace("_", " ")),
    worded("because", "reason"),
)
DIGITS = 16  # of a digest of a side
MOST_OUTSIDE = 3  # modules outside the layers whose norms are named
FAILED = Word("failed", "warning")
FOUND = Word("found")
NOTED = Word("note", "quiet")
LEVELS: Mapping[str, Level] = {"passed": "passed", "failed": "warning"}  # of gates
# how the sentences are noticed that a reader has to know before any figure, by their code
NOTICED = {
    **dict.fromkeys(DAMAGE, FAILED),
    **dict.fromkeys(("only_vectors", *RECOGNISED, "low_rank", "few_values"), FOUND),
    **dict.fromkeys(("part_asked_for", "left_out", "vectors", "files", "level"), NOTED),
}


def report_document(
    summary: Summary,
    provenance: ReportMetadata,
    folder: Path | str | None = None,
    *,
    is_public: bool = False,
) -> Document:
    """Show the report of one pair.

    folder: where the report lies. None: what is reported is read elsewhere, as in a model card: it
    names no folder of this machine, and has sentences, modules and other explanations whatever
    is asked for. is_public: it names no other folder either, as on a page.
    """
    is_public = is_public or folder is None
    return Document([*_blocks(summary, provenance, folder, is_public=is_public)])


def beside_another(document: Document) -> Document:
    """The short screen of one of several pairs, with its figures in a line."""
    blocks = []
    for block in document.blocks:
        if block.about in ("sides", "claims", "more"):
            continue
        if isinstance(block, Figures) and block.about == "finding":
            figures = ", ".join(f"{row.name} {row.value or DASH}" for row in block.rows)
            block = Paragraph(figures)
        blocks.append(replace(block, close=True))
    return Document(blocks)


def _blocks(
    summary: Summary, provenance: ReportMetadata, folder: Path | str | None, *, is_public: bool
) -> Iterator[Block]:
    when: When = "always" if folder is None else "full"
    yield Section(summary.family, summary.pair)
    yield _sides(summary, is_public=is_public)
    yield Headline(summary.finding.headline, about="finding")
    for place, sentence in enumerate(summary.finding.sentences):
        yield Paragraph(
            sentence.text, code=sentence.code, close=place > 0, when=when, about="finding"
        )
    yield Figures(_all_figures(summary), when="full", about="finding")
    if rows := _figures(summary):
        yield Figures(rows, close=True, when="brief", about="finding")
    if folder is not None and (answers := _answers(summary)):  # the sentences have them
        yield Figures(answers, close=True, when="brief", about="answers")
    for warning in summary.warnings:
        yield Note(warning, "warning", about="finding")
    yield _gates(summary)
    components = by_component(summary.grid)
    for component, cells in components.items():
        has_layers = len({layer for row in cells for layer in row.layers}) > 1
        if has_layers and any(norm for row in cells for norm in row.relative_norm):
            yield MapBlock(cells, component if len(components) > 1 else "", about="picture")
    if len(summary.components) > 1:
        yield component_table(summary.components)
    if summary.modules:
        yield module_table(summary, when)
    if partners := partners_table(summary):
        yield partners
    if summary.skipped:
        yield skipped_table(summary.skipped, when="full")
    listed = [] if summary.files is None else summary.files.rows
    if files := [row for row in listed if row.kind not in WEIGHTS]:
        yield table_of(FILES, files, "Files beside the weights", when="full", about="files")
    if others := summary.finding.other_explanations:
        yield table_of(EXPLANATIONS, others, "Other explanations", when=when, about="claims")
        names = [claim.name for claim in others if claim.answer != "no"]
        if folder is not None and names:
            count = counted(len(names), "explanation", "explanations")
            text = f"{count} not excluded: {'; '.join(names)}"
            yield Paragraph(text, quiet=True, when="brief", about="claims")
    yield Origin(_origin(summary, provenance, folder), when=when, about="provenance")
    if folder is not None:
        yield Origin(where_more(folder), close=True, when="brief", about="more")


def _sides(summary: Summary, *, is_public: bool) -> Block:
    rows = []
    for side, checkpoint in (("base", summary.base), ("tuned", summary.tuned)):
        name = checkpoint["repo"]
        commit = checkpoint["commit"]
        if is_public:  # where a folder lies is nothing for a model card
            inside = FOLDER_OF_A_PART.sub(lambda match: Path(match[0]).name, name)
            name = Path(name).name if Path(name).is_absolute() else inside
        if commit:
            name += f" @ {commit if is_public else commit[:12]}"
        content = checkpoint.get("content")
        digest = f"sha256 of its tensors {content[:DIGITS]}" if is_public and content else ""
        rows.append(FigureRow(side, name, digest))
    return Figures(rows, close=True, about="sides")


# -------------------------------------------------------------------------- figures and answers


def _figures(summary: Summary, *, full: bool = False) -> list[FigureRow]:
    """Say how far the weights moved, how concentrated the change is, what storage left
    unchanged.

    full: with intervals, where a table has the norms outside the layers.
    """
    figures = summary.figures
    if not figures.matrices:
        return []
    of = of_what(summary)
    outside = [  # what the picture of the layers does not show
        f"{row.module} {text_of(row.relative_norm, 'share')}"
        for row in summary.modules
        if row.relative_norm is not None
        and row.component in (summary.main_component, "projector")
        and is_outside(row.module)
    ]
    if outside and not full:
        of += f" ({', '.join(outside[:MOST_OUTSIDE])})"
    scale = "0 is noise, 1 is a single direction"
    if figures.concentration is None:
        scale = "not measured"
        if summary.has_spectra:
            scale = "unknown: random signs, too, would leave fewer than 2 directions"
    norm = quantity(summary, "relative_norm_overall", "share", full=full)
    concentration = quantity(summary, "concentration", "fixed", full=full)
    rows = [FigureRow("relative norm", norm, of), FigureRow("concentration", concentration, scale)]
    if figures.rank_ceiling is None:  # an adapter stores no entries of the matrix
        same = Quantity(figures.zero_share, "fraction")
        rows.append(FigureRow("unchanged", same, "of the entries of the median matrix"))
    return rows


def quantity(summary: Summary, name: str, kind: Kind, *, full: bool = True) -> Quantity:
    """A figure, with its interval if everything is shown."""
    low, high = (full and summary.intervals.get(name)) or (None, None)
    return Quantity(getattr(summary.figures, name), kind, low, high)


def _all_figures(summary: Summary) -> list[FigureRow]:
    """The figures of what changed, how much and how concentrated, each with its interval."""
    figures = summary.figures
    changed = figures.parameters_measured - figures.parameters_rounded
    of = f"{portion_of(changed, figures.parameters)} of the parameters"
    if figures.matrices_rounded:
        of += f"; {portion_of(figures.parameters_rounded, figures.parameters)} are only rounded"
    if summary.counts.identical:
        of += f"; {portion_of(figures.parameters_identical, figures.parameters)} are identical"
    rows = [FigureRow("changed", counted(figures.matrices, "matrix", "matrices"), of)]
    if figures.matrices:
        norm, *others = _figures(summary, full=True)
        rows.append(norm)
        if (ratio := figures.floor_ratio) is not None:
            of = "times the rounding of its storage"
            rows.append(FigureRow("x rounding", Quantity(ratio, "ratio"), of))
        rows += others
        if figures.concentration is not None:
            random = text_of(figures.null_participation_ratio, "ratio")
            null = f"participation ratio of energies; {random} with random signs"
            rows.append(FigureRow("PR", quantity(summary, "participation_ratio", "ratio"), null))
            stand = f"of {text_of(figures.short_side, 'count')} singular values above noise"
            rows.append(FigureRow("spikes", Quantity(figures.spikes, "number"), stand))
        over = f"over {summary.layers} layers ({100 * (summary.interval_level or 0):.2g} %)"
        spread = f"{over}, in brackets; it says nothing of other runs or seeds"
        if summary.no_interval:
            spread = f"none over layers: {summary.no_interval}"
        rows.append(FigureRow("spread", "", spread))
    if not summary.failed_gates:
        rows.append(FigureRow("gates", f"all {len(summary.gates)} passed"))
    return rows


def _answers(summary: Summary) -> list[FigureRow]:
    """Make a row for each failed gate, finding and limit: its name, its kind, and its text."""
    rows = [FigureRow(gate.name, FAILED, gate.reason) for gate in summary.gates_that("failed")]
    codes = {sentence.code for sentence in summary.finding.sentences}
    for sentence in summary.finding.sentences:
        code = sentence.code
        if code == "rounding" and is_copy(summary):
            code = "copy"
        elif code == "identical" and "only_vectors" not in codes:  # the headline has half of it
            which = identical_text(Recorded(summary))
            rows.append(FigureRow(code, FOUND, f"{which}." if which else sentence.text))
        if code in NOTICED:
            name = RECOGNISED[code].title if code in RECOGNISED else code.replace("_", " ")
            rows.append(FigureRow(name, NOTICED[code], sentence.text))
    frozen = unchanged_parts(summary)
    if frozen and summary.figures.matrices:
        rows.append(FigureRow("frozen", FOUND, and_list(frozen)))
    rows += [FigureRow("no base", NOTED, text) for text in without_base(summary)]
    return [*rows, *_skipped(summary, codes)]


def _skipped(summary: Summary, codes: Set[str]) -> list[FigureRow]:
    """Make a row for each strict reason for skipping of which no sentence says all that there
    is.
    """
    explained = {row.reason for row in summary.uncompared if "left_out" in codes}
    explained = explained - {"nonfinite"} | codes & {"nonfinite"}
    rows = []
    for row in summary.skipped:
        if row.reason in STRICT - explained:
            tensors = counted(row.tensors, "tensor", "tensors")
            example = f", such as {row.examples[0]}" if row.examples else ""
            text = f"{tensors}: {meaning(row.reason)}{example}"
            rows.append(FigureRow(row.reason, Word("skipped", "warning"), text))
    return rows


def standing(summary: Summary) -> str | None:
    """The words on a pair in a table of pairs: gates that failed, what was recognised; None if
    there is nothing.
    """
    answers = _answers(summary)
    if failed := dict.fromkeys(row.name for row in answers if row.value == FAILED):
        return f"failed: {', '.join(failed)}"
    recognised = dict.fromkeys(row.name for row in answers if row.value == FOUND)
    if recognised and any(sentence.code == "files" for sentence in summary.finding.sentences):
        recognised["files"] = None
    return ", ".join(recognised) or None


# --------------------------------------------------------------------------------------- tables


def _gates(summary: Summary) -> TableBlock:
    """Every gate with its figure; on a screen only if one failed."""

    def result(gate: Gate) -> Word:
        state = summary.state_of(gate)
        return Word(state, LEVELS.get(state, "quiet"))

    def needs(gate: Gate) -> str:
        bound = "at most" if gate.name == "formats" else "at least"
        return f"{bound} {text_of(gate.threshold, 'number')}"

    fields = [
        named("gate", "name"),
        worded("result", result),
        number("figure", "figure", "number"),
        number("needs", needs),
        worded("reason"),
    ]
    title = "Gates: what must hold for the figures to be those of a training"
    when: When = "full" if summary.failed_gates else "page"
    return table_of(fields, summary.gates, title, when=when, about="gates")


def _spread(row: ComponentRow | ModuleRow) -> str | None:
    bounds = row.intervals.get("concentration")
    return bounds_text(bounds, "fixed") if bounds else None


COMPONENTS = (
    named("component"),
    number("changed", "matrices", "count"),
    number("identical", "identical", "count"),
    number("rel. norm", "relative_norm", "share"),
    number("energy", "energy_share", "share"),
    number("conc.", "concentration", "fixed"),
    number("spread", _spread, rank=1),
)


def component_table(components: Sequence[ComponentRow]) -> TableBlock:
    """Make a row for each component."""
    return table_of(COMPONENTS, components, "By component", when="full", about="components")


def module_table(summary: Summary, when: When = "always") -> TableBlock:
    """Make a row for each module that changed; counts of directions with their maximum."""
    inside = {(row.component, row.module): row for row in summary.coherence}
    outside = {(row.component, row.module): row for row in summary.outside_layers}

    def coherence(row: ModuleRow) -> Coherence | OutsideLayers | None:
        place = (row.component, row.module)
        return outside.get(place) or inside.get(place)

    def spikes(row: ModuleRow) -> str:
        own = coherence(row)
        side = None if own is None else own.short_side
        return f"{text_of(row.spikes, 'number')} of {text_of(side, 'count')}"

    def spread_over(row: ModuleRow) -> str | None:
        """The number of equally strong directions; more than their maximum if flatter."""
        own = coherence(row)
        if own is None:
            return None
        if isinstance(own, Coherence) and 2 * (own.coherent + own.above_short_side) < own.matrices:
            return None  # a median over a few of the matrices is not the module's
        side = text_of(own.short_side, "count")
        if own.equivalent_directions is None:
            return f"over {side}" if own.above_short_side else None
        return f"{text_of(own.equivalent_directions, 'about')} of {side}"

    fields = [
        *([named("component")] if len({row.component for row in summary.modules}) > 1 else []),
        named("module"),
        number("n", "matrices", "count"),
        number("rel. norm", "relative_norm", "share"),
        number("conc.", "concentration", "fixed"),
        number("spread", _spread, rank=4),
        number("PR", "participation_ratio", "ratio", rank=1),
        number("null PR", "null_participation_ratio", "ratio", rank=2),
        number("spikes", spikes, rank=3),
        number("energy", "energy_share", "share", rank=5),
        number("spread over", spread_over, rank=6),
        number("shift", "effective_rank_shift", "thousandths", rank=7),
        number("stable rank", "stable_rank", "ratio", rank=8),
    ]
    title = "By module, medians over matrices"
    return table_of(fields, summary.modules, title, when=when, about="modules")


def where_more(folder: Path | str) -> list[tuple[str, str]]:
    """The commands that show more, a line each, as people paste them."""
    name = shlex.quote(str(folder))
    return [("more", f"shadow show {name} --full"), ("page", f"shadow report {name}")]


def _origin(
    summary: Summary, provenance: ReportMetadata, folder: Path | str | None
) -> list[tuple[str, str]]:
    """Name how it was measured, and what is not shown."""
    settings = provenance["settings"]
    how = [f"shadow {provenance['version']}, schema {summary.schema}"]
    how.append(f"level {settings['method']['level']}")
    how += [TIERS[summary.tier][0]] if summary.tier != "full" else []
    for name, values in chosen_in(settings).items():
        if isinstance(values, tuple):
            how.append(f"only {name}: {several([str(value) for value in values])}")
    if (seconds := provenance.get("seconds")) is not None:
        how.append(text_of(seconds, "seconds"))
    rows = {"report": "" if folder is None else f"{folder}/", "how": ", ".join(how)}
    if unverified := summary.figures.unverified:
        rows["unverified"] = f"{unverified} matrices came as byte ranges, which no checksum covers"
    rows["not shown"] = " ".join(summary.finding.not_shown)
    return [(name, text) for name, text in rows.items() if text]
