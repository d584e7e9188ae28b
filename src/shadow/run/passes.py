"""Passes over the entries of several checkpoints, which read together what they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shadow.checkpoints.pairing import MatrixPair
from shadow.reports.provenance import SIDES
from shadow.run.plan import infos_of
from shadow.run.runtime import AlignedPair

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """A pass over the pairs of two checkpoints."""

    aligned: AlignedPair
    measure: Callable[..., tuple[str, Any]]
    """(pair, base, tuned) -> its key, and what is made of it."""
    rows: list[tuple[str, Any]]
    """What has been made, in any order."""
    guests: defaultdict[str, list[tuple[Pass, MatrixPair]]]
    """By key of a pair, those that are measured after it: they read one of its tensors."""
    made: set[str]
    """Keys of rows, and of pairs that are guests of another one of this pass."""


Gathering = Generator[Pass, None, Result]
"""Yields each pass before it is made."""


def gather_together(gatherings: Sequence[Gathering[Result]]) -> list[Result]:
    """Run each to its end. Of passes that come at one time the first reads what others share."""
    results: dict[int, Result] = {}
    while len(results) < len(gatherings):
        passes = []
        for number, gathering in enumerate(gatherings):
            try:
                passes.append(next(gathering))
            except StopIteration as end:  # of one that ended before without a value
                results.setdefault(number, end.value)
        if len(passes) > 1:
            _join(passes)
    return [results[number] for number in range(len(gatherings))]


def _join(passes: Sequence[Pass]) -> None:
    """Make pairs of open files guests of a pair of the first pass."""
    host = passes[0]
    hosts: dict[object, str] = {}  # by tensor, the key of the pair that has guests
    for each in passes:
        sides = each.aligned.base, each.aligned.tuned
        for pair in each.aligned.pairs:
            tensors = []
            for side, checkpoint in zip(SIDES, sides, strict=True):
                for info in infos_of(side, pair):
                    held = checkpoint.sources[info.shard].held
                    tensors.append(held and (held.identity, info.start, info.end))
            if None in tensors:  # not here yet, or in memory
                continue
            known = [hosts[tensor] for tensor in tensors if tensor in hosts]
            if known:
                host.guests[known[0]].append((each, pair))
            if each is host:
                hosts |= dict.fromkeys(tensors, (known or [pair.key])[0])
                if known:
                    host.made.add(pair.key)
