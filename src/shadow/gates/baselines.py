"""Finished reports as rules see them, and the baselines that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shadow.checks.summary import Summary
from shadow.errors import ShadowError
from shadow.gates.measured import Measured
from shadow.gates.pair_check import Reading
from shadow.reports.provenance import finished_metadata, refuse_remains
from shadow.telling.reading import SummarisedReport


def read_measured(
    folder: Path,
    label: str = "this report",
    summary: Summary | None = None,
    reading: Reading | None = None,
) -> Measured:
    """A finished report as rules see it, with its summary unless that is known already.

    reading: for checks that the report does not answer. Raises ShadowError.
    """
    report = SummarisedReport(folder)
    assert report.provenance  # read now, so that a folder without a report is found here
    if summary is None:
        summary = report.summary
    return Measured(source=report, label=label, summary=summary, reading=reading)


def _whole(folder: Path) -> Measured:
    """A baseline, all of which is read now: what is measured next may be written over it."""
    baseline = read_measured(folder, "the baseline")
    assert baseline.report is not None
    return baseline


def read_baselines(
    against: Path, folders: Sequence[Path], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Measured]:
    """The report of each pair (family, pair) that has one in folders, which are those in or below
    against.

    A single pair may also be held against a report of any name, if against is that report's own
    folder. Raises ShadowError for what cannot be read.
    """
    if len(pairs) == 1 and finished_metadata(against) is not None:
        return {pairs[0]: _whole(against)}
    baselines = {}
    for folder in folders:
        metadata = finished_metadata(folder)
        if metadata is None:
            refuse_remains(folder)
        if metadata is not None and (which := (metadata["family"], metadata["pair"])) in pairs:
            if which in baselines:
                raise ShadowError(
                    f"{against} has two reports of {':'.join(which)}",
                    "name the folder of one of them",
                )
            baselines[which] = _whole(folder)
    return baselines
