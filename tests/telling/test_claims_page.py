"""The error rates of docs/verify.md: their bounds, and that page, file and `explain` agree."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claims
import symptoms
from evidence.evidence_parts import bounds

from shadow.checks.registry import CHECKS
from shadow.telling.dictionary import other_words

ROOT = Path(__file__).parents[2]


def test_bounds_are_exact():
    """0 of n: 1 - 0.05^(1/n); n of n: 0.05^(1/n); 1 of 10: the interval of the literature."""
    assert bounds(0, 150) == (0.0, pytest.approx(1 - 0.05 ** (1 / 150)))
    assert bounds(20, 20) == (pytest.approx(0.05 ** (1 / 20)), 1.0)
    assert bounds(1, 10) == (pytest.approx(0.0025286, rel=1e-4), pytest.approx(0.445016))


def test_the_plants_are_those_of_the_page():
    """At least 300, all claims that have a rate, and as many of each kind as the page says."""
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    plants = claims.plants()
    assert len(plants) >= 300
    rated = {code for code, one in CHECKS.items() if one.error_rate}
    planted = rated - {"quantised"}  # which has a benchmark of its own
    assert {one.claim for one in plants} == planted
    for claim in planted:
        own = [one for one in plants if one.claim == claim]
        kinds = len({one.kind for one in own})
        assert f"| `{claim}` | {kinds} | {len(own)} |" in text


def test_the_symptoms_are_those_of_the_page():
    """At least 400 of all kinds that owners report, and as many of each as the page says."""
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    cases = Counter()
    for row, _, kinds, _ in symptoms.PLANTS:
        cases[row] += max(symptoms.LEAST, len(kinds))
    assert cases.keys() == symptoms.ROWS.keys()
    assert cases.total() >= 400
    assert [title for row, title in symptoms.ROWS.items()
            if f"| {title} | {cases[row]} |" not in text] == []  # fmt: skip


def test_the_file_of_rates_is_what_explain_quotes():
    """Every rate is of a claim, and of as many answers as the file says."""
    path = ROOT / "src" / "shadow" / "checks" / "verify_error_rates.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))["answers"]
    assert set(recorded) <= set(CHECKS)
    for code, (wrong, of) in recorded.items():
        assert (CHECKS[code].error_rate.wrong, CHECKS[code].error_rate.of) == (wrong, of)
        assert {str(wrong), f"{of:,}"} <= set(other_words()[code].text.split())
