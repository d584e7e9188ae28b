"""What the README and docs/ show is what the code does, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pages
import picture
import planted
import pytest
import readme
import tutorial
import typer.main
import yaml
from hub import Hub
from markdown_it import MarkdownIt

from shadow import __version__
from shadow.cli.commands import app
from shadow.reports.columns import SCHEMA as NUMBER
from shadow.targets.families import load_families
from shadow.targets.lists import read_list

ROOT = readme.ROOT
PAGES = (
    *readme.MARKED,
    *(
        ROOT / name
        for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
    ),
)
START = ROOT / "docs" / "start.md"
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# tests/test_workflow.py, and tests/test_real.py with the weights
RUN_ELSEWHERE = {"ci.md", "tutorial.md"}
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
    """The anchors that GitHub gives the headings of a page: lower case, without punctuation, spaces
    as hyphens.
    """
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


ELSEWHERE = (
    "real",
    "sentences",
    "error-rates",
    "quantised-rates",
    "sketch",
)  # marks of parts that other scripts make


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_mark_is_of_a_part_that_is_made(file):
    """No part is left between marks that nothing writes any more."""
    opened = re.findall(r"<!-- ([\w-]+) -->", file.read_text(encoding="utf-8"))
    assert all(
        name in readme.BLOCKS or name in ELSEWHERE or name.startswith("tutorial-")
        for name in opened
    )
    assert len(opened) == len(set(opened))


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


@pytest.mark.parametrize("file", [*readme.MARKED, *picture.FILES, NOTEBOOK], ids=named)
def test_no_page_has_a_path_of_the_machine_that_made_it(file):
    """Neither the folder of a checkout nor one for temporary files."""
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.search(r"/tmp/tmp\w|(?<!\.)/registry/demo", text)


def test_anchors_are_those_of_github():
    """Code and punctuation in a heading, and the words between."""
    found = anchors(ROOT / "docs" / "compare.md")
    assert {"compare-reports", "the-margin"} <= set(found)
    assert {"what-it-does-not-tell-you", "cite"} <= set(anchors(readme.README))


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_command_that_is_shown_exists(file):
    """Commands, options and numbers of arguments are taken by the command line; nothing is run."""
    for words in shown(file):
        command = typer.main.get_command(app)
        while getattr(command, "commands", None):
            command, words = command.commands[words[0]], words[1:]
        command.make_context(command.name, words)


def test_a_command_with_an_unknown_option_would_be_found():
    """The test above can fail: an option that no command has is refused by name."""
    command = dict(pages.commands())["shadow audit"]
    with pytest.raises(Exception, match="--nonsense"):
        command.make_context("audit", ["demo", "--nonsense"])


@pytest.fixture
def audited(tmp_path, monkeypatch, shadow):
    """A folder in which `shadow audit demo -o reports` was run, with the files that pages name."""
    shadow("audit", "demo", "-o", "reports").assert_done()
    (tmp_path / "scores.csv").write_text(readme.demo_scores())
    (tmp_path / "families.yaml").write_text(blocks(ROOT / "docs" / "lists.md", "yaml")[0])
    (tmp_path / "mine").symlink_to(ROOT / "registry" / "demo" / "broad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TO_RUN = [
    file for file in readme.MARKED if file.name not in RUN_ELSEWHERE and shown(file, run=True)
]


@pytest.mark.slow
@pytest.mark.parametrize("file", TO_RUN, ids=named)
def test_every_command_that_is_shown_runs(file, audited, shadow):
    """In its order, with the demo's checkpoints where others are named; but those that are marked
    as not run.
    """
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


WORDS = 900


def prose(text):
    """The words of a page outside of code blocks, tables, pictures and marks."""
    text = re.sub(r"(?s)```.*?```|<picture>.*?</picture>|<!--.*?-->", "", text)
    return [word for line in text.splitlines() if line[:1] != "|" for word in line.split()]


def test_the_readme_is_read_in_one_go():
    """At most 900 words of prose; one sentence, the four questions, the picture and the line that
    installs stand before any heading, on a screen.
    """
    text = readme.README.read_text(encoding="utf-8")
    assert WORDS / 2 < len(prose(text)) <= WORDS
    title, sentence, rest = text.split("\n\n", 2)
    assert title == "# shadow"
    assert re.fullmatch(r"[^.]+\.", sentence)
    assert rest.startswith("<!-- questions -->")
    screen = rest.partition("\n## ")[0]
    assert len(screen.splitlines()) <= 30
    assert [name for name in ("questions", "map") if readme.part(screen, name)] == [
        "questions", "map",
    ]  # fmt: skip
    assert len(readme.part(screen, "questions").splitlines()) == 2 + len(readme.QUESTIONS) == 6
    assert len(readme.part(screen, "map").splitlines()) == 2 + 8
    assert "$ pip install ." in screen


def test_words_of_code_and_tables_are_no_prose():
    """The count above can fail: of this page four words are prose."""
    page = "# One two\n\n| a b | c |\n|---|---|\n\nthree\n\n```text\nd e f\n```\n<!-- g -->"
    assert prose(page) == ["#", "One", "two", "three"]


@pytest.mark.slow
def test_the_gate_of_the_readme_fails_for_the_right_pair(tmp_path, shadow):
    """Its list and its command as they stand: exit code 4, because of the narrow pair alone."""
    for name, stage in {"base": "base", "tuned": "narrow", "other": "broad"}.items():
        shutil.copytree(ROOT / "registry" / "demo" / stage, tmp_path / name)
    (told,) = blocks(readme.README, "yaml")
    (tmp_path / re.match(r"# ([\w.]+):", told)[1]).write_text(told)
    (words,) = (words for words in shown(readme.README) if "--fail-on" in words)
    done = shadow(*words)
    assert done.code == 4, done.err
    assert re.findall(r"(?m)^(mine:\S+): concentration > 0.3: ", done.err) == ["mine:base..a"]
    junit = ElementTree.parse(tmp_path / "junit.xml").getroot()
    failures = {suite.get("name"): suite.get("failures") for suite in junit}
    assert failures == {"mine:base..a": "1", "mine:base..b": "0"}


def test_files_that_contributing_names_are_there():
    """In the checkout or in the package; names in code with a folder and a suffix."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:python )?([\w/.-]+/[\w.-]+\.(?:py|yaml))\b[^`]*`", text))
    assert len(named) > 20
    folders = (ROOT, ROOT / "src" / "shadow")
    assert not [name for name in named if not any((top / name).exists() for top in folders)]


def test_no_file_has_more_than_700_lines():
    """As CONTRIBUTING.md says; what others wrote lies beside its licence and does not count."""
    kinds = ("*.py", "*.js", "*.css", "*.j2")
    git = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("no checkout")
    files = [ROOT / name for name in git.stdout.splitlines()]
    own = [file for file in files if file.parent == ROOT or not (file.parent / "LICENSE").exists()]
    assert len(own) > 400
    lines = {named(file): file.read_bytes().count(b"\n") for file in own}
    assert {name: count for name, count in lines.items() if count > 700} == {}


def test_what_is_written_by_hand_can_be_read():
    """At most 30,000 words outside of generated parts and the page of the schema."""
    generated = re.compile(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", re.DOTALL)
    texts = (file.read_text(encoding="utf-8") for file in PAGES if file.stem != "schema")
    assert sum(len(generated.sub("", text).split()) for text in texts) <= 30_000


def test_counts_of_the_pages_are_those_of_the_code():
    """Families of released models (all but the demo), and kinds that the tests save and pair."""
    families = len(load_families()) - 1
    assert f"lists {families} families" in readme.README.read_text(encoding="utf-8")
    kinds = f"{len(planted.FAMILIES | planted.KINDS)} kinds of models"
    assert kinds in (ROOT / "docs" / "registry.md").read_text(encoding="utf-8")


def test_the_page_of_promises_has_the_number_of_the_schema():
    """Number, versions and exit codes are those of the code and of the page of commands."""
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert f"the number **{NUMBER}**" in text
    assert ".".join(__version__.split(".")[:2]) in text
    codes = re.findall(r"(?m)^\| (\d+) \|", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    assert f"| {', '.join(codes[:-1])} and {codes[-1]}, with their meaning |" in text


@pytest.mark.parametrize("file", picture.FILES, ids=lambda file: file.stem)
def test_pictures_are_legible_and_load_nothing(file):
    """Each colour of text has a contrast of 4.5 or more; no address but the namespace's."""
    text = file.read_text(encoding="utf-8")
    assert file.name in readme.README.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert picture.COMMAND in root.attrib["aria-label"]
    assert set(re.findall(r"[\w.:-]*//[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    (background,) = re.findall(r'<rect fill="(#\w{6})" stroke', text)
    colours = set(re.findall(r"fill: (#\w{6})", text))
    assert len(colours) >= 3
    assert min(picture.contrast(colour, background) for colour in colours) >= 4.5


def test_black_on_white_has_the_greatest_contrast():
    """21, as WCAG defines it; a colour has 1 with itself."""
    assert picture.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert picture.contrast("#0969da", "#0969da") == 1


@pytest.mark.slow
def test_what_follows_make_demo_runs_where_nothing_is_on_the_path(tmp_path):
    """The README's block in a fresh shell: what `make demo` runs once it has installed, then
    each line below.
    """
    bin = Path(sys.executable).parent
    if not (bin / "activate").is_file():
        pytest.skip("this Python is not of a virtual environment")
    (block,) = (text for text in blocks(readme.README, "console") if "$ make demo" in text)
    first, *others = block.splitlines()
    recipe = (
        (ROOT / "Makefile")
        .read_text(encoding="utf-8")
        .partition("\ndemo: setup")[2]
        .splitlines()[1]
        .strip()
    )
    assert first.startswith("$ make demo ")
    (tmp_path / ".venv").symlink_to(bin.parent)
    lines = [recipe.replace("$(BIN)", ".venv/bin"), *(line.removeprefix("$ ") for line in others)]
    command = [
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        f"HOME={tmp_path}",
        "bash",
        "-ec",
        "\n".join(lines),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("base..narrow") >= 2  # of the audit, and of the command after it


def test_the_session_of_the_start_needs_nothing_that_is_not_there():
    """It has over a dozen commands, begins with the audit that the others read, and names no file
    of the reader's.
    """
    text = START.read_text(encoding="utf-8").partition("These run as they stand")[2]
    lines = [
        shlex.split(line[2:], comments=True)[1:] for line in BLOCK.search(text)[3].splitlines()
    ]
    assert len(lines) > 12
    assert lines[0] == ["audit", "demo"]
    assert not [
        word
        for words in lines
        for word in words
        if word.startswith("./") or word.endswith((".csv", ".yaml"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["w", "w" * 30, "w" * 100])
def test_the_outputs_of_the_tutorial_are_the_same_wherever_the_weights_lie(tmp_path, folder):
    """Long folders are folded in the middle of a name, short ones between words."""
    for name, stage in (("bert_pretrained", "base"), ("bert_ft", "narrow")):
        shutil.copytree(
            ROOT / "registry" / "demo" / stage,
            tmp_path / folder / "rxnfp" / "models" / "transformers" / name,
        )
    at = f"{folder}/rxnfp/models/transformers"
    told = tutorial._run(
        ["shadow", "plan", "--base", f"./{at}/bert_pretrained", "--tuned", f"./{at}/bert_ft"],
        tmp_path,
    )
    told = tutorial._same_everywhere(told, tmp_path, tmp_path / folder).splitlines()
    assert told[1:3] == [
        "base   .../bert_pretrained: 1 shard, 414.8 kB, BF16",
        "tuned  .../bert_ft: 1 shard, 414.8 kB, BF16",
    ]


@pytest.mark.parametrize("path", [path for path, _ in pages.commands()])
def test_help_is_shown_as_it_is_written(path):
    """Rich takes square brackets in the help of an option for markup, and breaks paragraphs where
    the source does.
    """
    command = dict(pages.commands())[path]
    assert not [one.name for one in command.params if "[" in (getattr(one, "help", None) or "")]
    assert not [text for text in (command.help or "").split("\n\n")[1:] if "\n" in text.strip()]


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
    for page in (readme.README, START):
        assert "attn.q" in printed_by(blocks(page, "python")[0])


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
    """The script runs as it stands, prints headlines, and leaves an index of the pairs."""
    (script,) = blocks(ROOT / "docs" / "lists.md", "python")
    (tmp_path / "pool.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "pool.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = json.loads((tmp_path / "pool" / "index.json").read_text())
    assert [(row["family"], row["pair"], row["state"]) for row in told["pairs"]] == [
        ("demo", "base..broad", "done"),
        ("demo", "base..narrow", "done"),
    ]
    narrow, broad = done.stdout.splitlines()
    assert narrow.startswith("Changed by 8.0 %")
    assert broad.startswith("Changed by 6.4 %")


DIES = """
import os, signal, sys
if any("multiprocessing.spawn" in word for word in sys.orig_argv):
    import shadow.audits.pair
    audit = shadow.audits.pair.run_asked

    def dies(asked):
        if asked.pair.name == "base..narrow":
            os.kill(os.getpid(), signal.SIGKILL)
        return audit(asked)

    shadow.audits.pair.run_asked = dies
"""


@pytest.mark.slow
def test_the_pool_outlives_a_worker(tmp_path):
    """The script as it stands, while the system kills the process of the first pair: that pair
    alone is missing.
    """
    (script,) = blocks(ROOT / "docs" / "lists.md", "python")
    (tmp_path / "pool.py").write_text(script)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(DIES)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "hook")}
    command = [sys.executable, "pool.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=env, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(
        "demo:base..narrow: A process in the process pool was terminated abruptly"
    )
    told = json.loads((tmp_path / "pool" / "index.json").read_text())
    assert second.startswith("Changed by 6.4 %")
    assert [row["pair"] for row in told["pairs"]] == ["base..broad"]


def test_family_files_that_are_shown_load(tmp_path):
    """The one of the registry's page and the tutorial's, with the pairs that the text speaks of."""
    found = {}
    pages_of = {"a": ROOT / "docs" / "registry.md", "b": tutorial.PAGE}
    for name, page in pages_of.items():
        (tmp_path / f"{name}.yaml").write_text(blocks(page, "yaml")[0])
    for family in ("my-7b", "rxnfp"):
        found[family] = [pair.name for pair in load_families(tmp_path)[family].pairs]
    assert found == {"my-7b": ["base..sft", "sft..dpo"], "rxnfp": ["base..ft", "base..ft-10k"]}


def test_the_list_that_is_shown_is_a_list(tmp_path):
    """Four entries: a family, a glob, two checkpoints, and two with a name."""
    (tmp_path / "families.yaml").write_text(blocks(ROOT / "docs" / "lists.md", "yaml")[0])
    assert len(read_list(str(tmp_path / "families.yaml"))) == 5


def test_every_source_of_a_column_is_cited():
    """Author and year of the tables stand among the sources of the methods."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("## Sources")[2]
    named = {
        year
        for column in pages.DIAGNOSTICS
        for year in re.findall(r"(\w+) (\d{4})\b", column.source)
    }
    assert len(named) > 10
    assert not [
        (author, year) for author, year in named if not re.search(rf"{author}\b.* {year}", text)
    ]


def test_every_variable_that_is_read_is_on_the_page_of_commands():
    """Of the names that the package reads from its environment."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"", source))
    read |= set(re.findall(r'"(HF_\w+|HUGGING_FACE_\w+)"', source)) | set(
        re.findall(r'envvar="(\w+)"', source)
    )
    told = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## Variables")[2]
    assert {"SHADOW_REGISTRY", "HF_TOKEN", "GITHUB_STEP_SUMMARY"} <= read
    assert not [name for name in read if f"`{name}`" not in told]


def test_the_python_page_has_modules_that_are_there():
    """Each ::: of the page imports, and says what it is."""
    modules = re.findall(
        r"(?m)^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    )
    assert {"shadow.api", "shadow.claims.summary", "shadow.comparing.comparison"} <= set(modules)
    assert all(importlib.import_module(name).__doc__ for name in modules)


def test_every_page_is_in_the_navigation():
    """And nothing else but the pages that the hooks add."""
    text = SITE.read_text(encoding="utf-8")
    nav = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    added = {"index.md", "notebook.md", "changelog.md", "benchmarks.md"}
    assert nav == {file.name for file in (ROOT / "docs").glob("*.md")} | added
    assert "font: false" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what the builder said."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(SITE),
        "--site-dir",
        str(folder),
    ]
    variables = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:9",
        "SOURCE_DATE_EPOCH": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return folder, [
        line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))
    ]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    """Links, anchors, navigation and docstrings are in order."""
    assert not site[1]


@pytest.mark.slow
def test_the_site_has_every_module_and_command(site):
    """The Python page has the functions that programs call, the page of commands every command."""
    folder = site[0]
    python = (folder / "api" / "index.html").read_text(encoding="utf-8")
    for name in (
        "shadow.audits.pair.run_pair",
        "shadow.telling.reading.read_summary",
        "shadow.comparing.comparison.compare",
        "shadow.targets.lists.select",
    ):
        assert f'id="{name}"' in python
    commands = (folder / "cli" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="{path.replace(" ", "-")}"' in commands for path, _ in pages.commands())


@pytest.mark.slow
def test_the_site_shows_the_notebook_with_what_its_cells_made(site):
    """A page in the navigation: prose, code, the report's heat map, the printed verdict; api.md
    leads there.
    """
    page = (site[0] / "notebook" / "index.html").read_text(encoding="utf-8")
    assert "<h1" in page
    assert "<svg" in page
    assert ">more concentrated" in page.replace("\n", "")
    python = (site[0] / "api" / "index.html").read_text(encoding="utf-8")
    assert 'href="../notebook/"' in python.partition("<article")[2]


@pytest.mark.slow
def test_the_site_needs_and_tells_nothing_of_elsewhere(site):
    """No script, style, font or image is of another host, no page has a path of this machine."""
    for file in site[0].rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe|source)[^>]*src=\"?(?:https?:)?//", text), file
        assert not re.search(
            r"<link[^>]*(?:stylesheet|preconnect|icon)[^>]*href=\"?(?:https?:)?//", text
        ), file
        assert str(ROOT) not in text
        assert str(Path.home()) + "/" not in text.replace(" ~/", "")


def test_the_yaml_of_the_site_is_read_as_it_stands():
    """No key is there twice, which YAML would pass over."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys))
        return dict(
            zip(
                keys,
                (loader.construct_object(value, deep=True) for _, value in node.value),
                strict=True,
            )
        )

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Strict.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    assert yaml.load(SITE.read_text(encoding="utf-8"), Strict)["theme"]["font"] is False


@pytest.mark.slow
def test_formulas_are_typeset_without_scripts(site):
    """Methods has MathML of every formula, and no command of TeX or dollar sign is left in it."""
    source = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    written = source.count("```math") + source.count("$`")
    page = (site[0] / "methods" / "index.html").read_text(encoding="utf-8")
    found = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert len(found) == written > 10
    assert not [formula for formula in found if "\\" in formula or "$" in formula]
    assert "$`" not in page
    assert 'href="../site/formulas.css"' in page
    assert "\\frac" not in page


def test_the_evidence_is_one_page():
    """At most 2,500 words, tables included."""
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 2_500
