"""Families of toy checkpoints."""

import planted
import pytest
import torch
from planted import UP, matrices


@pytest.fixture
def toys(tmp_path):
    """A registry of four families over toy checkpoints: `bad` has a pair without a tuned side."""
    for seed, name in enumerate(("base", "one", "two")):
        planted.toy(tmp_path / name, seed)
    odd = {**matrices(1), UP.format(0): torch.full((8, 8), float("nan"))}
    planted.write(tmp_path / "odd", odd, planted.LLAMA)
    (tmp_path / "toys.yaml").write_text(
        "toy-a: {base: ./base, one: ./one, two: ./two, tags: [toy]}\n"
        "toy-bad: {base: ./base, gone: ./gone, one: ./one, tags: [toy]}\n"
        "toy-c: {base: ./one, two: ./two}\n"
        "toy-odd: {base: ./base, odd: ./odd}\n"
    )
    return tmp_path
