"""Which units and rows correspond, by planted signatures, just inside and outside of what decides;
and what a summary says of it.
"""

import numpy as np
import pytest
import torch

from shadow.checkpoints.held_files import HeldFile, hold
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import stored_tensor
from shadow.places.architecture import Place
from shadow.relations import matching, signature
from shadow.relations.facts import unit_numbers
from shadow.relations.matching import (
    RowSignatures,
    UnitChoice,
    choose,
    elected,
    least_sure,
    match_rows,
    rows_of_units,
)
from shadow.relations.signature import Signature, signature_of
from shadow.run.correspondence import Matching, other_layers
from shadow.run.runtime import Runtime
from shadow.spectra.spectrum import Workspace

AXES = np.eye(8, dtype=np.float32)


def unit(axis, digest=None, other=None):
    """A signature along an axis; with another axis its cosine with the first is .6."""
    sketch = AXES[axis] if other is None else np.float32(0.6) * AXES[axis] + 0.8 * AXES[other]
    return Signature(axis if digest is None else digest, sketch)


@pytest.mark.parametrize(("tuned", "base", "chosen"), [
    # equal ones: that which follows, not the one with the nearest number; the nearest without one
    ([(9, unit(0)), (10, unit(1))], [(0, unit(0)), (1, unit(1)), (2, unit(1))],
     {0: (0, "content"), 1: (1, "content")}),
    ([(10, unit(1))], [(0, unit(0)), (1, unit(1)), (2, unit(1))], {0: (2, "content")}),
    ([(1, unit(0))], [(0, unit(0)), (4, unit(0, 9))], {0: (0, "content")}),
    # what has its number is that, if it is like it; content says more than likeness
    ([(1, unit(0, 9, 1))], [(0, unit(1)), (1, unit(0))], {0: (1, "number")}),
    ([(5, unit(0, 9))], [(0, unit(0)), (1, unit(1))], {0: (0, "likeness")}),
    ([(5, unit(3)), (6, unit(1))], [(0, unit(0)), (1, unit(1))], {1: (1, "content")}),
    ([], [(0, unit(0))], {}), ([(0, unit(0))], [], {}),
])  # fmt: skip
def test_a_matrix_chooses_a_unit(tuned, base, chosen):
    found = choose(tuned, base)
    assert {at: (choice.unit, choice.by) for at, choice in found.items()} == chosen
    assert len(choose([(9, unit(0))], [(at, unit(0)) for at in range(9)])[0].copies) == 8
    assert all(choice.unit in choice.copies for choice in found.values() if choice.by == "content")


@pytest.mark.parametrize(("own", "cosines", "between", "chosen"), [
    (9, (0.5, 0.3), 0.0, (0, "likeness")), (9, (0.499, 0.1), 0.0, None),
    (9, (0.9, 0.7), 0.0, (0, "likeness")), (9, (0.9, 0.71), 0.0, None),
    (9, (0.9, 0.85), 0.9, (1, "likeness")), (9, (0.9, 0.85), 0.899, None),
    (0, (0.5, 2.0), 0.0, (0, "number")), (0, (0.499, 2.0), 0.0, (1, "content")),
])  # fmt: skip
def test_a_unit_is_near_and_the_next_is_far_or_its_copy(own, cosines, between, chosen):
    """From .5 on, by .2, and by .9; the last that fits is the nearest to the one expected."""
    among = np.array([[1.0, between], [between, 1.0]])
    choice = matching._choice(own, 9, np.array(cosines), [0, 1], among)
    assert (choice and (choice.unit, choice.by)) == chosen


def units_of(text):
    """`0:1 1:2c 2:-`: by number, content (c) or likeness (l); a new one."""
    ways = {"": "number", "c": "content", "l": "likeness"}
    units = {}
    for word in text.split():
        number, _, of = word.partition(":")
        unit = of.rstrip("cl")
        units[int(number)] = None if of == "-" else UnitChoice(int(unit), ways[of[len(unit) :]])
    return units


def test_the_least_sure_way_is_that_of_a_unit():
    """Most parameters decide, not most matrices; a way of another unit does not count."""
    assert least_sure(["number", "content"]) == "content"
    assert least_sure(["likeness", "content", "number"]) == "likeness"
    sure, other = UnitChoice(3, "number"), UnitChoice(4, "likeness")
    votes = {7: [(sure, 6), (other, 3), (other, 2)], 3: [], 5: []}
    expected = {7: UnitChoice(3, "number", []), 3: None, 5: UnitChoice(5, "number")}
    assert elected(votes, {3, 4, 5}) == expected


@pytest.mark.parametrize(("units", "base", "tuned", "of_base", "of_tuned", "by"), [
    ("0:1c 1:0c", 2, 2, [1, 0], [0, 1], "content"),
    ("2:0l 0:3 1:-", 4, 3, [3, 0], [0, 2], "likeness"),
    ("0:1c 1:-", 2, 2, None, None, None), ("0:0 1:1", 2, 2, None, None, None),
    ("0:0 1:1", 3, 2, [0, 1], [0, 1], "number"), ("0:0 1:1", 2, 3, [0, 1], [0, 1], "number"),
    ("0:2c 1:0c", 2, 2, None, None, None), ("0:1c 2:0c", 2, 2, None, None, None),
])  # fmt: skip
def test_rows_of_a_router_go_with_their_experts(units, base, tuned, of_base, of_tuned, by):
    """Not where numbers say the same, and not beyond the rows that a side has."""
    pairs = rows_of_units(units_of(units), base, tuned)
    assert (pairs is not None) is (by is not None)
    if pairs is not None:
        assert ([*pairs.rows[0]], [*pairs.rows[1]], pairs.by) == (of_base, of_tuned, by)


@pytest.mark.parametrize(("tuned", "partners"), [  # rows 0 to 9 of the base; -: a new row
    ("0123456789", None), ("--0123456789", "--0123456789"), ("1234-6789", "123456789"),
    ("123456-89", "123456789"), ("012-56789", "012-56789"), ("-12345678-", None),
    ("-0123456-8-", "-0123456789"), ("-0123456789-", "-0123456789-"), ("9-12345678", "9-12345678"),
    ("4-6-8", "45678"), ("42-97", "42-97"), ("2244-", None), ("22145", "--145"), ("22345", "12345"),
    ("3---", None), ("34--", "3456"), ("34---", None), ("0-213", "0-213"),
])  # fmt: skip
@pytest.mark.filterwarnings("error")  # also where all rows have equal sums
def test_rows_of_a_vocabulary_correspond_by_content(tuned, partners):
    """At least half of the smaller side; what lies between two of one shift goes with them, unless
    its row is another's; rows that occur twice say nothing.
    """
    digests = [int(row) if row != "-" else 100 + at for at, row in enumerate(tuned)]
    sides = [
        RowSignatures(np.array(of, np.uint64), np.zeros((len(of), 40), np.float32))
        for of in (range(10), digests)
    ]
    pairs = match_rows(*sides)
    if pairs is None:
        assert partners is None
        return
    found = dict(zip(pairs.rows[1].tolist(), pairs.rows[0].tolist(), strict=True))
    assert "".join(str(found.get(at, "-")) for at in range(len(tuned))) == partners
    assert pairs.by == "content"


def by_likeness(noise=0.3, sums=32, change=lambda base, tuned: None):
    """Rows in another order with noise on each, along a mean and a direction that dominate."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, sums)) + 50.0
    base[:, 0] *= 30
    order = rng.permutation(60)[:40]
    tuned = base[order] + noise * rng.standard_normal((40, sums)) * base.std(axis=0)
    change(base, tuned)
    digests = np.arange(100, dtype=np.uint64)
    sides = (
        RowSignatures(digests[: len(one)] + np.uint64(1000 * at), one.astype(np.float32))
        for at, one in enumerate((base, tuned))
    )
    return order, match_rows(*sides)


def doubled(base, _):
    base[30:] = base[:30]


def drifted(base, tuned):
    """All rows moved along one direction."""
    tuned += (np.random.default_rng(4).standard_normal((40, 1)) / 4 + 3) * base.std(axis=0)


def overflowed(_, tuned):
    tuned[3, 3] = np.nan


def not_finite(base, _):
    base[3, 3] = np.inf


@pytest.mark.parametrize(("options", "lost"), [
    ({}, []), ({"sums": 31}, None), ({"noise": 1.2}, None), ({"change": doubled}, None),
    ({"change": not_finite}, [3]), ({"change": overflowed}, [38]),
    ({"sums": 64, "noise": 0.1, "change": drifted}, []),
])  # fmt: skip
def test_rows_of_a_vocabulary_correspond_by_likeness(options, lost):
    """Where enough sums show it, one is far more like each than any other; not what is broken."""
    order, pairs = by_likeness(**options)
    assert (pairs is None) is (lost is None)
    if pairs is not None:
        assert pairs.by == "likeness"
        assert pairs.rows[0].tolist() == [row for row in order if row not in lost]


def test_more_rows_take_more_likeness():
    """The same likeness is told of fewer rows where more others could have it by chance."""
    rng = np.random.default_rng(5)
    shares = []
    for count in (300, 5000):
        base, noise = rng.standard_normal((2, count, 64)).astype(np.float32)
        found = matching._by_likeness(base, base[::-1] + noise, np.ones(count, bool))
        told = np.flatnonzero(found >= 0)
        assert (found[told] == count - 1 - told).all()
        shares.append(len(told) / count)
    few, many = shares
    assert few > many + 0.1


def test_an_embedding_and_a_head_say_together_which_rows_correspond():
    rng = np.random.default_rng(6)
    order = rng.permutation(60)
    pairs = None
    for first in (0, 20):  # of these rows nothing is left in the one, nor in the other
        base, noise, new = rng.standard_normal((3, 60, 64)).astype(np.float32)
        tuned = base[order] + 0.1 * noise
        tuned[first : first + 20] = new[:20]
        numbers = np.arange(120, dtype=np.uint64)
        sides = RowSignatures(numbers[:60], base), RowSignatures(numbers[60:], tuned)
        assert len(match_rows(*sides).rows[0]) == 40
        pairs = match_rows(*sides, known=pairs)
    assert pairs.rows[1].tolist() == [*range(60)]
    assert (pairs.rows[0].tolist(), pairs.by) == (order.tolist(), "likeness")


@pytest.mark.parametrize(("shift", "partners"), [(0, None), (3, [*range(3, 60)])])
def test_copies_of_rows_that_were_added_are_new(shift, partners):
    """The row of the base is that of its own number, else the first."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((60, 32))
    tuned = np.concatenate([base[shift:], base[shift : shift + 8]])
    tuned = tuned + 0.05 * rng.standard_normal(tuned.shape)
    numbers = np.arange(200, dtype=np.uint64)
    pairs = match_rows(
        RowSignatures(numbers[:60], base.astype(np.float32)),
        RowSignatures(numbers[60 : 60 + len(tuned)], tuned.astype(np.float32)),
    )
    assert (pairs and pairs.rows[0].tolist()) == partners


@pytest.mark.parametrize(("most", "sums"), [(10**2 * 40, 40), (10**2 * 40 - 1, signature.FEW)])
def test_rows_of_huge_vocabularies_have_digests_alone(monkeypatch, most, sums):
    """And few sums: likeness takes the product of all rows with all rows."""
    monkeypatch.setattr(signature, "MOST", most)
    made = signature.row_signatures_of(torch.randn(10, 40), Workspace())
    assert made.sums.shape == (10, sums)
    assert len({*made.digests.tolist()}) == 10


BACK = [*range(24)][::-1]
SEVEN, EIGHT = ([*range(1, count), 0, *range(count, 24)] for count in (7, 8))  # rows that moved
ORDER = {f"t{row}": row for row in range(24)}
BEYOND = {"t3": 24, "t4": -1, "t5": 10**30}


@pytest.mark.parametrize(("degrees", "order", "base", "tuned", "count"), [
    (0, BACK, {}, {}, 23), (0, BACK, {}, ORDER, 0), (0, SEVEN, {}, {}, 0), (0, EIGHT, {}, {}, 23),
    (40, BACK, {}, {}, 23), (80, BACK, {}, {}, 0),  # cosines of .77 and .17
    (0, BACK, {}, dict.fromkeys([*ORDER][:13], 99), 12),
    (0, BACK, {}, dict.fromkeys([*ORDER][:14], 99), 0),
    (0, BACK, {}, BEYOND, 20), (0, BACK, BEYOND, {}, 20), (0, BACK, {"t3": 9}, {}, 22),
])  # fmt: skip
def test_rows_of_tokens_correspond_where_entries_agree(degrees, order, base, tuned, count):
    """Half of the smaller side, eight that moved, a median cosine of .5; content (row 12) first."""
    rows = np.random.default_rng(3).standard_normal((24, 2)).astype(np.float32)
    x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = (rows[order] @ np.array([[x, -y], [y, x]])).astype(np.float32)
    numbers = np.arange(48, dtype=np.uint64) * (np.arange(48) != 24 + 12)
    sides = RowSignatures(numbers[:24], rows), RowSignatures(numbers[24:], turned)
    own = {f"t{row}": at for at, row in enumerate(order)}
    pairs = match_rows(*sides, lambda: (ORDER | base, own | tuned))
    assert (0 if pairs is None else len(pairs.rows[0])) == count
    if pairs is not None:
        assert pairs.by == "token"
        assert pairs.rows[0].tolist() == [order[at] * (at != 12) for at in pairs.rows[1]]


# -------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(("units", "missing", "new", "runs", "by"), [
    ("0:0 1:2c 2:3c 3:-", [1, 4, 5], [3], [(1, 2, 2)], ["content"]),
    ("0:1l 1:2c 3:4c 4:0c", [3, 5], [], [(0, 1, 1), (3, 3, 4), (4, 4, 0)], ["content", "likeness"]),
    ("1:0c 2:0c 3:1c", [2, 3, 4, 5], [], [(1, 1, 0), (2, 3, 0)], ["content"]),
    ("0:0 1:1 2:2 3:3 4:4 5:5", [], [], [], []),
])  # fmt: skip
def test_units_are_said_in_runs(units, missing, new, runs, by):
    """Of one shift and without a gap; those with their own number are in none."""
    row = unit_numbers("language", units_of(units), set(range(6)))
    assert [(run.first, run.last, run.base_first) for run in row.runs] == runs
    assert (row.component, row.missing, row.new, row.by) == ("language", missing, new, by)


def test_a_layer_may_have_matrices_of_another(tmp_path):
    """Norms and experts do not say so, and a layer that is new has none."""
    known = Matching(Runtime(), tmp_path)
    known.units = {("language", None): units_of("0:0 1:2c 2:-")}
    groups = [("language", None), ("language", 1), ("language", 2), ("language", 7), ("vision", 1)]
    bases = [("language", None), ("language", 2), None, ("language", 7), ("vision", 1)]
    assert [known.base_group(group) for group in groups] == bases
    chosen = {
        "attn.q": (2, "content"), "attn.o": (0, "likeness"), "attn.k": (0, "likeness"),
        "mlp.up": (4, "content"), "norm": (0, "content"), "router": (0, "content"),
    }  # fmt: skip
    known.chosen = {Place("language", 1, name): UnitChoice(*of) for name, of in chosen.items()}
    known.chosen[Place("language", 1, "experts.up", 3)] = UnitChoice(0, "content")
    known.chosen[Place("language", 2, "attn.q")] = UnitChoice(0, "content")
    said = [(row.layer, row.base_layer, row.modules, row.by) for row in other_layers(known)]
    assert said == [(1, 0, ["attn.k", "attn.o"], "likeness"), (1, 4, ["mlp.up"], "content")]


@pytest.mark.parametrize(("cols", "is_whole"), [(512, True), (513, False)])
def test_a_signature_is_of_values(tmp_path, monkeypatch, cols, is_whole):
    """However they are stored; of more than 2^18 a tile in 17 is read. A cosine is that of all
    entries, also where columns of outliers dominate, which two unrelated matrices may share.
    """
    read, read_runs = [], HeldFile.read_runs
    monkeypatch.setattr(HeldFile, "read_runs", lambda *given: (
        read.append(len(given[-1])), read_runs(*given)))  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    first, noise, other = torch.randn(3, 512, cols, generator=generator)
    outliers = torch.ones(cols)
    outliers[::60] = 200.0
    first, other = first.bfloat16() * outliers, other * outliers
    near, last = 0.8 * first + 0.6 * noise * outliers, first.clone()
    last[-1, -1] += 1
    (tmp_path / "x").write_bytes(first.numpy().tobytes())
    info = TensorInfo("x", "F32", (512, cols), "x", 0, 4 * 512 * cols)
    tensor = stored_tensor(hold(tmp_path / "x"), info)
    made = [
        signature_of(one, Workspace())
        for one in (tensor, near, other, 0 * first, first * torch.nan, last)
    ]
    assert sum(read) < 4 * 512 * cols * (1.01 if is_whole else 1 / 12)
    for same in (first.double(), first.T.contiguous().T):
        assert signature_of(same, Workspace()).digest == made[0].digest
    assert len({one.digest for one in made}) == (6 if is_whole else 5)
    (row,) = signature.cosines(made[:1], made[:5])
    assert row == pytest.approx([2.0, 0.8, 0.0, 0.0, 0.0], abs=0.1 if is_whole else 0.2)
    assert not signature.cosines(made[3:5], made[3:5]).any()  # not even with themselves
