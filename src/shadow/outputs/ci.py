"""Verdicts as CI shows them, in Markdown, annotations of GitHub Actions and JUnit XML.

Names of families, pairs and tensors, messages and file names are hostile text in each of these:
every one goes through `cell`, `_data`, `_property` or `visible`. There is no SARIF: its results are
places in source files, and a delta has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from shadow.checks.summary import broken
from shadow.gates.document import gate_document, said_of
from shadow.gates.rules import MOVED
from shadow.gates.verdicts import Judgement, Verdict
from shadow.outputs.junit import count_cases, document, output, say, write_document
from shadow.outputs.markdown import markdown
from shadow.text import counted, visible

SUMMARY_BYTES = 1_000_000  # of a step's Markdown; GitHub drops all of what exceeds 1,048,576
CUT = b"\n\nThe rest does not fit into the summary of a step.\n"
ANNOTATIONS = 10  # of each level that GitHub shows of a step
FAULTS = ("met", "missing")  # outcomes: a rule was violated, or had nothing to judge
TAGS = {"met": "failure", "missing": "error", "skipped": "skipped"}  # of JUnit


def sentences(judged: Sequence[Judgement]) -> list[str]:
    """For people, on a terminal: why the exit code is not 0, and what is but a warning."""
    lines = []
    for judgement in judged:
        for verdict in judgement.verdicts:
            if verdict.outcome in FAULTS:
                line = f"{judgement.name}: {verdict.rule.name}: {verdict.detail}"
                if verdict.rule.severity == "warning":
                    line = f"warning: {line}"
                lines.append(line)
    for judgement in judged:
        if judgement.summary is not None:
            lines += [f"{judgement.name}: {one.text}" for one in broken(judgement.summary)]
    if reasons := sorted({reason for judgement in judged for reason in judgement.objections}):
        lines.append(f"--strict: skipped because of {', '.join(reasons)}")
    return lines


def is_without_baseline(judged: Sequence[Judgement]) -> bool:
    """Whether no figure was compared with a baseline that rules ask for and may lack."""
    moved = [
        verdict for one in judged for verdict in one.verdicts if verdict.rule.comparison == MOVED
    ]
    return bool(moved) and all(verdict.outcome == "skipped" for verdict in moved)


def counts(judged: Sequence[Judgement]) -> str:
    """`2 of 4 rules passed, 1 FAILED, 1 not judged`; those of several pairs together.

    A warning fails nothing, and is counted as one whether it is violated or has nothing to judge.
    Empty without rules.
    """
    verdicts = [verdict for judgement in judged for verdict in judgement.verdicts]
    if not verdicts:
        return ""
    found = Counter(
        "warning"
        if verdict.outcome in FAULTS and verdict.rule.severity != "error"
        else verdict.outcome
        for verdict in verdicts
    )
    parts = [f"{found['passed']} of {counted(len(verdicts), 'rule', 'rules')} passed"]
    if found["met"]:
        parts.append(f"{found['met']} FAILED")
    elif found["warning"]:
        parts.append("0 failed")
    if found["missing"]:
        parts.append(f"{found['missing']} not judged")
    if found["warning"]:
        parts.append(counted(found["warning"], "warning", "warnings"))
    if found["skipped"]:
        parts.append(f"{found['skipped']} skipped")
    return ", ".join(parts)


# GitHub's Markdown


def append_summary(path: Path, judged: Sequence[Judgement]) -> None:
    """Append to the summary of a step as many lines as GitHub takes. Raises OSError."""
    text = f"{markdown(gate_document(judged))}\n".encode()
    with path.open("ab") as file:
        room = SUMMARY_BYTES - file.tell()
        if len(text) > room:
            text = text[: max(0, room - len(CUT))].rpartition(b"\n")[0] + CUT
        if len(text) <= room:
            file.write(text)


# Annotations of GitHub Actions


def workflow_commands(
    judged: Sequence[Judgement], workspace: Path | None = None, without_baseline: str | None = None
) -> list[str]:
    """Workflow commands, a line for each fault and each rule that was violated or not judged.

    The runner reads them from stdout and stderr alike. A rule of a policy file inside the workspace
    is pointed to. without_baseline: why nothing was compared with a baseline, a warning of its own.
    """
    texts: dict[str, list[str]] = {"error": [], "warning": []}
    if without_baseline is not None:
        texts["warning"].append(_annotation("warning", "shadow", without_baseline))
    for judgement in judged:
        if judgement.fault is not None:
            texts["error"].append(_annotation("error", judgement.name, judgement.fault))
        if judgement.summary is not None:
            for one in broken(judgement.summary):
                title = f"{judgement.name}: {one.code}"
                texts["error"].append(_annotation("error", title, one.text))
        if judgement.objections:
            text = f"skipped because of {', '.join(judgement.objections)}"
            texts["error"].append(_annotation("error", f"{judgement.name}: --strict", text))
        for verdict in judgement.verdicts:
            if verdict.outcome in FAULTS:
                rule = verdict.rule
                text = said_of(verdict)
                title = f"{judgement.name}: {rule.name}"
                at = _in_workspace(rule.file, rule.line, workspace)
                texts[rule.severity].append(_annotation(rule.severity, title, text=text, at=at))
    return [line for level, lines in texts.items() for line in _first(level, lines)]


def _first(level: str, lines: Sequence[str]) -> list[str]:
    """What GitHub shows, the last of which counts the rest."""
    if len(lines) <= ANNOTATIONS:
        return list(lines)
    text = f"{len(lines) - ANNOTATIONS + 1} more are in the job's summary"
    return [*lines[: ANNOTATIONS - 1], _annotation(level, "shadow", text)]


def _annotation(level: str, title: str, text: str, at: Mapping[str, str] | None = None) -> str:
    properties = ",".join(
        f"{key}={_property(value)}" for key, value in {"title": title, **(at or {})}.items()
    )
    return f"::{level} {properties}::{_data(text)}"


def _data(text: str) -> str:
    """Any text as the message of a workflow command."""
    return visible(text).replace("%", "%25")


def _property(text: str) -> str:
    """Any text as a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _in_workspace(file: str | None, line: int | None, workspace: Path | None) -> dict[str, str]:
    if file is None or workspace is None:
        return {}
    try:
        inside = Path(file).resolve().relative_to(workspace.resolve())
    except (OSError, ValueError):  # elsewhere
        return {}
    place = {"file": inside.as_posix()}
    if line:
        place["line"] = str(line)
    return place


# JUnit


def junit(judged: Sequence[Judgement]) -> bytes:
    """JUnit XML: a suite for each pair, in it a case for the audit and one for each rule.

    A pair without its report and a rule that was violated are failures, a rule with nothing to
    judge is an error; rules that are but warnings pass, and say so in their output, since JUnit has
    no warnings. Tensors that were
    skipped are told in the output of the audit's case: as cases of their own they would be
    thousands, and most are vectors.
    """
    root = ET.Element("testsuites", name="shadow")
    for judgement in judged:
        suite = ET.SubElement(root, "testsuite", name=visible(judgement.name))
        if judgement.seconds is not None:
            suite.set("time", f"{judgement.seconds:.3f}")
        _audit_case(suite, judgement)
        for verdict in judgement.verdicts:
            _rule_case(suite, judgement, verdict)
        count_cases(suite)
    return document(root)


def write_junit(path: Path, judged: Sequence[Judgement]) -> None:
    """A file that is there whole or not at all. Raises ShadowError."""
    write_document(path, junit(judged))


def _audit_case(suite: ET.Element, judgement: Judgement) -> None:
    case = _case(suite, judgement, name="audit", seconds=judgement.seconds or 0.0)
    if judgement.fault is not None:
        say(case, "failure", message=judgement.fault, kind="not audited")
    if judgement.summary is not None:
        for sentence in broken(judgement.summary):
            say(case, "failure", message=sentence.text, kind=sentence.code)
    if judgement.objections:
        say(
            case,
            "failure",
            message=f"skipped because of {', '.join(judgement.objections)}",
            kind="--strict",
        )
    if judgement.summary is not None:
        counts = ", ".join(
            f"{count} {status}" for status, count in judgement.summary.counts.items()
        )
        lines = [
            judgement.summary.finding.headline,
            *(sentence.text for sentence in judgement.summary.finding.sentences),
            f"tensors of both sides: {counts}",
        ]
        lines += [f"skipped: {row.tensors} {row.reason}" for row in judgement.summary.skipped]
        lines += [f"warning: {warning}" for warning in judgement.summary.warnings]
        lines += [f"note: {text}" for text in judgement.notes]
        output(case, lines)


def _rule_case(suite: ET.Element, judgement: Judgement, verdict: Verdict) -> None:
    case = _case(suite, judgement, name=verdict.rule.name, seconds=0.0)
    lines = []
    if verdict.outcome == "passed":
        lines.append(verdict.detail)
    elif verdict.rule.severity == "warning" and verdict.outcome != "skipped":
        lines.append(f"warning: {verdict.detail}")
    else:
        say(case, TAGS[verdict.outcome], message=verdict.detail, kind=verdict.rule.condition)
    if len(verdict.findings) > 1:
        lines += [f"{one.figure}: {one.value}" for one in verdict.findings if one.met]
    if verdict.outcome == "met" and verdict.rule.message:
        lines.append(verdict.rule.message)
    if lines:
        output(case, lines)


def _case(suite: ET.Element, judgement: Judgement, name: str, seconds: float) -> ET.Element:
    names = {"classname": visible(judgement.name), "name": visible(name)}
    return ET.SubElement(suite, "testcase", names, time=f"{seconds:.3f}")
