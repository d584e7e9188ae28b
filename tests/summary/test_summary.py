"""The summary is what the files say, and what the terminal shows of it fits."""

import json
import math
import os
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Run, run_shadow
from view import drawn

from shadow.telling.reading import read_summary, summarise
from shadow.telling.report import report_document


def shadow(*arguments, **variables) -> Run:
    env = {"PATH": os.environ["PATH"], "COLUMNS": "80", **variables}
    return run_shadow(*arguments, cwd=Path.cwd(), env=env, bare=True)


@pytest.fixture(scope="session")
def folder(demo_reports):
    """The report of the demo's narrow pair."""
    return demo_reports / "base..narrow"


def rows(folder, name="matrices"):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_figures_are_those_of_the_rows(folder):
    """Medians and whole-model norms, recomputed from the Parquet rows by plain Python."""
    summary = json.loads((folder / "summary.json").read_text())
    deltas = [row for row in rows(folder) if row["subject"] == "delta"]
    base = [row for row in rows(folder) if row["subject"] == "base"]
    figures = summary["figures"]
    assert figures["matrices"] == len(deltas) == 30
    for name in ("concentration", "participation_ratio", "relative_norm", "spikes", "cosine"):
        assert figures[name] == pytest.approx(statistics.median(row[name] for row in deltas))
    whole = math.hypot(*(row["frobenius_norm"] for row in deltas)) / math.hypot(
        *(row["frobenius_norm"] for row in base)
    )
    assert figures["relative_norm_overall"] == pytest.approx(whole)
    assert [row["relative_norm"] for row in summary["components"]] == [pytest.approx(whole)]
    for row in summary["modules"]:
        own = [delta["concentration"] for delta in deltas if delta["module"] == row["module"]]
        assert (row["matrices"], row["concentration"]) == (
            len(own),
            pytest.approx(statistics.median(own)),
        )
    for row in summary["depth"]:
        own = [delta for delta in deltas if delta["layer"] == row["layer"]]
        of_base = [one for one in base if one["layer"] == row["layer"]]
        norm = math.hypot(*(d["frobenius_norm"] for d in own)) / math.hypot(
            *(b["frobenius_norm"] for b in of_base)
        )
        assert row["relative_norm"] == pytest.approx(norm)
    assert [row["layer"] for row in summary["depth"]] == [0, 1, 2, 3]
    tensors = rows(folder, "tensors")
    for status, count in summary["counts"].items():
        assert count == sum(row["status"] == status for row in tensors)


def test_show_prints_what_audit_printed(tmp_path):
    """`show` reads the files and prints the same; `--format json` is summary.json."""
    done = shadow("audit", "demo:base..narrow", "--level", "norms", "-o", tmp_path)
    folder = tmp_path / "demo" / "base..narrow"
    assert shadow("show", folder).out == done.assert_done()
    assert json.loads(shadow("show", tmp_path, "--format", "json").out) == [
        json.loads((folder / "summary.json").read_text())
    ]
    assert "level norms, norms alone, " in shadow("show", folder, "--full").out


@pytest.mark.parametrize("width", [80, 120])
def test_output_fits_the_terminal_and_is_plain_when_piped(folder, width, inside):
    """No line exceeds the terminal, nothing is cut, no escape reaches a pipe, talk is on stderr."""
    short = inside("show", folder, width=width).out.splitlines()
    assert max(map(len, short)) <= width
    assert not any("…" in line or "\x1b" in line for line in short)
    done = inside("show", folder, "--full", width=width)
    lines = done.out.splitlines()
    assert len(lines) > len(short)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in done.out
    assert "…" not in done.out
    assert done.err == ""
    recorded = json.loads((folder / "summary.json").read_text())
    low, high = recorded["intervals"]["concentration"]
    median = f"{recorded['figures']['concentration']:.2f} ({low:.2f} to {high:.2f})"
    spread = "over 4 layers (88 %), in brackets; it says nothing of other runs or seeds"
    for words in ("attn.q", "mlp.down", "not_a_matrix", median, f"spread {spread}"):
        assert words in " ".join(done.out.split())
    both = inside("show", folder.parent, "--full", width=width).assert_done()
    assert max(map(len, both.splitlines())) <= width


def shown(summary, folder, **changes):
    """What `shadow show` prints of a summary, on one long line each."""
    full = changes.pop("full", False)
    document = report_document(summary.with_values(**changes), read_summary(folder)[1], folder)
    return " ".join(drawn(document.shown(full=full)).split())


def test_a_gate_that_failed_stands_on_the_screen_with_its_reason(folder):
    """Above the picture; a pair that passes all has no such row."""
    summary = read_summary(folder)[0]
    assert "failed" not in shown(summary, folder)
    failed = [summary.gates[0].with_values(passed=False), *summary.gates[1:]]
    text = shown(summary, folder, gates=failed)
    gate = summary.gates[0]
    assert f"{gate.name} failed {gate.reason}" in text
    assert text.index(gate.reason) < text.index("attn.q")


@pytest.mark.parametrize(("table", "column", "value"), [
    ("tensors", "compared", 2**60 + 1),  # beyond the whole numbers that a float holds
    ("tensors", "layer", 2**62 + 1),
    ("matrices", "parameters", 2**60 + 1),
    ("tensors", "shape", [2**62] * 20),  # beyond every float
    ("matrices", "module", None),
    ("tensors", "side", None),
])  # fmt: skip
def test_a_forged_table_has_a_summary(folder, table, column, value):
    """Figures of it mean nothing; what counts is that its reader gets no traceback."""
    tables = {
        name: pq.read_table(folder / f"{name}.parquet") for name in ("matrices", "tensors", "files")
    }
    metadata = json.loads(tables["matrices"].schema.metadata[b"shadow"])
    forged = tables[table]
    at = forged.schema.get_field_index(column)
    values = pa.array([value] * len(forged), forged.schema.field(at).type)
    tables[table] = forged.set_column(at, forged.schema.field(at), values)
    assert summarise(tables, metadata).figures.matrices == 30
