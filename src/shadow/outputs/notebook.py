"""A finished report as people meet it in Python: tables, figures and spectra by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow.errors import ShadowError, UsageError
from shadow.outputs.markdown import markdown
from shadow.storage import as_given
from shadow.telling.document import Document, Headline, Paragraph
from shadow.telling.reading import SummarisedReport
from shadow.telling.report import report_document
from shadow.text import nearest, visible

Subject = Literal["delta", "base", "tuned"]


@dataclass(frozen=True)
class AuditReport(SummarisedReport):
    """A finished report: what `audit` and `read` return."""

    @cached_property
    def deltas(self) -> pd.DataFrame:
        """The rows of `matrices` whose subject is the delta: one for each matrix that changed."""
        rows = self.matrices
        return rows[rows["subject"] == "delta"].reset_index(drop=True)

    def spectrum(
        self,
        tensor: str,
        subject: Subject = "delta",
        *,
        module: str | None = None,
        expert: int | None = None,
    ) -> NDArray[np.float64]:
        """The singular values of a matrix, descending; what lies below `sigma_floor` is 0.

        The matrices of one tensor, as of a fused projection or of experts, are told apart by module
        and expert. Raises ShadowError where there is no such spectrum, or more than one.
        """
        if subject not in get_args(Subject):
            raise UsageError(f"no subject {subject!r}", f"one of {', '.join(get_args(Subject))}")
        rows = self.spectra
        if rows.empty:
            hint = "audit the pair again with spectra=True"
            raise ShadowError(f"{self.folder}: the report has no spectra", hint)
        of_tensor = rows[rows["tensor"] == tensor]
        if of_tensor.empty:
            hint = nearest(tensor, rows["tensor"].unique()) or "`report.spectra` lists them"
            raise ShadowError(f"{self.folder}: no spectrum of a tensor {tensor[:200]!r}", hint)
        chosen = of_tensor[of_tensor["subject"] == subject]
        for name, wanted in (("module", module), ("expert", expert)):
            chosen = chosen if wanted is None else chosen[chosen[name] == wanted]
        if len(chosen) == 1:
            return np.asarray(chosen["sigma"].iloc[0], dtype=np.float64)
        columns = ["subject", "module", "expert"]
        some = of_tensor[columns].drop_duplicates().head(5).to_dict("records")
        there = "; ".join(
            ", ".join(f"{key}={value!r}" for key, value in row.items() if not pd.isna(value))
            for row in some
        )
        fault = f"{len(chosen) or 'no'} matrices of the {subject} of {tensor[:200]!r}"
        raise ShadowError(f"{self.folder}: {fault}", f"there is {there}")

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
