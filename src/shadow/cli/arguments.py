"""What was typed -> what is asked for: pairs, files of checkpoints, and what lies at URLs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError, UsageError
from shadow.run.runtime import Files
from shadow.storage import located
from shadow.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadow.cli.options import Pairs
    from shadow.comparing.scores import Score
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


def selected(targets: Sequence[str] | None, pairs: Pairs) -> Selection:
    """The pairs that are named. Raises UsageError where there is none."""
    from shadow.targets.families import TWO, given_pair, pairs_of_references, under_name
    from shadow.targets.lists import select
    from shadow.targets.references import is_reference, typed_reference

    base, tuned, name = pairs.base, pairs.tuned, pairs.name
    if (base is None) != (tuned is None):
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    targets = targets or []
    given: list[Pair] = []
    if base is not None and tuned is not None:
        given = [given_pair(typed_reference(base), typed_reference(tuned))]
    if name is not None:
        if not given and len(targets) == 2 and any(map(is_reference, targets)):
            given = list(pairs_of_references(targets, {}))
            targets = []
        if not given or targets or pairs.listed:
            raise UsageError("--name is for one pair that is given by its checkpoints", TWO)
        try:
            given = [under_name(given[0], name)]
        except UsageError as error:
            raise UsageError(f"--name: {error.message}", error.hint) from error
    selection = select(
        targets, given, registry=pairs.registry, listed=pairs.listed, shard=pairs.shard
    )
    if not selection.pairs:
        hint = "name a family (try: shadow audit demo), or two checkpoints: shadow audit BASE TUNED"
        raise UsageError("nothing to audit", hint)
    return selection


def say_left_out(selection: Selection, say: Callable[[str], None]) -> None:
    """Say where a shard has nothing to audit."""
    if not selection.own:
        pairs = counted(len(selection.pairs), "pair", "pairs")
        say(f"nothing to audit in shard {selection.shard}: the list has {pairs}")


def of_pair(error: ShadowError, pair: Pair) -> ShadowError:
    """The fault of one pair among several."""
    return ShadowError(f"{pair.full_name}: {error.message}", error.hint)


def reports_here(run: Path, *, spectra: bool = False) -> Path:
    """The folder of reports; those at a URL are fetched.

    spectra: with their singular values. Raises ShadowError where there is none at a URL.
    """
    place = located(run)
    if isinstance(place, Path):
        return place
    from shadow.reports.remote import fetched

    return fetched(place, spectra=spectra)


def scores_of(files: Sequence[Path] | None) -> list[Score]:
    """Read files of scores."""
    from shadow.comparing.scores import read_scores

    return [score for file in files or () for score in read_scores(file)]


def prepare(files: Files) -> None:
    """Before the Hub's client is imported, which reads it then, say whether to work offline."""
    if files.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
