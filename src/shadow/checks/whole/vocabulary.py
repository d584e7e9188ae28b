"""`whole`: the embedding of the text's tokens and the head over them, among all embeddings and
heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadow.checkpoints.expected import Expected
    from shadow.checkpoints.opening import Checkpoint

# the last words of names that no model has for anything but the tokens of its text
WELL_KNOWN = frozenset(
    ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared",
     "embeddings", "tokens_embed")
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Names of tensors with a row a token."""

    embeddings: Sequence[str] = ()  # that look up the text's tokens; equal ones if several
    heads: Sequence[str] = ()
    padded: Sequence[str] = ()
    """Every embedding and head, also of positions, whose rows may be zero by design."""
    rows: int = 0  # of the embedding; 0 where it is not known or the model has none
    sees: bool = False  # whether the model has other components than language


def find_vocabulary(checkpoint: Checkpoint, expected: Expected | None) -> Vocabulary:
    """Find the vocabulary as the loader names it; without its answer, by names that are well known.

    expected: None where no loader was asked.
    """
    from shadow.places.architecture import place_tensors

    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, checkpoint.config)
    places = {name: own[0].place for name, own in parts.items()}
    ends = {
        name: place
        for name, place in places.items()
        if place.module in ("embed", "head", "position") and place.component == "language"
        if place.layer is None and len(shapes[name]) == 2 and 0 not in shapes[name]
    }
    if expected is not None and expected.vocabulary is not None:
        embeddings, heads = expected.inputs, expected.outputs
    else:
        plain = {
            name: place.module
            for name, place in ends.items()
            if not place.slot and name.endswith(".weight")
        }
        embeddings = [
            name
            for name, module in plain.items()
            if module == "embed" and name.split(".")[-2] in WELL_KNOWN
        ]
        if len({shapes[name] for name in embeddings}) > 1:
            embeddings = []
        heads = [
            name
            for name, module in plain.items()
            if module == "head" and embeddings and shapes[name] == shapes[embeddings[0]]
        ]
    tables = {*embeddings, *heads} & {name for name, shape in shapes.items() if len(shape) == 2}
    embeddings = [name for name in embeddings if name in tables]
    heads = [name for name in heads if name in tables]
    sees = any(place.component not in ("language", "other") for place in places.values())
    rows = min((shapes[name][0] for name in embeddings), default=0)
    padded = {*ends, *(expected.tables if expected else ())}
    return Vocabulary(embeddings, heads, sorted(padded), rows, sees)
