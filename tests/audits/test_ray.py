"""Audits on Ray: the bytes of the engine in this process, killed workers and drivers, an interrupt,
two machines.

The two machines are simulated on this one: each has a core and a cache of the Hub of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import models
import pytest
import torch
from hub import Hub
from runs import contents

from shadow.audits.list_index import read_index
from shadow.audits.machine_limits import machine_limits
from shadow.audits.pair import Runtime
from shadow.audits.ray_engine import Ray, ray_engine
from shadow.errors import ShadowError

pytestmark = pytest.mark.ray
SECONDS = 300


@dataclass(frozen=True)
class Machines:
    """Two machines of one core each, and the Hub that they read."""

    address: str
    hub: Hub
    homes: tuple[Path, Path]

    def blobs(self) -> list[int]:
        """By machine: files of weights in its cache."""
        return [
            len({path.resolve() for path in home.rglob("*.safetensors")}) for home in self.homes
        ]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    top = tmp_path_factory.mktemp("machines")
    homes = top / "one", top / "two"
    with Hub() as hub:
        cluster = cluster_utils.Cluster()
        for home in homes:
            variables = {"HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "SHADOW_NO_CACHE": "1"}
            own = {"include_dashboard": False} if home == homes[0] else {}
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000, env_vars=variables, **own)
        yield Machines(cluster.address, hub, homes)
        cluster.shutdown()


@dataclass(frozen=True)
class Command:
    """`shadow` in a process of its own."""

    folder: Path
    variables: Mapping[str, str]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shadow", *map(str, arguments)],
            cwd=self.folder, env={**os.environ, **self.variables, "COLUMNS": "200"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        return ended(self.start(*arguments), code)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a command wrote to stdout and to stderr."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def command(tmp_path: Path, machines: Machines) -> Command:
    variables = {
        "HF_ENDPOINT": machines.hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "SHADOW_NO_CACHE": "1",
    }
    machines.hub.reset()
    return Command(tmp_path, variables)


@pytest.fixture
def on_ray(machines: Machines) -> tuple[str, ...]:
    return "--engine", "ray", "--address", machines.address, "--cpus-per-task", "1"


def rows(output: Path) -> list[dict[str, object]]:
    """The rows of the index but for what a pair took."""
    index = read_index(output)
    assert index is not None
    return [asdict(row) | {"seconds": None, "bytes": None} for row in index.rows]


def until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


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
    """The parents of the processes that have one of these files open: workers are children of the
    raylet of their machine.
    """
    found = set()
    for pid in {pid for path in paths for pid in holders(path)}:
        with contextlib.suppress(OSError):  # it has ended
            status = Path("/proc", str(pid), "status").read_text()
            found |= {int(number) for number in re.findall(r"(?m)^PPid:\t(\d+)", status)}
    return found


@pytest.fixture
def long_list(tmp_path: Path) -> Path:
    """A short pair and one that takes some seconds."""
    models.toy(tmp_path / "base", 0, 40, 300)
    models.toy(tmp_path / "x1", 1, 2, 300)
    models.toy(tmp_path / "x2", 2, 40, 300)
    (tmp_path / "l.yaml").write_text(
        "- {base: ./base, tuned: ./x2}\n- {base: ./x1, tuned: ./base}\n"
    )
    return tmp_path / "l.yaml"


def test_the_bytes_are_those_of_one_process(tmp_path, command):
    """A list with a pair that fails, on a Ray of this machine alone: the same reports, index, JSON
    and exit code; the fault has its message and hint. The same command again measures nothing.
    """
    for seed, name in enumerate(("base", "one", "two")):
        models.toy(tmp_path / name, seed)
    (tmp_path / "toys.yaml").write_text(
        "toy-a: {base: ./base, one: ./one, two: ./two}\n"
        "toy-bad: {base: ./base, gone: ./gone, one: ./one}\n"
        "toy-c: {base: ./one, two: ./two}\n"
    )
    wanted = ("audit", "toy-*", "--registry", ".", "--json", "-o")
    out, err = command(*wanted, "local", code=1)
    on_ray = ("--engine", "ray", "--cpus-per-task", "1")
    out_on_ray, err_on_ray = command(*wanted, "ray", *on_ray, code=1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local") != {}
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert json.loads(out_on_ray)["reports"] == json.loads(out)["reports"]
    faults = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert (
        [line for line in err_on_ray.splitlines() if line.startswith(("error: ", "hint: "))]
        == faults
        != []
    )
    _, again = command(*wanted, "ray", *on_ray, code=1)
    assert (
        sum(
            line.endswith("nothing to measure: the report is already there")
            for line in again.splitlines()
        )
        == 4
    )
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def test_a_worker_that_is_killed_goes_on_at_its_journal(tmp_path, command, long_list, on_ray):
    """SIGKILL in the middle of a pair: the task begins again and measures the rest; stdout is still
    only data.
    """
    command("audit", "--list", long_list, "--no-subspaces", "-o", "whole")
    process = command.start(
        "audit", "--list", long_list, "--no-subspaces", "-o", "out", "--json", *on_ray
    )
    until(lambda: journals(tmp_path / "out"))
    (journal,) = journals(tmp_path / "out")
    (worker,) = holders(journal)
    os.kill(worker, signal.SIGKILL)
    out, err = ended(process)
    assert json.loads(out)["counts"]["done"] == 2
    assert "its process was lost (WorkerCrashedError); trying again" in err
    assert "resuming: " in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_driver_goes_on_where_the_first_was_killed(tmp_path, command, long_list, on_ray):
    """SIGKILL of the command: the index is right, and the next command measures what is left."""
    command("audit", "--list", long_list, "--no-subspaces", "-o", "whole")
    process = command.start("audit", "--list", long_list, "--no-subspaces", "-o", "out", *on_ray)
    until(lambda: journals(tmp_path / "out"))
    process.kill()
    process.communicate()
    assert {row["state"] for row in rows(tmp_path / "out")} <= {"done", "pending"}
    _, err = command("audit", "--list", long_list, "--no-subspaces", "-o", "out", *on_ray)
    assert "resuming: " in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_an_interrupt_ends_the_tasks(tmp_path, command, long_list, on_ray):
    """Ctrl-C: exit code 130, one line, nobody works any more, and what is not done is pending."""
    process = command.start("audit", "--list", long_list, "--no-subspaces", "-o", "out", *on_ray)
    until(lambda: journals(tmp_path / "out"))
    (journal,) = journals(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    out, err = ended(process, 130)
    assert out == ""
    assert err.splitlines()[-1] == "stopped; run the same command again to continue"
    until(lambda: not holders(journal))
    assert {row["state"] for row in rows(tmp_path / "out")} <= {"done", "pending"}
    assert "pending" in {row["state"] for row in rows(tmp_path / "out")}
    _, err = command("audit", "--list", long_list, "--no-subspaces", "-o", "out", *on_ray)
    assert "resuming: " in err


def test_a_base_is_fetched_by_one_machine(tmp_path, command, machines, on_ray):
    """Two bases of three tuned models each, in turns on the list: each base moves to one machine
    and each tuned model once, but that a machine which is done early may help with the other base.
    """
    for number, base in enumerate(("a", "b")):
        weights = models.matrices(10 * number, 4, 200)
        machines.hub.add(f"org/{base}", models.sharded(tmp_path / base, weights, 2))
        for tuned in range(3):
            changed = {
                name: weight + 0.01 * torch.randn(weight.shape) for name, weight in weights.items()
            }
            machines.hub.add(
                f"org/{base}{tuned}", models.sharded(tmp_path / f"{base}{tuned}", changed, 2)
            )
    pairs = [
        f"- {{base: org/{base}, tuned: org/{base}{tuned}}}\n" for tuned in range(3) for base in "ab"
    ]
    (tmp_path / "l.yaml").write_text("".join(pairs))
    command("audit", "--list", "l.yaml", "-o", "ray", *on_ray)
    fetched = Counter(
        (request.repo, request.filename)
        for request in machines.hub.asked("*.safetensors", origin="cdn", method="GET")
        if request.range is None
    )
    assert len(fetched) == 2 * 4 * 2
    twice = {repo for (repo, _), count in fetched.items() if count == 2}
    assert set(fetched.values()) <= {1, 2}
    assert twice in (set(), {"org/a"}, {"org/b"})
    assert sum(machines.blobs()) == 2 * 8 + 2 * len(twice)
    command("audit", "--list", "l.yaml", "-o", "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local") != {}
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


@pytest.mark.parametrize(("side", "tier"), [(200, ()), (520, ("--precision", "sketch"))])
def test_one_pair_is_cut_by_itself(tmp_path, command, machines, on_ray, side, tier):
    """A single pair of four and four shards on two machines: two parts, of which each machine
    fetches its own; the report is that of one process.
    """
    folders = {
        name: models.sharded(tmp_path / name, models.matrices(seed, 8, side), 4)
        for seed, name in ((50 + side, f"giant-{side}"), (51 + side, f"large-{side}"))
    }
    for name, folder in folders.items():
        machines.hub.add(f"org/{name}", folder)
    before = machines.blobs()
    pair = ("audit", f"org/giant-{side}", f"org/large-{side}", *tier, "-o")
    _, err = command(*pair, "ray", *on_ray)
    assert err.splitlines()[:2] == [
        "Ray: 2 machines, 2 tasks at a time, 1 core each",
        "measuring in 2 parts",
    ]
    fetched = Counter(
        (request.repo, request.filename)
        for request in machines.hub.asked("*.safetensors", origin="cdn", method="GET")
        if request.range is None
    )
    assert len(fetched) == 8
    assert set(fetched.values()) == {1}
    assert [now - then for now, then in zip(machines.blobs(), before, strict=True)] == [4, 4]
    command(*pair, "whole")
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole") != {}


@pytest.mark.parametrize("who", ["worker", "driver"])
def test_a_part_goes_on_after_a_kill(tmp_path, command, on_ray, who):
    """SIGKILL of a part's worker, or the driver: what the part measured is not measured again."""
    for seed, name in enumerate(("base", "tuned")):
        models.sharded(tmp_path / name, models.matrices(seed, 40, 300), 4)
    pair = ("audit", "./base", "./tuned", "--no-subspaces", "-o")
    command(*pair, "whole")
    process = command.start(*pair, "out", *on_ray)
    until(lambda: journals(tmp_path / "out"))
    if who == "worker":
        (worker,) = holders(journals(tmp_path / "out")[0])
        os.kill(worker, signal.SIGKILL)
        _, err = ended(process)
        assert "its process was lost (WorkerCrashedError); trying again" in err
    else:
        process.kill()
        process.communicate()
        _, err = command(*pair, "out", *on_ray)
    assert "resuming: " in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_task_that_is_too_large_is_one_line(command, machines):
    """More cores than any machine has: exit code 1, and the number that there is."""
    asked = ("--engine", "ray", "--address", machines.address, "--cpus-per-task", "3")
    _, err = command("audit", "demo", *asked, code=1)
    assert err.splitlines()[0] == "error: a task wants 3 cores, the largest machine has 1"


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


def test_an_address_where_nobody_answers_is_one_line(command):
    """Exit code 1, no traceback."""
    _, err = command("audit", "demo", "--engine", "ray", "--address", "127.0.0.1:1", code=1)
    assert err.startswith("error: no Ray at 127.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "answer", "message", "hint"),
    [
        (  # on a busy machine Ray gives up after 30 s
            None,
            Exception("The current node timed out during startup.\nThis could happen because"),
            "Ray did not start on this machine: The current node timed out during startup.",
            "run it again when the machine is less busy, or without --engine ray",
        ),
        (  # told with both versions
            "auto",
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python:"
                " 3.10.1\nThis process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n"
                "    Python: 3.11.7\n"
            ),
            "another version of Ray or Python: The cluster was started with: Ray: 2.9.0 Python:"
            " 3.10.1 This process on node 10.0.0.2 was started with: Ray: 2.60.0 Python: 3.11.7",
            "install the versions of the cluster on this machine",
        ),
        (  # Ray, which looks for itself on this machine for a minute, says no more than this
            "auto",
            ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"),
            "no Ray at auto: Failed to connect to Ray cluster at 10.0.0.1:6379",
            "run the command on a machine of the cluster",
        ),
    ],
)
def test_a_ray_that_cannot_be_had_is_one_line(monkeypatch, address, answer, message, hint):
    """The answers of Ray are made up."""
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        raise answer

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ShadowError) as caught, ray_engine(Ray(address), Runtime()):
        pass
    assert caught.value.message == message
    assert caught.value.hint.startswith(hint)


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


def test_python_has_reports_in_the_order_of_the_pairs(tmp_path, command, machines):
    """The first pair takes longest and one fails: the reports of all others are there and those of
    one process; the fault names the pair, with the usual hint; a Ray that the process has
    initialised stays, and an address of another one is refused.
    """
    for seed, name, layers in ((0, "base", 12), (1, "slow", 12), (2, "fast", 1)):
        models.toy(tmp_path / name, seed, layers, 200)
    (tmp_path / "toys.yaml").write_text(
        "toy-a: {base: ./base, slow: ./slow, fast: ./fast}\ntoy-bad: {base: ./base, gone: ./gone}\n"
    )
    script = f"""
ray.init(address="{machines.address}", log_to_driver=False, logging_level="error")
on_ray = dict(engine=shadow.Ray(cpus_per_task=1), registry=".")
lines, states = [], []
reports = shadow.audit(
    ["toy-a:base..slow", "toy-a:base..fast"], output="ray", say=lines.append,
    progress=states.append, **on_ray,
)
print([report.name for report in reports])
print(max(state.done for state in states))
print(sum(line.startswith("[1/2] toy-a:base..slow: ") for line in lines) > 0)
try:
    shadow.audit(["toy-bad:base..gone", "toy-a:base..fast"], output="bad", **on_ray)
except shadow.ShadowError as error:
    print(error.message.partition(": ")[0], "|", "toy-bad:base..gone" in error.message)
    print(bool(error.hint))
try:
    on_ray["engine"] = shadow.Ray("127.0.0.1:1", cpus_per_task=1)
    shadow.audit("toy-a", output="x", **on_ray)
except shadow.UsageError as error:
    print(error.message)
assert ray.is_initialized()
"""
    assert in_python(command, script).splitlines() == [
        "['toy-a:base..slow', 'toy-a:base..fast']",
        "12",
        "True",
        "1 of 2 pairs could not be audited | True",
        "True",
        "this process has a Ray of another address already",
    ]
    assert (tmp_path / "bad" / "toy-a" / "base..fast" / "matrices.parquet").is_file()
    command("audit", "toy-a:base..*", "--registry", ".", "-o", "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local") != {}


def test_details_come_to_the_driver(tmp_path, command, on_ray):
    """`--verbose`: stderr has the lines of one process, of each pair behind its name, of each part
    behind its number; without it none.
    """
    for seed, name in enumerate(("base", "one", "two")):
        models.toy(tmp_path / name, seed, 4)
    lines = [
        f"- {{base: ./base, tuned: ./{name}, name: 'a:base..{name}'}}" for name in ("one", "two")
    ]
    (tmp_path / "l.yaml").write_text("\n".join(lines))
    _, err = command("audit", "--list", "l.yaml", "-o", "ray", "-v", *on_ray)
    for number, pair in ((1, "a:base..one"), (2, "a:base..two")):
        lines = [line for line in err.splitlines() if line.startswith(f"[{number}/2] {pair}: ")]
        measured = [line for line in lines if "up_proj.weight, 8 x 8: measured in" in line]
        assert len(measured) == 4
        assert any(line.partition(": ")[2].startswith("base: ") for line in lines)
    _, err = command("audit", "./base", "./one", "-o", "parts", "--parts", 2, "-v", *on_ray)
    for number in (1, 2):
        of_part = [line for line in err.splitlines() if line.startswith(f"part {number} of 2: ")]
        assert sum("measured in" in line for line in of_part) == 2
    _, err = command("audit", "./base", "./two", "-o", "quiet", *on_ray)
    assert "measured in" not in err


def test_waiting_for_another_audit_is_no_loss(command, machines):
    """A task gives way three times, then its process is killed once: it begins again and ends."""
    script = f"""
def work(runtime):
    begun = Path("begun")
    begun.write_text((begun.read_text() if begun.exists() else "") + "x")
    if len(begun.read_text()) == 4:
        os._exit(1)
    return len(begun.read_text())
runtime = Runtime(say=print)
with ray_engine.ray_engine(Ray("{machines.address}", cpus_per_task=1), Runtime()) as engine:
    engine.submit(Task("one", work, lambda: runtime))
    for ended in engine.as_completed():
        print(ended.result, ended.fault)
        if ended.result in (1, 2, 3):
            engine.submit(ended.task)
"""
    assert in_python(command, script).splitlines() == [
        "1 None",
        "2 None",
        "3 None",
        "its process was lost (WorkerCrashedError); trying again",
        "5 None",
    ]


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


def test_what_tasks_tell_goes_to_the_machine_of_the_driver(command, machines):
    """Ray puts an actor that needs no resources on any machine; with that machine, all messages
    would be lost.
    """
    script = f"""

class Own(ray_engine.Ear):
    def machine(self):
        return ray.get_runtime_context().get_node_id()

ray_engine.Ear = Own
with ray_engine.ray_engine(Ray("{machines.address}"), Runtime()):
    here = ray.get_runtime_context().get_node_id()
    ears = [ray_engine.new_ear() for _ in range(8)]
    print(*(ray.get(ear.machine.remote()) == here for ear in ears))
"""
    assert in_python(command, script).split() == ["True"] * 8


def test_what_tasks_tell_outlives_the_process_that_collects_it(tmp_path, command, machines):
    """That process is killed between two messages of a task: both arrive, each once."""
    script = f"""

class Own(ray_engine.Ear):
    def process(self):
        return os.getpid()

def work(runtime):
    runtime.say("before")
    while not Path("killed").exists():
        time.sleep(0.1)
    runtime.say("after")

def say(text):
    print(text)
    if text == "before":
        os.kill(ray.get(engine.ear.process.remote()), signal.SIGKILL)
        Path("killed").touch()

ray_engine.Ear = Own
runtime = Runtime(say=say)
with ray_engine.ray_engine(Ray("{machines.address}"), Runtime()) as engine:
    engine.submit(Task("one", work, lambda: runtime))
    print([ended.fault for ended in engine.as_completed()])
"""
    assert in_python(command, script).splitlines() == ["before", "after", "[None]"]


def test_last_words_are_waited_for(command, machines):
    """What a task tells right before it ends comes late: it comes. The times are made short."""
    script = f"""

class Own(ray_engine.Ear):
    def since(self, *asked):
        if self._told:
            time.sleep(2)
        return super().since(*asked)

ray_engine.Ear, ray_engine.GRACE = Own, 0.5
runtime = Runtime(say=print)
with ray_engine.ray_engine(Ray("{machines.address}"), Runtime()) as engine:
    engine.submit(Task("one", lambda there: there.say("last words"), lambda: runtime))
    print([ended.fault for ended in engine.as_completed()])
"""
    assert in_python(command, script).splitlines() == ["last words", "[None]"]


def test_the_cluster_keeps_the_function_of_tasks_once(command, machines):
    """Each copy would stay until the run ends, and every worker would load it."""
    script = f"""
from ray.experimental.internal_kv import _internal_kv_list
with ray_engine.ray_engine(Ray("{machines.address}"), Runtime()) as engine:
    before = len(_internal_kv_list("RemoteFunction", namespace="fun"))
    for name in "abc":
        engine.submit(Task(name, lambda runtime: None, Runtime))
    print(len(list(engine.as_completed())))
    print(len(_internal_kv_list("RemoteFunction", namespace="fun")) - before)
"""
    assert in_python(command, script).splitlines() == ["3", "1"]


def test_a_run_whose_own_machine_is_lost_ends(command, machines):
    """Ray then begins no task any more, on whichever machine. That it is lost is made up."""
    script = f"""
with ray_engine.ray_engine(Ray("{machines.address}"), Runtime()) as engine:
    engine.submit(Task("one", lambda runtime: None, Runtime))
    engine.here = "gone"
    try:
        list(engine.as_completed())
    except ShadowError as error:
        print(error.message, "|", error.hint)
"""
    assert in_python(command, script).splitlines() == [
        "Ray has ended on the machine of this command | "
        "start Ray there again; the same command continues"
    ]


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


MEMORY = 4 * 2**30  # bytes that a task takes after ten matrices, twice what Ray leaves it


def test_a_task_that_takes_too_much_memory_goes_on_with_one_thread(tmp_path, command):
    """Ray's monitor kills it, in earnest. It goes on at its journal, and the report is that of one
    process.
    """
    memory = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(memory[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    if free < 2 * MEMORY or machine_limits().memory_by != "the machine":
        pytest.skip("needs 8 GiB of free memory, and no control group that limits it")
    for seed, name in enumerate(("base", "tuned")):
        models.toy(tmp_path / name, seed, 40, 100)
    script = f"""
from dataclasses import replace
import numpy as np
from shadow.audits.ray_engine import RayEngine
submit = RayEngine.submit
def hungry(work, runtime):
    again = Path("again")
    if again.exists():
        again.write_text(str(runtime.jobs))
        return work(runtime)
    def show(state):
        runtime.show(state)
        if state.done == 10:
            again.touch()
            taken = np.ones({MEMORY} // 8)
            time.sleep({SECONDS})
    return work(replace(runtime, show=show))
RayEngine.submit = lambda self, task: submit(self, replace(task, work=partial(hungry, task.work)))
said = []
shadow.audit(base="./base", tuned="./tuned", output="out", engine="ray", parts=1, say=said.append)
print(*said, sep="\\n")
"""
    monitored = {
        "RAY_memory_usage_threshold": str((total - free + MEMORY / 2) / total),
        "RAY_memory_monitor_refresh_ms": "100",
    }
    said = in_python(replace(command, variables={**command.variables, **monitored}), script)
    assert "its machine ran out of memory; trying again" in said
    assert "resuming: 10 of 40 matrices already measured" in said
    assert (tmp_path / "again").read_text() == "1"
    command("audit", "./base", "./tuned", "-o", "local")
    assert contents(tmp_path / "out") == contents(tmp_path / "local") != {}


def test_a_task_that_is_out_of_memory_three_times_is_given_up(tmp_path, command, machines):
    """Ray's answer is made up: one line and a hint, and the same call goes on later."""
    for seed, name in enumerate(("base", "tuned")):
        models.toy(tmp_path / name, seed)
    script = f"""
get, left = ray.get, [3]
def got(reference, **more):
    if not more and left[0]:  # of a task, not of what tasks tell
        left[0] -= 1
        raise ray.exceptions.OutOfMemoryError("killed by the memory monitor")
    return get(reference, **more)
ray.get = got
lines = []
asked = dict(base="./base", tuned="./tuned", output="out",
             engine=shadow.Ray("{machines.address}", 1), parts=1, say=lines.append)
try:
    shadow.audit(**asked)
except shadow.ShadowError as error:
    print(error.message)
    print(error.hint)
print(sum(line.endswith("its machine ran out of memory; trying again") for line in lines))
shadow.audit(**asked)
"""
    message, hint, again = in_python(command, script).splitlines()
    assert message == "its machine ran out of memory, 3 times in a row"
    assert hint.startswith("give each task more with --memory-per-task")
    assert again == "2"
    command("audit", "./base", "./tuned", "-o", "local")
    assert contents(tmp_path / "out") == contents(tmp_path / "local") != {}


def test_a_machine_that_is_lost_does_not_end_the_run(tmp_path, command):
    """Two machines at work, one of them is taken away: its pair begins again on the other one, at
    its journal, and the reports are those of one process.
    """
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    models.toy(tmp_path / "base", 0, 40, 300)
    for number in (1, 2):
        models.write(tmp_path / f"x{number}", models.matrices(number, 40, 300), models.LLAMA)
    models.toy(tmp_path / "other", 3, 40, 300)
    (tmp_path / "l.yaml").write_text(
        "- {base: ./base, tuned: ./x1}\n- {base: ./other, tuned: ./x2}\n"
    )
    cluster = cluster_utils.Cluster()
    try:
        own = {"num_cpus": 1, "object_store_memory": 100_000_000}
        variables = {"SHADOW_NO_CACHE": "1"}
        cluster.add_node(include_dashboard=False, env_vars=variables, **own)
        second = cluster.add_node(env_vars=variables, **own)
        on_both = ("--engine", "ray", "--address", cluster.address, "--cpus-per-task", "1")
        words = ("audit", "--list", "l.yaml", "--no-subspaces", "-o")
        process = command.start(*words, "out", *on_both)
        (raylet,) = second.all_processes["raylet"]
        until(lambda: raylet.process.pid in parents(journals(tmp_path / "out")))
        cluster.remove_node(second, allow_graceful=False)
        _, err = ended(process)
        assert "its process was lost" in err
        assert "trying again" in err
        assert "resuming: " in err
    finally:
        cluster.shutdown()
    command(*words, "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") != {}
