"""The tables of a report -> the record of its pair. Pure: prints and writes nothing.

Energy is the sum of ||D||_F² over matrices; its distribution over layers, modules and components
says where the update went.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from shadow.places.names import ATTENTION, MLP
from shadow.reports.provenance import SCHEMA, CheckpointMetadata, ReportMetadata
from shadow.summary.bootstrap import (
    Blocks,
    Counts,
    Floats,
    Interval,
    Mask,
    Statistic,
    interval,
    interval_of_median,
)
from shadow.summary.changes import recognised
from shadow.summary.files import files
from shadow.summary.gate_figures import unjudged_formats
from shadow.summary.layer_medians import by_module, inside_layers
from shadow.summary.record import (
    STATUSES,
    Coherence,
    ComponentRow,
    GridRow,
    LayerRow,
    Medians,
    ModuleRow,
    OutsideLayers,
    PairFigures,
    PairRecord,
    Quarter,
    StatusCounts,
    WithoutBase,
    by_component,
    keys_of,
    main_of,
    order_of,
    tier_of,
)
from shadow.summary.tables import Columns, Rows, are, finite, is_partial, median, over, total_of
from shadow.summary.tensors import (
    broken,
    idle_updates,
    skipped,
    unchanged,
    unnamed_updates,
    vectors,
    vocabulary,
)
from shadow.summary.uncompared import uncompared

ALONE = ("stable_rank", "effective_rank", "participation_ratio")
QUARTERS = 4  # of the depth
MEDIANS = keys_of(Medians)
BY_LAYER = ("concentration", "effective_rank_shift", "spikes")  # the medians of a layer
MOSTLY_KNOWN = 0.9  # of the stored energy: in matrices of which the update's norm is known


def record_of(rows: Rows, metadata: ReportMetadata, lineage: float | None) -> PairRecord:
    """Make the record of a pair. lineage: the median cosine of its two models."""
    tensors, deltas = rows.tensors, rows.deltas
    statuses = Counter(tensors["status"])
    tally, depth = _overall(rows), _by_layer(rows)
    return PairRecord(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=_side(metadata["base"]),
        tuned=_side(metadata["tuned"]),
        counts=StatusCounts.from_parts({status: statuses[status] for status in STATUSES}),
        figures=_figures(rows, tally),
        components=_by_component(rows),
        modules=_by_module(rows),
        depth=depth,
        grid=grid(rows.measured, tensors),
        inside_layers=inside_layers(deltas),
        outside_layers=by_module(OutsideLayers, deltas.outside),
        coherence=by_module(Coherence, deltas.inside),
        quarters=_quarters(depth, deltas),
        unchanged=unchanged(tensors),
        without_base=[
            WithoutBase.from_parts(group.medians(*ALONE), component=component, matrices=len(group))
            for (component,), group in rows.alone.groups("component")
        ],
        vectors=vectors(tensors),
        vocabulary=vocabulary(tensors),
        uncompared=uncompared(tensors),
        recognised=recognised(deltas, tensors, lineage),
        skipped=skipped(tensors),
        warnings=[],
        warning_codes=[],
        idle_updates=idle_updates(tensors),
        unnamed_updates=unnamed_updates(tensors),
        broken=broken(tensors),
        tier=tier_of(metadata["settings"]),
        estimated=bool(are(deltas["precision"], "sketch").any()),
        files=files(rows.files),
        **tally.over_layers(),
    )


@dataclass(frozen=True)
class Sum:
    """A sum over rows, such as their energy."""

    layers: Floats  # (layers,): what of it is in each layer
    outside: float  # what of it is outside the layers


def ratio(part: Sum, whole: Sum, counts: Counts) -> Floats:
    """Return one sum over another, NaN if that is 0 or one of them is not finite."""
    above = counts @ part.layers + part.outside
    below = counts @ whole.layers + whole.outside
    known = np.isfinite(above) & np.isfinite(below) & (below != 0)
    quotient = np.divide(above, below, out=np.full(len(counts), np.nan), where=known)
    return np.where(np.isfinite(quotient), quotient, np.nan)


def effective_layers(energies: Floats) -> float:
    """Return exp(-sum p ln p), where p is the share of each layer in the energy: how many layers
    hold the update, in [1, layers]. NaN without energy.
    """
    every = np.ones(len(energies))
    total = every @ energies
    if not 0 < total < math.inf:
        return math.nan
    logs = every @ (energies * np.log(energies, out=np.zeros(len(energies)), where=energies > 0))
    return float(np.minimum(np.exp(np.log(total) - logs / total), len(every)))  # but for rounding


def depth_entropy(energies: Floats) -> float:
    """Return -sum p ln p / ln(layers), in [0, 1]: 1 if all layers have equal shares; NaN for one
    layer.
    """
    if len(energies) < 2:
        return math.nan
    return float(np.log(effective_layers(energies)) / np.log(np.float64(len(energies))))


class _Tally:
    """Figures being made and their intervals over layers: those of a component, or all."""

    def __init__(self, rows: Rows, component: str | None = None) -> None:
        self.rows = rows
        self.chosen = np.array([component in (None, one) for one, _ in rows.layers], dtype=np.bool_)
        self.blocks = rows.blocks.where(self.chosen)
        self.figures: dict[str, float | int | None] = {}
        self.intervals: dict[str, Interval] = {}
        self.drawn = self.blocks  # over which a row's intervals are

    def of(self, deltas: Columns, values: str | Floats = "energy") -> Sum:
        """Sum a column, or given values, over delta rows."""
        values, at = deltas[values] if isinstance(values, str) else values, deltas["at"]
        inside = at >= 0
        sums = np.bincount(at[inside], weights=values[inside], minlength=len(self.chosen))
        return Sum(sums.astype(np.float64)[self.chosen], float(values[~inside].sum()))

    def add(self, name: str, statistic: Statistic) -> None:
        """Add a figure and its interval."""
        # every layer once: the draw that gives the figure itself
        figure = finite(statistic(np.ones((1, self.blocks.layers), dtype=np.int32))[0])
        self.figures[name] = figure
        if figure is not None:
            self.intervals[name] = interval(statistic, self.blocks)

    def add_ratio(self, name: str, part: Sum, whole: Sum) -> None:
        """Add the ratio of two sums; null if the second is 0."""
        self.add(name, partial(ratio, part, whole))

    def add_medians(self, deltas: Columns) -> None:
        """Add MEDIANS over delta rows, each counted once."""
        # without looking every layer up again
        whole = Blocks(deltas["at"], self.rows.blocks.strata)
        self.drawn = whole.where(np.ones(len(deltas), dtype=np.bool_))
        for name in MEDIANS:
            self.figures[name] = figure = median(deltas[name])
            if figure is not None:
                self.intervals[name] = interval_of_median(deltas[name], self.drawn)

    def add_depth(self, component: str | None) -> None:
        """Add how evenly a component's update lies over its layers, and over attention and MLP."""
        depth = _Tally(self.rows, component or "")
        deltas = self.rows.deltas.of(component)
        energies, kinds = depth.of(deltas).layers, (ATTENTION, MLP)
        # without intervals: what is drawn anew is less even than it was
        depth.figures |= {
            "depth_layers": depth.blocks.layers,
            "depth_entropy": finite(depth_entropy(energies)),
            "effective_layers": finite(effective_layers(energies)),
            "attention_to_mlp": None,
        }
        compared = self.rows.compared.of(component)
        if all(_of_kind(compared, kind).any() for kind in kinds):
            sums = (depth.of(deltas.where(_of_kind(deltas, kind))) for kind in kinds)
            depth.add_ratio("attention_to_mlp", *sums)
        self.figures |= depth.figures
        self.intervals |= depth.intervals

    def over_layers(self) -> dict[str, Any]:
        """Return the intervals of a row."""
        any_of_them = interval(lambda counts: np.zeros(len(counts)), self.drawn)
        return {
            "intervals": {name: of_figure.bounds for name, of_figure in self.intervals.items()},
            "layers": any_of_them.layers,
            "interval_level": any_of_them.level,
            "no_interval": any_of_them.reason,
        }


def _whole_norm(rows: Columns) -> float | None:
    """Return sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²), the relative norm of all rows as one
    vector.
    """
    return over(math.hypot(*rows["frobenius_norm"]), math.hypot(*rows["base_norm"]))


def _unrounded(deltas: Columns) -> dict[str, float | None]:
    """Return the relative norm of the updates before storage, as one vector: the ratio to what is
    stored in the matrices where it is known, if these have most of the energy.
    """
    norms, bases, stored = (
        deltas[name] for name in ("relative_norm_unrounded", "base_norm", "frobenius_norm")
    )
    is_judged = bool((deltas["kept_reason"] != None).any() or not np.isnan(norms).all())  # noqa: E711
    as_stored = np.isnan(norms) & are(deltas["kept_reason"], "nothing_rounded")
    norms = np.where(as_stored, deltas["relative_norm"], norms)
    known = ~np.isnan(norms)
    of_known, overall = math.hypot(*stored[known]), math.hypot(*stored)
    share = (of_known / overall) ** 2 if 0 < overall < math.inf else None
    unit = math.nan  # without a share above MOSTLY_KNOWN
    if share is not None and share >= MOSTLY_KNOWN:
        unit = over(overall, of_known * math.hypot(*bases)) or math.nan
    return {
        "relative_norm_overall_unrounded": finite(unit * math.hypot(*(norms * bases)[known])),
        "unrounded_share": share if is_judged else None,
    }


def _of_kind(deltas: Columns, kind: tuple[str, ...]) -> Mask:
    """Return which rows are of modules whose names begin with a kind."""
    return np.array([(name or "").startswith(kind) for name in deltas["module"]], dtype=np.bool_)


def _main(rows: Rows) -> str | None:
    """Return the component whose depth counts: language, or the one with most layers."""
    return main_of([component for component, _ in rows.layers])


def _overall(rows: Rows) -> _Tally:
    """Return the figures of the pair that have intervals, in order."""
    deltas, tally = rows.deltas, _Tally(rows)
    unknown = np.full(len(deltas), np.nan)
    tally.add_medians(deltas.added(floor_ratio=unknown) if unjudged_formats(deltas) else deltas)
    norms, bases = tally.of(deltas), tally.of(deltas, "base_energy")
    tally.add("relative_norm_overall", lambda counts: np.sqrt(ratio(norms, bases, counts)))
    zeros = tally.of(deltas, deltas["zero_share"] * deltas["parameters"])
    tally.add_ratio("zero_share", zeros, tally.of(deltas, "parameters"))
    spiked, counted = deltas["spikes"] > 0, ~np.isnan(deltas["spikes"])
    tally.add_ratio("spiked", *(tally.of(deltas, some.astype(float)) for some in (spiked, counted)))
    with_base = set(rows.compared["component"])
    for component in ("vision", "projector"):
        name = f"{component}_to_language"
        tally.figures[name] = None
        if {component, "language"} <= with_base:
            tally.add_ratio(name, *(tally.of(deltas.of(one)) for one in (component, "language")))
    tally.add_depth(_main(rows))
    return tally


def _side(recorded: CheckpointMetadata) -> CheckpointMetadata:
    """A side without the keys that other versions recorded."""
    return CheckpointMetadata(
        repo=recorded["repo"],
        commit=recorded["commit"],
        fingerprint=recorded["fingerprint"],
        content=recorded.get("content"),
    )


def _figures(rows: Rows, tally: _Tally) -> PairFigures:
    tensors, deltas = rows.tensors, rows.deltas
    tensors = tensors.added(size=tensors.sizes)
    sides = (tensors.having(side=side) for side in ("base", "tuned"))
    # of an adapter, that is the base
    larger = max(sides, key=lambda of_side: sum(of_side["size"]))
    sizes = {status: sum(larger["size"][are(larger["status"], status)]) for status in STATUSES}
    ceilings = deltas["rank_ceiling"]
    embeddings = deltas.where((deltas["module"] == "embed") & (deltas["component"] == _main(rows)))
    embedding = embeddings.where([0] if len(embeddings) else [])
    inside = deltas.inside
    return PairFigures.from_parts(
        tally.figures,
        _unrounded(deltas),
        matrices=len(deltas),
        short_side=median(np.fmin(inside["rows"], inside["cols"])),
        parameters=sum(sizes.values()),
        parameters_measured=sizes["measured"] + int(larger["compared"][is_partial(larger)].sum()),
        parameters_identical=sizes["identical"],
        relative_norm_overall=_whole_norm(deltas),
        rank_ceiling=None if np.isnan(ceilings).all() else int(np.nanmax(ceilings)),
        matrices_rounded=len(rows.rounded),
        parameters_rounded=int(rows.rounded["parameters"].sum()),
        unverified=int((deltas["verified"] == 0).sum()),
        embedding_row_participation_ratio=median(embedding["row_participation_ratio"]),
        embedding_rows_changed=median(embedding["rows_changed"]),
    )


def _of_group(rows: Rows, group: Columns) -> _Tally:
    """Return medians and shares of some delta rows."""
    tally = _Tally(rows)
    tally.add_medians(group)
    tally.add_ratio("energy_share", tally.of(group), tally.of(rows.deltas))
    size, whole = (int(some["parameters"].sum()) for some in (group, rows.deltas))
    tally.figures |= {
        "energy": finite(np.nansum(group["energy"])),
        "parameter_share": over(size, whole),
        "parameters": size,
        "matrices": len(group),
    }
    return tally


def _by_component(rows: Rows) -> list[ComponentRow]:
    """Return, for each component, how much of it is measured or identical, and the figures of what
    is measured.

    energy is null if nothing was compared, 0 if everything is identical.
    """
    matrices = rows.tensors.where(rows.tensors.are_matrices).having(side="tuned")
    components = []
    for (component,), group in matrices.groups("component"):
        deltas = rows.deltas.of(component)
        tally = _of_group(rows, deltas)
        # its relative norm is that of all its matrices as one vector
        tally.intervals.pop("relative_norm", None)
        tally.figures["relative_norm"] = _whole_norm(deltas)
        tally.add_depth(component)
        if not group["was_compared"].any():
            tally.figures |= {"energy": None, "energy_share": None}
        tally.figures |= {
            "tensors": len(group),
            "identical": int(are(group["status"], "identical").sum()),
        }
        components.append(
            ComponentRow.from_parts(tally.figures, tally.over_layers(), component=component)
        )
    return sorted(components, key=lambda one: order_of(one.component))


def _by_module(rows: Rows) -> list[ModuleRow]:
    """Return medians and the share of the energy by component and module, in the order of
    names.yaml.
    """
    modules = []
    for (component, module), group in rows.deltas.groups("component", "module"):
        tally, of = _of_group(rows, group), {"component": component, "module": module}
        modules.append(ModuleRow.from_parts(tally.figures, tally.over_layers(), of))
    return sorted(modules, key=lambda one: order_of(one.component, one.module))


def _by_layer(rows: Rows) -> list[LayerRow]:
    """Return energies, the relative norm as one vector, and medians for each compared layer of each
    component.

    energy_share is of the component's layers. A layer that is identical or only rounded has a
    relative norm of 0.
    """
    deltas = rows.deltas
    totals = {
        component: total_of(group["energy"][~np.isnan(group["energy"])])
        for (component,), group in deltas.inside.groups("component")
    }
    layers = []
    for place, (component, layer) in enumerate(rows.layers):
        here = deltas.where(deltas["at"] == place)
        energy = float(here["energy"].sum())
        one = LayerRow.from_parts(
            here.medians(*BY_LAYER),
            component=component,
            layer=layer,
            matrices=len(here),
            matrices_rounded=int((rows.rounded["at"] == place).sum()),
            relative_norm=_whole_norm(here) if len(here) else 0.0,
            energy=finite(energy),
            energy_share=over(energy, totals.get(component, 0.0)),
        )
        layers.append(one)
    return layers


def _quarters(depth: list[LayerRow], deltas: Columns) -> list[Quarter]:
    """Return the shares of each quarter of a component's layers in energy and parameters."""
    at, sizes = deltas["at"], deltas["parameters"]
    of_layers = np.bincount(at[at >= 0], weights=sizes[at >= 0], minlength=len(depth))
    quarters, begin = [], 0
    for component, layers in by_component(depth).items():
        size = of_layers[begin : begin + len(layers)]
        begin += len(layers)
        shares = [layer.energy_share for layer in layers]
        if len(layers) < QUARTERS or None in shares:
            continue
        ends = [quarter * len(layers) // QUARTERS for quarter in range(QUARTERS + 1)]
        for number, (start, end) in enumerate(pairwise(ends), 1):
            row = Quarter(
                component=component,
                quarter=number,
                first_layer=layers[start].layer,
                last_layer=layers[end - 1].layer,
                energy_share=math.fsum(share for share in shares[start:end] if share is not None),
                parameter_share=over(size[start:end].sum(), size.sum()),
            )
            quarters.append(row)
    return quarters


def grid(deltas: Columns, tensors: Columns) -> list[GridRow]:
    """Return modules by layers: how far each moved, and how concentrated its change is; a row for
    each module of a component that has layers, in the order of names.yaml; medians over experts.

    A matrix that is identical on both sides counts as not moved.
    """
    same = tensors.having(side="tuned", status="identical").inside
    cells = defaultdict[tuple[str, str], dict[int, tuple[float | None, float | None]]](dict)
    for component, module, layer in same.each("component", "module", "layer"):
        cells[component, module][int(layer)] = (0.0, None)
    for (component, module), group in deltas.inside.groups("component", "module"):
        for layer in np.unique(group["layer"]).tolist():
            here = group.where(group["layer"] == layer)
            middle = median(here["relative_norm"]), median(here["concentration"])
            cells[component, module][int(layer)] = middle
    rows = []
    for component, module in sorted(cells, key=lambda place: order_of(*place)):
        layers, figures = zip(*sorted(cells[component, module].items()), strict=True)
        norms, concentrations = map(list, zip(*figures, strict=True))
        rows.append(
            GridRow(
                component=component,
                module=module,
                layers=list(layers),
                relative_norm=norms,
                concentration=concentrations,
            )
        )
    return rows
