"""Reports by way of the drivers of Google Cloud Storage and of Azure, on emulators of these stores.

What only the stores themselves can show is not tested: the emulator of Google's store takes no
notice of the condition that an object is not there yet.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import run_shadow

from shadow.audits.list_index import read_index
from shadow.reports.remote import CLAIM, fetched
from shadow.storage import Store, located
from shadow.telling.reading import read_summary

pytestmark = pytest.mark.slow
QUICK = ("--no-subspaces", "--layer", "0", "--module", "mlp.up")
# the account that Azurite documents
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ENVIRONMENT = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # which asks Google itself


@contextlib.contextmanager
def google() -> Iterator[Store]:
    server = pytest.importorskip("gcp_storage_emulator.server")
    serving = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="audits")
    serving.start()
    try:
        port = serving._api._httpd.server_address[1]
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "p"}
        yield located("gs://audits/reports", options)
    finally:
        serving.stop()


@contextlib.contextmanager
def azure() -> Iterator[Store]:
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the path (npm install -g azurite)")
    blobs = pytest.importorskip("azure.storage.blob")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    process = subprocess.Popen(
        [*command, "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.1)
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        )
        blobs.BlobServiceClient.from_connection_string(connection).create_container("audits")
        yield located("az://audits/reports", {"connection_string": connection})
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("serving", [google, azure])
def test_reports_are_written_read_and_merged(serving, tmp_path: Path, monkeypatch):
    """A list of two shards into URLs of their own, the same command again, a merge and a gate; a
    report is that of a folder, nothing is left, and no credential is told.
    """
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with serving() as store:
        variables = {
            **ENVIRONMENT,
            "SHADOW_WORK_DIR": str(tmp_path / "work"),
            "SHADOW_STORAGE_OPTIONS": json.dumps(store.options),
        }

        def run(*words: str) -> tuple[str, str]:
            done = run_shadow(*words, cwd=tmp_path, env=variables)
            assert KEY not in done.out + done.err
            done.assert_done()
            return done.out, done.err

        (tmp_path / "list.txt").write_text("demo:base..narrow\ndemo:base..broad\n")
        again = ""
        for number in "12":
            words = ("--list", "list.txt", "--shard", f"{number}/2", "-o", store.at(number).url)
            _, first = run("audit", *words, *QUICK)
            assert "nothing to measure" not in first
            again += run("audit", *words, *QUICK)[1]
        assert again.count("nothing to measure") == 2
        out, _ = run("merge", store.at("all").url, store.at("1").url, store.at("2").url)
        assert "pairs  2: 2 done" in out
        run("gate", store.at("all").url, "--fail-on", "concentration > 0.99")
        run("audit", "demo:base..narrow", "-o", "local", *QUICK)
        folder = fetched(store.at("all"))
        summary, _ = read_summary(folder / "demo" / "base..narrow")
        assert summary == read_summary(tmp_path / "local" / "demo" / "base..narrow")[0]
        index = read_index(folder)
        assert index is not None
        assert [row.state for row in index.rows] == ["done", "done"]
        assert not [name for name in store.files() if name.endswith((CLAIM, ".tmp"))]


def test_creating_a_blob_is_conditional_at_azure():
    """The second of two writers does not create what is there."""
    with azure() as store:
        assert store.create("claim", b"one")
        assert not store.create("claim", b"two")
        assert store.read("claim", 10) == b"one"
