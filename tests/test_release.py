"""A wheel and an sdist, as they are released, run where nothing but what they need is."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from shadow import __version__

ROOT = Path(__file__).parents[1]
NAME = f"shadow_audit-{__version__}"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OF_WHEEL = re.compile(r"([\w.-]+)[^;]*(?:; *(.*))?")  # a requirement: its name, and when


def done(*command, cwd, **more):
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **more)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def pip_wheel(source, into):
    """The wheel that pip builds of a checkout or an sdist, offline."""
    into.mkdir()
    done(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", into, source, cwd=into)
    (wheel,) = into.iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of a checkout without what git ignores, and that of its sdist."""
    folder = tmp_path_factory.mktemp("release")
    listed = done("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    for name in listed:
        target = folder / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdist")
    done(*build, cwd=folder / "checkout")
    (sdist,) = (folder / "sdist").iterdir()
    assert sdist.name == f"{NAME}.tar.gz"
    return {
        "checkout": pip_wheel(folder / "checkout", folder / "of-checkout"),
        "sdist": pip_wheel(sdist, folder / "of-sdist"),
    }


def needed(wheel):
    """The distributions that a wheel needs without any extra, and all that these need."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    todo = re.findall(r"(?m)^Requires-Dist: (.*)$", metadata)
    found: dict[str, Distribution] = {}
    while todo:
        requirement = todo.pop()
        name, condition = OF_WHEEL.match(requirement).groups()
        try:
            known = None if "extra" in (condition or "") else distribution(name)
        except ModuleNotFoundError:  # of another system or version of Python
            known = None
        if known is not None and known.name not in found:
            found[known.name] = known
            todo += known.requires or []
    return found.values()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_the_demo_runs_from_a_wheel_with_what_it_declares(wheels, tmp_path, source):
    """With the wheel and what it declares alone `shadow audit demo` writes reports, exit 0."""
    done(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for one in needed(wheels[source]):
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(one.locate_file(top))
    installing = ("install", "--no-deps", "--no-index", "--no-compile", wheels[source])
    done(*PIP, "--python", python, *installing, cwd=tmp_path)
    absent = "import importlib.util as u; assert not u.find_spec('matplotlib')"  # of an extra
    done(python, "-c", absent, cwd=tmp_path)
    home = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for script in ("shadow", "shadow-audit"):
        recorded = done(python.with_name(script), "--version", cwd=tmp_path, env=home)
        assert recorded == f"shadow {__version__}\n"
    done(python.with_name("shadow"), "audit", "demo", "-o", "reports", cwd=tmp_path, env=home)
    reports = sorted(path.parent.name for path in tmp_path.glob("reports/demo/*/summary.json"))
    assert reports == ["base..broad", "base..narrow"]
    where = done(python, "-c", "import shadow; print(shadow.__file__)", cwd=tmp_path, env=home)
    assert Path(where.strip()).is_relative_to(site)
