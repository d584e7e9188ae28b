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


def test_the_typical_step_is_that_of_entries_that_no_grid_holds():
    figures = judge(Training([STEP, row("move", 0, (HELD,))])).figures
    assert figures["typical_step"] == pytest.approx(1e-4)
    assert figures["entries_stuck"] == 200
    few = row("move", 99, (Cell(2.0**-20, 99, 99, 99.0),))  # too few to tell
    assert not judge(Training([few])).figures.keys() & {"typical_step", "entries_stuck"}


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
