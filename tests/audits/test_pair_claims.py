"""Claims of a list and of rules, for which the two sides of a report are read once more."""

import json
import xml.etree.ElementTree as ET

import planted
import pytest
import torch
from command import run_shadow
from test_verify_trained import based, moved

import shadow
from shadow.checks.registry import Runtime
from shadow.errors import ShadowError
from shadow.run.sides import find_checkpoint, reference_of, side_of
from shadow.targets.references import parse_checkpoint

LIST = """
- {base: ./base, tuned: ./upper, name: "toy:base..upper"}
- {base: ./base, tuned: ./leaky, name: "toy:base..leaky"}
"""
HOLDS = "not verify.trained --moved layers.2-3.mlp.up --frozen layers.0-1 --frozen embed"
LEAKS = "not verify.trained --frozen embed --frozen layers.0"
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def sides(tmp_path):
    """A base; a model of which the upper layers moved; and one with a frozen entry that moved."""
    base = based()
    upper = moved(base, lambda name: "mlp" in name and ("layers.2" in name or "layers.3" in name))
    leaky = {name: one.clone() for name, one in upper.items()}
    leaky[EMBED][3, 4] += 1
    for name, tensors in (("base", base), ("upper", upper), ("leaky", leaky)):
        planted.write(tmp_path / name, tensors, planted.LLAMA)
    (tmp_path / "list.yaml").write_text(LIST)
    return tmp_path


def audit(folder, *more, code=0):
    return run_shadow(
        "audit", "--list", "list.yaml", "--level", "norms", "-o", "out", "--junit", "j.xml", *more,
        cwd=folder,
    ).assert_done(code)  # fmt: skip


def cases(folder):
    """Of the JUnit file: what came of each case but `audit`, by its suite and name."""
    return {
        (suite.get("name"), case.get("name")): [part.tag for part in case]
        for suite in ET.parse(folder / "j.xml").getroot()
        for case in suite.iter("testcase")
        if case.get("name") != "audit"
    }


def test_a_claim_is_checked_of_each_pair_of_a_list(sides):
    """In the table, in JSON, in the JUnit file and in the exit code."""
    rules = "--fail-on", LEAKS, "--fail-on", "not verify.files"
    printed = audit(sides, *rules, code=4)
    assert f"({EMBED})" in " ".join(printed.split())
    assert cases(sides) == {
        ("toy:base..upper", LEAKS): ["system-out"], ("toy:base..leaky", LEAKS): ["failure"],
        ("toy:base..upper", "not verify.files"): ["system-out"],
        ("toy:base..leaky", "not verify.files"): ["system-out"],
    }  # fmt: skip
    pairs = json.loads(audit(sides, *rules, "--format", "json", code=4))["reports"]
    holds, leaks = (one["judged"]["rules"][0] for one in pairs)
    assert (holds["outcome"], leaks["outcome"]) == ("passed", "met")
    assert holds["detail"].startswith("holds: all ")
    assert leaks["detail"].startswith("does not hold: 1 of ")


def test_rules_ask_the_same_of_finished_reports(sides):
    """`gate` and `shadow.judge` read both sides again, if they are what was audited."""
    audit(sides)
    (sides / "policy.yaml").write_text(f"frozen:\n  fail_on: {LEAKS}\n  severity: warning\n")
    out = sides / "out" / "toy"
    assert shadow.judge(out / "base..upper", HOLDS).code == 0
    assert shadow.judge(out / "base..leaky", [LEAKS, HOLDS]).code == 4
    assert shadow.judge(out / "base..leaky", "not verify.trained --frozen layers.0").code == 0
    run_shadow("gate", "out", "--policy", "policy.yaml", cwd=sides).assert_done()
    run_shadow("gate", "out", "--fail-on", LEAKS, cwd=sides).assert_done(4)
    planted.write(sides / "upper", based(), planted.LLAMA)
    (verdict,) = shadow.judge(out / "base..upper", HOLDS).verdicts
    assert (verdict.outcome, verdict.code) == ("missing", 1)
    assert "has changed since it was audited" in verdict.detail
    (verdict,) = shadow.judge(out / "base..leaky", "not verify.trained --frozen vision").verdicts
    assert "no tensor lies at vision; there are language; layers.0-3;" in verdict.detail


def test_a_claim_that_cannot_be_told_is_exit_5(sides):
    """Integers without their scales beside floats; a fault comes first, then what does not hold."""
    tensors = based()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(32, 32, dtype=torch.int8)
    planted.write(sides / "packed", tensors, planted.LLAMA)
    entry = '- {base: ./base, tuned: ./packed, name: "toy:base..packed"}\n'

    def asked(claim, listed, code, *more):
        (sides / "list.yaml").write_text(listed)
        audit(sides, "--fail-on", f"not verify.trained --frozen {claim}", *more, code=code)

    asked("mlp.up", entry, 5)
    assert list(cases(sides).values()) == [["error"]]
    asked("mlp.up", entry + LIST, 4)
    spoilt = tensors | {"model.layers.0.mlp.up_proj.weight": torch.full((32, 32), torch.nan)}
    planted.write(sides / "packed", spoilt, planted.LLAMA)
    for claim, code in (("layers.1.mlp.up", 5), ("attn", 3)):
        asked(claim, entry, code, "--overwrite")
    asked("vision", entry + LIST, 1)


@pytest.mark.parametrize("claim", [
    "merged", "trained", "trained --frozen nrom", "trained --frozne norm", "same --frozen norm",
    "same ./a ./b", "trained --frozen", "trained --moved norm=--frozen=embed",
])  # fmt: skip
def test_a_claim_that_makes_no_sense_is_refused_before_anything(sides, claim):
    rule = f"not verify.{claim}"
    done = run_shadow("audit", "--list", "list.yaml", "-o", "out", "--fail-on", rule, cwd=sides)
    done.assert_refused(2)
    assert not (sides / "out").exists()


def test_a_list_has_no_claims(sides):
    """The line of an entry that has some."""
    (sides / "list.yaml").write_text("\n- {base: ./base, tuned: ./upper, claims: [same]}\n")
    done = run_shadow("audit", "--list", "list.yaml", "-o", "out", cwd=sides)
    assert "list.yaml:2: unknown key 'claims'" in done.assert_refused(2)


def test_a_report_names_its_checkpoints_again(tmp_path):
    """A folder, one for each component with a space in its name, and commits of the Hub."""
    for name in ("lm", "a tower"):
        planted.toy(tmp_path / name, 0)
    for text in (f"{tmp_path}/lm", f"language={tmp_path}/lm,vision={tmp_path}/a tower"):
        side = side_of(find_checkpoint(parse_checkpoint(text), Runtime(), tmp_path / "s"))
        assert str(reference_of({**side, "content": None})) == text
    hub = {"repo": "language=a/b vision=c/d", "fingerprint": "0", "content": None}
    found = reference_of({**hub, "commit": "language=1f vision=2f"})
    assert [(part.repo, part.revision) for _, part in found.parts] == [("a/b", "1f"), ("c/d", "2f")]
    for commit in ("language=1f", "2f"):
        with pytest.raises(ShadowError, match="does not say which files"):
            reference_of({**hub, "commit": commit})
