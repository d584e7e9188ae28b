"""Two machines of Ray on this one: each has a core and a cache of the Hub of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hub import Hub

from shadow.lists.index import read_index

SECONDS = 300


@dataclass(frozen=True)
class Machines:
    """Two machines of one core each, and the Hub that they read."""

    address: str
    hub: Hub
    homes: tuple[Path, Path]

    def blobs(self) -> list[int]:
        """By machine: files of weights in its cache."""
        return [
            len({path.resolve() for path in home.rglob("*.safetensors")}) for home in self.homes
        ]


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    top = tmp_path_factory.mktemp("machines")
    homes = top / "one", top / "two"
    with Hub() as hub:
        cluster = cluster_utils.Cluster()
        for home in homes:
            variables = {"HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "SHADOW_NO_CACHE": "1"}
            own = {"include_dashboard": False} if home == homes[0] else {}
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000, env_vars=variables, **own)
        yield Machines(cluster.address, hub, homes)
        cluster.shutdown()


@dataclass(frozen=True)
class Command:
    """`shadow` in a process of its own."""

    folder: Path
    variables: Mapping[str, str]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shadow", *map(str, arguments)],
            cwd=self.folder, env={**os.environ, **self.variables, "COLUMNS": "200"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        return ended(self.start(*arguments), code)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a command wrote to stdout and to stderr.

    Random toys are no states of one model: where an audit is to be done, its code may be 3.
    """
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode in ((0, 3) if code == 0 else (code,)), err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def command(tmp_path: Path, machines: Machines) -> Command:
    variables = {
        "HF_ENDPOINT": machines.hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "SHADOW_NO_CACHE": "1",
    }
    machines.hub.reset()
    return Command(tmp_path, variables)


@pytest.fixture
def on_ray(machines: Machines) -> tuple[str, ...]:
    return "--engine", f"ray:address={machines.address},cpus=1"


def rows(output: Path) -> list[dict[str, object]]:
    """The rows of the index but for what a pair took."""
    index = read_index(output)
    assert index is not None
    return [asdict(row) | {"seconds": None, "bytes": None} for row in index.rows]


def until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
