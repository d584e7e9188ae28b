"""Two pairs of checkpoints on a Hub of this machine, and commands that audit them there."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import planted
import pytest
import torch
from command import Run, Started
from hub import Hub
from measuring import pair_of

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

SECRET = "hf_" + "Sesame7" * 5
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A base (seed 0) of random tensors, or (other seeds) a model tuned from it."""
    base = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, shape in shapes.items()
    }
    noise, size = torch.Generator().manual_seed(seed), 0.01 * bool(seed)
    return {n: t + size * torch.randn(t.shape, generator=noise) for n, t in base.items()}


def decoder() -> dict[str, tuple[int, ...]]:
    """A toy of about 1 MB a layer, so that there are byte ranges worth asking for."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 256)}
    for layer in range(4):
        block = {
            "self_attn.q_proj": (256, 256), "mlp.up_proj": (384, 256), "mlp.down_proj": (256, 384),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (256,)
    return shapes | {"model.norm.weight": (256,)}


FEW = {
    "model.layers.0.mlp.up_proj.weight": (60, 50),
    "model.layers.0.mlp.down_proj.weight": (50, 60),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base` in three shards, `tuned` in two that end elsewhere; a pair of one small file each."""
    top = tmp_path_factory.mktemp("checkpoints")
    return {
        "base": planted.sharded(top / "base", tensors(decoder(), 0), 3),
        "tuned": planted.sharded(top / "tuned", tensors(decoder(), 1), 2),
        "small-base": planted.write(top / "small-base", tensors(FEW, 0), planted.LLAMA),
        "small-tuned": planted.write(top / "small-tuned", tensors(FEW, 1), planted.LLAMA),
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
        "HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_CACHE": home / "hub", "HF_TOKEN": SECRET,
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "HF_HUB_ETAG_TIMEOUT": "3",
    }  # fmt: skip
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


TABLES = ("matrices", "tensors", "spectra")
# columns that tell where a matrix came from, and nothing of its numbers
WHO = ["family", "pair", "verified"]
HEADERS = 65_536  # bytes asked for to read the header of a shard
PAIR = ("audit", "--base", "org/base", "--tuned", "org/tuned")
SMALL = ("audit", "--base", "org/small-base", "--tuned", "org/small-tuned")


def audited(base: Path, tuned: Path, output: Path) -> dict[str, pd.DataFrame]:
    """The tables of the audit of two folders."""
    pair = pair_of(base, tuned)
    result = run_pair(pair, Settings(Method(), Filter()), output)
    return {name: pd.read_parquet(result.folder / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="session")
def wanted(folders, tmp_path_factory):
    return audited(folders["base"], folders["tuned"], tmp_path_factory.mktemp("wanted"))


@pytest.fixture(scope="session")
def small(folders, tmp_path_factory):
    return audited(folders["small-base"], folders["small-tuned"], tmp_path_factory.mktemp("small"))


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def recorded(done: Run, *words: str) -> str:
    """A refusal in exactly one line and one hint, which hold these words."""
    done.assert_refused()
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"], done.err
    for word in words:
        assert word in done.err
    return done.err


def report(output: Path) -> Path:
    """The only report under a folder."""
    (path,) = output.rglob("matrices.parquet")
    return path.parent


def frame(output: Path, name: str = "matrices") -> pd.DataFrame:
    return pd.read_parquet(report(output) / f"{name}.parquet")


def assert_equal(output: Path, wanted: dict[str, pd.DataFrame]) -> None:
    """The report has the numbers of an audit of the folders; nothing unfinished lies beside it."""
    for name in TABLES:
        found = frame(output, name)
        assert_same(found, wanted[name])
    assert not (report(output) / ".partial").exists()


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    # a filter leaves the whole unknown
    known = [column for column in (*WHO, "energy_share") if column in found]
    pd.testing.assert_frame_equal(
        found.drop(columns=known).reset_index(drop=True),
        wanted.drop(columns=known).reset_index(drop=True),
        check_exact=True,
        check_dtype=False,  # layers are floats to pandas where some row has none
    )


def moved(hub: Hub) -> Counter[str]:
    """Bytes of every shard that went over the line, by the same names."""
    found: Counter[str] = Counter()
    for request in hub.asked("*.safetensors"):
        found[f"{request.repo.removeprefix('org/')}/{request.filename}"] += request.sent
    return found


def downloads(hub: Hub) -> Counter[str]:
    """How often each shard was asked for as a whole."""
    asked = hub.asked("*.safetensors", origin="cdn", method="GET")
    return Counter(request.filename for request in asked if request.range is None)


def found_below(folder: Path, pattern: str) -> list[Path]:
    """Also while a command makes and removes folders there."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(folder.rglob(pattern))


def blobs(tmp_path: Path) -> dict[Path, int]:
    """The large files in the cache and their sizes, running downloads included."""
    found = {}
    for path in found_below(tmp_path / "home", "blobs/*"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_size
    return {path: size for path, size in found.items() if size > 5000}


def incomplete(tmp_path: Path) -> list[Path]:
    return found_below(tmp_path / "home", "*.incomplete")


PLACES = {
    "model info": {"pattern": "/api/models/org/small-tuned"},
    "listing": {"pattern": "/api/models/org/small-tuned/tree/*"},
    "config": {"pattern": "org/small-tuned/config.json"},
    "metadata of a file": {"pattern": f"org/small-tuned/{MODEL}", "method": "HEAD"},
    "header": {"pattern": f"org/small-tuned/{MODEL}", "origin": "cdn"},
    "file": {"pattern": f"org/small-tuned/{MODEL}", "origin": "cdn", "skip": 1},
}


def edit(hub: Hub, pattern: str, change: Callable) -> None:
    """Changes every answer to a path that matches."""
    answer = hub.answer

    def changed(origin, target, headers, form):
        found = answer(origin, target, headers, form)
        if fnmatchcase(target.partition("?")[0], pattern):
            change(found)
        return found

    hub.answer = changed
