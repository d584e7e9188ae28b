"""The files of --scores -> scores, with a word about what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.cli import console

if TYPE_CHECKING:
    from shadow.findings.gains import Sides
    from shadow.findings.scores import ScoreFiles
    from shadow.targets.families import Pair


def read_scores(files: list[Path], known: list[Sides]) -> ScoreFiles:
    """The scores of files, which must name a side of some pair; what they hold besides is told."""
    from shadow.findings.gains import is_named, neither, unmatched
    from shadow.findings.scores import read_scores

    given = read_scores(files)
    for note in given.notes:
        console.say(note)
    if not any(is_named(given, sides) for sides in known):
        raise neither(given, known)
    if rest := unmatched(given, known):
        console.say(rest)
    return given


def scores_of_pairs(files: list[Path], pairs: Sequence[Pair]) -> dict[Pair, ScoreFiles]:
    """The scores for each pair that they name; of the others it is said that there are none."""
    if not files:
        return {}
    from shadow.findings.gains import is_named, sides_of_pair

    sides = {pair: sides_of_pair(pair) for pair in pairs}
    given = read_scores(files, list(sides.values()))
    named = {pair: given for pair in pairs if is_named(given, sides[pair])}
    for pair in pairs:
        if pair not in named:
            console.say(f"no scores of {pair.family}:{pair.name}")
    return named
