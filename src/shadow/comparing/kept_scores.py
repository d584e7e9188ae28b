"""`scores.json` beside a report: what a pair gained, bound to its two checkpoints.

summary.json shows it, and no other file of the report knows of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow.comparing.gains import NO_SCORES, Gain, Scored
from shadow.comparing.scores import LARGEST, MAX_FILE, ScoreFile
from shadow.errors import ShadowError
from shadow.files import read_start
from shadow.reports.atomic_replacement import KEPT
from shadow.reports.metadata import SIDES, CheckpointMetadata, ReportMetadata

KEPT_SCHEMA = 1  # of that file


@dataclass(frozen=True)
class _Kept:
    """The keys of that file that are read here."""

    scores: list[Gain]
    score_files: list[ScoreFile]
    score_notes: list[str]


def kept_bytes(scored: Scored, metadata: ReportMetadata) -> bytes:
    """`scores.json` of a report whose metadata these are."""
    kept = {
        "schema": KEPT_SCHEMA,
        "family": metadata["family"],
        "pair": metadata["pair"],
        "base": _named(metadata["base"]),
        "tuned": _named(metadata["tuned"]),
        **scored.as_json(),
    }
    return json.dumps(kept, indent=2, allow_nan=False).encode() + b"\n"


def _named(side: CheckpointMetadata) -> dict[str, str | None]:
    """Which checkpoint a side is: what every report says of it."""
    return {"repo": side["repo"], "commit": side["commit"], "fingerprint": side["fingerprint"]}


def read_kept(folder: Path, metadata: ReportMetadata) -> Scored:
    """The scores beside a report; none where there is no such file.

    Raises ShadowError when the file is broken, or is of other checkpoints than the report.
    """
    path = folder / KEPT
    hint = "audit again with --scores, or remove it"
    try:
        raw = read_start(path, MAX_FILE + 1)
        if raw is None:
            return NO_SCORES
        stored = json.loads(raw)
        if stored["schema"] != KEPT_SCHEMA:
            schema = str(stored["schema"])[:20]
            raise ShadowError(
                f"{path}: scores of schema {schema!r}, this version reads {KEPT_SCHEMA}", hint
            )
        scored = _scored(stored)
        same = all(_named(stored[side]) == _named(metadata[side]) for side in SIDES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShadowError(
            f"{path}: not scores kept by shadow ({type(error).__name__})", hint
        ) from error
    if not same:
        raise ShadowError(f"{path}: scores of other checkpoints than the report's", hint)
    return scored


def _scored(stored: dict[str, Any]) -> Scored:
    """The scores in JSON, every value of its type. Raises KeyError, TypeError or ValueError."""
    from pydantic import TypeAdapter

    # in JSON's own words a row may be a mapping, and a float a whole number
    kept = TypeAdapter(_Kept).validate_json(json.dumps(stored), strict=True)
    for gain in kept.scores:
        numbers = (value for value in vars(gain).values() if isinstance(value, float))
        if not all(abs(value) <= 2 * LARGEST for value in numbers):
            raise ValueError
    return Scored(tuple(kept.score_files), tuple(kept.scores), tuple(kept.score_notes))
