"""Help, the examples in it, and commands without arguments."""

import shlex

import pytest
import typer.main
from reports import uniform
from typer.testing import CliRunner

from shadow.cli.commands import EXAMPLES, app


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 2), (("lab",), 2), (("--help",), 0), (("--version",), 0)]
)
def test_help_is_no_error(inside, arguments, code):
    """Without a command the help is shown, and the exit code says that nothing was done."""
    found = inside(*arguments)
    assert found.code == code
    assert found.out + found.err
    assert "error" not in found.err.lower()


def test_a_terminal_without_a_size_shows_an_answer(shadow):
    assert "concentration" in shadow("explain", "conc.", env={"COLUMNS": "0"}).assert_done()
    assert shadow("explain", "nope", env={"COLUMNS": "0"}).assert_refused(2)


def test_the_first_screen_fits_24_rows(inside):
    """Every command has a line of its own, none is cut, and the shell's prompt is seen too."""
    found = inside()
    lines = (found.out + found.err).splitlines()
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")]
    every = typer.main.get_command(app).commands
    listed = lines[lines.index("Commands:") + 1 :]
    rows = [line.split()[0] for line in listed[: listed.index("")]]
    assert rows == list(every)
    assert rows[:5] == ["check", "audit", "verify", "compare", "show"]


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


def test_audit_has_at_most_thirty_options():
    """Besides --help; one more than these means that another one goes."""
    audit = typer.main.get_command(app).commands["audit"]
    assert sum(one.param_type_name == "option" for one in audit.params) <= 30


@pytest.mark.parametrize("command", ["show", "report"])
def test_without_a_run_the_reports_of_this_folder_are_meant(inside, command, tmp_path):
    """Those that `audit` writes without -o; where there are none, that folder is named."""
    assert "reports" in inside(command).assert_refused()
    uniform(tmp_path / "reports", 0.3)
    done = inside(command)
    done.assert_done()
    assert "toy" in done.out if command == "show" else (tmp_path / "report.html").exists()
