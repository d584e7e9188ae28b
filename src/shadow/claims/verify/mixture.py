"""`mixture TUNED A B [C ...]`: whether a model is a linear merge of others, and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shadow.claims.answer import Answer, Claim, Figure
from shadow.claims.verify.scanned import Apart, apart_in_words
from shadow.claims.verify.verification import Against, largest_first
from shadow.quantities import share
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.spectra.mixture import Fit, Misfit

MIXTURE = Claim(
    "mixture",
    "a linear merge of models",
    "the tuned model is a linear merge (an average, a weighted sum, task arithmetic on a base) of"
    " all the models that are named, with the same weights everywhere or by layer, within the"
    " rounding of storage in every entry",
    null="no weights leave as little of every entry as rounding does",
)
WIDE = 0.1  # an error of a weight that says little
NOTHING = 0.01  # a weight that is as good as none
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Mixture:
    """What was measured of a tuned model and what it may be mixed of."""

    tensors: int
    formats: Sequence[str]
    """Of the tuned model."""
    has_base: bool
    fit: Fit | None
    """The weights that every entry agrees with;"""
    misfit: Misfit | None = None
    """or what the best ones leave."""
    lone: Sequence[Apart] = ()
    """Tensors that not all have."""
    off: Sequence[Apart] = ()
    """Tensors that no mixture is: of whole numbers, or with entries that are not finite."""
    unread: Sequence[Apart] = ()


def mixture(measured: Mixture) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and the tensors that speak against it."""
    against = [Against(one.tensor, one.what) for one in (*measured.lone, *measured.off)]
    figures: dict[str, Figure] = {"tensors": measured.tensors}
    found = measured.fit
    if found is None:
        assert measured.misfit is not None, "one of both"
        reason, more = _misfit(measured, measured.misfit)
        weights = dict(zip(_names(), measured.misfit.weights.tolist(), strict=False))
        figures |= {"rest": measured.misfit.rest, **weights}
        return Answer("mixture", "does_not_hold", reason, figures), largest_first(against + more)
    figures |= _figures(found)
    how = "at every step to" if found.in_steps else "to"
    where = "in every tensor" if found.per == "model" else "by layer"
    ends = zip(found.weights.min(0), found.weights.max(0), strict=True)
    reason = (
        f"{_sum(measured, ends)} {where}, within the rounding {how} {several(measured.formats, 3)}"
        " in every entry"
    )
    if against:
        texts = apart_in_words(measured.lone, "not in all of them")
        if measured.off:
            tensors = counted(len(measured.off), "tensor is", "tensors are")
            texts.append(f"{tensors} no mixture: {measured.off[0].what}")
        reason = f"{'; '.join(texts)}; of the others: {reason}"
        return Answer("mixture", "does_not_hold", reason, figures), largest_first(against)
    for letter, error in zip(LETTERS, found.errors, strict=False):
        if error > WIDE:
            reason = f"the weight of {letter} is not known, as some models are too much alike"
            return Answer("mixture", "cannot_be_told", reason, figures), ()
    for letter, weights in zip(LETTERS, found.weights.T, strict=False):
        if (abs(weights) < NOTHING).all():
            reason = f"no part of {letter}: {reason}"
            return Answer("mixture", "does_not_hold", reason, figures), ()
    if measured.unread:
        tensors = counted(len(measured.unread), "tensor is", "tensors are")
        reason = f"{reason}, but {tensors} not read: {measured.unread[0].what}"
        unread = [Against(one.tensor, one.what) for one in measured.unread]
        return Answer("mixture", "cannot_be_told", reason, figures), largest_first(unread)
    return Answer("mixture", "holds", reason, figures), ()


def _names() -> list[str]:
    return [f"weight_{letter.lower()}" for letter in LETTERS]


def _figures(found: Fit) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, weights, error in zip(_names(), found.weights.T, found.errors, strict=False):
        least, most = float(weights.min()), float(weights.max())
        figures[name] = (least + most) / 2
        figures |= {f"{name}_low": least - float(error), f"{name}_high": most + float(error)}
    return figures


def _sum(measured: Mixture, ends: Iterable[tuple[float, float]]) -> str:
    """`0.3 A + (0.2 to 0.7) B`, of the least and the most weight of each model."""
    texts = []
    for letter, pair in zip(LETTERS, ends, strict=False):
        least, most = (f"{round(value, 4) or 0.0:.3g}" for value in pair)
        texts.append(f"{least if least == most else f'({least} to {most})'} {letter}")
    total = " + ".join(texts).replace("+ -", "- ")
    return f"base + {total} of the deltas" if measured.has_base else total


def _misfit(measured: Mixture, found: Misfit) -> tuple[str, list[Against]]:
    """Why no weights fit, and the tensors of which the best leave too much."""
    against = [Against(name, "not this mixture", size) for name, size in found.apart.items()]
    for name, count in found.entries.items():
        against.append(Against(name, f"{counted(count, 'entry is', 'entries are')} another"))
    weights = _sum(measured, zip(found.weights, found.weights, strict=True))
    if found.entries and not found.apart:
        entries = counted(sum(found.entries.values()), "entry differs", "entries differ")
        return f"{entries} from {weights} by more than rounding", against
    if 0 < 2 * len(against) <= measured.tensors:
        verb = "differs" if len(against) == 1 else "differ"
        tensors = counted(measured.tensors, "tensor", "tensors")
        return f"{len(against)} of {tensors} {verb} from {weights}", against
    left = f"the best weights, {weights}, leave {share(found.rest)} of the change"
    return f"not a linear merge: {left}, which is more than rounding", against
