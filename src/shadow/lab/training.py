"""Synthetic text tasks, and tiny decoders that are trained on a stream of them and probed.

A skill is what is asked, a form how it is written, a cell is both. A model is trained on a mixture:
cells with weights, so that breadth is an explicit number of cells. Skills and forms have a core,
which makes up most of the original mixture, and a tail, of which it contains a little: a base must
have met everything, because novelty concentrates a delta like narrowness does.

One thread: the last bits of a sum depend on the number of threads, and two processes of one thread
each train more than one process of two at these sizes (30 against 26 thousand tokens a second at a
width of 128).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product, starmap
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers  # it imports its classes when they are used: reading results does without them
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

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
    """A question followed by its correct answer."""

    prompt: str
    answer: str
    """Without `END`."""

    @property
    def text(self) -> str:
        """The text that a model reads and writes, `END` included."""
        return self.prompt + self.answer + END


@dataclass(frozen=True)
class TaskCell:
    """One skill in one form: the unit of breadth."""

    skill: str
    form: str

    def sample(self, rng: Random) -> Sample:
        """Draw a word of two to five letters and write question and answer."""
        length = rng.randint(2, 5)
        word = "".join(rng.choices(_LETTERS, k=length))
        prompt = self.form.format(skill=self.skill, input=word)
        answer = SKILLS[self.skill](word)
        return Sample(prompt, answer)


@dataclass(frozen=True)
class CellMixture:
    """Cells and the frequency of each."""

    name: str
    cells: tuple[TaskCell, ...]
    weights: tuple[float, ...]
    """The probability of each cell, above 0, adding up to 1."""

    def samples(self, rng: Random) -> Iterator[Sample]:
        """Yield samples, each from a cell drawn by weight."""
        while True:
            (cell,) = rng.choices(self.cells, self.weights)
            yield cell.sample(rng)


def cells_of(skills: Iterable[str], forms: Iterable[str]) -> tuple[TaskCell, ...]:
    """Every skill in every form."""
    pairs = product(skills, forms)
    return tuple(starmap(TaskCell, pairs))


def uniform(name: str, cells: tuple[TaskCell, ...]) -> CellMixture:
    """Make a mixture of equally frequent cells."""
    share = 1 / len(cells)
    return CellMixture(name, cells, (share,) * len(cells))


def _world() -> Iterator[CellMixture]:
    """Benchmark-aligned, held-out, coverage-expanding, core and original data.

    Held out are two of three skills, each in one tail form, and none of the benchmark: nothing is
    trained on these cells, though their skills and forms occur elsewhere.
    """
    narrow = cells_of(BENCHMARK, TAIL_FORMS[:1])
    drawn: list[TaskCell] = []
    for number, skill in enumerate(SKILLS):
        if number % 3 != 2:
            form = TAIL_FORMS[number % len(TAIL_FORMS)]
            drawn.append(TaskCell(skill, form))
    held_out = tuple(cell for cell in drawn if cell not in narrow)
    every = cells_of(SKILLS, CORE_FORMS + TAIL_FORMS)
    others = tuple(cell for cell in every if cell not in held_out)
    of_core = cells_of(CORE_SKILLS, CORE_FORMS)
    broad = uniform("broad", others)
    core = uniform("core", of_core)
    yield uniform("narrow", narrow)
    yield uniform("held_out", held_out)
    yield broad
    yield core
    tail_share = (1 - CORE_SHARE) / len(broad.cells)
    weights = dict.fromkeys(broad.cells, tail_share)
    core_share = CORE_SHARE / len(core.cells)
    for cell in core.cells:
        weights[cell] = weights.get(cell, 0.0) + core_share
    cells = tuple(weights)
    frequencies = tuple(weights.values())
    yield CellMixture("original", cells, frequencies)


MIXTURES: Mapping[str, CellMixture] = {mixture.name: mixture for mixture in _world()}


def partly_repeated(mixture: CellMixture, pool: int, share: float, rng: Random) -> Iterator[Sample]:
    """Yield samples, each with probability share from a pool drawn before, otherwise new."""
    fresh = mixture.samples(rng)
    repeats = list(islice(fresh, pool))
    while True:
        if rng.random() < share:
            yield rng.choice(repeats)
        else:
            yield next(fresh)


@dataclass(frozen=True)
class SampleRows:
    """Samples as arrays of rows and tokens, padded with `END` without a loss."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The token where it is one of an answer or its end, `IGNORED` elsewhere."""


def rows_of(
    samples: Iterable[Sample], rows: int, width: int, *, single: bool = False
) -> SampleRows:
    """Fill rows with as many whole samples as fit; a sample that does not fit is dropped.

    single: one sample per row, so that none serves as an example for another.
    """
    shape = (rows, width)
    tokens = np.full(shape, _IDS[END], np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    row = 0
    start = 0
    for sample in samples:
        ids = [_IDS[character] for character in sample.text]
        if start + len(ids) > width or (single and start):
            row += 1
            start = 0
        if row == rows:
            break
        answer = start + len(sample.prompt)
        end = start + len(ids)
        tokens[row, start:end] = ids
        labels[row, answer:end] = tokens[row, answer:end]
        start = end
    return SampleRows(tokens, labels)


ROW = 128  # tokens in a row of a training step; a sample has at most half as many
PROBED = 400  # fresh samples a probe: the standard error of an accuracy is at most 0.025


@dataclass(frozen=True)
class Size:
    """The shape of a decoder of four layers with four heads, and the rows of a training step."""

    width: int
    hidden: int
    rows: int
    """Rows of a step, of ROW tokens each."""

    @property
    def tokens(self) -> int:
        """Number of tokens of one step."""
        return self.rows * ROW


@dataclass(frozen=True)
class Recipe:
    """A training: warm-up, a cosine to a tenth of the peak, gradients clipped at 1."""

    steps: int
    learning_rate: float
    """The peak, above 0."""
    weight_decay: float = 0.0
    muon: bool = False
    """Muon for the matrices of the layers and AdamW at a third of its rate for the rest, instead of
    AdamW (betas 0.9 and 0.98) alone.
    """
    width_factor: float = 1.0
    """Multiplies AdamW's rate for matrices but the embedding, in (0, 1]: 64 over the width of a
    wider decoder, so that an update moves what a layer puts out alike (Yang et al. 2022, table 8).
    """

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """The optimisers for the parameters of a model."""
        rate = self.learning_rate
        inside: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim != 2:
                rest.append(parameter)
            elif self.muon and ".layers." in name:
                inside.append(parameter)
            elif "embed_tokens" in name:
                rest.append(parameter)
            else:
                matrices.append(parameter)
        optimizers: list[torch.optim.Optimizer] = []
        if self.muon:
            decay = self.weight_decay
            muon = torch.optim.Muon(inside, lr=rate, weight_decay=decay)
            optimizers.append(muon)
            rate /= 3
        of_matrices = {"params": matrices, "lr": rate * self.width_factor}
        of_rest = {"params": rest, "lr": rate}
        adamw = torch.optim.AdamW(
            [of_matrices, of_rest],
            betas=(0.9, 0.98),
            weight_decay=self.weight_decay,
        )
        return [*optimizers, adamw]


def new_model(size: Size, seed: int) -> transformers.LlamaForCausalLM:
    """An untrained decoder over `ALPHABET`, with 0.2 M parameters at a width of 64."""
    config = transformers.LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=ROW,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ALPHABET.index(END),
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config)


def learning_rate_share(step: int, steps: int) -> float:
    """The share of the peak learning rate at a 0-based step, in (0, 1]."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    cosine = math.cos(math.pi * done)
    return 0.1 + 0.45 * (1 + cosine)


def train(
    model: transformers.LlamaForCausalLM, samples: Iterator[Sample], rows: int, recipe: Recipe
) -> None:
    """Train in place on the cross-entropy over answer tokens."""
    optimizers = recipe.optimizers(model)

    def share(step: int) -> float:
        return learning_rate_share(step, recipe.steps)

    schedules = [LambdaLR(optimizer, share) for optimizer in optimizers]
    for _ in range(recipe.steps):
        packed = rows_of(samples, rows, ROW)
        tokens = torch.from_numpy(packed.tokens)
        labels = torch.from_numpy(packed.labels)
        update(model, tokens, labels, optimizers)
        for schedule in schedules:
            schedule.step()


def update(
    model: transformers.LlamaForCausalLM,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    optimizers: Iterable[torch.optim.Optimizer],
) -> float:
    """Train one step on rows of tokens; return the mean cross-entropy over the labels before it, in
    nats.

    Gradients are clipped at 1.
    """
    model.train(True)
    output = model(input_ids=tokens, labels=labels)
    loss: torch.Tensor = output.loss
    model.zero_grad()
    torch.autograd.backward(loss)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nn.utils.clip_grad_norm_(trained, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: transformers.LlamaForCausalLM, mixture: CellMixture, seed: int) -> float:
    """The share of samples whose whole answer, with its end, the model would write greedily.

    One pass over the correct answers suffices: the first wrong token follows correct ones either
    way.
    """
    rng = Random(f"probe {mixture.name} {seed}")  # noqa: S311
    samples = islice(mixture.samples(rng), PROBED)
    rows = rows_of(samples, PROBED, ROW // 2, single=True)
    tokens = torch.from_numpy(rows.tokens)
    labels = torch.from_numpy(rows.labels)[:, 1:]
    model.train(False)
    logits = model(input_ids=tokens).logits
    written = logits[:, :-1].argmax(dim=-1)
    is_right = (written == labels) | (labels == IGNORED)
    are_right = is_right.all(dim=1)
    return float(are_right.double().mean())


def save(
    model: transformers.LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write only `model.safetensors` and `config.json`, leaving the model unchanged."""
    stored: nn.Module = copy.deepcopy(model)
    stored.to(dtype)
    stored.save_pretrained(folder)  # type: ignore[operator]
    generation = folder / "generation_config.json"
    generation.unlink(missing_ok=True)


def load(folder: Path) -> transformers.LlamaForCausalLM:
    """Read a saved model into fp32 to measure or train it, with exactly the stored weights."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
