"""Facts of tensors other than the comparison of matrices: vectors that moved, a vocabulary of
another size, what is identical, broken or skipped.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from shadow.reports.provenance import SIDES
from shadow.summary.record import BrokenRow, SkippedRow, Unchanged, VectorsRow, VocabularyRow
from shadow.summary.tables import Columns, are, count, is_known, mask_of, median
from shadow.text import visible

GROWING = ("embed", "head")  # modules whose rows are a vocabulary
LONGEST = 120  # letters of a name
EXAMPLES = 3  # tensors of a reason or a kind of damage that a summary names
FAR = 10.0  # times as far as the next one, a vector is named
FACTORS = (".lora_B", ".lora_embedding_B")  # one of the two factors of a module of an adapter


def vectors(tensors: Columns) -> VectorsRow:
    """Counts of the vectors that were compared, and how far those that changed moved.

    A vector that is 0 in the base has no relative norm; where it moved, it is no copy of that.
    """
    rows = tensors.where(tensors["compared"] > 0).having(side="tuned", reason="not_a_matrix")
    norms = rows["relative_norm"]
    from_zero = np.isnan(norms) & (rows["cast"] != None)  # noqa: E711
    changed = (norms > 0) | from_zero
    moved = {}
    for (component,), group in rows.where(changed).groups("component"):
        layers = dict.fromkeys(group.inside["layer"])
        moved[component] = [int(layer) for layer in layers]
    furthest, furthest_norm = _furthest(rows)
    return VectorsRow(
        compared=len(rows),
        changed=count(changed),
        relative_norm=median(norms[norms > 0]),
        relative_norm_of_all=median(np.where(is_known(norms), norms, 0.0)),
        furthest=furthest,
        furthest_norm=furthest_norm,
        moved=moved,
    )


def _furthest(rows: Columns) -> tuple[str, float] | tuple[None, None]:
    """The vector that moved FAR times as far as any other, and how far; if there is none, the norm
    that moved so far, as biases may be small, and move far.
    """
    sizes = np.nan_to_num(rows["relative_norm"])
    for chosen in (sizes >= 0, are(rows["module"], "norm")):
        numbers = np.flatnonzero(chosen)
        order = numbers[np.argsort(-sizes[numbers], kind="stable")]
        if len(order) < 2:
            continue
        first, second = order[:2]
        if sizes[first] > FAR * sizes[second]:
            return str(rows["tensor"][first]), float(sizes[first])
    return None, None


def idle_updates(tensors: Columns) -> int:
    """The number of modules of an adapter that equal the base's, as the product of their factors
    is 0.
    """
    return _updates(tensors.having(side="tuned", status="identical"))


def unnamed_updates(tensors: Columns) -> int:
    """The number of modules of an adapter of whose name the base has none."""
    return _updates(tensors.having(side="tuned", reason="unnamed"))


def _updates(tensors: Columns) -> int:
    """The number of modules of which these are an adapter's factors."""
    return sum(any(factor in str(name) for factor in FACTORS) for name in tensors["tensor"])


def vocabulary(tensors: Columns) -> list[VocabularyRow]:
    """Embeddings and heads with more rows on one side, whose common rows were compared."""
    tensors = tensors.having(module=GROWING, status=("measured", "identical"))
    grown = []
    for (component, module), group in tensors.groups("component", "module"):
        sizes = Counter[str]()
        is_partial = False
        for side, shape, compared in group.each("side", "shape", "compared"):
            if len(shape) == 2 and compared > 0:  # not where it is unknown either
                sizes[side] = max(int(shape[0]), sizes[side])
                is_partial |= compared < math.prod(shape)
        if not is_partial or not sizes["base"] or not sizes["tuned"]:
            continue
        added = sizes["tuned"] - sizes["base"]
        if added:
            row = VocabularyRow(
                component=component,
                module=module,
                base_rows=sizes["base"],
                tuned_rows=sizes["tuned"],
                added=added,
            )
            grown.append(row)
    return grown


def broken(tensors: Columns) -> list[BrokenRow]:
    """The tensors that no training leaves so, a row for each side and kind of damage.

    The side is `either` where an older report does not say in which NaN or infinity is.
    """
    nonfinite = tensors["nonfinite"]
    older = tensors.where(np.isnan(nonfinite)).having(reason="nonfinite", side="tuned")
    damage = {
        "nonfinite": nonfinite > 0,
        "all_zero": tensors["all_zero"] > 0,
        "empty": mask_of([0 in shape for shape in tensors["shape"]]),
    }
    # tensors of both sides have the reason; one side is enough to name them
    groups = [("nonfinite", "either", older)]
    for code, is_damaged in damage.items():
        damaged = tensors.where(is_damaged)
        groups += [(code, side, damaged.having(side=side)) for side in SIDES]
    rows = []
    for code, side, group in groups:
        names = [visible(name[:LONGEST]) for name in group["tensor"]]
        if names:
            row = BrokenRow(code=code, side=side, count=len(names), tensors=names[:EXAMPLES])
            rows.append(row)
    return rows


def skipped(tensors: Columns) -> list[SkippedRow]:
    """Counts by reason, with a few names and the first detail."""
    rows = []
    for (reason,), group in tensors.having(status="skipped").groups("reason"):
        sides = Counter(group["side"])
        names = dict.fromkeys(group["tensor"])
        details = [detail for detail in group["detail"] if detail is not None]
        row = SkippedRow(
            reason=reason,
            tensors=len(group),
            base=sides["base"],
            tuned=sides["tuned"],
            examples=list(names)[:EXAMPLES],
            detail=details[0] if details else None,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (-row.tensors, row.reason))


def unchanged(tensors: Columns) -> list[Unchanged]:
    """The modules of the tuned side all of whose compared matrices are identical."""
    matrices = tensors.where(tensors.are_matrices).having(side="tuned")
    modules = []
    for (component, module), group in matrices.groups("component", "module"):
        if len(group.having(status="identical")) == len(group):
            row = Unchanged(component=component, module=module, tensors=len(group))
            modules.append(row)
    return modules
