"""Small judges of planted facts, each in a table: files, experts, blocks, an index, states."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from shadow.checks import files
from shadow.checks.answer import Outcome
from shadow.checks.whole import gguf_metadata, names, shards
from shadow.checks.whole import peers as peers_module
from shadow.checks.whole.part import Findings
from shadow.gates.rows import file_states
from shadow.gates.rules import parse_rule
from shadow.outputs.ci import is_without_baseline

HOLDS, FAILS, OPEN = Outcome.HOLDS, Outcome.DOES_NOT_HOLD, Outcome.INCONCLUSIVE
ARTICLES = {"c": "config", "t": "tokenizer", "o": "other", "p": "pickle"}


def rows_of(text):
    """`c:changed/eos+pad` is the config, in which two words differ; `-` before it: of the base."""
    rows = []
    for at, word in enumerate(text.split()):
        name, _, state = word.lstrip("-").partition(":")
        state, _, differs = state.partition("/")
        path = "*" if name == "*" else f"{name}{at}"
        kind = ARTICLES.get(name, "other")
        side = "base" if word[0] == "-" else "tuned"
        row = {"side": side, "path": path, "kind": kind, "state": state, "detail": f"d{at}"}
        rows.append(row | {"differs": differs.replace("+", " ") or None})
    return rows


@pytest.mark.parametrize(("text", "outcome", "codes", "counts"), [
    ("c:same t:same", HOLDS, "agree without_weights", (2, 0, 0)),
    ("c:same o:changed/x", HOLDS, "agree without_weights", (1, 0, 0)),
    ("c:same p:changed", HOLDS, "agree pickles without_weights", (2, 0, 0)),
    ("p:changed", HOLDS, "pickles without_weights", (1, 0, 0)),
    ("c:same p:same", HOLDS, "agree without_weights", (2, 0, 0)),
    ("c:changed/eos t:same", FAILS, "differ", (2, 1, 0)),
    ("c:changed/eos t:added/file -c:removed/file -t:same", FAILS, "differ", (3, 3, 0)),
    ("c:changed/eos t:unknown", FAILS, "differ", (2, 1, 1)),
    ("c:unknown/x t:same", OPEN, "not_compared", (2, 0, 1)),
    ("c:same -c:unknown", OPEN, "not_compared", (1, 0, 1)),
    ("c:same *:unknown", OPEN, "not_compared", (1, 0, 1)), ("c:same o:unknown", HOLDS,
     "agree without_weights", (1, 0, 0)),
    ("o:same", OPEN, "nothing", (0, 0, 0)), ("", OPEN, "nothing", (0, 0, 0)),
])  # fmt: skip
def test_files_beside_the_weights(text, outcome, codes, counts):
    """Those that matter, of the tuned side, and of the base what was removed."""
    answer = files.judge(rows_of(text))
    assert (answer.outcome, [reason.code for reason in answer.reasons]) == (outcome, codes.split())
    assert tuple(answer.figures.values()) == counts
    states = [row["state"] if row["state"] != "changed" else row["detail"] for row in rows_of(text)
              if row["differs"] and row["state"] != "unknown"][: counts[1]]  # fmt: skip
    assert [row.why.figures["state"] for row in answer.against] == states


@pytest.mark.parametrize(("pattern", "text", "states"), [
    ("config", "c:same", {"c0": "unchanged"}), ("config", "c:changed/eos", {"c0": "changed"}),
    ("config", "c:changed", {"c0": "unchanged"}),  # looked into, and nothing differs
    ("pickle", "p:changed", {"p0": "changed"}), ("config", "c:unknown", {"c0": None}),
    ("config.eos", "c:changed/pad+eos", {"c0": "changed"}), ("pad", "c:changed/pad",
     {"c0": "changed"}), ("config.eos", "c:changed/pad", {"files": "unchanged"}),
    ("config", "t:same", {"files": "unchanged"}), ("config", "t:same -*:unknown",
     {"base side": None}), ("*", "-c:removed/file t:added/file", {"t1": "added", "c0": "removed"}),
])  # fmt: skip
def test_the_states_of_files_that_a_rule_names(pattern, text, states):
    assert file_states(pattern, "files", rows_of(text)) == states


def found(judge, rules, *facts):
    """What a judge of `whole` adds, by name, with code and figures."""
    findings = Findings(rules)
    judge(findings, *facts)
    return [
        (row.name, row.why.code, row.why.figures) for rows in findings.rows.values() for row in rows
    ]


def experts(count, *lost):
    return {number: "" for number in range(count) if number not in lost}


@pytest.mark.parametrize(("up", "down", "expected"), [
    (experts(16), experts(16), []),
    (experts(16, 3, 15), experts(16, 3, 15),
     [("e.3", "expert_missing", {"of": 16}), ("e.15", "expert_missing", {"of": 16})]),
    (experts(16, *range(8)), experts(16, *range(8)),
     [(f"e.{at}", "expert_missing", {"of": 16}) for at in range(8)]),
    (experts(16, *range(2, 11)), experts(16, *range(2, 11)),
     [("e", "experts_missing",
       {"which": "2, 3, 4, 5, 6, 7, 8, 9", "experts": 9, "of": 16, "more": 1})]),
    (experts(16, 5), experts(16), [("e.5.up", "expert_missing", {"of": 16})]),
])  # fmt: skip
def test_lost_experts_have_a_row_each_up_to_eight(up, down, expected):
    tensors = {"up": up, "down": down}
    assert found(names._judge_lost_experts, names.RULES, "e.", tensors, range(16)) == expected


@pytest.mark.parametrize(("lost", "code"), [(8, "expert_missing"), (9, "expert_cut")])
def test_tensors_of_an_expert_have_a_row_each_up_to_eight(lost, code):
    tensors = {f"t{at}": experts(2) if at >= lost else experts(2, 1) for at in range(12)}
    rows = found(names._judge_lost_experts, names.RULES, "e.", tensors, range(2))
    assert [row[1] for row in rows] == [code] * (lost if lost == 8 else 1)
    if lost == 9:
        assert rows[0] == ("e.1", "expert_cut", {"tensors": 9, "of": 12})


PARTS = {"attn_q.weight", "attn_output.weight", "attn_norm.weight", "ffn_up.weight"}


@pytest.mark.parametrize(("last", "count", "expected"), [
    (PARTS, 3, []), (PARTS, 0, []), (PARTS, 2, [("blk.2", "block_beyond")]),
    (PARTS - {"attn_q.weight"}, 3, [("blk.2.attn_q.weight", "block_part")]),
    (PARTS - {"attn_norm.weight"}, 3, []), (PARTS - {"ffn_up.weight"}, 3, []),
    ({"ssm_in.weight"}, 3, []), (PARTS | {"x.weight"}, 3, []),
])  # fmt: skip
def test_blocks_of_a_gguf_file(last, count, expected):
    """A part is needed where another of its kind is; blocks of another kind have their own."""
    blocks = {0: PARTS, 1: PARTS, 2: last}
    rows = found(gguf_metadata._judge_blocks, gguf_metadata.RULES, blocks, count)
    assert [row[:2] for row in rows] == expected


def test_an_index_and_what_the_shards_hold():
    """Of one tensor by its name, of a lost layer's by the layer; what no index names."""
    up, down = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down"))
    one = "model.layers.0.mlp.up_proj.weight"
    headers = {"a.safetensors": {one: None, "x": None}, "b.safetensors": {"y": None},
               "c.safetensors": {"z": None}, "d.safetensors": {"x": None}}  # fmt: skip
    facts = shards.FileFacts(
        ["a.safetensors", "b.safetensors"], headers,
        {one: "b.safetensors", up: "a.safetensors", down: "a.safetensors", "lost": "a.safetensors",
         "away": "gone.safetensors", "y": "b.safetensors"},
    )  # fmt: skip
    holders = {one: ["0", "a.safetensors"], "x": ["0", "a.safetensors"], "y": ["b.safetensors"]}
    shard = {"shard": "a.safetensors"}
    assert found(shards._judge_index, shards.RULES, facts, holders) == [
        (one, "elsewhere", {"shard": "b.safetensors", "other": "a.safetensors"}),
        ("model.layers.1", "layer_absent", {
            "tensors": 2, "first": [up, down], "shards": ["a.safetensors"],
        }),
        ("lost", "absent", shard), ("x", "unindexed", shard),
        ("c.safetensors", "shard_outside", {"tensors": 1}),
    ]  # fmt: skip


def test_files_that_contradict_one_another():
    """A row a file or a tensor: of one in three files the first and the last are named."""
    a, b, c = FILES = [f"model-0000{at}-of-00004.safetensors" for at in (1, 2, 3)]
    lost, tensors = "model-00004-of-00004.safetensors", {"x": None, "y": None, "z": None}
    facts = shards.FileFacts(
        [*FILES, lost], {a: tensors, b: tensors, c: tensors | {"own": None}}, names=FILES,
        pointers=["p"], unreadable={"u": "why"}, equal={"x": True, "y": False},
        others=[shards.OtherSet("s", ["t1", "t2"]), shards.OtherSet("e", []),
                shards.OtherSet("n", newer=True), shards.OtherSet("o")],
    )  # fmt: skip
    twice = {"shard": a, "other": c}
    assert found(shards.judge_files, shards.RULES, facts) == [
        ("p", "pointer", {}), (lost, "shard_missing", {"tensors": 0}),
        ("u", "unreadable", {"why": "why"}), ("y", "twice_differs", twice),
        (a, "no_index", {}), ("s", "set_differs", {"read": a, "first": "t1", "tensors": 2}),
        ("z", "twice_unknown", twice), ("n", "set_newer", {"read": a}),
        ("o", "set_unknown", {"read": a}),
    ]  # fmt: skip
    assert (facts.are_cut, replace(facts, read=FILES).are_cut) == (True, False)
    empty = shards.FileFacts([a], {a: {}}, {"t": lost}, [a])
    assert found(shards.judge_files, shards.RULES, empty)[0] == (a, "no_tensors", {})


@pytest.mark.parametrize(("outcomes", "is_so"), [
    ("", False), ("t:passed", False), ("m:skipped", True), ("m:skipped m:skipped t:met", True),
    ("m:skipped m:missing", False), ("t:skipped", False),
])  # fmt: skip
def test_nothing_was_compared_with_a_baseline(outcomes, is_so):
    """Where each rule of what moved is skipped, and there is one."""
    moved = SimpleNamespace(comparison="moved")
    rules = {"m": moved, "t": parse_rule("spikes > 1")}
    words = [word.split(":") for word in outcomes.split()]
    verdicts = [SimpleNamespace(rule=rules[rule], outcome=outcome) for rule, outcome in words]
    assert is_without_baseline([SimpleNamespace(verdicts=verdicts)]) is is_so


@pytest.mark.parametrize(("own", "said", "is_fault"), [
    (1e4, 1e4 * (1 + 0.9e-5), False), (1e4, 1e4 * (1 + 1.1e-5), True), (None, 1e4, False),
    (None, 2e4, True), (1e4, 0, False), (1e4, -1.0, False), (1e4, 1e30, False), (1e4, 9e29, True),
    (1e4, "x", False), ("x", 1e4, False), (1e4, None, False),
])  # fmt: skip
def test_the_rotary_base_of_a_gguf_file_is_that_of_its_source(own, said, is_fault):
    """10,000 where it names none; what is no base in either is not compared."""
    metadata = {"general.architecture": "llama", "llama.rope.freq_base": own}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    header = SimpleNamespace(tensors={}, metadata=metadata)
    faults = gguf_metadata.rotary_faults(header, {} if said is None else {"rope_theta": said})
    figures = {"own": own or 10_000.0, "other": said}
    expected = [("rope.freq_base", "rope_base", figures)] if is_fault else []
    assert [(row.name, row.why.code, row.why.figures) for row in faults] == expected


@pytest.mark.parametrize(("name", "first", "entries", "count", "is_named"), [
    ("norm.weight", 1.0, 2, 1, True), ("norm.weight", 1.0, 1, 1, False),
    ("norm.weight", 0.0, 2, 1, False), ("norm.bias", 0.0, 2, 1, True),
    ("norm.weight", 1.0, 2, 2, True), ("norm.weight", 1.0, 2, 3, False),
])  # fmt: skip
def test_vectors_of_one_value_beside_seven_peers(name, first, entries, count, is_named):
    """Up to a quarter of them; not of one entry, and weights of zeros are another fault."""
    peers = [
        SimpleNamespace(
            info=SimpleNamespace(name=name),
            extremes=SimpleNamespace(is_constant=at < count, first=first, entries=entries),
        )
        for at in range(8)
    ]
    rows = found(peers_module._judge_constants, peers_module.RULES, peers)
    expected = (name, "constant_beside_peers", {"value": first, "peers": 7})
    assert rows == [expected] * count * is_named


@pytest.mark.parametrize(("ratio", "is_named"), [
    (0.99e4, False), (1e4, True), (1 / 0.99e4, False), (1e-4, True), (0.0, False),
])  # fmt: skip
def test_a_matrix_far_from_three_peers(ratio, is_named):
    """1e4 times as large or as small; one of zeros has no size, and three are too few."""
    peers = [
        SimpleNamespace(
            info=SimpleNamespace(name=f"{at}"),
            extremes=SimpleNamespace(energy=9.0 * (1 if at else ratio) ** 2, entries=9),
        )
        for at in range(4)
    ]
    rows = found(peers_module._judge_sizes, peers_module.RULES, peers)
    figures = {"size": pytest.approx(ratio), "usual": 1.0, "peers": 3}
    assert rows == ([("0", "far_from_peers", figures)] if is_named else [])
    assert found(peers_module._judge_sizes, peers_module.RULES, peers[:3]) == []


@pytest.mark.parametrize(("problem", "missing", "lost"), [
    ("x", [], {"1"}), ("", [], set()),
    ("", ["model.layers.1.mlp.experts.2.up.weight"], {"1"}),
])  # fmt: skip
def test_layers_that_lack_experts_of_similar_ones(problem, missing, lost):
    """Where no loader answered, or it misses some of the layer's."""
    kept = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    tensors = {f"model.layers.{layer}.mlp.experts.{at}.up.weight": SimpleNamespace(shape=(2, 2))
               for layer, at in kept}  # fmt: skip
    expected = SimpleNamespace(missing=missing, mismatched=[], problem=problem)
    facts = SimpleNamespace(tensors=tensors, expected=expected)
    findings = Findings(names.RULES)
    assert names._judge_experts(findings, facts) == lost
    rows = [row.name for rows in findings.rows.values() for row in rows]
    assert rows == (["model.layers.1.mlp.experts.2"] if lost else [])
