"""Finished reports -> their summaries, for all who show, judge or draw a report. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from shadow.checks.pair_gates import gates
from shadow.checks.summary import Finding, Summary, summary_from_json
from shadow.comparing.lineage import Step, step_of
from shadow.comparing.published import published_place
from shadow.errors import ShadowError
from shadow.reports.metadata import ReportMetadata
from shadow.reports.parquet import absent_note
from shadow.reports.report import Report
from shadow.summary.making import record_of
from shadow.summary.standing import standing_of
from shadow.summary.tables import read_rows
from shadow.telling.finding import finding
from shadow.telling.summary_file import SUMMARISED, believed


def summarise(tables: Mapping[str, pa.Table], metadata: ReportMetadata) -> Summary:
    """The summary of the tables matrices, tensors and files, or of what is `needed` of
    them; metadata is what Identity has.
    """
    rows = read_rows(tables)
    standing = standing_of(rows.deltas, rows.tensors)
    record = record_of(rows, metadata, standing.cosine)
    summary = Summary(
        record,
        gates=gates(record, standing),
        published=published_place(rows.tensors, metadata),
        finding=Finding(),
    )
    return summary.with_finding(finding(summary, metadata["settings"]))


def read_summary(folder: Path, *, with_rows: bool = True) -> tuple[Summary, ReportMetadata]:
    """The summary of a finished report, and the report's provenance.

    What an older report lacks is null, and a warning of the summary. with_rows: whether the tables
    are there, so that their checksums are compared; otherwise the seal of the summary alone is.
    Raises ShadowError when the folder holds no finished report, or one of another schema; and
    without rows when the summary would have to be made from them.
    """
    report = SummarisedReport(folder)
    if with_rows:
        return report.summary, report.provenance.told
    sealed = believed(report, with_rows=False)
    if sealed is None:
        raise ShadowError(f"{folder}: its summary was made by another version")
    try:
        return summary_from_json(sealed), report.provenance.told
    except TypeError:  # sealed by somebody else
        raise ShadowError(f"{folder}: its summary is not of the shape that it should be") from None


@dataclass(frozen=True)
class SummarisedReport(Report):
    """A finished report and its summary."""

    @cached_property
    def summary(self) -> Summary:
        """The figures a person wants first: medians with intervals, components, modules, depth.

        What an older report lacks is null, and a warning of the summary.
        Raises ShadowError when the folder holds no finished report, or one of another schema.
        """
        return _believed_or_made(self)


def _believed_or_made(report: Report) -> Summary:
    sealed = believed(report)
    if sealed is not None:
        try:
            return summary_from_json(sealed)
        except TypeError:
            pass  # sealed by somebody else: not of the shape that every reader may rely on
    return made_again(report)


def made_again(report: Report) -> Summary:
    """The summary of a finished report, from its tables."""
    tables = {name: report.table(name) for name in SUMMARISED}
    if not len(tables["tensors"]):
        raise ShadowError(f"{report.folder}: a report without a tensor", "run the audit again")
    summary = summarise(tables, report.provenance.told)
    if not report.absent:
        return summary
    return summary.with_warning("older_report", absent_note(report.absent))


def read_step(report: SummarisedReport, where: str | None = None) -> Step | None:
    """A finished report as a step of a lineage; None for one of siblings, of which neither came
    from the other. where: its folder, as the step names it.
    """
    return step_of(report, report.summary, [one.name for one in report.summary.failed_gates], where)
