"""What `trained` answers of planted rows of a scan."""

import pytest

from shadow.checks.answer import Outcome
from shadow.checks.patterns import Should
from shadow.checks.trained import CHECK, Moved, Training, judge
from shadow.places.architecture import Place
from shadow.run.scanned import Scanned, Unmatched
from shadow.spectra.entries import Cell
from shadow.templates import Reason

LONE, UNREAD = (Unmatched("b", "base", Reason(code)) for code in ("one_side", "not_read"))
FREE, HELD = Cell(2.0**-20, 200, 200, 200 * 1e-8), Cell(2.0**-8, 200, 0, 0.0)  # steps of 1e-4
FINE = Cell(2.0**-20, 100, 0, 0.0), Cell(2.0**-8, 100, 0, 0.0)  # the grid holds half of a row


def row(should, changed, cells=(), rounded=None, **more):
    scan = Scanned("p", "t", "t", ("F32", "BF16"), 200, changed, 4.0, 4.0, 0.04, rounded=rounded)
    return Moved(scan, Place("language", 0, "norm"), Should(should), cells, **more)


LOST = Reason("nonfinite", {"lost": 3, "entries": 200})
STEP = row("move", 200, (FREE,))
YES, NO, OPEN = Outcome
CASES = [  # rows -> outcome, codes of reasons, of what speaks against it with its size, of notes
    ([STEP, row("stay", 0)], YES, "moved frozen", {}, "cast"),
    ([row("stay", 0)], YES, "frozen", {}, "cast"),
    ([row("move", 0)], NO, "not_moved", {"equal": None}, ""),
    ([STEP, row("move", 0, (HELD,))], YES, "moved", {}, "stuck too_coarse"),
    ([STEP, row("move", 0, FINE)], NO, "not_moved", {"equal": None}, "stuck"),
    ([row("move", 9, rounded=("tuned", "BF16"))], NO, "not_moved", {"rounded": None}, ""),
    ([row("move", 9, rounded=("base", "F32"))], YES, "moved", {}, ""),
    ([row("stay", 9, rounded=("tuned", "BF16"))], NO, "cast_lost", {"rounded": 0.1}, ""),
    ([row("stay", 9, rounded=("base", "F32"))], NO, "leaked", {"base_cast": 0.1}, ""),
    ([STEP, row("move", 9, broken=Reason("zeros"))], NO, "broken", {"zeros": None}, ""),
    ([STEP, row("move", 9, broken=LOST)], NO, "broken", {"nonfinite": None}, ""),
    ([row("stay", 9)], NO, "leaked", {"entries": 0.1}, ""),
    ([row("stay", 9), row("move", 0)], NO, "not_moved leaked", {"equal": None, "entries": 0.1}, ""),
    ([STEP, LONE], NO, "apart", {"one_side": None}, ""),
    ([STEP, UNREAD], OPEN, "not_compared", {"not_read": None}, ""),
    ([row("stay", 9), UNREAD], NO, "leaked", {"entries": 0.1}, ""),
    ([STEP, row("move", 0, (HELD,), is_initial=True)], YES, "moved", {}, "stuck initial"),
    ([STEP, row("move", 0, is_initial=True)], YES, "moved", {}, "initial"),
    ([row("either", 9)], OPEN, "nothing", {}, "beside"),
    ([row("move", 0, is_initial=True)], OPEN, "nothing", {}, "initial"),
    ([STEP, row("move", 0, is_update=True)], NO, "not_moved", {"equal": None}, "idle"),
]


@pytest.mark.parametrize(("rows", "outcome", "reasons", "against", "notes"), CASES)
def test_rows_are_judged(rows, outcome, reasons, against, notes):
    apart = {
        name: [one for one in rows if one is which]
        for name, which in (("unmatched", LONE), ("unread", UNREAD))
    }
    answer = judge(Training([one for one in rows if isinstance(one, Moved)], **apart))
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, reasons.split())
    assert {one.why.code: pytest.approx(one.size) for one in answer.against} == against
    assert [one.code for one in answer.notes] == notes.split()
    every = [*answer.reasons, *answer.notes, *(one.why for one in answer.against)]
    assert all(map(CHECK.say, every))


MANY = [  # one of each kind: of 200 entries each
    STEP, row("move", 0, (HELD,)), row("move", 0, FINE), row("move", 9, rounded=("tuned", "BF16")),
    row("move", 9, broken=LOST), row("move", 0, is_initial=True), row("move", 0, is_update=True),
    row("stay", 0), row("stay", 9), row("stay", 8, rounded=("tuned", "BF16")), row("either", 9),
    row("either", 0), row("either", 9, rounded=("tuned", "BF16")),
]  # fmt: skip


def test_every_figure_and_word_of_an_answer():
    """Counted by hand: tensors of 200 entries, of which five should and could have moved."""
    answer = judge(Training(MANY))
    assert answer.figures == {
        "modules_without_update": 1, "typical_step": pytest.approx(1e-4), "entries_stuck": 300,
        "tensors_initial": 1, "tensors_too_coarse": 1, "tensors_to_move": 5, "tensors_broken": 1,
        "tensors_not_moved": 3, "tensors_frozen": 3, "tensors_frozen_moved": 1,
        "tensors_frozen_rounded": 1, "entries_to_move": 1000, "entries_not_moved": 782,
    }  # fmt: skip
    assert [CHECK.say(one) for one in (*answer.reasons, *answer.notes)] == [
        "1 of 5 tensors that should have moved is all zeros or not finite",
        "3 of 5 tensors that should have moved did not; 2 of them are equal up to a cast"
        " F32 -> BF16",
        "1 of 3 tensors that should be frozen differs",
        "1 of 3 tensors that should be frozen is equal up to a cast F32 -> BF16, which changed 8 of"
        " 200 entries",
        "the adapter does nothing in 1 of 1 module: the product of its factors is 0",
        "21 % of the entries that should have moved did not, where half a unit of BF16 is above the"
        " typical step of 0.00010",
        "no pattern names 3 tensors; 1 of them moved",
        "1 vector of 1 or of 0 did not move, and may be unable to: t",
        "1 tensor did not move, and may be unable to, as BF16 cannot hold the typical step of"
        " 0.00010 there: t",
        "1 tensor that should be frozen is equal up to a cast F32 -> BF16 that changed no entry",
    ]
    assert [(CHECK.say(one.why), one.size and round(one.size, 9)) for one in answer.against] == [
        ("3 of 200 entries have become NaN or infinite", None),
        ("it is equal to the base's in every entry, after a cast F32 -> BF16", None),
        ("it is equal to the base's up to a cast F32 -> BF16, which changed 9 of 200 entries",
         None),
        ("it is equal to the base's in every entry", None),
        ("9 of 200 entries differ", 0.1),
        ("it is equal to the base's up to a cast F32 -> BF16, which changed 8 of 200 entries", 0.1),
    ]  # fmt: skip
    uncounted = judge(Training([*MANY, row("move", 9, is_counted=False)])).figures
    assert answer.figures.keys() - uncounted.keys() == {"entries_not_moved"}


@pytest.mark.parametrize(("cells", "step"), [
    ((FREE, HELD), 1e-4), ((Cell(2.0**-20, 100, 90, 1e-6),), 1e-4),
    ((Cell(2.0**-20, 100, 89, 1e-6),), None), ((Cell(2.0**-20, 99, 99, 1e-6),), None),
    ((Cell(2.0**-20, 40, 40, 3e-6), Cell(2.0**-9, 60, 60, 6e-6)), 3e-4),
    ((Cell(2.0**-20, 100, 100, 0.0),), None),
])  # fmt: skip
def test_the_typical_step_is_that_of_entries_that_no_grid_holds(cells, step):
    """Where nine tenths of a binade moved; of 100 entries at least."""
    figures = judge(Training([row("move", 200, (cell,)) for cell in cells])).figures
    assert figures.get("typical_step") == (None if step is None else pytest.approx(step))
    assert ("entries_stuck" in figures) is (step is not None)


@pytest.mark.parametrize(("cells", "stuck", "may_stay"), [
    ([(2**0.5, 9, 0)], 0, True), ([(1.42, 200, 150)], 50, False), ([(0.0088, 1, 0)], 0, False),
    ([(0.0089, 1, 0)], 0, True), ([(0.0891, 2, 0)], 0, True), ([(0.0891, 2, 0)] * 2, 0, False),
    ([], 0, False),
])  # fmt: skip
def test_a_grid_holds_what_its_half_unit_is_above(cells, stuck, may_stay):
    """All entries together by chance in more than 1 of 100 cases: erf(0.00886) is 0.01."""
    moved = row("move", 0, [Cell(*of, 0.0) for of in cells])
    assert (moved.stuck(2**0.5), moved.may_stay(2**0.5)) == (stuck, may_stay)
    assert not moved.may_stay(None)


@pytest.mark.parametrize(("formats", "changed", "rounded", "chain"), [
    (("F16", "BF16"), 0, None, "F16 -> BF16"), (("F32", "F32"), 0, None, None),
    (("F32", "BF16"), 9, None, None), (("F32", "BF16"), 9, ("tuned", "BF16"), "F32 -> BF16"),
    (("F32", "F32"), 9, ("tuned", "BF16"), "F32 -> BF16 -> F32"),
    (("BF16", "F32"), 9, ("base", "BF16"), "F32 -> BF16"),
    (("F16", "F32"), 9, ("base", "BF16"), "F32 -> BF16 -> F16"),
])  # fmt: skip
def test_a_cast_is_said_as_the_formats_that_values_went_through(formats, changed, rounded, chain):
    """From the original to the copy, whichever of the two is the tuned side."""
    scan = Scanned("p", "t", "t", formats, 200, changed, 4.0, 4.0, 0.04, rounded=rounded)
    moved = Moved(scan, Place("language", 0, "norm"), Should.STAY)
    assert moved.cast == chain


@pytest.mark.parametrize(("should", "changed", "figures"), [
    ("stay", 9, {"changed": 9, "entries": 200}), ("move", 9, {"cast": 1}), ("stay", 0, {}),
])  # fmt: skip
def test_a_cast_is_one_fact_with_its_loss(should, changed, figures):
    rounded = ("tuned", "BF16") if changed else None
    answer = judge(Training([row(should, changed, rounded=rounded)]))
    said = (answer.reasons if changed else answer.notes)[0].figures
    assert said.items() >= (figures | {"casts": ["F32 -> BF16"]}).items()
