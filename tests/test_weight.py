"""The guard of the project's weight: what is too heavy or too dense, or raised without a reason,
is said.
"""

import pytest
import weight


def table(limit, reason=""):
    return f"[tool.shadow.weight]\nsrc-tokens = {limit}{reason}\n"


@pytest.mark.parametrize(("tokens", "limit", "reason", "before", "count"), [
    (10, 10, "", 10, 0),
    (11, 10, "", 10, 1),
    (9, 11, "", 10, 1),
    (9, 11, "  # a format more", 10, 0),
    (9, 9, "", 10, 0),
])  # fmt: skip
def test_limits(tokens, limit, reason, before, count):
    now = {"src-tokens": tokens}
    assert len(weight.faults(now, table(limit, reason), table(before))) == count


def test_tokens_leave_out_comments_and_docstrings():
    assert len(weight.counted('"""What it is."""\nx = 1  # one\n')) == 3


PACKED = """
import os

NAMES = (  # as they are
    "a", "b",
)  # fmt: skip


def f(xs, c):
    \"\"\"What it is.\"\"\"
    a, b = xs, c
    for x in xs if c else ():
        print([*(x + y for y in xs)], *(y for y in xs if c), *xs, a, b)
    return [x for x in (xs if c else ())]
"""


def test_density_counts_tokens_a_line_and_packed_statements():
    """By hand: lines of 2, 7, 8, 7, 10, 33 and 15 tokens; a comment and a comma change none."""
    found = weight.density(weight.formatted(PACKED))
    assert (found.parallel, found.conditional_loops, found.unpacked_generators) == (1, 2, 2)
    assert (found.lines, found.tokens) == (7, 2 + 7 + 8 + 7 + 10 + 33 + 15)


@pytest.mark.parametrize(("density", "count"), [
    (weight.Density(8_500, 1_000, 8), 0), (weight.Density(8_501, 1_000), 1),
    (weight.Density(1_000, 1_000, 9), 1), (weight.Density(1_000, 1_000, 0, 1, 1), 2),
    (weight.Density(9_000, 1_000, 9, 1, 1), 4),
])  # fmt: skip
def test_limits_of_density(density, count):
    assert len(weight.density_faults("room", density)) == count


def test_narrow_lines_and_magic_commas_do_not_meet_the_limit():
    """A module is counted as it is in lines of 100, whatever its own lines are."""
    wide = "x = f(aaaa, bbbb, cccc, dddd, eeee)\n"
    narrow = "x = f(\n    aaaa,\n    bbbb,\n    cccc,\n    dddd,\n    eeee,\n)\n"
    assert weight.density(weight.formatted(narrow)).lines == 1
    assert weight.formatted(narrow) == wide
