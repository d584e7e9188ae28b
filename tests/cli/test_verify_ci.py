"""What CI reads of `shadow verify`: lines of `-q`, JUnit, and what never replaces it."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import planted
import pytest
from command import run_shadow
from effort import every
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
NAME = "model.layers.0.mlp.up_proj.weight"
# a claim -> its outcome, the code of all, and tag of JUnit with what its message names
CLAIMS = [
    ("same ./a ./b", "holds", 0, None, ""),
    ("same ./a ./c", "does not hold", 4, "failure", f"{NAME}: "),
    ("same ./a ./none", "fault", 1, "error", "none"),
]


@pytest.fixture
def folder(tmp_path):
    """Two equal models, and one of another value."""
    found = tmp_path / "ci"
    for name in "abc":
        planted.toy(found / name, 0)
    tensors = load_file(found / "c" / "model.safetensors")
    changed = next(name for name in tensors if "up_proj" in name)
    tensors[NAME] = tensors.pop(changed) if changed != NAME else tensors[NAME]
    tensors[NAME] = tensors[NAME] + 1
    save_file(tensors, found / "c" / "model.safetensors")
    return found


def of_junit(path):
    suite = ElementTree.parse(path).getroot().find("testsuite")
    return suite, suite.findall("testcase")


def test_the_list_of_the_page_is_read(tmp_path):
    """Every claim with its options, and a flag as text. No checkpoint exists: each is a fault."""
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    found = run_shadow("verify", "-q", "--claims", "claims.yaml", "--offline", cwd=tmp_path)
    assert [line.split(":")[0] for line in found.out.splitlines()][:-1] == ["fault"] * 5


@pytest.mark.parametrize(("claim", "outcome", "code", "tag", "named"), CLAIMS)
def test_a_claim_is_a_line_and_a_case(folder, claim, outcome, code, tag, named):
    """With the tensor that speaks against it, its seconds, and names without absolute paths."""
    file = folder / "claims.yaml"
    file.write_text(f"- {claim}\n")
    found = run_shadow("verify", "-q", "--claims", file, "--junit", "r.xml", cwd=folder)
    assert found.code == code
    (line,) = found.out.splitlines()
    assert line.startswith(f"{outcome}: ")
    suite, (case,) = of_junit(folder / "r.xml")
    assert str(folder) not in case.get("name")
    assert case.get("name").startswith(claim.split()[0])
    assert 0 < float(case.get("time")) <= float(suite.get("time")) + 1e-3 < 60
    assert [child.tag for child in case if child.tag != "system-out"] == ([tag] if tag else [])
    if tag:
        texts = [case.find(tag).text, *case.findtext("system-out", "").splitlines()]
        assert named in "".join(texts)
        said = line.split(": ")[-1]
        assert case.find(tag).text.count(said) == 1  # a row may be told by the same words


def test_of_several_claims_failures_come_first_and_totals_last(folder):
    """Whatever their order in the file; all that is printed are these lines."""
    file = folder / "claims.yaml"
    file.write_text("- same ./a ./b\n- same ./a ./c\n- same ./b ./a\n- same ./c ./b\n")
    found = run_shadow("verify", "-q", "--claims", file, cwd=folder)
    lines = found.assert_done(4).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "does not hold", "does not hold", "holds", "holds", "2 hold, 2 do not",
    ]  # fmt: skip
    file.write_text("- same ./a ./b\n- same ./a ./none\n- same ./a ./c\n")
    found = run_shadow("verify", "-q", "--claims", file, cwd=folder)
    assert found.code == 1
    assert found.out.splitlines()[-1] == "1 holds, 1 does not, 1 fault"
    assert found.out.startswith("fault: same A=")


@pytest.mark.slow
@pytest.mark.parametrize("options", every(3, [(), ("-q",), ("--json",)]))
def test_a_reader_that_goes_loses_no_results(folder, options):
    """Of a closed pipe: the file has all cases, and the code is 1."""
    file = folder / "claims.yaml"
    file.write_text("- same ./a ./c\n" * 3)
    end, start = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "shadow", "verify", "--claims", file, "--junit", "r.xml"]
    done = subprocess.run([*command, *options], cwd=folder, stdout=start, stderr=subprocess.PIPE)
    os.close(start)
    assert done.returncode == 1, done.stderr
    suite, cases = of_junit(folder / "r.xml")
    assert (len(cases), suite.get("failures"), suite.get("errors")) == (3, "3", "0")


def test_what_follows_two_dashes_alone_is_no_option(folder):
    """As everywhere: a folder may have such a name."""
    (folder / "a").rename(folder / "--a")
    assert run_shadow("verify", "same", "./b", "./--a", cwd=folder).code == 0
