"""`mixture TUNED A B [C ...]`: whether a model is a merge of others, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shadow.claims.answer import Answer, Claim, Figure
from shadow.claims.verify.scanned import Apart, apart_in_words
from shadow.claims.verify.verification import Against, largest_first
from shadow.quantities import share
from shadow.text import counted, several

MIXTURE = Claim(
    "mixture",
    "a merge of models",
    "the tuned model is a linear merge (an average, task arithmetic on a base), a SLERP, a TIES or"
    " a DARE merge of all the models that are named, within the rounding of storage in every entry",
    null="no weights leave as little of every entry as rounding does",
)
WIDE = 0.2  # an interval of a weight that says little
NOTHING = 0.01  # a weight that is as good as none
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Weight:
    """The weight of one model."""

    least: float
    """Over tensors or layers."""
    most: float
    low: float
    """The ends of what it may be where it is known best: others fit as well."""
    high: float


@dataclass(frozen=True)
class Found:
    """A mixture that every entry agrees with."""

    method: Literal["average", "sum", "task", "slerp", "ties", "dare"]
    per: Literal["model", "layer", "module"]
    """What has weights of its own."""
    weights: Sequence[Weight]
    """Of linear merges and SLERP, of each model; of DARE with what it is multiplied by as well; of
    TIES none, or one where two models are equal.
    """
    t: Sequence[float] = ()
    """Of SLERP: one, or one for each layer."""
    kept: Sequence[float] = ()
    """Of TIES and DARE: the shares of entries that were kept."""
    factor: float = 1.0
    """Of TIES."""
    in_steps: bool = False
    """Whether every step was rounded to the stored format."""


@dataclass(frozen=True)
class NotFound:
    """What the weights that most tensors agree with leave."""

    weights: Sequence[float]
    rest: float
    """The norm of it over that of the change."""
    apart: Mapping[str, float]
    """By tensor that does not agree: its norm over that of the tensor."""
    entries: Mapping[str, int]
    """By tensor of which only a few entries do not agree: how many."""


@dataclass(frozen=True)
class Mixture:
    """What was measured of a tuned model and what it may be mixed of."""

    tensors: int
    formats: Sequence[str]
    """Of the tuned model."""
    has_base: bool
    found: Found | NotFound
    lone: Sequence[Apart] = ()
    """Tensors that not all have."""
    off: Sequence[Apart] = ()
    """Tensors that no mixture is: of whole numbers, or with entries that are not finite."""
    unread: Sequence[Apart] = ()


def mixture(measured: Mixture) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and the tensors that speak against it."""
    figures: dict[str, Figure] = {"tensors": measured.tensors}
    against = [Against(one.tensor, one.what) for one in (*measured.lone, *measured.off)]
    if isinstance(measured.found, NotFound):
        return _misfit(measured, measured.found, figures, against)
    found = measured.found
    figures |= _figures(found)
    reason = f"{_in_words(measured, found)}{_rounding(measured, found)}"
    if measured.lone or measured.off:
        texts = apart_in_words(measured.lone, "not in all of them")
        if measured.off:
            tensors = counted(len(measured.off), "tensor is", "tensors are")
            texts.append(f"{tensors} no mixture: {measured.off[0].what}")
        reason = f"{'; '.join(texts)}; of the others: {reason}"
        return Answer("mixture", "does_not_hold", reason, figures), largest_first(against)
    if open_weights := _unknown(found):
        reason = f"{open_weights}; other weights fit as well"
        return Answer("mixture", "cannot_be_told", reason, figures), ()
    if (idle := _idle(found)) is not None:
        reason = f"no part of {LETTERS[idle]}: {reason}"
        return Answer("mixture", "does_not_hold", reason, figures), ()
    if measured.unread:
        tensors = counted(len(measured.unread), "tensor is", "tensors are")
        reason = f"{reason}, but {tensors} not read: {measured.unread[0].what}"
        unread = [Against(one.tensor, one.what) for one in measured.unread]
        return Answer("mixture", "cannot_be_told", reason, figures), largest_first(unread)
    return Answer("mixture", "holds", reason, figures), ()


def _figures(found: Found) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for letter, weight in zip(LETTERS, found.weights, strict=False):
        figures[f"weight_{letter.lower()}"] = (weight.least + weight.most) / 2
        figures[f"weight_{letter.lower()}_low"] = weight.low
        figures[f"weight_{letter.lower()}_high"] = weight.high
    if found.t:
        figures["t_least"], figures["t_most"] = min(found.t), max(found.t)
    for number, kept in enumerate(found.kept):
        figures["kept" if found.method == "ties" else f"kept_{LETTERS[number].lower()}"] = kept
    return figures


def _in_words(measured: Mixture, found: Found) -> str:
    """`0.3 A + 0.7 B in every tensor`."""
    if found.method == "ties":
        factor = "" if abs(found.factor - 1) < 1e-3 else f", times {_number(found.factor)}"
        return f"a TIES merge: the largest {share(found.kept[0])} of each delta are kept{factor}"
    if found.method == "dare":
        dropped = several([share(1 - kept) for kept in found.kept], 4)
        about = f"base + {_sum(found.weights, digits=2)}"
        return f"a DARE merge: {dropped} of the entries are dropped, about {about} without that"
    total = _sum(found.weights)
    where = {"model": "in every tensor", "layer": "by layer", "module": "by layer and module"}
    if found.method == "slerp":
        ends = _number(min(found.t)), _number(max(found.t))
        t = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        return f"a SLERP of A and B with t = {t} {where[found.per]}"
    if measured.has_base:
        total = f"base + {total} of the deltas"
    return f"{total} {where[found.per]}"


def _sum(weights: Sequence[Weight], digits: int = 3) -> str:
    texts = []
    for letter, weight in zip(LETTERS, weights, strict=False):
        least, most = _number(weight.least, digits), _number(weight.most, digits)
        own = least if least == most else f"({least} to {most})"
        texts.append(f"{own} {letter}")
    return " + ".join(texts).replace("+ -", "- ")


def _number(value: float, digits: int = 3) -> str:
    return f"{round(value, 4) or 0.0:.{digits}g}"


def _rounding(measured: Mixture, found: Found) -> str:
    formats = several(sorted(set(measured.formats)), 3)
    how = "at every step to" if found.in_steps else "to"
    return f", within the rounding {how} {formats} in every entry"


def _unknown(found: Found) -> str:
    """`the weight of A is between 0.1 and 0.9`, where a weight is not known; otherwise empty."""
    for letter, weight in zip(LETTERS, found.weights, strict=False):
        if weight.high - weight.low <= WIDE:
            continue
        if not (abs(weight.low) < 1e3 and abs(weight.high) < 1e3):
            return f"nothing limits the weight of {letter}, as some of the models are equal"
        return (
            f"the weight of {letter} lies between {_number(weight.low)} and"
            f" {_number(weight.high)}, as the models are too much alike"
        )
    return ""


def _idle(found: Found) -> int | None:
    """The first model whose weight is 0 everywhere."""
    for number, weight in enumerate(found.weights):
        if max(abs(weight.least), abs(weight.most)) < NOTHING:
            return number
    return None


def _misfit(
    measured: Mixture, found: NotFound, figures: dict[str, Figure], against: list[Against]
) -> tuple[Answer, tuple[Against, ...]]:
    figures["rest"] = found.rest
    for letter, value in zip(LETTERS, found.weights, strict=False):
        figures[f"weight_{letter.lower()}"] = value
    against += [Against(name, "not this mixture", size) for name, size in found.apart.items()]
    against += [
        Against(name, f"{counted(count, 'entry is', 'entries are')} another")
        for name, count in found.entries.items()
    ]
    wrong = len(found.apart) + len(found.entries)
    weights = _sum([Weight(value, value, value, value) for value in found.weights])
    if measured.has_base:
        weights = f"base + {weights} of the deltas"
    if found.entries and not found.apart:
        entries = counted(sum(found.entries.values()), "entry differs", "entries differ")
        reason = f"{entries} from {weights} by more than rounding"
    elif 0 < 2 * wrong <= measured.tensors:
        verb = "differs" if wrong == 1 else "differ"
        reason = (
            f"{wrong} of {counted(measured.tensors, 'tensor', 'tensors')} {verb} from {weights}"
        )
    else:
        reason = (
            f"the best weights, {weights}, leave {share(found.rest)} of the change, which is more"
            " than rounding"
        )
    return Answer("mixture", "does_not_hold", reason, figures), largest_first(against)
