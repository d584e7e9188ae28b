"""Summary -> Finding: the answer in words that a report gives of any pair. Pure.

Sentences are made of measured figures alone, in a fixed order: what makes the pair another one than
base and tuned (gates), size and place, structure, storage, context. Each carries a code, and the
figures that it rests on, unrounded, by their place in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to what they are worth. No name but those
of components and modules gets into a text; who shows one escapes it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.explanations import Explanation, explanations
from shadow.checks.recognised import is_copied, is_rearranged
from shadow.checks.summary import Finding, Sentence, Summary
from shadow.reports.columns import read_words
from shadow.reports.metadata import SettingsMetadata
from shadow.summary.tiers import WORDS
from shadow.telling.files import files_sentences
from shadow.telling.headline import headline
from shadow.telling.known_changes import known_changes
from shadow.telling.limits import comes_first, limits, not_compared, vectors
from shadow.telling.size import size_and_place
from shadow.telling.structure import storage, structure
from shadow.telling.told import tell

NOT_SHOWN = (
    (
        "Weights do not show whether benchmark data were in the training, what the model can do, or"
        " what anyone intended."
    ),
    (
        "Different data, optimisers, learning rates, numbers of steps, weight decay and means of"
        " models can leave the same figures."
    ),
)
ESTIMATED = (
    "Figures of singular values of large matrices are estimates from a few passes over the weights:"
    " each row has errors of its own. Their numerical ranks and exponents are unknown."
)
PUBLISHED = (
    "The mean relative norm of a tensor is {published.value:share}, more than in"
    " {published.below:count} of {published.families:count} published families."
)
STAGES: Mapping[str, str] = {  # of stages that families name
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
# what each sentence says, in the order in which they stand
CODES: Mapping[str, str] = read_words("words.yaml")["sentences"]


def finding(summary: Summary, settings: SettingsMetadata) -> Finding:
    """The finding of a summary. settings: those of its audit."""
    gates = {gate.name: gate for gate in summary.gates}
    relation = settings.get("relation")
    filtered = bool(_chosen(settings))
    first = limits(summary, gates, filtered)
    later = [] if comes_first(gates) else not_compared(summary, filtered)
    if any(sentence.code in ("nothing_compared", "identical") for sentence in first):
        told = [*first, *files_sentences(summary)]
        return Finding(headline(summary, first, filtered), told, [], list(NOT_SHOWN))
    sentences = list(first)
    others: list[Explanation] = []
    unrelated = any(sentence.code == "unrelated" for sentence in first)
    if unrelated or is_rearranged(summary):  # the difference is no change
        if summary.recognised.scaled is not None:  # by a factor below 0
            sentences += known_changes(summary)
        sentences += [size_and_place(summary, apart=True, alike=False), *_tier(summary), *later]
    else:
        place = size_and_place(summary, apart=relation == "sibling", filtered=filtered)
        sentences += [*known_changes(summary), place]
        sentences += [*_tier(summary), *vectors(summary), *later]
        copied = is_copied(summary)
        few = summary.recognised.few_entries is not None  # they bound rank and structure alike
        # a factor leaves the base's own structure, a copy that of rounding
        if not (copied or few or summary.recognised.scaled):
            sentences += structure(summary)
        if not (copied or few):
            sentences += storage(summary, gates)
            others = explanations(summary)
        sentences += _of_names(summary, relation)
        if relation != "sibling":
            sentences += _published(summary)
    sentences += files_sentences(summary)
    return Finding(headline(summary, sentences, filtered), sentences, others, list(NOT_SHOWN))


def _tier(summary: Summary) -> list[Sentence]:
    """What was left out of the measurement, or estimated."""
    tier = WORDS[summary.tier]
    found = [Sentence(tier.code, tier.unknown, {})] if tier.code else []
    return [*found, Sentence("estimated", ESTIMATED, {})] if summary.estimated else found


def _chosen(settings: SettingsMetadata) -> list[str]:
    """What the audit was restricted by: components, layers, modules."""
    chosen = settings.get("chosen")
    if not isinstance(chosen, Mapping):
        return []
    return [str(name) for name, values in chosen.items() if values]


def _of_names(summary: Summary, relation: object) -> list[Sentence]:
    """What the names of a pair say of it."""
    if relation == "sibling":
        return [
            Sentence(
                "siblings",
                "Neither side was tuned from the other: this is the difference of two siblings.",
                {},
            )
        ]
    first, _, last = summary.pair.partition("..")
    if last not in STAGES:
        return []
    after = f" after {STAGES[first]}" if first in STAGES else ""
    return [Sentence("stage", f"By its name, this stage is {STAGES[last]}{after}.", {})]


def _published(summary: Summary) -> list[Sentence]:
    """The place of the change among those of released families."""
    if summary.published is None:
        return []
    return [tell(summary, "published", PUBLISHED)]
