"""What comes of the audit of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shadow.checks.summary import Summary
from shadow.reasons import STRICT
from shadow.reports.metadata import ReportMetadata


@dataclass(frozen=True)
class AuditResult:
    """A finished report."""

    folder: Path
    summary: Summary
    measured: int
    """Matrices that this run measured itself; 0 when the report was there."""
    provenance: ReportMetadata
    """The `shadow` key of its files."""
    url: str | None = None
    """Where it was published; then folder need not be there any more. None: it is in folder alone.
    """

    @property
    def place(self) -> str:
        """Its URL, or its folder."""
        return self.url or str(self.folder)

    @property
    def should_not_have_skipped(self) -> list[str]:
        """Reasons that `--strict` objects to."""
        return [row.reason for row in self.summary.skipped if row.reason in STRICT]
