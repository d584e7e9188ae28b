"""The lab's tasks have the answers, the breadth and the arrays that they claim, and the demo trains."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from shadow.lab import demo, tasks
from shadow.lab.tasks import BROAD, FORMATS, HELD_OUT, NARROW, ORIGINAL, SKILLS, Cell, Format, Mixture, Sample

MIXTURES = (ORIGINAL, NARROW, BROAD, HELD_OUT)


def by_counting(symbols: str) -> str:
    return "".join(symbol * symbols.count(symbol) for symbol in map(chr, range(128)) if symbol in symbols)


def two(numbers: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", numbers)]


# The same skills, computed by another route than the one in tasks.py.
ORACLES: dict[str, Callable[[str], str]] = {
    "cp": lambda x: "".join(x[i] for i in range(len(x))),
    "rv": lambda x: "".join(reversed(x)),
    "so": by_counting,
    "up": lambda x: "".join(chr(ord(letter) - 32) for letter in x),
    "fi": lambda x: next(iter(x)),
    "la": lambda x: next(reversed(x)),
    "nx": lambda x: "".join(chr((ord(letter) - 97 + 1) % 26 + 97) for letter in x),
    "ln": lambda x: str(sum(1 for _ in x)),
    "ma": lambda x: str(sorted(two(x))[1]),
    "mi": lambda x: str(sorted(two(x))[0]),
    "ad": lambda x: str(two(x)[0] + two(x)[1]),
    "ds": by_counting,
    "ro": lambda x: (x * 2)[1 : len(x) + 1],
    "db": lambda x: re.sub("(.)", r"\1\1", x),
    "un": lambda x: "".join(letter for i, letter in enumerate(x) if letter not in x[:i]),
    "od": lambda x: "".join(letter for i, letter in enumerate(x) if i % 2 == 0),
    "en": lambda x: re.sub("^(.).*(.)$", r"\1\2", x),
    "sw": lambda x: re.sub("^(.)(.*)(.)$", r"\3\2\1", x),
    "hi": lambda x: sorted(x)[-1],
    "vo": lambda x: str(len(re.findall("[aeiou]", x))),
    "co": lambda x: "".join(str(9 - int(digit)) for digit in x),
    "bg": lambda x: sorted(x)[-1],
    "su": lambda x: str(max(two(x)) - min(two(x))),
    "or": lambda x: "><="[(two(x)[0] < two(x)[1]) + 2 * (two(x)[0] == two(x)[1])],
}


def read_back(form: Format, prompt: str) -> tuple[str, str] | None:
    """Skill and input of a prompt in this format, found by a pattern made from its template."""
    literal = re.escape(form.template.format(skill="SKILL", input="INPUT"))
    pattern = literal.replace("SKILL", "(?P<skill>[a-z]{2})").replace("INPUT", "(?P<input>[a-z]+|[0-9 ]+)")
    match = re.fullmatch(pattern, prompt)
    return (match["skill"], match["input"]) if match else None


def draw(mixture: Mixture, count: int, seed: int = 0) -> list[Sample]:
    return list(islice(mixture.samples(Random(seed)), count))


def text(tokens: np.ndarray) -> str:
    return "".join(tasks.ALPHABET[token] for token in tokens)


def test_every_skill_has_an_oracle_and_a_name_of_its_own() -> None:
    """24 skills; none is left unverified below."""
    assert sorted(ORACLES) == sorted(skill.name for skill in SKILLS)
    assert len(SKILLS) == 24


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_answers_are_right(skill: tasks.Skill) -> None:
    """On 300 inputs a skill's answer is what another way of computing it gives."""
    rng = Random(1)
    for given in (skill.draw(rng) for _ in range(300)):
        assert skill.solve(given) == ORACLES[skill.name](given), given


def test_only_copying_copies() -> None:
    """No other skill can be answered by repeating the input more than four times in five."""
    for skill in (skill for skill in SKILLS if skill.name != "cp"):
        rng = Random(2)
        inputs = [skill.draw(rng) for _ in range(100)]
        assert sum(skill.solve(given) == given for given in inputs) < 80, skill.name


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_prompt_can_be_read_back_in_one_way(form: Format) -> None:
    """A prompt gives back its skill and its input, and no other format could have written it."""
    rng = Random(3)
    for skill in SKILLS:
        given = skill.draw(rng)
        prompt = form.template.format(skill=skill.name, input=given)
        readings = [read for other in FORMATS if (read := read_back(other, prompt))]
        assert readings == [(skill.name, given)]


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.name)
def test_samples_depend_on_the_seed_alone(mixture: Mixture) -> None:
    """The same seed draws the same samples, another seed others."""
    assert draw(mixture, 50) == draw(mixture, 50)
    assert draw(mixture, 50) != draw(mixture, 50, seed=1)


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.name)
def test_weights_are_shares(mixture: Mixture) -> None:
    """A mixture has different cells and a positive weight for each; the weights add up to 1."""
    assert len(set(mixture.cells)) == len(mixture.cells) == len(mixture.weights)
    assert min(mixture.weights) > 0
    assert sum(mixture.weights) == pytest.approx(1)


def test_broad_and_held_out_cells_are_all_cells() -> None:
    """176 + 16 = 24 x 8: a held-out cell is in no mixture, but its skill and its format are met elsewhere."""
    assert (len(BROAD.cells), len(HELD_OUT.cells)) == (176, 16)
    assert {*BROAD.cells, *HELD_OUT.cells} == {Cell(skill, form) for skill in SKILLS for form in FORMATS}
    assert {cell.skill for cell in BROAD.cells} == set(SKILLS)
    assert {cell.format for cell in BROAD.cells} == set(FORMATS)


def test_the_base_has_met_what_it_is_tuned_on() -> None:
    """Narrow and broad cells are all in the original mixture, so neither of them is new to a base."""
    assert set(NARROW.cells) < set(BROAD.cells) == set(ORIGINAL.cells)
    assert len(NARROW.cells) == 3
    assert len({cell.format for cell in NARROW.cells}) == 1


def test_the_original_mixture_is_mostly_core() -> None:
    """Core cells get 75 % and their part of the rest, 36 of 176 cells: 80 % of the samples."""
    core = {(skill.name, form.name) for skill in tasks.CORE_SKILLS for form in tasks.CORE_FORMATS}
    written = Counter[bool]()
    for sample in draw(ORIGINAL, 5_000):
        (cell,) = [(found[0], form.name) for form in FORMATS if (found := read_back(form, sample.prompt))]
        written[cell in core] += 1
    assert written[True] / 5_000 == pytest.approx(0.75 + 0.25 * 36 / 176, abs=0.03)


def test_a_token_is_a_character() -> None:
    """96 different characters; no sample has any other, nor an end within it."""
    assert len(set(tasks.ALPHABET)) == 96
    for sample in draw(BROAD, 2_000) + draw(HELD_OUT, 500):
        assert sample.answer
        assert set(sample.prompt + sample.answer) < set(tasks.ALPHABET) - {tasks.END}


def test_packed_rows_hold_whole_samples_in_order() -> None:
    """A row is whole samples of the stream and then ends; the loss is on answers and their ends."""
    rows = tasks.packed_rows(BROAD.samples(Random(4)), rows=16, width=128)
    assert rows.tokens.shape == rows.labels.shape == (16, 128)
    assert rows.tokens.dtype == rows.labels.dtype == np.int64
    assert rows.tokens.min() >= 0
    assert rows.tokens.max() < 96
    packed = [line for row in rows.tokens for line in text(row).rstrip(tasks.END).split(tasks.END)]
    stream = draw(BROAD, len(packed), seed=4)
    assert packed == [sample.prompt + sample.answer for sample in stream]
    learned = rows.labels != tasks.IGNORED
    assert (rows.labels[learned] == rows.tokens[learned]).all()
    assert text(rows.labels[learned]) == "".join(sample.answer + tasks.END for sample in stream)


def test_packed_rows_waste_little() -> None:
    """A row is left early only if the next sample does not fit: over 75 % of the tokens are text."""
    for mixture in MIXTURES:
        rows = tasks.packed_rows(mixture.samples(Random(5)), rows=64, width=128)
        characters = sum(len(text(row).rstrip(tasks.END)) + 1 for row in rows.tokens)
        assert characters / rows.tokens.size > 0.75


def test_single_rows_hold_one_sample_each() -> None:
    """Every sample fits into half a training row, and only its answer and its end have labels."""
    samples = draw(BROAD, 2_000) + draw(HELD_OUT, 500)
    rows = tasks.single_rows(samples, demo.WIDTH // 2)
    for sample, tokens, labels in zip(samples, rows.tokens, rows.labels, strict=True):
        assert text(tokens).rstrip(tasks.END) == sample.prompt + sample.answer
        assert text(labels[labels != tasks.IGNORED]) == sample.answer + tasks.END


def test_the_learning_rate_rises_and_falls() -> None:
    """It peaks once, after a twentieth of the steps, and ends at a tenth of the peak."""
    shares = [demo.learning_rate_share(step, 300) for step in range(300)]
    assert shares.index(1.0) == 14
    assert shares[:15] == sorted(shares[:15])
    assert shares[15:] == sorted(shares[15:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=1e-4)
    assert demo.learning_rate_share(0, 1) == 1.0


class Oracle:
    """Stands in for a model: it knows the token that comes next, save at the places that `wrong` picks."""

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.wrong = wrong

    def train(self, mode: bool) -> None:
        assert not mode

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        following = input_ids.roll(-1, dims=1)
        answers = torch.where(self.wrong(input_ids), (following + 1) % 96, following)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(answers, 96).float())


def test_accuracy_counts_whole_answers() -> None:
    """An answer is right when each of its tokens and its end are; the prompt does not matter."""
    end = tasks.ALPHABET.index(tasks.END)
    never = Oracle(lambda tokens: torch.zeros_like(tokens, dtype=torch.bool))
    in_prompt = Oracle(lambda tokens: torch.arange(tokens.shape[1]).expand_as(tokens) < 3)
    at_ends = Oracle(lambda tokens: tokens.roll(-1, dims=1) == end)
    assert demo.accuracy(never, NARROW, seed=0) == 1.0  # type: ignore[arg-type]
    assert demo.accuracy(in_prompt, NARROW, seed=0) == 1.0  # type: ignore[arg-type]
    assert demo.accuracy(at_ends, NARROW, seed=0) == 0.0  # type: ignore[arg-type]


def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """From ln 96 nats, which is to know nothing, the loss falls by a nat within 20 small steps."""
    monkeypatch.setattr(demo, "ROWS", 4)
    recipe = demo.Recipe(steps=20, learning_rate=2e-3, weight_decay=0.0)
    losses = list(demo.train(demo.new_model(0), NARROW, recipe, seed=0))
    assert len(losses) == 20
    assert losses[0] == pytest.approx(np.log(96), abs=0.3)
    assert losses[-1] < losses[0] - 1


def test_a_curve_has_at_most_twenty_points() -> None:
    """Each is a mean over as many steps; few steps are their own curve."""
    assert demo.curve([float(step) for step in range(100)]) == [2.0 + 5 * point for point in range(20)]
    assert demo.curve([3.0, 1.0]) == [3.0, 1.0]


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PROBE_SAMPLES", 8)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def tiny(out: Path) -> Path:
    recipe = demo.Recipe(steps=2, learning_rate=1e-3, weight_decay=0.0)
    demo.make(out, 0, recipe, recipe, Console(quiet=True))
    return out


@pytest.mark.usefixtures("few_samples")
def test_the_demo_writes_three_loadable_checkpoints(tmp_path: Path) -> None:
    """Two files each, bf16, below 5 MB in all; every matrix of a continuation differs from the base's."""
    tiny(tmp_path)
    names = ("base", "narrow", "broad")
    written = {str(path.relative_to(tmp_path)): path.stat().st_size for path in files(tmp_path)}
    checkpoints = {f"{name}/{file}" for name in names for file in ("config.json", "model.safetensors")}
    assert written.keys() == checkpoints | {"training.json"}
    assert sum(written.values()) < 5_000_000
    weights = {}
    for name in names:
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as file:
            weights[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in weights["base"].values()} == {torch.bfloat16}
    assert "lm_head.weight" in weights["base"]
    for name in ("narrow", "broad"):
        for key, tensor in weights[name].items():
            assert tensor.ndim != 2 or not torch.equal(tensor, weights["base"][key]), key
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")
    assert model.config.model_type == "llama"
    training = json.loads((tmp_path / "training.json").read_text())
    assert {name: training["models"][name]["mixture"] for name in names} == {
        "base": "original",
        "narrow": "narrow",
        "broad": "broad",
    }
    assert training["models"]["narrow"]["tokens"] == training["models"]["broad"]["tokens"] == 2 * 16 * 128


@pytest.mark.usefixtures("few_samples")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """On one machine and with one number of threads, all of what is written repeats to the last bit."""
    first, second = tiny(tmp_path / "first"), tiny(tmp_path / "second")
    for path in files(first):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name
