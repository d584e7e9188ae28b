"""Every column computed another way: whole matrices, float64, NumPy's SVD, published formulas."""

import numpy as np

ULP_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
MIN_EXPONENT = {"F64": -1022, "F32": -126, "F16": -14, "BF16": -126, "F8_E4M3": -6, "F8_E5M2": -14}


def singular_values(W, floor=0.0):
    s = np.linalg.svd(W, compute_uv=False)
    return np.where(s < floor, 0.0, s)


def spectral(W, floor=0.0):
    """Columns of one matrix; singular values below floor count as 0."""
    s = singular_values(W, floor)
    m = len(s)
    p, q = s / s.sum(), s**2 / (s**2).sum()
    H = lambda x: -sum(v * np.log(v) for v in x if v > 0)  # noqa: E731
    values = {
        "frobenius_norm": np.sqrt((W**2).sum()), "spectral_norm": s[0], "nuclear_norm": s.sum(),
        "stable_rank": (s**2).sum() / s[0] ** 2, "effective_rank": np.exp(H(p)),
        "energy_rank": np.exp(H(q)), "participation_ratio": 1 / (q**2).sum(),
        "numerical_rank": int((s > floor).sum()) if floor else int((s > 0).sum()),
        **{f"top{k}_energy": q[:k].sum() for k in (1, 4, 16, 64)},
        "condition_number": s[0] / s[-1] if s[-1] > 0 else None,
    }  # fmt: skip
    for percent in (90, 95, 99):
        values[f"rank_{percent}"] = next(
            k for k in range(1, m + 1) if q[:k].sum() >= percent / 100 - 1e-9
        )
    return values | power_law(s[s > 0])


def power_law(s):
    """Clauset, Shalizi & Newman by a plain loop over xmin and over the tail."""
    x = np.sort(s**2)
    best = None
    for i in range(len(x) - 49):
        if i and x[i] == x[i - 1]:
            continue
        tail = x[i:]
        logs = np.log(tail / tail[0])
        if logs.sum() <= 0:
            continue
        exponent = len(tail) / logs.sum()
        model = 1 - (tail / tail[0]) ** -exponent
        k = np.arange(len(tail))
        distance = max(
            np.abs(model - k / len(tail)).max(), np.abs((k + 1) / len(tail) - model).max()
        )
        if best is None or distance < best[0]:
            best = (distance, tail[0], 1 + exponent, len(tail))
    if best is None:
        return dict.fromkeys(("alpha", "alpha_xmin", "alpha_ks", "alpha_tail"))
    ks, xmin, alpha, count = best
    return {
        "alpha": alpha, "alpha_xmin": xmin, "alpha_ks": ks, "alpha_tail": count,
    }  # fmt: skip


def ulp(W, dtype):
    exponent = np.floor(np.log2(np.maximum(np.abs(W), 2.0 ** MIN_EXPONENT[dtype])))
    return 2.0 ** (np.maximum(exponent, MIN_EXPONENT[dtype]) - ULP_BITS[dtype])


def subspaces(Wb, Wt, floors=(0.0, 0.0)):
    """The columns that compare singular vectors, from two whole SVDs; floors: of base and tuned."""
    (Ub, sb, Vb), (Ut, st, Vt) = (np.linalg.svd(W, full_matrices=False) for W in (Wb, Wt))
    (rows, cols), m, D = Wb.shape, len(sb), Wt - Wb
    k = min(16, m)
    sides = ("left", "right", "left_null", "right_null")
    values = dict.fromkeys(
        ("overlap_left", "overlap_right", "intruders", *(f"alignment_{side}" for side in sides))
    )

    def gap(s, floor):
        after = (s[k] if s[k] >= floor else floor) if k < m else 0.0
        return (s[k - 1] - after) / s[k - 1] if s[k - 1] >= floor and s[k - 1] > 0 else None

    def resolved(s, floor, count):
        return s[min(count, m) - 1] >= floor and s[min(count, m) - 1] > 0

    if resolved(sb, floors[0], k):
        values["alignment_left"] = ((Ub[:, :k].T @ D) ** 2).sum() / (D**2).sum() / (k / rows)
        values["alignment_right"] = ((D @ Vb[:k].T) ** 2).sum() / (D**2).sum() / (k / cols)
        # with random signs, squares of sums are sums of squares
        r, c = (D**2).sum(1), (D**2).sum(0)
        values["alignment_left_null"] = (Ub[:, :k].T ** 2 @ r).sum() / r.sum() / (k / rows)
        values["alignment_right_null"] = (Vb[:k] ** 2 @ c).sum() / c.sum() / (k / cols)
        if resolved(st, floors[1], k):
            values["overlap_left"] = ((Ub[:, :k].T @ Ut[:, :k]) ** 2).sum() / k
            values["overlap_right"] = ((Vb[:k] @ Vt[:k].T) ** 2).sum() / k
    if resolved(sb, floors[0], 64) and resolved(st, floors[1], 10):
        values["intruders"] = sum(all(abs(u @ v) <= 0.5 for u in Ub.T[:64]) for v in Ut.T[:10])
    return values | {
        "subspace_gap_base": gap(sb, floors[0]),
        "subspace_gap_tuned": gap(st, floors[1]),
    }


def sharp_edge(r, c):
    """The edge of noise of variances r_i c_j / E with its margin: the least of a convex curve, on a
    fine grid, refined.

    For x in (0, 1), s solves s Q(s) = t P(t) by bisection, with t = -x / max a.
    """
    E = r.sum()
    a, b = r[r > 0], c[c > 0] / E

    def squares(x):
        t = -x[:, None] / a.max()
        target = (a * t / (1 + a * t)).sum(1, keepdims=True)
        low, high = np.full_like(t, -200), np.full_like(t, 36)  # of ln(y / (1 - y)), s = -y / max b
        for _ in range(70):
            middle = (low + high) / 2
            s = -1 / (1 + np.exp(-middle)) / b.max()
            above = (b * s / (1 + b * s)).sum(1, keepdims=True) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return -(b / (1 + b * s)).sum(1) / t[:, 0]

    lows, highs = -20.0, 20.0
    for _ in range(8):
        grid = np.linspace(lows, highs, 21)
        found = squares(1 / (1 + np.exp(-grid)))
        best = int(np.argmin(found))
        lows, highs = grid[max(0, best - 1)], grid[min(20, best + 1)]
    return np.sqrt(min(found)) * (1 + min(len(r), len(c)) ** (-2 / 3))


def levels(W, dtype):
    """The median over rows of the share of distinct values; all rows where there are at most 64."""
    if dtype.startswith("F8"):
        return None
    rows = W if len(W) <= 64 else W[[i * len(W) // 64 for i in range(64)]]
    return float(np.median([len(set(row[:1024].tolist())) for row in rows])) / min(1024, W.shape[1])


def directions(values, shape):
    """excess_purity_unrounded and equivalent_directions by definition, from other columns."""
    X, kept, z, floor = (
        values[name] for name in ("excess_purity", "kept", "purity_z", "floor_ratio")
    )
    unrounded = None if kept is None or kept < 0.25 else X / kept**2
    best = unrounded
    if kept is None and (
        values["kept_reason"] == "nothing_rounded" or (floor is not None and floor >= 4)
    ):
        best = X
    recorded = best is not None and z > 5 and 1 / best <= min(shape)
    return {
        "excess_purity_unrounded": unrounded,
        "equivalent_directions": 1 / best if recorded else None,
    }


def delta(Wb, Wt, dtypes, floors=(0.0, 0.0, 0.0)):
    """The columns of a delta that are not of one matrix alone. floors: of base, tuned and delta."""
    D = Wt - Wb
    b, t, d = spectral(Wb, floors[0]), spectral(Wt, floors[1]), spectral(D, floors[2])
    sb = singular_values(Wb, floors[0])
    st = singular_values(Wt, floors[1])
    s = singular_values(D, floors[2])
    coarser = min(dtypes, key=ULP_BITS.get)
    r, c, E = (D**2).sum(1), (D**2).sum(0), (D**2).sum()
    null = E**2 / ((r**2).sum() + (c**2).sum() - (D**4).sum())
    edge = np.sqrt(r.max()) + np.sqrt(c.max())
    sharp = sharp_edge(r, c)
    both = (sb > 0) & (st > 0)
    ratios, purity = st[both] / sb[both], 1 / d["participation_ratio"]
    floor = ulp(np.maximum(np.abs(Wb), np.abs(Wt)), coarser)
    return (
        d
        | subspaces(Wb, Wt, floors[:2])
        | {
            "condition_number": None,
            "relative_norm": np.linalg.norm(D) / np.linalg.norm(Wb),
            "cosine": (Wb * Wt).sum() / np.linalg.norm(Wb) / np.linalg.norm(Wt),
            "effective_rank_shift": t["effective_rank"] - b["effective_rank"],
            "zero_share": (D == 0).mean(),
            "zeroed": int(not Wt[D != 0].any()),
            "floor_ratio": np.linalg.norm(D) / np.linalg.norm(floor / np.sqrt(12)),
            "null_participation_ratio": null,
            "concentration": np.log(null * purity) / np.log(null) if null >= 2 else None,
            "null_edge": edge,
            "spikes": int((s > edge).sum()),
            "spike_energy": (s[s > edge] ** 2).sum() / (s**2).sum(),
            "sigma_scale": np.median(ratios),
            "sigma_scale_iqr": np.percentile(ratios, 75) - np.percentile(ratios, 25),
            "row_participation_ratio": E**2 / (r**2).sum(),
            "col_participation_ratio": E**2 / (c**2).sum(),
            "rows_changed": (D != 0).any(1).mean(),
            "excess_purity": purity - 1 / null,
            "purity_z": (purity - 1 / null) * E**4 / (r**2).sum() / (c**2).sum() / 2,
            "null_edge_sharp": sharp,
            "spikes_sharp": int((s > sharp).sum()),
            "decay_cosine": (D * Wb).sum() / np.linalg.norm(D) / np.linalg.norm(Wb),
            "levels_base": levels(Wb, dtypes[0]),
            "levels_tuned": levels(Wt, dtypes[1]),
            "top20_energy": (s[:20] ** 2).sum() / (s**2).sum(),
        }
    )
