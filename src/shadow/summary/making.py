"""The tables of a report -> the record of its pair. Pure: prints and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shadow.places.groups import ATTENTION, MLP, UP
from shadow.places.names import name_rules
from shadow.reports.columns import SCHEMA
from shadow.reports.metadata import ReportMetadata
from shadow.summary.bootstrap import (
    DRAWS,
    LEVEL,
    SEED,
    UNEVEN,
    Blocks,
    Interval,
    Statistic,
    blocks_of,
    interval,
    intervals_of_medians,
)
from shadow.summary.coverage import uncompared, vector_figures, vocabulary
from shadow.summary.depth import (
    Sum,
    depth_entropy,
    depth_gini,
    effective_layers,
    is_partial,
    once,
    ratio,
    summed,
)
from shadow.summary.figures import MEDIANS, PairFigures
from shadow.summary.grid import grid
from shadow.summary.layer_medians import (
    coherence,
    few_values,
    inside_layers,
    outside_layers,
    unchanged_modules,
)
from shadow.summary.numbers import finite, floats, median, over
from shadow.summary.recognised import recognised
from shadow.summary.record import STATUSES, PairRecord
from shadow.summary.rows import (
    ALONE,
    BY_LAYER,
    AloneRow,
    ComponentRow,
    Intervals,
    LayerRow,
    ModuleRow,
    QuarterRow,
    ReportWarning,
    SkippedRow,
    row_of,
)
from shadow.summary.tables import Rows

if TYPE_CHECKING:
    import pandas as pd

# cosines below which an expert is another one, and above which the rest is the same model
TURNED, UNTURNED = 0.5, 0.9
QUARTERS = 4  # of the depth
EXAMPLES = 3  # tensors named for each reason
TOGETHER = 1 << 18  # numbers whose medians get their intervals at once: 2 MB
UNEVENNESS = {
    "depth_entropy": depth_entropy,
    "depth_gini": depth_gini,
    "effective_layers": effective_layers,
}
INTERVALS: Mapping[str, str | float] = {
    "level": LEVEL,
    "draws": DRAWS,
    "seed": SEED,
    "unit": (
        "layer: each draw takes as many layers of each component as there are, with replacement,"
        " and all matrices of each; what lies outside the layers is in every draw; where there are"
        " no more ways to draw, each is taken once"
    ),
    "kind": (
        "expanded percentile (Hesterberg 2015); of depth_entropy, depth_gini and effective_layers"
        f" BCa with the same percentiles, from {UNEVEN} layers"
    ),
    "weights": (
        "medians count each matrix once; relative_norm_overall, zero_share, shares and ratios of"
        " energy, and depth figures weigh by energy or entries"
    ),
    "covers": "other layers of the same pair; not other runs, seeds or models",
}


def record_of(rows: Rows, metadata: ReportMetadata, lineage: float | None) -> PairRecord:
    """The record of a pair. metadata has what the report is of; lineage is the median cosine of its
    two models.
    """
    tensors, deltas = rows.tensors, rows.deltas
    statuses = tensors["status"].value_counts()
    figures, intervals = _figures(rows)
    depth = _by_layer(rows)
    bounds = _bounds(intervals, _delta_blocks(rows, deltas))
    return PairRecord(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=metadata["base"],
        tuned=metadata["tuned"],
        counts={status: int(statuses.get(status, 0)) for status in STATUSES},
        figures=figures,
        **vars(bounds),
        resampling=INTERVALS,
        components=_by_component(rows),
        modules=_by_module(rows),
        depth=depth,
        grid=grid(deltas, tensors),
        inside_layers=inside_layers(deltas),
        outside_layers=outside_layers(deltas),
        coherence=coherence(deltas),
        quarters=_quarters(depth, deltas),
        unchanged=unchanged_modules(tensors),
        without_base=_without_base(rows.alone),
        vectors=vector_figures(tensors),
        vocabulary=vocabulary(tensors),
        uncompared=uncompared(tensors),
        recognised=recognised(deltas, lineage),
        skipped=_skipped(tensors),
        warnings=[
            *_renumbered_experts(deltas),
            *(ReportWarning("few_values", text) for text in few_values(deltas)),
        ],
    )


def _blocks(rows: pd.DataFrame) -> Blocks:
    return blocks_of(
        rows["component"].tolist(), rows["layer"].to_numpy(dtype=np.float64, na_value=np.nan)
    )


def _delta_blocks(rows: Rows, deltas: pd.DataFrame) -> Blocks:
    """`_blocks` of some of the delta rows, without looking every layer up again."""
    whole = Blocks(deltas["at"].to_numpy(), _blocks(rows.layers).strata)
    return whole.where(np.ones(len(deltas), dtype=np.bool_))


def _bounds(intervals: Mapping[str, Interval], blocks: Blocks) -> Intervals:
    """What a row of the summary tells of its intervals."""
    any_of_them = interval(lambda counts: np.zeros(len(counts)), blocks)
    return Intervals(
        intervals={name: of_figure.bounds for name, of_figure in intervals.items()},
        layers=any_of_them.layers,
        interval_level=any_of_them.level,
        no_interval=any_of_them.reason,
    )


Figures = dict[str, float | int | None]
IntervalsByName = dict[str, Interval]


def _medians(
    rows: pd.DataFrame, blocks: Blocks, names: Iterable[str] = MEDIANS
) -> tuple[Figures, IntervalsByName]:
    """Medians over rows, each counted once, and their intervals over layers."""
    figures: Figures = {name: median(floats(rows[name])) for name in names}
    known = [name for name, figure in figures.items() if figure is not None]
    intervals: IntervalsByName = {}
    at_once = max(1, TOGETHER // max(1, len(rows)))
    for start in range(0, len(known), at_once):
        some = known[start : start + at_once]
        columns = np.stack([floats(rows[name]) for name in some], axis=1)
        intervals |= zip(some, intervals_of_medians(columns, blocks), strict=True)
    return figures, intervals


def _whole_norm(rows: pd.DataFrame) -> float | None:
    """sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²): the relative norm of all rows as one vector."""
    return over(math.hypot(*rows["frobenius_norm"]), math.hypot(*rows["base_norm"]))


def _unrounded_norm(deltas: pd.DataFrame) -> float | None:
    """relative_norm_overall of the updates before storage; None unless known of every matrix."""
    stored = deltas["relative_norm"].where(deltas["kept_reason"] == "nothing_rounded")
    norms = deltas["relative_norm_unrounded"].fillna(stored).astype(float)
    return over(math.hypot(*(norms * deltas["base_norm"])), math.hypot(*deltas["base_norm"]))


class _Sums:
    """Figures of sums over a component's layers, or over all, each once; and their intervals."""

    def __init__(self, rows: Rows, component: str | None = None) -> None:
        self.every = len(rows.layers)
        self.kept = np.ones(self.every, dtype=np.bool_)
        if component is not None:
            self.kept = (rows.layers["component"] == component).to_numpy()
        self.blocks = _blocks(rows.layers[self.kept])
        self.figures: Figures = {}
        self.intervals: IntervalsByName = {}

    def of(self, deltas: pd.DataFrame, values: Any = "energy") -> Sum:
        """The sum of a column, or of given values, over delta rows."""
        if isinstance(values, str):
            values = deltas[values]
        sums = summed(deltas["at"].to_numpy(), values.to_numpy(dtype=np.float64), self.every)
        return Sum(sums.layers[self.kept], sums.outside)

    def add(self, name: str, statistic: Statistic, *, unevenness: bool = False) -> None:
        """A figure and its interval; unevenness: see `interval`."""
        figure = finite(statistic(once(self.blocks.layers))[0])
        self.figures[name] = figure
        if figure is not None:
            self.intervals[name] = interval(statistic, self.blocks, unevenness=unevenness)

    def add_ratio(self, name: str, part: Sum, whole: Sum) -> None:
        """The ratio of two sums; null over nothing."""
        self.add(name, partial(ratio, part, whole))


def _depth_figures(rows: Rows, component: str | None) -> tuple[Figures, IntervalsByName]:
    """How evenly a component's update lies over its layers, frozen ones among them, and over
    attention and MLP.
    """
    depth = _Sums(rows, component or "")
    deltas = rows.deltas[rows.deltas["component"] == component]
    energies = depth.of(deltas).layers
    for name, statistic in UNEVENNESS.items():
        depth.add(name, partial(statistic, energies), unevenness=True)
    compared = rows.tensors[rows.tensors["was_compared"]]
    modules = compared.loc[compared["component"] == component, "module"]
    attention, mlp = (deltas[deltas["module"].str.startswith(kind)] for kind in (ATTENTION, MLP))
    if modules.str.startswith(ATTENTION).any() and modules.str.startswith(MLP).any():
        depth.add_ratio("attention_to_mlp", depth.of(attention), depth.of(mlp))
    else:
        depth.figures["attention_to_mlp"] = None
    return {"depth_layers": depth.blocks.layers, **depth.figures}, depth.intervals


def _residual_figures(rows: Rows, component: str | None) -> tuple[Figures, IntervalsByName]:
    """Directions of the residual stream that stacked deltas are about: of a layer, the median, and
    of all layers.
    """
    figures: Figures = {}
    intervals: IntervalsByName = {}
    stacked = rows.residual[rows.residual["component"] == component]
    for direction in ("reading", "writing"):
        stacks = stacked[stacked["direction"] == direction]
        by_layer = stacks[stacks["layer"].notna()]
        values, bounds = _medians(by_layer, _blocks(by_layer), ["participation_ratio"])
        name = f"{direction}_participation_ratio"
        figures[name] = values["participation_ratio"]
        figures[f"{name}_stacked"] = finite(
            stacks.loc[stacks["layer"].isna(), "participation_ratio"].max()
        )
        if bounds:
            intervals[name] = bounds["participation_ratio"]
    return figures, intervals


def _figures(rows: Rows) -> tuple[PairFigures, IntervalsByName]:
    import pandas as pd

    tensors, deltas = rows.tensors, rows.deltas
    read = ["side", "shape", "status", "reason", "compared"]
    sides = {
        side: rows.assign(size=rows["shape"].map(_size))
        for side, rows in tensors[read].groupby("side")
    }
    # of an adapter, that is the base
    larger = max(sides.values(), key=lambda rows: int(rows["size"].sum()))
    sizes = larger["size"]
    ceilings = deltas["rank_ceiling"].dropna()
    quartiles = deltas["concentration"].quantile([0.25, 0.75])
    medians, intervals = _medians(deltas, _delta_blocks(rows, deltas))
    whole = _Sums(rows)
    norms, bases = whole.of(deltas), whole.of(deltas, "base_energy")
    whole.add("relative_norm_overall", lambda counts: np.sqrt(ratio(norms, bases, counts)))
    zeros = whole.of(deltas, deltas["zero_share"] * deltas["parameters"])
    whole.add_ratio("zero_share", zeros, whole.of(deltas, "parameters"))
    ones = pd.Series(1.0, index=deltas.index)
    whole.add_ratio(
        "spiked", whole.of(deltas, ones.where(deltas["spikes"] > 0, 0.0)), whole.of(deltas, ones)
    )
    for component in ("vision", "projector"):
        _component_ratio(whole, rows, component)
    embedding = deltas[(deltas["module"] == "embed") & (deltas["component"] == rows.main)].head(1)
    depth, depth_intervals = _depth_figures(rows, rows.main)
    residual, residual_intervals = _residual_figures(rows, rows.main)
    inside = deltas.loc[deltas["layer"].notna(), ["rows", "cols"]]
    figures: Figures = {
        "matrices": len(deltas),
        "short_side": finite(inside.min(axis=1).median()),
        "parameters": int(sizes.sum()),
        "parameters_measured": (
            int(sizes[larger["status"] == "measured"].sum())
            + int(larger.loc[is_partial(larger), "compared"].sum())
        ),
        "parameters_identical": int(sizes[larger["status"] == "identical"].sum()),
        "relative_norm_overall": _whole_norm(deltas),
        "relative_norm_overall_unrounded": _unrounded_norm(deltas),
        "rank_ceiling": int(ceilings.max()) if len(ceilings) else None,
        "unverified": int((deltas["verified"] == False).sum()),  # noqa: E712 - null is not False
        **medians,
        "concentration_q25": finite(quartiles[0.25]),
        "concentration_q75": finite(quartiles[0.75]),
        **{name: value for name, value in whole.figures.items() if name != "relative_norm_overall"},
        **depth,
        **residual,
        "embedding_row_participation_ratio": finite(embedding["row_participation_ratio"].max()),
        "embedding_rows_changed": finite(embedding["rows_changed"].max()),
    }
    intervals |= whole.intervals | depth_intervals | residual_intervals
    return row_of(PairFigures, figures), intervals


def _component_ratio(whole: _Sums, rows: Rows, component: str) -> None:
    """A component's energy over the language model's; null where either was not compared."""
    with_base = set(rows.tensors.loc[rows.tensors["was_compared"], "component"])
    if {component, "language"} <= with_base:
        part, language = (
            rows.deltas[rows.deltas["component"] == name] for name in (component, "language")
        )
        whole.add_ratio(f"{component}_to_language", whole.of(part), whole.of(language))
    else:
        whole.figures[f"{component}_to_language"] = None


def _size(shape: Iterable[int]) -> int:
    return math.prod(int(size) for size in shape)


def _by_component(rows: Rows) -> list[ComponentRow]:
    """What became of each component: how much of it is measured or identical, and the figures of
    what is measured.

    energy is null where nothing of it was compared, 0 where all of it is identical.
    """
    rules = name_rules()
    matrices = rows.tensors[rows.tensors["shape"].map(lambda shape: len(shape) > 1)]
    components = []
    for component, group in matrices[matrices["side"] == "tuned"].groupby("component", sort=False):
        deltas = rows.deltas[rows.deltas["component"] == component]
        blocks = _delta_blocks(rows, deltas)
        medians, intervals = _medians(deltas, blocks)
        depth, depth_intervals = _depth_figures(rows, str(component))
        whole = _Sums(rows)
        whole.add_ratio("energy_share", whole.of(deltas), whole.of(rows.deltas))
        energy = energy_share = None
        if group["was_compared"].any():
            energy = finite(deltas["energy"].sum())
            energy_share = whole.figures["energy_share"]
        counted = {
            "component": component,
            "tensors": len(group),
            "identical": int((group["status"] == "identical").sum()),
            "matrices": len(deltas),
            "relative_norm": _whole_norm(deltas),
            "energy": energy,
            "energy_share": energy_share,
            "parameter_share": _parameter_share(deltas, rows),
        }
        bounds = _bounds(_without_overall(intervals) | whole.intervals | depth_intervals, blocks)
        components.append(row_of(ComponentRow, medians, counted, depth, vars(bounds)))
    return sorted(components, key=lambda row: _place(rules.components, row.component))


def _place(known: Sequence[str], name: str) -> tuple[int, str]:
    """Where a name stands among those of names.yaml; what only another version or a forged report
    has comes last.
    """
    if name not in known:
        return len(known), name
    return known.index(name), name


def _without_overall(intervals: IntervalsByName) -> IntervalsByName:
    """A component's relative norm is that of all its matrices as one vector: the median's interval
    is not its own.
    """
    return {name: interval for name, interval in intervals.items() if name != "relative_norm"}


def _renumbered_experts(deltas: pd.DataFrame) -> list[ReportWarning]:
    """Experts pair by their numbers. If the matrices around them hardly turned and they did, the
    numbers changed.
    """
    is_expert = deltas["module"].str.startswith("experts.")
    others = deltas[~is_expert & deltas["layer"].notna()]["cosine"].median()
    turned = deltas[is_expert & (deltas["cosine"] < TURNED)]
    if turned.empty or not others > UNTURNED:
        return []
    layers = turned["layer"].nunique()
    text = (
        f"{len(turned)} expert matrices in {layers} layers have little in common with the base's of"
        f" the same number (cosine below {TURNED}) while the other matrices are close to theirs:"
        " the experts may have been renumbered, and their deltas are then not those of training"
    )
    return [ReportWarning("experts_renumbered", text)]


def _by_module(rows: Rows) -> list[ModuleRow]:
    """Medians and the share of the energy by component and module, in the order of names.yaml."""
    rules = name_rules()
    modules = []
    place = ["component", "module"]
    # groups of all columns at once would come from a second copy of them
    for (component, module), named in rows.deltas[place].groupby(place, sort=False):
        group = rows.deltas.loc[named.index]
        blocks = _delta_blocks(rows, group)
        medians, intervals = _medians(group, blocks)
        whole = _Sums(rows)
        whole.add_ratio("energy_share", whole.of(group), whole.of(rows.deltas))
        counted = {
            "component": component,
            "module": module,
            "matrices": len(group),
            "parameters": int(group["parameters"].sum()),
            "energy": finite(group["energy"].sum()),
            "parameter_share": _parameter_share(group, rows),
        }
        bounds = _bounds(intervals | whole.intervals, blocks)
        modules.append(row_of(ModuleRow, medians, counted, whole.figures, vars(bounds)))

    def order(row: ModuleRow) -> tuple[tuple[int, str], tuple[int, str]]:
        return _place(rules.components, row.component), _place(rules.modules, row.module)

    return sorted(modules, key=order)


def _by_layer(rows: Rows) -> list[LayerRow]:
    """For each compared layer of each component: energies, relative norm as one vector, medians of
    the rest.

    energy_share is of the component's layers. up_effective_rank_shift is the signed shift of the
    MLP up-projections (of several experts, the median), the curve of arXiv:2604.07363. A layer that
    is identical has a relative norm of 0.
    """
    deltas, layers = rows.deltas, list(rows.layers.itertuples(index=False, name=None))
    at, up = deltas["at"].to_numpy(), deltas["module"].isin(UP).to_numpy()
    numbers = {name: floats(deltas[name]) for name in (*BY_LAYER, "energy")}
    inside = deltas.loc[deltas["layer"].notna(), ["component", "energy"]]
    totals = inside.groupby("component")["energy"].sum()
    stacks = {
        (row.component, row.layer, row.direction): row.participation_ratio
        for row in rows.residual.itertuples()
    }
    layer_rows = []
    for place, (component, layer) in enumerate(layers):
        here = np.flatnonzero(at == place)
        energy, total = float(numbers["energy"][here].sum()), float(totals.get(component, 0.0))
        counted = {
            "component": component,
            "layer": int(layer),
            "matrices": len(here),
            "relative_norm": _whole_norm(deltas.iloc[here]) if len(here) else 0.0,
            "energy": finite(energy),
            "energy_share": over(energy, total),
            "up_effective_rank_shift": median(numbers["effective_rank_shift"][here[up[here]]]),
        }
        medians = {name: median(numbers[name][here]) for name in BY_LAYER}
        directions = {
            f"{direction}_participation_ratio": finite(
                stacks.get((component, layer, direction), math.nan)
            )
            for direction in ("reading", "writing")
        }
        layer_rows.append(row_of(LayerRow, counted, medians, directions))
    return layer_rows


def _parameter_share(group: pd.DataFrame, rows: Rows) -> float | None:
    return over(int(group["parameters"].sum()), int(rows.deltas["parameters"].sum()))


def _quarters(depth: Sequence[LayerRow], deltas: pd.DataFrame) -> list[QuarterRow]:
    """The shares of each quarter of a component's layers in their energy and their parameters."""
    quarters = []
    sizes = deltas.groupby(["component", "layer"])["parameters"].sum().to_dict()
    for component in dict.fromkeys(row.component for row in depth):
        layers = [row for row in depth if row.component == component]
        if len(layers) < QUARTERS or any(row.energy_share is None for row in layers):
            continue
        for quarter in range(QUARTERS):
            part = layers[
                quarter * len(layers) // QUARTERS : (quarter + 1) * len(layers) // QUARTERS
            ]
            share = math.fsum(row.energy_share or 0.0 for row in part)
            size = sum(int(sizes.get((component, row.layer), 0)) for row in part)
            whole = sum(int(sizes.get((component, row.layer), 0)) for row in layers)
            quarters.append(
                QuarterRow(
                    component=component,
                    quarter=quarter + 1,
                    first_layer=part[0].layer,
                    last_layer=part[-1].layer,
                    energy_share=share,
                    parameter_share=over(size, whole),
                )
            )
    return quarters


def _without_base(alone: pd.DataFrame) -> list[AloneRow]:
    rows = []
    for component, group in alone.groupby("component", sort=False):
        medians = {name: finite(group[name].median()) for name in ALONE}
        rows.append(row_of(AloneRow, {"component": component, "matrices": len(group)}, medians))
    return rows


def _skipped(tensors: pd.DataFrame) -> list[SkippedRow]:
    """Counts by reason, with a few names and the first detail."""
    rows = []
    for reason, group in tensors[tensors["status"] == "skipped"].groupby("reason", sort=True):
        details = group["detail"].dropna()
        names = group["tensor"].drop_duplicates()
        sides = group["side"].value_counts()
        row = SkippedRow(
            reason=str(reason),
            tensors=len(group),
            base=int(sides.get("base", 0)),
            tuned=int(sides.get("tuned", 0)),
            examples=[str(name) for name in names[:EXAMPLES]],
            detail=str(details.iloc[0]) if len(details) else None,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: -row.tensors)
