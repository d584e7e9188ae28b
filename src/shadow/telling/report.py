"""A report as a document: finding, figures, picture, modules, and with `--full` all there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.checks.explanations import Explanation
from shadow.checks.pair_gates import Gate
from shadow.checks.summary import Summary
from shadow.quantities import DASH, bounds_text, text_of
from shadow.reasons import meaning
from shadow.reports.provenance import ReportMetadata
from shadow.summary.picture import by_component, picture
from shadow.summary.record import TIERS, Row
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Headline,
    MapBlock,
    Note,
    Origin,
    Paragraph,
    Section,
    TableBlock,
    TableHead,
    When,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.screen import (
    FAILED,
    all_figures,
    answer_rows,
    faults,
    figure_rows,
)
from shadow.text import several

FOLDER_OF_A_PART = re.compile(r"(?<==)/.*?(?= [a-z]+=|$)")  # `language=org/name vision=/a/tower`


def report_document(
    summary: Summary, provenance: ReportMetadata, folder: Path | str | None = None
) -> Document:
    """Return the report of one pair as a document.

    folder: where the report lies. None: what is reported is read elsewhere, as in a model card: it
    names no folder of this machine, and has sentences, modules and other explanations whatever
    is asked for.
    """
    return Document([*_blocks(summary, provenance, folder)])


def beside_another(document: Document) -> Document:
    """The short screen of a pair that stands beside another one: its figures in a line."""
    blocks = []
    for block in document.blocks:
        if block.about in ("sides", "more"):
            continue
        if isinstance(block, Figures) and block.about == "finding":
            figures = ", ".join(f"{row.name} {row.value or DASH}" for row in block.rows)
            block = Paragraph(figures)
        blocks.append(replace(block, close=True))
    return Document(blocks)


def _blocks(
    summary: Summary, provenance: ReportMetadata, folder: Path | str | None
) -> Iterator[Block]:
    when: When = "always" if folder is None else "full"
    yield Section(summary.family, summary.pair)
    yield _sides(summary, is_public=folder is None)
    yield Headline(summary.finding.headline, about="finding")
    for place, sentence in enumerate(summary.finding.sentences):
        said = {"code": sentence.code, "close": place > 0, "when": when, "about": "finding"}
        yield Paragraph(sentence.text, **said)
    yield Figures(all_figures(summary), when="full", about="finding")
    if rows := figure_rows(summary):
        yield Figures(rows, close=True, when="brief", about="finding")
    if folder is not None and (answers := answer_rows(summary)):  # the sentences have them
        yield Figures(answers, close=True, when="brief", about="answers")
    for warning in summary.warnings:
        yield Note(warning, "warning", about="finding")
    yield _gates(summary)
    components = by_component(summary.grid)
    for component, cells in components.items():
        if picture(cells, 1) is not None:
            yield MapBlock(cells, component if len(components) > 1 else "", about="picture")
    if len(summary.components) > 1:
        yield component_table(summary.components)
    if summary.modules:
        yield module_table(summary, when)
    if summary.skipped:
        yield skipped_table(summary.skipped, when="full")
    listed = [] if summary.files is None else summary.files.rows
    if files := [row for row in listed if row.kind not in WEIGHTS]:
        yield table_of(FILES, files, "Files beside the weights", when="full", about="files")
    if summary.finding.other_explanations:
        yield _explanations(summary.finding.other_explanations, when)
    yield Origin(_origin(summary, provenance, folder), when=when, about="provenance")
    if folder is not None:
        yield Origin([("more", where_more(folder))], close=True, when="brief", about="more")


def _gates(summary: Summary) -> TableBlock:
    """Every gate with its figure; on a screen only where one failed."""
    wrong, unknown = faults(summary), summary.unknown_gates

    def result(gate: Gate) -> Word:
        if gate.passed:
            return Word("passed", "passed")
        if gate in unknown:
            return Word("unknown", "quiet")
        return FAILED if gate in wrong else Word("does not apply", "quiet")

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
    return table_of(
        fields, summary.gates, title, when="full" if summary.failed_gates else "page", about="gates"
    )


def _explanations(explanations: Iterable[Explanation], when: When) -> TableBlock:
    """Return what other change may have left these figures, and why it did not, or may."""
    answers = []
    for one in explanations:
        answer = Word(one.answer.replace("_", " "), "warning" if one.answer == "fits" else "")
        answers.append((one.name, answer, one.reason))
    columns = [TableHead("what", "name"), TableHead("answer", "text"), TableHead("because", "text")]
    return TableBlock(columns, answers, "Other explanations", when=when, about="claims")


def _sides(summary: Summary, *, is_public: bool) -> Block:
    rows = []
    for side, which in (("base", summary.base), ("tuned", summary.tuned)):
        commit = which["commit"] or ""
        named = _public(which["repo"]) if is_public else which["repo"]
        if commit:
            named += f" @ {commit if is_public else commit[:12]}"
        rows.append(FigureRow(side, named))
    return Figures(rows, close=True, about="sides")


def _public(repo: str) -> str:
    """A repository, or the name of a folder: where it lies is nothing for a model card."""
    if Path(repo).is_absolute():
        return Path(repo).name
    return FOLDER_OF_A_PART.sub(lambda match: Path(match[0]).name, repo)


def _spread(row: Row) -> str | None:
    bounds = row.intervals.get("concentration")
    return bounds_text(bounds, "fixed") if bounds else None


COMPONENT_FIGURES = (
    named("component"),
    number("changed", "matrices", "count"),
    number("identical", "identical", "count"),
    number("rel. norm", "relative_norm", "share"),
    number("energy", "energy_share", "share"),
    number("conc.", "concentration", "fixed"),
    number("spread", _spread, rank=1),
)


def component_table(components: Sequence[Row]) -> TableBlock:
    """A row for each component."""
    title = "By component"
    return table_of(COMPONENT_FIGURES, components, title, when="full", about="components")


def module_table(summary: Summary, when: When = "always") -> TableBlock:
    """A row for each module that changed; counts of directions with how many there are."""
    about = {(row.component, row.module): row for row in summary.coherence}
    about |= {(row.component, row.module): row for row in summary.outside_layers}

    def spikes(row: Row) -> str:
        side = getattr(about.get((row.component, row.module)), "short_side", None)
        return f"{text_of(row.spikes, 'number')} of {text_of(side, 'count')}"

    def spread_over(row: Row) -> str | None:
        """Over how many equally strong directions; of more than all of them if it is flatter."""
        own = about.get((row.component, row.module))
        if own is None or (
            "coherent" in own and 2 * own.coherent + 2 * own.above_short_side < own.matrices
        ):
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


WEIGHTS = ("weights", "index")  # kinds of files whose tensors are compared
FILES = (named("file", "path"), worded("state"), worded("what", lambda row: row.detail or ""))


def skipped_table(rows: Iterable[Row], when: When = "always") -> TableBlock:
    """A row for each reason: how many tensors of each side, and what the reason means."""

    def what(row: Row) -> Word:
        text = meaning(row.reason)
        if row.detail and row.reason != "filtered":
            text += f" ({row.detail})"
        return Word(f"{text},", aside=f"e.g. {', '.join(row.examples[:1])}")

    fields = [
        named("reason"),
        number("n", lambda row: f"{row.base} + {row.tuned}"),
        worded("what", what),
    ]
    title = "Not measured, tensors of base + tuned"
    return table_of(fields, rows, title, when=when, about="skipped")


def where_more(folder: Path | str) -> str:
    name = shlex.quote(str(folder))
    return f"shadow show {name} --full; shadow report {name}"


def _origin(
    summary: Summary, provenance: ReportMetadata, folder: Path | str | None
) -> list[tuple[str, str]]:
    """Return how it was measured, and what is not shown."""
    settings = provenance["settings"]
    how = [f"shadow {provenance['version']}, schema {summary.schema}"]
    how.append(f"level {settings['method']['level']}")
    how += [TIERS[summary.tier][0]] if summary.tier != "full" else []
    for name, values in (settings.get("chosen") or {}).items():
        if isinstance(values, list) and values:
            how.append(f"only {name}: {several([str(value) for value in values])}")
    if (seconds := provenance.get("seconds")) is not None:
        how.append(text_of(seconds, "seconds"))
    rows = {"report": "" if folder is None else f"{folder}/", "how": ", ".join(how)}
    if unverified := summary.figures.unverified:
        rows["unverified"] = f"{unverified} matrices came as byte ranges, which no checksum covers"
    rows["not shown"] = " ".join(summary.finding.not_shown)
    return [(name, text) for name, text in rows.items() if text]
