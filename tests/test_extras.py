"""What the package installs by itself, what its extras add, and the ways to start it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from shadow import __version__, version
from shadow.errors import ShadowError
from shadow.extras import EXTRAS, require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Runs commands one after another in a process that cannot import the packages of any extra.
CHILD = """
import contextlib, io, json, sys

blocked, commands = json.loads(sys.argv[1])


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from shadow.cli import main

found = []
for words in commands:
    sys.argv = ["shadow", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""

CHILD_ALONE = ("transformers", "accelerate")  # which `verify whole` imports in a child process
BASIC = (
    ("audit", "demo", "-o", "reports"), ("show", "reports"),
    ("compare", "reports/demo/base..narrow", "reports/demo/base..broad"),
    ("gate", "reports", "--fail-on", "concentration > 0.9"),
    ("export", "reports", "--to", "parquet"), ("plan", "demo"), ("lineage", "reports"),
    ("explain", "concentration"),
    ("verify", "whole", str(ROOT / "registry" / "demo" / "base")),
)  # fmt: skip
MORE = {
    "report": ("report", "reports"),
    "figure": ("figure", "reports/demo/base..narrow", "--kind", "heatmap", "-o", "x.svg"),
}


def names(requirements: list[str]) -> set[str]:
    """The packages that requirements name."""
    return {re.split(r"[^\w-]", one)[0] for one in requirements}


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """The folder, and what came of each command where nothing of an extra is installed."""
    folder = tmp_path_factory.mktemp("bare")
    blocked = [*CHILD_ALONE, *(name for packages in EXTRAS.values() for name in packages)]
    recorded = json.dumps([blocked, [*BASIC, *MORE.values()]])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, recorded],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder, dict(zip([*BASIC, *MORE.values()], json.loads(child.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("words", BASIC, ids=lambda words: words[0])
def test_auditing_and_reading_reports_needs_no_extra(without_extras, words):
    """Without matplotlib and Jinja, and with transformers in a child alone: exit 0, with output."""
    folder, found = without_extras
    code, out, err = found[words]
    assert code == 0, err
    assert out or (folder / "reports-parquet").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("extra", MORE)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(without_extras, extra):
    """Exit code 1; the error names each package, the hint is the command; nothing is written."""
    folder, found = without_extras
    code, out, err = found[MORE[extra]]
    error, hint = err.splitlines()
    assert (code, out) == (1, "")
    assert error.startswith("error: ")
    assert all(name in error for name in EXTRAS[extra])
    assert error.endswith(" not installed")
    assert hint == f"hint:  in a clone of shadow, type: pip install '.[{extra}]'"
    assert {path.name for path in folder.iterdir()} == {"reports", "reports-parquet"}


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(EXTRAS, "figure", ("json", "no_such_package"))
    with pytest.raises(ShadowError, match="no_such_package") as refused:
        require("figure")
    assert "json" not in refused.value.message
    assert "[figure]" in refused.value.hint


def test_extras_are_those_of_the_package():
    """The table and pyproject.toml agree, `all` is all of them, and none is installed anyway."""
    declared = {
        name: names(packages)
        for name, packages in PROJECT["optional-dependencies"].items()
        if name != "all"
    }
    assert declared == {name: set(packages) for name, packages in EXTRAS.items()}
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert everything == f"{PROJECT['name']}[{','.join(sorted(EXTRAS))}]"
    assert not names(PROJECT["dependencies"]) & set().union(*EXTRAS.values())


def test_the_version_is_one_everywhere():
    """Of the package, of its metadata as built, the citation and the newest section of changes; the
    workflow's is in test_workflow.py.
    """
    assert PROJECT["dynamic"] == ["version"]
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert (ROOT / built["version"]["path"]).samefile(version.__file__)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## \[([\d.]+)\]", changes)[0] == __version__


def test_both_scripts_are_one_command():
    """`shadow` for people, and the name of the package, so that `uvx` finds it."""
    assert PROJECT["scripts"] == {"shadow": "shadow.cli:main", PROJECT["name"]: "shadow.cli:main"}
