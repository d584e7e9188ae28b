"""Every fault of a Hub, a line or an answer: tried again, or one line."""

import errno
import json
import shutil
import threading
from itertools import cycle
from types import SimpleNamespace

import planted
import pytest
import quantisers
from command import Run
from effort import every
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
    WrongRange,
)
from hub_pairs import (
    INDEX,
    MODEL,
    PLACES,
    SMALL,
    assert_equal,
    blobs,
    edit,
    frame,
    incomplete,
    recorded,
)
from huggingface_hub import errors, get_session
from requests.structures import CaseInsensitiveDict
from safetensors.torch import load_file

from shadow.checkpoints import hub_client as client
from shadow.checkpoints.hub import _checksum
from shadow.checkpoints.transfers import StoppedError, Transfer
from shadow.errors import ShadowError

pytest_plugins = "hub_pairs"
AT_ONCE = {"Retry-After": "0"}
HASTE = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}


def found_by(run, tmp_path, small, *options, out="out", **more) -> Run:
    """The small pair is audited all the same, with the right numbers."""
    done = run(*SMALL, "-o", out, *options, **more)
    done.assert_done()
    assert_equal(tmp_path / out, small)
    return done


RANGES = {"SHADOW_FETCH": "ranges"}
# what goes wrong once: (actions in turn, places, options)
MENDED = {
    "5xx": ((Status(500, AT_ONCE), Status(503, AT_ONCE)), (*PLACES,), {}),
    "429": ((Status(429, {"Retry-After": "1"}),), (*PLACES,), {}),
    "drop": ((Drop(), Drop(reset=True)), (*PLACES,), {}),
    **{
        f"no answer to {place}": ((Stall(60, None),), (place,), {})
        for place in PLACES
        if place != "config"
    },
    **{
        f"{action} {where}": ((action,), places, options)
        for action in (Cut(5000), Cut(5000, reset=True), Stall(60, 5000), Expire())
        for where, places, options in (
            ("in a shard", ("header", "file"), {}), ("in a range", ("file",), RANGES)
        )
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", MENDED)
def test_a_fault_that_passes_does_not_matter(run, hub, tmp_path, small, fault):
    """It is tried again, or fetched on from where the line broke."""
    actions, places, options = MENDED[fault]
    fired = [
        hub.fail(action=action, **PLACES[place])
        for place, action in zip(places, cycle(actions), strict=False)
    ]
    patience = HASTE if any(isinstance(one, Stall) for one in actions) else {}
    done = found_by(run, tmp_path, small, **options, **patience)
    assert [fault.fired for fault in fired] == [1] * len(places)
    assert "damaged" not in done.err
    assert not incomplete(tmp_path)


def refused(done: Run, *names: str) -> bool:
    """A refusal in one line and one hint, after talk such as `fetching 1 MB`."""
    lines = done.err.splitlines(keepends=True)
    refusal = [line for line in lines if line.startswith(("error:", "hint:"))]
    recorded(Run(done.code, done.out, "".join(refusal)), *names)
    talk = [line for line in lines if line not in refusal]
    return all(line.startswith(("fetching ", "the Hub ", "org/")) for line in talk)


LIMIT = {"RateLimit": '"api";r=0;t=9999', "RateLimit-Policy": '"api";q=500;w=300'}
NOWHERE = (Loop(), Redirect("ftp://127.0.0.1/x"), Redirect("file:///etc/passwd"))


@pytest.mark.parametrize("action", NOWHERE, ids=str)
def test_a_redirect_to_nowhere_is_one_line(run, hub, tmp_path, action):
    """At once, as no further try would help: exit 1, a hint, no report."""
    hub.fail(action=action, times=None, **PLACES["file"] | {"origin": None})
    assert refused(run(*SMALL, "-o", "out", seconds=20))
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("file", every(2, [MODEL, "config.json"]))
def test_a_flipped_byte_is_fetched_again(run, hub, tmp_path, small, file):
    """Once: it is told, the numbers are right. Always: refused, and nothing stays in the cache."""
    flip = Flip(20 if file == "config.json" else 15_000)
    fault = hub.fail(f"org/small-tuned/{file}", flip, skip=file == MODEL)
    done = found_by(run, tmp_path, small)
    assert f"org/small-tuned: {file} " in done.err
    assert fault.fired == 1
    hub.reset()
    fault = hub.fail(f"org/small-tuned/{file}", flip, skip=file == MODEL, times=None)
    done = run(*SMALL, "-o", "out2", HF_HUB_CACHE=tmp_path / "other")
    assert refused(done, file)
    assert not list((tmp_path / "out2").rglob("*.parquet"))
    assert not list((tmp_path / "other").rglob(f"models--org--small-tuned/snapshots/*/{file}"))
    assert fault.fired == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "disk"),
    [(15_000, ()), (30, ()), (3, ()), (None, ()), (15_000, ("--max-disk", "30kB"))],
    ids=["data", "header", "length", "cut", "freeing"],
)
def test_a_damaged_cache_is_mended(run, hub, tmp_path, small, position, disk):
    """In data, header or length, or cut: it is fetched again; offline it is refused."""
    found_by(run, tmp_path, small)
    (path,) = (tmp_path / "home").rglob(f"models--org--small-tuned/**/{MODEL}")
    blob = path.resolve()
    content = bytearray(blob.read_bytes())
    if position is None:
        content = content[:20_000]
    else:
        content[position] ^= 0x01
    blob.write_bytes(content)
    recorded(run(*SMALL, "-o", "out2", "--offline"), "small-tuned" if position == 15_000 else MODEL)
    done = run(*SMALL, "-o", "out3", *disk)
    assert f"org/small-tuned: the cached {MODEL}" in done.err
    if position == 30:
        assert refused(done, "run the same command again")
        done = run(*SMALL, "-o", "out3", *disk)
    done.assert_done()
    assert_equal(tmp_path / "out3", small)
    assert len(blobs(tmp_path)) == 2


def test_a_quantised_model_of_the_hub(run, hub, tmp_path):
    """The shape of a 4-bit matrix is read from a small tensor."""
    base = planted.saved("llama", tmp_path / "base", 0)
    packed, _, said = quantisers.quantised("nf4", load_file(base / MODEL))
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": said}
    hub.add("org/nf4", planted.write(tmp_path / "nf4", packed, config))
    run("audit", base, "org/nf4", "-o", "out").assert_done()
    tuned = frame(tmp_path / "out", "tensors").query("side == 'tuned'").set_index("tensor")
    matrices = tuned[tuned.index.str.contains("proj")]
    assert set(matrices["dtype"]) == {"NF4"}
    assert set(matrices["status"]) == {"measured"}


@pytest.mark.parametrize("skip", [0, 2])  # the headers, and what comes after them
@pytest.mark.parametrize("kind", [IgnoreRange, WrongRange])
def test_a_server_that_sends_other_bytes(run, hub, tmp_path, kind, skip):
    """What is no answer to a request for a range is refused rather than measured."""
    hub.fail("*", kind(), times=None).skip = skip
    done = run(*SMALL, "-o", "out", "--module", "mlp.up")
    assert refused(done, "hf download")


HTML = b"<!doctype html><title>Welcome</title>"
NESTED = b"[" * 100_000
INFO, TREE = "/api/models/org/small-tuned", "/api/models/org/small-tuned/tree/*"


def entry(**more) -> bytes:
    """A listing with one file."""
    lfs = {"oid": "0" * 64, "size": 30_000, "pointerSize": 1}
    file = {"type": "file", "oid": "0" * 40, "size": 30_000, "path": MODEL, "lfs": lfs}
    return json.dumps([file | more]).encode()


ANSWERS = {
    "info is HTML": (INFO, HTML), "info is a list": (INFO, b"[1]"),
    "info is nested": (INFO, NESTED), "info is no UTF-8": (INFO, b'{"id": "\xff"}'),
    "commit is a number": (INFO, b'{"id": "x", "sha": 5}'),
    "commit is a path": (INFO, b'{"id": "x", "sha": "../../../../etc"}'),
    "commit is missing": (INFO, b'{"id": "x"}'), "listing is HTML": (TREE, HTML),
    "listing is an object": (TREE, b'{"a": 1}'), "listing of numbers": (TREE, b"[1]"),
    "listing of nothing": (TREE, b"[]"), "size is text": (TREE, entry(lfs=None, size="5")),
    "size is negative in LFS": (TREE, entry(lfs={"oid": "0" * 64, "size": -5, "pointerSize": 1})),
    "size is huge": (TREE, entry(lfs=None, size=2**70)),
    "size is nought": (TREE, entry(lfs=None, size=0)),
    "path is a list": (TREE, entry(path=[MODEL])),
    "path is missing": (TREE, b'[{"type": "file", "oid": "0", "size": 5}]'),
    "path is not printable": (TREE, entry(path="\x1b[31m.safetensors")),
    "path is half a letter": (TREE, entry(path="\ud800.safetensors")),
    "path goes up": (TREE, entry(path="../../x.safetensors")),
    "path is absolute": (TREE, entry(path="/etc/x.safetensors")),
    "LFS is a list": (TREE, entry(lfs=[1])),
}  # fmt: skip


@pytest.mark.parametrize("case", every(5, ANSWERS))
def test_a_hostile_answer_is_one_error_line(run, hub, tmp_path, case):
    """Exit 1, a line and a hint, at once, and nothing outside the cache."""
    pattern, body = ANSWERS[case]
    edit(hub, pattern, lambda answer: answer.become(200, {"Content-Type": "text/html"}, body))
    done = run(*SMALL, "-o", "out", seconds=10)
    recorded(done)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["hub"]
    assert "Welcome" not in done.err


@pytest.mark.parametrize(("digest", "checksum"), [
    ("0" * 64, "sha256:" + "0" * 64), ("a" * 40, "git:" + "a" * 40), ("x" * 64, None),
    ("0" * 63, None), (5, None), (None, None),
])  # fmt: skip
def test_an_unusable_checksum_is_none(digest, checksum):
    """Its kind is known by its length."""
    assert _checksum(digest) == checksum


# files of a repository that are none
BROKEN = {
    **{
        f"index: {shard!r}": (INDEX, json.dumps({"weight_map": {"a": shard}}).encode())
        for shard in (
            "../../x.safetensors", "/etc/x.safetensors", "x.safetensors", "\x1b[2J.safetensors",
            "x.bin",
        )
    },
    "index: no map": (INDEX, b'{"weight_map": []}'),
    "an LFS pointer": (MODEL, b"version https://git-lfs.github.com/spec/v1\n"),
    "an empty shard": (MODEL, b""),
    "four bytes": (MODEL, b"1234"),
    "a lying header": (MODEL, b"\xff" * 900),
}  # fmt: skip


@pytest.mark.parametrize("case", every(5, BROKEN))
def test_a_hostile_file_is_one_error_line(run, hub, folders, tmp_path, case):
    """An index whose shards are outside, missing or no shards; a shard that is none."""
    name, content = BROKEN[case]
    hostile = shutil.copytree(folders["small-tuned"], tmp_path / "hostile")
    (hostile / name).write_bytes(content)
    hub.add("org/hostile", hostile)
    recorded(run(*SMALL[:-1], "org/hostile", "-o", "out"), "error: org/hostile: ", "its owner")
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_no_hub(run, hub, tmp_path):
    """A web page, an address without a scheme, nonsense: HF_ENDPOINT is named."""
    edit(hub, "*", lambda answer: answer.become(200, {"Content-Type": "text/html"}, HTML))
    recorded(run(*SMALL, "-o", "out", seconds=10), "HF_ENDPOINT")
    for endpoint in ("127.0.0.1:9", "ftp://127.0.0.1", "http://[", "http://a b"):
        recorded(run(*SMALL, "-o", "out", HF_ENDPOINT=endpoint, seconds=10), "HF_ENDPOINT")
    recorded(run(*SMALL, "-o", "out", HF_HUB_ETAG_TIMEOUT="soon"), "HF_HUB_ETAG_TIMEOUT")


@pytest.mark.parametrize(("answered", "tries"), [(False, 1), (True, 6)])
def test_a_hub_that_has_never_answered_is_given_up_sooner(monkeypatch, answered, tries):
    """Where it has, a refused connection is an outage, and all tries are made."""
    for name, value in (("WAITS", (0.0, 0.0)), ("PATIENCE", 0.0), ("answered", threading.Event())):
        monkeypatch.setattr(client, name, value)
    made = []
    with Hub() as hub, client.own_client():
        there = hub.endpoint
        if answered:
            get_session().get(f"{there}/api/models/org/none")

    def attempt() -> None:
        made.append(True)
        get_session().get(there)

    with client.own_client(), pytest.raises(ShadowError):
        client.trying(attempt, Transfer(), "org/small", None)
    assert len(made) == tries


@pytest.mark.parametrize(("status", "headers", "seconds"), [
    (429, {"retry-after": "7"}, 7), (429, {"retry-after": " 7 "}, 7), (429, LIMIT, 9999),
    (429, LIMIT | {"retry-after": "7"}, 9999), (503, LIMIT | {"retry-after": "7"}, 7),
    (503, LIMIT, None), (503, {}, None),
    (429, {"RateLimit": '"api";r=1;t=9', "retry-after": "7"}, 7),
    (503, {"retry-after": "9" * 9}, 999_999_999), (503, {"retry-after": "9" * 10}, None),
    (503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
])  # fmt: skip
def test_an_answer_says_how_long_to_wait(status, headers, seconds):
    """A limit that is used up says it for 429 alone; a date does not count."""
    fault = OSError("x")
    assert client.retry_after(fault) is None
    fault.response = SimpleNamespace(status_code=status, headers=CaseInsensitiveDict(headers))
    assert client.retry_after(fault) == seconds


def answered(status, url="https://hub/x", kind=OSError, **headers):
    """An error of the client about an answer."""
    error = kind.__new__(kind)
    error.response = SimpleNamespace(
        status_code=status, url=url, headers=CaseInsensitiveDict(headers)
    )
    return error


def local(number):
    return OSError(number, "it is so")


Misled = type("TooManyRedirects", (OSError,), {})
AGAIN = "run the same command again: it continues from here"
OF_IT = "https://hub/org/m"
TOKEN = "no token is in use: `hf auth login`, or HF_TOKEN"
LINES = [  # error -> whether it is tried again, what is said, what to do
    (answered(503), True, "org/m: x: the Hub answers 503, also after 6 tries", AGAIN),
    (answered(503, **{"retry-after": "300"}), True, "", AGAIN),
    (answered(503, **{"retry-after": "301"}), False, "", AGAIN),
    (answered(404), False, "org/m: x: the Hub answers 404", AGAIN),
    (answered(429, **{"retry-after": "7"}), True,
     "org/m: x: too many requests to the Hub (429)", f"wait 7 s, then {AGAIN}"),
    (answered(401), False, "org/m: x: the Hub requires a valid login (401)",
     f"{TOKEN}; check that it is still valid"),
    (answered(403), False, "org/m: x: the Hub refuses access (403)", f"see {OF_IT}; {TOKEN}"),
    (answered(403, "https://hub:8/x"), True, "", f"see {OF_IT}; {TOKEN}"),
    (answered(404, kind=errors.GatedRepoError), False,
     "org/m is gated: its owner grants access", f"ask for it at {OF_IT}; {TOKEN}"),
    (answered(404, kind=errors.RepositoryNotFoundError), False,
     "org/m is not on the Hub, or it is private", f"check the name; {TOKEN}"),
    (answered(404, kind=errors.RevisionNotFoundError), False,
     "org/m has no revision None", f"its branches and tags: {OF_IT}/tree/main"),
    (answered(404, kind=errors.EntryNotFoundError), False,
     "org/m: x is not there", f"its files: {OF_IT}/tree/main"),
    (errors.OfflineModeIsEnabled("x"), False,
     "org/m: x is not in the cache, and this run is offline", "run once without HF_HUB_OFFLINE"),
    (errors.FileMetadataError("x"), False,
     "org/m: x: the server does not answer like a Hub (FileMetadataError)", client.NO_HUB),
    (local(errno.ENOSPC), False, "org/m: x: the disk of /c is full",
     f"free some space, or --max-disk; {AGAIN}"),
    (local(errno.EACCES), False, "cannot write to /c: it is so",
     "set HF_HUB_CACHE to another folder"),
    (local(errno.EPIPE), True, "org/m: x: https://hub does not answer, or breaks off"
     " (BrokenPipeError)", f"check the connection and HF_ENDPOINT, then {AGAIN}; {client.CACHED}"),
    (TimeoutError(errno.ETIMEDOUT, "x"), True, "", ""), (ValueError("x"), False, "", client.NO_HUB),
    (Misled(), False, "org/m: x: the server does not answer like a Hub (TooManyRedirects)", ""),
    (KeyError("x"), False, "", client.NO_HUB), (ShadowError("x"), False, "", ""),
    (StoppedError(), False, "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("error", "again", "message", "hint"), LINES)
def test_each_error_is_a_line_and_a_hint(monkeypatch, error, again, message, hint):
    """The Hub is https://hub, and the cache is /c; a client's own error has it as its cause."""
    monkeypatch.setattr(client.constants, "ENDPOINT", "https://hub")
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", "/c")
    monkeypatch.setattr(client, "get_token", lambda: None)
    wrapped = errors.LocalEntryNotFoundError("x")
    wrapped.__cause__ = error
    for one in (error, wrapped) if isinstance(error, client.FAILURES) else (error,):
        assert client.is_transient(one) is again
        found = client.in_words(one, repo="org/m", path="x")
        assert (message or found.message, hint or found.hint) == (found.message, found.hint)


@pytest.mark.parametrize(("headers", "moves", "waits", "said"), [
    (None, (), [1.0, 1.5, 2.5, 4.5, 8.5], ["4", "8"]),
    ({"retry-after": "3"}, (), [3.0] * 5, "33333"),
    ({"retry-after": "2"}, (), [2.0] * 5, ""), (None, (2,), [1.0, 1.0, 1.5, 2.5, 4.5, 8.5], "48"),
])  # fmt: skip
def test_waits_grow_until_there_is_progress(monkeypatch, headers, moves, waits, said):
    """Half a second doubled, with as much by chance; of three seconds a line is said."""
    monkeypatch.setattr(client.random, "uniform", lambda least, most: most - least)
    waited, lines, tries = [], [], []
    stop = SimpleNamespace(wait=waited.append)

    def attempt():
        tries.append(1)
        raise ConnectionError("x") if headers is None else answered(503, **headers)

    def progress():
        return sum(len(tries) >= at for at in moves)

    transfer = Transfer(lines.append, stop=stop)
    with pytest.raises(ShadowError):
        client.trying(attempt, transfer, "org/m", None, progress=progress)
    assert waited == waits
    what = "does not answer, or breaks off" if headers is None else "answers 503"
    assert lines == [f"the Hub {what}; trying again in {seconds} s" for seconds in said]
    stop.wait = lambda seconds: True
    with pytest.raises(StoppedError):
        client.trying(attempt, transfer, "org/m", None)
