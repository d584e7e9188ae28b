"""Run a command in a fresh process and measure it: wall time, CPU time, memory of the whole process
tree (Linux).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.05  # seconds between two looks at the memory
# What sets a number of threads or pins numpy's BLAS to slow kernels: taken away, so that every
# program chooses itself.
UNSET = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
)  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """What one command used. Seconds and bytes.

    cpu: user and system time of the process and the children it waited for. anonymous: the largest
    sum over the process tree that was seen, every INTERVAL: what the program itself holds, without
    pages of mapped files, which the kernel can drop at any time.
    """

    wall: float
    cpu: float
    anonymous: int


def clean_environment() -> dict[str, str]:
    """This process's environment without the settings of UNSET."""
    return {name: value for name, value in os.environ.items() if name not in UNSET}


def run_measured(command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> Usage:
    """Run a command to its end, its output into log. Raises RuntimeError with the end of the log
    when it fails.
    """
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(  # not a context manager: wait4 reaps the child itself
            list(map(str, command)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        ended = threading.Event()
        seen = [0]
        sampler = threading.Thread(target=_sample, args=(process.pid, ended, seen))
        sampler.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            wall = time.monotonic() - started
            ended.set()
            sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{command[0]} exited with {process.returncode}:\n{said}")
    return Usage(wall, used.ru_utime + used.ru_stime, max(seen))


def _sample(root: int, ended: threading.Event, seen: list[int]) -> None:
    while not ended.wait(INTERVAL):
        seen.append(_anonymous(root))


def _anonymous(root: int) -> int:
    """The anonymous memory of a process and its descendants; who ends meanwhile is left out."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory = one.memory_info()
                total += memory.rss - memory.shared
    return total
