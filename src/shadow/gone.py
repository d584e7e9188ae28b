"""Words of earlier versions that are gone, each with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.errors import UsageError

JOIN = "join the rows of both reports (`shadow export` writes them)"
DRAWS = "null_edge_sharp needs no draws"
# kind of word, words: what to use. The kinds: command, option, claim, rule, column, table, key,
# format, figure, sentence, word (of files.parquet).
WORDS: Mapping[tuple[str, str], str] = {
    ("command", "merge"): "copy the folders together; `shadow show` makes the index",
    ("command", "schema"): "use `shadow explain --all`",
    ("option", "--optimizer"): "it only served the label, which is gone",
    ("rule", "label"): "use a rule on concentration, or `shadow compare` two models of one base",
    ("column", "label label_reason"): (
        "read concentration, or `shadow compare` two models of one base"
    ),
    ("key", "evidence"): "read figures and intervals",
    ("key", "claims"): "read finding",
    ("key", "reference"): "`shadow compare` compares two models of one base",
    ("claim", "base"): "use `shadow verify related TUNED CANDIDATE`: it names the nearest relative",
    ("claim", "short_run"): "read figures.relative_norm_overall",
    ("claim", "novel_data"): "finding.not_shown says what weights do not show",
    ("claim", "merge"): "`shadow verify mixture` checks a merge",
    ("claim", "weight_decay"): "read decay_cosine",
    ("option", "--schema"): "docs/registry.md says what a file of families may hold",
    ("option", "--list-schema"): "docs/lists.md says what a list may hold",
    ("option", "--p-values"): "read the spread over layers",
    ("key", "p_within_pair"): "read low and high, the spread over layers",
    ("key", "resampling"): "docs/summary.md says how intervals are made",
    ("key", "up_effective_rank_shift"): "read effective_rank_shift of mlp.up in modules or rows",
    ("key", "unchanged_experts"): "read status of the tensors in tensors.parquet",
    ("word", "experts_renumbered"): "read recognised.replaced",
    ("option", "--no-joint"): "lineage compares no deltas; `shadow compare --joint` does",
    ("command", "reproduce"): "audit a list of registry/lists/, then use `shadow figure`",
    ("option", "--scores"): "use `shadow compare RUNS --scores FILE`",
    ("option", "--storage-options"): "set FSSPEC_S3_ENDPOINT_URL and its like (docs/lists.md)",
    ("figure", "modules"): "use --kind heatmap, or depth with --module",
    ("figure", "lineage"): "use `shadow lineage`",
    ("option", "--component"): "`shadow families WORD` finds components too",
    ("option", "--tag"): "`shadow families TAG` lists the families with a tag",
    ("option", "--no-cache"): "set SHADOW_NO_CACHE=1",
    ("option", "--cache-dir"): "set SHADOW_CACHE_DIR",
    ("option", "--fetch"): "set SHADOW_FETCH=shards or SHADOW_FETCH=ranges",
    ("option", "--address"): "use --engine ray:address=HOST:PORT",
    ("option", "--cpus-per-task"): "use --engine ray:cpus=2",
    ("option", "--memory-per-task"): "use --engine ray:memory=16GB",
    ("option", "--parts"): "a single pair on Ray is measured in parts",
    ("option", "--full"): "use `shadow show RUN --full`",
    ("option", "--verbose -v"): "a report has its files, settings and times",
    ("option", "--help-all"): "--help shows every option",
    ("keyword", "precision"): "use level",
    ("keyword", "subspaces"): "they are compared unless subjects is delta",
    ("keyword", "registry"): "audit shadow.pairs(..., registry=FOLDER)",
    ("option", "--precision"): "use --level exact, or --level sketch; full is the usual one",
    ("option", "--norms"): "use --level norms",
    ("option", "--subspaces"): "they are compared where spectra of base and tuned are measured",
    ("option", "--no-subspaces"): "--subjects delta leaves them out",
    ("option", "--seed"): "nothing is drawn",
    ("option", "--nulls"): DRAWS,
    ("keyword", "nulls"): DRAWS,
    ("column", "null_edge_sampled"): DRAWS,
    ("column", "alpha_hill"): "use alpha, or fit the rows of `spectra.parquet`",
    ("column", "mp_edge"): "use null_edge of a delta, or the rows of `spectra.parquet`",
    ("column", "mp_outliers"): "use spikes of a delta, or the rows of `spectra.parquet`",
    ("column", "nuclear_norm_error"): "use nuclear_norm of `--level full`",
    **{
        ("column", f"{name}_error"): f"use {name} of `--level full`"
        for name in (
            *("overlap_left", "overlap_right", "alignment_left", "alignment_right"),
            *("alignment_left_null", "alignment_right_null"),
            *("subspace_gap_base", "subspace_gap_tuned"),
        )
    },
    ("column", "spikes_sampled"): "use spikes_sharp: its edge needs no draws",
    ("column", "null_participation_ratio_sampled"): "use null_participation_ratio, which is exact",
    ("option", "--title --no-title"): "figures have no title",
    ("option", "--expert"): "draw the rows of spectra.parquet: `shadow export RUN --to csv`",
    ("option", "--table"): "every export has all tables, a file or folder each",
    ("format", "json"): "use csv or parquet; `shadow show --json` has the summaries",
    ("format", "arrow"): "use parquet, which Arrow reads",
    ("format", "duckdb"): "use parquet or csv, which DuckDB reads",
    ("format", "sqlite"): "use csv, which SQLite imports",
    ("format", "hf-dataset-folder"): "use parquet, which `datasets` loads",
    ("column", "concentration_q25 concentration_q75"): (
        "read the rows of `matrices.parquet`, or `intervals`"
    ),
    ("column", "depth_gini"): "use depth_entropy or effective_layers",
    ("column", "row_scaling col_scaling"): (
        "use decay_cosine: only one factor for a whole matrix is recognised"
    ),
    ("column", "content_of content_how"): "compare the column checksum of both sides",
    ("column", "even_share even_entries"): (
        "kept_reason says where one rounding does not explain the change"
    ),
    ("column", "decay_cosine_unrounded"): "use decay_cosine",
    ("column", "kept_least"): "use kept: it is null where several roundings would give another",
    ("column", "relative_norm_unrounded_least"): "use relative_norm_unrounded",
    ("column", "relative_norm_overall_unrounded_least"): "use relative_norm_overall_unrounded",
    ("key", "equivalent_directions_least"): "use equivalent_directions",
    ("key", "config_differs"): "use `shadow verify files BASE TUNED`",
    ("key", "disk_report"): "a full disk ends an audit, which goes on from there later",
    ("key", "tiers"): "use `shadow plan` with --level or --subjects",
    ("column", "binade_entries binade_changed binade_expected"): "use kept_misfit",
    ("sentence", "scaled_lines"): "only one factor for a whole matrix is recognised (`scaled`)",
    ("sentence", "negated"): "use not_comparable, or scaled where all were negated",
    ("sentence", "reordered"): "use not_comparable",
    ("sentence", "few_rows"): "use rows_changed of the embedding in matrices",
    ("sentence", "standing_out"): "read spikes and spike_energy",
    ("sentence", "hardly_related"): "read the gate lineage",
    ("sentence", "stage"): "the pair's name says it",
    ("sentence", "siblings"): "settings.relation says it",
    ("sentence", "norms_only deltas_only estimated"): "use level",
    ("sentence", "unread_formats"): "use left_out",
    ("sentence", "flat mixed"): "use noise",
    ("sentence", "base_few_values"): "use few_values",
    ("sentence", "beyond_rounding"): "use rounded_away",
    ("sentence", "unexplained"): "use kept",
    ("word", "tokens_beyond"): "compare vocab_size of config.json with the tokenizer",
    ("table", "batch"): "index.json has the rows of a list",
    (
        "column",
        "reading_participation_ratio writing_participation_ratio participation_ratio_stderr"
        " reading_participation_ratio_stacked writing_participation_ratio_stacked",
    ): "use participation_ratio, of each matrix",
    ("table", "residual"): "matrices has the participation ratio of each matrix",
    ("column", "spectral_entropy"): "use ln(energy_rank) / ln(short side)",
    ("column", "relative_spectral"): "divide spectral_norm of delta by that of base",
    ("column", "stable_rank_shift"): "subtract stable_rank of base from that of tuned",
    ("column", "alpha_stderr"): "use (alpha - 1) / sqrt(alpha_tail)",
    ("table", "comparison"): JOIN,
    ("option", "compare:-o compare:--output"): JOIN,  # of this command alone
}
GONE = {(kind, word): use for (kind, words), use in WORDS.items() for word in words.split()}


def gone(kind: str, word: str) -> UsageError | None:
    """Return the error for a word that is gone, or None for any other word."""
    instead = GONE.get((kind, word))
    return UsageError(f"the {kind} {word} is gone", instead) if instead else None


def gone_word(word: str) -> UsageError | None:
    """Return the error for a word of any kind that is gone."""
    return next((gone(kind, one) for kind, one in GONE if one == word), None)
