"""MkDocs hooks: pages from files outside docs/, the tables of the schema and
the glossary, links as they are on disk, and typeset formulas.

Formulas are written as GitHub shows them, ```math blocks and $`inline`$, and become MathML here: a
browser sets it without a script or a font of another host.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from shadow.reports.columns import GLOSSARY, JSON_FILES, NOTATION, RULES, TABLES, null_cases

ROOT = Path(__file__).parents[2]
PAGES = {  # page of the site, and the file that it shows
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
FORMULA = re.compile(r"(?m)^```math\n(?P<shown>.*?)\n```$|\$`(?P<inline>[^`\n]+)`\$", re.DOTALL)
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not Markdown in docs/."""
    for page, name in PAGES.items():
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def schema() -> Iterator[str]:
    """Yield every table, column and key of a report, and the glossary, as lines of Markdown."""
    yield from ("", *(f"- {rule}" for rule in RULES), "", NOTATION)
    for one in TABLES.values():
        yield from ("", f"## {one.name}", "", f"{one.file}; one row is {one.row}.", "")
        yield "| column | type | unit | what | formula | range | null when | source |"
        yield "|---|---|---|---|---|---|---|---|"
        for column in one.columns:
            code = f"`{column.formula}`" if column.formula else ""
            text = f"{column.text} (later)" if column.name in one.later else column.text
            text += " **Start here.**" if column.name in one.start_here else ""
            text += f" *Pitfall*: {column.pitfalls}" if column.pitfalls else ""
            null = ", ".join(null_cases(column))
            cells = [f"`{column.name}`", column.type, column.unit, text, code, column.range, null]
            cells.append(column.source)
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    for name, keys in JSON_FILES.items():
        yield from ("", f"## {name}", "", "| key | what |", "|---|---|")
        yield from (f"| `{key}` | {text} |" for key, text in keys.items())
    yield from ("", "## Glossary", "", "| term | meaning |", "|---|---|")
    yield from (f"| {term} | {text} |" for term, text in GLOSSARY.items())


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository become links to pages, or text where there is no page."""
    of = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(of), target))
        shown = {name: page for page, name in PAGES.items()}.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(shown):
            there = posixpath.relpath(shown, posixpath.dirname(page.file.src_uri) or ".")
            return f"{match['picture']}[{match['text']}]({there}{anchor})"
        return match[0] if path.startswith("docs/") and not path.endswith("/") else match["text"]

    if of == "README.md":  # its picture is HTML
        markdown = re.sub(r'(?<=(?:src|set)=")docs/', "", markdown)
    if of == "docs/schema.md":
        markdown = "\n".join([markdown, *schema()])
    return FORMULA.sub(typeset, LINK.sub(link, markdown))


def typeset(formula: re.Match[str]) -> str:
    """The MathML of a formula, on a line of its own or within one."""
    if formula["inline"]:
        return str(convert(formula["inline"]))
    return f'<div class="formula">{convert(formula["shown"], display="block")}</div>'
