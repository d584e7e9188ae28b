"""What a Hub on this machine is made of: files and answers, and what can go wrong with them."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path

# What can go wrong: the actions of Hub.fail.


@dataclass(frozen=True)
class Status:
    """Another status instead of the answer, with headers such as Retry-After."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """The connection ends before any answer. reset: by a TCP reset rather than in order."""

    reset: bool = False


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body, though Content-Length promised all."""

    after: int
    reset: bool = False


@dataclass(frozen=True)
class Stall:
    """A pause after that many bytes of the body (None: before the answer); then it goes on."""

    seconds: float
    after: int | None = 0


@dataclass(frozen=True)
class Flip:
    """The byte at this offset of the file is another. Counts for answers that hold this byte."""

    offset: int


@dataclass(frozen=True)
class Truncate:
    """The file ends after so many bytes, and all headers say so."""

    size: int


@dataclass(frozen=True)
class IgnoreRange:
    """A request for a range gets the whole file and status 200."""


@dataclass(frozen=True)
class WrongRange:
    """A request for a range gets another one, as its Content-Range says."""


@dataclass(frozen=True)
class Expire:
    """The signature of the address has run out: 403, now and for every later request with it."""


@dataclass(frozen=True)
class Loop:
    """A redirect to the address that was asked for. times=None makes it endless."""


@dataclass(frozen=True)
class Redirect:
    """A redirect of a file to a third origin that has it, or to another address."""

    url: str | None = None


Action = (
    Status | Drop | Cut | Stall | Flip | Truncate | IgnoreRange | WrongRange | Expire | Loop
    | Redirect
)  # fmt: skip


@dataclass
class Fault:
    """A rule of Hub.fail; fired counts the requests that it was applied to."""

    pattern: str
    action: Action
    origin: str | None
    method: str | None
    times: int | None
    skip: int
    fired: int = 0


@dataclass(frozen=True)
class Request:
    """One answered request, about a file where filename says so.

    status: 0 if there was no answer. sent: bytes of the body that went into the socket; a client
    that stopped reading may have got some hundred KB less. range: the Range header. authorized: an
    Authorization header came.
    """

    origin: str
    method: str
    path: str
    status: int
    sent: int
    range: str | None
    authorized: bool
    repo: str
    filename: str


@dataclass(frozen=True)
class File:
    """A file of a commit. oid: Git's name of it, or of its pointer if it has a sha256 (Git-LFS)."""

    name: str
    path: Path
    size: int
    oid: str
    sha256: str | None
    pointer_size: int

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.oid}"'


@dataclass
class Repo:
    gated: str | bool = False
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)


@dataclass
class Signed:
    """What a signed address leads to. expires: by time.time."""

    repo: str
    file: File
    expires: float


@dataclass
class Answer:
    """An answer before it is sent; file is set where bytes start to stop of a file are its body."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    file: File | None = None
    start: int = 0
    stop: int = 0
    repo: str = ""
    about: File | None = None
    signed: Signed | None = None

    @property
    def length(self) -> int:
        return self.stop - self.start if self.file else len(self.body)

    def become(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Be another answer to the same request."""
        self.status, self.headers, self.body, self.file = status, dict(headers), body, None

    def select(self, asked: str | None, size: int | None = None) -> None:
        """Choose the file's bytes by a Range header. size: where it ends (None: at its end)."""
        assert self.file
        size = self.file.size if size is None else min(size, self.file.size)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        start, stop = (int(match[1]), min(int(match[2] or size) + 1, size)) if match else (0, size)
        if match and start >= size:
            self.status, self.file = 416, None
            self.headers["Content-Range"] = f"bytes */{size}"
        elif match and start < stop:
            self.status, self.start, self.stop = 206, start, stop
            self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        # also a range that ends before it starts, or has several parts: a server may ignore it
        else:
            self.status, self.start, self.stop = 200, 0, size
            self.headers.pop("Content-Range", None)


FILE_HEADERS = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
EXPIRED = (403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")


def file_of(name: str, path: Path, lfs: bool) -> File:
    size = path.stat().st_size
    if not lfs:
        digest = hashlib.sha1(b"blob %d\0" % size)
        digest.update(path.read_bytes())
        return File(name, path, size, digest.hexdigest(), None, 0)
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    return File(name, path, size, oid, sha256, len(pointer))


def entries_of(files: Mapping[str, File]) -> list[dict]:
    """Files and folders as a listing tells them."""
    folders = {
        folder for name in files for folder in accumulate(name.split("/")[:-1], "{}/{}".format)
    }
    entries = [
        {
            "type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0,
            "path": folder,
        }
        for folder in folders
    ]  # fmt: skip
    for name, file in files.items():
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": name}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["path"])


def sibling(file: File, blobs: bool) -> dict:
    """A file as model_info tells it. blobs: with its size and checksums."""
    recorded: dict = {"rfilename": file.name}
    if blobs:
        recorded |= {"size": file.size, "blobId": file.oid}
        if file.sha256:
            recorded["lfs"] = {
                "sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size,
            }  # fmt: skip
    return recorded


def json_answer(content: object) -> Answer:
    return Answer(
        200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(content).encode()
    )


def refusal(status: int, code: str | None, message: str) -> Answer:
    answer = json_answer({"error": message})
    answer.status = status
    answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer


def redirect_to(file: File, url: str, commit: str | None) -> dict[str, str]:
    """Headers of a redirect to a file."""
    headers = {"Location": url, "X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size)}
    return headers | ({"X-Repo-Commit": commit} if commit else {})


def matches(pattern: str, repo: str, filename: str, path: str) -> bool:
    names = (filename, f"{repo}/{filename}", path.partition("?")[0])
    return any(fnmatchcase(name, pattern) for name in names)


def applies(action: Action, answer: Answer, origin: str) -> bool:
    match action:
        case Cut() | Stall(after=int()):
            return answer.status in (200, 206)
        case Flip(offset):
            return answer.file is not None and answer.start <= offset < answer.stop
        case Truncate():
            return answer.file is not None
        case IgnoreRange() | WrongRange():
            return answer.status == 206
        case Expire():
            return answer.signed is not None
        case Redirect():
            return (
                answer.about is not None
                and answer.status in (200, 206, 302, 307)
                and origin != "other"
            )
    return True
