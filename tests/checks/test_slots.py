"""The words of templates: slots, what is left out, and what is refused."""

import pytest

from shadow.checks.answer import Check
from shadow.templates import Reason, fill, names_in

NAMES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("template", "figures", "text"), [
    ("{a} of {b.c}", {"a": "x", "b.c": "y"}, "x of y"),
    ("{a:share}, {a:number}", {"a": 0.0123}, "1.2 %, 0.0123"),
    ("{a:fixed}", {"a": -0.0}, "0.00"),
    ("{n:count tensor|tensors} {n|is|are}", {"n": 1}, "1 tensor is"),
    ("{n:count tensor|tensors} {n|is|are}", {"n": 1234}, "1,234 tensors are"),
    ("{n:count tensor|tensors}", {"n": 0}, "0 tensors"),
    ("{n:all tensor|tensors}", {"n": 1}, "the only tensor"),
    ("{n:all tensor|tensors}", {"n": 2}, "both tensors"),
    ("{n:all tensor|tensors}", {"n": 1234}, "all 1,234 tensors"),
    ("{n/of:all tensor|tensors}", {"n": 3, "of": 3}, "all 3 tensors"),
    ("{n/of:all tensor|tensors}", {"n": 2, "of": 3}, "2 of 3 tensors"),
    ("{some}", {"some": NAMES[:3]}, "a, b, c"),
    ("{some}", {"some": NAMES}, "a, b, c and 2 more"),
    ("{some:and}", {"some": NAMES[:3]}, "a, b and c"),
    ("x[, of {a}][; {b:count}]", {"a": "y", "b": 0}, "x, of y; 0"),
    ("x[, of {a} in {b}]", {"a": "y", "b": None}, "x"),
    ("x[, {n/of:all tensor|tensors}]", {"n": 1}, "x"),
    ("{a}", {"a": "[{b}] {c"}, "[{b}] {c"),  # a name of a file is no template
])  # fmt: skip
def test_slots(template, figures, text):
    assert fill(template, figures) == text


@pytest.mark.parametrize(
    ("template", "error"),
    [("{b}", KeyError), ("{a:count}", AssertionError), ("{n:furlongs}", KeyError)],
)
def test_what_a_template_lacks_is_a_fault(template, error):
    with pytest.raises(error):
        fill(template, {"a": "x", "n": 1})


def test_numbers_that_are_written_are_noted():
    """Not what is left out, nor a word beside a number."""
    noted = []
    template = "{n/of:all one|many} {n|is|are} {name}[ {gone:count}][ {b:share}]"
    fill(template, {"n": 1, "of": 2, "name": "x", "gone": None, "b": 0.5}, noted.append)
    assert noted == ["n", "of", "b"]
    assert names_in(template) == ["n", "of", "n", "name", "gone", "b"]


def test_reasons_inside_reasons_are_said():
    words = {"outer": "{inner}: {several}", "inner": "{n:count}"}
    check = Check("x", "x", "x", lambda found: found, words)
    one, two = (Reason("inner", {"n": n}) for n in (1, 2))
    assert check.say(Reason("outer", {"inner": one, "several": [one, two, "x"]})) == "1: 1, 2, x"
    assert check.say_all([one, Reason("said", {"text": "y"})]) == "1; y"


def test_figures_of_a_reason_are_given_by_name_or_as_a_mapping():
    """A name goes before the same key of a mapping; a key may be any name, also `code`."""
    given = {"n": 1, "inside.n": 2}
    reason = Reason("x", given, n=3, code="y", figures="z")
    assert reason.code == "x"
    assert reason.figures == {"n": 3, "inside.n": 2, "code": "y", "figures": "z"}
    assert given == {"n": 1, "inside.n": 2}
    assert Reason("x", n=1) == Reason("x", {"n": 1}) != Reason("x", n=2)
