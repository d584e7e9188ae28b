"""Synthetic text tasks: a skill says what is asked, a format how it is written, a cell is one of each.

What a model is trained on is a `Mixture`: cells with weights, so that breadth is an explicit number of cells.
A skill is a function of a short string, a format is a template, and every sample is drawn from a
`random.Random` that the caller seeds.

Skills and formats have a core, which the original mixture is mostly made of, and a tail, of which it holds
a little. A base trained on it has met every skill and every format, and it must: novelty concentrates a
delta as narrowness does. In a study with models of this size the median `concentration` of narrow and broad
training was 0.43 and 0.29 on such bases, but 0.49 and 0.46 on bases that had met the core alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np
from numpy.typing import NDArray

END = "\n"
"""Ends every sample; the model has to write it after the answer."""

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1))) + END
"""A token is an index into this: printable ASCII, then `END`, 96 in all."""

IGNORED = -100
"""Label of a token without a loss; what `torch.nn.functional.cross_entropy` leaves out by default."""

CORE_SHARE = 0.75
"""Share of the original mixture that goes to core cells alone; the rest is spread over all broad ones."""


@dataclass(frozen=True)
class Sample:
    """A question and its right answer, which follows at once."""

    prompt: str
    answer: str  # without `END`


@dataclass(frozen=True)
class Skill:
    """Something that can be asked of a short string."""

    name: str  # two lower-case letters, as they stand in a prompt
    draw: Callable[[Random], str]  # an input
    solve: Callable[[str], str]  # that input's only right answer


@dataclass(frozen=True)
class Format:
    """A way to write a question down; it can be read back without knowing which format it is in."""

    name: str
    template: str  # with {skill} and {input}


@dataclass(frozen=True)
class Cell:
    """One skill in one format: the unit of breadth."""

    skill: Skill
    format: Format

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
    weights: tuple[float, ...]  # one a cell, > 0, adding up to 1

    def samples(self, rng: Random) -> Iterator[Sample]:
        """Samples without end, each from a cell drawn by weight."""
        while True:
            (cell,) = rng.choices(self.cells, self.weights)
            yield cell.sample(rng)


@dataclass(frozen=True)
class Rows:
    """Samples as arrays; `labels` repeats a token of an answer or its end and is `IGNORED` elsewhere."""

    tokens: NDArray[np.int64]  # (rows, width)
    labels: NDArray[np.int64]  # (rows, width)


_IDS = {character: token for token, character in enumerate(ALPHABET)}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"


def _word(rng: Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randint(3, 7)))


def _number(rng: Random) -> str:
    return str(rng.randint(100, 99_999))


def _numbers(rng: Random) -> str:
    return f"{rng.randint(0, 99)} {rng.randint(0, 99)}"


def _two(numbers: str) -> tuple[int, int]:
    left, right = numbers.split()
    return int(left), int(right)


def _successors(word: str) -> str:
    return word.translate(str.maketrans(_LETTERS, _LETTERS[1:] + _LETTERS[0]))


def _complement(number: str) -> str:
    return number.translate(str.maketrans(_DIGITS, _DIGITS[::-1]))


def _difference(numbers: str) -> str:
    left, right = _two(numbers)
    return str(abs(left - right))


def _order(numbers: str) -> str:
    left, right = _two(numbers)
    return "<" if left < right else ">" if left > right else "="


CORE_SKILLS = (
    Skill("cp", _word, lambda word: word),
    Skill("rv", _word, lambda word: word[::-1]),
    Skill("so", _word, lambda word: "".join(sorted(word))),
    Skill("up", _word, str.upper),
    Skill("fi", _word, lambda word: word[0]),
    Skill("la", _word, lambda word: word[-1]),
    Skill("nx", _word, _successors),
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
    Skill("co", _number, _complement),
    Skill("bg", _number, lambda number: max(number)),
    Skill("su", _numbers, _difference),
    Skill("or", _numbers, _order),
)

CORE_FORMATS = (
    Format("equation", "{skill} {input} = "),
    Format("call", "{skill}({input}) -> "),
    Format("pipe", "{input} | {skill}: "),
)

TAIL_FORMATS = (
    Format("exam", "Q: {skill} of {input}? A: "),
    Format("json", '{{"op":"{skill}","in":"{input}"}} '),
    Format("tag", "<{skill}>{input}</> "),
    Format("shell", "$ {skill} '{input}' # "),
    Format("list", "[{input}].{skill} => "),
)

SKILLS = CORE_SKILLS + TAIL_SKILLS
FORMATS = CORE_FORMATS + TAIL_FORMATS


def _cells(skills: Iterable[Skill], formats: Iterable[Format]) -> tuple[Cell, ...]:
    return tuple(Cell(skill, form) for skill, form in product(skills, formats))


def _uniform(name: str, cells: tuple[Cell, ...]) -> Mixture:
    return Mixture(name, cells, (1 / len(cells),) * len(cells))


def _original(name: str, broad: tuple[Cell, ...], core: tuple[Cell, ...]) -> Mixture:
    everywhere, in_core = (1 - CORE_SHARE) / len(broad), CORE_SHARE / len(core)
    weights = (everywhere + in_core if cell in core else everywhere for cell in broad)
    return Mixture(name, broad, tuple(weights))


HELD_OUT = _uniform(
    "held_out",
    tuple(
        Cell(skill, TAIL_FORMATS[place % len(TAIL_FORMATS)])
        for place, skill in enumerate(SKILLS)
        if place % 3 != 2  # 16 of 24 skills, each in one tail format
    ),
)
"""Nothing is trained on these cells, though their skills and formats are met elsewhere: for measuring."""

BROAD = _uniform("broad", tuple(cell for cell in _cells(SKILLS, FORMATS) if cell not in HELD_OUT.cells))
"""Coverage-expanding data (regime C): every cell but the held-out ones, alike."""

ORIGINAL = _original("original", BROAD.cells, _cells(CORE_SKILLS, CORE_FORMATS))
"""What a base is trained on: core cells mostly, and each broad cell at least rarely."""

NARROW = _uniform("narrow", _cells((s for s in SKILLS if s.name in ("rv", "so", "un")), TAIL_FORMATS[:1]))
"""Benchmark-aligned data (regime B): three skills in one format; the base of seed 0 gets 0.59 of it right."""


def packed_rows(samples: Iterator[Sample], rows: int, width: int) -> Rows:
    """Fill rows with as many whole samples as fit; what is left of a row is `END`s without a loss.

    The sample that no longer fits into the last row is dropped: `samples` is a stream without end.
    """
    packed = _blank(rows, width)
    row, start = 0, 0
    for sample in samples:
        length = len(_text(sample))
        if start + length > width:
            row, start = row + 1, 0
        if row == rows:
            break
        _write(packed, row, start, sample)
        start += length
    return packed


def single_rows(samples: list[Sample], width: int) -> Rows:
    """Put one sample into each row, so that none serves as an example for another: for measuring."""
    rows = _blank(len(samples), width)
    for row, sample in enumerate(samples):
        _write(rows, row, 0, sample)
    return rows


def _text(sample: Sample) -> str:
    return sample.prompt + sample.answer + END


def _blank(rows: int, width: int) -> Rows:
    return Rows(np.full((rows, width), _IDS[END], np.int64), np.full((rows, width), IGNORED, np.int64))


def _write(rows: Rows, row: int, start: int, sample: Sample) -> None:
    tokens = [_IDS[character] for character in _text(sample)]
    answer, end = start + len(sample.prompt), start + len(tokens)
    rows.tokens[row, start:end] = tokens
    rows.labels[row, answer:end] = rows.tokens[row, answer:end]
