"""families/*.yaml -> Family, and the pairs that a target or typed checkpoints name.

Data only: every error names file, line, key and the nearest known word.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError, UsageError
from shadow.files import read_start, registry_folder
from shadow.places.names import name_rules
from shadow.targets.references import (
    NAME,
    ComponentBase,
    Reference,
    as_folder,
    is_reference,
    pair_name,
    typed_reference,
)
from shadow.text import nearest, several, short

if TYPE_CHECKING:
    from shadow.targets.forms import FamilyForm

TWO = "write two checkpoints, BASE TUNED"
IMPLIED = {"vlm": ("language", "vision", "projector")}  # components that a tag stands for


@dataclass(frozen=True)
class Pair:
    """Two stages of a family."""

    family: str  # the family, or of two references the last name of the tuned model
    name: str  # the two stages, `base..instruct`
    base: Reference | ComponentBase
    """One checkpoint for each component where they come from several models."""
    tuned: Reference
    relation: str = "tuned"
    """`tuned`: the second was trained from the first; or `sibling`: both from something else."""

    @property
    def full_name(self) -> str:
        """`qwen2.5-7b:base..instruct`."""
        return f"{self.family}:{self.name}"


@dataclass(frozen=True)
class Family:
    """A lineage: named stages, and the pairs of them that are worth comparing."""

    name: str
    stages: Mapping[str, Reference | ComponentBase]  # only `base` may be a ComponentBase
    pairs: tuple[Pair, ...]  # in the order of the file; empty where a note says why
    tags: tuple[str, ...]
    source: str | None
    note: str | None
    file: str
    line: int  # of its name in the file, from 1

    @property
    def components(self) -> tuple[str, ...]:
        """The components that tags and bases name; language if none is named."""
        named = {component for _, component, _ in self.references()}
        for tag in self.tags:
            named.update(IMPLIED.get(tag, (tag,)))
        known = name_rules().components
        return tuple(component for component in known if component in named) or ("language",)

    def references(self) -> list[tuple[str, str | None, Reference]]:
        """(stage, component, checkpoint) of each; component: None unless bases
        have several.
        """
        return [
            (stage, component, reference)
            for stage, checkpoint in self.stages.items()
            for component, reference in checkpoint.parts
        ]

    def holds(self, word: str) -> bool:
        """True if a lower-case word is in its name, a tag, a checkpoint's or component's
        name.
        """
        checkpoints = (reference.repo for _, _, reference in self.references())
        texts = (self.name, *self.tags, *self.components, *checkpoints)
        return any(word in text.casefold() for text in texts)

    def as_json(self) -> dict[str, object]:
        """The family as `families --format json` prints it, for machines."""
        return {
            "name": self.name,
            "stages": {name: stage.as_json() for name, stage in self.stages.items()},
            "pairs": [{"name": pair.name, "relation": pair.relation} for pair in self.pairs],
            "tags": list(self.tags),
            "components": list(self.components),
            "source": self.source,
            "note": self.note,
            "file": self.file,
        }


def load_families(extra: Path | None) -> dict[str, Family]:
    """Load all families by name: the shipped ones, then those of the user's folder."""
    if extra is None and os.environ.get("SHADOW_REGISTRY"):
        extra = Path(os.environ["SHADOW_REGISTRY"])
    if extra is not None and not extra.is_dir():
        hint = "it must hold *.yaml files of families"
        raise ShadowError(f"no such registry folder: {extra}", hint)
    from shadow.targets.checked import read_form
    from shadow.targets.forms import FamiliesForm

    hint = "docs/registry.md describes registry files"
    families: dict[str, Family] = {}
    for file in _files(extra):
        form, lines = read_form(FamiliesForm, file, hint=hint, noun="family")
        for name, family_form in form.root.items():
            family = _family(name, family_form, file, line=lines[name,])
            if first := families.get(name):
                where = f"{family.file}:{family.line}"
                other = f"{first.file}:{first.line}"
                message = f"{where}: family {name!r} is already in {other}"
                raise ShadowError(message, "give it another name")
            families[name] = family
    return families


def family_names(extra: Path | None) -> list[str]:
    """The names of families, shipped or in a folder, found line by line without checks.

    For shell completion: reading whole files takes half a second. A missing folder has none.
    """
    texts = ((read_start(file) or b"").decode("utf-8", "replace") for file in _files(extra))
    return [name for text in texts for name in re.findall(rf"(?m)^({NAME.pattern}):", text)]


def _files(extra: Path | None) -> list[Path]:
    """The shipped files of families, and those of a folder."""
    folders = [registry_folder() / "families"]
    if extra is not None:
        folders.append(extra)
    return [file for folder in folders for file in sorted(folder.glob("*.yaml"))]


def is_glob(target: str) -> bool:
    """True if a target contains *, ? or [."""
    return any(char in target for char in "*?[")


def find_pairs(target: str, families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """Find the pairs of `family`, `family:from..to` or a glob over these names."""
    name, colon, pattern = target.partition(":")
    if not is_glob(target):
        if name not in families:
            hint = as_folder(name) or nearest(name, families) or "`shadow families` lists them"
            raise ShadowError(f"no family {name!r} in the registry", hint)
        if not families[name].pairs:
            raise ShadowError(f"family {name!r} has no pair to compare", families[name].note)
    matching = [family for family in families.values() if fnmatchcase(family.name, name)]
    if not matching:
        hint = nearest(name.strip("*?"), families) or "`shadow families` lists them"
        raise ShadowError(f"no family matches {short(name)}", hint)
    every = {pair: pair.name for family in matching for pair in family.pairs}
    pairs = tuple(pair for pair in every if not colon or fnmatchcase(pair.name, pattern))
    if not pairs and not is_glob(target):
        hint = f"it has: {', '.join(every.values())}"
        raise ShadowError(f"family {name!r} has no pair {pattern!r}", hint)
    if not pairs:
        fault = f"no family that matches {short(name)} has such a pair"
        raise ShadowError(fault, nearest(pattern, every.values()) or matching[0].note)
    return pairs


def filter_families(families: Mapping[str, Family], word: str | None) -> list[Family]:
    """The families with a word in their name, a checkpoint's, a tag or a component.

    A family's name finds that family alone. Raises ShadowError if none is left.
    """
    if word is None:
        return list(families.values())
    if word in families:
        return [families[word]]
    matching = [family for family in families.values() if family.holds(word.casefold())]
    if not matching:
        hint = nearest(word.lower(), families) or "`shadow families` lists them"
        raise ShadowError(f"no family of the registry with word {word!r}", hint)
    return matching


def given_pair(base: Reference | ComponentBase, tuned: Reference, name: str | None = None) -> Pair:
    """Pair two checkpoints, under a name `family:base..tuned`, or one by which forks of one name
    never share a folder. Raises UsageError for an invalid name.
    """
    if name is not None:
        family, stages = pair_name(name)
        return Pair(family, stages, base, tuned)
    digest = hashlib.sha256(repr((base, tuned)).encode()).hexdigest()[:8]
    assert isinstance(base, Reference), "a base per component is in a family"
    return Pair(tuned.last_name, f"{base.last_name}..{tuned.last_name}-{digest}", base, tuned)


def pairs_of_references(targets: Sequence[str], families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """The pairs that checkpoints name: BASE TUNED, or one `org/name` of the registry.

    A tuned side names the pairs of its family that have it; a base names all pairs from it. Raises
    UsageError for more checkpoints.
    """
    for other in targets:
        if not is_reference(other):
            hint = as_folder(other) or f"{TWO}; or families alone; a folder is ./NAME"
            raise UsageError(f"{short(other)} is not a checkpoint, but others here are", hint)
    if len(targets) > 2:
        hint = f"{TWO}; several pairs go into a --list"
        raise UsageError(f"{len(targets)} checkpoints: a pair has two", hint)
    references = [typed_reference(target) for target in targets]
    if len(references) == 2:
        return (given_pair(references[0], references[1]),)
    (checkpoint,) = references
    name = short(str(references[0]))
    if checkpoint.is_folder:
        folder = short(targets[0])
        hint = f"{TWO}; or check one by itself: shadow verify whole {folder}"
        raise UsageError(f"{folder} is one checkpoint, and a pair has two", hint)
    pairs = [pair for family in families.values() for pair in family.pairs]
    matching = [pair for pair in pairs if _is(checkpoint, pair.tuned)]
    matching = matching or [pair for pair in pairs if _is(checkpoint, pair.base)]
    if not matching:
        known = {
            reference.repo for family in families.values() for *_, reference in family.references()
        }
        hint = f"{TWO}; `shadow families` lists what the registry has"
        if close := nearest(checkpoint.repo, sorted(known)):
            hint = f"{close} Or {TWO}"
        raise UsageError(f"no family has a pair with {name}", hint)
    names = sorted({pair.family for pair in matching})
    if len(names) > 1:
        hint = f"name one of them: {several(names)}"
        raise UsageError(f"{name} is in {len(names)} families", hint)
    return tuple(matching)


def _is(wanted: Reference, known: Reference | ComponentBase) -> bool:
    """True if both name the same checkpoint. The Hub ignores case; a requested revision must
    be the family's.
    """
    if isinstance(known, ComponentBase) or known.is_folder:
        return False
    same = wanted.repo.lower() == known.repo.lower()
    return same and wanted.revision in (None, known.revision)


def _family(name: str, form: FamilyForm, file: Path, line: int) -> Family:
    stages: dict[str, Reference | ComponentBase] = {}
    for stage, checkpoint in form.stages.items():
        if isinstance(checkpoint, dict):
            parts = ((component, part.reference) for component, part in checkpoint.items())
            stages[stage] = ComponentBase(tuple(parts))
        else:
            stages[stage] = checkpoint.reference
    compared = [("base", stage, "tuned") for stage in stages if stage != "base"]
    if form.pairs is not None:
        compared = [(pair.start, pair.to, pair.relation) for pair in form.pairs]
    pairs = []
    for start, end, relation in compared:
        tuned = stages[end]
        assert isinstance(tuned, Reference)
        pairs.append(Pair(name, f"{start}..{end}", stages[start], tuned, relation))
    tags = tuple(form.tags)
    source = form.source or None
    note = form.note or None
    return Family(name, stages, tuple(pairs), tags, source, note, str(file), line)
