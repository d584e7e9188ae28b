"""The demo's reports, and healthy checkpoints."""

import json
from pathlib import Path

import planted
import pytest
import torch
from companions import tokenizer
from safetensors.torch import load_file
from wholes import FILE, store


@pytest.fixture(scope="module")
def demo(demo_reports):
    """The folder of each pair of the demo."""
    return {pair: demo_reports / f"base..{pair}" for pair in ("narrow", "broad")}


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """A healthy checkpoint of a kind, with a tokenizer, made once; every tensor has moved."""
    root, made = tmp_path_factory.mktemp("healthy"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            folder = made[kind] = planted.saved(kind, root / kind)
            generator = torch.Generator().manual_seed(1)
            tensors = {
                name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in load_file(folder / FILE).items()
            }
            store(folder, tensors)
            config = json.loads((folder / "config.json").read_text())
            tokenizer(folder, (config.get("text_config") or config)["vocab_size"])
        return made[kind]

    return of
