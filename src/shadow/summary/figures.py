"""The figures of a pair by name: of all its matrices, and of those inside layers.

The order of the fields is the order of the keys in `summary.json`; a dataclass has the fields of
its last base first. `shadow explain` gives unit and range of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

Value = float | int | None
ALSO_MOVED_BY = (  # a part of a sentence on what the figures do not show
    "the optimiser, adapters, the learning rate and data new to the base move these figures as much"
    " as narrow data do"
)


class Named(Mapping[str, Value]):
    """Fields that are also read by their names, as a rule of the gate names them."""

    def __getitem__(self, name: str) -> Value:
        value: Value = vars(self)[name]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))


@dataclass(frozen=True)
class Medians:
    """Medians over the delta rows of a group of matrices, each counted once; None where no row has
    the figure.

    The columns of the same names in matrices.parquet say what each is.
    """

    relative_norm: float | None
    """0 or more; of a component: of all its matrices as one vector."""
    concentration: float | None
    participation_ratio: float | None
    null_participation_ratio: float | None
    participation_share: float | None
    """participation_ratio over the null's."""
    stable_rank: float | None
    effective_rank: float | None
    effective_rank_shift: float | None
    top4_energy: float | None
    spikes: float | None
    spike_energy: float | None
    cosine: float | None
    floor_ratio: float | None


@dataclass(frozen=True)
class DepthFigures:
    """How evenly the update lies over a component's layers; None where it has no energy there."""

    depth_layers: int
    depth_entropy: float | None
    """0 one layer, 1 all alike."""
    depth_gini: float | None
    """0 all alike, towards 1 one layer."""
    effective_layers: float | None
    """1 to depth_layers."""
    attention_to_mlp: float | None
    """Ratio of energies."""


@dataclass(frozen=True)
class _Size:
    matrices: int
    short_side: float | None
    parameters: int
    parameters_measured: int
    parameters_identical: int
    relative_norm_overall: float | None
    relative_norm_overall_unrounded: float | None
    rank_ceiling: int | None
    unverified: int


@dataclass(frozen=True)
class _Shares:
    concentration_q25: float | None
    concentration_q75: float | None
    zero_share: float | None
    spiked: float | None
    vision_to_language: float | None
    projector_to_language: float | None


@dataclass(frozen=True)
class PairFigures(Named, DepthFigures, _Shares, Medians, _Size):
    """The figures of a pair over all matrices that changed; None where one is undefined."""

    embedding_row_participation_ratio: float | None
    embedding_rows_changed: float | None
    relative_norm_overall_unrounded_least: float | None = None
    """relative_norm_overall_unrounded if two roundings lie behind the change."""
    unrounded_share: float | None = None
    """The share of the stored energy in matrices whose norm before storage is known, 0 to 1."""


@dataclass(frozen=True)
class LayerMedians:
    """Medians over matrices inside layers, or over those of one module outside them.

    The columns of the same names in matrices.parquet say what each is.
    """

    kept: float | None
    relative_norm: float | None
    relative_norm_unrounded: float | None
    excess_purity: float | None
    excess_purity_unrounded: float | None
    equivalent_directions: float | None
    """None where half of the matrices or more are above their short side."""
    spikes_sharp: float | None
    decay_cosine: float | None
    energy_share: float | None


@dataclass(frozen=True)
class _Known:
    matrices: int
    known: int
    """Matrices of which it is known how much of what is stored is the update's."""
    unexplained: int
    """Matrices whose stored change is not what rounding leaves of an update."""
    rounded_away: int
    coherent: int
    judged: int
    """Matrices that are held against noise; the next two are of these."""
    beyond_noise: int
    flatter_than_noise: int


@dataclass(frozen=True)
class InsideLayers(Named, LayerMedians, _Known):
    """Counts of the matrices inside layers, and medians over them."""

    purity_z: float | None
    numerical_rank: float | None
    rank_90: float | None
    spikes: float | None
    spike_energy: float | None
    alignment_left: float | None
    alignment_left_null: float | None
    alignment_right: float | None
    alignment_right_null: float | None
    above_short_side: int
    """Matrices less coherent than a change along all directions of their short side alike."""
    rank_most: float | None
    """Bound of the rank of the update, median."""
    rank_least: float | None
    """The same from below."""
    levels_base_judged: int
    """Matrices of the base whose rows are long enough to count distinct values."""
    levels_base_few: int
    """Of these, matrices with the few values of a copy through 8 or 4 bits."""
    levels_tuned_judged: int
    levels_tuned_few: int
    in_two_formats: int
    in_8_bits: int
    short_side_least: int | None
    """How many directions a matrix has."""
    short_side_most: int | None
    alignment_left_excess: float | None
    """Median of the differences between alignment and its null."""
    alignment_right_excess: float | None
    kept_least: float | None = None
    """Median of kept if two roundings lie behind the change."""
    equivalent_directions_least: float | None = None
    """The same of equivalent_directions; None where they are."""
    rank_known: int = 0
    """Matrices the rank of whose update is known."""
    few_changed: int = 0
    """Matrices of which fewer than 200 entries changed."""
    unexplained_in_more_bits: int = 0
    """Of the unexplained, matrices in files of more bits than BF16, whose floor_ratio may be of
    another format than the one that rounded.
    """
    format_ratio: float | None = None
    """The error of a quantised side over that of what its format makes, median."""
    kept_low: float | None = None
    """Medians of the range of kept where a side is quantised."""
    kept_high: float | None = None
    kept_low_overall: float | None = None
    """The range of kept of the energy of all matrices together; of a matrix of which nothing is
    known it is 0 to 1. None where no side is quantised, or nothing is known of most matrices.
    """
    kept_high_overall: float | None = None


MEDIANS = tuple(field.name for field in fields(Medians))
LAYER_MEDIANS = tuple(field.name for field in fields(LayerMedians))
