"""Both sides of a pair -> the rows of files.parquet: each file, what became of it, what differs.

A file is matched with the one of its name. Of the Hub, equal checksums need no download; only small
files that differ and in which something can be compared are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shadow.checkpoints.listing import (
    Listing,
    StoredFile,
    differ_in_sample,
    git_checksum,
    kind_of,
    read_small,
)
from shadow.checkpoints.small_files import (
    TEMPLATES,
    can_look_into,
    differences,
    template_of,
    tokens_beyond,
    words_of,
)
from shadow.errors import ShadowError
from shadow.reports.column_types import Cell
from shadow.text import several, visible

State = Literal["same", "changed", "added", "removed", "unknown"]
LONGEST = 500  # characters of a detail
NAMED = 12  # differences that a detail and a row name
# kinds of which a change that nobody can look into is named by the kind
TELLING = ("config", "generation", "chat_template", "tokenizer", "code")
ADDED = {
    "code": "code: a program that loads the model may run it if it is told to trust it",
    "pickle": "a pickle: what loads it runs what it says",
}
TEMPLATE = "chat_template"
CONFIG = "config.json"
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
TOKENS_BEYOND = "tokens_beyond"  # what differs where the tuned side alone has any
INSIDE = ("config", "generation", "tokenizer")
OTHER_FORM = "one side is a GGUF file, which keeps this in another form"
ALIKE = "only layout differs, or keys such as transformers_version"


# the row of a side of which not all files are known
EVERY: Mapping[str, Cell] = {
    "path": "*",
    "state": "unknown",
    "kind": "other",
    "detail": "not all files of this side are known, as without the network",
}


@dataclass(frozen=True)
class _Told:
    """What is known of a file beside its name: the cells of its rows."""

    state: State
    differs: Sequence[str] = ()
    detail: str = ""


# the parts of a side, by component; "" for its only one
Listings = Sequence[tuple[str, Listing]]


def file_rows(
    first: Listings, second: Listings, say: Callable[[str], None]
) -> list[dict[str, Cell]]:
    """The rows of files.parquet, by path and side, of a base (first) and a tuned side (second).

    Of a base for each component, the files of the language component (or of the first) have their
    own names and are matched; those of others are named behind their component, and have no match
    unless the tuned side is made of components too. Whatever a file holds, no fault is raised.
    """
    main = next((name for name, _ in first if name == "language"), first[0][0])
    own = next((name for name, _ in second if name == "language"), second[0][0])
    rows: list[dict[str, Cell]] = []
    parts = dict(first)
    matched = {name: main if name == own else name for name, _ in second}
    for name, listing in second:
        other = parts.pop(matched[name], None)
        rows += _Sides(other, listing, "" if name == own else f"{name}/", say).rows()
    for name, listing in parts.items():
        rows += _Sides(listing, None, f"{name}/", say).rows()
    for side, listings in (("base", first), ("tuned", second)):
        if not all(listing.is_complete for _, listing in listings):
            rows.append({**EVERY, "side": side})
    return sorted(rows, key=lambda row: (str(row["path"]), str(row["side"])))


@dataclass(frozen=True)
class _Sides:
    """The files of both sides, or of one part of them; None for a part that one side has not."""

    base: Listing | None
    tuned: Listing | None
    prefix: str
    say: Callable[[str], None]

    def rows(self) -> Iterator[dict[str, Cell]]:
        """A row for each file of each side."""
        paths = sorted({*_files(self.base), *_files(self.tuned)})
        pairs = {
            path: (_files(self.base).get(path), _files(self.tuned).get(path)) for path in paths
        }
        every = {path: self._told(path, *pair) for path, pair in pairs.items()}
        beyond = self._tokens_beyond(every)
        for path, pair in pairs.items():
            told = every[path]
            last = "base" if pair[1] is None else "tuned"  # the side whose row has the detail
            for side, file in zip(("base", "tuned"), pair, strict=True):
                if file is None:
                    continue
                own = told.detail if side == last else file.problem
                words = [*told.differs] if side == last else []
                at, tokens = beyond.get(side, ("", ""))
                if path == at:
                    own = "; ".join(filter(None, (tokens, own)))
                    if side == "tuned" and "base" not in beyond and told.state != "same":
                        words.append(TOKENS_BEYOND)
                if len(own) > LONGEST:
                    own = f"{own[: LONGEST - 3]}..."
                yield {
                    "path": visible(self.prefix + path),
                    "side": side,
                    "state": told.state,
                    "kind": file.kind,
                    "bytes": file.size,
                    "sha256": self._sha256(side, file),
                    "differs": " ".join(words) or None,
                    "detail": visible(own) or None,
                }

    def _tokens_beyond(self, told: Mapping[str, _Told]) -> dict[str, tuple[str, str]]:
        """By side that has any: the file that tells of tokens that its model has no row for, and
        which they are.

        A tokenizer of the Hub that is equal on both sides is not fetched for it.
        """
        found: dict[str, tuple[str, str]] = {}
        for side, listing in (("base", self.base), ("tuned", self.tuned)):
            there = _files(listing)
            tokenizer = next((path for path in VOCABULARIES if path in there), None)
            if listing is None or tokenizer is None:
                continue
            is_changed = [
                told[path].state != "same" for path in (tokenizer, CONFIG) if path in there
            ]
            if listing.folder is None and not is_changed[0]:
                continue

            def read(name: str, side: str = side, listing: Listing = listing) -> bytes | None:
                if name not in listing.files:
                    return None
                is_equal = told[name].state == "same" and name != CONFIG
                with contextlib.suppress(ShadowError):
                    return None if listing.folder is None and is_equal else self._read(side, name)
                return None

            if tokens := tokens_beyond(read):
                found[side] = CONFIG if is_changed == [False, True] else tokenizer, tokens
        return found

    def _sha256(self, side: str, file: StoredFile) -> str | None:
        kind, _, digest = (file.checksum or "").partition(":")
        return digest if kind == "sha256" else self._digests.get((side, file.path))

    @cached_property
    def _digests(self) -> dict[tuple[str, str], str]:
        """The sha256 of what was read, by side and path."""
        return {}

    def _read(self, side: str, path: str) -> bytes:
        """A small file of a side. Raises ShadowError."""
        listing = self.base if side == "base" else self.tuned
        assert listing is not None, "it has the file"
        content = read_small(listing, listing.files[path], self.say)
        self._digests[side, path] = hashlib.sha256(content).hexdigest()
        return content

    def _told(self, path: str, base: StoredFile | None, tuned: StoredFile | None) -> _Told:
        if self._in_other_form(path):
            return _Told("unknown", detail=OTHER_FORM)
        if base is None or tuned is None:
            return self._of_one(path, base, tuned)
        same = self._are_same(base, tuned)
        if same is None:
            problem = tuned.problem or base.problem or "too large to be compared here"
            return _Told("unknown", detail=problem)
        if same:
            return _Told("same")
        if tuned.kind not in TELLING or tuned.kind == "code":
            return _Told("changed", ["code"] if tuned.kind == "code" else [])
        template = self._template_apart if path == self._template_at else None
        words, texts = ([TEMPLATE], [template]) if template else ([], [])
        if not can_look_into(path):
            alone = _Told("changed", [tuned.kind], "compared by its bytes alone")
            return _Told("changed", words, template) if template else alone
        try:
            apart = differences(path, self._read("base", path), self._read("tuned", path))
        except (ShadowError, ValueError) as error:
            reason = error.message if isinstance(error, ShadowError) else str(error)
            return _Told("changed", [tuned.kind], f"not compared inside: {reason}")
        words += words_of(apart)
        texts += [one.text for one in apart]
        return _Told("changed", words[:NAMED], several(texts, NAMED, "; ") or ALIKE)

    def _in_other_form(self, path: str) -> bool:
        """Whether one side alone is a GGUF file, and this is a file whose like it holds inside. The
        chat template is the same text in both.
        """
        if self.base is None or self.tuned is None or kind_of(path) not in INSIDE:
            return False
        return bool(self.base.inside) != bool(self.tuned.inside)

    def _of_one(self, path: str, base: StoredFile | None, tuned: StoredFile | None) -> _Told:
        """What is told of a file that one side has."""
        file = tuned or base
        assert file is not None, "one side has it"
        if self.base is None or self.tuned is None:
            return _Told("unknown", detail="the other side has no part of this name")
        lacking = self.base if base is None else self.tuned
        if not lacking.is_complete:
            side = "base" if base is None else "tuned side"
            return _Told("unknown", detail=f"not all files of the {side} are known")
        if tuned is None and self.tuned.is_adapter:
            return _Told("unknown", detail="an adapter leaves the base's files in use")
        state: State = "removed" if tuned is None else "added"
        if path in TEMPLATES and (file.kind == TEMPLATE or path == self._template_at):
            text = self._template_apart
            words = [TEMPLATE] if text else []
            if file.kind != TEMPLATE:
                return _Told(state, [*words, file.kind], text or "")
            return _Told(state, words, text or "the chat template is the same")
        note = ADDED.get(file.kind)
        if note and state == "added" and file.path not in self.tuned.read_from:
            return _Told(state, [file.kind], note)
        return _Told(state, [file.kind] if file.kind in TELLING else [], file.problem)

    def _are_same(self, base: StoredFile, tuned: StoredFile) -> bool | None:
        """Whether two files have the same bytes; None where it is not known."""
        if base.problem or tuned.problem:
            return None
        if base.size != tuned.size:
            return False
        kinds = [(file.checksum or "").partition(":")[0] for file in (base, tuned)]
        if kinds[0] and kinds[0] == kinds[1]:
            return base.checksum == tuned.checksum
        assert self.base, "it has the file"
        assert self.tuned, "it has the file"
        if self.base.folder is not None and self.tuned.folder is not None:
            apart = differ_in_sample(self.base, self.tuned, base.path)
            return None if apart is None else not apart
        for side, file, other in (("base", base, tuned), ("tuned", tuned, base)):
            is_here = (self.base if side == "base" else self.tuned).folder is not None
            if other.checksum and (is_here or file.kind in TELLING):
                with contextlib.suppress(ShadowError):
                    return _checksum(self._read(side, file.path), other.checksum) == other.checksum
        return None

    @cached_property
    def _template_at(self) -> str | None:
        """The file whose row says what became of the chat template: that which holds the tuned
        side's, or the base's where the tuned side has none.
        """
        for listing in (self.tuned, self.base):
            for path in TEMPLATES:
                if path in _files(listing) and (listing is self.base or self._has_template(path)):
                    return path
        return None

    def _has_template(self, path: str) -> bool:
        return path != TEMPLATES[-1] or self._templates is None or self._templates[1] is not None

    @cached_property
    def _templates(self) -> tuple[str | None, str | None] | None:
        """The chat templates of base and tuned side; None where a file cannot be read."""
        found: list[str | None] = []
        for side, listing in (("base", self.base), ("tuned", self.tuned)):
            there = [name for name in TEMPLATES if name in _files(listing)]
            try:
                found.append(template_of({name: self._read(side, name) for name in there}.get))
            except (ShadowError, ValueError):
                return None
        return found[0], found[1]

    @cached_property
    def _template_apart(self) -> str | None:
        """How the chat templates differ; None where they do not."""
        if self._templates is None:
            return "chat template not compared, as a file cannot be read"
        base, tuned = self._templates
        if base == tuned:
            return None
        if base is None:
            return "chat template added"
        return "chat template removed" if tuned is None else "chat template differs"


def _checksum(content: bytes, like: str) -> str:
    """The checksum of bytes, of the kind of another one."""
    if like.startswith("git:"):
        return git_checksum(content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _files(listing: Listing | None) -> Mapping[str, StoredFile]:
    return {} if listing is None else listing.files
