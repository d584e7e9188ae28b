"""What was typed -> what is asked for: pairs, and how to reach checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.cli.options import FetchName
from shadow.errors import UsageError

if TYPE_CHECKING:
    from shadow.audits.plan import Access
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
    from shadow.text import bytes_of

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
    return Access(allow_pickle, offline, fetch.value, None if max_disk is None else bytes_of(max_disk))
