"""What the shell offers when a word is begun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from shadow.cli import options
from shadow.cli.commands import app
from shadow.places.names import name_rules
from shadow.reports.columns import TABLES

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
    return (
        CliRunner()
        .invoke(app, [], prog_name="shadow", env={**recorded, **variables})
        .stdout.split()
    )


def test_a_target_is_a_family(tmp_path):
    """Of the registry and of the folder that was typed or set before."""
    (tmp_path / "own.yaml").write_text(OWN)
    assert offered("shadow audit dem") == ["demo"]
    assert offered(f"shadow plan --registry {tmp_path} to") == ["toy"]
    assert offered("shadow audit to", SHADOW_REGISTRY=str(tmp_path)) == ["toy"]
    assert offered("shadow families dem") == ["demo"]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        (
            "shadow audit --module attn.",
            [name for name in name_rules().modules if name.startswith("attn.")],
        ),
        ("shadow audit --component v", ["vision"]),
        ("shadow explain null_part", ["null_participation_ratio"]),
        ("shadow explain con", ["conc.", "concentration", "condition_number"]),
        ("shadow audi", ["audit"]),
        ("shadow audit --level sk", ["sketch"]),
    ],
)
def test_words_are_offered_where_they_belong(line, some):
    """Modules, components, columns and heads, tables, commands, choices."""
    assert set(some) <= set(offered(line))


def test_every_word_that_is_offered_is_explained():
    """`shadow explain` knows a column of each table, every head and every topic."""
    runner = CliRunner()
    offered = set(options.offered_words())
    assert len(offered) > 100
    known = [*(table.columns[-1].name for table in TABLES.values()), *options.TOPICS]
    assert set(known) <= offered
    assert [word for word in known if runner.invoke(app, ["explain", word]).exit_code] == []


def test_a_begun_word_loads_nothing_heavy():
    """No torch, pandas, NumPy, pyarrow or client of the Hub for families, modules and columns."""
    code = (
        "import sys; from types import SimpleNamespace; from shadow.cli import options as o; "
        "ctx = SimpleNamespace(params={}); "
        "assert o.offered_families(ctx); "
        "assert o.OFFERED['modules']() and o.offered_words(); "
        "print(*{'torch', 'pandas', 'numpy', 'pyarrow', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.split() == []
