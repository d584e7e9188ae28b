"""An S3 server (moto's) that fails on request: it answers 5xx, cuts an upload, waits, counts."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

# of AWS's documentation
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
BUCKET = "audits"
WAIT = 1.5  # seconds of an answer that is late


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    path: str  # with the bucket: /audits/reports/index.json
    query: str
    sent: int  # bytes of the body


@dataclass
class Server:
    """The server, and what it is to do wrong."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    got: int = 0  # bytes that clients read
    fault: Callable[[Request], str | None] = lambda _: None
    """Of a request: `500`, `403`, `404`, `cut` (half of the body is read), `reset` (and half of the
    answer is sent), `wait`; None: answer.
    """

    def env(self, **more: str | None) -> dict[str, str | None]:
        """The usual variables of a client."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "3",
            "AWS_EC2_METADATA_DISABLED": "true",
            **more,
        }

    def options(self) -> dict[str, Any]:
        return {"endpoint_url": self.url, "key": KEY, "secret": SECRET}

    def named(self, method: str) -> list[str]:
        """The paths of requests of a method, in their order."""
        return [request.path for request in self.requests if request.method == method]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        pass


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server on a free port of the loopback, with an empty bucket."""
    server = Server()
    backend = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        size = int(environ.get("CONTENT_LENGTH") or 0)
        request = Request(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""), size)
        if not path.startswith("/moto-api"):
            server.requests.append(request)
        fault = server.fault(request)
        if fault == "cut":
            environ["wsgi.input"].read(size // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError
        if fault == "reset":
            connection = environ["werkzeug.socket"]
            environ["wsgi.input"].read(size // 2)
            if request.method == "GET":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nPAR1")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(connection.detach())
            raise ConnectionError
        if fault == "wait":
            time.sleep(WAIT)
            fault = None
        if fault is not None:
            environ["wsgi.input"].read(size)
            code = {"403": "AccessDenied", "404": "NoSuchKey", "503": "SlowDown"}.get(
                fault, "InternalError"
            )
            told = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
            body = b"" if request.method == "HEAD" else told.encode()
            start_response(
                f"{fault} Fault",
                [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))],
            )
            return [body]
        answer = list(backend(environ, start_response))
        server.got += sum(map(len, answer))
        return answer

    listening = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.port}"
    try:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=server.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)
        for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=one["Key"])
        server.requests.clear()
        server.got = 0
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
