"""The tables of a report -> the record of its pair. Pure: prints and writes nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shadow.places.groups import ATTENTION, MLP, UP
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
    interval,
    intervals_of_medians,
)
from shadow.summary.changes import recognised
from shadow.summary.columns import Columns
from shadow.summary.coverage import broken, idle_updates, uncompared, vector_figures, vocabulary
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
from shadow.summary.files import files_record
from shadow.summary.grid import grid, order_of
from shadow.summary.layer_medians import (
    coherence,
    few_values,
    inside_layers,
    outside_layers,
    unchanged_experts,
    unchanged_modules,
)
from shadow.summary.numbers import Floats, are, finite, median, over, total_of
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
    checkpoint_side,
    row_of,
)
from shadow.summary.standing import unjudged_formats
from shadow.summary.tables import Rows
from shadow.summary.tiers import tier_of

# cosines below which an expert is another one, and above which the rest is the same model
TURNED, UNTURNED = 0.5, 0.9
QUARTERS = 4  # of the depth
MOSTLY_KNOWN = 0.9  # of the stored energy: in matrices of which the update's norm is known
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
    """The record of a pair. lineage: the median cosine of its two models."""
    tensors, deltas = rows.tensors, rows.deltas
    statuses = Counter(tensors["status"])
    tally = _overall(rows)
    depth = _by_layer(rows)
    return PairRecord(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=checkpoint_side(metadata["base"]),
        tuned=checkpoint_side(metadata["tuned"]),
        counts={status: statuses[status] for status in STATUSES},
        figures=_figures(rows, tally),
        **vars(tally.bounds()),
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
        unchanged_experts=unchanged_experts(tensors),
        idle_updates=idle_updates(tensors),
        without_base=_without_base(rows.alone),
        vectors=vector_figures(tensors),
        vocabulary=vocabulary(tensors),
        uncompared=uncompared(tensors),
        recognised=recognised(deltas, tensors, lineage),
        skipped=_skipped(tensors),
        warnings=[
            *_renumbered_experts(deltas),
            *(ReportWarning("few_values", text) for text in few_values(deltas)),
        ],
        broken=broken(tensors),
        tier=tier_of(metadata["settings"]),
        estimated=bool(are(deltas["precision"], "sketch").any()),
        files=files_record(rows.files),
    )


def _delta_blocks(rows: Rows, deltas: Columns) -> Blocks:
    """The blocks of some of the delta rows, without looking every layer up again."""
    whole = Blocks(deltas["at"], rows.blocks.strata)
    return whole.where(np.ones(len(deltas), dtype=np.bool_))


class _Tally:
    """Figures in the making and their intervals over layers: those of a component, or all."""

    def __init__(self, rows: Rows, component: str | None = None) -> None:
        self.every = len(rows.layers)
        self.chosen = np.ones(self.every, dtype=np.bool_)
        if component is not None:
            self.chosen = np.array([one == component for one, _ in rows.layers], dtype=np.bool_)
        self.blocks = rows.blocks.where(self.chosen)
        self.figures: dict[str, float | int | None] = {}
        self.intervals: dict[str, Interval] = {}
        self.drawn = self.blocks  # over which a row's intervals are

    def of(self, deltas: Columns, values: str | Floats = "energy") -> Sum:
        """The sum of a column, or of given values, over delta rows."""
        if isinstance(values, str):
            values = deltas[values]
        sums = summed(deltas["at"], values, self.every)
        return Sum(sums.layers[self.chosen], sums.outside)

    def add(self, name: str, statistic: Statistic, *, unevenness: bool = False) -> None:
        """A figure and its interval; unevenness: see `interval`."""
        figure = finite(statistic(once(self.blocks.layers))[0])
        self.figures[name] = figure
        if figure is not None:
            self.intervals[name] = interval(statistic, self.blocks, unevenness=unevenness)

    def add_ratio(self, name: str, part: Sum, whole: Sum) -> None:
        """The ratio of two sums; null over nothing."""
        self.add(name, partial(ratio, part, whole))

    def add_medians(self, values: Mapping[str, Floats], blocks: Blocks) -> None:
        """Medians over rows in these blocks, each counted once, by the names of the figures."""
        self.drawn = blocks
        medians = {name: median(of_rows) for name, of_rows in values.items()}
        self.figures |= medians
        known = [name for name, figure in medians.items() if figure is not None]
        at_once = max(1, TOGETHER // max(1, len(blocks.codes)))
        for start in range(0, len(known), at_once):
            some = known[start : start + at_once]
            columns = np.stack([values[name] for name in some], axis=1)
            self.intervals |= zip(some, intervals_of_medians(columns, blocks), strict=True)

    def join(self, other: _Tally) -> None:
        """Take over the figures of another."""
        self.figures |= other.figures
        self.intervals |= other.intervals

    def bounds(self) -> Intervals:
        """What a row of the summary says of its intervals."""
        any_of_them = interval(lambda counts: np.zeros(len(counts)), self.drawn)
        return Intervals(
            intervals={name: of_figure.bounds for name, of_figure in self.intervals.items()},
            layers=any_of_them.layers,
            interval_level=any_of_them.level,
            no_interval=any_of_them.reason,
        )


def _whole_norm(rows: Columns) -> float | None:
    """sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²): the relative norm of all rows as one vector."""
    return over(math.hypot(*rows["frobenius_norm"]), math.hypot(*rows["base_norm"]))


@np.errstate(all="ignore")  # a forged report may hold infinities
def _unrounded(deltas: Columns) -> dict[str, float | None]:
    """The relative norm of the updates before storage, as one vector, and the same if two roundings
    lie behind them: what it is over what is stored in the matrices of which it is known, if these
    have most of the energy.
    """
    name = "relative_norm_overall_unrounded"
    norms, least, bases, stored = (
        deltas[column]
        for column in (
            "relative_norm_unrounded", "relative_norm_unrounded_least", "base_norm",
            "frobenius_norm",
        )
    )  # fmt: skip
    asked = bool((deltas["kept_reason"] != None).any() or not np.isnan(norms).all())  # noqa: E711
    as_stored = np.isnan(norms) & are(deltas["kept_reason"], "nothing_rounded")
    norms = np.where(as_stored, deltas["relative_norm"], norms)
    known = ~np.isnan(norms)
    of_known, overall = math.hypot(*stored[known]), math.hypot(*stored)
    share = (of_known / overall) ** 2 if 0 < overall < math.inf else None
    if share is None or share < MOSTLY_KNOWN:
        return {name: None, f"{name}_least": None, "unrounded_share": share if asked else None}
    unit = over(overall, of_known * math.hypot(*bases)) or math.nan
    updates, fewer = (math.hypot(*(of * bases)[known]) for of in (norms, np.fmin(norms, least)))
    return {
        name: finite(unit * updates),
        f"{name}_least": finite(unit * fewer),
        "unrounded_share": share,
    }


def _of_kind(deltas: Columns, kind: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which rows are of modules whose names start so."""
    return np.array([(name or "").startswith(kind) for name in deltas["module"]], dtype=np.bool_)


def _depth(rows: Rows, component: str | None) -> _Tally:
    """How evenly a component's update lies over its layers, and over attention and MLP."""
    depth = _Tally(rows, component or "")
    deltas = rows.deltas.of(component)
    energies = depth.of(deltas).layers
    for name, statistic in UNEVENNESS.items():
        depth.add(name, partial(statistic, energies), unevenness=True)
    compared = rows.tensors.where(rows.tensors["was_compared"]).of(component)
    attention, mlp = (deltas.where(_of_kind(deltas, kind)) for kind in (ATTENTION, MLP))
    depth.figures |= {"depth_layers": depth.blocks.layers, "attention_to_mlp": None}
    if all(_of_kind(compared, kind).any() for kind in (ATTENTION, MLP)):
        depth.add_ratio("attention_to_mlp", depth.of(attention), depth.of(mlp))
    return depth


def _overall(rows: Rows) -> _Tally:
    """The figures of the pair that have intervals, in the order of these."""
    deltas, tally = rows.deltas, _Tally(rows)
    medians = {name: deltas[name] for name in MEDIANS}
    if unjudged_formats(deltas):
        medians["floor_ratio"] = np.full(len(deltas), np.nan)
    tally.add_medians(medians, _delta_blocks(rows, deltas))
    norms, bases = tally.of(deltas), tally.of(deltas, "base_energy")
    tally.add("relative_norm_overall", lambda counts: np.sqrt(ratio(norms, bases, counts)))
    zeros = tally.of(deltas, deltas["zero_share"] * deltas["parameters"])
    tally.add_ratio("zero_share", zeros, tally.of(deltas, "parameters"))
    spiked, counted = deltas["spikes"] > 0, ~np.isnan(deltas["spikes"])
    tally.add_ratio(
        "spiked", *(tally.of(deltas, some.astype(np.float64)) for some in (spiked, counted))
    )
    with_base = set(rows.tensors.where(rows.tensors["was_compared"])["component"])
    for component in ("vision", "projector"):
        name = f"{component}_to_language"
        tally.figures[name] = None
        if {component, "language"} <= with_base:
            tally.add_ratio(name, *(tally.of(deltas.of(one)) for one in (component, "language")))
    tally.join(_depth(rows, rows.main))
    return tally


def _figures(rows: Rows, tally: _Tally) -> PairFigures:
    tensors, deltas = rows.tensors, rows.deltas
    tensors = tensors.added(size=tensors.sizes)
    sides = [tensors.where(are(tensors["side"], side)) for side in ("base", "tuned")]
    # of an adapter, that is the base
    larger = max(sides, key=lambda of_side: sum(of_side["size"]))
    sizes = {status: sum(larger["size"][are(larger["status"], status)]) for status in STATUSES}
    ceilings = _known(deltas["rank_ceiling"])
    concentrations = _known(deltas["concentration"])
    quartiles: Sequence[float | None] = (None, None)
    if len(concentrations):
        quartiles = np.percentile(concentrations, [25, 75]).tolist()
    embeddings = deltas.where((deltas["module"] == "embed") & (deltas["component"] == rows.main))
    embedding = embeddings.where([0] if len(embeddings) else [])
    inside = deltas.inside
    counted = {
        "matrices": len(deltas),
        "short_side": median(np.fmin(inside["rows"], inside["cols"])),
        "parameters": sum(sizes.values()),
        "parameters_measured": (
            sizes["measured"] + int(larger["compared"][is_partial(larger)].sum())
        ),
        "parameters_identical": sizes["identical"],
        "relative_norm_overall": _whole_norm(deltas),
        **_unrounded(deltas),
        "rank_ceiling": int(ceilings.max()) if len(ceilings) else None,
        "unverified": int((deltas["verified"] == 0).sum()),
        "concentration_q25": finite(quartiles[0]),
        "concentration_q75": finite(quartiles[1]),
        "embedding_row_participation_ratio": median(embedding["row_participation_ratio"]),
        "embedding_rows_changed": median(embedding["rows_changed"]),
    }
    return row_of(PairFigures, tally.figures, counted)


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _of_group(rows: Rows, group: Columns, *, with_norm: bool) -> _Tally:
    """Medians and shares of some delta rows. with_norm: whether the norm too has an interval."""
    tally = _Tally(rows)
    tally.add_medians({name: group[name] for name in MEDIANS}, _delta_blocks(rows, group))
    if not with_norm:
        tally.intervals.pop("relative_norm", None)
    tally.add_ratio("energy_share", tally.of(group), tally.of(rows.deltas))
    tally.figures |= {
        "energy": finite(np.nansum(group["energy"])),
        "parameter_share": over(
            int(group["parameters"].sum()), int(rows.deltas["parameters"].sum())
        ),
        "matrices": len(group),
    }
    return tally


def _by_component(rows: Rows) -> list[ComponentRow]:
    """What became of each component: how much of it is measured or identical, and the figures of
    what is measured.

    energy is null where nothing of it was compared, 0 where all of it is identical.
    """
    matrices = rows.tensors.where(are(rows.tensors["side"], "tuned") & rows.tensors.are_matrices)
    components = []
    for (component,), group in matrices.groups("component"):
        deltas = rows.deltas.of(component)
        # its relative norm is that of all its matrices as one vector
        tally = _of_group(rows, deltas, with_norm=False)
        tally.join(_depth(rows, component))
        counted = {
            "component": component,
            "tensors": len(group),
            "identical": int(are(group["status"], "identical").sum()),
            "relative_norm": _whole_norm(deltas),
        }
        if not group["was_compared"].any():
            counted |= {"energy": None, "energy_share": None}
        components.append(row_of(ComponentRow, tally.figures, counted, vars(tally.bounds())))
    return sorted(components, key=lambda row: order_of(row.component))


def _by_module(rows: Rows) -> list[ModuleRow]:
    """Medians and the share of the energy by component and module, in the order of names.yaml."""
    modules = []
    for (component, module), group in rows.deltas.groups("component", "module"):
        tally = _of_group(rows, group, with_norm=True)
        counted = {
            "component": component,
            "module": module,
            "parameters": int(group["parameters"].sum()),
        }
        modules.append(row_of(ModuleRow, tally.figures, counted, vars(tally.bounds())))
    return sorted(modules, key=lambda row: order_of(row.component, row.module))


def _renumbered_experts(deltas: Columns) -> list[ReportWarning]:
    """Warns of experts that turned where the matrices around them did not: other numbers."""
    is_expert = _of_kind(deltas, ("experts.",))
    others = median(deltas.where(~is_expert).inside["cosine"])
    turned = deltas.where(is_expert & (deltas["cosine"] < TURNED))
    if not len(turned) or others is None or not others > UNTURNED:
        return []
    layers = len(set(turned.inside["layer"]))
    text = (
        f"{len(turned)} expert matrices in {layers} layers have little in common with the base's of"
        f" the same number (cosine below {TURNED}) while the other matrices are close to theirs:"
        " the experts may have been renumbered, and their deltas are then not those of training"
    )
    return [ReportWarning("experts_renumbered", text)]


def _by_layer(rows: Rows) -> list[LayerRow]:
    """For each compared layer of each component: energies, relative norm as one vector, medians of
    the rest.

    energy_share is of the component's layers. up_effective_rank_shift is the signed shift of the
    MLP up-projections (of several experts, the median), the curve of arXiv:2604.07363. A layer that
    is identical has a relative norm of 0.
    """
    deltas = rows.deltas
    at, up = deltas["at"], np.isin(deltas["module"], UP)
    numbers = {name: deltas[name] for name in (*BY_LAYER, "energy")}
    totals = {
        component: total_of(_known(group["energy"]))
        for (component,), group in deltas.inside.groups("component")
    }
    layer_rows = []
    for place, (component, layer) in enumerate(rows.layers):
        here = np.flatnonzero(at == place)
        energy, total = float(numbers["energy"][here].sum()), totals.get(component, 0.0)
        counted = {
            "component": component,
            "layer": layer,
            "matrices": len(here),
            "relative_norm": _whole_norm(deltas.where(here)) if len(here) else 0.0,
            "energy": finite(energy),
            "energy_share": over(energy, total),
            "up_effective_rank_shift": median(numbers["effective_rank_shift"][here[up[here]]]),
        }
        medians = {name: median(numbers[name][here]) for name in BY_LAYER}
        layer_rows.append(row_of(LayerRow, counted, medians))
    return layer_rows


def _quarters(depth: Sequence[LayerRow], deltas: Columns) -> list[QuarterRow]:
    """The shares of each quarter of a component's layers in their energy and their parameters."""
    quarters = []
    sizes: dict[tuple[str, float], float] = {}
    for component, layer, size in deltas.each("component", "layer", "parameters"):
        sizes[component, layer] = sizes.get((component, layer), 0) + size
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


def _without_base(alone: Columns) -> list[AloneRow]:
    rows = []
    for (component,), group in alone.groups("component"):
        medians = {name: median(group[name]) for name in ALONE}
        rows.append(row_of(AloneRow, {"component": component, "matrices": len(group)}, medians))
    return rows


def _skipped(tensors: Columns) -> list[SkippedRow]:
    """Counts by reason, with a few names and the first detail."""
    rows = []
    skipped = tensors.where(are(tensors["status"], "skipped"))
    for (reason,), group in sorted(skipped.groups("reason"), key=lambda one: one[0]):
        sides = Counter(group["side"])
        row = SkippedRow(
            reason=reason,
            tensors=len(group),
            base=sides["base"],
            tuned=sides["tuned"],
            examples=list(dict.fromkeys(group["tensor"]))[:EXAMPLES],
            detail=next((one for one in group["detail"] if one is not None), None),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: -row.tensors)
