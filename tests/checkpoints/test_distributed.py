"""torch's distributed checkpoints: the right values from pieces of ranks, and what is refused."""

import io
import os
import pickle
import subprocess
import sys

import planted
import pytest
import torch
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as said

import shadow
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pickles import _load_distributed
from shadow.errors import ShadowError

PICKLE = shadow.Files(allow_pickle=True)


def state():
    tensors = {f"model.{name}": one for name, one in planted.gaussian(0, 2).items()}
    return tensors | {
        "norm": torch.ones(7).bfloat16(), "scalar": torch.tensor(2.5),
        "turned": torch.arange(24.0).view(4, 6).T, "empty": torch.empty(0, 3),
    }  # fmt: skip


def saved_and_read(tensors, folder):
    """What the child that reads them finds, and their bytes."""
    distributed.save(tensors, checkpoint_id=folder, no_dist=True)
    files = {one.name: io.BytesIO(one.read_bytes()) for one in folder.glob("*.distcp")}
    raw = io.BytesIO()
    return _load_distributed(io.BytesIO((folder / ".metadata").read_bytes()), files, raw), raw


def opened(folder, scratch):
    return open_folder(str(folder), allow_pickle=True, scratch=scratch)


@pytest.mark.parametrize("wrap", [
    lambda tensors: tensors,
    lambda tensors: {"model": tensors, "optimizer": {"state": {"step": torch.ones(3)}}},
    lambda tensors: {"app": {"model": tensors, "optim": {"m": torch.ones(3)}, "step": 3}},
    lambda tensors: {"module": tensors, "optim": torch.tensor(3)},
])  # fmt: skip
def test_the_model_is_what_was_saved_and_no_more(wrap, tmp_path):
    found, raw = saved_and_read(wrap(state()), tmp_path)
    assert {one["name"] for one in found["tensors"]} == state().keys()
    for one in found["tensors"]:
        wanted = state()[one["name"]].contiguous()
        whole = raw.getvalue()[one["start"] :][: wanted.nbytes]
        assert whole == bytes(wanted.view(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize(("beside", "name"), [
    ({"lm_head": {"weight": torch.ones(3)}}, "lm_head.weight"),
    ({"ema": {"model": torch.ones(3)}}, "ema.model"),
])  # fmt: skip
def test_a_tensor_outside_the_model_is_not_left_out(beside, name, tmp_path):
    with pytest.raises(ValueError, match=f"'{name}' lies outside the model"):
        saved_and_read({"model": state()} | beside, tmp_path)


def test_a_layer_that_is_called_as_the_optimizer_belongs_to_the_model(tmp_path):
    tensors = {"layers": {"optimizer": {"weight": torch.ones(2, 3)}}}
    (found,) = saved_and_read(tensors, tmp_path)[0]["tensors"]
    assert found["name"] == "layers.optimizer.weight"


@pytest.mark.parametrize("change", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_export_is_held_against_its_training(change, tmp_path):
    tensors, name = planted.gaussian(0, 2), planted.UP.format(1)
    distributed.save({"model": tensors}, checkpoint_id=tmp_path / "trained", no_dist=True)
    exported = tensors | {name: tensors[name] * change}
    asked = "same", tmp_path / "trained", planted.write(tmp_path / "b", exported, planted.LLAMA)
    found = shadow.verify(*asked, files=PICKLE)
    assert [one.name for one in found.against] == ([name] if change > 1 else [])
    assert found.holds is (change == 1)
    with pytest.raises(ShadowError, match="is a pickle") as caught:
        shadow.verify(*asked)
    assert "--allow-pickle" in caught.value.hint


@pytest.mark.slow
def test_one_is_checked_by_itself(tmp_path):
    tensors = planted.gaussian(0, 2)
    tensors[planted.UP.format(1)][3] = float("nan")
    distributed.save({"model": tensors}, checkpoint_id=tmp_path, no_dist=True)
    found = shadow.verify("whole", tmp_path, files=PICKLE)
    assert [(one.name, one.code) for one in found.against] == [(planted.UP.format(1), "not_finite")]


RANK = """
import os, sys, torch
from torch.distributed import checkpoint, device_mesh, init_process_group, tensor
init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=int(sys.argv[2]),
                   world_size=2)
mesh = device_mesh.init_device_mesh("cpu", (2,))
torch.manual_seed(0)
by = tensor.Shard(int(sys.argv[3]))
whole = {"a": torch.randn(5, 4), "b": torch.randn(1, 4), "c": torch.randn(4, 4)}
sharded = {name: tensor.distribute_tensor(one, mesh, [by]) for name, one in whole.items()}
checkpoint.save({"model": sharded}, checkpoint_id=f"{sys.argv[1]}/saved")
os._exit(0)  # at a usual end gloo's threads may abort the process
"""


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [0, 1])
def test_pieces_of_two_ranks(dimension, tmp_path):
    """Rows are put together, also of an empty rank; of columns the line names the converter."""
    command = [sys.executable, "-c", RANK, tmp_path]
    ranks = [subprocess.Popen([*command, str(rank), str(dimension)]) for rank in (0, 1)]
    assert [one.wait(120) for one in ranks] == [0, 0]
    if dimension:
        with pytest.raises(ShadowError, match="not split by rows alone") as caught:
            opened(tmp_path / "saved", tmp_path / "scratch")
        assert "dcp_to_torch" in caught.value.hint
        return
    torch.manual_seed(0)
    found = opened(tmp_path / "saved", tmp_path / "scratch")
    for name, rows in (("a", 5), ("b", 1), ("c", 4)):
        assert torch.equal(found.tensor(found.tensors[name]).whole(), torch.randn(rows, 4))


class Command:
    """Unpickled by anything but a careful reader, it ends the process."""

    def __reduce__(self):
        return os._exit, (7,)


def two_pieces(**changes):
    """What `.metadata` says of a tensor of 4 x 3 in two pieces."""
    size = torch.Size
    chunks = [
        said.ChunkStorageMetadata(offsets=size([row, 0]), sizes=size([2, 3])) for row in (0, 2)
    ]
    one = said.TensorStorageMetadata(
        said.TensorProperties(dtype=torch.float32), size([4, 3]), chunks
    )
    data = {
        said.MetadataIndex("a", size([row, 0])): filesystem._StorageInfo("x.distcp", start, 2000)
        for row, start in ((0, 0), (2, 2000))
    }
    recorded = {"state_dict_metadata": {"a": one}, "planner_data": {}, "storage_data": data}
    return said.Metadata(**recorded | changes)


def piece(content=None):
    file = io.BytesIO()
    torch.save(torch.ones(2, 3) if content is None else content, file)
    return file.getvalue().ljust(2000, b"\0")


def lacking(size):
    """A tensor that claims to have this size."""
    one = two_pieces()
    one.state_dict_metadata["a"].size = torch.Size(size)
    return one


def elsewhere(path, *keys):
    """Pieces in another file, or of tensors of these keys."""
    one = two_pieces()
    for at in one.storage_data.values():
        at.relative_path = path
    if keys:
        one.state_dict_metadata = dict.fromkeys(keys, one.state_dict_metadata["a"])
        one.planner_data = {key: tuple(key.split(".")) for key in keys}
    return one


BAD = {
    "another name": (two_pieces(planner_data=Command()), piece(), r"it names posix\._exit"),
    "one of builtins": (two_pieces(planner_data=getattr), piece(), r"it names builtins\.getattr"),
    "a class of torch": (two_pieces(planner_data=torch.nn.Linear), piece(), "it names torch.nn"),
    "a command in a piece": (two_pieces(), piece(Command()), "Weights only"),
    "a piece that is no tensor": (two_pieces(), piece([1]), "no tensor"),
    "a piece of another shape": (two_pieces(), piece(torch.ones(3, 2)), "not what .metadata says"),
    "a piece of another dtype": (two_pieces(), piece(torch.ones(2, 3).half()), "not what"),
    "rows that are missing": (lacking([5, 3]), piece(), "is missing"),
    "other columns": (lacking([4, 4]), piece(), "not split by rows"),
    "a file above the folder": (elsewhere("../x.distcp"), piece(), "cannot be read"),
    "two models": (elsewhere("x.distcp", "model.a", "app.a"), piece(), "two models"),
    "no metadata": ([1, 2], piece(), "storage_data"),
    "no pickle": (None, piece(), "persistent"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_checkpoint_is_refused_and_never_run(bad):
    content, raw, words = BAD[bad]
    recorded = b"\x89PNG" if content is None else pickle.dumps(content)
    with pytest.raises(Exception, match=words):  # the child makes one line of any
        _load_distributed(io.BytesIO(recorded), {"x.distcp": io.BytesIO(raw * 2)}, io.BytesIO())


def test_two_pieces_are_one_tensor():
    recorded, raw = io.BytesIO(pickle.dumps(two_pieces())), io.BytesIO()
    found = _load_distributed(recorded, {"x.distcp": io.BytesIO(piece() * 2)}, raw)
    assert [(one["name"], one["shape"]) for one in found["tensors"]] == [("a", [4, 3])]
    assert raw.getvalue() == torch.ones(4, 3).numpy().tobytes()


@pytest.mark.slow
def test_the_child_says_what_is_wrong(tmp_path):
    tmp_path.joinpath("x.distcp").write_bytes(piece() * 2)
    tmp_path.joinpath(".metadata").write_bytes(pickle.dumps(two_pieces(planner_data=Command())))
    with pytest.raises(ShadowError, match=r"\.metadata: refused: ValueError: it names posix"):
        opened(tmp_path, tmp_path / "scratch")
