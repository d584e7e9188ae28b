"""Rules: what `--fail-on` and policy files may say, and that every fault is one error with the
nearest word.
"""

import operator
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadow.checks.pair_gates import GATES
from shadow.checks.patterns import parse_pattern
from shadow.checks.registry import OF_PAIRS
from shadow.errors import ShadowError, UsageError
from shadow.gates.rules import (
    OF_A_COMPONENT,
    OF_A_MODULE,
    OF_THE_PAIR,
    Metric,
    gather,
    parse_rule,
    read_policy,
)
from shadow.places.names import name_rules


def place(text):
    """What a rule on a place names."""
    return Metric(None, None, "", parse_pattern(text))


OPERATORS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip


@pytest.mark.parametrize(("text", "figure", "threshold"), [
    ("language.mlp.up.concentration > 0.5", Metric("language", "mlp.up", "concentration"), 0.5),
    ("vision.projector.0.spikes>3", Metric("vision", "projector.0", "spikes"), 3.0),
    (
        "language.embed.relative_norm >= 1e-3", Metric("language", "embed", "relative_norm"),
        1e-3),
    ("*.mlp.*.concentration<-.5", Metric("*", "mlp.*", "concentration"), -0.5),
    ("  vision.energy_share\t!=\n0. ", Metric("vision", None, "energy_share"), 0.0),
    ("relative_norm_overall<=+2", Metric(None, None, "relative_norm_overall"), 2.0),
])  # fmt: skip
def test_a_rule_is_a_figure_a_comparison_and_a_number(text, figure, threshold):
    """The last word is the metric, the first the component, what is between them the module."""
    rule = parse_rule(text)
    assert (rule.figure, rule.threshold) == (figure, threshold)
    assert type(rule.threshold) is type(threshold)
    assert (rule.severity, rule.allow_missing, rule.message) == ("error", False, None)


@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize("value", [0.4, 0.5, 0.6])
def test_a_comparison_is_that_of_numbers(sign, value):
    """Every comparison is Python's own, equality among them."""
    assert parse_rule(f"concentration {sign} 0.5").holds(value) is OPERATORS[sign](value, 0.5)


@pytest.mark.parametrize(("text", "figure", "comparison"), [
    ("language.embed unchanged", place("language.embed"), "unchanged"),
    ("* \t changed ", place("*"), "changed"),
    ("layers.0-7 unchanged", place("layers.0-7"), "unchanged"),
    ("vision.attn.q.layers.3 changed", place("vision.attn.q.layers.3"), "changed"),
    ("files.chat_template changed", Metric("files", "chat_template", ""), "changed"),
    ("files.code added", Metric("files", "code", ""), "added"),
    ("files.config.rope_* changed", Metric("files", "config.rope_*", ""), "changed"),
    ("not gate.rank", Metric("gate", None, "rank"), "does not hold"),
    (" not  gate.lineage ", Metric("gate", None, "lineage"), "does not hold"),
    ("not verify.same", Metric("verify", None, "same"), "does not hold"),
    ("not verify.files", Metric("verify", None, "files"), "does not hold"),
    ("not  verify.trained --frozen=embed --moved layers.0-7",
     Metric("verify", None, "trained --moved layers.0-7 --frozen embed"), "does not hold"),
])  # fmt: skip
def test_a_rule_without_a_number_names_places_files_or_a_claim(text, figure, comparison):
    """What is read back of its condition is the same rule, which is called so without a name."""
    rule = parse_rule(text)
    assert (rule.figure, rule.comparison, rule.threshold) == (figure, comparison, None)
    again = parse_rule(rule.condition)
    assert (again.figure, again.comparison) == (figure, comparison)
    assert rule.name == rule.condition == again.name
    assert rule.holds(comparison)
    assert not rule.holds("")
    assert parse_rule(text, name="mine").name == "mine"


HOW, QUOTES = "write a figure, a comparison and a number", "put the whole rule in quotes"
NAME, PARTS = "such as language.mlp.up.concentration", "one of language, vision, projector"
STARS, LISTED = "use * and ? in the component and the module only", "`shadow explain` lists them"


@pytest.mark.parametrize(("text", "hint"), [
    ("", QUOTES), ("concentration", QUOTES), ("> 0.5", HOW), ("concentration > 0.5 > 0.4", HOW),
    ("concentration > 0.5 and spikes > 1", HOW), ("concentration = 0.5", "did you mean '=='?"),
    ("concentration => 0.5", "did you mean '>='?"), ("concentration <=> 0.5", "one of < <= > >= "),
    ("concentration =< 0.5", "did you mean '<='?"), ("concentration <> 0.5", "did you mean '!='?"),
    ("concentration === 0.5", "did you mean '=='?"),
    ("concentration > 5 %", HOW), ("concentration > nan", HOW), ("concentration > inf", HOW),
    ("concentration > 1e999", HOW), ("concentration > ٣", HOW), ("concentration > 0x1", HOW),
    ("concentration > 1_0", HOW), ("concentratoin > 0.5", "did you mean 'concentration'?"),
    ("langauge.mlp.up.concentration > 0.5", "did you mean 'language'?"),
    ("language.mlp.upp.concentration > 0.5", "did you mean 'mlp.up'?"),
    ("language.mpl.*.concentration > 0.5", "did you mean 'mlp.*'?"),
    ("language.mlpp.*.concentration > 0.5", "did you mean 'mlp.*'?"),
    ("language.mlp.concentration > 0.5", "did you mean 'mlp.*'?"),
    ("mlp.concentration > 0.5", "did you mean 'language.mlp.*.concentration'?"),
    ("mlpp.*.concentration > 0.5", "did you mean 'language.mlp.*.concentration'?"),
    ("language.layer.x.concentration > 0.5", "'per_layer.*'"), ("layers.7-3 changed", "0-7"),
    ("lamguage.embed changed", "did you mean 'language'?"),
    ("layers.0-7.relative_norm > 0", "leave the layers out"),
    ("language.mlp.up.rank_90 > 3", "one of "), ("concentration_error > 0.1", "one of "),
    ("language.embed added", "`files.code added`"),
    ("langauge changed", "did you mean 'language'?"),
    ("files.codes added", "did you mean 'code'?"), ("files. changed", "files.chat_template"),
    ("files.tokenizer.tokens_beyond changed", "explain differs"),
    ("gate.lineag", "did you mean 'lineage'?"), ("gate.x", f"one of {', '.join(GATES)}"),
    ("gate.rank", "'not gate.rank'"), ("verify.same", "'not verify.same'"),
    (" verify.trained --frozen=embed", "'not verify.trained --frozen embed'"),
    ("not verify.merged", f"one of {', '.join(OF_PAIRS)}"), ("not language.embed changed", QUOTES),
    ("verify.same > 0", PARTS),
    ("language.mlp.up.concentratoin > 0.5", "did you mean 'concentration'?"),
    ("mlp.up.concentration > 0.5", "did you mean 'language.mlp.up.concentration'?"),
    ("language.mlp.up.* > 0.5", STARS), ("* > 0.5", STARS),
    ("language..concentration > 0.5", NAME), (".concentration > 0.5", NAME),
    ("language.[a-z]*.concentration > 0.5", NAME), ("language.label == mixed", LISTED),
    ("language.mlp.up.spiked > 0.5", "did you mean 'spikes'?"), ("label == concentrated", LISTED),
    ("label > mixed", LISTED), ("concentration > " + "0" * 500, HOW),
    # code of any language
    ("__import__('os').system('touch marker') > 0", HOW), ("concentration.__class__ > 0", PARTS),
    ("concentration > __import__('os').system('touch marker')", HOW), ("{0.__class__} > 0", NAME),
    ("concentration > 0 or True", HOW), ("`touch marker` > 0", HOW), ("$(touch x) > 0", HOW),
])  # fmt: skip
def test_a_fault_is_wrong_usage_and_names_the_nearest_word(text, hint):
    """Words that no report has, and what is no rule: exit code 2 before anything is read."""
    with pytest.raises(UsageError) as raised:
        parse_rule(text)
    assert hint in raised.value.hint
    if "mpl" in text:
        assert raised.value.message == "no module 'mpl.*'"


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    component=st.none() | st.sampled_from([*name_rules().components, "*"]),
    module=st.none() | st.sampled_from([*name_rules().modules, "*", "mlp.*", "attn.?"]),
    index=st.integers(0, 10_000),
    sign=st.sampled_from(list(OPERATORS)),
    number=NUMBERS,
    spaces=st.lists(st.sampled_from(["", " ", "\t", "  "]), min_size=4, max_size=4),
)
def test_what_is_written_is_what_is_read(component, module, index, sign, number, spaces):
    """Figures, comparisons and finite numbers come back as written; conditions read the same."""
    known = OF_THE_PAIR if component is None else OF_A_COMPONENT if module is None else OF_A_MODULE
    metric = known[index % len(known)]
    name = Metric(component, module if component else None, metric)
    rule = parse_rule(f"{spaces[0]}{name}{spaces[1]}{sign}{spaces[2]}{number!r}{spaces[3]}")
    assert (rule.figure, rule.comparison, rule.threshold) == (name, sign, number)
    again = parse_rule(rule.condition)
    assert (again.figure, again.comparison, again.threshold) == (name, sign, number)


# Policy files

GOOD = """
# comments are allowed
narrow-up:
  fail_on: language.mlp.up.concentration > 0.5
  message: "The up-projections moved along few directions: look at the data."
rank:
  fail_on: "*.attn.*.effective_rank < 4"
  severity: warning
  allow_missing: true
drift:
  moved: language.*.concentration
"""


def policy(tmp_path, text):
    file = tmp_path / "policy.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_policy(file)


def test_a_policy_is_rules_by_name(tmp_path):
    """Names, conditions, severities, messages and lines are those of the file, in its order."""
    narrow, rank, drift = policy(tmp_path, GOOD)
    assert (narrow.name, narrow.condition, narrow.severity, narrow.allow_missing) == (
        "narrow-up", "language.mlp.up.concentration > 0.5", "error", False,
    )  # fmt: skip
    assert narrow.message == "The up-projections moved along few directions: look at the data."
    assert (rank.name, rank.severity, rank.allow_missing, rank.message) == (
        "rank", "warning", True, None,
    )  # fmt: skip
    assert (drift.comparison, str(drift.figure)) == ("moved", "language.*.concentration")
    assert [rule.line for rule in (narrow, rank, drift)] == [3, 6, 10]
    assert {rule.file for rule in (narrow, rank, drift)} == {str(tmp_path / "policy.yaml")}


@pytest.mark.parametrize(("text", "line"), [
    ("", None),
    ("# nothing\n", None),
    ("- a\n", None),
    ("word", None),
    ("a: concentration > 1", 1),
    ("'a b':\n  fail_on: concentration > 1", 1),
    ('"::error::x":\n  fail_on: concentration > 1', 1),
    ("a:\n  fail_on: concentration > 1\n  sevrity: error", 3),
    ("a:\n  fail_on: concentration > 1\n  x: error", 3),
    ("a:\n  fail_on: concentration > 1\n  severity: eror", 3),
    ("a:\n  fail_on: concentration > 1\n  allow_missing: yes", 3),
    ("a:\n  fail_on: concentration > 1\n  message: [x]", 3),
    ("a:\n  fail_on: [concentration > 1]", 2),
    ("a:\n  severity: error", 1),
    ("a:\n  fail_on: concentration > 1\n  moved: spiked", 1),
    ("a:\n  fail_on: concentration > 1\na:\n  fail_on: spikes > 1", 3),
    ("a: &x\n  fail_on: concentration > 1\nb: *x", 3),
    ("a:\n  fail_on: *.mlp.*.concentration > 1", 2),
    ("a: !!python/object:os.system\n  fail_on: concentration > 1", 1),
    ("a: {fail_on: concentration > 1", 1),
    (b"\xff", 1),
    (b"# " + b"x" * 1_000_001, None),
])  # fmt: skip
def test_a_fault_of_the_file_names_file_and_line(tmp_path, text, line):
    """One line, exit code 1: it is the file that is wrong, not the command."""
    with pytest.raises(ShadowError) as raised:
        policy(tmp_path, text)
    assert not isinstance(raised.value, UsageError)
    assert raised.value.message.startswith(
        f"{tmp_path / 'policy.yaml'}{f':{line}' if line else ''}: "
    )
    for word, hint in (("sevrity", "did you mean 'severity'?"), (" x:", "it may have ")):
        assert word not in str(text) or raised.value.hint.startswith(hint)


@pytest.mark.parametrize("claim", ["gate.rank", "verify.same"])
def test_a_claim_alone_in_a_policy_is_wrong_usage(tmp_path, claim):
    """A rule says what must not be: what to type instead, with file and line."""
    with pytest.raises(UsageError) as raised:
        policy(tmp_path, f"a:\n  message: x\n  fail_on: {claim}\n")
    assert raised.value.message.startswith(f"{tmp_path / 'policy.yaml'}:3: rule 'a': ")
    assert f"'not {claim}'" in raised.value.hint


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo", "long name"])
def test_a_policy_that_is_no_file_is_one_error(tmp_path, kind):
    """Nothing waits for ever and nothing ends in a traceback."""
    file = tmp_path / ("x" * 300 if kind == "long name" else "policy")
    if kind == "folder":
        file.mkdir()
    if kind == "fifo":
        os.mkfifo(file)
    with pytest.raises(ShadowError, match=r"no such file|not a regular file|too long"):
        read_policy(file)


def test_a_command_gathers_its_rules(tmp_path):
    """--fail-on, the policy, the baseline unless the policy lets it move; a rule counts once."""
    file = tmp_path / "policy.yaml"
    file.write_text("a:\n  fail_on: spikes > 1\n")
    rules = gather(["concentration>1", "concentration>1"], file, against=True, allow_missing=False)
    assert [rule.name for rule in rules] == ["concentration > 1", "a", "baseline"]
    file.write_text("a:\n  moved: spiked\n")
    assert [rule.name for rule in gather([], file, against=True, allow_missing=False)] == ["a"]
    with pytest.raises(UsageError, match=r"policy\.yaml:1: rule 'a' needs --against"):
        gather([], file, against=False, allow_missing=False)
