"""Verdicts as CI shows them, in Markdown, annotations of GitHub Actions and JUnit XML.

Names of families, pairs and tensors, messages and file names are hostile text in each of these:
every one goes through `cell`, `_data`, `_property` or `visible`. There is no SARIF, whose results
refer to source files.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadow.checks.answer import FailedVerification, Verification
from shadow.checks.summary import broken
from shadow.errors import ShadowError
from shadow.files import read_start, write_beside
from shadow.gates.rules import MOVED
from shadow.gates.verdicts import Judgement
from shadow.outputs.markdown import markdown
from shadow.telling.document import Document
from shadow.telling.verification import claim_text
from shadow.text import counted, visible

if TYPE_CHECKING:
    from junitparser import TestCase

Tag = Literal["failure", "error", "skipped"]  # of JUnit
Problem = tuple[Tag, str, str]  # with its text and its type
SUMMARY_BYTES = 1_000_000  # of a step's Markdown; GitHub drops all of what exceeds 1,048,576
CUT = b"\n\nThe rest does not fit into the summary of a step.\n"
ANNOTATIONS = 10  # of each level that GitHub shows of a step
FAULTS = ("met", "missing")  # outcomes: a rule was violated, or had nothing to judge
JUNIT_START = 1000  # bytes in which a JUnit file names its first element
LISTED = 100  # tensors that the output of a case lists
LAST_PARTS = 2  # of a path elsewhere
UNAUDITED = "not audited"
TAGS: Mapping[str, Tag] = {"met": "failure", "missing": "error", "skipped": "skipped"}


def sentences(judged: Sequence[Judgement]) -> list[str]:
    """Yield, for people on a terminal, why the exit code is not 0, and warnings."""
    lines = [
        f"{'warning: ' * (verdict.rule.severity == 'warning')}{judgement.name}:"
        f" {verdict.rule.name}: {verdict.detail}"
        for judgement in judged
        for verdict in judgement.verdicts
        if verdict.outcome in FAULTS
    ]
    for judgement in judged:
        if judgement.summary is not None:
            lines += [f"{judgement.name}: {one.text}" for one in broken(judgement.summary)]
    if reasons := sorted({reason for judgement in judged for reason in judgement.objections}):
        lines.append(f"--strict: skipped because of {', '.join(reasons)}")
    return lines


def is_without_baseline(judged: Sequence[Judgement]) -> bool:
    """Return whether no figure was compared with a baseline that rules ask for and may lack."""
    moved = [
        verdict for one in judged for verdict in one.verdicts if verdict.rule.comparison == MOVED
    ]
    return bool(moved) and all(verdict.outcome == "skipped" for verdict in moved)


def counts(judged: Sequence[Judgement]) -> str:
    """Return `2 of 4 rules passed, 1 FAILED, 1 not judged`, over several pairs together.

    A warning does not fail, and counts as a warning whether it is violated or has nothing to judge.
    Empty without rules.
    """
    verdicts = [verdict for judgement in judged for verdict in judgement.verdicts]
    if not verdicts:
        return ""
    found = Counter(
        "warning" if one.outcome in FAULTS and one.rule.severity != "error" else one.outcome
        for one in verdicts
    )
    parts = [f"{found['passed']} of {counted(len(verdicts), 'rule', 'rules')} passed"]
    parts += [f"{found['met']} FAILED"] if found["met"] else []
    parts += ["0 failed"] if found["warning"] and not found["met"] else []
    parts += [f"{found['missing']} not judged"] if found["missing"] else []
    parts += [counted(found["warning"], "warning", "warnings")] if found["warning"] else []
    parts += [f"{found['skipped']} skipped"] if found["skipped"] else []
    return ", ".join(parts)


# GitHub's Markdown


def append_summary(path: Path, shown: Document) -> None:
    """Append to the summary of a step as many lines as GitHub accepts. Raises OSError."""
    text = f"{markdown(shown)}\n".encode()
    with path.open("ab") as file:
        room = SUMMARY_BYTES - file.tell()
        if len(text) > room:
            text = text[: max(0, room - len(CUT))].rpartition(b"\n")[0] + CUT
        if len(text) <= room:
            file.write(text)


# Annotations of GitHub Actions


def workflow_commands(
    judged: Sequence[Judgement], without_baseline: str | None = None
) -> list[str]:
    """Return workflow commands: a line for each error and each rule that is violated or not judged.

    The runner reads them from stdout and stderr alike. without_baseline: why nothing was compared
    with a baseline, as a warning.
    """
    texts: dict[str, list[str]] = {"error": [], "warning": []}
    if without_baseline is not None:
        texts["warning"].append(_annotation("warning", "shadow", without_baseline))
    for judgement in judged:
        for kind, text in _faults(judgement):
            title = judgement.name if kind == UNAUDITED else f"{judgement.name}: {kind}"
            texts["error"].append(_annotation("error", title, text))
        for verdict in judgement.verdicts:
            if verdict.outcome in FAULTS:
                rule = verdict.rule
                title = f"{judgement.name}: {rule.name}"
                texts[rule.severity].append(_annotation(rule.severity, title, verdict.message))
    return [line for level, lines in texts.items() for line in _first(level, lines)]


def _faults(judgement: Judgement) -> Iterator[tuple[str, str]]:
    """Yield what no rule is needed for: kind and text."""
    if judgement.fault is not None:
        yield UNAUDITED, judgement.fault
    if judgement.summary is not None:
        yield from ((one.code, one.text) for one in broken(judgement.summary))
    if judgement.objections:
        yield "--strict", f"skipped because of {', '.join(judgement.objections)}"


def _first(level: str, lines: Sequence[str]) -> list[str]:
    """Return the lines that GitHub shows; the last one counts the rest."""
    if len(lines) <= ANNOTATIONS:
        return list(lines)
    text = f"{len(lines) - ANNOTATIONS + 1} more are in the job's summary"
    return [*lines[: ANNOTATIONS - 1], _annotation(level, "shadow", text)]


def _annotation(level: str, title: str, text: str) -> str:
    return f"::{level} title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    """Escape text as the message of a workflow command."""
    return visible(text).replace("%", "%25")


def _property(text: str) -> str:
    """Escape text as a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


# JUnit


def junit(judged: Sequence[Judgement]) -> bytes:
    """Return JUnit XML: a suite for each pair, with a case for the audit and one for each rule.

    A pair without its report and a rule that was violated are failures, a rule with nothing to
    judge is an error; rules that are only warnings pass, and say so in their output, since JUnit
    has no warnings. Tensors that were skipped are reported in the output of the audit's case: as
    cases of their own they would be thousands, and most are vectors.
    """
    suites = []
    for judgement in judged:
        lines: list[str] = []
        if (summary := judgement.summary) is not None:
            counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items())
            lines = [
                summary.finding.headline,
                *(sentence.text for sentence in summary.finding.sentences),
                f"tensors of both sides: {counts}",
                *(f"skipped: {row.tensors} {row.reason}" for row in summary.skipped),
                *(f"warning: {warning}" for warning in summary.warnings),
                *(f"note: {text}" for text in judgement.notes),
            ]
        problems: list[Problem] = [("failure", text, kind) for kind, text in _faults(judgement)]
        seconds = judgement.seconds or 0.0
        cases = [_case(judgement.name, "audit", seconds, problems, lines)]
        for verdict in judgement.verdicts:
            lines, problems = [], []
            if verdict.outcome == "passed":
                lines.append(verdict.detail)
            elif verdict.rule.severity == "warning" and verdict.outcome != "skipped":
                lines.append(f"warning: {verdict.detail}")
            else:
                problems = [(TAGS[verdict.outcome], verdict.detail, verdict.rule.condition)]
            if len(verdict.findings) > 1:
                lines += [f"{one.figure}: {one.value}" for one in verdict.findings if one.met]
            if verdict.outcome == "met" and verdict.rule.message:
                lines.append(verdict.rule.message)
            cases.append(_case(judgement.name, verdict.rule.name, 0.0, problems, lines))
        suites.append((judgement.name, cases))
    return _document(suites)


def begin_junit(path: Path, command: str) -> None:
    """Write an error where the results of a command will be, so that CI never mistakes those of an
    earlier run for them.

    The file says so however the command ends: by an error, a signal, or a power failure. Raises
    ShadowError for a file that must not be overwritten, before anything is measured.
    """
    text = f"`shadow {command}` did not finish: its output says why"
    case = _case("shadow", command, 0.0, [("error", text, "not finished")], [])
    write_document(path, _document([("shadow", [case])]))


def write_claims(path: Path, found: Sequence[Verification | FailedVerification]) -> None:
    """Write the results of claims: a case each. One that does not hold is a failure, one that is
    inconclusive is skipped, and a fault is an error. Raises ShadowError.
    """
    cases = []
    for one in found:
        of = {name: _from_here(text) for name, text in one.of.items()}
        lines: list[str] = []
        problems: list[Problem] = []
        if isinstance(one, FailedVerification):
            problems.append(("error", one.fault, "fault"))
        elif one.outcome == "holds":
            lines.append(one.reason)
        else:
            tag: Tag = "failure" if one.outcome == "does_not_hold" else "skipped"
            problems.append((tag, one.reason, one.claim))
        if isinstance(one, Verification):
            rows = one.against[:LISTED]
            beside = one.statements[len(one.answer.reasons) :]
            lines += [f"{row.severity} {row.code}: {row.name}: {row.what}" for row in rows]
            lines += [f"{text.severity} {text.code}: {text.what}" for text in beside]
        name = claim_text(replace(one, of=of))
        cases.append(_case("shadow verify", name, one.seconds, problems, lines))
    write_document(path, _document([("shadow verify", cases)]))


def _from_here(text: str) -> str:
    """Return an absolute path relative to here, or its end: a case has one name everywhere."""
    path = Path(text)
    if not path.is_absolute():
        return text
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return "/".join(path.parts[-LAST_PARTS:]).removeprefix("/")


def _case(
    of: str, name: str, seconds: float, problems: Sequence[Problem], lines: Sequence[str]
) -> TestCase:
    """Return a test case. The text of a problem is its message, and there is no attribute: GitLab
    does not show it, and Jenkins shows both.
    """
    from junitparser import Error, Failure, Skipped, TestCase

    tags = {"failure": Failure, "error": Error, "skipped": Skipped}
    case = TestCase(visible(name), visible(of), round(seconds, 3))
    for tag, text, kind in problems:
        problem = tags[tag](type_=visible(kind))
        problem.text = visible(text)
        case.append(problem)
    if lines:
        case.system_out = "\n".join(map(visible, lines))
    return case


def _document(suites: Iterable[tuple[str, list[TestCase]]]) -> bytes:
    """Return suites, each with its name and cases, as XML."""
    from junitparser import JUnitXml, TestSuite

    root = JUnitXml("shadow")
    for name, cases in suites:
        suite = TestSuite(visible(name))
        suite.add_testcases(cases)
        root.append(suite)  # where add_testsuite joins those of one name
    root.update_statistics()
    content = io.BytesIO()
    root.write(content, pretty=True)
    return content.getvalue()


def write_document(path: Path, text: bytes) -> None:
    """Write a file atomically, replacing only a JUnit file. Raises ShadowError."""
    hint = "choose another file with --junit"
    try:
        if path.exists():
            start = read_start(path, JUNIT_START)
            if start is None:
                raise ShadowError(f"{path} is not a regular file", hint)
            if start and not (start.startswith(b"<?xml") and b"<testsuite" in start):
                raise ShadowError(f"{path} already exists and is not a JUnit file", hint)
    except OSError as error:
        raise ShadowError(f"cannot read {path}: {error.strerror or error}", hint) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, text)
    except OSError as error:
        raise ShadowError(f"cannot write {path}: {error.strerror or error}", hint) from error
