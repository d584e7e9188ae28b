"""Transformers asked in this process: a child of its own takes three seconds to import it."""

import contextlib
import io
import json
import subprocess
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

from shadow.checkpoints import expected, transfers


def run(command, *_, **__):
    """What a child of `expected` would print."""
    recorded = json.loads(Path(command[-1]).read_text())
    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
        answer = expected.asked(recorded["config"], recorded["tensors"], guard=lambda: None)
    return subprocess.CompletedProcess(command, 0, json.dumps(asdict(answer)).encode(), b"")


def begin(work):
    """Do it at once: transformers changes torch's settings while it loads."""
    future = Future()
    future.set_result(work())
    return future


def ask_here(replace=setattr):
    """Ask here from now on. replace: sets an attribute of a module."""
    replace(expected, "run_child", run)
    replace(transfers, "begin", begin)
