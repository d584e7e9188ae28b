"""Rules of `verify whole`: what is accepted, what was looked at, what machines read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import planted
import pytest
import torch
from command import run_shadow
from companions import tokenizer
from planted import edit
from safetensors.torch import load_file
from wholes import FAILS, FILE, HOLDS, OPEN, codes, store, verified

import shadow
from shadow.checkpoints import expected as loader
from shadow.checkpoints.expected import Expected
from shadow.checks.whole import RULES, Whole, judge
from shadow.checks.whole.part import FAULT, MOST_ROWS
from shadow.checks.whole.shards import FileFacts
from shadow.checks.whole.values import Values
from shadow.errors import UsageError

pytestmark = pytest.mark.usefixtures("in_this_process")
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def sick(healthy, tmp_path):
    """A folder with a matrix of zeros and a tensor that the model lacks."""
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "sick"))
    tensors = load_file(folder / FILE)
    store(folder, tensors | {UP: torch.zeros_like(tensors[UP]), "extra.weight": torch.ones(3)})
    return folder


@pytest.mark.parametrize(
    ("accept", "outcome", "reasons", "accepted"),
    [
        ({}, FAILS, ["zero", "unexpected"], []),
        ({"zero": "pruned"}, FAILS, ["unexpected"], [("zero", "pruned")]),
        ({"zero": "pruned", "unexpected": "a"}, HOLDS, ["whole"],
         [("zero", "pruned"), ("unexpected", "a")]),
        ({"missing": "b"}, FAILS, ["zero", "unexpected"], []),
    ],
)  # fmt: skip
def test_an_accepted_fault_is_listed_and_does_not_fail(sick, accept, outcome, reasons, accepted):
    """With its reason; a code that did not occur is said."""
    found = verified(sick, accept=accept)
    assert found.outcome is outcome
    assert [reason.code for reason in found.answer.reasons] == reasons
    assert [(row.code, row.accepted) for row in found.against if row.accepted] == accepted
    assert found.figures["faults"] == 2 - len(accepted)
    absent = accept.keys() - {code for code, _ in accepted}
    notes = [note for note in found.answer.notes if note.code == "accepted_absent"]
    assert {note.figures["code"] for note in notes} == absent
    for code, because in accepted:
        assert f"accepted ({because}): " in next(r.what for r in found.against if r.code == code)
        assert code in found.reason or outcome is FAILS


def cut(folder):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-100])


def shard_lost(folder):
    names = [*load_file(folder / FILE)]
    half = dict.fromkeys(names[: len(names) // 2], "model-00001-of-00002.safetensors")
    index = half | dict.fromkeys(names[len(names) // 2 :], "model-00002-of-00002.safetensors")
    tensors = load_file(folder / FILE)
    store(folder, {name: tensors[name] for name in half}, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / FILE).unlink()


@pytest.mark.parametrize(
    ("plant", "code", "doubt"),
    [(cut, "unreadable", "nothing_opened"), (shard_lost, "shard_missing", "not_asked")],
)
def test_what_an_accepted_fault_hides_stays_open(plant, code, doubt, healthy, tmp_path):
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "sick"))
    plant(folder)
    assert codes(verified(folder)) == {code}
    found = verified(folder, accept={code: "known"})
    assert (found.outcome, found.code) == (OPEN, doubt)


def test_the_rows_that_stand_for_many_are_accepted_with_them():
    files = FileFacts([FILE], names={FILE}, unreadable=dict.fromkeys(map(str, range(150)), "x"))
    answer = judge(Whole(files, Values({}), accept={"unreadable": "known"}))
    assert (answer.outcome, len(answer.against)) == (HOLDS, MOST_ROWS + 1)
    assert {row.accepted for row in answer.against} == {"known"}


@pytest.mark.parametrize(
    ("text", "named"),
    [("head_differ=x", "head_differs"), ("not_asked=x", "explain not_asked"),
     ("zero", "zero=REASON"), ("zero= ", "zero=REASON"), ("=x", "docs/rules.md")],
)  # fmt: skip
def test_only_a_fault_with_a_reason_is_accepted(text, named, tmp_path):
    """Anything more is wrong usage, in a list with the line; so is accepting of another claim."""
    refused = run_shadow("verify", "whole", "./a", "--accept", text, cwd=tmp_path)
    assert (refused.code, named in refused.err) == (2, True), refused.err
    code, _, because = text.partition("=")
    claim = {"claim": "whole", "of": ["./a"], "accept": {code or '""': because}}
    (tmp_path / "claims.yaml").write_text(f"- same ./a ./b\n- {json.dumps(claim)}\n")
    refused = run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path)
    assert (refused.code, "claims.yaml:2" in refused.err) == (2, True), refused.err
    with pytest.raises(UsageError):
        shadow.verify("same", "./a", "./b", accept={"zero": "x"})


def test_an_error_is_never_accepted(tmp_path):
    every = [f"--accept={code}=x" for code, rule in RULES.items() if rule.severity is FAULT]
    assert run_shadow("verify", "whole", "./none", *every, cwd=tmp_path).code == 1


def test_machines_read_code_severity_and_reason(sick, inside, in_this_process, tmp_path):
    """Of each row and of what is said beside the rows, in JSON and JUnit, from a list."""
    claim = {"claim": "whole", "of": [str(sick)], "accept": {"zero": "pruned"}, "headers": False}
    (tmp_path / "claims.yaml").write_text(json.dumps([claim]))
    done = inside("verify", "--claims", "claims.yaml", "--json", "--junit", "r.xml")
    (found,) = json.loads(done.assert_done(4))
    rows = {row["code"]: (row["severity"], row["accepted"]) for row in found["against"]}
    assert rows == {"zero": ("fault", "pruned"), "unexpected": ("fault", None)}
    said = {one["code"]: one["severity"] for one in found["statements"]}
    assert said == {"unexpected": "fault", "looked": "note"}
    text = "".join(ElementTree.parse(tmp_path / "r.xml").getroot().itertext())
    assert f"fault zero: {UP}: accepted (pruned): all zero" in text
    assert "fault unexpected: extra.weight: " in text
    assert "note looked: looked at: " in text
    tensors = load_file(sick / FILE)
    store(sick, {name: tensors[name] for name in tensors if name != "extra.weight"})
    done = inside("verify", "--claims", "claims.yaml", "--junit", "r.xml")
    assert f"fault zero: {UP}: accepted (pruned)" in (tmp_path / "r.xml").read_text()
    assert "accepted (pruned)" in done.assert_done(0).replace("\n", " ")


PARTS = {  # by what is asked about: its outcome, and the parts that the answer says it looked at
    "model": (HOLDS, ["files", "values", "names", "tokens"]),
    "headers": (HOLDS, ["files", "names", "tokens"]),
    "no tokenizer": (HOLDS, ["files", "values", "names"]),
    "no transformers": (OPEN, ["files", "values", "tokens"]),
    "adapter": (HOLDS, ["files", "values", "factors"]),
    "another adapter": (OPEN, ["files", "values"]),
}


@pytest.mark.parametrize("case", PARTS)
def test_the_end_says_what_was_looked_at(case, healthy, tmp_path, monkeypatch):
    """Without a loader names stay open, and the last sentence names what agrees."""
    outcome, parts = PARTS[case]
    if "adapter" in case:
        pairs = {planted.UP.format(0): (torch.ones(96, 4), torch.ones(4, 64))}
        kind = {"peft_type": "NEWER"} if case == "another adapter" else {}
        folder = planted.adapter(tmp_path / "a", pairs, target_modules=["up_proj"], **kind)
    else:
        folder = Path(shutil.copytree(healthy("llama"), tmp_path / "a"))
        tokenizer(folder, 128)
    if case == "no tokenizer":
        for name in ("tokenizer.json", "generation_config.json"):
            (folder / name).unlink(missing_ok=True)
        edit(folder, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    if case == "no transformers":
        answer = Expected(problem="no_transformers", detail="No module named 'transformers'")
        monkeypatch.setattr(loader, "expected", lambda *_: answer)
    found = verified(tmp_path / "a", headers=case == "headers")
    assert found.outcome is outcome, found.reason
    last = found.answer.reasons[-1] if outcome is OPEN else found.answer.notes[-1]
    assert (last.code, last.figures["parts"]) == ("not_all" if outcome is OPEN else "looked", parts)
    if case == "no transformers":
        assert found.reason.endswith(
            "No module named 'transformers'; pip install transformers accelerate;"
            " files, values and tokens agree"
        )
    if case == "headers":
        assert "left out: values" in found.notes[-1]


def test_every_code_is_explained(inside):
    """What a row says, why it matters, what to do and what its severity means."""
    for code, rule in RULES.items():
        printed = " ".join(inside("explain", code).assert_done().split())
        for text in (rule.why, rule.do, f"{rule.severity}: "):
            assert " ".join(text.split()) in printed, code
