"""Checkpoints that are typed where families are: two are a pair, one of the Hub is looked up in the
registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shadow.errors import UsageError
from shadow.targets.families import Family, Pair, given_pair
from shadow.targets.references import Reference, as_folder, is_reference, pair_name, parse_reference
from shadow.text import nearest, several, short

TWO = "write two checkpoints, BASE TUNED"


def pairs_of_references(targets: Sequence[str], families: Mapping[str, Family]) -> tuple[Pair, ...]:
    """The pairs that checkpoints name: BASE TUNED, or one `org/name` of the registry.

    One that is the tuned side of pairs of a family names these; one that is the base, all pairs
    from it. Raises UsageError for anything else.
    """
    for other in targets:
        if is_reference(other):
            continue
        if other not in families:
            hint = as_folder(other) or f"{TWO}; a folder is ./NAME, a model of the Hub org/name"
            raise UsageError(f"no family {short(other)}", hint)
        checkpoint = next(filter(is_reference, targets))
        hint = f"{TWO}; or families alone; for a folder, write ./NAME"
        raise UsageError(f"{short(other)} is a family, and {short(checkpoint)} a checkpoint", hint)
    if len(targets) > 2:
        hint = f"{TWO}; several pairs go into a --list"
        raise UsageError(f"{len(targets)} checkpoints: a pair has two", hint)
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
    name = short(str(checkpoint))
    if not matching:
        known = {one.repo for family in families.values() for *_, one in family.references()}
        close = nearest(checkpoint.repo, sorted(known))
        hint = f"{TWO}; `shadow families` lists what the registry has"
        raise UsageError(
            f"no family has a pair with {name}", f"{close} Or {TWO}" if close else hint
        )
    names = sorted({pair.family for pair in matching})
    if len(names) > 1:
        hint = f"name one of them: {several(names)}"
        raise UsageError(f"{name} is in {len(names)} families", hint)
    return tuple(matching)


def _is(asked: Reference, known: Reference) -> bool:
    """Whether both name one checkpoint. The Hub takes names in any case; a revision has to be the
    family's, if one is asked for.
    """
    same = asked.repo.lower() == known.repo.lower() and not known.is_folder
    return same and asked.revision in (None, known.revision)


def under_name(pair: Pair, name: str) -> Pair:
    """A pair given by its checkpoints, under a name `family:base..tuned`. Raises UsageError."""
    family, stages = pair_name(name)
    return replace(pair, family=family, name=stages)
