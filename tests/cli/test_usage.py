"""Help, the examples in it, and commands without arguments."""

from __future__ import annotations

import shlex
import sys

import pytest
import typer.main
from reports import uniform
from typer.testing import CliRunner

from shadow.cli import commands
from shadow.cli.commands import app
from shadow.cli.examples import EXAMPLES


@pytest.fixture
def shadow(monkeypatch, capsys):
    """Exit code, stdout and stderr of the command, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shadow", *arguments])
        return commands.run(), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 2), (("lab",), 2), (("--help",), 0), (("--version",), 0)]
)
def test_help_is_no_error(shadow, arguments, code):
    """Without a command the help is shown, and the exit code says that nothing was done."""
    found, out, err = shadow(*arguments)
    assert found == code
    assert out + err
    assert "error" not in err.lower()


@pytest.mark.parametrize(
    ("command", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines]
)
def test_examples_are_commands_of_this_version(command, line):
    """Each line in a command's help is read by it without a fault, and fits a terminal."""
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("shadow", command)
    assert len(line) < 76
    known = typer.main.get_command(app).commands[command]
    assert known.make_context(command, arguments) is not None
    assert line in CliRunner().invoke(app, [command, "--help"]).output


@pytest.mark.parametrize("command", ["show", "report"])
def test_without_a_run_the_reports_of_this_folder_are_meant(shadow, command, tmp_path, monkeypatch):
    """Those that `audit` writes without -o; where there are none, that folder is named."""
    monkeypatch.chdir(tmp_path)
    code, out, err = shadow(command)
    assert (code, out, err.splitlines()[0].split()[-1]) == (1, "", "reports")
    uniform(tmp_path / "reports", 0.3)
    code, out, err = shadow(command)
    assert code == 0, err
    assert "toy" in out if command == "show" else "1 report in report.html" in err
