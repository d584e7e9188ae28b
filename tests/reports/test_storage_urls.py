"""Commands take URLs; a wrong URL, option or driver is one line, and no credential is told."""

from __future__ import annotations

import io
import json
import pickle
import socket
import threading
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shadow as package
from shadow import storage
from shadow.cli import commands
from shadow.errors import ShadowError, UsageError
from shadow.storage import Store, located, parsed_options, url_of

pytestmark = pytest.mark.usefixtures("memory")

SECRET = "hunter2hunter2"


# Commands


def command(*words):
    """A command in this process, which holds the memory: code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["shadow", *map(str, words)])
        # elsewhere it is refused, as it ends with the command
        patched.setattr("shadow.cli.options.require_lasting", lambda store: None)
        code = commands.run()
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = command("audit", "demo", "-o", "memory://bucket/demo", "--no-subspaces")
    assert code == 0, err
    return out


DEMO = "memory://bucket/demo"
NARROW = f"{DEMO}/demo/base..narrow"
RULE = ("--fail-on", "language.mlp.up.alpha > 100")
COMMANDS = [
    ("show", DEMO),
    ("gate", DEMO, *RULE, "--against", DEMO),
    ("lineage", "demo", "-o", DEMO, "--json"),
    ("export", DEMO, "--to", "csv", "-o", "tables"),
]
MORE_COMMANDS = [
    ("show", NARROW, "--json"),
    ("compare", NARROW, f"{DEMO}/demo/base..broad"),
    ("compare", NARROW, f"{DEMO}/demo/base..broad", "--json"),
    ("lineage", DEMO),
    ("report", DEMO, "-o", "page.html"),
    ("figure", NARROW, "--kind", "depth", "-o", "depth.svg"),
    ("plan", "demo", "-o", DEMO),
    ("clean", "-o", DEMO),
    ("audit", "demo", "-o", DEMO, "--no-subspaces", *RULE),
]


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(COMMANDS, id="some"),
        pytest.param(MORE_COMMANDS, id="more", marks=pytest.mark.slow),
    ],
)
def test_every_command_takes_urls_and_names_no_copy(demo, tmp_path, commands):
    """What is told and written names URLs, never the copies on this machine."""
    scratch = storage.scratch_folder().name
    for words in commands:
        code, out, err = command(*words)
        assert code == 0, (words, err)
        assert "Traceback" not in err
        assert scratch not in out + err, words
    written = [path for form in ("html", "csv", "svg") for path in tmp_path.rglob(f"*.{form}")]
    assert len(written) >= 2
    assert not [path for path in written if scratch.encode() in path.read_bytes()]
    one = "memory://bucket/demo/demo/base..narrow"
    assert f"show {one} --full" in command("show", one)[1]


def test_lists_and_policies_may_be_urls(pair):
    system = MemoryFileSystem()
    entry = f"- {{base: {pair.base}, tuned: {pair.tuned}, name: toy:base..tuned}}\n"
    system.pipe_file("/bucket/in/list.yaml", entry.encode())
    system.pipe_file("/bucket/in/policy.yaml", b"far:\n  fail_on: relative_norm > 0.01\n")
    code, out, err = command(
        "audit", "--list", "memory://bucket/in/list.yaml", "-o", "memory://bucket/listed",
        "--no-subspaces", "--policy", "memory://bucket/in/policy.yaml",
    )  # fmt: skip
    assert code == 4, err
    assert "base..tuned" in out


def test_a_fault_in_a_list_at_a_url_names_the_url_and_the_line(tmp_path, monkeypatch):
    MemoryFileSystem().pipe_file("/bucket/in/list.txt", b"demo\nnothing-like-it\n")
    code, _, err = command("audit", "--list", "memory://bucket/in/list.txt", "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: memory://bucket/in/list.txt:2: ")
    code, _, err = command("audit", "--list", "memory://bucket", "-o", tmp_path / "out")
    assert (code, err.splitlines()[0]) == (1, "error: memory://bucket: no such file")
    code, _, err = command("audit", "--list", "memory://bucket/in/gone.txt", "-o", tmp_path / "out")
    assert code == 1
    assert err.startswith("error: memory://bucket/in/gone.txt: no such file")


def test_a_missing_baseline_at_a_url(there, store):
    there()
    words = ("gate", store, "--against", "memory://bucket/gone")
    code, _, err = command(*words)
    assert code == 1
    assert "no such folder: memory://bucket/gone" in err
    code, _, err = command(*words, "--allow-missing")
    assert code == 0
    assert "there is no folder memory://bucket/gone" in err


def test_the_python_api_takes_urls(pair, tmp_path, monkeypatch):
    """A report at a URL has the tables of one in a folder."""
    # which a plan measures for a second
    monkeypatch.setattr("shadow.audits.pair_plan.pace", lambda method, jobs, offload: 1e10)
    there, here = (
        package.audit(pair, output=output, subspaces=False)
        for output in ("memory://bucket/api", tmp_path / "here")
    )
    assert there.matrices.equals(here.matrices)
    assert f"memory://bucket/api/{pair.family}/{pair.name}" in repr(there)
    read = package.read("memory://bucket/api")
    assert read.provenance.as_json() == there.provenance.as_json()
    assert read.spectrum(read.deltas["tensor"][0]).size
    assert package.judge("memory://bucket/api", "concentration > 0.9").code == 0
    package.export("memory://bucket/api", "csv", tmp_path / "tables")
    assert package.plan(pair, output="memory://bucket/api")


# URLs and options


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://b/x/y", "s3://b/x/y"),
        (Path("s3://b/x/y"), "s3://b/x/y"),
        ("S3://b/x", "s3://b/x"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        (Path("hf://buckets/a/b/c"), "hf://buckets/a/b/c"),
        ("reports", None),
        ("./s3:/x", None),
        ("C:/x", None),
        ("demo:base..narrow", None),
    ],
)
def test_a_url_is_one_also_after_pathlib(place, url):
    assert url_of(place) == url


def test_a_file_url_is_a_folder_of_this_machine(tmp_path):
    assert located(f"file://localhost{tmp_path}/a%20b") == tmp_path / "a b"
    assert located(f"file://{tmp_path}/a%23b%3F") == tmp_path / "a#b?"
    assert located("file:///localhost/x") == Path("/localhost/x")
    assert located(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert located("reports") == Path("reports")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2hunter2@bucket/x", "may hold no account and no password"),
        ("abfs://container@account.dfs.core.windows.net/x", "may hold no account"),
        ("s3://AKIAIOSFODNN7EXAMPLE:hunter2/hunter2hunter2/x@bucket/x", "may hold no account"),
        ("s3://user:hunter2@hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://user:?/hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://?hunter2hunter2@bucket/x", "may hold no account"),
        ("s3://user:hunter2hunter2/x", "may hold no account"),
        ("s3://user:hunter2hunter2:9000/x", "may hold no account"),
        ("s3://minio.example.org:9000/bucket/x", "may name no server and no port"),
        ("ftp://user:hunter2/hunter2hunter2@host/x", "ftp:// are not supported"),
        ("file:///tmp/a?hunter2hunter2", "may have no query"),
        ("file:///tmp/a#hunter2hunter2", "may have no query"),
        ("s3://bucket/x?X-Amz-Signature=hunter2hunter2", "may have no query"),
        ("s3://bucket/x#hunter2hunter2", "may have no query"),
        ("https://u:hunter2hunter2@host/list?sig=hunter2hunter2", "web addresses are not supp"),
        ("ftp://user:hunter2hunter2@host/x", "ftp:// are not supported"),
        ("s3://", "no bucket or folder"),
        ("s3://bucket/../x", "no bucket or folder"),
    ],
)
def test_urls_that_are_refused_before_anything_is_reached(url, message):
    """With exit code 2, and nothing told that may be a credential."""
    with pytest.raises(UsageError, match=message) as raised:
        located(url)
    assert SECRET not in f"{raised.value.message} {raised.value.hint}"
    code, out, err = command("show", url)
    assert code == 2
    assert SECRET not in out + err


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/10:30/x@y",
        "s3://bucket/a@b:c",
        "hf://datasets/a/b@main/x",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/x",
    ],
)
def test_a_key_may_have_a_colon_and_an_at_sign(url):
    """Only before the first slash are they those of an account."""
    assert located(url) == Store(url)


@pytest.mark.parametrize(
    "url", ["hf://datasets/a/b/x", "hf://spaces/a/b", "hf://a/b", "hf://buckets/a"]
)
def test_repositories_of_the_hub_are_refused_as_output(url):
    code, _, err = command("audit", "demo", "-o", url)
    assert code == 2
    assert "hf://buckets/NAME/BUCKET/FOLDER" in err


@pytest.mark.parametrize(
    "text",
    ['{"key": "hunter2hunter2"', '["hunter2hunter2"]', "/no/such/hunter2", '{"a": hunter2hunter2}'],
)
def test_options_that_cannot_be_read_are_not_told(text, tmp_path):
    with pytest.raises(UsageError) as raised:
        parsed_options(text)
    assert "hunter2" not in f"{raised.value.message} {raised.value.hint}"
    code, out, err = command("show", "memory://bucket/x", "--storage-options", text)
    assert code == 2
    assert "hunter2" not in out + err


def test_options_come_from_json_a_file_or_the_environment(tmp_path, monkeypatch):
    told = {"key": SECRET, "client_kwargs": {"region_name": "x"}}
    (tmp_path / "options.json").write_text(json.dumps(told))
    assert parsed_options(json.dumps(told)) == told
    assert parsed_options(str(tmp_path / "options.json")) == told
    assert parsed_options(None) == {}
    given = []
    monkeypatch.setattr(
        storage, "driver", lambda _, options, __: given.append(options) or MemoryFileSystem()
    )
    monkeypatch.setenv("SHADOW_STORAGE_OPTIONS", json.dumps(told))
    command("show", "memory://bucket/x")
    assert json.loads(given[0]) == told


def test_a_store_tells_no_option():
    store = located("s3://bucket/x", {"key": "id", "secret": SECRET})
    assert SECRET not in f"{store} {store!r} {store.at('a')!r}"
    assert pickle.loads(pickle.dumps(store)) == store


class AnswerError(OSError):
    """What a driver raises; it tells what it was given."""


@pytest.mark.parametrize(
    "kind", [OSError, PermissionError, TimeoutError, ConnectionError, AnswerError]
)
def test_no_credential_of_a_drivers_fault_is_told(kind, monkeypatch, store):
    """No option's value, no secret of the environment, no signed query, also not in a traceback."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret-1")
    text = f"GET http://u:p4ssw0rd@h/x?X-Amz-Signature=abcdef with {SECRET} and env-secret-1"
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *_, **__: (_ for _ in ()).throw(kind(text))
    )
    secret = replace(store, options={"client_kwargs": {"token": SECRET}})
    with pytest.raises(ShadowError) as raised:
        secret.files()
    told = "".join(traceback.format_exception(raised.value)) + str(raised.value.hint)
    for word in (SECRET, "env-secret-1", "abcdef", "p4ssw0rd"):
        assert word not in told.replace(text, "")
    assert raised.value.message.startswith("memory://bucket/reports: ")


@pytest.mark.parametrize(
    "text",
    [
        "key hunter2hunter2 pin 12345678",
        "http://user:p4/ss@hunter2hunter2@host/x refused",
        "Invalid endpoint: user:p4/ss@hunter2hunter2@host",
        "lower-secret-1",
        "Sig=a%2Fb%2Bhunter2hunter2%3D",
        "Sig=a%2fb%2bhunter2hunter2%3d",
        "-----BEGIN KEY-----\\nMIIhunter2hunter2\\n",
    ],
)
def test_no_form_of_a_secret_is_told(text, monkeypatch, store):
    """Also a number, a line of a key, what a URL makes of it, and a variable in lower case."""
    monkeypatch.setenv("azure_storage_key", "lower-secret-1")
    options = {
        "token": {"private_key": f"-----BEGIN KEY-----\nMII{SECRET}\n-----END KEY-----\n"},
        "pin": 12345678,
        "secret": f"a/b+{SECRET}=",
        "more": [SECRET] if text.startswith("key") else [],
    }
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *_, **__: (_ for _ in ()).throw(OSError(text))
    )
    with pytest.raises(ShadowError) as raised:
        replace(store, options=options).files()
    for word in (SECRET, "12345678", "lower-secret-1", "p4"):
        assert word not in raised.value.message


def test_a_fault_of_shadow_keeps_its_traceback(monkeypatch, store):
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.files()


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gs"), ("az://b/x", "az")]
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch, url, extra):
    """Wrong usage, exit code 2, with the command that installs it."""
    monkeypatch.setattr("shadow.extras.is_installed", lambda _: False)
    code, _, err = command("show", url)
    assert code == 2
    error, hint = err.splitlines()
    assert error.startswith(f"error: {url}: ")
    assert error.endswith("is not installed")
    assert hint == f"hint:  in a clone of shadow, type: pip install '.[{extra}]'"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://bucket/x", {"token": {"a": SECRET}}),
        ("az://bucket/x", {"account_name": "a", "account_key": SECRET[:9]}),
        ("hf://buckets/name/bucket/x", {"endpoint": "hub.example.org"}),
    ],
)
def test_options_of_other_drivers_that_are_wrong(url, options):
    """As those of S3; a driver that is not installed is left out."""
    scheme = storage.SCHEMES[url.partition(":")[0]]
    if scheme.extra is not None:
        pytest.importorskip({"gs": "gcsfs", "az": "adlfs"}[scheme.extra])
    with pytest.raises(UsageError, match=f"^{url}: wrong options") as raised:
        located(url, options).files()
    assert SECRET[:9] not in raised.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"config_kwargs": SECRET},
        {"client_kwargs": SECRET},
        {"endpoint_url": "minio.example.org"},
        {"endpoint_url": f"alice:{SECRET}@minio.example.org"},
        {"endpoint_url": 5},
        {"session": SECRET},
        {"loop": 3},
        {"asynchronous": True},
        {"config_kwargs": {"s3": 3}},
        {"client_kwargs": {"region_name": 5}},
    ],
)
def test_options_that_a_driver_does_not_know_are_wrong_usage(store, options):
    """Told before anything is reached, with no value."""
    wrong = replace(store, url="s3://bucket/x", options=options)
    with pytest.raises(UsageError, match=r"^s3://bucket/x: wrong options \(") as raised:
        wrong.files()
    assert SECRET not in raised.value.message


DRIVERS = {  # what reads a scheme, and its options for a server at an address
    "s3": ("s3fs", {"endpoint_url": "http://{}", "key": "a", "secret": SECRET}),
    "gs": ("gcsfs", {"endpoint_url": "http://{}"}),
    "az": ("adlfs", {"account_name": "a", "account_host": "{}", "anon": True}),
}


def at_server(scheme, address, **more):
    """A store there; a driver that is not installed is left out."""
    driver, options = DRIVERS[scheme]
    pytest.importorskip(driver)
    told = json.dumps(options | more).replace("{}", address)
    return located(f"{scheme}://bucket/x", json.loads(told))


@pytest.mark.parametrize(
    ("scheme", "more"), [("s3", {}), ("gs", {"token": "anon"}), ("az", {"account_name": 5})]
)
def test_a_store_that_never_answers_is_given_up(scheme, more, monkeypatch):
    """Drivers themselves try for minutes. Once it has answered, they may."""
    monkeypatch.setattr(storage, "FIRST_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = at_server(scheme, f"127.0.0.1:{silent.getsockname()[1]}", **more)
        with pytest.raises(ShadowError, match=f"^{store}: no usable answer within 1 s") as raised:
            store.files()
    assert raised.value.hint.startswith("check the network, the endpoint and --storage-options (or")


@pytest.mark.parametrize("scheme", DRIVERS)
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nobody.invalid"])
def test_a_server_that_takes_no_connection_is_reported_in_seconds(scheme, address, monkeypatch):
    """Drivers try for half a minute, and Google's also asks for credentials elsewhere."""
    monkeypatch.setattr(storage, "CONNECTED", 0.5)
    store, host = at_server(scheme, address), address.partition(":")[0]
    began = time.monotonic()
    with pytest.raises(ShadowError, match=f"^{store}: {host} cannot be reached") as raised:
        store.files()
    assert time.monotonic() - began < 4
    assert raised.value.hint.startswith("check the network and the endpoint")


def test_a_server_that_begins_to_listen_meanwhile_is_reached(monkeypatch):
    """One refused connection is no reason to give up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listening = []

    def listen():
        time.sleep(0.6)
        listening.append(socket.create_server(("127.0.0.1", port)))

    starting = threading.Thread(target=listen)
    starting.start()
    assert storage._unconnected("127.0.0.1", port) is None
    starting.join()
    listening[0].close()


def test_an_endpoint_without_a_scheme_is_wrong_usage(monkeypatch):
    """One line that says what is missing, and no password."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"alice:{SECRET}@minio.example.org")
    code, _, err = command("show", "s3://bucket/x")
    assert code == 2
    error, hint = err.splitlines()
    assert error == "error: s3://bucket/x: wrong options (Invalid endpoint: ***@minio.example.org)"
    assert hint.startswith("hint:  an endpoint begins with https:// or http://; check ")


def test_an_answer_that_no_driver_can_read_is_a_fault_of_the_store(store, monkeypatch):
    """As of a web page at the endpoint: exit code 1."""
    monkeypatch.setattr(storage, "is_of_driver", lambda _: True)
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: json.loads("<html>"))
    with pytest.raises(ShadowError, match="the store's answer cannot be read") as raised:
        store.files()
    assert not isinstance(raised.value, UsageError)


def test_a_condition_that_does_not_hold_is_no_fault(store, monkeypatch):
    """The driver of Google's store answers 412 where others say that the file exists."""

    class HttpError(Exception):
        code = 412

    assert store.create("claim", b"first")
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(HttpError())
    )
    assert not store.create("claim", b"second")
    assert store.create("claim", b"first")


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "{}", "demo"),
        ("plan", "{}", "{}"),
        *((command, "{}") for command in ("families", "explain", "show")),
    ],
)
@pytest.mark.parametrize("secret", ["hushhush", "hush/hush", "hu@sh"])
def test_a_password_in_a_word_that_is_no_place_is_not_told(shadow, words, secret):
    """Any command may say what it does not know."""
    done = shadow(*(word.format(f"s3://KEY:{secret}@bucket/x") for word in words))
    assert done.code in (1, 2)
    assert "KEY" not in done.out + done.err
    assert "hu" not in done.out + done.err.replace("hub", "").replace("Hub", "")
