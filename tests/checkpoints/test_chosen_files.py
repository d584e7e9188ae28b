"""Names of a folder -> the files that are read, or one refusal; and the scales of an adapter."""

import pytest

from shadow.checkpoints.weight_files import choose_weights, read_adapter
from shadow.errors import ShadowError

INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
FILES = {
    INDEX: {"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}},
    BIN_INDEX: {"weight_map": {"a": "2.bin", "b": "1.bin"}},
    ADAPTER: {"peft_type": "LORA", "lora_alpha": 8},
}
AGAIN = "--allow-pickle reads them in a child process that loads tensors only"


def chosen(names, allow_pickle=True, alone=""):
    names = set(names.split())
    return choose_weights(
        "here", names, FILES.__getitem__, allow_pickle=allow_pickle, file=None, alone=alone
    )


@pytest.mark.parametrize(("names", "shards", "pickled", "adapted"), [
    (f"{INDEX} 1.safetensors 2.safetensors", "1.safetensors 2.safetensors", False, False),
    (f"{INDEX} 1.safetensors 2.safetensors model.safetensors", "model.safetensors", False, False),
    (f"{INDEX} 1.safetensors model.safetensors", "1.safetensors 2.safetensors", False, False),
    (f"{INDEX} 1.safetensors", "1.safetensors 2.safetensors", False, False),
    ("model.safetensors a.safetensors", "model.safetensors", False, False),
    ("b.safetensors a.safetensors x.bin", "a.safetensors b.safetensors", False, False),
    (f"{ADAPTER} adapter_model.safetensors adapter_model.bin a.safetensors",
     "adapter_model.safetensors", False, True),
    (f"{ADAPTER} adapter_model.bin pytorch_model.bin a.safetensors {BIN_INDEX}",
     "adapter_model.bin", True, True),
    ("pytorch_model-2.bin pytorch_model-1.bin optimizer.bin a.gguf",
     "pytorch_model-1.bin pytorch_model-2.bin", True, False),
    (f"{BIN_INDEX} pytorch_model.bin", "1.bin 2.bin", True, False),
    ("a.safetensors a.gguf", "a.safetensors", False, False), ("a.gguf", "a.gguf", False, False),
    (".metadata", ".metadata", True, False), (".metadata a.gguf", "a.gguf", False, False),
])  # fmt: skip
def test_the_weights_of_a_folder_are_of_one_kind(names, shards, pickled, adapted):
    """Of an index, `model.safetensors`, an adapter, safetensors, GGUF, files of torch."""
    weights = chosen(names)
    assert weights.shards == tuple(shards.split())
    assert (weights.pickled, weights.adapter is not None) == (pickled, adapted)
    index = {"1.safetensors 2.safetensors": INDEX, "1.bin 2.bin": BIN_INDEX}.get(shards)
    assert weights.weight_map == (FILES[index]["weight_map"] if index else {})


@pytest.mark.parametrize(("name", "beside", "pickled", "adapted"), [
    ("a.safetensors", ADAPTER, False, False), ("adapter_model.safetensors", ADAPTER, False, True),
    ("adapter_model.bin", ADAPTER, True, True), ("adapter_model.bin", "", True, False),
    ("a.pt", "", True, False), ("a.pth", "", True, False),
])  # fmt: skip
def test_a_file_that_is_named_is_read_alone(name, beside, pickled, adapted):
    """As an adapter's beside its config only."""
    weights = chosen(f"model.safetensors {beside} {name}", alone=name)
    is_adapter = weights.adapter is not None
    assert (weights.shards, weights.pickled, is_adapter) == ((name,), pickled, adapted)


@pytest.mark.parametrize(("names", "alone", "message", "hint"), [
    ("a.txt", "a.txt", "here is not a file of weights",
     "name a folder, or a file: .safetensors, .gguf, .bin, .pt, .pth"),
    ("a.pt", "a.pt", "here: a file of torch, which is a pickle", AGAIN),
    (f"{ADAPTER} a.safetensors pytorch_model.bin", "",
     "an adapter_config.json without adapter_model.safetensors",
     "check that the download is complete"),
    ("pytorch_model.bin .metadata", "", "here: only torch .bin files, which are pickles", AGAIN),
    (BIN_INDEX, "", "here: only torch .bin files, which are pickles", AGAIN),
    (".metadata", "", "here: torch's distributed checkpoint, whose .metadata is a pickle", AGAIN),
    ("", "", "here: no safetensors files in it",
     "it is empty; name the folder that holds the .safetensors files"),
    ("b a", "", "here: no safetensors files in it", "it has: a, b"),
    ("matrices.parquet a", "", "here: no safetensors files in it",
     "it is a report of shadow, which `shadow show` shows; name the folders of two checkpoints"),
    ("zero_pp_rank_0_mp_rank_00_model_states.pt", "", "here: no safetensors files in it",
     "it holds parts of DeepSpeed ZeRO: python zero_to_fp32.py FOLDER OUT --safe_serialization"),
])  # fmt: skip
def test_a_folder_without_files_to_read_says_what_it_holds(names, alone, message, hint):
    with pytest.raises(ShadowError) as refused:
        chosen(names, allow_pickle=False, alone=alone)
    assert (refused.value.message, refused.value.hint) == (message, hint)


@pytest.mark.parametrize(("rslora", "scales"), [
    (False, [1.5, 1.5, 250_000, 2.25, 2.25, 250_000]), (True, [3, 3, 5e5, 4.5, 4.5, 5e5]),
    ("yes", [1.5, 1.5, 250_000, 2.25, 2.25, 250_000]),
])  # fmt: skip
def test_a_module_has_the_scale_of_its_name_or_its_end(rslora, scales):
    """At rank 4, alpha / 4, or alpha / 2 where `use_rslora` is true; alpha may be 1e6."""
    config = {"lora_alpha": 1e6, "alpha_pattern": {"q": 6, "a.k": 9}, "use_rslora": rslora}
    adapter = read_adapter("here", FILES[ADAPTER] | config)
    modules = ("q", "x.q", "xq", "a.k", "b.a.k", "b.k")
    assert [adapter.scaling(module, 4) for module in modules] == scales
