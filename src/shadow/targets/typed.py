"""Checkpoints that are typed where families are: two are a pair, one of the Hub is looked up in the
registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shadow.errors import UsageError
from shadow.targets.families import NAME, Family, Pair, given_pair, short
from shadow.targets.references import Reference, as_folder, parse_reference
from shadow.text import nearest, several

NAME_OF_A_PAIR = (
    "write FAMILY:BASE..TUNED, for example mine:base..run-7; each of letters, digits, . _ -"
)
TWO = "write two checkpoints, BASE TUNED"


def is_reference(target: str) -> bool:
    """Is this a checkpoint? A folder, or `org/name`: names of families have no slash."""
    return "/" in target or target in (".", "..", "~")


def pairs_of_references(targets: Sequence[str], families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """The pairs that checkpoints name: BASE TUNED, or one `org/name` of the registry.

    One that is the tuned side of pairs of a family names these; one that is the base, all pairs
    from it. Raises UsageError for anything else.
    """
    others = [target for target in targets if not is_reference(target)]
    if others:
        checkpoint = next(target for target in targets if is_reference(target))
        if others[0] not in families:
            hint = as_folder(others[0]) or f"{TWO}; a folder is ./NAME, a model of the Hub org/name"
            raise UsageError(f"no family {short(others[0])}", hint)
        hint = f"{TWO}; or families alone; for a folder, write ./NAME"
        raise UsageError(
            f"{short(others[0])} is a family, and {short(checkpoint)} a checkpoint", hint
        )
    if len(targets) > 2:
        raise UsageError(
            f"{len(targets)} checkpoints: a pair has two", f"{TWO}; several pairs go into a --list"
        )
    references = [parse_reference(target) for target in targets]
    if len(references) == 2:
        return (given_pair(*references),)
    if references[0].is_folder:
        raise UsageError(f"{short(targets[0])} is one checkpoint, and a pair has two", TWO)
    return _pairs_with(references[0], families)


def _pairs_with(checkpoint: Reference, families: Mapping[str, Family]) -> tuple[Pair, ...]:
    pairs = [pair for family in families.values() for pair in family.pairs]
    matching = [pair for pair in pairs if _is(checkpoint, pair.tuned)]
    matching = matching or [
        pair for pair in pairs if isinstance(pair.base, Reference) and _is(checkpoint, pair.base)
    ]
    if not matching:
        known = {
            reference.repo
            for family in families.values()
            for _, _, reference in family.references()
        }
        hint = f"{TWO}; `shadow families` lists what the registry has"
        if close := nearest(checkpoint.repo, sorted(known)):
            hint = f"{close} Or {TWO}"
        raise UsageError(f"no family has a pair with {short(str(checkpoint))}", hint)
    names = sorted({pair.family for pair in matching})
    if len(names) > 1:
        hint = f"name one of them: {several(names)}"
        raise UsageError(f"{short(str(checkpoint))} is in {len(names)} families", hint)
    return tuple(matching)


def _is(asked: Reference, known: Reference) -> bool:
    """The Hub takes names in any case. A revision has to be the family's, if one is asked for."""
    same = asked.repo.lower() == known.repo.lower() and not known.is_folder
    return same and asked.revision in (None, known.revision)


def under_name(pair: Pair, name: str) -> Pair:
    """A pair given by its checkpoints, under a name `family:base..tuned`. Raises UsageError."""
    family, _, stages = name.partition(":")
    ends = stages.split("..")
    if not NAME.fullmatch(family) or len(ends) != 2 or not all(map(NAME.fullmatch, ends)):
        raise UsageError(f"{short(name)} is not a pair name", NAME_OF_A_PAIR)
    return replace(pair, family=family, name=stages)
