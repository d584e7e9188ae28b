"""Reports -> one self-contained web page: no network, light and dark, printable.

What a reader needs without scripts (finding, tables, ranking) is plain HTML; the script draws what
the reader chooses. Text from files is escaped where it is used: by Jinja for HTML, by `script_json`
for data inside a script element, which enters the document only as text. A policy in the page
forbids all fetches, whatever is in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from operator import attrgetter
from pathlib import Path

import jinja2

from shadow.errors import ShadowError
from shadow.files import marked, placing, report_folder
from shadow.lists.index import read_index
from shadow.outputs.page.pair import (
    CAPTIONS,
    CONTROLS,
    PairSection,
    metric_texts,
    read_pair,
    script_json,
)
from shadow.quantities import DASH, Quantity
from shadow.reports.columns import NOTATION
from shadow.telling.document import (
    Cell,
    TableBlock,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.reading import AuditReport
from shadow.telling.report import quantity
from shadow.text import visible
from shadow.version import __version__

GENERATOR = '<meta name="generator" content="shadow '  # how a page of ours is known
TOP = 2000  # bytes within which it stands
MISSING = [named("pair"), worded("state"), worded("why")]
NORM = attrgetter("summary.figures.relative_norm_overall")


@dataclass(frozen=True)
class Link(Word):
    """A link to a pair of the page."""

    target: str = ""


def write_page(
    run: Path,
    folders: Sequence[Path],
    output: Path,
    show: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[int, int, list[ShadowError]]:
    """Write the page of the finished reports in folders, which lie at or below run.

    Without any the page says so. A report that cannot be read is named on the page with its fault;
    if it is the only one that was asked for, its ShadowError is raised instead. show gets how many
    reports are read, of how many. It gives the number of pairs on the page, its size in bytes, and
    the faults of the reports that could not be read.
    """
    title = run.resolve().name or "reports"
    sections: list[PairSection] = []
    unreadable: list[ShadowError] = []
    missing: list[list[str]] = []  # pairs without their report: folder, state, and why

    def below(folder: Path) -> str:
        """A report's folder relative to the requested one, the same wherever that lies."""
        path = Path(title) / folder.relative_to(run)
        return path.as_posix()

    def lacks(where: str, state: str, error: str, hint: str | None) -> None:
        missing.append([where, state, f"{error} ({hint})" if hint else error])

    with placing(output, marked(GENERATOR, TOP), "a page of shadow") as aside:
        for done, folder in enumerate(folders):  # each is forgotten when the next is read
            where = below(folder)
            show(done, len(folders), where)
            try:
                report = AuditReport(folder)
                number = len(sections)
                section = read_pair(report, where, number, len(folders))
                sections.append(section)
            except ShadowError as error:
                if list(folders) == [run]:
                    raise
                unreadable.append(error)
                lacks(where, "unreadable", error.message, error.hint)
        index = read_index(run)
        rows = () if index is None else index.rows
        for row in rows:
            # not row.folder, which a file may say lies anywhere
            folder = run / report_folder(*row.key)
            is_missing = row.state != "done" and folder not in folders
            if is_missing or row.state == "kept":
                lacks(below(folder), row.state, row.error or "", row.hint)
        content = _page(sections, title, missing).encode()
        aside.write_bytes(content)
    return len(sections), len(content), unreadable


def _page(sections: Sequence[PairSection], title: str, missing: Sequence[Sequence[str]]) -> str:
    """The page, the most concentrated pair first. Equal arguments give equal text."""
    ranked = sorted(sections, key=lambda section: section.rank)

    def finding(pair: PairSection) -> Word:
        gates = pair.summary.stopped
        headline = pair.summary.finding.headline
        return Word(headline, aside=f"{gates.capitalize()}." if gates else "")

    ranking = [
        named("pair", lambda pair: Link(pair.name, target=f"pair-{pair.number}")),
        number("concentration", lambda pair: quantity(pair.summary, "concentration", "fixed")),
        number("relative norm", NORM, "share"),
        worded("finding", finding),
    ]
    scripts = {"theme": file_text("scripts/theme.js"), "page": page_script()}
    hashes = []
    for text in scripts.values():
        digest = hashlib.sha256(text.encode()).digest()
        hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    allowed = " ".join(hashes)
    # escapes, refuses undefined names, and makes control characters visible
    jinja = jinja2.Environment(
        loader=jinja2.PackageLoader("shadow.outputs.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    jinja.filters |= {"cell": _cell_text, "coded": _coded}
    # the kind of a block or cell, by which templates draw it
    jinja.globals |= {"kind_of": lambda value: type(value).__name__.lower()}
    jinja.globals |= {"CAPTIONS": CAPTIONS, "CONTROLS": CONTROLS}
    return jinja.get_template("page.html.j2").render(
        title=sections[0].name if len(sections) == 1 else title,
        pairs=sections,
        ranked=ranked,
        ranking=table_of(ranking, ranked),
        missing=TableBlock(MISSING, missing) if missing else None,
        shared=script_json({"metrics": metric_texts()}),
        style=file_text("page.css"),
        scripts=scripts,
        # only these scripts run, and nothing is fetched
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'",
        generator=f'{GENERATOR}{__version__}">',
        notation=NOTATION,
        version=__version__,
    )  # fmt: skip


def page_script() -> str:
    """The script that draws the page, put together from its files."""
    names = ("look", "pair", "page")
    ours = "\n".join(file_text(f"scripts/{name}.js") for name in names)
    return f'"use strict";\n(() => {{\n{ours}}})();\n'


@cache
def file_text(name: str) -> str:
    path = resources.files("shadow.outputs.page") / name
    return path.read_text(encoding="utf-8")


def _coded(text: str) -> str:
    """Text as HTML, with what is between backticks as code, such as `floor_ratio`."""
    escaped = html.escape(visible(text))
    return re.sub("`([^`]+)`", r"<code>\1</code>", escaped)


def _cell_text(cell: Cell) -> str:
    """A cell of a table: a dash if nothing is known, a minus sign for negative numbers."""
    text = str(cell)
    if cell is None or text == DASH:
        return "–"
    return text.replace("-", "−") if isinstance(cell, Quantity) else text


def _finalized(value: object) -> object:
    """Make plain text that an expression of a template gives harmless; markup is ours."""
    is_plain = isinstance(value, str) and not hasattr(value, "__html__")
    return visible(str(value)) if is_plain else value
