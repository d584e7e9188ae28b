"""Slots of templates: what they write, and which figures they note."""

import pytest

from shadow.templates import fill

FIGURES = {"a.b": 2, "one": 1, "of": 3, "names": ["x", "y", "z", "w"], "none": None}


@pytest.mark.parametrize(("template", "text", "noted"), [
    ("{a.b:count tensor|tensors} {a.b|is|are}", "2 tensors are", ["a.b"]),
    ("{a.b:all matrix|matrices}", "both matrices", ["a.b"]),
    ("{a.b/of:all matrix|matrices}", "2 of 3 matrices", ["a.b", "of"]),
    ("{of/of:all matrix|matrices}", "all 3 matrices", ["of", "of"]),
    ("{one/one:all matrix|matrices}", "the only matrix", ["one", "one"]),
    ("{names:and}", "x, y, z and w", []),
    ("{names}", "x, y, z and 1 more", []),
    ("a[ of {none:count}][ in {of:share}]", "a in 300 %", ["of"]),
])  # fmt: skip
def test_a_slot_writes_its_figure(template, text, noted):
    names: list[str] = []
    assert fill(template, FIGURES, names.append) == text
    assert names == noted
