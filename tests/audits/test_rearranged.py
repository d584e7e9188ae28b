"""The base's own matrices are found in other layers, negated and in another order, and what is
unrelated stays so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import models
import pyarrow.parquet as pq
import pytest
from rearranging import MODULES, Weights, dropped, inserted, negated, permuted, tuned, weights
from runs import contents, pair_of

from shadow.audits.engine import InProcess
from shadow.audits.pair import run_pair
from shadow.audits.parts import Parts
from shadow.audits.runtime import Runtime, Settings
from shadow.checkpoints.pairing import Filter
from shadow.spectra.delta import Method

SETTINGS = Settings(Method(), Filter())
BASE = weights(0, layers=6)
OTHER = {name: matrix for name, matrix in weights(1, layers=6).items() if "layers" in name}


def repeated(base: Weights) -> Weights:
    """Layers 0 to 3, then 2 to 5 once more, as models are made deeper."""
    first, again = dropped(dropped(base, 5), 4), dropped(dropped(base, 0), 0)
    moved = {
        name.replace(f"layers.{layer}.", f"layers.{layer + 4}."): matrix.clone()
        for layer in range(4)
        for name, matrix in again.items()
        if f"layers.{layer}." in name
    }
    return first | moved


TUNED: dict[str, Callable[[], Weights]] = {
    "dropped": lambda: dropped(BASE, 2),
    "the last but one": lambda: dropped(BASE, 4),
    "dropped and trained": lambda: tuned(dropped(BASE, 2), 0.1, seed=3),
    "inserted": lambda: inserted(BASE, 2, seed=4),
    "repeated": lambda: repeated(BASE),
    "negated": lambda: tuned(negated(BASE, (0, 2, 4)), 0.02, seed=5),
    "times -2": lambda: {name: -2 * matrix for name, matrix in BASE.items()},
    "one negated": lambda: tuned(negated(BASE, (3,), ("mlp.up_proj",)), 0.02, seed=5),
    "neurons": lambda: tuned(permuted(BASE, seed=6), 0.05, seed=7),
    "unrelated": lambda: BASE | OTHER,
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The audit of a case, made once."""
    there = tmp_path_factory.mktemp("rearranged")
    base = models.write(there / "base", BASE, models.LLAMA)

    def run(case: str, runtime: Runtime = Runtime(), output: str = "out"):  # noqa: B008
        side = there / case.replace(" ", "-")
        if not side.exists():
            models.write(side, TUNED[case](), models.LLAMA)
        return run_pair(pair_of(base, side), SETTINGS, there / output, runtime)

    return cache(run)


LATER = "By their content, layers 2 to 4 are the base's layers 3 to 5: its layer 2 is missing."
# of each case its headline, and each first sentence by code
SAID = {
    "dropped": (
        "The base without its layer 2.",
        {"layers_moved": LATER},
    ),
    "the last but one": (
        "The base without its layer 4.",
        {"layers_moved": "By their content, layer 4 is the base's layer 5: its layer 4 "},
    ),
    "dropped and trained": (
        "The base without its layer 2.",
        {"layers_moved": LATER},
    ),
    "inserted": (
        "The base with layer 2 new.",
        {
            "layers_moved": (
                "By their content, layers 3 to 6 are the base's layers 2 to 5: layer 2 is new."
            )
        },
    ),
    "repeated": (
        "The base with its layers in other places.",
        {"layers_moved": "By their content, layers 4 to 7 are the base's layers 2 to 5."},
    ),
    "negated": (
        "The base with 21 matrices negated.",
        {"negated": "21 matrices are the base's with the opposite sign, up to some training:"},
    ),
    "times -2": (
        "The base with 43 matrices negated.",
        {
            "negated": "43 matrices are the base's with the opposite sign, up to some training:",
            "scaled": "Every matrix is the base's times -2.000; nothing else changed in it.",
        },
    ),
    "one negated": (
        "Changed by 34 %, with 1 matrix negated, most of it in mlp.up.",
        {"negated": "1 matrix is the base's with the opposite sign, up to some training: mlp.up"},
    ),
    "neurons": (
        "The base with 18 matrices in another order.",
        {"reordered": "18 matrices are the base's with rows or columns in another order,"},
    ),
    "unrelated": (
        "Two unrelated models of one shape.",
        {"unrelated": "These are two unrelated models of one shape"},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_the_bases_is_named_and_what_is_not_stays_unrelated(case, audited):
    """A headline and a sentence for each; nothing else of them, and of no training, is said."""
    headline, sentences = SAID[case]
    done = audited(case)
    found = done.summary.finding
    texts = {sentence.code: sentence.text for sentence in found.sentences}
    assert found.headline == headline
    for code, text in sentences.items():
        assert texts[code].startswith(text)
    known = {"unrelated", "hardly_related", "layers_moved", "negated", "reordered", "replaced"}
    assert known & texts.keys() == sentences.keys() - {"scaled"}
    lineage = {gate.name: gate for gate in done.summary.gates}["lineage"]
    assert lineage.passed == (case == "one negated")
    assert ("have little in common" in lineage.reason) == (case == "unrelated")
    if case in ("dropped", "inserted"):
        end = "has none of that number)."
        assert texts["left_out"].endswith(end)
    if case != "one negated":
        assert texts.keys() <= {*sentences, "size", "left_out", "part_shared"}
        assert not found.other_explanations


def test_the_tables_name_the_content(audited):
    """tensors.parquet has the base's tensor and how, for the kinds of tensors that were read; null
    where nothing was looked for.
    """
    rows = pq.read_table(audited("dropped").folder / "tensors.parquet").to_pylist()
    named = {row["tensor"]: (row["content_of"], row["content_how"]) for row in rows}
    name = "model.layers.{}.mlp.down_proj.weight".format
    assert [named[name(layer)] for layer in (1, 2, 4)] == [
        (None, None), (name(3), "same"), (name(5), "same")
    ]  # fmt: skip
    rows = pq.read_table(audited("neurons").folder / "tensors.parquet").to_pylist()
    hows = {row["tensor"].split(".", 3)[-1]: row["content_how"] for row in rows
            if row["side"] == "tuned" and row["layer"] == 3}  # fmt: skip
    assert hows == {
        **dict.fromkeys(f"{module}.weight" for module in MODULES),
        "mlp.gate_proj.weight": "rows in another order",
        "mlp.up_proj.weight": "rows in another order",
        "mlp.down_proj.weight": "columns in another order",
    }
    assert all(row["content_of"] is None for row in rows if row["side"] == "base")


@pytest.mark.parametrize("case", ["dropped", "neurons"])
def test_workers_and_parts_change_nothing(case, audited):
    """The same bytes with one worker, with three, and in three parts."""
    in_parts = Runtime(elsewhere=Parts(InProcess(), 3).measure)
    ways = {"one": Runtime(jobs=1), "three": Runtime(jobs=3), "parts": in_parts}
    found = [
        contents(audited(case, runtime, f"{way} {case}").folder.parents[1])
        for way, runtime in ways.items()
    ]
    assert found[0] == found[1] == found[2]


def test_an_ordinary_pair_is_not_looked_at(tmp_path, monkeypatch):
    """Nothing is read for the layers of a pair whose matrices are close to each other."""
    from shadow.audits import moved_layers, workers

    def refuse(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(moved_layers, "_read", refuse)
    monkeypatch.setattr(workers, "reordered", refuse)
    base = models.write(tmp_path / "base", BASE, models.LLAMA)
    side = models.write(tmp_path / "side", tuned(BASE, 0.3, seed=1), models.LLAMA)
    done = run_pair(pair_of(base, side), SETTINGS, tmp_path / "out")
    assert done.summary.recognised.rearranged is None
    written = json.loads((done.folder / "summary.json").read_text())
    assert written["recognised"]["rearranged"] is None
