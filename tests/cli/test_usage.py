"""A command line that cannot be meant: one line, the nearest word that is known, exit 2."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter

import pytest
import typer.main
from reports import uniform
from typer.testing import CliRunner

from shadow.claims.verify.table import FORMS
from shadow.cli import commands
from shadow.cli.commands import GROUPS, app
from shadow.cli.examples import EVERYDAY, EXAMPLES
from shadow.cli.options import CHOICE, FILES, MEASURING, RULES


@pytest.fixture
def shadow(monkeypatch, capsys):
    """Exit code, stdout and stderr of the command, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shadow", *arguments])
        return commands.run(), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("audti", "no command 'audti'", "did you mean 'audit'?"),
        ("lab rnu", "no command 'rnu'", "did you mean 'run'?"),
        ("audit demo --precison fast", "unknown option --precison", "did you mean '--precision'?"),
        (
            "audit demo --no-subspace",
            "unknown option --no-subspace",
            "did you mean '--no-subspaces'?",
        ),
        (
            "audit demo --fetch sharts",
            "--fetch: 'sharts' is not one of auto, shards, ranges",
            "did you mean 'shards'?",
        ),
        (
            "families --format yaml",
            "--format: 'yaml' is not one of table, json",
            "such as --format table",
        ),
        (
            "audit demo --engine spark",
            "--engine: 'spark' is not one of local, ray",
            "such as --engine local",
        ),
        ("audit demo --jobs 0", "--jobs: the number is out of range", "give 1 or more"),
        ("audit demo --jobs 2000", "--jobs: the number is out of range", "give 1024 at most"),
        (
            f"audit demo -o {__file__}",
            f"invalid value for '-o' / '--output': dir '{__file__}' is a file",
            "choose another folder",
        ),
        (
            "show a b",
            "got unexpected extra argument(s) (b)",
            "name the folder above them, or use `shadow compare A B`",
        ),
        ("audit demo --max-disk 40", "--max-disk: 40 bytes hold no shard", "did you mean 40GB?"),
        ("audit demo --max-disk 0", "--max-disk: 0 bytes hold no shard", "such as 40GB"),
        ("zzzz", "no command 'zzzz'", "shadow --help` lists"),
        ("compare", "missing argument 'RUN'", "shadow compare --help` lists"),
    ],
)
def test_wrong_usage_answers_with_the_nearest(shadow, arguments, message, hint):
    """Nothing on stdout; no frame, no usage: the two lines of any other error."""
    code, out, err = shadow(*arguments.split())
    first, second = err.splitlines()
    assert (code, out) == (2, "")
    assert first == f"error: {message}"
    assert second.startswith("hint:  ")
    assert hint in second


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


def test_the_help_of_verify_has_every_claim_with_what_it_says():
    """A line each at 80 columns, in the order of the table."""
    told = CliRunner().invoke(app, ["verify", "--help"], env={"COLUMNS": "80"}).stdout
    lines = [line.strip() for line in told.partition("Claims:")[2].splitlines() if line.strip()]
    assert len(lines) == len(FORMS)
    for line, (claim, form) in zip(lines, FORMS.items(), strict=True):
        typed, _, says = line.partition("  ")
        assert typed == f"{claim} {form.names_in_usage}"
        assert says.strip() == form.says


def test_help_has_groups():
    """Commands by what they are for; options of an audit by what they change, fewer than thirteen
    in each.
    """
    text = CliRunner().invoke(app, ["--help"]).output
    assert [text.index(f"─ {group} ─") for group in GROUPS] == sorted(
        text.index(f"─ {group} ─") for group in GROUPS
    )
    audit = typer.main.get_command(app).commands["audit"]
    panels = Counter(one.rich_help_panel for one in audit.params)
    assert {CHOICE, MEASURING, FILES, RULES} < set(panels)
    assert max(panels.values()) < 13


@pytest.mark.parametrize("command", ["show", "report"])
def test_without_a_run_the_reports_of_this_folder_are_meant(shadow, command, tmp_path, monkeypatch):
    """Those that `audit` writes without -o; where there are none, that folder is named."""
    monkeypatch.chdir(tmp_path)
    code, out, err = shadow(command)
    assert (code, out, err.splitlines()[0]) == (1, "", "error: no such folder: reports")
    uniform(tmp_path / "reports", 0.3)
    code, out, err = shadow(command)
    assert code == 0, err
    assert "toy" in out if command == "show" else "1 report in report.html" in err


SCREEN = 45  # lines


@pytest.mark.parametrize("command", EVERYDAY)
def test_help_fits_a_screen_and_leads_to_all_options(command):
    """At 80 columns: what is needed every day, in the order of the table; `--help-all` has every
    option, in panels, also where an argument is missing.
    """
    known = typer.main.get_command(app).commands[command]
    of_name = {one.name: max(one.opts, key=len) for one in known.params}
    short, whole = (
        CliRunner().invoke(app, [command, word], env={"COLUMNS": "80"}).stdout
        for word in ("--help", "--help-all")
    )
    assert len(short.strip().splitlines()) <= SCREEN
    shown = [of_name[name] for name in EVERYDAY[command] if of_name[name].startswith("--")]
    assert re.findall(r"(?m)^│ (?:\*  |   )?(--[\w-]+)", short) == [*shown, "--help-all", "--help"]
    every = [name for name in of_name.values() if name.startswith("--")]
    assert set(re.findall(r"(?m)^│ (?:\*  |   )?(--[\w-]+)", whole)) == {*every, "--help"}
    assert "<bool>" not in short + whole, "a flag takes no value"


def test_the_help_of_the_lab_has_its_presets_as_whole_words():
    """At 80 columns, so that each can be copied."""
    told = CliRunner().invoke(app, ["lab", "run", "--help"], env={"COLUMNS": "80"}).stdout
    words = {word.strip(":;,.") for word in told.split()}
    assert {"smoke", "quick", "full"} <= words
    assert "PRESET" in words
