"""Hostile text stays text in annotations, Markdown, JUnit XML, and in all that is printed."""

import io
import json
import re
from contextlib import redirect_stdout
from xml.etree import ElementTree

import junitparser
import planted
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from reports import uniform

from shadow.cli import console
from shadow.gates.document import gate_document
from shadow.gates.rules import parse_rule
from shadow.gates.verdicts import Judgement, Verdict
from shadow.outputs import ci
from shadow.outputs.ci import append_summary, junit, workflow_commands
from shadow.outputs.markdown import cell, markdown
from shadow.templates import Reason
from shadow.text import inert, visible

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
OWNED = [
    "::error title=owned::owned", "\n::error::owned", "\r::error::owned",
    "x\u2028::set-output name=a::b", "%0A::", "##[error]owned", "##[set-output name=a]b",
    "##vso[task.complete]", "a|b", "|", "`a`", "<img src=x onerror=a()>", "</code></td><td>",
    "[a](javascript:alert(1))", "@octocat", "#1", "www.evil.example", "https://evil.example", "]]>",
    "<!--", "&amp;", "&#124;", "\\|", "\x1b[31m", "\x00", "\ud800", "\ufffe", "\u202e", "a:b,c=d",
    "=1+1", "\\", "| a |\n|---|\n", "```", "---", "# head", "- item", "~~a~~", " ", "",
]  # fmt: skip
HOSTILE = (
    st.text() | st.sampled_from(OWNED) | st.lists(st.sampled_from(OWNED), max_size=4).map("".join)
)


def commands(text):
    """Commands that the runner of GitHub Actions finds in what a step prints: (name, title, data).

    Its two grammars: `::name key=value,...::data` after white space, and
    `##[name key=value;...]data` anywhere.
    """
    found = []
    for line in re.split(r"\r\n|\r|\n", text):
        if match := re.match(r"\s*::(.*?)::(.*)", line, re.DOTALL):
            name, _, properties = match[1].partition(" ")
            recorded = dict(one.split("=", 1) for one in properties.split(",") if "=" in one)
            found.append((name, recorded, unescaped(match[2])))
        elif match := re.search(r"##(?:vso|teamcity)?\[(.*?)\]", line):
            found.append((match[1], {}, ""))
    return found


def unescaped(text):
    """As the runner does it, in its order."""
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


def made(family, pair, name, message, detail, outcome="met", severity="error", **more):
    rule = parse_rule("spikes > 1", name=name, message=message, severity=severity)
    verdict = Verdict(rule, outcome, Reason("absent", {"why": detail}))
    return Judgement(family, pair, verdicts=(verdict,), **more)


OUTCOMES = st.sampled_from(["met", "missing", "passed", "skipped"])
SEVERITIES = st.sampled_from(["error", "warning"])
JUDGED = st.builds(made, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, OUTCOMES, SEVERITIES,
                   fault=st.none() | HOSTILE, notes=st.lists(HOSTILE, max_size=2).map(tuple),
                   objections=st.lists(HOSTILE, max_size=2).map(tuple))  # fmt: skip


# Annotations


@CALM
@given(st.lists(JUDGED, max_size=3))
def test_an_annotation_is_one_command_and_says_what_was_to_be_said(judged):
    """As many commands as faults, objections and verdicts, errors first; no text is a command."""
    lines = workflow_commands(judged)
    found = commands("\n".join(lines))
    expected = []
    for one in judged:
        (verdict,) = one.verdicts
        if one.fault is not None:
            expected.append(("error", one.name, [one.fault]))
        if one.objections:
            expected.append(("error", f"{one.name}: --strict", one.objections))
        if verdict.outcome in ("met", "missing"):
            message = [verdict.rule.message or ""] if verdict.outcome == "met" else []
            title = f"{one.name}: {verdict.rule.name}"
            expected.append((verdict.rule.severity, title, [*message, verdict.detail]))
    expected.sort(key=lambda one: one[0] == "warning")
    assert len(lines) == len(found) == len(expected)
    for (name, recorded, data), (level, title, texts) in zip(found, expected, strict=True):
        assert (name, unescaped(recorded["title"]), recorded.keys()) == (
            level, visible(title), {"title"},
        )  # fmt: skip
        assert all(visible(text) in data for text in texts)


def test_github_shows_ten_of_a_level_so_the_last_counts_the_rest():
    """Twelve errors: nine, and one that says how many more; warnings are counted on their own."""
    errors = [made("f", f"p{number}", "rule", None, "detail") for number in range(12)]
    warnings = [
        made("f", f"w{number}", "rule", None, "detail", severity="warning") for number in range(10)
    ]
    found = commands("\n".join(workflow_commands([*warnings, *errors])))
    assert [name for name, _, _ in found] == ["error"] * 10 + ["warning"] * 10
    assert found[9][2].split()[0] == "3"


def test_a_person_reads_faults_and_counts_of_outcomes():
    outcomes = ["met", "missing", "passed", "skipped"]
    each = [made("f", "p", "rule", None, "detail", outcome) for outcome in outcomes]
    each.append(made("f", "p", "rule", None, "detail", severity="warning"))
    whole = Judgement("f", "p", verdicts=tuple(one.verdicts[0] for one in each))
    assert len(ci.sentences(each)) == len(ci.sentences([whole])) == 3
    for judged in (each, [whole]):
        assert re.findall(r"\d+", ci.counts(judged)) == ["1", "5", "1", "1", "1", "1"]
    other = made("f", "p", "another", None, "detail", "passed")
    assert re.findall(r"\d+", ci.counts([each[2], other])) == ["2", "2"]
    assert re.findall(r"\d+", ci.counts([each[4]])) == ["0", "1", "0", "1"]
    assert ci.counts([]) == ""


# Markdown


def tables(text):
    """The tables of Markdown as GitHub reads them: rows of cells, lists of (kind, text)."""
    found = []
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in parser.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level == 4 and found:  # of a cell
            found[-1][-1].append(token)
    return found


@CALM
@given(HOSTILE, HOSTILE)
def test_a_cell_stays_one_cell_and_shows_its_text(one, two):
    """Pipes, backticks, tags, links, entities and new lines are text; code is the only markup."""
    text = f"| a | b |\n|---|---|\n| {cell(one)} | {cell(two)} |\n\nend"
    assert text.count("\n") == 4
    ((_, row),) = tables(text)
    assert len(row) == 2
    for token, source in zip(row, (one, two), strict=True):
        kinds = {child.type for child in token.children}
        assert kinds <= {"text", "html_inline", "text_special", "code_inline"}
        tags = {child.content for child in token.children if child.type == "html_inline"}
        assert tags <= {"<code>", "</code>"}
        shown = "".join(child.content for child in token.children if child.type != "html_inline")
        assert shown == (visible(source) if visible(source).strip() else "")
    # what GitHub would make links of
    assert not re.search(r"https?:|www\.|@|#\d", cell(one).replace("&#", ""))


@CALM
@given(st.lists(JUDGED, max_size=3))
def test_the_summary_of_a_step_is_its_tables_whatever_the_names(judged):
    """A row for each pair and each rule, with as many cells as heads."""
    text = markdown(gate_document(judged))
    found = tables(text)
    assert [len(table) - 1 for table in found] == [len(judged), len(judged)][: 2 if judged else 1]
    for table, width in zip(found, (7, 4), strict=False):
        assert {len(row) for row in table} == {width}
    lists = [len(one.notes) + (one.fault is not None) for one in judged]
    assert sum(line.startswith("- ") for line in text.splitlines()) == sum(lists)


@pytest.mark.parametrize(("outcome", "severity", "shown"), [
    ("met", "error", "❌ FAILED"), ("met", "warning", "⚠️ FAILED (warning)"),
    ("missing", "error", "❌ not judged"), ("missing", "warning", "⚠️ not judged (warning)"),
    ("passed", "warning", "✅ passed"), ("skipped", "warning", "➖ skipped"),
])  # fmt: skip
def test_a_warning_that_is_met_or_open_is_shown_as_one(outcome, severity, shown):
    judged = made("f", "p", "rule", None, "detail", outcome, severity)
    assert tables(markdown(gate_document([judged])))[1][1][1].content == shown


@pytest.mark.parametrize("before", [0, 90_000])
def test_the_summary_stays_below_what_github_takes(tmp_path, before, monkeypatch):
    """Whole lines, as many as fit after what is there; the first of the tables are there."""
    assert ci.SUMMARY_BYTES <= 1 << 20
    monkeypatch.setattr(ci, "SUMMARY_BYTES", 100_000)
    judged = [
        made(f"family-{number}", "p", "rule", "message " * 20, "detail", notes=("x" * 90,))
        for number in range(900)
    ]
    path = tmp_path / "summary.md"
    path.write_text("x" * before)
    append_summary(path, gate_document(judged))
    text = path.read_text()[before:]
    assert before + len(text.encode()) <= 100_000
    assert text.endswith(ci.CUT.decode())
    rows = [row for table in tables(text) for row in table[1:]]
    assert len(rows) > (100_000 - before) / 2_000
    assert {len(row) for row in rows} <= {7, 4}


# JUnit


@CALM
@given(st.lists(JUDGED, max_size=3))
def test_any_names_make_xml_that_says_the_same(judged):
    """Well-formed for a strict parser, names and messages as `visible` has them, counts add up."""
    root = ElementTree.fromstring(junit(judged))
    assert [suite.get("name") for suite in root] == [visible(one.name) for one in judged]
    for suite, one in zip(root, judged, strict=True):
        audit, case = suite.findall("testcase")
        (verdict,) = one.verdicts
        assert (audit.get("name"), case.get("name")) == ("audit", visible(verdict.rule.name))
        faults = [] if one.fault is None else [[one.fault]]
        faults += [one.objections] if one.objections else []
        assert [fault.tag for fault in audit] == ["failure"] * len(faults)
        for fault, texts in zip(audit, faults, strict=True):
            assert all(visible(text) in (fault.text or "") for text in texts)
        tags = {"met": "failure", "missing": "error", "skipped": "skipped"}
        tag = tags.get(verdict.outcome)
        if verdict.rule.severity != "error" and tag != "skipped":
            tag = None
        # once: all readers show the text, and some the attribute too
        for child in case.findall(tag) if tag else []:
            assert (child.get("message"), child.text or "") == (None, visible(verdict.detail))
        if tag is None:
            assert visible(verdict.detail) in case.findtext("system-out")
        assert {child.tag for child in case} <= {tag, "system-out"}
    for element in (root, *root):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            assert int(element.get(name)) == len(list(element.iter(tag)))


def test_junitparser_reads_it(tmp_path):
    """A reader that others use finds the cases with the results that they have."""
    judged = [
        made("f", "a", "met", "message", "detail", seconds=1.25),
        made("f", "b", "missing", None, "detail", "missing"),
        made("f", "c", "skipped", None, "detail", "skipped"),
        made("f", "d", "warned", "message", "detail", severity="warning"),
        Judgement("f", "e", fault="no such folder", seconds=0.5),
        Judgement("f", "g", objections=("quantized",)),
    ]
    (tmp_path / "junit.xml").write_bytes(junit(judged))
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (xml.tests, xml.failures, xml.errors) == (10, 3, 1)
    cases = [(suite.name, case.name, case.result) for suite in xml for case in suite]
    results = {(suite, case): [type(one).__name__ for one in found] for suite, case, found in cases}
    assert {key: value for key, value in results.items() if value} == {
        ("f:a", "met"): ["Failure"], ("f:b", "missing"): ["Error"], ("f:c", "skipped"): ["Skipped"],
        ("f:e", "audit"): ["Failure"], ("f:g", "audit"): ["Failure"],
    }  # fmt: skip
    (warned,) = [case for suite in xml for case in suite if case.name == "warned"]
    assert {"detail", "message"} <= set(warned.system_out.split())
    assert [suite.time for suite in xml] == [1.25, 0, 0, 0, 0.5, 0]


# All that is printed


@CALM
@given(HOSTILE, st.sampled_from(["", "  ", "\x1b[36m", " \x1b[2m "]))
def test_nothing_that_is_printed_is_a_command(text, before):
    """Also where a line begins so, after spaces or colours; by the older grammar anywhere in it."""
    printed = inert("".join(f"{before}{part}\n" for part in (visible(text), visible(text) * 2)))
    assert commands(re.sub(r"\x1b\[\d*m", "", printed)) == []


def inside(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3)


@CALM
@given(st.recursive(HOSTILE, inside))
def test_json_stays_the_same_json_without_commands(value):
    """A reader gets what was written; no line of it is a command."""
    written = io.StringIO()
    with redirect_stdout(written):
        console.show_json(value)
    assert json.loads(written.getvalue()) == value
    assert commands(written.getvalue()) == []


@pytest.mark.parametrize(
    ("format", "variables"),
    [("table", {"FORCE_COLOR": "1"}), ("table", {"COLUMNS": "40"}), ("json", {})],
)
def test_names_of_tensors_command_nothing(shadow, tmp_path, variables, format):
    """A checkpoint with commands for names, in GitHub Actions: only those of the rule appear."""
    up = "model.layers.0.mlp.up_proj.weight"
    names = [f"{'x ' * count}::error title=owned::owned" for count in (0, 7, 15, 24, 30)]
    names += ["##[error]owned", "a ##[set-output name=x]y", "##vso[task.complete result=Failed]x"]
    for side, seed in (("base", 0), ("tuned", 1)):
        W, D = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
        weights = W + 0.1 * seed * D
        extra = {name: torch.ones(2) for name in (names if side == "tuned" else names[:1])}
        planted.write(tmp_path / side, {up: weights, **extra})
    command = ("audit", "./base", "./tuned", "--strict", "--format", format,
               "--fail-on", "matrices > 0")  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md"}
    done = shadow(*command, env=env | variables, bare=True)
    assert done.code == 4, done.err
    found = commands(re.sub(r"\x1b\[[\d;]*m", "", done.out + "\n" + done.err))
    titles = {(name, recorded["title"].partition("-")[0]) for name, recorded, _ in found}
    assert titles == {("error", "tuned%3Abase..tuned")}
    if format == "json":
        assert "owned" in done.out
    assert [len(table) for table in tables((tmp_path / "summary.md").read_text())] == [2, 2]


# The files


def test_the_summary_is_appended_and_the_junit_file_is_whole(shadow, tmp_path):
    """What the step wrote stays; the JUnit file's folders are made, nothing is left beside it."""
    (tmp_path / "summary.md").write_text("before\n")
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = shadow("audit", "demo:base..narrow", "-o", "out", "--junit", "deep/junit.xml", env=env)
    done.assert_done()
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n## ")
    assert [len(table) for table in tables(text)] == [2]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["junit.xml"]
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "deep" / "junit.xml"))
    assert [[case.name for case in suite] for suite in xml] == [["audit"]]
    shadow("gate", "out", "--fail-on", "spikes > 99", "--junit", "deep/junit.xml").assert_done()
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "deep" / "junit.xml"))
    assert [[case.name for case in suite] for suite in xml] == [["audit", "spikes > 99"]]


def test_a_summary_that_cannot_be_written_is_said_and_fails_nothing(shadow, tmp_path):
    """The verdict is what was asked for."""
    uniform(tmp_path / "out", 0.3)
    rule = ("gate", "out", "--fail-on", "concentration > 0.9")
    plain = shadow(*rule)
    done = shadow(*rule, env={"GITHUB_STEP_SUMMARY": str(tmp_path)})
    done.assert_done()
    assert (done.out, len(done.err.splitlines())) == (plain.out, len(plain.err.splitlines()) + 1)


@pytest.mark.parametrize(("arguments", "code"), [
    (("gate", "gone", "--fail-on", "spikes > 1"), 1),
    (("gate", "out", "--fail-on", "spieks > 1"), 2),
    (("gate", "out"), 2),
    (("gate", "out", "--policy", "absent.yaml"), 1),
    (("audit", "demo", "-o", "out", "--engine", "spark"), 2),
    (("audit", "dmeo", "-o", "out"), 1),
])  # fmt: skip
def test_no_passing_junit_file_of_before_outlasts_an_error(shadow, tmp_path, arguments, code):
    """Whatever ends the command before a pair is judged, the file has an error and no pass."""
    passed = made("f", "p", "rule", None, "fine", outcome="passed")
    (tmp_path / "junit.xml").write_bytes(junit([passed]))
    (tmp_path / "out").mkdir()
    done = shadow(*arguments, "--junit", "junit.xml")
    assert done.code == code
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (xml.tests, xml.failures, xml.errors) == (1, 0, 1)
    ((case,),) = xml
    assert case.name == arguments[0]


@pytest.mark.parametrize("text", ["precious", '<?xml version="1.0"?>\n<p>precious</p>\n'])
def test_a_junit_file_takes_no_other_files_place(shadow, tmp_path, text):
    """A mistyped path costs no file, nor XML of another program: refused before any measuring."""
    (tmp_path / "pom.xml").write_text(text)
    done = shadow("audit", "demo:base..narrow", "-o", "out", "--junit", "pom.xml")
    assert "pom.xml" in done.assert_refused()
    assert (tmp_path / "pom.xml").read_text() == text
    done = shadow("audit", "demo:base..narrow", "-o", "out", "--junit", "pom.xml/junit.xml")
    assert "pom.xml/junit.xml" in done.assert_refused()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "last"), [(9, "8"), (10, "9"), (11, "2 more"), (30, "21 more")])
def test_ten_annotations_of_a_level_are_shown(count, last):
    """The last counts the rest, so that ten stay ten."""
    lines = [f"::error::{number}" for number in range(count)]
    found = ci._first("error", lines)
    assert (len(found), found[:9]) == (min(count, 10), lines[:9])
    assert found[-1].split("::")[-1].startswith(last)


def test_a_pair_that_cannot_be_audited_is_a_failure_of_its_own(shadow, tmp_path):
    """Not an error of the command, which did what it was asked for."""
    (tmp_path / "a").mkdir()
    assert shadow("audit", "./a", "./b", "-o", "out", "--junit", "junit.xml").code == 1
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (xml.tests, xml.failures, xml.errors) == (1, 1, 0)
    ((case,),) = xml
    assert (case.name, case.classname[:6]) == ("audit", "b:a..b")
