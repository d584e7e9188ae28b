"""Summary -> Finding: the answer in words that a report gives of any pair. Pure.

Sentences are made of measured figures alone, in a fixed order: what makes the pair another one than
base and tuned (gates), size and place, structure, storage, context. Each carries a code, and the
figures that it rests on, unrounded, by their place in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to what they are worth. No name but those
of components and modules gets into a text; who shows one escapes it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.explanations import Explanation, explanations, is_copied, is_rearranged
from shadow.checks.summary import Finding, Sentence, Summary
from shadow.reports.columns import read_words
from shadow.reports.metadata import SettingsMetadata
from shadow.summary.tiers import WORDS as TIERS
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
WORDS = {
    "estimated": "Figures of singular values of large matrices are estimates from a few passes over"
    " the weights: each row has errors of its own. Their numerical ranks and exponents are"
    " unknown.",
    "siblings": "Neither side was tuned from the other: this is the difference of two siblings.",
    "stage": "By its name, this stage is {last}[ after {first}].",
    "published": "The mean relative norm of a tensor is {published.value:share}, more than in"
    " {published.below:count} of {published.families:count} published families.",
}
# of stages that families name
STAGES = (
    "sft", "dpo", "mpo", "rl", "rlvr", "instruct", "chat", "thinking", "reasoning", "distill",
)  # fmt: skip
# what each sentence says, in the order in which they stand
CODES: Mapping[str, str] = read_words("words.yaml")["sentences"]


def finding(summary: Summary, settings: SettingsMetadata) -> Finding:
    """The finding of a summary. settings: those of its audit."""
    gates = {gate.name: gate for gate in summary.gates}
    are_siblings, chosen = settings.get("relation") == "sibling", settings.get("chosen")
    filtered = isinstance(chosen, Mapping) and any(chosen.values())
    sentences = limits(summary, gates, filtered)
    codes = {sentence.code for sentence in sentences}
    others: list[Explanation] = []
    if not codes & {"nothing_compared", "identical"}:
        later = [] if comes_first(gates) else not_compared(summary, filtered)
        if "unrelated" in codes or is_rearranged(summary):  # the difference is no change
            if summary.recognised.scaled is not None:  # by a factor below 0
                sentences += known_changes(summary)
            size = size_and_place(summary, apart=True, alike=False)
            sentences += [size, *_tier(summary), *later]
        else:
            size = size_and_place(summary, apart=are_siblings, filtered=filtered)
            sentences += [*known_changes(summary), size, *_tier(summary), *vectors(summary), *later]
            if not _is_explained(summary):
                # a factor leaves the base's own structure
                is_scaled = summary.recognised.scaled is not None
                sentences += [] if is_scaled else structure(summary)
                sentences += storage(summary, gates)
                others = explanations(summary)
            sentences += _beside(summary, are_siblings)
    line = headline(summary, sentences, filtered)
    return Finding(line, [*sentences, *files_sentences(summary)], others, list(NOT_SHOWN))


def _is_explained(summary: Summary) -> bool:
    """Whether structure is that of rounding, or bounded by how few entries changed."""
    is_few = summary.recognised.few_entries is not None
    return is_few or is_copied(summary)


def _tier(summary: Summary) -> list[Sentence]:
    """What was left out of the measurement, or estimated."""
    tier = TIERS[summary.tier]
    found = [Sentence(tier.code, tier.unknown, {})] if tier.code else []
    if summary.estimated:
        found.append(tell(summary, "estimated", WORDS["estimated"]))
    return found


def _beside(summary: Summary, are_siblings: bool) -> list[Sentence]:
    """What the names of a pair say of it, and its place among released families."""
    if are_siblings:
        return [tell(summary, "siblings", WORDS["siblings"])]
    first, _, last = summary.pair.partition("..")
    after = first if first in STAGES else None
    stage = tell(summary, "stage", WORDS["stage"], first=after, last=last)
    place = [tell(summary, "published", WORDS["published"])] if summary.published else []
    return [*([stage] if last in STAGES else []), *place]
