"""Reports on an S3 server that fails: 5xx, cut uploads, silence, two writers, a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
import stores
from command import Started, run_shadow

from shadow.audits.pair import Settings
from shadow.audits.remote import run_remote_pair
from shadow.checkpoints.pairing import Filter
from shadow.errors import ShadowError
from shadow.reports import remote
from shadow.reports.remote import CLAIM, fetched_if_any
from shadow.spectra.delta import Method
from shadow.storage import Store, located
from shadow.targets.lists import select

pytestmark = pytest.mark.slow
PAIR = "demo/base..narrow"
FILES = [
    "files.parquet",
    "matrices.parquet",
    "spectra.parquet",
    "summary.json",
    "tensors.parquet",
]
QUICK = ("--no-subspaces", "--layer", "0", "--module", "mlp.up")


@pytest.fixture(scope="module")
def serving():
    from s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def server(serving):
    """The server without faults."""
    serving.fault = lambda _: None
    serving.requests.clear()
    yield serving
    serving.fault = lambda _: None


@pytest.fixture
def url(request):
    """A folder of this test in the bucket."""
    return f"s3://audits/{request.node.name.replace('[', '-').strip(']')}"


@pytest.fixture
def run(server, tmp_path):
    """Runs a command with the usual variables; nothing that it tells holds the secret."""

    def run(*words, work="work", **env):
        variables = server.env(SHADOW_WORK_DIR=str(tmp_path / work), TMPDIR=str(tmp_path), **env)
        done = run_shadow(*words, cwd=tmp_path, env=variables)
        _assert_no_secret(done.out + done.err)
        return done

    return run


def _assert_no_secret(text):
    from s3 import KEY, SECRET

    assert SECRET not in text
    assert KEY not in text


def store_of(server, url) -> Store:
    return located(url, server.options())


def whole(server, url):
    """The chosen layers of a report whose files are of one audit; None where there is none."""
    folder = fetched_if_any(store_of(server, url).at(*PAIR.split("/")))
    return folder and stores.whole(folder)


def test_an_audit_into_a_bucket_is_read_from_it(server, run, url):
    """By the usual variables of the environment; again, it measures and writes nothing."""
    words = ("audit", "demo:base..narrow", "-o", url, *QUICK)
    out = run(*words).assert_done()
    assert f"{url}/{PAIR} " in out
    assert sorted(store_of(server, url).files()) == [f"{PAIR}/{name}" for name in FILES]
    assert f"{url}/{PAIR} " in run("show", url).assert_done()
    server.requests.clear()
    again = run(*words)
    again.assert_done()
    assert "nothing to measure: the report is already there" in again.err
    assert not [path for path in server.named("PUT") if PAIR in path]
    assert whole(server, url) == [0]


def test_options_are_used_and_never_told(server, run, url, tmp_path):
    """Keys of --storage-options; no object and no file of this machine holds them."""
    from s3 import KEY, SECRET

    (tmp_path / "options.json").write_text(json.dumps(server.options()))
    words = ("audit", "--list", "list.txt", "-o", url, "--storage-options", "options.json", *QUICK)
    (tmp_path / "list.txt").write_text("demo\n")
    bare = dict.fromkeys(server.env())
    run(*words, **bare).assert_done()
    objects = store_of(server, url)
    assert {"index.json", "batch.parquet"} < set(objects.files())
    for name in objects.files():
        content = objects.read(name, 10**8)
        assert KEY.encode() not in content
        assert SECRET.encode() not in content
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "options.json":
            assert SECRET.encode() not in path.read_bytes()
    denied = run("show", url, "--storage-options", '{"key": "a"', **bare)
    denied.assert_refused(2)


def test_creating_an_object_is_conditional_at_the_store(server, url):
    """The store itself tells the second of two writers, but not a repeated one of equal content."""
    store = store_of(server, url)
    assert store.create("claim", b"first")
    assert not store.create("claim", b"second")
    assert store.create("claim", b"first")
    written = store.modified("claim")  # by which a claim without a time grows old
    assert written is not None
    assert abs((datetime.now(UTC) - written).total_seconds()) < 600
    assert store.modified("nothing") is None
    assert store.read("claim", 100) == b"first"


@pytest.mark.parametrize("fault", ["500", "503", "cut"])
def test_faults_that_pass_are_retried(server, run, url, fault):
    """Of every object the first attempt fails: the report is whole, and nobody is told."""
    tried = set()

    def first(request):
        if request.method != "PUT" or request.path in tried:
            return None
        tried.add(request.path)
        return fault

    server.fault = first
    done = run("audit", "demo:base..narrow", "-o", url, *QUICK)
    done.assert_done()
    assert len(tried) >= 6
    assert whole(server, url) == [0]
    assert CLAIM not in store_of(server, url).at(*PAIR.split("/")).files()


@pytest.mark.parametrize("fault", ["500", "cut", "403"])
@pytest.mark.parametrize("name", ["tensors.parquet", "matrices.parquet", ".uploading.json"])
def test_a_fault_that_stays_ends_in_one_line_and_loses_nothing(
    server, run, url, fault, name, tmp_path
):
    """Exit 1 within a minute, no report there, the finished one here; the command goes on."""
    server.fault = lambda request: (
        fault if request.method == "PUT" and request.path.endswith(name) else None
    )
    words = ("audit", "demo:base..narrow", "-o", url, *QUICK)
    began = time.monotonic()
    failed = run(*words)
    assert time.monotonic() - began < 60
    error = failed.assert_refused(1)
    folder = next((tmp_path / "work").iterdir()) / PAIR
    assert f"{url}/{PAIR}/{name}: " in error
    assert f"the report is finished, but not uploaded: it is in {folder}" in error
    assert "measures nothing again" in failed.err
    if fault == "403":
        assert "access denied" in error
    assert whole(server, url) is None
    server.fault = lambda _: None
    again = run(*words)
    again.assert_done()
    assert "nothing to measure" in again.err
    assert whole(server, url) == [0]
    assert not folder.exists()


def test_what_may_not_be_written_is_told_before_anything_is_measured(server, run, url, tmp_path):
    server.fault = lambda request: "403" if request.method == "PUT" else None
    failed = run("audit", "demo:base..narrow", "-o", url, *QUICK)
    assert failed.assert_refused(1).startswith(f"error: {url}: access denied")
    assert "--storage-options, or AWS_ACCESS_KEY_ID" in failed.err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("fault", "told"), [("403", "access denied"), ("404", "no "), ("500", "the store failed")]
)
def test_what_cannot_be_read_is_one_line(server, run, url, fault, told):
    run("audit", "demo:base..narrow", "-o", url, *QUICK).assert_done()
    server.fault = lambda request: fault if request.method == "GET" else None
    failed = run("show", url)
    assert told in failed.assert_refused(1)
    server.fault = lambda request: fault if request.path.endswith("tensors.parquet") else None
    assert told in run("show", url).assert_refused(1)


@pytest.mark.parametrize(
    "words", [("show", "s3://no-such-bucket/x"), ("audit", "demo", "-o", "s3://no-such-bucket/x")]
)
def test_a_bucket_that_is_not_there(run, words):
    assert "s3://no-such-bucket/x: no " in run(*words).assert_refused(1)


def test_a_server_that_cannot_be_reached_or_is_silent(server, run, url):
    """A closed port, and an answer that does not come: told within a minute, with exit code 1."""
    began = time.monotonic()
    failed = run("show", url, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "cannot be reached" in failed.assert_refused(1)
    server.fault = lambda _: "wait"
    options = {"config_kwargs": {"read_timeout": 0.5, "retries": {"max_attempts": 1}}}
    failed = run("show", url, "--storage-options", json.dumps(options))
    assert "cannot be reached" in failed.assert_refused(1)
    assert time.monotonic() - began < 60


def started(server, tmp_path, work, *words):
    """A command in a process of its own interpreter, at work beside this one."""
    env = {**os.environ, **server.env(SHADOW_WORK_DIR=str(tmp_path / work))}
    command = [sys.executable, "-m", "shadow", *words]
    return subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("same", [True, False])
def test_two_machines_with_one_pair_do_not_mix(server, url, tmp_path, same):
    """Both upload at once, slowly: the report is of one; who lost is told or agrees."""
    server.fault = lambda request: (
        "wait" if request.path.endswith(("spectra.parquet", "files.parquet")) else None
    )
    other = QUICK if same else ("--no-subspaces", "--layer", "1", "--module", "mlp.up")
    both = [
        started(server, tmp_path, work, "audit", "demo:base..narrow", "-o", url, *choice)
        for work, choice in (("one", QUICK), ("two", other))
    ]
    ended = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    for _, err in ended:
        assert "Traceback" not in err
        _assert_no_secret(err)
    server.fault = lambda _: None
    layers = whole(server, url)
    if same:
        assert codes == [0, 0], ended
        assert layers == [0]
    else:
        assert sorted(codes) == [0, 1], ended
        assert layers == [codes.index(0)]
        assert (
            "differs: --layer" in ended[codes.index(1)][1]
            or "has just ended there" in ended[codes.index(1)][1]
        )
    assert CLAIM not in store_of(server, url).at(*PAIR.split("/")).files()


@pytest.mark.parametrize("name", ["spectra.parquet", "matrices.parquet"])
def test_a_writer_that_is_killed_goes_on_where_it_was(
    server, run, url, tmp_path, monkeypatch, name
):
    """No reader finds half a report; the same command publishes without measuring."""
    server.fault = lambda request: "wait" if request.path.endswith(name) else None
    words = ("audit", "demo:base..narrow", "-o", url, *QUICK)
    env = server.env(SHADOW_WORK_DIR=str(tmp_path / "work"), TMPDIR=str(tmp_path))
    writer = Started(*words, cwd=tmp_path, env=env)
    while not [path for path in server.named("PUT") if path.endswith(name)]:
        time.sleep(0.01)
    writer.kill(signal.SIGKILL)
    server.fault = lambda _: None
    assert whole(server, url) is None
    assert CLAIM in store_of(server, url).at(*PAIR.split("/")).files()
    (demo,) = select(["demo:base..narrow"]).pairs
    settings = Settings(Method(subspaces=False), Filter(layers=(0,)))
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    with pytest.raises(ShadowError, match="another audit is writing there"):
        run_remote_pair(demo, settings, tmp_path / "elsewhere", store=store_of(server, url))
    again = run(*words)
    again.assert_done()
    assert "nothing to measure" in again.err
    assert whole(server, url) == [0]


def test_a_report_that_vanishes_while_it_is_read(server, url, run, tmp_path):
    """One line, and no half report."""
    run("audit", "demo:base..narrow", "-o", url, *QUICK).assert_done()
    target = store_of(server, url).at(*PAIR.split("/"))
    sizes = {name: entry.size for name, entry in target.files().items()}
    target.remove(["tensors.parquet"])
    with pytest.raises(ShadowError, match="no such bucket or file"):
        target.fetch(sizes, tmp_path)


def test_what_befalls_an_abandoned_connection_is_not_printed(tmp_path):
    """As after a reset: asyncio printed a traceback beside the line that tells of it."""
    code = (
        "from shadow.storage import driver\n"
        "fault = {'message': 'Fatal error on transport', 'exception': ConnectionResetError()}\n"
        "driver('s3', '{}', 0).loop.call_exception_handler(fault)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_connection_that_is_reset_is_one_line(server, run, url):
    """In the middle of an answer, whenever one is asked for."""
    run("audit", "demo:base..narrow", "-o", url, *QUICK).assert_done()
    server.fault = lambda request: (
        "reset" if request.method == "GET" and request.path.endswith("tensors.parquet") else None
    )
    assert f"{url}/{PAIR}/tensors.parquet: " in run("show", url).assert_refused(1)
