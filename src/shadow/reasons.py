"""Why a tensor was not measured: each reason, what it means, and whether `--strict` objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["measured", "identical", "skipped"]


@dataclass(frozen=True)
class Reason:
    """What a reason means."""

    text: str  # part of a sentence
    strict: bool = False  # whether `--strict` objects: what should have been measured was not


REASONS = {
    "only_in_base": Reason("no partner in the tuned model", strict=True),
    "only_in_tuned": Reason("no partner in the base model", strict=True),
    "tied": Reason("a head tied to its embedding, measured there"),
    "shape_differs": Reason("shapes differ", strict=True),
    "not_a_matrix": Reason("vectors: only their relative norm is taken"),
    "not_float": Reason("integers"),
    "quantized": Reason("packed or scaled weights", strict=True),
    "unknown_dtype": Reason("a dtype this version does not know", strict=True),
    "nonfinite": Reason("NaN or infinite entries", strict=True),
    "filtered": Reason(
        "left out by --layer, --module or --component, or part of a component with another base"
    ),
    "adapter": Reason("parts of an adapter that are not applied"),
    "unreadable": Reason("listed in the index, but in no shard", strict=True),
}
# the detail of a vector that has no relative norm, as its base is 0, and moved all the same
FROM_ZERO = "0 in the base, and not in the tuned model"
STRICT = frozenset(name for name, reason in REASONS.items() if reason.strict)


def meaning(name: str) -> str:
    """What a reason means; of one that this version does not know, its name."""
    return REASONS[name].text if name in REASONS else name
