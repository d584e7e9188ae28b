"""The fixture `shadow`: runs a command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

# Workers run side by side: threads of their algebra would wait for each other. Read when NumPy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from command import ZYGOTE, Run

# Who is started in the background inherits that interrupts are ignored; the commands under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

SECONDS = 120  # after which a command counts as hung


@pytest.fixture(autouse=True)
def _same_numbers(request):
    """A test draws the same numbers whichever ran before it in its process."""
    if own := getattr(request.module, "RNG", None):
        own.bit_generator.state = type(own.bit_generator)(0).state


@pytest.fixture(scope="module")
def zygote():
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def shadow(zygote, tmp_path):
    """Runs a `shadow` command in tmp_path."""

    def run(*arguments, file_size=0, env=None, seconds=SECONDS) -> Run:
        job = {
            "arguments": [os.fsencode(str(one)).hex() for one in arguments],
            "cwd": str(tmp_path),
            "seconds": seconds,
            "env": env or {},
            "file_size": file_size,
        }
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        code, *texts = json.loads(zygote.stdout.readline())
        return Run(code, *(bytes.fromhex(text).decode() for text in texts))

    return run
