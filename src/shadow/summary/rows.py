"""The rows of a summary, as frozen dataclasses, and how `summary.json` is read back into them.

The order of the fields is the order of the keys in `summary.json`. A row that is put together from
several parts inherits from them, and a dataclass has the fields of its last base first: hence the
order of the bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
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

from shadow.reports.metadata import CheckpointMetadata
from shadow.summary.figures import DepthFigures, LayerMedians, Medians

Bounds = tuple[float, float] | None
WarningCode = Literal["experts_renumbered", "few_values", "older_report"]


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
class GridRow:
    """One module over the layers of a component."""

    component: str
    module: str
    layers: list[int]
    """That have it, ascending."""
    relative_norm: list[float | None]
    """Of each layer, the median over its matrices; 0 where they are identical."""
    concentration: list[float | None]
    """The same; None where nothing changed or there is no null."""


@dataclass(frozen=True)
class SkippedRow:
    """The tensors that were not measured for one reason."""

    reason: str
    tensors: int
    base: int
    tuned: int
    examples: list[str]
    detail: str | None
    """Of the first tensor that has one."""


@dataclass(frozen=True)
class Energies:
    """How much of the update a group of matrices holds."""

    energy: float | None
    """Sum of squared Frobenius norms."""
    energy_share: float | None
    """Of the whole update, 0 to 1."""


@dataclass(frozen=True)
class Intervals:
    """The intervals of a row's figures over layers."""

    intervals: Mapping[str, Bounds]
    """(low, high) by figure; None where layers do not suffice."""
    layers: int
    interval_level: float | None
    """The probability that they may claim, 0 to 1."""
    no_interval: str | None


@dataclass(frozen=True)
class _Component:
    component: str
    tensors: int
    """Of the tuned side, with two dimensions or more."""
    identical: int
    matrices: int


@dataclass(frozen=True)
class ParameterShare:
    """How large a group of matrices is, beside how much of the update it holds."""

    parameter_share: float | None
    """Of the parameters of the matrices that changed, 0 to 1."""


@dataclass(frozen=True)
class ComponentRow(ParameterShare, Intervals, DepthFigures, Energies, Medians, _Component):
    """What became of one component."""


@dataclass(frozen=True)
class _Module:
    component: str
    module: str
    matrices: int
    parameters: int


@dataclass(frozen=True)
class ModuleRow(ParameterShare, Intervals, Energies, Medians, _Module):
    """The figures of one module of a component."""


@dataclass(frozen=True)
class LayerRow:
    """The figures of one compared layer of a component; relative norm 0 of an identical one."""

    component: str
    layer: int
    matrices: int
    relative_norm: float | None
    """Of all of them as one vector."""
    energy: float | None
    energy_share: float | None
    """Of the component's layers, 0 to 1."""
    concentration: float | None
    effective_rank_shift: float | None
    spikes: float | None
    up_effective_rank_shift: float | None
    """Of the MLP up-projections; the median of several experts."""


@dataclass(frozen=True)
class CoherenceRow:
    """How coherent the changes of one module inside layers are, comparable over shapes."""

    component: str
    module: str
    matrices: int
    coherent: int
    """Of these, matrices that have equivalent_directions."""
    equivalent_directions: float | None
    """Median; as coherent as so many equally strong directions, no count of directions. Matrices
    above their short side count as above it; None where they are half or more.
    """
    above_short_side: int = 0
    """Of these, matrices that are less coherent than a change along all directions of their short
    side alike, and have no equivalent_directions for that reason.
    """
    short_side: int | None = None
    """Of the largest, how many directions a matrix has."""


@dataclass(frozen=True)
class QuarterRow:
    """A quarter of a component's depth: its layers in order, divided as evenly as they can be."""

    component: str
    quarter: int
    first_layer: int
    last_layer: int
    energy_share: float
    """Of the component's layers, 0 to 1."""
    parameter_share: float | None = None
    """Of their matrices that changed, 0 to 1; None in a report made before there was one."""


@dataclass(frozen=True)
class UnchangedExpertsRow:
    """Experts of a component of which some tensors are identical, in layers that changed."""

    component: str
    tensors: int
    of: int
    """All tensors of experts in these layers that were compared."""


@dataclass(frozen=True)
class UnchangedRow:
    """A module of which every matrix that was compared is identical."""

    component: str
    module: str
    tensors: int


@dataclass(frozen=True)
class VectorFigures:
    """What became of the vectors: biases and norms, of which only the relative norm is taken."""

    compared: int
    """That both sides have in one size."""
    changed: int
    relative_norm: float | None
    """Median over those that changed; None where none did, or all are 0 in the base."""
    relative_norm_of_all: float | None
    """Median over all that were compared, 0 of one that did not change."""
    furthest: str | None = None
    """The tensor that moved far more than any other vector; None where none did."""
    furthest_norm: float | None = None
    """Its relative norm."""
    moved: Mapping[str, list[int]] = field(default_factory=dict)
    """By component with vectors that changed, the layers that have one."""


@dataclass(frozen=True)
class UncomparedRow:
    """Tensors that could not be compared for one reason, of one module or of whole layers."""

    reason: str
    """only_in_base, only_in_tuned, shape_differs or nonfinite, as in shadow.reasons."""
    side: str
    """The side that has them, or whose numbers are not finite: base, tuned or both."""
    component: str
    module: str | None
    """The module; None for whole layers."""
    layers: list[int]
    tensors: int
    base_shape: list[int] | None
    tuned_shape: list[int] | None


@dataclass(frozen=True)
class BrokenRow:
    """Tensors of one side that no training leaves so."""

    code: str
    """nonfinite, all_zero or empty."""
    side: str
    """base or tuned."""
    count: int
    tensors: list[str]
    """The first names, in the order of the model."""


@dataclass(frozen=True)
class VocabularyRow:
    """An embedding or a head with more rows on one side; the rows that both have are compared."""

    component: str
    module: str
    base_rows: int
    tuned_rows: int
    added: int
    """tuned_rows - base_rows; below 0 where rows were taken away."""


@dataclass(frozen=True)
class ReplacedRow:
    """Matrices of one module that have little in common with the base's."""

    component: str
    module: str
    layers: list[int]
    """Ascending; empty outside the layers."""
    matrices: int


@dataclass(frozen=True)
class AloneRow:
    """Medians over the matrices of a component that have no base."""

    component: str
    matrices: int
    stable_rank: float | None
    effective_rank: float | None
    participation_ratio: float | None
    """Directions, 1 or more."""


@dataclass(frozen=True)
class _Outside:
    component: str
    module: str
    matrices: int
    poolers: int
    """How many of them are of a pooler, as BERT has, by their names; their module is head."""


@dataclass(frozen=True)
class OutsideRow(LayerMedians, _Outside):
    """Medians over the changed matrices of one module outside the layers, such as the head."""

    above_short_side: int = 0
    """Matrices above their short side, as in CoherenceRow."""
    short_side: int | None = None
    """Of the largest, how many directions a matrix has."""


@dataclass(frozen=True)
class FileRow:
    """A file that is not the same on both sides."""

    path: str
    kind: str
    state: str
    """changed, added, removed or unknown."""
    differs: list[str]
    """What differs in it, in words: keys of a config, `chat_template`, `vocabulary`."""
    detail: str | None


@dataclass(frozen=True)
class FilesRecord:
    """The files of both sides. One that both have counts once."""

    counts: Mapping[str, int]
    """Files by state: changed, added, removed, unknown, same."""
    kinds: Mapping[str, Mapping[str, int]]
    """The same counts by kind."""
    rows: list[FileRow]
    """Files that are not the same, those first in which something differs; at most 40."""


@dataclass(frozen=True)
class PublishedPlace:
    """The rank of the mean relative norm of a tensor among other families."""

    value: float
    below: int
    """Families whose median is smaller."""
    families: int
    """All that it is ranked among, 1 or more."""
    least: float
    most: float


ALONE = ("stable_rank", "effective_rank", "participation_ratio")
BY_LAYER = ("concentration", "effective_rank_shift", "spikes")  # the medians of a LayerRow

Row = TypeVar("Row")


def row_of(kind: type[Row], *parts: Mapping[str, object]) -> Row:
    """A row from mappings that together have its fields; a later one goes before an earlier one."""
    columns: dict[str, object] = {}
    for part in parts:
        columns |= part
    return kind(**columns)


def read_as(kind: type[Row], value: object) -> Row:
    """A dataclass from its JSON. Raises TypeError where the JSON is not of its shape.

    The types of the fields say what the shape is: no key may lack or be too many, but for fields
    that have a default; a float may be a whole number, a number is finite, and a boolean is none.

    pydantic would do the same, and takes 100 ms to import: a summary is read in 10.
    """
    row: Row = _reader(cast(Any, kind))(value)
    return row


def _require(holds: bool) -> None:
    if not holds:
        raise TypeError


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads values of a type: it is looked at once, and a summary has a thousand values of a
    dozen types. Types of scores, which are not read here, have none.
    """
    if is_dataclass(kind) or is_typeddict(kind):
        return _reader_of_fields(kind)
    origin, parts = get_origin(kind), get_args(kind)
    readers = [_reader(part) for part in parts] if origin is not Literal else []

    def exactly(value: Any) -> Any:
        _require(type(value) is kind)
        return value

    def number(value: Any) -> Any:
        _require(type(value) in (int, float) and -math.inf < value < math.inf)
        return value

    def choice(value: Any) -> Any:
        _require(type(value) is str and value in parts)
        return value

    def optional(value: Any) -> Any:
        return None if value is None else readers[0](value)

    def items(value: Any) -> Any:
        _require(isinstance(value, list))
        return list(map(readers[0], value))

    def fixed(value: Any) -> Any:
        _require(isinstance(value, list) and len(value) == len(readers))
        return tuple(reader(item) for reader, item in zip(readers, value, strict=True))

    def mapping(value: Any) -> Any:
        _require(isinstance(value, dict))
        return {name: readers[1](inner) for name, inner in value.items()}

    def either(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except TypeError:
                continue
        raise TypeError

    if kind is float:
        return number
    if origin in (Union, UnionType):
        return optional if len(parts) == 2 and parts[1] is NoneType else either
    return {Literal: choice, list: items, tuple: fixed, Mapping: mapping}.get(origin, exactly)


def _reader_of_fields(kind: Any) -> Callable[[Any], Any]:
    """What reads a dataclass or a TypedDict."""
    types = get_type_hints(kind)
    optional = {
        column.name
        for column in (fields(kind) if is_dataclass(kind) else ())
        if column.default is not MISSING or column.default_factory is not MISSING
    }
    readers = {name: _reader(hint) for name, hint in types.items()}
    required = types.keys() - optional

    def read(value: Any) -> Any:
        _require(isinstance(value, dict) and required <= value.keys() <= readers.keys())
        return kind(**{name: readers[name](inner) for name, inner in value.items()})

    return read
