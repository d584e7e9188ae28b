"""Ctrl-C ends the command with one line and exit code 130, from its first line to its last."""

import subprocess
import sys
from pathlib import Path

import pytest

from shadow.cli import commands, console

# What the command is made of is replaced: `run` is the code of a case.
STUB = """
import signal, sys, types

def run():
    {}

if {}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.modules[{name!r}] = types.ModuleType("stub")
sys.modules[{name!r}].run = run
from shadow.cli import main
main()
"""

# The command itself, interrupted when a module is looked for.
INTERRUPTED = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(finder)
            signal.raise_signal(signal.SIGINT)

finder = Interrupting()
sys.meta_path.insert(0, finder)
from shadow.cli import main
main()
"""


def in_a_child(code: str, *arguments: object, cwd: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("body", "ignored", "code", "out", "err"), [
    ("signal.raise_signal(signal.SIGINT); print('on')", False, 130, "", "stopped\n"),
    ("import toy; signal.pause()", False, 130, "", "stopped\n"),
    ("import toy; return 3", True, 3, "imported\n", ""),
    ("type('X', (), {'__del__': lambda x: signal.raise_signal(signal.SIGINT)})();"
     " signal.pause()", False, 130, "", "stopped\n"),
], ids=["at work", "in an import", "ignored", "where nothing may rise"])  # fmt: skip
def test_one_line_and_exit_code_130(tmp_path, body, ignored, code, out, err):
    """An interrupt in an import, as of a native library, ends the process at once."""
    module = "import signal\nsignal.raise_signal(signal.SIGINT)\nprint('imported')\n"
    (tmp_path / "toy.py").write_text(module)
    found = in_a_child(STUB.format(body, ignored, name=commands.__name__), cwd=tmp_path)
    assert found == (code, out, err)


@pytest.mark.parametrize("module", ["typer", pytest.param("torch", marks=pytest.mark.slow)])
def test_an_import_is_interrupted_without_a_core_dump(tmp_path, module):
    """Those at the start of the command, and the native ones of an audit."""
    found = in_a_child(
        INTERRUPTED.replace("sys.argv[1]", repr(module)), "audit", "demo", cwd=tmp_path
    )
    assert found == (130, "", "stopped\n")


@pytest.fixture
def failing(monkeypatch):
    """The code of a command that fails while it shows its result."""

    def code_of(error):
        monkeypatch.setattr(console, "show", lambda _: (_ for _ in ()).throw(error))
        monkeypatch.setattr(sys, "argv", ["shadow", "families", "demo"])
        return commands.run()

    return code_of


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of shadow")], ids=repr)
def test_every_command_is_interrupted_alike_and_shows_its_bugs(failing, error):
    """Typer's own answer, an exit code without a line, is an interrupt again."""
    with pytest.raises(type(error)):
        failing(error)


@pytest.mark.parametrize(("error", "lines"), [
    (MemoryError(), "error: there is not enough memory\nhint:  free some, or use --jobs 1\n"),
    (RuntimeError("x: can't allocate memory: 9 bytes"),
     "error: there is not enough memory\nhint:  free some, or use --jobs 1\n"),
    (OSError(5, "Input/output error", "a.txt"), "error: a.txt: Input/output error\n"),
    (OSError("gone"), "error: input or output failed: gone\n"),
    (BrokenPipeError(), ""),
], ids=repr)  # fmt: skip
def test_a_lack_of_memory_or_disk_is_one_error(failing, capfd, error, lines):
    """A reader that has gone needs none."""
    assert (failing(error), capfd.readouterr().err) == (1, lines)
