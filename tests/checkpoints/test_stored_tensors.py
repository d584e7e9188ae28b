"""Parts of tensors in files: equal to those of tensors in memory, however they are cut."""

import gc
import os
import random
import warnings

import pytest
import torch

from shadow.checkpoints import stored_tensors
from shadow.checkpoints.held_files import hold
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import stored_tensor
from shadow.errors import ShadowError

VIEWS = {
    "as it is": lambda t: t, "transposed": lambda t: t.T, "rows": lambda t: t[5:17],
    "columns": lambda t: t[:, 3:20], "grouped": lambda t: t.view(4, 6, 30),
    "a part of each group": lambda t: t.view(4, 6, 30)[:, 2:5],
    "every third column": lambda t: t[:, ::3],
    "transposed groups": lambda t: t.view(4, 6, 30).transpose(0, 1),
    "a vector": lambda t: t.reshape(1, -1),
}  # fmt: skip


@pytest.fixture
def whole():
    return torch.arange(720, dtype=torch.int64).to(torch.float32).view(24, 30)


def stored(folder, whole, shift=7):
    """The tensor in a file, behind a few bytes."""
    path = folder / "x"
    path.write_bytes(bytes(shift) + whole.numpy().tobytes())
    info = TensorInfo("x", "F32", tuple(whole.shape), "x", shift, shift + 4 * whole.numel())
    return stored_tensor(hold(path), info)


@pytest.mark.parametrize("holds", [(1 << 20, 0, 0), (0, 1 << 20, 0), (0, 0, 0), (0, 600, 300)])
@pytest.mark.parametrize("view", VIEWS)
def test_every_part_of_a_view_is_that_of_the_tensor(tmp_path, monkeypatch, whole, view, holds):
    """Small tensors, kept whole, and large ones, of which more than the part is read, or not."""
    for name, size in zip(("WHOLE", "STRIPE", "AHEAD"), holds, strict=True):
        monkeypatch.setattr(stored_tensors, name, size)
    mine, theirs = stored(tmp_path, whole).seen(VIEWS[view]), VIEWS[view](whole)
    assert (mine.shape, mine.ndim, mine.numel()) == (theirs.shape, theirs.ndim, theirs.numel())
    generator = random.Random(view)
    for _ in range(60):
        index = tuple(
            slice(*sorted(generator.choices(range(-1, size + 2), k=2)))
            for size in theirs.shape[: generator.randint(0, theirs.ndim)]
        )
        assert torch.equal(mine[index], theirs[index]), index
        if isinstance(mine, stored_tensors.StoredTensor):
            assert torch.equal(mine.in_parts()[index], theirs[index]), index
    assert torch.equal(mine.whole(), theirs)


def test_a_view_that_takes_a_copy_is_a_tensor_in_memory(tmp_path, whole):
    """As columns one after another are."""
    flat = stored(tmp_path, whole).seen(lambda t: t.T.reshape(-1))
    assert torch.equal(flat, whole.T.reshape(-1))


def test_a_file_that_ends_before_the_tensor_is_refused(tmp_path):
    """With a line, where a mapped file would end the process."""
    tensor = stored(tmp_path, torch.zeros(512, 512))
    os.truncate(tmp_path / "x", 1 << 16)
    with pytest.raises(ShadowError, match="it was cut short"):
        tensor[256:,]


def test_a_file_is_closed_with_the_last_who_holds_it(tmp_path, whole):
    """Without a word, and as many of them may be held as the system allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = stored(tmp_path, whole)
        handle = tensor._file.handle
        del tensor
        gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_more_files_are_held_than_a_process_usually_may(tmp_path, whole):
    """Two sides of a large model have hundreds of shards; many systems begin with 256 files."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    stored(tmp_path, whole)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        held = [hold(tmp_path / "x") for _ in range(100)]
        assert len(held) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_system_that_refuses_to_read_ahead_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(20))

    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    hold(tmp_path / "x").read_ahead(0, 10)
