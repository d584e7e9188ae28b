"""`shadow verify` on a Hub: checksums end a question early, and bytes move once."""

from __future__ import annotations

import json

import planted
import torch
from hub_pairs import tensors
from safetensors.torch import load_file

pytest_plugins = "hub_pairs"


def test_equal_checksums_end_it_before_a_weight_moves(run, hub, folders):
    """The same file in two repositories."""
    hub.add("other/copy", folders["small-base"])
    done = run("verify", "same", "org/small-base", "other/copy", "--json")
    told = json.loads(done.assert_done())
    assert told["reason"] == "the weight files have equal checksums"
    assert not [one for one in hub.requests if one.path.endswith(".safetensors")]


def test_a_copy_in_other_shards_is_compared_and_each_byte_moves_once(run, hub, folders, tmp_path):
    """Three shards on the Hub beside one file in a folder; then with one entry changed."""
    one = {}
    for shard in sorted(folders["base"].glob("*.safetensors")):
        one |= load_file(shard)
    shapes = {name: tuple(tensor.shape) for name, tensor in one.items()}
    assert all(torch.equal(one[name], whole) for name, whole in tensors(shapes, 0).items())
    planted.write(tmp_path / "one", one, planted.LLAMA)
    run("verify", "same", "org/base", "./one").assert_done()
    size = sum(shard.stat().st_size for shard in folders["base"].glob("*.safetensors"))
    assert hub.bytes_of("*.safetensors") < 1.2 * size + 200_000
    one["model.norm.weight"] = one["model.norm.weight"].clone()
    one["model.norm.weight"][3] += 1
    planted.write(tmp_path / "two", one, planted.LLAMA)
    told = json.loads(run("verify", "same", "org/base", "./two", "--json").assert_done(4))
    assert [item["name"] for item in told["against"]] == ["model.norm.weight"]


def test_what_moved_is_known_of_models_on_the_hub(run, hub):
    """Both sides of a training, and a copy with its base, from the Hub alone."""
    ask = ["verify", "trained", "org/base", "org/tuned", "--moved", "*"]
    run(*ask).assert_done()
    run(*ask[:4], "--frozen", "embed").assert_done(4)
    run("verify", "stored", "org/tuned", "org/tuned", "--base", "org/base").assert_done()
    run("verify", "same", "org/base", "org/none").assert_refused()


def test_weights_that_are_fetched_at_once_are_refused_before_they_move(run, hub):
    """Where --max-disk is less than they need: all models of a mixture, and the base of a copy."""
    for ask in (
        ("mixture", "org/tuned", "org/base", "org/tuned"),
        ("stored", "org/tuned", "org/tuned", "--base", "org/base"),
    ):
        done = run("verify", *ask, "--max-disk", "2MB")
        done.assert_refused(1)
        assert "of disk all at once, 2.0 MB may be used" in done.err
        assert "give --max-disk" in done.err
    assert hub.bytes_of("*.safetensors") < 2_000_000, "headers alone"
