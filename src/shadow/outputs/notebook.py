"""A finished report as people meet it in Python: tables, figures and spectra by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow.errors import ShadowError, UsageError
from shadow.outputs.inline_html import inline_html
from shadow.reports.provenance import report_metadata
from shadow.storage import as_given
from shadow.telling.document import Document, Headline, Paragraph
from shadow.telling.reading import SummarisedReport
from shadow.telling.report import report_document
from shadow.text import nearest, visible

Subject = Literal["delta", "base", "tuned"]

SUBJECTS = get_args(Subject)


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
        if subject not in SUBJECTS:
            raise UsageError(f"no subject {subject!r}", f"one of {', '.join(SUBJECTS)}")
        rows = self.spectra
        if rows.empty:
            raise ShadowError(
                f"{self.folder}: the report has no spectra",
                "audit the pair again with spectra=True",
            )
        of_tensor = rows[rows["tensor"] == tensor]
        if of_tensor.empty:
            hint = nearest(tensor, rows["tensor"].unique()) or "`report.spectra` lists them"
            raise ShadowError(f"{self.folder}: no spectrum of a tensor {tensor[:200]!r}", hint)
        if module is not None:
            of_tensor = of_tensor[of_tensor["module"] == module]
        if expert is not None:
            of_tensor = of_tensor[of_tensor["expert"] == expert]
        chosen = of_tensor[of_tensor["subject"] == subject]
        if len(chosen) == 1:
            return np.asarray(chosen["sigma"].iloc[0], dtype=np.float64)
        if chosen.empty:
            raise ShadowError(
                f"{self.folder}: no spectrum of the {subject} of {tensor[:200]!r}",
                _alternatives(of_tensor),
            )
        raise ShadowError(f"{tensor[:200]!r} holds {len(chosen)} matrices", _alternatives(chosen))

    @property
    def name(self) -> str:
        """`demo:base..narrow`."""
        return f"{self.provenance.family}:{self.provenance.pair}"

    def __repr__(self) -> str:
        try:
            summary = self.summary
            standing = summary.stopped
            titled = self.name if standing is None else f"{self.name}: {standing}"
            origin = f"{as_given(self.folder)}, measured by shadow {self.provenance.version}"
            lines = [titled, summary.finding.headline, origin]
        except ShadowError as error:  # a repr must not fail: a notebook would show a traceback
            lines = ["AuditReport", error.message, error.hint or ""]
        return "\n".join(visible(line) for line in lines)

    def _repr_html_(self) -> str:
        """What `shadow show` prints, for notebooks."""
        try:
            folder = as_given(self.folder)
            document = report_document(self.summary, report_metadata(self.folder), folder)
        except ShadowError as error:
            document = Document([Headline(error.message), Paragraph(error.hint or "")])
        return inline_html(document.shown())


class AuditReports(Sequence[AuditReport]):
    """The reports of several pairs, in the order in which these were named."""

    def __init__(self, reports: Iterable[AuditReport]) -> None:
        self._reports = tuple(reports)

    @overload
    def __getitem__(self, index: int) -> AuditReport: ...

    @overload
    def __getitem__(self, index: slice) -> AuditReports: ...

    def __getitem__(self, index: int | slice) -> AuditReport | AuditReports:
        if isinstance(index, slice):
            return AuditReports(self._reports[index])
        return self._reports[index]

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return "\n\n".join(repr(report) for report in self._reports) or "no reports"

    def _repr_html_(self) -> str:
        return "<hr>".join(report._repr_html_() for report in self._reports) or "<p>no reports</p>"


def _alternatives(rows: pd.DataFrame) -> str | None:
    """What tells the matrices of a tensor apart, for a hint."""
    several = rows[["module", "expert", "subject"]].drop_duplicates().head(5)
    choices = []
    for module, expert, subject in several.itertuples(index=False):
        which = f"subject={subject!r}, module={module!r}"
        if not pd.isna(expert):
            which += f", expert={expert}"
        choices.append(which)
    if not choices:
        return None
    return f"there is {'; '.join(choices)}"
