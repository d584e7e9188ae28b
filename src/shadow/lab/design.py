"""What the lab does: which bases, and which continuations of them.

Continuations of one base differ in their data alone (regimes A to D). The bases are warm: they have
met every skill and form at least rarely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random

from shadow.lab.tasks import MIXTURES, Sample, partly_repeated
from shadow.lab.training import Recipe, Size

# mixtures of which the share of right answers is measured
PROBES = ("narrow", "original", "broad", "held_out")


@dataclass(frozen=True)
class Scale:
    """A size of decoder, and how its bases and their continuations are trained."""

    name: str
    size: Size
    base: Recipe
    tune: Recipe


# Trained with AdamW, a base of this size got 0.38 of its own mixture right after 2,000 steps; with
# Muon 0.94 after 1,200.
SMALL = Scale(
    name="small",
    size=Size(width=64, hidden=168, rows=12),
    base=Recipe(1_200, 2e-2, weight_decay=0.1, muon=True),
    tune=Recipe(200, 1e-3),
)
TINY = Scale(  # learns nothing
    name="tiny",
    size=Size(width=32, hidden=64, rows=4),
    base=Recipe(20, 2e-2, weight_decay=0.1, muon=True),
    tune=Recipe(20, 1e-3),
)


@dataclass(frozen=True)
class Base:
    """A decoder trained on the original mixture."""

    scale: Scale
    seed: int

    @property
    def key(self) -> str:
        """`small-warm-0`: unique among bases, and the name of its folder."""
        return f"{self.scale.name}-warm-{self.seed}"


@dataclass(frozen=True)
class Regime:
    """What a continuation sees: a mixture, of which a share may come from a pool seen often."""

    key: str
    name: str
    data: str
    """A mixture by its name."""
    repeated: float = 0.0
    """The share of the samples that comes from the pool, 0 to 1."""
    times: int = 1
    """How often each sample of the pool is seen on average, 1 or more."""

    def samples(self, base: Base, seed: int, tokens: int) -> Iterator[Sample]:
        """Samples without end; a pool of repeats is as large as so many tokens need."""
        mixture = MIXTURES[self.data]
        rng = Random(f"run {base.key} {self.key} {seed}")  # noqa: S311
        if not self.repeated:
            return mixture.samples(rng)
        drawn = list(islice(mixture.samples(Random(0)), 500))  # noqa: S311
        length = sum(len(sample.text) for sample in drawn) / len(drawn)
        pool = max(1, round(self.repeated * tokens / length / self.times))
        return partly_repeated(mixture, pool, share=self.repeated, rng=rng)


REGIMES: Mapping[str, Regime] = {
    regime.key: regime
    for regime in (
        Regime("A", "original", "original"),
        Regime("B", "benchmark-aligned", "narrow"),  # three skills in one format
        Regime("C", "coverage-expanding", "broad"),  # every skill in every format, alike
        Regime("D", "repetition", "original", repeated=0.2, times=10),
    )
}


@dataclass(frozen=True)
class Run:
    """A continuation of a base."""

    base: Base
    regime: Regime
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique among the runs of its base."""
        return f"{self.regime.key}-{self.seed}"


def every_regime(bases: list[Base], seeds: int) -> tuple[Run, ...]:
    """A to D on every base, so many times each."""
    return tuple(
        Run(base, regime, seed)
        for base in bases
        for regime in REGIMES.values()
        for seed in range(seeds)
    )


PRESETS: Mapping[str, tuple[Run, ...]] = {
    "smoke": every_regime([Base(TINY, 0)], 1),
    "quick": every_regime([Base(SMALL, 0), Base(SMALL, 1)], 1),
    "full": every_regime([Base(SMALL, seed) for seed in range(10)], 3),
}
