"""A finished report as people meet it in Python: tables and figures by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from shadow.errors import ShadowError
from shadow.outputs.markdown import markdown
from shadow.storage import as_given
from shadow.telling.document import Document, Headline, Paragraph
from shadow.telling.reading import SummarisedReport
from shadow.telling.report import report_document
from shadow.text import visible


@dataclass(frozen=True)
class AuditReport(SummarisedReport):
    """A finished report: what `audit` and `read` return."""

    @cached_property
    def deltas(self) -> pd.DataFrame:
        """The rows of `matrices` whose subject is the delta: one for each matrix that changed."""
        rows = self.matrices
        return rows[rows["subject"] == "delta"].reset_index(drop=True)

    @property
    def name(self) -> str:
        """`demo:base..narrow`."""
        return f"{self.provenance.family}:{self.provenance.pair}"

    def __repr__(self) -> str:
        try:
            summary = self.summary
            titled = ": ".join(filter(None, (self.name, summary.stopped)))
            origin = f"{as_given(self.folder)}, measured by shadow {self.provenance.version}"
            lines = [titled, summary.finding.headline, origin]
        except ShadowError as error:  # a repr must not fail: a notebook would show a traceback
            lines = ["AuditReport", error.message, error.hint or ""]
        return "\n".join(visible(line) for line in lines)

    def _repr_markdown_(self) -> str:
        """What `shadow show` prints, for notebooks."""
        try:
            told, folder = self.provenance.told, as_given(self.folder)
            return markdown(report_document(self.summary, told, folder).shown(), level=4)
        except ShadowError as error:
            return markdown(Document([Headline(error.message), Paragraph(error.hint or "")]))


class AuditReports(tuple[AuditReport, ...]):
    """The reports of several pairs, in the order in which these were named."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self)) or "no reports"

    def _repr_markdown_(self) -> str:
        return "\n".join(report._repr_markdown_() for report in self) or "no reports"
