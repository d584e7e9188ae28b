"""What was typed -> what is asked for: pairs, a filter, how to reach checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.cli.options import FetchName
from shadow.errors import UsageError
from shadow.text import nearest

if TYPE_CHECKING:
    from shadow.audits.plan import Access
    from shadow.checkpoints.pairing import Filter
    from shadow.targets.lists import Selection


def selected(
    targets: list[str] | None,
    base: str | None,
    tuned: str | None,
    registry: Path | None,
    listed: str | None,
    tags: list[str] | None,
    shard: str | None,
) -> Selection:
    from shadow.targets.families import given_pair
    from shadow.targets.lists import select
    from shadow.targets.references import parse_reference

    if (base is None) != (tuned is None):
        raise UsageError("--base and --tuned go together", "name both checkpoints, or a family")
    given = (
        [given_pair(parse_reference(base), parse_reference(tuned))] if base is not None and tuned is not None else []
    )
    selection = select(targets or [], given, registry, listed, tags or [], shard)
    if not selection.pairs:
        raise UsageError("nothing to audit", "name a family (try: shadow audit demo), or --base and --tuned")
    return selection


def access_of(allow_pickle: bool, offline: bool, fetch: FetchName, max_disk: str | None) -> Access:
    from shadow.audits.plan import Access

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    return Access(allow_pickle, offline, fetch.value, None if max_disk is None else _bytes(max_disk))


def filter_of(components: list[str], layers: list[str], modules: list[str]) -> Filter:
    from fnmatch import fnmatchcase

    from shadow.checkpoints.pairing import Filter
    from shadow.places.names import name_rules

    rules = name_rules()
    for component in components:
        check_component(component)
    chosen: list[str] = []
    for pattern in modules:
        matching = [module for module in rules.modules if fnmatchcase(module, pattern)]
        if not matching:
            raise UsageError(f"no module {pattern!r}", nearest(pattern, rules.modules) or "such as mlp.up or attn.*")
        chosen += matching
    return Filter(tuple(sorted(set(components))), tuple(sorted(set(_layers(layers)))), tuple(sorted(set(chosen))))


def check_component(component: str) -> None:
    from shadow.places.names import name_rules

    if component not in name_rules().components:
        raise UsageError(f"no component {component!r}", f"one of {', '.join(name_rules().components)}")


def _layers(texts: list[str]) -> list[int]:
    layers: list[int] = []
    for text in ",".join(texts).split(",") if texts else []:
        first, dash, last = text.partition("-")
        numbers = first.isdecimal() and (last.isdecimal() or not dash) and len(text) <= 12
        if not numbers or (dash and int(last) < int(first)):
            raise UsageError(f"{text!r} is not a layer", "write 0, or 4-7, or 0,3,5")
        layers += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    return layers


def _bytes(text: str) -> int:
    """`40GB`, `1.5 TiB` or a plain number of bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise UsageError(f"{text[:40]!r} is not a size", "write 40GB, 500MB or 1.5TB")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
