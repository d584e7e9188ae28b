"""The schema of a report's files, for machines. Everything it says is in shadow.reports.columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from shadow import __version__
from shadow.reports.column_types import STORED_TYPES
from shadow.reports.columns import DELTA, NOTATION, SCHEMA, Column, Table

RULES = (
    (
        "The schema is raised when a column changes its meaning or goes, not when one is added:"
        " readers pass over columns that they do not know, and take a column that is absent for"
        " null."
    ),
    "Undefined is null, never NaN.",
    "A column marked `later` was added to this schema later: older reports do not have it.",
    (
        "Columns marked `start here` say which matrix a row is and what changed in it; the others"
        " can wait."
    ),
    "A report of another schema is refused, with both versions and what to do.",
)

FILES = {  # the JSON files beside the tables: what each key holds
    "summary.json": {
        "schema": "number of the schema",
        "family": "as in matrices.parquet",
        "pair": "as in matrices.parquet",
        "base": "repo, commit (null for a folder) and fingerprint of the base checkpoint",
        "tuned": "the same of the tuned checkpoint",
        "counts": "tensors of both sides that are measured, identical, skipped",
        "figures": "medians of columns over the delta rows, and what the table summary lists",
        "intervals": "bounds over layers by figure, null where there are none",
        "layers": "how many layers the intervals are over",
        "interval_level": "the probability that the intervals may claim",
        "no_interval": "why there are none; null where there are",
        "resampling": (
            "how the intervals were made: level, draws, seed, unit, kind, weights, covers"
        ),
        "components": (
            "a list, a row for each component: tensors, identical, matrices, the medians, energy"
            " (the sum of norm(D)_F^2), energy_share, parameter_share (of the matrices that"
            " changed), figures of depth, and its own intervals, layers, interval_level,"
            " no_interval"
        ),
        "modules": (
            "a list, a row for each module of a component: matrices, parameters and the same"
        ),
        "depth": (
            "a list, a row for each compared layer of a component: matrices, relative_norm as one"
            " vector, energy, energy_share of the component's layers, medians,"
            " up_effective_rank_shift (of the up-projections), and the participation ratios of"
            " residual.parquet"
        ),
        "grid": (
            "a list, a row for each module of a component: layers, and by layer the medians"
            " relative_norm (0 where its matrices are identical) and concentration"
        ),
        "inside_layers": (
            "matrices inside layers that changed: how many; of these known (kept is), unexplained,"
            " rounded_away, coherent (with equivalent_directions), above_short_side (without,"
            " because it is larger than m: these count as larger in its median, which is null where"
            " they are half of what is known or more), judged (with purity_z),"
            " beyond_noise and flatter_than_noise; medians of columns, and of alignments less null;"
            " rank_least and rank_most, medians of bounds of the update's rank; levels_SIDE_few of"
            " levels_SIDE_judged, matrices with as few values as a copy through 8 or 4 bits;"
            " in_two_formats, matrices whose sides are stored in different formats; in_8_bits,"
            " matrices of which a side is stored in FP8; short_side_least and"
            " short_side_most, rows or columns, whichever are fewer, of the smallest and the"
            " largest"
        ),
        "outside_layers": (
            "a list, a row for each module outside the layers, as embed and head: matrices, how"
            " many of them are poolers, medians, above_short_side as in inside_layers, short_side"
            " of the largest"
        ),
        "coherence": (
            "a list, a row for each module inside layers: component, module, matrices, coherent"
            " (with equivalent_directions), above_short_side as in inside_layers, short_side of the"
            " largest, and the median of equivalent_directions"
        ),
        "quarters": (
            "a list, a row for each quarter of the layers of a component: quarter, first_layer,"
            " last_layer, energy_share of the component's layers, parameter_share of their matrices"
            " that changed"
        ),
        "unchanged": (
            "a list, a row for each module of which every matrix is identical: component, module,"
            " tensors"
        ),
        "without_base": (
            "a list, a row for each component that has matrices without a base: their number and"
            " medians"
        ),
        "vectors": (
            "biases and norms: how many were compared, how many of them changed, relative_norm (the"
            " median over those that changed) and relative_norm_of_all"
        ),
        "vocabulary": (
            "a list, a row for each embedding or head that has more rows on one side: component,"
            " module, base_rows, tuned_rows, added (below 0 where rows were taken away)"
        ),
        "uncompared": (
            "a list, a row for each module, or set of whole layers, that could not be compared:"
            " reason (only_in_base, only_in_tuned, shape_differs, nonfinite), side (that has it, or"
            " that is broken), component, module (null for whole layers), layers, tensors,"
            " base_shape, tuned_shape"
        ),
        "recognised": (
            "changes that the figures show beyond doubt: replaced (matrices, cosine_least,"
            " cosine_most, rows by module), scaled (matrices, factor), zeroed (matrices, share of"
            " the entries), each null where there is none; few_rows, a list of embeddings of which"
            " a few rows changed"
        ),
        "skipped": (
            "a list, a row for each reason: tensors, those of base and of tuned, examples, detail"
        ),
        "warnings": "a list of what makes the figures doubtful",
        "warning_codes": (
            "a list of a code for each of them, in the same order: experts_renumbered, few_values,"
            " older_report, scores_unreadable"
        ),
        "gates": "a list, a row for each gate: name, figure, threshold, passed, reason",
        "label": "label of the pair, one of five words",
        "label_reason": "what the label rests on",
        "evidence": (
            "a list, a row for each figure that the label rests on: name, figure, interval, without"
            " (its value without any training), says"
        ),
        "reference": (
            "where the pair lies among known trainings of about its size; null where there are none"
        ),
        "claims": "lists of what was measured, what it is consistent_with, and what is not_shown",
        "published": (
            "figures of released pairs that others published: source; pair (null where it is not"
            " among them), with agrees and checks, a row for each figure: figure, published, ours,"
            " tolerance, agrees, reason; size and top20, the ranks by mean_relative_norm and, among"
            " pairs within a factor of within, by mean_top20_energy: value, below, families, pairs,"
            " least, most; no_size and no_top20 say why there is none"
        ),
        "finding": (
            "the answer in words: headline, one line; sentences (code, text, figures),"
            " other_explanations (code, name, answer: no, fits or cannot_be_excluded, reason,"
            " figures) and not_shown; each figure by its place in this file, as"
            " `inside_layers.kept` or"
            " `modules.language.mlp.up.energy_share`"
        ),
        "scores": (
            "a list, a row for each benchmark, as the table scores; empty where nobody gave any"
        ),
        "score_groups": "a list, a row for each group of benchmarks",
        "score_files": "a list of the files that the scores came from",
        "score_notes": "a list of what is to be known of the scores",
    },
    "index.json": {
        "shadow": "`batch`, by which the file is known",
        "version": "version of shadow that wrote it",
        "schema": "number of the schema",
        "settings": "settings of the list's audits",
        "list": "a sha256 of which pairs the whole list names; null where several were joined",
        "shards": "the shares of the list that are here, such as 1/4",
        "counts": "pairs that are done, failed, kept, pending",
        "pairs": "a list, a row for each pair, as the table batch",
    },
}


def schema_json(tables: Iterable[Table], *, files: bool = False) -> dict[str, object]:
    """What `shadow schema --format json` prints. files: also of the JSON files beside tables."""
    content: dict[str, object] = {
        "schema": SCHEMA,
        "version": __version__,
        "rules": list(RULES),
        "notation": NOTATION,
        "tables": {table.name: _table(table) for table in tables},
    }
    if files:
        content["files"] = FILES
    return content


def is_later(table: Table, column: Column) -> bool:
    """Was the column added after the first reports of this schema had been made?"""
    return bool(table.first) and column.name not in table.first


def null_cases(column: Column) -> list[str]:
    """When the column is null; empty where it never is."""
    cases = []
    if column in DELTA:
        cases.append("base and tuned rows")
    if column.null:
        cases.append(column.null)
    return cases


def _table(table: Table) -> dict[str, object]:
    return {
        "file": table.file,
        "row": table.row,
        "columns": [
            {
                **asdict(column),
                "null": "; ".join(null_cases(column)),
                "arrow": STORED_TYPES[column.type].arrow_text,
                "later": is_later(table, column),
                "start_here": column.name in table.start_here,
            }
            for column in table.columns
        ],
    }
