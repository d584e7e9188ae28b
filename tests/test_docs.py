"""What the README and docs/ show is what the code does, and their links lead somewhere."""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import picture
import pytest
import readme
import tutorial
import typer.main
from hub import Hub
from markdown_it import MarkdownIt

from shadow.cli.commands import app
from shadow.targets.families import load_families

ROOT = readme.ROOT
PAGES = (
    *readme.MARKED,
    *(
        ROOT / name
        for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
    ),
)
START = ROOT / "docs" / "start.md"
# tests/test_workflow.py
RUN_ELSEWHERE = {"ci.md"}
SITE = ROOT / "docs" / "site" / "mkdocs.yml"
BLOCK = re.compile(r"(<!-- not run: [^\n]*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def named(file):
    return str(file.relative_to(ROOT))


def blocks(file, language, *, run=False):
    """The code blocks of a language, without those marked as not run where these are asked for."""
    found = BLOCK.findall(file.read_text(encoding="utf-8"))
    return [text for mark, of, text in found if of == language and not (run and mark)]


def shown(file, *, run=False):
    """The words of every `shadow` command that a page shows."""
    lines = "".join(blocks(file, "console", run=run)).splitlines()
    return [
        shlex.split(line[2:], comments=True)[1:] for line in lines if line.startswith("$ shadow ")
    ]


def tokens(file):
    return MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))


def anchors(file):
    """The anchors of a page's headings on GitHub: lower case, no punctuation, spaces as hyphens."""
    found, parsed = [], tokens(file)
    for opening, inline in itertools.pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


def links(file):
    for token in tokens(file):
        for child in token.children or ():
            if child.type == "link_open":
                yield child.attrs["href"]


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_link_leads_somewhere(file):
    """To a file of the repository and, after a #, a heading of it; none to a place on a machine."""
    for href in links(file):
        assert not href.startswith(("/", "file:", "http://")), href
        if href.startswith("https://"):
            continue
        path, _, anchor = href.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), href
        assert not anchor or anchor in anchors(target), href


@pytest.mark.parametrize("file", [*readme.MARKED, *picture.FILES], ids=named)
def test_no_page_has_a_path_of_the_machine_that_made_it(file):
    """Neither the folder of a checkout nor one for temporary files."""
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.search(r"/tmp/tmp\w|(?<!\.)/registry/demo", text)


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_command_that_is_shown_exists(file):
    """Commands, options and numbers of arguments are taken by the command line; nothing is run."""
    for words in shown(file):
        command = typer.main.get_command(app)
        while getattr(command, "commands", None):
            command, words = command.commands[words[0]], words[1:]
        command.make_context(command.name, words)


@pytest.fixture
def audited(tmp_path, monkeypatch, shadow):
    """A folder in which `shadow audit demo -o reports` was run, with the files that pages name."""
    shadow("audit", "demo", "-o", "reports").assert_done()
    (tmp_path / "scores.csv").write_text(readme.demo_scores())
    (tmp_path / "families.yaml").write_text(blocks(ROOT / "docs" / "lists.md", "yaml")[0])
    (tmp_path / "mine").symlink_to(ROOT / "registry" / "demo" / "broad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_generated_parts_are_what_the_code_writes(name, inside, demo_reports, monkeypatch):
    """As `make check` says, but by commands in this process."""

    def run(*words, cwd=None, code=0):
        done = inside(*words, cwd=cwd or Path.cwd())
        assert done.code == code, done.err
        return "\n".join(line.rstrip() for line in done.out.splitlines()).strip("\n")

    monkeypatch.setattr(readme, "shadow", run)
    with tempfile.TemporaryDirectory() as folder:  # a short name: lines are broken at 80 letters
        (Path(folder) / "demo").symlink_to(demo_reports)
        monkeypatch.setattr(readme, "reports_of_demo", lambda: folder)
        made = readme.BLOCKS[name]()
    assert {readme.part(file.read_text(), name) for file in readme.places()[name]} == {made}


TO_RUN = [
    file for file in readme.MARKED if file.name not in RUN_ELSEWHERE and shown(file, run=True)
]


@pytest.mark.slow
@pytest.mark.parametrize("file", TO_RUN, ids=named)
def test_every_command_that_is_shown_runs(file, audited, shadow):
    """In its order, with the demo's checkpoints for others; but for those marked as not run."""
    demo = ROOT / "registry" / "demo"
    here = {"./Qwen2.5-0.5B": demo / "base", "./Qwen2.5-0.5B-Instruct": demo / "narrow"}
    here |= {"./base": demo / "base", "./tuned": demo / "narrow", "./other": demo / "broad"}
    with Hub() as hub:
        for base, tuned in (
            ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
            ("org/base", "org/tuned"),
        ):
            hub.add(base, demo / "base", revisions={"v1.0": demo / "base"})
            hub.add(tuned, demo / "narrow")
        for words in shown(file, run=True):
            env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(audited / "home")}
            done = shadow(*(str(here.get(word, word)) for word in words), env=env)
            assert done.code == 0, (words, done.err)
            assert {"clean", "export", "figure", "report"} & set(words) or done.out
    # no part was put in place of a whole report
    for summary in (audited / "reports" / "demo").glob("*/summary.json"):
        assert json.loads(summary.read_text())["figures"]["matrices"] == 30


@pytest.mark.slow
def test_the_list_of_the_readme_is_checked(tmp_path, shadow):
    """By its command as it stands, but for the entry that needs an adapter: a suite each."""
    for name, stage in {"base": "base", "model": "narrow"}.items():
        shutil.copytree(ROOT / "registry" / "demo" / stage, tmp_path / name)
    (recorded,) = blocks(readme.README, "yaml")
    entries = [line for line in recorded.splitlines(keepends=True) if "adapter" not in line]
    (tmp_path / re.match(r"# ([\w.]+)\n", recorded)[1]).write_text("".join(entries))
    (words,) = (words for words in shown(readme.README) if "--list" in words)
    done = shadow(*words)
    assert done.code == 0, done.err
    junit = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert [suite.get("failures") for suite in junit] == ["0"]
    assert len(junit.findall(".//testcase")) == 3


def test_the_readme_names_both_commands_of_make():
    """In one block, with what each takes; `make check` sees it where a line or its comment goes,
    or stands elsewhere.
    """
    text = readme.README.read_text(encoding="utf-8")
    assert readme.unnamed(text) == []
    for command in ("make demo", "make test"):
        (line,) = re.findall(rf"(?m)^\$ {command} .*\n", text)
        assert readme.unnamed(text.replace(line, "")) == [command]
        assert readme.unnamed(text.replace(line, f"$ {command}\n")) == [command]
    apart = text.replace(line, f"```\n\n```console\n{line}")
    assert readme.unnamed(apart) == ["make test"]


def test_no_file_has_more_than_700_lines():
    """As CONTRIBUTING.md says; what others wrote lies beside its licence and does not count."""
    kinds = ("*.py", "*.js", "*.css", "*.j2")
    git = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("no checkout")
    files = [ROOT / name for name in git.stdout.splitlines()]
    own = [file for file in files if file.parent == ROOT or not (file.parent / "LICENSE").exists()]
    assert len(own) > 300
    lines = {named(file): file.read_bytes().count(b"\n") for file in own}
    assert {name: count for name, count in lines.items() if count > 700} == {}


@pytest.mark.slow
def test_what_follows_make_demo_runs_where_nothing_is_on_the_path(tmp_path):
    """The README's block in a fresh shell: what `make demo` runs, then each line below."""
    bin = Path(sys.executable).parent
    if not (bin / "activate").is_file():
        pytest.skip("this Python is not of a virtual environment")
    (block,) = (text for text in blocks(readme.README, "console") if "$ make demo" in text)
    first, *others = block.splitlines()
    recipe = (
        (ROOT / "Makefile")
        .read_text(encoding="utf-8")
        .partition("\ndemo: $(DEMO)")[2]
        .splitlines()[1]
        .strip()
    )
    assert first.startswith("$ make demo ")
    (tmp_path / ".venv").symlink_to(bin.parent)
    lines = [line.removeprefix("$ ") for line in others if "$ make test" not in line]
    lines.insert(0, recipe.replace("$(BIN)", ".venv/bin"))
    command = [
        "env", "-i", "PATH=/usr/bin:/bin", f"HOME={tmp_path}", "bash", "-ec", "\n".join(lines),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("base..narrow") >= 2  # of the audit, and of the command after it


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_script_is_python(file):
    """Each ```python block compiles."""
    for text in blocks(file, "python"):
        compile(text, named(file), "exec")


def printed_by(script):
    """What a script of a page prints, run as it stands."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(script, {})
    return out.getvalue()


@pytest.mark.slow
def test_the_pandas_lines_answer_their_question(audited):
    """They run as they stand on the demo's report."""
    assert "attn.q" in printed_by(blocks(START, "python")[0])


@pytest.mark.slow
def test_the_script_that_measures_one_matrix_agrees_with_numpy(monkeypatch):
    """CONTRIBUTING's, run in the checkout: both figures of each line agree to six digits."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    lines = printed_by(blocks(ROOT / "CONTRIBUTING.md", "python")[0]).splitlines()
    assert len(lines) == 3
    for name, measured, truth in map(str.split, lines):
        assert float(measured) == pytest.approx(float(truth), rel=1e-6), name


@pytest.mark.slow
def test_the_pool_audits_the_demo(tmp_path):
    """The script runs as it stands, prints headlines, and leaves the reports of both pairs."""
    (script,) = blocks(ROOT / "docs" / "lists.md", "python")
    (tmp_path / "pool.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "pool.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = {path.parent.name for path in (tmp_path / "pool" / "demo").glob("*/summary.json")}
    assert found == {"base..broad", "base..narrow"}
    narrow, broad = done.stdout.splitlines()
    assert narrow.startswith("Changed by 8.0 %")
    assert broad.startswith("Changed by 6.4 %")


def test_family_files_that_are_shown_load(tmp_path):
    """The one of the registry's page and the tutorial's, with the pairs that the text speaks of."""
    found = {}
    pages_of = {"a": ROOT / "docs" / "registry.md", "b": tutorial.PAGE}
    for name, page in pages_of.items():
        (tmp_path / f"{name}.yaml").write_text(blocks(page, "yaml")[0])
    for family in ("my-7b", "rxnfp"):
        found[family] = [pair.name for pair in load_families(tmp_path)[family].pairs]
    assert found == {"my-7b": ["base..sft", "sft..dpo"], "rxnfp": ["base..ft", "base..ft-10k"]}


def test_every_variable_that_is_read_is_on_the_page_of_commands():
    """Of the names that the package reads from its environment."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"", source))
    read |= set(re.findall(r'"(HF_\w+|HUGGING_FACE_\w+)"(?!: "1")', source))  # set for no child
    read |= set(re.findall(r'envvar="(\w+)"', source))
    read -= {"HF_HUB_DISABLE_SHARED_BLOBS"}  # of the client's constants, which nobody sets
    recorded = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## Variables")[2]
    assert {"SHADOW_REGISTRY", "GITHUB_STEP_SUMMARY"} <= read
    assert not [name for name in read if f"`{name}`" not in recorded]


def test_every_page_is_in_the_navigation():
    """And nothing else but the pages that the hooks add."""
    text = SITE.read_text(encoding="utf-8")
    nav = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    added = {"index.md", "changelog.md", "benchmarks.md"}
    assert nav == {file.name for file in (ROOT / "docs").glob("*.md")} | added
    assert "font: false" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what the builder said."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable, "-m", "mkdocs", "build", "--config-file", str(SITE), "--site-dir",
        str(folder),
    ]  # fmt: skip
    variables = os.environ | {
        "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9", "SOURCE_DATE_EPOCH": "0",
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return folder, [
        line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))
    ]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    """Links, anchors, navigation and docstrings are in order."""
    assert not site[1]
