"""The files of scores that somebody names -> the scores of what is audited, with a word about what
they lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shadow.comparing.scored_sides import (
    Sides,
    is_named,
    neither,
    sides_of,
    sides_of_pair,
    unmatched,
)
from shadow.comparing.scores import MAX_FILE, MAX_FILES, SUFFIXES, ScoreFiles, read_scores
from shadow.reports.provenance import report_metadata
from shadow.storage import Store, fetched_files
from shadow.targets.families import Pair


def here(place: Path | Store) -> Path:
    """A file of scores, or a folder of them, on this machine; what is at a URL is fetched."""
    if isinstance(place, Path):
        return place
    return fetched_files(place, MAX_FILE, SUFFIXES, MAX_FILES)


def scores_of_sides(
    files: Sequence[Path], known: Sequence[Sides], say: Callable[[str], None]
) -> ScoreFiles:
    """The scores of files, which must name a side of some pair; what they hold besides is told.

    Raises ShadowError for a file that cannot be understood, and for files that name no side.
    """
    given = read_scores(files)
    for note in given.notes:
        say(note)
    if not any(is_named(given, sides) for sides in known):
        raise neither(given, known)
    if rest := unmatched(given, known):
        say(rest)
    return given


def scores_of_reports(
    files: Sequence[Path], folders: Sequence[Path], say: Callable[[str], None]
) -> ScoreFiles | None:
    """What files say of the models of reports; None where there are no files."""
    if not files:
        return None
    return scores_of_sides(files, [sides_of(report_metadata(folder)) for folder in folders], say)


def scores_of_pairs(
    files: Sequence[Path], pairs: Sequence[Pair], say: Callable[[str], None]
) -> dict[Pair, ScoreFiles]:
    """The scores for each pair that they name; of the others it is said that there are none."""
    if not files:
        return {}
    sides = {pair: sides_of_pair(pair) for pair in pairs}
    given = scores_of_sides(files, list(sides.values()), say)
    named = {pair: given for pair in pairs if is_named(given, sides[pair])}
    for pair in pairs:
        if pair not in named:
            say(f"no scores of {pair.full_name}")
    return named
