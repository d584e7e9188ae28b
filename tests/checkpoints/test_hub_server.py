"""The tests' Hub (tests/hub.py): the real client understands it, and faults are as named."""

import hashlib
import http.client
import json
import os
import random
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from hub import Cut, Drop, Expire, Flip, Hub, IgnoreRange, Stall, Status, Truncate, WrongRange
from huggingface_hub.hf_api import RepoFile

from shadow.checkpoints import hub as hub_module
from shadow.checkpoints.sources import WholeFile
from shadow.checkpoints.transfers import Transfer
from shadow.errors import ShadowError

WEIGHTS = random.Random(0).randbytes(300_000)
CONFIG = b'{"model_type": "llama"}'
MODEL = "model.safetensors"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
CLIENT = """
import json
from pathlib import Path
import huggingface_hub as hf

def get(repo, name, **more):
    return Path(hf.hf_hub_download(repo, name, **more)).resolve()

def fault(*words, **more):
    try:
        get(*words, **more)
    except Exception as error:
        return type(error).__name__

info = hf.model_info("org/model", files_metadata=True)
print(json.dumps({
    "commit": [info.sha, hf.model_info("org/model", revision="v1").sha],
    "sizes": {one.rfilename: one.size for one in info.siblings},
    "listed": [one.path for one in hf.HfApi().list_repo_tree("org/model", recursive=True)],
    "blobs": [get(repo, "model.safetensors").name for repo in ("org/model", "old")],
    "tag": get("org/model", "config.json", revision="v1").read_text(),
    "faults": [fault(repo, "config.json") for repo in ("org/gated", "org/private", "org/none")],
    "missing": [fault("org/model", "none"), fault("org/model", MODEL, revision="v2")],
}))
""".replace("MODEL", repr(MODEL))


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    (folder / "sub").mkdir(parents=True)
    (folder / MODEL).write_bytes(WEIGHTS)
    for file in (folder / "config.json", folder / "sub" / "config.json"):
        file.write_bytes(CONFIG)
    with Hub() as hub:
        hub.add("org/model", folder, revisions={"v1": folder / "sub"})
        hub.add("org/gated", folder, gated=True)
        hub.add("org/private", folder, private=True)
        yield hub


def test_the_real_client_downloads_lists_and_is_refused(hub, tmp_path):
    """A token goes to the Hub alone; large files are redirected, and come once."""
    hub.tokens.add("hf_secret")
    hub.renamed["old"] = "org/model"
    hub.resolve_cache, hub.page_size = True, 2
    kept = {name: one for name, one in os.environ.items() if not name.startswith(("HF_", "HUGG"))}
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    done = subprocess.run([sys.executable, "-c", CLIENT], env=kept | variables, capture_output=True)
    assert done.returncode == 0, done.stderr
    gone = "RepositoryNotFoundError"
    assert json.loads(done.stdout) == {
        "commit": [hub.commit("org/model"), hub.commit("org/model", "v1")],
        "sizes": {"config.json": len(CONFIG), MODEL: len(WEIGHTS), "sub/config.json": len(CONFIG)},
        "listed": ["config.json", MODEL, "sub", "sub/config.json"], "blobs": [SHA256] * 2,
        "tag": CONFIG.decode(), "faults": ["GatedRepoError", gone, gone],
        "missing": ["RemoteEntryNotFoundError", "RevisionNotFoundError"],
    }  # fmt: skip
    assert {one.origin: one.authorized for one in hub.requests} == {"hub": True, "cdn": False}


def ask(url, asked=None, timeout=5.0):
    """Status, headers and body of an answer; the body may be cut. Redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        path, headers = f"{parts.path}?{parts.query}", {"Range": asked} if asked else {}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as error:
            body = error.partial
        return answer.status, answer.headers, body
    finally:
        connection.close()


def signed(hub):
    return ask(f"{hub.endpoint}/org/model/resolve/main/{MODEL}")[1]["Location"]


FAULTS = [
    (Status(503, {"Retry-After": "1"}), None, 503, b""),
    (Drop(), None, http.client.RemoteDisconnected, 0),
    (Drop(reset=True), None, ConnectionResetError, 0),
    (Cut(70_000), "bytes=10-", 206, WEIGHTS[10:70_010]),
    (Cut(1000, reset=True), None, ConnectionResetError, 1000),
    (Stall(30, None), None, TimeoutError, 0), (Stall(30, 1000), None, TimeoutError, 1000),
    (Flip(299_999), "bytes=299000-", 206, WEIGHTS[299_000:-1] + bytes([WEIGHTS[-1] ^ 0xFF])),
    (Truncate(1000), "bytes=990-2000", 206, WEIGHTS[990:1000]),
    (Truncate(1000), "bytes=1000-2000", 416, b""), (IgnoreRange(), "bytes=10-19", 200, WEIGHTS),
    (WrongRange(), "bytes=10-19", 206, WEIGHTS[11:21]),
    (Expire(), None, 403, b"<Error><Code>AccessDenied</Code></Error>"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "asked", "recorded", "body"), FAULTS, ids=str)
def test_each_fault_is_one_answer(hub, action, asked, recorded, body):
    """Between two right answers: a status and a body, or a broken line after so many bytes."""
    fault = hub.fail(MODEL, action, origin="cdn", skip=1)
    url = signed(hub)
    before = ask(url, asked)[2]
    if isinstance(recorded, int):
        status, _, found = ask(url, asked)
        assert (status, found) == (recorded, body)
    else:
        with pytest.raises(recorded):
            ask(url, asked, timeout=0.2)
        assert hub.asked(MODEL, origin="cdn")[1].sent == body
    assert ask(signed(hub), asked)[2] == before
    assert fault.fired == 1


def test_bytes_of_an_attempt_that_failed_are_taken_back(monkeypatch):
    """As many as were reported; a call without a number reports none."""

    def cut(*where, tqdm_class, **options):
        meter = tqdm_class(total=10)
        for count in (3, None, 0, 4):
            meter.update(count)
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_module.hf, "hf_hub_download", cut)
    reported = []
    where = {"repo": "org/none", "commit": "0" * 40, "offline": False}
    file = hub_module.RemoteFile("x.bin", 0, None, **where)
    with pytest.raises(KeyboardInterrupt):
        hub_module.fetch_whole(file, hub_module.Transfer(report=reported.append))
    assert reported == [3, 0, 0, 4, -7]


@pytest.mark.parametrize(("copy", "checksum", "is_there"), [
    (None, "sha256:ab", True), ("x.bin", None, True), ("x.bin", "sha256:cd", True),
    (None, "sha256:cd", False), (None, None, False),
])  # fmt: skip
def test_bytes_are_in_the_cache_by_their_name_or_their_checksum(
    tmp_path, monkeypatch, copy, checksum, is_there
):
    """Of this commit, or of another one that has the same bytes."""
    blobs = tmp_path / "models--org--x" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "ab").touch()
    monkeypatch.setattr(hub_module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(hub_module, "cached", lambda file: copy)
    where = {"repo": "org/x", "commit": "0" * 40, "offline": True}
    file = hub_module.RemoteFile("x.bin", 0, checksum, **where)
    assert hub_module.in_cache(file) is is_there


@pytest.mark.parametrize(("path", "size", "fault"), [
    ("a", -1, "an invalid size"), ("a", None, "an invalid size"), ("a", True, "an invalid size"),
    ("a", 2**63, "an invalid size"), (5, 1, "an invalid name"), ("\ud800", 1, "surrogates"),
])  # fmt: skip
def test_a_listing_of_another_form_is_refused(monkeypatch, path, size, fault):
    """A size that no file has, a name that is no text."""
    entry = RepoFile(path=path, size=size, oid="a" * 40)
    monkeypatch.setattr(hub_module.hf.HfApi, "list_repo_tree", lambda *_, **more: [entry])
    with pytest.raises(ValueError, match=fault):
        hub_module.listed_files("org/model", "0" * 40)


@pytest.mark.parametrize(("name", "is_known"), [("a.safetensors", True), ("a.bin", False)])
def test_a_fetched_shard_has_the_header_that_was_read_before(tmp_path, monkeypatch, name, is_known):
    """A file of torch has none, and is held once it is unpacked."""
    path = tmp_path / name
    path.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    file = hub_module.RemoteFile(name, 10, repo="org/model", commit="0" * 40, offline=False)
    monkeypatch.setattr(hub_module, "fetch_whole", lambda file, by: (path, True))
    header = hashlib.sha256(b"{}").hexdigest() if is_known else None
    source = WholeFile(file, header)
    source.fetch(Transfer())
    assert (source.path, source.verified, source.held is not None) == (path, True, is_known)
    if is_known:
        with pytest.raises(ShadowError) as refused:
            WholeFile(file, "0" * 64).fetch(Transfer())
        said = "org/model: a.safetensors has another header than before"
        assert refused.value.message == said
