"""How hard tests of properties try: little by default, as hard as each asks for with --hypothesis-profile=thorough."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quick", max_examples=10, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")  # pytest loads the one that it was told to before it imports the tests


def examples(count: int) -> int:
    """So many examples in a thorough run, and as large a share of them in another as of any test's."""
    return max(3, count * settings.default.max_examples // 100)
