"""Rows or columns in another order are found, and nothing else is taken for them."""

from __future__ import annotations

import pytest
import torch

from shadow.spectra.reordering import reordered
from shadow.spectra.spectrum import Sides, Workspace

ROWS, COLS = 96, 64


def drawn(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed))


def order(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def found(base: torch.Tensor, tuned: torch.Tensor) -> str | None:
    return reordered(Sides(base, tuned, torch.float32, Workspace()))


BASE, BOTH = drawn(), drawn()[order(ROWS)][:, order(COLS)]
CASES = {  # what becomes of BASE, and what is found
    "rows": (BASE[order(ROWS)], "rows"),
    "rolled": (BASE.roll(17, 0), "rows"),
    "columns": (BASE[:, order(COLS)], "columns"),
    "both": (BOTH, "rows and columns"),
    "rows, trained": (BASE[order(ROWS)] + 0.1 * drawn(2), "rows"),
    "columns, trained": (BASE[:, order(COLS)] + 0.1 * drawn(2), "columns"),
    "both, trained": (BOTH + 0.01 * drawn(2), None),  # of which nothing is said
    "rows, some negated": (BASE[order(ROWS)] * drawn(3)[:, :1].sign(), "rows"),
    "a few rows": (torch.cat([BASE[:24].flip(0), drawn(4)[24:]]), None),
    "another": (drawn(5), None),
    "at their places": (BASE * drawn(6)[:, :1], None),
    "zeros": (torch.zeros(ROWS, COLS), None),
}


@pytest.mark.parametrize("case", CASES)
def test_an_order_is_named_where_most_rows_or_columns_are_the_bases(case):
    """Up to sign and some training; rows that stayed where they were are in no other order."""
    tuned, wanted = CASES[case]
    assert found(BASE, tuned) == wanted
    groups = BASE.view(4, ROWS // 4, COLS), tuned.contiguous().view(4, ROWS // 4, COLS)
    assert found(*groups) == wanted
    swapped = {"rows": "columns", "columns": "rows"}
    assert found(BASE.T, tuned.T) == swapped.get(str(wanted), wanted)


def test_likenesses_that_are_many_say_nothing():
    """Rows that are all alike, matrices of signs, whose rows have one energy, and few columns."""
    alike = torch.ones(ROWS, 1) * drawn()[:1]
    assert (
        found(alike, alike.roll(5, 0) * torch.tensor([1.0, -1.0]).repeat(ROWS // 2)[:, None])
        is None
    )
    assert found(drawn().sign(), drawn(1).sign()) is None
    assert found(drawn().sign(), drawn().sign().roll(17, 0)) == "rows"
    assert found(drawn()[:, :8], drawn()[:, :8].roll(17, 0)) is None


def test_sizes_do_not_matter():
    """The squares of the smallest and largest entries of F32 vanish and overflow; no order is made
    up of them.
    """
    for size in (1e-30, 1e30):
        assert found(size * drawn(), size * drawn(1)) is None
