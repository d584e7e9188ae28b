"""`verify whole` of models on a Hub: faults as in a folder, and what goes over the line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import planted
import pytest
from hub import Status
from hub_pairs import HEADERS, downloads, moved, tensors
from wholes import store

pytest_plugins = "hub_pairs"
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"
FEW = {f"model.layers.{layer}.mlp.up_proj.weight": (8, 16) for layer in range(3)}


@pytest.fixture
def model(tmp_path) -> Path:
    """Three shards and an index, of a class that no loader knows."""
    return planted.sharded(tmp_path / "model", tensors(FEW, 0), 3)


def cut(folder: Path) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-10])


def below(folder: Path) -> None:
    """The shards in a folder, as the index has it."""
    index = json.loads((folder / INDEX).read_text())
    (folder / "parts").mkdir()
    for path in sorted(folder.glob("*.safetensors")):
        path.rename(folder / "parts" / path.name)
    names = {name: f"parts/{shard}" for name, shard in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def pointer(folder: Path) -> None:
    (folder / SECOND).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )


FAULTS = {
    "cut": (cut, [("unreadable", SECOND)]),
    "lost": (lambda folder: (folder / SECOND).unlink(), [("shard_missing", SECOND)]),
    "pointer": (pointer, [("pointer", SECOND)]),
    "config": (
        lambda folder: (folder / "config.json").write_text("{"), [("unreadable", "config.json")]),
    "index": (lambda folder: (folder / INDEX).write_text("[]"), [("unreadable", INDEX)]),
    "below": (below, []),
    "another": (
        lambda folder: store(folder, tensors(FEW, 1), "consolidated.safetensors"), []),
}  # fmt: skip


def test_faults_of_files_are_those_of_a_folder(run, hub, model, tmp_path):
    """One command names the same codes and files for a folder and for its copy on the Hub."""
    claims = []
    for name, (plant, _) in FAULTS.items():
        folder = Path(shutil.copytree(model, tmp_path / name))
        plant(folder)
        hub.add(f"org/{name}", folder)
        for of in (f"./{name}", f"org/{name}"):
            claims.append({"claim": "whole", "of": [of], "headers": True})
    (tmp_path / "claims.yaml").write_text(json.dumps(claims))
    answers = json.loads(run("verify", "--claims", "claims.yaml", "--json").assert_done(4))
    assert len(answers) == 2 * len(FAULTS)
    for at, (_, against) in enumerate(FAULTS.values()):
        for answer in answers[2 * at : 2 * at + 2]:
            assert [(one["code"], one["name"]) for one in answer["against"]] == against
            assert answer["outcome"] == ("does_not_hold" if against else "inconclusive")
    assert max(moved(hub).values()) <= HEADERS


def test_headers_alone_move_headers_and_small_files_once(run, hub, tmp_path):
    """Of weights of 3 MB at most 64 KiB a shard; no shard is asked for as a whole, and what does
    not matter, such as documents and pickles, is not asked for at all.
    """
    large = dict.fromkeys(FEW, (1024, 256))
    folder = planted.sharded(tmp_path / "model", tensors(large, 0), 3)
    small = {"tokenizer.json": 500_000, "generation_config.json": 100}
    for name, size in small.items():
        (folder / name).write_text(json.dumps({"x": "y" * size}))
    for name in ("README.md", "pytorch_model.bin", "optimizer.pt", "photo.png"):
        (folder / name).write_bytes(bytes(1_000_000))
    hub.add("org/large", folder)
    arguments = ("verify", "whole", "org/large", "--headers")
    run(*arguments).assert_done(5)
    read = [*folder.glob("*.json")]
    assert moved(hub) == {f"large/{path.name}": HEADERS for path in folder.glob("*.safetensors")}
    assert not downloads(hub)
    listed = sum(one.sent for one in hub.requests if "/api/" in one.path)
    sizes = sum(path.stat().st_size for path in read)
    assert hub.bytes_of() - listed == sizes + 3 * HEADERS
    hub.reset()
    run(*arguments).assert_done(5)
    assert hub.bytes_of("*.json") == 0


def test_what_cannot_be_reached_is_an_error_and_no_fault(run, hub, model):
    """A server that fails, and a repository that asks for a login, end with exit code 1."""
    hub.add("org/model", model)
    hub.fail(SECOND, Status(404), times=None)
    run("verify", "whole", "org/model", "--headers").assert_refused()
    hub.reset()
    hub.fail("config.json", Status(403), times=None)
    run("verify", "whole", "org/model", "--headers", HF_HUB_CACHE=model / "other").assert_refused()


def test_offline_a_shard_that_is_not_in_the_cache_is_not_called_lost(run, hub, model):
    """The cache may lack what the repository has."""
    hub.add("org/model", model)
    run("verify", "whole", "org/model", "--headers").assert_done(5)
    error = run("verify", "whole", "org/model", "--offline").assert_refused()
    assert "none of its weight files" in error or "not in the cache" in error
