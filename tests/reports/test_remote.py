"""Reports at URLs: the report of a folder, whole or not there; no secret is told."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import planted
import pytest
from command import run_shadow
from fsspec.implementations.memory import MemoryFileSystem
from measuring import pair_of

import shadow as package
from shadow import storage
from shadow.checkpoints.pairing import Filter
from shadow.cli import commands
from shadow.engines.pair import run_pair
from shadow.errors import KeptError, ShadowError, UsageError
from shadow.files import safe_name
from shadow.lists.index import read_index, with_index
from shadow.lists.perform import audit_pairs, run_remote_pair
from shadow.reports import folders as remote
from shadow.reports.report import Report
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.storage import Store, located, url_of, work_folder
from shadow.targets.lists import Selection
from shadow.telling.reading import read_summary

PLAIN = Settings(Method(), Filter())
FIRST = Settings(Method(), Filter(layers=(0,)), spectra=False)
SECRET = "hunter2hunter2"
STORE = Store("memory://bucket/reports")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two toy checkpoints of two layers."""
    folder = tmp_path_factory.mktemp("pair")
    return pair_of(*(planted.toy(folder / name, n) for n, name in enumerate(("base", "tuned"))))


@pytest.fixture
def target(pair):
    """Where the report of the pair is."""
    return STORE.at(pair.family, pair.name)


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    """An empty memory, and a folder of this test to work in."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "work"))


def audited(pair, settings=PLAIN, **options):
    said: list[str] = []
    runtime = Runtime(say=said.append, jobs=1, **options)
    return run_remote_pair(pair, settings, work_folder(STORE), runtime, store=STORE), said


def whole(folder):
    """The chosen layers of a report all of whose files are of one audit; fails for half a one."""
    _, metadata = read_summary(folder)
    report = Report(folder)
    names = [path.stem for path in folder.glob("*.parquet")]
    assert ("spectra" in names) == metadata["settings"]["spectra"]
    assert all(report.table(name) is not None for name in names)
    return metadata["settings"]["chosen"]["layers"]


def intercepted(monkeypatch, before=lambda number: None, after=lambda: None):
    """Functions that are called before (with its number) and after each write to the memory."""
    count = 0

    def wrapped(write):
        def wrapper(*arguments, **options):
            nonlocal count
            count += 1
            before(count)
            answer = write(*arguments, **options)
            after()
            return answer

        return wrapper

    for name in ("put_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, wrapped(getattr(MemoryFileSystem, name)))


# the contract


def test_a_report_at_a_url_is_the_one_of_a_folder(pair, target, tmp_path):
    """The same tables, nothing is left here."""
    done, _ = audited(pair)
    assert (done.url, done.measured > 0) == (target.url, True)
    assert not list(work_folder(STORE).rglob("*"))
    folder, local = (
        remote.here(target.url, spectra=True),
        run_pair(pair, PLAIN, tmp_path / "out").folder,
    )
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in local.iterdir() if path.is_file()
    }
    for path in local.glob("*.parquet"):
        assert Report(folder).table(path.stem).equals(Report(local).table(path.stem))
    before = target.files()
    again, said = audited(pair)
    assert (again.measured, len(said)) == (0, 1)
    with pytest.raises(KeptError, match="--layer"):
        audited(pair, FIRST)
    assert target.files() == before
    audited(pair, PLAIN, overwrite=True)
    assert target.files() == before, "it does not differ"
    audited(pair, FIRST, overwrite=True)
    assert whole(remote.here(target.url, spectra=True)) == [0]
    assert "spectra.parquet" not in target.files()


def test_no_reader_ever_sees_half_a_report(pair, target, monkeypatch):
    """After every write: no report, or all of one; also where one takes the place of another."""
    seen = []

    def look():
        folder = remote.fetched_if_any(target)
        seen.append(None if folder is None else tuple(whole(folder)))

    intercepted(monkeypatch, after=look)
    audited(pair)
    audited(pair, FIRST, overwrite=True)
    assert list(dict.fromkeys(seen)) == [None, (), (0,)]
    assert seen.count(()) == 1, "the first report is gone before a file of the next is there"


def test_an_upload_that_fails_anywhere_loses_nothing(pair, target, monkeypatch):
    """The fault names the folder of the report; the same command uploads it, unmeasured."""

    for failing in (2, 4, 6):  # after the marker of an earlier report was removed

        def fail(number, failing=failing):
            if number == failing:
                raise ConnectionResetError(SECRET)

        with monkeypatch.context() as patched:
            intercepted(patched, before=fail)
            with pytest.raises(ShadowError, match=r"not uploaded: .*work") as raised:
                audited(pair, FIRST, overwrite=True)
        assert SECRET not in str(raised.value)
        assert remote.fetched_if_any(target) is None
        done, _ = audited(pair, FIRST)
        assert (done.measured, whole(remote.here(target.url, spectra=True))) == (0, [0])
        assert not list(work_folder(STORE).rglob("*"))
        target.remove("matrices.parquet")


def test_a_broken_report_at_a_url_is_measured_again(pair, target):
    audited(pair, FIRST)
    MemoryFileSystem().pipe_file(f"{target.url}/tensors.parquet", b"no")
    done, said = audited(pair, FIRST)
    assert done.measured > 0
    assert target.url in said[0]
    assert whole(remote.here(target.url, spectra=True)) == [0]


def test_a_report_that_changes_while_it_is_read_is_refused(pair, target, monkeypatch):
    """A reader takes no file that is none of a report's."""
    audited(pair, FIRST)
    MemoryFileSystem().pipe_file(f"{STORE.url}/../x/y/matrices.parquet", b"")
    MemoryFileSystem().pipe_file(f"{target.url}/other.txt", b"")
    names = {
        path.name for path in remote.here(STORE.url, spectra=True).rglob("*") if path.is_file()
    }
    assert {"summary.json", "matrices.parquet"} <= names <= set(remote.FILES_OF_A_PAIR)
    fetch = Store.fetch

    def changing(self, names, folder):
        fetch(self, names, folder)
        MemoryFileSystem().pipe_file(f"{target.url}/summary.json", b"{}")

    monkeypatch.setattr(Store, "fetch", changing)
    with pytest.raises(ShadowError, match="changed while they were read"):
        remote.here(target.url, spectra=True)


def test_a_list_at_a_url(pair, tmp_path):
    """Its index is there at the end."""
    other = pair_of(pair.tuned.repo, pair.base.repo)
    selection = Selection((pair, other), (pair, other), is_list=True)

    def run():
        output = work_folder(STORE)
        audited = audit_pairs(selection.own, FIRST, output, audit=audit)
        return list(with_index(selection, FIRST, output, audited, STORE))

    def audit(*arguments, **options):
        return run_remote_pair(*arguments, store=STORE, **options)

    assert [outcome.state for outcome in run()] == ["done", "done"]
    first = read_index(remote.here(STORE.url, spectra=True)).rows
    storage.work_folder(STORE).rename(tmp_path / "elsewhere")
    assert [outcome.result.measured for outcome in run()] == [0, 0]
    assert read_index(remote.here(STORE.url, spectra=True)).rows == first
    assert [row.state for row in first] == ["done", "done"]


# URLs and faults


@pytest.mark.parametrize(("place", "url"), [
    ("s3://bucket/x", "s3://bucket/x"), (Path("s3://bucket/x"), "s3://bucket/x"),
    ("file://x", "file:///x"), ("./s3:/x", None), ("C:/x", None), ("demo:base..narrow", None),
])  # fmt: skip
def test_a_url_is_one_also_after_pathlib(place, url):
    assert url_of(place) == url


@pytest.mark.parametrize("url", [
    f"s3://key:{SECRET}@bucket/x", "abfs://container@account.dfs.core.windows.net/x",
    f"s3://user:?/{SECRET}@bucket/x", f"s3://bucket/x?X-Amz-Signature={SECRET}",
    f"file:///tmp/a#{SECRET}", f"https://u:{SECRET}@host/list", "xyz://host/x", "s3://",
])  # fmt: skip
def test_urls_that_are_refused_before_anything_is_reached(url, shadow):
    """With exit code 2, and nothing told that may be a credential."""
    with pytest.raises(UsageError):
        located(url)
    done = shadow("show", url)
    done.assert_refused(2)
    assert SECRET not in done.err


# commands


def command(*words):
    """A command in this process, which holds the memory: code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["shadow", *map(str, words)])
        code = commands.run()
    return code, out.getvalue(), err.getvalue()


def test_commands_take_urls_and_name_no_copy(tmp_path, monkeypatch):
    """Reports and baselines; what is told and written names URLs, never the copies here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("demo\n")
    demo, narrow = "memory://bucket/demo", "memory://bucket/demo/demo/base..narrow"
    rule, quick = ("--fail-on", "matrices > 100"), ("--module", "mlp.up")
    for words in (
        ("audit", "--list", "list.txt", "-o", demo, *quick, *rule),
        ("show", demo), ("show", narrow),
        ("gate", demo, "--list", "list.txt", "--against", demo, "--fail-on", "spikes > 1000"),
        ("compare", narrow, f"{demo}/demo/base..broad"),
        ("report", demo, "-o", "page.html"),
        ("plan", "demo", "-o", demo), ("clean", "-o", demo),
    ):  # fmt: skip
        code, out, err = command(*words)
        assert code == 0, (words, err)
        assert storage.scratch_folder().name not in out + err, words
    assert storage.scratch_folder().name not in (tmp_path / "page.html").read_text()
    assert package.read(narrow).provenance.pair == "base..narrow"
    assert command("show", "memory://bucket/none")[0] == 1


@pytest.mark.slow
def test_an_s3_server(tmp_path):
    """By a server of S3: audit, show, gate, audit again, no right to write; no key is printed."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "SHADOW_WORK_DIR": str(tmp_path / "work"),
    }  # fmt: skip
    try:
        import boto3

        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=env["FSSPEC_S3_ENDPOINT_URL"], **keys)
        client.create_bucket(Bucket="audits")
        url = "s3://audits/2026"
        quick = ("--layer", "0", "--module", "mlp.up")
        audit = ("audit", "demo:base..narrow", "-o")
        for words, code in (
            ((*audit, url, *quick), 0), ((*audit, url, *quick), 0), ((*audit, url), 1),
            (("show", url), 0), (("gate", url, "--fail-on", "relative_norm_overall > 0"), 4),
            (("show", "s3://audits/none"), 1), ((*audit, "s3://no-such-bucket/x"), 1),
        ):  # fmt: skip
            done = run_shadow(*words, cwd=tmp_path, env=env)
            assert done.code == code, (words, done.err)
            assert SECRET not in done.out + done.err
            assert "Traceback" not in done.err
    finally:
        server.stop()


def test_the_folder_of_a_url_has_its_last_name_and_a_digest():
    folders = [work_folder(Store(f"memory://{url}")).name for url in ("a/x y", "b/x y", "b/z")]
    assert [name.rpartition("-")[0] for name in folders] == [safe_name("x y")] * 2 + ["z"]
    assert [len(name.rpartition("-")[2]) for name in folders] == [12] * 3
    assert len({*folders}) == 3
