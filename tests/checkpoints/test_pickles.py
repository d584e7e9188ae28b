"""torch `.bin` files: the right values without unpickling here, and what is refused."""

import io
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from effort import chosen

from shadow.checkpoints import pickles
from shadow.checkpoints.opening import open_folder
from shadow.errors import ShadowError

UP = "model.layers.0.mlp.up_proj.weight"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state():
    """Tensors as a `.bin` may hold them: tied, transposed, sliced, shared, empty, any dtype."""
    embed, whole = random(7, 4), random(6, 10, seed=1)
    return {
        "embed": embed, "head": embed, "transposed": random(5, 3, seed=2).T,
        "middle rows": whole[2:5], "every other column": whole[:, 1::2],
        "expanded": random(1, 6, seed=3).expand(4, 6),
        "permuted": random(2, 3, 4, seed=4).permute(2, 0, 1), "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3), "F64": random(3, 3, seed=5).double(),
        "F16": random(3, 3, seed=6).half(), "BF16": random(3, 3, seed=7).bfloat16(),
        "I64": torch.arange(5), "BOOL": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(random(2, 2, seed=10)),
        "complex": torch.complex(random(2, seed=11), random(2, seed=12)), "step": 7,
    }  # fmt: skip


EIGHT_BITS = {  # torch itself cannot write these in its old format
    "F8_E4M3": random(3, 3, seed=8).to(torch.float8_e4m3fn),
    "F8_E5M2": random(3, 3, seed=9).to(torch.float8_e5m2),
}


def opened(folder, scratch):
    return open_folder(str(folder), allow_pickle=True, scratch=scratch)


@pytest.fixture(scope="module", params=["zip", pytest.param("legacy", marks=pytest.mark.slow)])
def read(request, tmp_path_factory):
    """The checkpoint of `state()` in one of torch's two file formats."""
    folder, scratch = tmp_path_factory.mktemp(request.param), tmp_path_factory.mktemp("scratch")
    new = request.param == "zip"
    torch.save(
        state() | (EIGHT_BITS if new else {}),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=new,
    )
    return opened(folder, scratch)


def test_values_are_those_that_torch_loads(read):
    """Contiguous or not, a float tensor read as a view of the file equals the saved one."""
    everything = (state() | EIGHT_BITS).items()
    wanted_floats = {
        name: value for name, value in everything if name != "step" and value.is_floating_point()
    }
    for name, wanted in wanted_floats.items():
        if name in EIGHT_BITS and name not in read.tensors:
            continue
        found = read.tensor(read.tensors[name]).whole()
        assert found.dtype == wanted.dtype, name
        assert found.shape == wanted.shape, name
        assert torch.equal(found.double(), wanted.detach().double()), name


def test_dtypes_have_the_names_of_safetensors(read):
    """Both formats have one set of dtype names; what is no tensor is left out."""
    dtypes = {name: info.dtype for name, info in read.tensors.items()}
    for name in ("F64", "F16", "BF16", "I64", "BOOL", *(EIGHT_BITS.keys() & dtypes.keys())):
        assert dtypes[name] == name
    assert dtypes["embed"] == "F32"
    assert "complex" in dtypes["complex"]
    assert "step" not in dtypes


def test_tied_storages_are_told(read):
    """A head with the very bytes of the embedding is its alias; views of other parts are not."""
    assert {name: info.alias_of for name, info in read.tensors.items() if info.alias_of} == {
        "head": "embed"
    }


@pytest.mark.slow
def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path):
    """Old-format shards `a/x.bin` and `b/x.bin` of one index each have their own values."""
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        torch.save(
            {folder: random(3, 3, seed=seed)},
            tmp_path / folder / "x.bin",
            _use_new_zipfile_serialization=False,
        )
    index = {"weight_map": {"a": "a/x.bin", "b": "b/x.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoint = opened(tmp_path, tmp_path / "scratch")
    for name, seed in (("a", 1), ("b", 2)):
        assert torch.equal(
            checkpoint.tensor(checkpoint.tensors[name]).whole(), random(3, 3, seed=seed)
        )


@pytest.mark.slow
def test_shards_without_an_index_are_one_checkpoint(tmp_path):
    """`pytorch_model-*.bin` are read together, also a nested state_dict; other `.bin` are not."""
    torch.save({"w1": random(2, 3, seed=1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(
        {"state_dict": {"w2": random(2, 3, seed=2)}, "epoch": 3},
        tmp_path / "pytorch_model-00002-of-00002.bin",
    )
    (tmp_path / "training_args.bin").write_bytes(b"anything")
    checkpoint = opened(tmp_path, tmp_path / "scratch")
    assert checkpoint.tensors.keys() == {"w1", "w2"}
    assert torch.equal(checkpoint.tensor(checkpoint.tensors["w2"]).whole(), random(2, 3, seed=2))


class Command:
    """Unpickled by anything but a careful reader, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def zipped(content: dict, method=zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    """torch's zip of content, written again with another compression or other members."""
    saved, again = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(again, "w", method) as new:
        for member in old.infolist():
            last = member.filename.rpartition("/")[2]
            new.writestr(member.filename, replaced.get(last, old.read(member)))
    return again.getvalue()


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


BAD = {
    "malicious zip": (
        lambda marker: saved({UP: random(2, 2), "x": Command(marker)}), "more than tensors"
    ),
    "malicious legacy": (
        lambda marker: saved({"x": Command(marker)}, _use_new_zipfile_serialization=False),
        "more than tensors",
    ),
    "cut zip": (lambda marker: saved({UP: random(40, 40)})[:4000], "zip archive"),
    "cut legacy": (
        lambda marker: saved({UP: random(40, 40)}, _use_new_zipfile_serialization=False)[:-4000],
        "EOF",
    ),
    "not a pickle": (lambda marker: b"\x89PNG, and more than that", "is no pickle"),
    "empty": (lambda marker: b"", "it is empty"),
    "compressed": (
        lambda marker: zipped({UP: torch.zeros(99, 9)}, zipfile.ZIP_DEFLATED), "compressed archive"
    ),
    "a list": (lambda marker: saved([random(2, 2)]), "no table of tensors"),
    "control characters": (
        lambda marker: saved({"a\x1b[2J\n": random(2, 2)}), "unusable tensor name"
    ),
}  # fmt: skip
FAST = ("malicious zip", "empty")  # every other one is a process that imports torch


@pytest.mark.parametrize("bad", chosen(BAD, FAST))
def test_a_bad_bin_is_refused_and_never_run(tmp_path, monkeypatch, bad):
    """What holds more than tensors, or less than whole ones, is one ShadowError of one line; no
    code of it has run.

    Nothing stays: neither in the scratch folder, nor in the temporary folder, nor in the home.
    """
    make, reason = BAD[bad]
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(make(tmp_path / "marker"))
    with pytest.raises(ShadowError, match=reason) as caught:
        opened(tmp_path / "model", tmp_path / "scratch")
    assert caught.value.message.startswith(f"{tmp_path / 'model'}: pytorch_model.bin: ")
    assert caught.value.message.isprintable()
    assert not (tmp_path / "marker").exists()
    for name in ("HOME", "TMPDIR", "scratch"):
        assert not list((tmp_path / name).iterdir()), name


def nested(depth: int, width: int) -> bytes:
    """Tuples in tuples as the key of a dictionary, whose hash visits width ** depth of them."""
    doubled = b"q\x00" + {1: b"\x85", 2: b"h\x00\x86"}[width]
    return b"\x80\x02}K\x01\x85" + depth * doubled + b"Ns."


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only some of these limits")
def test_a_small_pickle_that_keeps_a_core_busy_is_ended(tmp_path, monkeypatch):
    """Of 245 bytes, it would take a core for days."""
    monkeypatch.setattr(pickles, "SECONDS", 120)
    (tmp_path / "pytorch_model.bin").write_bytes(content := nested(47, 2))
    assert len(content) < 250
    before = sum(os.times()[2:4])
    with pytest.raises(ShadowError, match="far longer") as caught:
        opened(tmp_path, tmp_path / "scratch")
    assert caught.value.message.isprintable()
    assert sum(os.times()[2:4]) - before < pickles.CPU + 15


@pytest.mark.slow
def test_a_pickle_nested_a_million_deep_is_refused_in_a_line(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(nested(10**6, 1))
    with pytest.raises(ShadowError, match="refused") as caught:
        opened(tmp_path, tmp_path / "scratch")
    assert caught.value.message.isprintable()


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
from shadow.checkpoints.pickles import confine
confine(1 << 30, 1000, 60)
print("confined", flush=True)
while True:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end it at its limit of time")
def test_the_child_ends_with_its_parent():
    """Killed by a signal that it cannot answer, a parent leaves no busy process behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True
    )
    lines = [parent.stdout.readline().strip() for _ in range(2)]
    pid = next(int(line) for line in lines if line.isdecimal())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < until, "it is still running"
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.slow
def test_a_good_bin_leaves_but_its_storages(tmp_path, monkeypatch):
    """torch makes cache folders at its import: in a folder of the child's own, which is removed."""
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "pytorch_model.bin").write_bytes(saved({UP: random(2, 2)}))
    assert UP in opened(tmp_path, tmp_path / "scratch").tensors
    assert not [
        *(tmp_path / "HOME").iterdir(),
        *(tmp_path / "TMPDIR").iterdir(),
        *(tmp_path / "scratch").iterdir(),
    ]


def test_the_child_gets_no_token(tmp_path, monkeypatch):
    """It gets what Python needs to start, and a home and a temporary folder of its own."""
    secrets = (
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN",
        "MY_OWN_PASSWORD",
    )  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, "sesame")
    seen = {}

    start = subprocess.Popen

    def started(command, **options):
        seen.update(options["env"])
        return start([sys.executable, "-c", "import sys; sys.exit('no')"], **options)

    monkeypatch.setattr("subprocess.Popen", started)
    (tmp_path / "pytorch_model.bin").write_bytes(saved({UP: random(2, 2)}))
    with pytest.raises(ShadowError, match="refused: no"):
        opened(tmp_path, tmp_path / "scratch")
    assert "sesame" not in seen.values()
    assert {name for name in seen if name.startswith(("HF_", "XDG_"))} == set()
    assert Path(seen["HOME"]).parent == Path(seen["TMPDIR"]).parent == tmp_path / "scratch"


ATTEMPTS = """
import _thread, os, socket, subprocess, sys
from shadow.checkpoints.pickles import confine

def write(path):
    open(path, "w").close()

attempts = {
    "a thread, and so a process": lambda: _thread.start_new_thread(int, ()),
    "os.system": lambda: os.system("true"),
    "a program": lambda: subprocess.run(["true"]),
    "os.fork": os.fork,
    "a socket": socket.socket,
    "a file": lambda: write("new"),
    "a file by number": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
    "removing a file": lambda: os.remove("there"),
    "a file that grows": lambda: [grown.write(bytes(1000)) for _ in range(2)],
    "memory": lambda: bytes(2 << 30),
}
grown = open("there", "wb", buffering=0)
confine(1 << 30, 1000, 60)
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, RuntimeError, MemoryError):
        continue
    print(name)
assert len(open("there").read()) == 1000  # reading goes on
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only some of these limits")
def test_a_confined_process_can_but_read(tmp_path):
    """No thread, process, connection, larger file or more memory, not even for root."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    (tmp_path / "there").touch(mode=0o644)
    tmp_path.chmod(0o755)
    more = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", ATTEMPTS], timeout=60, **more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.slow
def test_the_child_finds_what_was_installed_with_user(tmp_path):
    """shadow and torch in the user's home read a `.bin`, though the child has another home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "home" / ".local" / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (packages / "all.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith(("site-packages", "src")))
    )
    (tmp_path / "pytorch_model.bin").write_bytes(
        saved({UP: random(2, 2)}, _use_new_zipfile_serialization=False)
    )
    code = (
        "from shadow.checkpoints.opening import open_folder as o; print(*o('.', allow_pickle=True,"
        " scratch=S).tensors)"
    )
    code = f"from pathlib import Path; S = Path('scratch'); {code}"
    python = Path(sys.base_prefix) / "bin" / version
    environment = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{UP}\n", "")


def test_the_malicious_pickle_would_run_elsewhere(tmp_path):
    """The control: the same pickle does make its marker where it is unpickled without care."""
    pickle.loads(pickle.dumps(Command(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
def test_bytes_of_the_other_order_are_not_misread(tmp_path):
    """A file written on a big-endian machine is refused or read as torch does, never as noise."""
    (tmp_path / "pytorch_model.bin").write_bytes(zipped({UP: random(4, 4)}, byteorder=b"big"))
    wanted = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)[UP]
    assert not torch.equal(wanted, random(4, 4))
    try:
        checkpoint = opened(tmp_path, tmp_path / "scratch")
    except ShadowError:
        return
    assert torch.equal(checkpoint.tensor(checkpoint.tensors[UP]).whole(), wanted)


def test_a_scratch_folder_that_cannot_be_made_is_a_fault(tmp_path):
    """Where the output folder cannot be made, that is a ShadowError, not an OSError."""
    (tmp_path / "pytorch_model.bin").write_bytes(saved({UP: random(2, 2)}))
    (tmp_path / "file").write_text("")
    with pytest.raises(ShadowError):
        opened(tmp_path, tmp_path / "file" / "scratch")


def test_without_the_flag_no_child_is_started(tmp_path, monkeypatch):
    """Without allow_pickle the file is not opened by anyone, and the hint names the option."""
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a child was started"))
    (tmp_path / "pytorch_model.bin").write_bytes(saved({UP: random(2, 2)}))
    with pytest.raises(ShadowError, match=r"only torch \.bin files") as caught:
        open_folder(str(tmp_path), scratch=tmp_path / "scratch")
    assert "--allow-pickle" in caught.value.hint
