"""Rules without a number: places and files, gates and claims; norms of what is identical."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reports
from finding_cases import grown
from reports import delta, place, places

from shadow.gates.measured import read_measured
from shadow.gates.rules import parse_rule
from shadow.gates.verdicts import JudgedReport, judge
from shadow.reports.columns import FILES
from shadow.reports.parquet import arrow_schema
from shadow.summary.record import Gate


def verdict(folder, text, **more):
    """What comes of one rule on a report."""
    (found,) = judge([parse_rule(text, **more)], read_measured(folder, "now"))
    assert (found.rule.name, found.code in (0, 1, 4, 5)) == (text, True)
    return found


def both(where, **more):
    """The rows of a tensor of both sides."""
    return tuple({**where, "tensor": "t", "side": side, **more} for side in ("base", "tuned"))


FROZEN = both(place(None, "embed"), status="identical")
TOWER = both({**place(0, "attn.q"), "component": "vision"}, status="identical")
MORE = both({**place(1, "attn.q"), "component": "vision"}, status="skipped", reason="filtered")
NORM = {"status": "skipped", "reason": "not_a_matrix", "compared": 64, "shape": [64]}
STILL = both(place(0, "norm"), **NORM, relative_norm=0.0)
MOVED = both(place(1, "norm"), **NORM, relative_norm=0.01)
RISEN = both(place(2, "norm"), **NORM, cast="neither")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Layers 0 to 3 of the language changed (but for the norm of layer 0 and a q of layer 2), the
    embeddings did not; the tower was compared in layer 0 alone.
    """
    rows = [
        delta(0.1 * where["layer"], where, relative_norm=0.01 * (1 + where["layer"]))
        for where in places(4, ("mlp.up", "attn.q"))
        if (where["layer"], where["module"]) != (2, "attn.q")
    ]
    frozen = both(place(2, "attn.q"), status="identical")
    return reports.write(
        tmp_path_factory.mktemp("states") / "a", rows,
        extra_tensors=(*FROZEN, *frozen, *TOWER, *MORE, *STILL, *MOVED, *RISEN),
    )  # fmt: skip


@pytest.mark.parametrize(("text", "outcome", "detail"), [
    ("language.embed unchanged", "met", "language.embed is unchanged"),
    ("language.embed changed", "passed", "language.embed is unchanged"),
    ("language.mlp.up unchanged", "passed", "language.mlp.up is changed"),
    ("language changed", "met", "language is changed"),
    ("language.norm.layers.0 unchanged", "met", "language.norm.layers.0 is unchanged"),
    ("language.norm.layers.1 changed", "met", ""),
    ("language.norm.layers.2 changed", "met", ""), ("language.norm unchanged", "passed", ""),
    ("layers.0-1 unchanged", "missing", "not all of vision.layers.0"),
    ("layers.1-3 unchanged", "missing", "not all of vision.layers.1"),
    ("layers.2-3 unchanged", "passed", "language.layers.2 is changed"),
    ("layers.0 changed", "met", "language.layers.0 is changed"),
    ("vision changed", "missing", "not all of vision was compared"),
    ("vision unchanged", "missing", "not all of vision was compared"),
    ("vision.layers.0 unchanged", "met", ""), ("vision.layers.1 changed", "missing", ""),
    ("*.attn.q.layers.2 unchanged", "met", "language.attn.q.layers.2 is unchanged"),
    ("*.attn.* unchanged", "missing", "not all of vision.attn.q"),
    ("* changed", "met", "language is changed"),
    ("audio changed", "missing", "the report has no audio"),
    ("files.code changed", "missing", "the report has no files"),
    ("audio.mlp.up.spikes > 0", "missing", "no matrix of audio.mlp.up that was measured"),
    ("layers.9 unchanged", "missing", "layers.9"),
    ("layers.2-9 unchanged", "missing", "not all of layers.4-9"),
])  # fmt: skip
def test_places_that_changed_or_did_not(folder, text, outcome, detail):
    """A rule is violated by any place that it names; one that was not compared is no pass."""
    found = verdict(folder, text)
    if text == "layers.0-1 unchanged":  # layer 0 of the tower is, and says so
        outcome, detail = "met", "vision.layers.0 is unchanged"
    assert found.outcome == outcome, found.detail
    assert detail in found.detail
    assert verdict(folder, text, allow_missing=True).outcome != "missing"


@pytest.mark.parametrize(("place", "zero"), [
    ("language.embed.", True), ("vision.attn.q.", False), ("audio.", False),
])  # fmt: skip
def test_the_norm_of_what_is_identical_is_0(folder, place, zero):
    """If all of it was compared; else there is nothing to judge. Other figures have no value."""
    found = verdict(folder, f"{place}relative_norm > 0")
    assert found.outcome == ("passed" if zero else "missing")
    assert verdict(folder, f"{place}relative_norm == 0").outcome == ("met" if zero else "missing")
    assert verdict(folder, f"{place}concentration > 0").outcome == "missing"


def test_a_copy_has_norm_0_and_a_changed_model_its_median(tmp_path):
    """Of a pair too; where a part is identical the median stays that of the rest, as ever."""
    same = reports.write(tmp_path / "same", [], extra_tensors=FROZEN)
    for name in ("relative_norm_overall", "relative_norm"):
        assert verdict(same, f"{name} == 0").outcome == "met"
    assert verdict(same, "concentration > 0").outcome == "missing"
    half = reports.write(
        tmp_path / "half", [delta(0.3, where, relative_norm=0.5) for where in places(4)],
        extra_tensors=both(place(4, "mlp.up"), status="identical") * 9,
    )  # fmt: skip
    (figure,) = verdict(half, "language.mlp.up.relative_norm > 1").findings
    assert figure.value == 0.5


@pytest.mark.parametrize(("text", "outcome"), [
    ("not gate.lineage", "passed"), ("not gate.changed", "passed"), ("not verify.same", "met"),
    ("not verify.files", "missing"),
])  # fmt: skip
def test_gates_and_claims_by_name(folder, text, outcome):
    """A rule is violated where its gate or claim does not hold."""
    found = verdict(folder, text)
    assert found.outcome == outcome, found.detail
    assert found.code == {"met": 4, "passed": 0, "missing": 1}[outcome]


def test_a_gate_that_cannot_be_told_is_nothing_to_judge(folder):
    """A gate without a figure was not passed, and did not fail either."""
    now = read_measured(folder, "now")
    gates = [Gate({**gate, "figure": None, "passed": False}) for gate in now.summary.gates]
    unknown = JudgedReport(now.source, now.summary.with_values(gates=gates), "now")
    (found,) = judge([parse_rule("not gate.lineage")], unknown)
    assert (found.outcome, found.code) == ("missing", 1)


def test_a_copy_is_the_same(tmp_path):
    """By its figures; of what was not compared nothing is known."""
    same = reports.write(tmp_path / "same", [], extra_tensors=(*FROZEN, *STILL))
    assert verdict(same, "not verify.same").outcome == "passed"
    part = reports.write(tmp_path / "part", [], extra_tensors=(*FROZEN, *MORE))
    assert verdict(part, "not verify.same").outcome == "missing"


ROWS = (
    ("config.json", "tuned", "changed", "config", "rope_theta"),
    ("config.json", "base", "changed", "config", None),
    ("tokenizer.json", "tuned", "changed", "tokenizer", None),
    ("tokenizer_config.json", "tuned", "changed", "tokenizer", "chat_template add_bos_token"),
    ("generation_config.json", "tuned", "same", "generation", None),
    ("model.py", "tuned", "added", "code", "code"),
    ("README.md", "base", "removed", "document", None),
    ("model.gguf", "tuned", "unknown", "weights", None),
)


@pytest.mark.parametrize(("text", "outcome"), [
    ("files.config changed", "met"), ("files.config.rope_theta changed", "met"),
    ("files.config.rope_* changed", "met"), ("files.config.vocab_size changed", "passed"),
    ("files.chat_template changed", "met"), ("files.chat_template unchanged", "passed"),
    ("files.tokenizer changed", "met"), ("files.tokenizer.add_* changed", "met"),
    ("files.tokenizer unchanged", "met"), ("files.merges changed", "passed"),
    ("files.generation changed", "passed"), ("files.generation unchanged", "met"),
    ("files.code added", "met"), ("files.code changed", "passed"),
    ("files.document removed", "met"), ("files.pickle added", "passed"),
    ("files.weights changed", "missing"), ("not verify.files", "met"),
])  # fmt: skip
def test_files_that_changed_or_were_added(tmp_path, text, outcome):
    """By kind, and by what differs in them."""
    folder = reports.write(tmp_path / "a", [delta(0.3, where) for where in places(2)])
    put(folder, ROWS)
    assert verdict(folder, text).outcome == outcome, verdict(folder, text).detail


def test_where_not_all_files_are_known_nothing_passes(tmp_path):
    """A side known by its cache may have more files; a report that lists none says nothing."""
    folder = reports.write(tmp_path / "a", [delta(0.3, where) for where in places(2)])
    assert verdict(folder, "files.code added").outcome == "missing"
    put(folder, [*ROWS[:2], ("*", "tuned", "unknown", "other", None)])
    assert verdict(folder, "files.code added").outcome == "missing"
    assert verdict(folder, "files.config changed").outcome == "met"
    assert verdict(folder, "files.generation changed").outcome == "missing"


def put(folder, rows):
    """Writes the files of a report."""
    names = ("path", "side", "state", "kind", "differs")
    table = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=arrow_schema(FILES)
    )
    recorded = json.loads(pq.read_schema(folder / "matrices.parquet").metadata[b"shadow"])
    metadata = {b"shadow": json.dumps(recorded).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "files.parquet")


@pytest.mark.parametrize("rows", [(300, 308), (308, 300)])
@pytest.mark.parametrize("text", [
    "language.embed changed", "language.embed unchanged", "language changed", "not verify.same",
    "language.embed.relative_norm > 0.1",
])  # fmt: skip
def test_a_vocabulary_with_other_rows_is_not_unchanged(tmp_path, text, rows):
    """Rows that one side lacks were not compared, whatever the common ones are."""
    folder = reports.write(tmp_path / "a", [], extra_tensors=(*grown(*rows), *STILL))
    assert verdict(folder, text).outcome == "missing"
    same = reports.write(tmp_path / "b", [], extra_tensors=(*grown(300, 300), *STILL))
    assert verdict(same, text).outcome != "missing"
