"""Verdicts as CI shows them, in Markdown, annotations of GitHub Actions and JUnit XML.

Names of families, pairs and tensors, messages and file names are hostile text in each of these:
every one goes through `cell`, `_data` or `visible`. There is no SARIF, whose results
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

Tag = Literal["Failure", "Error", "Skipped"]  # of JUnit
Problem = tuple[Tag, str, str]  # with its text and its type
SUMMARY_BYTES = 1_000_000  # of a step's Markdown; GitHub drops all of what exceeds 1,048,576
CUT = b"\n\nThe rest does not fit into the summary of a step.\n"
ANNOTATIONS = 10  # of each level that GitHub shows of a step
FAULTS = ("met", "missing")  # outcomes: a rule was violated, or had nothing to judge
JUNIT_START = 1000  # bytes in which a JUnit file names its first element
LISTED = 100  # tensors that the output of a case lists
LAST_PARTS = 2  # of a path elsewhere
UNAUDITED = "not audited"
TAGS: Mapping[str, Tag] = {"met": "Failure", "missing": "Error", "skipped": "Skipped"}


def sentences(judged: Sequence[Judgement]) -> list[str]:
    """Yield, for people on a terminal, why the exit code is not 0, and warnings."""
    lines = []
    reasons: set[str] = set()
    for judgement in judged:
        reasons.update(judgement.objections)
        for verdict in judgement.verdicts:
            if verdict.outcome in FAULTS:
                mark = "warning: " if verdict.rule.severity == "warning" else ""
                where = f"{mark}{judgement.name}: {verdict.rule.name}"
                lines.append(f"{where}: {verdict.detail}")
    for judgement in judged:
        if judgement.summary is not None:
            for sentence in broken(judgement.summary):
                lines.append(f"{judgement.name}: {sentence.text}")
    if reasons:
        lines.append(f"--strict: skipped because of {', '.join(sorted(reasons))}")
    return lines


def is_without_baseline(judged: Sequence[Judgement]) -> bool:
    """True if no figure was compared with a baseline that rules ask for and may lack."""
    moved = [
        verdict
        for judgement in judged
        for verdict in judgement.verdicts
        if verdict.rule.comparison == MOVED
    ]
    return bool(moved) and all(verdict.outcome == "skipped" for verdict in moved)


def counts(judged: Sequence[Judgement]) -> str:
    """`2 of 4 rules passed, 1 FAILED, 1 not judged`, over several pairs together.

    A warning does not fail, and counts as a warning whether it is violated or has nothing to judge.
    Empty without rules.
    """
    verdicts = [verdict for judgement in judged for verdict in judgement.verdicts]
    if not verdicts:
        return ""
    numbers = Counter(
        "warning"
        if verdict.outcome in FAULTS and verdict.rule.severity != "error"
        else verdict.outcome
        for verdict in verdicts
    )
    parts = [f"{numbers['passed']} of {counted(len(verdicts), 'rule', 'rules')} passed"]
    if numbers["met"]:
        parts.append(f"{numbers['met']} FAILED")
    elif numbers["warning"]:
        parts.append("0 failed")
    if numbers["missing"]:
        parts.append(f"{numbers['missing']} not judged")
    if numbers["warning"]:
        parts.append(counted(numbers["warning"], "warning", "warnings"))
    if numbers["skipped"]:
        parts.append(f"{numbers['skipped']} skipped")
    return ", ".join(parts)


# GitHub's Markdown


def append_summary(path: Path, shown: Document) -> None:
    """Append to the summary of a step as many lines as GitHub accepts. Raises OSError."""
    text = f"{markdown(shown)}\n".encode()
    with path.open("ab") as file:
        room = SUMMARY_BYTES - file.tell()
        if len(text) > room:
            left = max(0, room - len(CUT))
            start = text[:left]
            lines, _, _ = start.rpartition(b"\n")
            text = lines + CUT
        if len(text) <= room:
            file.write(text)


# Annotations of GitHub Actions


def workflow_commands(
    judged: Sequence[Judgement], without_baseline: str | None = None
) -> list[str]:
    """Workflow commands: a line for each error and each rule that is violated or not judged.

    The runner reads them from stdout and stderr alike. without_baseline: why nothing was compared
    with a baseline, as a warning.
    """
    texts: dict[str, list[str]] = {"error": [], "warning": []}
    if without_baseline is not None:
        warning = _annotation("warning", "shadow", without_baseline)
        texts["warning"].append(warning)
    for judgement in judged:
        for kind, text in _faults(judgement):
            title = judgement.name if kind == UNAUDITED else f"{judgement.name}: {kind}"
            error = _annotation("error", title, text)
            texts["error"].append(error)
        for verdict in judgement.verdicts:
            if verdict.outcome in FAULTS:
                rule = verdict.rule
                title = f"{judgement.name}: {rule.name}"
                text = _annotation(rule.severity, title, verdict.message)
                texts[rule.severity].append(text)
    errors = _first("error", texts["error"])
    return errors + _first("warning", texts["warning"])


def _faults(judgement: Judgement) -> Iterator[tuple[str, str]]:
    """Yield what no rule is needed for: kind and text."""
    if judgement.fault is not None:
        yield UNAUDITED, judgement.fault
    if judgement.summary is not None:
        for sentence in broken(judgement.summary):
            yield sentence.code, sentence.text
    if judgement.objections:
        yield "--strict", f"skipped because of {', '.join(judgement.objections)}"


def _first(level: str, lines: Sequence[str]) -> list[str]:
    """The lines that GitHub shows; the last one counts the rest."""
    if len(lines) <= ANNOTATIONS:
        return list(lines)
    shown = lines[: ANNOTATIONS - 1]
    text = f"{len(lines) - len(shown)} more are in the job's summary"
    return [*shown, _annotation(level, "shadow", text)]


def _annotation(level: str, title: str, text: str) -> str:
    of_title = _data(title).replace(":", "%3A")
    of_title = of_title.replace(",", "%2C")
    return f"::{level} title={of_title}::{_data(text)}"


def _data(text: str) -> str:
    """Escape text as the message of a workflow command."""
    return visible(text).replace("%", "%25")


# JUnit


def junit(judged: Sequence[Judgement]) -> bytes:
    """JUnit XML: a suite for each pair, with a case for the audit and one for each rule.

    A pair without its report and a rule that was violated are failures, a rule with nothing to
    judge is an error; rules that are only warnings pass, and say so in their output, since JUnit
    has no warnings. Tensors that were skipped are reported in the output of the audit's case: as
    cases of their own they would be thousands, and most are vectors.
    """
    suites = []
    for judgement in judged:
        lines: list[str] = []
        summary = judgement.summary
        if summary is not None:
            counts = [f"{count} {status}" for status, count in summary.counts.items()]
            lines.append(summary.finding.headline)
            lines += [sentence.text for sentence in summary.finding.sentences]
            lines.append(f"tensors of both sides: {', '.join(counts)}")
            lines += [f"skipped: {row.tensors} {row.reason}" for row in summary.skipped]
            lines += [f"warning: {warning}" for warning in summary.warnings]
            lines += [f"note: {text}" for text in judgement.notes]
        problems: list[Problem] = []
        for kind, text in _faults(judgement):
            problems.append(("Failure", text, kind))
        seconds = judgement.seconds or 0.0
        cases = [_case(judgement.name, "audit", seconds, problems, lines)]
        for verdict in judgement.verdicts:
            rule = verdict.rule
            lines = []
            problems = []
            if verdict.outcome == "passed":
                lines.append(verdict.detail)
            elif rule.severity == "warning" and verdict.outcome != "skipped":
                lines.append(f"warning: {verdict.detail}")
            else:
                tag = TAGS[verdict.outcome]
                problems.append((tag, verdict.detail, rule.condition))
            if len(verdict.findings) > 1:
                for finding in verdict.findings:
                    if finding.met:
                        lines.append(f"{finding.figure}: {finding.value}")
            if verdict.outcome == "met" and rule.message:
                lines.append(rule.message)
            case = _case(judgement.name, rule.name, 0.0, problems, lines)
            cases.append(case)
        suites.append((judgement.name, cases))
    return _document(suites)


def begin_junit(path: Path, command: str) -> None:
    """Write an error where the results of a command will be, so that CI never mistakes those of an
    earlier run for them.

    The file says so however the command ends: by an error, a signal, or a power failure. Raises
    ShadowError for a file that must not be overwritten, before anything is measured.
    """
    text = f"`shadow {command}` did not finish: its output says why"
    problem: Problem = ("Error", text, "not finished")
    case = _case("shadow", command, 0.0, [problem], [])
    content = _document([("shadow", [case])])
    write_document(path, content)


def write_claims(path: Path, verifications: Sequence[Verification | FailedVerification]) -> None:
    """Write the results of claims: a case each. One that does not hold is a failure, one that is
    inconclusive is skipped, and a fault is an error. Raises ShadowError.
    """
    cases = []
    for verification in verifications:
        of = {name: _from_here(text) for name, text in verification.of.items()}
        lines: list[str] = []
        problems: list[Problem] = []
        if isinstance(verification, FailedVerification):
            problems.append(("Error", verification.fault, "fault"))
        elif verification.outcome == "holds":
            lines.append(verification.reason)
        else:
            tag: Tag = "Failure" if verification.outcome == "does_not_hold" else "Skipped"
            problems.append((tag, verification.reason, verification.claim))
        if isinstance(verification, Verification):
            rows = verification.against[:LISTED]
            first = len(verification.answer.reasons)
            beside = verification.statements[first:]
            lines += [f"{row.severity} {row.code}: {row.name}: {row.what}" for row in rows]
            lines += [f"{text.severity} {text.code}: {text.what}" for text in beside]
        name = claim_text(replace(verification, of=of))
        case = _case("shadow verify", name, verification.seconds, problems, lines)
        cases.append(case)
    content = _document([("shadow verify", cases)])
    write_document(path, content)


def _from_here(text: str) -> str:
    """An absolute path relative to here, or its end: a case has one name everywhere."""
    path = Path(text)
    if not path.is_absolute():
        return text
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    end = path.parts[-LAST_PARTS:]
    return "/".join(end).removeprefix("/")


def _case(
    of: str, name: str, seconds: float, problems: Sequence[Problem], lines: Sequence[str]
) -> TestCase:
    """A test case. The text of a problem is its message, and there is no attribute: GitLab
    does not show it, and Jenkins shows both.
    """
    import junitparser

    rounded = round(seconds, 3)
    case = junitparser.TestCase(visible(name), visible(of), rounded)
    for tag, text, kind in problems:
        problem = getattr(junitparser, tag)(type_=visible(kind))
        problem.text = visible(text)
        case.append(problem)
    if lines:
        case.system_out = "\n".join(map(visible, lines))
    return case


def _document(suites: Iterable[tuple[str, list[TestCase]]]) -> bytes:
    """Suites, each with its name and cases, as XML."""
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
        write_beside(path, text)
    except OSError as error:
        raise ShadowError(f"cannot write {path}: {error.strerror or error}", hint) from error
