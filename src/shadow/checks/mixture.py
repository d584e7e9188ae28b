"""`mixture TUNED A B [C ...]`: whether a model is a linear merge of others, and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shadow.checks.answer import LETTERS
from shadow.checks.old import (
    Against,
    Answer,
    Claim,
    Figure,
    Outcome,
    apart_in_words,
    largest_first,
    not_compared,
)
from shadow.quantities import share
from shadow.run.scanned import Apart
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.spectra.mixture import Fit

MIXTURE = Claim(
    "mixture",
    "a linear merge of models",
    "the tuned model is a linear merge (an average, a weighted sum, task arithmetic on a base) of"
    " all the models that are named, with the same weights everywhere or by layer, within the"
    " rounding of storage in every entry",
)
WIDE = 0.1  # an error of a weight that says little
NOTHING = 0.01  # a weight that is as good as none


@dataclass(frozen=True)
class Mixture:
    """What was measured of a tuned model and what it may be mixed of."""

    tensors: int
    formats: Sequence[str]
    """Of the tuned model."""
    has_base: bool
    fit: Fit
    lone: Sequence[Apart] = ()
    """Tensors that not all have, or that are not finite."""
    unread: Sequence[Apart] = ()


def mixture(measured: Mixture) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and the tensors that speak against it."""
    best, apart = _sum(measured), measured.fit.apart
    against = [Against(one.tensor, one.what) for one in measured.lone]
    against += [Against(name, "not this mixture", size) for name, size in apart.items()]
    texts = apart_in_words(measured.lone, "not in all of them, or not finite")
    if apart:
        texts.append(_misfit(measured, best))
    elif texts:
        texts.append(f"of the others: {best}")
    outcome, reason = _fitted(measured, best)
    if texts:
        outcome, reason = "does_not_hold", "; ".join(texts)
    if outcome == "inconclusive":
        against = [Against(one.tensor, one.what) for one in measured.unread]
    figures = {"tensors": measured.tensors, **_figures(measured.fit)}
    return Answer("mixture", outcome, reason, figures), largest_first(against)


def _fitted(measured: Mixture, best: str) -> tuple[Outcome, str]:
    """The outcome where no tensor speaks against it."""
    found, formats = measured.fit, several(measured.formats, 3)
    if not found.agrees:
        return "inconclusive", (
            f"{best} leaves more than one rounding to {formats}, and no more than rounding at every"
            " step may: that this is a merge cannot be excluded"
        )
    for letter, error in zip(LETTERS, found.errors, strict=False):
        if error > WIDE:
            reason = f"the weight of {letter} is not known, as some models are too much alike"
            return "inconclusive", reason
    where = "in every tensor" if found.per == "model" else "by layer"
    reason = f"{best} {where}, within the rounding to {formats} in every entry"
    for letter, weights in zip(LETTERS, found.weights.T, strict=False):
        if (abs(weights) < NOTHING).all():
            return "does_not_hold", f"no part of {letter}: {reason}"
    if measured.unread:
        return "inconclusive", f"{reason}, but {not_compared(measured.unread)}"
    return "holds", reason


def _figures(found: Fit) -> dict[str, Figure]:
    figures: dict[str, Figure] = {} if found.agrees else {"rest": found.rest}
    for letter, weights, error in zip(LETTERS, found.weights.T, found.errors, strict=False):
        name, least, most = f"weight_{letter.lower()}", float(weights.min()), float(weights.max())
        figures[name] = (least + most) / 2
        if found.agrees:
            figures |= {f"{name}_low": least - float(error), f"{name}_high": most + float(error)}
    return figures


def _sum(measured: Mixture) -> str:
    """`0.3 A + (0.2 to 0.7) B`, of the least and the most weight of each model."""
    texts = []
    for letter, weights in zip(LETTERS, measured.fit.weights.T, strict=False):
        least, most = (f"{round(end, 4) or 0.0:.3g}" for end in (weights.min(), weights.max()))
        texts.append(f"{least if least == most else f'({least} to {most})'} {letter}")
    total = " + ".join(texts).replace("+ -", "- ")
    return f"base + {total} of the deltas" if measured.has_base else total


def _misfit(measured: Mixture, best: str) -> str:
    """Why no weights fit."""
    apart = len(measured.fit.apart)
    if 2 * apart <= measured.tensors:
        verb = "differs" if apart == 1 else "differ"
        return f"{apart} of {counted(measured.tensors, 'tensor', 'tensors')} {verb} from {best}"
    left = f"the best weights, {best}, leave {share(measured.fit.rest)} of the change"
    return f"not a linear merge: {left}, which is more than rounding"
