"""The rooms of `src/shadow`: what their names and docstrings promise, and that importing one leaves
no trace.
"""

import json
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "shadow"
MODULES = sorted(
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
)

# What others do when they are imported is theirs; the state is told before and after our own
# modules come in.
CHILD = """
import importlib, json, logging, os, signal, sys, threading, warnings
import huggingface_hub, jinja2, matplotlib.figure, numpy, pandas, pyarrow.parquet
import rich.console, safetensors, scipy.linalg, scipy.optimize, scipy.sparse.linalg, threadpoolctl
import torch, transformers, typer, yaml
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
transformers.LlamaForCausalLM

logging.getLogger("huggingface_hub").setLevel(logging.INFO)
warnings.simplefilter("error", UnicodeWarning)
session = huggingface_hub.get_session()
named = logging.root.manager.loggerDict
loggers = [name for name, one in named.items() if isinstance(one, logging.Logger)]
signals = signal.SIGINT, signal.SIGTERM, signal.SIGPIPE


def state():
    return {
        "environment": dict(os.environ),
        "streams": [
            (one.encoding, one.errors, one.line_buffering) for one in (sys.stdout, sys.stderr)
        ],
        "warnings": [str(one) for one in warnings.filters],
        "logging": [(name, logging.getLogger(name).level) for name in [None, *loggers]],
        "client": [huggingface_hub.get_session() is session, session.is_closed],
        "hub": [are_progress_bars_disabled(), constants.HF_HUB_DISABLE_SHARED_BLOBS],
        "threads": [
            torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()
        ],
        "matmul": torch.get_float32_matmul_precision(),
        "path": sys.path,
        "signals": [str(signal.getsignal(number)) for number in signals],
        "hook": [repr(sys.excepthook), sys.getrecursionlimit(), os.getcwd()],
    }


found = [state()]
for name in MODULES:
    importlib.import_module(name)
print(json.dumps([*found, state()]))
"""


@pytest.mark.slow
def test_importing_every_module_changes_nothing_outside():
    """Environment, streams, warnings, logging, client, threads: after all imports as before."""
    code = CHILD.replace("MODULES", repr(MODULES))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-800:]
    before, after = json.loads(child.stdout)
    assert after == before


def test_the_client_of_the_hub_is_given_back_as_it_was():
    """A session, its hooks and a level that a user set are as they were after the client was held,
    twice and in threads.

    The session is the user's, so that a proxy set there serves the audit too; so is one that is
    made where it was closed.
    """
    hf = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    from shadow.checkpoints.hub import use_own_blobs
    from shadow.checkpoints.hub_client import own_client, trying
    from shadow.checkpoints.transfers import Transfer

    logger = logging.getLogger("huggingface_hub")
    level = logging.DEBUG
    filters = [*warnings.filters]
    shared, was = constants.HF_HUB_DISABLE_SHARED_BLOBS, logger.level
    logger.setLevel(level)
    try:
        session = hf.get_session()
        hooks = session.event_hooks
        first, last = threading.Event(), threading.Event()

        def hold() -> None:
            with own_client():
                first.set()
                last.wait(10)

        with own_client():
            use_own_blobs()
            with own_client():
                assert hf.get_session() is session
            other = threading.Thread(target=hold)
            other.start()
            first.wait(10)
            assert len(session.event_hooks["request"]) == len(hooks["request"]) + 1
            assert logger.level == logging.ERROR
        assert session.event_hooks != hooks, "another thread still holds it"
        last.set()
        other.join(10)
        assert hf.get_session() is session
        assert not session.is_closed
        assert session.event_hooks == hooks
        with own_client():
            hf.close_session()
            trying(hf.get_session, Transfer(print), "org/name", None)
            assert hf.get_session() is not session
            assert len(hf.get_session().event_hooks["request"]) == len(hooks["request"]) + 1
        assert logger.level == level
        assert warnings.filters == filters
        assert shared == constants.HF_HUB_DISABLE_SHARED_BLOBS
    finally:
        last.set()
        logger.setLevel(was)
