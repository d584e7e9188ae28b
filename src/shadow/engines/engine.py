"""Engines that run the tasks of an audit: this process, one by one, or Ray, several at a time.

A task is a picklable function of a Runtime. Its result depends neither on the engine nor on the
order.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shadow.errors import ShadowError, UsageError
from shadow.run.runtime import Progress, Runtime
from shadow.text import bytes_of

VISIBLE = 30  # seconds until a network file system shows what another machine has written
ROUNDS = 120  # times that a task gives way to another audit of the same; after an hour it fails
NOT_SHARED = (
    "-o must be a folder that every machine has under the same name, such as on a network file"
    " system"
)


@dataclass(frozen=True)
class Ray:
    """Tasks on Ray: which Ray to use, and the resources of each task.

    Args:
        address: `auto`, or HOST:PORT of a cluster; None: that of RAY_ADDRESS, or a Ray of this
            machine, which ends with the audit.
        cpus_per_task: Cores, 1 or more; None: 4, or all of the largest machine.
        memory_per_task: Bytes of memory, or text such as `16GB`; None: the share that its cores are
            of its machine's cores.
    """

    address: str | None = None
    cpus_per_task: int | None = None
    memory_per_task: int | str | None = None

    @property
    def memory(self) -> int | None:
        """Bytes of memory of a task. Raises UsageError for an invalid size."""
        if isinstance(self.memory_per_task, str):
            return bytes_of(self.memory_per_task)
        return self.memory_per_task

    @classmethod
    def of(cls, engine: str) -> Ray | None:
        """Read `ray` or `ray:cpus=2,memory=16GB,address=auto`; None for `local`."""
        name, _, words = engine.partition(":")
        given = dict(word.partition("=")[::2] for word in words.split(",") if word)
        cores = given.pop("cpus", None)
        if name == "ray" and (cores is None or cores.isdecimal()):
            address = given.pop("address", None)
            memory = given.pop("memory", None)
            if not given:
                cpus = None if cores is None else int(cores)
                return cls(address, cpus, memory)
        if engine != "local":
            hint = "local, ray, or ray:cpus=2,memory=16GB,address=auto"
            raise UsageError(f"no engine {engine[:80]!r}", hint)
        return None


Watch = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
"""Called with the name of a task: while the task runs, what is entered gets its progress."""


@dataclass(frozen=True, eq=False)
class Task:
    """A part of the work that is independent of all others."""

    name: str
    work: Callable[[Runtime], Any]
    runtime: Callable[[], Runtime]
    """Asked for in the process of the engine when the task begins."""
    near: str = ""
    """What it reads. Tasks that read the same are best on one machine, which then fetches it once.
    """


@dataclass(frozen=True)
class Ended:
    """Result of a task."""

    task: Task
    result: Any
    """What its work returned; None where there is a fault."""
    fault: BaseException | None
    """What its work raised, or why it never ended."""


class Engine(Protocol):
    """Runs tasks, including those that are submitted while others run."""

    @property
    def elsewhere(self) -> bool:
        """True if tasks run in other processes, several at a time, perhaps on other
        machines.
        """

    def lanes(self) -> int:
        """Say how many tasks run at a time, 1 or more."""

    def submit(self, task: Task) -> None:
        """Add a task, which starts in its turn."""

    def as_completed(self, watch: Watch | None = None) -> Generator[Ended, None, None]:
        """Yield the result of each task.

        Closing the iterator abandons unfinished tasks. An interrupt is the error of the tasks that
        were running, and is raised after these.
        """


def require_sight(is_there: Callable[[], bool], fault: str, hint: str = NOT_SHARED) -> None:
    """Wait for a file of another machine. Raises ShadowError if it does not appear."""
    for _ in range(VISIBLE):
        if is_there():
            return
        time.sleep(1)
    raise ShadowError(fault, hint)


def completed(
    engine: Engine, is_busy: Callable[[Ended], bool], watch: Watch | None = None
) -> Generator[Ended, None, None]:
    """Yield the result of each task; one that gives way to another audit is tried ROUNDS times."""
    given_way: Counter[Task] = Counter()
    with closing(engine.as_completed(watch)) as ended_tasks:
        for ended in ended_tasks:
            if engine.elsewhere and given_way[ended.task] < ROUNDS and is_busy(ended):
                given_way[ended.task] += 1
                engine.submit(ended.task)
            else:
                yield ended


class InProcess:
    """One task after another, in this process."""

    elsewhere = False

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()

    def lanes(self) -> int:
        return 1

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def as_completed(self, watch: Watch | None = None) -> Generator[Ended, None, None]:
        while self._waiting:
            task = self._waiting.popleft()
            runtime = task.runtime()
            watching = nullcontext(runtime.show) if watch is None else watch(task.name)
            with watching as show:
                try:
                    ended = Ended(task, task.work(replace(runtime, show=show)), None)
                except Exception as error:
                    ended = Ended(task, None, error)
            yield ended


def portable(fault: BaseException) -> BaseException:
    """Make an error picklable, with its traceback as a note unless it is a ShadowError."""
    if isinstance(fault, ShadowError):
        return fault
    copy: BaseException
    try:
        copy = pickle.loads(pickle.dumps(fault))  # noqa: S301 - our own
    except Exception:  # of any class: what an exception holds may raise what it likes
        copy = RuntimeError(f"{type(fault).__name__}: {fault}")
    if fault.__traceback__ is not None:
        copy.__notes__ = ["".join(traceback.format_exception(fault))]  # with the notes it had
    return copy


class Queue:
    """Waiting tasks: a machine continues with what it has read, then takes what no machine reads,
    the most tasks first, and helps where most is left after that.
    """

    def __init__(self) -> None:
        self._waiting: list[Task] = []
        self._reads: dict[str, str] = {}  # by machine, the latest

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, task: Task, *, first: bool = False) -> None:
        """Add a task behind those that wait, or before them."""
        self._waiting.insert(0 if first else len(self._waiting), task)

    def take(self, machine: str) -> Task | None:
        """The next task for a machine; None if none waits."""
        if not self._waiting:
            return None
        left = Counter(task.near for task in self._waiting)
        near = self._reads.get(machine)
        if near not in left:
            read = {*self._reads.values()}
            near = max(left, key=lambda name: (name not in read, left[name]))
            self._reads[machine] = near
        task = next(task for task in self._waiting if task.near == near)
        self._waiting.remove(task)
        return task
