"""The `shadow` key of a report's files: what was measured, with which settings and version.

Readers must not rely on the type of a key that is not required: another program may have written
it. Required keys are checked when a finished report is read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = 2  # of the report files; raised when a column goes or changes its meaning
READ = (1, SCHEMA)  # schemas that are read: 1 is that of version 0.2
METADATA_KEY = b"shadow"

Side = Literal["base", "tuned"]
SIDES: tuple[Side, Side] = ("base", "tuned")


class CheckpointMetadata(TypedDict):
    """The identity of the checkpoint on one side."""

    repo: str
    commit: str | None  # None for a folder
    fingerprint: str | None
    content: NotRequired[str | None]  # a sha256; None where not all of it was read


class SettingsMetadata(TypedDict):
    """The settings that numbers depend on, besides the checkpoints and the version."""

    method: dict[str, Any]
    """How spectra were computed: level, and subjects and seed where they are not the usual."""
    chosen: NotRequired[Mapping[str, object] | None]
    spectra: NotRequired[object]
    device: NotRequired[object]  # absent for cpu
    relation: NotRequired[object]
    by_number: NotRequired[object]  # absent unless it is true


class RunMetadata(TypedDict):
    """The making and the summary of a report: no number depends on it."""

    compute_dtype: NotRequired[object]
    device: NotRequired[object]  # cpu or cuda
    device_use: NotRequired[object]  # of a card: {"name": what its maker calls it}
    libraries: NotRequired[Mapping[str, object] | None]
    started: NotRequired[object]
    seconds: NotRequired[float | None]  # 0 or more
    gates: NotRequired[object]


class ReportMetadata(RunMetadata):
    """All metadata of a report."""

    version: str
    schema: int
    family: str
    pair: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    settings: SettingsMetadata
    correspondence: NotRequired[object]  # absent where numbers agree with content


def metadata_in(content: bytes) -> Any:
    """Parse the JSON under METADATA_KEY; numbers that are not finite, which no audit writes, are
    None.
    """
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


@dataclass(frozen=True)
class CheckpointIdentity:
    """The identity of the checkpoint on one side of a pair."""

    repo: str
    """A repository of the Hub, or a folder as it was given; of a base per component all of them."""
    commit: str | None
    """The 40 hexadecimal digits of the commit; None for a folder."""
    fingerprint: str | None
    """A sha256 of the files' names, sizes, times and headers and of a sample of every tensor; None
    where it is not told.
    """
    content: str | None = None
    """A sha256 of the names, formats, shapes and checksums of all tensors, equal for equal weights
    in any files; None where one was not read.
    """


@dataclass(frozen=True)
class Provenance:
    """The subject of a finished report, and how it was measured."""

    version: str
    schema: int
    family: str
    pair: str
    base: CheckpointIdentity
    tuned: CheckpointIdentity
    relation: str | None
    """`tuned` where the second was trained from the first, `sibling` where neither was."""
    level: str
    """How much was measured: norms, sketch (estimates), full or exact."""
    components: tuple[str, ...]
    layers: tuple[int, ...]
    """The layers that were chosen, from 0; empty for all."""
    modules: tuple[str, ...]
    recorded: ReportMetadata = field(hash=False, repr=False)
    """The `shadow` key of the report's files as it stands there, with all settings, seconds and
    libraries: what `as_json` returns.
    """

    def as_json(self) -> ReportMetadata:
        return self.recorded

    @classmethod
    def of(cls, metadata: ReportMetadata) -> Provenance:
        """The provenance in the metadata of a report, checked by `report_metadata`."""
        settings = metadata["settings"]
        chosen = chosen_in(settings)
        base, tuned = (
            CheckpointIdentity(
                side["repo"], side["commit"], side["fingerprint"], side.get("content")
            )
            for side in (metadata["base"], metadata["tuned"])
        )
        return cls(
            version=metadata["version"],
            schema=metadata["schema"],
            family=metadata["family"],
            pair=metadata["pair"],
            base=base,
            tuned=tuned,
            relation=relation if isinstance(relation := settings.get("relation"), str) else None,
            level=settings["method"]["level"],
            components=chosen.get("components", ()),
            layers=chosen.get("layers", ()),
            modules=chosen.get("modules", ()),
            recorded=metadata,
        )


def chosen_in(settings: SettingsMetadata) -> dict[str, Any]:
    """The restrictions of an audit, by name, without what no audit writes."""
    chosen: dict[str, Any] = {}
    for name, value in (settings.get("chosen") or {}).items():
        kind = int if name == "layers" else str  # True is no number here
        if isinstance(value, list):
            chosen[name] = tuple(value for value in value if type(value) is kind)
        elif type(value) is int and name not in ("components", "layers", "modules"):
            chosen[name] = value
    return {name: value for name, value in chosen.items() if value}
