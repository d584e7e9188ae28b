"""`mixture TUNED A B [C ...]`: whether a model is a linear merge of others, and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import LETTERS, Against, Answer, Check, Evidence, Figure
from shadow.errors import ShadowError
from shadow.run.scanned import Unmatched, not_compared, unmatched_reasons
from shadow.templates import Reason, Value

if TYPE_CHECKING:
    from shadow.checks.answer import Question
    from shadow.run.runtime import Runtime
    from shadow.spectra.relations.mixture import MixtureFit

WIDE = 0.1  # an error of a weight that says little
NOTHING = 0.01  # a weight that is as good as none
WORDS = {
    "model": "{sum} in every tensor, within the rounding to {formats} in every entry",
    "layer": "{sum} by layer, within the rounding to {formats} in every entry",
    "no_part": "no part of {letter}: {merge}",
    "merge_but": "{merge}, but {rest}",
    "weight_unknown": "the weight of {letter} is unknown, as some models are too similar",
    "in_steps": "{sum} leaves more than one rounding to {formats}, and no more than rounding at"
    " every step may: a merge cannot be excluded",
    "tensors_differ": "{apart:count} of {tensors:count tensor|tensors} {apart|differs|differ} from"
    " {sum}",
    "not_linear": "not a linear merge: the best weights, {sum}, leave {rest:share} of the change,"
    " which is more than rounding",
    "not_in_all": "not in all of them, or not finite",
    "others": "of the others: {sum}",
    "not_this_mixture": "not this mixture",
}


@dataclass(frozen=True)
class Mixture(Evidence):
    """Measurements of a tuned model and the models that it may be merged from. Unmatched are
    tensors that not all models have, or that are not finite.
    """

    tensors: int
    formats: Sequence[str]  # of the tuned model
    has_base: bool
    fit: MixtureFit


def judge(found: Mixture) -> Answer:
    """Judge whether every entry of every tensor agrees with the weights of a merge."""
    fit = found.fit
    of: dict[str, Value] = {"sum": _sum(found), "formats": found.formats}
    merge = Reason(fit.per, of)
    faults, doubts = unmatched_reasons(found.unmatched, Reason("not_in_all")), list[Reason]()
    unknown = [one for one, error in zip(LETTERS, fit.errors, strict=False) if error > WIDE]
    idle = [
        one
        for one, weights in zip(LETTERS, fit.weights.T, strict=False)
        if (abs(weights) < NOTHING).all()
    ]
    if fit.apart:
        few = 2 * len(fit.apart) <= found.tensors
        counts = {"apart": len(fit.apart), "tensors": found.tensors, "rest": fit.rest}
        faults.append(Reason("tensors_differ" if few else "not_linear", {**of, **counts}))
    elif faults:
        faults.append(Reason("others", of))
    elif not fit.agrees:
        doubts = [Reason("in_steps", of)]
    elif unknown:
        doubts = [Reason("weight_unknown", {"letter": unknown[0]})]
    elif idle:
        faults = [Reason("no_part", {"letter": idle[0], "merge": merge})]
    elif found.unread:
        doubts = [Reason("merge_but", {"merge": merge, "rest": not_compared(found.unread)})]
    wrong = Reason("not_this_mixture")
    return found.judged(
        {"tensors": found.tensors, **_figures(fit)},
        faults=faults,
        doubts=doubts,
        holds=[merge],
        against=[Against(name, wrong, size) for name, size in fit.apart.items()],
    )


def _figures(fit: MixtureFit) -> dict[str, Figure]:
    figures: dict[str, Figure] = {} if fit.agrees else {"rest": fit.rest}
    for letter, weights, error in zip(LETTERS, fit.weights.T, fit.errors, strict=False):
        name, least, most = f"weight_{letter.lower()}", float(weights.min()), float(weights.max())
        figures[name] = (least + most) / 2
        if fit.agrees:
            figures |= {f"{name}_low": least - float(error), f"{name}_high": most + float(error)}
    return figures


def _sum(found: Mixture) -> str:
    """Return `0.3 A + (0.2 to 0.7) B`, with the least and the largest weight of each model."""
    texts = []
    for letter, weights in zip(LETTERS, found.fit.weights.T, strict=False):
        least, most = (f"{round(end, 4) or 0.0:.3g}" for end in (weights.min(), weights.max()))
        texts.append(f"{least if least == most else f'({least} to {most})'} {letter}")
    total = " + ".join(texts).replace("+ -", "- ")
    return f"base + {total} of the deltas" if found.has_base else total


def gather(asked: Question, runtime: Runtime, scratch: Path) -> Mixture:
    """Compare the tuned model with those that it may be merged from, with all shards at hand."""
    from shadow.run.aligned import align_all, in_threads, lines_of, mixed
    from shadow.run.scan import fetch_all, require_unchanged
    from shadow.run.sides import found_all, opened_models
    from shadow.spectra.relations.mixture import fit

    has_base = asked.base is not None
    named = {**asked.named, **({"--base": asked.base} if asked.base else {})}
    tuned, *others = opened_models(found_all(named, runtime, scratch), runtime, scratch)
    names = [(name, "TUNED") for name in [*named][1:]]
    aligned = [align_all(one, tuned, both) for one, both in zip(others, names, strict=True)]
    fetch_all([tuned, *others], runtime)
    lines, unread = lines_of(aligned)
    with in_threads(lines, runtime) as each:
        found = [*each(partial(mixed, has_base=has_base), lines)]
        tensors = [one for one in found if one.sums.finite]
        if not tensors:
            raise ShadowError(f"{tuned.reference}: no tensor is finite in all of these models")
        fitted = fit(tensors, each)
    require_unchanged([tuned, *others])
    unmatched = [one for other in aligned for one in other.unmatched]
    unmatched += [
        Unmatched(one.name, "tuned", Reason("not_finite")) for one in found if not one.sums.finite
    ]
    formats, unmatched = sorted({one.stored for one in tensors}), [*dict.fromkeys(unmatched)]
    notes = [*dict.fromkeys(note for other in aligned for note in other.notes)]
    return Mixture(
        len(tensors), formats, has_base, fitted, unmatched=unmatched, unread=unread, notes=notes
    )


CHECK = Check(
    "mixture",
    "a linear merge of models",
    "the tuned model is a linear merge (an average, a weighted sum, task arithmetic on a base) of"
    " all the models that are named, with the same weights everywhere or by layer, within the"
    " rounding of storage in every entry",
    judge,
    WORDS,
    gather,
    checkpoints=("TUNED", "A", "B"),
    says="TUNED is a merge of A, B, ...",
    repeats=True,
    options=("base",),
)
