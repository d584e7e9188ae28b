"""What the shell offers when a word is begun: families, pairs, modules, components, columns.

Imports only what the word needs, and neither torch nor pandas: a person waits for it. A fault means
that nothing is offered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from shadow.errors import ShadowError

# what `shadow explain` knows besides columns and heads
TOPICS = ("finding", "gates")
ENOUGH = 3  # letters of a word


def targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Families; after a colon the pairs of the family.

    bash breaks words at colons, so that `family:ba` comes as `family`, `:` and `ba`, and wants the
    last part alone.
    """
    before = [str(typed) for typed in ctx.params.get("targets") or ()]
    registry = _registry(ctx)
    try:
        if before[-1:] == [":"] and len(before) > 1:
            return _begun(_pairs(before[-2], registry), incomplete)
        family, colon, _ = incomplete.partition(":")
        if colon:
            return _begun([f"{family}:{pair}" for pair in _pairs(family, registry)], incomplete)
        return families(ctx, incomplete)
    except (ShadowError, OSError):
        return []


def families(ctx: typer.Context, incomplete: str) -> list[str]:
    from shadow.targets.families import family_names

    return _begun(family_names(_registry(ctx)), incomplete)


def modules(incomplete: str) -> list[str]:
    from shadow.places.names import name_rules

    return _begun(name_rules().modules, incomplete)


def components(incomplete: str) -> list[str]:
    from shadow.places.names import name_rules

    return _begun(name_rules().components, incomplete)


def words(incomplete: str) -> list[str]:
    """What `shadow explain` knows and is one word; codes of claims, labels and the like when enough
    of it is typed, as they bring NumPy.
    """
    from shadow.reports.columns import TABLES
    from shadow.reports.words import HEADS

    known = [*(column.name for table in TABLES.values() for column in table.columns), *HEADS]
    if len(incomplete) >= ENOUGH:
        from shadow.telling.words import other_words

        known += other_words()
    return _begun([word for word in (*known, *TOPICS) if " " not in word], incomplete)


def devices(incomplete: str) -> list[str]:
    return _begun(("cpu", "auto", "cuda", "mps"), incomplete)


def verify_claims(incomplete: str) -> list[str]:
    from shadow.checks.registry import CHECKS

    return _begun(CHECKS, incomplete)


def _pairs(family: str, registry: Path | None) -> list[str]:
    from shadow.targets.families import load_families

    known = load_families(registry).get(family)
    if known is None:
        return []
    return [pair.name for pair in known.pairs]


def _registry(ctx: typer.Context) -> Path | None:
    """The folder that was typed before this word, or the variable's."""
    typed: Any = ctx.params.get("registry") or os.environ.get("SHADOW_REGISTRY")
    if not typed:
        return None
    return Path(typed)


def _begun(known: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in dict.fromkeys(known) if word.startswith(incomplete)]
