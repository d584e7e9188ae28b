"""`drop_in BASE MODEL`: whether a model can be loaded in place of its base, by headers and the
files beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.checks.answer import Against, Answer, Check, Figure, Outcome
from shadow.checks.files import EVERY, KINDS
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checks.answer import Question
    from shadow.run.runtime import Runtime

NAMED = "{tensors:count tensor|tensors} "
DIFFERENCES: Mapping[str, str] = {
    "names_missing": NAMED + "of the base {tensors|is|are} missing: {names}",
    "names_added": NAMED + "{tensors|is|are} not in the base: {names}",
    "other_shapes": NAMED + "{tensors|has|have} another shape: {names}",
    "other_dtypes": NAMED + "{tensors|has|have} another dtype ({changes}): {names}",
    **{f"{kind}_differs": f"{kind.replace('_', ' ')} differs: {{names}}" for kind in KINDS},
}
WORDS = {
    **DIFFERENCES,
    "like_base": "names, shapes and dtypes of {tensors:all tensor|tensors} are the base's"
    "[, and so {files|is|are} {files:count file|files} beside the weights]",
    "noted": "not required, but noted: {what:each}",
    "files_unknown": "not compared: {names}",
    "change": "{before} -> {after}",
    "file_state": "{state}",
}
Header = tuple[str, str]  # shape and dtype, in words


@dataclass(frozen=True)
class Headers:
    """Headers of both sides by the names of tensors, and rows of files.parquet."""

    base: Mapping[str, Header]
    model: Mapping[str, Header]
    files: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[Reason] = ()


def judge(headers: Headers) -> Answer:
    """Name every tensor and file in which a loader finds something other than the base's."""
    base = headers.base
    model = headers.model
    against: dict[str, list[Against]] = {code: [] for code in DIFFERENCES}
    for name in base.keys() - model.keys():
        against["names_missing"].append(Against(name, Reason("only_in", where="the base")))
    for name in model.keys() - base.keys():
        against["names_added"].append(Against(name, Reason("only_in", where="the model")))
    for name in base.keys() & model.keys():
        pairs = zip(("other_shapes", "other_dtypes"), base[name], model[name], strict=True)
        for code, before, after in pairs:
            if before != after:
                against[code].append(Against(name, Reason("change", before=before, after=after)))
    unknown = []
    for row in headers.files:
        if row["state"] == "unknown":
            if row["kind"] in KINDS or row["path"] == EVERY:
                unknown.append(row["path"])
        elif row["kind"] in KINDS and row["differs"]:
            why = Reason("file_state", state=row["detail"] or row["state"])
            against[f"{row['kind']}_differs"].append(Against(row["path"], why))
    reasons = []
    for code, rows in against.items():
        if rows:
            rows.sort(key=lambda row: row.name)
            changes = []
            if code == "other_dtypes":
                changes = [*dict.fromkeys(row.why for row in rows)]
            names = [row.name for row in rows]
            reasons.append(Reason(code, tensors=len(rows), names=names, changes=changes))
    figures: dict[str, Figure] = {
        "tensors": len(model),
        "tensors_of_base": len(base),
        "files_unknown": len(unknown),
    }
    figures |= {code: len(rows) for code, rows in against.items()}
    doubts = [Reason("files_unknown", names=unknown)] if unknown else []
    if reasons:
        rows = [row for group in against.values() for row in group]
        return Answer(Outcome.DOES_NOT_HOLD, reasons, figures, rows, headers.notes, doubts)
    if doubts:
        return Answer(Outcome.INCONCLUSIVE, doubts, figures, notes=headers.notes)
    files = {row["path"] for row in headers.files if row["kind"] in KINDS}
    holds = [Reason("like_base", tensors=len(model), files=len(files) or None)]
    return Answer(Outcome.HOLDS, holds, figures, notes=headers.notes)


def gather(question: Question, runtime: Runtime, scratch: Path) -> Headers:
    """Read headers and small files of both sides; no weights."""
    from shadow.checkpoints.opening import listings_of
    from shadow.run.aligned import without_prefixes
    from shadow.run.file_rows import file_rows
    from shadow.run.sides import find_checkpoints, opened_models

    checkpoints = find_checkpoints(question.named, runtime, scratch)
    first, second = opened_models(checkpoints, runtime, scratch)
    *opened, notes = without_prefixes(first, second, ("the base", "the model"))
    headers = []
    for checkpoint in opened:
        of_side = {}
        for name, info in checkpoint.tensors.items():
            of_side[name] = ("x".join(map(str, info.shape)) or "scalar", info.dtype)
        headers.append(of_side)
    files: Sequence[Mapping[str, Any]] = ()
    if not any(side in runtime.checkpoints for side in question.checkpoints):  # a model in memory
        of_base, of_model = map(listings_of, checkpoints.values())
        files = file_rows(of_base, of_model, runtime.say)
    base, model = headers
    return Headers(base, model, files, notes)


CHECK = Check(
    "drop_in",
    "a drop-in of its base",
    "names, shapes and dtypes of all tensors, and config, generation config, chat template,"
    " tokenizer and code beside them, are the base's",
    judge,
    WORDS,
    gather,
    checkpoints=("BASE", "MODEL"),
    says="headers and small files are the base's",
)
