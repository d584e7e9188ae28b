"""The rows of a summary, as frozen dataclasses, and how `summary.json` is read back into them.

The order of the fields is the order of the keys in `summary.json`. A row that is put together from several parts
inherits from them, and a dataclass has the fields of its last base first: hence the order of the bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

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
    text: str


@dataclass(frozen=True)
class Claims:
    """What may be said of a pair and what may not."""

    measured: list[str]
    consistent_with: list[str]
    not_shown: list[str]


@dataclass(frozen=True)
class GridRow:
    """One module over the layers of a component."""

    component: str
    module: str
    layers: list[int]  # that have it, ascending
    relative_norm: list[float | None]  # of each layer, the median over its matrices; 0 where they are identical
    concentration: list[float | None]  # the same; None where nothing changed or there is no null


@dataclass(frozen=True)
class SkippedRow:
    """The tensors that were not measured for one reason."""

    reason: str  # of shadow.reasons
    tensors: int  # of both sides
    base: int
    tuned: int
    examples: list[str]  # names of the first few tensors
    detail: str | None  # of the first tensor that has one


@dataclass(frozen=True)
class Medians:
    """Medians over the delta rows of a group of matrices, each counted once; None where no row has the figure.

    The columns of the same names in matrices.parquet say what each is.
    """

    relative_norm: float | None  # 0 or more; of a component: of all its matrices as one vector
    concentration: float | None  # below 0 flatter than the null, 0 as the null, 1 of rank one
    participation_ratio: float | None  # directions, 1 or more
    null_participation_ratio: float | None  # directions, 1 or more
    participation_share: float | None  # participation_ratio over the null's
    stable_rank: float | None  # 1 or more
    effective_rank: float | None  # 1 or more
    effective_rank_shift: float | None  # of tuned against base, signed
    top4_energy: float | None  # share, 0 to 1
    spikes: float | None  # singular values above the null's edge
    spike_energy: float | None  # share, 0 to 1
    cosine: float | None  # of base and tuned, -1 to 1
    floor_ratio: float | None  # times the rounding of the storage


@dataclass(frozen=True)
class Energies:
    """How much of the update a group of matrices holds."""

    energy: float | None  # sum of squared Frobenius norms
    energy_share: float | None  # of the whole update, 0 to 1


@dataclass(frozen=True)
class DepthFigures:
    """How evenly the update lies over the layers of a component; None where it has no energy there."""

    depth_layers: int  # layers that were compared
    depth_entropy: float | None  # 0 one layer, 1 all alike
    depth_gini: float | None  # 0 all alike, towards 1 one layer
    effective_layers: float | None  # 1 to depth_layers
    attention_to_mlp: float | None  # ratio of energies


@dataclass(frozen=True)
class Intervals:
    """The intervals of a row's figures over layers."""

    intervals: Mapping[str, Bounds]  # (low, high) by figure; None where layers do not suffice
    layers: int  # how many they are over
    interval_level: float | None  # the probability that they may claim, 0 to 1
    no_interval: str | None  # why there are none


@dataclass(frozen=True)
class _Component:
    component: str
    tensors: int  # of the tuned side, with two dimensions or more
    identical: int  # of these
    matrices: int  # that changed


@dataclass(frozen=True)
class ParameterShare:
    """How large a group of matrices is, beside how much of the update it holds."""

    parameter_share: float | None  # of the parameters of the matrices that changed, 0 to 1


@dataclass(frozen=True)
class ComponentRow(ParameterShare, Intervals, DepthFigures, Energies, Medians, _Component):
    """What became of one component."""


@dataclass(frozen=True)
class _Module:
    component: str
    module: str
    matrices: int  # that changed
    parameters: int  # of these


@dataclass(frozen=True)
class ModuleRow(ParameterShare, Intervals, Energies, Medians, _Module):
    """The figures of one module of a component."""


@dataclass(frozen=True)
class LayerRow:
    """The figures of one compared layer of a component. A layer that is identical has a relative norm of 0."""

    component: str
    layer: int
    matrices: int  # that changed
    relative_norm: float | None  # of all of them as one vector
    energy: float | None  # sum of squared Frobenius norms
    energy_share: float | None  # of the component's layers, 0 to 1
    concentration: float | None  # median
    effective_rank_shift: float | None  # median
    spikes: float | None  # median
    up_effective_rank_shift: float | None  # of the MLP up-projections; the median of several experts
    reading_participation_ratio: float | None  # directions of the residual stream
    writing_participation_ratio: float | None  # directions of the residual stream


@dataclass(frozen=True)
class CoherenceRow:
    """How coherent the changes of one module inside layers are, comparable over shapes."""

    component: str
    module: str
    matrices: int  # that changed
    coherent: int  # of these, matrices that have equivalent_directions
    equivalent_directions: float | None  # median; as coherent as so many equal directions, no count of directions


@dataclass(frozen=True)
class QuarterRow:
    """A quarter of the depth of a component: its layers in order, as evenly divided as they can be."""

    component: str
    quarter: int  # 1 to 4
    first_layer: int
    last_layer: int
    energy_share: float  # of the component's layers, 0 to 1
    parameter_share: float | None = None  # of their matrices that changed, 0 to 1; None: made before there was one


@dataclass(frozen=True)
class UnchangedRow:
    """A module of which every matrix that was compared is identical."""

    component: str
    module: str
    tensors: int


@dataclass(frozen=True)
class AloneRow:
    """Medians over the matrices of a component that have no base."""

    component: str
    matrices: int
    stable_rank: float | None
    effective_rank: float | None
    participation_ratio: float | None


@dataclass(frozen=True)
class OutsideRow:
    """Medians over the changed matrices of one module outside the layers: embeddings, head, projectors.

    The columns of the same names in matrices.parquet say what each is.
    """

    component: str
    module: str
    matrices: int
    kept: float | None
    relative_norm: float | None
    relative_norm_unrounded: float | None
    excess_purity: float | None
    excess_purity_unrounded: float | None
    equivalent_directions: float | None
    spikes_sharp: float | None
    decay_cosine: float | None
    energy_share: float | None


@dataclass(frozen=True)
class PublishedCheck:
    """A published figure of the pair, and ours by the same definition."""

    figure: str  # of shadow.findings.published.DEFINITIONS
    published: float
    ours: float | None  # None: reason
    tolerance: float  # the difference up to which they agree
    agrees: bool | None  # None: not compared
    reason: str | None  # why they are not of the same tensors


@dataclass(frozen=True)
class PublishedPair:
    """The pair as others measured it, whatever the commits."""

    base: str  # as the table has it
    tuned: str
    agrees: bool | None  # all figures that are compared; None: none is
    checks: list[PublishedCheck]


@dataclass(frozen=True)
class PublishedPlace:
    """The rank of a figure among other families, each with the median of its pairs."""

    value: float  # of the pair of the report
    below: int  # families whose median is smaller
    families: int  # all that it is ranked among, 1 or more
    pairs: int  # of these families
    least: float  # median of a family
    most: float


@dataclass(frozen=True)
class PublishedFigures:
    """What figures that others published of released pairs say beside a report's."""

    source: str
    pair: PublishedPair | None  # None: others have not published it
    size: PublishedPlace | None  # by mean_relative_norm
    no_size: str | None  # why there is none
    top20: PublishedPlace | None  # by mean_top20_energy, among pairs of about its size
    no_top20: str | None  # why there is none
    within: float  # the factor that is about its size


MEDIANS = tuple(field.name for field in fields(Medians))
ALONE = ("stable_rank", "effective_rank", "participation_ratio")
BY_LAYER = ("concentration", "effective_rank_shift", "spikes")  # the medians of a LayerRow

Row = TypeVar("Row")


def row_of(kind: type[Row], *parts: Mapping[str, object]) -> Row:
    """A row from mappings that together have its fields; a later one goes before an earlier one."""
    columns: dict[str, Any] = {}
    for part in parts:
        columns |= part
    return kind(**columns)


def read_as(kind: type[Row], value: object) -> Row:
    """A dataclass from its JSON. Raises TypeError where the JSON is not of its shape.

    The types of the fields say what the shape is: no key may lack or be too many, but for fields that have a default;
    a float may be a whole number, a number is finite, and a boolean is none.
    """
    found: Row = _reader(cast(Any, kind))(value)
    return found


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads values of a type: it is looked at once, and a summary has a thousand values of a dozen types."""
    if kind is float:
        return _read_number
    if kind in (str, bool, int, NoneType):
        return partial(_read_exactly, kind)
    if is_dataclass(kind) or is_typeddict(kind):
        types, required = _fields(kind)
        return partial(_read_fields, kind, {name: _reader(one) for name, one in types.items()}, required)
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


def _read_fields(kind: Any, readers: Mapping[str, Callable[[Any], Any]], required: frozenset[str], value: Any) -> Any:
    if not isinstance(value, dict) or not required <= value.keys() <= readers.keys():
        raise TypeError
    return kind(**{name: readers[name](one) for name, one in value.items()})


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
    return [reader(one) for one in value]


def _read_tuple(readers: Sequence[Callable[[Any], Any]], value: Any) -> Any:
    if not isinstance(value, list) or len(value) != len(readers):
        raise TypeError
    return tuple(reader(one) for reader, one in zip(readers, value, strict=True))


def _read_mapping(reader: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError
    return {name: reader(one) for name, one in value.items()}


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of the fields of a dataclass or a TypedDict, and which must be there."""
    types = get_type_hints(kind)
    if is_typeddict(kind):
        return types, frozenset(types)
    optional = {one.name for one in fields(kind) if one.default is not MISSING or one.default_factory is not MISSING}
    return types, frozenset(types) - optional
