"""Summary -> Finding: the answer in words that a report gives of any pair. Pure.

Sentences are made of measured figures alone, in a fixed order: what makes the pair another one than
base and tuned (gates), size and place, structure, storage, context. Each carries a code, and the
figures that it rests on, unrounded, by their place in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to what they are worth. No name but those
of components and modules gets into a text; who shows one escapes it all the same.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shadow.findings.layer_medians import LOW
from shadow.findings.reference import choose_runs, runs
from shadow.findings.summary_rows import (
    CoherenceRow,
    LayerRow,
    QuarterRow,
    Replaced,
    ReplacedRow,
    UncomparedRow,
    VocabularyRow,
)
from shadow.places.groups import ATTENTION, MLP
from shadow.text import and_list, counted

if TYPE_CHECKING:
    from shadow.findings.footprint import Gate
    from shadow.findings.summary import Summary
    from shadow.findings.summary_rows import ModuleRow
    from shadow.reports.metadata import SettingsMetadata

Answer = Literal["no", "fits", "cannot_be_excluded"]
Figure = float | int
ANSWERS: Mapping[Answer, str] = {
    "no": "no",
    "fits": "fits",
    "cannot_be_excluded": "cannot be excluded",
}

UNRELATED = 0.1  # a median cosine below which two models have nothing in common
CLEARLY_MOST = 0.55  # of the energy in one quarter of the depth
MOST = 0.5  # of the energy: modules are named until they hold so much, but no more than NAMED
NAMED = 3
NEARLY_ALL = 0.9  # of the energy inside layers
ALIKE = 0.9  # of the last that was named, from which the next is named too
# modules, or how their names begin
OUTSIDE = ("embed", "head", "position", "patch_embed", "projector")
MORE = 1.25  # times its share of the parameters, from which a part outside layers is named
WORTH_NAMING = 0.05  # of the energy
DIFFERENT = 0.05  # how far the norm before storage has to be from the stored one to be told
FURTHER = 1.25  # relative norm of a module over that of the median module, from which it is named
EVEN = 0.28  # of the energy in a quarter of the depth, below which none is named
APART = 2.0  # ratio of the most and the least coherent module from which they are named
# alignment over its null, in units of an even spread, from which it is more than chance and
# rounding
TURNED = 0.25
# share of the stored energy that is the update's, above which storage does not matter
WELL_KEPT = 0.9
CLEAR = 4.0  # floor_ratio from which an unknown rounding hardly matters
USUAL_RANK = 256  # of adapters
HIGH = 0.5  # of the short side: more than any adapter of that width has
# relative norms: below, of most preference and RL stages; above, of no short run
SMALL, LARGE = 2e-3, 0.1
SHRINKS, STILL = -0.5, -0.1  # decay_cosine: mostly decay; at most 1 % of the energy is decay
# cosine of base and tuned: decay leaves 1, as each is the other times a number. A matrix that was
# replaced by another of its norm has 0 and a decay_cosine of -0.71, a negative one -1 and -1.
POINTS_ALIKE, POINTS_ELSEWHERE = 0.9, 0.5
ONE_ROUNDING = (0.9, 1.1)  # floor_ratio of a copy that was rounded once
BY_CHANCE = 0.03  # of the matrices of a rounded copy: more do not pass for changed
LIKE_NOISE = 0.03  # concentration within which a pair is like noise
# energy over its share of the parameters, or the reverse, up to which a part has its share
IN_PROPORTION = 1.1
VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
NOTHING_IN_COMMON = 0.1  # a cosine below which two matrices have nothing in common
STANDING_OUT = 0.1  # of the energy of the median matrix, from which its spikes are told

KINDS: Mapping[str, str] = {  # of stages that families name
    "sft": "supervised fine-tuning",
    "dpo": "preference tuning (DPO)",
    "mpo": "preference tuning (MPO)",
    "rl": "reinforcement learning",
    "rlvr": "reinforcement learning with checked answers",
    "instruct": "instruction tuning",
    "chat": "chat tuning",
    "thinking": "training to reason",
    "reasoning": "training to reason",
    "distill": "distillation",
}
NOT_SHOWN = (
    (
        "Weights do not show whether benchmark data were in the training, what the model can do, or"
        " what anyone intended."
    ),
    "Different data, optimisers and learning rates can leave the same figures.",
)


@dataclass(frozen=True)
class Sentence:
    """A measured statement."""

    code: str
    """One of CODES."""

    text: str
    """The sentence."""

    figures: Mapping[str, Figure]
    """The figures whose numbers stand in it, in full, by their place in summary.json."""


@dataclass(frozen=True)
class Explanation:
    """Something else that may have left these figures, whether it did, and why that is known."""

    code: str
    """One of EXPLANATIONS."""

    name: str
    """What people call it."""

    answer: Answer
    """no, fits, or cannot be excluded."""

    reason: str
    """Why."""

    figures: Mapping[str, Figure]
    """The figures whose numbers stand in the reason, in full, by their place in summary.json."""


@dataclass(frozen=True)
class Finding:
    """What a report says of its pair."""

    headline: str
    """What happened to the weights, in one line; empty until it is made."""

    sentences: list[Sentence]
    """Each a short paragraph, in the order of CODES, but that a copy's `rounding` stands before
    `size`, and so do `vocabulary` and `left_out` if nothing changed or little was compared; of most
    pairs two to five.
    """

    other_explanations: list[Explanation]
    """What else it may be, in the order of EXPLANATIONS."""

    not_shown: list[str]
    """What weights do not show."""

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(sentence.text for sentence in self.sentences)

    def __str__(self) -> str:
        """The headline and the sentences as one paragraph: `print` of all fields would fill a
        screen.
        """
        return f"{self.headline} {self.text}".strip()


CODES: Mapping[str, str] = {  # what each sentence says, in the order in which they stand
    "nonfinite": "a side is broken: it holds NaN or infinite entries",
    "nothing_compared": "no matrix has a partner, so there is no difference to speak of",
    "unrelated": "the two are unrelated models of one shape",
    "hardly_related": "the two have less in common than a base and a model tuned from it",
    "part_asked_for": "a filter left out a part of the model",
    "part_shared": "only a part of the larger side has a partner in the other",
    "unread_formats": "a part is stored in a format that is not read",
    "only_vectors": "no matrix changed, and biases or norms did",
    "identical": "every matrix that was compared is the same on both sides",
    "scaled": "the matrices that changed are the base's times one factor",
    "zeroed": "in the matrices that changed, some entries became 0 and the others stayed",
    "replaced": (
        "some matrices have little or nothing in common with the base's, unlike most others: they"
        " were replaced, exchanged or reordered"
    ),
    "size": "how large the change is, and where it lies",
    "few_rows": "of the embeddings only a few rows changed",
    "vectors": "biases and norms moved much further than the matrices",
    "vocabulary": "the embeddings or the head have more rows on one side",
    "left_out": "which layers or modules have no partner, or another shape",
    "coherent": (
        "it has more structure than noise; how much, where, and whether it follows the base's"
        " directions"
    ),
    "standing_out": (
        "how many directions of the median matrix are above what noise can reach, and how much they"
        " hold"
    ),
    "low_rank": "few directions hold it",
    "flat": "it is flatter than noise",
    "noise": "nothing tells it from noise",
    "mixed": "some matrices have more structure than noise",
    "concentration": "how concentrated it is, in a report that lacks what the others need",
    "few_values": (
        "a side is stored in 8 bits, or has as few distinct values as a copy through 8 or 4 bits"
    ),
    "beyond_rounding": "storage rounded most matrices away, and some changed by more than that",
    "rounded_away": "storage rounded most of it away",
    "rounding": "what is stored is about as large as its rounding; of a copy the first sentence",
    "unexplained": (
        "what is stored is not what rounding leaves of an update, so what was lost is unknown"
    ),
    "kept": "how much of the stored change is the update's",
    "siblings": "neither was tuned from the other",
    "stage": "which stage of training it is, by the names in its family file",
    "published": "where it lies among published pairs",
}
EXPLANATIONS: Mapping[str, str] = {
    "merged_adapter": "merged adapter",
    "orthogonalised_optimiser": "orthogonalised optimiser",
    "quantised_copy": "copy through fewer bits",
    "merge": "merge of models",
    "short_run": "short or slow training",
    "novel_data": "novel data",
    "weight_decay": "weight decay",
}


def finding(
    summary: Summary, settings: SettingsMetadata, published: Sentence | None = None
) -> Finding:
    """The finding of a summary, without its headline: see `shadow.findings.headline`.

    settings: those of its audit. published: where the pair lies among other pairs, if known.
    """
    gates = {gate.name: gate for gate in summary.gates}
    relation = settings.get("relation")
    filtered = bool(_chosen(settings))
    first = _gates(summary, gates, filtered)
    later = [] if _limits(gates) else _not_compared(summary, filtered)
    if any(sentence.code in ("nothing_compared", "identical") for sentence in first):
        return Finding("", first, [], list(NOT_SHOWN))
    sentences = list(first)
    others: list[Explanation] = []
    if any(sentence.code == "unrelated" for sentence in first):
        sentences += [_size(summary, apart=True, alike=False), *later]
    else:
        sentences += [*_recognised(summary), _size(summary, apart=relation == "sibling")]
        sentences += [*_few_rows(summary), *_vectors(summary), *later]
        if summary.recognised.scaled is None:  # otherwise its structure is the base's own
            sentences += _structure(summary)
        sentences += [*_storage(summary, gates), *_context(summary, relation)]
        others = _explanations(summary)
    if published is not None:
        sentences.append(published)
    return Finding("", sentences, others, list(NOT_SHOWN))


def _chosen(settings: SettingsMetadata) -> list[str]:
    """What the audit was restricted by: components, layers, modules."""
    chosen = settings.get("chosen")
    if not isinstance(chosen, Mapping):
        return []
    return [str(name) for name, values in chosen.items() if values]


# --------------------------------------------------------------------------------- numbers as words


def percent(value: float) -> str:
    """`1.2 %`, two significant digits; whole above 10 %."""
    percents = 100 * value
    if percents >= 9.95 or percents == 0:
        return f"{percents:.0f} %"
    if percents < 0.01:
        return f"{percents:.1g} %"
    return f"{percents:#.2g} %"


def about(value: float) -> str:
    """A number of directions, two significant digits: `10`, `57`, `1,200`."""
    if value < 100:
        return f"{value:.0f}"
    scale = 10 ** (int(math.log10(value)) - 1)
    return f"{round(value / scale) * scale:,}"


def whole(value: float) -> str:
    """A count or a size, as it is."""
    return f"{value:,.0f}"


def times(value: float) -> str:
    """A ratio, two significant digits: `0.52`, `2.1`, `35`."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:#.2g}"


def _all_of(count: int, total: int) -> str:
    if count != total:
        return f"{count:,} of {total:,} matrices"
    return {1: "the only matrix", 2: "both matrices"}.get(total, f"all {total:,} matrices")


@dataclass
class _Draft:
    """A sentence in the making: figures are noted when their numbers are written."""

    summary: Summary
    """What the sentence is about."""

    figures: dict[str, Figure] = field(default_factory=dict)
    """What was written so far, by place in summary.json."""

    def write(self, value: Figure, place: str, form: Callable[[float], str]) -> str:
        """The value in words, noted under its place."""
        self.figures[place] = value
        return form(value)

    def inside(self, name: str) -> Figure | None:
        """A figure of the matrices inside layers, noted if there is one."""
        value = self.summary.inside_layers.get(name)
        if value is not None:
            self.figures[f"inside_layers.{name}"] = value
        return value

    def overall(self, name: str) -> Figure | None:
        """A figure of the whole pair, noted if there is one."""
        value = self.summary.figures.get(name)
        if value is not None:
            self.figures[f"figures.{name}"] = value
        return value

    def directions(self) -> str:
        """How many directions a matrix inside layers has: `64`, or `32 to 64` where they differ, as
        their median need not be the size of any; empty where it is unknown.
        """
        inside = self.summary.inside_layers
        least, most = inside.get("short_side_least"), inside.get("short_side_most")
        if least is not None and most is not None and least < most:
            low = self.write(least, "inside_layers.short_side_least", whole)
            return f"{low} to {self.write(most, 'inside_layers.short_side_most', whole)}"
        side = self.overall("short_side")
        return "" if side is None else whole(side)

    def sentence(self, code: str, *parts: str) -> Sentence:
        """The sentence, of the parts that are not empty."""
        return Sentence(code, " ".join(part for part in parts if part), self.figures)


# -------------------------------------------------------------------------------------------- gates


def _gates(summary: Summary, gates: Mapping[str, Gate], filtered: bool) -> list[Sentence]:
    """What comes before any figure: that these are not base and tuned, or not all of them."""
    changed, lineage, paired, formats = (
        gates[name] for name in ("changed", "lineage", "paired", "formats")
    )
    broken = _nonfinite(summary)
    if changed.figure is None:
        of = "of what was asked for" if filtered else "of the two"
        text = f"Nothing was compared: no matrix {of} has a partner."
        if broken:
            text = f"Nothing was compared: no matrix {of} has a partner, or finite numbers."
        return [*broken, Sentence("nothing_compared", text, {})]
    sentences = [*broken, *_relation(lineage)]
    if filtered or not changed.passed or not paired.passed:
        sentences += _part(paired, filtered)
    sentences += _unread(formats)
    if _limits(gates):
        sentences += _not_compared(summary, filtered)
    if changed.passed:
        return sentences
    sentences = [sentence for sentence in sentences if sentence.code != "unrelated"]
    draft = _Draft(summary)
    text = "The weights are the same: every matrix that was compared is identical"
    if only_vectors := _only_vectors(summary):
        text = "Every matrix that was compared is identical"
    elif filtered:
        text = "What was asked for is the same: every matrix of it that was compared is identical"
    elif sentences:  # each says of something that it was not compared
        text = "What could be compared is the same: every matrix of it is identical"
    identical = draft.sentence("identical", f"{text}{_identical(draft)}.")
    return [*sentences, *only_vectors, identical]


def _limits(gates: Mapping[str, Gate]) -> bool:
    """Does what was not compared matter so much that it is told before how large the change is?"""
    return not gates["changed"].passed or not gates["paired"].passed


def _not_compared(summary: Summary, filtered: bool) -> list[Sentence]:
    """Rows, modules and layers; what was not asked for is not missed."""
    return [*_vocabulary(summary), *([] if filtered else _left_out(summary))]


def _nonfinite(summary: Summary) -> list[Sentence]:
    """Which side is broken, and where."""
    rows = [row for row in summary.uncompared if row.reason == "nonfinite"]
    if not rows:
        return []
    sides = {row.side for row in rows}
    who = {"base": "The base is", "tuned": "The tuned model is"}.get(
        sides.pop() if len(sides) == 1 else "both", "Both models are"
    )
    holds = "they hold" if who == "Both models are" else "it holds"
    text = f"{who} broken: {holds} NaN or infinite entries in {_places_of(summary, rows)}."
    return [Sentence("nonfinite", f"{text} What holds them was not compared.", {})]


def _places_of(summary: Summary, rows: Sequence[UncomparedRow]) -> str:
    """`mlp.up of layers 0 to 11 and the head`."""
    several = len({row.component for row in summary.components}) > 1
    names = [_place_of(row.component, row.module, row.layers, several) for row in rows]
    return _and_others(list(dict.fromkeys(names)))


def _and_others(names: list[str]) -> str:
    if len(names) > 2 * NAMED:
        names = [*names[: 2 * NAMED - 1], "other modules"]
    return and_list(names)


def _place_of(component: str, module: str | None, layers: Sequence[int], several: bool) -> str:
    """`mlp.up of layers 0 to 3`, `layer 11`, `the head`."""
    noun = "layer" if len(layers) == 1 else "layers"
    if module is None:
        of = f" of {_component(component)}" if several else ""
        return f"{noun} {_spans(layers)}{of}"
    name = {"bias": "biases", "norm": "norms"}.get(module)
    if name is None:
        name = _named_in(component, module, several)
    return f"{name} of {noun} {_spans(layers)}" if layers else name


def _vocabulary(summary: Summary) -> list[Sentence]:
    """Embeddings and heads of another number of rows; those of equal numbers together."""
    groups: dict[tuple[int, int], list[VocabularyRow]] = {}
    for row in summary.vocabulary:
        groups.setdefault((row.base_rows, row.tuned_rows), []).append(row)
    sentences = []
    for rows in groups.values():
        draft, first = _Draft(summary), rows[0]
        place = f"vocabulary.{first.component}.{first.module}"
        size = draft.write(first.tuned_rows, f"{place}.tuned_rows", whole)
        before = draft.write(first.base_rows, f"{place}.base_rows", whole)
        by = draft.write(first.added, f"{place}.added", lambda value: whole(abs(value)))
        noun = "row" if by == "1" else "rows"
        if first.added > 0:
            change = f"The vocabulary grew by {by} {noun}"
        else:
            change = f"The vocabulary lost {by} {noun}"
        names = and_list([_module(row.module) for row in rows])
        verb = "has" if names == "the head" else "have"
        text = (
            f"{change}: {names} {verb} {size}, the base's {before}. Only rows that both have are"
            " compared."
        )
        sentences.append(draft.sentence("vocabulary", text))
    return sentences


def _left_out(summary: Summary) -> list[Sentence]:
    """What has no partner, or another shape."""
    texts = []
    for reason, where in (
        ("only_in_base", "only in the base"),
        ("only_in_tuned", "only in the tuned model"),
    ):
        rows = [row for row in summary.uncompared if row.reason == reason]
        if rows:
            texts.append(f"{_places_of(summary, rows)} ({where})")
    figures: dict[str, Figure] = {}
    shapes: dict[str, list[UncomparedRow]] = {}
    for row in summary.uncompared:
        if row.reason == "shape_differs":
            told = ""
            if row.base_shape and row.tuned_shape:
                told = f", {_shape(row.tuned_shape)} instead of {_shape(row.base_shape)}"
            shapes.setdefault(told, []).append(row)
    listed = list(shapes.items())
    if len(listed) > NAMED:
        listed = [("", [row for rows in shapes.values() for row in rows])]
    for told, rows in listed:
        texts.append(f"{_places_of(summary, rows)} (other shapes{told})")
        if told:
            place = f"uncompared.{rows[0].component}.{rows[0].module}"
            for name, shape in (
                ("base_shape", rows[0].base_shape),
                ("tuned_shape", rows[0].tuned_shape),
            ):
                figures |= {f"{place}.{name}.{at}": size for at, size in enumerate(shape or [])}
    if not texts:
        return []
    return [Sentence("left_out", f"Not compared: {'; '.join(texts)}.", figures)]


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(whole(size) for size in sizes)


def _only_vectors(summary: Summary) -> list[Sentence]:
    if not summary.vectors.changed:
        return []
    draft = _Draft(summary)
    return [draft.sentence("only_vectors", f"Only vectors changed: {_vectors_moved(draft)}.")]


def _vectors_moved(draft: _Draft) -> str:
    """`128 of 128 biases and norms moved, by 13 % of their own norm in the median`."""
    vectors = draft.summary.vectors
    changed = draft.write(vectors.changed, "vectors.changed", whole)
    compared = draft.write(vectors.compared, "vectors.compared", whole)
    text = f"{changed} of {compared} biases and norms moved"
    if vectors.relative_norm is None:
        return f"{text}, which are 0 in the base"
    norm = draft.write(vectors.relative_norm, "vectors.relative_norm", percent)
    return f"{text}, by {norm} of their own norm in the median"


def _identical(draft: _Draft) -> str:
    """` (30 tensors of the tuned side)`: those of one side, as the other has the same once more; by
    component where there are several.
    """
    rows = [row for row in draft.summary.components if row.identical]
    counts = [
        draft.write(row.identical, f"components.{row.component}.identical", whole) for row in rows
    ]
    if len(rows) == 1:
        noun = "tensor" if rows[0].identical == 1 else "tensors"
        return f" ({counts[0]} {noun} of the tuned side)"
    of = [
        f"{count} of {_component(row.component)}" for count, row in zip(counts, rows, strict=True)
    ]
    return f" (tensors of the tuned side: {and_list(of)})" if of else ""


def _relation(lineage: Gate) -> list[Sentence]:
    if lineage.passed or lineage.figure is None:
        return []
    figures = {"gates.lineage.figure": lineage.figure}
    cosine = f"median cosine {lineage.figure:.2f}".replace("-0.00", "0.00")
    if abs(lineage.figure) < UNRELATED:
        return [
            Sentence(
                "unrelated",
                f"These are two unrelated models of one shape ({cosine}, where a model and its base"
                " have nearly 1).",
                figures,
            )
        ]
    text = (
        f"These have less in common than a model and its base do ({cosine}), so read what follows"
        " with care."
    )
    return [Sentence("hardly_related", text, figures)]


def _part(paired: Gate, filtered: bool) -> list[Sentence]:
    if paired.figure is None or paired.figure >= 1.0:
        return []
    figures = {"gates.paired.figure": paired.figure}
    part = _not_all(paired.figure)
    if filtered:
        text = (
            f"Only a part of the model was asked for, {part} of the parameters. What follows is"
            " about this part."
        )
        return [Sentence("part_asked_for", text, figures)]
    text = (
        f"The two share only {part} of the larger model's parameters. What follows is about this"
        " part."
    )
    return [Sentence("part_shared", text, figures)]


def _not_all(share: float) -> str:
    """A share below 1, rounded down: `92 %`, and from 99 % on `99.7 %`, as 100 % would be all."""
    share = math.floor(1000 * share) / 1000
    return f"{100 * share:.1f} %" if share >= 0.99 else percent(share)


def _unread(formats: Gate) -> list[Sentence]:
    if formats.passed or formats.figure is None:
        return []
    text = (
        f"{percent(formats.figure)} of the parameters are stored in a format that is not read, and"
        " are left out."
    )
    return [Sentence("unread_formats", text, {"gates.formats.figure": formats.figure})]


# -------------------------------------------------------------------- what was done to the weights


def _recognised(summary: Summary) -> list[Sentence]:
    """What no training does, and the figures show beyond doubt."""
    return [*_copy(summary), *_scaled(summary), *_zeroed(summary), *_replaced(summary)]


def _is_copy(summary: Summary) -> bool:
    """Is what is stored as large as one rounding, and does it hide whatever else there may be?"""
    inside, floor = summary.inside_layers, summary.figures["floor_ratio"]
    matrices = _count(inside, "matrices")
    if not matrices or floor is None or 2 * _count(inside, "rounded_away") < matrices:
        return False
    return ONE_ROUNDING[0] <= floor <= ONE_ROUNDING[1] and not _beyond_rounding(summary)


def _beyond_rounding(summary: Summary) -> int:
    """Of a pair most matrices of which are rounded away: how many changed by more all the same, as
    where an adapter of some modules was merged. 0 where that may be chance.
    """
    inside = summary.inside_layers
    few = BY_CHANCE * _count(inside, "matrices")
    return _count(inside, "known") if _count(inside, "beyond_noise") > few else 0


def _copy(summary: Summary) -> list[Sentence]:
    if not _is_copy(summary):
        return []
    draft = _Draft(summary)
    size = draft.write(
        summary.figures["floor_ratio"] or 0.0, "figures.floor_ratio", lambda value: f"{value:.2f}"
    )
    inside = summary.inside_layers
    if 2 * _count(inside, "in_two_formats") > _count(inside, "matrices"):
        text = (
            "These are the base's weights in another format, as far as can be told: the difference"
            f" is {size} times the rounding of that format, as in a copy that was only stored in"
            " it."
        )
    else:
        text = (
            f"The difference is {size} times the rounding of its storage, as in a copy that was"
            " only rounded once."
        )
    return [draft.sentence("rounding", text)]


def _scaled(summary: Summary) -> list[Sentence]:
    scaled = summary.recognised.scaled
    if scaled is None:
        return []
    draft = _Draft(summary)
    by = draft.write(scaled.factor, "recognised.scaled.factor", factor)
    changed = " that changed" if any(row.identical for row in summary.components) else ""
    text = f"Every matrix{changed} is the base's times {by}; nothing else changed in it."
    return [draft.sentence("scaled", text)]


def factor(value: float) -> str:
    """A factor, with two digits of how far it is from 1, and three decimals at least: `1.010`,
    `0.9990`, `-1.000`.
    """
    digits = 3
    if distance := round(abs(value - 1.0), 7):
        digits = max(digits, 1 - math.floor(math.log10(distance)))
    return f"{value:.{digits}f}"


def _zeroed(summary: Summary) -> list[Sentence]:
    zeroed = summary.recognised.zeroed
    if zeroed is None:
        return []
    draft = _Draft(summary)
    count = draft.write(zeroed.matrices, "recognised.zeroed.matrices", whole)
    share = draft.write(zeroed.share, "recognised.zeroed.share", percent)
    text = (
        f"Entries were set to 0, and no other entry changed: in the {count} matrices that changed,"
        f" {share} of the entries in the median, as pruning does."
    )
    return [draft.sentence("zeroed", text)]


def _replaced(summary: Summary) -> list[Sentence]:
    replaced = summary.recognised.replaced
    if replaced is None:
        return []
    draft = _Draft(summary)
    count = draft.write(replaced.matrices, "recognised.replaced.matrices", whole)
    low = draft.write(replaced.cosine_least, "recognised.replaced.cosine_least", _cosine)
    high = draft.write(replaced.cosine_most, "recognised.replaced.cosine_most", _cosine)
    several = len({row.component for row in summary.components}) > 1
    layers: dict[tuple[int, ...], list[str]] = {}
    for row in replaced.rows:
        name = _changed_module(summary, row)
        name = _of_component(name, row.component) if several else name
        layers.setdefault(tuple(row.layers), []).append(name)
    places = _and_others([_place_of_several(names, at) for at, names in layers.items()])
    one = replaced.matrices == 1
    noun, have = ("matrix", "has") if one else ("matrices", "have")
    cosines = f"cosine {low}" if low == high else f"cosines {low} to {high}"
    if has_nothing_in_common(replaced):
        common, were = "nothing", "was" if one else "were"
    else:  # a training of large steps may leave so much
        common, were = "little", "may have been"
    text = (
        f"{count} {noun} ({places}) {have} {common} in common with the base's ({cosines}), unlike"
        f" most others: {'it' if one else 'they'} {were} replaced, exchanged or reordered."
    )
    return [draft.sentence("replaced", text)]


def has_nothing_in_common(replaced: Replaced) -> bool:
    """Is the cosine so near 0 that no training can have left it?"""
    return max(abs(replaced.cosine_least), abs(replaced.cosine_most)) < NOTHING_IN_COMMON


def _place_of_several(names: Sequence[str], layers: Sequence[int]) -> str:
    """`attn.q and attn.k of layers 3 and 4`."""
    named = _and_others(list(names))
    if not layers:
        return named
    return f"{named} of {'layer' if len(layers) == 1 else 'layers'} {_spans(layers)}"


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def _few_rows(summary: Summary) -> list[Sentence]:
    sentences = []
    for row in summary.recognised.few_rows:
        draft = _Draft(summary)
        place = f"recognised.few_rows.{row.component}.{row.module}"
        changed = draft.write(row.changed, f"{place}.changed", whole)
        rows = draft.write(row.rows, f"{place}.rows", whole)
        text = f"Of the embeddings only {changed} of {rows} rows changed."
        sentences.append(draft.sentence("few_rows", text))
    return sentences


def _vectors(summary: Summary) -> list[Sentence]:
    """Biases and norms, where most moved and the median of all is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures["relative_norm_overall"]
    if norm is None or matrices is None or norm < VECTORS_FURTHER * matrices:
        return []
    draft = _Draft(summary)
    text = f"Vectors moved further than matrices: {_vectors_moved(draft)}."
    return [draft.sentence("vectors", text)]


# ----------------------------------------------------------------------------------- size and place


def _size(summary: Summary, apart: bool, alike: bool = True) -> Sentence:
    """apart: the two are no base and tuned; alike: where the difference lies says something."""
    draft = _Draft(summary)
    moved = "" if apart else _moved(draft)
    parts = [_norm(draft, apart)]
    if alike:
        parts += [_modules(draft), moved, _depth(draft), *_unchanged(draft)]
    return draft.sentence("size", *parts)


def _norm(draft: _Draft, apart: bool) -> str:
    what = "difference" if apart else "change"
    stored = draft.summary.figures["relative_norm_overall"]
    if stored is None:
        return f"The size of the {what} cannot be stated, because the base's matrices are 0."
    of = of_what(draft.summary)
    text = draft.write(stored, "figures.relative_norm_overall", percent)
    unrounded = draft.summary.figures.get("relative_norm_overall_unrounded")
    if unrounded is None or not _told_unrounded(draft.summary) or apart:
        inside = draft.summary.inside_layers
        if 2 * _count(inside, "rounded_away") >= max(1, _count(inside, "matrices")):
            return f"As stored, the {what} is {text} {of}."
        return f"The {what} is {text} {of}."
    before = draft.write(unrounded, "figures.relative_norm_overall_unrounded", percent)
    return f"Before it was stored, the change was {before} {of} (as stored {text})."


def _told_unrounded(summary: Summary) -> bool:
    """Is the norm before storage known, and so different from the stored one that it is told?"""
    stored = summary.figures.get("relative_norm_overall")
    unrounded = summary.figures.get("relative_norm_overall_unrounded")
    if stored is None or unrounded is None:
        return False
    return abs(unrounded - stored) >= DIFFERENT * stored


def of_what(summary: Summary) -> str:
    """What the overall relative norm is relative to, in words."""
    if has_frozen(summary):
        return "of the norm of the weights that changed"
    return "of the base's norm"


def parameter_ratio(summary: Summary, figure: str) -> float | None:
    """What a ratio of energies would be if every parameter that changed had moved alike: that of
    the parameters.

    figure is attention_to_mlp, vision_to_language or projector_to_language; None where there is
    nothing below.
    """
    if figure == "attention_to_mlp":
        main = _component_of_most_layers(summary)
        rows = [row for row in summary.modules if row.component == main]
        above = sum(row.parameters for row in rows if row.module.startswith(ATTENTION))
        below = sum(row.parameters for row in rows if row.module.startswith(MLP))
    else:
        component = figure.removesuffix("_to_language")
        above = sum(row.parameters for row in summary.modules if row.component == component)
        below = sum(row.parameters for row in summary.modules if row.component == "language")
    return above / below if below else None


def _component_of_most_layers(summary: Summary) -> str | None:
    """Language where it has layers, otherwise the component with most; None where none has any."""
    layers = Counter(row.component for row in summary.depth)
    if "language" in layers:
        return "language"
    return max(layers, key=layers.__getitem__, default=None)


def has_frozen(summary: Summary) -> bool:
    """Is so much unchanged that a norm of what changed is not one of the model?"""
    figures = summary.figures
    return (figures["parameters_identical"] or 0) > 0.01 * (figures["parameters"] or 1)


@dataclass(frozen=True)
class Part:
    """A part of the model whose share is told: a module of the main component, or another component
    as a whole.
    """

    name: str
    """What it is called in a sentence."""

    place: str
    """The place of its row in summary.json."""

    energy: float
    """Its share of the energy, 0 to 1."""

    size: float | None
    """Its share of the parameters, 0 to 1; None where it is not known."""

    outside: bool
    """Outside the layers: named where it holds more than its share."""

    @property
    def holds_more(self) -> bool:
        """Is it outside the layers, with clearly more than its share?"""
        if not self.outside or self.size is None:
            return False
        return self.energy >= max(MORE * self.size, WORTH_NAMING)

    @property
    def in_proportion(self) -> bool:
        """Has it about as much of the energy as of the parameters? What has little of both counts
        as having it.
        """
        if self.size is None:
            return False
        few, many = sorted((self.energy, self.size))
        return many < WORTH_NAMING or many <= IN_PROPORTION * few

    def told(self, draft: _Draft, sized: bool = False) -> str:
        """`46 %`; with its share of the parameters where asked for, or where it holds more."""
        text = draft.write(self.energy, f"{self.place}.energy_share", percent)
        if self.size is None or not (sized or self.holds_more):
            return text
        size = draft.write(self.size, f"{self.place}.parameter_share", percent)
        return f"{text}, with {size} of the parameters"


def parts_by_energy(summary: Summary) -> list[Part]:
    """The parts of the model, that of most energy first."""
    main = _main(summary)
    modules = [
        Part(
            name=_changed_module(summary, row),
            place=f"modules.{row.component}.{row.module}",
            energy=row.energy_share,
            size=row.parameter_share,
            outside=_is_outside(row.module),
        )
        for row in summary.modules
        if row.component == main and row.energy_share is not None
    ]
    components = [
        Part(
            name=_component(row.component),
            place=f"components.{row.component}",
            energy=row.energy_share,
            size=row.parameter_share,
            outside=True,
        )
        for row in summary.components
        if row.component != main and row.matrices and row.energy_share is not None
    ]
    return sorted([*modules, *components], key=lambda part: -part.energy)


def _main(summary: Summary) -> str | None:
    """The component whose modules are named: language, or the one with most changed matrices."""
    changed = [row for row in summary.components if row.matrices]
    if not changed:
        return None
    if any(row.component == "language" for row in changed):
        return "language"
    return max(changed, key=lambda row: row.matrices).component


def _is_outside(module: str) -> bool:
    return module.partition(".")[0] in OUTSIDE


def _module(module: str) -> str:
    """What a module is called in a sentence.

    Only a forged report has a name that is not of lower case.
    """
    plain = {
        "embed": "the embeddings",
        "head": "the head",
        "position": "the position embeddings",
        "patch_embed": "the patch embeddings",
        "other": "matrices whose role is not known",
    }
    if not module.isascii() or not all(letter.isalnum() or letter in "._" for letter in module):
        return "another module"
    return plain.get(module, module)


def _changed_module(summary: Summary, row: ModuleRow | ReplacedRow) -> str:
    """The same of a module that changed: BERT's pooler is of module head, and predicts nothing."""
    poolers = any(
        (one.component, one.module, one.poolers) == (row.component, "head", one.matrices)
        for one in summary.outside_layers
    )
    return "the pooling head" if row.module == "head" and poolers else _module(row.module)


def _component(name: str) -> str:
    plain = {
        "vision": "the vision tower",
        "audio": "the audio tower",
        "language": "the language model",
        "projector": "the projector",
    }
    return plain.get(name, "another part")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _modules(draft: _Draft) -> str:
    """The parts of most energy, until they hold MOST of it; then those outside layers of more than
    their share.
    """
    parts = parts_by_energy(draft.summary)
    if not parts:
        return ""
    if len(parts) == 1:
        return f"All of it is in {only_matrix(draft.summary) or parts[0].name}."
    named: list[Part] = []
    for part in parts[:NAMED]:
        if sum(share.energy for share in named) < MOST or part.energy > ALIKE * named[-1].energy:
            named.append(part)
    most = sum(part.energy for part in named) >= MOST
    if is_mostly_frozen(draft.summary):  # the rest has no proportion of the model to be told by
        if len(named) == len(parts):
            names = and_list([f"{part.name} ({part.told(draft)})" for part in named])
            return f"All of it is in {names}."
    elif all(part.in_proportion for part in parts):
        return _in_proportion(draft, parts[0])
    names = and_list(
        [f"{part.name} ({part.told(draft, sized=part is named[0])})" for part in named]
    )
    first = f"Most of it is in {names}." if most else f"The largest shares are in {names}."
    rest = [
        f"{part.name} {_verb(part.name)} {part.told(draft)}"
        for part in parts
        if part.holds_more and part not in named
    ]
    if not rest:
        return first
    return f"{first} {_capital(and_list(rest))}."


def only_matrix(summary: Summary) -> str | None:
    """`one matrix, mlp.down of layer 5`, if a single matrix changed and lies in a layer."""
    changed = [row for row in summary.depth if row.matrices]
    if summary.figures["matrices"] != 1 or len(changed) != 1:
        return None
    (module,) = (_module(row.module) for row in summary.modules)
    return f"one matrix, {module} of layer {changed[0].layer}"


def is_mostly_frozen(summary: Summary) -> bool:
    """Is half of the parameters or more the same on both sides?"""
    figures = summary.figures
    return 2 * (figures["parameters_identical"] or 0) >= (figures["parameters"] or 1)


def _in_proportion(draft: _Draft, largest: Part) -> str:
    """Every part has its share, so that none is to be named but as an example."""
    size = draft.write(largest.size or 0.0, f"{largest.place}.parameter_share", percent)
    energy = draft.write(largest.energy, f"{largest.place}.energy_share", percent)
    name = largest.name
    verb = "have" if name.endswith("embeddings") or name.startswith("matrices") else "has"
    return (
        f"It is spread about in proportion to the parameters: {name}, {size} of them, {verb}"
        f" {energy} of it."
    )


def _moved(draft: _Draft) -> str:
    """The module that moved furthest relative to its own norm.

    It need not hold much of the change.
    """
    rows = [row for row in draft.summary.modules if row.relative_norm is not None]
    if len(rows) < 2:
        return ""
    most = max(rows, key=lambda row: row.relative_norm or 0.0)
    norm = most.relative_norm or 0.0
    if norm < FURTHER * statistics.median(row.relative_norm or 0.0 for row in rows):
        return ""
    name = _changed_module(draft.summary, most)
    if len({row.component for row in rows}) > 1:
        name = _of_component(name, most.component)
    far = draft.write(norm, f"modules.{most.component}.{most.module}.relative_norm", percent)
    own = "their own norms" if name.endswith("embeddings") else "its own norm"
    matrix = " in the median matrix" if most.matrices > 1 else ""
    return f"Relative to {own}, {name} moved furthest: {far}{matrix}."


def _verb(name: str) -> str:
    return "hold" if name.endswith("embeddings") else "holds"


def _depth(draft: _Draft) -> str:
    """The few layers that hold nearly all, else the quarter of the depth that holds most, or that
    none does.
    """
    main = _main(draft.summary)
    if main != "other" and (few := _few_layers(draft, main)) is not None:
        return few
    rows = [row for row in draft.summary.quarters if row.component == main]
    # numbers in names that nothing is known of need not be those of blocks in order
    if not rows or main == "other":
        return ""
    where = "Inside the layers" if main == "language" else f"Inside {_component(str(main))}"
    most = max(rows, key=lambda row: row.energy_share)
    if most.energy_share < EVEN:
        for row in rows:
            draft.write(row.energy_share, _place_of_quarter(row), percent)
        layers = draft.write(
            draft.summary.figures["depth_layers"] or 0, "figures.depth_layers", whole
        )
        return f"{where} it is spread evenly over all {layers}."
    text = draft.write(most.energy_share, _place_of_quarter(most), percent)
    which = ("first", "second", "third", "last")[most.quarter - 1]
    first, last = most.first_layer, most.last_layer
    span = f"layer {first}" if first == last else f"layers {first} to {last}"
    much = "most" if most.energy_share > CLEARLY_MOST else "the largest part"
    if most.parameter_share is not None:
        place = _place_of_quarter(most, "parameter_share")
        share = draft.write(most.parameter_share, place, percent)
        text += f", with {share} of the parameters there"
    return f"{where} the {which} quarter of the depth ({span}) holds {much}, {text}."


def _few_layers(draft: _Draft, main: str | None) -> str | None:
    """`Only matrices of layer 5 changed.`, or the layers that hold NEARLY_ALL; None where these are
    more than NAMED, or more than a quarter of the layers though others changed as well.
    """
    summary = draft.summary
    rows = [row for row in summary.depth if row.component == main]
    changed = sorted(
        (row for row in rows if row.matrices and row.energy_share is not None),
        key=lambda row: -(row.energy_share or 0.0),
    )
    if not changed:
        return None
    where = "Inside the layers" if main == "language" else f"Inside {_component(str(main))}"
    if len(changed) <= NAMED and len(changed) < len(rows):
        if summary.figures["matrices"] == 1:
            return ""  # said with its module
        noun = "layer" if len(changed) == 1 else "layers"
        only = f"only matrices of {noun} {_spans([row.layer for row in changed])} changed."
        elsewhere = sum(row.matrices for row in summary.depth) != summary.figures["matrices"]
        several = len({row.component for row in summary.components}) > 1
        return f"{where} {only}" if elsewhere or several else _capital(only)
    named: list[LayerRow] = []
    while math.fsum(row.energy_share or 0.0 for row in named) < NEARLY_ALL:
        named.append(changed[len(named)])
        if len(named) > NAMED or 4 * len(named) > len(rows) or len(named) == len(changed):
            return None
    names = and_list(
        [
            f"layer {row.layer} ("
            + draft.write(
                row.energy_share or 0.0, f"depth.{row.component}.{row.layer}.energy_share", percent
            )
            + ")"
            for row in sorted(named, key=lambda row: row.layer)
        ]
    )
    return f"{where} nearly all of it is in {names}."


def _place_of_quarter(row: QuarterRow, figure: str = "energy_share") -> str:
    return f"quarters.{row.component}.{row.quarter}.{figure}"


def _unchanged(draft: _Draft) -> list[str]:
    """What is frozen: whole components, then modules, then layers; and what has no base."""
    summary = draft.summary
    whole_ones = [
        row.component for row in summary.components if row.tensors and row.identical == row.tensors
    ]
    several = len({row.component for row in summary.components}) > 1
    parts = [_component(name) for name in whole_ones]
    modules = [row for row in summary.unchanged if row.component not in whole_ones]
    parts += [_named_in(row.component, row.module, several) for row in modules]
    if len(parts) > 2 * NAMED + 1:  # one more takes no more room by its name
        parts = [*parts[: 2 * NAMED], f"{len(parts) - 2 * NAMED} more modules"]
    layers: dict[str, list[int]] = {}
    for row in summary.depth:
        if row.matrices == 0 and row.component not in whole_ones:
            layers.setdefault(row.component, []).append(row.layer)
    for component, numbers in layers.items():
        of = f" of {_component(component)}" if several else ""
        noun = "layer" if len(numbers) == 1 else "layers"
        parts.append(f"{noun} {_spans(numbers)}{of}")
    texts = [
        f"{_capital(_component(row.component))} has no base, so nothing is said of its change."
        for row in summary.without_base
    ]
    if parts:
        texts.insert(0, f"Unchanged: {and_list(parts)}.")
    return texts


def _named_in(component: str, module: str, several: bool) -> str:
    """A module, and of which component it is where that is not clear."""
    return _of_component(_module(module), component) if several else _module(module)


def _of_component(name: str, component: str) -> str:
    if component in ("language", "projector"):
        return name
    return f"{name} of {_component(component)}"


def _spans(numbers: Sequence[int]) -> str:
    """`0 to 3, 5 and 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts: list[str] = []
    for span in spans:
        if len(span) > 2:
            texts.append(f"{span[0]} to {span[-1]}")
        else:
            texts += [str(number) for number in span]
    if len(texts) > 2 * NAMED:
        texts = [*texts[: 2 * NAMED], f"{len(texts) - 2 * NAMED} more"]
    return and_list(texts)


# ---------------------------------------------------------------------------------------- structure


def _structure(summary: Summary) -> list[Sentence]:
    inside = summary.inside_layers
    judged, rounded = _count(inside, "judged"), _count(inside, "rounded_away")
    beyond, flatter = _count(inside, "beyond_noise"), _count(inside, "flatter_than_noise")
    draft = _Draft(summary)
    if not judged:
        return _by_concentration(draft)
    if 2 * rounded >= judged and 2 * beyond < judged:
        return []  # the figures are those of rounding, which the next sentence says
    draft.write(judged, "inside_layers.judged", str)
    if 2 * flatter >= judged:
        many = draft.write(
            flatter, "inside_layers.flatter_than_noise", lambda _: _all_of(flatter, judged)
        )
        text = f"In {many} inside layers the change is flatter than noise: "
        text += "spread over more directions than random changes are."
        return [draft.sentence("flat", text)]
    if _is_low_rank(summary):
        return [_low_rank(draft)]
    many = draft.write(beyond, "inside_layers.beyond_noise", lambda _: _all_of(beyond, judged))
    if 2 * beyond >= judged:
        text = f"In {many} inside layers the change has more structure than noise."
        return [
            draft.sentence("coherent", text, _coherence(draft), _alignment(draft)),
            *_standing_out(summary),
        ]
    if 10 * (beyond + flatter) >= judged:
        text = (
            f"In {many} inside layers the change has more structure than noise; in most, nothing"
            " tells it from noise."
        )
        return [draft.sentence("mixed", text)]
    if not beyond:
        which = "no matrix inside layers has"
    elif beyond == 1:
        which = f"{many} inside layers has"
    else:
        which = f"{many} inside layers have"
    text = (
        f"Nothing tells it from noise: {which} more structure than random changes of the same rows"
        " and columns."
    )
    return [draft.sentence("noise", text)]


def _count(inside: Mapping[str, Figure | None], name: str) -> int:
    return int(inside.get(name) or 0)


def _by_concentration(draft: _Draft) -> list[Sentence]:
    """For reports that lack the columns of purity, and models without layers."""
    value = draft.overall("concentration")
    if value is None:
        return []
    if abs(value) <= LIKE_NOISE:
        says = "like noise"
    elif value > 0:
        says = "fewer directions than noise"
    else:
        says = "flatter than noise"
    text = f"The median concentration is {value:.2f}, where noise has 0 and rank one 1: {says}."
    return [draft.sentence("concentration", text.replace("-0.00", "0.00"))]


def _coherence(draft: _Draft) -> str:
    """As coherent as how many equally strong directions, and how that compares across modules."""
    inside, summary = draft.summary.inside_layers, draft.summary
    judged, coherent = _count(inside, "judged"), _count(inside, "coherent")
    above = _count(inside, "above_short_side")
    value, directions = inside.get("equivalent_directions"), draft.directions()
    if 2 * (coherent + above) < judged or (value is None and not above):
        return "How coherent the update was before it was stored is unknown."
    what = "It" if _count(inside, "matrices") == 1 else "Its median matrix"
    if value is None:
        if not directions:
            return ""
        along = f"all {directions} directions alike"
        if directions == "1":
            along = "its only direction"
        text = f"{what} is less coherent than a change along {along} would be"
    else:
        draft.write(value, "inside_layers.equivalent_directions", about)
        of = f", of {directions} possible" if directions else ""
        along = _equally_strong(value)
        text = f"{what} is as coherent as a change along {along} (a measure, not a count){of}"
    return f"{text}{_across_modules(draft, summary.coherence, told=value is not None)}."


def _across_modules(draft: _Draft, coherence: Sequence[CoherenceRow], *, told: bool) -> str:
    """`; modules lie between 25 (attn.o) and 46 (attn.q)`; told: is the median of all a number?"""
    rows = [row for row in coherence if 2 * (row.coherent + row.above_short_side) >= row.matrices]
    rows = [row for row in rows if row.equivalent_directions or row.above_short_side]

    def size(row: CoherenceRow) -> float:
        return row.equivalent_directions or math.inf

    if len(rows) < 2:
        return ""
    told_ones = [size(row) for row in rows if not math.isinf(size(row))]
    if not told_ones:
        return ""
    # what is above a short side that others exceed is not the other end
    rows = [
        row for row in rows if not math.isinf(size(row)) or (row.short_side or 0) >= max(told_ones)
    ]
    if len(rows) < 2:
        return ""
    least, most = min(rows, key=size), max(rows, key=size)
    if size(most) < APART * size(least):
        return "; modules differ little" if told else ""
    several = len({row.component for row in rows}) > 1
    ends = []
    for row in (least, most):
        place = f"coherence.{row.component}.{row.module}"
        number = f"more than {whole(row.short_side or 0)}"
        if row.equivalent_directions is not None:
            place = f"{place}.equivalent_directions"
            number = draft.write(row.equivalent_directions, place, about)
        elif row.short_side is not None:
            draft.figures[f"{place}.short_side"] = row.short_side
        ends.append(f"{number} ({_named_in(row.component, row.module, several)})")
    return f"; modules lie between {ends[0]} and {ends[1]}"


def _equally_strong(value: float) -> str:
    """`33 equally strong directions`."""
    if about(value) == "1":
        return "1 direction"
    return f"{about(value)} equally strong directions"


def _stands_out(summary: Summary) -> bool:
    """Has the median matrix directions beyond noise, with enough energy to be told?"""
    spikes, energy = (summary.inside_layers.get(name) for name in ("spikes", "spike_energy"))
    return spikes is not None and energy is not None and spikes >= 1 and energy >= STANDING_OUT


def _standing_out(summary: Summary) -> list[Sentence]:
    """The directions that stand out one by one, which a measure of coherence does not count."""
    if not _stands_out(summary):
        return []
    draft = _Draft(summary)
    spikes, energy = draft.inside("spikes") or 0, draft.inside("spike_energy") or 0.0
    number, directions = about(spikes), draft.directions()
    noun, verbs = "directions", "stand out from noise and hold"
    if number == "1":
        noun, verbs = "direction", "stands out from noise and holds"
    if directions:
        noun = f"of {directions} directions"
    where = "In the median matrix"
    if _count(summary.inside_layers, "matrices") == 1:
        where = "In the only matrix"
    # figures of all matrices, such as those of the page, then say another number
    if _count(summary.inside_layers, "matrices") != summary.figures["matrices"]:
        where += " inside layers"
    text = f"{where} {number} {noun} {verbs} {percent(energy)} of its change."
    return [draft.sentence("standing_out", text)]


def _alignment(draft: _Draft) -> str:
    """Does it follow the base's strongest directions, more than its rows and columns alone do?"""
    inside = draft.summary.inside_layers
    follows: list[tuple[str, float, float]] = []
    avoids: list[tuple[str, float, float]] = []
    for side, what in (("left", "outputs"), ("right", "inputs")):
        value = inside.get(f"alignment_{side}")
        null = inside.get(f"alignment_{side}_null")
        excess = inside.get(f"alignment_{side}_excess")
        if value is None or null is None or excess is None:
            return ""
        for name, figure in (("", value), ("_null", null), ("_excess", excess)):
            draft.figures[f"inside_layers.alignment_{side}{name}"] = figure
        # the median of the differences, and the difference of medians
        if excess >= TURNED and value - null >= TURNED:
            follows.append((what, value, null))
        elif excess <= -TURNED and value - null <= -TURNED:
            avoids.append((what, value, null))
    verb, sides = "follows", follows
    if not follows:
        verb, sides = "avoids", avoids
    if not sides:
        return "The change neither follows nor avoids the base's leading directions."
    alone = and_list(list(dict.fromkeys(f"{null:.1f}" for _, _, null in sides)))
    if len(sides) == 1:
        ((what, value, _),) = sides
        which, share = f"leading {what}", f"{value:.1f}"
    else:
        which = "leading directions"
        share = and_list([f"{value:.1f} ({what})" for what, value, _ in sides])
    text = f"The change {verb} the base's {which}, which hold {share} times an even share of it"
    return f"{text}; the sizes of its rows and columns alone would make that {alone}."


def _is_low_rank(summary: Summary) -> bool:
    most, side = summary.inside_layers.get("rank_most"), summary.figures["short_side"]
    if most is None or side is None:
        return False
    return most <= min(USUAL_RANK, LOW * side)


def _low_rank(draft: _Draft) -> Sentence:
    of = draft.directions()
    ceiling = draft.summary.figures["rank_ceiling"]
    if ceiling is not None:
        rank = draft.write(ceiling, "figures.rank_ceiling", whole)
        text = f"It is an adapter: no matrix changes along more than {rank} of {of} directions."
        return draft.sentence("low_rank", text, _alignment(draft))
    most, rank_90 = draft.inside("rank_most") or 0, draft.summary.inside_layers.get("rank_90")
    first = f"{whole(most)} of {of} directions hold"
    if rank_90 is not None and rank_90 < most:
        some = draft.write(rank_90, "inside_layers.rank_90", whole)
        first = f"{some} of {of} directions hold 90 % of what is stored, and {whole(most)} hold"
    text = f"It has low rank: in the median matrix {first} all but what rounding leaves."
    text = text.replace(f" 1 of {of} directions hold ", f" 1 of {of} directions holds ")
    return draft.sentence("low_rank", text, _alignment(draft))


# ------------------------------------------------------------------------------------------ storage


def _storage(summary: Summary, gates: Mapping[str, Gate]) -> list[Sentence]:
    draft = _Draft(summary)
    inside = summary.inside_layers
    judged, rounded, unexplained = (
        _count(inside, name) for name in ("matrices", "rounded_away", "unexplained")
    )
    kept, floor = inside.get("kept"), summary.figures["floor_ratio"]
    sentences = _few_values(summary)
    if not judged or floor is None:
        return sentences
    if _is_copy(summary):
        return sentences  # which the first sentence says
    if 2 * rounded >= judged and _beyond_rounding(summary):
        return [*sentences, _partly_rounded_away(draft)]
    if 2 * rounded >= judged:
        many = draft.write(
            rounded, "inside_layers.rounded_away", lambda _: _all_of(rounded, judged)
        )
        draft.write(judged, "inside_layers.matrices", str)
        text = (
            f"Storage rounded most of it away: in {many} inside layers less than a quarter of what"
            " is stored is the update's, so that its size and structure are unknown."
        )
        return [*sentences, draft.sentence("rounded_away", text)]
    if 2 * unexplained >= judged and floor < CLEAR and not sentences:
        draft.inside("unexplained")
        draft.write(judged, "inside_layers.matrices", str)
        text = (
            f"In {_all_of(unexplained, judged)} inside layers, what is stored is not what rounding"
            " leaves of an update (a copy in more bits may have been kept between stages), so what"
            " was lost is unknown."
        )
        if not gates["rounding"].passed:
            size = draft.write(floor, "figures.floor_ratio", times)
            text += f" The stored change is {size} times its rounding."
        return [*sentences, draft.sentence("unexplained", text)]
    if kept is not None and kept < WELL_KEPT:
        text = draft.write(kept, "inside_layers.kept", percent)
        text = (
            f"Inside layers only {text} of the energy of what is stored is the update's; the rest"
            " is rounding."
        )
        return [*sentences, draft.sentence("kept", text)]
    if not gates["rounding"].passed:
        size = draft.write(floor, "figures.floor_ratio", times)
        text = (
            f"The stored change is only {size} times the rounding of its storage, and may be"
            " nothing else."
        )
        return [*sentences, draft.sentence("rounding", text)]
    return sentences


def _partly_rounded_away(draft: _Draft) -> Sentence:
    """What is known of the matrices of which storage left enough; their medians are of them."""
    inside = draft.summary.inside_layers
    matrices = draft.write(_count(inside, "matrices"), "inside_layers.matrices", str)
    some = draft.write(_beyond_rounding(draft.summary), "inside_layers.known", str)
    text = f"In {some} of {matrices} matrices inside layers the change is more than rounding"
    known = []
    if norm := draft.inside("relative_norm_unrounded"):
        known.append(f"{percent(norm)} of their norm")
    if directions := inside.get("equivalent_directions"):
        draft.inside("equivalent_directions")
        known.append(f"as coherent as a change along {_equally_strong(directions)}")
    if known:
        text += f", in the median {and_list(known)}"
    text += ". In most others less than a quarter of what is stored can be the update's."
    return draft.sentence("beyond_rounding", text)


def _few_values(summary: Summary) -> list[Sentence]:
    for side in ("tuned", "base"):
        draft = _Draft(summary)
        few, judged = (
            _count(summary.inside_layers, f"levels_{side}_{name}") for name in ("few", "judged")
        )
        if few and 2 * few > judged:
            draft.inside(f"levels_{side}_few")
            draft.inside(f"levels_{side}_judged")
            text = (
                f"In {_all_of(few, judged)} inside layers the {side} side has as few distinct"
                " values in a row as a copy through 8 or 4 bits, so the change may be the rounding"
                " of that copy."
            )
            return [draft.sentence("few_values", text)]
    draft = _Draft(summary)
    eight, matrices = (_count(summary.inside_layers, name) for name in ("in_8_bits", "matrices"))
    if eight and 2 * eight > matrices:
        draft.inside("in_8_bits")
        draft.inside("matrices")
        text = (
            f"In {_all_of(eight, matrices)} inside layers a side is stored in 8 bits, so the change"
            " may be the rounding of that format."
        )
        return [draft.sentence("few_values", text)]
    return []


# ------------------------------------------------------------------------------------------ context


def _context(summary: Summary, relation: object) -> list[Sentence]:
    if relation == "sibling":
        return [
            Sentence(
                "siblings",
                "Neither side was tuned from the other: this is the difference of two siblings.",
                {},
            )
        ]
    first, _, last = summary.pair.partition("..")
    if last not in KINDS:
        return []
    after = f" after {KINDS[first]}" if first in KINDS else ""
    return [
        Sentence("stage", f"According to its family file, this stage is {KINDS[last]}{after}.", {})
    ]


# ------------------------------------------------------------------------------- other explanations


def _explanations(summary: Summary) -> list[Explanation]:
    return [
        _merged_adapter(_Draft(summary)),
        _orthogonalised(_Draft(summary)),
        _quantised(_Draft(summary)),
        _always("merge", "the mean of several models differs from a base as a single model would"),
        _short_run(_Draft(summary)),
        _always(
            "novel_data",
            "data that are new to the base leave the same kind of change as narrow data",
        ),
        _weight_decay(_Draft(summary)),
    ]


def _always(code: str, reason: str) -> Explanation:
    return _explained(code, "cannot_be_excluded", reason=reason, figures={})


def _is_lost(summary: Summary) -> bool:
    """Was, or may, so much be rounded away that what is stored does not tell of the update?"""
    inside, floor = summary.inside_layers, summary.figures["floor_ratio"]
    unknown = _count(inside, "rounded_away")
    if floor is None or floor < CLEAR:
        unknown += _count(inside, "unexplained")
    return 2 * unknown >= max(1, _count(inside, "matrices"))


def _explained(
    code: str, answer: Answer, reason: str, figures: Mapping[str, Figure]
) -> Explanation:
    return Explanation(
        code=code, name=EXPLANATIONS[code], answer=answer, reason=reason, figures=figures
    )


def _merged_adapter(draft: _Draft) -> Explanation:
    summary = draft.summary
    code, side = "merged_adapter", summary.figures["short_side"]
    least, most = (summary.inside_layers.get(name) for name in ("rank_least", "rank_most"))
    ceiling = summary.figures["rank_ceiling"]
    if ceiling is not None:
        rank = draft.write(ceiling, "figures.rank_ceiling", whole)
        return _explained(
            code,
            "fits",
            reason=f"the tuned side is an adapter, of rank {rank} at most",
            figures=draft.figures,
        )
    if side is None or least is None or most is None:
        return _explained(
            code, "cannot_be_excluded", reason="the rank of the update is unknown", figures={}
        )
    directions = draft.directions()
    if _is_low_rank(summary):
        rank = whole(draft.inside("rank_most") or 0)
        return _explained(
            code,
            "fits",
            reason=f"the median update has rank {rank} at most, of {directions}",
            figures=draft.figures,
        )
    rank = draft.write(least, "inside_layers.rank_least", whole)
    if least > min(USUAL_RANK, HIGH * side):
        reason = f"the median update has rank {rank} or more, of {directions}"
        if _stands_out(summary):
            spikes = about(draft.inside("spikes") or 0)
            what = f"the {spikes} that stand out"
            if spikes == "1":
                what = "the direction that stands out"
            reason = (
                f"not alone: {reason}; with another change beside it, an adapter may have left"
                f" {what}"
            )
        return _explained(code, "no", reason=reason, figures=draft.figures)
    if least > 1:
        return _explained(
            code,
            "cannot_be_excluded",
            reason=f"only a rank below {rank} of {directions} is excluded",
            figures=draft.figures,
        )
    return _explained(code, "cannot_be_excluded", reason="its rank cannot be told", figures={})


def _orthogonalised(draft: _Draft) -> Explanation:
    summary, code = draft.summary, "orthogonalised_optimiser"
    judged, flatter = (
        _count(summary.inside_layers, name) for name in ("judged", "flatter_than_noise")
    )
    if judged and 2 * flatter >= judged:
        draft.inside("flatter_than_noise")
        draft.inside("judged")
        return _explained(
            code,
            "fits",
            reason=f"{_all_of(flatter, judged)} inside layers are flatter than noise",
            figures=draft.figures,
        )
    value = summary.figures["concentration"]
    known = choose_runs(summary.figures["short_side"], "muon", runs())
    if value is not None and known:
        most = max(run.concentration for run in known)
        bases = len({run.base for run in known})
        if value > most + LIKE_NOISE:
            size = draft.write(value, "figures.concentration", lambda x: f"{x:.2f}")
            among = (
                f"{len(known)} trainings of the lab with Muon on {counted(bases, 'base', 'bases')}"
            )
            return _explained(
                code,
                "no",
                reason=f"concentration is {size}, and at most {most:.2f} in {among}",
                figures=draft.figures,
            )
    compared = "the lab has no such training of this size"
    if known:
        compared = "the lab's trainings with Muon are like it"
    return _explained(
        code,
        "cannot_be_excluded",
        reason=f"many such steps can add up to structure, and {compared}",
        figures={},
    )


def _quantised(draft: _Draft) -> Explanation:
    summary, code, inside = draft.summary, "quantised_copy", draft.summary.inside_layers
    for side in ("tuned", "base"):
        few, judged = (_count(inside, f"levels_{side}_{name}") for name in ("few", "judged"))
        if few and 2 * few > judged:
            draft.inside(f"levels_{side}_few")
            draft.inside(f"levels_{side}_judged")
            return _explained(
                code, "fits", reason=_with_few_values(side, few, judged), figures=draft.figures
            )
    eight, matrices = (_count(inside, name) for name in ("in_8_bits", "matrices"))
    if eight and 2 * eight > matrices:
        draft.inside("in_8_bits")
        draft.inside("matrices")
        return _explained(
            code,
            "fits",
            reason=f"a side of {_all_of(eight, matrices)} is stored in 8 bits",
            figures=draft.figures,
        )
    floor = summary.figures["floor_ratio"]
    low, high = ONE_ROUNDING
    if (
        floor is not None
        and low <= floor <= high
        and 2 * _count(inside, "beyond_noise") < _count(inside, "judged")
        and not _beyond_rounding(summary)
    ):
        size = draft.write(floor, "figures.floor_ratio", lambda x: f"{x:.2f}")
        return _explained(
            code,
            "fits",
            reason=f"the change is {size} times the rounding of its storage, as of a copy",
            figures=draft.figures,
        )
    judged = _count(inside, "levels_tuned_judged")
    if not judged:
        return _explained(
            code,
            "cannot_be_excluded",
            reason="its rows are too short for their values to show it",
            figures={},
        )
    few = _count(inside, "levels_tuned_few")
    draft.figures |= {
        "inside_layers.levels_tuned_few": few,
        "inside_layers.levels_tuned_judged": judged,
    }
    reason = _with_few_values("tuned", few, judged)
    return _explained(code, "no", reason=reason, figures=draft.figures)


def _with_few_values(side: str, few: int, judged: int) -> str:
    have = "has" if judged == 1 else "have"
    return (
        f"{few:,} of {counted(judged, 'matrix', 'matrices')} of the {side} side {have} few distinct"
        " values in a row"
    )


def _short_run(draft: _Draft) -> Explanation:
    code, name = "short_run", "relative_norm_overall"
    if _told_unrounded(draft.summary):
        name = "relative_norm_overall_unrounded"
    value = draft.summary.figures[name]
    if value is None:
        return _explained(
            code, "cannot_be_excluded", reason="the size of the change is unknown", figures={}
        )
    size = draft.write(value, f"figures.{name}", percent)
    if value < SMALL:
        return _explained(
            code,
            "fits",
            reason=f"the change is only {size} of the base's norm",
            figures=draft.figures,
        )
    if value > LARGE:
        return _explained(
            code, "no", reason=f"the change is {size} of the base's norm", figures=draft.figures
        )
    reason = f"a change of {size} may be few large steps or many small ones"
    return _explained(code, "cannot_be_excluded", reason=reason, figures=draft.figures)


def _weight_decay(draft: _Draft) -> Explanation:
    summary, code = draft.summary, "weight_decay"
    value = summary.inside_layers.get("decay_cosine")
    if value is None:
        return _explained(
            code,
            "cannot_be_excluded",
            reason="the report does not say whether the weights shrank",
            figures={},
        )
    if _is_lost(summary):
        return _explained(
            code,
            "cannot_be_excluded",
            reason="decay of less than half a step of the format leaves no trace",
            figures={},
        )
    draft.inside("decay_cosine")
    cosine = f"{value:.2f}".replace("-0.00", "0.00")
    if value >= STILL:
        reason = (
            f"the change does not point against the weights (median cosine {cosine}, of decay alone"
            " -1)"
        )
        return _explained(code, "no", reason=reason, figures=draft.figures)
    alike = summary.inside_layers.get("cosine")
    if alike is None:  # although the change has a direction: the tuned side has none
        return _explained(code, "no", reason="the tuned weights are 0", figures={})
    if alike < POINTS_ELSEWHERE:
        del draft.figures["inside_layers.decay_cosine"]  # which the reason does not tell
        of_sides = draft.write(alike, "inside_layers.cosine", lambda x: f"{x:.2f}")
        reason = (
            f"base and tuned have a median cosine of {of_sides}, and decay leaves 1: replaced,"
            " exchanged or negated matrices also change against the weights"
        ).replace("-0.00", "0.00")
        return _explained(code, "no", reason=reason, figures=draft.figures)
    if value <= SHRINKS and alike >= POINTS_ALIKE:
        return _explained(
            code,
            "fits",
            reason=f"the change points against the weights (median cosine {cosine})",
            figures=draft.figures,
        )
    reason = f"a part of the change points against the weights (median cosine {cosine})"
    return _explained(code, "cannot_be_excluded", reason=reason, figures=draft.figures)
