"""The modules of an adapter that reach its base: peft finds modules by name, not place, and those
alone that the config targets.

Names in files are not always those of modules: transformers moves the language model of a wrapper,
and adds the first word of a model that was saved without its head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property

from shadow.checkpoints.formats import owner_of
from shadow.checkpoints.safetensors_files import Tensors
from shadow.places.architecture import Place
from shadow.places.names import Config
from shadow.text import short

MOVED = "model.language_model."  # where wrappers have their language model, since transformers 5
WITHIN = "language_model.model."  # where older files have it
WRAPPERS = ("_orig_mod", "language_model", "module")  # first words that no loader adds or drops
# files of Meta and Mistral, whose modules have other names in transformers
ORIGINAL = re.compile(r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.weight")
# modules that loaders rename or stack, and a head, which files lack where it is the embedding
CONVERTED = ("experts", "router", "shared", "head")


LOOKED_AT = 64  # modules from whose names a prefix is guessed
# of a pattern: a group that is repeated takes time without bound on names that do not match
REPEATED_GROUP = re.compile(r"\)[*+{]")
MAX_PATTERN = 2000  # characters; unsloth writes some hundred
LAYER = r".*?\.[^.]*\.(?P<number>\d+)\."  # the first number in a name, as peft reads it


class Targets:
    """The modules that the config of an adapter names, as peft matches them. What cannot be
    evaluated safely excludes nothing.
    """

    def __init__(self, config: Config) -> None:
        self._targets = _names(config.get("target_modules"))
        self._excluded = _names(config.get("exclude_modules"))
        saved = _names(config.get("modules_to_save"))
        self._saved = saved if isinstance(saved, list) else []
        layers = config.get("layers_to_transform")
        if isinstance(layers, int):
            layers = [layers]
        self._layers = layers
        self._stacked = []
        for parameter in _names(config.get("target_parameters")) or ():
            module, _, _ = parameter.rpartition(".")
            self._stacked.append(module)
        stacks = _names(config.get("layers_pattern"))
        self._stacks = [stacks] if isinstance(stacks, str) else stacks

    def has(self, module: str) -> bool:
        """True if peft adapts a module of this name, if the base has it."""
        if self._excluded and _matches(self._excluded, module, unknown=False):
            return False
        if any(f".{name}." in f".{module}." for name in self._saved):
            return False
        if any(f".{name}." in f".{module}." for name in self._stacked):
            return True
        if not self._targets or self._targets == "all-linear":
            return True
        if not _matches(self._targets, module, unknown=True):
            return False
        if isinstance(self._targets, str) or module in self._targets:
            return True
        if not self._layers:
            return True
        if not isinstance(self._layers, list):
            return False
        return self._number(module) in self._layers

    def _number(self, module: str) -> int | None:
        patterns = []
        for stack in self._stacks or ():
            patterns.append(rf"(?:.*?\.)?{re.escape(stack)}\.(?P<number>\d+)\.")
        for pattern in patterns or [LAYER]:
            match = re.match(pattern, module)
            if match:
                return int(match["number"])
        return None


def _names(value: object) -> str | list[str] | None:
    """A pattern, or names; None where a config has neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [name for name in value if isinstance(name, str)]
    return None


def _matches(names: str | list[str], module: str, *, unknown: bool) -> bool:
    """True if a pattern or a list of ends matches. unknown: for what is not evaluated."""
    if not isinstance(names, str):
        return any(f".{module}".endswith(f".{name}") for name in names)
    if len(names) > MAX_PATTERN or REPEATED_GROUP.search(names):
        return unknown
    try:
        return re.fullmatch(names, module) is not None
    except (re.error, OverflowError):
        return unknown


def is_of_pattern(key: str, module: str) -> bool:
    """True if peft takes a key of `rank_pattern` or `alpha_pattern` for a module, or may."""
    return _matches(rf"(.*\.)?({key})", module, unknown=True)


class BaseNames:
    """The names of a base's modules, as an adapter may have them."""

    def __init__(self, tensors: Tensors, components: Collection[str]) -> None:
        known = {*components} - {"other"}
        self._is_wrapped = len(known) > 1
        # of other programs, in whose files modules have other names
        self._is_foreign = False
        self._forms: dict[str, str] = {}
        for name, info in tensors.items():
            if ORIGINAL.fullmatch(name) or info.shard.endswith(".gguf"):
                self._is_foreign = True
            module, _ = owner_of(name)
            for form in self._forms_of(module):
                self._forms[form] = module
        self._without_head = set()
        for form in self._forms:
            first, _, rest = form.partition(".")
            if first not in WRAPPERS:
                self._without_head.add(rest)

    def prefix(self, modules: Collection[str]) -> tuple[str, str] | None:
        """The first words of most of these modules, and with which others they would have a
        name of the base, both for a sentence; None if none would.
        """
        pairs = Counter[tuple[str, str]]()
        for module in sorted(modules)[:LOOKED_AT]:
            for dot in _dots(module):
                own = module[:dot]
                other = self._by_end.get(module[dot:])
                if other is not None:
                    pairs[own, other] += 1
                    break
        for pair, _ in pairs.most_common(1):
            own, other = [short(words) if words else "no prefix" for words in pair]
            return own, other
        return None

    @cached_property
    def _by_end(self) -> dict[str, str]:
        """The first words of a form by the words that follow."""
        by_end: dict[str, str] = {}
        for form in self._forms:
            for dot in _dots(form):
                end = form[dot:]
                by_end.setdefault(end, form[:dot])
        return by_end

    def remedy(self, module: str) -> str:
        """A hint at other first words that give a module a name of the base; empty if none do."""
        prefix = self.prefix([module])
        if prefix is None:
            return ""
        own, other = prefix
        return f"with {other} for {own} the name is one of the base"

    def owner(self, name: str) -> tuple[str, str] | None:
        """The module that a tensor of an adapter is of: its name there, and in the base."""
        while name:
            name = name.rpartition(".")[0]
            if name in self._forms:
                return name, self._forms[name]
        return None

    def _forms_of(self, module: str) -> Iterator[str]:
        """Yield the names of a module of a file when it is loaded."""
        yield module
        if module.startswith(WITHIN):
            yield MOVED + module.removeprefix(WITHIN)
        elif module.startswith(MOVED):
            yield WITHIN + module.removeprefix(MOVED)
        elif module.startswith("model.") and self._is_wrapped:
            yield MOVED + module.removeprefix("model.")

    def has(self, module: str, place: Place) -> bool:
        """True if a module of an adapter is one of the base. A place decides where names
        change between files and modules.
        """
        is_converted = place.module.partition(".")[0] in CONVERTED
        if place.component != "language" or is_converted or self._is_foreign:
            return True
        if module in self._forms or module in self._without_head:
            return True
        first, _, rest = module.partition(".")
        if first in WRAPPERS or rest.startswith(f"{first}."):
            return False
        # of a model that was saved without its first word
        is_bare = not rest.startswith(("model.", "transformer."))
        return is_bare and rest in self._forms


def _dots(name: str) -> Iterator[int]:
    """Yield the positions at which a name begins and words of it end, but for the last word."""
    yield 0
    for dot in re.finditer(r"\.(?=.*\d.*\.)", name):
        yield dot.end()
