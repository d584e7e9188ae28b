"""The record of a pair has types: a misspelt figure is a fault of mypy, and JSON of another shape
is refused.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shadow.summary.record import (
    BrokenRow,
    InsideLayers,
    Medians,
    ModuleRow,
    PairFigures,
    VectorsRow,
    keys_of,
    read_row,
)

ROOT = Path(__file__).parents[2]
BROKEN = {"code": "all_zero", "side": "tuned", "count": 1, "tensors": ["a.weight"]}
MISSPELT = """
from shadow.summary.record import BrokenRow, PairRecord

def attribute(record: PairRecord) -> None:
    print(record.figures.concentrations)

def key(record: PairRecord) -> None:
    print(record["figures"])

def made() -> BrokenRow:
    return BrokenRow(code="all_zero", side="tuned", counts=1, tensors=[])

def right(record: PairRecord) -> float | None:
    return record.figures.concentration
"""


@pytest.mark.slow
def test_a_misspelt_figure_is_a_fault_of_mypy(tmp_path):
    """As an attribute, as a key, and where a row is made; the right one is none."""
    (tmp_path / "misspelt.py").write_text(MISSPELT)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, str(tmp_path / "misspelt.py")], cwd=ROOT, capture_output=True, text=True
    )
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if " error: " in line}
    assert lines == {5, 8, 11}, done.stdout


def test_keys_of_shared_figures_come_last():
    """People read the place of a row first."""
    assert keys_of(ModuleRow)[:3] == ("component", "module", "matrices")
    assert keys_of(PairFigures)[0] == "matrices"
    assert set(keys_of(Medians)) < set(keys_of(PairFigures))
    assert len(keys_of(InsideLayers)) == len(set(keys_of(InsideLayers))) == 41


@pytest.mark.parametrize("other", [
    {"code": None}, {"count": 1.0}, {"count": True}, {"tensors": "a.weight"}, {"tensors": [1]},
    {"more": 1},
], ids=str)  # fmt: skip
def test_a_row_of_another_shape_is_refused(other):
    """Types are exact: a flag is no count, a text no list; no key may be missing or extra."""
    assert read_row(BrokenRow, json.loads(json.dumps(BROKEN))) == BROKEN
    with pytest.raises(TypeError):
        read_row(BrokenRow, BROKEN | other)
    for key in BROKEN:
        with pytest.raises(TypeError):
            read_row(BrokenRow, {name: value for name, value in BROKEN.items() if name != key})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "1", True])
def test_a_number_is_finite(number):
    """A forged report cannot bring NaN into a sentence."""
    vectors = dict.fromkeys(keys_of(VectorsRow)) | {
        "compared": 1, "changed": 1, "moved": {"a": [0]},
    }  # fmt: skip
    assert read_row(VectorsRow, vectors).moved == {"a": [0]}
    with pytest.raises(TypeError):
        read_row(VectorsRow, vectors | {"relative_norm": number})
