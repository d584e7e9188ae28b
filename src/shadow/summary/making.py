"""The tables of a report -> the record of its pair. Pure: prints and writes nothing.

Energy is the sum of ||D||_F² over matrices; its distribution over layers, modules and components
says where the update went.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from shadow.places.names import ATTENTION, MLP
from shadow.reports.provenance import SCHEMA, SIDES, CheckpointMetadata, ReportMetadata
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
from shadow.summary.components import by_component, order_of
from shadow.summary.files import files
from shadow.summary.gate_figures import unjudged_formats
from shadow.summary.layer_medians import by_module, inside_layers
from shadow.summary.record import (
    Coherence,
    ComponentRow,
    Correspondence,
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
    keys_of,
    main_of,
    read_row,
    tier_of,
)
from shadow.summary.tables import (
    Columns,
    Rows,
    are,
    count,
    finite,
    is_known,
    is_partial,
    largest,
    mask_of,
    median,
    over,
    total_of,
)
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

QUARTERS = 4  # of the depth
MEDIANS = keys_of(Medians)
MOSTLY_KNOWN = 0.9  # of the stored energy: in matrices of which the update's norm is known


def record_of(rows: Rows, metadata: ReportMetadata, lineage: float | None) -> PairRecord:
    """Make the record of a pair. lineage: the median cosine of its two models."""
    tensors = rows.tensors
    deltas = rows.deltas
    statuses = Counter(tensors["status"])
    tally = _overall(rows)
    depth = _by_layer(rows)
    return PairRecord(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=_side(metadata["base"]),
        tuned=_side(metadata["tuned"]),
        counts=StatusCounts(**{status: statuses[status] for status in keys_of(StatusCounts)}),
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
        without_base=_without_base(rows.without_base),
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
        correspondence=correspondence_in(metadata),
        **tally.over_layers(),
    )


def correspondence_in(metadata: ReportMetadata) -> Correspondence | None:
    """The parts that correspond, but not by number, as the report says it; None if it does not say
    it as an audit does.
    """
    recorded = metadata.get("correspondence")
    with suppress(TypeError):
        return read_row(Correspondence, recorded) if recorded else None
    return None


@dataclass(frozen=True)
class Sum:
    """A sum over rows, such as their energy."""

    layers: Floats  # (layers,): what of it is in each layer
    outside: float  # what of it is outside the layers


def ratio(part: Sum, whole: Sum, counts: Counts) -> Floats:
    """One sum over another, NaN if that is 0 or one of them is not finite."""
    above = counts @ part.layers + part.outside
    below = counts @ whole.layers + whole.outside
    is_defined = np.isfinite(above) & np.isfinite(below) & (below != 0)
    quotient = np.full(len(counts), np.nan)
    np.divide(above, below, out=quotient, where=is_defined)
    quotient[np.isinf(quotient)] = np.nan
    return quotient


def effective_layers(energies: Floats) -> float:
    """exp(-sum p ln p), where p is the share of each layer in the energy: how many layers hold the
    update, in [1, layers]. NaN without energy.
    """
    every = np.ones(len(energies))
    total = every @ energies
    if not 0 < total < math.inf:
        return math.nan
    logs = np.zeros(len(energies))
    np.log(energies, out=logs, where=energies > 0)
    mean = every @ (energies * logs) / total
    entropy = np.log(total) - mean
    return float(np.minimum(np.exp(entropy), len(every)))  # but for rounding


def depth_entropy(energies: Floats) -> float:
    """-sum p ln p / ln(layers), in [0, 1]: 1 if all layers have equal shares; NaN for one layer."""
    if len(energies) < 2:
        return math.nan
    entropy = np.log(effective_layers(energies))
    return float(entropy / np.log(np.float64(len(energies))))


class _Tally:
    """Figures being made and their intervals over layers: those of a component, or all."""

    def __init__(self, rows: Rows, component: str | None = None) -> None:
        self.rows = rows
        chosen = [component in (None, of_layer) for of_layer, _ in rows.layers]
        self.chosen = mask_of(chosen)  # of all layers
        self.blocks = rows.blocks.where(self.chosen)
        self.figures: dict[str, float | int | None] = {}
        self.intervals: dict[str, Interval] = {}
        self.drawn = self.blocks  # over which a row's intervals are

    def energy(self, deltas: Columns) -> Sum:
        """The energy of delta rows."""
        return self.sum(deltas, deltas["energy"])

    def sum(self, deltas: Columns, values: Floats) -> Sum:
        """Sum values over delta rows."""
        at = deltas["at"]
        is_inside = at >= 0
        sums = np.bincount(at[is_inside], values[is_inside], minlength=len(self.chosen))
        layers = sums.astype(np.float64)
        outside = values[~is_inside].sum()
        return Sum(layers[self.chosen], float(outside))

    def add(self, name: str, statistic: Statistic) -> None:
        """Add a figure and its interval."""
        # every layer once: the draw that gives the figure itself
        every = np.ones((1, self.blocks.layers), dtype=np.int32)
        figure = finite(statistic(every)[0])
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
        self.drawn = whole.where(mask_of([True] * len(deltas)))
        self.figures |= deltas.medians(*MEDIANS)
        for name in MEDIANS:
            if self.figures[name] is not None:
                self.intervals[name] = interval_of_median(deltas[name], self.drawn)

    def add_depth(self, component: str | None) -> None:
        """Add how evenly a component's update lies over its layers, and over attention and MLP."""
        depth = _Tally(self.rows, component or "")
        deltas = self.rows.deltas.of(component)
        energies = depth.energy(deltas).layers
        # without intervals: what is drawn again is less even than it was
        depth.figures |= {
            "depth_layers": depth.blocks.layers,
            "depth_entropy": finite(depth_entropy(energies)),
            "effective_layers": finite(effective_layers(energies)),
            "attention_to_mlp": None,
        }
        compared = self.rows.compared.of(component)
        if _of_kind(compared, ATTENTION).any() and _of_kind(compared, MLP).any():
            attention = depth.energy(deltas.where(_of_kind(deltas, ATTENTION)))
            mlp = depth.energy(deltas.where(_of_kind(deltas, MLP)))
            depth.add_ratio("attention_to_mlp", attention, mlp)
        self.figures |= depth.figures
        self.intervals |= depth.intervals

    def over_layers(self) -> dict[str, Any]:
        """The intervals of a row: the values of OverLayers."""
        common = interval(lambda counts: np.zeros(len(counts)), self.drawn)
        return {
            "intervals": {name: figure.bounds for name, figure in self.intervals.items()},
            "layers": common.layers,
            "interval_level": common.level,
            "no_interval": common.reason,
        }


def _whole_norm(rows: Columns) -> float | None:
    """The relative norm of all rows as one vector: sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²)."""
    norm = math.hypot(*rows["frobenius_norm"])
    base_norm = math.hypot(*rows["base_norm"])
    return over(norm, base_norm)


def _unrounded(deltas: Columns) -> dict[str, float | None]:
    """The relative norm of the updates before storage, as one vector: the ratio to what is stored
    in the matrices where it is known, if these have most of the energy.
    """
    reasons = deltas["kept_reason"]
    norms = deltas["relative_norm_unrounded"]
    has_reason = reasons != None  # noqa: E711
    is_judged = has_reason.any() or is_known(norms).any()
    is_untouched = np.isnan(norms) & are(reasons, "nothing_rounded")
    norms = np.where(is_untouched, deltas["relative_norm"], norms)
    known = is_known(norms)
    overall = math.hypot(*deltas["frobenius_norm"])
    of_known = math.hypot(*deltas["frobenius_norm"][known])
    share: float | None = None
    norm: float | None = None
    if 0 < overall < math.inf:
        share = (of_known / overall) ** 2
    if share is not None and share >= MOSTLY_KNOWN:
        unit = over(overall, of_known * math.hypot(*deltas["base_norm"]))
        updates = (norms * deltas["base_norm"])[known]
        norm = finite(unit * math.hypot(*updates)) if unit else None
    return {
        "relative_norm_overall_unrounded": norm,
        "unrounded_share": share if is_judged else None,
    }


def _of_kind(deltas: Columns, kind: tuple[str, ...]) -> Mask:
    """A mask of the rows of modules whose names begin with a kind."""
    return mask_of([(name or "").startswith(kind) for name in deltas["module"]])


def _main(rows: Rows) -> str | None:
    """The component whose depth counts: language, or the one with most layers."""
    return main_of(Counter(component for component, _ in rows.layers))


def _overall(rows: Rows) -> _Tally:
    """The figures of the pair that have intervals, in order."""
    deltas = rows.deltas
    tally = _Tally(rows)
    judged = deltas
    if unjudged_formats(deltas):
        judged = deltas.added(floor_ratio=np.full(len(deltas), np.nan))
    tally.add_medians(judged)
    energy = tally.energy(deltas)
    base_energy = tally.sum(deltas, deltas["base_energy"])
    tally.add("relative_norm_overall", lambda counts: np.sqrt(ratio(energy, base_energy, counts)))
    sizes = deltas["parameters"]
    same = tally.sum(deltas, deltas["zero_share"] * sizes)
    tally.add_ratio("zero_share", same, tally.sum(deltas, sizes))
    spikes = deltas["spikes"]
    spiked = tally.sum(deltas, (spikes > 0).astype(float))
    counted = tally.sum(deltas, is_known(spikes).astype(float))
    tally.add_ratio("spiked", spiked, counted)
    with_base = set(rows.compared["component"])
    for component in ("vision", "projector"):
        name = f"{component}_to_language"
        tally.figures[name] = None
        if {component, "language"} <= with_base:
            own = tally.energy(deltas.of(component))
            language = tally.energy(deltas.of("language"))
            tally.add_ratio(name, own, language)
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
    """The figures of the pair. tally: those that have intervals."""
    deltas = rows.deltas
    tensors = rows.tensors.added(size=rows.tensors.sizes)
    sides = [tensors.having(side=side) for side in SIDES]
    # of an adapter, that is the base
    larger = max(sides, key=lambda side: sum(side["size"]))
    sizes = {status: sum(larger.having(status=status)["size"]) for status in keys_of(StatusCounts)}
    partly_measured = larger.where(is_partial(larger))["compared"].sum()
    ceiling = largest(deltas["rank_ceiling"])
    embeddings = deltas.of(_main(rows)).having(module="embed")
    embedding = embeddings.where(range(min(1, len(embeddings))))
    inside = deltas.inside
    return PairFigures.from_parts(
        tally.figures,
        _unrounded(deltas),
        matrices=len(deltas),
        short_side=median(np.fmin(inside["rows"], inside["cols"])),
        parameters=sum(sizes.values()),
        parameters_measured=sizes["measured"] + int(partly_measured),
        parameters_identical=sizes["identical"],
        relative_norm_overall=_whole_norm(deltas),
        rank_ceiling=None if ceiling is None else int(ceiling),
        matrices_rounded=len(rows.rounded),
        parameters_rounded=int(rows.rounded["parameters"].sum()),
        unverified=count(deltas["verified"] == 0),
        embedding_row_participation_ratio=median(embedding["row_participation_ratio"]),
        embedding_rows_changed=median(embedding["rows_changed"]),
    )


def _without_base(matrices: Columns) -> list[WithoutBase]:
    """The components that have no base."""
    components = []
    for (component,), group in matrices.groups("component"):
        medians = group.medians("stable_rank", "effective_rank", "participation_ratio")
        components.append(WithoutBase.from_parts(medians, component=component, matrices=len(group)))
    return components


def _of_group(rows: Rows, group: Columns) -> _Tally:
    """Medians and shares of some delta rows."""
    tally = _Tally(rows)
    tally.add_medians(group)
    total = tally.energy(rows.deltas)
    tally.add_ratio("energy_share", tally.energy(group), total)
    parameters = int(group["parameters"].sum())
    whole = int(rows.deltas["parameters"].sum())
    tally.figures |= {
        "energy": finite(np.nansum(group["energy"])),
        "parameter_share": over(parameters, whole),
        "parameters": parameters,
        "matrices": len(group),
    }
    return tally


def _by_component(rows: Rows) -> list[ComponentRow]:
    """For each component, how much of it is measured or identical, and the figures of what is
    measured.

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
        row = ComponentRow.from_parts(
            tally.figures,
            tally.over_layers(),
            component=component,
            tensors=len(group),
            identical=len(group.having(status="identical")),
        )
        components.append(row)
    return sorted(components, key=lambda row: order_of(row.component))


def _by_module(rows: Rows) -> list[ModuleRow]:
    """Medians and the share of the energy by component and module, in the order of names.yaml."""
    modules = []
    for (component, module), group in rows.deltas.groups("component", "module"):
        tally = _of_group(rows, group)
        intervals = tally.over_layers()
        row = ModuleRow.from_parts(tally.figures, intervals, component=component, module=module)
        modules.append(row)
    return sorted(modules, key=lambda row: order_of(row.component, row.module))


def _by_layer(rows: Rows) -> list[LayerRow]:
    """Energies, the relative norm as one vector, and medians for each compared layer of each
    component.

    energy_share is of the component's layers. A layer that is identical or only rounded has a
    relative norm of 0.
    """
    totals = {}
    for (component,), group in rows.deltas.inside.groups("component"):
        energies = group["energy"]
        totals[component] = total_of(energies[is_known(energies)])
    layers = []
    for number, (component, layer) in enumerate(rows.layers):
        deltas = rows.deltas.where(rows.deltas["at"] == number)
        energy = float(deltas["energy"].sum())
        row = LayerRow.from_parts(
            deltas.medians("concentration", "effective_rank_shift", "spikes"),
            component=component,
            layer=layer,
            matrices=len(deltas),
            relative_norm=_whole_norm(deltas) if len(deltas) else 0.0,
            energy=finite(energy),
            energy_share=over(energy, totals.get(component, 0.0)),
            matrices_rounded=count(rows.rounded["at"] == number),
        )
        layers.append(row)
    return layers


def _quarters(depth: list[LayerRow], deltas: Columns) -> list[Quarter]:
    """The shares of each quarter of a component's layers in energy and parameters."""
    inside = deltas.where(deltas["at"] >= 0)
    of_layers = np.bincount(inside["at"], inside["parameters"], minlength=len(depth))
    quarters = []
    begin = 0
    for component, layers in by_component(depth).items():
        sizes = of_layers[begin : begin + len(layers)]
        begin += len(layers)
        shares = [layer.energy_share for layer in layers if layer.energy_share is not None]
        if len(layers) < QUARTERS or len(shares) < len(layers):
            continue
        for number in range(QUARTERS):
            start = number * len(layers) // QUARTERS
            end = (number + 1) * len(layers) // QUARTERS
            row = Quarter(
                component=component,
                quarter=number + 1,
                first_layer=layers[start].layer,
                last_layer=layers[end - 1].layer,
                energy_share=math.fsum(shares[start:end]),
                parameter_share=over(sizes[start:end].sum(), sizes.sum()),
            )
            quarters.append(row)
    return quarters


def grid(deltas: Columns, tensors: Columns) -> list[GridRow]:
    """Modules by layers: how far each moved, and how concentrated its change is; a row for each
    module of a component that has layers, in the order of names.yaml; medians over experts.

    A matrix that is identical on both sides counts as not moved.
    """
    same = tensors.having(side="tuned", status="identical").inside
    cells = defaultdict[tuple[str, str], dict[int, list[float | None]]](dict)
    for component, module, layer in same.each("component", "module", "layer"):
        cells[component, module][int(layer)] = [0.0, None]
    for (component, module, layer), group in deltas.inside.groups("component", "module", "layer"):
        medians = group.medians("relative_norm", "concentration")
        cells[component, module][int(layer)] = [*medians.values()]
    rows = []
    for component, module in sorted(cells, key=lambda place: order_of(*place)):
        by_layer = dict(sorted(cells[component, module].items()))
        norms, concentrations = zip(*by_layer.values(), strict=True)
        row = GridRow(
            component=component,
            module=module,
            layers=[*by_layer],
            relative_norm=[*norms],
            concentration=[*concentrations],
        )
        rows.append(row)
    return rows
