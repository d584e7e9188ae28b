"""The tables of reports -> files of one format: a writer for each, and how its work is known again.

A writer takes the path to write to and the parts of the export one after another, a report each, so
that memory is that of one report. Every part has the same tables with the columns of
`Table.exported`, no number in it is NaN or infinite, and its texts are valid Unicode and else
whatever files say: hostile text in every format.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from shadow import __version__
from shadow.errors import ShadowError
from shadow.reports.column_types import STORED_TYPES
from shadow.reports.columns import SCHEMA, TABLES, Column
from shadow.reports.metadata import ReportMetadata
from shadow.reports.parquet import arrow_type
from shadow.reports.provenance import METADATA_KEY
from shadow.reports.schema import null_cases, schema_json
from shadow.text import several, visible

MANIFEST = "shadow-export.json"  # in every folder: what wrote it, and which files
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a formula of a spreadsheet begins with
NO_NAME = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes null
LONGEST = 255  # bytes of a folder's name


@dataclass(frozen=True)
class TablePart:
    """What one report adds."""

    family: str
    pair: str
    metadata: ReportMetadata
    tables: Mapping[str, pa.Table]


@dataclass(frozen=True)
class Export:
    """What is to be written."""

    names: tuple[str, ...]
    """The tables, `reports` first."""
    provenance: tuple[ReportMetadata, ...]
    parts: Iterable[TablePart]
    """What each report adds; can be read once."""

    @property
    def default(self) -> str:
        """The table that is meant when none is named."""
        return next((name for name in self.names if name != "reports"), "reports")


def fields(columns: Iterable[Column]) -> list[pa.Field]:
    """Arrow fields that carry what is known of each column."""
    return [
        pa.field(
            column.name,
            arrow_type(column),
            metadata={key: text for key, text in described(column).items() if text},
        )
        for column in columns
    ]


def described(column: Column) -> dict[str, str]:
    """What is known of a column, by name; empty where there is nothing to say."""
    return {
        "description": column.text,
        "formula": column.formula,
        "unit": column.unit,
        "range": column.range,
        "null": "; ".join(null_cases(column)),
        "source": column.source,
        "pitfalls": column.pitfalls,
    }


def described_shortly(column: Column) -> str:
    """Text, formula, unit and null case as one sentence, for the comment of a database column."""
    said = described(column)
    more = [f"{key}: {said[key]}" for key in ("formula", "unit", "range", "null") if said[key]]
    return "; ".join([column.text, *more])


def _manifest(folder: Path, to: str) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    manifest = {"shadow_export": to, "version": __version__, "schema": SCHEMA, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def is_our_folder(to: str, folder: Path) -> bool:
    """Does a folder hold all that an export to this format wrote, and nothing else?

    Files are compared by their names and sizes.
    """
    if not folder.is_dir():
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        kind, files = manifest["shadow_export"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    sizes = {path.relative_to(folder).as_posix(): path.lstat().st_size for path in paths}
    sizes.pop(MANIFEST)
    return kind == to and sizes == files and not any(path.is_symlink() for path in paths)


# CSV


def write_csv(folder: Path, export: Export) -> None:
    """A file for each table, by RFC 4180, in UTF-8; datapackage.json describes the columns."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        rows = {}
        for name in export.names:
            rows[name] = csv.writer(
                _text_file(stack, folder / f"{name}.csv"), lineterminator="\r\n"
            )
            rows[name].writerow(column.name for column in TABLES[name].exported)
        for part in export.parts:
            for name in export.names:
                columns = zip(part.tables[name].columns, TABLES[name].exported, strict=True)
                rows[name].writerows(
                    zip(*(_cells(values, column) for values, column in columns), strict=True)
                )
    package = {
        "profile": "tabular-data-package",
        "name": "shadow-export",
        "resources": [_resource(name) for name in export.names],
    }
    (folder / "datapackage.json").write_text(json.dumps(package, indent=1) + "\n", encoding="utf-8")
    _manifest(folder, "csv")


def _text_file(stack: contextlib.ExitStack, path: Path) -> IO[str]:
    return stack.enter_context(path.open("w", encoding="utf-8", newline=""))


def neutral(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe before what begins like one, or
    with an apostrophe.

    So the text is what is left without the first apostrophe, if it begins with one.
    """
    if text.startswith((*FORMULA, "'")):
        return f"'{text}"
    return text


def _cells(values: pa.ChunkedArray, column: Column) -> list[str]:
    """Numbers as the shortest text that reads back as the same number; lists as JSON."""
    forms: dict[str, Callable[[Any], str]] = {"string": neutral, "int": str, "float": repr}
    form = forms.get(column.type, json_text)
    return ["" if value is None else form(value) for value in values.to_pylist()]


def json_text(value: Any) -> str:
    """JSON in one line of ASCII; numbers read back as they were."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _resource(name: str) -> dict[str, Any]:
    """A table as Data Package v1 describes it."""
    return {
        "profile": "tabular-data-resource",
        "name": name,
        "description": (
            f"One row is {TABLES[name].row}. Text that begins with = + - @ ' has an apostrophe"
            " before it."
        ),
        "path": f"{name}.csv",
        "encoding": "utf-8",
        "dialect": {"lineTerminator": "\r\n"},
        "schema": {
            "fields": [
                {
                    "name": column.name,
                    "type": STORED_TYPES[column.type].json,
                    "description": described_shortly(column),
                }
                for column in TABLES[name].exported
            ],
            "missingValues": [""],
        },
    }


# JSON


def write_json(folder: Path, export: Export) -> None:
    """A file of JSON Lines for each table, in ASCII, every key in every line; and schema.json."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        files = {name: _text_file(stack, folder / f"{name}.jsonl") for name in export.names}
        for part in export.parts:
            for name in export.names:
                for batch in part.tables[name].to_batches(max_chunksize=1000):
                    files[name].writelines(f"{json_text(row)}\n" for row in batch.to_pylist())
    schema = schema_json(TABLES[name] for name in export.names)
    (folder / "schema.json").write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    _manifest(folder, "json")


# Arrow and Parquet


def _arrow_schema(
    name: str, columns: Sequence[Column], provenance: Sequence[ReportMetadata]
) -> pa.Schema:
    """Of a table: metadata on every column, and under the key `shadow` how each report was made."""
    metadata = {
        "version": __version__,
        "schema": SCHEMA,
        "table": name,
        "row": TABLES[name].row,
        "reports": provenance,
    }
    return pa.schema(
        fields(columns), metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}
    )


def _write_tables(export: Export, opened: Callable[[str, pa.Schema], Any]) -> None:
    """Every table by a writer of Arrow's, which opened makes of its name and schema."""
    with contextlib.ExitStack() as stack:
        files = {}
        for name in export.names:
            schema = _arrow_schema(name, TABLES[name].exported, export.provenance)
            files[name] = schema, stack.enter_context(opened(name, schema))
        for part in export.parts:
            for name, (schema, file) in files.items():
                file.write_table(part.tables[name].cast(schema).combine_chunks())


def write_arrow(folder: Path, export: Export) -> None:
    """An Arrow IPC file (Feather 2) for each table, not compressed: memory can be mapped to it."""
    folder.mkdir()
    _write_tables(
        export, lambda name, schema: pa.ipc.new_file(str(folder / f"{name}.arrow"), schema)
    )
    _manifest(folder, "arrow")


def partition(name: str, value: str) -> str:
    """`name=value` as a folder, percent-encoded as Hive does it: no value reads as another or
    leaves the folder. Raises ShadowError for a value that cannot be a folder's name.
    """
    if value in ("", NO_NAME):
        raise ShadowError(
            f"a {name} called {value!r} would read as null in a partition",
            "export to another format",
        )
    folder = f"{name}={quote(value, safe='')}"
    if len(folder) > LONGEST:
        raise ShadowError(
            f"the {name} {visible(value[:40])}… is too long for a partition",
            "export to another format",
        )
    return folder


def write_parquet(folder: Path, export: Export) -> None:
    """`TABLE/family=F/pair=P/part-0.parquet`, without the two columns that the path already has.

    With them in the files too, pandas refuses the dataset: the file says string, the path
    dictionary.
    """
    folder.mkdir()
    for part in export.parts:
        where = Path(partition("family", part.family)) / partition("pair", part.pair)
        for name in export.names:
            part_folder = folder / name / where
            part_folder.mkdir(parents=True)
            columns = TABLES[name].exported[2:]
            schema = _arrow_schema(name, columns, [part.metadata])
            table = part.tables[name].select([column.name for column in columns]).cast(schema)
            pq.write_table(table, part_folder / "part-0.parquet", compression="zstd")
    _manifest(folder, "parquet")


def write_dataset_folder(folder: Path, export: Export) -> None:
    """`data/TABLE-*.parquet` and a dataset card, whose configs are the tables."""
    (folder / "data").mkdir(parents=True)
    files = {name: folder / _data_file(name) for name in export.names}
    _write_tables(
        export, lambda name, schema: pq.ParquetWriter(files[name], schema, compression="zstd")
    )
    counts = {name: pq.read_metadata(file).num_rows for name, file in files.items()}
    digests = {name: _digest(file) for name, file in files.items()}
    reports = pq.read_table(files["reports"]).to_pylist()
    (folder / "README.md").write_text(
        _card(export.default, counts, digests=digests, reports=reports), encoding="utf-8"
    )
    _manifest(folder, "hf-dataset-folder")


def _data_file(name: str) -> str:
    """Not `matrices.parquet`, which would make a report of the folder."""
    return f"data/{name}-00000-of-00001.parquet"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(
    default: str,
    counts: Mapping[str, int],
    digests: Mapping[str, str],
    reports: Sequence[Mapping[str, Any]],
) -> str:
    """The dataset card. Names from files stand in YAML that is dumped, and in code spans.

    Each config has the sha256 of its file: `datasets` knows what it loaded before by the name of
    the folder and by the configs alone, and would give the rows of another export for those of this
    one.
    """
    families = sorted({row["family"] for row in reports})
    configs: list[dict[str, object]] = [
        {
            "config_name": name,
            "description": f"One row is {TABLES[name].row}; sha256 {digests[name]}",
            "data_files": [{"split": "train", "path": _data_file(name)}],
        }
        for name in counts
    ]
    for config in configs:
        if config["config_name"] == default:
            config["default"] = True
    front = {
        "pretty_name": f"Spectra of the weights and deltas of {visible(several(families, 3))}",
        "tags": ["shadow-audit", "model-weights", "singular-values", "fine-tuning"],
        "size_categories": [_size_category(counts[default])],
        "configs": configs,
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=False, width=1000).rstrip(),
        version=__version__,
        schema=SCHEMA,
        default=default,
        tables="\n".join(
            f"| `{name}` | {count:,} | {TABLES[name].row} |" for name, count in counts.items()
        ),
        reports="\n".join(
            f"| {' | '.join(code_span(text) for text in _told(row))} |" for row in reports
        ),
    )


CARD = """---
{front}
---

# Spectra of model weights and of their deltas

Written by shadow {version} (package `shadow-audit`), schema {schema}. For every pair of a base
model and a model tuned from it: the spectrum of every weight matrix of both and of its delta
(tuned - base), and diagnostics of these spectra. `shadow schema` and the metadata of every column
say what the columns are.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", "{default}", split="train")
```

| config | rows | one row is |
|---|---|---|
{tables}

## Reports

| family | pair | base | tuned | label |
|---|---|---|---|---|
{reports}

## What it does not show

What data a model was trained on: optimiser, adapters, learning rate and novelty of the data move
these figures as much as narrowness does. What a model can or cannot do.

## Licence

None is set here: put `license:` into the front matter before you publish this, and look at the
licences of the models.
"""


def _told(row: Mapping[str, Any]) -> Iterator[str]:
    """The cells of a row of `reports` in the table of the card."""
    yield row["family"]
    yield row["pair"]
    yield _reference(row["base_repo"], row["base_commit"])
    yield _reference(row["tuned_repo"], row["tuned_commit"])
    yield row["label"] or ""


def _reference(repo: str, commit: str | None) -> str:
    if commit:
        return f"{repo}@{commit[:12]}"
    return f".../{Path(repo).name}"  # a folder's path is nobody's business


def code_span(text: str) -> str:
    """Text as inline code in a cell of a Markdown table: nothing in it is markup or a mention."""
    text = visible(text).replace("|", "\\|")
    if not text.strip():
        return ""
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (max(map(len, re.findall("`+", text))) + 1)
    return f"{fence} {text} {fence}"


def _size_category(rows: int) -> str:
    """As the Hub words it."""
    if rows < 1000:
        return "n<1K"
    steps = ((10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((word for limit, word in steps if rows < limit), "10M<n<100M")
