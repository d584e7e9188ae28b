"""`verify whole` asks transformers while it reads values, and remembers what it answered."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from threading import Event

import pytest
import torch
from planted import edit
from safetensors.torch import load_file
from wholes import FAILS, FILE, HOLDS, codes, store, verified

import shadow
from shadow.checkpoints import expected as loader
from shadow.run import scan
from shadow.run.file_cache import digest_of

HEAD = "lm_head.weight"
PIECE = 20  # seconds after which a test gives up waiting


@pytest.fixture
def asked(in_this_process, monkeypatch):
    """The questions that reached a loader."""
    questions = []
    ask = loader.run_child

    def run(command, *rest, **more):
        questions.append(Path(command[-1]).read_text())
        return ask(command, *rest, **more)

    monkeypatch.setattr(loader, "run_child", run)
    return questions


def stored_answer(cache: Path) -> Path:
    (path,) = cache.glob("*/*.json")
    return path


def test_a_loader_is_asked_once_for_each_config_and_header(asked, healthy, tmp_path, monkeypatch):
    """A fault is found again from what was remembered; another config, shape or version of
    transformers is another question.
    """
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "model"))
    tensors = load_file(folder / FILE)
    files = shadow.Files(cache=tmp_path / "cache")
    store(folder, {name: one for name, one in tensors.items() if name != HEAD})
    found = [verified(folder, files=files) for _ in range(2)]
    assert [codes(one) for one in found] == [{"missing"}] * 2
    assert found[0].answer == found[1].answer
    assert len(asked) == 1
    store(folder, {name: one + 1 for name, one in tensors.items() if name != HEAD})
    verified(folder, files=files)  # other values are the same question
    assert len(asked) == 1
    changes = (
        lambda: store(folder, tensors),
        lambda: store(folder, tensors | {HEAD: tensors[HEAD][:-1]}),
        lambda: edit(folder, rms_norm_eps=1e-3),
        lambda: monkeypatch.setattr(loader, "version", lambda package: "9"),
        lambda: monkeypatch.setattr(loader, "__version__", "9"),
    )
    for count, change in enumerate(changes, 2):
        change()
        verified(folder, files=files)
        assert len(asked) == count
    verified(folder, files=shadow.Files(cache=False))
    assert len(asked) == len(changes) + 2


@pytest.mark.parametrize("content", [
    *("", "x", "[]", "3", "{}", "[" * 100_000, '{"missing": 1}'), {"missing": 5},
    {"mismatched": [["a", 1]]}, {"mismatched": [["a", [1e400], []]]}, {"problem": "not_a_code"},
    {"vocabulary": "many"}, {"lost": [1]}, None,
])  # fmt: skip
def test_an_answer_that_cannot_be_one_is_asked_for_again(content, asked, healthy, tmp_path):
    """Whatever lies in the folder, under its right digest too; None: a folder."""
    files = shadow.Files(cache=tmp_path / "cache")
    assert verified(healthy("llama"), files=files).outcome is HOLDS
    path = stored_answer(tmp_path / "cache")
    whole = path.read_bytes()
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        if isinstance(content, dict):
            content = json.dumps(json.loads(whole[32:]) | content)
        key = path.parent.name + path.stem
        path.write_bytes(digest_of(key, content.encode()) + content.encode())
    assert verified(healthy("llama"), files=files).outcome is HOLDS
    assert len(asked) == 2
    if content is not None:
        assert path.read_bytes() == whole
        path.write_bytes(bytes(32) + whole[32:])
        assert verified(healthy("llama"), files=files).outcome is HOLDS
        assert len(asked) == 3


@pytest.mark.parametrize("problem", ["loader_failed", "loader_died", "loader_slow"])
def test_a_failure_is_not_remembered(problem, in_this_process, healthy, tmp_path, monkeypatch):
    """The next run may find the loader mended."""
    with monkeypatch.context() as patch:
        patch.setattr(loader, "_ask", lambda *_: loader.Expected(problem=problem))
        assert verified(healthy("llama"), files=shadow.Files(cache=tmp_path)).holds is None
    assert not [*tmp_path.rglob("*.json")]
    assert verified(healthy("llama"), files=shadow.Files(cache=tmp_path)).outcome is HOLDS


def test_values_are_read_while_the_loader_is_asked(healthy, tmp_path, monkeypatch):
    """The child ends only when the sweep has begun; an error of the sweep waits for the child."""
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "model"))
    sweeping, ended = Event(), []

    def run(command, *_, begins):
        begins()
        assert sweeping.wait(PIECE)
        ended.append(command)
        return subprocess.CompletedProcess(command, -9, b"", b"")

    def sweep(*arguments):
        sweeping.set()
        return original(*arguments)

    original = scan.sweep
    monkeypatch.setattr(loader, "run_child", run)
    monkeypatch.setattr(scan, "sweep", sweep)
    assert verified(folder).answer.reasons[0].figures["why"].code == "loader_died"

    def fail(*_):
        sweeping.set()
        raise ZeroDivisionError("planted")

    sweeping.clear()
    monkeypatch.setattr(scan, "sweep", fail)
    with pytest.raises(ZeroDivisionError):
        verified(folder)
    assert len(ended) == 2
    store(folder, {name: torch.zeros_like(one) for name, one in load_file(folder / FILE).items()})
    monkeypatch.setattr(scan, "sweep", sweep)
    sweeping.clear()
    assert verified(folder).outcome is FAILS
