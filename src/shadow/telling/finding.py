"""Summary -> Finding: the answer in words that a report gives of any pair.

Pure. Sentences are made from measured figures alone, in the order of SENTENCES: doubts that the
pair is base and tuned (gates), recognised changes, size and place, structure, storage, context.
Each has a code, and its figures, unrounded, by their keys in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to meaningful digits. Texts contain no
names except those of components and modules, and are escaped all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.explanations import explanations
from shadow.checks.summary import Finding, Summary
from shadow.reports.columns import read_words
from shadow.reports.provenance import SettingsMetadata
from shadow.telling.context import Context, SentenceGroup
from shadow.telling.headline import headline
from shadow.telling.sentences import SENTENCES

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
# what each sentence says, in the order of a finding
CODES: Mapping[str, str] = read_words("words.yaml")["sentences"]


def finding(summary: Summary, settings: SettingsMetadata) -> Finding:
    """Make the finding of a summary. settings: those of its audit."""
    context = Context.of(summary, settings)
    sentences = []
    for rule in SENTENCES:
        sentences += rule.sentences(context)
    codes = {sentence.code for sentence in sentences} - {"files"}
    return Finding(
        headline=headline(context, codes),
        sentences=sentences,
        other_explanations=explanations(summary) if context.tells(SentenceGroup.STORAGE) else [],
        not_shown=list(NOT_SHOWN),
    )
