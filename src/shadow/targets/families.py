"""families/*.yaml -> Family. Data only: every fault names file, line, key and the nearest known
word.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow.errors import ShadowError, UsageError
from shadow.files import registry_folder
from shadow.places.names import name_rules
from shadow.targets.plain_yaml import KeyPath as Place
from shadow.targets.plain_yaml import Tree, read_plain_file
from shadow.targets.references import ComponentBase, Reference, as_folder, parse_reference
from shadow.text import VERY_LIKE, closest, nearest

# Every key of the format and what it says; the schema for editors is made of the same words.
RESERVED = {
    "pairs": (
        "Which stages to compare, as from..to. Without it: base with each other stage. [] needs a"
        " note."
    ),
    "tags": "Words to filter by. `vlm` stands for the components language, vision and projector.",
    "source": "Where it says that these checkpoints belong together.",
    "note": "What a person who audits the family should know.",
}
REFERENCE_KEYS = {
    "repo": (
        "org/name on the Hub, or a folder as ./DIR, ../DIR, /DIR or ~/DIR, relative to this file."
    ),
    "revision": "A branch, tag or commit on the Hub.",
    "subfolder": "The folder inside the checkpoint that holds it.",
}
PAIR_KEYS = {
    "from": "The stage that counts as the base.",
    "to": "The stage that counts as tuned.",
    "relation": "How the two are related.",
}
RELATIONS = {
    "tuned": "The second was trained from the first.",
    "sibling": "Both were trained from something else.",
}
IMPLIED = {"vlm": ("language", "vision", "projector")}  # components that a tag stands for
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Pair:
    """Two stages of a family."""

    family: str
    """The family, or the last name of the tuned model of a pair that was given by its checkpoints.
    """

    name: str
    """The two stages, `base..instruct`."""

    base: Reference | ComponentBase
    """The base checkpoint; one for each component where they come from several models."""

    tuned: Reference
    """The tuned checkpoint."""

    relation: str = "tuned"
    """`tuned`: the second was trained from the first; or `sibling`: both from something else."""

    @property
    def full_name(self) -> str:
        """`qwen2.5-7b:base..instruct`."""
        return f"{self.family}:{self.name}"


@dataclass(frozen=True)
class Family:
    """One lineage: named stages and the pairs of them that are worth comparing."""

    name: str
    """What a person types."""

    stages: Mapping[str, Reference | ComponentBase]
    """By name: where each checkpoint is. Only `base` may be a ComponentBase."""

    pairs: tuple[Pair, ...]
    """In the order of the file; empty where a note says why."""

    tags: tuple[str, ...]
    """Words to filter by."""

    source: str | None
    """Where it says that these checkpoints belong together."""

    note: str | None
    """What a person who audits the family should know."""

    file: str
    """The file that it stands in."""

    line: int
    """The line of its name there, from 1."""

    @property
    def components(self) -> tuple[str, ...]:
        """What the file says of them, by tags and bases; language where it says nothing."""
        said = {component for tag in self.tags for component in IMPLIED.get(tag, (tag,))}
        said |= {
            part
            for stage in self.stages.values()
            if isinstance(stage, ComponentBase)
            for part, _ in stage.parts
        }
        return tuple(component for component in name_rules().components if component in said) or (
            "language",
        )

    def references(self) -> list[tuple[str, str | None, Reference]]:
        """(stage, component, checkpoint) of each; component: None but for a base per component."""
        checkpoints: list[tuple[str, str | None, Reference]] = []
        for stage, value in self.stages.items():
            if isinstance(value, ComponentBase):
                checkpoints += [(stage, component, part) for component, part in value.parts]
            else:
                checkpoints.append((stage, None, value))
        return checkpoints

    def as_json(self) -> dict[str, object]:
        """For machines: the family as `families --format json` prints it."""
        return {
            "name": self.name,
            "stages": {name: _stage_as_json(stage) for name, stage in self.stages.items()},
            "pairs": [{"name": pair.name, "relation": pair.relation} for pair in self.pairs],
            "tags": list(self.tags),
            "components": list(self.components),
            "source": self.source,
            "note": self.note,
            "file": self.file,
        }


def _stage_as_json(stage: Reference | ComponentBase) -> dict[str, object]:
    if isinstance(stage, ComponentBase):
        return {component: part.as_json() for component, part in stage.parts}
    return {**stage.as_json()}


def load_families(extra: Path | None = None) -> dict[str, Family]:
    """All families by name: the shipped ones, then those of the user's folder (extra, or
    $SHADOW_REGISTRY).
    """
    folders = [registry_folder() / "families"]
    if extra is None and os.environ.get("SHADOW_REGISTRY"):
        extra = Path(os.environ["SHADOW_REGISTRY"])
    if extra is not None:
        if not extra.is_dir():
            raise ShadowError(
                f"no such registry folder: {extra}", "it must hold *.yaml files of families"
            )
        folders.append(extra)
    families: dict[str, Family] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            for family in _read_file(file):
                if family.name in families:
                    first = families[family.name]
                    raise ShadowError(
                        f"{file}:{family.line}: family {family.name!r} is already in"
                        f" {first.file}:{first.line}",
                        "give it another name",
                    )
                families[family.name] = family
    return families


def family_names(extra: Path | None = None) -> list[str]:
    """The names of the shipped families and of those in a folder, by their lines alone: nothing is
    checked.

    For the shell, which waits: reading the files whole takes half a second. A folder that is not
    there has none.
    """
    folders = [registry_folder() / "families"]
    if extra is not None:
        folders.append(extra)
    texts = [
        file.read_text("utf-8", "replace")
        for folder in folders
        for file in sorted(folder.glob("*.yaml"))
    ]
    return [name for text in texts for name in re.findall(rf"(?m)^({NAME.pattern}):", text)]


def find_pairs(target: str, families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """The pairs that `family` or `family:from..to` names."""
    name, colon, pair_name = target.partition(":")
    if name not in families:
        hint = as_folder(name) or nearest(name, families) or "`shadow families` lists them"
        raise ShadowError(f"no family {name!r} in the registry", hint)
    pairs = families[name].pairs
    if not pairs:
        raise ShadowError(f"family {name!r} has no pair to compare", families[name].note)
    if not colon:
        return pairs
    chosen = tuple(pair for pair in pairs if pair.name == pair_name)
    if not chosen:
        known = [pair.name for pair in pairs]
        raise ShadowError(
            f"family {name!r} has no pair {pair_name!r}", f"it has: {', '.join(known)}"
        )
    return chosen


def filter_families(
    families: Mapping[str, Family],
    word: str | None = None,
    component: str | None = None,
    tags: Sequence[str] = (),
) -> list[Family]:
    """The families that have the component, every tag, and the word in their name, a checkpoint's
    or a tag.

    A word that is a family's name is that family alone. Raises ShadowError when none is left.
    """
    known_tags = sorted({tag for family in families.values() for tag in family.tags})
    for tag in tags:
        if tag not in known_tags:
            raise ShadowError(
                f"no family has the tag {tag!r}",
                nearest(tag, known_tags) or _listed("tags", known_tags),
            )
    left = [
        family
        for family in families.values()
        if (component is None or component in family.components) and set(tags) <= set(family.tags)
    ]
    asked = [f"tag {tag}" for tag in tags]
    if component:
        asked.insert(0, f"component {component}")
    those = "family"
    if asked:
        those = f"family with {' and '.join(asked)}"
    if not left:
        raise ShadowError(f"no {those} in the registry", "`shadow families` lists them")
    if word is None:
        return left
    matching = [family for family in left if family.name == word] or [
        f for f in left if _has_word(f, word.casefold())
    ]
    if not matching:
        names = [family.name for family in left]
        lines = {
            match[0] for name in names if (match := re.match(r"[a-z]{3,}", name))
        }  # qwen of qwen2.5-7b
        hint = nearest(word.lower(), [*names, *sorted(lines)]) or "`shadow families` lists them"
        raise ShadowError(f"no {those} has {word!r} in its name, checkpoints or tags", hint)
    return matching


def _has_word(family: Family, word: str) -> bool:
    texts = (
        family.name,
        *family.tags,
        *(reference.repo for _, _, reference in family.references()),
    )
    return any(word in text.casefold() for text in texts)


def _listed(what: str, words: Iterable[str]) -> str:
    return f"{what}: {', '.join(words)}"


def given_pair(base: Reference, tuned: Reference) -> Pair:
    """The pair of `--base` and `--tuned`, named so that forks of one name never share a folder."""
    digest = hashlib.sha256(repr((base, tuned)).encode()).hexdigest()[:8]
    name = f"{base.last_name}..{tuned.last_name}-{digest}"
    return Pair(family=tuned.last_name, name=name, base=base, tuned=tuned)


class _FaultError(Exception):
    """A fault at the entry of a path inside a file; whoever knows file and line adds them."""

    def __init__(self, path: Place, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.path, self.message, self.hint = path, message, hint


def _read_file(file: Path) -> list[Family]:
    hint = "docs/registry.md describes registry files"
    data, lines = read_plain_file(file, hint)
    if data == "":
        return []
    if not isinstance(data, dict):
        raise ShadowError(f"{file}: not a mapping of family names", hint)
    try:
        return [_family(name, entry, file=file, line=lines[name,]) for name, entry in data.items()]
    except _FaultError as fault:
        name, path = fault.path[0], fault.path
        while path not in lines:
            path = path[:-1]
        message = f"{file}:{lines[path]}: family {short(name)}: {fault.message}"
        raise ShadowError(message, fault.hint) from fault


def short(word: Any) -> str:
    """What a file says at some place, for a message: one line, never long."""
    text = repr(word)
    if len(text) <= 80:
        return text
    return f"{text[:76]}...{text[-1]}"


def _family(name: str, entry: Tree, file: Path, line: int) -> Family:
    if not NAME.fullmatch(name):
        raise _FaultError((name,), "the name may hold letters, digits and `._-` only")
    if not isinstance(entry, dict):
        raise _FaultError(
            (name,), "not a mapping of stages", "write `base: org/name` and one more stage below it"
        )
    names = [key for key in entry if key not in RESERVED]
    for stage in names:
        _check_stage_name((name, stage), stage)
    stages = {
        stage: _stage((name, stage), stage, value=entry[stage], folder=file.parent)
        for stage in names
    }
    if "base" not in stages and "pairs" not in entry:
        hint = "add `base: org/name`, or say which stages to compare: `pairs`"
        close = nearest("base", stages)
        if close:
            hint = f"rename the stage: {close}"
        raise _FaultError((name,), "it has no stage `base`", hint)
    if len(stages) < 2:
        only = f"besides `{names[0]}`" if names else "at all"
        raise _FaultError(
            (name,), f"it has no stage {only}", "add one, such as `instruct: org/name`"
        )
    note = _text((name, "note"), entry.get("note"))
    pairs = _pairs(name, stages, entry.get("pairs"))
    if not pairs and not note:
        hint = "say in `note` why there is nothing to compare, or leave `pairs` out"
        raise _FaultError((name, "pairs"), "`pairs` is empty and no `note` says why", hint)
    source = _text((name, "source"), entry.get("source"))
    return Family(
        name=name,
        stages=stages,
        pairs=pairs,
        tags=_tags((name, "tags"), entry.get("tags")),
        source=source,
        note=note,
        file=str(file),
        line=line,
    )


def _check_stage_name(path: Place, stage: str) -> None:
    if not NAME.fullmatch(stage) or ".." in stage:
        message = f"{short(stage)} cannot name a stage"
        raise _FaultError(path, message, "letters, digits, `_`, `-` and single dots")
    if alike := closest(stage.lower(), RESERVED, VERY_LIKE):
        message = f"stage {stage!r} looks like the reserved key {alike!r}"
        raise _FaultError(path, message, f"did you mean {alike!r}?")
    for inner, example in (
        (REFERENCE_KEYS, "sft: {repo: org/name, revision: main}"),
        (PAIR_KEYS, "pairs: [base..sft]"),
    ):
        if stage in inner:
            raise _FaultError(
                path, f"{stage!r} cannot name a stage", f"it belongs further in: {example}"
            )


def _stage(path: Place, stage: str, value: Tree, folder: Path) -> Reference | ComponentBase:
    """A stage's checkpoint; a mapping with a component's name in it is a base per component."""
    components = name_rules().components
    if isinstance(value, dict) and any(key in components for key in value):
        return _component_base(path, stage, value=value, folder=folder)
    known = tuple(REFERENCE_KEYS)
    if stage == "base":
        known = (*REFERENCE_KEYS, *components)
    return _reference(path, f"stage {stage!r}", value=value, folder=folder, known=known)


def _component_base(path: Place, stage: str, value: dict[str, Tree], folder: Path) -> ComponentBase:
    components = name_rules().components
    first = next(key for key in value if key in components)
    if stage != "base":
        message = f"stage {stage!r} is one per component; only `base` may be"
        raise _FaultError((*path, first), message, "write `org/name` or {repo: ..., revision: ...}")
    for key in value:
        if key in REFERENCE_KEYS:
            message = f"stage {stage!r} has both the component {first!r} and {key!r}"
            raise _FaultError((*path, key), message, f"write {first}: {{repo: ..., revision: ...}}")
        if key not in components:
            hint = nearest(key, components) or _listed("components", components)
            raise _FaultError((*path, key), f"unknown component {short(key)} in the base", hint)
    return ComponentBase(
        tuple(
            (key, _reference((*path, key), f"the base of {key}", value=part, folder=folder))
            for key, part in value.items()
        )
    )


def _reference(
    path: Place, what: str, value: Tree, folder: Path, known: Sequence[str] = tuple(REFERENCE_KEYS)
) -> Reference:
    """known: the words that a misspelt key may have meant."""
    if isinstance(value, str):
        return _parsed(path, what, text=value, folder=folder)
    if not isinstance(value, dict):
        hint = "write `org/name` or {repo: ..., revision: ...}"
        raise _FaultError(path, f"{what} is neither a name nor a mapping", hint)
    for key, text in value.items():
        if key not in REFERENCE_KEYS:
            hint = nearest(key, known) or _listed("it may have", known)
            raise _FaultError((*path, key), f"unknown key {short(key)} in {what}", hint)
        if not isinstance(text, str):
            raise _FaultError((*path, key), f"{key!r} of {what} is not text", "put it in quotes")
    texts = {key: text for key, text in value.items() if isinstance(text, str)}
    if "repo" not in texts:
        raise _FaultError(path, f"{what} has no `repo`", "write {repo: org/name, ...}")
    reference = _parsed((*path, "repo"), what, text=texts["repo"], folder=folder)
    subfolder = texts.get("subfolder")
    if subfolder and (subfolder.startswith("/") or ".." in Path(subfolder).parts):
        raise _FaultError(
            (*path, "subfolder"), f"subfolder {short(subfolder)} leaves the checkpoint"
        )
    if reference.is_folder and subfolder:
        return Reference(str(Path(reference.repo) / subfolder), True)
    revision = texts.get("revision", reference.revision)
    return Reference(reference.repo, reference.is_folder, revision=revision, subfolder=subfolder)


def _parsed(path: Place, what: str, text: str, folder: Path) -> Reference:
    try:
        return parse_reference(text, folder)
    except UsageError as error:
        raise _FaultError(path, f"{what}: {error.message}", error.hint) from error


def _pairs(
    family: str, stages: Mapping[str, Reference | ComponentBase], listed: Tree | None
) -> tuple[Pair, ...]:
    path = (family, "pairs")
    if listed is None:
        return tuple(
            _pair(path, stages, start="base", end=stage, relation="tuned")
            for stage in stages
            if stage != "base"
        )
    if not isinstance(listed, list):
        raise _FaultError(path, "`pairs` is not a list", "write pairs: [base..sft, sft..dpo]")
    pairs: dict[str, Pair] = {}
    for index, item in enumerate(listed):
        pair = _listed_pair((*path, index), stages, item)
        if pair.name in pairs:
            raise _FaultError((*path, index), f"pair {pair.name} is listed twice", "take one out")
        pairs[pair.name] = pair
    return tuple(pairs.values())


def _listed_pair(path: Place, stages: Mapping[str, Reference | ComponentBase], item: Tree) -> Pair:
    if isinstance(item, str) and item.count("..") == 1:
        start, _, end = item.partition("..")
        return _pair(path, stages, start=start, end=end, relation="tuned")
    if not isinstance(item, dict):
        raise _FaultError(path, f"{short(item)} is not a pair", "write from..to")
    for key in item:
        if key not in PAIR_KEYS:
            hint = nearest(key, PAIR_KEYS) or _listed("it may have", PAIR_KEYS)
            raise _FaultError((*path, key), f"unknown key {short(key)} in a pair", hint)
    for key in ("from", "to"):
        if key not in item:
            raise _FaultError(
                path, f"a pair has no `{key}`", "write {from: base, to: sft} or base..sft"
            )
    relation = item.get("relation", "tuned")
    if not isinstance(relation, str) or relation not in RELATIONS:
        hint = _nearest(relation, RELATIONS) or f"one of {', '.join(RELATIONS)}"
        raise _FaultError((*path, "relation"), f"unknown relation {short(relation)}", hint)
    return _pair(path, stages, start=item["from"], end=item["to"], relation=relation)


def _nearest(value: Tree, known: Iterable[str]) -> str | None:
    """`did you mean 'base'?`, where a word was written; None for a list or a mapping."""
    return nearest(value, known) if isinstance(value, str) else None


def _pair(
    path: Place,
    stages: Mapping[str, Reference | ComponentBase],
    start: Tree,
    end: Tree,
    *,
    relation: str,
) -> Pair:
    for key, stage in (("from", start), ("to", end)):
        if not isinstance(stage, str) or stage not in stages:
            hint = _nearest(stage, stages) or _listed("stages", stages)
            raise _FaultError(
                (*path, key), f"a pair names stage {short(stage)}, which is not there", hint
            )
    assert isinstance(start, str)
    assert isinstance(end, str)
    tuned = stages[end]
    if start == end:
        raise _FaultError(path, f"a pair of {start!r} with itself")
    if isinstance(tuned, ComponentBase):
        raise _FaultError(
            path,
            f"`{end}` is one per component and cannot be the tuned side",
            f"write {end}..{start}",
        )
    return Pair(
        family=str(path[0]),
        name=f"{start}..{end}",
        base=stages[start],
        tuned=tuned,
        relation=relation,
    )


def _tags(path: Place, value: Tree | None) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _FaultError(path, "`tags` is not a list of words", "write tags: [dense, vlm]")
    tags: list[str] = []
    for index, tag in enumerate(value):
        if not isinstance(tag, str) or not NAME.fullmatch(tag):
            raise _FaultError(
                (*path, index), f"{short(tag)} is not a tag", "letters, digits and `._-` only"
            )
        if tag in tags:
            raise _FaultError((*path, index), f"tag {tag!r} is listed twice", "take one out")
        tags.append(tag)
    return tuple(tags)


def _text(path: Place, value: Tree | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _FaultError(path, f"`{path[-1]}` is not text", "put it in quotes")
    return value or None
