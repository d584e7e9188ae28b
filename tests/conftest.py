"""The fixture `shadow`: runs a command in a process of its own."""

import functools
import gc
import os
import re
import signal
import sys

# Workers run side by side: threads of their algebra would wait for each other. Read when NumPy and
# torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Spectra are solved in every test, so that none depends on another; the cache has tests of its own.
os.environ.setdefault("SHADOW_NO_CACHE", "1")

import effort  # noqa: F401
import pytest
import typer.main
from command import Run, run_shadow

from shadow.errors import ShadowError

# before a test imports them
pytest.register_assert_rewrite("finding_cases", "hub_pairs", "ray_machines", "stores")

# A process in the background inherits that interrupts are ignored; commands under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Commands are built from their signatures once, not for every command line that a test tries.
typer.main.get_command = functools.cache(typer.main.get_command)

# Nothing that a test writes must outlive the machine: to wait for the disk six times a report takes
# half a minute.
os.fsync = lambda handle: None

# Verbs by which hints begin: an error says what is wrong, and then what to do, never in turn.
HINT = re.compile(
    "(`shadow|add|audit|check|choose|compare|convert|correct|did|draw|fetch|free|give|install|keep"
    "|leave|load|move|name|put|run|save|set|split|start|such|try|update|use|wait|write) "
)
made = ShadowError.__init__


def said_in_order(self, message: str, hint: str | None = None) -> None:
    assert not HINT.match(message), f"a hint in the place of an error: {message}"
    made(self, message, hint)


ShadowError.__init__ = said_in_order

# While tests are collected much is made and nothing dropped: the collector of cycles would look
# through all of it.
gc.disable()


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the collector only looks at what the tests make."""
    gc.enable()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers(request):
    """A test draws the same numbers whichever ran before it in its process."""
    if own := getattr(request.module, "RNG", None):
        own.bit_generator.state = type(own.bit_generator)(0).state


@pytest.fixture
def shadow(tmp_path):
    """Runs a `shadow` command in tmp_path."""

    def run(*arguments, **more) -> Run:
        return run_shadow(*arguments, cwd=tmp_path, **more)

    return run


@pytest.fixture
def inside(monkeypatch, capsys, tmp_path):
    """Runs a `shadow` command that measures nothing, in this process."""
    from rich.console import Console

    from shadow.cli import commands, console

    def run(*arguments, width: int = 80, cwd=tmp_path) -> Run:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["shadow", *map(str, arguments)])
        plain = Console(highlight=False, emoji=False, width=width, color_system=None)
        monkeypatch.setattr(console, "out", plain)
        return Run(commands.run(), *capsys.readouterr())

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Ask transformers in this process."""
    from asking import ask_here

    ask_here(monkeypatch.setattr)


@pytest.fixture(scope="session")
def demo_reports(tmp_path_factory):
    """The folder of the reports base..narrow and base..broad of the demo, to be read alone."""
    folder = tmp_path_factory.mktemp("demo")
    run_shadow("audit", "demo", "-o", "reports", cwd=folder).assert_done()
    return folder / "reports" / "demo"


@pytest.fixture(params=[True, False], ids=["MKL at home", "elsewhere"])
def mkl(request, monkeypatch):
    """Both choices of libraries that follow from the CPU's vendor, on any machine."""
    from shadow.spectra import spectrum

    monkeypatch.setattr(spectrum, "mkl_is_at_home", lambda: request.param)
    return request.param
