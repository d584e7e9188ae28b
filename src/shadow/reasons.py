"""Reasons why a tensor was not measured, with their meanings and whether `--strict` objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["measured", "identical", "skipped"]


@dataclass(frozen=True)
class SkipReason:
    """The meaning of a reason."""

    text: str  # part of a sentence
    strict: bool = False  # whether `--strict` objects: what should have been measured was not


REASONS = {
    "only_in_base": SkipReason("not in the tuned model, or not read there", strict=True),
    "only_in_tuned": SkipReason("not in the base, or not read there", strict=True),
    "unnamed": SkipReason("of modules of an adapter whose names the base lacks", strict=True),
    "untargeted": SkipReason("of modules that the adapter's config does not target", strict=True),
    "tied": SkipReason("a head tied to the embedding, which is measured"),
    "shape_differs": SkipReason(
        "of another shape in the base than in the tuned model", strict=True
    ),
    "not_a_matrix": SkipReason("vectors, of which only the relative norm is measured"),
    "not_float": SkipReason("integers"),
    "quantized": SkipReason("packed weights, or weights with separate scales", strict=True),
    "unknown_dtype": SkipReason("of a dtype that this version does not know", strict=True),
    "nonfinite": SkipReason("NaN or infinite entries", strict=True),
    "out_of_range": SkipReason("entries whose squares float64 does not hold", strict=True),
    "filtered": SkipReason(
        "left out by --layer, --module or --component, or part of a component with another base"
    ),
    "adapter": SkipReason("tensors of an adapter that are not applied"),
    "unreadable": SkipReason("listed in the index but missing from every shard", strict=True),
}
# What makes a report one that nobody should build on: sentences of the finding, and rules.
BROKEN = ("nonfinite", "all_zero", "empty", "nothing_compared", "unrelated", "part_shared")
# reasons of tensors that one side alone has, and which
ONE_SIDED = {
    "only_in_base": "base",
    "only_in_tuned": "tuned",
    "unnamed": "tuned",
    "untargeted": "tuned",
}
OUT_OF_REACH = ("unnamed", "untargeted")  # reasons of modules that peft leaves out
STRICT = frozenset(name for name, reason in REASONS.items() if reason.strict)


def meaning(name: str) -> str:
    """The meaning of a reason; for an unknown one, its name."""
    return REASONS[name].text if name in REASONS else name
