"""Reports, comparisons and answers -> HTML for a notebook: what a command prints of them."""

from __future__ import annotations

from shadow.checks.answer import Verification
from shadow.checks.checklist import Checklist
from shadow.comparing.comparison import Comparison
from shadow.errors import ShadowError
from shadow.outputs.terminal import html_of
from shadow.telling.checklist import checklist_document
from shadow.telling.comparisons import comparison_document
from shadow.telling.document import Document
from shadow.telling.reading import AuditReport
from shadow.telling.report import report_document
from shadow.telling.verification import verification_document

Drawn = AuditReport | Comparison | Verification | Checklist


def html(shown: Drawn) -> str | None:
    """Draw an object; None, for which a notebook shows its repr, if it cannot be read."""
    try:
        return html_of(_document_of(shown))
    except ShadowError:
        return None


def _document_of(shown: Drawn) -> Document:
    match shown:
        case AuditReport():
            provenance = shown.provenance.recorded
            return report_document(shown.summary, provenance, shown.folder).shown()
        case Comparison():
            return comparison_document(shown)
        case Verification():
            return verification_document(shown)
        case Checklist():
            return checklist_document(shown)
