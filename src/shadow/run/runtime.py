"""How an audit or a check runs, and who hears of it: the types that all that runs shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.run.access import Access

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint, Found
    from shadow.checkpoints.pairing import MatrixPair, Skipped
    from shadow.run.journal import Journal
    from shadow.run.machine_limits import MachineLimits
    from shadow.run.settings import Settings
    from shadow.targets.families import Pair
    from shadow.targets.references import AnyReference, Reference


@dataclass(frozen=True)
class Progress:
    """How far the audit of a pair is: given before the first and after every matrix, and as bytes
    come.

    Costs are in the units of `shadow.run.workers.cost`, bytes are those of weights that come
    over the network.
    """

    done: int
    total: int
    """0 while `.bin` files are fetched, of which nothing is known before."""
    cost_done: int
    cost_total: int
    moved: int = 0
    to_move: int = 0


def tell_nobody(_: object) -> None:
    """The listener where nobody listens; a function with a name, so that it can be pickled."""


@dataclass(frozen=True)
class AlignedPair:
    """A pair whose checkpoints are open and lined up.

    skipped: a tensor of either side for each that is not measured.
    """

    base: Checkpoint
    tuned: Checkpoint
    pairs: list[MatrixPair]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Runtime:
    """How an audit runs, and who hears of it. No number and no file depends on it.

    It can be pickled where say and show can.
    """

    jobs: int | None = None
    """Workers; None: as many as there are cores or as fit the memory; where stored floats are only
    summed up one.
    """
    access: Access = field(default_factory=Access)
    overwrite: bool = False
    """Whether a finished report of other settings, files or another version is replaced, when the
    new one is complete.
    """
    limits: MachineLimits | None = None
    """None: what this process may use."""
    commits: Mapping[Reference, str] = field(default_factory=dict, hash=False)
    """Of references to the Hub: the commits to read, where those were looked up before."""
    found: Mapping[AnyReference, Found] = field(default_factory=dict, hash=False)
    """Checkpoints that were found before."""
    patience: float = 0.0
    """Seconds to wait for another audit of the same pair before it is refused."""
    elsewhere: Callable[[Asked, AlignedPair, Journal], None] | None = None
    """Measures what the journal of a pair does not hold yet, into it, instead of this process (see
    `shadow.audits.parts`). Raises what went wrong there.
    """
    cache: Path | None = None
    say: Callable[[str], None] = tell_nobody
    """Gets one line for people now and then."""
    show: Callable[[Progress], None] = tell_nobody

    def prefixed(self, prefix: str) -> Runtime:
        """The same, with lines that begin with whose they are."""
        return replace(self, say=partial(_say_behind, prefix, self.say))


def _say_behind(prefix: str, say: Callable[[str], None], text: str) -> None:
    """Not a closure, which could not be pickled."""
    say(prefix + text)


@dataclass(frozen=True)
class Asked:
    """What `run_pair` was asked for, the folder of the report, and the one for byte ranges and raw
    copies, which is removed at the end.
    """

    pair: Pair
    settings: Settings
    runtime: Runtime
    folder: Path
    scratch: Path
