"""Whole audits of checkpoints on a Hub: equal numbers, counted bytes, resuming, small disks, and
every fault a line.

The Hub is tests/hub.py on this machine; the commands speak to it through the real client, with a
token that only the Hub itself may see.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import cycle
from pathlib import Path

import models
import packing
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rearranging
import torch
from command import Run
from effort import every
from hub import (
    Cut,
    Drop,
    Expire,
    Flip,
    Hub,
    IgnoreRange,
    Loop,
    Redirect,
    Stall,
    Status,
    Truncate,
    WrongRange,
)
from hub_pairs import FEW, INDEX, MODEL, tensors, variables
from runs import pair_of
from safetensors.torch import load_file

from shadow.audits.pair import Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.spectra.delta import Method

pytest_plugins = "hub_pairs"
SHADOW = Path(sys.executable).parent / "shadow"
TABLES = ("matrices", "tensors", "spectra")
# columns that tell where a matrix came from, and nothing of its numbers
WHO = ["family", "pair", "verified"]
HEADERS = 65_536  # bytes asked for to read the header of a shard
HASTE = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
PAIR = ("audit", "--base", "org/base", "--tuned", "org/tuned")
SMALL = ("audit", "--base", "org/small-base", "--tuned", "org/small-tuned")


# Checkpoints, the Hub, and commands


def audited(base: Path, tuned: Path, output: Path) -> dict[str, pd.DataFrame]:
    """The tables of the audit of two folders."""
    pair = pair_of(base, tuned)
    result = run_pair(pair, Settings(Method(), Filter()), output)
    return {name: pd.read_parquet(result.folder / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module")
def wanted(folders, tmp_path_factory):
    return audited(folders["base"], folders["tuned"], tmp_path_factory.mktemp("wanted"))


@pytest.fixture(scope="module")
def small(folders, tmp_path_factory):
    return audited(folders["small-base"], folders["small-tuned"], tmp_path_factory.mktemp("small"))


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def told(done: Run, *words: str) -> str:
    """A refusal in exactly one line and one hint, which hold these words."""
    done.assert_refused()
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"], done.err
    for word in words:
        assert word in done.err
    return done.err


def report(output: Path) -> Path:
    """The only report under a folder."""
    (path,) = output.rglob("matrices.parquet")
    return path.parent


def frame(output: Path, name: str = "matrices") -> pd.DataFrame:
    return pd.read_parquet(report(output) / f"{name}.parquet")


def assert_equal(output: Path, wanted: dict[str, pd.DataFrame]) -> None:
    """The report has the very numbers of the audit of the folders, and nothing unfinished lies
    beside it.
    """
    for name in TABLES:
        found = frame(output, name)
        assert_same(found, wanted[name])
    assert not (report(output) / ".partial").exists()


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    # a filter leaves the whole unknown
    known = [column for column in (*WHO, "energy_share") if column in found]
    pd.testing.assert_frame_equal(
        found.drop(columns=known).reset_index(drop=True),
        wanted.drop(columns=known).reset_index(drop=True),
        check_exact=True,
        check_dtype=False,  # layers are floats to pandas where some row has none
    )


def shard_sizes(*folders: Path) -> Counter[str]:
    """Bytes of every shard by its name in the Hub's log."""
    return Counter(
        {
            f"{f.name}/{path.name}": path.stat().st_size
            for f in folders
            for path in f.glob("*.safetensors")
        }
    )


def moved(hub: Hub) -> Counter[str]:
    """Bytes of every shard that went over the line, by the same names."""
    found: Counter[str] = Counter()
    for request in hub.asked("*.safetensors"):
        found[f"{request.repo.removeprefix('org/')}/{request.filename}"] += request.sent
    return found


def downloads(hub: Hub) -> Counter[str]:
    """How often each shard was asked for as a whole."""
    asked = hub.asked("*.safetensors", origin="cdn", method="GET")
    return Counter(request.filename for request in asked if request.range is None)


def found_below(folder: Path, pattern: str) -> list[Path]:
    """Also while a command makes and removes folders there."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(folder.rglob(pattern))


def blobs(tmp_path: Path) -> dict[Path, int]:
    """The large files in the cache and their sizes, running downloads included."""
    found = {}
    for path in found_below(tmp_path / "home", "blobs/*"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_size
    return {path: size for path, size in found.items() if size > 5000}


# Equal numbers


def test_an_audit_of_the_hub_has_the_numbers_of_the_folders(run, hub, tmp_path, wanted):
    """Every column of every table; the commits are in the metadata, and every row was verified."""
    run(*PAIR, "-o", "out").assert_done()
    assert_equal(tmp_path / "out", wanted)
    metadata = json.loads(
        pq.read_schema(report(tmp_path / "out") / "matrices.parquet").metadata[b"shadow"]
    )
    for side in ("base", "tuned"):
        assert (metadata[side]["repo"], metadata[side]["commit"]) == (
            f"org/{side}",
            hub.commit(f"org/{side}"),
        )
    assert frame(tmp_path / "out")["verified"].tolist() == [True] * len(wanted["matrices"])


def test_a_folder_against_the_hub(run, folders, tmp_path, wanted):
    """A side in a folder is neither verified nor not: null, and so is the delta."""
    run("audit", "--base", folders["base"], "--tuned", "org/tuned", "-o", "out").assert_done()
    assert_equal(tmp_path / "out", wanted)
    found = frame(tmp_path / "out").groupby("subject")["verified"].unique()
    assert {subject: list(values) for subject, values in found.items()} == {
        "base": [None], "tuned": [True], "delta": [None]
    }  # fmt: skip


def test_moved_layers_are_found_on_the_hub_as_in_folders(run, hub, tmp_path):
    """Also where shards are freed at their last use, and where that of the base's last layer, which
    has no partner, is not fetched: its first rows are, twice at most, in ranges.
    """
    weights = rearranging.weights(0, layers=5, width=128)
    base = dict(sorted(weights.items(), key=lambda one: ("layers" in one[0], one[0])))
    sides = {"deep": (base, 6), "shallow": (rearranging.dropped(base, 1), 2)}
    folders = [models.sharded(tmp_path / name, *side) for name, side in sides.items()]
    for folder in folders:
        hub.add(f"org/{folder.name}", folder)
    wanted = audited(*folders, tmp_path / "wanted")
    pair = ("audit", "--base", "org/deep", "--tuned", "org/shallow")
    run(*pair, "-o", "out").assert_done()
    whole = wanted["tensors"]["checksum"]
    fetched = frame(tmp_path / "out", "tensors")["checksum"]
    assert whole.notna().all()
    assert fetched.isna().any()  # of the last layer, a part was read
    assert (fetched.isna() | (fetched == whole)).all()
    wanted["tensors"] = wanted["tensors"].assign(checksum=fetched)
    assert_equal(tmp_path / "out", wanted)
    summary = json.loads((report(tmp_path / "out") / "summary.json").read_text())
    assert summary["finding"]["headline"] == "The base without its layer 1."
    last = "model-00006-of-00006.safetensors"
    assert last not in downloads(hub)
    assert moved(hub)[f"deep/{last}"] < 2 * HEADERS
    run(*pair, "-o", "out2", "--max-disk", "3MB", HF_HUB_CACHE=tmp_path / "other").assert_done()
    assert_equal(tmp_path / "out2", wanted)
    assert not blobs(tmp_path / "other")


# Bytes and requests


def test_every_byte_moves_once(run, hub, folders, tmp_path, wanted):
    """A full audit moves each shard once, besides the first 64 KiB for its header; what is in the
    cache then serves a second audit, and the same command again asks for no weight at all.
    """
    sizes = shard_sizes(folders["base"], folders["tuned"])
    assert "fetching 9.5 MB" in run(*PAIR, "-o", "out").err
    assert moved(hub) == {name: size + HEADERS for name, size in sizes.items()}
    assert set(downloads(hub).values()) == {1}
    for output, says in (
        ("out2", ""),
        ("out", "nothing to measure: the report is already there\n"),
    ):
        hub.reset()
        done = run(*PAIR, "-o", output)
        done.assert_done()
        assert done.err == says
        assert moved(hub) == {}
        assert hub.asked("*.json") == []
        assert len(hub.requests) == 6
        assert_equal(tmp_path / output, wanted)


@pytest.mark.parametrize(
    ("chosen", "rows", "ranges", "most"),
    [
        (("--layer", "0"), "layer == 0", 2, 2.2e6),
        (("--layer", "1"), "layer == 1", 3, 2.2e6),
        (("--module", "attn.q"), "module == 'attn.q'", 7, 2.2e6),
        (("--module", "embed", "--component", "language"), "module == 'embed'", 2, 1.1e6),
    ],
)
def test_a_part_of_the_model_moves_in_ranges(
    run, hub, tmp_path, wanted, chosen, rows, ranges, most
):
    """One layer or one module: neighbours in a request, unverified, rows of the full audit."""
    run(*PAIR, "-o", "out", *chosen).assert_done()
    found = frame(tmp_path / "out")
    assert_same(found, wanted["matrices"].query(rows))
    assert not found["verified"].any()
    assert not downloads(hub)
    asked = hub.asked("*.safetensors", origin="cdn", method="GET")
    assert (
        len([request for request in asked if request.range != f"bytes=0-{HEADERS - 1}"]) == ranges
    )
    assert sum(request.sent for request in asked) <= most + 5 * HEADERS
    assert not blobs(tmp_path)


def test_fetch_decides_how_shards_come(run, hub, folders, tmp_path, wanted):
    """--fetch shards takes whole ones for a single layer; --fetch ranges takes parts for
    everything, unverified.
    """
    run(*PAIR, "-o", "out", "--layer", "0", "--fetch", "shards").assert_done()
    assert_same(frame(tmp_path / "out"), wanted["matrices"].query("layer == 0"))
    assert frame(tmp_path / "out")["verified"].all()
    assert downloads(hub) == {
        "model-00001-of-00003.safetensors": 1,
        "model-00001-of-00002.safetensors": 1,
    }
    hub.reset()
    run(*PAIR, "-o", "out2", "--fetch", "ranges", HF_HUB_CACHE=tmp_path / "other").assert_done()
    assert_equal(tmp_path / "out2", wanted)
    assert not frame(tmp_path / "out2")["verified"].any()
    assert not downloads(hub)
    sizes = shard_sizes(folders["base"], folders["tuned"])
    assert all(found <= sizes[name] + HEADERS for name, found in moved(hub).items())


def test_what_is_in_the_cache_is_not_asked_for_in_ranges(run, hub, tmp_path, wanted):
    """After a full audit one layer moves nothing and is verified; base from a folder needs the
    tuned side only.
    """
    run(*PAIR, "-o", "out").assert_done()
    hub.reset()
    run(*PAIR, "-o", "out2", "--layer", "0").assert_done()
    assert frame(tmp_path / "out2")["verified"].all()
    assert moved(hub) == {}


def test_a_plan_moves_headers_only(run, hub, tmp_path):
    """`plan` asks for the first bytes of the shards, says what would move, and writes nothing but
    the cache.
    """
    done = run("plan", *PAIR[1:], "-o", "out", "--format", "json")
    (plan,) = json.loads(done.assert_done())
    assert set(moved(hub).values()) == {HEADERS}
    assert (plan["bytes_to_move"], plan["shards_to_fetch"], plan["frees"]) == (9_451_120, 5, False)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not blobs(tmp_path)


def test_a_long_header_is_read_by_a_second_request(run, hub, tmp_path):
    """A header beyond 64 KiB is still read, and no more than it."""
    many = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(4, 4) for n in range(1000)}
    for side in ("base", "tuned"):
        hub.add(f"org/{side}", models.write(tmp_path / side, many, models.LLAMA))
    (plan,) = json.loads(run("plan", *PAIR[1:], "--format", "json").assert_done())
    assert plan["matrices"] == 1000
    size = int.from_bytes((tmp_path / "base" / MODEL).read_bytes()[:8], "little") + 8
    assert moved(hub) == {f"{side}/{MODEL}": HEADERS + size for side in ("base", "tuned")}


def test_a_listing_of_several_pages_is_read_to_its_end(run, hub, tmp_path, small):
    """Files beyond the first page are found."""
    hub.page_size = 1
    run(*SMALL, "-o", "out").assert_done()
    assert_equal(tmp_path / "out", small)


def test_the_token_stays_with_the_hub(run, hub, tmp_path):
    """It goes to the Hub, never to where a redirect or the next page of a listing leads (see the
    fixture `hub`).
    """
    run(*SMALL, "-o", "out").assert_done()
    assert all(request.authorized for request in hub.requests if request.origin == "hub")
    hub.page_size = 1
    hub.fail("/evil", Status(404), times=None)
    edit(
        hub,
        "*/tree/*",
        lambda answer: answer.headers.update(Link=f'<{hub.other}/evil>; rel="next"'),
    )
    told(run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "other"))
    assert {request.path for request in hub.requests if request.origin == "other"} == {"/evil"}


UPLOAD = """
import hf_xet, json, sys
with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    files = {path: commit.start_upload_file(path) for path in sys.argv[2:]}
print(json.dumps({path: file.result().xet_info.hash for path, file in files.items()}))
"""


@pytest.mark.slow
def test_a_hub_that_stores_in_xet(run, hub, folders, tmp_path, wanted):
    """Shards that come through hf_xet, as from huggingface.co: equal, verified, without a word on
    stderr, and gone from the disk under --max-disk. Here Xet's own server is a folder.
    """
    pytest.importorskip("hf_xet")
    (tmp_path / "xet").mkdir()
    shards = [path for side in ("base", "tuned") for path in folders[side].glob("*.safetensors")]
    upload = subprocess.run(
        [sys.executable, "-c", UPLOAD, f"local://{tmp_path}/xet", *shards],
        capture_output=True,
        text=True,
        check=True,
    )
    hashes = {
        f"/org/{Path(path).parent.name}/{Path(path).name}": one
        for path, one in json.loads(upload.stdout).items()
    }
    token = {
        "X-Xet-Cas-Url": f"local://{tmp_path}/xet",
        "X-Xet-Access-Token": "x",
        "X-Xet-Token-Expiration": "9" * 10,
    }
    edit(hub, "*/xet-read-token", lambda answer: answer.become(200, token))

    def mark(answer) -> None:
        if answer.about and (found := hashes.get(f"/{answer.repo}/{answer.about.name}")):
            answer.headers.update(
                {"X-Xet-Hash": found, "X-Xet-Refresh-Route": f"{hub.endpoint}/xet-read-token"}
            )

    edit(hub, "*/resolve/*", mark)
    for number, disk in enumerate(((), ("--max-disk", "4.5MB"))):
        hub.reset()
        cache = tmp_path / "home" / str(number)
        done = run(*PAIR, "-o", f"out{number}", *disk, HF_HUB_CACHE=cache)
        done.assert_done()
        assert [line.split()[0] for line in done.err.splitlines()] == ["fetching"], done.err
        assert_equal(tmp_path / f"out{number}", wanted)
        assert frame(tmp_path / f"out{number}")["verified"].all()
        assert not downloads(hub)
        kept = sum(
            path.stat().st_size
            for path in cache.rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        assert (kept > 9_000_000) == (disk == ())
        assert kept > 9_000_000 or kept < 10_000
    # repositories share the files of this cache, which lie beside them
    (shared,) = {
        path.resolve()
        for path in (tmp_path / "home" / "0").rglob("model-00002-of-00002.safetensors")
    }
    assert shared.parents[1] == tmp_path / "home" / "0" / "blobs"
    content = bytearray(shared.read_bytes())
    content[70_000] ^= 1
    shared.chmod(0o644)
    shared.write_bytes(content)
    done = run(*PAIR, "-o", "out2", "--max-disk", "1GB", HF_HUB_CACHE=tmp_path / "home" / "0")
    assert (
        "the cached model-00002-of-00002.safetensors is damaged; downloading it again" in done.err
    )
    assert_equal(tmp_path / "out2", wanted)
    assert len(blobs(tmp_path)) == 5


# What an interrupted audit leaves, and how it goes on


def outcomes(tmp_path: Path) -> int:
    """How many results the journal of the running audit holds."""
    journals = found_below(tmp_path / "out", "journal.jsonl")
    return sum(
        line.startswith('{"key"') for path in journals for line in path.read_text().splitlines()
    )


def incomplete(tmp_path: Path) -> list[Path]:
    return found_below(tmp_path / "home", "*.incomplete")


def assert_goes_on(done: Run, hub: Hub, tmp_path: Path, wanted: dict[str, pd.DataFrame]) -> None:
    done.assert_done()
    assert_equal(tmp_path / "out", wanted)
    assert incomplete(tmp_path) == []
    assert downloads(hub).most_common(2)[0][1] <= 2
    assert sum(downloads(hub).values()) <= 6, "five shards, and the one that was on its way"


@pytest.mark.parametrize(
    "disk", every(2, [("--max-disk", "4.5MB"), ()]), ids=["freeing", "keeping"]
)
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
def test_killed_in_the_first_download(hub, tmp_path, wanted):
    """Before any measurement: the same command begins again and removes the piece."""
    hub.rate = 1_000_000
    env = os.environ | variables(hub.endpoint, tmp_path / "home")
    with subprocess.Popen(
        [SHADOW, *PAIR, "-o", "out"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    ) as process:
        # that of a shard
        until(lambda: [path for path in incomplete(tmp_path) if len(path.name) > 64])
        process.kill()
    hub.rate = None
    done = subprocess.run(
        [SHADOW, *PAIR, "-o", "out"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert_goes_on(Run(done.returncode, done.stdout, done.stderr), hub, tmp_path, wanted)


@pytest.mark.slow
def test_killed_while_computing(run, start, hub, tmp_path):
    """What --max-disk fetched serves the next run, then goes; numbers are of a whole audit."""
    command = (*PAIR, "--nulls", "12", "--jobs", "1")
    run(*command, "-o", "whole", HF_HUB_CACHE=tmp_path / "other").assert_done()
    hub.reset()
    for count in (3, 9):
        process = start(*command, "-o", "out", "--max-disk", "9GB")
        until(lambda count=count: outcomes(tmp_path) >= count)
        process.kill()
    done = run(*command, "-o", "out", "--max-disk", "9GB")
    assert_goes_on(done, hub, tmp_path, {name: frame(tmp_path / "whole", name) for name in TABLES})
    assert not blobs(tmp_path)


@pytest.mark.slow
def test_clean_after_a_killed_audit(run, start, hub, tmp_path, wanted):
    """`shadow clean` removes what --max-disk had fetched and its pieces, and nothing older."""
    run(
        "audit", "--base", "org/small-base", "--tuned", "org/small-tuned", "-o", "other"
    ).assert_done()
    before = blobs(tmp_path)
    assert len(before) == 2
    hub.rate = 3_000_000
    process = start(*PAIR, "-o", "out", "--max-disk", "9GB")
    until(lambda: outcomes(tmp_path) and incomplete(tmp_path))
    process.kill()
    assert len(blobs(tmp_path)) > 3
    done = run("clean", "-o", "out")
    done.assert_done()
    assert "removed the unfinished work of 1 audit\n" in done.err
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
        # nothing is kept of the first shard, so there is nothing to continue
        assert done.err.splitlines()[-1] == "stopped"
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
        done = run(*PAIR, "-o", "out", "--max-disk", limit)
    assert_equal(tmp_path / "out", wanted)
    assert "freed after use: at most" in done.err
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
    assert set(downloads(hub)) == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert blobs(tmp_path) == before


@pytest.mark.slow
def test_bytes_that_another_commit_has_stay(run, hub, folders, tmp_path):
    """A shard of two commits is one file: freed for one it stays for the other."""
    moved_on = shutil.copytree(folders["small-base"], tmp_path / "moved-on")
    (moved_on / "README.md").write_text("new")
    hub.add(
        "org/small-base",
        folders["small-base"],
        revisions={"next": moved_on, "tuned": folders["small-tuned"]},
    )
    run(*SMALL, "-o", "out").assert_done()
    before = blobs(tmp_path)
    command = ("audit", "--base", "org/small-base@next", "--tuned")
    run(*command, "org/small-base@main", "-o", "out2", "--max-disk", "1GB").assert_done()
    assert blobs(tmp_path) == before
    for number, tuned in enumerate(("next", "main", "tuned")):
        cache = {"HF_HUB_CACHE": tmp_path / "home" / str(number)}
        run(
            *command,
            f"org/small-base@{tuned}",
            "-o",
            f"out{number + 3}",
            "--max-disk",
            "1GB",
            **cache,
        ).assert_done()
        assert (
            frame(tmp_path / f"out{number + 3}", "tensors")["status"]
            .isin(["identical", "measured"])
            .all()
        )
    assert blobs(tmp_path) == before


@pytest.mark.slow
def test_clean_leaves_bytes_that_another_commit_came_to_have(
    run, start, hub, folders, tmp_path, small
):
    """What a killed audit fetched stays where another has used the same bytes since."""
    moved_on = shutil.copytree(folders["small-base"], tmp_path / "moved-on")
    (moved_on / "README.md").write_text("new")
    hub.add("org/small-base", folders["small-base"], revisions={"next": moved_on})
    fault = hub.fail(action=Stall(60, None), **PLACES["file"])
    process = start(
        "audit", "--base", "org/small-base@next", *SMALL[3:], "-o", "out", "--max-disk", "1GB"
    )
    until(lambda: fault.fired)
    process.kill()
    before = blobs(tmp_path)
    assert len(before) == 1
    run(
        "audit", "--base", "org/small-base", "--tuned", folders["small-tuned"], "-o", "out2"
    ).assert_done()
    run("clean", "-o", "out").assert_done()
    assert blobs(tmp_path) == before
    hub.reset()
    run(
        "audit", "--base", "org/small-base", "--tuned", folders["small-tuned"], "-o", "out3"
    ).assert_done()
    assert_equal(tmp_path / "out3", small)
    assert not moved(hub)


def test_a_limit_that_is_too_small_is_refused_with_numbers(run, hub, tmp_path):
    """Before the first byte of a weight, and nothing is left."""
    error = told(run(*PAIR, "-o", "out", "--max-disk", "1MB"), "4.5 MB", "--max-disk allows 1.0 MB")
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
        done = run(*PAIR, "-o", "out")
        done.assert_done()
        assert "freed after use: at most" in done.err
        assert "are free)" in done.err
        assert not blobs(tmp_path)
    assert_equal(tmp_path / "out", wanted)
    hub.reset()
    with tiny_disk(tmp_path / "tiny", "size=4M") as home:
        told(
            run(*PAIR, "-o", "out2", HF_HUB_CACHE=home),
            "4.5 MB of disk are needed at",
            "4.2 MB are free",
        )
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
        lines = done.err.splitlines()
        assert done.code == 1
        assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], done.err
        assert len(lines) == 3, done.err
        assert "is full" in lines[1]
        assert "free some space" in lines[2]
        assert not list(tmp_path.rglob("*.parquet"))
        (home / "filler").unlink()
        hub.rate = None
        assert_goes_on(run(*PAIR, "-o", "out"), hub, tmp_path, wanted)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_is_one_error_line(run, hub, tmp_path, small):
    """A read-only disk, or a file in its place; what a read-only cache holds is used."""
    run(*SMALL, "-o", "out").assert_done()
    (tmp_path / "file").write_text("")
    told(
        run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "file", seconds=5),
        "cannot write to",
        "HF_HUB_CACHE",
    )
    with tiny_disk(tmp_path / "disk", "size=9M") as cache:
        shutil.copytree(tmp_path / "home" / "hub", cache, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        run(*SMALL, "-o", "out3", HF_HUB_CACHE=cache).assert_done()
        assert_equal(tmp_path / "out3", small)
        told(
            run(*PAIR, "-o", "out4", HF_HUB_CACHE=cache, seconds=5),
            "cannot write to",
            "Read-only",
            "HF_HUB_CACHE",
        )


# Names, revisions, rights


def test_branches_tags_and_commits(run, hub, folders, tmp_path, small):
    """A revision may be any of them; what is read is the commit."""
    base = folders["small-base"]
    commit = hub.add("org/model", base, revisions={"v1": folders["small-tuned"], "feature/x": base})
    tag = hub.commit("org/model", "v1")
    for number, (revision, found) in enumerate({"v1": tag, tag: tag, "feature/x": commit}.items()):
        output = tmp_path / f"out{number}"
        run(
            "audit", "--base", "org/small-base", "--tuned", f"org/model@{revision}", "-o", output
        ).assert_done()
        metadata = json.loads(
            pq.read_schema(report(output) / "matrices.parquet").metadata[b"shadow"]
        )
        assert metadata["tuned"]["commit"] == found
    assert_equal(tmp_path / "out0", small)
    assert_equal(tmp_path / "out1", small)


def test_a_new_commit_is_measured_when_that_is_asked_for(run, hub, folders, tmp_path, small):
    """A branch that moved on is another checkpoint: the report stays, unless --overwrite."""
    first = hub.add("org/model", folders["small-base"])
    command = ("audit", "--base", "org/small-base", "--tuned", "org/model", "-o", "out")
    run(*command).assert_done()
    second = hub.add("org/model", folders["small-tuned"])
    differs = f"the finished report there differs: commit of tuned {first[:12]}, now {second[:12]}"
    assert run(*command).assert_refused().endswith(differs)
    assert "measuring again" in run(*command, "--overwrite").err
    assert_equal(tmp_path / "out", small)


def test_a_renamed_repository_is_found(run, hub, tmp_path, small):
    """The Hub redirects the old name, for the API, for whole files and for ranges."""
    hub.renamed |= {"old/base": "org/small-base", "old/tuned": "org/small-tuned"}
    run("audit", "--base", "old/base", "--tuned", "old/tuned", "-o", "out").assert_done()
    assert_equal(tmp_path / "out", small)
    run("audit", "--base", "old/base", "--tuned", "old/tuned", "-o", "out2", "--fetch", "ranges",
        HF_HUB_CACHE=tmp_path / "other").assert_done()  # fmt: skip
    assert_equal(tmp_path / "out2", small)


def test_a_checkpoint_in_a_subfolder(run, hub, folders, tmp_path, small):
    """A registry may name a folder of a repository; what lies elsewhere in it is not looked at."""
    both = tmp_path / "both"
    for name in ("small-base", "small-tuned"):
        shutil.copytree(folders[name], both / "deep" / name)
    (both / MODEL).write_text("no weights")
    hub.add("org/both", both)
    (tmp_path / "r.yaml").write_text(
        "fam:\n  base: {repo: org/both, subfolder: deep/small-base}\n"
        "  x: {repo: org/both, subfolder: deep/small-tuned/}\n"
    )
    run("audit", "fam", "--registry", ".", "-o", "out").assert_done()
    assert_equal(tmp_path / "out", small)


@pytest.mark.slow
def test_refusals_say_how_to_get_access(run, hub, folders):
    """Gated with a token and without, private, missing, no such revision: each a line and hint."""
    hub.add("org/gated", folders["small-tuned"], gated=True)
    hub.add("org/private", folders["small-tuned"], private=True)

    def refused(tuned: str, *words: str, **more: str) -> None:
        told(run(*SMALL[:-1], tuned, "-o", "out", **more), *words)

    address = f"{hub.endpoint}/org/gated"
    no_token = "no token is in use: `hf auth login`, or HF_TOKEN"
    refused("org/gated", "org/gated is gated", address, no_token, HF_TOKEN="")
    refused("org/gated", "org/gated is gated", address, "the token of HF_TOKEN is in use")
    for name in ("org/private", "org/none"):
        refused(name, f"{name} is not on the Hub, or it is private", no_token, HF_TOKEN="")
        refused(
            name, f"{name} is not on the Hub, or it is private", "the token of HF_TOKEN is in use"
        )
    refused("org/small-tuned@none", "has no revision 'none'", "org/small-tuned/tree/main")
    refused(f"org/small-tuned@{'0' * 40}", "has no revision")
    refused(
        "org/small-tuned",
        "requires a valid login (401)",
        "the token of HF_TOKEN is in use",
        HF_TOKEN="hf_wrong",
    )
    hub.granted |= {"org/gated", "org/private"}
    for name in ("org/gated", "org/private"):
        run(*SMALL[:-1], name, "-o", "out").assert_done()


@pytest.mark.parametrize(
    "token", ["hf_with blank", "hf_new\nline\x7f", "hf_ünïcode", "Bearer hf_x"]
)
def test_a_token_that_cannot_be_one_is_one_error_line(run, hub, token):
    """Spaces, control characters, letters beyond ASCII: which token it is, never the token."""
    done = run(*SMALL, "-o", "out", HF_TOKEN=token, seconds=5)
    error = told(done, "the token of HF_TOKEN")
    assert not [part for part in token.split() if part in error]
    assert not hub.requests or "401" in error


def test_a_repository_without_weights_says_what_there_is(run, hub, tmp_path):
    """No safetensors: what is there instead."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "weights.npz").write_text("")
    hub.add("org/empty", tmp_path / "empty")
    told(
        run(*SMALL[:-1], "org/empty", "-o", "out"), "org/empty: no safetensors files", "weights.npz"
    )


@pytest.mark.slow
@pytest.mark.parametrize("disk", [(), ("--max-disk", "1MB")], ids=["keeping", "freeing"])
def test_bin_files_need_the_flag(run, hub, folders, tmp_path, small, disk):
    """The refusal names --allow-pickle; with it the numbers are those of the safetensors."""
    folder = tmp_path / "bin"
    folder.mkdir()
    torch.save(tensors(FEW, 1), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    hub.add("org/bin", folder)
    command = (*SMALL[:-1], "org/bin", "-o", "out", *disk)
    told(run(*command), "org/bin: only torch .bin files", "--allow-pickle")
    run(*command, "--allow-pickle").assert_done()
    for name in ("matrices", "spectra"):
        assert_same(frame(tmp_path / "out", name), small[name])
    assert frame(tmp_path / "out")["verified"].all()
    assert len(blobs(tmp_path)) == (2 if disk == () else 0)


# Offline


@pytest.mark.slow
def test_offline_uses_the_cache_alone(run, hub, tmp_path, small):
    """With nothing or a part of a pair: what is missing is said; with all, no request is made."""
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):
        command = (*SMALL, "-o", "out", *(() if offline else ("--offline",)))
        told(
            run(*command, **offline),
            "org/small-base is not in the cache, and this run is offline",
            "--offline",
        )
    assert not hub.requests
    # the configs are there then, and no weights
    told(run(*SMALL, "-o", "out", "--max-disk", "1kB"), "--max-disk")
    hub.reset()
    told(
        run(*SMALL, "-o", "out", "--offline"),
        "org/small-base",
        "cache",
        "run once without --offline",
    )
    run(*SMALL, "-o", "out").assert_done()
    hub.reset()
    for number, offline in enumerate(({"HF_HUB_OFFLINE": "1"}, {})):
        command = (*SMALL, "-o", f"out{number}", *(() if offline else ("--offline",)))
        run(*command, **offline).assert_done()
        assert_equal(tmp_path / f"out{number}", small)
        assert frame(tmp_path / f"out{number}")["verified"].all()
    assert "nothing to measure" in run(*SMALL, "-o", "out", "--offline").err
    assert not hub.requests


@pytest.mark.slow
def test_offline_with_some_of_the_shards(run, hub, tmp_path, wanted):
    """Missing shards are named; a part of the model that the cache has is measured."""
    chosen = ("--layer", "0", "--fetch", "shards")
    run(*PAIR, "-o", "out", *chosen).assert_done()
    hub.reset()
    told(
        run(*PAIR, "-o", "out2", "--offline"),
        "2 of 3 shards are not in the cache",
        "model-00002-of-00003",
        "--offline",
    )
    assert not hub.requests


# What a server or a line does


def found_by(run, tmp_path, small, *options, out="out", **more) -> Run:
    """The small pair is audited all the same, with the right numbers."""
    done = run(*SMALL, "-o", out, *options, **more)
    done.assert_done()
    assert_equal(tmp_path / out, small)
    return done


AT_ONCE = {"Retry-After": "0"}
PLACES = {
    "model info": {"pattern": "/api/models/org/small-tuned"},
    "listing": {"pattern": "/api/models/org/small-tuned/tree/*"},
    "config": {"pattern": "org/small-tuned/config.json"},
    "metadata of a file": {"pattern": f"org/small-tuned/{MODEL}", "method": "HEAD"},
    "header": {"pattern": f"org/small-tuned/{MODEL}", "origin": "cdn"},
    "file": {"pattern": f"org/small-tuned/{MODEL}", "origin": "cdn", "skip": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "actions",
    [
        (Status(500, AT_ONCE), Status(503, AT_ONCE)),
        (Status(429, {"Retry-After": "1"}),),
        (Drop(), Drop(reset=True)),
    ],
    ids=["5xx", "429", "drop"],
)
def test_a_fault_at_every_request_once_does_not_matter(run, hub, tmp_path, small, actions):
    """Each kind of request fails once: it is tried again."""
    faults = [
        hub.fail(action=action, **place) for place, action in zip(PLACES.values(), cycle(actions))
    ]
    done = found_by(run, tmp_path, small)
    assert all(fault.fired == 1 for fault in faults)
    assert "damaged" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("place", [place for place in PLACES if place != "config"])
def test_a_server_that_stops_answering_is_tried_again(run, hub, tmp_path, small, place):
    """No answer, or none of its body, within the time that HF_HUB_DOWNLOAD_TIMEOUT allows."""
    fault = hub.fail(action=Stall(60, None), **PLACES[place])
    found_by(run, tmp_path, small, **HASTE)
    assert fault.fired


@pytest.mark.slow
@pytest.mark.parametrize(
    "action", [Cut(5000), Cut(5000, reset=True), Stall(60, 5000), Expire()], ids=str
)
def test_a_body_that_ends_early_is_fetched_on(run, hub, tmp_path, small, action):
    """A header, a file, a range: cut in order or by a reset, stalled, or expired."""
    faults = [hub.fail(action=action, **PLACES[place]) for place in ("header", "file")]
    found_by(run, tmp_path, small, **HASTE)
    hub.faults.clear()
    faults.append(hub.fail(action=action, **PLACES["file"]))
    found_by(
        run,
        tmp_path,
        small,
        "--fetch",
        "ranges",
        out="out2",
        HF_HUB_CACHE=tmp_path / "other",
        **HASTE,
    )
    assert all(fault.fired == 1 for fault in faults)
    assert not incomplete(tmp_path)


@pytest.mark.slow
def test_a_line_that_always_breaks_still_gets_there(run, hub, tmp_path, wanted):
    """Ranges go on where the line broke: tries count from the last byte that came."""
    fault = hub.fail("org/tuned/*", Cut(70_000), origin="cdn", skip=2, times=None)
    run(*PAIR, "-o", "out", "--module", "embed").assert_done()
    assert_same(frame(tmp_path / "out"), wanted["matrices"].query("module == 'embed'"))
    assert fault.fired == 8


@pytest.mark.parametrize("place", every(3, PLACES))
def test_a_long_ban_ends_at_once_with_the_number(run, hub, place):
    """Nobody waits for hours: the number is in the hint, whichever of two headers tells it."""
    limit = {
        "RateLimit": '"api";r=0;t=9999',
        "RateLimit-Policy": '"api";q=500;w=300',
        "Retry-After": "1",
    }
    headers = limit if place == "model info" else {"Retry-After": "9999"}
    hub.fail(action=Status(429, headers), times=None, **PLACES[place])
    begun = time.monotonic()
    done = run(*SMALL, "-o", "out", seconds=20)
    assert time.monotonic() - begun < 40
    assert said(done, "too many requests to the Hub (429)", "wait 9999 s")


def said(done: Run, *words: str) -> bool:
    """A refusal in one line and one hint, after talk such as `fetching 1 MB`."""
    talk = [
        line
        for line in done.err.splitlines(keepends=True)
        if not line.startswith(("error:", "hint:"))
    ]
    told(
        Run(
            done.code,
            done.out,
            "".join(line for line in done.err.splitlines(keepends=True) if line not in talk),
        ),
        *words,
    )
    return all(line.startswith(("fetching ", "the Hub ", "org/")) for line in talk)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_endless_faults_are_given_up(run, hub, tmp_path, place):
    """After six tries: exit 1, one line that names the fault, how to go on, no report."""
    fault = hub.fail(action=Status(503, AT_ONCE), times=None, **PLACES[place])
    assert said(
        run(*SMALL, "-o", "out"), "answers 503, also after 6 tries", "run the same command again"
    )
    assert fault.fired in (6, 12)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
def test_what_stays_broken_without_a_word_is_given_up(run, hub, tmp_path):
    """A shard always cut short after six tries (20 s); a Hub that nobody answers for sooner."""
    hub.fail(f"org/small-tuned/{MODEL}", Truncate(20_000), origin="cdn", skip=1, times=None)
    assert said(run(*SMALL, "-o", "out"), "arrived incomplete, also after 6 tries")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = run(*SMALL, "-o", "out2", endpoint=nobody)
        told(done, f"{nobody} cannot be reached", "connection and HF_ENDPOINT", "--offline")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("file", every(2, [MODEL, "config.json"]))
def test_a_flipped_byte_is_fetched_again(run, hub, tmp_path, small, file):
    """Once: it is told, the numbers are right. Always: refused, and nothing stays in the cache."""
    fault = hub.fail(
        f"org/small-tuned/{file}", Flip(20 if file == "config.json" else 15_000), skip=file == MODEL
    )
    done = found_by(run, tmp_path, small)
    assert f"org/small-tuned: {file} arrived damaged; downloading it again" in done.err
    assert fault.fired == 1
    hub.reset()
    fault = hub.fail(
        f"org/small-tuned/{file}",
        Flip(20 if file == "config.json" else 15_000),
        skip=file == MODEL,
        times=None,
    )
    done = run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "other")
    assert said(done, f"{file} does not match its checksum")
    assert not list((tmp_path / "out2").rglob("*.parquet"))
    assert not list((tmp_path / "other").rglob(f"models--org--small-tuned/snapshots/*/{file}"))
    assert fault.fired == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "disk"),
    [(15_000, ()), (30, ()), (3, ()), (None, ()), (15_000, ("--max-disk", "30kB"))],
    ids=["data", "header", "length", "cut", "freeing"],
)
def test_a_damaged_cache_is_mended(run, hub, tmp_path, small, position, disk):
    """A flipped byte in a shard in the cache, also in its header, or a shard that was cut there: it
    is fetched again, which is said; offline it is refused. Where it was the header, the next
    command has the right one.
    """
    found_by(run, tmp_path, small)
    (blob,) = (
        path.resolve() for path in (tmp_path / "home").rglob(f"models--org--small-tuned/**/{MODEL}")
    )
    content = bytearray(blob.read_bytes())
    if position is None:
        content = content[:20_000]
    else:
        content[position] ^= 0x01
    blob.write_bytes(content)
    told(run(*SMALL, "-o", "out2", "--offline"), "small-tuned" if position == 15_000 else MODEL)
    done = run(*SMALL, "-o", "out3", *disk)
    assert f"org/small-tuned: the cached {MODEL} is damaged; downloading it again" in done.err
    if position == 30:
        assert said(done, "another header than was read before", "run the same command again")
        done = run(*SMALL, "-o", "out3", *disk)
    done.assert_done()
    assert_equal(tmp_path / "out3", small)
    assert len(blobs(tmp_path)) == 2


@pytest.mark.slow
def test_a_server_that_ignores_ranges(run, hub, tmp_path, wanted):
    """A full audit works; one layer takes whole shards; --fetch ranges is refused."""
    hub.fail("*", IgnoreRange(), times=None)
    run(*PAIR, "-o", "out").assert_done()
    assert_equal(tmp_path / "out", wanted)
    run(*PAIR, "-o", "out2", "--layer", "0", HF_HUB_CACHE=tmp_path / "other").assert_done()
    assert_same(frame(tmp_path / "out2"), wanted["matrices"].query("layer == 0"))
    assert frame(tmp_path / "out2")["verified"].all()
    done = run(*PAIR, "-o", "out3", "--fetch", "ranges", HF_HUB_CACHE=tmp_path / "third")
    told(done, "its files cannot be read in parts", "--fetch shards")


@pytest.mark.parametrize("whole", [False, True])
def test_a_quantised_model_of_the_hub(run, hub, tmp_path, whole):
    """The shape of a matrix in 4 bits is read from a small tensor: its bytes alone, or the file of
    a server that ignores ranges.
    """
    base = models.saved("llama", tmp_path / "base", 0)
    packed, _, said = packing.quantised("nf4", load_file(base / MODEL))
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": said}
    hub.add("org/nf4", models.write(tmp_path / "nf4", packed, config))
    if whole:
        hub.fail("*", IgnoreRange(), times=None)
    run("audit", base, "org/nf4", "-o", "out").assert_done()
    tuned = frame(tmp_path / "out", "tensors").query("side == 'tuned'").set_index("tensor")
    matrices = tuned[tuned.index.str.contains("proj")]
    assert set(matrices["dtype"]) == {"NF4"}
    assert set(matrices["status"]) == {"measured"}


def test_a_server_that_sends_other_ranges(run, hub, tmp_path, small):
    """A full audit works; where a range is needed it is refused rather than measured."""
    fault = hub.fail("*", WrongRange(), times=None)
    found_by(run, tmp_path, small)
    assert fault.fired
    fault.skip = 2  # the headers are right
    done = run(*SMALL, "-o", "out2", "--module", "mlp.up", HF_HUB_CACHE=tmp_path / "other")
    assert said(done, "the server sent another range than requested", "--fetch shards")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "action"),
    [("model info", Loop())]
    + [
        (place, action)
        for place in ("config", "metadata of a file", "header", "file")
        for action in (Loop(), Redirect("ftp://127.0.0.1/x"), Redirect("file:///etc/passwd"))
    ],
    ids=str,
)
def test_redirects_that_lead_nowhere(run, hub, place, action):
    """In a circle, or to what is not a web address: one line, at once."""
    where = {**PLACES[place], "origin": None}
    hub.fail(action=action, times=None, **where)
    began = time.monotonic()
    done = run(*SMALL, "-o", "out", seconds=20)
    assert said(done)
    assert "redirected" in done.err
    assert time.monotonic() - began < 40


# Hostile answers


def edit(hub: Hub, pattern: str, change: Callable) -> None:
    """Changes every answer to a path that matches."""
    answer = hub.answer

    def changed(origin, target, headers, form):
        found = answer(origin, target, headers, form)
        if fnmatchcase(target.partition("?")[0], pattern):
            change(found)
        return found

    hub.answer = changed


HTML = b"<!doctype html><title>Welcome</title>"
NESTED = b"[" * 100_000
INFO, TREE = "/api/models/org/small-tuned", "/api/models/org/small-tuned/tree/*"


def entry(**more) -> bytes:
    """A listing with one file."""
    lfs = {"oid": "0" * 64, "size": 30_000, "pointerSize": 1}
    return json.dumps(
        [{"type": "file", "oid": "0" * 40, "size": 30_000, "path": MODEL, "lfs": lfs, **more}]
    ).encode()


ANSWERS = {
    "info is HTML": (INFO, HTML),
    "info is a list": (INFO, b"[1]"),
    "info is empty": (INFO, b""),
    "info is nested": (INFO, NESTED),
    "info is no UTF-8": (INFO, b'{"id": "\xff"}'),
    "commit is a number": (INFO, b'{"id": "x", "sha": 5}'),
    "commit is a path": (INFO, b'{"id": "x", "sha": "../../../../etc"}'),
    "commit is missing": (INFO, b'{"id": "x"}'),
    "listing is HTML": (TREE, HTML),
    "listing is nested": (TREE, NESTED),
    "listing is an object": (TREE, b'{"a": 1}'),
    "listing of numbers": (TREE, b"[1]"),
    "listing of nothing": (TREE, b"[]"),
    "size is text": (TREE, entry(lfs=None, size="5")),
    "size is negative": (TREE, entry(lfs=None, size=-5)),
    "size is negative in LFS": (TREE, entry(lfs={"oid": "0" * 64, "size": -5, "pointerSize": 1})),
    "size is huge": (TREE, entry(lfs=None, size=2**70)),
    "size is nought": (TREE, entry(lfs=None, size=0)),
    "path is a number": (TREE, entry(path=5)),
    "path is a list": (TREE, entry(path=[MODEL])),
    "path is missing": (TREE, b'[{"type": "file", "oid": "0", "size": 5}]'),
    "path is not printable": (TREE, entry(path="\x1b[31m.safetensors")),
    "path is half a letter": (TREE, entry(path="\ud800.safetensors")),
    "path goes up": (TREE, entry(path="../../x.safetensors")),
    "path is absolute": (TREE, entry(path="/etc/x.safetensors")),
    "path is dots": (TREE, entry(path="..safetensors")),
    "LFS is a list": (TREE, entry(lfs=[1])),
}


@pytest.mark.parametrize("case", every(5, ANSWERS))
def test_a_hostile_answer_is_one_error_line(run, hub, tmp_path, case):
    """Exit 1, a line and a hint, at once, and nothing outside the cache."""
    pattern, body = ANSWERS[case]
    edit(hub, pattern, lambda answer: answer.become(200, {"Content-Type": "text/html"}, body))
    done = run(*SMALL, "-o", "out", seconds=10)
    told(done)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["hub"]
    assert "Welcome" not in done.err


@pytest.mark.parametrize("checksum", every(4, ["x" * 64, "abc", 5, None]))
def test_an_unusable_checksum_is_none(run, hub, tmp_path, small, checksum):
    """A file whose checksum is no checksum is read, and its rows say that nothing was verified."""

    def spoil(answer) -> None:
        listed = json.loads(answer.body)
        for one in listed:
            if one["path"] == MODEL:
                one["lfs"]["oid"] = checksum
        answer.body = json.dumps(listed).encode()

    edit(hub, TREE, spoil)
    found_by(run, tmp_path, small)
    verified = frame(tmp_path / "out").groupby("subject")["verified"].unique()
    assert {subject: list(values) for subject, values in verified.items()} == {
        "base": [True], "tuned": [False], "delta": [False]
    }  # fmt: skip


INDEXES = {
    "goes up": ({"a": "../../x.safetensors"}, "leaves the folder"),
    "absolute": ({"a": "/etc/x.safetensors"}, "leaves the folder"),
    "not there": ({"a": "x.safetensors"}, "1 of 1 shards are not in the repository"),
    "escape": ({"a": "\x1b[2J.safetensors"}, "no file name"),
    "no map": ([], "no weight_map"),
    "a pickle": ({"a": "x.bin"}, "not a .safetensors file"),
}


@pytest.mark.parametrize("case", every(3, INDEXES))
def test_a_hostile_index_is_one_error_line(run, hub, folders, tmp_path, case):
    """Shards that lie outside, that are not there, that are something else."""
    weight_map, words = INDEXES[case]
    hostile = shutil.copytree(folders["small-tuned"], tmp_path / "hostile")
    (hostile / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    hub.add("org/hostile", hostile)
    told(
        run(*SMALL[:-1], "org/hostile", "-o", "out"),
        "error: org/hostile: ",
        words,
        "tell its owner",
    )
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_no_hub(run, hub, tmp_path):
    """A web page, an address without a scheme, nonsense: what is wrong with HF_ENDPOINT."""
    edit(hub, "*", lambda answer: answer.become(200, {"Content-Type": "text/html"}, HTML))
    told(
        run(*SMALL, "-o", "out", seconds=10),
        "does not answer like a Hub",
        "check that HF_ENDPOINT is a Hub",
    )
    for endpoint in ("127.0.0.1:9", "ftp://127.0.0.1", "http://[", "http://a b"):
        told(run(*SMALL, "-o", "out", HF_ENDPOINT=endpoint, seconds=10), "HF_ENDPOINT")
    told(run(*SMALL, "-o", "out", HF_HUB_ETAG_TIMEOUT="soon"), "HF_HUB_ETAG_TIMEOUT")


def test_a_shard_that_is_no_safetensors_file(run, hub, folders, tmp_path):
    """An LFS pointer, an empty file, a lying header: one line that names the file."""
    for number, content in enumerate(
        (b"version https://git-lfs.github.com/spec/v1\n", b"", b"1234", b"\xff" * 900)
    ):
        broken = shutil.copytree(folders["small-tuned"], tmp_path / f"broken{number}")
        (broken / MODEL).write_bytes(content)
        hub.add("org/broken", broken)
        told(
            run(*SMALL[:-1], "org/broken", "-o", "out"),
            f"error: org/broken: {MODEL}",
            "tell its owner",
        )


@pytest.mark.parametrize("offline", [(), ("--offline",)], ids=["online", "offline"])
def test_a_name_that_is_a_folder_here_says_how_that_is_written(run, tmp_path, offline):
    """`org/here` is on the Hub or nowhere; the one hint is how to write the folder."""
    (tmp_path / "org" / "here").mkdir(parents=True)
    done = run(*SMALL[:2], "org/here", *SMALL[3:], "-o", "out", *offline)
    assert done.code == 1
    assert "error: org/here is not" in done.err
    assert done.err.endswith("hint:  for the folder, write ./org/here\n")
    early = "org/here is taken for a model on the Hub; for the folder, write ./org/here\n"
    assert done.err.startswith(early) != bool(offline)  # before the first request


def broken_by(action, path, folder, origin=None):
    """What is said of a file whose download goes wrong in this way, for good."""
    from huggingface_hub import get_session

    from shadow.checkpoints.hub_client import own_client
    from shadow.checkpoints.hub_faults import FAILURES, in_words

    with Hub() as hub, own_client():
        hub.add("org/small", folder)
        hub.fail(path, action, origin=origin, times=None)
        with pytest.raises(FAILURES) as caught:
            get_session().get(f"{hub.endpoint}/org/small/resolve/main/{path}")
    return in_words(caught.value, repo="org/small", path=path)


@pytest.mark.parametrize("action", [Cut(3), Cut(3, reset=True)], ids=str)
@pytest.mark.parametrize("path", ["config.json", MODEL])
def test_an_answer_that_ends_early_is_told_as_that(folders, path, action):
    """The line broke within a file: not `cannot be reached`, since the Hub had answered."""
    assert "arrived incomplete" in broken_by(action, path, folder=folders["small-base"]).message


@pytest.mark.parametrize("origin", ["hub", "cdn"])
def test_a_server_that_does_not_answer_cannot_be_reached(folders, origin):
    """Also the one to which the Hub, which did answer, redirects."""
    told = broken_by(Drop(), MODEL, origin=origin, folder=folders["small-base"])
    assert "cannot be reached" in told.message


@pytest.mark.parametrize(("answered", "tries"), [(False, 1), (True, 6)])
def test_a_hub_that_has_never_answered_is_given_up_sooner(monkeypatch, answered, tries):
    """Where it has, a refused connection is an outage, and all tries are made."""
    from huggingface_hub import get_session

    from shadow.checkpoints import hub_client as client
    from shadow.errors import ShadowError

    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    monkeypatch.setattr(client, "answered", threading.Event())
    made = []
    with Hub() as hub, client.own_client():
        there = hub.endpoint
        if answered:
            get_session().get(f"{there}/api/models/org/none")

    def attempt() -> None:
        made.append(True)
        get_session().get(there)

    with client.own_client(), pytest.raises(ShadowError, match="cannot be reached"):
        client.trying(attempt, lambda _: None, repo="org/small", revision=None)
    assert len(made) == tries


@pytest.mark.slow
def test_files_that_change_under_way(tmp_path):
    """A shard that another program takes away or cuts is a line, not a traceback."""
    from shadow.checkpoints.hub import RemoteFile, Snapshot
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.checkpoints.sources import LocalFile, WholeFile
    from shadow.errors import ShadowError

    remote = WholeFile(Snapshot("org/x", "0" * 40, None, {}, "open"), RemoteFile(MODEL, 9, None))
    remote.path = tmp_path / "gone"
    (tmp_path / "cut").write_bytes(bytes(3))
    for source in (remote, LocalFile(tmp_path / "gone"), LocalFile(tmp_path / "cut")):
        with pytest.raises(ShadowError, match="changed during the audit"):
            source.tensor(TensorInfo("a", "F32", (1,), MODEL, 0, 4))


# Through a mirror that caches


@pytest.fixture(scope="session")
def olah(tmp_path_factory):
    """The `olah` command, installed beside this environment."""
    target = tmp_path_factory.mktemp("olah")
    subprocess.run([sys.executable, "-m", "venv", target], check=True)
    subprocess.run(
        [target / "bin" / "python", "-m", "pip", "install", "--quiet", "olah"], check=True
    )
    return target / "bin" / "olah-cli"


@pytest.mark.slow
@pytest.mark.real
def test_a_caching_mirror_gives_the_same_numbers(run, hub, olah, tmp_path, wanted):
    """olah answers large files itself: a full audit and a layer, twice, then from its cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [olah, "--host", "127.0.0.1", "--port", str(port), "--hf-scheme", "http"]
    command += ["--hf-netloc", hub.endpoint.removeprefix("http://")]
    command += ["--repos-path", tmp_path / "repos", "--log-path", tmp_path / "logs"]
    hub.page_size = 2
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as mirror:
        try:
            until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
            for number in range(2):
                more = {
                    "HF_ENDPOINT": f"http://127.0.0.1:{port}",
                    "HF_TOKEN": "",
                    "HF_HUB_DOWNLOAD_TIMEOUT": "10",
                }
                more |= {"HF_HUB_CACHE": tmp_path / f"cache{number}", "HF_HUB_ETAG_TIMEOUT": "10"}
                hub.reset()
                run(*PAIR, "-o", f"out-full{number}", **more).assert_done()
                assert (sum(moved(hub).values()) > 9_000_000) == (number == 0)
                assert_equal(tmp_path / f"out-full{number}", wanted)
                assert frame(tmp_path / f"out-full{number}")["verified"].all()
                more |= {"HF_HUB_CACHE": tmp_path / f"ranges{number}"}
                run(*PAIR, "-o", f"out-layer{number}", "--layer", "0", **more).assert_done()
                assert_same(
                    frame(tmp_path / f"out-layer{number}"), wanted["matrices"].query("layer == 0")
                )
        finally:
            mirror.terminate()


def test_a_lineage_reads_the_cache_at_the_commits_of_its_reports_and_asks_nobody(
    run, hub, folders, tmp_path
):
    """Deltas are compared as in folders, without a request; a commit that is gone is told."""
    hub.add("org/small-next", models.write(tmp_path / "next", tensors(FEW, 2), models.LLAMA))
    assert run(*SMALL, "-o", "out").code == 0
    assert (
        run("audit", "--base", "org/small-tuned", "--tuned", "org/small-next", "-o", "out").code
        == 0
    )
    hub.add("org/small-next", folders["small-base"])  # its main has moved since
    hub.reset()

    def last() -> dict[str, object]:
        done = run("lineage", "out", "--format", "json")
        assert done.code == 0, done.err
        return json.loads(done.out)["chains"][0]["steps"][1]

    a, b, c = (
        torch.cat([one.double().reshape(-1) for one in tensors(FEW, seed).values()])
        for seed in (0, 1, 2)
    )
    cosine = float((b - a) @ (c - b) / (b - a).norm() / (c - b).norm())
    assert last()["joint"]["cosine"] == pytest.approx(cosine)
    shutil.rmtree(tmp_path / "home" / "hub" / "models--org--small-next")
    assert "org/small-next" in last()["no_joint"]
    assert not hub.requests
