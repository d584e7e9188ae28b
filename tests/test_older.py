"""Reports that version 0.1.0 wrote are shown, compared, judged and skipped as they were then.

tests/older/0.1.0 has three pairs of the demo's checkpoints, audited by that version as copies in
/tmp/shadow-older, whose files all have one time: base..narrow, base..broad, and base..same.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

OLDER = Path(__file__).with_name("older")
PAIRS = ("base..broad", "base..narrow", "base..same")
DEMO = Path(__file__).parents[1] / "registry" / "demo"
CHECKPOINTS = Path("/tmp/shadow-older")  # where they lay when the reports were made
TIME = 1_600_000_000  # of their files
VERDICT = "more concentrated"
DIFFERENCES = {
    "concentration": 0.06455526698409186,
    "stable_rank": -0.18886941088702847,
    "top4_energy": 0.06450786980472506,
    "participation_ratio_over_null": -0.20934134563303025,
    "spike_energy": 0.06351568182301924,
    "relative_norm": -0.025651185461018633,
}
TEXTS = {"finding", "published", "warnings"}
GONE = {"label", "label_reason", "evidence", "claims", "reference"}
SINCE = (
    "recognised",
    "figures",
    "inside_layers",
    "base",
    "tuned",
)  # keys that have more in them by now


def figures(summary: dict) -> dict:
    """What has no words in it."""
    without = {key: value for key, value in summary.items() if key not in TEXTS | GONE}
    return {
        **without,
        "gates": [(gate["name"], gate["figure"], gate["passed"]) for gate in summary["gates"]],
        "sentences": [
            (sentence["code"], sentence["figures"]) for sentence in summary["finding"]["sentences"]
        ],
    }


@pytest.fixture
def reports(tmp_path) -> Path:
    return Path(shutil.copytree(OLDER / "0.1.0", tmp_path / "reports"))


@pytest.mark.parametrize("pair", PAIRS)
def test_an_older_report_is_shown_with_the_figures_that_it_was_written_with(shadow, reports, pair):
    """show --format json gives the figures, gates, label and codes of the file, and the only
    warning is that more was added since.
    """
    folder = reports / "older" / pair
    shown = shadow("show", folder, "--format", "json")
    assert shown.code == 0
    (told,) = json.loads(shown.out)
    written = json.loads((folder / "summary.json").read_text())
    again = {key: figures(told)[key] for key in figures(written)}
    for key in SINCE:
        for name in again[key].keys() - written[key].keys():
            del again[key][name]
        for name in written[key].keys() - again[key].keys():  # gone since
            del written[key][name]
    assert again.pop("warning_codes") == ["older_report", *written["warning_codes"]]
    before = {key: value for key, value in figures(written).items() if key in again}
    # a sentence may rest on other figures by now: those that both have are equal
    both = list(zip(again.pop("sentences"), before.pop("sentences"), strict=True))
    for (code, now), (former, then) in both:
        assert code == former
        assert {key: now[key] for key in now.keys() & then.keys()}.items() <= then.items()
    assert again == before


def test_older_reports_are_compared(shadow, reports):
    """The contrast of narrow and broad has the verdict and the differences of then."""
    compared = shadow(
        "compare", *(reports / "older" / pair for pair in PAIRS[1::-1]), "--format", "json"
    )
    assert compared.code == 0
    (contrast,) = json.loads(compared.out)["contrasts"]
    assert contrast["verdict"] == VERDICT
    known = {row["figure"]: row["difference"] for row in contrast["figures"]}
    assert known == pytest.approx(DIFFERENCES, rel=1e-9)


def test_older_reports_are_judged(shadow, reports):
    """A rule is met by narrow, passed by broad, and has nothing to judge in what did not change."""
    judged = shadow(
        "gate", reports, "--fail-on", "language.concentration > 0.3", "--format", "json"
    )
    assert judged.code == 1
    outcomes = {pair["pair"]: pair["rules"][0]["outcome"] for pair in json.loads(judged.out)}
    assert outcomes == dict(zip(PAIRS, ("passed", "met", "missing"), strict=True))


def test_older_reports_are_not_measured_again(shadow, reports):
    """The same audit of the same files leaves every table as it was."""
    for stage in ("base", "narrow", "broad"):
        shutil.copytree(DEMO / stage, CHECKPOINTS / stage, dirs_exist_ok=True)
        for file in (CHECKPOINTS / stage).iterdir():
            os.utime(file, (TIME, TIME))
    before = {file: file.read_bytes() for file in (reports / "older").rglob("*.parquet")}
    done = shadow(
        *("audit", "--registry", OLDER, "--list", OLDER / "list.txt"), *("-o", reports, "--json")
    )
    assert done.code == 0, done.err
    assert before
    assert {file: file.read_bytes() for file in before} == before
