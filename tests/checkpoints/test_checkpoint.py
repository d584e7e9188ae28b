"""A folder -> Checkpoint: which files are read; a folder that is none is one ShadowError."""

import json
import os
import shutil

import pytest
import torch
from effort import every
from safetensors.torch import load_file, save_file

from shadow.checkpoints.opening import open_folder
from shadow.errors import ShadowError

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def weights(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def write_index(folder, weight_map, name=INDEX):
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / name).write_text(text)


@pytest.fixture
def sharded(tmp_path):
    """Two shards, an index and a config."""
    save_file({UP: weights(1)}, tmp_path / FIRST)
    save_file({DOWN: weights(2)}, tmp_path / SECOND)
    write_index(tmp_path, {UP: FIRST, DOWN: SECOND})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def values(checkpoint):
    return {name: checkpoint.tensor(info).whole() for name, info in checkpoint.tensors.items()}


def assert_holds_both(checkpoint):
    found = values(checkpoint)
    assert found.keys() == {UP, DOWN}
    assert torch.equal(found[UP], weights(1))
    assert torch.equal(found[DOWN], weights(2))


def test_shards_with_an_index_are_one_checkpoint(sharded):
    """Every tensor comes from its own shard, with its values; config.json is there as it is."""
    checkpoint = open_folder(str(sharded))
    assert_holds_both(checkpoint)
    assert checkpoint.tensors[DOWN].shard == SECOND
    assert (checkpoint.config, checkpoint.commit) == ({"model_type": "llama"}, None)


def in_parts(folder):
    """An index may name files below the folder."""
    (folder / "parts").mkdir()
    for name in (FIRST, SECOND):
        (folder / name).rename(folder / "parts" / name)
    write_index(folder, {UP: f"parts/{FIRST}", DOWN: f"parts/{SECOND}"})


SAME = {
    "no index": lambda folder: (folder / INDEX).unlink(),  # which is a hint
    "below the folder": in_parts,
    "a pickle beside": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"no pickle"),
    "the other way round": lambda folder: write_index(folder, {UP: SECOND, DOWN: FIRST}),
}


@pytest.mark.parametrize("change", SAME)
def test_what_is_read_is_what_the_safetensors_files_hold(sharded, change):
    """Whatever the index says, or lies beside them."""
    SAME[change](sharded)
    assert_holds_both(open_folder(str(sharded), allow_pickle=True))


def test_a_tensor_that_no_shard_holds_is_kept_with_its_problem(sharded):
    """What only the index announces is in the checkpoint as unreadable, never silently missing."""
    write_index(sharded, {UP: FIRST, DOWN: SECOND, "lost.weight": FIRST})
    checkpoint = open_folder(str(sharded))
    assert checkpoint.tensors.keys() == {UP, DOWN, "lost.weight"}
    assert checkpoint.tensors["lost.weight"].problem
    assert checkpoint.tensors[UP].problem is None


@pytest.mark.parametrize("name", every(2, ["one.safetensors", "one.pt"]))
def test_a_file_of_weights_is_a_checkpoint_whatever_lies_beside_it(sharded, name):
    """Its tensors are those of the file alone; a file of torch needs --allow-pickle."""
    tensors = {"model.norm.weight": torch.arange(4.0)}
    path = sharded / name
    if name.endswith(".safetensors"):
        save_file(tensors, path)
    else:
        torch.save({"model": tensors} if name == "one.pt" else tensors, path)
        with pytest.raises(ShadowError, match="pickle"):
            open_folder(str(path))
    found = open_folder(str(path), allow_pickle=True, scratch=sharded)
    assert list(found.tensors) == [*tensors]
    for key, values in tensors.items():
        assert found.tensor(found.tensors[key]).whole().equal(values)


CONVERTERS = {
    "__0_0.distcp": "dcp_to_torch", "model_world_size_2_rank_0.pt": "verl.model_merger",
    "global_step10": "zero_to_fp32.py",
}  # fmt: skip


@pytest.mark.parametrize(("name", "command"), CONVERTERS.items())
def test_what_a_training_writes_for_itself_is_named_with_its_converter(tmp_path, name, command):
    (tmp_path / name).touch()
    with pytest.raises(ShadowError) as fault:
        open_folder(str(tmp_path))
    assert command in fault.value.hint


@pytest.mark.parametrize("change", ["header", "size", "time", "config", "name", "weights"])
def test_the_fingerprint_changes_with_the_files(sharded, change):
    """Equal files have equal fingerprints."""
    first = sharded / FIRST
    before = open_folder(str(sharded)).fingerprint
    assert open_folder(str(sharded)).fingerprint == before
    status = first.stat()
    if change == "header":
        raw = first.read_bytes()
        first.write_bytes(raw.replace(b"up_proj", b"op_proj"))
    elif change == "size":
        save_file({UP: torch.ones(2, 2)}, first)
    elif change == "weights":
        tensors = {name: tensor + 1 for name, tensor in load_file(first).items()}
        save_file(tensors, first)
        assert first.stat().st_size == status.st_size
    elif change == "config":
        (sharded / "config.json").write_text('{"model_type": "qwen2"}')
    elif change == "name":
        (sharded / INDEX).unlink()
        first.rename(sharded / "other.safetensors")
    if change != "config" and change != "name":
        moved = status.st_mtime_ns + (1_000_000_000 if change == "time" else 0)
        os.utime(first, ns=(moved, moved))
    assert open_folder(str(sharded)).fingerprint != before


@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize("name", ["w0", "w299", "large", "norm"])
def test_a_sample_of_every_tensor_is_in_the_fingerprint(tmp_path, name, place):
    """A row anywhere in a tensor sets two folders apart, also behind the first 256 tensors."""
    tensors = {f"w{number}": torch.zeros(8, 8) for number in range(300)}
    tensors |= {"large": torch.zeros(4, 1 << 20), "norm": torch.zeros(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    os.utime(tmp_path / "model.safetensors", (1e9, 1e9))
    before = open_folder(str(tmp_path))
    tensors[name][place] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    os.utime(tmp_path / "model.safetensors", (1e9, 1e9))
    after = open_folder(str(tmp_path))
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("size", [1 << 10, 1 << 18, (1 << 20) + 100])
@pytest.mark.parametrize("at", [0, -1])
def test_both_ends_of_a_tensor_are_in_the_fingerprint(tmp_path, size, at):
    """The first and the last of its values, of any size: 4 KiB, 1 MiB, 4 MiB and 400 bytes."""
    tensors = {"before": torch.zeros(size), "w": torch.zeros(size), "z": torch.zeros(size)}
    found = set()
    for value in (0, 1):
        tensors["w"][at] = value
        save_file(tensors, tmp_path / "model.safetensors")
        os.utime(tmp_path / "model.safetensors", (1e9, 1e9))
        found.add(open_folder(str(tmp_path)).fingerprint)
    assert len(found) == 2


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("weights")


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def alone(content=None, name="model.safetensors"):
    """A folder of one file: of tensors, or of bytes."""

    def spoil(folder):
        empty_folder(folder)
        if isinstance(content, dict):
            save_file(content, folder / name)
        else:
            (folder / name).write_bytes(content)

    return spoil


def adapter(folder):
    alone({"base_model.model.x.lora_A.weight": weights()}, "adapter_model.safetensors")(folder)
    (folder / "adapter_config.json").write_text("{}")


def is_a_folder(name):
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def shard_is_cut(folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


def twice(folder):
    (folder / INDEX).unlink()
    shutil.copy(folder / FIRST, folder / "copy.safetensors")


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def index_shard(name):
    return lambda folder: write_index(folder, {UP: name})


FAULTS = {
    "missing folder": (shutil.rmtree, "no such folder"),
    "a file": (a_file, "is not a file of weights"),
    "empty folder": (empty_folder, "no safetensors files"),
    "adapter": (adapter, "has no `peft_type`"),
    "missing shard": (
        lambda folder: (folder / SECOND).unlink(), f"1 of 2 shards are not in the folder: {SECOND}"
    ),
    "shard is a folder": (is_a_folder(SECOND), "model-00002-of-00002.safetensors"),
    "shard is an LFS pointer": (text(SECOND, POINTER), "Git-LFS pointer"),
    "shard is cut": (shard_is_cut, "cut short"),
    "a tensor in two files": (twice, "copy.safetensors and in model-00001"),
    "no tensors": (alone({}), "no tensors"),
    "index is an LFS pointer": (text(INDEX, POINTER), "Git-LFS pointer"),
    "index is not JSON": (text(INDEX, "<<<<<<< HEAD\n{}"), "not JSON"),
    "index is not UTF-8": (lambda folder: (folder / INDEX).write_bytes(b'{"\xff": 1}'), "not JSON"),
    "index is nested": (text(INDEX, "[" * 100_000), "not JSON"),
    "index is a folder": (is_a_folder(INDEX), INDEX),
    "index without a map": (text(INDEX, '{"metadata": {}}'), "no weight_map"),
    "empty map": (text(INDEX, '{"weight_map": {}}'), "no weight_map"),
    "a name is empty": (lambda folder: write_index(folder, {"": FIRST}), "'' has an unusable name"),
    "shard name is a number": (index_shard(3), "has no file name"),
    "shard name is empty": (index_shard(""), "has no file name"),
    "shard name has an escape": (index_shard("\x1b[2J.safetensors"), "has no file name"),
    "shard name goes up": (index_shard("../secret.safetensors"), "leaves the folder"),
    "shard name is absolute": (index_shard("/etc/x.safetensors"), "leaves the folder"),
    "shard name has a backslash": (index_shard("..\\secret.safetensors"), "leaves the folder"),
    "shard name is very long": (index_shard("a" * 5000 + ".safetensors"), "safetensors"),
    "index of .bin files": (
        index_shard("pytorch_model-00001-of-00002.bin"), "not a .safetensors file"
    ),
    "config is not JSON": (text("config.json", "{"), "config.json: not JSON"),
    "config is empty": (text("config.json", ""), "config.json: not JSON"),
    "config is a list": (text("config.json", "[]"), "config.json: not a JSON object"),
    "config is an LFS pointer": (text("config.json", POINTER), "config.json: a Git-LFS pointer"),
    "config is nested": (text("config.json", '{"a":' * 100_000), "config.json: not JSON"),
}  # fmt: skip


def test_a_gguf_file_and_its_folder_are_refused_in_one_line(tmp_path):
    """The same for both: nobody is sent from the file to the folder, to be refused again."""
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    for reference in (file, tmp_path):
        with pytest.raises(ShadowError) as caught:
            open_folder(str(reference))
        assert caught.value.message.startswith(f"{reference}: model-Q4_K_M.gguf: ")
        assert caught.value.hint


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_checkpoint_is_refused_with_the_reason(sharded, fault):
    """Each fault of a folder is one ShadowError: a line that names both, and a hint."""
    spoil, reason = FAULTS[fault]
    spoil(sharded)
    with pytest.raises(ShadowError, match=reason) as caught:
        open_folder(str(sharded))
    assert "\n" not in caught.value.message
    assert str(sharded) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_a_json_file_of_millions_of_values_is_refused_unparsed(sharded, monkeypatch, name):
    """6 MB of empty lists would become 200 MB of objects: refused by a count of commas before."""
    (sharded / name).write_text('{"weight_map": [' + "[]," * 2_000_000 + "0]}")
    loads = json.loads
    # parsed, it is no JSON
    monkeypatch.setattr(json, "loads", lambda text, **more: loads(text[:999_999], **more))
    with pytest.raises(ShadowError, match=f"{name}: larger than that of any released model"):
        open_folder(str(sharded))


def test_a_deep_config_is_read_or_refused(sharded):
    """There is no depth of nesting that one reader of config.json stands and the next does not."""
    for depth in range(900, 1000, 3):
        (sharded / "config.json").write_text('{"a":' + "[" * depth + "]" * depth + "}")
        try:
            assert "a" in open_folder(str(sharded)).config
        except ShadowError as refused:
            assert "config.json" in refused.message  # noqa: PT017
