"""A report as Markdown, for a model card or a pull request: finding, modules, other explanations,
how it was made.

Names and texts of a report are hostile: `cell` shows names as code, and `plain` lets no text be
markup, a link, a mention or a reference on GitHub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.claims.explanations import ANSWERS
from shadow.outputs.terminal.typeset import number, share
from shadow.summary.rows import CoherenceRow, OutsideRow
from shadow.text import several, visible

if TYPE_CHECKING:
    from shadow.reports.metadata import ReportMetadata
    from shadow.summary.summary import Summary

MODULES = 24  # rows of the table, those of most energy; the rest is counted
LINKING = "@#"  # begin a mention or a reference, which an entity would not keep from being one
ACTIVE = re.compile(r"[\\`*_{}\[\]<>|!~&$\"@#]")
FOLDER_OF_A_PART = re.compile(r"(?<==)/.*?(?= [a-z]+=|$)")  # `language=org/name vision=/a/tower`
APART = "<!-- -->"  # ends a text that GitHub would make a link of, and shows nothing


def cell(text: str) -> str:
    """Any text as a cell of a Markdown table that shows it as it is: one line, without markup,
    links or mentions.
    """
    shown = re.sub(r"[!-,./:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", visible(text))
    if not shown.strip():
        return ""
    return f"<code>{shown}</code>"


def plain(text: str) -> str:
    """Any text in a paragraph or cell: one line that reads as usual, without markup or links."""
    shown = ACTIVE.sub(_harmless, visible(text))
    shown = re.sub(
        r"^(\s*)([-+=]|\d+[.)])(?=\s)", lambda match: f"{match[1]}{APART}{match[2]}", shown
    )
    return re.sub(r"(?i)(www\.|:(?=//))", lambda match: f"{match[1]}{APART}", shown)


def _harmless(match: re.Match[str]) -> str:
    """A letter that may be markup, as one that is none."""
    letter = match[0]
    if letter in LINKING:
        return f"{letter}{APART}"
    return f"&#{ord(letter)};"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; figures are what every column but the first has."""
    return [
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def report_markdown(summary: Summary, provenance: ReportMetadata) -> str:
    """The finding of a pair, a row for each module, other explanations, how it was measured."""
    lines = [f"### {cell(summary.family)} {cell(summary.pair)}", "", *finding_lines(summary), ""]
    lines += [f"**Warning.** {plain(warning.text)}\n" for warning in summary.warnings]
    if summary.modules:
        lines += [*_modules(summary), ""]
    lines += explanation_lines(summary)
    lines += [
        f"Not shown: {plain(' '.join(summary.finding.not_shown))}",
        "",
        *_made(summary, provenance),
    ]
    return "\n".join(lines) + "\n"


def finding_lines(summary: Summary) -> list[str]:
    """The headline, strong, and the sentences as one paragraph."""
    return [f"**{plain(summary.finding.headline)}**", "", plain(summary.finding.text)]


def explanation_lines(summary: Summary) -> list[str]:
    """A table of the other explanations; nothing where there are none."""
    others = summary.finding.other_explanations
    if not others:
        return []
    rows = [
        f"| {plain(explanation.name)} | {ANSWERS[explanation.answer]} |"
        f" {plain(explanation.reason)} |"
        for explanation in others
    ]
    return ["| other explanation | answer | because |", "|---|---|---|", *rows, ""]


def _modules(summary: Summary) -> list[str]:
    several_components = len({row.component for row in summary.modules}) > 1
    ordered = sorted(summary.modules, key=lambda row: -(row.energy_share or 0.0))
    shown = {id(row) for row in ordered[:MODULES]}
    directions = _directions(summary)
    rows = []
    for row in summary.modules:
        if id(row) in shown:
            name = f"{row.component} {row.module}" if several_components else row.module
            rows.append(
                [
                    cell(name),
                    number(row.matrices),
                    share(row.relative_norm),
                    share(row.energy_share),
                    directions[row.component, row.module],
                ]
            )
    if len(summary.modules) > MODULES:
        rows.append([f"and {len(summary.modules) - MODULES} more", "", "", "", ""])
    return table(
        ("module", "matrices", "relative norm", "share of the change", "as coherent as"), rows
    )


def _directions(summary: Summary) -> dict[tuple[str, str], str]:
    """By component and module: as how many equally strong directions it is coherent, `> 256` where
    less than all of a matrix would be.
    """
    directions = {}
    rows: list[OutsideRow | CoherenceRow] = [*summary.outside_layers, *summary.coherence]
    for row in rows:
        text = number(row.equivalent_directions, 2)
        if row.equivalent_directions is None and row.above_short_side:
            text = f"> {number(row.short_side)}"
        if isinstance(row, CoherenceRow):
            known = row.coherent + row.above_short_side
            if 2 * known < row.matrices:  # a median over a few of the matrices is not the module's
                text = number(None)
        directions[row.component, row.module] = text
    return directions


def _public(repo: str) -> str:
    """A repository, or the name of a folder: where it lies is nothing for a model card."""
    if Path(repo).is_absolute():
        return Path(repo).name
    return FOLDER_OF_A_PART.sub(lambda match: Path(match[0]).name, repo)


def _made(summary: Summary, provenance: ReportMetadata) -> list[str]:
    """How it was measured, in small type."""
    settings = provenance["settings"]
    chosen = settings.get("chosen")
    filters = []
    if isinstance(chosen, Mapping):
        for name, values in chosen.items():
            if isinstance(values, list) and values:
                filters.append(f"only {name}: {several([str(value) for value in values])}")
    sides = []
    for side, checkpoint in (("base", summary.base), ("tuned", summary.tuned)):
        text = f"{side} {cell(_public(checkpoint['repo']))}"
        if checkpoint["commit"]:
            text += f" at {cell(checkpoint['commit'])}"
        sides.append(text)
    how = [f"shadow {plain(str(provenance['version']))}", f"schema {summary.schema}"]
    how += [f"precision {plain(str(settings['method']['precision']))}", *map(plain, filters)]
    coherent = "As coherent as: that many equally strong directions, no count of directions; "
    coherent += "empty if most of the matrices have no such number."
    return [f"<sub>{'; '.join(sides)}. Measured by {', '.join(how)}. {coherent}</sub>"]
