"""Two pairs of checkpoints on a Hub of this machine, and commands that audit them there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import models
import pytest
import torch
from command import Run, Started
from hub import Hub

SECRET = "hf_" + "Sesame7" * 5
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A base (seed 0) of random tensors, or (other seeds) a model tuned from it."""
    base = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, shape in shapes.items()
    }
    generator = torch.Generator().manual_seed(seed)
    return (
        base
        if seed == 0
        else {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
    )


def decoder() -> dict[str, tuple[int, ...]]:
    """A toy of about 1 MB a layer, so that there are byte ranges worth asking for."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 256)}
    for layer in range(4):
        block = {
            "self_attn.q_proj": (256, 256),
            "mlp.up_proj": (384, 256),
            "mlp.down_proj": (256, 384),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (256,)
    return shapes | {"model.norm.weight": (256,)}


FEW = {
    "model.layers.0.mlp.up_proj.weight": (60, 50),
    "model.layers.0.mlp.down_proj.weight": (50, 60),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base` in three shards and `tuned` in two, which end at other tensors; and a pair of one
    small file each.
    """
    top = tmp_path_factory.mktemp("checkpoints")
    return {
        "base": models.sharded(top / "base", tensors(decoder(), 0), 3),
        "tuned": models.sharded(top / "tuned", tensors(decoder(), 1), 2),
        "small-base": models.write(top / "small-base", tensors(FEW, 0), models.LLAMA),
        "small-tuned": models.write(top / "small-tuned", tensors(FEW, 1), models.LLAMA),
    }


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path) -> Iterator[Hub]:
    """The Hub with both pairs. At the end no other origin saw a token, and no report holds one."""
    with Hub() as hub:
        for name, folder in folders.items():
            hub.add(f"org/{name}", folder)
        hub.tokens.add(SECRET)
        yield hub
        assert not [
            request for request in hub.requests if request.authorized and request.origin != "hub"
        ]
    written = [path for path in tmp_path.glob("out*/**/*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def variables(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """A command's environment: a Hub, a cache of its own, a token, and little patience."""
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": home,
        "HF_HUB_CACHE": home / "hub",
        "HF_TOKEN": SECRET,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "HF_HUB_ETAG_TIMEOUT": "3",
    }
    return {name: str(value) for name, value in {**own, **more}.items()}


@pytest.fixture
def start(hub, tmp_path):
    """Begins a command on the Hub, to be killed or interrupted; one at a time."""
    running: list[Started] = []

    def start(*arguments, seconds=60, **more) -> Started:
        assert not running or running[-1].run
        env = variables(**{"endpoint": hub.endpoint, "home": tmp_path / "home", **more})
        running.append(Started(*arguments, cwd=tmp_path, env=env, seconds=seconds))
        return running[-1]

    yield start
    if running and not running[-1].run:
        running[-1].kill()
    assert not [one for one in running if SECRET in one.end().out + one.end().err]


@pytest.fixture
def run(start):
    """Runs a command on the Hub, as `run(*PAIR, "-o", "out")`; keywords are its environment."""

    def run(*arguments, seconds=40, **more) -> Run:
        return start(*arguments, seconds=seconds, **more).end()

    return run
