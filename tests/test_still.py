"""What is printed and written is as it was; the recorder that says so sees the smallest change."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import still
from still_text import Done, Goldens, alike, changes, exact_text

SCRIPT = Path(still.__file__)
ROWS = {
    "tensor": ["a", "b", "c"],
    "rows": [64, 64, 32],
    "cosine": [0.25, None, 0.75],
    "sigma": [[3.0, 1.0], [2.0], []],
    "alpha": [2.5, 2.75, None],
}


@pytest.mark.slow
def test_nothing_has_changed():
    """Every command of still_runs.py prints and writes what the goldens in tests/still/ hold."""
    run = subprocess.run(
        [sys.executable, SCRIPT, "check"], capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def parquet(rows: dict, **metadata: object) -> bytes:
    file = io.BytesIO()
    told = {b"shadow": json.dumps({"family": "toy", **metadata}).encode()}
    pq.write_table(pa.table(rows).replace_schema_metadata(told), file)
    return file.getvalue()


def done(
    rows: dict = ROWS,
    *,
    code: int = 0,
    out: str = "all done, 0.25\n",
    err: str = "",
    **metadata: object,
) -> Done:
    summary = json.dumps(
        {"label": "mixed", "figures": {"concentration": 0.5, "matrices": 3}}
    ).encode()
    files = {
        "x/matrices.parquet": parquet(rows, **metadata),
        "x/summary.json": summary,
        "x/old": None,
    }
    return Done(("show", "x"), 120, code, out, err, files)


def swapped(rows: dict) -> dict:
    return {name: [values[1], values[0], *values[2:]] for name, values in rows.items()}


DIFFERENT = {
    "a letter of stdout": done(out="all dome, 0.25\n"),
    "a letter of stderr": done(err="x\n"),
    "a space of a layout": done(out="all  done, 0.25\n"),
    "the exit code": done(code=1),
    "the name of a column": done(
        {("Rows" if name == "rows" else name): values for name, values in ROWS.items()}
    ),
    "the order of columns": done(dict(reversed(ROWS.items()))),
    "a column less": done({name: values for name, values in ROWS.items() if name != "sigma"}),
    "the type of a column": done(ROWS | {"rows": pa.array(ROWS["rows"], pa.int32())}),
    "the order of rows": done(swapped(ROWS)),
    "a whole number": done(ROWS | {"rows": [64, 65, 32]}),
    "a letter of a cell": done(ROWS | {"tensor": ["a", "b", "d"]}),
    "a null": done(ROWS | {"cosine": [0.25, 0.0, 0.75]}),
    "a float": done(ROWS | {"cosine": [0.251, None, 0.75]}),
    "a float of a list": done(ROWS | {"sigma": [[3.0, 1.01], [2.0], []]}),
    "a shorter list": done(ROWS | {"sigma": [[3.0], [2.0], []]}),
    "a key of the metadata": done(families="toy"),
    "a file that is written anew": Done(
        ("show", "x"), 120, 0, done().out, "", {**done().files, "x/old": ""}
    ),
}


@pytest.mark.parametrize("change", DIFFERENT)
@pytest.mark.parametrize(
    "render", [exact_text, lambda name, run: Goldens().text(name, run)], ids=["exact", "golden"]
)
def test_the_smallest_change_shows(change, render):
    """In an exact recording and in a golden, also where measured numbers may differ a little."""
    before, after = (render("run", [one]) for one in (done(), DIFFERENT[change]))
    assert changes("run", before, after, measured=True)


def test_only_an_exact_recording_tells_the_last_bit():
    """The next float after one differs there, in a golden only in digits that CPUs differ in."""
    other = done(ROWS | {"cosine": [0.25000000000000006, None, 0.75]})
    assert changes("run", *(exact_text("run", [one]) for one in (done(), other)))
    assert not changes(
        "run", *(Goldens().text("run", [one]) for one in (done(), other)), measured=True
    )


def test_what_every_run_makes_anew_is_masked():
    """Times, durations and versions of libraries."""
    first = done(
        out="0.3 s\n", started="2026-01-02T03:04:05+00:00", seconds=0.3, libraries={"torch": "2.6"}
    )
    other = done(
        out="0.9 s\n", started="2027-01-02T03:04:05+00:00", seconds=0.9, libraries={"torch": "2.7"}
    )
    assert exact_text("run", [first]) == exact_text("run", [other])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("conc. 0.71", "conc. 0.72", True),  # one in the last digit that is shown
        ("conc. 0.71", "conc. 0.73", False),
        ("norm 1.23456 x", "norm 1.23457 x", True),
        ("rank 12", "rank 13", False),
        ("of rank 1.", "of rank 2.", False),
        ("pair #149e1188", "pair #149e1189", False),  # hashes
        ("pair #1e999999", "pair #1e999998", False),
        ("shadow 1.2.3", "shadow 1.2.4", False),
        ("is  0.71", "is 0.71", False),
        ("is  9.99 x", "is 10.00 x", True),
        ("conc. 0.71", "conc! 0.71", False),
        ("a 0.71 b 0.20", "a 0.71 b 0.30", False),
    ],
)
def test_lines_are_alike_but_for_last_digits(one, other, same):
    """Of measured numbers with decimals only; elsewhere letter by letter."""
    assert alike(one, other, measured=True) is same
    assert not alike(one, other, measured=False)


def test_a_second_width_shows_by_its_layout():
    """Another place of a line's end shows, other decimals do not."""
    narrow = [
        Done(("show",), 80, 0, text, "", {})
        for text in ("one two\n0.25\n", "one two\n0.26\n", "one\ntwo 0.25\n")
    ]
    first, numbers, wrapped = (Goldens().text("run", [done(), one]) for one in narrow)
    assert first == numbers
    assert first != wrapped
