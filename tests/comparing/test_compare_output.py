"""A comparison on the screen, in files and as errors: what is told, and that it fits."""

import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reports import delta, place, places, uniform, write

from shadow.comparing.comparison import compare
from shadow.errors import ShadowError

# The command


def test_a_folder_above_several_reports_stands_for_all_of_them(demo_reports, inside):
    """In the order of their names, each once, whether it is named beside the folder or not."""
    broad, narrow = demo_reports / "base..broad", demo_reports / "base..narrow"
    named, one, beside = (
        inside("compare", *runs, "--json").assert_done()
        for runs in ((broad, narrow), (demo_reports,), (demo_reports.parent, narrow))
    )
    assert one == beside == named


def test_two_models_of_one_base_end_with_how_they_differ(demo_reports, inside):
    """In the words of `compare`, under the pairs in the order of their audit."""
    runs = demo_reports / "base..narrow", demo_reports / "base..broad"
    (contrast,) = json.loads(inside("compare", *runs, "--json").assert_done())["contrasts"]
    sentence = contrast["sentence"].replace("A (base..narrow)", "base..narrow")
    shown = inside("show", demo_reports, width=200).assert_done().splitlines()
    assert shown[-3] == f"{sentence.replace('B (base..broad)', 'base..broad')}."
    assert all(f"shadow {line.split()[2]} {demo_reports}" in line for line in shown[-2:])
    titles = [line.split()[1] for line in shown if line.startswith("demo ")]
    assert titles == ["base..narrow", "base..broad"]


def test_wrong_usage(demo_reports, inside, tmp_path):
    """One report, also under two names, too many, a margin that is none: exit code 2."""
    run = demo_reports / "base..narrow"
    assert "1 report to compare" in inside("compare", run, run).assert_refused(code=2)
    assert "name too long" in inside("compare", run, "x" * 5000).assert_refused().lower()
    many = [shutil.copytree(run, tmp_path / str(number)) for number in range(13)]
    assert "13 reports" in inside("compare", *many).assert_refused(code=2)
    inside("compare", run, demo_reports / "base..broad", run).assert_done()
    for margin in ("-0.1", "nan", "2"):
        assert "--margin" in inside("compare", run, run, "--margin", margin).assert_refused(code=2)


# Hostile and broken reports


def rewritten(change=lambda table: table, **more):
    """What spoils the rows of a report, or what its metadata say."""

    def spoil(folder):
        path = folder / "matrices.parquet"
        table = change(pq.read_table(path))
        recorded = json.loads(table.schema.metadata[b"shadow"]) | more
        pq.write_table(table.replace_schema_metadata({b"shadow": json.dumps(recorded)}), path)

    return spoil


def about(raw):
    """What replaces the metadata of a report."""
    return lambda folder: pq.write_table(
        pq.read_table(folder / "matrices.parquet").replace_schema_metadata({b"shadow": raw}),
        folder / "matrices.parquet",
    )


def column(name, value):
    def change(table):
        values = pa.array([value] * len(table))
        values = values.view("string") if isinstance(value, bytes) else values
        return table.set_column(table.column_names.index(name), name, values)

    return rewritten(change)


def file(name, content=None):
    """What writes a file of a report, or removes it."""
    return lambda folder: (
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    )


FAULTS = {
    "no report": (shutil.rmtree, "no finished report"),
    "damaged": (file("matrices.parquet"), "matrices.parquet is missing from this report"),
    "not parquet": (file("matrices.parquet", b"x"), "matrices.parquet cannot be read"),
    "cut": (file("tensors.parquet", b"PAR1"), "cannot be read"),
    "no tensors": (file("tensors.parquet"), "is missing"),
    "other schema": (rewritten(schema=99), "schema 99"),
    "metadata that are no JSON": (about(b"{"), "not a report"),
    "deep metadata": (about(b'{"schema": ' + b"[" * 200_000), "not a report"),
    "a base that is a number": (rewritten(base=1), "not a report"),
    "text for numbers": (column("concentration", "x"), "cannot be read"),
    "broken layers": (column("layer", 0.5), "cannot be read"),
    "text that is none": (column("module", b"\xff"), "cannot be read"),
    "no deltas": (column("subject", "x"), "no changed matrix"),
    "one row many times": (
        rewritten(lambda one: pa.concat_tables([one, one])),
        "no changed matrix",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_report_is_one_error_line(tmp_path, fault):
    """What the command tells in one line."""
    spoil, words = FAULTS[fault]
    folders = [uniform(tmp_path / "a", 0.4), uniform(tmp_path / "b", 0.3)]
    spoil(folders[1])
    with pytest.raises(ShadowError) as refused:
        compare(folders)
    assert words in refused.value.message
    assert "\n" not in refused.value.message


HOSTILE = "x\x1b[31m\n::error::owned [bold]"


@pytest.mark.parametrize("format", ["table", "json"])
def test_names_from_files_drive_no_terminal(shadow, tmp_path, format):
    """Markup in every name, senseless numbers in every place: shown as text, exit 0."""
    odd = {
        "method": {"level": HOSTILE}, "chosen": {HOSTILE: math.nan}, "relation": HOSTILE,
    }  # fmt: skip
    rows = [
        delta(0.4, {**where, "component": HOSTILE}, tensor=HOSTILE + str(i))
        for i, where in enumerate(places(6))
    ]
    rows += [delta(0.4, where) for where in places(6)]
    for row in rows[::5]:
        row |= {"stable_rank": -1.0, "spike_energy": math.inf, "cosine": math.nan}
        row |= {"concentration": 1e308}
    mine = [delta(0.3, {**where, "module": HOSTILE}, dtype=HOSTILE) for where in places(6)]
    mine += [delta(0.3, where, dtype=HOSTILE) for where in places(6)]
    both = [{**place(layer, "[red]x[/red]"), "component": "[blue]y"} for layer in range(3)]
    rows += [delta(0.4, where) for where in both]
    write(tmp_path / "a", rows, settings=odd, version=HOSTILE, pair=HOSTILE)
    write(tmp_path / "b", mine + [delta(0.3, where) for where in both])
    text = shadow("compare", "a", "b", "--format", format).assert_done()
    if format == "json":
        json.loads(text)
    else:
        assert "\\x1b[31m" in text
        assert "[bold]" in text
