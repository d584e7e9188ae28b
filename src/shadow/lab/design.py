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
from shadow.lab.training import Recipe, Size

SHARES = (0.06, 0.12, 0.25, 0.5, 1.0)  # of the steps of a continuation, after which it is measured


@dataclass(frozen=True)
class Scale:
    """A size of decoder, what it learns, and how its bases and their continuations are trained."""

    size: Size
    """The shape of the decoder."""

    world: World
    """What there is to be learned."""

    base: Recipe
    """How its bases are trained."""

    tune: Recipe
    """How continuations of them are trained with AdamW; Treatment changes it."""


def _wider(width: int) -> Scale:
    factor = 64 / width
    return Scale(
        size=Size(width=width, hidden=width * 21 // 8, rows=12),
        world=tasks.SMALL,
        base=Recipe(
            steps=1_200,
            learning_rate=2e-2,
            weight_decay=0.1,
            optimizer="muon",
            width_factor=factor,
        ),
        tune=Recipe(steps=200, learning_rate=1e-3, width_factor=factor),
    )


SCALES: Mapping[str, Scale] = {
    # Trained with AdamW, a small base got 0.38 of its own mixture right after 2,000 steps; with
    # Muon 0.94 after 1,200. The bases of the large one are AdamW's, so that what is found rests on
    # neither.
    "small": Scale(
        size=Size(width=64, hidden=168, rows=12),
        world=tasks.SMALL,
        base=Recipe(steps=1_200, learning_rate=2e-2, weight_decay=0.1, optimizer="muon"),
        tune=Recipe(steps=200, learning_rate=1e-3),
    ),
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
    "wide128": _wider(128),
    "wide256": _wider(256),
    "wide512": _wider(512),
}


@dataclass(frozen=True)
class Regime:
    """What a continuation sees: a mixture, of which a share may come from a pool seen often."""

    name: str
    """What it is called."""

    text: str
    """What it sees, for people."""

    mixture: Callable[[World, Mixture], Mixture]
    """Of the world, and of what the base was trained on."""

    repeated: float = 0.0
    """The share of the samples that comes from the pool, 0 to 1."""

    times: int = 1
    """How often each sample of the pool is seen on average, 1 or more."""


def _diluted(share: float) -> Callable[[World, Mixture], Mixture]:
    return lambda world, original: blended(
        f"diluted_{share:g}", original, share=share, second=world.narrow
    )


REGIMES: Mapping[str, Regime] = {
    "A": Regime("original", "the base's own mixture, continued", lambda world, original: original),
    "B": Regime(
        "benchmark-aligned", "three skills in one format", lambda world, original: world.narrow
    ),
    "C": Regime(
        "coverage-expanding",
        "every skill in every format, alike",
        lambda world, original: world.broad,
    ),
    "D": Regime(
        name="repetition",
        text="A, a fifth of it from a pool seen ten times",
        mixture=lambda world, original: original,
        repeated=0.2,
        times=10,
    ),
    "B+50%A": Regime("diluted", "B, half of it A", _diluted(0.5)),
    "B+80%A": Regime("diluted", "B, 80 % of it A", _diluted(0.8)),
    "B+95%A": Regime("diluted", "B, 95 % of it A", _diluted(0.95)),
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
    "A x10": Regime(
        name="repeated",
        text="A, all of it ten times",
        mixture=lambda world, original: original,
        repeated=1.0,
        times=10,
    ),
    "A x100": Regime(
        name="memorised",
        text="A, all of it a hundred times",
        mixture=lambda world, original: original,
        repeated=1.0,
        times=100,
    ),
    "C x100": Regime(
        name="memorised",
        text="C, all of it a hundred times",
        mixture=lambda world, original: world.broad,
        repeated=1.0,
        times=100,
    ),
}
MAIN = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Treatment:
    """How a continuation is trained, other than by its scale's own recipe."""

    text: str
    """How, for people."""

    method: str
    """The optimiser, as the reference table has it."""

    recipe: Callable[[Recipe], Recipe]
    """The scale's own recipe -> that of the treatment."""


TREATMENTS: Mapping[str, Treatment] = {
    "adamw": Treatment("AdamW", "adamw", lambda recipe: recipe),
    "adamw/3": Treatment(
        "AdamW, a third of the rate",
        "adamw",
        lambda recipe: replace(recipe, learning_rate=recipe.learning_rate / 3),
    ),
    "adamw x3": Treatment(
        "AdamW, three times the rate",
        "adamw",
        lambda recipe: replace(recipe, learning_rate=recipe.learning_rate * 3),
    ),
    "sgd": Treatment(
        "SGD, momentum 0.9, rate 0.1",
        "sgd",
        lambda recipe: replace(recipe, optimizer="sgd", learning_rate=0.1),
    ),
    "muon": Treatment(
        "Muon, rate 1e-3",
        "muon",
        lambda recipe: replace(recipe, optimizer="muon", learning_rate=1e-3),
    ),
    "lora": Treatment(
        "LoRA of rank 4, rate 2e-3",
        "lora",
        lambda recipe: replace(recipe, optimizer="lora", learning_rate=2e-3),
    ),
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
    """Has it met every skill and format at least rarely? A cold one has met the core alone."""

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
    """What it was tuned from."""

    regime: str
    """One of REGIMES; of a copy, one of COPIES."""

    treatment: str = "adamw"
    """One of TREATMENTS."""

    seed: int = 0
    """Of its samples, 0 or more."""

    kind: Kind = "trained"
    """How it came about."""

    of: tuple[str, ...] = ()
    """The names of the runs of the same base that an average or a rounded one is made of."""

    @property
    def name(self) -> str:
        """Unique among the runs of its base."""
        how = {"trained": self.treatment, "averaged": "average", "bf16": "bf16", "copied": "copy"}[
            self.kind
        ]
        return f"{self.regime}, {how}, {self.seed}"


@dataclass(frozen=True)
class Preset:
    """All runs of one call, in any order; what a run is made of is among them."""

    name: str
    """What is typed for it."""

    text: str
    """What it is for, for people."""

    runs: tuple[Run, ...]
    """All that it trains or makes."""

    @property
    def bases(self) -> tuple[Base, ...]:
        """In the order of their first use; the large ones, which take longest, first."""
        others = [
            Base(run.base.scale, other_seed(run.base)) for run in self.runs if run.regime == "other"
        ]
        bases = dict.fromkeys([*(run.base for run in self.runs), *others])
        return tuple(sorted(bases, key=lambda base: base.scale != "large"))


def other_seed(base: Base) -> int:
    """The seed of the base that a base is held against as an unrelated one."""
    return base.seed ^ 1


def _main(bases: list[Base], seeds: int) -> list[Run]:
    return [
        Run(base, regime, seed=seed) for base, regime, seed in product(bases, MAIN, range(seeds))
    ]


def _controls(base: Base, seeds: int) -> list[Run]:
    """What may move a footprint beside the breadth of the data, on one base."""
    treated = [treatment for treatment in TREATMENTS if treatment != "adamw"]
    doses = [regime for regime in REGIMES if regime not in MAIN]
    trained = [Run(base, regime, treatment) for treatment in treated for regime in ("B", "C")]
    trained += [Run(base, regime, seed=seed) for regime in doses for seed in range(seeds)]
    soups = [
        Run(
            base,
            regime,
            kind="averaged",
            of=tuple(Run(base, regime, seed=seed).name for seed in range(seeds)),
        )
        for regime in ("B", "C")
    ]
    merge = Run(base, "B and C", kind="averaged", of=(Run(base, "B").name, Run(base, "C").name))
    stored = [Run(base, regime, kind="bf16", of=(Run(base, regime).name,)) for regime in MAIN]
    return [*trained, *soups, merge, *stored]


def _copies(base: Base) -> list[Run]:
    return [Run(base, how, kind="copied") for how in COPIES]


def _smoke() -> Preset:
    base = Base("tiny", 0)
    main, runs = _main([base], 1), _copies(base)
    runs += [Run(base, "B", "lora"), Run(base, "C", "muon"), Run(base, "A x100")]
    runs += [Run(base, "B and C", kind="averaged", of=(main[1].name, main[2].name))]
    runs += [Run(base, "B", kind="bf16", of=(main[1].name,))]
    return Preset(
        "smoke", "about a minute: does everything run; the decoders learn nothing", (*main, *runs)
    )


def _quick() -> Preset:
    bases = [Base("small", seed) for seed in range(2)]
    return Preset("quick", "two small bases, regimes A to D once each", tuple(_main(bases, 1)))


def _full() -> Preset:
    small = [Base("small", seed) for seed in range(10)]
    cold = [Base("small", seed, warm=False) for seed in range(2)]
    large = [Base("large", 0)]
    runs = [*_main(large, 3), *_main(small, 3)]
    runs += [
        Run(large[0], regime, treatment)
        for treatment in list(TREATMENTS)[1:]
        for regime in ("B", "C")
    ]
    for base in small[:3]:
        runs += _controls(base, 2)
    for base in cold:
        runs += [
            *_main([base], 2),
            *(Run(base, regime, seed=seed) for regime in ("Bk", "Bn", "Cn") for seed in (0, 1)),
        ]
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
