"""The demo's reports, and healthy checkpoints."""

import json
import subprocess
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import planted
import pytest
import torch
from companions import tokenizer
from safetensors.torch import load_file
from wholes import FILE, store

from shadow.checkpoints import expected as loader
from shadow.checkpoints import transfers
from shadow.checkpoints.expected import asked


@pytest.fixture(scope="module")
def demo(demo_reports):
    """The folder of each pair of the demo."""
    return {pair: demo_reports / f"base..{pair}" for pair in ("narrow", "broad")}


@pytest.fixture
def in_this_process(monkeypatch):
    """Ask transformers in this process: a child takes seconds to import it."""

    def run(command, *_, **__):
        recorded = json.loads(Path(command[-1]).read_text())
        answer = asked(recorded["config"], recorded["tensors"], guard=lambda: None)
        return subprocess.CompletedProcess(command, 0, json.dumps(asdict(answer)).encode(), b"")

    def begin(work):  # at once: transformers changes torch's settings while it loads
        future = Future()
        future.set_result(work())
        return future

    monkeypatch.setattr(loader, "run_child", run)
    monkeypatch.setattr(transfers, "begin", begin)


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
