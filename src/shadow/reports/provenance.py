"""The `shadow` key of a report's files: what was measured, with which settings and version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadow import __version__
from shadow.errors import ShadowError
from shadow.files import PARTIAL
from shadow.reports.columns import SCHEMA, TABLES
from shadow.reports.replacement import _put_in_place

METADATA_KEY = b"shadow"


@dataclass(frozen=True)
class Identity:
    """What the numbers of a report depend on: equal identities give equal data."""

    version: str
    schema: int
    family: str
    pair: str
    base: Mapping[str, str | None]
    tuned: Mapping[str, str | None]
    settings: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def is_that_of(self, header: Any) -> bool:
        """Are the numbers of a journal with this first line ours? No number depends on the optimiser."""
        mine = self.as_json()
        mine["settings"].pop("optimizer", None)
        if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
            return False
        theirs = {name: value for name, value in header["settings"].items() if name != "optimizer"}
        return bool({**header, "settings": theirs} == mine)


def finished_metadata(folder: Path) -> dict[str, Any] | None:
    """The provenance of the finished report in a folder; None when there is none.

    Of a report of another schema only the schema is checked. Raises ShadowError for a report that cannot be read.
    Whoever reads a report asks this first: a replacement that was killed half-way is completed here.
    """
    _put_in_place(folder)
    path = folder / "matrices.parquet"
    if not path.is_file() or not (folder / "summary.json").is_file():
        return None
    try:
        schema = pq.read_schema(path)
        metadata = json.loads((schema.metadata or {})[METADATA_KEY], parse_constant=lambda _: None)
        if type(metadata["schema"]) is int and metadata["schema"] != SCHEMA:
            return dict(metadata)  # another version's; check_schema says so
        _check_metadata(metadata)
        if missing := TABLES["matrices"].first - set(schema.names):
            raise KeyError(*missing)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        message = f"{path}: not a report of shadow ({type(error).__name__})"
        raise ShadowError(message, "name a folder that `shadow audit` made") from error
    return dict(metadata)


def _check_metadata(metadata: Any) -> None:
    """Raises TypeError or KeyError where metadata are not of the types that every reader of a report may rely on."""
    settings = metadata["settings"]
    texts = [metadata[key] for key in ("version", "family", "pair")]
    texts += [metadata[side]["repo"] for side in ("base", "tuned")]
    texts.append(settings["method"]["precision"])
    maybe = [metadata[side][key] for side in ("base", "tuned") for key in ("commit", "fingerprint")]
    if not all(isinstance(text, str) for text in (*texts, *(text for text in maybe if text is not None))):
        raise TypeError
    mappings = settings["method"], settings.get("chosen") or {}, metadata.get("libraries") or {}
    if type(metadata["schema"]) is not int or not all(isinstance(one, dict) for one in mappings):
        raise TypeError
    seconds = metadata.get("seconds") or 0.0
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise TypeError


def required_metadata(folder: Path) -> dict[str, Any]:
    """The provenance of the finished report in a folder.

    Raises ShadowError when the folder holds no finished report, a broken one, or one of another schema.
    """
    metadata = finished_metadata(folder) if folder.is_dir() else None
    if metadata is None:
        hint = (
            "the audit is not finished: run it again"
            if (folder / PARTIAL).is_dir()
            else "name a folder that `shadow audit` made"
        )
        raise ShadowError(f"{folder}: no finished report in it", hint)
    check_schema(folder, metadata)
    return metadata


def check_schema(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a report whose columns mean something else than this version's."""
    if metadata["schema"] != SCHEMA:
        newer = metadata["schema"] > SCHEMA
        maker = metadata.get("version")
        made = (
            f"shadow {maker}"
            if isinstance(maker, str) and len(maker) < 40 and maker.isprintable()
            else "another version of shadow"
        )
        raise ShadowError(
            f"{folder}: a report of schema {str(metadata['schema'])[:12]}, made by {made}; this is shadow "
            f"{__version__}, which reads schema {SCHEMA}",
            "pip install --upgrade shadow-audit" if newer else f"audit the pair again, or read it with {made}",
        )
