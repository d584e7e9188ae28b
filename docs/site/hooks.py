"""MkDocs hooks: files outside docs/ as pages of the site, and links between them as they are on disk."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {  # page of the site, and the file that it shows
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for page, name in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files as they lie in the repository become links to pages; to a file that is no page, plain text."""
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
    return LINK.sub(link, markdown)
