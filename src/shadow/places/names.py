"""`registry/names.yaml`, compiled: how model families name their tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any, TypeVar

import yaml

from shadow.errors import UsageError
from shadow.files import registry_folder
from shadow.text import closest

T = TypeVar("T")
Shape = tuple[int, ...]
Pattern = re.Pattern[str]
Roles = tuple[tuple[str, str], ...]  # (module, slot) of each
Config = Mapping[str, object]  # a JSON object as it was read: any value may be anything

SLOT = re.compile(r"\(\?P<slot(\d*)>")
SHARED = re.compile(r"\{([a-z]+)\}")  # words that patterns share

# groups of modules
ATTENTION = ("attn.", "mla.", "linear_attn.", "cross_attn.")
MLP = ("mlp.", "experts.", "shared.")
UP = ("mlp.up", "experts.up", "shared.up")
MAX_COUNT = 2**31  # of heads and sizes in a config: more is a hostile number


@dataclass(frozen=True)
class Conditions:
    """Conditions of a rule; without any, it always applies."""

    # of the config or the component's part of it; "" for none named
    model_types: frozenset[str] = frozenset()
    components: frozenset[str] = frozenset()
    # some tensor's name matches, with `#` and `@` for numbers
    beside: Pattern | None = None
    when: Mapping[str, Any] = field(default_factory=dict)  # keys of the config, and their values
    names: Pattern | None = None  # what is left of the name, without `.weight`, ends so
    parameter: bool = False  # the name does not end in `.weight`

    def hold(self, facts: Facts, component: str, rest: str) -> bool:
        """True if all conditions hold for a tensor. rest: what is left of its name."""
        if self.components and component not in self.components:
            return False
        if self.model_types:
            types = facts.model_types(component)
            if self.model_types.isdisjoint(types):
                return False
        stem = rest.removesuffix(".weight")
        if self.names is not None and not self.names.fullmatch(stem):
            return False
        if self.parameter and stem != rest:
            return False
        for key, value in self.when.items():
            section = facts.section(component)
            if section.get(key) != value:
                return False
        return self.beside is None or facts.beside(self.beside)


@dataclass(frozen=True)
class Rename:
    """A part of names that is replaced by another."""

    match: Pattern
    to: str  # as `re.sub` takes it
    conditions: Conditions
    unless: Pattern | None = None  # names that are left as they are


@dataclass(frozen=True)
class Prefix:
    """Prefixes of the names of a component."""

    match: Pattern  # is taken off; a group `stack` in it names the stack
    component: str
    conditions: Conditions
    stack: str = ""  # empty for the main one, or where match names it


@dataclass(frozen=True)
class Fused:
    """Parts of a fused module."""

    into: Roles  # (module, slot) of each part, in the order of its rows
    sizes: tuple[int | str, ...]  # of the parts in proportion: a number, or the name of a count


@dataclass(frozen=True)
class RowOrder:
    """Rule for dividing the rows of a fused module among its parts."""

    module: str  # `module/slot` of the whole
    conditions: Conditions
    into: Roles | None = None  # None: those of Fused
    sizes: tuple[int | str, ...] | None = None  # None: those of Fused
    # of rows that hold all parts each: a number from 1, the name of a count, or `each`
    groups: int | str = 1
    square: bool = False  # whether every part has as many rows as columns


class Matcher:
    """Many patterns compiled into one that matches whole texts."""

    def __init__(self, patterns: Iterable[tuple[str, str]]) -> None:
        """patterns: each with its `module/slot`."""
        texts, names = zip(*patterns, strict=True)
        self._roles = _places(names)
        alternatives = []
        for number, text in enumerate(texts):
            own = SLOT.sub(rf"(?P<s{number}_\1>", text)
            alternatives.append(f"(?P<m{number}>{own})")
        self._text = "|".join(alternatives)

    @cached_property
    def pattern(self) -> Pattern:
        """Compile at the first use: a component takes 0.1 s, and most models have one."""
        return _pattern(self._text)

    def match(self, text: str) -> tuple[str, str] | None:
        """(module, slot) of a text; None if no pattern matches all of it."""
        match = self.pattern.fullmatch(text)
        if not match:
            return None
        group = str(match.lastgroup)
        index = int(group[1:])
        module, slot = self._roles[index]
        prefix = f"s{index}_"
        for name, part in match.groupdict().items():
            if part and name.startswith(prefix):
                own = f"{slot}/{part}" if slot else part
                return module, own
        return module, slot


class NameRules:
    """`names.yaml`, compiled."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        # in the order of reports
        self.modules: tuple[str, ...] = tuple(data["modules"])
        self.components: tuple[str, ...] = tuple(data["components"])
        # the first group of each is the number of the block, or of the expert
        self.block = _pattern(data["block"])
        self.expert = _pattern(data["expert"])
        # all that match are applied, in their order
        self.renames = _conditional(Rename, data["renames"])
        # the first that matches gives the component
        self.prefixes = _conditional(Prefix, data["prefixes"])
        # what may stand before the block without naming another stack
        self.main_stacks = _pattern(data["main_stacks"])
        # by component: what is left of a name -> its module and slot
        words = data["words"]
        suffixes: dict[str, list[tuple[str, str]]] = {}
        for component, rules in data["suffixes"].items():
            own = suffixes[component] = []
            for module, texts in rules.items():
                for text in texts:
                    pattern = SHARED.sub(lambda match: words[match[1]], text)
                    own.append((pattern, module))
        anywhere = suffixes.pop("any")
        self.suffixes: dict[str, Matcher] = {}
        for name in self.components:
            own = suffixes.get(name, [])
            self.suffixes[name] = Matcher(own + anywhere)
        self.norm = _pattern(data["norm"])  # found in names of norms, in lower case
        # by `module/slot` of the whole
        self.fused: dict[str, Fused] = {}
        for name, rule in data["fused"].items():
            self.fused[name] = _rule(Fused, rule)
        # the first whose conditions hold divides the rows
        self.rows = _conditional(RowOrder, data["rows"])
        # matrices that are stored `(in, out)`, by any of these
        self.transposed = [_rule(Conditions, rule) for rule in data["transposed"]]
        # by the shape of such a tensor a model without a config is known to be of conv1d_type
        self.conv1d = _pattern(data["conv1d_witness"]["names"])
        self.conv1d_type: str = data["conv1d_witness"]["as"]
        # by component: its parts of a config; the last has the last word
        self.sections: Mapping[str, Sequence[str]] = data["sections"]
        # by name: keys of the config whose product it is, the first choice first
        self.counts: Mapping[str, Sequence[Sequence[str]]] = data["counts"]
        # model types whose head is the embedding unless the config says otherwise
        self.tied = frozenset(data["tied"])
        # types of adapters that peft has
        self.adapters = frozenset(data["adapters"])
        # keys of a config that tell of quantisation, and by its name of a method what people say
        self.quantization_keys: Sequence[str] = data["quantization_keys"]
        self.quantization_methods: Mapping[str, str] = data["quantization_methods"]
        self.gguf: Mapping[str, Any] = data["gguf"]  # read by shadow.checkpoints.gguf_files

    @cached_property
    def wholes(self) -> dict[frozenset[str], str]:
        """The modules of fused tensors by the modules of their parts."""
        named = [(name, fused.into) for name, fused in self.fused.items()]
        for order in self.rows:
            if order.into:
                named.append((order.module, order.into))
        wholes = {}
        for name, into in named:
            modules = frozenset(module for module, _ in into)
            whole, _, _ = name.partition("/")
            wholes[modules] = whole
        return wholes


def nearest_modules(word: str) -> str | None:
    """The module, or the pattern of a group such as `mlp.*`, closest to a misspelt word."""
    known: dict[str, None] = {}
    modules = name_rules().modules
    for module in modules:
        group, dot, _ = module.partition(".")
        if dot:
            pattern = f"{group}.*"
            known[pattern] = None
    known |= dict.fromkeys(modules)
    return closest(word, known)


@cache
def name_rules() -> NameRules:
    """The name rules of the package."""
    # libyaml's, where PyYAML was built with it
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    path = registry_folder() / "names.yaml"
    text = path.read_text(encoding="utf-8")
    data = yaml.load(text, fast)  # noqa: S506 - safe
    return NameRules(data)


def _places(names: Iterable[str]) -> Roles:
    """Convert `module/slot` to (module, slot)."""
    roles = []
    for name in names:
        module, _, slot = name.partition("/")
        roles.append((module, slot))
    return tuple(roles)


def _pattern(text: str) -> Pattern:
    """Compile a pattern, in which white space is ignored."""
    words = text.split()
    return re.compile("".join(words))


# how the value of a key of a rule is read; as it is, where the key is not here
VALUES: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("match", "unless", "beside"), _pattern),
    "names": lambda text: _pattern(rf"(?:.*\.)?(?:{text})"),
    **dict.fromkeys(("model_types", "components"), frozenset),
    "into": _places,
    "sizes": tuple,
}


def _rule(kind: Callable[..., T], rule: Mapping[str, Any], **more: object) -> T:
    """Make an object of a class from those keys of a rule that are its fields."""
    values = dict(more)
    for key in signature(kind).parameters:
        if key in VALUES and key in rule:
            values[key] = VALUES[key](rule[key])
        elif key in rule:
            values[key] = rule[key]
    return kind(**values)


def _conditional(kind: Callable[..., T], rules: Sequence[Mapping[str, Any]]) -> list[T]:
    """Make an object of a class from each rule, with its conditions."""
    objects = []
    for rule in rules:
        conditions = _rule(Conditions, rule)
        objects.append(_rule(kind, rule, conditions=conditions))
    return objects


class Facts:
    """Facts about a checkpoint as a whole: its config and its names."""

    def __init__(self, config: Config, texts: Iterable[str] = ()) -> None:
        self.rules = name_rules()
        self._config = config
        self._texts = list(texts)
        self._sections: dict[str, dict[str, object]] = {}
        self._beside: dict[Pattern, bool] = {}
        self.found_type = ""  # what stands for a model type where the config names none

    def section(self, component: str) -> dict[str, object]:
        """The config for a component, in which its own part takes precedence."""
        if component not in self._sections:
            merged = dict(self._config)
            for name in self.rules.sections[component]:
                inner = merged.get(name)
                if isinstance(inner, dict):
                    merged |= inner
            self._sections[component] = merged
        return self._sections[component]

    def model_types(self, component: str) -> frozenset[str]:
        """The types in the config and its part for a component; otherwise found_type."""
        types = set()
        section = self.section(component)
        for config in (self._config, section):
            name = config.get("model_type")
            if isinstance(name, str) and name:
                types.add(name)
        return frozenset(types or {self.found_type})

    def count(self, name: str, component: str) -> int | None:
        """A count of the config, such as its heads; None if it has no sensible number."""
        section = self.section(component)
        choices = self.rules.counts[name]
        for keys in choices:
            counts = []
            for key in keys:
                value = section.get(key)
                if type(value) is int and 1 <= value <= MAX_COUNT:
                    counts.append(value)
            if len(counts) == len(keys):
                return math.prod(counts)
        return None

    def beside(self, pattern: Pattern) -> bool:
        """True if a tensor's name matches, with `#` and `@` for block and expert."""
        if pattern not in self._beside:
            matches = map(pattern.search, self._texts)
            self._beside[pattern] = any(matches)
        return self._beside[pattern]


@dataclass(frozen=True)
class Reading:
    """The result of reading a name by the rules."""

    component: str
    stack: str  # of blocks; empty for the main one
    in_block: bool
    rest: str  # the name behind the block, without the number of an expert
    module: str  # empty where no suffix matches
    slot: str  # distinguishes matrices of one module in one block


def numbered(name: str, rules: NameRules) -> tuple[str, int | None, int | None]:
    """Replace the numbers of block and expert in a name by `#` and `@`; return the numbers too."""
    block = expert = None
    match = rules.block.search(name)
    if match:
        block = int(match[1])
        name = f"{name[: match.start(1)]}#{name[match.end(1) :]}"
    match = None
    if "experts." in name:
        match = rules.expert.search(name)
    if match:
        expert = int(match[1])
        name = f"{name[: match.start(1)]}@{name[match.end(1) :]}"
    return name, block, expert


def read(text: str, facts: Facts) -> Reading:
    """Read a name, with `#` and `@` for its numbers, by the rules."""
    rules = facts.rules
    for rename in rules.renames:
        if not rename.match.search(text):
            continue
        if not rename.conditions.hold(facts, "language", text):
            continue
        if rename.unless is None or not rename.unless.search(text):
            text = rename.match.sub(rename.to, text)
    component = "other"
    stack = ""
    for prefix in rules.prefixes:
        match = prefix.match.match(text)
        if match is None:
            continue
        if prefix.conditions.hold(facts, prefix.component, text):
            component = prefix.component
            groups = match.groupdict()
            stack = prefix.stack or groups.get("stack", "")
            text = text[match.end() :]
            break
    head, in_block, rest = text.partition(".#.")
    if not in_block:
        head = ""
        rest = text
    is_main = rules.main_stacks.fullmatch(head)
    if head and not is_main:
        stack = f"{stack}.{head}" if stack else head
    rest = rest.replace("experts.@.", "experts.")
    role = None
    if not rest.endswith(".bias"):
        stem = weight_stem(rest)
        role = rules.suffixes[component].match(stem)
    module, slot = role or ("", "")
    return Reading(component, stack, bool(in_block), rest, module, slot)


def weight_stem(rest: str) -> str:
    """A name without the word for its weights."""
    stem, _, last = rest.rpartition(".")
    if stem and last in ("weight", "qweight", "weight_packed"):
        return stem
    return rest


def check_component(component: str) -> None:
    """Raise UsageError for an unknown component."""
    known = name_rules().components
    if component not in known:
        hint = f"one of {', '.join(known)}"
        raise UsageError(f"no component {component!r}", hint)
