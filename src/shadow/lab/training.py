"""Train a tiny decoder on a stream of samples, and say how well it answers.

One thread: the last bits of a sum depend on the number of threads, and two processes of one thread
each train more than one process of two at these sizes (30 against 26 thousand tokens a second at a
width of 128).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
import transformers  # it imports its classes when they are used: reading results does without them
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from shadow.lab import tasks
from shadow.lab.tasks import CellMixture, Sample, rows_of

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
        """Tokens of one step."""
        return self.rows * ROW


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training: warm-up, a cosine to a tenth of the peak, gradients clipped at 1."""

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
        """Return what steps the parameters of a model."""
        rest, rate, decay = dict(model.named_parameters()), self.learning_rate, self.weight_decay
        found: list[torch.optim.Optimizer] = []
        if self.muon:
            names = [name for name, one in rest.items() if ".layers." in name and one.ndim == 2]
            inside = [rest.pop(name) for name in names]
            found.append(torch.optim.Muon(inside, lr=rate, weight_decay=decay))
            rate /= 3
        scaled = [
            name for name, one in rest.items() if one.ndim == 2 and "embed_tokens" not in name
        ]
        matrices = [rest.pop(name) for name in scaled]
        groups = [
            {"params": matrices, "lr": rate * self.width_factor},
            {"params": list(rest.values()), "lr": rate},
        ]
        return [*found, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=decay)]


def new_model(size: Size, seed: int) -> transformers.LlamaForCausalLM:
    """An untrained decoder over `tasks.ALPHABET`; 0.2 M parameters at a width of 64."""
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tasks.ALPHABET),
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=ROW,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tasks.ALPHABET.index(tasks.END),
        )
    )


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a 0-based step, in (0, 1]."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def train(
    model: transformers.LlamaForCausalLM, samples: Iterator[Sample], rows: int, recipe: Recipe
) -> None:
    """Train in place on the cross-entropy over answer tokens."""
    optimizers = recipe.optimizers(model)
    schedules = [
        LambdaLR(optimizer, lambda step: learning_rate_share(step, recipe.steps))
        for optimizer in optimizers
    ]
    for _ in range(recipe.steps):
        packed = rows_of(samples, rows, ROW)
        tokens, labels = torch.from_numpy(packed.tokens), torch.from_numpy(packed.labels)
        update(model, tokens, labels, optimizers)
        for schedule in schedules:
            schedule.step()


def update(
    model: transformers.LlamaForCausalLM,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    optimizers: Iterable[torch.optim.Optimizer],
) -> float:
    """Train one step on rows of tokens; the mean cross-entropy over the labels before it, in nats.

    Gradients are clipped at 1.
    """
    model.train(True)
    loss: torch.Tensor = model(input_ids=tokens, labels=labels).loss
    model.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: transformers.LlamaForCausalLM, mixture: CellMixture, seed: int) -> float:
    """Share of samples whose whole answer, its end included, the model would write greedily, in [0,
    1].

    One pass over the right answers shows: the first token that goes wrong follows right ones either
    way.
    """
    samples = mixture.samples(Random(f"probe {mixture.name} {seed}"))  # noqa: S311
    rows = rows_of(islice(samples, PROBED), PROBED, ROW // 2, single=True)
    model.train(False)
    written = model(input_ids=torch.from_numpy(rows.tokens)).logits[:, :-1].argmax(dim=-1)
    labels = torch.from_numpy(rows.labels)[:, 1:]
    right = (written == labels) | (labels == tasks.IGNORED)
    return float(right.all(dim=1).double().mean())


def save(
    model: transformers.LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write `model.safetensors` and `config.json`, nothing more; the model stays as it is."""
    stored: nn.Module = copy.deepcopy(model)
    stored.to(dtype)
    stored.save_pretrained(folder)  # type: ignore[operator]
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(folder: Path) -> transformers.LlamaForCausalLM:
    """Read a saved model into fp32, to measure or train it: exactly the stored weights."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
