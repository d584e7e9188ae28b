"""What becomes of tasks on Ray, from Python: faults, messages, lost machines, too much memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray_machines import SECONDS, Command, until

pytest_plugins = "ray_machines"
pytestmark = pytest.mark.ray


def test_a_ray_of_this_machine_is_nobody_elses(command):
    """All its processes listen on the loopback address alone and ask for a token; nothing of that
    stays in this process.
    """
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
from shadow.audits import ray_engine
from shadow.audits.engine import Task
from shadow.audits.ray_engine import Ray
from shadow.audits.runtime import Runtime
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


def test_the_example_of_the_python_page_runs_as_it_stands(command):
    """On a Ray of this machine that it starts and ends, with a second one for the second call."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"(?ms)^<!-- not run: needs Ray;[^\n]*\n```python\n(.*?)^```", page)
    ended_too = "\nimport ray\nassert not ray.is_initialized()\n"
    printed = in_python(command, script + ended_too)
    assert printed == "demo:base..narrow demo:base..broad\n"


def test_a_fault_of_any_kind_comes_back_with_its_traceback(command, machines):
    """One that cannot be pickled, one that cannot be unpickled and a plain one: each is told once,
    with its type and text, and none is taken for a machine without `shadow`.
    """
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
from shadow.audits.plan import Access
quiet = dict(include_dashboard=False, log_to_driver=False, logging_level="error")
ray.init("local", num_cpus=2, **quiet)
for cores, most in ((1, None), (2, None), (1, 10**9)):
    runtime = Runtime(access=Access(max_disk=most))
    with ray_engine.ray_engine(Ray(cpus_per_task=cores), runtime) as engine:
        engine.submit(Task("one", lambda there: there.access.alone, lambda: runtime))
        print([ended.result for ended in engine.as_completed()])
"""
    assert in_python(command, script).splitlines() == ["[False]", "[True]", "[True]"]


def test_a_run_without_machines_says_so_and_ends(tmp_path, command):
    """The only machine with cores is taken away: one line, and a fault with a hint instead of an
    endless wait. The times are made short.
    """
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster()
    try:
        own = {"object_store_memory": 100_000_000}
        cluster.add_node(num_cpus=0, include_dashboard=False, **own)
        worker = cluster.add_node(num_cpus=1, **own)
        script = f"""
ray_engine.EMPTY_TOLD, ray_engine.EMPTY_ENDS = 1.0, 3.0
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
    lines = out.splitlines()
    assert lines.count("Ray has no machine for a task; waiting for up to 0 minutes") == 1
    assert lines[-1] == (
        "Ray has had no machine for a task for 0 minutes | "
        "start Ray on a machine again; the same command continues"
    )


def test_another_version_on_a_machine_is_one_line(tmp_path, command, machines):
    """Told with both versions and what to do; nothing is tried again, and nothing is left."""
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
    assert message.startswith("2 of 2 pairs could not be audited: demo:base..narrow: a machine has")
    assert "and the command is of shadow 0.0.1" in message
    assert hint == "install shadow 0.0.1 on every machine"
    assert not list((tmp_path / "out").rglob("*.parquet"))
