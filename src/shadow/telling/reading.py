"""Finished reports -> their summaries, to be shown, judged or drawn. Prints nothing.

Making a summary of a small report takes 150 ms, reading one 3. So `summary.json` is used directly
if a seal in the metadata of matrices.parquet shows that the same code made it from the same tables,
and that nobody has changed it. It is a sha256

- of the version of shadow, its code and the data that summaries rest on: a checkout changes without
  its version;
- of each table: of all bytes of its file before the footer, and of its columns and number of rows.
  The footer alone would not do, as it holds no checksum of the pages; the rest of it is left out
  because the seal itself is in it;
- of the summary, and of what the report says that it is of.

Otherwise the summary is made again from the tables. The seal is not a signature: anyone who
rewrites all files can put anything in them, as in the tables themselves. The content of a summary
is therefore checked like that of any file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.checks.pair_gates import gates
from shadow.checks.summary import Finding, Summary, summary_from_json
from shadow.comparing.lineage import Step, step_of
from shadow.comparing.published import published_place
from shadow.errors import ShadowError
from shadow.files import read_start, registry_folder
from shadow.reports.folders import TABLES_OF_A_PAIR, Staged
from shadow.reports.parquet import TableFile, absent_note, pages_of
from shadow.reports.provenance import ReportMetadata, RunMetadata
from shadow.reports.report import Report
from shadow.storage import as_given
from shadow.summary.gate_figures import gate_figures
from shadow.summary.making import record_of
from shadow.summary.tables import needed, read_rows
from shadow.telling.finding import finding
from shadow.text import Shown, visible
from shadow.version import __version__

if TYPE_CHECKING:
    import pandas as pd

FILE = "summary.json"
SUMMARISED = ("matrices", "tensors", "files")  # the tables that a summary is made from
# what metadata say a report is of
IDENTITY = ("version", "schema", "family", "pair", "base", "tuned", "settings")
MAX_FILE = 64_000_000  # bytes; a thousandth of it is usual


NO_SEAL = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    pa.ArrowException,
)


@np.errstate(all="ignore")  # a forged report may hold infinities
def summarise(tables: Mapping[str, pa.Table], metadata: ReportMetadata) -> Summary:
    """Make the summary of the tables matrices, tensors and files, or of their `needed` columns;
    metadata is that of Identity.
    """
    rows = read_rows(tables)
    figures = gate_figures(rows)
    record = record_of(rows, metadata, figures.cosine)
    without_finding = Summary.from_parts(
        record,
        gates=gates(record, figures),
        published=published_place(rows.tensors, metadata),
        finding=Finding(headline="", sentences=[], other_explanations=[], not_shown=[]),
    )
    return without_finding.with_values(finding=finding(without_finding, metadata["settings"]))


def finish(
    staged: Staged, files: Mapping[str, TableFile], recorded: ReportMetadata, run: RunMetadata
) -> tuple[Summary, ReportMetadata]:
    """Make a report of the tables that were measured, which are closed: their summary, and the
    metadata of each file. recorded: that of Identity, with the content of both sides.
    """
    tables = {}
    for name in SUMMARISED:
        file = pq.ParquetFile(files[name].path)  # a group at a time: a large model's fill memory
        groups = (file.read_row_group(number) for number in range(file.num_row_groups))
        tables[name] = pa.concat_tables(needed(name, group) for group in groups)
    summary = summarise(tables, recorded)
    as_json = summary.as_json()
    sealed = seal(as_json, {name: files[name].path.read_bytes() for name in SUMMARISED}, recorded)
    metadata: ReportMetadata = {**recorded, **run, "gates": as_json["gates"], "seal": sealed}
    for name in TABLES_OF_A_PAIR:
        if name in files:
            files[name].finish(metadata)
        else:
            staged.put(f"{name}.parquet", b"")
    staged.put(FILE, summary_bytes(as_json))
    return summary, metadata


@dataclass(frozen=True)
class AuditReport(Shown, Report):
    """A finished report and its summary, as returned by `audit` and `read`."""

    @cached_property
    def summary(self) -> Summary:
        """The figures a person wants first: medians with intervals, components, modules, depth.

        What an older report lacks is null, with a warning in the summary. Raises ShadowError if the
        folder has no finished report, or one of another schema.
        """
        sealed = believed(self)
        if sealed is not None:
            try:
                return summary_from_json(sealed)
            except TypeError:
                pass  # sealed by somebody else: not of the shape that every reader may rely on
        return made_again(self)

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
    """The reports of several pairs, in the order of their names in the request."""

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self)) or "no reports"


def read_summary(folder: Path) -> tuple[Summary, ReportMetadata]:
    """Read the summary of a finished report, and its provenance. Raises like AuditReport."""
    report = AuditReport(folder)
    return report.summary, report.provenance.recorded


def made_again(report: Report) -> Summary:
    """Make the summary of a finished report from its tables."""
    tables = {name: report.table(name) for name in SUMMARISED}
    if not len(tables["tensors"]):
        raise ShadowError(f"{report.folder}: a report without a tensor", "run the audit again")
    summary = summarise(tables, report.provenance.recorded)
    if not report.absent:
        return summary
    return summary.with_warning(absent_note(report.absent))


def read_step(report: AuditReport) -> Step | None:
    """Read a finished report as a step of a lineage; None for one of siblings, neither of which
    came from the other.
    """
    return step_of(report, report.summary, report.summary.failed_gates)


# -------------------------------------------------------------------------------------------- seal


def summary_bytes(summary: Mapping[str, Any]) -> bytes:
    """The content of `summary.json`."""
    return json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n"


def seal(
    summary: Mapping[str, Any], tables: Mapping[str, bytes], metadata: Mapping[str, object]
) -> str:
    """Make the seal of a summary from the tables in these files, whose metadata may be missing yet;
    metadata identifies the report.
    """
    whole = [maker(), summary, {key: metadata[key] for key in IDENTITY}]
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode())
    for name in SUMMARISED:
        file = io.BytesIO(tables[name])
        digest.update(memoryview(tables[name])[: pages_of(file)])
        table = pq.ParquetFile(file)
        columns = [(field.name, str(field.type)) for field in table.schema_arrow]
        digest.update(repr((columns, table.metadata.num_rows)).encode())
    return digest.hexdigest()


def believed(report: Report) -> dict[str, Any] | None:
    """Read the summary.json of a finished report; None if it cannot be trusted.

    Values are not checked: see `summary_from_json`. Raises ShadowError if there is no finished
    report.
    """
    metadata: Mapping[str, Any] = report.provenance.recorded
    try:
        stored: dict[str, Any] = json.loads(read_start(report.folder / FILE, MAX_FILE) or b"")
        tables = {name: report.content(name) for name in SUMMARISED}
        return stored if seal(stored, tables, metadata) == metadata["seal"] else None
    except NO_SEAL:
        return None  # such as of a report that was made before there were seals


@cache
def maker() -> list[str]:
    """The version, and a sha256 over the package's code and the data behind summaries."""
    package = Path(__file__).parents[1]
    data = registry_folder()
    digest = hashlib.sha256()
    files = [data / "names.yaml", *sorted((data / "reference").iterdir())]
    for path in (*sorted(package.rglob("*.py")), *files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return [__version__, digest.hexdigest()]
