"""The record of a pair and its rows: the content of the tables before any claim about it; and how
it is read from `summary.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from inspect import get_annotations
from typing import (
    TYPE_CHECKING,
    Any,
    Never,
    NewType,
    Self,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_type_hints,
    is_typeddict,
)

from shadow.reports.provenance import CheckpointMetadata, SettingsMetadata
from shadow.spectra.measurement import LEVELS, WITHOUT_SPECTRA

TIERS: Mapping[str, tuple[str, str]] = {
    **{level: (LEVELS[level], f"--level {level}") for level in WITHOUT_SPECTRA},
    "delta": ("spectra of deltas alone", "--subjects delta"),
    "full": ("spectra of base, tuned and delta", ""),
}
"""What was measured, and the option that asks for it; none for the usual one."""


def tier_of(settings: SettingsMetadata) -> Tier:
    """The tier of a report with these settings."""
    method = settings["method"]
    if method["level"] in WITHOUT_SPECTRA:
        return Tier(method["level"])
    return Tier("delta" if method.get("subjects") == "delta" else "full")


def not_measured(tier: str) -> str | None:
    """The reason why a figure of a tier is null; None if all were measured."""
    how, option = TIERS[tier]
    return f"the report has {how}: it was made with {option}" if option else None


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Row(dict[str, Any]):
    """Values by key, which are also attributes: those that the class annotates, in that order.

    It is a dict, so that it costs nothing to import and JSON can write it. mypy checks its
    attributes, and refuses to look a key up.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __getitem__(self, key: Never) -> Any: ...  # type: ignore[override]
    else:

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

    @classmethod
    def from_parts(cls, *parts: Mapping[str, Any], **more: Any) -> Self:
        """A row of all parts, its keys in their order; later parts override earlier ones."""
        values: dict[str, Any] = {}
        for part in (*parts, more):
            values |= part
        return cls(**{key: values[key] for key in keys_of(cls)})

    def with_values(self, **values: Any) -> Self:
        """The same row with other values of some keys."""
        return type(self)(**self | values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Any) -> Any:
        """Describe its keys for `read_row`."""
        from pydantic_core import core_schema

        fields = {}
        for key, kind in kinds_of(cls).items():
            # of those of `typing`, pydantic reads none before Python 3.12
            known = dict if is_typeddict(kind) else kind
            fields[key] = core_schema.typed_dict_field(handler.generate_schema(known))
        schema = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(lambda values: cls(**values), schema)


@cache
def kinds_of(row: type[Row]) -> dict[str, Any]:
    """The type of each key of a row, in the order in which JSON has them: the figures that several
    rows have come last.
    """
    kinds = get_type_hints(row)
    bases_first = row.__mro__[::-1]
    classes = sorted(bases_first, key=SHARED.__contains__)
    return {key: kinds[key] for each in classes for key in get_annotations(each)}


def keys_of(row: type[Row]) -> tuple[str, ...]:
    """The keys of a row."""
    return tuple(kinds_of(row))


Tier = NewType("Tier", str)
Bounds: TypeAlias = tuple[float, float]
Figure: TypeAlias = float | None
"""A finite number; None where it is not known."""


# ------------------------------------------------------------------- figures that several rows have


class Medians(Row):
    """Medians over delta rows."""

    relative_norm: Figure
    concentration: Figure
    participation_ratio: Figure
    null_participation_ratio: Figure
    participation_share: Figure
    stable_rank: Figure
    effective_rank: Figure
    effective_rank_shift: Figure
    top4_energy: Figure
    spikes: Figure
    spike_energy: Figure
    cosine: Figure
    floor_ratio: Figure


class LayerMedians(Row):
    """Further medians, of matrices inside layers or of one module outside."""

    kept: Figure
    relative_norm: Figure
    relative_norm_unrounded: Figure
    excess_purity: Figure
    excess_purity_unrounded: Figure
    equivalent_directions: Figure
    spikes_sharp: Figure
    decay_cosine: Figure
    energy_share: Figure


class DepthFigures(Row):
    """The spread of an update over the layers of a component."""

    depth_layers: int
    depth_entropy: Figure
    effective_layers: Figure
    attention_to_mlp: Figure


class OverLayers(Row):
    """Intervals of figures over layers."""

    intervals: dict[str, Bounds | None]
    layers: int
    interval_level: Figure
    no_interval: str | None


SHARED = (Medians, LayerMedians, DepthFigures, OverLayers)


# --------------------------------------------------------------------------- rows of a pair


class StatusCounts(Row):
    """Counts of tensors by status."""

    measured: int
    identical: int
    skipped: int


class PairFigures(Medians, DepthFigures):
    """The figures of the pair."""

    matrices: int
    short_side: Figure
    parameters: int
    parameters_measured: int
    parameters_identical: int
    relative_norm_overall: Figure
    relative_norm_overall_unrounded: Figure
    rank_ceiling: int | None
    unverified: int
    zero_share: Figure
    spiked: Figure
    vision_to_language: Figure
    projector_to_language: Figure
    embedding_row_participation_ratio: Figure
    embedding_rows_changed: Figure
    unrounded_share: Figure
    matrices_rounded: int
    parameters_rounded: int


class ComponentRow(Medians, DepthFigures, OverLayers):
    """The figures of a component."""

    component: str
    tensors: int
    identical: int
    matrices: int
    energy: Figure
    energy_share: Figure
    parameter_share: Figure


class ModuleRow(Medians, OverLayers):
    """The figures of a module of a component."""

    component: str
    module: str
    matrices: int
    parameters: int
    energy: Figure
    energy_share: Figure
    parameter_share: Figure


class LayerRow(Row):
    """A layer of a component."""

    component: str
    layer: int
    matrices: int
    relative_norm: Figure
    energy: Figure
    energy_share: Figure
    concentration: Figure
    effective_rank_shift: Figure
    spikes: Figure
    matrices_rounded: int


class GridRow(Row):
    """A module by layers."""

    component: str
    module: str
    layers: list[int]
    relative_norm: list[Figure]
    concentration: list[Figure]


class InsideLayers(LayerMedians):
    """Figures of the matrices inside layers."""

    matrices: int
    known: int
    unexplained: int
    rounded_away: int
    coherent: int
    judged: int
    beyond_noise: int
    flatter_than_noise: int
    purity_z: Figure
    numerical_rank: Figure
    rank_90: Figure
    spikes: Figure
    spike_energy: Figure
    above_short_side: int
    rank_most: Figure
    rank_least: Figure
    levels_base_judged: int
    levels_base_few: int
    levels_tuned_judged: int
    levels_tuned_few: int
    in_8_bits: int
    short_side_least: int | None
    short_side_most: int | None
    rank_known: int
    few_changed: int
    unexplained_in_more_bits: int
    format_ratio: Figure
    kept_low: Figure
    kept_high: Figure
    kept_low_overall: Figure
    kept_high_overall: Figure
    noisy_rest: int


class OutsideLayers(LayerMedians):
    """A module outside layers."""

    component: str
    module: str
    matrices: int
    above_short_side: int
    short_side: int | None


class Coherence(Row):
    """The equivalent directions of a module inside layers."""

    component: str
    module: str
    matrices: int
    coherent: int
    equivalent_directions: Figure
    above_short_side: int
    short_side: int | None


class Quarter(Row):
    """A quarter of a component's layers."""

    component: str
    quarter: int
    first_layer: int
    last_layer: int
    energy_share: float
    parameter_share: Figure


class Unchanged(Row):
    """A module of which no tensor changed."""

    component: str
    module: str
    tensors: int


class WithoutBase(Row):
    """A component that has no base: medians of its matrices."""

    component: str
    matrices: int
    stable_rank: Figure
    effective_rank: Figure
    participation_ratio: Figure


class VectorsRow(Row):
    """Vectors that were compared."""

    compared: int
    changed: int
    relative_norm: Figure
    relative_norm_of_all: Figure
    furthest: str | None
    furthest_norm: Figure
    moved: dict[str, list[int]]


class VocabularyRow(Row):
    """A vocabulary whose sides differ in size."""

    component: str
    module: str
    base_rows: int
    tuned_rows: int
    added: int


class UncomparedRow(Row):
    """Tensors that could not be compared, by reason and module."""

    reason: str
    side: str
    component: str
    module: str | None
    layers: list[int]
    tensors: int


class SkippedRow(Row):
    """Tensors that were skipped, by reason."""

    reason: str
    tensors: int
    base: int
    tuned: int
    examples: list[str]
    detail: str | None


class BrokenRow(Row):
    """Tensors that are damaged."""

    code: str
    side: str
    count: int
    tensors: list[str]


class PublishedRank(Row):
    """The rank of a change among released families."""

    value: float
    below: int
    families: int
    least: float
    most: float


class PlacesRow(Row):
    """Matrices of a module, by layers."""

    component: str
    module: str
    layers: list[int]
    matrices: int


class InPlaces(Row):
    """Matrices, and where they are."""

    matrices: int
    rows: list[PlacesRow]


class Replaced(InPlaces):
    """Matrices that have little in common with the base's."""

    cosine_least: float
    cosine_most: float


class FewEntries(InPlaces):
    """Matrices of which few entries changed."""

    entries: int
    of: int


class Scaled(Row):
    """Matrices that are the base's times a factor."""

    matrices: int
    factor: float


class Zeroed(Row):
    """Matrices of which entries became 0."""

    matrices: int
    share: float


class Casts(Row):
    """Tensors that are the other side's in another format."""

    tensors: int
    of_base: int
    beside: int


class Rearranged(Row):
    """Matrices whose entries do not correspond to the base's."""

    matrices: int
    changed: int
    not_comparable: InPlaces


class Masked(Row):
    """Matrices in which more entries stayed the same than storage leaves."""

    matrices: int
    of: int
    excess: float


class Recognised(Row):
    """Changes that no training makes and figures prove; None where they do not."""

    replaced: Replaced | None
    scaled: Scaled | None
    zeroed: Zeroed | None
    casts: Casts | None
    rearranged: Rearranged | None
    few_entries: FewEntries | None
    masked: Masked | None


class UnitRun(Row):
    """Consecutive layers or experts that are consecutive ones of the base, at other numbers."""

    first: int
    last: int
    base_first: int

    def base_number(self, number: int) -> int:
        """The number of the base's unit that corresponds to one."""
        return number + self.base_first - self.first


class UnitNumbers(Row):
    """The layers of a component, or the experts of layers, that are not the base's by number."""

    component: str
    layers: list[int]
    """Of experts: the layers of which this is true."""
    missing: list[int]
    """Units of the base that correspond to none."""
    new: list[int]
    runs: list[UnitRun]
    """In order; then, of units that are several of the base, which are equal, the others."""
    by: list[str]

    @property
    def has_others(self) -> bool:
        """True if a unit is not the base's of its number."""
        return bool(self.missing or self.new or self.runs)

    def base_number(self, number: int) -> int:
        """The number of the base's unit that corresponds to one."""
        for run in self.runs:
            if run.first <= number <= run.last:
                return run.base_number(number)
        return number


class MatchedRows(Row):
    """The rows of a vocabulary, where they are not those of the base by number."""

    component: str
    module: str
    rows: int
    """Those that correspond to a row of the base."""
    tuned_rows: int
    base_rows: int
    in_front: int | None
    """New rows before all others, where those are in order without gaps; otherwise None."""
    by: str


class OtherLayer(Row):
    """Matrices of a layer that are those of another layer of the base than the layer itself."""

    component: str
    modules: list[str]
    layer: int
    base_layer: int
    by: str


class Correspondence(Row):
    """Parts that correspond, but not by number."""

    layers: list[UnitNumbers]
    experts: list[UnitNumbers]
    rows: list[MatchedRows]
    matrices: list[OtherLayer]


class Gate(Row):
    """A gate and its answer."""

    name: str
    figure: Figure
    """What it is judged by; None if unknown."""
    threshold: float
    passed: bool
    reason: str


class FileCounts(Row):
    """Counts of files by state."""

    changed: int
    added: int
    removed: int
    unknown: int
    same: int


class FileRow(Row):
    """A file of either side."""

    path: str
    kind: str
    state: str
    differs: list[str]
    detail: str | None


class FilesRow(Row):
    """The files of both sides."""

    counts: FileCounts
    rows: list[FileRow]


class PairRecord(OverLayers):
    """Measurements of one pair: the first keys of `summary.json`, in their order.

    Figures are medians over all delta rows unless their name says otherwise; those of depth are of
    the main component, which is language if there is one.
    """

    schema: int
    family: str
    pair: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    counts: StatusCounts
    figures: PairFigures
    components: list[ComponentRow]
    modules: list[ModuleRow]
    depth: list[LayerRow]
    grid: list[GridRow]
    inside_layers: InsideLayers
    outside_layers: list[OutsideLayers]
    coherence: list[Coherence]
    quarters: list[Quarter]
    unchanged: list[Unchanged]
    without_base: list[WithoutBase]
    vectors: VectorsRow
    vocabulary: list[VocabularyRow]
    uncompared: list[UncomparedRow]
    recognised: Recognised
    skipped: list[SkippedRow]
    warnings: list[str]
    warning_codes: list[str]
    idle_updates: int
    unnamed_updates: int
    """Modules of an adapter of whose name the base has none."""
    broken: list[BrokenRow]
    tier: Tier
    estimated: bool
    files: FilesRow | None
    correspondence: Correspondence | None
    """None where numbers agree with content, or where nothing else was looked for."""

    @property
    def has_spectra(self) -> bool:
        """True if singular values were measured or estimated."""
        return self.tier not in WITHOUT_SPECTRA

    @property
    def main_component(self) -> str | None:
        """The component whose depth counts: language, or the one with most layers."""
        return main_of(Counter(row.component for row in self.depth))

    @property
    def has_components(self) -> bool:
        """True if there are several, so that a module is named with its component."""
        return len({row.component for row in self.components}) > 1


def main_of(sizes: Mapping[str, int]) -> str | None:
    """The main of the components with these sizes: language, or the largest."""
    return "language" if "language" in sizes else max(sizes, key=sizes.__getitem__, default=None)


AnyRow = TypeVar("AnyRow", bound=Row)


def read_row(row: type[AnyRow], value: Any) -> AnyRow:
    """Read a row from its JSON.

    Raises TypeError if it does not have the keys and types of its class: no key may be missing or
    extra.
    """
    from pydantic import TypeAdapter

    try:
        content = json.dumps(value, allow_nan=False)
        read: AnyRow = TypeAdapter(row).validate_json(content, strict=True)
    except (ValueError, RecursionError) as error:
        raise TypeError(row.__name__) from error
    return read
