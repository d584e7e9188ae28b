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
from shadow.run import sides as sides_module
from shadow.run.sides import find_checkpoint, reference_of, side_of
from shadow.targets.references import parse_checkpoint

LIST = """
- {base: ./base, tuned: ./upper, name: "toy:base..upper", claims: [
    trained --moved layers.2-3.mlp.up --frozen layers.0-1 --frozen embed]}
- base: ./base
  tuned: ./leaky
  name: toy:base..leaky
  claims:
    - {claim: trained, frozen: [embed, layers.0]}
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


def test_a_claim_of_a_list_is_checked_of_its_own_pair(sides):
    """In the table, in JSON, in the JUnit file and in the exit code; each pair has its own."""
    printed = audit(sides, code=4)
    assert f"({EMBED})" in " ".join(printed.split())
    assert cases(sides) == {
        ("toy:base..upper", HOLDS): ["system-out"],
        ("toy:base..leaky", LEAKS): ["failure"],
    }
    pairs = json.loads(audit(sides, "--format", "json", code=4))["reports"]
    recorded = {one["pair"]: one["judged"]["rules"] for one in pairs}
    (holds,), (leaks,) = recorded["base..upper"], recorded["base..leaky"]
    assert (holds["outcome"], holds["line"], leaks["outcome"]) == ("passed", 3, "met")
    assert holds["detail"].startswith("holds: both tensors that should have moved did; all ")
    assert leaks["detail"].startswith("does not hold: 1 of ")
    audit(sides, "--fail-on", HOLDS, code=4)
    names = [case.get("name") for case in ET.parse(sides / "j.xml").iter("testcase")]
    assert (names.count(HOLDS), names.count(LEAKS)) == (2, 1)  # of both pairs, and of its own


def test_a_pair_that_several_entries_name_has_the_claims_of_all(sides):
    """Each claim once."""
    entry = '- {base: ./base, tuned: ./upper, name: "toy:base..upper", claims: [%s]}\n'
    claims = ("same", "trained --frozen embed", "trained --frozen=embed", "files")
    (sides / "list.yaml").write_text("".join(entry % claim for claim in claims))
    audit(sides, code=4)
    assert {name: tags for (_, name), tags in cases(sides).items()} == {
        "not verify.same": ["failure"],
        "not verify.trained --frozen embed": ["system-out"],
        "not verify.files": ["system-out"],
    }


def test_a_claim_may_be_longer_than_a_rule(sides):
    """Of a list: every layer by its own pattern."""
    frozen = [f"language.layers.{layer}.attn.{part}" for layer in range(4) for part in "qk"]
    entry = '- {base: ./base, tuned: ./upper, name: "toy:base..upper", claims: [%s]}\n'
    claim = f"trained {' '.join(f'--frozen {one}' for one in frozen)}"
    assert len(claim) > 200
    (sides / "list.yaml").write_text(entry % claim)
    audit(sides)


def test_rules_ask_the_same_of_finished_reports(sides):
    """`gate` and `shadow.judge` read both sides again, if they are what was audited."""
    audit(sides, code=4)
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


def test_both_sides_are_found_once_for_a_claim(sides, monkeypatch):
    """Whether they are what was audited, and what they hold, is read of the same checkpoints."""
    audit(sides, code=4)
    found = []
    opened = sides_module.open_folder
    monkeypatch.setattr(
        sides_module,
        "open_folder",
        lambda folder, **more: found.append(folder) or opened(folder, **more),
    )
    assert shadow.judge(sides / "out" / "toy" / "base..upper", HOLDS).code == 0
    assert found == [str(sides / "base"), str(sides / "upper")]


def test_a_claim_that_cannot_be_told_is_exit_5(sides):
    """Integers without their scales beside floats; a fault comes first, then what does not hold."""
    tensors = based()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(32, 32, dtype=torch.int8)
    planted.write(sides / "packed", tensors, planted.LLAMA)
    entry = '- {base: ./base, tuned: ./packed, name: "toy:base..packed", claims: [%s]}\n'
    (sides / "list.yaml").write_text(entry % "trained --frozen mlp.up")
    audit(sides, code=5)
    assert list(cases(sides).values()) == [["error"]]
    (sides / "list.yaml").write_text(entry % "trained --frozen mlp.up" + LIST)
    audit(sides, code=4)
    spoilt = tensors | {"model.layers.0.mlp.up_proj.weight": torch.full((32, 32), torch.nan)}
    planted.write(sides / "packed", spoilt, planted.LLAMA)
    for claim, code in (("trained --frozen layers.1.mlp.up", 5), ("trained --frozen attn", 3)):
        (sides / "list.yaml").write_text(entry % claim)
        audit(sides, "--overwrite", code=code)
    (sides / "list.yaml").write_text(entry % "trained --frozen vision" + LIST)
    audit(sides, code=1)


@pytest.mark.parametrize("claim", [
    "merged", "trained", "trained --frozen nrom", "trained --frozne norm", "same --frozen norm",
    "{claim: trained, frozn: [norm]}", "{claim: [same]}", "same ./a ./b",
    "{claim: trained, frozen: [embed norm]}", '" "', '{claim: trained, moved: [" "]}',
    "{claim: trained, moved: [norm=--frozen=embed]}",
    "{claim: trained --frozen embed, moved: [norm]}",
])  # fmt: skip
def test_a_claim_that_makes_no_sense_is_refused_before_anything(sides, claim):
    """Exit 2, with file and line."""
    (sides / "list.yaml").write_text(f"- {{base: ./base, tuned: ./upper, claims: [{claim}]}}\n")
    done = run_shadow("audit", "--list", "list.yaml", "-o", "out", cwd=sides)
    assert "list.yaml:1" in done.assert_refused(2)
    assert not (sides / "out").exists()


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


def test_a_base_of_components_is_checked_too(tmp_path):
    """What belongs to one component may be frozen while another moves."""
    language = based(layers=1)
    tower = {"vision_model.encoder.layers.0.mlp.fc1.weight": torch.ones(32, 16)}
    whole = {f"language_model.{name}": one + 0.01 for name, one in language.items()}
    whole |= {f"vision_tower.{name}": one for name, one in tower.items()}
    planted.write(tmp_path / "lm", language, planted.LLAMA)
    planted.write(tmp_path / "tower", tower, {"model_type": "clip_vision_model"})
    planted.write(tmp_path / "llava", whole, {"model_type": "llava", "text_config": planted.LLAMA})
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "families.yaml").write_text(
        "toy:\n  base: {language: ../lm, vision: ../tower}\n  tuned: ../llava\n"
    )
    (tmp_path / "list.yaml").write_text(
        "- {target: toy, claims: [trained --moved language --frozen vision]}\n"
    )
    audit(tmp_path, "--registry", "registry")
    assert list(cases(tmp_path).values()) == [["system-out"]]
