"""`summary.json`: when the one in a report may be believed.

Making a summary of a small report takes 150 ms, reading one 3. So a summary is taken as it stands when it was made by
this very code, from these very files, and nobody has changed it since:

- `made_by` in it is the version of shadow and a sha256 over its code and the data that summaries rest on: a checkout
  changes without its version.
- `made_from` in it has the sha256 of the bytes of each table that it was made from. The footer of a Parquet file would
  not do: it holds no checksum of the pages, so that a number can change without it. And it would save little: a
  sha256 reads more than 1 GB a second.
- matrices.parquet, which is written last, has in its metadata a sha256 of the summary. An edited summary does not fit
  to that, and an edited table not to `made_from`.

In every other case the summary is made again from the tables. This is a seal and no signature: who writes all files
anew can say in them what he likes, as he can in the tables themselves. What a summary holds is therefore checked as
that of any file is. Scores are not sealed: they lie in scores.json, and are checked with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from shadow import __version__
from shadow.gains import MEASURED_BY_OTHERS, NO_SCORES
from shadow.names import registry_folder

FILE = "summary.json"
SUMMARISED = ("matrices", "tensors", "residual")  # the tables that a summary is made from
SEAL = "summary"  # the key of the seal in a report's metadata
MADE_BY, MADE_FROM = "made_by", "made_from"
MAX_FILE = 64_000_000  # bytes; a thousandth of it is usual
SCORED = tuple(NO_SCORES.as_json())  # the keys of what is not sealed

Shape = Any  # see `fits`


def summary_bytes(told: Mapping[str, Any], made_from: Mapping[str, str]) -> bytes:
    """`summary.json` of a summary as JSON. made_from: the sha256 of the report's tables, by name."""
    whole = {**told, MADE_BY: _maker(), MADE_FROM: {name: made_from[name] for name in SUMMARISED if name in made_from}}
    return json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n"


def seal(told: Mapping[str, Any]) -> str:
    """A sha256 of a summary as JSON, whatever scores joined it."""
    kept = {name: value for name, value in told.items() if name not in (*SCORED, MADE_BY, MADE_FROM)}
    claims = {**kept["claims"], "not_shown": _without_scores(kept["claims"]["not_shown"])}
    return hashlib.sha256(json.dumps({**kept, "claims": claims}, sort_keys=True).encode()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each table that a summary is made from, of those that are there. Raises OSError."""
    found = {}
    for name in SUMMARISED:
        with contextlib.suppress(FileNotFoundError), (folder / f"{name}.parquet").open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def believed(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary.json of a finished report, its scores left out; None where it may not be believed.

    metadata are the report's, as they stand in matrices.parquet. What the values are is not checked: see `fits`.
    """
    path = folder / FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        told: dict[str, Any] = json.loads(raw) if len(raw) <= MAX_FILE else {}
        if told[MADE_BY] != _maker() or told[MADE_FROM] != digests(folder) or seal(told) != metadata.get(SEAL):
            return None
        claims = {**told["claims"], "not_shown": _without_scores(told["claims"]["not_shown"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # such as of a report that was made before there were seals
    kept = {name: value for name, value in told.items() if name not in (*SCORED, MADE_BY, MADE_FROM)}
    return {**kept, "claims": claims}


def _without_scores(not_shown: list[str]) -> list[str]:
    return [text for text in not_shown if text != MEASURED_BY_OTHERS]


@cache
def _maker() -> dict[str, str]:
    """The version, and a sha256 over the code of the package and the data that summaries rest on."""
    package, data = Path(__file__).parent, registry_folder()
    digest = hashlib.sha256()
    for path in (*sorted(package.rglob("*.py")), data / "names.yaml", *sorted((data / "reference").iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {"version": __version__, "code": digest.hexdigest()}


def fits(value: Any, shape: Shape) -> bool:
    """Is a value from JSON of a shape? Of a type, a union of types (a tuple), a list, or a mapping.

    A list of one shape may have any length, of several as many values. A mapping has the keys of its shape, or any keys
    where that is {str: shape}. A float may be a whole number, and a number is finite.
    """
    if isinstance(shape, list):
        shapes = shape * len(value) if len(shape) == 1 and isinstance(value, list) else shape
        return isinstance(value, list) and len(value) == len(shapes) and all(map(fits, value, shapes))
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(one, shape[str]) for one in value.values())
        return value.keys() == shape.keys() and all(fits(value[name], shape[name]) for name in shape)
    if shape is float:
        return type(value) in (int, float) and math.isfinite(value)
    return value is None if shape is None else type(value) is shape
