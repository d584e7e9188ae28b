"""Texts of `--fail-on` and policy files -> Rule. Parsed, never evaluated.

    figure := [component "."] [module "."] metric
    place  := a pattern of `shadow verify trained`
    rule   := figure ("<" | "<=" | ">" | ">=" | "==" | "!=") number
            | place ("changed" | "unchanged")
            | "files." kind ["." word] ("changed" | "unchanged" | "added" | "removed")
            | "nonfinite" | "all_zero" | "empty" | "nothing_compared" | "unrelated" | "part_shared"
            | "not" ("gate" | "verify") "." claim {("--moved" | "--frozen") pattern}

Figures are `language.mlp.up.concentration`, `vision.energy_share` and `spiked`, for example; places
are `language.embed` and `layers.0-7`. A rule says what must not be: one on a gate or a claim is
violated if that does not hold, and needs its `not`.

Component and module may contain * and ?. A word that this version does not know is a UsageError
that suggests the nearest known one, whatever the report holds.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NoReturn

from shadow.checks.answer import Outcome
from shadow.checks.pair_gates import GATES
from shadow.checks.patterns import Pattern, parse_pattern
from shadow.checks.registry import one_of, pair_claim
from shadow.errors import UsageError
from shadow.places.names import name_rules, nearest_modules
from shadow.reasons import BROKEN
from shadow.reports.columns import delta_metrics
from shadow.summary.record import ComponentRow, ModuleRow, PairFigures, keys_of
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
MISTYPED = {"=": "==", "=>": ">=", "=<": "<=", "<>": "!=", "===": "=="}
CHANGED = "changed"
UNCHANGED = "unchanged"
OF_FILES = (CHANGED, UNCHANGED, "added", "removed")
HOLDS = Outcome.HOLDS.words
FAILS = Outcome.DOES_NOT_HOLD.words
STATES = (*OF_FILES, HOLDS, FAILS)  # comparisons that need no number
FILES = "files"  # this and the next two stand before the name of one
GATE = "gate"
VERIFY = "verify"
IS_BROKEN = ""  # what stands there of a word of BROKEN, which is a rule by itself
# kinds of files, and what is known inside them, that stand behind FILES
OF_REPOSITORIES = (
    *("config", "generation", "chat_template", "tokenizer", "code", "pickle", "weights", "index"),
    *("document", "other", "vocabulary", "merges", "special_tokens"),
)
# words of 0.2, which would be taken for keys of a config that never differ
NO_WORDS = ("experts_renumbered", "tokens_beyond")
OF_REPORTS = ("same", "files")  # claims that a report answers; for others both sides are read
MOVED = "moved"  # the comparison of a rule that holds a figure against its interval in a baseline
# figures of summary.json that a rule may name
NO_FIGURES = ("component", "module", "intervals", "layers", "interval_level", "no_interval")
OF_THE_PAIR, OF_A_COMPONENT, OF_A_MODULE = (
    tuple(key for key in keys_of(row) if key not in NO_FIGURES)
    for row in (PairFigures, ComponentRow, ModuleRow)
)
STATE = re.compile(r"\s*(\S+)\s+(changed|unchanged|added|removed)\s*")
CLAIM = re.compile(r"\s*(?:(not)\s+)?(gate|verify)\.(\S+(?:\s+--\S.*)?)\s*")
EXPRESSION = re.compile(r"\s*([^\s<>=!]+)\s*([<>=!]+)\s*(.*?)\s*", re.DOTALL)
NAMES = r"[A-Za-z0-9_*?]+"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LONGEST = 200  # characters of an expression
SUCH_AS = "such as language.mlp.up.concentration"
SUCH = "language.mlp.up.concentration > 0.5"
QUOTE = "put the whole rule in quotes: without them the shell takes > and < for files"
HINT = (
    f"write a figure, a comparison and a number, such as '{SUCH}', or a place and `changed` or"
    " `unchanged`, such as 'language.embed changed'"
)


@dataclass(frozen=True)
class Metric:
    """The figures that a rule names: of the pair (no component), of components, or of modules."""

    component: str | None  # may hold * and ?; None for a figure of the pair
    module: str | None  # may hold * and ?; None for a figure of the pair or of components
    metric: str
    """Of a rule on what moved, it may hold * and ?. Of a claim, its name and its patterns. Empty of
    a place.
    """
    place: Pattern | None = None  # what a rule on `changed` or `unchanged` is about

    def __str__(self) -> str:
        if self.place is not None:
            return self.place.text
        return ".".join(filter(None, (self.component, self.module, self.metric)))

    def covers(self, scope: Sequence[str]) -> bool:
        """True if it names the pair, a component or a module: none, one or two names."""
        patterns = [*filter(None, (self.component, self.module))]
        return len(scope) == len(patterns) and all(map(fnmatchcase, scope, patterns))


@dataclass(frozen=True)
class Rule:
    """A condition that a report must not meet."""

    name: str  # its name in a policy file, or what was typed
    figure: Metric
    comparison: str  # one of COMPARISONS or of STATES, or MOVED
    threshold: float | None  # in the unit of the figures; None for MOVED and for STATES
    severity: Severity = "error"
    message: str | None = None  # what a person should know when it is violated
    allow_missing: bool = False  # whether it is no error that there is nothing to judge
    file: str | None = None  # the policy file that has it; None for one that was typed
    line: int | None = None  # its line in that file, from 1

    @property
    def condition(self) -> str:
        """The condition as text: `language.mlp.up.concentration > 0.5`."""
        if self.comparison == MOVED:
            what = "any figure" if str(self.figure) == "*" else self.figure
            return f"{what} outside the baseline's spread over layers"
        if self.comparison == HOLDS:  # of a word of BROKEN
            return str(self.figure)
        if self.comparison == FAILS:
            return f"not {self.figure}"
        return f"{self.figure} {self.limit}"

    @property
    def limit(self) -> str:
        """The comparison, and the threshold of a rule that has one: `> 0.5`."""
        if self.threshold is None:
            return self.comparison
        threshold = f"{self.threshold:g}"
        if float(threshold) != self.threshold:
            threshold = repr(self.threshold)
        return f"{self.comparison} {threshold}"

    def holds(self, value: float | str) -> bool:
        """True if a value violates the rule; never for MOVED."""
        if self.comparison in STATES:
            return value == self.comparison
        return COMPARISONS[self.comparison](value, self.threshold)


def parse_rule(text: str, **more: Any) -> Rule:
    """Parse `language.mlp.up.concentration > 0.5` as a Rule with that name.

    more: further fields of the rule. Raises UsageError.
    """
    _refuse_long(text, "a rule", HINT)
    if (state := _parse_state(text)) is not None:
        return _named(*state, **more)
    match = EXPRESSION.fullmatch(text)
    if not match:
        has_comparison = re.search("[<>=!]", text)
        raise UsageError(f"{text!r} is not a rule", HINT if has_comparison else QUOTE)
    figure, comparison, number = match.groups()
    if comparison not in COMPARISONS:
        hint = f"one of {' '.join(COMPARISONS)}"
        if comparison in MISTYPED:
            hint = f"did you mean {MISTYPED[comparison]!r}?"
        raise UsageError(f"{text!r}: no comparison {comparison!r}", hint)
    metric = parse_figure(figure)
    threshold = float(number) if NUMBER.fullmatch(number) else math.nan
    if not math.isfinite(threshold):
        raise UsageError(f"{text!r}: {number!r} is not a number", HINT)
    return _named(metric, comparison, threshold + 0.0, **more)  # -0 is 0


def _named(figure: Metric, comparison: str, threshold: float | None = None, **more: Any) -> Rule:
    """Make a rule with its condition as name, unless more has one."""
    rule = Rule("", figure, comparison, threshold)
    named = {"name": rule.condition, **more}
    return replace(rule, **named)


def _parse_state(text: str) -> tuple[Metric, str] | None:
    """Parse a rule without a number: its place, files or claim, and its comparison; None for
    another rule. Raises UsageError.
    """
    if text.strip() in BROKEN:
        return Metric(IS_BROKEN, None, text.strip()), HOLDS
    if match := CLAIM.fullmatch(text):
        negated, which, name = match.groups()
        if which == VERIFY:
            name = str(pair_claim(name))
        elif name not in GATES:
            hint = nearest(name, GATES) or one_of(GATES)
            raise UsageError(f"no gate {name[:40]!r}", hint)
        if not negated:
            hint = f"write 'not {which}.{name}', which fails where it does not hold"
            raise UsageError(f"{text.strip()!r}: a rule says what must not be", hint)
        return Metric(which, None, name), FAILS
    if not (match := STATE.fullmatch(text)):
        return None
    place, state = match.groups()
    if place.partition(".")[0] == FILES:
        return _parse_files(place), state
    if state not in (CHANGED, UNCHANGED):
        hint = f"write `changed` or `unchanged`, or name files: `files.code {state}`"
        raise UsageError(f"{text.strip()!r}: only files are {state}", hint)
    return Metric(None, None, "", parse_pattern(place)), state


def _parse_files(text: str) -> Metric:
    """Parse `files.config.rope_theta` as a Metric."""
    _, _, rest = text.partition(".")
    kind, _, word = rest.partition(".")
    if not kind or not re.fullmatch(r"[A-Za-z0-9_.*?-]+", rest):
        raise UsageError(f"{text[:80]!r} names no files", "such as files.chat_template")
    if not _known(kind, OF_REPOSITORIES):
        close = closest(kind, OF_REPOSITORIES)
        _refuse("kind of files", kind, close, one_of(OF_REPOSITORIES))
    if word in NO_WORDS:
        raise UsageError(f"no file differs in {word!r} any more", "`shadow explain differs`")
    return Metric(FILES, f"{kind}.{word}" if word else kind, "")


def parse_moved(text: str, **more: Any) -> Rule:
    """Parse a figure, or a pattern of figures, that must stay inside its interval in a baseline.

    more: further fields of the rule. Raises UsageError.
    """
    _refuse_long(text, "a figure", SUCH_AS)
    figure = parse_figure(text.strip(), many=True)
    return _named(figure, MOVED, **{"name": f"{MOVED}: {figure}", **more})


def _refuse_long(text: str, what: str, hint: str) -> None:
    if len(text) > LONGEST:
        raise UsageError(f"{text[:40]!r}... is too long for {what}", hint)


def parse_figure(text: str, *, many: bool = False) -> Metric:
    """Parse `language.mlp.up.concentration` as a Metric.

    many: the metric may contain * and ? too. Raises UsageError for a figure that no report of this
    version can have.
    """
    if re.search(r"(^|\.)layers?\.\d", text):
        hint = "leave the layers out; a rule on `changed` or `unchanged` may name some"
        raise UsageError(f"{text[:80]!r}: the summary has no figures of single layers", hint)
    place, _, metric = text.rpartition(".")
    component, _, module = place.partition(".")
    if not re.fullmatch(rf"{NAMES}(\.{NAMES})*", text):
        raise UsageError(f"{text[:80]!r} is not the name of a figure", SUCH_AS)
    rules = name_rules()
    if component and not _known(component, rules.components):
        close = closest(component, rules.components)
        if close is None and (modules := nearest_modules(place)):
            close = f"language.{modules}.{metric}"
        _refuse("component", component, close, one_of(rules.components))
    if module and not _known(module, rules.modules):
        _refuse("module", module, nearest_modules(module), "such as mlp.up or attn.*")
    known = OF_THE_PAIR
    if component:
        known = OF_A_MODULE if module else OF_A_COMPONENT
    if metric not in known and metric.removesuffix("_error") in delta_metrics():
        raise UsageError(f"{metric!r} is not a figure of the summary", one_of(known))
    if not _known(metric, known):
        _refuse("metric", metric, closest(metric, known), "`shadow explain` lists them")
    if metric not in known and not many:
        hint = "use * and ? in the component and the module only"
        raise UsageError(f"{text!r} names more than one metric", hint)
    return Metric(component or None, module or None, metric)


def _known(pattern: str, words: Sequence[str]) -> bool:
    """True if a word, or a pattern with * and ?, matches any of these."""
    return any(fnmatchcase(word, pattern) for word in words)


def _refuse(what: str, word: str, close: str | None, hint: str) -> NoReturn:
    """Raise UsageError for an unknown component, module or metric."""
    raise UsageError(f"no {what} {word!r}", f"did you mean {close!r}?" if close else hint)


def gather(
    fail_on: Sequence[str], policy: Path | None, *, against: bool, allow_missing: bool
) -> tuple[Rule, ...]:
    """The rules of a command.

    against: whether a baseline is given; without `moved` rules no figure of the pair may then have
    moved. allow_missing: that of the command; threshold rules of a policy file have their own.
    Raises ShadowError.
    """
    rules = []
    for text in dict.fromkeys(fail_on):
        rules.append(parse_rule(text, allow_missing=allow_missing))
    if policy is not None:
        for rule in read_policy(policy):
            if allow_missing and rule.comparison == MOVED:
                rule = replace(rule, allow_missing=True)
            rules.append(rule)
    moved = [rule for rule in rules if rule.comparison == MOVED]
    if moved and not against:
        rule = moved[0]
        fault = f"{rule.file}:{rule.line}: rule {rule.name!r} needs --against"
        raise UsageError(fault, "add --against RUN, the accepted reports")
    if against and not moved:
        baseline = parse_moved("*", name="baseline", allow_missing=allow_missing)
        rules.append(baseline)
    return tuple(rules)


def read_policy(file: Path) -> tuple[Rule, ...]:
    """Read the rules of a policy file, a mapping of names to rules.

    Raises ShadowError for a file that cannot be read or has other keys, UsageError for unknown
    words.
    """
    from shadow.targets.checked import read_form
    from shadow.targets.forms import PolicyForm

    hint = f"docs/ci.md describes policy files: a name, and below it `fail_on: '{SUCH}'`"
    form, lines = read_form(PolicyForm, file, hint=hint, noun="rule")
    rules = []
    for name, entry in form.root.items():
        is_moved = entry.moved is not None
        key = "moved" if is_moved else "fail_on"
        parse = parse_moved if is_moved else parse_rule
        try:
            rule = parse(
                entry.fail_on or entry.moved or "",
                name=name,
                severity=entry.severity,
                message=entry.message or None,
                allow_missing=entry.allow_missing == "true",
                file=str(file),
                line=lines[name,],
            )
        except UsageError as error:
            where = f"{file}:{lines[name, key]}: rule {name!r}"
            raise UsageError(f"{where}: {error.message}", error.hint) from error
        rules.append(rule)
    return tuple(rules)
