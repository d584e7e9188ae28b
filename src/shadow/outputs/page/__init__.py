"""Reports -> one self-contained web page: no network, light and dark, printable.

What a reader needs without scripts (finding, tables, ranking) is plain HTML; the script
draws what the reader chooses. Text from files is escaped by who reads it: Jinja for HTML,
`script_json` for data inside a script element, which enters the document as text only. A policy in
the page lets nothing be fetched, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from markupsafe import Markup

from shadow import __version__
from shadow.errors import ShadowError
from shadow.files import placing, read_start
from shadow.lists.index import read_index, report_folder
from shadow.outputs.page.data import metric_texts
from shadow.outputs.page.html import environment, file_text, policy, script_json, scripts
from shadow.outputs.page.pair import PairSection, read_pair
from shadow.reports.columns import NOTATION
from shadow.telling.document import TableBlock, TableHead, Word, named, number, table_of, worded
from shadow.telling.reading import AuditReport
from shadow.telling.report import quantity

GENERATOR = '<meta name="generator" content="shadow '  # how a page of ours is known
TOP = 2000  # bytes within which it stands


Missing = tuple[str, str, str]
"""A pair without the requested report: its folder, its state (failed, kept, pending or unreadable),
and why.
"""


@dataclass(frozen=True)
class Written:
    """Result of writing a page."""

    pairs: int
    size: int
    unreadable: list[tuple[str, ShadowError]]
    """(folder, fault) of the reports that could not be read."""


MISSING = [TableHead("pair", "name"), TableHead("state", "text"), TableHead("why", "text")]


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
    with placing(output, _is_page, "a page of shadow") as aside:
        sections: list[PairSection] = []
        unreadable: list[tuple[str, ShadowError]] = []
        for done, folder in enumerate(folders):  # each is forgotten when the next is read
            where = _below(folder, run)
            show(done, len(folders), where)
            try:
                report = AuditReport(folder)
                sections.append(read_pair(report, where, number=len(sections), pairs=len(folders)))
            except ShadowError as error:
                if list(folders) == [run]:
                    raise
                unreadable.append((where, error))
        missing = [
            (where, "unreadable", _why(fault.message, fault.hint)) for where, fault in unreadable
        ]
        content = page_bytes(sections, _title(run), [*missing, *_missing(run, folders)])
        aside.write_bytes(content)
    return Written(len(sections), len(content), unreadable)


def page_bytes(
    sections: Sequence[PairSection], title: str, missing: Sequence[Missing] = ()
) -> bytes:
    """The page as UTF-8, with the pairs that are missing. Equal arguments give equal bytes."""
    ranked = sorted(sections, key=lambda section: section.rank)
    html = environment().get_template("page.html.j2").render(
        title=sections[0].name if len(sections) == 1 else title,
        pairs=sections,
        ranked=ranked,
        ranking=ranking_table(ranked),
        missing=TableBlock(MISSING, missing) if missing else None,
        shared=script_json({"metrics": metric_texts()}),
        style=Markup(file_text("page.css")),  # noqa: S704 - a file of ours
        scripts=scripts(),
        policy=policy(scripts().values()),
        generator=Markup(f'{GENERATOR}{__version__}">'),  # noqa: S704 - text of ours
        notation=NOTATION,
        version=__version__,
    )  # fmt: skip
    return html.encode()


@dataclass(frozen=True)
class Link(Word):
    """A word that leads to a pair of the page."""

    target: str = ""


def ranking_table(ranked: Sequence[PairSection]) -> TableBlock:
    """A row for each pair, the most concentrated first."""

    def finding(pair: PairSection) -> Word:
        failed = f"Gates failed: {', '.join(pair.failed)}." if pair.failed else ""
        return Word(pair.summary.finding.headline, aside=failed)

    norm = attrgetter("summary.figures.relative_norm_overall")
    fields = [
        named("pair", lambda pair: Link(pair.name, target=f"pair-{pair.number}")),
        number("concentration", lambda pair: quantity(pair.summary, "concentration", "fixed")),
        number("relative norm", norm, "share"),
        worded("finding", finding),
    ]
    return table_of(fields, ranked)


def _title(run: Path) -> str:
    return run.resolve().name or "reports"


def _below(folder: Path, run: Path) -> str:
    """A report's folder as seen from the one asked for: the same wherever that one lies."""
    return (Path(_title(run)) / folder.relative_to(run)).as_posix()


def _missing(run: Path, folders: Sequence[Path]) -> list[Missing]:
    """Pairs of the list of run without a report."""
    index, missing = read_index(run), list[Missing]()
    for row in () if index is None else index.rows:
        folder = run / report_folder(*row.key)  # not row.folder, which a file may say lies anywhere
        if row.state == "kept" or (row.state != "done" and folder not in folders):
            missing.append((_below(folder, run), row.state, _why(row.error or "", row.hint)))
    return missing


def _why(error: str, hint: str | None) -> str:
    return f"{error} ({hint})" if hint else error


def _is_page(path: Path) -> bool:
    return GENERATOR.encode() in (read_start(path, TOP) or b"")
