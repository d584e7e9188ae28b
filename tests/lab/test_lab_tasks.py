"""The lab's tasks have the answers, the breadth and the arrays that they claim."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from random import Random

import numpy as np
import pytest

from shadow.lab import tasks
from shadow.lab.tasks import LARGE, SMALL, UNSEEN_FORMATS, Cell, Mixture, Sample, TaskFormat, World

SKILLS, FORMATS = LARGE.skills, LARGE.formats
WORLDS = {"large": LARGE, "small": SMALL}
NAMES = (
    "original", "core", "narrow", "broad", "held_out", "unseen", "familiar", "new_narrow",
    "new_broad", "new_formats",
)  # fmt: skip
MIXTURES = [
    pytest.param(getattr(world, name), id=f"{which}-{name}")
    for which, world in WORLDS.items()
    for name in NAMES
]
BROAD, HELD_OUT, NARROW, ORIGINAL = LARGE.broad, LARGE.held_out, LARGE.narrow, LARGE.original


def by_counting(symbols: str) -> str:
    return "".join(
        symbol * symbols.count(symbol) for symbol in map(chr, range(128)) if symbol in symbols
    )


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


def read_back(form: TaskFormat, prompt: str) -> tuple[str, str] | None:
    """Skill and input of a prompt in this format, found by a pattern made from its template."""
    literal = re.escape(form.template.format(skill="SKILL", input="INPUT"))
    pattern = literal.replace("SKILL", "(?P<skill>[a-z]{2})").replace(
        "INPUT", "(?P<input>[a-z]+|[0-9 ]+)"
    )
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


@pytest.mark.parametrize("form", FORMATS + UNSEEN_FORMATS, ids=lambda form: form.name)
def test_a_prompt_can_be_read_back_in_one_way(form: TaskFormat) -> None:
    """A prompt gives back its skill and its input, and no other format could have written it."""
    rng = Random(3)
    for skill in SKILLS:
        given = skill.draw(rng)
        prompt = form.template.format(skill=skill.name, input=given)
        readings = [
            read for other in FORMATS + UNSEEN_FORMATS if (read := read_back(other, prompt))
        ]
        assert readings == [(skill.name, given)]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_samples_depend_on_the_seed_alone(mixture: Mixture) -> None:
    """The same seed draws the same samples, another seed others."""
    assert draw(mixture, 50) == draw(mixture, 50)
    assert draw(mixture, 50) != draw(mixture, 50, seed=1)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_weights_are_shares(mixture: Mixture) -> None:
    """A mixture has different cells and a positive weight for each; the weights add up to 1."""
    assert len(set(mixture.cells)) == len(mixture.cells) == len(mixture.weights)
    assert min(mixture.weights) > 0
    assert sum(mixture.weights) == pytest.approx(1)


@pytest.mark.parametrize(("world", "broad", "held_out"), [(LARGE, 176, 16), (SMALL, 69, 11)])
def test_broad_and_held_out_cells_are_all_cells(world: World, broad: int, held_out: int) -> None:
    """A held-out cell is in no other mixture, but its skill and its format are met elsewhere."""
    assert (len(world.broad.cells), len(world.held_out.cells)) == (broad, held_out)
    assert {*world.broad.cells, *world.held_out.cells} == {
        Cell(s, form) for s in world.skills for form in world.formats
    }
    assert {cell.skill for cell in world.broad.cells} == set(world.skills)
    assert {cell.format for cell in world.broad.cells} == set(world.formats)
    for name in NAMES:
        if name not in ("held_out", "unseen"):
            cells = set(getattr(world, name).cells)
            assert not cells & {*world.held_out.cells, *world.unseen.cells}, name
    assert not {cell.format for cell in world.unseen.cells} & set(world.formats)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_warm_base_has_met_what_it_is_tuned_on(world: World) -> None:
    """Narrow and broad cells are all in the original mixture, so neither is new to a base."""
    assert set(world.narrow.cells) < set(world.broad.cells) == set(world.original.cells)
    for narrow in (world.narrow, world.familiar, world.new_narrow):
        assert len(narrow.cells) == 3
        assert len({cell.format for cell in narrow.cells}) == 1


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_cold_base_has_met_nothing_of_the_novel_data(world: World) -> None:
    """No tail skill, no tail format: new_narrow and new_broad are as new to it as each other."""
    skills, forms = (
        {getattr(cell, part) for cell in world.core.cells} for part in ("skill", "format")
    )
    for mixture in (world.new_narrow, world.new_broad):
        assert not {cell.skill for cell in mixture.cells} & skills
        assert not {cell.format for cell in mixture.cells} & forms


def test_blending_adds_weights() -> None:
    """A cell of both has share w1 + (1 - share) w2, by hand; the order of the arguments is that of
    the share.
    """
    first = Mixture("first", BROAD.cells[:2], (0.5, 0.5))
    second = Mixture("second", BROAD.cells[1:3], (0.1, 0.9))
    found = tasks.blended("both", first, 0.6, second)
    weights = dict(zip(found.cells, found.weights, strict=True))
    assert [weights[cell] for cell in BROAD.cells[:3]] == pytest.approx([0.3, 0.3 + 0.04, 0.36])


@pytest.mark.parametrize("power", [0, 1, 2.5])
def test_frequency_falls_by_the_power_of_the_place(power: float) -> None:
    """Every cell once, the n-th n**-power as often; effective cells by how often draws agree."""
    found = tasks.falling(BROAD, power, Random(3))
    assert found.cells != BROAD.cells
    assert sorted(map(repr, found.cells)) == sorted(map(repr, BROAD.cells))
    assert sum(found.weights) == pytest.approx(1)
    for place, weight in enumerate(found.weights, 1):
        assert found.weights[0] / weight == pytest.approx(place**power)
    drawn = np.random.default_rng(4).choice(len(found.cells), size=(200_000, 2), p=found.weights)
    agree = float((drawn[:, 0] == drawn[:, 1]).mean())
    assert found.effective_cells == pytest.approx(1 / agree, rel=0.1)


def test_a_pool_is_drawn_again_and_again() -> None:
    """Of 10,000 samples with share 0.2 and a pool of 200, about 2,000 come from the pool, each
    about ten times.
    """
    stream = tasks.partly_repeated(ORIGINAL, 200, 0.2, Random(3))
    drawn = list(islice(stream, 10_000))
    pool = list(islice(ORIGINAL.samples(Random(3)), 200))
    counts = Counter((sample.prompt, sample.answer) for sample in drawn)
    fresh = Counter((s.prompt, s.answer) for s in islice(ORIGINAL.samples(Random(4)), 10_000))
    repeated = [
        counts[sample.prompt, sample.answer] - fresh[sample.prompt, sample.answer]
        for sample in pool
    ]
    assert sum(repeated) == pytest.approx(2_000, rel=0.15)
    assert np.median(repeated) == pytest.approx(10, abs=2)


def test_all_of_it_repeated_is_the_pool() -> None:
    """With share 1 nothing else is ever seen."""
    pool = list(islice(BROAD.samples(Random(6)), 20))
    assert set(islice(tasks.partly_repeated(BROAD, 20, 1.0, Random(6)), 500)) == set(pool)


def test_the_original_mixture_is_mostly_core() -> None:
    """Core cells get 75 % and their part of the rest, 36 of 176 cells: 80 % of the samples."""
    core = {(skill.name, form.name) for skill in tasks.CORE_SKILLS for form in tasks.CORE_FORMATS}
    written = Counter[bool]()
    for sample in draw(ORIGINAL, 5_000):
        (cell,) = [
            (found[0], form.name) for form in FORMATS if (found := read_back(form, sample.prompt))
        ]
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
    """A row ends early only if the next sample does not fit: over 75 % of the tokens are text."""
    for mixture in (getattr(world, name) for world in WORLDS.values() for name in NAMES):
        rows = tasks.packed_rows(mixture.samples(Random(5)), rows=64, width=128)
        characters = sum(len(text(row).rstrip(tasks.END)) + 1 for row in rows.tokens)
        assert characters / rows.tokens.size > 0.75


def test_single_rows_hold_one_sample_each() -> None:
    """Every sample fits into half a training row, and only its answer and its end have labels."""
    samples = draw(BROAD, 2_000) + draw(HELD_OUT, 500)
    rows = tasks.single_rows(samples, 64)
    for sample, tokens, labels in zip(samples, rows.tokens, rows.labels, strict=True):
        assert text(tokens).rstrip(tasks.END) == sample.prompt + sample.answer
        assert text(labels[labels != tasks.IGNORED]) == sample.answer + tasks.END
