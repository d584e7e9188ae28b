"""How hard tests try: little by default, as hard as they can in `make test-slow`.

Tests of properties have few examples, or as many as each asks for with
--hypothesis-profile=thorough. Of a table of cases that are alike some are tested by default, the
others are marked slow.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=10, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
# pytest loads the one that it was told to before it imports the tests
settings.load_profile("quick")


def examples(count: int) -> int:
    """That many examples in a thorough run; in another the share that any test has of its own."""
    return max(3, count * settings.default.max_examples // 100)


def chosen(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Values of a parameter, of which those in fast are fast tests and the others slow ones."""
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]


def every(step: int, cases: Iterable[Any]) -> list[Any]:
    """Values of which the first and each step-th after it are fast tests and the others slow."""
    return [
        pytest.param(case, marks=() if n % step == 0 else pytest.mark.slow)
        for n, case in enumerate(cases)
    ]
