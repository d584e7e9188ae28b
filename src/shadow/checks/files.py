"""`files A B`: whether the files beside the weights say the same, by rows of files.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shadow.checks.answer import Answer, Claim, Figure
from shadow.checks.verification import Against
from shadow.text import counted, several

FILES = Claim(
    "files",
    "the same files beside the weights",
    "config, generation config, chat template, tokenizer and code of both sides say the same, and"
    " the second has no pickle that the first lacks; documents and files of weights do not count",
)
KINDS = ("config", "generation", "chat_template", "tokenizer", "code", "pickle")
EVERY = "*"  # the path of a row that says that not all files of a side are known
NAMED = 5  # files that a reason names


def files(rows: Sequence[Mapping[str, Any]]) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, with counts of the files that matter, and the files that differ."""
    told = [row for row in rows if row["side"] == "tuned" or row["state"] == "removed"]
    matter = [row for row in told if row["kind"] in KINDS]
    differ = [row for row in matter if row["differs"] and row["state"] != "unknown"]
    unknown = {
        row["path"]: f"{row['path']}: {row['detail']}"
        for row in rows
        if row["state"] == "unknown" and (row["kind"] in KINDS or row["path"] == EVERY)
    }
    counts = {"files": len(matter), "files_differ": len(differ), "files_unknown": len(unknown)}
    figures: dict[str, Figure] = {**counts}
    if differ:
        named = several([f"{row['path']} ({_what(row, short=True)})" for row in differ], NAMED)
        against = tuple(Against(row["path"], _what(row)) for row in differ)
        return Answer("files", "does_not_hold", named, figures), against
    if unknown or not matter:
        named = several([*unknown.values()], NAMED, "; ")
        reason = f"not compared: {named}" if unknown else "neither side has a file that matters"
        return Answer("files", "cannot_be_told", reason, figures), ()
    agree = [row["path"] for row in matter if row["kind"] != "pickle" or row["state"] == "same"]
    texts = [f"{several(agree, NAMED)} {'agrees' if len(agree) == 1 else 'agree'}"] if agree else []
    if pickles := len(matter) - len(agree):
        texts.append(f"{counted(pickles, 'pickle is', 'pickles are')} not looked into")
    return Answer("files", "holds", "; ".join([*texts, "weights are not compared"]), figures), ()


def _what(row: Mapping[str, Any], *, short: bool = False) -> str:
    """What is wrong with a file that differs: `added`, its detail, or `rope_theta, vocab_size`."""
    if row["state"] != "changed":
        return str(row["state"])
    return several(row["differs"].split(), 3) if short else str(row["detail"] or "changed")
