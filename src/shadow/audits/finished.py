"""A finished report beside the audit that is asked for: what differs, in words for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shadow.checkpoints.pairing import in_ranges
from shadow.reports.columns import SCHEMA
from shadow.reports.metadata import (
    SIDES,
    CheckpointMetadata,
    ReportMetadata,
    SettingsMetadata,
    Side,
)
from shadow.reports.provenance import Identity
from shadow.text import and_more

SHOWN = 12  # characters of a commit or of a fingerprint
LONGEST = 200  # characters of a value
MANY = 5  # differences that are named
NAMES = {  # settings, by the option that sets them
    "method.precision": "--precision",
    "method.nulls": "--nulls",
    "method.seed": "--seed",
    "method.subspaces": "--subspaces",
    "spectra": "--spectra",
    "device": "--device",
    "chosen.components": "--component",
    "chosen.layers": "--layer",
    "chosen.modules": "--module",
    "relation": "relation",
}


def differences(metadata: ReportMetadata, asked: Identity, defaults: SettingsMetadata) -> list[str]:
    """What makes a report another one than was asked for, with both values; empty if nothing does.

    The version that measured it does not, nor the optimiser, on which no number depends. What its
    settings do not say was no setting yet, and is what defaults say.
    """
    if metadata["schema"] != SCHEMA:
        return [_both("schema", metadata["schema"], SCHEMA)]
    wanted = asked.as_json()
    differing = []
    if metadata["family"] != wanted["family"]:
        differing.append(_both("family", metadata["family"], wanted["family"]))
    if metadata["pair"] != wanted["pair"]:
        differing.append(_both("pair", metadata["pair"], wanted["pair"]))
    for side in SIDES:
        differing += _of_side(side, metadata[side], wanted[side])
    had = _flat(defaults) | _flat(metadata["settings"])
    now = _flat(defaults) | _flat(wanted["settings"])
    differing += [
        _both(name, had.get(key), now[key])
        for key, name in NAMES.items()
        if had.get(key) != now[key]
    ]
    return differing


def named(differing: list[str]) -> str:
    """Differences as one phrase, the first few by name."""
    return "; ".join(filter(None, [*differing[:MANY], and_more(len(differing) - MANY)]))


def _of_side(side: Side, had: CheckpointMetadata, now: CheckpointMetadata) -> Iterator[str]:
    """A checkpoint that differs, told by the first of name, commit and files that does."""
    if had["repo"] != now["repo"]:
        yield f"{side} {_end(had['repo'])}, now {_end(now['repo'])}"
    elif had["commit"] != now["commit"]:
        yield _both(f"commit of {side}", _short(had["commit"]), _short(now["commit"]))
    elif had["fingerprint"] != now["fingerprint"]:
        yield _both(
            f"files of {side}, by their hash",
            _short(had["fingerprint"]),
            _short(now["fingerprint"]),
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:SHOWN]


def _end(repo: str) -> str:
    """A checkpoint's name; of a long path the end, by which paths differ."""
    return repo if len(repo) <= LONGEST else f"...{repo[3 - LONGEST :]}"


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by their path: `method.seed`."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _both(name: str, had: object, now: object) -> str:
    return f"{name} {_said(had)}, now {_said(now)}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        are_numbers = all(type(item) is int for item in value)
        value = (in_ranges(value) if are_numbers else ", ".join(map(str, value))) or "all"
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
