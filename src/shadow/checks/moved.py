"""`moved BASE MODEL`: what moved and what did not, by component, and whether anything broke."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks import trained
from shadow.checks.answer import Answer, Check, Figure
from shadow.run.scanned import Scanned, not_compared, relative_norm, unmatched_reasons
from shadow.summary.gate_figures import LINEAGE
from shadow.summary.tables import VECTORS
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checks.answer import Question
    from shadow.checks.trained import Moved, Training
    from shadow.run.runtime import Gathering, Runtime

WORDS = {
    **trained.WORDS,
    "component_moved": "{component}: {moved/tensors:all tensor|tensors} moved"
    "[, matrices by {far:share} of their norm]",
    "component_equal": "{component}: {tensors:all tensor|tensors} did not move",
    "broken_values": "{broken:count} of {tensors:count tensor|tensors} {broken|is|are} all zeros or"
    " not finite, where the base's are not",
    "nothing_moved": "nothing moved by more than a cast",
    "component_unlike": "{component}: tensors of the same names have little in common (cosine"
    " {cosine:fixed}): another base, or parts at other numbers, which `shadow audit` finds",
    "nothing_shared": "the two share no tensor that can be compared",
}


def judge(training: Training) -> Answer:
    """Judge that something moved and that nothing broke; describe each component."""
    tensors = [tensor for tensor in training.tensors if tensor.row.entries]
    components: dict[str, list[Moved]] = {}
    for tensor in tensors:
        components.setdefault(tensor.place.component, []).append(tensor)
    described = []
    unlike = []
    matrices_unlike = 0
    for component, own in sorted(components.items()):
        moved = sum(tensor.has_moved for tensor in own)
        code = "component_moved" if moved else "component_equal"
        matrices = [tensor for tensor in own if tensor.place.module not in VECTORS]
        far = relative_norm(tensor.row for tensor in matrices if tensor.has_moved)
        of_component = {"moved": moved, "tensors": len(own)}
        described.append(Reason(code, of_component, component=component, far=far))
        matrices_unlike += sum(_is_unlike(_cosine([tensor.row])) for tensor in matrices)
        cosine = _cosine([tensor.row for tensor in matrices])
        if _is_unlike(cosine):
            unlike.append(Reason("component_unlike", component=component, cosine=cosine))
    broken = [tensor for tensor in tensors if tensor.broken]
    figures: dict[str, Figure] = {
        "tensors": len(tensors),
        "tensors_moved": sum(tensor.has_moved for tensor in tensors),
        "tensors_broken": len(broken),
        "tensors_not_read": len(training.unread),
        "components": len(components),
        "matrices_unlike": matrices_unlike,
    }
    doubts = [*unlike, *not_compared(training.unread)]
    faults = []
    if broken:
        faults.append(Reason("broken_values", broken=len(broken), tensors=len(tensors)))
    elif tensors and not figures["tensors_moved"] and not doubts:
        faults.append(Reason("nothing_moved"))
    if not tensors and not doubts:
        doubts = [Reason("nothing_shared")]
    comparable = replace(training, unmatched=())  # these are what `drop_in` is about
    return comparable.judged(
        figures,
        faults=faults,
        doubts=doubts,
        holds=described,
        against=[tensor.against for tensor in broken],
        notes=[*unmatched_reasons(training.unmatched), *(described if faults or doubts else [])],
    )


def _is_unlike(cosine: float | None) -> bool:
    return cosine is not None and cosine < LINEAGE


def _cosine(rows: Sequence[Scanned]) -> float | None:
    """The cosine of all entries of both sides together; None where one has no norm."""
    known = [row for row in rows if row.finite]
    base = math.fsum(row.base_energy for row in known)
    tuned = math.fsum(row.tuned_energy for row in known)
    if not base or not tuned:
        return None
    delta = math.fsum(row.delta_energy for row in known)
    return (base + tuned - delta) / (2 * math.sqrt(base) * math.sqrt(tuned))


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Training]:
    """Compare every tensor of a base with the model's, as `trained` does."""
    tuned = replace(question, check=trained.CHECK, moved=("*",))
    return (yield from trained.gather(tuned, runtime, scratch, with_steps=False))


CHECK = Check(
    "moved",
    "what moved, by component",
    "at least one tensor of the model differs from the base's by more than a cast, none has become"
    " all zeros or not finite, and no component has little in common with the base's",
    judge,
    WORDS,
    gather,
    checkpoints=("BASE", "MODEL"),
    says="something moved, and nothing broke",
)
