"""Reports -> one self-contained web page: no network, light and dark, printable.

The charts are Plotly's: plotly.min.js comes from its Python package and is written into the page
whole. What a reader needs without scripts (headline, claims, tables) is plain HTML. Text from files
is escaped by who reads it: Jinja for HTML, `script_json` for data inside a script element, and our
scripts for Plotly, which takes some tags and entities in text for markup. A policy in the page lets
nothing be fetched, whatever is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from shadow import __version__
from shadow.audits.journal import JOURNAL
from shadow.audits.list_index import read_index, report_folder
from shadow.claims.explanations import ANSWERS
from shadow.claims.gates import GATES
from shadow.claims.label import MARGIN
from shadow.claims.reference import bases_of, runs
from shadow.claims.summary import Summary
from shadow.comparing.gains import MEASURED_BY_OTHERS
from shadow.comparing.lineage import following, lineage
from shadow.errors import ShadowError
from shadow.files import PARTIAL, read_start, write_beside, writing
from shadow.outputs.page.cards import MOST_CARDS, small_pictures
from shadow.outputs.page.cells import metric_texts
from shadow.outputs.page.html import environment, file_text, policy, script_json, scripts
from shadow.outputs.page.pair import PairSection, read_pair
from shadow.quantities import portion_of, text_of
from shadow.reasons import REASONS
from shadow.reports.columns import FIGURES, MATRICES, NOTATION
from shadow.summary.depth import LAYERS
from shadow.telling.reading import SummarisedReport
from shadow.telling.report import label_line
from shadow.telling.size import of_what, parameter_ratio

GENERATOR = '<meta name="generator" content="shadow '  # how a page of ours is known
TOP = 2000  # bytes within which it stands


@dataclass(frozen=True)
class Missing:
    """A pair without the report that was asked for."""

    where: str
    """Its folder below the one that was asked for."""

    state: str
    """failed, kept, pending, unfinished or unreadable."""

    why: str = ""
    """Why, where that is known."""

    hint: str = ""
    """What to do, where that is known."""


@dataclass(frozen=True)
class Written:
    """What became of a page."""

    pairs: int
    """How many pairs it shows, 0 or more."""

    size: int
    """Its size in bytes."""

    unreadable: list[tuple[str, ShadowError]]
    """(folder, fault) of the reports that could not be read."""


def write_page(
    run: Path,
    folders: Sequence[Path],
    output: Path,
    show: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Written:
    """Write the page of the finished reports in folders, which lie at or below run.

    Without any the page says so. A report that cannot be read is named on the page with its fault;
    if it is the only one that was asked for, its ShadowError is raised instead. show gets how many
    reports are read, of how many.
    """
    _refuse_foreign(output)
    reports = [SummarisedReport(folder) for folder in folders]
    in_chains = _in_chains(reports)
    sections: list[PairSection] = []
    unreadable: list[tuple[str, ShadowError]] = []
    for done, report in enumerate(_each_once(reports)):
        where = _below(report.folder, run)
        show(done, len(folders), where)
        try:
            with_step = report.folder in in_chains
            sections.append(
                read_pair(
                    report, where, number=len(sections), pairs=len(folders), with_step=with_step
                )
            )
        except ShadowError as error:
            if list(folders) == [run]:
                raise
            unreadable.append((where, error))
    missing = [
        Missing(where=where, state="unreadable", why=error.message, hint=error.hint or "")
        for where, error in unreadable
    ]
    content = page_bytes(_chained(sections), _title(run), [*missing, *_missing(run, folders)])
    with writing(output.parent):
        write_beside(output, content)
    return Written(len(sections), len(content), unreadable)


def _in_chains(reports: Sequence[SummarisedReport]) -> set[Path]:
    """The folders of the reports that follow one another, by their metadata: no table is read."""
    known = []
    for report in reports:
        try:
            metadata = report.provenance.told
        except ShadowError:  # told when the report itself is read
            continue
        known.append((report.folder, (metadata["base"], metadata["tuned"])))
    return {known[number][0] for number in following([sides for _, sides in known])}


def _each_once(reports: list[SummarisedReport]) -> Iterator[SummarisedReport]:
    """Each report, which is forgotten with all that was read of it when the next is asked for."""
    while reports:
        yield reports.pop(0)


def _chained(sections: Sequence[PairSection]) -> list[PairSection]:
    """The sections; a step is left to those alone that follow one another still, now that some
    could not be read.
    """
    sides = [(section.summary.base, section.summary.tuned) for section in sections]
    chained = set(following(sides))
    return [
        section if number in chained else replace(section, step=None)
        for number, section in enumerate(sections)
    ]


def page_bytes(
    sections: Sequence[PairSection],
    title: str,
    missing: Sequence[Missing] = (),
) -> bytes:
    """The page as UTF-8, with the pairs that are missing. Equal arguments give equal bytes."""
    ranked = sorted(sections, key=_rank)
    shared = {
        "metrics": metric_texts(),
        "margin": MARGIN,
        "layers": LAYERS,
        "overview": [section.overview() for section in ranked],
    }
    followed = lineage([section.step for section in sections if section.step is not None])
    html = environment().get_template("page.html.j2").render(
        title=sections[0].name if len(sections) == 1 else title,
        pairs=sections,
        ranked=ranked,
        missing=missing,
        lineage=followed if followed.is_one else None,
        numbers={section.where: section.number for section in sections},
        shared=script_json(shared),
        style=Markup(file_text("page.css")),  # noqa: S704 - a file of ours
        scripts=scripts(),
        policy=policy(scripts().values()),
        generator=Markup(f'{GENERATOR}{__version__}">'),  # noqa: S704 - text of ours
        texts={column.name: column.text for column in (*MATRICES, *FIGURES)},
        gate_texts={name: gate.meaning for name, gate in GATES.items()},
        answers=ANSWERS,
        of_what=of_what,
        label_line=label_line,
        percentage=portion_of,
        in_parameters=_in_parameters,
        most_cards=MOST_CARDS,
        small_pictures=small_pictures,
        measured_by_others=MEASURED_BY_OTHERS,
        bases_of=bases_of,
        reasons={name: reason.text for name, reason in REASONS.items()},
        regimes={run.regime: run.data for run in runs() if run.data != "other"},
        notation=NOTATION,
        version=__version__,
    )  # fmt: skip
    return html.encode()


def _rank(section: PairSection) -> tuple[bool, float, str]:
    """Most concentrated first; after them the pairs whose figures no gate lets count."""
    concentration = section.summary.figures.concentration
    if concentration is None:
        concentration = -math.inf
    return bool(section.failed), -concentration, section.name


def _title(run: Path) -> str:
    return run.resolve().name or "reports"


def _below(folder: Path, run: Path) -> str:
    """A report's folder as seen from the one asked for: the same wherever that one lies."""
    return (Path(_title(run)) / folder.relative_to(run)).as_posix()


def _missing(run: Path, folders: Sequence[Path]) -> list[Missing]:
    """Pairs of the list of run, where it has one, that have no report, and audits that were begun
    and not finished.
    """
    index = read_index(run)
    missing = {}
    rows = () if index is None else index.rows
    for row in rows:
        folder = run / report_folder(*row.key)  # not row.folder, which a file may say lies anywhere
        if row.state == "kept" or (row.state != "done" and folder not in folders):
            missing[folder] = Missing(
                where=_below(folder, run), state=row.state, why=row.error or "", hint=row.hint or ""
            )
    for depth in ("", "*/", "*/*/"):
        for journal in sorted(run.glob(f"{depth}{PARTIAL}/{JOURNAL}")):
            folder = journal.parent.parent
            if folder not in folders and folder not in missing:
                missing[folder] = Missing(
                    where=_below(folder, run),
                    state="unfinished",
                    why="",
                    hint="the same command continues from there",
                )
    return list(missing.values())


def _refuse_foreign(output: Path) -> None:
    """Raises ShadowError where a file would be lost that is no page of ours."""
    try:
        if not output.exists():
            return
        ours = GENERATOR.encode() in (read_start(output, TOP) or b"")
    except OSError as error:
        raise ShadowError(f"{output}: {error.strerror}", "choose another file with -o") from error
    if not ours:
        raise ShadowError(
            f"{output} is there already, and is no page of shadow", "choose another file with -o"
        )


def _in_parameters(summary: Summary, figure: str) -> str:
    """`; that of the parameters is 0.34`: what a ratio of energies is held against; empty where it
    is unknown.
    """
    sizes = parameter_ratio(summary, figure)
    if sizes is None:
        return ""
    return f"; that of the parameters is {text_of(sizes, 'ratio')}"
