"""The constants that decide what a finding says, just inside and just outside."""

from types import SimpleNamespace

import pytest

from shadow.summary.record import FileCounts, FileRow, FilesRow, UnitRun
from shadow.telling.context import Context, SentenceGroup
from shadow.telling.correspondence import moved_in_brief, partners_table
from shadow.telling.finding import finding
from shadow.telling.parts import ChangedPart, are_in_proportion, has_frozen, leading
from shadow.telling.wording import and_others, layers_text

ABOVE = 1 + 1e-9
BELOW = 1 - 1e-9
SETTINGS = {"method": {"level": "full"}, "chosen": {}, "relation": "tuned"}


def part(energy, parameters=None, is_outside=True):
    return ChangedPart("the head", "modules.language.head", energy, parameters, is_outside)


def of(summary, key, **values):
    """The summary with other figures of one row."""
    return summary.with_values(**{key: getattr(summary, key).with_values(**values)})


def told(summary):
    found = finding(summary, SETTINGS)
    return {sentence.code: sentence.text for sentence in found.sentences}


@pytest.mark.parametrize(("energy", "parameters", "holds_more"), [
    (0.125 * ABOVE, 0.1, True),  # 1.25 times its share
    (0.125 * BELOW, 0.1, False),
    (0.05, 0.001, True),  # and 5 % of the energy
    (0.05 * BELOW, 0.001, False),
    (0.9, None, False),
])  # fmt: skip
def test_a_part_outside_layers_is_named_from_its_share_on(energy, parameters, holds_more):
    assert part(energy, parameters).holds_more is holds_more
    assert not part(energy, parameters, is_outside=False).holds_more


@pytest.mark.parametrize(("energy", "parameters", "is_so"), [
    (0.11 * BELOW, 0.1, True),
    (0.11 * ABOVE, 0.1, False),
    (0.1, 0.11 * BELOW, True),
    (0.1, 0.11 * ABOVE, False),
    (0.05 * BELOW, 0.0, True),  # little of both
    (0.05, 0.0, False),
    (0.0, 0.05, False),
    (0.1, None, False),
])  # fmt: skip
def test_a_part_is_in_proportion_up_to_a_tenth(must, energy, parameters, is_so):
    """Of the larger over the smaller of both shares."""
    assert part(energy, parameters).in_proportion is is_so
    assert are_in_proportion(must("size"), [part(energy, parameters)]) is is_so


@pytest.mark.parametrize(("shares", "count"), [
    ([0.5, 0.45, 0.05], 1),  # a half is enough, and .45 is 90 % of it
    ([0.5, 0.45 * ABOVE, 0.04], 2),
    ([0.5 * BELOW, 0.3, 0.2], 2),
    ([0.2, 0.2, 0.2, 0.2, 0.2], 3),  # no more than three are named
])  # fmt: skip
def test_parts_are_named_until_they_hold_half(shares, count):
    assert len(leading([part(share) for share in shares])) == count


@pytest.mark.parametrize(("identical", "is_so"), [(10, False), (11, True)])
def test_a_part_is_frozen_above_a_hundredth(must, identical, is_so):
    summary = of(must("size"), "figures", parameters=1000, parameters_identical=identical)
    assert has_frozen(summary) is is_so


@pytest.mark.parametrize(("count", "text"), [(6, "f"), (7, "e and other modules")])
def test_six_modules_are_named(count, text):
    assert and_others(list("abcdefgh"[:count])).endswith(text)


@pytest.mark.parametrize(("count", "text"), [(6, "10"), (7, "1 more")])
def test_six_runs_of_layers_are_named(count, text):
    assert layers_text([*range(0, 2 * count, 2)]).endswith(f"and {text}")


@pytest.mark.parametrize(
    ("cosine", "is_so"), [(0.1 * BELOW, True), (0.1, False), (-0.1 * BELOW, True), (-0.1, False)]
)
def test_two_models_are_unrelated_below_a_cosine_of_a_tenth(must, cosine, is_so):
    """No sentence on entries is told of them."""
    summary = must("size")
    gates = [
        gate.with_values(figure=cosine) if gate.name == "lineage" else gate
        for gate in summary.gates
    ]
    changed = summary.with_values(gates=gates)
    assert ("unrelated" in told(changed)) is is_so
    assert ("coherent" in told(changed)) is not is_so
    assert Context(changed).tells(SentenceGroup.ENTRIES) is not is_so


@pytest.mark.parametrize(("times", "is_so"), [(3 * ABOVE, True), (3 * BELOW, False)])
@pytest.mark.parametrize("figure", ["relative_norm_of_all", "furthest_norm"])
def test_vectors_moved_further_from_three_times_on(must, figure, times, is_so):
    summary = must("vectors")
    norm = times * summary.figures.relative_norm_overall
    values = {"relative_norm_of_all": 0.0, "furthest_norm": None, "furthest": None, figure: norm}
    if figure == "furthest_norm":
        values["furthest"] = "model.norm.weight"
    assert ("vectors" in told(of(summary, "vectors", **values))) is is_so


@pytest.mark.parametrize(("share", "is_so"), [(0.9 * BELOW, True), (0.9, False)])
def test_storage_is_told_below_nine_tenths(must, share, is_so):
    assert ("kept" in told(of(must("kept"), "inside_layers", kept=share))) is is_so


@pytest.mark.parametrize(("share", "is_so"), [(0.8 * BELOW, True), (0.8, False)])
def test_a_norm_is_as_stored_below_eight_tenths(must, share, is_so):
    summary = of(must("size"), "figures", relative_norm_overall_unrounded=None)
    summary = of(summary, "inside_layers", kept=share)
    assert told(summary)["size"].startswith("As stored") is is_so


@pytest.mark.parametrize(("share", "is_so"), [(0.99 * BELOW, True), (0.99, False)])
def test_a_norm_before_storage_is_known_of_nearly_all(must, share, is_so):
    norm = must("size").figures.relative_norm_overall
    figures = {"relative_norm_overall_unrounded": 2 * norm, "unrounded_share": share}
    text = told(of(must("size"), "figures", **figures))["size"]
    assert text.startswith("Before storage")
    assert ("; known for" in text) is is_so


@pytest.mark.parametrize(("share", "is_so"), [(0.28, True), (0.28 * BELOW, False)])
def test_a_quarter_of_the_depth_is_named_from_28_percent_on(must, share, is_so):
    summary = must("size")
    quarters = [
        row.with_values(energy_share=share if row is summary.quarters[0] else 0.2)
        for row in summary.quarters
    ]
    assert len(quarters) == 4
    text = told(summary.with_values(quarters=quarters))["size"]
    assert ("Inside the layers" in text) is is_so


@pytest.mark.parametrize(("count", "text"), [(4, "w3."), (5, "and 1 more.")])
def test_four_differences_of_files_are_named(must, count, text):
    words = [f"w{number}" for number in range(count)]
    row = FileRow(path="config.json", kind="config", state="changed", differs=words, detail=None)
    counts = FileCounts(changed=1, added=0, removed=0, unknown=0, same=0)
    files = FilesRow(counts=counts, rows=[row])
    assert told(must("size").with_values(files=files))["files"].endswith(text)


STATES = {  # of a pair, the codes of sentences that it silences, and one that it does not
    "scaled": ({"coherent"}, "scaled"),
    "few_entries": ({"coherent", "kept", "few_values"}, "few_entries"),
    "rounding": ({"coherent", "kept", "few_values", "rounded_away"}, "rounding"),
    "unrelated": ({"coherent", "kept", "published", "vectors"}, "size"),
    "identical": ({"size", "coherent", "published"}, "identical"),
}


@pytest.mark.parametrize("code", STATES)
def test_what_a_pair_is_silences_what_would_be_false(must, code):
    """Also where the figures of structure, storage and vectors would call for their sentences."""
    summary = must(code)
    inside = must("kept").inside_layers
    silenced, standing = STATES[code]
    vectors = must("vectors").vectors if "vectors" in silenced else summary.vectors
    codes = told(summary.with_values(inside_layers=inside, vectors=vectors)).keys()
    assert not silenced & codes
    assert standing in codes


@pytest.mark.parametrize(("kind", "cells"), [
    ("layers", ["layers", "1 to 3", "2 to 4", "content and likeness"]),
    ("experts", ["experts of layers 0 and 1", "1 to 3", "2 to 4", "content and likeness"]),
    ("matrices", ["attn.q", "layer 1", "layer 0", "likeness"]),
    ("rows", ["rows of the embeddings", "256 of 264", "256 of 256", "content"]),
])  # fmt: skip
def test_what_corresponds_is_a_table(must, kind, cells):
    """A row for each run, the first 60; of what has its number, and without any, no table."""
    summary = must(f"{kind}_moved")
    (row,) = getattr(summary.correspondence, kind)
    assert partners_table(must("size")) is None
    for count in (0, 1, 60, 61):
        rows = [row] * count
        if kind in ("layers", "experts"):
            runs = [UnitRun(first=1, last=3, base_first=2)] * count
            rows = [row.with_values(runs=runs, by=["content", "likeness"])]
        table = partners_table(of(summary, "correspondence", **{kind: rows}))
        found = [] if table is None else table.rows
        assert found[:60] == [cells] * min(count, 60)
        assert found[60:] == [["1 more", None, None, None]] * (count - 60)
    if kind == "rows":  # of both sides some were not found
        part = of(summary, "correspondence", rows=[row.with_values(rows=255)])
        assert partners_table(part).rows[0][1:3] == ["at least 255 of 264", "at least 255 of 256"]


SWAPPED = [(1, 1, 3), (3, 3, 1)]


@pytest.mark.parametrize(("kind", "runs", "missing", "text"), [
    ("layers", SWAPPED, [], "layers 1 and 3 exchanged"),
    ("layers", [(1, 2, 5), (5, 6, 1)], [], "layers 1 to 2 and 5 to 6 exchanged"),
    ("experts", SWAPPED, [], "experts 1 and 3 of layers 0 and 1 exchanged"),
    ("layers", SWAPPED, [7], "layers at other numbers"),
    ("layers", SWAPPED[:1], [], "layers at other numbers"),
    ("layers", [(1, 2, 2), (3, 3, 1)], [], "layers at other numbers"),
])  # fmt: skip
def test_a_headline_names_what_was_exchanged(must, kind, runs, missing, text):
    """Of two runs that change places and nothing more; what turns round or is missing is more."""
    summary = must(f"{kind}_moved")
    (row,) = getattr(summary.correspondence, kind)
    made = [UnitRun(first=run[0], last=run[1], base_first=run[2]) for run in runs]
    row = row.with_values(runs=made, missing=missing, new=[])
    assert moved_in_brief(Context(of(summary, "correspondence", **{kind: [row]}))) == text


@pytest.mark.parametrize(("more", "coherence"), [
    ({}, "along"), ({"few_bits": "tuned"}, "hidden"), ({"few_bits": "base"}, "along"),
    ({"unexplained_in_more_bits": 5}, "hidden"), ({"unexplained_in_more_bits": 4}, "along"),
    ({"coherent": 2}, "along"), ({"coherent": 1}, "hidden"),  # with 2 of 8 above the short side
    ({"equivalent_directions": None}, "above"),
    ({"equivalent_directions": None, "above_short_side": 0}, "hidden"),
])  # fmt: skip
def test_coherence_is_known_for_half_of_the_matrices(more, coherence):
    """Of 10, of which 8 were judged."""
    usual = {"unexplained_in_more_bits": 0, "matrices": 10, "judged": 8, "coherent": 4}
    usual |= {"above_short_side": 2, "equivalent_directions": 3.0, "few_bits": None, **more}
    inside = SimpleNamespace(**usual)
    context = SimpleNamespace(
        few_bits=inside.few_bits, summary=SimpleNamespace(inside_layers=inside)
    )
    assert Context.coherence.func(context) == coherence
