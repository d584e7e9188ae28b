"""A finished report as people meet it in Python: tables and figures by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from shadow.errors import ShadowError
from shadow.storage import as_given
from shadow.telling.reading import SummarisedReport
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
            titled = ": ".join(filter(None, (self.name, self.summary.stopped)))
            origin = f"{as_given(self.folder)}, measured by shadow {self.provenance.version}"
            lines = [titled, self.summary.finding.headline, origin]
        except ShadowError as error:  # a repr must not fail: a notebook would show a traceback
            lines = ["AuditReport", error.message, error.hint or ""]
        return "\n".join(visible(line) for line in lines)


class AuditReports(tuple[AuditReport, ...]):
    """The reports of several pairs, in the order in which these were named."""

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self)) or "no reports"
