"""summary.json is believed only where this code made it from these very tables and nobody changed
it since.
"""

import copy
import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.reports.folders import report_metadata
from shadow.reports.provenance import METADATA_KEY
from shadow.reports.report import Report
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import Pair
from shadow.targets.references import Reference
from shadow.telling import reading
from shadow.telling.reading import believed, made_again, read_summary

DEMO = Path(__file__).parents[2] / "registry" / "demo"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    pair = Pair(
        "demo",
        "base..narrow",
        Reference(str(DEMO / "base"), True),
        Reference(str(DEMO / "narrow"), True),
    )
    return run_pair(pair, Settings(Method(), Filter()), out).folder


@pytest.fixture
def report(made, tmp_path):
    """A copy to change, and how often its summary is made again."""
    return Path(shutil.copytree(made, tmp_path / "report"))


@pytest.fixture(scope="module")
def summaries():
    """The summaries that were made, by the tables that they are of."""
    return {}


@pytest.fixture
def again(monkeypatch, summaries):
    """The folders of which a summary was made again; of equal tables it is computed once."""
    folders = []

    def made(report):
        folders.append(report.folder)
        metadata = {**report_metadata(report.folder), "seal": None}
        tables = [pq.read_table(file) for file in sorted(report.folder.glob("*.parquet"))]
        key = json.dumps(metadata), *(str(table.to_pydict()) for table in tables)
        if key not in summaries:
            summaries[key] = made_again(report)
        return copy.deepcopy(summaries[key])

    monkeypatch.setattr(reading, "made_again", made)
    return folders


def edit(folder, change):
    path = folder / "summary.json"
    recorded = json.loads(path.read_text())
    change(recorded)
    path.write_text(json.dumps(recorded))


def rewrite(path, change=lambda table: table, metadata=lambda recorded: None):
    """A Parquet file written again with another table or other metadata."""
    table = pq.read_table(path)
    recorded = json.loads(table.schema.metadata[METADATA_KEY])
    metadata(recorded)
    table = change(table).replace_schema_metadata(
        {METADATA_KEY: json.dumps(recorded, sort_keys=True).encode()}
    )
    pq.write_table(table, path, compression="zstd")


def test_a_summary_as_it_was_made_is_taken_as_it_stands(report, again):
    """It is equal to the one that is made again, to the last type."""
    found, _ = read_summary(report)
    assert not again
    assert found == made_again(Report(report))
    recorded = json.loads((report / "summary.json").read_text())
    assert json.loads(json.dumps(found.as_json())) == {
        key: recorded[key] for key in found.as_json()
    }


TAMPERED = {
    "a figure": lambda recorded: recorded["figures"].update(concentration=0.99),
    "a gate": lambda recorded: recorded["gates"][0].update(passed=True, reason="it is fine"),
    "a warning": lambda recorded: recorded["warnings"].append("do not trust this"),
    "the code of a warning": lambda recorded: recorded["warning_codes"].append("older_report"),
    "a headline": lambda recorded: recorded["finding"].update(headline="It is good."),
    "one more key": lambda recorded: recorded.update(more=1),
    "all of it": lambda recorded: recorded.clear(),
}
OTHERS = {
    "no seal": lambda recorded: recorded.pop("seal"),
    "another seal": lambda recorded: recorded.update(seal="0" * 64),
    "no text": lambda recorded: recorded.update(seal={"summary": "0"}),
    "another setting": lambda recorded: recorded["settings"].update(spectra=False),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_summary_that_was_changed_is_made_again(report, made, again, what):
    """Whatever was changed in it: what is shown is what the tables say."""
    expected = read_summary(made)[0]
    edit(report, TAMPERED[what])
    assert read_summary(report)[0] == expected
    assert again == [report]


@pytest.mark.parametrize("what", OTHERS)
def test_a_summary_of_another_seal_is_made_again(report, again, what):
    """Of another report, or of none."""
    for name in ("matrices", "tensors", "files"):
        rewrite(report / f"{name}.parquet", metadata=OTHERS[what])
    read_summary(report)
    assert again == [report]


@pytest.mark.parametrize("made_by", [["0.0.9", reading.maker()[1]], [reading.maker()[0], ""]])
def test_a_summary_of_other_code_is_made_again(report, again, monkeypatch, made_by):
    """Of another version, or of the same one in a checkout that was changed."""
    monkeypatch.setattr(reading, "maker", lambda: made_by)
    read_summary(report)
    assert again == [report]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"claims": 1}']
)
def test_a_summary_that_is_none_is_made_again(report, again, content):
    """Broken, cut or something else."""
    (report / "summary.json").write_bytes(content)
    read_summary(report)
    assert again == [report]


@pytest.mark.parametrize("name", ["matrices", "tensors"])
def test_tables_that_were_changed_are_believed_before_the_summary(report, again, name):
    """A table with another number, or other names of columns: a summary is of what was there."""

    def halved(table):
        column = {"matrices": "concentration", "tensors": "relative_norm"}[name]
        half = pc.multiply(table[column], 0.5)
        return table.set_column(table.column_names.index(column), column, half)

    def renamed(table):
        first, second = [column.name for column in table.schema if str(column.type) == "string"][:2]
        return table.rename_columns({first: second, second: first})

    before, _ = read_summary(report)
    content = (report / f"{name}.parquet").read_bytes()
    rewrite(report / f"{name}.parquet", renamed)
    assert believed(Report(report)) is None
    (report / f"{name}.parquet").write_bytes(content)
    assert believed(Report(report)) is not None
    rewrite(report / f"{name}.parquet", halved)
    after = read_summary(report)[0]
    assert again == [report]
    if name == "matrices":
        assert after.figures["concentration"] == pytest.approx(before.figures["concentration"] / 2)


def test_who_seals_it_again_can_say_anything_but_not_of_another_shape(report, again):
    """A forged seal is no signature; what is believed has the shape that readers rely on."""

    def forge(change):
        edit(report, change)
        recorded = json.loads((report / "summary.json").read_text())
        metadata = report_metadata(report)
        paths = {name: report / f"{name}.parquet" for name in ("matrices", "tensors", "files")}
        tables = {name: path.read_bytes() for name, path in paths.items()}
        sealed = reading.seal(recorded, tables, metadata)
        for path in paths.values():
            rewrite(path, metadata=lambda at: at.update(seal=sealed))

    forge(lambda recorded: recorded["finding"].update(headline="forged"))
    assert read_summary(report)[0].finding.headline == "forged"
    for change in (
        lambda recorded: recorded["figures"].update(matrices=None),
        lambda recorded: recorded["depth"].append({"layer": "x"}),
        lambda recorded: recorded["modules"][0].update(intervals={"concentration": [1]}),
        lambda recorded: recorded.update(warnings="text"),
        lambda recorded: recorded.update(warnings=["one"]),
        lambda recorded: recorded.update(warnings=["one"], warning_codes=["no_such_code"]),
        lambda recorded: recorded["figures"].pop("spiked"),
        lambda recorded: recorded.update(skipped=7),
    ):
        before = len(again)
        forge(change)
        assert read_summary(report)[0].finding.headline != "forged"
        assert len(again) == before + 1
