"""Places as people write them: `language.layers.0-7.attn.*`, `language.embed`, `norm`.

    pattern := [component "."] ["layers." range "."] [module]

At least one of the three; component and module may hold * and ?. What is left out is any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shadow.errors import UsageError
from shadow.places.architecture import Place
from shadow.places.names import name_rules, nearest_modules
from shadow.text import closest, short

SUCH_AS = "such as language.layers.0-7, language.embed or norm"
LAYERS = re.compile(r"layers\.(?:(\d{1,6})(?:-(\d{1,6}))?|\*)(?:\.|$)")


@dataclass(frozen=True)
class Pattern:
    """The places that a text names."""

    text: str
    component: str = "*"
    layers: tuple[int, int] | None = None
    """The first and the last; None for any, and for what is in no layer."""
    in_layers: bool = False
    """Whether only what is in a layer is meant."""
    module: str = "*"

    def covers(self, place: Place) -> bool:
        """Whether a place is among those that are meant."""
        if not fnmatchcase(place.component, self.component):
            return False
        if not fnmatchcase(place.module, self.module):
            return False
        if place.layer is None:
            return not self.in_layers
        return self.layers is None or self.layers[0] <= place.layer <= self.layers[1]


def parse_pattern(text: str) -> Pattern:
    """The pattern that a text is. Raises UsageError for a word that no model has."""
    rules = name_rules()
    if not re.fullmatch(r"[A-Za-z0-9_.*?-]{1,200}", text):
        raise UsageError(f"{short(text)} names no place", SUCH_AS)
    rest, component = text, "*"
    first, _, after = text.partition(".")
    if any(fnmatchcase(known, first) for known in rules.components):
        component, rest = first, after
    layers, in_layers = None, False
    if match := LAYERS.match(rest):
        rest, in_layers = rest[match.end() :], True
        if match[1] is not None:
            layers = int(match[1]), int(match[2] or match[1])
            if layers[1] < layers[0]:
                raise UsageError(f"{short(text)}: no layers {match[1]}-{match[2]}", SUCH_AS)
    if rest and not any(fnmatchcase(module, rest) for module in rules.modules):
        close = nearest_modules(rest) or closest(first, rules.components)
        hint = f"did you mean {close!r}?" if close else SUCH_AS
        raise UsageError(f"{short(text)}: no module {short(rest)}", hint)
    return Pattern(text, component, layers, in_layers, rest or "*")
