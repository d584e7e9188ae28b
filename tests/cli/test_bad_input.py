"""Hostile and broken input through the command line: one line of error, the right exit code,
nothing left behind.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import Run
from effort import chosen, every
from safetensors.torch import save_file

SHADOW = Path(sys.executable).parent / "shadow"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


def related(shape, seed):
    """A matrix, or the same with an update of a tenth of its size."""
    W, D = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    return W + 0.1 * seed * D


def weights(seed):
    """A toy checkpoint; seeds differ in the two matrices."""
    return {
        UP: related((8, 6), seed), DOWN: related((6, 8), seed).T.contiguous(), NORM: torch.ones(6),
    }  # fmt: skip


def save(folder, file="model.safetensors", **more):
    """The toy checkpoint of a folder, with more tensors."""
    save_file(weights(int(folder.name == "tuned")) | more, folder / file)


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def folders(tmp_path):
    """`base` and `tuned`, two toy checkpoints of one file each."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "base", tmp_path / "tuned"


PAIR = ("audit", "--base", "./base", "--tuned", "./tuned", "-o", "out")


def report(tmp_path) -> Path:
    """The only report under out/."""
    (path,) = (tmp_path / "out").rglob("matrices.parquet")
    return path.parent


def raw_file(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def test_the_command_itself_audits(folders, tmp_path):
    """The installed script, a process of its own: 0 and a report."""
    done = subprocess.run([SHADOW, *PAIR], cwd=tmp_path, capture_output=True, text=True)
    Run(done.returncode, done.stdout, done.stderr).assert_done()
    names = {path.name for path in report(tmp_path).iterdir()}
    assert names >= {"matrices.parquet", "tensors.parquet", "summary.json"}


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def only(name, content=b"x"):
    def spoil(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / name).write_bytes(content)

    return spoil


def named(name):
    """The toy checkpoint with one more tensor of this name."""
    return lambda folder: save(folder, **{name: torch.ones(2)})


def other_model(folder):
    save_file({"decoder.blocks.9.weight": torch.randn(5, 4)}, folder / "model.safetensors")


# what files and folders may say more is in tests/checkpoints: test_shards.py, test_checkpoint.py
FAULTS = {
    "no folder": shutil.rmtree, "GGUF": only("model-Q4_K_M.gguf"),
    "adapter without a config": only("adapter_model.safetensors"),
    "adapter of another kind": only("adapter_config.json", b'{"peft_type": "IA3"}'),
    "adapter without weights": only(
        "adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": 8}'
    ),
    "adapter config that is no JSON": only("adapter_config.json", b"{"), "cut file": cut,
    "escape in a name": named("\x1b]0;owned\x07\x1b[31m"),
    "escape in a shard name": lambda folder: write_index(folder, {UP: "\x1b[2J.safetensors"}),
    "broken config": lambda folder: (folder / "config.json").write_text('{"a":'),
    "nothing in common": other_model, "escape in a file name": only("\x1b[31mred"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_checkpoint_is_one_error_line(shadow, folders, tmp_path, fault):
    """Exit 1, the fault in one line and perhaps a hint, and no new output folder."""
    FAULTS[fault](folders[1])
    shadow(*PAIR).assert_refused()
    assert not (tmp_path / "out").exists()


def test_a_fault_makes_no_folders_above_the_output_folder(shadow, folders, tmp_path):
    """`-o new/deep/out` of an audit that fails leaves nothing, also after a scratch for `.bin`."""
    only("pytorch_model.bin", b"no pickle")(folders[1])
    shadow(*PAIR[:-1], "new/deep/out", "--allow-pickle").assert_refused()
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_bins_are_audited_like_safetensors(shadow, folders, tmp_path):
    """The same weights as an old-format `.bin` give the same numbers, and no scratch file stays."""
    shadow(*PAIR).assert_done()
    wanted = pd.read_parquet(report(tmp_path) / "matrices.parquet")
    shutil.rmtree(tmp_path / "out")
    (folders[1] / "model.safetensors").unlink()
    torch.save(weights(1), folders[1] / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    shadow(*PAIR, "--allow-pickle").assert_done()
    pd.testing.assert_frame_equal(pd.read_parquet(report(tmp_path) / "matrices.parquet"), wanted)
    assert all(path.suffix in (".parquet", ".json") for path in report(tmp_path).iterdir())


def mixed(folder):
    """A tensor of an unknown dtype, one of integers, one with a NaN, one that no shard holds."""
    strange = {"dtype": "F4_E9", "shape": [2, 8], "data_offsets": [0, 8]}
    raw_file(folder / "strange.safetensors", {"model.layers.0.strange.weight": strange}, bytes(8))
    (folder / "model.safetensors").unlink()
    nan = torch.full((4, 4), float("nan"))
    more = {"model.layers.1.mlp.up_proj.weight": nan, "model.layers.0.ids": torch.arange(3)}
    save(folder, "most.safetensors", **more)
    lost = "model.layers.0.lost.weight"
    found = dict.fromkeys([UP, DOWN, NORM, *more, lost], "most.safetensors")
    write_index(folder, found | {"model.layers.0.strange.weight": "strange.safetensors"})


def test_a_fault_of_one_tensor_is_a_row_and_the_rest_goes_on(shadow, folders, tmp_path):
    """Unknown dtype, integers, NaN, a lost tensor: each a row and a reason; exit 3."""
    for folder in folders:
        mixed(folder)
    shadow(*PAIR).assert_done(code=3)
    tensors = pd.read_parquet(report(tmp_path) / "tensors.parquet")
    reasons = tensors[tensors.side == "tuned"].set_index("tensor").reason.dropna().to_dict()
    assert reasons == {
        "model.layers.0.strange.weight": "unknown_dtype", "model.layers.0.ids": "not_float",
        "model.layers.1.mlp.up_proj.weight": "nonfinite",
        "model.layers.0.lost.weight": "unreadable", NORM: "not_a_matrix",
    }  # fmt: skip
    strict = shadow(*PAIR, "--strict")
    strict.assert_done(code=3)
    assert "nonfinite, unknown_dtype, unreadable" in strict.err


ODD_NAMES = ("x.weight", "model.layers.0.mlp.experts.up.weight", "model.embed_tokens.weight")


SHAPES = [(0,), (0, 6), (6, 0), (2, 0, 3), (0, 0, 5), (), (1,), (1, 1), (1, 6), (0, 2**48, 2**48)]


@pytest.mark.parametrize("shape", every(3, SHAPES))
def test_odd_shapes_are_rows_or_one_error(shadow, folders, tmp_path, shape):
    """Empty tensors (exit 3), scalars, single rows have a row; an absurd shape may be refused."""
    elements = int(0 not in shape) * max([*shape, 1])
    for folder in folders:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        ends = [at * 4 * elements for at in range(4)]
        said = {"dtype": "F32", "shape": list(shape)}
        header = {
            name: said | {"data_offsets": ends[at : at + 2]} for at, name in enumerate(ODD_NAMES)
        }
        raw_file(folder / "b.safetensors", header, bytes(12 * elements))
    done = shadow(*PAIR)
    if 2**48 in shape and done.code:
        done.assert_refused()
        return
    done.assert_done(code=3 if 0 in shape else 0)
    assert set(pd.read_parquet(report(tmp_path) / "tensors.parquet").tensor) >= set(ODD_NAMES)


@pytest.mark.parametrize(
    "names",
    [("embed_tokens.weight", "model.embed_tokens.weight"),
     ("embed_tokens.weight", "model.embed_tokens.weight", "model.model.embed_tokens.weight"),
     ("model.norm.gamma", "norm.weight"),
     ("model.layers.0.mlp.fc1.weight", "model.layers.00.mlp.fc1.weight",
     "layers.0.mlp.c_fc.weight")],
)  # fmt: skip
def test_no_tensor_is_lost_where_names_collide(shadow, folders, tmp_path, names):
    """Names that mean one place: every tensor of either side still has its row."""
    for folder in folders:
        more = {name: torch.full((3, 4), float(i)) for i, name in enumerate(names)}
        save(folder, **more)
    shadow(*PAIR).assert_done()
    tensors = pd.read_parquet(report(tmp_path) / "tensors.parquet")
    for side in ("base", "tuned"):
        assert set(tensors[tensors.side == side].tensor) >= set(names)


HOSTILE_NAMES = [
    "[red]x[/red]", "[/]", "[link=http://x]y", ":bomb:", "%s{0}", "=1+1", "::error::x", "<script>",
    "a\\", "../../x",
]  # fmt: skip


@pytest.mark.parametrize("name", every(3, HOSTILE_NAMES))
def test_a_printable_name_is_shown_as_it_is(shadow, folders, tmp_path, name):
    """Markup, emoji codes and so on in a name are text, in the terminal and in the report."""
    for folder in folders:
        save(folder, **{name: torch.arange(3)})
    shadow(*PAIR).assert_done()
    assert f", e.g. {name}" in shadow("show", report(tmp_path), "--full").assert_done()
    assert name in set(pd.read_parquet(report(tmp_path) / "tensors.parquet").tensor)


FOLDER_NAMES = [b"\x1b[31mred", b"a\nb", b":100:", b"[bold]", b"...", b"-o", b"a;$(touch x)"]


@pytest.mark.parametrize("name", every(3, FOLDER_NAMES))
def test_a_folder_of_any_name_is_audited_inside_the_output_folder(shadow, folders, tmp_path, name):
    """A checkpoint's folder may have any name; the report's folder has a safe name under -o."""
    strange = tmp_path / os.fsdecode(name)
    folders[1].rename(strange)
    shadow("audit", "--base", "./base", f"--tuned={strange}", "-o", "out").assert_done()
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", str(report(tmp_path).relative_to(tmp_path / "out")))


def family(text):
    return f"fam:\n  base: ./base\n{text}"


REGISTRIES = {
    "goes up by a path": "../../up:\n  base: ./base\n  x: ./tuned\n",
    "escape in a stage": family('  "\\e[31mx": ./tuned\n'),
    "python tag": family("  x: !!python/object/apply:os.system ['touch marker']\n"),
    "not UTF-8": b"\xff",
}


@pytest.mark.parametrize("fault", REGISTRIES)
def test_a_hostile_registry_is_one_error_line(shadow, folders, tmp_path, fault):
    """Exit 1, one line that names the file, nothing run, nothing written."""
    (tmp_path / "reg").mkdir()
    text = REGISTRIES[fault]
    (tmp_path / "reg" / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".")
    done = shadow("audit", "fam", "-o", "out", "--registry", "reg")
    assert "reg/r.yaml:" in done.assert_refused()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == before


WRONG_USAGE = {
    "nothing to audit": ("audit",), "half a pair": ("audit", "--base", "./base"),
    "no reference": ("audit", "--base", "word", "--tuned", "./tuned"),
    "home of nobody": ("audit", "--base", "~no-such-user/x", "--tuned", "./tuned"),
    "very long reference": ("audit", "--base", "a" * 3000, "--tuned", "./tuned"),
    "unknown level": (*PAIR, "--level", "double"),
    "no component": (*PAIR, "--component", "\x1b[31mtext"),
    "no module": (*PAIR, "--module", "mlp.upp"), "no layer": (*PAIR, "--layer", "first"),
    "layers reversed": (*PAIR, "--layer", "5-3"),
    "output is a file": (*PAIR[:-1], "base/model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_USAGE)
def test_wrong_usage_exits_with_2(shadow, folders, tmp_path, wrong):
    """Nonsense whatever the files hold: exit 2, no traceback, nothing on stdout or on disk."""
    shadow(*WRONG_USAGE[wrong]).assert_refused(2)
    assert not (tmp_path / "out").exists()


LONG = f"{'n' * 300}/x/y"  # below a folder whose name no file system takes
LONG_PATHS = {
    "audit -o": (*PAIR[:-1], LONG),
    "audit --base": ("audit", "--base", f"./{LONG}", "--tuned", "./tuned", "-o", "out"),
    "audit --list": ("audit", "--list", LONG, "-o", "out"), "show": ("show", LONG),
    "export": ("export", LONG, "--to", "csv"), "report": ("report", LONG),
    "lab run": ("lab", "run", "--preset", "smoke", "-o", LONG),
}  # fmt: skip


# `lab run` imports the lab
@pytest.mark.parametrize("typed", chosen(LONG_PATHS, LONG_PATHS.keys() - {"lab run"}))
def test_a_path_that_no_file_system_takes_is_one_error_line(shadow, folders, tmp_path, typed):
    """Wherever it is typed: never a traceback, and nothing is written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    done = shadow(*LONG_PATHS[typed])
    assert "too long" in done.assert_refused(2 if done.code == 2 else 1).lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def larger(folders):
    """The toy checkpoints with a matrix large enough that its journal entry exceeds a page."""
    for seed, folder in enumerate(folders):
        save(folder, **{"model.layers.1.mlp.up_proj.weight": related((500, 500), seed)})
    return folders


@pytest.mark.parametrize("size", [16, 1000, 9000])
def test_a_write_that_fails_is_one_error_line(shadow, larger, tmp_path, size):
    """The disk gives out after so many bytes of a file: exit 1, no half report."""
    failed = shadow(*PAIR, file_size=size)
    assert "cannot write to" in failed.assert_refused()
    assert not list((tmp_path / "out").rglob("*.parquet"))
    shadow(*PAIR).assert_done()
    assert len(pd.read_parquet(report(tmp_path) / "matrices.parquet")) == 9


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")


@FULL
@pytest.mark.parametrize("arguments", ["explain --all --json", "--version"])
def test_output_that_cannot_be_written_is_one_error_line(arguments):
    """A full disk behind stdout, for a large text and one that waits in a buffer until the end."""
    with Path("/dev/full").open("w") as full:
        command = [SHADOW, *arguments.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


def test_a_reader_that_has_gone_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([SHADOW, "--version"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("arguments", "code"), [("--version >&-", 0), ("audit --list - <&-", 2)])
def test_closed_streams_are_no_traceback(arguments, code):
    done = subprocess.run(["sh", "-c", f"{SHADOW} {arguments}"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.startswith("error: ")) == (code, code > 0)


@pytest.mark.skipif(sys.platform == "darwin", reason="all names are UTF-8 there")
def test_a_folder_whose_name_is_not_utf8_is_named_before_measuring(shadow, folders, tmp_path):
    """No table can be written or read there: it ended in a traceback, when all was measured."""
    odd = os.fsdecode(b"odd\xff")
    done = shadow(*PAIR[:-1], odd)
    assert "odd\\xdcff" in done.assert_refused(2)
    assert not (tmp_path / odd).exists()
    shadow(*PAIR).assert_done()
    (tmp_path / "out").rename(tmp_path / odd)
    shadow("show", odd).assert_refused(2)


def test_letters_that_an_encoding_lacks_are_question_marks(folders, shadow, tmp_path):
    other = folders[1].rename(tmp_path / "t\u00fcn\u00e9d")
    done = shadow("verify", "same", folders[0], other, env={"PYTHONIOENCODING": "ascii"})
    assert "t?n?d" in done.assert_done(4)
