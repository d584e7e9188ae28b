"""Why a tensor was not measured: each reason, what it means, and whether `--strict` objects."""

from __future__ import annotations

from typing import Literal

Status = Literal["measured", "identical", "skipped"]
REASONS = (
    "only_in_base", "only_in_tuned", "tied", "shape_differs", "not_a_matrix", "not_float", "quantized",
    "unknown_dtype", "nonfinite", "filtered", "unreadable", "adapter",
)  # fmt: skip
# What should have been measured and was not.
STRICT = ("shape_differs", "nonfinite", "quantized", "unknown_dtype", "unreadable", "only_in_base", "only_in_tuned")
