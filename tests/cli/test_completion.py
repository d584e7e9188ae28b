"""What the shell offers when a word is begun."""

import os
import subprocess
import sys

from typer.testing import CliRunner

from shadow.cli.commands import app

OWN = "toy:\n  base: ./a\n  sft: ./b\n"


def offered(line, **variables):
    """The words that bash gets for the last word of a line."""
    typed = line.split(" ")
    typed = [word for word in typed[:-1] if word] + typed[-1:]
    recorded = {
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
        "_SHADOW_COMPLETE": "complete_bash",
    }
    return CliRunner().invoke(app, [], prog_name="shadow", env=recorded | variables).stdout.split()


def test_a_target_is_a_family(tmp_path):
    """Of the registry and of the folder that was typed or set before."""
    (tmp_path / "own.yaml").write_text(OWN)
    assert offered("shadow audit dem") == ["demo"]
    assert offered(f"shadow plan --registry {tmp_path} to") == ["toy"]
    assert offered("shadow audit to", SHADOW_REGISTRY=str(tmp_path)) == ["toy"]
    assert offered("shadow families dem") == ["demo"]


def test_commands_and_choices_are_offered():
    assert offered("shadow audi") == ["audit"]
    assert offered("shadow audit --level sk") == ["sketch"]


def test_a_begun_word_loads_nothing_heavy():
    """No torch, pandas, NumPy, pyarrow or client of the Hub for families."""
    code = (
        "import sys; from types import SimpleNamespace; from shadow.cli import options as o; "
        "ctx = SimpleNamespace(params={}); "
        "assert o.offered_families(ctx); "
        "print(*{'torch', 'pandas', 'numpy', 'pyarrow', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.split() == []
