"""Templates, scripts and the policy of the page: how text of any origin gets into it safely."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from shadow.quantities import DASH, Quantity
from shadow.telling.document import Cell
from shadow.text import visible

OWN = ("look", "pair", "page")  # our script, in this order
UNSAFE = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no text can end the element or start a comment.

    Keys keep their order, so equal values give equal text. NaN and infinity are refused. Texts of
    reports are made visible before.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(UNSAFE))  # noqa: S704


def file_text(name: str) -> str:
    return (resources.files("shadow.outputs.page") / name).read_text(encoding="utf-8")


@cache
def scripts() -> dict[str, Markup]:
    """Our scripts of every page by name, in the order in which they stand there."""
    ours = "\n".join(file_text(f"scripts/{name}.js") for name in OWN)
    page = f'"use strict";\n(() => {{\n{ours}}})();\n'
    texts = {"theme": file_text("scripts/theme.js"), "page": page}
    for name, text in texts.items():
        if "</script" in text.lower() or "<!--" in text:
            raise ValueError(f"the script {name} cannot stand in a page")
    return {name: Markup(text) for name, text in texts.items()}  # noqa: S704 - ours


def policy(texts: Iterable[str]) -> str:
    """A Content-Security-Policy under which only these scripts run and nothing is fetched."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _finalized(value: Any) -> Any:
    """Return what an expression of a template gives: plain text is made harmless, markup is
    ours.
    """
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(value)
    return value


def coded(value: object) -> object:
    """Text in which what stands between backticks is code: `floor_ratio`; otherwise as it is."""
    if not isinstance(value, str) or "`" not in value:
        return value
    shown = escape(_finalized(value))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(shown)))  # noqa: S704 - escaped


def cell_text(cell: Cell) -> str:
    """A cell of a table: a dash where nothing is known, a minus sign before what is below 0."""
    if cell is None or str(cell) == DASH:
        return "–"
    return str(cell).replace("-", "−") if isinstance(cell, Quantity) else str(cell)


def kind_of(value: object) -> str:
    """The kind of a block or cell, by which templates choose how to draw it."""
    return type(value).__name__.lower()


def environment() -> jinja2.Environment:
    """Jinja that escapes, refuses undefined names, and makes control characters visible."""
    jinja = jinja2.Environment(
        loader=jinja2.PackageLoader("shadow.outputs.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    jinja.filters |= {"cell": cell_text, "coded": coded}
    jinja.globals |= {"kind_of": kind_of}
    return jinja
