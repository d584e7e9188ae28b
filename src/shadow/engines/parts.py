"""One pair as several tasks: split at base shards, measured anywhere, written by one process.

Each part has its own journal in `.partial/parts/` of the report's folder, so that it can continue
after being killed. The process that asked for the parts collects their outcomes when they end, and
writes the same report as if it had worked alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair
from shadow.engines.engine import NOT_SHARED, Engine, Task, completed, require_sight
from shadow.engines.pair import measure_part
from shadow.errors import BusyError
from shadow.files import PARTIAL
from shadow.reports.provenance import Identity
from shadow.run.journal import JOURNAL, PARTS, Journal
from shadow.run.runtime import AlignedPair, Asked, Progress, Runtime
from shadow.run.schedule import in_order, shards_of
from shadow.run.settings import Settings
from shadow.run.workers import cost
from shadow.targets.families import Pair
from shadow.targets.references import Reference

NOT_SEEN = f"{NOT_SHARED}; if -o is a URL, SHADOW_WORK_DIR must be such a folder"


@dataclass(frozen=True)
class Parts:
    """Division of a pair into parts."""

    engine: Engine
    count: int | None = None
    """None: as many as the engine carries out at a time. There may be fewer (see `cut`)."""

    def measure(self, asked: Asked, aligned: AlignedPair, journal: Journal) -> None:
        """Measure what the journal lacks, and add it. Raises the errors of parts."""
        left = [pair for pair in aligned.pairs if pair.key not in journal.outcomes]
        there = [pair for pair in aligned.pairs if pair.key in journal.outcomes]
        is_filtered = asked.settings.chosen != Filter()
        # what comes in byte ranges is decided over a whole pair
        count = 1 if is_filtered else self.count or self.engine.lanes()
        sources = (*aligned.base.sources.values(), *aligned.tuned.sources.values())
        parts = cut(left, count, is_fetched=not all(source.is_local for source in sources))
        if len(parts) > 1:
            asked.runtime.say(f"measuring in {len(parts)} parts")
        runtime = asked.runtime
        before = Progress(
            len(there), len(aligned.pairs), sum(map(cost, there)), sum(map(cost, aligned.pairs))
        )
        recorded: dict[str, Progress] = {}

        def show(name: str, state: Progress) -> None:
            """Show the progress of all parts as that of their pair."""
            recorded[name] = state
            every = [before, *recorded.values()]
            together = replace(
                before,
                done=min(before.total, sum(one.done for one in every)),
                cost_done=min(before.cost_total, sum(one.cost_done for one in every)),
                moved=sum(one.moved for one in every),
                to_move=sum(one.to_move for one in every),
            )
            runtime.show(together)

        runtime.show(before)
        commits = {**runtime.commits, **_commits(asked.pair, aligned)}
        sizes = {}  # matrices of each part; their keys are long
        for number, part in enumerate(parts, 1):
            name = f"part {number} of {len(parts)}"
            keys = tuple(pair.key for pair in part)
            sizes[name] = len(part)
            digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
            folder = journal.folder / PARTS / digest
            work = partial(_measured, asked.pair, asked.settings, journal.identity, keys, folder)
            own = runtime.prefixed(f"{name}: ") if len(parts) > 1 else runtime
            own = replace(own, commits=commits, elsewhere=None, show=partial(show, name))
            self.engine.submit(Task(name, work, partial(replace, own), name))
        # Another machine may hold its journal, such as one that was lost with the part: a network
        # file system lets go of its locks after a minute or two.
        with closing(
            completed(self.engine, lambda ended: isinstance(ended.fault, BusyError))
        ) as ended_tasks:
            for ended in ended_tasks:
                if ended.fault is not None:
                    raise ended.fault
                name = ended.task.name
                _take_over(ended.result, sizes[name], journal)
                if last := recorded.get(name):  # its last words may have been lost
                    show(name, replace(last, done=last.total, cost_done=last.cost_total))


def _measured(
    pair: Pair,
    settings: Settings,
    identity: Identity,
    keys: Sequence[str],
    folder: Path,
    runtime: Runtime,
) -> Path:
    """Call `measure_part` once the journal of the pair is visible. Raises ShadowError."""
    journal = folder.parents[1] / JOURNAL
    fault = f"{folder.parents[2]}: another machine does not see this folder"
    require_sight(journal.is_file, fault, NOT_SEEN)
    return measure_part(pair, settings, identity, keys, folder, runtime)


def _take_over(folder: Path, count: int, journal: Journal) -> None:
    """Copy `count` outcomes of a part, perhaps written elsewhere. Raises ShadowError."""
    wanted = len(journal.outcomes) + count

    def is_taken_over() -> bool:
        if (folder / PARTIAL).is_dir():
            journal.take_over(folder)
        return len(journal.outcomes) >= wanted

    fault = f"{folder}: the part was measured on another machine, and is not here"
    require_sight(is_taken_over, fault, NOT_SEEN)


def cut(pairs: Sequence[MatrixPair], count: int, *, is_fetched: bool) -> list[list[MatrixPair]]:
    """Split the ordered work into at most `count` runs of about equal cost.

    is_fetched: split only where the shard of the base changes, so that it is fetched once.
    """
    ordered = in_order(pairs)
    spent = [0, *accumulate(map(cost, ordered))]
    shards = [shards_of(pair)[0] for pair in ordered]
    places = [at for at in range(1, len(ordered)) if not is_fetched or shards[at] != shards[at - 1]]
    borders = {0, len(ordered)}
    for number in range(1, count if places else 1):
        middle = spent[-1] * number / count
        borders.add(min(places, key=lambda place: abs(spent[place] - middle)))
    return [ordered[start:stop] for start, stop in pairwise(sorted(borders))]


def _commits(pair: Pair, aligned: AlignedPair) -> dict[Reference, str]:
    """Return the commits of the sides on the Hub, as opened here."""
    found: dict[Reference, str | None] = {}
    for reference, checkpoint in ((pair.base, aligned.base), (pair.tuned, aligned.tuned)):
        opened: dict[str | None, Checkpoint] = {**dict(checkpoint.parts)}
        for component, part in reference.parts:
            found[part] = opened.get(component, checkpoint).commit
    return {reference: commit for reference, commit in found.items() if commit is not None}
