"""Named pipes and devices where a file is expected: refused at once, in one line, or left out."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command import run_shadow
from safetensors.torch import save_file

SECONDS = 8  # after which a command counts as blocked; each takes a tenth of a second
UP = "model.layers.0.mlp.up_proj.weight"
SHARD = "model-00001-of-00001.safetensors"


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def stdin(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/stdin")


MAKERS = {"fifo": fifo, "device": device, "stdin": stdin}


def write_sides(folder: Path) -> Path:
    for name, size in (("base", 1.0), ("tuned", 1.1)):
        (folder / name).mkdir()
        save_file({UP: size * torch.ones(4, 6)}, folder / name / "model.safetensors")
    return folder


@pytest.fixture
def folders(tmp_path):
    return write_sides(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The report of both, to be copied."""
    folder = write_sides(tmp_path_factory.mktemp("finished"))
    run_shadow("audit", "./base", "./tuned", "-o", "report", cwd=folder).assert_done()
    return folder / "report"


def weights(tuned: Path, make) -> None:
    make(tuned / "model.safetensors")


def config(tuned: Path, make) -> None:
    make(tuned / "config.json")


def index(tuned: Path, make) -> None:
    (tuned / "model.safetensors").rename(tuned / SHARD)
    make(tuned / "model.safetensors.index.json")


def shard(tuned: Path, make) -> None:
    (tuned / "model.safetensors").unlink()
    make(tuned / SHARD)
    content = json.dumps({"weight_map": {UP: SHARD}})
    (tuned / "model.safetensors.index.json").write_text(content)


def adapter(tuned: Path, make) -> None:
    (tuned / "model.safetensors").rename(tuned / "adapter_model.safetensors")
    make(tuned / "adapter_config.json")


def factors(tuned: Path, make) -> None:
    (tuned / "model.safetensors").unlink()
    (tuned / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    make(tuned / "adapter_model.safetensors")


def gguf(tuned: Path, make) -> None:
    (tuned / "model.safetensors").unlink()
    make(tuned / "model.gguf")


def pickled(tuned: Path, make) -> None:
    (tuned / "model.safetensors").unlink()
    make(tuned / "pytorch_model.bin")


def distributed(tuned: Path, make) -> None:
    (tuned / "model.safetensors").unlink()
    make(tuned / ".metadata")


PLACES = (weights, config, index, shard, adapter, factors, gguf, pickled, distributed)
COMMANDS = {
    "audit": ("audit", "./base", "./tuned", "--allow-pickle", "-o", "out"),
    "verify": ("verify", "same", "./base", "./tuned", "--allow-pickle"),
    "plan": ("plan", "./base", "./tuned", "--allow-pickle"),
}
CASES = [(place, kind, "audit") for place in PLACES for kind in MAKERS]
CASES += [(place, "fifo", command) for place in PLACES for command in ("verify", "plan")]


@pytest.mark.parametrize(("place", "kind", "command"), CASES)
def test_a_file_of_a_checkpoint_that_would_block_is_refused_at_once(folders, place, kind, command):
    place(folders / "tuned", MAKERS[kind])
    done = run_shadow(*COMMANDS[command], cwd=folders, seconds=SECONDS)
    fault = done.assert_refused()
    assert "not a regular file" in fault or "no such" in fault
    assert not (folders / "out").exists()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("place", [weights, config, index, shard])
def test_a_check_of_such_a_folder_ends_at_once(folders, place, kind):
    place(folders / "tuned", MAKERS[kind])
    done = run_shadow("verify", "whole", "./tuned", cwd=folders, seconds=SECONDS)
    assert "Traceback" not in done.out + done.err
    assert done.code in (0, 1, 2, 3, 4), done.err


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "modeling.py"])
def test_other_files_of_a_checkpoint_that_would_block_are_left_out(folders, name):
    fifo(folders / "tuned" / name)
    run_shadow(*COMMANDS["audit"], cwd=folders, seconds=SECONDS).assert_done()


NAMED = {
    "list": ("audit", "--list", "given"), "policy": ("gate", "report", "--policy", "given"),
    "scores": ("compare", "report", "other", "--scores", "given"),
    "file": ("audit", "./base", "./given.safetensors"), "gguf": ("audit", "./base", "./given.gguf"),
    "bin": ("audit", "./base", "./given.bin", "--allow-pickle"), "show": ("show", "given"),
    "base": ("audit", "./given", "./tuned"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", NAMED)
def test_a_file_that_a_person_names_and_that_would_block_is_refused_at_once(
    folders, finished, name, kind
):
    for folder in ("report", "other"):
        shutil.copytree(finished, folders / folder)
    given = next(word for word in NAMED[name] if "given" in word)
    MAKERS[kind](folders / given)
    done = run_shadow(*NAMED[name], cwd=folders, seconds=SECONDS)
    assert "Traceback" not in done.out + done.err
    done.assert_refused(done.code)
    assert done.code in (1, 2)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_registry_with_such_a_file_is_refused_and_completion_passes_it_over(folders, kind):
    (folders / "registry").mkdir()
    MAKERS[kind](folders / "registry" / "a.yaml")
    words = ("families", "--registry", "registry")
    run_shadow(*words, cwd=folders, seconds=SECONDS).assert_refused()
    typed = "shadow audit --registry registry qw"
    words = {"_SHADOW_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "4"}
    done = run_shadow(cwd=folders, env=words, seconds=SECONDS)
    assert "Traceback" not in done.out + done.err
    assert "qwen2.5-7b" in done.out


FILES = ("summary.json", "matrices.parquet", "tensors.parquet", "files.parquet", "spectra.parquet")
READERS = {
    "show": ("show", "report"),
    "gate": ("gate", "report", "--fail-on", "nonfinite"),
    "again": ("audit", "./base", "./tuned", "-o", "report"),
    "compare": ("compare", "report", "other"),
    "export": ("export", "report", "--to", "csv", "-o", "tables"),
}
OF_REPORTS = [(name, reader) for name in FILES for reader in READERS]


@pytest.mark.parametrize(("name", "reader"), OF_REPORTS)
def test_a_file_of_a_report_that_would_block_ends_at_once(folders, finished, name, reader):
    """A damaged summary is made again; a table that is gone is refused."""
    for folder in ("report", "other"):
        shutil.copytree(finished, folders / folder)
    (summary,) = (folders / "report").rglob("summary.json")
    fifo(summary.parent / name)
    done = run_shadow(*READERS[reader], cwd=folders, seconds=SECONDS)
    assert "Traceback" not in done.out + done.err
    assert done.code in (0, 1), done.err
    if done.code:
        done.assert_refused()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARD])
@pytest.mark.parametrize("kind", ["fifo", "device", "nothing"])
def test_what_cannot_be_read_beside_the_weights_is_no_whole_checkpoint(folders, name, kind):
    """It is neither absent nor in agreement with the rest; a README may be what it is."""
    (folders / "tuned" / "README.md").symlink_to("/dev/zero")
    other = folders / "tuned" / name
    if kind == "nothing":
        other.symlink_to(folders / "deleted")
    else:
        MAKERS[kind](other)
    done = run_shadow("verify", "whole", "./tuned", "--json", cwd=folders, seconds=SECONDS)
    named = {row["name"]: row["code"] for row in json.loads(done.assert_done(4))["against"]}
    assert named[name] == "unreadable"
