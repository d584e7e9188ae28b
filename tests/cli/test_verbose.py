"""`shadow audit --verbose`: what was read and measured on stderr, one line each; all else stays as
it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

pytest_plugins = "hub_pairs"
PAIR = ("audit", "demo:base..narrow", "-o")
MATRIX = re.compile(r"\[(\d+)/(\d+)\] (\S+), (?:vector of )?(\d+)(?: x (\d+))?: (\w+)")


def test_every_tensor_has_a_line_and_stdout_is_the_same(shadow, tmp_path):
    """Lines agree with the tables: each name, shape, fate once, numbered; -v changes no more."""
    plain = shadow(*PAIR, "plain")
    told = shadow(*PAIR, "talky", "-v")
    assert plain.err == ""
    assert told.out.replace("talky/", "plain/") == plain.out
    lines = told.err.splitlines()
    found = [match for line in lines if (match := MATRIX.match(line))]
    assert [int(one[1]) for one in found] == list(range(1, len(found) + 1))
    assert {int(one[2]) for one in found} == {len(found)}
    rows = pd.read_parquet(tmp_path / "talky" / "demo" / "base..narrow" / "tensors.parquet")
    rows = rows[rows["side"] == "tuned"].set_index("tensor")
    assert {one[3]: one[6] for one in found} == dict(rows["status"])
    for one in found:
        assert [int(size) for size in one.group(4, 5) if size] == list(rows.loc[one[3], "shape"])
    size = (
        (Path(__file__).parents[2] / "registry" / "demo" / "base" / "model.safetensors")
        .stat()
        .st_size
    )
    stated = next(line for line in lines if line.startswith("base: 1 shard"))
    # the file less its header
    assert float(stated.split(", ")[1].removesuffix(" kB")) == pytest.approx(size / 1000, rel=0.02)
    assert any(line.startswith("settings: precision default, 0 sampled nulls") for line in lines)
    assert [line.split(" ", 1)[0] for line in lines[-2:]] == ["time:", "time:"]


def test_skipped_tensors_are_told_by_reason_and_side(shadow):
    """With --layer 0 what lies elsewhere is filtered on both sides; three names stand for all."""
    told = shadow(*PAIR, "out", "--layer", "0", "--verbose")
    lines = [line for line in told.err.splitlines() if line.startswith("skipped, filtered")]
    assert [re.sub(r"\d+", "N", line.split(": ")[1]) for line in lines] == [
        "N tensors of base",
        "N tensors of tuned",
    ]
    assert all("and" in line.split(": ")[2] for line in lines)
    assert "only layers 0" in told.err


def test_quiet_and_verbose_exclude_each_other(shadow):
    """Wrong usage, before anything is measured."""
    refused = shadow(*PAIR, "out", "-q", "-v")
    assert (refused.code, refused.err.splitlines()[0]) == (
        2,
        "error: --quiet and --verbose exclude each other",
    )


def test_shards_of_the_hub_are_downloaded_once_and_then_come_from_the_cache(run, hub):
    """Commits stand in full."""
    pair = ("audit", "--base", "org/base", "--tuned", "org/tuned", "-v", "-o")
    first = run(*pair, "out")
    first.assert_done()
    assert f"base: org/base, commit {hub.commit('org/base')}" in first.err
    assert f"tuned: org/tuned, commit {hub.commit('org/tuned')}" in first.err
    downloads = [line for line in first.err.splitlines() if ": downloading " in line]
    assert len(downloads) == 5  # three shards and two
    assert "in the cache of the Hub" not in first.err
    second = run(*pair, "again")
    second.assert_done()
    assert "downloading" not in second.err
    assert second.err.count(": in the cache of the Hub") == 5
    assert second.err.count("all that is needed is in the Hub's cache") == 2
