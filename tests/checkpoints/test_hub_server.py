"""The tests' Hub (tests/hub.py): the real client understands it, and faults are as named."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
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

WEIGHTS = random.Random(0).randbytes(300_000)
CONFIG = b'{"model_type": "llama"}'
MODEL = "model.safetensors"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()

PRELUDE = """
import json, sys, threading
import huggingface_hub as hf
from pathlib import Path
def fault(attempt):
    try:
        attempt()
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, getattr(response, "status_code", None)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "sub").mkdir()
    (folder / MODEL).write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "sub" / "optimizer.bin").write_bytes(WEIGHTS[:1000])
    (folder / "sub" / "a note.txt").write_text("café")
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add("org/model", folder, revisions={"v1": folder / "sub", "refs/pr/1": folder / "sub"})
        yield hub


def client(hub: Hub, home: Path, code: str, token: str | None = None) -> object:
    """What code assigns to `found`, in a process whose huggingface_hub speaks to the hub."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    variables |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    variables |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\n{code}\nprint(json.dumps(found))"],
        env=variables, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(
    url: str, asked: str | None = None, method: str = "GET", timeout: float = 5
) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer; the body may be cut. Redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request(
            method, f"{parts.path}?{parts.query}", headers={"Range": asked} if asked else {}
        )
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as error:
            body = error.partial
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body
    finally:
        connection.close()


def address(hub: Hub, file: str = MODEL, revision: str = "main") -> str:
    return f"{hub.endpoint}/org/model/resolve/{revision}/{file}"


def signed(hub: Hub) -> str:
    return ask(address(hub))[1]["location"]


# The real client


def test_downloads(hub, tmp_path):
    hub.tokens.add("hf_secret")
    code = f"""
names = "config.json", "{MODEL}", "sub/a note.txt"
paths = [hf.hf_hub_download("org/model", name) for name in names]
found = [[path, str(Path(path).resolve())] for path in paths]
"""
    found = client(hub, tmp_path, code, "hf_secret")
    cache = tmp_path / "hub" / "models--org--model"
    commit = hub.commit("org/model")
    assert [path for path, _ in found[:2]] == [
        str(cache / "snapshots" / commit / n) for n in ("config.json", MODEL)
    ]
    assert [blob for _, blob in found[:2]] == [
        str(cache / "blobs" / name) for name in (GIT, SHA256)
    ]
    assert (cache / "refs" / "main").read_text() == commit
    assert [Path(path).read_bytes() for path, _ in found] == [CONFIG, WEIGHTS, "café".encode()]
    assert [(r.origin, r.method, r.status, r.sent) for r in hub.asked(MODEL)] == [
        ("hub", "HEAD", 302, 0),
        ("cdn", "GET", 200, len(WEIGHTS)),
    ]
    assert hub.bytes_of("org/model/config.json") == len(CONFIG)
    assert hub.bytes_of() == hub.sent == len(CONFIG) + len(WEIGHTS) + 5
    assert {r.origin: r.authorized for r in hub.requests} == {"hub": True, "cdn": False}


def test_listing_and_revisions(hub, folder, tmp_path):
    hub.page_size = 3
    code = """
api = hf.HfApi()
def tell(entries):
    return [
        [e.path, getattr(e, "size", None), e.lfs and [e.lfs.sha256, e.lfs.size]]
        if isinstance(e, hf.RepoFile) else e.path
        for e in entries
    ]
files = [e for e in api.list_repo_tree("org/model") if isinstance(e, hf.RepoFile)]
info = hf.model_info("org/model", files_metadata=True)
listed = {
    "all": tell(api.list_repo_tree("org/model", recursive=True)),
    "top": tell(api.list_repo_tree("org/model")),
    "sub": tell(api.list_repo_tree("org/model", "sub", revision="main")),
    "some": tell(api.get_paths_info("org/model", ["config.json", "none"])),
    "ids": {e.path: e.blob_id for e in files},
    "info": [info.sha, info.private, info.gated, [[s.rfilename, s.size] for s in info.siblings]],
    "none": fault(lambda: list(api.list_repo_tree("org/model", "none"))),
}
"""
    commit = hub.commit("org/model")
    code += f"""
resolve = lambda revision: hf.resolve_revision("org/model", revision=revision).resolved
def get(name, revision):
    return Path(hf.hf_hub_download("org/model", name, revision=revision)).read_bytes().decode()
found = listed | {{
    "names": [
        resolve(None), resolve("main"), resolve("v1"), resolve("refs/pr/1"),
        hf.model_info("org/model", revision="{commit}").sha,
    ],
    "missing": [
        fault(lambda: resolve("v2")),
        fault(lambda: hf.model_info("org/model", revision="0" * 40)),
        fault(lambda: get("config.json", "v2")),
        fault(lambda: get("none", "main")),
    ],
    "files": [
        get("a note.txt", "v1"), get("a note.txt", "refs/pr/1"), get("config.json", "{commit}"),
    ],
}}
"""
    found = client(hub, tmp_path, code)
    config = ["config.json", len(CONFIG), None]
    model = [MODEL, len(WEIGHTS), [SHA256, len(WEIGHTS)]]
    optimizer = ["sub/optimizer.bin", 1000, [hashlib.sha256(WEIGHTS[:1000]).hexdigest(), 1000]]
    note = ["sub/a note.txt", 5, None]
    assert found["all"] == [config, model, "sub", note, optimizer]
    assert found["top"] == [config, model, "sub"]
    assert found["sub"] == [note, optimizer]
    assert found["some"] == [config]
    assert found["ids"]["config.json"] == GIT
    assert found["ids"][MODEL] not in (GIT, SHA256)  # that of the pointer
    sizes = [entry[:2] for entry in (config, model, note, optimizer)]
    assert found["info"] == [hub.commit("org/model"), False, False, sizes]
    assert found["none"] == ["RemoteEntryNotFoundError", 404]
    assert len([r for r in hub.requests if "recursive=true" in r.path]) == 2
    tag = hub.commit("org/model", "v1")
    assert found["names"] == [commit, commit, tag, tag, commit]
    assert found["missing"] == [["RevisionNotFoundError", 404]] * 3 + [
        ["RemoteEntryNotFoundError", 404]
    ]
    assert found["files"] == ["café", "café", CONFIG.decode()]
    assert (
        hub.add("org/model", folder)
        == commit
        != hub.add("org/model", folder / "sub")
        == hub.commit("org/model")
    )
    assert ask(address(hub, "config.json", commit))[2] == CONFIG


def test_refusals(hub, folder, tmp_path):
    hub.add("org/gated", folder, gated=True)
    hub.add("org/private", folder, private=True)
    hub.tokens.add("hf_good")
    code = """
def all(token):
    told = {}
    for repo in ("org/model", "org/gated", "org/private", "org/none"):
        told[repo] = [
            fault(lambda: hf.model_info(repo, token=token)),
            fault(lambda: list(hf.HfApi().list_repo_tree(repo, token=token))),
            fault(
                lambda: hf.hf_hub_download(repo, "config.json", token=token, force_download=False)
            ),
        ]
    return told
found = [all(False), all("hf_good"), all("hf_bad"), hf.model_info("org/gated", token=False).gated]
"""
    gone, denied, fine = "RepositoryNotFoundError", "GatedRepoError", [None] * 3
    anonymous, good, bad, gated = client(hub, tmp_path / "before", code)
    assert anonymous == {
        "org/model": fine,
        "org/gated": [None, None, [denied, 401]],
        "org/private": [[gone, 401]] * 3,
        "org/none": [[gone, 401]] * 3,
    }
    assert good == {
        "org/model": fine,
        "org/gated": [None, None, [denied, 403]],
        "org/private": [[gone, 404]] * 3,
        "org/none": [[gone, 404]] * 3,
    }
    # the model's file is in the cache by then, which the client falls back to
    assert {repo: told[0] for repo, told in bad.items()} == {
        repo: ["HfHubHTTPError", 401] for repo in bad
    }
    assert gated == "manual"
    hub.granted |= {"org/gated", "org/private"}
    _, good, _, _ = client(hub, tmp_path / "after", code)
    assert [good["org/gated"], good["org/private"]] == [fine, fine]


def test_redirects_within_the_hub(hub, tmp_path):
    hub.renamed["model"] = "org/model"
    hub.resolve_cache = True
    hub.tokens.add("hf_secret")
    code = f"""
get = lambda name: Path(hf.hf_hub_download("model", name)).read_bytes().hex()
found = [hf.model_info("model").id, get("config.json"), get("{MODEL}")]
"""
    assert client(hub, tmp_path, code, "hf_secret") == ["org/model", CONFIG.hex(), WEIGHTS.hex()]
    assert [r.status for r in hub.asked("/api/resolve-cache/*", method="GET")] == [200]
    assert {r.origin: r.authorized for r in hub.requests} == {"hub": True, "cdn": False}


def test_client_outlives_faults(hub, tmp_path):
    hub.fail(MODEL, Cut(200_000), origin="cdn")
    hub.fail("config.json", Status(429, {"Retry-After": "0"}))
    hub.fail("*/optimizer.bin", Redirect(), method="HEAD")
    hub.tokens.add("hf_secret")
    code = f"""
# after a cut the client goes on from its last whole chunk, which is of 10 MiB otherwise
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 100_000
found = {{}}
def get(name):
    found[name] = Path(hf.hf_hub_download("org/model", name)).read_bytes().hex()
names = "{MODEL}", "config.json", "sub/optimizer.bin"
threads = [threading.Thread(target=get, args=[name]) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    found = client(hub, tmp_path, code, "hf_secret")
    assert found == {
        MODEL: WEIGHTS.hex(),
        "config.json": CONFIG.hex(),
        "sub/optimizer.bin": WEIGHTS[:1000].hex(),
    }
    assert [(r.status, r.range, r.sent) for r in hub.asked(MODEL, method="GET")] == [
        (200, None, 200_000),
        (206, "bytes=200000-", 100_000),
    ]
    assert [r.status for r in hub.asked("config.json", method="GET")] == [429, 200]
    assert [(r.origin, r.authorized) for r in hub.asked("*/optimizer.bin")] == [
        ("hub", True),
        ("other", False),
    ]


# The server itself


@pytest.mark.parametrize("origin", ["hub", "cdn"])
@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=5-", 206, 5, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=9-5", 200, 0, None),
        ("bytes=0-1,3-4", 200, 0, None),
        ("bytes=99999999-", 416, 0, 0),
    ],
)
def test_ranges(hub, origin, asked, status, start, stop):
    url, content = address(hub, "config.json"), CONFIG
    if origin == "cdn":
        url, content = signed(hub), WEIGHTS
    hub.reset()
    told, headers, body = ask(url, asked)
    expected, size = content[start:stop], len(content)
    assert (told, body, int(headers["content-length"])) == (status, expected, len(expected))
    last = start + len(expected) - 1
    ranges = {206: f"bytes {start}-{last}/{size}", 416: f"bytes */{size}"}
    assert headers.get("content-range") == ranges.get(status)
    request = hub.requests[0]
    assert (request.range, request.status, request.sent) == (asked, status, len(expected))
    assert ask(url, asked, "HEAD")[::2] == (status, b"")


def test_headers_of_large_file(hub):
    status, headers, _ = ask(address(hub), method="HEAD")
    assert (status, headers["x-linked-etag"], headers["x-linked-size"]) == (
        302,
        f'"{SHA256}"',
        str(len(WEIGHTS)),
    )
    assert headers["x-repo-commit"] == hub.commit("org/model")
    assert headers["location"].startswith(hub.cdn)
    assert ask(f"{hub.cdn}/{SHA256}")[0] == 403
    hub.expires_in = -1
    assert ask(signed(hub))[0] == 403


FAULTS = [
    (Status(503, {"Retry-After": "1"}), None, 503, b""),
    (Drop(), None, http.client.RemoteDisconnected, 0),
    (Drop(reset=True), None, ConnectionResetError, 0),
    (Cut(70_000), "bytes=10-", 206, WEIGHTS[10:70_010]),
    (Cut(1000, reset=True), None, ConnectionResetError, 1000),
    (Stall(30, None), None, TimeoutError, 0),
    (Stall(30, 0), None, TimeoutError, 0),
    (Stall(30, 1000), None, TimeoutError, 1000),
    (Flip(299_999), "bytes=299000-", 206, WEIGHTS[299_000:-1] + bytes([WEIGHTS[-1] ^ 0xFF])),
    (Truncate(1000), None, 200, WEIGHTS[:1000]),
    (Truncate(1000), "bytes=990-2000", 206, WEIGHTS[990:1000]),
    (Truncate(1000), "bytes=1000-2000", 416, b""),
    (IgnoreRange(), "bytes=10-19", 200, WEIGHTS),
    (WrongRange(), "bytes=10-19", 206, WEIGHTS[11:21]),
    (WrongRange(), "bytes=299990-", 206, WEIGHTS[299_989:-1]),
    (WrongRange(), "bytes=0-", 206, WEIGHTS[:-1]),
]


@pytest.mark.parametrize(("action", "asked", "told", "body"), FAULTS, ids=str)
def test_each_fault_is_one_answer(hub, action, asked, told, body):
    """Between two right answers: a status and a body, or a broken line after so many bytes."""
    fault = hub.fail(MODEL, action, origin="cdn", skip=1)
    url, began = signed(hub), time.monotonic()
    before = ask(url, asked)[2]
    if isinstance(told, int):
        status, headers, found = ask(url, asked)
        assert (status, found) == (told, body)
        if status == 206 and not isinstance(action, Cut):
            start = WEIGHTS.index(body[:10])
            assert headers["content-range"].startswith(f"bytes {start}-{start + len(body) - 1}/")
    else:
        with pytest.raises(told):
            ask(url, asked, timeout=0.2)
        assert hub.asked(MODEL, origin="cdn")[1].sent == body
        assert time.monotonic() - began < 30  # the server does not wait for who has gone
    assert ask(signed(hub), asked)[2] == before
    assert fault.fired == 1


def test_expire(hub):
    hub.fail(MODEL, Expire())
    url = signed(hub)
    assert [ask(url)[0], ask(url)[0], ask(signed(hub))[0]] == [403, 403, 200]


def test_loop(hub):
    hub.fail(MODEL, Loop(), times=None)
    path = "/org/model/resolve/main/model.safetensors?"
    assert [ask(address(hub))[1]["location"] for _ in range(3)] == [path] * 3


def test_redirect(hub):
    hub.fail(MODEL, Redirect())
    hub.fail("config.json", Redirect())
    hub.fail("config.json", Redirect("ftp://nowhere/"))
    for file, content in ((MODEL, WEIGHTS), ("config.json", CONFIG)):
        status, headers, _ = ask(address(hub, file))
        assert (status, headers["x-repo-commit"]) == (302, hub.commit("org/model"))
        assert headers["location"].startswith(hub.other)
        assert ask(headers["location"])[2] == content
    assert ask(address(hub, "config.json"))[1]["location"] == "ftp://nowhere/"


def test_faults_of_the_api(hub):
    hub.fail("/api/models/org/model/tree/*", Status(500))
    hub.fail("/api/models/*", Cut(10), times=2, skip=1)
    url = f"{hub.endpoint}/api/models/org/model"
    assert ask(f"{url}/tree/main")[0] == 500
    assert [len(ask(url)[2]) for _ in range(4)] == [473, 10, 10, 473]


def test_rate_is_shared(hub):
    urls = [signed(hub) for _ in range(3)]
    hub.reset()
    hub.rate = 2_000_000
    began = time.monotonic()
    threads = [threading.Thread(target=ask, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    while not hub.sent:
        time.sleep(0.01)
    assert hub.sent < 2 * len(WEIGHTS)
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 0.3
    assert [r.sent for r in hub.requests] == [len(WEIGHTS)] * 3


def test_clients_that_leave(hub, capfd):
    url = urlsplit(signed(hub))
    hub.reset()
    hub.rate = 1_000_000
    with socket.create_connection((url.hostname, url.port)) as line:
        line.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        received = b""
        while len(received) < 1000:
            received += line.recv(1000)
    assert 0 < hub.requests[0].sent < len(WEIGHTS)
    idle = http.client.HTTPConnection(url.netloc)
    idle.request("GET", "/")
    assert idle.getresponse().read().startswith(b"<Error>")
    began = time.monotonic()
    hub.close()
    assert time.monotonic() - began < 15
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((url.hostname, url.port))


def test_connections_are_kept(hub):
    line = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc)
    for _ in range(3):
        line.request("GET", "/org/model/resolve/main/config.json", headers={"Authorization": "x"})
        assert b"Invalid credentials" in line.getresponse().read()
    assert [request.status for request in hub.requests] == [401] * 3
    assert len(hub.connections) == 1
