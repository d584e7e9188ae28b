"""Columns of summary.json: counts, figures and scores of benchmarks."""

from __future__ import annotations

from shadow.reports.columns.column import Column

_STACKED = (
    "experts of a mixture are left out; approximate where the stream is wider than 128: the error"
    " is participation_ratio_stderr of residual.parquet"
)

# What others measured: `scores` of summary.json, and the correlations of `compare`.
SCORES = (
    Column("benchmark", "string", "name of the benchmark in the file of scores"),
    Column("group", "string", "kind of benchmark, as the file has it", null="the file has none"),
    Column("metric", "string", "metric of the scores", null="the file names none"),
    Column(
        "unit",
        "string",
        "what the file states, else `at most 1` or `above 1`; where less is better, the metric",
    ),
    Column("base", "float", "score of the base, in the unit of the file", null="the file has none"),
    Column(
        "tuned",
        "float",
        "score of the tuned model, in the unit of the file",
        null="the file has none",
    ),
    Column(
        "gain",
        "float",
        "how much better the tuned model is by its score",
        formula="tuned - base; base - tuned where less is better",
        unit="that of the scores",
        null="a side is missing, or nobody says which way is better",
        pitfalls=(
            "Others measured it; shadow repeats it. For a group, the unweighted mean over its"
            " benchmarks that have one unit."
        ),
    ),
    Column(
        "gain_stderr",
        "float",
        "standard error of the gain",
        formula="sqrt(base_stderr^2 + tuned_stderr^2)",
        unit="that of the scores",
        range=">= 0",
        null="a standard error is missing",
        pitfalls=(
            "It assumes that the two models answered different questions. Usually they answer the"
            " same ones, and the error is smaller."
        ),
    ),
    Column(
        "rho",
        "float",
        "rank correlation of gain and median concentration over the reports of `compare`",
        formula="Pearson's correlation of mean ranks",
        range="[-1, 1]",
        null="fewer than 4 reports, other units, or all are equal",
        source=(
            "Spearman 1904; interval of Bonett & Wright 2000; p of every order, above 8 reports of"
            " random ones"
        ),
        pitfalls=(
            "Reports that share a base are not independent. Concentration differs by shape: over"
            " families of different sizes it reflects more than the training."
        ),
    ),
)

# Of summary.json, beside FIGURES.
COUNTS = (
    Column("matrices", "int", "matrices that changed", range=">= 0"),
    Column("parameters", "int", "parameters of the larger side", range=">= 0"),
    Column(
        "parameters_measured",
        "int",
        "parameters in tensors that were measured, and in the parts of others that were",
        range=">= 0",
    ),
    Column("parameters_identical", "int", "parameters in tensors that are identical", range=">= 0"),
    Column(
        "rank_ceiling",
        "int",
        "the largest rank_ceiling of matrices.parquet",
        range=">= 1",
        null="no adapter",
    ),
    Column(
        "unverified",
        "int",
        "changed matrices whose bytes were not checked against the Hub's sha256",
        range=">= 0",
    ),
    Column(
        "concentration_q25",
        "float",
        "lower quartile of concentration",
        range="(-inf, 1]",
        null="nothing changed",
    ),
    Column(
        "concentration_q75",
        "float",
        "upper quartile of concentration",
        range="(-inf, 1]",
        null="nothing changed",
    ),
    Column("depth_layers", "int", "layers of the main component that were compared", range=">= 0"),
)

# Of summary.json, beside the medians of columns.
FIGURES = (
    Column(
        "short_side",
        "float",
        "rows or columns, whichever are fewer, of the changed matrices inside layers, the median",
        range=">= 2",
        null="no matrix inside a layer changed",
        pitfalls=(
            "Concentration grows with it, so a pair is held only against trainings of about its"
            " size."
        ),
    ),
    Column(
        "relative_norm_overall",
        "float",
        "relative norm of all changed matrices as one vector",
        formula="sqrt(sum norm(D)_F^2 / sum norm(W_base)_F^2)",
        range=">= 0",
        null="nothing changed",
    ),
    Column(
        "relative_norm_overall_unrounded",
        "float",
        "relative norm of all changed matrices before they were stored",
        formula="sqrt(sum (relative_norm_unrounded norm(W_base)_F)^2 / sum norm(W_base)_F^2)",
        range="> 0",
        null="nothing changed, or relative_norm_unrounded of a matrix is unknown",
        source="docs/rounding.md",
        pitfalls="Where a matrix is not rounded at all, its relative_norm counts.",
    ),
    Column(
        "participation_share",
        "float",
        "participation ratio of the change over that of its null, the median",
        formula="participation_ratio / null_participation_ratio",
        range="(0, ~1]",
        null="nothing changed",
        pitfalls="The second energy metric beside concentration, without its logarithm.",
    ),
    Column(
        "spiked",
        "float",
        "share of the matrices with a spike",
        formula="#{spikes > 0} / matrices",
        range="[0, 1]",
        null="nothing changed",
    ),
    Column(
        "depth_entropy",
        "float",
        "evenness of the update's energy over the layers of the main component",
        formula="-sum p ln p / ln(layers), p the share of each layer in sum norm(D)_F^2",
        range="[0, 1]",
        null="one layer, or nothing changed",
        pitfalls=(
            "Identical layers count, with no energy. Whether narrow or broad data were more even"
            " depended on the base in a study."
        ),
    ),
    Column(
        "depth_gini",
        "float",
        (
            "unevenness of the update's energy over the layers of the main component, as a Gini"
            " coefficient: 0 is even"
        ),
        formula="sum_ij |e_i - e_j| / (2 layers^2 mean(e)), e the energy of each layer",
        range="[0, 1 - 1/layers]",
        null="nothing changed",
        source="Gini 1912",
    ),
    Column(
        "effective_layers",
        "float",
        "how many layers hold the update",
        formula="exp(-sum p ln p), p as in depth_entropy",
        range="[1, layers]",
        null="nothing changed",
    ),
    Column(
        "attention_to_mlp",
        "float",
        "energy of the update in attention over that in MLPs",
        formula="sum norm(D)_F^2 over attention / over MLPs and experts",
        range=">= 0",
        null="a side is absent, or nothing changed in the MLPs",
        pitfalls="Not per parameter: MLPs have two to three times as many.",
    ),
    Column(
        "vision_to_language",
        "float",
        "energy of the update in the vision tower over that in the language model",
        range=">= 0",
        null="a side is absent or has no base, or the language model is identical",
        pitfalls="0 for a frozen tower.",
    ),
    Column(
        "projector_to_language",
        "float",
        "energy of the update in the projector over that in the language model",
        range=">= 0",
        null="as vision_to_language",
    ),
    Column(
        "reading_participation_ratio",
        "float",
        (
            "effective number of directions of the residual stream along which the readers of a"
            " layer change, the median over layers"
        ),
        formula="participation_ratio of residual.parquet",
        range="[1, width]",
        null="no reader changed",
        pitfalls=_STACKED,
    ),
    Column(
        "writing_participation_ratio",
        "float",
        (
            "effective number of directions of the residual stream along which the writers of a"
            " layer change, the median over layers"
        ),
        range="[1, width]",
        null="no writer changed",
        pitfalls=_STACKED,
    ),
    Column(
        "reading_participation_ratio_stacked",
        "float",
        (
            "effective number of directions of the residual stream along which the readers of all"
            " layers change, as one stack"
        ),
        range="[1, width]",
        null="as reading_participation_ratio",
        pitfalls="One figure of all layers: it has no spread over them.",
    ),
    Column(
        "writing_participation_ratio_stacked",
        "float",
        (
            "effective number of directions of the residual stream along which the writers of all"
            " layers change, as one stack"
        ),
        range="[1, width]",
        null="as writing_participation_ratio",
    ),
    Column(
        "embedding_rows_changed",
        "float",
        "share of the tokens whose embedding changed",
        formula="rows_changed of the embedding",
        range="(0, 1]",
        null="the embedding is identical or absent",
        pitfalls="Weight decay changes all of them.",
    ),
    Column(
        "embedding_row_participation_ratio",
        "float",
        (
            "how many equally changed tokens would have the same sum of squared shares of the"
            " embedding's change"
        ),
        formula="row_participation_ratio of the embedding",
        range="[1, rows]",
        null="as embedding_rows_changed",
    ),
)
