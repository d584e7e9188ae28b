"""Which exit code counts, of several."""

import itertools

from shadow.checks.answer import first_code


def test_a_fault_comes_first_then_what_does_not_hold_then_what_is_open():
    """Of any codes: 1, then 4, then 5, then 3; 0 where there is none of them."""
    order = (1, 4, 5, 3, 0)
    for size in range(len(order) + 1):
        for codes in itertools.combinations(order, size):
            assert first_code(set(codes)) == (codes[0] if codes else 0)
