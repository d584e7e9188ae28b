"""A command line that cannot be meant: one line, the nearest word that is known, exit 2."""

from __future__ import annotations

import sys

import pytest

from shadow.cli import main


@pytest.fixture
def shadow(monkeypatch, capsys):
    """Exit code, stdout and stderr of the command, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shadow", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("audti", "no command 'audti'", "did you mean 'audit'?"),
        ("lab rnu", "no command 'rnu'", "did you mean 'run'?"),
        ("audit demo --precison fast", "no option --precison", "did you mean '--precision'?"),
        ("audit demo --no-subspace", "no option --no-subspace", "did you mean '--no-subspaces'?"),
        ("audit demo --fetch sharts", "--fetch: 'sharts' is not one of auto, shards, ranges", "did you mean 'shards'?"),
        ("schema --format yaml", "--format: 'yaml' is not one of table, json", "shadow schema --help` lists"),
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


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("lab",), 2), (("--help",), 0), (("--version",), 0)])
def test_help_is_no_error(shadow, arguments, code):
    """Without a command the help is shown, and the exit code says that nothing was done."""
    found, out, err = shadow(*arguments)
    assert found == code
    assert out + err
    assert "error" not in err.lower()
