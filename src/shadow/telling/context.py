"""What the names of a pair say of it."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.claims.draft import Sentence
from shadow.summary.record import PairRecord

KINDS: Mapping[str, str] = {  # of stages that families name
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


def context(summary: PairRecord, relation: object) -> list[Sentence]:
    if relation == "sibling":
        return [
            Sentence(
                "siblings",
                "Neither side was tuned from the other: this is the difference of two siblings.",
                {},
            )
        ]
    first, _, last = summary.pair.partition("..")
    if last not in KINDS:
        return []
    after = f" after {KINDS[first]}" if first in KINDS else ""
    return [Sentence("stage", f"By its name, this stage is {KINDS[last]}{after}.", {})]
