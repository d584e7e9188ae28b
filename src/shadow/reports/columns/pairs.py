"""Columns of tables with several reports: a comparison, a list and exports."""

from __future__ import annotations

from shadow.reports.columns.column import Column

_PAIRED = (
    "concentration",
    "stable_rank",
    "top4_energy",
    "participation_ratio",
    "null_participation_ratio",
    "spike_energy",
    "relative_norm",
)

COMPARISON = (
    Column("first", "string", "letter of the first report; the file's metadata say which that is"),
    Column("second", "string", "letter of the second report"),
    Column("component", "string", "as in matrices.parquet"),
    Column("layer", "int", "as in matrices.parquet", null="outside the blocks"),
    Column("module", "string", "as in matrices.parquet"),
    Column("expert", "int", "as in matrices.parquet", null="not an expert"),
    Column("tensor_first", "string", "name of the tensor in the first report's tuned checkpoint"),
    Column("tensor_second", "string", "name of the tensor in the second report's tuned checkpoint"),
    Column("rows", "int", "as in matrices.parquet"),
    Column("cols", "int", "as in matrices.parquet"),
    Column("votes", "bool", "does it lie in a layer, so that it counts for the verdict"),
    *(
        Column(f"{name}_{side}", "float", f"{name} of the {side} report's delta", null=f"as {name}")
        for name in _PAIRED
        for side in ("first", "second")
    ),
    *(
        Column(
            f"{name}_difference",
            "float",
            text,
            null="either side is null, or the logarithm of 0",
        )
        for name, text in (
            ("concentration", "concentration_first - concentration_second"),
            ("stable_rank", "ln(stable_rank_first / stable_rank_second)"),
            ("top4_energy", "top4_energy_first - top4_energy_second"),
            (
                "participation_ratio_over_null",
                "difference of ln(participation_ratio / null_participation_ratio)",
            ),
            ("spike_energy", "spike_energy_first - spike_energy_second"),
            ("relative_norm", "ln(relative_norm_first / relative_norm_second)"),
        )
    ),
)

_UNFINISHED = "not done"

# Figures of a summary that a list tells of each pair.
HEADLINE = (
    "relative_norm_overall",
    "concentration",
    "participation_ratio",
    "null_participation_ratio",
    "spikes",
    "floor_ratio",
    "effective_layers",
    "attention_to_mlp",
)

BATCH = (
    Column(
        "position",
        "int",
        "place in the list, from 1",
        null="joined from several lists, or from no list",
    ),
    Column("family", "string", "as in matrices.parquet"),
    Column("pair", "string", "as in matrices.parquet"),
    Column("relation", "string", "tuned: the second was trained from the first; or sibling"),
    Column("folder", "string", "where the report is or will be, from the folder of this file"),
    Column("base", "string", "the base checkpoint, as it was named"),
    Column("tuned", "string", "the tuned checkpoint, as it was named"),
    Column("base_commit", "string", "the commit that was read", null=f"a folder, or {_UNFINISHED}"),
    Column(
        "tuned_commit",
        "string",
        "the commit that was read",
        null=f"a folder, or {_UNFINISHED}",
    ),
    Column(
        "state",
        "string",
        (
            "done: its report is there; failed: error says why; kept: a finished report differs"
            " from the request and was not replaced; pending: not reached yet"
        ),
    ),
    Column("label", "string", "label of the report", null=_UNFINISHED),
    Column("matrices", "int", "matrices that changed", null=_UNFINISHED),
    *(
        Column(name, "float", f"{name} of summary.json", null=f"{_UNFINISHED}, or null there")
        for name in HEADLINE
    ),
    Column(
        "seconds",
        "float",
        "time spent on the pair, over all runs of the list that measured it",
        unit="s",
        range=">= 0",
        null="not reached yet",
    ),
    Column(
        "bytes",
        "int",
        "bytes of weights downloaded for it, over all runs of the list",
        unit="bytes",
        range=">= 0",
        null="not reached yet, or measured outside of a list",
    ),
    Column(
        "error",
        "string",
        "what went wrong in the last run, or how the kept report differs",
        null="neither failed nor kept",
    ),
    Column(
        "hint",
        "string",
        "what to do about it",
        null="neither failed nor kept, or nothing known",
    ),
    Column("version", "string", "version of shadow that measured it", null=_UNFINISHED),
)

# Of exports, and of nothing else: one row for each report that went into them.
REPORTS = (
    Column("family", "string", "family, or the tuned model's last name"),
    Column("pair", "string", "the two stages compared, `base..tuned`"),
    Column(
        "relation",
        "string",
        "tuned, or sibling where neither came from the other",
        null="unknown",
    ),
    Column("label", "string", "label of the pair, one of five words", null="unknown"),
    Column("label_reason", "string", "what the label rests on", null="unknown"),
    Column("gates", "string", "the gates: JSON text, a list", null="unknown"),
    *(
        column
        for side, text in (("base", "the base checkpoint"), ("tuned", "the tuned checkpoint"))
        for column in (
            Column(f"{side}_repo", "string", f"{text}: a folder, or a repository of the Hub"),
            Column(f"{side}_commit", "string", f"{text}: its commit", null="a folder"),
            Column(
                f"{side}_fingerprint",
                "string",
                f"{text}: hash of its files' names, sizes, times, headers and a sample of weights",
                null="unknown",
            ),
        )
    ),
    Column("precision", "string", "--precision of the audit: default, exact or fast"),
    Column("nulls", "int", "--nulls of the audit", null="unknown"),
    Column("seed", "int", "--seed of the audit", null="unknown"),
    Column("subspaces", "bool", "were leading subspaces compared", null="unknown"),
    Column(
        "chosen",
        "string",
        "--component, --layer and --module of the audit: JSON text",
        null="unknown",
    ),
    Column("version", "string", "version of shadow that made the report"),
    Column("schema", "int", "schema of the report"),
    Column("started", "string", "when the audit started, ISO 8601", null="unknown"),
    Column("seconds", "float", "how long its last run took", unit="s", null="unknown"),
    Column(
        "metadata",
        "string",
        "everything that the report says about how it was made: JSON text",
    ),
)
