"""Contents of the `shadow` key of a report's files: types that `reports.provenance` has checked.

Of a key that is not required no reader may rely on the type: another program may have written it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

METADATA_KEY = b"shadow"

Side = Literal["base", "tuned"]
SIDES: tuple[Side, Side] = ("base", "tuned")


class CheckpointMetadata(TypedDict):
    """Identity of the checkpoint on one side."""

    repo: str
    commit: str | None  # None for a folder
    fingerprint: str | None
    content: NotRequired[str | None]  # a sha256; None where not all of it was read


class MethodMetadata(TypedDict):
    """Method by which spectra were computed."""

    level: str
    seed: NotRequired[object]  # where a report of 0.2 had another than 0
    subjects: NotRequired[object]  # absent for all


class SettingsMetadata(TypedDict):
    """Settings that numbers depend on, besides the checkpoints and the version."""

    method: MethodMetadata
    chosen: NotRequired[Mapping[str, object] | None]
    spectra: NotRequired[object]
    device: NotRequired[object]  # absent for cpu
    relation: NotRequired[object]


class SealMetadata(TypedDict):
    """Origin of the summary beside the tables: see `shadow.telling.reading`."""

    made_by: Mapping[str, str]  # version, and code: a sha256
    tables: Mapping[str, str]  # a sha256 of each table
    summary: str  # a sha256


class RunMetadata(TypedDict):
    """Making and summary of a report: no number depends on it."""

    compute_dtype: NotRequired[object]
    device: NotRequired[object]  # cpu, cuda or mps
    device_use: NotRequired[object]  # of a card: {"name": what its maker calls it}
    libraries: NotRequired[Mapping[str, object] | None]
    started: NotRequired[object]
    seconds: NotRequired[float | None]  # 0 or more
    gates: NotRequired[object]
    seal: NotRequired[object]  # SealMetadata


class ReportMetadata(RunMetadata):
    """All of it."""

    version: str
    schema: int
    family: str
    pair: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    settings: SettingsMetadata


def metadata_in(content: bytes) -> Any:
    """The JSON under METADATA_KEY; a number that is not finite, which no audit writes, is None."""
    metadata = json.loads(content, parse_constant=lambda _: None)
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # which a check of it meets
        method = metadata["settings"]["method"]
        if "level" not in method:  # a report of 0.2 says `precision` and `subjects`
            precision = method.pop("precision")
            method["level"] = "full" if precision == "default" else precision
            if method.get("subjects") == "none":
                method["level"] = "norms"
                del method["subjects"]
            method.pop("subspaces", None)
            if not method.get("seed"):
                method.pop("seed", None)
    return metadata
