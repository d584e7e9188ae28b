"""Reports -> one self-contained web page: no network, light and dark, printable.

The charts are Plotly's: plotly.min.js comes from its Python package and is written into the page whole. What a reader
needs without scripts (headline, claims, tables) is plain HTML. Text from files is escaped by who reads it: Jinja for
HTML, `script_json` for data inside a script element, and our scripts for Plotly, which takes some tags and entities in
text for markup. A policy in the page lets nothing be fetched, whatever is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from shadow import __version__
from shadow.audits.index import read_index, report_folder
from shadow.audits.journal import JOURNAL
from shadow.errors import ShadowError
from shadow.files import PARTIAL, read_start, write_beside, writing
from shadow.findings.depth import LAYERS
from shadow.findings.finding import ANSWERS, of_what
from shadow.findings.footprint import GATES, MARGIN
from shadow.findings.gains import MEASURED_BY_OTHERS
from shadow.findings.lineage import following, lineage, read_step
from shadow.findings.reference import bases_of, runs
from shadow.outputs.page.cards import MOST_CARDS, small_pictures
from shadow.outputs.page.cells import metric_texts
from shadow.outputs.page.html import environment, file_text, policy, script_json, scripts
from shadow.outputs.page.pair import PairSection, read_pair
from shadow.reasons import REASONS
from shadow.reports.columns import FIGURES, MATRICES, NOTATION

GENERATOR = '<meta name="generator" content="shadow '  # how a page of ours is known
TOP = 2000  # bytes within which it stands


@dataclass(frozen=True)
class Missing:
    """A pair without the report that was asked for. state: failed, kept, pending or unfinished; why and hint where
    they are known."""

    where: str
    state: str
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Written:
    """What became of a page: how many pairs it shows, its size in bytes, and (folder, fault) of unreadable reports."""

    pairs: int
    size: int
    unreadable: list[tuple[str, ShadowError]]


def write_page(
    run: Path,
    folders: Sequence[Path],
    output: Path,
    show: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Written:
    """Write the page of the finished reports in folders, which lie at or below run.

    Without any the page says so. A report that cannot be read is named on the page with its fault; if it is the only
    one that was asked for, its ShadowError is raised instead. show gets how many reports are read, of how many.
    """
    _refuse_foreign(output)
    found: list[PairSection] = []
    unreadable: list[tuple[str, ShadowError]] = []
    for done, folder in enumerate(folders):
        where = _below(folder, run)
        show(done, len(folders), where)
        try:
            found.append(read_pair(folder, where, len(found), len(folders)))
        except ShadowError as error:
            if list(folders) == [run]:
                raise
            unreadable.append((where, error))
    read = [folder for folder in folders if _below(folder, run) not in dict(unreadable)]
    for number in following([(one.summary.base, one.summary.tuned) for one in found]):
        step = read_step(read[number])
        found[number] = replace(found[number], step=step and replace(step, folder=found[number].where))
    missing = [Missing(where, "unreadable", error.message, error.hint or "") for where, error in unreadable]
    content = page_bytes(found, _title(run), [*missing, *_missing(run, folders)])
    with writing(output.parent):
        write_beside(output, content)
    return Written(len(found), len(content), unreadable)


def page_bytes(
    found: Sequence[PairSection],
    title: str,
    missing: Sequence[Missing] = (),
) -> bytes:
    """The page as UTF-8, with the pairs that are missing on it. Equal arguments give equal bytes."""
    ranked = sorted(found, key=_rank)
    shared = {
        "metrics": metric_texts(),
        "margin": MARGIN,
        "layers": LAYERS,
        "overview": [one.overview() for one in ranked],
    }
    followed = lineage([one.step for one in found if one.step is not None])
    html = environment().get_template("page.html.j2").render(
        title=found[0].name if len(found) == 1 else title,
        pairs=found,
        ranked=ranked,
        missing=missing,
        lineage=followed if followed.is_one else None,
        numbers={one.where: one.number for one in found},
        shared=script_json(shared),
        style=Markup(file_text("page.css")),  # noqa: S704 - a file of ours
        scripts=scripts(),
        policy=policy(scripts().values()),
        generator=Markup(f'{GENERATOR}{__version__}">'),  # noqa: S704 - text of ours
        texts={column.name: column.text for column in (*MATRICES, *FIGURES)},
        gate_texts=GATES,
        answers=ANSWERS,
        of_what=of_what,
        most_cards=MOST_CARDS,
        small_pictures=small_pictures,
        measured_by_others=MEASURED_BY_OTHERS,
        bases_of=bases_of,
        reasons={name: reason.text for name, reason in REASONS.items()},
        regimes={row["regime"]: row["data"] for row in runs() if row["data"] != "other"},
        notation=NOTATION,
        version=__version__,
    )  # fmt: skip
    return html.encode()


def _rank(told: PairSection) -> tuple[bool, float, str]:
    """Most concentrated first; after them the pairs whose figures no gate lets count."""
    concentration = told.summary.figures["concentration"]
    return bool(told.failed), math.inf if concentration is None else -concentration, told.name


def _title(run: Path) -> str:
    return run.resolve().name or "reports"


def _below(folder: Path, run: Path) -> str:
    """A report's folder as seen from the one that was asked for: the same wherever that one lies."""
    return (Path(_title(run)) / folder.relative_to(run)).as_posix()


def _missing(run: Path, folders: Sequence[Path]) -> list[Missing]:
    """Pairs of the list of run, where it has one, that have no report, and audits that were begun and not finished."""
    index = read_index(run)
    found = {}
    for row in index.rows if index is not None else ():
        folder = run / report_folder(*row.key)  # not row.folder, which a file may say lies anywhere
        if row.state == "kept" or (row.state != "done" and folder not in folders):
            found[folder] = Missing(_below(folder, run), row.state, row.error or "", row.hint or "")
    for depth in ("", "*/", "*/*/"):
        for journal in sorted(run.glob(f"{depth}{PARTIAL}/{JOURNAL}")):
            folder = journal.parent.parent
            if folder not in folders and folder not in found:
                found[folder] = Missing(_below(folder, run), "unfinished", "", "the same command continues from there")
    return list(found.values())


def _refuse_foreign(output: Path) -> None:
    """Raises ShadowError where a file would be lost that is no page of ours."""
    try:
        if not output.exists():
            return
        ours = GENERATOR.encode() in (read_start(output, TOP) or b"")
    except OSError as error:
        raise ShadowError(f"{output}: {error.strerror}", "choose another file with -o") from error
    if not ours:
        raise ShadowError(f"{output} is there already, and is no page of shadow", "choose another file with -o")
