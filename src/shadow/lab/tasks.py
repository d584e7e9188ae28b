"""Synthetic text tasks: a skill says what is asked, a format how it is written, a cell is one of
each.

What a model is trained on is a `Mixture`: cells with weights, so that breadth is an explicit number
of cells. A skill is a function of a short string, a format is a template, and every sample is drawn
from a `random.Random` that the caller seeds.

Skills and formats have a core, which the original mixture is mostly made of, and a tail, of which
it holds a little. A base trained on it has met every skill and every format, and it must: novelty
concentrates a delta as narrowness does. In a study with models of this size the median
`concentration` of narrow and broad training was 0.43 and 0.29 on such bases, but 0.49 and 0.46 on
bases that had met the core alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, product
from random import Random

import numpy as np
from numpy.typing import NDArray

END = "\n"
"""Ends every sample; the model has to write it after the answer."""

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1))) + END
"""A token is an index into this: printable ASCII, then `END`, 96 in all."""

IGNORED = -100
"""Label of a token without a loss, as `torch.nn.functional.cross_entropy` has it."""

CORE_SHARE = 0.75
"""Share of the original mixture for core cells alone; the rest is spread over all broad ones."""


@dataclass(frozen=True)
class Sample:
    """A question and its right answer, which follows at once."""

    prompt: str
    answer: str
    """Without `END`."""

    @property
    def text(self) -> str:
        """What a model reads and writes, `END` included."""
        return self.prompt + self.answer + END


@dataclass(frozen=True)
class Skill:
    """Something that can be asked of a short string."""

    name: str
    """Two lower-case letters, as they stand in a prompt."""
    draw: Callable[[Random], str]
    """Draws an input."""
    solve: Callable[[str], str]
    """An input -> its only right answer."""


@dataclass(frozen=True)
class TaskFormat:
    """A way to write a question down; it can be read back without knowing which format it is in."""

    name: str
    template: str
    """Text with {skill} and {input}."""


@dataclass(frozen=True)
class Cell:
    """One skill in one format: the unit of breadth."""

    skill: Skill
    format: TaskFormat

    def sample(self, rng: Random) -> Sample:
        """Draw an input and write question and answer."""
        given = self.skill.draw(rng)
        prompt = self.format.template.format(skill=self.skill.name, input=given)
        return Sample(prompt, self.skill.solve(given))


@dataclass(frozen=True)
class Mixture:
    """Cells and how often each is drawn."""

    name: str
    cells: tuple[Cell, ...]
    """What is drawn from, 1 or more."""
    weights: tuple[float, ...]
    """The probability of each cell, above 0, adding up to 1."""

    def samples(self, rng: Random) -> Iterator[Sample]:
        """Samples without end, each from a cell drawn by weight."""
        while True:
            (cell,) = rng.choices(self.cells, self.weights)
            yield cell.sample(rng)

    @property
    def effective_cells(self) -> float:
        """How many cells, all alike frequent, have the same chance to come twice in a row."""
        return 1 / sum(weight**2 for weight in self.weights)


@dataclass(frozen=True)
class Rows:
    """Samples as arrays of rows and tokens."""

    tokens: NDArray[np.int64]
    """Places in ALPHABET."""
    labels: NDArray[np.int64]
    """The token where it is one of an answer or its end, `IGNORED` elsewhere."""


_IDS = {character: token for token, character in enumerate(ALPHABET)}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"


def _drawn(symbols: str, least: int, most: int) -> Callable[[Random], str]:
    """Draws a string of so many symbols."""
    return lambda rng: "".join(rng.choices(symbols, k=rng.randint(least, most)))


_word, _short_word = _drawn(_LETTERS, 3, 7), _drawn(_LETTERS, 2, 5)


def _number(rng: Random) -> str:
    return str(rng.randint(100, 99_999))


def _numbers(rng: Random) -> str:
    return f"{rng.randint(0, 99)} {rng.randint(0, 99)}"


def _two(numbers: str) -> tuple[int, int]:
    left, right = numbers.split()
    return int(left), int(right)


def _replaced(symbols: str, others: str) -> Callable[[str], str]:
    return lambda text: text.translate(str.maketrans(symbols, others))


def _order(numbers: str) -> str:
    left, right = _two(numbers)
    return "=" if left == right else "<>"[left > right]


CORE_SKILLS = (
    Skill("cp", _word, lambda word: word),
    Skill("rv", _word, lambda word: word[::-1]),
    Skill("so", _word, lambda word: "".join(sorted(word))),
    Skill("up", _word, str.upper),
    Skill("fi", _word, lambda word: word[0]),
    Skill("la", _word, lambda word: word[-1]),
    Skill("nx", _word, _replaced(_LETTERS, _LETTERS[1:] + _LETTERS[0])),
    Skill("ln", _word, lambda word: str(len(word))),
    Skill("ma", _numbers, lambda numbers: str(max(_two(numbers)))),
    Skill("mi", _numbers, lambda numbers: str(min(_two(numbers)))),
    Skill("ad", _numbers, lambda numbers: str(sum(_two(numbers)))),
    Skill("ds", _number, lambda number: "".join(sorted(number))),
)

TAIL_SKILLS = (
    Skill("ro", _word, lambda word: word[1:] + word[0]),
    Skill("db", _word, lambda word: "".join(letter * 2 for letter in word)),
    Skill("un", _word, lambda word: "".join(dict.fromkeys(word))),
    Skill("od", _word, lambda word: word[::2]),
    Skill("en", _word, lambda word: word[0] + word[-1]),
    Skill("sw", _word, lambda word: word[-1] + word[1:-1] + word[0]),
    Skill("hi", _word, lambda word: max(word)),
    Skill("vo", _word, lambda word: str(sum(letter in "aeiou" for letter in word))),
    Skill("co", _number, _replaced(_DIGITS, _DIGITS[::-1])),
    Skill("bg", _number, lambda number: max(number)),
    Skill("su", _numbers, lambda numbers: str(max(_two(numbers)) - min(_two(numbers)))),
    Skill("or", _numbers, _order),
)

CORE_FORMATS = (
    TaskFormat("equation", "{skill} {input} = "),
    TaskFormat("call", "{skill}({input}) -> "),
    TaskFormat("pipe", "{input} | {skill}: "),
)

TAIL_FORMATS = (
    TaskFormat("exam", "Q: {skill} of {input}? A: "),
    TaskFormat("json", '{{"op":"{skill}","in":"{input}"}} '),
    TaskFormat("tag", "<{skill}>{input}</> "),
    TaskFormat("shell", "$ {skill} '{input}' # "),
    TaskFormat("list", "[{input}].{skill} => "),
)

UNSEEN_FORMATS = (
    TaskFormat("lisp", "({skill} {input}) ; "),
    TaskFormat("letter", "Dear {skill}, {input} ... "),
)
"""In no mixture of any world: for measuring."""


@dataclass(frozen=True)
class World:
    """What there is to be learned."""

    core_skills: tuple[Skill, ...]
    """What most of a base's mixture asks."""
    tail_skills: tuple[Skill, ...]
    """What a base meets rarely, or never if it is cold; the same of tail_formats."""
    core_formats: tuple[TaskFormat, ...]
    """How most of a base's mixture is written."""
    tail_formats: tuple[TaskFormat, ...]
    benchmark: tuple[str, ...] = ("rv", "so", "un")
    """The names of the skills of the narrow data, asked in the first format of the tail."""

    @property
    def skills(self) -> tuple[Skill, ...]:
        """All skills, the core first."""
        return self.core_skills + self.tail_skills

    @property
    def formats(self) -> tuple[TaskFormat, ...]:
        """All formats, the core first."""
        return self.core_formats + self.tail_formats

    @cached_property
    def held_out(self) -> Mixture:
        """Cells that nothing is trained on, though their skills and formats are met elsewhere: for
        measuring.

        Two of three skills, each in one tail format, and none of the benchmark.
        """
        cells = (
            Cell(skill, self.tail_formats[number % len(self.tail_formats)])
            for number, skill in enumerate(self.skills)
            if number % 3 != 2
        )
        return _uniform("held_out", tuple(cell for cell in cells if cell not in self.narrow.cells))

    @cached_property
    def unseen(self) -> Mixture:
        """Every skill in formats that are in no other mixture: for measuring."""
        return _uniform("unseen", _cells(self.skills, UNSEEN_FORMATS))

    @cached_property
    def core(self) -> Mixture:
        """Core skills in core formats: all that a cold base has met."""
        return _uniform("core", _cells(self.core_skills, self.core_formats))

    @cached_property
    def broad(self) -> Mixture:
        """Coverage-expanding data (regime C): every cell but the held-out ones, alike."""
        return self._trained("broad", self.skills, self.formats)

    @cached_property
    def original(self) -> Mixture:
        """What a warm base is trained on: core cells mostly, each broad cell at least rarely."""
        return blended("original", self.core, share=CORE_SHARE, second=self.broad)

    @cached_property
    def narrow(self) -> Mixture:
        """Benchmark-aligned data (regime B): few skills in one format of the tail."""
        named = {skill.name: skill for skill in self.skills}
        skills = [named[name] for name in self.benchmark]
        return _uniform("narrow", _cells(skills, self.tail_formats[:1]))

    @cached_property
    def familiar(self) -> Mixture:
        """As many core skills as the benchmark has, in the first core format: nothing new."""
        return _uniform(
            "familiar", _cells(self.core_skills[: len(self.benchmark)], self.core_formats[:1])
        )

    @cached_property
    def new_narrow(self) -> Mixture:
        """As many tail skills as the benchmark has, in its format: narrow, new to a cold base."""
        return self._trained(
            "new_narrow", self.tail_skills, formats=self.tail_formats[:1], most=len(self.benchmark)
        )

    @cached_property
    def new_broad(self) -> Mixture:
        """Every tail skill in every tail format: broad, as new to a cold base as `new_narrow`."""
        return self._trained("new_broad", self.tail_skills, self.tail_formats)

    @cached_property
    def new_formats(self) -> Mixture:
        """Core skills in tail formats: only the formats are rare, or new to a cold base."""
        return self._trained("new_formats", self.core_skills, self.tail_formats)

    def _trained(
        self,
        name: str,
        skills: Iterable[Skill],
        formats: Iterable[TaskFormat],
        most: int | None = None,
    ) -> Mixture:
        cells = tuple(cell for cell in _cells(skills, formats) if cell not in self.held_out.cells)
        return _uniform(name, cells[:most])


LARGE = World(
    core_skills=CORE_SKILLS,
    tail_skills=TAIL_SKILLS,
    core_formats=CORE_FORMATS,
    tail_formats=TAIL_FORMATS,
)
"""24 skills in 8 formats, 192 cells; for a decoder of 0.8 M parameters."""

SMALL = World(
    core_skills=tuple(replace(skill, draw=_short_word) for skill in CORE_SKILLS[:8]),
    tail_skills=tuple(replace(skill, draw=_short_word) for skill in TAIL_SKILLS[:8]),
    core_formats=CORE_FORMATS[:2],
    tail_formats=TAIL_FORMATS[:3],
)
"""16 skills of words of two to five letters in 5 formats, 80 cells: a decoder of 0.2 M parameters
learns them in 1.8 M tokens.
"""


def _cells(skills: Iterable[Skill], formats: Iterable[TaskFormat]) -> tuple[Cell, ...]:
    return tuple(Cell(skill, form) for skill, form in product(skills, formats))


def _uniform(name: str, cells: tuple[Cell, ...]) -> Mixture:
    return Mixture(name, cells, (1 / len(cells),) * len(cells))


def blended(name: str, first: Mixture, share: float, second: Mixture) -> Mixture:
    """Samples of the first with probability share, in [0, 1], otherwise of the second.

    Cells of both get both weights.
    """
    weights = {
        cell: (1 - share) * weight
        for cell, weight in zip(second.cells, second.weights, strict=True)
    }
    for cell, weight in zip(first.cells, first.weights, strict=True):
        weights[cell] = weights.get(cell, 0.0) + share * weight
    return Mixture(name, tuple(weights), tuple(weights.values()))


def falling(mixture: Mixture, power: float, rng: Random) -> Mixture:
    """The cells of a mixture in a drawn order, the n-th n**-power as often as the first."""
    weights = [place**-power for place in range(1, len(mixture.cells) + 1)]
    return Mixture(
        name=f"{mixture.name}_{power:g}",
        cells=tuple(rng.sample(mixture.cells, len(mixture.cells))),
        weights=tuple(weight / sum(weights) for weight in weights),
    )


def partly_repeated(mixture: Mixture, pool: int, share: float, rng: Random) -> Iterator[Sample]:
    """Samples without end, each with probability share from a pool drawn before, else fresh."""
    fresh = mixture.samples(rng)
    repeats = list(islice(fresh, pool))
    while True:
        if rng.random() < share:
            yield rng.choice(repeats)
        else:
            yield next(fresh)


def packed_rows(samples: Iterator[Sample], rows: int, width: int) -> Rows:
    """Fill rows with as many whole samples as fit; what is left of a row is `END`s without a loss.

    The sample that no longer fits into the last row is dropped: `samples` is a stream without end.
    """
    packed = _blank(rows, width)
    row, start = 0, 0
    for sample in samples:
        if start + len(sample.text) > width:
            row, start = row + 1, 0
        if row == rows:
            break
        _write(packed, row, start=start, sample=sample)
        start += len(sample.text)
    return packed


def single_rows(samples: list[Sample], width: int) -> Rows:
    """One sample for each row, so that none serves as an example for another: for measuring."""
    rows = _blank(len(samples), width)
    for row, sample in enumerate(samples):
        _write(rows, row, start=0, sample=sample)
    return rows


def _blank(rows: int, width: int) -> Rows:
    shape = (rows, width)
    return Rows(np.full(shape, _IDS[END], np.int64), np.full(shape, IGNORED, np.int64))


def _write(rows: Rows, row: int, start: int, sample: Sample) -> None:
    answer, end = start + len(sample.prompt), start + len(sample.text)
    rows.tokens[row, start:end] = [_IDS[character] for character in sample.text]
    rows.labels[row, answer:end] = rows.tokens[row, answer:end]
