"""Contents of checkpoints: checksums, the digest of a side, files that change under way."""

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import planted
import pyarrow.parquet as pq
import pytest
import torch
from measuring import pair_of
from safetensors.torch import load_file, save_file

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter
from shadow.comparing.comparison import compare
from shadow.engines import pair as pair_module
from shadow.engines.pair import run_pair
from shadow.errors import KeptError, ShadowError
from shadow.lists.index import read_index, with_index
from shadow.lists.perform import audit_pairs
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra import delta
from shadow.spectra.measurement import Method
from shadow.targets.lists import select

SETTINGS = Settings(Method(), Filter())
FILE = "model.safetensors"
FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Matrices of two layers, one fused, with vectors, a large embedding and buffers."""
    generator = torch.Generator().manual_seed(seed)
    found = planted.matrices(seed, size=16)
    found |= {
        "model.embed_tokens.weight": torch.randn(400, 64, generator=generator),
        "model.layers.0.self_attn.qkv_proj.weight": torch.randn(48, 16, generator=generator),
        "model.layers.0.input_layernorm.weight": torch.randn(16, generator=generator).bfloat16(),
        "model.position_ids": torch.arange(5),
        "model.mask": torch.ones(4, 4, dtype=torch.bool),
        "model.empty": torch.zeros(0, 3),
    }
    return found


HEADS = {**planted.LLAMA, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 16}


@pytest.fixture
def folders(tmp_path):
    base = planted.write(tmp_path / "base", tensors(0), HEADS)
    return base, planted.write(tmp_path / "tuned", tensors(1), HEADS)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def audited(base: Path, tuned: Path, output: Path, settings=SETTINGS, **runtime) -> Path:
    return run_pair(pair_of(base, tuned), settings, output, Runtime(**runtime)).folder


def rows(report: Path, side: str = "base") -> dict[str, dict]:
    table = pq.read_table(report / "tensors.parquet").to_pylist()
    return {row["tensor"]: row for row in table if row["side"] == side}


def content(report: Path, side: str = "base") -> str | None:
    recorded = json.loads(pq.read_schema(report / "matrices.parquet").metadata[b"shadow"])
    assert json.loads((report / "summary.json").read_text())[side] == recorded[side]
    return recorded[side]["content"]


def test_every_tensor_has_the_checksum_of_its_bytes(folders, tmp_path):
    """By zlib, also of buffers and fused tensors; a side's digest is of names, shapes and sums."""
    report = audited(*folders, tmp_path / "out")
    for side, folder in zip(("base", "tuned"), folders, strict=True):
        stored = load_file(folder / FILE)
        wanted = {
            name: f"{zlib.crc32(raw(tensor)):08x}{zlib.adler32(raw(tensor)):08x}"
            for name, tensor in stored.items()
        }
        assert {name: row["checksum"] for name, row in rows(report, side).items()} == wanted
        lines = [
            json.dumps([name, FORMATS[tensor.dtype], list(tensor.shape), wanted[name]])
            for name, tensor in sorted(stored.items())
        ]
        assert content(report, side) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_content_is_that_of_the_weights_in_any_files(folders, tmp_path):
    """A copy at another time and in three shards has another fingerprint and the same content."""
    base, tuned = folders
    shards = planted.sharded(tmp_path / "shards", load_file(base / FILE), 3)
    shutil.copy(base / "config.json", shards)
    one, other = audited(base, tuned, tmp_path / "one"), audited(shards, tuned, tmp_path / "other")
    assert open_folder(str(base)).fingerprint != open_folder(str(shards)).fingerprint
    assert content(one) == content(other) is not None
    (contrast,) = compare([one, other]).contrasts
    assert (contrast.relation, contrast.verified) == ("the same pair", "content")


def test_what_is_left_out_has_no_checksum_and_the_side_no_content(folders, tmp_path):
    """A filter leaves tensors unread; those that are read have the checksums of a whole audit."""
    chosen = Settings(Method(), Filter(layers=(0,)))
    part = audited(*folders, tmp_path / "part", chosen)
    every = rows(audited(*folders, tmp_path / "whole"))
    found = {name: row["checksum"] for name, row in rows(part).items()}
    read = {name for name in found if name.startswith("model.layers.0.")}
    assert content(part) is None
    assert found == {name: every[name]["checksum"] if name in read else None for name in found}
    assert len(read) == 3


def changed_unseen(folder: Path, copy: Path) -> Path:
    """A copy with another entry where no sample is taken, and the same fingerprint."""
    shutil.copytree(folder, copy)
    file = copy / FILE
    info = open_folder(str(copy)).tensors["model.embed_tokens.weight"]
    with file.open("r+b") as handle:
        handle.seek(info.start + 20_000)
        handle.write(b"\x01\x02\x03\x3f")
    times = (folder / FILE).stat()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_folder(str(copy)).fingerprint == open_folder(str(folder)).fingerprint
    return copy


def other_vectors(folder: Path, copy: Path) -> Path:
    """A copy whose matrices have the spectra of the folder's."""
    stored = load_file(folder / FILE)
    stored["model.layers.0.input_layernorm.weight"] *= 2
    return planted.write(copy, stored, HEADS)


@pytest.mark.parametrize("change", [changed_unseen, other_vectors])
def test_the_bytes_of_two_bases_tell_them_apart(folders, tmp_path, change):
    """Though they have one fingerprint, or the same matrices."""
    base, tuned = folders
    (tmp_path / "changed").mkdir()
    changed = change(base, tmp_path / "changed" / "base")
    one, other = audited(base, tuned, tmp_path / "1"), audited(changed, tuned, tmp_path / "2")
    with pytest.raises(ShadowError, match="different bases"):
        compare([one, other])


def test_what_an_adapter_leaves_alone_is_not_read(tmp_path):
    """The base has no content then: nothing of it was read but what the adapter changes."""
    base = planted.toy(tmp_path / "base", 0, size=16)
    pair = torch.randn(16, 4), torch.randn(4, 16)
    adapter = planted.adapter(tmp_path / "adapter", {planted.UP.format(0): pair})
    report = audited(base, adapter, tmp_path / "out")
    found = {name: row["checksum"] is None for name, row in rows(report).items()}
    assert found == {planted.UP.format(0): False, planted.UP.format(1): True}
    assert content(report) is None
    assert content(report, "tuned")


# files that change while they are audited

SIZE = 64  # of a matrix, so that a file has several pages


@pytest.fixture
def pair(tmp_path):
    """A base and a model tuned from it, and beside them another one of the same layout."""
    planted.toy(tmp_path / "other", 2, size=SIZE)
    return pair_of(
        planted.toy(tmp_path / "base", 0, size=SIZE), planted.toy(tmp_path / "one", 1, size=SIZE)
    )


def replaced(tmp_path):
    """Another file under the same name, as `mv` and most programs that save a file do it."""
    os.replace(tmp_path / "other" / FILE, tmp_path / "one" / FILE)  # noqa: PTH105


def copied_over(tmp_path):
    """`cp -p`: the same inode, size and time of the content."""
    mine = tmp_path / "one" / FILE
    times = mine.stat()
    mine.write_bytes((tmp_path / "other" / FILE).read_bytes())
    os.utime(mine, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(tmp_path):
    os.truncate(tmp_path / "one" / FILE, 4096)


def removed(tmp_path):
    (tmp_path / "one" / FILE).unlink()


CHANGES = [replaced, copied_over, cut, removed]


def changing(monkeypatch, where, name, change):
    """Make a change before the function of that name is called for the second time."""
    calls, before = [], getattr(where, name)

    def changed(*arguments, **more):
        calls.append(name)
        if len(calls) == 2:
            change()
        return before(*arguments, **more)

    monkeypatch.setattr(where, name, changed)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["summed", "measure_pair"])
def test_a_file_that_changes_while_it_is_read_is_refused(pair, tmp_path, monkeypatch, change, when):
    """Between two matrices, and in the middle of one: the fault is told, and no report is left."""
    changing(monkeypatch, delta, when, lambda: change(tmp_path))
    with pytest.raises(ShadowError) as refused:
        run_pair(pair, SETTINGS, tmp_path / "out", Runtime(jobs=1))
    assert refused.value.message.startswith(f"{tmp_path / 'one' / FILE} changed")
    assert "\n" not in refused.value.message
    assert refused.value.hint
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("change", [replaced, removed], ids=lambda change: change.__name__)
def test_a_file_changed_before_the_report_is_placed_is_refused(pair, tmp_path, monkeypatch, change):
    """When all is measured; the next run gives the report of the files as they are then."""
    before = pair_module.write_tables

    def late(*arguments, **more):
        change(tmp_path)
        return before(*arguments, **more)

    monkeypatch.setattr(pair_module, "write_tables", late)
    with pytest.raises(ShadowError, match=FILE):
        run_pair(pair, SETTINGS, tmp_path / "out")
    monkeypatch.setattr(pair_module, "write_tables", before)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    if change is replaced:
        assert run_pair(pair, SETTINGS, tmp_path / "out").measured == 2


def test_a_file_cut_short_under_way_does_not_end_a_list(pair, tmp_path, monkeypatch):
    """The pair fails, and the one after it is audited: no SIGBUS."""
    (tmp_path / "pairs.yaml").write_text(
        "- {base: ./base, tuned: ./one}\n- {base: ./base, tuned: ./other}\n"
    )
    changing(monkeypatch, delta, "summed", lambda: cut(tmp_path))
    selection = select(listed=str(tmp_path / "pairs.yaml"))
    runtime = Runtime(jobs=1)
    audited = audit_pairs(selection.own, SETTINGS, tmp_path / "out", runtime)
    list(with_index(selection, SETTINGS, tmp_path / "out", audited))
    failed, done = read_index(tmp_path / "out").rows
    assert (failed.state, done.state) == ("failed", "done")
    assert FILE in failed.error
    assert len(list((tmp_path / "out").rglob("matrices.parquet"))) == 1


def test_other_weights_of_the_same_time_are_no_report_that_is_there(tmp_path, pair):
    """Names, sizes, times and headers are shared by two folders out of one archive."""
    file = tmp_path / "one" / FILE
    os.utime(file, (1e9, 1e9))
    run_pair(pair, SETTINGS, tmp_path / "out")
    tensors = load_file(file)
    tensors[planted.UP.format(1)][0] *= 2
    save_file(tensors, file)
    os.utime(file, (1e9, 1e9))
    with pytest.raises(KeptError, match="files of tuned"):
        run_pair(pair, SETTINGS, tmp_path / "out")
