"""What `--fail-on` and policy files say -> Rule. Parsed, never evaluated.

    figure := [component "."] [module "."] metric
    rule   := figure ("<" | "<=" | ">" | ">=" | "==" | "!=") number  |  "label" ("==" | "!=") word

Figures are `language.mlp.up.concentration`, `vision.energy_share` and `spiked`, for example.

Component and module may hold * and ?. A word that this version does not know is a UsageError with
the nearest known one, whatever the report holds.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from shadow.claims.footprint import Label
from shadow.errors import ShadowError, UsageError
from shadow.places.names import is_of_layers, name_rules, nearest_modules
from shadow.reports.columns import COUNTS, DELTA, FIGURES, SPECTRAL
from shadow.reports.heads import HEADS
from shadow.targets.plain_yaml import KeyPath as Place
from shadow.targets.plain_yaml import Tree, read_plain_file
from shadow.targets.references import NAME
from shadow.text import closest, nearest

Severity = Literal["error", "warning"]

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
MOVED = "moved"  # the comparison of a rule that holds a figure against its interval in a baseline
LABEL = "label"
LABELS: tuple[str, ...] = get_args(Label)
# Every delta has these; of a set of matrices the median is meant, unless the summary has a figure
# of that name for it.
COLUMNS = tuple(column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float"))
DEPTH = ("depth_layers", "depth_entropy", "depth_gini", "effective_layers", "attention_to_mlp")
OF_BOTH = ("participation_share", "matrices", "energy", "energy_share", "parameter_share")
OF_A_MODULE = (*OF_BOTH, "parameters")
OF_A_COMPONENT = (*OF_BOTH, "tensors", "identical", *DEPTH)
OF_THE_PAIR = tuple(column.name for column in (*FIGURES, *COUNTS))
EXPRESSION = re.compile(r"\s*([^\s<>=!]+)\s*([<>=!]+)\s*(.*?)\s*", re.DOTALL)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LONGEST = 200  # characters of an expression
KEYS = {  # of a rule in a policy file, and what each says
    "fail_on": "What must not hold, as after --fail-on: language.mlp.up.concentration > 0.5.",
    "moved": "A figure that must stay inside its spread over layers in the report of --against.",
    "severity": "error, or warning: shown, and never changes the exit code.",
    "message": "What a person should know when the rule is violated.",
    "allow_missing": "true: nothing to judge is no error.",
}
OF_NORMS = {  # two figures that are easily taken for each other
    "relative_norm": (
        " It is the median over matrices; relative_norm_overall is the norm of the whole change"
    ),
    "relative_norm_overall": (
        " It is the norm of the whole change; relative_norm is the median over matrices"
    ),
}
QUOTE = "put the whole rule in quotes, since to a shell > and < are files"
HINT = "write a figure, a comparison and a number, such as 'language.mlp.up.concentration > 0.5'"


@dataclass(frozen=True)
class Metric:
    """The figures that a rule names: of the pair (no component), of components, or of modules."""

    component: str | None
    """A component, which may hold * and ?; None for a figure of the pair."""

    module: str | None
    """A module, which may hold * and ?; None for a figure of the pair or of components."""

    metric: str
    """The name of the figure; of a rule on what moved, it may hold * and ?."""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.component, self.module, self.metric)))

    def covers(self, component: str, module: str | None) -> bool:
        """Is a component, or a module of one, among those that are meant?"""
        if self.component is None or (self.module is None) != (module is None):
            return False
        return fnmatchcase(component, self.component) and (
            module is None or fnmatchcase(module, self.module or "")
        )


@dataclass(frozen=True)
class Rule:
    """What must not hold of a report."""

    name: str
    """Its name in a policy file, or what was typed."""

    figure: Metric
    """The figures that it judges."""

    comparison: str
    """One of COMPARISONS, or MOVED."""

    threshold: float | str | None
    """What figures are compared with, in their unit, or a label; None for MOVED."""

    severity: Severity = "error"
    """A warning is shown and never changes the exit code."""

    message: str | None = None
    """What a person should know when it is violated."""

    allow_missing: bool = False
    """Is it no error where there is nothing to judge?"""

    file: str | None = None
    """The policy file that has it; None for one that was typed."""

    line: int | None = None
    """Its line in that file, from 1."""

    @property
    def condition(self) -> str:
        """`language.mlp.up.concentration > 0.5`."""
        if self.comparison == MOVED:
            what = str(self.figure)
            if what == "*":
                what = "any figure"
            return f"{what} outside the baseline's spread over layers"
        return f"{self.figure} {self.comparison} {_written(self.threshold)}"

    def holds(self, value: float | str) -> bool:
        """Does the comparison hold of a value, so that it violates the rule? Never of MOVED."""
        return COMPARISONS[self.comparison](value, self.threshold)


def _written(threshold: float | str | None) -> str:
    """As short as it can be written and read back."""
    if not isinstance(threshold, float):
        return f'"{threshold}"'
    short = f"{threshold:g}"
    if float(short) == threshold:
        return short
    return repr(threshold)


def parse_rule(text: str, **more: Any) -> Rule:
    """`language.mlp.up.concentration > 0.5` -> Rule, called so without a name.

    more: further fields of the rule. Raises UsageError.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{text[:40]!r}... is too long for a rule", HINT)
    _refuse_head(text)
    match = EXPRESSION.fullmatch(text)
    if not match:
        hint = HINT
        if _is_figure(text.strip()):
            hint = f"{QUOTE}: '{text.strip()} > 0.5'"
        raise UsageError(f"{text!r} is not a rule", hint)
    figure, comparison, wanted = match.groups()
    if comparison not in COMPARISONS:
        hint = f"one of {' '.join(COMPARISONS)}"
        if close := {"=": "==", "=>": ">=", "=<": "<=", "<>": "!=", "===": "=="}.get(comparison):
            hint = f"did you mean {close!r}?"
        raise UsageError(f"{text!r}: no comparison {comparison!r}", hint)
    name = parse_figure(figure)
    threshold = _label(text, comparison, wanted) if name.metric == LABEL else _number(text, wanted)
    named = {"name": f"{name} {comparison} {_written(threshold)}", **more}
    return Rule(**named, figure=name, comparison=comparison, threshold=threshold)


def _refuse_head(text: str) -> None:
    """Raises UsageError where a rule has the head of a table on the screen, such as `rel. norm`,
    and not a figure.
    """
    figure = re.split("[<>=!]", text, maxsplit=1)[0]
    rest = re.sub(r"\s*([<>=!]+)\s*", r" \1 ", text[len(figure) :]).strip()
    bare = re.sub(r"\s", "", figure).lower()
    for name, head in HEADS.items():
        place = bare.removesuffix(re.sub(r"\s", "", name).lower())
        named = f"{place}{head.column}"
        if place == bare or place[-1:] not in ("", "."):
            continue
        if _is_figure(figure.strip()) or not _is_figure(named):
            continue
        hint = f"did you mean '{' '.join(filter(None, (named, rest)))}'?"
        raise UsageError(
            f"{figure.strip()!r} is a column heading, not a figure",
            f"{hint}{OF_NORMS.get(named, '')}",
        )


def _is_figure(text: str) -> bool:
    try:
        parse_figure(text)
    except UsageError:
        return False
    return True


def _number(text: str, wanted: str) -> float:
    if not NUMBER.fullmatch(wanted) or not math.isfinite(float(wanted)):
        share = wanted.removesuffix("%").strip()
        hint = HINT
        if wanted.endswith("%") and NUMBER.fullmatch(share) and math.isfinite(float(share)):
            hint = f"write {float(share) / 100:g} for {wanted}"
        raise UsageError(f"{text!r}: {wanted!r} is not a number", hint)
    return float(wanted) + 0.0  # -0 is 0


def _label(text: str, comparison: str, wanted: str) -> str:
    if comparison not in ("==", "!="):
        raise UsageError(f"{text!r}: a label is a word", "compare it by == or !=")
    word = wanted
    if len(wanted) > 1 and wanted[0] == wanted[-1] and wanted[0] in "'\"":
        word = wanted[1:-1]
    if word not in LABELS:
        raise UsageError(
            f"{text!r}: no label {word!r}", nearest(word, LABELS) or f"one of {', '.join(LABELS)}"
        )
    return word


def parse_figure(text: str, *, many: bool = False) -> Metric:
    """`language.mlp.up.concentration` -> Metric. many: the metric may hold * and ? too.

    Raises UsageError for what no report of this version can have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.*?]+", text) or "" in text.split("."):
        raise UsageError(
            f"{text[:80]!r} is not the name of a figure", "such as language.mlp.up.concentration"
        )
    head, _, metric = text.rpartition(".")
    component, _, module = head.partition(".")
    _refuse_place(text)
    known = _metrics(component, module)
    if not component and not many:
        known = (*known, LABEL)
    if metric not in known and not _known(metric, known):
        _refuse("metric", metric, known)
    if metric not in known and not many:
        raise UsageError(
            f"{text!r}: a rule has one metric", "only component and module may hold * and ?"
        )
    return Metric(component or None, module or None, metric)


def _refuse_place(text: str) -> None:
    """Raises UsageError where the component or the module of a figure is not known."""
    head, _, metric = text.rpartition(".")
    component, _, module = head.partition(".")
    rules = name_rules()
    if component and not _known(component, rules.components):
        if _known(head, rules.modules):
            raise UsageError(
                f"{text!r} names no component", f"did you mean '*.{text}' or 'language.{text}'?"
            )
        if not closest(component, rules.components) and not is_of_layers(component):
            modules = nearest_modules(head)
            if modules is not None:
                raise UsageError(
                    f"no component {component!r}", f"did you mean 'language.{modules}.{metric}'?"
                )
        _refuse("component", component, rules.components)
    if module and not _known(module, rules.modules):
        _refuse("module", module, rules.modules)


def _metrics(component: str, module: str) -> tuple[str, ...]:
    """What can be asked of a module, of a component (no module), or of the pair (neither)."""
    if module:
        return (*COLUMNS, *OF_A_MODULE)
    if component:
        return (*COLUMNS, *OF_A_COMPONENT)
    return (*COLUMNS, *OF_THE_PAIR)


def _known(pattern: str, words: Sequence[str]) -> bool:
    """Does a word, or a pattern of * and ?, mean any of these?"""
    return any(fnmatchcase(word, pattern) for word in words)


def _refuse(what: str, word: str, known: Sequence[str]) -> NoReturn:
    """Raises UsageError for a component, module or metric that is not known."""
    hint = {
        "component": f"one of {', '.join(known)}",
        "module": "such as mlp.up or attn.*",
        "metric": "`shadow explain` lists them",
    }[what]
    close = nearest_modules(word) if what == "module" else closest(word, known)
    if close:
        hint = f"did you mean {close!r}?"
    if is_of_layers(word):
        hint = (
            "a rule has no layers: it judges what was measured; `audit --layer 3` measures layer 3"
            " alone"
        )
    raise UsageError(f"no {what} {word!r}", hint)


def parse_moved(text: str, **more: Any) -> Rule:
    """A figure, or all of a pattern, that must stay inside its interval in a baseline.

    more: further fields of the rule. Raises UsageError.
    """
    if len(text) > LONGEST:
        raise UsageError(
            f"{text[:40]!r}... is too long for a figure", "such as language.mlp.up.concentration"
        )
    _refuse_head(text)
    figure = parse_figure(text.strip(), many=True)
    return Rule(
        **{"name": f"{MOVED}: {figure}", **more}, figure=figure, comparison=MOVED, threshold=None
    )


def gather(
    fail_on: Sequence[str], policy: Path | None, *, against: bool, allow_missing: bool
) -> tuple[Rule, ...]:
    """The rules of a command.

    against: whether a baseline is given; without `moved` rules no figure of the pair may then have
    moved. allow_missing: that of the command; a rule of a policy file on a threshold says so
    itself. Raises ShadowError.
    """
    rules = [parse_rule(text, allow_missing=allow_missing) for text in dict.fromkeys(fail_on)]
    if policy is not None:
        for rule in read_policy(policy):
            if allow_missing and rule.comparison == MOVED:
                rule = replace(rule, allow_missing=True)
            rules.append(rule)
    moved = [rule for rule in rules if rule.comparison == MOVED]
    if moved and not against:
        message = f"{moved[0].file}:{moved[0].line}: rule {moved[0].name!r} needs --against"
        raise UsageError(message, "add --against RUN, the accepted reports")
    if against and not moved:
        rules.append(parse_moved("*", name="baseline", allow_missing=allow_missing))
    return tuple(rules)


def read_policy(file: Path) -> tuple[Rule, ...]:
    """The rules of a policy file, a mapping of names to rules.

    Raises ShadowError for a file that cannot be read or has other keys, UsageError for words that
    mean nothing.
    """
    hint = "see docs/ci.md on policy files"
    try:
        tree, lines = read_plain_file(file, hint)
    except ShadowError as error:
        # what YAML makes of a * or a &
        if re.search(r"aliases|expected alphabetic or numeric", error.message):
            hint = (
                'put a rule that begins with * in quotes, as in "*.mlp.*.concentration > 0.5"; '
                + hint
            )
            raise ShadowError(error.message, hint) from error
        raise
    if not isinstance(tree, dict) or not tree:
        fault = "not a mapping of rules" if tree else "no rules in it"
        hint = "write a name, and below it `fail_on: language.mlp.up.concentration > 0.5`"
        raise ShadowError(f"{file}: {fault}", hint)
    return tuple(_rule(name, entry, file=file, lines=lines) for name, entry in tree.items())


def _rule(name: str, entry: Tree, file: Path, lines: Mapping[Place, int]) -> Rule:
    def at(*key: str) -> str:
        return f"{file}:{lines[name, *key]}: rule {name[:80]!r}"

    if not NAME.fullmatch(name):
        raise ShadowError(f"{at()}: the name may hold letters, digits and `._-` only")
    if not isinstance(entry, dict):
        raise ShadowError(
            f"{at()}: not a mapping",
            "write `fail_on: language.mlp.up.concentration > 0.5` below it",
        )
    texts: dict[str, str] = {}
    for key, value in entry.items():
        if key not in KEYS:
            raise ShadowError(
                f"{at(key)}: unknown key {key[:80]!r}",
                nearest(key, KEYS) or f"it may have {', '.join(KEYS)}",
            )
        if not isinstance(value, str):
            raise ShadowError(f"{at(key)}: `{key}` is not text", "put it in quotes")
        texts[key] = value
    if "fail_on" in texts and "moved" in texts:
        raise ShadowError(f"{at()}: it has both `fail_on` and `moved`", "write one of them")
    if "fail_on" not in texts and "moved" not in texts:
        raise ShadowError(f"{at()}: it has neither `fail_on` nor `moved`", "write one of them")
    for key, words in (("severity", ("error", "warning")), ("allow_missing", ("true", "false"))):
        if texts.get(key, words[0]) not in words:
            hint = nearest(texts[key], words) or f"one of {', '.join(words)}"
            raise ShadowError(f"{at(key)}: `{key}` is {texts[key][:80]!r}", hint)
    kind, parse = "fail_on", parse_rule
    if "moved" in texts:
        kind, parse = "moved", parse_moved
    try:
        return parse(
            texts[kind],
            name=name,
            severity=texts.get("severity", "error"),
            message=texts.get("message") or None,
            allow_missing=texts.get("allow_missing") == "true",
            file=str(file),
            line=lines[name,],
        )
    except UsageError as error:
        raise UsageError(f"{at(kind)}: {error.message}", error.hint) from error
