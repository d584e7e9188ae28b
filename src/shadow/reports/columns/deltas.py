"""Columns of the rows of deltas in matrices.parquet."""

from __future__ import annotations

from shadow.reports.columns.column import Column

_SAMPLED = "without --nulls"
_UNRESOLVED = "sigma_k is not resolved on either side; --no-subspaces"
_OF_BASE = "sigma_k of W_base is not resolved; --no-subspaces"

DELTA = (
    Column(
        "relative_norm",
        "float",
        "size of the change relative to the base",
        formula="norm(D)_F / norm(W_base)_F",
        range=">= 0",
        null="W_base = 0",
    ),
    Column(
        "relative_spectral",
        "float",
        "spectral norm of the change relative to that of the base",
        formula="sigma_1(D) / sigma_1(W_base)",
        range=">= 0",
        null="W_base = 0",
    ),
    Column(
        "cosine",
        "float",
        "angle between base and tuned weights",
        formula="<W_base, W_tuned> / (norm norm)",
        range="[-1, 1]",
        null="either side is 0",
        pitfalls=(
            "If it is near 0 in the embeddings or in all layers, the two are not base and tuned."
            " Computed from D, so that the error of 1 - cosine is at most 1e-7 relative_norm^2."
        ),
    ),
    Column(
        "effective_rank_shift",
        "float",
        "signed change of the effective rank of the weights",
        formula="effective_rank(W_tuned) - effective_rank(W_base)",
        range="(-m, m)",
        null="either is null",
        source="the curve by layer of arXiv:2604.07363",
        pitfalls=(
            "Not the effective rank of D. Its sign depends on the base. A difference of two ranks"
            " that both have an error: use `--precision exact` for small shifts."
        ),
    ),
    Column(
        "stable_rank_shift",
        "float",
        "signed change of the stable rank of the weights",
        formula="stable_rank(W_tuned) - stable_rank(W_base)",
        range="(-m, m)",
        null="either is null",
    ),
    Column(
        "zero_share",
        "float",
        "share of the entries that did not change",
        formula="#{D_ij = 0} / (m n)",
        range="[0, 1)",
        pitfalls=(
            "In bf16 a small update leaves most entries unchanged. That comes from storage, not"
            " from sparse training."
        ),
    ),
    Column(
        "floor_ratio",
        "float",
        "size of the change relative to the rounding of its storage",
        formula=(
            "norm(D)_F / norm(ulp / sqrt(12))_F, ulp entrywise of max(|W_base|, |W_tuned|) in the"
            " coarser dtype"
        ),
        range=">= 0",
        null="both sides are 0, or tuned is an adapter",
        pitfalls=(
            "Below about 2 the delta is mostly rounding. A copy that went through another format,"
            " such as int8, lies above it."
        ),
    ),
    Column(
        "null_participation_ratio",
        "float",
        "the participation ratio D would have with random signs",
        formula="E^2 / (sum r_i^2 + sum c_j^2 - sum D_ij^4)",
        range="[1, m]",
        source="closed form of the sign-flip null",
        pitfalls="Keeps row and column profile, sparsity and quantisation of the real D.",
    ),
    Column(
        "concentration",
        "float",
        "how far participation_ratio lies below that of the null: 0 is as the null, 1 is rank one",
        formula="ln(null_participation_ratio / participation_ratio) / ln(null_participation_ratio)",
        range="(-inf, 1]",
        null="null_participation_ratio < 2",
        pitfalls=(
            "0: like noise of the same profile; 1: rank one; below 0: flatter than noise. At fixed"
            " rank it grows with the size of the matrix, and optimiser and adapter move it more"
            " than data do: compare over the same shapes and methods."
        ),
    ),
    Column(
        "null_edge",
        "float",
        "bound of the largest singular value under the null",
        formula="sqrt(max r_i) + sqrt(max c_j)",
        unit="weights",
        range="> 0",
        source="Latala 2005; Bandeira & van Handel 2016, leading order",
        pitfalls=(
            "Conservative: 1.2 to 1.5 times the null's largest singular value for even profiles,"
            " 2.4 to 2.6 times for uneven ones; null_edge_sharp is closer, --nulls samples it."
        ),
    ),
    Column(
        "spikes",
        "int",
        "singular values above null_edge",
        formula="#{sigma > null_edge}",
        range="0 to m",
    ),
    Column(
        "spike_energy",
        "float",
        "share of the energy that spikes hold",
        formula="sum_{sigma > null_edge} q",
        range="[0, 1]",
    ),
    Column(
        "null_edge_sampled",
        "float",
        "largest singular value in R random sign flips of D",
        formula="max over R draws",
        unit="weights",
        range="> 0",
        null=_SAMPLED,
        pitfalls="The largest of R draws, so it rises slowly with R.",
    ),
    Column(
        "spikes_sampled",
        "int",
        "singular values above null_edge_sampled",
        formula="#{sigma > null_edge_sampled}",
        range="0 to m",
        null=_SAMPLED,
    ),
    Column(
        "null_participation_ratio_sampled",
        "float",
        "null_participation_ratio from the draws",
        formula="E^2 / mean(sum sigma^4)",
        range="[1, m]",
        null=_SAMPLED,
        pitfalls="A check of the closed form.",
    ),
    Column(
        "sigma_scale",
        "float",
        "typical factor by which singular values grew",
        formula="median over i of sigma_i(W_tuned) / sigma_i(W_base), both resolved",
        range="> 0",
        null="none is resolved on both sides",
    ),
    Column(
        "sigma_scale_iqr",
        "float",
        "spread of that factor",
        formula="interquartile range",
        range=">= 0",
        null="as sigma_scale",
    ),
    Column(
        "overlap_left",
        "float",
        "how far the leading output directions of base and tuned agree",
        formula=(
            "norm(U_base^T U_tuned)_F^2 / k, U the leading k = min(16, m) left singular vectors"
        ),
        range="[0, 1]",
        null=_UNRESOLVED,
        source="mean squared cosine of the principal angles, Bjorck & Golub 1973",
        pitfalls=(
            "1: the same subspace; k / rows on average for two random ones. Where norm(D) is well"
            " below the gap, it is near 1 whatever was tuned. Arbitrary where a subspace_gap is"
            " near 0, and 1 by definition where k = rows."
        ),
    ),
    Column(
        "overlap_right",
        "float",
        "how far the leading input directions of base and tuned agree",
        formula="norm(V_base^T V_tuned)_F^2 / k, V the leading k right singular vectors",
        range="[0, 1]",
        null=_UNRESOLVED,
        source="as overlap_left",
        pitfalls="As overlap_left, with cols.",
    ),
    Column(
        "alignment_left",
        "float",
        "energy of D in the base's leading output directions, in units of an even spread",
        formula="(norm(U_base^T D)_F^2 / norm(D)_F^2) / (k / rows)",
        range="[0, rows / k]",
        null=_OF_BASE,
        pitfalls=(
            "1 on average if D has no preferred directions, 0 if it avoids these. Uneven rows of D"
            " or of W_base alone (outlier channels) move it. Uncertain where subspace_gap_base is"
            " near 0. Goes to 1 where floor_ratio is below 4, because rounding is spread evenly"
            " (docs/planted.md)."
        ),
    ),
    Column(
        "alignment_right",
        "float",
        "energy of D in the base's leading input directions, in units of an even spread",
        formula="(norm(D V_base)_F^2 / norm(D)_F^2) / (k / cols)",
        range="[0, cols / k]",
        null=_OF_BASE,
        pitfalls="As alignment_left, with cols.",
    ),
    Column(
        "intruders",
        "int",
        "leading output directions of the tuned side that the base does not have",
        formula=(
            "#{j <= min(10, m): |u_base,i . u_tuned,j| <= 0.5 for all i <= min(64, m)}, u left"
            " singular vectors"
        ),
        range="0 to min(10, m)",
        null="the last of these sigma is not resolved on either side; --no-subspaces",
        source=(
            "after Shuttleworth et al. 2024 (LoRA vs Full Fine-tuning: An Illusion of Equivalence)"
        ),
        pitfalls=(
            "The paper searches all vectors of the base, this column the leading 64: a direction"
            " that rose from below them counts as an intruder here. Vectors of nearly equal"
            " singular values mix, and a mixture of five looks new."
        ),
    ),
    Column(
        "subspace_gap_base",
        "float",
        "how well the leading subspace of W_base is defined",
        formula="(sigma_k - sigma_{k+1}) / sigma_k, k = min(16, m)",
        range="[0, 1]",
        null=_OF_BASE,
        source="Wedin 1972 (sin theta theorem)",
        pitfalls=(
            "An error of spectral norm e in W turns the subspace by about e / (gap sigma_k): at a"
            " gap of 0 the subspace is arbitrary. Where sigma_{k+1} is not resolved it counts as"
            " sigma_floor, where there is none as 0."
        ),
    ),
    Column(
        "subspace_gap_tuned",
        "float",
        "how well the leading subspace of W_tuned is defined",
        formula="as subspace_gap_base",
        range="[0, 1]",
        null="sigma_k of W_tuned is not resolved; --no-subspaces",
        source="as subspace_gap_base",
    ),
    Column(
        "row_participation_ratio",
        "float",
        "how many equally changed rows (outputs) would have the same sum of squared shares",
        formula="(sum r_i)^2 / sum r_i^2",
        range="[1, rows]",
        pitfalls=(
            "In an embedding or a head the rows are tokens: how many tokens the change is about."
        ),
    ),
    Column(
        "col_participation_ratio",
        "float",
        "how many equally changed columns (inputs) would have the same sum of squared shares",
        formula="(sum c_j)^2 / sum c_j^2",
        range="[1, cols]",
    ),
    Column(
        "rows_changed",
        "float",
        "share of the rows of which any entry changed",
        formula="#{i: any D_ij != 0} / rows",
        range="(0, 1]",
        pitfalls=(
            "Of an embedding: the tokens that were trained on, if there was no weight decay, which"
            " changes all rows."
        ),
    ),
    Column(
        "kept",
        "float",
        (
            "share of the stored delta's energy that belongs to the update; the rest is the"
            " rounding of its storage"
        ),
        formula=(
            "<D, d>^2 / (norm(D)_F^2 norm(d)_F^2), d the update before it was stored, estimated"
            " from the counts of |D| / ulp in cells of rows, columns and binades of W_base"
        ),
        range="[0, 1]",
        null="kept_reason is nothing_rounded or rounding_unexplained",
        source="Bussgang 1952; Turnbull 1976; docs/rounding.md",
        pitfalls=(
            "kept_history says which storage it holds for, kept_misfit how well that fits. Below"
            " 0.25 it is rounded_away: corrected figures are null. Of 1,242 known updates, 20 of"
            " the 620 with figures had a norm or a 1/X that was off by more than 12 % (16 of them"
            " within 15.4 %), 3 by 34 %: embeddings whose weight decay lies below half an ulp in"
            " rows that no step reached, which leaves no trace. 6 % of trained updates from a"
            " stored base were refused, where 1 % was the goal. The thresholds were chosen on the"
            " same updates. A master copy kept in more bits over stages is refused, unless it is"
            " far above its rounding. Squared in 1/X: excess_purity_unrounded."
        ),
    ),
    Column(
        "kept_reason",
        "string",
        "why kept is null, or what is wrong with it",
        formula=(
            "nothing_rounded: an adapter, or a tuned side with more bits than the base;"
            " rounding_unexplained: the changes are not what storage would have left (a master"
            " copy, an update that goes with the weights, decay, a mask, heavy tails, a copy that"
            " went through another format), so the update is unknown; rounded_away: kept is below"
            " 0.25"
        ),
        null="kept is known and at least 0.25",
        source="docs/rounding.md",
        pitfalls="rounding_unexplained does not say that anything is wrong with the model.",
    ),
    Column(
        "kept_history",
        "string",
        "how the tuned side was stored, judged by its values",
        formula=(
            "stored_base: all values of the base lie on the tuned side's grid, training began with"
            " them; base_rounded: the base was rounded to that grid first (kept,"
            " relative_norm_unrounded, excess_purity_unrounded and equivalent_directions are of"
            " tuned - round(W_base)); base_kept: it was not rounded before training, so kept = 1 -"
            " 1 / floor_ratio^2; far_above: floor_ratio >= 10, where no history matters and kept is"
            " the same; nothing_rounded"
        ),
        null="kept_reason is rounding_unexplained",
        source="docs/rounding.md",
    ),
    Column(
        "kept_misfit",
        "float",
        "how far the stored energy is from what the storage model gives",
        formula="sum over binades of W_base of |energy of D - expected energy| / energy of D",
        range="[0, 2)",
        null=(
            "nothing was counted: far_above, base_kept, nothing_rounded, fewer than 200 changed"
            " entries"
        ),
        source="docs/rounding.md",
        pitfalls="Above 0.2, kept is null. Other checks may refuse a matrix below 0.2.",
    ),
    Column(
        "relative_norm_unrounded",
        "float",
        "size of the update before it was stored, relative to the base",
        formula="norm(d)_F / norm(W_base)_F, d as in kept",
        range="> 0",
        null="kept is null or below 0.25, or W_base = 0",
        source="docs/rounding.md",
        pitfalls="As kept. Accurate to 3 % where kept is accurate (docs/rounding.md).",
    ),
    Column(
        "zero_share_expected",
        "float",
        "share of entries that storage alone would have left as they were",
        formula=(
            "the mean over entries of the chance that a normal update of that cell's size does not"
            " change it"
        ),
        range="[0, 1)",
        null="kept is null; kept_history is base_kept or far_above",
        source="docs/rounding.md",
        pitfalls=(
            "Compare with zero_share: more zeros than expected suggest a mask or frozen rows."
            " Updates by Adam have fewer."
        ),
    ),
    Column(
        "excess_purity",
        "float",
        "how much purer D is than its null: X, comparable over shapes",
        formula="1 / participation_ratio - 1 / null_participation_ratio",
        range="(-1, 1)",
        source="the sign-flip null in closed form",
        pitfalls=(
            "If D = S + N and S has the share f of the energy, X is f^2 / participation_ratio(S) as"
            " the matrix grows. It is that of the stored D, which rounding lowers by the factor"
            " kept^2. If the rank of what is learned grows with the width, X falls and"
            " concentration stays."
        ),
    ),
    Column(
        "purity_z",
        "float",
        "excess_purity in units of its noise",
        formula="excess_purity row_participation_ratio col_participation_ratio / 2",
        source="its standard deviation under the null of a separable profile",
        pitfalls=(
            "A floor against noise: above 5 there is structure; below -5 D is flatter than noise,"
            " as orthogonalised optimisers leave it. For matrices of real sizes it is in the"
            " thousands, and no measure of strength. It is too large where the profile is in"
            " blocks: noise had 6.8 there."
        ),
    ),
    Column(
        "excess_purity_unrounded",
        "float",
        "excess_purity of the update before it was stored",
        formula="excess_purity / kept^2",
        null="kept is null or below 0.25; or below 0.75 with one direction that has 0.7 of X",
        source="docs/rounding.md",
        pitfalls=(
            "As kept. Where kept_history is base_rounded, it is that of tuned - round(W_base)."
        ),
    ),
    Column(
        "equivalent_directions",
        "float",
        "how many equally strong directions would be as coherent, with this excess_purity",
        formula=(
            "1 / excess_purity_unrounded; 1 / excess_purity where kept is null and nothing was"
            " rounded, or floor_ratio >= 4"
        ),
        range="[1, m]",
        null=(
            "purity_z <= 5, above m, or the update is unknown (kept_reason,"
            " excess_purity_unrounded)"
        ),
        pitfalls=(
            "Not a count of directions: four with a tenth of the energy give about 400. Null says"
            " two things: unknown, or less coherent than all m directions alike would be. A median"
            " of what has a value leaves out the least coherent matrices, so medians here count the"
            " latter (1 / X known and above m) as larger than every value. It grows"
            " with the width if the rank of what is learned does. In reports from before kept was"
            " added, it is 1 / excess_purity where floor_ratio >= 4."
        ),
    ),
    Column(
        "alignment_left_null",
        "float",
        "alignment_left that D's own profile gives with random signs",
        formula=(
            "(sum_i r_i norm(U_i)^2 / E) / (k / rows), U_i the i-th row of the leading k left"
            " vectors of W_base"
        ),
        range="[0, rows / k]",
        null=_OF_BASE,
        pitfalls=(
            "alignment_left minus this is what the directions of D add; divided by kept, what those"
            " of the update add. Above 1 where the rows that changed most are those where W_base is"
            " largest."
        ),
    ),
    Column(
        "alignment_right_null",
        "float",
        "alignment_right that D's own profile gives with random signs",
        formula="(sum_j c_j norm(V_j)^2 / E) / (k / cols)",
        range="[0, cols / k]",
        null=_OF_BASE,
        pitfalls="As alignment_left_null, with cols.",
    ),
    Column(
        "null_edge_sharp",
        "float",
        "largest singular value that noise of D's rows and columns reaches, with a margin",
        formula=(
            "sqrt(min over t of -Q(s) / t) (1 + m^(-2/3)), P(t) = sum r / (1 + r t), Q(s) = sum b /"
            " (1 + b s), b = c / E, s Q(s) = t P(t)"
        ),
        unit="weights",
        range="> 0",
        source="Silverstein & Choi 1995; Paul & Silverstein 2009",
        pitfalls=(
            "Assumes a separable profile: noise in blocks passed it in 3 of 40 matrices"
            " (docs/rounding.md). null_edge holds for any profile, and is 1.2 to 2.6 times as high."
        ),
    ),
    Column(
        "spikes_sharp",
        "int",
        "singular values above null_edge_sharp",
        formula="#{sigma > null_edge_sharp}",
        range="0 to m",
        pitfalls="As null_edge_sharp.",
    ),
    Column(
        "decay_cosine",
        "float",
        "does the change shrink the weights (below 0), or let them grow",
        formula="<D, W_base> / (norm norm)",
        range="[-1, 1]",
        null="W_base = 0",
        pitfalls="Weight decay and learning both move it. -1: tuned is the base, scaled down.",
    ),
    *(
        Column(
            f"levels_{side}",
            "float",
            f"share of distinct values in a row of the {side} side",
            formula=(
                "median over up to 64 rows of the distinct values among the first 1,024 entries,"
                " over their number"
            ),
            range="(0, 1]",
            null="a format of 8 bits, or an adapter",
            pitfalls=(
                "Few values point to a copy that went through fewer bits: of 1,024 entries about"
                " 708 differ in BF16, 144 after int8, 130 after fp8, 62 after int4 in groups."
                " Depends on the length of the rows, and on whether groups have scales of their"
                " own: compare matrices of one shape."
            ),
        )
        for side in ("base", "tuned")
    ),
    Column(
        "top20_energy",
        "float",
        "share of energy in the first 20 directions",
        formula="q_1 + ... + q_min(20, m)",
        range="(0, 1]",
        null="D = 0",
    ),
    Column(
        "energy_share",
        "float",
        "share of the pair's energy of change that is in this matrix",
        formula="norm(D)_F^2 / sum norm(D)_F^2 over the matrices of the pair",
        range="[0, 1]",
        null="matrices were left out by --component, --layer or --module",
        pitfalls="Large matrices have more.",
    ),
)
