"""Columns of tensors.parquet, spectra.parquet and residual.parquet."""

from __future__ import annotations

from shadow.reports.columns.column import Column

TENSORS = (
    Column("tensor", "string", "name in the checkpoint"),
    Column("side", "string", "base or tuned"),
    Column("shape", "ints", "as stored"),
    Column("dtype", "string", "as stored"),
    Column("shard", "string", "file that holds the tensor"),
    Column("component", "string", "as in matrices.parquet"),
    Column("layer", "int", "as in matrices.parquet", null="outside the blocks"),
    Column("module", "string", "as in matrices.parquet; attn.qkv and the like for a fused tensor"),
    Column("expert", "int", "as in matrices.parquet", null="not an expert, or a stack of them"),
    Column(
        "status",
        "string",
        (
            "measured, identical or skipped; skipped also if only a part of it (an expert, q of a"
            " fused projection) could not be measured"
        ),
    ),
    Column(
        "reason",
        "string",
        "why it was skipped, or measured without a partner",
        null="nothing to explain",
    ),
    Column(
        "detail",
        "string",
        (
            "details of the reason; for a tensor of several parts, those that were not measured"
            " (the others are in matrices.parquet)"
        ),
        null="nothing to add",
    ),
    Column(
        "relative_norm",
        "float",
        "norm(tuned - base) / norm(base), of vectors too",
        null="no partner, a part that was not measured, or base = 0",
    ),
    Column(
        "compared",
        "int",
        (
            "entries that were compared with a partner's, without parts that were not measured and"
            " rows that a vocabulary grew by"
        ),
        range=">= 0",
    ),
)

_BINADES_NULL = (
    "base and tuned rows; nothing was counted, as where kept_history is far_above or"
    " nothing_rounded, or fewer than 200 entries changed"
)

SPECTRA = (
    Column("tensor", "string", "as in matrices.parquet"),
    Column("component", "string", "as in matrices.parquet"),
    Column("layer", "int", "as in matrices.parquet", null="outside the blocks"),
    Column("module", "string", "as in matrices.parquet"),
    Column("expert", "int", "as in matrices.parquet", null="not an expert"),
    Column("subject", "string", "base, tuned or delta"),
    Column("sigma", "floats", "singular values, descending; those below sigma_floor are 0"),
    Column(
        "binade_entries",
        "floats",
        (
            "share of the entries in each binade of W_base, from that of its largest entry down; a"
            " binade is half the one before"
        ),
        range="[0, 1]",
        null=_BINADES_NULL,
    ),
    Column(
        "binade_changed",
        "floats",
        "share of the entries of each binade of binade_entries that changed",
        range="[0, 1]",
        null=f"{_BINADES_NULL}; a binade without entries",
        source="docs/rounding.md",
        pitfalls="Counted over a sample of about half a million entries.",
    ),
    Column(
        "binade_expected",
        "floats",
        "binade_changed by the storage model that kept rests on",
        range="[0, 1]",
        null=f"{_BINADES_NULL}; a binade without entries",
        source="docs/rounding.md",
        pitfalls=(
            "For the history that kept_history names; for a stored base where kept is refused."
            " kept_misfit compares energies with the model, not these counts."
        ),
    ),
)

RESIDUAL = (
    Column("component", "string", "as in matrices.parquet"),
    Column(
        "direction",
        "string",
        "reading or writing",
        formula=(
            "reading, by their inputs: attn.q, attn.k, attn.v, attn.qkv, linear_attn.q,"
            " linear_attn.k, linear_attn.v, linear_attn.z, linear_attn.in, mla.q_a, mla.kv_a,"
            " mlp.gate, mlp.up, mlp.gate_up, shared.gate, shared.up, shared.gate_up; writing, by"
            " their outputs: attn.o, linear_attn.o, mlp.down, shared.down"
        ),
    ),
    Column("layer", "int", "as in matrices.parquet", null="all layers of the component stacked"),
    Column("width", "int", "width of the residual stream"),
    Column("matrices", "int", "deltas that are stacked"),
    Column(
        "energy",
        "float",
        "size of the stacked change, squared",
        formula="sum norm(D)_F^2",
        unit="weights^2",
        range="> 0",
    ),
    Column(
        "participation_ratio",
        "float",
        "effective number of directions of the residual stream, by the sum of squared shares",
        formula=(
            "(tr G)^2 / norm(G)_F^2, G = sum D^T D over the readers, sum D D^T over the writers"
        ),
        range="[1, width]",
        pitfalls=(
            "Smaller where modules change along the same directions. Exact for a width up to 128;"
            " above it from a random projection, with an error of 1 % where the deltas share all or"
            " nothing and up to 9 % in between: participation_ratio_stderr estimates it. Experts of"
            " a mixture are left out."
        ),
    ),
    Column(
        "participation_ratio_stderr",
        "float",
        "standard error of participation_ratio; 0 where it is exact",
        formula="jackknife over eighths of the random projection",
        range=">= 0",
        source="Tukey 1958",
        pitfalls="Accurate to a factor of 2. If it is above 0, participation_ratio is approximate.",
    ),
)
