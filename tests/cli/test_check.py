"""`shadow check`: which claims the sides of a model allow, their order, and how they end."""

import json
import shutil
from collections import Counter

import planted
import pytest
import readme
import torch
from command import run_shadow
from effort import every
from safetensors.torch import load_file, save_file

import shadow
from shadow.checkpoints.held_files import HeldFile
from shadow.errors import ShadowError

NAME = planted.UP.format(0)
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, its tune, an adapter with its merge, a copy in BF16, and sick ones."""
    top = tmp_path_factory.mktemp("models")
    demo = readme.ROOT / "registry" / "demo" / "base"
    config = json.loads((demo / "config.json").read_text())
    base = {name: one.float() for name, one in load_file(demo / "model.safetensors").items()}
    planted.write(top / "base", base, config)
    planted.write(
        top / "tuned",
        {name: one + 0.01 * planted.normal(3, *one.shape) for name, one in base.items()},
        config,
    )
    matrices = [name for name in base if "mlp" in name]
    factors = {}
    for name in matrices:
        rows, columns = base[name].shape
        factors[name] = 0.01 * planted.normal(1, rows, 4), planted.normal(2, 4, columns)
    modules = ["up_proj", "gate_proj", "down_proj"]
    names = {"base_model_name_or_path": "org/name", "target_modules": modules}
    planted.adapter(top / "adapter", factors, **names)
    update = {name: 2 * (b @ a) for name, (b, a) in factors.items()}
    merged = base | {name: base[name] + update[name] for name in matrices}
    planted.write(top / "merged", merged, config)
    small = {name: one.bfloat16() for name, one in merged.items()}
    planted.write(top / "small", small, config)
    planted.write(top / "zeros", base | {NAME: torch.zeros_like(base[NAME])}, config)
    planted.write(top / "more", base | {"extra.weight": torch.ones(2, 2)}, config)
    shutil.copytree(top / "base", top / "same")
    shutil.copytree(top / "tuned", top / "cut")
    weights = top / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    shutil.copytree(top / "tuned", top / "carded")
    (top / "carded" / "README.md").write_text("---\nlicense: mit\nbase_model: org/name\n---\n")
    shutil.copytree(top / "tuned", top / "hostile")
    (top / "hostile" / "README.md").write_text("---\nbase_model: org/x; rm -rf $(HOME)\n---\n")
    return top


SIDES = {  # words -> each claim with its outcome, and the exit code
    "./tuned": (["whole holds"], 0),
    "./tuned --base ./base": (["whole holds", "drop_in holds", "moved holds"], 0),
    "./same --base ./base": (["whole holds", "drop_in holds", "moved does_not_hold"], 4),
    "./zeros --base ./base": (["whole does_not_hold", "drop_in holds", "moved does_not_hold"], 4),
    "./small --base ./base --headers": (["whole holds", "drop_in holds"], 0),
    "./small --base ./base --headers --drop-in": (["whole holds", "drop_in does_not_hold"], 4),
    "./merged --base ./base --adapter ./adapter": (
        ["whole holds", "drop_in holds", "moved holds", "trained holds", "merged holds"], 0,
    ),
    "./cut --base ./base": (
        ["whole does_not_hold", "drop_in inconclusive", "moved inconclusive"], 4,
    ),
    "./tuned --base ./none": (["whole holds", "drop_in fault", "moved fault"], 1),
}  # fmt: skip


@pytest.mark.parametrize("words", every(4, SIDES))
def test_the_sides_choose_the_claims(models, words):
    """In one order; JSON has the keys of each line, and a command that can be typed again."""
    lines, code = SIDES[words]
    found = run_shadow("check", *words.split(), "--json", cwd=models)
    recorded = json.loads(found.out)["lines"]
    keys = {"claim", "outcome", "code", "figures", "command", "accepted"}
    assert all(line.keys() == keys for line in recorded)
    asked = [line for line in recorded if line["outcome"] != "does_not_apply"]
    assert [f"{line['claim']} {line['outcome']}" for line in asked] == lines
    assert found.code == code
    for line in asked:
        assert line["command"].startswith(f"shadow verify {line['claim']} ./")


def test_a_base_is_proposed_and_never_fetched(models):
    """What a card names is a command if it is a name on the Hub, and nothing otherwise."""
    found = run_shadow("check", "./carded", "--json", cwd=models)
    last = json.loads(found.out)["lines"][-1]
    assert (last["outcome"], found.code) == ("does_not_apply", 0)
    assert last["command"] == "shadow check ./carded --base org/name"
    found = run_shadow("check", "./hostile", cwd=models)
    assert "rm -rf" not in found.out
    found = run_shadow("check", "./merged", "--adapter", "./adapter", cwd=models)
    assert (found.code, "--base org/name" in found.err) == (2, True)


def test_a_fault_is_accepted(models):
    """Of `whole`, by its code; its line has the reason."""
    words = ("check", "./zeros", "--accept", "zero=it is pruned", "--json")
    found = run_shadow(*words, cwd=models)
    (line,) = json.loads(found.out)["lines"]
    assert (found.code, line["accepted"]) == (0, {"zero": "it is pruned"})


def test_a_card_has_eight_lines_and_no_path(models):
    """With every line that one model can have, and digests of its sides."""
    words = ("./small", "--base", "./base", "--adapter", "./adapter", "--full", "./merged")
    found = run_shadow("check", *words, "--format", "markdown", cwd=models)
    lines = found.out.splitlines()
    assert len(lines) == 8
    assert str(models) not in found.out
    assert len({text[:16] for text in lines[-1].split("sha256 ")[1:]}) == 4
    (models / "same" / "model.safetensors").touch()
    digests = shadow.check(models / "same", base=models / "base", headers=True).digests
    assert digests["model"] == digests["base"]
    words = ("./tuned", "--base", "./none", "--format", "markdown")
    assert run_shadow("check", *words, cwd=models).out.endswith(", base none sha256 unknown\n")


def test_a_list_and_its_junit(models):
    """Each entry is checked, whatever came of others; the code is the first of 1, 4, 5, 0."""
    (models / "list.yaml").write_text(
        "- ./tuned\n- {model: ./same, base: ./base}\n"
        "- {model: ./small, base: ./base, headers: true}\n"
    )
    found = run_shadow("check", "--list", "list.yaml", "--junit", "r.xml", "--json", cwd=models,
                       env={"GITHUB_STEP_SUMMARY": "summary.md"})  # fmt: skip
    checklists = json.loads(found.out)
    assert ([len(one["lines"]) for one in checklists], found.code) == ([1, 3, 2], 4)
    text = (models / "r.xml").read_text()
    assert (text.count("<testcase"), text.count("<failure")) == (6, 1)
    assert "moved" in (models / "summary.md").read_text()
    (models / "list.yaml").write_text("- ./tuned\n- ./none\n")
    assert run_shadow("check", "--list", "list.yaml", cwd=models).code == 1
    (models / "list.yaml").write_text("- {base: ./base}\n")
    assert run_shadow("check", "--list", "list.yaml", cwd=models).code == 1


def test_differences_are_notes_until_they_are_required(models):
    """Without `drop_in` the line is noted, and with it each difference has its code."""
    noted = shadow.check(models / "more", base=models / "base", headers=True)
    assert noted.lines[1].code == "noted"
    strict = shadow.check(models / "more", base=models / "base", headers=True, drop_in=True)
    assert [reason.code for reason in strict.lines[1].answer.reasons] == ["names_added"]
    cast = shadow.check(models / "small", base=models / "merged", headers=True, drop_in=True)
    assert [reason.code for reason in cast.lines[1].answer.reasons] == ["other_dtypes"]
    assert (noted.lines[1].holds, strict.holds) == (True, False)


def test_the_first_line_is_the_answer_of_whole(models):
    """Of a model in memory too; a broken tensor is named by both lines."""
    state = load_file(models / "tuned" / "model.safetensors")
    found = shadow.check(state, base=models / "base", headers=True)
    assert repr(found).splitlines()[0].startswith("whole: holds: headers of all 39")
    assert "drop_in" in found._repr_html_()
    assert (found.lines[0].claim, found.lines[0].seconds < 240) == ("whole", True)
    state["extra.weight"] = torch.ones(2, 2)
    found = shadow.check(state, base=models / "base", headers=True, drop_in=True)
    assert [row.name for row in found.lines[1].against] == ["extra.weight"]
    assert found.lines[1].code == "names_added"
    del state["extra.weight"]
    broken = dict(state) | {NAME: torch.full_like(state[NAME], float("nan"))}
    (models / "nan").mkdir()
    shutil.copy(models / "tuned" / "config.json", models / "nan")
    save_file(broken, models / "nan" / "model.safetensors")
    found = shadow.check(models / "nan", base=models / "base")
    assert [line.code for line in found.lines][2] == "broken_values"
    assert [row.name for row in found.lines[2].against] == [NAME]


def test_what_is_shown(models):
    """A line that fails says which command shows more; hostile names are text."""
    bad = models / "bad\x1b[31m"
    shutil.copytree(models / "same", bad, dirs_exist_ok=True)
    found = run_shadow("check", f"./{bad.name}", "--base", "./base", cwd=models)
    assert "\x1b" not in found.out
    rows = {line.split()[0]: line for line in found.out.splitlines() if line.strip()}
    assert rows["drop_in"].endswith("beside the weights")  # no terminal breaks it
    assert "shadow verify moved ./base" in found.out
    missing = run_shadow("check", "./tuned", "--base", "./none", cwd=models).out
    assert missing.count("name the folder that holds the .safetensors files") == 1


def test_a_prefix_before_all_names_is_none_of_a_drop_in(models):
    """As transformers and the pairing see it, from either side; a note says so."""
    state = load_file(models / "tuned" / "model.safetensors")
    planted.write(models / "outer", {f"bert.{name}": one for name, one in state.items()})
    planted.write(models / "inner", state)
    for sides, where in ((("inner", "outer"), "the model"), (("outer", "inner"), "the base")):
        found = shadow.verify("drop_in", *(models / side for side in sides))
        assert (found.holds, found.figures["tensors"]) == (True, len(state))
        assert found.notes[0].startswith(f"names in {where} begin with 'bert.'")
    planted.write(models / "outer", {f"bert.{name}": state[name] for name in [*state][1:]})
    found = shadow.verify("drop_in", models / "inner", models / "outer")
    assert [(row.code, row.name) for row in found.against] == [("only_in", next(iter(state)))]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Matrices of 1024 x 1024: a base in BF16, a tune in F32 and in BF16, a LoRA and its merge;
    some that the pairing transposes and splits.
    """
    top = tmp_path_factory.mktemp("large")
    base = {name: one.bfloat16() for name, one in planted.matrices(0, size=1024).items()}
    full = {name: one + planted.normal(3, *one.shape) for name, one in base.items()}
    factors = {}
    merged = {}
    for name, one in base.items():
        factors[name] = 0.01 * planted.normal(1, 1024, 4), planted.normal(2, 4, 1024)
        merged[name] = (one + 2 * (factors[name][0] @ factors[name][1])).bfloat16()
    modules = ["up_proj", "gate_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
    planted.adapter(top / "adapter", factors, target_modules=modules)
    model = {name: one.bfloat16() for name, one in full.items()}
    for name, state in {"base": base, "full": full, "model": model, "merged": merged}.items():
        planted.write(top / name, state)
    for seed, name in enumerate(("old", "conv")):
        state = {"h.0.mlp.c_fc.weight": planted.normal(seed, 1024, 4096).bfloat16(),
                 "h.0.attn.c_attn.weight": planted.normal(seed, 1024, 3072).bfloat16()}  # fmt: skip
        planted.write(top / name, state, {"model_type": "gpt2"})
    return top


READ = {  # words -> how often the weights of each side are read
    "model": {"model": 1}, "model --base base": {"model": 1, "base": 1},
    "model --full full": {"model": 1, "full": 1}, "full --base base": {"full": 1, "base": 1},
    "model --base base --full full": {"model": 1, "base": 1, "full": 1},
    "merged --base base --adapter adapter": {"merged": 1, "base": 1},
    "conv --base old": {"conv": 1, "old": 1},  # it is not compared in the order of the file
}  # fmt: skip


@pytest.mark.parametrize("words", READ)
def test_each_byte_of_a_model_is_read_once(large, words, monkeypatch):
    """Headers and samples for digests come on top. Every line is the answer that its claim has by
    itself, to the bit.
    """
    model, *options = words.split()
    named = zip(options[::2], options[1::2], strict=True)
    sides = {word.lstrip("-"): large / name for word, name in named}
    read = Counter()
    of_file = HeldFile.read

    def counted(self, start, into):
        if start:  # no header
            read[self.path.parent.name] += len(into)
        return of_file(self, start, into)

    monkeypatch.setattr(HeldFile, "read", counted)
    found = shadow.check(large / model, **sides, jobs=1)
    for name, times in READ[words].items():
        weights = sum(one.nbytes for one in load_file(large / name / "model.safetensors").values())
        assert times <= read[name] / weights < times + 0.05, name
    monkeypatch.undo()
    for line in [line for line in found.lines if line.code != "noted"]:
        of = dict(line.of)
        more = {"base": of.pop("--base")} if "--base" in of else {}
        assert line.answer == shadow.verify(line.claim, *of.values(), **more).answer


@pytest.mark.parametrize(("name", "faults"), [("base", {"moved", "stored"}), ("full", {"stored"})])
def test_a_file_that_cannot_be_read_is_a_fault_of_its_claims_alone(
    large, name, faults, monkeypatch
):
    """Others read the same tensors beside them, and have all of their rows."""
    of_file = HeldFile.read

    def broken(self, start, into):
        if self.path.parent.name == name and start > self.size / 2:
            raise ShadowError("planted")
        return of_file(self, start, into)

    base, full, model = (large / side for side in ("base", "full", "model"))
    of = {"whole": [model], "moved": [base, model]}
    alone = {claim: shadow.verify(claim, *sides).answer for claim, sides in of.items()}
    monkeypatch.setattr(HeldFile, "read", broken)
    found = shadow.check(model, base=base, full=full)
    assert {line.claim for line in found.lines if line.code == "fault"} == faults
    for line in found.lines:
        assert line.claim not in alone.keys() - faults or line.answer == alone[line.claim]
