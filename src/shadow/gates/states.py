"""What rules without a number name in a report: whether places and files changed, and claims.

A place is a component, a module or a layer. It changed if one entry of one of its tensors did,
vectors too; it is unchanged if all of its tensors were compared and none did; otherwise nothing is
known of it. Integers are left out, and so are tied tensors, which are measured elsewhere. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from shadow.checks.files import EVERY
from shadow.checks.patterns import Pattern
from shadow.gates.rules import CHANGED, UNCHANGED, Metric
from shadow.places.architecture import Place
from shadow.reasons import FROM_ZERO

State = str | None  # None: not known
TENSORS = (
    *("tensor", "side", "component", "layer", "module", "expert", "status", "reason", "detail"),
    *("relative_norm", "compared"),
)
LEFT_OUT = ("tied", "not_float", "adapter")  # reasons that say nothing of a change
# kinds of files of which a change of bytes matters only if something in them differs
LOOKED_INTO = ("config", "generation", "chat_template", "tokenizer", "code")


def states(pattern: Pattern, tensors: Iterable[Mapping[str, Any]]) -> dict[str, State]:
    """What is known of each place that a rule names, by its name: `changed`, `unchanged` or None.

    A layer of a range is a place of its own. tensors: rows of tensors.parquet, with TENSORS.
    """
    found: dict[str, list[bool | None]] = {}
    for row in tensors:
        component, layer, module = row["component"] or "", row["layer"], row["module"] or ""
        if row["reason"] not in LEFT_OUT and pattern.covers(
            Place(component, layer, module, row["expert"])
        ):
            parts = [component, *([module] if pattern.module != "*" else [])]
            parts += [f"layers.{layer}"] if pattern.layers else []
            found.setdefault(".".join(parts), []).append(_is_changed(row))
    return {
        name: CHANGED if any(of_place) else None if None in of_place else UNCHANGED
        for name, of_place in found.items()
    }


def _is_changed(row: Mapping[str, Any]) -> bool | None:
    """Whether an entry of a tensor changed; None where it is not known."""
    if row["status"] == "identical":
        return False
    if row["status"] == "measured":
        return None if row["reason"] else True  # with a reason it has no partner
    if row["reason"] != "not_a_matrix" or row["compared"] == 0:
        return None
    if row["detail"] == FROM_ZERO:
        return True
    if row["relative_norm"] is not None:
        return bool(row["relative_norm"] > 0)
    return False if row["compared"] else None


def file_states(figure: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, State]:
    """What is known of the files that a rule names, by path: `changed`, `added`, `removed`,
    `unchanged` or None. Rows are those of files.parquet.

    Where no file is named they are unchanged on both sides, under the name of the figure, unless
    not all files are known.
    """
    pattern = figure.module or ""
    found: dict[str, State] = {}
    for row in sorted(rows, key=lambda row: row["side"] != "tuned"):
        path = str(row["path"])
        if path == EVERY:
            found[f"{row['side']} side"] = None
        elif path not in found and (state := _file_state(pattern, row)) is not None:
            found[path] = None if state == "unknown" else state
    return found or {str(figure): UNCHANGED}


def _file_state(pattern: str, row: Mapping[str, Any]) -> str | None:
    """What became of a file, as far as a pattern is about it; None where it is not."""
    kind, state = str(row["kind"]), str(row["state"])
    words = (row["differs"] or "").split()
    if fnmatchcase(kind, pattern):
        matters = kind not in LOOKED_INTO or bool(words)
        return state if state == "unknown" or (state != "same" and matters) else UNCHANGED
    named = [word for word in words if fnmatchcase(f"{kind}.{word}", pattern) or word == pattern]
    return state if named else None
