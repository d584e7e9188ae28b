"""A report that version 0.2.0 wrote is shown, compared, judged and skipped by this version.

tests/older/0.2.0 has one pair of the demo's checkpoints, layer 0 alone, audited by that version as
copies in /tmp/shadow-older whose files all have one time; its files are packed smaller.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from command import run_shadow
from reports import rewrite

OLDER = Path(__file__).with_name("older") / "0.2.0"
DEMO = Path(__file__).parents[1] / "registry" / "demo"
CHECKPOINTS = Path("/tmp/shadow-older")  # where they lay when the report was made
TIME = 1_600_000_000  # of their files
PAIR = "demo/base..narrow"
AUDIT = ("audit", CHECKPOINTS / "base", CHECKPOINTS / "narrow", "--name", "demo:base..narrow")
SETTINGS = ("--no-spectra", "--layer", "0")


@pytest.fixture
def old(tmp_path) -> Path:
    """The folder that the report lies in."""
    shutil.copytree(OLDER, tmp_path / "old")
    return tmp_path / "old"


def lay_out() -> None:
    """Put the checkpoints where they lay."""
    for stage in ("base", "narrow"):
        shutil.copytree(DEMO / stage, CHECKPOINTS / stage, dirs_exist_ok=True)
        for file in (CHECKPOINTS / stage).iterdir():
            os.utime(file, (TIME, TIME))


@pytest.fixture
def checkpoints():
    lay_out()


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    """The same pair as this version audits it."""
    folder = tmp_path_factory.mktemp("new")
    lay_out()
    run_shadow(*AUDIT, *SETTINGS, "-o", "new", cwd=folder).assert_done()
    return folder / "new" / PAIR


def test_it_is_shown_with_the_figures_that_it_was_written_with(shadow, old):
    """Every figure that stays; keys and tables that are gone are ignored."""
    (recorded,) = json.loads(shadow("show", old, "--json").assert_done())
    written = json.loads((old / PAIR / "summary.json").read_text())
    assert recorded["schema"] == 2
    for key in ("figures", "intervals", "inside_layers"):
        both = recorded[key].keys() & written[key].keys()
        assert len(both) > 5
        assert {name: recorded[key][name] for name in both} == {
            name: written[key][name] for name in both
        }
    assert recorded["finding"]["headline"]


@pytest.mark.parametrize(("command", "code"), [
    ("show {old}", 0), ("show {old} --full", 0), ("show {old} --format json", 0),
    ("show {old} --format markdown", 0), ("report {old} -o page", 0),
    ("gate {old} --fail-on concentration>0.9 --junit {junit}", 0),
    ("gate {old} --fail-on concentration>0.3 --junit {junit} --json", 4),
    ("gate {old} --policy policy.yaml --junit {junit}", 0),
    ("gate {old} --against {new} --junit {junit} --allow-missing", 0),
    ("gate {new} --against {old} --junit {junit} --allow-missing", 0),
    ("compare {old} {new}", 0), ("compare {old} {new} --format json", 0),
    ("compare {old} {new} --format markdown", 0), ("compare {old} {new} --junit {junit}", 2),
    ("lineage {old}", 0), ("lineage {old} --format json", 0), ("lineage {old} {new}", 0),
    ("export {old} --to csv -o e", 0), ("export {old} --to parquet -o e", 0),
    ("export {old} --to markdown -o e", 0), ("figure {old} -o f.svg", 0),
    ("figure {old} --kind heatmap -o f.svg", 0), ("figure {old} --kind spectrum -o f.svg", 1),
])  # fmt: skip
def test_every_output_takes_it(shadow, old, new, tmp_path, command, code):
    """None ends in a traceback, and only what needs its spectra is refused."""
    (tmp_path / "policy.yaml").write_text("lineage:\n  fail_on: not gate.lineage\n")
    places = {"old": old / PAIR, "new": new, "junit": "j.xml"}
    done = shadow(*(word.format(**places) for word in command.split()))
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    if "--junit" in command and code != 2:
        text = (tmp_path / "j.xml").read_text()
        assert ("made before these columns existed" in text) == command.startswith("gate {old}")


def test_the_same_audit_measures_nothing_and_the_numbers_are_the_same(shadow, old, checkpoints):
    """Its settings are those of this version, so that it is no other report; nor for a list."""
    before = {file: file.read_bytes() for file in old.rglob("*.parquet")}
    shadow(*AUDIT, *SETTINGS, "-o", old).assert_done()
    assert before == {file: file.read_bytes() for file in before}
    shadow(*AUDIT, *SETTINGS, "-o", "new").assert_done()
    compared = json.loads(shadow("compare", old / PAIR, f"new/{PAIR}", "--json").assert_done())
    figures = compared["contrasts"][0]["figures"]
    assert [row["difference"] for row in figures] == pytest.approx([0.0] * len(figures), abs=1e-9)
    listed = (
        f"- {{name: 'demo:base..narrow', base: {CHECKPOINTS}/base, tuned: {CHECKPOINTS}/narrow}}"
    )
    (old.parent / "list.yaml").write_text(listed)
    shadow("audit", "--list", "list.yaml", *SETTINGS, "-o", old).assert_done()
    shadow(*AUDIT, "--no-spectra", "-o", old).assert_refused()
    shadow(*AUDIT, *SETTINGS, "--level", "exact", "-o", old, "--overwrite").assert_done()
    names = {file.name for file in (old / PAIR).iterdir()}
    assert names & {"residual.parquet", "scores.json"} == set()


def test_a_report_of_0_1_is_to_be_measured_again(shadow, old, checkpoints):
    """One line and exit code 1, whoever reads it; an audit replaces it with --overwrite alone."""
    rewrite(old / PAIR, version="0.1.0")
    for command in (("show", old), ("gate", old, "--fail-on", "concentration > 1")):
        assert "0.1" in shadow(*command).assert_refused()
    shadow(*AUDIT, *SETTINGS, "-o", old).assert_refused()
    shadow(*AUDIT, *SETTINGS, "-o", old, "--overwrite").assert_done()
    shadow("show", old).assert_done()
