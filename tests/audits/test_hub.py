"""Audits of checkpoints on a Hub (tests/hub.py), with a token that it alone may see."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import planted
import pytest
import torch
from effort import every
from hub import Status
from hub_pairs import (
    FEW,
    HEADERS,
    MODEL,
    PAIR,
    SMALL,
    assert_equal,
    assert_same,
    blobs,
    downloads,
    edit,
    frame,
    moved,
    recorded,
    report,
    tensors,
)
from safetensors.torch import load_file

from shadow.reports.folders import finished_metadata

pytest_plugins = "hub_pairs"


def shard_sizes(*folders: Path) -> dict[str, int]:
    """Bytes of every shard by its name in the Hub's log."""
    paths = [path for folder in folders for path in folder.glob("*.safetensors")]
    return {f"{path.parent.name}/{path.name}": path.stat().st_size for path in paths}


# Equal numbers, bytes and requests


def test_every_byte_moves_once(run, hub, folders, tmp_path, wanted):
    """Besides the first 64 KiB for its header; what is in the cache serves a second audit."""
    run(*PAIR, "-o", "out").assert_done()
    sizes = shard_sizes(folders["base"], folders["tuned"])
    assert moved(hub) == {name: size + HEADERS for name, size in sizes.items()}
    assert set(downloads(hub).values()) == {1}
    for output in ("out2", "out"):
        hub.reset()
        run(*PAIR, "-o", output).assert_done()
        assert moved(hub) == {}
        assert hub.asked("*.json") == []
        assert len(hub.requests) == 6
        assert_equal(tmp_path / output, wanted)
    metadata = finished_metadata(report(tmp_path / "out"))
    for side in ("base", "tuned"):
        own = metadata[side]
        assert (own["repo"], own["commit"]) == (f"org/{side}", hub.commit(f"org/{side}"))
    assert frame(tmp_path / "out")["verified"].tolist() == [True] * len(wanted["matrices"])


def test_a_folder_against_the_hub(run, folders, tmp_path, wanted):
    """A side in a folder is neither verified nor not: null, and so is the delta."""
    run("audit", "--base", folders["base"], "--tuned", "org/tuned", "-o", "out").assert_done()
    assert_equal(tmp_path / "out", wanted)
    found = frame(tmp_path / "out").groupby("subject")["verified"].unique()
    assert {subject: list(values) for subject, values in found.items()} == {
        "base": [None], "tuned": [True], "delta": [None]
    }  # fmt: skip


@pytest.mark.parametrize(("chosen", "rows", "ranges", "most"), [
    (("--layer", "1"), "layer == 1", 3, 2.2e6),
    (("--module", "attn.q"), "module == 'attn.q'", 7, 2.2e6),
    (("--module", "embed", "--component", "language"), "module == 'embed'", 2, 1.1e6),
])  # fmt: skip
def test_a_part_of_a_model_moves_in_ranges(run, hub, tmp_path, wanted, chosen, rows, ranges, most):
    """One layer or one module: neighbours in a request, unverified, rows of the full audit."""
    run(*PAIR, "-o", "out", *chosen).assert_done()
    found = frame(tmp_path / "out")
    assert_same(found, wanted["matrices"].query(rows))
    assert not found["verified"].any()
    assert not downloads(hub)
    asked = hub.asked("*.safetensors", origin="cdn", method="GET")
    assert sum(request.range != f"bytes=0-{HEADERS - 1}" for request in asked) == ranges
    assert sum(request.sent for request in asked) <= most + 5 * HEADERS
    assert not blobs(tmp_path)


def test_a_plan_moves_headers_only(run, hub, tmp_path):
    """It says what would move, and writes nothing but the cache."""
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
        hub.add(f"org/{side}", planted.write(tmp_path / side, many, planted.LLAMA))
    (plan,) = json.loads(run("plan", *PAIR[1:], "--format", "json").assert_done())
    assert plan["matrices"] == 1000
    size = int.from_bytes((tmp_path / "base" / MODEL).read_bytes()[:8], "little") + 8
    assert moved(hub) == {f"{side}/{MODEL}": HEADERS + size for side in ("base", "tuned")}


def test_the_token_stays_with_the_hub(run, hub, tmp_path, small):
    """Not where a redirect or a listing's next page leads (also by the fixture `hub`)."""
    hub.page_size = 1
    run(*SMALL, "-o", "out").assert_done()
    assert_equal(tmp_path / "out", small)
    assert all(request.authorized for request in hub.requests if request.origin == "hub")
    hub.fail("/evil", Status(404), times=None)
    evil = f'<{hub.other}/evil>; rel="next"'
    edit(hub, "*/tree/*", lambda answer: answer.headers.update(Link=evil))
    recorded(run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "other"))
    assert {request.path for request in hub.requests if request.origin == "other"} == {"/evil"}


UPLOAD = """
import hf_xet, json, sys
with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    files = {path: commit.start_upload_file(path) for path in sys.argv[2:]}
print(json.dumps({path: file.result().xet_info.hash for path, file in files.items()}))
"""


@pytest.mark.slow
def test_a_hub_that_stores_in_xet(run, hub, folders, tmp_path, wanted):
    """Shards come through hf_xet, equal and verified; Xet's own server is a folder here."""
    pytest.importorskip("hf_xet")
    (tmp_path / "xet").mkdir()
    shards = [path for side in ("base", "tuned") for path in folders[side].glob("*.safetensors")]
    command = [sys.executable, "-c", UPLOAD, f"local://{tmp_path}/xet", *shards]
    upload = subprocess.run(command, capture_output=True, text=True, check=True)
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
        run(*PAIR, "-o", f"out{number}", *disk, HF_HUB_CACHE=cache).assert_done()
        assert_equal(tmp_path / f"out{number}", wanted)
        assert frame(tmp_path / f"out{number}")["verified"].all()
        assert not downloads(hub)
        files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
        kept = sum(path.stat().st_size for path in files)
        assert (kept > 9_000_000) == (disk == ())
        assert kept > 9_000_000 or kept < 10_000
    # repositories share the files of this cache, which lie beside them
    last = "model-00002-of-00002.safetensors"
    (shared,) = {path.resolve() for path in (tmp_path / "home" / "0").rglob(last)}
    assert shared.parents[1] == tmp_path / "home" / "0" / "blobs"
    content = bytearray(shared.read_bytes())
    content[70_000] ^= 1
    shared.chmod(0o644)
    shared.write_bytes(content)
    run(*PAIR, "-o", "out2", "--max-disk", "1GB", HF_HUB_CACHE=tmp_path / "home" / "0")
    assert_equal(tmp_path / "out2", wanted)
    assert len(blobs(tmp_path)) == 5


# Names, revisions, rights


@pytest.mark.slow
def test_a_revision_is_read_at_its_commit(run, hub, folders, tmp_path, small):
    """Of a branch, tag or commit. Where a branch moved on the report stays without --overwrite."""
    base, tuned = folders["small-base"], folders["small-tuned"]
    first = hub.add("org/model", base, revisions={"v1": tuned, "feature/x": base})
    tag = hub.commit("org/model", "v1")
    for number, (revision, found) in enumerate({"v1": tag, tag: tag, "feature/x": first}.items()):
        run(*SMALL[:-1], f"org/model@{revision}", "-o", f"out{number}").assert_done()
        metadata = finished_metadata(report(tmp_path / f"out{number}"))
        assert metadata["tuned"]["commit"] == found
    assert_equal(tmp_path / "out0", small)
    assert_equal(tmp_path / "out1", small)
    command = (*SMALL[:-1], "org/model", "-o", "out")
    run(*command).assert_done()
    second = hub.add("org/model", tuned)
    refused = run(*command).assert_refused()
    assert [commit for commit in (first[:12], second[:12]) if commit not in refused] == []
    run(*command, "--overwrite").assert_done()
    assert_equal(tmp_path / "out", small)


def test_a_renamed_repository_is_found(run, hub, tmp_path, small):
    """The Hub redirects the old name, for the API, for whole files and for ranges."""
    hub.renamed |= {"old/base": "org/small-base", "old/tuned": "org/small-tuned"}
    for fetch in ("shards", "ranges"):
        run("audit", "--base", "old/base", "--tuned", "old/tuned", "-o", f"out-{fetch}",
            SHADOW_FETCH=fetch, HF_HUB_CACHE=tmp_path / fetch).assert_done()  # fmt: skip
        assert_equal(tmp_path / f"out-{fetch}", small)


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
    """A line and hint that name the repository, and the token that is in use."""
    hub.add("org/gated", folders["small-tuned"], gated=True)
    hub.add("org/private", folders["small-tuned"], private=True)
    none = {"HF_TOKEN": ""}
    for tuned, named, more in (
        ("org/gated", (f"{hub.endpoint}/org/gated", "hf auth login"), none),
        ("org/gated", (f"{hub.endpoint}/org/gated", "a token is in use"), {}),
        *((name, (name, "hf auth login"), none) for name in ("org/private", "org/none")),
        *((name, (name, "a token is in use"), {}) for name in ("org/private", "org/none")),
        ("org/small-tuned@none", ("'none'", "org/small-tuned/tree/main"), {}),
        (f"org/small-tuned@{'0' * 40}", ("0" * 40,), {}),
        ("org/small-tuned", ("401", "a token is in use"), {"HF_TOKEN": "hf_wrong"}),
    ):
        recorded(run(*SMALL[:-1], tuned, "-o", "out", **more), *named)
    hub.granted |= {"org/gated", "org/private"}
    for name in ("org/gated", "org/private"):
        run(*SMALL[:-1], name, "-o", "out").assert_done()


@pytest.mark.parametrize("token", every(2, ["hf_with blank", "hf_new\nline\x7f", "hf_ünïcode"]))
def test_a_token_that_cannot_be_one_is_one_error_line(run, hub, token):
    """Spaces, control characters, letters beyond ASCII: which token it is, never the token."""
    error = recorded(run(*SMALL, "-o", "out", HF_TOKEN=token, seconds=5), "HF_TOKEN")
    assert not [part for part in token.split() if part in error]
    assert not hub.requests or "401" in error


def test_a_repository_without_weights_says_what_there_is(run, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "weights.npz").write_text("")
    hub.add("org/empty", tmp_path / "empty")
    recorded(run(*SMALL[:-1], "org/empty", "-o", "out"), "org/empty", "weights.npz")


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
    recorded(run(*command), "org/bin", "--allow-pickle")
    run(*command, "--allow-pickle").assert_done()
    for name in ("matrices", "spectra"):
        assert_same(frame(tmp_path / "out", name), small[name])
    assert frame(tmp_path / "out")["verified"].all()
    assert len(blobs(tmp_path)) == (2 if disk == () else 0)


@pytest.mark.slow
def test_offline_uses_the_cache_alone(run, hub, tmp_path, small):
    """With nothing or a part of a pair it is refused; with all, no request is made."""
    ways = ((("--offline",), {}), ((), {"HF_HUB_OFFLINE": "1"}))
    for words, more in ways:
        recorded(run(*SMALL, "-o", "out", *words, **more), "org/small-base", "--offline")
    assert not hub.requests
    # the configs are there then, and no weights
    recorded(run(*SMALL, "-o", "out", "--max-disk", "1kB"), "--max-disk")
    recorded(run(*SMALL, "-o", "out", "--offline"), "org/small-base", "--offline")
    run(*SMALL, "-o", "out").assert_done()
    hub.reset()
    for number, (words, more) in enumerate(ways):
        run(*SMALL, "-o", f"out{number}", *words, **more).assert_done()
        assert_equal(tmp_path / f"out{number}", small)
        assert frame(tmp_path / f"out{number}")["verified"].all()
    assert not hub.requests


# Claims


def test_equal_checksums_end_it_before_a_weight_moves(run, hub, folders):
    """The same file in two repositories."""
    hub.add("other/copy", folders["small-base"])
    run("verify", "same", "org/small-base", "other/copy").assert_done()
    assert not [one for one in hub.requests if one.path.endswith(".safetensors")]


def test_a_copy_in_other_shards_is_compared_and_each_byte_moves_once(run, hub, folders, tmp_path):
    """Three shards on the Hub beside one file in a folder; then with one entry changed."""
    one = {}
    for shard in sorted(folders["base"].glob("*.safetensors")):
        one |= load_file(shard)
    planted.write(tmp_path / "one", one, planted.LLAMA)
    run("verify", "same", "org/base", "./one").assert_done()
    size = sum(shard.stat().st_size for shard in folders["base"].glob("*.safetensors"))
    assert hub.bytes_of("*.safetensors") < 1.2 * size + 200_000
    one["model.norm.weight"] = one["model.norm.weight"].clone()
    one["model.norm.weight"][3] += 1
    planted.write(tmp_path / "two", one, planted.LLAMA)
    found = json.loads(run("verify", "same", "org/base", "./two", "--json").assert_done(4))
    assert [item["name"] for item in found["against"]] == ["model.norm.weight"]


def test_claims_of_models_on_the_hub(run, hub, folders):
    """What must be fetched at once is refused where --max-disk is less."""
    hub.add("org/copy", folders["tuned"])
    stored = ("verify", "stored", "org/tuned", "org/copy", "--base", "org/base")
    run("verify", "same", "org/base", "org/none").assert_refused()
    run("verify", "same", "org/base", "org/base@main").assert_done(5)
    run("verify", "same", "org/tuned", "org/copy").assert_done()
    error = run(*stored, "--max-disk", "2MB").assert_refused()
    assert "2.0 MB" in error
    assert hub.bytes_of("*.safetensors") < 2_000_000, "headers alone"
    trained = ("verify", "trained", "org/base", "org/tuned")
    run(*trained, "--moved", "*").assert_done()
    run(*trained, "--frozen", "embed").assert_done(4)
    run(*stored).assert_done()


def test_one_model_of_the_hub_is_checked_by_itself(run, hub, folders, tmp_path):
    """Its head is compared with the embedding that its config ties it to; headers alone before."""
    tensors = load_file(folders["small-base"] / "model.safetensors")
    embed = {"model.embed_tokens.weight": torch.ones(9, 4), "lm_head.weight": torch.eye(9)[:, :4]}
    config = planted.LLAMA | {"tie_word_embeddings": True}
    planted.write(tmp_path / "tied", tensors | embed, config)
    hub.add("org/tied", tmp_path / "tied")
    run("verify", "whole", "org/tied", "--headers").assert_done(5)
    sharded = json.loads(run("verify", "whole", "org/base", "--headers", "--json").assert_done(5))
    assert sharded["code"] == "not_asked"
    found = json.loads(run("verify", "whole", "org/tied", "--json").assert_done(4))
    assert {(one["name"], one["code"]) for one in found["against"]} == {
        ("lm_head.weight", "head_differs"),
        ("model.embed_tokens.weight", "constant"),
    }
    raw = {f"{name}.weight": torch.randn(64, 64).to(torch.float8_e4m3fn) for name in ("q", "k")}
    packed = raw | {"q.weight_scale": torch.tensor(99.0), "k.weight_scale": torch.tensor(0.5)}
    said = {"quantization_config": {"quant_method": "compressed-tensors"}}
    hub.add("org/packed", planted.write(tmp_path / "packed", packed, planted.LLAMA | said))
    found = json.loads(run("verify", "whole", "org/packed", "--json").assert_done(4))
    assert [(one["name"], one["code"]) for one in found["against"]] == [("q", "scale_inverted")]
    size = (tmp_path / "tied" / "model.safetensors").stat().st_size
    assert hub.bytes_of("tied/*.safetensors") < 2 * size + 200_000
