"""The list of the slowest tests."""

import pytest
import slowest


def report(nodeid, seconds, proves="It holds"):
    own = {"when": "call", "outcome": "passed", "keywords": {}, "location": ("", 0, "")}
    named = [("proves", proves)]
    return pytest.TestReport(nodeid, longrepr=None, duration=seconds, user_properties=named, **own)


def test_cases_and_phases_of_a_test_count_together():
    """The slowest is first, and at most COUNT have a line."""
    parts = [("tests/a.py::one[x]", 1.0), ("tests/a.py::one[x]", 1.5), ("tests/a.py::one[y]", 1.0)]
    others = [(f"tests/b.py::two{number}", 0.5) for number in range(slowest.COUNT)]
    first, second, *rest = slowest.lines([report(*part) for part in (*others, *parts)])
    assert first == "  3.5 s    2  a.py::one: It holds"
    assert second.startswith("  0.5 s    1  b.py::two")
    assert len(rest) == slowest.COUNT - 2


def test_what_it_proves_is_the_first_sentence(request):
    """Whole, over
    lines. Not this one.
    """
    assert slowest.sentence(request.node) == "Whole, over lines"
    request.node.function.__doc__ = None
    assert slowest.sentence(request.node) == "test what it proves is the first sentence"
