"""What stands against a claim, as rows of a table."""

import pytest

from shadow.checks.answer import Against, Answer, Outcome, Verification, largest_first
from shadow.checks.registry import CHECKS
from shadow.telling.document import Note, TableBlock
from shadow.telling.verification import SHOWN, verification_document
from shadow.templates import Reason, said


def table_of(against: list[Against], claim: str = "same") -> tuple[list[str], list[tuple], str]:
    """Heads, rows, and the note on what is hidden."""
    answer = Answer(Outcome.DOES_NOT_HOLD, [said("they differ")], {}, largest_first(against))
    found = Verification(CHECKS[claim], {"A": "a", "B": "b"}, answer)
    blocks = verification_document(found).blocks
    (table,) = (block for block in blocks if isinstance(block, TableBlock))
    notes = [block.text for block in blocks if isinstance(block, Note)]
    return [column.head for column in table.columns], [tuple(row) for row in table.rows], str(notes)


def only_in(side: str) -> Reason:
    return Reason("only_in", {"where": side})


def differing(layers: range, module: str = "attn.q", largest: float = 0.5) -> list[Against]:
    return [
        Against(
            f"layers.{i}.{module}",
            Reason("entries", {"changed": i + 1, "entries": 2000}),
            largest / (i + 1),
        )
        for i in layers
    ]


def test_a_row_stands_for_many_tensors_of_one_name():
    against = differing(range(3, 40)) + differing(range(2), "mlp.up", 9.0)
    against.append(Against("embed", only_in("A")))
    heads, rows, notes = table_of(against)
    assert heads == ["what speaks against it", "count", "how", "size"]
    assert [tuple(map(str, row[:3])) for row in rows] == [
        ("embed", "1", "only in A"),
        ("layers.0-1.mlp.up", "2", "1 of 2,000 entries differs"),
        ("layers.3-39.attn.q", "37", "4 of 2,000 entries differ"),
    ]
    assert rows[2][3].value == 0.5 / 4  # that of the one that differs most
    assert "--json" not in notes


def test_scattered_indices_and_two_of_them():
    scattered = [Against(f"layers.{i}.norm", only_in("B")) for i in range(0, 40, 2)]
    experts = [
        Against(f"layers.{i}.experts.{j}.up", only_in("B")) for i in (1, 2, 7) for j in range(4)
    ]
    shard = Against("model-00002-of-00004.safetensors", only_in("B"))  # as it can be pasted
    _, rows, _ = table_of([*scattered, *experts, shard])
    assert {tuple(map(str, row[:2])) for row in rows} == {
        ("layers.*.norm", "20"), ("layers.1-2,7.experts.0-3.up", "12"), (shard.name, "1"),
    }  # fmt: skip


def test_what_is_hidden_counts_tensors_and_not_rows():
    against = [
        Against(f"{'abcdefghijkl'[i]}.{layer}", only_in("A")) for i in range(12) for layer in (1, 2)
    ]
    _, rows, notes = table_of(against)
    assert len(rows) == SHOWN
    assert f"--json has {(12 - SHOWN) * 2} more" in notes


def test_of_whole_a_row_stands_for_a_code():
    """Its first names and how many more; the code is before the words."""
    unknown, zero = Reason("unexpected", {}), Reason("zero", {})
    names = [f"layers.{layer}.{module}" for module in ("up", "down") for layer in range(5)]
    against = [Against(name, unknown) for name in names] + [Against("norm", zero)]
    _, rows, _ = table_of(against, "whole")
    assert [tuple(map(str, row[:2])) for row in rows] == [
        ("layers.0-4.down and 5 more", "10"), ("norm", "1"),
    ]  # fmt: skip
    assert [row[2].partition(":")[0] for row in rows] == ["unexpected", "zero"]


@pytest.mark.parametrize("name", ["9" * 5000, "layers.٣.x", "a.1.5"])
def test_numbers_of_hostile_names_are_text(name):
    _, rows, _ = table_of([Against(f"{name}.{i}", only_in("A")) for i in range(9)])
    assert len(rows) == 1
    assert rows[0][1].value == 9
