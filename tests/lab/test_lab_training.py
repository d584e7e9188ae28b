"""Decoders of the lab train in four ways, answer as counted, and are saved as they are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from shadow.lab import tasks, training
from shadow.lab.tasks import LARGE, SMALL
from shadow.lab.training import Recipe, Size

SIZE = Size(32, 64, 4)
INSIDE = "model.layers.1.mlp.up_proj.weight"


def trained(
    optimizer: training.Optimizer, rate: float, steps: int = 6
) -> tuple[dict[str, torch.Tensor], transformers.LlamaForCausalLM]:
    """The weights before, and the model after."""
    model = training.new_model(SIZE, 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(0)
    samples = SMALL.narrow.samples(Random(0))
    recipe = Recipe(steps, rate, optimizer=optimizer)
    assert len(list(training.train(model, samples, SIZE.rows, recipe))) == steps
    return before, model


def test_the_learning_rate_rises_and_falls() -> None:
    """It peaks once, after a twentieth of the steps, and ends at a tenth of the peak."""
    shares = [training.learning_rate_share(step, 300) for step in range(300)]
    assert shares.index(1.0) == 14
    assert shares[:15] == sorted(shares[:15])
    assert shares[15:] == sorted(shares[15:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=1e-4)
    assert training.learning_rate_share(0, 1) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 3e-3), ("sgd", 0.3), ("muon", 3e-2)])
def test_training_learns(optimizer: training.Optimizer, rate: float) -> None:
    """From ln 96 nats, knowing nothing, the loss falls by half a nat in 40 small steps."""
    model = training.new_model(SIZE, 0)
    recipe = Recipe(40, rate, optimizer=optimizer)
    losses = list(training.train(model, SMALL.narrow.samples(Random(0)), 4, recipe))
    assert losses[0] == pytest.approx(np.log(96), abs=0.3)
    assert losses[-1] < losses[0] - 0.5


def test_an_adapter_changes_layers_alone_and_by_its_rank(tmp_path: Path) -> None:
    """LoRA of rank 4: a layer's matrices differ by rank 4, embedding, head and norms not."""
    before, model = trained("lora", 1e-2)
    training.save(model, tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    for name, weight in after.items():
        inside = ".layers." in name and weight.ndim == 2
        assert int(
            torch.linalg.matrix_rank(torch.atleast_2d(weight - before[name]).double(), tol=1e-6)
        ) == (4 if inside else 0), name


def test_a_merged_adapter_answers_as_its_model_and_training_goes_on(tmp_path: Path) -> None:
    """Saved in the middle of a training, the plain copy has the model's logits, and later steps
    still learn.
    """
    model = training.new_model(SIZE, 0)
    recipe = Recipe(8, 1e-2, optimizer="lora")
    steps = training.train(model, SMALL.narrow.samples(Random(0)), 4, recipe)
    for _ in range(4):
        next(steps)
    training.save(model, tmp_path / "middle")
    plain, tokens = training.load(tmp_path / "middle"), torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(
            plain(input_ids=tokens).logits, model.train(False)(input_ids=tokens).logits
        )
    model.train(True)
    assert len(list(steps)) == 4
    training.save(model, tmp_path / "end")
    middle, end = (
        load_file(tmp_path / name / "model.safetensors")[INSIDE] for name in ("middle", "end")
    )
    assert not torch.equal(middle, end)


def test_muon_makes_updates_orthogonal() -> None:
    """The first update of Muon has singular values that are alike within a factor of 2; of AdamW
    they are not.
    """
    ratios = {}
    for optimizer in ("muon", "adamw"):
        before, model = trained(optimizer, 1e-2, steps=1)  # type: ignore[arg-type]
        sigma = torch.linalg.svdvals((model.state_dict()[INSIDE] - before[INSIDE]).double())
        ratios[optimizer] = float(sigma[0] / sigma[len(sigma) // 2])
    assert ratios["muon"] < 2 < ratios["adamw"]


def test_saving_rounds_the_copy_alone(tmp_path: Path) -> None:
    """Saved as bf16, a file has bf16 weights and the model stays as it is; two files, no more."""
    model = training.new_model(SIZE, 0)
    before = model.state_dict()[INSIDE].clone()
    training.save(model, tmp_path, torch.bfloat16)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(model.state_dict()[INSIDE], before)
    assert torch.equal(load_file(tmp_path / "model.safetensors")[INSIDE], before.bfloat16())


class Oracle:
    """Stands in for a model: it knows the next token, but for the places that `wrong` picks."""

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
    found = [training.accuracy(one, LARGE.narrow, seed=0) for one in (never, in_prompt, at_ends)]  # type: ignore[arg-type]
    assert found == [1.0, 1.0, 0.0]


@pytest.mark.slow
def test_every_sample_fits_a_probe() -> None:
    """Half a row is enough for the longest of 2,000 samples of every mixture."""
    for world in (LARGE, SMALL):
        for mixture in (world.broad, world.held_out, world.unseen):
            samples = mixture.samples(Random(1))
            assert max(len(one.text) for one in islice(samples, 2_000)) <= training.ROW // 2


def test_the_same_seed_gives_the_same_weights() -> None:
    """With one number of threads, all repeats to the last bit; another seed gives other weights."""
    (_, first), (_, second) = trained("adamw", 1e-3), trained("adamw", 1e-3)
    assert all(
        torch.equal(one, other)
        for one, other in zip(first.parameters(), second.parameters(), strict=True)
    )
    one, other = (training.new_model(SIZE, seed).state_dict()[INSIDE] for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("optimizer", "rest"), [("adamw", 1.0), ("muon", 1 / 3)])
def test_a_wider_decoder_learns_more_slowly_in_its_matrices(
    optimizer: training.Optimizer, rest: float
) -> None:
    """The first step of Adam moves an entry by its rate: a quarter of it in matrices and head, all
    of it elsewhere.

    A step of Muon has the same spectral norm with the factor and without.
    """
    moved = {}
    for factor in (1.0, 0.25):
        model = training.new_model(SIZE, 0)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        recipe = Recipe(1, 1e-3, optimizer=optimizer, width_factor=factor)
        list(training.train(model, SMALL.narrow.samples(Random(0)), 4, recipe))
        moved[factor] = {name: weight - before[name] for name, weight in model.state_dict().items()}
    largest = {name: float(change.abs().max()) for name, change in moved[0.25].items()}
    assert largest["lm_head.weight"] == pytest.approx(0.25e-3 * rest, rel=1e-2)
    assert largest["model.embed_tokens.weight"] == pytest.approx(1e-3 * rest, rel=1e-2)
    assert largest["model.norm.weight"] == pytest.approx(1e-3 * rest, rel=1e-2)
    if optimizer == "adamw":
        assert largest[INSIDE] == pytest.approx(0.25e-3, rel=1e-2)
    else:
        torch.testing.assert_close(moved[0.25][INSIDE], moved[1.0][INSIDE])
