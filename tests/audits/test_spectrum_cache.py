"""Spectra that were solved before: the same numbers, and nothing that cannot be theirs."""

import os
from dataclasses import replace

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import torch
from measuring import measure
from safetensors.numpy import load, save

from shadow.run.file_cache import DIGEST, digest_of
from shadow.run.runtime import make_room, size_of
from shadow.run.spectrum_cache import SpectrumCache, key, to_bytes
from shadow.spectra.spectrum import Spectrum, SpectrumKey

SHAPE = (300, 320)
BF16 = ("BF16", "BF16")
ASKED = SpectrumKey("BF16", "default", 64)


def stage(seed, before=None):
    """A checkpoint's matrix: noise, or a small change of the one before."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(SHAPE, generator=g)
    return (0.02 * noise if before is None else before.float() + 1e-3 * noise).bfloat16()


def measured(base, tuned, remember=None):
    return measure(base, tuned, remember=remember)


def same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.values == other.values
        assert one.sigma.tobytes() == other.sigma.tobytes()


@pytest.fixture
def kept(tmp_path):
    return SpectrumCache(tmp_path / "spectra")


def test_a_lineage_solves_each_stage_once_and_its_numbers_are_the_same(kept):
    """Of three stages' four sides one is there; a second audit of both pairs solves no side."""
    base = stage(0)
    middle = stage(1, base)
    last = stage(2, middle)
    for pair in ((base, middle), (middle, last)):
        same(measured(*pair, kept.remember), measured(*pair))
    assert (kept.lookups, kept.hits) == (4, 1)
    again = SpectrumCache(kept.folder)
    for pair in ((base, middle), (middle, last)):
        same(measured(*pair, again.remember), measured(*pair))
    assert (again.lookups, again.hits) == (4, 4)


def test_the_key_is_of_the_content_as_it_was_cut_and_of_the_question():
    """Equal views have one key; other rows, a transpose, a dtype, question or shape have others."""
    matrix = stage(0)
    fused = torch.cat([stage(1), matrix])
    assert key(fused[len(matrix) :], ASKED) == key(matrix, ASKED)
    assert key(matrix.T.contiguous().T, ASKED) == key(matrix, ASKED)
    others = [
        key(matrix[:-1], ASKED), key(matrix.T, ASKED), key(matrix.view(torch.float16), ASKED),
        key(matrix.reshape(320, 300), ASKED), key(matrix.view(10, 30, 320), ASKED),
        key(matrix, replace(ASKED, precision="exact")), key(matrix, replace(ASKED, vectors=0)),
        key(matrix, replace(ASKED, stored="F16")),
    ]  # fmt: skip
    assert len({key(matrix, ASKED), *others}) == 1 + len(others)


def resealed(path, change):
    """The bytes of a file whose arrays are changed, with the digest that goes with them."""
    arrays = load(path.read_bytes()[DIGEST:])
    change(arrays)
    content = save(arrays)
    return digest_of(path.parent.name + path.stem, content) + content


SPOILED = {  # the bytes of a file, made from its path; None for a folder in its place
    "cut": lambda path: path.read_bytes()[:-9],
    "empty": lambda path: b"",
    # under the digest of what was there
    "another number": lambda path: (
        path.read_bytes()[:DIGEST]
        + resealed(path, lambda arrays: arrays["numbers"].put(0, np.inf))[DIGEST:]
    ),
    "a folder": None,
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_file_that_cannot_be_the_spectrum_is_solved_anew(fault, kept):
    """Whatever lies there, the numbers are those of the matrix."""
    base, tuned = stage(0), stage(1, stage(0))
    measured(base, tuned, kept.remember)
    for path in kept.folder.glob("*/*.safetensors"):
        if (spoil := SPOILED[fault]) is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(spoil(path))
    again = SpectrumCache(kept.folder)
    same(measured(base, tuned, again.remember), measured(base, tuned))
    assert again.hits == 0


def test_a_spectrum_under_the_key_of_another_is_not_believed(kept):
    """Files of two matrices of one shape and nearly one norm, in each other's place."""
    base = stage(0)
    tuned = (base.float() + 0.01 * stage(1).float()).bfloat16()
    measured(base, tuned, kept.remember)
    first, second = kept.folder.glob("*/*.safetensors")
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    again = SpectrumCache(kept.folder)
    same(measured(base, tuned, again.remember), measured(base, tuned))
    assert (again.lookups, again.hits) == (2, 0)


def test_the_folder_stays_within_its_bound_and_the_least_recently_used_go(tmp_path):
    """Room for about four spectra: of six the last ones are there, and one used meanwhile."""
    one = SpectrumCache(tmp_path / "one")
    measured(stage(0), stage(1), one.remember)
    each = size_of(one.folder) // 2
    kept = SpectrumCache(tmp_path / "kept", bound=4 * each + each // 2)
    for seed in range(0, 6, 2):
        measured(stage(seed), stage(seed + 1), kept.remember)
        assert size_of(kept.folder) <= kept.bound
        for path in kept.folder.glob("*/*.safetensors"):  # older than what comes next
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100))
    again = SpectrumCache(kept.folder, kept.bound)
    measured(stage(4), stage(5), again.remember)
    assert again.hits == 2
    assert make_room(kept.folder, 0) == 0
    assert size_of(kept.folder) == 0


def test_several_processes_share_the_bound(tmp_path):
    """Four that write in turns exceed it by no more than each may write before it looks again."""
    processes = [SpectrumCache(tmp_path, bound=100_000) for _ in range(4)]
    for number in range(120):
        writer = processes[number % 4]
        spectrum = Spectrum(np.ones(300), 300, 300, 1.0, 0.0, "exact")
        writer.store(f"{number:064x}"[::-1], to_bytes(spectrum))
        assert size_of(tmp_path) <= 1.25 * 100_000


def test_where_nothing_can_be_written_spectra_are_solved(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "spectra").write_text("")
    kept = SpectrumCache(tmp_path / "spectra")
    same(measured(stage(0), stage(1), kept.remember), measured(stage(0), stage(1)))
    assert (tmp_path / "spectra").read_text() == ""


def test_commands_of_a_lineage_write_the_same_bytes_and_clean_removes_the_cache(shadow, tmp_path):
    """Two of four spectra are there; `clean` removes only files of spectra."""
    before = [None, None]
    for number, name in enumerate(("base", "middle", "last")):
        before = [stage(2 * number + at, one) for at, one in enumerate(before)]
        planted.write(
            tmp_path / name, {planted.UP.format(at): one for at, one in enumerate(before)}
        )
    cache = tmp_path / "home" / "shadow" / "spectra"
    on = {"env": {"SHADOW_NO_CACHE": "0", "XDG_CACHE_HOME": str(tmp_path / "home")}}
    shadow("audit", "./base", "./middle", "-o", "kept", **on)
    assert "2 of 4 spectra" in shadow("audit", "./middle", "./last", "-o", "kept", **on).err
    shadow("audit", "./middle", "./last", "-o", "plain", env={"SHADOW_NO_CACHE": "1"})
    for name in ("matrices", "spectra", "tensors"):
        first, other = (
            next((tmp_path / top).rglob(f"middle..last*/{name}.parquet"))
            for top in ("kept", "plain")
        )
        assert pq.read_table(first).equals(pq.read_table(other))
    mine = [cache / "mine.txt", cache / "ab" / "model.safetensors"]  # as in a folder of models
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert size_of(cache) > 0
    assert make_room(cache, 0) == 0
    assert [path.read_text() for path in mine] == ["mine", "mine"]
