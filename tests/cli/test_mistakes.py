"""Typical mistakes of a first hour: a line says what is wrong, the hint what to type instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import run_shadow

DEMO = Path(__file__).parents[2] / "registry" / "demo"
BASE, TUNED = DEMO / "base", DEMO / "narrow"
REPORT = "reports/demo/base..narrow"
RULE = "--fail-on", "concentration > 1"

MISTAKES = {
    "a folder that is not there": (
        ("audit", "./bse", TUNED), 1, "no such folder", ".safetensors files"),
    "an empty folder": (("audit", BASE, "./empty"), 1, "no safetensors files in it", "it is empty"),
    "the file instead of its folder": (
        ("audit", BASE, TUNED / "model.safetensors"), 1, "is a file, and a checkpoint is a folder",
        f"name {TUNED}"),
    "a report instead of a checkpoint": (
        ("audit", BASE, f"./{REPORT}"), 1, "no safetensors files", "it is a report"),
    "a checkpoint instead of a report": (
        ("show", BASE), 1, "no finished report in it", "it is a checkpoint"),
    "a checkpoint among reports": (
        ("compare", REPORT, TUNED), 1, "no finished report in it", "it is a checkpoint"),
    "a gate on a checkpoint": (
        ("gate", BASE, *RULE), 1, "no finished report in it", "it is a checkpoint"),
    "folders without ./": (
        ("audit", "empty", "reports"), 1, "no family 'empty'", "for the folder, write ./empty"),
    "a GGUF file without ./": (
        ("audit", "a.gguf", "b.gguf"), 1, "no family 'a.gguf'", "for the file, write ./a.gguf"),
    "a misspelt family": (("audit", "dmeo"), 1, "no family 'dmeo'", "did you mean 'demo'?"),
    "a family instead of its reports": (
        ("show", "demo"), 1, "no such folder: demo", "did you mean 'reports/demo'?"),
    "a pair instead of its report": (
        ("show", "demo:base..narrow"), 1, "no such folder", f"did you mean '{REPORT}'?"),
    "an export to no format": (
        ("export", "reports"), 2, "'--to'. Choose from: csv, parquet,", "--help"),
    "a misspelt report": (
        ("show", "reports/dmeo"), 1, "no such folder", "did you mean 'reports/demo'?"),
    "one checkpoint in a list": (
        ("audit", "--list", "one.yaml"), 2, "one.yaml:1: './x' is one", "{base: REF, tuned"),
    "a comma that lacks": (
        ("audit", "--list", "broken.yaml"), 2, "broken.yaml:1: not YAML",
        "{base: REF, tuned: REF}"),
    "a mapping for a list": (
        ("audit", "--list", "mapping.yaml"), 2, "not a list", "write `- TARGET`"),
    "nulls of spectra that are not measured": (
        ("audit", BASE, TUNED, "--norms", "--nulls", "3"), 2, "--norms measures no spectra",
        "leave out --nulls"),
    "a policy that is not there": (
        ("gate", "reports", "--policy", "p.yaml"), 1, "no such file: p.yaml", "docs/ci.md"),
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
def test_a_mistake_is_answered_in_one_line_and_a_hint(place, mistake):
    """The exit code of the documentation, no traceback, nothing on stdout."""
    arguments, code, message, hint = MISTAKES[mistake]
    done = run_shadow(*arguments, cwd=place)
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert message in lines[0]
    assert hint in lines[1]


def test_a_damaged_report_hides_no_other(demo_reports, tmp_path):
    """show names it, and shows the rest; the exit code is 1."""
    shutil.copytree(demo_reports, tmp_path / "reports" / "demo")
    (tmp_path / "reports/demo/base..broad/matrices.parquet").write_bytes(b"PAR1")
    done = run_shadow("show", "reports", cwd=tmp_path)
    assert "Changed by 8.0 %" in done.assert_done(1)
    assert "base..broad: matrices.parquet cannot be read" in done.err
    alone = run_shadow("show", "reports/demo/base..broad", cwd=tmp_path)
    assert alone.assert_done(1) == ""


def test_a_plan_of_several_pairs_ends_with_what_all_take(tmp_path):
    """Their number and time; a single pair has told it itself."""
    text = run_shadow("plan", "demo", cwd=tmp_path).assert_done()
    _, _, ending = text.partition("\nall pairs ─")
    assert "\npairs   2\n" in ending
    assert "of computing, less where pairs share a checkpoint" in ending
    assert "all pairs" not in run_shadow("plan", "demo:base..broad", cwd=tmp_path).assert_done()
