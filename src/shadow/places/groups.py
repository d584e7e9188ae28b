"""Groups of modules: attention and MLP."""

from __future__ import annotations

ATTENTION = ("attn.", "mla.", "linear_attn.", "cross_attn.")
MLP = ("mlp.", "experts.", "shared.")
UP = ("mlp.up", "experts.up", "shared.up")
