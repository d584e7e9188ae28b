"""Columns of matrices.parquet: which row it is, and its spectrum."""

from __future__ import annotations

from shadow.reports.columns.column import Column
from shadow.reports.columns.deltas import DELTA

IDENTITY = (
    Column("family", "string", "family, or the tuned model's last name"),
    Column("pair", "string", "the two stages compared, `base..tuned`"),
    Column("component", "string", "language, vision, projector, audio or other"),
    Column("layer", "int", "0-based block number", null="outside the blocks (embeddings, head)"),
    Column(
        "module",
        "string",
        "role of the matrix, from a closed list: attn.q, mlp.up, embed, ...",
    ),
    Column("expert", "int", "0-based expert number", null="not an expert"),
    Column("tensor", "string", "name of the tensor in the tuned checkpoint"),
    Column(
        "base_tensor",
        "string",
        "name of the partner of the matrix in the base checkpoint",
        null="the component has no base",
    ),
    Column("subject", "string", "what was decomposed: base, tuned or delta"),
    Column("rows", "int", "outputs of the matrix, the common ones where a vocabulary grew"),
    Column("cols", "int", "inputs of the matrix"),
    Column("dtype", "string", "stored dtype; of a delta both, `base/tuned`, where they differ"),
    Column("parameters", "int", "rows x cols"),
    Column(
        "precision",
        "string",
        "how the spectrum was computed: default, exact or fast",
        pitfalls=(
            "`default` turns to `exact` for small matrices, for F32 and F64, when more than 1 % of"
            " the sigmas are below the floor, and when rounding may move effective_rank by more"
            " than 2.6e-4 of itself (`fast`: 2e-3). With subspaces, `fast` solves base and tuned in"
            " float64 up to a short side of 2048."
        ),
    ),
    Column(
        "rank_ceiling",
        "int",
        "largest rank of the delta that a low-rank adapter allows",
        null="no adapter",
    ),
    Column(
        "verified",
        "bool",
        "were the bytes checked against the Hub's sha256",
        null="local folders",
    ),
)

_RANK_NULL = "W = 0"

SPECTRAL = (
    Column(
        "frobenius_norm",
        "float",
        "size of the matrix",
        formula="sqrt(E), summed from the entries",
        unit="weights",
        range=">= 0",
    ),
    Column(
        "spectral_norm",
        "float",
        "largest singular value",
        formula="sigma_1",
        unit="weights",
        range=">= 0",
    ),
    Column(
        "nuclear_norm",
        "float",
        "sum of singular values",
        formula="sum sigma",
        unit="weights",
        range=">= 0",
    ),
    Column(
        "stable_rank",
        "float",
        "energy in units of the strongest direction",
        formula="E / sigma_1^2",
        range="[1, m]",
        null=_RANK_NULL,
        source="Rudelson & Vershynin 2007",
        pitfalls="One large singular value hides all others.",
    ),
    Column(
        "effective_rank",
        "float",
        "effective number of directions, by the entropy of the singular values",
        formula="exp(-sum p ln p)",
        range="[1, m]",
        null=_RANK_NULL,
        source="Roy & Vetterli 2007",
        pitfalls=(
            "Follows the many small values: rounding a rank-one update to bf16 makes it look"
            " full-rank. Grows with m. Its relative error is at most 2.6e-4 in `default`, 2e-7 in"
            " `exact`, 2e-3 in `fast`."
        ),
    ),
    Column(
        "energy_rank",
        "float",
        "effective number of directions, by the entropy of the energies",
        formula="exp(-sum q ln q)",
        range="[1, m]",
        null=_RANK_NULL,
        source="von Neumann entropy of q",
        pitfalls="Robust to rounding. Grows with m.",
    ),
    Column(
        "spectral_entropy",
        "float",
        "how evenly the energy is spread over the directions",
        formula="-sum q ln q / ln m",
        range="[0, 1]",
        null="W = 0 or m = 1",
        pitfalls="Although it is divided by ln m, noise of another shape has another value.",
    ),
    Column(
        "participation_ratio",
        "float",
        "effective number of directions, by the sum of squared shares of energy",
        formula="1 / sum q^2",
        range="[1, m]",
        null=_RANK_NULL,
        pitfalls=(
            "Neither a rank nor how many directions hold most of the energy: a strong few and a"
            " flat rest give a number in between. Compare with null_participation_ratio, not across"
            " shapes."
        ),
    ),
    Column(
        "sigma_floor",
        "float",
        "singular values below it are not resolved by the method",
        formula="3e-4 (default), 1e-7 (exact), 1e-3 (fast) of sigma_1",
        unit="weights",
        range=">= 0",
    ),
    Column(
        "numerical_rank",
        "int",
        "resolved singular values",
        formula="#{sigma > sigma_floor}",
        range="0 to m",
    ),
    *(
        Column(
            f"rank_{t}",
            "int",
            f"directions that hold {t} % of the energy",
            formula=f"least k with q_1 + ... + q_k >= 0.{t}",
            range="1 to m",
            null=_RANK_NULL,
            source="Biderman et al. 2024 (LoRA Learns Less and Forgets Less)",
        )
        for t in (90, 95, 99)
    ),
    *(
        Column(
            f"top{k}_energy",
            "float",
            f"share of energy in the first {k} direction{'s' if k > 1 else ''}",
            formula=f"q_1 + ... + q_min({k}, m)" if k > 1 else "q_1",
            range="(0, 1]",
            null=_RANK_NULL,
        )
        for k in (1, 4, 16, 64)
    ),
    Column(
        "condition_number",
        "float",
        "spread of the singular values",
        formula="sigma_1 / sigma_m",
        range=">= 1",
        null="sigma_m is not resolved, or rounding may move it by more than 5 %; always on deltas",
        pitfalls=(
            "Its relative error is about u E / (2 sqrt(m) sigma_m^2), with u = 6e-8 in `default`"
            " and `fast`, 1e-16 in `exact`. Large square matrices have a sigma_m that only"
            " `--precision exact` resolves."
        ),
    ),
    Column(
        "alpha",
        "float",
        "power-law exponent of the eigenvalues sigma^2 above alpha_xmin",
        formula="1 + k / sum ln(sigma_i^2 / xmin), maximum likelihood over the k values >= xmin",
        range="> 1",
        null="fewer than 50 resolved singular values, or all are equal",
        source="Clauset, Shalizi & Newman 2009; Martin & Mahoney 2021",
        pitfalls=(
            "For pure noise it depends on the shape: 1.5 at 64 x 64, about 8 at 384 x 1536. Two"
            " matrices of different shape cannot be compared by it, and a large value does not mean"
            " a heavy tail. xmin may jump between near-equal fits."
        ),
    ),
    Column(
        "alpha_xmin",
        "float",
        "where the fitted tail starts",
        formula=(
            "the resolved sigma^2 of least two-sided Kolmogorov-Smirnov distance that leaves 50"
            " values"
        ),
        unit="weights^2",
        range="> 0",
        null="as alpha",
        source="Clauset, Shalizi & Newman 2009",
    ),
    Column(
        "alpha_ks",
        "float",
        "distance of the tail from its power law",
        formula="sup |F - F_fit|",
        range="[0, 1]",
        null="as alpha",
    ),
    Column(
        "alpha_tail",
        "int",
        "eigenvalues in the fitted tail",
        formula="#{sigma^2 >= xmin}",
        range="50 to m",
        null="as alpha",
    ),
    Column(
        "alpha_stderr",
        "float",
        "standard error of alpha for the chosen xmin",
        formula="(alpha - 1) / sqrt(alpha_tail)",
        range="> 0",
        null="as alpha",
        source="Clauset, Shalizi & Newman 2009",
        pitfalls="Does not include the uncertainty of xmin.",
    ),
    Column(
        "alpha_hill",
        "float",
        "Hill estimate over the upper half of the spectrum",
        formula="1 + k / sum_{i<=k} ln(sigma_i^2 / sigma_{k+1}^2), k = floor(m / 2)",
        range="> 1",
        null="sigma_{k+1} is not resolved, or the first k + 1 are equal",
        source="Zhou et al. 2023 (TempBalance)",
        pitfalls="No goodness of fit: it always gives a number.",
    ),
    Column(
        "mp_edge",
        "float",
        "upper edge of the noise bulk that the median implies",
        formula=(
            "s (sqrt m + sqrt n), s^2 = median(sigma)^2 / (n mu), mu the median of the"
            " Marchenko-Pastur law of ratio m / n"
        ),
        unit="weights",
        range="> 0",
        null="the median singular value, or the smaller of the two in the middle, is not resolved",
        source="Marchenko & Pastur 1967; Gavish & Donoho 2014",
        pitfalls="Assumes entries of one variance; null_edge does not.",
    ),
    Column(
        "mp_outliers",
        "int",
        "singular values above mp_edge",
        formula="#{sigma > mp_edge}",
        range="0 to m",
        null="as mp_edge",
    ),
)

MATRICES = (*IDENTITY, *SPECTRAL, *DELTA)
