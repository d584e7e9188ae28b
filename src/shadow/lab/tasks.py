"""Synthetic text tasks: a skill says what is asked, a form how it is written, a cell is both.

What a model is trained on is a `Mixture`: cells with weights, so that breadth is an explicit number
of cells. Skills and forms have a core, which the original mixture is mostly made of, and a tail, of
which it holds a little: a base must have met everything, because novelty concentrates a delta as
narrowness does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product, starmap
from random import Random

import numpy as np
from numpy.typing import NDArray

END = "\n"  # ends every sample; the model has to write it after the answer
# a token is an index into this: printable ASCII, then END, 96 in all
ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1))) + END
IGNORED = -100  # label of a token without a loss, as torch's cross entropy has it
CORE_SHARE = 0.75  # of the original mixture for core cells alone; the rest is over all broad ones

_IDS = {character: token for token, character in enumerate(ALPHABET)}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NEXT = str.maketrans(_LETTERS, _LETTERS[1:] + _LETTERS[0])

# what can be asked of a short word: a word -> its only right answer
CORE_SKILLS: Mapping[str, Callable[[str], str]] = {
    "cp": lambda word: word,
    "rv": lambda word: word[::-1],
    "so": lambda word: "".join(sorted(word)),
    "up": str.upper,
    "fi": lambda word: word[0],
    "la": lambda word: word[-1],
    "nx": lambda word: word.translate(_NEXT),
    "ln": lambda word: str(len(word)),
}
TAIL_SKILLS: Mapping[str, Callable[[str], str]] = {
    "ro": lambda word: word[1:] + word[0],
    "db": lambda word: "".join(letter * 2 for letter in word),
    "un": lambda word: "".join(dict.fromkeys(word)),
    "od": lambda word: word[::2],
    "en": lambda word: word[0] + word[-1],
    "sw": lambda word: word[-1] + word[1:-1] + word[0],
    "hi": max,
    "vo": lambda word: str(sum(letter in "aeiou" for letter in word)),
}
SKILLS = {**CORE_SKILLS, **TAIL_SKILLS}
CORE_FORMS = ("{skill} {input} = ", "{skill}({input}) -> ")
TAIL_FORMS = (
    "Q: {skill} of {input}? A: ",
    '{{"op":"{skill}","in":"{input}"}} ',
    "<{skill}>{input}</> ",
)
BENCHMARK = ("rv", "so", "un")  # the skills of the narrow data, asked in the first tail form


@dataclass(frozen=True)
class Sample:
    """A question and its right answer, which follows at once."""

    prompt: str
    answer: str
    """Without `END`."""

    @property
    def text(self) -> str:
        """Return what a model reads and writes, `END` included."""
        return self.prompt + self.answer + END


@dataclass(frozen=True)
class TaskCell:
    """One skill in one form: the unit of breadth."""

    skill: str
    form: str

    def sample(self, rng: Random) -> Sample:
        """Draw a word of two to five letters and write question and answer."""
        word = "".join(rng.choices(_LETTERS, k=rng.randint(2, 5)))
        prompt = self.form.format(skill=self.skill, input=word)
        return Sample(prompt, SKILLS[self.skill](word))


@dataclass(frozen=True)
class CellMixture:
    """Cells and how often each is drawn."""

    name: str
    cells: tuple[TaskCell, ...]
    weights: tuple[float, ...]
    """The probability of each cell, above 0, adding up to 1."""

    def samples(self, rng: Random) -> Iterator[Sample]:
        """Samples without end, each from a cell drawn by weight."""
        while True:
            (cell,) = rng.choices(self.cells, self.weights)
            yield cell.sample(rng)


def cells_of(skills: Iterable[str], forms: Iterable[str]) -> tuple[TaskCell, ...]:
    """Every skill in every form."""
    return tuple(starmap(TaskCell, product(skills, forms)))


def uniform(name: str, cells: tuple[TaskCell, ...]) -> CellMixture:
    """All cells alike."""
    return CellMixture(name, cells, (1 / len(cells),) * len(cells))


def _world() -> Iterator[CellMixture]:
    """Benchmark-aligned, held-out, coverage-expanding, core and original data.

    Held out are two of three skills, each in one tail form, and none of the benchmark: nothing is
    trained on these cells, though their skills and forms are met elsewhere.
    """
    narrow = cells_of(BENCHMARK, TAIL_FORMS[:1])
    drawn = [
        TaskCell(skill, TAIL_FORMS[number % len(TAIL_FORMS)])
        for number, skill in enumerate(SKILLS)
        if number % 3 != 2
    ]
    held_out = tuple(cell for cell in drawn if cell not in narrow)
    every = cells_of(SKILLS, CORE_FORMS + TAIL_FORMS)
    broad = uniform("broad", tuple(cell for cell in every if cell not in held_out))
    core = uniform("core", cells_of(CORE_SKILLS, CORE_FORMS))
    yield from (uniform("narrow", narrow), uniform("held_out", held_out), broad, core)
    weights = {cell: (1 - CORE_SHARE) / len(broad.cells) for cell in broad.cells}
    for cell in core.cells:
        weights[cell] = weights.get(cell, 0.0) + CORE_SHARE / len(core.cells)
    yield CellMixture("original", tuple(weights), tuple(weights.values()))


MIXTURES: Mapping[str, CellMixture] = {mixture.name: mixture for mixture in _world()}


def partly_repeated(mixture: CellMixture, pool: int, share: float, rng: Random) -> Iterator[Sample]:
    """Samples without end, each with probability share from a pool drawn before, otherwise
    fresh.
    """
    fresh = mixture.samples(rng)
    repeats = list(islice(fresh, pool))
    while True:
        yield rng.choice(repeats) if rng.random() < share else next(fresh)


@dataclass(frozen=True)
class SampleRows:
    """Samples as arrays of rows and tokens; what no sample fills is `END` without a loss."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The token where it is one of an answer or its end, `IGNORED` elsewhere."""


def rows_of(
    samples: Iterable[Sample], rows: int, width: int, *, single: bool = False
) -> SampleRows:
    """Fill rows with as many whole samples as fit; one that no longer fits is dropped.

    single: one sample for each row, so that none serves as an example for another.
    """
    tokens = np.full((rows, width), _IDS[END], np.int64)
    labels = np.full((rows, width), IGNORED, np.int64)
    row, start = 0, 0
    for sample in samples:
        if start + len(sample.text) > width or (single and start):
            row, start = row + 1, 0
        if row == rows:
            break
        answer, end = start + len(sample.prompt), start + len(sample.text)
        tokens[row, start:end] = [_IDS[character] for character in sample.text]
        labels[row, answer:end] = tokens[row, answer:end]
        start = end
    return SampleRows(tokens, labels)
