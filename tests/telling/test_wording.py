"""Words that sentences share."""

from __future__ import annotations

import pytest

from shadow.telling.wording import spans_of


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([7, 0, 3, 1, 2, 5], "0 to 3, 5 and 7"),
        ([4], "4"),
        ([1, 2], "1 and 2"),  # two are as short as their span
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10 and 14 more"),
    ],
)
def test_layers_in_a_row_are_a_span(numbers, text):
    assert spans_of(list(numbers)) == text
