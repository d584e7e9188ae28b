"""The rows of `summary.json` by their place in it, as columns.yaml lists them, and their reading.

A row is a map from key to value; its place says which keys it has, in which order and of which
type. What docs say of each key stands in columns.yaml and words.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from shadow.reports.columns import SUMMARY
from shadow.reports.metadata import CheckpointMetadata

Bounds = tuple[float, float] | None
WarningCode = Literal["experts_renumbered", "older_report"]
KINDS: Mapping[str, Any] = {
    "": float | None,
    "number": float,
    "numbers": list[float | None],
    "int": int,
    "int?": int | None,
    "ints": list[int],
    "text": str,
    "text?": str | None,
    "texts": list[str],
    "bounds": Mapping[str, Bounds],
    "layers": Mapping[str, list[int]],
}
"""The types of values, as columns.yaml calls them."""


def _kinds(keys: str) -> dict[str, Any]:
    """The type of each key of a list, with the keys of the lists that it names."""
    kinds: dict[str, Any] = {}
    for key in keys.split():
        name, _, kind = key.partition(":")
        kinds |= _kinds(SUMMARY[name[1:]]) if name[0] == "*" else {name: KINDS[kind]}
    return kinds


SHAPES = {place: _kinds(keys) for place, keys in SUMMARY.items()}
MEDIANS, LAYER_MEDIANS = tuple(SHAPES["medians"]), tuple(SHAPES["layer_medians"])


class Row(dict[str, Any]):
    """Values by key, which are its attributes too."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def row(place: str, /, *parts: Mapping[str, Any], **more: Any) -> Row:
    """The row of a place, its keys in their order; a later part goes before an earlier one."""
    values: dict[str, Any] = {}
    for part in (*parts, more):
        values |= part
    return Row((key, values[key]) for key in SHAPES[place])


class CheckpointSide(TypedDict):
    """One checkpoint of a pair."""

    repo: str  # its name on the Hub, or its folder
    commit: str | None  # that was read; None for a folder
    fingerprint: str | None  # a hash of its files
    content: str | None  # a hash of all its tensors; None where not all were read


def checkpoint_side(side: CheckpointMetadata) -> CheckpointSide:
    """One side of a report, by its metadata."""
    return {
        "repo": side["repo"],
        "commit": side["commit"],
        "fingerprint": side["fingerprint"],
        "content": side.get("content"),
    }


@dataclass(frozen=True)
class ReportWarning:
    """What makes the figures of a report doubtful: a code for programs, a sentence for people."""

    code: WarningCode
    text: str


@dataclass(frozen=True)
class ReplacedRow:
    """Matrices of one module that have little in common with the base's."""

    component: str
    module: str
    layers: list[int]
    """Ascending; empty outside the layers."""
    matrices: int


@dataclass(frozen=True)
class FilesRecord:
    """The files of both sides. One that both have counts once."""

    counts: Mapping[str, int]
    """Files by state: changed, added, removed, unknown, same."""
    rows: list[Row]
    """Files that are not the same, those first in which something differs; at most 40."""


Record = TypeVar("Record")


def read_as(kind: type[Record], value: object) -> Record:
    """A dataclass from its JSON. Raises TypeError where the JSON is not of its shape.

    Types of fields, and the places of rows, say what the shape is: no key may lack or be too many;
    a float may be a whole number, a number is finite, and a boolean is none.

    pydantic would do the same, and takes 100 ms to import: a summary is read in 10.
    """
    return cast(Record, _reader(cast(Any, kind), "")(value))


@cache
def _reader(kind: Any, place: str) -> Callable[[Any], Any]:
    """What reads values of a type at a place: a summary has a thousand values of a dozen types."""
    if kind is Row or is_dataclass(kind) or is_typeddict(kind):
        return _reader_of_keys(kind, place)
    if kind is float:
        return _number
    origin, parts = get_origin(kind) or kind, get_args(kind)
    readers = [_reader(part, place) for part in parts] if origin is not Literal else []
    if origin in (Union, UnionType):  # of None, its other part comes first
        return partial(_first_of, readers) if NoneType not in parts else _or_null(readers[0])

    def read(value: Any) -> Any:
        if origin is list and isinstance(value, list):
            return list(map(readers[0], value))
        if origin is tuple and isinstance(value, list) and len(value) == len(parts):
            return tuple(reader(one) for reader, one in zip(readers, value, strict=True))
        if origin is Mapping and isinstance(value, dict):
            return {key: readers[1](one) for key, one in value.items()}
        if type(value) is kind or (origin is Literal and type(value) is str and value in parts):
            return value
        raise TypeError

    return read


def _number(value: Any) -> Any:
    if not (type(value) in (int, float) and -math.inf < value < math.inf):
        raise TypeError
    return value


def _or_null(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)


def _first_of(readers: list[Callable[[Any], Any]], value: Any) -> Any:
    """What the first of the readers that can makes of it."""
    for reader in readers:
        with suppress(TypeError):
            return reader(value)
    raise TypeError


def _reader_of_keys(kind: Any, place: str) -> Callable[[Any], Any]:
    """What reads a row, a dataclass or a TypedDict."""
    types = SHAPES[place] if kind is Row else get_type_hints(kind)
    readers = {key: _reader(of, f"{place}.{key}".lstrip(".")) for key, of in types.items()}

    def read(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != readers.keys():
            raise TypeError
        return kind(**{key: reader(value[key]) for key, reader in readers.items()})

    return read
