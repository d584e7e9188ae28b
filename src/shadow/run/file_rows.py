"""Both sides of a pair -> the rows of files.parquet: each file, its state and its differences.

Files are matched by name. On the Hub, equal checksums need no download; only small files that
differ and can be compared are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from shadow.checkpoints.contents import (
    OF_TOKENIZER,
    TEMPLATE,
    contents,
    differences,
    json_object,
    token_numbers,
)
from shadow.checkpoints.listing import (
    Listing,
    checksum_like,
    differ_in_sample,
)
from shadow.checkpoints.stored_files import StoredFile, kind_of
from shadow.errors import ShadowError
from shadow.reports.columns import Cell
from shadow.text import several, visible

State = Literal["same", "changed", "added", "removed", "unknown"]
LONGEST = 500  # characters of a detail
NAMED = 12  # differences that a detail and a row name
# kinds of which a change that nobody can look into is named by the kind
TELLING = ("config", "generation", TEMPLATE, "tokenizer", "code")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
INSIDE = ("config", "generation", "tokenizer")
ALIKE = "only layout differs, or keys such as transformers_version"
# the row of a side of which not all files are known
EVERY: Mapping[str, Cell] = {"path": "*", "state": "unknown", "kind": "other"}


@dataclass(frozen=True)
class _Comparison:
    """The comparison of a file with that of the other side."""

    state: State
    detail: str = ""
    differs: Sequence[str] = ()
    """What differs, in words of the row."""


def file_rows(
    first: Sequence[tuple[str, Listing]],
    second: Sequence[tuple[str, Listing]],
    say: Callable[[str], None],
) -> list[dict[str, Cell]]:
    """The rows of files.parquet of a base (first) and a tuned side (second), by path and
    side.

    For several bases, the files of the language component, or of the first, are listed. No content
    of a file raises an error.
    """
    sides = {"base": first, "tuned": second}
    listings = {side: language_of(parts) for side, parts in sides.items()}
    rows = list(_Sides(listings, say).rows())
    for side, parts in sides.items():
        if len(parts) > 1 or not listings[side].is_complete:
            rows.append({**EVERY, "side": side, "detail": "not all files of this side are known"})
    rows.sort(key=lambda row: (str(row["path"]), str(row["side"])))
    return rows


def language_of(side: Sequence[tuple[str, Listing]]) -> Listing:
    """The files of the language component of a side, or of the first."""
    return dict(side).get("language", side[0][1])


def tokens_of(side: Sequence[tuple[str, Listing]], say: Callable[[str], None]) -> dict[str, int]:
    """The number of each token of a side; empty without a tokenizer that can be read."""
    listing = language_of(side)
    objects = {}
    for name in OF_TOKENIZER:
        if name in listing.files:
            with contextlib.suppress(ShadowError):
                objects[name] = json_object(listing.read(name, say))
    return token_numbers(objects)


@dataclass(frozen=True)
class _Sides:
    """The files of both sides."""

    of: Mapping[str, Listing]
    say: Callable[[str], None]
    digests: dict[tuple[str, str], str] = field(default_factory=dict)
    """The sha256 of what was read, by side and path."""

    def rows(self) -> Iterator[dict[str, Cell]]:
        """Yield a row for each file of each side; the last side's has the differences."""
        paths = {path for listing in self.of.values() for path in listing.files}
        for path in sorted(paths):
            base = self.of["base"].files.get(path)
            tuned = self.of["tuned"].files.get(path)
            comparison = self._compared(path, base, tuned)
            if base and tuned:
                of_base = _Comparison(comparison.state, base.problem)
                yield self._row("base", path, base, of_base)
            if tuned:
                yield self._row("tuned", path, tuned, comparison)
            elif base:
                yield self._row("base", path, base, comparison)

    def _row(
        self, side: str, path: str, file: StoredFile, comparison: _Comparison
    ) -> dict[str, Cell]:
        kind, _, digest = (file.checksum or "").partition(":")
        detail = visible(comparison.detail)
        return {
            "path": visible(path),
            "side": side,
            "state": comparison.state,
            "kind": file.kind,
            "bytes": None if file.problem else file.size,
            "sha256": digest if kind == "sha256" else self.digests.get((side, path)),
            "differs": " ".join(comparison.differs) or None,
            "detail": detail[:LONGEST] or None,
        }

    def _compared(
        self, path: str, base: StoredFile | None, tuned: StoredFile | None
    ) -> _Comparison:
        is_gguf = self.of["base"].is_gguf or self.of["tuned"].is_gguf
        if is_gguf and kind_of(path) in INSIDE:
            inside = "this is inside the GGUF file, where it is not compared"
            return _Comparison("unknown", inside)
        if base is None or tuned is None:
            return self._of_one(path, base, tuned)
        same = self._are_same(path, base, tuned)
        if same is None:
            why = tuned.problem or base.problem or "too large to be compared here"
            return _Comparison("unknown", why)
        if same:
            return _Comparison("same")
        if tuned.kind not in TELLING:
            return _Comparison("changed")
        try:
            first = self._read("base", path)
            second = self._read("tuned", path)
            changes = differences(path, first, second)
        except (ShadowError, ValueError) as error:
            reason = getattr(error, "message", str(error))
            return _Comparison("changed", f"not compared inside: {reason}", [tuned.kind])
        texts = []
        words: dict[str, None] = {}  # in order
        for word, text in changes:
            if word != TEMPLATE or path not in TEMPLATES or self._templates_differ:
                texts.append(text)
                words[word] = None
        detail = several(texts, NAMED, "; ") or ALIKE
        return _Comparison("changed", detail, list(words)[:NAMED])

    def _of_one(self, path: str, base: StoredFile | None, tuned: StoredFile | None) -> _Comparison:
        """Compare a file that only one side has with the other files."""
        file = tuned or base
        assert file is not None, "only one side has it"
        other_side = "base" if base is None else "tuned"
        if not self.of[other_side].is_complete:
            return _Comparison("unknown", "not all files of the other side are known")
        if tuned is None and self.of["tuned"].is_adapter:
            return _Comparison("unknown", "an adapter leaves the base's files in use")
        state: State = "removed" if tuned is None else "added"
        if file.kind == TEMPLATE and path in TEMPLATES and not self._templates_differ:
            return _Comparison(state, "the chat template is the same")
        matters = file.kind in TELLING
        if state == "added" and file.kind == "pickle":
            matters = path not in self.of["tuned"].read_from
        return _Comparison(state, file.problem, [file.kind] if matters else ())

    def _are_same(self, path: str, base: StoredFile, tuned: StoredFile) -> bool | None:
        """True if two files have the same bytes; None if unknown."""
        if base.problem or tuned.problem:
            return None
        if base.size != tuned.size:
            return False
        kind, _, _ = (base.checksum or "").partition(":")
        if kind and (tuned.checksum or "").startswith(f"{kind}:"):
            return base.checksum == tuned.checksum
        first = self.of["base"]
        second = self.of["tuned"]
        if first.folder is not None and second.folder is not None:
            differ = differ_in_sample(first, second, path)
            if differ is None:
                return None
            return not differ
        checksums = {"base": tuned.checksum, "tuned": base.checksum}  # of the other side
        for side, checksum in checksums.items():
            is_here = self.of[side].folder is not None
            if checksum and (is_here or base.kind in TELLING):
                with contextlib.suppress(ShadowError):
                    content = self._read(side, path)
                    return checksum_like(checksum, content) == checksum
        return None

    def _read(self, side: str, path: str) -> bytes:
        """Read a small file of a side. Raises ShadowError."""
        content = self.of[side].read(path, self.say)
        self.digests[side, path] = hashlib.sha256(content).hexdigest()
        return content

    @cached_property
    def _templates_differ(self) -> bool:
        """True if the sides have different chat templates, wherever they lie, as far as
        known.
        """
        try:
            return self._templates("base") != self._templates("tuned")
        except (ShadowError, ValueError, RecursionError):
            return True

    def _templates(self, side: str) -> set[str]:
        templates = set()
        for name in TEMPLATES:
            if name in self.of[side].files:
                content = contents(name, self._read(side, name))
                if TEMPLATE in content:
                    template = json.dumps(content[TEMPLATE], sort_keys=True)
                    templates.add(template)
        return templates
