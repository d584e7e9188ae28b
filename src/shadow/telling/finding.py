"""Summary -> Finding: the answer in words that a report gives of any pair. Pure.

Sentences are made of measured figures alone, in a fixed order: what makes the pair another one than
base and tuned (gates), size and place, structure, storage, context. Each carries a code, and the
figures that it rests on, unrounded, by their place in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to what they are worth. No name but those
of components and modules gets into a text; who shows one escapes it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shadow.claims.draft import Sentence
from shadow.claims.explanations import Explanation, as_explanation, explanations
from shadow.claims.summary import Finding
from shadow.comparing.published import context_sentence
from shadow.telling.context import context
from shadow.telling.headline import headline
from shadow.telling.known_changes import few_rows, known_changes, vectors
from shadow.telling.limits import comes_first, limits, not_compared
from shadow.telling.size import size_and_place
from shadow.telling.storage import storage
from shadow.telling.structure import structure

if TYPE_CHECKING:
    from shadow.claims.summary import Summary
    from shadow.reports.metadata import SettingsMetadata

NOT_SHOWN = (
    (
        "Weights do not show whether benchmark data were in the training, what the model can do, or"
        " what anyone intended."
    ),
    "Different data, optimisers and learning rates can leave the same figures.",
)
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


def finding(summary: Summary, settings: SettingsMetadata) -> Finding:
    """The finding of a summary. settings: those of its audit."""
    gates = {gate.name: gate for gate in summary.gates}
    relation = settings.get("relation")
    filtered = bool(_chosen(settings))
    first = limits(summary, gates, filtered)
    later = [] if comes_first(gates) else not_compared(summary, filtered)
    if any(sentence.code in ("nothing_compared", "identical") for sentence in first):
        return Finding(headline(summary, first), first, [], list(NOT_SHOWN))
    sentences = list(first)
    others: list[Explanation] = []
    if any(sentence.code == "unrelated" for sentence in first):
        sentences += [size_and_place(summary, apart=True, alike=False), *later]
    else:
        sentences += [*known_changes(summary), size_and_place(summary, apart=relation == "sibling")]
        sentences += [*few_rows(summary), *vectors(summary), *later]
        if summary.recognised.scaled is None:  # otherwise its structure is the base's own
            sentences += structure(summary)
        sentences += [*storage(summary, gates), *context(summary, relation)]
        others = [as_explanation(answer) for answer in explanations(summary)]
    if (published := context_sentence(summary.published)) is not None:
        text, figures = published
        sentences.append(Sentence("published", text, figures))
    return Finding(headline(summary, sentences), sentences, others, list(NOT_SHOWN))


def _chosen(settings: SettingsMetadata) -> list[str]:
    """What the audit was restricted by: components, layers, modules."""
    chosen = settings.get("chosen")
    if not isinstance(chosen, Mapping):
        return []
    return [str(name) for name, values in chosen.items() if values]
