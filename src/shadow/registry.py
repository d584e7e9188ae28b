"""families/*.yaml -> Family. Data only: every fault names file, line, key and the nearest known word."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from shadow.architecture import registry_folder
from shadow.errors import ShadowError, UsageError

RESERVED = ("pairs", "tags", "source", "note")
REFERENCE_KEYS = ("repo", "revision", "subfolder")
PAIR_KEYS = ("from", "to", "relation")
RELATIONS = ("tuned", "sibling")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
MAX_FILE = 1_000_000  # bytes


@dataclass(frozen=True)
class Reference:
    """A checkpoint as it was named: a folder, or `org/name` on the Hub with a revision if one was asked for."""

    repo: str
    is_folder: bool
    revision: str | None = None
    subfolder: str | None = None

    @property
    def last_name(self) -> str:
        return self.repo.rstrip("/").rpartition("/")[2] or "root"


@dataclass(frozen=True)
class Pair:
    """Two stages of a family. relation: tuned (the second was trained from the first) or sibling."""

    family: str
    name: str
    base: Reference
    tuned: Reference
    relation: str = "tuned"


@dataclass(frozen=True)
class Family:
    """One lineage: named stages and the pairs of them that are worth comparing."""

    name: str
    stages: Mapping[str, Reference]
    pairs: tuple[Pair, ...]
    tags: tuple[str, ...]
    source: str | None
    note: str | None
    file: str


def parse_reference(text: str, folder: Path | None = None) -> Reference:
    """`./x`, `../x`, `/x` and `~/x` are folders (relative to folder, or to here), all else is `org/name[@revision]`.

    So a folder planted in a checkout is never taken for a model of the same name on the Hub.
    """
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        try:
            path = Path(text).expanduser()
            resolved = str((folder / path if folder else path).resolve())
            resolved.encode()  # a name that is no text cannot be in a report
            return Reference(resolved, True)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links, no such user
            raise UsageError(f"{text[:80]!r} cannot be a folder", "write ./NAME for a folder") from error
    repo, at, revision = text.partition("@")
    if at and (not re.fullmatch(r"[\w./-]{1,200}", revision, re.ASCII) or ".." in revision):
        raise UsageError(
            f"{text[:80]!r}: no such thing as revision {revision[:40]!r}", "write org/name@branch, a tag or a commit"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or ".." in repo:
        hint = (
            f"write ./{text} for the folder" if _is_folder(text) else "write ./NAME for a folder, org/name for the Hub"
        )
        raise UsageError(f"{text[:80]!r} is neither a folder nor a name on the Hub", hint)
    return Reference(repo, False, revision or None)


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False


def load_families(extra: Path | None = None) -> dict[str, Family]:
    """All families by name: the shipped ones, then those of the user's folder (extra, or $SHADOW_REGISTRY)."""
    folders = [registry_folder() / "families"]
    if extra is None and os.environ.get("SHADOW_REGISTRY"):
        extra = Path(os.environ["SHADOW_REGISTRY"])
    if extra is not None:
        if not extra.is_dir():
            raise ShadowError(f"no such registry folder: {extra}", "it must hold *.yaml files of families")
        folders.append(extra)
    families: dict[str, Family] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            for family in _read_file(file):
                if family.name in families:
                    raise ShadowError(
                        f"{file}: family {family.name!r} is already in {families[family.name].file}",
                        "give it another name",
                    )
                families[family.name] = family
    return families


def find_pairs(target: str, families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """The pairs that `family` or `family:from..to` names."""
    name, colon, pair_name = target.partition(":")
    if name not in families:
        path = "a checkpoint is named with --base and --tuned" if "/" in name else None
        hint = path or nearest(name, families) or "`shadow families` lists them"
        raise ShadowError(f"no family {name!r} in the registry", hint)
    pairs = families[name].pairs
    if not colon:
        return pairs
    chosen = tuple(pair for pair in pairs if pair.name == pair_name)
    if not chosen:
        known = [pair.name for pair in pairs]
        raise ShadowError(f"family {name!r} has no pair {pair_name!r}", f"it has: {', '.join(known)}")
    return chosen


def given_pair(base: Reference, tuned: Reference) -> Pair:
    """The pair of `--base` and `--tuned`, named so that two forks of one name never share a folder."""
    import hashlib

    digest = hashlib.sha256(repr((base, tuned)).encode()).hexdigest()[:8]
    return Pair(tuned.last_name, f"{base.last_name}..{tuned.last_name}-{digest}", base, tuned)


def nearest(word: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None


class _EntryError(Exception):
    """A fault inside one file; the file and the line are added where they are known."""

    def __init__(self, message: str, hint: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.key = message, hint, key


PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


class _Loader(yaml.BaseLoader):
    """Mappings, lists and text, nothing else: no numbers, tags or aliases, so nothing to misread or to blow up."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(problem="aliases are not allowed here", problem_mark=mark)
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in PLAIN_TAGS:
            raise yaml.MarkedYAMLError(problem="tags are not allowed here", problem_mark=node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is not a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def _read_file(file: Path) -> list[Family]:
    try:
        if not file.is_file():  # opening a FIFO would wait for ever
            raise ShadowError(f"{file}: not a regular file")
        with file.open("rb") as handle:
            raw = handle.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise ShadowError(f"{file}: larger than {MAX_FILE:,} bytes", "split it")
        text = raw.decode()
        data = yaml.load(text, _Loader)  # noqa: S506 - less than a SafeLoader
    except OSError as error:
        raise ShadowError(f"{file}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ShadowError(f"{file}{line}: {error.problem or 'not YAML'}", "see the README on registry files") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ShadowError(f"{file}: not YAML ({type(error).__name__})", "see the README on registry files") from error
    if data is None or data == "":
        return []
    if not isinstance(data, dict):
        raise ShadowError(f"{file}: not a mapping of family names", "see the README on registry files")
    families = []
    for name, entry in data.items():
        try:
            families.append(_family(name, entry, file))
        except _EntryError as fault:
            raise ShadowError(
                f"{file}:{_line(text, name, fault.key)}: family {name!r}: {fault.message}", fault.hint
            ) from fault
    return families


def _line(text: str, family: str, key: str | None) -> int:
    """The line of a key in a family's block, by the text itself: good enough to jump to."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if re.match(rf"[\"']?{re.escape(family)}[\"']?\s*:", line)), 0)
    if key is not None:
        for i in range(start, len(lines)):
            if re.search(rf"[\"']?{re.escape(key)}[\"']?\s*:", lines[i]):
                return i + 1
    return start + 1


def _family(name: str, entry: Any, file: Path) -> Family:
    if not NAME.fullmatch(name):
        raise _EntryError("the name may hold letters, digits and `._-` only")
    if not isinstance(entry, dict):
        raise _EntryError("not a mapping of stages")
    names = [key for key in entry if key not in RESERVED]
    for stage in names:
        if not NAME.fullmatch(stage) or ".." in stage:
            raise _EntryError(f"{stage!r} cannot name a stage", "letters, digits, `_`, `-` and single dots", stage)
        if alike := difflib.get_close_matches(stage, RESERVED, n=1, cutoff=0.75):
            message = f"stage {stage!r} looks like the reserved key {alike[0]!r}"
            raise _EntryError(message, f"did you mean {alike[0]!r}?", stage)
    stages = {name: _reference(name, entry[name], file.parent) for name in names}
    if "base" not in stages:
        close = nearest("base", stages)
        raise _EntryError("it has no stage `base`", f"rename the stage: {close}" if close else "add `base: org/name`")
    if len(stages) < 2:
        raise _EntryError("it has no stage besides `base`", "add one, such as `instruct: org/name`")
    return Family(
        name,
        stages,
        _pairs(name, stages, entry.get("pairs")),
        tuple(_words(entry.get("tags"), "tags")),
        _text(entry.get("source"), "source"),
        _text(entry.get("note"), "note"),
        str(file),
    )


def _reference(stage: str, value: Any, folder: Path) -> Reference:
    if isinstance(value, str):
        return _parsed(stage, value, folder)
    if not isinstance(value, dict):
        raise _EntryError(
            f"stage {stage!r} is neither a name nor a mapping",
            "write `org/name` or {repo: ..., revision: ...}",
            stage,
        )
    for key, text in value.items():
        if key not in REFERENCE_KEYS:
            raise _EntryError(f"unknown key {key!r} in stage {stage!r}", nearest(key, REFERENCE_KEYS), key)
        if not isinstance(text, str):
            raise _EntryError(f"{key!r} of stage {stage!r} is not text", "put it in quotes", key)
    if "repo" not in value:
        raise _EntryError(f"stage {stage!r} has no `repo`", None, stage)
    reference = _parsed(stage, value["repo"], folder)
    subfolder = value.get("subfolder")
    if subfolder and (subfolder.startswith("/") or ".." in Path(subfolder).parts):
        raise _EntryError(f"subfolder {subfolder!r} leaves the checkpoint", None, "subfolder")
    if reference.is_folder and subfolder:
        return Reference(str(Path(reference.repo) / subfolder), True)
    return Reference(reference.repo, reference.is_folder, value.get("revision", reference.revision), subfolder)


def _parsed(stage: str, text: str, folder: Path) -> Reference:
    try:
        return parse_reference(text, folder)
    except UsageError as error:
        raise _EntryError(f"stage {stage!r}: {error.message}", error.hint, stage) from error


def _pairs(family: str, stages: Mapping[str, Reference], listed: Any) -> tuple[Pair, ...]:
    if listed is None:
        return tuple(_pair(family, stages, "base", stage, "tuned") for stage in stages if stage != "base")
    if not isinstance(listed, list) or not listed:
        raise _EntryError("`pairs` is not a list", "write pairs: [base..sft, sft..dpo]", "pairs")
    pairs = []
    for item in listed:
        if isinstance(item, str) and item.count("..") == 1:
            start, _, end = item.partition("..")
            pairs.append(_pair(family, stages, start, end, "tuned"))
        elif isinstance(item, dict):
            for key in item:
                if key not in PAIR_KEYS:
                    raise _EntryError(f"unknown key {key!r} in a pair", nearest(key, PAIR_KEYS), key)
            relation = item.get("relation", "tuned")
            if relation not in RELATIONS:
                raise _EntryError(f"unknown relation {relation!r}", f"one of {', '.join(RELATIONS)}", "relation")
            pairs.append(_pair(family, stages, item.get("from"), item.get("to"), relation))
        else:
            raise _EntryError(f"{item!r} is not a pair", "write from..to", "pairs")
    if twice := next(
        (one.name for one, other in pairwise(sorted(pairs, key=lambda p: p.name)) if one.name == other.name),
        None,
    ):
        raise _EntryError(f"pair {twice} is listed twice", None, "pairs")
    return tuple(pairs)


def _pair(family: str, stages: Mapping[str, Reference], start: Any, end: Any, relation: str) -> Pair:
    for stage in (start, end):
        if not isinstance(stage, str) or stage not in stages:
            raise _EntryError(f"a pair names stage {stage!r}, which is not there", nearest(str(stage), stages), "pairs")
    if start == end:
        raise _EntryError(f"a pair of {start!r} with itself", None, "pairs")
    return Pair(family, f"{start}..{end}", stages[start], stages[end], relation)


def _words(value: Any, key: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _EntryError(f"`{key}` is not a list of words", None, key)
    return value


def _text(value: Any, key: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _EntryError(f"`{key}` is not text", None, key)
    return value or None
