"""Which side of a pair a model is that a file of scores names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadow.comparing.scores import ScoreFiles
from shadow.errors import ShadowError
from shadow.reports.metadata import CheckpointMetadata, ReportMetadata
from shadow.text import VERY_LIKE, nearest, several

if TYPE_CHECKING:
    from shadow.targets.families import Pair
    from shadow.targets.references import ComponentBase, Reference

NAMED = 5  # models or benchmarks named in a message
Role = Literal["base", "tuned"]
PLAIN_REVISIONS = ("", "main")  # those that a name without a revision means


@dataclass(frozen=True)
class ScoredSide:
    """One side of a pair, as a file of scores may name it."""

    role: Role
    repo: str
    """`org/name` (with a subfolder behind it), or an absolute folder."""
    stage: str
    is_folder: bool = False
    commit: str | None = None
    """The commit that was read; None for a folder, or where it is not known."""
    revision: str | None = None
    """What was asked for, where that is known."""

    @property
    def names(self) -> tuple[str, str]:
        """What to call it in a file of scores."""
        if not self.is_folder:
            return self.repo, self.stage
        return Path(self.repo).name or self.repo, self.stage


Sides = tuple[ScoredSide, ScoredSide]


def sides_of(metadata: ReportMetadata, pair: Pair | None = None) -> Sides:
    """The sides of a report by its metadata; pair tells the revisions that were asked for."""
    start, end = _stages(metadata["family"], metadata["pair"])
    base = _reported("base", metadata["base"], stage=start)
    tuned = _reported("tuned", metadata["tuned"], stage=end)
    if pair is None:
        return base, tuned
    return (
        replace(base, revision=getattr(pair.base, "revision", None)),
        replace(tuned, revision=getattr(pair.tuned, "revision", None)),
    )


def _reported(role: Role, metadata: CheckpointMetadata, stage: str) -> ScoredSide:
    commit = metadata["commit"]
    is_folder = commit is None and Path(metadata["repo"]).is_absolute()
    return ScoredSide(
        role=role, repo=metadata["repo"], stage=stage, is_folder=is_folder, commit=commit
    )


def sides_of_pair(pair: Pair) -> Sides:
    """The sides of a pair before anything of it was looked up: no commit is known."""
    start, end = _stages(pair.family, pair.name)
    return _asked("base", pair.base, start), _asked("tuned", pair.tuned, end)


def _asked(role: Role, reference: Reference | ComponentBase, stage: str) -> ScoredSide:
    from shadow.targets.references import ComponentBase

    if isinstance(reference, ComponentBase):  # it has no name but its stage
        return ScoredSide(role=role, repo="", stage=stage)
    repo = reference.repo
    if reference.subfolder:
        repo = f"{repo}/{reference.subfolder}"
    return ScoredSide(
        role=role,
        repo=repo,
        stage=stage,
        is_folder=reference.is_folder,
        revision=reference.revision,
    )


def _stages(family: str, pair: str) -> tuple[str, str]:
    start, _, end = pair.partition("..")
    return f"{family}:{start}", f"{family}:{end}"


NOT, UNCHECKED, BY_NAME, EXACT = range(4)  # how well a model's name fits a side


def fit(model: str, commit: str | None, side: ScoredSide) -> int:
    """How well a model of a file fits a side; commit is what the file noted beside the name.

    EXACT: the stage, the folder, or the repository at this commit or revision. BY_NAME: the
    repository without a revision, the last name of the folder. UNCHECKED: the repository at a
    branch or tag that may or may not be the commit. Another commit does not fit.
    """
    if model == side.stage:
        return EXACT
    if side.is_folder:
        if model == side.repo or _as_folder(model) == side.repo:
            return EXACT
        if model == _last_name(side.repo):
            return BY_NAME
        return NOT
    repo, _, revision = model.partition("@")
    if not side.repo or repo != side.repo:
        return NOT
    if revision not in PLAIN_REVISIONS:
        if revision == side.revision:
            return EXACT
        if side.commit and re.fullmatch("[0-9a-f]{7,40}", revision):
            if side.commit.startswith(revision):
                return EXACT
            return NOT
    if side.commit and commit == side.commit:
        return EXACT
    if revision in PLAIN_REVISIONS:
        return BY_NAME
    return UNCHECKED


def _as_folder(model: str) -> str:
    """An absolute folder; a relative one is taken from here."""
    # a Path costs ten times as much, and there are 100,000 of them
    return _resolved(model, os.getcwd())  # noqa: PTH109


@lru_cache(maxsize=4096)
def _last_name(folder: str) -> str:
    return Path(folder).name


@lru_cache(maxsize=4096)  # every model of a file is held against every side of every report
def _resolved(model: str, here: str) -> str:
    try:
        return str(Path(here, Path(model).expanduser()).resolve())
    except (OSError, ValueError, RuntimeError):  # no name of a file: too long, a NUL, no such user
        return ""


def unmatched(given: ScoreFiles, known: Sequence[Sides]) -> str | None:
    """One line on the models that are no side of any pair, with the nearest side."""
    sides = [side for pair in known for side in pair]
    alone = [
        name for name, commit in given.models if not any(fit(name, commit, side) for side in sides)
    ]
    names = list(dict.fromkeys(alone))
    if not names:
        return None
    without = [
        side for side in sides if not any(fit(name, commit, side) for name, commit in given.models)
    ]
    return f"scores of models that are not audited here: {_several_models(names, without)}"


def _several_models(models: Sequence[str], sides: Iterable[ScoredSide]) -> str:
    """The first of many models, each with `(did you mean 'x'?)` where a side's name is close."""
    known = [name for side in sides for name in side.names if name]
    names = list(models)
    for place, model in enumerate(models[:NAMED]):
        if question := nearest(model[:200], known, VERY_LIKE):
            names[place] = f"{model} ({question})"
    return several(names, NAMED)


def is_named(given: ScoreFiles, sides: Sides) -> bool:
    """Whether the files name either side at all."""
    return any(fit(model, commit, side) for model, commit in given.models for side in sides)


def neither(given: ScoreFiles, known: Sequence[Sides]) -> ShadowError:
    """What to say when no side of any pair is named."""
    models = list(dict.fromkeys(model for model, _ in given.models))
    sides = [side for pair in known for side in pair]
    expected = list(dict.fromkeys(name for side in sides[:2] for name in side.names if name))
    which = "neither side" if len(known) == 1 else "no side of any pair"
    message = f"{given.name}: {which} is among its models: {_several_models(models, sides)}"
    return ShadowError(message, f"the column `model` may say {', '.join(expected)}")


def by_commit(side: ScoredSide) -> str:
    """A name that fits this side alone."""
    if side.commit and not side.is_folder:
        return f"{side.repo}@{side.commit[:12]}"
    return side.repo or side.stage
