"""The tables of a report -> Summary: the figures a person wants first. Pure: reads Parquet files,
prints nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shadow.claims.footprint import Evidence, Gate, Label, failed, footprint, gates
from shadow.claims.reference import Position
from shadow.comparing.gains import MEASURED_BY_OTHERS, Gain, GroupGain, Scored, ScoreFile
from shadow.comparing.kept_scores import read_kept
from shadow.comparing.published import context_sentence, published_figures
from shadow.errors import ShadowError
from shadow.places.groups import ATTENTION, MLP, UP
from shadow.places.names import name_rules
from shadow.reports.columns import SCHEMA
from shadow.reports.metadata import ReportMetadata
from shadow.reports.report import Report
from shadow.reports.tables import absent_note
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
    compared_layers,
    depth_entropy,
    depth_gini,
    effective_layers,
    has_compared,
    is_partial,
    layer_of,
    once,
    ratio,
    summed,
)
from shadow.summary.figures import MEDIANS, InsideLayers, PairFigures
from shadow.summary.grid import grid
from shadow.summary.layer_medians import (
    coherence,
    few_values,
    inside_layers,
    outside_layers,
    unchanged_modules,
)
from shadow.summary.recognised import recognised
from shadow.summary.rows import (
    ALONE,
    BY_LAYER,
    AloneRow,
    Bounds,
    CheckpointSide,
    Claims,
    CoherenceRow,
    ComponentRow,
    GridRow,
    Intervals,
    LayerRow,
    ModuleRow,
    OutsideRow,
    PublishedFigures,
    QuarterRow,
    Recognised,
    ReportWarning,
    SkippedRow,
    UnchangedRow,
    UncomparedRow,
    VectorFigures,
    VocabularyRow,
    WarningCode,
    read_as,
    row_of,
)
from shadow.summary.summary_file import SUMMARISED, believed
from shadow.telling.finding import Finding, finding
from shadow.telling.wording import Sentence

if TYPE_CHECKING:
    # takes half a second to import, and a summary that is believed needs none of it
    import pandas as pd

# cosines below which an expert is another one, and above which the rest is the same model
TURNED, UNTURNED = 0.5, 0.9
QUARTERS = 4  # of the depth
# columns of tensors on which no figure rests
UNREAD = ("dtype", "shard", "expert")
# columns of matrices on which figures rest, of deltas and of matrices without a base
READ = (
    *("component", "layer", "module", "tensor", "base_tensor", "subject", "rows", "cols"),
    *("dtype", "parameters", "rank_ceiling", "verified", "frobenius_norm", "stable_rank"),
    *("effective_rank", "participation_ratio", "numerical_rank", "rank_90", "rank_95", "rank_99"),
    *("top1_energy", "top4_energy", "top16_energy", "top64_energy", "top20_energy"),
    *("relative_norm", "cosine", "effective_rank_shift", "zero_share", "floor_ratio"),
    *("null_participation_ratio", "concentration", "spikes", "spike_energy", "spikes_sharp"),
    *("alignment_left", "alignment_right", "alignment_left_null", "alignment_right_null"),
    *("row_participation_ratio", "rows_changed", "kept", "kept_reason", "kept_history"),
    *("relative_norm_unrounded", "excess_purity", "purity_z", "excess_purity_unrounded"),
    *("equivalent_directions", "decay_cosine", "levels_base", "levels_tuned", "energy_share"),
)
KEY = ("component", "tensor", "module", "layer", "expert")  # of a matrix, whatever its subject
EXAMPLES = 3  # tensors named for each reason
PIECE = 2_000  # rows
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

# The keys that counts have, whatever the report.
STATUSES = ("measured", "identical", "skipped")


@dataclass(frozen=True)
class Summary:
    """What the terminal shows of one pair; `summary.json` is this as JSON.

    Figures are medians over all delta rows unless their name says otherwise; those of depth and of
    the residual stream are of the main component, language where there is one.
    """

    schema: int
    """The number of the schema of the report's files."""

    family: str
    """The family, or the last name of the tuned model."""

    pair: str
    """The two stages compared, `base..tuned`."""

    base: CheckpointSide
    """The base checkpoint."""

    tuned: CheckpointSide
    """The tuned checkpoint."""

    counts: Mapping[str, int]
    """Tensors of both sides by status: measured, identical, skipped."""

    figures: PairFigures

    intervals: Mapping[str, Bounds]
    """(low, high) over layers of figures that have any; None: no_interval says why."""

    layers: int
    """How many layers the intervals are over."""

    interval_level: float | None
    """The probability that the intervals may claim, 0 to 1."""

    no_interval: str | None
    """Why there are no intervals."""

    resampling: Mapping[str, str | float]
    """How the intervals were made."""

    components: list[ComponentRow]
    """A row for each component."""

    modules: list[ModuleRow]
    """A row for each module of a component that changed."""

    depth: list[LayerRow]
    """A row for each layer that was compared."""

    grid: list[GridRow]
    """Modules by layers."""

    inside_layers: InsideLayers

    outside_layers: list[OutsideRow]
    """The same medians of embeddings, head and projectors."""

    coherence: list[CoherenceRow]
    """Of the modules inside layers."""

    quarters: list[QuarterRow]
    """Of the depth of each component of four layers or more."""

    unchanged: list[UnchangedRow]
    """Modules that are identical on both sides."""

    without_base: list[AloneRow]
    """The matrices without a base, by component."""

    vectors: VectorFigures
    """Of biases and norms."""

    vocabulary: list[VocabularyRow]
    """Embeddings and heads with more rows on one side."""

    uncompared: list[UncomparedRow]
    """What has no partner, another shape or no finite numbers."""

    recognised: Recognised
    """Changes that the figures show beyond doubt."""

    skipped: list[SkippedRow]
    """A row for each reason, the most tensors first."""

    warnings: list[ReportWarning]
    """What makes the figures doubtful."""

    gates: list[Gate]
    """What must hold before there is a label."""

    label: Label
    """One of five words."""

    label_reason: str
    """Why it is this label."""

    evidence: list[Evidence]
    """The figures that the label rests on."""

    reference: Position | None
    """Where the pair lies among known trainings of about its size; None: there are none."""

    claims: Claims
    """What is measured, what would explain it, and what is not shown."""

    published: PublishedFigures
    """What others published of this pair, and its place among released ones."""

    finding: Finding
    """The answer in words, what else it may be, and what weights do not show."""

    scores: list[Gain] = field(default_factory=list)
    """What others measured, by benchmark; no figure rests on it. Empty where nobody gave any."""

    score_groups: list[GroupGain] = field(default_factory=list)
    """The means of the gains, one for each group of benchmarks."""

    score_files: list[ScoreFile] = field(default_factory=list)
    """The files that the scores came from."""

    score_notes: list[str] = field(default_factory=list)
    """What was left out of the scores, or makes them doubtful."""

    @property
    def failed_gates(self) -> list[Gate]:
        """The gates that the pair does not pass: its figures are then not those of a training."""
        return failed(self.gates)

    @property
    def has_label(self) -> bool:
        """Does the reference of the lab apply, so that the label says something of the pair?

        It is of decoders: a model of which no attention or MLP is known is none of them, whatever
        its size.
        """
        decoder = any(
            row.component == "language" and row.module.startswith((*ATTENTION, *MLP))
            for row in self.modules
        )
        return decoder and self.reference is not None and not self.failed_gates

    def __str__(self) -> str:
        """The pair, its label and its finding: all fields would fill screens."""
        return f"{self.family}:{self.pair}, {self.label}. {self.finding}"

    def as_json(self) -> dict[str, Any]:
        """The keys of `summary.json`. warnings are texts there, and warning_codes their codes in
        the same order.
        """
        columns: dict[str, Any] = {}
        for key, value in asdict(self).items():
            columns[key] = value
            if key == "warnings":
                columns["warnings"] = [warning.text for warning in self.warnings]
                columns["warning_codes"] = [warning.code for warning in self.warnings]
        return columns

    def with_warning(self, code: WarningCode, text: str) -> Summary:
        """The same summary with one more warning."""
        return replace(self, warnings=[*self.warnings, ReportWarning(code, text)])


@dataclass(frozen=True)
class Rows:
    """The tables of a report as the figures need them."""

    deltas: pd.DataFrame
    """The delta rows, with base_norm, energy, base_energy, participation_share, and at, the place
    of their layer in layers (-1 outside).
    """

    alone: pd.DataFrame
    """The rows of tuned matrices that have no base."""

    tensors: pd.DataFrame
    """All rows of tensors.parquet, with was_compared."""

    residual: pd.DataFrame
    """All rows of residual.parquet."""

    layers: pd.DataFrame
    """component and layer of every layer that was compared."""

    @property
    def main(self) -> str | None:
        """The component whose depth is told: language, or the one of most layers."""
        counts = self.layers["component"].value_counts(sort=True)
        if counts.empty:
            return None
        if "language" in counts.index:
            return "language"
        return str(counts.index[0])


def read_summary(folder: Path, *, with_rows: bool = True) -> tuple[Summary, ReportMetadata]:
    """The summary of a finished report, and the report's provenance.

    What an older report lacks is null, and a warning of the summary. with_rows: are the tables
    there, so that their checksums are compared? Otherwise the seal of the summary alone is. Raises
    ShadowError when the folder holds no finished report, or one of another schema; and without rows
    when the summary would have to be made from them.
    """
    report = SummarisedReport(folder)
    if with_rows:
        return report.summary, report.provenance.told
    sealed = believed(report, with_rows=False)
    if sealed is None:
        raise ShadowError(f"{folder}: its summary was made by another version")
    try:
        return _scored(summary_from_json(sealed), report), report.provenance.told
    except TypeError:  # sealed by somebody else
        raise ShadowError(f"{folder}: its summary is not of the shape that it should be") from None


@dataclass(frozen=True)
class SummarisedReport(Report):
    """A finished report and its summary, for all who show, judge or draw a report."""

    @cached_property
    def summary(self) -> Summary:
        """The figures a person wants first: label, medians with intervals, components, modules,
        depth.

        What an older report lacks is null, and a warning of the summary.
        Raises ShadowError when the folder holds no finished report, or one of another schema.
        """
        return _scored(_believed_or_made(self), self)


def _scored(summary: Summary, report: Report) -> Summary:
    """A summary with the scores that the report keeps."""
    try:
        return with_scores(summary, read_kept(report.folder, report.provenance.told))
    except ShadowError as error:  # the numbers do not rest on them
        return summary.with_warning("scores_unreadable", error.message)


def _believed_or_made(report: Report) -> Summary:
    sealed = believed(report)
    if sealed is None:
        return _made_again(report)
    try:
        return summary_from_json(sealed)
    except TypeError:
        # sealed by somebody else: not of the shape that every reader of a summary may rely on
        return _made_again(report)


def _made_again(report: Report) -> Summary:
    tables = {name: report.table(name) for name in SUMMARISED}
    if not len(tables["tensors"]):
        raise ShadowError(f"{report.folder}: a report without a tensor", "run the audit again")
    summary = summarise(tables, report.provenance.told)
    if not report.absent:
        return summary
    return summary.with_warning("older_report", absent_note(report.absent))


def summary_from_json(stored: Mapping[str, object]) -> Summary:
    """A summary from JSON. Raises TypeError where the JSON is not that of a summary."""
    columns = dict(stored)
    texts = columns.get("warnings")
    codes = columns.pop("warning_codes", None)
    if not isinstance(codes, list) or not isinstance(texts, list) or len(codes) != len(texts):
        raise TypeError
    columns["warnings"] = [
        {"code": code, "text": text} for code, text in zip(codes, texts, strict=True)
    ]
    summary = read_as(Summary, columns)
    if set(summary.counts) != set(STATUSES):
        raise TypeError
    return summary


def with_scores(summary: Summary, scored: Scored) -> Summary:
    """The same figures, and beside them the scores that others measured."""
    if not scored.gains:
        return summary
    not_shown = dict.fromkeys([*summary.claims.not_shown, MEASURED_BY_OTHERS])
    return replace(
        summary,
        claims=replace(summary.claims, not_shown=list(not_shown)),
        scores=list(scored.gains),
        score_groups=scored.groups,
        score_files=scored.named_files,
        score_notes=list(scored.notes),
    )


def summarise(tables: Mapping[str, pa.Table], metadata: ReportMetadata) -> Summary:
    """The summary of the tables matrices, tensors and residual, or of what is `needed` of them;
    metadata is what Identity has.
    """
    rows = _rows(tables)
    statuses = rows.tensors["status"].value_counts()
    figures, intervals = _figures(rows)
    vectors = vector_figures(rows.tensors)
    held = gates(rows.deltas, rows.tensors, vectors)
    unrelated = any(gate.name == "lineage" for gate in failed(held))
    optimizer = metadata["settings"].get("optimizer")
    if not isinstance(optimizer, str):  # null, or what another program wrote
        optimizer = None
    judged = footprint(
        held,
        figures,
        intervals=intervals,
        components=set(rows.deltas["component"]),
        optimizer=optimizer,
        vectors_moved=vectors.changed > 0,
    )
    depth = _by_layer(rows)
    bounds = _bounds(intervals, _delta_blocks(rows, rows.deltas))
    summary = Summary(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=metadata["base"],
        tuned=metadata["tuned"],
        counts={status: int(statuses.get(status, 0)) for status in STATUSES},
        figures=figures,
        intervals=bounds.intervals,
        layers=bounds.layers,
        interval_level=bounds.interval_level,
        no_interval=bounds.no_interval,
        resampling=INTERVALS,
        components=_by_component(rows),
        modules=_by_module(rows),
        depth=depth,
        grid=grid(rows.deltas, rows.tensors),
        inside_layers=inside_layers(rows.deltas),
        outside_layers=outside_layers(rows.deltas),
        coherence=coherence(rows.deltas),
        quarters=_quarters(depth, rows.deltas),
        unchanged=unchanged_modules(rows.tensors),
        without_base=_without_base(rows.alone),
        vectors=vectors,
        vocabulary=vocabulary(rows.tensors),
        uncompared=uncompared(rows.tensors),
        recognised=recognised(
            rows.deltas, next(gate.figure for gate in held if gate.name == "lineage")
        ),
        skipped=_skipped(rows.tensors),
        warnings=[
            *_renumbered_experts(rows.deltas),
            *(ReportWarning("few_values", text) for text in few_values(rows.deltas)),
        ],
        gates=held,
        label=judged.label,
        label_reason=judged.reason,
        evidence=list(judged.evidence),
        reference=judged.position,
        claims=judged.claims,
        published=published_figures(
            rows.tensors, rows.deltas, metadata=metadata, unrelated=unrelated
        ),
        finding=Finding("", [], [], []),
    )
    published = None
    if (known := context_sentence(summary.published)) is not None:
        text, numbers = known
        published = Sentence(code="published", text=text, figures=numbers)
    return replace(summary, finding=finding(summary, metadata["settings"], published))


def needed(name: str, table: pa.Table) -> pa.Table:
    """What a summary needs of the table of this name, or of some of its rows.

    Of matrices: the deltas with the norm of their base in base_norm, and what has no base; all
    subjects of a matrix must be among the rows.
    """
    if name != "matrices":
        return table.drop_columns([name for name in UNREAD if name in table.column_names])
    if "base_norm" in table.column_names:
        return table
    norms = pa.array(_base_norms(table), type=pa.float64(), from_pandas=True)
    subject, base = table["subject"], table["base_tensor"]
    alone = pc.and_(pc.equal(subject, "tuned"), pc.is_null(base))
    chosen = table.select(READ).append_column("base_norm", norms)
    return chosen.filter(pc.or_(pc.equal(subject, "delta"), alone))


def _base_norms(matrices: pa.Table) -> list[float | None]:
    """By row: the norm of the base of the matrix, None where it has none."""
    bases = {
        tuple(key): norm
        for *key, subject, norm in _each(matrices, (*KEY, "subject", "frobenius_norm"))
        if subject == "base"
    }
    return [bases.get(key) for key in _each(matrices, KEY)]


def _each(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row; few rows at a time are values of Python."""
    for batch in table.select(names).to_batches(max_chunksize=PIECE):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _frame(table: pa.Table) -> pd.DataFrame:
    """A table as figures need it, in which equal texts and equal shapes are one object: of 60,000
    matrices they take ten times as much otherwise.

    Small tables compare texts of Python in half the time.
    """
    import pandas as pd

    texts = pd.StringDtype("python", na_value=np.nan)
    columns: dict[str, Any] = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        if name == "shape":
            columns[name] = pd.Series(list(_shared(values)), dtype=object)
        elif pa.types.is_string(values.type):
            columns[name] = pd.Series(_texts(values), dtype=texts)
    numbers: pd.DataFrame = table.drop_columns([*columns]).to_pandas()
    for place, name in enumerate(table.column_names):
        if name in columns:
            numbers.insert(place, name, columns.pop(name))
    return numbers


def _texts(values: pa.ChunkedArray) -> NDArray[np.object_]:
    """The texts of a column, None where it has none."""
    coded = values.combine_chunks().dictionary_encode()
    texts = np.array([*map(sys.intern, coded.dictionary.to_pylist()), None], dtype=object)
    return np.asarray(texts[coded.indices.fill_null(len(texts) - 1).to_numpy()])


def _shared(shapes: pa.ChunkedArray) -> Iterator[tuple[int, ...]]:
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for chunk in shapes.chunks:
        for shape in chunk:
            sizes = tuple(shape.as_py())
            yield known.setdefault(sizes, sizes)


def _rows(tables: Mapping[str, pa.Table]) -> Rows:
    matrices = needed("matrices", tables["matrices"])
    of_delta = pc.equal(matrices["subject"], "delta")
    # a filter copies, and in most reports there is nothing else
    only_deltas = pc.all(of_delta, skip_nulls=False).as_py()
    deltas = _frame(matrices if only_deltas else matrices.filter(of_delta))
    deltas = deltas.assign(
        energy=deltas["frobenius_norm"] ** 2,
        base_energy=deltas["base_norm"] ** 2,
        participation_share=deltas["participation_ratio"] / deltas["null_participation_ratio"],
    )
    tensors = _frame(needed("tensors", tables["tensors"]))
    tensors = tensors.assign(was_compared=has_compared(tensors))
    layers = compared_layers(tensors)
    return Rows(
        deltas=deltas.assign(at=layer_of(layers, deltas)),
        alone=_frame(matrices.filter(pc.invert(of_delta))),
        tensors=tensors,
        residual=_frame(tables["residual"]),
        layers=layers,
    )


def _number(value: Any) -> float | None:
    """A value of a table as Python's; None where it is missing or not finite."""
    import pandas as pd

    if pd.isna(value) or not math.isfinite(value):
        return None
    return float(value)


def _over(part: float, whole: float) -> float | None:
    """part / whole; None over nothing."""
    if not whole:
        return None
    return _number(part / whole)


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
    figures: Figures = {name: _median(_values(rows, name)) for name in names}
    known = [name for name, figure in figures.items() if figure is not None]
    intervals: IntervalsByName = {}
    at_once = max(1, TOGETHER // max(1, len(rows)))
    for start in range(0, len(known), at_once):
        some = known[start : start + at_once]
        columns = np.stack([_values(rows, name) for name in some], axis=1)
        intervals |= zip(some, intervals_of_medians(columns, blocks), strict=True)
    return figures, intervals


def _values(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """The numbers of a column, NaN where it has none."""
    return rows[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    return _number(np.median(known))


def _whole_norm(rows: pd.DataFrame) -> float | None:
    """sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²): the relative norm of all rows as one vector."""
    return _over(math.hypot(*rows["frobenius_norm"]), math.hypot(*rows["base_norm"]))


def _unrounded_norm(deltas: pd.DataFrame) -> float | None:
    """relative_norm_overall of the updates before storage; None unless known of every matrix."""
    stored = deltas["relative_norm"].where(deltas["kept_reason"] == "nothing_rounded")
    norms = deltas["relative_norm_unrounded"].fillna(stored).astype(float)
    return _over(math.hypot(*(norms * deltas["base_norm"])), math.hypot(*deltas["base_norm"]))


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
        figure = _number(statistic(once(self.blocks.layers))[0])
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
        figures[f"{name}_stacked"] = _number(
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
        "short_side": _number(inside.min(axis=1).median()),
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
        "concentration_q25": _number(quartiles[0.25]),
        "concentration_q75": _number(quartiles[0.75]),
        **{name: value for name, value in whole.figures.items() if name != "relative_norm_overall"},
        **depth,
        **residual,
        "embedding_row_participation_ratio": _number(embedding["row_participation_ratio"].max()),
        "embedding_rows_changed": _number(embedding["rows_changed"].max()),
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
            energy = _number(deltas["energy"].sum())
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
            "energy": _number(group["energy"].sum()),
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
    numbers = {name: _values(deltas, name) for name in (*BY_LAYER, "energy")}
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
            "energy": _number(energy),
            "energy_share": _over(energy, total),
            "up_effective_rank_shift": _median(numbers["effective_rank_shift"][here[up[here]]]),
        }
        medians = {name: _median(numbers[name][here]) for name in BY_LAYER}
        directions = {
            f"{direction}_participation_ratio": _number(
                stacks.get((component, layer, direction), math.nan)
            )
            for direction in ("reading", "writing")
        }
        layer_rows.append(row_of(LayerRow, counted, medians, directions))
    return layer_rows


def _parameter_share(group: pd.DataFrame, rows: Rows) -> float | None:
    return _over(int(group["parameters"].sum()), int(rows.deltas["parameters"].sum()))


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
                    parameter_share=_over(size, whole),
                )
            )
    return quarters


def _without_base(alone: pd.DataFrame) -> list[AloneRow]:
    rows = []
    for component, group in alone.groupby("component", sort=False):
        medians = {name: _number(group[name].median()) for name in ALONE}
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
