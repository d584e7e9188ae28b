"""The rows of a summary, as frozen dataclasses, and how `summary.json` is read back into them.

The order of the fields is the order of the keys in `summary.json`. A row that is put together from
several parts inherits from them, and a dataclass has the fields of its last base first: hence the
order of the bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
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

from shadow.summary.figures import DepthFigures, LayerMedians, Medians

Bounds = tuple[float, float] | None
WarningCode = Literal["experts_renumbered", "few_values", "older_report", "scores_unreadable"]


class CheckpointSide(TypedDict):
    """One checkpoint of a pair."""

    repo: str  # its name on the Hub, or its folder
    commit: str | None  # that was read; None for a folder
    fingerprint: str | None  # a hash of its files


@dataclass(frozen=True)
class ReportWarning:
    """What makes the figures of a report doubtful: a code for programs, a sentence for people."""

    code: WarningCode
    """For programs."""

    text: str
    """A sentence for people."""


@dataclass(frozen=True)
class Claims:
    """What may be said of a pair and what may not."""

    measured: list[str]
    """What is measured."""

    consistent_with: list[str]
    """What would explain it; never what did."""

    not_shown: list[str]
    """What weights do not show."""


@dataclass(frozen=True)
class GridRow:
    """One module over the layers of a component."""

    component: str
    """The component."""

    module: str
    """The module."""

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
    """Of shadow.reasons."""

    tensors: int
    """Of both sides."""

    base: int
    """Of the base."""

    tuned: int
    """Of the tuned side."""

    examples: list[str]
    """Names of the first few tensors."""

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
    """How many they are over."""

    interval_level: float | None
    """The probability that they may claim, 0 to 1."""

    no_interval: str | None
    """Why there are none."""


@dataclass(frozen=True)
class _Component:
    component: str
    """The component."""

    tensors: int
    """Of the tuned side, with two dimensions or more."""

    identical: int
    """Of these."""

    matrices: int
    """That changed."""


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
    """The component."""

    module: str
    """The module."""

    matrices: int
    """That changed."""

    parameters: int
    """Of these."""


@dataclass(frozen=True)
class ModuleRow(ParameterShare, Intervals, Energies, Medians, _Module):
    """The figures of one module of a component."""


@dataclass(frozen=True)
class LayerRow:
    """The figures of one compared layer of a component. A layer that is identical has a relative
    norm of 0.
    """

    component: str
    """The component."""

    layer: int
    """The layer, from 0."""

    matrices: int
    """That changed."""

    relative_norm: float | None
    """Of all of them as one vector."""

    energy: float | None
    """Sum of squared Frobenius norms."""

    energy_share: float | None
    """Of the component's layers, 0 to 1."""

    concentration: float | None
    """Median."""

    effective_rank_shift: float | None
    """Median."""

    spikes: float | None
    """Median."""

    up_effective_rank_shift: float | None
    """Of the MLP up-projections; the median of several experts."""

    reading_participation_ratio: float | None
    """Directions of the residual stream."""

    writing_participation_ratio: float | None
    """Directions of the residual stream."""


@dataclass(frozen=True)
class CoherenceRow:
    """How coherent the changes of one module inside layers are, comparable over shapes."""

    component: str
    """The component."""

    module: str
    """The module."""

    matrices: int
    """That changed."""

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
    """The component."""

    quarter: int
    """1 to 4."""

    first_layer: int
    """Its first layer, from 0."""

    last_layer: int
    """Its last layer."""

    energy_share: float
    """Of the component's layers, 0 to 1."""

    parameter_share: float | None = None
    """Of their matrices that changed, 0 to 1; None in a report made before there was one."""


@dataclass(frozen=True)
class UnchangedRow:
    """A module of which every matrix that was compared is identical."""

    component: str
    """The component."""

    module: str
    """The module."""

    tensors: int
    """How many of the tuned side, 1 or more."""


@dataclass(frozen=True)
class VectorFigures:
    """What became of the vectors: biases and norms, of which only the relative norm is taken."""

    compared: int
    """That both sides have in one size."""

    changed: int
    """Of these."""

    relative_norm: float | None
    """Median over those that changed; None where none did, or all are 0 in the base."""

    relative_norm_of_all: float | None
    """Median over all that were compared, 0 of one that did not change."""


@dataclass(frozen=True)
class UncomparedRow:
    """Tensors that could not be compared for one reason, of one module or of whole layers."""

    reason: str
    """only_in_base, only_in_tuned, shape_differs or nonfinite, as in shadow.reasons."""

    side: str
    """The side that has them, or whose numbers are not finite: base, tuned or both."""

    component: str
    """The component."""

    module: str | None
    """The module; None for whole layers."""

    layers: list[int]
    """Ascending; empty outside the layers."""

    tensors: int
    """How many of one side, 1 or more."""

    base_shape: list[int] | None
    """Of those whose shapes differ."""

    tuned_shape: list[int] | None
    """Of those whose shapes differ."""


@dataclass(frozen=True)
class VocabularyRow:
    """An embedding or a head with more rows on one side; the rows that both have are compared."""

    component: str
    """The component."""

    module: str
    """embed or head."""

    base_rows: int
    """Of the base."""

    tuned_rows: int
    """Of the tuned side."""

    added: int
    """tuned_rows - base_rows; below 0 where rows were taken away."""


@dataclass(frozen=True)
class ReplacedRow:
    """Matrices of one module that have little in common with the base's."""

    component: str
    """The component."""

    module: str
    """The module."""

    layers: list[int]
    """Ascending; empty outside the layers."""

    matrices: int
    """1 or more."""


@dataclass(frozen=True)
class Replaced:
    """Matrices that have little in common with the base's, in a model that is close to it."""

    matrices: int
    """1 or more."""

    cosine_least: float
    """Of base and tuned, -1 to 1."""

    cosine_most: float
    """Of base and tuned, -1 to 1."""

    rows: list[ReplacedRow]
    """By module."""


@dataclass(frozen=True)
class Scaled:
    """Every changed matrix is its base times one factor."""

    matrices: int
    """That changed, 2 or more."""

    factor: float
    """What the base was multiplied by."""


@dataclass(frozen=True)
class Zeroed:
    """In every changed matrix some entries became 0, and all others stayed."""

    matrices: int
    """That changed, 2 or more."""

    share: float
    """Of the entries, those that became 0: median over matrices, 0 to 1."""


@dataclass(frozen=True)
class FewRowsRow:
    """An embedding of which only a few rows changed."""

    component: str
    """The component."""

    module: str
    """embed."""

    changed: int
    """Rows that changed."""

    rows: int
    """All that were compared."""


@dataclass(frozen=True)
class Recognised:
    """Changes that the figures show beyond doubt."""

    replaced: Replaced | None
    """None: there are no such matrices, or most are."""

    scaled: Scaled | None
    """None: the change is another."""

    zeroed: Zeroed | None
    """None: the change is another."""

    few_rows: list[FewRowsRow]
    """A row for each embedding."""


@dataclass(frozen=True)
class AloneRow:
    """Medians over the matrices of a component that have no base."""

    component: str
    """The component."""

    matrices: int
    """How many, 1 or more."""

    stable_rank: float | None
    """1 or more."""

    effective_rank: float | None
    """1 or more."""

    participation_ratio: float | None
    """Directions, 1 or more."""


@dataclass(frozen=True)
class _Outside:
    component: str
    module: str
    matrices: int
    """That changed, 1 or more."""

    poolers: int
    """How many of them are of a pooler, as BERT has, by their names; their module is head."""


@dataclass(frozen=True)
class OutsideRow(LayerMedians, _Outside):
    """Medians over the changed matrices of one module outside the layers: embeddings, head,
    projectors.
    """

    above_short_side: int = 0
    """Matrices above their short side, as in CoherenceRow."""

    short_side: int | None = None
    """Of the largest, how many directions a matrix has."""


@dataclass(frozen=True)
class PublishedCheck:
    """A published figure of the pair, and ours by the same definition."""

    figure: str
    """Of shadow.comparing.published.DEFINITIONS."""

    published: float
    """As others published it."""

    ours: float | None
    """None: reason."""

    tolerance: float
    """The difference up to which they agree."""

    agrees: bool | None
    """None: not compared."""

    reason: str | None
    """Why they are not of the same tensors."""


@dataclass(frozen=True)
class PublishedPair:
    """The pair as others measured it, whatever the commits."""

    base: str
    """As the table has it."""

    tuned: str
    """As the table has it."""

    agrees: bool | None
    """All figures that are compared; None: none is."""

    checks: list[PublishedCheck]
    """A row for each published figure."""


@dataclass(frozen=True)
class PublishedPlace:
    """The rank of a figure among other families, each with the median of its pairs."""

    value: float
    """Of the pair of the report."""

    below: int
    """Families whose median is smaller."""

    families: int
    """All that it is ranked among, 1 or more."""

    pairs: int
    """Of these families."""

    least: float
    """Median of a family."""

    most: float
    """The largest median of a family."""


@dataclass(frozen=True)
class PublishedFigures:
    """What figures that others published of released pairs say beside a report's."""

    source: str
    """Who published them, and where."""

    pair: PublishedPair | None
    """None: others have not published it."""

    size: PublishedPlace | None
    """By mean_relative_norm."""

    no_size: str | None
    """Why there is none."""

    top20: PublishedPlace | None
    """By mean_top20_energy, among pairs of about its size."""

    no_top20: str | None
    """Why there is none."""

    within: float
    """The factor that is about its size."""


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
    """
    row: Row = _reader(cast(Any, kind))(value)
    return row


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads values of a type: it is looked at once, and a summary has a thousand values of a
    dozen types.
    """
    if kind is float:
        return _read_number
    if kind in (str, bool, int, NoneType):
        return partial(_read_exactly, kind)
    if is_dataclass(kind) or is_typeddict(kind):
        types, required = _fields(kind)
        return partial(
            _read_fields, kind, {name: _reader(hint) for name, hint in types.items()}, required
        )
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return partial(_read_choice, parts)
    readers = [_reader(part) for part in parts if part is not NoneType]
    if origin in (Union, UnionType):
        return partial(_read_union, readers, NoneType in parts)
    if origin is list:
        return partial(_read_list, readers[0])
    if origin is tuple:
        return partial(_read_tuple, readers)
    if origin is Mapping:
        return partial(_read_mapping, readers[1])
    return _read_nothing


def _read_nothing(value: Any) -> Any:
    """Of the scores, which are not read here."""
    raise TypeError


def _read_exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _read_number(value: Any) -> Any:
    if type(value) not in (int, float) or not -math.inf < value < math.inf:
        raise TypeError
    return value


def _read_fields(
    kind: Any, readers: Mapping[str, Callable[[Any], Any]], required: frozenset[str], value: Any
) -> Any:
    if not isinstance(value, dict) or not required <= value.keys() <= readers.keys():
        raise TypeError
    return kind(**{name: readers[name](inner) for name, inner in value.items()})


def _read_choice(choices: tuple[Any, ...], value: Any) -> Any:
    if type(value) is not str or value not in choices:
        raise TypeError
    return value


def _read_union(readers: Sequence[Callable[[Any], Any]], may_be_none: bool, value: Any) -> Any:
    if value is None and may_be_none:
        return None
    for reader in readers:
        try:
            return reader(value)
        except TypeError:
            continue
    raise TypeError


def _read_list(reader: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, list):
        raise TypeError
    return [reader(item) for item in value]


def _read_tuple(readers: Sequence[Callable[[Any], Any]], value: Any) -> Any:
    if not isinstance(value, list) or len(value) != len(readers):
        raise TypeError
    return tuple(reader(item) for reader, item in zip(readers, value, strict=True))


def _read_mapping(reader: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError
    return {name: reader(inner) for name, inner in value.items()}


@cache
def _fields(kind: Any) -> tuple[dict[str, object], frozenset[str]]:
    """The types of the fields of a dataclass or a TypedDict, and which must be there."""
    types = get_type_hints(kind)
    if is_typeddict(kind):
        return types, frozenset(types)
    optional = {
        column.name
        for column in fields(kind)
        if column.default is not MISSING or column.default_factory is not MISSING
    }
    return types, frozenset(types) - optional
