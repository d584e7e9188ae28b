"""Summaries that several modules read."""

import pytest
from finding_cases import MUST, summary_of

from shadow.telling.reading import read_summary


@pytest.fixture
def must(tmp_path):
    """The summary of the report that needs a sentence, by its code."""

    def summary(code):
        deltas, more = MUST[code]
        return summary_of(tmp_path / code, deltas, **more)

    return summary


@pytest.fixture(scope="session")
def demo(demo_reports):
    """The summaries of the demo's pairs, by pair."""
    return {folder.name: read_summary(folder)[0] for folder in demo_reports.iterdir()}
