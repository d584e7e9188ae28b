"""The colours of pictures, dark to light: legible for every eye, and on black and on white."""

from __future__ import annotations

CIVIDIS = (
    (0, 34, 78),
    (53, 69, 108),
    (102, 105, 112),
    (148, 142, 119),
    (200, 184, 102),
    (254, 232, 56),
)
LEVELS = 12  # that are told apart


def colour(level: float) -> str:
    """`#rrggbb`, of a level from 0 to 1."""
    place = round(level * (LEVELS - 1)) / (LEVELS - 1) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    mixed = [
        round(a + (b - a) * (place - low))
        for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
