"""What the lab does: which bases, which continuations of them, and the controls. Data only; nothing
is trained here.

Continuations of one base differ in one thing at a time: in the data (regimes A to D, and doses of
them) or in the treatment (optimiser, learning rate, adapter, storage, averaging). The bases are
*warm*: they have met every skill and format at least rarely. Cold ones, which have met the core
alone, are a control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
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
    muon = Recipe(1_200, 2e-2, weight_decay=0.1, optimizer="muon", width_factor=factor)
    return Scale(
        size=Size(width=width, hidden=width * 21 // 8, rows=12),
        world=tasks.SMALL,
        base=muon,
        tune=Recipe(steps=200, learning_rate=1e-3, width_factor=factor),
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
    mixture: Callable[[World, Mixture], Mixture]
    """Of the world, and of what the base was trained on."""
    repeated: float = 0.0
    """The share of the samples that comes from the pool, 0 to 1."""
    times: int = 1
    """How often each sample of the pool is seen on average, 1 or more."""


def _original(world: World, original: Mixture) -> Mixture:
    return original


def _diluted(percent: int) -> Regime:
    def mixture(world: World, original: Mixture) -> Mixture:
        share = percent / 100
        return blended(f"diluted_{share:g}", original, share=share, second=world.narrow)

    how_much = "half" if percent == 50 else f"{percent} %"
    return Regime("diluted", f"B, {how_much} of it A", mixture)


REGIMES: Mapping[str, Regime] = {
    "A": Regime("original", "the base's own mixture, continued", _original),
    "B": Regime(
        "benchmark-aligned", "three skills in one format", lambda world, original: world.narrow
    ),
    "C": Regime(
        "coverage-expanding",
        "every skill in every format, alike",
        lambda world, original: world.broad,
    ),
    "D": Regime("repetition", "A, a fifth of it from a pool seen ten times", _original, 0.2, 10),
    "B+50%A": _diluted(50),
    "B+80%A": _diluted(80),
    "B+95%A": _diluted(95),
    "Bk": Regime(
        "familiar narrow",
        "three core skills in a core format: narrow, nothing rare",
        lambda world, original: world.familiar,
    ),
    "Bn": Regime(
        "rare narrow",
        "three tail skills in a tail format: narrow",
        lambda world, original: world.new_narrow,
    ),
    "Cn": Regime(
        "rare broad",
        "all tail skills in all tail formats: broad, as rare as Bn",
        lambda world, original: world.new_broad,
    ),
    "Cf": Regime(
        "rare formats", "core skills in tail formats", lambda world, original: world.new_formats
    ),
    "A x10": Regime("repeated", "A, all of it ten times", _original, 1.0, 10),
    "A x100": Regime("memorised", "A, all of it a hundred times", _original, 1.0, 100),
    "C x100": Regime(
        "memorised", "C, all of it a hundred times", lambda world, original: world.broad, 1.0, 100
    ),
}
MAIN = ("A", "B", "C", "D")
# mixtures of a world, or of a base, of which the share of right answers is measured
PROBES = ("narrow", "original", "broad", "held_out", "unseen")


@dataclass(frozen=True)
class Treatment:
    """How a continuation is trained, other than by its scale's own recipe."""

    text: str
    method: str
    """The optimiser, as the reference table has it."""
    recipe: Callable[[Recipe], Recipe]
    """The scale's own recipe -> that of the treatment."""


def _rate(text: str, factor: float) -> Treatment:
    """AdamW at a multiple of the scale's rate."""
    return Treatment(
        text, "adamw", lambda own: replace(own, learning_rate=own.learning_rate * factor)
    )


def _with(text: str, method: Optimizer, rate: float) -> Treatment:
    return Treatment(text, method, lambda own: replace(own, optimizer=method, learning_rate=rate))


TREATMENTS: Mapping[str, Treatment] = {
    "adamw": _rate("AdamW", 1),
    "adamw/3": _rate("AdamW, a third of the rate", 1 / 3),
    "adamw x3": _rate("AdamW, three times the rate", 3),
    "sgd": _with("SGD, momentum 0.9, rate 0.1", "sgd", 0.1),
    "muon": _with("Muon, rate 1e-3", "muon", 1e-3),
    "lora": _with("LoRA of rank 4, rate 2e-3", "lora", 2e-3),
}


@dataclass(frozen=True)
class Base:
    """A decoder trained from random numbers, on the original mixture of its world or, cold, on the
    core alone.
    """

    scale: str
    """One of SCALES."""
    seed: int
    """Of its first weights, 0 or more."""
    warm: bool = True
    """Whether it has met every skill and format at least rarely; a cold one has met the core alone.
    """

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
    """A tuned model: trained from its base, an average of trained ones, one with both sides
    rounded, or a copy.
    """

    base: Base
    regime: str
    """One of REGIMES; of a copy, one of COPIES."""
    treatment: str = "adamw"
    """One of TREATMENTS."""
    seed: int = 0
    """Of its samples, 0 or more."""
    kind: Kind = "trained"
    of: tuple[str, ...] = ()
    """The names of the runs of the same base that an average or a rounded one is made of."""

    @property
    def name(self) -> str:
        """Unique among the runs of its base."""
        how = {"trained": self.treatment, "averaged": "average", "bf16": "bf16", "copied": "copy"}[
            self.kind
        ]
        return f"{self.regime}, {how}, {self.seed}"

    @property
    def main(self) -> bool:
        """Whether `shadow compare` holds it against the other main runs of its base."""
        return self.kind == "trained" and self.treatment == "adamw" and self.regime in MAIN


@dataclass(frozen=True)
class Preset:
    """All runs of one call, in any order; what a run is made of is among them."""

    name: str
    text: str
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


def _main(bases: list[Base], seeds: int) -> list[Run]:
    return [
        Run(base, regime, seed=seed) for base, regime, seed in product(bases, MAIN, range(seeds))
    ]


def _controls(base: Base, seeds: int) -> list[Run]:
    """What may move a footprint beside the breadth of the data, on one base."""
    doses = [regime for regime in REGIMES if regime not in MAIN]
    return [
        *_treated(base),
        *(Run(base, regime, seed=seed) for regime in doses for seed in range(seeds)),
        *(
            _average(regime, [Run(base, regime, seed=seed) for seed in range(seeds)])
            for regime in "BC"
        ),
        _average("B and C", [Run(base, "B"), Run(base, "C")]),
        *(_rounded(Run(base, regime)) for regime in MAIN),
    ]


def _treated(base: Base) -> list[Run]:
    treatments = [name for name in TREATMENTS if name != "adamw"]
    return [Run(base, regime, name) for name in treatments for regime in ("B", "C")]


def _average(regime: str, runs: list[Run]) -> Run:
    return Run(runs[0].base, regime, kind="averaged", of=tuple(run.name for run in runs))


def _rounded(run: Run) -> Run:
    return Run(run.base, run.regime, kind="bf16", of=(run.name,))


def _copies(base: Base) -> list[Run]:
    return [Run(base, how, kind="copied") for how in COPIES]


def _smoke() -> Preset:
    base = Base("tiny", 0)
    narrow, broad = Run(base, "B"), Run(base, "C")
    runs = [
        *_main([base], 1),
        *_copies(base),
        replace(narrow, treatment="lora"),
        replace(broad, treatment="muon"),
        Run(base, "A x100"),
        _average("B and C", [narrow, broad]),
        _rounded(narrow),
    ]
    text = "about a minute: does everything run; the decoders learn nothing"
    return Preset("smoke", text, tuple(runs))


def _quick() -> Preset:
    bases = [Base("small", seed) for seed in range(2)]
    return Preset("quick", "two small bases, regimes A to D once each", tuple(_main(bases, 1)))


def _full() -> Preset:
    small = [Base("small", seed) for seed in range(10)]
    cold = [Base("small", seed, warm=False) for seed in range(2)]
    large = Base("large", 0)
    runs = [*_main([large], 3), *_main(small, 3), *_treated(large)]
    for base in small[:3]:
        runs += _controls(base, 2)
    for base in cold:
        runs += _main([base], 2)
        runs += [Run(base, regime, seed=seed) for regime in ("Bk", "Bn", "Cn") for seed in (0, 1)]
    for base in small:
        runs += _copies(base)
    text = (
        "ten small bases and a large one, A to D three times each; controls on three bases; two"
        " cold bases; copies"
    )
    return Preset("full", text, tuple(runs))


# Bases by width, as many as three hours of two cores allow. A step of a base takes 0.07, 0.16, 0.5
# and 2.2 CPU seconds.
WIDTHS: Mapping[int, tuple[str, int]] = {
    64: ("small", 10),
    128: ("wide128", 5),
    256: ("wide256", 3),
    512: ("wide512", 1),
}


def _width(width: int) -> Preset:
    """A to D, with the seeds of the preset full at the width of its small decoders."""
    scale, count = WIDTHS[width]
    bases = [Base(scale, seed) for seed in range(count)]
    seeds, times = (3, "three times") if scale == "small" else (2, "twice")
    text = f"{count} bases of width {width}, A to D {times} each: a part of the law of width"
    return Preset(f"width-{width}", text, tuple(_main(bases, seeds)))


def presets() -> dict[str, Preset]:
    """The presets by name."""
    widths = [_width(width) for width in WIDTHS]
    return {preset.name: preset for preset in (_smoke(), _quick(), _full(), *widths)}
