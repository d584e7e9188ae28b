"""Audits on Ray: the bytes of one process, kills, an interrupt, two machines."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from measuring import contents
from ray_machines import SECONDS, Command, ended, rows, until

pytest_plugins = "ray_machines"
pytestmark = pytest.mark.ray


def journals(output: Path) -> list[Path]:
    """The journals of audits that have measured something."""
    found = []
    for folder, _, files in os.walk(output):  # folders of scratch come and go under way
        if "journal.jsonl" in files:
            with contextlib.suppress(FileNotFoundError):  # its audit has ended
                path = Path(folder, "journal.jsonl")
                if path.read_bytes().count(b"\n") > 3:
                    found.append(path)
    return found


def holders(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [link.readlink() for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if path in links:
            found.append(int(process.name))
    return found


def parents(paths: list[Path]) -> set[int]:
    """The parents of processes that have one of these files open: the raylets of workers."""
    found = set()
    for pid in {pid for path in paths for pid in holders(path)}:
        with contextlib.suppress(OSError):  # it has ended
            status = Path("/proc", str(pid), "status").read_text()
            found |= {int(number) for number in re.findall(r"(?m)^PPid:\t(\d+)", status)}
    return found


@pytest.fixture
def long_list(tmp_path: Path) -> Path:
    """A short pair and one that takes some seconds."""
    planted.toy(tmp_path / "base", 0, 40, 300)
    planted.toy(tmp_path / "x1", 1, 2, 300)
    planted.toy(tmp_path / "x2", 2, 40, 300)
    (tmp_path / "l.yaml").write_text(
        "- {base: ./base, tuned: ./x2}\n- {base: ./x1, tuned: ./base}\n"
    )
    return tmp_path / "l.yaml"


def test_the_bytes_are_those_of_one_process(tmp_path, command):
    """Reports, index, JSON, faults and exit code; the same command again measures nothing."""
    for seed, name in enumerate(("base", "one", "two")):
        planted.toy(tmp_path / name, seed)
    (tmp_path / "toys.yaml").write_text(
        "toy-a: {base: ./base, one: ./one, two: ./two}\n"
        "toy-bad: {base: ./base, gone: ./gone, one: ./one}\n"
        "toy-c: {base: ./one, two: ./two}\n"
    )
    wanted = ("audit", "toy-*", "--registry", ".", "--format", "json", "-o")
    on_ray = ("--engine", "ray:cpus=1")
    recorded = [command(*wanted, "local", code=1), command(*wanted, "ray", *on_ray, code=1)]
    reports = [json.loads(out)["reports"] for out, _ in recorded]
    faults = [
        [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
        for _, err in recorded
    ]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local") != {}
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert reports[0] == reports[1]
    assert faults[0] == faults[1] != []
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("ray/*/*/*")}
    command(*wanted, "ray", *on_ray, code=1)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


@pytest.mark.parametrize(("what", "who"), [("list", "worker"), ("pair", "driver")])
def test_what_was_measured_before_a_kill_is_not_measured_again(
    tmp_path, command, long_list, on_ray, what, who
):
    """SIGKILL: the task goes on at its journal, and the bytes are those of one process."""
    words = ("audit", "--list", long_list, "--format", "json", "-o")
    if what == "pair":
        for seed, name in enumerate(("base", "tuned")):
            planted.sharded(tmp_path / f"{name}s", planted.matrices(seed, 40, 300), 4)
        words = ("audit", "./bases", "./tuneds", "--format", "json", "-o")
    command(*words, "whole")
    process = command.start(*words, "out", *on_ray)
    until(lambda: journals(tmp_path / "out"))
    if who == "worker":
        (worker,) = holders(journals(tmp_path / "out")[0])
        os.kill(worker, signal.SIGKILL)
        out, err = ended(process)
        assert "WorkerCrashedError" in err
    else:
        process.kill()
        process.communicate()
        out, err = command(*words, "out", *on_ray)
    assert json.loads(out)
    assert "resuming: " in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupt_ends_the_tasks(tmp_path, command, long_list, on_ray):
    """Ctrl-C: exit code 130, one line, nobody works any more, and what is not done is pending."""
    process = command.start("audit", "--list", long_list, "-o", "out", *on_ray)
    until(lambda: journals(tmp_path / "out"))
    started = journals(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    out, err = ended(process, 130)
    assert out == ""
    assert err.splitlines()[-1].startswith("stopped")
    until(lambda: not any(holders(journal) for journal in started))
    assert {row["state"] for row in rows(tmp_path / "out")} <= {"done", "pending"}
    assert "pending" in {row["state"] for row in rows(tmp_path / "out")}
    _, err = command("audit", "--list", long_list, "-o", "out", *on_ray)
    assert "resuming: " in err


def test_a_base_is_fetched_by_one_machine(tmp_path, command, machines, on_ray):
    """Bases and tuned models move to one machine; one that is done early may help."""
    for number, base in enumerate(("a", "b")):
        weights = planted.matrices(10 * number, 4, 200)
        machines.hub.add(f"org/{base}", planted.sharded(tmp_path / base, weights, 2))
        for tuned in range(3):
            changed = {
                name: weight + 0.01 * torch.randn(weight.shape) for name, weight in weights.items()
            }
            machines.hub.add(
                f"org/{base}{tuned}", planted.sharded(tmp_path / f"{base}{tuned}", changed, 2)
            )
    pairs = [
        f"- {{base: org/{base}, tuned: org/{base}{tuned}}}\n" for tuned in range(3) for base in "ab"
    ]
    (tmp_path / "l.yaml").write_text("".join(pairs))
    command("audit", "--list", "l.yaml", "-o", "ray", *on_ray)
    fetched = fetched_once(machines)
    assert len(fetched) == 2 * 4 * 2
    twice = {repo for (repo, _), count in fetched.items() if count == 2}
    assert set(fetched.values()) <= {1, 2}
    assert twice in (set(), {"org/a"}, {"org/b"})
    assert sum(machines.blobs()) == 2 * 8 + 2 * len(twice)
    command("audit", "--list", "l.yaml", "-o", "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local") != {}
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def fetched_once(machines) -> Counter:
    """How often each shard was fetched as a whole."""
    asked = machines.hub.asked("*.safetensors", origin="cdn", method="GET")
    return Counter((one.repo, one.filename) for one in asked if one.range is None)


def test_one_pair_is_cut_by_itself(tmp_path, command, machines, on_ray):
    """Four and four shards, sketched: two parts, of which each machine fetches its own. Where
    numbers fail, as of models without anything in common, shards are fetched once more.
    """
    base, noise = (planted.matrices(seed, 8, 520) for seed in (570, 571))
    tuned = {name: tensor + 0.01 * noise[name] for name, tensor in base.items()}
    for name, tensors in (("giant", base), ("large", tuned)):
        folder = planted.sharded(tmp_path / name, tensors, 4)
        machines.hub.add(f"org/{name}", folder)
    before = machines.blobs()
    pair = ("audit", "org/giant", "org/large", "--level", "sketch", "-o")
    command(*pair, "ray", *on_ray)
    assert list(fetched_once(machines).values()) == [1] * 8
    assert [now - then for now, then in zip(machines.blobs(), before, strict=True)] == [4, 4]
    command(*pair, "whole")
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole") != {}


def test_a_task_that_fits_nowhere_and_an_address_where_none_answers_are_one_line(command, machines):
    """Exit code 1, no traceback."""
    for more, named in (
        (f"address={machines.address},cpus=3", "3 cores"),
        ("address=127.0.0.1:1", "127.0.0.1:1"),
    ):
        _, err = command("audit", "demo", "--engine", f"ray:{more}", code=1)
        assert err.startswith("error: ")
        assert named in err.splitlines()[0]


def test_a_machine_that_is_lost_does_not_end_the_run(tmp_path, command):
    """Its pair begins again on the other one, at its journal; the reports are the same."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    planted.toy(tmp_path / "base", 0, 40, 300)
    for number in (1, 2):
        planted.write(tmp_path / f"x{number}", planted.matrices(number, 40, 300), planted.LLAMA)
    planted.toy(tmp_path / "other", 3, 40, 300)
    (tmp_path / "l.yaml").write_text(
        "- {base: ./base, tuned: ./x1}\n- {base: ./other, tuned: ./x2}\n"
    )
    cluster = cluster_utils.Cluster()
    try:
        own = {"num_cpus": 1, "object_store_memory": 100_000_000}
        variables = {"SHADOW_NO_CACHE": "1"}
        cluster.add_node(include_dashboard=False, env_vars=variables, **own)
        second = cluster.add_node(env_vars=variables, **own)
        on_both = ("--engine", f"ray:address={cluster.address},cpus=1")
        words = ("audit", "--list", "l.yaml", "-o")
        process = command.start(*words, "out", *on_both)
        (raylet,) = second.all_processes["raylet"]
        until(lambda: raylet.process.pid in parents(journals(tmp_path / "out")))
        cluster.remove_node(second, allow_graceful=False)
        _, err = ended(process)
        assert "resuming: " in err
    finally:
        cluster.shutdown()
    command(*words, "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") != {}


def test_a_ray_of_this_machine_is_nobody_elses(command):
    """Loopback alone, with a token; nothing of that stays in this process."""
    script = """
def listening():
    addresses = {}
    for family in ("tcp", "tcp6"):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            _, local, _, state, *more = line.split()
            if state == "0A":
                addresses[f"socket:[{more[5]}]"] = local.partition(":")[0]
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            address = addresses.get(os.readlink(link))
            if address and b"OF_THIS_TEST=1" in (link.parents[1] / "environ").read_bytes():
                found.append(address)
        except OSError:
            continue
    return found
before = dict(os.environ)
with ray_engine.ray_engine(Ray("local"), Runtime()):
    mode = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote())
    found = listening()
    here = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    print(mode, len(found) > 3, set(found) - here)
print({name for name in os.environ if name.startswith("RAY_") and name not in before})
"""
    variables = {**command.variables, "OF_THIS_TEST": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    printed = in_python(replace(command, variables=variables), script)
    assert printed.splitlines() == ["token True set()", "set()"]


HEAD = """
import os, signal, time
from functools import partial
from pathlib import Path
import ray, shadow
from shadow.engines import ray_engine
from shadow.engines.engine import Task
from shadow.engines.ray_engine import Ray
from shadow.run.runtime import Runtime
from shadow.errors import ShadowError
"""


def in_python(command: Command, script: str) -> str:
    """What a script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script],
        cwd=command.folder, env={**os.environ, **command.variables},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fault_of_any_kind_comes_back_with_its_traceback(command, machines):
    """Also what cannot be pickled or unpickled; none is taken for a missing `shadow`."""
    script = f"""
import threading
class Locked(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()
class TwoWords(Exception):
    def __init__(self, one, other):
        super().__init__(one)
def locked(runtime):
    raise Locked("disk on fire")
def two_words(runtime):
    raise TwoWords("disk on fire", 2)
def plain(runtime):
    raise ValueError("disk on fire")
runtime = Runtime(say=print)
with ray_engine.ray_engine(Ray("{machines.address}", cpus_per_task=1), Runtime()) as engine:
    for work in (locked, two_words, plain):
        engine.submit(Task(work.__name__, work, lambda: runtime))
    for ended in engine.as_completed():
        (note,) = ended.fault.__notes__
        print(type(ended.fault).__name__, ended.fault, f"in {{ended.task.name}}" in note)
"""
    assert sorted(in_python(command, script).splitlines()) == [
        "RuntimeError Locked: disk on fire True",
        "RuntimeError TwoWords: disk on fire True",
        "ValueError disk on fire True",
    ]


def test_tasks_know_whether_they_share_their_machine(command):
    """Two at a time on this machine do; with --max-disk there is one, which does not."""
    script = """
from shadow.run.runtime import Access
quiet = dict(include_dashboard=False, log_to_driver=False, logging_level="error")
ray.init("local", num_cpus=2, **quiet)
for cores, most in ((1, None), (2, None), (1, 10**9)):
    runtime = Runtime(access=Access(max_disk=most))
    with ray_engine.ray_engine(Ray(cpus_per_task=cores), runtime) as engine:
        engine.submit(Task("one", lambda there: there.access.owns_cache, lambda: runtime))
        print([ended.result for ended in engine.as_completed()])
"""
    assert in_python(command, script).splitlines() == ["[False]", "[True]", "[True]"]


def test_a_run_without_machines_says_so_and_ends(tmp_path, command):
    """A line, and a fault instead of an endless wait. The times are made short."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster()
    try:
        own = {"object_store_memory": 100_000_000}
        cluster.add_node(num_cpus=0, include_dashboard=False, **own)
        worker = cluster.add_node(num_cpus=1, **own)
        script = f"""
ray_engine.EMPTY_ENDS = 3.0
def work(runtime):
    Path("begun").touch()
    time.sleep({SECONDS})
runtime = Runtime(say=print)
request = Ray("{cluster.address}", cpus_per_task=1)
with ray_engine.ray_engine(request, Runtime(say=print)) as engine:
    for name in ("one", "two"):
        engine.submit(Task(name, work, lambda: runtime))
    try:
        list(engine.as_completed())
    except ShadowError as error:
        print(error.message, "|", error.hint)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + script],
            cwd=tmp_path, env={**os.environ, **command.variables},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        until((tmp_path / "begun").exists)
        cluster.remove_node(worker, allow_graceful=False)
        out, _ = process.communicate(timeout=SECONDS)
    finally:
        cluster.shutdown()
    *_, waiting, fault = out.splitlines()
    assert ("Ray" in waiting, " | " in waiting) == (True, False)
    assert " | start Ray" in fault


def test_another_version_on_a_machine_is_one_line(tmp_path, command, machines):
    """Nothing is tried again, and nothing is left."""
    script = f"""
ray_engine.__version__ = "0.0.1"
lines = []
try:
    shadow.audit("demo", output="out", engine=shadow.Ray("{machines.address}", 1),
                 say=lines.append)
except shadow.ShadowError as error:
    print(error.message)
    print(error.hint)
assert not any("trying again" in line for line in lines)
"""
    message, hint = in_python(command, script).splitlines()
    assert "0.0.1" in message
    assert "0.0.1" in hint
    assert not list((tmp_path / "out").rglob("*.parquet"))
