"""The examples of docs/ run as they stand: a workflow's steps in order, in an environment like a
fresh runner's.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import junitparser
import pytest
import yaml

from shadow import __version__
from shadow.gates.rules import read_policy

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
DEMO = ROOT / "registry" / "demo"


class Runner:
    """Enough of a runner for `run:` steps: checkout, empty home, files for GITHUB_*, no more."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.home = folder / "workspace", folder / "home"
        for path in (self.workspace, self.home):
            path.mkdir(parents=True)
        self.variables = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "PIP_NO_INDEX": "1",  # `pip install` finds the installed package and needs no network
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        if "PYTHONPATH" in os.environ:
            self.variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
        for name in ("STEP_SUMMARY", "OUTPUT", "ENV", "PATH"):
            (folder / name).touch()
            self.variables[f"GITHUB_{name}"] = str(folder / name)
        self.summary = folder / "STEP_SUMMARY"

    def step(self, script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """As GitHub runs one: `bash -e`, a step's summary of its own."""
        self.summary.write_text("")
        given = [f"{name}={value}" for name, value in (self.variables | env).items()]
        command = ["env", "-i", *given, "bash", "-e", "-c", script]
        return subprocess.run(command, cwd=self.workspace, capture_output=True, text=True)

    def job(self, workflow: dict) -> list[tuple[str, subprocess.CompletedProcess[str]]]:
        """Every `run:` step up to the first that fails."""
        (job,) = workflow["jobs"].values()
        done = []
        for step in job["steps"]:
            if "run" in step:
                done.append((step["name"], self.step(step["run"], job.get("env", {}))))
                if done[-1][1].returncode:
                    break
        return done


@pytest.fixture(scope="module")
def workflow():
    """The example, with the installed package in place of the wheel, which would replace it."""
    recorded = yaml.safe_load((EXAMPLES / "shadow-audit.yml").read_text())
    (job,) = recorded["jobs"].values()
    assert job["env"]["SHADOW"].endswith(f"/shadow_audit-{__version__}-py3-none-any.whl")
    job["env"]["SHADOW"] = "shadow-audit"
    return recorded


@pytest.mark.slow
def test_the_workflow_audits_accepts_and_fails_when_a_rule_is_met(tmp_path, workflow):
    """Without a baseline, against it, with a policy that is met: codes and what CI shows."""
    runner = Runner(tmp_path)
    policy = runner.workspace / ".github" / "shadow-policy.yaml"
    policy.parent.mkdir()
    shutil.copy(EXAMPLES / "shadow-policy.yaml", policy)
    first = runner.job(workflow)
    assert [(name, done.returncode) for name, done in first] == [
        ("Install", 0), ("Audit", 0), ("Accept them", 0),
    ], first  # fmt: skip
    cases = {
        case.name: [type(one).__name__ for one in case.result]
        for suite in junitparser.JUnitXml.fromfile(str(runner.workspace / "shadow-junit.xml"))
        for case in suite
    }
    assert cases == {"audit": [], "narrow-update": [], "large-update": [], "adapter": ["Skipped"],
                     "frozen-tower": ["Skipped"], "drift": ["Skipped"]}  # fmt: skip
    second = runner.job(workflow)
    assert [done.returncode for _, done in second] == [0, 0, 0]
    policy.write_text(policy.read_text().replace("concentration > 0.5", "concentration > 0.3"))
    third = runner.job(workflow)
    assert [(name, done.returncode) for name, done in third] == [("Install", 0), ("Audit", 4)]
    (annotation,) = [line for line in third[1][1].stderr.splitlines() if line.startswith("::")]
    assert annotation.startswith("::error title=demo%3Abase..narrow%3A narrow-update::")
    assert runner.summary.read_text().count("❌ FAILED") == 1
    junit = junitparser.JUnitXml.fromfile(str(runner.workspace / "shadow-junit.xml"))
    assert (junit.tests, junit.failures, junit.errors) == (12, 1, 0)
    assert {path.name for path in runner.home.iterdir()} <= {".cache"}


def test_scripts_take_nothing_from_the_event(workflow):
    """No `${{ }}` inside `run:`: an event's words would be code. And the token may only read."""
    (job,) = workflow["jobs"].values()
    assert all("${{" not in step.get("run", "") for step in job["steps"])
    assert workflow["permissions"] == {"contents": "read"}


MOVED = f"- {{claim: trained, of: [{DEMO / 'base'}, {DEMO / 'broad'}], moved: [layers]}}\n"
CHECKED = f"- {{model: {DEMO / 'broad'}, base: {DEMO / 'base'}, headers: true}}\n"
EQUAL = f"- same {DEMO / 'base'} {DEMO / 'broad'}\n"


def given(value: str, inputs: dict[str, str]) -> str:
    """What GitHub makes of the expressions of action.yml."""
    value = re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)
    return inputs["package"] if "github.action_path" in value else value


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "codes", "said"), [
    ({"claims": "claims.yaml"}, [0, 0], "trained"),
    ({"checks": "families.yaml"}, [0, 0], "drop_in"),
    ({"claims": "wrong.yaml", "options": "--jobs 1 -q"}, [0, 4], "does not hold"),
    ({"list": "list.yaml", "options": "-q\n--policy policy.yaml"}, [0, 0], "large-update"),
    ({"claims": "claims.yaml", "list": "list.yaml"}, [0, 2], ""),
    ({}, [0, 1], ""),
])  # fmt: skip
def test_the_action_checks_claims_or_a_list(tmp_path, inputs, codes, said):
    """Its steps, with the variables that GitHub sets: exit codes, JUnit and the job's summary."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert all("${{" not in step["run"] for step in action["runs"]["steps"])
    runner = Runner(tmp_path)
    files = {"claims.yaml": MOVED, "wrong.yaml": EQUAL, "families.yaml": CHECKED}
    for file, line in files.items():
        runner.workspace.joinpath(file).write_text(line)
    runner.workspace.joinpath("list.yaml").write_text("- demo:base..narrow\n")
    text = (EXAMPLES / "shadow-policy.yaml").read_text().partition("drift:")[0]
    runner.workspace.joinpath("policy.yaml").write_text(text)
    defaults = {name: one["default"] for name, one in action["inputs"].items()}
    inputs = defaults | {"package": "shadow-audit"} | inputs
    done = [
        runner.step(step["run"], {name: given(one, inputs) for name, one in step["env"].items()})
        for step in action["runs"]["steps"]
    ]
    assert [one.returncode for one in done] == codes, done[-1].stderr
    assert said in runner.summary.read_text()
    if said:
        junit = junitparser.JUnitXml.fromfile(str(runner.workspace / "shadow-junit.xml"))
        assert junit.tests > 0
        assert junit.failures == (codes[1] == 4)


@pytest.mark.slow
def test_the_hook_of_this_repository_runs(tmp_path):
    check, claims = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    runner = Runner(tmp_path)
    for hook, line, code in ((claims, MOVED, 0), (claims, EQUAL, 4), (check, CHECKED, 0)):
        runner.workspace.joinpath(*hook["args"]).write_text(line)
        done = runner.step(shlex.join([*shlex.split(hook["entry"]), *hook["args"]]), {})
        assert done.returncode == code


@pytest.mark.slow
def test_the_pre_commit_hook_runs(tmp_path):
    """The entry of the hook, in a repository with a base and a tuned model: 0 with the example's
    policy, 4 with a stricter one; it leaves nothing in the work tree.
    """
    (repository,) = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    runner = Runner(tmp_path)
    subprocess.run(
        ["git", "init", "-q"], cwd=runner.workspace, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    for side, source in (("base", "base"), ("tuned", "broad")):
        shutil.copytree(DEMO / source, runner.workspace / side)
    policy = runner.workspace / "shadow-policy.yaml"
    text = "".join((EXAMPLES / "shadow-policy.yaml").read_text().partition("drift:")[0])
    before = {path.name for path in runner.workspace.iterdir()} | {policy.name}
    for wanted, threshold in ((0, "0.5"), (4, "0.1")):
        policy.write_text(text.replace("concentration > 0.5", f"concentration > {threshold}"))
        done = runner.step(shlex.join(shlex.split(hook["entry"])), {})
        assert done.returncode == wanted, done.stderr
    assert {path.name for path in runner.workspace.iterdir()} == before


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path):
    """The lines of docs/ci.md in order, with the examples' policy: all pass on the demo."""
    runner = Runner(tmp_path)
    shutil.copy(EXAMPLES / "shadow-policy.yaml", runner.workspace)
    page = (ROOT / "docs" / "ci.md").read_text()
    shown = [line.removeprefix("$ ") for line in page.splitlines() if line.startswith("$ shadow ")]
    (runner.workspace / "families.yaml").write_text("- demo\n")
    assert len(shown) == 5
    for line in shown:
        done = runner.step(line, {})
        assert done.returncode == 0, (line, done.stderr)
    assert {path.name for path in runner.workspace.iterdir()} >= {
        "accepted", "reports", "shadow-junit.xml",
    }  # fmt: skip


def test_the_policy_of_the_page_is_read(tmp_path):
    """The YAML that docs/ci.md shows, and the example file, are policies."""
    page = (ROOT / "docs" / "ci.md").read_text()
    shown, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "policy.yaml").write_text(shown)
    for file in (tmp_path / "policy.yaml", EXAMPLES / "shadow-policy.yaml"):
        rules = {rule.name: rule for rule in read_policy(file)}
        assert rules["drift"].comparison == "moved"
        assert rules["large-update"].severity == "warning"
        assert rules["adapter"].allow_missing
