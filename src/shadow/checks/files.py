"""`files A B`: whether the files beside the weights say the same, by rows of files.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.checks.answer import Against, Answer, Check, Figure, Outcome
from shadow.errors import ShadowError
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.listing import Listing
    from shadow.checks.answer import Question
    from shadow.run.runtime import Runtime
    from shadow.targets.references import Reference

KINDS = ("config", "generation", "chat_template", "tokenizer", "code", "pickle")
EVERY = "*"  # the path of a row that says that not all files of a side are known
WORDS = {
    "differ": "{files}",
    "not_compared": "not compared: {files}",
    "nothing": "neither side has a file that matters",
    "agree": "{files} {count|agrees|agree}",
    "pickles": "{pickles:count pickle is|pickles are} not looked into",
    "without_weights": "weights are not compared",
    "file": "{path} ({what})",
    "unknown": "{path}: {why}",
    "state": "{state}",
}
Row = Mapping[str, Any]


def judge(rows: Sequence[Row]) -> Answer:
    """Judge rows of files.parquet, with counts of the files that matter."""
    listed = [row for row in rows if row["side"] == "tuned" or row["state"] == "removed"]
    matter = [row for row in listed if row["kind"] in KINDS]
    differ = [row for row in matter if row["differs"] and row["state"] != "unknown"]
    unknown = {
        row["path"]: Reason("unknown", path=row["path"], why=row["detail"])
        for row in rows
        if row["state"] == "unknown" and (row["kind"] in KINDS or row["path"] == EVERY)
    }
    figures: dict[str, Figure] = {
        "files": len(matter),
        "files_differ": len(differ),
        "files_unknown": len(unknown),
    }
    if differ:
        named = []
        against = []
        for row in differ:
            path = row["path"]
            what = row["differs"].split() if row["state"] == "changed" else row["state"]
            named.append(Reason("file", path=path, what=what))
            against.append(Against(path, Reason("state", state=_detail(row))))
        reason = Reason("differ", files=named)
        return Answer(Outcome.DOES_NOT_HOLD, [reason], figures, against)
    if unknown:
        reason = Reason("not_compared", files=[*unknown.values()])
        return Answer(Outcome.INCONCLUSIVE, [reason], figures)
    if not matter:
        return Answer(Outcome.INCONCLUSIVE, [Reason("nothing")], figures)
    agree = [row["path"] for row in matter if row["kind"] != "pickle" or row["state"] == "same"]
    pickles = len(matter) - len(agree)
    reasons = []
    if agree:
        reasons.append(Reason("agree", files=agree, count=len(agree)))
    if pickles:
        reasons.append(Reason("pickles", pickles=pickles))
    return Answer(Outcome.HOLDS, [*reasons, Reason("without_weights")], figures)


def _detail(row: Row) -> str:
    if row["state"] == "changed" and row["detail"]:
        return str(row["detail"])
    return str(row["state"])


def gather(question: Question, runtime: Runtime, scratch: Path) -> Sequence[Row]:
    """Compare the files of two folders or repositories. No weights are read."""
    from shadow.run.file_rows import file_rows

    first, second = ([("", _listing(model, runtime))] for model in question.models)
    return file_rows(first, second, runtime.say)


def _listing(reference: Reference, runtime: Runtime) -> Listing:
    from shadow.checkpoints.listing import listing_of_folder
    from shadow.run.sides import snapshot_of

    if not reference.is_folder:
        return snapshot_of(reference, runtime)
    root = Path(reference.repo)
    if not root.is_dir():
        raise ShadowError(f"no such folder: {reference.repo}", "name the folder of a model")
    return listing_of_folder(root)


CHECK = Check(
    "files",
    "the same files beside the weights",
    "config, generation config, chat template, tokenizer and code of both sides say the same, and"
    " the second has no pickle that the first lacks; documents and files of weights do not count",
    judge,
    WORDS,
    gather,
    checkpoints=("A", "B"),
    says="equal configs, tokenizers and code",
)
