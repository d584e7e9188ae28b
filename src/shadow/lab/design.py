"""What the lab does: which bases, which continuations of them, and the controls. Data only; nothing
is trained here.

Continuations of one base differ in one thing at a time: in the data (regimes A to D, and doses of
them) or in the treatment (optimiser, learning rate, adapter, storage, averaging). The bases are
*warm*: they have met every skill and format at least rarely. Cold ones, which have met the core
alone, are a control.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shadow.lab import tasks
from shadow.lab.tasks import Mixture, World, blended
from shadow.lab.training import Optimizer, Recipe, Size

SHARES = (0.06, 0.12, 0.25, 0.5, 1.0)  # of the steps of a continuation, after which it is measured


@dataclass(frozen=True)
class Scale:
    """A size of decoder, what it learns, and how its bases and their continuations are trained."""

    size: Size
    world: World
    base: Recipe
    tune: Recipe
    """How continuations of the bases are trained with AdamW; a treatment changes it."""


def _small(width: int) -> Scale:
    factor = 64 / width
    return Scale(
        size=Size(width=width, hidden=width * 21 // 8, rows=12),
        world=tasks.SMALL,
        base=Recipe(1_200, 2e-2, weight_decay=0.1, optimizer="muon", width_factor=factor),
        tune=Recipe(200, 1e-3, width_factor=factor),
    )


SCALES: Mapping[str, Scale] = {
    # Trained with AdamW, a small base got 0.38 of its own mixture right after 2,000 steps; with
    # Muon 0.94 after 1,200. The bases of the large one are AdamW's, so that what is found rests on
    # neither.
    "small": _small(64),
    "tiny": Scale(  # learns nothing
        size=Size(width=32, hidden=64, rows=4),
        world=tasks.SMALL,
        base=Recipe(steps=20, learning_rate=2e-2, weight_decay=0.1, optimizer="muon"),
        tune=Recipe(steps=20, learning_rate=1e-3),
    ),
    "large": Scale(
        size=Size(width=128, hidden=336, rows=16),
        world=tasks.LARGE,
        base=Recipe(steps=3_500, learning_rate=2e-3, weight_decay=0.1),
        tune=Recipe(steps=300, learning_rate=3e-4),
    ),
    # The small ones wider: the same world, steps and tokens a step, MLPs of the same proportion.
    "wide128": _small(128),
    "wide256": _small(256),
    "wide512": _small(512),
}


@dataclass(frozen=True)
class Regime:
    """What a continuation sees: a mixture, of which a share may come from a pool seen often."""

    name: str
    text: str
    """What it sees, for people."""
    data: str
    """A mixture of the world by its name, or `original`: what the base was trained on."""
    repeated: float = 0.0
    """The share of the samples that comes from the pool, 0 to 1."""
    times: int = 1
    """How often each sample of the pool is seen on average, 1 or more."""
    diluted: float = 0.0
    """The share that is of the original mixture instead, 0 to 1."""
    power: float = 0.0
    """Its cells, in an order that each run draws, are place**-power as often as the first."""

    def mixture(self, world: World, original: Mixture) -> Mixture:
        """What it sees of a world, from a base that was trained on the original mixture."""
        data: Mixture = original if self.data == "original" else getattr(world, self.data)
        if not self.diluted:
            return data
        return blended(f"diluted_{self.diluted:g}", original, share=self.diluted, second=data)


REGIMES: Mapping[str, Regime] = {
    "A": Regime("original", "the base's own mixture, continued", "original"),
    "B": Regime("benchmark-aligned", "three skills in one format", "narrow"),
    "C": Regime("coverage-expanding", "every skill in every format, alike", "broad"),
    "D": Regime("repetition", "A, a fifth of it from a pool seen ten times", "original", 0.2, 10),
    "B+50%A": Regime("diluted", "B, half of it A", "narrow", diluted=0.5),
    "B+80%A": Regime("diluted", "B, 80 % of it A", "narrow", diluted=0.8),
    "B+95%A": Regime("diluted", "B, 95 % of it A", "narrow", diluted=0.95),
    "Bk": Regime(
        "familiar narrow", "three core skills in a core format: narrow, nothing rare", "familiar"
    ),
    "Bn": Regime("rare narrow", "three tail skills in a tail format: narrow", "new_narrow"),
    "Cn": Regime(
        "rare broad", "all tail skills in all tail formats: broad, as rare as Bn", "new_broad"
    ),
    "Cf": Regime("rare formats", "core skills in tail formats", "new_formats"),
    "A x10": Regime("repeated", "A, all of it ten times", "original", 1.0, 10),
    "A x100": Regime("memorised", "A, all of it a hundred times", "original", 1.0, 100),
    "C x100": Regime("memorised", "C, all of it a hundred times", "broad", 1.0, 100),
    "C^1": Regime("frequency 1/n", "C, its n-th cell 1/n as often as the first", "broad", power=1),
    "C^1.5": Regime("frequency n^-1.5", "C, the n-th cell n^-1.5 as often", "broad", power=1.5),
    "C^2": Regime("frequency n^-2", "C, the n-th cell n^-2 as often", "broad", power=2),
}
FREQUENCIES = ("C", "C^1", "C^1.5", "C^2")  # the same cells, fewer and fewer of them often
MAIN = ("A", "B", "C", "D")
# mixtures of a world, or of a base, of which the share of right answers is measured
PROBES = ("narrow", "original", "broad", "held_out", "unseen")


@dataclass(frozen=True)
class Treatment:
    """How a continuation is trained, other than by its scale's own recipe."""

    text: str
    method: Optimizer = "adamw"
    rate: float | None = None
    """The peak of the learning rate; None: that of the scale, times factor."""
    factor: float = 1.0

    def recipe(self, own: Recipe) -> Recipe:
        """The recipe of a scale as the treatment has it."""
        rate = own.learning_rate * self.factor if self.rate is None else self.rate
        return replace(own, optimizer=self.method, learning_rate=rate)


TREATMENTS: Mapping[str, Treatment] = {
    "adamw": Treatment("AdamW"),
    "adamw/3": Treatment("AdamW, a third of the rate", factor=1 / 3),
    "adamw x3": Treatment("AdamW, three times the rate", factor=3),
    "sgd": Treatment("SGD, momentum 0.9, rate 0.1", "sgd", 0.1),
    "muon": Treatment("Muon, rate 1e-3", "muon", 1e-3),
    "lora": Treatment("LoRA of rank 4, rate 2e-3", "lora", 2e-3),
}


@dataclass(frozen=True)
class Base:
    """A decoder trained from random numbers, on its world's mixture or, cold, on the core alone."""

    scale: str
    """One of SCALES."""
    seed: int
    warm: bool = True

    @property
    def key(self) -> str:
        """`small-warm-0`: unique among bases, and the name of its folder."""
        met = "warm" if self.warm else "cold"
        return f"{self.scale}-{met}-{self.seed}"

    @property
    def original(self) -> Mixture:
        """What it was trained on."""
        world = SCALES[self.scale].world
        return world.original if self.warm else world.core


Kind = Literal["trained", "averaged", "bf16", "copied"]

COPIES: Mapping[str, str] = {  # of a base: pairs whose truth is known without any training
    "same": "the base itself",
    "bf16": "the base rounded to bf16",
    "int8": "the base rounded to 8 bits a row, stored as F32",
    "noise": "the base and Gaussian noise of 4 % of its norm",
    "planted": "the base and four strong directions with half the energy of such a noise",
    "other": "another base of the same shape, trained apart",
}


@dataclass(frozen=True)
class Run:
    """A tuned model: trained, an average of trained ones, rounded on both sides, or a copy."""

    base: Base
    regime: str
    """One of REGIMES; of a copy, one of COPIES."""
    treatment: str = "adamw"
    """One of TREATMENTS."""
    seed: int = 0
    kind: Kind = "trained"
    of: tuple[str, ...] = ()
    """The names of the runs of the same base that an average or a rounded one is made of."""

    @property
    def name(self) -> str:
        """Unique among the runs of its base."""
        how = {"trained": self.treatment, "averaged": "average", "copied": "copy"}
        return f"{self.regime}, {how.get(self.kind, self.kind)}, {self.seed}"

    @property
    def main(self) -> bool:
        """Whether `shadow compare` holds it against the other main runs of its base."""
        return self.kind == "trained" and self.treatment == "adamw" and self.regime in MAIN


@dataclass(frozen=True)
class Preset:
    """All runs of one call, in any order; what a run is made of is among them."""

    runs: tuple[Run, ...]

    @property
    def bases(self) -> tuple[Base, ...]:
        """In the order of their first use; the large ones, which take longest, first."""
        others = [other(run.base) for run in self.runs if run.regime == "other"]
        bases = dict.fromkeys([*(run.base for run in self.runs), *others])
        return tuple(sorted(bases, key=lambda base: base.scale != "large"))


def other(base: Base) -> Base:
    """The base that a base is held against as an unrelated one."""
    return Base(base.scale, base.seed ^ 1)


def _runs(bases: Sequence[Base], seeds: int, regimes: Iterable[str] = MAIN) -> list[Run]:
    return [
        Run(base, name, seed=seed) for base in bases for name in regimes for seed in range(seeds)
    ]


def _bases(count: int, scale: str = "small") -> list[Base]:
    return [Base(scale, seed) for seed in range(count)]


def _treated(base: Base) -> list[Run]:
    return [Run(base, regime, name) for name in list(TREATMENTS)[1:] for regime in ("B", "C")]


def _average(regime: str, runs: list[Run]) -> Run:
    return Run(runs[0].base, regime, kind="averaged", of=tuple(run.name for run in runs))


def _rounded(run: Run) -> Run:
    return Run(run.base, run.regime, kind="bf16", of=(run.name,))


def _copies(base: Base) -> list[Run]:
    return [Run(base, how, kind="copied") for how in COPIES]


def _controls(base: Base) -> list[Run]:
    """What may move a footprint beside the breadth of the data, on one base."""
    return [
        *_treated(base),
        *_runs([base], 2, [name for name in REGIMES if name not in (*MAIN, *FREQUENCIES)]),
        *(_average(regime, _runs([base], 2, [regime])) for regime in ("B", "C")),
        _average("B and C", _runs([base], 1, ["B", "C"])),
        *(_rounded(Run(base, regime)) for regime in MAIN),
    ]


def _smoke() -> list[Run]:
    """Every kind of run once, in about a minute; the decoders learn nothing."""
    base = Base("tiny", 0)
    narrow, broad = Run(base, "B"), Run(base, "C")
    return [
        *_runs([base], 1),
        *_copies(base),
        replace(narrow, treatment="lora"),
        replace(broad, treatment="muon"),
        Run(base, "A x100"),
        _average("B and C", [narrow, broad]),
        _rounded(narrow),
    ]


def _full() -> list[Run]:
    """Ten small bases and a large one, three times A to D; controls, cold bases and copies."""
    small, large = _bases(10), Base("large", 0)
    runs = [*_runs([large, *small], 3), *_treated(large)]
    for base in small[:3]:
        runs += _controls(base)
    for seed in range(2):
        cold = [Base("small", seed, warm=False)]
        runs += [*_runs(cold, 2), *_runs(cold, 2, ("Bk", "Bn", "Cn"))]
    for base in small:
        runs += _copies(base)
    return runs


# Bases by width, as many as three hours of two cores allow. A step of a base takes 0.07, 0.16, 0.5
# and 2.2 CPU seconds.
WIDTHS: Mapping[int, tuple[str, int]] = {
    64: ("small", 10),
    128: ("wide128", 5),
    256: ("wide256", 3),
    512: ("wide512", 1),
}


def presets() -> dict[str, Preset]:
    """The presets by name. Those of widths have A to D on every base."""
    runs = {"smoke": _smoke(), "quick": _runs(_bases(2), 1), "full": _full()}
    runs["frequency"] = _runs(_bases(3), 2, FREQUENCIES)
    for width, (scale, count) in WIDTHS.items():
        seeds = 3 if scale == "small" else 2
        runs[f"width-{width}"] = _runs(_bases(count, scale), seeds)
    return {name: Preset(tuple(own)) for name, own in runs.items()}
