"""What nobody should build on ends with exit code 3, and its tensor is named everywhere."""

import json

import junitparser
import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import every

UP = planted.LAYER.format(1, "mlp.up_proj")
NORM = "model.norm.weight"


def zeroed(tensors):
    tensors[UP] = torch.zeros_like(tensors[UP])


def with_nan(tensors):
    tensors[UP][3, 4] = -float("inf")
    tensors[UP][0, 0] = float("nan")


def without_norm(tensors):
    tensors[NORM] = torch.zeros_like(tensors[NORM])


def empty(tensors):
    tensors[UP] = tensors[UP].new_zeros(0)


def unrelated(tensors):
    for at, (name, one) in enumerate(tensors.items()):
        if one.ndim == 2:
            tensors[name] = planted.normal(900 + at, *one.shape).bfloat16()


def halved(tensors):
    for name in [one for one in tensors if "mlp" in one or "embed" in one or "head" in one]:
        del tensors[name]


def healthy(tensors):
    pass


def biased(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(planted.HIDDEN).bfloat16()


CASES = {  # planted -> code, the tensor that is named, side
    zeroed: ("all_zero", UP),
    without_norm: ("all_zero", NORM),
    with_nan: ("nonfinite", UP),
    empty: ("empty", UP),
    unrelated: ("unrelated", None),
    halved: ("part_shared", None),
    healthy: (None, None),
    biased: (None, None),
}


def plant(folder, damage, *, of_base=False):
    base = planted.decoder()
    base["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(planted.HIDDEN).bfloat16()
    tuned = planted.tuned(base, 1, rank=4, size=0.1, noise=0.01)
    damage(base if of_base else tuned)
    planted.write(folder / "base", base)
    planted.write(folder / "tuned", tuned)


@pytest.mark.parametrize("norms", every(2, [(), ("--level", "norms")]), ids=["full", "norms"])
@pytest.mark.parametrize("damage", CASES, ids=lambda one: one.__name__)
def test_exit_code_headline_junit_and_annotation(damage, norms, shadow, tmp_path):
    code, tensor = CASES[damage]
    plant(tmp_path, damage)
    more = {"env": {"GITHUB_ACTIONS": "true"}}
    run = shadow("audit", "./base", "./tuned", "-o", "out", "--junit", "junit.xml", *norms, **more)
    assert run.code == (3 if code else 0)
    (path,) = (tmp_path / "out").rglob("summary.json")
    summary = json.loads(path.read_text())
    said = [one["code"] for one in summary["finding"]["sentences"]]
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    failures = [one for suite in suites for case in suite for one in case.result]
    annotations = [line for line in (run.out + run.err).splitlines() if line.startswith("::error")]
    assert (code in said) == bool(code)
    assert [failure.type for failure in failures] == ([code] if code else [])
    assert len(annotations) == bool(code)
    if tensor:
        shown = (summary["finding"]["headline"], failures[0].text, annotations[0])
        assert all(tensor in text for text in shown)


@pytest.mark.parametrize("of_base", [False, True], ids=["tuned", "base"])
def test_the_summary_says_which_side(of_base, shadow, tmp_path):
    plant(tmp_path, zeroed, of_base=of_base)
    assert shadow("audit", "./base", "./tuned", "-o", "out").code == 3
    (path,) = (tmp_path / "out").rglob("summary.json")
    (row,) = json.loads(path.read_text())["broken"]
    side = "base" if of_base else "tuned"
    assert row == {"code": "all_zero", "side": side, "count": 1, "tensors": [UP]}


STACK = "model.layers.0.mlp.experts.up_proj"  # a stack of experts, which are matrices of their own


@pytest.mark.parametrize("sides", [("base",), ("tuned",), ("base", "tuned")], ids=" ".join)
def test_the_tables_count_what_is_not_finite_on_each_side(sides, shadow, tmp_path):
    """Two experts of a stack, a matrix and a norm; by the planted entries, not by words."""
    names = [STACK, UP, NORM, planted.LAYER.format(0, "self_attn.q_proj")]
    models = {
        side: planted.decoder() | {STACK: planted.normal(seed, 4, planted.INNER, planted.HIDDEN)}
        for seed, side in enumerate(("base", "tuned"))
    }
    for side in sides:
        models[side][STACK][1, 2, 3] = models[side][STACK][3, 0, 0] = float("nan")
        models[side][UP][0, 0] = float("inf")
        models[side][NORM][5] = float("nan")
    for side, tensors in models.items():
        planted.write(tmp_path / side, tensors, {"model_type": "qwen3_moe", "num_experts": 4})
    assert shadow("audit", "./base", "./tuned", "-o", "out").code == 3
    (path,) = (tmp_path / "out").rglob("tensors.parquet")
    found = {(row["tensor"], row["side"]): row for row in pq.read_table(path).to_pylist()}
    for side in ("base", "tuned"):
        counts = [found[name, side]["nonfinite"] for name in names]
        assert counts == ([2, 1, 1, 0] if side in sides else [0, 0, 0, 0])
    recorded = json.loads(path.with_name("summary.json").read_text())
    rows = [(row["code"], row["side"], row["count"]) for row in recorded["broken"]]
    assert rows == [("nonfinite", side, 3) for side in sides]
    broken = [row for row in recorded["uncompared"] if row["reason"] == "nonfinite"]
    assert {row["side"] for row in broken} == {*sides}
    said = recorded["finding"]["sentences"][0]["text"]
    assert said.startswith(f"The {'base' if 'base' in sides else 'tuned model'} is broken: ")


def test_an_older_report_does_not_say_which_side_is_not_finite(shadow, tmp_path):
    """Both sides of the tensor have the reason, and it counts once."""
    plant(tmp_path, with_nan)
    assert shadow("audit", "./base", "./tuned", "-o", "out").code == 3
    for path in (tmp_path / "out").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns({"nonfinite"} & {*table.column_names}), path)
    (recorded,) = json.loads(shadow("show", "out", "--json").assert_done())
    (row,) = recorded["broken"]
    assert row == {"code": "nonfinite", "side": "either", "count": 1, "tensors": [UP]}
    assert [row["side"] for row in recorded["uncompared"]] == ["either"]
    assert recorded["finding"]["sentences"][0]["text"].startswith(
        f"One of the two models is broken: {UP} holds NaN or infinite entries."
    )


def test_a_word_of_what_is_broken_is_a_rule(shadow, tmp_path):
    """A rule on it is violated (4); a rule on another kind of damage leaves 3."""
    plant(tmp_path, with_nan)
    for rule, code in (("nonfinite", 4), ("all_zero", 3)):
        assert shadow("audit", "./base", "./tuned", "-o", "out", "--fail-on", rule).code == code
        assert shadow("gate", "out", "--fail-on", rule).code == code
