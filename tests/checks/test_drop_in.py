"""What `drop_in` and `moved` answer of planted evidence; which claims a checklist asks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_trained import LONE, LOST, NO, OPEN, STEP, UNREAD, YES, row

from shadow.checks import checklist, moved
from shadow.checks.answer import Answer, FailedVerification, Verification
from shadow.checks.checklist import Checklist, CheckRequest
from shadow.checks.drop_in import CHECK, Headers, judge
from shadow.checks.registry import question
from shadow.checks.trained import Moved, Training
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.run.runtime import Access, Runtime
from shadow.targets.references import Reference
from shadow.telling.checklist import checklist_document
from shadow.telling.document import Note
from shadow.templates import Reason

BASE = {"b": ("2x3", "BF16"), "a": ("4", "F32"), "c": ("4", "F32")}
ROWS = {  # path -> kind, state, differs, detail
    "same": ("config", "same", None, None), "config.json": ("config", "changed", "x", "x: 1"),
    "gone.jinja": ("chat_template", "removed", "y", None), "lost": ("code", "unknown", "z", None),
    "*": ("other", "unknown", None, None), "note": ("document", "changed", "z", None),
    "far.md": ("document", "unknown", None, None),
}  # fmt: skip
CASES = [  # what a model has otherwise, files -> outcome; names by reason; what is not known
    ({}, "", YES, {}, []), ({}, "same note far.md", YES, {}, []),
    ({}, "lost * far.md", OPEN, {}, ["lost", "*"]),
    ({"b": None, "a": None}, "", NO, {"names_missing": ["a", "b"]}, []),
    ({"e": ("1", "U8"), "d": ("1", "U8")}, "lost", NO, {"names_added": ["d", "e"]}, ["lost"]),
    ({"b": ("3x2", "F16")}, "", NO, {"other_shapes": ["b"], "other_dtypes": ["b"]}, []),
    ({"c": ("4", "F16"), "a": ("4", "F16")}, "", NO, {"other_dtypes": ["a", "c"]}, []),
    ({}, "same config.json gone.jinja *", NO,
     {"config_differs": ["config.json"], "chat_template_differs": ["gone.jinja"]}, ["*"]),
]  # fmt: skip


@pytest.mark.parametrize(("other", "paths", "outcome", "names", "unknown"), CASES)
def test_every_difference_of_headers_and_files_is_named(other, paths, outcome, names, unknown):
    """By its reason, in the order of names; a file that is not known leaves it open."""
    model = {name: header for name, header in (BASE | other).items() if header}
    keys = ("kind", "state", "differs", "detail")
    files = [dict(zip(keys, ROWS[path], strict=True)) | {"path": path} for path in paths.split()]
    answer = judge(Headers(BASE, model, files))
    assert answer.outcome is outcome
    counts = {code: len(of) for code, of in names.items()}
    counts |= {"tensors": len(model), "tensors_of_base": 3, "files_unknown": len(unknown)}
    assert answer.figures == dict.fromkeys(answer.figures, 0) | counts
    assert [row.name for row in answer.against] == [name for of in names.values() for name in of]
    doubt = Reason("files_unknown", names=unknown)
    assert [*answer.doubts] == ([doubt] if outcome is NO and unknown else [])
    if outcome is YES:
        files = 1 if "same" in paths else None
        assert answer.reasons == [Reason("like_base", tensors=3, files=files)]
    elif outcome is OPEN:
        assert answer.reasons == [doubt]
    else:
        cast = Reason("change", before="F32", after="F16")
        for reason, (code, of) in zip(answer.reasons, names.items(), strict=True):
            assert (reason.code, reason.figures["names"]) == (code, of)
            assert reason.figures["tensors"] == len(of)
            changes = reason.figures["changes"]
            assert changes == ([cast] if "c" in other else changes)
            assert len(changes) == (code == "other_dtypes")
        why = {row.name: row.why.figures.get("state") for row in answer.against}
        states = {"config.json": "x: 1", "gone.jinja": "removed"}
        assert all(why[path] == states[path] for path in states if path in paths)
    assert all(map(CHECK.say, [*answer.reasons, *answer.doubts]))


MATRIX = replace(STEP, place=Place("language", 0, "mlp.up"))
NORM = replace(STEP, row=replace(STEP.row, base_energy=400.0))
STILL = replace(row("move", 0), place=Place("vision", 0, "norm"))
BROKEN = row("move", 9, broken=LOST)
EMPTY = replace(STEP, row=replace(STEP.row, entries=0))
BOTH = "component_moved component_equal"


@pytest.mark.parametrize(("rows", "outcome", "reasons", "notes", "counts"), [
    ([MATRIX, NORM, EMPTY], YES, "component_moved", "", (2, 2, 0, 0, 1)),
    ([MATRIX, STILL, LONE], YES, BOTH, "apart", (2, 1, 0, 0, 2)),
    ([STILL], NO, "nothing_moved", "component_equal", (1, 0, 0, 0, 1)),
    ([STILL, UNREAD], OPEN, "not_compared", "component_equal", (1, 0, 0, 1, 1)),
    ([MATRIX, UNREAD], OPEN, "not_compared", "component_moved", (1, 1, 0, 1, 1)),
    ([EMPTY], OPEN, "nothing_shared", "", (0, 0, 0, 0, 0)),
    ([UNREAD], OPEN, "not_compared", "", (0, 0, 0, 1, 0)),
    ([MATRIX, BROKEN, STILL, UNREAD], NO, "broken_values", BOTH, (3, 1, 1, 1, 2)),
])  # fmt: skip
def test_something_moved_and_nothing_broke(rows, outcome, reasons, notes, counts):
    """Components are described whatever the answer is; tensors of one side are notes."""
    tensors = [one for one in rows if isinstance(one, Moved)]
    answer = moved.judge(
        Training(tensors, unmatched=[LONE] * (LONE in rows), unread=[UNREAD] * (UNREAD in rows))
    )
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, reasons.split())
    assert [one.code for one in answer.notes] == notes.split()
    assert tuple(answer.figures.values()) == (*counts, 0)
    names = [row.why.code for row in answer.against]
    assert names == (["nonfinite"] if BROKEN in rows else [] if outcome is not OPEN else names)
    described = {one.code: one.figures for one in [*answer.reasons, *answer.notes]}
    if "component_moved" in described:  # MATRIX: an energy of 0.04 over one of 4; no norm counts
        own = described["component_moved"]
        assert (own["component"], own["far"]) == ("language", pytest.approx(0.1))
        assert (own["moved"], own["tensors"]) == (counts[1], counts[1] + counts[2])
    assert all(map(moved.CHECK.say, [*answer.reasons, *answer.notes]))


@pytest.mark.parametrize(
    ("cosine", "outcome"), [(0.51, YES), (0.49, OPEN), (0.0, OPEN), (-1, OPEN)]
)
def test_models_with_little_in_common_are_not_said_to_have_moved(cosine, outcome):
    """Two unit vectors at that cosine: |a - b|^2 is 2 - 2 cos; norms near 1 do not count."""
    of_unit = {"base_energy": 1.0, "tuned_energy": 1.0, "delta_energy": 2 - 2 * cosine}
    far = replace(STEP, row=replace(STEP.row, **of_unit), place=Place("language", 0, "mlp.up"))
    near = replace(far, row=replace(far.row, delta_energy=0.01, base_energy=9, tuned_energy=9))
    norm = replace(near, place=replace(near.place, module="norm"))
    answer = moved.judge(Training([far, norm]))
    assert answer.outcome is outcome
    code = "component_moved" if outcome is YES else "component_unlike"
    (reason,) = answer.reasons
    assert reason.code == code
    if outcome is OPEN:
        assert reason.figures["cosine"] == pytest.approx(cosine)


# ------------------------------------------------------------------------------------- checklists


def reference(name):
    return Reference(f"/{name}", is_folder=True)


KINDS = {
    "plain": SimpleNamespace(adapter=None, config={}, tensors={}, refused=()),
    "packed": SimpleNamespace(
        adapter=None, config={"quantization_config": {"bits": 4}}, tensors={}, refused=()
    ),
    "lora": SimpleNamespace(adapter=True, config={}, tensors={}, refused=()),
    "unreadable": None,
}


@pytest.mark.parametrize(("words", "claims"), [
    ("plain", ""), ("plain adapter", ""), ("plain base headers full adapter", "drop_in"),
    ("plain base", "drop_in:base,model moved:base,model"), ("lora", ""), ("lora base headers", ""),
    ("plain base adapter", "drop_in moved trained:base,adapter merged:base,adapter,model"),
    ("plain full", "stored:full,model"), ("plain base full", "drop_in moved stored"),
    ("packed full", "quantised:full,model"), ("packed base full", "drop_in quantised"),
    ("packed base", "drop_in moved"), ("packed full headers", ""),
    ("lora base", "trained:base,model"), ("unreadable base full", "drop_in moved stored"),
])  # fmt: skip
def test_the_sides_of_a_checklist_choose_its_claims(words, claims):
    """Each with its checkpoints, in their order."""
    kind, *given = words.split()
    sides = {name: reference(name) for name in given if name != "headers"}
    request = CheckRequest(reference("model"), headers="headers" in given, **sides)
    asked = checklist._claims(request, KINDS[kind])
    expected = [claim.partition(":") for claim in claims.split()]
    for claim, (name, _, of) in zip(asked, expected, strict=True):
        assert claim.claim == name
        own = [side.repo.strip("/") for side in claim.checkpoints]
        assert own == (of.split(",") if of else own)


LONG = f"---\nx: {'x' * (65536 - 28)}\nbase_model: org/name"  # the whole front


@pytest.mark.parametrize(("card", "base"), [
    ("---\nbase_model: org/name\n---", "org/name"), ("---\na: 1\n---\nbase_model: org/name\n", ""),
    ("---\nx: 1\nbase_model:\n- 'a.b/c'\n", "a.b/c"), ('---\nbase_model: "o/n"  \n', "o/n"),
    ("text\n---\nbase_model: org/name\n", ""), ("---\nbase_model: org/name/x\n", ""),
    ("---\nbase_model: name\n", ""), ("---\nbase_model: .a/b\n", ""),
    (f"---\nbase_model: {'o' * 96}/{'n' * 96}\n", f"{'o' * 96}/{'n' * 96}"), (LONG, "org/name"),
    (f"---\nbase_model: {'o' * 97}/n\n", ""), (f"---\nbase_model: o/{'n' * 97}\n", ""),
    (LONG.replace("x: ", "xx: ", 1), "org/nam"), (None, ""),
])  # fmt: skip
def test_the_base_of_a_card_is_a_name_on_the_hub(tmp_path, card, base):
    """In the first 64 KiB, above its text; an adapter says it itself."""
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    request = CheckRequest(Reference(str(tmp_path), is_folder=True))
    assert checklist._named_base(request, None, Runtime()) == base
    adapter = SimpleNamespace(adapter=SimpleNamespace(base=base or "./a b"))
    assert checklist._named_base(request, adapter, Runtime()) == base


def line(claim, outcome, **more):
    check = question(claim, [reference("base"), reference("model")]).check
    return Verification(check, {"BASE": "a"}, Answer(outcome, [], **more))


def test_a_difference_from_the_base_is_noted_and_nothing_else_is():
    doubts = {"doubts": ["x"]}
    lines = [line("drop_in", NO), line("drop_in", NO, **doubts), line("moved", NO),
             line("drop_in", OPEN)]  # fmt: skip
    assert [checklist._softened(one).outcome for one in lines] == [YES, OPEN, NO, OPEN]
    assert checklist._softened(lines[3]) is lines[3]
    (noted,) = checklist._softened(lines[0]).answer.reasons
    assert noted.code == "noted"
    shapes = Reason("other_shapes", tensors=2, names=["a", "b"])
    config = Reason("config_differs", names=["config.json"])
    assert CHECK.say(Reason("noted", what=[shapes, config])) == (
        "not required, but noted: 2 tensors have another shape: a, b; config differs: config.json"
    )


def test_a_checklist_ends_with_the_worst_of_its_lines():
    """1 before 4 before 5; a claim about a model that `whole` cannot open stays open."""
    asked = question("moved", [reference("base"), reference("model")])
    error = ShadowError("broken")
    fault = checklist._failed(asked, error, is_known=False)
    assert isinstance(fault, FailedVerification)
    unclear = checklist._failed(asked, error, is_known=True)
    good, bad = line("moved", YES), line("moved", NO)
    request = CheckRequest(reference("model"))
    for lines, code, holds in (
        ([good], 0, True), ([good, unclear], 5, None), ([unclear, bad], 4, False),
        ([bad, fault], 1, None),
    ):  # fmt: skip
        ended = Checklist(request, tuple(lines))
        assert (ended.exit_code, ended.holds, ended.proposed) == (code, holds, "")


def test_a_command_can_be_typed(monkeypatch, tmp_path):
    """A folder from here; quotes where a shell needs them; options with their values."""
    monkeypatch.chdir(tmp_path)
    of = {"BASE": f"{tmp_path}/a b", "MODEL": "org/x @ main", "--base": "/far", "--headers": "yes"}
    failed = FailedVerification("stored", of, "x")
    words = "shadow verify stored './a b' org/x@main --base /far --headers"
    assert checklist.command_of(failed) == words
    request = CheckRequest(Reference(f"{Path.cwd()}/m", is_folder=True))
    assert Checklist(request, (), "org/b").proposed == "shadow check ./m --base org/b"


def test_a_command_repeats_what_changes_the_answer():
    """How files are read, in commands about lines too; of a model, all sides and options."""
    access = Access(allow_pickle=True, offline=True, file="*Q8 0*", max_disk=5000)
    read = " --allow-pickle --offline --file '*Q8 0*'"
    failed = FailedVerification("moved", {"BASE": "o/b", "MODEL": "o/m"}, "x")
    assert checklist.command_of(failed, access) == f"shadow verify moved o/b o/m{read}"
    given = {"full": Reference("o/f", is_folder=False), "headers": True, "drop_in": True}
    request = CheckRequest(Reference("o/m", is_folder=False), accept={"zero": "it's cut"}, **given)
    made = Checklist(request, (failed, failed), "o/b", access=access)
    words = f"--base o/b --full o/f --headers --drop-in --accept 'zero=it'\"'\"'s cut'{read}"
    assert made.proposed == f"shadow check o/m {words}"
    first, _, last = made.as_json()["lines"]
    assert first["command"] == f"shadow verify moved o/b o/m{read}"
    assert last["command"] == made.proposed
    notes = [one.text for one in checklist_document(made).blocks if isinstance(one, Note)]
    assert notes[0] == f"`{first['command']}` shows more"
