"""Which exit code counts, of several; how many rows of an answer are shown."""

import itertools

import pytest

from shadow.checks.answer import Against, first_code
from shadow.checks.whole.part import folded
from shadow.templates import Reason


def test_a_fault_comes_first_then_what_does_not_hold_then_what_is_open():
    """Of any codes: 1, then 4, then 5, then 3; 0 where there is none of them."""
    order = (1, 4, 5, 3, 0)
    for size in range(len(order) + 1):
        for codes in itertools.combinations(order, size):
            assert first_code(set(codes)) == (codes[0] if codes else 0)


@pytest.mark.parametrize(("count", "more"), [(100, 0), (101, 0), (102, 1), (250, 149)])
def test_of_more_than_a_hundred_rows_of_a_code_the_last_counts_the_rest(count, more):
    """One more is shown itself; of several the first is shown, with the number of the others."""
    rows = [Against(f"t{at}", Reason("lost", {"at": at})) for at in range(count)]
    other = Against("x", Reason("stray", {}))
    shown = folded([*rows, other])
    assert shown[:101] == [*rows[:100], other]
    last = [Against("t100", Reason("more", {"like": rows[100].why, "rows": more}))] if more else []
    assert shown[101:] == (last or rows[100:])
    assert not more or shown[-1].why.figures == {"like": rows[100].why, "rows": more}
