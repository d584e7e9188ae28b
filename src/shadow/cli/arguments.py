"""What was typed -> what is asked for: pairs, and how to reach checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.cli.options import FetchName
from shadow.errors import UsageError
from shadow.storage import fetched_file, located, url_of

if TYPE_CHECKING:
    from shadow.audits.plan import Access
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection

# bytes of a list, a policy or a file of scores at a URL; their readers have limits of their own
MAX_FILE = 64_000_000


@dataclass(frozen=True)
class NamedTargets:
    """What was typed to name pairs."""

    targets: Sequence[str]
    """Families, `family:from..to`, or globs over these."""

    base: str | None
    """A checkpoint, which goes with tuned."""

    tuned: str | None
    """The model tuned from it."""

    registry: Path | None
    """A folder with more families."""

    listed: str | None
    """A file of targets; `-` for standard input."""

    tags: Sequence[str]
    """Only families that have all of these."""

    shard: str | None
    """The share of this job, such as `2/4`."""

    name: str | None = None
    """What a pair that is given by its checkpoints is called, `family:base..tuned`."""


def selected(named: NamedTargets) -> Selection:
    """The pairs that are named. Raises UsageError where there is none."""
    from shadow.targets import typed
    from shadow.targets.families import given_pair
    from shadow.targets.lists import select
    from shadow.targets.references import is_reference, parse_reference

    if (named.base is None) != (named.tuned is None):
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    targets = named.targets
    given: list[Pair] = []
    if named.base is not None and named.tuned is not None:
        given = [given_pair(parse_reference(named.base), parse_reference(named.tuned))]
    if named.name is not None:
        if not given and len(targets) == 2 and all(map(is_reference, targets)):
            given = list(typed.pairs_of_references(targets, {}))
            targets = []
        if not given or targets or named.listed or named.tags:
            raise UsageError("--name is for one pair that is given by its checkpoints", typed.TWO)
        try:
            given = [typed.under_name(given[0], named.name)]
        except UsageError as error:
            raise UsageError(f"--name: {error.message}", error.hint) from error
    selection = select(
        targets,
        given,
        registry=named.registry,
        listed=named.listed,
        tags=named.tags,
        shard=named.shard,
    )
    if not selection.pairs:
        hint = "name a family (try: shadow audit demo), or two checkpoints: shadow audit BASE TUNED"
        raise UsageError("nothing to audit", hint)
    return selection


Options = Mapping[str, Any]
"""Options of the driver of a URL."""


def reports_here(run: Path, options: Options, *, spectra: bool = False) -> Path:
    """The folder of reports; those at a URL are fetched.

    spectra: with their singular values. Raises ShadowError where there is none at a URL.
    """
    place = located(run, options)
    if isinstance(place, Path):
        return place
    from shadow.reports.remote import fetched

    return fetched(place, spectra=spectra)


def file_here(file: Path, options: Options) -> Path:
    """A file; one at a URL is fetched."""
    place = located(file, options)
    if isinstance(place, Path):
        return place
    return fetched_file(place, MAX_FILE)


def scores_here(files: Sequence[Path] | None, options: Options) -> list[Path]:
    """Files of scores and folders of them; those at URLs are fetched."""
    from shadow.comparing.score_files import here

    return [here(located(file, options)) for file in files or ()]


def list_here(listed: str | None, options: Options) -> str | None:
    """A list; one at a URL is fetched."""
    if listed is None or url_of(listed) is None:
        return listed
    return str(file_here(Path(listed), options))


def access_of(
    *, allow_pickle: bool, offline: bool, fetch: FetchName, max_disk: str | None
) -> Access:
    """How checkpoints may be reached. Raises UsageError for a size that is none."""
    from shadow.audits.plan import Access, disk_limit

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    most = None if max_disk is None else disk_limit(max_disk)
    return Access(allow_pickle=allow_pickle, offline=offline, fetch=fetch.value, max_disk=most)


def cache_of(*, no_cache: bool, folder: Path | None) -> Path | None:
    """Where solved spectra are kept; None: nowhere."""
    from shadow.audits.cache_folder import default_folder

    if no_cache:
        return None
    return folder or default_folder()
