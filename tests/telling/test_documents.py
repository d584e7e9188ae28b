"""Plans, lists and families as documents: which figures are shown when."""

from dataclasses import replace

import pytest

from shadow.lists.document import list_document, plan_document, plans_document
from shadow.lists.index import Index, ListRow
from shadow.run.pair_plan import PairPlan, PlannedSide
from shadow.targets.families import Family, Pair
from shadow.targets.references import ComponentBase, parse_reference
from shadow.telling.document import Figures, Headline, Origin, Paragraph, Section, TableBlock, Word
from shadow.telling.families import families_document, family_document

BASE = PlannedSide("org/base", "0123456789abcdef", None, 1, 2_000_000, ["BF16"], 9)
TUNED = PlannedSide("./tuned", None, "local", 1200, 3_000_000, ["BF16", "F32"], 9)
PLAN = PairPlan(
    family="f", pair="a..b", base=BASE, tuned=TUNED, matrices=1234, vectors=5, skipped=[],
    shards_to_fetch=0, shards_in_ranges=0, bytes_to_move=0, frees=False, disk_peak=3000,
    disk_free=5000, problem=None, jobs=2, cores=3, cores_by="x", memory_free=7000, memory_by="y",
    memory=4000, seconds=7.0, device="cpu", device_name="z",
)  # fmt: skip
DISK = "at most 3.0 kB at a time, {}; 5.0 kB are free"
STAYS = DISK.format("whole shards stay in the Hub's cache")


def figures(document, at=-1):
    """The last rows of names and values, as texts."""
    blocks = [block for block in document.blocks if isinstance(block, Figures)]
    return {row.name: getattr(row.value, "text", row.value) for row in blocks[at].rows}


@pytest.mark.parametrize(("more", "rows"), [
    ({}, {"to move": None, "disk": None, "device": None,
          "time": "about 7 seconds of computing on this machine"}),
    ({"shards_to_fetch": 2}, {"to move": "nothing: everything is in the Hub's cache",
                              "disk": STAYS}),
    ({"shards_to_fetch": 2, "bytes_to_move": 125_000_000, "frees": True},
     {"to move": "125.0 MB", "disk": DISK.format("freed after use"),
      "time": "about 7 seconds of computing on this machine; about 10 seconds of download at 100"
              " Mbit/s"}),
    ({"shards_to_fetch": 2, "bytes_to_move": 1000, "shards_in_ranges": 1},
     {"to move": "1.0 kB, 1 of 2 shards as byte ranges (unverified)", "disk": STAYS}),
    ({"device": "cuda"}, {"device": "cuda (z), experimental"}),
    ({"jobs": 1}, {"memory": "about 4.0 kB with 1 worker, not counting file caches; 7.0 kB"
                             " available (y)"}),
])  # fmt: skip
def test_a_plan_shows_what_an_audit_costs(more, rows):
    found = figures(plan_document(replace(PLAN, **more)))
    assert {name: found.get(name) for name in rows} == rows
    assert (found["work"], found["cores"]) == ("1,234 matrices, 5 vectors", "3 (x)")


def test_a_plan_names_both_sides():
    """A commit by its first letters, and how a side that is no repository is reached."""
    document = plan_document(PLAN)
    assert figures(document, 0) == {
        "base": "org/base @ 0123456789ab: 1 shard, 2.0 MB, BF16",
        "tuned": "./tuned, local: 1,200 shards, 3.0 MB, BF16, F32",
    }
    assert [type(block) for block in document.blocks] == [Section, Figures, Figures]


def test_several_plans_are_added_up():
    """Of memory the most counts, since pairs come one after another."""
    plans = [replace(PLAN, memory=memory, bytes_to_move=1000) for memory in (5000, 9000, 7000)]
    shared = "less where pairs share a checkpoint"
    assert figures(plans_document(plans, 4)) == {
        "pairs": "3 of 4", "to move": f"3.0 kB, {shared}", "memory": "at most about 9.0 kB",
        "time": f"about 21 seconds of computing, {shared}",
    }  # fmt: skip
    found = figures(plans_document([PLAN], 1))
    assert (found["pairs"], "to move" in found) == ("1", False)


def listed(*states):
    """A list of pairs in these states."""
    rows = [
        ListRow(at or None, "f", f"a..{at}", "tuned", f"f/a..{at} x", "a", "b", state=state,
                seconds=1.5 if at else None, bytes=1000 * at, error="e" if at == 1 else None,
                hint="h" if at == 1 and state == "kept" else None)
        for at, state in enumerate(states)
    ]  # fmt: skip
    return Index("1", (6, {}), None, tuple(rows))


@pytest.mark.parametrize(("states", "pairs", "more"), [
    ("pending failed", "2: 1 failed, 1 pending; took 1.5 s; 1.0 kB fetched", None),
    ("done", "1: 1 done; took 0.0 s", "shadow show 'out/f/a..0 x'"),
    ("failed kept done", "3: 1 done, 1 failed, 1 kept; took 3.0 s; 3.0 kB fetched",
     "shadow show 'out/f/a..1 x'"),
    ("", "0; took 0.0 s", None),
])  # fmt: skip
def test_a_list_is_counted_by_state(states, pairs, more):
    """In one order, with the first report that can be shown, and each error with its hint."""
    document = list_document(listed(*states.split()), "out", {})
    (origin,) = (block for block in document.blocks if isinstance(block, Origin))
    assert dict(origin.rows) == {"pairs": pairs} | ({} if more is None else {"more": more})
    table = document.blocks[1]
    assert table.close
    assert [row[0] for row in table.rows] == ["-", "1", "2"][: len(table.rows)]
    errors = [block for block in document.blocks if isinstance(block, Figures)]
    assert [row.value for block in errors for row in block.rows] == (
        [f"f:a..1: e{' (h)' if states.split()[1] == 'kept' else ''}"] if " " in states else []
    )


def test_what_rules_say_of_a_pair_is_its_state():
    judged = {"f:a..0": Word("met", "fault")}
    document = list_document(listed("done", "done"), "out", judged)
    (origin,) = (block for block in document.blocks if isinstance(block, Origin))
    assert dict(origin.rows)["pairs"].startswith("2: 1 done, 1 met; ")


@pytest.fixture
def family():
    one, two, three = map(parse_reference, ("org/a", "org/b", "org/c"))
    pairs = Pair("x", "a..b", one, two), Pair("x", "a..c", one, three, relation="sibling")
    stages = {"base": ComponentBase((("language", one), ("vision", two))), "sft": three}
    return Family("x", stages, pairs, ("vision", "dense"), None, "a note", "x.yaml", 7)


def test_a_family_is_described(family):
    """Relations are named where they are unusual, and components where a stage has several."""
    document = family_document(family)
    assert document.blocks[0] == Headline("x")
    (table,) = (block for block in document.blocks if isinstance(block, TableBlock))
    cells = [[getattr(cell, "text", cell) for cell in row] for row in table.rows]
    assert table.close
    assert cells == [
        ["base", "language", "org/a"], ["base", "vision", "org/b"], ["sft", "all", "org/c"],
    ]  # fmt: skip
    rows = [(row.name, row.value) for row in document.blocks[-1].rows]
    assert rows == [
        ("pairs", "x:a..b"), ("", "x:a..c (sibling)"), ("components", "language, vision"),
        ("tags", "vision, dense"), ("note", "a note"), ("file", "x.yaml:7"),
    ]  # fmt: skip


def test_families_are_counted(family):
    document = families_document([family, replace(family, name="y", pairs=(), tags=())])
    table, count = document.blocks
    assert isinstance(count, Paragraph)
    assert count.text == "2 families, 2 pairs"
    assert [row[1:] for row in table.rows] == [
        ["a..b, a..c (sibling)", "vision, dense"], [Word("none", "warning"), ""],
    ]  # fmt: skip
    assert families_document([family]).blocks[1].text == "1 family, 2 pairs"
