"""`files A B`: whether the files beside the weights say the same, by rows of files.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shadow.claims.answer import Answer, Claim, Figure
from shadow.claims.verify.scanned import are
from shadow.claims.verify.verification import Against
from shadow.reasons import BEYOND_VOCABULARY
from shadow.text import counted, several

FILES = Claim(
    "files",
    "the same files beside the weights",
    "config, generation config, chat template, tokenizer and code of both sides say the same, and"
    " the second has no pickle that the first lacks; documents and files of weights do not count",
    null="one key, token or line of code that differs",
)
KINDS = ("config", "generation", "chat_template", "tokenizer", "code", "pickle")
EVERY = "*"  # the path of a row that says that not all files of a side are known
NAMED = 5  # files that a reason names


def tokens_beyond(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Which side has tokens that its model has no row for."""
    sides = {"base": "A", "tuned": "B"}
    return tuple(
        f"{sides[row['side']]}: {row['detail'].partition('; ')[0]}"
        for row in rows
        if f" {BEYOND_VOCABULARY} " in (row["detail"] or "").partition(":")[0]
    )


def files(rows: Sequence[Mapping[str, Any]]) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, with counts of the files that matter, and the files that differ."""
    told = [row for row in rows if row["side"] == "tuned" or row["state"] == "removed"]
    matter = [row for row in told if row["kind"] in KINDS]
    differ = [row for row in matter if row["differs"] and row["state"] != "unknown"]
    unknown = [
        row
        for row in rows
        if row["state"] == "unknown" and (row["kind"] in KINDS or row["path"] == EVERY)
    ]
    figures: dict[str, Figure] = {
        "files": len(matter),
        "files_differ": len(differ),
        "files_unknown": len(unknown),
    }
    against = tuple(Against(row["path"], what(row)) for row in differ)
    if differ:
        named = [f"{row['path']} ({_short(row)})" for row in differ]
        return Answer("files", "does_not_hold", several(named, NAMED), figures), against
    if unknown:
        named = list(dict.fromkeys(row["path"] for row in unknown if row["path"] != EVERY))
        texts = [f"{several(named, NAMED)} {are(len(named))} not compared"] if named else []
        texts += dict.fromkeys(row["detail"] for row in unknown if row["path"] == EVERY)
        return Answer("files", "cannot_be_told", "; ".join(texts), figures), ()
    if not matter:
        reason = "neither side has a file that matters"
        return Answer("files", "cannot_be_told", reason, figures), ()
    pickles = sum(row["kind"] == "pickle" and row["state"] == "changed" for row in matter)
    agree = [row["path"] for row in matter if row["kind"] != "pickle" or row["state"] == "same"]
    texts = [f"{several(agree, NAMED)} {'agrees' if len(agree) == 1 else 'agree'}"] if agree else []
    if pickles:
        changed = counted(
            pickles, "pickle has other bytes and is", "pickles have other bytes and are"
        )
        texts.append(f"{changed} not looked into")
    if gone := sum(row["kind"] == "pickle" and row["state"] == "removed" for row in matter):
        texts.append(f"{counted(gone, 'pickle is', 'pickles are')} in A alone")
    texts.append("weights are not compared")
    return Answer("files", "holds", "; ".join(texts), figures), ()


def _short(row: Mapping[str, Any]) -> str:
    """`rope_theta, vocab_size`, or `added`."""
    if row["state"] != "changed":
        return str(row["state"])
    return several(str(row["differs"]).split(), 3)


def what(row: Mapping[str, Any]) -> str:
    """What is wrong with a file that differs, in words."""
    if row["state"] != "changed":
        return str(row["state"])
    return str(row["detail"] or "changed")
