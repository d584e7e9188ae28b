"""`registry/names.yaml`: what varies between model families, compiled, and how it reads the name of
a tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import yaml

from shadow.errors import UsageError
from shadow.files import registry_folder
from shadow.text import closest

MAX_COUNT = 2**31  # of heads and sizes in a config: more is a hostile number


@dataclass(frozen=True)
class Conditions:
    """When a rule applies; what is empty always holds."""

    model_types: frozenset[str] = frozenset()
    components: frozenset[str] = frozenset()
    beside: re.Pattern[str] | None = None
    when: Mapping[str, Any] = field(default_factory=dict)
    names: re.Pattern[str] | None = None
    parameter: bool = False

    def hold(self, facts: Facts, component: str, rest: str) -> bool:
        stem = rest.removesuffix(".weight")
        return (
            (not self.components or component in self.components)
            and (not self.model_types or bool(self.model_types & facts.model_types(component)))
            and (self.names is None or self.names.fullmatch(stem) is not None)
            and not (self.parameter and rest.endswith(".weight"))
            and all(facts.section(component).get(key) == value for key, value in self.when.items())
            and (self.beside is None or facts.beside(self.beside))
        )


@dataclass(frozen=True)
class Rename:
    match: re.Pattern[str]
    to: str
    unless: re.Pattern[str] | None
    conditions: Conditions


@dataclass(frozen=True)
class Prefix:
    match: re.Pattern[str]
    component: str
    stack: str
    conditions: Conditions


@dataclass(frozen=True)
class Fused:
    """The parts of a fused module, each `(module, slot)`, and their sizes: numbers, or names of
    counts.
    """

    into: tuple[tuple[str, str], ...]
    sizes: tuple[int | str, ...]


@dataclass(frozen=True)
class RowOrder:
    """How the rows of a fused module are divided among its parts.

    groups is a number, a count or `each`. square: every part has as many rows as columns.
    """

    module: str
    conditions: Conditions
    into: tuple[tuple[str, str], ...] | None
    sizes: tuple[int | str, ...] | None
    groups: int | str
    square: bool


@dataclass(frozen=True)
class Matcher:
    """Many patterns as one: which of them matches the whole of a text."""

    text: str
    roles: tuple[tuple[str, str], ...]  # the (module, slot) of each

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Compiled when it is first asked for: a tenth of a second for each component, and most
        models have one.
        """
        return _pattern(self.text)

    def match(self, text: str) -> tuple[str, str] | None:
        if not (match := self.pattern.fullmatch(text)):
            return None
        index = int(str(match.lastgroup)[1:])
        module, slot = self.roles[index]
        more = next(
            (
                text
                for name, text in match.groupdict().items()
                if text and name.startswith(f"s{index}_")
            ),
            None,
        )
        return module, "/".join(filter(None, (slot, more)))


@dataclass(frozen=True)
class Packed:
    """Names that only a module of packed integers has; integers: if a tensor of an integer type is
    there.
    """

    format: str
    names: re.Pattern[str]
    integers: bool


@dataclass(frozen=True)
class NameRules:
    """`names.yaml`, compiled."""

    modules: tuple[str, ...]
    components: tuple[str, ...]
    block: re.Pattern[str]
    expert: re.Pattern[str]
    renames: tuple[Rename, ...]
    prefixes: tuple[Prefix, ...]
    main_stacks: re.Pattern[str]
    suffixes: Mapping[str, Matcher]
    norm: re.Pattern[str]
    fused: Mapping[str, Fused]
    rows: tuple[RowOrder, ...]
    transposed: tuple[Conditions, ...]
    stacked: Conditions
    stacked_count: str
    conv1d: re.Pattern[str]
    conv1d_type: str
    sections: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[tuple[str, ...], ...]]
    tied: frozenset[str]
    packed: tuple[Packed, ...]
    quantization_keys: tuple[str, ...]
    quantization_methods: Mapping[str, str]

    @cached_property
    def wholes(self) -> dict[frozenset[str], str]:
        """The module of a fused tensor by the modules of its parts."""
        named = [(name, fused.into) for name, fused in self.fused.items()]
        named += [(order.module, order.into) for order in self.rows if order.into]
        return {
            frozenset(module for module, _ in into): name.partition("/")[0] for name, into in named
        }


def nearest_modules(word: str) -> str | None:
    """The module, or the pattern of all modules of a group such as `mlp.*`, that a misspelt word is
    most like.
    """
    modules = name_rules().modules
    groups = [f"{module.partition('.')[0]}.*" for module in modules if "." in module]
    return closest(word, dict.fromkeys([*groups, *modules]))


def is_of_layers(word: str) -> bool:
    """Is a word that names no module or component meant for layers, as `layer.3` is?"""
    return re.fullmatch(r"layers?([.*\d].*)?", word) is not None


@cache
def name_rules() -> NameRules:
    """The shipped name rules."""
    fast = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # libyaml's, where PyYAML was built with it
    data = yaml.load((registry_folder() / "names.yaml").read_text(encoding="utf-8"), fast)  # noqa: S506 - safe
    words: dict[str, str] = data["words"]
    anywhere = _patterns(data["suffixes"]["any"], words)
    of_component = {
        component: _patterns(rules, words)
        for component, rules in data["suffixes"].items()
        if component != "any"
    }
    return NameRules(
        modules=tuple(data["modules"]),
        components=tuple(data["components"]),
        block=_pattern(data["block"]),
        expert=_pattern(data["expert"]),
        renames=tuple(
            Rename(
                _pattern(rule["match"]),
                rule["to"],
                _compiled(rule.get("unless")),
                _conditions(rule),
            )
            for rule in data["renames"]
        ),
        prefixes=tuple(
            Prefix(
                _pattern(rule["match"]),
                rule["component"],
                rule.get("stack", ""),
                _conditions(rule, False),
            )
            for rule in data["prefixes"]
        ),
        main_stacks=_pattern(data["main_stacks"]),
        suffixes={
            name: _matcher([*of_component.get(name, []), *anywhere]) for name in data["components"]
        },
        norm=_pattern(data["norm"]),
        fused={
            name: Fused(_places(rule["into"]), tuple(rule["sizes"]))
            for name, rule in data["fused"].items()
        },
        rows=tuple(_row_order(rule) for rule in data["rows"]),
        transposed=tuple(_conditions(rule) for rule in data["transposed"]),
        stacked=_conditions(data["stacked"]),
        stacked_count=data["stacked"]["count"],
        conv1d=_pattern(data["conv1d_witness"]["names"]),
        conv1d_type=data["conv1d_witness"]["as"],
        sections={component: tuple(names) for component, names in data["sections"].items()},
        counts={
            name: tuple(tuple(keys) for keys in choices) for name, choices in data["counts"].items()
        },
        tied=frozenset(data["tied"]),
        packed=tuple(
            Packed(rule["format"], _pattern(rule["names"]), rule.get("integers", False))
            for rule in data["packed"]
        ),
        quantization_keys=tuple(data["quantization_keys"]),
        quantization_methods=data["quantization_methods"],
    )


def _patterns(rules: Mapping[str, list[str]], words: Mapping[str, str]) -> list[tuple[str, str]]:
    """(pattern, module) with the words in braces replaced."""
    fill = re.compile(r"\{([a-z]+)\}")
    return [
        (fill.sub(lambda m: words[m[1]], text), module)
        for module, texts in rules.items()
        for text in texts
    ]


def _matcher(patterns: Iterable[tuple[str, str]]) -> Matcher:
    patterns = list(patterns)
    named = [
        re.sub(r"\(\?P<slot(\d*)>", rf"(?P<s{index}_\1>", text)
        for index, (text, _) in enumerate(patterns)
    ]
    text = "|".join(f"(?P<m{index}>{text})" for index, text in enumerate(named))
    return Matcher(text, _places(module for _, module in patterns))


def _places(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`module/slot` -> (module, slot)"""
    return tuple((module, slot) for module, _, slot in (name.partition("/") for name in names))


def _pattern(text: str) -> re.Pattern[str]:
    """White space in a pattern is for the eye only."""
    return re.compile("".join(text.split()))


def _compiled(text: str | None) -> re.Pattern[str] | None:
    return None if text is None else _pattern(text)


def _conditions(rule: Mapping[str, Any], components: bool = True) -> Conditions:
    names = rule.get("names")
    return Conditions(
        model_types=frozenset(rule.get("model_types", ())),
        components=frozenset(rule.get("components", ())) if components else frozenset(),
        beside=_compiled(rule.get("beside")),
        when=rule.get("when", {}),
        names=None if names is None else _pattern(f"(?:.*\\.)?(?:{names})"),
        parameter=rule.get("parameter", False),
    )


def _row_order(rule: Mapping[str, Any]) -> RowOrder:
    return RowOrder(
        module=rule["module"],
        conditions=_conditions(rule),
        into=_places(rule["into"]) if "into" in rule else None,
        sizes=tuple(rule["sizes"]) if "sizes" in rule else None,
        groups=rule.get("groups", 1),
        square=rule.get("square", False),
    )


class Facts:
    """What a checkpoint as a whole says: its config, and which names there are."""

    def __init__(
        self,
        config: Mapping[str, object],
        texts: Iterable[str] = (),
        rules: NameRules | None = None,
    ) -> None:
        self.rules = rules or name_rules()
        self._config = config
        self._texts = list(texts)
        self._sections: dict[str, dict[str, object]] = {}
        self._types: dict[str, frozenset[str]] = {}
        self._beside: dict[re.Pattern[str], bool] = {}
        self.found_type = ""  # what stands for a model type where the config names none

    def section(self, component: str) -> dict[str, object]:
        """The config as it is for a component: its own part of the config has the last word."""
        if component not in self._sections:
            merged = dict(self._config)
            for name in self.rules.sections[component]:
                inner = merged.get(name)
                if isinstance(inner, dict):
                    merged |= inner
            self._sections[component] = merged
        return self._sections[component]

    def model_types(self, component: str) -> frozenset[str]:
        if component not in self._types:
            said = [self._config.get("model_type"), self.section(component).get("model_type")]
            types = frozenset(name for name in said if isinstance(name, str) and name)
            self._types[component] = types or frozenset({self.found_type})
        return self._types[component]

    def count(self, name: str, component: str) -> int | None:
        """A count of the config, such as its heads; None where it holds no sensible number."""
        section = self.section(component)
        for keys in self.rules.counts[name]:
            values = [section.get(key) for key in keys]
            counts = [value for value in values if type(value) is int and 1 <= value <= MAX_COUNT]
            if len(counts) == len(values):
                return math.prod(counts)
        return None

    def beside(self, pattern: re.Pattern[str]) -> bool:
        """Is there a tensor whose name, with `#` and `@` for the numbers of block and expert,
        matches?
        """
        if pattern not in self._beside:
            self._beside[pattern] = any(pattern.search(text) for text in self._texts)
        return self._beside[pattern]


@dataclass(frozen=True)
class Reading:
    """A name read by the rules. rest is what is left of it; module is empty where no suffix
    matches.
    """

    component: str
    stack: str
    in_block: bool
    rest: str
    module: str
    slot: str


def numbered(name: str, rules: NameRules) -> tuple[str, int | None, int | None]:
    """The name with `#` for the number of its block and `@` for that of its expert, and these
    numbers.
    """
    block = expert = None
    if match := rules.block.search(name):
        block = int(match[1])
        name = f"{name[: match.start(1)]}#{name[match.end(1) :]}"
    if "experts." in name and (match := rules.expert.search(name)):
        expert = int(match[1])
        name = f"{name[: match.start(1)]}@{name[match.end(1) :]}"
    return name, block, expert


def read(text: str, facts: Facts) -> Reading:
    """What the rules say of a name with `#` and `@` for its numbers."""
    rules = facts.rules
    for rename in rules.renames:
        if (
            rename.match.search(text)
            and rename.conditions.hold(facts, "language", text)
            and not (rename.unless and rename.unless.search(text))
        ):
            text = rename.match.sub(rename.to, text)
    component, stack = "other", ""
    for prefix in rules.prefixes:
        if (match := prefix.match.match(text)) and prefix.conditions.hold(
            facts, prefix.component, text
        ):
            component, text = prefix.component, text[match.end() :]
            stack = prefix.stack or match.groupdict().get("stack", "")
            break
    head, in_block, rest = text.partition(".#.")
    if not in_block:
        head, rest = "", text
    if head and not rules.main_stacks.fullmatch(head):
        stack = ".".join(filter(None, (stack, head)))
    rest = rest.replace("experts.@.", "experts.")
    role = None if rest.endswith(".bias") else rules.suffixes[component].match(weight_stem(rest))
    module, slot = role or ("", "")
    return Reading(component, stack, bool(in_block), rest, module, slot)


def weight_stem(rest: str) -> str:
    """What is left of a name, without the word for its weights."""
    stem, _, last = rest.rpartition(".")
    return stem if stem and last in ("weight", "qweight", "weight_packed") else rest


def check_component(component: str) -> None:
    """Raises UsageError for what is no component."""
    known = name_rules().components
    if component not in known:
        raise UsageError(f"no component {component!r}", f"one of {', '.join(known)}")
