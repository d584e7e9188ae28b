"""What nobody should build on ends with exit code 3, and its tensor is named everywhere."""

from __future__ import annotations

import json

import junitparser
import planted
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


@pytest.mark.parametrize(
    "norms",
    every(
        2,
        [
            (),
            (
                "--level",
                "norms",
            ),
        ],
    ),
    ids=["full", "norms"],
)
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


def test_a_word_of_what_is_broken_is_a_rule(shadow, tmp_path):
    """A rule on it is violated (4); a rule on another kind of damage leaves 3."""
    plant(tmp_path, with_nan)
    for rule, code in (("nonfinite", 4), ("all_zero", 3)):
        assert shadow("audit", "./base", "./tuned", "-o", "out", "--fail-on", rule).code == code
        assert shadow("gate", "out", "--fail-on", rule).code == code
