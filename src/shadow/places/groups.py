"""Groups of modules: attention and MLP; those that read from or write to the residual stream."""

from __future__ import annotations

from typing import Literal

Direction = Literal["reading", "writing"]
READING = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "linear_attn.q", "linear_attn.k", "linear_attn.v",
    "linear_attn.z",
    "linear_attn.in", "mla.q_a", "mla.kv_a", "mlp.gate", "mlp.up", "mlp.gate_up", "shared.gate",
    "shared.up",
    "shared.gate_up",
)  # fmt: skip
WRITING = ("attn.o", "linear_attn.o", "mlp.down", "shared.down")


def direction_of(module: str) -> Direction | None:
    """How a module's matrices meet the residual stream; None if not, or for experts."""
    if module in READING:
        return "reading"
    if module in WRITING:
        return "writing"
    return None


ATTENTION = ("attn.", "mla.", "linear_attn.", "cross_attn.")
MLP = ("mlp.", "experts.", "shared.")
UP = ("mlp.up", "experts.up", "shared.up")
