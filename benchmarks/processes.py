"""Run a command in a fresh process and measure it: wall time, CPU time, memory of the whole process
tree (Linux).
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        raise RuntimeError(f"{command[0]} exited with {process.returncode}:\n{_text(log)[-2000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, max(seen))


def _sample(root: int, ended: threading.Event, seen: list[int]) -> None:
    while not ended.wait(INTERVAL):
        seen.append(sum(_anonymous(pid) for pid in _tree(root)))


def _tree(root: int) -> list[int]:
    """A process and all that descend from it; who ends while we look is left out."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, _text(task / "children").split())
    return found


def _anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes; 0 once it has ended."""
    found = re.search(r"RssAnon:\s*(\d+) kB", _text(Path(f"/proc/{pid}/status")))
    return int(found[1]) * 1024 if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
