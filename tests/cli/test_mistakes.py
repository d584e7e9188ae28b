"""Typical mistakes of a first hour: a line says what is wrong, the hint what to type instead."""

import shutil
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "registry" / "demo"
BASE, TUNED = DEMO / "base", DEMO / "narrow"
REPORT = "reports/demo/base..narrow"
RULE = "--fail-on", "concentration > 1"

MISTAKES = {
    "a folder that is not there": (("audit", "./bse", TUNED), 1, None),
    "an empty folder": (("audit", BASE, "./empty"), 1, None),
    "a report instead of a checkpoint": (("audit", BASE, f"./{REPORT}"), 1, None),
    "a checkpoint instead of a report": (("show", BASE), 1, None),
    "a checkpoint among reports": (("compare", REPORT, TUNED), 1, None),
    "a gate on a checkpoint": (("gate", BASE, *RULE), 1, None),
    "folders without ./": (("audit", "empty", "reports"), 1, None),
    "a GGUF file without ./": (("audit", "a.gguf", "b.gguf"), 1, None),
    "a misspelt family": (("audit", "dmeo"), 1, "'demo'"),
    "a family instead of its reports": (("show", "demo"), 1, "'reports/demo'"),
    "a pair instead of its report": (("show", "demo:base..narrow"), 1, None),
    "an export to no format": (("export", "reports"), 2, None),
    "a misspelt report": (("show", "reports/dmeo"), 1, "'reports/demo'"),
    "one checkpoint in a list": (("audit", "--list", "one.yaml"), 2, None),
    "a comma that lacks": (("audit", "--list", "broken.yaml"), 2, None),
    "a mapping for a list": (("audit", "--list", "mapping.yaml"), 2, None),
    "an option that is gone": (("audit", BASE, TUNED, "--nulls", "3"), 2, "--help"),
    "a policy that is not there": (("gate", "reports", "--policy", "p.yaml"), 1, None),
    "a misspelt command": (("audti",), 2, "'audit'"),
    "a misspelt command of a group": (("lab", "rnu"), 2, "'run'"),
    "a misspelt option": (("audit", "demo", "--levle", "norms"), 2, "--level"),
    "a misspelt choice": (("audit", "demo", "--level", "fulll"), 2, None),
    "no such engine": (("audit", "demo", "--engine", "spark"), 2, None),
    "no jobs": (("audit", "demo", "--jobs", "0"), 2, None),
    "reports in a file": (("audit", "demo", "-o", __file__), 2, None),
    "reports in a report": (("audit", "demo", "-o", REPORT), 2, "-o"),
    "reports far inside of one": (("audit", "demo", "-o", f"{REPORT}/a/b"), 2, "-o"),
    "two modules of two reports": (
        ("figure", "reports", "--module", "mlp.up", "--module", "mlp.down"), 2, "one --module"),
    "a spectrum of two reports": (
        ("figure", "reports", "--kind", "spectrum"), 1, "reports/demo/base..broad"),
    "nothing to compare": (("compare",), 2, None),
    "a size without a unit": (("audit", "demo", "--max-disk", "40"), 2, "40GB"),
    "no room at all": (("audit", "demo", "--max-disk", "0"), 2, None),
    **{
        f"gone: {words}": (words.split(), 2, "hint")
        for words in ("audit demo --norms", "audit demo --precision sketch", "audit demo --title",
                      "plan demo --fetch shards", "reproduce", "export reports --to duckdb")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(demo_reports, tmp_path_factory):
    """A folder with reports, an empty folder and lists with faults."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(demo_reports.parent, place / "reports")
    (place / "empty").mkdir()
    (place / "a.gguf").write_bytes(b"GGUF")
    (place / "one.yaml").write_text("- ./x\n")
    (place / "broken.yaml").write_text("- {base: ./a tuned: ./b}\n")
    (place / "mapping.yaml").write_text("demo: base..narrow\n")
    return place


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line_and_a_hint(place, mistake, inside):
    """The exit code of the documentation, no frame, no usage, nothing on stdout."""
    arguments, code, hint = MISTAKES[mistake]
    done = inside(*arguments, cwd=place)
    done.assert_refused(code)
    assert (hint or "") in done.err
    assert "Value error" not in done.err, "a word of pydantic"


def test_a_damaged_report_hides_no_other(demo_reports, tmp_path, inside):
    """show names it, and shows the rest; the exit code is 1."""
    shutil.copytree(demo_reports, tmp_path / "reports" / "demo")
    (tmp_path / "reports/demo/base..broad/matrices.parquet").write_bytes(b"PAR1")
    done = inside("show", "reports")
    assert "base..narrow" in done.assert_done(1)
    assert "base..broad: matrices.parquet" in done.err
    alone = inside("show", "reports/demo/base..broad")
    assert alone.assert_done(1) == ""
