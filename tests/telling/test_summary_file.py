"""A summary is what the tables say, whatever summary.json has become."""

import json
import shutil
from pathlib import Path

import pytest

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import Pair
from shadow.targets.references import Reference
from shadow.telling.reading import read_summary

DEMO = Path(__file__).parents[2] / "registry" / "demo"


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    out = tmp_path_factory.mktemp("audited")
    sides = (Reference(str(DEMO / name), True) for name in ("base", "narrow"))
    return run_pair(Pair("demo", "base..narrow", *sides), Settings(Method(), Filter()), out)


@pytest.fixture
def report(audited, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(audited.folder, tmp_path / "report"))


def test_the_summary_of_an_audit_is_the_one_that_is_read(audited, report):
    """It is equal, to the last type, to the one that the audit returned and to summary.json."""
    summary, _ = read_summary(report)
    assert summary == audited.summary
    recorded = json.loads((report / "summary.json").read_text())
    assert json.loads(json.dumps(summary.as_json())) == recorded


@pytest.mark.parametrize(
    "change",
    [
        lambda recorded: recorded["figures"].update(concentration=0.99),
        lambda recorded: recorded["gates"][0].update(passed=True, reason="it is fine"),
        lambda recorded: recorded["finding"].update(headline="It is good."),
        lambda recorded: recorded.clear(),
        b"",
        b"[" * 100_000,
        b"\xff",
    ],
    ids=["figure", "gate", "headline", "nothing", "empty", "deep", "broken"],
)
def test_a_summary_that_was_changed_has_no_effect(audited, report, change):
    """Whatever was changed in summary.json: what is shown is what the tables say."""
    path = report / "summary.json"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        recorded = json.loads(path.read_text())
        change(recorded)
        path.write_text(json.dumps(recorded))
    assert read_summary(report)[0] == audited.summary
