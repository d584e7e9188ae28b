"""Audits on a Hub, killed, interrupted or short of disk: what they leave, and how they go on."""

import contextlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from command import Run
from effort import every
from hub import Hub, Status
from hub_pairs import (
    HEADERS,
    PAIR,
    SMALL,
    assert_equal,
    blobs,
    downloads,
    found_below,
    frame,
    incomplete,
    moved,
    recorded,
    until,
)

pytest_plugins = "hub_pairs"


def outcomes(tmp_path: Path) -> int:
    """How many results the journal of the running audit holds."""
    journals = found_below(tmp_path / "out", "journal.jsonl")
    return sum(line.startswith('["') for path in journals for line in path.read_text().splitlines())


def assert_goes_on(done: Run, hub: Hub, tmp_path: Path, wanted: dict[str, pd.DataFrame]) -> None:
    done.assert_done()
    assert_equal(tmp_path / "out", wanted)
    assert incomplete(tmp_path) == []
    assert downloads(hub).most_common(2)[0][1] <= 2
    assert sum(downloads(hub).values()) <= 6, "five shards, and the one that was on its way"


@pytest.mark.slow
@pytest.mark.parametrize("disk", every(2, [("--max-disk", "4.5MB"), ()]), ids=["free", "keep"])
def test_killed_in_a_download(run, start, hub, tmp_path, wanted, disk):
    """The shard that was on its way is fetched again and nothing else; its piece is removed."""
    hub.rate = 3_000_000
    process = start(*PAIR, "-o", "out", *disk)
    until(lambda: outcomes(tmp_path) and incomplete(tmp_path))
    process.kill()
    assert len(incomplete(tmp_path)) == 1
    hub.rate = None
    done = run(*PAIR, "-o", "out", *disk)
    assert_goes_on(done, hub, tmp_path, wanted)
    assert "resuming: " in done.err
    assert bool(blobs(tmp_path)) == (disk == ())


@pytest.mark.slow
def test_clean_after_a_killed_audit(run, start, hub, tmp_path, wanted):
    """`shadow clean` removes what --max-disk had fetched and its pieces, and nothing older."""
    run(*SMALL, "-o", "other").assert_done()
    before = blobs(tmp_path)
    assert len(before) == 2
    hub.rate = 3_000_000
    process = start(*PAIR, "-o", "out", "--max-disk", "9GB")
    until(lambda: outcomes(tmp_path) and incomplete(tmp_path))
    process.kill()
    assert len(blobs(tmp_path)) > 3
    run("clean", "-o", "out").assert_done()
    assert blobs(tmp_path) == before
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("where", ["download", "wait for a header", "plan"])
def test_an_interrupt_ends_at_once(start, hub, tmp_path, where):
    """Ctrl-C in a slow download or in a wait between tries: exit 130 in seconds, and what to do."""
    if where == "download":
        hub.rate = 200_000
        process = start(*PAIR, "-o", "out")
        until(lambda: incomplete(tmp_path))
    else:
        pattern = "*/model-0000*" if where == "wait for a header" else "/api/models/*"
        fault = hub.fail(pattern, Status(429, {"Retry-After": "60"}), times=None)
        process = start(*(PAIR if where != "plan" else ("plan", *PAIR[1:])), "-o", "out")
        until(lambda: fault.fired)
        time.sleep(0.2)
    began = time.monotonic()
    done = process.kill(signal.SIGINT)
    # a loaded machine takes its time; the wait would be a minute
    assert time.monotonic() - began < 20
    assert done.code == 130
    assert "Traceback" not in done.err
    if where != "plan":
        # a small shard may have come whole before, and then there is something to continue
        assert done.err.splitlines()[-1].startswith("stopped")
    assert not list(tmp_path.rglob("*.parquet"))


# Little disk


@contextlib.contextmanager
def sampled(tmp_path: Path) -> Iterator[list[int]]:
    """Notes the bytes of the cache all the time."""
    found, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            found.append(sum(blobs(tmp_path).values()))

    thread = threading.Thread(target=sample)
    thread.start()
    yield found
    done.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "least"), [("4.5MB", 2), ("6.5MB", 2), ("1GB", 3)])
def test_the_cache_stays_within_the_limit(run, hub, tmp_path, wanted, limit, least):
    """At every moment; each shard is still fetched once, and all are gone in the end."""
    hub.rate = 20_000_000
    with sampled(tmp_path) as found:
        run(*PAIR, "-o", "out", "--max-disk", limit).assert_done()
    assert_equal(tmp_path / "out", wanted)
    assert 2_600_000 < max(found) <= float(limit[:-2]) * {"MB": 1e6, "GB": 1e9}[limit[-2:]]
    assert set(downloads(hub).values()) == {1}
    assert not blobs(tmp_path)
    assert frame(tmp_path / "out")["verified"].all()


@pytest.mark.slow
def test_what_was_in_the_cache_before_stays(run, hub, folders, tmp_path, wanted):
    """Shards that were there are used and kept, and do not count against --max-disk."""
    run("audit", "--base", "org/base", "--tuned", folders["tuned"], "-o", "other").assert_done()
    before = blobs(tmp_path)
    assert len(before) == 3
    hub.reset()
    run(*PAIR, "-o", "out", "--max-disk", "2.7MB").assert_done()
    assert_equal(tmp_path / "out", wanted)
    assert set(downloads(hub)) == {f"model-0000{part}-of-00002.safetensors" for part in (1, 2)}
    assert blobs(tmp_path) == before


@pytest.mark.slow
def test_bytes_that_another_commit_has_stay(run, hub, folders, tmp_path):
    """A shard of two commits is one file: freed for one it stays for the other."""
    moved_on = shutil.copytree(folders["small-base"], tmp_path / "moved-on")
    (moved_on / "README.md").write_text("new")
    more = {"next": moved_on, "tuned": folders["small-tuned"]}
    hub.add("org/small-base", folders["small-base"], revisions=more)
    run(*SMALL, "-o", "out").assert_done()
    before = blobs(tmp_path)
    command = ("audit", "--base", "org/small-base@next", "--tuned")
    run(*command, "org/small-base@main", "-o", "out2", "--max-disk", "1GB").assert_done()
    assert blobs(tmp_path) == before
    for tuned in ("next", "main", "tuned"):
        words = (*command, f"org/small-base@{tuned}", "-o", f"out-{tuned}", "--max-disk", "1GB")
        run(*words, HF_HUB_CACHE=tmp_path / "home" / tuned).assert_done()
        status = frame(tmp_path / f"out-{tuned}", "tensors")["status"]
        assert set(status) <= {"identical", "measured"}
    assert blobs(tmp_path) == before


@pytest.mark.slow
def test_a_limit_that_is_too_small_is_refused_with_numbers(run, hub, tmp_path):
    """Before the first byte of a weight, and nothing is left."""
    error = recorded(run(*PAIR, "-o", "out", "--max-disk", "1MB"), "4.5 MB", "1.0 MB")
    hint = re.search(r"hint:  give --max-disk (\S+) or more", error)
    assert hint
    assert set(moved(hub).values()) == {HEADERS}
    assert not (tmp_path / "out").exists()
    plan = run("plan", *PAIR[1:], "--max-disk", "1MB")
    assert plan.code == 1
    assert hint[0] in plan.err
    run("plan", *PAIR[1:], "--max-disk", hint[1]).assert_done()


@contextlib.contextmanager
def tiny_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, which only root can mount."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_little_free_disk_frees_after_use(run, start, hub, tmp_path, wanted):
    """Shards are freed after use; a killed run goes on; where no shard fits, numbers come first."""
    with tiny_disk(tmp_path / "home", "size=5M"):
        hub.rate = 4_000_000
        process = start(*PAIR, "-o", "out")
        until(lambda: outcomes(tmp_path))
        process.kill()
        hub.rate = None
        run(*PAIR, "-o", "out").assert_done()
        assert not blobs(tmp_path)
    assert_equal(tmp_path / "out", wanted)
    hub.reset()
    with tiny_disk(tmp_path / "tiny", "size=4M") as home:
        recorded(run(*PAIR, "-o", "out2", HF_HUB_CACHE=home), "4.5 MB", "4.2 MB")
    assert set(moved(hub).values()) == {HEADERS}


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_error_line(run, start, hub, tmp_path, wanted):
    """Another writer takes the rest of the disk: one line; with space again it goes on."""
    with tiny_disk(tmp_path / "home", "size=12M") as home:
        hub.rate = 2_000_000
        process = start(*PAIR, "-o", "out")
        until(lambda: outcomes(tmp_path) and incomplete(tmp_path))
        with contextlib.suppress(OSError), (home / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(1 << 16))
        done = process.end()
        assert done.code == 1
        words = [line.split()[0] for line in done.err.splitlines()]
        assert words == ["fetching", "error:", "hint:"], done.err
        assert not list(tmp_path.rglob("*.parquet"))
        (home / "filler").unlink()
        hub.rate = None
        assert_goes_on(run(*PAIR, "-o", "out"), hub, tmp_path, wanted)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_is_one_error_line(run, hub, tmp_path, small):
    """A read-only disk, or a file in its place; what a read-only cache holds is used."""
    run(*SMALL, "-o", "out").assert_done()
    (tmp_path / "file").write_text("")
    recorded(run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "file", seconds=5), "HF_HUB_CACHE")
    with tiny_disk(tmp_path / "disk", "size=9M") as cache:
        shutil.copytree(tmp_path / "home" / "hub", cache, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        run(*SMALL, "-o", "out3", HF_HUB_CACHE=cache).assert_done()
        assert_equal(tmp_path / "out3", small)
        recorded(run(*PAIR, "-o", "out4", HF_HUB_CACHE=cache, seconds=5), "HF_HUB_CACHE")
