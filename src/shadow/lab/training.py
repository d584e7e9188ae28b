"""Train a tiny decoder on a stream of samples, in one of four ways, and tell how well it answers.

One thread: the last bits of a sum depend on the number of threads, and two processes of one thread
each train more than one process of two at these sizes (30 against 26 thousand tokens a second at a
width of 128).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal

import torch
import transformers  # it imports its classes when they are used: reading results does without them
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

from shadow.lab import tasks
from shadow.lab.tasks import Mixture, Sample, packed_rows, single_rows

ROW = 128  # tokens in a row of a training step; a sample has at most half as many
PROBED = 400  # fresh samples a probe: the standard error of an accuracy is at most 0.025

Optimizer = Literal["adamw", "sgd", "muon", "lora"]


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
    """How to train: warm-up, a cosine to a tenth of the peak, gradients clipped at 1."""

    steps: int
    learning_rate: float
    """The peak, above 0."""
    weight_decay: float = 0.0
    optimizer: Optimizer = "adamw"
    """adamw has betas 0.9 and 0.98, sgd momentum 0.9; muon is for the matrices of the layers, adamw
    at a third of its rate for the rest; lora trains factors beside the matrices of the layers with
    adamw, nothing else.
    """
    rank: int = 4
    width_factor: float = 1.0
    """Multiplies adamw's rate for the matrices of the layers and for the head, in (0, 1].

    That of a wider decoder is 64 over its width, so that an update moves what a layer puts out
    alike at every width (Yang et al. 2022, table 8). An update of muon has a spectral norm that
    does not grow with the width, and needs no such factor.
    """


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
) -> Iterator[float]:
    """Train in place; yield each step's mean cross-entropy over answer tokens, in nats, before its
    update.
    """
    if recipe.optimizer == "lora":
        add_factors(model, recipe.rank)
    optimizers = _optimizers(model, recipe)
    schedules = [
        LambdaLR(optimizer, lambda step: learning_rate_share(step, recipe.steps))
        for optimizer in optimizers
    ]
    for _ in range(recipe.steps):
        packed = packed_rows(samples, rows, ROW)
        tokens, labels = torch.from_numpy(packed.tokens), torch.from_numpy(packed.labels)
        loss = update(model, tokens, labels, optimizers)
        for schedule in schedules:
            schedule.step()
        yield loss


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


def _optimizers(
    model: transformers.LlamaForCausalLM, recipe: Recipe
) -> list[torch.optim.Optimizer]:
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(trained.values(), lr=rate, momentum=0.9, weight_decay=decay)]
    found: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        inside = {
            name: parameter
            for name, parameter in trained.items()
            if ".layers." in name and parameter.ndim == 2
        }
        found.append(torch.optim.Muon(inside.values(), lr=rate, weight_decay=decay))
        trained = {name: one for name, one in trained.items() if name not in inside}
        rate /= 3
    groups = _groups(trained, rate, recipe.width_factor)
    return [*found, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=decay)]


def _groups(
    trained: Mapping[str, nn.Parameter], rate: float, width_factor: float
) -> list[dict[str, object]]:
    """Parameters by the rate they are trained at."""
    scaled = [one for name, one in trained.items() if one.ndim == 2 and "embed_tokens" not in name]
    others = [one for name, one in trained.items() if one.ndim != 2 or "embed_tokens" in name]
    groups = ((scaled, rate * width_factor), (others, rate))
    return [{"params": parameters, "lr": own} for parameters, own in groups if parameters]


class _LowRank(nn.Module):
    """W + B A, with A (rank, in) drawn and B (out, rank) zero at first."""

    def __init__(self, rows: int, cols: int, rank: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(rank, cols) / math.sqrt(cols))
        self.second = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.second @ self.first


def add_factors(model: transformers.LlamaForCausalLM, rank: int) -> None:
    """Freeze the model, and put factors beside every matrix of its layers (Hu et al. 2021)."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for linear in [module for module in layer.modules() if isinstance(module, nn.Linear)]:
            rows, cols = linear.weight.shape
            parametrize.register_parametrization(linear, "weight", _LowRank(rows, cols, rank))


def merged(model: transformers.LlamaForCausalLM) -> transformers.LlamaForCausalLM:
    """The model itself, or where it has factors a plain one whose matrices have them added.

    Not `remove_parametrizations` on a copy: it takes the property off the class, which copy and
    model share.
    """
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
    }
    if not weights:
        return model
    plain = transformers.LlamaForCausalLM(model.config)
    others = {
        name: weight
        for name, weight in model.state_dict().items()
        if "parametrizations" not in name
    }
    plain.load_state_dict(others | weights)
    return plain


@torch.no_grad()
def accuracy(model: transformers.LlamaForCausalLM, mixture: Mixture, seed: int) -> float:
    """Share of samples whose whole answer, its end included, the model would write greedily, in [0,
    1].

    One pass over the right answers tells: the first token that goes wrong follows right ones either
    way.
    """
    samples = mixture.samples(Random(f"probe {mixture.name} {seed}"))  # noqa: S311
    rows = single_rows(list(islice(samples, PROBED)), ROW // 2)
    model.train(False)
    written = model(input_ids=torch.from_numpy(rows.tokens)).logits[:, :-1].argmax(dim=-1)
    labels = torch.from_numpy(rows.labels)[:, 1:]
    right = (written == labels) | (labels == tasks.IGNORED)
    return float(right.all(dim=1).double().mean())


def save(
    model: transformers.LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write `model.safetensors` and `config.json`, nothing else; the model stays as it is."""
    stored: nn.Module = copy.deepcopy(merged(model))
    stored.to(dtype)
    stored.save_pretrained(folder)  # type: ignore[operator]
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(folder: Path) -> transformers.LlamaForCausalLM:
    """Read a saved model into fp32, to measure or train it: exactly the stored weights."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
