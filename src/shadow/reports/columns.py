"""The table of columns: name, type, formula, range, when null, source and pitfalls.

The Parquet schemas, `shadow explain` and the tables in docs/ are made from it. It imports nothing
heavy, so that `explain` answers at once. The formulas themselves are in rank, tail, delta, null,
subspace, residual, spread and summary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["string", "int", "float", "bool", "ints", "floats"]
SCHEMA = 1  # of the report files; raised when a column changes its meaning, not when one is added

NOTATION = (
    "W is an (out, in) matrix, m its short and n its long side, sigma_1 >= ... >= sigma_m its"
    " singular values, E = sum sigma^2, p = sigma / sum sigma, q = sigma^2 / E. D = tuned - base is"
    " the delta; r_i and c_j are the energies (sums of squares) of its rows and columns. Singular"
    " values below sigma_floor count as 0 everywhere."
)


@dataclass(frozen=True)
class Column:
    """One column of a report file. null says when it is null; empty means never."""

    name: str
    type: Type
    text: str
    formula: str = ""
    unit: str = ""
    range: str = ""
    null: str = ""
    source: str = ""
    pitfalls: str = ""


IDENTITY = (
    Column("family", "string", "family, or the tuned model's last name"),
    Column("pair", "string", "the two stages compared, `base..tuned`"),
    Column("component", "string", "language, vision, projector, audio or other"),
    Column("layer", "int", "0-based block number", null="outside the blocks (embeddings, head)"),
    Column("module", "string", "role of the matrix, from a closed list: attn.q, mlp.up, embed, ..."),
    Column("expert", "int", "0-based expert number", null="not an expert"),
    Column("tensor", "string", "name of the tensor in the tuned checkpoint"),
    Column("base_tensor", "string", "name of its partner in the base checkpoint", null="the component has no base"),
    Column("subject", "string", "what was decomposed: base, tuned or delta"),
    Column("rows", "int", "outputs of the matrix, the common ones where a vocabulary grew"),
    Column("cols", "int", "inputs of the matrix"),
    Column("dtype", "string", "stored dtype; of a delta both, `base/tuned`, where they differ"),
    Column("parameters", "int", "rows x cols"),
    Column(
        "precision", "string", "how the spectrum was computed: default, exact or fast",
        pitfalls="`default` turns to `exact` for small matrices, for F32 and F64, when more than 1 % of the sigmas are below "
        "the floor, and when rounding may move effective_rank by more than 2.6e-4 of itself (`fast`: 2e-3). With subspaces, `fast` solves base and tuned in float64 up to a short side of 2048.",
    ),
    Column("rank_ceiling", "int", "largest rank of the delta that a low-rank adapter allows", null="no adapter"),
    Column("verified", "bool", "were the bytes checked against the Hub's sha256", null="local folders"),
)  # fmt: skip

_RANK_NULL = "W = 0"

SPECTRAL = (
    Column("frobenius_norm", "float", "size of the matrix", "sqrt(E), summed from the entries", "weights", ">= 0"),
    Column("spectral_norm", "float", "largest singular value", "sigma_1", "weights", ">= 0"),
    Column("nuclear_norm", "float", "sum of singular values", "sum sigma", "weights", ">= 0"),
    Column(
        "stable_rank", "float", "energy in units of the strongest direction", "E / sigma_1^2", "", "[1, m]", _RANK_NULL,
        "Rudelson & Vershynin 2007", "One large singular value hides all others.",
    ),
    Column(
        "effective_rank", "float", "effective number of directions, by the entropy of the singular values", "exp(-sum p ln p)", "", "[1, m]", _RANK_NULL,
        "Roy & Vetterli 2007",
        "Follows the many small values: rounding a rank-one update to bf16 makes it look full-rank. Grows with m. Its relative error is at most 2.6e-4 in `default`, 2e-7 in `exact`, 2e-3 in `fast`.",
    ),
    Column(
        "energy_rank", "float", "effective number of directions, by the entropy of the energies", "exp(-sum q ln q)", "", "[1, m]", _RANK_NULL,
        "von Neumann entropy of q", "Robust to rounding. Grows with m.",
    ),
    Column(
        "spectral_entropy", "float", "how evenly the energy is spread over the directions", "-sum q ln q / ln m", "", "[0, 1]", "W = 0 or m = 1", "",
        "Although it is divided by ln m, noise of another shape has another value.",
    ),
    Column(
        "participation_ratio", "float", "how many equally strong directions would have the same sum of squared shares of energy",
        "1 / sum q^2", "", "[1, m]", _RANK_NULL, "",
        "Neither a rank nor how many directions hold most of the energy: a strong few and a flat rest give a number in between. Compare with null_participation_ratio, not across shapes.",
    ),
    Column(
        "sigma_floor", "float", "singular values below it are not resolved by the method",
        "3e-4 (default), 1e-7 (exact), 1e-3 (fast) of sigma_1", "weights", ">= 0",
    ),
    Column("numerical_rank", "int", "resolved singular values", "#{sigma > sigma_floor}", "", "0 to m"),
    *(
        Column(
            f"rank_{t}", "int", f"directions that hold {t} % of the energy", f"least k with q_1 + ... + q_k >= 0.{t}", "",
            "1 to m", _RANK_NULL, "Biderman et al. 2024 (LoRA Learns Less and Forgets Less)",
        )
        for t in (90, 95, 99)
    ),
    *(
        Column(
            f"top{k}_energy", "float", f"share of energy in the first {k} direction{'s' if k > 1 else ''}",
            f"q_1 + ... + q_min({k}, m)" if k > 1 else "q_1", "", "(0, 1]", _RANK_NULL,
        )
        for k in (1, 4, 16, 64)
    ),
    Column(
        "condition_number", "float", "spread of the singular values", "sigma_1 / sigma_m", "", ">= 1",
        "sigma_m is not resolved, or rounding may move it by more than 5 %; always on deltas", "",
        "Its relative error is about u E / (2 sqrt(m) sigma_m^2), with u = 6e-8 in `default` and `fast`, 1e-16 in `exact`. Large square "
        "matrices have a sigma_m that only `--precision exact` resolves.",
    ),
    Column(
        "alpha", "float", "power-law exponent of the eigenvalues sigma^2 above alpha_xmin",
        "1 + k / sum ln(sigma_i^2 / xmin), maximum likelihood over the k values >= xmin", "", "> 1",
        "fewer than 50 resolved singular values, or all are equal",
        "Clauset, Shalizi & Newman 2009; Martin & Mahoney 2021",
        "For pure noise it depends on the shape: 1.5 at 64 x 64, about 8 at 384 x 1536. Two matrices of different shape "
        "cannot be compared by it, and a large value does not mean a heavy tail. xmin may jump between near-equal fits.",
    ),
    Column(
        "alpha_xmin", "float", "where the fitted tail starts",
        "the resolved sigma^2 of least two-sided Kolmogorov-Smirnov distance that leaves 50 values", "weights^2", "> 0",
        "as alpha", "Clauset, Shalizi & Newman 2009",
    ),
    Column("alpha_ks", "float", "distance of the tail from its power law", "sup |F - F_fit|", "", "[0, 1]", "as alpha"),
    Column("alpha_tail", "int", "eigenvalues in the fitted tail", "#{sigma^2 >= xmin}", "", "50 to m", "as alpha"),
    Column(
        "alpha_stderr", "float", "standard error of alpha for the chosen xmin", "(alpha - 1) / sqrt(alpha_tail)", "", "> 0",
        "as alpha", "Clauset, Shalizi & Newman 2009", "Does not include the uncertainty of xmin.",
    ),
    Column(
        "alpha_hill", "float", "Hill estimate over the upper half of the spectrum",
        "1 + k / sum_{i<=k} ln(sigma_i^2 / sigma_{k+1}^2), k = floor(m / 2)", "", "> 1",
        "sigma_{k+1} is not resolved, or the first k + 1 are equal", "Zhou et al. 2023 (TempBalance)",
        "No goodness of fit: it always gives a number.",
    ),
    Column(
        "mp_edge", "float", "upper edge of the noise bulk that the median implies",
        "s (sqrt m + sqrt n), s^2 = median(sigma)^2 / (n mu), mu the median of the Marchenko-Pastur law of ratio m / n",
        "weights", "> 0", "the median singular value, or the smaller of the two in the middle, is not resolved",
        "Marchenko & Pastur 1967; Gavish & Donoho 2014", "Assumes entries of one variance; null_edge does not.",
    ),
    Column("mp_outliers", "int", "singular values above mp_edge", "#{sigma > mp_edge}", "", "0 to m", "as mp_edge"),
)  # fmt: skip

_SAMPLED = "without --nulls"
_UNRESOLVED = "sigma_k is not resolved on either side; --no-subspaces"
_OF_BASE = "sigma_k of W_base is not resolved; --no-subspaces"

DELTA = (
    Column(
        "relative_norm", "float", "size of the change relative to the base", "norm(D)_F / norm(W_base)_F", "", ">= 0",
        "W_base = 0",
    ),
    Column(
        "relative_spectral", "float", "the same in spectral norms", "sigma_1(D) / sigma_1(W_base)", "", ">= 0", "W_base = 0"
    ),
    Column(
        "cosine", "float", "angle between base and tuned weights", "<W_base, W_tuned> / (norm norm)", "", "[-1, 1]",
        "either side is 0", "",
        "If it is near 0 in the embeddings or in all layers, the two are not base and tuned. Computed from D, so that the error of 1 - cosine is at most 1e-7 relative_norm^2.",
    ),
    Column(
        "effective_rank_shift", "float", "signed change of the effective rank of the weights",
        "effective_rank(W_tuned) - effective_rank(W_base)", "", "(-m, m)", "either is null",
        "the curve by layer of arXiv:2604.07363", "Not the effective rank of D. Its sign depends on the base. A difference of two ranks that both have an error: use `--precision exact` for small shifts.",
    ),
    Column(
        "stable_rank_shift", "float", "signed change of the stable rank of the weights",
        "stable_rank(W_tuned) - stable_rank(W_base)", "", "(-m, m)", "either is null",
    ),
    Column(
        "zero_share", "float", "share of the entries that did not change", "#{D_ij = 0} / (m n)", "", "[0, 1)", "", "",
        "In bf16 a small update leaves most entries unchanged. That comes from storage, not from sparse training.",
    ),
    Column(
        "floor_ratio", "float", "size of the change relative to the rounding of its storage",
        "norm(D)_F / norm(ulp / sqrt(12))_F, ulp entrywise of max(|W_base|, |W_tuned|) in the coarser dtype", "", ">= 0",
        "both sides are 0, or tuned is an adapter", "", "Below about 2 the delta is mostly rounding. A copy that went through another format, such as int8, lies above it.",
    ),
    Column(
        "null_participation_ratio", "float", "the participation ratio D would have with random signs",
        "E^2 / (sum r_i^2 + sum c_j^2 - sum D_ij^4)", "", "[1, m]", "", "closed form of the sign-flip null",
        "Keeps row and column profile, sparsity and quantisation of the real D.",
    ),
    Column(
        "concentration", "float", "how far participation_ratio lies below that of the null: 0 is as the null, 1 is rank one",
        "ln(null_participation_ratio / participation_ratio) / ln(null_participation_ratio)", "", "(-inf, 1]",
        "null_participation_ratio < 2", "",
        "0: like noise of the same profile; 1: rank one; below 0: flatter than noise. At fixed rank it grows with the size "
        "of the matrix, and optimiser and adapter move it more than data do: compare over the same shapes and methods.",
    ),
    Column(
        "null_edge", "float", "bound of the largest singular value under the null", "sqrt(max r_i) + sqrt(max c_j)",
        "weights", "> 0", "", "Latala 2005; Bandeira & van Handel 2016, leading order",
        "Conservative: 1.2 to 1.5 times the null's largest singular value for even profiles, 2.4 to 2.6 times for uneven ones; null_edge_sharp is closer, --nulls samples it.",
    ),
    Column("spikes", "int", "singular values above null_edge", "#{sigma > null_edge}", "", "0 to m"),
    Column("spike_energy", "float", "their share of the energy", "sum_{sigma > null_edge} q", "", "[0, 1]"),
    Column(
        "null_edge_sampled", "float", "largest singular value in R random sign flips of D", "max over R draws", "weights",
        "> 0", _SAMPLED, "", "The largest of R draws, so it rises slowly with R.",
    ),
    Column("spikes_sampled", "int", "singular values above it", "#{sigma > null_edge_sampled}", "", "0 to m", _SAMPLED),
    Column(
        "null_participation_ratio_sampled", "float", "null_participation_ratio from the draws",
        "E^2 / mean(sum sigma^4)", "", "[1, m]", _SAMPLED, "", "A check of the closed form.",
    ),
    Column(
        "sigma_scale", "float", "typical factor by which singular values grew",
        "median over i of sigma_i(W_tuned) / sigma_i(W_base), both resolved", "", "> 0", "none is resolved on both sides",
    ),
    Column("sigma_scale_iqr", "float", "spread of that factor", "interquartile range", "", ">= 0", "as sigma_scale"),
    Column(
        "overlap_left", "float", "how far the leading output directions of base and tuned agree",
        "norm(U_base^T U_tuned)_F^2 / k, U the leading k = min(16, m) left singular vectors", "", "[0, 1]", _UNRESOLVED,
        "mean squared cosine of the principal angles, Bjorck & Golub 1973",
        "1: the same subspace; k / rows on average for two random ones. Where norm(D) is well below the gap, it is near 1 whatever was tuned. Arbitrary where a subspace_gap is near 0, and 1 by definition where k = rows.",
    ),
    Column(
        "overlap_right", "float", "how far the leading input directions of base and tuned agree",
        "norm(V_base^T V_tuned)_F^2 / k, V the leading k right singular vectors", "", "[0, 1]", _UNRESOLVED,
        "as overlap_left", "As overlap_left, with cols.",
    ),
    Column(
        "alignment_left", "float", "energy of D in the base's leading output directions, in units of an even spread",
        "(norm(U_base^T D)_F^2 / norm(D)_F^2) / (k / rows)", "", "[0, rows / k]", _OF_BASE, "",
        "1 on average if D has no preferred directions, 0 if it avoids these. Uneven rows of D or of W_base alone (outlier "
        "channels) move it. Uncertain where subspace_gap_base is near 0. Goes to 1 where floor_ratio is below 4, because rounding is spread evenly (docs/planted.md).",
    ),
    Column(
        "alignment_right", "float", "energy of D in the base's leading input directions, in units of an even spread",
        "(norm(D V_base)_F^2 / norm(D)_F^2) / (k / cols)", "", "[0, cols / k]", _OF_BASE, "", "As alignment_left, with cols.",
    ),
    Column(
        "intruders", "int", "leading output directions of the tuned side that the base does not have",
        "#{j <= min(10, m): |u_base,i . u_tuned,j| <= 0.5 for all i <= min(64, m)}, u left singular vectors", "",
        "0 to min(10, m)", "the last of these sigma is not resolved on either side; --no-subspaces",
        "after Shuttleworth et al. 2024 (LoRA vs Full Fine-tuning: An Illusion of Equivalence)",
        "The paper searches all vectors of the base, this column the leading 64: a direction that rose from below them counts as an "
        "intruder here. Vectors of nearly equal singular values mix, and a mixture of five looks new.",
    ),
    Column(
        "subspace_gap_base", "float", "how well the leading subspace of W_base is defined",
        "(sigma_k - sigma_{k+1}) / sigma_k, k = min(16, m)", "", "[0, 1]", _OF_BASE,
        "Wedin 1972 (sin theta theorem)",
        "An error of spectral norm e in W turns the subspace by about e / (gap sigma_k): at a gap of 0 the subspace is arbitrary. Where "
        "sigma_{k+1} is not resolved it counts as sigma_floor, where there is none as 0.",
    ),
    Column(
        "subspace_gap_tuned", "float", "the same of W_tuned", "as subspace_gap_base", "", "[0, 1]",
        "sigma_k of W_tuned is not resolved; --no-subspaces", "as subspace_gap_base",
    ),
    Column(
        "row_participation_ratio", "float", "how many equally changed rows (outputs) would have the same sum of squared shares", "(sum r_i)^2 / sum r_i^2", "",
        "[1, rows]", "", "", "In an embedding or a head the rows are tokens: how many tokens the change is about.",
    ),
    Column(
        "col_participation_ratio", "float", "how many equally changed columns (inputs) would have the same sum of squared shares", "(sum c_j)^2 / sum c_j^2",
        "", "[1, cols]",
    ),
    Column(
        "rows_changed", "float", "share of the rows of which any entry changed", "#{i: any D_ij != 0} / rows", "", "(0, 1]",
        "", "", "Of an embedding: the tokens that were trained on, if there was no weight decay, which changes all rows.",
    ),
    Column(
        "kept", "float", "share of the stored delta's energy that belongs to the update; the rest is the rounding of its storage",
        "<D, d>^2 / (norm(D)_F^2 norm(d)_F^2), d the update before it was stored, estimated from the counts of |D| / ulp in cells of rows, columns and binades of W_base", "", "[0, 1]",
        "kept_reason is nothing_rounded or rounding_unexplained",
        "Bussgang 1952; Turnbull 1976; docs/rounding.md",
        "kept_history says which storage it holds for, kept_misfit how well that fits. Below 0.25 it is rounded_away: corrected "
        "figures are null. Of 1,242 known updates, 20 of the 620 with figures had a norm or a 1/X that was off by more than 12 % (16 of them "
        "within 15.4 %), 3 by 34 %: embeddings whose weight decay lies below half an ulp in rows that no step reached, which leaves no trace. "
        "6 % of trained updates from a stored base were refused, where 1 % was the goal. The thresholds were chosen on the same updates. "
        "A master copy kept in more bits over stages is refused, unless it is far above its rounding. "
        "Squared in 1/X: excess_purity_unrounded.",
    ),
    Column(
        "kept_reason", "string", "why kept is null, or what is wrong with it",
        "nothing_rounded: an adapter, or a tuned side with more bits than the base; rounding_unexplained: the changes are not what storage "
        "would have left (a master copy, an update that goes with the weights, decay, a mask, heavy tails, a copy that went through another format), so the update is "
        "unknown; rounded_away: kept is below 0.25", "", "", "kept is known and at least 0.25", "docs/rounding.md",
        "rounding_unexplained does not say that anything is wrong with the model.",
    ),
    Column(
        "kept_history", "string", "how the tuned side was stored, judged by its values",
        "stored_base: all values of the base lie on the tuned side's grid, training began with them; base_rounded: the base "
        "was rounded to that grid first (kept, relative_norm_unrounded, excess_purity_unrounded and equivalent_directions are of tuned - round(W_base)); base_kept: it was not rounded before training, so kept = 1 - 1 / floor_ratio^2; far_above: floor_ratio >= 10, where "
        "no history matters and kept is the same; nothing_rounded", "", "", "kept_reason is rounding_unexplained", "docs/rounding.md",
    ),
    Column(
        "kept_misfit", "float", "how far the stored energy is from what the storage model gives",
        "sum over binades of W_base of |energy of D - expected energy| / energy of D", "", "[0, 2)",
        "nothing was counted: far_above, base_kept, nothing_rounded, fewer than 200 changed entries", "docs/rounding.md",
        "Above 0.2, kept is null. Other checks may refuse a matrix below 0.2.",
    ),
    Column(
        "relative_norm_unrounded", "float", "size of the update before it was stored, relative to the base",
        "norm(d)_F / norm(W_base)_F, d as in kept", "", "> 0", "kept is null or below 0.25, or W_base = 0", "docs/rounding.md",
        "As kept. Accurate to 3 % where kept is accurate (docs/rounding.md).",
    ),
    Column(
        "zero_share_expected", "float", "share of entries that storage alone would have left as they were",
        "the mean over entries of the chance that a normal update of that cell's size does not change it", "", "[0, 1)",
        "kept is null; kept_history is base_kept or far_above", "docs/rounding.md",
        "Compare with zero_share: more zeros than expected suggest a mask or frozen rows. Updates by Adam have fewer.",
    ),
    Column(
        "excess_purity", "float", "how much purer D is than its null: X, comparable over shapes",
        "1 / participation_ratio - 1 / null_participation_ratio", "", "(-1, 1)", "", "the sign-flip null in closed form",
        "If D = S + N and S has the share f of the energy, X is f^2 / participation_ratio(S) as the matrix grows. It is that of the stored D, which rounding lowers by the factor kept^2. If the rank of what is learned grows with the width, X falls and concentration stays.",
    ),
    Column(
        "purity_z", "float", "excess_purity in units of its noise", "excess_purity row_participation_ratio col_participation_ratio / 2", "", "",
        "", "its standard deviation under the null of a separable profile",
        "A floor against noise: above 5 there is structure; below -5 D is flatter than noise, as orthogonalised optimisers leave it. For matrices of real sizes it is in the thousands, and no measure of strength. It is too large where the profile is in blocks: noise had 6.8 there.",
    ),
    Column(
        "excess_purity_unrounded", "float", "excess_purity of the update before it was stored", "excess_purity / kept^2", "", "",
        "kept is null or below 0.25; or below 0.75 with one direction that has 0.7 of X", "docs/rounding.md", "As kept. Where kept_history is base_rounded, it is that of tuned - round(W_base).",
    ),
    Column(
        "equivalent_directions", "float", "how many equally strong directions would be as coherent, with this excess_purity",
        "1 / excess_purity_unrounded; 1 / excess_purity where kept is null and nothing was rounded, or floor_ratio >= 4", "", "[1, m]",
        "purity_z <= 5, above m, or the update is unknown (kept_reason, excess_purity_unrounded)", "",
        "Not a count of directions: four with a tenth of the energy give about 400. It grows with the width if the rank of what is learned does. In reports from before kept was added, it is 1 / excess_purity where floor_ratio >= 4.",
    ),
    Column(
        "alignment_left_null", "float", "alignment_left that D's own profile gives with random signs",
        "(sum_i r_i norm(U_i)^2 / E) / (k / rows), U_i the i-th row of the leading k left vectors of W_base", "", "[0, rows / k]", _OF_BASE, "",
        "alignment_left minus this is what the directions of D add; divided by kept, what those of the update add. Above 1 where the rows that changed most are those where W_base is largest.",
    ),
    Column(
        "alignment_right_null", "float", "the same of alignment_right", "(sum_j c_j norm(V_j)^2 / E) / (k / cols)", "", "[0, cols / k]", _OF_BASE,
        "", "As alignment_left_null, with cols.",
    ),
    Column(
        "null_edge_sharp", "float", "largest singular value that noise of D's rows and columns reaches, with a margin",
        "sqrt(min over t of -Q(s) / t) (1 + m^(-2/3)), P(t) = sum r / (1 + r t), Q(s) = sum b / (1 + b s), b = c / E, s Q(s) = t P(t)", "weights", "> 0",
        "", "Silverstein & Choi 1995; Paul & Silverstein 2009",
        "Assumes a separable profile: noise in blocks passed it in 3 of 40 matrices (docs/rounding.md). null_edge holds for any profile, and is 1.2 to 2.6 times as high.",
    ),
    Column("spikes_sharp", "int", "singular values above null_edge_sharp", "#{sigma > null_edge_sharp}", "", "0 to m", "", "", "As null_edge_sharp."),
    Column(
        "decay_cosine", "float", "does the change shrink the weights (below 0), or let them grow", "<D, W_base> / (norm norm)", "", "[-1, 1]",
        "W_base = 0", "", "Weight decay and learning both move it. -1: tuned is the base, scaled down.",
    ),
    *(
        Column(
            f"levels_{side}", "float", f"share of distinct values in a row of the {side} side",
            "median over up to 64 rows of the distinct values among the first 1,024 entries, over their number", "", "(0, 1]",
            "a format of 8 bits, or an adapter", "",
            "Few values point to a copy that went through fewer bits: of 1,024 entries about 708 differ in BF16, 144 after int8, 130 after fp8, 62 after int4 in groups. "
            "Depends on the length of the rows, and on whether groups have scales of their own: compare matrices of one shape.",
        )
        for side in ("base", "tuned")
    ),
    Column("top20_energy", "float", "share of energy in the first 20 directions", "q_1 + ... + q_min(20, m)", "", "(0, 1]", "D = 0"),
    Column(
        "energy_share", "float", "share of the pair's energy of change that is in this matrix", "norm(D)_F^2 / sum norm(D)_F^2 over the matrices of the pair", "",
        "[0, 1]", "matrices were left out by --component, --layer or --module", "", "Large matrices have more.",
    ),
)  # fmt: skip

MATRICES = (*IDENTITY, *SPECTRAL, *DELTA)

TENSORS = (
    Column("tensor", "string", "name in the checkpoint"),
    Column("side", "string", "base or tuned"),
    Column("shape", "ints", "as stored"),
    Column("dtype", "string", "as stored"),
    Column("shard", "string", "file that holds it"),
    Column("component", "string", "as in matrices.parquet"),
    Column("layer", "int", "as in matrices.parquet", null="outside the blocks"),
    Column("module", "string", "as in matrices.parquet; attn.qkv and the like for a fused tensor"),
    Column("expert", "int", "as in matrices.parquet", null="not an expert, or a stack of them"),
    Column(
        "status", "string",
        "measured, identical or skipped; skipped also if only a part of it (an expert, q of a fused projection) could not be measured",
    ),
    Column("reason", "string", "why it was skipped, or measured without a partner", null="nothing to explain"),
    Column("detail", "string", "details of the reason; for a tensor of several parts, those that were not measured (the others are in matrices.parquet)", null="nothing to add"),
    Column(
        "relative_norm", "float", "norm(tuned - base) / norm(base), of vectors too",
        null="no partner, a part that was not measured, or base = 0",
    ),
    Column(
        "compared", "int",
        "entries that were compared with a partner's, without parts that were not measured and rows that a vocabulary grew by",
        range=">= 0",
    ),
)  # fmt: skip

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
        "binade_entries", "floats",
        "share of the entries in each binade of W_base, from that of its largest entry down; a binade is half the one before",
        range="[0, 1]", null=_BINADES_NULL,
    ),
    Column(
        "binade_changed", "floats", "share of the entries of each of these binades that changed",
        range="[0, 1]", null=f"{_BINADES_NULL}; a binade without entries", source="docs/rounding.md",
        pitfalls="Counted over a sample of about half a million entries.",
    ),
    Column(
        "binade_expected", "floats", "the same by the storage model that kept rests on",
        range="[0, 1]", null=f"{_BINADES_NULL}; a binade without entries", source="docs/rounding.md",
        pitfalls="For the history that kept_history names; for a stored base where kept is refused. kept_misfit compares energies with the model, not these counts.",
    ),
)  # fmt: skip

_PAIRED = (
    "concentration", "stable_rank", "top4_energy", "participation_ratio", "null_participation_ratio", "spike_energy",
    "relative_norm",
)  # fmt: skip

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
        Column(f"{name}_difference", "float", text, null="either side is null, or the logarithm of 0")
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
)  # fmt: skip

_UNFINISHED = "not done"
HEADLINE = (  # figures of a summary that a list tells of each pair
    "relative_norm_overall", "concentration", "participation_ratio", "null_participation_ratio", "spikes",
    "floor_ratio", "effective_layers", "attention_to_mlp",
)  # fmt: skip

BATCH = (
    Column("position", "int", "place in the list, from 1", null="joined from several lists, or from no list"),
    Column("family", "string", "as in matrices.parquet"),
    Column("pair", "string", "as in matrices.parquet"),
    Column("relation", "string", "tuned: the second was trained from the first; or sibling"),
    Column("folder", "string", "where the report is or will be, from the folder of this file"),
    Column("base", "string", "the base checkpoint, as it was named"),
    Column("tuned", "string", "the tuned checkpoint, as it was named"),
    Column("base_commit", "string", "the commit that was read", null=f"a folder, or {_UNFINISHED}"),
    Column("tuned_commit", "string", "the commit that was read", null=f"a folder, or {_UNFINISHED}"),
    Column(
        "state", "string",
        "done: its report is there; failed: error says why; kept: a finished report differs from the request and was not replaced; pending: not reached yet",
    ),
    Column("label", "string", "label of the report", null=_UNFINISHED),
    Column("matrices", "int", "matrices that changed", null=_UNFINISHED),
    *(
        Column(name, "float", f"{name} of summary.json", null=f"{_UNFINISHED}, or null there")
        for name in HEADLINE
    ),
    Column(
        "seconds", "float", "time spent on the pair, over all runs of the list that measured it",
        "", "s", ">= 0", "not reached yet",
    ),
    Column(
        "bytes", "int", "bytes of weights downloaded for it, over all runs of the list", "", "bytes",
        ">= 0", "not reached yet, or measured outside of a list",
    ),
    Column(
        "error", "string", "what went wrong in the last run, or how the kept report differs",
        null="neither failed nor kept",
    ),
    Column("hint", "string", "what to do about it", null="neither failed nor kept, or nothing known"),
    Column("version", "string", "version of shadow that measured it", null=_UNFINISHED),
)  # fmt: skip

RESIDUAL = (
    Column("component", "string", "as in matrices.parquet"),
    Column(
        "direction", "string", "reading or writing",
        "reading, by their inputs: attn.q, attn.k, attn.v, attn.qkv, linear_attn.q, linear_attn.k, linear_attn.v, linear_attn.z, linear_attn.in, mla.q_a, mla.kv_a, mlp.gate, mlp.up, mlp.gate_up, shared.gate, shared.up, shared.gate_up; writing, by their outputs: attn.o, linear_attn.o, mlp.down, shared.down",
    ),
    Column("layer", "int", "as in matrices.parquet", null="all layers of the component stacked"),
    Column("width", "int", "width of the residual stream"),
    Column("matrices", "int", "deltas that are stacked"),
    Column("energy", "float", "size of the stacked change, squared", "sum norm(D)_F^2", "weights^2", "> 0"),
    Column(
        "participation_ratio", "float", "how many equally strong directions of the residual stream would have the same sum of squared shares",
        "(tr G)^2 / norm(G)_F^2, G = sum D^T D over the readers, sum D D^T over the writers", "", "[1, width]", "", "",
        "Smaller where modules change along the same directions. Exact for a width up to 128; above it from a random "
        "projection, with an error of 1 % where the deltas share all or nothing and up to 9 % in between: "
        "participation_ratio_stderr estimates it. Experts of a mixture are left out.",
    ),
    Column(
        "participation_ratio_stderr", "float", "standard error of participation_ratio; 0 where it is exact",
        "jackknife over eighths of the random projection", "", ">= 0", "", "Tukey 1958",
        "Accurate to a factor of 2. If it is above 0, participation_ratio is approximate.",
    ),
)  # fmt: skip

_STACKED = (
    "experts of a mixture are left out; approximate where the stream is wider than 128: the error"
    " is participation_ratio_stderr of residual.parquet"
)

SCORES = (  # what others measured: `scores` of summary.json, and the correlations of `compare`
    Column("benchmark", "string", "name of the benchmark in the file of scores"),
    Column("group", "string", "kind of benchmark, as the file has it", null="the file has none"),
    Column("metric", "string", "metric of the scores", null="the file names none"),
    Column("unit", "string", "what the file states, else `at most 1` or `above 1`; where less is better, the metric"),
    Column("base", "float", "score of the base, in the unit of the file", null="the file has none"),
    Column("tuned", "float", "score of the tuned model, in the unit of the file", null="the file has none"),
    Column(
        "gain", "float", "how much better the tuned model is by its score", "tuned - base; base - tuned where less is better",
        "that of the scores", "", "a side is missing, or nobody says which way is better", "",
        "Others measured it; shadow repeats it. For a group, the unweighted mean over its benchmarks that have one unit.",
    ),
    Column(
        "gain_stderr", "float", "standard error of the gain", "sqrt(base_stderr^2 + tuned_stderr^2)", "that of the scores", ">= 0",
        "a standard error is missing", "",
        "It assumes that the two models answered different questions. Usually they answer the same ones, and the error is smaller.",
    ),
    Column(
        "rho", "float", "rank correlation of gain and median concentration over the reports of `compare`",
        "Pearson's correlation of mean ranks", "", "[-1, 1]", "fewer than 4 reports, other units, or all are equal",
        "Spearman 1904; interval of Bonett & Wright 2000; p of every order, above 8 reports of random ones",
        "Reports that share a base are not independent. Concentration differs by shape: over families of different sizes it reflects more than the training.",
    ),
)  # fmt: skip

COUNTS = (  # of summary.json, beside FIGURES
    Column("matrices", "int", "matrices that changed", range=">= 0"),
    Column("parameters", "int", "parameters of the larger side", range=">= 0"),
    Column(
        "parameters_measured",
        "int",
        "of these, in tensors that were measured, and in the parts of others that were",
        range=">= 0",
    ),
    Column("parameters_identical", "int", "of these, in tensors that are identical", range=">= 0"),
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

FIGURES = (  # of summary.json, beside the medians of columns
    Column(
        "short_side", "float", "rows or columns, whichever are fewer, of the changed matrices inside layers, the median",
        "", "", ">= 2", "no matrix inside a layer changed", "",
        "Concentration grows with it, so a pair is held only against trainings of about its size.",
    ),
    Column(
        "relative_norm_overall", "float", "relative norm of all changed matrices as one vector",
        "sqrt(sum norm(D)_F^2 / sum norm(W_base)_F^2)", "", ">= 0", "nothing changed",
    ),
    Column(
        "relative_norm_overall_unrounded", "float", "relative norm of all changed matrices before they were stored",
        "sqrt(sum (relative_norm_unrounded norm(W_base)_F)^2 / sum norm(W_base)_F^2)", "", "> 0",
        "nothing changed, or relative_norm_unrounded of a matrix is unknown", "docs/rounding.md",
        "Where a matrix is not rounded at all, its relative_norm counts.",
    ),
    Column(
        "participation_share", "float", "participation ratio of the change over that of its null, the median",
        "participation_ratio / null_participation_ratio", "", "(0, ~1]", "nothing changed", "",
        "The second energy metric beside concentration, without its logarithm.",
    ),
    Column("spiked", "float", "share of the matrices with a spike", "#{spikes > 0} / matrices", "", "[0, 1]", "nothing changed"),
    Column(
        "depth_entropy", "float", "evenness of the update's energy over the layers of the main component",
        "-sum p ln p / ln(layers), p the share of each layer in sum norm(D)_F^2", "", "[0, 1]", "one layer, or nothing changed",
        "", "Identical layers count, with no energy. Whether narrow or broad data were more even depended on the base in a study.",
    ),
    Column(
        "depth_gini", "float", "the same as a Gini coefficient", "sum_ij |e_i - e_j| / (2 layers^2 mean(e))", "",
        "[0, 1 - 1/layers]", "nothing changed", "Gini 1912",
    ),
    Column(
        "effective_layers", "float", "how many layers hold the update", "exp(-sum p ln p)", "", "[1, layers]",
        "nothing changed",
    ),
    Column(
        "attention_to_mlp", "float", "energy of the update in attention over that in MLPs",
        "sum norm(D)_F^2 over attention / over MLPs and experts", "", ">= 0", "a side is absent, or nothing changed in the MLPs", "",
        "Not per parameter: MLPs have two to three times as many.",
    ),
    Column(
        "vision_to_language", "float", "energy of the update in the vision tower over that in the language model", "", "",
        ">= 0", "a side is absent or has no base, or the language model is identical", "", "0 for a frozen tower.",
    ),
    Column(
        "projector_to_language", "float", "the same for the projector", "", "", ">= 0", "as vision_to_language",
    ),
    Column(
        "reading_participation_ratio", "float",
        "directions of the residual stream along which the readers of a layer change, the median over layers",
        "participation_ratio of residual.parquet", "", "[1, width]", "no reader changed", "", _STACKED,
    ),
    Column(
        "writing_participation_ratio", "float", "the same for the writers of a layer", "", "", "[1, width]",
        "no writer changed", "", _STACKED,
    ),
    Column(
        "reading_participation_ratio_stacked", "float", "the same with the readers of all layers as one stack", "", "",
        "[1, width]", "as reading_participation_ratio", "", "One figure of all layers: it has no spread over them.",
    ),
    Column(
        "writing_participation_ratio_stacked", "float", "the same with the writers of all layers as one stack", "", "",
        "[1, width]", "as writing_participation_ratio",
    ),
    Column(
        "embedding_rows_changed", "float", "share of the tokens whose embedding changed", "rows_changed of the embedding",
        "", "(0, 1]", "the embedding is identical or absent", "", "Weight decay changes all of them.",
    ),
    Column(
        "embedding_row_participation_ratio", "float", "how many equally changed tokens would have the same sum of squared shares of the embedding's change",
        "row_participation_ratio of the embedding", "", "[1, rows]", "as embedding_rows_changed",
    ),
)  # fmt: skip

REPORTS = (  # of exports, and of nothing else: one row for each report that went into them
    Column("family", "string", "family, or the tuned model's last name"),
    Column("pair", "string", "the two stages compared, `base..tuned`"),
    Column("relation", "string", "tuned, or sibling where neither came from the other", null="unknown"),
    Column("label", "string", "label of the pair, one of five words", null="unknown"),
    Column("label_reason", "string", "what the label rests on", null="unknown"),
    Column("gates", "string", "the gates: JSON text, a list", null="unknown"),
    *(
        column
        for side, text in (("base", "the base checkpoint"), ("tuned", "the tuned checkpoint"))
        for column in (
            Column(f"{side}_repo", "string", f"{text}: a folder, or a repository of the Hub"),
            Column(f"{side}_commit", "string", f"{text}: its commit", null="a folder"),
            Column(f"{side}_fingerprint", "string", f"{text}: hash of its files' names, sizes, times and headers",
                   null="unknown"),
        )
    ),
    Column("precision", "string", "--precision of the audit: default, exact or fast"),
    Column("nulls", "int", "--nulls of the audit", null="unknown"),
    Column("seed", "int", "--seed of the audit", null="unknown"),
    Column("subspaces", "bool", "were leading subspaces compared", null="unknown"),
    Column("chosen", "string", "--component, --layer and --module of the audit: JSON text", null="unknown"),
    Column("version", "string", "version of shadow that made the report"),
    Column("schema", "int", "schema of the report"),
    Column("started", "string", "when the audit started, ISO 8601", null="unknown"),
    Column("seconds", "float", "how long its last run took", unit="s", null="unknown"),
    Column("metadata", "string", "everything that the report says about how it was made: JSON text"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of a report. file is where it lies, row what one row of it is.

    first names the columns that every report of this schema has; the others were added later.
    Frozen: a column that is added to the tables above is one of those others by itself. family and
    pair are put before the columns of a table that lacks them where reports are exported.
    start_here names those that a reader needs first.
    """

    name: str
    file: str
    row: str
    columns: tuple[Column, ...]
    first: frozenset[str] = frozenset()
    start_here: frozenset[str] = frozenset()

    @property
    def exported(self) -> tuple[Column, ...]:
        """The columns as `shadow export` writes them: family and pair, then the others."""
        names = ("family", "pair")
        return (*REPORTS[:2], *(column for column in self.columns if column.name not in names))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TABLES = {
    table.name: table
    for table in (
        Table(
            "matrices", "matrices.parquet", "a matrix and subject: base, tuned, delta", MATRICES,
            _names(
                "family pair component layer module expert tensor base_tensor subject rows cols dtype parameters precision "
                "verified frobenius_norm spectral_norm nuclear_norm stable_rank effective_rank energy_rank spectral_entropy "
                "participation_ratio sigma_floor numerical_rank rank_90 rank_95 rank_99 top1_energy top4_energy top16_energy "
                "top64_energy condition_number alpha alpha_xmin alpha_ks alpha_tail alpha_stderr alpha_hill mp_edge "
                "mp_outliers relative_norm relative_spectral cosine effective_rank_shift stable_rank_shift zero_share "
                "floor_ratio null_participation_ratio concentration null_edge spikes spike_energy null_edge_sampled "
                "spikes_sampled null_participation_ratio_sampled sigma_scale sigma_scale_iqr"
            ),
            # which row it is; how much changed, how coherently beside noise, and how much of that
            # is the update
            _names(
                "tensor component layer module subject relative_norm floor_ratio concentration participation_ratio "
                "null_participation_ratio equivalent_directions spikes kept"
            ),
        ),
        Table(
            "tensors", "tensors.parquet", "a tensor of either side", TENSORS,
            _names("tensor side shape dtype shard component layer module expert status reason detail relative_norm"),
        ),
        Table(
            "residual", "residual.parquet", "the stacked deltas of a layer, or of all, in a direction", RESIDUAL,
            _names("component direction layer width matrices energy participation_ratio"),
        ),
        Table(
            "spectra", "spectra.parquet", "the singular values of a matrix and subject", SPECTRA,
            _names("tensor component layer module expert subject sigma"),
        ),
        Table("batch", "batch.parquet, beside the reports of a list", "a pair of the list", BATCH),
        Table("reports", "exports only", "a report", REPORTS),
        Table("comparison", "compare -o", "a matrix of each two reports", COMPARISON),
        Table("summary", "summary.json, in figures", "a figure beside the medians of columns", (*COUNTS, *FIGURES)),
        Table("scores", "summary.json, in scores, and compare", "a benchmark, or a correlation over reports", SCORES),
    )
}  # fmt: skip


def delta_metrics() -> list[str]:
    """The columns of delta rows that are numbers."""
    return [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]
