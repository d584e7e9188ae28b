"""A Hugging Face Hub on this machine, for tests and benchmarks: its HTTP API, and the server that
large files lie on.

The real client speaks to it with HF_ENDPOINT set to Hub.endpoint. As on huggingface.co, small files
are answered at once; large ones (Git-LFS) by a redirect to a signed address on a second origin,
which must never see a token. hub_parts.py has what it answers, and what can go wrong.
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode

from hub_parts import (
    EXPIRED,
    FILE_HEADERS,
    Action,
    Answer,
    Cut,
    Drop,
    Expire,
    Fault,
    File,
    Flip,
    IgnoreRange,
    Loop,
    Redirect,
    Repo,
    Request,
    Signed,
    Stall,
    Status,
    Truncate,
    WrongRange,
    applies,
    entries_of,
    file_of,
    json_answer,
    matches,
    redirect_to,
    refusal,
    sibling,
)

CHUNK = 1 << 18  # bytes written at a time
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
API = re.compile(
    rf"/api/models/{REPO}(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+?))?)?/?"
)
RESOLVE = re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RESOLVE_CACHE = re.compile(
    rf"/api/resolve-cache/models/{REPO}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)"
)


class Hub:
    """A running Hub. Close it, or use it in a `with`.

    Attributes:
        endpoint, cdn, other: the addresses of the three origins ("hub", "cdn", "other"; see
            Redirect).
        tokens, granted: tokens that are accepted, and the gated or private repositories that all
            of them open.
        faults: the rules of `fail`.
        page_size: entries on a page of a listing.
        expires_in: seconds for which a signed address is good.
        rate: bytes per second of all bodies together, or None.
        renamed: old names of repositories; they are redirected to the new ones.
        resolve_cache: redirect small files to /api/resolve-cache of the same origin, as
            huggingface.co does.
        sent: bytes of bodies so far, also of answers under way.
    """

    def __init__(self, port: int = 0) -> None:
        self.tokens: set[str] = set()
        self.granted: set[str] = set()
        self.faults: list[Fault] = []
        self.page_size = 1000
        self.expires_in = 3600.0
        self.rate: int | None = None
        self.renamed: dict[str, str] = {}
        self.resolve_cache = False
        self.sent = 0
        self._repos: dict[str, Repo] = {}
        self._signed: dict[str, Signed] = {}
        self._requests: dict[int, Request] = {}  # by when they came
        self._numbers = count()
        self._changed = threading.Condition()
        self._under_way = 0
        # when what is on the line by now will have gone through, by time.monotonic
        self._line_free = 0.0
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self._servers = {
            name: _Server(self, name, port if name == "hub" else 0)
            for name in ("hub", "cdn", "other")
        }
        self.endpoint, self.cdn, self.other = (server.url for server in self._servers.values())
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all three servers and end the connections that are still open."""
        self.closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(
        self,
        repo: str,
        folder: Path,
        *,
        revisions: Mapping[str, Path] | None = None,
        gated: bool | str = False,
        private: bool = False,
        lfs: Callable[[str], bool] = lambda name: name.endswith((".safetensors", ".bin")),
    ) -> str:
        """Serve a folder as the main branch of a repository, others as further branches or tags.

        Returns the commit of main, which follows from the files. Adding a repository again moves
        its main; older commits stay, as long as the files of their folders do. gated: True, "auto"
        or "manual".
        """
        known = self._repos.setdefault(repo, Repo())
        known.gated, known.private = "manual" if gated is True else gated, private
        for name, source in {**(revisions or {}), "main": folder}.items():
            paths = {
                path.relative_to(source).as_posix(): path
                for path in source.rglob("*")
                if path.is_file()
            }
            files = {path: file_of(path, paths[path], lfs(path)) for path in sorted(paths)}
            content = repo + "".join(f"\n{file.oid} {path}" for path, file in files.items())
            commit = hashlib.sha1(content.encode()).hexdigest()
            known.commits[commit] = files
            known.refs[name] = commit
        return known.refs["main"]

    def commit(self, repo: str, revision: str = "main") -> str:
        """The commit that a branch or tag names."""
        return self._repos[repo].refs[revision]

    def fail(
        self,
        pattern: str,
        action: Action,
        *,
        origin: str | None = None,
        method: str | None = "GET",
        times: int | None = 1,
        skip: int = 0,
    ) -> Fault:
        """Make requests fail: `skip` that match pass first, the next `times` do not (None: all).

        pattern is compared by fnmatch with the file's name in its repository, with repo/name, and
        with the path that was asked for. A request matches only if the action makes sense for it:
        Cut needs a body, Flip a file. The first rule that fires is the only one applied.
        """
        fault = Fault(pattern, action, origin, method, times, skip)
        self.faults.append(fault)
        return fault

    @property
    def requests(self) -> list[Request]:
        """All answered requests in order. Waits up to a second for answers under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout=1)
            return [request for _, request in sorted(self._requests.items())]

    def asked(
        self, pattern: str = "*", *, origin: str | None = None, method: str | None = None
    ) -> list[Request]:
        """The requests that match, as `fail` would match them."""
        return [
            request
            for request in self.requests
            if origin in (None, request.origin)
            and method in (None, request.method)
            and matches(pattern, request.repo, request.filename, request.path)
        ]

    def bytes_of(self, pattern: str = "*", *, origin: str | None = None) -> int:
        """Bytes of bodies sent for the requests that match."""
        return sum(request.sent for request in self.asked(pattern, origin=origin))

    def reset(self) -> None:
        """Forget the requests and the faults."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout=1)
            self._requests.clear()
            self.faults.clear()
            self.sent = 0

    # What follows is for the servers' threads.

    @contextlib.contextmanager
    def answering(self) -> Iterator[int]:
        """Around an answer, so that `requests` can wait for its end; gives the request's number."""
        with self._changed:
            self._under_way += 1
            number = next(self._numbers)
        try:
            yield number
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def note(self, number: int, request: Request) -> None:
        with self._changed:
            self._requests[number] = request

    def add_sent(self, size: int) -> None:
        with self._changed:
            self.sent += size

    def chunk(self) -> int:
        """Bytes to write at a time: a fiftieth of a second's, where the line is slow."""
        return min(CHUNK, max(1024, self.rate // 50)) if self.rate else CHUNK

    def pace(self, size: int) -> None:
        """Wait until so many bytes have gone through the line that all connections share."""
        if not self.rate:
            return
        with self._changed:
            now = time.monotonic()
            # the twentieth of a second that may be caught up on makes good for sleeping too long
            self._line_free = max(self._line_free, now - 0.05) + size / self.rate
            wait = self._line_free - now
        self.closing.wait(max(wait, 0))

    def fault(self, origin: str, method: str, path: str, answer: Answer) -> Action | None:
        """What shall go wrong with this answer, if anything."""
        name = answer.about.name if answer.about else ""
        with self._changed:
            for fault in self.faults:
                if (
                    fault.origin in (None, origin)
                    and fault.method in (None, method)
                    and matches(fault.pattern, answer.repo, name, path)
                    and applies(fault.action, answer, origin)
                ):
                    if fault.skip:
                        fault.skip -= 1
                    elif fault.times is None or fault.fired < fault.times:
                        fault.fired += 1
                        return fault.action
        return None

    def break_answer(self, answer: Answer, action: Action, path: str, asked: str | None) -> None:
        """Apply what can be applied to an answer before it is sent."""
        match action:
            case Status(code, headers):
                answer.become(code, headers)
            case Truncate(size):
                answer.select(asked, size)
            case IgnoreRange():
                answer.select(None)
            case WrongRange() if answer.file:
                size = answer.file.size
                if answer.stop < size:
                    answer.start, answer.stop = answer.start + 1, answer.stop + 1
                elif answer.start > 0:
                    answer.start, answer.stop = answer.start - 1, answer.stop - 1
                else:  # the whole file was asked for
                    answer.stop = max(answer.stop - 1, 1)
                answer.headers["Content-Range"] = f"bytes {answer.start}-{answer.stop - 1}/{size}"
            case Expire() if answer.signed:
                answer.signed.expires = 0
                answer.become(*EXPIRED)
            case Loop():
                answer.become(302, {"Location": path})
            case Redirect(url) if answer.about:
                url = url or self._sign(self.other, answer.repo, answer.about)
                answer.become(
                    302, redirect_to(answer.about, url, answer.headers.get("X-Repo-Commit"))
                )

    def answer(self, origin: str, target: str, headers: Mapping[str, str], form: bytes) -> Answer:
        """What the Hub, or the server of the large files, says if nothing goes wrong."""
        path, _, query = target.partition("?")
        parameters = {name: values[-1] for name, values in parse_qs(query).items()}
        if origin != "hub":
            return self._answer_file_server(parameters, headers)
        token = headers.get("Authorization")
        if token is not None and token.removeprefix("Bearer ") not in self.tokens:
            return refusal(401, None, "Invalid credentials in Authorization header")
        match = API.fullmatch(path) or RESOLVE.fullmatch(path) or RESOLVE_CACHE.fullmatch(path)
        if not match:
            return refusal(404, None, "Sorry, we can't find the page you are looking for.")
        name = unquote(match["repo"])
        if name in self.renamed:
            moved = target[: match.start("repo")] + self.renamed[name] + target[match.end("repo") :]
            return Answer(307, {"Location": moved}, repo=name)
        repo = self._repos.get(name)
        if repo is None or (repo.private and (token is None or name not in self.granted)):
            # huggingface.co tells those without a token less: a bare 401, without a code. The
            # client takes that for this error, but only from https addresses.
            answer = refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        elif match.re is API:
            answer = self._answer_api(name, repo, match, parameters, form)
        else:
            answer = self._answer_resolve(name, repo, match, token, headers)
        answer.repo = name
        return answer

    def _answer_api(
        self,
        name: str,
        repo: Repo,
        match: re.Match[str],
        parameters: Mapping[str, str],
        form: bytes,
    ) -> Answer:
        revision = unquote(match["revision"] or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if match["what"] == "tree":
            return self._answer_tree(name, files, match, parameters)
        if match["what"] == "paths-info":
            entries = {entry["path"]: entry for entry in entries_of(files)}
            asked = parse_qs(form.decode()).get("paths", [])
            return json_answer([entries[path] for path in asked if path in entries])
        return json_answer(
            {
                "_id": hashlib.sha1(name.encode()).hexdigest()[:24], "id": name, "modelId": name,
                "author": name.rpartition("/")[0] or None, "sha": commit,
                "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
                "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0,
                "likes": 0, "tags": [],
                "siblings": [sibling(file, "blobs" in parameters) for file in files.values()],
            }
        )  # fmt: skip

    def _answer_tree(
        self,
        name: str,
        files: Mapping[str, File],
        match: re.Match[str],
        parameters: Mapping[str, str],
    ) -> Answer:
        folder = unquote(match["path"] or "")
        recursive = parameters.get("recursive", "").lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        entries = [
            entry
            for entry in entries_of(files)
            if entry["path"].startswith(prefix)
            and (recursive or "/" not in entry["path"].removeprefix(prefix))
        ]
        if folder and not entries:
            return refusal(
                404, "EntryNotFound", f'{folder} does not exist on "{match["revision"]}"'
            )
        first = int(parameters.get("cursor", 0))
        last = first + min(int(parameters.get("limit", self.page_size)), self.page_size)
        answer = json_answer(entries[first:last])
        if last < len(entries):
            path = f"/api/models/{name}/tree/{match['revision']}" + (
                f"/{quote(folder, safe='')}" if folder else ""
            )
            query = urlencode({**parameters, "cursor": last})
            answer.headers["Link"] = f'<{self.endpoint}{path}?{query}>; rel="next"'
        return answer

    def _answer_resolve(
        self,
        name: str,
        repo: Repo,
        match: re.Match[str],
        token: str | None,
        headers: Mapping[str, str],
    ) -> Answer:
        if repo.gated and (token is None or name not in self.granted):
            message = f"Access to model {name} is restricted."
            return refusal(401 if token is None else 403, "GatedRepo", message)
        revision, path = unquote(match["revision"]), unquote(match["path"])
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        file = repo.commits[commit].get(path)
        if file is None:
            answer = refusal(404, "EntryNotFound", "Entry not found")
            answer.headers["X-Repo-Commit"] = commit
            return answer
        if file.sha256:
            return Answer(
                302, redirect_to(file, self._sign(self.cdn, name, file), commit), about=file
            )
        if self.resolve_cache and match.re is RESOLVE:
            moved = (
                f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}?etag={quote(file.etag)}"
            )
            return Answer(307, {"Location": moved, "X-Repo-Commit": commit}, about=file)
        answer = Answer(
            200, {"ETag": file.etag, "X-Repo-Commit": commit, **FILE_HEADERS}, file=file, about=file
        )
        answer.select(headers.get("Range"))
        return answer

    def _answer_file_server(
        self, parameters: Mapping[str, str], headers: Mapping[str, str]
    ) -> Answer:
        signed = self._signed.get(parameters.get("Signature", ""))
        if signed is None:
            return Answer(*EXPIRED)
        if signed.expires < time.time():
            return Answer(*EXPIRED, repo=signed.repo, about=signed.file)
        file = signed.file
        about = {"file": file, "repo": signed.repo, "about": file, "signed": signed}
        answer = Answer(200, {"ETag": file.etag, **FILE_HEADERS}, **about)
        answer.select(headers.get("Range"))
        return answer

    def _sign(self, origin: str, repo: str, file: File) -> str:
        """A new address of a file on an origin that asks for no token."""
        signature = secrets.token_hex(8)
        expires = time.time() + self.expires_in
        self._signed[signature] = Signed(repo, file, expires)
        return f"{origin}/{file.sha256 or file.oid}?" + urlencode(
            {"Expires": int(expires), "Signature": signature}
        )


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, hub: Hub, origin: str, port: int) -> None:
        self.hub, self.origin = hub, origin
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        # HTTPServer's would ask DNS for the name of this machine
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError) and not self.hub.closing.is_set():
            # a fault of this file, not a client that went away
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # or every answer on a kept connection waits 40 ms for the client's ACK
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        # a small buffer, so that what is counted as sent is not megabytes more than a client that
        # stops reading got
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, asked = self.server.hub, self.headers.get("Range")
        with hub.answering() as number:
            form = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = hub.answer(self.server.origin, self.path, self.headers, form)
            action = hub.fault(self.server.origin, self.command, self.path, answer)
            if action:
                hub.break_answer(answer, action, self.path, asked)
            self.status = self.sent = 0
            try:
                self.send(answer, action)
            finally:
                recorded = (
                    self.server.origin, self.command, self.path, self.status, self.sent, asked,
                )  # fmt: skip
                about = (answer.repo, answer.about.name if answer.about else "")
                hub.note(number, Request(*recorded, "Authorization" in self.headers, *about))

    do_HEAD = do_POST = do_GET  # noqa: N815

    def send(self, answer: Answer, action: Action | None) -> None:
        match action:
            case Drop(reset):
                self.end_connection(reset)
                return
            case Stall(seconds, None):
                self.pause(seconds)
        self.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(answer, action)

    def send_body(self, answer: Answer, action: Action | None) -> None:
        hub = self.server.hub
        end = min(answer.length, action.after) if isinstance(action, Cut) else answer.length
        pause = action.after if isinstance(action, Stall) and action.after is not None else end
        with answer.file.path.open("rb") if answer.file else io.BytesIO(answer.body) as content:
            content.seek(answer.start)
            while self.sent < end and not hub.closing.is_set():
                if isinstance(action, Stall) and self.sent == pause:
                    self.pause(action.seconds)
                stop = pause if self.sent < pause else end
                chunk = bytearray(content.read(min(hub.chunk(), stop - self.sent)))
                if not chunk:
                    raise AssertionError(f"{answer.file} got shorter while it was served")
                if isinstance(action, Flip) and 0 <= action.offset - answer.start - self.sent < len(
                    chunk
                ):
                    chunk[action.offset - answer.start - self.sent] ^= 0xFF
                hub.pace(len(chunk))
                rest = memoryview(chunk)
                while rest:  # rather than sendall, which does not tell how far it came
                    written = self.connection.send(rest)
                    self.sent += written
                    hub.add_sent(written)
                    rest = rest[written:]
        if isinstance(action, Cut):
            self.end_connection(action.reset)

    def pause(self, seconds: float) -> None:
        """Wait, but not for a client that has gone away."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.server.hub.closing.wait(
            min(left, 0.02)
        ):
            with contextlib.suppress(BlockingIOError):
                if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise ConnectionAbortedError

    def end_connection(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # with no time to linger, closing sends a reset; detached, as a shutdown first would end
            # it in order
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
