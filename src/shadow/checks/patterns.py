"""Places as people write them: `language.layers.0-7.attn.*`, `language.embed`, `norm`.

    pattern := [component "."] ["layers" ["." range] "."] [module | "experts." [which "."] range]

At least one of the three, and the layers may follow the module, as in rules; component and module
may hold * and ?. What is left out matches anything, and `attn` is `attn.*`. The last range is of
experts, stacked in one tensor or not. Any other word may be the beginning of tensors' names, such
as `vision_tower`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from shadow.errors import UsageError
from shadow.places.architecture import Place, place_tensors
from shadow.places.names import name_rules, nearest_modules
from shadow.text import VERY_LIKE, closest, in_ranges, short

NEEDS_PATTERN = "needs --moved PATTERN or --frozen PATTERN"
SUCH_AS = "such as language.layers.0-7, language.embed or norm"
EXPERTS = re.compile(r"experts(?:\.([a-z_*?]+))?\.(\d{1,6})(?:-(\d{1,6}))?")
LAYERS = re.compile(r"layers?(?:\.(\d{1,6})(?:-(\d{1,6}))?(?![^.])|\.\*(?![^.])|(?![^.]))\.?")
LAYERS_LAST = re.compile(r"\.(layers?\.\d{1,6}(?:-\d{1,6})?)$")


@dataclass(frozen=True)
class Pattern:
    """The places that a text matches."""

    text: str
    component: str = "*"
    layers: tuple[int, int] | None = None
    """The first and the last; None for any, and for what is in no layer."""
    in_layers: bool = False  # whether only what is in a layer is meant
    module: str = "*"
    experts: tuple[int, int] | None = None
    """The first and the last; None for all, and for what is no expert's."""
    fault: UsageError | None = field(default=None, compare=False)
    """Why the text is none but may be the beginning of names."""
    named: frozenset[Place] | None = None  # the places of the tensors whose names begin so

    def covers(self, place: Place) -> bool:
        """True if a place matches."""
        if self.named is not None:
            return place in self.named
        if not fnmatchcase(place.component, self.component):
            return False
        if not fnmatchcase(place.module, self.module):
            return False
        if self.experts is not None:
            first, last = self.experts
            if place.expert is None or not first <= place.expert <= last:
                return False
        if place.layer is None:
            return not self.in_layers
        return self.layers is None or self.layers[0] <= place.layer <= self.layers[1]

    def beyond(self, places: Iterable[Place]) -> str:
        """The layers or experts of a range that lie above all of a model: `layers.4-7`, or nothing.
        Stacks of an unknown number of experts have none.
        """
        own = [place for place in places if fnmatchcase(place.component, self.component)]
        layers = [place.layer for place in own if place.layer is not None]
        experts = [place.expert for place in own if place.expert is not None]
        above = _above("layers", self.layers, max(layers, default=-1))
        if not above and experts:
            above = _above("experts", self.experts, max(experts))
        return above

    def may_cover(self, place: Place) -> bool:
        """True if a place, or one expert of a stack that is not split, matches."""
        pattern = self if place.expert is not None else replace(self, experts=None)
        return pattern.covers(place)


def _above(kind: str, wanted: tuple[int, int] | None, most: int) -> str:
    """The numbers of a range that lie above the largest one of a model, in words."""
    if wanted is None or wanted[1] <= most:
        return ""
    first = max(most + 1, wanted[0])
    if first == wanted[1]:
        return f"{kind}.{first}"
    return f"{kind}.{first}-{wanted[1]}"


class Should(StrEnum):
    """Requirement on a tensor."""

    MOVE = "move"
    STAY = "stay"
    EITHER = "either"
    """No pattern names it."""

    @classmethod
    def first(cls, requests: Collection[Should]) -> Should:
        """Combine the requests for the parts of a tensor."""
        return next(should for should in cls if should in requests)


@dataclass(frozen=True)
class Patterns:
    """Patterns of tensors and what should have become of them. The first that matches counts."""

    each: Sequence[tuple[Should, Pattern]]

    @classmethod
    def of(cls, moved: Sequence[str], frozen: Sequence[str]) -> Patterns:
        """Make the patterns of both options; what both match is frozen. Raises UsageError."""
        each = [(Should.STAY, pattern_or_name(text)) for text in frozen]
        each += [(Should.MOVE, pattern_or_name(text)) for text in moved]
        return cls(each)

    def at(self, place: Place) -> set[Should]:
        """The requests for all that may lie at a place: the parts of a fused module that is not
        split, and the experts of a stack of unknown size.
        """
        experts = {place.expert}
        if place.expert is None and place.module.startswith("experts."):
            for _, pattern in self.each:
                if pattern.experts:
                    first, last = pattern.experts
                    experts |= {first, last + 1}
        requests = set()
        for expert in experts:
            whole = replace(place, expert=expert)
            requests |= {self._of(whole, part) for part in _parts(whole)}
        return requests

    def _of(self, *places: Place) -> Should:
        """The request for a matrix, by its own place and by that of the module it belongs to."""
        owners = [replace(place, module=place.slot) for place in places if place.module == "bias"]
        for should, pattern in self.each:
            is_covered = any(map(pattern.covers, places))
            # a frozen module has its bias frozen too; of one that moves, a bias may stay
            if should is Should.STAY:
                is_covered |= any(map(pattern.covers, owners))
            if is_covered:
                return should
        return Should.EITHER

    def of_model(self, names: Mapping[str, Collection[Place]]) -> Patterns:
        """Resolve the patterns for a model with these tensors at these places. Raises UsageError
        for a pattern that matches none of them.
        """
        places = {place for each in names.values() for place in each}
        every = set(places)
        for place in places:
            every.update(_parts(place))
        each = []
        for should, pattern in self.each:
            if pattern.fault is not None:
                begun = pattern.text.rstrip(".") + "."
                own: set[Place] = set()
                for name, of_tensor in names.items():
                    if f"{name}.".startswith(begun):
                        own.update(of_tensor)
                if not own:
                    fault = f"{pattern.fault.message}, and no tensor's name begins with it"
                    raise UsageError(fault, pattern.fault.hint)
                pattern = replace(pattern, named=frozenset(own))
            elif (beyond := pattern.beyond(every)) or not any(map(pattern.may_cover, every)):
                fault = f"no tensor lies at {beyond or pattern.text}"
                raise UsageError(fault, f"there are {_contents(every)}")
            each.append((should, pattern))
        return Patterns(each)


def _parts(place: Place) -> list[Place]:
    """The places of the parts of a fused module that is not split; otherwise the place."""
    modules = name_rules().fused
    fused = modules.get(f"{place.module}/{place.slot}") or modules.get(place.module)
    if not fused:
        return [place]
    return [replace(place, module=name) for name, _ in fused.into]


def _contents(places: Collection[Place]) -> str:
    """List the components, layers, experts and modules of a model, in words."""
    layers = in_ranges(place.layer for place in places if place.layer is not None)
    experts = in_ranges(place.expert for place in places if place.expert is not None)
    parts = [
        ", ".join(sorted({place.component for place in places})),
        layers and f"layers.{layers}",
        experts and f"experts.{experts}",
        ", ".join(sorted({place.module for place in places})),
    ]
    return "; ".join(filter(None, parts))


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern. Raises UsageError for a word that no model has."""
    rules = name_rules()
    if not re.fullmatch(r"[A-Za-z0-9_.*?-]{1,200}", text):
        raise UsageError(f"{short(text)} names no place", SUCH_AS)
    rest = text
    component = "*"
    first, _, after = text.partition(".")
    if any(fnmatchcase(known, first) for known in rules.components):
        component = first
        rest = after
    if last := LAYERS_LAST.search(rest):
        rest = f"{last[1]}.{rest[: last.start()]}"
    layers = None
    match = LAYERS.match(rest)
    in_layers = match is not None
    if match:
        rest = rest[match.end() :]
        if match[1] is not None:
            layers = (int(match[1]), int(match[2] or match[1]))
            if layers[1] < layers[0]:
                raise UsageError(f"{short(text)}: no layers {match[1]}-{match[2]}", SUCH_AS)
    experts = None
    if match := EXPERTS.fullmatch(rest):
        rest = f"experts.{match[1] or '*'}"
        experts = (int(match[2]), int(match[3] or match[2]))
        if experts[1] < experts[0]:
            raise UsageError(f"{short(text)}: no experts {match[2]}-{match[3]}", SUCH_AS)
    if any(module.startswith(f"{rest}.") for module in rules.modules):
        rest = f"{rest}.*"
    if rest and not any(fnmatchcase(module, rest) for module in rules.modules):
        close = _of_tensor(text) or closest(rest, ("layers",), VERY_LIKE) or nearest_modules(rest)
        close = close or (closest(first, rules.components) if component == "*" else None)
        hint = f"did you mean {close!r}?" if close else SUCH_AS
        raise UsageError(f"{short(text)}: no module {short(rest)}", hint)
    return Pattern(text, component, layers, in_layers, rest or "*", experts)


def pattern_or_name(text: str) -> Pattern:
    """Parse a pattern, or the beginning of names if it has a point or an underscore. Raises
    UsageError.
    """
    try:
        return parse_pattern(text)
    except UsageError as fault:
        if not re.fullmatch(r"\w+[._][\w.]*", text):
            raise
        return Pattern(text, fault=fault)


def _of_tensor(text: str) -> str | None:
    """The module of a tensor's name in most models: attn.q for `q_proj`."""
    for before in ("", "model.layers.0.mlp.", "model.layers.0.self_attn."):
        name = f"{before}{text}.weight"
        place = place_tensors({name: (1, 1)}, {})[name][0].place
        if "other" not in (place.component, place.module):
            return place.module
    return None
