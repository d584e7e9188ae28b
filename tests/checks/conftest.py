"""The demo's reports."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def demo(demo_reports):
    """The folder of each pair of the demo."""
    return {pair: demo_reports / f"base..{pair}" for pair in ("narrow", "broad")}
