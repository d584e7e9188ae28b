"""A server with the Hub's API of buckets, and the transfer of contents through it.

The requests are those of the real client. Contents go to Xet's servers in a protocol of their own,
which nothing here speaks: in its place `Buckets` takes and gives them, by their hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

BUCKET = "org/audits"
TOKEN = "hf_" + "s" * 34
TIME = "2026-01-01T00:00:00.000Z"
PAGE = 3  # entries of an answer: what is more comes in further ones


@dataclass
class Buckets:
    """What the server holds, and what came in."""

    url: str = ""
    files: dict[str, str] = field(default_factory=dict)  # path -> hash
    contents: dict[str, bytes] = field(default_factory=dict)  # by hash
    written: list[str] = field(default_factory=list)  # paths, in the order they appeared

    def options(self) -> dict[str, str]:
        return {"endpoint": self.url, "token": TOKEN}

    def take(self, content: bytes) -> str:
        found = hashlib.sha256(content).hexdigest()
        self.contents[found] = content
        return found

    def entries(self, prefix: str, *, recursive: bool) -> list[dict[str, Any]]:
        """As the Hub lists them: a prefix is letters, not a folder."""
        told: dict[str, dict[str, Any]] = {}
        for path, found in sorted(self.files.items()):
            if not path.startswith(prefix):
                continue
            rest = path[len(prefix) :].lstrip("/")
            folder = path[: len(path) - len(rest)] + rest.split("/")[0]
            if not recursive and folder != path:
                told[folder] = {"type": "directory", "path": folder, "uploadedAt": TIME}
                continue
            told[path] = {
                "type": "file", "path": path, "size": len(self.contents[found]), "xetHash": found,
                "mtime": TIME, "uploadedAt": TIME,
            }  # fmt: skip
        return list(told.values())


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: Buckets

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: object, **headers: str) -> None:
        self._answer(200, json.dumps(value).encode(), **headers)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401)
            return
        where = urlsplit(self.path)
        path, query = where.path, parse_qs(where.query)
        api, resolve = f"/api/buckets/{BUCKET}", f"/buckets/{BUCKET}/resolve/"
        if path == api:
            self._json(
                {"id": BUCKET, "private": True, "createdAt": TIME, "size": 0, "totalFiles": 0}
            )
        elif path.startswith(f"{api}/tree"):
            prefix = unquote(path.removeprefix(f"{api}/tree").removeprefix("/"))
            entries = self.held.entries(prefix, recursive=query.get("recursive") == ["true"])
            start = int(query.get("cursor", ["0"])[0])
            more = {}
            if start + PAGE < len(entries):
                again = f"{self.held.url}{path}?recursive={query['recursive'][0]}"
                more = {"Link": f'<{again}&cursor={start + PAGE}>; rel="next"'}
            self._json(entries[start : start + PAGE], **more)
        elif path.startswith(resolve) and unquote(path.removeprefix(resolve)) in self.held.files:
            content = self.held.contents[self.held.files[unquote(path.removeprefix(resolve))]]
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                self._answer(206, content[int(first) : int(last) + 1])
            else:
                self._answer(200, content)
        else:
            self._answer(404, **{"X-Error-Code": "RepoNotFound"} if "/api/" in path else {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401)
            return
        for line in body.splitlines():
            told = json.loads(line)
            if told["type"] == "deleteFile":
                self.held.files.pop(told["path"], None)
            else:
                self.held.files[told["path"]] = told["xetHash"]
                self.held.written.append(told["path"])
        self._json({"failed": []})


@contextlib.contextmanager
def bucket_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    """The server on a free port of the loopback, and Xet's transfers by way of it."""
    import huggingface_hub.hf_file_system as file_system
    from huggingface_hub.utils import _xet

    held = Buckets()

    class Commit:
        def __enter__(self) -> Commit:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start_upload_file(self, path: str, **_: object) -> SimpleNamespace:
            return self.start_upload_bytes(Path(path).read_bytes())

        def start_upload_bytes(self, content: bytes, **_: object) -> SimpleNamespace:
            told = SimpleNamespace(hash=held.take(content), file_size=len(content))
            return SimpleNamespace(result=lambda: SimpleNamespace(xet_info=told))

    def get(*, incomplete_path: Path, xet_file_data: Any, **_: object) -> None:
        incomplete_path.write_bytes(held.contents[xet_file_data.file_hash])

    session = SimpleNamespace(new_upload_commit=lambda **_: Commit())
    monkeypatch.setattr(_xet, "get_xet_session", lambda: session)
    monkeypatch.setattr(file_system, "xet_get", get)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Answers,), {"held": held}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
