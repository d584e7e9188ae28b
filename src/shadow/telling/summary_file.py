"""`summary.json`: when the one in a report may be believed.

Making a summary of a small report takes 150 ms, reading one 3. So a summary is taken as it stands
when a seal in the metadata of matrices.parquet says that this very code made it, from these very
tables, and that nobody has changed it:

- the version of shadow, and a sha256 over its code and the data that summaries rest on: a checkout
  changes without its version;
- a sha256 of each table: of all bytes of its file before the footer, and of its columns and number
  of rows. The footer alone would not do: it holds no checksum of the pages, so that a number can
  change without it. And it would save little: a sha256 reads more than 1 GB a second. The rest of
  the footer is left out because the seal itself is in it;
- a sha256 of the summary, and of what the report says that it is of.

In every other case the summary is made again from the tables. This is a seal and no signature: who
writes all files anew can say in them what he likes, as he can in the tables themselves. What a
summary holds is therefore checked as that of any file is.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadow import __version__
from shadow.files import registry_folder
from shadow.reports.metadata import SealMetadata
from shadow.reports.parquet import pages_of
from shadow.reports.report import Report

FILE = "summary.json"
SUMMARISED = ("matrices", "tensors", "files")  # the tables that a summary is made from
SEAL = "seal"  # its key in a report's metadata
# what metadata say a report is of
IDENTITY = ("version", "schema", "family", "pair", "base", "tuned", "settings")
MAX_FILE = 64_000_000  # bytes; a thousandth of it is usual
PIECE = 1 << 20  # bytes of a file that are read at a time


def summary_bytes(summary: Mapping[str, Any]) -> bytes:
    """`summary.json` of a summary as JSON."""
    return json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n"


def seal(
    summary: Mapping[str, Any], tables: Mapping[str, Path], metadata: Mapping[str, object]
) -> SealMetadata:
    """The seal of a summary as JSON that was made from the tables in these files, whose metadata
    may be missing yet; metadata has what the report is of.
    """
    digests = {}
    for name in SUMMARISED:
        with tables[name].open("rb") as content, pq.ParquetFile(tables[name]) as file:
            digests[name] = _table_digest(content, file)
    return {"made_by": maker(), "tables": digests, "summary": summary_digest(summary, metadata)}


def believed(report: Report, *, with_rows: bool = True) -> dict[str, Any] | None:
    """The summary.json of a finished report; None where it may not be believed.

    What the values are is not checked: see `read_as`. with_rows: False where the tables lie
    elsewhere, and only the summary's own checksum can be compared. Raises ShadowError where there
    is no finished report.
    """
    metadata: Mapping[str, Any] = report.provenance.told
    try:
        sealed = metadata[SEAL]
        if sealed["made_by"] != maker():
            return None
        with (report.folder / FILE).open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            return None
        stored: dict[str, Any] = json.loads(raw)
        if summary_digest(stored, metadata) != sealed["summary"]:
            return None
        if with_rows and _digests(report) != sealed["tables"]:
            return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        pa.ArrowException,
    ):
        return None  # such as of a report that was made before there were seals
    return stored


def summary_digest(summary: Mapping[str, Any], metadata: Mapping[str, object]) -> str:
    """A sha256 of a summary, and of what its report is of."""
    whole = [summary, {key: metadata[key] for key in IDENTITY}]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _digests(report: Report) -> dict[str, str]:
    return {
        name: _table_digest(io.BytesIO(report.content(name)), report.parquet(name))
        for name in SUMMARISED
    }


def _table_digest(content: IO[bytes], file: pq.ParquetFile) -> str:
    """A sha256 of a Parquet file's pages, the names and types of its columns, and its row count."""
    left = pages_of(content)
    digest = hashlib.sha256()
    content.seek(0)
    while left and (piece := content.read(min(left, PIECE))):
        digest.update(piece)
        left -= len(piece)
    columns = [(field.name, str(field.type)) for field in file.schema_arrow]
    digest.update(repr((columns, file.metadata.num_rows)).encode())
    return digest.hexdigest()


@cache
def maker() -> dict[str, str]:
    """The version, and a sha256 over the package's code and the data that summaries rest on."""
    package, data = Path(__file__).parents[1], registry_folder()
    digest = hashlib.sha256()
    for path in (
        *sorted(package.rglob("*.py")),
        data / "names.yaml",
        *sorted((data / "reference").iterdir()),
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {"version": __version__, "code": digest.hexdigest()}
