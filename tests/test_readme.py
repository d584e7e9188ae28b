"""What the README shows is what the code does."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
import subprocess
import sys

import duckdb
import pandas as pd
import polars as pl
import pytest
import readme
from hub import Hub

from shadow.export import FORMATS


@pytest.fixture(scope="module")
def text():
    return readme.README.read_text(encoding="utf-8")


@pytest.fixture
def audited(tmp_path, monkeypatch):
    """A folder in which `shadow audit demo -o reports` was run."""
    subprocess.run([readme.SHADOW, "audit", "demo", "-o", "reports"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "scores.csv").write_text(readme.demo_scores())
    monkeypatch.chdir(tmp_path)


def snippets(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_generated_parts_are_up_to_date(name, text):
    """Tables, help and the demo's output are what the code makes (`make docs` writes them)."""
    assert readme.part(text, name) == readme.BLOCKS[name]()


def test_the_document_of_the_schema_is_up_to_date():
    """docs/schema.md is what the code makes."""
    assert readme.TABLES_OF_REPORTS.read_text(encoding="utf-8") == readme.schema_document()


def test_every_export_opens_in_the_line_that_is_shown(text, audited):
    """The demo in every format under its default name; each line, and those of the partitioned dataset, gives rows."""
    for to in FORMATS:
        subprocess.run([readme.SHADOW, "export", "reports", "--to", to], check=True, capture_output=True)
    for to, form in FORMATS.items():
        if to != "hf-dataset-folder":  # tests/test_export.py opens it where `datasets` is installed
            assert len(eval(form.opens, {"pd": pd, "pl": pl, "duckdb": duckdb, "sqlite3": sqlite3})) in (60, 180)
    dataset = next(one for one in snippets(text, "python") if "polars" in one)
    found = {}
    exec(dataset, found)
    assert [len(found[name]) for name in ("a", "b", "c")] == [180, 180, 180]
    for name in ("a", "b"):
        assert set(found[name]["pair"]) == {"base..narrow", "base..broad"}


def test_the_pandas_and_duckdb_lines_answer_their_question(text, audited):
    """Both run as they stand on the demo's report."""
    python = next(one for one in snippets(text, "python") if "query(" in one)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(python, {})
    assert "attn.q" in printed.getvalue()
    (sql,) = snippets(text, "sql")
    rows = duckdb.sql(sql).fetchall()
    assert len(rows) == 5
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)


def test_every_command_that_is_shown_runs(text, audited, tmp_path, monkeypatch):
    """The lines of `Audit your own`, `From the Hub` and `Many families`, on the demo where checkpoints are not here."""
    shown = [line.partition("#")[0].strip() for line in text.splitlines() if line.startswith("$ shadow ")]
    assert len(shown) >= 12
    demo = readme.README.parent / "registry" / "demo"
    here = {"./Qwen2.5-0.5B": demo / "base", "./Qwen2.5-0.5B-Instruct": demo / "narrow", "./mine": demo / "broad"}
    with Hub() as hub:
        for base, tuned in (("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"), ("org/base", "org/tuned")):
            hub.add(base, demo / "base", revisions={"v1.0": demo / "base"})
            hub.add(tuned, demo / "narrow")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        listed, _ = snippets(text, "yaml")
        (tmp_path / "families.yaml").write_text(listed)
        (tmp_path / "mine").symlink_to(demo / "broad")
        for line in shown:
            words = [word.strip("'") for word in line.removeprefix("$ shadow ").split()]
            command = [str(here.get(word, word)) for word in words]
            done = subprocess.run([readme.SHADOW, *command], capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
            assert {"clean", "export", "figure", "report"} & set(command) or done.stdout


def test_the_pool_of_the_readme_audits_the_demo(text, tmp_path):
    """The script runs as it stands, prints a label for each pair, and leaves an index of them."""
    python = next(one for one in snippets(text, "python") if "Pool" in one)
    (tmp_path / "pool.py").write_text(python)
    done = subprocess.run([sys.executable, "pool.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.split("'")) == 5
    told = json.loads((tmp_path / "pool" / "index.json").read_text())
    assert [(row["family"], row["pair"], row["state"]) for row in told["pairs"]] == [
        ("demo", "base..broad", "done"),
        ("demo", "base..narrow", "done"),
    ]
