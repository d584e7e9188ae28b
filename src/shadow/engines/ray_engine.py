"""Tasks on Ray, on the cores of this machine or on a cluster.

A task prefers machines that have its base; no more tasks wait in Ray than can run.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from shadow.engines.engine import Ended, Queue, Ray, Task, Watch, portable
from shadow.errors import ShadowError, UsageError
from shadow.extras import require
from shadow.run.machine import MachineLimits, machine_limits
from shadow.run.runtime import Progress, Runtime, default_folder, ignore
from shadow.run.workers import single_threads
from shadow.text import byte_size, counted
from shadow.version import __version__

# of a task, where nobody says it: a 7B pair then has 4 solvers, and downloads and computes at once
CORES = 4
# of a task that loses its process or machine each time; what it had measured is not measured again
ATTEMPTS = 3
GRACE = 5.0  # seconds that cancelled tasks have to end by themselves
LAST_WORDS = 60.0  # seconds in which the last messages of a task are waited for
TICK = 0.25  # seconds between two looks at what tasks tell
# seconds without any machine after which the run ends: a cluster that is replaced is there by then
EMPTY_ENDS = 600.0
SAID_EVERY = 0.5  # seconds between two messages on the progress of a task
OUTSIDE = (
    "run the command on a machine of the cluster, with its versions of Ray and Python; `ray status`"
    " there says whether Ray runs"
)
BUSY = "run it again when the machine is less busy, or without --engine ray"
MOST_SAID = 300  # characters of a fault of Ray's
AUTH_MODE = "RAY_AUTH_MODE"
STORE = 200_000_000  # bytes of Ray's object store on this machine: results are small


@contextlib.contextmanager
def ray_engine(request: Ray, runtime: Runtime) -> Iterator[RayEngine]:
    """Start an engine, and Ray if necessary, for the duration of a block. Raises ShadowError."""
    require("ray")
    address = request.address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UsageError("a run over a Ray client would end with its connection", OUTSIDE)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the processes that Ray starts
    import ray

    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            current = ray.get_runtime_context().gcs_address
            if request.address not in (None, "auto", "local", current):
                hint = f"leave out the address, or name {current}; `ray.shutdown()` ends it"
                raise UsageError("this process already uses a Ray at another address", hint)
        else:
            if address == "local":
                runtime.say("starting Ray on this machine")
                if AUTH_MODE not in os.environ:
                    _set_auth_mode("token")
                    stack.callback(_set_auth_mode, None)
            _connect(address)
            stack.callback(ray.shutdown)
        yield RayEngine(request, runtime)


def _connect(address: str) -> None:
    import ray
    from ray._private import ray_constants, worker

    own: dict[str, Any] = {}
    if address == "local":
        cores = machine_limits().cores
        own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE}
    elif address != "auto":
        _require_somebody_at(address)
    try:
        with contextlib.ExitStack() as stack:
            # Ray prints what befalls its workers on stdout, which is for data
            _swap(stack, worker, "listen_error_messages", lambda *_: None)
            if address == "local":  # on the loopback address alone, on Linux too
                _swap(stack, ray_constants, "ENABLE_RAY_CLUSTER", False)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="shadow",
                **own,
            )
    except Exception as error:  # no other class where Ray's processes take too long to start
        message = " ".join(str(error).split())[:MOST_SAID]
        if address == "local":
            raise ShadowError(f"Ray did not start on this machine: {message}", BUSY) from error
        raise ShadowError(f"no Ray at {address}: {message}", OUTSIDE) from error


def _require_somebody_at(address: str) -> None:
    """Raise ShadowError at once if nobody listens: Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    hint = "auto, or HOST:PORT such as 10.0.0.1:6379"
    wrong = UsageError(f"{address[:80]!r} is not the address of a Ray cluster", hint)
    # such as http://HOST:8265, the address of the jobs, which RAY_ADDRESS may hold
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise wrong
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=GRACE).close()
    except UnicodeError as error:  # of a name that no host can have
        raise wrong from error
    except OSError as error:
        raise ShadowError(f"no Ray at {address}: {error.strerror or error}", OUTSIDE) from error


def _set_auth_mode(mode: str | None) -> None:
    """Set whether a Ray that starts asks for its token, which Ray read when it was imported."""
    os.environ.pop(AUTH_MODE, None)
    if mode is not None:
        os.environ[AUTH_MODE] = mode
    with contextlib.suppress(ImportError, AttributeError):  # a version without tokens
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def _swap(stack: contextlib.ExitStack, module: ModuleType, name: str, value: object) -> None:
    """Give a name of a module another value until the stack ends, if this version has it."""
    if hasattr(module, name):
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


@dataclass
class _Running:
    """A task that runs in Ray."""

    task: Task
    machine: str
    begun: contextlib.ExitStack
    runtime: Runtime


class RayEngine:
    """Tasks of Ray, each submitted when there is room for it."""

    elsewhere = True

    def __init__(self, request: Ray, runtime: Runtime) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._queue = Queue()
        self._running: dict[Any, _Running] = {}
        self._losses: dict[Task, int] = {}  # of its process or machine, in a row
        self._memory = request.memory
        # What one frees, another on its machine may be reading.
        self._one_each = runtime.access.max_disk is not None
        machines = _machines()
        largest = max((cores for cores, _ in machines.values()), default=0)
        self._cores = request.cpus_per_task or max(1, min(CORES, int(largest)))
        if not self._slots(machines):
            raise too_large(self._cores, self._memory, largest)
        self._say = runtime.say
        tasks = counted(self.lanes(), "task", "tasks")
        self._say(f"Ray: {tasks} at a time, {counted(self._cores, 'core', 'cores')} each")
        self.here = str(ray.get_runtime_context().get_node_id())
        # Once: each copy of the function would be kept by the cluster until the run ends.
        self._work: Any = ray.remote(_carry_out)  # type: ignore[arg-type]
        self._empty_since: float | None = None
        self._messages: Any = (
            ray.remote(Messages)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=self.here, soft=False),
            )
            .remote()
        )

    def lanes(self) -> int:
        return sum(self._slots(_machines()).values())

    def submit(self, task: Task) -> None:
        self._queue.put(task)

    def as_completed(self, watch: Watch | None = None) -> Generator[Ended, None, None]:
        import ray

        try:
            while self._queue or self._running:
                self._fill(watch)
                done, _ = ray.wait(list(self._running), num_returns=1, timeout=TICK)
                self._relay(LAST_WORDS if done else GRACE)
                for reference in done:
                    ended = self._ended(reference)
                    if ended is not None:
                        yield ended
        except KeyboardInterrupt as stop:
            for task in self._given_up():
                yield Ended(task, None, stop)
            raise
        finally:
            self._given_up()

    def _given_up(self) -> list[Task]:
        """Stop the running tasks, and return them."""
        import ray

        self._queue = Queue()
        running = list(self._running)
        if running:
            # Never `ray.cancel`: a task that ends meanwhile takes Ray's driver with it ("Tried to
            # complete task that was not pending", Ray 2.60). A process deep in a solver ends when
            # that returns, or when this one has ended.
            self._messages.stop.remote()
            ray.wait(running, num_returns=len(running), timeout=GRACE)
            self._relay(GRACE)
        given_up = [self._running.pop(reference) for reference in running]
        for running_task in given_up:
            running_task.begun.close()
        return [running_task.task for running_task in given_up]

    def _slots(self, machines: Mapping[str, tuple[float, float]]) -> dict[str, int]:
        """Say for how many tasks each machine has room. machines: as in `_machines`."""
        slots = {}
        for machine, (cores, memory) in machines.items():
            room_for = int(cores // self._cores)
            if self._memory:
                room_for = min(room_for, int(memory // self._memory))
            if room_for:
                slots[machine] = 1 if self._one_each else room_for
        return slots

    def _fill(self, watch: Watch | None) -> None:
        """Give Ray as many tasks as it has room for."""
        machines = _machines()
        slots = self._slots(machines)
        if self.here not in machines:  # then Ray begins none of the tasks any more
            raise ShadowError(
                "Ray has ended on the machine of this command",
                "start Ray there again; the same command continues",
            )
        self._await_machines(has_room=bool(slots))
        if not self._queue:
            return
        busy = [running.machine for running in self._running.values()]
        for machine, count in slots.items():
            for _ in range(count - busy.count(machine)):
                task = self._queue.take(machine)
                if task is None:
                    return
                self._begin(task, machine, watch)
        if not self._running:
            time.sleep(TICK)  # every machine is lost for the moment

    def _await_machines(self, *, has_room: bool) -> None:
        """Report that no machine is there. Raises ShadowError if none appears for long."""
        now = time.monotonic()
        most = f"{round(EMPTY_ENDS / 60)} minutes"
        if has_room:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
            self._say(f"Ray has no machine for a task; waiting for up to {most}")
        elif now - self._empty_since >= EMPTY_ENDS:
            raise ShadowError(
                f"Ray has had no machine for a task for {most}",
                "start Ray on a machine again; the same command continues",
            )

    def _begin(self, task: Task, machine: str, watch: Watch | None) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        runtime = task.runtime()
        begun = contextlib.ExitStack()
        show = runtime.show if watch is None else begun.enter_context(watch(task.name))
        owns_cache = max(self._slots(_machines()).values(), default=1) == 1
        access = replace(runtime.access, owns_cache=owns_cache)
        remote = self._work.options(
            name=task.name,
            num_cpus=self._cores,
            max_retries=0,  # retried here, where it is counted
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=machine, soft=True),
            **({"memory": self._memory} if self._memory else {}),
        )
        reference = remote.remote(
            task.work,
            replace(runtime, access=access, say=ignore, show=ignore),  # its listeners stay here
            self._messages,
            name=task.name,
            folder=str(Path.cwd()),
            cores=self._cores,
            memory=self._memory,
            own_cache=runtime.cache is not None and runtime.cache == default_folder(),
            version=__version__,
        )
        self._running[reference] = _Running(task, machine, begun, replace(runtime, show=show))

    def _relay(self, patience: float) -> None:
        """Pass on the messages of tasks, if they arrive within that many seconds."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            messages = ray.get(self._messages.take.remote(), timeout=patience)
            running = {each.task.name: each.runtime for each in self._running.values()}
            for name, message in messages:
                if name in running and isinstance(message, Progress):
                    running[name].show(message)
                elif name in running:
                    running[name].say(str(message))

    def _ended(self, reference: Any) -> Ended | None:
        """The result of a task; None if it is started again."""
        import ray
        from ray import exceptions

        running = self._running.pop(reference)
        running.begun.close()
        task = running.task
        try:
            result, fault = ray.get(reference)
        except exceptions.RayTaskError as error:
            # before the work began, such as without shadow on that machine
            cause = " ".join(str(error.cause or error).split())[:MOST_SAID]
            hint = f"every machine needs shadow {__version__} and its packages"
            return Ended(task, None, ShadowError(f"a task could not begin: {cause}", hint))
        except exceptions.RayError as error:  # the process, the machine or the memory
            what = f"its process was lost ({type(error).__name__})"
            if isinstance(error, exceptions.OutOfMemoryError):
                what = "its machine ran out of memory"
            losses = self._losses[task] = self._losses.get(task, 0) + 1
            if losses >= ATTEMPTS:
                hint = "give each task more, as with --engine ray:memory=16GB, and run it again"
                return Ended(task, None, ShadowError(f"{what}, {losses} times in a row", hint))
            running.runtime.say(f"{what}; trying again")
            self._queue.put(task, first=True)
            return None
        self._losses.pop(task, None)  # it may be submitted again, as after waiting
        return Ended(task, result, fault)


def _machines() -> dict[str, tuple[float, float]]:
    """The cores and bytes of memory of each machine, by Ray's name for it."""
    import ray

    return {
        str(node["NodeID"]): (
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("memory", 0.0),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def too_large(cores: int, memory: int | None, largest: float) -> ShadowError:
    """Say why no machine has room for a task; largest: the most cores of one."""
    hint = "use less of cpus and memory for each task, or start Ray on a larger machine first"
    if largest < cores:
        fault = f"a task wants {cores} cores, the largest machine has {largest:g}"
    else:
        fault = f"no machine with {cores} cores has {byte_size(memory or 0)} of memory"
    return ShadowError(fault, hint)


class Messages:
    """Messages from tasks to the driver, on whose machine this actor lives: without resources, Ray
    would put it anywhere, to be lost with that machine. If killed, it restarts.
    """

    def __init__(self) -> None:
        self._recorded: list[tuple[str, object]] = []
        self._stopped = False

    def tell(self, name: str, message: object) -> None:
        self._recorded.append((name, message))

    def take(self) -> list[tuple[str, object]]:
        recorded = self._recorded
        self._recorded = []
        return recorded

    def stop(self) -> None:
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped


# What runs on the machines.


def _tell(messages: Any, name: str, message: object, *, wait: bool) -> None:
    """Send a message of a task; wait until it has arrived if no later one says the same."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        sent = messages.tell.remote(name, message)
        if wait:
            ray.get(sent)


@contextlib.contextmanager
def _stoppable(messages: Any) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread once the driver says stop, or has ended."""
    import ray

    ended = threading.Event()

    def look() -> None:
        while not ended.wait(TICK):
            try:
                stopped = ray.get(messages.stopped.remote())
            except ray.exceptions.RayError:
                stopped = True
            if stopped and not ended.is_set():
                _thread.interrupt_main()
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _carry_out(
    work: Callable[[Runtime], Any],
    runtime: Runtime,
    messages: Any,
    *,
    name: str,
    folder: str,
    cores: int,
    memory: int | None,
    own_cache: bool,
    version: str,
) -> tuple[Any, BaseException | None]:
    """The result of a task, or its error. name: of the task; folder: of relative file names;
    own_cache: whether each machine uses its own cache of spectra; version: of the command.
    """
    if version != __version__:
        fault = f"a machine has shadow {__version__}, and the command is of shadow {version}"
        return None, ShadowError(fault, f"install shadow {version} on every machine")
    # Where there is no such folder, nothing relative is there either.
    with contextlib.suppress(OSError):
        os.chdir(folder)
    next_state = 0.0
    tell = partial(_tell, messages, name)

    def show(state: Progress) -> None:
        nonlocal next_state
        if time.monotonic() >= next_state or state.done == state.total:
            next_state = time.monotonic() + SAID_EVERY
            tell(state, wait=False)

    cache = default_folder() if own_cache else runtime.cache
    limits = allotted(cores, memory)
    say = partial(tell, wait=True)
    try:
        with single_threads(), _stoppable(messages):
            return work(replace(runtime, say=say, show=show, limits=limits, cache=cache)), None
    except KeyboardInterrupt:
        return None, ShadowError("the command of this task was stopped")
    except Exception as error:
        return None, portable(error)


def allotted(cores: int, memory: int | None) -> MachineLimits:
    """The cores that a task may use, and its memory or their share of the machine's."""
    machine = machine_limits()
    by = "the engine"
    if memory is None:
        memory = machine.memory * min(cores, machine.cores) // machine.cores
    free = min(memory, machine.memory)
    return MachineLimits(cores, by, free, by if free < machine.memory else machine.memory_by)
