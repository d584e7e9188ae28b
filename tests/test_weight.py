"""The guard of the project's weight: what is too heavy, or raised without a reason, is said."""

from __future__ import annotations

import pytest
import weight


def table(limit, reason=""):
    return f"[tool.shadow.weight]\nsrc-lines = {limit}{reason}\n"


@pytest.mark.parametrize(
    ("lines", "limit", "reason", "before", "count"),
    [
        (10, 10, "", 10, 0),
        (11, 10, "", 10, 1),
        (9, 11, "", 10, 1),
        (9, 11, "  # a format more", 10, 0),
        (9, 9, "", 10, 0),
    ],
)
def test_limits(lines, limit, reason, before, count):
    now = {"src-lines": lines}
    assert len(weight.faults(now, table(limit, reason), table(before))) == count


def test_tokens_leave_out_comments_and_docstrings():
    assert weight.tokens('"""What it is."""\nx = 1  # one\n') == 3
